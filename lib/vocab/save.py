"""Writes a tokenizer in the layout that Hugging Face's libraries read."""
import json
import math
import os
import re

from lib.vocab.common import PATTERNS, added_token, write


def save_hf(tokenizer, path, cls=None, sep=None, double=False, segments=False, length=0):
    """
    Writes tokenizer.json, and beside it what transformers' AutoTokenizer asks for, into the folder
    `path`.

    cls, sep: ids that the model puts around texts, so that transformers does the same: (cls) a sep,
    and for two texts (cls) a sep b sep. double: two sep between them. segments: the model tells the
    tokens of the second text apart by their type. length: how many ids the model reads at most, 0
    if that has no limit.
    """
    spec = tokenizer.spec()
    names = {i: text for text, i in tokenizer.special.items()}
    published = (spec.get('post_processor') or {}).get('type')
    known = sep in names and (cls is None or cls in names)
    if known and published in (None, 'ByteLevel'):  # any other one that was read knows best
        spec = {**spec, 'post_processor': frame(names, cls, sep, double, segments)}

    tokens = {**tokenizer.added, **tokenizer.special}
    added = [
        added_token(text, i, text in tokenizer.special, tokenizer.strip.get(text, ''))
        for text, i in sorted(tokens.items(), key=lambda item: item[1])
    ]
    spec = {
        'version': '1.0',
        'truncation': None,
        'padding': None,
        'added_tokens': added,
        'normalizer': None,
        'pre_tokenizer': None,
        'post_processor': None,
        'decoder': None,
        **spec,
    }

    # without "model_input_names" some versions give type ids to all models, and GPT-2 adds them to
    # its input
    inputs = ['input_ids', 'attention_mask']
    if segments:
        inputs.insert(1, 'token_type_ids')
    config = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'clean_up_tokenization_spaces': False,
        'model_input_names': inputs,
    }
    if length:
        config['model_max_length'] = length
    roles = {
        'eos': tokenizer.eot,
        'bos': tokenizer.bos,
        'pad': tokenizer.pad,
        'cls': tokenizer.cls,
        'sep': tokenizer.sep,
        'mask': tokenizer.mask,
        'unk': tokenizer.unk,
    }
    for role, i in roles.items():
        if i is not None:
            config[f'{role}_token'] = names[i]

    os.makedirs(path, exist_ok=True)
    write(os.path.join(path, 'tokenizer.json'), json.dumps(spec, ensure_ascii=False))
    config_path = os.path.join(path, 'tokenizer_config.json')
    write(config_path, json.dumps(config, ensure_ascii=False, indent=2))


def frame(names, cls, sep, double, segments):
    """
    The "post_processor" that puts cls and sep around one text and around two. names: id -> text.
    """
    second = int(segments)  # the type of the second text's tokens

    def token(i, type_id):
        return [{'SpecialToken': {'id': names[i], 'type_id': type_id}}]

    def text(which, type_id):
        return [{'Sequence': {'id': which, 'type_id': type_id}}]

    single = text('A', 0) + token(sep, 0)
    if cls is not None:
        single = token(cls, 0) + single
    between = token(sep, 0) if double else []
    used = [i for i in (cls, sep) if i is not None]
    return {
        'type': 'TemplateProcessing',
        'single': single,
        'pair': single + between + text('B', second) + token(sep, second),
        'special_tokens': {
            names[i]: {'id': names[i], 'ids': [i], 'tokens': [names[i]]} for i in used
        },
    }


def byte_level_spec(tokens, ids, pattern):
    """
    The stages of byte-level BPE.

    tokens: by rank, spelled visibly; '' for a rank that has none. ids: each rank's id, None if they
    are the ranks. pattern: the regular expression that cuts text.
    """
    rank = {token: r for r, token in enumerate(tokens) if token}
    merges = [m for m in (last_merge(token, rank) for token in rank) if m]

    exported = pattern
    if pattern in PATTERNS.values():
        # other engines know neither {1,3}+ nor this use of $; both change nothing but the time
        exported = pattern.replace(r'\s++$|', '')
        exported = re.sub(r'([+*?}])\+', r'\1', exported)
    level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True}
    if pattern == PATTERNS['gpt2']:
        pre_tokenizer = level | {'use_regex': True}
    else:
        regex = {'Regex': exported}
        split = {'type': 'Split', 'pattern': regex, 'behavior': 'Isolated', 'invert': False}
        pre_tokenizer = {
            'type': 'Sequence',
            'pretokenizers': [split, level | {'use_regex': False}],
        }
    return {
        'pre_tokenizer': pre_tokenizer,
        'decoder': level | {'use_regex': True},
        'model': {
            'type': 'BPE',
            'dropout': None,
            'unk_token': None,
            'continuing_subword_prefix': None,
            'end_of_word_suffix': None,
            'fuse_unk': False,
            'byte_fallback': False,
            'ignore_merges': False,
            'vocab': {token: ids[r] if ids else r for token, r in rank.items()},
            'merges': merges,
        },
    }


def last_merge(token, rank):
    """
    The merge that makes a token: the two parts that are left when all earlier merges are done.
    None for a single byte.
    """
    parts = list(token)
    while len(parts) > 2:
        pairs = [a + b for a, b in zip(parts, parts[1:])]
        i = min(range(len(pairs)), key=lambda i: rank.get(pairs[i], math.inf))
        parts[i:i + 2] = [pairs[i]]
    return parts if len(parts) == 2 else None
