"""Writes prepared folders: text as ids (train.bin, val.bin), examples as lines (train.jsonl, ...).

Text passes through in pieces of a megabyte and is encoded on all cores. About a 20th of the
documents or examples is for validation, picked by a hash of their text, so that copies stay on one
side.
"""
import collections
import concurrent.futures
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import dataclass

import numpy as np

import bpe
from data import reading, supervised
from data.download import Progress
from data.folders import finish
from data.reading import read_jsonl, size_of, suffix
from data.vocabulary import get_tokenizer

SAMPLE = 64 << 20           # bytes of text that a vocabulary is trained on, spread evenly
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def for_validation(text, share):
    """Whether a document belongs to the `share` that is for validation. Its hash decides."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') < share * 2 ** 64


# --------------------------------------------------------------------------- encoding on all cores

def encode(tok, dtype, job):
    """Encodes a list of (piece, last, split), where split is 0 for training and 1 for validation.

    Returns [ids of training, of validation] and [bytes of training, of validation].
    """
    parts = [], []
    sizes = [0, 0]
    for text, last, split in job:
        sizes[split] += size_of(text)
        if text:
            parts[split].append(tok.encode_numpy(text).astype(dtype))
        if last:
            parts[split].append(np.array([tok.eot], dtype))
    ids = [np.concatenate(p) if p else np.zeros(0, dtype) for p in parts]
    return ids, sizes


def start_process(*tools):
    """Gives a new process its tokenizer and dtype."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # the parent handles Ctrl-C
    in_process.tools = tools


def in_process(job):
    """encode() with the tokenizer and dtype that this process was started with."""
    return encode(*in_process.tools, job)


def encoded(tok, dtype, work, total):
    """Encodes jobs on all cores and yields their results in order. total: bytes of text in all.

    Threads do where encode_numpy releases the interpreter's lock (tiktoken, numpy). A tokenizer
    that is written in Python gets processes, if there is enough to do.
    """
    in_python = type(tok).encode_numpy is bpe.Tokenizer.encode_numpy
    if in_python and total > 4 * reading.PIECE and hasattr(os, 'fork'):
        fork = multiprocessing.get_context('fork')
        pool = concurrent.futures.ProcessPoolExecutor(CORES, fork, start_process, (tok, dtype))
        submit = functools.partial(pool.submit, in_process)
    else:
        pool = concurrent.futures.ThreadPoolExecutor(CORES)
        submit = functools.partial(pool.submit, encode, tok, dtype)
    most = 3 * CORES                                    # jobs of a megabyte that wait in memory
    waiting = collections.deque()
    try:
        for job in work:
            waiting.append(submit(job))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


# ------------------------------------------------------------------------------------ running text

@dataclass
class Split:
    """One file of ids, train.bin or val.bin, and how much has been written to it."""
    path: str
    tokens: int = 0
    bytes: int = 0          # of text, not of ids
    documents: int = 0


def jobs(train, val, share, splits):
    """Groups pieces to jobs of about a megabyte, lists of (piece, last, split); counts documents.

    Without val, the hash of a document's first piece decides which split it belongs to.
    """
    job = []
    size = 0
    split = None                                        # that of the document at hand
    for number, stream in enumerate((train, val) if val else (train,)):
        for text, last in stream():
            if split is None:
                split = number if val else int(for_validation(text, share))
            job.append((text, last, split))
            size += len(text) + 1
            if last:
                splits[split].documents += 1
                split = None
            if size >= reading.PIECE:
                yield job
                job = []
                size = 0
    if job:
        yield job


def make_tokenizer(tokenizer, vocab_size, tag, streams, total, source):
    """The tokenizer for running text, and the bytes that it was trained on (0 if it was not).

    Raises ValueError if there is no text, or the tokenizer has no end-of-text id.
    """
    progress = Progress(f'vocabulary {tag}', total)
    stride = max(1, total // SAMPLE) if tokenizer == 'bpe' else 1       # char has to see all
    seen = 0

    def sample():
        nonlocal seen
        texts = (text for stream in streams for text, _ in stream())
        for i, text in enumerate(texts):
            seen += size_of(text)
            if i % stride == 0 and text:
                yield text
            progress(seen)
        if not seen:
            raise ValueError(f'{source}: no text in it (0 bytes); expected running text')

    tok = get_tokenizer(tokenizer, vocab_size, sample)
    if seen:
        progress(seen, last=True)
    if tok.eot is None:
        raise ValueError(f'the tokenizer {tag} has no end-of-text id to put between documents: '
                         'take another, like --tokenizer=bpe')
    return tok, seen


def write_text(folder, train, val=None, tokenizer='bpe', vocab_size=8192, tag='', share=0.05,
               total=0, source=''):
    """Encodes documents into train.bin and val.bin of a folder. Returns its meta.

    train, val: functions that return a fresh iterator of (piece, last); without val, `share` of the
        documents is picked for validation
    tokenizer, vocab_size, tag: see data/vocabulary.py
    total: bytes of text, as far as known, to show progress against
    source: where the text comes from, for meta.json and messages

    Raises ValueError if there is no text, for training or for validation.
    """
    streams = (train, val) if val else (train,)
    tok, seen = make_tokenizer(tokenizer, vocab_size, tag, streams, total, source)
    total = seen or total
    dtype = np.dtype('uint16' if tok.vocab_size <= 65536 else 'uint32')
    splits = [Split(os.path.join(folder, name)) for name in ('train.bin', 'val.bin')]
    progress = Progress(f'encoding {tag}', total)
    with open(splits[0].path, 'wb') as train_file, open(splits[1].path, 'wb') as val_file:
        for ids, sizes in encoded(tok, dtype, jobs(train, val, share, splits), total):
            for i, f in enumerate((train_file, val_file)):
                f.write(ids[i])
                splits[i].tokens += len(ids[i])
                splits[i].bytes += sizes[i]
            progress(splits[0].bytes + splits[1].bytes)
    written = splits[0].bytes + splits[1].bytes
    progress(written, last=True)
    for missing, where in ((not written, 'in it'), (val and not splits[0].bytes, 'to train on'),
                           (val and not splits[1].bytes, 'for validation')):
        if missing:
            raise ValueError(f'{source}: no text {where} (0 bytes); expected running text')
    if not val and not share / 5 < splits[1].bytes / written < max(0.2, 4 * share):
        recut(splits, tok, dtype)
    meta = dict(kind='text', source=source, dtype=dtype.name)
    for name, split in zip(('train', 'val'), splits):
        meta[name + '_tokens'] = split.tokens
        meta[name + '_bytes'] = split.bytes
        meta[name + '_documents'] = split.documents
    return finish(folder, tok, tag, meta)


def blocks(f, dtype, start, stop):
    """Yields the ids start to stop of an open file as (place, ids), about a million at a time."""
    f.seek(start * dtype.itemsize)
    while start < stop:
        ids = np.fromfile(f, dtype, min(reading.PIECE, stop - start))
        if not len(ids):
            return
        yield start, ids
        start += len(ids)


def recut(splits, tok, dtype):
    """Makes val.bin the end of all the text, where documents are too few or unequal to pick from.

    The cut is the border between documents that is nearest to nine tenths of the tokens. If there
    is none between eight tenths and 98 %, it goes through a document at nine tenths, as
    in nanoGPT, and this document counts on both sides.
    """
    train, val = splits
    with open(train.path, 'ab') as f, open(val.path, 'rb') as rest:
        shutil.copyfileobj(rest, f)
    n = train.tokens + val.tokens
    written = train.bytes + val.bytes
    documents = train.documents + val.documents
    goal = max(1, (n - 1) * 9 // 10)
    borders = []
    val.bytes = 0
    val.documents = 0
    with open(train.path, 'rb') as f, open(val.path, 'wb') as out:
        if n > 50:
            for start, ids in blocks(f, dtype, n * 8 // 10 - 1, n - n // 50 - 1):
                borders += [start + int(i) + 1 for i in np.flatnonzero(ids == tok.eot)]
        at = min(borders, key=lambda border: abs(border - goal), default=goal)
        for _, ids in blocks(f, dtype, at, n):
            val.bytes += int(tok.byte_lengths[ids].sum())
            val.documents += int((ids == tok.eot).sum())
            out.write(ids)
    train.documents = documents - val.documents + (not borders)
    train.tokens = at
    val.tokens = n - at
    train.bytes = max(0, written - val.bytes)
    os.truncate(train.path, at * dtype.itemsize)


# ---------------------------------------------------------------------------------------- examples

def examples(paths, kind):
    """Yields the lines of .jsonl files as checked examples of a kind, see data/supervised.py."""
    for path in paths:
        if suffix(path) != '.jsonl':
            raise ValueError(f'{path}: expected only .jsonl files beside the {kind} data '
                             f'in {paths[0]}')
        for number, row in read_jsonl(path):
            yield supervised.check(supervised.mended(row), kind, path, number)


def classes_of(row, kind):
    """The labels of an example that become numbers: its class, or its tags."""
    if kind == 'labelled':
        return [row['label']]
    return row['tags'] if kind == 'tagged' else []


def write_rows(folder, train, val, share, line_of):
    """Writes train.jsonl and val.jsonl. Returns the number of examples of each."""
    counts = [0, 0]
    last = ''                                           # the last line of train.jsonl
    train_path = os.path.join(folder, 'train.jsonl')
    val_path = os.path.join(folder, 'val.jsonl')
    with open(train_path, 'w', newline='\n') as a, open(val_path, 'w', newline='\n') as b:
        for number, stream in enumerate((train, val) if val else (train,)):
            for line in map(line_of, stream()):
                split = number if val else int(counts[0] > 0 and for_validation(line, share))
                (a, b)[split].write(line)
                counts[split] += 1
                if split == 0:
                    last = line
        if not val and counts[0] > 1 and counts[1] == 0:    # a handful: the last one is moved
            b.write(last)
            a.truncate(a.tell() - len(last))
            counts = [counts[0] - 1, 1]
    return counts


def write_examples(folder, kind, train, val=None, tokenizer='bpe', vocab_size=8192, tag='',
                   source='', share=0.05, more_val={}, **more):
    """Writes supervised data into a folder. Returns its meta.

    train, val: functions that return a fresh iterator of checked rows; without val, `share` of the
        rows is picked for validation
    more_val: further sets for validation, {name: function}, which become val-NAME.jsonl
    more: further entries of meta.json, such as metric

    Text stays text; tokenizer.json is there for models that start from nothing. A class or tag is
    stored as its place in meta['labels']. Raises ValueError if there is no example for training or
    none for validation, or if the labels are of two types or all the same.
    """
    def rows():
        for stream in (train, val) if val else (train,):
            yield from stream()

    names = None
    if kind in ('labelled', 'tagged'):
        found = (label for row in rows() for label in classes_of(row, kind))
        names = supervised.label_names(found, source)
    place = {name: i for i, name in enumerate(names or [])}

    def line_of(row):
        if kind == 'labelled':
            row['label'] = place[row['label']] if names else float(row['label'])
        if kind == 'tagged':
            row['tags'] = [place[tag] for tag in row['tags']]
        return json.dumps(row) + '\n'

    metric = supervised.METRIC[kind]
    if kind == 'labelled' and not names:
        metric = 'pearson'
    labels = None if names is None else [str(name) for name in names]
    meta = dict(kind=kind, source=source, labels=labels, metric=metric) | more
    if more_val:
        meta['more_val'] = list(more_val)
    counts = write_rows(folder, train, val, share, line_of)
    if 0 in counts:
        raise ValueError(f'{source}: {sum(counts)} examples; '
                         'expected at least one to train on and one for validation')
    for name, stream in more_val.items():
        with open(os.path.join(folder, f'val-{name}.jsonl'), 'w', newline='\n') as f:
            f.writelines(map(line_of, stream()))
    tok = get_tokenizer(tokenizer, vocab_size,
                        lambda: (s for row in rows() for s in supervised.strings(row)))
    meta |= dict(train_examples=counts[0], val_examples=counts[1])
    return finish(folder, tok, tag, meta)
