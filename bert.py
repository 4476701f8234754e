"""Encoders in one file: BERT, RoBERTa, SpanBERT, ALBERT, DistilBERT, ModernBERT, the crammed BERT.

    python train.py --model=bert         # trains a masked language model on the standard library
    python train.py --model=bert --init_from=out/bert --data=stdlib-modules      # fine-tunes it

One Config spans the family; a preset is the smallest difference from the defaults, BERT-base.
batch() hides a share of the tokens of running text, [CLS] text [SEP]; the model computes logits at
those K places alone. On examples with labels the kind of the data picks the head, and lib/tasks.py
makes the rows. SpanBERT's own objective is in lib/spanbert.py, MAE-LM's in lib/maelm.py, pairs of
texts in lib/sentences.py, whole words and fixed masks in lib/masking.py, layers that see near
tokens alone in lib/local.py.

Papers: BERT Devlin et al. 2018 (1810.04805), RoBERTa Liu et al. 2019 (1907.11692), SpanBERT Joshi
et al. 2019 (1907.10529), ALBERT Lan et al. 2019 (1909.11942), DistilBERT Sanh et al. 2019
(1910.01108), smaller BERTs Turc et al. 2019 (1908.08962), cramming Geiping and Goldstein 2022
(2212.14034), MAE-LM Meng et al. 2023 (2302.02060), ModernBERT Warner et al. 2024 (2412.13663),
30 % masking Wettig et al. 2022 (2202.08005), SQuAD windows Devlin et al. 2018 (A.5 and 4.2).

Where we depart from them: rows are windows of running text and always full, so documents are cut
anywhere and the two parts of a sentence pair meet at a random token; exactly K tokens are hidden
in each row (whole-word masking leaves out a last word that does not fit); SpanBERT's spans count
tokens, not words, and never touch; MAE-LM hides all of the K tokens; the same dropout stands in
front of every head.

Letters: B batch, T tokens, C width, E width of the embeddings, H heads, D head width, F hidden
width of the MLP, V vocabulary, K masked tokens of a row, L tokens of text in a row, N choices.
"""
import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

family = 'bert'  # names the tables of lib/ that fit this Model; a copy keeps the line


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
    n_embd: int = 768            # C: width of the model
    n_hidden: int = 0            # F: width of the MLP; 0: 4 n_embd
    embed_dim: int = 0           # E: width of the embeddings (ALBERT: 128); 0: n_embd
    n_segments: int = 2          # rows of the table that tells first and second text apart; 0: none
    positions: str = 'learned'   # learned | sinusoidal (with a learned scale) | rotary
    position_offset: int = 0     # row of the position table that the first token takes (RoBERTa: 2)
    rope_theta: float = 10000.0  # rotary: wavelengths are 2 pi theta^(2i/D)
    rope_theta_local: float = 0.0  # the same in layers with a window; 0: rope_theta
    window: int = 0              # local layers see window / 2 tokens to each side; 0: none is local
    global_every: int = 3        # with a window: layers 0, n, 2n, ... see all
    share_layers: bool = False   # one block's parameters serve all layers (ALBERT)
    pre_norm: bool = False       # norm before each branch and at the end, not after each sum
    norm_eps: float = 1e-12      # added to the variance
    activation: str = 'gelu'     # gelu (erf) | gelu_tanh | relu | silu
    gated: bool = False          # MLP = down(activation(gate(x)) * up(x)): GeGLU
    bias: bool = True            # biases in the linear layers and LayerNorms
    biases: str = ''             # with --bias=false, who keeps one: attention mlp norm head decoder
    dropout: float = 0.1         # on embeddings, branches and in front of heads
    attention_dropout: float = 0.1  # on attention weights; if not 0, attention on a CPU is slow
    init_std: float = 0.02       # standard deviation of the first weights, a normal cut off at two
    mlm_transform: bool = True   # dense, activation, norm in front of the decoder
    # pre-training
    masking: str = 'token'       # token | word (all tokens of a word together) | span (SpanBERT)
    mask_rate: float = 0.15      # share of the tokens to predict
    mask_share: float = 0.8      # of these: share replaced by [MASK]
    random_share: float = 0.1    # of these: share replaced by a random token; the rest stays
    static_masks: int = 0        # fixed masks of a text, met in turn (BERT: 10); 0: always fresh
    sbo: bool = False            # with masking=span: also predict from the span's boundary alone
    sentences: str = ''          # second task: nsp (next or random) | sop (swapped or not) | ''
    n_decoder: int = 0           # MAE-LM: blocks that decode what the encoder does not see; 0: none
    # fine-tuning
    kind: str = 'text'           # head, by the data: text | labelled | tagged | qa | choice | none
    n_labels: int = 0            # classes; 0 with kind=labelled: regression
    labels: str = ''             # names of the classes, a JSON list
    pooler: str = 'tanh'         # of labelled and choice: tanh | relu | head (MLM's, ModernBERT)
    pool: str = 'cls'            # pooled vector: cls (first token) | mean
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
        for name in ('vocab_size', 'vocab_multiple', 'n_layer', 'n_head', 'n_embd', 'global_every',
                     'doc_stride'):
            require(getattr(self, name) >= 1, f'{name}={getattr(self, name)}: expected 1 or more')
        for name in ('mask_rate', 'mask_share', 'random_share'):
            value = getattr(self, name)
            require(0 <= value <= 1, f'{name}={value}: expected a share from 0 to 1')
        require(0 < self.init_std < 1e9, f'init_std={self.init_std}: expected 0 to 1e9, not 0')
        require(self.block_size >= 8, f'block_size={self.block_size}: expected 8 or more')
        D = self.n_embd // self.n_head
        require(D * self.n_head == self.n_embd,
                f'n_embd={self.n_embd} is not a multiple of n_head={self.n_head}')
        require(self.positions != 'rotary' or D % 2 == 0, f'rotary turns pairs, and {D} is odd')
        require(self.mask_share + self.random_share <= 1, 'mask_share + random_share = '
                f'{self.mask_share + self.random_share}: expected at most 1')
        require(self.window >= 0, f'window={self.window}: expected 0 (all tokens) or more')
        if self.masking == 'span':
            require(not self.static_masks, 'static_masks go with --masking=token or word')
            require(self.mask_rate <= 0.5, f'mask_rate={self.mask_rate}: spans that do not touch '
                    'cover at most half')
        require(self.masking == 'span' or not self.sbo, 'sbo predicts spans: add --masking=span')
        require(self.n_segments >= 2 or not self.sentences, 'sentences needs --n_segments=2')
        unknown = set(self.biases.split()) - {'attention', 'mlp', 'norm', 'head', 'decoder'}
        require(not unknown, f'biases={self.biases!r}: {" ".join(sorted(unknown))} is none of: '
                             'attention mlp norm head decoder')

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
    def n_text(self):  # L
        return self.block_size - (3 if self.sentences else 2)
    @property
    def n_masked(self):  # K
        return max(1, round(self.mask_rate * self.n_text))
    @property
    def has_pooler(self):
        pooled = self.kind in ('labelled', 'choice') or self.kind == 'text' and self.sentences != ''
        return self.kind == 'pooled' or self.pooler != 'head' and pooled
    @property
    def has_head(self):
        return self.kind == 'text' or self.pooler == 'head' and self.kind in kinds
    @property
    def n_outputs(self):
        outputs = dict(labelled=self.n_labels or 1, tagged=self.n_labels, qa=2, choice=1)
        return outputs.get(self.kind, 0)
    def has_bias(self, part):
        return self.bias or part in self.biases.split()


kinds = ('text', 'labelled', 'tagged', 'qa', 'choice')
activations = {'gelu': F.gelu, 'gelu_tanh': functools.partial(F.gelu, approximate='tanh'),
               'relu': F.relu, 'silu': F.silu}
choices = dict(positions=('learned', 'sinusoidal', 'rotary'), activation=tuple(activations),
               masking=('token', 'word', 'span'), sentences=('', 'nsp', 'sop'),
               pool=('cls', 'mean'), pooler=('tanh', 'relu', 'head'),
               kind=(*kinds, 'pooled', 'none'))

# --------------------------------------------------------------------------------------------------
# presets: what differs from BERT-base

_roberta = dict(vocab_size=50265, n_segments=1, position_offset=2, norm_eps=1e-5, double_sep=True,
                eot_id=2, pad_id=1, cls_id=0, sep_id=2, mask_id=50264)
_albert = dict(vocab_size=30000, embed_dim=128, share_layers=True, sentences='sop', masking='span',
               activation='gelu_tanh', cls_id=2, sep_id=3, mask_id=4)
_modern = dict(n_segments=0, positions='rotary', pre_norm=True, norm_eps=1e-5, gated=True,
               bias=False, dropout=0.0, attention_dropout=0.0, mask_rate=0.3, pooler='head')
_modernbert = dict(_modern, vocab_size=50368, block_size=8192, biases='decoder', window=128,
                   rope_theta=160000.0, rope_theta_local=10000.0,
                   eot_id=50282, pad_id=50283, cls_id=50281, sep_id=50282, mask_id=50284)
_large = dict(n_layer=24, n_head=16, n_embd=1024)

presets = {
    'small': dict(_modern, vocab_size=8192, block_size=128, n_layer=4, n_head=4, n_embd=256,
                  n_hidden=512, mask_rate=0.2),
    'bert-tiny': dict(sentences='nsp', n_layer=2, n_head=2, n_embd=128),
    'bert-mini': dict(sentences='nsp', n_layer=4, n_head=4, n_embd=256),
    'bert-small': dict(sentences='nsp', n_layer=4, n_head=8, n_embd=512),
    'bert-medium': dict(sentences='nsp', n_layer=8, n_head=8, n_embd=512),
    'bert-base': dict(sentences='nsp'),
    'bert-large': dict(_large, sentences='nsp'),
    'roberta-base': dict(_roberta),
    'roberta-large': dict(_roberta, **_large),
    'spanbert-base': dict(vocab_size=28996, masking='span', sbo=True),
    'albert-base': dict(_albert),
    'albert-large': dict(_albert, **_large),
    'albert-xlarge': dict(_albert, n_layer=24, n_head=16, n_embd=2048),
    'albert-xxlarge': dict(_albert, n_head=64, n_embd=4096, dropout=0.0, attention_dropout=0.0),
    'distilbert': dict(n_layer=6, n_segments=0, pooler='relu'),
    'maelm-base': dict(n_decoder=4),
    'modern-base': dict(_modernbert, n_layer=22, n_hidden=1152),
    'modern-large': dict(_modernbert, n_layer=28, n_head=16, n_embd=1024, n_hidden=2624),
    'crammed': dict(_modern, vocab_size=32768, block_size=128, n_layer=16, n_hidden=1536,
                    positions='sinusoidal', norm_eps=1e-12, biases='norm', mask_rate=0.25,
                    mlm_transform=False, pooler='tanh'),
}
presets['speedrun-crammed'] = presets['crammed'] | dict(residual_autocast=True)  # 2212.14034

# what trains well: overrides of train.py's fields (and of Config's), for this file, for a preset
recipe = dict(preset='small', vocab_multiple=128, weight_decay=0.01, beta1=0.9, beta2=0.98,
              eps=1e-6, grad_clip=1.0, lr_schedule='linear')

# BERT, A.2; RoBERTa, table 9; SpanBERT, 4.2; ALBERT, 4.1; ModernBERT, table 3
_bert = dict(learning_rate=1e-4, batch_size=256, max_iters=10**6, warmup_iters=10**4, beta2=0.999)
_roberta_recipe = dict(batch_size=8192, max_iters=500000)
_albert_recipe = dict(learning_rate=1.76e-3, batch_size=4096, max_iters=125000, warmup_iters=3125,
                      beta2=0.999)
_modern_recipe = dict(lr_schedule='wsd', batch_size=4608, warmup_iters=400, weight_decay=1e-5)
recipes = {
    'small': dict(optimizer='muon', learning_rate=3e-3, muon_lr=0.02, batch_size=32, max_iters=400,
                  warmup_iters=20, eval_interval=100, eval_iters=64),
    **{f'bert-{size}': _bert for size in ('tiny', 'mini', 'small', 'medium', 'base', 'large')},
    'roberta-base': _roberta_recipe | dict(learning_rate=6e-4, warmup_iters=24000),
    'roberta-large': _roberta_recipe | dict(learning_rate=4e-4, warmup_iters=30000),
    'spanbert-base': dict(_bert, max_iters=2400000, weight_decay=0.1, eps=1e-8),
    **{f'albert-{size}': _albert_recipe for size in ('base', 'large', 'xlarge', 'xxlarge')},
    'modern-base': dict(_modern_recipe, learning_rate=8e-4),
    'modern-large': dict(_modern_recipe, learning_rate=5e-4),
    'crammed': dict(learning_rate=1e-3, batch_size=4096, max_iters=35000, warmup_iters=1000,
                    eps=1e-12, grad_clip=0.5),
}
# a day on one GPU, one cycle: the rate rises for three quarters of the steps, then falls to zero
recipes['speedrun-crammed'] = recipes['crammed'] | dict(
    warmup_iters=26250, time_limit=86400.0, micro_batch_size=256,
    eval_interval=1000, eval_iters=2048, log_interval=50)
# from given weights (BERT, appendix A.3: 2 to 4 epochs at 2e-5 to 5e-5, small models want more)
finetune = dict(learning_rate=5e-5, batch_size=32, epochs=3.0, eval_interval=0, warmup_iters=50,
                weight_decay=0.01, beta2=0.999, eps=1e-6, lr_schedule='linear', dropout=0.1)

# --------------------------------------------------------------------------------------------------
# pre-training: running text -> rows with hidden tokens, all rows of a batch at once

def role(config, name):
    """The id of the cls, sep or mask token. The end of a document stands in for the first two."""
    token = getattr(config, name + '_id')
    if token < 0 and name != 'mask':
        token = config.eot_id
    if not 0 <= token < config.vocab_size:
        raise ValueError(f'the tokenizer has no {name} token ({name}_id={token}): '
                         f'prepare the text with --tokenizer=bpe, or give --{name}_id')
    return token


def choose(tokens, config, rng, tokenizer):
    """The tokens to hide: (B, L) -> four arrays (B, K): places in order, whether each counts, a
    random number that decides between mask, random and keep, number of the span (None: no spans)"""
    K = config.n_masked
    ids = (config.eot_id, config.pad_id, config.cls_id, config.sep_id, config.mask_id)
    special = np.isin(tokens, [i for i in ids if i >= 0])              # separators and the like
    if config.masking != 'token' or config.static_masks:
        from lib import masking
        return masking.choose(tokens, special, config, rng, tokenizer)
    order = rng.random(config.n_text) + special                        # these come last
    places = np.sort(np.argpartition(order, K - 1, axis=1)[:, :K], axis=1)
    counts = ~np.take_along_axis(special, places, 1)
    return places, counts, np.take_along_axis(rng.random(config.n_text), places, 1), None


def batch(draw, config, rng):
    """One micro-batch of running text: ids (B, T), [segments (B, T)], places (B, K), [edges
    (B, K, 3)], [labels of pairs (B,)], targets (B, K), -1 where none; the arrays in brackets come
    with --sentences, --sbo, --sentences."""
    T, L, K = config.block_size, config.n_text, config.n_masked
    cls, sep, mask = [role(config, name) for name in ('cls', 'sep', 'mask')]
    tokens = draw(L)                                                   # (B, L)
    first = np.full((len(tokens), 1), L)
    if config.sentences:
        from lib import sentences
        tokens, first, flip = sentences.pair_up(tokens, draw, config, rng)
    text = np.arange(L)
    place = 1 + text + (text >= first)         # (B, L) in the row: [CLS] first [SEP] second [SEP]
    ids = np.full((len(tokens), T), sep)
    ids[:, 0] = cls
    np.put_along_axis(ids, place, tokens, 1)

    chosen, counts, u, span = choose(tokens, config, rng, getattr(draw, 'tokenizer', None))
    original = np.take_along_axis(tokens, chosen, 1)                   # (B, K)
    random = rng.integers(0, config.vocab_size, K)
    new = np.where(u < config.mask_share + config.random_share, random, original)
    new = np.where(u < config.mask_share, mask, new)
    places = np.take_along_axis(place, chosen, 1)
    if not config.n_decoder:
        np.put_along_axis(ids, places, np.where(counts, new, original), 1)

    arrays = [ids, places]
    if config.sentences:
        arrays.insert(1, (np.arange(T) > first + 1).astype(np.int64))
    if config.sbo:
        from lib import spanbert
        arrays.append(spanbert.edges(places, span, T))
    if config.sentences:
        arrays.append(flip[:, 0])
    return *arrays, np.where(counts, original, -1)


def count(*arrays):
    """Numbers of targets: those of the last array and, with sentences, the pairs. Numbers to
    regress to count unless they are -100 or below."""
    targets = arrays[-1]
    if targets.dtype.kind == 'f':
        return (int((targets > -100).sum()),)
    labels = [a for a in arrays[1:-1] if a.ndim == 1]
    return tuple(int((a >= 0).sum()) for a in (targets, *labels))

# --------------------------------------------------------------------------------------------------
# modules

def rotary(theta, width, positions):
    """Cosine and sine of the angle p theta^(-2i/D) of every pair i, in fp32.
    (B or 1, T) -> two of (B or 1, T, 1, D/2)"""
    i2 = torch.arange(0, width, 2, device=positions.device).float()
    angle = positions[..., None, None].float() * theta ** (-i2 / width)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Turns the pairs (i, i + D/2) of each head, in fp32. (B, T, H, D) -> (B, T, H, D)"""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """PyTorch's, but it returns its input's dtype; under autocast PyTorch's returns fp32."""
    def __init__(self, config, width):
        super().__init__(width, eps=config.norm_eps, bias=config.has_bias('norm'))

    def forward(self, x):
        return super().forward(x).to(x.dtype)


def fused(width, bias, **parts):
    """Several linear layers of one input as one, which is faster; .parts has the rows of each."""
    layer = nn.Linear(width, sum(parts.values()), bias=bias)
    layer.parts = parts
    return layer


def real_tokens(mask):
    """mask (.., T), 1 or true for real tokens, (.., 0) or None where all are -> bool, or None"""
    return None if mask is None or mask.size(-1) == 0 else mask > 0


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
            self.positions = nn.Embedding(config.block_size + config.position_offset, E)
        if config.positions == 'sinusoidal':
            self.scale = nn.Parameter(torch.tensor([E ** -0.5]))
        if config.n_segments:
            self.segments = nn.Embedding(config.n_segments, E)
        self.norm = LayerNorm(config, E)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, ids, segments=None):
        """ids, segments: (B, T) -> (B, T, E)"""
        T = ids.size(1)
        if self.config.positions == 'learned' and T > self.config.block_size:
            raise ValueError(f'{T} tokens in a row, but there are learned positions for '
                             f'block_size={self.config.block_size}')
        x = self.tokens(ids)
        return self.drop(self.norm(x + self.extras(T, x, segments)))

    def extras(self, T, like, segments=None):
        """What the place and the segment of a token add, in like's dtype. -> (B or 1, T, E)"""
        c = self.config
        x = like.new_zeros(1, 1, 1)
        at = torch.arange(T, device=like.device)
        if c.positions == 'learned':
            x = x + self.positions(at + c.position_offset)
        if c.positions == 'sinusoidal':
            from lib import positions
            x = x + self.scale * positions.sinusoidal(at, c.embed)
        if c.n_segments and segments is None:
            x = x + self.segments.weight[0]
        elif c.n_segments:
            x = x + self.segments(segments.clamp(max=c.n_segments - 1))
        return x


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        C, bias = config.n_embd, config.has_bias('attention')
        self.qkv = fused(C, bias, q=C, k=C, v=C)
        self.out = nn.Linear(C, C, bias=bias)

    def forward(self, x, turn, mask):
        """x: (B, T, C). turn: cos and sin, or None. mask: (B or 1, 1, T or 1, T) bool, true where
        seen, or None; of a layer with a window that of lib/local.py. -> (B, T, C)"""
        B, T, C = x.shape
        H = self.config.n_head
        q, k, v = self.qkv(x).view(B, T, 3, H, C // H).unbind(2)       # (B, T, H, D) each
        if turn:
            q, k = rotate(q, *turn), rotate(k, *turn)
        if mask is not None and mask.size(-1) < T:
            from lib import local              # n blocks of h tokens become rows of their own
            q, k, v = local.blocks(q, k, v, mask.size(-2))
        q, k, v = [y.transpose(1, 2) for y in (q, k, v)]               # (B, H, T, D) each
        dropout = self.config.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        return self.out(y.transpose(1, 2).reshape(B, -1, C)[:, :T])


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
    """Attention and MLP. With pre_norm the first block lacks a norm: the embeddings have theirs."""
    def __init__(self, config, first=False):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = Attention(config)
        self.mlp = MLP(config)
        no_norm = first and config.pre_norm
        self.norm_1 = nn.Identity() if no_norm else LayerNorm(config, config.n_embd)
        self.norm_2 = LayerNorm(config, config.n_embd)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x, turn=None, mask=None):
        if self.pre_norm:
            x = x + self.drop(self.attention(self.norm_1(x), turn, mask))
            return x + self.drop(self.mlp(self.norm_2(x)))
        x = self.norm_1(x + self.drop(self.attention(x, turn, mask)))
        return self.norm_2(x + self.drop(self.mlp(x)))


class Encoder(nn.Module):
    """Embeddings to hidden states. With share_layers one block runs n_layer times. n_layer: of
    MAE-LM's decoder, which reads hidden states."""
    def __init__(self, config, n_layer=0):
        super().__init__()
        self.config = config
        self.n_layer = n_layer or config.n_layer
        shared = config.share_layers and not n_layer
        if config.embed != config.n_embd and not n_layer:
            self.project = nn.Linear(config.embed, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, first=i == 0 and not n_layer and not shared)
                                    for i in range(1 if shared else self.n_layer))
        self.norm = LayerNorm(config, config.n_embd) if config.pre_norm else nn.Identity()

    def forward(self, x, mask=None, positions=None):
        """x: (B, T, E), mask: (B, T) bool, true for real tokens, or None; positions: (B, T), or
        None: 0, 1, ... -> (B, T, C)"""
        c = self.config
        if mask is not None:
            mask = mask[:, None, None]                                 # (B, 1, 1, T)
        turn = local_turn = local_mask = None
        if c.window:
            from lib import local
            local_mask = local.make_mask(x, mask, positions, c.window)
        if c.positions == 'rotary':
            D = c.n_embd // c.n_head
            at = torch.arange(x.size(1), device=x.device)[None] if positions is None else positions
            turn = rotary(c.rope_theta, D, at)
            local_turn = rotary(c.rope_theta_local or c.rope_theta, D, at)
        if hasattr(self, 'project'):
            x = self.project(x).to(x.dtype)                # autocast would go on in bf16
        if c.residual_autocast and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for i in range(self.n_layer):
            block = self.blocks[i % len(self.blocks)]
            near = c.window and i % c.global_every
            args = (x, local_turn, local_mask) if near else (x, turn, mask)
            x = (checkpoint(block, *args, use_reentrant=False)
                 if c.checkpoint_activations and self.training else block(*args))
        return self.norm(x)


class Transform(nn.Module):
    """In front of the decoder: dense, activation, norm. (.., C) -> (.., E)"""
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.n_embd, config.embed, bias=config.has_bias('head'))
        self.activation = activations[config.activation]
        self.norm = LayerNorm(config, config.embed)

    def forward(self, x):
        return self.norm(self.activation(self.dense(x)))


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = c = config
        C, E = c.n_embd, c.embed
        self.embeddings = Embeddings(c)
        self.encoder = Encoder(c)
        self.drop = nn.Dropout(c.dropout)
        if c.has_pooler:
            self.pooler = nn.Linear(C, C)
        if c.has_head and c.mlm_transform:
            self.head = Transform(c)
        elif c.has_head:
            self.head = nn.Linear(C, E) if C != E else nn.Identity()
        if c.n_outputs:
            self.classifier = nn.Linear(C, c.n_outputs)
        if c.kind == 'text':
            self.decoder = nn.Linear(E, c.rows, bias=c.has_bias('decoder'))
            self.decoder.weight = self.embeddings.tokens.weight
            if c.sentences:
                self.pair = nn.Linear(C, 2)
            if c.sbo:
                from lib import spanbert
                self.boundary = spanbert.Boundary(c, LayerNorm)
            if c.n_decoder:
                self.mae = Encoder(c, c.n_decoder)
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
            elif not name.endswith('scale'):
                p.fill_(0 if name.endswith('bias') else 1)

    def depth_of(self, name):
        """For layer_decay and freeze: 0 embeddings, 1 .. n_layer blocks, n_layer + 1 heads"""
        if name.startswith('encoder.blocks.'):
            return int(name.split('.')[2]) + 1
        below = name.startswith(('embeddings.', 'encoder.project.'))
        return 0 if below else self.config.n_layer + 1

    def hidden(self, ids, segments=None, mask=None):
        """ids, segments, mask (see real_tokens): (B, T) -> the last hidden states (B, T, C)"""
        mask = real_tokens(mask)
        if mask is not None:                   # a row of padding alone sees itself: no NaN
            mask = mask | (torch.arange(mask.size(1), device=ids.device) == 0)
        return self.encoder(self.embeddings(ids, segments), mask)

    def pooled(self, x, mask=None):
        """x: (B, T, C) -> what classification reads (B, C)"""
        c = self.config
        real = real_tokens(mask)
        if c.pool == 'cls':
            x = x[:, 0]
        elif real is None:
            x = x.mean(1)
        else:
            n = real.sum(1, keepdim=True).clamp(min=1)
            x = (x * real.to(x.dtype)[..., None]).sum(1) / n
        if c.pooler == 'head':
            return self.head(x) if c.has_head else x
        return self.pooler(x).tanh() if c.pooler == 'tanh' else self.pooler(x).relu()

    def logits(self, ids, segments=None, mask=None):
        """ids, segments, mask: (B, T) -> masked language model (B, T, V); with another head:
        classes (B, n_labels), a number (B, 1), tags (B, T, n_labels), starts and ends (B, T, 2),
        choices (B, N) from (B, N, T)"""
        kind = self.config.kind
        require(kind not in ('none', 'pooled'), 'these weights have no head, so there are no '
                'logits: use hidden(), or fine-tune first')
        if kind != 'text':
            from lib import tasks
            return tasks.logits(self, ids, segments, mask)
        if self.config.n_decoder:
            from lib import maelm
            return self.tokens_of(self.head(maelm.states(self, ids, segments, mask)))
        return self.tokens_of(self.head(self.hidden(ids, segments, mask)))

    def tokens_of(self, x):
        """(.., E) -> logits (.., V): the rows that round up the table have none"""
        y, V = self.decoder(x), self.config.vocab_size
        return y[..., :V] if self.config.rows > V else y       # a slice costs a copy backward

    def nll(self, x, targets):
        """x: (N, E), targets: (N,), -1 where none -> sums of -log p(target), hits in eval"""
        logits = self.tokens_of(x)                                     # (N, V)
        hits = None if self.training else (logits.argmax(1) == targets).sum()
        return F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction='sum'), hits

    def forward(self, ids, *arrays, totals=None):
        """The arrays of batch() -> the loss, MLM + SBO + sentences, and stats. totals: the numbers
        of targets in the global batch; the losses of its parts add up to that of the whole."""
        c = self.config
        if c.kind != 'text':
            from lib import tasks
            return tasks.loss(self, ids, *arrays, totals=totals)
        *arrays, targets = arrays
        segments = flip = None
        if c.sentences:
            segments, *arrays, flip = arrays
        places = arrays[0]
        if totals is None:
            totals = [(t >= 0).sum().clamp(min=1) for t in (targets, flip) if t is not None]

        if c.n_decoder:
            from lib import maelm
            x, y = maelm.states_of_visible(self, ids, segments, places)
        else:
            x = y = self.hidden(ids, segments)
        loss, hits = self.nll(self.head(states_at(y, places)), targets.flatten())
        loss = loss / totals[0]
        stats = {}
        if c.sbo or c.sentences:
            stats['mlm_loss'] = loss.detach()
        if hits is not None:
            stats['accuracy'] = hits / totals[0]
        if c.sbo:
            from lib import spanbert
            loss = spanbert.add_loss(loss, stats, self, y, arrays[1], targets, totals[0])
        if c.sentences:
            from lib import sentences
            loss = sentences.add_loss(loss, stats, self, x, flip, totals[1])
        return loss, stats
