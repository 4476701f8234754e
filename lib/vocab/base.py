"""What all kinds of tokenizers share."""
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from lib.vocab.common import ROLES, check_id, description, write

UNDECODABLE, SPACES = re.compile('([\udc80-\udcff]+)'), re.compile(r'\s*')


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
        return json.dumps(description(kind, **self.state), ensure_ascii=False)

    def save(self, path):
        write(path, self.dumps())

    def save_hf(self, path, cls=None, sep=None, double=False, segments=False, length=0):
        """
        Writes tokenizer.json, and beside it what transformers' AutoTokenizer asks for; path: a folder. sep, cls: ids
        that the model puts around texts, so that transformers does: (cls) a sep, for two (cls) a sep b sep, `double`
        with two between them. segments: the model tells the second text's tokens apart. length: what it reads at most.
        """
        from lib.vocab import save
        save.save_hf(self, path, cls, sep, double, segments, length)

    def spec(self):
        raise ValueError(f'a {type(self).__name__.lower()} tokenizer has no tokenizer.json: train one with --model=bpe')

    def __reduce__(self):  # pickles as its state
        return rebuild, (type(self), self.state)


def rebuild(kind, state):
    return kind(**state)
