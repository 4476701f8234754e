"""What a layer becomes that has adapters (lora.py, adapters.py): a module of another class.

Its name, its weight and its place among the modules stay. Its matrix may be held in few bits.

Letters: I inputs and O outputs of a layer.
"""
import functools

import torch
import torch.nn as nn
from torch.nn import functional as F


TINY = 1e-12   # no scale is smaller
INT8 = 127     # the largest number of a row in int8

# ------------------------------------------------------------------- which layers a model has


def linears(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def adapted(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, Adapted)}


def inside(model):
    """The names of all that lies in the blocks."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    return {f'{name}.{inner}' for name, m in lists.items() for inner, _ in m.named_modules()}


def shared(model, p):
    """Whether several modules have this parameter."""
    return sum(q is p for m in model.modules() for q in m._parameters.values()) > 1


# ---------------------------------------------------------------------------- what they become


def zeros(like, *shape):
    """A parameter of zeros, at least in fp32, on the device of another tensor."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return nn.Parameter(torch.zeros(shape, dtype=dtype, device=like.device))


class Adapted:
    """What the class of a module gets that has adapters, of which `active` names the one that
    counts; it may have none. `kept` is the base's matrix while an adapter is merged into the
    layer's."""
    def adapter(self):
        return self.lora[self.active] if self.active in self.lora else None


class Linear(Adapted, nn.Linear):
    plain = nn.Linear                            # what unloading makes of it again

    def product(self, x, bias):
        return F.linear(x, self.weight, bias)

    def base(self):
        """The base's matrix (O, I), also while an adapter is merged."""
        if self.kept is None:
            return self.weight
        if isinstance(self.kept, tuple):
            return spread(*self.kept, torch.float32)
        return self.kept

    def forward(self, x):
        adapter = self.adapter()
        if adapter is None or self.kept is not None:
            return self.product(x, self.bias)
        return adapter(self, x)


class Spread(torch.autograd.Function):
    """x W^T for a matrix in few bits, which is spread out again backward: no matrix of full size
    waits for that."""
    @staticmethod
    def forward(ctx, x, packed, scale):
        ctx.save_for_backward(packed, scale)
        return F.linear(x, spread(packed, scale, x.dtype))

    @staticmethod
    def backward(ctx, g):
        return g @ spread(*ctx.saved_tensors, g.dtype), None, None


def spread(packed, scale, dtype):
    """A matrix in few bits (O, I), and the scale of each row (O, 1) or None -> the matrix"""
    if scale is not None:
        packed = packed * scale
    return packed.to(dtype)


class Held(Linear):
    """A frozen layer whose matrix is held in bf16, or in int8 with a scale for each row: 127 is the
    row's largest."""
    @property
    def weight(self):
        return spread(self.packed, self.scale, torch.float32)

    def product(self, x, bias):
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        y = Spread.apply(x, self.packed, self.scale)
        return y if bias is None else y + bias.to(y.dtype)


@functools.cache
def variant(cls, mixin):
    """The class with the methods of a mixin in front of its own; in all other respects it stays
    what it was."""
    if issubclass(cls, mixin):
        return cls
    plain = getattr(cls, 'plain', cls)
    return type(cls.__name__, (mixin, cls), dict(__module__=cls.__module__, plain=plain))


def become(layer, mixin=Adapted):
    """Makes a layer one that can have adapters. -> the layer"""
    if not isinstance(layer, Adapted):
        layer.__class__ = Linear if type(layer) is nn.Linear else variant(type(layer), mixin)
        layer.lora = nn.ModuleDict()
        layer.active = ''
        layer.kept = None
    return layer


def pack(layer, packed, scale=None):
    """Makes a layer one whose matrix is held in few bits."""
    layer._parameters.pop('weight', None)
    layer.__class__ = Held
    layer.register_buffer('packed', packed)
    layer.register_buffer('scale', scale)


def unpack(layer, W):
    """Gives a held layer the matrix W in full. -> what pack takes to hold the old one again"""
    packed = layer._buffers.pop('packed')
    scale = layer._buffers.pop('scale')
    layer.__class__ = Linear
    layer.weight = nn.Parameter(W, requires_grad=False)
    return packed, scale


def hold(model, bits):
    """Keeps the frozen linear layers of the blocks in 16 bits (bf16) or 8 (int8); not tables, norms
    and heads."""
    within = inside(model)
    for name, layer in linears(model).items():
        if type(layer) is Held or layer.weight.requires_grad or name not in within:
            continue
        if shared(model, layer.weight):
            continue
        W = become(layer).weight.detach()
        if bits == 16:
            pack(layer, W.bfloat16())
        else:
            scale = W.float().abs().amax(dim=1, keepdim=True).clamp(min=TINY) / INT8     # (O, 1)
            pack(layer, (W / scale).round().to(torch.int8), scale)
