"""Adapters in the files of peft: adapter_config.json and adapter_model.safetensors.

peft adapts transformers' modules, lora.py ours, and several of theirs may be one of ours (query,
key and value). Which rows of which tensor lie where is asked of the family's layout: `places`.
"""
import bisect
import collections
import dataclasses
import json
import math
import os
import re
import sys
import types

import torch
import torch.nn as nn
from torch.nn import functional as F

from data import files
from lib import models

BASE = 'base_model.model.'                       # what peft puts in front of transformers' names
CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'
OLD_WEIGHTS = 'adapter_model.bin'
PATTERN_SECONDS = 1                              # a bad pattern could take for ever

PLAIN = dict(  # keys of adapter_config.json that are absent, false, or of this value
    bias='none', lora_bias=False, use_qalora=False, use_bdlora=None, layer_replication=None,
    target_parameters=None, trainable_token_indices=None, alora_invocation_tokens=None)
CHANGED_BASE = ('pissa', 'olora', 'corda', 'loftq', 'lora_ga')  # first weights that change the base


@dataclasses.dataclass
class Place:
    """Where a tensor of transformers lies in our model."""
    ours: str           # our parameter
    rows: torch.Tensor  # its rows, in their order
    turned: bool        # theirs is (in, out)

# ------------------------------------------------------------------------------- theirs and ours


def places(model):
    """{tensor in transformers' layout: Place}.

    The layout is given one column of numbers instead of weights, each row its own number, and shows
    where they go. Raises ValueError if transformers has no such model."""
    layout = models.layout_of(sys.modules[type(model).__module__])
    if layout is None:
        raise ValueError(f'{type(model).__module__}.py has no Hugging Face layout')
    marks = {}
    names = []
    starts = []
    end = 1                                      # 0 is for what the layout fills up
    for prefix, module in model.named_modules():
        if 'lora' in prefix.split('.'):
            continue
        leaves = [leaf for leaf, p in module._parameters.items() if p is not None]
        if 'packed' in module._buffers:          # a frozen matrix in few bits
            leaves.append('weight')
        for leaf in leaves:
            p = getattr(module, leaf)
            name = f'{prefix}.{leaf}'.lstrip('.')
            names.append(name)
            starts.append(end)
            marks[name] = torch.arange(end, end + len(p)).view(-1, *[1] * (p.ndim - 1))
            end += len(p)
    outline = types.SimpleNamespace(config=model.config, state_dict=lambda: marks,
                                    get_submodule=model.get_submodule)
    found = {}
    for name, w in layout.to_hf(outline)[1].items():
        rows = w.flatten().long()
        i = bisect.bisect(starts, int(rows[0])) - 1
        if i >= 0:
            found[name] = Place(names[i], rows - starts[i], w.ndim == 2 and len(w) < len(rows))
    return found


def shortest_ends(names, others):
    """The shortest end of each name that no other module has: 'h.0.attn.c_attn' -> 'c_attn'"""
    ends = {}
    for name in names:
        parts = name.split('.')
        for k in range(1, len(parts) + 1):
            end = '.'.join(parts[-k:])
            if not any(f'.{other}'.endswith(f'.{end}') for other in others):
                ends[end] = None
                break
    return list(ends)

# --------------------------------------------------------------------------------------- writing


@torch.no_grad()
def to_peft(model, settings):
    """The active adapter -> adapter_config.json as a dict, tensors by peft's names.

    Parts of ours that are one module there become one adapter of n r columns, B in blocks.
    settings: lora.settings(model). Raises ValueError if transformers has no such model, or peft no
    such adapter."""
    if settings['kind'] != 'lora' or not settings['layers']:
        raise ValueError(f'peft has no adapters like {model.lora["active"]!r}')
    params = dict(model.named_parameters())
    there = places(model)
    tensors = {}
    sizes = {}                                   # module there -> rank, alpha
    covered = collections.Counter()              # rows of ours that are written
    turned = False
    for theirs, place in there.items():
        if place.ours in settings['heads']:
            w = params[place.ours][place.rows]
            tensors[BASE + theirs] = w.t() if place.turned else w
            covered[place.ours] = 1
        name, _, leaf = place.ours.rpartition('.')
        if leaf != 'weight' or name not in settings['layers']:
            continue
        layer = model.get_submodule(name)
        parts = adapter_at(layer, place.rows)
        if parts is None:
            continue
        module = theirs.removesuffix('.weight')
        tensors |= {f'{BASE}{module}.lora_{part}': w for part, w in parts.items()}
        rank = len(parts['A.weight'])
        alpha = layer.adapter().scale * (math.sqrt(rank) if settings['rslora'] else rank)
        sizes[module] = rank, round(alpha, 9)
        covered[name] += int(torch.isin(layer.adapter().rows(), place.rows).sum())
        turned = place.turned
    wanted = {name: sum(end - first for first, end in layer['spans'])
              for name, layer in settings['layers'].items()}
    wanted |= dict.fromkeys(settings['heads'], 1)
    for name, rows in wanted.items():
        if covered[name] < rows:
            raise ValueError(f'transformers has no {name}')
    return peft_config(settings, sizes, there, turned), tensors


def adapter_at(layer, rows):
    """The adapter of a layer at these rows of it -> {'A.weight': ..., 'B.weight': ...}, or None."""
    adapter = layer.adapter()
    hit = [i for i, (first, end) in enumerate(adapter.spans)
           if ((first <= rows) & (rows < end)).any()]
    if not hit:
        return None
    rank = adapter.rank
    columns = torch.cat([torch.arange(i * rank, (i + 1) * rank) for i in hit])
    parts = {'A.weight': adapter.A[columns], 'B.weight': adapter.wide()[rows][:, columns]}
    if adapter.m is not None:
        m = layer.base().to(adapter.m.dtype).norm(dim=1)
        m[adapter.rows()] = adapter.m            # rows without an adapter keep their length
        parts['magnitude_vector'] = m[rows]
    return parts


def peft_config(settings, sizes, there, turned):
    """adapter_config.json. sizes: {module there: (rank, alpha)}; the commonest are its r and
    lora_alpha, the others its patterns."""
    modules = {theirs.rpartition('.')[0] for theirs in there}

    def ends(names):
        return shortest_ends(names, modules - set(names))
    (r, alpha), _ = collections.Counter(sizes.values()).most_common(1)[0]
    ranks = {}
    alphas = {}
    for size in set(sizes.values()) - {(r, alpha)}:
        for end in ends([module for module, other in sizes.items() if other == size]):
            ranks[end], alphas[end] = size
    whole = [theirs.rpartition('.')[0] for theirs, place in there.items()
             if place.ours in settings['heads']]
    return dict(peft_type='LORA', task_type=None, base_model_name_or_path='', r=r, lora_alpha=alpha,
                lora_dropout=settings['dropout'], target_modules=ends(list(sizes)),
                fan_in_fan_out=turned, use_rslora=settings['rslora'], use_dora=settings['dora'],
                bias='none', inference_mode=True, rank_pattern=ranks, alpha_pattern=alphas,
                modules_to_save=list(dict.fromkeys(whole)) or None)


def write_files(folder, config, tensors):
    os.makedirs(folder, exist_ok=True)
    tensors = {name: w.contiguous() for name, w in tensors.items()}
    files.write_safetensors(os.path.join(folder, WEIGHTS), tensors)
    text = json.dumps(config, indent=2).encode()
    files.write_atomic(os.path.join(folder, CONFIG), lambda f: f.write(text))

# --------------------------------------------------------------------------------------- reading


def read_files(folder):
    """-> adapter_config.json as a dict, tensors by name"""
    config = files.read_json(os.path.join(folder, CONFIG))
    file = os.path.join(folder, WEIGHTS)
    old = os.path.join(folder, OLD_WEIGHTS)
    if os.path.exists(file) or not os.path.exists(old):
        return config, files.read_safetensors(file)
    return config, files.are_weights(files.read_pickle(old), old)


def from_peft(model, config, tensors):
    """peft's adapter_config.json and tensors -> settings and state for lora.load_state.

    Modules of theirs that are one layer here become parts of one adapter; a lower rank among them
    is filled up with zeros. Raises ValueError if the files say what lora.py cannot do, or if they
    are of another model."""
    check_config(config)
    there = places(model)
    adapted, heads = sorted_tensors(model, there, tensors)
    rslora = bool(config.get('use_rslora'))
    dora = bool(config.get('use_dora'))
    ours = dict(model.named_modules())
    layers = {}
    state = {}
    for name, modules in adapted.items():
        layer = ours.get(name)
        parts = {}
        for module, part in modules.items():
            if not fits(part, layer, dora):
                raise ValueError(f'{module}: its lora_A, lora_B or magnitude does not fit '
                                 f'the model\'s layer {name}')
            rank = len(part['A'])
            alpha = pattern(config, 'alpha_pattern', module, config.get('lora_alpha', 8))
            part['scale'] = alpha / (math.sqrt(rank) if rslora else rank)
            order = part['rows'].argsort()       # their row j is our rows[j]
            part['B'] = part['B'][order]
            if dora:
                part['magnitude_vector'] = part['magnitude_vector'][order]
            parts[int(part['rows'].min()), int(part['rows'].max()) + 1] = part
        spans, parts = zip(*sorted(parts.items(), key=lambda item: item[0]))
        rank = max(len(part['A']) for part in parts)
        scale = parts[0]['scale']
        layers[name] = dict(spans=[list(span) for span in spans], rank=rank, scale=scale)
        # (n r, I) and (rows, r)
        state[name + '.lora_A'] = torch.cat([F.pad(part['A'], (0, 0, 0, rank - len(part['A'])))
                                             for part in parts])
        state[name + '.lora_B'] = torch.cat([widened(part, scale, rank) for part in parts])
        if dora:
            state[name + '.lora_m'] = torch.cat([part['magnitude_vector'] for part in parts])
    settings = dict(layers=layers, heads=list(heads), dropout=config.get('lora_dropout', 0.0),
                    rslora=rslora, dora=dora)
    return settings, state | heads


def check_config(config):
    if config.get('r') is None:
        raise ValueError('adapter_config.json has no "r": expected one of peft\'s LoRA')
    for key, value in PLAIN.items():
        if config.get(key) not in (value, None, False):
            raise ValueError(f'adapter_config.json: {key}={config[key]!r}, '
                             f'lora.py knows only {value!r}')
    if str(config.get('init_lora_weights')).startswith(CHANGED_BASE):
        raise ValueError(f'adapter_config.json: init_lora_weights={config["init_lora_weights"]!r} '
                         'has changed the base: save it with peft\'s '
                         'path_initial_model_for_weight_conversion')


def sorted_tensors(model, there, tensors):
    """-> {our layer: {their module: its rows, A, B, magnitude_vector}}, {our parameter: tensor}"""
    params = dict(model.named_parameters())
    adapted = collections.defaultdict(dict)
    heads = {}
    name_of = re.compile(r'(?:base_model\.model\.)?(.+?)'
                         r'(?:\.lora_(A|B|magnitude_vector)(?:\.weight)?)?')
    for key, w in tensors.items():
        module, part = name_of.fullmatch(key).groups()
        if part:
            place = place_of(there, module + '.weight')
            modules = adapted[place.ours.removesuffix('.weight')]
            modules.setdefault(module, dict(rows=place.rows))[part] = w.float()
            continue
        place = place_of(there, module)
        if place.turned:
            w = w.t()
        # padded rows of a table stay
        whole = heads.setdefault(place.ours, params[place.ours].detach().clone())
        if w.shape != whole[place.rows].shape:
            raise ValueError(f'{key} is {tuple(w.shape)}, '
                             f'the model has {tuple(whole[place.rows].shape)}')
        whole[place.rows] = w.to(whole)
    return adapted, heads


def place_of(there, theirs):
    """The Place of a tensor, named with or without the prefix of a class with a head."""
    hits = [name for name in there if name == theirs]
    if not hits:
        hits = [name for name in there
                if name.endswith('.' + theirs) or theirs.endswith('.' + name)]
    if len(hits) != 1:
        raise ValueError(f'the adapter has {theirs}, which this model has not: '
                         'it is of another model')
    return there[hits[0]]


def fits(part, layer, dora):
    """Whether A (r, I), B (rows, r) and the magnitude of a module are there and fit our layer."""
    A = part.get('A')
    B = part.get('B')
    if A is None or B is None or not isinstance(layer, nn.Linear):
        return False
    return (A.shape == (B.size(1), layer.in_features) and len(B) == len(part['rows'])
            and dora == ('magnitude_vector' in part))


def widened(part, scale, rank):
    """B of a part, as it is with another scale and a higher rank (rows, r)."""
    B = part['B']
    return F.pad(B * (part['scale'] / scale), (0, rank - B.size(1)))


def pattern(config, key, module, default):
    """The value of the first pattern in config[key] that a module's name matches."""
    import regex                                 # not `re`, which has no timeout
    try:
        for words, value in (config.get(key) or {}).items():
            if regex.match(rf'(.*\.)?({words})$', module, timeout=PATTERN_SECONDS):
                return value
    except TimeoutError:
        raise ValueError(f'adapter_config.json: a pattern of its {key} takes for ever') from None
    return default
