"""Encoder-decoders in one file: T5, T5 v1.1, Flan-T5, mT5, UL2, AlexaTM's shape.

    python train.py --model=t5         # learns to fill the holes in the standard library's source
    python train.py --model=t5 --init_from=out/t5 --data=my.jsonl    # turns "input" into "target"

A text is damaged, the encoder reads the damaged text, the decoder writes what is missing. Which
damage it is, --objective says: spans and prefix are in this file, the others in lib/noise.py.

    spans     Thank you <X> me to your party <Y>  ->  <X> for inviting <Y> last week   (T5, 3.1.4)
    prefix    Thank you for inviting              ->  me to your party last week

Papers: T5 Raffel et al. 2020 (1910.10683), v1.1 Shazeer 2020 (2002.05202), BART Lewis et al. 2020
(1910.13461), UL2 Tay et al. 2022 (2205.05131), AlexaTM 20B Soltan et al. 2022 (2208.01448), Flan
Chung et al. 2022 (2210.11416), mT5 Xue et al. 2021 (2010.11934); RMS-scaled AdamW: nanoT5, Nawrot
2023 (2309.02373).

Where we depart from them: an exact share of each row is damaged (the papers draw each token), so
shapes are static; an untied head starts at C^-1/2, so that the first loss is ln V; shared=true
leaves the decoder's cross-attention and the two tables of positions unshared; a decoder alone
(lib/one_stack.py) has its loss on the targets only; AlexaTM's shape has T5's norm and positions.

Letters: B batch, T target tokens, S source tokens, L tokens of the undamaged text, C width,
H heads, D head width, F hidden width of the MLP, V vocabulary, R rows while decoding (B x beams).
"""
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

family = 't5'                 # which tables of lib/ fit this Model
kinds = ('text', 'pairs')     # the kinds of data that it trains on

objectives = ('spans', 'drop', 'prefix', 'mass', 'bert', 'mask', 'deshuffle', 'delete', 'infill',
              'permute', 'rotate', 'bart', 'ul2', 'alexatm')
ragged = ('prefix', 'infill', 'bart', 'ul2', 'alexatm')  # their rows differ in length
activations = dict(relu=F.relu, gelu_tanh=partial(F.gelu, approximate='tanh'), gelu=F.gelu,
                   silu=F.silu)


@dataclass
class Config:
    vocab_size: int = 32128      # V: number of tokens; train.py takes it from the data
    vocab_multiple: int = 1      # the token table's rows are a multiple of this (128 suits a GPU)
    block_size: int = 512        # S: tokens that the encoder reads, made of more or less text
    target_size: int = 128       # T: tokens of the longest target of kind pairs
    n_layer: int = 6             # blocks of the encoder
    n_decoder_layer: int = 0     # blocks of the decoder; 0: n_layer
    n_head: int = 8              # H: attention heads
    n_embd: int = 512            # C: width of the model
    head_dim: int = 64           # D: width of a head; 0: n_embd / n_head
    n_hidden: int = 2048         # F: width of the MLP
    activation: str = 'relu'     # relu | gelu_tanh | gelu | silu
    gated: bool = False          # MLP = down(activation(gate(x)) * up(x)): v1.1 and later
    tied: bool = True            # the head's matrix is the token table
    scale_head: bool = True      # the head reads C^-1/2 times its input: goes with tied
    dropout: float = 0.0         # on embeddings, attention weights, hidden layers and each branch
    norm_eps: float = 1e-6       # added to the mean square
    buckets: int = 32            # relative positions are told apart in this many classes
    max_distance: int = 128      # and not at all from here on
    architecture: str = 'encoder-decoder'  # or one stack: decoder (causal), prefix (the target is)
    shared: bool = False         # the encoder's blocks are the decoder's, but for cross-attention
    checkpoint_activations: bool = False  # recompute each block in the backward pass: saves memory
    residual_autocast: bool = False  # bf16 residual stream under autocast: faster, less exact
    objective: str = 'spans'     # spans drop prefix mass bert deshuffle mask delete infill permute rotate bart ul2 alexatm
    density: float = 0.0         # share of tokens that is damaged; 0: 0.15, or 0.3 for infill, bart
    span: float = 3.0            # mean length of a span
    kind: str = 'text'           # text (see objective) | pairs; train.py takes it from the data
    beams: int = 1               # beams that write the predictions of an evaluation; 1: greedy
    pad_id: int = 0              # token of padding, and the first one that the decoder reads
    start_id: int = -1           # the first token that the decoder reads, if not pad_id
    eot_id: int = 1              # the end of every source and target, T5's </s>
    mask_id: int = 32099         # <M>; T5 has none and takes its first sentinel
    stop_id: int = 5             # token at the end of a sentence (permute)
    sentinel_first: int = 32099  # <X>, T5's <extra_id_0>; -1: the tokenizer has none
    sentinel_step: int = -1      # from one sentinel to the next: T5's count downwards
    n_sentinel: int = 100        # number of sentinels

    def __post_init__(self):
        choices = dict(activation=activations, objective=objectives, kind=kinds,
                       architecture=('encoder-decoder', 'decoder', 'prefix'))
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f'{name}={value!r} is not one of: {" ".join(map(repr, allowed))}')
        at_least = dict(vocab_size=1, vocab_multiple=1, block_size=8, target_size=1, n_layer=1,
                        n_head=1, n_embd=1, n_hidden=1, span=1, beams=1)
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f'{name}={getattr(self, name)}: expected {least} or more')
        if not self.head_dim and self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} is not a multiple of n_head={self.n_head}; '
                             'or give --head_dim')
        if self.buckets < 4 or self.buckets % 4 or self.max_distance <= self.buckets // 2:
            raise ValueError(f'buckets={self.buckets}, max_distance={self.max_distance}: '
                             'expected a multiple of 4, and more than half of it')
        if not 0 <= self.density <= 0.9:
            raise ValueError(f'density={self.density}: expected 0 to 0.9')
        if self.shared and self.decoder_layers != self.n_layer:
            raise ValueError('shared=true needs as many blocks on both sides: '
                             f'n_layer={self.n_layer}, n_decoder_layer={self.n_decoder_layer}')

    @property
    def rows(self):
        """Rows of the token table."""
        return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple

    @property
    def width(self):
        """D, the width of a head."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def decoder_layers(self):
        return self.n_decoder_layer or self.n_layer

    @property
    def two(self):
        """Are there two stacks, an encoder and a decoder?"""
        return self.architecture == 'encoder-decoder'

    @property
    def start(self):
        """The first token that the decoder reads."""
        return self.pad_id if self.start_id < 0 else self.start_id

    def sentinel(self, i):
        return self.sentinel_first + self.sentinel_step * i

    def noisy(self, L, density=0.0, span=0.0):
        """How many of L tokens are damaged, and in how many spans: T5's own rounding. density and
        span: those of the config if not given."""
        if not density:
            density = self.density or (0.3 if self.objective in ('infill', 'bart') else 0.15)
        lost = min(max(round(L * density), 1), L - 1)
        n = min(max(round(lost / (span or self.span)), 1), lost, L - lost)
        return lost, n

    @property
    def lengths(self):
        """(L, S, T): tokens of the longest text whose damaged form fits into block_size, of the
        source and of the target that it makes. T5's are (568, 512, 114)."""
        if self.kind != 'text':
            return 0, self.block_size, self.target_size
        L = self.block_size
        while L > 2 and sizes(self, L)[0] > self.block_size:
            L -= 1
        while sizes(self, L + 1)[0] <= self.block_size:
            L += 1
        return L, *sizes(self, L)

# ---------------------------------------------------------- presets: what differs from T5-small

_v11 = dict(activation='gelu_tanh', gated=True, tied=False, scale_head=False)
_v10_sizes = {
    'small': dict(),
    'base': dict(n_layer=12, n_head=12, n_embd=768, n_hidden=3072),
    'large': dict(n_layer=24, n_head=16, n_embd=1024, n_hidden=4096),
    '3b': dict(n_layer=24, n_head=32, n_embd=1024, head_dim=128, n_hidden=16384),
    '11b': dict(n_layer=24, n_head=128, n_embd=1024, head_dim=128, n_hidden=65536),
}
_v11_sizes = {
    'small': dict(n_layer=8, n_head=6, n_embd=512, n_hidden=1024),
    'base': dict(n_layer=12, n_head=12, n_embd=768, n_hidden=2048),
    'large': dict(n_layer=24, n_head=16, n_embd=1024, n_hidden=2816),
    'xl': dict(n_layer=24, n_head=32, n_embd=2048, n_hidden=5120),
    'xxl': dict(n_layer=24, n_head=64, n_embd=4096, n_hidden=10240),
}
_mt5 = dict(vocab_size=250112, sentinel_first=250099, mask_id=250099, block_size=1024)

presets = {
    # density: more to learn from a row
    'small': dict(_v11, block_size=128, n_layer=3, n_head=4, n_embd=256, n_hidden=512, density=0.3),
    **{f't5-{size}': p for size, p in _v10_sizes.items()},
    **{f't5-v1_1-{size}': dict(_v11, **p) for size, p in _v11_sizes.items()},
    # dropout: for fine-tuning
    **{f'flan-t5-{size}': dict(_v11, **p, dropout=0.1) for size, p in _v11_sizes.items()},
    **{f'mt5-{size}': dict(_v11, **p, **_mt5) for size, p in _v11_sizes.items()},
    'speedrun-nanot5': dict(_v11, **_v11_sizes['base']),
    'ul2': dict(_v11 | dict(activation='silu'), n_layer=32, n_head=16, head_dim=256, n_embd=4096,
                n_hidden=16384, objective='ul2'),
    'alexatm-20b': dict(vocab_size=150000, block_size=1024, n_layer=46, n_decoder_layer=32,
                        n_head=32, head_dim=128, n_embd=4096, n_hidden=16384, activation='gelu',
                        tied=False, scale_head=False, objective='alexatm'),
}

# What trains well: overrides of train.py's fields (and of Config's). Rates are relative: each
# matrix moves by learning_rate times its own RMS. Weights to start from are fine-tuned as the paper
# does it, at a constant rate (3.1.2); a preset is pre-trained, with the paper's 1 / sqrt(step).
recipe = dict(preset='small', vocab_multiple=128, rms_scale=True, learning_rate=1e-3,
              lr_schedule='constant', batch_size=32, warmup_iters=20, weight_decay=0.0,
              beta1=0.9, beta2=0.999, eps=1e-6, grad_clip=1.0)
recipes = {name: dict(learning_rate=1e-2, lr_schedule='inverse_sqrt', warmup_iters=10000,
                      max_iters=524288, batch_size=128, eval_interval=1000) for name in presets}
recipes['t5-v1_1-base'] |= dict(learning_rate=2e-2, min_lr=1e-5, lr_schedule='cosine',
                                max_iters=65536)  # nanoT5's
recipes['speedrun-nanot5'] = recipes['t5-v1_1-base'] | dict(micro_batch_size=64, eval_iters=2048,
                                                            log_interval=100)
recipes['small'] = dict(learning_rate=1e-2, lr_schedule='linear', warmup_iters=20, max_iters=900,
                        batch_size=16, beta2=0.98, eval_interval=300, eval_iters=64)
finetune = {n: v for n, v in recipe.items() if n not in ('preset', 'vocab_multiple')}
finetune |= dict(epochs=3.0, eval_interval=0)

# ---------------------------------------------------------- objectives, and batches of running text
# An objective takes the text (B, L) and uniform numbers u (B, 2L), and returns source (B, S) and
# target (B, T), each row ended by eot_id and then padded with -1.

def sizes(config, L):
    """The lengths S of the source and T of the target that L tokens of text make."""
    if config.objective == 'spans':
        lost, n = config.noisy(L)
        return L - lost + n + 1, lost + n + 1
    if config.objective == 'prefix':
        return L, L
    from lib import noise
    return noise.sizes(config, L)


def split(u, total, n):
    """Cuts `total` into n parts, none empty, all ways equally likely -> where each ends (B, n)"""
    end = np.full((len(u), 1), total)
    if n == 1:
        return end
    cuts = np.argpartition(u[:, :total - 1], n - 2, axis=1)[:, :n - 1] + 1
    return np.concatenate((np.sort(cuts, axis=1), end), axis=1)


def with_sentinels(config, tokens, columns):
    """Rows of K tokens each, sentinel i put in at columns[:, i], and the end of text.
    tokens: those of all rows, (B K); columns: (B, n) -> (B, K + n + 1)"""
    B, n = columns.shape
    row = np.full((B, len(tokens) // B + n + 1), config.eot_id)
    is_token = np.ones(row.shape, bool)
    is_token[:, -1] = False
    np.put_along_axis(is_token, columns, False, axis=1)
    np.put_along_axis(row, columns, config.sentinel(np.arange(n)), axis=1)
    row[is_token] = tokens
    return row


def spans(config, tokens, u, density=0.0, span=0.0):
    """Spans of the text become sentinels; the target is each sentinel with its span behind it. The
    text begins with tokens that are kept and ends with a span."""
    B, L = tokens.shape
    lost, n = config.noisy(L, density, span)
    kept_ends = split(u, L - lost, n)                              # (B, n): kept before span i
    lost_ends = split(u[:, L:], lost, n)                           # (B, n): lost up to its end
    lost_begins = np.pad(lost_ends[:, :-1], ((0, 0), (1, 0)))
    edges = np.zeros((B, L + 1), np.int8)
    np.put_along_axis(edges, kept_ends + lost_begins, 1, axis=1)   # a span begins
    np.put_along_axis(edges, kept_ends + lost_ends, -1, axis=1)    # and ends
    is_lost = edges[:, :L].cumsum(axis=1, dtype=np.int8) > 0
    i = np.arange(n)
    source = with_sentinels(config, tokens[~is_lost], kept_ends + i)
    target = with_sentinels(config, tokens[is_lost], lost_begins + i)
    return source, target


def prefix(config, tokens, u, low=0.0, high=1.0):
    """The source is the first part of the text, low to high of it; the target is the rest."""
    L = tokens.shape[1]
    share = low + (high - low) * u[:, :1]                          # (B, 1)
    n = np.clip((L * share).astype(np.int64), 1, L - 1)
    column = np.arange(L)
    source = np.where(column < n, tokens.astype(np.int64), -1)
    source[column == n] = config.eot_id
    target = np.full(tokens.shape, -1)
    target[column < L - n] = tokens[column >= n]
    target[column == L - n] = config.eot_id
    return source, target


def check_sentinels(config, L):
    """Raises ValueError if the tokenizer has fewer sentinels than a row of L tokens takes."""
    spans_of = dict(spans=config.noisy(L)[1], ul2=config.noisy(L, 0.5, 3)[1] + 3, alexatm=1)
    needed = spans_of.get(config.objective, 0)
    if needed and config.sentinel_first < 0:
        raise ValueError(f'objective={config.objective} needs sentinels, which this tokenizer '
                         'lacks: use --tokenizer=bpe')
    if needed > config.n_sentinel:
        raise ValueError(f'{L} tokens in a row take {needed} sentinels, there are '
                         f'{config.n_sentinel}: lower --block_size or raise --span')


def batch(draw, config, rng):
    """One micro-batch of running text: source (B, S) and last the targets (B, T), -1 for padding.
    Where rows differ in length, two arrays stand between: mask, bool (B, S), which tokens of the
    source are real; and places, those of the B T targets that the loss is computed at, real ones
    first (their number is a multiple of 64). Rows of pairs come from lib/pairs.py."""
    L, _, _ = config.lengths
    check_sentinels(config, L)
    tokens = draw(L)                                               # (B, L)
    u = rng.random(2 * L)                                          # (B, 2L)
    if config.objective == 'spans':
        return spans(config, tokens, u)
    if config.objective == 'prefix':
        source, targets = prefix(config, tokens, u)
    else:
        from lib import noise
        source, targets = noise.damage(config, tokens, u, spans, prefix)
    if config.objective not in ragged:
        return source, targets
    from lib.pairs import mark_padding
    return mark_padding(source, targets, config.pad_id)


def fill(tokenizer):
    """The Config fields that a tokenizer decides beside vocab_size, eot_id and pad_id."""
    sentinels = tokenizer.sentinels
    stops = [ids[0] for ids in map(tokenizer.encode, '.\n') if len(ids) == 1]
    masks = [i for i in (tokenizer.mask, *sentinels[:1], tokenizer.eot) if i is not None]
    starts_with_eot = tokenizer.pad is None and tokenizer.eot is not None
    return dict(sentinel_first=sentinels[0] if sentinels else -1,
                sentinel_step=sentinels[1] - sentinels[0] if len(sentinels) > 1 else 1,
                n_sentinel=len(sentinels),
                mask_id=masks[0] if masks else 0, stop_id=stops[0] if stops else -1,
                start_id=tokenizer.eot if starts_with_eot else -1)

# ---------------------------------------------------------- modules

class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32 whatever comes in; returns the weight's dtype."""

    def __init__(self, width, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        exact = torch.promote_types(x.dtype, torch.float32)
        y = F.rms_norm(x.to(exact), self.weight.shape, self.weight.to(exact), self.eps)
        return y.to(self.weight.dtype)


def fused(width, **parts):
    """Several linear layers of one input as one, which is faster. .parts has the rows of each, for
    those who need them apart: adapters, Muon."""
    layer = nn.Linear(width, sum(parts.values()), bias=False)
    layer.parts = parts
    return layer


class Attention(nn.Module):
    """softmax(q k^T + bias) v, without 1/sqrt(D), which the first weights of q hold. Those differ
    from the first weights of k and v, so q is a matrix by itself: an RMS-scaled learning rate needs
    its own RMS."""

    def __init__(self, config):
        super().__init__()
        width = config.n_head * config.width                       # H D
        self.H = config.n_head
        self.dropout = config.dropout
        self.q = nn.Linear(config.n_embd, width, bias=False)
        self.kv = fused(config.n_embd, k=width, v=width)
        self.out = nn.Linear(width, config.n_embd, bias=False)

    def heads(self, x):
        return x.unflatten(-1, (self.H, -1)).transpose(1, 2)       # (B, T, H D) -> (B, H, T, D)

    def keys(self, x):
        """x: (B, S, C) -> keys and values, (B, H, S, D) each"""
        k, v = self.kv(x).chunk(2, dim=-1)
        return self.heads(k), self.heads(v)

    def forward(self, x, keys, bias=None):
        """x: (R, T, C); keys: k and v (B, H, S, D); bias: float, or bool for who is seen,
        (1 or B, 1 or H, 1 or T, S) -> (R, T, C). Rows that share their keys (the beams of one
        source, R = n B) are taken together."""
        R, T, _ = x.shape
        k, v = keys
        q = self.heads(self.q(x))                                  # (R, H, T, D)
        if R != len(k):
            q = q.unflatten(0, (len(k), -1)).transpose(1, 2).flatten(2, 3)  # (B, H, n T, D)
        dropout = self.dropout if self.training else 0.0
        # torch has no fast kernel for these two on a CPU: a single query, a bias that is trained
        if x.device.type == 'cpu' and (T == 1 or bias is not None and bias.requires_grad):
            scores = q @ k.transpose(-1, -2)                       # (B, H, n T, S)
            if bias is not None and bias.dtype == torch.bool:
                scores = scores.masked_fill_(~bias, -math.inf)
            elif bias is not None:
                scores = scores.add_(bias)
            y = F.dropout(scores.softmax(dim=-1), dropout) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=1.0)
        y = y.unflatten(2, (-1, T)).permute(0, 2, 3, 1, 4)         # (B, n, T, H, D)
        return self.out(y.reshape(R, T, -1))


class MLP(nn.Module):
    """down(activation(up(x))), or gated: down(activation(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config):
        super().__init__()
        self.gated = config.gated
        self.activation = activations[config.activation]
        self.drop = nn.Dropout(config.dropout)
        parts = ('gate', 'up') if config.gated else ('up',)
        self.up = fused(config.n_embd, **dict.fromkeys(parts, config.n_hidden))
        self.down = nn.Linear(config.n_hidden, config.n_embd, bias=False)

    def forward(self, x):
        if self.gated:
            gate, up = self.up(x).chunk(2, dim=-1)                 # (B, T, F) each
            x = self.drop(self.activation(gate) * up)
        else:
            x = self.drop(self.activation(self.up(x)))
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return self.down(x.to(self.down.weight.dtype))
        if torch.get_autocast_dtype(device) == torch.float16:      # where it would overflow
            with torch.autocast(device, enabled=False):
                return self.down(x.float())
        return self.down(x)


class Block(nn.Module):
    """Self-attention, cross-attention (in the decoder of two stacks) and MLP, each after a norm."""

    def __init__(self, config, cross):
        super().__init__()
        self.norm_self = RMSNorm(config.n_embd, config.norm_eps)
        self.attention = Attention(config)
        if cross:
            self.norm_cross = RMSNorm(config.n_embd, config.norm_eps)
            self.cross = Attention(config)
        self.norm_mlp = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x, bias, memory=None, real=None, write=None):
        """x: (B, T, C) -> (B, T, C). memory: the encoder's output (B, S, C), or keys and values of
        it; None: no cross-attention. real: bool (B, 1, 1, S), which of it is no padding. write: a
        function that puts keys and values into a cache and returns all that it holds."""
        y = self.norm_self(x)
        keys = self.attention.keys(y)
        if write is not None:
            keys = write(*keys)
        x = x + self.drop(self.attention(y, keys, bias))
        if memory is not None:
            y = self.norm_cross(x)
            keys = memory if isinstance(memory, tuple) else self.cross.keys(memory)
            x = x + self.drop(self.cross(y, keys, real))
        return x + self.drop(self.mlp(self.norm_mlp(x)))


def bucket(far, two_way, n, max_distance):
    """The class, 0 to n - 1, of a relative position far = key - query, of any shape (T5, 2.1). Half
    of the classes are exact, the others grow with the logarithm up to max_distance. two_way: half
    of them are for each side, else all are for the past."""
    side = 0
    if two_way:
        n = n // 2
        side = (far > 0) * n
        far = far.abs()
    else:
        far = -far.clamp(max=0)
    exact = n // 2
    growth = torch.log(far.float() / exact) / math.log(max_distance / exact)
    wide = exact + (growth * (n - exact)).long()
    return side + torch.where(far < exact, far, wide.clamp(max=n - 1))  # log 0 = -inf is not taken


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        C = config.n_embd
        self.tokens = nn.Embedding(config.rows, C)
        self.drop = nn.Dropout(config.dropout)
        if config.two:
            if not config.shared:
                self.encoder = nn.ModuleList(Block(config, False) for _ in range(config.n_layer))
            self.encoder_bias = nn.Embedding(config.buckets, config.n_head)
            self.encoder_norm = RMSNorm(C, config.norm_eps)
        L = config.decoder_layers
        self.decoder = nn.ModuleList(Block(config, config.two) for _ in range(L))
        self.decoder_bias = nn.Embedding(config.buckets, config.n_head)
        self.decoder_norm = RMSNorm(C, config.norm_eps)
        self.head = nn.Linear(C, config.rows, bias=False)
        if config.tied:
            self.head.weight = self.tokens.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Every branch starts at unit variance (mesh-tensorflow's code; q: (C D)^-1/2 stands in for
        1/sqrt(D))."""
        c = self.config
        std = dict(q=(c.n_embd * c.width) ** -0.5, out=(c.n_head * c.width) ** -0.5,
                   down=c.n_hidden ** -0.5, tokens=1.0)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                p.normal_(0, std.get(name.split('.')[-2], c.n_embd ** -0.5))

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        for m in self.modules():       # model.half() spares the matrix whose output overflows
            if isinstance(m, MLP) and m.down.weight.dtype == torch.float16:
                m.down.float()
        return self

    def bias(self, table, T, S, two_way, real=None, causal=False):
        """The bias of T queries on S keys, (1 or B, H, T, S), -inf where a query must not look. It
        is computed per distance, then laid out by reading rows of T + S numbers with a stride one
        shorter: each row begins one place further on. The gradient is a plain sum."""
        c = self.config
        r = torch.arange(S + T, device=table.weight.device)
        far = torch.where(r < S, r, r - S - T)                     # 0 .. S - 1, -T .. -1
        classes = bucket(far, two_way, c.buckets, c.max_distance)
        w = table(classes).t()                                     # (H, S + T)
        w = w[:, None].expand(-1, T, -1).flatten(1)[:, :T * (S + T - 1)]
        w = w.unflatten(1, (T, -1))[:, :, :S].contiguous()[None]   # (1, H, T, S)
        if causal:
            w = w.masked_fill(r[:S] > r[:T, None], -math.inf)
        if real is not None:
            w = w.masked_fill(~real, -math.inf)
        device = w.device.type
        if torch.is_autocast_enabled(device):
            w = w.to(torch.get_autocast_dtype(device))
        return w

    def run(self, block, *inputs):
        if self.config.checkpoint_activations and self.training:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def begin(self, x):
        """What the first block gets: x (B, T, C) with dropout, in bf16 under residual_autocast."""
        if self.config.residual_autocast and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return self.drop(x)

    def encode(self, source, real=None):
        """source: ids (B, S) or their vectors (B, S, C), real: bool (B, 1, 1, S) -> (B, S, C)"""
        S = source.size(1)
        x = self.begin(self.tokens(source) if source.ndim == 2 else source)
        bias = self.bias(self.encoder_bias, S, S, True, real)
        for block in self.decoder if self.config.shared else self.encoder:
            x = self.run(block, x, bias)
        return self.drop(self.encoder_norm(x))

    def hidden(self, source, target_in, mask=None):
        """source (B, S), what the decoder reads (B, T), mask: bool (B, S), which source tokens are
        real -> what the head reads, (B, T, C)"""
        if not self.config.two:
            from lib import one_stack
            return one_stack.hidden(self, source, target_in, mask)
        S, T = source.size(1), target_in.size(1)
        real = None if mask is None else mask[:, None, None]
        both = self.tokens(torch.cat((source, target_in), dim=1))  # so the table has one gradient
        memory = self.encode(both[:, :S], real)
        x = self.begin(both[:, S:])
        bias = self.bias(self.decoder_bias, T, T, two_way=False, causal=True)
        for block in self.decoder:
            x = self.run(block, x, bias, memory, real)
        return self.scaled(self.drop(self.decoder_norm(x)))

    def scaled(self, x):
        return x * self.config.n_embd ** -0.5 if self.config.scale_head else x

    def forward(self, source, *rest, totals=None):
        """(source, targets) or (source, mask, places, targets), as batch() has them -> loss, stats.
        With totals, the number of targets of the global batch, the parts of a batch add up to the
        loss of the whole. In eval mode stats has the accuracy of the single tokens."""
        *between, targets = rest
        mask, places = between or (None, None)
        start = torch.full_like(targets[:, :1], self.config.start)
        target_in = torch.cat((start, targets[:, :-1].clamp(min=0)), dim=1)
        x = self.hidden(source, target_in, mask).flatten(0, 1)     # (B T, C)
        y = targets.flatten()
        if places is not None:                                     # no logits for padding
            x = x[places]
            y = y[places]
        total = (y >= 0).sum().clamp(min=1) if totals is None else totals[0]
        V = self.config.vocab_size
        if self.training and x.device.type == 'cpu' and not torch.compiler.is_compiling():
            from lib import head_loss
            if head_loss.fits(self.head, x):
                return head_loss.HeadLoss.apply(x, self.head.weight, V, y, 1 / total), {}
        logits = self.head(x)[:, :V].float()                       # rows of padding have no logit
        loss = F.cross_entropy(logits, y, ignore_index=-1, reduction='sum') / total
        if self.training:
            return loss, {}
        return loss, {'accuracy': (logits.argmax(dim=-1) == y).sum() / total}

    def logits(self, source, target_in, mask=None):
        """source (B, S), what the decoder reads (B, T), mask (B, S) -> (B, T, V)"""
        return self.head(self.hidden(source, target_in, mask))[..., :self.config.vocab_size]

    def cache(self, rows, length, source, mask=None):
        """Reads the source (B, S) once, for `rows` rows (a multiple n of B: row i continues source
        i // n), each of which may step through `length` tokens. mask: as in hidden()."""
        c = self.config
        length += 0 if c.two else source.size(1)
        far = -torch.arange(length, device=source.device)
        classes = bucket(far, c.architecture == 'prefix', c.buckets, c.max_distance)
        bias = self.decoder_bias(classes).t().contiguous()         # (H, length)
        from lib.beams import Cache
        if not c.two:
            from lib import one_stack
            cache = Cache(c, rows, length, bias, [None] * c.decoder_layers, None)
            return one_stack.read(self, cache, source, mask)
        real = None if mask is None else mask[:, None, None]
        encoded = self.encode(source, real)
        memory = [block.cross.keys(encoded) for block in self.decoder]
        memory = [(k.contiguous(), v.contiguous()) for k, v in memory]
        return Cache(c, rows, length, bias, memory, real)

    def step(self, ids, cache):
        """ids (R, T), the start token first -> logits of what follows the last of them (R, V)"""
        T = ids.size(1)
        if not torch.compiler.is_compiling() and ids.device.type == 'cpu':
            # reading the place costs nothing here, and saves the work on places still empty
            S = int(cache.position) + T
            if S > cache.length:
                raise ValueError(f'the cache of {cache.length} tokens is full')
            positions = cache.places[S - T:S]
        else:
            S = cache.length
            positions = cache.position + cache.places[:T]
        far = positions[:, None] - cache.places[:S]                # (T, S)
        bias = cache.bias[:, far.clamp(min=0)][None]               # (1, H, T, S)
        bias = bias.masked_fill(far < 0, -math.inf)
        if cache.seen is not None:
            bias = bias.masked_fill(~cache.seen[..., :S], -math.inf)
        x = self.tokens(ids)
        for block, keys, values, memory in zip(self.decoder, cache.k, cache.v, cache.memory):
            def write(k, v):
                keys.index_copy_(2, positions, k.to(keys.dtype))
                values.index_copy_(2, positions, v.to(values.dtype))
                return keys[:, :, :S], values[:, :, :S]
            x = block(x, bias, memory, cache.real, write)
        cache.position += T
        x = self.scaled(self.decoder_norm(x[:, -1]))
        return self.head(x)[:, :self.config.vocab_size]


def generate(model, source, mask=None, max_new_tokens=64, **options):
    """What the model answers to source (B, S): tokens (B, n <= max_new_tokens), up to eot_id and
    then pad_id. mask: as in Model.hidden. lib/beams.py has the options: temperature, beams, ..."""
    from lib import beams
    return beams.generate(model, source, mask, max_new_tokens, **options)
