"""tokenizer.json and GPT-2's pair of files."""
from lib.vocab.common import INVISIBLE, PATTERNS, added_token, description
from lib.vocab.models import byte_level, joined
from lib.vocab.splitters import only_pattern


def from_pair(vocab, merges, name):
    """GPT-2's two files; tokens that no merge makes (<|endoftext|>, <s>, <mask>) are the special ones."""
    lines = merges.decode().split('\n')
    model = {'type': 'BPE', 'vocab': vocab,
             'merges': [line for line in lines if line.strip() and not line.startswith('#version')]}
    if any(line.count(' ') != 1 for line in model['merges']):
        raise ValueError('damaged: a line of the merges does not hold two tokens')
    made = joined(model)
    if any(t not in vocab for t in made):
        raise ValueError(f'damaged: the merges make {next(t for t in made if t not in vocab)!r}, '
                         'which the vocabulary lacks')
    special = [t for t in vocab if t not in made and t not in INVISIBLE]
    return from_spec({
        'model': model, 'added_tokens': [added_token(t, vocab[t], True, 'l' * (t == '<mask>')) for t in special],
        'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True},
        'decoder': {'type': 'ByteLevel'}}, name)


def from_spec(spec, name):
    """The tokenizer that a tokenizer.json describes."""
    model, pre = spec['model'], spec.get('pre_tokenizer')
    model.setdefault('type', 'BPE' if 'merges' in model else 'Unigram' if 'unk_id' in model else 'WordPiece')
    state = {'name': name, 'special': {}, 'added': {}, 'strip': {}}
    for t in spec.get('added_tokens', []):
        state['special' if t.get('special', True) else 'added'][t['content']] = t['id']
        if t.get('lstrip') or t.get('rstrip'):
            state['strip'][t['content']] = 'l' * bool(t.get('lstrip')) + 'r' * bool(t.get('rstrip'))
    stages = [] if not pre else pre.get('pretokenizers', [pre])
    if model['type'] == 'BPE' and not spec.get('normalizer') and any(s['type'] == 'ByteLevel' for s in stages):
        tokens, ids = byte_level(model, state['special'])
        pattern = only_pattern(pre)
        if pattern and min(ids) >= 0 and not (model.get('continuing_subword_prefix')
                                              or model.get('end_of_word_suffix')):
            pattern = next((k for k, p in PATTERNS.items() if p == pattern), pattern)
            return description('bpe', **state, tokens=tokens, ids=None if ids == list(range(len(ids))) else ids, pattern=pattern)
    return description('pipeline', **state, spec={k: v for k, v in spec.items() if k != 'added_tokens'})
