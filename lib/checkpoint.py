"""Checkpoints: what one holds, how it is read and written, and how optimizers go on from it.

A checkpoint is a dict of tensors and plain values, written by torch.save and read with
weights_only=True:

    model, optimizer, scaler     weights by name; of an adapter its own alone, with its settings in
                                 `lora`
    config, train, method        values of the model file's Config, of train.py's, of a technique's
    model_name, source           the model file's name and its text
    tokenizer, data, columns     the tokenizer as JSON, checksums of the data, the columns of its
                                 examples
    base                         of an adapter: a fingerprint of the weights that it was made for
    step, tokens, train_seconds, best, worse, evaluated, skipped     train.Progress
"""
import os

import torch

from data import files
from data.files import are_weights, first_line, read_pickle
from lib.optim import Muon, layout_like, whole

NUMBER = (int, float)
HOLDS = dict(model=dict, config=dict, model_name=str, train=dict, tokenizer=str, source=str,
             base=str, lora=dict, optimizer=list, scaler=dict, data=dict, step=int, tokens=int,
             worse=int, evaluated=int, train_seconds=NUMBER, best=NUMBER, skipped=int, columns=str,
             method=dict)
# a run goes on without these
OPTIONAL = {'lora', 'source', 'base', 'skipped', 'columns', 'method'}


def load_checkpoint(path):
    """The dict in a checkpoint, on the CPU. path: an out_dir or a .pt file. Raises
    FileNotFoundError if there is none, ValueError if the file is no checkpoint."""
    path = find_checkpoint(path)
    try:
        saved = read_pickle(path)
    except Exception as e:
        raise ValueError(f'{path}: cannot be read as a checkpoint '
                         f'({first_line(e).split(". ")[0][:100]}); '
                         'it is cut short or of another program') from None
    if not isinstance(saved, dict) or not {'model', 'config', 'model_name'} <= set(saved):
        raise ValueError(f'{path}: not a checkpoint of this trainer (it lacks model, config or '
                         'model_name)')
    for name, kind in HOLDS.items():
        if name in saved and not isinstance(saved[name], kind):
            raise ValueError(f'{path}: its {name!r} is a {type(saved[name]).__name__}: damaged, or '
                             'of another program')
    if not saved['model_name'].isidentifier():
        raise ValueError(f'{path}: its model_name {saved["model_name"][:60]!r} is no name of a '
                         'model file: damaged')
    are_weights(saved['model'], path)
    return saved


def find_checkpoint(path):
    """The file of a checkpoint. path: an out_dir or a .pt file. Raises FileNotFoundError, which
    says what to do."""
    if os.path.isdir(path):
        file = os.path.join(path, 'ckpt.pt')
        best = os.path.join(path, 'best.pt')
        if os.path.exists(file):
            return file
        advice = f'train first: python train.py --out_dir={path}'
        if os.path.exists(best):
            advice = f'{best} is there: --init_from={best} starts from its weights'
        raise FileNotFoundError(f'no checkpoint in {path}: expected {file}; {advice}')
    if not os.path.exists(path):
        advice = ''
        if not path.endswith('.pt'):
            advice = f', or train first: python train.py --out_dir={path}'
        raise FileNotFoundError(f'no checkpoint {path}: give an out_dir, a .pt file or a Hugging '
                                f'Face folder{advice}')
    return path


def save_checkpoint(path, model, optimizers, weights, rank, **state):
    """Gathers weights and optimizer states on every rank and writes them on the first one. Raises
    OSError when the disk is full; the old file stays.

    weights: by name, those of the model or of its adapter alone. state: everything else that the
    file holds.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    data = dict(state)
    data['model'] = {name: whole(tensor) for name, tensor in weights.items()}
    data['optimizer'] = []
    for optimizer in optimizers:
        states = {}
        for parameter, tensors in optimizer.state.items():
            states[names[parameter]] = {key: whole(tensor) for key, tensor in tensors.items()}
        data['optimizer'].append(states)
    if rank != 0:
        return
    try:
        files.write_atomic(path, lambda f: torch.save(data, f))
    # torch's writer reports a full disk this way
    except RuntimeError as e:
        raise OSError(first_line(e)) from None


def restore(optimizers, model, states, origin):
    """Puts the optimizer states of a checkpoint into new optimizers. Raises ValueError if they do
    not fit.

    states: a dict for each optimizer, {name of a parameter: {key: tensor}}. origin: the file that
    messages name.
    """
    def misfit(why):
        return ValueError(f'{origin}: its optimizer state does not fit ({why}): leave --optimizer '
                          f'as it was, or start a new run with --init_from={origin}')

    if len(states) != len(optimizers):
        raise misfit(f'of {len(states)} optimizers, this run has {len(optimizers)}')
    parameters = dict(model.named_parameters())
    for optimizer, saved in zip(optimizers, states):
        trained = {parameter for group in optimizer.param_groups for parameter in group['params']}
        for name, state in saved.items() if isinstance(saved, dict) else [('', saved)]:
            parameter = parameters.get(name)
            if parameter not in trained or not isinstance(state, dict):
                raise misfit(f'it is not of parameter {str(name)[:80]!r}')
            shapes = {key: getattr(tensor, 'shape', None) for key, tensor in state.items()}
            if shapes not in state_shapes(optimizer, parameter):
                raise misfit(f'of {name} it has {", ".join(map(str, state))} in other shapes than '
                             f'{tuple(parameter.shape)}')
            for key, tensor in state.items():
                tensor = tensor.to(parameter.device).clone()
                if tensor.shape == parameter.shape:
                    tensor = layout_like(tensor, parameter)
                optimizer.state[parameter][key] = tensor


def state_shapes(optimizer, parameter):
    """The shapes that the state of a parameter may have in this kind of optimizer -> a list of
    {key: shape}."""
    shape = parameter.shape
    if type(optimizer) is Muon:
        return [dict(momentum_buffer=shape)]
    if type(optimizer) is torch.optim.Adafactor:
        rows = (*shape[:-1], 1)
        columns = (*shape[:-2], 1, *shape[-1:])
        return [dict(step=(), variance=shape), dict(step=(), row_var=rows, col_var=columns)]
    return [dict(step=(), exp_avg=shape, exp_avg_sq=shape)]
