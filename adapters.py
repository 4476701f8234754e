"""Neighbours of LoRA around any of the models: bottlenecks, AdaMix's mixture of them, prefixes, prompts, and BitFit.

    python train.py --init_from=out/bert --data=my.jsonl --out_dir=out/mine --adapter=prefix --adapter_size=20
    python sample.py --init_from=out/bert --lora=out/mine --classify=TEXT                # or --out_dir=out/mine

From Python, after the weights are loaded and before torch.compile, DDP and the optimizer:

    adapters.bottleneck(model, 16)                       # Houlsby: behind attention and MLP; match='down': Pfeiffer
    adapters.bottleneck(model, 16, 'down', experts=4, consistency=1.0)   # AdaMix, with its loss on labelled data
    adapters.prefix(model, 20, hidden=256)               # keys and values in every layer; hidden=0: P-tuning v2
    adapters.prompt(model, 20)                           # vectors in front of the embedded input
    adapters.bitfit(model, train='classifier')           # biases alone

They lie on a model as lora.py's do, beside those if there are any: lora.use, lora.save, lora.load, lora.state work
alike. They are no products of two matrices, so they cannot be merged (BitFit needs no merging); peft has no such files.

Papers: bottlenecks Houlsby et al. 2019 (1902.00751) and Pfeiffer et al. 2020 (2005.00247), AdaMix Wang et al. 2022
(2205.12410), prefix tuning Li and Liang 2021 (2101.00190), P-tuning v2 Liu et al. 2021 (2110.07602), prompt tuning
Lester et al. 2021 (2104.08691), BitFit Ben Zaken et al. 2021 (2106.10199).

Where we depart from them: a bottleneck stands right behind the matrix that writes to the residual stream, before the
branch's dropout; its second matrix starts at zero, so that the wrapped model is exactly the base. Tokens keep their
positions behind a prefix or prompt, and virtual tokens have none of their own (their vectors hold it); a prefix's
values start at zero, which is as near to the base as a prefix comes; all its layers share the first half of its MLP. In
a causal decoder nothing that virtual tokens see depends on the text, so a prompt is run once for a whole batch, and the
text reads its keys and values; neither a sliding window nor ALiBi's distances hide them.

Letters: B batch, O width of the residual stream, E of the embedding, r width of the bottleneck, M experts, P virtual
tokens, S keys, G key/value heads, D head width.
"""
import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import lora

activations = dict(gelu=F.gelu, relu=F.relu, silu=F.silu, tanh=torch.tanh)


def numbers(like, *shape):
    return nn.Parameter(torch.zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device))

# ---------------------------------------------------------------------------------------------------- bottlenecks

class Bottleneck(nn.Module):
    """y = W x, then y + U f(D y): Houlsby et al., 2.1. Of several experts training picks D and U at random in each pass
    (AdaMix, 3.1); otherwise their mean serves as one (eq. 6)."""
    def __init__(self, layer, rank, activation='gelu', experts=1, dropout=0.0, consistency=0.0):
        super().__init__()
        O, W = layer.out_features, layer.weight.detach()
        self.D, self.d, self.U, self.u = (numbers(W, experts, rank, O), numbers(W, experts, rank),
                                          numbers(W, experts, O, rank), numbers(W, experts, O))
        self.activation, self.dropout, self.consistency = activations[activation], dropout, consistency
        nn.init.uniform_(self.D, -O ** -0.5, O ** -0.5)

    @staticmethod
    def settle(model, name):
        if model.lora['adapters'][name].get('consistency'): model.__class__ = lora.variant(type(model), Consistent)

    def forward(self, layer, x):
        y = layer.product(x, layer.bias)
        if self.training and len(self.D) > 1:
            i, j = torch.randint(len(self.D), (2,), device=self.D.device).split(1)
            D, d, U, u = (t.index_select(0, k)[0] for t, k in ((self.D, i), (self.d, i), (self.U, j), (self.u, j)))
        else: D, d, U, u = (t.mean(0) for t in (self.D, self.d, self.U, self.u))
        h = y if torch.is_autocast_enabled(y.device.type) else y.to(D.dtype)
        h = F.dropout(self.activation(F.linear(h, D, d)), self.dropout, self.training)         # (.., r)
        return y + F.linear(h, U, u).to(y.dtype)


class Consistent:
    """A model of labelled data whose loss in training is AdaMix's eq. 4: that of one random routing, plus half of the
    symmetric divergence from the classes that another one finds, times `consistency`."""
    said = None

    def logits(self, *inputs):
        y = super().logits(*inputs)
        if self.training: self.said = y
        return y

    def forward(self, *arrays, totals=None):
        loss, stats = super().forward(*arrays, totals=totals)
        weight = self.lora['adapters'][self.lora['active']].get('consistency', 0)
        if not self.training or not weight: return loss, stats
        (*inputs, targets), p = arrays, self.said.float().log_softmax(-1)  # (B, classes)
        q = self.logits(*inputs).float().log_softmax(-1)
        self.said, real = None, targets >= 0
        both = ((p.exp() - q.exp()) * (p - q)).sum(-1)                     # (B,): KL(p || q) + KL(q || p)
        both = (both * real).sum() / (real.sum().clamp(min=1) if totals is None else totals[0])
        return loss + weight / 2 * both, stats | {'consistency': both.detach() / 2}

# ---------------------------------------------------------------------------------------------------- virtual tokens

class Prefix(nn.Module):
    """Keys and values (P, G D) in front of those that an attention layer makes itself (Li and Liang, 4.2). hidden: they
    are U tanh(D e + d) + u of vectors e, an MLP of that width (4.3), whose e and D all layers share."""
    def __init__(self, layer, length, hidden=0):
        super().__init__()
        kv = makes_values(layer)[0]
        W, size, self.hidden = kv.weight.detach(), kv.parts['k'], hidden
        if hidden:
            self.E, self.D, self.d = numbers(W, length, W.size(1)), numbers(W, hidden, W.size(1)), numbers(W, hidden)
            self.U, self.u = numbers(W, 2 * size, hidden), numbers(W, 2 * size)
            nn.init.normal_(self.E)
            for w in (self.D, self.U): nn.init.uniform_(w, -w.size(1) ** -0.5, w.size(1) ** -0.5)
            nn.init.zeros_(self.U.data[size:])
        else:
            self.K, self.V = numbers(W, length, size), numbers(W, length, size)
            nn.init.normal_(self.K)

    @staticmethod
    def into(layer): return Attention

    @staticmethod
    def settle(model, name):
        first = {}
        for a in (layer.lora[name] for layer in lora.adapted(model).values() if name in layer.lora):
            if a.hidden:
                one = first.setdefault(a.D.shape, a)
                a.E, a.D, a.d = one.E, one.D, one.d

    def pair(self):
        if not self.hidden: return self.K, self.V
        return F.linear(torch.tanh(F.linear(self.E, self.D, self.d)), self.U, self.u).chunk(2, dim=-1)


class Prompt(nn.Module):
    """P vectors (P, E) in front of the embedded input. On an attention layer of a causal decoder (width 0): the keys
    and values (1, H, P, D) that they have there."""
    kept = None

    def __init__(self, layer, length, width=0):
        super().__init__()
        self.P = numbers(next(layer.parameters()), length, width) if width else None

    @staticmethod
    def into(layer):
        return Attention if makes_values(layer) else Encoder if hasattr(layer, 'blocks') else lora.Adapted

    @staticmethod
    def settle(model, name):
        mixin = Causal if hasattr(model, 'enter') else Source if hasattr(model, 'encode') else None
        if mixin: model.__class__ = lora.variant(type(model), mixin)

    def pair(self): return self.kept

    def __getstate__(self): return dict(self.__dict__, kept=None)          # a copy of the model computes its own


def makes_values(m):
    """The children of a module that project to values: one, in an attention layer"""
    return [child for child in m.children() if 'v' in getattr(child, 'parts', ())]


def longer(pair, k, v, mask):
    """k and v (B, n, S, D), and who sees them, (.., S) bool or float, or None: all. -> the same with the P of the pair
    in front, which all see. A pair of fewer heads is shared by groups of them; of more: those of a group are equal."""
    def front(p, like):
        p = (p.unflatten(1, (-1, like.size(3))).transpose(0, 1)[None] if p.ndim == 2 else p).to(like.dtype)
        n, have = like.size(1), p.size(1)
        p = p.repeat_interleave(n // have, dim=1) if n > have else p[:, ::have // n]           # (1, n, P, D)
        return torch.cat((p.expand(len(like), -1, -1, -1), like), dim=2)
    P = pair[0].size(-2)
    if mask is not None: mask = F.pad(mask, (P, 0), value=True if mask.dtype == torch.bool else 0.0)
    return front(pair[0], k), front(pair[1], v), mask


class Longer(TorchFunctionMode):
    """Within it scaled_dot_product_attention reads an adapter's keys and values too, or, to record, writes them."""
    def __init__(self, a, record):
        super().__init__()
        self.a, self.record = a, record

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.scaled_dot_product_attention, torch._fused_sdp_choice):
            args, kwargs = self.changed(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def changed(self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **more):
        if self.record: self.a.kept = k, v
        else:
            if is_causal: attn_mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()
            k, v, attn_mask = longer(self.a.pair(), k, v, attn_mask)
        return (q, k, v, attn_mask, dropout_p, is_causal and self.record), more


class Attention(lora.Adapted):
    """What an attention layer becomes. One that is given its keys (t5.py's, which has .keys) is given more; one that
    makes them itself has more when they are used."""
    def forward(self, x, *args):
        a = self.adapter()
        if a is None: return super().forward(x, *args)
        if hasattr(self, 'keys'):
            (k, v), mask = args if len(args) > 1 else (*args, None)
            k, v, mask = longer(a.pair(), k, v, mask)
            return super().forward(x, (k, v), mask)
        with Longer(a, a.pair() is None): return super().forward(x, *args)


class Encoder(lora.Adapted):
    """An encoder with a prompt in front of what it is given, whose hidden states nobody gets to see (bert.py,
    electra.py)."""
    def forward(self, x, mask=None, *positions):
        a = self.adapter()
        if a is None: return super().forward(x, mask, *positions)
        P = len(a.P)
        if positions and positions[0] is not None:
            own = torch.arange(P, device=x.device).expand(len(positions[0]), -1)
            positions = [torch.cat((own, positions[0] + P), dim=1)]
        x = torch.cat((a.P.to(x.dtype).expand(len(x), -1, -1), x), dim=1)  # (B, P + T, E)
        return super().forward(x, None if mask is None else F.pad(mask, (P, 0), value=True), *positions)[:, P:]


class Causal:
    """A decoder alone (gpt.py): before it enters a text it runs the prompt, so that each attention layer has the
    prompt's keys and values."""
    def enter(self, ids, positions, keys, prefix):
        a = self.tokens.adapter()
        if a is not None:
            P = len(a.P)
            at = torch.arange(P, device=ids.device)                        # rotary: right in front of the text
            at = at % self.config.block_size if self.config.positions == 'learned' else at - P
            x, turn, mask = super().enter(ids.new_zeros(1, P), at, at.clone(), None)           # not one row: no blocks
            x = self.drop(a.P[None].to(x.dtype))                           # (1, P, C)
            for layer in self.modules():
                if isinstance(layer, Attention) and layer.adapter() is not None: layer.adapter().kept = None
            for block in self.blocks[:-1]: x = block(x, turn, mask)
            for block in (self.blocks[-1], *self.extra): block(x, turn, mask)
        return super().enter(ids, positions, keys, prefix)


class Source:
    """An encoder-decoder (t5.py) with a prompt in front of what its encoder reads; its decoder sees that too."""
    def long(self, mask):
        a = self.tokens.adapter()
        return mask if a is None or mask is None else F.pad(mask, (len(a.P), 0), value=True)

    def hidden(self, source, target_in, mask=None): return super().hidden(source, target_in, self.long(mask))
    def cache(self, rows, length, source, mask=None): return super().cache(rows, length, source, self.long(mask))

    def encode(self, source, real=None):
        a, x = self.tokens.adapter(), self.tokens(source) if source.ndim == 2 else source
        if a is not None: x = torch.cat((a.P.to(x.dtype).expand(len(x), -1, -1), x), dim=1)    # (B, P + S, C)
        return super().encode(x, real)


lora.kinds.update(bottleneck=Bottleneck, prefix=Prefix, prompt=Prompt)

# ---------------------------------------------------------------------------------------------------- what one calls

def attentions(model, **what): return {n: what for n, m in model.named_modules() if makes_values(m)}


def bottleneck(model, rank=16, match='out,down', activation='gelu', experts=1, dropout=0.0, consistency=0.0,
               name='default', train=''):
    """Puts bottlenecks behind the layers that match, freezes all else but the modules named in `train`. consistency:
    the weight of AdaMix's second loss, which costs a second pass; on labelled data with classes. -> the model"""
    if rank < 1 or experts < 1: raise ValueError(f'rank={rank}, experts={experts}: expected 1 or more')
    if activation not in activations:
        raise ValueError(f'activation={activation!r}: expected one of {", ".join(activations)}')
    c = model.config
    if consistency and (getattr(c, 'kind', '') != 'labelled' or c.n_labels < 2 or experts < 2):
        raise ValueError(f'consistency={consistency} compares the classes that two routings find: '
                         'it needs labelled data with classes, and 2 experts or more')
    lora.attach(model, name, {n: dict(rank=rank) for n in lora.matching(model, match)}, lora.heads(model, train),
                kind='bottleneck', activation=activation, experts=experts, dropout=dropout, consistency=consistency)
    return model


def prefix(model, length=20, hidden=0, name='default', train=''):
    """Trains `length` keys and values in front of those of every attention layer, self and cross, and the modules named
    in `train`. hidden: width of an MLP that they come from, which trains more steadily; it stays on the model, and in
    its files. -> the model"""
    if length < 1 or hidden < 0: raise ValueError(f'length={length}, hidden={hidden}: expected 1 or more, 0 or more')
    lora.attach(model, name, attentions(model, length=length), lora.heads(model, train), kind='prefix', hidden=hidden)
    return model


@torch.no_grad()
def prompt(model, length=20, name='default', train=''):
    """Trains `length` vectors in front of the embedded input (of an encoder-decoder: of the source), and the modules
    named in `train`. They start as what the embedding makes of random tokens among the first 5000. -> the model"""
    if length < 1: raise ValueError(f'length={length}: expected 1 or more')
    c, training, device = model.config, model.training, next(model.parameters()).device
    ids = torch.randint(min(c.vocab_size, 5000), (1, length)).to(device)
    model.eval()
    place, layers = 'tokens', {}
    if hasattr(model, 'enter'):
        at, layers = torch.arange(length, device=device) % c.block_size, attentions(model, length=length)
        x = model.enter(ids, at, at, None)[0]                              # (1, P, E)
    elif hasattr(model, 'encode') and c.two: x = model.tokens(ids)
    elif hasattr(model, 'encoder') and hasattr(model, 'embeddings'): place, x = 'encoder', model.embeddings(ids)
    else: raise ValueError('a prompt goes in front of a causal decoder, an encoder, or the encoder of an '
                           'encoder-decoder, and this model is none: use adapters.prefix')
    model.train(training)
    lora.attach(model, name, {place: dict(length=length, width=x.size(-1)), **layers}, lora.heads(model, train),
                kind='prompt')
    model.get_submodule(place).adapter().P.copy_(x[0])
    return model


def bitfit(model, name='default', train=''):
    """Trains the biases, and the modules named in `train`, and nothing else. -> the model"""
    biases = [n for n, p in model.named_parameters() if n.endswith('bias') and p.ndim == 1 and '.lora.' not in n]
    if not biases:
        raise ValueError('this model has no biases: BitFit has nothing to train; '
                         'take --lora_rank=8 (lora.wrap) or --adapter=bottleneck (adapters.bottleneck)')
    lora.attach(model, name, {}, list(dict.fromkeys(biases + lora.heads(model, train))))
    return model


def wrap(model, config, train=''):
    """The adapter that train.py's flags ask for. -> the model"""
    kind, size = config.adapter, config.adapter_size
    if kind == 'prefix': return prefix(model, size or 20, config.adapter_hidden, train=train)
    if kind == 'prompt': return prompt(model, size or 20, train=train)
    if kind == 'bitfit': return bitfit(model, train=train)
    if kind == 'lora':
        return lora.wrap(model, config.lora_rank, config.lora_alpha, config.lora_match or 'q,v', config.lora_dropout,
                         config.rslora, config.dora, train=train)
    match = config.lora_match or ('down' if kind == 'adamix' else 'out,down')
    return bottleneck(model, size or 16, match, experts=config.adapter_experts if kind == 'adamix' else 1,
                      dropout=config.lora_dropout, consistency=config.adapter_consistency, train=train)
