"""How an encoder-decoder writes: the likeliest tokens, tokens that are drawn, or beam search.

Letters: B batch, K beams of each text, R = B K rows, n tokens to write, t tokens so far, H heads,
S source tokens, V vocabulary.
"""
import math

import torch

NEVER = -1e9  # the score of a beam that loses against every other one


class Cache:
    """Keys and values of the tokens so far, in tensors of fixed size; the place is a tensor too, so
    that a compiled step never changes its shapes."""

    def __init__(self, config, rows, length, bias, memory, real):
        """rows: R; length: tokens that a row can hold; bias: (H, length), by distance; memory: each
        block's keys and values of the source, computed once; real: bool (B, 1, 1, S), which of
        the source is no padding"""
        shape = (config.decoder_layers, rows, config.n_head, length, config.width)
        self.length = length
        self.bias = bias
        self.memory = memory
        self.real = real
        self.k = bias.new_zeros(shape)
        self.v = bias.new_zeros(shape)
        self.seen = None               # (R, 1, 1, length), set by lib/one_stack.py
        self.position = torch.zeros((), dtype=torch.long, device=bias.device)  # tokens held
        self.places = torch.arange(length, device=bias.device)

    def reorder(self, rows):
        """Row i becomes what row rows[i] was, (R,); the beams of a source stay among themselves."""
        n = int(self.position) if self.position.device.type == 'cpu' else self.length
        for held in (self.k, self.v):
            held[:, :, :, :n] = held[:, rows, :, :n]


@torch.no_grad()
def generate(model, source, mask=None, max_new_tokens=64, temperature=0.0, top_k=0, top_p=1.0,
             beams=1, length_penalty=1.0, no_repeat_ngram=0, early_stopping=False, generator=None,
             step=None):
    """What the model answers to source (B, S): tokens (B, n <= max_new_tokens), up to eot_id and
    then pad_id.

    mask: bool (B, S), which source tokens are real. temperature 0 takes the likeliest token, else
    one is drawn from the top_k and the top_p likeliest. beams > 1: beam search, by (sum of log p) /
    tokens^length_penalty. no_repeat_ngram: no n-gram of this length comes twice. step: model.step,
    perhaps compiled. Raises ValueError if beams are to be drawn.
    """
    if beams > 1 and temperature:
        raise ValueError('beam search takes the likeliest texts: leave out temperature, or beams')
    c = model.config
    B = len(source)
    device = source.device
    step = step or model.step
    cache = model.cache(B * beams, max_new_tokens, source, mask)
    if beams > 1:
        return search(c, step, cache, B, beams, max_new_tokens, length_penalty, no_repeat_ngram,
                      early_stopping)

    out = torch.full((B, max_new_tokens + 1), c.pad_id, device=device)
    out[:, 0] = c.start
    done = torch.zeros(B, dtype=torch.bool, device=device)
    for t in range(1, max_new_tokens + 1):
        scores = step(out[:, t - 1:t], cache).float()              # (B, V)
        if no_repeat_ngram:
            scores = unrepeated(scores, out[:, :t], no_repeat_ngram)
        if temperature:
            token = draw_token(scores / temperature, top_k, top_p, generator)
        else:
            token = scores.argmax(dim=-1)
        out[:, t] = torch.where(done, c.pad_id, token)
        done |= token == c.eot_id
        # a GPU is asked seldom: it would have to wait
        if (device.type == 'cpu' or t % 16 == 0) and done.all():
            break
    return out[:, 1:t + 1]


def draw_token(scores, top_k, top_p, generator):
    """scores: (B, V) -> a token of each row (B,), drawn from the top_k and the top_p likeliest."""
    best, order = scores.sort(dim=-1, descending=True)
    if top_k:
        best[:, top_k:] = -math.inf
    p = best.softmax(dim=-1)
    before = p.cumsum(dim=-1) - p                                  # 0 for the likeliest: it stays
    p = p.masked_fill(before >= top_p, 0)
    drawn = torch.multinomial(p, 1, generator=generator)           # (B, 1)
    return order.gather(1, drawn)[:, 0]


def unrepeated(scores, ids, n):
    """Scores (R, V) of the next token, -inf for all that would repeat an n-gram of ids (R, t)."""
    if ids.size(1) < n:
        return scores
    V = scores.size(1)
    grams = ids.unfold(1, n, 1)                                    # (R, t - n + 1, n)
    last = ids[:, None, ids.size(1) + 1 - n:]                      # (R, 1, n - 1)
    seen = (grams[..., :-1] == last).all(dim=-1)                   # (R, t - n + 1)
    token = torch.where(seen, grams[..., -1], V)                   # column V takes what may come
    banned = torch.zeros(len(ids), V + 1, dtype=torch.bool, device=ids.device)
    banned.scatter_(1, token, True)
    return scores.masked_fill(banned[:, :-1], -math.inf)


def search(config, step, cache, B, K, n, length_penalty, no_repeat_ngram, early_stopping):
    """Writes B texts with K beams each -> the best of each, (B, at most n), padded with pad_id.

    step: Model.step; cache: Model.cache of B K rows, which the beams of a text fill one after
    another. At each step the 2 K best continuations are looked at. Those of the K best that end are
    candidates for the K best finished texts, by (sum of log p) / tokens^length_penalty; the K best
    others go on. The search is over when the best running beam, at its length, is no better than
    the worst of K finished texts, or, with early_stopping, when there are K finished ones.
    """
    device = cache.bias.device
    running = torch.full((B, K, n + 1), config.pad_id, device=device)
    running[:, :, 0] = config.start
    scores = torch.zeros(B, K, device=device)                      # sums of log p
    scores[:, 1:] = NEVER                                          # all beams are one at first
    finished = running.clone()                                     # the best one first
    finished_scores = torch.full((B, K), -math.inf, device=device)
    may_improve = torch.ones(B, 1, dtype=torch.bool, device=device)
    is_beam = torch.arange(2 * K, device=device) < K
    first_row = K * torch.arange(B, device=device)[:, None]

    for t in range(1, n + 1):
        last = running[:, :, t - 1].reshape(B * K, 1)
        logits = step(last, cache).float()
        log_p = logits.log_softmax(dim=-1)                         # (B K, V)
        if no_repeat_ngram:
            log_p = unrepeated(log_p, running[:, :, :t].flatten(0, 1), no_repeat_ngram)
        V = log_p.size(1)
        totals = log_p.view(B, K, V) + scores[..., None]
        totals = totals.flatten(1)                                 # (B, K V)
        best, index = totals.topk(2 * K)
        parent = index // V
        token = index % V
        grown = texts_at(running, parent)                          # (B, 2 K, n + 1)
        grown[:, :, t] = token

        ends = (token == config.eot_id) | (t == n)
        joins = ends & is_beam & may_improve
        if early_stopping:
            has_finished = (finished_scores > -math.inf).all(dim=1, keepdim=True)
            joins = joins & ~has_finished
        penalty = t ** length_penalty
        candidates = (best / penalty).masked_fill(~joins, -math.inf)
        candidates = torch.cat((finished_scores, candidates), dim=1)
        finished_scores, index = candidates.topk(K)
        texts = torch.cat((finished, grown), dim=1)
        finished = texts_at(texts, index)

        scores, index = best.masked_fill(ends, NEVER).topk(K)
        running = texts_at(grown, index)
        may_improve = may_improve & (scores[:, :1] / penalty > finished_scores[:, -1:])
        if t == n or not may_improve.any():
            break
        if early_stopping and (finished_scores > -math.inf).all():
            break
        rows = parent.gather(1, index) + first_row
        cache.reorder(rows.flatten())

    return cut(finished[:, 0, 1:], config.eot_id)


def texts_at(texts, index):
    """Of the texts (B, m, n + 1) of each row those at index (B, k) -> (B, k, n + 1)."""
    index = index[..., None].expand(-1, -1, texts.size(2))
    return texts.gather(1, index)


def cut(texts, eot):
    """The texts (B, n) up to the column where the longest of them ends."""
    ends = texts == eot
    first_end = ends.int().argmax(dim=1)
    last = torch.where(ends.any(dim=1), first_end, texts.size(1) - 1)
    longest = int(last.max()) + 1
    return texts[:, :longest]
