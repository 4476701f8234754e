"""sentencepiece."""
import base64
import struct

from lib.vocab.common import added_token
from lib.vocab.spec import from_spec


def fields(data):
    """(number, value) of each field of a protobuf message: ints, or bytes for lengths and fixed sizes."""
    at = 0

    def varint():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError('damaged: a number of more than 64 bits')
    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        size = {1: 8, 5: 4}[tag & 7] if tag & 7 != 2 else varint()
        if at + size > len(data):
            raise IndexError('cut off')
        yield tag >> 3, data[at:at + size]
        at += size


def from_sentencepiece(data, name):
    """spiece.model and tokenizer.model, a ModelProto: pieces (1), trainer (2), normalizer (3)."""
    pieces, trainer, rules = [], {}, {}
    for number, value in fields(data):
        if number == 1:
            p = dict(fields(value))
            pieces.append((p[1].decode(), struct.unpack('<f', p.get(2, b'\0\0\0\0'))[0], p.get(3, 1)))
        elif number in (2, 3):
            (trainer if number == 2 else rules).update(fields(value))
    normal, unknown, control, user = 1, 2, 3, 4
    if trainer.get(3, 1) not in (1, 2) or trainer.get(24):
        raise ValueError('only sentencepiece models of type unigram and bpe with white space in front are supported')
    vocab = {p: i for i, (p, _, _) in enumerate(pieces)}
    added = [added_token(p, i, kind != user) for i, (p, _, kind) in enumerate(pieces)
             if kind in (unknown, control) or kind == user and trainer.get(3, 1) == 2]
    steps = [{'type': 'Precompiled', 'precompiled_charsmap': base64.b64encode(rules[2]).decode(), 'longest': True}] \
        if rules.get(2) else []
    if rules.get(4, 1):  # spaces at the ends go, several become one
        steps += [{'type': 'Replace', 'pattern': {'Regex': r'^ +| +$'}, 'content': ''},
                  {'type': 'Replace', 'pattern': {'Regex': ' {2,}'}, 'content': ' '}]
    prefix = [{'type': 'Prepend', 'prepend': ' ', 'first': trainer.get(3, 1) == 2}] if rules.get(3, 1) else []
    steps = steps + prefix if rules.get(4, 1) else prefix + steps
    steps += [{'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}]
    unk = next(i for i, p in enumerate(pieces) if p[2] == unknown)
    pre = None
    if trainer.get(3, 1) == 2:
        order = sorted((i for i, p in enumerate(pieces) if p[2] == normal and len(p[0]) > 1),
                       key=lambda i: -pieces[i][1])
        pairs = ([p[:n], p[n:]] for p in (pieces[i][0] for i in order) for n in range(1, len(p)))
        model = {'type': 'BPE', 'unk_token': pieces[unk][0], 'fuse_unk': True, 'byte_fallback': bool(trainer.get(35)),
                 'vocab': vocab, 'merges': [[a, b] for a, b in pairs if a in vocab and b in vocab]}
    else:
        top = max(score for _, score, kind in pieces if kind == normal)
        model = {'type': 'Unigram', 'unk_id': unk, 'byte_fallback': bool(trainer.get(35)),
                 # the user's always win
                 'vocab': [[p, top * len(p) - 0.1 if kind == user else score] for p, score, kind in pieces]}
        if all('▁' not in p[1:] for p, _, kind in pieces if kind == normal):
            pre = {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'never', 'split': True}
        names = {t['content'] for t in added}
        if {'<pad>', '</s>'} <= names and '<s>' not in names and not any('extra_id' in p for p in vocab):
            # T5's file lacks its 100 sentinels; they follow the pieces, the first one last
            added += [added_token(f'<extra_id_{99 - i}>', len(pieces) + i, True, 'lr') for i in range(100)]
            model['vocab'] += [[f'<extra_id_{99 - i}>', 0.0] for i in range(100)]
    decoder = [{'type': 'Replace', 'pattern': {'String': '▁'}, 'content': ' '}, {'type': 'ByteFallback'},
               {'type': 'Fuse'}]
    decoder += [{'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}] if rules.get(3, 1) else []
    return from_spec({'added_tokens': added, 'normalizer': {'type': 'Sequence', 'normalizers': steps},
                      'pre_tokenizer': pre, 'model': model, 'decoder': {'type': 'Sequence', 'decoders': decoder}}, name)
