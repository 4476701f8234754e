"""What sample.py reads and prints: prompts, examples, rows in batches, progress, reports."""
import dataclasses
import json
import os
import re
import sys
import types
from dataclasses import dataclass

import numpy as np
import torch

from data import files
from data import supervised
from lib import models


def model_file(model):
    """The module that defines a model, such as gpt."""
    return sys.modules[type(model.config).__module__]


# ---- prompts

def read_prompt(prompt, flag='prompt'):
    """The value of a flag -> the text that it names: itself, the file behind FILE:, or stdin if it
    is -. Raises ValueError if the file cannot be read."""
    if prompt == '-':
        return sys.stdin.read()
    if not prompt.startswith('FILE:'):
        if os.path.isfile(prompt):
            print(f'--{flag}={prompt} is taken as a text; --{flag}=FILE:{prompt} reads the file',
                  file=sys.stderr)
        elif flag == 'context' and re.fullmatch(r'\S+\.(jsonl|txt|tsv|md)', prompt):
            raise ValueError(f'--context={prompt}: No such file')
        return prompt
    path = prompt.removeprefix('FILE:')
    try:
        with open(path, encoding='utf-8', newline='') as f:
            return f.read()
    except UnicodeDecodeError as e:
        raise ValueError(f'--{flag}={prompt}: not UTF-8 text (byte {e.start})') from None
    except OSError as e:
        raise ValueError(f'--{flag}={prompt}: {e.strerror}') from None


# ---- examples

@dataclass
class Columns:
    """The columns of a file of examples. Those in `lists` hold a list of texts, the others one."""
    required: tuple
    optional: tuple = ()
    lists: tuple = ()

    def __str__(self):
        names = [f'"{name}"' for name in self.required]
        names += [f'"{name}" (optional)' for name in self.optional]
        return ', '.join(names)


def json_lines(path, lines, expected):
    """Yields (line number, dict) of each line of JSON that is not empty. Raises ValueError if a
    line holds no object."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise ValueError(f'{path} line {number}: not JSON ({str(e)[:80]}); '
                             f'expected {expected}') from None
        if not isinstance(item, dict):
            raise ValueError(f'{path} line {number}: a {type(item).__name__}; expected {expected}')
        yield number, item


def plain_line(line, columns, place):
    """A line that is not JSON -> dict. It is the first column; where several texts are required,
    they stand with tabs between. place: where it stands, for the message of the ValueError."""
    first = columns.required[0]
    if first in columns.lists:
        return {first: line.split()}
    if columns.lists or len(columns.required) == 1:
        return {first: line}
    parts = line.split('\t')
    if len(parts) != len(columns.required):
        texts = 'text' if len(parts) == 1 else 'texts'
        raise ValueError(f'{place}: {len(parts)} {texts}; '
                         f'expected {" and ".join(columns.required)} with a tab between, '
                         'or a .jsonl file with these columns')
    return dict(zip(columns.required, parts))


def check_columns(row, columns, place, number):
    """Raises ValueError if a column is missing, or holds something else than it should."""
    for name in columns.required + columns.optional:
        if name in columns.optional and name not in row:
            continue
        if name not in columns.lists:
            supervised.need(row, name, place, number)
            continue
        def is_list_of_texts(x):
            texts = isinstance(x, list) and all(isinstance(t, str) for t in x)
            return texts and (len(x) > 0 or name == 'tokens')
        supervised.need(row, name, place, number, is_list_of_texts, 'a list of strings')


def read_examples(flag, value, columns, bare_path=True):
    """What --flag=value names, a text, FILE:path, or - for stdin -> list of dicts with these
    columns. bare_path: a path needs no FILE: in front. Raises ValueError for a wrong line."""
    path = ''
    if value.startswith('FILE:'):
        path = value.removeprefix('FILE:')
    elif bare_path and (os.path.isfile(value) or re.fullmatch(r'\S+\.(jsonl|txt|tsv)', value)):
        path = value
    text = read_prompt(f'FILE:{path}' if path else value, flag)
    lines = [text]
    if path or value == '-':
        lines = text.replace('\r\n', '\n').removesuffix('\n').split('\n')
    source = path or f'--{flag}'
    if path.endswith('.jsonl'):
        rows = dict(json_lines(path, lines, f'an object with {columns}'))
    else:
        rows = {}
        for number, line in enumerate(lines, 1):
            place = f'{source} line {number}' if len(lines) > 1 else source
            rows[number] = plain_line(line, columns, place)
    for number, row in rows.items():
        check_columns(row, columns, source, number)
    if not rows:
        raise ValueError(f'--{flag}={value}: no lines')
    return list(rows.values())


# ---- rows

class ReadsSpecial:
    """A tokenizer that takes special tokens which are spelled out in a text as special tokens."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def encode(self, text):
        return self.tokenizer.encode(text, special=True)


def make_rows(model, tokenizer, examples, **changes):
    """Examples -> (rows, config): the rows that the functions of their kind make of them, each with
    the "index" of its example, and the Config that goes with them.

    changes: fields of the Config. Weights that come from elsewhere know their special tokens by the
    tokenizer only, so that it says which ids they have.
    """
    config = model.config
    for role in ('cls', 'sep', 'mask', 'pad'):
        i = getattr(tokenizer, role)
        if i is not None and hasattr(config, f'{role}_id'):
            changes.setdefault(f'{role}_id', i)
    config = dataclasses.replace(config, **changes)
    encode = models.rows_of(model_file(model), config.kind).encode
    rows = []
    for index, example in enumerate(examples):
        for row in encode(example, tokenizer, config):
            rows.append(dict(row, index=index))
    if config.kind != 'qa':  # which cuts its context into windows
        full = sum(longest(row) >= config.block_size for row in rows)
        if full:
            print(f'{full} of {len(rows)} texts fill block_size={config.block_size}: '
                  'what is longer is cut', file=sys.stderr)
    return rows, config


def id_lists(x):
    """All lists of numbers in a row, whatever its functions call them."""
    if isinstance(x, list) and x and isinstance(x[0], int):
        return [x]
    if isinstance(x, dict):
        x = list(x.values())
    if not isinstance(x, list):
        return []
    return [numbers for part in x for numbers in id_lists(part)]


def longest(row):
    """The length of the longest list of numbers in a row."""
    return max(map(len, id_lists(row)), default=0)


@torch.no_grad()
def map_batches(function, model, config, rows, batch_size):
    """function(tensors of a batch, its rows) -> list, for one batch after another; returns the
    elements of all lists in the order of the rows.

    Rows of a similar length are in one batch, the longest first, so that there is little padding,
    and memory runs out at once or never.
    """
    file = model_file(model)
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: -sum(map(len, id_lists(rows[i]))))
    results = [None] * len(rows)
    for start in range(0, len(rows), batch_size):
        chosen = order[start:start + batch_size]
        batch = [rows[i] for i in chosen]
        draw = types.SimpleNamespace(examples=lambda: batch)
        arrays = models.make_batch(file, draw, config, None)
        arrays = [torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in arrays]
        for i, result in zip(chosen, function(arrays, batch)):
            results[i] = result
        if len(rows) > batch_size:
            show_progress(start + len(batch), len(rows))
    return results


# ---- printing

def show_progress(done, total):
    """A line on a terminal that the next one overwrites."""
    if not sys.stderr.isatty():
        return
    end = '\r' if done < total else '\r\033[K'  # the last one erases the line
    print(f'\r{done}/{total}', end=end, file=sys.stderr, flush=True)


def report(records, config, to_text):
    """Prints the records, or writes them to --out: a line of JSON each, or to_text(record).
    -> {'records'}"""
    if config.json or config.out.endswith('.jsonl'):
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
    else:
        lines = [to_text(record) for record in records]
    if config.out:
        data = ''.join(line + '\n' for line in lines).encode()
        files.write_atomic(config.out, lambda f: f.write(data))
    else:
        print('\n'.join(lines), flush=True)
    return dict(records=records)
