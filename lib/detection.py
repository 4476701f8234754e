"""How well a discriminator tells replaced tokens (electra.py), in evaluation alone.

Letters: B batch, T tokens of a row, or those of them that are judged.
"""
import math

import torch


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


def summary(stats):
    """See electra.summary."""
    if stats.get('discriminator_loss') == 0:   # the first of two stages: no discriminator yet
        names = ('generator_loss', 'generator_accuracy', 'replaced')
        return {name: stats[name] for name in stats if name in names}
    stats = dict(stats)
    if 'caught' in stats:
        caught = stats.pop('caught')
        flagged = stats.pop('flagged')
        replaced = stats['replaced']
        stats['precision'] = caught / flagged if flagged else 0.0
        stats['recall'] = caught / replaced if replaced else 0.0
    return stats
