"""OpenWebText: 8 million web pages that Reddit linked to, a copy of GPT-2's training text (Gokaslan and Cohen 2019).

What: the 21 archives of the Hugging Face data set Skylion007/openwebtext (12 GB, 38 GB of text), read as they are with
the standard library: a .tar of .xz, each again a .tar of one text file a page. Nothing is unpacked. Runs of empty lines
become one. One page in 2000 is for validation, as nanoGPT has it.

    python data/openwebtext.py --subsets=1                   # a 21st of it; then: python train.py --data=openwebtext
    python data/openwebtext.py --subsets=21 --source=FOLDER  # FOLDER holds urlsf_subset00.tar to urlsf_subset20.tar
"""
import lzma, os, re, sys, tarfile

if __name__ == '__main__': sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import reading, text

URL = 'https://huggingface.co/datasets/Skylion007/openwebtext/resolve/main/subsets/'

def pages(path):
    "The pages of one archive, in its order."
    try:
        with tarfile.open(path, 'r|') as outer:
            for inner in outer:
                if not inner.name.endswith('.xz') or not inner.isfile():
                    continue
                with lzma.open(outer.extractfile(inner)) as unpacked, \
                        tarfile.open(fileobj=unpacked, mode='r|') as archive:
                    for page in archive:
                        if page.name.endswith('.txt') and page.isfile() and page.size < reading.LINE:
                            yield re.sub(r'\n{3,}', '\n\n',
                                         archive.extractfile(page).read().decode('utf-8', 'replace')).strip()
    except (tarfile.TarError, lzma.LZMAError, EOFError, UnicodeError, OverflowError) as e:
        raise ValueError(f'{path}: broken or truncated archive ({" ".join(str(e).split())}); '
                         'delete it and fetch it again') from None

def prepare(tokenizer='gpt2', vocab_size=8192, source='', out='', subsets=0):
    "subsets: how many of the 21 archives; 0 takes the folder that is there, or all of them when there is none"
    if not 0 <= subsets <= 21: raise ValueError(f'--subsets={subsets}: expected 1 to 21')
    what = f'OpenWebText, {subsets or 21} of 21 subsets'
    def write(folder, **tokenizing):
        names = [f'urlsf_subset{i:02d}.tar' for i in range(subsets or 21)]
        paths = [text.fetch(n, URL + n, 'openwebtext', source, max_bytes=1 << 30) for n in names]
        read = lambda: (piece for path in paths for page in pages(path) if page for piece in text.pieces(page))
        return text.write_text(folder, read, share=0.0005, total=int(3.1 * sum(map(os.path.getsize, paths))),
                               source=what, **tokenizing)
    folder = text.make('openwebtext', write, tokenizer, vocab_size, 'gpt2', out)
    if subsets and text.open_meta(folder, quick=True)['source'] != what:
        raise ValueError(f'{folder} is there already ({text.open_meta(folder, quick=True)["source"]}): '
                         'delete it, or pass another --out')
    return folder

if __name__ == '__main__': text.script(prepare, __doc__)
