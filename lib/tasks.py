"""Examples with labels, as rows of an encoder: classes, tags, answers, choices.

What a model file declares in `kinds` and does not encode itself comes from here (see
lib/models.py). Model.logits(ids, segments, mask) has the head; the fields of Config say which one.

Letters: B batch, T tokens, N choices.
"""
import json
import math
import re

import numpy as np
import torch
from torch.nn import functional as F


# same as bert.py
def role(config, name):
    """The id of the cls, sep or mask token. The end of a document stands in for the first two."""
    token = getattr(config, name + '_id')
    if token < 0 and name != 'mask':
        token = config.eot_id
    if not 0 <= token < config.vocab_size:
        raise ValueError(f'the tokenizer has no {name} token ({name}_id={token}): '
                         f'prepare the text with --tokenizer=bpe, or give --{name}_id')
    return token

# --------------------------------------------------------------------------------------------------
# examples -> rows

def encode(example, tokenizer, config):
    """An example -> list of dicts, rows for collate: one, but a long context of kind qa gives one
    for each window. Texts are cut to block_size, the longer one of a pair first."""
    if config.kind == 'labelled':
        text = tokenizer.encode(example['text'])
        second = example.get('text_b')
        if second is not None:
            second = tokenizer.encode(second)
        return [dict(row_of(text, second, config), label=example['label'])]
    if config.kind == 'choice':
        text = tokenizer.encode(example['text'])
        rows = [row_of(text, tokenizer.encode(choice), config) for choice in example['choices']]
        return [dict(choices=rows, label=example['label'])]
    if config.kind == 'tagged':
        return [tagged_row(example, tokenizer, config)]
    return windows(example, tokenizer, config)


def between(config):
    """The ids between the two texts of a pair: [SEP], of RoBERTa two."""
    sep = role(config, 'sep')
    return [sep, sep] if getattr(config, 'double_sep', False) else [sep]


def row_of(first, second, config):
    """[CLS] first [SEP], or [CLS] first [SEP] second [SEP]. first: ids, second: ids or None -> dict
    of ids and segments (0 for the first text, 1 for the second)"""
    cls = role(config, 'cls')
    sep = role(config, 'sep')
    middle = between(config)
    if second is None:
        ids = [cls, *first[:config.block_size - 2], sep]
        return dict(ids=ids, segments=[0] * len(ids))
    a = list(first)
    b = list(second)
    while (over := len(a) + len(b) + 2 + len(middle) - config.block_size) > 0:
        longer = a if len(a) >= len(b) else b
        excess = abs(len(a) - len(b))
        del longer[-max(1, min(over, excess)):]
    left = [cls, *a, *middle]
    right = [*b, sep]
    return dict(ids=left + right, segments=[0] * len(left) + [1] * len(right))


def tagged_row(example, tokenizer, config):
    """The first token of a word has its tag, the others -1. Words that do not fit are left out."""
    ids = [role(config, 'cls')]
    sep = role(config, 'sep')
    tags = [-1]
    words = []                                 # where the first token of each word is
    for word, tag in zip(example['tokens'], example['tags']):
        spelled = ' ' + word if words else word        # in the middle it comes after a space
        pieces = tokenizer.encode(spelled) or tokenizer.encode('?')
        if len(ids) + len(pieces) + 1 > config.block_size:
            break
        words.append(len(ids))
        ids += pieces
        tags += [tag] + [-1] * (len(pieces) - 1)
    return dict(ids=ids + [sep], segments=[0] * (len(ids) + 1), tags=tags + [-1], words=words,
                n_words=len(example['tokens']))


def windows(example, tokenizer, config):
    """Question and context -> a row for each window of the context: [CLS] question [SEP] window
    [SEP] (BERT, 4.2). start and end: places of the answer in the row, 0 = [CLS] if the window does
    not hold all of it. first: where the window begins in the row; spans: see offsets."""
    middle = between(config)
    question = tokenizer.encode(example['question'])[:config.max_query]
    question = [role(config, 'cls'), *question, *middle]
    first = len(question)
    ids, spans = offsets(example['context'], tokenizer)
    room = config.block_size - first - 1
    if room < 1:
        raise ValueError(f'block_size={config.block_size} leaves no room for the context: '
                         'raise it or lower --max_query')
    answer = answer_tokens(example, spans)
    rows = []
    last = max(1, len(ids) - room + config.doc_stride)
    for at in range(0, last, min(config.doc_stride, room)):
        window = ids[at:at + room] + [role(config, 'sep')]
        start = end = 0
        if answer and at <= answer[0] and answer[-1] < at + room:
            start = first + answer[0] - at
            end = first + answer[-1] - at
        rows.append(dict(ids=question + window, segments=[0] * first + [1] * len(window),
                         start=start, end=end, first=first, spans=spans[at:at + room],
                         context=example['context']))
        if at + room >= len(ids):
            break
    return rows


def answer_tokens(example, spans):
    """The numbers of the tokens that the first answer touches; [] without an answer"""
    answers = example.get('answers') or []
    if not answers:
        return []
    start = answers[0]['answer_start']
    end = start + len(answers[0]['text'])
    return [i for i, (a, b) in enumerate(spans) if a < end and b > start]


def offsets(text, tokenizer):
    """-> ids, and of each token the characters of the text that it stands for, [(start, end)]. A
    byte-level tokenizer tells them exactly; any other one encodes word by word, and a token of a
    word stands for the whole word."""
    ids = tokenizer.encode(text)
    sizes = [len(tokenizer.decode_bytes([i])) for i in ids]
    data = text.encode()
    if tokenizer.decode_bytes(ids) != data or sum(sizes) != len(data):
        pieces = [(m.span(), tokenizer.encode(m[0])) for m in re.finditer(r'\w+|[^\w\s]', text)]
        ids = [i for _, piece in pieces for i in piece]
        return ids, [span for span, piece in pieces for _ in piece]
    character = np.repeat(np.arange(len(text)), [len(c.encode()) for c in text])
    character = np.append(character, len(text))        # the number of each byte's character
    spans = []
    byte = 0
    for size in sizes:
        start = int(character[byte])
        byte += size
        end = int(character[byte - 1]) + 1
        token = text[start:end]
        if token.strip():                      # without the space in front
            start += len(token) - len(token.lstrip())
        spans.append((start, end))
    return ids, spans

# --------------------------------------------------------------------------------------------------
# rows -> arrays -> loss and predictions

def collate(rows, config):
    """Rows from encode -> ids, segments (B, T), mask (B, T) bool or (B, 0) when nothing is padded,
    targets: classes (B,) int, numbers to regress to (B,) float, tags (B, T), starts and ends
    (B, 2). Of choices the first three have (B, N, T). T is the longest row, to a multiple of 8."""
    groups = [row['choices'] if config.kind == 'choice' else [row] for row in rows]
    N = max(len(group) for group in groups)
    longest = max(len(row['ids']) for group in groups for row in group)
    T = min(math.ceil(longest / 8) * 8, max(config.block_size, longest))
    shape = len(rows), N, T
    ids = np.full(shape, max(0, config.pad_id))
    segments = np.zeros(shape, np.int64)
    mask = np.zeros(shape, bool)
    tags = np.full(shape, -1)
    for i, group in enumerate(groups):
        for j, row in enumerate(group):
            n = len(row['ids'])
            ids[i, j, :n] = row['ids']
            segments[i, j, :n] = row['segments']
            mask[i, j, :n] = True
            if config.kind == 'tagged':
                tags[i, j, :n] = row['tags']
    if mask.all():
        mask = mask[..., :0]
    if config.kind == 'choice':
        return ids, segments, mask, np.array([row['label'] for row in rows])
    if config.kind == 'tagged':
        targets = tags[:, 0]
    elif config.kind == 'qa':
        targets = np.array([(row['start'], row['end']) for row in rows])
    else:
        dtype = np.int64 if config.n_labels else np.float32
        targets = np.array([row['label'] for row in rows], dtype)
    return ids[:, 0], segments[:, 0], mask[:, 0], targets


def logits_of_rows(model, ids, segments, mask):
    """The head of examples with labels, on rows (B, T)"""
    x = model.hidden(ids, segments, mask)
    if model.config.kind in ('labelled', 'choice'):
        x = model.pooled(x, mask)
    elif getattr(model.config, 'pooler', '') == 'head':
        x = model.head(x)
    return model.classifier(model.drop(x))


def logits(model, ids, segments, mask):
    """The same, or of choices: (B, N, T) -> (B, N), -inf for rows of padding"""
    if model.config.kind != 'choice':
        return logits_of_rows(model, ids, segments, mask)
    B, N = ids.shape[:2]
    rows = [None if a is None else a.flatten(0, 1) for a in (ids, segments, mask)]
    y = logits_of_rows(model, *rows).view(B, N)
    if mask is None or mask.size(2) == 0:
        return y
    padding = ~(mask > 0).any(2)
    return y.masked_fill(padding, -math.inf)


def loss(model, ids, segments, mask, targets, totals=None):
    """The arrays of collate, as tensors -> loss, stats. Cross entropy, or squares of differences;
    targets of -1 (of numbers: -100 and below) are none. totals: (1,), the number of targets of the
    global batch, by which the sum is divided."""
    y = model.logits(ids, segments, mask).float()
    if targets.is_floating_point():
        real = targets > -100
        n = real.sum().clamp(min=1) if totals is None else totals[0]
        return torch.where(real, y[:, 0] - targets, 0.0).square().sum() / n, {}
    n = (targets >= 0).sum().clamp(min=1) if totals is None else totals[0]
    if model.config.kind == 'qa':              # each place is a class, but padding is none
        y = y.transpose(1, 2)                  # (B, 2, T)
        if mask.size(1):
            y = y.masked_fill(~mask[:, None], -math.inf)
    y = y.flatten(0, -2)
    targets = targets.flatten()
    hits = (y.argmax(1) == targets).sum()
    nll = F.cross_entropy(y, targets, ignore_index=-1, reduction='sum')
    return nll / n, {'accuracy': hits / n}


@torch.no_grad()
def predict(model, arrays, rows, tokenizer=None):
    """The arrays of collate (as tensors) and the rows they were made of -> a dict for each: index,
    prediction (number of the class or choice, value, list of the words' tags, text of the answer),
    score, by which windows of one example compete, and name, the class in words if Config.labels
    tells it."""
    c = model.config
    names = label_names(c)
    ids, segments, mask, _ = arrays
    predictions = []
    for y, row in zip(model.logits(ids, segments, mask).float().cpu(), rows):
        score = 0.0
        if c.kind == 'qa':
            prediction, score = best_answer(y, row, c)
        elif c.kind == 'tagged':               # words beyond block_size get tag 0
            prediction = y[row['words']].argmax(-1).tolist()
            prediction += [0] * (row['n_words'] - len(prediction))
        elif c.kind == 'labelled' and not c.n_labels:
            prediction = y.item()
        else:
            score, prediction = [v.item() for v in y.softmax(-1).max(-1)]
        found = dict(index=row.get('index', len(predictions)), prediction=prediction, score=score)
        if names:
            found['name'] = in_words(prediction, names)
        predictions.append(found)
    return predictions


def best_answer(y, row, config):
    """y: (T, 2), logits of start and end -> text, score: the best pair of places in the window with
    start <= end < start + max_answer. With no_answer, '' where [CLS] is better."""
    first = row['first']
    n = len(row['spans'])
    text, score = '', -math.inf
    if n:
        both = y[first:first + n, 0, None] + y[None, first:first + n, 1]       # (n, n)
        allowed = torch.ones(n, n, dtype=torch.bool).triu().tril(config.max_answer - 1)
        best, place = both.masked_fill(~allowed, -math.inf).flatten().max(0)
        score = best.item()
        start, end = divmod(int(place), n)
        text = row['context'][row['spans'][start][0]:row['spans'][end][1]].strip()
    if config.no_answer:
        score -= (y[0, 0] + y[0, 1]).item()
        text = text if score > 0 else ''
    return text, score


def label_names(config):
    """The names of the classes; [] where there are none"""
    return json.loads(config.labels) if config.labels and config.n_labels else []


def in_words(prediction, names):
    """The number of a class, or a list of them -> its name, or theirs"""
    if isinstance(prediction, list):
        return [names[i] for i in prediction]
    return names[prediction]
