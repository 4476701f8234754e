"""What predictions are worth: compute(metric, predictions, references) -> dict of numbers, the main one first.

    accuracy            share of equal pairs
    f1                  two classes: F1 of the positive one (the last in `labels`), and accuracy; more classes: mean F1
    matthews            correlation of true and predicted classes (Matthews 1975; more classes: Gorodkin 2004), accuracy
    pearson_spearman    the mean of both correlations, which GLUE reports for STS-B, and each of them
    squad               F1 over words and exact match by SQuAD's rules: articles, punctuation and case do not matter,
                        the best of the given answers counts (Rajpurkar et al. 2016, section 6.1)
    tags                F1 of whole spans for B-/I- tags, as conlleval counts them, and accuracy of the tags
    exact_match         share of equal texts, white space at the ends aside; and ROUGE-1, which sees right words
    bleu                of the whole corpus, 0 to 100, with sacrebleu's defaults: its tokenizer 13a, n-grams up to 4,
                        case counts, no matches of an n smoothed exponentially (Papineni et al. 2002; Post 2018,
                        1804.08771)
    rouge               mean F of ROUGE-1, ROUGE-2 and ROUGE-L, as rouge-score has them without its stemmer (Lin 2004)

BLEU is from 0 to 100, as everybody writes it; all others are shares of 1. For texts (the last three) a reference is a
text or a list of texts: the best one counts, for BLEU as in its paper. A further metric is a function (predictions,
references, labels) -> dict in `metrics`.

    from data import metrics
    metrics.compute('f1', ['yes', 'no', 'yes'], ['yes', 'yes', 'no'], labels=['no', 'yes'])
    # {'f1': 0.5, 'accuracy': 0.33}
"""
import collections, math, re, string

import numpy as np


def accuracy(predictions, references, labels=None):
    return {'accuracy': sum(p == r for p, r in zip(predictions, references)) / len(references)}


def f1(predictions, references, labels=None):
    names = labels or sorted({*references, *predictions}, key=lambda x: (str(type(x)), x))
    def of(name):
        hit = sum(p == r == name for p, r in zip(predictions, references))
        return 2 * hit / max(1, predictions.count(name) + references.count(name))            # 2 TP / (2 TP + FP + FN)
    value = of(names[-1]) if len(names) <= 2 else sum(map(of, names)) / len(names)
    return {'f1': value, **accuracy(predictions, references)}


def matthews(predictions, references, labels=None):
    names = {n: i for i, n in enumerate(dict.fromkeys([*references, *predictions]))}
    table = np.zeros((len(names), len(names)))           # rows: true, columns: predicted
    for p, r in zip(predictions, references): table[names[r], names[p]] += 1
    true, guessed, n = table.sum(1), table.sum(0), table.sum()
    below = math.sqrt((n * n - guessed @ guessed) * (n * n - true @ true))
    value = (np.trace(table) * n - true @ guessed) / below if below else 0.0              # a single class tells nothing
    return {'matthews': float(value), **accuracy(predictions, references)}


def number(x):
    "what a text-to-text model has written instead of a number counts as -1, as in T5's evaluation"
    try: return float(x) if math.isfinite(float(x)) else -1.0
    except ValueError: return -1.0


def pearson(x, y):
    x, y = (np.asarray(v, np.float64) - np.mean(v) for v in (x, y))
    below = math.sqrt((x @ x) * (y @ y))
    return float(x @ y / below) if below else 0.0


def ranks(x):
    "1 .. n, equal values share the mean of their ranks"
    _, inverse, counts = np.unique(np.asarray(x, np.float64), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def correlations(predictions, references, labels=None):
    predictions, references = ([*map(number, values)] for values in (predictions, references))
    p, s = pearson(predictions, references), pearson(ranks(predictions), ranks(references))
    return {'pearson_spearman': (p + s) / 2, 'pearson': p, 'spearman': s}


def normalize(text):
    "SQuAD's: lower case, then no punctuation, no articles, single spaces"
    text = ''.join(c for c in text.lower() if c not in string.punctuation)
    return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def answers_of(reference):
    "the texts of {'text': [...]}, of [{'text': ...}, ...] or of a list of strings; without any there is one: nothing"
    if isinstance(reference, dict): reference = reference['text']
    texts = [a['text'] if isinstance(a, dict) else a for a in reference]
    return [t for t in texts if normalize(t)] or ['']


def word_f1(prediction, answer):
    a, b = normalize(prediction).split(), normalize(answer).split()
    if not a or not b: return float(a == b)              # SQuAD 2.0: right only if both say that there is no answer
    same = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * same / (len(a) + len(b))


def squad(predictions, references, labels=None):
    best = lambda score: (sum(max(score(p, a) for a in answers_of(r)) for p, r in zip(predictions, references))
                          / len(references))
    return {'f1': best(word_f1), 'exact_match': best(lambda p, a: normalize(p) == normalize(a))}


def spans_of(tags):
    "tags such as B-PER I-PER O -> {(type, first, last)}; an I that continues nothing begins a span"
    spans, start, kind = set(), 0, None
    for i, tag in enumerate([*tags, 'O']):
        prefix, _, type = str(tag).partition('-')
        if kind is not None and (prefix != 'I' or type != kind):
            spans.add((kind, start, i - 1))
            kind = None
        if kind is None and prefix in ('B', 'I'): start, kind = i, type
    return spans


def tags(predictions, references, labels=None):
    flat = accuracy([t for p in predictions for t in p], [t for r in references for t in r])
    if not any(str(t).startswith('B-') for r in references for t in r): return flat          # parts of speech, say
    pairs = [(spans_of(p), spans_of(r)) for p, r in zip(predictions, references)]
    hit, guessed, true = sum(len(p & r) for p, r in pairs), sum(len(p) for p, _ in pairs), sum(len(r) for _, r in pairs)
    return {'f1': 2 * hit / max(1, guessed + true), 'precision': hit / max(1, guessed), 'recall': hit / max(1, true),
            **flat}


def texts_of(reference):
    return [reference] if isinstance(reference, str) else list(reference)


def ngrams(words, n):
    return collections.Counter(zip(*(words[i:] for i in range(n))))


def exact_match(predictions, references, labels=None):
    same = sum(p.strip() in [t.strip() for t in texts_of(r)] for p, r in zip(predictions, references))
    return {'exact_match': same / len(references), 'rouge1': rouge(predictions, references)['rouge1']}


def words_13a(text):
    "mteval's tokenizer 13a, sacrebleu's: ASCII punctuation stands alone, but ' always, . , in numbers, - after letters"
    text = text.rstrip().replace('<skipped>', '').replace('-\n', '').replace('\n', ' ')
    for entity, character in (('&quot;', '"'), ('&amp;', '&'), ('&lt;', '<'), ('&gt;', '>')):
        text = text.replace(entity, character)
    text = re.sub(r'([ !-&(-+/:-@\[-`{-~])', r' \1 ', f' {text} ')
    text = re.sub(r'([.,])([^0-9])', r' \1 \2', re.sub(r'([^0-9])([.,])', r'\1 \2 ', text))
    return re.sub(r'([0-9])(-)', r'\1 \2 ', text).split()


def bleu(predictions, references, labels=None):
    hits, totals, length, target = np.zeros(4, int), np.zeros(4, int), 0, 0
    for p, r in zip(predictions, references):
        p, r = words_13a(p), [*map(words_13a, texts_of(r))]
        length += len(p)
        target += min((len(t) for t in r), key=lambda n: (abs(n - len(p)), n))         # the reference nearest in length
        for n in range(4):
            have, most = ngrams(p, n + 1), collections.Counter()
            for t in r: most |= ngrams(t, n + 1)
            hits[n] += sum((have & most).values())
            totals[n] += sum(have.values())
    if not hits.any() or not totals.all(): return {'bleu': 0.0}
    missed = np.cumsum(hits == 0)                        # the first n without a match counts 1/2 match, the next 1/4
    logs = np.log(np.where(hits, hits, 0.5 ** missed) / totals)
    return {'bleu': 100 * math.exp(min(0, 1 - target / length) + logs.mean())}             # brevity penalty e^(1 - r/c)


def common(a, b):
    "length of the longest common subsequence; row by row, the steps of a row as the bits of a number (Hyyro 2004)"
    places, steps = collections.defaultdict(int), (1 << len(a)) - 1
    for i, x in enumerate(a): places[x] |= 1 << i
    for x in b:
        here = steps & places[x]
        steps = (steps + here | steps - here) & (1 << len(a)) - 1
    return len(a) - bin(steps).count('1')


def rouge(predictions, references, labels=None):
    words = lambda text: re.findall('[a-z0-9]+', text.lower())
    def scores(a, b):                                    # F = 2 PR / (P + R) = 2 hits / (n-grams of both)
        hits = *((ngrams(a, n) & ngrams(b, n)).total() for n in (1, 2)), common(a, b)
        return [2 * h / max(1, max(0, len(a) - less) + max(0, len(b) - less)) for h, less in zip(hits, (0, 1, 0))]
    best = [np.max([scores(words(p), words(t)) for t in texts_of(r)], axis=0) for p, r in zip(predictions, references)]
    return dict(zip(('rouge1', 'rouge2', 'rougeL'), np.mean(best, axis=0).tolist()))


metrics = dict(accuracy=accuracy, f1=f1, matthews=matthews, pearson_spearman=correlations, pearson=correlations,
               squad=squad, tags=tags, exact_match=exact_match, bleu=bleu, rouge=rouge)


def compute(metric, predictions, references, labels=None):
    """The dict of a metric, main number first. labels: the names of the classes, in order, for classes (or lists of
    tags) that come as numbers. Raises ValueError if the metric is not known or the two lists differ in length."""
    if metric not in metrics: raise ValueError(f'metric {metric!r}: expected one of {", ".join(metrics)}')
    predictions, references = list(predictions), list(references)
    if len(predictions) != len(references) or not references:
        raise ValueError(f'{len(predictions)} predictions for {len(references)} references: '
                         'expected as many, and at least one')
    if metric in ('accuracy', 'f1', 'matthews', 'tags'):
        name = lambda x: ([*map(name, x)] if isinstance(x, list) else x.strip() if isinstance(x, str)
                          else labels[x] if labels else x)
        predictions, references = name(predictions), name(references)
    return metrics[metric](predictions, references, labels)
