"""Beam search for an encoder-decoder, by the rules of Hugging Face transformers, and texts that do not repeat themselves.

Letters: B batch, K beams of each text, n tokens to write, t tokens so far, V vocabulary.
"""
import math

import torch

NEVER = -1e9  # the score of a beam that loses against every other one


def unrepeated(scores, ids, n):
    """The scores (R, V) of the next token, with -inf for all that would repeat an n-gram of ids (R, t)."""
    if ids.size(1) < n:
        return scores
    V = scores.size(1)
    grams = ids.unfold(1, n, 1)                                    # (R, t - n + 1, n)
    last = ids[:, None, ids.size(1) + 1 - n:]                      # (R, 1, n - 1)
    seen = (grams[..., :-1] == last).all(dim=-1)                   # (R, t - n + 1)
    banned = torch.zeros(len(ids), V + 1, dtype=torch.bool, device=ids.device)
    banned.scatter_(1, torch.where(seen, grams[..., -1], V), True)  # column V takes what is not banned
    return scores.masked_fill(banned[:, :-1], -math.inf)


def search(config, step, cache, B, K, n, length_penalty, no_repeat_ngram, early_stopping):
    """Writes B texts with K beams each -> the best text of each, (B, at most n), padded with pad_id.

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
    scores[:, 1:] = NEVER                                          # the beams are all the same: the first one counts
    finished = running.clone()                                     # the best one first
    finished_scores = torch.full((B, K), -math.inf, device=device)
    may_improve = torch.ones(B, 1, dtype=torch.bool, device=device)  # can a running beam still win?
    is_beam = torch.arange(2 * K, device=device) < K
    first_row = K * torch.arange(B, device=device)[:, None]

    for t in range(1, n + 1):
        logits = step(running[:, :, t - 1].reshape(B * K, 1), cache).float()
        log_p = logits.log_softmax(dim=-1)                         # (B K, V)
        if no_repeat_ngram:
            log_p = unrepeated(log_p, running[:, :, :t].flatten(0, 1), no_repeat_ngram)
        V = log_p.size(1)
        totals = log_p.view(B, K, V) + scores[..., None]
        best, index = totals.flatten(1).topk(2 * K)                # (B, 2 K)
        parent = index // V
        token = index % V
        grown = texts_at(running, parent)                          # (B, 2 K, n + 1)
        grown[:, :, t] = token

        ends = (token == config.eot_id) | (t == n)
        joins = ends & is_beam & may_improve
        if early_stopping:
            joins = joins & ~(finished_scores > -math.inf).all(dim=1, keepdim=True)
        candidates = (best / t ** length_penalty).masked_fill(~joins, -math.inf)
        finished_scores, index = torch.cat((finished_scores, candidates), dim=1).topk(K)
        finished = texts_at(torch.cat((finished, grown), dim=1), index)

        scores, index = best.masked_fill(ends, NEVER).topk(K)
        running = texts_at(grown, index)
        may_improve = may_improve & (scores[:, :1] / t ** length_penalty > finished_scores[:, -1:])
        if t == n or not may_improve.any():
            break
        if early_stopping and (finished_scores > -math.inf).all():
            break
        cache.reorder((parent.gather(1, index) + first_row).flatten())

    return cut(finished[:, 0, 1:], config.eot_id)


def texts_at(texts, index):
    """Of the texts (B, m, n + 1) of each row those at index (B, k) -> (B, k, n + 1)."""
    return texts.gather(1, index[..., None].expand(-1, -1, texts.size(2)))


def cut(texts, eot):
    """The texts (B, n) up to the column where the longest of them ends."""
    ends = texts == eot
    last = torch.where(ends.any(dim=1), ends.int().argmax(dim=1), texts.size(1) - 1)
    return texts[:, :int(last.max()) + 1]
