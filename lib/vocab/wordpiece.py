"""WordPiece."""
from itertools import chain

import numpy as np

from lib.vocab.common import ROLES, added_token
from lib.vocab.spec import from_spec
from lib.vocab.words import split_words


def train_wordpiece(count, vocab_size, special, name, progress):
    """
    WordPiece: merge the pair that raises the likelihood of the text most, c(ab) log(c(ab) N / (c(a) c(b))), where BPE
    asks for c(ab) alone. Every merge changes the gains around it, so a round merges the best pairs that share no
    symbol, at most one for twenty tokens, and counts again. Text is lower-cased and split as BERT's.
    """
    stages = {'normalizer': {'type': 'BertNormalizer', 'clean_text': True, 'handle_chinese_chars': True,
                             'strip_accents': None, 'lowercase': True}, 'pre_tokenizer': {'type': 'BertPreTokenizer'},
              'decoder': {'type': 'WordPiece', 'prefix': '##', 'cleanup': True}}
    words, room, special = split_words(count, stages, vocab_size, special)
    spelled = [[w[0], *('##' + c for c in w[1:])] for w in words]
    tokens = sorted(set(chain.from_iterable(spelled)))
    ids = {t: i for i, t in enumerate(tokens)}
    sym = np.array([-1, *(i for w in spelled for i in [*map(ids.get, w), -1])])
    weight = np.array([0, *(k for w, k in words.items() for k in [k] * len(w) + [0])], float)
    while len(tokens) < room:
        at = np.flatnonzero((sym[:-1] >= 0) & (sym[1:] >= 0))
        pairs, which = np.unique(sym[at] << 32 | sym[at + 1], return_inverse=True)
        left, right = pairs >> 32, pairs & 0xffffffff
        both, one = np.bincount(which, weight[at]), np.bincount(sym + 1, weight)[1:]
        gain = both * np.log(both * one.sum() / one[left] / one[right])
        new, used, limit = np.full(len(pairs), -1), set(), min(room, len(tokens) + 1 + len(tokens) // 20)
        for i in np.argsort(-gain, kind='stable'):
            a, b = int(left[i]), int(right[i])
            if gain[i] <= 0 or len(tokens) >= limit:
                break
            if not used & {a, b}:
                used |= {a, b}
                text = tokens[a] + tokens[b].removeprefix('##')
                new[i] = ids.setdefault(text, len(tokens))  # a text that can be made in two ways is one token
                tokens += [text] * int(new[i] == len(tokens))
        if not used:
            break
        made, i = new[which], np.arange(len(at))
        hit = made >= 0
        last = np.maximum.accumulate(np.where(hit & np.append(False, hit[:-1] & (np.diff(at) == 1)), -1, i))
        hit &= (i - last) % 2 == 0  # aaa: every second one
        keep = np.ones(len(sym), bool)
        sym[at[hit]], keep[at[hit] + 1] = made[hit], False
        sym, weight = sym[keep], weight[keep]
        if progress:
            progress(f'merging: {len(tokens)} of {room}')
    vocab = {t: i for i, t in enumerate(tokens + special)}
    return from_spec({**stages, 'added_tokens': [added_token(s, vocab[s]) for s in special], 'model': {
        'type': 'WordPiece', 'unk_token': next(s for s in special if s in ROLES['unk']),
        'continuing_subword_prefix': '##', 'max_input_chars_per_word': 100, 'vocab': vocab}}, name)
