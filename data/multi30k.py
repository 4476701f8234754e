"""Multi30k, captions of photographs in several languages (Elliott et al. 2016, arXiv 1605.00459), to be translated.

What: 29,000 pairs of sentences to train on and 1,014 for validation, {"input": "translate English to German: ...",
"target"}; the metric is BLEU. The 1,000 pairs of the test set of 2016 lie beside them in test.jsonl, and once more as
plain text, a sentence a line: test.input.txt to be translated, test.target.txt to be compared with. The test sets of
2017 and 2018 are left out, and so are the photographs.

    python data/multi30k.py                                  # then: python train.py --model=t5 --data=multi30k
    python data/multi30k.py --task=de-en --source=FOLDER     # FOLDER holds train.de, train.en, val.de, ... (or .gz)
"""
import contextlib, json, os, sys

if __name__ == '__main__': sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import text

URL = 'https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/'
LANGUAGES = dict(en='English', de='German', fr='French', cs='Czech')
PAIRS = dict(train=29000, val=1014, test_2016_flickr=1000)
tasks = tuple(t for other in ('de', 'fr', 'cs') for t in (f'en-{other}', f'{other}-en'))


def sentences(path):
    with text.reading(path), text.open_binary(path) as f:
        return [line.decode('utf-8').strip() for line in f.read().rstrip(b'\n').split(b'\n')]


def prepare(tokenizer='bpe', vocab_size=8192, source='', out='', task='en-de'):
    "-> data/multi30k (English to German) or data/multi30k-TASK, pairs"
    if task not in tasks: raise ValueError(f'--task={task}: expected one of {", ".join(tasks)}')
    order = f'translate {" to ".join(LANGUAGES[x] for x in task.split("-"))}: '
    def read(split):
        "pairs of a split; those of which a side is empty are left out"
        def get(language):
            name = f'{split}.{language}'
            if source: return text.fetch(name, URL + name + '.gz', 'multi30k', source)
            return text.fetch(name + '.gz', URL + name + '.gz', 'multi30k', max_bytes=1 << 23)
        paths = [get(language) for language in task.split('-')]
        a, b = map(sentences, paths)
        if len(a) != len(b) or not source and len(a) != PAIRS[split]:
            raise ValueError(f'{paths[0]} has {len(a):,} lines, {paths[1]} {len(b):,}; '
                             f'expected {PAIRS[split]:,} in the published files, and as many in both')
        return [dict(input=order + x, target=y) for x, y in zip(a, b) if x and y]
    def write(folder, **tokenizing):
        train, val = read('train'), read('val')
        with contextlib.suppress(*[FileNotFoundError] * bool(source)):     # one's own folder may have no test set
            test = read('test_2016_flickr')
            plain = [(f'test.{side}.txt', [row[side] for row in test]) for side in ('input', 'target')]
            for name, lines in (('test.jsonl', map(json.dumps, test)), *plain):
                with open(os.path.join(folder, name), 'w', encoding='utf-8') as f:
                    f.writelines(line + '\n' for line in lines)
        return text.write_examples(folder, 'pairs', lambda: map(dict, train), lambda: map(dict, val), metric='bleu',
                                   source=source or f'Multi30k, {task}', **tokenizing)
    return text.make('multi30k' + f'-{task}' * (task != 'en-de'), write, tokenizer, vocab_size, 'bpe8192', out)


if __name__ == '__main__': text.script(prepare, __doc__)
