"""The normalizers of a tokenizer.json: functions str -> str that change a text before it is cut."""
import base64
import re
import struct
import unicodedata

import regex

BERT_CONTROL = regex.compile(r'(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}\ufffd]')
BERT_CHINESE = regex.compile(  # \U0002b920 (BERT: b820) as in `tokenizers`
    '[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f'
    '\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f]')
NOT_ASCII = re.compile(r'[\0-\x7f]?(?:[^\0-\x7f]+[\0-\x7f]?)+')
MAX_KEY = 99  # bytes of a key in sentencepiece's table of replacements
SMALL_GRAPHEME = 6  # `tokenizers` looks up a grapheme as a whole if it has fewer bytes


def normalizer(spec):
    """
    The function that "normalizer" describes; None describes the identity. ValueError if it is not
    supported.
    """
    if not spec:
        return sequence({})
    kind = spec['type']
    if kind not in KINDS:
        raise ValueError(f'its normalizer {kind} is not supported')
    return KINDS[kind](spec)


def sequence(spec):
    steps = [normalizer(s) for s in spec.get('normalizers', [])]

    def run(text):
        for step in steps:
            text = step(text)
        return text
    return run


def unicode_form(spec):
    """NFC, NFD, NFKC or NFKD."""
    form = spec['type']
    return lambda text: text if text.isascii() else unicodedata.normalize(form, text)


def lower(text):
    """Letter by letter: str.lower() alone would turn a final sigma into another letter."""
    if 'Σ' in text:
        return ''.join([c.lower() for c in text])
    return text.lower()


def strip_accents(spec):
    return lambda text: text if text.isascii() else regex.sub(r'\p{M}', '', text)


def prepend(spec):
    prefix = spec['prepend']
    return lambda text: prefix + text if text else text


def strip(spec):
    ends = []
    if spec['strip_left']:
        ends.append(r'^\s+')
    if spec['strip_right']:
        ends.append(r'\s+\Z')
    if not ends:
        return lambda text: text
    found = regex.compile('|'.join(ends))
    return lambda text: found.sub('', text)


def expression(pattern):
    """The compiled pattern of a stage: {"Regex": ...} or {"String": ...}."""
    if 'Regex' in pattern:
        return regex.compile(pattern['Regex'])
    return regex.compile(regex.escape(pattern['String']))


def replace(spec):
    find = expression(spec['pattern'])
    content = spec['content']
    return lambda text: find.sub(lambda match: content, text)


def bert(spec):
    """
    BERT's: cleans control characters, sets Chinese characters apart, strips accents, lower-cases.
    """
    clean_text = spec['clean_text']
    chinese = spec['handle_chinese_chars']
    lowercase = spec['lowercase']
    accents = spec.get('strip_accents')
    if accents is None:
        accents = lowercase

    def run(text):
        if clean_text:
            text = regex.sub(r'\s', ' ', BERT_CONTROL.sub('', text))
        if chinese and not text.isascii():
            text = BERT_CHINESE.sub(r' \g<0> ', text)
        if accents and not text.isascii():
            text = regex.sub(r'\p{Mn}', '', unicodedata.normalize('NFD', text))
        return lower(text) if lowercase else text
    return run


def precompiled_spec(spec):
    blob = base64.b64decode(spec['precompiled_charsmap'])
    return precompiled(blob, spec.get('longest', False))


def precompiled(blob, longest):
    """
    sentencepiece's table of replacements, applied to a text.

    longest: by sentencepiece's rule, the longest key at each place. Otherwise by that of
    `tokenizers`: for a grapheme of at most 5 bytes its shortest key stands for all of it, other
    graphemes go character by character.
    """
    table = replacements(blob)
    single = {ord(key): value for key, value in table.items() if len(key) == 1}
    longest_key = max(map(len, table), default=1)

    def by_longest(text):
        out = []
        at = 0
        while at < len(text):
            for n in range(longest_key, 0, -1):
                key = text[at:at + n]
                if key in table:
                    out.append(table[key])
                    at += n
                    break
            else:
                out.append(text[at])
                at += 1
        return ''.join(out)

    def grapheme(cluster):
        if len(cluster.encode()) < SMALL_GRAPHEME:
            for n in range(1, len(cluster) + 1):
                if cluster[:n] in table:
                    return table[cluster[:n]]
        return cluster.translate(single)

    def by_grapheme(text):
        return ''.join(map(grapheme, regex.findall(r'\X', text)))

    def run(text):
        out = []
        at = 0
        for match in NOT_ASCII.finditer(text):  # in ASCII no key has two characters
            out.append(text[at:match.start()].translate(single))
            out.append(by_longest(match[0]) if longest else by_grapheme(match[0]))
            at = match.end()
        return ''.join(out) + text[at:].translate(single)
    return run


def replacements(blob):
    """
    {key: replacement} of sentencepiece's table: the size of a double-array trie (darts-clone) of
    UTF-8 keys, its units, then the replacements, each with a zero byte after it.

    A unit has a label (a byte of the key; bits 0 to 7), whether a key ends there (bit 8) and the
    offset from its own place to its base (bits 10 to 30, times 256 if bit 9 is set). Its child for
    label c lies at base ^ c, and at base ^ 0, marked by bit 31, where its replacement starts.
    ValueError if the trie goes in circles.
    """
    if not blob:
        return {}
    size, = struct.unpack_from('<I', blob)
    units = struct.unpack_from(f'<{size // 4}I', blob, 4)
    text = blob[4 + size:]
    children = {}  # base -> places of the units that have it as their parent's
    for at, unit in enumerate(units):
        label = unit & 255
        if unit >> 31 == 0 and label:
            children.setdefault(at ^ label, []).append(at)

    table = {}
    steps = 0
    todo = [(offset(units[0]), b'')]
    while todo:
        base, key = todo.pop()
        if len(key) > MAX_KEY:
            raise ValueError('damaged: its table of replacements goes in circles')
        for at in children.get(base, ()):
            unit = units[at]
            steps += 1
            child_base = at ^ offset(unit)
            child_key = key + bytes([unit & 255])
            todo.append((child_base, child_key))
            if unit >> 8 & 1:
                start = units[child_base] & 0x7fffffff
                table[child_key.decode()] = text[start:text.index(b'\0', start)].decode()
        if steps > 64 * len(units):  # (tails are shared, so some units are met several times)
            raise ValueError('damaged: its table of replacements goes in circles')
    return table


def offset(unit):
    """The distance from a unit of the trie to its base."""
    scale = 8 if unit & 512 else 0
    return unit >> 10 << scale


KINDS = {
    'Sequence': sequence,
    'NFC': unicode_form,
    'NFD': unicode_form,
    'NFKC': unicode_form,
    'NFKD': unicode_form,
    'Lowercase': lambda spec: lower,
    'StripAccents': strip_accents,
    'Prepend': prepend,
    'Strip': strip,
    'Replace': replace,
    'BertNormalizer': bert,
    'Precompiled': precompiled_spec,
}
