"""Checkpoints: what they hold, reading, writing, and what optimizers go on with."""
import os

import torch

from data import files
from data.files import are_weights, first_line, read_pickle
from lib.optim import Muon, like, whole


def load_checkpoint(path):
    "an out_dir or a .pt file -> its dict, on the CPU"
    if os.path.isdir(path):
        folder, path = path, os.path.join(path, 'ckpt.pt')
        if not os.path.exists(path):
            best = os.path.join(folder, 'best.pt')
            raise FileNotFoundError(f'no checkpoint in {folder}: expected {path}; '
                                    + (f'{best} is there: --init_from={best} starts from its weights'
                                       if os.path.exists(best) else
                                       f'train first: python train.py --out_dir={folder}'))
    if not os.path.exists(path):
        raise FileNotFoundError(f'no checkpoint {path}: give an out_dir, a .pt file or a Hugging Face folder'
                                + f', or train first: python train.py --out_dir={path}' * (not path.endswith('.pt')))
    try: saved = read_pickle(path)
    except Exception as e:
        raise ValueError(f'{path}: cannot be read as a checkpoint ({first_line(e).split(". ")[0][:100]}); '
                         'it is cut short or of another program') from None
    if not isinstance(saved, dict) or not {'model', 'config', 'model_name'} <= set(saved):
        raise ValueError(f'{path}: not a checkpoint of this trainer (it lacks model, config or model_name)')
    for n, kind in HOLDS.items():
        if n in saved and not isinstance(saved[n], kind):
            raise ValueError(f'{path}: its {n!r} is a {type(saved[n]).__name__}: damaged, or of another program')
    if not saved['model_name'].isidentifier():
        raise ValueError(f'{path}: its model_name {saved["model_name"][:60]!r} is no name of a model file: damaged')
    are_weights(saved['model'], path)
    return saved


# what a checkpoint holds
HOLDS = dict(model=dict, config=dict, model_name=str, train=dict, tokenizer=str, source=str, base=str, lora=dict,
             optimizer=list, scaler=dict, data=dict, step=int, tokens=int, worse=int, evaluated=int,
             train_seconds=(int, float), best=(int, float), skipped=int, columns=str)


def save_checkpoint(path, model, optimizers, rank, weights, **state):
    "gather on every rank, write on the first one. Raises OSError when the disk is full; the old file stays"
    names = {p: n for n, p in model.named_parameters()}
    data = dict(state, model={k: whole(v) for k, v in weights.items()}, optimizer=[
        {names[p]: {k: whole(v) for k, v in s.items()} for p, s in opt.state.items()} for opt in optimizers])
    try:
        if rank == 0: files.write_atomic(path, lambda f: torch.save(data, f))
    except RuntimeError as e: raise OSError(first_line(e)) from None       # torch's writer reports a full disk so


def restore(optimizers, model, states, origin):
    named = dict(model.named_parameters())
    say = lambda why: ValueError(f'{origin}: its optimizer state does not fit ({why}): leave --optimizer as it was, '
                                 f'or start a new run with --init_from={origin}')
    if len(states) != len(optimizers): raise say(f'of {len(states)} optimizers, this run has {len(optimizers)}')
    for opt, saved in zip(optimizers, states):
        own = {p for group in opt.param_groups for p in group['params']}
        for name, state in saved.items() if isinstance(saved, dict) else [('', saved)]:
            p = named.get(name)
            if p not in own or not isinstance(state, dict): raise say(f'it is not of parameter {str(name)[:80]!r}')
            row, column = (*p.shape[:-1], 1), (*p.shape[:-2], 1, *p.shape[-1:])
            parts = [dict(step=(), exp_avg=p.shape, exp_avg_sq=p.shape)]
            if type(opt) is Muon: parts = [dict(momentum_buffer=p.shape)]
            if type(opt) is torch.optim.Adafactor:
                parts = [dict(step=(), variance=p.shape), dict(step=(), row_var=row, col_var=column)]
            if {k: getattr(v, 'shape', None) for k, v in state.items()} not in parts:
                raise say(f'of {name} it has {", ".join(map(str, state))} in other shapes than {tuple(p.shape)}')
            place = lambda v: like(v, p) if v.shape == p.shape else v
            opt.state[p] = {k: place(v.to(p.device).clone()) for k, v in state.items()}
