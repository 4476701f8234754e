"""Prompts and files of examples for sample.py, rows of a model file's kind in batches, progress, reports."""
import dataclasses
import json
import os
import re
import sys
import types

import numpy as np
import torch

from data import files
from lib import models


def read_prompt(prompt, flag='prompt'):
    if prompt == '-': return sys.stdin.read()
    if not prompt.startswith('FILE:'):
        if os.path.isfile(prompt): print(f'--{flag}={prompt} is taken as a text; --{flag}=FILE:{prompt} reads the file', file=sys.stderr)
        elif flag == 'context' and re.fullmatch(r'\S+\.(jsonl|txt|tsv|md)', prompt): raise ValueError(f'--context={prompt}: No such file')
        return prompt
    try: return open(prompt[5:], encoding='utf-8', newline='').read()
    except UnicodeDecodeError as e: raise ValueError(f'--{flag}={prompt}: not UTF-8 text (byte {e.start})') from None
    except OSError as e: raise ValueError(f'--{flag}={prompt}: {e.strerror}') from None


def objects(path, lines, expected):
    """Lines of JSON -> (line number, dict) of each that is not empty"""
    for number, line in enumerate(lines, 1):
        if not line.strip(): continue
        try: item = json.loads(line)
        except (ValueError, RecursionError) as e: raise ValueError(f'{path} line {number}: not JSON ({str(e)[:80]}); expected {expected}') from None
        if not isinstance(item, dict): raise ValueError(f'{path} line {number}: a {type(item).__name__}; expected {expected}')
        yield number, item


def show_progress(done, total):
    if sys.stderr.isatty(): print(f'\r{done}/{total}', end='\r' if done < total else '\r\033[K', file=sys.stderr, flush=True)


def inputs(flag, value, columns, bare=True):
    """What --flag=value names -> [dict]. columns: names that a line of .jsonl must have, ?: may have, *: a list of texts.
    A plain line is the first of them; where there must be several texts, they stand with tabs between. bare: a path needs
    no FILE: in front."""
    from data import supervised
    path = value[5:] if value.startswith('FILE:') else \
        value if bare and (os.path.isfile(value) or re.fullmatch(r'\S+\.(jsonl|txt|tsv)', value)) else ''
    text, first = read_prompt(path and 'FILE:' + path or value, flag), columns.split()[0]
    lines = text.replace('\r\n', '\n').removesuffix('\n').split('\n') if path or value == '-' else [text]
    must = [c for c in columns.split() if '?' not in c and '*' not in columns]
    def plain(line):
        if len(must) < 2: return {first.strip('*'): line.split() if '*' in first else line}
        parts = line.split('\t')
        if len(parts) == len(must): return dict(zip(must, parts))
        raise ValueError(f'{path or "--" + flag}{f" line {lines.index(line) + 1}" * (len(lines) > 1)}: {len(parts)} text{"s" * (len(parts) > 1)}; '
                         f'expected {" and ".join(must)} with a tab between, or a .jsonl file with these columns')
    rows = dict(objects(path, lines, f'an object with {columns}') if path.endswith('.jsonl') else enumerate(map(plain, lines), 1))
    for number, row in rows.items():
        for name in (c.strip('?*') for c in columns.split() if '?' not in c or c.strip('?*') in row):
            texts = lambda x: isinstance(x, list) and all(isinstance(t, str) for t in x) and (x or name == 'tokens')
            supervised.need(row, name, path or f'--{flag}', number, *((texts, 'a list of strings') if name + '*' in columns else ()))
    if not rows: raise ValueError(f'--{flag}={value}: no lines')
    return [*rows.values()]


def report(records, config, text):
    """Prints the records, or writes them to --out: a line of JSON each, or text(record). -> {'records'}"""
    lines = [json.dumps(r, ensure_ascii=False) if config.json or config.out.endswith('.jsonl') else text(r) for r in records]
    if config.out: files.write_atomic(config.out, lambda f: f.write(''.join(line + '\n' for line in lines).encode()))
    else: print('\n'.join(lines), flush=True)
    return dict(records=records)


def file_of(model): return sys.modules[type(model).__module__]


class Spelled:
    """A tokenizer that reads the special tokens which are spelled out in a text."""
    def __init__(self, tokenizer): self.tokenizer = tokenizer
    def __getattr__(self, name): return getattr(self.tokenizer, name)
    def encode(self, text): return self.tokenizer.encode(text, special=True)


def coded(model, tokenizer, examples, **changes):
    """examples -> rows as the model file makes them, and the Config for its batch(). Weights that come from elsewhere
    know their special tokens by the tokenizer only."""
    c = model.config
    ids = {f'{r}_id': getattr(tokenizer, r) for r in ('cls', 'sep', 'mask', 'pad') if getattr(tokenizer, r) is not None}
    c = dataclasses.replace(c, **{n: i for n, i in ids.items() if hasattr(c, n)}, **changes)
    rows = [dict(row, index=i) for i, e in enumerate(examples) for row in models.rows_of(file_of(model), c.kind).encode(e, tokenizer, c)]
    full = sum(any(len(x) >= c.block_size for x in lists(row)) for row in rows) if c.kind != 'qa' else 0
    if full: print(f'{full} of {len(rows)} texts fill block_size={c.block_size}: what is longer is cut', file=sys.stderr)
    return rows, c


def lists(x):
    """All lists of numbers in a row, whatever the model file calls them."""
    if isinstance(x, list) and x and isinstance(x[0], int): return [x]
    return [y for part in (x.values() if isinstance(x, dict) else x if isinstance(x, list) else ()) for y in lists(part)]


@torch.no_grad()
def in_batches(model, c, rows, batch_size, work):
    """work(tensors of batch(), rows) -> a list; all of these lists as one, in the order of the rows. Rows of a like length
    go together, the longest first, so that little is padding and memory runs out at once or never."""
    order = sorted(range(len(rows)), key=lambda i: -sum(map(len, lists(rows[i]))))
    out, file, device = [None] * len(rows), file_of(model), next(model.parameters()).device
    for a in range(0, len(rows), batch_size):
        some = [rows[i] for i in order[a:a + batch_size]]
        arrays = models.make_batch(file, types.SimpleNamespace(examples=lambda: some), c, None)
        found = work([torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in arrays], some)
        for i, y in zip(order[a:], found): out[i] = y
        if len(rows) > batch_size: show_progress(a + len(some), len(rows))
    return out
