"""What predictions are worth: compute(metric, predictions, references) -> dict of numbers.

The main number comes first. The metrics are

    accuracy            the share of predictions that equal their reference
    f1                  two classes: F1 of the positive one (the last in `labels`), and accuracy;
                        more classes: mean F1
    matthews            correlation of true and predicted classes (Matthews 1975; more classes:
                        Gorodkin 2004), and accuracy
    pearson_spearman    the mean of both correlations, which GLUE reports for STS-B, and
                        each of them
    squad               F1 over words and exact match by SQuAD's rules: articles, punctuation and
                        case do not matter, the best of the given answers counts (Rajpurkar et al.
                        2016, section 6.1)
    tags                F1 of whole spans for B-/I- tags, as conlleval counts them, and accuracy of
                        the tags
    exact_match         share of equal texts, white space at the ends aside; and ROUGE-1, which sees
                        right words
    bleu                of the whole corpus, 0 to 100, with sacrebleu's defaults: its tokenizer 13a,
                        n-grams up to 4, case counts, no matches of an n smoothed exponentially
                        (Papineni et al. 2002; Post 2018, 1804.08771)
    rouge               mean F of ROUGE-1, ROUGE-2 and ROUGE-L, as rouge-score has them without its
                        stemmer (Lin 2004)

BLEU is from 0 to 100, as everybody writes it; all others are shares of 1. For texts (the last
three) a reference is a text or a list of texts: the best one counts, for BLEU as in its paper. A
further metric is a function (predictions, references, labels) -> dict in `metrics`.

    from data import metrics
    metrics.compute('f1', ['yes', 'no', 'yes'], ['yes', 'yes', 'no'], labels=['no', 'yes'])
    # {'f1': 0.5, 'accuracy': 0.33}

p: a prediction, r: its reference.
"""
import collections
import math
import re
import string

import numpy as np


# ----------------------------------------------------------------------------------------- classes

def accuracy(predictions, references, labels=None):
    """The share of predictions that equal their reference."""
    right = sum(p == r for p, r in zip(predictions, references))
    return {'accuracy': right / len(references)}


def f1(predictions, references, labels=None):
    """F1 = 2 TP / (2 TP + FP + FN) of the last of two classes, or the mean over more; accuracy."""
    names = labels or sorted({*references, *predictions}, key=lambda x: (str(type(x)), x))

    def f1_of(name):
        hits = sum(p == r == name for p, r in zip(predictions, references))
        return 2 * hits / max(1, predictions.count(name) + references.count(name))

    if len(names) <= 2:
        value = f1_of(names[-1])
    else:
        value = sum(map(f1_of, names)) / len(names)
    return {'f1': value, **accuracy(predictions, references)}


def matthews(predictions, references, labels=None):
    """The correlation of true and predicted classes, 0 where one of them has a single class."""
    names = dict.fromkeys([*references, *predictions])
    place = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(names), len(names)))          # rows: true, columns: predicted
    for p, r in zip(predictions, references):
        table[place[r], place[p]] += 1
    true = table.sum(1)
    predicted = table.sum(0)
    n = table.sum()
    below = math.sqrt((n * n - predicted @ predicted) * (n * n - true @ true))
    value = 0.0
    if below:
        value = (np.trace(table) * n - true @ predicted) / below
    return {'matthews': float(value), **accuracy(predictions, references)}


# ----------------------------------------------------------------------------------------- numbers

def number(x):
    """A prediction as a number. What a model has written instead of one is -1, as T5 counts it."""
    try:
        return float(x) if math.isfinite(float(x)) else -1.0
    except ValueError:
        return -1.0


def pearson(x, y):
    """Pearson's correlation, 0 if one of them does not vary."""
    x = np.asarray(x, np.float64) - np.mean(x)
    y = np.asarray(y, np.float64) - np.mean(y)
    below = math.sqrt((x @ x) * (y @ y))
    return float(x @ y / below) if below else 0.0


def ranks(x):
    """The ranks of values, 1 to n; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(np.asarray(x, np.float64), return_inverse=True,
                                   return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def correlations(predictions, references, labels=None):
    """Pearson's correlation, Spearman's (that of the ranks), and first the mean of both."""
    predictions = [number(p) for p in predictions]
    references = [number(r) for r in references]
    p = pearson(predictions, references)
    s = pearson(ranks(predictions), ranks(references))
    return {'pearson_spearman': (p + s) / 2, 'pearson': p, 'spearman': s}


# ---------------------------------------------------------------------------------- answers, SQuAD

def normalize(text):
    """A text in small letters, without punctuation and articles, with single spaces."""
    text = ''.join(c for c in text.lower() if c not in string.punctuation)
    return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def answers_of(reference):
    """The texts that are right; [''] if there is no answer.

    reference: {'text': [...]}, [{'text': ...}, ...] or a list of strings
    """
    if isinstance(reference, dict):
        reference = reference['text']
    texts = [a['text'] if isinstance(a, dict) else a for a in reference]
    return [text for text in texts if normalize(text)] or ['']


def word_f1(prediction, answer):
    """F1 over the words of two texts."""
    a = normalize(prediction).split()
    b = normalize(answer).split()
    if not a or not b:                  # SQuAD 2.0: right only if both say that there is no answer
        return float(a == b)
    same = (collections.Counter(a) & collections.Counter(b)).total()
    return 2 * same / (len(a) + len(b))


def exact(prediction, answer):
    """Whether two texts are the same by SQuAD's rules."""
    return normalize(prediction) == normalize(answer)


def squad(predictions, references, labels=None):
    """The mean F1 over words and the share of exact matches, each with the best answer."""
    def mean_of_best(score):
        best = [max(score(p, answer) for answer in answers_of(r))
                for p, r in zip(predictions, references)]
        return sum(best) / len(references)

    return {'f1': mean_of_best(word_f1), 'exact_match': mean_of_best(exact)}


# -------------------------------------------------------------------------------------------- tags

def spans_of(tags):
    """Tags such as B-PER I-PER O -> {(type, first, last)}. An I with no span before begins one."""
    spans = set()
    start = 0
    kind = None                         # type of the span at hand
    for i, tag in enumerate([*tags, 'O']):
        prefix, _, type = str(tag).partition('-')
        if kind is not None and (prefix != 'I' or type != kind):
            spans.add((kind, start, i - 1))
            kind = None
        if kind is None and prefix in ('B', 'I'):
            start = i
            kind = type
    return spans


def tags(predictions, references, labels=None):
    """F1, precision and recall of whole spans, and accuracy of the tags.

    For tags without B-, such as parts of speech, it is accuracy alone.
    """
    true_tags = [tag for r in references for tag in r]
    flat = accuracy([tag for p in predictions for tag in p], true_tags)
    if not any(str(tag).startswith('B-') for tag in true_tags):
        return flat
    hits = 0
    predicted = 0
    true = 0
    for p, r in zip(predictions, references):
        p_spans = spans_of(p)
        r_spans = spans_of(r)
        hits += len(p_spans & r_spans)
        predicted += len(p_spans)
        true += len(r_spans)
    return {'f1': 2 * hits / max(1, predicted + true), 'precision': hits / max(1, predicted),
            'recall': hits / max(1, true), **flat}


# ------------------------------------------------------------------------------------------- texts

def texts_of(reference):
    """The texts that are right, a list."""
    return [reference] if isinstance(reference, str) else list(reference)


def ngrams(words, n):
    """The n-grams of a list of words, counted."""
    return collections.Counter(zip(*(words[i:] for i in range(n))))


def exact_match(predictions, references, labels=None):
    """The share of predictions that are one of the right texts, and ROUGE-1."""
    same = sum(p.strip() in [text.strip() for text in texts_of(r)]
               for p, r in zip(predictions, references))
    return {'exact_match': same / len(references),
            'rouge1': rouge(predictions, references)['rouge1']}


def words_13a(text):
    """The words of a text by mteval's tokenizer 13a, which is sacrebleu's.

    ASCII punctuation stands alone; but ' always stays in a word, . and , in numbers, and - after
    letters.
    """
    text = text.rstrip().replace('<skipped>', '').replace('-\n', '').replace('\n', ' ')
    for entity, character in (('&quot;', '"'), ('&amp;', '&'), ('&lt;', '<'), ('&gt;', '>')):
        text = text.replace(entity, character)
    text = re.sub(r'([ !-&(-+/:-@\[-`{-~])', r' \1 ', f' {text} ')
    text = re.sub(r'([^0-9])([.,])', r'\1 \2 ', text)
    text = re.sub(r'([.,])([^0-9])', r' \1 \2', text)
    return re.sub(r'([0-9])(-)', r'\1 \2 ', text).split()


def bleu(predictions, references, labels=None):
    """BLEU of the whole corpus, 0 to 100: geometric mean of n-gram precisions, brevity penalty."""
    hits = np.zeros(4, int)             # for n = 1 to 4
    totals = np.zeros(4, int)
    length = 0                          # words predicted, and those of the references
    target = 0
    for p, r in zip(predictions, references):
        p = words_13a(p)
        r = [words_13a(text) for text in texts_of(r)]
        length += len(p)
        target += min(map(len, r), key=lambda n: (abs(n - len(p)), n))      # the nearest in length
        for n in range(4):
            have = ngrams(p, n + 1)
            most = collections.Counter()
            for text in r:
                most |= ngrams(text, n + 1)
            hits[n] += (have & most).total()
            totals[n] += have.total()
    if not hits.any() or not totals.all():
        return {'bleu': 0.0}
    missed = np.cumsum(hits == 0)       # the first n without a match counts 1/2 match, the next 1/4
    logs = np.log(np.where(hits, hits, 0.5 ** missed) / totals)
    penalty = min(0, 1 - target / length)
    return {'bleu': 100 * math.exp(penalty + logs.mean())}


def common(a, b):
    """The length of the longest common subsequence.

    Row by row of the usual table, with the steps of a row as the bits of a number (Hyyro 2004).
    """
    all_bits = (1 << len(a)) - 1
    places = collections.defaultdict(int)
    for i, x in enumerate(a):
        places[x] |= 1 << i
    steps = all_bits
    for x in b:
        here = steps & places[x]
        steps = (steps + here | steps - here) & all_bits
    return len(a) - steps.bit_count()


def rouge_f(a, b):
    """F of ROUGE-1, ROUGE-2 and ROUGE-L of two lists of words.

    F = 2 PR / (P + R) = 2 hits / (n-grams of both)
    """
    def f(hits, n):
        sizes = max(0, len(a) - n + 1) + max(0, len(b) - n + 1)
        return 2 * hits / max(1, sizes)

    same = [(ngrams(a, n) & ngrams(b, n)).total() for n in (1, 2)]
    return [f(same[0], 1), f(same[1], 2), f(common(a, b), 1)]


def rouge(predictions, references, labels=None):
    """Mean F of ROUGE-1, ROUGE-2 and ROUGE-L, each with the best reference."""
    def words(text):
        return re.findall('[a-z0-9]+', text.lower())

    best = []
    for p, r in zip(predictions, references):
        scores = [rouge_f(words(p), words(text)) for text in texts_of(r)]
        best.append(np.max(scores, axis=0))
    return dict(zip(('rouge1', 'rouge2', 'rougeL'), np.mean(best, axis=0).tolist()))


metrics = dict(accuracy=accuracy, f1=f1, matthews=matthews, pearson_spearman=correlations,
               pearson=correlations, squad=squad, tags=tags, exact_match=exact_match, bleu=bleu,
               rouge=rouge)


def compute(metric, predictions, references, labels=None):
    """The dict of a metric, main number first.

    labels: the names of the classes, in order, for classes (or lists of tags) that come as numbers
    Raises ValueError if the metric is not known or the two lists differ in length.
    """
    if metric not in metrics:
        raise ValueError(f'metric {metric!r}: expected one of {", ".join(metrics)}')
    predictions = list(predictions)
    references = list(references)
    if len(predictions) != len(references) or not references:
        raise ValueError(f'{len(predictions)} predictions for {len(references)} references: '
                         'expected the same number of both, and at least one')

    def name(x):
        if isinstance(x, list):
            return [name(y) for y in x]
        if isinstance(x, str):
            return x.strip()
        return labels[x] if labels else x

    if metric in ('accuracy', 'f1', 'matthews', 'tags'):
        predictions = name(predictions)
        references = name(references)
    return metrics[metric](predictions, references, labels)
