"""Pairs of texts, {"input", "target"}, as rows of an encoder-decoder: data of kind pairs.

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
    """Rows -> source (B, S), real, places, targets (B, T), as mark_padding has them."""
    source = stacked([row['source'] for row in rows])
    targets = stacked([row['target'] for row in rows])
    return mark_padding(source, targets, config.pad_id)


def stacked(lists):
    """Lists of ids -> one array, padded with -1; the width is a multiple of 8: it suits a GPU."""
    longest = max(len(ids) for ids in lists)
    width = math.ceil(longest / 8) * 8
    out = np.full((len(lists), width), -1)
    for row, ids in zip(out, lists):
        row[:len(ids)] = ids
    return out


def mark_padding(source, targets, pad_id):
    """Source and targets with -1 for padding -> source, real, places, targets, for Model.forward.

    real: bool (B, S), which tokens of the source are no padding. places: those of the B T targets
    that the loss is computed at, real targets first; their number is a multiple of 64 (or all of
    them), so that a compiled model sees few shapes.
    """
    real = source >= 0
    n_targets = int((targets >= 0).sum())
    places = np.argsort(targets.ravel() < 0, kind='stable')
    places = places[:math.ceil(n_targets / 64) * 64]
    return np.where(real, source, pad_id), real, places, targets


def predict(model, arrays, rows, tokenizer):
    """The arrays of collate(), on the model's device -> [{"index", "prediction": text}]."""
    config = model.config
    file = sys.modules[type(model.config).__module__]                     # t5.py, or a copy of it
    mask = arrays[1] if len(arrays) > 2 else None
    written = file.generate(model, arrays[0], mask, config.target_size, beams=config.beams)
    return [dict(index=row['index'], prediction=text_of(ids, tokenizer, config.eot_id))
            for row, ids in zip(rows, written.tolist())]


def text_of(ids, tokenizer, eot):
    """The text of a list of ids up to the token eot."""
    if eot in ids:
        ids = ids[:ids.index(eot)]
    return tokenizer.decode(ids)
