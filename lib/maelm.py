"""MAE-LM (Meng et al. 2023, 2302.02060), bert.py's --n_decoder: the encoder never meets a hidden
token, a small decoder gets [MASK] in their places. So nothing of what the encoder learns is spent
on [MASK], which no task has.

Letters: B batch, T tokens, C width, K hidden tokens of a row.
"""
import torch
from torch.nn import functional as F


def states_of_visible(model, ids, segments, places):
    """Training: the encoder reads the T - K visible tokens of each row alone. ids: (B, T), places:
    (B, K) of the hidden ones -> what the encoder returns, 0 at the hidden places, and what the
    decoder makes of it; (B, T, C) each"""
    B, T = ids.shape
    C = model.config.n_embd
    n_visible = T - places.size(1)
    hole = torch.zeros_like(ids, dtype=torch.bool)
    hole = hole.scatter(1, places, True)
    order = hole.to(torch.uint8).argsort(dim=1, stable=True)
    visible = order[:, :n_visible]                         # in the order of the text
    index = visible[..., None]
    x = model.embeddings(ids, segments)
    width = x.size(2)
    x = x.gather(1, index.expand(-1, -1, width))
    x = model.encoder(x, None, visible)                    # (B, T - K, C)
    everywhere = x.new_zeros(B, T, C)
    x = everywhere.scatter(1, index.expand(-1, -1, C), x)
    return x, decode(model, x, hole, segments)


def states(model, ids, segments, mask):
    """Use: what the language model's head reads, hidden tokens being [MASK]. ids, segments, mask:
    (B, T) -> (B, T, C). mask: 1 or true for real tokens; None or (B, 0): all are."""
    if mask is None or mask.size(1) == 0:
        real = torch.ones_like(ids, dtype=torch.bool)
    else:
        real = mask > 0
    hole = ids == model.config.mask_id
    x = model.hidden(ids, segments, real & ~hole)
    return decode(model, x, hole, segments, real)


def decode(model, x, hole, segments=None, mask=None):
    """Hidden states (B, T, C), with [MASK] in the holes (B, T) and all places and segments added
    once more, through the small decoder. -> (B, T, C)"""
    embeddings = model.embeddings
    extras = embeddings.extras(x.size(1), x, segments)
    void = embeddings.tokens.weight[model.config.mask_id]
    if hasattr(model.encoder, 'project'):
        project = model.encoder.project
        extras = F.linear(extras, project.weight)
        void = project(void)
    void = void.to(x.dtype)
    x = torch.where(hole[..., None], void, x)
    x = (x + extras).to(x.dtype)
    return model.mae(x, mask)
