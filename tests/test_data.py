"""data/: what goes in comes out again, every refusal is one clear line, and a failed run leaves what was there."""
import gzip, hashlib, http.server, io, json, lzma, multiprocessing, os, random, signal, subprocess, sys, tarfile, threading, time, zipfile

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import bpe
from data import download, fineweb, folders, openwebtext, reading, shakespeare, stdlib, supervised, text, wikitext, writing

POEM = 'The owl said: "naïve 日本 🙂"\n\n  and flew\tover 37 hills.\nDown\n'

@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(text, 'HERE', str(tmp_path / 'made'))
    monkeypatch.chdir(tmp_path)
    return tmp_path

def put(path, content):
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    content = content if isinstance(content, bytes) else content.encode()
    with (gzip.open if str(path).endswith('.gz') else open)(path, 'wb') as f: f.write(content)
    return str(path)

def lines(*rows):
    return ''.join(json.dumps(row) + '\n' for row in rows)

def read(folder, split):
    "the documents of a split, decoded"
    meta = text.open_meta(folder, check=True)
    ids, tok = np.concatenate(text.tokens(meta, split)), bpe.load(os.path.join(folder, meta['tokenizer']))
    parts = np.split(ids, np.flatnonzero(ids == meta['eot']) + 1)
    return [tok.decode([int(i) for i in p if i != meta['eot']]) for p in parts if len(p)]

def refused(call, *words, kind=ValueError):
    "the call raises one line that has these words"
    with pytest.raises(kind) as e: call()
    message = str(e.value)
    assert '\n' not in message and all(w in message for w in words), message
    return message

def tree(folder):
    return {os.path.join(d, n): (os.path.join(d, n), open(os.path.join(d, n), 'rb').read()) for d, _, names in os.walk(folder) for n in names}

# ---------------------------------------------------------------------------------------------------- text in, ids out

@pytest.mark.parametrize('tokenizer', ['bpe', 'byte', 'char'])
def test_documents_come_back(tokenizer):
    docs = [f'{i} ' + POEM * (1 + i % 3) for i in range(60)]
    folder = text.prepare(put('a.jsonl', lines(*({'text': d, 'id': i} for i, d in enumerate(docs)))), tokenizer, 500)
    train, val, meta = read(folder, 'train'), read(folder, 'val'), text.open_meta(folder)
    assert sorted(train + val) == sorted(docs) and train == [d for d in docs if d in train]
    assert 1 <= len(val) <= 12 and meta['train_documents'] == len(train) and meta['val_documents'] == len(val)
    assert meta['train_bytes'] == sum(len(d.encode()) for d in train) and meta['val_bytes'] == sum(len(d.encode()) for d in val)
    assert meta['dtype'] == 'uint16' and meta['vocab_size'] == bpe.load(folder + '/tokenizer.json').vocab_size
    assert meta['train_tokens'] == len(text.tokens(folder, 'train')[0])
    assert os.path.basename(folder).startswith('a-') and folder.endswith({'bpe': '-bpe500'}.get(tokenizer, '-' + tokenizer))

def test_single_document_is_cut_at_nine_tenths():
    words = 'é' + ''.join(random.Random(1).choices('abc \n', k=5000))
    folder = text.prepare(put('one.txt', words), 'char')
    meta = text.open_meta(folder)
    assert ''.join(read(folder, 'train') + read(folder, 'val')) == words
    assert (meta['train_tokens'], meta['val_tokens'], meta['train_documents'], meta['val_documents']) == (4500, 502, 1, 1)
    assert (meta['train_bytes'], meta['val_bytes']) == (4501, 501)

def test_cut_at_the_border_nearest_to_nine_tenths():
    docs = [c * (n - 1) for c, n in (('a', 8200), ('c', 900), ('b', 600), ('d', 300))]     # none is picked by its hash; borders at 82, 91, 97 and 100 %
    folder = text.prepare(put('a.jsonl', lines(*({'text': d} for d in docs))), 'byte')
    assert read(folder, 'train') == docs[:2] and read(folder, 'val') == docs[2:]

@pytest.mark.parametrize('n', [2, 3, 5, 9, 19, 40])
def test_both_sides_always_have_text(n):
    docs = [f'{i} {POEM}' for i in range(n)]
    folder = text.prepare(put('a.jsonl', lines(*({'text': d} for d in docs))), 'char')
    meta, train, val = text.open_meta(folder), read(folder, 'train'), read(folder, 'val')
    assert 0.01 < meta['val_tokens'] / meta['train_tokens'] < 0.3 and (meta['train_documents'], meta['val_documents']) == (len(train), len(val))
    if n < 5: train[-1:], val[:1] = [train[-1] + val[0]], []               # through the middle of a document: there is no other way
    assert sorted(train + val) == docs if n < 10 else sorted(docs)
    assert meta['train_bytes'] + meta['val_bytes'] == len(''.join(docs).encode())

def test_copies_stay_on_one_side():
    docs = [f'{i % 100} ' + POEM for i in range(300)]
    folder = text.prepare(put('a.jsonl', lines(*({'text': d} for d in docs))), 'byte')
    train, val = read(folder, 'train'), read(folder, 'val')
    assert val and not set(train) & set(val) and len(train) + len(val) == 300

@pytest.mark.parametrize('size', [40, 64, 300, 333, 1000])
def test_pieces_change_nothing(monkeypatch, size):
    "cut into pieces of any size: the same documents; and, with lines to cut between, the same ids"
    code = ''.join(f'def f{i}(x):\n    return x * {i}\n\n\nprint(f{i})\nprint("日本")\n' for i in range(80))
    path = put('a.txt', f'{code}<|endoftext|>\n<|endoftext|>\nsecond <|endoftext|> stays\n<|endoftext|>\r\n{POEM}')
    tok = bpe.train([code], 600)
    tok.save('tok.json')
    whole = text.prepare(path, 'tok.json', out='whole')
    monkeypatch.setattr(reading, 'PIECE', size)
    joined, parts = [''], list(text.read_file(path))
    for piece, last in parts: joined[-1] += piece; joined += [''] if last else []
    assert joined == [code, 'second <|endoftext|> stays\n', POEM, ''] and max(len(p) for p, _ in parts) <= size + 4
    assert ''.join(p for p, _ in text.pieces(code)) == code
    if size >= 300:
        cut = text.prepare(path, 'tok.json', out='cut')
        def documents(folder):                           # which side a document is on depends on its first piece
            ids = np.concatenate([text.tokens(folder, s)[0] for s in ('train', 'val')])
            return sorted(map(tuple, np.split(ids, np.flatnonzero(ids == tok.eot) + 1)))
        assert documents(whole) == documents(cut)

def test_large_vocabulary_takes_uint32():
    words = ''.join(map(chr, [*range(33, 0xd000), *range(0x20000, 0x20000 + 20000)]))
    folder = text.prepare(put('a.txt', words), 'char')
    meta = text.open_meta(folder)
    assert meta['vocab_size'] > 65536 and meta['dtype'] == 'uint32' and ''.join(read(folder, 'train') + read(folder, 'val')) == words

def test_folder_walk(capsys):
    put('src/b.md', 'bee\n' * 30); put('src/a/z.txt.gz', 'zed\n' * 10); put('src/c.py', b'\xef\xbb\xbf' + b'sea\n' * 30); put('src/d.jsonl', lines({'text': 'dee\n' * 30}))
    put('src/.git/x.txt', 'hidden'); put('src/pic.png', b'PNG\0\1'); put('src/latin.txt', b'caf\xe9'); put('src/broken.txt.gz', 'x' * 99); put('src/empty.txt', '')
    with open('src/broken.txt.gz', 'r+b') as f: f.truncate(12)
    folder = text.prepare('src', 'byte')
    assert sorted(read(folder, 'train') + read(folder, 'val')) == ['bee\n' * 30, 'dee\n' * 30, 'sea\n' * 30, 'zed\n' * 10]
    assert 'left out 3 files' in capsys.readouterr().err
    assert text.files('src/c.py,src/b.md') == ['src/c.py', 'src/b.md']
    both = text.prepare('src/c.py,src/b.md', 'byte')
    assert ''.join(read(both, 'train') + read(both, 'val')) == 'sea\n' * 30 + 'bee\n' * 30

def test_folder_with_its_own_split():
    put('own/train.txt', 'learn ' * 9); put('own/valid.txt.gz', 'judge'); put('own/test.txt', 'secret')
    folder = text.prepare('own', 'byte')
    assert read(folder, 'train') == ['learn ' * 9] and read(folder, 'val') == ['judge']

def test_half_characters_of_json():
    folder = text.prepare(put('a.jsonl', '{"text": "a\\ud800b"}\n\n{"text": "\\ud83d\\ude42"}\n'), 'byte')
    assert b''.join(bpe.byte().decode_bytes([i for i in text.tokens(folder, s)[0] if i < 256]) for s in ('train', 'val')).decode() == 'a\ufffdb🙂'

def test_special_text_is_plain_text():
    "a document that spells <|endoftext|> inside a line cannot end itself"
    folder = text.prepare(put('a.jsonl', lines(*[{'text': f'{i} a <|endoftext|> b'} for i in range(50)])), 'bpe', 400)
    assert sum((text.tokens(folder, s)[0] == text.open_meta(folder)['eot']).sum() for s in ('train', 'val')) == 50

def test_python_tokenizers_get_processes(monkeypatch):
    monkeypatch.setattr(reading, 'PIECE', 1000)
    docs = [f'{i} {POEM}' for i in range(200)]
    path = put('a.jsonl', lines(*({'text': d} for d in docs)))
    whole = writing.encode
    def watched(*args):
        open('pids', 'a').write(f'{os.getpid()}\n')
        return whole(*args)
    monkeypatch.setattr(writing, 'encode', watched)
    folder = text.prepare(path, 'char')
    assert sorted(read(folder, 'train') + read(folder, 'val')) == sorted(docs) and str(os.getpid()) not in open('pids').read().split()

@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='reads the peak from /proc')
def test_memory_does_not_grow_with_the_text():
    code = ('import sys; sys.path.insert(0, {!r}); from data import text; text.prepare(sys.argv[1], "byte", out=sys.argv[2]); '
            'print(next(int(l.split()[1]) >> 10 for l in open("/proc/self/status") if l.startswith("VmHWM")))').format(ROOT)
    line = 'An owl is no fewer than 37 née café mice. '.encode() * 20 + b'\n'
    peak = []
    for n in (24, 96):
        path = put(f'{n}.txt', line * (n * 1000000 // len(line)))
        peak.append(int(subprocess.run([sys.executable, '-c', code, path, f'out{n}'], capture_output=True, text=True, check=True).stdout))
        os.remove(path)
    assert peak[1] - peak[0] < 30, peak                  # MB, for 72 MB more text (144 MB of ids)

# ---------------------------------------------------------------------------------------------------- refusals

@pytest.mark.parametrize('name, content, words', [
    ('a.txt', '', ['no text', '0 bytes']), ('a.txt', b'caf\xe9 au lait', ['not UTF-8', '0xe9', 'iconv']),
    ('a.jsonl', '{"text": "x"}\n{"txt": "y"}\n', ['a.jsonl line 2', 'no "text"', 'it has txt']),
    ('a.jsonl', '{"text": "x"}\n\n{"text": 5}\n', ['a.jsonl line 3', '"text" is 5', 'a string']),
    ('a.jsonl', '{"text": "x"}\n[1]\n', ['line 2', 'not a JSON object']), ('a.jsonl', '{"text": \n', ['line 1', 'not a JSON object']),
    ('a.jsonl', '{"title": "x", "body": "y"}\n', ['line 1', 'title, body', '"text" and "label"', '"messages"']),
    ('a.jsonl', '', ['no text']), ('a.jsonl', '{"text": ""}\n', ['no text'])])
def test_bad_text_is_refused(here, name, content, words):
    refused(lambda: text.prepare(put(name, content), 'byte'), *words)
    assert not tree(text.HERE)                           # nothing is left

def test_broken_gz_is_refused():
    path = put('a.txt.gz', os.urandom(50000).hex())
    with open(path, 'r+b') as f: f.truncate(20000)
    refused(lambda: text.prepare(path, 'byte'), 'a.txt.gz', 'truncated .gz')
    refused(lambda: text.prepare(put('b.gz', 'x') and put('c.txt', 'no') and os.rename('c.txt', 'b.gz') or 'b.gz', 'byte'), 'b.gz', 'broken')

def test_missing_and_unknown():
    refused(lambda: text.prepare('nowhere.txt'), 'nowhere.txt', 'no such file', kind=FileNotFoundError)
    os.makedirs('void')
    refused(lambda: text.prepare('void'), 'void', 'no text', 'expected')
    refused(lambda: text.resolve('shakespere'), '--data=shakespere', 'did you mean --data=shakespeare', 'stdlib', kind=FileNotFoundError)
    refused(lambda: text.resolve('qqqq'), 'no data set', 'wikitext', kind=FileNotFoundError)
    refused(lambda: text.resolve('stdlib-verbs'), 'names, modules', '--data=stdlib-names')
    refused(lambda: text.resolve('shakespeare-x'), 'no tasks')
    refused(lambda: text.resolve('reading'), '--data=reading: no data set', kind=FileNotFoundError)
    assert {'c4', 'fineweb', 'openwebtext', 'shakespeare', 'stdlib', 'wikitext'} <= set(text.names()) and not {'text', 'rows', 'download', 'reading', 'writing', 'opening', 'vocabulary', 'folders'} & set(text.names())

@pytest.fixture
def made():
    return text.prepare(put('a.txt', POEM * 20), 'byte', out='made')

def test_damaged_folders_are_refused(made):
    again = 'delete made and prepare it again'
    def damage(name, change, *words, kind=ValueError, check=False):
        before = open(f'made/{name}', 'rb').read()
        after = change(before)
        if after is None: os.remove(f'made/{name}')
        else: put(f'made/{name}', after)
        refused(lambda: text.open_meta(made, check=check), name, again, *words, kind=kind)
        put(f'made/{name}', before)
    meta = lambda **new: lambda old: json.dumps({k: v for k, v in {**json.loads(old), **new}.items() if v is not None})
    damage('train.bin', lambda b: b[:-1], 'truncated', 'uint16')
    damage('val.bin', lambda b: b + b'\0\0', 'another file')
    damage('val.bin', lambda b: None, 'missing', kind=FileNotFoundError)
    damage('train.bin', lambda b: b'\xff\xff' + b[2:], 'id 65535', '361 ids')
    damage('val.bin', lambda b: b'\1\0' + b[2:], 'checksum', check=True)
    damage('tokenizer.json', lambda b: bpe.char('abc').dumps().encode(), 'checksum')
    damage('meta.json', lambda b: b[:50], 'JSON')
    damage('meta.json', lambda b: b'[]', 'JSON')
    damage('meta.json', meta(version=2), 'version 2')
    names = ('../a.json', '/etc/passwd', '..', '')           # names in it become paths
    for key, values in dict(tokenizer=names, name=names, more_val=[[n] for n in names], sha256=[{n: '0' * 64, 'train.bin': '', 'val.bin': ''} for n in names],
                            vocab_size=(-1, True, 1e3, 2 ** 60), train_tokens=(-1, None, '7'), dtype=('O', 'float64'), eot=(-1,), special=({'a': -1},), labels=([1],)).items():
        for value in values:
            if value is not None: damage('meta.json', meta(**{key: value}), f"its '{key}' is")
    damage('meta.json', meta(kind='poem'), "kind 'poem'")
    damage('meta.json', meta(train_tokens=None), 'no train_tokens')
    refused(lambda: text.prepare('a.txt', 'nope.json'), '--tokenizer=nope.json', 'expected bpe')
    assert text.open_meta(made, check=True)['kind'] == 'text'
    refused(lambda: text.open_meta('.'), 'not a prepared folder', 'python data/text.py', kind=FileNotFoundError)

def test_prepared_folder_with_another_tokenizer(made):
    assert text.resolve('made') == 'made' and text.resolve('made', 'byte') == 'made' and text.resolve('made', '', 4096) == 'made'
    refused(lambda: text.resolve('made', 'char'), 'made', 'byte (361 ids)', '--tokenizer=char')
    refused(lambda: text.resolve('made', 'bpe', 300), '--tokenizer=bpe')
    text.prepare('a.txt', 'bpe', 400, out='made-bpe')
    assert text.resolve('made-bpe', '', 0) == text.resolve('made-bpe', 'bpe', 400) == text.resolve('made-bpe', 'bpe') == 'made-bpe'
    refused(lambda: text.resolve('made-bpe', '', 500), 'bpe400', '--vocab_size=500')
    assert text.resolve('made-bpe', 'made-bpe/tokenizer.json') == 'made-bpe'
    refused(lambda: text.resolve('made-bpe', 'made/tokenizer.json'), 'bpe400', '--tokenizer=made/tokenizer.json')

# ---------------------------------------------------------------------------------------------------- one folder, made once

def test_cache_follows_the_content():
    path = put('my notes.v2.txt', POEM * 9)
    first = text.resolve(path, 'byte')
    stamp = os.stat(first + '/train.bin').st_mtime_ns
    os.utime(path, (1, 1))
    assert text.resolve(path, 'byte') == first and os.stat(first + '/train.bin').st_mtime_ns == stamp
    assert os.path.basename(first).startswith('my_notes-') and first.endswith('-byte')
    other, changed = text.resolve(path, 'char'), text.resolve(put('my notes.v2.txt', (POEM * 9).replace('37', '73')), 'byte')
    assert len({first, other, changed}) == 3 and len(os.listdir(os.path.dirname(first))) == 3

def test_a_tokenizer_made_here_is_recognised():
    "a run that goes on passes its tokenizer as a file and must find the folder that it was made in"
    path = put('a.txt', POEM * 30)
    first = text.resolve(path, 'bpe', 400)
    bpe.loads(bpe.load(first + '/tokenizer.json').dumps()).save('run.json')
    assert text.resolve(path, 'run.json') == first
    bpe.train([POEM], 380).save('other.json')
    other = text.resolve(path, 'other.json')
    assert other != first and text.resolve(path, 'other.json') == other

def test_failure_leaves_what_was_there(monkeypatch, made):
    before = tree('made')
    monkeypatch.setattr(writing, 'finish', lambda *a: 1 / 0)
    assert text.prepare('a.txt', 'byte', out='made') == 'made'         # it is there: nothing is written
    with pytest.raises(ZeroDivisionError): text.prepare('a.txt', 'byte', out='new')
    assert tree('made') == before and not os.path.exists('new') and not os.path.exists('new.tmp')
    put('mine/keep.txt', 'mine')
    refused(lambda: text.prepare('a.txt', 'byte', out='mine'), 'mine exists', 'not a prepared folder', '--out', kind=FileExistsError)
    assert os.listdir('mine') == ['keep.txt'] and not os.path.exists('mine.tmp')
    refused(lambda: text.prepare('a.txt', 'char', out='made'), 'byte (361 ids)', '--tokenizer=char')

def test_a_folder_is_on_the_disk_before_it_takes_its_place(monkeypatch):
    done, sync, place = [], os.fsync, os.rename
    monkeypatch.setattr(os, 'fsync', lambda f: (done.append(os.fstat(f).st_ino), sync(f)))
    monkeypatch.setattr(os, 'rename', lambda *names: (done.append(names), place(*names)))
    text.prepare(put('a.txt', POEM * 20), 'byte', out='new')
    assert done[-1] == ('new.tmp', 'new') and set(done[:-1]) >= {os.stat('new/' + n).st_ino for n in os.listdir('new')}

@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='reads the open files from /proc')
def test_nothing_that_is_renamed_is_open_on_windows(server, monkeypatch):
    "without fcntl, as there, where a file that is open cannot be renamed"
    seen = []
    def watched(rename):
        def look(old, new):
            opened = [os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}')]
            seen.append((old, [p for p in opened if p.startswith(os.path.realpath(old))]))
            return rename(old, new)
        return look
    for module in (download, folders): monkeypatch.setattr(module, 'fcntl', None)
    monkeypatch.setattr(os, 'rename', watched(os.rename))
    monkeypatch.setattr(os, 'replace', watched(os.replace))
    text.prepare(put('a.txt', POEM * 20), 'byte', out='new')
    text.download(server + 'x', 'x.bin', digest())
    assert {'new.tmp', 'x.bin.part'} <= {old for old, _ in seen} and not any(opened for _, opened in seen) and sorted(os.listdir('.')) == ['a.txt', 'new', 'x.bin']

def prepare_slowly(queue, path, out):
    finish = writing.finish
    writing.finish = lambda *a: (time.sleep(0.3), queue.put(os.getpid()), finish(*a))[-1]
    text.prepare(path, 'byte', out=out)

def test_two_at_once_make_it_once():
    path, fork = put('a.txt', POEM * 20), multiprocessing.get_context('fork')
    queue = fork.Queue()
    runs = [fork.Process(target=prepare_slowly, args=(queue, path, 'out')) for _ in range(3)]
    for r in runs: r.start()
    for r in runs: r.join(20)
    assert [r.exitcode for r in runs] == [0, 0, 0]
    queue.get(timeout=5)
    assert queue.empty() and sorted(os.listdir('out')) == ['meta.json', 'tokenizer.json', 'train.bin', 'val.bin'] and not os.path.exists('out.tmp')

@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_interrupted(how):
    path = put('a.txt', POEM * 20)
    code = f'import sys, time; sys.path.insert(0, {ROOT!r}); from data import text, writing; writing.finish = lambda *a: (print("there", flush=True), time.sleep(60)); text.script(lambda: text.prepare("a.txt", "byte", out="out"), "")'
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)                # a shell's background job ignores Ctrl-C, and so would this
    run = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    assert run.stdout.readline() == 'there\n'
    run.send_signal(how)
    _, err = run.communicate(timeout=20)
    assert run.returncode != 0 and 'Traceback' not in err and not os.path.exists('out')
    if how == signal.SIGKILL: put('out.tmp/junk', '')
    if how == signal.SIGINT: assert not os.path.exists('out.tmp') and 'interrupted' in err
    assert text.prepare(path, 'byte', out='out') == 'out' and sorted(os.listdir('.')) == ['a.txt', 'out'] and not os.path.exists('out/junk')

def test_command_line():
    run = lambda *args: subprocess.run([sys.executable, os.path.join(ROOT, 'data', 'text.py'), *args], capture_output=True, text=True)
    bad = run('missing.txt')
    assert bad.returncode == 1 and bad.stderr == 'text.py: missing.txt: no such file or folder\n'
    good = run(put('a.txt', POEM * 9), '--tokenizer=char', '--out=made')
    assert good.returncode == 0 and good.stdout == 'made\n' and 'made made: ' in good.stderr, good.stderr
    assert run('a.txt', '--tokenzer=char').returncode == 2

# ---------------------------------------------------------------------------------------------------- shards

def shard(path, ids, magic=20240520, version=1, count=None, tail=b''):
    header = np.zeros(256, '<i4')
    header[:3] = magic, version, len(ids) if count is None else count
    return put(path, header.tobytes() + np.asarray(ids, '<u2').tobytes() + tail)

def test_shards_as_they_lie():
    for name, ids in (('train_000002', [5, 50256]), ('train_000001', range(1000)), ('val_000000', [7])): shard(f's/fineweb_{name}.bin', ids)
    meta = text.open_meta(text.resolve('s'))
    assert [list(t) for t in text.tokens('s', 'train')] == [list(range(1000)), [5, 50256]] and [list(t) for t in text.tokens(meta, 'val')] == [[7]]
    assert (meta['train_tokens'], meta['val_tokens'], meta['vocab_size'], meta['eot'], meta['tokenizer']) == (1002, 1, 50257, 50256, 'gpt2')
    before = meta['sha256']
    shard('s/fineweb_train_000002.bin', [6, 50256])
    assert text.open_meta('s')['sha256'] != before
    refused(lambda: text.resolve('s', 'char'), 'gpt2', '--tokenizer=char')

def test_damaged_shards_are_refused():
    shard('s/f_val_000000.bin', [1]); shard('s/f_train_000001.bin', [1, 2, 3])
    for words, change in ((['1,031 bytes', '1,032 (4 tokens)', 'truncated'], dict(count=4, tail=b'\0')), (['1,032 bytes', '1,030'], dict(tail=b'\0\0')),
                          (['begins with [20240801, 1, 3]', 'expected the header [20240520, 1'], dict(magic=20240801)), (['[20240520, 2, 3]'], dict(version=2))):
        shard('s/f_train_000001.bin', [1, 2, 3], **change)
        refused(lambda: text.open_meta('s'), 'f_train_000001.bin', *words)
    shard('s/f_train_000001.bin', [1, 2, 50257])
    refused(lambda: text.open_meta('s'), 'f_train_000001.bin', 'id 50257', '50257 ids')
    put('s/f_train_000001.bin', b'ab')
    refused(lambda: text.open_meta('s'), 'not a shard')
    os.remove('s/f_train_000001.bin')
    refused(lambda: text.resolve('s'), 'no train shard', '--shards=1', kind=FileNotFoundError)

# ---------------------------------------------------------------------------------------------------- supervised

def labelled(labels):
    return lines(*({'text': f'example {i}', 'label': l} for i, l in enumerate(labels)))

def test_labelled():
    folder = text.prepare(put('a.jsonl', labelled(['no', 'yes', 'no'] * 30)), 'byte')
    meta = text.open_meta(folder, check=True)
    rows = [json.loads(l) for s in ('train', 'val') for l in open(f'{folder}/{s}.jsonl')]
    assert (meta['kind'], meta['labels'], meta['metric'], meta['train_examples'] + meta['val_examples']) == ('labelled', ['no', 'yes'], 'accuracy', 90)
    assert sorted((int(r['text'].split()[1]), r['label']) for r in rows) == [(i, int(i % 3 == 1)) for i in range(90)] and meta['val_examples'] > 0
    meta = text.open_meta(text.prepare(put('b.jsonl', labelled([3, 10, 7, 3])), 'byte'))
    assert meta['labels'] == ['3', '7', '10'] and meta['val_examples'] == 1            # 0-based places, in the order of the numbers
    folder = text.prepare(put('c.jsonl', labelled([1, 2.5, 0])), 'byte')
    assert (text.open_meta(folder)['labels'], text.open_meta(folder)['metric']) == (None, 'pearson')
    assert [type(json.loads(l)['label']) for l in open(folder + '/train.jsonl')] == [float, float]

GOOD = {'pairs': {'input': 'a', 'target': 'b'}, 'instruct': {'prompt': 'a', 'response': 'b'},
        'qa': {'context': 'an owl flew', 'question': 'who?', 'answers': [{'text': 'owl', 'answer_start': 3}]}}

@pytest.mark.parametrize('kind', GOOD)
def test_other_kinds(kind):
    folder = text.prepare(put('a.jsonl', lines(*[GOOD[kind] | {'extra': i} for i in range(3)])), 'byte')
    meta = text.open_meta(folder, check=True)
    assert meta['kind'] == kind and [json.loads(l) for l in open(folder + '/train.jsonl')] == [GOOD[kind]] * 2 and meta['val_examples'] == 1

def test_messages_and_squad_columns():
    chat = {'messages': [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'ho', 'name': 'x'}]}
    assert supervised.check(chat, 'instruct', 'a', 1) == {'messages': [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'ho'}]}
    assert supervised.check(GOOD['qa'] | {'answers': {'text': ['owl'], 'answer_start': [3]}}, 'qa', 'a', 1) == GOOD['qa']
    assert supervised.check(GOOD['qa'] | {'answers': []}, 'qa', 'a', 1)['answers'] == []

@pytest.mark.parametrize('rows, words', [
    ([{'text': 'a', 'label': 'x'}, {'text': 'b'}], ['line 2', 'no "label"', 'it has text']),
    ([{'text': 'a', 'label': 'x'}, {'text': 'b', 'label': None}], ['line 2', '"label" is null', 'a class']),
    ([{'text': 'a', 'label': 'x'}, {'text': 'b', 'label': True}], ['line 2', '"label" is true']),
    ([{'text': 'a', 'label': 'x'}, {'text': 'b', 'label': ['x']}], ['line 2', '"label" is ["x"]']),
    ([{'text': 'a', 'label': 'x'}, {'text': 'b', 'label': 1}], ['strings', 'numbers', "'x'", '1']),
    ([{'text': 'a', 'label': 'x'}, {'text': 'b', 'label': 'x'}], ["every label is 'x'"]),
    ([{'text': 'a', 'text_b': 3, 'label': 'x'}], ['"text_b" is 3', 'a string']),
    ([{'text': 'a', 'label': 0.5}], ['1 examples']),
    ([{'input': 'a', 'target': 'b'}, {'input': 'a', 'target': 5}], ['line 2', '"target" is 5']),
    ([{'prompt': 'a', 'response': 'b'}, {'prompt': 'a'}], ['line 2', 'no "response"']),
    ([{'messages': [{'role': 'user', 'content': 'a'}]}], ['line 1', 'assistant turn']),
    ([{'messages': [{'role': 'robot', 'content': 'a'}]}], ['line 1', '"role"']),
    ([GOOD['qa'] | {'answers': [{'text': 'owl', 'answer_start': 4}]}], ['line 1', 'at that place']),
    ([GOOD['qa'] | {'answers': [{'text': 'owl', 'answer_start': -8}]}], ['line 1', 'at that place']),
    ([GOOD['qa'] | {'answers': 'owl'}], ['line 1', '"answers" is "owl"']),
    ([GOOD['qa'] | {'answers': {'text': 3, 'answer_start': [3]}}], ['line 1', '"answers" is {"text": 3']),
    ([GOOD['qa'] | {'answers': {'text': 'owl', 'answer_start': 3}}], ['line 1', '"answers" is {"text": "owl"'])])
def test_bad_examples_are_refused(rows, words):
    refused(lambda: text.prepare(put('a.jsonl', lines(*rows)), 'byte'), 'a.jsonl', *words)
    assert not tree(text.HERE)

def test_supervised_split_of_its_own():
    put('own/train.jsonl', labelled('xyxy')); put('own/dev.jsonl', labelled('zx'))
    folder = text.prepare('own', 'byte')
    assert text.open_meta(folder)['labels'] == ['x', 'y', 'z'] and [json.loads(l)['label'] for l in open(folder + '/val.jsonl')] == [2, 0]

# ---------------------------------------------------------------------------------------------------- downloads

class Server(http.server.BaseHTTPRequestHandler):
    # stop: closes the connection after so many bytes of an answer; lie: where it begins, whatever was asked for; size: what it says; wait: seconds
    body, ranges, stop, log, lie, size, wait, headers_seen = b'', True, 0, [], None, None, 0, {}

    def do_GET(self):
        start = int(self.headers['Range'][6:-1]) if self.headers.get('Range') and self.ranges else 0
        self.log.append(start)
        Server.headers_seen = dict(self.headers)
        time.sleep(self.wait)
        if self.path == '/moved':
            self.send_response(302)
            self.send_header('Location', 'file:///etc/passwd')
            return self.end_headers()
        if self.path == '/missing': return self.send_error(404)
        if start >= len(self.body) and start:
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{len(self.body)}')
            return self.end_headers()
        part = start > 0
        if self.lie is not None: start, part, Server.lie = self.lie, True, None
        self.send_response(206 if part else 200)
        if part: self.send_header('Content-Range', f'bytes {start}-{len(self.body) - 1}/{len(self.body)}')
        if self.size != '': self.send_header('Content-Length', self.size or str(len(self.body) - start))
        self.end_headers()
        self.wfile.write(self.body[start:][:self.stop or None])

    def log_message(self, *args): pass

@pytest.fixture
def server():
    Server.body, Server.ranges, Server.stop, Server.log, Server.lie, Server.size, Server.wait = random.Random(2).randbytes(300_000), True, 0, [], None, None, 0
    running = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield f'http://127.0.0.1:{running.server_port}/'
    running.shutdown()
    running.server_close()

def digest(): return hashlib.sha256(Server.body).hexdigest()

def test_download(server):
    path = text.download(server + 'x', 'd/e/x.bin', digest(), 300_000)
    assert open(path, 'rb').read() == Server.body and os.listdir('d/e') == ['x.bin']
    assert text.download(server + 'x', 'd/e/x.bin') == path and Server.log == [0]
    assert Server.headers_seen['Accept-Encoding'] == 'identity'            # packed, it would be of another size and checksum

def test_a_download_is_on_the_disk_before_it_takes_its_place(server, monkeypatch):
    done, sync, place = [], os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda f: (done.append(os.fstat(f).st_size), sync(f)))
    monkeypatch.setattr(os, 'replace', lambda *names: (done.append(names), place(*names)))
    text.download(server + 'x', 'x.bin')
    assert done == [300_000, ('x.bin.part', 'x.bin')]
    monkeypatch.setattr(download, 'open', lambda *a: pytest.fail('a folder may be read-only'), raising=False)
    assert text.download(server + 'x', 'x.bin') == 'x.bin'

def test_of_several_downloads_one_fetches(server):
    Server.wait = 0.3
    runs = [threading.Thread(target=text.download, args=(server + 'x', 'x.bin', digest())) for _ in range(3)]
    for r in runs: r.start()
    for r in runs: r.join()
    assert Server.log == [0] and open('x.bin', 'rb').read() == Server.body and os.listdir('.') == ['x.bin']

def test_no_download_waits_for_ever(server, monkeypatch):
    seen, real = [], download.urllib.request.urlopen
    monkeypatch.setattr(download.urllib.request, 'urlopen', lambda *a, **k: (seen.append(k.get('timeout')), real(*a, **k))[1])
    text.download(server + 'x', 'x.bin')
    assert len(seen) == 1 and 0 < seen[0] <= 60

@pytest.mark.parametrize('have', [1, 1000, 299_999, 300_000, 300_001])
def test_download_goes_on(server, have):
    put('x.bin.part', (Server.body + b'?')[:have])
    text.download(server + 'x', 'x.bin', digest())
    assert open('x.bin', 'rb').read() == Server.body and Server.log == ([have] if have <= 300_000 else [have, 0]) and os.listdir('.') == ['x.bin']

def test_download_from_a_server_without_ranges(server):
    Server.ranges = False
    put('x.bin.part', b'half')
    text.download(server + 'x', 'x.bin', digest())
    assert open('x.bin', 'rb').read() == Server.body

def test_download_of_another_part_than_asked_for(server):
    Server.lie = 5                                       # what comes begins elsewhere: it is not appended
    put('x.bin.part', Server.body[:1000])
    refused(lambda: text.download(server + 'x', 'x.bin', digest()), 'checksum')
    Server.lie = 0                                       # all of it, though a part was asked for
    put('x.bin.part', Server.body[:1000])
    text.download(server + 'x', 'x.bin', digest())
    assert open('x.bin', 'rb').read() == Server.body and Server.log == [1000, 1000]

def test_broken_connections(server):
    Server.stop = 100_000
    text.download(server + 'x', 'x.bin', digest())
    assert Server.log == [0, 100_000, 200_000] and open('x.bin', 'rb').read() == Server.body
    Server.ranges = False
    refused(lambda: text.download(server + 'x', 'y.bin'), 'could not reach', '100,000 of 300,000', '100,000 bytes are kept', '--source', kind=ConnectionError)
    assert os.path.getsize('y.bin.part') == 100_000 and not os.path.exists('y.bin')
    Server.ranges, Server.stop = True, 0
    text.download(server + 'x', 'y.bin', digest())       # goes on from what was kept
    assert Server.log[-1] == 100_000

def test_bad_downloads(server):
    refused(lambda: text.download(server + 'x', 'd/x.bin', '0' * 64), 'checksum', digest()[:16], 'expected 0000')
    refused(lambda: text.download(server + 'x', 'd/x.bin', max_bytes=299_999), '300,000 bytes', 'at most 299,999')
    refused(lambda: text.download(server + 'missing', 'd/x.bin'), '404', '--source=FOLDER', kind=ConnectionError)
    refused(lambda: text.download('http://127.0.0.1:9/x', 'd/x.bin'), 'could not reach http://127.0.0.1:9/x', 'get the file by hand', kind=ConnectionError)
    for size, most, words in (('1000000000000', 299_999, ['1,000,000,000,000 bytes, expected at most 299,999']),    # refused before it comes
                              ('', 70_000, [' bytes, expected at most 70,000', 'thrown away']), ('many', 0, ['the server gives a size that is not a number'])):
        Server.size, Server.ranges, Server.stop = size, False, 9 if most == 299_999 else 0        # '': it does not say
        refused(lambda: text.download(server + 'x', 'd/x.bin', max_bytes=most), *words)
    refused(lambda: text.download(server + 'moved', 'd/x.bin'), 'could not reach', kind=ConnectionError)           # to a file of this machine
    assert os.listdir('.') == []                         # nothing is left, not even the folder

def test_a_full_disk_is_not_called_a_bad_connection(server, monkeypatch):
    def full(*a): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(download, 'receive', full)
    with pytest.raises(OSError, match='No space left') as e: text.download(server + 'x', 'x.bin')
    assert type(e.value) is OSError and os.listdir('.') == []

# ---------------------------------------------------------------------------------------------------- the data sets

CODE = 'import os\n\ndef find_name(a):\n    """find_name finds."""\n    if a: return find_name(a - 1) + os.getpid()\n    return 3 * len(str(a)) + {i}\n\n' + 'x = 1  # café\n' * 30

@pytest.fixture
def library():
    for package in 'abcd':
        for i in range(9): put(f'lib/{package}kit/m{i}.py', CODE.format(i=f'{i}  # {package}kit'))
    put('lib/akit/tests/test_x.py', 'left = "out"\n'); put('lib/latin.py', b'x = "\xe9"\n')
    return 'lib'

def test_stdlib(library):
    folder = stdlib.prepare('bpe', 500, source=library, out='out')
    assert sum(open(p).read() in read(folder, 'train') + read(folder, 'val') for p in ('lib/akit/m3.py', 'lib/dkit/m8.py')) == 2
    assert text.open_meta(folder)['train_documents'] + text.open_meta(folder)['val_documents'] in (36, 37)     # one may be cut
    assert 'left' not in ''.join(read(folder, 'train') + read(folder, 'val'))
    refused(lambda: stdlib.prepare(task='verbs'), '--task=verbs', 'names, modules')
    refused(lambda: stdlib.prepare('byte', source='.git', out='new'), 'no .py files', '--source', kind=FileNotFoundError)

def test_the_running_library_is_there():
    root = stdlib.sysconfig.get_paths()['stdlib']
    size = sum(len(code) for _, code in stdlib.sources(root))
    assert 5e6 < size < 30e6 and list(stdlib.sources(root)) == list(stdlib.sources(root))

def test_stdlib_tasks(library):
    folder = stdlib.prepare('byte', source=library, out='names', task='names')
    rows = {s: [json.loads(l) for l in open(f'{folder}/{s}.jsonl')] for s in ('train', 'val')}
    assert text.open_meta(folder)['kind'] == 'pairs' and rows['val'] and all(r['target'] == 'find_name' and 'find_name' not in r['input'] for s in rows for r in rows[s])
    assert rows['train'][0]['input'].startswith('def _(a):\n    """_ finds."""\n')
    folder = stdlib.prepare('byte', source=library, out='modules', task='modules')
    rows = {s: [json.loads(l) for l in open(f'{folder}/{s}.jsonl')] for s in ('train', 'val')}
    meta = text.open_meta(folder)
    assert meta['labels'] == ['akit', 'bkit', 'ckit', 'dkit'] and {r['label'] for r in rows['val']} == {0, 1, 2, 3} and 'kit' not in str(rows)
    train, val = stdlib.by_file(list(stdlib.snippets(library)))
    number = lambda r: (r['label'], r['text'].split('str(a)) + ')[1].split()[0]) if 'str(a)) + ' in r['text'] else None
    assert not {number(r) for r in train} & {number(r) for r in val} - {None}

def test_shakespeare():
    plays = POEM * 100
    put('src/input.txt.gz', plays)
    folder = shakespeare.prepare(source='src')
    at = len(plays) * 9 // 10
    assert folder == text.HERE + '/shakespeare' and read(folder, 'train') == [plays[:at]] and read(folder, 'val') == [plays[at:]]
    assert text.open_meta(folder)['name'] == 'char' and shakespeare.prepare('byte', source='src') == folder + '-byte'
    refused(lambda: shakespeare.prepare('byte', source='src/none', out='x'), 'no input.txt', 'raw.githubusercontent', kind=FileNotFoundError)
    assert text.resolve('shakespeare') == folder and text.resolve('shakespeare', 'byte') == folder + '-byte'

ARTICLE = ' \n = {} = \n \n It flew . \n \n = = Early = = \n \n <unk> 3 @.@ 5 = many = words . \n'

def test_wikitext():
    put('src/train.txt.gz', ''.join(ARTICLE.format(f'Owl {i}') for i in range(7))); put('src/valid.txt', ARTICLE.format('Eagle') + ' \n')
    folder = wikitext.prepare('bpe', 400, source='src')
    train = read(folder, 'train')
    assert len(train) == 7 and 'Owl 3' in train[3] and '<unk> 3 @.@ 5' in train[3] and len(read(folder, 'val')) == 1 and folder.endswith('/wikitext-bpe400')
    assert ''.join(train) == ''.join(ARTICLE.format(f'Owl {i}') for i in range(7))
    with zipfile.ZipFile('src/wikitext-103-v1.zip', 'w') as z:
        for n in ('train', 'valid'): z.writestr(f'wikitext-103/wiki.{n}.tokens', ARTICLE.format(n) * 2)
    assert len(read(wikitext.prepare('byte', source='src', task='103'), 'train')) == 2
    assert text.resolve('wikitext-103', 'byte').endswith('/wikitext-103-byte')

def test_openwebtext():
    def tar(files, mode='w'):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as t:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
        return out.getvalue()
    inner = [lzma.compress(tar({f'00{j}{i}.txt': f'page {j} {i}\n\n\n\n\nend \n'.encode() for i in range(30)})) for j in range(2)]
    put('src/urlsf_subset00.tar', tar({f'openwebtext/urlsf_subset00-{j}_data.xz': x for j, x in enumerate(inner)}))
    folder = openwebtext.prepare('byte', source='src', subsets=1)
    assert ''.join(read(folder, 'train') + read(folder, 'val')) == ''.join(f'page {j} {i}\n\nend' for j in range(2) for i in range(30))
    assert openwebtext.prepare('byte') == folder == text.resolve('openwebtext', 'byte')
    refused(lambda: openwebtext.prepare('byte', source='src', subsets=2), '1 of 21', '--out')
    refused(lambda: openwebtext.prepare('byte', source='src', out='new'), 'urlsf_subset01.tar', kind=FileNotFoundError)
    data = open('src/urlsf_subset00.tar', 'rb').read()
    put('src/urlsf_subset00.tar', data[:700])
    refused(lambda: openwebtext.prepare('byte', source='src', subsets=1, out='new'), 'urlsf_subset00.tar', 'truncated')

def test_fineweb():
    shard('src/fineweb_val_000000.bin', [1, 2]); shard('src/fineweb_train_000001.bin.gz', [3, 4, 5]); shard('src/fineweb_train_000002.bin.gz', [6], count=9)
    folder = fineweb.prepare(source='src', shards=1)
    assert [list(t) for t in text.tokens(folder, 'train')] == [[3, 4, 5]] and fineweb.prepare() == text.resolve('fineweb') == folder
    refused(lambda: fineweb.prepare(source='src', shards=2), 'fineweb_train_000002.bin', 'truncated')
    assert sorted(os.listdir(folder)) == ['fineweb_train_000001.bin', 'fineweb_val_000000.bin']
    refused(lambda: fineweb.prepare('bpe'), '--tokenizer=bpe', 'gpt2')
    refused(lambda: fineweb.prepare(shards=200), '--shards=200')

def test_fineweb_from_the_network(server, monkeypatch):
    monkeypatch.setattr(fineweb, 'URL', server)
    Server.body, Server.stop = open(shard('x.bin', range(40000)), 'rb').read(), 30_000
    folder = fineweb.prepare(shards=1)
    assert sorted(os.listdir(folder)) == ['fineweb_train_000001.bin', 'fineweb_val_000000.bin'] and Server.log == [0, 30000, 60000] * 2
    assert len(text.tokens(folder, 'train')[0]) == 40000


def test_a_folder_that_is_there_already_is_said(tmp_path):
    """Another --source is not read then, and nobody should think that it was."""
    script = os.path.join(os.path.dirname(text.__file__), 'shakespeare.py')
    (tmp_path / 'input.txt').write_text('To be, or not to be. ' * 400)
    command = [sys.executable, script, f'--source={tmp_path}', '--tokenizer=byte', f'--out={tmp_path}/made']
    first, second = (subprocess.run(command, capture_output=True, text=True) for _ in range(2) if not time.sleep(1.1))
    assert first.returncode == 0 and 'already' not in first.stderr and second.returncode == 0 and first.stdout == second.stdout, first.stderr
    assert 'made was there already and is as it was: delete it to make it anew' in second.stderr
    told = subprocess.run([sys.executable, script, '--help'], capture_output=True, text=True).stdout
    assert 'a folder with them' in told and "(default: '')" in told
