"""Files."""
import base64
import gzip
import json
import os
import re
import zlib

from lib.vocab.common import PATTERNS, added_token
from lib.vocab.ranked import RANKED, ranked
from lib.vocab.spec import from_pair, from_spec
from lib.vocab.spiece import from_sentencepiece


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
            return d
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
