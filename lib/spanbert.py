"""SpanBERT (Joshi et al. 2019, 1907.10529), bert.py's --masking=span and --sbo: spans of tokens are
hidden, and each of their tokens is also predicted from the two tokens beside the span.

Letters: B batch, T tokens, L tokens of text in a row, K masked tokens of a row, C width, E width of
the embeddings.
"""
import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F

LONGEST = 10       # tokens of a span
STOP = 0.2         # p of the geometric distribution of their lengths


def span_places(u_length, u_place, K, L):
    """Spans of geometric length (3.1: p = 0.2, mean 3.8), K tokens in all, at least one token
    apart. Random numbers (B, K) and (B, L - K + 1) -> places (B, K) in order, number of the span
    that each belongs to (B, K)"""
    share = STOP * (1 - STOP) ** np.arange(LONGEST)
    below = np.cumsum(share / share.sum())[:-1]
    length = 1 + np.searchsorted(below, u_length, 'right')             # (B, K): so many suffice
    ends = np.cumsum(length, axis=1)
    ends = np.minimum(ends, K)                             # of each span, in hidden tokens
    token = np.arange(K)
    over = ends[:, None] <= token[:, None]                 # (B, K, K)
    span = over.sum(2)
    # visible tokens in front of each span: distinct numbers, so that no two spans touch
    slots = np.argsort(u_place, axis=1)
    slots = slots[:, :K]
    used = token <= span[:, -1:]
    slots = np.where(used, slots, L)
    slots = np.sort(slots, axis=1)
    return np.take_along_axis(slots, span, 1) + token, span


def edges(places, span, T):
    """Of each hidden token: the place before its span, the place after it, and its number in the
    span. places, span: (B, K) -> (B, K, 3)"""
    same = span[:, :, None] == span[:, None]               # (B, K, K)
    others = places[:, None]
    first = np.where(same, others, T).min(2)
    last = np.where(same, others, -1).max(2)
    return np.stack((first - 1, last + 1, places - first), axis=2)


class Boundary(nn.Module):
    """Eq. 2, for the token at place p of its span:
    h = LN(GELU(W1 [x_left; x_right; p])), y = LN(GELU(W2 h))
    norm: the model file's LayerNorm(config, width)."""

    def __init__(self, config, norm):
        super().__init__()
        C = config.n_embd
        E = config.embed
        self.places = nn.Embedding(LONGEST, C)
        self.dense_1 = nn.Linear(3 * C, C)
        self.norm_1 = norm(config, C)
        self.dense_2 = nn.Linear(C, E)
        self.norm_2 = norm(config, E)

    def forward(self, left, right, place):
        """(.., C), (.., C), (..) -> (.., E)"""
        p = self.places(place)
        x = torch.cat((left, right, p), dim=-1)
        x = F.gelu(self.dense_1(x))
        h = self.norm_1(x)
        y = F.gelu(self.dense_2(h))
        return self.norm_2(y)


def add_loss(loss, stats, model, states, edges, targets, total):
    """Adds the boundary's loss (eq. 3): each hidden token from the states beside its span. states:
    (B, T, C), edges: (B, K, 3), targets: (B, K), total: their number in the global batch."""
    B, T, C = states.shape
    rows = T * torch.arange(B, device=states.device)[:, None]
    states = states.flatten(0, 1)
    left, right, place = edges.unbind(2)                   # (B, K) each
    left = states.index_select(0, (left + rows).flatten())
    right = states.index_select(0, (right + rows).flatten())
    nll, _ = model.nll(model.boundary(left, right, place.flatten()), targets.flatten())
    stats['sbo_loss'] = nll.detach() / total
    return loss + nll / total
