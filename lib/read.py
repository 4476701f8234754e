"""Reads texts with an encoder: their labels, their vectors, answers that they give."""
import json
import os
import sys

import numpy as np
import torch
from torch.nn import functional as F

from data import files
from data import metrics
from lib import models
from lib.checkpoint import load_checkpoint
from lib.inputs import Columns
from lib.inputs import make_rows
from lib.inputs import map_batches
from lib.inputs import model_file
from lib.inputs import read_examples
from lib.inputs import read_prompt
from lib.inputs import report

TO_COMPARE = 10  # texts whose vectors are compared with each other, at most


# ---- labels

def weights_path(config):
    """Where the weights come from that were trained last."""
    return config.lora or config.init_from or config.out_dir


def trained_columns(config):
    """The columns of the examples that a run was trained on, with ? where some lacked it.
    -> list of names, [] if nothing tells"""
    for path in (config.lora, config.init_from or config.out_dir):
        if os.path.isdir(path):
            if os.path.exists(os.path.join(path, 'config.json')):
                continue  # a Hugging Face folder
            path = os.path.join(path, 'ckpt.pt')
        if os.path.isfile(path):
            return load_checkpoint(path).get('columns', '').split()
    return []


def texts_to_label(config):
    """The examples of --classify for a model of kind labelled. Raises ValueError if it was trained
    on pairs and gets single texts, or the other way round."""
    known = trained_columns(config)
    path = weights_path(config)
    if 'text_b' in known:
        try:
            return read_examples('classify', config.classify, Columns(('text', 'text_b')))
        except ValueError as e:
            raise ValueError(f'{e} ({path} was trained on pairs of texts)') from None
    columns = Columns(('text',), optional=('text_b',))
    examples = read_examples('classify', config.classify, columns)
    if known and 'text_b?' not in known:
        for example in examples:
            if 'text_b' in example:
                raise ValueError(f'--classify={config.classify}: {example["text"][:40]!r} has a '
                                 f'"text_b", but {path} was trained on single texts: leave it out')
    return examples


def classify(model, tokenizer, config):
    """Of each text the label and the probabilities of all, or a value (regression), a tag for each
    word, or the right choice."""
    kind = model.config.kind
    labels = getattr(model.config, 'labels', '')
    if labels:
        labels = json.loads(labels)  # [] for regression
    else:
        labels = [str(i) for i in range(model.config.n_labels)]
    if kind == 'labelled':
        examples = texts_to_label(config)
    elif kind == 'tagged':
        columns = Columns(('tokens',), lists=('tokens',))
        examples = read_examples('classify', config.classify, columns)
    else:
        columns = Columns(('text', 'choices'), lists=('choices',))
        examples = read_examples('classify', config.classify, columns)
    given = [dict(example, label=0, tags=[0] * len(example.get('tokens', ())))
             for example in examples]
    rows, c = make_rows(model, tokenizer, given)
    is_value = kind == 'labelled' and not labels
    functions = models.rows_of(model_file(model), kind)

    def read(arrays, rows):
        """-> for each row its tags, its value, or its probabilities"""
        if kind == 'tagged':
            found = functions.predict(model, arrays, rows, tokenizer)
            return [[labels[i] for i in row['prediction']] for row in found]
        y = model.logits(*arrays[:-1]).float()  # (B, classes) or (B, choices)
        if is_value:
            return y[:, 0].tolist()
        return y.softmax(-1).tolist()

    records = []
    for example, y in zip(examples, map_batches(read, model, c, rows, config.batch_size)):
        record = {name: example[name] for name in ('text', 'text_b', 'tokens', 'choices')
                  if name in example}
        if kind == 'tagged' or is_value:
            record['prediction'] = y
        else:
            names = labels if kind == 'labelled' else range(len(example['choices']))
            best_first = sorted(zip(names, y), key=lambda pair: -pair[1])
            record['prediction'] = best_first[0][0]
            record['probabilities'] = dict(best_first)
        records.append(record)

    def show(record):
        if kind == 'tagged':
            return show_tags(record, len(records) > 1)
        return show_label(record, config.top)

    return report(records, config, show)


def show_tags(record, many):
    """A word and its tag on each line. many: there are other texts, so an empty line follows."""
    lines = [f'{token}\t{tag}' for token, tag in zip(record['tokens'], record['prediction'])]
    text = '\n'.join(lines)
    if many:
        text += '\n'
    return text


def show_label(record, top):
    """The `top` likeliest labels or choices, or the value, and the text."""
    best = []
    for label, p in list(record.get('probabilities', {}).items())[:top]:
        if 'choices' in record:
            label = record['choices'][label]
        best.append(f'{label} {p:.4f}')
    parts = [', '.join(best) or f'{record["prediction"]:.4f}']
    parts += [record[name] for name in ('text', 'text_b') if name in record]
    return '\t'.join(parts)


# ---- vectors

def embed(model, tokenizer, config):
    """A vector for each text: the mean of the last hidden states of its tokens, [CLS] and [SEP]
    counted, or that of [CLS]. Without --out, how similar the texts are."""
    examples = read_examples('embed', config.embed, Columns(('text',), optional=('text_b',)))
    pairs = all('text_b' in example for example in examples)
    texts = [example['text'] for example in examples]
    if pairs:
        texts = [example[side] for side in ('text', 'text_b') for example in examples]
    if not config.out and not pairs and not 1 < len(texts) <= TO_COMPARE:
        raise ValueError(f'--embed of {len(texts)} texts: give --out=vectors.npy '
                         f'(without it 2 to {TO_COMPARE} texts are compared)')
    given = [dict(text=text, label=0) for text in texts]
    rows, c = make_rows(model, tokenizer, given, kind='labelled')

    def pooled(arrays, rows):
        x = model.hidden(*arrays[:-1]).float()  # (B, T, C)
        mask = arrays[2]  # (B, T) bool; (B, 0): no padding
        if config.pool == 'cls':
            x = x[:, 0]
        elif mask.size(1):
            x = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        else:
            x = x.mean(1)
        if config.normalize:
            x = F.normalize(x, dim=-1)
        return x.cpu()

    vectors = torch.stack(map_batches(pooled, model, c, rows, config.batch_size))  # (texts, C)
    if config.out:
        files.write_atomic(config.out, lambda f: np.save(f, vectors.numpy()))
        print(f'{config.out}: {len(vectors)} vectors of {vectors.size(1)} float32', file=sys.stderr)
        return dict(vectors=vectors.numpy())
    if pairs:
        return compare_pairs(examples, vectors, config)
    return compare_all(texts, vectors, config)


def compare_pairs(examples, vectors, config):
    """The cosine of each pair of texts, and its correlation with "label" if that is there (semantic
    similarity, STS-B). vectors: (2 pairs, C), all first texts and then all second ones"""
    cosines = F.cosine_similarity(*vectors.chunk(2)).tolist()
    records = [dict(example, cosine=cosine) for example, cosine in zip(examples, cosines)]

    def show(record):
        return f'{record["cosine"]:7.4f}   {record["text"]} | {record["text_b"]}'

    result = report(records, config, show)
    labels = [record.get('label') for record in records]
    if len(labels) > 1 and all(isinstance(label, (int, float)) for label in labels):
        result |= metrics.correlations(cosines, labels)
        print(f'cosine and label: Spearman {result["spearman"]:.4f}, '
              f'Pearson {result["pearson"]:.4f}', file=sys.stderr)
    return result


def compare_all(texts, vectors, config):
    """The cosine of each text with each. vectors: (texts, C)"""
    unit = F.normalize(vectors, dim=-1)
    cosines = (unit @ unit.t()).tolist()
    records = [dict(text=text, cosines=row) for text, row in zip(texts, cosines)]

    def show(record):
        return ' '.join(f'{v:7.4f}' for v in record['cosines']) + '   ' + record['text']

    return report(records, config, show)


# ---- answers

def answer(model, tokenizer, config):
    """The best span of the context for each question, and the next ones that other windows of the
    context give. The score is the sum of the logits of its start and end, less those of no answer
    if the model knows that."""
    if not (config.question and config.context):
        raise ValueError('--answer needs --question=TEXT and --context=TEXT or FILE')
    examples = read_examples('question', config.question, Columns(('question',)))
    questions = [example['question'] for example in examples]
    path = f'FILE:{config.context}' if os.path.isfile(config.context) else config.context
    context = read_prompt(path, 'context')
    given = [dict(context=context, question=question) for question in questions]
    rows, c = make_rows(model, tokenizer, given)
    predict = models.rows_of(model_file(model), c.kind).predict

    def spans(arrays, rows):
        return predict(model, arrays, rows, tokenizer)

    found = map_batches(spans, model, c, rows, config.batch_size)
    best = [{} for _ in questions]  # text -> score, the best first
    for row in sorted(found, key=lambda row: -row['score']):
        best[row['index']].setdefault(row['prediction'], row['score'])  # windows overlap: once each
    records = []
    for question, scores in zip(questions, best):
        answers = [dict(text=text, score=score) for text, score in scores.items()]
        records.append(dict(question=question, answers=answers[:config.top]))

    def show(record):
        lines = []
        if len(records) > 1:
            lines.append(record['question'])
        for found in record['answers']:
            lines.append(f'{found["score"]:8.3f}  {found["text"] or "(no answer)"}')
        return '\n'.join(lines)

    return report(records, config, show)
