"""Which rows of the data a training step sees: a batch is a pure function of (seed, step, row).

Row number n = step * batch_size + place in the global batch fixes its window of text and every
random number that masks or cuts it. Nothing depends on how a batch is split over micro-batches and
ranks, and resuming needs no loader state: it is a subtraction. Each epoch goes once through all
windows in an order of its own (a permutation that is computed place by place, never stored), and
starts at an offset of its own, so that windows are not cut at the same places again.

    corpus = Corpus(folder, meta, 'train', seed=1)
    draw, rng = corpus.rows([0, 1, 2, 3])       # the protocol's draw and rng for these four rows
    draw(257, overlap=1)                        # (4, 257) token ids; windows advance by 256
    rng.integers(0, 99, 5), rng.random(2, 3)    # (4, 5), (4, 2, 3): each row has its own stream

`training` and `validation` open what --data names: one folder, or a mixture of several (T5, Raffel
et al. 2020, section 3.5.2).

B: rows that are asked for, n: places to choose from.
"""
import math
import os

import numpy as np

from data import supervised
from data.opening import tokens
from data.reading import read_jsonl

# --------------------------------------------------------------------------------- random numbers

GOLDEN = np.uint64(0x9e3779b97f4a7c15)      # 2^64 / golden ratio, SplitMix64's step


def mix(x):
    """SplitMix64's output function (Steele et al. 2014) of uint64 numbers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
    return x ^ (x >> np.uint64(31))


def keyed(*parts):
    """Hashes numbers or arrays to (n,) uint64 keys; streams with other keys are independent."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        part = np.atleast_1d(np.asarray(part)).astype(np.uint64)
        key = mix((key ^ part) + GOLDEN)
    return key


class Random:
    """Random numbers for each row, which depend on the row's key and the number of the call alone.

    The generator is SplitMix64 as a counter. key: (B,) uint64
    """

    def __init__(self, key):
        self.key = key
        self.calls = 0

    def random(self, *shape):
        """Returns (B, *shape) float64 in [0, 1)."""
        self.calls += 1
        start = mix(self.key ^ keyed(self.calls))[:, None]
        counter = np.arange(1, math.prod(shape) + 1, dtype=np.uint64)
        bits = mix(start + counter * GOLDEN)
        numbers = (bits >> np.uint64(11)) * 2.0 ** -53
        return numbers.reshape(len(self.key), *shape)

    def integers(self, low, high, *shape):
        """Returns (B, *shape) int64 in [low, high)."""
        return low + (self.random(*shape) * (high - low)).astype(np.int64)


def permute(i, n, key):
    """The places that i has in a random order of 0..n-1, without making the order.

    A 4-round Feistel network permutes the numbers below the next even power of two. It is applied
    again until the result is below n (Black and Rogaway 2002). i: (B,) int64 -> (B,) int64
    """
    bits = max(1, (int(n - 1).bit_length() + 1) // 2)       # of each half
    shift = np.uint64(bits)
    mask = np.uint64((1 << bits) - 1)
    out = np.full(len(i), -1, np.int64)
    todo = np.arange(len(i))
    x = i.astype(np.uint64)
    while len(todo):
        left = x >> shift
        right = x & mask
        for r in range(4):
            hashed = mix(right + mix(key + np.uint64(r))) & mask
            left, right = right, left ^ hashed
        x = left << shift | right
        done = x < n
        out[todo[done]] = x[done]
        x = x[~done]
        todo = todo[~done]
    return out


# ------------------------------------------------------------------------------------- one folder

def tokens_in(row):
    """The number of tokens of an encoded example.

    Lists of one length stand beside each other (ids, segments, tags) and count once.
    """
    lists = [v for v in row.values() if isinstance(v, list) and v and isinstance(v[0], int)]
    own = sum({len(v) for v in lists})
    return own + sum(tokens_in(choice) for choice in row.get('choices', ()))


class Corpus:
    """One split of a prepared folder. `rows(numbers)` gives the protocol's draw and rng for rows.

    kind: the kind of data, 'text' or one of data/supervised.py
    shards: text as a list of arrays of ids
    examples: the examples of other kinds, as they are stored
    items: what encode made of them; each has the place of its example as 'index'
    tokens_per_row: mean tokens of a row; of text it is known once a row was drawn
    """

    def __init__(self, folder, meta, split, seed, shuffle=True, encode=None):
        """Opens train or val of a folder.

        meta: what data/opening.py has read of it
        shuffle: True for training: epochs in an order of their own
        encode: a function example -> list of dicts, the rows that the model file makes of it
            (usually one); it is called once for each example

        Raises ValueError if a line is not an example of its kind, or if there is none.
        """
        self.split = split
        self.seed = seed
        self.shuffle = shuffle
        self.kind = meta['kind']
        self.length = 0             # of a window of text, and its overlap with the next one
        self.overlap = 0
        self.tokens_per_row = 0
        self.items = []
        self.examples = []
        if self.kind == 'text':
            self.shards = tokens(folder, split)
            return
        path = os.path.join(folder, split + '.jsonl')
        for number, example in read_jsonl(path):
            supervised.check_stored(example, self.kind, meta.get('labels'), path, number)
            self.examples.append(example)
        for i, example in enumerate(self.examples):
            self.items += [dict(row, index=i) for row in encode(example)]
        if not self.items:
            raise ValueError(f'{folder}/{split}.jsonl holds no examples')
        self.tokens_per_row = round(sum(map(tokens_in, self.items)) / len(self.items))

    def places(self, numbers, n, stream):
        """Row numbers -> places in 0..n-1, and epochs. Each epoch has its own order of places."""
        epoch, place = np.divmod(numbers, n)
        if not self.shuffle:
            return place, np.zeros_like(epoch)
        for e in np.unique(epoch):
            rows = epoch == e
            place[rows] = permute(place[rows], n, keyed(self.seed, e, stream))
        return place, epoch

    def windows(self, length, overlap):
        """The stride of windows of text, and how many each shard has.

        In training there is one fewer than fit, since each epoch starts at an offset of its own.
        Raises ValueError if the text is shorter than a window.
        """
        stride = length - overlap
        fit = np.array([max(0, (len(shard) - overlap) // stride) for shard in self.shards])
        if not fit.sum():
            longest = max(map(len, self.shards))
            raise ValueError(f'the {self.split} text has {longest} tokens, but one window takes '
                             f'{length}: lower --block_size or give more text')
        return stride, np.maximum(fit - 1, fit > 0) if self.shuffle else fit

    def __len__(self):
        """The rows of an epoch; of text it is known once a row was drawn."""
        return len(self.items) or int(self.windows(self.length, self.overlap)[1].sum())

    def first_rows(self):
        """The numbers of rows that are to be drawn before len() and tokens_per_row are known."""
        return np.array([0])

    def rows(self, numbers):
        """The protocol's draw and rng for the rows of these numbers.

        draw(length, overlap, stream) -> (B, length) int64, a window of text for each row
        draw.examples() -> list of B items
        """
        numbers = np.asarray(numbers, dtype=np.int64)

        def draw(length, overlap=0, stream=0):
            stride, fit = self.windows(length, overlap)
            if stream == 0:
                self.length = length
                self.overlap = overlap
                self.tokens_per_row = stride
            ends = np.cumsum(fit)
            place, epoch = self.places(numbers, int(ends[-1]), stream)
            shard = np.searchsorted(ends, place, 'right')
            start = (place - ends[shard] + fit[shard]) * stride
            if self.shuffle:        # the epoch's offset, as far as the shard has room for it
                sizes = np.array([len(s) for s in self.shards])
                room = sizes[shard] - overlap - fit[shard] * stride
                most = np.minimum(room + 1, stride).astype(np.uint64)
                start += (keyed(self.seed, epoch, stream, 7) % most).astype(np.int64)
            windows = [self.shards[s][a:a + length] for s, a in zip(shard, start)]
            return np.stack(windows).astype(np.int64)

        def examples():
            return [self.items[i] for i in self.places(numbers, len(self.items), 0)[0]]

        draw.examples = examples
        return draw, Random(keyed(self.seed, 1 if self.shuffle else 2, numbers))


# -------------------------------------------------------------------------------- several folders

class Mixture:
    """Several corpora as one, with Corpus's `rows`.

    The share of a part follows its size of e examples (or tokens of running text): it is
    r = min(e, cap)^(1 / temperature) over the sum of all r (T5, 3.5.2). Temperature 1 mixes by
    size; a large one gives equal shares.

    A period of 65,536 rows has a fixed number of rows of each part, spread evenly with some jitter.
    The next period goes on where this one ended. So each part goes through its epochs as it does
    alone, and a row's number is enough to know where.

    counts: rows of each part in a period
    part, place: for each row of a period its part, and which of the part's rows it is
    """
    period = 1 << 16

    def __init__(self, parts, seed, cap=0, temperature=1.0):
        """parts: list of Corpus. cap: examples, 0 for none. Raises ValueError for a bad setting."""
        if cap < 0:
            raise ValueError(f'--mix_cap={cap}: expected a number of examples, or 0 for none')
        if not temperature > 0:
            raise ValueError(f'--mix_temperature={temperature}: expected more than 0')
        self.parts = parts
        self.seed = seed
        self.kind = parts[0].kind
        self.length = 0
        self.overlap = 0
        self.items = [item for part in parts for item in part.items]
        self.examples = [example for part in parts for example in part.examples]
        self.counts = self.share_out(cap, temperature)
        part = np.repeat(np.arange(len(parts)), self.counts)
        before = np.cumsum(self.counts) - self.counts
        place = np.arange(self.period) - before[part]
        jitter = Random(keyed(seed, 5, part, place)).random()
        order = np.argsort((place + jitter) / self.counts[part], kind='stable')
        self.part = part[order]
        self.place = place[order]

    def share_out(self, cap, temperature):
        """The rows of each part in a period, at least one, by the largest-remainder method."""
        sizes = [len(p.examples) or sum(map(len, p.shards)) for p in self.parts]
        sizes = np.array(sizes, np.float64)
        largest = sizes.max()
        share = np.minimum(sizes / largest, (cap or largest) / largest) ** (1 / temperature)
        share *= self.period / share.sum()
        counts = np.maximum(1, share.astype(np.int64))
        missing = max(0, self.period - counts.sum())
        counts[np.argsort(counts - share)[:missing]] += 1
        counts[counts.argmax()] += self.period - counts.sum()   # too many, if some were raised to 1
        return counts

    @property
    def tokens_per_row(self):
        """The mean over the parts; of running text it is known once a row was drawn."""
        rows = np.array([p.tokens_per_row for p in self.parts])
        return round(np.average(np.where(rows, rows, rows.max()), weights=self.counts))

    def __len__(self):
        return sum(map(len, self.parts))

    def first_rows(self):
        """The number of the first row of each part, as Corpus.first_rows."""
        return np.sort(np.unique(self.part, return_index=True)[1])

    def owners(self, numbers):
        """For each part with some of these rows: (part, where they stand, their numbers in it)."""
        period, i = np.divmod(numbers, self.period)
        part = self.part[i]
        own = period * self.counts[part] + self.place[i]
        owners = []
        for p in range(len(self.parts)):
            at = np.flatnonzero(part == p)
            if len(at):
                owners.append((p, at, own[at]))
        return owners

    def places(self, numbers, n=0, stream=0):
        """Row numbers -> places in self.items, and the parts' epochs, like Corpus.places."""
        places = np.zeros(len(numbers), np.int64)
        epochs = np.zeros(len(numbers), np.int64)
        before = np.cumsum([0] + [len(part.items) for part in self.parts])
        for p, at, own in self.owners(numbers):
            part = self.parts[p]
            places[at], epochs[at] = part.places(own, len(part.items), stream)
            places[at] += before[p]
        return places, epochs

    def rows(self, numbers):
        """The protocol's draw and rng for the rows of these numbers, like Corpus.rows."""
        numbers = np.asarray(numbers, dtype=np.int64)
        draws = [(at, self.parts[p].rows(own)[0]) for p, at, own in self.owners(numbers)]

        def draw(length, overlap=0, stream=0):
            out = np.zeros((len(numbers), length), np.int64)
            for at, draw_part in draws:
                out[at] = draw_part(length, overlap, stream)
            return out

        def examples():
            return [self.items[i] for i in self.places(numbers)[0]]

        draw.examples = examples
        return draw, Random(keyed(self.seed, 1, numbers))


# ------------------------------------------------------------------------------- what --data names

def training(meta, seed, encode=None, cap=0, temperature=1.0):
    """The training data of what data/opening.py has opened: a Corpus, or a Mixture of several."""
    parts = [Corpus(m['folder'], m, 'train', seed, True, encode) for m in meta.get('parts', [meta])]
    return Mixture(parts, seed, cap, temperature) if 'parts' in meta else parts[0]


def validation(meta, seed, encode=None):
    """The validation sets, {title: (Corpus, its meta)}.

    A folder's own set has the title '', its further ones (MNLI's other genres) their names. Those
    of a mixture begin with the part's title.
    """
    sets = {}
    for part in meta.get('parts', [meta]):
        for name in ('', *part.get('more_val', ())):
            title = '-'.join(filter(None, (part.get('title', ''), name)))
            split = f'val-{name}' if name else 'val'
            sets[title] = Corpus(part['folder'], part, split, seed, False, encode), part
    return sets
