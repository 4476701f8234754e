"""Neighbours of LoRA around any of the models: bottlenecks, AdaMix, prefixes, prompts, BitFit.

    python train.py --init_from=out/bert --data=my.jsonl --out_dir=out/mine --adapter=prefix
    python sample.py --init_from=out/bert --lora=out/mine --classify=TEXT

From Python, after the weights are loaded and before torch.compile, DDP and the optimizer:

    adapters.bottleneck(model, 16)              # Houlsby: attention and MLP; 'down': Pfeiffer
    adapters.bottleneck(model, 16, 'down', experts=4, consistency=1.0)     # AdaMix, with its loss
    adapters.prefix(model, 20, hidden=256)      # keys and values in every layer; 0: P-tuning v2
    adapters.prompt(model, 20)                  # vectors in front of the embedded input
    adapters.bitfit(model, train='classifier')  # biases alone

They lie on a model as lora.py's do, beside those if there are any: lora.use, lora.save, lora.load,
lora.state work alike. They are no products of two matrices, so they cannot be merged (BitFit needs
no merging); peft has no such files.

Papers: bottlenecks Houlsby et al. 2019 (1902.00751) and Pfeiffer et al. 2020 (2005.00247), AdaMix
Wang et al. 2022 (2205.12410), prefix tuning Li and Liang 2021 (2101.00190), P-tuning v2 Liu et al.
2021 (2110.07602), prompt tuning Lester et al. 2021 (2104.08691), BitFit Ben Zaken et al. 2021
(2106.10199).

Where we depart from them: a bottleneck stands right behind the matrix that writes to the residual
stream, before the branch's dropout; its second matrix starts at zero, so that the wrapped model is
exactly the base. Tokens keep their positions behind a prefix or prompt, and virtual tokens have
none of their own (their vectors hold it); a prefix's values start at zero, which is as near to the
base as a prefix comes; all its layers share the first half of its MLP. In a causal decoder nothing
that virtual tokens see depends on the text, so a prompt is run once for a whole batch, and the text
reads its keys and values; neither a sliding window nor ALiBi's distances hide them.

Letters: B batch, O width of the residual stream, E of the embedding, r width of the bottleneck, M
experts, P virtual tokens, T tokens, S keys, G key/value heads, D head width, C width of the model.
"""
import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import lora
from lib.wrapped import Adapted
from lib.wrapped import adapted
from lib.wrapped import variant
from lib.wrapped import zeros

activations = dict(gelu=F.gelu, relu=F.relu, silu=F.silu, tanh=torch.tanh)
PROMPT_VOCABULARY = 5000   # a prompt starts as random tokens, among so many first ones

# ---------------------------------------------------------------------------------- bottlenecks


class Bottleneck(nn.Module):
    """y = W x, then y + U f(D y): Houlsby et al., 2.1.

    Of several experts training picks D and U at random in each pass (AdaMix, 3.1); otherwise their
    mean serves as one (eq. 6)."""
    def __init__(self, layer, rank, activation='gelu', experts=1, dropout=0.0, consistency=0.0):
        super().__init__()
        O = layer.out_features
        W = layer.weight.detach()
        self.D = zeros(W, experts, rank, O)
        self.d = zeros(W, experts, rank)
        self.U = zeros(W, experts, O, rank)
        self.u = zeros(W, experts, O)
        self.activation = activations[activation]
        self.dropout = dropout
        self.consistency = consistency
        nn.init.uniform_(self.D, -O ** -0.5, O ** -0.5)

    @staticmethod
    def settle(model, name):
        if model.lora['adapters'][name].get('consistency'):
            model.__class__ = variant(type(model), Consistent)

    def one(self):
        """The bottleneck of this pass: D (r, O), d (r,), U (O, r), u (O,)"""
        experts = len(self.D)
        if not self.training or experts == 1:
            return self.D.mean(0), self.d.mean(0), self.U.mean(0), self.u.mean(0)
        i, j = torch.randint(experts, (2,), device=self.D.device).split(1)
        return (self.D.index_select(0, i)[0], self.d.index_select(0, i)[0],
                self.U.index_select(0, j)[0], self.u.index_select(0, j)[0])

    def forward(self, layer, x):
        y = layer.product(x, layer.bias)
        D, d, U, u = self.one()
        h = y if torch.is_autocast_enabled(y.device.type) else y.to(D.dtype)
        h = F.dropout(self.activation(F.linear(h, D, d)), self.dropout, self.training)   # (.., r)
        return y + F.linear(h, U, u).to(y.dtype)


class Consistent:
    """A model of labelled data whose loss in training is AdaMix's eq. 4: that of one random
    routing, plus half of the symmetric divergence from the classes that another one finds, times
    `consistency`."""
    first_logits = None

    def logits(self, *inputs):
        y = super().logits(*inputs)
        if self.training:
            self.first_logits = y
        return y

    def forward(self, *arrays, totals=None):
        loss, stats = super().forward(*arrays, totals=totals)
        weight = self.lora['adapters'][self.lora['active']].get('consistency', 0)
        if not self.training or not weight:
            return loss, stats
        *inputs, targets = arrays
        p = self.first_logits.float().log_softmax(-1)                          # (B, classes)
        q = self.logits(*inputs).float().log_softmax(-1)
        self.first_logits = None
        real = targets >= 0
        n = real.sum().clamp(min=1) if totals is None else totals[0]
        # (B,): KL(p || q) + KL(q || p)
        divergence = ((p.exp() - q.exp()) * (p - q)).sum(-1)
        divergence = (divergence * real).sum() / n
        return loss + weight / 2 * divergence, stats | {'consistency': divergence.detach() / 2}

# ------------------------------------------------------------------------------- virtual tokens


class Prefix(nn.Module):
    """Keys and values (P, G D) in front of those that an attention layer makes itself (Li and
    Liang, 4.2).

    hidden: they are U tanh(D e + d) + u of vectors e, an MLP of that width (4.3), whose e, D and d
    all layers share."""
    def __init__(self, layer, length, hidden=0):
        super().__init__()
        kv = makes_values(layer)[0]
        W = kv.weight.detach()
        size = kv.parts['k']
        self.hidden = hidden
        if not hidden:
            self.K = zeros(W, length, size)
            self.V = zeros(W, length, size)
            nn.init.normal_(self.K)
            return
        self.E = zeros(W, length, W.size(1))
        self.D = zeros(W, hidden, W.size(1))
        self.d = zeros(W, hidden)
        self.U = zeros(W, 2 * size, hidden)
        self.u = zeros(W, 2 * size)
        nn.init.normal_(self.E)
        for w in (self.D, self.U):
            nn.init.uniform_(w, -w.size(1) ** -0.5, w.size(1) ** -0.5)
        nn.init.zeros_(self.U.data[size:])

    @staticmethod
    def into(layer):
        return Attention

    @staticmethod
    def settle(model, name):
        first = {}                               # the MLP of a width, which all layers share
        for layer in adapted(model).values():
            if name in layer.lora and layer.lora[name].hidden:
                prefix = layer.lora[name]
                one = first.setdefault(prefix.D.shape, prefix)
                prefix.E = one.E
                prefix.D = one.D
                prefix.d = one.d

    def pair(self):
        """-> keys and values, each (P, G D)"""
        if not self.hidden:
            return self.K, self.V
        h = torch.tanh(F.linear(self.E, self.D, self.d))
        return F.linear(h, self.U, self.u).chunk(2, dim=-1)


class Prompt(nn.Module):
    """P vectors (P, E) in front of the embedded input. On an attention layer of a causal decoder
    (width 0): the keys and values (1, H, P, D) that they have there."""
    kept = None

    def __init__(self, layer, length, width=0):
        super().__init__()
        self.P = zeros(next(layer.parameters()), length, width) if width else None

    @staticmethod
    def into(layer):
        if makes_values(layer):
            return Attention
        return Encoder if hasattr(layer, 'blocks') else Adapted

    @staticmethod
    def settle(model, name):
        if hasattr(model, 'enter'):
            model.__class__ = variant(type(model), Causal)
        elif hasattr(model, 'encode'):
            model.__class__ = variant(type(model), Source)

    def pair(self):
        return self.kept

    def __getstate__(self):
        return dict(self.__dict__, kept=None)    # a copy of the model computes its own


def makes_values(m):
    """The children of a module that project to values: one, in an attention layer."""
    return [child for child in m.children() if 'v' in getattr(child, 'parts', ())]


def in_front(vectors, x):
    """Vectors (P, E) in front of each row of x (B, T, E) -> (B, P + T, E)"""
    return torch.cat((vectors.to(x.dtype).expand(len(x), -1, -1), x), dim=1)


def fitting(p, like):
    """Keys or values (P, G D) or (1, H, P, D) as rows and heads of `like` (B, n, S, D) have them ->
    (B, n, P, D). Fewer heads than n are shared by groups of them; of more, those of a group are
    equal."""
    if p.ndim == 2:
        p = p.unflatten(1, (-1, like.size(3))).transpose(0, 1)[None]
    p = p.to(like.dtype)
    n = like.size(1)
    heads = p.size(1)
    if n > heads:
        p = p.repeat_interleave(n // heads, dim=1)
    else:
        p = p[:, ::heads // n]
    return p.expand(len(like), -1, -1, -1)


def longer(pair, k, v, mask):
    """k and v (B, n, S, D), and who sees them, (.., S) bool or float, or None: all. -> the same
    with the P keys and values of the pair in front, which all see."""
    P = pair[0].size(-2)
    if mask is not None:
        mask = F.pad(mask, (P, 0), value=True if mask.dtype == torch.bool else 0.0)
    k = torch.cat((fitting(pair[0], k), k), dim=2)
    v = torch.cat((fitting(pair[1], v), v), dim=2)
    return k, v, mask


class Longer(TorchFunctionMode):
    """Within it scaled_dot_product_attention reads an adapter's keys and values too, or, to record,
    writes them."""
    def __init__(self, adapter, record):
        super().__init__()
        self.adapter = adapter
        self.record = record

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (F.scaled_dot_product_attention, torch._fused_sdp_choice):
            args, kwargs = self.changed(*args, **kwargs)
        return function(*args, **kwargs)

    def changed(self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **more):
        """-> args, kwargs"""
        if self.record:
            self.adapter.kept = k, v
            return (q, k, v, attn_mask, dropout_p, is_causal), more
        if is_causal:
            attn_mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()
        k, v, attn_mask = longer(self.adapter.pair(), k, v, attn_mask)
        return (q, k, v, attn_mask, dropout_p, False), more


class Attention(Adapted):
    """What an attention layer becomes. One that is given its keys (t5.py's, which has .keys) is
    given more; one that makes them itself has more when they are used."""
    def forward(self, x, *args):
        adapter = self.adapter()
        if adapter is None:
            return super().forward(x, *args)
        if hasattr(self, 'keys'):
            (k, v), mask = args if len(args) > 1 else (*args, None)
            k, v, mask = longer(adapter.pair(), k, v, mask)
            return super().forward(x, (k, v), mask)
        with Longer(adapter, record=adapter.pair() is None):
            return super().forward(x, *args)


class Encoder(Adapted):
    """An encoder with a prompt in front of what it is given, whose hidden states nobody gets to see
    (bert.py, electra.py)."""
    def forward(self, x, mask=None, *positions):
        adapter = self.adapter()
        if adapter is None:
            return super().forward(x, mask, *positions)
        P = len(adapter.P)
        if positions and positions[0] is not None:
            own = torch.arange(P, device=x.device).expand(len(positions[0]), -1)
            positions = [torch.cat((own, positions[0] + P), dim=1)]
        if mask is not None:
            mask = F.pad(mask, (P, 0), value=True)
        return super().forward(in_front(adapter.P, x), mask, *positions)[:, P:]


class Causal:
    """A decoder alone (gpt.py): before it embeds a text it runs the prompt, so that each attention
    layer has the prompt's keys and values."""
    def enter(self, ids, positions, keys, prefix):
        adapter = self.tokens.adapter()
        if adapter is not None:
            self.run_prompt(adapter.P, ids)
        return super().enter(ids, positions, keys, prefix)

    def run_prompt(self, vectors, ids):
        P = len(vectors)
        at = torch.arange(P, device=ids.device)
        if self.config.positions == 'learned':
            at = at % self.config.block_size
        else:
            at = at - P                          # rotary: right in front of the text
        # With keys given, the mask is a full one, never None or a chunk mask. They are a tensor of
        # their own because older copies of gpt.py take the same one to mean that there is no cache.
        x, rope, mask = super().enter(ids.new_zeros(1, P), at, at.clone(), None)
        x = self.drop(vectors[None].to(x.dtype))                               # (1, P, C)
        for layer in self.modules():
            if isinstance(layer, Attention) and layer.adapter() is not None:
                layer.adapter().kept = None
        for block in self.blocks[:-1]:
            x = block(x, rope, mask)
        for block in (self.blocks[-1], *self.extra):
            block(x, rope, mask)


class Source:
    """An encoder-decoder (t5.py) with a prompt in front of what its encoder reads; its decoder sees
    that too."""
    def long(self, mask):
        """Which source tokens are real (B, S) -> (B, P + S)"""
        adapter = self.tokens.adapter()
        if adapter is None or mask is None:
            return mask
        return F.pad(mask, (len(adapter.P), 0), value=True)

    def hidden(self, source, target_in, mask=None):
        return super().hidden(source, target_in, self.long(mask))

    def cache(self, rows, length, source, mask=None):
        return super().cache(rows, length, source, self.long(mask))

    def encode(self, source, real=None):
        adapter = self.tokens.adapter()
        x = self.tokens(source) if source.ndim == 2 else source
        if adapter is not None:
            x = in_front(adapter.P, x)                                         # (B, P + S, C)
        return super().encode(x, real)


lora.kinds.update(bottleneck=Bottleneck, prefix=Prefix, prompt=Prompt)

# ------------------------------------------------------------------------------- what one calls


def attentions(model, **what):
    return {name: what for name, m in model.named_modules() if makes_values(m)}


def bottleneck(model, rank=16, match='out,down', activation='gelu', experts=1, dropout=0.0,
               consistency=0.0, name='default', train=''):
    """Puts bottlenecks behind the layers that match, freezes all else but the modules named in
    `train`.

    consistency: the weight of AdaMix's second loss, which costs a second pass; on labelled data
    with classes. -> the model"""
    if rank < 1 or experts < 1:
        raise ValueError(f'rank={rank}, experts={experts}: expected 1 or more')
    if activation not in activations:
        raise ValueError(f'activation={activation!r}: expected one of {", ".join(activations)}')
    c = model.config
    if consistency and (getattr(c, 'kind', '') != 'labelled' or c.n_labels < 2 or experts < 2):
        raise ValueError(f'consistency={consistency} compares the classes that two routings find: '
                         'it needs labelled data with classes, and 2 experts or more')
    layers = {layer: dict(rank=rank) for layer in lora.matching(model, match)}
    lora.attach(model, name, layers, lora.heads(model, train), kind='bottleneck',
                activation=activation, experts=experts, dropout=dropout, consistency=consistency)
    return model


def prefix(model, length=20, hidden=0, name='default', train=''):
    """Trains `length` keys and values in front of those of every attention layer, self and cross,
    and the modules named in `train`.

    hidden: width of an MLP that they come from, which trains more steadily; it stays on the model,
    and in its files. -> the model"""
    if length < 1 or hidden < 0:
        raise ValueError(f'length={length}, hidden={hidden}: expected 1 or more, 0 or more')
    lora.attach(model, name, attentions(model, length=length), lora.heads(model, train),
                kind='prefix', hidden=hidden)
    return model


@torch.no_grad()
def prompt(model, length=20, name='default', train=''):
    """Trains `length` vectors in front of the embedded input (of an encoder-decoder: of the
    source), and the modules named in `train`. They start as what the embedding makes of random
    tokens. -> the model"""
    if length < 1:
        raise ValueError(f'length={length}: expected 1 or more')
    c = model.config
    training = model.training
    device = next(model.parameters()).device
    ids = torch.randint(min(c.vocab_size, PROMPT_VOCABULARY), (1, length)).to(device)
    model.eval()
    place = 'tokens'
    layers = {}
    if hasattr(model, 'enter'):
        at = torch.arange(length, device=device) % c.block_size
        x = model.enter(ids, at, at, None)[0]                                  # (1, P, E)
        layers = attentions(model, length=length)
    elif hasattr(model, 'encode') and c.two:
        x = model.tokens(ids)
    elif hasattr(model, 'encoder') and hasattr(model, 'embeddings'):
        place = 'encoder'
        x = model.embeddings(ids)
    else:
        raise ValueError('a prompt goes in front of a causal decoder, an encoder, or the encoder '
                         'of an encoder-decoder, and this model is none: use adapters.prefix')
    model.train(training)
    layers = {place: dict(length=length, width=x.size(-1)), **layers}
    lora.attach(model, name, layers, lora.heads(model, train), kind='prompt')
    model.get_submodule(place).adapter().P.copy_(x[0])
    return model


def bitfit(model, name='default', train=''):
    """Trains the biases, and the modules named in `train`, and nothing else. -> the model"""
    biases = [n for n, p in model.named_parameters()
              if n.endswith('bias') and p.ndim == 1 and '.lora.' not in n]
    if not biases:
        raise ValueError('this model has no biases: BitFit has nothing to train; take '
                         '--lora_rank=8 (lora.wrap) or --adapter=bottleneck (adapters.bottleneck)')
    lora.attach(model, name, {}, list(dict.fromkeys(biases + lora.heads(model, train))))
    return model


def wrap(model, config, train=''):
    """The adapter that train.py's flags ask for. -> the model"""
    kind = config.adapter
    if kind == 'prefix':
        return prefix(model, config.adapter_size or 20, config.adapter_hidden, train=train)
    if kind == 'prompt':
        return prompt(model, config.adapter_size or 20, train=train)
    if kind == 'bitfit':
        return bitfit(model, train=train)
    if kind == 'lora':
        return lora.wrap(model, config.lora_rank, config.lora_alpha, config.lora_match or 'q,v',
                         config.lora_dropout, config.rslora, config.dora, train=train)
    match = config.lora_match
    if not match:
        match = 'down' if kind == 'adamix' else 'out,down'
    experts = config.adapter_experts if kind == 'adamix' else 1
    return bottleneck(model, config.adapter_size or 16, match, experts=experts, train=train,
                      dropout=config.lora_dropout, consistency=config.adapter_consistency)
