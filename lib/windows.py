"""Causal sliding windows over long rows, in blocks: for a window of W tokens a row is cut into n
blocks of W. Each block sees its own keys and those of the block before it, so that the cost grows
with T W, not with T^2.

Letters: B batch, T tokens, W window, n blocks, H heads, G key/value heads, D head width.
"""
import torch
from torch.nn import functional as F


def window_mask(rows, T, W, device):
    """Who sees whom in each block of `rows` texts of T tokens: bool (rows n, 1, W, 2 W)"""
    n = (T + W - 1) // W
    queries = torch.arange(W, 2 * W, device=device)[:, None]
    keys = torch.arange(2 * W, device=device)
    causal = keys <= queries
    near = keys > queries - W
    block = torch.arange(n, device=device)[:, None, None]
    exists = block + keys // W > 0                        # nothing is before block 0
    see = causal & near & exists                          # (n, W, 2 W)
    see = see.expand(rows, n, W, 2 * W)
    return see.flatten(0, 1)[:, None]


def cut_into_blocks(q, k, v, W):
    """Blocks of W queries become rows of their own, each with its keys and those of the block
    before. q: (B, T, H, D), k and v: (B, T, G, D) -> (B n, W, H, D), two of (B n, 2 W, G, D)"""
    q = blocks(q, W).flatten(0, 1)
    k = with_block_before(k, W)
    v = with_block_before(v, W)
    return q, k, v


def blocks(y, W, before=0):
    """y: (B, T, H, D) -> (B, n, W, H, D). `before` zeros stand in front, the last block is filled
    up with zeros."""
    behind = -y.size(1) % W
    padding = (0, 0, 0, 0, before, behind)                # of D, of H, of T
    return F.pad(y, padding).unflatten(1, (-1, W))


def with_block_before(y, W):
    """y: (B, T, G, D) -> (B n, 2 W, G, D): each block behind the one before it"""
    y = blocks(y, W, before=W)                            # (B, 1 + n, W, G, D)
    y = torch.cat((y[:, :-1], y[:, 1:]), dim=2)           # (B, n, 2 W, G, D)
    return y.flatten(0, 1)
