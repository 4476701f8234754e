"""Unigram."""
from collections import Counter
from heapq import nsmallest

import numpy as np

from lib.vocab.common import ROLES, added_token
from lib.vocab.spec import from_spec
from lib.vocab.words import split_words


def train_unigram(count, vocab_size, special, name, progress):
    """
    Unigram (Kudo 2018): starts with every frequent piece of up to 16 characters; EM fits their probabilities over all
    segmentations of the words; then the quarter whose loss would cost the least likelihood goes, and again.
    """
    stages = {'normalizer': {'type': 'NFKC'},
              'decoder': {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'always'},
              'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [{'type': 'WhitespaceSplit'}, {
                  'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'always', 'split': True}]}}
    words, room, special = split_words(count, stages, vocab_size, special)
    words = Counter({w[:24]: k for w, k in words.items()})  # the lattice of a longer word would underflow
    seeds = Counter()
    for word, k in words.items():
        seeds.update(dict.fromkeys(word, k))
    chars = sorted(seeds)
    live = set(chars)
    for n in range(2, 17):  # a piece can only be frequent when the one without its last character is
        found = Counter()
        for word, k in words.items():
            for i in range(len(word) - n + 1):
                if word[i:i + n - 1] in live:
                    found[word[i:i + n]] += k
        live = {p for p, k in found.items() if k > 1}
        seeds.update({p: found[p] for p in live})
    pieces = chars + nsmallest(4 * room, seeds.keys() - set(chars), key=lambda p: (-seeds[p] * len(p), p))
    ids = {p: i for i, p in enumerate(pieces)}

    def lattices(words):
        """For each length L, of the words that long: their places in `words`, and edge[i, n]: id of w[i:i+n], or -1."""
        for L in sorted(set(map(len, words))):
            of = [j for j, w in enumerate(words) if len(w) == L]
            yield L, np.array(of), {(i, n): np.array([ids.get(words[j][i:i + n], -1) for j in of], np.int32)
                                    for i in range(L) for n in range(1, min(16, L - i) + 1)}

    def forward(L, edge, p, whole=True):  # alpha[j] = sum_n alpha[j - n] p(w[j-n:j]); p[-1] = 0
        alpha = [np.ones(len(edge[0, 1]))]
        for j in range(1, L + 1):
            alpha.append(sum(alpha[j - n] * p[edge[j - n, n]] for n in range(1, min(j, 16) + 1) if whole or n < L))
        return alpha

    texts, parts = list(lattices(list(words))), list(lattices(pieces))
    freq, p = np.array(list(words.values()), float), np.array([seeds[x] for x in pieces] + [0], float)
    p /= p.sum()
    while True:
        for _ in range(2):  # EM
            expected = np.zeros(len(p))
            for L, of, edge in texts:
                alpha, beta = forward(L, edge, p), [None] * L + [1.0]
                for i in range(L - 1, -1, -1):
                    beta[i] = sum(p[edge[i, n]] * beta[i + n] for n in range(1, min(16, L - i) + 1))
                scale = freq[of] / alpha[L]
                for (i, n), e in edge.items():
                    np.add.at(expected, e, alpha[i] * p[e] * beta[i + n] * scale)
            expected[:len(chars)] = np.maximum(expected[:len(chars)], 1e-3)  # characters stay
            expected[-1] = 0
            p = expected / expected.sum()
        alive = np.count_nonzero(p)
        if progress:
            progress(f'pruning: {alive} pieces, {room} wanted')
        if alive <= room:
            break
        loss = np.zeros(len(p))
        for L, of, edge in parts:
            if L > 1:
                other = forward(L, edge, p, whole=False)[L]
                with np.errstate(divide='ignore', invalid='ignore'):
                    loss[of] = np.nan_to_num(expected[of] * (np.log(p[of]) - np.log(other)))
        order = np.argsort(-loss[len(chars):-1], kind='stable') + len(chars)
        p[order[max(room, alive * 3 // 4) - len(chars):]] = 0
        p /= p.sum()
    vocab = [[pieces[i], float(np.log(p[i]))] for i in sorted(np.flatnonzero(p), key=lambda i: -p[i])]
    n = len(vocab)
    return from_spec({**stages, 'added_tokens': [added_token(s, n + i) for i, s in enumerate(special)], 'model': {
        'type': 'Unigram', 'unk_id': n + next(i for i, s in enumerate(special) if s in ROLES['unk']),
        'byte_fallback': False, 'vocab': vocab + [[s, 0.0] for s in special]}}, name)
