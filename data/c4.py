"""C4, the Colossal Clean Crawled Corpus: T5's web text of April 2019 (Raffel et al. 2020, 2.2).

What (arXiv 1910.10683): the English files of the Hugging Face data set allenai/c4, cleaned and
split by its authors: 1024 to train on (319 MB, 0.8 GB of text each) and 8 for validation (40 MB
each), of which the first, 45,000 pages, is enough to measure by. T5's speedrun sees about 28
training files. Its loss per token compares only with T5's own vocabulary, a spiece.model; the
default, a bpe of 32,000 ids trained on the text, is about as large.

--raw=true cleans your own pages by the paper's rules: the files or lines of --source, a 20th of
them for validation. --bad_words names a list, a word or phrase a line, whose pages are dropped;
none comes with this.

Departures: no language detection (the paper asks langdetect for English at 0.99). A sentence ends
at . ! or ? before a space and no small letter, where the authors' code asks nltk. Their code
differs from the final paper, which is followed here: it looks for bad words, { and lorem ipsum only
in lines that pass the other rules, compares sentences only inside a line (shorter spans too, when
the line has no more), and knows no closing quotation mark but ". Theirs, not the paper's: a line
that ends in ... is dropped, and [edit] is a citation marker. The first preprint said 3 words and 5
sentences; the final paper and the code say 5 and 3.

    python data/c4.py --shards=28 --tokenizer=t5/spiece.model    # then: train.py --data=c4 ...
    python data/c4.py --raw=true --source=pages.jsonl.gz --bad_words=list.txt --out=data/mine
"""
import hashlib
import os
import re
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import reading, supervised, text

URL = 'https://huggingface.co/datasets/allenai/c4/resolve/main/en/'
SHARDS = 1024
VAL_SHARDS = 8

# ------------------------------------------------------------------------------- the paper's rules

NOTICES = re.compile('javascript|terms of use|privacy policy|cookie policy|uses cookies|'
                     'use of cookies|use cookies')
CITATION = re.compile(r' ?\[(?:\d+|edit|citation needed)\]')
# what lies between two sentences
SENTENCE = re.compile(r'(?:(?<=[.!?])|(?<=[.!?]["”’)]))\s+(?![a-z\s])')
ENDINGS = ('.', '!', '?', '"', '”', '’')


def is_good(line):
    """Whether a line ends like a sentence, has five words or more and is not a notice."""
    if not line.endswith(ENDINGS) or line.endswith('...'):
        return False
    return len(line.split()) >= 5 and not NOTICES.search(line.lower())


def clean(page, bad_words=None):
    """The good lines of a page as it came from the web, or '' if the page is dropped (section 2.2).

    bad_words: an expression as read_bad_words makes it
    """
    lower = page.lower()
    if re.search('[{}]|lorem ipsum', lower) or bad_words and bad_words.search(lower):
        return ''
    lines = [CITATION.sub('', line).strip() for line in page.splitlines()]
    lines = [line for line in lines if is_good(line)]
    sentences = sum(len(SENTENCE.split(line)) for line in lines)
    return '\n'.join(lines) if sentences >= 3 else ''


def read_bad_words(path):
    """An expression that finds the words of a file, whole and in small letters.

    path: a file with a word or phrase a line. Raises ValueError if it has none.
    """
    with text.reading(path), text.open_binary(path) as f:
        lines = f.read().decode('utf-8-sig').lower().splitlines()
    words = [r'\s+'.join(map(re.escape, line.split())) for line in lines if line.strip()]
    if not words:
        raise ValueError(f'--bad_words={path}: no word in it; expected one a line')
    return re.compile(rf'(?<!\w)(?:{"|".join(words)})(?!\w)')


def spans(sentences):
    """A hash of 8 bytes for each three sentences in a row."""
    return [hashlib.blake2b('\n'.join(sentences[i:i + 3]).encode(), digest_size=8).digest()
            for i in range(len(sentences) - 2)]


def repeated(here, seen):
    """The places of sentences that repeat: those of spans seen before, on other pages or this one.

    here: the page's spans; span i is of the sentences i to i + 2
    """
    cut = {k for i, span in enumerate(here) if span in seen for k in range(i, i + 3)}
    before = frozenset(cut)
    first = {}                              # where the page itself has a span first: that one stays
    for i, span in enumerate(here):
        places = range(i, i + 3)
        if before.isdisjoint(places):
            at = first.setdefault(span, i)
            cut |= {*places} - {*range(at, at + 3)}
    return cut


def deduplicated(pages):
    """Yields clean pages without the spans of three sentences that came before.

    Case and spacing do not matter. A page is dropped when fewer than three sentences are left.
    Takes about 100 bytes of memory for each sentence that stays.
    """
    seen = set()
    for page in pages:
        lines = [SENTENCE.split(line) for line in page.split('\n')]
        sentences = [' '.join(s.lower().split()) for line in lines for s in line]
        cut = repeated(spans(sentences), seen)
        if len(sentences) - len(cut) < 3:
            continue
        # only what stays is seen: a span that was cut may come again
        seen.update(spans([s for i, s in enumerate(sentences) if i not in cut]))
        number = iter(range(len(sentences)))
        kept = [' '.join(s for s in line if next(number) not in cut) for line in lines]
        yield '\n'.join(filter(None, kept))


# ----------------------------------------------------------------------------------- files of pages

def pages(paths):
    """Yields the pages of files: the lines of .json and .jsonl, the documents of any other.

    See data/reading.py for what a document is. Raises ValueError if a page is over 64 MB.
    """
    for path in paths:
        if text.suffix(path) in ('.json', '.jsonl'):
            for number, row in text.read_jsonl(path):
                yield supervised.mended(supervised.need(row, 'text', path, number))
            continue
        page = []
        for piece, last in text.read_file(path):
            page.append(piece)
            if len(page) > reading.LINE // reading.PIECE:
                raise ValueError(f'{path}: a page of more than {reading.LINE >> 20} MB; expected a '
                                 'file for each page, lines of .jsonl, or lines that read '
                                 f'{text.EOT} between pages')
            if last:
                yield ''.join(page)
                page = []


def pieces_of(pages):
    """Yields pages as (piece, last); empty ones are left out."""
    for page in pages:
        if page:
            yield from text.pieces(page)


def prepare_raw(tokenizer, vocab_size, source, out, bad_words):
    """Makes data/c4-raw of your own pages. Returns the folder and what it is made of."""
    if not source:
        raise ValueError('--raw=true: expected --source=FILE or FOLDER with pages '
                         '(.jsonl, .txt, .gz)')
    paths = text.files(source)
    bad = read_bad_words(bad_words) if bad_words else None
    lists = [bad_words] if bad_words else []
    what = f'{source}, cleaned as C4 ({text.fingerprint(paths + lists)})'

    def write(folder, **tokenizing):
        def read():
            good = (clean(page, bad) for page in pages(paths))
            return pieces_of(deduplicated(filter(None, good)))

        total = sum(map(text.text_size, paths))
        share = min(0.05, text.MOST_VALIDATION / max(total, 1))
        return text.write_text(folder, read, share=share, total=total, source=what, **tokenizing)

    return text.make('c4-raw', write, tokenizer, vocab_size, 'bpe32000', out), what


def prepare_published(tokenizer, vocab_size, source, out, shards, val_shards):
    """Makes data/c4 of C4's own files. Returns the folder."""
    if os.path.isfile(source):
        raise ValueError(f'--source={source}: a file; expected the folder with '
                         'c4-train.00000-of-01024.json.gz and '
                         'c4-validation.00000-of-00008.json.gz, '
                         'or --raw=true for pages of your own')
    shards = shards or 1
    val_shards = val_shards or 1
    what = f'C4, {shards} of 1024 files to train on, {val_shards} of 8 for validation'

    def fetch(name, max_bytes):
        url = f'{URL}{name}.gz'
        if source:
            return text.fetch(name, url, 'c4', source)
        return text.fetch(name + '.gz', url, 'c4', max_bytes=max_bytes)

    def write(folder, **tokenizing):
        val = [fetch(f'c4-validation.{i:05d}-of-00008.json', 1 << 26) for i in range(val_shards)]
        train = [fetch(f'c4-train.{i:05d}-of-01024.json', 1 << 29) for i in range(shards)]
        return text.write_text(folder, lambda: pieces_of(pages(train)),
                               lambda: pieces_of(pages(val)), source=what,
                               total=sum(map(text.text_size, train + val)), **tokenizing)

    return text.make('c4', write, tokenizer, vocab_size, 'bpe32000', out)


def prepare(tokenizer='bpe', vocab_size=32000, source='', out='', shards=0, val_shards=0,
            raw='false', bad_words=''):
    """Makes data/c4, or data/c4-raw of your own pages; running text. Returns the folder.

    shards, val_shards: how many of the 1024 and 8 files; 0 takes the folder that is there, or 1
        when there is none
    raw: true cleans the pages of source instead
    bad_words: a file of words; pages with one of them are dropped
    """
    is_raw = str(raw).lower()
    if is_raw not in ('true', 'false'):
        raise ValueError(f'--raw={raw}: expected true or false')
    is_raw = is_raw == 'true'
    wanted = []                             # parts of what the folder has to be made of
    for flag, n, most in ('shards', shards, SHARDS), ('val_shards', val_shards, VAL_SHARDS):
        if not 0 <= n <= most:
            raise ValueError(f'--{flag}={n}: expected 1 to {most}')
        if n and is_raw:
            raise ValueError(f'--{flag}={n}: it counts files of C4; leave it out, '
                             'or leave out --raw=true')
        if n:
            wanted.append(f' {n} of {most} ')
    if bad_words and not is_raw:
        raise ValueError(f'--bad_words={bad_words}: C4 has no such pages; expected --raw=true')
    if is_raw:
        folder, what = prepare_raw(tokenizer, vocab_size, source, out, bad_words)
        wanted = [what]
    else:
        folder = prepare_published(tokenizer, vocab_size, source, out, shards, val_shards)
    there = text.open_meta(folder, quick=True)['source']
    if not all(words in there for words in wanted):
        raise ValueError(f'{folder} is there already ({there}): delete it, or pass another --out')
    return folder


if __name__ == '__main__':
    text.script(prepare, __doc__)
