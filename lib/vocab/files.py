"""
Which vocabulary is in a file or folder? It is told by what is in it, and read by the module for its
layout.
"""
import gzip
import json
import os
import zlib

from lib.vocab.ranked import LINE, from_tiktoken
from lib.vocab.spec import from_pair, from_spec, from_vocab_txt
from lib.vocab.spiece import from_sentencepiece

# the names of vocabularies in a folder; the first one that is there is taken
NAMES = [
    'tokenizer.json', 'spiece.model', 'tokenizer.model', 'encoder.json', 'vocab.json', 'vocab.txt',
]
# names that say nothing: the folder names the tokenizer
GENERIC = ('tokenizer', 'vocab', 'encoder', 'spiece', 'merges')
GZIP = b'\x1f\x8b'  # the first bytes of a gzip file


def find(path):
    """The file with the vocabulary: `path` itself, or what is in the folder `path`."""
    if not os.path.isdir(path):
        return path
    for name in NAMES:
        file = os.path.join(path, name)
        if os.path.exists(file):
            return file
    raise FileNotFoundError(f'{path}: holds no tokenizer, that is none of {", ".join(NAMES)}')


def name_of(path):
    """The name of the tokenizer in a file."""
    stem = os.path.basename(path).removesuffix('.gz').rsplit('.', 1)[0]
    if stem in GENERIC:
        return os.path.basename(os.path.dirname(os.path.abspath(path)))
    return stem


def read(path):
    """
    The bytes of a file, unpacked if it is gzip. ValueError if it is empty, damaged or far too
    large.
    """
    with open(path, 'rb') as f:
        data = f.read()
    if data.startswith(GZIP):
        try:
            most = 2 ** 26 + 16 * len(data)
            with gzip.open(path) as f:
                data = f.read(most + 1)
        except (OSError, EOFError, zlib.error) as e:
            raise ValueError(f'{path}: damaged gzip file ({e})') from None
        if len(data) > most:
            raise ValueError(f'{path}: unpacked it has over {most:,} bytes, more than a vocabulary')
    if not data.strip():
        raise ValueError(f'{path}: the file is empty')
    return data


def read_beside(path, *names):
    """The bytes of the first of these files beside `path`; names.gz if `path` ends in .gz."""
    end = '.gz' if path.endswith('.gz') else ''
    for name in names:
        file = os.path.join(os.path.dirname(path), name + end)
        if os.path.exists(file):
            return read(file)
    raise ValueError(f'needs {" or ".join(names)} beside it')


def parse(path, data, name):
    """
    The description (common.description) of the tokenizer in a file's bytes; `path` is only used to
    find what is beside it. Raises ValueError, or whatever a damaged file leads to.
    """
    if data.lstrip().startswith(b'{'):
        return parse_json(path, json.loads(data), name)
    if data.startswith(b'#version') or path.removesuffix('.gz').endswith('.bpe'):
        vocab = json.loads(read_beside(path, 'encoder.json', 'vocab.json'))
        return from_pair(vocab, data, name)
    if LINE.fullmatch(data.splitlines()[0]):
        return from_tiktoken(data, name)
    if data[0] == 10 and b'<unk>' in data[:400]:  # field 1, the first piece
        return from_sentencepiece(data, name)
    try:
        config = json.loads(read_beside(path, 'tokenizer_config.json'))
    except ValueError:
        config = {}
    return from_vocab_txt(data, config, name)


def parse_json(path, content, name):
    """The same for JSON: our own file, tokenizer.json, or one of GPT-2's two."""
    if isinstance(content.get('format'), str):
        return content
    if isinstance(content.get('model'), dict):
        return from_spec(content, name)
    if not all(isinstance(i, int) for i in content.values()):
        raise ValueError('this JSON is no tokenizer: expected tokenizer.json, '
                         'or token -> id as in encoder.json')
    return from_pair(content, read_beside(path, 'vocab.bpe', 'merges.txt'), name)
