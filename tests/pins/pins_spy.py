"""A model file that learns nothing: it writes down what the trainer hands it, micro-batch by micro-batch.

All of it is whole numbers, the same on every machine: windows of the text or the examples, the numbers that mask them,
and one draw from the stream of dropout.
"""
import json
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn

kinds = ('text', 'labelled')
presets = {}
seen = []                                            # of each micro-batch in training: [arrays..., dropout's draw]


@dataclass
class Config:
    vocab_size: int = 1
    kind: str = 'text'
    width: int = 9               # tokens of a window


def encode(example, tokenizer, config):
    return [dict(ids=tokenizer.encode(example['text']))]


def batch(draw, config, rng):
    if config.kind == 'text':
        tokens = draw(config.width, overlap=1)
        other = draw(4, stream=1)
    else:
        rows = [row['ids'] for row in draw.examples()]
        tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for line, ids in zip(tokens, rows):
            line[:len(ids)] = ids
        other = np.array([[row['index']] for row in draw.examples()])
    bits = np.floor(rng.random(2) * 2.0 ** 53).astype(np.int64)
    return other, bits, rng.integers(0, 1 << 40, 3), tokens


def predict(model, arrays, examples, tokenizer):
    return []


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.w = nn.Parameter(torch.zeros(3, 2))

    def forward(self, *arrays, totals=None):
        if self.training:
            seen.append([a.tolist() for a in arrays] + [torch.randint(0, 1 << 40, (2,)).tolist()])
        return ((self.w - 1) ** 2).sum() * len(arrays[0]) / 100, {}

    def logits(self, ids):
        return ids


def from_hf(config, weights):
    raise ValueError('no such folder')


def to_hf(model):
    raise ValueError('no such folder')


def told():
    """What was seen since the last time. The first row alone, which sees whether the model runs, does not count."""
    found = [record for record in seen if len(record[0]) > 1]
    seen.clear()
    return json.dumps(found)
