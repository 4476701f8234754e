"""The second task of BERT and ALBERT, bert.py's --sentences: does one text continue another? nsp:
the next text or a random one (BERT, 3.1); sop: in order or swapped (ALBERT, 3.1).

Letters: B batch, L tokens of text in a row.
"""
import numpy as np
from torch.nn import functional as F


def pair_up(tokens, draw, config, rng):
    """Cuts each row in two texts; in half of the rows the second does not continue the first.
    tokens: (B, L) -> tokens (B, L), length of the first text (B, 1), label: 1 where the second does
    not continue the first (B, 1)"""
    L = config.n_text
    quarter = L // 4
    first = rng.integers(quarter, L - quarter + 1, 1)
    label = rng.integers(0, 2, 1)
    place = np.arange(L)
    if config.sentences == 'nsp':
        random = draw(L, stream=1)
        replaced = (label == 1) & (place >= first)
        return np.where(replaced, random, tokens), first, label
    swapped = np.take_along_axis(tokens, (place + first) % L, 1)
    tokens = np.where(label, swapped, tokens)
    first = np.where(label, L - first, first)
    return tokens, first, label


def pair_logits(model, states):
    """(B, T, C) -> (B, 2): the second text continues the first, or not"""
    return model.pair(model.drop(model.pooled(states)))


def add_loss(loss, stats, model, states, label, total):
    """Adds the mean of -log p(label) to the loss. states: (B, T, C), label: (B,), total: the number
    of rows in the global batch."""
    logits = pair_logits(model, states)
    nll = F.cross_entropy(logits.float(), label, ignore_index=-1, reduction='sum') / total
    stats['sentence_loss'] = nll.detach()
    stats['sentence_accuracy'] = (logits.argmax(1) == label).sum() / total
    return loss + nll
