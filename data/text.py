"""Text to token ids: your own files for train.py, and the tools that every data/NAME.py is made of.

What: reads running text (a .txt, .md, .py or any other UTF-8 file, a folder of them, .jsonl with a "text" column, .gz
of these), trains or loads a tokenizer, and writes a folder with train.bin and val.bin (uint16 or uint32 ids, the
end-of-text id after each document), tokenizer.json and meta.json. Lines of {"text", "text_b"?, "label"}, {"text",
"choices", "label"}, {"tokens", "tags"}, {"input", "target"}, {"prompt", "response"}, {"messages"} or {"context",
"question", "answers"} are supervised data: checked, and kept as text in train.jsonl and val.jsonl (see
data/supervised.py). Shards of llm.c and modded-nanogpt (NAME_train_000001.bin) are read as they lie.

A document is a file, a line of .jsonl, or what lies between lines that read <|endoftext|>. About 5 % of the documents
are for validation, picked by a hash of their text, so that copies stay on one side; where they are too few or too
unequal for that, the last tenth of the text is. A folder with train.* and val.* (valid.*, validation.*, dev.*) is taken
with that split.

Text passes through in pieces of a megabyte: memory does not grow with the corpus. A folder is made at a temporary name
and renamed when it is whole; whoever comes second waits and finds it.

--data=A+B mixes what A and B name: one kind of data, with one tokenizer (see data/rows.py).

    python data/text.py notes.txt                            # or at once: python train.py --data=notes.txt
    python data/text.py books/ --tokenizer=gpt2 --out=data/books
"""
import argparse, codecs, collections, concurrent.futures, contextlib, difflib, functools, glob, gzip, hashlib, importlib
import inspect, json, multiprocessing, os, re, shlex, shutil, signal, sys, zipfile, zlib

import numpy as np
try: import fcntl
except ImportError: fcntl = None                         # Windows: no lock; prepare before starting several processes

HERE = os.path.dirname(os.path.abspath(__file__))         # folders are made in here
if __name__ == '__main__': sys.path.insert(0, os.path.dirname(HERE))
import bpe
from data import supervised
from data.download import Progress, checksum, download

PIECE = 1 << 20                                          # characters encoded at once
LINE = 64 << 20                                          # bytes of a line of .jsonl, which is held whole
SAMPLE = 64 << 20                                        # a vocabulary is trained on this much text, spread evenly
EOT = '<|endoftext|>'
BUILT_IN = ('bpe', 'char', 'byte', 'gpt2')
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1

# ---------------------------------------------------------------------------------------------------- reading

def open_binary(path):
    return gzip.open(path, 'rb') if path.endswith('.gz') else open(path, 'rb')

def suffix(path):
    return os.path.splitext(path.removesuffix('.gz'))[1].lower()

def size_of(text):
    return len(text) if text.isascii() else len(text.encode())

def text_size(path):
    "bytes of text in a file, to show progress against; of a .gz what its last four bytes say"
    with open(path, 'rb') as f:
        end = f.seek(0, 2)
        if not path.endswith('.gz') or end < 4: return end
        f.seek(-4, 2)
        return int.from_bytes(f.read(4), 'little')

def is_text(path):
    "whether a file met on a walk is UTF-8: looks at all of it when small, at its beginning when not"
    try:
        with open_binary(path) as f: head = f.read(4 * PIECE)
        codecs.getincrementaldecoder('utf-8')().decode(head, final=len(head) < 4 * PIECE)
    except (UnicodeDecodeError, OSError, EOFError, zlib.error):
        return False
    return b'\0' not in head

def files(source):
    "the files of a path (or of several with commas between), folders walked in sorted order"
    found, skipped = [], []
    for path in [source] if os.path.exists(source) else source.split(','):
        if not os.path.exists(path): raise FileNotFoundError(f'{path}: no such file or folder')
        if not os.path.isdir(path): found.append(path)
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(f for f in folders if not f.startswith('.') and f != '__pycache__')
            for p in (os.path.join(folder, n) for n in sorted(names) if not n.startswith('.')):
                if os.path.isfile(p) and os.path.getsize(p): (found if is_text(p) else skipped).append(p)
    if not found:
        what = (f'{len(skipped)} files, none of them UTF-8 text: {skipped[0]}' + ', ...' * (len(skipped) > 1)
                if skipped else 'no files but empty and hidden ones')
        raise ValueError(f'{source}: no text in it ({what}); expected .txt or other UTF-8 files, .jsonl, or .gz of '
                         'these: convert them (iconv, pdftotext), or name another folder or FILE')
    if skipped:
        print(f'{source}: left out {len(skipped)} files that are not UTF-8 text, like {skipped[0]}', file=sys.stderr)
    return found

@contextlib.contextmanager
def reading(path):
    "turns what can go wrong while a file is read into one line with its name"
    try: yield
    except UnicodeDecodeError as e:
        raise ValueError(f'{path}: not UTF-8 text (it has a byte 0x{e.object[e.start]:02x}): '
                         f'convert it, like iconv -f latin1 -t utf-8 {path} > new.txt') from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise ValueError(f'{path}: broken or truncated .gz ({e}): get the file again') from None
    except (zipfile.BadZipFile, KeyError) as e:          # KeyError: no such member
        raise ValueError(f'{path}: a broken .zip, or of something else ({e}): get the file again') from None

def cut(text):
    "where a long text is cut: between lines that end and begin in ink, as every pre-tokenizer cuts there by itself"
    at = text.rfind('\n', 1, PIECE)
    while at > PIECE // 2 and (text[at - 1].isspace() or text[at + 1].isspace()): at = text.rfind('\n', 1, at)
    return at + 1 if at > PIECE // 2 else text.rfind('\n', 1, PIECE) + 1 or text.rfind(' ', 1, PIECE) + 1 or PIECE

def pieces(text):
    "one document -> (piece, whether it is the document's last)"
    at = 0
    while len(text) - at > PIECE:
        end = at + cut(text[at:at + PIECE + 1])
        yield text[at:end], False
        at = end
    yield text[at:], True

def read_file(path):
    "a text file -> (piece, last), a block at a time; lines that read <|endoftext|> separate documents"
    border = re.compile(rf'(?m)^{re.escape(EOT)}[ \t]*\r?(?:\n|\Z)')
    decoder, text, inside, more = codecs.getincrementaldecoder('utf-8-sig')(), '', False, True
    with reading(path), open_binary(path) as f:
        while more:
            block = f.read(PIECE)
            more = bool(block)
            text += decoder.decode(block, final=not more)
            while len(text) > PIECE + 1 or text and not more:
                end = cut(text) if len(text) > PIECE + 1 else len(text)
                *done, rest = border.split(text[:end])
                for document in done:                    # a border closes what came before it, also in earlier blocks
                    if document or inside: yield document, True
                    inside = False
                if rest: yield rest, False
                inside, text = inside or bool(rest), text[end:]
    if inside: yield '', True

def read_jsonl(path):
    "a .jsonl file -> (line number, dict)"
    with reading(path), open_binary(path) as f:
        for number, line in enumerate(iter(lambda: f.readline(LINE), b''), 1):
            if len(line) == LINE:
                raise ValueError(f'{path} line {number}: longer than {LINE >> 20} MB; expected an example on each line')
            if not line.strip(): continue
            try: row = json.loads(line)
            except UnicodeDecodeError: raise
            except (ValueError, RecursionError) as e: row = getattr(e, 'msg', str(e))
            if not isinstance(row, dict):
                raise ValueError(f'{path} line {number}: not a JSON object ({str(row)[:40]}); '
                                 f'expected one like {{"text": "..."}} on each line')
            yield number, row

def documents(paths):
    "all text of the files -> (piece, last)"
    for path in paths:
        if suffix(path) != '.jsonl':
            yield from read_file(path)
            continue
        for number, row in read_jsonl(path):
            yield from pieces(supervised.mended(supervised.need(row, 'text', path, number)))

# ---------------------------------------------------------------------------------------------------- writing

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

@functools.lru_cache(4)
def load_once(name, stamps):
    return bpe.load(name)

def load_tokenizer(name):
    "bpe.load, once for each state of its files: some take seconds"
    paths = [name] + sorted(glob.glob(os.path.join(glob.escape(name), '*')))
    try: return load_once(name, tuple(os.stat(p).st_mtime_ns for p in paths if os.path.exists(p)))
    except FileNotFoundError as e:
        raise ValueError(f'--tokenizer={name}: {e}; '
                         'expected bpe, char, byte, gpt2, or the path of a vocabulary') from None

def get_tokenizer(name, vocab_size, texts):
    "the tokenizer that a --tokenizer flag names; texts() -> the text it is trained on"
    if name == 'bpe': return bpe.train(texts(), vocab_size)
    if name == 'char': return bpe.char(''.join(set(t)) for t in texts())
    return bpe.byte() if name == 'byte' else load_tokenizer(name)

def tokenizer_tag(name, vocab_size):
    "short name for folders: bpe8192, char, byte, gpt2, or the name and a hash of a vocabulary file"
    if name == 'bpe': return f'bpe{vocab_size}'
    if name in BUILT_IN: return name
    tokenizer = load_tokenizer(name)
    return f'{tokenizer.name}-{hashlib.sha256(tokenizer.dumps().encode()).hexdigest()[:8]}'

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
            if size >= PIECE:
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
    queue, fork = collections.deque(), (type(tok).encode_numpy is bpe.Tokenizer.encode_numpy and total > 4 * PIECE
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
        while start < stop and len(part := np.fromfile(f, dtype, min(PIECE, stop - start))):
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

# ---------------------------------------------------------------------------------------------------- supervised data

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

# --------------------------------------------------------------------------------------------- opening what is prepared

is_name = lambda x: isinstance(x, str) and x != '' and os.path.basename(x) == x and x not in ('.', '..')
is_count = lambda x: type(x) is int and 0 <= x < 1 << 53
is_list = lambda fits: lambda x: isinstance(x, list) and all(map(fits, x))
is_str = lambda x: isinstance(x, str)
# what meta.json may say: it may come from anywhere, and names in it become paths
META = dict({n: is_count for n in ('vocab_size', *(f'{s}_{n}' for s in ('train', 'val')
                                                  for n in ('tokens', 'bytes', 'documents', 'examples')))},
            dtype=lambda x: x in ('uint16', 'uint32'), tokenizer=is_name, name=is_name, source=is_str,
            metric=lambda x: x is None or is_str(x), eot=lambda x: x is None or is_count(x),
            labels=lambda x: x is None or is_list(is_str)(x), more_val=is_list(is_name),
            special=lambda x: isinstance(x, dict) and all(map(is_count, x.values())),
            sha256=lambda x: isinstance(x, dict) and all(map(is_name, x)) and all(map(is_str, x.values())))

def first_words(error):
    return ' '.join(str(error).split())[:100]

def shard_files(folder, split):
    return sorted(p for p in glob.glob(os.path.join(glob.escape(folder), '*.bin'))
                  if re.search(rf'_{split}(_\d+)?\.bin$', p))

def shard_tokens(path):
    "the number of tokens of a shard: its header, int32[256] of (20240520, 1, count), against its size"
    size = os.path.getsize(path)
    header = [int(x) for x in np.fromfile(path, '<i4', min(256, size // 4))[:3]]
    if size < 1024 or header[:2] != [20240520, 1]:
        raise ValueError(f'{path}: not a shard of GPT-2 tokens (it begins with {header}); '
                         'expected the header [20240520, 1, count]')
    if size != 1024 + 2 * header[2]:
        raise ValueError(f'{path}: {size:,} bytes, its header says {1024 + 2 * header[2]:,} ({header[2]:,} tokens): '
                         'truncated or damaged, delete it and fetch it again')
    return header[2]

def is_prepared(folder):
    return (os.path.isfile(os.path.join(folder, 'meta.json'))
            or bool(shard_files(folder, 'train') or shard_files(folder, 'val')))

def tokens(folder, split):
    "ids of 'train' or 'val' as a list of memory maps, one per shard. Takes a prepared folder or its meta"
    meta = folder if isinstance(folder, dict) else open_meta(folder, quick=True)
    path = os.path.join(meta['folder'], f'{split}.bin')
    if os.path.exists(path):
        return [np.memmap(path, meta['dtype'], 'r') if os.path.getsize(path) else np.zeros(0, meta['dtype'])]
    return [np.memmap(p, '<u2', 'r', offset=1024, shape=(shard_tokens(p),)) for p in shard_files(meta['folder'], split)]

def open_meta(folder, check=False, quick=False):
    """meta.json of a prepared folder as a dict (of a folder of shards, the like of it), with its path as
    meta['folder'], after a look whether the files are what it says. check: compare all checksums too; quick: leave out
    the look at the ids. Of several folders with + between, a mixture: what they have in common, and meta['parts']."""
    if '+' in folder and not os.path.exists(folder):
        return mixed([open_meta(part, check, quick) for part in folder.split('+')], folder)
    folder = folder.rstrip('/') or '/'
    path, again = os.path.join(folder, 'meta.json'), f'delete {folder} and prepare it again'
    if not os.path.exists(path):
        if not is_prepared(folder):
            raise FileNotFoundError(f'{folder}: no prepared folder (it has no meta.json); make one: '
                                    'python data/text.py YOUR_TEXT --out=DIR')
        meta = shard_meta(folder)
    else:
        try:
            with open(path, encoding='utf-8') as f: meta = json.load(f)
            wanted = {'kind', 'version', 'tokenizer', 'name', 'vocab_size', 'sha256'}
            if meta.get('kind') == 'text': wanted |= {'dtype', 'train_tokens', 'val_tokens'}
            missing = sorted(wanted - meta.keys())
            end = 'bin' if meta.get('kind') == 'text' else 'jsonl'
            if not missing and meta['kind'] in list(supervised.COLUMNS):
                missing = [n for n in (f'train.{end}', f'val.{end}') if n not in meta['sha256']]
        except (ValueError, AttributeError, RecursionError, TypeError) as e:
            raise ValueError(f'{path}: not readable as JSON ({first_words(e)}): {again}') from None
        if missing or meta['version'] != 1 or meta['kind'] not in list(supervised.COLUMNS):
            found = f'no {", ".join(missing)}' if missing else f'version {meta["version"]!r}, kind {meta["kind"]!r}'
            raise ValueError(f'{path}: {found}; expected version 1 and a kind of {", ".join(supervised.COLUMNS)}: '
                             f'{again}')
        if wrong := next((n for n, fits in META.items() if n in meta and not fits(meta[n])), ''):
            raise ValueError(f'{path}: its {wrong!r} is {json.dumps(meta[wrong])[:60]}, which no prepared folder has: '
                             f'{again}')
        meta['folder'] = folder
        for name, digest in meta['sha256'].items():
            path = os.path.join(folder, name)
            if not os.path.exists(path): raise FileNotFoundError(f'{path}: missing, though meta.json lists it: {again}')
            if name.endswith('.bin'):
                n, size = meta.get(name[:-4] + '_tokens', 0), os.path.getsize(path)
                want = n * np.dtype(meta.get('dtype', 'uint16')).itemsize
                if size != want:
                    raise ValueError(f'{path}: {size:,} bytes, meta.json says {want:,} '
                                     f'({n:,} tokens of {meta["dtype"]}), '
                                     f'so it is {"truncated" if size < want else "another file"}: {again}')
            small = name == 'tokenizer.json' or name.endswith('.jsonl') and os.path.getsize(path) <= SAMPLE
            if (check or small and not quick or name == 'tokenizer.json') and checksum(path) != digest:
                raise ValueError(f'{path}: not the file that meta.json was written for (its checksum differs): {again}')
    if meta['kind'] == 'text' and not quick:
        for ids in tokens(meta, 'train') + tokens(meta, 'val'):
            for i in range(0, len(ids), max(PIECE, len(ids) // 64)):       # all of a small file, 64 places of a large
                part = np.fromfile(ids.filename, ids.dtype, PIECE, offset=ids.offset + i * ids.itemsize)
                if (top := int(part.max())) >= meta['vocab_size']:
                    raise ValueError(f'{ids.filename}: it has the id {top}, the tokenizer {meta["name"]} has '
                                     f'{meta["vocab_size"]} ids, so it was written with another tokenizer: {again}')
    return meta

def mixed(parts, folder):
    "metas -> one meta; the parts get a title each, which is part of the names of their metrics"
    first, titles = parts[0], []
    for meta in parts:
        asked = (os.path.join(first['folder'], first['tokenizer']) if first['tokenizer'].endswith('.json')
                 else first['tokenizer'])
        what = [(meta['kind'], first['kind'], f'{meta["kind"]} data, expected {first["kind"]}')]
        if meta['kind'] in ('labelled', 'tagged'):
            what += [(meta['labels'], first['labels'],
                      f'other labels ({", ".join(meta["labels"] or ["numbers"])[:60]})')]
        what += [(same_tokenizer(meta, asked), True,
                  f'the tokenizer {meta["name"]}, expected {first["name"]} ({first["vocab_size"]} ids)')]
        for has, wanted, words in what:
            if has == wanted: continue
            raise ValueError('a mixture has one kind of data, one set of labels and one tokenizer: '
                             f'{meta["folder"]} has {words} as in {first["folder"]}'
                             + ': name the data themselves and a --tokenizer for all of them' * ('tokenizer' in words))
        title = os.path.basename(meta['folder']).removesuffix('-' + meta['name'])
        title = re.sub(r'-[0-9a-f]{10}$', '', title)     # of data/text/NAME-HASH-TOKENIZER
        titles.append(title if title not in titles else f'{title}-{len(titles)}')
    sums = {n: sum(meta.get(n, 0) for meta in parts) for n in first if n.startswith(('train_', 'val_'))}
    sums |= {'no_answer': True} if any(meta.get('no_answer') for meta in parts) else {}
    return first | sums | dict(folder=folder, source=folder, metric='',
                               tokenizer=os.path.abspath(asked) if asked.endswith('.json') else asked,
                               parts=[meta | {'title': title} for meta, title in zip(parts, titles)],
                               sha256={f'{i}/{n}': d for i, meta in enumerate(parts)
                                       for n, d in meta['sha256'].items()})

def shard_meta(folder):
    meta = dict(kind='text', version=1, folder=folder, tokenizer='gpt2', name='gpt2', vocab_size=50257, dtype='uint16',
                special={EOT: 50256}, eot=50256, source='shards', sha256={})
    for split in ('train', 'val'):
        if not shard_files(folder, split):
            raise FileNotFoundError(f'{folder}: no {split} shard in it (NAME_{split}_000000.bin), and both kinds are '
                                    f'needed: get one, like python data/fineweb.py --shards=1 --out={folder}')
        meta[split + '_tokens'] = 0
        for path in shard_files(folder, split):
            meta[split + '_tokens'] += shard_tokens(path)
            with open(path, 'rb') as f:                  # its header and ends: checksums of many gigabytes take minutes
                head = f.read(1 << 16)
                f.seek(-min(len(head), 1 << 16), 2)
                meta['sha256'][os.path.basename(path)] = hashlib.sha256(head + f.read()).hexdigest()
    return meta

# ---------------------------------------------------------------------------------------------- from --data to a folder

def make(name, write, tokenizer, vocab_size, default='', out=''):
    """The folder data/NAME-TAG (data/NAME when TAG is `default`; or `out`): found, or made by write(folder,
    tokenizer=..., vocab_size=..., tag=...)."""
    vocab_size, base = vocab_size or 8192, os.path.join(HERE, name)
    tag = tokenizer_tag(tokenizer, vocab_size)
    folder = out.rstrip('/') or (base if tag == default else f'{base}-{tag}')
    if not out and tokenizer not in BUILT_IN and not is_prepared(folder):   # a resumed run brings a tokenizer made here
        for found in [base] + sorted(glob.glob(glob.escape(base) + '-*')):
            with contextlib.suppress(ValueError, OSError):
                meta = open_meta(found, quick=True)      # data/squad-2 is not data/squad with a tokenizer named 2
                if found in (base, f'{base}-{meta["name"]}') and same_tokenizer(meta, tokenizer): return found
    with new_folder(folder) as new:
        if new:
            meta = write(new, tokenizer=tokenizer, vocab_size=vocab_size, tag=tag)
            what = 'tokens' if meta['kind'] == 'text' else 'examples'
            print(f'made {os.path.relpath(folder)}: {meta["train_" + what]:,} {what} to train on, '
                  f'{meta["val_" + what]:,} for validation, tokenizer {tag} ({meta["vocab_size"]:,} ids)',
                  file=sys.stderr, flush=True)
    return checked(folder) if new else checked(folder, tokenizer, vocab_size)

def same_source(folder, made_of):
    "the folder, or an error if it was made of other files than those that are given now"
    meta = open_meta(folder, quick=True)
    if made_of in ('', meta.get('made_of')): return folder
    raise ValueError(f'{folder} was made of something else ({meta["source"]}): '
                     'delete it, or pass --out=DIR for another folder')

def same_tokenizer(meta, tokenizer, vocab_size=0):
    "whether a prepared folder's tokenizer is the one asked for ('' asks for none, 0 for any size)"
    name = meta['name']
    if tokenizer in ('', 'bpe'):                         # a size means nothing to the others
        return name == f'bpe{vocab_size}' or not (vocab_size if name.startswith('bpe') else tokenizer)
    if tokenizer in BUILT_IN: return name == tokenizer
    asked = load_tokenizer(tokenizer)
    if meta['tokenizer'] == 'gpt2': return asked.vocab_size == meta['vocab_size']   # shards bring no vocabulary file
    return load_tokenizer(os.path.join(meta['folder'], meta['tokenizer'])).dumps() == asked.dumps()

def checked(folder, tokenizer='', vocab_size=0):
    meta = open_meta(folder)
    if not same_tokenizer(meta, tokenizer, vocab_size):
        asked = f'--vocab_size={vocab_size}' if same_tokenizer(meta, tokenizer) else f'--tokenizer={tokenizer}'
        raise ValueError(f'{folder} is prepared with the tokenizer {meta["name"]} ({meta["vocab_size"]} ids), asked '
                         f'for is {asked}: leave that out, or pass the text itself as --data to prepare it anew')
    return folder

def split_files(source):
    "-> files to train on, files for validation or None. A folder with train.* and val.* brings its own split"
    found = files(source)
    named = lambda *stems: [p for p in found if os.path.basename(p).split('.')[0].lower() in stems]
    train, val = named('train'), named('val', 'valid', 'validation', 'dev')
    if not os.path.isdir(source) or not train or not val: return found, None
    if rest := [p for p in found if p not in train + val]:
        print(f'{source}: takes {len(train)} train and {len(val)} validation files, '
              f'leaves out {len(rest)} others like {rest[0]}', file=sys.stderr)
    return train, val

def fingerprint(paths):
    "hash of the files' contents; of files over 64 MB their size, time and ends only, so that a run starts at once"
    digest = hashlib.sha256()
    for path in paths:
        stat = os.stat(path)
        digest.update(f'{os.path.basename(path)} {stat.st_size} '.encode())
        with open(path, 'rb') as f:
            if stat.st_size > SAMPLE:
                digest.update(b'%d ' % stat.st_mtime_ns + f.read(PIECE))
                f.seek(-PIECE, 2)
            while block := f.read(PIECE): digest.update(block)
    return digest.hexdigest()[:10]

def prepare(source, tokenizer='bpe', vocab_size=8192, out=''):
    "your own text -> out, or data/text/NAME-HASH-TOKENIZER, which is found again as long as the text is the same"
    train, val = split_files(source)
    kind = 'text'
    if all(suffix(p) == '.jsonl' for p in train):
        path, (number, row) = next(((p, line) for p in train for line in read_jsonl(p)), (train[0], (1, {'text': ''})))
        kind = supervised.kind_of(row)
        known = {column for sets in supervised.COLUMNS.values() for one in sets for column in one}
        for column in set(row) - known if kind == 'text' else ():          # a misspelt label would mean another kind
            if like := difflib.get_close_matches(column, known - {'text'}, 1, 0.7):
                print(f'{path}: the column "{column}" is not used; did you mean "{like[0]}"? '
                      'As it is, "text" alone is learned', file=sys.stderr)
        if not kind:
            column = json.dumps(next((c for c in row if isinstance(row[c], str) and len(c) < 50), 'NAME'))
            how = f'rename one, like jq -c {shlex.quote(f"{{text: .[{column}]}}")} {path} > new.jsonl'
            if row.keys() & {'instruction', 'conversations'}:
                how = f'python data/instruct.py --source={path} --out=DIR, then --data=DIR'
            raise ValueError(f'{path} line {number}: the columns are {supervised.columns(row)}; expected '
                             + ', or '.join(' and '.join(f'"{c}"' for c in s)
                                            for sets in supervised.COLUMNS.values() for s in sets) + f': {how}')
    def write(folder, **tokenizing):
        if kind != 'text':
            return write_examples(folder, kind, lambda: examples(train, kind), val and (lambda: examples(val, kind)),
                                  source=source, **tokenizing)
        total = sum(map(text_size, train + (val or [])))
        # 50 MB of validation text is enough for anyone
        return write_text(folder, lambda: documents(train), val and (lambda: documents(val)),
                          share=min(0.05, 5e7 / max(total, 1)), total=total, source=source, **tokenizing)
    stem = re.sub(r'[^\w-]+', '_', os.path.basename(os.path.abspath(source.split(',')[0])).split('.')[0]) or 'text'
    return make(f'text/{stem}-{fingerprint(train + (val or []))}', write, tokenizer or 'bpe', vocab_size, out=out)

def names():
    "the data sets: the scripts beside this one that have a prepare()"
    here = os.path.dirname(os.path.abspath(__file__))
    found = [p for p in glob.glob(os.path.join(glob.escape(here), '[a-z]*.py')) if os.path.basename(p) != 'text.py']
    return sorted(os.path.basename(p)[:-3] for p in found if '\ndef prepare(' in open(p, encoding='utf-8').read())

def resolve(data, tokenizer='', vocab_size=0):
    """what --data means -> a prepared folder, made now if need be. tokenizer '' and vocab_size 0 take the data set's
    own. Of several with + between -> as many folders with + between; where each would train a vocabulary of its own,
    the first one's serves all."""
    if '+' in data and not os.path.exists(data):
        folders, shared, there = {}, '', lambda part: os.path.isdir(part) and is_prepared(part)
        for part in sorted(data.split('+'), key=lambda part: not there(part)):
            if not part:
                raise ValueError(f'--data={data}: '
                                 'expected names of data sets with a + between, like multi30k+summarize')
            folders[part] = os.path.relpath(resolve(part, shared) if shared and not there(part)
                                            else resolve(part, tokenizer, vocab_size))
            if tokenizer in ('', 'bpe', 'char') and not shared:
                meta = open_meta(folders[part], quick=True)
                shared = (os.path.join(folders[part], meta['tokenizer']) if meta['tokenizer'].endswith('.json')
                          else meta['tokenizer'])
            elif not shared: shared = tokenizer
        return '+'.join(folders[part] for part in data.split('+'))
    name, _, task = data.partition('-')
    if name in names():
        module = importlib.import_module('data.' + name)
        known = getattr(module, 'tasks', ())
        if task and task not in known:
            raise ValueError(f'--data={data}: {name} has {"the tasks " + ", ".join(known) if known else "no tasks"}; '
                             'expected --data='
                             + ' or --data='.join([name] + [f'{name}-{t}' for t in known]))
        given = {k: v for k, v in dict(tokenizer=tokenizer, vocab_size=vocab_size, task=task).items() if v}
        with naming(name, given): return module.prepare(**given)
    if os.path.isdir(data) and is_prepared(data): return checked(data, tokenizer, vocab_size)
    if os.path.exists(data) or ',' in data: return prepare(data, tokenizer or 'bpe', vocab_size)
    if os.sep in data: raise FileNotFoundError(f'--data={data}: no such file or folder')
    near = difflib.get_close_matches(data, names(), 1, 0.5) if '.' not in data else ()
    raise FileNotFoundError(f'--data={data}: no data set, file or folder of that name; '
                            f'the data sets are {", ".join(names())}'
                            + (f'; did you mean --data={near[0]}?' if near else ''))

# ------------------------------------------------------------------------------------------- for the data sets' scripts

def fetch(name, url, folder, source='', sha256='', max_bytes=0):
    "a file of a data set: from the folder `source` if given (as is, or .gz), else downloaded to data/downloads/FOLDER"
    if not source: return download(url, os.path.join(HERE, 'downloads', folder, name), sha256, max_bytes)
    for path in (source, os.path.join(source, name), os.path.join(source, name + '.gz')):
        if os.path.isfile(path): return path
    raise FileNotFoundError(f'--source={source}: no {name} or {name}.gz in it; get it from {url}, then '
                            'python data/NAME.py --source=FOLDER')

@contextlib.contextmanager
def naming(name, flags):
    "errors that say what to type name the script, and the flags that it was given"
    command = f'data/{name}.py' + ''.join(f' --{k}={shlex.quote(str(v))}' for k, v in flags.items())
    try: yield
    except (OSError, ValueError) as e:
        e.args = tuple(a.replace('data/NAME.py', command) if isinstance(a, str) else a for a in e.args)
        raise

def script(prepare, doc):
    "the command line of a data set: a flag for each parameter of its prepare()"
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    for name, p in inspect.signature(prepare).parameters.items():
        if p.default is p.empty: parser.add_argument(name)
        else: parser.add_argument('--' + name, type=type(p.default), default=p.default, help=f'default: {p.default!r}')
    given, name = vars(parser.parse_args()), os.path.basename(sys.argv[0])
    try:
        flags = {k: v for k, v in given.items() if k != 'source' and v != parser.get_default(k)}
        with naming(name.removesuffix('.py'), flags): print(prepare(**given))
    except KeyboardInterrupt: sys.exit('interrupted: nothing half made is left')
    except (ValueError, OSError) as e: sys.exit(f'{name}: {e}')

if __name__ == '__main__': script(prepare, __doc__)
