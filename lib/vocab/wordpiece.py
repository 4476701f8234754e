"""
Trains WordPiece, the subwords of BERT and ELECTRA (Schuster and Nakajima 2012; Wu et al. 2016).
"""
from itertools import chain

import numpy as np

from lib.vocab.common import added_token
from lib.vocab.spec import from_spec
from lib.vocab.words import split_words, unknown_token

PREFIX = '##'  # of a piece that goes on inside a word
MAX_WORD = 100  # characters; a longer word is unknown
ROUND = 20  # a round of merges adds at most one token for so many that are there
STAGES = {  # text is lower-cased and split as BERT's
    'normalizer': {
        'type': 'BertNormalizer',
        'clean_text': True,
        'handle_chinese_chars': True,
        'strip_accents': None,
        'lowercase': True,
    },
    'pre_tokenizer': {'type': 'BertPreTokenizer'},
    'decoder': {'type': 'WordPiece', 'prefix': PREFIX, 'cleanup': True},
}


def train_wordpiece(count, vocab_size, special, name, progress=None):
    """
    The description of a WordPiece tokenizer with at most vocab_size ids for {chunk: how often it
    occurs}.

    WordPiece merges the pair that raises the likelihood of the text most, c(ab) log(c(ab) N / (c(a)
    c(b))), where BPE asks for c(ab) alone. Every merge changes the gains around it, so a round
    merges the best pairs that share no symbol, at most one for twenty tokens, and counts again.
    """
    words, room, special = split_words(count, STAGES, vocab_size, special)
    spelled = [[word[0], *(PREFIX + c for c in word[1:])] for word in words]
    tokens = sorted(set(chain.from_iterable(spelled)))
    ids = {token: i for i, token in enumerate(tokens)}

    # the words in one array of ids, -1 before and after each; the count of the word at each place
    symbols = [-1]
    weight = [0]
    for pieces, k in zip(spelled, words.values()):
        symbols += [*map(ids.get, pieces), -1]
        weight += [k] * len(pieces) + [0]
    symbols = np.array(symbols)
    weight = np.array(weight, float)

    while len(tokens) < room:
        at = np.flatnonzero((symbols[:-1] >= 0) & (symbols[1:] >= 0))  # where a pair begins
        pairs, which = np.unique(symbols[at] << 32 | symbols[at + 1], return_inverse=True)
        left = pairs >> 32
        right = pairs & 0xffffffff
        gain = likelihood_gain(symbols, weight, at, which, left, right)
        limit = min(room, len(tokens) + 1 + len(tokens) // ROUND)
        merged = best_pairs(left, right, gain, tokens, ids, limit)
        if merged.max(initial=-1) < 0:
            break
        symbols, weight = apply_merges(symbols, weight, at, merged[which])
        if progress:
            progress(f'merging: {len(tokens)} of {room}')

    vocab = {token: i for i, token in enumerate(tokens + special)}
    model = {
        'type': 'WordPiece',
        'unk_token': unknown_token(special),
        'continuing_subword_prefix': PREFIX,
        'max_input_chars_per_word': MAX_WORD,
        'vocab': vocab,
    }
    added = [added_token(s, vocab[s]) for s in special]
    return from_spec({**STAGES, 'added_tokens': added, 'model': model}, name)


def likelihood_gain(symbols, weight, at, which, left, right):
    """
    What merging each pair adds to the log likelihood: float64 (pairs,).
    at: where pairs begin; which: the number of the pair there; left, right: the ids of each pair.
    """
    both = np.bincount(which, weight[at])
    single = np.bincount(symbols + 1, weight)[1:]
    return both * np.log(both * single.sum() / single[left] / single[right])


def best_pairs(left, right, gain, tokens, ids, limit):
    """
    Takes the best pairs that share no symbol, appends what they make to tokens and ids, until there
    are `limit` tokens. Returns the id that each pair becomes, -1 if it is not merged: int64
    (pairs,).
    """
    merged = np.full(len(gain), -1)
    used = set()
    for i in np.argsort(-gain, kind='stable'):
        if gain[i] <= 0 or len(tokens) >= limit:
            break
        pair = {int(left[i]), int(right[i])}
        if used & pair:
            continue
        used |= pair
        text = tokens[left[i]] + tokens[right[i]].removeprefix(PREFIX)
        if text not in ids:  # a text that can be made in two ways is one token
            ids[text] = len(tokens)
            tokens.append(text)
        merged[i] = ids[text]
    return merged


def apply_merges(symbols, weight, at, made):
    """
    symbols and weight after the merges. at: where pairs begin; made: the id that each becomes, -1
    if none.
    """
    i = np.arange(len(at))
    hit = made >= 0
    # aaa: in a run of overlapping pairs every second one is merged, from the left
    overlaps = hit & np.append(False, hit[:-1] & (np.diff(at) == 1))
    last_free = np.maximum.accumulate(np.where(overlaps, -1, i))
    hit &= (i - last_free) % 2 == 0
    symbols[at[hit]] = made[hit]
    kept = np.ones(len(symbols), bool)
    kept[at[hit] + 1] = False
    return symbols[kept], weight[kept]
