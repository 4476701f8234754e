"""GLUE, nine tasks of language understanding (Wang et al. 2018, arXiv 1804.07461), in its own layout of .tsv files.

What: each task's training set, and its development set for validation, since the answers of the test sets are not
public. Labelled, for models with a classification head; or as text to text, for t5.py (--task=TASK-text): "sst2
sentence: a fine film" -> "positive", in the words of T5's appendix D (Raffel et al. 2020), and WNLI like RTE.

    task     what                                            examples    metric
    cola     is the sentence grammatical?                       8,551    Matthews correlation
    sst2     is the film review positive?                      67,349    accuracy
    mrpc     do two sentences say the same?                     3,668    F1 (and accuracy)
    stsb     how alike are two sentences, 0 to 5?               5,749    mean of Pearson and Spearman correlation
    qqp      do two questions ask the same?                   363,846    F1 (and accuracy)
    mnli     does the first sentence imply the second?        392,702    accuracy, on the training set's genres and on
                                                                         others ("mm"); task mnli-mm has these alone
    qnli     does the sentence answer the question?           104,743    accuracy
    rte      does the first text imply the second?              2,490    accuracy
    wnli     is the pronoun resolved rightly?                     635    accuracy

    python data/glue.py --task=sst2                          # then: python train.py --model=bert --data=glue-sst2
    python data/glue.py --task=rte-text --source=FOLDER      # FOLDER holds RTE/train.tsv, RTE/dev.tsv (or .gz of these)
"""
import contextlib, io, os, sys, zipfile

if __name__ == '__main__': sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import text

URL = 'https://dl.fbaipublicfiles.com/glue/data/'
MRPC = 'https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase_train.txt'
SHA256 = {'CoLA.zip': 'f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff',
          'SST-2.zip': 'd67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa',
          'STS-B.zip': 'e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85',
          'QQP-clean.zip': '40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0',
          'MNLI.zip': 'e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633',
          'QNLIv2.zip': 'e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5',
          'RTE.zip': '6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee',
          'WNLI.zip': 'ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46',
          'mrpc_dev_ids.tsv': '971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7',
          'msr_paraphrase_train.txt': '60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89'}

# folder, archive, columns of text, text_b, label (numbers where a file has no header), names of the labels, metric. The
# names stand in the order of the alphabet, in which classes are numbered; a class's F1 is that of the last one
TASKS = {
    'cola': ('CoLA', 'CoLA.zip', (3, None, 1), {'0': 'unacceptable', '1': 'acceptable'}, 'matthews'),
    'sst2': ('SST-2', 'SST-2.zip', ('sentence', None, 'label'), {'0': 'negative', '1': 'positive'}, 'accuracy'),
    'mrpc': ('MRPC', '', ('#1 String', '#2 String', 'Quality'), {'0': 'different', '1': 'equivalent'}, 'f1'),
    'stsb': ('STS-B', 'STS-B.zip', ('sentence1', 'sentence2', 'score'), None, 'pearson_spearman'),
    'qqp': ('QQP', 'QQP-clean.zip', ('question1', 'question2', 'is_duplicate'),
            {'0': 'different', '1': 'duplicate'}, 'f1'),
    'mnli': ('MNLI', 'MNLI.zip', ('sentence1', 'sentence2', 'gold_label'),
             {n: n for n in ('contradiction', 'entailment', 'neutral')}, 'accuracy'),
    'qnli': ('QNLI', 'QNLIv2.zip', ('question', 'sentence', 'label'),
             {n: n for n in ('entailment', 'not_entailment')}, 'accuracy'),
    'rte': ('RTE', 'RTE.zip', ('sentence1', 'sentence2', 'label'),
            {n: n for n in ('entailment', 'not_entailment')}, 'accuracy'),
    'wnli': ('WNLI', 'WNLI.zip', ('sentence1', 'sentence2', 'label'),
             {'0': 'not_entailment', '1': 'entailment'}, 'accuracy'),
}
TASKS['mnli-mm'] = TASKS['mnli']
tasks = (*TASKS, *(task + '-text' for task in TASKS))

# as text to text: what stands before text and text_b, and other words for a label
PARTS = dict(cola=('sentence',), sst2=('sentence',), mnli=('premise', 'hypothesis'), qqp=('question1', 'question2'),
             qnli=('question', 'sentence'))
WORDS = dict(mrpc=dict(different='not_equivalent'), qqp=dict(different='not_duplicate'))


def as_text(example, task):
    "a labelled example -> a pair. Scores from 0 to 5 become one of 26 words: 0.0, 0.2, 0.4, ..."
    names, label = PARTS.get(task, ('sentence1', 'sentence2')), example['label']
    parts = [f'{name}: {example[column]}' for name, column in zip(names, ('text', 'text_b'))]
    if task == 'mnli': parts.reverse()                   # T5 names the hypothesis first
    target = f'{round(label * 5) / 5:.1f}' if isinstance(label, float) else WORDS.get(task, {}).get(label, label)
    return {'input': ' '.join([task, *parts]), 'target': target}


def rows(lines, path, columns, names):
    "tab-separated lines, quotes are plain characters -> examples; lines that are cut short (QQP has some) are left out"
    head, short, n, at = None, 0, 0, columns
    for number, line in enumerate(lines, 1):
        cells = line.rstrip('\r\n').split('\t')
        if head is None and isinstance(columns[2], str):
            head = [c.lstrip('\ufeff') for c in cells]
            if missing := [c for c in columns if c and c not in head]:
                raise ValueError(f'{path}: no column "{missing[0]}" (it has {", ".join(head)})')
            at = [c and head.index(c) for c in columns]
            continue
        if len(cells) <= max(i for i in at if i is not None): short += 1; continue
        label = cells[at[2]]
        if names and label not in names:
            raise ValueError(f'{path} line {number}: the label is {label!r}; expected one of {", ".join(names)}')
        try: label = names[label] if names else float(label)
        except ValueError:
            raise ValueError(f'{path} line {number}: the label is {label!r}; expected a number') from None
        n += 1
        yield {'text': cells[at[0]], **({} if at[1] is None else {'text_b': cells[at[1]]}), 'label': label}
    if short: print(f'{path}: left out {short} lines with too few columns of {n + short}', file=sys.stderr)


def prepare(tokenizer='bpe', vocab_size=8192, source='', out='', task='sst2'):
    "-> data/glue-TASK, labelled, or data/glue-TASK-text, pairs. source: GLUE's folders, one, or its .zip"
    if task not in tasks: raise ValueError(f'--task={task}: expected one of {", ".join(tasks)}')
    base, text_to_text = task.removesuffix('-text'), task.endswith('-text')
    folder_name, archive, columns, names, metric = TASKS[base]
    dev = {'mnli': 'dev_matched.tsv', 'mnli-mm': 'dev_mismatched.tsv'}.get(base, 'dev.tsv')
    def get(name, url): return text.fetch(name, url, 'glue', sha256=SHA256[name], max_bytes=1 << 29)
    def lines(name):
        zipped = source if source.endswith('.zip') else os.path.join(source, archive)
        if source and not (archive and os.path.isfile(zipped)):
            folder = os.path.join(source, folder_name) if os.path.isdir(os.path.join(source, folder_name)) else source
            path = text.fetch(name, URL + archive if archive else MRPC, 'glue', folder)
            with text.reading(path), io.TextIOWrapper(text.open_binary(path), 'utf-8', newline='\n') as f: yield from f
        elif archive:
            zipped = zipped if source else get(archive, URL + archive)
            with text.reading(zipped), zipfile.ZipFile(zipped) as z, z.open(f'{folder_name}/{name}') as f:
                yield from io.TextIOWrapper(f, 'utf-8', newline='\n')
        else:                                            # MRPC: one file, and the pairs of ids GLUE took for validation
            with open(get('mrpc_dev_ids.tsv', URL + 'mrpc_dev_ids.tsv')) as f:
                held = {tuple(line.split()) for line in f}
            with open(get('msr_paraphrase_train.txt', MRPC), encoding='utf-8-sig', newline='\n') as f:
                for i, line in enumerate(f):
                    if i == 0 or (tuple(line.split('\t')[1:3]) in held) == (name == 'dev.tsv'): yield line
    def write(folder, **tokenizing):
        def split(name):
            found = lambda: rows(lines(name), f'{folder_name}/{name}', columns, names)
            return ((lambda: (as_text(example, base.removesuffix('-mm')) for example in found()))
                    if text_to_text else found)
        words = dict(labels=[WORDS.get(base, {}).get(n, n) for n in names.values()]) if text_to_text and names else {}
        more = {'mm': split('dev_mismatched.tsv')} if base == 'mnli' else {}
        with contextlib.suppress(StopIteration):
            try: next(lines('dev_mismatched.tsv') if more else iter(()))
            except FileNotFoundError: more = {}          # one's own folder may have the matched genres alone
        return text.write_examples(folder, 'pairs' if text_to_text else 'labelled', split('train.tsv'), split(dev),
                                   more_val=more, source=source or f'GLUE, {task}', metric=metric, **words,
                                   **tokenizing)
    return text.make('glue-' + task, write, tokenizer, vocab_size, 'bpe8192', out)


if __name__ == '__main__': text.script(prepare, __doc__)
