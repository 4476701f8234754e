"""
Trains Unigram, the subwords of T5 (Kudo 2018).

Each piece has a probability, and a word may be cut into pieces in many ways; the probability of a
way is the product of its pieces', that of the word the sum over all ways. The lattice of a word
holds all ways at once:

    edge (i, n)     the piece word[i:i + n], if the vocabulary has it
    alpha[j]        the probability of word[:j]: the sum over n of alpha[j - n] p(word[j - n:j])
    beta[i]         the probability of word[i:], in the same way from the right

so that alpha[i] p(edge) beta[i + n] / alpha[length] is how often the word is expected to use an
edge. Words of equal length have lattices of one shape and are computed together, as arrays.
"""
from collections import Counter
from dataclasses import dataclass
from heapq import nsmallest

import numpy as np

from lib.vocab.common import added_token
from lib.vocab.spec import from_spec
from lib.vocab.words import split_words, unknown_token

LONGEST = 16  # characters of a piece
LONGEST_WORD = 24  # characters of a word; the lattice of a longer one would underflow
SEEDS = 4  # the first vocabulary has at most so many pieces for each one that is wanted
EM_STEPS = 2  # between two prunings
CHARACTER = 1e-3  # how often a character is expected at least, so that none is lost
METASPACE = {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'always'}
STAGES = {
    'normalizer': {'type': 'NFKC'},
    'decoder': METASPACE,
    'pre_tokenizer': {
        'type': 'Sequence',
        'pretokenizers': [{'type': 'WhitespaceSplit'}, METASPACE | {'split': True}],
    },
}


def train_unigram(count, vocab_size, special, name, progress=None):
    """
    The description of a Unigram tokenizer with at most vocab_size ids for {chunk: how often it
    occurs}.

    It starts with every frequent piece of up to 16 characters. EM fits their probabilities over all
    segmentations of the words; then the quarter whose loss would cost the least likelihood goes,
    and again.
    """
    words, room, special = split_words(count, STAGES, vocab_size, special)
    words = Counter({word[:LONGEST_WORD]: k for word, k in words.items()})
    pieces, frequency, n_characters = seed_pieces(words, SEEDS * room)
    ids = {piece: i for i, piece in enumerate(pieces)}
    word_lattices = list(lattices(list(words), ids))
    piece_lattices = list(lattices(pieces, ids))
    word_counts = np.array(list(words.values()), float)

    # p: the probability of each piece; p[-1] = 0 belongs to the edges that are no piece
    p = np.array([*frequency, 0], float)
    p /= p.sum()
    while True:
        for _ in range(EM_STEPS):
            expected = expected_counts(word_lattices, word_counts, p)
            expected[:n_characters] = np.maximum(expected[:n_characters], CHARACTER)
            expected[-1] = 0
            p = expected / expected.sum()
        alive = np.count_nonzero(p)
        if progress:
            progress(f'pruning: {alive} pieces, {room} wanted')
        if alive <= room:
            break
        loss = likelihood_loss(piece_lattices, expected, p)
        order = np.argsort(-loss[n_characters:-1], kind='stable') + n_characters
        kept = max(room, alive * 3 // 4)
        p[order[kept - n_characters:]] = 0
        p /= p.sum()

    likely_first = sorted(np.flatnonzero(p), key=lambda i: -p[i])
    vocab = [[pieces[i], float(np.log(p[i]))] for i in likely_first]
    n = len(vocab)
    model = {
        'type': 'Unigram',
        'unk_id': n + special.index(unknown_token(special)),
        'byte_fallback': False,
        'vocab': vocab + [[s, 0.0] for s in special],
    }
    added = [added_token(s, n + i) for i, s in enumerate(special)]
    return from_spec({**STAGES, 'added_tokens': added, 'model': model}, name)


def seed_pieces(words, most):
    """
    The pieces to start with: all characters, then at most `most` pieces that occur more than once,
    by the number of characters that they cover. Returns pieces, how often each occurs, and how many
    of them are characters.
    """
    seeds = Counter()
    for word, k in words.items():
        seeds.update(dict.fromkeys(word, k))
    characters = sorted(seeds)
    live = set(characters)
    for n in range(2, LONGEST + 1):
        # a piece can only be frequent when the one without its last character is
        found = Counter()
        for word, k in words.items():
            for i in range(len(word) - n + 1):
                if word[i:i + n - 1] in live:
                    found[word[i:i + n]] += k
        live = {piece for piece, k in found.items() if k > 1}
        seeds.update({piece: found[piece] for piece in live})
    longer = seeds.keys() - set(characters)
    covering = nsmallest(most, longer, key=lambda piece: (-seeds[piece] * len(piece), piece))
    pieces = characters + covering
    return pieces, [seeds[piece] for piece in pieces], len(characters)


@dataclass
class Lattice:
    """The lattices of all words of one length."""
    length: int
    words: np.ndarray  # which words these are: their places in the list of all
    edge: dict         # (i, n) -> the ids of all word[i:i + n], -1 if it is no piece: int32 (words,)


def lattices(words, ids):
    """The Lattice of each length that a word has."""
    for length in sorted(set(map(len, words))):
        which = [j for j, word in enumerate(words) if len(word) == length]
        edge = {}
        for i in range(length):
            for n in range(1, min(LONGEST, length - i) + 1):
                found = [ids.get(words[j][i:i + n], -1) for j in which]
                edge[i, n] = np.array(found, np.int32)
        yield Lattice(length, np.array(which), edge)


def forward(lattice, p, whole=True):
    """
    alpha[j] for j = 0 .. length: float64 (words,). whole=False leaves out the piece that is the
    whole word.
    """
    alpha = [np.ones(len(lattice.words))]
    for j in range(1, lattice.length + 1):
        ways = (
            alpha[j - n] * p[lattice.edge[j - n, n]]
            for n in range(1, min(j, LONGEST) + 1)
            if whole or n < lattice.length
        )
        alpha.append(sum(ways))
    return alpha


def backward(lattice, p):
    """beta[i] for i = 0 .. length: float64 (words,), and 1 at the end."""
    length = lattice.length
    beta = [None] * length + [1.0]
    for i in reversed(range(length)):
        longest = min(LONGEST, length - i)
        beta[i] = sum(p[lattice.edge[i, n]] * beta[i + n] for n in range(1, longest + 1))
    return beta


def expected_counts(word_lattices, word_counts, p):
    """How often each piece is expected in all segmentations of the words: float64 (pieces + 1,)."""
    expected = np.zeros(len(p))
    for lattice in word_lattices:
        alpha = forward(lattice, p)
        beta = backward(lattice, p)
        scale = word_counts[lattice.words] / alpha[lattice.length]
        for (i, n), piece in lattice.edge.items():
            np.add.at(expected, piece, alpha[i] * p[piece] * beta[i + n] * scale)
    return expected


def likelihood_loss(piece_lattices, expected, p):
    """
    How much log likelihood the text loses when a piece is made of others instead: float64 (pieces +
    1,).
    """
    loss = np.zeros(len(p))
    for lattice in piece_lattices:
        if lattice.length == 1:
            continue
        which = lattice.words
        others = forward(lattice, p, whole=False)[lattice.length]
        with np.errstate(divide='ignore', invalid='ignore'):
            change = expected[which] * (np.log(p[which]) - np.log(others))
        loss[which] = np.nan_to_num(change)
    return loss
