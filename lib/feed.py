"""Data for a run: which folder, which rows, and their way to the device."""
import json
import os
import sys
import tempfile

import numpy as np
import torch

import bpe
from data import text
from data.rows import tokens_in
from lib import models


def open_data(config, file, flags, saved, origin, tokenizer):
    "-> prepared folder, its meta, tokenizer. `tokenizer`: that of the weights to start from, which the data must share"
    if tokenizer and 'tokenizer' not in flags:       # prepare the text with it; finds what an earlier run has prepared
        with tempfile.TemporaryDirectory() as tmp:
            tokenizer.save(os.path.join(tmp, 'tokenizer.json'))
            try: folder = text.resolve(config.data, os.path.join(tmp, 'tokenizer.json'), 0)
            except OSError as e:                     # tells to run a script, but this file will be gone
                e.args = tuple(a.replace(os.path.join(tmp, 'tokenizer.json'), origin) if isinstance(a, str) else a
                               for a in e.args)
                raise
            except ValueError as e:
                if tmp not in str(e): raise
                raise ValueError(f'{str(e).split(", asked")[0]}, {origin} was trained with {tokenizer.name} '
                                 f'({tokenizer.vocab_size}): pass the text itself as --data to prepare it again'
                                 ) from None
    else: folder = text.resolve(config.data, config.tokenizer, flags.get('vocab_size', 0))
    meta = text.open_meta(folder)
    name = meta['tokenizer']                         # a file of the folder, or a tokenizer's name
    in_folder = name.endswith('.json')
    try: own = bpe.load(os.path.join(folder, name) if in_folder else name)
    except OSError as e:
        if tokenizer is None and in_folder: raise
        own = tokenizer
        if own is None: print(f'no tokenizer {name} ({e}): no bits per byte and no sample', file=sys.stderr)
    if in_folder and own.vocab_size != meta['vocab_size']:
        raise ValueError(f'{folder}: meta.json says {meta["vocab_size"]} ids, {name} has {own.vocab_size}: '
                         f'delete {folder} and prepare it again')
    if tokenizer and own and own.dumps() != tokenizer.dumps():
        raise ValueError(f'{config.data} is prepared with the tokenizer {own.name} ({own.vocab_size} ids), '
                         f'{origin} was trained with {tokenizer.name} ({tokenizer.vocab_size}): '
                         'leave out --tokenizer to prepare the text again')
    if saved and saved['data'] != meta['sha256']:
        raise ValueError(f'--resume: the data in {folder} is not what the run was trained on; '
                         f'start a new run with --init_from={config.out_dir}')
    kinds = getattr(file, 'kinds', ('text',))
    if meta['kind'] not in kinds:
        raise ValueError(f'{config.data} holds {meta["kind"]} data, {file.__name__}.py trains on {", ".join(kinds)}')
    return folder, meta, own


def fields_from_data(file, meta, tokenizer, fixed):
    "the model's Config fields that the data and its tokenizer decide; fixed: given weights know their own vocabulary"
    labels = meta.get('labels') or []
    fill = dict(vocab_size=meta['vocab_size'], kind=meta['kind'], n_labels=len(labels),
                labels=json.dumps(labels, ensure_ascii=False), no_answer=bool(meta.get('no_answer')),
                **{r + '_id': getattr(tokenizer, r, None) for r in ('eot', 'pad', 'cls', 'sep', 'mask')})
    if fixed: fill.pop('vocab_size')
    elif tokenizer: fill.update((n, -1) for n in ('cls_id', 'sep_id', 'mask_id') if fill[n] is None)    # it has none
    return fill | (file.fill(tokenizer) if tokenizer and hasattr(file, 'fill') else {})


class Feed:
    "rows of a corpus -> arrays of a micro-batch -> tensors on the device"
    def __init__(self, file, mconfig, corpus, device, tokenizer):
        self.file, self.mconfig, self.corpus, self.device, self.tokenizer = file, mconfig, corpus, device, tokenizer
        self.count = getattr(file, 'count', lambda *arrays: (int((arrays[-1] >= 0).sum()),))
        self.summary = getattr(file, 'summary', lambda stats: stats)
        self.lengths = np.array([tokens_in(row) for row in corpus.items])
    def by_length(self, numbers):
        "the same rows, those of equal length beside each other: less padding in a micro-batch, the batch is the same"
        if not len(self.lengths): return numbers
        places, _ = self.corpus.places(numbers, len(self.lengths), 0)
        return numbers[np.argsort(self.lengths[places], kind='stable')]
    def arrays(self, numbers):
        draw, rng = self.corpus.rows(numbers)
        draw.tokenizer = self.tokenizer              # for what a token spells (whole words)
        return models.make_batch(self.file, draw, self.mconfig, rng)
    def send(self, arrays):
        tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
        if self.device.type != 'cuda': return [t.to(self.device) for t in tensors]
        return [t.pin_memory().to(self.device, non_blocking=True) for t in tensors]
