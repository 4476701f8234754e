"""The tokenizer that data is prepared with: what the flags --tokenizer and --vocab_size mean.

    bpe      byte pairs, trained on the text to --vocab_size ids
    char     an id for each character of the text
    byte     an id for each byte
    gpt2     GPT-2's, from tiktoken
    PATH     a vocabulary of your own: whatever bpe.load opens
"""
import functools
import glob
import hashlib
import os

import bpe

BUILT_IN = ('bpe', 'char', 'byte', 'gpt2')


@functools.lru_cache(4)
def load_once(name, stamps):
    """bpe.load, remembered for a name and the times at which its files were written."""
    return bpe.load(name)


def load_tokenizer(name):
    """The tokenizer of a name or path. It is loaded once, since some take seconds.

    Raises ValueError if there is none.
    """
    paths = [name] + sorted(glob.glob(os.path.join(glob.escape(name), '*')))
    stamps = tuple(os.stat(p).st_mtime_ns for p in paths if os.path.exists(p))
    try:
        return load_once(name, stamps)
    except FileNotFoundError as e:
        raise ValueError(f'--tokenizer={name}: {e}; '
                         'expected bpe, char, byte, gpt2, or the path of a vocabulary') from None


def get_tokenizer(name, vocab_size, texts):
    """The tokenizer that --tokenizer names. texts() -> the strings that bpe and char train on."""
    if name == 'bpe':
        return bpe.train(texts(), vocab_size)
    if name == 'char':
        return bpe.char(''.join(set(text)) for text in texts())
    if name == 'byte':
        return bpe.byte()
    return load_tokenizer(name)


def tokenizer_tag(name, vocab_size):
    """The short name of a tokenizer, which folders end in.

    It is bpe8192, char, byte or gpt2; of a vocabulary file, its name and a hash of its contents.
    """
    if name == 'bpe':
        return f'bpe{vocab_size}'
    if name in BUILT_IN:
        return name
    tokenizer = load_tokenizer(name)
    digest = hashlib.sha256(tokenizer.dumps().encode()).hexdigest()
    return f'{tokenizer.name}-{digest[:8]}'


def same_tokenizer(meta, tokenizer, vocab_size=0):
    """Whether a prepared folder has the tokenizer that is asked for.

    meta: the folder's meta.json, see data/opening.py
    tokenizer, vocab_size: the flags; '' asks for any tokenizer, 0 for any size
    """
    name = meta['name']
    if tokenizer in ('', 'bpe'):
        if name == f'bpe{vocab_size}':
            return True
        if name.startswith('bpe'):
            return not vocab_size
        return not tokenizer                            # a size means nothing to the others
    if tokenizer in BUILT_IN:
        return name == tokenizer
    asked = load_tokenizer(tokenizer)
    if meta['tokenizer'] == 'gpt2':                     # shards bring no vocabulary file
        return asked.vocab_size == meta['vocab_size']
    own = load_tokenizer(os.path.join(meta['folder'], meta['tokenizer']))
    return own.dumps() == asked.dumps()
