"""WikiText: Wikipedia's good and featured articles (Merity et al. 2016, arXiv 1609.07843).

What: 11 or 540 MB, the word-level files with their <unk> and @-@ as published, an article a
document, the authors' own validation articles. Task 2 (600 articles) comes from the pytorch
examples, task 103 (28,475) from the author's site.

    python data/wikitext.py                         # then: python train.py --data=wikitext
    python data/wikitext.py --task=103 --tokenizer=gpt2     # data/wikitext-103-gpt2
"""
import io
import os
import re
import sys
import zipfile

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import text

tasks = ('2', '103')
URL_2 = ('https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/'
         'wikitext-2/')
SHA256_2 = {
    'train.txt': '9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f',
    'valid.txt': 'f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8',
}
URL_103 = 'https://wikitext.smerity.com/wikitext-103-v1.zip'
SHA256_103 = '242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590'
SIZE_103 = 541_000_000              # bytes of text, to show progress against
HEADING = re.compile(r' = (?!= ).* = \n?$')


def articles(lines):
    """Yields the articles as (piece, last). One begins at ' = Title = ' after an empty line."""
    article = []
    begun = False                   # a line that is not empty has been read
    before = ''
    for line in lines:
        if begun and not before.strip() and HEADING.match(line):
            yield from text.pieces(''.join(article))
            article = []
        article.append(line)
        begun = begun or bool(line.strip())
        before = line
    if article:
        yield from text.pieces(''.join(article))


def read_file(path):
    """Yields the articles of a text file, which may be packed."""
    with text.reading(path), text.open_binary(path) as f:
        yield from articles(io.TextIOWrapper(f, 'utf-8', newline='\n'))


def read_zip(path, name):
    """Yields the articles of a member of an archive. Nothing is unpacked to the disk."""
    with text.reading(path), zipfile.ZipFile(path) as z, z.open(name) as f:
        yield from articles(io.TextIOWrapper(f, 'utf-8', newline='\n'))


def prepare(tokenizer='bpe', vocab_size=8192, source='', out='', task='2'):
    """Makes data/wikitext or data/wikitext-103, running text. Returns the folder."""
    if task not in tasks:
        raise ValueError(f'--task={task}: expected {" or ".join(tasks)}')

    def write_2(folder, **tokenizing):
        train, val = [text.fetch(name, URL_2 + name, 'wikitext', source, digest, max_bytes=1 << 25)
                      for name, digest in SHA256_2.items()]
        return text.write_text(folder, lambda: read_file(train), lambda: read_file(val),
                               total=text.text_size(train) + text.text_size(val),
                               source='WikiText-2', **tokenizing)

    def write_103(folder, **tokenizing):
        path = text.fetch('wikitext-103-v1.zip', URL_103, 'wikitext', source, SHA256_103,
                          max_bytes=1 << 28)
        return text.write_text(folder,
                               lambda: read_zip(path, 'wikitext-103/wiki.train.tokens'),
                               lambda: read_zip(path, 'wikitext-103/wiki.valid.tokens'),
                               total=SIZE_103, source='WikiText-103', **tokenizing)

    if task == '2':
        return text.make('wikitext', write_2, tokenizer, vocab_size, 'bpe8192', out)
    return text.make('wikitext-103', write_103, tokenizer, vocab_size, 'bpe8192', out)


if __name__ == '__main__':
    text.script(prepare, __doc__)
