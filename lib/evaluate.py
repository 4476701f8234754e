"""Evaluation on fixed sets of validation rows, the same for every batch size and number of
ranks."""
import math
import statistics

import numpy as np
import torch
import torch.distributed as dist

from data import metrics
from lib.models import rows_of

# what a prediction is held against, by the kind of data
TRUTH = dict(labelled='label', choice='label', tagged='tags', qa='answers', pairs='target',
             instruct='response')
MOST_NATS = 700     # exp() of more is no float


class Evaluation:
    """One validation set. The ranks share its micro-batches.

    After a call, `goal` is the metric that tells the best checkpoint, `higher_is_better` says which
    way, and `predictions` has a dict for each example of labelled data.
    """

    def __init__(self, feed, micro_batch_size, limit, meta, rank, world_size):
        """limit: how many rows of the set are used at most; 0 means all."""
        self.feed = feed
        self.micro_batch_size = micro_batch_size
        self.world_size = world_size
        self.tokenizer = feed.tokenizer
        self.metric = meta.get('metric', '')
        self.labels = meta.get('labels')
        self.goal = 'val_loss'
        self.higher_is_better = False
        self.predictions = []

        corpus = feed.corpus
        # one row: the corpus learns the length of its windows
        n_totals = len(feed.count(*feed.find_length()))
        n = min(len(corpus), limit or len(corpus))
        rows = np.arange(n)
        # some of the examples: spread, for files lie sorted by class
        if corpus.items:
            rows = feed.by_length(rows * len(corpus) // n)
            self.examples = sorted({corpus.items[row]['index'] for row in rows})
        self.chunks = [rows[at:at + micro_batch_size] for at in range(0, n, micro_batch_size)]
        self.mine = self.chunks[rank::world_size]
        truth = TRUTH.get(corpus.kind)
        self.truth = [example.get('references') or example.get(truth)
                      for example in corpus.examples]
        self.totals, self.bytes = self.count(n_totals)

    def count(self, n_totals):
        """-> the numbers of targets in the whole set, on the device, and of the bytes that they
        spell, or 0."""
        sums = np.zeros(n_totals + 1)
        for chunk in self.mine:
            arrays = self.feed.arrays(chunk)
            sums[:-1] += self.feed.count(*arrays)
            if self.tokenizer and getattr(self.feed.file, 'likelihood', False):
                targets = arrays[-1][arrays[-1] >= 0]
                if len(targets):
                    sums[-1] += self.tokenizer.byte_lengths[targets].sum()
        sums = torch.from_numpy(sums)
        if self.world_size > 1:
            dist.all_reduce(sums)
        return sums[:-1].float().to(self.feed.device), sums[-1].item()

    def sample(self):
        """What the end of a run shows: the ids (T,) of the first window, or a list of two
        examples."""
        corpus = self.feed.corpus
        draw, _ = corpus.rows(np.arange(min(2, len(corpus.items)) or 1))
        if corpus.length:
            return draw(corpus.length, corpus.overlap)[0]
        return draw.examples()

    @torch.no_grad()
    def __call__(self, net):
        """-> metrics: val_loss, val_ppl, val_bpb, the model's own stats, and of labelled data the
        task's metrics."""
        net.model.eval()
        total = 0
        names = []
        found = []
        # all ranks as often: they gather
        rounds = math.ceil(len(self.chunks) / self.world_size)
        for i in range(rounds):
            own = i < len(self.mine)
            chunk = self.mine[i] if own else self.chunks[0]
            loss, stats, predictions = self.evaluate_chunk(net, chunk)
            names = sorted(stats)
            sums = torch.stack([loss.double(), *(stats[name].double() for name in names)])
            total = total + sums * own
            found += predictions if own else []
        net.model.train()
        total = total.cpu()
        if self.world_size > 1:
            dist.all_reduce(total)
            parts = [None] * self.world_size
            dist.all_gather_object(parts, found)
            found = [prediction for part in parts for prediction in part]
        loss, *stats = total.tolist()
        row = self.loss_metrics(loss)
        for name, value in self.feed.summary(dict(zip(names, stats))).items():
            row['val_' + name] = value
        if found and self.metric in metrics.metrics:
            row |= self.task_metrics(found)
        return row

    def evaluate_chunk(self, net, chunk):
        """-> loss, stats, predictions of one micro-batch."""
        items = self.feed.corpus.items
        arrays = self.feed.send(self.feed.arrays(chunk))
        predictions = []
        with net.autocast():
            full_size = len(chunk) == self.micro_batch_size
            loss, stats = net.evaluate(arrays, self.totals, full_size)
            if items:
                rows = [items[row] for row in chunk]
                predict = rows_of(self.feed.file, self.feed.corpus.kind).predict
                # predict() calls more of the model than forward()
                with net.whole_weights():
                    predictions = predict(net.model, arrays, rows, self.tokenizer)
        return loss, stats, predictions

    def loss_metrics(self, loss):
        """What follows from the loss: perplexity where it is the mean of one loss, bits per byte
        where it is the text's."""
        row = dict(val_loss=loss)
        if len(self.totals) == 1:
            row['val_ppl'] = math.exp(min(loss, MOST_NATS))
        if self.bytes:
            row['val_bpb'] = loss * self.totals[0].item() / math.log(2) / self.bytes
        return row

    def task_metrics(self, found):
        """The metrics of a task from the predictions of all rows. Of several rows of one example
        (windows of a long text) the one with the best score counts."""
        best = {}
        for prediction in found:
            index = prediction['index']
            best[index] = max(best.get(index, prediction), prediction,
                              key=lambda p: p.get('score', 0))
        order = sorted(best)
        self.predictions = [best[index] for index in order]
        answers = [prediction['prediction'] for prediction in self.predictions]
        truth = [self.truth[index] for index in order]
        scores = metrics.compute(self.metric, answers, truth, self.labels)
        self.goal = 'val_' + next(iter(scores))
        self.higher_is_better = True
        return {'val_' + name: value for name, value in scores.items()}


class Evaluations:
    """Several validation sets: the numbers of each bear its title. A folder's own set has none and
    tells the best checkpoint; of a mixture the means do, of the losses and of each part's main
    metric (BLEU as a share of 1)."""

    def __init__(self, sets):
        """sets: {title: Evaluation}."""
        self.sets = sets
        self.first = next(iter(sets.values()))
        self.predictions = []
        self.goal = 'val_loss'
        self.higher_is_better = False
        self.totals = self.first.totals
        self.sample = self.first.sample

    def best(self, score):
        """-> the name and the value of the best checkpoint's metric. score: as score() gave it."""
        if self.higher_is_better:
            return 'best_' + self.goal.removeprefix('val_'), score
        return 'best_val_loss', -score

    def score(self, row):
        """What tells the best checkpoint: more is better."""
        return row[self.goal] if self.higher_is_better else -row[self.goal]

    def __call__(self, net):
        found = {}
        row = {}
        self.predictions = []
        for title, evaluation in self.sets.items():
            found[title] = evaluation(net)
            ending = '_' + title if title else ''
            for name, value in found[title].items():
                if not title or name != 'val_ppl':
                    row[name + ending] = value
            for prediction in evaluation.predictions:
                self.predictions.append({**prediction, **(dict(data=title) if title else {})})
        if '' in self.sets:
            self.goal = self.sets[''].goal
            self.higher_is_better = self.sets[''].higher_is_better
            return row
        return {**self.means(found), **row}

    def means(self, found):
        """The means over the parts of a mixture. found: {title: metrics}."""
        def mean(values):
            return sum(values) / len(found)

        row = dict(val_loss=mean([metrics['val_loss'] for metrics in found.values()]))
        if all(evaluation.higher_is_better for evaluation in self.sets.values()):
            self.goal = 'val_score'
            self.higher_is_better = True
            scores = []
            for title, evaluation in self.sets.items():
                unit = 100 if evaluation.goal == 'val_bleu' else 1
                scores.append(found[title][evaluation.goal] / unit)
            row = dict(val_score=mean(scores), **row)
        return row

    def majority_baseline(self, examples, meta):
        """What the commonest class of the training examples would score -> the class, {metric:
        value}; or None, {} where there are no classes."""
        if meta['kind'] != 'labelled' or not meta['labels'] or not meta['metric']:
            return None, {}
        common = statistics.mode(example['label'] for example in examples)
        truth = [self.first.truth[index] for index in self.first.examples]
        return common, metrics.compute(meta['metric'], [common] * len(truth), truth, meta['labels'])
