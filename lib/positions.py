"""Less common ways to encode a decoder's positions: sines, ALiBi, stretched rotary angles."""
import math

import torch


def sinusoidal(positions, width):
    """Attention Is All You Need, 3.5: sin(p / 10000^(2i/C)) at 2i, the cosine at 2i + 1. (..., T)
    -> (..., T, C)"""
    even = torch.arange(0, width, 2, device=positions.device).float()      # 2i
    freq = 1e4 ** (-even / width)
    angle = positions[..., None] * freq
    pairs = torch.stack((angle.sin(), angle.cos()), dim=-1)
    pairs = pairs.flatten(-2)
    return pairs[..., :width]


def alibi_slopes(n_head, device=None):
    """2^(-8i/H), i = 1..H. When H is no power of two: those of the power below, then every other
    one of the power above, as in the authors' code (Press et al. 2021). -> (H,)"""
    power = 2 ** int(math.log2(n_head))
    below = torch.arange(1, power + 1, device=device)
    above = torch.arange(n_head - power, device=device) + 0.5
    i = torch.cat((below, above))
    return 2 ** (-8 / power * i)


def alibi(n_head, distance):
    """ALiBi's bias of attention, which falls with the distance (.., T, S) -> (.., H, T, S)"""
    slopes = alibi_slopes(n_head, distance.device)
    slopes = slopes[:, None, None]
    return -slopes * distance.unsqueeze(-3)


def stretched(config, freq):
    """Rotary frequencies for texts rope_factor times longer. linear: all of them turn slower.
    llama3: slow pairs do, fast ones are kept, and those between are blended."""
    if config.rope_scaling == 'linear':
        return freq / config.rope_factor
    turns = config.rope_original * freq / (2 * math.pi)
    kept = (turns - config.rope_low) / (config.rope_high - config.rope_low)
    kept = kept.clamp(0, 1)
    return freq * (kept + (1 - kept) / config.rope_factor)
