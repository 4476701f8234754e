"""Pre-tokenizers."""
import re

import regex

from lib.vocab.common import PATTERNS
from lib.vocab.normalizers import expression

BERT_PUNCTUATION = r'\p{P}!-/:-@\[-`{-~'


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
