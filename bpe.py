r"""
Tokenizers: trains byte-level BPE on all cores in about a second, encodes through tiktoken, and
reads and gives the ids of the vocabularies that the four model families were published with.

    python bpe.py train --input book.txt --vocab_size 8192 --out tok.json
    python bpe.py show --tokenizer tok.json --text "The tokenizer cuts text into pieces."

The ladder from characters to subwords, each rung one line of Python:

    list(text)                           characters   few ids, long sequences, unknown characters
    list(text.encode())                  bytes        256 ids, nothing is unknown, longer still
    text.split()                         white space  short; every form of a word is another id
    re.findall(r'\w+|[^\w\s]', text)     rules        the same, with punctuation on its own
    bpe.train(texts, 8192).encode(text)  subwords     frequent words whole, rare ones in parts,
                                                      none unknown

Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): a regular expression cuts the text into
chunks (words with their leading space, numbers, punctuation, white space). Every chunk starts as
bytes; the most frequent pair of neighbours becomes one new symbol, again and again. `train` gives
exactly the merges of "count all pairs, merge the best, repeat", where the smaller pair of ids wins
a tie and aaa merges from the left, and needs no recount: see `PairTable`. WordPiece (BERT) and
Unigram (T5; Kudo 2018) are trained and read too, in lib/vocab.

Ids: the 256 bytes in GPT-2's order (printable ones first), the merges in order, then the special
tokens. `encode` treats text that spells a special token as plain text; encode(text, special=True)
gives its id. Nothing is added around a text (no [CLS], no </s>): that is the models' business.
`load` opens our own files, `gpt2`, `cl100k_base` and the other names of tiktoken, *.tiktoken,
encoder.json + vocab.bpe, vocab.json + merges.txt, tokenizer.json, vocab.txt, spiece.model /
tokenizer.model, and folders that hold one of these.

Departures: characters that Unicode gained in recent years are classified by Python's tables, where
`tokenizers` and tiktoken ask theirs. Unigram finds the best path word by word in float64
(sentencepiece: whole text, float32).
"""
import argparse
import importlib
import json
import os
import sys
import time
from array import array
from concurrent.futures import ThreadPoolExecutor
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain

import numpy as np
import regex
import tiktoken

from lib.vocab.base import Tokenizer
from lib.vocab.common import BYTES, PATTERNS, check_id, invisible, reading, utf8, visible
from lib.vocab.count import BLOCK, CUT, blocks, count_chunks, read_texts

SPECIALS = ['<|endoftext|>', '<|pad|>', '<|cls|>', '<|sep|>', '<|mask|>']
SPECIALS += [f'<|sentinel_{i}|>' for i in range(100)]
SEPARATOR = -1  # the symbol between chunks
MERGED = -2  # that of a place whose symbol went into the one on its left
SHOWN = 2000  # characters of a text that `bpe.py show` cuts into tokens


# ---- training ----------------------------------------------------------------------------------

def train(texts, vocab_size, pattern='gpt2', special=None, model='bpe', name='', cores=0,
          progress=None):
    """
    A tokenizer with at most vocab_size ids (bytes, merges and special tokens together) for texts,
    an iterable of strings, or one string. pattern: a key of PATTERNS or a regular expression.
    special: names of special tokens, None for SPECIALS. model: bpe, wordpiece or unigram. cores: 0
    for all. progress: a function that shows a line.
    """
    special = list(dict.fromkeys(SPECIALS if special is None else special))
    if model not in ('bpe', 'wordpiece', 'unigram'):
        raise ValueError(f'model {model!r} is unknown: use bpe, wordpiece or unigram')
    if model == 'bpe':
        if vocab_size < 256 + len(special):
            raise ValueError(f'vocab_size {vocab_size} is too small: 256 bytes + {len(special)} '
                             f'special tokens need at least {256 + len(special)}')
        if pattern not in PATTERNS:
            pattern += r'|[\s\S]'  # nothing may fall between the chunks
    else:
        pattern = 'words'
    count = count_chunks(texts, pattern, cores, progress)
    if not count:
        raise ValueError('no text to train on: the input is empty')
    name = name or f'{model}{vocab_size}'
    if model == 'wordpiece':
        from lib.vocab.wordpiece import train_wordpiece
        return build(train_wordpiece(count, vocab_size, special, name, progress))
    if model == 'unigram':
        from lib.vocab.unigram import train_unigram
        return build(train_unigram(count, vocab_size, special, name, progress))

    tokens = [bytes([b]) for b in BYTES]
    chunks = {utf8(chunk): k for chunk, k in count.items()}
    for left, right in merges(chunks, vocab_size - 256 - len(special), progress):
        tokens.append(tokens[left] + tokens[right])
    return BPE(
        name=name,
        pattern=pattern,
        special={s: len(tokens) + i for i, s in enumerate(special)},
        tokens=[visible(t) for t in tokens],
    )


def merges(chunks, n, progress=None):
    """
    The n merges [(left id, right id), ...] of byte-level BPE for {chunk (bytes): count}.
    There are fewer if no pair is left.
    """
    table = PairTable(chunks)
    made = []
    while len(made) < n:
        batch = table.best_pairs(n - len(made))
        if not batch:
            break
        table.merge(batch, 256 + len(made))
        made += [(left, right) for left, right, _ in batch]
        if progress:
            progress(f'merging: {len(made)} of {n}')
    return made


class PairTable:
    """
    The symbols of all distinct chunks and the pairs of neighbours, while the best are merged.

    The symbols lie in one flat array, chained by `next` and `previous`. Every position knows which
    pair begins there, so a merge touches only its own occurrences: counts of the pairs it destroys
    go down, pairs with the new symbol are born. A pair can only be born in the step that makes the
    younger of its two symbols; from then on its count only falls and no occurrence is added. So its
    occurrences are one slice of `places`, written once, and a heap whose entries are checked when
    they come up is enough. Pairs under `floor` wait outside the heap until it is empty.

    Several merges are done at once. Let p1 > p2 > ... be the best pairs in order (count, then the
    smaller ids). While none of them ends with a symbol that another begins with, they share no
    occurrence, and no pair that p_i creates can come before p_k: its count is at most that of
    (x, left of p_i) or (right of p_i, y), which sort after p_k, and at equal counts its new id is
    the larger one. So the batch is what one merge after the other would give.
    """

    def __init__(self, chunks):
        words = list(chunks)
        counts = np.fromiter(chunks.values(), np.int64, len(words))
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        ends = np.cumsum(lengths + 1)
        # the chunks, with a separator before and after each
        rank = np.zeros(256, np.int32)
        rank[BYTES] = np.arange(256)
        symbol = rank[np.frombuffer(b'\0'.join([b'', *words, b'']), np.uint8)]
        symbol[0] = SEPARATOR
        symbol[ends] = SEPARATOR
        size = len(symbol)
        self.symbol = symbol
        self.next = np.arange(1, size + 1, dtype=np.int32)
        self.previous = np.arange(-1, size - 1, dtype=np.int32)
        self.pair_at = np.zeros(size, np.int32)  # the number of the pair that begins here; 0: none
        self.weight = np.zeros(size, np.int64)   # the count of the chunk that a position belongs to
        self.weight[1:] = np.repeat(counts, lengths + 1)
        self.weight[ends] = 0
        # of each pair: its count, its ids (left << 32 | right), where its slice of `places` starts
        self.count = np.zeros(2 ** 16, np.int64)
        self.ids = np.zeros(2 ** 16, np.int64)
        self.start = np.zeros(2 ** 16, np.int64)
        self.places = np.empty(3 * size, np.int32)  # a merged occurrence bears at most two pairs
        self.n_pairs = 1
        self.n_places = 0
        self.heap = []  # (-count, ids, number of the pair)
        self.floor = 2 ** 62  # above every count
        self.add_pairs(np.flatnonzero((symbol[:-1] >= 0) & (symbol[1:] >= 0)))

    def add_pairs(self, at):
        """Adds the pairs that begin at these positions, none of which is known yet."""
        ids = self.symbol[at].astype(np.int64) << 32 | self.symbol[self.next[at]]
        order = np.argsort(ids, kind='stable')
        ids = ids[order]
        at = at[order]
        start = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])[:len(ids)])
        if not len(start):
            return
        first = self.n_pairs
        end = first + len(start)
        while end >= len(self.count):
            self.count = doubled(self.count)
            self.ids = doubled(self.ids)
            self.start = doubled(self.start)
        self.count[first:end] = np.add.reduceat(self.weight[at], start)
        self.ids[first:end] = ids[start]
        self.start[first:end + 1] = np.append(start, len(at)) + self.n_places
        self.pair_at[at] = np.repeat(np.arange(first, end), np.diff(self.start[first:end + 1]))
        self.places[self.n_places:self.n_places + len(at)] = at
        self.n_places += len(at)
        self.n_pairs = end
        frequent = first + np.flatnonzero(self.count[first:end] >= self.floor)
        for pair in frequent.tolist():
            heappush(self.heap, (-int(self.count[pair]), int(self.ids[pair]), pair))

    def refill(self):
        """Lowers the floor and moves the pairs above it into the heap. False if there are none."""
        if self.floor == 1 or self.n_pairs == 1:
            return False
        count = self.count[:self.n_pairs]
        ceiling = min(self.floor, int(count[1:].max()) + 1)
        self.floor = max(1, ceiling * 3 // 4)
        pairs = np.flatnonzero((count >= self.floor) & (count < ceiling))
        self.heap = list(zip((-count[pairs]).tolist(), self.ids[pairs].tolist(), pairs.tolist()))
        heapify(self.heap)
        return True

    def best_pairs(self, most):
        """Takes the best pairs that can be merged at once: [(left id, right id, number), ...]."""
        batch = []
        lefts = set()
        rights = set()
        while len(batch) < most:
            if not self.heap:
                if batch or not self.refill():
                    break
                continue
            negative, ids, pair = self.heap[0]
            count = int(self.count[pair])
            if count != -negative:  # its count has fallen since it was pushed
                if count >= self.floor:
                    heapreplace(self.heap, (-count, ids, pair))
                else:
                    heappop(self.heap)
                continue
            left = ids >> 32
            right = ids & 0xffffffff
            if left in rights or right in lefts or (left == right and batch):
                break
            heappop(self.heap)
            batch.append((left, right, pair))
            lefts.add(left)
            rights.add(right)
            if left == right:  # goes alone: its occurrences overlap
                break
        return batch

    def merge(self, batch, first_id):
        """Merges a batch of pairs into the symbols first_id, first_id + 1, ..."""
        symbol = self.symbol
        lefts, rights, pairs = zip(*batch)
        groups = [self.places[self.start[pair]:self.start[pair + 1]] for pair in pairs]
        sizes = [len(group) for group in groups]
        at = np.concatenate(groups)
        left = np.repeat(np.array(lefts, np.int32), sizes)
        right = np.repeat(np.array(rights, np.int32), sizes)
        new = np.repeat(np.arange(first_id, first_id + len(batch), dtype=np.int32), sizes)
        # other merges may have used up some occurrences
        live = (symbol[at] == left) & (symbol[self.next[at]] == right)
        at = at[live]
        new = new[live]
        if lefts[0] == rights[0]:
            at = self.every_second(np.sort(at))
            new = first_id

        middle = self.next[at]
        before = self.previous[at]
        after = self.next[middle]
        symbol[at] = new
        symbol[middle] = MERGED
        # where a pair with one of the two symbols began
        gone = np.concatenate([middle, before[symbol[before] != MERGED]])
        np.subtract.at(self.count, self.pair_at[gone], self.weight[gone])
        self.count[list(pairs)] = 0
        self.next[at] = after
        self.previous[after] = at
        before = self.previous[at]
        old_before = before[(symbol[before] >= 0) & (symbol[before] < first_id)]
        self.add_pairs(np.concatenate([at[symbol[after] >= 0], old_before]))

    def every_second(self, at):
        """Of the sorted positions of a pair aa: every second one of each run, from its left end."""
        i = np.arange(len(at))
        begins_run = np.concatenate([[True], self.next[at[:-1]] != at[1:]])[:len(at)]
        run_start = np.maximum.accumulate(np.where(begins_run, i, 0))
        return at[(i - run_start) % 2 == 0]


def doubled(x):
    return np.concatenate([x, np.zeros_like(x)])


# ---- tokenizers --------------------------------------------------------------------------------

class BPE(Tokenizer):
    """
    Byte-level BPE on tiktoken.
    tokens: by rank, spelled as in GPT-2's files. ids: each rank's id if they differ.
    """

    def setup(self, name, special, tokens, pattern, ids=None, added=None, strip=None):
        ranks = {invisible(token): rank for rank, token in enumerate(tokens) if token}
        single_bytes = {token[0] for token in ranks if len(token) == 1}
        if len(ranks) != sum(map(bool, tokens)) or len(single_bytes) < 256:
            raise ValueError('damaged: a token stands twice, or one of the 256 bytes is missing')
        if ids is not None and len(ids) != len(tokens):
            raise ValueError(f'damaged: {len(tokens)} tokens have {len(ids)} ids')
        for i, token in zip(ids or (), tokens):
            check_id(i, token)
        self.ids = None if ids is None else np.array(ids, np.uint32)
        self.pattern = PATTERNS.get(pattern, pattern)
        self.cut = CUT if self.pattern in PATTERNS.values() else None
        self.chunks = regex.compile(self.pattern)
        self.encoding = tiktoken.Encoding(
            name, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens={})
        largest = max(ids or [len(tokens) - 1])
        table = [b''] * (largest + 1)
        for token, rank in ranks.items():
            table[ids[rank] if ids else rank] = token
        self.byte_ids = {token[0]: i for i, token in enumerate(table) if len(token) == 1}
        return table

    def ranks(self, text):
        """The ranks of the tokens of a text."""
        try:
            return self.encoding.encode_ordinary(text)  # tiktoken's fastest way in
        except BaseException as e:
            # its regular expressions run out of stack in a million spaces; ours do not
            if type(e).__name__ != 'PanicException':
                raise
        chunks = map(self.encoding.encode_ordinary, self.chunks.findall(text))
        return list(chain.from_iterable(chunks))

    def plain(self, text, first=True):
        ranks = self.ranks(text)
        return ranks if self.ids is None else self.ids[ranks].tolist()

    def raw(self, data):
        return [self.byte_ids[b] for b in data]

    def encode_part(self, text):
        ranks = np.frombuffer(array('I', self.ranks(text)), np.uint32)
        return ranks if self.ids is None else self.ids[ranks]

    def encode_numpy(self, text):
        """The ids of plain text: uint32 (n,). A long text is encoded on all cores."""
        if self.added:
            return super().encode_numpy(text)
        if len(text) < 4 * BLOCK or not self.cut:
            return self.encode_part(text)
        parts = chain.from_iterable(blocks([text], self.cut))
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # tiktoken lets go of the GIL
            return np.concatenate(list(pool.map(self.encode_part, parts)))

    def spec(self):
        from lib.vocab.save import byte_level_spec
        return byte_level_spec(self.state['tokens'], self.state.get('ids'), self.pattern)


class Byte(Tokenizer):
    """The ids are the bytes of UTF-8."""

    def setup(self, name, special):
        return [bytes([b]) for b in range(256)]

    def plain(self, text, first=True):
        return list(utf8(text))

    def raw(self, data):
        return list(data)

    def encode_numpy(self, text):
        return np.frombuffer(utf8(text), np.uint8).astype(np.uint32)


class Char(Tokenizer):
    """One id per character. ValueError for a text with a character that has none."""

    def setup(self, name, special, tokens):
        self.ids = {c: i for i, c in enumerate(tokens)}
        if any(len(c) != 1 for c in tokens) or len(self.ids) != len(tokens):
            raise ValueError('damaged: its tokens are not characters that differ')
        return [utf8(c) for c in tokens]

    def plain(self, text, first=True):
        try:
            return [self.ids[c] for c in text]
        except KeyError as e:
            raise ValueError(f'character {e.args[0]!r} is not among the {len(self.ids)} of this '
                             'char tokenizer: prepare it on text that has the character, or use '
                             '--tokenizer=byte or --tokenizer=bpe') from None


def char(texts, special=SPECIALS):
    """
    A tokenizer with one id per character of texts. The special tokens are those of all families, so
    that what is prepared serves any model file; a vocabulary for one of them can do with fewer
    (bpe.py train --model=char --special=...).
    """
    characters = sorted(set().union(*([texts] if isinstance(texts, str) else texts)))
    if not characters:
        raise ValueError('no text to take characters from: the input is empty')
    special = {s: len(characters) + i for i, s in enumerate(special)}
    return Char(name='char', tokens=characters, special=special)


def byte():
    """The tokenizer of bytes."""
    return Byte(name='byte', special={s: 256 + i for i, s in enumerate(SPECIALS)})


# ---- files -------------------------------------------------------------------------------------

KINDS = {'bpe': BPE, 'byte': Byte, 'char': Char}


def build(description):
    """The tokenizer of a description: what dumps() writes, and the readers of lib/vocab give."""
    state = dict(description) if isinstance(description, dict) else {}
    head = [state.pop(key, None) for key in ('format', 'version', 'kind')]
    kind = head[-1]
    if head[:2] != ['flatformers tokenizer', 1] or kind not in [*KINDS, 'pipeline']:
        raise ValueError('not a tokenizer of this collection (version 1): '
                         f'{str(description)[:60]!r}')
    if kind == 'pipeline':
        from lib.vocab.pipeline import Pipeline
        return Pipeline(**state)
    return KINDS[kind](**state)


def loads(text):
    """The tokenizer that dumps() wrote. ValueError if it is damaged."""
    with reading('tokenizer'):
        return build(json.loads(text))


def load(path):
    """
    The tokenizer in a file or folder, or by a name: byte, gpt2, ... Raises FileNotFoundError if
    there is no such file or name, ValueError if it is damaged or not understood.
    """
    path = os.fspath(path)
    if path == 'byte':
        return byte()
    from lib.vocab import files, ranked
    if not os.path.exists(path):
        return build(ranked.from_name(path))
    path = files.find(path)
    data = files.read(path)
    with reading(path):
        tokenizer = build(files.parse(path, data, files.name_of(path)))
        if not isinstance(tokenizer, Char):  # does it work at all?
            ids = tokenizer.encode('The 1st naïve test.\n')
            if any(i is None for i in ids) or max(ids, default=0) >= tokenizer.vocab_size:
                raise ValueError('damaged: it has no ids for a short text')
            tokenizer.decode(ids)
        return tokenizer


ELSEWHERE = {  # names that are found here too: bpe.Pipeline, bpe.fields, ...
    'common': 'INVISIBLE MAX_IDS ROLES VISIBLE added_token write',
    'files': 'read',
    'models': 'bpe_model byte_level joined unigram_model wordpiece_model',
    'normalizers': 'expression lower normalizer precompiled',
    'pipeline': 'Pipeline',
    'ranked': 'RANKED',
    'show': 'show',
    'spiece': 'fields',
    'splitters': 'isolate only_pattern splitter',
}


def __getattr__(name):
    for module, names in ELSEWHERE.items():
        if name in names.split():
            return getattr(importlib.import_module('lib.vocab.' + module), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


# ---- command line ------------------------------------------------------------------------------

def arguments():
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='bpe.py', allow_abbrev=False, description='Trains tokenizers and uses them.')
    commands = parser.add_subparsers(dest='command', required=True)

    def command(name, text):
        return commands.add_parser(name, help=text, allow_abbrev=False).add_argument

    add = command('train', 'learn a vocabulary from text files')
    add('--input', nargs='+', required=True, metavar='FILE', help='UTF-8 text files, .gz too')
    add('--vocab_size', type=int, default=8192, help='ids in all: bytes, merges and special tokens')
    add('--out', required=True,
        help='FILE.json in our format, or FOLDER/ in the Hugging Face layout')
    add('--model', default='bpe', choices=['bpe', 'wordpiece', 'unigram', 'char'],
        help='char: an id per character, whatever --vocab_size says')
    add('--pattern', default='gpt2',
        help='how bpe cuts text: gpt2, cl100k, o200k or a regular expression')
    add('--special', default=','.join(SPECIALS[:5]) + ',sentinels',
        help='names with commas between, or none')

    encode = command('encode', 'print the ids of a text')
    decode = command('decode', 'print the text of ids')
    show = command('show', 'print a text cut into tokens, and its compression')
    for add in (encode, decode, show):
        add('--tokenizer', required=True, help='a file, a folder or a name that tiktoken knows')
    for add in (encode, show):
        add('--text', help='the text itself')
        add('--input', metavar='FILE',
            help='a file with the text; without --text and --input: standard input')
    encode('--special', action='store_true', help='names of special tokens become their ids')
    decode('ids', nargs='*', type=int, help='without them: standard input')
    return parser


def main(argv=None):
    """Runs a command; returns 0, or 1 after an error."""
    args = arguments().parse_args(argv)
    try:
        if args.command == 'train':
            train_command(args)
        elif args.command == 'encode':
            tokenizer = load(args.tokenizer)
            print(*tokenizer.encode(text_of(args), special=args.special))
        elif args.command == 'decode':
            decode_command(args)
        else:
            show_command(args)
        return 0
    except OSError as e:
        message = f'{e.filename}: {e.strerror}' if e.filename else str(e)
    except ValueError as e:
        message = str(e)
    print(f'bpe.py: {message}', file=sys.stderr)
    return 1


def text_of(args):
    """The text that a command is about."""
    if args.text is not None:
        return args.text
    if args.input:
        return ''.join(read_texts([args.input]))
    return sys.stdin.read()


def train_command(args):
    start = time.perf_counter()
    last_shown = 0.0

    def progress(line):
        nonlocal last_shown
        if sys.stderr.isatty() and time.perf_counter() - last_shown > 0.1:
            last_shown = time.perf_counter()
            print(f'\r{line}\033[K', end='', file=sys.stderr, flush=True)

    special = []
    for name in args.special.split(','):
        if name == 'sentinels':
            special += SPECIALS[5:]
        elif name and name != 'none':
            special.append(name)
    texts = read_texts(args.input, args.pattern)
    if args.model == 'char':
        tokenizer = char((''.join(set(text)) for text in texts), special)
    else:
        tokenizer = train(texts, args.vocab_size, args.pattern, special, args.model,
                          progress=progress)
    if args.out.endswith(os.sep):
        tokenizer.save_hf(args.out)
    else:
        tokenizer.save(args.out)
    if sys.stderr.isatty():
        print('\r\033[K', end='', file=sys.stderr)
    line = f'{args.out}: {tokenizer.vocab_size} ids in {time.perf_counter() - start:.2f} s'
    if tokenizer.vocab_size < args.vocab_size and args.model != 'char':
        line += f' (the text has no pairs left for {args.vocab_size})'
    print(line)


def decode_command(args):
    tokenizer = load(args.tokenizer)
    ids = args.ids or [int(i) for i in sys.stdin.read().split()]
    for i in ids:
        if not 0 <= i < tokenizer.vocab_size:
            raise ValueError(f'id {i} is not in 0 .. {tokenizer.vocab_size - 1}, '
                             f'the ids of {tokenizer.name}')
    print(tokenizer.decode(ids))


def show_command(args):
    from lib.vocab.show import show
    tokenizer = load(args.tokenizer)
    text = text_of(args)
    show(tokenizer, text[:SHOWN], colour=sys.stdout.isatty() and 'NO_COLOR' not in os.environ)
    n = len(tokenizer.encode_numpy(text))
    size = len(utf8(text))
    line = (f'{tokenizer.name}: {tokenizer.vocab_size} ids; {len(text)} characters, '
            f'{size} bytes, {n} tokens, {size / max(n, 1):.3f} bytes per token')
    if len(text) > SHOWN:
        line += f' (the first {SHOWN} of {len(text)} characters shown)'
    print(line)


if __name__ == '__main__':
    sys.exit(main())
