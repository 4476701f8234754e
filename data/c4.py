"""C4, the Colossal Clean Crawled Corpus: T5's web text of April 2019 (Raffel et al. 2020, arXiv 1910.10683, 2.2).

What: the English files of the Hugging Face data set allenai/c4, cleaned and split by its authors: 1024 to train on (319
MB, 0.8 GB of text each) and 8 for validation (40 MB each), of which the first, 45,000 pages, is enough to measure by.
T5's speedrun sees about 28 training files. Its loss per token compares only with T5's own vocabulary, a spiece.model;
the default, a bpe of 32,000 ids trained on the text, is about as large.

--raw=true cleans your own pages by the paper's rules: the files or lines of --source, a 20th of them for validation.
--bad_words names a list, a word or phrase a line, whose pages go; none comes with this.

Departures: no language detection (the paper asks langdetect for English at 0.99). A sentence ends at . ! or ? before a
space and no small letter, where the authors' code asks nltk. Their code differs from the final paper, which is followed
here: it looks for bad words, { and lorem ipsum only in lines that pass the other rules, compares sentences only inside
a line (shorter spans too, when the line has no more), and knows no closing quotation mark but ". Theirs, not the
paper's: a line that ends in ... goes, and [edit] is a citation marker. The first preprint said 3 words and 5 sentences;
the final paper and the code say 5 and 3.

    python data/c4.py --shards=28 --tokenizer=t5/spiece.model    # then train.py --model=t5 --data=c4 --tokenizer=...
    python data/c4.py --raw=true --source=pages.jsonl.gz --bad_words=list.txt --out=data/mine
"""
import hashlib, os, re, sys

if __name__ == '__main__': sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import reading, supervised, text

URL = 'https://huggingface.co/datasets/allenai/c4/resolve/main/en/'
NOTICES = re.compile('javascript|terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies')
CITATION = re.compile(r' ?\[(?:\d+|edit|citation needed)\]')
SENTENCE = re.compile(r'(?:(?<=[.!?])|(?<=[.!?]["”’)]))\s+(?![a-z\s])')          # what lies between two sentences

def clean(page, bad_words=None):
    "a page as it came from the web -> its good lines, or '' (section 2.2). bad_words: as read_bad_words makes it"
    lower = page.lower()
    if re.search('[{}]|lorem ipsum', lower) or bad_words and bad_words.search(lower): return ''
    lines = [CITATION.sub('', line).strip() for line in page.splitlines()]
    lines = [line for line in lines if line.endswith(('.', '!', '?', '"', '”', '’')) and not line.endswith('...')
             and len(line.split()) >= 5 and not NOTICES.search(line.lower())]
    return '\n'.join(lines) if sum(len(SENTENCE.split(line)) for line in lines) >= 3 else ''

def read_bad_words(path):
    "a file with a word or phrase a line -> an expression that finds them, whole and in small letters"
    with text.reading(path), text.open_binary(path) as f: lines = f.read().decode('utf-8-sig').lower().splitlines()
    words = [r'\s+'.join(map(re.escape, line.split())) for line in lines if line.strip()]
    if not words: raise ValueError(f'--bad_words={path}: no word in it; expected one a line')
    return re.compile(rf'(?<!\w)(?:{"|".join(words)})(?!\w)')

def spans(sentences):
    "8 bytes for each three sentences in a row"
    return [hashlib.blake2b('\n'.join(sentences[i:i + 3]).encode(), digest_size=8).digest()
            for i in range(len(sentences) - 2)]

def deduplicated(pages):
    """Clean pages without the spans of three sentences that came before, in any case and spacing; a page goes when
    fewer than three sentences are left. Takes about 100 bytes of memory for each sentence that stays."""
    seen = set()
    for page in pages:
        lines = [SENTENCE.split(line) for line in page.split('\n')]
        sentences = [' '.join(s.lower().split()) for line in lines for s in line]
        here = spans(sentences)
        cut = {k for i, span in enumerate(here) if span in seen for k in range(i, i + 3)}
        before, first = frozenset(cut), {}
        for i, span in enumerate(here):                  # what the page itself repeats: the first one stays whole
            if before.isdisjoint(range(i, i + 3)):
                at = first.setdefault(span, i)
                cut |= {*range(i, i + 3)} - {*range(at, at + 3)}
        if len(sentences) - len(cut) < 3: continue
        seen.update(spans([s for i, s in enumerate(sentences) if i not in cut]))         # what is cut is no first one
        number = iter(range(len(sentences)))
        yield '\n'.join(filter(None, (' '.join(s for s in line if next(number) not in cut) for line in lines)))

def pages(paths):
    "the pages of files: the lines of .json and .jsonl, the documents of any other (see data/text.py)"
    for path in paths:
        if text.suffix(path) in ('.json', '.jsonl'):
            for number, row in text.read_jsonl(path):
                yield supervised.mended(supervised.need(row, 'text', path, number))
            continue
        page = []
        for piece, last in text.read_file(path):
            page.append(piece)
            if len(page) > reading.LINE // reading.PIECE:
                raise ValueError(f'{path}: a page of more than {reading.LINE >> 20} MB; expected a file for each page, '
                                 f'lines of .jsonl, or lines that read {text.EOT} between pages')
            if last: yield ''.join(page)
            if last: page = []

def prepare(tokenizer='bpe', vocab_size=32000, source='', out='', shards=0, val_shards=0, raw='false', bad_words=''):
    """shards, val_shards: how many of the 1024 and 8 files; 0 takes the folder that is there, or 1 when there is none.
    raw: true cleans the pages of source instead, and leaves out those with a word of the file bad_words"""
    own = {'true': True, 'false': False}.get(str(raw).lower())
    if own is None: raise ValueError(f'--raw={raw}: expected true or false')
    for flag, n, most in ('shards', shards, 1024), ('val_shards', val_shards, 8):
        if not 0 <= n <= most: raise ValueError(f'--{flag}={n}: expected 1 to {most}')
        if n and own: raise ValueError(f'--{flag}={n}: counts files of C4; leave it out, or --raw=true')
    if own:
        if not source: raise ValueError('--raw=true: expected --source=FILE or FOLDER with pages (.jsonl, .txt, .gz)')
        found, bad = text.files(source), bad_words and read_bad_words(bad_words)
        what = f'{source}, cleaned as C4 ({text.fingerprint(found + [bad_words] * bool(bad_words))})'
    elif bad_words: raise ValueError(f'--bad_words={bad_words}: C4 is without such pages; expected --raw=true')
    elif os.path.isfile(source):
        raise ValueError(f'--source={source}: a file; expected the folder with c4-train.00000-of-01024.json.gz and '
                         'c4-validation.00000-of-00008.json.gz, or --raw=true for pages of your own')
    else: what = f'C4, {shards or 1} of 1024 files to train on, {val_shards or 1} of 8 for validation'
    def write(folder, **tokenizing):
        read = lambda pages: (piece for page in pages if page for piece in text.pieces(page))
        if own:
            good = lambda: deduplicated(filter(None, (clean(page, bad) for page in pages(found))))
            total = sum(map(text.text_size, found))
            return text.write_text(folder, lambda: read(good()), share=min(0.05, 5e7 / max(total, 1)), total=total,
                                   source=what, **tokenizing)
        get = lambda name, most: text.fetch(name + '.gz' * (not source), f'{URL}{name}.gz', 'c4', source, '', most)
        val = [get(f'c4-validation.{i:05d}-of-00008.json', 1 << 26) for i in range(val_shards or 1)]
        train = [get(f'c4-train.{i:05d}-of-01024.json', 1 << 29) for i in range(shards or 1)]
        return text.write_text(folder, lambda: read(pages(train)), lambda: read(pages(val)), source=what,
                               total=sum(map(text.text_size, train + val)), **tokenizing)
    folder = text.make('c4-raw' if own else 'c4', write, tokenizer, vocab_size, 'bpe32000', out)
    there = text.open_meta(folder, quick=True)['source']
    wanted = [what] if own else [f' {n} of {most} ' for n, most in ((shards, 1024), (val_shards, 8)) if n]
    if not all(words in there for words in wanted):
        raise ValueError(f'{folder} is there already ({there}): delete it, or pass another --out')
    return folder

if __name__ == '__main__': text.script(prepare, __doc__)
