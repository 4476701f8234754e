"""
The models of a tokenizer.json: functions piece -> list of ids. Byte-level BPE and others, Unigram,
WordPiece.
"""
import re
from itertools import chain

import numpy as np
import tiktoken

from lib.vocab.common import BYTES, VISIBLE, invisible

BYTE_TOKEN = re.compile('<0x[0-9A-F]{2}>')  # stands for one byte: <0x0A> for a new line
UNKNOWN = 10  # an unknown character has the lowest log probability less this


def byte_token(b):
    return f'<0x{b:02X}>'


# ---- BPE ---------------------------------------------------------------------------------------

def joined(model):
    """What the merges of a BPE model make, in their order: {token: None}."""
    pairs = (m.split(' ', 1) if isinstance(m, str) else m for m in model['merges'])
    return dict.fromkeys(map(''.join, pairs))


def byte_level(model, special):
    """
    Of byte-level BPE: tokens by rank, spelled visibly; the id of each, -1 for a byte that the
    vocabulary lacks.
    """
    vocab = model['vocab']
    single_bytes = [VISIBLE[b] for b in BYTES]
    tokens = dict.fromkeys(chain(single_bytes, joined(model)))
    if model.get('ignore_merges'):  # every token is reachable as a whole chunk
        tokens.update(dict.fromkeys(t for t in sorted(vocab, key=vocab.get) if t not in special))
    tokens = [t for t in tokens if t in vocab or len(t) == 1]
    return tokens, [vocab.get(t, -1) for t in tokens]


def bpe_model(model, level, pattern, special):
    """
    piece -> ids of a BPE model by tiktoken. level: its tokens are bytes; otherwise they are
    characters. pattern: how tiktoken cuts pieces further. special: names of special tokens.
    """
    unk = model['vocab'].get(model.get('unk_token'))
    lacking = [] if unk is None else [unk]
    if level:
        tokens, ids = byte_level(model, special)
        keys = [invisible(t) for t in tokens]
        table = [[i] if i >= 0 else lacking for i in ids]
    else:
        made = [t for t in joined(model) if t in model['vocab'] and len(t) > 1]
        keys, table = character_ranks(model, made, lacking)
        # does no token go on after a word?
        words_apart = all('▁' not in t.lstrip('▁') for t in made)
        if words_apart and any('▁' in t for t in made):
            pattern = '▁*[^▁]+|▁+'
    ranks = {key: rank for rank, key in enumerate(keys)}
    encoding = tiktoken.Encoding(
        'pieces', pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    fuse = model.get('fuse_unk') and unk is not None

    def encode(piece):
        ids = [i for rank in encoding.encode_ordinary(piece) for i in table[rank]]
        if fuse:  # neighbouring unknown tokens are one
            ids = [i for n, i in enumerate(ids) if i != unk or not n or ids[n - 1] != unk]
        return ids
    return encode


def character_ranks(model, made, lacking):
    """
    A vocabulary of characters (Metaspace) as one of bytes: the first ranks build up the UTF-8 of
    each known character from the left, so bytes of unknown characters stay apart and fall back.

    made: the tokens of more than one character. lacking: the ids of what is unknown.
    Returns the bytes of each rank and the list of ids that it becomes.
    """
    vocab = model['vocab']
    characters = (t for t in vocab if len(t) == 1)
    known = [c.encode() for c in dict.fromkeys(chain(characters, *made))]
    starts = (c[:n] for c in known for n in range(2, len(c) + 1))
    single_bytes = (bytes([b]) for b in range(256))
    keys = list(dict.fromkeys(chain(single_bytes, starts, map(str.encode, made))))
    has_bytes = all(byte_token(b) in vocab for b in range(256))
    falls_back = model.get('byte_fallback') and has_bytes

    def ids_of(key):
        i = vocab.get(key.decode('utf-8', 'surrogateescape'))
        if i is not None:
            return [i]
        if falls_back:
            return [vocab[byte_token(b)] for b in key]
        starts_character = key[0] < 128 or key[0] >= 192
        return lacking if starts_character else []
    return keys, [ids_of(key) for key in keys]


# ---- Unigram -----------------------------------------------------------------------------------

def unigram_model(model, special):
    """word -> ids along the path with the best sum of log probabilities (Viterbi)."""
    vocab = model['vocab']
    unk = model['unk_id']
    if type(unk) is not int or not 0 <= unk < len(vocab):
        raise ValueError(f'its unk_id is {unk}; expected the place of a piece, '
                         f'0 to {len(vocab) - 1}')
    if not all(np.isfinite(score) for _, score in vocab):
        raise ValueError('damaged: the score of a piece is no number')
    pieces = {
        piece: (score, i)
        for i, (piece, score) in enumerate(vocab)
        if piece not in special and i != unk
    }
    byte_ids = {piece: i for i, (piece, _) in enumerate(vocab) if BYTE_TOKEN.fullmatch(piece)}
    falls_back = model.get('byte_fallback') and len(byte_ids) == 256
    if falls_back:
        for piece in byte_ids:
            pieces.pop(piece, None)
    longest = max(map(len, pieces))
    unknown = min(score for _, score in vocab) - UNKNOWN

    def best_path(word):
        """For each place in the word: where the last piece of the best path begins, and its id."""
        n = len(word)
        best = [0.0] + [-np.inf] * n
        back = [(0, unk)] * (n + 1)
        for i in range(n):
            for j in range(i + 1, min(n, i + longest) + 1):
                piece = pieces.get(word[i:j])
                if piece and best[i] + piece[0] > best[j]:
                    best[j] = best[i] + piece[0]
                    back[j] = (i, piece[1])
            if word[i] not in pieces and best[i] + unknown > best[i + 1]:
                best[i + 1] = best[i] + unknown
                back[i + 1] = (i, unk)
        return back

    def encode(word):
        back = best_path(word)
        ids = []  # from the right
        j = len(word)
        while j:
            i, token = back[j]
            if token == unk and falls_back:
                ids += [byte_ids[byte_token(b)] for b in reversed(word[i:j].encode())]
            elif token != unk or not ids or ids[-1] != unk:
                ids.append(token)  # (neighbouring unknown characters are one)
            j = i
        return ids[::-1]
    return encode


# ---- WordPiece ---------------------------------------------------------------------------------

def wordpiece_model(model):
    """
    word -> ids, always the longest piece that fits; the whole word is unknown when one part of it
    is.
    """
    vocab = model['vocab']
    prefix = model['continuing_subword_prefix']
    unknown = [vocab[model['unk_token']]]
    longest_word = model.get('max_input_chars_per_word', 100)
    if not isinstance(prefix, str) or type(longest_word) is not int:
        raise ValueError(f'damaged: words of {str(longest_word)[:20]} characters, '
                         f'parts that begin with {str(prefix)[:20]}')
    longest = max(map(len, vocab))

    def longest_piece(word, i):
        """Where the longest piece that begins at i ends, and its id; None if there is none."""
        lead = prefix if i else ''
        for j in range(min(len(word), i + longest), i, -1):
            piece = lead + word[i:j]
            if piece in vocab:
                return j, vocab[piece]
        return None

    def encode(word):
        if len(word) > longest_word:
            return unknown
        ids = []
        i = 0
        while i < len(word):
            found = longest_piece(word, i)
            if not found:
                return unknown
            i, token = found
            ids.append(token)
        return ids
    return encode
