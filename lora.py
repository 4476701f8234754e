"""Low-rank adapters (LoRA) around any of the models: the base stays as it is, a few small matrices learn.

    python train.py --init_from=out/gpt --data=my.txt --out_dir=out/mine --lora_rank=8     # out/mine holds them alone
    python sample.py --out_dir=out/gpt --lora=out/mine --prompt="def main("

From Python: `lora.wrap(model, rank=8, alpha=16)` after the weights are loaded and before torch.compile, DDP and the
optimizer; then train; `lora.save(model, folder)` writes what peft reads, `lora.load(model, folder)` reads ours and
peft's. Several adapters may lie on one base under different names, `lora.use(model, name)` switches between them, '' is
the base. `lora.merge(model)` adds the product into the weights, `lora.unmerge(model)` puts the old ones back, bit for
bit, and `lora.merge(model, unload=True)` leaves a plain model. Nothing else does: train() and eval() are torch's own.

A model calls its layers and never reads their weights, so a layer is wrapped where it stands: its class changes, its
name, its weight and its place among the modules do not. Grouped projections (qkv, kv, gate and up) have a `.parts`;
each part is adapted by itself. The weights of all of them lie in one pair: A, the (r, I) of each below one another, and
B, the rows (r) of each below one another, which `wide` puts at their own columns. So an input is multiplied twice
however many parts.

Papers: LoRA Hu et al. 2021 (2106.09685), rank-stabilised scaling Kalajdzievski 2023 (2312.03732), DoRA Liu et al. 2024
(2402.09353), frozen weights in few bits Dettmers et al. 2023 (2305.14314).

Where we depart from them: DoRA's dropout is on the low-rank branch alone; 8-bit weights are plain int8 with a scale for
each row (QLoRA has 4-bit floats); what parts of a grouped projection share is one dropout mask.

Letters: I inputs and O outputs of a layer, r rank, n adapted parts of a layer.
"""
import bisect, collections, functools, json, math, os, re, sys, types

import torch
import torch.nn as nn
from torch.nn import functional as F

from data import files
from lib import models
from lib.checkpoint import load_checkpoint

# ---------------------------------------------------------------------------------------------------- layers

class Adapter(nn.Module):
    """One adapter's numbers at one layer. spans: the layer's rows that it adapts, [[first, end], ...], n of them."""
    def __init__(self, layer, spans, rank, scale, dropout=0.0, dora=False):
        super().__init__()
        W = layer.weight.detach()
        self.spans, self.rank, self.scale, self.dropout, self.outputs = (
            [list(s) for s in spans], rank, scale, dropout, len(W))
        new = lambda *shape: nn.Parameter(torch.zeros(shape, dtype=torch.promote_types(W.dtype, torch.float32),
                                                      device=W.device))
        self.A, self.B = new(len(spans) * rank, W.size(1)), new(len(self.rows()), rank)        # (n r, I), (rows, r)
        self.m = nn.Parameter(W.to(self.A.dtype).norm(dim=1)[self.rows()]) if dora else None   # (rows,): DoRA, eq. 5
        nn.init.kaiming_uniform_(self.A, math.sqrt(5))                     # U(-1, 1)/sqrt(I); B = 0: starts as the base

    def rows(self): return torch.cat([torch.arange(a, b) for a, b in self.spans])

    def wide(self):
        """-> B as (O, n r): each part's rows at the columns that are its own"""
        if self.spans == [[0, self.outputs]]: return self.B
        wide, r, at = self.B.new_zeros(self.outputs, len(self.A)), self.rank, 0
        for i, (a, b) in enumerate(self.spans): wide[a:b, i * r:(i + 1) * r], at = self.B[at:at + b - a], at + b - a
        return wide

    def forward(self, layer, x):
        h = F.dropout(x, self.dropout, self.training)
        if not torch.is_autocast_enabled(x.device.type): h = h.to(self.A.dtype)
        z = self.scale * F.linear(F.linear(h, self.A), self.wide())        # (.., O): s B A x
        y = layer.product(x, layer.bias if self.m is None else None)
        if self.m is None: return y + z.to(y.dtype)
        with torch.no_grad(): V = self.total(layer.weight)                 # 4.3: its norm is a constant of the gradient
        # m (W x + s B A x) / ||V||
        return ((y + z) * self.gain(V) + (0 if layer.bias is None else layer.bias)).to(y.dtype)

    def total(self, W):
        """eq. 3: W + s B A, in fp32 (O, I)"""
        exact = torch.promote_types(self.A.dtype, torch.float32)
        return W.to(exact) + self.scale * (self.wide().to(exact) @ self.A.to(exact))

    def gain(self, V):
        """DoRA, eq. 5: m / ||V|| for V = W + s B A, the norm of a row, without a gradient (4.3) -> (O,)"""
        norm, at = V.norm(dim=1).clamp(min=1e-12), 0
        gain = torch.ones_like(norm)
        for a, b in self.spans: gain[a:b], at = self.m[at:at + b - a] / norm[a:b], at + b - a
        return gain


class Adapted:
    """What the class of a module gets that has adapters, of which `active` names the one that counts; it may have none.
    `kept` is the base's matrix while an adapter is merged into the layer's."""
    def adapter(self): return self.lora[self.active] if self.active in self.lora else None


class Linear(Adapted, nn.Linear):
    plain = nn.Linear                                                      # what unloading makes of it again

    def product(self, x, bias): return F.linear(x, self.weight, bias)

    def base(self):
        if self.kept is None: return self.weight
        return spread(*self.kept, torch.float32) if isinstance(self.kept, tuple) else self.kept

    def forward(self, x):
        a = self.adapter()
        return self.product(x, self.bias) if a is None or self.kept is not None else a(self, x)


class Spread(torch.autograd.Function):
    """x W^T for a matrix in few bits, which is spread out again backward: none of full size waits for that."""
    @staticmethod
    def forward(ctx, x, packed, scale):
        ctx.save_for_backward(packed, scale)
        return F.linear(x, spread(packed, scale, x.dtype))
    @staticmethod
    def backward(ctx, g): return g @ spread(*ctx.saved_tensors, g.dtype), None, None


def spread(packed, scale, dtype): return (packed if scale is None else packed * scale).to(dtype)


class Held(Linear):
    """A frozen layer whose matrix is held in bf16, or in int8 with a scale for each row: 127 is the row's largest."""
    @property
    def weight(self): return spread(self.packed, self.scale, torch.float32)

    def product(self, x, bias):
        device = x.device.type
        y = Spread.apply(x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x,
                         self.packed, self.scale)
        return y if bias is None else y + bias.to(y.dtype)


@functools.cache
def variant(cls, mixin):
    """The class with the methods of a mixin in front of its own; in all other respects it stays what it was."""
    if issubclass(cls, mixin): return cls
    return type(cls.__name__, (mixin, cls), dict(__module__=cls.__module__, plain=getattr(cls, 'plain', cls)))


def become(layer, mixin=Adapted):
    if not isinstance(layer, Adapted):
        layer.__class__ = Linear if type(layer) is nn.Linear else variant(type(layer), mixin)
        layer.lora, layer.active, layer.kept = nn.ModuleDict(), '', None
    return layer


def pack(layer, packed, scale=None):
    layer._parameters.pop('weight', None)
    layer.__class__ = Held
    layer.register_buffer('packed', packed), layer.register_buffer('scale', scale)


def unpack(layer, W):
    """-> what pack takes. The layer's matrix is W from now on."""
    held = layer._buffers.pop('packed'), layer._buffers.pop('scale')
    layer.__class__ = Linear
    layer.weight = nn.Parameter(W, requires_grad=False)
    return held


def hold(model, bits):
    """Keeps the frozen linear layers of the blocks in 16 bits (bf16) or 8 (int8); not tables, norms and heads."""
    within = inside(model)
    for name, layer in linears(model).items():
        if type(layer) is Held or layer.weight.requires_grad or name not in within: continue
        if shared(model, layer.weight): continue
        W = become(layer).weight.detach()
        scale = W.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127                # (O, 1)
        pack(layer, *((W.bfloat16(),) if bits == 16 else ((W / scale).round().to(torch.int8), scale)))

# ---------------------------------------------------------------------------------------------------- which layers

def linears(model): return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
def adapted(model): return {n: m for n, m in model.named_modules() if isinstance(m, Adapted)}

def inside(model):
    """Names of all that lies in the blocks."""
    return {f'{n}.{inner}' for n, m in model.named_modules() if isinstance(m, nn.ModuleList)
            for inner, _ in m.named_modules()}

def shared(model, p): return sum(q is p for m in model.modules() for q in m._parameters.values()) > 1


def parted(layer):
    """-> {part: [first row, end]}, or the whole layer as the part ''"""
    spans, at = {}, 0
    for part, rows in getattr(layer, 'parts', {}).items(): spans[part], at = [at, at + rows], at + rows
    return spans or {'': [0, layer.out_features]}


def matching(model, match):
    """'q,v' -> {name of a layer: [rows of each adapted part]}. A word names a part (q), a layer (out, or qkv: its parts
    as one), or more of the way there (cross.q, blocks.0.mlp.down); 'all': all parts of linear layers in the blocks"""
    layers, within, found, names = linears(model), inside(model), collections.defaultdict(list), {}
    for n, layer in layers.items():
        names.update({'.'.join([*n.split('.')[:-1], part or n.split('.')[-1]]): (n, span)
                      for part, span in parted(layer).items()})
        names.setdefault(n, (n, [0, layer.out_features]))                  # unless a part has the layer's own name: up
    for word in filter(None, (w.strip() for w in match.split(','))):
        chosen = [hit for name, hit in names.items() if f'.{name}'.endswith(f'.{word}')]
        if word == 'all':
            chosen = [(n, span) for n in layers if n in within for span in parted(layers[n]).values()]
        if not chosen:
            raise ValueError(f'match={word!r} fits no linear layer: this model has '
                             f'{", ".join(dict.fromkeys(n.split(".")[-1] for n in names))}; '
                             'all takes those of the blocks')
        for n, span in chosen:
            if shared(model, layers[n].weight):
                raise ValueError(f'{n}: its matrix is the table of tokens too, and an adapter on one of the two would '
                                 f'tear them apart: leave {word!r} out, or untie them')
            if span not in found[n]: found[n].append(span)
    if not found: raise ValueError(f'match={match!r} names no layer: try q,v or all')
    for n, spans in found.items():
        spans.sort()
        if any(a[1] > b[0] for a, b in zip(spans, spans[1:])):
            raise ValueError(f'{match!r} has {n} as a whole and its parts too: name one or the other')
    return dict(found)

# -------------------------------------------------------------------------------------------------- wrap, switch, merge

def wrap(model, rank=8, alpha=16.0, match='q,v', dropout=0.0, rslora=False, dora=False, name='default', train='',
         bits=0):
    """h = W x + (alpha / rank) B A x (LoRA, eq. 3) on the layers that match; all else is frozen. rslora: alpha /
    sqrt(rank). train: names of modules or parameters that are trained whole and saved with the adapter, such as a new
    classifier. bits: 8 or 16 hold the frozen layers of the blocks in so many bits. -> the model, `name` active."""
    if rank < 1: raise ValueError(f'rank={rank}: expected 1 or more')
    if bits not in (0, 8, 16): raise ValueError(f'bits={bits}: expected 8 (int8), 16 (bf16) or 0, the base as it is')
    if not 0 <= dropout < 1: raise ValueError(f'dropout={dropout}: expected 0 or more and under 1')
    scale = alpha / (math.sqrt(rank) if rslora else rank)
    attach(model, name, {n: dict(spans=spans, rank=rank, scale=scale) for n, spans in matching(model, match).items()},
           heads(model, train), rslora=rslora, dropout=dropout, dora=dora)
    if bits: hold(model, bits)
    return model


def heads(model, train):
    """'classifier,pooler' -> names of the parameters in these modules"""
    found = []
    for word in filter(None, (w.strip() for w in train.split(','))):
        found += (hits := [n for n, _ in model.named_parameters() if f'{n}.'.startswith(f'{word}.')])
        if not hits:
            raise ValueError(f'train={train!r}: the model has no {word!r}; '
                             f'it has {", ".join(n for n, _ in model.named_children())}')
    return found


# adapters.py has more. A kind may have into(layer) -> the mixin that a layer which is not linear gets, and
# settle(model, name), called when all of an adapter's layers have theirs
kinds = {'lora': Adapter}


def attach(model, name, layers, heads=(), kind='lora', rslora=False, **how):
    """Puts a new adapter on a model. layers: {name: dict(spans, rank, scale)}, heads: names of the parameters trained
    whole, how: what the kind of adapter takes besides."""
    params, have = (dict(model.named_parameters()),
                    getattr(model, 'lora', dict(active='', adapters={'': dict(heads={})})))
    if merged(model):
        raise ValueError(f'adapter {model.lora["active"]!r} is merged into the weights: lora.unmerge(model) first')
    if kind not in kinds:
        raise ValueError(f'an adapter of the kind {kind!r}: lora.py knows {", ".join(kinds)}; '
                         'others need `import adapters`')
    if name in have['adapters']: raise ValueError(f'the model has an adapter {name!r}: give another name')
    if not re.fullmatch(r'\w+', name) or hasattr(nn.ModuleDict, name):
        raise ValueError(f'adapter {name!r}: expected a name of letters, digits and _')
    if tied := [n for n in heads if shared(model, params[n])]:
        raise ValueError(f'{tied[0]} is shared with another module, so it cannot be trained beside an adapter: '
                         'untie it')
    made = kinds[kind]
    for n, what in layers.items():
        layer = model.get_submodule(n)
        become(layer, made.into(layer) if hasattr(made, 'into') else Adapted)
        layer.lora[name] = made(layer, **what, **how).train(layer.training)
    model.lora, base = have, have['adapters']['']['heads']
    base.update({n: params[n].detach().clone() for n in heads if n not in base})              # what '' switches back to
    have['adapters'][name] = dict(how, heads={n: base[n].clone() for n in heads}, layers=layers, kind=kind,
                                  rslora=rslora)
    model.requires_grad_(False)
    use(model, name)
    if hasattr(made, 'settle'): made.settle(model, name)


@torch.no_grad()
def use(model, name):
    """Switches to an adapter; '' is the base alone. Only its numbers, and the heads saved with it, are trained then."""
    lora, params = registry(model), dict(model.named_parameters())
    if name not in lora['adapters']:
        raise ValueError(f'no adapter {name!r}: the model has {", ".join(filter(None, lora["adapters"]))}')
    if merged(model):
        raise ValueError(f'adapter {lora["active"]!r} is merged into the weights: lora.unmerge(model) first')
    old, new, base = (lora['adapters'][n]['heads'] for n in (lora['active'], name, ''))
    old.update({n: params[n].clone() for n in old})                        # what it has learned meanwhile
    for n in base: params[n].copy_(new.get(n, base[n])).requires_grad_(n in new and name != '')
    for layer in adapted(model).values():
        layer.active = name
        for n, a in layer.lora.items(): a.requires_grad_(n == name)
    lora['active'] = name


def registry(model):
    if not hasattr(model, 'lora'):
        raise ValueError('the model has no adapter: lora.wrap(model) or lora.load(model, folder) first')
    return model.lora

def merged(model): return any(layer.kept is not None for layer in adapted(model).values())

def mergeable(model):
    """Can the active adapter become part of the weights? Not if it is more than a change of them."""
    how = settings(model)
    return how['kind'] == 'lora' or not how['layers']


@torch.no_grad()
def merge(model, unload=False):
    """Adds the active adapter into the weights, in fp32; it costs nothing from then on. unload: leaves plain layers and
    no adapters, a model like any other."""
    if not mergeable(model):
        raise ValueError(f'adapter {model.lora["active"]!r} ({settings(model)["kind"]}) is no product of two matrices, '
                         'so it cannot be merged')
    dtype = next(model.parameters()).dtype                                 # of the table, so of what the layers read
    for layer in adapted(model).values():
        a = layer.adapter()
        if a is not None and layer.kept is None:
            V = a.total(layer.weight)
            if a.m is not None: V = V * a.gain(V)[:, None]
            if type(layer) is Held: layer.kept = unpack(layer, V.to(dtype))
            else: layer.kept, layer.weight.data = layer.weight.data, V.to(layer.weight.dtype)
        if not unload: continue
        if type(layer) is Held: unpack(layer, layer.weight.to(dtype))
        del layer.lora, layer.active, layer.kept
    if unload:
        for m in model.modules(): m.__class__ = getattr(type(m), 'plain', type(m))
        del model.lora
        model.requires_grad_(True)


def unmerge(model):
    """Puts the weights back that merge has found, the very same numbers."""
    for layer in adapted(model).values():
        if isinstance(layer.kept, tuple): pack(layer, *layer.kept)
        elif layer.kept is not None: layer.weight.data = layer.kept
        layer.kept = None

# ---------------------------------------------------------------------------------------------------- files

def settings(model):
    """What the active adapter is, but for its numbers; JSON can hold it."""
    if not registry(model)['active']: raise ValueError('no adapter is active: lora.use(model, name) first')
    how = model.lora['adapters'][model.lora['active']]
    return dict(how, heads=list(how['heads']))


def state(model):
    """The numbers of the active adapter by name: all that a checkpoint needs beside its settings and the base."""
    params, out = dict(model.named_parameters()), {}
    for n, layer in adapted(model).items():
        if layer.adapter() is not None:
            out.update({f'{n}.lora_{k}': p.detach() for k, p in layer.adapter().named_parameters()})
    return out | {n: params[n].detach() for n in settings(model)['heads']}


def check_settings(model, settings, tensors):
    """Settings that come from a file: sizes are those of its tensors, rows are those of the layer."""
    layers, most = settings['layers'], max([1, *(n for t in tensors.values() for n in t.shape)])
    if not isinstance(layers, dict): raise ValueError('the adapter\'s settings have no layers by name')
    sizes = 'rank', 'experts', 'length', 'width'
    for where, what in [('it', settings), *layers.items()]:
        spans = what.get('spans', [])
        numbers = [what[k] for k in (*sizes, 'hidden') if k in what] + [n for s in spans for n in s]
        layer = linears(model).get(where)
        rows = [0, *(n for s in spans for n in s), *([layer.out_features] if layer else [])]
        if (any(type(n) is not int for n in numbers) or any(len(s) != 2 or s[0] == s[1] for s in spans)
                or rows != sorted(rows) or any(not 0 < what.get(k, 1) <= most for k in sizes)
                or not 0 <= what.get('hidden', 0) <= most
                or not math.isfinite(what.get('scale', 1)) or not 0 <= what.get('dropout', 0) < 1):
            raise ValueError(f'the adapter\'s settings are damaged: {where} has {str(what)[:80]}')


@torch.no_grad()
def load_state(model, settings, tensors, name='default'):
    """The inverse of settings and state: puts the adapter on the model, or new numbers into the one of that name."""
    if unknown := settings['layers'].keys() - dict(model.named_modules()).keys():
        raise ValueError(f'the adapter is for a layer {min(unknown)}, which the model has not: it is of another model')
    check_settings(model, settings, tensors)
    if name not in getattr(model, 'lora', dict(adapters={}))['adapters']: attach(model, name, **settings)
    else: use(model, name)
    own = state(model)
    if set(own) != set(tensors):
        raise ValueError('the adapter\'s file and its settings differ: '
                         f'{sorted(set(own) ^ set(tensors))[0]} is in one of them')
    for n, p in own.items():
        if p.shape != tensors[n].shape:
            raise ValueError(f'{n}: the model has {tuple(p.shape)}, the adapter\'s file {tuple(tensors[n].shape)}')
        p.copy_(tensors[n])


def hf_places(model):
    """{tensor in transformers' layout: (our parameter, its rows in their order, whether theirs lies on its side)}. The
    model file's own to_hf tells it: instead of weights it is given one column of numbers, each row its own."""
    marks, starts, names = {}, [], []
    for prefix, module in model.named_modules():
        if 'lora' in prefix.split('.'): continue
        for leaf in [k for k, p in module._parameters.items() if p is not None] + ['weight'] * (type(module) is Held):
            p, name = getattr(module, leaf), f'{prefix}.{leaf}'.lstrip('.')
            starts.append(starts[-1] + marks[names[-1]].numel() if names else 1), names.append(name)
            marks[name] = torch.arange(starts[-1], starts[-1] + len(p)).view(-1, *[1] * (p.ndim - 1))
    layout = models.layout_of(sys.modules[type(model).__module__])
    _, theirs = layout.to_hf(types.SimpleNamespace(config=model.config, state_dict=lambda: marks,
                                                   get_submodule=model.get_submodule))
    found = {}
    for name, w in theirs.items():
        rows = w.flatten().long()
        i = bisect.bisect(starts, int(rows[0])) - 1
        if i >= 0: found[name] = names[i], rows - starts[i], w.ndim == 2 and len(w) < len(rows)
    return found


@torch.no_grad()
def to_peft(model):
    """-> adapter_config.json as a dict, tensors by peft's names. Parts of ours that are one module there become one
    adapter of n r columns, B in blocks. ValueError if transformers has no such model, or peft no such adapter."""
    how, tensors, found, covered, lies = settings(model), {}, {}, collections.Counter(), False
    if how['kind'] != 'lora' or not how['layers']:
        raise ValueError(f'peft has no adapters like {model.lora["active"]!r}')
    params, layers, there = dict(model.named_parameters()), linears(model), hf_places(model)
    for theirs, (ours, rows, turned) in there.items():
        module, n = theirs.removesuffix('.weight'), ours.removesuffix('.weight')
        if ours in how['heads']:
            tensors[f'base_model.model.{theirs}'], covered[ours] = (
                params[ours][rows].t() if turned else params[ours][rows], 1)
        if n not in how['layers'] or n == ours: continue
        a = layers[n].adapter()
        hit = [i for i, (first, end) in enumerate(a.spans) if ((first <= rows) & (rows < end)).any()]
        if not hit: continue
        columns = torch.cat([torch.arange(i * a.rank, (i + 1) * a.rank) for i in hit])
        r, at, lies = len(columns), f'base_model.model.{module}.lora_', turned
        tensors[at + 'A.weight'], tensors[at + 'B.weight'] = a.A[columns], a.wide()[rows][:, columns]
        if a.m is not None:
            m = layers[n].base().to(a.m.dtype).norm(dim=1)
            m[a.rows()] = a.m                                              # rows without an adapter keep their length
            tensors[at + 'magnitude_vector'] = m[rows]
        found[module] = r, round(a.scale * (math.sqrt(r) if how['rslora'] else r), 9)          # rank and alpha
        covered[n] += int(torch.isin(a.rows(), rows).sum())
    wanted = {n: sum(b - a for a, b in x['spans']) for n, x in how['layers'].items()} | dict.fromkeys(how['heads'], 1)
    if missing := [n for n, k in wanted.items() if covered[n] < k]:
        raise ValueError(f'transformers has no {missing[0]}')
    def short(names):  # the shortest ends of names that no other module has
        ends = lambda n: ('.'.join(n.split('.')[-k:]) for k in range(1, n.count('.') + 2))
        others = {t.rpartition('.')[0] for t in there} - set(names)
        return list(dict.fromkeys(next(e for e in ends(n) if not any(f'.{o}'.endswith(f'.{e}') for o in others))
                                  for n in names))
    (r, alpha), _ = collections.Counter(found.values()).most_common(1)[0]
    odd = {v: short([n for n in found if found[n] == v]) for v in set(found.values()) - {(r, alpha)}}
    return dict(peft_type='LORA', task_type=None, base_model_name_or_path='', r=r, lora_alpha=alpha,
                lora_dropout=how['dropout'], target_modules=short(list(found)), fan_in_fan_out=lies,
                use_rslora=how['rslora'], use_dora=how['dora'], bias='none', inference_mode=True,
                rank_pattern={e: v[0] for v, es in odd.items() for e in es},
                alpha_pattern={e: v[1] for v, es in odd.items() for e in es},
                modules_to_save=list(dict.fromkeys(t.rpartition('.')[0] for t, (ours, *_) in there.items()
                                                   if ours in how['heads'])) or None), tensors


def save(model, folder):
    """Writes the active adapter as peft does, adapter_config.json and adapter_model.safetensors; if peft or
    transformers has nothing like it, the same files with our names, which only `load` reads. -> does peft read it"""
    try: config, tensors = to_peft(model)
    except (ValueError, AttributeError): config, tensors = dict(settings(model), peft_type='FLATFORMERS'), state(model)
    os.makedirs(folder, exist_ok=True)
    files.write_safetensors(os.path.join(folder, 'adapter_model.safetensors'),
                            {k: v.contiguous() for k, v in tensors.items()})
    files.write_atomic(os.path.join(folder, 'adapter_config.json'),
                       lambda f: f.write(json.dumps(config, indent=2).encode()))
    return config['peft_type'] == 'LORA'


def load(model, path, name='default'):
    """Puts a saved adapter on the model, active: a folder of save's or of peft's, or an out_dir or .pt file of
    train.py. -> the model. ValueError if it does not fit."""
    with files.untrusted(path): return read_adapter(model, path, name)


def read_adapter(model, path, name):
    config_file = os.path.join(path, 'adapter_config.json')
    if not os.path.exists(path):
        raise FileNotFoundError(f'no adapter {path}: expected a folder with adapter_config.json, '
                                'or a run with --adapter')
    if not os.path.exists(config_file):
        if os.path.isdir(path) and not os.path.exists(os.path.join(path, 'ckpt.pt')):
            raise FileNotFoundError(f'no adapter in {path}: '
                                    'expected adapter_config.json, or ckpt.pt of a run with --adapter')
        saved = load_checkpoint(path)
        if 'lora' not in saved: raise ValueError(f'{path} holds a whole model, no adapter: --init_from={path} opens it')
        load_state(model, saved['lora'], saved['model'], name)
        return model
    config = files.read_json(config_file)
    file, old = (os.path.join(path, 'adapter_model.' + end) for end in ('safetensors', 'bin'))
    tensors = (files.read_safetensors(file) if os.path.exists(file) or not os.path.exists(old)
               else files.are_weights(files.read_pickle(old), old))
    if config.pop('peft_type', '') == 'FLATFORMERS': load_state(model, config, tensors, name)
    else: load_state(model, *from_peft(model, config, tensors), name)
    return model


def from_peft(model, config, tensors):
    """peft's adapter_config.json and tensors -> settings and state for load_state. Modules of theirs that are one layer
    here become parts of one adapter; a lower rank among them is filled up with zeros."""
    if config.get('r') is None: raise ValueError('adapter_config.json has no "r": expected one of peft\'s LoRA')
    plain = dict(bias='none', lora_bias=False, use_qalora=False, use_bdlora=None, layer_replication=None,
                 target_parameters=None, trainable_token_indices=None, alora_invocation_tokens=None)
    for key, value in plain.items():
        if config.get(key) not in (value, None, False):
            raise ValueError(f'adapter_config.json: {key}={config[key]!r}, lora.py knows only {value!r}')
    if str(config.get('init_lora_weights')).startswith(('pissa', 'olora', 'corda', 'loftq', 'lora_ga')):
        raise ValueError(f'adapter_config.json: init_lora_weights={config["init_lora_weights"]!r} has changed the '
                         'base: save it with peft\'s path_initial_model_for_weight_conversion')
    import regex                                                           # re has no timeout
    there, groups, heads = hf_places(model), collections.defaultdict(dict), {}
    params, rs, dora = dict(model.named_parameters()), bool(config.get('use_rslora')), bool(config.get('use_dora'))
    def place(theirs):  # with or without the prefix of a class with a head
        hits = ([n for n in there if n == theirs]
                or [n for n in there if n.endswith('.' + theirs) or theirs.endswith('.' + n)])
        if len(hits) != 1:
            raise ValueError(f'the adapter has {theirs}, which this model has not: it is of another model')
        return there[hits[0]]
    def pattern(key, module, default):
        given = (config.get(key) or {}).items()                            # a bad pattern could take for ever
        try: return next((v for k, v in given if regex.match(rf'(.*\.)?({k})$', module, timeout=1)), default)
        except TimeoutError: raise ValueError(f'adapter_config.json: a pattern of its {key} takes for ever') from None
    for key, w in tensors.items():
        module, leaf = re.fullmatch(r'(?:base_model\.model\.)?(.+?)(?:\.lora_(A|B|magnitude_vector)(?:\.weight)?)?',
                                    key).groups()
        if leaf:
            ours, rows, _ = place(module + '.weight')
            groups[ours.removesuffix('.weight')].setdefault(module, dict(rows=rows))[leaf] = w.float()
            continue
        ours, rows, turned = place(module)
        new = heads.setdefault(ours, params[ours].detach().clone())        # padded rows of a table stay
        if (w := w.t() if turned else w).shape != new[rows].shape:
            raise ValueError(f'{key} is {tuple(w.shape)}, the model has {tuple(new[rows].shape)}')
        new[rows] = w.to(new)
    layers, state = {}, {}
    for n, modules in groups.items():
        layer, parts = linears(model).get(n), {}
        for module, x in modules.items():
            rows, (A, B) = x['rows'], (x.get(k) for k in 'AB')
            if (layer is None or A is None or B is None or A.shape != (B.size(1), layer.in_features)
                    or len(B) != len(rows) or dora != ('magnitude_vector' in x)):
                raise ValueError(f'{module}: its lora_A, lora_B or magnitude does not fit the model\'s layer {n}')
            alpha = pattern('alpha_pattern', module, config.get('lora_alpha', 8))
            order = rows.argsort()                                         # their row j is our rows[j]
            parts[int(rows.min()), int(rows.max()) + 1] = (
                A, B[order], alpha / (math.sqrt(len(A)) if rs else len(A)),
                x['magnitude_vector'][order] if dora else None)
        spans, parts = zip(*sorted(parts.items()))
        rank, scale = max(len(A) for A, *_ in parts), parts[0][2]
        layers[n] = dict(spans=[list(s) for s in spans], rank=rank, scale=scale)
        state[n + '.lora_A'] = torch.cat([F.pad(A, (0, 0, 0, rank - len(A))) for A, *_ in parts])             # (n r, I)
        state[n + '.lora_B'] = torch.cat([F.pad(B * (s / scale), (0, rank - B.size(1)))
                                          for _, B, s, _ in parts])                                          # (rows, r)
        if dora: state[n + '.lora_m'] = torch.cat([m for *_, m in parts])
    return (dict(layers=layers, heads=list(heads), dropout=config.get('lora_dropout', 0.0), rslora=rs, dora=dora),
            state | heads)
