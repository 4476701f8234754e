"""Models."""
import re
from itertools import chain

import numpy as np
import tiktoken

from lib.vocab.common import BYTES, VISIBLE, invisible


def joined(model):
    """What the merges of a BPE model make, in their order: {token: None}."""
    return dict.fromkeys(''.join(m.split(' ', 1) if isinstance(m, str) else m) for m in model['merges'])


def byte_level(model, special):
    """Tokens by rank (spelled visibly) and the id of each, -1 for a byte that the vocabulary lacks."""
    vocab = model['vocab']
    tokens = dict.fromkeys(chain([VISIBLE[b] for b in BYTES], joined(model)))
    if model.get('ignore_merges'):  # every token is reachable as a whole chunk
        tokens.update(dict.fromkeys(t for t in sorted(vocab, key=vocab.get) if t not in special))
    tokens = [t for t in tokens if t in vocab or len(t) == 1]
    return tokens, [vocab.get(t, -1) for t in tokens]


def bpe_model(model, level, pattern, special):
    """
    piece -> ids by tiktoken. A vocabulary of characters (Metaspace) becomes one of bytes: the first ranks build up
    the UTF-8 of each known character from the left, so bytes of unknown characters stay apart and fall back.
    """
    vocab, unk = model['vocab'], model['vocab'].get(model.get('unk_token'))
    lacking = [] if unk is None else [unk]
    if level:
        tokens, ids = byte_level(model, special)
        keys, table = [invisible(t) for t in tokens], [[i] if i >= 0 else lacking for i in ids]
    else:
        made = [t for t in joined(model) if t in vocab and len(t) > 1]
        known = dict.fromkeys(chain((t for t in vocab if len(t) == 1), *made))
        starts = (c.encode()[:n] for c in known for n in range(2, len(c.encode()) + 1))
        keys = list(dict.fromkeys(chain((bytes([b]) for b in range(256)), starts, map(str.encode, made))))
        falls = model.get('byte_fallback') and all(f'<0x{b:02X}>' in vocab for b in range(256))
        table = []
        for key in keys:
            i = vocab.get(key.decode('utf-8', 'surrogateescape'))
            table.append([i] if i is not None else [vocab[f'<0x{b:02X}>'] for b in key] if falls
                         else lacking if key[0] < 128 or key[0] >= 192 else [])
        apart = all('▁' not in t.lstrip('▁') for t in made)  # no token goes on after a word
        pattern = '▁*[^▁]+|▁+' if apart and any('▁' in t for t in made) else pattern
    encoding = tiktoken.Encoding('pieces', pat_str=pattern, mergeable_ranks={k: r for r, k in enumerate(keys)},
                                 special_tokens={})
    fuse = model.get('fuse_unk') and unk is not None

    def encode(piece):
        ids = [i for rank in encoding.encode_ordinary(piece) for i in table[rank]]
        return [i for n, i in enumerate(ids) if i != unk or not n or ids[n - 1] != unk] if fuse else ids
    return encode


def unigram_model(model, special):
    """word -> ids along the path with the best sum of log probabilities (Viterbi)."""
    vocab, unk = model['vocab'], model['unk_id']
    if type(unk) is not int or not 0 <= unk < len(vocab):
        raise ValueError(f'its unk_id is {unk}; expected the place of a piece, 0 to {len(vocab) - 1}')
    if not all(np.isfinite(s) for _, s in vocab):
        raise ValueError('damaged: the score of a piece is no number')
    score = {piece: (s, i) for i, (piece, s) in enumerate(vocab) if piece not in special and i != unk}
    byte_ids = {piece: i for i, (piece, _) in enumerate(vocab) if re.fullmatch('<0x[0-9A-F]{2}>', piece)}
    falls = model.get('byte_fallback') and len(byte_ids) == 256
    for piece in byte_ids if falls else ():
        score.pop(piece, None)
    most, unknown = max(map(len, score)), min(s for _, s in vocab) - 10

    def encode(word):
        n = len(word)
        best, back = [0.0] + [-np.inf] * n, [(0, unk)] * (n + 1)
        for i in range(n):
            for j in range(i + 1, min(n, i + most) + 1):
                hit = score.get(word[i:j])
                if hit and best[i] + hit[0] > best[j]:
                    best[j], back[j] = best[i] + hit[0], (i, hit[1])
            if word[i] not in score and best[i] + unknown > best[i + 1]:
                best[i + 1], back[i + 1] = best[i] + unknown, (i, unk)
        ids, j = [], n
        while j:
            i, token = back[j]
            if token == unk and falls:
                ids += [byte_ids[f'<0x{b:02X}>'] for b in reversed(word[i:j].encode())]
            elif token != unk or not ids or ids[-1] != unk:  # neighbouring unknown characters are one
                ids.append(token)
            j = i
        return ids[::-1]
    return encode


def wordpiece_model(model):
    """word -> ids, always the longest piece that fits; the whole word is unknown when one part is."""
    vocab, prefix = model['vocab'], model['continuing_subword_prefix']
    unk, most = [vocab[model['unk_token']]], model.get('max_input_chars_per_word', 100)
    if not isinstance(prefix, str) or type(most) is not int:
        raise ValueError(f'damaged: words of {str(most)[:20]} characters, parts that begin with {str(prefix)[:20]}')
    longest = max(map(len, vocab))

    def encode(word):
        ids, i = [], 0
        while i < len(word) <= most:
            lead = prefix if i else ''
            j = next((j for j in range(min(len(word), i + longest), i, -1) if lead + word[i:j] in vocab), 0)
            if not j:
                return unk
            ids.append(vocab[lead + word[i:j]])
            i = j
        return ids if len(word) <= most else unk
    return encode
