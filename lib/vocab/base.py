"""
What all kinds of tokenizers share: the class Tokenizer. bpe.py and pipeline.py have the kinds.
"""
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from lib.vocab import save
from lib.vocab.common import ROLES, check_id, description, write

# bytes that are no UTF-8, as Python's 'surrogateescape' writes them
UNDECODABLE = re.compile('([\udc80-\udcff]+)')
SPACES = re.compile(r'\s*')
SENTINEL = re.compile(r'▁?<(?:\|sentinel_|extra_id_)(\d+)\|?>')


def any_of(names):
    """A regular expression that finds the names, the longest first; None if there are none."""
    if not names:
        return None
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile('|'.join(map(re.escape, longest_first)))


class Tokenizer:
    """
    Special tokens, encode, decode and files, as all kinds of tokenizers have them. A kind defines

        setup(**state) -> list of bytes, the text that each id stands for
        plain(text, first) -> ids of text without special tokens; first: nothing stands before it

    and more where it can be faster. `state` is what the constructor gets and what the file of a
    tokenizer holds:

        name     what it is called
        special  {name of a special token: id}
        added    {text: id} of tokens that are not special, yet never cut: found in every text
        strip    {name: 'l', 'r' or 'lr'}: tokens that take the white space on that side with them

    Attributes: tokens (bytes of each id), vocab_size, sentinels (ids in their order), and eot, pad,
    cls, sep, mask, unk, bos: ids, or None where the vocabulary has no such token.
    """

    def __init__(self, **state):
        self.state = state
        self.name = state['name']
        self.special = dict(state['special'])
        if not isinstance(self.name, str):
            raise ValueError(f'its name is {str(self.name)[:40]}; expected a text')
        self.added = dict(state.get('added') or {})
        self.strip = state.get('strip') or {}

        named = {**self.added, **self.special}
        for text, i in named.items():
            check_id(i, text)
        self.tokens = self.setup(**state)
        for text, i in named.items():
            missing = i + 1 - len(self.tokens)
            self.tokens += [b''] * missing
            self.tokens[i] = self.tokens[i] or text.encode()
        self.vocab_size = len(self.tokens)

        for role, names in ROLES.items():
            found = (self.special[s] for s in names if s in self.special)
            setattr(self, role, next(found, None))
        numbered = [(SENTINEL.fullmatch(text), i) for text, i in named.items()]
        self.sentinels = [i for _, i in sorted((int(m[1]), i) for m, i in numbered if m)]
        self.find_added = any_of(self.added)
        self.find_named = any_of(named)

    def setup(self, **state):
        raise NotImplementedError

    def plain(self, text, first=True):
        raise NotImplementedError

    def encode(self, text, special=False):
        """
        The ids of a string, or of bytes that need not be UTF-8. special: the names of special
        tokens become their ids; otherwise they are text like any other.
        """
        if isinstance(text, bytes):
            return self.encode_bytes(text, special)
        finder = self.find_named if special else self.find_added
        if not finder:
            return self.plain(text)
        ids = []
        at = 0
        for match in finder.finditer(text):
            token = match[0]
            sides = self.strip.get(token, '')
            before = text[at:match.start()]
            if 'l' in sides:
                before = before.rstrip()
            if before:
                ids += self.plain(before, at == 0)
            ids.append(self.added[token] if token in self.added else self.special[token])
            at = match.end()
            if 'r' in sides:
                at = SPACES.match(text, at).end()
        if at < len(text):
            ids += self.plain(text[at:], at == 0)
        return ids

    def encode_bytes(self, data, special):
        """The ids of bytes: stretches of UTF-8 as text, those between them by raw()."""
        ids = []
        parts = UNDECODABLE.split(data.decode('utf-8', 'surrogateescape'))
        for n, part in enumerate(parts):
            if n % 2:
                ids += self.raw(part.encode('utf-8', 'surrogateescape'))
            else:
                ids += self.encode(part, special)
        return ids

    def raw(self, data):
        """The ids of bytes that are no text."""
        return self.encode(data.decode('utf-8', 'replace'))

    def encode_batch(self, texts, special=False):
        """The ids of each text, on all cores."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda text: self.encode(text, special), texts))

    def encode_numpy(self, text):
        """The ids of plain text: uint32 (n,)."""
        return np.array(self.encode(text), np.uint32)

    def decode_bytes(self, ids):
        """The bytes that ids stand for."""
        tokens = self.tokens
        return b''.join([tokens[i] for i in ids])

    def decode(self, ids):
        """The text that ids stand for. Bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode('utf-8', 'replace')

    @cached_property
    def byte_lengths(self):
        """How many bytes of text each id stands for, 0 for special tokens: int32 (vocab_size,)."""
        lengths = np.array([len(t) for t in self.tokens], np.int32)
        lengths[list(self.special.values())] = 0
        return lengths

    def dumps(self):
        """The tokenizer as JSON, for bpe.loads."""
        kind = type(self).__name__.lower()
        return json.dumps(description(kind, **self.state), ensure_ascii=False)

    def save(self, path):
        """Writes our own file, for bpe.load."""
        write(path, self.dumps())

    def save_hf(self, path, cls=None, sep=None, double=False, segments=False, length=0):
        """Writes tokenizer.json and tokenizer_config.json into the folder `path`: see save.py."""
        save.save_hf(self, path, cls, sep, double, segments, length)

    def spec(self):
        """The stages of a tokenizer.json. ValueError if there are none for this kind."""
        kind = type(self).__name__.lower()
        raise ValueError(f'a {kind} tokenizer has no tokenizer.json: train one with --model=bpe')

    def __reduce__(self):
        """
        Pickles as class and state: what setup makes of them, such as tiktoken's tables, is made
        anew.
        """
        return rebuild, (type(self), self.state)


def rebuild(kind, state):
    """The tokenizer that was pickled."""
    return kind(**state)
