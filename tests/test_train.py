"""The trainer: flags, data order, optimizers, the loop, checkpoints, several ranks, and what a person is told.

Oracles: torch's AdamW and SVD, float64, safetensors, transformers' schedules, and one process against two."""
import json, math, os, re, signal, subprocess, sys, time
import xml.etree.ElementTree

import numpy as np
import pytest
import torch

import bert, bpe, gpt, train
from data import files, rows
from lib import device, tasks
from lib.checkpoint import load_checkpoint, restore
from lib.device import attention_backend, wide_products
from lib.export import export_hf
from lib.flags import fields_of
from lib.launch import SIGNALS
from lib.optim import orthogonalize

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = '--model=gpt --n_layer=2 --n_head=2 --n_embd=24 --block_size=16 --batch_size=8 --max_iters=6 --eval_interval=3 --eval_iters=11 --log_interval=2 --device=cpu --optimizer=adamw'.split()


@pytest.fixture
def tiny(prepared, tmp_path):
    """Runs the trainer in this process on the small text: tiny('--flag=value', ...) -> (metrics, out_dir)."""
    def go(*flags, out='out'):
        out_dir = str(tmp_path / out)
        return train.main([*TINY, f'--data={prepared}', f'--out_dir={out_dir}', *flags]), out_dir
    return go


def command(*flags, ranks=0):
    start = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={ranks}', 'train.py'] if ranks else ['train.py']
    return [sys.executable, *start, *TINY, *flags]


def shell(*flags, ranks=0, **kw):
    return subprocess.run(command(*flags, ranks=ranks), cwd=ROOT, capture_output=True, text=True, timeout=240, **kw)


def weights(out_dir):
    return torch.load(os.path.join(out_dir, 'ckpt.pt'), weights_only=True)['model']


def assert_equal(a, b, atol=0.0):
    assert a.keys() == b.keys()
    for k in a: assert torch.equal(a[k], b[k]) if not atol else (a[k] - b[k]).abs().max() <= atol, k


# ---------------------------------------------------------------------------------------------------- flags

def test_precedence_is_defaults_recipe_preset_flag(monkeypatch):
    monkeypatch.setattr(gpt, 'recipe', dict(preset='small', learning_rate=0.5, beta1=0.5, vocab_multiple=7))
    monkeypatch.setattr(gpt, 'recipes', dict(small=dict(beta1=0.6, beta2=0.7)))
    config, file, values, flags, changed, saved = train.parse(['--model=gpt', '--beta2=0.8', '--n_layer', '3'])
    assert file is gpt and saved == {} and flags == dict(model='gpt', beta2=0.8, n_layer=3)
    assert (config.learning_rate, config.beta1, config.beta2, config.eps) == (0.5, 0.6, 0.8, 1e-8)
    assert (values['vocab_multiple'], values['n_layer'], values['block_size']) == (7, 3, gpt.presets['small']['block_size'])
    assert changed['beta1'] == 0.6 and 'eps' not in changed


def test_switches_and_spaces():
    parse = lambda *argv: train.parse(list(argv))[0]
    assert parse('--shard').shard and not parse('--shard=false').shard and parse('--shard', 'true', '--seed', '3').shard
    assert parse('--batch-size=4').batch_size == 4
    assert parse('--out_dir=--x').out_dir == '--x'


@pytest.mark.parametrize('argv, says', [
    (['--learning_rat=1'], 'did you mean --learning_rate'),
    (['--n_layers=1'], 'did you mean --n_layer'),
    (['--compile=yes'], 'expected one of auto, true, false'),
    (['--shard=1'], 'expected true or false'),
    (['--batch_size=many'], 'expected a whole number'),
    (['--batch_size=1.5'], 'expected a whole number'),
    (['--batch_size=0'], 'more than 0'),
    (['--learning_rate=big'], 'expected a number'),
    (['--batch_size'], 'needs a value'),
    (['gpt'], "unexpected argument 'gpt'"),
    (['--model=gtp'], 'did you mean gpt'),
    (['--model=train'], 'does not define'),
    (['--model=../gpt'], 'no file'),
    (['--preset=gpt2-mediun'], 'did you mean gpt2-medium'),
    (['--optimizer=adam'], 'did you mean adamw'),
    (['--lr_schedule=cos'], 'expected one of'),
    (['--n_head=5', '--n_embd=24'], 'n_embd'),
    (['--positions=rope'], 'positions'),
    (['--device=gpu'], '--device=gpu'),
    (['--device=cuda:99'], '--device=cuda'),
    (['--batch_size=6', '--micro_batch_size=4'], 'try --batch_size=8'),
    (['--dtype=float16', '--device=cpu'], 'float16'),
    (['--shard', '--device=cpu'], 'torchrun'),
    (['--data=/no/such/text.txt'], '/no/such/text.txt'),
    (['--data=shakespear'], 'did you mean'),
    (['--block_size=100000'], 'lower --block_size'),
    (['--resume', '--out_dir=/no/such/run'], 'no checkpoint'),
    (['--init_from=/no/such/run'], '/no/such/run'),
    (['--out_dir=/dev/null/x'], '/dev/null/x'),
    (['--optimizer=muon', '--n_layer=0'], 'n_layer'),
])
def test_a_mistake_is_one_line(argv, says, prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = [] if any(a.startswith('--data') for a in argv) else [f'--data={prepared}']
    with pytest.raises((ValueError, OSError)) as e: train.main(['--device=cpu', '--max_iters=1', *data, *argv])
    assert says in str(e.value) and '\n' not in str(e.value).strip()


def test_the_shell_gets_one_line_and_a_status():
    r = shell('--learning_rat=1')
    assert r.returncode == 1 and r.stdout == '' and r.stderr.strip() == 'error: unknown flag --learning_rat; did you mean --learning_rate? (--help lists all)'


def test_help_groups_flags_and_shows_the_presets_values(capsys):
    with pytest.raises(SystemExit) as e: train.main(['--model=gpt', '--preset=gpt2-medium', '--help=all'])
    text = capsys.readouterr().out
    assert e.value.code == 0
    assert re.search(r'\nrun\n(.*\n)*\noptimizer\n(.*\n)*\ngpt.py.*\n', text)
    assert re.search(r'--n_layer=24 .*\(default 12\)', text) and re.search(r'--preset=gpt2-medium', text)
    for cls in (train.Config, gpt.Config):
        for group, comment, field in fields_of(cls): assert comment and f'--{field.name}=' in text, field.name


def test_help_shows_what_matters_on_a_screen(capsys):
    with pytest.raises(SystemExit): train.main(['--model=gpt', '--preset=gpt2-medium', '--help'])
    text = capsys.readouterr().out
    shown = re.findall(r'^  --(\w+)=', text, re.M)
    assert len(shown) == 15 and {'model', 'data', 'resume', 'n_layer'} < set(shown) and 'optimizer' not in shown
    assert '--help=all' in text and 'Model(config)' not in text and text.count('\n') <= 45
    assert re.search(r'--n_layer=24 .*\(default 12\)', text)


# ---------------------------------------------------------------------------------------------------- data order

def corpus_of(tokens, split='train', seed=3):
    c = rows.Corpus.__new__(rows.Corpus)
    c.split, c.seed, c.shuffle, c.kind, c.shards = split, seed, split == 'train', 'text', [np.asarray(t, np.uint16) for t in tokens]
    c.tokens_per_row, c.length, c.overlap, c.items = 0, 0, 0, []
    return c


@pytest.mark.parametrize('n', [1, 2, 3, 5, 16, 17, 1000])
def test_an_epoch_is_a_permutation(n):
    order = rows.permute(np.arange(n), n, rows.keyed(1, 2))
    assert sorted(order) == list(range(n))
    if n > 10: assert not np.array_equal(order, rows.permute(np.arange(n), n, rows.keyed(1, 3)))


def test_permutation_is_uniform_enough():
    firsts = np.bincount([rows.permute(np.array([0]), 7, rows.keyed(s))[0] for s in range(7000)], minlength=7)
    assert abs(firsts - 1000).max() < 150                      # 5 standard deviations


def test_each_epoch_sees_every_window_once_and_shards_are_not_crossed():
    c = corpus_of([np.arange(0, 101), np.arange(1000, 1057), np.arange(2000, 2003)])
    draw, _ = c.rows([0]); draw(11, overlap=1)
    n = len(c)
    assert n == 9 + 4 and c.tokens_per_row == 10               # one fewer than fit; the last shard is too short
    for epoch in range(3):
        draw, _ = c.rows(np.arange(n) + epoch * n)
        windows = draw(11, overlap=1)
        assert (np.diff(windows, axis=1) == 1).all()           # consecutive tokens of one shard
        starts = np.sort(windows[:, 0])
        assert len(set(starts)) == n and sorted(np.diff(starts))[:-1] == [10] * (n - 2)
    draw, _ = c.rows(np.arange(2 * n))
    assert not np.array_equal(draw(11, overlap=1)[:n], draw(11, overlap=1)[n:])
    order = lambda seed: corpus_of([np.arange(999)], seed=seed).places(np.arange(99), 99, 0)[0]
    assert sorted(order(3)) == list(range(99)) and (order(3) == order(3)).all() and (order(3) != order(4)).any()


def test_validation_windows_are_the_first_ones_in_order():
    c = corpus_of([np.arange(45)], 'val')
    draw, _ = c.rows(np.arange(4))
    assert draw(11, overlap=1)[:, 0].tolist() == [0, 10, 20, 30] and len(c) == 4


def test_rows_do_not_depend_on_how_the_batch_is_split():
    c = corpus_of([np.arange(999)])
    def numbers(split):
        out = []
        for part in np.split(np.arange(24), split):
            draw, rng = c.rows(part)
            out.append(np.concatenate([draw(8), draw(8, stream=1), rng.random(5), rng.integers(0, 100, 2, 3).reshape(len(part), 6)], 1))
        return np.concatenate(out)
    np.testing.assert_array_equal(numbers(1), numbers(6))
    draw, rng = c.rows(np.arange(3))
    assert not np.array_equal(draw(8), draw(8, stream=1)) and not np.array_equal(rng.random(4), rng.random(4))


def test_random_numbers_are_uniform_and_keyed():
    _, rng = corpus_of([np.arange(99)]).rows(np.arange(500))
    x = rng.random(200)
    assert x.shape == (500, 200) and 0 <= x.min() and x.max() < 1
    assert abs(x.mean() - 0.5) < 0.005 and abs(x.var() - 1 / 12) < 0.002 and abs(np.corrcoef(x[:-1].ravel(), x[1:].ravel())[0, 1]) < 0.015
    k = rng.integers(3, 8, 1000)
    assert set(np.unique(k)) == {3, 4, 5, 6, 7} and k.dtype == np.int64


def test_a_text_shorter_than_a_window_says_so():
    with pytest.raises(ValueError, match='lower --block_size'): corpus_of([np.arange(5)]).rows([0])[0](9)


# ---------------------------------------------------------------------------------------------------- optimizers

@pytest.mark.parametrize('shape', [(13, 37), (37, 13), (24, 24)])
def test_orthogonalize_against_svd(shape):
    g = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    u, s, vh = torch.linalg.svd(g.double(), full_matrices=False)
    out = orthogonalize(g).double()
    sigma = torch.linalg.svdvals(out)
    assert sigma.max() < 1.3 and sigma.median() > 0.6
    cosine = (out * (u @ vh)).sum((1, 2)) / out.norm(dim=(1, 2)) / (u @ vh).norm(dim=(1, 2))
    assert cosine.min() > 0.97


def test_muon_step_by_hand_and_fused_parts_apart():
    torch.manual_seed(0)
    p, q = torch.nn.Parameter(torch.randn(12, 5)), torch.nn.Parameter(torch.randn(12, 5))
    q.data.copy_(p.data)
    p.parts, start = [4, 8], p.detach().clone()
    g = torch.randn(12, 5)
    p.grad, q.grad = g.clone(), g.clone()
    train.Muon([p, q], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    m = 0.1 * g
    u = 0.1 * g + 0.9 * m
    both = torch.cat([orthogonalize(u[:4]) * 1, orthogonalize(u[4:]) * (8 / 5) ** 0.5])
    torch.testing.assert_close(p.detach(), start * (1 - 0.05) - 0.1 * both)
    torch.testing.assert_close(q.detach(), start * (1 - 0.05) - 0.1 * orthogonalize(u) * (12 / 5) ** 0.5)


def test_what_no_gradient_reaches_leaves_no_state():
    """A layer that a fork does not use: the run is saved, and goes on from its checkpoint."""
    model = torch.nn.Module()
    model.blocks, model.idle = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)]), torch.nn.Linear(4, 4)
    for config in (train.Config(optimizer='muon'), train.Config(bias_correction=False)):
        optimizers = train.make_optimizers(model, config)
        model.blocks[0](torch.randn(3, 4)).sum().backward()
        for opt in optimizers: opt.step()
        names = {p: n for n, p in model.named_parameters()}
        states = [{names[p]: dict(s) for p, s in opt.state.items()} for opt in optimizers]
        assert {n for s in states for n in s} == {'blocks.0.weight', 'blocks.0.bias'}
        restore(train.make_optimizers(model, config), model, states, 'here')
        for p in model.parameters(): p.grad = None


def test_adam_is_torchs_and_rms_scale_is_the_formula():
    torch.manual_seed(0)
    for rms in (False, True):
        p = torch.nn.Parameter(torch.randn(7, 5) * 0.3); q = torch.nn.Parameter(torch.zeros(3))
        ours = train.Adam([dict(params=[p], weight_decay=0.1), dict(params=[q], weight_decay=0.0)], rms, lr=0.02, betas=(0.8, 0.9), eps=1e-8, fused=True)
        x, y, mx, vx, my, vy = p.detach().double(), q.detach().double(), 0, 0, 0, 0
        for t in range(1, 4):
            p.grad, q.grad = torch.randn(7, 5), torch.randn(3)
            g, h = p.grad.double(), q.grad.double()
            mx, vx, my, vy = 0.8 * mx + 0.2 * g, 0.9 * vx + 0.1 * g * g, 0.8 * my + 0.2 * h, 0.9 * vy + 0.1 * h * h
            lx, ly = (0.02 * max(1e-3, x.square().mean().sqrt()), 0.02 * max(1e-3, y.square().mean().sqrt())) if rms else (0.02, 0.02)
            x = x * (1 - lx * 0.1) - lx * (mx / (1 - 0.8 ** t)) / ((vx / (1 - 0.9 ** t)).sqrt() + 1e-8)
            y = y - ly * (my / (1 - 0.8 ** t)) / ((vy / (1 - 0.9 ** t)).sqrt() + 1e-8)
            ours.step()
        torch.testing.assert_close(p.detach().double(), x, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(q.detach().double(), y, atol=1e-6, rtol=1e-5)
        assert [g['lr'] for g in ours.param_groups] == [0.02, 0.02]


def test_decay_on_matrices_only_and_muon_on_the_blocks_matrices():
    model = gpt.Model(gpt.Config(vocab_size=50, n_layer=2, n_head=2, n_embd=24, block_size=8))
    assert train.parse(['--optimizer=Muon', '--lr_schedule=Linear'])[0].optimizer == 'muon'
    adam, = train.make_optimizers(model, train.Config())
    for group in adam.param_groups:
        for p in group['params']: assert (p.ndim >= 2) == (group['weight_decay'] > 0)
    assert sum(p.numel() for g in adam.param_groups for p in g['params']) == sum(p.numel() for p in model.parameters())
    muon, adam = train.make_optimizers(model, train.Config(optimizer='muon'))
    names = {id(p): n for n, p in model.named_parameters()}
    taken = [names[id(p)] for p in muon.param_groups[0]['params']]
    assert len(taken) == 2 * 4 and all(re.search(r'\.\d\.', n) for n in taken)
    assert len(taken) + sum(len(g['params']) for g in adam.param_groups) == len(names)
    assert any(getattr(p, 'parts', None) == [24, 24, 24] for p in muon.param_groups[0]['params'])


def test_schedules():
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup
    c = lambda **k: train.Config(**{**dict(max_iters=50, warmup_iters=5, learning_rate=2.0, min_lr=0.0), **k})
    dummy = lambda: torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    for name, oracle in (('cosine', get_cosine_schedule_with_warmup), ('linear', get_linear_schedule_with_warmup)):
        opt = dummy(); s = oracle(opt, 5, 50)
        for step in range(50):
            if step >= 5: assert 2.0 * train.learning_rate_share(step, c(lr_schedule=name)) == pytest.approx(s.get_last_lr()[0], abs=1e-9)
            opt.step(); s.step()
    assert [train.learning_rate_share(i, c()) for i in (0, 4)] == [1 / 6, 5 / 6] and train.learning_rate_share(5, c()) == 1
    assert train.learning_rate_share(50, c(min_lr=0.2)) == pytest.approx(0.1) and train.learning_rate_share(80, c(lr_decay_iters=40, min_lr=0.2)) == pytest.approx(0.1)
    assert train.learning_rate_share(30, c(lr_schedule='constant')) == 1
    assert train.learning_rate_share(19, c(lr_schedule='inverse_sqrt')) == pytest.approx((5 / 20) ** 0.5)
    assert [train.learning_rate_share(i, c(lr_schedule='wsd', decay_share=0.2)) for i in (39, 40, 45, 50)] == pytest.approx([1, 1, 0.5, 0])


# ---------------------------------------------------------------------------------------------------- the loop

def test_a_run_learns_and_leaves_what_it_promises(tiny):
    r, out = tiny('--max_iters=60', '--eval_interval=20', '--learning_rate=1e-2')
    assert sorted(os.listdir(out)) == ['best.pt', 'ckpt.pt', 'log.txt', 'loss.svg', 'metrics.jsonl', 'run.json', 'tokenizer.json']
    lines = [json.loads(l) for l in open(out + '/metrics.jsonl')]
    evals = [l for l in lines if 'val_loss' in l]
    assert [l['step'] for l in evals] == [0, 20, 40, 60] and evals[-1]['val_loss'] == r['val_loss'] < 2.2 < evals[0]['val_loss']
    assert {'step', 'tokens', 'train_seconds', 'train_loss', 'val_loss', 'val_ppl', 'val_bpb', 'lr', 'tokens_per_second', 'peak_memory_mb', 'grad_norm'} <= set().union(*lines)
    assert lines[-1]['tokens'] == 60 * 8 * 16 == r['tokens'] and r['steps'] == 60
    seconds = [l['train_seconds'] for l in lines]
    assert seconds == sorted(seconds) and seconds[-1] > 0 and r['total_seconds'] > r['train_seconds']
    svg = xml.etree.ElementTree.parse(out + '/loss.svg').getroot()
    assert len(svg.findall('.//{*}polyline')) == 2 and len(svg.findall('.//{*}circle')) == 4
    log = open(out + '/log.txt').read()
    for part in ('python train.py', torch.__version__, '"train.bin": "', 'class Model', '"learning_rate": 0.01', 'validation loss'): assert part in log
    saved = torch.load(out + '/ckpt.pt', weights_only=True)
    assert saved['step'] == 60 and saved['model_name'] == 'gpt' and saved['source'] == open(gpt.__file__).read() and 'optimizer' in saved


def test_perplexity_and_bits_per_byte_by_hand(tiny, prepared):
    r, out = tiny()
    model, tok = train.load_model(out)
    ids = np.fromfile(prepared + '/val.bin', np.uint16)[:11 * 16 + 1].astype(np.int64)
    x = torch.from_numpy(ids)
    with torch.no_grad(): logits = torch.cat([model.double().logits(x[i * 16:i * 16 + 16][None]) for i in range(11)], 1)[0]
    loss = torch.nn.functional.cross_entropy(logits, x[1:]).item()
    assert r['val_loss'] == pytest.approx(loss, abs=1e-5) and r['val_ppl'] == pytest.approx(math.exp(loss), rel=1e-4)
    text = tok.decode([i for i in ids[1:] if i not in tok.special.values()])
    assert r['val_bpb'] == pytest.approx(loss * (len(ids) - 1) / math.log(2) / len(text.encode()), rel=1e-5)


@pytest.mark.parametrize('flags', [['--objective=prefix'], ['--optimizer=muon', '--dropout=0.0']])
def test_micro_batches_change_nothing(tiny, flags):
    a, out = tiny(*flags, out='a')
    for micro in (4, 2, 1):
        b, other = tiny(*flags, f'--micro_batch_size={micro}', out=f'b{micro}')
        assert_equal(weights(out), weights(other), 2e-6)
        assert a['val_loss'] == pytest.approx(b['val_loss'], abs=1e-6)


@pytest.mark.parametrize('flags', [[], ['--optimizer=muon', '--dropout=0.1', '--objective=prefix'], ['--rms_scale', '--lr_schedule=inverse_sqrt', '--micro_batch_size=2']])
def test_resume_is_bit_exact(tiny, flags):
    whole, a = tiny(*flags, out='a')
    _, b = tiny(*flags, '--max_iters=3', '--lr_decay_iters=6', out='b')
    open(b + '/predictions.jsonl.tmp', 'w').write('half')      # of a run that was killed
    torch.manual_seed(99)                                      # no state outside the checkpoint may count
    again, b = tiny('--resume', '--max_iters=6', out='b') if False else (train.main(['--resume', f'--out_dir={b}', '--max_iters=6', '--lr_decay_iters=0']), b)
    assert_equal(weights(a), weights(b))
    assert whole['val_loss'] == again['val_loss'] and whole['tokens'] == again['tokens'] and sorted(os.listdir(a)) == sorted(os.listdir(b))
    steps = lambda out: [(l['step'], 'val_loss' in l) for l in map(json.loads, open(out + '/metrics.jsonl')) if 'val_loss' in l]
    assert steps(a) == steps(b)


def seeds_of_steps(tiny, monkeypatch, *flags, **kw):
    "the seed of dropout and sampling in each micro-batch of each step"
    seen, real = [], gpt.Model.forward
    with monkeypatch.context() as m:
        m.setattr(gpt.Model, 'forward', lambda self, *a, **k: (seen.append(torch.initial_seed()) if self.training and torch.is_grad_enabled() and len(a[0]) > 1 else 0, real(self, *a, **k))[1])
        if '--resume' in flags: train.main(list(flags))
        else: tiny(*flags, **kw)
    return seen


def test_dropout_hangs_on_seed_step_and_micro_batch_alone(tiny, monkeypatch, tmp_path):
    first = seeds_of_steps(tiny, monkeypatch, '--micro_batch_size=4', '--max_iters=3')
    other = seeds_of_steps(tiny, monkeypatch, '--micro_batch_size=4', '--max_iters=3', '--seed=7', out='b')
    assert len(first) == 6 and len({*first, *other}) == 12
    assert seeds_of_steps(tiny, monkeypatch, '--micro_batch_size=4', '--max_iters=5', out='c')[:6] == first
    again = seeds_of_steps(tiny, monkeypatch, '--resume', f'--out_dir={tmp_path}/out', '--max_iters=5')
    assert len(again) == 4 and not {*again} & {*first}


def test_the_gradient_is_clipped_to_its_norm(tiny):
    """With an eps that outweighs the gradient Adam's first step is the gradient itself."""
    flags = '--eps=1e5 --learning_rate=1e5 --weight_decay=0 --warmup_iters=0 --lr_schedule=constant --log_interval=1'.split()
    start = weights(tiny(*flags, '--max_iters=0', out='start')[1])
    for clip in (0, 0.01):
        _, out = tiny(*flags, '--max_iters=1', f'--grad_clip={clip}', out=f'clip{clip}')
        norm = next(r['grad_norm'] for r in map(json.loads, open(out + '/metrics.jsonl')) if 'grad_norm' in r)
        own = {k for k, _ in train.load_model(out)[0].named_parameters()}
        step = sum((w - start[k]).double().square().sum().item() for k, w in weights(out).items() if k in own) ** 0.5
        assert norm > 0.1 and step == pytest.approx(clip or norm, rel=1e-2)


@pytest.fixture
def scaled(tiny, monkeypatch):
    """tiny with a gradient scaler, as --dtype=float16 has it on CUDA; the powers of two leave fp32 as it is."""
    real = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, 'GradScaler', lambda *a, **k: real('cpu', init_scale=1024.0, growth_interval=4))
    return tiny


def test_a_scaler_changes_nothing_and_is_part_of_the_checkpoint(tiny, scaled, monkeypatch):
    flags = ['--max_iters=9', '--grad_clip=0.1', '--learning_rate=1e-3']
    _, a = scaled(*flags, out='a')
    _, b = scaled(*flags, '--max_iters=6', '--lr_decay_iters=9', out='b')
    train.main(['--resume', f'--out_dir={b}', '--max_iters=9', '--lr_decay_iters=0'])
    one, two = (torch.load(out + '/ckpt.pt', weights_only=True)['scaler'] for out in (a, b))
    assert one == two and one['scale'] == 4096 and one['_growth_tracker'] == 1       # twice grown, one step since
    monkeypatch.undo()
    _, c = tiny(*flags, out='c')
    assert_equal(weights(a), weights(b)), assert_equal(weights(a), weights(c), 1e-7)


def test_a_scaler_skips_a_gradient_that_is_not_finite(scaled, monkeypatch):
    real, calls = torch.nn.utils.clip_grad_norm_, []
    def overflow(parameters, most):
        calls.append(1)
        parameters = list(parameters)
        if len(calls) == 3: parameters[0].grad[0] = math.inf
        return real(parameters, most)
    def unscale(self, optimizer, real=torch.amp.grad_scaler.GradScaler.unscale_):
        if len(calls) == 2: optimizer.param_groups[0]['params'][0].grad[0] = math.inf    # what fp16 does at a scale too large
        real(self, optimizer)
    monkeypatch.setattr(torch.amp.grad_scaler.GradScaler, 'unscale_', unscale)
    monkeypatch.setattr(torch.nn.utils, 'clip_grad_norm_', overflow)
    _, out = scaled('--max_iters=4')
    saved = torch.load(out + '/ckpt.pt', weights_only=True)
    assert saved['step'] == 4 and saved['scaler']['scale'] == 512 and {int(s['step']) for s in saved['optimizer'][0].values()} == {3}
    assert all(torch.isfinite(w).all() for w in saved['model'].values())


def test_the_attention_kernel_is_told(tiny):
    from torch.nn import functional as F
    q, real = torch.randn(1, 2, 7, 8), F.scaled_dot_product_attention
    for fused, name in ((True, 'flash'), (False, 'math')):
        torch.backends.cuda.enable_flash_sdp(fused)
        try: assert attention_backend(lambda: F.scaled_dot_product_attention(q, q, q)) == name
        finally: torch.backends.cuda.enable_flash_sdp(True)
    assert attention_backend(lambda: 0) == 'unknown'
    with pytest.raises(ZeroDivisionError): attention_backend(lambda: 1 / 0)
    assert F.scaled_dot_product_attention is real
    assert re.search('attention kernel: (math|flash)\n', open(tiny('--max_iters=0')[1] + '/log.txt').read())


def test_a_run_gives_the_signals_back(tiny):
    before = [signal.getsignal(s) for s in SIGNALS]
    tiny('--max_iters=1')
    assert [signal.getsignal(s) for s in SIGNALS] == before
    with pytest.raises(FileNotFoundError): tiny('--init_from=/no/such/run')
    assert [signal.getsignal(s) for s in SIGNALS] == before


def test_a_rank_that_fails_waits_for_nobody(monkeypatch, capsys):
    """Others may wait for it in a collective, and so would the interpreter's way out."""
    left = []
    def fail(): raise ValueError('two\nlines')
    monkeypatch.setattr(train, 'main', fail), monkeypatch.setattr(os, '_exit', left.append)
    monkeypatch.setenv('RANK', '1')
    train.cli()
    assert left == [1] and capsys.readouterr().err == '\nerror: two lines\n'
    monkeypatch.delenv('RANK')
    with pytest.raises(SystemExit) as e: train.cli()
    assert e.value.code == 1 and left == [1]


def test_resume_refuses_another_model_or_data(tiny, corpus, tmp_path):
    _, out = tiny()
    with pytest.raises(ValueError, match='n_layer'): train.main(['--resume', f'--out_dir={out}', '--n_layer=3'])
    with pytest.raises(ValueError, match='is prepared with the tokenizer byte'): train.main(['--resume', f'--out_dir={out}', f'--data={corpus}', '--tokenizer=byte'])
    from data import text
    (tmp_path / 'less.txt').write_text(corpus.read_text()[:-1000])
    other = text.prepare(str(tmp_path / 'less.txt'), out + '/tokenizer.json', out=str(tmp_path / 'less'))
    with pytest.raises(ValueError, match='not what the run was trained on'): train.main(['--resume', f'--out_dir={out}', f'--data={other}', '--max_iters=9'])
    with pytest.raises(ValueError, match='holds a run'): train.main(['--resume', f'--out_dir={out}', '--model=bert'])


def test_an_earlier_run_is_moved_aside(tiny, capsys):
    _, out = tiny()
    old = weights(out)
    tiny('--seed=2')
    assert_equal(old, weights(out + '-1'))
    assert out + '-1' in capsys.readouterr().out


def test_target_loss_and_time_limit_stop(tiny, capsys):
    r, out = tiny('--max_iters=500', '--eval_interval=5', '--learning_rate=1e-2', '--target_val_loss=2.8', out='a')
    assert r['steps'] < 500 and r['val_loss'] <= 2.8 and torch.load(out + '/ckpt.pt', weights_only=True)['step'] == r['steps']
    assert f'reached --target_val_loss=2.8 at step {r["steps"]}: {r["val_loss"]:.4f} after ' in capsys.readouterr().out
    r, out = tiny('--max_iters=100000', '--eval_interval=100000', '--time_limit=0.5', out='b')
    assert 0.5 <= r['train_seconds'] < 5 and 'val_loss' in r


def test_a_loss_that_is_not_finite_stops_with_step_and_checkpoint(tiny, monkeypatch):
    real = gpt.Model.forward
    calls = []
    def forward(self, *a, **k):
        loss, stats = real(self, *a, **k)
        if self.training: calls.append(1)
        return (loss * float('nan') if self.training and len(calls) == 6 else loss), stats
    monkeypatch.setattr(gpt.Model, 'forward', forward)
    with pytest.raises(FloatingPointError, match='step 4 .*learning rate .*ckpt.pt of step 3'): tiny()
    monkeypatch.undo()


def test_a_gradient_that_is_not_finite_leaves_the_weights(tiny, monkeypatch):
    real = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, 'clip_grad_norm_', lambda p, m: real(p, m) * float('inf'))
    with pytest.raises(FloatingPointError, match='step 0 .*none'): tiny()


def test_export_and_init_from_hugging_face(tiny, tmp_path):
    import transformers
    folder = str(tmp_path / 'hf')
    r, out = tiny(f'--export_hf={folder}', '--bias=true', '--positions=learned', '--norm=layernorm', '--activation=gelu_tanh', '--qk_norm=false')
    hf, (model, tok) = transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), train.load_model(out)
    x = torch.randint(0, tok.vocab_size, (2, 13))
    with torch.no_grad(): a, b = hf(x).logits, model.logits(x)
    assert (a - b[..., :a.size(-1)]).abs().max() < 1e-4
    again, _ = train.load_model(folder)
    assert (again.logits(x)[..., :a.size(-1)] - a).abs().max() < 1e-4
    r2, out2 = tiny(f'--init_from={out}', '--max_iters=0', out='c')
    assert r2['val_loss'] == pytest.approx(r['val_loss'], abs=1e-6)
    train.main([f'--init_from={out}', '--max_iters=0', f'--export_hf={tmp_path}/hf2'])
    assert (tmp_path / 'hf2' / 'model.safetensors').read_bytes() == (tmp_path / 'hf' / 'model.safetensors').read_bytes()


def test_init_from_with_a_smaller_block(tiny):
    _, out = tiny('--positions=learned')
    r, small = tiny(f'--init_from={out}', '--block_size=9', '--max_iters=1', out='b')
    assert train.load_model(small)[0].config.block_size == 9
    with pytest.raises(ValueError, match='do not fit'): tiny(f'--init_from={out}', '--n_embd=32', '--max_iters=1', out='c')


def test_init_from_refuses_another_tokenizer(tiny, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, out = tiny()
    with pytest.raises(ValueError, match='leave out --tokenizer'): train.main([*TINY, f'--data={corpus}', '--tokenizer=byte', f'--init_from={out}', f'--out_dir={out}-b'])
    from data import text                                      # as many characters, but others
    (tmp_path / 'other.txt').write_text(corpus.read_text().replace('z', 'q').replace('x', 'j'))
    other = text.prepare(str(tmp_path / 'other.txt'), 'char', out=str(tmp_path / 'other'))
    assert text.open_meta(other)['vocab_size'] == train.load_model(out)[1].vocab_size
    with pytest.raises(ValueError, match=r'tokenizer char \(\d+ ids\), .* was trained with char'):
        train.main([*TINY, f'--data={other}', '--tokenizer=char', f'--init_from={out}', f'--out_dir={out}-b'])


def test_a_copied_model_file_trains(prepared, tmp_path, monkeypatch):
    (tmp_path / 'mine.py').write_text(open(gpt.__file__).read())
    monkeypatch.chdir(tmp_path)
    r = train.main(['--model=mine', *TINY[1:], f'--data={prepared}', '--max_iters=1'])
    assert r['out_dir'] == 'out/mine' and type(train.load_model('out/mine')[0]).__module__ == 'mine'
    sys.modules.pop('mine'); sys.path.remove(str(tmp_path))


def test_a_fork_starts_from_its_parents_weights(tiny, prepared, tmp_path, monkeypatch):
    """A copy of gpt.py takes gpt.py's weights, also with a new field; one with other weights or without a field is told which."""
    r, parent = tiny()
    source = open(gpt.__file__).read()
    def fork(name, *changes):
        text = source
        for old, new in changes: assert text.count(old) >= 1; text = text.replace(old, new, 1)
        (tmp_path / f'{name}.py').write_text(text)
        return train.main([f'--model={name}', f'--init_from={parent}', f'--data={prepared}', f'--out_dir={tmp_path}/{name}', '--max_iters=0', '--device=cpu', '--batch_size=8', '--eval_iters=11'])
    monkeypatch.chdir(tmp_path)
    field, layer = '    n_layer: int =', 'class Model(nn.Module):\n'
    try:
        found = fork('mine', (field, '    my_own: int = 7              # a new field\n' + field))
        assert found['val_loss'] == pytest.approx(r['val_loss'], abs=1e-6) and load_checkpoint(found['out_dir'])['config']['my_own'] == 7
        assert_equal(weights(found['out_dir']), weights(parent)) and type(train.load_model(found['out_dir'])[0]).__module__ == 'mine'
        with pytest.raises(ValueError, match=r"fit the model: Missing key 'my_own', which more.py has with these settings; .*an edit of more.py.*--new_weights"):
            at = source.index('        super().__init__()', source.index(layer))
            fork('more', (source[source.index(layer):at + 26], source[source.index(layer):at + 26] + '\n        self.my_own = nn.Parameter(torch.zeros(3))'))
        with pytest.raises(ValueError, match="fit the model: Unexpected key 'blocks.1.*' .and \\d+ more., which less.py has not"):
            fork('less', ('Block(config) for _ in range(config.n_layer)', 'Block(config) for _ in range(config.n_layer - 1)'))
        with pytest.raises(ValueError, match='holds a model of gpt.py, not of --model=lacks, whose Config has no n_layer.*: leave out --model, or keep the fields of gpt.py'):
            fork('lacks', (field, '    layers: int ='))
        with pytest.raises(AttributeError, match='no_such_layer'):         # a bug is not told as a damaged checkpoint
            at = source.index('        super().__init__()', source.index(layer))
            fork('buggy', (source[source.index(layer):at + 26], source[source.index(layer):at + 26] + '\n        self.no_such_layer'))
    finally:
        for name in ('mine', 'more', 'less', 'lacks', 'buggy'): sys.modules.pop(name, None)
        while str(tmp_path) in sys.path: sys.path.remove(str(tmp_path))


@pytest.mark.parametrize('flags, says', [
    (['--max_iters=4'], r'step 4 of 4; to go on: python train.py --resume --out_dir=OUT --max_iters=8'),
    (['--epochs=0.03'], r'step \d+ of \d+ \(--epochs=0.03\); to go on: python train.py --resume --out_dir=OUT --epochs=0.06'),
    (['--time_limit=0.01', '--max_iters=999'], r'step \d+ of 999 \(--time_limit=0.01\); to go on: python train.py --resume --out_dir=OUT --time_limit=[\d.]+')])
def test_resume_of_a_finished_run_says_so(tiny, tmp_path, capsys, flags, says):
    before, out = tiny(*flags)
    times = {p: os.stat(os.path.join(out, p)).st_mtime_ns for p in os.listdir(out)}
    capsys.readouterr()
    again = train.main(['--resume', f'--out_dir={out}'])
    said = capsys.readouterr().out
    assert re.fullmatch(re.escape(out) + ' is finished: ' + says.replace('OUT', re.escape(out)) + '\n', said), said
    assert again['steps'] == before['steps'] and {p: os.stat(os.path.join(out, p)).st_mtime_ns for p in os.listdir(out)} == times
    train.main([*said.split('train.py ')[1].split(), '--eval_iters=3'])                    # what it says to type goes on
    assert load_checkpoint(out)['step'] > before['steps']


def test_a_finished_run_can_still_be_exported(tiny, tmp_path, capsys):
    _, out = tiny('--preset=gpt2', '--micro_batch_size=0', '--max_iters=1')
    capsys.readouterr()
    train.main(['--resume', f'--out_dir={out}', f'--export_hf={tmp_path}/hf'])
    assert os.path.exists(tmp_path / 'hf' / 'model.safetensors') and ' is finished: step 1 of 1' in (said := capsys.readouterr().out) and 'best validation' not in said


@pytest.mark.parametrize('family, more', [('bert', {}), ('bert', dict(n_segments=1, position_offset=2, norm_eps=1e-5, double_sep=True)), ('bert', dict(n_segments=0, pooler='relu')), ('electra', {})])
@pytest.mark.parametrize('kind', ['bpe', 'wordpiece'])
def test_an_exported_tokenizer_frames_texts_as_the_model_does(family, more, kind, tmp_path):
    transformers = pytest.importorskip('transformers')
    import bert, electra
    file, tokenizer = dict(bert=bert, electra=electra)[family], bpe.train(['who won the town in paris? a film '] * 40, 390, model=kind)
    roles = {f'{r}_id': getattr(tokenizer, r) for r in ('eot', 'pad', 'cls', 'sep', 'mask')} | ({'position_offset': tokenizer.pad + 1} if more.get('position_offset') else {})
    config = file.Config(**{**dict(vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=24, n_hidden=37, block_size=13, kind='labelled', n_labels=3), **more, **roles})
    export_hf(file, file.Model(config), tokenizer, str(tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for pair in (['who won'], ['who won', 'a film in town'], ['the town ' * 9]):
        row, = tasks.encode(dict(zip(('text', 'text_b'), pair), label=0), tokenizer, config)
        found = theirs(*pair, truncation=True)
        assert found['input_ids'] == row['ids'] and found.get('token_type_ids') == (row['segments'] if config.n_segments == 2 else None), pair
    assert (theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id, theirs.pad_token_id) == tuple(roles[f'{r}_id'] for r in ('cls', 'sep', 'mask', 'pad'))
    assert bpe.load(str(tmp_path)).encode('who won') == tokenizer.encode('who won')        # ours adds nothing


def test_exported_tokenizers_of_the_other_families(tmp_path):
    transformers = pytest.importorskip('transformers')
    import bert, t5
    tokenizer = bpe.train(['who won the town in paris? a film '] * 40, 390)
    sizes = dict(vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=24, n_hidden=37, block_size=13, eot_id=tokenizer.eot, pad_id=tokenizer.pad)
    def opened(file, name, **more):
        model = file.Model(file.Config(**{n: v for n, v in {**sizes, **more}.items() if n in file.Config.__dataclass_fields__})).eval()
        export_hf(file, model, tokenizer, str(tmp_path / name))
        return model, transformers.AutoTokenizer.from_pretrained(str(tmp_path / name))
    assert dict(opened(gpt, 'gpt', bias=True)[1]('who won')) == dict(input_ids=tokenizer.encode('who won'), attention_mask=[1] * len(tokenizer.encode('who won')))
    assert opened(t5, 't5')[1]('who won')['input_ids'] == [*tokenizer.encode('who won'), tokenizer.eot]
    model, theirs = opened(bert, 'bert', cls_id=tokenizer.cls, sep_id=tokenizer.sep, mask_id=tokenizer.mask, kind='text')
    pipe = transformers.pipeline('fill-mask', model=str(tmp_path / 'bert'), tokenizer=theirs, device='cpu')
    with torch.no_grad(): p = model.logits(torch.tensor([[tokenizer.cls, *tokenizer.encode('who won'), tokenizer.mask, tokenizer.sep]]))[0, -2].softmax(-1)
    assert [r['score'] for r in pipe('who won<|mask|>', top_k=3)] == pytest.approx(p.topk(3).values.tolist(), abs=1e-6)


def test_the_compiled_path_trains_alike(tiny):
    pytest.importorskip('torch._inductor')
    import shutil
    if not (shutil.which('g++') or shutil.which('clang++')): pytest.skip('torch.compile on the CPU needs a C++ compiler')
    _, a = tiny('--max_iters=2', '--n_layer=1', out='a')
    _, b = tiny('--max_iters=2', '--n_layer=1', '--compile=true', out='b')
    _, c = tiny('--max_iters=2', '--n_layer=1', '--micro_batch_size=2', '--compile=reduce-overhead', out='c')
    assert_equal(weights(a), weights(b), 1e-5)
    assert_equal(weights(a), weights(c), 1e-5)


# ---------------------------------------------------------------------------------------------------- files

def test_safetensors_both_ways(tmp_path):
    from safetensors.torch import load_file, save_file
    t = {'a': torch.randn(3, 5), 'b': torch.arange(7), 'c': torch.randn(2, 3).bfloat16(), 'd': torch.tensor(True), 'empty': torch.zeros(0, 4), 'h': torch.randn(4).half()}
    files.write_safetensors(str(tmp_path / 'x'), t)
    theirs = load_file(tmp_path / 'x')
    save_file(t, tmp_path / 'y')
    ours = files.read_safetensors(str(tmp_path / 'y'))
    for k in t:
        for other in (theirs, ours): assert other[k].dtype == t[k].dtype and torch.equal(other[k], t[k])


@pytest.mark.parametrize('break_it', [
    lambda b: b[:5], lambda b: b[:-3], lambda b: b'\xff' * 8 + b[8:], lambda b: b[:8] + b'x' + b[9:],
    lambda b: b.replace(b'"data_offsets": [0, 60]', b'"data_offsets": [0, 90]'), lambda b: b.replace(b'"data_offsets": [0, 60]', b'"data_offsets": [4, 64]'),
    lambda b: b.replace(b'"shape": [3, 5]', b'"shape": [5, 5]'), lambda b: b.replace(b'"shape": [3, 5]', b'"shape": [-3,-5]'.ljust(15)), lambda b: b.replace(b'F32', b'F99')])
def test_safetensors_that_lie(tmp_path, break_it):
    path = str(tmp_path / 'x')
    files.write_safetensors(path, {'a': torch.randn(3, 5), 'b': torch.arange(7)})
    good = open(path, 'rb').read()
    bad = break_it(good)
    assert bad != good
    open(path, 'wb').write(bad)
    with pytest.raises(ValueError, match=re.escape(path)): files.read_safetensors(path)


def test_a_truncated_checkpoint_is_named(tiny):
    _, out = tiny()
    data = open(out + '/ckpt.pt', 'rb').read()
    open(out + '/ckpt.pt', 'wb').write(data[:len(data) // 2])
    for go in (lambda: train.load_model(out), lambda: train.main(['--resume', f'--out_dir={out}'])):
        with pytest.raises(ValueError, match='ckpt.pt.*cut short'): go()


def test_checkpoints_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path / 'owned'),)
    torch.save(dict(model=Evil(), config={}, model_name='gpt'), tmp_path / 'ckpt.pt')
    with pytest.raises(ValueError): train.load_model(str(tmp_path))
    assert not (tmp_path / 'owned').exists()


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = str(tmp_path / 'f')
    files.write_atomic(path, lambda f: f.write(b'old'))
    def half(f): f.write(b'new'); raise OSError('disk full')
    with pytest.raises(OSError): files.write_atomic(path, half)
    assert open(path, 'rb').read() == b'old' and os.listdir(tmp_path) == ['f']


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    path, done, sync, put = str(tmp_path / 'f'), [], os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda f: (done.append(os.fstat(f).st_size), sync(f)))
    monkeypatch.setattr(os, 'replace', lambda *names: (done.append(names), put(*names)))
    files.write_atomic(path, lambda f: f.write(b'x' * 13))
    assert done == [13, (path + '.tmp', path)] and os.listdir(tmp_path) == ['f']


def test_a_run_goes_on_when_no_file_can_be_written(tiny, monkeypatch):
    """The curve, best.pt, ckpt.pt: the run ends all the same, and says at the end that nothing is saved."""
    def full(path, write, real=files.write_atomic):
        if not path.endswith(('.jsonl', '.json')): raise OSError(28, 'No space left on device')
        real(path, write)
    seen = []
    monkeypatch.setattr(files, 'write_atomic', full)
    monkeypatch.setattr(train.Log, 'metrics', lambda self, row, real=train.Log.metrics: (seen.append(row['step']), real(self, row)))
    with pytest.raises(OSError, match='no checkpoint could be written in .*out: free some space'): tiny()
    assert max(seen) == 6


def test_a_full_disk_keeps_the_earlier_checkpoint_and_fails_at_the_end(prepared, tmp_path):
    import resource
    out = str(tmp_path / 'out')
    assert shell(f'--data={prepared}', f'--out_dir={out}', '--max_iters=3').returncode == 0
    old = weights(out)
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))         # a disk with 100 kB left
    r = shell('--resume', f'--out_dir={out}', '--max_iters=9', preexec_fn=small)
    assert r.returncode != 0 and 'could not write' in r.stdout and 'Traceback' not in r.stderr and 'is of step 3' in r.stderr
    assert_equal(old, weights(out))
    assert not [f for f in os.listdir(out) if f.endswith('.tmp')]


# ---------------------------------------------------------------------------------------------------- processes

@pytest.mark.parametrize('kind', ['ddp', 'shard'])
def test_two_ranks_train_as_one(prepared, tmp_path, kind):
    flags = [f'--data={prepared}', '--objective=prefix', '--optimizer=muon'] + (['--shard', '--micro_batch_size=2'] if kind == 'shard' else [])
    a, b = str(tmp_path / 'a'), str(tmp_path / 'b')
    one = train.main([*TINY, *flags[:3], f'--out_dir={a}'])
    r = shell(*flags, f'--out_dir={b}', ranks=2)
    assert r.returncode == 0, r.stderr[-2000:]
    assert_equal(weights(a), weights(b), 5e-6)
    last = [l for l in map(json.loads, open(b + '/metrics.jsonl')) if 'val_loss' in l][-1]
    assert last['val_loss'] == pytest.approx(one['val_loss'], abs=1e-5) and last['val_bpb'] == pytest.approx(one['val_bpb'], abs=1e-5)
    # and the checkpoint of two ranks goes on as one process, as an undisturbed run does
    again = train.main(['--resume', f'--out_dir={b}', '--max_iters=9'])
    other = train.main(['--resume', f'--out_dir={a}', '--max_iters=9'])
    assert again['val_loss'] == pytest.approx(other['val_loss'], abs=2e-5)


def test_kill_at_any_moment_then_resume(prepared, tmp_path):
    flags = [f'--data={prepared}', '--max_iters=60', '--eval_interval=7', '--save_interval=3', '--dropout=0.1']
    a, b = str(tmp_path / 'a'), str(tmp_path / 'b')
    train.main([*TINY, *flags, f'--out_dir={a}'])
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), 'little'))
    for attempt in range(12):
        saved = os.path.exists(b + '/ckpt.pt')
        p = subprocess.Popen(command(*flags, *(['--resume'] if saved else []), f'--out_dir={b}'), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if attempt < 4:                                        # by chance: from the first steps on, within what the run takes
            for line in p.stdout:
                if line.startswith('step'): break
            time.sleep(rng.uniform(0, 0.25))
            p.kill()
        text = p.communicate()[0]
        assert p.returncode in (0, -9), text
        if p.returncode == 0: break
    assert_equal(weights(a), weights(b))
    assert sorted(os.listdir(b)) == sorted(os.listdir(a))
    evals = lambda out: [(l['step'], l['val_loss']) for l in map(json.loads, open(out + '/metrics.jsonl')) if 'val_loss' in l]
    assert evals(a) == evals(b)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_say_how_to_go_on(prepared, tmp_path, number):
    out = str(tmp_path / 'out')
    p = subprocess.Popen(command(f'--data={prepared}', f'--out_dir={out}', '--max_iters=100000', '--eval_interval=100000'), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in p.stdout:
        if line.startswith('step 2/'): break
    p.send_signal(number)
    text, error = p.communicate(timeout=60)
    assert p.returncode == 128 + number and 'Traceback' not in error
    step = int(re.search(rf'saved step (\d+). To go on: python train.py --resume --out_dir={re.escape(out)}', text)[1])
    assert torch.load(out + '/ckpt.pt', weights_only=True)['step'] == step >= 2


# ---------------------------------------------------------------------------------------------------- the collection

def test_no_work_at_import():
    code = 'import sys, torch, numpy; a = set(sys.modules); import gpt; print(torch.is_grad_enabled(), torch.get_default_dtype(), sorted(m for m in set(sys.modules) - a if not m.startswith(("torch", "gpt"))) and "")'
    r = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert r.stdout.startswith('True torch.float32'), r.stderr


@pytest.mark.parametrize('exact', [True, False])
def test_products_by_onednn_stay_those_of_fp32(exact, monkeypatch, tmp_path):
    """Where oneDNN would take bf16 inside (AMX), or MKL is as good (no AMD), torch's setting stays."""
    matmul = getattr(torch.backends.mkldnn, 'matmul', None)
    if not hasattr(matmul, 'fp32_precision'): pytest.skip('this torch has no such setting')
    before, real, cpu = matmul.fp32_precision, torch.Tensor.__matmul__, tmp_path / 'cpuinfo'
    inside = torch.float64 if exact else torch.bfloat16                    # whatever this machine has
    product = lambda a, b: real(a.to(inside), b.to(inside)).to(a.dtype) if a.dtype == torch.float32 else real(a, b)
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX512')
    monkeypatch.setattr(device, 'open', lambda *a: open(cpu), raising=False)
    monkeypatch.setattr(torch.Tensor, '__matmul__', product)
    try:
        for vendor, wanted in (('GenuineIntel', 'ieee'), ('AuthenticAMD', 'bf16' if exact else 'ieee')):
            cpu.write_text(f'vendor_id : {vendor}')
            matmul.fp32_precision = 'ieee'
            wide_products()
            assert matmul.fp32_precision == wanted, vendor
    finally: matmul.fp32_precision = before


def test_plain_attention_for_short_rows_on_a_cpu():
    try:
        for kind, file, fields, fused in (
                ('cpu', gpt, dict(block_size=256), False), ('cpu', gpt, dict(block_size=257), True),
                ('cpu', gpt, dict(block_size=999, window=99), False), ('cpu', bert, dict(block_size=999, window=99), True),
                ('cuda', gpt, dict(block_size=64), True)):
            train.pick_attention(torch.device(kind), file.Config(**fields))
            assert torch.backends.cuda.flash_sdp_enabled() == fused, fields
        for file, fields, plain in ((gpt, {}, True), (gpt, dict(kind='instruct'), False), (gpt, dict(window=9), False),
                                    (bert, dict(kind='labelled'), False), (bert, {}, True)):
            train.pick_attention(torch.device('cuda'), file.Config(**fields))                  # cuDNN's: without masks alone
            assert torch.backends.cuda.cudnn_sdp_enabled() == plain, fields
    finally: torch.backends.cuda.enable_flash_sdp(True), torch.backends.cuda.enable_cudnn_sdp(True)


def test_a_mixture_trains_one_row_at_a_time(tiny, corpus, tmp_path, prepared):
    """Every part of it has to tell the length of its windows before the first step, not the parts of the first rows alone."""
    from data import text
    other = text.prepare(str(corpus), tokenizer=os.path.join(prepared, 'tokenizer.json'), out=str(tmp_path / 'other'))
    result, _ = tiny(f'--data={prepared}+{other}', '--micro_batch_size=1', '--max_iters=2')
    assert result['steps'] == 2 and np.isfinite(result['val_loss'])


def test_a_fork_that_computes_something_else_is_not_exported(tmp_path, prepared, monkeypatch):
    """transformers would open its folder as a model of the family."""
    source = open(gpt.__file__, encoding='utf-8').read()
    assert source.count('return self.down(self.activation(self.up(x)))') == 1
    (tmp_path / 'same.py').write_text(source)
    (tmp_path / 'twice.py').write_text(source.replace('return self.down(self.activation(self.up(x)))', 'return 2 * self.down(self.activation(self.up(x)))'))
    monkeypatch.chdir(tmp_path)
    flags = [*TINY, '--preset=gpt2', '--n_head=2', f'--data={prepared}', '--vocab_multiple=1', '--max_iters=1']
    try:
        train.main([*flags, '--model=same', '--out_dir=a', '--export_hf=hf-a'])
        assert os.path.exists('hf-a/config.json')
        with pytest.raises(ValueError, match='twice.py computes something else than gpt.py with the same weights'): train.main([*flags, '--model=twice', '--out_dir=b', '--export_hf=hf-b'])
        assert not os.path.exists('hf-b') and not os.path.exists('b')
        mini = 'from dataclasses import dataclass\nimport torch.nn as nn\n\n@dataclass\nclass Config:\n    vocab_size: int = 9\n\npresets = {}\ndef batch(draw, config, rng): pass\nclass Model(nn.Module):\n    def __init__(self, config):\n        super().__init__()\n'
        (tmp_path / 'mini.py').write_text(mini)
        with pytest.raises(ValueError, match='mini.Model does not keep its Config: write self.config = config'): train.main(['--model=mini', f'--data={prepared}', '--device=cpu', '--out_dir=c'])
    finally:
        for name in ('same', 'twice', 'mini'): sys.modules.pop(name, None)
        sys.path[:] = [p for p in sys.path if p != str(tmp_path)]


def test_a_schedule_without_a_branch_is_refused():
    with pytest.raises(ValueError, match='--lr_schedule=stairs'): train.learning_rate_share(200, train.Config(lr_schedule='stairs'))
