"""Reads a text with an encoder: labels, vectors, answers."""
import json
import os
import sys

import numpy as np
import torch
from torch.nn import functional as F

from data import files
from lib import models
from lib.checkpoint import load_checkpoint
from lib.inputs import coded, file_of, in_batches, inputs, read_prompt, report


def trained_on(config):
    """-> the columns of the examples that a run was trained on, with ? where some lacked it; [] if nothing tells"""
    for path in (config.lora, config.init_from or config.out_dir):
        if os.path.isdir(path): path = '' if os.path.exists(os.path.join(path, 'config.json')) else os.path.join(path, 'ckpt.pt')
        if os.path.isfile(path): return load_checkpoint(path).get('columns', '').split()
    return []


def classify(model, tokenizer, config):
    """Of each text the label and their probabilities, a value (regression), a tag for each word, or the right choice."""
    file, kind, labels = file_of(model), model.config.kind, getattr(model.config, 'labels', '')
    known, path = trained_on(config) if kind == 'labelled' else [], config.lora or config.init_from or config.out_dir
    columns = dict(labelled='text text_b' if 'text_b' in known else 'text text_b?', tagged='tokens*', choice='text choices*')[kind]
    names = json.loads(labels) if labels else [str(i) for i in range(model.config.n_labels)]
    try: examples = inputs('classify', config.classify, columns)
    except ValueError as e: raise ValueError(f'{e} ({path} was trained on pairs of texts)' if 'text_b' in known else e) from None
    if odd := [e['text'] for e in examples if 'text_b' in e and known and not {'text_b', 'text_b?'} & {*known}]:
        raise ValueError(f'--classify={config.classify}: {odd[0][:40]!r} has a "text_b", but {path} was trained on single texts: leave it out')
    rows, c = coded(model, tokenizer, [dict(e, label=0, tags=[0] * len(e.get('tokens', ()))) for e in examples])
    def work(arrays, rows):
        if kind == 'tagged': return [[names[i] for i in r['prediction']] for r in models.rows_of(file, kind).predict(model, arrays, rows, tokenizer)]
        y = model.logits(*arrays[:-1]).float()                             # (B, classes), (B, 1) or (B, choices)
        return y[:, 0].tolist() if kind == 'labelled' and not names else y.softmax(-1).tolist()
    records = []
    for e, y in zip(examples, in_batches(model, c, rows, config.batch_size, work)):
        e = {k: e[k] for k in ('text', 'text_b', 'tokens', 'choices') if k in e}
        records.append(dict(e, prediction=y))
        if kind == 'tagged' or kind == 'labelled' and not names: continue
        y = dict(sorted(zip(names if kind == 'labelled' else range(len(e['choices'])), y), key=lambda pair: -pair[1]))
        records[-1].update(prediction=next(iter(y)), probabilities=y)
    def shown(r):
        if kind == 'tagged': return '\n'.join(map('{}\t{}'.format, r['tokens'], r['prediction'])) + '\n' * (len(records) > 1)
        best = [f'{r["choices"][n] if kind == "choice" else n} {p:.4f}' for n, p in r.get('probabilities', {}).items()]
        return '\t'.join([', '.join(best[:config.top]) or f'{r["prediction"]:.4f}', *(r[k] for k in ('text', 'text_b') if k in r)])
    return report(records, config, shown)


def embed(model, tokenizer, config):
    """A vector a text: the mean of the last hidden states of its tokens, [CLS] and [SEP] counted, or that of [CLS]. Of lines
    with "text_b" the cosine of each pair, and how it goes with "label" if that is there (semantic similarity, STS-B)."""
    from data import metrics
    records = inputs('embed', config.embed, 'text text_b?')
    pairs = all('text_b' in row for row in records)
    texts = [row[side] for side in ('text', 'text_b')[:1 + pairs] for row in records]
    if not config.out and not pairs and not 1 < len(texts) <= 10:
        raise ValueError(f'--embed of {len(texts)} texts: give --out=vectors.npy (without it 2 to 10 texts are compared)')
    rows, c = coded(model, tokenizer, [dict(text=t, label=0) for t in texts], kind='labelled')
    def work(arrays, rows):
        x, mask = model.hidden(*arrays[:-1]).float(), arrays[2]            # (B, T, C), (B, T) bool or (B, 0): no padding
        if config.pool == 'cls': x = x[:, 0]
        else: x = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True) if mask.size(1) else x.mean(1)
        return (F.normalize(x, dim=-1) if config.normalize else x).cpu()
    vectors = torch.stack(in_batches(model, c, rows, config.batch_size, work))                 # (texts, C)
    if config.out:
        files.write_atomic(config.out, lambda f: np.save(f, vectors.numpy()))
        print(f'{config.out}: {len(vectors)} vectors of {vectors.size(1)} float32', file=sys.stderr)
        return dict(vectors=vectors.numpy())
    if pairs:
        for row, cosine in zip(records, F.cosine_similarity(*vectors.chunk(2)).tolist()): row['cosine'] = cosine
        result = report(records, config, lambda r: f'{r["cosine"]:7.4f}   {r["text"]} | {r["text_b"]}')
        if all(isinstance(row.get('label'), (int, float)) for row in records) and len(records) > 1:
            result |= metrics.correlations([row['cosine'] for row in records], [row['label'] for row in records])
            print(f'cosine and label: Spearman {result["spearman"]:.4f}, Pearson {result["pearson"]:.4f}', file=sys.stderr)
        return result
    alike = F.normalize(vectors, dim=-1) @ F.normalize(vectors, dim=-1).t()                    # cosines
    return report([dict(text=t, cosines=row) for t, row in zip(texts, alike.tolist())], config,
                  lambda r: ' '.join(f'{v:7.4f}' for v in r['cosines']) + '   ' + r['text'])


def answer(model, tokenizer, config):
    """The best span of the context for each question, and the next ones that other windows of it give. The score is the
    sum of the logits of its start and end, less those of no answer if the model knows that."""
    if not (config.question and config.context): raise ValueError('--answer needs --question=TEXT and --context=TEXT or FILE')
    questions = [row['question'] for row in inputs('question', config.question, 'question')]
    context = read_prompt('FILE:' * os.path.isfile(config.context) + config.context, 'context')
    rows, c = coded(model, tokenizer, [dict(context=context, question=q) for q in questions])
    rows_of = models.rows_of(file_of(model), c.kind)
    work = lambda arrays, rows: rows_of.predict(model, arrays, rows, tokenizer)
    found = sorted(in_batches(model, c, rows, config.batch_size, work), key=lambda r: -r['score'])
    best = [{} for _ in questions]
    for r in found: best[r['index']].setdefault(r['prediction'], r['score'])                   # windows overlap: once each
    records = [dict(question=q, answers=[dict(text=t, score=s) for t, s in [*b.items()][:config.top]])
               for q, b in zip(questions, best)]
    return report(records, config, lambda r: '\n'.join([r['question']] * (len(records) > 1) + [
        f'{a["score"]:8.3f}  {a["text"] or "(no answer)"}' for a in r['answers']]))
