"""How a run starts and ends: ranks, torchrun's restarts, signals, the folder that it writes, errors
in one line."""
import contextlib
import json
import os
import re
import signal
import sys
import time
import traceback

import torch.distributed as dist

from data import files
from data.files import first_line
from lib.device import out_of_memory

# what ends a run after the step at hand
SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP')
           if hasattr(signal, name)]


# ---- ranks

def ranks():
    """-> this process's rank and the number of ranks, as torchrun has set them."""
    return int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))


@contextlib.contextmanager
def process_group(device):
    """torch.distributed's group of the ranks while the block runs, if torchrun has started this
    process."""
    started_by_torchrun = 'RANK' in os.environ and 'MASTER_ADDR' in os.environ
    if started_by_torchrun:
        dist.init_process_group('cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo')
    yield
    # Only after a run that ended well, and when its frames are gone: DDP's part of the group would
    # otherwise end under the interpreter's lock and may wait for ever.
    if started_by_torchrun:
        dist.destroy_process_group()


def launch_id():
    """What tells one torchrun from another: its --rdzv_id, which is the same unless given, and on
    one node its process."""
    one_node = os.environ.get('LOCAL_WORLD_SIZE') == os.environ.get('WORLD_SIZE')
    return [os.environ.get('TORCHELASTIC_RUN_ID'), os.getppid() if one_node else 0]


def restarted(out_dir):
    """Whether torchrun has started this command again after a failure, and out_dir holds its own
    run so far."""
    if os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') == '0':
        return False
    if not os.path.exists(os.path.join(out_dir, 'ckpt.pt')):
        return False
    with open(os.path.join(out_dir, 'run.json'), encoding='utf-8') as f:
        run = json.load(f)
    return (run['argv'], run.get('launch')) == (sys.argv, launch_id())


# ---- the folder

def make_room(out_dir, resumed):
    """Makes out_dir and writes run.json into it. An earlier run is moved aside. Raises OSError if
    it cannot be written."""
    if not resumed and os.path.exists(os.path.join(out_dir, 'ckpt.pt')):
        number = 1
        while os.path.exists(f'{out_dir.rstrip("/")}-{number}'):
            number += 1
        aside = f'{out_dir.rstrip("/")}-{number}'
        os.rename(out_dir, aside)
        print(f'{out_dir} held an earlier run, now in {aside} (--resume --out_dir={aside} goes on '
              'with it)')
    try:
        os.makedirs(out_dir, exist_ok=True)
        for name in os.listdir(out_dir):                 # of a run that was killed while it wrote
            if name.endswith('.tmp'):
                os.remove(os.path.join(out_dir, name))
        about = json.dumps(dict(pid=os.getpid(), argv=sys.argv, launch=launch_id())).encode()
        files.write_atomic(os.path.join(out_dir, 'run.json'), lambda f: f.write(about))
    except OSError as e:
        raise OSError(f'--out_dir={out_dir} cannot be written ({e.strerror}): choose '
                      'another') from None


def is_finished(run):
    """Whether the run that is to be resumed has nothing left to do. Prints what to type to go
    on."""
    config = run.config
    step = run.checkpoint['step']
    seconds = run.checkpoint['train_seconds']
    if step < config.max_iters and not 0 < config.time_limit <= seconds:
        return False
    flag = 'max_iters'
    more = 2 * max(step, 1)
    if step < config.max_iters:
        flag = 'time_limit'
        more = f'{2 * max(config.time_limit, seconds):.3g}'
    elif config.epochs:
        flag = 'epochs'
        more = f'{2 * config.epochs:g}'
    limit = '' if flag == 'max_iters' else f' (--{flag}={getattr(config, flag):g})'
    if run.rank == 0:
        print(f'{config.out_dir} is finished: step {step} of {config.max_iters}{limit}; to go on: '
              f'python train.py --resume --out_dir={config.out_dir} --{flag}={more}', flush=True)
    return True


# ---- signals

class Signals:
    """The signals that ask a run to stop. `with Signals() as signals:` listens from
    signals.listen() to the end of the block; signals.asked is the number of the first one that
    came, or 0."""

    def __init__(self):
        self.asked = 0
        self.when = 0.0
        self.before = {}                                 # the handlers that the caller had

    def __enter__(self):
        return self

    def listen(self):
        # not in the main thread: the caller keeps its handlers
        with contextlib.suppress(ValueError):
            for number in SIGNALS:
                ignored = signal.getsignal(number) == signal.SIG_IGN
                if number == getattr(signal, 'SIGHUP', 0) and ignored:
                    continue                             # nohup's stays ignored
                self.before[number] = signal.signal(number, self.handle)

    def handle(self, number, frame):
        """The first signal ends the run after the step at hand, a later one at once. A launcher
        repeats what all processes were sent, within a second."""
        if not self.asked:
            self.asked = number
            self.when = time.time()
        elif time.time() > self.when + 1:
            raise KeyboardInterrupt

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


# ---- errors

def one_line(error):
    """The line that a person reads when a run fails, or '' where only a traceback helps."""
    if isinstance(error, KeyboardInterrupt):
        return 'stopped'
    if out_of_memory(error):
        return (f'error: out of memory ({first_line(error)[:200]}); lower --micro_batch_size (the '
                'training stays the same) or --block_size, or add --checkpoint_activations')
    if isinstance(error, (ValueError, OSError, FloatingPointError)):
        return 'error: ' + (' '.join(str(error).split()) or type(error).__name__)
    of_ranks = re.search('gloo|nccl|tcpstore', str(error), re.IGNORECASE)
    if 'RANK' in os.environ and isinstance(error, RuntimeError) and of_ranks:
        return (f'error: rank {os.environ["RANK"]} lost the others ({first_line(error)[:150]}): '
                'one was killed, or '
                'says itself what is wrong; --resume goes on from the last checkpoint')
    return ''


def run_for_shell(main):
    """Calls main(). A user's mistake is one line on stderr and a non-zero exit status."""
    try:
        main()
    except SystemExit as e:
        if e.code:
            raise
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        # --help: taking torch down takes half a second
        os._exit(0)
    except (Exception, KeyboardInterrupt) as e:
        has_ranks = 'RANK' in os.environ
        line = one_line(e)
        if not line and not has_ranks:
            raise
        if not line or os.environ.get('TRACEBACK'):
            traceback.print_exc()
        print(f'\n{line}', file=sys.stderr, flush=True)
        if has_ranks:
            # other ranks may wait for this one in a collective
            os._exit(1)
        else:
            sys.exit(1)
