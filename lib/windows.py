"""Causal sliding windows over long rows, in blocks: for a window of W tokens a row is cut into n blocks of W. Each block
sees its own keys and those of the block before it, so that the cost grows with T W, not with T^2.

Letters: B batch, T tokens, W window, n blocks, H heads, G key/value heads, D head width.
"""
import torch
from torch.nn import functional as F


def window_mask(rows, T, W, device):
    """Who sees whom in each block of `rows` texts of T tokens: bool (rows n, 1, W, 2 W)"""
    n = (T + W - 1) // W
    queries = torch.arange(W, 2 * W, device=device)[:, None]
    keys = torch.arange(2 * W, device=device)
    see = (keys <= queries) & (keys > queries - W)                         # (W, 2 W)
    block = torch.arange(n, device=device)[:, None, None]
    exists = block + keys // W > 0                                         # nothing is before block 0
    return (see & exists).expand(rows, n, W, 2 * W).flatten(0, 1)[:, None]


def cut_into_blocks(q, k, v, W):
    """Blocks of W queries become rows of their own, each with its keys and those of the block before. The last block is
    padded. q: (B, T, H, D), k and v: (B, T, G, D) -> (B n, W, H, D), two of (B n, 2 W, G, D)"""
    missing = -q.size(1) % W                                               # tokens, in the last block
    q = F.pad(q, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, W))           # (B, n, W, H, D)
    pairs = []
    for y in (k, v):
        y = F.pad(y, (0, 0, 0, 0, W, missing)).unflatten(1, (-1, W))       # (B, 1 + n, W, G, D)
        pairs.append(torch.cat((y[:, :-1], y[:, 1:]), dim=2).flatten(0, 1))
    return q.flatten(0, 1), *pairs
