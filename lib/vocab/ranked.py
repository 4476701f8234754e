"""Ranked."""
from lib.vocab.common import PATTERNS, check_id, description, visible

RANKED = {  # *.tiktoken files carry neither pattern nor special tokens: known by their number of ranks
    50256: ('gpt2', {'<|endoftext|>': 50256}),
    100256: ('cl100k', {'<|endoftext|>': 100257, '<|fim_prefix|>': 100258, '<|fim_middle|>': 100259,
                        '<|fim_suffix|>': 100260, '<|endofprompt|>': 100276}),
    199998: ('o200k', {'<|endoftext|>': 199999, '<|endofprompt|>': 200018}),
    128000: ('cl100k', {s: 128000 + i for i, s in enumerate(  # Llama 3
        ['<|begin_of_text|>', '<|end_of_text|>', '<|reserved_special_token_0|>', '<|reserved_special_token_1|>',
         '<|finetune_right_pad_id|>', '<|step_id|>', '<|start_header_id|>', '<|end_header_id|>', '<|eom_id|>',
         '<|eot_id|>', '<|python_tag|>'] + [f'<|reserved_special_token_{i}|>' for i in range(2, 247)])}),
}


def ranked(ranks, pattern, special, name):
    for token, rank in ranks.items():
        check_id(rank, token)
    tokens = [''] * (max(ranks.values()) + 1)
    for token, rank in ranks.items():
        tokens[rank] = visible(token)
    pattern = next((k for k, p in PATTERNS.items() if p == pattern), pattern)
    return description('bpe', name=name, tokens=tokens, pattern=pattern, special=dict(special))
