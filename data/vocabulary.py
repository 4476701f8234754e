"""The tokenizer that data is prepared with: what --tokenizer and --vocab_size name, and whether a folder has it."""
import functools, glob, hashlib, os

import bpe

BUILT_IN = ('bpe', 'char', 'byte', 'gpt2')

@functools.lru_cache(4)
def load_once(name, stamps):
    return bpe.load(name)

def load_tokenizer(name):
    "bpe.load, once for each state of its files: some take seconds"
    paths = [name] + sorted(glob.glob(os.path.join(glob.escape(name), '*')))
    try: return load_once(name, tuple(os.stat(p).st_mtime_ns for p in paths if os.path.exists(p)))
    except FileNotFoundError as e:
        raise ValueError(f'--tokenizer={name}: {e}; '
                         'expected bpe, char, byte, gpt2, or the path of a vocabulary') from None

def get_tokenizer(name, vocab_size, texts):
    "the tokenizer that a --tokenizer flag names; texts() -> the text it is trained on"
    if name == 'bpe': return bpe.train(texts(), vocab_size)
    if name == 'char': return bpe.char(''.join(set(t)) for t in texts())
    return bpe.byte() if name == 'byte' else load_tokenizer(name)

def tokenizer_tag(name, vocab_size):
    "short name for folders: bpe8192, char, byte, gpt2, or the name and a hash of a vocabulary file"
    if name == 'bpe': return f'bpe{vocab_size}'
    if name in BUILT_IN: return name
    tokenizer = load_tokenizer(name)
    return f'{tokenizer.name}-{hashlib.sha256(tokenizer.dumps().encode()).hexdigest()[:8]}'

def same_tokenizer(meta, tokenizer, vocab_size=0):
    "whether a prepared folder's tokenizer is the one asked for ('' asks for none, 0 for any size)"
    name = meta['name']
    if tokenizer in ('', 'bpe'):                         # a size means nothing to the others
        return name == f'bpe{vocab_size}' or not (vocab_size if name.startswith('bpe') else tokenizer)
    if tokenizer in BUILT_IN: return name == tokenizer
    asked = load_tokenizer(tokenizer)
    if meta['tokenizer'] == 'gpt2': return asked.vocab_size == meta['vocab_size']   # shards bring no vocabulary file
    return load_tokenizer(os.path.join(meta['folder'], meta['tokenizer'])).dumps() == asked.dumps()
