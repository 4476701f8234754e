"""OpenWebText: 8 million web pages that Reddit linked to (Gokaslan and Cohen 2019).

What: a copy of GPT-2's training text, the 21 archives of the Hugging Face data set
Skylion007/openwebtext (12 GB, 38 GB of text), read as they are with the standard library: a .tar of
.xz, each again a .tar with a text file for each page. Nothing is unpacked to the disk. Runs of
empty lines become one. One page in 2000 is for validation, as in nanoGPT.

    python data/openwebtext.py --subsets=1          # then: python train.py --data=openwebtext
    python data/openwebtext.py --subsets=21 --source=FOLDER     # with urlsf_subset00.tar to 20.tar
"""
import lzma
import os
import re
import sys
import tarfile

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import reading, text

URL = 'https://huggingface.co/datasets/Skylion007/openwebtext/resolve/main/subsets/'
SUBSETS = 21
SHARE = 0.0005                      # of the pages, for validation
UNPACKED = 3.1                      # bytes of text in a byte of an archive, to show progress


def pages_of(archive):
    """Yields the pages of a .tar of text files."""
    for page in archive:
        if page.name.endswith('.txt') and page.isfile() and page.size < reading.LINE:
            content = archive.extractfile(page).read().decode('utf-8', 'replace')
            yield re.sub(r'\n{3,}', '\n\n', content).strip()


def pages(path):
    """Yields the pages of an archive, in its order. Raises ValueError if it is broken."""
    try:
        with tarfile.open(path, 'r|') as outer:
            for inner in outer:
                if not inner.name.endswith('.xz') or not inner.isfile():
                    continue
                with lzma.open(outer.extractfile(inner)) as unpacked:
                    with tarfile.open(fileobj=unpacked, mode='r|') as archive:
                        yield from pages_of(archive)
    except (tarfile.TarError, lzma.LZMAError, EOFError, UnicodeError, OverflowError) as e:
        raise ValueError(f'{path}: broken or truncated archive ({" ".join(str(e).split())}); '
                         'delete it and fetch it again') from None


def prepare(tokenizer='gpt2', vocab_size=8192, source='', out='', subsets=0):
    """Makes data/openwebtext, running text. Returns the folder.

    subsets: how many of the 21 archives; 0 takes the folder that is there, or all of them when
        there is none
    """
    if not 0 <= subsets <= SUBSETS:
        raise ValueError(f'--subsets={subsets}: expected 1 to {SUBSETS}')
    n = subsets or SUBSETS
    what = f'OpenWebText, {n} of {SUBSETS} subsets'

    def write(folder, **tokenizing):
        names = [f'urlsf_subset{i:02d}.tar' for i in range(n)]
        paths = [text.fetch(name, URL + name, 'openwebtext', source, max_bytes=1 << 30)
                 for name in names]

        def read():
            for path in paths:
                for page in pages(path):
                    if page:
                        yield from text.pieces(page)

        total = int(UNPACKED * sum(map(os.path.getsize, paths)))
        return text.write_text(folder, read, share=SHARE, total=total, source=what, **tokenizing)

    folder = text.make('openwebtext', write, tokenizer, vocab_size, 'gpt2', out)
    there = text.open_meta(folder, quick=True)['source']
    if subsets and there != what:
        raise ValueError(f'{folder} is there already ({there}): delete it, or pass another --out')
    return folder


if __name__ == '__main__':
    text.script(prepare, __doc__)
