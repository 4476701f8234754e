"""Low-rank adapters (LoRA) around any of the models: a few small matrices learn, the base stays.

    python train.py --init_from=out/gpt --data=my.txt --out_dir=out/mine --lora_rank=8
    python sample.py --out_dir=out/gpt --lora=out/mine --prompt="def main("

The first writes out/mine, which holds the adapter alone. From Python: `lora.wrap(model, rank=8,
alpha=16)` after the weights are loaded and before torch.compile, DDP and the optimizer; then train.
`lora.save(model, folder)` writes what peft reads, `lora.load(model, folder)` reads our files and
peft's. Several adapters may lie on one base under different names; `lora.use(model, name)` switches
between them, '' is the base. `lora.merge(model)` adds the product into the weights,
`lora.unmerge(model)` puts the old ones back, bit for bit, and `lora.merge(model, unload=True)`
leaves a plain model. Nothing else merges: train() and eval() are torch's own.

A model calls its layers and never reads their weights, so a layer is wrapped where it stands: its
class changes; its name, its weight and its place among the modules do not. Grouped projections
(qkv, kv, gate and up) have a `.parts`, and each part is adapted by itself. The weights of all of
them lie in one pair: A, the (r, I) of each below one another, and B, the rows (r) of each below one
another, which `wide` puts at their own columns. So an input is multiplied twice, however many parts
there are.

Papers: LoRA Hu et al. 2021 (2106.09685), rank-stabilised scaling Kalajdzievski 2023 (2312.03732),
DoRA Liu et al. 2024 (2402.09353), frozen weights in few bits Dettmers et al. 2023 (2305.14314).

Where we depart from them: DoRA's dropout is on the low-rank branch alone; 8-bit weights are plain
int8 with a scale for each row (QLoRA has 4-bit floats); what parts of a grouped projection share is
one dropout mask.

Letters: I inputs and O outputs of a layer, r rank, n adapted parts of a layer.
"""
import collections
import math
import os
import re

import torch
import torch.nn as nn
from torch.nn import functional as F

from data import files
from lib.checkpoint import load_checkpoint
from lib.hf import peft
from lib.wrapped import Adapted
from lib.wrapped import Held
from lib.wrapped import adapted
from lib.wrapped import become
from lib.wrapped import hold
from lib.wrapped import inside
from lib.wrapped import linears
from lib.wrapped import pack
from lib.wrapped import shared
from lib.wrapped import unpack
from lib.wrapped import zeros

# ------------------------------------------------------------------------ the low-rank matrices

SMALLEST_NORM = 1e-12


class Adapter(nn.Module):
    """One adapter's numbers at one layer. spans: the layer's rows that it adapts, [[first, end],
    ...], n of them."""
    def __init__(self, layer, spans, rank, scale, dropout=0.0, dora=False):
        super().__init__()
        W = layer.weight.detach()
        self.spans = [list(span) for span in spans]
        self.rank = rank
        self.scale = scale
        self.dropout = dropout
        self.outputs = len(W)
        self.A = zeros(W, len(spans) * rank, W.size(1))                      # (n r, I)
        self.B = zeros(W, len(self.rows()), rank)                            # (rows, r)
        self.m = None
        if dora:                                                             # eq. 5: (rows,)
            self.m = nn.Parameter(W.to(self.A.dtype).norm(dim=1)[self.rows()])
        # U(-1, 1) / sqrt(I); B is 0, so it starts as the base
        nn.init.kaiming_uniform_(self.A, math.sqrt(5))

    def rows(self):
        """The numbers of the adapted rows, in the order of B."""
        return torch.cat([torch.arange(first, end) for first, end in self.spans])

    def wide(self):
        """-> B as (O, n r): each part's rows at the columns that are its own"""
        if self.spans == [[0, self.outputs]]:
            return self.B
        wide = self.B.new_zeros(self.outputs, len(self.A))
        r = self.rank
        row = 0
        for i, (first, end) in enumerate(self.spans):
            wide[first:end, i * r:(i + 1) * r] = self.B[row:row + end - first]
            row += end - first
        return wide

    def forward(self, layer, x):
        h = F.dropout(x, self.dropout, self.training)
        if not torch.is_autocast_enabled(x.device.type):
            h = h.to(self.A.dtype)
        z = self.scale * F.linear(F.linear(h, self.A), self.wide())          # s B A x: (.., O)
        if self.m is None:
            y = layer.product(x, layer.bias)
            return y + z.to(y.dtype)
        y = layer.product(x, None)
        with torch.no_grad():                    # 4.3: the norm is a constant of the gradient
            V = self.total(layer.weight)
        bias = 0 if layer.bias is None else layer.bias
        return ((y + z) * self.gain(V) + bias).to(y.dtype)               # m (W x + s B A x) / |V|

    def total(self, W):
        """eq. 3: W + s B A, in fp32 (O, I)"""
        exact = torch.promote_types(self.A.dtype, torch.float32)
        return W.to(exact) + self.scale * (self.wide().to(exact) @ self.A.to(exact))

    def gain(self, V):
        """DoRA, eq. 5: m / |V| for V = W + s B A, |V| the norm of a row, without a gradient (4.3)
        -> (O,)"""
        norm = V.norm(dim=1).clamp(min=SMALLEST_NORM)
        gain = torch.ones_like(norm)
        row = 0
        for first, end in self.spans:
            gain[first:end] = self.m[row:row + end - first] / norm[first:end]
            row += end - first
        return gain


# ---------------------------------------------------------------------------------- which layers


def parted(layer):
    """-> {part: [first row, end]}, or the whole layer as the part ''"""
    spans = {}
    row = 0
    for part, rows in getattr(layer, 'parts', {}).items():
        spans[part] = [row, row + rows]
        row += rows
    return spans or {'': [0, layer.out_features]}


def words_of(text):
    """'q, v' -> ['q', 'v']"""
    return [word.strip() for word in text.split(',') if word.strip()]


def part_names(layers):
    """The names that `match` may end with: {way to a layer or a part: (name of the layer, rows)}"""
    names = {}
    for name, layer in layers.items():
        *way, last = name.split('.')
        for part, span in parted(layer).items():
            names['.'.join([*way, part or last])] = name, span
        names.setdefault(name, (name, [0, layer.out_features]))    # unless a part is called so: up
    return names


def matching(model, match):
    """'q,v' -> {name of a layer: [rows of each adapted part]}. A word names a part (q), a layer
    (out, or qkv: its parts as one), or more of the way there (cross.q, blocks.0.mlp.down); 'all'
    takes all parts of linear layers in the blocks."""
    layers = linears(model)
    names = part_names(layers)
    found = collections.defaultdict(list)
    for word in words_of(match):
        hits = [hit for name, hit in names.items() if f'.{name}'.endswith(f'.{word}')]
        if word == 'all':
            within = inside(model)
            hits = [(name, span) for name in layers if name in within
                    for span in parted(layers[name]).values()]
        if not hits:
            known = ', '.join(dict.fromkeys(name.split('.')[-1] for name in names))
            raise ValueError(f'match={word!r} fits no linear layer: this model has {known}; '
                             'all takes those of the blocks')
        for name, span in hits:
            if shared(model, layers[name].weight):
                raise ValueError(f'{name}: its matrix is the table of tokens too, and an adapter '
                                 'on one of the two would tear them apart: '
                                 f'leave {word!r} out, or untie them')
            if span not in found[name]:
                found[name].append(span)
    if not found:
        raise ValueError(f'match={match!r} names no layer: try q,v or all')
    for name, spans in found.items():
        spans.sort()
        if any(span[1] > following[0] for span, following in zip(spans, spans[1:])):
            raise ValueError(f'{match!r} has {name} as a whole and its parts too: '
                             'name one or the other')
    return dict(found)

# --------------------------------------------------------------------------- wrap, switch, merge


def wrap(model, rank=8, alpha=16.0, match='q,v', dropout=0.0, rslora=False, dora=False,
         name='default', train='', bits=0):
    """h = W x + (alpha / rank) B A x (LoRA, eq. 3) on the layers that match; all else is frozen.

    rslora: alpha / sqrt(rank). train: names of modules or parameters that are trained whole and
    saved with the adapter, such as a new classifier. bits: 8 or 16 hold the frozen layers of the
    blocks in so many bits. -> the model, with the adapter `name` active"""
    if rank < 1:
        raise ValueError(f'rank={rank}: expected 1 or more')
    if bits not in (0, 8, 16):
        raise ValueError(f'bits={bits}: expected 8 (int8), 16 (bf16) or 0, the base as it is')
    if not 0 <= dropout < 1:
        raise ValueError(f'dropout={dropout}: expected 0 or more and under 1')
    scale = alpha / (math.sqrt(rank) if rslora else rank)
    layers = {layer: dict(spans=spans, rank=rank, scale=scale)
              for layer, spans in matching(model, match).items()}
    attach(model, name, layers, heads(model, train), rslora=rslora, dropout=dropout, dora=dora)
    if bits:
        hold(model, bits)
    return model


def heads(model, train):
    """'classifier,pooler' -> the names of the parameters in these modules"""
    found = []
    for word in words_of(train):
        hits = [name for name, _ in model.named_parameters() if f'{name}.'.startswith(f'{word}.')]
        if not hits:
            children = ', '.join(name for name, _ in model.named_children())
            raise ValueError(f'train={train!r}: the model has no {word!r}; it has {children}')
        found += hits
    return found


# The kinds of adapters; adapters.py has more. A kind may have into(layer) -> the mixin that a layer
# which is not linear gets, and settle(model, name), called when all layers have their adapter.
kinds = {'lora': Adapter}


def attach(model, name, layers, heads=(), kind='lora', rslora=False, **how):
    """Puts a new adapter on a model. layers: {name: dict(spans, rank, scale)}, heads: names of the
    parameters trained whole, how: what the kind of adapter takes besides."""
    params = dict(model.named_parameters())
    known = getattr(model, 'lora', dict(active='', adapters={'': dict(heads={})}))
    refuse_merged(model)
    if kind not in kinds:
        raise ValueError(f'an adapter of the kind {kind!r}: lora.py knows {", ".join(kinds)}; '
                         'others need `import adapters`')
    if name in known['adapters']:
        raise ValueError(f'the model has an adapter {name!r}: give another name')
    if not re.fullmatch(r'\w+', name) or hasattr(nn.ModuleDict, name):
        raise ValueError(f'adapter {name!r}: expected a name of letters, digits and _')
    for head in heads:
        if shared(model, params[head]):
            raise ValueError(f'{head} is shared with another module, so it cannot be trained '
                             'beside an adapter: untie it')
    made = kinds[kind]
    for place, what in layers.items():
        layer = model.get_submodule(place)
        become(layer, made.into(layer) if hasattr(made, 'into') else Adapted)
        layer.lora[name] = made(layer, **what, **how).train(layer.training)
    model.lora = known
    base = known['adapters']['']['heads']        # what '' switches back to
    for head in heads:
        if head not in base:
            base[head] = params[head].detach().clone()
    copies = {head: base[head].clone() for head in heads}
    known['adapters'][name] = dict(how, heads=copies, layers=layers, kind=kind, rslora=rslora)
    model.requires_grad_(False)
    use(model, name)
    if hasattr(made, 'settle'):
        made.settle(model, name)


@torch.no_grad()
def use(model, name):
    """Switches to an adapter; '' is the base alone. Only its numbers, and the heads saved with it,
    are trained then."""
    lora = registry(model)
    params = dict(model.named_parameters())
    adapters = lora['adapters']
    if name not in adapters:
        known = ', '.join(other for other in adapters if other)
        raise ValueError(f'no adapter {name!r}: the model has {known}')
    refuse_merged(model)
    old = adapters[lora['active']]['heads']
    for head in old:                             # what it has learned meanwhile
        old[head] = params[head].clone()
    new = adapters[name]['heads']
    for head, first in adapters['']['heads'].items():
        params[head].copy_(new.get(head, first))
        params[head].requires_grad_(head in new and name != '')
    for layer in adapted(model).values():
        layer.active = name
        for other, adapter in layer.lora.items():
            adapter.requires_grad_(other == name)
    lora['active'] = name


def registry(model):
    """What the model knows about its adapters: `active`, and the settings and heads of each."""
    if not hasattr(model, 'lora'):
        raise ValueError('the model has no adapter: '
                         'lora.wrap(model) or lora.load(model, folder) first')
    return model.lora


def merged(model):
    return any(layer.kept is not None for layer in adapted(model).values())


def refuse_merged(model):
    if merged(model):
        raise ValueError(f'adapter {model.lora["active"]!r} is merged into the weights: '
                         'lora.unmerge(model) first')


def mergeable(model):
    """Whether the active adapter can become part of the weights: not if it is more than a change of
    them."""
    how = settings(model)
    return how['kind'] == 'lora' or not how['layers']


@torch.no_grad()
def merge(model, unload=False):
    """Adds the active adapter into the weights, in fp32; it costs nothing from then on. unload:
    leaves plain layers and no adapters, a model like any other."""
    if not mergeable(model):
        kind = settings(model)['kind']
        raise ValueError(f'adapter {model.lora["active"]!r} ({kind}) is no product of two '
                         'matrices, so it cannot be merged')
    dtype = next(model.parameters()).dtype       # of the table, so of what the layers read
    for layer in adapted(model).values():
        adapter = layer.adapter()
        if adapter is not None and layer.kept is None:
            V = adapter.total(layer.weight)
            if adapter.m is not None:
                V = V * adapter.gain(V)[:, None]
            if type(layer) is Held:
                layer.kept = unpack(layer, V.to(dtype))
            else:
                layer.kept = layer.weight.data
                layer.weight.data = V.to(layer.weight.dtype)
        if unload:
            if type(layer) is Held:
                unpack(layer, layer.weight.to(dtype))
            del layer.lora, layer.active, layer.kept
    if unload:
        for m in model.modules():
            m.__class__ = getattr(type(m), 'plain', type(m))
        del model.lora
        model.requires_grad_(True)


def unmerge(model):
    """Puts the weights back that merge has found, the very same numbers."""
    for layer in adapted(model).values():
        if isinstance(layer.kept, tuple):
            pack(layer, *layer.kept)
        elif layer.kept is not None:
            layer.weight.data = layer.kept
        layer.kept = None

# ----------------------------------------------------------------------------------------- files


def settings(model):
    """What the active adapter is, but for its numbers; JSON can hold it."""
    if not registry(model)['active']:
        raise ValueError('no adapter is active: lora.use(model, name) first')
    how = model.lora['adapters'][model.lora['active']]
    return dict(how, heads=list(how['heads']))


def state(model):
    """The numbers of the active adapter by name: all that a checkpoint needs beside its settings
    and the base."""
    params = dict(model.named_parameters())
    numbers = {}
    for name, layer in adapted(model).items():
        if layer.adapter() is not None:
            for leaf, p in layer.adapter().named_parameters():
                numbers[f'{name}.lora_{leaf}'] = p.detach()
    return numbers | {head: params[head].detach() for head in settings(model)['heads']}


SIZES = ('rank', 'experts', 'length', 'width')


def is_sound(what, layer, most):
    """Whether sizes are numbers from 1 to `most`, rows are those of the layer and in order."""
    spans = what.get('spans', [])
    if any(len(span) != 2 or span[0] == span[1] for span in spans):
        return False
    ends = [n for span in spans for n in span]
    numbers = ends + [what[key] for key in (*SIZES, 'hidden') if key in what]
    if any(type(n) is not int for n in numbers):
        return False
    rows = [0, *ends]
    if layer is not None:
        rows.append(layer.out_features)
    return (rows == sorted(rows)
            and all(0 < what.get(key, 1) <= most for key in SIZES)
            and 0 <= what.get('hidden', 0) <= most
            and math.isfinite(what.get('scale', 1))
            and 0 <= what.get('dropout', 0) < 1)


def holds_tensor(settings):
    """Whether a tensor stands anywhere in nested settings. A few bytes of a file can be a tensor of
    a billion numbers, which must not be compared or walked through."""
    if isinstance(settings, dict):
        settings = list(settings.values())
    if isinstance(settings, (list, tuple)):
        return any(holds_tensor(value) for value in settings)
    return isinstance(settings, torch.Tensor)


def check_settings(model, settings, tensors):
    """Raises ValueError if settings that come from a file ask for more than its tensors hold, or
    for rows that the layers do not have."""
    layers = settings['layers']
    if not isinstance(layers, dict):
        raise ValueError('the adapter\'s settings have no layers by name')
    most = max([1, *(n for w in tensors.values() for n in w.shape)])
    ours = linears(model)
    for where, what in [('it', settings), *layers.items()]:
        if not is_sound(what, ours.get(where), most):
            raise ValueError(f'the adapter\'s settings are damaged: {where} has {str(what)[:80]}')


@torch.no_grad()
def load_state(model, settings, tensors, name='default'):
    """The inverse of settings and state: puts the adapter on the model, or new numbers into the one
    of that name."""
    if holds_tensor(settings):
        raise ValueError('the adapter\'s settings are damaged: a tensor stands among them')
    unknown = settings['layers'].keys() - dict(model.named_modules()).keys()
    if unknown:
        raise ValueError(f'the adapter is for a layer {min(unknown)}, which the model has not: '
                         'it is of another model')
    check_settings(model, settings, tensors)
    if name in getattr(model, 'lora', dict(adapters={}))['adapters']:
        use(model, name)
    else:
        attach(model, name, **settings)
    own = state(model)
    if set(own) != set(tensors):
        odd = sorted(set(own) ^ set(tensors))
        raise ValueError(f'the adapter\'s file and its settings differ: {odd[0]} is in one of them')
    for n, p in own.items():
        if p.shape != tensors[n].shape:
            raise ValueError(f'{n}: the model has {tuple(p.shape)}, '
                             f'the adapter\'s file {tuple(tensors[n].shape)}')
        p.copy_(tensors[n])


def save(model, folder):
    """Writes the active adapter as peft does, adapter_config.json and adapter_model.safetensors; if
    peft or transformers has nothing like it, the same files with our names, which only `load`
    reads. -> whether peft reads it"""
    try:
        config, tensors = peft.to_peft(model, settings(model))
    except (ValueError, AttributeError):
        config = dict(settings(model), peft_type='FLATFORMERS')
        tensors = state(model)
    peft.write_files(folder, config, tensors)
    return config['peft_type'] == 'LORA'


def load(model, path, name='default'):
    """Puts a saved adapter on the model, active: a folder of save's or of peft's, or an out_dir or
    .pt file of train.py. -> the model. Raises ValueError if it does not fit."""
    with files.untrusted(path):
        load_state(model, *read_adapter(model, path), name)
    return model


def read_adapter(model, path):
    """-> settings and state of a saved adapter"""
    if not os.path.exists(path):
        raise FileNotFoundError(f'no adapter {path}: expected a folder with adapter_config.json, '
                                'or a run with --adapter')
    if os.path.exists(os.path.join(path, peft.CONFIG)):
        config, tensors = peft.read_files(path)
        if config.pop('peft_type', '') == 'FLATFORMERS':
            return config, tensors
        return peft.from_peft(model, config, tensors)
    if os.path.isdir(path) and not os.path.exists(os.path.join(path, 'ckpt.pt')):
        raise FileNotFoundError(f'no adapter in {path}: expected adapter_config.json, '
                                'or ckpt.pt of a run with --adapter')
    saved = load_checkpoint(path)
    if 'lora' not in saved:
        raise ValueError(f'{path} holds a whole model, no adapter: --init_from={path} opens it')
    return saved['lora'], saved['model']
