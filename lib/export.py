"""A model as a folder in the Hugging Face layout, for transformers."""
import inspect
import json
import os

import torch

from data import files
from data.files import write_safetensors
from lib.method import source_file
from lib.models import import_model, layout_of
from lib.weights import build_model, open_weights


def check_export(file, model):
    """Raises ValueError if --export_hf cannot write this model, before anything is trained."""
    layout = layout_of(file)
    if not layout:
        raise ValueError(f'--export_hf: {file.__name__}.py has no Hugging Face layout')
    try:
        layout.to_hf(model)
    except ValueError as e:
        raise ValueError(f'--export_hf: {e}; leave it out, or take a published preset') from None
    check_fork(file, model)


@torch.no_grad()
def check_fork(file, model):
    """Raises ValueError if a fork computes something else than its family with the same weights,
    because transformers would open an exported folder as the family's model."""
    family = getattr(source_file(file), 'family', '')
    if hasattr(source_file(file), 'to_hf') or family in ('', file.__name__):
        return
    own = import_model(family)
    layout = layout_of(own)
    config, weights = layout.from_hf(*layout_of(file).to_hf(model))
    parent = own.Model(config).eval()
    parent.load_state_dict(weights)
    was_training = model.training
    model.eval()
    required = [p for p in inspect.signature(own.Model.logits).parameters.values()
                if p.default is p.empty]
    ids = torch.arange(2 * 7).view(2, 7) % config.vocab_size
    inputs = [ids] * (len(required) - 1)     # T5 takes a source and a target; self is not one
    theirs = parent.logits(*inputs)
    ours = model.logits(*inputs)
    model.train(was_training)
    is_equal = ours.shape == theirs.shape
    if not is_equal or (ours - theirs).abs().max() > 1e-3 * theirs.abs().max():
        raise ValueError(f'--export_hf: {file.__name__}.py computes something else than '
                         f'{family}.py with the same weights, and transformers would open the '
                         f'folder as the latter: leave out --export_hf, or define to_hf in '
                         f'{file.__name__}.py')


def convert(settings):
    """--init_from with --export_hf and --max_iters=0: from one format to another, without data."""
    config, file, values, flags, _, checkpoint = settings
    values, weights, tokenizer, origin = open_weights(config, file, flags, values, checkpoint)
    model = build_model(file, file.Config(**values), weights, origin, 0)
    export_hf(file, model, tokenizer, config.export_hf)
    print(f'wrote {config.export_hf}')
    return dict(export_hf=config.export_hf)


def export_hf(file, model, tokenizer, folder, convert=None):
    """Writes config.json, model.safetensors and, if the format can hold it, the tokenizer; further
    models go into subfolders. convert: a function like to_hf for one of these."""
    layout = layout_of(file)
    config, weights = (convert or layout.to_hf)(model) or (None, None)
    if config is None:
        return
    if not convert:
        for name, other in getattr(layout, 'hf_folders', {}).items():
            export_hf(file, model, tokenizer, os.path.join(folder, name), other)
    os.makedirs(folder, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    write_safetensors(os.path.join(folder, 'model.safetensors'), tensors)
    text = json.dumps(config, indent=2).encode()
    files.write_atomic(os.path.join(folder, 'config.json'), lambda f: f.write(text))
    if tokenizer:
        try:
            tokenizer.save_hf(folder, **frame_of(file, model.config))
        except ValueError as e:                          # transformers has no file for some formats
            print(f'{folder}: without a tokenizer ({e})')


def frame_of(file, config):
    """What stands around a text in this model's rows, as the arguments of Tokenizer.save_hf."""
    if hasattr(config, 'sep_id'):
        cls = config.cls_id if config.cls_id >= 0 else config.eot_id
        sep = config.sep_id if config.sep_id >= 0 else config.eot_id
        return dict(cls=cls, sep=sep, double=getattr(config, 'double_sep', False),
                    segments=getattr(config, 'n_segments', 0) > 1, length=config.block_size)
    if hasattr(file, 'generate'):
        return dict(sep=config.eot_id)
    return {}
