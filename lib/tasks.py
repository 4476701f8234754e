"""Examples with labels, as rows of an encoder: classes, tags, answers, choices.

What a model file declares in `kinds` and does not encode itself comes from here: encode, collate, predict (see
lib/models.py). Model.logits(ids, segments, mask) has the head; the fields of Config say which one.

Letters: B batch, T tokens, N choices.
"""
import json
import math
import re

import numpy as np
import torch


# same as bert.py
def role(config, name):
    """The id of [CLS], [SEP] or [MASK] in the data's tokenizer; the end of a document stands in for the first two."""
    i = getattr(config, name + '_id')
    i = config.eot_id if i < 0 and name != 'mask' else i
    if not 0 <= i < config.vocab_size:
        raise ValueError(f'the tokenizer has no {name} token ({name}_id={i}): '
                         f'prepare the text with --tokenizer=bpe, or give --{name}_id')
    return i


def offsets(text, tokenizer):
    """-> ids, and of each token the characters of the text that it stands for, [(start, end)]. A byte-level tokenizer
    tells them exactly; any other one encodes word by word, and a token of a word stands for the whole word."""
    ids = tokenizer.encode(text)
    sizes = [len(tokenizer.decode_bytes([i])) for i in ids]
    if tokenizer.decode_bytes(ids) == text.encode() and sum(sizes) == len(text.encode()):
        character = np.append(np.repeat(np.arange(len(text)), [len(c.encode()) for c in text]), len(text))  # per byte
        ends = np.cumsum([0, *sizes])
        spans = [(int(character[a]), int(character[b - 1]) + 1) for a, b in zip(ends, ends[1:])]
        return ids, [(a + len(text[a:b]) - len(text[a:b].lstrip()), b) if text[a:b].strip() else (a, b)
                     for a, b in spans]
    pieces = [(m.span(), tokenizer.encode(m[0])) for m in re.finditer(r'\w+|[^\w\s]', text)]
    return [i for _, p in pieces for i in p], [span for span, p in pieces for _ in p]


def encode(example, tokenizer, config):
    """An example of supervised data -> list of dicts, rows for collate: one, but a long context of kind qa gives one
    for each window. Texts are cut to block_size, the longer one of a pair first."""
    cls, sep = ([role(config, name)] for name in ('cls', 'sep'))
    between = sep * (1 + config.double_sep)
    def row(a, b=None):
        a, b = list(a), None if b is None else list(b)
        while (over := len(a) + len(b or ()) + (2 if b is None else 2 + len(between)) - config.block_size) > 0:
            longer = a if b is None or len(a) >= len(b) else b
            del longer[-max(1, min(over, abs(len(a) - len(b or ())))):]
        first = cls + a + (sep if b is None else between)
        return dict(ids=first + (b + sep if b is not None else []),
                    segments=[0] * len(first) + [1] * (len(b) + 1 if b is not None else 0))
    if config.kind == 'labelled':
        b = example.get('text_b')
        return [dict(row(tokenizer.encode(example['text']), None if b is None else tokenizer.encode(b)),
                     label=example['label'])]
    if config.kind == 'choice':
        text = tokenizer.encode(example['text'])
        return [dict(choices=[row(text, tokenizer.encode(c)) for c in example['choices']], label=example['label'])]
    if config.kind == 'tagged':  # the first token of a word has its tag; a word in the middle comes after a space
        ids, tags, words = list(cls), [-1], []
        for i, (word, tag) in enumerate(zip(example['tokens'], example['tags'])):
            pieces = tokenizer.encode(' ' * (i > 0) + word) or tokenizer.encode('?')
            if len(ids) + len(pieces) + 1 > config.block_size: break
            words.append(len(ids))
            ids, tags = ids + pieces, tags + [tag] + [-1] * (len(pieces) - 1)
        return [dict(ids=ids + sep, segments=[0] * (len(ids) + 1), tags=tags + [-1], words=words,
                     n_words=len(example['tokens']))]
    question, rows = cls + tokenizer.encode(example['question'])[:config.max_query] + between, []
    ids, spans = offsets(example['context'], tokenizer)
    room = config.block_size - len(question) - 1
    if room < 1:
        raise ValueError(f'block_size={config.block_size} leaves no room for the context: '
                         'raise it or lower --max_query')
    answer = next(iter(example.get('answers') or ()), None)
    a, b = (answer['answer_start'], answer['answer_start'] + len(answer['text'])) if answer else (0, 0)
    whole = [i for i, (x, y) in enumerate(spans) if x < b and y > a]       # the tokens of the answer
    for at in range(0, max(1, len(ids) - room + config.doc_stride), min(config.doc_stride, room)):
        part, start, end = spans[at:at + room], 0, 0                       # 0: [CLS], the answer is not in this window
        if whole and at <= whole[0] and whole[-1] < at + room:
            start, end = (len(question) + i - at for i in (whole[0], whole[-1]))
        rows.append(dict(ids=question + ids[at:at + room] + sep, segments=[0] * len(question) + [1] * (len(part) + 1),
                         start=start, end=end, first=len(question), spans=part, context=example['context']))
        if at + room >= len(ids): break
    return rows


def collate(examples, config):
    """Rows from encode -> ids, segments (B, T), mask (B, T) bool or (B, 0) when nothing is padded, targets: labels
    (B,), numbers to regress to (B,), tags (B, T), starts and ends (B, 2). Choices: (B, N, T). T is the longest, to a
    multiple of 8."""
    grouped = [e['choices'] if config.kind == 'choice' else [e] for e in examples]
    N, longest = max(map(len, grouped)), max(len(r['ids']) for g in grouped for r in g)
    shape = len(examples), N, min(-(-longest // 8) * 8, max(config.block_size, longest))
    ids, segments, mask, tags = (np.full(shape, max(0, config.pad_id)), np.zeros(shape, np.int64),
                                 np.zeros(shape, bool), np.full(shape, -1))
    for i, group in enumerate(grouped):
        for j, r in enumerate(group):
            n = len(r['ids'])
            ids[i, j, :n], segments[i, j, :n], mask[i, j, :n] = r['ids'], r['segments'], True
            if config.kind == 'tagged': tags[i, j, :n] = r['tags']
    if mask.all(): mask = mask[..., :0]
    if config.kind == 'choice': return ids, segments, mask, np.array([e['label'] for e in examples])
    if config.kind == 'tagged': targets = tags[:, 0]
    elif config.kind == 'qa': targets = np.array([(e['start'], e['end']) for e in examples])
    else: targets = np.array([e['label'] for e in examples], np.int64 if config.n_labels else np.float32)
    return ids[:, 0], segments[:, 0], mask[:, 0], targets


@torch.no_grad()
def predict(model, arrays, examples, tokenizer=None):
    """The arrays of collate (as tensors) and the rows they were made of -> a dict for each: index, prediction (number
    of the class or choice, value, list of the words' tags, text of the answer), score, by which windows of one example
    compete, and name, the class in words if Config.labels tells it."""
    c, out = model.config, []
    names = json.loads(c.labels) if c.labels and c.n_labels else []
    ids, segments, mask, _ = arrays
    logits = model.logits(ids, segments, mask).float().cpu()
    for y, e in zip(logits, examples):
        if c.kind == 'labelled' and not c.n_labels: p, score = y.item(), 0.0
        elif c.kind in ('labelled', 'choice'): score, p = (v.item() for v in y.softmax(-1).max(-1))
        elif c.kind == 'tagged':  # words beyond block_size get tag 0
            p, score = y[e['words']].argmax(-1).tolist() + [0] * (e['n_words'] - len(e['words'])), 0.0
        else:  # the best pair with start <= end < start + max_answer, against [CLS] for "no answer"
            a, n = e['first'], len(e['spans'])
            both = y[a:a + n, 0, None] + y[None, a:a + n, 1]               # (n, n)
            both = both.masked_fill(~torch.ones(n, n, dtype=torch.bool).triu().tril(c.max_answer - 1), -math.inf)
            score, best = both.flatten().max(0) if n else (torch.tensor(-math.inf), 0)
            score, (s, t) = score.item(), divmod(int(best), max(n, 1))
            p = e['context'][e['spans'][s][0]:e['spans'][t][1]].strip() if n else ''
            if c.no_answer:
                score -= (y[0, 0] + y[0, 1]).item()
                p = p if score > 0 else ''
        out.append(dict(index=e.get('index', len(out)), prediction=p, score=score))
        if names: out[-1]['name'] = names[p] if c.kind == 'labelled' else [names[i] for i in p]
    return out
