"""Multi30k, captions of photographs in several languages to be translated (Elliott et al. 2016).

What (arXiv 1605.00459): 29,000 pairs of sentences to train on and 1,014 for validation, {"input":
"translate English to German: ...", "target"}; the metric is BLEU. The 1,000 pairs of the test set
of 2016 are written beside them to test.jsonl, and once more as plain text, a sentence a line:
test.input.txt to be translated, test.target.txt to be compared with. The test sets of 2017 and 2018
are left out, and so are the photographs.

    python data/multi30k.py                         # then: train.py --model=t5 --data=multi30k
    python data/multi30k.py --task=de-en --source=FOLDER    # with train.de, train.en, ...
"""
import json
import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import text

URL = 'https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/'
LANGUAGES = dict(en='English', de='German', fr='French', cs='Czech')
PAIRS = dict(train=29000, val=1014, test_2016_flickr=1000)      # in the published files
tasks = ('en-de', 'de-en', 'en-fr', 'fr-en', 'en-cs', 'cs-en')


def fetch(name, source):
    """The path of a file: of the folder `source` (NAME or NAME.gz), else downloaded."""
    url = URL + name + '.gz'
    if source:
        return text.fetch(name, url, 'multi30k', source)
    return text.fetch(name + '.gz', url, 'multi30k', max_bytes=1 << 23)


def sentences(path):
    """The lines of a file. Lines end at \\n alone: some sentences hold other line separators."""
    with text.reading(path), text.open_binary(path) as f:
        lines = f.read().rstrip(b'\n').split(b'\n')
        return [line.decode('utf-8').strip() for line in lines]


def pairs(split, task, source):
    """The pairs of a split. A pair with an empty side is left out.

    Raises ValueError if the two files differ in length, or from what is published.
    """
    languages = task.split('-')
    prefix = f'translate {" to ".join(LANGUAGES[x] for x in languages)}: '
    paths = [fetch(f'{split}.{language}', source) for language in languages]
    a, b = [sentences(path) for path in paths]
    if len(a) != len(b) or not source and len(a) != PAIRS[split]:
        raise ValueError(f'{paths[0]} has {len(a):,} lines, {paths[1]} {len(b):,}; '
                         f'expected {PAIRS[split]:,} in the published files, and as many in both')
    return [dict(input=prefix + x, target=y) for x, y in zip(a, b) if x and y]


def write_test(folder, test):
    """Writes the test set as pairs and as two plain texts."""
    files = {
        'test.jsonl': [json.dumps(row) for row in test],
        'test.input.txt': [row['input'] for row in test],
        'test.target.txt': [row['target'] for row in test],
    }
    for name, lines in files.items():
        with open(os.path.join(folder, name), 'w', encoding='utf-8') as f:
            f.writelines(line + '\n' for line in lines)


def prepare(tokenizer='bpe', vocab_size=8192, source='', out='', task='en-de'):
    """Makes data/multi30k (English to German) or data/multi30k-TASK, pairs. Returns the folder."""
    if task not in tasks:
        raise ValueError(f'--task={task}: expected one of {", ".join(tasks)}')

    def write(folder, **tokenizing):
        train = pairs('train', task, source)
        val = pairs('val', task, source)
        try:
            write_test(folder, pairs('test_2016_flickr', task, source))
        except FileNotFoundError:
            if not source:              # a folder of one's own may have no test set
                raise
        return text.write_examples(folder, 'pairs', lambda: map(dict, train),
                                   lambda: map(dict, val), metric='bleu',
                                   source=source or f'Multi30k, {task}', **tokenizing)

    name = 'multi30k' if task == 'en-de' else f'multi30k-{task}'
    return text.make(name, write, tokenizer, vocab_size, 'bpe8192', out)


if __name__ == '__main__':
    text.script(prepare, __doc__)
