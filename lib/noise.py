"""The further objectives of t5.py: the noises of T5, MASS, BART, UL2 and AlexaTM.

    drop       Thank you me to your party week     ->  for inviting last
    mass       Thank you <M> <M> me to your <M>    ->  the whole text
    bert       like mass, but a tenth of the <M> are random tokens
    deshuffle  party me for your to last week      ->  the whole text
    mask delete infill permute rotate              ->  the whole text: BART's five (2.2)
               infill puts one <M> for a span of Poisson length, also of length 0
    bart       permute, then infill
    ul2        spans of 7 settings; each row begins with the token of its mode:
               R usual, S the end is missing, X extreme
    alexatm    the whole text from one without some spans (4 of 5 rows);
               or [CLM] and the first 20 to 80 % -> the rest

A noise takes the text (B, L) and uniform numbers u (B, 2L), and returns source (B, S), what the
encoder reads, and target (B, T), what the decoder writes. Each row is ended by eot_id; behind that
it is padded with -1. No noise loops over rows: what a row keeps is a mask, which numpy reads out
row after row. UL2's modes and AlexaTM's [CLM] are the last sentinels. t5.py names the papers.

Letters: B batch, L tokens of the text, S source tokens, T target tokens, K tokens kept, n spans.
"""
import functools
import math

import numpy as np

# UL2, table 1: mean length of a span, density, mode (R 0, S 1, X 2). S is a single span, which
# ends the text.
ul2_settings = (
    (3, 0.15, 0),
    (8, 0.15, 0),
    (1e9, 0.25, 1),
    (3, 0.5, 2),
    (8, 0.5, 2),
    (64, 0.15, 2),
    (64, 0.5, 2),
)


def damage(config, tokens, u, spans, prefix):
    """Damages the text (B, L) as config.objective says -> source (B, S), target (B, T).

    u: uniform numbers (B, 2L). spans and prefix are those of the model file: the mixtures use them.
    """
    if config.objective == 'ul2':
        return ul2(config, tokens, u, spans)
    if config.objective == 'alexatm':
        return alexatm(config, tokens, u, prefix)
    return noises[config.objective](config, tokens, u)


def sizes(config, L):
    """The lengths S of the source and T of the target that L tokens of text make."""
    lost = config.noisy(L)[0]
    if config.objective == 'ul2':
        settings = [config.noisy(L, density, span) for span, density, _ in ul2_settings]
        S = max(L - lost + n for lost, n in settings) + 2      # the mode's token and the end
        T = max(lost + n for lost, n in settings) + 1
        return S, T
    if config.objective == 'alexatm':
        return max(L - lost + 1, int(0.8 * L) + 2), L + 1
    if config.objective in ('infill', 'bart'):
        return L - lost + poisson_spans(lost, config.span) + 1, L + 1
    if config.objective == 'drop':
        return L - lost + 1, lost + 1
    if config.objective == 'delete':
        return L - lost + 1, L + 1
    return L + 1, L + 1

# --------------------------------------------------------------------------------------------------
# the parts that the noises share

def ended(config, tokens):
    """Rows of n tokens, and the end of text behind them: (B, n + 1)."""
    shape = (len(tokens), 1)
    end = np.full(shape, config.eot_id)
    return np.concatenate((tokens, end), axis=1)


def begun(first, tokens):
    """Rows of n tokens, and the token `first` in front of them: (B, n + 1)."""
    shape = (len(tokens), 1)
    start = np.full(shape, first)
    return np.concatenate((start, tokens), axis=1)


def choose(config, tokens, u):
    """Which tokens are damaged, bool (B, L): in each row as many, those with the smallest u."""
    B, L = tokens.shape
    n = config.noisy(L)[0]
    chosen = np.zeros((B, L), bool)
    smallest = np.argpartition(u[:, :L], n - 1, axis=1)[:, :n]
    np.put_along_axis(chosen, smallest, True, axis=1)
    return chosen

# --------------------------------------------------------------------------------------------------
# noises of single tokens and of their order

def drop(config, tokens, u):
    """The source lacks some tokens, the target is those tokens."""
    B = len(tokens)
    lost = choose(config, tokens, u)
    source = tokens[~lost].reshape(B, -1)
    target = tokens[lost].reshape(B, -1)
    return ended(config, source), ended(config, target)


def delete(config, tokens, u):
    """The source lacks some tokens, the target is the whole text (BART, 2.2)."""
    source, _ = drop(config, tokens, u)
    return source, ended(config, tokens)


def mask(config, tokens, u, random=0.0):
    """Some tokens of the source are <M>, or a random token with the chance `random` (T5, 3.3.1)."""
    L = tokens.shape[1]
    lost = choose(config, tokens, u)
    new = config.mask_id
    if random:
        chance = u[:, L:2 * L]
        any_token = (chance / random * config.vocab_size).astype(np.int64)
        new = np.where(chance < random, any_token, new)
    source = np.where(lost, new, tokens)
    return ended(config, source), ended(config, tokens)


def bert(config, tokens, u):
    """Like mask, but a tenth of the <M> are random tokens."""
    return mask(config, tokens, u, random=0.1)


def deshuffle(config, tokens, u):
    """The source has the tokens in a random order."""
    order = np.argsort(u[:, :tokens.shape[1]])
    source = np.take_along_axis(tokens, order, axis=1)
    return ended(config, source), ended(config, tokens)


def permute(config, tokens, u):
    """The source has the sentences in a random order; a sentence ends with stop_id."""
    stops = tokens == config.stop_id
    sentence = np.cumsum(stops, axis=1) - stops                    # (B, L): 0 0 0 1 1 2 ..
    key = np.take_along_axis(u, sentence, axis=1)                  # a number for each sentence
    order = np.argsort(key, axis=1, kind='stable')
    source = np.take_along_axis(tokens, order, axis=1)
    return ended(config, source), ended(config, tokens)


def rotate(config, tokens, u):
    """The source begins with a random token of the text; what was before it is behind the rest."""
    L = tokens.shape[1]
    first = (u[:, :1] * L).astype(np.int64)
    order = (np.arange(L) + first) % L
    source = np.take_along_axis(tokens, order, axis=1)
    return ended(config, source), ended(config, tokens)

# --------------------------------------------------------------------------------------------------
# spans of Poisson lengths

def poisson_spans(lost, span):
    """How many spans of Poisson lengths, `span` on average, surely hold `lost` tokens: six standard
    deviations more than it takes on average."""
    mean = lost / span
    return int(mean + 6 * math.sqrt(mean)) + 4


def poisson_lengths(u, span):
    """Lengths of a Poisson distribution with the mean `span`, one for each uniform number."""
    longest = int(span + 10 * math.sqrt(span)) + 10
    k = np.arange(longest)
    log_factorial = np.array([math.lgamma(i + 1) for i in k])
    log_chance = k * math.log(span) - span - log_factorial         # span^k e^-span / k!
    chance = np.exp(log_chance)
    return np.searchsorted(chance.cumsum(), u)


def poisson_holes(config, tokens, u):
    """Spans of Poisson lengths until config.noisy tokens are in one. A span may have length 0.

    -> lost: bool (B, L), the tokens that are in a span; at: (B, n), how many kept tokens stand
    before each span, in order; used: bool (B, n), which of the spans there are, the first ones.
    """
    B, L = tokens.shape
    n_lost = config.noisy(L)[0]
    n = poisson_spans(n_lost, config.span)

    ends = poisson_lengths(u[:, :n], config.span).cumsum(axis=1)   # (B, n): tokens lost so far
    ends = np.minimum(ends, n_lost)
    ends[:, -1] = n_lost
    begins = np.pad(ends[:, :-1], ((0, 0), (1, 0)))
    used = begins < n_lost
    at = (u[:, L:L + n] * (L - n_lost + 1)).astype(np.int64)
    at = np.where(used, at, L)
    at = np.sort(at, axis=1)

    # A token is lost if more spans have begun than have ended. One histogram counts all rows: row b
    # has the places from b (L + 1) on, and its last place is behind the text.
    def count(places):
        counts = np.bincount(places.ravel(), minlength=B * (L + 1))
        return counts.reshape(B, L + 1)

    row = np.arange(B)[:, None] * (L + 1)
    first = row + np.minimum(at + begins, L)
    behind = np.where(used, first + ends - begins, first)
    open_spans = (count(first) - count(behind)).cumsum(axis=1)
    lost = open_spans[:, :L] > 0
    return lost, at, used


def infill(config, tokens, u):
    """Spans of Poisson lengths become an <M> each; the target is the whole text (BART, 2.2)."""
    lost, at, used = poisson_holes(config, tokens, u)
    kept = tokens[~lost].reshape(len(tokens), -1)                  # (B, K)
    K = kept.shape[1]
    # Each token has a key, and the keys sort a row: kept token i has 2i + 1, so that the <M> behind
    # the first i kept tokens has 2i. The end of the text is next, and last what is not there.
    masks = np.where(used, config.mask_id, -1)
    mask_keys = np.where(used, 2 * at, 2 * K + 2)
    kept = ended(config, kept)
    kept_keys = np.broadcast_to(2 * np.arange(K + 1) + 1, kept.shape)
    keys = np.concatenate((mask_keys, kept_keys), axis=1)
    order = np.argsort(keys, axis=1, kind='stable')
    source = np.concatenate((masks, kept), axis=1)
    return np.take_along_axis(source, order, axis=1), ended(config, tokens)


def bart(config, tokens, u):
    """Permutes the sentences, then infills: what BART was trained with."""
    permuted, _ = permute(config, tokens, u[:, ::-1])
    source, _ = infill(config, permuted[:, :-1], u)                # without the end of text
    return source, ended(config, tokens)

# --------------------------------------------------------------------------------------------------
# mixtures

def mixture(config, tokens, u, ways, pick):
    """Damages row b by ways[pick[b]]. A way is a function of tokens and u -> source, target."""
    B, L = tokens.shape
    S, T = sizes(config, L)
    source = np.full((B, S), -1)
    target = np.full((B, T), -1)
    for i, way in enumerate(ways):
        rows = pick == i
        if rows.any():
            some_source, some_target = way(tokens[rows], u[rows])
            source[rows, :some_source.shape[1]] = some_source[:, :S]
            target[rows, :some_target.shape[1]] = some_target
    return source, target


def ul2(config, tokens, u, spans):
    """Spans of seven settings, equally likely; each source begins with the token of its mode."""
    def denoise(span, density, mode, tokens, u):
        source, target = spans(config, tokens, u, density, span)
        return begun(config.sentinel(config.n_sentinel - 1 - mode), source), target

    ways = [functools.partial(denoise, *setting) for setting in ul2_settings]
    pick = (u[:, -1] * len(ways)).astype(np.int64)
    return mixture(config, tokens, u, ways, pick)


def alexatm(config, tokens, u, prefix):
    """The whole text from one without some spans, or, in a fifth of the rows, the rest of the text
    from its beginning."""
    def denoise(tokens, u):
        lost, _, _ = poisson_holes(config, tokens, u)
        source = tokens[~lost].reshape(len(tokens), -1)
        return ended(config, source), ended(config, tokens)

    def continue_text(tokens, u):
        source, target = prefix(config, tokens, u, 0.2, 0.8)
        return begun(config.sentinel(config.n_sentinel - 1), source), target

    pick = (u[:, -1] > 0.8).astype(np.int64)
    return mixture(config, tokens, u, [denoise, continue_text], pick)


noises = dict(drop=drop, mass=mask, bert=bert, mask=mask, deshuffle=deshuffle, delete=delete,
              infill=infill, permute=permute, rotate=rotate, bart=bart)
