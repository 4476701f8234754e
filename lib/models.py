"""Model files: what each defines itself, and what lib/ has for it otherwise.

A model file holds Config, presets, batch and Model. It may also define any of the functions that this page looks up:
its own always win. `family = 'gpt'` in a model file names the tables of lib/ that fit its Model; a copy keeps the line.
"""
import importlib

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
