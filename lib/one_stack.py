"""T5's decoder alone (T5, 3.2.1): source and target are one row of S + T tokens, padding first.

architecture=decoder is a language model of source and target; in a prefix model the tokens of the
source see each other both ways. The loss is on the targets only.

Letters: B batch, S source tokens, T target tokens, C width, H heads, R rows while decoding.
"""
import torch
from torch.nn import functional as F


def join(model, source, target_in, mask):
    """source (B, S), what the decoder reads (B, T), which source tokens are real (B, S) or None
    -> what the first block gets (B, S + T, C), bias, which tokens are real (B, 1, 1, S + T)"""
    S = source.size(1)
    real = None
    if mask is not None:                       # rotated, so that the source ends with a real token
        place = torch.arange(S, device=mask.device)
        turn = (place + mask.sum(1, keepdim=True)) % S
        source = source.gather(1, turn)
        mask = mask.gather(1, turn)
        is_target = torch.ones_like(target_in, dtype=torch.bool)
        real = torch.cat((mask, is_target), dim=1)[:, None, None]
    ids = torch.cat((source, target_in), dim=1)
    two_way = model.config.architecture == 'prefix'
    i = torch.arange(ids.size(1), device=ids.device)
    seen = i <= i[:, None]                                         # (S + T, S + T)
    if two_way:
        is_source = i < S
        seen = seen | (is_source & is_source[:, None])
    if real is not None:
        seen = seen & real | (i == i[:, None])                     # padding sees itself: no NaN
    bias = model.bias(model.decoder_bias, len(i), len(i), two_way, seen)
    x = model.begin(model.tokens(ids))
    return x, bias, real


def hidden(model, source, target_in, mask):
    """What the head reads, (B, T, C)."""
    x, bias, _ = join(model, source, target_in, mask)
    for block in model.decoder:
        x = model.run(block, x, bias)
    x = x[:, source.size(1):]
    return model.scaled(model.drop(model.decoder_norm(x)))


def read(model, cache, source, mask):
    """Puts the keys and values of the source (B, S) into an empty cache of R rows -> the cache"""
    B, S = source.shape
    copies = cache.k.size(1) // B                                  # R / B
    no_target = source[:, :0]
    x, bias, real = join(model, source, no_target, mask)
    for i, block in enumerate(model.decoder):
        def write(k, v):
            cache.k[i, :, :, :S] = k.repeat_interleave(copies, dim=0)
            cache.v[i, :, :, :S] = v.repeat_interleave(copies, dim=0)
            return k, v
        x = block(x, bias, write=write)
    if real is not None:
        seen = F.pad(real, (0, cache.length - S), value=True)
        cache.seen = seen.repeat_interleave(copies, dim=0)
    cache.position += S
    return cache
