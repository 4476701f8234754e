"""Model files: the protocol that each follows, how one is found, and what lib/ adds to it.

A model file (`cp gpt.py mine.py; python train.py --model=mine`) needs nothing but torch and numpy
to train on text. It defines

    Config      a dataclass of int, float, bool and str fields; the comment behind a field is its
                --help
    presets     {name: the fields that differ from Config's defaults}
    batch(draw, config, rng) -> numpy arrays of one micro-batch, of static shapes: the objective
        draw(length, overlap=0, stream=0) -> (B, length) int64: windows of the text, one a row.
            Windows begin every length - overlap tokens; another stream has another order
        rng.random(*shape), rng.integers(low, high, *shape) -> (B, *shape): numbers of each row
    Model(config), an nn.Module that keeps the Config as self.config
        forward(*arrays, totals=None) -> loss, stats: sums divided by `totals`, the numbers of
            targets in the global batch (None: in this one), so that adding over micro-batches and
            ranks is exact
        logits(ids) -> full logits, for parity and evaluation

It may also define

    recipe, recipes     recommended settings, for all presets and by preset: fields of train.py's
                        Config and of its own. recipe may name the preset of the default run
    finetune            the same for a start from given weights (--init_from)
    kinds               the kinds of data that it has heads for; default ('text',)
    family              which tables of lib/ fit its Model: Hugging Face's layout, what is shown.
                        A copy of the file keeps the line
    likelihood          True if logits(ids) are those of the next token and the loss is that of the
                        text: needed for bits per byte, and for sample.py's continuations and --eval
    Config.block_size   the tokens of a row; sample.py needs it
    count(*arrays)      numbers of targets, one for each entry of totals; default: entries >= 0 of
                        the last array
    summary(stats)      what is reported, made of the summed stats (a ratio of two sums, say)
    fill(tokenizer)     further Config fields that the tokenizer decides, as a dict
    Model.cache(rows, length), Model.step(ids, cache) -> (B, V)     decoding with a cache, which is
                        faster than logits(ids) for each token
    Model.hidden(ids, ...)   hidden states, for sample.py --embed
    Model.depth_of(name)     how deep a parameter lies: for --freeze, --layer_decay,
                             --unfreeze_interval
    Model.before_step(step)  called with the number of each step, and once before the optimizers
                             are made; true if other parameters train from this step on
    Model.flops()            training flops of a row; default: counted (lib/flops.py)
    generate(model, source, mask, ...)     for sample.py: a source in, a text out
    encode, collate, predict     in the place of lib/'s: see rows_of below. batch may also do what
                             collate does
    chat, show, from_hf, to_hf, hf_types, hf_folders     in the place of lib/'s: see chat_of,
                             show_of, layout_of

Config fields named vocab_size, kind, n_labels, labels, no_answer, eot_id, pad_id, cls_id, sep_id
and mask_id are filled from the data and its tokenizer.
"""
import dataclasses
import importlib
import inspect
import os
import sys

from data.files import untrusted
from lib.words import nearest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the folder of the scripts
ROW_MODULES = dict(labelled='tasks', tagged='tasks', qa='tasks', choice='tasks', instruct='chat',
                   pairs='pairs')


def scripts_with(start):
    """The names of the scripts in the project's folder that have a line which starts with
    `start`."""
    names = []
    for file in sorted(os.listdir(HERE)):
        if file.endswith('.py'):
            with open(os.path.join(HERE, file), encoding='utf-8') as f:
                if '\n' + start in f.read():
                    names.append(file[:-3])
    return names


def import_script(name, flag, others):
    """The module NAME.py of the project's folder or the current one. Raises ValueError, which lists
    `others`."""
    folders = (HERE, os.getcwd())
    for folder in folders:
        if folder not in sys.path:
            sys.path.insert(0, folder)
    exists = any(os.path.exists(os.path.join(folder, name + '.py')) for folder in folders)
    if not name.isidentifier() or not exists:
        raise ValueError(f'--{flag}={name}: no file {name}.py here; {flag} files: '
                         f'{", ".join(others)}{nearest(name, others)}')
    return importlib.import_module(name)


def import_model(name):
    """The module of a model file. Raises ValueError if there is none or it lacks a part of the
    protocol."""
    file = import_script(name, 'model', scripts_with('presets ='))
    missing = [part for part in ('Config', 'presets', 'batch', 'Model') if not hasattr(file, part)]
    if missing:
        raise ValueError(f'{name}.py does not define {", ".join(missing)}: see the protocol at the '
                         'top of lib/models.py')
    return file


def typed(cls, values, path):
    """The Config that a file describes: cls(**values). Raises ValueError if a value has the wrong
    type or a field is unknown; `path` is the file that the message names."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    unknown = set(values) - set(defaults)
    if unknown:
        script = os.path.basename(inspect.getfile(cls))
        raise ValueError(f'{path}: was made with another {script}, whose Config has '
                         f'{", ".join(sorted(map(str, unknown)))} (its text is the checkpoint\'s '
                         'key "source")')
    for name, value in values.items():
        if not fits(value, type(defaults[name])):
            raise ValueError(f'{path}: it says {name}={str(value)[:60]!r}; expected '
                             f'{type(defaults[name]).__name__}, as {defaults[name]!r}')
    with untrusted(path):
        return cls(**values)


def fits(value, kind):
    """Whether a value from a file can be a field of this type: bools may be 0 and 1, texts have one
    line, no NaN."""
    if kind is bool:
        return isinstance(value, int) and value in (0, 1)
    if kind is float:
        return isinstance(value, (int, float)) and value == value
    if kind is str:
        return isinstance(value, str) and '\n' not in value
    return isinstance(value, kind)


# lookups of what a model file need not define itself

def rows_of(file, kind):
    """The module that turns examples of a kind into rows and rows into arrays: the model file
    itself if it defines encode, else one of lib/. It has

        encode(example, tokenizer, config) -> list of dicts, the rows of an example
        collate(rows, config) -> arrays, what Model.forward takes
        predict(model, arrays, rows, tokenizer) -> list of dicts, one a row: index, prediction,
                                                   score
    """
    if hasattr(file, 'encode'):
        return file
    return importlib.import_module('lib.' + ROW_MODULES[kind])


def make_batch(file, draw, config, rng):
    """The arrays of one micro-batch: the model file's objective of running text, or rows of
    examples."""
    kind = getattr(config, 'kind', 'text')
    if kind == 'text':
        return file.batch(draw, config, rng)
    rows = rows_of(file, kind)
    if not hasattr(rows, 'collate'):         # a model file whose batch does both
        return file.batch(draw, config, rng)
    return rows.collate(draw.examples(), config)


def show_of(file):
    """The function that shows what a model has learned, show(model, tokenizer, ids) -> text, or
    None."""
    if hasattr(file, 'show'):
        return file.show
    from lib import show
    return show.by_family.get(getattr(file, 'family', ''))


def layout_of(file):
    """What knows Hugging Face's layout of a model file: from_hf(hf_config, weights) -> Config,
    state dict, and to_hf(model) -> config, weights. None where there is none."""
    if hasattr(file, 'from_hf'):
        return file
    from lib import hf
    return hf.Layout(file) if getattr(file, 'family', '') in hf.families.values() else None


def chat_of(file):
    """The function that turns a conversation into ids which a reply continues: chat(messages,
    tokenizer, config), or None if the model file does not train on instructions."""
    if hasattr(file, 'chat'):
        return file.chat
    if 'instruct' not in getattr(file, 'kinds', ()):
        return None
    from lib import chat
    return chat.chat
