"""Pairs of texts, {"input", "target"}, as rows of an encoder-decoder: what data of kind pairs becomes.

Letters: B batch, S source tokens, T target tokens.
"""
import math
import sys

import numpy as np


def encode(example, tokenizer, config):
    """{"input", "target"} -> [{"source", "target"}], a row of two lists of ids.

    Both are cut to what the model reads (block_size) and writes (target_size), and ended by eot_id.
    """
    def ids_of(text, length):
        return [*tokenizer.encode(text)[:length - 1], config.eot_id]

    return [dict(source=ids_of(example['input'], config.block_size),
                 target=ids_of(example['target'], config.target_size))]


def collate(rows, config):
    """Rows -> source (B, S), real, places, targets (B, T), as mark_padding has them; S and T are multiples of 8."""
    source = stacked([row['source'] for row in rows])
    targets = stacked([row['target'] for row in rows])
    return mark_padding(source, targets, config.pad_id)


def stacked(lists):
    """Lists of ids -> one array, padded with -1 to a multiple of 8: a GPU multiplies these faster."""
    width = math.ceil(max(len(ids) for ids in lists) / 8) * 8
    out = np.full((len(lists), width), -1)
    for row, ids in zip(out, lists):
        row[:len(ids)] = ids
    return out


def mark_padding(source, targets, pad_id):
    """Source and targets with -1 for padding -> source, real, places, targets, which Model.forward takes.

    real: bool (B, S), which tokens of the source are no padding. places: those of the B T targets
    that the loss is computed at, real targets first; their number is a multiple of 64 (or all), so that a
    compiled model sees few shapes.
    """
    real = source >= 0
    n_targets = int((targets >= 0).sum())
    places = np.argsort(targets.ravel() < 0, kind='stable')[:math.ceil(n_targets / 64) * 64]
    return np.where(real, source, pad_id), real, places, targets


def predict(model, arrays, rows, tokenizer):
    """The arrays of collate(), on the model's device -> [{"index", "prediction": text}], one for each row."""
    config = model.config
    file = sys.modules[type(model).__module__]                     # the model file: t5.py or a copy of it
    mask = arrays[1] if len(arrays) > 2 else None
    ids = file.generate(model, arrays[0], mask, config.target_size, beams=config.beams)
    return [dict(index=row['index'], prediction=file.text_of(text, tokenizer, config.eot_id))
            for row, text in zip(rows, ids)]
