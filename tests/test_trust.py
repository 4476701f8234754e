"""Runs that are left alone: killed at any moment, out of luck with a rank, a number or a disk, they are right when one
comes back to them, or say in one line what is wrong.

Oracle: the undisturbed run, bit for bit. The runs are forks of a process that has imported torch (conftest.py)."""
import json, math, os, random, re, shlex, signal, subprocess, sys, time

import pytest
import torch

import train
from lib.checkpoint import load_checkpoint

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = '--model=gpt --n_layer=2 --n_head=2 --n_embd=24 --block_size=16 --batch_size=8 --eval_iters=11 --device=cpu --optimizer=adamw'.split()


def state(out, name='ckpt.pt'): return load_checkpoint(os.path.join(out, name))
def rows_of(out): return [json.loads(line, parse_constant=pytest.fail) for line in open(os.path.join(out, 'metrics.jsonl'))]
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def left(folder): return sorted(os.path.relpath(os.path.join(d, f), folder) for d, _, files in os.walk(folder) for f in files if f != '.lock')


# ---------------------------------------------------------------------------------------------------- kill -9

# Dies at the n-th operation on a file below `folder`, or in the middle of writing the n-th checkpoint
DIES = """
import io, os, signal, sys
left, half = {n}, {half}
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
def seen(event, args):
    global left
    if event in ('open', 'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.listdir') and str(args[0]).startswith({folder!r}):
        left -= 1
        if left == 0: die()
def save(data, f, real=torch.save):
    global left
    left -= 1
    if left: return real(data, f)
    real(data, whole := io.BytesIO())
    f.write(whole.getvalue()[:whole.tell() // 2]); f.flush(); die()
if os.environ.get('RANK', '0') == '0':
    if half: torch.save = save
    else: sys.addaudithook(seen)
"""
PREPARE = "\ntext.prepare({corpus!r}, 'bpe', 400, out={folder!r} + '/data')\n"
SET_UP = 'attention kernel'                              # said when the ranks have found each other


class Killed:
    """Runs that are killed and resumed until one ends, in one folder after the other; and the undisturbed one."""
    def __init__(self, forks, corpus, tmp_path, ranks):
        self.forks, self.corpus, self.tmp, self.ranks, self.kills, self.seen = forks, str(corpus), tmp_path, ranks, 0, {}
        self.flags = [*TINY, '--max_iters=40', '--eval_interval=8', '--save_interval=4', '--log_interval=2', '--dropout=0.1']
        self.start('whole', n=0)
        began = time.time()
        assert self.end(self.start('whole', before="import atexit; real = train.cli; train.cli = lambda: (real(), print('operations', -left))")) == [0] * ranks
        self.seconds, self.operations = time.time() - began, int(re.search(r'operations (\d+)', self.runs[0].said())[1])

    def start(self, name, n=0, half=False, before=''):
        out = str(self.tmp / name)
        go = ['--resume'] if os.path.exists(out + '/out/ckpt.pt') else [*self.flags, f'--data={out}/data']
        self.runs = self.forks.start(*go, f'--out_dir={out}/out', ranks=self.ranks, before=DIES.format(n=n, half=half, folder=out) + before
                                     + PREPARE.format(corpus=self.corpus, folder=out)) if before or n or name != 'whole' else []
        return self.runs

    def end(self, runs):
        "waits; when one rank has died the others must end by themselves, or, before they have met, are ended as torchrun does"
        until = time.time() + 60
        while all(r.poll() is None for r in runs) and time.time() < until: time.sleep(0.005)
        if any(r.status for r in runs):
            for r in runs:
                if SET_UP not in runs[0].said(): r.kill(signal.SIGTERM)
                r.wait(60)
        found = [r.wait(60) for r in runs]
        for r in runs: assert r.status in (0, 1, -9, -15) and 'Traceback' not in r.said(), r.said()[-3000:]
        for r in runs: assert r.status != 1 or 'lost the others' in r.said(), r.said()[-3000:]
        return found

    def attempt(self, name, rng):
        "one run in the folder, killed at a random moment if that comes before its end -> whether it ended"
        kind = rng.choice(['time', 'time', 'operation', 'half'])
        runs = self.start(name, n=rng.randint(1, dict(time=10 ** 9, operation=self.operations, half=16)[kind]), half=kind == 'half')
        if kind == 'time':
            time.sleep(rng.uniform(0, self.seconds))
            for r in runs if rng.random() < 0.5 else [rng.choice(runs)]: r.kill()
        codes = self.end(runs)
        if not any(codes): return True
        self.kills, self.seen[kind] = self.kills + 1, self.seen.get(kind, 0) + 1
        for file in ('ckpt.pt', 'best.pt'):                        # whole at every moment
            if os.path.exists(self.tmp / name / 'out' / file): state(self.tmp / name / 'out', file)
        return False

    def check(self, name):
        a, b = str(self.tmp / 'whole'), str(self.tmp / name)
        assert left(a) == left(b), 'stray or missing files'
        for file in left(a + '/data'): assert open(f'{a}/data/{file}', 'rb').read() == open(f'{b}/data/{file}', 'rb').read(), file
        for file in ('ckpt.pt', 'best.pt'): assert same(state(a + '/out', file)['model'], state(b + '/out', file)['model'])
        one, two = state(a + '/out')['optimizer'][0], state(b + '/out')['optimizer'][0]
        assert all(same(one[n], two[n]) for n in one)
        timeless = lambda row: {k: v for k, v in row.items() if k not in ('train_seconds', 'tokens_per_second', 'peak_memory_mb')}
        assert [*map(timeless, rows_of(a + '/out'))] == [*map(timeless, rows_of(b + '/out'))]


@pytest.mark.parametrize('ranks, kills', [(1, 8), (2, 6), pytest.param(1, 50, marks=pytest.mark.slow), pytest.param(2, 50, marks=pytest.mark.slow)])
def test_kill_at_any_moment_and_resume(forks, corpus, tmp_path, ranks, kills):
    """While data is prepared, in steps, evaluations and in the middle of a checkpoint: the same run in the end."""
    seed = random.randrange(10 ** 9)
    print('seed', seed)                                            # shown when it fails
    trial, rng, chain = Killed(forks, corpus, tmp_path, ranks), random.Random(seed), 0
    while trial.kills < kills:
        chain += 1
        while trial.kills < kills and not trial.attempt(f'run{chain}', rng): pass
        if not os.path.exists(tmp_path / f'run{chain}/out/ckpt.pt') or state(tmp_path / f'run{chain}/out')['step'] < 40 or trial.kills == kills:
            assert trial.end(trial.start(f'run{chain}')) == [0] * ranks
        trial.check(f'run{chain}')


@pytest.mark.slow
def test_kill_before_each_file_operation(forks, corpus, tmp_path):
    trial = Killed(forks, corpus, tmp_path, 1)
    assert trial.operations > 60
    for n in range(1, trial.operations + 1):
        assert trial.end(trial.start(f'run{n}', n=n)) == [-9], n
        assert trial.end(trial.start(f'run{n}')) == [0], n
        trial.check(f'run{n}')


# ---------------------------------------------------------------------------------------------------- ranks

@pytest.mark.parametrize('victim', [0, 1])
def test_a_rank_that_is_killed_ends_the_other(forks, prepared, tmp_path, victim):
    runs = forks.start(*TINY, f'--data={prepared}', '--max_iters=100000', '--eval_interval=100000', f'--out_dir={tmp_path}/out', ranks=2)
    until = time.time() + 60
    while 'step 20/' not in runs[0].said() and time.time() < until: time.sleep(0.02)
    runs[victim].kill()
    assert runs[1 - victim].wait(60) == 1 and runs[victim].wait() == -9
    said = runs[1 - victim].said()
    assert f'error: rank {1 - victim} lost the others' in said and 'Traceback' not in said


def test_a_mistake_on_one_rank_ends_all(forks, prepared, tmp_path):
    """A bug in a model file: its traceback is shown, and no rank is left waiting."""
    runs = forks.start(*TINY, f'--data={prepared}', '--max_iters=9', f'--out_dir={tmp_path}/out', ranks=2, before=SICK.format(what='loss + None', when='calls == 6'))
    assert [r.wait(60) for r in runs] == [1, 1]
    assert 'TypeError: unsupported operand' in runs[1].said() and 'error: rank 0 lost the others' in runs[0].said()


def test_torchruns_restart_resumes_its_own_run_alone(forks, prepared, tmp_path):
    """After a restart the last checkpoint goes on; one that an earlier command has left there does not."""
    flags = [*TINY, f'--data={prepared}', '--max_iters=8', '--eval_interval=4', f'--out_dir={tmp_path}/out']
    dies = "def save(data, f, real=torch.save):\n    if data['step'] == 8: os.kill(os.getpid(), 9)\n    return real(data, f)\nimport os; torch.save = save"
    launch = dict(TORCHELASTIC_RUN_ID='one', TORCHELASTIC_RESTART_COUNT='0')
    forks.run(*flags, f'--out_dir={tmp_path}/whole')
    assert forks.start(*flags, before=dies, **launch)[0].wait() == -9 and state(tmp_path / 'out')['step'] == 4
    said = forks.run(*flags, **launch | dict(TORCHELASTIC_RESTART_COUNT='1'))
    assert 'step 4:' not in said and 'step 8:' in said and 'earlier run' not in said
    assert same(state(tmp_path / 'out')['model'], state(tmp_path / 'whole')['model'])
    for other, run in (([], 'two'), (['--seed=7'], 'two')):        # another launch; another command, under an id that launches share
        said = forks.run(*flags, *other, TORCHELASTIC_RUN_ID=run, TORCHELASTIC_RESTART_COUNT='1')
        assert 'held an earlier run' in said and 'step 0:' in said
    forks.run(*flags, **launch)
    another = 'import os; os.getppid = lambda: 7'                  # torchrun, the same command, no --rdzv_id
    said = forks.run(*flags, before=another, **launch | dict(TORCHELASTIC_RESTART_COUNT='1'))
    assert 'held an earlier run' in said and 'step 0:' in said


@pytest.mark.slow
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGTERM])
def test_real_torchrun(prepared, tmp_path, how):
    """A rank that is killed: torchrun starts both again, and they go on by themselves. SIGTERM to torchrun: saved."""
    source = open(os.path.join(ROOT, 'gpt.py'), encoding='utf-8').read()
    hook = f"""
import os
def before_step(self, step):
    if step == 6 and os.environ['RANK'] == '1' and not os.path.exists({str(tmp_path / 'died')!r}):
        open({str(tmp_path / 'died')!r}, 'w').close()
        os.kill(os.getpid(), 9)
    return False
Model.before_step = before_step
"""
    (tmp_path / 'mine.py').write_text(source + hook * (how == signal.SIGKILL))
    flags = ['--model=mine', *TINY[1:], f'--data={prepared}', '--max_iters=12', '--eval_interval=4', '--log_interval=1', '--warmup_iters=9']
    if how == signal.SIGTERM: flags += ['--max_iters=100000', '--eval_interval=100000', '--lr_decay_iters=12']
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '--max_restarts=1', os.path.join(ROOT, 'train.py')]
    p = subprocess.Popen([*command, *flags, '--out_dir=out'], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if how == signal.SIGTERM:
        for line in p.stdout:
            if line.startswith('step 2/'): break
        p.send_signal(how)
    said, errors = p.communicate(timeout=200)
    saved = state(tmp_path / 'out')
    if how == signal.SIGTERM:
        assert f'SIGTERM: saved step {saved["step"]}.' in said and saved['step'] >= 2
        return
    assert p.returncode == 0, errors[-3000:]
    assert 'step 8:' in said and saved['step'] == 12 and os.path.exists(tmp_path / 'died') and not os.path.exists(tmp_path / 'out-1')
    assert [r['step'] for r in rows_of(tmp_path / 'out') if 'train_loss' in r] == list(range(1, 13))
    again = subprocess.run([*command, *flags, '--out_dir=whole'], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0 and same(saved['model'], state(tmp_path / 'whole')['model'])


@pytest.mark.parametrize('ranks, told', [(4, 4), (2, 1), (1, 1)])
def test_signals_on_ranks_save_once_and_say_their_name(forks, prepared, tmp_path, ranks, told):
    """Each rank hears it, or one alone, or twice at once as a launcher repeats it: a checkpoint that goes on exactly."""
    number, out = signal.SIGHUP if ranks == 1 else signal.SIGTERM, str(tmp_path / 'out')
    flags = [*TINY, f'--data={prepared}', '--eval_interval=100000', '--lr_decay_iters=99', '--log_interval=1']
    runs = forks.start(*flags, '--max_iters=100000', f'--out_dir={out}', ranks=ranks)
    until = time.time() + 60
    while 'step 5/' not in runs[0].said() and time.time() < until: time.sleep(0.02)
    for _ in range(2):
        for r in runs[:told]: r.kill(number)
        time.sleep(0.001)
    assert [r.wait() for r in runs] == [128 + number] * ranks, runs[0].said()[-2000:]
    step = int(re.search(rf'{number.name}: saved step (\d+)\.', runs[0].said())[1])
    assert state(out)['step'] == step and all('Traceback' not in r.said() for r in runs)


def test_a_second_signal_ends_a_run_at_once(forks, prepared, tmp_path):
    """In a step that takes for ever; not when it comes within a second, as a launcher sends what all were sent."""
    run, = forks.start(*TINY, f'--data={prepared}', '--max_iters=9', f'--out_dir={tmp_path}/out', before=SICK.format(what="(print('asleep', flush=True), __import__('time').sleep(99))", when='calls == 3'))
    until = time.time() + 60
    while 'asleep' not in run.said() and time.time() < until: time.sleep(0.02)
    run.kill(signal.SIGTERM)
    time.sleep(0.1)
    run.kill(signal.SIGINT)
    time.sleep(1.2)
    assert run.poll() is None
    run.kill(signal.SIGTERM)
    assert run.wait(20) == 1 and run.said().endswith('\nstopped\n') and 'Traceback' not in run.said()


def test_nohup_keeps_a_run(forks, prepared, tmp_path):
    ignores = 'import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)'
    run, = forks.start(*TINY, f'--data={prepared}', '--max_iters=60', '--log_interval=1', f'--out_dir={tmp_path}/out', before=ignores)
    until = time.time() + 60
    while 'step 5/' not in run.said() and time.time() < until: time.sleep(0.02)
    run.kill(signal.SIGHUP)
    assert run.wait() == 0 and state(tmp_path / 'out')['step'] == 60


# ---------------------------------------------------------------------------------------------------- numbers

# `what` happens to the loss of training step n (counted by the Model's own calls), on the last rank alone
SICK = """
import os, gpt
calls = 0
def forward(self, *a, real=gpt.Model.forward, **k):
    global calls
    loss, stats = real(self, *a, **k)
    if not self.training or not torch.is_grad_enabled() or len(a[0]) == 1: return loss, stats      # one row: which kernel?
    calls += 1
    return ({what} if {when} and os.environ.get('RANK', '0') == str(int(os.environ.get('WORLD_SIZE', 1)) - 1) else loss), stats
gpt.Model.forward = forward
"""
INFINITE, NAN = "loss + float('inf')", "loss * float('nan')"           # the first leaves the gradient as it is


@pytest.mark.parametrize('ranks', [1, 2])
def test_all_ranks_stop_at_a_loss_that_is_not_finite(forks, prepared, tmp_path, ranks):
    """Also when it is one rank's alone and no gradient tells the others."""
    runs = forks.start(*TINY, f'--data={prepared}', '--max_iters=9', '--eval_interval=3', f'--out_dir={tmp_path}/out', ranks=ranks,
                       before=SICK.format(what=INFINITE, when='calls == 6'))
    assert [r.wait(60) for r in runs] == [1] * ranks
    for r in runs: assert re.search('error: the loss or gradient of step 5 is not finite .*ckpt.pt of step 3: lower', r.said()), r.said()


def test_skip_nonfinite_leaves_out_one_update_on_all_ranks(forks, prepared, tmp_path):
    """Equal to a run whose optimizer does nothing at that step, bit for bit; what is told is the mean of the other steps."""
    flags = [*TINY, f'--data={prepared}', '--max_iters=12', '--eval_interval=4', '--log_interval=3', '--warmup_iters=2', '--eps=1e-4']
    idle = """
count = 0
def step(self, real=train.Adam.step):
    global count
    count += 1
    if count != 6: real(self)
train.Adam.step = step
"""
    forks.run(*flags, f'--out_dir={tmp_path}/idle', before=idle)
    for name, what in (('inf', INFINITE), ('nan', NAN)):
        said = forks.run(*flags, '--skip_nonfinite', f'--out_dir={tmp_path}/{name}', before=SICK.format(what=what, when='calls == 6'))
        assert 'step 5: the loss or gradient is not finite, no update (1 skipped so far)' in said
        assert same(state(tmp_path / name)['model'], state(tmp_path / 'idle')['model']) and state(tmp_path / name)['skipped'] == 1
    usual, lines = ([r for r in rows_of(tmp_path / n) if 'train_loss' in r] for n in ('idle', 'nan'))
    assert [r['step'] for r in lines] == [3, 6, 9, 12] and [r.get('skipped') for r in lines] == [None, 1, 1, 1]
    assert [r['train_loss'] for r in lines[2:]] == [r['train_loss'] for r in usual[2:]] and 'grad_norm' not in lines[1]
    forks.run(*flags, '--log_interval=1', f'--out_dir={tmp_path}/each')
    fourth, fifth = (r['train_loss'] for r in rows_of(tmp_path / 'each') if 'train_loss' in r and r['step'] in (4, 5))
    assert abs(lines[1]['train_loss'] - (fourth + fifth) / 2) < 1e-6
    forks.run(*flags, '--skip_nonfinite', f'--out_dir={tmp_path}/two', ranks=2, before=SICK.format(what=INFINITE, when='calls == 6'))
    one, two = (state(tmp_path / n)['model'] for n in ('inf', 'two'))
    assert max((one[k] - two[k]).abs().max() for k in one) < 1e-5
    forks.run(*flags, '--skip_nonfinite', f'--out_dir={tmp_path}/part', '--max_iters=8', '--lr_decay_iters=12', before=SICK.format(what=NAN, when='calls == 6'))
    forks.run('--resume', '--max_iters=12', f'--out_dir={tmp_path}/part')
    assert same(state(tmp_path / 'part')['model'], one) and state(tmp_path / 'part')['skipped'] == 1


@pytest.mark.parametrize('ranks', [1, 2])
def test_skip_nonfinite_gives_up_after_ten_in_a_row(forks, prepared, tmp_path, ranks):
    when = '(calls > 6 and calls != 12)'
    runs = forks.start(*TINY, f'--data={prepared}', '--max_iters=40', '--eval_interval=3', '--skip_nonfinite', f'--out_dir={tmp_path}/out', ranks=ranks,
                       before=SICK.format(what=NAN, when=when))
    assert [r.wait(60) for r in runs] == [1] * ranks
    for r in runs: assert re.search(r'step 21 is not finite .*ckpt.pt of step 21.*\(15 updates were skipped\)', r.said()), r.said()
    assert all(torch.isfinite(w).all() for w in state(tmp_path / 'out')['model'].values()) and rows_of(tmp_path / 'out')


def test_a_jump_of_the_loss_is_said_and_changes_nothing(forks, prepared, tmp_path):
    flags = [*TINY, f'--data={prepared}', '--max_iters=30', '--log_interval=1']
    assert 'jumped' not in forks.run(*flags, f'--out_dir={tmp_path}/a')
    said = forks.run(*flags, f'--out_dir={tmp_path}/b', before=SICK.format(what='loss + 3 * loss.detach()', when='calls == 25'))
    assert re.findall(r'step (\d+): the loss jumped to', said) == ['25']
    # not within a tenth of what is usual, nor within five times its spread, nor before one knows what is usual
    for loss in ('2 + 0.01 * (calls % 2) + 0.1 * (calls == 25)', '2 + calls % 2 + (calls == 25)', '2 + (calls == 5)'):
        assert 'jumped' not in forks.run(*flags, f'--out_dir={tmp_path}/c', before=SICK.format(what=f'loss * 0 + {loss}', when='True'))
    assert 'jumped' in open(tmp_path / 'b' / 'log.txt').read() and same(state(tmp_path / 'a')['model'], state(tmp_path / 'b')['model'])


# ---------------------------------------------------------------------------------------------------- days

@pytest.mark.parametrize('steps', [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_and_others_may_read(forks, prepared, tmp_path, steps):
    """A line of the log each step; meanwhile another process reads what there is."""
    watch = f"""
def metrics(self, row, real=train.Log.metrics):
    real(self, row)
    if row['step'] in ({steps // 3}, {steps}): print('pages', int(open('/proc/self/statm').read().split()[1]), flush=True)
train.Log.metrics = metrics
"""
    out = str(tmp_path / 'out')
    run, = forks.start('--model=gpt', '--n_layer=1', '--n_head=1', '--n_embd=8', '--block_size=8', '--batch_size=2', '--eval_iters=3', '--device=cpu', f'--data={prepared}',
                       f'--max_iters={steps}', '--log_interval=1', f'--eval_interval={steps // 15}', f'--out_dir={out}', before=watch)
    reads = 0
    while run.poll() is None:
        time.sleep(0.2)
        if not os.path.exists(out + '/ckpt.pt'): continue
        lines = open(out + '/metrics.jsonl').read().splitlines(keepends=True)
        for line in lines: assert json.loads(line)['step'] <= steps and line.endswith('\n')
        assert state(out)['step'] <= steps and state(out, 'best.pt')['model']
        reads += 1
    pages = [int(n) for n in re.findall(r'pages (\d+)', run.said())]
    assert run.status == 0 and reads > 2, run.said()[-2000:]
    assert (pages[-1] - pages[0]) * os.sysconf('SC_PAGE_SIZE') < 4e6 and len(rows_of(out)) == steps + 1 - -steps // (steps // 15)


def test_the_log_thins_out_what_it_holds_and_writes_all(tmp_path):
    log = train.Log(str(tmp_path), True, -1)
    for step in range(1, 10_001):
        log.metrics(dict(step=step, train_loss=1 / step))
        if step % 10 == 0: log.metrics(dict(step=step, val_loss=2 / step))
    assert len(log.rows) <= 4000 and {10_000} == {max(r['step'] for r in log.rows if k in r) for k in ('train_loss', 'val_loss')}
    assert [r['step'] for r in rows_of(tmp_path) if 'train_loss' in r] == list(range(1, 10_001))
    assert len([r for r in log.rows if 'val_loss' in r]) > 200
    open(tmp_path / 'metrics.jsonl', 'a').write('{"step": 3, "train_lo')                     # killed in a line
    again = train.Log(str(tmp_path), True, 9_000)
    assert [r['step'] for r in rows_of(tmp_path) if 'train_loss' in r] == list(range(1, 9_001)) and len(again.rows) <= 4000
    again.metrics(dict(step=9001, train_loss=math.inf, lr=1.0))
    assert rows_of(tmp_path)[-1] == dict(step=9001, lr=1.0)


def test_a_full_disk_behind_stdout_does_not_end_the_run(forks, prepared, tmp_path):
    before = "import sys; sys.stdout = open('/dev/full', 'w')"
    forks.start(*TINY, f'--data={prepared}', '--max_iters=6', '--eval_interval=3', f'--out_dir={tmp_path}/out', before=before)[0].wait()
    assert state(tmp_path / 'out')['step'] == 6 and 'best validation loss' in open(tmp_path / 'out' / 'log.txt').read()


# ---------------------------------------------------------------------------------------------------- again

def test_the_command_in_the_log_gives_the_same_weights(forks, corpus, tmp_path):
    """A path with a space and a quote in it, too; and the log has the versions, checksums and seed to compare."""
    folder = tmp_path / "it's here"
    folder.mkdir()
    (folder / 'a text.txt').write_bytes(corpus.read_bytes())
    from data import text
    text.prepare(str(folder / 'a text.txt'), 'char', out=str(folder / 'prepared'))
    out = str(folder / 'out')
    forks.run(*TINY, f'--data={folder}/prepared', '--max_iters=7', '--seed=7', '--deterministic', '--dropout=0.1', f'--out_dir={out}')
    first = open(out + '/log.txt').read()
    line = re.match(r'#### .*: python train.py (.*)', first)[1]
    forks.run(*shlex.split(line))
    assert os.path.exists(out + '-1/ckpt.pt') and same(state(out)['model'], state(out + '-1')['model'])
    first = first.split('#### train.py')[0]                        # the scripts follow
    revision = subprocess.run(['git', '-C', ROOT, 'describe', '--always', '--dirty'], capture_output=True, text=True).stdout.strip() or 'none'
    for part in (f'torch {torch.__version__}', f'git {revision}', '"seed": 7', *json.load(open(folder / 'prepared/meta.json'))['sha256'].values()): assert part in first


def test_deterministic_asks_torch_for_it(forks, prepared, tmp_path):
    tell = "real = train.Log.curve\ntrain.Log.curve = lambda *a: (real(*a), print('asked', torch.are_deterministic_algorithms_enabled(), __import__('os').environ.get('CUBLAS_WORKSPACE_CONFIG')))"
    run = lambda *flags: forks.run(*TINY, f'--data={prepared}', '--max_iters=2', f'--out_dir={tmp_path}/out', *flags, before=tell)
    assert 'asked True :4096:8' in run('--deterministic') and 'asked False None' in run()


def test_ctrl_c_while_torch_is_imported_is_one_line():
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and so would this
    p = subprocess.Popen([sys.executable, 'train.py'], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    until = time.time() + 60
    while '/torch/lib' not in open(f'/proc/{p.pid}/maps').read() and time.time() < until: time.sleep(0.01)
    p.send_signal(signal.SIGINT)
    said, errors = p.communicate(timeout=60)
    assert p.returncode == 130 and said == '' and errors == '\nstopped\n'
