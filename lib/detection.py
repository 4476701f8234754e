"""What a discriminator of replaced tokens (electra.py) is asked for less often: how well it tells
them, and the objective all-tokens-mlm.

Letters: B batch, T tokens of a row, or those of them that are judged, V vocabulary.
"""
import math

import torch
from torch.nn import functional as F


def stats(logit, label, judged, n_judged, n_all):
    """logit, label (replaced or not), judged: (B, T) -> shares of all tokens that are caught
    (flagged with reason) and flagged, and the mean of the rows' areas under the curve. n_judged and
    n_all: numbers of tokens of the global batch."""
    flagged = (logit > 0) & judged
    caught = (flagged & label).sum() / n_all
    area = area_under_curve(logit, label, judged)
    area = area * judged.sum(1)
    auc = area.sum() / n_judged
    return dict(caught=caught, flagged=flagged.sum() / n_all, auc=auc)


def area_under_curve(scores, positive, judged):
    """Of each row the share of its pairs (positive, negative) whose positive one scores higher,
    ties half; 0.5 without any. All (B, T) -> (B,)"""
    scores = scores.detach()
    negative = judged & ~positive
    others_last = torch.where(negative, scores, math.inf)
    order = others_last.sort(dim=1).values
    lower = torch.searchsorted(order, scores)
    not_higher = torch.searchsorted(order, scores, right=True)
    below = (lower + not_higher) / 2
    wins = (below * positive).sum(1)
    pairs = positive.sum(1).float() * negative.sum(1)
    share = wins / pairs.clamp(min=1)
    return torch.where(pairs > 0, share, 0.5)


def copy_or_write(y, logit, original, replaced):
    """ELECTRA 3.4, all-tokens MLM: the sum of -log p(x_t) over all tokens, where
    p(x_t) = D [x_t is the input] + (1 - D) softmax(y)_t and 1 - D = sigmoid(logit).
    y: (B, T, V), the others (B, T); replaced: the input is not the original"""
    y = y.flatten(0, 1).float()                            # (B T, V)
    nll = F.cross_entropy(y, original.flatten(), reduction='none')
    written = F.logsigmoid(logit) - nll.view_as(logit)
    copied = F.logsigmoid(-logit)
    either = torch.logaddexp(written, copied)
    return -torch.where(replaced, written, either).sum()
