"""Evaluation on fixed sets of validation rows."""
import math

import numpy as np
import torch
import torch.distributed as dist

from data import metrics
from lib import models


# what a prediction is held against, by the kind of data
TRUTH = dict(labelled='label', choice='label', tagged='tags', qa='answers', pairs='target', instruct='response')


class Evaluation:
    "a fixed set of validation rows, the same for every batch size and number of ranks, shared out in micro-batches"
    def __init__(self, feed, micro, limit, tokenizer, meta, rank, world):
        self.feed, self.micro, self.world, self.tokenizer, self.predictions = feed, micro, world, tokenizer, []
        self.metric, self.labels = meta.get('metric', ''), meta.get('labels')
        counts = len(feed.count(*feed.arrays([0])))  # one row: learns the length of the windows
        n = min(len(feed.corpus), limit or len(feed.corpus))
        rows = np.arange(n)
        if feed.corpus.items:                        # some of the examples: spread, for files lie sorted by class
            rows = feed.by_length(rows * len(feed.corpus) // n)
            self.examples = sorted({feed.corpus.items[i]['index'] for i in rows})
        self.chunks = [rows[a:a + micro] for a in range(0, n, micro)]
        self.mine = self.chunks[rank::world]
        sums = np.zeros(counts + 1)
        for arrays in map(feed.arrays, self.mine):   # the numbers of targets, and of the bytes that they spell
            targets = arrays[-1][arrays[-1] >= 0] if tokenizer and getattr(feed.file, 'likelihood', False) else []
            sums += [*feed.count(*arrays), tokenizer.byte_lengths[targets].sum() if len(targets) else 0]
        sums = torch.from_numpy(sums)
        if world > 1: dist.all_reduce(sums)
        self.totals, self.bytes = sums[:-1].float().to(feed.device), sums[-1].item()
        self.goal, self.sign = 'val_loss', -1        # what tells the best checkpoint, and whether more of it is better
        self.truth = [e.get('references') or e.get(TRUTH[feed.corpus.kind]) for e in feed.corpus.examples]

    def sample(self):                                # (T,) token ids of the first window, or a list of examples
        corpus = self.feed.corpus
        draw, _ = corpus.rows(np.arange(min(2, len(corpus.items)) or 1))
        return draw(corpus.length, corpus.overlap)[0] if corpus.length else draw.examples()

    @torch.no_grad()
    def __call__(self, net, model, autocast):
        "-> metrics. Of labelled data also the task's own, from self.predictions"
        model.eval()
        total, names, found, items = 0, [], [], self.feed.corpus.items
        shards = [m for m in model.modules() if hasattr(m, 'unshard') and items]    # whole in predict(), which calls
        for i in range(-(-len(self.chunks) // self.world)):    # more than forward(). All ranks as often: they gather
            own = i < len(self.mine)
            chunk = self.mine[i] if own else self.chunks[0]
            arrays = self.feed.send(self.feed.arrays(chunk))
            with autocast():
                loss, stats = (net if len(chunk) == self.micro else model)(*arrays, totals=self.totals)
                examples = [items[j] for j in chunk] if items else []
                for m in shards: m.set_reshard_after_forward(False, recurse=False); m.unshard()
                rows = models.rows_of(self.feed.file, self.feed.corpus.kind).predict(
                    model, arrays, examples, self.tokenizer) if items else []
                for m in shards: m.reshard(); m.set_reshard_after_forward(m is not model, recurse=False)
            names = sorted(stats)
            total = total + torch.stack([loss.double(), *(stats[k].double() for k in names)]) * own
            found += rows if own else []
        model.train()
        total = total.cpu()
        if self.world > 1:
            dist.all_reduce(total)
            dist.all_gather_object(parts := [None] * self.world, found)
            found = [p for part in parts for p in part]
        row = dict(val_loss=total[0].item())
        if len(self.totals) == 1: row['val_ppl'] = math.exp(min(row['val_loss'], 700))         # the mean of one loss
        if self.bytes: row['val_bpb'] = row['val_loss'] * self.totals[0].item() / math.log(2) / self.bytes
        row |= {'val_' + k: v for k, v in self.feed.summary(dict(zip(names, total[1:].tolist()))).items()}
        if found and self.metric in metrics.metrics:
            best = {}                                # of several rows of one example (windows of a long text)
            for p in found: best[p['index']] = max(best.get(p['index'], p), p, key=lambda p: p.get('score', 0))
            self.predictions, truth = [best[i] for i in sorted(best)], [self.truth[i] for i in sorted(best)]
            scores = metrics.compute(self.metric, [p['prediction'] for p in self.predictions], truth, self.labels)
            row |= {'val_' + k: v for k, v in scores.items()}
            self.goal, self.sign = 'val_' + next(iter(scores)), 1
        return row


class Evaluations:
    """Several validation sets: each one's numbers bear its title. A folder's own set has none and tells the best
    checkpoint; of a mixture the means do, of the losses and of each part's main metric (BLEU as a share of 1)."""
    def __init__(self, sets):
        self.sets, first, self.predictions, self.goal, self.sign = sets, next(iter(sets.values())), [], 'val_loss', -1
        self.totals, self.sample = first.totals, first.sample
        if first.feed.corpus.items: self.truth, self.examples = first.truth, first.examples

    def __call__(self, *args):
        found, row, own, self.predictions = {}, {}, self.sets.get(''), []
        for title, evaluation in self.sets.items():
            found[title] = evaluation(*args)
            end, data = ('_' + title, dict(data=title)) if title else ('', {})
            row |= {k + end: v for k, v in found[title].items() if not title or k != 'val_ppl'}
            self.predictions += [{**p, **data} for p in evaluation.predictions]
        if own: self.goal, self.sign = own.goal, own.sign
        else:
            mean = lambda values: sum(values) / len(found)
            row = dict(val_loss=mean(r['val_loss'] for r in found.values()), **row)
            if all(e.sign > 0 for e in self.sets.values()):
                self.goal, self.sign = 'val_score', 1
                scores = [found[t][e.goal] / (100 if e.goal == 'val_bleu' else 1) for t, e in self.sets.items()]
                row = dict(val_score=mean(scores), **row)
        return row
