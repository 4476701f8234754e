"""WikiText: Wikipedia's good and featured articles (Merity et al. 2016, arXiv 1609.07843), 11 MB or 540 MB.

What: the word-level files with their <unk> and @-@ as published, an article a document, the authors' own validation
articles. Task 2 (600 articles) comes from the pytorch examples, task 103 (28,475) from the author's site.

    python data/wikitext.py                                  # data/wikitext; then: python train.py --data=wikitext
    python data/wikitext.py --task=103 --tokenizer=gpt2      # data/wikitext-103-gpt2
"""
import io, os, re, sys, zipfile

if __name__ == '__main__': sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import text

tasks = ('2', '103')
URL_2 = 'https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/'
SHA256_2 = {'train.txt': '9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f',
            'valid.txt': 'f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8'}
URL_103 = 'https://wikitext.smerity.com/wikitext-103-v1.zip'
SHA256_103 = '242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590'

def articles(lines):
    "documents as (piece, last). An article begins at ' = Title = ' after an empty line"
    article, begun, before, heading = [], False, '', re.compile(r' = (?!= ).* = \n?$')
    for line in lines:
        if begun and not before.strip() and heading.match(line):
            yield from text.pieces(''.join(article))
            article = []
        article.append(line)
        begun, before = begun or bool(line.strip()), line
    if article: yield from text.pieces(''.join(article))

def prepare(tokenizer='bpe', vocab_size=8192, source='', out='', task='2'):
    if task not in tasks: raise ValueError(f'--task={task}: expected {" or ".join(tasks)}')
    def write(folder, **tokenizing):
        if task == '2':
            paths = [text.fetch(n, URL_2 + n, 'wikitext', source, digest, max_bytes=1 << 25)
                     for n, digest in SHA256_2.items()]
            total = sum(map(text.text_size, paths))
            def read(i):
                with text.reading(paths[i]), \
                        io.TextIOWrapper(text.open_binary(paths[i]), 'utf-8', newline='\n') as lines:
                    yield from articles(lines)
        else:
            path = text.fetch('wikitext-103-v1.zip', URL_103, 'wikitext', source, SHA256_103, max_bytes=1 << 28)
            total = 541_000_000
            def read(i):                                 # out of the archive, nothing is unpacked
                name = f'wikitext-103/wiki.{("train", "valid")[i]}.tokens'
                with text.reading(path), zipfile.ZipFile(path) as z, z.open(name) as f:
                    yield from articles(io.TextIOWrapper(f, 'utf-8', newline='\n'))
        return text.write_text(folder, lambda: read(0), lambda: read(1), total=total, source=f'WikiText-{task}',
                               **tokenizing)
    return text.make('wikitext' + ('-103' if task == '103' else ''), write, tokenizer, vocab_size, 'bpe8192', out)

if __name__ == '__main__': text.script(prepare, __doc__)
