"""ELECTRA in one file: a small generator fills hidden tokens, a discriminator tells which tokens were replaced.

    python train.py --model=electra                                                # pre-trains on the standard library
    python train.py --model=electra --init_from=out/electra --data=stdlib-modules  # fine-tunes the discriminator

batch() hides a share of the tokens of running text. One graph does the rest: the generator's logits at the hidden
places, a sample of each, the text with the samples in it, the discriminator's verdict on all of it. Fine-tuning drops
the generator; heads, data and flags are those of bert.py. logits(ids) of a pre-trained model are the verdicts, (B, T).

Paper: ELECTRA, Clark et al. 2020 (2003.10555): the objective 2, sharing, sizes and two stages 3.2 to 3.3, the ablations
3.4, tables 6 and 7. What it leaves open follows the released code: 85 % of chosen tokens become [MASK], the rest stay.

Where we depart from it: rows are windows of running text, always full, so that all T tokens of a row are real; exactly
K tokens are chosen in each. A sample is drawn by inverting the distribution function at a random number that belongs to
the row, which has the distribution of the Gumbel trick but is the same however a batch is split over micro-batches and
ranks. Without shared embeddings the generator's keep their width. The
default run has a modern encoder (rotary positions, pre-norm), which learns in far fewer steps.

Letters: B batch, T tokens, C width, E width of the embeddings, H heads, D head width, F hidden width of the MLP,
V vocabulary, K chosen tokens of a row, L tokens of text in a row, N choices.
"""
import dataclasses
import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass
class Config:
    vocab_size: int = 30522      # V: number of tokens; train.py takes it from the data
    vocab_multiple: int = 1      # rows of the token table are rounded up to a multiple of this (128 suits a GPU)
    block_size: int = 512        # T: tokens in a row, [CLS] and [SEP] counted
    n_layer: int = 12            # number of blocks
    n_head: int = 12             # H: attention heads
    n_embd: int = 768            # C: width of the discriminator
    n_hidden: int = 0            # F: width of the MLP; 0: 4 n_embd
    embed_dim: int = 0           # E: width of the embeddings, projected to n_embd (small: 128); 0: n_embd
    positions: str = 'learned'   # learned | rotary (which transformers' ELECTRA lacks)
    pre_norm: bool = False       # norm before each branch and at the end, not after the residual sums (likewise)
    n_segments: int = 2          # rows of the table that tells first and second text apart; 0: none
    norm_eps: float = 1e-12      # added to the variance
    activation: str = 'gelu'     # gelu (erf) | gelu_tanh | relu | silu
    gated: bool = False          # MLP = down(activation(gate(x)) * up(x)): GeGLU
    dropout: float = 0.1         # on embeddings, branches and in front of heads
    attention_dropout: float = 0.1  # on attention weights; above 0 a CPU has no fast attention kernel
    init_std: float = 0.02       # standard deviation of the first weights, a normal cut off at two of them
    # pre-training
    objective: str = 'electra'   # electra | electra-15 (loss at chosen) | replace-mlm | all-tokens-mlm | mlm (alone)
    disc_weight: float = 50.0    # lambda: weight of the loss of electra and electra-15 beside the generator's
    generator_size: float = 1 / 3  # width of the generator's layers, a share of n_embd and n_hidden; 0: no generator
    generator_layers: int = 0    # blocks of the generator; 0: n_layer
    generator_heads: int = 0     # its heads; 0: width / 64, at least 1 (of the same width: n_head)
    share: str = 'embeddings'    # between the two: embeddings | none | all (needs generator_size=1)
    generator_steps: int = 0     # two stages: so many of the generator, then the discriminator, from its weights
    mask_rate: float = 0.15      # share of the tokens that the generator replaces
    mask_share: float = 0.85     # of these: share that it sees as [MASK]; the rest it sees as they are
    # fine-tuning
    kind: str = 'text'           # head: text (pre-training) | labelled | tagged | qa | choice | none; the data picks it
    n_labels: int = 0            # classes; 0 with kind=labelled: regression
    labels: str = ''             # names of the classes, a JSON list
    double_sep: bool = False     # two [SEP] between a pair of texts (RoBERTa)
    doc_stride: int = 128        # qa: tokens from one window of a long context to the next
    max_query: int = 64          # qa: longer questions are cut
    max_answer: int = 30         # qa: longest answer, in tokens
    no_answer: bool = False      # qa: the answer may be that there is none (SQuAD 2.0)
    eot_id: int = -1             # end of a document
    pad_id: int = 0              # padding
    cls_id: int = 101            # [CLS]; -1: eot_id
    sep_id: int = 102            # [SEP]; -1: eot_id
    mask_id: int = 103           # [MASK]
    # running
    checkpoint_activations: bool = False  # keep each block's input only and recompute the block in the backward pass
    residual_autocast: bool = False  # under autocast keep the residual stream in bf16 too: faster, slightly less exact

    def __post_init__(self):
        for name, choices in (('objective', objectives), ('share', ('embeddings', 'none', 'all')),
                              ('positions', ('learned', 'rotary')),
                              ('activation', tuple(activations)), ('kind', (*kinds, 'none'))):
            if getattr(self, name) not in choices:
                raise ValueError(f'{name}={getattr(self, name)!r} is not one of: {" ".join(map(repr, choices))}')
        if not 0 < self.init_std < 1e9: raise ValueError(f'init_std={self.init_std}: expected more than 0, under 1e9')
        for name in ('vocab_size', 'vocab_multiple', 'n_layer', 'n_head', 'n_embd', 'doc_stride'):
            if getattr(self, name) < 1: raise ValueError(f'{name}={getattr(self, name)}: expected 1 or more')
        for name in ('mask_rate', 'mask_share'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name}={getattr(self, name)}: expected a share from 0 to 1')
        if self.block_size < 8: raise ValueError(f'block_size={self.block_size}: expected 8 or more')
        if self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} is not a multiple of n_head={self.n_head}')
        if self.positions == 'rotary' and self.n_embd // self.n_head % 2:
            raise ValueError(f'rotary positions turn pairs: a head of {self.n_embd // self.n_head} numbers is odd')
        if self.generator_size < 0:
            raise ValueError(f'generator_size={self.generator_size}: expected a share of n_embd, or 0 for none')
        if not self.has_generator: return
        width, heads, layers, _ = sizes = self.generator
        if width < 1 or width % heads:
            raise ValueError(f'the generator is {width} wide (generator_size={self.generator_size:g} of n_embd='
                             f'{self.n_embd}), not a multiple of its {heads} heads: set --generator_heads')
        same = sizes == (self.n_embd, self.n_head, self.n_layer, self.hidden)
        if self.share == 'all' and not same:
            raise ValueError(f'share=all needs two equal encoders, and the generator has width {width}, {heads} heads, '
                             f'{layers} layers: add --generator_size=1')
        # a frozen generator, and a copy of it that learns on
        if self.generator_steps and (not same or self.share != 'none'):
            raise ValueError(f'generator_steps={self.generator_steps} starts the discriminator from the generator: '
                             'add --generator_size=1 --share=none')

    @property
    def rows(self): return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple  # of the token table
    @property
    def hidden(self): return self.n_hidden or 4 * self.n_embd                                # F
    @property
    def embed(self): return self.embed_dim or self.n_embd                                    # E
    @property
    def n_masked(self): return max(1, round(self.mask_rate * (self.block_size - 2)))         # K
    @property
    def n_outputs(self):
        return {'labelled': self.n_labels or 1, 'tagged': self.n_labels, 'qa': 2, 'choice': 1}.get(self.kind, 0)
    @property
    def has_pooler(self): return self.kind in ('labelled', 'choice')
    @property
    def has_generator(self): return self.kind == 'text' and self.objective != 'mlm' and self.generator_size > 0
    @property
    def has_detector(self): return self.kind == 'text' and self.objective in ('electra', 'electra-15', 'all-tokens-mlm')
    @property
    def has_mlm(self): return self.kind == 'text' and self.objective in ('replace-mlm', 'all-tokens-mlm', 'mlm')
    @property
    def generator(self):
        """Its width, heads, layers and hidden width."""
        width = round(self.generator_size * self.n_embd)
        return (width, self.generator_heads or (self.n_head if width == self.n_embd else max(1, width // 64)),
                self.generator_layers or self.n_layer, round(self.hidden * width / self.n_embd))
    def has_bias(self, part): return True


family = 'electra'             # whose tables of lib/ fit: rows of examples, samples; a copy keeps the line
kinds = ('text', 'labelled', 'tagged', 'qa', 'choice')
objectives = ('electra', 'electra-15', 'replace-mlm', 'all-tokens-mlm', 'mlm')
activations = {'gelu': F.gelu, 'gelu_tanh': functools.partial(F.gelu, approximate='tanh'),
               'relu': F.relu, 'silu': F.silu}


def generator_config(config):
    """The Config of the generator as a model of its own, a masked language model."""
    width, heads, layers, hidden = config.generator
    return dataclasses.replace(config, objective='mlm', generator_size=0.0, generator_layers=0, generator_heads=0,
                               generator_steps=0, share='embeddings', n_embd=width, n_head=heads, n_layer=layers,
                               n_hidden=hidden, embed_dim=config.embed)

# ---------------------------------------------------------------------------------------------------------------------
# presets: what differs from ELECTRA-base (table 6)

_small = dict(n_head=4, n_embd=256, embed_dim=128)
presets = {
    # a modern encoder, as that of bert.py's default: the paper's learns nothing of use in a few hundred steps
    'electra-2cores': dict(_small, vocab_size=8192, block_size=128, n_layer=4, n_hidden=512, positions='rotary',
                           pre_norm=True, gated=True, n_segments=0, generator_size=0.5, generator_heads=2, dropout=0.0,
                           attention_dropout=0.0),
    'electra-small': dict(_small, block_size=128, generator_size=0.25),
    'speedrun-electra-small': dict(_small, block_size=128, generator_size=0.25),
    'electra-small-pp': dict(_small, generator_size=1.0),  # the released small model: longer rows, no smaller generator
    'electra-base': dict(),
    'electra-large': dict(n_layer=24, n_head=16, n_embd=1024, generator_size=0.25, mask_rate=0.25),
}

# what trains well: overrides of train.py's fields (and of Config's), for this file and for single presets
recipe = dict(preset='electra-2cores', vocab_multiple=128, weight_decay=0.01, beta1=0.9, beta2=0.999, eps=1e-6,
              grad_clip=1.0, lr_schedule='linear', warmup_iters=10000)
recipes = {
    'electra-2cores': dict(optimizer='muon', learning_rate=3e-3, muon_lr=0.02, batch_size=32, max_iters=700,
                           warmup_iters=20, beta2=0.98, eval_interval=100, eval_iters=64),
    'electra-small': dict(learning_rate=5e-4, batch_size=128, max_iters=1000000),
    'speedrun-electra-small': dict(learning_rate=5e-4, batch_size=128, max_iters=1000000, eval_interval=10000,
                                   eval_iters=2048, log_interval=100),
    'electra-small-pp': dict(learning_rate=5e-4, batch_size=128, max_iters=4000000),
    'electra-base': dict(learning_rate=2e-4, batch_size=256, max_iters=766000),
    'electra-large': dict(learning_rate=2e-4, batch_size=2048, max_iters=400000),
}
# from given weights (table 7 and the released code; small wants 3e-4, large 5e-5 and a layer_decay of 0.9)
finetune = dict(learning_rate=1e-4, layer_decay=0.8, batch_size=32, epochs=3.0, eval_interval=0, warmup_iters=50,
                weight_decay=0.01, beta2=0.999, eps=1e-6, lr_schedule='linear', dropout=0.1,
                generator_steps=0)                                         # what comes in stages has had its first

# ---------------------------------------------------------------------------------------------------------------------
# pre-training: running text -> rows with hidden tokens

# same as bert.py
def role(config, name):
    """The id of [CLS], [SEP] or [MASK] in the data's tokenizer; the end of a document stands in for the first two."""
    i = getattr(config, name + '_id')
    i = config.eot_id if i < 0 and name != 'mask' else i
    if not 0 <= i < config.vocab_size:
        raise ValueError(f'the tokenizer has no {name} token ({name}_id={i}): '
                         f'prepare the text with --tokenizer=bpe, or give --{name}_id')
    return i


def batch(draw, config, rng):
    """One micro-batch of running text: ids (B, T) with some tokens hidden, the chosen places and a random number for the
    sample at each (B, 2, K), the tokens that were there (B, K)."""
    L, K = config.block_size - 2, config.n_masked
    cls, sep, mask = (role(config, name) for name in ('cls', 'sep', 'mask'))
    tokens = draw(L)                                                       # (B, L)
    special = np.isin(tokens, [i for i in (config.eot_id, config.pad_id, config.cls_id, config.sep_id, config.mask_id)
                               if i >= 0])
    chosen = np.sort(np.argpartition(rng.random(L) + special, K - 1, axis=1)[:, :K], axis=1)   # separators come last
    original, counts = np.take_along_axis(tokens, chosen, 1), ~np.take_along_axis(special, chosen, 1)
    hidden = counts & (rng.random(K) < config.mask_share)
    ids = np.pad(tokens, ((0, 0), (1, 1)), constant_values=((0, 0), (cls, sep)))
    np.put_along_axis(ids, chosen + 1, np.where(hidden, mask, original), 1)
    return ids, np.stack((chosen + 1, rng.integers(0, 2 ** 31, K)), axis=1), np.where(counts, original, -1)


def count(*arrays):
    """Numbers of targets: the generator's, and all real tokens, on which the discriminator is judged. Supervised: those
    of the last array. Floats of -100 and below are none."""
    last = arrays[-1]
    n = int((last > -100).sum() if last.dtype.kind == 'f' else (last >= 0).sum())
    return (n, arrays[0].size) if len(arrays) == 3 else (n,)

# ---------------------------------------------------------------------------------------------------------------------
# modules: BERT's encoder, or with positions=rotary and pre_norm a modern one

def rotary(width, positions):
    """Cosine and sine of every pair's angle. (T,) -> two of (T, 1, D/2), in fp32"""
    freq = 1e4 ** (-torch.arange(0, width, 2, device=positions.device).float() / width)        # 10000^(-2i/D)
    angle = positions[..., None, None].float() * freq
    return angle.cos(), angle.sin()


# same as bert.py
def rotate(x, cos, sin):
    """Turns the pairs (i, i + D/2) of each head, in fp32. x: (B, T, H, D)"""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


# same as bert.py
class LayerNorm(nn.Module):
    """nn.LayerNorm that may lack its bias and returns its input's dtype (autocast would return fp32)."""
    def __init__(self, width, eps, bias):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
    def forward(self, x): return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


# same as bert.py
def make_norm(config, width=0): return LayerNorm(width or config.n_embd, config.norm_eps, config.has_bias('norm'))


# same as bert.py
def fused(width, bias, **parts):
    """Several linear layers of one input as one, which is faster. .parts has the rows of each, in order, for who wants
    them apart: adapters, Muon."""
    layer = nn.Linear(width, sum(parts.values()), bias=bias)
    layer.parts = parts
    return layer


class Embeddings(nn.Module):
    """tokens + positions + segments, then norm and dropout."""
    def __init__(self, config):
        super().__init__()
        self.config, E = config, config.embed
        self.tokens = nn.Embedding(config.rows, E)
        if config.positions == 'learned': self.positions = nn.Embedding(config.block_size, E)
        if config.n_segments: self.segments = nn.Embedding(config.n_segments, E)
        self.norm, self.drop = make_norm(config, E), nn.Dropout(config.dropout)

    def forward(self, ids, segments=None):
        """ids, segments: (B, T) -> (B, T, E)"""
        T, c = ids.size(1), self.config
        if T > c.block_size and c.positions == 'learned':
            raise ValueError(f'{T} tokens in a row, but there are learned positions for block_size={c.block_size}')
        x = self.tokens(ids)
        if c.positions == 'learned': x = x + self.positions(torch.arange(T, device=ids.device))
        if c.n_segments:
            x = x + (self.segments.weight[0] if segments is None
                     else self.segments(segments.clamp(max=c.n_segments - 1)))
        return self.drop(self.norm(x))


# bert.py's, without its local layers
class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, C = config, config.n_embd
        self.qkv = fused(C, config.has_bias('attention'), q=C, k=C, v=C)
        self.out = nn.Linear(C, C, bias=config.has_bias('attention'))

    def forward(self, x, turn, mask):
        """x: (B, T, C). turn: cos and sin, or None. mask: (B or 1, 1, T or 1, T) bool, true where seen, or None."""
        (B, T, C), H = x.shape, self.config.n_head
        q, k, v = self.qkv(x).view(B, T, 3, H, C // H).unbind(2)           # (B, T, H, D) each
        if turn: q, k = rotate(q, *turn), rotate(k, *turn)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask,
                                           self.config.attention_dropout if self.training else 0.0)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


# same as bert.py
class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gated, self.activation = config.gated, activations[config.activation]
        parts = dict(gate=config.hidden, up=config.hidden) if config.gated else dict(up=config.hidden)
        self.up = fused(config.n_embd, config.has_bias('mlp'), **parts)
        self.down = nn.Linear(config.hidden, config.n_embd, bias=config.has_bias('mlp'))

    def forward(self, x):
        if not self.gated: return self.down(self.activation(self.up(x)))
        gate, up = self.up(x).chunk(2, dim=-1)                             # (B, T, F) each
        return self.down(self.activation(gate) * up)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.attention, self.mlp = config, Attention(config), MLP(config)
        self.norm_1, self.norm_2, self.drop = make_norm(config), make_norm(config), nn.Dropout(config.dropout)

    def forward(self, x, turn=None, mask=None):
        if not self.config.pre_norm:
            x = self.norm_1(x + self.drop(self.attention(x, turn, mask)))
            return self.norm_2(x + self.drop(self.mlp(x)))
        x = x + self.drop(self.attention(self.norm_1(x), turn, mask))
        return x + self.drop(self.mlp(self.norm_2(x)))


class Encoder(nn.Module):
    """Embeddings to hidden states."""
    def __init__(self, config):
        super().__init__()
        self.config = config
        if config.embed != config.n_embd: self.project = nn.Linear(config.embed, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config) if config.pre_norm else nn.Identity()

    def forward(self, x, mask=None):
        """x: (B, T, E), mask: (B, T) bool, true for real tokens, or None -> (B, T, C)"""
        c, T = self.config, x.size(1)
        if mask is not None: mask = mask[:, None, None]                    # (B, 1, 1, T)
        turn = rotary(c.n_embd // c.n_head, torch.arange(T, device=x.device)) if c.positions == 'rotary' else None
        if hasattr(self, 'project'): x = self.project(x).to(x.dtype)       # autocast would go on in bf16
        if c.residual_autocast and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for block in self.blocks:
            x = (checkpoint(block, x, turn, mask, use_reentrant=False)
                 if c.checkpoint_activations and self.training else block(x, turn, mask))
        return self.norm(x)


# same as bert.py
class Transform(nn.Module):
    """In front of the decoder: dense, activation, norm. C -> E"""
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.n_embd, config.embed, bias=config.has_bias('head'))
        self.activation, self.norm = activations[config.activation], make_norm(config, config.embed)
    def forward(self, x): return self.norm(self.activation(self.dense(x)))


class MaskedLM(nn.Module):
    """Hidden states to logits over the vocabulary, by the token table. (.., C) -> (.., V)"""
    def __init__(self, config, table):
        super().__init__()
        self.config, self.head, self.decoder = config, Transform(config), nn.Linear(config.embed, config.rows)
        self.decoder.weight = table

    def forward(self, x):
        y = self.decoder(self.head(x))
        # a slice of all costs a copy backward
        return y if self.config.rows == self.config.vocab_size else y[..., :self.config.vocab_size]


class Detector(nn.Module):
    """Hidden states to a logit for "replaced": 2, D(x, t) = sigmoid(w h(x)_t), a layer in front. (.., C) -> (..)"""
    def __init__(self, config):
        super().__init__()
        self.dense, self.out = nn.Linear(config.n_embd, config.n_embd), nn.Linear(config.n_embd, 1)
        self.activation = activations[config.activation]
    def forward(self, x): return self.out(self.activation(self.dense(x))).squeeze(-1)


class Generator(nn.Module):
    """What the generator has for itself: all of a masked language model but the embeddings (share), or but its head."""
    def __init__(self, config, table):
        super().__init__()
        small = generator_config(config)
        if config.share == 'none': self.embeddings = Embeddings(small)
        if config.share != 'all': self.encoder = Encoder(small)
        self.mlm = MaskedLM(small, self.embeddings.tokens.weight if config.share == 'none' else table)


def sample(logits, u):
    """A token of each row's distribution: the first one whose cumulated probability exceeds u / 2^31. In whole numbers,
    so that their sum is exact in any order. logits: (N, V), u: (N,) int64 in [0, 2^31) -> (N,)"""
    mass = (logits.float().softmax(1) * 2 ** 30).int().cumsum(1, dtype=torch.int32)            # (N, V)
    at = (u * mass[:, -1].long() >> 31).int()                              # below the whole mass
    # clamp: logits of NaN end up in the loss, not here
    return torch.searchsorted(mass, at[:, None], right=True)[:, 0].clamp(max=logits.size(1) - 1)


def area_under_curve(scores, positive, judged):
    """Of each row the share of its pairs (positive, negative) whose positive one scores higher, ties half; 0.5 without
    any. All (B, T) -> (B,)"""
    scores, negative = scores.detach(), judged & ~positive
    order = torch.where(negative, scores, math.inf).sort(dim=1).values     # the negatives, then what is neither
    below = (torch.searchsorted(order, scores) + torch.searchsorted(order, scores, right=True)) / 2
    pairs = positive.sum(1).float() * negative.sum(1)
    return torch.where(pairs > 0, (below * positive).sum(1) / pairs.clamp(min=1), 0.5)


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, c, C = config, config, config.n_embd
        self.embeddings, self.encoder, self.drop = Embeddings(c), Encoder(c), nn.Dropout(c.dropout)
        if c.has_pooler: self.pooler = nn.Linear(C, C)
        if c.n_outputs: self.classifier = nn.Linear(C, c.n_outputs)
        if c.has_detector: self.detector = Detector(c)
        if c.has_mlm: self.mlm = MaskedLM(c, self.embeddings.tokens.weight)
        if c.has_generator: self.generator = Generator(c, self.embeddings.tokens.weight)
        self.stage = 0                                                     # 0: joint; 1, 2: of the two stages
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """BERT's: normal, cut off at two standard deviations. Pre-norm: what writes to the residual stream is
        1/sqrt(2L) of it."""
        c = self.config
        for name, p in self.named_parameters():
            std = c.init_std * ((2 * c.n_layer) ** -0.5
                                if c.pre_norm and name.endswith(('out.weight', 'down.weight')) else 1)
            if p.ndim >= 2: nn.init.trunc_normal_(p, 0, std, -2 * std, 2 * std)
            else: p.fill_(0 if name.endswith('bias') else 1)

    @torch.no_grad()
    def before_step(self, step):
        """The trainer calls this in front of every optimizer step, and once before it builds the optimizers. Two stages
        (3.3): steps below generator_steps train the generator alone; at that step the discriminator takes over its
        weights, and trains while the generator stays. True at that one step: other parameters train from now on. It
        looks at nothing but the number of the step and may be called again, so a run resumes exactly."""
        n, stage = self.config.generator_steps, 1 if step < self.config.generator_steps else 2
        if not n or not self.config.has_generator: return False
        if stage != self.stage:
            for name, p in self.named_parameters():
                p.requires_grad_(name.startswith('generator.') == (stage == 1))
                if not p.requires_grad: p.grad = None
        self.stage = stage
        if step == n:
            for own, theirs in ((self.embeddings, self.generator.embeddings), (self.encoder, self.generator.encoder)):
                for p, q in zip(own.parameters(), theirs.parameters()): p.copy_(q)
        return step == n

    # same as bert.py
    def depth_of(self, name):
        """Depth of a parameter, for layer_decay and freeze: 0 embeddings, 1 .. n_layer blocks, n_layer + 1 heads."""
        if name.startswith('encoder.blocks.'): return int(name.split('.')[2]) + 1
        return 0 if name.startswith(('embeddings.', 'encoder.project.')) else self.config.n_layer + 1

    # same as bert.py
    def hidden(self, ids, segments=None, mask=None):
        """ids, segments, mask: (B, T), 1 or true in mask for real tokens -> the last layer's hidden states (B, T, C)"""
        if mask is not None: mask = (mask > 0) if mask.size(1) else None
        # a row of padding alone: no NaN
        if mask is not None: mask = mask | (torch.arange(mask.size(1), device=ids.device) == 0)
        return self.encoder(self.embeddings(ids, segments), mask)

    def logits(self, ids, segments=None, mask=None):
        """ids, segments, mask: (B, T) -> "replaced" (B, T), or (B, T, V) of a masked language model. With another head:
        classes (B, n_labels), a number (B, 1), tags (B, T, n_labels), starts and ends (B, T, 2); choices, from
        (B, N, T): (B, N), -inf for rows of padding"""
        c = self.config
        if c.kind == 'none':
            raise ValueError('these weights have no head, so there are no logits: use hidden(), or fine-tune first')
        if c.kind == 'choice':
            y = self.scores(*(None if a is None else a.flatten(0, 1) for a in (ids, segments, mask)))
            y = y.view(ids.shape[:2])                                      # (B, N)
            return y if mask is None or not mask.size(2) else y.masked_fill(~(mask > 0).any(2), -math.inf)
        return self.scores(ids, segments, mask)

    def generator_hidden(self, ids):
        """What the generator's head reads. (B, T) -> (B, T, its C)"""
        own, share = self.generator, self.config.share
        embed, encoder = (own if share == 'none' else self).embeddings, (self if share == 'all' else own).encoder
        return encoder(embed(ids))

    def scores(self, ids, segments, mask):
        c, x = self.config, self.hidden(ids, segments, mask)
        if c.kind == 'text': return self.detector(x) if c.has_detector else self.mlm(x)
        return self.classifier(self.drop(F.gelu(self.pooler(x[:, 0])) if c.has_pooler else x))

    def forward(self, ids, *rest, totals=None):
        """The arrays of batch() -> loss, stats. With totals, the numbers of targets of the global batch, the parts of a
        batch add up to the loss of the whole: eq. of 2, L_MLM + lambda L_disc, where L_MLM is a mean over the chosen
        tokens and L_disc over all. Stats in eval mode: auc, the mean of the rows' areas under the curve; the rest in
        summary."""
        c, (B, T) = self.config, ids.shape[:2]
        if c.kind != 'text': return self.supervised(ids, *rest, totals=totals)
        if not c.has_generator and c.objective != 'mlm':
            raise ValueError('this is a discriminator without a generator: '
                             'fine-tune it, or pre-train with --generator_size above 0')
        (places, u), targets = rest[0].unbind(1), rest[1]                  # (B, K) each
        chosen, row = targets >= 0, T * torch.arange(B, device=ids.device)[:, None]            # in the flattened batch
        at = lambda x: x.flatten(0, 1).index_select(0, (places + row).flatten())               # (B, T, C) -> (B K, C)
        masked, real = (chosen.sum().clamp(min=1), ids.numel()) if totals is None else (totals[0], totals[1])
        mlm = lambda logits: F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction='sum') / masked
        hits = lambda logits: (logits.argmax(1) == targets.flatten()).sum() / masked
        if c.objective == 'mlm':
            y = self.mlm(at(self.hidden(ids))).float()                     # (B K, V)
            return mlm(y), {} if self.training else {'accuracy': hits(y)}

        # the generator, and a sample of what it thinks at each chosen place: no gradient goes through
        y = self.generator.mlm(at(self.generator_hidden(ids))).float()     # (B K, V)
        loss_g = mlm(y)
        before = ids.gather(1, places)
        new = torch.where(chosen, sample(y.detach(), u.flatten()).view_as(u), before)          # (B, K)
        fake = chosen & (new != targets)                                   # a sample equal to the original is real
        stats = {'generator_loss': loss_g.detach(), 'replaced': fake.sum() / real}
        if not self.training: stats['generator_accuracy'] = hits(y)

        # the discriminator on the text with the samples in it
        names = ('discriminator_loss',
                 *(() if self.training else ('caught', 'flagged', 'auc') if c.has_detector else ('accuracy',)))
        if self.stage == 1: return loss_g, stats | dict.fromkeys(names, torch.zeros_like(loss_g))
        x = self.hidden(ids.scatter(1, places, new))                       # (B, T, C)
        if c.objective == 'electra-15': x, label, judged, n = at(x).view(B, -1, c.n_embd), fake, chosen, masked
        else:
            label, judged, n = (torch.zeros_like(ids, dtype=torch.bool).scatter(1, places, fake),
                                torch.ones_like(ids, dtype=torch.bool), real)
        weight, logit = 1.0, self.detector(x).float() if c.has_detector else None              # (B, T), chosen: (B, K)
        if c.objective == 'replace-mlm':
            y = self.mlm(at(x)).float()
            loss_d = mlm(y)
            if not self.training: stats['accuracy'] = hits(y)
        elif c.objective == 'all-tokens-mlm':
            # 3.4: p(x_t) = D [x_t is the input] + (1 - D) softmax(..)_t, where 1 - D = sigmoid(logit)
            original = ids.scatter(1, places, torch.where(chosen, targets, before))
            nll = F.cross_entropy(self.mlm(x).flatten(0, 1).float(), original.flatten(), reduction='none')
            told = F.logsigmoid(logit) - nll.view_as(logit)                # (B, T)
            loss_d = -torch.where(label, told, torch.logaddexp(told, F.logsigmoid(-logit))).sum() / n
        else:
            loss_d = (F.binary_cross_entropy_with_logits(logit, label.float(), reduction='none') * judged).sum() / n
            weight = c.disc_weight
        stats['discriminator_loss'] = loss_d.detach()
        if not self.training and c.has_detector:
            flagged = (logit > 0) & judged
            stats.update(caught=(flagged & label).sum() / real, flagged=flagged.sum() / real,
                         auc=(area_under_curve(logit, label, judged) * judged.sum(1)).sum() / n)
        return (0 if self.stage == 2 else loss_g) + weight * loss_d, stats

    # same as bert.py
    def supervised(self, ids, segments, mask, targets, totals=None):
        y = self.logits(ids, segments, mask).float()
        if targets.is_floating_point():
            real = targets > -100
            squares = torch.where(real, y[:, 0] - targets, 0.0).square().sum()
            return squares / (real.sum().clamp(min=1) if totals is None else totals[0]), {}
        n = (targets >= 0).sum().clamp(min=1) if totals is None else totals[0]
        if self.config.kind == 'qa':  # a class for each place; padding is none
            y = y.transpose(1, 2)                                          # (B, 2, T)
            if mask.size(1): y = y.masked_fill(~mask[:, None], -math.inf)
        y, targets = y.flatten(0, -2), targets.flatten()
        return (F.cross_entropy(y, targets, ignore_index=-1, reduction='sum') / n,
                {'accuracy': (y.argmax(1) == targets).sum() / n})

    def flops(self):
        """Training flops of one row: (6 N + 12 L T C) T for each of the two (both stages counted as joint), where N
        leaves out look-up tables, and a head over the vocabulary counts for the K tokens that need it."""
        c, T, K = self.config, self.config.block_size, self.config.n_masked
        size = lambda module: sum(p.numel() for p in module.parameters())
        trunk = lambda encoder: (6 * size(encoder) + 12 * encoder.config.n_layer * T * encoder.config.n_embd) * T
        lm = lambda head: 6 * (size(head.head) + c.rows * c.embed)         # of a token
        row = trunk(self.encoder) + (6 * T * size(self.classifier) if c.kind in ('tagged', 'qa') else
                                     6 * (size(self.classifier) + size(self.pooler)) if c.n_outputs else 0)
        if c.has_detector: row += 6 * size(self.detector) * (K if c.objective == 'electra-15' else T)
        if c.has_mlm: row += lm(self.mlm) * (T if c.objective == 'all-tokens-mlm' else K)
        if c.has_generator:
            row += trunk(self.encoder if c.share == 'all' else self.generator.encoder) + lm(self.generator.mlm) * K
        return int(row)


def summary(stats):
    """What a person reads, from stats that are sums over the whole batch (shares of all its tokens): precision = caught
    / flagged and recall = caught / replaced, in the place of caught and flagged; 0 where nothing was there to find."""
    if stats.get('discriminator_loss') == 0:         # the first of two stages: there is no discriminator yet
        return {n: v for n, v in stats.items() if n in ('generator_loss', 'generator_accuracy', 'replaced')}
    stats = dict(stats)
    if 'caught' in stats:
        caught, flagged = stats.pop('caught'), stats.pop('flagged')
        stats.update(precision=caught / flagged if flagged else 0.0,
                     recall=caught / stats['replaced'] if stats['replaced'] else 0.0)
    return stats


@torch.no_grad()
def replaced(model, ids, segments=None, mask=None):
    """The discriminator's verdict: how probable it is that a token is not the one that stood there. (B, T) -> (B, T)"""
    if not model.config.has_detector:
        raise ValueError(f'these weights have no discriminator (kind={model.config.kind}, '
                         f'objective={model.config.objective}): give a pre-trained ELECTRA')
    return model.logits(ids, segments, mask).float().sigmoid()
