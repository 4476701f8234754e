"""The rarer ways to choose the tokens that a masked language model has to predict: whole words, spans, masks that a
text keeps. bert.py asks for them under --masking and --static_masks.

Letters: B batch, L tokens of text in a row, K masked tokens of a row, V vocabulary.
"""
import functools

import numpy as np


@functools.lru_cache(4)
def word_parts(tokenizer):
    """-> two (V,) bool: the token begins like the middle of a word, the token ends inside a word. What is decoded after
    a letter shows whether the tokenizer puts a space in front, be it byte-level or WordPiece."""
    inside = lambda b: b >= 128 or chr(b).isalnum() or b == 95
    letter = next(i for i in range(tokenizer.vocab_size) if tokenizer.decode_bytes([i])[-1:].isalpha())
    skip, special = len(tokenizer.decode_bytes([letter])), set(tokenizer.special.values())
    bytes_of = [b'' if i in special else tokenizer.decode_bytes([letter, i])[skip:]
                for i in range(tokenizer.vocab_size)]
    return tuple(np.array([len(b) > 0 and inside(b[at]) for b in bytes_of]) for at in (0, -1))


def mix(x):  # the output function of SplitMix64 (Steele et al. 2014), on uint64 arrays
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
    return x ^ (x >> np.uint64(31))


def fixed_random(tokens, copy):
    """A function like rng.random for static masks: numbers of a place depend on the tokens from 4 before it to 4 after
    it and on the copy's number: a text meets the same mask wherever its window begins. (B, L), (B, 1) -> function"""
    around = np.pad(tokens.astype(np.uint64) + np.uint64(1), ((0, 0), (4, 4)))
    key = (sum(around[:, i:i + tokens.shape[1]] * mix(np.uint64([i + 1])) for i in range(9))
           ^ mix(copy.astype(np.uint64) + np.uint64(99)))
    calls = iter(range(1, 9))
    return lambda n: (mix(key + mix(np.uint64([next(calls)]))) >> np.uint64(11)) * 2.0 ** -53


def span_places(u_length, u_place, K, L):
    """SpanBERT, 3.1: spans of geometric length (p = 0.2, at most 10, mean 3.8), K tokens in all, at least one token
    apart. Random numbers (B, K), (B, L - K + 1) -> places (B, K) in order, number of the span that each belongs to
    (B, K)"""
    share = 0.2 * 0.8 ** np.arange(10)
    length = 1 + np.searchsorted(np.cumsum(share / share.sum())[:-1], u_length, 'right')  # (B, K): so many suffice
    ends = np.minimum(np.cumsum(length, axis=1), K)                        # of each span, in hidden tokens
    span = (ends[:, None] <= np.arange(K)[:, None]).sum(2)                 # (B, K)
    slots = np.argsort(u_place, axis=1)[:, :K]                             # visible tokens before each span: distinct
    slots = np.sort(np.where(np.arange(K) <= span[:, -1:], slots, L), axis=1)
    return np.take_along_axis(slots, span, 1) + np.arange(K), span
