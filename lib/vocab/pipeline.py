"""
A tokenizer made of the stages of a tokenizer.json: normalizer, pre_tokenizer, model, decoder.

vocab.txt, encoder.json + vocab.bpe and sentencepiece's models are turned into the same stages, so
this runs them all but plain byte-level BPE, which bpe.py runs.
"""
import json
import re

from lib.vocab.base import Tokenizer
from lib.vocab.common import INVISIBLE, check_id, invisible, utf8
from lib.vocab.models import BYTE_TOKEN, bpe_model, unigram_model, wordpiece_model
from lib.vocab.normalizers import normalizer
from lib.vocab.splitters import only_pattern, splitter, stages_of

SURROGATES = re.compile('[\ud800-\udfff]')
CACHE = 2 ** 18  # pieces whose ids are remembered
# WordPiece writes no space before these
CLOSE = {'.', '?', '!', ',', "n't", "'m", "'s", "'ve", "'re"}
NOT_SUPPORTED = ('continuing_subword_prefix', 'end_of_word_suffix', 'dropout')  # of a BPE model


class Pipeline(Tokenizer):
    """The stages of a tokenizer.json. `spec` is its dict without the added tokens."""

    def setup(self, name, special, spec, added=None, strip=None):
        model = spec['model']
        kind = model['type']
        pre_tokenizer = spec.get('pre_tokenizer')
        level = any(stage['type'] == 'ByteLevel' for stage in stages_of(pre_tokenizer))
        if kind == 'BPE':
            for key in NOT_SUPPORTED:
                if model.get(key):
                    raise ValueError(f'BPE with {key} {model[key]!r} is not supported')

        # for the beginning of the input, and for what follows a special token
        whole = spec.get('normalizer') or {'type': 'Sequence', 'normalizers': []}
        later = [s for s in whole.get('normalizers', [whole]) if not s.get('first')]
        self.normalize_first = normalizer(whole)
        self.normalize_later = normalizer({'type': 'Sequence', 'normalizers': later})

        # tiktoken cuts text by the pattern if one is enough
        pattern = only_pattern(pre_tokenizer) if kind == 'BPE' and level else None
        self.split = splitter(None if pattern else pre_tokenizer)
        if kind == 'BPE':
            self.model = bpe_model(model, level, pattern or r'[\s\S]+', special)
        elif kind == 'Unigram':
            self.model = unigram_model(model, special)
        elif kind == 'WordPiece':
            self.model = wordpiece_model(model)
        else:
            raise ValueError(f'its model {kind} is not supported')
        self.cached = kind != 'BPE' or not pattern and bool(pre_tokenizer)
        self.cache = {}  # piece -> ids

        # was a space put before the first word, so that decoding has to drop it?
        text = json.dumps([spec.get('decoder'), spec.get('normalizer'), pre_tokenizer])
        metaspace = '"Metaspace"' in text and '"never"' not in text
        self.drops_space = kind == 'WordPiece' or not level and ('"prepend"' in text or metaspace)
        return token_bytes(model, level)

    def spec(self):
        return self.state['spec']

    def plain(self, text, first=True):
        if SURROGATES.search(text):
            text = utf8(text).decode()
        text = self.normalize_first(text) if first else self.normalize_later(text)
        ids = []
        if text:
            for piece in self.split(text, first):
                ids += self.piece_ids(piece) if self.cached else self.model(piece)
        return ids

    def piece_ids(self, piece):
        """The ids of a piece, remembered."""
        ids = self.cache.get(piece)
        if ids is None:
            if len(self.cache) >= CACHE:
                self.cache.clear()
            ids = self.cache[piece] = self.model(piece)
        return ids

    def decode_bytes(self, ids):
        data = super().decode_bytes(ids)
        if self.drops_space and data.startswith(b' '):
            return data[1:]
        return data


def token_bytes(model, level):
    """
    The bytes that each id of a model stands for. level: its tokens are bytes, spelled visibly.
    """
    vocab = model['vocab']
    if model['type'] == 'Unigram':
        vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
    for token, i in vocab.items():
        check_id(i, token)
    table = [b''] * (max(vocab.values()) + 1)
    for token, i in vocab.items():
        if level:
            spelled = all(c in INVISIBLE for c in token)
            table[i] = invisible(token) if spelled else token.encode()
        elif model['type'] == 'WordPiece':
            table[i] = wordpiece_text(token, model['continuing_subword_prefix']).encode()
        elif BYTE_TOKEN.fullmatch(token) and model.get('byte_fallback'):
            table[i] = bytes([int(token[3:5], 16)])
        else:
            table[i] = token.replace('▁', ' ').encode()
    return table


def wordpiece_text(token, prefix):
    """
    A piece of WordPiece as it is read: a space before each word but those that are written close.
    """
    if token.startswith(prefix):
        return token[len(prefix):]
    return token if token in CLOSE else ' ' + token
