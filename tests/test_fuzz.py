"""Files come from anywhere: whatever is in one, it opens as what it is, or there is one line that says what is wrong. No
other exception, no hang, nothing far larger than the file in memory, and nothing in it runs.

Real files, made by the project's own code, are damaged by a seeded random: byte by byte, entry by entry of their JSON,
pickles and archives. FUZZ=10 makes ten times as many cases, and the slow test at the end does so."""
import base64, collections, contextlib, copy, gzip, http.server, io, json, os, pickle, random, resource, shutil, signal, struct, tarfile, threading, warnings, zipfile

import numpy as np
import pytest
import regex
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

import adapters, bert, bpe, electra, gpt, lora, t5, train
from data import files, openwebtext, reading, supervised, text
from data.rows import training, validation
from lib.checkpoint import load_checkpoint
from lib.export import export_hf
from lib.models import typed
from lib.weights import load_parts

MORE = float(os.environ.get('FUZZ', 1))
COUNT = collections.Counter()                                 # cases, by reader
TINY = dict(vocab_size=99, n_layer=2, n_head=2, n_embd=12)


class Hang(BaseException): pass


def alarm(*_): raise Hang


@contextlib.contextmanager
def bounds(seconds, size):
    """The block ends in time and adds no more to the memory than 64 MB and 50 times `size`."""
    reset = os.access('/proc/self/clear_refs', os.W_OK)
    status = lambda: {l.split(':')[0]: int(l.split()[1]) << 10 for l in open('/proc/self/status') if l.startswith(('VmHWM', 'VmRSS', 'VmSize'))}
    if reset: open('/proc/self/clear_refs', 'w').write('5')   # the peak begins at what there is now
    before, (soft, hard) = status() if reset else {}, resource.getrlimit(resource.RLIMIT_AS)
    if reset: resource.setrlimit(resource.RLIMIT_AS, (before['VmSize'] + (3 << 30), hard))
    old = signal.signal(signal.SIGPROF, alarm)
    signal.setitimer(signal.ITIMER_PROF, seconds)              # of work, not of waiting for a busy machine
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        # also of what is refused
        if reset: assert status()['VmHWM'] - before['VmRSS'] < (64 << 20) + 50 * size, 'it took far more memory than the file'


def holds(reader, call, size, about=''):
    """call() returns, or raises ValueError or OSError with one line -> what it returned, or None"""
    COUNT[reader] += 1
    try:
        with bounds(20, size), warnings.catch_warnings(): warnings.simplefilter('ignore'); return call()
    except (ValueError, OSError) as e:
        line = str(e)
        assert line.strip() and '\n' not in line and len(line) < 2000, (about, line)
        assert 'MemoryError' not in line and 'allocate memory' not in line, (about, line)
    except BaseException as e: raise AssertionError(f'{reader}: {type(e).__name__}: {e} on {about}') from e


# ---------------------------------------------------------------------------------------------------- damage

BAD = [None, True, -1, 0, 1, 3, 2 ** 31, 10 ** 9, 10 ** 18, -10 ** 30, 0.5, -1.5, 1e308, float('nan'), float('inf'), '', 'x', '../../etc/passwd', '/etc/passwd', 'a\nb',
       [], {}, [[]], [1, 2], ['a'], {'a': 1}, {'a': {'b': []}}, [None], 'uint16', 'x' * 300]


def hurt_bytes(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, how = rng.randrange(len(data) + 1), rng.randrange(8)
        if how == 0 and data: data[at % len(data)] ^= 1 << rng.randrange(8)
        if how == 1: del data[at:]
        if how == 2: data[at:at] = rng.randbytes(rng.choice((1, 4, 8, 100)))
        if how == 3: del data[at:at + rng.choice((1, 2, 8, 100))]
        if how == 4: data[at:at + 8] = struct.pack('<q', rng.choice((0, -1, 1, 2 ** 31, 2 ** 62, len(data))))
        if how == 5: data[at:at + 4] = rng.choice((b'\xff' * 4, b'\0' * 4, b'\x80' * 4, b'9999', b'"": ', b'[[[[', b'null', b'{{}}'))
        if how == 6: data[at:at] = data[rng.randrange(len(data) + 1):][:rng.choice((4, 50, 500))]
        if how == 7 and data:
            i = at % len(data)
            data[i:i + 1] = bytes([rng.randrange(256)])
    return bytes(data)


def places(x, path=()):
    """All places in nested dicts and lists."""
    for k in (x if isinstance(x, dict) else range(len(x)) if isinstance(x, list) and len(x) < 500 else ()):
        yield path, k
        yield from places(x[k], (*path, k))


def hurt_tree(tree, rng, bad=BAD):
    """A copy of nested dicts and lists (tensors are kept) in which one to three places hold something else, or are gone."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, 3))):
        spots = list(places(tree))
        if not spots: break
        top = [s for s in spots if len(s[0]) < 2]
        path, k = rng.choice(top if rng.random() < 0.7 else spots)
        node = tree
        for p in path: node = node[p]
        how = rng.randrange(6)
        if how == 0: del node[k]
        elif how == 1 and isinstance(node, dict): node[rng.choice((str(k) + 'x', 'extra', 7))] = node.pop(k)
        elif how == 2 and isinstance(node[k], (list, dict)) and node[k]: node[k] = node[k] * 2 if isinstance(node[k], list) else [node[k]]
        elif how == 3 and isinstance(node[k], int): node[k] = node[k] + rng.choice((-1, 1, 10 ** 6, -10 ** 6))
        else: node[k] = copy.deepcopy(rng.choice(bad))
    return tree


def as_json(tree, rng):
    words = json.dumps(tree)
    how = rng.randrange(40)
    if how == 0: words = '[' * 100_000 + words
    if how == 1: words = words[:-1] + ', "a": ' + '9' * 5000 + '}'
    if how == 2: words = words[:-1] + ', ' + words[1:]                     # every key twice
    return words.encode('utf-8', 'replace')


class Tool:
    """A pickle that would touch a file."""
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (self.path, 'w')


# ---------------------------------------------------------------------------------------------------- real files

@pytest.fixture(scope='module')
def real(tmp_path_factory, corpus):
    root, old = tmp_path_factory.mktemp('fuzz'), text.HERE
    text.HERE = str(root / 'made')
    data = text.prepare(str(corpus), 'byte', out=str(root / 'bytes'))
    flags = f'--model=gpt --preset=gpt2 --n_layer=2 --n_head=2 --n_embd=12 --block_size=16 --batch_size=4 --max_iters=2 --eval_interval=2 --eval_iters=2 --device=cpu --data={data}'.split()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train.main([*flags, f'--out_dir={root}/run', f'--export_hf={root}/gpt'])
        train.main([f for f in flags if not f.startswith(('--model', '--preset', '--n_', '--block'))] + [f'--init_from={root}/run', f'--out_dir={root}/adapter', '--lora_rank=2'])
        labelled = root / 'labelled.jsonl'
        labelled.write_text(''.join(json.dumps(dict(text=f'{i} words', label='ab'[i % 2])) + '\n' for i in range(40)))
        text.prepare(str(labelled), 'byte', out=str(root / 'labelled'))
        models = dict(bert=bert.Model(bert.Config(**TINY, block_size=16)), t5=t5.Model(t5.Config(**TINY, n_hidden=20, block_size=16)),
                      electra=electra.Model(electra.Config(**TINY, block_size=16, generator_size=1.0, embed_dim=12, generator_heads=2)),
                      llama=gpt.Model(gpt.Config(**TINY, block_size=16, norm='rmsnorm', positions='rotary', gated=True, activation='silu', bias=False, tied=False, n_hidden=20)))
        for name, model in models.items(): export_hf(__import__({'llama': 'gpt'}.get(name, name)), model, None, str(root / name))
        model, _ = train.load_model(str(root / 'run'))
        lora.save(lora.wrap(model, 2), str(root / 'peft'))
        model, _ = train.load_model(str(root / 'run'))
        lora.save(adapters.bottleneck(model, 3), str(root / 'bottleneck'))
    text.HERE = old
    return root


def put(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as f: f.write(data)
    return str(path)


# ---------------------------------------------------------------------------------------------------- safetensors

def safetensors(tensors, rng=None, change=lambda header: header):
    header, at, body = {}, 0, b''
    for name, (kind, shape, data) in tensors.items():
        header[name], at, body = dict(dtype=kind, shape=shape, data_offsets=[at, at + len(data)]), at + len(data), body + data
    head = change(header)
    head = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack('<Q', len(head)) + head + body


def read_safe(path):
    out = files.read_safetensors(path)
    assert sum(t.numel() * t.element_size() for t in out.values()) <= os.path.getsize(path)
    return out


def test_safetensors(tmp_path):
    rng, path = random.Random(1), str(tmp_path / 'm.safetensors')
    entries = {f'w{i}': (kind, shape, rng.randbytes(size * int(np.prod(shape)))) for i, (kind, shape, size) in
               enumerate([('F32', [3, 7], 4), ('BF16', [13], 2), ('I64', [], 8), ('U8', [0, 5], 1), ('BOOL', [2, 1, 3], 1)])}
    whole = safetensors(entries)
    put(path, whole)
    assert len(read_safe(path)) == 5
    for i in range(int(1500 * MORE)):
        data = hurt_bytes(whole, rng) if i % 2 else safetensors(entries, change=lambda h: as_json(hurt_tree(h, rng), rng))
        holds('safetensors', lambda: read_safe(put(path, data)), len(data), data[:300])
    lies = [dict(a=dict(dtype='F32', shape=[1], data_offsets=[0, 4]), b=dict(dtype='F32', shape=[1], data_offsets=[0, 4])),
            dict(a=dict(dtype='F32', shape=[1], data_offsets=[4, 8])), dict(a=dict(dtype='F32', shape=[2 ** 31, 2 ** 31, 0], data_offsets=[0, 0])),
            dict(a=dict(dtype='F32', shape=[2 ** 62], data_offsets=[0, 2 ** 64])), dict(a=dict(dtype='F32', shape=[-1, -1], data_offsets=[0, 4])),
            dict(a=dict(dtype='F32', shape=[1] * 5000, data_offsets=[0, 4])), dict(a=dict(dtype='F32', shape=[True], data_offsets=[0, 4])),
            dict(a=dict(dtype='F32', shape=[1], data_offsets=[0, 4, 8])), {'a\nb' * 99: dict(dtype='F32', shape=[9], data_offsets=[0, 4])}]
    for lie in lies:
        head = json.dumps(lie).encode()
        assert holds('safetensors', lambda: read_safe(put(path, struct.pack('<Q', len(head)) + head + bytes(8))), 999, lie) is None
    for n in (0, 7, 2 ** 63, 2 ** 64 - 1, 10 ** 8, 10 ** 8 + 1): holds('safetensors', lambda: read_safe(put(path, struct.pack('<Q', n) + b'{}')), 99, n)


def test_safetensors_say_what_is_wrong(tmp_path):
    path = str(tmp_path / 'm.safetensors')
    for lie, says in (([], 'its header is not a JSON object'), (5, 'its header is not a JSON object'), (dict(a=dict(dtype='F32', shape=[True], data_offsets=[0, 4])), 'claims bytes 0 to 4 of 4'),
                      (dict(a=dict(dtype='F32', shape=[1], data_offsets=[False, 4])), 'claims bytes False to 4'), (dict(a=dict(dtype='F32', shape=[0, 2 ** 63], data_offsets=[0, 0])), 'm.safetensors: damaged')):
        size = 4 * (isinstance(lie, dict) and 4 in lie['a']['data_offsets'])
        head = json.dumps(lie).encode()
        put(path, struct.pack('<Q', len(head)) + head + bytes(size))
        with pytest.raises(ValueError, match=says): files.read_safetensors(path)
    put(path, struct.pack('<Q', 10 ** 8 + 1) + b'{')
    os.truncate(path, 10 ** 8 + 100)                          # as long as it says, and not read
    with bounds(20, 0), pytest.raises(ValueError, match='a header of 100000001 bytes'): files.read_safetensors(path)


# ---------------------------------------------------------------------------------------------------- tokenizers

@pytest.fixture(scope='module')
def tokenizers(tmp_path_factory, corpus):
    """{name: {file: its bytes}}: a folder each, the first file is loaded"""
    words, out = corpus.read_text()[:20_000] + ' naïve 日本 ', {}
    tok = bpe.train([words], 420)
    out['own'], out['char'] = {'tok.json': tok.dumps().encode()}, {'tok.json': bpe.char([words]).dumps().encode()}
    folder = tmp_path_factory.mktemp('hf')
    for model in ('bpe', 'wordpiece', 'unigram'):
        bpe.train([words], 420, model=model).save_hf(str(folder / model))
        out[model] = {'tokenizer.json': (folder / model / 'tokenizer.json').read_bytes()}
    spec = tok.spec()['model']
    vocab = spec['vocab'] | {s: 10_000 + i for i, s in enumerate(('<mask>', '<|endoftext|>'))}
    out['pair'] = {'encoder.json': json.dumps(vocab).encode(), 'vocab.bpe': ('#version: 0.2\n' + '\n'.join(map(' '.join, spec['merges']))).encode()}
    out['vocab'] = {'vocab.txt': '\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'abcdefghijklmnopqrstuvwxyz', '##s', '##ing', 'plus', 'is']).encode()}
    out['tiktoken'] = {'my.tiktoken': b''.join(base64.b64encode(bpe.invisible(t)) + b' %d\n' % i for i, t in enumerate(tok.state['tokens']))}
    def field(n, x):
        varint = lambda v: bytes([v]) if v < 128 else bytes([v & 127 | 128]) + varint(v >> 7)
        return varint(n << 3) + varint(x) if isinstance(x, int) else varint(n << 3 | 2) + varint(len(x)) + x
    for kind, name in ((1, 'unigram.model'), (2, 'pieces.model')):
        pieces = [('<pad>', 3), ('</s>', 3), ('<unk>', 2)] + [(f'<0x{b:02X}>', 6) for b in range(256)] + [(p, 1) for p in ['▁', *'abcdeghilmnoprstvz.', '▁t', '▁th', '▁the', 'in', 'is']]
        proto = b''.join(field(1, field(1, p.encode()) + b'\x15' + struct.pack('<f', -float(i)) + field(3, k)) for i, (p, k) in enumerate(pieces))
        # darts: one key 'a' -> 'b'
        units = [0] * 400
        units[0], units[1 ^ 97], units[1 ^ 97 ^ 1] = 1 << 10, 97 | 1 << 8 | 1 << 10, 1 << 31
        chars = struct.pack('<I', 4 * len(units)) + struct.pack(f'<{len(units)}I', *units) + b'b\0'
        out[name] = {name: proto + field(2, field(3, kind) + field(35, 1)) + field(3, field(2, chars) + field(3, 1) + field(4, 1))}
    return out


def load_tokenizer(folder, parts):
    for name, data in parts.items(): put(f'{folder}/{name}', data)
    tok = bpe.load(f'{folder}/{next(iter(parts))}')
    try: tok.decode(tok.encode('The sums.'))                  # a char vocabulary may lack a letter: ValueError
    except ValueError: pass
    assert 0 < tok.vocab_size <= bpe.MAX_IDS and len(tok.byte_lengths) == tok.vocab_size
    return tok


@pytest.mark.parametrize('name', ['own', 'char', 'bpe', 'wordpiece', 'unigram', 'pair', 'vocab', 'tiktoken', 'unigram.model', 'pieces.model'])
def test_tokenizers(name, tokenizers, tmp_path):
    rng, parts = random.Random(name), tokenizers[name]
    assert load_tokenizer(str(tmp_path), parts) is not None
    for i in range(int(400 * MORE)):
        hurt, target = dict(parts), rng.choice(list(parts))
        if target.endswith('.json') and i % 2: hurt[target] = as_json(hurt_tree(json.loads(parts[target]), rng), rng)
        else: hurt[target] = hurt_bytes(parts[target], rng)
        size = sum(map(len, hurt.values()))
        if i % 50 == 0: hurt[target] = gzip.compress(hurt[target])
        holds('tokenizers', lambda: load_tokenizer(str(tmp_path), hurt), size, (name, i))


def test_tokenizer_text_of_a_checkpoint(tokenizers):
    rng, whole = random.Random(2), {n: json.loads(tokenizers[n]['tok.json']) for n in ('own', 'char')}
    for i in range(int(400 * MORE)):
        words = as_json(hurt_tree(whole[rng.choice(['own', 'char'])], rng), rng).decode()
        holds('tokenizers', lambda: bpe.loads(words), len(words), i)


@pytest.mark.parametrize('data', [
    gzip.compress(bytes(300 << 20), 1), b'\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02' + b'\xff' * 500_000,
    json.dumps(dict(a=10 ** 12)).encode(), json.dumps(dict(a=-1)).encode(), b'YWE= 99999999999\n' + b''.join(base64.b64encode(bytes([b])) + b' %d\n' % b for b in range(256)),
    json.dumps(dict(model=dict(type='WordPiece', unk_token='a', continuing_subword_prefix='##', vocab=dict(a=10 ** 11)))).encode(),
    json.dumps(dict(model=dict(type='Unigram', unk_id=0, vocab=[['a', float('nan')], ['b', -1]]))).encode(),
    json.dumps(dict(model=dict(type='Unigram', unk_id=None, vocab=[['a', -2], ['b', -1]]))).encode(), b'[' * 10 ** 6, b'{"a":' * 10 ** 6],
    ids='bomb varint large negative rank wordpiece nan unknown deep deeper'.split())
def test_tokenizers_that_lie(data, tmp_path):
    for name in ('encoder.json', 'tokenizer.json'): assert holds('tokenizers', lambda: bpe.load(put(str(tmp_path / name), data)), len(data), data[:80]) is None


def test_a_table_of_replacements_in_circles():
    """A double array whose child is its parent; and one of 90 levels, each of two children that lead to the same next level."""
    circle, fork = [0] * 60_000, [0] * 400
    circle[97] = 97 << 10 | 97
    for level in range(90):
        for at in (4 * level + 1, 4 * level + 2): fork[at] = (at ^ 4 * level + 4) << 10 | at & 3
    for units in (circle, fork):
        blob = struct.pack('<I', 4 * len(units)) + struct.pack(f'<{len(units)}I', *units) + b'b\0'
        assert holds('tables', lambda: bpe.precompiled(blob, True), len(blob)) is None


# ---------------------------------------------------------------------------------------------------- checkpoints

WRONG = dict(model=[], config=[], model_name=5, train=[], tokenizer=5, source=5, base=5, lora=[], optimizer={}, scaler=[], data=[], step='2', tokens=2.5, worse=None, evaluated='2',
             train_seconds='2', best='2', skipped='2')                     # of each key what it can not be

@pytest.mark.parametrize('change, says', [
    *[({n: wrong}, f"its '{n}' is a {type(wrong).__name__}: damaged") for n, wrong in WRONG.items()],
    *[(dict(model=dict(a=w)), 'is not a plain tensor') for w in (3, [torch.zeros(2)], torch.eye(3).to_sparse(), torch.zeros(3, device='meta'), torch.zeros(3, dtype=torch.complex64))],
    (dict(model={7: torch.zeros(2)}), "'7' is not a plain tensor"), (dict(model=dict(a=torch.zeros(1).expand(10 ** 9))), 'claim 4,000,000,000 bytes, the file has')],
    ids=[*WRONG, *'number list sparse meta complex name claim'.split()])
def test_what_a_checkpoint_may_hold(change, says, request, tmp_path):
    torch.save(dict(model=dict(a=torch.zeros(3)), config={}, model_name='gpt') | change, tmp_path / 'ckpt.pt')
    with pytest.raises(ValueError, match=says): load_checkpoint(str(tmp_path))
    if 'model' not in change or not isinstance(change['model'], dict): return
    real = request.getfixturevalue('real')
    put(str(tmp_path / 'hf/config.json'), (real / 'gpt/config.json').read_bytes())
    torch.save(change['model'], tmp_path / 'hf/pytorch_model.bin')
    with pytest.raises(ValueError, match=says): files.read_hf(str(tmp_path / 'hf'))
    put(str(tmp_path / 'peft/adapter_config.json'), (real / 'peft/adapter_config.json').read_bytes())
    torch.save(change['model'], tmp_path / 'peft/adapter_model.bin')
    with pytest.raises(ValueError, match=says): lora.load(train.load_model(str(real / 'run'))[0], str(tmp_path / 'peft'))


@pytest.mark.parametrize('values, says', [
    (dict(betas=3), 'was made with another gpt.py, whose Config has betas'), (dict(n_layer='2'), "n_layer='2'; expected int"), (dict(n_layer=2.0), "n_layer='2.0'; expected int"),
    (dict(bias=2), "bias='2'; expected bool"), (dict(bias='yes'), "bias='yes'; expected bool"), (dict(dropout=float('nan')), "dropout='nan'; expected float"),
    (dict(positions=5), "positions='5'; expected str"), (dict(n_embd=24, n_head=5), 'x.pt: n_embd=24 is not a multiple')])
def test_what_a_config_may_say(values, says):
    with pytest.raises(ValueError, match=says) as e: typed(gpt.Config, values, 'x.pt')
    assert str(e.value).startswith('x.pt: ')
    assert typed(gpt.Config, dict(dropout=0, bias=1), 'x.pt') == gpt.Config(dropout=0, bias=True)


def test_what_a_config_json_may_be(tmp_path):
    for data, says in ((b'[1]', 'x.json: a list; expected a JSON object'), (b'{"a": ', 'x.json: not JSON'), (b'[' * 10 ** 5, 'x.json: not JSON')):
        with pytest.raises(ValueError, match=says): files.read_json(put(str(tmp_path / 'x.json'), data))
    (tmp_path / 'x.json').write_bytes(b'{"a": 1}')
    assert files.read_json(str(tmp_path / 'x.json')) == dict(a=1)


def test_checkpoints_of_hurt_bytes(real, tmp_path):
    rng, path = random.Random(3), str(tmp_path / 'c.pt')
    whole = (real / 'run/best.pt').read_bytes()
    assert load_checkpoint(put(path, whole))['step'] == 2
    for i in range(int(700 * MORE)):
        data = hurt_bytes(whole, rng)
        if i % 2:                                             # the pickle and the directory are a small part of the file
            z, out = zipfile.ZipFile(io.BytesIO(whole)), io.BytesIO()
            with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED if i % 9 == 0 else zipfile.ZIP_STORED) as new:
                for member in z.namelist():
                    if rng.random() < 0.05: continue
                    body = z.read(member)
                    new.writestr(member.replace('data', '../data') if rng.random() < 0.01 else member,
                                 hurt_bytes(body, rng) if member.endswith('data.pkl') or rng.random() < 0.02 else body)
            data = out.getvalue()
        holds('checkpoints', lambda: load_checkpoint(put(path, data)), len(data), i)


SIZES = [10 ** 9, 10 ** 12, 2 ** 63, -5, 0, 1.5, 'many', None, True, [], float('nan')]


def test_checkpoints_that_lie(real, tmp_path):
    rng, path = random.Random(4), str(tmp_path / 'c.pt')
    for base in ('run', 'adapter'):
        whole = torch.load(real / base / 'ckpt.pt', weights_only=True) | dict(source='')
        size = os.path.getsize(real / base / 'ckpt.pt')
        tensors = [torch.zeros(2, 3), torch.zeros(1).expand(10 ** 9), torch.zeros(1).expand(12, 12), torch.tensor([1.0]).to_sparse(), torch.zeros(3, dtype=torch.complex64),
                   torch.zeros((2, 2), device='meta'), torch.tensor(3), torch.zeros(0), torch.zeros(12, 12, dtype=torch.int64)]
        for i in range(int(250 * MORE)):
            hurt = hurt_tree(whole, rng, BAD + tensors)
            if i % 3 == 0:
                name = rng.choice(list(whole['config']))
                hurt = whole | dict(config=whole['config'] | {name: rng.choice(SIZES)})
            if i % 7 == 0:
                name = rng.choice(list(whole['model']))
                hurt = whole | dict(model=whole['model'] | {name: rng.choice(tensors)})
            if i % 11 == 0 and base == 'adapter': hurt = whole | dict(lora=hurt_tree(whole['lora'], rng))
            try: torch.save(hurt, path)
            except Exception: continue
            holds('checkpoints', lambda: train.load_model(path), size, i)
            if i % 5 == 0 and base == 'adapter':
                model, _ = train.load_model(str(real / 'run'))
                holds('adapters', lambda: lora.load(model, path), size, i)
    whole['train'] = whole['train'] | dict(init_from=path)    # an adapter of itself
    torch.save(whole, path)
    assert holds('checkpoints', lambda: train.load_model(path), size) is None
    with pytest.raises(ValueError, match='adapts an adapter that adapts'): train.load_model(path)


def test_a_resumed_run_says_what_is_wrong(real, tmp_path, capsys):
    rng, out = random.Random(5), tmp_path / 'out'
    whole = torch.load(real / 'run/ckpt.pt', weights_only=True)
    def resume(hurt, whole_run):
        shutil.rmtree(out, ignore_errors=True)
        os.makedirs(out)
        torch.save(hurt, out / 'ckpt.pt')
        flags = ['--resume', f'--out_dir={out}', '--max_iters=3', '--device=cpu']
        return train.main(flags) if whole_run else train.parse(flags)
    assert resume(whole, True)['steps'] == 3
    size = os.path.getsize(real / 'run/ckpt.pt')
    state = whole['optimizer'][0]
    first = next(iter(state))
    other = lambda s: whole | dict(optimizer=[s])
    lies = [whole | dict(optimizer=[]), whole | dict(optimizer=[state, state]), whole | dict(optimizer=[[]]), other({'nobody.weight': state[first]}),
            other(state | {first: {}}), other(state | {first: None}), other(state | {first: state[first] | dict(exp_avg=torch.zeros(3))}),
            other(state | {first: dict(momentum_buffer=state[first]['exp_avg'])}), other(state | {first: state[first] | dict(step=7)}),
            whole | dict(train=whole['train'] | dict(optimizer='muon')), whole | dict(data={}), whole | dict(tokenizer='{}'), whole | dict(step='2'),
            whole | dict(train=whole['train'] | dict(batch_size='4')), whole | dict(train=whole['train'] | dict(betas=3)), whole | dict(scaler=[]),
            whole | dict(model={k: v for k, v in whole['model'].items() if k != 'tokens.weight'}), {k: v for k, v in whole.items() if k != 'optimizer'}]
    for i, lie in enumerate(lies): assert holds('resume', lambda: resume(lie, True), size, i) is None, i
    for i in range(int(150 * MORE)):
        hurt = hurt_tree(whole, rng)
        holds('resume', lambda: resume(hurt, False), size, i)
    capsys.readouterr()


def test_nothing_runs(real, tmp_path):
    touched, path = str(tmp_path / 'touched'), str(tmp_path / 'c.pt')
    payload = [pickle.dumps(dict(model=Tool(touched), config={}, model_name='gpt'), protocol=p) for p in range(5)] + [
        b"cbuiltins\nexec\n(Vopen(%r, 'w')\ntR." % touched, b"cos\nsystem\n(Vtouch " + touched.encode() + b"\ntR.",
        b"ctorch.serialization\nload\n(V" + touched.encode() + b"\ntR.", b"ctorch\nsave\n(I1\nV" + touched.encode() + b"\ntR."]
    whole = zipfile.ZipFile(real / 'run/best.pt')
    for body in payload:
        out = io.BytesIO()
        with zipfile.ZipFile(out, 'w') as new:
            for member in whole.namelist(): new.writestr(member, body if member.endswith('data.pkl') else whole.read(member))
        for data in (body, out.getvalue()):
            assert holds('pickles', lambda: train.load_model(put(path, data)), len(data)) is None
            folder = tmp_path / 'hf'
            put(str(folder / 'config.json'), (real / 'gpt/config.json').read_bytes()), put(str(folder / 'pytorch_model.bin'), data)
            assert holds('pickles', lambda: train.load_model(str(folder)), len(data)) is None
            put(str(tmp_path / 'peft/adapter_config.json'), (real / 'peft/adapter_config.json').read_bytes()), put(str(tmp_path / 'peft/adapter_model.bin'), data)
            model, _ = train.load_model(str(real / 'run'))
            assert holds('pickles', lambda: lora.load(model, str(tmp_path / 'peft')), len(data)) is None
    assert not os.path.exists(touched)
    pickle.loads(payload[0])['model'].close()                # a pickle that is trusted does what it says
    assert os.path.exists(touched)


def test_a_packed_checkpoint_is_not_unpacked(real, tmp_path):
    whole, path = zipfile.ZipFile(real / 'run/best.pt'), str(tmp_path / 'c.pt')
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as new:
        for member in whole.namelist(): new.writestr(member, bytes(400 << 20) if member.endswith('data.pkl') else whole.read(member))
    assert holds('checkpoints', lambda: load_checkpoint(path), os.path.getsize(path)) is None


# ---------------------------------------------------------------------------------------------------- Hugging Face folders

@pytest.mark.parametrize('name', ['gpt', 'llama', 'bert', 't5', 'electra'])
def test_folders(name, real, tmp_path):
    rng, folder = random.Random(name), str(tmp_path / 'hf')
    shutil.copytree(real / name, folder)
    config = json.loads((real / name / 'config.json').read_text())
    weights = (real / name / 'model.safetensors').read_bytes()
    size = len(weights)
    assert train.load_model(folder)
    numbers = [k for k, v in config.items() if isinstance(v, (int, float)) and not isinstance(v, bool)]
    for i in range(int(220 * MORE)):
        hurt = hurt_tree(config, rng)
        if i % 2: hurt = config | {rng.choice(numbers): rng.choice(SIZES)}
        put(f'{folder}/config.json', as_json(hurt, rng))
        holds('folders', lambda: train.load_model(folder), size, (name, i, hurt))
    put(f'{folder}/config.json', json.dumps(config).encode())
    for i in range(int(30 * MORE)):
        put(f'{folder}/model.safetensors', hurt_bytes(weights[:8] + weights[8:3000], rng) + weights[3000:])
        holds('folders', lambda: train.load_model(folder), size, (name, i))
    for index in ({}, dict(weight_map=[]), dict(weight_map=dict(a=5)), dict(weight_map=dict(a='../gpt/model.safetensors')), dict(weight_map=dict(a='/etc/passwd')), []):
        put(f'{folder}/model.safetensors.index.json', json.dumps(index).encode())
        assert holds('folders', lambda: files.read_hf(folder), size, index) in (None, (config, {}))


def test_bin_of_a_folder(real, tmp_path):
    folder, weights = tmp_path / 'hf', files.read_safetensors(str(real / 'gpt/model.safetensors'))
    put(str(folder / 'config.json'), (real / 'gpt/config.json').read_bytes())
    for legacy in (True, False):
        torch.save(weights, folder / 'pytorch_model.bin', _use_new_zipfile_serialization=not legacy)
        assert train.load_model(str(folder))
        whole, rng = (folder / 'pytorch_model.bin').read_bytes(), random.Random(legacy)
        for i in range(int(150 * MORE)):
            data = hurt_bytes(whole[:2000], rng) + whole[2000:] if i % 2 else hurt_bytes(whole, rng)
            holds('folders', lambda: files.read_hf(str(folder)) and None or put(str(folder / 'pytorch_model.bin'), data) and files.read_hf(str(folder)), len(data), i)
            put(str(folder / 'pytorch_model.bin'), whole)


@pytest.mark.parametrize('name', ['peft', 'bottleneck'])
def test_adapters(name, real, tmp_path):
    rng, folder = random.Random(name), str(tmp_path / 'a')
    shutil.copytree(real / name, folder)
    base, _ = train.load_model(str(real / 'run'))
    load = lambda: lora.load(copy.deepcopy(base), folder)
    assert load()
    config, weights = json.loads((real / name / 'adapter_config.json').read_text()), (real / name / 'adapter_model.safetensors').read_bytes()
    for i in range(int(250 * MORE)):
        hurt = hurt_tree(config, rng)
        if i % 3 == 0: hurt = config | dict(rank_pattern={rng.choice(['(a+)+$', '((((', '(.*)*(.*)*x', 'c_attn']): rng.choice(SIZES)}, alpha_pattern={'(x*)*y(.*)*': 3})
        put(f'{folder}/adapter_config.json', as_json(hurt, rng))
        holds('adapters', load, len(weights), (name, i, hurt))
    put(f'{folder}/adapter_config.json', json.dumps(config).encode())
    for i in range(int(100 * MORE)):
        put(f'{folder}/adapter_model.safetensors', hurt_bytes(weights[:1500], rng) + weights[1500:])
        holds('adapters', load, len(weights), (name, i))


def test_a_pattern_of_an_adapter_is_given_up(real, tmp_path, monkeypatch):
    shutil.copytree(real / 'peft', tmp_path / 'a')
    config = json.loads((tmp_path / 'a/adapter_config.json').read_text())
    put(str(tmp_path / 'a/adapter_config.json'), json.dumps(config | dict(alpha_pattern={'(?:(?:.|..|...)+)+[0-9][0-9]': 3})).encode())
    def match(*a, real=regex.match, timeout=None, **k):
        assert timeout == 1
        return real(*a, timeout=timeout, **k)
    monkeypatch.setattr(regex, 'match', match)
    with bounds(20, 0), pytest.raises(ValueError, match='a pattern of its alpha_pattern takes for ever'): lora.load(train.load_model(str(real / 'run'))[0], str(tmp_path / 'a'))


# ---------------------------------------------------------------------------------------------------- data

def test_a_class_that_the_labels_lack(real, tmp_path):
    folder = str(tmp_path / 'd')
    shutil.copytree(real / 'labelled', folder)
    for label in (2, -1, 'a', True):
        data = put(f'{folder}/train.jsonl', (json.dumps(dict(text='a', label=label)) + '\n').encode())
        meta = json.loads((real / 'labelled/meta.json').read_text())
        put(f'{folder}/meta.json', json.dumps(meta | dict(sha256=meta['sha256'] | {'train.jsonl': text.checksum(data)})).encode())
        with pytest.raises(ValueError, match='train.jsonl line 1: '): training(text.open_meta(folder), 1, lambda e: [dict(e)])


@pytest.mark.parametrize('name', ['bytes', 'labelled'])
def test_prepared_folders(name, real, tmp_path):
    rng, folder = random.Random(name), str(tmp_path / 'd')
    shutil.copytree(real / name, folder)
    parts = {n: (real / name / n).read_bytes() for n in os.listdir(folder)}
    meta, size = json.loads(parts['meta.json']), sum(map(len, parts.values()))
    tok = bpe.byte()
    def use():
        found = text.open_meta(folder)
        corpora = [training(found, 1, lambda e: [dict(ids=tok.encode(e['text']), label=e['label'])]), *(c for c, _ in validation(found, 1, lambda e: [dict(e)]).values())]
        for c in corpora:
            draw, _ = c.rows(range(3))
            if c.kind == 'text': assert draw(9, 1).max() < found['vocab_size']
            else: draw.examples()
        return found
    assert use()
    for i in range(int(350 * MORE)):
        put(f'{folder}/meta.json', as_json(hurt_tree(meta, rng), rng))
        holds('prepared', use, size, (name, i))
    put(f'{folder}/meta.json', parts['meta.json'])
    for i in range(int(150 * MORE)):
        target = rng.choice([n for n in parts if n != 'meta.json'])
        data = hurt_bytes(parts[target], rng)
        put(f'{folder}/{target}', data)
        if i % 2:                                             # whoever lies, lies about the checksum too
            told = {f'{target[:-4]}_tokens': len(data) // 2} if target.endswith('.bin') else {}
            put(f'{folder}/meta.json', json.dumps(meta | told | dict(sha256=meta['sha256'] | {target: text.checksum(f'{folder}/{target}')})).encode())
        found = holds('prepared', use, size + len(data), (name, i))
        assert found is None or data == parts[target] or i % 2 or target.endswith('.bin'), (name, i, target)
        put(f'{folder}/{target}', parts[target]), put(f'{folder}/meta.json', parts['meta.json'])
    for dtype in ('O', 'object', 'V99999999', 'float64', 'U5', '<u4', 5, ['a']):
        put(f'{folder}/meta.json', json.dumps(meta | dict(dtype=dtype)).encode())
        assert holds('prepared', use, size, dtype) is None


ROWS = [dict(text='a b', label='x'), dict(text='a', text_b='b', label=1.5), dict(text='a', choices=['b', 'c'], label=1), dict(tokens=['a', 'b'], tags=['X', 'Y']),
        dict(input='a', target='b', references=['c']), dict(prompt='a', response='b'), dict(messages=[dict(role='user', content='a'), dict(role='assistant', content='b')]),
        dict(context='a b c', question='d', answers=[dict(text='b', answer_start=2)]), dict(text='plain')]


def test_lines_of_json(real, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text, 'HERE', str(tmp_path / 'made'))
    rng, path, out = random.Random(7), str(tmp_path / 'a.jsonl'), str(tmp_path / 'out')
    for i in range(int(400 * MORE)):
        row = rng.choice(ROWS)
        lines = [as_json(hurt_tree(row, rng) if rng.random() < 0.1 else row, rng) for _ in range(8)]
        data = b'\n'.join(lines)
        if i % 4 == 0: data = hurt_bytes(data, rng)
        if i % 25 == 0: data = data.replace(b'a', b'\xff')
        if i % 29 == 0: data += b'\n' + b'[' * 200_000
        holds('jsonl', lambda: text.prepare(put(path, data), 'byte', out=out), len(data), data[:300])
        assert not os.path.exists(out + '.tmp')
        shutil.rmtree(out, ignore_errors=True)
    for kind in supervised.COLUMNS:
        for i in range(int(200 * MORE)):
            row = hurt_tree(rng.choice(ROWS), rng)
            if isinstance(row, dict) and kind != 'text': holds('jsonl', lambda: supervised.check(row, kind, 'x.jsonl', 1), 999, row)
    monkeypatch.setattr(reading, 'LINE', 1000)
    with pytest.raises(ValueError, match='a.jsonl line 1: longer than'): text.prepare(put(path, json.dumps(dict(text='a' * 2000)).encode()), 'byte', out=out)
    capsys.readouterr()


@settings(max_examples=max(1, int(150 * MORE)), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9), lambda x: st.lists(x, max_size=4) | st.dictionaries(
    st.sampled_from(['text', 'label', 'model', 'vocab', 'type', 'kind', 'version', 'format', 'special', 'name', 'tokens', 'merges', 'sha256', 'layers', 'r', '__metadata__']), x, max_size=6), max_leaves=20))
def test_any_json(tmp_path_factory, tree):
    folder = tmp_path_factory.getbasetemp() / 'any'
    data = json.dumps(tree).encode()
    for name in ('tokenizer.json', 'meta.json', 'config.json'): put(str(folder / name), data)
    for call in (lambda: bpe.load(str(folder / 'tokenizer.json')), lambda: text.open_meta(str(folder)), lambda: load_parts(str(folder)), lambda: bpe.loads(data.decode())):
        holds('any json', call, len(data), tree)


# ---------------------------------------------------------------------------------------------------- downloads

class Server(http.server.BaseHTTPRequestHandler):
    head, body = {}, b''
    def do_GET(self):
        self.send_response(206 if 'Content-Range' in self.head else 200)
        for n, v in self.head.items(): self.send_header(n, v)
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(4000): self.wfile.write(self.body)
    def log_message(self, *args): pass


def test_a_server_that_lies(tmp_path, capsys, monkeypatch):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url, path = f'http://127.0.0.1:{server.server_port}/../../x', str(tmp_path / 'd/x.bin')
    try:
        for head in ({}, {'Content-Length': '10'}, {'Content-Length': '-5'}, {'Content-Length': 'many'}, {'Content-Range': 'bytes 0-9/many'}, {'Content-Range': 'bytes x'},
                     {'Content-Length': str(10 ** 15)}, {'Content-Range': 'bytes 0-9/' + '9' * 30}, {'Location': 'file:///etc/passwd'}):
            Server.head, Server.body = head, b'x' * 10_000   # 40 MB
            for sha in ('0' * 64,):
                put(path + '.part', b'') if 'Content-Range' in head else None
                assert holds('downloads', lambda: text.download(url, path, sha, max_bytes=50_000), 50_000, head) is None
            assert not os.path.exists(path) and sorted(os.listdir(tmp_path)) in ([], ['d'])
            shutil.rmtree(tmp_path / 'd', ignore_errors=True)
    finally: server.shutdown(), server.server_close()
    capsys.readouterr()


def test_a_zip_writes_nothing(tmp_path, monkeypatch):
    """Only the members that have a name known before are read, where they lie."""
    from data import wikitext
    monkeypatch.setattr(text, 'HERE', str(tmp_path / 'made'))
    os.makedirs(tmp_path / 'src')
    with zipfile.ZipFile(tmp_path / 'src/wikitext-103-v1.zip', 'w') as z:
        for name in ('../../out.txt', '/out.txt', str(tmp_path / 'out.txt'), '..\\out.txt'): z.writestr(name, 'out')
        link = zipfile.ZipInfo('wikitext-103')
        link.external_attr = 0o120777 << 16
        z.writestr(link, '/etc')
        for split in ('train', 'valid'): z.writestr(f'wikitext-103/wiki.{split}.tokens', ' \n = Owl = \n \n It flew . \n' * 3)
    wikitext.prepare('byte', source=str(tmp_path / 'src'), task='103')
    assert {os.path.relpath(os.path.join(d, f), tmp_path) for d, _, names in os.walk(tmp_path) for f in names} == {
        'src/wikitext-103-v1.zip', *(f'made/wikitext-103-byte/{n}' for n in ('train.bin', 'val.bin', 'tokenizer.json', 'meta.json'))}


def test_archives_write_nothing(tmp_path):
    """Members of an archive are read where they lie, whatever their names and kinds: links and folders are no pages."""
    import lzma
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode='w') as t:
        for name, kind in (('../out.txt', tarfile.REGTYPE), ('/out.txt', tarfile.REGTYPE), ('link.txt', tarfile.SYMTYPE), ('hard.txt', tarfile.LNKTYPE), ('d.txt', tarfile.DIRTYPE), ('dev.txt', tarfile.CHRTYPE)):
            m = tarfile.TarInfo(name)
            m.type, m.linkname, m.size = kind, '/etc/passwd', 4 * (kind == tarfile.REGTYPE)
            t.addfile(m, io.BytesIO(b'page') if m.size else None)
    packed, path = lzma.compress(inner.getvalue()), str(tmp_path / 'a.tar')
    def outer(*members):
        with tarfile.open(path, 'w') as t:
            for name, kind, data in members:
                m = tarfile.TarInfo(name)
                m.type, m.linkname, m.size = kind, '/etc/passwd', len(data)
                t.addfile(m, io.BytesIO(data))
    outer(('../a.xz', tarfile.REGTYPE, packed), ('b.xz', tarfile.SYMTYPE, b''), ('c.xz', tarfile.DIRTYPE, b''))
    assert list(openwebtext.pages(path)) == ['page', 'page'] and os.listdir(tmp_path) == ['a.tar']
    with pytest.MonkeyPatch.context() as m:
        m.setattr(reading, 'LINE', 4)                            # a page that is larger than memory is left out
        assert list(openwebtext.pages(path)) == []
    rng, whole = random.Random(8), open(path, 'rb').read()
    for i in range(int(150 * MORE)): holds('archives', lambda: list(openwebtext.pages(put(path, hurt_bytes(whole, rng)))), len(whole), i)
    assert os.listdir(tmp_path) == ['a.tar']


def test_there_were_ten_thousand_cases(request):
    """(of all tests of this file, when all were run)"""
    if not request.session.testsfailed and MORE >= 1 and len([i for i in request.session.items if i.fspath == request.node.fspath]) > 20: assert sum(COUNT.values()) >= 10_000 * MORE, COUNT


@pytest.mark.slow
def test_ten_times_as_many():
    import subprocess, sys
    r = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', __file__], env=os.environ | dict(FUZZ='10'), capture_output=True, text=True)
    assert r.returncode == 0, r.stdout[-3000:]
