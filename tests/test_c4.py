"""data/c4.py: the paper's rules one by one on pages made by hand, its split, and the refusals in one line each.

Oracle: what section 2.2 of the paper says about each page, written down here; for the spans that repeat also a search by
brute force; for the bytes gzip and json."""
import http.server, io, json, os, random, subprocess, sys, threading

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from data import c4, reading, text
from test_data import put, read

A, B, C = 'The old owl sat in its tree.', 'Does it see the field below?', 'A mouse ran for its life!'
PAGE = f'{A}\n{B}\n{C}'


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(text, 'HERE', str(tmp_path / 'made'))
    monkeypatch.chdir(tmp_path)


def lines(pages):
    return ''.join(json.dumps(dict(text=p, timestamp='2019-04-25T12:57:54Z', url='https://owl.example/')) + '\n' for p in pages)


def files(train, val):
    "C4's files in the folder src: lists of the pages of each"
    for i, pages in enumerate(train): put(f'src/c4-train.{i:05d}-of-01024.json.gz', lines(pages))
    for i, pages in enumerate(val): put(f'src/c4-validation.{i:05d}-of-00008.json.gz', lines(pages))


def both(folder): return sorted(read(folder, 'train') + read(folder, 'val'))


def refused(call, *words, kind=ValueError):
    with pytest.raises(kind) as e: call()
    message = str(e.value)
    assert '\n' not in message and all(w in message for w in words), message
    return message

# ---------------------------------------------------------------------------------------------------- the paper's rules

@pytest.mark.parametrize('line, kept', [
    # ends in a period, exclamation mark, question mark or end quotation mark
    ('Owls are birds that fly by night.', 1), ('Owls are birds that fly by night!', 1), ('Are owls birds that fly by night?', 1),
    ('She said "owls fly by night"', 1), ('She said “owls fly by night”', 1), ('She said ‘owls fly by night’', 1),
    ('Owls are birds that fly by night', 0), ('Owls are birds that fly by night:', 0), ('Owls are birds that fly by night;', 0),
    ('Owls are birds that fly by “', 0), ('Owls are birds that fly by (night.)', 0), ('Home | News | About | The owl | Contact', 0),
    ('Owls are birds that fly by...', 0),                # the authors' code: a teaser, not a sentence
    ('  \t Owls are birds that fly by night. \r', 'Owls are birds that fly by night.'),
    # at least five words
    ('Owls fly in the night.', 1), ('Owls fly by night.', 0), ('Read more.', 0), ('Owls   fly   by   night.', 0), ('.', 0), ('', 0),
    # Javascript
    ('Please turn on Javascript to read about owls.', 0), ('You need JAVASCRIPT to see the owl.', 0), ('You need Java script to see the owl.', 1),
    # policy notices
    ('See our Terms of Use for all of the owls.', 0), ('See our privacy policy for all of the owls.', 0), ('This is the Cookie Policy of the owl.', 0),
    ('This website uses cookies to feed the owl.', 0), ('We ask for the use of cookies, says the owl.', 0), ('The owl and we use cookies here.', 0),
    ('The owl eats cookies that we used to bake.', 1),
    # citation markers
    ('Owls fly[1] by night[23], as bats do.[citation needed]', 'Owls fly by night, as bats do.'), ('The old owl is silent [4].', 'The old owl is silent.'),
    ('The habits of all owls [edit].', 'The habits of all owls.'), ('Owls are birds of the night. [7]', 'Owls are birds of the night.'),
    ('Owls eat [all of] the mice.', 1), ('Owls fly at night [1].', 0)])      # the marker was its fifth word
def test_lines(line, kept):
    expected = [line] if kept == 1 else [kept] if kept else []
    assert c4.clean(f'{A}\n{line}\n{B}\n{C}') == '\n'.join([A, *expected, B, C])


@pytest.mark.parametrize('page, kept', [
    (PAGE, 1), (f'{A} {B} {C}', 1),                      # three sentences, on three lines or on one
    (f'{A}\n{B}', 0), (f'{A} {B}', 0), (f'{A}\n{B}\nIt ran.', 0), (f'{A}\n{B}\nIt ran. It hid away. Gone', 0), ('', 0),
    (f'{A}\nDid "Whose is it?" mean the mouse?', 0), (f'{A}\nIt said "Who is it?" And flew away.', 1), (f'{A}\n“Who is it?” It flew away.', 1),
    (f'{A}\n{B} It costs 3.50 or so... but i.e. no more.', 1),
    (f'{A}\n{B}... or not at all.', 0), (f'{A}\n{B}   and so on.', 0),
    (f'{PAGE}\nLorem Ipsum dolor sit amet the owl.', 0), (f'lorem ipsum\n{PAGE}', 0), (f'{PAGE} The lorem of the ipsum.', 1),
    (f'{PAGE}\nif (owl) {{ return night', 0), (f'{PAGE}\n}}', 0), (f'{PAGE} An owl (bird) sat on [it] there.', 1)])
def test_pages(page, kept):
    assert c4.clean(page) == (page if kept else '')


def test_bad_words():
    path = put('list.txt', '\ufeffFizzle\n\n  two   bits \nc++\n')
    bad = c4.read_bad_words(path)
    for word in ('fizzle', 'Fizzle', '"FIZZLE"', 'two bits', 'TWO  Bits', 'c++'):
        for p in (f'{PAGE}\nMenu {word} more', f'{word}\n{PAGE}', f'{PAGE}\n{word}', f'{PAGE} It said {word}.'):
            assert c4.clean(p) and c4.clean(p, bad) == '', p                 # anywhere on the page, not in its good lines alone
    assert c4.clean(f'{PAGE}\ntwo\nbits', bad) == ''
    for word in ('fizzles', 'unfizzle', 'two more bits', 'c+', 'twobits'): assert c4.clean(f'{PAGE} {word}.', bad) == f'{PAGE} {word}.', word
    refused(lambda: c4.read_bad_words(put('none.txt', ' \n')), '--bad_words=none.txt', 'one a line')

# ---------------------------------------------------------------------------------------------------- spans that repeat

def number(i): return f'Sentence number {i} of the page.'
def page(*ids, lines=3): return '\n'.join(' '.join(map(number, ids[i:i + lines])) for i in range(0, len(ids), lines))


@pytest.mark.parametrize('pages, kept', [
    ([[1, 2, 3], [1, 2, 3]], [[1, 2, 3]]),               # a copy of a page
    ([[1, 2, 3, 4], [5, 1, 2, 3, 6, 7]], [[1, 2, 3, 4], [5, 6, 7]]),
    ([[1, 2, 3, 4], [5, 1, 2, 3, 6]], [[1, 2, 3, 4]]),   # fewer than three are left
    ([[1, 2, 3, 4, 5], [8, 1, 2, 3, 4, 5, 9, 7]], [[1, 2, 3, 4, 5], [8, 9, 7]]),           # spans that overlap
    ([[1, 2, 4], [1, 2, 3], [2, 3, 4]], [[1, 2, 4], [1, 2, 3], [2, 3, 4]]),                # two sentences alone may repeat
    ([[1, 2, 3], [3, 2, 1]], [[1, 2, 3], [3, 2, 1]]),    # another order is another span
    ([[1, 2, 3, 9, 1, 2, 3, 8]], [[1, 2, 3, 9, 8]]), ([[1, 1, 1, 1, 1, 1]], [[1, 1, 1]]),  # inside a page
    ([[1, 2, 3], [4, 1, 2, 3, 5, 6], [4, 1, 2]], [[1, 2, 3], [4, 5, 6], [4, 1, 2]]),       # 4 1 2 has not been before: it went
    ([[1, 2, 3], [4, 5, 1, 2, 3, 6, 5, 1, 2, 7]], [[1, 2, 3], [4, 5, 6, 5, 1, 2, 7]]),     # of 5 1 2 the first one lost 1 and 2
    ([[1, 2, 3], [1, 2, 3, 7, 8], [9, 3, 7, 8, 6, 5], [6, 5, 4]], [[1, 2, 3], [9, 3, 7, 8, 6, 5], [6, 5, 4]])])
@pytest.mark.parametrize('lines', [1, 2, 99])
def test_three_sentences(pages, kept, lines):
    found = list(c4.deduplicated(page(*ids, lines=lines) for ids in pages))
    assert [p.replace('\n', ' ') for p in found] == [page(*ids, lines=99) for ids in kept]
    if lines == 1: assert found == [page(*ids, lines=1) for ids in kept]     # each line stays a line


def test_case_and_spacing_do_not_matter():
    assert list(c4.deduplicated([PAGE, PAGE.upper().replace(' ', '  ').replace('\n', ' ')])) == [PAGE]


def test_no_span_is_left_twice():
    "random pages of few sentences: no three sentences in a row of the pages as they came are in two of those that stay"
    rng = random.Random(3)
    pages = [page(*(rng.randrange(9) for _ in range(rng.randrange(3, 12))), lines=rng.randrange(1, 5)) for _ in range(150)]
    kept, seen = list(c4.deduplicated(pages)), set()
    came = {tuple(s[i:i + 3]) for p in pages for s in [c4.SENTENCE.split(p)] for i in range(len(s) - 2)}
    assert 5 < len(kept) < 140
    for p in kept:
        s = c4.SENTENCE.split(p)
        mine = {tuple(s[i:i + 3]) for i in range(len(s) - 2)}
        assert len(s) >= 3
        if p in pages: assert not mine & seen & came     # a page that nothing was cut from
        seen |= mine

# ---------------------------------------------------------------------------------------------------- C4's files

def test_the_official_split():
    docs = [f'Page {i}: {PAGE}' for i in range(40)]
    files([docs[:20], docs[20:30]], [docs[30:36], docs[36:]])
    folder = c4.prepare('byte', source='src')
    assert folder == text.HERE + '/c4-byte' and read(folder, 'train') == docs[:20] and read(folder, 'val') == docs[30:36]
    two = c4.prepare('byte', source='src', shards=2, val_shards=2, out='two')
    assert read(two, 'train') == docs[:30] and read(two, 'val') == docs[30:]
    put('src/c4-train.00001-of-01024.json', lines(docs[:3]))                   # unpacked: taken first
    assert read(c4.prepare('byte', source='src', shards=2, out='three'), 'train') == docs[:20] + docs[:3]
    assert c4.prepare('byte') == folder == text.resolve('c4', 'byte') and c4.prepare('byte', shards=1, val_shards=1) == folder
    assert c4.prepare('byte', out='two') == c4.prepare('byte', shards=2, out='two') == 'two'
    assert text.open_meta(two)['source'] == 'C4, 2 of 1024 files to train on, 2 of 8 for validation'


def test_pages_come_as_they_are():
    "C4 is clean already: nothing is cleaned, cut or left out again, but a page without text"
    docs = ['one word', PAGE, PAGE, '{', 'half \ud800 a character', '', 'né 日本']
    files([docs], [['the\n\n\neagle ']])
    folder = c4.prepare('byte', source='src')
    assert read(folder, 'train') == ['one word', PAGE, PAGE, '{', 'half \ufffd a character', 'né 日本'] and read(folder, 'val') == ['the\n\n\neagle ']
    assert text.open_meta(folder)['train_documents'] == 6


def test_another_number_of_files_is_told():
    files([['one owl']] * 12, [['two owls']] * 3)
    c4.prepare('byte', source='src', shards=12, val_shards=2)
    for how in (dict(shards=1), dict(shards=2), dict(shards=11), dict(val_shards=1), dict(val_shards=3), dict(shards=12, val_shards=1)):
        refused(lambda: c4.prepare('byte', source='src', **how), 'c4-byte is there already', '12 of 1024', '2 of 8', '--out')
    refused(lambda: c4.prepare('byte', source='src', shards=13, out='new'), 'no c4-train.00012-of-01024.json or c4-train.00012-of-01024.json.gz', c4.URL + 'c4-train.00012-of-01024.json.gz', kind=FileNotFoundError)
    assert not os.path.exists('new')


def test_a_vocabulary_of_its_own():
    files([[f'{PAGE} {i}' for i in range(20)]], [[PAGE]])
    folder = c4.prepare(source='src')
    assert folder == text.HERE + '/c4' == text.resolve('c4') and text.open_meta(folder)['name'] == 'bpe32000' and read(folder, 'val') == [PAGE]
    assert c4.prepare('bpe', 500, 'src') == text.resolve('c4', 'bpe', 500) == folder + '-bpe500'


def test_the_vocabulary_of_t5():
    import sentencepiece
    out, words = io.BytesIO(), PAGE.split('\n')
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(words * 9), model_writer=out, vocab_size=60, model_type='unigram',
                                             hard_vocab_limit=False, seed_sentencepiece_size=2000, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, num_threads=1)
    with open('spiece.model', 'wb') as f: f.write(out.getvalue())
    files([[A, B]], [[C]])
    folder, pieces = c4.prepare('spiece.model', source='src'), sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    assert text.tokens(folder, 'train')[0].tolist() == [i for s in (A, B) for i in [*pieces.encode(s), 1]]         # </s> after each
    assert text.tokens(folder, 'val')[0].tolist() == [*pieces.encode(C), 1] and text.resolve('c4', 'spiece.model') == folder


def test_damaged_files():
    files([[random.Random(1).randbytes(20_000).hex()]], [['an owl']])
    path = 'src/c4-train.00000-of-01024.json.gz'
    whole = open(path, 'rb').read()
    with open(path, 'wb') as f: f.write(whole[:9000])
    refused(lambda: c4.prepare('byte', source='src'), path, 'truncated .gz')
    put(path, '{"text": "an owl"}\n{"url": "x"}\n')
    refused(lambda: c4.prepare('byte', source='src'), path + ' line 2', 'no "text"', 'it has url')
    put(path, lines(['', '']))
    refused(lambda: c4.prepare('byte', source='src'), 'C4, 1 of 1024', 'no text to train on')
    assert not os.path.exists(text.HERE + '/c4-byte') and not os.path.exists(text.HERE + '/c4-byte.tmp')


@pytest.mark.parametrize('flags, words', [
    (dict(shards=1025), ['--shards=1025', '1 to 1024']), (dict(shards=-1), ['--shards=-1', '1 to 1024']), (dict(val_shards=9), ['--val_shards=9', '1 to 8']),
    (dict(raw='yes'), ['--raw=yes', 'true or false']), (dict(raw='true'), ['--raw=true', '--source=']), (dict(bad_words='l.txt'), ['--bad_words=l.txt', '--raw=true']),
    (dict(raw='true', source='p.txt', shards=2), ['--shards=2', 'leave it out']), (dict(raw='true', source='p.txt', val_shards=2), ['--val_shards=2']),
    (dict(source='p.txt'), ['--source=p.txt', 'c4-train.00000-of-01024.json.gz', '--raw=true'])])
def test_flags(flags, words):
    put('p.txt', PAGE)
    refused(lambda: c4.prepare('byte', **flags), *words)
    assert not os.path.exists(text.HERE)


def test_download(monkeypatch):
    "from a server that breaks off after 700 bytes, and goes on; the files that are there are not asked for again"
    files([[random.Random(i).randbytes(900).hex()] for i in range(2)], [['an owl']])
    log = []
    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body, start = open('src' + self.path, 'rb').read(), int(self.headers.get('Range', 'bytes=0-')[6:-1])
            log.append((self.path[1:], start))
            self.send_response(206 if start else 200)
            if start: self.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
            self.send_header('Content-Length', str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start:start + 700])
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(c4, 'URL', f'http://127.0.0.1:{server.server_port}/')
    try:
        folder = c4.prepare('byte')
        names = ['c4-train.00000-of-01024.json.gz', 'c4-validation.00000-of-00008.json.gz']
        assert read(folder, 'train') == [random.Random(0).randbytes(900).hex()] and read(folder, 'val') == ['an owl']
        assert sorted(os.listdir(text.HERE + '/downloads/c4')) == names
        assert sorted(log) == [(names[0], 0), (names[0], 700), (names[1], 0)]
        del log[:]
        c4.prepare('byte', shards=2, out='two')
        assert [n for n, _ in log] == ['c4-train.00001-of-01024.json.gz'] * 2
    finally:
        server.shutdown()
        server.server_close()

# ---------------------------------------------------------------------------------------------------- pages of your own

def story(i): return '\n'.join(f'Story {i} has its line {j} here.' for j in range(4))


def test_raw_pages():
    pages = [f'Menu\n{story(i)}\nRead more' for i in range(30)] + [story(3), 'too short', f'{story(40)}\nvar owl = {{}};']
    put('raw/a.jsonl.gz', ''.join(json.dumps({'text': p}) + '\n' for p in pages[:15])); put('raw/b.json', ''.join(json.dumps({'text': p}) + '\n' for p in pages[15:]))
    put('raw/c.txt', f'\n{text.EOT}\n'.join(f'{story(i)}\nHome' for i in (2, 50, 51)))
    folder = c4.prepare('byte', source='raw', raw='true')
    assert folder == text.HERE + '/c4-raw-byte' and both(folder) == sorted(story(i) for i in [*range(30), 50, 51]) and read(folder, 'val')
    assert c4.prepare('byte', source='raw', raw=True) == folder
    put('list.txt', 'line 2\nstory 7\n')
    refused(lambda: c4.prepare('byte', source='raw', raw='true', bad_words='list.txt'), 'c4-raw-byte is there already', '--out')
    put('list.txt', 'story 7\n')
    assert both(c4.prepare('byte', source='raw', raw='true', bad_words='list.txt', out='new')) == sorted(story(i) for i in [*range(30), 50, 51] if i != 7)
    put('raw/c.txt', story(99))
    refused(lambda: c4.prepare('byte', source='raw', raw='true'), 'c4-raw-byte is there already')
    refused(lambda: c4.prepare('byte', source='raw/c.txt', raw='true', out='new'), 'new is there already')
    refused(lambda: c4.prepare('byte', shards=1, out='new'), 'new is there already')


def test_raw_pages_that_are_none(monkeypatch):
    refused(lambda: c4.prepare('byte', source=put('a.txt', 'Nothing here but a menu'), raw='true'), 'a.txt, cleaned as C4', 'no text in it')
    refused(lambda: c4.prepare('byte', source='nowhere', raw='true'), 'nowhere: no such file', kind=FileNotFoundError)
    refused(lambda: c4.prepare('byte', source='a.txt', raw='true', bad_words='nowhere.txt'), 'nowhere.txt', kind=FileNotFoundError)
    monkeypatch.setattr(reading, 'PIECE', 100); monkeypatch.setattr(reading, 'LINE', 500)
    refused(lambda: c4.prepare('byte', source=put('long.txt', f'{A}\n' * 50), raw='true'), 'long.txt', 'a page of more than', text.EOT)
    many = put('many.txt', f'\n{text.EOT}\n'.join(story(i) for i in range(9)))            # each a few pieces, all of them more than a page may be
    assert both(c4.prepare('byte', source=many, raw='true')) == [story(i) for i in range(9)]


def test_the_same_pages_each_time():
    "a vocabulary is trained on the pages before they are encoded: they are deduplicated anew"
    put('raw.jsonl', ''.join(json.dumps({'text': story(i)}) + '\n' for i in range(30)))
    assert both(c4.prepare('bpe', 500, 'raw.jsonl', raw='true')) == both(c4.prepare('char', source='raw.jsonl', raw='true')) == sorted(map(story, range(30)))


def test_command_line():
    put('raw.jsonl', ''.join(json.dumps({'text': story(i)}) + '\n' for i in range(30)))
    run = lambda *args: subprocess.run([sys.executable, os.path.join(ROOT, 'data', 'c4.py'), *args], capture_output=True, text=True)
    good = run('--raw=true', '--source=raw.jsonl', '--tokenizer=byte', '--out=made-here')
    assert good.returncode == 0 and good.stdout == 'made-here\n', good.stderr
    bad = run('--shards=3', '--source=nowhere', '--out=new')
    assert bad.returncode == 1 and bad.stderr.startswith('c4.py: --source=nowhere: no c4-validation.00000-of-00008.json or c4-validation.00000-of-00008.json.gz in it') and bad.stderr.count('\n') == 1
    assert 'python data/c4.py --out=new --shards=3 --source=FOLDER' in bad.stderr
