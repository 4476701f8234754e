"""Neighbours of LoRA around any of the models: bottleneck adapters, AdaMix's mixture of them, and BitFit.

    adapters.bottleneck(model, 16)                       # Houlsby: behind attention and MLP; match='down': Pfeiffer
    adapters.bottleneck(model, 16, experts=4)            # AdaMix
    adapters.bitfit(model, train='classifier')           # biases alone

They lie on a model as lora.py's do, beside those if there are any: lora.use, lora.save, lora.load, lora.state work
alike. They are no products of two matrices, so they cannot be merged (BitFit needs no merging); peft has no such files.

Papers: bottlenecks Houlsby et al. 2019 (1902.00751) and Pfeiffer et al. 2020 (2005.00247), AdaMix Wang et al. 2022
(2205.12410), BitFit Ben Zaken et al. 2021 (2106.10199).

Where we depart from them: a bottleneck stands right behind the matrix that writes to the residual stream, before the
branch's dropout; its second matrix starts at zero, so that the wrapped model is exactly the base; AdaMix's consistency
loss of two passes is left out.

Letters: O width of the residual stream, r width of the bottleneck, M experts.
"""
import torch
import torch.nn as nn
from torch.nn import functional as F

import lora

activations = dict(gelu=F.gelu, relu=F.relu, silu=F.silu, tanh=torch.tanh)


class Bottleneck(nn.Module):
    """y = W x, then y + U f(D y): Houlsby et al., 2.1. Of several experts training picks D and U at random in each pass
    (AdaMix, 3.1); otherwise their mean serves as one (eq. 6)."""
    def __init__(self, layer, rank, activation='gelu', experts=1, dropout=0.0):
        super().__init__()
        O, W = layer.out_features, layer.weight.detach()
        new = lambda *shape: nn.Parameter(torch.zeros(shape, dtype=torch.promote_types(W.dtype, torch.float32),
                                                      device=W.device))
        self.D, self.d, self.U, self.u = (new(experts, rank, O), new(experts, rank),
                                          new(experts, O, rank), new(experts, O))
        self.activation, self.dropout = activations[activation], dropout
        nn.init.uniform_(self.D, -O ** -0.5, O ** -0.5)

    def forward(self, layer, x):
        y = layer.product(x, layer.bias)
        if self.training and len(self.D) > 1:
            i, j = torch.randint(len(self.D), (2,), device=self.D.device).split(1)
            D, d, U, u = (t.index_select(0, k)[0] for t, k in ((self.D, i), (self.d, i), (self.U, j), (self.u, j)))
        else: D, d, U, u = (t.mean(0) for t in (self.D, self.d, self.U, self.u))
        h = y if torch.is_autocast_enabled(y.device.type) else y.to(D.dtype)
        h = F.dropout(self.activation(F.linear(h, D, d)), self.dropout, self.training)         # (.., r)
        return y + F.linear(h, U, u).to(y.dtype)


lora.kinds['bottleneck'] = Bottleneck


def bottleneck(model, rank=16, match='out,down', activation='gelu', experts=1, dropout=0.0, name='default', train=''):
    """Puts bottlenecks behind the layers that match, freezes all else but the modules named in `train`. -> the model"""
    if rank < 1 or experts < 1: raise ValueError(f'rank={rank}, experts={experts}: expected 1 or more')
    if activation not in activations:
        raise ValueError(f'activation={activation!r}: expected one of {", ".join(activations)}')
    lora.attach(model, name, {n: dict(rank=rank) for n in lora.matching(model, match)}, lora.heads(model, train),
                kind='bottleneck', activation=activation, experts=experts, dropout=dropout)
    return model


def bitfit(model, name='default', train=''):
    """Trains the biases, and the modules named in `train`, and nothing else. -> the model"""
    biases = [n for n, p in model.named_parameters() if n.endswith('bias') and p.ndim == 1 and '.lora.' not in n]
    if not biases:
        raise ValueError('this model has no biases: BitFit has nothing to train; use lora.wrap or adapters.bottleneck')
    lora.attach(model, name, {}, list(dict.fromkeys(biases + lora.heads(model, train))))
    return model
