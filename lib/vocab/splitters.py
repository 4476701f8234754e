"""
The pre-tokenizers of a tokenizer.json: functions that cut a text into pieces, (text, first) -> list
of strings.

first: whether the text begins the input. The models then cut each piece on its own.
"""
import re

import regex

from lib.vocab.common import PATTERNS
from lib.vocab.normalizers import expression

BERT_PUNCTUATION = r'\p{P}!-/:-@\[-`{-~'
EVERYTHING = r'[\s\S]+'


def splitter(spec):
    """
    The function that "pre_tokenizer" describes; None leaves a text whole. ValueError if it is not
    supported.
    """
    if not spec:
        return sequence({})
    kind = spec['type']
    if kind not in KINDS:
        raise unsupported(spec)
    return KINDS[kind](spec)


def unsupported(spec):
    kind = spec['type']
    behavior = spec.get('behavior', '')
    return ValueError(f'its pre_tokenizer {kind} {behavior} is not supported')


def sequence(spec):
    """Each step cuts the pieces of the one before."""
    steps = [splitter(s) for s in spec.get('pretokenizers', [])]

    def run(text, first):
        pieces = [text]
        for step in steps:
            cut = []
            for i, piece in enumerate(pieces):
                cut += step(piece, first and i == 0)
            pieces = cut
        return pieces
    return run


def all_matches(pattern):
    """The pieces are the matches of a pattern; what lies between them is dropped."""
    find = regex.compile(pattern)
    return lambda text, first: find.findall(text)


def byte_level(spec):
    """GPT-2's pattern, perhaps after a space in front. (The models turn characters into bytes.)"""
    find = regex.compile(PATTERNS['gpt2'] if spec.get('use_regex', True) else EVERYTHING)
    add_space = spec.get('add_prefix_space', True)

    def run(text, first):
        if add_space and not text.startswith(' '):
            text = ' ' + text
        return find.findall(text)
    return run


def metaspace(spec):
    """Spaces become a mark (▁), perhaps with one in front, and every mark begins a piece."""
    mark = spec['replacement']
    older = 'always' if spec.get('add_prefix_space', True) else 'never'  # how older files say it
    scheme = spec.get('prepend_scheme', older)
    find = re.compile(f'{mark}[^{mark}]*|[^{mark}]+' if spec.get('split', True) else EVERYTHING)

    def run(text, first):
        text = text.replace(' ', mark)
        wanted = scheme == 'always' or scheme == 'first' and first
        if wanted and not text.startswith(mark):
            text = mark + text
        return find.findall(text)
    return run


def split(spec):
    """The matches of a pattern and the stretches between them, in order."""
    if spec['behavior'] != 'Isolated':
        raise unsupported(spec)
    find = expression(spec['pattern'])
    return lambda text, first: isolate(text, find)


def isolate(text, find):
    """The matches of the compiled pattern `find` and the stretches between them, in order."""
    pieces = []
    at = 0
    for match in find.finditer(text):
        pieces += [text[at:match.start()], match[0]]
        at = match.end()
    pieces.append(text[at:])
    return [piece for piece in pieces if piece]


def bert(spec):
    """Words, and every punctuation character on its own; white space is dropped."""
    return all_matches(rf'[{BERT_PUNCTUATION}]|[^\s{BERT_PUNCTUATION}]+')


def whitespace_split(spec):
    return all_matches(r'\S+')


def digits(spec):
    """Runs of digits, or single digits, and what lies between them."""
    return all_matches(r'\p{N}|\P{N}+' if spec.get('individual_digits') else r'\p{N}+|\P{N}+')


KINDS = {
    'Sequence': sequence,
    'ByteLevel': byte_level,
    'Metaspace': metaspace,
    'Split': split,
    'BertPreTokenizer': bert,
    'WhitespaceSplit': whitespace_split,
    'Digits': digits,
}

# GPT-2's pattern after single digits have been set apart, as in SmolLM
GPT2_SINGLE_DIGITS = (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++"
                      r'|\s++$|\s+(?![^\s\p{N}])|\s')


def stages_of(spec):
    """The stages of a pre_tokenizer as a list."""
    if not spec:
        return []
    return spec.get('pretokenizers', [spec])


def only_pattern(spec):
    """
    The pattern that alone does what a byte-level pre_tokenizer does, for tiktoken; None if there is
    none.
    """
    stages = [spec] if spec['type'] != 'Sequence' else spec['pretokenizers']
    last = stages[-1]
    if last.get('add_prefix_space') or len(stages) > 2:
        return None
    use_regex = last.get('use_regex', True)
    if len(stages) == 1:
        return PATTERNS['gpt2'] if use_regex else EVERYTHING
    before = stages[0]
    isolated = before['type'] == 'Split' and before['behavior'] == 'Isolated'
    if isolated and not before.get('invert') and not use_regex and 'Regex' in before['pattern']:
        return before['pattern']['Regex'] + r'|[\s\S]'
    if before == {'type': 'Digits', 'individual_digits': True} and use_regex:
        return GPT2_SINGLE_DIGITS
    return None
