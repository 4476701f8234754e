"""Layers that see only near tokens, at a cost that grows with the window and not with the row
(bert.py's --window).

Letters: B batch, T tokens, C width, H heads, D head width, h tokens seen to each side, n blocks of
h tokens in a row.
"""
import torch
from torch.nn import functional as F


def make_mask(x, mask, positions, window):
    """Who sees whom in a layer with a window: window / 2 tokens to each side. x: (B, T, C). mask:
    (B, 1, 1, T) bool, true for real tokens, or None. positions: (B, T), or None: 0, 1, ... -> a
    mask for scaled_dot_product_attention, or that of blocks() where a row is long enough to be
    cut."""
    B, T = x.shape[:2]
    h = window // 2
    if positions is None and 1 < window and 2 * window < T:
        if mask is None:
            mask = torch.ones(B, 1, 1, T, dtype=torch.bool, device=x.device)
        return near_mask(mask[:, 0, 0], h)
    if T - 1 <= h:
        return mask
    if positions is None:
        positions = torch.arange(T, device=x.device)[None]
    query = positions[:, :, None]
    key = positions[:, None]
    near = (query - key).abs() <= h
    near = near[:, None]                                   # (B or 1, 1, T, T)
    if mask is None:
        return near
    itself = torch.eye(T, dtype=torch.bool, device=x.device)
    return near & mask | itself            # a padded token that sees nothing would give NaN


def near_mask(real, h):
    """The mask of blocks(). real: (B, T) bool, false for padding -> (B n, 1, h, 3 h) bool"""
    key = torch.arange(-h, 2 * h, device=real.device)
    query = torch.arange(h, device=real.device)[:, None]
    distance = key - query                                 # (h, 3 h)
    exists = around(real[..., None], h)                    # (B, n, 3 h, 1)
    exists = exists.transpose(2, 3)
    near = distance.abs() <= h
    itself = distance == 0                 # a padded token that sees nothing would give NaN
    seen = exists & near | itself          # (B, n, h, 3 h)
    seen = seen.flatten(0, 1)
    return seen[:, None]


def blocks(q, k, v, h):
    """Blocks of h queries become rows of their own, each with the 3 h keys and values around it.
    q, k, v: (B, T, H, D) -> q (B n, h, H, D), k and v (B n, 3 h, H, D)"""
    B, T, H, D = q.shape
    missing = -T % h
    q = F.pad(q, (0, 0, 0, 0, 0, missing))
    q = q.view(-1, h, H, D)
    k = around(k.flatten(2), h)
    k = k.view(-1, 3 * h, H, D)
    v = around(v.flatten(2), h)
    v = v.view(-1, 3 * h, H, D)
    return q, k, v


def around(x, h):
    """What a block of h tokens may see: itself, the block before and the one after, zeros beyond
    the ends of the row. (B, T, C) -> (B, n, 3 h, C) for n = ceil(T / h)"""
    missing = -x.size(1) % h
    x = F.pad(x, (0, 0, h, h + missing))
    x = x.unflatten(1, (-1, h))                            # (B, n + 2, h, C)
    before = x[:, :-2]
    itself = x[:, 1:-1]
    after = x[:, 2:]
    return torch.cat((before, itself, after), dim=2)
