"""data/metrics.py against scikit-learn, scipy and SQuAD's published rules; data/glue.py and data/squad.py on files in their layouts."""
import gzip, json

import numpy as np
import pytest

from data import glue, metrics, rows as rows_of, squad, text

skm, stats = pytest.importorskip('sklearn.metrics'), pytest.importorskip('scipy.stats')


@pytest.mark.parametrize('n_classes', [2, 3, 5])
def test_classes_as_in_sklearn(n_classes):
    rng = np.random.default_rng(n_classes)
    names = [f'c{i}' for i in range(n_classes)]
    for n in (1, 7, 99):
        r = [names[i] for i in rng.integers(0, n_classes, n)]
        p = [x if rng.random() < 0.5 else names[rng.integers(0, n_classes)] for x in r]
        assert metrics.compute('accuracy', p, r)['accuracy'] == pytest.approx(skm.accuracy_score(r, p))
        assert metrics.compute('matthews', p, r)['matthews'] == pytest.approx(skm.matthews_corrcoef(r, p))
        want = skm.f1_score(r, p, pos_label=names[-1], zero_division=0) if n_classes == 2 and len({*r, *p}) == 2 else None
        if n_classes > 2: want = skm.f1_score(r, p, labels=names, average='macro', zero_division=0)
        if want is not None: assert metrics.compute('f1', p, r, names)['f1'] == pytest.approx(want)


def test_correlations_as_in_scipy():
    rng = np.random.default_rng(0)
    for n in (3, 13, 99):
        x = rng.standard_normal(n)
        y = np.round(x + rng.standard_normal(n), 0)                        # with ties
        got = metrics.compute('pearson_spearman', x, y)
        assert got['pearson'] == pytest.approx(stats.pearsonr(x, y)[0]) and got['spearman'] == pytest.approx(stats.spearmanr(x, y)[0])
        assert list(got)[0] == 'pearson_spearman' and got['pearson_spearman'] == pytest.approx((got['pearson'] + got['spearman']) / 2)
    assert metrics.compute('pearson_spearman', [1.0, 1.0], [0.0, 2.0])['pearson'] == 0.0     # nothing varies: no correlation


def test_squad_rules():
    score = lambda p, *answers: metrics.compute('squad', [p], [[{'text': a, 'answer_start': 0} for a in answers]])
    assert score('The Denver Broncos!', 'denver broncos') == {'f1': 1.0, 'exact_match': 1.0}   # case, article, punctuation
    assert score('a an the', '') == {'f1': 1.0, 'exact_match': 1.0}
    assert score('in 1973', '1973')['f1'] == pytest.approx(2 / 3) and score('in 1973', '1973')['exact_match'] == 0
    assert score('new new york', 'new york')['f1'] == pytest.approx(2 * 2 / (3 + 2))         # a word counts as often as it stands in both
    assert score('york', 'boston', 'new york')['f1'] == pytest.approx(2 / 3)                 # the best of the answers
    assert score("don't", 'dont')['exact_match'] == 1 and score('theater', 'ater')['exact_match'] == 0   # whole articles only
    assert score('', )['f1'] == 1 and score('something')['f1'] == 0 and score('', 'something')['f1'] == 0  # SQuAD 2.0
    both = metrics.compute('squad', ['x', 'y'], [{'text': ['x'], 'answer_start': [0]}, ['z']])
    assert both == {'f1': 0.5, 'exact_match': 0.5}


def test_tags():
    true = 'B-PER I-PER O B-LOC B-LOC I-LOC O I-ORG'.split()
    assert metrics.spans_of(true) == {('PER', 0, 1), ('LOC', 3, 3), ('LOC', 4, 5), ('ORG', 7, 7)}
    assert metrics.spans_of('I-PER I-LOC B-LOC'.split()) == {('PER', 0, 0), ('LOC', 1, 1), ('LOC', 2, 2)}
    got = metrics.compute('tags', ['B-PER I-PER O B-LOC I-LOC I-LOC O O'.split()], [true])
    assert got['precision'] == 1 / 2 and got['recall'] == 1 / 4 and got['f1'] == pytest.approx(1 / 3) and got['accuracy'] == 6 / 8
    assert metrics.compute('tags', [['NN', 'VB']], [['NN', 'NN']]) == {'accuracy': 0.5}


WORDS = ['the', 'The', 'cat', 'cat.', "don't", '1,000.5', 'a-b', '3-4', '...', '.5', '-', '&amp;', '&lt;x&gt;', '<skipped>', '"So,"', 'naïve', 'İstanbul',
         '日本', '日本語。', '🙂', 'x_y', '$5.00', '(f(x))', '\u00a0', 'e\u0301', '\t', '\n', '-\n', "'", ',', '2.', 'A', 'Straße', '\x1f', '½', '٣.٤']


def texts(rng, n, most=25):
    """Pairs of texts that have much or little in common, some empty"""
    for i in range(n):
        a = [WORDS[j] for j in rng.integers(0, len(WORDS), rng.integers(0, most))]
        b = [w for w in a if rng.random() < 0.8] if i % 3 else [WORDS[j] for j in rng.integers(0, len(WORDS), rng.integers(0, most))]
        yield ' '.join(a), ' ' * (i % 2) + ' '.join(b)


@pytest.mark.parametrize('most', [3, 6, 25])
def test_bleu_as_in_sacrebleu(most):
    """One reference and several, corpora so small that some n has no match (smoothed) or no n-gram at all."""
    theirs = pytest.importorskip('sacrebleu').BLEU()
    for seed in range(20):
        p, r = zip(*texts(np.random.default_rng(seed), 1 + seed % 7, most))
        r2, _ = zip(*texts(np.random.default_rng(seed + 99), len(p), most))
        assert metrics.compute('bleu', p, r)['bleu'] == pytest.approx(theirs.corpus_score(p, [r]).score, rel=1e-9, abs=1e-9)
        assert metrics.compute('bleu', p, [*zip(r, r2)])['bleu'] == pytest.approx(theirs.corpus_score(p, [r, r2]).score, rel=1e-9, abs=1e-9)
    assert metrics.compute('bleu', ['the cat sat on it'], ['the cat sat on it'])['bleu'] == pytest.approx(100)
    assert metrics.compute('bleu', [''], ['']) == metrics.compute('bleu', ['the cat sat'], ['the cat sat']) == {'bleu': 0.0}   # no 4-gram
    assert 0 < metrics.compute('bleu', ['the cat sat on it'], ['the cat lay on it'])['bleu'] < 50


def test_words_13a():
    sacre = pytest.importorskip('sacrebleu.tokenizers.tokenizer_13a').Tokenizer13a()
    for a, b in texts(np.random.default_rng(5), 99): assert metrics.words_13a(a) == sacre(a.rstrip()).split() and metrics.words_13a(b) == sacre(b.rstrip()).split()
    everything = ''.join(map(chr, range(1, 700)))
    for said in (everything, '1'.join(everything), 'a'.join(everything)): assert metrics.words_13a(said) == sacre(said.rstrip()).split()


def test_rouge_as_in_rouge_score():
    names = ['rouge1', 'rouge2', 'rougeL']
    theirs = pytest.importorskip('rouge_score.rouge_scorer').RougeScorer(names)
    pairs = [*texts(np.random.default_rng(1), 99), ('', ''), ('a', ''), ('a b', 'b a'), ('a b a', 'a a b b'), ('x ' * 70, 'x y ' * 70)]
    for p, r in pairs:
        got, want = metrics.compute('rouge', [p], [r]), theirs.score(r, p)
        assert list(got) == names and all(got[n] == pytest.approx(want[n].fmeasure, abs=1e-12) for n in names), (p, r)
        other = pairs[3][1]
        got, want = metrics.compute('rouge', [p], [[r, other]]), theirs.score_multi([r, other], p)
        assert all(got[n] == pytest.approx(want[n].fmeasure, abs=1e-12) for n in names)
    p, r = zip(*pairs)
    assert metrics.compute('rouge', p, r)['rouge2'] == pytest.approx(np.mean([theirs.score(b, a)['rouge2'].fmeasure for a, b in pairs]))


def test_exact_match():
    got = metrics.compute('exact_match', [' find_name', 'find_it', 'x'], ['find_name\n', 'find_name', ['y', 'x ']])
    assert list(got) == ['exact_match', 'rouge1'] and got['exact_match'] == pytest.approx(2 / 3) and got['rouge1'] == pytest.approx(2.5 / 3)


def test_classes_and_values_as_written():
    """Texts that a model wrote in the place of classes and numbers: white space is no difference, nonsense is wrong."""
    assert metrics.compute('f1', [' yes', 'no', 'hm', 'yes '], ['yes', 'yes', 'no', 'yes'], ['no', 'yes']) == {'f1': 4 / 5, 'accuracy': 0.5}
    got = metrics.compute('pearson_spearman', ['3.2', 'five', ' 0.4', 'nan', '1e999'], ['3.0', '5.0', '0.4', '1.0', '2.0'])
    assert got == metrics.compute('pearson_spearman', [3.2, -1, 0.4, -1, -1], [3, 5, 0.4, 1, 2])


def test_classes_as_numbers():
    """Class numbers and names give the same; the last label is the positive class, wherever it stands in the alphabet."""
    names, p, r = ['no', 'maybe'], [1, 0, 1, 1], [1, 1, 0, 1]
    for metric in ('accuracy', 'f1', 'matthews'):
        assert metrics.compute(metric, p, r, names) == metrics.compute(metric, [names[i] for i in p], [names[i] for i in r], names) == metrics.compute(metric, p, r)
    assert metrics.compute('tags', [[1, 2, 0]], [[1, 2, 2]], ['O', 'B-X', 'I-X'])['f1'] == 0 and metrics.compute('tags', [[1, 2]], [[1, 2]], ['O', 'B-X', 'I-X'])['f1'] == 1


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="'acuracy': expected one of accuracy, f1"): metrics.compute('acuracy', [1], [1])
    with pytest.raises(ValueError, match='2 predictions for 1 references'): metrics.compute('accuracy', [1, 2], [1])


# ---------------------------------------------------------------------------------------------------- data/glue.py, data/squad.py

FILES = {  # two lines of each task, in GLUE's own layout
    'cola': ('CoLA', 'x\t1\t\tit is .\nx\t0\t*\tis it it .\n'),
    'sst2': ('SST-2', 'sentence\tlabel\na "fine film\t1\ndull\t0\n'),
    'mrpc': ('MRPC', '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tone\tan other\n0\t9\t7\ttwo\tthree\n'),
    'stsb': ('STS-B', 'index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n' + ''.join(
        f'{i}\tmain\tMSR\t2012\t1\tnone\tnone\t{row}\n' for i, row in enumerate(('a\tb\t5.000', 'c\td\t0.250')))),
    'qqp': ('QQP', 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t1\t2\twhy\tand why\t1\n2\t3\tcut short\n3\t1\t2\twhy\thow\t0\n'),
    'mnli': ('MNLI', 'index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n' + ''.join(
        f'{i}\t1\t1n\tslate\t( a )\t( b )\t(ROOT a)\t(ROOT b)\t{row}\n' for i, row in enumerate(('a\tb\tneutral\tneutral', 'c\td\tx\tentailment', 'c\te\tx\tcontradiction')))),
    'qnli': ('QNLI', 'index\tquestion\tsentence\tlabel\n0\twho\thim\tentailment\n1\twhat\tit\tnot_entailment\n'),
    'rte': ('RTE', 'index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n'),
    'wnli': ('WNLI', 'index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n1\tc\td\t0\n'),
}
MAIN = dict(cola='matthews', stsb='pearson_spearman', mrpc='f1', qqp='f1')


@pytest.mark.parametrize('task', [*FILES, 'mnli-mm'])
def test_glue(task, tmp_path, capsys):
    folder, content = FILES[task.removesuffix('-mm')]
    (tmp_path / folder).mkdir()
    (tmp_path / folder / 'train.tsv').write_text(content)
    dev = {'mnli': 'dev_matched.tsv', 'mnli-mm': 'dev_mismatched.tsv'}.get(task, 'dev.tsv')
    (tmp_path / folder / (dev + '.gz')).write_bytes(gzip.compress(content.encode()))         # packed files are read too
    assert task in glue.tasks
    out = glue.prepare(task=task, source=str(tmp_path), tokenizer='byte', out=str(tmp_path / 'out'))
    meta, rows = text.open_meta(out, check=True), [json.loads(line) for line in open(out + '/val.jsonl')]
    n = 3 if 'mnli' in task else 2
    assert meta['kind'] == 'labelled' and meta['metric'] == MAIN.get(task, 'accuracy') and len(rows) == meta['val_examples'] == n
    assert ('text_b' in rows[0]) == (task not in ('cola', 'sst2'))
    if task == 'stsb': assert not meta['labels'] and [r['label'] for r in rows] == [5.0, 0.25]
    else: assert sorted(r['label'] for r in rows) == list(range(n)) and len(meta['labels']) == n
    if task in ('mrpc', 'qqp'): assert rows[0]['label'] == 1 and meta['labels'][1] in ('equivalent', 'duplicate')  # F1's positive class
    if task == 'sst2': assert rows[0] == {'text': 'a "fine film', 'label': 1} and meta['labels'] == ['negative', 'positive']
    if task == 'cola': assert rows[0]['text'] == 'it is .' and meta['labels'][rows[0]['label']] == 'acceptable'
    assert text.resolve(out) == out
    assert ('QQP/train.tsv: left out 1 lines with too few columns of 3' in capsys.readouterr().err) == (task == 'qqp')


PAIRS = {  # the first line of each task as text to text, in the words of T5's appendix D
    'cola': ('cola sentence: it is .', 'acceptable'), 'sst2': ('sst2 sentence: a "fine film', 'positive'),
    'mrpc': ('mrpc sentence1: one sentence2: an other', 'equivalent'), 'stsb': ('stsb sentence1: a sentence2: b', '5.0'),
    'qqp': ('qqp question1: why question2: and why', 'duplicate'), 'mnli': ('mnli hypothesis: b premise: a', 'neutral'),
    'qnli': ('qnli question: who sentence: him', 'entailment'), 'rte': ('rte sentence1: a sentence2: b', 'entailment'),
    'wnli': ('wnli sentence1: a sentence2: b', 'entailment')}
OTHER = dict(cola='unacceptable', sst2='negative', mrpc='not_equivalent', stsb='0.2', qqp='not_duplicate', mnli='entailment', qnli='not_entailment',
             rte='not_entailment', wnli='not_entailment')


@pytest.mark.parametrize('task', [*FILES, 'mnli-mm'])
def test_glue_as_text(task, tmp_path):
    folder, content = FILES[task.removesuffix('-mm')]
    (tmp_path / folder).mkdir()
    for name in ('train', 'dev', 'dev_matched', 'dev_mismatched'): (tmp_path / folder / f'{name}.tsv').write_text(content)
    out = glue.prepare(task=task + '-text', source=str(tmp_path), tokenizer='byte', out=str(tmp_path / 'out'))
    meta, rows = text.open_meta(out, check=True), [json.loads(line) for line in open(out + '/val.jsonl')]
    task = task.removesuffix('-mm')
    assert meta['kind'] == 'pairs' and tuple(rows[0].values()) == PAIRS[task] and rows[1]['target'] == OTHER[task]
    truth = [r['target'] for r in rows]
    scores = metrics.compute(meta['metric'], [' ' + t for t in truth], truth, meta['labels'])
    assert next(iter(scores)) == MAIN.get(task, 'accuracy') and all(v == pytest.approx(1) for v in scores.values())
    if task in ('mrpc', 'qqp'):                                            # the positive class is the same as in classification
        assert metrics.compute('f1', truth[:1] * 2, truth, meta['labels'])['f1'] == pytest.approx(2 / 3)
    assert [glue.as_text(dict(text='', text_b='', label=x), 'stsb')['target'] for x in (0.0, 3.25, 3.5, 4.91, 1.1)] == ['0.0', '3.2', '3.6', '5.0', '1.2']


def test_mnli_has_two_validation_sets(tmp_path):
    (tmp_path / 'train.tsv').write_text(FILES['mnli'][1])
    (tmp_path / 'dev_matched.tsv').write_text(FILES['mnli'][1])
    (tmp_path / 'dev_mismatched.tsv').write_text(FILES['mnli'][1].replace('c\t', 'other\t'))
    for task in ('mnli', 'mnli-text'):
        meta = text.open_meta(glue.prepare(task=task, source=str(tmp_path), tokenizer='byte', out=str(tmp_path / task)), check=True)
        sets = rows_of.validation(meta, 1, lambda e: [e])
        assert list(sets) == ['', 'mm'] and meta['more_val'] == ['mm'] and len(sets['mm'][0]) == 3
        assert 'other' in str(sets['mm'][0].examples) and 'other' not in str(sets[''][0].examples)
        assert type(sets['mm'][0].examples[0].get('label', 0)) is int


def test_glue_downloads(tmp_path, monkeypatch):
    """What comes from the network: an archive, and for MRPC one file with the ids of the pairs that are for validation."""
    import zipfile
    with zipfile.ZipFile(tmp_path / 'QQP-clean.zip', 'w') as z:
        for name in ('train', 'dev'): z.writestr(f'QQP/{name}.tsv', FILES['qqp'][1])
    (tmp_path / 'msr_paraphrase_train.txt').write_text(FILES['mrpc'][1] + '0\t5\t6\tfour\tfive\n1\t5\t8\tsix\t6\n')
    (tmp_path / 'mrpc_dev_ids.tsv').write_text('9\t7\n5\t8\n')
    def fetch(name, url, folder, source='', sha256='', max_bytes=0):
        assert url.endswith(name) and len(sha256) == 64
        return str(tmp_path / name)
    monkeypatch.setattr(text, 'fetch', fetch)
    for task, train, val in (('qqp', ['why', 'why'], ['why', 'why']), ('mrpc', ['one', 'four'], ['two', 'six'])):
        out = glue.prepare(task=task, tokenizer='byte', out=str(tmp_path / task))
        assert [[json.loads(line)['text'] for line in open(f'{out}/{s}.jsonl')] for s in ('train', 'val')] == [train, val]


def test_glue_mistakes(tmp_path):
    with pytest.raises(ValueError, match='--task=sst: expected one of cola, sst2'): glue.prepare(task='sst')
    (tmp_path / 'train.tsv').write_text('sentence\tclass\nx\t1\n')
    (tmp_path / 'dev.tsv').write_text('sentence\tlabel\nx\t1\n')
    run = lambda: glue.prepare(task='sst2', source=str(tmp_path), tokenizer='byte', out=str(tmp_path / 'out'))
    with pytest.raises(ValueError, match=r'SST-2/train.tsv: no column "label" \(it has sentence, class\)'): run()
    (tmp_path / 'train.tsv').write_text('sentence\tlabel\nx\tgood\n')
    with pytest.raises(ValueError, match="SST-2/train.tsv line 2: the label is 'good'; expected one of 0, 1"): run()
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('task', squad.tasks)
def test_squad_files(task, tmp_path):
    context = 'Bells ring at noon. They ring again.'
    qa = lambda i, a: dict(id=f'q{i}', question=' When? ', answers=a and [dict(text=a, answer_start=context.index(a))], is_impossible=not a)
    articles = [dict(title=str(i), paragraphs=[dict(context=context, qas=[qa(i, 'at noon')] + [qa(-i, '')] * (task == '2'))]) for i in range(9)]
    whole = tmp_path / 'articles.json.gz'
    whole.write_bytes(gzip.compress(json.dumps(dict(data=articles)).encode()))
    out = squad.prepare(task=task, source=str(whole), tokenizer='byte', out=str(tmp_path / 'out'))
    meta = text.open_meta(out, check=True)
    rows = {s: [json.loads(line) for line in open(f'{out}/{s}.jsonl')] for s in ('train', 'val')}
    assert meta['kind'] == 'qa' and meta['metric'] == 'squad' and meta['no_answer'] == (task == '2')
    assert len(rows['train']) == 7 * int(task) and {r['id'].strip('q-') for r in rows['val']} == {'0', '8'}   # whole articles
    assert rows['val'][0]['answers'] == [{'text': 'at noon', 'answer_start': 11}] and rows['val'][0]['question'] == 'When?'
    if task == '2': assert rows['val'][1]['answers'] == []
    for split in ('train', 'dev'):                                         # the published layout: two files
        (tmp_path / f'{split}-v{dict(zip("12", ("1.1", "2.0")))[task]}.json').write_text(json.dumps(dict(data=articles)))
    out = squad.prepare(task=task, source=str(tmp_path), tokenizer='byte', out=str(tmp_path / 'two'))
    assert text.open_meta(out)['val_examples'] == text.open_meta(out)['train_examples'] == 9 * int(task)
    articles[0]['paragraphs'][0]['qas'][0]['answers'] = [dict(text='noon', answer_start=0)]
    whole.write_bytes(gzip.compress(json.dumps(dict(data=articles)).encode()))
    with pytest.raises(ValueError, match="question q0: 'noon' is not at character 0"):
        squad.prepare(task=task, source=str(whole), tokenizer='byte', out=str(tmp_path / 'bad'))
