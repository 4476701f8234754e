"""Data for a run: which prepared folder, and how its rows get to the device.

A batch is a pure function of (seed, step, row): nothing here has a state that a checkpoint would
have to hold.
"""
import json
import math
import os
import sys
import tempfile
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

import bpe
from data import text
from data.rows import keyed, tokens_in
from lib.launch import SIGNALS
from lib.models import make_batch

POOL = 16               # --group_by_length sorts this many batches at a time
DROPOUT_STREAM = 3      # streams of random numbers that have keys of their own (data/rows.py)
POOL_STREAM = 9


# ---- the folder

def open_data(config, file, flags, saved, origin, tokenizer):
    """Opens what --data names -> prepared folder, its meta.json, its tokenizer or None.

    origin, tokenizer: where the weights to start from are, and their tokenizer, which the data must
    share. Raises ValueError or OSError if the data does not fit the model file, the weights or the
    run that is resumed.
    """
    if tokenizer and 'tokenizer' not in flags:
        folder = prepared_with(config.data, tokenizer, origin)
    else:
        folder = text.resolve(config.data, config.tokenizer, flags.get('vocab_size', 0))
    meta = text.open_meta(folder)
    own = tokenizer_of(folder, meta, tokenizer)
    if tokenizer and own and own.dumps() != tokenizer.dumps():
        raise ValueError(f'{config.data} is prepared with the tokenizer {own.name} '
                         f'({own.vocab_size} ids), '
                         f'{origin} was trained with {tokenizer.name} ({tokenizer.vocab_size}): '
                         'leave out --tokenizer to prepare the text again')
    if saved and saved['data'] != meta['sha256']:
        raise ValueError(f'--resume: the data in {folder} is not what the run was trained on; '
                         f'start a new run with --init_from={config.out_dir}')
    kinds = getattr(file, 'kinds', ('text',))
    if meta['kind'] not in kinds:
        raise ValueError(f'{config.data} holds {meta["kind"]} data, {file.__name__}.py trains on '
                         f'{", ".join(kinds)}')
    return folder, meta, own


def prepared_with(data, tokenizer, origin):
    """The folder of --data prepared with the tokenizer of the weights in `origin`; finds what an
    earlier run has prepared."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'tokenizer.json')
        tokenizer.save(path)
        try:
            return text.resolve(data, path, 0)
        # its advice names this file, which will be gone
        except OSError as e:
            e.args = tuple(arg.replace(path, origin) if isinstance(arg, str) else arg
                           for arg in e.args)
            raise
        except ValueError as e:
            if folder not in str(e):
                raise
            raise ValueError(f'{str(e).split(", asked")[0]}, {origin} was trained with '
                             f'{tokenizer.name} ({tokenizer.vocab_size}): pass the text itself as '
                             '--data to prepare it again') from None


def tokenizer_of(folder, meta, fallback):
    """The tokenizer that a prepared folder names in its meta.json. Where it cannot be had,
    `fallback`, or None."""
    # a file of the folder, or a name that tiktoken knows
    name = meta['tokenizer']
    in_folder = name.endswith('.json')
    try:
        tokenizer = bpe.load(os.path.join(folder, name) if in_folder else name)
    except OSError as e:
        if fallback is None and in_folder:
            raise
        tokenizer = fallback
        if tokenizer is None:
            print(f'no tokenizer {name} ({e}): no bits per byte and no sample', file=sys.stderr)
    if in_folder and tokenizer.vocab_size != meta['vocab_size']:
        raise ValueError(f'{folder}: meta.json says {meta["vocab_size"]} ids, {name} has '
                         f'{tokenizer.vocab_size}: delete {folder} and prepare it again')
    return tokenizer


def values_from_data(file, values, flags, meta, tokenizer, has_weights):
    """The values of the model's Config, completed by what the data says -> values, and whether the
    given weights were trained on another kind of data or on other classes.

    values: by flags and weights. flags: what was typed. has_weights: there are given weights.
    """
    fields = fields_from_data(file, meta, tokenizer, has_weights)
    is_other = any(values.get(name, fields[name]) != fields[name] for name in ('kind', 'n_labels'))
    values = dict(values)
    for name, value in fields.items():
        typed_role = name.endswith('_id') and name in flags      # --pad_id=0 wins over the data
        if name in values and value is not None and not typed_role:
            values[name] = value
    return values, is_other


def fields_from_data(file, meta, tokenizer, has_weights):
    """The fields of the model's Config that the data and its tokenizer decide -> {name: value}.
    None leaves the Config's value as it is, -1 says that there is no such token. has_weights: given
    weights keep their own vocabulary and special tokens."""
    labels = meta.get('labels') or []
    fields = dict(vocab_size=meta['vocab_size'], kind=getattr(file, 'model_kind', meta['kind']),
                  n_labels=len(labels), labels=json.dumps(labels, ensure_ascii=False),
                  no_answer=bool(meta.get('no_answer')))
    for role in ('eot', 'pad', 'cls', 'sep', 'mask'):
        fields[role + '_id'] = getattr(tokenizer, role, None)
    if has_weights:
        del fields['vocab_size']
    elif tokenizer:
        for name in ('cls_id', 'sep_id', 'mask_id'):
            if fields[name] is None:
                fields[name] = -1                        # the tokenizer has none
    if tokenizer and hasattr(file, 'fill'):
        fields |= file.fill(tokenizer)
    return fields


def columns_of(examples):
    """The names of the examples' columns, with ? behind those that not every example has."""
    found = [example.keys() for example in examples]
    names = []
    for name in sorted(set().union(*found)):
        everywhere = all(name in keys for keys in found)
        names.append(name if everywhere else name + '?')
    return ' '.join(names)


# ---- the rows

def split_batch(config, world_size):
    """--batch_size and --micro_batch_size -> the rows of a step that each rank has, and how many it
    holds at once."""
    share = config.batch_size // world_size
    micro_batch_size = min(config.micro_batch_size or share, share)
    if share * world_size != config.batch_size or share % micro_batch_size:
        unit = world_size * max(micro_batch_size, 1)
        fitting = math.ceil(config.batch_size / unit) * unit
        raise ValueError(f'--batch_size={config.batch_size} does not split into {world_size} '
                         'device(s) x micro-batches '
                         f'of {micro_batch_size or 1}: try --batch_size={fitting}')
    return share, micro_batch_size


class Feed:
    """Rows of a corpus -> arrays of a micro-batch -> tensors on the device."""

    def __init__(self, file, model_config, corpus, device, tokenizer):
        self.file = file
        self.model_config = model_config
        self.corpus = corpus
        self.device = device
        self.tokenizer = tokenizer
        # of examples; empty for running text
        self.lengths = np.array([tokens_in(row) for row in corpus.items])

    def count(self, *arrays):
        """The numbers of targets in a micro-batch, one for each denominator of the loss."""
        if hasattr(self.file, 'count'):
            return self.file.count(*arrays)
        return (int((arrays[-1] >= 0).sum()),)

    def summary(self, stats):
        """What is reported of the summed stats of Model.forward."""
        if hasattr(self.file, 'summary'):
            return self.file.summary(stats)
        return stats

    def find_length(self):
        """Makes a row (of a mixture: one of each part), by which the corpus learns the length of
        its windows. Its len() and tokens_per_row need that. -> the arrays."""
        return self.arrays(self.corpus.first_rows())

    def by_length(self, numbers):
        """The same rows, those of equal length beside each other: a micro-batch needs less
        padding."""
        if not len(self.lengths):
            return numbers
        # row numbers -> which examples they are, in the order of their epoch
        examples, _ = self.corpus.places(numbers, n=len(self.lengths), stream=0)
        return numbers[np.argsort(self.lengths[examples], kind='stable')]

    def arrays(self, numbers):
        """The numpy arrays of the micro-batch that these rows make."""
        draw, rng = self.corpus.rows(numbers)
        draw.tokenizer = self.tokenizer      # whole-word masking needs the text of a token
        return make_batch(self.file, draw, self.model_config, rng)

    def send(self, arrays):
        """numpy arrays -> tensors on the device. The host does not wait for a GPU."""
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        if self.device.type != 'cuda':
            return [tensor.to(self.device) for tensor in tensors]
        return [tensor.pin_memory().to(self.device, non_blocking=True) for tensor in tensors]


def dropout_seed(seed, step, rank, micro_batch):
    """The seed of everything that is random on the device in one micro-batch."""
    return int(keyed(seed, DROPOUT_STREAM, step, rank, micro_batch)[0] >> np.uint64(1))


@dataclass
class Batch:
    """What one rank needs for one optimizer step."""
    micro_batches: list         # of lists of tensors
    n_targets: torch.Tensor     # in the global batch, one for each denominator of the loss
    signal: int                 # the signal that any rank was sent, or 0
    time_is_up: bool            # whether any rank has reached --time_limit


class Batches:
    """The batches of a run. fetch(step) gives this rank's share, and what the ranks have to agree
    on."""

    def __init__(self, run, signals):
        """run: train.Run. signals: lib.launch.Signals."""
        self.run = run
        self.feed = run.feed
        self.config = run.config
        self.signals = signals

    def rows(self, step):
        """The numbers of this rank's rows of a step."""
        batch_size = self.config.batch_size
        has_lengths = len(self.feed.lengths) > 0
        pool = POOL if self.config.group_by_length and has_lengths else 1      # batches
        first = step // pool * pool * batch_size
        rows = self.feed.by_length(np.arange(first, first + pool * batch_size)).reshape(pool, -1)
        order = np.argsort(keyed(self.config.seed, POOL_STREAM, step // pool, np.arange(pool)))
        rows = rows[order[step % pool]]      # which of the pool's sorted batches this step takes
        if has_lengths:                      # sorted by length: each rank gets some of each
            return rows[self.run.rank::self.run.world_size]
        n = self.run.rows_per_rank
        return rows[self.run.rank * n:(self.run.rank + 1) * n]

    def fetch(self, step, train_seconds):
        """The Batch of a step. train_seconds: how long the run has trained, for --time_limit."""
        rows = self.rows(step)
        size = self.run.micro_batch_size
        micro_batches = [self.feed.arrays(rows[at:at + size]) for at in range(0, len(rows), size)]
        counts = np.sum([self.feed.count(*arrays) for arrays in micro_batches], 0)
        asked = [self.signals.asked == number for number in SIGNALS]
        time_is_up = 0 < self.config.time_limit <= train_seconds
        # one exchange for everything, on the host, so that the device does not wait for it
        agreed = torch.tensor([*counts, *asked, time_is_up], dtype=torch.float64)
        if self.run.world_size > 1:
            dist.all_reduce(agreed)
        n_targets = agreed[:len(counts)].float()
        signals = [number for number, n in zip(SIGNALS, agreed[len(counts):-1]) if n > 0]
        if self.feed.device.type == 'cuda':
            n_targets = n_targets.pin_memory()           # else the copy waits for the step at hand
        return Batch(micro_batches=[self.feed.send(arrays) for arrays in micro_batches],
                     n_targets=n_targets.to(self.feed.device, non_blocking=True),
                     signal=signals[0] if signals else 0,
                     time_is_up=bool(agreed[-1] > 0))
