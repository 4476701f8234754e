r"""
Tokenizers: trains byte-level BPE on all cores in about a second, encodes through tiktoken, and reads and gives the ids
of the vocabularies that the four model families were published with.

    python bpe.py train --input book.txt --vocab_size 8192 --out tok.json
    python bpe.py show --tokenizer tok.json --text "The tokenizer cuts text into pieces."

The ladder from characters to subwords, each rung one line of Python:

    list(text)                                characters        few ids, long sequences, meets unknown characters
    list(text.encode())                       bytes             256 ids, nothing is ever unknown, longer still
    text.split()                              white space       short sequences; every form of a word is another id
    re.findall(r'\w+|[^\w\s]', text)          rules             the same, with punctuation on its own
    bpe.train(texts, 8192).encode(text)       subwords          frequent words whole, rare ones in parts, none unknown

Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): a regular expression cuts the text into chunks (words with
their leading space, numbers, punctuation, white space). Every chunk starts as bytes; the most frequent pair of
neighbours becomes one new symbol, again and again. `train` gives exactly the merges of "count all pairs, merge the
best, repeat", where the smaller pair of ids wins a tie and aaa merges from the left, and needs no recount: see
`merges`. WordPiece (BERT) and Unigram (T5; Kudo 2018) are trained and read too.

Ids: the 256 bytes in GPT-2's order (printable ones first), the merges in order, then the special tokens.
`encode` treats text that spells a special token as plain text; encode(text, special=True) gives its id. Nothing is
added around a text (no [CLS], no </s>): that is the models' business. `load` opens our own files, `gpt2`,
`cl100k_base` and the other names of tiktoken, *.tiktoken, encoder.json + vocab.bpe, vocab.json + merges.txt,
tokenizer.json, vocab.txt, spiece.model / tokenizer.model, and folders that hold one of these.

Departures: characters that Unicode gained in recent years are classified by Python's tables, where `tokenizers` and
tiktoken ask theirs. Unigram finds the best path word by word in float64 (sentencepiece: whole text, float32).
"""
import argparse
import base64
import contextlib
import gzip
import json
import os
import re
import struct
import sys
import time
import unicodedata
import zlib
from array import array
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, reduce
from heapq import heapify, heappop, heappush, heapreplace, nsmallest
from itertools import chain, islice

import numpy as np
import regex
import tiktoken

SPECIALS = ['<|endoftext|>', '<|pad|>', '<|cls|>', '<|sep|>', '<|mask|>'] + [f'<|sentinel_{i}|>' for i in range(100)]

WORD = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERNS = {  # how the published vocabularies cut text; possessive (++) where it changes nothing but the time
    'gpt2': r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    'cl100k': r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
              r"|\s*[\r\n]|\s+(?!\S)|\s",
    'o200k': rf"[^\r\n\p{{L}}\p{{N}}]?{WORD % ('*', '+')}|[^\r\n\p{{L}}\p{{N}}]?{WORD % ('+', '*')}|\p{{N}}{{1,3}}"
             r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    'words': r'\S+',  # for WordPiece and Unigram, which look at words without their spaces
}
# Where a text may be cut without changing its chunks: in none of these patterns does a chunk hold a space after a
# character that is not white space, nor any white space after a letter or digit; and what follows such a place cannot
# change what is before it, since only chunks of pure white space look ahead.
CUT = regex.compile(r'(?<=\S) |(?<=[\p{L}\p{N}])\s')
BLOCK = 1 << 18  # characters handed to a process or thread at once
MOST = 1 << 22  # ids of a vocabulary; the largest published ones have a sixteenth of it

BYTES = sorted(range(256), key=lambda b: (not chr(b).isprintable() or b == 32, b))  # GPT-2's order
VISIBLE = {b: chr(b) if rank < 188 else chr(256 + rank - 188) for rank, b in enumerate(BYTES)}  # as GPT-2 spells them
INVISIBLE = {c: b for b, c in VISIBLE.items()}


def visible(token):  # b' the' -> 'Ġthe'
    return ''.join([VISIBLE[b] for b in token])


def invisible(token):  # 'Ġthe' -> b' the'
    return bytes([INVISIBLE[c] for c in token])


# ---- training: how often does each chunk occur? ------------------------------------------------------------------

def blocks(texts, cut, size=BLOCK):
    """Lists of strings with about `size` characters together; a long text is cut where `cut` matches (None: never)."""
    block, held = [], 0
    for text in texts:
        at = 0
        while at < len(text):
            found = cut.search(text, at + size) if cut else None
            end = found.start() if found else len(text)
            block.append(text[at:end])
            held, at = held + end - at, end
            if held >= size:
                yield block
                block, held = [], 0
    if block:
        yield block


def count_worker(pipe, pattern):
    count, chunks = Counter(), regex.compile(pattern).findall
    try:
        for block in iter(pipe.recv, None):
            for text in block:
                count.update(chunks(text))
        pipe.send(dict(count))
    except (EOFError, OSError, KeyboardInterrupt):
        pass  # the parent is gone or was interrupted: leave without a word


def count_chunks(texts, pattern='gpt2', cores=0, progress=None):
    """{chunk: how often it occurs in texts (an iterable of strings)}; texts are streamed to one process per core."""
    cores = cores or (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)
    try:
        split = regex.compile(PATTERNS.get(pattern, pattern))
    except regex.error as e:
        raise ValueError(f'pattern {pattern!r} is neither one of {", ".join(PATTERNS)} nor a regular expression: '
                         f'{e}') from None
    if split.groups:
        raise ValueError(f'pattern {pattern!r} has a capturing group: write (?:...) instead of (...)')
    stream = blocks([texts] if isinstance(texts, str) else texts, CUT if pattern in PATTERNS else None)
    head, count, seen = list(islice(stream, 4)), Counter(), 0
    if len(head) < 4 or cores == 1 or not hasattr(os, 'fork'):  # a little text: processes cost more than they save
        for text in chain.from_iterable(chain(head, stream)):
            count.update(split.findall(text))
        return count
    import multiprocessing
    context, pipes = multiprocessing.get_context('fork'), []
    for _ in range(cores):
        ours, theirs = context.Pipe()
        context.Process(target=count_worker, args=(theirs, split.pattern), daemon=True).start()
        theirs.close()  # so that a worker's death is an error here, not a wait without end
        pipes.append(ours)
    for i, block in enumerate(chain(head, stream)):
        pipes[i % cores].send(block)  # waits while that worker is busy, so no more than a few blocks are ever held
        seen += sum(map(len, block))
        if progress:
            progress(f'counting chunks: {seen / 1e6:.1f} M characters')
    for pipe in pipes:
        pipe.send(None)
    for pipe in pipes:
        count.update(pipe.recv())
    return count


# ---- training: merges --------------------------------------------------------------------------------------------

def merges(chunks, n, progress=None):
    """
    The n merges [(left id, right id), ...] of byte-level BPE for {chunk (bytes): count}; fewer when no pair is left.

    All distinct chunks lie in one flat array of symbols, chained by nxt and prv. Every position knows which pair begins
    there, so a merge touches only its own occurrences: counts of the pairs it destroys go down, pairs with the new
    symbol are born. A pair can only be born in the step that makes the younger of its two symbols; from then on its
    count only falls and no occurrence is added. So its occurrences are one slice, written once, and a heap whose
    entries are checked when they come up is enough. Pairs under `floor` wait outside the heap until it runs dry.

    Several merges are done at once. Let p1 > p2 > ... be the best pairs in order (count, then the smaller ids). While
    none of them ends with a symbol that another begins with, they share no occurrence, and no pair that p_i creates
    can come before p_k: its count is at most that of (x, left of p_i) or (right of p_i, y), which sort after p_k, and
    at equal counts its new id is the larger one. So the batch is what one merge after the other would give.
    """
    words, freq = list(chunks), np.fromiter(chunks.values(), np.int64, len(chunks))
    lens = np.fromiter(map(len, words), np.int64, len(words))
    rank = np.zeros(256, np.int32)
    rank[BYTES] = np.arange(256)
    sym = rank[np.frombuffer(b'\0'.join([b'', *words, b'']), np.uint8)]  # chunks, a separator before and after each
    weight = np.zeros(len(sym), np.int64)  # of the chunk that a position belongs to
    weight[1:] = np.repeat(freq, lens + 1)
    ends = np.cumsum(lens + 1)
    sym[0] = sym[ends] = -1
    weight[ends] = 0
    nxt, prv = np.arange(1, len(sym) + 1, dtype=np.int32), np.arange(-1, len(sym) - 1, dtype=np.int32)
    slot = np.zeros(len(sym), np.int32)  # which pair begins at a position; 0: none
    count, key, first = (np.zeros(1 << 16, np.int64) for _ in range(3))  # of each pair: count, ids, start in `places`
    places = np.empty(3 * len(sym), np.int32)  # positions grouped by pair: at most two births per merged occurrence
    slots, used, heap, floor, out = 1, 0, [], 1 << 62, []

    def born(at):
        nonlocal slots, used, count, key, first
        ids = sym[at].astype(np.int64) << 32 | sym[nxt[at]]
        order = np.argsort(ids, kind='stable')
        ids, at = ids[order], at[order]
        start = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])[:len(ids)])
        m = len(start)
        if not m:
            return
        while slots + m >= len(count):
            count, key, first = (np.concatenate([x, np.zeros_like(x)]) for x in (count, key, first))
        count[slots:slots + m] = np.add.reduceat(weight[at], start)
        key[slots:slots + m] = ids[start]
        first[slots:slots + m + 1] = np.append(start, len(at)) + used
        slot[at] = np.repeat(np.arange(slots, slots + m), np.diff(first[slots:slots + m + 1]))
        places[used:used + len(at)] = at
        for i in (slots + np.flatnonzero(count[slots:slots + m] >= floor)).tolist():
            heappush(heap, (-int(count[i]), int(key[i]), i))
        slots, used = slots + m, used + len(at)

    born(np.flatnonzero((sym[:-1] >= 0) & (sym[1:] >= 0)))
    while len(out) < n:
        batch, lefts, rights = [], set(), set()
        while len(out) + len(batch) < n:
            if not heap:
                if batch or floor == 1 or slots == 1:
                    break
                top = min(floor, int(count[1:slots].max()) + 1)
                floor = max(1, top * 3 // 4)
                hot = np.flatnonzero((count[:slots] >= floor) & (count[:slots] < top))
                heap = list(zip((-count[hot]).tolist(), key[hot].tolist(), hot.tolist()))
                heapify(heap)
                continue
            c, ids, i = heap[0]
            now = int(count[i])
            if now != -c:  # stale: its count has fallen since it was pushed
                heapreplace(heap, (-now, ids, i)) if now >= floor else heappop(heap)
                continue
            a, b = ids >> 32, ids & 0xffffffff
            if a in rights or b in lefts or (a == b and batch):
                break
            heappop(heap)
            batch.append((a, b, i))
            lefts.add(a)
            rights.add(b)
            if a == b:  # goes alone: its occurrences overlap
                break
        if not batch:
            break
        base = 256 + len(out)
        lefts, rights, chosen = map(list, zip(*batch))
        out += zip(lefts, rights)
        groups = [places[first[i]:first[i + 1]] for i in chosen]
        at = np.concatenate(groups)
        sizes = [len(g) for g in groups]
        a, b, new = (np.repeat(np.array(x, np.int32), sizes) for x in (lefts, rights, range(base, base + len(batch))))
        live = (sym[at] == a) & (sym[nxt[at]] == b)  # other merges may have used up some occurrences
        at, new = at[live], new[live]
        if lefts[0] == rights[0]:  # aaaa: take every second one of each run, from its left end
            at, i = np.sort(at), np.arange(len(at))
            fresh = np.concatenate([[True], nxt[at[:-1]] != at[1:]])[:len(at)]
            at, new = at[(i - np.maximum.accumulate(np.where(fresh, i, 0))) % 2 == 0], base
        mid, left = nxt[at], prv[at]
        right = nxt[mid]
        sym[at], sym[mid] = new, -2
        gone = np.concatenate([mid, left[sym[left] != -2]])  # where a pair with one of the two symbols began
        np.subtract.at(count, slot[gone], weight[gone])
        count[chosen] = 0
        nxt[at], prv[right] = right, at
        left = prv[at]
        born(np.concatenate([at[sym[right] >= 0], left[(sym[left] >= 0) & (sym[left] < base)]]))
        if progress:
            progress(f'merging: {len(out)} of {n}')
    return out


def train(texts, vocab_size, pattern='gpt2', special=None, model='bpe', name='', cores=0, progress=None):
    """
    A tokenizer with at most vocab_size ids (bytes, merges and special tokens together) for texts, an iterable of
    strings, or one string. pattern: a key of PATTERNS or a regular expression. model: bpe, wordpiece or unigram.
    """
    special = list(dict.fromkeys(SPECIALS if special is None else special))
    if model not in ('bpe', 'wordpiece', 'unigram'):
        raise ValueError(f'model {model!r} is unknown: use bpe, wordpiece or unigram')
    if model == 'bpe' and vocab_size < 256 + len(special):
        raise ValueError(f'vocab_size {vocab_size} is too small: 256 bytes + {len(special)} special tokens need '
                         f'at least {256 + len(special)}')
    if model == 'bpe' and pattern not in PATTERNS:
        pattern += r'|[\s\S]'  # nothing may fall between the chunks
    count = count_chunks(texts, pattern if model == 'bpe' else 'words', cores, progress)
    if not count:
        raise ValueError('no text to train on: the input is empty')
    name = name or f'{model}{vocab_size}'
    if model != 'bpe':
        return (train_wordpiece if model == 'wordpiece' else train_unigram)(count, vocab_size, special, name, progress)
    tokens = [bytes([b]) for b in BYTES]
    for a, b in merges({utf8(c): k for c, k in count.items()}, vocab_size - 256 - len(special), progress):
        tokens.append(tokens[a] + tokens[b])
    return BPE(name=name, pattern=pattern, special={s: len(tokens) + i for i, s in enumerate(special)},
               tokens=[visible(t) for t in tokens])


def utf8(text):
    """Bytes of a string; a lone surrogate becomes U+FFFD, as in tiktoken."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace').encode()


# ---- training: WordPiece and Unigram -----------------------------------------------------------------------------

def split_words(count, stages, vocab_size, special):
    """{word: count} after the stages, without words of rare characters; how many ordinary tokens fit; special tokens"""
    special = special + ['<|unk|>'] * (not set(special) & set(ROLES['unk']))
    room, words, chars = vocab_size - len(special), Counter(), Counter()
    normalize, split = normalizer(stages['normalizer']), splitter(stages['pre_tokenizer'])
    for chunk, k in count.items():
        for word in split(normalize(chunk), True):
            words[word] += k
    for word, k in words.items():
        chars.update(dict.fromkeys(word, k))
    if room < 4:
        raise ValueError(f'vocab_size {vocab_size} is too small: '
                         f'{len(special)} special tokens leave no room for characters')
    common = set(sorted(chars, key=lambda c: (-chars[c], c))[:room // 4])
    return {w: words[w] for w in sorted(words) if common.issuperset(w)}, room, special


def train_wordpiece(count, vocab_size, special, name, progress):
    """
    WordPiece: merge the pair that raises the likelihood of the text most, c(ab) log(c(ab) N / (c(a) c(b))), where BPE
    asks for c(ab) alone. Every merge changes the gains around it, so a round merges the best pairs that share no
    symbol, at most one for twenty tokens, and counts again. Text is lower-cased and split as BERT's.
    """
    stages = {'normalizer': {'type': 'BertNormalizer', 'clean_text': True, 'handle_chinese_chars': True,
                             'strip_accents': None, 'lowercase': True}, 'pre_tokenizer': {'type': 'BertPreTokenizer'},
              'decoder': {'type': 'WordPiece', 'prefix': '##', 'cleanup': True}}
    words, room, special = split_words(count, stages, vocab_size, special)
    spelled = [[w[0], *('##' + c for c in w[1:])] for w in words]
    tokens = sorted(set(chain.from_iterable(spelled)))
    ids = {t: i for i, t in enumerate(tokens)}
    sym = np.array([-1, *(i for w in spelled for i in [*map(ids.get, w), -1])])
    weight = np.array([0, *(k for w, k in words.items() for k in [k] * len(w) + [0])], float)
    while len(tokens) < room:
        at = np.flatnonzero((sym[:-1] >= 0) & (sym[1:] >= 0))
        pairs, which = np.unique(sym[at] << 32 | sym[at + 1], return_inverse=True)
        left, right = pairs >> 32, pairs & 0xffffffff
        both, one = np.bincount(which, weight[at]), np.bincount(sym + 1, weight)[1:]
        gain = both * np.log(both * one.sum() / one[left] / one[right])
        new, used, limit = np.full(len(pairs), -1), set(), min(room, len(tokens) + 1 + len(tokens) // 20)
        for i in np.argsort(-gain, kind='stable'):
            a, b = int(left[i]), int(right[i])
            if gain[i] <= 0 or len(tokens) >= limit:
                break
            if not used & {a, b}:
                used |= {a, b}
                text = tokens[a] + tokens[b].removeprefix('##')
                new[i] = ids.setdefault(text, len(tokens))  # a text that can be made in two ways is one token
                tokens += [text] * int(new[i] == len(tokens))
        if not used:
            break
        made, i = new[which], np.arange(len(at))
        hit = made >= 0
        last = np.maximum.accumulate(np.where(hit & np.append(False, hit[:-1] & (np.diff(at) == 1)), -1, i))
        hit &= (i - last) % 2 == 0  # aaa: every second one
        keep = np.ones(len(sym), bool)
        sym[at[hit]], keep[at[hit] + 1] = made[hit], False
        sym, weight = sym[keep], weight[keep]
        if progress:
            progress(f'merging: {len(tokens)} of {room}')
    vocab = {t: i for i, t in enumerate(tokens + special)}
    return from_spec({**stages, 'added_tokens': [added_token(s, vocab[s]) for s in special], 'model': {
        'type': 'WordPiece', 'unk_token': next(s for s in special if s in ROLES['unk']),
        'continuing_subword_prefix': '##', 'max_input_chars_per_word': 100, 'vocab': vocab}}, name)


def train_unigram(count, vocab_size, special, name, progress):
    """
    Unigram (Kudo 2018): starts with every frequent piece of up to 16 characters; EM fits their probabilities over all
    segmentations of the words; then the quarter whose loss would cost the least likelihood goes, and again.
    """
    stages = {'normalizer': {'type': 'NFKC'},
              'decoder': {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'always'},
              'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [{'type': 'WhitespaceSplit'}, {
                  'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'always', 'split': True}]}}
    words, room, special = split_words(count, stages, vocab_size, special)
    words = Counter({w[:24]: k for w, k in words.items()})  # the lattice of a longer word would underflow
    seeds = Counter()
    for word, k in words.items():
        seeds.update(dict.fromkeys(word, k))
    chars = sorted(seeds)
    live = set(chars)
    for n in range(2, 17):  # a piece can only be frequent when the one without its last character is
        found = Counter()
        for word, k in words.items():
            for i in range(len(word) - n + 1):
                if word[i:i + n - 1] in live:
                    found[word[i:i + n]] += k
        live = {p for p, k in found.items() if k > 1}
        seeds.update({p: found[p] for p in live})
    pieces = chars + nsmallest(4 * room, seeds.keys() - set(chars), key=lambda p: (-seeds[p] * len(p), p))
    ids = {p: i for i, p in enumerate(pieces)}

    def lattices(words):
        """For each length L, of the words that long: their places in `words`, and edge[i, n]: id of w[i:i+n], or -1."""
        for L in sorted(set(map(len, words))):
            of = [j for j, w in enumerate(words) if len(w) == L]
            yield L, np.array(of), {(i, n): np.array([ids.get(words[j][i:i + n], -1) for j in of], np.int32)
                                    for i in range(L) for n in range(1, min(16, L - i) + 1)}

    def forward(L, edge, p, whole=True):  # alpha[j] = sum_n alpha[j - n] p(w[j-n:j]); p[-1] = 0
        alpha = [np.ones(len(edge[0, 1]))]
        for j in range(1, L + 1):
            alpha.append(sum(alpha[j - n] * p[edge[j - n, n]] for n in range(1, min(j, 16) + 1) if whole or n < L))
        return alpha

    texts, parts = list(lattices(list(words))), list(lattices(pieces))
    freq, p = np.array(list(words.values()), float), np.array([seeds[x] for x in pieces] + [0], float)
    p /= p.sum()
    while True:
        for _ in range(2):  # EM
            expected = np.zeros(len(p))
            for L, of, edge in texts:
                alpha, beta = forward(L, edge, p), [None] * L + [1.0]
                for i in range(L - 1, -1, -1):
                    beta[i] = sum(p[edge[i, n]] * beta[i + n] for n in range(1, min(16, L - i) + 1))
                scale = freq[of] / alpha[L]
                for (i, n), e in edge.items():
                    np.add.at(expected, e, alpha[i] * p[e] * beta[i + n] * scale)
            expected[:len(chars)] = np.maximum(expected[:len(chars)], 1e-3)  # characters stay
            expected[-1] = 0
            p = expected / expected.sum()
        alive = np.count_nonzero(p)
        if progress:
            progress(f'pruning: {alive} pieces, {room} wanted')
        if alive <= room:
            break
        loss = np.zeros(len(p))
        for L, of, edge in parts:
            if L > 1:
                other = forward(L, edge, p, whole=False)[L]
                with np.errstate(divide='ignore', invalid='ignore'):
                    loss[of] = np.nan_to_num(expected[of] * (np.log(p[of]) - np.log(other)))
        order = np.argsort(-loss[len(chars):-1], kind='stable') + len(chars)
        p[order[max(room, alive * 3 // 4) - len(chars):]] = 0
        p /= p.sum()
    vocab = [[pieces[i], float(np.log(p[i]))] for i in sorted(np.flatnonzero(p), key=lambda i: -p[i])]
    n = len(vocab)
    return from_spec({**stages, 'added_tokens': [added_token(s, n + i) for i, s in enumerate(special)], 'model': {
        'type': 'Unigram', 'unk_id': n + next(i for i, s in enumerate(special) if s in ROLES['unk']),
        'byte_fallback': False, 'vocab': vocab + [[s, 0.0] for s in special]}}, name)


# ---- tokenizers --------------------------------------------------------------------------------------------------

ROLES = {'eot': ['<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>', '[SEP]'], 'pad': ['<|pad|>', '[PAD]', '<pad>'],
         'cls': ['<|cls|>', '[CLS]', '<s>'], 'sep': ['<|sep|>', '[SEP]', '</s>'],
         'mask': ['<|mask|>', '[MASK]', '<mask>'], 'unk': ['<|unk|>', '[UNK]', '<unk>'],
         'bos': ['<|begin_of_text|>', '<s>', '<bos>', '<|endoftext|>']}
UNDECODABLE, SURROGATES, SPACES = re.compile('([\udc80-\udcff]+)'), re.compile('[\ud800-\udfff]'), re.compile(r'\s*')


def check_id(i, token):  # a table as long as the largest id is made
    if type(i) is not int or not 0 <= i < MOST:
        raise ValueError(f'the token {str(token)[:40]!r} has the id {str(i)[:40]}; '
                         f'expected a whole number under {MOST}')


class Tokenizer:
    """
    What all kinds share. Subclasses define setup(**state) -> the bytes that each id stands for, and plain(text, first)
    -> ids of a stretch of text without special tokens (first: nothing stands before it).
    """

    def __init__(self, **state):
        self.state, self.name, self.special = state, state['name'], dict(state['special'])
        if not isinstance(self.name, str):
            raise ValueError(f'its name is {str(self.name)[:40]}; expected a text')
        self.added = dict(state.get('added') or {})  # not special, but never cut: honoured in all text
        for text, i in {**self.added, **self.special}.items():
            check_id(i, text)
        self.tokens = self.setup(**state)
        for text, i in {**self.added, **self.special}.items():
            self.tokens += [b''] * (i + 1 - len(self.tokens))
            self.tokens[i] = self.tokens[i] or text.encode()
        self.vocab_size = len(self.tokens)
        for role, names in ROLES.items():
            setattr(self, role, next((self.special[s] for s in names if s in self.special), None))
        numbered = [(int(m[1]), i) for s, i in {**self.added, **self.special}.items()
                    if (m := re.fullmatch(r'▁?<(?:\|sentinel_|extra_id_)(\d+)\|?>', s))]
        self.sentinels = [i for _, i in sorted(numbered)]
        self.strip = state.get('strip') or {}  # name -> l, r or lr: takes the white space on that side with it
        self.finders = [re.compile('|'.join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None
                        for names in (self.added, {**self.added, **self.special})]

    def encode(self, text, special=False):
        """Ids of a string, or of bytes that need not be UTF-8. special: names of special tokens become their ids."""
        if isinstance(text, bytes):
            parts = UNDECODABLE.split(text.decode('utf-8', 'surrogateescape'))
            return [i for n, part in enumerate(parts) for i in
                    (self.raw(part.encode('utf-8', 'surrogateescape')) if n % 2 else self.encode(part, special))]
        if not self.finders[special]:
            return self.plain(text)
        ids, at = [], 0
        for m in self.finders[special].finditer(text):
            sides, before, first = self.strip.get(m[0], ''), text[at:m.start()], at == 0
            before = before.rstrip() if 'l' in sides else before
            ids += self.plain(before, first) if before else []
            ids.append(self.added[m[0]] if m[0] in self.added else self.special[m[0]])
            at = SPACES.match(text, m.end()).end() if 'r' in sides else m.end()
        return ids + self.plain(text[at:], at == 0) if at < len(text) else ids

    def encode_batch(self, texts, special=False):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda text: self.encode(text, special), texts))

    def encode_numpy(self, text):
        """Ids of plain text as uint32."""
        return np.array(self.encode(text), np.uint32)

    def raw(self, data):  # bytes that are no text
        return self.encode(data.decode('utf-8', 'replace'))

    def decode_bytes(self, ids):
        tokens = self.tokens
        return b''.join([tokens[i] for i in ids])

    def decode(self, ids):
        return self.decode_bytes(ids).decode('utf-8', 'replace')

    @cached_property
    def byte_lengths(self):
        """Bytes of text that each id stands for, 0 for special tokens: int32 (vocab_size,)."""
        lengths = np.array([len(t) for t in self.tokens], np.int32)
        lengths[list(self.special.values())] = 0
        return lengths

    def dumps(self):
        kind = type(self).__name__.lower()
        return json.dumps({'format': 'flatformers tokenizer', 'version': 1, 'kind': kind, **self.state},
                          ensure_ascii=False)

    def save(self, path):
        write(path, self.dumps())

    def save_hf(self, path, cls=None, sep=None, double=False, segments=False, length=0):
        """
        Writes tokenizer.json, and beside it what transformers' AutoTokenizer asks for; path: a folder. sep, cls: ids
        that the model puts around texts, so that transformers does: (cls) a sep, for two (cls) a sep b sep, `double`
        with two between them. segments: the model tells the second text's tokens apart. length: what it reads at most.
        """
        spec, name = self.spec(), {i: s for s, i in self.special.items()}
        if sep in name and (cls is None or cls in name) and \
                (spec.get('post_processor') or {}).get('type') in (None, 'ByteLevel'):  # a published one knows best
            mark = lambda i, side: [{'SpecialToken': {'id': name[i], 'type_id': side}}]
            text = lambda side: [{'Sequence': {'id': 'AB'[side], 'type_id': int(side and segments)}}]
            ends = mark(sep, 0), mark(sep, int(segments))
            single = (mark(cls, 0) if cls is not None else []) + text(0) + ends[0]
            spec = {**spec, 'post_processor': {
                'type': 'TemplateProcessing', 'single': single,
                'pair': single + (ends[0] if double else []) + text(1) + ends[1],
                'special_tokens': {name[i]: {'id': name[i], 'ids': [i], 'tokens': [name[i]]}
                                   for i in (cls, sep) if i is not None}}}
        added = [added_token(s, i, s in self.special, self.strip.get(s, ''))
                 for s, i in sorted({**self.added, **self.special}.items(), key=lambda item: item[1])]
        spec = {'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added, 'normalizer': None,
                'pre_tokenizer': None, 'post_processor': None, 'decoder': None, **spec}
        roles = dict(eos=self.eot, bos=self.bos, pad=self.pad, cls=self.cls, sep=self.sep, mask=self.mask, unk=self.unk)
        config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False,
                  # without this line some versions give type ids to all models, and GPT-2 adds them to its input
                  'model_input_names': ['input_ids', *['token_type_ids'] * segments, 'attention_mask'],
                  **({'model_max_length': length} if length else {}),
                  **{f'{role}_token': name[i] for role, i in roles.items() if i is not None}}
        os.makedirs(path, exist_ok=True)
        write(os.path.join(path, 'tokenizer.json'), json.dumps(spec, ensure_ascii=False))
        write(os.path.join(path, 'tokenizer_config.json'), json.dumps(config, ensure_ascii=False, indent=2))

    def spec(self):
        raise ValueError(f'a {type(self).__name__.lower()} tokenizer has no tokenizer.json: train one with --model=bpe')

    def __reduce__(self):  # pickles as its JSON
        return loads, (self.dumps(),)


class BPE(Tokenizer):
    """Byte-level BPE on tiktoken. tokens: by rank, spelled as in GPT-2's files; ids: each rank's id if they differ."""

    def setup(self, name, special, tokens, pattern, ids=None, added=None, strip=None):
        ranks = {invisible(t): rank for rank, t in enumerate(tokens) if t}
        if len(ranks) != sum(map(bool, tokens)) or len({*BYTES} & {t[0] for t in ranks if len(t) == 1}) < 256:
            raise ValueError('damaged: a token stands twice, or one of the 256 bytes is missing')
        if ids is not None and len(ids) != len(tokens):
            raise ValueError(f'damaged: {len(tokens)} tokens have {len(ids)} ids')
        for i, token in zip(ids or (), tokens):
            check_id(i, token)
        self.pattern = PATTERNS.get(pattern, pattern)
        self.cut = CUT if self.pattern in PATTERNS.values() else None
        self.chunks = regex.compile(self.pattern)
        self.encoding = tiktoken.Encoding(name, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens={})
        self.ids = None if ids is None else np.array(ids, np.uint32)
        table = [b''] * (max(ids or [len(tokens) - 1]) + 1)
        for token, rank in ranks.items():
            table[ids[rank] if ids else rank] = token
        self.byte_ids = {t[0]: i for i, t in enumerate(table) if len(t) == 1}
        return table

    def ranks(self, text):
        try:
            return self.encoding.encode_ordinary(text)  # tiktoken's fastest way in
        except BaseException as e:  # its regular expressions run out of stack in a million spaces; ours do not
            if type(e).__name__ != 'PanicException':
                raise
        return [i for chunk in self.chunks.findall(text) for i in self.encoding.encode_ordinary(chunk)]

    def plain(self, text, first=True):
        return self.ranks(text) if self.ids is None else self.ids[self.ranks(text)].tolist()

    def encode_part(self, text):
        ids = np.frombuffer(array('I', self.ranks(text)), np.uint32)
        return ids if self.ids is None else self.ids[ids]

    def encode_numpy(self, text):
        if self.added:
            return super().encode_numpy(text)
        if len(text) < 4 * BLOCK or not self.cut:
            return self.encode_part(text)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # tiktoken lets go of the GIL
            return np.concatenate(list(pool.map(self.encode_part, chain.from_iterable(blocks([text], self.cut)))))

    def raw(self, data):
        return [self.byte_ids[b] for b in data]

    def spec(self):
        tokens, ids = self.state['tokens'], self.state.get('ids')
        rank, pairs = {t: r for r, t in enumerate(tokens) if t}, []
        for t, r in rank.items():
            parts = list(t)  # the merge that makes a token: the last two parts when all earlier merges are done
            while len(parts) > 2:
                i = min(range(len(parts) - 1), key=lambda i: rank.get(parts[i] + parts[i + 1], len(tokens)))
                parts[i:i + 2] = [parts[i] + parts[i + 1]]
            pairs += [parts] * (len(parts) == 2)
        level, pattern = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True}, self.pattern
        if self.cut:  # other engines know neither {1,3}+ nor this use of $; both change nothing but the time
            pattern = re.sub(r'([+*?}])\+', r'\1', pattern.replace(r'\s++$|', ''))
        split = {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False}
        pre = level | {'use_regex': True} if self.pattern == PATTERNS['gpt2'] else \
            {'type': 'Sequence', 'pretokenizers': [split, level | {'use_regex': False}]}
        return {'pre_tokenizer': pre, 'decoder': level | {'use_regex': True}, 'model': {
            'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
            'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False, 'ignore_merges': False,
            'vocab': {t: ids[r] if ids else r for t, r in rank.items()}, 'merges': pairs}}


class Byte(Tokenizer):
    def setup(self, name, special):
        return [bytes([b]) for b in range(256)]

    def plain(self, text, first=True):
        return list(utf8(text))

    def raw(self, data):
        return list(data)

    def encode_numpy(self, text):
        return np.frombuffer(utf8(text), np.uint8).astype(np.uint32)


class Char(Tokenizer):
    def setup(self, name, special, tokens):
        self.ids = {c: i for i, c in enumerate(tokens)}
        if any(len(c) != 1 for c in tokens) or len(self.ids) != len(tokens):
            raise ValueError('damaged: its tokens are not characters that differ')
        return [utf8(c) for c in tokens]

    def plain(self, text, first=True):
        try:
            return [self.ids[c] for c in text]
        except KeyError as e:
            raise ValueError(f'character {e.args[0]!r} is not among the {len(self.ids)} of this char tokenizer: '
                             'prepare it on text that has the character, or use --tokenizer=byte or '
                             '--tokenizer=bpe') from None


def char(texts, special=SPECIALS):
    """One id per character. The special ones are those of all families, so that what is prepared serves any model file;
    a vocabulary for one of them can do with fewer (bpe.py train --model=char --special=...)."""
    chars = sorted(set().union(*([texts] if isinstance(texts, str) else texts)))
    if not chars:
        raise ValueError('no text to take characters from: the input is empty')
    return Char(name='char', tokens=chars, special={s: len(chars) + i for i, s in enumerate(special)})


def byte():
    return Byte(name='byte', special={s: 256 + i for i, s in enumerate(SPECIALS)})


# ---- the stages of a Hugging Face tokenizer.json -----------------------------------------------------------------
# vocab.txt, encoder.json and sentencepiece files are turned into the same description, so that Pipeline runs them all.

BERT_PUNCTUATION = r'\p{P}!-/:-@\[-`{-~'
BERT_CONTROL = regex.compile(r'(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}\ufffd]')
BERT_CJK = regex.compile('[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f'
                         '\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f]')  # b920 (BERT: b820) as in tokenizers
NOT_ASCII = re.compile(r'[\0-\x7f]?(?:[^\0-\x7f]+[\0-\x7f]?)+')


def expression(pattern):
    return regex.compile(pattern['Regex'] if 'Regex' in pattern else regex.escape(pattern['String']))


def lower(text):  # letter by letter: str.lower() alone would turn a final sigma into another letter
    return ''.join([c.lower() for c in text]) if 'Σ' in text else text.lower()


def normalizer(spec):
    """The function str -> str that "normalizer" describes."""
    kind = spec['type'] if spec else 'Sequence'
    if kind == 'Sequence':
        steps = [normalizer(s) for s in (spec or {}).get('normalizers', [])]
        return lambda text: reduce(lambda t, step: step(t), steps, text)
    if kind in ('NFC', 'NFD', 'NFKC', 'NFKD'):
        return lambda text: text if text.isascii() else unicodedata.normalize(kind, text)
    if kind == 'Lowercase':
        return lower
    if kind == 'StripAccents':
        return lambda text: text if text.isascii() else regex.sub(r'\p{M}', '', text)
    if kind == 'Prepend':
        return lambda text: text and spec['prepend'] + text
    if kind == 'Strip':
        ends = (r'^\s+' * spec['strip_left'] + '|' * (spec['strip_left'] and spec['strip_right'])
                + r'\s+\Z' * spec['strip_right'])
        return lambda text: regex.sub(ends, '', text) if ends else text
    if kind == 'Replace':
        find = expression(spec['pattern'])
        return lambda text: find.sub(lambda m: spec['content'], text)
    if kind == 'BertNormalizer':
        accents = spec['lowercase'] if spec.get('strip_accents') is None else spec['strip_accents']

        def bert(text):
            if spec['clean_text']:
                text = regex.sub(r'\s', ' ', BERT_CONTROL.sub('', text))
            if spec['handle_chinese_chars'] and not text.isascii():
                text = BERT_CJK.sub(r' \g<0> ', text)
            if accents and not text.isascii():
                text = regex.sub(r'\p{Mn}', '', unicodedata.normalize('NFD', text))
            return lower(text) if spec['lowercase'] else text
        return bert
    if kind == 'Precompiled':
        return precompiled(base64.b64decode(spec['precompiled_charsmap']), spec.get('longest', False))
    raise ValueError(f'its normalizer {kind} is not supported')


def precompiled(blob, longest):
    """ sentencepiece's table of replacements: a double-array trie (darts-clone) of UTF-8 keys, then the replacements.
    longest: sentencepiece's rule (longest key at each place); else that of `tokenizers`: for a grapheme of at most 5
    bytes its shortest key stands for all of it, otherwise character by character.
    """
    table = {}
    if blob:
        size, = struct.unpack_from('<I', blob)
        units, text, children = struct.unpack_from(f'<{size // 4}I', blob, 4), blob[4 + size:], {}
        for at, u in enumerate(units):  # a child with label c lies at (its parent's base) ^ c
            if u >> 31 == 0 and u & 255:
                children.setdefault(at ^ u & 255, []).append(at)
        todo, steps = [((units[0] >> 10) << ((units[0] & 512) >> 6), b'')], 0
        while todo:
            base, key = todo.pop()
            if len(key) > 99:
                raise ValueError('damaged: its table of replacements goes in circles')
            for at in children.get(base, ()):
                u, steps = units[at], steps + 1
                todo.append((at ^ (u >> 10) << ((u & 512) >> 6), key + bytes([u & 255])))
                if u >> 8 & 1:
                    start = units[todo[-1][0]] & 0x7fffffff
                    table[todo[-1][1].decode()] = text[start:text.index(b'\0', start)].decode()
            if steps > 64 * len(units):  # (tails are shared, so some units are met several times)
                raise ValueError('damaged: its table of replacements goes in circles')
    single, most = {ord(k): v for k, v in table.items() if len(k) == 1}, max(map(len, table), default=1)

    def grapheme(g):
        hit = next((k for n in range(1, len(g) + 1) if (k := g[:n]) in table), None) if len(g.encode()) < 6 else None
        return g.translate(single) if hit is None else table[hit]

    def by_longest(text):
        out, at = [], 0
        while at < len(text):
            n = next((n for n in range(most, 0, -1) if text[at:at + n] in table), 0)
            out.append(table[text[at:at + n]] if n else text[at])
            at += n or 1
        return ''.join(out)

    def run(text):
        out, at = [], 0
        for m in NOT_ASCII.finditer(text):  # in ASCII no key has two characters
            out += [text[at:m.start()].translate(single),
                    by_longest(m[0]) if longest else ''.join(map(grapheme, regex.findall(r'\X', m[0])))]
            at = m.end()
        return ''.join(out) + text[at:].translate(single)
    return run


def isolate(text, find):
    """The matches of `find` and the stretches between them, in order."""
    pieces, at = [], 0
    for m in find.finditer(text):
        pieces += [text[at:m.start()], m[0]]
        at = m.end()
    return [p for p in [*pieces, text[at:]] if p]


def splitter(spec):
    """The function (text, whether it begins the input) -> pieces that "pre_tokenizer" describes."""
    kind = spec['type'] if spec else 'Sequence'
    if kind == 'Sequence':
        steps = [splitter(s) for s in (spec or {}).get('pretokenizers', [])]

        def run(text, first):
            pieces = [text]
            for step in steps:
                pieces = [q for i, p in enumerate(pieces) for q in step(p, first and i == 0)]
            return pieces
        return run
    if kind == 'ByteLevel':
        find = regex.compile(PATTERNS['gpt2'] if spec.get('use_regex', True) else r'[\s\S]+')
        prefix = spec.get('add_prefix_space', True)
        return lambda text, first: find.findall(' ' + text if prefix and not text.startswith(' ') else text)
    if kind == 'Metaspace':
        scheme = spec.get('prepend_scheme', 'always' if spec.get('add_prefix_space', True) else 'never')
        mark = spec['replacement']
        find = re.compile(f'{mark}[^{mark}]*|[^{mark}]+' if spec.get('split', True) else r'[\s\S]+')

        def metaspace(text, first):
            text = text.replace(' ', mark)
            add = (scheme == 'always' or scheme == 'first' and first) and not text.startswith(mark)
            return find.findall(mark * add + text)
        return metaspace
    if kind == 'Split' and spec['behavior'] == 'Isolated':
        find = expression(spec['pattern'])
        return lambda text, first: isolate(text, find)
    simple = {'BertPreTokenizer': rf'[{BERT_PUNCTUATION}]|[^\s{BERT_PUNCTUATION}]+', 'WhitespaceSplit': r'\S+',
              'Digits': r'\p{N}|\P{N}+' if (spec or {}).get('individual_digits') else r'\p{N}+|\P{N}+'}
    if kind in simple:
        find = regex.compile(simple[kind])
        return lambda text, first: find.findall(text)
    raise ValueError(f'its pre_tokenizer {kind} {spec.get("behavior", "")} is not supported')


def only_pattern(spec):
    """The regular expression that alone does what a byte-level pre_tokenizer does, for tiktoken; None if none does."""
    stages = [spec] if spec['type'] != 'Sequence' else spec['pretokenizers']
    if stages[-1].get('add_prefix_space') or len(stages) > 2:
        return None
    if len(stages) == 1:
        return PATTERNS['gpt2'] if stages[0].get('use_regex', True) else r'[\s\S]+'
    split, last = stages
    if split['type'] == 'Split' and split['behavior'] == 'Isolated' and not split.get('invert') \
            and not last.get('use_regex', True) and 'Regex' in split['pattern']:
        return split['pattern']['Regex'] + r'|[\s\S]'
    if split == {'type': 'Digits', 'individual_digits': True} and last.get('use_regex', True):  # SmolLM
        return r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?![^\s\p{N}])|\s"
    return None


def joined(model):
    """What the merges of a BPE model make, in their order: {token: None}."""
    return dict.fromkeys(''.join(m.split(' ', 1) if isinstance(m, str) else m) for m in model['merges'])


def byte_level(model, special):
    """Tokens by rank (spelled visibly) and the id of each, -1 for a byte that the vocabulary lacks."""
    vocab = model['vocab']
    tokens = dict.fromkeys(chain([VISIBLE[b] for b in BYTES], joined(model)))
    if model.get('ignore_merges'):  # every token is reachable as a whole chunk
        tokens.update(dict.fromkeys(t for t in sorted(vocab, key=vocab.get) if t not in special))
    tokens = [t for t in tokens if t in vocab or len(t) == 1]
    return tokens, [vocab.get(t, -1) for t in tokens]


def bpe_model(model, level, pattern, special):
    """
    piece -> ids by tiktoken. A vocabulary of characters (Metaspace) becomes one of bytes: the first ranks build up
    the UTF-8 of each known character from the left, so bytes of unknown characters stay apart and fall back.
    """
    vocab, unk = model['vocab'], model['vocab'].get(model.get('unk_token'))
    lacking = [] if unk is None else [unk]
    if level:
        tokens, ids = byte_level(model, special)
        keys, table = [invisible(t) for t in tokens], [[i] if i >= 0 else lacking for i in ids]
    else:
        made = [t for t in joined(model) if t in vocab and len(t) > 1]
        known = dict.fromkeys(chain((t for t in vocab if len(t) == 1), *made))
        starts = (c.encode()[:n] for c in known for n in range(2, len(c.encode()) + 1))
        keys = list(dict.fromkeys(chain((bytes([b]) for b in range(256)), starts, map(str.encode, made))))
        falls = model.get('byte_fallback') and all(f'<0x{b:02X}>' in vocab for b in range(256))
        table = []
        for key in keys:
            i = vocab.get(key.decode('utf-8', 'surrogateescape'))
            table.append([i] if i is not None else [vocab[f'<0x{b:02X}>'] for b in key] if falls
                         else lacking if key[0] < 128 or key[0] >= 192 else [])
        apart = all('▁' not in t.lstrip('▁') for t in made)  # no token goes on after a word
        pattern = '▁*[^▁]+|▁+' if apart and any('▁' in t for t in made) else pattern
    encoding = tiktoken.Encoding('pieces', pat_str=pattern, mergeable_ranks={k: r for r, k in enumerate(keys)},
                                 special_tokens={})
    fuse = model.get('fuse_unk') and unk is not None

    def encode(piece):
        ids = [i for rank in encoding.encode_ordinary(piece) for i in table[rank]]
        return [i for n, i in enumerate(ids) if i != unk or not n or ids[n - 1] != unk] if fuse else ids
    return encode


def unigram_model(model, special):
    """word -> ids along the path with the best sum of log probabilities (Viterbi)."""
    vocab, unk = model['vocab'], model['unk_id']
    if type(unk) is not int or not 0 <= unk < len(vocab):
        raise ValueError(f'its unk_id is {unk}; expected the place of a piece, 0 to {len(vocab) - 1}')
    if not all(np.isfinite(s) for _, s in vocab):
        raise ValueError('damaged: the score of a piece is no number')
    score = {piece: (s, i) for i, (piece, s) in enumerate(vocab) if piece not in special and i != unk}
    byte_ids = {piece: i for i, (piece, _) in enumerate(vocab) if re.fullmatch('<0x[0-9A-F]{2}>', piece)}
    falls = model.get('byte_fallback') and len(byte_ids) == 256
    for piece in byte_ids if falls else ():
        score.pop(piece, None)
    most, unknown = max(map(len, score)), min(s for _, s in vocab) - 10

    def encode(word):
        n = len(word)
        best, back = [0.0] + [-np.inf] * n, [(0, unk)] * (n + 1)
        for i in range(n):
            for j in range(i + 1, min(n, i + most) + 1):
                hit = score.get(word[i:j])
                if hit and best[i] + hit[0] > best[j]:
                    best[j], back[j] = best[i] + hit[0], (i, hit[1])
            if word[i] not in score and best[i] + unknown > best[i + 1]:
                best[i + 1], back[i + 1] = best[i] + unknown, (i, unk)
        ids, j = [], n
        while j:
            i, token = back[j]
            if token == unk and falls:
                ids += [byte_ids[f'<0x{b:02X}>'] for b in reversed(word[i:j].encode())]
            elif token != unk or not ids or ids[-1] != unk:  # neighbouring unknown characters are one
                ids.append(token)
            j = i
        return ids[::-1]
    return encode


def wordpiece_model(model):
    """word -> ids, always the longest piece that fits; the whole word is unknown when one part is."""
    vocab, prefix = model['vocab'], model['continuing_subword_prefix']
    unk, most = [vocab[model['unk_token']]], model.get('max_input_chars_per_word', 100)
    if not isinstance(prefix, str) or type(most) is not int:
        raise ValueError(f'damaged: words of {str(most)[:20]} characters, parts that begin with {str(prefix)[:20]}')
    longest = max(map(len, vocab))

    def encode(word):
        ids, i = [], 0
        while i < len(word) <= most:
            lead = prefix if i else ''
            j = next((j for j in range(min(len(word), i + longest), i, -1) if lead + word[i:j] in vocab), 0)
            if not j:
                return unk
            ids.append(vocab[lead + word[i:j]])
            i = j
        return ids if len(word) <= most else unk
    return encode


class Pipeline(Tokenizer):
    """The stages of a tokenizer.json (`spec`): normalizer, pre_tokenizer, model, decoder."""

    def setup(self, name, special, spec, added=None, strip=None):
        model, pre = spec['model'], spec.get('pre_tokenizer')
        stages = [] if not pre else pre.get('pretokenizers', [pre])
        kind, level = model['type'], any(s['type'] == 'ByteLevel' for s in stages)
        for key in ('continuing_subword_prefix', 'end_of_word_suffix', 'dropout'):
            if kind == 'BPE' and model.get(key):
                raise ValueError(f'BPE with {key} {model[key]!r} is not supported')
        pattern = only_pattern(pre) if kind == 'BPE' and level else None
        norm = spec.get('normalizer') or {'type': 'Sequence', 'normalizers': []}
        later = [s for s in norm.get('normalizers', [norm]) if not s.get('first')]  # not only for the input's beginning
        self.normalizers = normalizer({'type': 'Sequence', 'normalizers': later}), normalizer(norm)
        self.split = splitter(None if pattern else pre)
        if kind == 'BPE':
            self.model = bpe_model(model, level, pattern or r'[\s\S]+', special)
        elif kind == 'Unigram':
            self.model = unigram_model(model, special)
        elif kind == 'WordPiece':
            self.model = wordpiece_model(model)
        else:
            raise ValueError(f'its model {kind} is not supported')
        self.cached = kind != 'BPE' or not pattern and bool(pre)
        self.cache = {}
        vocab = {t: i for i, (t, _) in enumerate(model['vocab'])} if kind == 'Unigram' else model['vocab']
        for t, i in vocab.items():
            check_id(i, t)
        table = [b''] * (max(vocab.values()) + 1)
        close = {'.', '?', '!', ',', "n't", "'m", "'s", "'ve", "'re"}  # these follow a word without a space
        for t, i in vocab.items():
            if level:
                table[i] = invisible(t) if all(c in INVISIBLE for c in t) else t.encode()
            elif kind == 'WordPiece':
                prefix = model['continuing_subword_prefix']
                table[i] = t[len(prefix):].encode() if t.startswith(prefix) else (' ' * (t not in close) + t).encode()
            elif re.fullmatch('<0x[0-9A-F]{2}>', t) and model.get('byte_fallback'):
                table[i] = bytes([int(t[3:5], 16)])
            else:
                table[i] = t.replace('▁', ' ').encode()
        text = json.dumps([spec.get('decoder'), spec.get('normalizer'), pre])
        self.drops = kind == 'WordPiece' or not level and (
            '"prepend"' in text or '"Metaspace"' in text and '"never"' not in text)
        return table

    def spec(self):
        return self.state['spec']

    def plain(self, text, first=True):
        if SURROGATES.search(text):
            text = utf8(text).decode()
        text, ids = self.normalizers[first](text), []
        for piece in self.split(text, first) if text else ():
            found = self.cache.get(piece) if self.cached else self.model(piece)
            if found is None:
                if len(self.cache) >= 1 << 18:
                    self.cache.clear()
                found = self.cache[piece] = self.model(piece)
            ids += found
        return ids

    def decode_bytes(self, ids):
        data = super().decode_bytes(ids)
        return data[1:] if self.drops and data.startswith(b' ') else data  # the space put before the first word


# ---- files -------------------------------------------------------------------------------------------------------

KINDS = {'bpe': BPE, 'byte': Byte, 'char': Char, 'pipeline': Pipeline}
RANKED = {  # *.tiktoken files carry neither pattern nor special tokens: known by their number of ranks
    50256: ('gpt2', {'<|endoftext|>': 50256}),
    100256: ('cl100k', {'<|endoftext|>': 100257, '<|fim_prefix|>': 100258, '<|fim_middle|>': 100259,
                        '<|fim_suffix|>': 100260, '<|endofprompt|>': 100276}),
    199998: ('o200k', {'<|endoftext|>': 199999, '<|endofprompt|>': 200018}),
    128000: ('cl100k', {s: 128000 + i for i, s in enumerate(  # Llama 3
        ['<|begin_of_text|>', '<|end_of_text|>', '<|reserved_special_token_0|>', '<|reserved_special_token_1|>',
         '<|finetune_right_pad_id|>', '<|step_id|>', '<|start_header_id|>', '<|end_header_id|>', '<|eom_id|>',
         '<|eot_id|>', '<|python_tag|>'] + [f'<|reserved_special_token_{i}|>' for i in range(2, 247)])}),
}


def write(path, text):
    with open(path + '.tmp', 'w', encoding='utf-8') as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + '.tmp', path)


def loads(text):
    """The tokenizer that dumps() wrote. ValueError if it is damaged."""
    with reading('tokenizer'):
        return own(json.loads(text))


def own(d):
    if not isinstance(d, dict) or d.get('format') != 'flatformers tokenizer' or d.get('version') != 1 \
            or d.get('kind') not in list(KINDS):
        raise ValueError(f'not a tokenizer of this collection (version 1): {str(d)[:60]!r}')
    return KINDS[d['kind']](**{k: v for k, v in d.items() if k not in ('format', 'version', 'kind')})


@contextlib.contextmanager
def reading(path):
    """Files come from anywhere: whatever goes wrong while one is understood is a ValueError of one line."""
    try:
        yield
    except OSError:
        raise
    except BaseException as e:  # tiktoken's PanicException is no Exception
        if not isinstance(e, Exception) and type(e).__name__ != 'PanicException':
            raise
        line, plain = ' '.join(str(e).split())[:200], type(e) is ValueError
        raise ValueError(f'{path}: {line}' if plain else f'{path}: damaged, or not a tokenizer '
                         f'({type(e).__name__}: {line})') from None


def load(path):
    """The tokenizer in a file or folder, or by a name: byte, gpt2, ... Errors: ValueError, FileNotFoundError."""
    path = os.fspath(path)
    if path == 'byte':
        return byte()
    if not os.path.exists(path):
        names = tiktoken.list_encoding_names()
        if path not in names:
            raise FileNotFoundError(f'{path}: no such file or folder, nor one of the names byte, {", ".join(names)}')
        try:
            e = tiktoken.get_encoding(path)
        except Exception as error:
            raise ValueError(f'{path}: tiktoken could not fetch it ({type(error).__name__}); give a file with it '
                             'instead, such as encoder.json + vocab.bpe or a .tiktoken file') from None
        return ranked(e._mergeable_ranks, e._pat_str, e._special_tokens, path)
    if os.path.isdir(path):
        names = ['tokenizer.json', 'spiece.model', 'tokenizer.model', 'encoder.json', 'vocab.json', 'vocab.txt']
        found = [n for n in names if os.path.exists(os.path.join(path, n))]
        if not found:
            raise FileNotFoundError(f'{path}: holds no tokenizer, that is none of {", ".join(names)}')
        path = os.path.join(path, found[0])
    data = read(path)
    stem = os.path.basename(path).removesuffix('.gz').rsplit('.', 1)[0]
    generic = stem in ('tokenizer', 'vocab', 'encoder', 'spiece', 'merges')
    name = os.path.basename(os.path.dirname(os.path.abspath(path))) if generic else stem
    with reading(path):
        tokenizer = parse(path, data, name)
        if not isinstance(tokenizer, Char):  # does it work at all?
            ids = tokenizer.encode('The 1st naïve test.\n')
            if any(i is None for i in ids) or max(ids, default=0) >= tokenizer.vocab_size:
                raise ValueError('damaged: it has no ids for a short text')
            tokenizer.decode(ids)
        return tokenizer


def read(path):
    with open(path, 'rb') as f:
        data = f.read()
    if data[:2] == b'\x1f\x8b':
        try:
            most = (64 << 20) + 16 * len(data)
            with gzip.open(path) as f:
                data = f.read(most + 1)
        except (OSError, EOFError, zlib.error) as e:
            raise ValueError(f'{path}: damaged gzip file ({e})') from None
        if len(data) > most:
            raise ValueError(f'{path}: unpacked it has over {most:,} bytes, more than a vocabulary')
    if not data.strip():
        raise ValueError(f'{path}: the file is empty')
    return data


def parse(path, data, name):
    """The tokenizer in a file's bytes; path is only used to find its neighbours."""
    folder, gz = os.path.dirname(path), '.gz' * path.endswith('.gz')

    def beside(*names):
        found = next((p for n in names if os.path.exists(p := os.path.join(folder, n + gz))), None)
        if not found:
            raise ValueError(f'needs {" or ".join(names)} beside it')
        return read(found)
    if data.lstrip()[:1] == b'{':
        d = json.loads(data)
        if isinstance(d.get('format'), str):
            return own(d)
        if isinstance(d.get('model'), dict):
            return from_spec(d, name)
        if not all(isinstance(i, int) for i in d.values()):
            raise ValueError('this JSON is no tokenizer: expected tokenizer.json, or token -> id as in encoder.json')
        return from_pair(d, beside('vocab.bpe', 'merges.txt'), name)
    if data.startswith(b'#version') or path.removesuffix('.gz').endswith('.bpe'):
        return from_pair(json.loads(beside('encoder.json', 'vocab.json')), data, name)
    lines = data.splitlines()
    if re.fullmatch(rb'[A-Za-z0-9+/]+=* \d+', lines[0]):
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, filter(None, lines))}
        pattern, special = RANKED.get(len(ranks), ('cl100k', {'<|endoftext|>': max(ranks.values()) + 1}))
        if not all(bytes([b]) in ranks for b in range(256)):
            raise ValueError('damaged: not all of the 256 bytes have a rank')
        return ranked(ranks, PATTERNS[pattern], special, name)
    if data[0] == 10 and b'<unk>' in data[:400]:
        return from_sentencepiece(data, name)
    vocab = {line.rstrip('\r'): i for i, line in enumerate(data.decode().rstrip('\n').split('\n'))}
    if '[UNK]' not in vocab:
        raise ValueError('not a tokenizer: expected our own JSON, tokenizer.json, encoder.json, vocab.bpe, '
                         'a .tiktoken file, a sentencepiece model or a vocab.txt with [UNK]')
    special = [s for s in ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]') if s in vocab]
    try:
        config = json.loads(beside('tokenizer_config.json'))
    except ValueError:
        config = {}
    upper = any(t != t.lower() for t in vocab if t[:1] != '[')
    return from_spec({
        'added_tokens': [added_token(s, vocab[s]) for s in special],
        'normalizer': {'type': 'BertNormalizer', 'clean_text': True, 'strip_accents': config.get('strip_accents'),
                       'handle_chinese_chars': config.get('tokenize_chinese_chars', True),
                       'lowercase': config.get('do_lower_case', not upper)},
        'pre_tokenizer': {'type': 'BertPreTokenizer'},
        'decoder': {'type': 'WordPiece', 'prefix': '##', 'cleanup': True},
        'model': {'type': 'WordPiece', 'unk_token': '[UNK]', 'continuing_subword_prefix': '##',
                  'max_input_chars_per_word': 100, 'vocab': vocab}}, name)


def added_token(text, i, special=True, sides=''):
    return {'id': i, 'content': text, 'single_word': False, 'lstrip': 'l' in sides, 'rstrip': 'r' in sides,
            'normalized': False, 'special': special}


def ranked(ranks, pattern, special, name):
    for token, rank in ranks.items():
        check_id(rank, token)
    tokens = [''] * (max(ranks.values()) + 1)
    for token, rank in ranks.items():
        tokens[rank] = visible(token)
    pattern = next((k for k, p in PATTERNS.items() if p == pattern), pattern)
    return BPE(name=name, tokens=tokens, pattern=pattern, special=dict(special))


def from_pair(vocab, merges, name):
    """GPT-2's two files; tokens that no merge makes (<|endoftext|>, <s>, <mask>) are the special ones."""
    lines = merges.decode().split('\n')
    model = {'type': 'BPE', 'vocab': vocab,
             'merges': [line for line in lines if line.strip() and not line.startswith('#version')]}
    if any(line.count(' ') != 1 for line in model['merges']):
        raise ValueError('damaged: a line of the merges does not hold two tokens')
    made = joined(model)
    if any(t not in vocab for t in made):
        raise ValueError(f'damaged: the merges make {next(t for t in made if t not in vocab)!r}, '
                         'which the vocabulary lacks')
    special = [t for t in vocab if t not in made and t not in INVISIBLE]
    return from_spec({
        'model': model, 'added_tokens': [added_token(t, vocab[t], True, 'l' * (t == '<mask>')) for t in special],
        'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True},
        'decoder': {'type': 'ByteLevel'}}, name)


def from_spec(spec, name):
    """The tokenizer that a tokenizer.json describes."""
    model, pre = spec['model'], spec.get('pre_tokenizer')
    model.setdefault('type', 'BPE' if 'merges' in model else 'Unigram' if 'unk_id' in model else 'WordPiece')
    state = {'name': name, 'special': {}, 'added': {}, 'strip': {}}
    for t in spec.get('added_tokens', []):
        state['special' if t.get('special', True) else 'added'][t['content']] = t['id']
        if t.get('lstrip') or t.get('rstrip'):
            state['strip'][t['content']] = 'l' * bool(t.get('lstrip')) + 'r' * bool(t.get('rstrip'))
    stages = [] if not pre else pre.get('pretokenizers', [pre])
    if model['type'] == 'BPE' and not spec.get('normalizer') and any(s['type'] == 'ByteLevel' for s in stages):
        tokens, ids = byte_level(model, state['special'])
        pattern = only_pattern(pre)
        if pattern and min(ids) >= 0 and not (model.get('continuing_subword_prefix')
                                              or model.get('end_of_word_suffix')):
            pattern = next((k for k, p in PATTERNS.items() if p == pattern), pattern)
            return BPE(**state, tokens=tokens, ids=None if ids == list(range(len(ids))) else ids, pattern=pattern)
    return Pipeline(**state, spec={k: v for k, v in spec.items() if k != 'added_tokens'})


def fields(data):
    """(number, value) of each field of a protobuf message: ints, or bytes for lengths and fixed sizes."""
    at = 0

    def varint():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError('damaged: a number of more than 64 bits')
    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        size = {1: 8, 5: 4}[tag & 7] if tag & 7 != 2 else varint()
        if at + size > len(data):
            raise IndexError('cut off')
        yield tag >> 3, data[at:at + size]
        at += size


def from_sentencepiece(data, name):
    """spiece.model and tokenizer.model, a ModelProto: pieces (1), trainer (2), normalizer (3)."""
    pieces, trainer, rules = [], {}, {}
    for number, value in fields(data):
        if number == 1:
            p = dict(fields(value))
            pieces.append((p[1].decode(), struct.unpack('<f', p.get(2, b'\0\0\0\0'))[0], p.get(3, 1)))
        elif number in (2, 3):
            (trainer if number == 2 else rules).update(fields(value))
    normal, unknown, control, user = 1, 2, 3, 4
    if trainer.get(3, 1) not in (1, 2) or trainer.get(24):
        raise ValueError('only sentencepiece models of type unigram and bpe with white space in front are supported')
    vocab = {p: i for i, (p, _, _) in enumerate(pieces)}
    added = [added_token(p, i, kind != user) for i, (p, _, kind) in enumerate(pieces)
             if kind in (unknown, control) or kind == user and trainer.get(3, 1) == 2]
    steps = [{'type': 'Precompiled', 'precompiled_charsmap': base64.b64encode(rules[2]).decode(), 'longest': True}] \
        if rules.get(2) else []
    if rules.get(4, 1):  # spaces at the ends go, several become one
        steps += [{'type': 'Replace', 'pattern': {'Regex': r'^ +| +$'}, 'content': ''},
                  {'type': 'Replace', 'pattern': {'Regex': ' {2,}'}, 'content': ' '}]
    prefix = [{'type': 'Prepend', 'prepend': ' ', 'first': trainer.get(3, 1) == 2}] if rules.get(3, 1) else []
    steps = steps + prefix if rules.get(4, 1) else prefix + steps
    steps += [{'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}]
    unk = next(i for i, p in enumerate(pieces) if p[2] == unknown)
    pre = None
    if trainer.get(3, 1) == 2:
        order = sorted((i for i, p in enumerate(pieces) if p[2] == normal and len(p[0]) > 1),
                       key=lambda i: -pieces[i][1])
        pairs = ([p[:n], p[n:]] for p in (pieces[i][0] for i in order) for n in range(1, len(p)))
        model = {'type': 'BPE', 'unk_token': pieces[unk][0], 'fuse_unk': True, 'byte_fallback': bool(trainer.get(35)),
                 'vocab': vocab, 'merges': [[a, b] for a, b in pairs if a in vocab and b in vocab]}
    else:
        top = max(score for _, score, kind in pieces if kind == normal)
        model = {'type': 'Unigram', 'unk_id': unk, 'byte_fallback': bool(trainer.get(35)),
                 # the user's always win
                 'vocab': [[p, top * len(p) - 0.1 if kind == user else score] for p, score, kind in pieces]}
        if all('▁' not in p[1:] for p, _, kind in pieces if kind == normal):
            pre = {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'never', 'split': True}
        names = {t['content'] for t in added}
        if {'<pad>', '</s>'} <= names and '<s>' not in names and not any('extra_id' in p for p in vocab):
            # T5's file lacks its 100 sentinels; they follow the pieces, the first one last
            added += [added_token(f'<extra_id_{99 - i}>', len(pieces) + i, True, 'lr') for i in range(100)]
            model['vocab'] += [[f'<extra_id_{99 - i}>', 0.0] for i in range(100)]
    decoder = [{'type': 'Replace', 'pattern': {'String': '▁'}, 'content': ' '}, {'type': 'ByteFallback'},
               {'type': 'Fuse'}]
    decoder += [{'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}] if rules.get(3, 1) else []
    return from_spec({'added_tokens': added, 'normalizer': {'type': 'Sequence', 'normalizers': steps},
                      'pre_tokenizer': pre, 'model': model, 'decoder': {'type': 'Sequence', 'decoders': decoder}}, name)


# ---- command line ------------------------------------------------------------------------------------------------

def show(tokenizer, text, colour):
    """The text cut into its tokens, then their ids, each token and its id in one colour."""
    ids, cells = tokenizer.encode(text), []
    for i in ids:
        token = tokenizer.tokens[i].decode('utf-8', 'backslashreplace')
        cells.append(''.join(c if c.isprintable() else '⏎\n' if c == '\n' else c.encode('unicode_escape').decode()
                             for c in token))
    palette = [f'\033[30;48;5;{c}m' for c in (153, 194, 223, 218, 189, 229)]
    paint = [palette[n % 6] + '{}\033[0m' if colour else '{}|' for n in range(len(ids))]
    print(''.join(p.format(c) for p, c in zip(paint, cells)))
    print(' '.join(p.format(i) if colour else str(i) for p, i in zip(paint, ids)))


def read_texts(paths, pattern='gpt2'):
    """The text of files (also .gz), a few megabytes at a time where the pattern allows a cut."""
    for path in paths:
        seen = False
        with (gzip.open if path.endswith('.gz') else open)(path, 'rt', encoding='utf-8', newline='') as f:
            rest = ''
            try:
                while part := f.read(1 << 22 if pattern in PATTERNS else -1):
                    *done, rest = chain.from_iterable(blocks([rest + part], CUT if pattern in PATTERNS else None))
                    seen = True
                    yield from done
            except UnicodeDecodeError as e:
                raise ValueError(f'{path}: not UTF-8 text ({e.reason} at byte {e.start} of a block)') from None
            except (EOFError, gzip.BadGzipFile, zlib.error) as e:
                raise ValueError(f'{path}: damaged gzip file ({e})') from None
            if not seen:
                raise ValueError(f'{path}: the file is empty')
            yield rest


def main(argv=None):
    parser = argparse.ArgumentParser(prog='bpe.py', allow_abbrev=False, description='Trains tokenizers and uses them.')
    commands = parser.add_subparsers(dest='command', required=True)
    add = {}
    for name, text in (('train', 'learn a vocabulary from text files'), ('encode', 'print the ids of a text'),
                       ('decode', 'print the text of ids'),
                       ('show', 'print a text cut into tokens, and its compression')):
        add[name] = commands.add_parser(name, help=text, allow_abbrev=False).add_argument
    add['train']('--input', nargs='+', required=True, metavar='FILE', help='UTF-8 text files, .gz too')
    add['train']('--vocab_size', type=int, default=8192, help='ids in all: bytes, merges and special tokens')
    add['train']('--out', required=True, help='FILE.json in our format, or FOLDER/ in the Hugging Face layout')
    add['train']('--model', default='bpe', choices=['bpe', 'wordpiece', 'unigram', 'char'],
                 help='char: an id per character, whatever --vocab_size says')
    add['train']('--pattern', default='gpt2', help='how bpe cuts text: gpt2, cl100k, o200k or a regular expression')
    add['train']('--special', default=','.join(SPECIALS[:5]) + ',sentinels', help='names with commas between, or none')
    for name in ('encode', 'decode', 'show'):
        add[name]('--tokenizer', required=True, help='a file, a folder or a name that tiktoken knows')
    for name in ('encode', 'show'):
        add[name]('--text', help='the text itself')
        add[name]('--input', metavar='FILE', help='a file with the text; without --text and --input: standard input')
    add['encode']('--special', action='store_true', help='names of special tokens become their ids')
    add['decode']('ids', nargs='*', type=int, help='without them: standard input')
    args = parser.parse_args(argv)
    try:
        if args.command == 'train':
            train_command(args)
            return 0
        tokenizer = load(args.tokenizer)
        if args.command == 'decode':
            ids = args.ids or [int(i) for i in sys.stdin.read().split()]
            bad = next((i for i in ids if not 0 <= i < tokenizer.vocab_size), None)
            if bad is not None:
                raise ValueError(f'id {bad} is not in 0 .. {tokenizer.vocab_size - 1}, the ids of {tokenizer.name}')
            print(tokenizer.decode(ids))
            return 0
        text = (args.text if args.text is not None else
                ''.join(read_texts([args.input])) if args.input else sys.stdin.read())
        if args.command == 'encode':
            print(*tokenizer.encode(text, special=args.special))
            return 0
        show(tokenizer, text[:2000], sys.stdout.isatty() and 'NO_COLOR' not in os.environ)
        n, size = len(tokenizer.encode_numpy(text)), len(utf8(text))
        print(f'{tokenizer.name}: {tokenizer.vocab_size} ids; {len(text)} characters, {size} bytes, {n} tokens, '
              f'{size / max(n, 1):.3f} bytes per token'
              + f' (the first 2000 of {len(text)} characters shown)' * (len(text) > 2000))
        return 0
    except OSError as e:
        print(f'bpe.py: {e.filename}: {e.strerror}' if e.filename else f'bpe.py: {e}', file=sys.stderr)
    except ValueError as e:
        print(f'bpe.py: {e}', file=sys.stderr)
    return 1


def train_command(args):
    start, shown = time.perf_counter(), [0.0]

    def progress(line):
        if sys.stderr.isatty() and time.perf_counter() - shown[0] > 0.1:
            shown[0] = time.perf_counter()
            print(f'\r{line}\033[K', end='', file=sys.stderr, flush=True)
    special = [s for s in args.special.split(',') if s and s != 'none']
    special = [t for s in special for t in (SPECIALS[5:] if s == 'sentinels' else [s])]
    texts = read_texts(args.input, args.pattern)
    tokenizer = (char((''.join(set(t)) for t in texts), special) if args.model == 'char' else
                 train(texts, args.vocab_size, args.pattern, special, args.model, progress=progress))
    if args.out.endswith(os.sep):
        tokenizer.save_hf(args.out)
    else:
        tokenizer.save(args.out)
    print('\r\033[K' * sys.stderr.isatty(), end='', file=sys.stderr)
    print(f'{args.out}: {tokenizer.vocab_size} ids in {time.perf_counter() - start:.2f} s'
          + f' (the text has no pairs left for {args.vocab_size})' * (tokenizer.vocab_size < args.vocab_size
                                                                      and args.model != 'char'))


if __name__ == '__main__':
    sys.exit(main())
