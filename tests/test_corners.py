"""Corners that no other test turns: each of these lines could be broken, and nothing else noticed.

Oracles: schedules written out, transformers, tokenizers, stand-ins for wandb, tensorboard, a terminal and a GPU.
"""
import dataclasses
import json
import math
import os
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import torch

import bert
import bpe
import electra
import gpt
import sample
import t5
import train
from data import rows
from data import text

SHORT = '--model=gpt --n_layer=1 --n_head=2 --n_embd=12 --block_size=16 --batch_size=4 --eval_iters=3 --device=cpu'.split()


def lines_of(path):
    with open(path, encoding='utf-8') as f:
        return [json.loads(line) for line in f]


def save(folder, file, tokenizer, **fields):
    """A run's folder with random weights of a tiny model."""
    torch.manual_seed(3)
    roles = {f'{r}_id': getattr(tokenizer, r) for r in ('eot', 'pad', 'cls', 'sep', 'mask') if getattr(tokenizer, r) is not None}
    known = {f.name for f in dataclasses.fields(file.Config)}
    size = dict(vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=12, n_hidden=20, block_size=48) | fields
    if hasattr(file, 'fill'):
        size |= file.fill(tokenizer)
    config = file.Config(**{n: v for n, v in (roles | size).items() if n in known})
    os.makedirs(folder, exist_ok=True)
    torch.save(dict(model=file.Model(config).state_dict(), config=dataclasses.asdict(config), model_name=file.__name__,
                    source='', step=0, tokenizer=tokenizer.dumps()), os.path.join(folder, 'ckpt.pt'))
    return str(folder)


@pytest.fixture(scope='module')
def tokenizer():
    return bpe.train(['one plus two is three, two plus two is four. '] * 30, 256 + 105 + 20)


# ---------------------------------------------------------------------------------------------------- the log

@pytest.mark.parametrize('schedule', ['cosine', 'linear'])
def test_the_logged_learning_rate_is_that_of_the_last_update(prepared, tmp_path, schedule):
    peak, low, warmup, steps = 0.004, 0.001, 3, 9
    out = str(tmp_path / 'out')
    train.main([*SHORT, f'--data={prepared}', f'--out_dir={out}', f'--max_iters={steps}', f'--warmup_iters={warmup}',
                f'--learning_rate={peak}', f'--min_lr={low}', f'--lr_schedule={schedule}', '--log_interval=1'])
    logged = {row['step']: row['lr'] for row in lines_of(out + '/metrics.jsonl') if 'lr' in row}
    assert sorted(logged) == list(range(1, steps + 1))
    for step, lr in logged.items():
        update = step - 1                            # the first update is number 0
        done = (update - warmup) / (steps - warmup)
        if update < warmup:
            expected = peak * (update + 1) / (warmup + 1)
        elif schedule == 'linear':
            expected = peak + (low - peak) * done
        else:
            expected = low + (peak - low) * (1 + math.cos(math.pi * done)) / 2
        assert lr == pytest.approx(expected, rel=1e-9), step


@pytest.mark.parametrize('program', ['wandb', 'tensorboard'])
def test_metrics_are_sent(program, prepared, tmp_path, monkeypatch):
    """Stand-ins for the two programs get each line of metrics.jsonl."""
    out = str(tmp_path / 'out')
    sent, opened = {}, []
    if program == 'wandb':
        def log(row, step):
            sent.setdefault(step, []).append(row)

        def init(project, name):
            opened.append((project, name))
            return types.SimpleNamespace(log=log)
        monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
    else:
        class SummaryWriter:
            def __init__(self, folder):
                opened.append(folder)

            def add_scalar(self, name, value, step):
                sent.setdefault(step, []).append((name, value))
        monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', types.SimpleNamespace(SummaryWriter=SummaryWriter))
    train.main([*SHORT, f'--data={prepared}', f'--out_dir={out}', '--max_iters=4', '--eval_interval=2', '--log_interval=1',
                f'--log_to={program}'])
    written = {}
    for row in lines_of(out + '/metrics.jsonl'):
        written.setdefault(row['step'], []).extend([row] if program == 'wandb' else row.items())
    assert sent == written and len(sent) == 5
    assert opened == ([('flatformers', out)] if program == 'wandb' else [out])


def test_a_terminal_has_one_live_line(prepared, tmp_path, monkeypatch):
    """Lines on progress replace each other, cut to the terminal's width; log.txt has them in full."""
    pty = pytest.importorskip('pty')
    out = str(tmp_path / 'out')
    master, slave = pty.openpty()
    shown = bytearray()

    def read():
        while True:
            try:
                piece = os.read(master, 4096)
            except OSError:                          # the other side is closed
                return
            if not piece:
                return
            shown.extend(piece)
    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.setenv('COLUMNS', '40')
    with open(slave, 'w', encoding='utf-8', newline='') as terminal:
        monkeypatch.setattr(sys, 'stdout', terminal)
        train.main([*SHORT, f'--data={prepared}', f'--out_dir={out}', '--max_iters=6', '--eval_interval=6', '--log_interval=2'])
    monkeypatch.undo()
    reader.join(20)
    os.close(master)
    lines = shown.decode().replace('\r\n', '\n').split('\n')
    with open(out + '/log.txt', encoding='utf-8') as f:
        full = [line.rstrip('\n') for line in f if line.startswith('step ') and ' | loss ' in line]
    assert len(full) == 3 and all(len(line) > 40 for line in full)
    live = [line for line in lines if ' | loss ' in line]
    assert len(live) == 1                            # all three on one line of the screen, and what stays after them
    start = '\r\x1b[K'
    parts = live[0].split(start)
    assert parts[:4] == ['', *(line[:39] for line in full)]
    assert parts[4].startswith('step 6: validation loss') and len(parts) == 5
    assert not any(start in line for line in lines if line is not live[0])


# ---------------------------------------------------------------------------------------------------- compile

class Pretended(str):
    """A device that tensors take for the CPU and the trainer for a GPU."""
    type = 'cuda'
    index = 0


def failing_compile(model, **kw):
    def call(*args, **kw):
        raise RuntimeError('no compiler here\nand more lines')
    return call


def test_a_failing_compile_of_a_users_choice_is_an_error(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, 'compile', failing_compile)
    with pytest.raises(RuntimeError, match='no compiler here'):
        train.main([*SHORT, f'--data={prepared}', f'--out_dir={tmp_path}/out', '--max_iters=1', '--compile=true'])


def test_a_failing_compile_by_itself_is_left_out(prepared, tmp_path, monkeypatch, capsys):
    """A GPU compiles unless told otherwise; where that fails the run goes on, with the same result as without."""
    run = [*SHORT, f'--data={prepared}', '--max_iters=3', '--warmup_iters=1', '--dtype=float32']
    expected = train.main([*run, f'--out_dir={tmp_path}/plain', '--compile=false'])
    capsys.readouterr()
    monkeypatch.setattr(torch, 'compile', failing_compile)
    monkeypatch.setattr(train, 'pick_device', lambda name: Pretended('cpu'))
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda self: self)
    for name in ('synchronize', 'reset_peak_memory_stats'):
        monkeypatch.setattr(torch.cuda, name, lambda *args: None)
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda *args: 0)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda *args: 'none')
    flash = torch.backends.cuda.flash_sdp_enabled()
    try:
        found = train.main([*run, f'--out_dir={tmp_path}/out'])
    finally:
        torch.backends.cuda.enable_flash_sdp(flash)
    said = capsys.readouterr().out
    assert 'torch.compile failed, going on without it (slower): RuntimeError: no compiler here\n' in said
    assert found['steps'] == 3 and found['val_loss'] == pytest.approx(expected['val_loss'], rel=1e-5)


# ---------------------------------------------------------------------------------------------------- data

@pytest.mark.parametrize('length,overlap', [(11, 1), (10, 0), (41, 1), (80, 0)])
def test_windows_start_anywhere_over_many_epochs(length, overlap, tmp_path):
    """Each epoch begins at an offset of its own, from 0 to the last one that leaves the epoch's windows whole."""
    (tmp_path / 't.txt').write_text(''.join(chr(0x4e00 + i) for i in range(119)), encoding='utf-8')    # no character twice
    folder = text.prepare(str(tmp_path / 't.txt'), tokenizer='char', out=str(tmp_path / 'data'))
    tokens = np.fromfile(folder + '/train.bin', np.uint16).tolist()
    place = {token: i for i, token in enumerate(tokens)}
    assert len(place) == len(tokens) > 99
    corpus = rows.training(text.open_meta(folder), 5)
    draw, _ = corpus.rows([0])
    draw(length, overlap=overlap)
    n, epochs, stride = len(corpus), 400, length - overlap
    draw, _ = corpus.rows(np.arange(n * epochs))
    windows = draw(length, overlap=overlap).reshape(epochs, n, length)
    at = np.vectorize(place.get)(windows)
    assert (np.diff(at, axis=-1) == 1).all()
    room = len(tokens) - overlap - n * stride        # how far the windows of an epoch can be moved
    assert set(at[:, :, 0].min(1)) == set(range(min(room + 1, stride)))
    assert at.max() == len(tokens) - 1 or room >= stride


def test_accents_are_stripped_as_tokenizers_does_it():
    normalizers = pytest.importorskip('tokenizers').normalizers
    theirs = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    ours = bpe.normalizer({'type': 'Sequence', 'normalizers': [{'type': 'NFD'}, {'type': 'StripAccents'}]})
    alone, their_own = bpe.normalizer({'type': 'StripAccents'}), normalizers.StripAccents()
    # letters composed and with marks behind them; marks that space, enclose, or are no accents of Latin
    for said in ('plain', 'é', 'e\u0301', 'Ångström', 'ñ\u0303o', 'นี้', 'का', 'a\u20dd', 'Ễ', '한국', '\u0301'):
        assert ours(said) == theirs.normalize_str(said), said
        assert alone(said) == their_own.normalize_str(said), said
    assert ours('Crème Brûlée') == 'Creme Brulee' and alone('é') == 'é'


# ---------------------------------------------------------------------------------------------------- files

def test_tensors_that_were_saved_on_a_gpu_open_on_a_cpu(tokenizer, tmp_path, monkeypatch):
    folder = save(tmp_path / 'run', gpt, tokenizer)
    path = folder + '/ckpt.pt'
    saved = torch.load(path, weights_only=True)
    for old_format in (False, True):
        with monkeypatch.context() as m:
            m.setattr(torch.serialization, 'location_tag', lambda storage: 'cuda:0')
            torch.save(saved, path, _use_new_zipfile_serialization=not old_format)
        with pytest.raises(RuntimeError):            # without being told where to, torch wants the GPU
            torch.load(path, weights_only=True)
        model, _ = train.load_model(folder)
        for name, w in model.state_dict().items():
            assert w.device.type == 'cpu' and torch.equal(w, saved['model'][name])


@pytest.mark.parametrize('kind', ['bert', 'albert', 'electra', 'llama', 'gpt2'])
def test_a_config_that_does_not_name_its_activation_has_the_usual_one(kind, tmp_path):
    """config.json of an old model leaves out what its program took for granted."""
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(2)
    size = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=37, vocab_size=50)
    config, model = {
        'bert': lambda: (transformers.BertConfig(**size), transformers.BertForMaskedLM),
        'albert': lambda: (transformers.AlbertConfig(**size, embedding_size=12), transformers.AlbertForMaskedLM),
        'electra': lambda: (transformers.ElectraConfig(**size, embedding_size=12), transformers.ElectraForPreTraining),
        'llama': lambda: (transformers.LlamaConfig(**size, num_key_value_heads=2), transformers.LlamaForCausalLM),
        'gpt2': lambda: (transformers.GPT2Config(vocab_size=50, n_embd=24, n_layer=1, n_head=2), transformers.GPT2LMHeadModel),
    }[kind]()
    theirs = model(config).eval()
    with torch.no_grad():                            # large weights, so that activations differ
        for p in theirs.parameters():
            p.copy_(torch.randn(p.shape) * 0.3)
    theirs.save_pretrained(tmp_path)
    with open(tmp_path / 'config.json', encoding='utf-8') as f:
        said = json.load(f)
    named = 'activation_function' if kind == 'gpt2' else 'hidden_act'
    usual = said.pop(named)
    with open(tmp_path / 'config.json', 'w', encoding='utf-8') as f:
        json.dump(said, f)
    ours = train.load_model(str(tmp_path))[0]
    assert usual in ('gelu', 'gelu_new', 'silu') and ours.config.activation == ('gelu_tanh' if usual == 'gelu_new' else usual)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        more = () if kind in ('llama', 'gpt2') else (torch.zeros_like(ids), torch.ones(1, 9, dtype=torch.bool))
        assert torch.allclose(ours.logits(ids, *more), theirs(ids).logits, atol=2e-4)


# ---------------------------------------------------------------------------------------------------- sample.py

def ask(*flags):
    return sample.main(['--device=cpu', *flags])


def test_an_empty_file_of_lines_is_told(tokenizer, tmp_path):
    (tmp_path / 'none.jsonl').write_text('\n\n')
    labelled = save(tmp_path / 'labelled', bert, tokenizer, kind='labelled', n_labels=2)
    plain = save(tmp_path / 'plain', bert, tokenizer)
    pairs = save(tmp_path / 'pairs', t5, tokenizer, kind='pairs', head_dim=6)
    path = f'{tmp_path}/none.jsonl'
    for folder, flag, value in ((labelled, 'classify', path), (plain, 'embed', path), (plain, 'prompt', 'FILE:' + path),
                                (pairs, 'prompt', 'FILE:' + path)):
        with pytest.raises(ValueError) as e:
            ask(f'--out_dir={folder}', f'--{flag}={value}')
        assert f'--{flag}={value}: no lines' in str(e.value)


def test_a_detector_says_that_it_fills_no_gaps_where_there_is_one(tokenizer, tmp_path, capsys):
    folder = save(tmp_path / 'run', electra, tokenizer)
    ask(f'--out_dir={folder}', '--prompt=one plus two')
    assert capsys.readouterr().err == ''
    (tmp_path / 'two.txt').write_text('one plus\none [MASK] two\n')
    ask(f'--out_dir={folder}', f'--prompt=FILE:{tmp_path}/two.txt')
    said = capsys.readouterr().err
    assert said.startswith('note: a discriminator fills no gaps') and said.count('\n') == 1 and '--export_hf=DIR' in said


def test_the_line_of_a_texts_likelihood_has_what_is_returned(tokenizer, tmp_path, capsys):
    folder = save(tmp_path / 'run', gpt, tokenizer)
    path = tmp_path / 't.txt'
    path.write_text('one plus two is three. ' * 200, encoding='utf-8')
    found = ask(f'--out_dir={folder}', '--eval=lm', f'--text={path}', '--stride=9')
    assert found['bytes'] == 4600 and found['tokens'] > 999
    assert capsys.readouterr().out == (
        f'{path}: perplexity {math.exp(found["loss"]):.3f}, '
        f'{found["loss"] * found["tokens"] / math.log(2) / 4600:.4f} bits per byte (loss {found["loss"]:.4f} over '
        f'{found["tokens"]:,} tokens, 4,600 bytes; windows of 48, stride 9)\n')


@pytest.mark.parametrize('vocabulary', ['bytes', 'words'])
def test_a_context_that_ends_in_a_space_is_the_same_as_one_without(vocabulary, tokenizer, tmp_path):
    """A space between context and continuation is there once, whoever brings it, and is scored with what follows."""
    tokenizer = bpe.byte() if vocabulary == 'bytes' else tokenizer
    folder = save(tmp_path / 'run', gpt, tokenizer, init_std=0.5)

    def scores(context, continuation, *flags):
        path = tmp_path / 'items.jsonl'
        path.write_text(json.dumps(dict(context=context, continuation=continuation)) + '\n')
        return ask(f'--out_dir={folder}', f'--eval={path}', *flags)['word_perplexity']
    expected = scores('one plus two is', 'three')
    model = train.load_model(folder)[0]
    head, whole = (tokenizer.encode(s) for s in ('one plus two is', 'one plus two is three'))
    assert whole[:len(head)] == head
    with torch.no_grad():
        p = model.logits(torch.tensor([whole]))[0].log_softmax(-1)
    by_hand = -sum(p[i - 1, whole[i]].item() for i in range(len(head), len(whole)))
    assert expected == pytest.approx(math.exp(by_hand), rel=1e-4)
    for context, continuation in (('one plus two is ', 'three'), ('one plus two is', ' three')):
        for flags in ([], ['--delimiter=#']):        # white space is there: nothing is put between
            assert scores(context, continuation, *flags) == pytest.approx(expected, rel=1e-6)
    assert scores('one plus two is', 'three', '--delimiter=#') != pytest.approx(expected, rel=1e-3)


def test_without_what_windows_lacks(tmp_path):
    """No module resource, no os.sysconf, no SIGHUP, no glibc: train.py is imported, and peak memory comes from psapi."""
    code = f'''
import sys, os, signal, ctypes
sys.path.insert(0, {os.path.dirname(train.__file__)!r})
sys.modules['resource'] = None
del os.sysconf, signal.SIGHUP
class Kernel:
    class GetCurrentProcess:
        def __new__(cls): return 7
    @staticmethod
    def K32GetProcessMemoryInfo(process, counters, size):
        assert process.value == 7 and size == 8 + 8 * ctypes.sizeof(ctypes.c_size_t)
        counters._obj.peak = 300 << 20
ctypes.WinDLL = lambda name: Kernel
import torch, train, gpt
from lib import device, weights
assert device.peak_memory(torch.device('cpu')) == 300.0
weights.refuse_too_large(gpt.Model(gpt.Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9, block_size=8)))
from lib.launch import SIGNALS
print(len(SIGNALS))
'''
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert r.returncode == 0 and r.stdout.strip() == '2', r.stderr
