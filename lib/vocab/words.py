"""Words."""
from collections import Counter

from lib.vocab.common import ROLES
from lib.vocab.normalizers import normalizer
from lib.vocab.splitters import splitter


def split_words(count, stages, vocab_size, special):
    """{word: count} after the stages, without words of rare characters; how many ordinary tokens fit; special tokens"""
    special = special + ['<|unk|>'] * (not set(special) & set(ROLES['unk']))
    room, words, chars = vocab_size - len(special), Counter(), Counter()
    normalize, split = normalizer(stages['normalizer']), splitter(stages['pre_tokenizer'])
    for chunk, k in count.items():
        for word in split(normalize(chunk), True):
            words[word] += k
    for word, k in words.items():
        chars.update(dict.fromkeys(word, k))
    if room < 4:
        raise ValueError(f'vocab_size {vocab_size} is too small: '
                         f'{len(special)} special tokens leave no room for characters')
    common = set(sorted(chars, key=lambda c: (-chars[c], c))[:room // 4])
    return {w: words[w] for w in sorted(words) if common.issuperset(w)}, room, special
