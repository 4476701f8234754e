"""The benchmark's own machinery: who takes turns, what is compared, the fit, the test. No time is measured."""
import json, math, os, sys, xml.dom.minidom
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bench, bert, electra, gpt, t5, train

SMALL = '--set=n_layer=1,n_embd=32,n_head=2,vocab_size=99'


@pytest.fixture
def run(tmp_path, monkeypatch):
    "run('gpt', flags ...) -> rows of JSON, what failed; all sides in this process"
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    def run(*flags, here=True):
        out = tmp_path / 'rows.jsonl'
        out.unlink(missing_ok=True)
        failed = bench.main([*flags, *(['--here'] if here else []), '--repeat=2', '--inner=1', f'--out={out}'])
        return [json.loads(line) for line in out.read_text().splitlines()], failed
    return run


@pytest.mark.parametrize('family, more', [('gpt', ['--rows=3', SMALL]), ('bert', []), ('t5', ['--tokens=3']),
                                          ('electra', []), ('lora', ['--rows=3', SMALL])])
def test_training_steps(run, family, more):
    rows, failed = run(family, '--size=tiny', *more)
    assert not failed
    row, *others = rows
    name = 'peft' if family == 'lora' else 'transformers'
    assert [*row['sides']] == ['ours', f'{name} tuned', f'{name} plain'] and row['unit'] == 'tokens/s'
    for side in row['sides'].values():
        assert side['min'] <= side['median'] <= side['max'] and side['peak_gb'] > 0
        assert ('tflops' in side) == ('of_matmul' in side) == (family != 'lora') and 'mfu' not in side
        # ELECTRA draws its own samples, so that a loss of few tokens may be further off
        if family != 'electra': assert 'DIFFERS' not in side
    assert torch.__version__.startswith(row['torch']) and row['hardware'] and row['command'].startswith('python tests/bench.py')
    for decoding in others: assert {'ours', 'transformers'} == {*decoding['sides']} and 'DIFFERS' not in str(decoding)
    assert len(others) == 2 * (family == 't5')


def test_decoding(run):
    rows, failed = run('sample', '--size=tiny', '--tokens=5', SMALL)
    assert not failed and len(rows) == 2 and 'without a cache' in rows[1]['what'] and 'DIFFERS' not in str(rows)


def test_memory_and_parity(run):
    rows, failed = run('memory', '--size=tiny', '--rows=2')
    assert not failed and [r['what'].split()[0] for r in rows] == ['gpt', 'bert', 't5', 'electra', 'lora']
    for row in rows: assert 'ours checkpointed' in row['sides'] and row['unit'] == 'GB at most'
    rows, failed = run('parity')
    assert not failed and len(rows) == 4 and all(r['good'] for r in rows)


def test_what_each_choice_gives(run, capsys, monkeypatch):
    everywhere, real = [], bert.Model.logits
    monkeypatch.setattr(bert.Model, 'logits', lambda self, ids: everywhere.append(ids.shape) or real(self, ids))
    chosen = 'ours', 'attention: math', 'logits everywhere', 'activations computed twice', 'Muon', 'half the rows'
    try:
        rows, failed = run('tune', '--size=tiny', '--rows=5', f'--sides={",".join(chosen)}')
        assert not torch.backends.cuda.mem_efficient_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()
        assert len(everywhere) == 4 and {*everywhere} == {(5, 32)}
    finally:
        for kernel in bench.KERNELS: getattr(torch.backends.cuda, f'enable_{kernel}_sdp')(True)
    assert not failed and [r['what'].split()[1] for r in rows] == ['gpt', 'bert', 't5', 'electra']
    for row in rows:
        family = row['what'].split()[1]
        assert [*row['sides']] == [s for s in chosen if family == 'bert' or s != 'logits everywhere']
        if family != 'electra': assert 'DIFFERS' not in str(row)
    assert capsys.readouterr().out.count('expected at most') == 4


def test_logits_everywhere_do_the_same(args):
    "the same loss from all places as from the masked ones; transformers' labels are the targets in their places"
    args.set, args.rows, args.compile, args.size, args.dropout = '', 5, False, 'tiny', 0.0
    file, config, rows, _ = bench.pick(args, 'bert')
    ids, places, targets = bench.random_batch(file, config, rows)
    targets[0, -1] = -1                                                    # a place that does not count
    labels = bench.spread_labels(ids, places, targets)
    assert (labels[labels < 0] == -100).all() and (np.take_along_axis(labels, places, 1)[targets >= 0] == targets[targets >= 0]).all()
    assert (labels >= 0).sum() == (targets >= 0).sum() > 0
    one, all = (float(bench.our_step(args, 'bert', file, config, rows, everywhere=e)()) for e in (False, True))
    assert one == pytest.approx(all, abs=1e-5)


def test_the_choices_of_a_gpu(args):
    args.device, args.dtype, args.compile, rows = 'cuda', 'bfloat16', True, 6
    for family, file in (('gpt', gpt), ('bert', bert), ('t5', t5), ('electra', electra)):
        sides = bench.variants(args, family, file.Config(vocab_multiple=128), rows)
        assert ('loss in chunks' in sides) == (family == 'gpt') and ('logits everywhere' in sides) == (family == 'bert')
        assert {'eager', 'CUDA graphs', 'max-autotune', 'residual in bf16', 'attention: mem_efficient', 'attention: math',
                'vocabulary not padded', 'Muon'} < {*sides}
        assert ('attention: cudnn' in sides) == ('attention: flash' in sides) == (family != 't5')
        assert [sides[n][1] for n in ('ours', 'half the rows', 'twice the rows')] == [6, 3, 12]


def test_the_data_path_and_the_start(run, monkeypatch):
    rows, failed = run('data', '--size=tiny')
    assert not failed and len(rows) == 1 + len(t5.objectives) + 6 + 2
    commands, said = [], SimpleNamespace(stdout='x')
    monkeypatch.setattr(bench.subprocess, 'run', lambda command, **kw: commands.append(command) or said)
    rows, failed = run('start', '--data=here')
    assert not failed and [r['unit'] for r in rows] == ['s', 's']
    commands = [c for c in commands if c[0] == sys.executable]
    assert len(commands) == 6 and commands[0][2:] == ['--help'] and '--data=here' in commands[-1]


def test_a_budget(run, monkeypatch, capsys):
    "parts that would begin too late are named"
    monkeypatch.setattr(bench, 'BEGAN', bench.time.perf_counter())
    def part(seconds): return lambda args: bench.time.sleep(seconds) or bench.write(args, dict(what='part'))
    monkeypatch.setattr(bench, 'BENCHES', dict(parity=part(0.3), start=part(0), data=part(0)))
    rows, failed = run('all', '--budget=0.2')
    assert len(rows) == 1 and not failed and 'not measured: start, data' in capsys.readouterr().out
    assert len(run('all', '--budget=0')[0]) == 3


def test_bpe(run):
    rows, failed = run('bpe', '--size=tiny')
    assert not failed and [[*r['sides']][1] for r in rows] == ['tokenizers', 'tiktoken', 'tiktoken alone']


def test_sides_in_processes_of_their_own(run):
    "as it is used: two processes, one of which fails"
    two = '--sides=ours,transformers plain', '--together'
    rows, failed = run('gpt', '--size=tiny', '--rows=2', SMALL, *two, here=False)
    assert not failed and 'DIFFERS' not in str(rows)
    assert all(side['first_step_s'] > 0.1 and 0.05 < side['peak_gb'] < 20 for side in rows[0]['sides'].values())
    rows, failed = run('gpt', '--size=tiny', '--set=n_head=3', '--sides=ours', here=False)
    assert len(failed) == 1 and 'n_head=3' in failed[0] and rows[0]['error'] == failed[0]


# ---------------------------------------------------------------------------------------------------- the race

@pytest.fixture
def args(tmp_path):
    return SimpleNamespace(
        what='x', size='', side='', sides='', device='cpu', dtype='float32', here=True, together=False, inner=3,
        turn=1.0, repeat=2, memory=False, quiet=False, out=str(tmp_path / 'rows.jsonl'), argv=[], failures=[])

def test_turns_alternate_and_differences_are_said(args, capsys):
    calls = []
    def side(name, value):
        def build(): return lambda: calls.append(name) or value
        return build
    sides = dict(ours=side('a', 1.0), same=side('b', 1.009), other=side('c', 1.02), broken=side('d', math.nan))
    got = bench.race(args, 'toy', 'steps/s', 6, sides)
    assert ''.join(calls) == 'abcd' + 'abcd' + 2 * 'aaabbbcccddd'           # first, warm-up, two rounds of three steps
    assert [name for name, row in got.items() if 'DIFFERS' in row] == ['other', 'broken']
    assert 'DIFFERS' in capsys.readouterr().out
    assert 'DIFFERS' in bench.race(args, 'toy', 'steps/s', 6, sides, exact=True)['same']
    args.sides = 'nobody'
    with pytest.raises(ValueError, match='ours,same,other,broken'): bench.race(args, 'toy', 'steps/s', 6, sides)


def test_a_side_that_fails_leaves_the_others(args, capsys):
    def fine(): return lambda: 1.0
    def unbuilt(): raise RuntimeError('no such model')
    def later():
        calls = iter([1.0, 1.0])
        return lambda: next(calls)
    got = bench.race(args, 'toy', 'steps/s', 1, dict(ours=fine, unbuilt=unbuilt, later=later, fine=fine))
    assert got['unbuilt'] == dict(error='no such model') and 'error' in got['later'] and 'ratio' in got['fine']
    assert 'failed: no such model' in capsys.readouterr().out
    with pytest.raises(RuntimeError, match='no such model'):
        bench.race(args, 'toy', 'x', 1, dict(ours=unbuilt, fine=fine))
    bench.attempt(args, lambda args: 1 / 0)
    assert args.failures == ['x : division by zero']
    assert json.loads(open(args.out).read().splitlines()[-1])['error'] == args.failures[0]


def test_goals_and_parts_of_a_race(args, monkeypatch):
    "sides may do different amounts of work; how near ours comes to a goal is said on the GPU that it was set for"
    sides = dict(ours=lambda: lambda: 1.0, half=lambda: lambda: 1.0)
    got = bench.race(args, 'toy', 'x/s', dict(ours=8e6, half=4e6), sides, goal=1e9)
    assert not any('of_goal' in row for row in got.values())
    monkeypatch.setattr(bench, 'environment', lambda device: dict(hardware='1 x NVIDIA H200'))
    monkeypatch.setattr(bench, 'turns', lambda args, build: iter([dict(value=1.0, first=0.1)] + 3 * [dict(seconds=0.5, peak=1)]))
    class Worker:
        def __init__(self, args, *a): self.turns = bench.turns(args, None)
        def answer(self, steps=None): return next(self.turns)
        def close(self): pass
    monkeypatch.setattr(bench, 'Side', Worker)
    got = bench.race(args, 'toy', 'x/s', dict(ours=8e6, half=4e6), sides, flops=3e6, goal=1e9)
    assert (got['ours']['median'], got['ours']['of_goal'], got['ours']['tflops']) == (16e6, 0.016, 48)
    assert (got['half']['median'], got['half']['of_goal'], got['half']['ratio']) == (8e6, 0.008, [2, 2, 2])
    for family, size in bench.GOALS: assert size in bench.SIZES['gpt' if family == 'decode' else family]


def test_ratios(args):
    faster = bench.report(args, 'speed', 'x/s', dict(ours=[2.0, 6.0, 4.0], theirs=[1.0, 2.0, 4.0]))
    smaller = bench.report(args, 'memory', 'GB', dict(ours=[2.0, 6.0, 4.0], theirs=[1.0, 2.0, 4.0]), less=True)
    assert faster['theirs']['ratio'] == [2.0, 1.0, 3.0] and smaller['theirs']['ratio'] == [0.5, 0.3333, 1.0]
    assert faster['ours'] == dict(median=4.0, min=2.0, max=6.0)


def test_flags(capsys):
    wrong = ('--set=n_layers=2', 'did you mean n_layer'), ('--set=n_layer=x', 'a whole number'), ('--set=n_layer', 'FIELD=VALUE')
    for flag, said in wrong:
        assert said in bench.main(['gpt', '--size=tiny', flag, '--here', '--out=/dev/null'])[0]
    for flag, said in (('--size=huge', 'gpt has tiny'), ('--rows=-1', 'expected 0 or more'), ('--repeat=0', '1 or more'),
                       ('--dtype=fp16', 'bf16 or float32'), ('--families=gtp', 'expected some of gpt,bert'),
                       ('--inner=-1', '0 or more'), ('--turn=nan', 'or more'), ('--out=/nowhere/x', 'No such file')):
        with pytest.raises(ValueError, match=said): bench.main(['gpt', '--size=tiny', '--here', '--out=/dev/null', flag])
    for words in (['speedrun', 'python', 'train.py'], ['gpt', '--sise=tiny']):
        with pytest.raises(SystemExit): bench.main(words)
        said = capsys.readouterr().err
        assert 'unknown: ' in said and ('behind a --' in said) == (words[0] == 'speedrun')
    with pytest.raises(SystemExit): bench.main(['--help'])
    help = capsys.readouterr().out
    assert all(name in help for name in bench.BENCHES)
    for kind in bench.USUAL.values():
        assert set(kind) == set(bench.SIZES)
        for family, sizes in kind.items(): assert set(sizes.split(',')) <= set(bench.SIZES[family])


# ---------------------------------------------------------------------------------------------------- speedruns

def test_p_value():
    "the integral of Student's density, by the trapezoid rule"
    losses, target = [3.274, 3.279, 3.281, 3.276], 3.28
    n = len(losses)
    t = (np.mean(losses) - target) / (np.std(losses, ddof=1) / n ** 0.5)
    x = np.linspace(-2000, t, 4_000_001)
    scale = math.gamma(n / 2) / (math.sqrt((n - 1) * math.pi) * math.gamma((n - 1) / 2))
    want = np.trapezoid(scale * (1 + x * x / (n - 1)) ** (-n / 2), x)
    assert abs(bench.p_under(losses, target) - want) < 1e-6
    assert bench.p_under([3.1, 3.11, 3.1], 3.28) < 0.01 < bench.p_under(losses, target) < 0.5
    assert bench.p_under(losses, 3.27) > 0.5
    assert math.isnan(bench.p_under([3.1], 3.28))


def test_commands():
    split, python = bench.split_command, sys.executable
    assert split(['--preset=a']) == ([python], {'preset': 'a'})
    assert split(['python', 'train.py', '--preset', 'a']) == ([python], {'preset': 'a'})
    assert split('env A=b ../x/train.py --shard'.split()) == (['env', 'A=b'], {'shard': None})
    for words in ('pyhton train.py', 'python trian.py --preset=a', 'ls'):
        with pytest.raises(ValueError, match='there is no pyhton' if 'pyh' in words else 'expected bench.py speedrun -- '):
            split(words.split())


def test_speedrun(tmp_path, monkeypatch, capsys):
    def fake(launch, flags):
        seed = int(flags[-1].split('=')[1])
        assert launch == [sys.executable] and not any('target' in f for f in flags)
        loss = lambda step: 3 - step / 100 + seed / 1000
        rows = [dict(step=s, tokens=s * 64, train_seconds=s / 10, val_loss=loss(s)) for s in (0, 50, 100)]
        return rows + [dict(step=100, mfu=0.4)]
    monkeypatch.setattr(bench, 'train_run', fake)
    table, out = tmp_path / 'results.md', tmp_path / 'rows.jsonl'
    command = ['speedrun', '--seeds=3', '--first_seed=1', f'--results={table}', f'--out={out}']
    command += '-- python train.py --model=gpt'.split()
    for flag in ('--target_val_loss=2.51', '--target_val_loss 2.51'):
        assert not bench.main([*command, '--device=cpu', *flag.split()])
    lines = table.read_text().splitlines()
    assert len(lines) == 4 and lines[0].startswith('| date') and '--target_val_loss=2.51' in lines[2]
    assert '| 2.0020 ± 0.0010 |' in lines[2] and '| 50 steps, 5.0 s |' in lines[2] and '40.0%' in lines[2]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 8 and rows[3]['losses'] == pytest.approx([2.001, 2.002, 2.003]) and rows[3]['p'] < 1e-4
    assert 'at or under 2.51: 50 steps, 5.0 s' in capsys.readouterr().out
    with pytest.raises(ValueError, match='--seeds=N'): bench.main([*command, '--seed=5', '--device=cpu'])
    with pytest.raises(ValueError, match='expected bench.py speedrun -- '): bench.main(['speedrun', f'--out={out}'])
    with pytest.raises(ValueError, match='target_val_loss=x: expected a number'): bench.main([*command, '--target_val_loss=x'])
    capsys.readouterr()
    for less in (command[:1] + ['--seeds=1'] + command[2:] + ['--target_val_loss=3'], command):           # no claim: no row
        bench.main(less)
        assert 'a claim needs' in capsys.readouterr().out and len(table.read_text().splitlines()) == 4
    assert json.loads(out.read_text().splitlines()[-1])['p'] is None and 'gpt.py' in lines[2]
    monkeypatch.setitem(sys.modules, 'scipy', None)
    with pytest.raises(ValueError, match='pip install -r requirements-dev.txt'): bench.main([*command, '--target_val_loss=3'])


def test_a_real_run(prepared):
    flags = '--block_size=16 --n_layer=1 --n_embd=16 --batch_size=2 --max_iters=2 --eval_iters=2 --eval_interval=1'
    rows = bench.train_run([sys.executable], [f'--data={prepared}', '--device=cpu', *flags.split()])
    assert [r['step'] for r in rows if 'val_loss' in r] == [0, 1, 2]
    with pytest.raises(RuntimeError, match='unknown flag --modle; did you mean --model'):
        bench.train_run([sys.executable], ['--modle=gpt'])


@pytest.mark.parametrize('file, name, like', [
    (gpt, 'speedrun-gpt2-exact', 'gpt2'), (gpt, 'speedrun-gpt2', 'speedrun-gpt2-adamw'), (gpt, 'speedrun-cpu', ''),
    (gpt, 'speedrun-gpt2-adamw', ''), (bert, 'speedrun-crammed', 'crammed'), (t5, 'speedrun-nanot5', 't5-v1_1-base'),
    (electra, 'speedrun-electra-small', 'electra-small')])
def test_presets(file, name, like):
    "they name real fields, and split over 1, 2 and 8 devices into the same batches"
    config, *_ = train.parse([f'--model={file.__name__}', f'--preset={name}'])
    for world in (1, 2, 8):
        share = config.batch_size // world
        assert share * world == config.batch_size and share % min(config.micro_batch_size or share, share) == 0
    assert config.warmup_iters < config.max_iters
    with torch.device('meta'):
        models = [file.Model(file.Config(**file.presets[n])) for n in (name, like or name)]
    one, other = (sum(p.numel() for p in m.parameters()) for m in models)
    assert one == other and (like != 'gpt2' or one == 124439808)
    if 'gpt2' not in name: return
    assert config.eval_iters * 1024 == 10485760                            # modded-nanogpt's validation tokens
    assert (config.optimizer == 'muon') == (name == 'speedrun-gpt2')


# ---------------------------------------------------------------------------------------------------- scaling

LAW = 1.69, 406.4, 0.34, 410.7, 0.28                     # Hoffmann et al. 2022, eq. 10

def test_the_fit_finds_a_known_law():
    grid = [(N, D) for N in (2e4, 8e4, 3e5, 1e6, 4e6) for D in (2e5, 1e6, 5e6, 3e7, 2e8)]
    losses = [bench.law_at(LAW, N, D) for N, D in grid]
    law, errors = bench.fit_law(*zip(*grid), losses)
    assert max(map(abs, errors)) < 1e-5
    assert law == pytest.approx(LAW, rel=0.02)
    spoiled = [x * 1.2 if i == 7 else x for i, x in enumerate(losses)]     # Huber's loss hardly sees one that is off
    law, errors = bench.fit_law(*zip(*grid), spoiled)
    assert law == pytest.approx(LAW, rel=0.02) and abs(errors[7] + math.log(1.2)) < 0.002


def test_the_fit_is_as_good_as_another_optimizer():
    from scipy.optimize import least_squares
    rng = np.random.default_rng(3)
    N, D = (np.array(x) for x in zip(*[(N, D) for N in (2e4, 8e4, 3e5) for D in (2e5, 8e5, 3e6, 1e7)]))
    loss = bench.law_at((1.2, 30.0, 0.3, 60.0, 0.33), N, D) * np.exp(rng.normal(0, 0.004, len(N)))
    terms = lambda p: [np.full(len(N), p[0]), p[1] - p[2] * np.log(N), p[3] - p[4] * np.log(D)]
    error = lambda p: np.logaddexp.reduce(terms(p)) - np.log(loss)
    cost = lambda e: np.where(np.abs(e) < 1e-3, e * e / 2, 1e-3 * (np.abs(e) - 5e-4)).sum()
    fit = lambda *start: least_squares(error, start, loss='huber', f_scale=1e-3, xtol=1e-14, ftol=1e-14).x
    theirs = min(cost(error(fit(0, a, r, b, r))) for a in (2, 4) for b in (2, 4) for r in (0.2, 0.4))
    law, errors = bench.fit_law(N, D, loss)
    assert cost(np.array(errors)) < theirs * 1.001


def test_scaling(run, prepared, tmp_path, capsys):
    plot = tmp_path / 'scaling.svg'
    fit = '--widths=8,16', '--budgets=4096,6144,8192', f'--plot={plot}'
    rows, failed = run('scaling', '--quick', f'--data={prepared}', *fit)
    assert not failed, capsys.readouterr().out
    row = rows[-1]
    assert len(row['points']) == 6 and len(row['law']) == 5 and len(row['errors']) == 6
    assert [p[1] for p in row['points']] == [4096, 6144, 8192] * 2 and len({p[0] for p in row['points']}) == 2
    assert {(p['T'], p['window']) for p in row['grid']} >= {(16, 0), (32, 0), (32, 16)}
    svg = xml.dom.minidom.parse(str(plot))
    assert len(svg.getElementsByTagName('circle')) == 6 and len(svg.getElementsByTagName('polyline')) == 2
    said = capsys.readouterr().out
    assert 'measured' in said and 'without the largest run' in said
