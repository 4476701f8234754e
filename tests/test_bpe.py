"""Tokenizers against independent oracles: a naive reference, tokenizers/transformers, tiktoken and sentencepiece."""
import base64
import concurrent.futures
import gzip
import io
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
import regex
import sentencepiece
import tiktoken
import tiktoken.load
import tokenizers
from hypothesis import assume, given, settings, strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

import bpe
from lib.vocab import count, models as models_of_lib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
few = settings(max_examples=60, deadline=None)
TEXTS = ['The theory of the other thing, then, is that there is nothing there.\n' * 3, "it's we'll they've I'm you'd DON'T 'tis\n",
         'naïve café résumé Ångström ﬁ ½ ²\n', 'def f(x):\n    return x ** 2  # 12345 + 67\n\n\n\tif  y:\n        pass\n' * 2,
         '日本語のテキスト。中文字符，한국어 텍스트 日本', '👍🏽 👨‍👩‍👧 🇩🇪 😀😃', 'aaaa aaa aaaaaaa abab ababab', 'العربية हिन्दी ไทย Σίσυφος\n']
NASTY = ['', ' ', '  ', '\n', 'a', ' a', '  a', 'a ', 'a  ', 'Hello, world!', '  two  spaces  inside ', "it's we'll DON'T 'tis ''s 's't",
         'naïve café ÀÉÎ ﬁ ½ ² ① Ⅷ ＡＢＣ', '日本語。中文，한국어', '👍🏽 👨‍👩‍👧‍👦 🇩🇪', 'a\u0301e\u0300 o\u0308', '\x00\x01\x1f\x7f\x80\x9f',
         'tab\tnew\nline\r\nreturn\rform\x0cvt\x0b', '\u00a0nbsp\u2003em\u200bzero\u200djoin\ufeffbom\u2028ls\u3000ideo', '1234567 3.14',
         'x' * 150, 'ab' * 400, '!!!???...---___', '<|endoftext|>', '<s></s><unk><pad>', '[CLS] [SEP]', '<extra_id_0> <extra_id_99>',
         '▁under▁score ▁▁', 'ΑΣ Σ οδυσσεύς', 'İstanbul ǅ ß', '\ufffd\ufffd', '   \n\n   \t x', 'don’t “quote” – em…', '\r\n\r\n',
         'a\n\n b\n \n  c', 'e\u0301\u0302\u0303', 'ﬁ\u0301', '##ing a##b', 'it . is , so !', '∂x/∂t', ' ' * 40 + 'x', 'there  1 12 123 1234']
words = st.text(st.sampled_from('abc xyzéß’ΣДя한日\n\t .,\'-_1234567\U0001f600\u0301\u00a0'), max_size=40) | st.text(max_size=20)


def naive(texts, pattern, n):
    """Count all pairs, merge the best (the smaller ids at equal counts), repeat: the definition, with no cleverness."""
    order = [b for b in range(256) if chr(b).isprintable() and b != 32]
    rank = {b: i for i, b in enumerate(order + [b for b in range(256) if b not in order])}
    seqs = Counter(tuple(rank[b] for b in m.group().encode()) for t in texts for m in regex.finditer(pattern, t))
    made = []
    while len(made) < n:
        pairs = Counter()
        for seq, k in seqs.items():
            for pair in zip(seq, seq[1:]):
                pairs[pair] += k
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        new = Counter()
        for seq, k in seqs.items():
            out, i = [], 0
            while i < len(seq):
                hit = seq[i:i + 2] == best
                out.append(256 + len(made) if hit else seq[i])
                i += 2 if hit else 1
            new[tuple(out)] += k
        seqs = new
        made.append(best)
    return made


def token_bytes(made):
    order = [b for b in range(256) if chr(b).isprintable() and b != 32]
    tokens = [bytes([b]) for b in order + [b for b in range(256) if b not in order]]
    for a, b in made:
        tokens.append(tokens[a] + tokens[b])
    return tokens


@pytest.fixture(scope='module')
def tok():
    return bpe.train(TEXTS, 560)


# ---- training ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('pattern', ['gpt2', 'cl100k', 'o200k', r'\S+|\s+'])
def test_merges_are_the_naive_ones(pattern):
    texts = TEXTS + [''.join(random.Random(7).choices('ab c', k=700)), 'a' * 37, '\n' * 9]
    t = bpe.train(texts, 256 + 200, pattern, special=[])
    assert t.tokens == token_bytes(naive(texts, bpe.PATTERNS.get(pattern, pattern), 200))


@few
@given(st.lists(st.text(st.sampled_from('aab b\n\''), max_size=60), min_size=1, max_size=5), st.integers(0, 40))
def test_merges_are_the_naive_ones_on_random_text(texts, n):
    if any(texts):
        t = bpe.train(texts, 256 + n, special=[])
        assert t.tokens == token_bytes(naive(texts, bpe.PATTERNS['gpt2'], n))


@few
@given(st.dictionaries(st.binary(min_size=1, max_size=12).map(lambda b: bytes(x % 4 for x in b)), st.integers(1, 30), min_size=1,
                       max_size=12), st.integers(0, 60))
def test_merges_of_arbitrary_chunks(chunks, n):
    rank = {b: i for i, b in enumerate(bpe.BYTES)}
    seqs, want = {tuple(rank[x] for x in b): k for b, k in chunks.items()}, []
    while len(want) < n:  # once more the definition, now on weighted chunks
        pairs = Counter()
        for seq, k in seqs.items():
            for pair in zip(seq, seq[1:]):
                pairs[pair] += k
        if not pairs:
            break
        best, new = min(pairs, key=lambda p: (-pairs[p], p)), 256 + len(want)
        want.append(best)
        after = Counter()
        for seq, k in seqs.items():
            out = []
            for x in seq:
                if out and (out[-1], x) == best:
                    out[-1] = new
                else:
                    out.append(x)
            after[tuple(out)] += k
        seqs = after
    assert bpe.merges(chunks, n) == want
    assert bpe.merges(dict(reversed(chunks.items())), n) == want  # whatever the order of the dict


def test_merges_are_those_of_hugging_face():
    texts = [open(p, encoding='utf-8').read() for p in (json.__file__, os.__file__, random.__file__, gzip.__file__)]
    hf = tokenizers.Tokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=3000, show_progress=False, special_tokens=[],
                                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    vocab = hf.get_vocab()
    ours = bpe.train(texts, 3000, special=[])
    # an initial alphabet that holds all bytes is sorted by its visible characters, which is our order too
    assert [bpe.visible(t) for t in ours.tokens] == sorted(vocab, key=vocab.get)


def test_aaa_merges_from_the_left():
    t = bpe.train(['aaa'], 257, special=[])
    assert [t.tokens[i] for i in t.encode('aaa')] == [b'aa', b'a']
    assert [t.tokens[i] for i in t.encode('aaaaa')] == [b'aa', b'aa', b'a']


def test_merges_stay_inside_chunks():
    t = bpe.train(['ab cd ab cd. ab cd\n'] * 20, 600)
    for token in t.tokens[256:t.eot]:
        assert len(regex.findall(bpe.PATTERNS['gpt2'], token.decode('utf-8', 'replace'))) == 1


def test_training_stops_when_no_pair_is_left_and_specials_follow():
    t = bpe.train('abab', 2000)
    assert t.vocab_size == 256 + 2 + len(bpe.SPECIALS) and t.eot == 258 and t.sentinels == list(range(263, 363))
    assert (t.pad, t.cls, t.sep, t.mask, t.unk, t.name) == (259, 260, 261, 262, None, 'bpe2000')


@pytest.mark.parametrize('pattern', ['gpt2', 'cl100k', 'o200k', 'words'])
def test_counts_do_not_depend_on_blocks_or_processes(pattern, monkeypatch):
    rng = random.Random(3)
    text = ''.join(rng.choice(['a', 'Bc', ' ', '  ', '\n', '\r\n', '\t', '1', "'s", '/', '...', 'é', '\u0301', '\u00a0', '日', "'"])
                   for _ in range(20000))
    want = Counter(m.group() for m in regex.finditer(bpe.PATTERNS[pattern], text))
    monkeypatch.setattr(count, 'BLOCK', 50)
    monkeypatch.setattr(bpe.blocks, '__defaults__', (50,))
    assert len(list(bpe.blocks([text], bpe.CUT))) > 100
    for cores in (1, 3):
        assert bpe.count_chunks(iter([text]), pattern, cores) == want
    once = bpe.count_chunks([text[:9000], '', text[9000:]], '(?:' + bpe.PATTERNS[pattern] + ')', 2)  # not cut: unknown pattern
    assert once == bpe.count_chunks([text[:9000], text[9000:]], pattern, 1)


@few
@given(st.lists(st.sampled_from(['a', 'B', ' ', '\n', '\r', '\t', '7', "'", "'s", 'll', '/', '!', 'é', '\u0301', '\u3000', '日']), max_size=30))
def test_cuts_change_no_chunk(parts):
    text = ''.join(parts)
    for pattern in bpe.PATTERNS.values():
        whole = regex.findall(pattern, text)
        for m in bpe.CUT.finditer(text):
            assert regex.findall(pattern, text[:m.start()]) + regex.findall(pattern, text[m.start():]) == whole


def test_a_dead_worker_is_an_error_not_a_hang(monkeypatch):
    monkeypatch.setattr(count, 'count_worker', lambda pipe, pattern: os._exit(1))
    with pytest.raises(OSError):
        bpe.count_chunks(['a b' * 100000] * 20, 'gpt2', 2)


@pytest.mark.parametrize('call, message', [
    (lambda: bpe.train(TEXTS, 300), '256 bytes + 105 special tokens need at least 361'),
    (lambda: bpe.train([], 500), 'input is empty'),
    (lambda: bpe.train(['', ''], 500), 'input is empty'),
    (lambda: bpe.train(TEXTS, 500, '('), 'nor a regular expression'),
    (lambda: bpe.train(TEXTS, 500, '(a)|b'), 'capturing group'),
    (lambda: bpe.train(TEXTS, 500, model='trie'), 'use bpe, wordpiece or unigram'),
    (lambda: bpe.train(TEXTS, 50, model='unigram'), 'too small'),
    (lambda: bpe.char(['']), 'input is empty')])
def test_bad_training_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError) as e:
        call()
    assert message in str(e.value) and '\n' not in str(e.value)


# ---- encoding ----------------------------------------------------------------------------------------------------

def test_encodes_as_tiktoken_with_our_ranks(tok):
    ranks = {t: i for i, t in enumerate(tok.tokens[:tok.eot])}
    e = tiktoken.Encoding('t', pat_str=bpe.PATTERNS['gpt2'], mergeable_ranks=ranks, special_tokens=tok.special)
    for text in NASTY + TEXTS:
        assert tok.encode(text) == e.encode_ordinary(text)
        assert tok.encode(text, special=True) == e.encode(text, allowed_special='all')
        assert tok.decode(tok.encode(text)) == text
        assert tok.encode_numpy(text).tolist() == tok.encode(text)
    assert tok.encode_batch(NASTY) == [tok.encode(t) for t in NASTY]


def test_encodes_as_the_merges_in_order(tok):
    made = naive(TEXTS, bpe.PATTERNS['gpt2'], 560 - 361)
    rank = {b: i for i, b in enumerate(bpe.BYTES)}
    for text in NASTY:
        want = []
        for m in regex.finditer(bpe.PATTERNS['gpt2'], text):
            ids = [rank[b] for b in m.group().encode()]
            for n, pair in enumerate(made):
                i = 0
                while i < len(ids) - 1:
                    if (ids[i], ids[i + 1]) == pair:
                        ids[i:i + 2] = [256 + n]
                    i += 1
            want += ids
        assert tok.encode(text) == want


@few
@given(st.binary(max_size=60))
def test_any_bytes_come_back(data):
    for t in (bpe_small(), bpe.byte()):
        ids = t.encode(data)
        assert t.decode_bytes(ids) == data and all(0 <= i < t.vocab_size for i in ids)
        assert int(t.byte_lengths[ids].sum()) == len(data)


@few
@given(words)
def test_any_text_comes_back(text):
    for t in (bpe_small(), bpe.byte()):
        assert t.decode(t.encode(text)) == text
        assert t.encode_numpy(text).tolist() == t.encode(text) and t.encode_numpy(text).dtype == np.uint32


def bpe_small(cache=[]):
    return cache[0] if cache else cache.append(bpe.train(TEXTS, 500)) or cache[0]


def test_long_texts_encode_on_threads_to_the_same_ids(tok):
    text = ('the other  thing\n\n\tis 12345 there; 日本語 ' * 9000)
    assert len(text) > 4 * bpe.BLOCK / 4
    big = text * 4
    assert len(big) > 4 * bpe.BLOCK and tok.encode_numpy(big).tolist() == tok.encode(big)


def test_a_million_spaces_and_lone_surrogates(tok, capfd):
    text = 'a' + ' ' * 1_000_000 + 'b'
    assert tok.decode(tok.encode(text)) == text and tok.decode(tok.encode_numpy(text)) == text
    assert tok.decode(tok.encode('a\ud800b')) == 'a\ufffdb' == tok.decode(tok.encode_numpy('a\ud800b'))
    assert bpe.train(['a\ud800b'], 400).vocab_size > 361


def test_special_tokens_are_text_unless_asked_for(tok):
    text = '<|pad|> x<|sentinel_10|><|sentinel_1|>'
    assert not set(tok.encode(text)) & set(tok.special.values()) and tok.decode(tok.encode(text)) == text
    ids = tok.encode(text, special=True)
    assert ids[0] == tok.pad and ids[-2:] == [tok.sentinels[10], tok.sentinels[1]] and tok.decode(ids) == text
    assert not tok.byte_lengths[list(tok.special.values())].any()


@pytest.mark.parametrize('make', [lambda: bpe.train(TEXTS, 500, 'cl100k'), lambda: bpe.train(TEXTS, 400, r'\w+|\W'), bpe.byte,
                                  lambda: bpe.char(NASTY), lambda: bpe.train(TEXTS, 500, model='wordpiece'),
                                  lambda: bpe.train(TEXTS, 500, model='unigram')])
def test_saved_loaded_and_pickled_tokenizers_are_equal(make, tmp_path):
    t = make()
    path = str(tmp_path / 'tok.json')
    t.save(path)
    assert os.listdir(tmp_path) == ['tok.json']
    for u in (bpe.load(path), bpe.loads(t.dumps()), pickle.loads(pickle.dumps(t))):
        assert (u.name, u.vocab_size, u.special, u.eot, u.sentinels, u.unk) == (t.name, t.vocab_size, t.special, t.eot, t.sentinels, t.unk)
        assert type(u) is type(t) and u.dumps() == t.dumps() and (u.byte_lengths == t.byte_lengths).all()
        for text in NASTY:
            assert u.encode(text, special=True) == t.encode(text, special=True)


@pytest.mark.parametrize('make', [lambda: bpe.train(TEXTS, 500), lambda: bpe.train(TEXTS, 500, model='unigram'), bpe.byte])
def test_a_fresh_interpreter_opens_a_pickled_tokenizer(make):
    t, code = make(), "import pickle, sys; t = pickle.load(sys.stdin.buffer); print(t.encode('thé <|pad|>', special=True), 'torch' in sys.modules)"
    r = subprocess.run([sys.executable, '-c', code], input=pickle.dumps(t), capture_output=True, cwd=ROOT, timeout=60)
    assert r.stdout.decode().strip() == f"{t.encode('thé <|pad|>', special=True)} False", r.stderr.decode()
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        assert pool.submit(t.encode, 'thé thing').result() == t.encode('thé thing')


def test_char_and_byte():
    t = bpe.char(['hello', 'wörld'])
    assert t.decode(t.encode('world'.replace('o', 'ö'))) == 'wörld' and t.vocab_size == 8 + 105 and t.eot == 8
    assert t.byte_lengths[t.encode('ö')].tolist() == [2] and t.encode_numpy('hell').dtype == np.uint32
    with pytest.raises(ValueError, match="'z' is not among the 8"):
        t.encode('zoo')
    b = bpe.byte()
    assert b.encode('hé') == [104, 195, 169] and b.vocab_size == 361 and b.eot == 256 and b.name == bpe.load('byte').name == 'byte'


# ---- readers -----------------------------------------------------------------------------------------------------

def same(ours, theirs, texts=NASTY + TEXTS, special=True):
    """ours gives the ids of tokenizers.Tokenizer `theirs` on nasty and random text, and decodes them alike."""
    for text in texts:
        ids = ours.encode(text, special=special)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, repr(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False), repr(text)
    assert ours.vocab_size == theirs.get_vocab_size()

    @settings(max_examples=40, deadline=None)
    @given(words)
    def check(text):
        assume(not any(map(newer, text)))
        assert ours.encode(text, special=special) == theirs.encode(text, add_special_tokens=False).ids
    check()


def newer(c):
    """A punctuation mark, accent, capital or control that came after Unicode 3.2: `tokenizers` may know an older table of them."""
    kind = unicodedata.category(c)
    return unicodedata.ucd_3_2_0.category(c) == 'Cn' and (kind[0] == 'P' or kind in ('Mn', 'Lu', 'Cf'))


def byte_level_spec(pre, vocab_size=500, normalizer=None, special=(), **model):
    t = tokenizers.Tokenizer(models.BPE(**model))
    t.pre_tokenizer, t.decoder = pre, decoders.ByteLevel()
    if normalizer:
        t.normalizer = normalizer
    t.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, special_tokens=list(special),
                                                     initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return t


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BL = pre_tokenizers.ByteLevel


@pytest.mark.parametrize('name, spec', [
    ('gpt2', lambda: byte_level_spec(BL(add_prefix_space=False), special=['<|endoftext|>'])),
    ('prefix space', lambda: byte_level_spec(BL(add_prefix_space=True))),
    ('roberta', lambda: byte_level_spec(BL(add_prefix_space=False), special=['<s>', '<pad>', '</s>', '<unk>', tokenizers.AddedToken(
        '<mask>', lstrip=True)])),
    ('llama3', lambda: byte_level_spec(pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(LLAMA3), 'isolated'), BL(
        add_prefix_space=False, use_regex=False)]), ignore_merges=True, special=['<|begin_of_text|>'])),
    ('smollm', lambda: byte_level_spec(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BL(
        add_prefix_space=False)]))),
    ('digit runs', lambda: byte_level_spec(pre_tokenizers.Sequence([pre_tokenizers.Digits(), BL(add_prefix_space=False)]))),
    ('qwen', lambda: byte_level_spec(pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(LLAMA3), 'isolated'), BL(
        add_prefix_space=False, use_regex=False)]), normalizer=normalizers.NFC()))])
def test_tokenizer_json_byte_level(name, spec, tmp_path):
    t = spec()
    t.add_tokens(['   ', 'thing'])  # not special, yet never cut, as in GPT-NeoX
    t.save(str(tmp_path / 'tokenizer.json'))
    for path in (tmp_path, tmp_path / 'tokenizer.json'):
        ours = bpe.load(path)
    same(ours, t, NASTY + TEXTS + ['a <mask> b<mask>  c', '</s>x<s>', 'a    b thing nothing'])
    u = bpe.loads(ours.dumps())
    assert [u.encode(x) for x in NASTY] == [ours.encode(x) for x in NASTY]
    assert (u.encode_numpy(TEXTS[0] + 'a    b')).tolist() == ours.encode(TEXTS[0] + 'a    b')


def metaspace_bpe(prepend, pre, fallback, fuse=True):
    """A tokenizer.json as sentencepiece's BPE is converted: characters, ▁ for the space, perhaps 256 byte tokens."""
    corpus = [w for t in TEXTS for w in t.replace(' ', '▁').split('\n') if w]
    t = tokenizers.Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='always')
    t.train_from_iterator([t.replace('\n', ' ') for t in TEXTS[:5]], trainers.BpeTrainer(vocab_size=250, show_progress=False))
    d = json.loads(t.to_str())
    names = ['<unk>', '<s>', '</s>'] + [f'<0x{b:02X}>' for b in range(256)] * fallback
    d['model'].update(vocab={x: i for i, x in enumerate(names + list(d['model']['vocab']))}, unk_token='<unk>', fuse_unk=fuse,
                      byte_fallback=fallback)
    t = tokenizers.Tokenizer.from_str(json.dumps(d))
    t.add_special_tokens(['<unk>', '<s>', '</s>'])
    t.pre_tokenizer = pre
    if prepend:
        t.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    t.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)])
    assert corpus
    return t


@pytest.mark.parametrize('fallback', [True, False])
@pytest.mark.parametrize('form', ['normalizer', 'first', 'always'])
def test_tokenizer_json_metaspace_bpe(form, fallback, tmp_path):
    pre = None if form == 'normalizer' else pre_tokenizers.Metaspace(prepend_scheme=form, split=False)
    t = metaspace_bpe(form == 'normalizer', pre, fallback)
    if pre is not None:
        t.pre_tokenizer = pre
    else:
        d = json.loads(t.to_str())
        d['pre_tokenizer'] = None
        t = tokenizers.Tokenizer.from_str(json.dumps(d))
    t.save(str(tmp_path / 'tokenizer.json'))
    ours = bpe.load(tmp_path)
    assert ours.eot == 2 and ours.bos == 1 and ours.unk == 0
    same(ours, t, NASTY + TEXTS + ['x</s> y<s>z'])


@pytest.mark.parametrize('lowercase', [True, False])
def test_wordpiece_readers(lowercase, tmp_path):
    t = tokenizers.Tokenizer(models.WordPiece(unk_token='[UNK]', max_input_chars_per_word=100))
    t.normalizer, t.pre_tokenizer = normalizers.BertNormalizer(lowercase=lowercase), pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    t.train_from_iterator(TEXTS * 2, trainers.WordPieceTrainer(vocab_size=400, show_progress=False,
                                                               special_tokens=['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']))
    t.save(str(tmp_path / 'tokenizer.json'))
    vocab = t.get_vocab()
    (tmp_path / 'v').mkdir()
    (tmp_path / 'v' / 'vocab.txt').write_text('\n'.join(sorted(vocab, key=vocab.get)) + '\n', encoding='utf-8')
    for ours in (bpe.load(tmp_path), bpe.load(tmp_path / 'v' / 'vocab.txt'), bpe.load(tmp_path / 'v')):
        assert (ours.pad, ours.unk, ours.cls, ours.sep, ours.mask, ours.eot) == (0, 1, 2, 3, 4, 3)
        same(ours, t, [x for x in NASTY + TEXTS if not x.startswith('##')])
    assert ours.encode('y' * 101) == [1] and ours.encode('[MASK]') != [4] == ours.encode('[MASK]', special=True)
    (tmp_path / 'v' / 'tokenizer_config.json').write_text(json.dumps({'do_lower_case': not lowercase}))
    assert (bpe.load(tmp_path / 'v').encode('The') == t.encode('The').ids) is False


def test_bert_characters():
    """Every character assigned by Unicode 8 is cleaned, split and lower-cased as `tokenizers` does it."""
    n, pre = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    spec = {'type': 'BertNormalizer', 'clean_text': True, 'handle_chinese_chars': True, 'strip_accents': None, 'lowercase': True}
    ours, split = bpe.normalizer(spec), bpe.splitter({'type': 'BertPreTokenizer'})
    for c in [chr(i) for i in [*range(0xd800), *range(0xe000, 0x10000, 3), *range(0x1f300, 0x1f600), *range(0x20000, 0x20100)]]:
        text = 'a' + c + 'b'
        if unicodedata.category(c) != 'Cn' and (c < '\u0370' or '\u2000' <= c < '\u2e00' or c >= '\u3000'):
            if c not in '\ufffe\uffff' and ours(text) == n.normalize_str(text):
                assert split(ours(text), True) == [x for x, _ in pre.pre_tokenize_str(ours(text))], hex(ord(c))
            else:
                assert unicodedata.category(c) in ('Mn', 'Cf', 'Ll', 'Lu', 'Lo', 'So'), hex(ord(c))  # newer than its tables
    assert ours('ΑΣ ΣΑΣ') == n.normalize_str('ΑΣ ΣΑΣ')


def charsmap(rules):
    """sentencepiece's own compiled table of {key: replacement}: trained with these rules only."""
    out = io.BytesIO()
    tsv = '\n'.join('{}\t{}'.format(' '.join(f'{ord(c):X}' for c in k), ' '.join(f'{ord(c):X}' for c in v)) for k, v in rules.items())
    path = os.path.join(os.environ.get('TMPDIR', '/tmp'), f'rules{os.getpid()}.tsv')
    with open(path, 'w') as f:
        f.write(tsv + '\n')
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(['abc abd'] * 10), model_writer=out, vocab_size=9,
                                                 normalization_rule_tsv=path, minloglevel=2)
    finally:
        os.remove(path)
    return dict(bpe.fields(dict(bpe.fields(out.getvalue()))[3]))[2]


def test_precompiled_table_of_replacements():
    rules = {'ﬁ': 'fi', 'A\u0300': 'À', '\t': ' ', '①': '1', 'x\u0301\u0302': 'y', 'e\u0301': '', '\u200b': ' '}
    blob = charsmap(rules)
    run = bpe.precompiled(blob, True)
    assert all(run('q' + k + 'z') == 'q' + v + 'z' for k, v in rules.items())
    assert run('x\u0301 plain A ﬁA\u0300x\u0301\u0302') == 'x\u0301 plain A fiÀy'
    hf = normalizers.Precompiled(blob)
    ours = bpe.precompiled(blob, False)
    for text in NASTY + ['ﬁ\u0301', 'x\u0301\u0302\t', 'ae\u0301b', 'ﬁ①A\u0300\u0301', '\u200bﬁ']:
        assert ours(text) == hf.normalize_str(text), repr(text)


def spm(folder, name, **options):
    out = io.BytesIO()
    lines = [line for t in TEXTS for line in t.split('\n') if line]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, minloglevel=2, hard_vocab_limit=False,
                                             num_threads=1, seed_sentencepiece_size=2000, **options)
    with open(folder / name, 'wb') as f:
        f.write(out.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


T5 = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


@pytest.mark.parametrize('options', [
    dict(model_type='unigram', vocab_size=230, **T5), dict(model_type='unigram', vocab_size=450, byte_fallback=True),
    dict(model_type='bpe', vocab_size=450, byte_fallback=True, normalization_rule_name='identity', remove_extra_whitespaces=False),
    dict(model_type='bpe', vocab_size=250, character_coverage=0.98), dict(model_type='unigram', vocab_size=230, add_dummy_prefix=False),
    dict(model_type='unigram', vocab_size=200, remove_extra_whitespaces=False, user_defined_symbols=['<sep>', 'theory'])],
    ids=['t5', 'unigram bytes', 'llama2', 'bpe', 'no prefix', 'spaces kept'])
def test_sentencepiece_files(options, tmp_path):
    theirs = spm(tmp_path, 'spiece.model', **options)
    ours = bpe.load(tmp_path)
    texts = [t for t in NASTY + TEXTS if 'user_defined_symbols' not in options or '▁' not in t]
    for text in texts + ['a<sep>b theory']:
        assert ours.encode(text) == theirs.encode(text), repr(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)).replace(' ⁇ ', theirs.id_to_piece(theirs.unk_id()))

    @settings(max_examples=60, deadline=None)
    @given(words)
    def check(text):
        if '▁' not in text:
            a, b = ours.encode(text), theirs.encode(text)
            # paths of equal score may differ: sentencepiece adds in float32
            assert a == b or abs(sum(map(theirs.get_score, a)) - sum(map(theirs.get_score, b))) < 1e-4
    check()
    if options.get('pad_id') == 0:
        n = theirs.get_piece_size()
        assert ours.vocab_size == n + 100 and ours.sentinels[:2] == [n + 99, n + 98] and (ours.pad, ours.eot, ours.unk) == (0, 1, 2)
        assert ours.encode('a <extra_id_0> b', special=True)[1:2] != [] and ours.sentinels[0] in ours.encode('a <extra_id_0> b', special=True)
    else:
        assert ours.vocab_size == theirs.get_piece_size()


def test_unigram_tokenizer_json(tmp_path):
    proto = spm(tmp_path, 'm.model', model_type='unigram', vocab_size=230, **T5)
    pieces = [(proto.id_to_piece(i), proto.get_score(i)) for i in range(proto.get_piece_size())]
    blob = dict(bpe.fields(dict(bpe.fields((tmp_path / 'm.model').read_bytes()))[3]))[2]
    for replace in ('▁', ' '):
        t = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
        t.normalizer = normalizers.Sequence([normalizers.Precompiled(blob), normalizers.Strip(left=False, right=True),
                                             normalizers.Replace(tokenizers.Regex(' {2,}'), replace)])
        t.pre_tokenizer, t.decoder = pre_tokenizers.Metaspace(prepend_scheme='always'), decoders.Metaspace(prepend_scheme='always')
        t.add_special_tokens(['<pad>', '</s>', '<unk>'] + [tokenizers.AddedToken(f'<extra_id_{99 - i}>', lstrip=True, rstrip=True)
                                                           for i in range(100)])
        t.save(str(tmp_path / 'tokenizer.json'))
        ours = bpe.load(tmp_path / 'tokenizer.json')
        same(ours, t, NASTY + TEXTS + ['the  <extra_id_0>  thing</s>', '<extra_id_10><extra_id_1> x'])
        assert ours.sentinels == list(range(len(pieces) + 99, len(pieces) - 1, -1))


@pytest.mark.parametrize('names', [('encoder.json', 'vocab.bpe'), ('vocab.json', 'merges.txt')])
def test_gpt2_pair_of_files(names, tmp_path, tok):
    hf = tok.spec()['model']
    vocab = {**hf['vocab'], '<|endoftext|>': len(hf['vocab']), 'x' * 30: len(hf['vocab']) + 1}
    (tmp_path / names[0]).write_text(json.dumps(vocab))
    (tmp_path / names[1]).write_text('#version: 0.2\n' + '\n'.join(' '.join(m) for m in hf['merges']) + '\n', encoding='utf-8')
    for path in (tmp_path, tmp_path / names[0], tmp_path / names[1]):
        ours = bpe.load(path)
        assert [ours.encode(t) for t in NASTY] == [tok.encode(t) for t in NASTY] and ours.eot == len(hf['vocab'])
    for name in names:
        (tmp_path / (name + '.gz')).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        os.remove(tmp_path / name)
    assert bpe.load(tmp_path / (names[0] + '.gz')).encode(NASTY[9]) == tok.encode(NASTY[9])
    os.remove(tmp_path / (names[1] + '.gz'))
    with pytest.raises(ValueError, match='beside it'):
        bpe.load(tmp_path / (names[0] + '.gz'))


def test_roberta_pair_has_other_ids_than_ranks(tmp_path):
    t = byte_level_spec(BL(add_prefix_space=False))
    vocab = ['<s>', '<pad>', '</s>', '<unk>'] + random.Random(0).sample(sorted(t.get_vocab()), t.get_vocab_size()) + ['<mask>']
    d = json.loads(t.to_str())
    (tmp_path / 'vocab.json').write_text(json.dumps({x: i for i, x in enumerate(vocab)}))
    (tmp_path / 'merges.txt').write_text('\n'.join(' '.join(m) for m in d['model']['merges']) + '\n', encoding='utf-8')
    ours = bpe.load(tmp_path)
    for text in NASTY + TEXTS:
        assert [vocab[i] for i in ours.encode(text)] == t.encode(text).tokens
        assert ours.encode_numpy(text).tolist() == ours.encode(text)
    assert (ours.cls, ours.pad, ours.sep, ours.unk, ours.mask, ours.eot) == (0, 1, 2, 3, len(vocab) - 1, 2)
    assert ours.encode('a <mask>', special=True) == [*ours.encode('a'), ours.mask]


def test_tiktoken_files_and_names(tmp_path, tok, monkeypatch):
    path = tmp_path / 'mine.tiktoken'
    path.write_bytes(b''.join(base64.b64encode(t) + b' %d\n' % i for i, t in enumerate(tok.tokens[:tok.eot])))
    ours = bpe.load(path)
    e = tiktoken.Encoding('t', pat_str=bpe.PATTERNS['cl100k'], special_tokens={},
                          mergeable_ranks=tiktoken.load.load_tiktoken_bpe(str(path)))
    assert [ours.encode(t) for t in NASTY] == [e.encode_ordinary(t) for t in NASTY] and ours.eot == tok.eot and ours.name == 'mine'
    gap = {t: i + (i > 300) for i, t in enumerate(tok.tokens[:tok.eot])}  # p50k_base has such a hole
    fake = tiktoken.Encoding('gpt2', pat_str=bpe.PATTERNS['gpt2'], mergeable_ranks=gap, special_tokens={'<|endoftext|>': 301})
    monkeypatch.setattr(tiktoken, 'get_encoding', lambda name: fake)
    ours = bpe.load('gpt2')
    assert [ours.encode(t, special=True) for t in NASTY] == [fake.encode(t, allowed_special='all') for t in NASTY]
    assert ours.eot == 301 and ours.vocab_size == fake.n_vocab and ours.pattern == bpe.PATTERNS['gpt2']

    def offline(name):
        raise OSError('no route')
    monkeypatch.setattr(tiktoken, 'get_encoding', offline)
    with pytest.raises(ValueError, match='gpt2: tiktoken could not fetch it'):
        bpe.load('gpt2')


def test_patterns_are_those_of_tiktoken(monkeypatch):
    from tiktoken_ext import openai_public as public
    monkeypatch.setattr(public, 'load_tiktoken_bpe', lambda *a, **k: {})
    monkeypatch.setattr(public, 'data_gym_to_mergeable_bpe_ranks', lambda *a, **k: {})
    ours = {b: i for i, b in enumerate(map(bytes, zip(range(256))))}
    for name, theirs in (('gpt2', public.gpt2()), ('cl100k', public.cl100k_base()), ('o200k', public.o200k_base())):
        one, two = (tiktoken.Encoding('t', pat_str=p, mergeable_ranks=ours, special_tokens={}) for p in (bpe.PATTERNS[name], theirs['pat_str']))
        for text in NASTY + TEXTS:
            assert regex.findall(bpe.PATTERNS[name], text) == regex.findall(theirs['pat_str'], text)
            assert one.encode_ordinary(text) == two.encode_ordinary(text)
    for n_ranks, (pattern, special) in bpe.RANKED.items():
        assert pattern in bpe.PATTERNS and min(special.values()) >= n_ranks
    assert bpe.RANKED[100256][1] == public.cl100k_base()['special_tokens']


def hurt(tokens=lambda t: t, **change):
    d = json.loads(bpe.train(['aa aa aa ab ab'], 259, special=[]).dumps())
    return json.dumps(d | dict(tokens=tokens(d['tokens'])) | change).encode()


PIECE = b'\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02'  # the first of a sentencepiece model

@pytest.mark.parametrize('name, data, message', [
    ('a.json', b'', 'the file is empty'), ('a.json', b'{"a": ', 'damaged'), ('a.json', b'{"a": "b"}', 'no tokenizer'),
    ('a.json', b'{"model": {"type": "BPE"}}', 'damaged'), ('tokenizer.json', b'{"model": {"type": "Oracle", "vocab": {}}}', 'Oracle'),
    ('a.json', b'{"format": "something else"}', 'not a tokenizer of this collection'), ('a.txt', b'hello\nworld\n', 'not a tokenizer'),
    ('a.model', b'\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02\x0a\xff', 'damaged'), ('a.bin', bytes(range(256)), 'damaged'),
    ('a.tiktoken', b'YQ== 0\nYg== 1\n', 'not all of the 256 bytes'), ('a.tiktoken', b'YQ== 0\nYg==\n', 'a.tiktoken'),
    ('a.gz', b'\x1f\x8b\x08junk', 'damaged gzip'), ('encoder.json', b'{"a": 0}', 'vocab.bpe or merges.txt beside it'),
    ('a.json', hurt(name=5), 'its name is 5; expected a text'), ('a.json', hurt(lambda t: t[:-1] + t[-2:-1]), 'a token stands twice'),
    ('a.json', hurt(lambda t: t[1:]), 'one of the 256 bytes is missing'), ('a.json', hurt(ids=list(range(258))), '259 tokens have 258 ids'),
    ('a.json', bpe.char('ab').dumps().replace('"b"', '"a"').encode(), 'not characters that differ'), ('a.json', bpe.char('ab').dumps().replace('"b"', '"bc"').encode(), 'not characters that differ'),
    ('tokenizer.json', b'{"model": {"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": 5, "vocab": {"a": 0}}}', 'damaged: words of 100 characters'),
    ('tokenizer.json', b'{"model": {"type": "Unigram", "unk_id": 2, "vocab": [["a", -1.0], ["b", -2.0]]}}', 'its unk_id is 2; expected'),
    ('tokenizer.json', b'{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", NaN], ["b", -2.0]]}}', 'the score of a piece is no number'),
    ('a.model', PIECE + b'\x0a' + b'\xff' * 11, 'a number of more than 64 bits'), ('a.model', PIECE + b'\x0a\x09\x0a\x05', 'cut off'),
    ('a.model', PIECE + b'\x12\x02\x18\x03', 'only sentencepiece models of type')])
def test_damaged_and_foreign_files_are_one_clear_line(name, data, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError) as e:
        bpe.load(path)
    assert message in str(e.value) and '\n' not in str(e.value) and (name in str(e.value))


@pytest.mark.parametrize('merges, message', [('a b c', 'does not hold two tokens'), ('a z', "the merges make 'az', which")])
def test_merges_that_do_not_fit(merges, message, tmp_path):
    (tmp_path / 'encoder.json').write_text(json.dumps({t: i for i, t in enumerate([*bpe.INVISIBLE, 'ab'])}))
    (tmp_path / 'vocab.bpe').write_text(f'#version: 0.2\na b\n{merges}\n')
    with pytest.raises(ValueError, match=message):
        bpe.load(tmp_path / 'encoder.json')


def test_a_panic_is_an_error_and_ctrl_c_is_not():
    class PanicException(BaseException):
        pass
    for error, kind in ((PanicException('two\nlines'), ValueError), (KeyboardInterrupt(), KeyboardInterrupt), (OSError('x'), OSError)):
        with pytest.raises(kind), bpe.reading('x'):
            raise error


def test_missing_files_name_the_choices(tmp_path):
    with pytest.raises(FileNotFoundError, match='nor one of the names byte, .*gpt2'):
        bpe.load('nowhere.json')
    with pytest.raises(FileNotFoundError, match='holds no tokenizer'):
        bpe.load(tmp_path)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_damaged_byte_never_gives_anything_but_a_value_error(data):
    import pathlib
    import tempfile
    text = bpe_small().dumps().encode() if data.draw(st.booleans()) else json.dumps(bpe_small().spec()).encode()
    cut, at = data.draw(st.integers(1, len(text))), data.draw(st.integers(0, len(text) - 1))
    hurt = bytearray(text[:cut])
    if at < cut:
        hurt[at] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'tokenizer.json'
        path.write_bytes(hurt)
        try:
            bpe.load(path)
        except ValueError as e:
            assert '\n' not in str(e)[:200]


# ---- WordPiece and Unigram training, Hugging Face files ----------------------------------------------------------

@pytest.mark.parametrize('model', ['wordpiece', 'unigram'])
def test_wordpiece_and_unigram_training(model, tmp_path):
    text = open(random.__file__, encoding='utf-8').read()
    t = bpe.train([text[:20000]], 700, model=model)
    assert t.vocab_size == 700 and t.unk is not None and t.eot is not None and len(t.sentinels) == 100
    again = bpe.train([text[:12000], text[12000:20000]], 700, model=model)
    assert again.vocab_size == 700
    part = text[3000:6000]
    ids = t.encode(part)
    assert len(ids) < 0.5 * len(part) and ids.count(t.unk) < 0.02 * len(ids)
    assert t.decode(ids).split()[0] in part.lower().split() + part.split()
    if model == 'unigram':  # the probabilities sum to one, and words come back
        vocab = t.state['spec']['model']['vocab']
        assert abs(sum(np.exp(s) for p, s in vocab if p not in t.special) - 1) < 1e-3
        assert t.decode(t.encode('return the random')) == 'return the random'
    t.save_hf(str(tmp_path / 'hf'))
    same(t, tokenizers.Tokenizer.from_file(str(tmp_path / 'hf' / 'tokenizer.json')), [x for x in NASTY + TEXTS + [part] if x[:2] != '##'])


def test_wordpiece_takes_the_pair_with_the_best_gain_first():
    t = bpe.train(['ab ' * 20 + 'ac ' * 20 + 'db ' * 20 + 'xyz ' * 12], 40, model='wordpiece', special=[])
    # x, ##y and ##z are always together: their gain is larger than that of the more frequent a##b, which BPE would take
    assert min(t.tokens.index(x) for x in (b' xy', b'yz') if x in t.tokens) < t.tokens.index(b' ab')
    assert b' xyz' in t.tokens and b' d' in t.tokens and b'd' not in t.tokens


def test_unigram_prefers_frequent_pieces():
    t = bpe.train(['there where here ' * 50 + 'then when hen ' * 50], 60, model='unigram', special=[])
    assert len(t.encode('there')) <= 2 and t.decode(t.encode('there  where')) == 'there where'


@pytest.mark.parametrize('model', ['wordpiece', 'unigram'])
def test_a_quarter_of_the_tokens_may_be_characters_and_the_rarest_are_unknown(model):
    t = bpe.train(['ab ba ' * 50 + 'c c z'], 15, model=model, special=[])  # 14 tokens beside <|unk|>: three characters
    assert t.unk not in t.encode('ab b a') and t.unk in t.encode('z')


def test_an_unknown_character_costs_ten_more_than_the_rarest_piece():
    vocab = [('<unk>', 0.0), ('xb', -15.0), ('c', -10.0), ('bc', -1.0), ('b', -2.0)]
    ours, theirs = models_of_lib.unigram_model({'vocab': vocab, 'unk_id': 0}, []), models.Unigram(vocab, unk_id=0)
    for word, ids in (('xbc', [1, 2]), ('xbcxbc', [1, 2, 1, 2]), ('xxbc', [0, 1, 2]), ('ybc', [0, 3]), ('bcyy', [3, 0])):
        assert ours(word) == ids == [token.id for token in theirs.tokenize(word)]


@pytest.mark.parametrize('pattern', ['gpt2', 'cl100k', 'o200k'])
def test_hugging_face_reads_what_we_write(pattern, tmp_path):
    transformers = pytest.importorskip('transformers')
    t = bpe.train(TEXTS, 520, pattern)
    t.save_hf(str(tmp_path))
    for hf in (transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / 'tokenizer.json')),
               transformers.AutoTokenizer.from_pretrained(str(tmp_path))):
        for text in NASTY + TEXTS:
            assert hf.encode(text, add_special_tokens=False) == t.encode(text, special=True), repr(text)
            assert hf.decode(t.encode(text)) == text
    assert (hf.eos_token_id, hf.pad_token_id, hf.mask_token_id) == (t.eot, t.pad, t.mask) and len(hf) == t.vocab_size
    back = bpe.load(tmp_path)
    assert back.special == t.special and [back.encode(x) for x in NASTY] == [t.encode(x) for x in NASTY]
    made = json.loads((tmp_path / 'tokenizer.json').read_text(encoding='utf-8'))['model']['merges']
    assert [bpe.invisible(a + b) for a, b in made] == t.tokens[256:t.eot]
    with pytest.raises(ValueError, match='--model=bpe'):
        bpe.byte().save_hf(str(tmp_path))


def test_texts_are_framed_in_what_hugging_face_reads(tmp_path):
    transformers = pytest.importorskip('transformers')
    t = bpe.train(TEXTS, 520)
    def opened(*args, **how):
        t.save_hf(str(tmp_path), *args, **how)
        return transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / 'tokenizer.json'))
    a, b = t.encode('low lower'), t.encode('new')
    framed = lambda hf: (hf('low lower')['input_ids'], hf('low lower', 'new')['input_ids'])
    assert framed(opened()) == (a, a + b)
    assert framed(opened(t.cls, t.sep)) == ([t.cls, *a, t.sep], [t.cls, *a, t.sep, *b, t.sep])
    assert framed(opened(t.eot, t.eot, double=True)) == ([t.eot, *a, t.eot], [t.eot, *a, t.eot, t.eot, *b, t.eot])
    assert framed(opened(sep=t.eot)) == ([*a, t.eot], [*a, t.eot, *b, t.eot])
    assert framed(opened(t.cls, 300)) == (a, a + b)                        # no special token: left alone
    own = bpe.load(tmp_path)
    for segments in (False, True):
        own.save_hf(str(tmp_path / 'again'), own.cls, own.sep, segments=segments, length=7)
        hf = transformers.AutoTokenizer.from_pretrained(str(tmp_path / 'again'))
        types = [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert hf('low lower', 'new').get('token_type_ids') == (types if segments else None) and hf.model_max_length == 7


# ---- command line ------------------------------------------------------------------------------------------------

def test_a_char_vocabulary_with_the_special_tokens_that_are_asked_for(tmp_path, capsys):
    (tmp_path / 'text').write_text('héllo\nworld')
    assert bpe.main(['train', '--model=char', f'--input={tmp_path}/text', '--special=<|endoftext|>', f'--out={tmp_path}/c.json']) == 0
    t = bpe.load(tmp_path / 'c.json')
    assert capsys.readouterr().out.startswith(f'{tmp_path}/c.json: 9 ids in') and t.vocab_size == 9 and t.special == {'<|endoftext|>': 8}
    assert t.encode('low') == [bpe.char('héllo\nworld').encode(c)[0] for c in 'low'] and (t.eot, t.pad, t.sentinels) == (8, None, [])


def run(*args, stdin=''):
    return subprocess.run([sys.executable, os.path.join(ROOT, 'bpe.py'), *args], input=stdin, capture_output=True, text=True, timeout=60)


def test_command_line(tmp_path, capsys):
    text, out = tmp_path / 'a.txt', str(tmp_path / 't.json')
    text.write_text(''.join(TEXTS), encoding='utf-8')
    with gzip.open(tmp_path / 'b.txt.gz', 'wt', encoding='utf-8') as f:
        f.write('more of the other thing')
    r = run('train', '--input', str(text), str(tmp_path / 'b.txt.gz'), '--vocab_size', '480', '--out', out)
    assert r.returncode == 0 and '480 ids' in r.stdout and not r.stderr
    t = bpe.load(out)
    assert t.dumps() == bpe.train(TEXTS[:-1] + [TEXTS[-1]] and [''.join(TEXTS), 'more of the other thing'], 480).dumps()
    r = run('encode', '--tokenizer', out, '--special', stdin='the <|pad|>')
    assert [int(i) for i in r.stdout.split()] == t.encode('the <|pad|>', special=True)
    assert bpe.main(['decode', '--tokenizer', out, *map(str, t.encode('thé\nother'))]) == 0
    assert capsys.readouterr().out == 'thé\nother\n'
    assert bpe.main(['show', '--tokenizer', out, '--text', 'the\nother é']) == 0
    shown = capsys.readouterr().out
    assert '⏎' in shown and f'{len(t.encode("the" + chr(10) + "other é"))} tokens' in shown and 'bytes per token' in shown
    assert bpe.main(['train', '--input', str(text), '--out', str(tmp_path / 'hf') + os.sep, '--special', '<|endoftext|>,<x>']) == 0
    assert bpe.load(tmp_path / 'hf').special.keys() == {'<|endoftext|>', '<x>'}


@pytest.mark.parametrize('args, code, message', [
    ([], 2, 'usage'), (['train'], 2, '--input'), (['encode', '--tokenizers', 'x'], 2, 'required'), (['teach'], 2, 'invalid choice'),
    (['train', '--input', '{empty}', '--out', '{out}'], 1, 'the file is empty'),
    (['train', '--input', '{binary}', '--out', '{out}'], 1, 'not UTF-8 text'),
    (['train', '--input', 'missing.txt', '--out', '{out}'], 1, 'missing.txt'),
    (['train', '--input', '{text}', '--vocab_size', '300', '--out', '{out}'], 1, 'too small'),
    (['encode', '--tokenizer', 'nowhere', '--text', 'a'], 1, 'no such file'),
    (['decode', '--tokenizer', 'byte', '999'], 1, 'id 999 is not in 0 .. 360')])
def test_command_line_errors(args, code, message, tmp_path, capsys):
    (tmp_path / 'empty').write_bytes(b'')
    (tmp_path / 'binary').write_bytes(b'abc\xff\xfe')
    (tmp_path / 'text').write_text('some text')
    names = {n: str(tmp_path / n) for n in ('empty', 'binary', 'text', 'out')}
    try:
        got = bpe.main([a.format(**names) for a in args])
    except SystemExit as e:
        got = e.code
    err = capsys.readouterr().err
    assert got == code and message in err and 'Traceback' not in err and (code == 2 or err.count('\n') == 1)
    assert not os.path.exists(tmp_path / 'out')


def test_reading_files_in_parts_changes_nothing(tmp_path, monkeypatch):
    text = ''.join(random.Random(2).choices(['a', ' ', '\n', '\r\n', '12', '...', 'é', '日'], k=30000))
    (tmp_path / 'a.txt').write_bytes(text.encode())
    monkeypatch.setattr(bpe.blocks, '__defaults__', (500,))
    parts = [p for p in bpe.read_texts([str(tmp_path / 'a.txt')])]
    assert ''.join(parts) == text and len(parts) > 1
    assert bpe.count_chunks(parts, 'cl100k', 1) == Counter(regex.findall(bpe.PATTERNS['cl100k'], text))


def test_names_that_moved_to_the_readers_are_found_here_too():
    import lib.vocab.spiece
    assert bpe.fields is lib.vocab.spiece.fields and bpe.Pipeline(**bpe.train(TEXTS, 500, model='wordpiece').state).encode('the')
    for names in bpe.ELSEWHERE.values():
        assert all(getattr(bpe, name) is not None for name in names.split())
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bpe.nothing


def test_no_reader_is_loaded_before_it_is_needed():
    code = ("import sys, bpe; t = bpe.loads(bpe.train(['a b c'], 400).dumps()); t.encode('a b'); "
            "print(sorted(m for m in sys.modules if m.startswith('lib.vocab.')))")
    r = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert r.stdout.strip() == str([f'lib.vocab.{name}' for name in ('base', 'common', 'count', 'save')]), r.stderr


def test_imports_are_light():
    """bpe.py never loads torch or the libraries that are only oracles here."""
    code = "import sys, bpe; print([m for m in ('torch', 'tokenizers', 'transformers', 'sentencepiece') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == '[]'
