"""Measures a causal model: the likelihood of a text, multiple choice, last words."""
import math

import numpy as np
import torch
from torch.nn import functional as F

from lib.inputs import objects, show_progress
from lib.talk import start_ids


@torch.no_grad()
def score(model, rows, batch_size=8, progress=False):
    """rows: [(ids, n)] -> [(log p of the last n ids after those before, whether each of them was the likeliest)]. At
    least one id comes before, at most block_size + 1 are all. Shorter rows are padded behind, where no token looks."""
    device, training, V = next(model.parameters()).device, model.training, model.config.vocab_size
    model.eval()
    order, out, done = sorted(range(len(rows)), key=lambda i: -len(rows[i][0])), [None] * len(rows), 0
    while done < len(order):
        longest = len(rows[order[done]][0]) - 1                            # memory: (B, T, V) logits are all there at once
        some = order[done:done + max(1, min(batch_size, 2 ** (29 if device.type == 'cuda' else 27) // (longest * V)))]
        x = np.zeros((len(some), longest + 1), np.int64)
        for r, i in enumerate(some): x[r, :len(rows[i][0])] = rows[i][0]
        x, found = torch.from_numpy(x).to(device), []
        logits = model.logits(x[:, :-1])                                   # (B, T, V)
        for r, i in enumerate(some):
            end, n = len(rows[i][0]), rows[i][1]
            guess, target = logits[r, end - 1 - n:end - 1].float(), x[r, end - n:end]
            found.append(torch.stack((-F.cross_entropy(guess, target, reduction='sum'), (guess.argmax(-1) == target).all().float())))
        for i, (p, best) in zip(some, torch.stack(found).tolist()): out[i] = p, best > 0
        done += len(some)
        if progress: show_progress(done, len(order))
    model.train(training)
    return out


def evaluate_text(model, tokenizer, config):
    """Sliding windows of block_size tokens, `stride` apart: each token is predicted once, the first window's by what is
    before, all others by at least block_size - stride tokens. Documents are parted by the end-of-text token."""
    from data import text as reader
    limit = model.config.block_size
    stride = config.stride or max(1, limit // 2)
    if not config.text: raise ValueError('--eval=lm needs a text: --text=FILE')
    if not 1 <= stride <= limit: raise ValueError(f'--stride={stride}: expected 1 to block_size={limit}')
    documents, piece = [''], ''
    for piece, last in reader.documents(reader.files(config.text)):
        documents[-1] += piece
        if last: documents.append('')
    documents = [d for d in documents if d]
    if not documents: raise ValueError(f'--text={config.text}: holds no text')
    eot = [] if tokenizer.eot is None else [tokenizer.eot]
    start = [b] if (b := getattr(tokenizer, 'bos', None)) is not None else eot
    ids = np.concatenate([np.array([*(eot if i else start), *tokenizer.encode(d)], np.int64) for i, d in enumerate(documents)])
    n_bytes = sum(len(d.encode()) for d in documents) - (0 if start else len(tokenizer.decode_bytes(ids[:1].tolist())))
    last = len(ids) - 1                                                    # targets are ids 1 .. last
    if last < 1: raise ValueError(f'--text={config.text}: a single token, nothing to predict')
    ends = [*range(min(limit, last), last, stride), last]
    rows = [(ids[max(0, end - limit):end + 1], end - before) for before, end in zip([0, *ends], ends)]
    loss = -sum(p for p, _ in score(model, rows, config.batch_size, progress=True)) / last
    result = dict(loss=loss, perplexity=math.exp(min(loss, 700)), bits_per_byte=loss * last / math.log(2) / n_bytes, tokens=last, bytes=n_bytes)
    print(f'{config.text}: perplexity {result["perplexity"]:.3f}, {result["bits_per_byte"]:.4f} bits per byte (loss {loss:.4f} over '
          f'{last:,} tokens, {n_bytes:,} bytes; windows of {limit}, stride {stride})')
    return result


def read_items(path):
    """-> (line number, dict) of each line of a file of questions, checked"""
    expected = '{"query": text, "choices": [text, ...], "gold": number of the right one, from 0} or {"context": text, "continuation": text}'
    try: lines = open(path, 'rb').read().splitlines()
    except OSError as e: raise ValueError(f'--eval={path}: {e.strerror}; expected lm or a .jsonl file') from None
    full = lambda x: isinstance(x, str) and x.strip()
    for number, item in objects(path, lines, expected):
        wrong = ''
        if 'choices' in item:
            choices, gold = item['choices'], item.get('gold')
            if not (isinstance(item.get('query'), str) and isinstance(choices, list) and choices and all(map(full, choices))):
                wrong = '"query" is no text, or "choices" no list of texts'
            elif type(gold) is not int or not 0 <= gold < len(choices): wrong = f'"gold" is {gold!r} with {len(choices)} choices'
        elif not isinstance(item.get('context'), str) or not full(item.get('continuation')): wrong = f'has {", ".join(item) or "nothing"}'
        if wrong: raise ValueError(f'{path} line {number}: {wrong}; expected {expected}')
        yield number, item


def scored_row(tokenizer, before, after, delimiter, limit):
    """A text and what follows it -> (ids, n): the last n ids are those of `after`, with the white space in front of it.
    They are encoded as one text; what of it is `before` is where its ids and those of `before` alone agree."""
    if before and not before[-1:].isspace() and not after[:1].isspace(): after = delimiter + after
    head = start_ids(tokenizer, before.rstrip())
    ids = start_ids(tokenizer, before + after)
    if not before.rstrip() and ids[:len(head)] != head: ids = head + ids   # after nothing but the start token
    same = next((i for i, (a, b) in enumerate(zip(head, ids)) if a != b), min(len(head), len(ids) - 1))
    n = len(ids) - max(1, same)
    if n > limit: raise ValueError(f'{n} tokens to be scored, but the model sees {limit} (block_size)')
    return ids[-limit - 1:], n


def evaluate_items(model, tokenizer, config):
    """The accuracy of choosing the continuation with the highest log-likelihood, plain and divided by its UTF-8 bytes
    (acc and acc_norm of lm-evaluation-harness, which counts characters); for last words, how often greedy decoding gives
    them, and exp(-mean log-likelihood)."""
    items, rows = [], []
    for number, item in read_items(config.eval):
        before, afters = (item['query'], item['choices']) if 'choices' in item else (item['context'], [item['continuation']])
        try: rows += [scored_row(tokenizer, before, after, config.delimiter, model.config.block_size) for after in afters]
        except ValueError as e: raise ValueError(f'{config.eval} line {number}: {e}') from None
        items.append((item, afters))
    if not items: raise ValueError(f'--eval={config.eval}: no lines')
    found, plain, normed, exact, words = iter(score(model, rows, config.batch_size, progress=True)), [], [], [], []
    for item, afters in items:
        p, best = np.array([next(found) for _ in afters]).T                # (choices,) each
        if 'choices' not in item: exact.append(best[0]); words.append(p[0]); continue
        plain.append(p.argmax() == item['gold'])
        normed.append((p / [len(a.strip().encode()) for a in afters]).argmax() == item['gold'])
    result = {}
    if plain: result |= dict(items=len(plain), accuracy=float(np.mean(plain)), accuracy_norm=float(np.mean(normed)))
    if exact: result |= dict(words=len(exact), word_accuracy=float(np.mean(exact)), word_perplexity=float(np.exp(-np.mean(words))))
    if plain: print(f'{config.eval}: accuracy {result["accuracy"]:.4f}, length-normalised {result["accuracy_norm"]:.4f} ({len(plain)} items)')
    if exact: print(f'{config.eval}: last-word accuracy {result["word_accuracy"]:.4f}, perplexity {result["word_perplexity"]:.3f} ({len(exact)} items)')
    return result


def evaluate(model, tokenizer, config):
    return (evaluate_text if config.eval == 'lm' else evaluate_items)(model, tokenizer, config)
