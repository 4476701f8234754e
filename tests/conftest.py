"""What the tests share: the project's root on the path, one thread a process, a small prepared text, forked runs of the
trainer, and tests that are skipped unless asked for (--slow, or -m slow)."""
import contextlib, json, os, signal, socket, subprocess, sys

os.environ.setdefault('OMP_NUM_THREADS', '1')            # tiny models; and subprocesses that the tests start
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import pytest


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='also run the tests that take minutes')


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes a minute or more; run with --slow, or -m slow')


def pytest_collection_modifyitems(config, items):
    if config.getoption('--slow') or 'slow' in config.getoption('-m'): return
    for item in items:
        if 'slow' in item.keywords: item.add_marker(pytest.mark.skip(reason='takes a minute or more: run with --slow'))


def stream(model, block, *arrays):
    "-> the loss, and the dtypes that blocks of this class hand on"
    import torch
    seen = set()
    hooks = [m.register_forward_hook(lambda m, args, out: seen.add(out.dtype)) for m in model.modules() if isinstance(m, block)]
    torch.manual_seed(1)
    loss = model(*arrays)[0].item()
    for hook in hooks: hook.remove()
    return loss, seen


@pytest.fixture
def residual_streams():
    """Runs a model with and without residual_autocast, in fp32 and under autocast; the stream is bf16 where it is asked
    for, and the losses are near each other."""
    import torch
    def check(build, block, arrays, near):
        losses = []
        for on in (False, True):
            model = build(on)
            loss, seen = stream(model, block, *arrays)
            assert seen == {torch.float32}                                 # without autocast nothing changes
            with torch.autocast('cpu', torch.bfloat16): other, seen = stream(model, block, *arrays)
            assert seen == {torch.bfloat16 if on else torch.float32}
            losses += [loss, other]
        assert losses[0] == losses[2] and abs(losses[3] / losses[0] - 1) < near and losses[3] != losses[1]
    return check


@pytest.fixture(scope='session')
def corpus(tmp_path_factory):
    """A text file of about 60 kB with some structure to learn: sums in words, seeded."""
    import random
    rng, words = random.Random(5), 'zero one two three four five six seven eight nine ten'.split()
    lines = []
    for _ in range(1500):
        a, b = rng.randrange(6), rng.randrange(5)
        lines.append(f'{words[a]} plus {words[b]} is {words[a + b]}; {words[a + b]} minus {words[b]} is {words[a]}.')
    path = tmp_path_factory.mktemp('corpus') / 'sums.txt'
    path.write_text('\n'.join(lines) + '\n')
    return path


@pytest.fixture(scope='session')
def prepared(corpus, tmp_path_factory):
    """The same text as a prepared folder, in characters."""
    from data import text
    return text.prepare(str(corpus), tokenizer='char', out=str(tmp_path_factory.mktemp('prepared') / 'sums'))


# A process that has imported everything and run nothing (one thread, no operator), so that each run of the trainer is a
# fork: a new process, to be killed at will, without the seconds that importing torch takes.
ZYGOTE = """
import json, os, signal, sys, time
sys.path.insert(0, {root!r})
signal.signal(signal.SIGHUP, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest under nohup
import torch, train, bert, electra, gpt, t5
import torch._dynamo, torch.distributed.fsdp, torch.distributed.tensor
from data import text
assert len(os.listdir('/proc/self/task')) == 1, 'a fork would lose the other threads'
torch.set_num_threads(1)
for line in sys.stdin:
    ask = json.loads(line)
    if 'wait' in ask:                                    # pid -> exit status, negative for a signal; None: still there
        pid, end, answer = ask['wait'], time.time() + ask['seconds'], None
        while True:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found: answer = os.waitstatus_to_exitcode(status)
            if found or time.time() > end: break
            time.sleep(0.002)
    elif not (answer := os.fork()):
        status = 1
        try:
            out = os.open(ask['log'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0), os.dup2(out, 1), os.dup2(out, 2)
            sys.argv = ['train.py', *ask['argv']]
            os.environ.update(ask['env'])
            os.chdir(ask['cwd'])
            exec(ask['before'], dict(train=train, text=text, torch=torch))
            train.cli() if ask['argv'] else None
            status = 0
        except SystemExit as e:
            if isinstance(e.code, str): print(e.code, file=sys.stderr)
            status = e.code if isinstance(e.code, int) else int(e.code is not None)
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            try: sys.stdout.flush(), sys.stderr.flush()
            finally: os._exit(status)
    print(json.dumps(answer), flush=True)
"""


class Run:
    "one forked process of the trainer"
    def __init__(self, zygote, pid, log): self.zygote, self.pid, self.log, self.status = zygote, pid, log, None
    def wait(self, seconds=120):
        "-> exit status, or -signal; fails when it is still there after so many seconds"
        if self.status is None: self.status = self.zygote.ask(dict(wait=self.pid, seconds=seconds))
        if self.status is None:
            self.kill()
            self.zygote.ask(dict(wait=self.pid, seconds=9))
            pytest.fail(f'still running after {seconds} s: {self.said()[-2000:]}')
        return self.status
    def poll(self):
        "its exit status, or None while it runs"
        if self.status is None: self.status = self.zygote.ask(dict(wait=self.pid, seconds=0))
        return self.status
    def kill(self, number=signal.SIGKILL):
        if self.status is None: os.kill(self.pid, number)    # until waited for, its number is no one else's
    def said(self): return open(self.log, encoding='utf-8').read() if os.path.exists(self.log) else ''


class Zygote:
    def __init__(self, folder):
        self.folder, self.count, self.runs = folder, 0, []
        self.process = subprocess.Popen([sys.executable, '-c', ZYGOTE.format(root=ROOT)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, cwd=ROOT)
    def ask(self, question):
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline() or pytest.fail('the process that forks runs is gone'))
    def start(self, *flags, before='', ranks=1, cwd=ROOT, **env):
        "the flags of train.py -> a list of Runs, one for each rank. before: Python to execute in each first"
        if ranks > 1:
            with socket.socket() as s:
                s.bind(('127.0.0.1', 0))
                env |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(s.getsockname()[1]), WORLD_SIZE=str(ranks))
        self.count, runs = self.count + 1, []
        for rank in range(ranks):
            log = str(self.folder / f'{self.count}-{rank}.txt')
            own = env | dict(RANK=str(rank), LOCAL_RANK=str(rank)) if ranks > 1 else env
            pid = self.ask(dict(argv=[str(f) for f in flags], env=own, before=before, log=log, cwd=str(cwd)))
            runs.append(Run(self, pid, log))
        self.runs = [r for r in self.runs if r.status is None] + runs
        return runs
    def run(self, *flags, **how):
        "runs to the end -> what the first rank said; fails when a rank fails"
        runs = self.start(*flags, **how)
        for r in runs: r.wait()
        for r in runs: assert r.status == 0, r.said()[-3000:]
        return runs[0].said()


@pytest.fixture(scope='session')
def forks(tmp_path_factory):
    """forks.run(*flags, ranks=2) trains in processes of their own, forks.start(...) returns at once."""
    if not hasattr(os, 'fork') or not os.path.isdir('/proc/self/task'): pytest.skip('needs fork and /proc')
    zygote = Zygote(tmp_path_factory.mktemp('forks'))
    yield zygote
    for r in zygote.runs:                                # left by a test that failed
        with contextlib.suppress(ProcessLookupError): r.kill()
    zygote.process.stdin.close()
    zygote.process.wait(20)
