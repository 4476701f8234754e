"""
tokenizer.json, and two layouts that are turned into it: encoder.json + vocab.bpe, and vocab.txt.
"""
from lib.vocab.common import INVISIBLE, added_token, description, pattern_name
from lib.vocab.models import byte_level, joined
from lib.vocab.splitters import only_pattern, stages_of

BERT_SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')


def from_spec(spec, name):
    """
    The description of the tokenizer that a tokenizer.json holds: byte-level BPE, or a pipeline of
    its stages.
    """
    model = spec['model']
    model.setdefault('type', model_type(model))
    state = {'name': name, 'special': {}, 'added': {}, 'strip': {}}
    for token in spec.get('added_tokens', []):
        text = token['content']
        group = 'special' if token.get('special', True) else 'added'
        state[group][text] = token['id']
        sides = ''
        if token.get('lstrip'):
            sides += 'l'
        if token.get('rstrip'):
            sides += 'r'
        if sides:
            state['strip'][text] = sides
    as_bpe = byte_level_bpe(spec, state['special'])
    if as_bpe:
        return description('bpe', **state, **as_bpe)
    stages = {key: value for key, value in spec.items() if key != 'added_tokens'}
    return description('pipeline', **state, spec=stages)


def model_type(model):
    """The type of a model in older files, which do not name it."""
    if 'merges' in model:
        return 'BPE'
    return 'Unigram' if 'unk_id' in model else 'WordPiece'


def byte_level_bpe(spec, special):
    """
    tokens, ids and pattern of a tokenizer.json that is nothing but byte-level BPE on one pattern;
    else None.
    """
    model = spec['model']
    pre_tokenizer = spec.get('pre_tokenizer')
    level = any(stage['type'] == 'ByteLevel' for stage in stages_of(pre_tokenizer))
    if model['type'] != 'BPE' or spec.get('normalizer') or not level:
        return None
    tokens, ids = byte_level(model, special)
    pattern = only_pattern(pre_tokenizer)
    affixes = model.get('continuing_subword_prefix') or model.get('end_of_word_suffix')
    if not pattern or min(ids) < 0 or affixes:
        return None
    ranks = list(range(len(ids)))
    return {
        'tokens': tokens,
        'ids': None if ids == ranks else ids,
        'pattern': pattern_name(pattern),
    }


def from_pair(vocab, merges, name):
    """
    The description of GPT-2's two files: vocab {token: id} and the bytes of the list of merges.
    Tokens that no merge makes (<|endoftext|>, <s>, <mask>) are the special ones.
    """
    lines = merges.decode().split('\n')
    lines = [line for line in lines if line.strip() and not line.startswith('#version')]
    if any(line.count(' ') != 1 for line in lines):
        raise ValueError('damaged: a line of the merges does not hold two tokens')
    model = {'type': 'BPE', 'vocab': vocab, 'merges': lines}
    made = joined(model)
    for token in made:
        if token not in vocab:
            raise ValueError(f'damaged: the merges make {token!r}, which the vocabulary lacks')
    special = [t for t in vocab if t not in made and t not in INVISIBLE]
    pre_tokenizer = {
        'type': 'ByteLevel',
        'add_prefix_space': False,
        'trim_offsets': True,
        'use_regex': True,
    }
    spec = {
        'model': model,
        'added_tokens': [
            added_token(t, vocab[t], sides='l' if t == '<mask>' else '') for t in special
        ],
        'pre_tokenizer': pre_tokenizer,
        'decoder': {'type': 'ByteLevel'},
    }
    return from_spec(spec, name)


def from_vocab_txt(data, config, name):
    """
    The description of BERT's vocab.txt, a token a line. config: the tokenizer_config.json beside
    it, {} if there is none. Without it, a vocabulary that has upper-case letters is one of text
    that keeps them.
    """
    lines = data.decode().rstrip('\n').split('\n')
    vocab = {line.rstrip('\r'): i for i, line in enumerate(lines)}
    if '[UNK]' not in vocab:
        raise ValueError('not a tokenizer: expected our own JSON, tokenizer.json, encoder.json, '
                         'vocab.bpe, a .tiktoken file, a sentencepiece model or a vocab.txt with [UNK]')
    upper = any(t != t.lower() for t in vocab if t[:1] != '[')
    spec = {
        'added_tokens': [added_token(s, vocab[s]) for s in BERT_SPECIAL if s in vocab],
        'normalizer': {
            'type': 'BertNormalizer',
            'clean_text': True,
            'strip_accents': config.get('strip_accents'),
            'handle_chinese_chars': config.get('tokenize_chinese_chars', True),
            'lowercase': config.get('do_lower_case', not upper),
        },
        'pre_tokenizer': {'type': 'BertPreTokenizer'},
        'decoder': {'type': 'WordPiece', 'prefix': '##', 'cleanup': True},
        'model': {
            'type': 'WordPiece',
            'unk_token': '[UNK]',
            'continuing_subword_prefix': '##',
            'max_input_chars_per_word': 100,
            'vocab': vocab,
        },
    }
    return from_spec(spec, name)
