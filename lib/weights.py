"""From a path to a model: out_dirs, .pt files and Hugging Face folders; and back to a folder."""
import dataclasses
import glob
import hashlib
import json
import os
import sys

import torch
import torch.nn as nn

import adapters  # noqa: F401 (registers its kinds with lora)
import bpe
import lora
from data import files
from data.files import read_hf, read_json, untrusted, write_safetensors
from lib import hf, models
from lib.checkpoint import load_checkpoint
from lib.models import import_model, scripts_with, typed
from lib.words import further


def hf_file(config):
    """The model file that opens this config.json: one of ours, or one of yours whose hf_types names the model_type."""
    known = {kind: name for name in scripts_with('hf_types =') for kind in import_model(name).hf_types} | hf.families
    if (kind := config.get('model_type')) not in known:
        raise ValueError(f'config.json has model_type {kind!r}; known: {", ".join(sorted(known))}')
    return import_model(known[kind])


def script_of(path):
    "the name of the model file whose weights an out_dir, a .pt file or a Hugging Face folder holds"
    if not os.path.exists(config := os.path.join(path, 'config.json')): return load_checkpoint(path)['model_name']
    with untrusted(config): return hf_file(read_json(config)).__name__


def fingerprint(weights):
    "some numbers of every tensor, hashed: tells one set of weights from another"
    digest = hashlib.sha256()
    for name, w in sorted(weights.items()):
        some = w.detach().flatten()[::max(1, w.numel() // 64)].float().cpu().numpy()
        digest.update(name.encode() + some.tobytes())
    return digest.hexdigest()


def base_of(saved, path, depth=0, given=''):
    "the weights that the adapter in a checkpoint was made for, also where make_room has moved them; or given ones"
    base, mark = saved['train']['init_from'], saved.get('base', '')
    if given: return load_parts(given, depth + 1)[2]
    folder, file = os.path.split(base) if base.endswith('.pt') else (base, '')
    aside = glob.glob(glob.escape(folder.rstrip('/')) + '-[0-9]*') if mark else []
    for place in (base, *(os.path.join(p, file) for p in sorted(aside))):
        try: weights = load_parts(place, depth + 1)[2]
        except FileNotFoundError: continue
        if mark in ('', fingerprint(weights)): return weights
    there = 'now holds other weights (a later run took its place?)' if os.path.exists(base) else 'is gone'
    raise ValueError(f'{path} adapts the weights that were in {base}, which {there}: find them, '
                     f'then python sample.py --init_from=BASE --lora={path}')


def load_parts(path, depth=0, base=''):
    "-> (model file, its Config, state dict, tokenizer or None) of an out_dir, a .pt file or a Hugging Face folder"
    with untrusted(path): return _load_parts(path, depth, base)


def _load_parts(path, depth, base):
    if depth > 9: raise ValueError(f'{path}: adapts an adapter that adapts ... itself: give the weights of the base')
    if os.path.isdir(path) and os.path.exists(os.path.join(path, 'config.json')):
        their, weights = read_hf(path)
        file = hf_file(their)
        # ALBERT's layers share their weights
        for k, v in their.items():
            if 'layer' in k and isinstance(v, (int, float)) and not v <= max(200, len(weights)):
                raise ValueError(f'{path}: config.json says {k}={v}, the weights are {len(weights)} tensors')
        layout = models.layout_of(file)
        for name in getattr(layout, 'hf_folders', ()):  # further models of an exported one
            if os.path.exists(os.path.join(path, name, 'config.json')):
                their[name], more = read_hf(os.path.join(path, name))
                weights |= {f'{name}/{k}': w for k, w in more.items()}
        try: tokenizer = bpe.load(path)
        except FileNotFoundError: tokenizer = None
        config, weights = layout.from_hf(their, weights)
        return file, typed(file.Config, dataclasses.asdict(config), path), weights, tokenizer
    saved = load_checkpoint(path)
    file = import_model(saved['model_name'])
    config = typed(file.Config, saved['config'], path)
    if base and 'lora' not in saved:
        raise ValueError(f'{path} holds a whole model, no adapter: --init_from={path} opens it')
    if 'lora' in saved:                              # an adapter alone, which makes a plain model of its base
        weights = base_of(saved, path, depth, base)
        try: model = build_model(file, config, weights, path, 0, new_task=True)
        except ValueError as e:
            if not base: raise
            raise ValueError(f'{path} does not fit {base}, it is of another model ({e})') from None
        if base and saved.get('base', '') not in ('', fingerprint(weights)):
            print(f'note: {path} was made for other weights than those of {base}', file=sys.stderr)
        lora.load_state(model, saved['lora'], saved['model'])
        settings = None if lora.mergeable(model) else lora.settings(model)
        if not settings: lora.merge(model, unload=True)
        saved['model'] = model.state_dict()
        saved['model'].adapter = settings            # one that stays beside the weights
    return file, config, saved['model'], bpe.loads(saved['tokenizer']) if saved.get('tokenizer') else None


def outline(file, config, origin, most):
    """The model on the meta device, where it takes no memory: whether it can be built, and of which shapes. At most so
    many tensors, for a file may ask for a billion layers."""
    left = most
    def count(*_):
        nonlocal left
        left -= 1
        if left < 0: raise ValueError(f'{origin}: the model would have more than {most:,} tensors: lower --n_layer')
    hook = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        with untrusted(origin, but=(AttributeError, NameError)), torch.device('meta'):       # of a fork: its own bug
            return file.Model(config)
    finally: hook.remove()


def load_weights(model, weights, origin, hint=''):
    "load strictly; a mismatch is one line. Weights with an adapter of their own (load_parts) bring it along"
    if getattr(weights, 'adapter', None): lora.attach(model, 'default', **weights.adapter)
    try: model.load_state_dict(weights, strict=True, assign=any(p.is_meta for p in model.parameters()))
    except RuntimeError as e:
        lines, own = [l.strip() for l in str(e).splitlines() if l.strip()], model.state_dict()
        why, script = lines[:2][-1], type(model).__module__ + '.py'
        if lacks := [k for k in own if k not in weights]:
            why = f'Missing key {lacks[0]!r}{further(lacks)}, which {script} has with these settings'
        elif extra := [k for k in weights if k not in own]:
            why = f'Unexpected key {extra[0]!r}{further(extra)}, which {script} has not with these settings'
        raise ValueError(f'{origin}: the weights do not fit the model: {why}{hint}') from None


def load_model(path, device='cpu', base=''):
    """-> (model in eval mode, tokenizer or None). path: an out_dir, a .pt file, or a folder in the Hugging Face layout.
    base: other weights than those that the adapter in `path` was made for. Raises FileNotFoundError or ValueError, with
    one line that says what is wrong."""
    file, config, weights, tokenizer = load_parts(path, base=base)
    load_weights(outline(file, config, path, 2 * len(weights) + 100), weights, path)
    model = file.Model(config)
    load_weights(model, weights, path)
    return model.to(device).eval(), tokenizer


def export_hf(file, model, tokenizer, folder, convert=None):
    "write config.json, model.safetensors and, if the format can hold it, the tokenizer; further models into subfolders"
    layout = models.layout_of(file)
    config, weights = (convert or layout.to_hf)(model) or (None, None)
    if config is None: return
    others = {} if convert else getattr(layout, 'hf_folders', {})
    for name, other in others.items(): export_hf(file, model, tokenizer, os.path.join(folder, name), other)
    os.makedirs(folder, exist_ok=True)
    write_safetensors(os.path.join(folder, 'model.safetensors'), {k: v.contiguous() for k, v in weights.items()})
    files.write_atomic(os.path.join(folder, 'config.json'), lambda f: f.write(json.dumps(config, indent=2).encode()))
    if tokenizer:
        c, around = model.config, {}                 # what encode() of the model file puts around a text
        if hasattr(c, 'sep_id'):
            around = {n: i if (i := getattr(c, n + '_id')) >= 0 else c.eot_id for n in ('cls', 'sep')}
            around |= dict(double=getattr(c, 'double_sep', False), segments=getattr(c, 'n_segments', 0) > 1,
                           length=c.block_size)
        elif hasattr(file, 'generate'): around = dict(sep=c.eot_id)
        try: tokenizer.save_hf(folder, **around)     # transformers has no file for some formats
        except ValueError as e: print(f'{folder}: without a tokenizer ({e})')


def build_model(file, mconfig, weights, origin, seed, new_task=False):
    """A model on the CPU: the same first weights on every device and rank. new_task: heads that the weights lack keep
    their first weights, heads that the model lacks are left out; the caller says which."""
    model = outline(file, mconfig, origin or 'a model of these sizes',
                    30_000 if weights is None else 2 * len(weights) + 100)
    need = 4 * sum(p.numel() for p in model.parameters())
    have = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    if need > have:
        raise ValueError(f'{need / 4e9:,.1f} G parameters take {need / 1e9:,.0f} GB, this machine has '
                         f'{have / 1e9:,.0f} GB of memory: lower --n_embd, --n_layer or the size of the vocabulary')
    if weights is not None:
        own, block = model.state_dict(), getattr(mconfig, 'block_size', 0)
        for k, w in weights.items():                 # a lowered block_size keeps the first positions
            same = k in own and w.ndim and w.shape[1:] == own[k].shape[1:]
            if same and len(own[k]) == block < len(w): weights[k] = w[:block]
        if new_task:                                 # a head may have had other classes
            head = lambda k: hasattr(model, 'depth_of') and model.depth_of(k) > mconfig.n_layer
            fits = lambda k, w: k in own and (w.shape == own[k].shape or not head(k))
            kept = {k: w for k, w in own.items() if head(k)}                  # a body that lacks a layer is refused
            weights = {k: w for k, w in weights.items() if fits(k, w)}
        load_weights(model, {**(kept if new_task else {}), **weights}, origin, '; take back what changed the model '
                     f'(a flag, an edit of {file.__name__}.py), or add --new_weights to begin anew')  # on meta: a fit?
    torch.manual_seed(seed)
    model = file.Model(mconfig)
    if weights is not None: model.load_state_dict(weights, strict=False)
    return model
