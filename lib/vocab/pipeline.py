"""Pipeline."""
import json
import re

from lib.vocab.base import Tokenizer
from lib.vocab.common import INVISIBLE, check_id, invisible, utf8
from lib.vocab.models import bpe_model, unigram_model, wordpiece_model
from lib.vocab.normalizers import normalizer
from lib.vocab.splitters import only_pattern, splitter

SURROGATES = re.compile('[\ud800-\udfff]')


class Pipeline(Tokenizer):
    """The stages of a tokenizer.json (`spec`): normalizer, pre_tokenizer, model, decoder."""

    def setup(self, name, special, spec, added=None, strip=None):
        model, pre = spec['model'], spec.get('pre_tokenizer')
        stages = [] if not pre else pre.get('pretokenizers', [pre])
        kind, level = model['type'], any(s['type'] == 'ByteLevel' for s in stages)
        for key in ('continuing_subword_prefix', 'end_of_word_suffix', 'dropout'):
            if kind == 'BPE' and model.get(key):
                raise ValueError(f'BPE with {key} {model[key]!r} is not supported')
        pattern = only_pattern(pre) if kind == 'BPE' and level else None
        norm = spec.get('normalizer') or {'type': 'Sequence', 'normalizers': []}
        later = [s for s in norm.get('normalizers', [norm]) if not s.get('first')]  # not only for the input's beginning
        self.normalizers = normalizer({'type': 'Sequence', 'normalizers': later}), normalizer(norm)
        self.split = splitter(None if pattern else pre)
        if kind == 'BPE':
            self.model = bpe_model(model, level, pattern or r'[\s\S]+', special)
        elif kind == 'Unigram':
            self.model = unigram_model(model, special)
        elif kind == 'WordPiece':
            self.model = wordpiece_model(model)
        else:
            raise ValueError(f'its model {kind} is not supported')
        self.cached = kind != 'BPE' or not pattern and bool(pre)
        self.cache = {}
        vocab = {t: i for i, (t, _) in enumerate(model['vocab'])} if kind == 'Unigram' else model['vocab']
        for t, i in vocab.items():
            check_id(i, t)
        table = [b''] * (max(vocab.values()) + 1)
        close = {'.', '?', '!', ',', "n't", "'m", "'s", "'ve", "'re"}  # these follow a word without a space
        for t, i in vocab.items():
            if level:
                table[i] = invisible(t) if all(c in INVISIBLE for c in t) else t.encode()
            elif kind == 'WordPiece':
                prefix = model['continuing_subword_prefix']
                table[i] = t[len(prefix):].encode() if t.startswith(prefix) else (' ' * (t not in close) + t).encode()
            elif re.fullmatch('<0x[0-9A-F]{2}>', t) and model.get('byte_fallback'):
                table[i] = bytes([int(t[3:5], 16)])
            else:
                table[i] = t.replace('▁', ' ').encode()
        text = json.dumps([spec.get('decoder'), spec.get('normalizer'), pre])
        self.drops = kind == 'WordPiece' or not level and (
            '"prepend"' in text or '"Metaspace"' in text and '"never"' not in text)
        return table

    def spec(self):
        return self.state['spec']

    def plain(self, text, first=True):
        if SURROGATES.search(text):
            text = utf8(text).decode()
        text, ids = self.normalizers[first](text), []
        for piece in self.split(text, first) if text else ():
            found = self.cache.get(piece) if self.cached else self.model(piece)
            if found is None:
                if len(self.cache) >= 1 << 18:
                    self.cache.clear()
                found = self.cache[piece] = self.model(piece)
            ids += found
        return ids

    def decode_bytes(self, ids):
        data = super().decode_bytes(ids)
        return data[1:] if self.drops and data.startswith(b' ') else data  # the space put before the first word
