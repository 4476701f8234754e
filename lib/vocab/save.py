"""Writes a tokenizer in the Hugging Face layout."""
import json
import os
import re

from lib.vocab.common import PATTERNS, added_token, write


def save_hf(tokenizer, path, cls, sep, double, segments, length):
    spec, name = tokenizer.spec(), {i: s for s, i in tokenizer.special.items()}
    if sep in name and (cls is None or cls in name) and \
            (spec.get('post_processor') or {}).get('type') in (None, 'ByteLevel'):  # a published one knows best
        mark = lambda i, side: [{'SpecialToken': {'id': name[i], 'type_id': side}}]
        text = lambda side: [{'Sequence': {'id': 'AB'[side], 'type_id': int(side and segments)}}]
        ends = mark(sep, 0), mark(sep, int(segments))
        single = (mark(cls, 0) if cls is not None else []) + text(0) + ends[0]
        spec = {**spec, 'post_processor': {
            'type': 'TemplateProcessing', 'single': single,
            'pair': single + (ends[0] if double else []) + text(1) + ends[1],
            'special_tokens': {name[i]: {'id': name[i], 'ids': [i], 'tokens': [name[i]]}
                               for i in (cls, sep) if i is not None}}}
    added = [added_token(s, i, s in tokenizer.special, tokenizer.strip.get(s, ''))
             for s, i in sorted({**tokenizer.added, **tokenizer.special}.items(), key=lambda item: item[1])]
    spec = {'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added, 'normalizer': None,
            'pre_tokenizer': None, 'post_processor': None, 'decoder': None, **spec}
    roles = dict(eos=tokenizer.eot, bos=tokenizer.bos, pad=tokenizer.pad, cls=tokenizer.cls, sep=tokenizer.sep, mask=tokenizer.mask, unk=tokenizer.unk)
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False,
              # without this line some versions give type ids to all models, and GPT-2 adds them to its input
              'model_input_names': ['input_ids', *['token_type_ids'] * segments, 'attention_mask'],
              **({'model_max_length': length} if length else {}),
              **{f'{role}_token': name[i] for role, i in roles.items() if i is not None}}
    os.makedirs(path, exist_ok=True)
    write(os.path.join(path, 'tokenizer.json'), json.dumps(spec, ensure_ascii=False))
    write(os.path.join(path, 'tokenizer_config.json'), json.dumps(config, ensure_ascii=False, indent=2))


def byte_level_spec(tokens, ids, pattern, published):
    rank, pairs = {t: r for r, t in enumerate(tokens) if t}, []
    for t, r in rank.items():
        parts = list(t)  # the merge that makes a token: the last two parts when all earlier merges are done
        while len(parts) > 2:
            i = min(range(len(parts) - 1), key=lambda i: rank.get(parts[i] + parts[i + 1], len(tokens)))
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        pairs += [parts] * (len(parts) == 2)
    level, cut = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True}, pattern
    if published:  # other engines know neither {1,3}+ nor this use of $; both change nothing but the time
        cut = re.sub(r'([+*?}])\+', r'\1', pattern.replace(r'\s++$|', ''))
    split = {'type': 'Split', 'pattern': {'Regex': cut}, 'behavior': 'Isolated', 'invert': False}
    pre = level | {'use_regex': True} if pattern == PATTERNS['gpt2'] else \
        {'type': 'Sequence', 'pretokenizers': [split, level | {'use_regex': False}]}
    return {'pre_tokenizer': pre, 'decoder': level | {'use_regex': True}, 'model': {
        'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
        'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False, 'ignore_merges': False,
        'vocab': {t: ids[r] if ids else r for t, r in rank.items()}, 'merges': pairs}}
