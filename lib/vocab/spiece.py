"""
sentencepiece's files, spiece.model and tokenizer.model: a protobuf message, ModelProto.

    ModelProto      1 pieces, 2 trainer, 3 normalizer
    a piece         1 text, 2 score (float32), 3 type
    trainer         3 model type, 24 white space as a suffix, 35 byte fallback
    normalizer      2 table of replacements, 3 a space in front, 4 remove extra white space
"""
import base64
import struct

from lib.vocab.common import added_token
from lib.vocab.spec import from_spec

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # types of pieces
UNIGRAM, BPE = 1, 2  # types of models
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types of protobuf
ZERO = struct.pack('<f', 0.0)
N_SENTINELS = 100


def fields(data):
    """
    (number, value) of each field of a protobuf message: an int, or bytes for strings, messages and
    fixed sizes. Raises ValueError or IndexError if the message is damaged.
    """
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number = tag >> 3
        wire = tag & 7
        if wire == VARINT:
            value, at = varint(data, at)
            yield number, value
            continue
        if wire == LENGTH:
            size, at = varint(data, at)
        else:
            size = {FIXED64: 8, FIXED32: 4}[wire]
        if at + size > len(data):
            raise IndexError('cut off')
        yield number, data[at:at + size]
        at += size


def varint(data, at):
    """
    The whole number that begins at data[at], seven bits a byte, the lowest first; and where it
    ends.
    """
    value = 0
    shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError('damaged: a number of more than 64 bits')


def read_model(data):
    """
    pieces [(text, score, type), ...], and the fields of trainer and normalizer: {number: value}.
    """
    pieces = []
    trainer = {}
    rules = {}
    for number, value in fields(data):
        if number == 1:
            piece = dict(fields(value))
            score, = struct.unpack('<f', piece.get(2, ZERO))
            pieces.append((piece[1].decode(), score, piece.get(3, NORMAL)))
        elif number == 2:
            trainer.update(fields(value))
        elif number == 3:
            rules.update(fields(value))
    return pieces, trainer, rules


def from_sentencepiece(data, name):
    """The description of the tokenizer in the bytes of a spiece.model or tokenizer.model."""
    pieces, trainer, rules = read_model(data)
    kind = trainer.get(3, UNIGRAM)
    if kind not in (UNIGRAM, BPE) or trainer.get(24):
        raise ValueError('only sentencepiece models of type unigram and bpe with white space in front '
                         'are supported')
    added = []
    for i, (text, _, piece_type) in enumerate(pieces):
        if piece_type in (UNKNOWN, CONTROL) or piece_type == USER_DEFINED and kind == BPE:
            added.append(added_token(text, i, piece_type != USER_DEFINED))
    normalizers = normalizer_steps(rules, kind)
    unk = next(i for i, piece in enumerate(pieces) if piece[2] == UNKNOWN)
    byte_fallback = bool(trainer.get(35))
    pre_tokenizer = None
    if kind == BPE:
        model = bpe_model(pieces, unk, byte_fallback)
    else:
        model = unigram_model(pieces, unk, byte_fallback)
        if all('▁' not in text[1:] for text, _, piece_type in pieces if piece_type == NORMAL):
            pre_tokenizer = {
                'type': 'Metaspace',
                'replacement': '▁',
                'prepend_scheme': 'never',
                'split': True,
            }
        if lacks_sentinels(pieces, added):
            names = [f'<extra_id_{i}>' for i in reversed(range(N_SENTINELS))]
            added += [added_token(s, len(pieces) + i, sides='lr') for i, s in enumerate(names)]
            model['vocab'] += [[s, 0.0] for s in names]

    decoders = [
        {'type': 'Replace', 'pattern': {'String': '▁'}, 'content': ' '},
        {'type': 'ByteFallback'},
        {'type': 'Fuse'},
    ]
    if rules.get(3, 1):
        decoders.append({'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0})
    spec = {
        'added_tokens': added,
        'normalizer': {'type': 'Sequence', 'normalizers': normalizers},
        'pre_tokenizer': pre_tokenizer,
        'model': model,
        'decoder': {'type': 'Sequence', 'decoders': decoders},
    }
    return from_spec(spec, name)


def normalizer_steps(rules, kind):
    """The steps that sentencepiece's normalizer takes, as those of a tokenizer.json."""
    steps = []
    if rules.get(2):
        table = base64.b64encode(rules[2]).decode()
        steps.append({'type': 'Precompiled', 'precompiled_charsmap': table, 'longest': True})
    prefix = []
    if rules.get(3, 1):
        prefix.append({'type': 'Prepend', 'prepend': ' ', 'first': kind == BPE})
    if rules.get(4, 1):  # spaces at the ends go, several become one, and then one comes in front
        steps += [
            {'type': 'Replace', 'pattern': {'Regex': r'^ +| +$'}, 'content': ''},
            {'type': 'Replace', 'pattern': {'Regex': ' {2,}'}, 'content': ' '},
        ]
        steps = steps + prefix
    else:
        steps = prefix + steps
    return steps + [{'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}]


def bpe_model(pieces, unk, byte_fallback):
    """
    The "model" of BPE pieces. Their scores are the order of the merges; each cut into two pieces is
    one.
    """
    vocab = {text: i for i, (text, _, _) in enumerate(pieces)}
    longer = [p for p in pieces if p[2] == NORMAL and len(p[0]) > 1]
    longer.sort(key=lambda piece: -piece[1])
    merges = []
    for text, _, _ in longer:
        for n in range(1, len(text)):
            if text[:n] in vocab and text[n:] in vocab:
                merges.append([text[:n], text[n:]])
    return {
        'type': 'BPE',
        'unk_token': pieces[unk][0],
        'fuse_unk': True,
        'byte_fallback': byte_fallback,
        'vocab': vocab,
        'merges': merges,
    }


def unigram_model(pieces, unk, byte_fallback):
    """
    The "model" of Unigram pieces. Those that the user defined get a score with which they always
    win.
    """
    top = max(score for _, score, piece_type in pieces if piece_type == NORMAL)
    vocab = []
    for text, score, piece_type in pieces:
        if piece_type == USER_DEFINED:
            score = top * len(text) - 0.1
        vocab.append([text, score])
    return {'type': 'Unigram', 'unk_id': unk, 'byte_fallback': byte_fallback, 'vocab': vocab}


def lacks_sentinels(pieces, added):
    """Is it T5's file? It lacks its 100 sentinels, which follow the pieces, the first one last."""
    names = {token['content'] for token in added}
    if '<pad>' not in names or '</s>' not in names or '<s>' in names:
        return False
    return not any('extra_id' in text for text, _, _ in pieces)
