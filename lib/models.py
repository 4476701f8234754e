"""Model files: what each defines itself, and what lib/ has for it otherwise.

A model file holds Config, presets, batch and Model. It may also define any of the functions that this page looks up:
its own always win. `family = 'gpt'` in a model file names the tables of lib/ that fit its Model; a copy keeps the line.
"""
import dataclasses
import importlib
import inspect
import os
import sys

from data.files import untrusted
from lib.words import nearest

ROWS = dict(labelled='tasks', tagged='tasks', qa='tasks', choice='tasks', instruct='chat', pairs='pairs')


def rows_of(file, kind):
    """The module that turns examples of a kind into rows and rows into arrays: the model file itself if it defines
    encode, else one of lib/. It has

        encode(example, tokenizer, config) -> list of dicts, the rows of an example
        collate(rows, config) -> arrays, what Model.forward takes
        predict(model, arrays, rows, tokenizer) -> list of dicts, a row each: index, prediction, score
    """
    if hasattr(file, 'encode'):
        return file
    return importlib.import_module('lib.' + ROWS[kind])


def make_batch(file, draw, config, rng):
    """The arrays of one micro-batch: the model file's objective of running text, or rows of examples."""
    kind = getattr(config, 'kind', 'text')
    if kind == 'text' or hasattr(file, 'encode'):
        return file.batch(draw, config, rng)
    return rows_of(file, kind).collate(draw.examples(), config)


def show_of(file):
    """The function that shows what a model has learned, show(model, tokenizer, ids) -> text, or None."""
    if hasattr(file, 'show'):
        return file.show
    from lib import show
    return show.by_family.get(getattr(file, 'family', ''))


def layout_of(file):
    """What knows Hugging Face's layout of a model file: from_hf(hf_config, weights) -> Config, state dict, and
    to_hf(model) -> config, weights. None where there is none."""
    if hasattr(file, 'from_hf'):
        return file
    from lib import hf
    return hf.Layout(file) if getattr(file, 'family', '') in hf.families.values() else None


def chat_of(file):
    """The function that turns a conversation into ids which a reply continues: chat(messages, tokenizer, config), or
    None if the model file does not train on instructions."""
    if hasattr(file, 'chat'):
        return file.chat
    if 'instruct' not in getattr(file, 'kinds', ()):
        return None
    from lib import chat
    return chat.chat


HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # where the scripts are


def scripts_with(start):
    "the names of the scripts beside this one that have a line which starts so"
    read = lambda f: open(os.path.join(HERE, f), encoding='utf-8').read()
    return sorted(f[:-3] for f in os.listdir(HERE) if f.endswith('.py') and '\n' + start in read(f))


def import_model(name):
    "the module of a model file, checked against the protocol"
    for folder in (HERE, os.getcwd()):
        if folder not in sys.path: sys.path.insert(0, folder)
    if not name.isidentifier() or not any(os.path.exists(os.path.join(d, name + '.py')) for d in (os.getcwd(), HERE)):
        have = scripts_with('presets =')
        raise ValueError(f'--model={name}: no file {name}.py here; model files: {", ".join(have)}{nearest(name, have)}')
    file = importlib.import_module(name)
    if missing := [n for n in ('Config', 'presets', 'batch', 'Model') if not hasattr(file, n)]:
        raise ValueError(f'{name}.py does not define {", ".join(missing)}: see the protocol at the top of train.py')
    return file


def typed(cls, values, path):
    "a Config made of what a file says; a value of another type than its field is said"
    usual, script = {f.name: f.default for f in dataclasses.fields(cls)}, os.path.basename(inspect.getfile(cls))
    if extra := set(values) - set(usual):
        raise ValueError(f'{path}: was made with another {script}, whose Config has '
                         f'{", ".join(sorted(map(str, extra)))} (its text is the checkpoint\'s key "source")')
    for n, v in values.items():
        kind = type(usual[n])
        fits = isinstance(v, {bool: int, float: (int, float)}.get(kind, kind)) and v == v
        if not fits or kind is bool and v not in (0, 1) or kind is str and '\n' in v:
            raise ValueError(f'{path}: it says {n}={str(v)[:60]!r}; expected {kind.__name__}, as {usual[n]!r}')
    with untrusted(path): return cls(**values)
