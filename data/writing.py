"""Writing prepared folders: text as token ids (train.bin, val.bin), examples as lines (train.jsonl, val.jsonl).

A folder is made at a temporary name and renamed when it is whole; whoever comes second waits and finds it. Text passes
through in pieces of a megabyte, encoded on all cores.
"""
import collections, concurrent.futures, contextlib, hashlib, json, multiprocessing, os, shutil, signal, sys

import numpy as np
try: import fcntl
except ImportError: fcntl = None                         # Windows: no lock; prepare before starting several processes

import bpe
from data import reading, supervised
from data.download import Progress, checksum
from data.reading import SAMPLE, read_jsonl, size_of, suffix
from data.vocabulary import get_tokenizer

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1

@contextlib.contextmanager
def new_folder(out):
    """A temporary folder that becomes `out` when the block ends well, and vanishes when not. Yields '' when `out` is
    there. The lock lies inside the temporary folder and dies with its process: others wait, and a killed run blocks
    nobody."""
    out, new, lock = out.rstrip('/'), out.rstrip('/') + '.tmp', None
    try:
        while not os.path.exists(os.path.join(out, 'meta.json')):
            if os.path.lexists(out) and (not os.path.isdir(out) or os.listdir(out)):
                raise FileExistsError(f'{out} exists and is no prepared folder (it has no meta.json): '
                                      'move it away, or pass another --out')
            os.makedirs(new, exist_ok=True)
            with contextlib.suppress(FileNotFoundError): # renamed or removed in this moment: look again
                if lock: lock.close()
                lock = open(os.path.join(new, '.lock'), 'w')
                if fcntl:
                    try: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        print(f'waiting for the process that prepares {out}', file=sys.stderr, flush=True)
                        fcntl.flock(lock, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name)): break
        else:
            yield ''
            return
        try:
            for name in set(os.listdir(new)) - {'.lock'}: os.remove(os.path.join(new, name))      # left by a killed run
            yield new
            for name in os.listdir(new):
                with open(os.path.join(new, name), 'rb') as f: os.fsync(f.fileno())
            if os.path.isdir(out): os.rmdir(out)         # an empty one
            os.rename(new, out)
            os.remove(os.path.join(out, '.lock'))
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
    finally:
        if lock: lock.close()

def finish(folder, tok, tag, meta):
    "writes tokenizer.json and, with the checksums, meta.json: what makes a folder a prepared one"
    tok.save(os.path.join(folder, 'tokenizer.json'))
    meta |= dict(version=1, tokenizer='tokenizer.json', name=tag, vocab_size=tok.vocab_size, special=tok.special,
                 eot=tok.eot)
    meta['sha256'] = {n: checksum(os.path.join(folder, n)) for n in sorted(os.listdir(folder)) if n != '.lock'}
    with open(os.path.join(folder, 'meta.json'), 'w') as f: json.dump(meta, f, indent=1)
    return meta

def for_validation(text, share):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'little') < share * 2 ** 64

def jobs(train, val, share, counts):
    "groups pieces to lists of about a megabyte, [(piece, last, split)], and decides on which side a document goes"
    job, size, split = [], 0, None
    for fixed, stream in enumerate((train(), val()) if val else (train(),)):
        for text, last in stream:
            if split is None: split = fixed if val else int(for_validation(text, share))
            job.append((text, last, split))
            size += len(text) + 1
            if last: counts[split], split = counts[split] + 1, None
            if size >= reading.PIECE:
                yield job
                job, size = [], 0
    if job: yield job

def encode(tok, dtype, job):
    "-> [ids for train, for val], [bytes of text for train, for val]"
    parts, sizes = ([], []), [0, 0]
    for text, last, split in job:
        sizes[split] += size_of(text)
        if text: parts[split].append(tok.encode_numpy(text).astype(dtype))
        if last: parts[split].append(np.array([tok.eot], dtype))
    return [np.concatenate(p) if p else np.zeros(0, dtype) for p in parts], sizes

def in_process(job):
    return encode(*in_process.tools, job)

def start_process(*tools):
    signal.signal(signal.SIGINT, signal.SIG_IGN)         # Ctrl-C is the parent's to handle
    in_process.tools = tools

def encoded(tok, dtype, work, total):
    """jobs -> results in order, on all cores. Threads where encode_numpy lets go of the interpreter (tiktoken, numpy);
    processes for a tokenizer written in Python, when there is enough to do."""
    queue, fork = collections.deque(), (type(tok).encode_numpy is bpe.Tokenizer.encode_numpy and total > 4 * reading.PIECE
                                        and hasattr(os, 'fork'))
    if fork:
        pool = concurrent.futures.ProcessPoolExecutor(CORES, multiprocessing.get_context('fork'), start_process,
                                                      (tok, dtype))
    else: pool = concurrent.futures.ThreadPoolExecutor(CORES)
    try:
        for job in work:
            queue.append(pool.submit(in_process, job) if fork else pool.submit(encode, tok, dtype, job))
            if len(queue) > 3 * CORES: yield queue.popleft().result()      # so many megabytes wait at most
        while queue: yield queue.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

def write_text(folder, train, val=None, tokenizer='bpe', vocab_size=8192, tag='', share=0.05, total=0, source=''):
    """Encodes documents into folder -> meta. train, val: functions that return a fresh iterator of (piece, last);
    without val, `share` of the documents is picked. total: bytes of text, as far as known."""
    seen = 0
    def sample():
        nonlocal seen
        stride = max(1, total // SAMPLE) if tokenizer == 'bpe' else 1      # every n-th piece: for a corpus of any size
        for i, (text, _) in enumerate(piece for stream in ((train, val) if val else (train,)) for piece in stream()):
            seen += size_of(text)
            if i % stride == 0 and text: yield text
            progress(seen)
        if not seen: raise ValueError(f'{source}: no text in it (0 bytes); expected running text')
    progress = Progress(f'vocabulary {tag}', total)
    tok = get_tokenizer(tokenizer, vocab_size, sample)
    if seen: progress(seen, last=True)
    if tok.eot is None:
        raise ValueError(f'the tokenizer {tag} has no end-of-text id to put between documents: '
                         'take another, like --tokenizer=bpe')
    dtype = np.dtype('uint16' if tok.vocab_size <= 65536 else 'uint32')
    paths = [os.path.join(folder, n) for n in ('train.bin', 'val.bin')]
    tokens, sizes, counts, progress = [0, 0], [0, 0], [0, 0], Progress(f'encoding {tag}', seen or total)
    with open(paths[0], 'wb') as a, open(paths[1], 'wb') as b:
        for ids, done in encoded(tok, dtype, jobs(train, val, share, counts), seen or total):
            for split, f in enumerate((a, b)):
                f.write(ids[split])
                tokens[split] += len(ids[split])
                sizes[split] += done[split]
            progress(sum(sizes))
    progress(sum(sizes), last=True)
    if sum(sizes) == 0 or val and 0 in sizes:
        side = 'in it' if not sum(sizes) else 'to train on' if not sizes[0] else 'for validation'
        raise ValueError(f'{source}: no text {side} (0 bytes); expected running text')
    if not val and not share / 5 < sizes[1] / sum(sizes) < max(0.2, 4 * share):
        recut(paths, tok, dtype, tokens, sizes, counts)
    meta = dict(kind='text', source=source, dtype=dtype.name)
    for i, split in enumerate(('train', 'val')):
        meta |= {f'{split}_tokens': tokens[i], f'{split}_bytes': sizes[i], f'{split}_documents': counts[i]}
    return finish(folder, tok, tag, meta)

def recut(paths, tok, dtype, tokens, sizes, counts):
    """Too few documents to pick from: val.bin becomes the end of all the text, from the border between documents that
    is nearest to nine tenths, or from there when none lies between eight tenths and the end (of one document: nine
    tenths, as nanoGPT)."""
    with open(paths[0], 'ab') as a, open(paths[1], 'rb') as b: shutil.copyfileobj(b, a)
    def blocks(f, start, stop):
        f.seek(start * dtype.itemsize)
        while start < stop and len(part := np.fromfile(f, dtype, min(reading.PIECE, stop - start))):
            yield start, part
            start += len(part)
    n, size, ends = sum(tokens), 0, 0
    goal = max(1, (n - 1) * 9 // 10)
    with open(paths[0], 'rb') as a, open(paths[1], 'wb') as b:
        borders = [i + 1 + int(j) for i, part in blocks(a, n * 8 // 10 - 1, n - n // 50 - 1)
                   for j in np.flatnonzero(part == tok.eot)] if n > 50 else []
        at = min(borders, key=lambda i: abs(i - goal), default=goal)
        for _, part in blocks(a, at, n):
            size, ends = size + int(tok.byte_lengths[part].sum()), ends + int((part == tok.eot).sum())
            b.write(part)
    counts[:] = [sum(counts) - ends + (not borders), ends]                 # a document that is cut counts on both sides
    tokens[:], sizes[:] = [at, n - at], [max(0, sum(sizes) - size), size]
    os.truncate(paths[0], at * dtype.itemsize)

def examples(paths, kind):
    for path in paths:
        if suffix(path) != '.jsonl':
            raise ValueError(f'{path}: expected only .jsonl files beside the {kind} data in {paths[0]}')
        for number, row in read_jsonl(path): yield supervised.check(supervised.mended(row), kind, path, number)

def write_examples(folder, kind, train, val=None, tokenizer='bpe', vocab_size=8192, tag='', source='', share=0.05,
                   more_val={}, **more):
    """Supervised data -> meta. train, val: functions that return a fresh iterator of checked rows; without val, `share`
    of them is picked. more_val: further sets for validation, {name: function}, which become val-NAME.jsonl and
    meta['more_val']. A class label or tag is stored as its place in meta['labels']. The text stays text; tokenizer.json
    is there for models that start from nothing. more: further entries of meta, such as metric."""
    every = lambda: (row for stream in ((train, val) if val else (train,)) for row in stream())
    labels = dict(labelled=lambda row: [row['label']], tagged=lambda row: row['tags']).get(kind)
    names = supervised.label_names((x for row in every() for x in labels(row)), source) if labels else None
    meta = dict(kind=kind, source=source, labels=names and [str(n) for n in names], metric=supervised.METRIC[kind])
    if kind == 'labelled' and not names: meta['metric'] = 'pearson'
    meta |= more | ({'more_val': list(more_val)} if more_val else {})
    place, counts, last = {n: i for i, n in enumerate(names or [])}, [0, 0], ''
    def line_of(row):
        if kind == 'labelled': row['label'] = place[row['label']] if names else float(row['label'])
        if kind == 'tagged': row['tags'] = [place[t] for t in row['tags']]
        return json.dumps(row) + '\n'
    with open(os.path.join(folder, 'train.jsonl'), 'w') as a, open(os.path.join(folder, 'val.jsonl'), 'w') as b:
        for i, stream in enumerate((train, val) if val else (train,)):
            for line in map(line_of, stream()):
                split = i if val else int(counts[0] > 0 and for_validation(line, share))
                (a, b)[split].write(line)
                counts[split], last = counts[split] + 1, last if split else line
        if not val and counts[0] > 1 and not counts[1]:  # a handful of examples: the last one
            b.write(last)
            a.truncate(a.tell() - len(last))
            counts = [counts[0] - 1, 1]
    if 0 in counts:
        raise ValueError(f'{source}: {sum(counts)} examples; expected at least one to train on and one for validation')
    for name, stream in more_val.items():
        with open(os.path.join(folder, f'val-{name}.jsonl'), 'w') as f: f.writelines(map(line_of, stream()))
    tok = get_tokenizer(tokenizer, vocab_size, lambda: (s for row in every() for s in supervised.strings(row)))
    return finish(folder, tok, tag, meta | dict(train_examples=counts[0], val_examples=counts[1]))
