"""What a run prints and writes down."""
import contextlib
import dataclasses
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
from lib.words import readable, span


class Log:
    "what a person sees, metrics.jsonl, log.txt and loss.svg; silent on all ranks but the first. step < 0: a new run"
    def __init__(self, folder, on, step, send=''):
        self.on, self.folder, self.rows, self.wide, self.wandb, self.board = on, folder, [], 0, None, None
        if not on: return
        path = os.path.join(folder, 'metrics.jsonl')
        def kept():                                  # resumed: forget what a killed run wrote after its last checkpoint
            for line in open(path, 'rb') if step >= 0 and os.path.exists(path) else ():
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    if (row := json.loads(line))['step'] <= step:
                        self.keep(row)
                        yield line.rstrip() + b'\n'
        files.write_atomic(path, lambda f: f.writelines(kept()))
        self.jsonl = open(path, 'a', encoding='utf-8')
        self.text = open(os.path.join(folder, 'log.txt'), 'w' if step < 0 else 'a', encoding='utf-8')
        if send == 'wandb':
            import wandb
            self.wandb = wandb.init(project='flatformers', name=folder)
        if send == 'tensorboard':
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(folder)

    def write(self, file, line):                     # a full disk must not end the run
        with contextlib.suppress(OSError): print(line, file=file, flush=True)
    def note(self, line):                            # log.txt alone
        if self.on: self.write(self.text, line)
    def say(self, line):                             # a line that stays
        if self.on: self.write(sys.stdout, '\r\033[K' * bool(self.wide) + line)
        self.wide = 0
        self.note(line)
    def live(self, line):                            # a line that the next one replaces; off a terminal it stays
        if not self.on or not sys.stdout.isatty(): return self.say(line)
        self.note(line)
        print('\r\033[K' + line[:shutil.get_terminal_size().columns - 1], end='', flush=True)
        self.wide = 1
    def metrics(self, row):
        if not self.on: return
        row = {k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)}    # JSON has no NaN
        self.keep(row)
        self.write(self.jsonl, json.dumps(row))
        if self.wandb: self.wandb.log(row, step=row['step'])
        for k, v in row.items() if self.board else (): self.board.add_scalar(k, v, row['step'])
    def keep(self, row):                             # for the curve, which needs no more points than pixels
        self.rows.append(row)
        if len(self.rows) <= 4000: return
        self.rows = [r for key in ('train_loss', 'val_loss') for r in [r for r in self.rows if key in r][1::2]]
    def curve(self, title):
        with contextlib.suppress(OSError):
            if self.on: draw_curve(os.path.join(self.folder, 'loss.svg'), self.rows, title)


def note_start(log, file, config, values, folder, meta, argv, saved):
    "what log.txt begins with: the command, versions, checksums, settings and, of a new run, the scripts themselves"
    log.note(f'#### {time.ctime()}: python train.py {shlex.join(argv)}\n'
             f'# python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, '
             f'{platform.platform()}, git {git_revision()}\n'
             f'# data {folder}: {json.dumps(meta["sha256"])}\n'
             f'# train {json.dumps(dataclasses.asdict(config))}\n# model {json.dumps(values)}')
    if saved: return
    for path in (os.path.join(HERE, 'train.py'), file.__file__):
        log.note(f'#### {os.path.basename(path)}\n{open(path, encoding="utf-8").read()}')
    log.note('#### run')


def say_result(log, result, model, goal, best, began):
    "the last lines: what the run took, what it reached, what to type next. goal, best: names of numbers in the result"
    out, seconds, memory = result['out_dir'], result['train_seconds'], result['peak_memory_mb'] / 1024
    log.say(f'{result["steps"]} steps, {result["tokens"]:,} tokens in {span(seconds)} of training '
            f'({span(time.time() - began)} in all, peak memory {memory:.2f} GB)')
    common = [v for k, v in result.items() if k.startswith('commonest_')][:1]
    log.say(f'best {readable(goal)} {result[best]:.4f}'
            + ''.join(f' (the commonest class alone: {v:.4f})' for v in common)
            + ''.join(f', last {readable(k)} {result[k]:.4f}' for k in (goal, 'val_bpb') if k in result))
    gaps = getattr(model.config, 'mask_id', -1) >= 0 and not getattr(model.config, 'has_detector', False)
    use = dict(labelled='--classify=TEXT', tagged='--classify=TEXT', choice='--classify=FILE.jsonl',
               qa='--question=TEXT --context=TEXT', instruct='--interactive').get(
                   result['kind'], "--prompt='TEXT [MASK] TEXT'" if gaps else '--prompt=TEXT')
    path = f'--out_dir={out}' if goal == 'val_loss' else f'--init_from={out}/best.pt'
    log.say(f'curve: {out}/loss.svg | use it: python sample.py {path} {use} | '
            f'go on: python train.py --resume --out_dir={out} --max_iters={2 * max(result["steps"], 1)}')


def git_revision():
    command = ['git', '-C', HERE, 'describe', '--always', '--dirty']
    try: return subprocess.run(command, capture_output=True, text=True).stdout.strip() or 'none'
    except OSError: return 'none'
