"""Ways to choose the tokens that a masked language model has to predict, beside bert.py's own of
single tokens: whole words, spans (lib/spanbert.py) and masks that a text keeps, bert.py's --masking
and --static_masks.

Letters: B batch, L tokens of text in a row, K masked tokens of a row, V vocabulary.
"""
import functools

import numpy as np

from data.rows import mix
from lib import spanbert


def choose(tokens, special, config, rng, tokenizer):
    """As bert.choose. tokens: (B, L), special: (B, L) bool, not to be hidden -> four arrays (B, K):
    places in order, whether each counts, a random number that decides between mask, random and
    keep, number of the span or None"""
    B, L = tokens.shape
    K = config.n_masked
    if config.masking == 'span':
        u_length = rng.random(K)
        u_place = rng.random(L - K + 1)
        places, span = spanbert.span_places(u_length, u_place, K, L)
        u = np.take_along_axis(rng.random(K), span, 1)     # a span is treated as a whole
        counts = ~np.take_along_axis(special, places, 1)
        return places, counts, u, span

    random = rng.random
    if config.static_masks:
        copy = rng.integers(0, config.static_masks, 1)
        random = fixed_random(tokens, copy)
    order = random(L) + special                                        # separators come last
    if config.masking == 'word':
        ranked, fits = whole_words(order, begins_word(tokens, tokenizer), K)
    else:
        ranked = np.argpartition(order, K - 1, axis=1)
        ranked = ranked[:, :K]
        fits = np.ones((B, K), bool)
    in_order = np.argsort(ranked, axis=1)
    places = np.take_along_axis(ranked, in_order, 1)
    fits = np.take_along_axis(fits, in_order, 1)
    counts = fits & ~np.take_along_axis(special, places, 1)
    u = np.take_along_axis(random(L), places, 1)
    return places, counts, u, None


def whole_words(order, first, K):
    """The K lowest tokens in an order (B, L) in which a word takes the place of its first token.
    first: (B, L) bool. -> places (B, K), false where a word does not fit as a whole (B, K)"""
    L = order.shape[1]
    start = np.where(first, np.arange(L), 0)
    start = np.maximum.accumulate(start, 1)                # of each token's word
    order = np.take_along_axis(order, start, 1)
    ranked = np.argsort(order, axis=1, kind='stable')
    following = -1
    if K < L:
        following = np.take_along_axis(order, ranked[:, [K]], 1)
    ranked = ranked[:, :K]
    cut = np.take_along_axis(order, ranked, 1) == following
    return ranked, ~cut | cut.all(1, keepdims=True)                    # a word longer than K is cut


def begins_word(tokens, tokenizer):
    """(B, L) -> (B, L) bool"""
    if tokenizer is None:
        raise ValueError('masking=word needs the tokenizer of the text, and train.py gave none')
    goes_on, ends_inside = word_parts(tokenizer)
    first = np.ones(tokens.shape, bool)
    before = tokens[:, :-1]
    token = tokens[:, 1:]
    first[:, 1:] = ~(goes_on[token] & ends_inside[before])
    return first


@functools.lru_cache(4)
def word_parts(tokenizer):
    """-> two (V,) bool: the token begins like the middle of a word, the token ends inside a word.
    What is decoded after a letter shows whether the tokenizer puts a space in front, be it
    byte-level or WordPiece."""
    def inside(byte):
        return byte >= 128 or chr(byte).isalnum() or byte == ord('_')

    V = tokenizer.vocab_size
    letter = next(i for i in range(V) if tokenizer.decode_bytes([i])[-1:].isalpha())
    skip = len(tokenizer.decode_bytes([letter]))
    special = set(tokenizer.special.values())
    spelled = []
    for i in range(V):
        after_letter = tokenizer.decode_bytes([letter, i])
        spelled.append(b'' if i in special else after_letter[skip:])
    goes_on = np.array([len(b) > 0 and inside(b[0]) for b in spelled])
    ends_inside = np.array([len(b) > 0 and inside(b[-1]) for b in spelled])
    return goes_on, ends_inside


def fixed_random(tokens, copy):
    """A function like rng.random for static masks: the numbers of a place depend on the tokens from
    4 before it to 4 after it and on the copy's number, so a text meets the same mask wherever its
    window begins. (B, L), (B, 1) -> function: n -> (B, n)"""
    L = tokens.shape[1]
    near = tokens.astype(np.uint64) + np.uint64(1)
    near = np.pad(near, ((0, 0), (4, 4)))
    factors = [mix(np.uint64([i + 1])) for i in range(9)]
    key = sum(near[:, i:i + L] * factor for i, factor in enumerate(factors))
    key = key ^ mix(copy.astype(np.uint64) + np.uint64(99))
    calls = iter(range(1, 9))

    def random(n):
        bits = mix(key + mix(np.uint64([next(calls)])))
        return (bits >> np.uint64(11)) * 2.0 ** -53

    return random
