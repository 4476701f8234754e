"""tiktoken's vocabularies: *.tiktoken files and those that it knows by name."""
import base64
import re

import tiktoken

from lib.vocab.common import PATTERNS, check_id, description, pattern_name, visible

LINE = re.compile(rb'[A-Za-z0-9+/]+=* \d+')  # a token in base64 and its rank

LLAMA3 = [
    '<|begin_of_text|>', '<|end_of_text|>', '<|reserved_special_token_0|>',
    '<|reserved_special_token_1|>', '<|finetune_right_pad_id|>', '<|step_id|>',
    '<|start_header_id|>', '<|end_header_id|>', '<|eom_id|>', '<|eot_id|>', '<|python_tag|>',
    *(f'<|reserved_special_token_{i}|>' for i in range(2, 247)),
]
# The files carry neither pattern nor special tokens. Both are known by the number of ranks.
RANKED = {
    50256: ('gpt2', {'<|endoftext|>': 50256}),
    100256: ('cl100k', {
        '<|endoftext|>': 100257, '<|fim_prefix|>': 100258, '<|fim_middle|>': 100259,
        '<|fim_suffix|>': 100260, '<|endofprompt|>': 100276,
    }),
    199998: ('o200k', {'<|endoftext|>': 199999, '<|endofprompt|>': 200018}),
    128000: ('cl100k', {name: 128000 + i for i, name in enumerate(LLAMA3)}),
}


def from_tiktoken(data, name):
    """The description of the tokenizer in a *.tiktoken file's bytes."""
    lines = map(bytes.split, filter(None, data.splitlines()))
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    unknown = ('cl100k', {'<|endoftext|>': max(ranks.values()) + 1})
    pattern, special = RANKED.get(len(ranks), unknown)
    if not all(bytes([b]) in ranks for b in range(256)):
        raise ValueError('damaged: not all of the 256 bytes have a rank')
    return ranked(ranks, PATTERNS[pattern], special, name)


def from_name(name):
    """
    The description of a vocabulary that tiktoken fetches by its name. FileNotFoundError if it knows
    no such name.
    """
    names = tiktoken.list_encoding_names()
    if name not in names:
        raise FileNotFoundError(f'{name}: no such file or folder, nor one of the names byte, '
                                f'{", ".join(names)}')
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:
        kind = type(error).__name__
        raise ValueError(f'{name}: tiktoken could not fetch it ({kind}); give a file with it instead, '
                         'such as encoder.json + vocab.bpe or a .tiktoken file') from None
    return ranked(encoding._mergeable_ranks, encoding._pat_str, encoding._special_tokens, name)


def ranked(ranks, pattern, special, name):
    """The description of byte-level BPE with {token (bytes): rank}; the ids are the ranks."""
    for token, rank in ranks.items():
        check_id(rank, token)
    tokens = [''] * (max(ranks.values()) + 1)
    for token, rank in ranks.items():
        tokens[rank] = visible(token)
    pattern = pattern_name(pattern)
    return description('bpe', name=name, tokens=tokens, pattern=pattern, special=dict(special))
