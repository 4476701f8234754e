"""Normalizers."""
import base64
import re
import struct
import unicodedata
from functools import reduce

import regex

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
