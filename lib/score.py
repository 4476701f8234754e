"""Measures a causal model: the likelihood of a text, multiple choice, last words.

The windows of --eval=lm are those of transformers' guide to perplexity, after a start token, so
that the first token counts too.
"""
import math

import numpy as np
import torch
from torch.nn import functional as F

from data import text as text_files
from lib.inputs import json_lines
from lib.inputs import show_progress
from lib.talk import start_ids

LOGITS = dict(cpu=2 ** 27, cuda=2 ** 29)  # elements of the logits of a batch, at most
EXPECTED = ('{"query": text, "choices": [text, ...], "gold": number of the right one, from 0} '
            'or {"context": text, "continuation": text}')


# ---- scores

@torch.no_grad()
def score(model, rows, batch_size=8, progress=False):
    """rows: [(ids, n)] -> [(log p of the last n ids after those before, whether each of the n was
    the likeliest)].

    At least one id comes before, and at most block_size + 1 are all. Shorter rows are padded
    behind, where no token looks.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    most = LOGITS.get(device.type, LOGITS['cpu'])
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    results = [None] * len(rows)
    done = 0
    while done < len(order):
        T = len(rows[order[done]][0]) - 1  # of the longest row
        fit = most // (T * model.config.vocab_size)  # (B, T, V) logits are there at once
        chosen = order[done:done + max(1, min(batch_size, fit))]
        x = np.zeros((len(chosen), T + 1), np.int64)
        for r, i in enumerate(chosen):
            x[r, :len(rows[i][0])] = rows[i][0]
        x = torch.from_numpy(x).to(device)
        logits = model.logits(x[:, :-1])  # (B, T, V)
        found = []
        for r, i in enumerate(chosen):
            ids, n = rows[i]
            end = len(ids)
            guess = logits[r, end - 1 - n:end - 1].float()  # (n, V)
            target = x[r, end - n:end]  # (n,)
            log_p = -F.cross_entropy(guess, target, reduction='sum')
            likeliest = (guess.argmax(-1) == target).all().float()
            found.append(torch.stack((log_p, likeliest)))
        for i, (log_p, likeliest) in zip(chosen, torch.stack(found).tolist()):
            results[i] = log_p, likeliest > 0
        done += len(chosen)
        if progress:
            show_progress(done, len(order))
    model.train(training)
    return results


def evaluate(model, tokenizer, config):
    if config.eval == 'lm':
        return evaluate_text(model, tokenizer, config)
    return evaluate_items(model, tokenizer, config)


# ---- the likelihood of a text

def read_documents(path):
    """The documents of a text that train.py --data takes. Raises ValueError if it is empty."""
    documents = ['']
    for piece, is_last in text_files.documents(text_files.files(path)):
        documents[-1] += piece
        if is_last:
            documents.append('')
    documents = [document for document in documents if document]
    if not documents:
        raise ValueError(f'--text={path}: holds no text')
    return documents


def document_ids(tokenizer, documents):
    """The documents in a row, the start token or end-of-text in front of the first, end-of-text
    between them, as far as the vocabulary has these -> (ids (N,), bytes of text that are to be
    predicted). The first id is not predicted."""
    eot = [] if tokenizer.eot is None else [tokenizer.eot]
    bos = getattr(tokenizer, 'bos', None)
    start = eot if bos is None else [bos]
    parts = []
    for i, document in enumerate(documents):
        before = start if i == 0 else eot
        parts.append(np.array([*before, *tokenizer.encode(document)], np.int64))
    ids = np.concatenate(parts)
    n_bytes = sum(len(document.encode()) for document in documents)
    if not start:
        n_bytes -= len(tokenizer.decode_bytes(ids[:1].tolist()))
    return ids, n_bytes


def evaluate_text(model, tokenizer, config):
    """Sliding windows of block_size tokens, `stride` apart: each token is predicted once, the first
    window's by what is before, all others by at least block_size - stride tokens.
    -> {'loss' (nats a token), 'perplexity', 'bits_per_byte', 'tokens', 'bytes'}"""
    limit = model.config.block_size
    stride = config.stride or max(1, limit // 2)
    if not config.text:
        raise ValueError('--eval=lm needs a text: --text=FILE')
    if not 1 <= stride <= limit:
        raise ValueError(f'--stride={stride}: expected 1 to block_size={limit}')
    ids, n_bytes = document_ids(tokenizer, read_documents(config.text))
    last = len(ids) - 1  # targets are ids 1 .. last
    if last < 1:
        raise ValueError(f'--text={config.text}: a single token, nothing to predict')
    ends = [*range(min(limit, last), last, stride), last]
    rows = []
    for before, end in zip([0, *ends], ends):
        rows.append((ids[max(0, end - limit):end + 1], end - before))
    log_p = sum(p for p, _ in score(model, rows, config.batch_size, progress=True))
    loss = -log_p / last
    result = dict(loss=loss, perplexity=math.exp(min(loss, 700)),  # e^710 is no float
                  bits_per_byte=loss * last / math.log(2) / n_bytes, tokens=last, bytes=n_bytes)
    print(f'{config.text}: perplexity {result["perplexity"]:.3f}, '
          f'{result["bits_per_byte"]:.4f} bits per byte (loss {loss:.4f} over {last:,} tokens, '
          f'{n_bytes:,} bytes; windows of {limit}, stride {stride})')
    return result


# ---- multiple choice, last words

def read_items(path):
    """Yields (line number, dict) of each line of a file of questions. Raises ValueError if it
    cannot be read, or if a line is wrong."""
    try:
        with open(path, 'rb') as f:
            lines = f.read().splitlines()
    except OSError as e:
        raise ValueError(f'--eval={path}: {e.strerror}; expected lm or a .jsonl file') from None
    for number, item in json_lines(path, lines, EXPECTED):
        wrong = what_is_wrong(item)
        if wrong:
            raise ValueError(f'{path} line {number}: {wrong}; expected {EXPECTED}')
        yield number, item


def what_is_wrong(item):
    """What is wrong with an item of multiple choice or of last words, or ''."""
    def is_text(x):
        return isinstance(x, str) and x.strip() != ''
    if 'choices' not in item:
        if isinstance(item.get('context'), str) and is_text(item.get('continuation')):
            return ''
        return f'has {", ".join(item) or "nothing"}'
    choices = item['choices']
    are_texts = isinstance(choices, list) and len(choices) > 0 and all(map(is_text, choices))
    if not (isinstance(item.get('query'), str) and are_texts):
        return '"query" is not a text, or "choices" is not a list of texts'
    gold = item.get('gold')
    if type(gold) is not int or not 0 <= gold < len(choices):
        return f'"gold" is {gold!r} with {len(choices)} choices'
    return ''


def scored_row(tokenizer, before, after, delimiter, limit):
    """A text and what follows it -> (ids, n): the last n ids are those of `after`, with the white
    space in front of it.

    They are encoded as one text; `before` ends where its ids and those of `before` alone differ.
    Raises ValueError if the n do not fit into `limit`, the model's window.
    """
    if before and not before[-1:].isspace() and not after[:1].isspace():
        after = delimiter + after
    head = start_ids(tokenizer, before.rstrip())
    ids = start_ids(tokenizer, before + after)
    if not before.rstrip() and ids[:len(head)] != head:
        ids = head + ids  # after nothing but the start token
    same = 0
    while same < min(len(head), len(ids) - 1) and head[same] == ids[same]:
        same += 1
    n = len(ids) - max(1, same)
    if n > limit:
        raise ValueError(f'{n} tokens to be scored, but the model sees {limit} (block_size)')
    return ids[-limit - 1:], n


def evaluate_items(model, tokenizer, config):
    """Multiple choice: how often the continuation with the highest log-likelihood is the right one,
    plain and divided by its UTF-8 bytes (acc and acc_norm of lm-evaluation-harness, which counts
    characters). Last words: how often greedy decoding gives them, and exp(-mean log-likelihood)."""
    limit = model.config.block_size
    items = []
    rows = []
    for number, item in read_items(config.eval):
        if 'choices' in item:
            before, afters = item['query'], item['choices']
        else:
            before, afters = item['context'], [item['continuation']]
        try:
            for after in afters:
                rows.append(scored_row(tokenizer, before, after, config.delimiter, limit))
        except ValueError as e:
            raise ValueError(f'{config.eval} line {number}: {e}') from None
        items.append((item, afters))
    if not items:
        raise ValueError(f'--eval={config.eval}: no lines')

    scores = iter(score(model, rows, config.batch_size, progress=True))
    right, right_per_byte = [], []  # of each item with choices
    greedy, log_ps = [], []  # of each item of last words
    for item, afters in items:
        log_p, likeliest = np.array([next(scores) for _ in afters]).T  # (choices,) each
        if 'choices' in item:
            n_bytes = [len(after.strip().encode()) for after in afters]
            right.append(log_p.argmax() == item['gold'])
            right_per_byte.append((log_p / n_bytes).argmax() == item['gold'])
        else:
            greedy.append(likeliest[0])
            log_ps.append(log_p[0])

    result = {}
    if right:
        result |= dict(items=len(right), accuracy=float(np.mean(right)),
                       accuracy_norm=float(np.mean(right_per_byte)))
        print(f'{config.eval}: accuracy {result["accuracy"]:.4f}, '
              f'length-normalised {result["accuracy_norm"]:.4f} ({len(right)} items)')
    if greedy:
        result |= dict(words=len(greedy), word_accuracy=float(np.mean(greedy)),
                       word_perplexity=float(np.exp(-np.mean(log_ps))))
        print(f'{config.eval}: last-word accuracy {result["word_accuracy"]:.4f}, '
              f'perplexity {result["word_perplexity"]:.3f} ({len(greedy)} items)')
    return result
