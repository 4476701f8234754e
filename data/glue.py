"""GLUE, nine tasks of language understanding, in its own layout (Wang et al. 2018).

What (arXiv 1804.07461): each task's training set, and its development set for validation, since the
answers of the test sets are not public. Labelled, for models with a classification head; or as text
to text, for t5.py (--task=TASK-text): "sst2 sentence: a fine film" -> "positive", in the words of
T5's appendix D (Raffel et al. 2020), and WNLI like RTE.

    task     what                                          examples    metric
    cola     is the sentence grammatical?                     8,551    Matthews correlation
    sst2     is the film review positive?                    67,349    accuracy
    mrpc     do two sentences say the same?                   3,668    F1 (and accuracy)
    stsb     how alike are two sentences, 0 to 5?             5,749    mean of Pearson and Spearman
                                                                       correlation
    qqp      do two questions ask the same?                 363,846    F1 (and accuracy)
    mnli     does the first sentence imply the second?      392,702    accuracy, on the training
                                                                       set's genres and on others
                                                                       ("mm"); task mnli-mm has
                                                                       these alone
    qnli     does the sentence answer the question?         104,743    accuracy
    rte      does the first text imply the second?            2,490    accuracy
    wnli     is the pronoun resolved rightly?                   635    accuracy

    python data/glue.py --task=sst2                 # then: train.py --model=bert --data=glue-sst2
    python data/glue.py --task=rte-text --source=FOLDER     # with RTE/train.tsv, RTE/dev.tsv
"""
import io
import os
import sys
import zipfile

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import text

URL = 'https://dl.fbaipublicfiles.com/glue/data/'
MRPC = 'https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase_train.txt'
SHA256 = {
    'CoLA.zip': 'f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff',
    'SST-2.zip': 'd67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa',
    'STS-B.zip': 'e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85',
    'QQP-clean.zip': '40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0',
    'MNLI.zip': 'e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633',
    'QNLIv2.zip': 'e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5',
    'RTE.zip': '6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee',
    'WNLI.zip': 'ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46',
    'mrpc_dev_ids.tsv': '971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7',
    'msr_paraphrase_train.txt': '60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89',
}

NLI = {n: n for n in ('contradiction', 'entailment', 'neutral')}
ENTAILMENT = {n: n for n in ('entailment', 'not_entailment')}

# folder, archive, columns of text, text_b, label (numbers where a file has no header), names of the
# labels, metric. The names stand in the order of the alphabet, in which classes are numbered; F1 is
# that of the last class
TASKS = {
    'cola': ('CoLA', 'CoLA.zip', (3, None, 1),
             {'0': 'unacceptable', '1': 'acceptable'}, 'matthews'),
    'sst2': ('SST-2', 'SST-2.zip', ('sentence', None, 'label'),
             {'0': 'negative', '1': 'positive'}, 'accuracy'),
    'mrpc': ('MRPC', '', ('#1 String', '#2 String', 'Quality'),
             {'0': 'different', '1': 'equivalent'}, 'f1'),
    'stsb': ('STS-B', 'STS-B.zip', ('sentence1', 'sentence2', 'score'), None, 'pearson_spearman'),
    'qqp': ('QQP', 'QQP-clean.zip', ('question1', 'question2', 'is_duplicate'),
            {'0': 'different', '1': 'duplicate'}, 'f1'),
    'mnli': ('MNLI', 'MNLI.zip', ('sentence1', 'sentence2', 'gold_label'), NLI, 'accuracy'),
    'qnli': ('QNLI', 'QNLIv2.zip', ('question', 'sentence', 'label'), ENTAILMENT, 'accuracy'),
    'rte': ('RTE', 'RTE.zip', ('sentence1', 'sentence2', 'label'), ENTAILMENT, 'accuracy'),
    'wnli': ('WNLI', 'WNLI.zip', ('sentence1', 'sentence2', 'label'),
             {'0': 'not_entailment', '1': 'entailment'}, 'accuracy'),
}
TASKS['mnli-mm'] = TASKS['mnli']
tasks = (*TASKS, *(task + '-text' for task in TASKS))

# as text to text: what stands before text and text_b, and other words for a label
PARTS = dict(cola=('sentence',), sst2=('sentence',), mnli=('premise', 'hypothesis'),
             qqp=('question1', 'question2'), qnli=('question', 'sentence'))
WORDS = dict(mrpc=dict(different='not_equivalent'), qqp=dict(different='not_duplicate'))


def as_text(example, task):
    """A labelled example as a pair. Scores of 0 to 5 become one of 26 words: 0.0, 0.2, 0.4, ..."""
    names = PARTS.get(task, ('sentence1', 'sentence2'))
    parts = [f'{name}: {example[column]}' for name, column in zip(names, ('text', 'text_b'))]
    if task == 'mnli':                  # T5 names the hypothesis first
        parts.reverse()
    label = example['label']
    if isinstance(label, float):
        target = f'{round(label * 5) / 5:.1f}'
    else:
        target = WORDS.get(task, {}).get(label, label)
    return {'input': ' '.join([task, *parts]), 'target': target}


# ----------------------------------------------------------------------------------- lines of files

def lines_of_own(name, source, folder, url):
    """Yields the lines of a .tsv in the folder `source`, or in its folder of the task."""
    inside = os.path.join(source, folder)
    path = text.fetch(name, url, 'glue', inside if os.path.isdir(inside) else source)
    with text.reading(path), text.open_binary(path) as f:
        yield from io.TextIOWrapper(f, 'utf-8', newline='\n')


def lines_of_zip(path, member):
    """Yields the lines of a .tsv in an archive. Nothing is unpacked to the disk."""
    with text.reading(path), zipfile.ZipFile(path) as z, z.open(member) as f:
        yield from io.TextIOWrapper(f, 'utf-8', newline='\n')


def lines_of_mrpc(name):
    """Yields the lines of MRPC: those of one file that GLUE has taken for this split."""
    ids = fetch('mrpc_dev_ids.tsv', URL + 'mrpc_dev_ids.tsv')
    pairs = fetch('msr_paraphrase_train.txt', MRPC)
    with open(ids) as f:
        held_out = {tuple(line.split()) for line in f}
    with open(pairs, encoding='utf-8-sig', newline='\n') as f:
        for i, line in enumerate(f):
            in_dev = tuple(line.split('\t')[1:3]) in held_out
            if i == 0 or in_dev == (name == 'dev.tsv'):
                yield line


def fetch(name, url):
    """The path of a file of the published data, downloaded."""
    return text.fetch(name, url, 'glue', sha256=SHA256[name], max_bytes=1 << 29)


def lines_of(name, task, source):
    """Yields the lines of a task's file such as train.tsv.

    source: '' downloads it; else the folder of all tasks, that of the task, its .zip, or a folder
        with the .zip
    """
    folder, archive, *_ = TASKS[task]
    zipped = source if source.endswith('.zip') else os.path.join(source, archive)
    if source and not (archive and os.path.isfile(zipped)):
        yield from lines_of_own(name, source, folder, URL + archive if archive else MRPC)
    elif archive:
        path = zipped if source else fetch(archive, URL + archive)
        yield from lines_of_zip(path, f'{folder}/{name}')
    else:
        yield from lines_of_mrpc(name)


def rows(lines, path, columns, names):
    """Yields tab-separated lines as examples; quotes are plain characters.

    path: for messages
    columns: those of text, text_b (or None) and label; numbers where there is no header
    names: the names of the labels, None if they are numbers to regress to

    Lines that are cut short (QQP has some) are left out. Raises ValueError if a column is missing
    or a label unknown.
    """
    lines = enumerate(lines, 1)
    if isinstance(columns[2], str):
        header = next(lines, None)
        if header is None:
            return
        columns = places(header[1], path, columns)
    first, second, third = columns
    last = max(i for i in columns if i is not None)
    short = 0
    n = 0
    for number, line in lines:
        cells = cells_of(line)
        if len(cells) <= last:
            short += 1
            continue
        n += 1
        example = {'text': cells[first]}
        if second is not None:
            example['text_b'] = cells[second]
        example['label'] = label_of(cells[third], names, f'{path} line {number}')
        yield example
    if short:
        print(f'{path}: left out {short} lines with too few columns of {n + short}',
              file=sys.stderr)


def cells_of(line):
    """The cells of a tab-separated line."""
    return line.rstrip('\r\n').split('\t')


def places(header, path, columns):
    """The places of columns in a header. Raises ValueError if one is not in it."""
    head = [cell.lstrip('\ufeff') for cell in cells_of(header)]
    for column in columns:
        if column and column not in head:
            raise ValueError(f'{path}: no column "{column}" (it has {", ".join(head)})')
    return [head.index(column) if column else None for column in columns]


def label_of(cell, names, where):
    """A label's name, or a number if there are no names. Raises ValueError if it is neither."""
    if names and cell not in names:
        raise ValueError(f'{where}: the label is {cell!r}; expected one of {", ".join(names)}')
    try:
        return names[cell] if names else float(cell)
    except ValueError:
        raise ValueError(f'{where}: the label is {cell!r}; expected a number') from None


# ------------------------------------------------------------------------------------------ prepare

def has_file(name, task, source):
    """Whether a task has this file. Your own folder may lack one."""
    try:
        next(lines_of(name, task, source), None)
    except FileNotFoundError:
        return False
    return True


def prepare(tokenizer='bpe', vocab_size=8192, source='', out='', task='sst2'):
    """Makes data/glue-TASK, labelled, or data/glue-TASK-text, pairs. Returns the folder.

    source: the folder of all tasks, that of the task, or its .zip
    """
    if task not in tasks:
        raise ValueError(f'--task={task}: expected one of {", ".join(tasks)}')
    base = task.removesuffix('-text')
    is_text = task.endswith('-text')
    folder_name, _, columns, names, metric = TASKS[base]
    dev = {'mnli': 'dev_matched.tsv', 'mnli-mm': 'dev_mismatched.tsv'}.get(base, 'dev.tsv')

    def split(name):
        """A function that yields the examples of a file."""
        def read():
            lines = lines_of(name, base, source)
            found = rows(lines, f'{folder_name}/{name}', columns, names)
            if is_text:
                return (as_text(example, base.removesuffix('-mm')) for example in found)
            return found

        return read

    def write(folder, **tokenizing):
        more = {}
        if is_text and names:           # labelled data find their labels, pairs are told them
            words = WORDS.get(base, {})
            more['labels'] = [words.get(name, name) for name in names.values()]
        more_val = {}
        if base == 'mnli' and has_file('dev_mismatched.tsv', base, source):
            more_val['mm'] = split('dev_mismatched.tsv')
        return text.write_examples(folder, 'pairs' if is_text else 'labelled', split('train.tsv'),
                                   split(dev), more_val=more_val, metric=metric,
                                   source=source or f'GLUE, {task}', **more, **tokenizing)

    return text.make('glue-' + task, write, tokenizer, vocab_size, 'bpe8192', out)


if __name__ == '__main__':
    text.script(prepare, __doc__)
