"""Causal sliding windows over long rows, in chunks: for a window of W tokens a row is cut into n
chunks of W. Each chunk attends to its own keys and those of the chunk before it, so that the cost
grows with T W, not with T^2.

Letters: B batch, T tokens, W window, n chunks, H heads, G key/value heads, D head width.
"""
import torch
from torch.nn import functional as F


def chunk_mask(rows, T, W, device):
    """Which keys each query of a chunk attends to, for `rows` rows of T tokens: bool
    (rows n, 1, W, 2 W)"""
    n = (T + W - 1) // W
    queries = torch.arange(W, 2 * W, device=device)[:, None]
    keys = torch.arange(2 * W, device=device)
    causal = keys <= queries
    near = keys > queries - W
    chunk = torch.arange(n, device=device)[:, None, None]
    exists = chunk + keys // W > 0                        # nothing is before chunk 0
    allowed = causal & near & exists                      # (n, W, 2 W)
    allowed = allowed.expand(rows, n, W, 2 * W)
    return allowed.flatten(0, 1)[:, None]


def windowed_attention(q, k, v, mask, dropout):
    """Attention in which each chunk is a row of its own, with its keys and those of the chunk
    before. q: (B, T, H, D), k and v: (B, T, G, D), mask: see chunk_mask -> (B, T, H, D)"""
    B, T, H, D = q.shape
    G = k.size(2)
    W = mask.size(-2)
    q = chunks(q, W).flatten(0, 1)                        # (B n, W, H, D)
    k = with_chunk_before(k, W)                           # (B n, 2 W, G, D)
    v = with_chunk_before(v, W)
    q = q.transpose(1, 2)                                 # (B n, H, W, D)
    k = k.transpose(1, 2)                                 # (B n, G, 2 W, D)
    v = v.transpose(1, 2)
    if G < H:
        k = k.repeat_interleave(H // G, dim=1)
        v = v.repeat_interleave(H // G, dim=1)
    y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    y = y.transpose(1, 2)                                 # (B n, W, H, D)
    y = y.reshape(B, -1, H, D)                            # (B, n W, H, D)
    return y[:, :T]                                       # without the last chunk's padding


def chunks(y, W, before=0):
    """y: (B, T, H, D) -> (B, n, W, H, D). `before` zeros are put in front, and the last chunk is
    padded with zeros."""
    behind = -y.size(1) % W
    padding = (0, 0, 0, 0, before, behind)                # of D, of H, of T
    return F.pad(y, padding).unflatten(1, (-1, W))


def with_chunk_before(y, W):
    """y: (B, T, G, D) -> (B n, 2 W, G, D): each chunk behind the one before it"""
    y = chunks(y, W, before=W)                            # (B, 1 + n, W, G, D)
    y = torch.cat((y[:, :-1], y[:, 1:]), dim=2)           # (B, n, 2 W, G, D)
    return y.flatten(0, 1)
