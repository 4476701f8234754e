"""What a run prints and writes down: the console, metrics.jsonl, log.txt and loss.svg."""
import contextlib
import dataclasses
import importlib
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time

import numpy as np
import torch

from data import files
from lib.curve import draw_curve
from lib.models import HERE
from lib.words import readable, scores, span

# kept for the curve, which needs no more points than pixels
MOST_ROWS = 4000
KEPT_SOURCES = ('train.py', 'lib/net.py', 'lib/optim.py', 'lib/feed.py', 'lib/evaluate.py')


def check_sender(name):
    """Raises ValueError if --log_to names a program that is not installed."""
    module = {'': 'json', 'tensorboard': 'torch.utils.tensorboard'}.get(name, name)
    try:
        importlib.import_module(module)
    except ImportError:
        raise ValueError(f'--log_to={name}: not installed; pip install {name}') from None


class Log:
    """The log of a run. It is silent on all ranks but the first, and a full disk does not end the
    run."""

    def __init__(self, folder, on, step, send_to=''):
        """on: whether this is the first rank. step: of the checkpoint that the run goes on from, or
        -1 for a new run. send_to: wandb or tensorboard, which get the metrics too."""
        self.folder = folder
        self.on = on
        self.rows = []                                   # metrics, for the curve
        # whether the console's last line will be replaced
        self.line_is_live = False
        self.wandb = None
        self.board = None
        if not on:
            return
        self.open_files(step)
        if send_to == 'wandb':
            import wandb
            self.wandb = wandb.init(project='flatformers', name=folder)
        if send_to == 'tensorboard':
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(folder)

    def open_files(self, step):
        path = os.path.join(self.folder, 'metrics.jsonl')
        kept = []
        # resumed: forget what a killed run wrote after its checkpoint
        if step >= 0 and os.path.exists(path):
            with open(path, 'rb') as f:
                for line in f:
                    with contextlib.suppress(ValueError, TypeError, KeyError):
                        row = json.loads(line)
                        if row['step'] <= step:
                            self.keep(row)
                            kept.append(line.rstrip() + b'\n')
        files.write_atomic(path, lambda f: f.writelines(kept))
        self.jsonl = open(path, 'a', encoding='utf-8')
        mode = 'w' if step < 0 else 'a'
        self.text = open(os.path.join(self.folder, 'log.txt'), mode, encoding='utf-8')

    # ---- lines

    def write(self, file, line):
        with contextlib.suppress(OSError):               # a full disk must not end the run
            print(line, file=file, flush=True)

    def note(self, line):
        """Writes a line to log.txt alone."""
        if self.on:
            self.write(self.text, line)

    def say(self, line):
        """Prints a line that stays."""
        if self.on:
            clear = '\r\033[K' if self.line_is_live else ''
            self.write(sys.stdout, clear + line)
        self.line_is_live = False
        self.note(line)

    def live(self, line):
        """Prints a line that the next one replaces. Where stdout is no terminal it stays."""
        if not self.on or not sys.stdout.isatty():
            self.say(line)
            return
        self.note(line)
        width = shutil.get_terminal_size().columns - 1
        print('\r\033[K' + line[:width], end='', flush=True)
        self.line_is_live = True

    # ---- metrics

    def metrics(self, row):
        """Writes a row of metrics. JSON has no NaN, so numbers that are not finite are left out."""
        if not self.on:
            return
        row = {name: value for name, value in row.items()
               if not isinstance(value, float) or math.isfinite(value)}
        self.keep(row)
        self.write(self.jsonl, json.dumps(row))
        if self.wandb:
            self.wandb.log(row, step=row['step'])
        if self.board:
            for name, value in row.items():
                self.board.add_scalar(name, value, row['step'])

    def keep(self, row):
        """Remembers a row for the curve; of too many, every second one."""
        self.rows.append(row)
        if len(self.rows) > MOST_ROWS:
            training = [row for row in self.rows if 'train_loss' in row]
            validation = [row for row in self.rows if 'val_loss' in row]
            self.rows = training[1::2] + validation[1::2]

    def curve(self, title):
        """Draws loss.svg."""
        with contextlib.suppress(OSError):
            if self.on:
                draw_curve(os.path.join(self.folder, 'loss.svg'), self.rows, title)

    # ---- the lines of a run

    def start(self, run, argv):
        """What log.txt begins with (the command, versions, checksums, settings and, of a new run,
        the scripts), and the lines on the console that say what is trained, on what and how."""
        config = run.config
        versions = (f'python {platform.python_version()}, torch {torch.__version__}, '
                    f'numpy {np.__version__}, {platform.platform()}, git {git_revision()}')
        self.note(f'#### {time.ctime()}: python train.py {shlex.join(argv)}')
        self.note(f'# {versions}')
        self.note(f'# data {run.folder}: {json.dumps(run.meta["sha256"])}')
        self.note(f'# train {json.dumps(dataclasses.asdict(config))}')
        self.note(f'# model {json.dumps(run.model_values)}')
        if not run.checkpoint:
            for path in [os.path.join(HERE, name) for name in KEPT_SOURCES] + [run.file.__file__]:
                with open(path, encoding='utf-8') as f:
                    self.note(f'#### {os.path.relpath(path, HERE)}\n{f.read()}')
            self.note('#### run')

        preset = f' {config.preset}' if config.preset else ''
        self.say(f'{run.file.__name__}{preset}: {run.n_parameters / 1e6:.2f} M parameters, '
                 f'{run.device}, '
                 f'{str(run.dtype).removeprefix("torch.")}, data {os.path.relpath(run.folder)}')
        values = {**run.changed, **run.model_values}
        self.say('settings: ' + ' '.join(f'{name}={values[name]}' for name in run.changed))
        self.say(f'batch: {config.batch_size} rows of {run.tokens_per_row} tokens = '
                 f'{run.world_size} device(s) x {run.rows_per_rank // run.micro_batch_size} '
                 f'micro-batch(es) x {run.micro_batch_size}; an epoch is '
                 f'{run.steps_per_epoch:.1f} steps')
        if 0 < config.max_iters <= config.warmup_iters:
            self.say(f'all {config.max_iters} steps are warm-up, no learning rate gets to its '
                     f'peak: lower --warmup_iters={config.warmup_iters}')
        if run.new_task:
            but = f', but {", ".join(run.new_heads)} start anew' if run.new_heads else ''
            self.say(f'a new task: all weights come from {run.origin}{but}')
        common, baseline = run.majority_baseline
        if baseline:
            self.say(f'always {run.meta["labels"][common]!r}, the commonest class of the '
                     f'training data: {scores(baseline)}')

    def training(self, row, config, seconds_left):
        """A row of training metrics, and its line on the console."""
        self.metrics(row)
        mfu = f' | mfu {row["mfu"]:.1%}' if 'mfu' in row else ''
        self.live(f'step {row["step"]}/{config.max_iters} | loss {row["train_loss"]:.4f} | '
                  f'{row["tokens_per_second"] / 1e3:,.1f}k tokens/s{mfu} | '
                  f'{row["peak_memory_mb"] / 1024:.2f} GB | {span(seconds_left)} left')

    def validation(self, row, progress):
        """A row of validation metrics, and its line on the console."""
        seconds = progress.train_seconds
        self.metrics(dict(step=progress.step, tokens=progress.tokens,
                          train_seconds=round(seconds, 3), **row))
        told = scores({name: value for name, value in row.items() if name != 'val_ppl'})
        self.say(f'step {progress.step}: {told}, after {span(seconds)} of training')

    def result(self, result, model, goal, best):
        """The last lines: what the run took, what it reached, what to type next. result: the final
        metrics. goal, best: the names of the metric that tells the best checkpoint, and of its best
        value."""
        out_dir = result['out_dir']
        self.say(f'{result["steps"]} steps, {result["tokens"]:,} tokens in '
                 f'{span(result["train_seconds"])} of training ({span(result["total_seconds"])} in '
                 f'all, peak memory {result["peak_memory_mb"] / 1024:.2f} GB)')
        line = f'best {readable(goal)} {result[best]:.4f}'
        baselines = [value for name, value in result.items() if name.startswith('commonest_')]
        if baselines:
            line += f' (the commonest class alone: {baselines[0]:.4f})'
        for name in (goal, 'val_bpb'):
            if name in result:
                line += f', last {readable(name)} {result[name]:.4f}'
        self.say(line)
        weights = f'--out_dir={out_dir}' if goal == 'val_loss' else f'--init_from={out_dir}/best.pt'
        self.say(f'curve: {out_dir}/loss.svg | use it: python sample.py {weights} '
                 f'{use_of(model, result["kind"])} | go on: python train.py --resume '
                 f'--out_dir={out_dir} --max_iters={2 * max(result["steps"], 1)}')


def use_of(model, kind):
    """The flag of sample.py that tries a model of this kind of data."""
    uses = dict(labelled='--classify=TEXT', tagged='--classify=TEXT',
                choice='--classify=FILE.jsonl', qa='--question=TEXT --context=TEXT',
                instruct='--interactive')
    has_mask = getattr(model.config, 'mask_id', -1) >= 0
    fills_gaps = has_mask and not getattr(model.config, 'has_detector', False)
    return uses.get(kind, "--prompt='TEXT [MASK] TEXT'" if fills_gaps else '--prompt=TEXT')


def git_revision():
    """What git says of the project's state, or 'none'."""
    command = ['git', '-C', HERE, 'describe', '--always', '--dirty']
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or 'none'
    except OSError:
        return 'none'
