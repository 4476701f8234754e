"""The words that WordPiece and Unigram are trained on."""
from collections import Counter

from lib.vocab.common import ROLES
from lib.vocab.normalizers import normalizer
from lib.vocab.splitters import splitter

CHARACTERS = 4  # one token in four may be a single character; rarer ones become unknown


def split_words(count, stages, vocab_size, special):
    """
    What to train on, from {chunk: how often it occurs} and the stages of a tokenizer.json:
    {word: count} without words that have rare characters, in the order of the words;
    how many ordinary tokens fit; the special tokens, among them one for unknown words.
    """
    if not set(special) & set(ROLES['unk']):
        special = special + ['<|unk|>']
    room = vocab_size - len(special)
    normalize = normalizer(stages['normalizer'])
    split = splitter(stages['pre_tokenizer'])

    words = Counter()
    for chunk, k in count.items():
        for word in split(normalize(chunk), True):
            words[word] += k
    characters = Counter()
    for word, k in words.items():
        characters.update(dict.fromkeys(word, k))
    if room < CHARACTERS:
        raise ValueError(f'vocab_size {vocab_size} is too small: '
                         f'{len(special)} special tokens leave no room for characters')
    by_frequency = sorted(characters, key=lambda c: (-characters[c], c))
    common = set(by_frequency[:room // CHARACTERS])
    kept = {word: words[word] for word in sorted(words) if common.issuperset(word)}
    return kept, room, special


def unknown_token(special):
    """The special token that stands for what is unknown."""
    return next(name for name in special if name in ROLES['unk'])
