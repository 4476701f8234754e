"""From a path to a model and back: out_dirs, .pt files and folders in the Hugging Face layout.

`load_model(path)` is what most people want. What train.py and sample.py need apart: `load_parts`
reads, `build_model` makes a model of what was read, `export_hf` writes a folder for transformers.
"""
import dataclasses
import glob
import hashlib
import os
import sys

import torch
import torch.nn as nn

import adapters
import bpe
import lora
from data.files import read_hf, read_json, untrusted
from lib import hf
from lib.checkpoint import load_checkpoint
from lib.method import source_file
from lib.models import import_model, layout_of, scripts_with, typed
from lib.words import further

MOST_TENSORS = 30_000       # of a new model: a file or a flag may ask for a billion layers
DEEPEST = 9                 # adapters of adapters of ...


def load_model(path, device='cpu', base=''):
    """Opens a model for use -> (model in eval mode, tokenizer or None).

    path: an out_dir, a .pt file, or a folder in the Hugging Face layout. base: other weights than
    those that the adapter in `path` was made for. Raises FileNotFoundError or ValueError, with one
    line that says what is wrong.
    """
    file, config, weights, tokenizer = load_parts(path, base=base)
    load_weights(outline(file, config, path, 2 * len(weights) + 100), weights, path)
    model = file.Model(config)
    load_weights(model, weights, path)
    return model.to(device).eval(), tokenizer


# ---- reading

def hf_file(config):
    """The model file that opens a config.json, found by its model_type. Ours come before files of
    your own that define hf_types."""
    known = {}
    for name in scripts_with('hf_types ='):
        known.update((model_type, name) for model_type in import_model(name).hf_types)
    known |= hf.families
    kind = config.get('model_type')
    if kind not in known:
        raise ValueError(f'config.json has model_type {kind!r}; known: {", ".join(sorted(known))}')
    return import_model(known[kind])


def script_of(path):
    """The name of the model file whose weights an out_dir, a .pt file or a Hugging Face folder
    holds."""
    config = os.path.join(path, 'config.json')
    if not os.path.exists(config):
        return load_checkpoint(path)['model_name']
    with untrusted(config):
        return hf_file(read_json(config)).__name__


def load_parts(path, depth=0, base=''):
    """Reads an out_dir, a .pt file or a Hugging Face folder -> (model file, its Config, state dict,
    tokenizer or None).

    A checkpoint that holds an adapter alone is read together with its base, or with the weights in
    `base`.
    """
    with untrusted(path):
        if depth > DEEPEST:
            raise ValueError(f'{path}: adapts an adapter that adapts ... itself: give the weights '
                             'of the base')
        if os.path.isdir(path) and os.path.exists(os.path.join(path, 'config.json')):
            return read_hf_folder(path)
        saved = load_checkpoint(path)
        file = import_model(saved['model_name'])
        config = typed(file.Config, saved['config'], path)
        weights = saved['model']
        if base and 'lora' not in saved:
            raise ValueError(f'{path} holds a whole model, no adapter: --init_from={path} opens it')
        if 'lora' in saved:
            weights = with_adapter(file, config, saved, path, depth, base)
        tokenizer = bpe.loads(saved['tokenizer']) if saved.get('tokenizer') else None
        return file, config, weights, tokenizer


def read_hf_folder(path):
    """A folder in the Hugging Face layout -> what load_parts gives."""
    their_config, weights = read_hf(path)
    file = hf_file(their_config)
    layout = layout_of(file)
    for key, value in their_config.items():
        most = max(200, len(weights))                    # ALBERT's layers share their weights
        if 'layer' in key and isinstance(value, (int, float)) and not value <= most:
            raise ValueError(f'{path}: config.json says {key}={value}, the weights are '
                             f'{len(weights)} tensors')
    for name in getattr(layout, 'hf_folders', ()):       # further models beside an exported one
        if os.path.exists(os.path.join(path, name, 'config.json')):
            their_config[name], more = read_hf(os.path.join(path, name))
            weights |= {f'{name}/{key}': tensor for key, tensor in more.items()}
    try:
        tokenizer = bpe.load(path)
    except FileNotFoundError:
        tokenizer = None
    config, weights = layout.from_hf(their_config, weights)
    return file, typed(file.Config, dataclasses.asdict(config), path), weights, tokenizer


def with_adapter(file, config, saved, path, depth, base):
    """The state dict of an adapter's base with the adapter merged into it. Where it cannot be
    merged, the dict has an attribute `adapter`, the settings with which load_weights attaches
    it."""
    weights = base_of(saved, path, depth, base)
    try:
        model = build_model(file, config, weights, path, 0, new_task=True)
    except ValueError as e:
        if not base:
            raise
        raise ValueError(f'{path} does not fit {base}, it is of another model ({e})') from None
    if base and saved.get('base', '') not in ('', fingerprint(weights)):
        print(f'note: {path} was made for other weights than those of {base}', file=sys.stderr)
    lora.load_state(model, saved['lora'], saved['model'])
    settings = lora.settings(model)
    if lora.mergeable(model):
        lora.merge(model, unload=True)
        settings = None
    state = model.state_dict()
    state.adapter = settings
    return state


def base_of(saved, path, depth=0, given=''):
    """The weights that the adapter in a checkpoint was made for, also where a later run has moved
    them aside; or those in `given`. Raises ValueError if they are gone."""
    if given:
        return load_parts(given, depth + 1)[2]
    base = saved['train']['init_from']
    mark = saved.get('base', '')
    folder, file = os.path.split(base) if base.endswith('.pt') else (base, '')
    places = [base]
    # without it, moved weights could not be told from others
    if mark:
        aside = glob.glob(glob.escape(folder.rstrip('/')) + '-[0-9]*')
        places += [os.path.join(place, file) for place in sorted(aside)]
    for place in places:
        try:
            weights = load_parts(place, depth + 1)[2]
        except FileNotFoundError:
            continue
        if mark in ('', fingerprint(weights)):
            return weights
    there = 'is gone'
    if os.path.exists(base):
        there = 'now holds other weights (a later run took its place?)'
    raise ValueError(f'{path} adapts the weights that were in {base}, which {there}: find them, '
                     f'then python sample.py --init_from=BASE --lora={path}')


def fingerprint(weights):
    """A hash of some numbers of every tensor. It tells one set of weights from another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        every = max(1, tensor.numel() // 64)
        some = tensor.detach().flatten()[::every].float().cpu().numpy()
        digest.update(name.encode() + some.tobytes())
    return digest.hexdigest()


# ---- building

def outline(file, config, origin, most):
    """The model on the meta device, where it takes no memory: whether it can be built, and of which
    shapes. Raises ValueError if it has more than `most` tensors."""
    left = most

    def count(*_):
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f'{origin}: the model would have more than {most:,} tensors: lower '
                             '--n_layer')

    hook = nn.modules.module.register_module_parameter_registration_hook(count)
    # of a fork's author, who wants the traceback
    own_bugs = (AttributeError, NameError)
    try:
        with untrusted(origin, but=own_bugs), torch.device('meta'):
            model = file.Model(config)
        if not hasattr(model, 'config'):
            raise ValueError(f'{file.__name__}.Model does not keep its Config: write self.config = '
                             'config in its __init__')
        return model
    finally:
        hook.remove()


def load_weights(model, weights, origin, hint=''):
    """Loads a state dict strictly. Raises ValueError of one line if it does not fit. A dict that
    has an adapter of its own (load_parts) brings it along."""
    if getattr(weights, 'adapter', None):
        lora.attach(model, 'default', **weights.adapter)
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    try:
        model.load_state_dict(weights, strict=True, assign=on_meta)
    except RuntimeError as e:
        own = model.state_dict()
        script = type(model).__module__ + '.py'
        lacks = [key for key in own if key not in weights]
        extra = [key for key in weights if key not in own]
        if lacks:
            why = (f'Missing key {lacks[0]!r}{further(lacks)}, '
                   f'which {script} has with these settings')
        elif extra:
            why = (f'Unexpected key {extra[0]!r}{further(extra)}, '
                   f'which {script} has not with these settings')
        else:
            lines = [line.strip() for line in str(e).splitlines() if line.strip()]
            why = lines[:2][-1]
        raise ValueError(f'{origin}: the weights do not fit the model: {why}{hint}') from None


def build_model(file, config, weights, origin, seed, new_task=False):
    """A model on the CPU, so that its first weights are the same on every device and rank.

    weights: a state dict to start from, or None. new_task: heads that the weights lack keep their
    first weights, and heads that the model lacks are left out; the caller says which. Raises
    ValueError if the weights do not fit.
    """
    most = MOST_TENSORS if weights is None else 2 * len(weights) + 100
    model = outline(file, config, origin or 'a model of these sizes', most)
    refuse_too_large(model)
    if weights is not None:
        first_positions(weights, model, getattr(config, 'block_size', 0))
        kept = {}
        if new_task:
            weights, kept = without_other_heads(weights, model, config)
        load_weights(model, {**kept, **weights}, origin, '; take back what changed the model (a '
                                                         'flag, an edit of '
                     f'{file.__name__}.py), or add --new_weights to begin anew')
    torch.manual_seed(seed)
    model = file.Model(config)
    if weights is not None:
        model.load_state_dict(weights, strict=False)
    return model


def refuse_too_large(model):
    """Raises ValueError if the model's parameters in fp32 take more memory than this machine
    has."""
    need = 4 * sum(parameter.numel() for parameter in model.parameters())
    if not hasattr(os, 'sysconf'):           # Windows does not tell it this way
        return
    have = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    if need > have:
        raise ValueError(f'{need / 4e9:,.1f} G parameters take {need / 1e9:,.0f} GB, this machine '
                         f'has {have / 1e9:,.0f} GB of memory: lower --n_embd, --n_layer or the '
                         'size of the vocabulary')


def first_positions(weights, model, block_size):
    """Cuts tables of positions in `weights` that are longer than a lowered block_size."""
    own = model.state_dict()
    for key, tensor in weights.items():
        same = key in own and tensor.ndim and tensor.shape[1:] == own[key].shape[1:]
        if same and len(own[key]) == block_size < len(tensor):
            weights[key] = tensor[:block_size]


def without_other_heads(weights, model, config):
    """The weights without heads that do not fit the model, and the model's own heads. A body that
    lacks a layer stays as it is and is refused later."""
    own = model.state_dict()

    def is_head(key):
        return hasattr(model, 'depth_of') and model.depth_of(key) > config.n_layer

    fitting = {}
    for key, tensor in weights.items():
        if key in own and (tensor.shape == own[key].shape or not is_head(key)):
            fitting[key] = tensor
    return fitting, {key: tensor for key, tensor in own.items() if is_head(key)}


def open_weights(config, file, flags, values, saved):
    """What a run starts from -> the values of the model's Config, a state dict or None, the
    tokenizer or None, and where they came from.

    config: train.py's. values: the model file's, by the flags. saved: the checkpoint to resume, or
    {}.
    """
    if saved:
        weights = base_of(saved, config.out_dir) if 'lora' in saved else saved['model']
        tokenizer = bpe.loads(saved['tokenizer']) if saved['tokenizer'] else None
        return values, weights, tokenizer, config.out_dir
    if config.init_from in ('', 'scratch'):
        return values, None, None, ''
    source, given, weights, tokenizer = load_parts(config.init_from)
    if getattr(weights, 'adapter', None):
        raise ValueError(f'--init_from={config.init_from} is an adapter '
                         f'({weights.adapter["kind"]}) that no plain weights can hold: --resume '
                         f'--out_dir={config.init_from} goes on with it, or start from its base')
    # a fork starts from its parent's weights, if it has its fields
    if source is not source_file(file):
        fields = {field.name for field in dataclasses.fields(file.Config)}
        had = dataclasses.asdict(given)
        lacks = [name for name in had if name not in fields]
        if lacks:
            raise ValueError(f'--init_from={config.init_from} holds a model of '
                             f'{source.__name__}.py, not of --model={config.model}, whose Config '
                             f'has no {lacks[0]}{further(lacks)}: leave out --model, or keep the '
                             f'fields of {source.__name__}.py in a fork of it')
        given = typed(file.Config, had, config.init_from)
    own = {field.name for field in dataclasses.fields(file.Config)} - {'vocab_size'}
    wanted = {**getattr(file, 'finetune', {}), **flags}
    values = dataclasses.asdict(given)
    values |= {name: value for name, value in wanted.items() if name in own}
    return values, None if config.new_weights else weights, tokenizer, config.init_from


def complete_model(file, model, config, weights, checkpoint, new_task):
    """Adds to a new model what the flags ask for, while it is on the CPU -> the names of its parts
    that start anew because the given weights have none that fit.

    config: train.py's. checkpoint: the one to resume, or {}.
    """
    new_heads = set()
    if new_task:
        for key, tensor in model.state_dict().items():
            if key not in weights or tensor.shape != weights[key].shape:
                new_heads.add(key.split('.')[0])
    new_heads = sorted(new_heads)
    if config.adapter:                       # on the CPU: the same first numbers on every device
        add_adapter(model, config, weights, checkpoint, new_heads)
    if hasattr(file, 'prepare'):
        file.prepare(model, config)
    if config.shard and getattr(model.config, 'generator_steps', 0):
        raise ValueError('--shard and --generator_steps do not go together: '
                         'FSDP2 settles which weights train once and for all')
    return new_heads


def add_adapter(model, config, weights, saved, new_heads):
    """Adds the adapter that train.py's flags ask for, or that of the checkpoint to resume.
    new_heads: parts of the model that train as a whole. Raises ValueError if there are no weights
    to adapt."""
    if weights is None:
        flag = 'lora_rank' if config.adapter == 'lora' else f'adapter={config.adapter}'
        raise ValueError(f'--{flag} needs weights to adapt: '
                         'give --init_from=OUT_DIR, a .pt file or a Hugging Face folder')
    if config.shard:
        raise ValueError('adapters do not shard: leave out --shard, and hold the base with '
                         '--lora_bits=8')
    if saved:
        lora.load_state(model, saved['lora'], saved['model'])
    else:
        adapters.wrap(model, config, ','.join(new_heads))
