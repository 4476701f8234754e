"""Which rows of the data a training step sees, without any state: a batch is a pure function of (seed, step, row).

Row number n = step * batch_size + place in the global batch fixes its window of text and every random number that masks
or cuts it. Nothing depends on how a batch is split over micro-batches and ranks, and resuming needs no loader state: it
is a subtraction. Each epoch goes once through all windows in an order of its own (a permutation that is computed place
by place, never stored), and starts at an offset of its own, so that windows are not cut at the same places again.

    corpus = Corpus(folder, meta, 'train', seed=1)
    draw, rng = corpus.rows([0, 1, 2, 3])              # the protocol's draw and rng for these four rows
    draw(257, overlap=1)                               # (4, 257) token ids; windows advance by 256
    rng.integers(0, 99, 5), rng.random(2, 3)           # (4, 5), (4, 2, 3): each row has its own stream

`training` and `validation` open what --data names: one folder, or a mixture of several (T5, Raffel et al. 2020, section
3.5.2).
"""
import math, os

import numpy as np

from data import supervised, text

def mix(x):                                          # SplitMix64's output function (Steele et al. 2014), on uint64
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
    return x ^ (x >> np.uint64(31))

GOLDEN = np.uint64(0x9e3779b97f4a7c15)

def keyed(*parts):
    "numbers or arrays -> (n,) uint64 keys: a hash of all parts, so that streams with other keys are independent"
    key = np.zeros(1, np.uint64)
    for part in parts: key = mix((key ^ np.atleast_1d(np.asarray(part)).astype(np.uint64)) + GOLDEN)
    return key

class Random:
    "random numbers for each row that depend only on the row's key and the number of the call: SplitMix64 as a counter"
    def __init__(self, key): self.key, self.calls = key, 0
    def random(self, *shape):                        # (B, *shape) float64 in [0, 1)
        self.calls += 1
        start = mix(self.key ^ keyed(self.calls))[:, None]
        bits = mix(start + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * GOLDEN)
        return ((bits >> np.uint64(11)) * 2.0 ** -53).reshape(len(self.key), *shape)
    def integers(self, low, high, *shape):           # (B, *shape) int64 in [low, high)
        return low + (self.random(*shape) * (high - low)).astype(np.int64)

def permute(i, n, key):
    """Place i of a random order of 0..n-1, without making the order: a 4-round Feistel network over the next even
    power of two, walked until it falls below n (Black and Rogaway 2002). i: (B,) int64 -> (B,) int64."""
    half = max(1, (int(n - 1).bit_length() + 1) // 2)
    mask, out = np.uint64((1 << half) - 1), np.full(len(i), -1, np.int64)
    x, todo = i.astype(np.uint64), np.arange(len(i))
    while len(todo):
        left, right = x >> np.uint64(half), x & mask
        for r in range(4): left, right = right, left ^ (mix(right + mix(key + np.uint64(r))) & mask)
        x = left << np.uint64(half) | right
        done = x < n
        out[todo[done]] = x[done]
        x, todo = x[~done], todo[~done]
    return out

def tokens_in(row):
    "tokens of an encoded example: lists of one length stand beside each other (ids, segments, tags) and count once"
    lengths = {len(v) for v in row.values() if isinstance(v, list) and v and isinstance(v[0], int)}
    return sum(lengths) + sum(map(tokens_in, row.get('choices', ())))

class Corpus:
    """One split of a prepared folder. `rows(numbers)` gives the protocol's draw and rng for those rows; row `number` of
    the whole run is step * batch_size + place in the global batch, and fixes its window and all its random numbers."""
    def __init__(self, folder, meta, split, seed, shuffle=True, encode=None):
        """encode(example) -> list of dicts: how the model file sees an example, usually one row; called once each."""
        self.split, self.seed, self.shuffle, self.kind = split, seed, shuffle, meta['kind']
        self.tokens_per_row, self.length, self.overlap, self.items, self.examples = 0, 0, 0, [], []
        if self.kind == 'text': self.shards = text.tokens(folder, split)
        else:
            path, labels = os.path.join(folder, split + '.jsonl'), meta.get('labels')
            for number, row in text.read_jsonl(path):
                supervised.check_stored(row, self.kind, labels, path, number)
                self.examples.append(row)
            self.items = [dict(row, index=i) for i, example in enumerate(self.examples) for row in encode(example)]
            if not self.items: raise ValueError(f'{folder}/{split}.jsonl holds no examples')
            self.tokens_per_row = round(sum(map(tokens_in, self.items)) / len(self.items))

    def places(self, numbers, n, stream):
        "row numbers -> places in 0..n-1: each epoch goes through all of them, in an order of its own, and its key"
        epoch, place = np.divmod(numbers, n)
        if not self.shuffle: return place, np.zeros_like(epoch)
        for e in np.unique(epoch): place[epoch == e] = permute(place[epoch == e], n, keyed(self.seed, e, stream))
        return place, epoch

    def windows(self, length, overlap):
        "-> stride, windows of each shard. In training one fewer than fit: each epoch starts at an offset of its own"
        stride = length - overlap
        fit = np.array([max(0, (len(s) - overlap) // stride) for s in self.shards])
        if not fit.sum():
            raise ValueError(f'the {self.split} text has {max(map(len, self.shards))} tokens, '
                             f'one window takes {length}: lower --block_size or give more text')
        return stride, np.maximum(fit - 1, fit > 0) if self.shuffle else fit

    def __len__(self):                               # rows of an epoch, known once a row was drawn
        return len(self.items) or int(self.windows(self.length, self.overlap)[1].sum())

    def rows(self, numbers):
        numbers = np.asarray(numbers, dtype=np.int64)
        def draw(length, overlap=0, stream=0):
            stride, fit = self.windows(length, overlap)
            if not stream: self.length, self.overlap, self.tokens_per_row = length, overlap, stride
            ends = np.cumsum(fit)
            place, epoch = self.places(numbers, int(ends[-1]), stream)
            shard = np.searchsorted(ends, place, 'right')
            start = (place - ends[shard] + fit[shard]) * stride
            if self.shuffle:
                room = np.array([len(s) for s in self.shards])[shard] - overlap - fit[shard] * stride
                start += (keyed(self.seed, epoch, stream, 7)
                          % np.minimum(room + 1, stride).astype(np.uint64)).astype(np.int64)
            return np.stack([self.shards[s][a:a + length] for s, a in zip(shard, start)]).astype(np.int64)
        draw.examples = lambda: [self.items[i] for i in self.places(numbers, len(self.items), 0)[0]]
        return draw, Random(keyed(self.seed, 1 if self.shuffle else 2, numbers))

class Mixture:
    """Several corpora as one, with Corpus's `rows`. The share of a part follows its size, e examples (tokens of running
    text): r = min(e, cap)^(1 / temperature), over the sum of all (T5, 3.5.2). temperature 1: by size; a large one:
    equal shares.

    A period of 65,536 rows has so many rows of each part, spread evenly with some jitter; the next period goes on where
    this one ended. So each part goes through its epochs as it does alone, and nothing but the row's number is needed to
    know where."""
    period = 1 << 16

    def __init__(self, parts, seed, cap=0, temperature=1.0):
        if cap < 0: raise ValueError(f'--mix_cap={cap}: expected a number of examples, or 0 for none')
        if not temperature > 0: raise ValueError(f'--mix_temperature={temperature}: expected more than 0')
        self.parts, self.seed, self.kind, self.length, self.overlap = parts, seed, parts[0].kind, 0, 0
        self.items, self.examples = ([x for part in parts for x in xs(part)]
                                     for xs in (lambda p: p.items, lambda p: p.examples))
        sizes = np.array([len(p.examples) or sum(map(len, p.shards)) for p in parts], np.float64)
        share = np.minimum(sizes / sizes.max(), (cap or sizes.max()) / sizes.max()) ** (1 / temperature)
        share *= self.period / share.sum()
        self.counts = np.maximum(1, share.astype(np.int64))
        # largest remainders first
        self.counts[np.argsort(self.counts - share)[:max(0, self.period - self.counts.sum())]] += 1
        self.counts[self.counts.argmax()] += self.period - self.counts.sum()                # if some were raised to 1
        part = np.repeat(np.arange(len(parts)), self.counts)
        place = np.arange(self.period) - (np.cumsum(self.counts) - self.counts)[part]
        when = (place + Random(keyed(seed, 5, part, place)).random()) / self.counts[part]
        self.part, self.place = (x[np.argsort(when, kind='stable')] for x in (part, place))  # of each row of a period

    @property
    def tokens_per_row(self):                        # the mean; of running text known once a row was drawn
        rows = np.array([p.tokens_per_row for p in self.parts])
        return round(np.average(np.where(rows, rows, rows.max()), weights=self.counts))

    def __len__(self): return sum(map(len, self.parts))

    def owners(self, numbers):
        "row numbers -> (part, where its rows stand among these, their numbers in the part) for each part that has some"
        period, i = np.divmod(numbers, self.period)
        own = period * self.counts[self.part[i]] + self.place[i]
        return [(p, at, own[at]) for p in range(len(self.parts)) if len(at := np.flatnonzero(self.part[i] == p))]

    def places(self, numbers, n=0, stream=0):
        "row numbers -> places in self.items, and the parts' epochs: as Corpus has it"
        places, epochs = np.zeros((2, len(numbers)), np.int64)
        before = np.cumsum([0] + [len(part.items) for part in self.parts])
        for p, at, own in self.owners(numbers):
            places[at], epochs[at] = self.parts[p].places(own, len(self.parts[p].items), stream)
            places[at] += before[p]
        return places, epochs

    def rows(self, numbers):
        numbers = np.asarray(numbers, dtype=np.int64)
        draws = [(at, self.parts[p].rows(own)[0]) for p, at, own in self.owners(numbers)]
        def draw(length, overlap=0, stream=0):
            out = np.zeros((len(numbers), length), np.int64)
            for at, one in draws: out[at] = one(length, overlap, stream)
            return out
        draw.examples = lambda: [self.items[i] for i in self.places(numbers, 0, 0)[0]]
        return draw, Random(keyed(self.seed, 1, numbers))

def training(meta, seed, encode=None, cap=0, temperature=1.0):
    "what text.open_meta has opened -> Corpus, or Mixture"
    parts = [Corpus(m['folder'], m, 'train', seed, True, encode) for m in meta.get('parts', [meta])]
    return Mixture(parts, seed, cap, temperature) if 'parts' in meta else parts[0]

def validation(meta, seed, encode=None):
    """-> {title: (Corpus, its meta)}: a folder's own validation set has the title '', its further ones (MNLI's other
    genres) the name they have, and those of a mixture begin with the part's title."""
    sets = [('-'.join(filter(None, (m.get('title', ''), name))), m, '-'.join(filter(None, ('val', name))))
            for m in meta.get('parts', [meta]) for name in ('', *m.get('more_val', ()))]
    return {title: (Corpus(m['folder'], m, split, seed, False, encode), m) for title, m, split in sets}
