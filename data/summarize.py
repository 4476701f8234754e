"""Summaries: pairs of a long text and a short one, from any .jsonl file; without one, SciTLDR (Cachola et al. 2020).

What: {"input": "summarize: ...", "target": ...}, with the metric ROUGE. SciTLDR (arXiv 2004.15011) has 1,992 abstracts
of papers with a one-line summary, and 619 for validation with several, of which the best one counts ("references"). In
a file of your own two columns are named by flags, or found when they have names that such data use. A column may hold a
list: of the text's sentences, which are joined, or of several summaries, of which the first is learned.

    python data/summarize.py                                 # then: python train.py --model=t5 --data=summarize
    python data/summarize.py --source=news.jsonl --input=article --target=highlights --out=data/news

--source is a file (or .gz), of which 5 % are for validation, or a folder with train.jsonl and val.jsonl (or dev.jsonl).
"""
import os, sys

if __name__ == '__main__': sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import supervised, text

URL = 'https://raw.githubusercontent.com/allenai/scitldr/master/SciTLDR-Data/SciTLDR-A/'
# what the columns are called in SciTLDR, CNN/Daily Mail, XSum, SAMSum, BillSum, ...
INPUTS = 'source article document dialogue text report input'.split()
TARGETS = 'target highlights summary tldr abstract'.split()


def text_or_texts(x):
    return isinstance(x, str) or isinstance(x, list) and x != [] and all(isinstance(t, str) for t in x)


def rows(paths, names, prefix):
    for path in paths:
        for number, row in text.read_jsonl(path):
            row, found = supervised.mended(row), []
            for name, known in zip(names, (INPUTS, TARGETS)):
                column = name or next((c for c in known if c in row), known[0])
                value = supervised.need(row, column, path, number, text_or_texts, 'a string, or a list of strings')
                found.append([value] if isinstance(value, str) else value)
            yield dict(input=prefix + ' '.join(found[0]), target=found[1][0],
                       **(dict(references=found[1]) if len(found[1]) > 1 else {}))


def prepare(tokenizer='bpe', vocab_size=8192, source='', out='', input='', target='', prefix='summarize: '):
    "-> data/summarize, pairs. input, target: names of the columns; prefix: tells the model what to do"
    made_of = ''
    def paths():
        if source: return text.split_files(source)
        return tuple([text.fetch(f'scitldr-{n}.jsonl', f'{URL}{n}.jsonl', 'summarize', max_bytes=1 << 24)]
                     for n in ('train', 'dev'))
    if source:
        train, val = paths()
        made_of = f'{text.fingerprint(train + (val or []))} {input} {target} {prefix}'
    def write(folder, **tokenizing):
        read = lambda paths: paths and (lambda: rows(paths, (input, target), prefix))
        train, val = paths()
        return text.write_examples(folder, 'pairs', read(train), read(val), metric='rouge', source=source or 'SciTLDR',
                                   made_of=made_of, **tokenizing)
    return text.same_source(text.make('summarize', write, tokenizer, vocab_size, 'bpe8192', out), made_of)


if __name__ == '__main__': text.script(prepare, __doc__)
