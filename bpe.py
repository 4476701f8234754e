r"""
Tokenizers: trains byte-level BPE on all cores in about a second, encodes through tiktoken, and reads and gives the ids
of the vocabularies that the four model families were published with.

    python bpe.py train --input book.txt --vocab_size 8192 --out tok.json
    python bpe.py show --tokenizer tok.json --text "The tokenizer cuts text into pieces."

The ladder from characters to subwords, each rung one line of Python:

    list(text)                                characters        few ids, long sequences, meets unknown characters
    list(text.encode())                       bytes             256 ids, nothing is ever unknown, longer still
    text.split()                              white space       short sequences; every form of a word is another id
    re.findall(r'\w+|[^\w\s]', text)          rules             the same, with punctuation on its own
    bpe.train(texts, 8192).encode(text)       subwords          frequent words whole, rare ones in parts, none unknown

Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): a regular expression cuts the text into chunks (words with
their leading space, numbers, punctuation, white space). Every chunk starts as bytes; the most frequent pair of
neighbours becomes one new symbol, again and again. `train` gives exactly the merges of "count all pairs, merge the
best, repeat", where the smaller pair of ids wins a tie and aaa merges from the left, and needs no recount: see
`merges`. WordPiece (BERT) and Unigram (T5; Kudo 2018) are trained and read too.

Ids: the 256 bytes in GPT-2's order (printable ones first), the merges in order, then the special tokens.
`encode` treats text that spells a special token as plain text; encode(text, special=True) gives its id. Nothing is
added around a text (no [CLS], no </s>): that is the models' business. `load` opens our own files, `gpt2`,
`cl100k_base` and the other names of tiktoken, *.tiktoken, encoder.json + vocab.bpe, vocab.json + merges.txt,
tokenizer.json, vocab.txt, spiece.model / tokenizer.model, and folders that hold one of these.

Departures: characters that Unicode gained in recent years are classified by Python's tables, where `tokenizers` and
tiktoken ask theirs. Unigram finds the best path word by word in float64 (sentencepiece: whole text, float32).
"""
import argparse
import gzip
import importlib
import json
import os
import sys
import time
import zlib
from array import array
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain, islice

import numpy as np
import regex
import tiktoken

from lib.vocab.base import Tokenizer
from lib.vocab.common import BYTES, PATTERNS, check_id, invisible, reading, utf8, visible

SPECIALS = ['<|endoftext|>', '<|pad|>', '<|cls|>', '<|sep|>', '<|mask|>'] + [f'<|sentinel_{i}|>' for i in range(100)]

# Where a text may be cut without changing its chunks: in none of these patterns does a chunk hold a space after a
# character that is not white space, nor any white space after a letter or digit; and what follows such a place cannot
# change what is before it, since only chunks of pure white space look ahead.
CUT = regex.compile(r'(?<=\S) |(?<=[\p{L}\p{N}])\s')
BLOCK = 1 << 18  # characters handed to a process or thread at once


# ---- training: how often does each chunk occur? ------------------------------------------------------------------

def blocks(texts, cut, size=BLOCK):
    """Lists of strings with about `size` characters together; a long text is cut where `cut` matches (None: never)."""
    block, held = [], 0
    for text in texts:
        at = 0
        while at < len(text):
            found = cut.search(text, at + size) if cut else None
            end = found.start() if found else len(text)
            block.append(text[at:end])
            held, at = held + end - at, end
            if held >= size:
                yield block
                block, held = [], 0
    if block:
        yield block


def count_worker(pipe, pattern):
    count, chunks = Counter(), regex.compile(pattern).findall
    try:
        for block in iter(pipe.recv, None):
            for text in block:
                count.update(chunks(text))
        pipe.send(dict(count))
    except (EOFError, OSError, KeyboardInterrupt):
        pass  # the parent is gone or was interrupted: leave without a word


def count_chunks(texts, pattern='gpt2', cores=0, progress=None):
    """{chunk: how often it occurs in texts (an iterable of strings)}; texts are streamed to one process per core."""
    cores = cores or (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)
    try:
        split = regex.compile(PATTERNS.get(pattern, pattern))
    except regex.error as e:
        raise ValueError(f'pattern {pattern!r} is neither one of {", ".join(PATTERNS)} nor a regular expression: '
                         f'{e}') from None
    if split.groups:
        raise ValueError(f'pattern {pattern!r} has a capturing group: write (?:...) instead of (...)')
    stream = blocks([texts] if isinstance(texts, str) else texts, CUT if pattern in PATTERNS else None)
    head, count, seen = list(islice(stream, 4)), Counter(), 0
    if len(head) < 4 or cores == 1 or not hasattr(os, 'fork'):  # a little text: processes cost more than they save
        for text in chain.from_iterable(chain(head, stream)):
            count.update(split.findall(text))
        return count
    import multiprocessing
    context, pipes = multiprocessing.get_context('fork'), []
    for _ in range(cores):
        ours, theirs = context.Pipe()
        context.Process(target=count_worker, args=(theirs, split.pattern), daemon=True).start()
        theirs.close()  # so that a worker's death is an error here, not a wait without end
        pipes.append(ours)
    for i, block in enumerate(chain(head, stream)):
        pipes[i % cores].send(block)  # waits while that worker is busy, so no more than a few blocks are ever held
        seen += sum(map(len, block))
        if progress:
            progress(f'counting chunks: {seen / 1e6:.1f} M characters')
    for pipe in pipes:
        pipe.send(None)
    for pipe in pipes:
        count.update(pipe.recv())
    return count


# ---- training: merges --------------------------------------------------------------------------------------------

def merges(chunks, n, progress=None):
    """
    The n merges [(left id, right id), ...] of byte-level BPE for {chunk (bytes): count}; fewer when no pair is left.

    All distinct chunks lie in one flat array of symbols, chained by nxt and prv. Every position knows which pair begins
    there, so a merge touches only its own occurrences: counts of the pairs it destroys go down, pairs with the new
    symbol are born. A pair can only be born in the step that makes the younger of its two symbols; from then on its
    count only falls and no occurrence is added. So its occurrences are one slice, written once, and a heap whose
    entries are checked when they come up is enough. Pairs under `floor` wait outside the heap until it runs dry.

    Several merges are done at once. Let p1 > p2 > ... be the best pairs in order (count, then the smaller ids). While
    none of them ends with a symbol that another begins with, they share no occurrence, and no pair that p_i creates
    can come before p_k: its count is at most that of (x, left of p_i) or (right of p_i, y), which sort after p_k, and
    at equal counts its new id is the larger one. So the batch is what one merge after the other would give.
    """
    words, freq = list(chunks), np.fromiter(chunks.values(), np.int64, len(chunks))
    lens = np.fromiter(map(len, words), np.int64, len(words))
    rank = np.zeros(256, np.int32)
    rank[BYTES] = np.arange(256)
    sym = rank[np.frombuffer(b'\0'.join([b'', *words, b'']), np.uint8)]  # chunks, a separator before and after each
    weight = np.zeros(len(sym), np.int64)  # of the chunk that a position belongs to
    weight[1:] = np.repeat(freq, lens + 1)
    ends = np.cumsum(lens + 1)
    sym[0] = sym[ends] = -1
    weight[ends] = 0
    nxt, prv = np.arange(1, len(sym) + 1, dtype=np.int32), np.arange(-1, len(sym) - 1, dtype=np.int32)
    slot = np.zeros(len(sym), np.int32)  # which pair begins at a position; 0: none
    count, key, first = (np.zeros(1 << 16, np.int64) for _ in range(3))  # of each pair: count, ids, start in `places`
    places = np.empty(3 * len(sym), np.int32)  # positions grouped by pair: at most two births per merged occurrence
    slots, used, heap, floor, out = 1, 0, [], 1 << 62, []

    def born(at):
        nonlocal slots, used, count, key, first
        ids = sym[at].astype(np.int64) << 32 | sym[nxt[at]]
        order = np.argsort(ids, kind='stable')
        ids, at = ids[order], at[order]
        start = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])[:len(ids)])
        m = len(start)
        if not m:
            return
        while slots + m >= len(count):
            count, key, first = (np.concatenate([x, np.zeros_like(x)]) for x in (count, key, first))
        count[slots:slots + m] = np.add.reduceat(weight[at], start)
        key[slots:slots + m] = ids[start]
        first[slots:slots + m + 1] = np.append(start, len(at)) + used
        slot[at] = np.repeat(np.arange(slots, slots + m), np.diff(first[slots:slots + m + 1]))
        places[used:used + len(at)] = at
        for i in (slots + np.flatnonzero(count[slots:slots + m] >= floor)).tolist():
            heappush(heap, (-int(count[i]), int(key[i]), i))
        slots, used = slots + m, used + len(at)

    born(np.flatnonzero((sym[:-1] >= 0) & (sym[1:] >= 0)))
    while len(out) < n:
        batch, lefts, rights = [], set(), set()
        while len(out) + len(batch) < n:
            if not heap:
                if batch or floor == 1 or slots == 1:
                    break
                top = min(floor, int(count[1:slots].max()) + 1)
                floor = max(1, top * 3 // 4)
                hot = np.flatnonzero((count[:slots] >= floor) & (count[:slots] < top))
                heap = list(zip((-count[hot]).tolist(), key[hot].tolist(), hot.tolist()))
                heapify(heap)
                continue
            c, ids, i = heap[0]
            now = int(count[i])
            if now != -c:  # stale: its count has fallen since it was pushed
                heapreplace(heap, (-now, ids, i)) if now >= floor else heappop(heap)
                continue
            a, b = ids >> 32, ids & 0xffffffff
            if a in rights or b in lefts or (a == b and batch):
                break
            heappop(heap)
            batch.append((a, b, i))
            lefts.add(a)
            rights.add(b)
            if a == b:  # goes alone: its occurrences overlap
                break
        if not batch:
            break
        base = 256 + len(out)
        lefts, rights, chosen = map(list, zip(*batch))
        out += zip(lefts, rights)
        groups = [places[first[i]:first[i + 1]] for i in chosen]
        at = np.concatenate(groups)
        sizes = [len(g) for g in groups]
        a, b, new = (np.repeat(np.array(x, np.int32), sizes) for x in (lefts, rights, range(base, base + len(batch))))
        live = (sym[at] == a) & (sym[nxt[at]] == b)  # other merges may have used up some occurrences
        at, new = at[live], new[live]
        if lefts[0] == rights[0]:  # aaaa: take every second one of each run, from its left end
            at, i = np.sort(at), np.arange(len(at))
            fresh = np.concatenate([[True], nxt[at[:-1]] != at[1:]])[:len(at)]
            at, new = at[(i - np.maximum.accumulate(np.where(fresh, i, 0))) % 2 == 0], base
        mid, left = nxt[at], prv[at]
        right = nxt[mid]
        sym[at], sym[mid] = new, -2
        gone = np.concatenate([mid, left[sym[left] != -2]])  # where a pair with one of the two symbols began
        np.subtract.at(count, slot[gone], weight[gone])
        count[chosen] = 0
        nxt[at], prv[right] = right, at
        left = prv[at]
        born(np.concatenate([at[sym[right] >= 0], left[(sym[left] >= 0) & (sym[left] < base)]]))
        if progress:
            progress(f'merging: {len(out)} of {n}')
    return out


def train(texts, vocab_size, pattern='gpt2', special=None, model='bpe', name='', cores=0, progress=None):
    """
    A tokenizer with at most vocab_size ids (bytes, merges and special tokens together) for texts, an iterable of
    strings, or one string. pattern: a key of PATTERNS or a regular expression. model: bpe, wordpiece or unigram.
    """
    special = list(dict.fromkeys(SPECIALS if special is None else special))
    if model not in ('bpe', 'wordpiece', 'unigram'):
        raise ValueError(f'model {model!r} is unknown: use bpe, wordpiece or unigram')
    if model == 'bpe' and vocab_size < 256 + len(special):
        raise ValueError(f'vocab_size {vocab_size} is too small: 256 bytes + {len(special)} special tokens need '
                         f'at least {256 + len(special)}')
    if model == 'bpe' and pattern not in PATTERNS:
        pattern += r'|[\s\S]'  # nothing may fall between the chunks
    count = count_chunks(texts, pattern if model == 'bpe' else 'words', cores, progress)
    if not count:
        raise ValueError('no text to train on: the input is empty')
    name = name or f'{model}{vocab_size}'
    if model != 'bpe':
        trainer = importlib.import_module('lib.vocab.' + model)
        learn = trainer.train_wordpiece if model == 'wordpiece' else trainer.train_unigram
        return own(learn(count, vocab_size, special, name, progress))
    tokens = [bytes([b]) for b in BYTES]
    for a, b in merges({utf8(c): k for c, k in count.items()}, vocab_size - 256 - len(special), progress):
        tokens.append(tokens[a] + tokens[b])
    return BPE(name=name, pattern=pattern, special={s: len(tokens) + i for i, s in enumerate(special)},
               tokens=[visible(t) for t in tokens])


# ---- tokenizers --------------------------------------------------------------------------------------------------

class BPE(Tokenizer):
    """Byte-level BPE on tiktoken. tokens: by rank, spelled as in GPT-2's files; ids: each rank's id if they differ."""

    def setup(self, name, special, tokens, pattern, ids=None, added=None, strip=None):
        ranks = {invisible(t): rank for rank, t in enumerate(tokens) if t}
        if len(ranks) != sum(map(bool, tokens)) or len({*BYTES} & {t[0] for t in ranks if len(t) == 1}) < 256:
            raise ValueError('damaged: a token stands twice, or one of the 256 bytes is missing')
        if ids is not None and len(ids) != len(tokens):
            raise ValueError(f'damaged: {len(tokens)} tokens have {len(ids)} ids')
        for i, token in zip(ids or (), tokens):
            check_id(i, token)
        self.pattern = PATTERNS.get(pattern, pattern)
        self.cut = CUT if self.pattern in PATTERNS.values() else None
        self.chunks = regex.compile(self.pattern)
        self.encoding = tiktoken.Encoding(name, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens={})
        self.ids = None if ids is None else np.array(ids, np.uint32)
        table = [b''] * (max(ids or [len(tokens) - 1]) + 1)
        for token, rank in ranks.items():
            table[ids[rank] if ids else rank] = token
        self.byte_ids = {t[0]: i for i, t in enumerate(table) if len(t) == 1}
        return table

    def ranks(self, text):
        try:
            return self.encoding.encode_ordinary(text)  # tiktoken's fastest way in
        except BaseException as e:  # its regular expressions run out of stack in a million spaces; ours do not
            if type(e).__name__ != 'PanicException':
                raise
        return [i for chunk in self.chunks.findall(text) for i in self.encoding.encode_ordinary(chunk)]

    def plain(self, text, first=True):
        return self.ranks(text) if self.ids is None else self.ids[self.ranks(text)].tolist()

    def encode_part(self, text):
        ids = np.frombuffer(array('I', self.ranks(text)), np.uint32)
        return ids if self.ids is None else self.ids[ids]

    def encode_numpy(self, text):
        if self.added:
            return super().encode_numpy(text)
        if len(text) < 4 * BLOCK or not self.cut:
            return self.encode_part(text)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # tiktoken lets go of the GIL
            return np.concatenate(list(pool.map(self.encode_part, chain.from_iterable(blocks([text], self.cut)))))

    def raw(self, data):
        return [self.byte_ids[b] for b in data]

    def spec(self):
        from lib.vocab import save
        return save.byte_level_spec(self.state['tokens'], self.state.get('ids'), self.pattern, self.cut)


class Byte(Tokenizer):
    def setup(self, name, special):
        return [bytes([b]) for b in range(256)]

    def plain(self, text, first=True):
        return list(utf8(text))

    def raw(self, data):
        return list(data)

    def encode_numpy(self, text):
        return np.frombuffer(utf8(text), np.uint8).astype(np.uint32)


class Char(Tokenizer):
    def setup(self, name, special, tokens):
        self.ids = {c: i for i, c in enumerate(tokens)}
        if any(len(c) != 1 for c in tokens) or len(self.ids) != len(tokens):
            raise ValueError('damaged: its tokens are not characters that differ')
        return [utf8(c) for c in tokens]

    def plain(self, text, first=True):
        try:
            return [self.ids[c] for c in text]
        except KeyError as e:
            raise ValueError(f'character {e.args[0]!r} is not among the {len(self.ids)} of this char tokenizer: '
                             'prepare it on text that has the character, or use --tokenizer=byte or '
                             '--tokenizer=bpe') from None


def char(texts, special=SPECIALS):
    """One id per character. The special ones are those of all families, so that what is prepared serves any model file;
    a vocabulary for one of them can do with fewer (bpe.py train --model=char --special=...)."""
    chars = sorted(set().union(*([texts] if isinstance(texts, str) else texts)))
    if not chars:
        raise ValueError('no text to take characters from: the input is empty')
    return Char(name='char', tokens=chars, special={s: len(chars) + i for i, s in enumerate(special)})


def byte():
    return Byte(name='byte', special={s: 256 + i for i, s in enumerate(SPECIALS)})


# ---- files -------------------------------------------------------------------------------------------------------

KINDS = {'bpe': BPE, 'byte': Byte, 'char': Char}
MOVED = {
    'common': ['INVISIBLE', 'MOST', 'ROLES', 'VISIBLE', 'added_token', 'write'],
    'files': ['read'],
    'models': ['joined', 'byte_level', 'bpe_model', 'unigram_model', 'wordpiece_model'],
    'normalizers': ['normalizer', 'precompiled', 'expression', 'lower'],
    'pipeline': ['Pipeline'],
    'ranked': ['RANKED'],
    'spiece': ['fields'],
    'splitters': ['splitter', 'isolate', 'only_pattern'],
}


def __getattr__(name):
    """Names that have moved to lib/vocab: bpe.Pipeline, bpe.fields, ..."""
    for module, names in MOVED.items():
        if name in names:
            return getattr(importlib.import_module('lib.vocab.' + module), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def loads(text):
    """The tokenizer that dumps() wrote. ValueError if it is damaged."""
    with reading('tokenizer'):
        return own(json.loads(text))


def own(d):
    if not isinstance(d, dict) or d.get('format') != 'flatformers tokenizer' or d.get('version') != 1 \
            or d.get('kind') not in [*KINDS, 'pipeline']:
        raise ValueError(f'not a tokenizer of this collection (version 1): {str(d)[:60]!r}')
    if d['kind'] == 'pipeline':
        from lib.vocab.pipeline import Pipeline as kind
    else:
        kind = KINDS[d['kind']]
    return kind(**{k: v for k, v in d.items() if k not in ('format', 'version', 'kind')})


def load(path):
    """The tokenizer in a file or folder, or by a name: byte, gpt2, ... Errors: ValueError, FileNotFoundError."""
    path = os.fspath(path)
    if path == 'byte':
        return byte()
    if not os.path.exists(path):
        names = tiktoken.list_encoding_names()
        if path not in names:
            raise FileNotFoundError(f'{path}: no such file or folder, nor one of the names byte, {", ".join(names)}')
        try:
            e = tiktoken.get_encoding(path)
        except Exception as error:
            raise ValueError(f'{path}: tiktoken could not fetch it ({type(error).__name__}); give a file with it '
                             'instead, such as encoder.json + vocab.bpe or a .tiktoken file') from None
        from lib.vocab.ranked import ranked
        return own(ranked(e._mergeable_ranks, e._pat_str, e._special_tokens, path))
    if os.path.isdir(path):
        names = ['tokenizer.json', 'spiece.model', 'tokenizer.model', 'encoder.json', 'vocab.json', 'vocab.txt']
        found = [n for n in names if os.path.exists(os.path.join(path, n))]
        if not found:
            raise FileNotFoundError(f'{path}: holds no tokenizer, that is none of {", ".join(names)}')
        path = os.path.join(path, found[0])
    from lib.vocab import files
    data = files.read(path)
    stem = os.path.basename(path).removesuffix('.gz').rsplit('.', 1)[0]
    generic = stem in ('tokenizer', 'vocab', 'encoder', 'spiece', 'merges')
    name = os.path.basename(os.path.dirname(os.path.abspath(path))) if generic else stem
    with reading(path):
        tokenizer = own(files.parse(path, data, name))
        if not isinstance(tokenizer, Char):  # does it work at all?
            ids = tokenizer.encode('The 1st naïve test.\n')
            if any(i is None for i in ids) or max(ids, default=0) >= tokenizer.vocab_size:
                raise ValueError('damaged: it has no ids for a short text')
            tokenizer.decode(ids)
        return tokenizer


# ---- command line ------------------------------------------------------------------------------------------------

def show(tokenizer, text, colour):
    """The text cut into its tokens, then their ids, each token and its id in one colour."""
    ids, cells = tokenizer.encode(text), []
    for i in ids:
        token = tokenizer.tokens[i].decode('utf-8', 'backslashreplace')
        cells.append(''.join(c if c.isprintable() else '⏎\n' if c == '\n' else c.encode('unicode_escape').decode()
                             for c in token))
    palette = [f'\033[30;48;5;{c}m' for c in (153, 194, 223, 218, 189, 229)]
    paint = [palette[n % 6] + '{}\033[0m' if colour else '{}|' for n in range(len(ids))]
    print(''.join(p.format(c) for p, c in zip(paint, cells)))
    print(' '.join(p.format(i) if colour else str(i) for p, i in zip(paint, ids)))


def read_texts(paths, pattern='gpt2'):
    """The text of files (also .gz), a few megabytes at a time where the pattern allows a cut."""
    for path in paths:
        seen = False
        with (gzip.open if path.endswith('.gz') else open)(path, 'rt', encoding='utf-8', newline='') as f:
            rest = ''
            try:
                while part := f.read(1 << 22 if pattern in PATTERNS else -1):
                    *done, rest = chain.from_iterable(blocks([rest + part], CUT if pattern in PATTERNS else None))
                    seen = True
                    yield from done
            except UnicodeDecodeError as e:
                raise ValueError(f'{path}: not UTF-8 text ({e.reason} at byte {e.start} of a block)') from None
            except (EOFError, gzip.BadGzipFile, zlib.error) as e:
                raise ValueError(f'{path}: damaged gzip file ({e})') from None
            if not seen:
                raise ValueError(f'{path}: the file is empty')
            yield rest


def main(argv=None):
    parser = argparse.ArgumentParser(prog='bpe.py', allow_abbrev=False, description='Trains tokenizers and uses them.')
    commands = parser.add_subparsers(dest='command', required=True)
    add = {}
    for name, text in (('train', 'learn a vocabulary from text files'), ('encode', 'print the ids of a text'),
                       ('decode', 'print the text of ids'),
                       ('show', 'print a text cut into tokens, and its compression')):
        add[name] = commands.add_parser(name, help=text, allow_abbrev=False).add_argument
    add['train']('--input', nargs='+', required=True, metavar='FILE', help='UTF-8 text files, .gz too')
    add['train']('--vocab_size', type=int, default=8192, help='ids in all: bytes, merges and special tokens')
    add['train']('--out', required=True, help='FILE.json in our format, or FOLDER/ in the Hugging Face layout')
    add['train']('--model', default='bpe', choices=['bpe', 'wordpiece', 'unigram', 'char'],
                 help='char: an id per character, whatever --vocab_size says')
    add['train']('--pattern', default='gpt2', help='how bpe cuts text: gpt2, cl100k, o200k or a regular expression')
    add['train']('--special', default=','.join(SPECIALS[:5]) + ',sentinels', help='names with commas between, or none')
    for name in ('encode', 'decode', 'show'):
        add[name]('--tokenizer', required=True, help='a file, a folder or a name that tiktoken knows')
    for name in ('encode', 'show'):
        add[name]('--text', help='the text itself')
        add[name]('--input', metavar='FILE', help='a file with the text; without --text and --input: standard input')
    add['encode']('--special', action='store_true', help='names of special tokens become their ids')
    add['decode']('ids', nargs='*', type=int, help='without them: standard input')
    args = parser.parse_args(argv)
    try:
        if args.command == 'train':
            train_command(args)
            return 0
        tokenizer = load(args.tokenizer)
        if args.command == 'decode':
            ids = args.ids or [int(i) for i in sys.stdin.read().split()]
            bad = next((i for i in ids if not 0 <= i < tokenizer.vocab_size), None)
            if bad is not None:
                raise ValueError(f'id {bad} is not in 0 .. {tokenizer.vocab_size - 1}, the ids of {tokenizer.name}')
            print(tokenizer.decode(ids))
            return 0
        text = (args.text if args.text is not None else
                ''.join(read_texts([args.input])) if args.input else sys.stdin.read())
        if args.command == 'encode':
            print(*tokenizer.encode(text, special=args.special))
            return 0
        show(tokenizer, text[:2000], sys.stdout.isatty() and 'NO_COLOR' not in os.environ)
        n, size = len(tokenizer.encode_numpy(text)), len(utf8(text))
        print(f'{tokenizer.name}: {tokenizer.vocab_size} ids; {len(text)} characters, {size} bytes, {n} tokens, '
              f'{size / max(n, 1):.3f} bytes per token'
              + f' (the first 2000 of {len(text)} characters shown)' * (len(text) > 2000))
        return 0
    except OSError as e:
        print(f'bpe.py: {e.filename}: {e.strerror}' if e.filename else f'bpe.py: {e}', file=sys.stderr)
    except ValueError as e:
        print(f'bpe.py: {e}', file=sys.stderr)
    return 1


def train_command(args):
    start, shown = time.perf_counter(), [0.0]

    def progress(line):
        if sys.stderr.isatty() and time.perf_counter() - shown[0] > 0.1:
            shown[0] = time.perf_counter()
            print(f'\r{line}\033[K', end='', file=sys.stderr, flush=True)
    special = [s for s in args.special.split(',') if s and s != 'none']
    special = [t for s in special for t in (SPECIALS[5:] if s == 'sentinels' else [s])]
    texts = read_texts(args.input, args.pattern)
    tokenizer = (char((''.join(set(t)) for t in texts), special) if args.model == 'char' else
                 train(texts, args.vocab_size, args.pattern, special, args.model, progress=progress))
    if args.out.endswith(os.sep):
        tokenizer.save_hf(args.out)
    else:
        tokenizer.save(args.out)
    print('\r\033[K' * sys.stderr.isatty(), end='', file=sys.stderr)
    print(f'{args.out}: {tokenizer.vocab_size} ids in {time.perf_counter() - start:.2f} s'
          + f' (the text has no pairs left for {args.vocab_size})' * (tokenizer.vocab_size < args.vocab_size
                                                                      and args.model != 'char'))


if __name__ == '__main__':
    sys.exit(main())
