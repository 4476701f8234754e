"""Summaries: pairs of a long text and a short one, from any .jsonl file; without one, SciTLDR.

What: {"input": "summarize: ...", "target": ...}, with the metric ROUGE. SciTLDR (Cachola et al.
2020, arXiv 2004.15011) has 1,992 abstracts of papers with a one-line summary, and 619 for
validation with several, of which the best one counts ("references"). In a file of your own, two
columns are named by flags, or found when they have names that such data use. A column may hold a
list: of the text's sentences, which are joined, or of several summaries, of which the first is
learned.

    python data/summarize.py                        # then: train.py --model=t5 --data=summarize
    python data/summarize.py --source=news.jsonl --input=article --target=highlights --out=data/news

--source is a file (or .gz), of which 5 % are for validation, or a folder with train.jsonl and
val.jsonl (or dev.jsonl).
"""
import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import supervised, text

URL = 'https://raw.githubusercontent.com/allenai/scitldr/master/SciTLDR-Data/SciTLDR-A/'
# what the columns are called in SciTLDR, CNN/Daily Mail, XSum, SAMSum, BillSum, ...
INPUTS = ('source', 'article', 'document', 'dialogue', 'text', 'report', 'input')
TARGETS = ('target', 'highlights', 'summary', 'tldr', 'abstract')


def text_or_texts(x):
    """Whether x is a string or a list of one or more strings."""
    return isinstance(x, str) or supervised.some_texts(x)


def texts_of(row, column, known, path, number):
    """The texts of a column, a list. column: its name; '' takes the first of the known names."""
    if not column:
        column = next((name for name in known if name in row), known[0])
    value = supervised.need(row, column, path, number, text_or_texts,
                            'a string, or a list of strings')
    return [value] if isinstance(value, str) else value


def rows(paths, input, target, prefix):
    """Yields the lines of .jsonl files as pairs. Raises ValueError if a column is missing."""
    for path in paths:
        for number, row in text.read_jsonl(path):
            row = supervised.mended(row)
            sentences = texts_of(row, input, INPUTS, path, number)
            summaries = texts_of(row, target, TARGETS, path, number)
            pair = dict(input=prefix + ' '.join(sentences), target=summaries[0])
            if len(summaries) > 1:
                pair['references'] = summaries
            yield pair


def fetch(split):
    """The file of a split of SciTLDR, downloaded."""
    return text.fetch(f'scitldr-{split}.jsonl', f'{URL}{split}.jsonl', 'summarize',
                      max_bytes=1 << 24)


def prepare(tokenizer='bpe', vocab_size=8192, source='', out='', input='', target='',
            prefix='summarize: '):
    """Makes data/summarize, pairs. Returns the folder.

    input, target: names of the columns
    prefix: tells the model what to do
    """
    made_of = ''
    if source:
        train, val = text.split_files(source)
        made_of = f'{text.fingerprint(train + (val or []))} {input} {target} {prefix}'

    def write(folder, **tokenizing):
        files, val_files = (train, val) if source else ([fetch('train')], [fetch('dev')])

        def read(paths):
            return lambda: rows(paths, input, target, prefix)

        return text.write_examples(folder, 'pairs', read(files), val_files and read(val_files),
                                   metric='rouge', source=source or 'SciTLDR', made_of=made_of,
                                   **tokenizing)

    folder = text.make('summarize', write, tokenizer, vocab_size, 'bpe8192', out)
    return text.same_source(folder, made_of)


if __name__ == '__main__':
    text.script(prepare, __doc__)
