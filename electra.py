"""ELECTRA: a small generator fills hidden tokens, a discriminator tells which ones were replaced.

    python train.py --model=electra         # pre-trains on the standard library
    python train.py --model=electra --init_from=out/electra --data=stdlib-modules    # fine-tunes

batch() hides a share of the tokens of running text. One graph does the rest: the generator's logits
at the hidden places, a sample of each, the text with the samples in it, the discriminator's verdict
on all of it, logits(ids) (B, T). Fine-tuning drops the generator; heads and data are bert.py's.

Paper: ELECTRA, Clark et al. 2020 (2003.10555): the objective 2, sharing, sizes and two stages 3.2
to 3.3, the ablations 3.4 (lib/ablations.py), tables 6 and 7. What it leaves open follows the
released code: 85 % of chosen tokens become [MASK], the rest stay.

Where we depart from it: rows are windows of running text and always full, so that all T tokens are
real; exactly K are chosen in each. A sample is drawn by inverting the distribution function at a
random number that belongs to the row: the same distribution as by the Gumbel trick, however a batch
is split over micro-batches and ranks. Without shared embeddings the generator's keep their width.
The default run has a modern encoder (rotary, pre-norm), which learns in far fewer steps.

Letters: B batch, T tokens, C width, E width of the embeddings, H heads, D head width, F hidden
width of the MLP, V vocabulary, K chosen tokens of a row, L tokens of text in a row, N choices.
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

family = 'electra'  # names the tables of lib/ that fit this Model; a copy keeps the line


# same as bert.py
def require(condition, message):
    if not condition:
        raise ValueError(message)


@dataclass
class Config:
    vocab_size: int = 30522      # V: number of tokens; train.py takes it from the data
    vocab_multiple: int = 1      # round the rows of the token table up to a multiple (GPU: 128)
    block_size: int = 512        # T: tokens in a row, [CLS] and [SEP] counted
    n_layer: int = 12            # number of blocks
    n_head: int = 12             # H: attention heads
    n_embd: int = 768            # C: width of the discriminator
    n_hidden: int = 0            # F: width of the MLP; 0: 4 n_embd
    embed_dim: int = 0           # E: width of the embeddings (small: 128); 0: n_embd
    positions: str = 'learned'   # learned | rotary (which transformers' ELECTRA lacks)
    pre_norm: bool = False       # norm before each branch and at the end, not after each sum
    n_segments: int = 2          # rows of the table that tells first and second text apart; 0: none
    norm_eps: float = 1e-12      # added to the variance
    activation: str = 'gelu'     # gelu (erf) | gelu_tanh | relu | silu
    gated: bool = False          # MLP = down(activation(gate(x)) * up(x)): GeGLU
    dropout: float = 0.1         # on embeddings, branches and in front of heads
    attention_dropout: float = 0.1  # on attention weights; if not 0, attention on a CPU is slow
    init_std: float = 0.02       # standard deviation of the first weights, a normal cut off at two
    # pre-training
    objective: str = 'electra'   # electra | electra-15 | replace-mlm | all-tokens-mlm | mlm (alone)
    disc_weight: float = 50.0    # lambda: weight of the discriminator's loss in electra, electra-15
    generator_size: float = 1 / 3  # width of its layers as a share of n_embd, n_hidden; 0: none
    generator_layers: int = 0    # blocks of the generator; 0: n_layer
    generator_heads: int = 0     # its heads; 0: width / 64, at least 1 (of the same width: n_head)
    share: str = 'embeddings'    # between the two: embeddings | none | all (needs generator_size=1)
    generator_steps: int = 0     # two stages: steps of the generator, from which the other starts
    mask_rate: float = 0.15      # share of the tokens that the generator replaces
    mask_share: float = 0.85     # of these: share that it sees as [MASK]; it sees the rest
    # fine-tuning
    kind: str = 'text'           # head, by the data: text | labelled | tagged | qa | choice | none
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
    checkpoint_activations: bool = False  # recompute each block in the backward pass: less memory
    residual_autocast: bool = False  # autocast: bf16 in the residual stream too; faster, less exact

    def __post_init__(self):
        for name, allowed in choices.items():
            value = getattr(self, name)
            require(value in allowed,
                    f'{name}={value!r} is not one of: {" ".join(map(repr, allowed))}')
        for name in ('vocab_size', 'vocab_multiple', 'n_layer', 'n_head', 'n_embd', 'doc_stride'):
            require(getattr(self, name) >= 1, f'{name}={getattr(self, name)}: expected 1 or more')
        for name in ('mask_rate', 'mask_share'):
            value = getattr(self, name)
            require(0 <= value <= 1, f'{name}={value}: expected a share from 0 to 1')
        require(0 < self.init_std < 1e9,
                f'init_std={self.init_std}: expected more than 0, under 1e9')
        require(self.block_size >= 8, f'block_size={self.block_size}: expected 8 or more')
        D = self.n_embd // self.n_head
        require(D * self.n_head == self.n_embd,
                f'n_embd={self.n_embd} is not a multiple of n_head={self.n_head}')
        require(self.positions != 'rotary' or D % 2 == 0,
                f'rotary positions turn pairs: a head of {D} numbers is odd')
        require(self.generator_size >= 0, f'generator_size={self.generator_size}: '
                'expected a share of n_embd, or 0 for none')
        if not self.has_generator:
            return
        width, heads, layers, _ = self.generator
        require(width >= 1 and width % heads == 0,
                f'the generator is {width} wide (generator_size={self.generator_size:g} of n_embd='
                f'{self.n_embd}), not a multiple of its {heads} heads: set --generator_heads')
        equal = self.generator == (self.n_embd, self.n_head, self.n_layer, self.hidden)
        require(equal or self.share != 'all',
                f'share=all needs two equal encoders, and the generator has width {width}, {heads} '
                f'heads, {layers} layers: add --generator_size=1')
        # a frozen generator, and a copy of it that learns on
        require(equal and self.share == 'none' or not self.generator_steps,
                f'generator_steps={self.generator_steps} starts the discriminator from the '
                'generator: add --generator_size=1 --share=none')

    @property
    def rows(self):  # of the token table
        return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple
    @property
    def hidden(self):  # F
        return self.n_hidden or 4 * self.n_embd
    @property
    def embed(self):  # E
        return self.embed_dim or self.n_embd
    @property
    def n_masked(self):  # K
        return max(1, round(self.mask_rate * (self.block_size - 2)))
    @property
    def n_outputs(self):
        outputs = dict(labelled=self.n_labels or 1, tagged=self.n_labels, qa=2, choice=1)
        return outputs.get(self.kind, 0)
    @property
    def has_pooler(self):
        return self.kind in ('labelled', 'choice')
    @property
    def has_generator(self):
        return self.kind == 'text' and self.objective != 'mlm' and self.generator_size > 0
    @property
    def has_detector(self):
        return self.kind == 'text' and self.objective in ('electra', 'electra-15', 'all-tokens-mlm')
    @property
    def has_mlm(self):
        return self.kind == 'text' and self.objective in ('replace-mlm', 'all-tokens-mlm', 'mlm')
    @property
    def generator(self):
        """Its width, heads, layers and hidden width."""
        width = round(self.generator_size * self.n_embd)
        heads = self.n_head if width == self.n_embd else max(1, width // 64)
        return (width, self.generator_heads or heads, self.generator_layers or self.n_layer,
                round(self.hidden * width / self.n_embd))

    def has_bias(self, part):
        return True


kinds = ('text', 'labelled', 'tagged', 'qa', 'choice')
objectives = ('electra', 'electra-15', 'replace-mlm', 'all-tokens-mlm', 'mlm')
activations = {'gelu': F.gelu, 'gelu_tanh': functools.partial(F.gelu, approximate='tanh'),
               'relu': F.relu, 'silu': F.silu}
choices = dict(objective=objectives, share=('embeddings', 'none', 'all'),
               positions=('learned', 'rotary'), activation=tuple(activations),
               kind=(*kinds, 'none'))


def generator_config(config):
    """The Config of the generator as a model of its own, a masked language model."""
    width, heads, layers, hidden = config.generator
    return dataclasses.replace(
        config, objective='mlm', share='embeddings', generator_size=0.0, generator_layers=0,
        generator_heads=0, generator_steps=0, n_embd=width, embed_dim=config.embed, n_head=heads,
        n_layer=layers, n_hidden=hidden)

# --------------------------------------------------------------------------------------------------
# presets: what differs from ELECTRA-base (table 6)

_small = dict(n_head=4, n_embd=256, embed_dim=128)
presets = {
    # a modern encoder, as bert.py's default: the paper's learns nothing of use in so few steps
    'electra-2cores': dict(_small, vocab_size=8192, block_size=128, n_layer=4, n_hidden=512,
                           positions='rotary', pre_norm=True, gated=True, n_segments=0, dropout=0.0,
                           attention_dropout=0.0, generator_size=0.5, generator_heads=2),
    'electra-small': dict(_small, block_size=128, generator_size=0.25),
    'speedrun-electra-small': dict(_small, block_size=128, generator_size=0.25),
    'electra-small-pp': dict(_small, generator_size=1.0),  # as released: longer rows, equal widths
    'electra-base': dict(),
    'electra-large': dict(n_layer=24, n_head=16, n_embd=1024, generator_size=0.25, mask_rate=0.25),
}

# what trains well: overrides of train.py's fields (and of Config's), for this file, for a preset
recipe = dict(preset='electra-2cores', vocab_multiple=128, weight_decay=0.01, beta1=0.9,
              beta2=0.999, eps=1e-6, grad_clip=1.0, lr_schedule='linear', warmup_iters=10000)
recipes = {
    'electra-2cores': dict(optimizer='muon', learning_rate=3e-3, muon_lr=0.02, batch_size=32,
                           max_iters=700, warmup_iters=20, beta2=0.98, eval_interval=100,
                           eval_iters=64),
    'electra-small': dict(learning_rate=5e-4, batch_size=128, max_iters=1000000),
    'speedrun-electra-small': dict(learning_rate=5e-4, batch_size=128, max_iters=1000000,
                                   eval_interval=10000, eval_iters=2048, log_interval=100),
    'electra-small-pp': dict(learning_rate=5e-4, batch_size=128, max_iters=4000000),
    'electra-base': dict(learning_rate=2e-4, batch_size=256, max_iters=766000),
    'electra-large': dict(learning_rate=2e-4, batch_size=2048, max_iters=400000),
}
# from given weights (table 7, the released code; small wants 3e-4, large 5e-5 and layer_decay=0.9).
finetune = dict(learning_rate=1e-4, layer_decay=0.8, batch_size=32, epochs=3.0, eval_interval=0,
                warmup_iters=50, weight_decay=0.01, beta2=0.999, eps=1e-6, lr_schedule='linear',
                dropout=0.1, generator_steps=0)                  # stages: they are over

# --------------------------------------------------------------------------------------------------
# pre-training: running text -> rows with hidden tokens, all rows of a batch at once

# same as bert.py
def role(config, name):
    """The id of the cls, sep or mask token. The end of a document stands in for the first two."""
    token = getattr(config, name + '_id')
    if token < 0 and name != 'mask':
        token = config.eot_id
    if not 0 <= token < config.vocab_size:
        raise ValueError(f'the tokenizer has no {name} token ({name}_id={token}): '
                         f'prepare the text with --tokenizer=bpe, or give --{name}_id')
    return token


def batch(draw, config, rng):
    """One micro-batch of running text: ids (B, T) with some tokens hidden; the chosen places and a
    random number for the sample at each (B, 2, K); the tokens that were there (B, K), -1: none."""
    L, K = config.block_size - 2, config.n_masked
    cls, sep, mask = [role(config, name) for name in ('cls', 'sep', 'mask')]
    tokens = draw(L)                                                   # (B, L)
    names = (config.eot_id, config.pad_id, config.cls_id, config.sep_id, config.mask_id)
    special = np.isin(tokens, [i for i in names if i >= 0])            # separators and the like
    order = rng.random(L) + special                                    # these come last
    chosen = np.sort(np.argpartition(order, K - 1, axis=1)[:, :K], axis=1)
    original = np.take_along_axis(tokens, chosen, 1)                   # (B, K)
    counts = ~np.take_along_axis(special, chosen, 1)
    hidden = counts & (rng.random(K) < config.mask_share)
    ids = np.pad(tokens, ((0, 0), (1, 1)), constant_values=((0, 0), (cls, sep)))
    np.put_along_axis(ids, chosen + 1, np.where(hidden, mask, original), 1)
    u = rng.integers(0, 2 ** 31, K)
    return ids, np.stack((chosen + 1, u), axis=1), np.where(counts, original, -1)


def count(*arrays):
    """Numbers of targets. Of running text: the generator's, and all tokens, on which the
    discriminator is judged. Numbers to regress to count unless they are -100 or below."""
    targets = arrays[-1]
    n = int(((targets > -100) if targets.dtype.kind == 'f' else (targets >= 0)).sum())
    return (n, arrays[0].size) if len(arrays) == 3 else (n,)

# --------------------------------------------------------------------------------------------------
# modules: BERT's encoder, or with positions=rotary and pre_norm a modern one

def rotary(width, positions):
    """Cosine and sine of p 10000^(-2i/D) for every pair i, in fp32. (T,) -> two of (T, 1, D/2)"""
    i2 = torch.arange(0, width, 2, device=positions.device).float()
    angle = positions[..., None, None].float() * 1e4 ** (-i2 / width)
    return angle.cos(), angle.sin()


# same as bert.py
def rotate(x, cos, sin):
    """Turns the pairs (i, i + D/2) of each head, in fp32. (B, T, H, D) -> (B, T, H, D)"""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


# same as bert.py
class LayerNorm(nn.LayerNorm):
    """PyTorch's, but it returns its input's dtype; under autocast PyTorch's returns fp32."""
    def __init__(self, config, width):
        super().__init__(width, eps=config.norm_eps, bias=config.has_bias('norm'))

    def forward(self, x):
        return super().forward(x).to(x.dtype)


# same as bert.py
def fused(width, bias, **parts):
    """Several linear layers of one input as one, which is faster; .parts has the rows of each."""
    layer = nn.Linear(width, sum(parts.values()), bias=bias)
    layer.parts = parts
    return layer


# same as bert.py
def real_tokens(mask):
    """mask (.., T), 1 or true for real tokens, (.., 0) or None where all are -> bool, or None"""
    return None if mask is None or mask.size(-1) == 0 else mask > 0


# same as bert.py
def states_at(x, places):
    """The states at some places of each row: (B, T, C), (B, K) -> (B K, C)"""
    rows = x.size(1) * torch.arange(x.size(0), device=x.device)[:, None]
    return x.flatten(0, 1).index_select(0, (places + rows).flatten())


class Embeddings(nn.Module):
    """tokens + positions + segments, then norm and dropout."""
    def __init__(self, config):
        super().__init__()
        self.config = config
        E = config.embed
        self.tokens = nn.Embedding(config.rows, E)
        if config.positions == 'learned':
            self.positions = nn.Embedding(config.block_size, E)
        if config.n_segments:
            self.segments = nn.Embedding(config.n_segments, E)
        self.norm = LayerNorm(config, E)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, ids, segments=None):
        """ids, segments: (B, T) -> (B, T, E)"""
        c = self.config
        T = ids.size(1)
        if c.positions == 'learned' and T > c.block_size:
            raise ValueError(f'{T} tokens in a row, but there are learned positions for '
                             f'block_size={c.block_size}')
        x = self.tokens(ids)
        if c.positions == 'learned':
            x = x + self.positions(torch.arange(T, device=ids.device))
        if c.n_segments and segments is None:
            x = x + self.segments.weight[0]
        elif c.n_segments:
            x = x + self.segments(segments.clamp(max=c.n_segments - 1))
        return self.drop(self.norm(x))


# bert.py's, without its local layers
class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        C, bias = config.n_embd, config.has_bias('attention')
        self.qkv = fused(C, bias, q=C, k=C, v=C)
        self.out = nn.Linear(C, C, bias=bias)

    def forward(self, x, turn, mask):
        """x: (B, T, C). turn: cos and sin, or None. mask: (B or 1, 1, T or 1, T) bool, true where
        seen, or None. -> (B, T, C)"""
        B, T, C = x.shape
        H = self.config.n_head
        q, k, v = self.qkv(x).view(B, T, 3, H, C // H).unbind(2)       # (B, T, H, D) each
        if turn:
            q, k = rotate(q, *turn), rotate(k, *turn)
        q, k, v = [y.transpose(1, 2) for y in (q, k, v)]               # (B, H, T, D) each
        dropout = self.config.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


# same as bert.py
class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gated = config.gated
        self.activation = activations[config.activation]
        C, width, bias = config.n_embd, config.hidden, config.has_bias('mlp')
        parts = dict(gate=width, up=width) if config.gated else dict(up=width)
        self.up = fused(C, bias, **parts)
        self.down = nn.Linear(width, C, bias=bias)

    def forward(self, x):
        """(B, T, C) -> (B, T, C)"""
        if not self.gated:
            return self.down(self.activation(self.up(x)))
        gate, up = self.up(x).chunk(2, dim=-1)                         # (B, T, F) each
        return self.down(self.activation(gate) * up)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = Attention(config)
        self.mlp = MLP(config)
        self.norm_1 = LayerNorm(config, config.n_embd)
        self.norm_2 = LayerNorm(config, config.n_embd)
        self.drop = nn.Dropout(config.dropout)

    # same as bert.py
    def forward(self, x, turn=None, mask=None):
        if self.pre_norm:
            x = x + self.drop(self.attention(self.norm_1(x), turn, mask))
            return x + self.drop(self.mlp(self.norm_2(x)))
        x = self.norm_1(x + self.drop(self.attention(x, turn, mask)))
        return self.norm_2(x + self.drop(self.mlp(x)))

class Encoder(nn.Module):
    """Embeddings to hidden states."""
    def __init__(self, config):
        super().__init__()
        self.config = config
        if config.embed != config.n_embd:
            self.project = nn.Linear(config.embed, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = LayerNorm(config, config.n_embd) if config.pre_norm else nn.Identity()

    def forward(self, x, mask=None):
        """x: (B, T, E), mask: (B, T) bool, true for real tokens, or None -> (B, T, C)"""
        c = self.config
        if mask is not None:
            mask = mask[:, None, None]                                 # (B, 1, 1, T)
        turn = None
        if c.positions == 'rotary':
            turn = rotary(c.n_embd // c.n_head, torch.arange(x.size(1), device=x.device))
        if hasattr(self, 'project'):
            x = self.project(x).to(x.dtype)                # autocast would go on in bf16
        if c.residual_autocast and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for block in self.blocks:
            x = (checkpoint(block, x, turn, mask, use_reentrant=False)
                 if c.checkpoint_activations and self.training else block(x, turn, mask))
        return self.norm(x)


# same as bert.py
class Transform(nn.Module):
    """In front of the decoder: dense, activation, norm. (.., C) -> (.., E)"""
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.n_embd, config.embed, bias=config.has_bias('head'))
        self.activation = activations[config.activation]
        self.norm = LayerNorm(config, config.embed)

    def forward(self, x):
        return self.norm(self.activation(self.dense(x)))


class MaskedLM(nn.Module):
    """Hidden states to logits over the vocabulary, by the token table. (.., C) -> (.., V)"""
    def __init__(self, config, table):
        super().__init__()
        self.config = config
        self.head = Transform(config)
        self.decoder = nn.Linear(config.embed, config.rows)
        self.decoder.weight = table

    def forward(self, x):
        y, V = self.decoder(self.head(x)), self.config.vocab_size
        return y[..., :V] if self.config.rows > V else y       # a slice costs a copy backward


class Detector(nn.Module):
    """Hidden states to a logit of "replaced" (2): D = sigmoid(w f(h)). (.., C) -> (..)"""
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.n_embd, config.n_embd)
        self.out = nn.Linear(config.n_embd, 1)
        self.activation = activations[config.activation]

    def forward(self, x):
        return self.out(self.activation(self.dense(x))).squeeze(-1)


class Generator(nn.Module):
    """What the generator has for itself, a masked language model less what it shares: by default
    all but the embeddings, with share=all its head alone. table: of the shared embeddings."""
    def __init__(self, config, table):
        super().__init__()
        small = generator_config(config)
        if config.share == 'none':
            self.embeddings = Embeddings(small)
            table = self.embeddings.tokens.weight
        if config.share != 'all':
            self.encoder = Encoder(small)
        self.mlm = MaskedLM(small, table)


def sample(logits, u):
    """A token of each row's distribution: the first one whose cumulated probability exceeds
    u / 2^31. In whole numbers, so that their sum is exact in any order.
    logits: (N, V), u: (N,) int64 in [0, 2^31) -> (N,)"""
    mass = (logits.float().softmax(1) * 2 ** 30).int().cumsum(1, dtype=torch.int32)    # (N, V)
    at = (u * mass[:, -1].long() >> 31).int()                          # below the whole mass
    token = torch.searchsorted(mass, at[:, None], right=True)[:, 0]
    return token.clamp(max=logits.size(1) - 1)             # NaN shows in the loss, not here


def mlm_loss(logits, targets, training):
    """logits: (B K, V), targets: (B, K) -> sum of -log p(target), and of hits unless in training,
    over targets >= 0"""
    targets = targets.flatten()
    hits = None if training else (logits.argmax(1) == targets).sum()
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction='sum'), hits


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = c = config
        self.embeddings = Embeddings(c)
        self.encoder = Encoder(c)
        self.drop = nn.Dropout(c.dropout)
        if c.has_pooler:
            self.pooler = nn.Linear(c.n_embd, c.n_embd)
        if c.n_outputs:
            self.classifier = nn.Linear(c.n_embd, c.n_outputs)
        if c.has_detector:
            self.detector = Detector(c)
        if c.has_mlm:
            self.mlm = MaskedLM(c, self.embeddings.tokens.weight)
        if c.has_generator:
            self.generator = Generator(c, self.embeddings.tokens.weight)
        self.stage = 0                         # 0: joint training; 1, 2: of the two stages
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """BERT's: a normal distribution, cut off at two standard deviations. With pre_norm what
        writes to the residual stream has 1/sqrt(2 n_layer) of it."""
        c = self.config
        for name, p in self.named_parameters():
            std = c.init_std
            if c.pre_norm and name.endswith(('out.weight', 'down.weight')):
                std = c.init_std * (2 * c.n_layer) ** -0.5
            if p.ndim >= 2:
                nn.init.trunc_normal_(p, 0, std, -2 * std, 2 * std)
            else:
                p.fill_(0 if name.endswith('bias') else 1)

    def before_step(self, step):
        """Two stages (3.3), see lib/stages.py. -> whether other parameters train from now on"""
        if not self.config.generator_steps or not self.config.has_generator:
            return False
        from lib import stages
        return stages.before_step(self, step)

    # same as bert.py
    def depth_of(self, name):
        """For layer_decay and freeze: 0 embeddings, 1 .. n_layer blocks, n_layer + 1 heads"""
        if name.startswith('encoder.blocks.'):
            return int(name.split('.')[2]) + 1
        below = name.startswith(('embeddings.', 'encoder.project.'))
        return 0 if below else self.config.n_layer + 1

    # same as bert.py
    def hidden(self, ids, segments=None, mask=None):
        """ids, segments, mask (see real_tokens): (B, T) -> the last hidden states (B, T, C)"""
        mask = real_tokens(mask)
        if mask is not None:                   # a row of padding alone sees itself: no NaN
            mask = mask | (torch.arange(mask.size(1), device=ids.device) == 0)
        return self.encoder(self.embeddings(ids, segments), mask)

    def logits(self, ids, segments=None, mask=None):
        """ids, segments, mask: (B, T) -> "replaced" (B, T), or (B, T, V) of a masked language
        model. With another head: classes (B, n_labels), a number (B, 1), tags (B, T, n_labels),
        starts and ends (B, T, 2); choices, from (B, N, T): (B, N), -inf for rows of padding"""
        c = self.config
        require(c.kind != 'none', 'these weights have no head, so there are no logits: '
                'use hidden(), or fine-tune first')
        if c.kind != 'text':
            from lib import tasks
            return tasks.logits(self, ids, segments, mask)
        head = self.detector if c.has_detector else self.mlm
        return head(self.hidden(ids, segments, mask))

    def pooled(self, x, mask=None):
        """x: (B, T, C) -> what classification reads (B, C)"""
        return F.gelu(self.pooler(x[:, 0]))

    def generator_hidden(self, ids):
        """What the generator's head reads. (B, T) -> (B, T, its C)"""
        share = self.config.share
        embeddings = self.generator.embeddings if share == 'none' else self.embeddings
        encoder = self.encoder if share == 'all' else self.generator.encoder
        return encoder(embeddings(ids))

    def forward(self, ids, *arrays, totals=None):
        """The arrays of batch() -> loss, stats. With totals, the numbers of targets of the global
        batch, the parts of a batch add up to the loss of the whole, L_MLM + lambda L_disc (2),
        means over the chosen tokens and over all. Stats of evaluation: see summary."""
        c = self.config
        if c.kind != 'text':
            from lib import tasks
            return tasks.loss(self, ids, *arrays, totals=totals)
        require(c.has_generator or c.objective == 'mlm', 'this is a discriminator without a '
                'generator: fine-tune it, or pre-train with --generator_size above 0')
        picks, targets = arrays
        places, u = picks.unbind(1)                                    # (B, K) each
        chosen = targets >= 0
        if totals is None:
            totals = chosen.sum().clamp(min=1), ids.numel()
        n_chosen, n_all = totals
        if c.objective == 'mlm':
            y = self.mlm(states_at(self.hidden(ids), places)).float()  # (B K, V)
            loss, hits = mlm_loss(y, targets, self.training)
            return loss / n_chosen, {} if self.training else {'accuracy': hits / n_chosen}
        # the generator, and a sample of what it thinks at each chosen place, without gradient
        y = self.generator.mlm(states_at(self.generator_hidden(ids), places)).float()  # (B K, V)
        loss, hits = mlm_loss(y, targets, self.training)
        loss = loss / n_chosen
        before = ids.gather(1, places)
        new = torch.where(chosen, sample(y.detach(), u.flatten()).view_as(u), before)  # (B, K)
        fake = chosen & (new != targets)       # a sample equal to the original is real
        stats = {'generator_loss': loss.detach(), 'replaced': fake.sum() / n_all}
        if not self.training:
            stats['generator_accuracy'] = hits / n_chosen
        if self.stage == 1:                    # the discriminator waits; its stats are 0
            names = ['discriminator_loss']
            if not self.training:
                names += ['caught', 'flagged', 'auc'] if c.has_detector else ['accuracy']
            return loss, stats | dict.fromkeys(names, torch.zeros_like(loss))
        x = self.hidden(ids.scatter(1, places, new))                   # (B, T, C)
        if c.objective == 'electra':
            label = torch.zeros_like(ids, dtype=torch.bool).scatter(1, places, fake)
            logit = self.detector(x).float()                           # (B, T)
            bce = F.binary_cross_entropy_with_logits(logit, label.float(), reduction='none')
            loss_d = bce.sum() / n_all
            if not self.training:
                from lib import detection
                stats |= detection.stats(logit, label, torch.ones_like(label), n_all, n_all)
        else:
            from lib import ablations
            loss_d, more = ablations.loss(self, x, ids, places, fake, targets, totals, states_at)
            stats |= more
        stats['discriminator_loss'] = loss_d.detach()
        weight = c.disc_weight if c.objective in ('electra', 'electra-15') else 1.0
        return (0 if self.stage == 2 else loss) + weight * loss_d, stats


def summary(stats):
    """What a person reads, from stats of the whole batch: precision = caught / flagged and recall =
    caught / replaced in the place of caught and flagged, 0 where nothing was there to find; auc is
    the mean of the rows' areas under the curve."""
    from lib import detection
    return detection.summary(stats)


@torch.no_grad()
def replaced(model, ids, segments=None, mask=None):
    """The discriminator's verdict: how probable is it that a token was replaced? (B, T) -> same"""
    c = model.config
    require(c.has_detector, f'these weights have no discriminator (kind={c.kind}, '
            f'objective={c.objective}): give a pre-trained ELECTRA')
    return model.logits(ids, segments, mask).float().sigmoid()
