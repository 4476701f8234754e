"""Encoders in one file: BERT, RoBERTa, SpanBERT, ALBERT, DistilBERT, ModernBERT, the crammed BERT, what lies between.

    python train.py --model=bert                                             # masked language model on the stdlib
    python train.py --model=bert --init_from=out/bert --data=stdlib-modules  # fine-tuned: its kind picks the head

One Config spans the family; a preset is the smallest difference from the defaults, which are BERT-base. batch() makes
the pre-training task out of running text: [CLS] text [SEP], a share of the tokens hidden; the model computes logits at
those K places alone. On supervised data batch() pads examples to the longest and the model has the head of that kind.

Papers: BERT Devlin et al. 2018 (1810.04805), RoBERTa Liu et al. 2019 (1907.11692), SpanBERT Joshi et al. 2019
(1907.10529), ALBERT Lan et al. 2019 (1909.11942), DistilBERT Sanh et al. 2019 (1910.01108), smaller BERTs Turc et al.
2019 (1908.08962), cramming Geiping and Goldstein 2022 (2212.14034), MAE-LM Meng et al. 2023 (2302.02060), ModernBERT
Warner et al. 2024 (2412.13663), 30 % masking Wettig et al. 2022 (2202.08005), SQuAD windows Devlin et al. 2018
(appendix A.5 and 4.2).

Where we depart from them: rows are windows of running text, always full, so documents are cut anywhere and the two
parts of a sentence pair meet at a random token; exactly K tokens are hidden in each row (whole-word masking leaves out
a last word that does not fit); SpanBERT's spans count tokens, not words, and never touch; MAE-LM hides all of the K
tokens; the same dropout stands in front of every head.

Letters: B batch, T tokens, C width, E width of the embeddings, H heads, D head width, F hidden width of the MLP,
V vocabulary, K masked tokens of a row, L tokens of text in a row, N choices.
"""
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
    n_embd: int = 768            # C: width of the model
    n_hidden: int = 0            # F: width of the MLP; 0: 4 n_embd
    embed_dim: int = 0           # E: width of the embeddings, projected to n_embd (ALBERT: 128); 0: n_embd
    n_segments: int = 2          # rows of the table that tells first and second text apart; 0: none
    positions: str = 'learned'   # learned | sinusoidal (with a learned scale) | rotary
    position_offset: int = 0     # row of the position table that the first token takes (RoBERTa: 2)
    rope_theta: float = 10000.0  # rotary: wavelengths are 2 pi theta^(2i/D)
    rope_theta_local: float = 0.0  # the same in layers with a window; 0: rope_theta
    window: int = 0              # local layers: a token sees window / 2 tokens on each side; 0: all layers see all
    global_every: int = 3        # with a window: layers 0, n, 2n, ... see all
    share_layers: bool = False   # one block's parameters serve all layers (ALBERT)
    pre_norm: bool = False       # norm before each branch and at the end, not after the residual sums
    norm_eps: float = 1e-12      # added to the variance
    activation: str = 'gelu'     # gelu (erf) | gelu_tanh | relu | silu
    gated: bool = False          # MLP = down(activation(gate(x)) * up(x)): GeGLU
    bias: bool = True            # biases in the linear layers and LayerNorms
    biases: str = ''             # parts that keep a bias under --bias=false, any of: attention mlp norm head decoder
    dropout: float = 0.1         # on embeddings, branches and in front of heads
    attention_dropout: float = 0.1  # on attention weights; above 0 a CPU has no fast attention kernel
    init_std: float = 0.02       # standard deviation of the first weights, a normal cut off at two of them
    mlm_transform: bool = True   # dense, activation, norm in front of the decoder
    # pre-training
    masking: str = 'token'       # token | word (all tokens of a word together) | span (SpanBERT)
    mask_rate: float = 0.15      # share of the tokens to predict
    mask_share: float = 0.8      # of these: share replaced by [MASK]
    random_share: float = 0.1    # of these: share replaced by a random token; the rest stays
    static_masks: int = 0        # fixed masks that a text has, met in turn (BERT's data: 10); 0: a fresh one each time
    sbo: bool = False            # with masking=span: also predict from the span's boundary alone (SpanBERT's objective)
    sentences: str = ''          # second task on pairs: nsp (next or random) | sop (in order or swapped) | '' none
    n_decoder: int = 0           # MAE-LM: hidden tokens skip the encoder, this many blocks decode them; 0: plain
    # fine-tuning
    kind: str = 'text'           # head: text (MLM) | labelled | tagged | qa | choice | pooled | none; the data picks it
    n_labels: int = 0            # classes; 0 with kind=labelled: regression
    labels: str = ''             # names of the classes, a JSON list
    pooler: str = 'tanh'         # on the pooled vector of labelled and choice: tanh | relu | head (MLM's, ModernBERT)
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
    checkpoint_activations: bool = False  # keep each block's input only and recompute the block in the backward pass
    residual_autocast: bool = False  # under autocast keep the residual stream in bf16 too: faster, slightly less exact

    def __post_init__(self):
        for name, choices in (('positions', ('learned', 'sinusoidal', 'rotary')), ('activation', tuple(activations)),
                              ('masking', ('token', 'word', 'span')), ('sentences', ('', 'nsp', 'sop')),
                              ('pool', ('cls', 'mean')), ('pooler', ('tanh', 'relu', 'head')),
                              ('kind', (*kinds, 'pooled', 'none'))):
            if getattr(self, name) not in choices:
                raise ValueError(f'{name}={getattr(self, name)!r} is not one of: {" ".join(map(repr, choices))}')
        if not 0 < self.init_std < 1e9: raise ValueError(f'init_std={self.init_std}: expected more than 0, under 1e9')
        for name in ('vocab_size', 'vocab_multiple', 'n_layer', 'n_head', 'n_embd', 'global_every', 'doc_stride'):
            if getattr(self, name) < 1: raise ValueError(f'{name}={getattr(self, name)}: expected 1 or more')
        for name in ('mask_rate', 'mask_share', 'random_share'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name}={getattr(self, name)}: expected a share from 0 to 1')
        if self.mask_share + self.random_share > 1:
            raise ValueError(f'mask_share + random_share = {self.mask_share + self.random_share}: expected at most 1')
        if self.window < 0: raise ValueError(f'window={self.window}: expected a number of tokens, or 0 for all')
        if self.block_size < 8: raise ValueError(f'block_size={self.block_size}: expected 8 or more')
        if self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} is not a multiple of n_head={self.n_head}')
        if self.positions == 'rotary' and self.n_embd // self.n_head % 2:
            raise ValueError(f'rotary positions turn pairs: a head of {self.n_embd // self.n_head} numbers is odd')
        if self.sbo and self.masking != 'span':
            raise ValueError('sbo predicts spans from their boundaries: add --masking=span')
        if self.static_masks and self.masking == 'span':
            raise ValueError('static_masks go with --masking=token or --masking=word')
        if self.sentences and self.n_segments < 2: raise ValueError(f'sentences={self.sentences} needs --n_segments=2')
        if self.masking == 'span' and self.mask_rate > 0.5:
            raise ValueError(f'mask_rate={self.mask_rate}: spans that do not touch cover at most half')
        if unknown := set(self.biases.split()) - {'attention', 'mlp', 'norm', 'head', 'decoder'}:
            raise ValueError(f'biases={self.biases!r}: {" ".join(sorted(unknown))} is none of: '
                             'attention mlp norm head decoder')

    @property
    def rows(self): return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple  # of the token table
    @property
    def hidden(self): return self.n_hidden or 4 * self.n_embd                                # F
    @property
    def embed(self): return self.embed_dim or self.n_embd                                    # E
    @property
    def n_text(self): return self.block_size - 2 - bool(self.sentences)                      # L
    @property
    def n_masked(self): return max(1, round(self.mask_rate * self.n_text))                   # K
    @property
    def has_pooler(self):
        return self.kind == 'pooled' or self.pooler != 'head' and (
            self.kind in ('labelled', 'choice') or self.kind == 'text' and self.sentences != '')
    @property
    def has_head(self): return self.kind == 'text' or self.pooler == 'head' and self.kind in kinds
    @property
    def n_outputs(self):
        return {'labelled': self.n_labels or 1, 'tagged': self.n_labels, 'qa': 2, 'choice': 1}.get(self.kind, 0)
    def has_bias(self, part): return self.bias or part in self.biases.split()


family = 'bert'                # whose tables of lib/ fit: rows of examples, samples; a copy keeps the line
kinds = ('text', 'labelled', 'tagged', 'qa', 'choice')
activations = {'gelu': F.gelu, 'gelu_tanh': functools.partial(F.gelu, approximate='tanh'),
               'relu': F.relu, 'silu': F.silu}

# ---------------------------------------------------------------------------------------------------------------------
# presets: what differs from BERT-base

_roberta = dict(vocab_size=50265, n_segments=1, position_offset=2, norm_eps=1e-5, double_sep=True,
                eot_id=2, pad_id=1, cls_id=0, sep_id=2, mask_id=50264)
_albert = dict(vocab_size=30000, embed_dim=128, share_layers=True, sentences='sop', masking='span',
               activation='gelu_tanh', cls_id=2, sep_id=3, mask_id=4)
_modern = dict(n_segments=0, positions='rotary', pre_norm=True, norm_eps=1e-5, gated=True, bias=False, dropout=0.0,
               attention_dropout=0.0, mask_rate=0.3, pooler='head')
_modernbert = dict(_modern, vocab_size=50368, block_size=8192, biases='decoder', rope_theta=160000.0,
                   rope_theta_local=10000.0, window=128,
                   eot_id=50282, pad_id=50283, cls_id=50281, sep_id=50282, mask_id=50284)
_large = dict(n_layer=24, n_head=16, n_embd=1024)

presets = {
    'small': dict(_modern, vocab_size=8192, block_size=128, n_layer=4, n_head=4, n_embd=256, n_hidden=512,
                  mask_rate=0.2),
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
    'crammed': dict(_modern, vocab_size=32768, block_size=128, n_layer=16, n_hidden=1536, positions='sinusoidal',
                    norm_eps=1e-12, biases='norm', mask_rate=0.25, mlm_transform=False, pooler='tanh'),
}
presets['speedrun-crammed'] = presets['crammed'] | dict(residual_autocast=True)  # a day on one GPU (2212.14034)

# what trains well: overrides of train.py's fields (and of Config's), for this file and for single presets
recipe = dict(preset='small', vocab_multiple=128, weight_decay=0.01, beta1=0.9, beta2=0.98, eps=1e-6, grad_clip=1.0,
              lr_schedule='linear')

_bert = dict(learning_rate=1e-4, batch_size=256, max_iters=1000000, warmup_iters=10000, beta2=0.999)  # BERT, app. A.2
_modern_recipe = dict(lr_schedule='wsd', batch_size=4608, warmup_iters=400, weight_decay=1e-5)  # ModernBERT, table 3
recipes = {
    'small': dict(optimizer='muon', learning_rate=3e-3, muon_lr=0.02, batch_size=32, max_iters=400, warmup_iters=20,
                  eval_interval=100, eval_iters=64),
    **{f'bert-{size}': _bert for size in ('tiny', 'mini', 'small', 'medium', 'base', 'large')},
    'roberta-base': dict(learning_rate=6e-4, batch_size=8192, max_iters=500000, warmup_iters=24000),  # RoBERTa, table 9
    'roberta-large': dict(learning_rate=4e-4, batch_size=8192, max_iters=500000, warmup_iters=30000),
    'spanbert-base': dict(_bert, max_iters=2400000, weight_decay=0.1, eps=1e-8),                      # SpanBERT, 4.2
    **{f'albert-{size}': dict(learning_rate=1.76e-3, batch_size=4096, max_iters=125000, warmup_iters=3125, beta2=0.999)
       for size in ('base', 'large', 'xlarge', 'xxlarge')},                                           # ALBERT, 4.1
    'modern-base': dict(_modern_recipe, learning_rate=8e-4),
    'modern-large': dict(_modern_recipe, learning_rate=5e-4),
    'crammed': dict(learning_rate=1e-3, batch_size=4096, max_iters=35000, warmup_iters=1000, eps=1e-12, grad_clip=0.5),
}
# one cycle, as the authors' code has it: the rate rises for three quarters of the steps and falls to zero in the last
recipes['speedrun-crammed'] = recipes['crammed'] | dict(warmup_iters=26250, time_limit=86400.0, micro_batch_size=256,
                                                        eval_interval=1000, eval_iters=2048, log_interval=50)
# from given weights (BERT, appendix A.3: 2 to 4 epochs at 2e-5 to 5e-5, small models want more)
finetune = dict(learning_rate=5e-5, batch_size=32, epochs=3.0, eval_interval=0, warmup_iters=50, weight_decay=0.01,
                beta2=0.999, eps=1e-6, lr_schedule='linear', dropout=0.1)

# ---------------------------------------------------------------------------------------------------------------------
# pre-training: running text -> rows with hidden tokens. Everything is vectorised over the rows

def role(config, name):
    """The id of [CLS], [SEP] or [MASK] in the data's tokenizer; the end of a document stands in for the first two."""
    i = getattr(config, name + '_id')
    i = config.eot_id if i < 0 and name != 'mask' else i
    if not 0 <= i < config.vocab_size:
        raise ValueError(f'the tokenizer has no {name} token ({name}_id={i}): '
                         f'prepare the text with --tokenizer=bpe, or give --{name}_id')
    return i


def choose(tokens, config, rng, tokenizer):
    """The tokens to hide. tokens: (B, L) -> places (B, K) in order, whether each counts (B, K), u for mask / random /
    keep (B, K), number of the span (B, K)"""
    (B, L), K = tokens.shape, config.n_masked
    special = np.isin(tokens, [i for i in (config.eot_id, config.pad_id, config.cls_id, config.sep_id, config.mask_id)
                               if i >= 0])
    if config.masking != 'token' or config.static_masks: from lib import masking
    if config.masking == 'span':
        places, span = masking.span_places(rng.random(K), rng.random(L - K + 1), K, L)
        u = np.take_along_axis(rng.random(K), span, 1)                     # a span is treated as a whole
        return places, ~np.take_along_axis(special, places, 1), u, span
    random = masking.fixed_random(tokens, rng.integers(0, config.static_masks, 1)) if config.static_masks else rng.random
    order, fits = random(L) + special, np.ones((B, K), bool)               # separators come last
    if config.masking == 'word':
        if tokenizer is None: raise ValueError('masking=word needs the tokenizer of the text, and train.py gave none')
        begins, ends = masking.word_parts(tokenizer)
        first = np.ones((B, L), bool)
        first[:, 1:] = ~(begins[tokens[:, 1:]] & ends[tokens[:, :-1]])
        order = np.take_along_axis(order, np.maximum.accumulate(np.where(first, np.arange(L), 0), 1), 1)  # of the word
        ranked = np.argsort(order, axis=1, kind='stable')
        following = np.take_along_axis(order, ranked[:, [K]], 1) if K < L else -1
        ranked = ranked[:, :K]
        cut = np.take_along_axis(order, ranked, 1) == following            # a word that does not fit as a whole
        fits = ~cut | cut.all(1, keepdims=True)
    else: ranked = np.argpartition(order, K - 1, axis=1)[:, :K]
    at = np.argsort(ranked, axis=1)
    places, fits = np.take_along_axis(ranked, at, 1), np.take_along_axis(fits, at, 1)
    return places, fits & ~np.take_along_axis(special, places, 1), np.take_along_axis(random(L), places, 1), None


def batch(draw, config, rng):
    """One micro-batch of running text: ids (B, T), [segments (B, T)], places (B, K), [edges (B, K, 3)], [pair labels
    (B,)], targets (B, K), where the brackets come with sentences, sbo, sentences."""
    T, L = config.block_size, config.n_text
    cls, sep, mask = (role(config, name) for name in ('cls', 'sep', 'mask'))
    tokens = draw(L)                                                       # (B, L)
    place, first = np.broadcast_to(np.arange(L), tokens.shape), np.full((len(tokens), 1), L)
    if config.sentences:
        first, flip = rng.integers(L // 4, L - L // 4 + 1, 1), rng.integers(0, 2, 1)         # (B, 1) each
        if config.sentences == 'nsp':
            tokens = np.where((flip == 1) & (place >= first), draw(L, stream=1), tokens)
        else:
            tokens = np.where(flip, np.take_along_axis(tokens, (place + first) % L, 1), tokens)
            first = np.where(flip, L - first, first)
    place = place + 1 + (place >= first)                                   # in the row: [CLS] first [SEP] second [SEP]
    chosen, counts, u, span = choose(tokens, config, rng, getattr(draw, 'tokenizer', None))
    original = np.take_along_axis(tokens, chosen, 1)                       # (B, K)
    new = np.where(u < config.mask_share, mask, np.where(u < config.mask_share + config.random_share,
                                                         rng.integers(0, config.vocab_size, config.n_masked), original))
    ids, places = np.full((len(tokens), T), sep), np.take_along_axis(place, chosen, 1)
    ids[:, 0] = cls
    np.put_along_axis(ids, place, tokens, 1)
    if not config.n_decoder: np.put_along_axis(ids, places, np.where(counts, new, original), 1)
    arrays = [ids, (np.arange(T) > first + 1).astype(np.int64), places] if config.sentences else [ids, places]
    if config.sbo:  # of each hidden token: the places just outside its span, and its place in the span
        same = span[:, :, None] == span[:, None]                           # (B, K, K)
        left, right = (np.where(same, places[:, None], T)).min(2), np.where(same, places[:, None], -1).max(2)
        arrays.append(np.stack((left - 1, right + 1, places - left), axis=2))
    return *arrays, *([flip[:, 0]] if config.sentences else []), np.where(counts, original, -1)


def count(*arrays):
    """Numbers of targets: those of the last array and those of the sentence task. Floats of -100 and below are none."""
    last, between = arrays[-1], [a for a in arrays[1:-1] if a.ndim == 1]
    return (int((last > -100).sum() if last.dtype.kind == 'f' else (last >= 0).sum()),
            *(int((a >= 0).sum()) for a in between))

# ---------------------------------------------------------------------------------------------------------------------
# modules

def sinusoidal(positions, width):
    """Attention Is All You Need, 3.5: sin(p / 10000^(2i/C)) at 2i, the cosine at 2i + 1. (T,) -> (T, C)"""
    angle = positions[:, None] * 1e4 ** (-torch.arange(0, width, 2, device=positions.device).float() / width)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :width]


def rotary(theta, width, positions):
    """Cosine and sine of every pair's angle. (B or 1, T) -> two of (B or 1, T, 1, D/2), in fp32"""
    freq = theta ** (-torch.arange(0, width, 2, device=positions.device).float() / width)      # theta^(-2i/D)
    angle = positions[..., None, None].float() * freq
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Turns the pairs (i, i + D/2) of each head, in fp32. x: (B, T, H, D)"""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class LayerNorm(nn.Module):
    """nn.LayerNorm that may lack its bias and returns its input's dtype (autocast would return fp32)."""
    def __init__(self, width, eps, bias):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
    def forward(self, x): return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


def make_norm(config, width=0): return LayerNorm(width or config.n_embd, config.norm_eps, config.has_bias('norm'))


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
        if config.positions == 'learned': self.positions = nn.Embedding(config.block_size + config.position_offset, E)
        if config.positions == 'sinusoidal': self.scale = nn.Parameter(torch.tensor([E ** -0.5]))
        if config.n_segments: self.segments = nn.Embedding(config.n_segments, E)
        self.norm, self.drop = make_norm(config, E), nn.Dropout(config.dropout)

    def forward(self, ids, segments=None):
        """ids, segments: (B, T) -> (B, T, E)"""
        T, c = ids.size(1), self.config
        if T > c.block_size and c.positions == 'learned':
            raise ValueError(f'{T} tokens in a row, but there are learned positions for block_size={c.block_size}')
        x = self.tokens(ids)
        return self.drop(self.norm(x + self.extras(T, x, segments)))

    def extras(self, T, like, segments=None):
        """What a token's place adds: (B or 1, T, E)"""
        c, x = self.config, like.new_zeros(1, 1, 1)
        if c.positions == 'learned':
            x = x + self.positions(torch.arange(c.position_offset, c.position_offset + T, device=like.device))
        if c.positions == 'sinusoidal': x = x + self.scale * sinusoidal(torch.arange(T, device=like.device), c.embed)
        if c.n_segments:
            x = x + (self.segments.weight[0] if segments is None
                     else self.segments(segments.clamp(max=c.n_segments - 1)))
        return x


def around(x, h):
    """What each block of h tokens may see in a local layer: itself, the block before and the one after. (B, T, C) ->
    (B, n, 3 h, C) for n = ceil(T / h) blocks, zeros beyond the ends"""
    x = F.pad(x, (0, 0, h, h + -x.size(1) % h)).unflatten(1, (-1, h))      # (B, n + 2, h, C)
    return torch.cat((x[:, :-2], x[:, 1:-1], x[:, 2:]), dim=2)


def near_mask(real, h):
    """Local layers, h tokens to each side: the cost grows with T h, not with T^2. real: (B, T) bool, false for padding
    -> bool (B n, 1, h, 3 h)"""
    distance = torch.arange(-h, 2 * h, device=real.device) - torch.arange(h, device=real.device)[:, None]  # (h, 3 h)
    seen = around(real[..., None], h).transpose(2, 3) & (distance.abs() <= h)                 # (B, n, h, 3 h)
    return (seen | (distance == 0)).flatten(0, 1)[:, None]                 # itself: a padded token's softmax is not NaN


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, C = config, config.n_embd
        self.qkv = fused(C, config.has_bias('attention'), q=C, k=C, v=C)
        self.out = nn.Linear(C, C, bias=config.has_bias('attention'))

    def forward(self, x, turn, mask):
        """x: (B, T, C). turn: cos and sin, or None. mask: (B or 1, 1, T or 1, T) bool, true where seen, or None; or
        near_mask's."""
        (B, T, C), H = x.shape, self.config.n_head
        q, k, v = self.qkv(x).view(B, T, 3, H, C // H).unbind(2)           # (B, T, H, D) each
        if turn: q, k = rotate(q, *turn), rotate(k, *turn)
        if mask is not None and mask.size(-1) < T:                         # blocks of h tokens become rows of their own
            h = mask.size(-2)
            q = F.pad(q, (0, 0, 0, 0, 0, -T % h)).view(-1, h, H, C // H)   # (B n, h, H, D)
            k, v = (around(y.flatten(2), h).view(-1, 3 * h, H, C // H) for y in (k, v))        # (B n, 3 h, H, D)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask,
                                           self.config.attention_dropout if self.training else 0.0)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, -1, C)[:, :T])


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
    def __init__(self, config, first=False):
        super().__init__()
        self.config, self.attention, self.mlp = config, Attention(config), MLP(config)
        self.norm_1 = nn.Identity() if first and config.pre_norm else make_norm(config)  # the embeddings come normed
        self.norm_2, self.drop = make_norm(config), nn.Dropout(config.dropout)

    def forward(self, x, turn=None, mask=None):
        if not self.config.pre_norm:
            x = self.norm_1(x + self.drop(self.attention(x, turn, mask)))
            return self.norm_2(x + self.drop(self.mlp(x)))
        x = x + self.drop(self.attention(self.norm_1(x), turn, mask))
        return x + self.drop(self.mlp(self.norm_2(x)))


class Encoder(nn.Module):
    """Embeddings to hidden states. With share_layers one block runs n_layer times."""
    def __init__(self, config, n_layer=0):
        super().__init__()
        self.config, self.n_layer = config, n_layer or config.n_layer
        if config.embed != config.n_embd and not n_layer: self.project = nn.Linear(config.embed, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, i == 0 and not n_layer and not config.share_layers)
                                    for i in range(1 if config.share_layers and not n_layer else self.n_layer))
        self.norm = make_norm(config) if config.pre_norm else nn.Identity()

    def forward(self, x, mask=None, positions=None):
        """x: (B, T, E), mask: (B, T) bool, true for real tokens, or None; positions: (B, T) or None -> (B, T, C)"""
        c, T, running = self.config, x.size(1), positions is None
        if running: positions = torch.arange(T, device=x.device)[None]
        turns = [rotary(t, c.n_embd // c.n_head, positions) if c.positions == 'rotary' else None
                 for t in (c.rope_theta, c.rope_theta_local or c.rope_theta)]
        masks = [None if mask is None else mask[:, None, None]] * 2                            # (B, 1, 1, T)
        if running and c.window > 1 and 2 * c.window < T:
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
            masks[1] = near_mask(real, c.window // 2)
        elif c.window and T - 1 > c.window // 2:
            near = ((positions[:, :, None] - positions[:, None]).abs() <= c.window // 2)[:, None]    # (B or 1, 1, T, T)
            itself = torch.eye(T, dtype=torch.bool, device=x.device)       # so that no padded token sees nothing: NaN
            masks[1] = near if mask is None else near & masks[0] | itself
        if hasattr(self, 'project'): x = self.project(x).to(x.dtype)       # autocast would go on in bf16
        if c.residual_autocast and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for i in range(self.n_layer):
            local = int(c.window > 0 and i % c.global_every > 0)           # torch 2.9 compiles no index that is a bool
            block, args = self.blocks[i % len(self.blocks)], (x, turns[local], masks[local])
            x = (checkpoint(block, *args, use_reentrant=False)
                 if c.checkpoint_activations and self.training else block(*args))
        return self.norm(x)


class Transform(nn.Module):
    """In front of the decoder: dense, activation, norm. C -> E"""
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.n_embd, config.embed, bias=config.has_bias('head'))
        self.activation, self.norm = activations[config.activation], make_norm(config, config.embed)
    def forward(self, x): return self.norm(self.activation(self.dense(x)))


class Boundary(nn.Module):
    """SpanBERT, eq. 2: h = LN(GELU(W1 [x_left; x_right; p])), LN(GELU(W2 h)) for the token at place p of its span."""
    def __init__(self, config):
        super().__init__()
        C, E = config.n_embd, config.embed
        self.places = nn.Embedding(10, C)
        self.dense_1, self.norm_1, self.dense_2, self.norm_2 = (nn.Linear(3 * C, C), make_norm(config),
                                                                nn.Linear(C, E), make_norm(config, E))
    def forward(self, left, right, place):
        h = self.norm_1(F.gelu(self.dense_1(torch.cat((left, right, self.places(place)), dim=-1))))
        return self.norm_2(F.gelu(self.dense_2(h)))


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, c, C = config, config, config.n_embd
        self.embeddings, self.encoder, self.drop = Embeddings(c), Encoder(c), nn.Dropout(c.dropout)
        if c.has_pooler: self.pooler = nn.Linear(C, C)
        if c.has_head:
            self.head = Transform(c) if c.mlm_transform else nn.Linear(C, c.embed) if C != c.embed else nn.Identity()
        if c.n_outputs: self.classifier = nn.Linear(C, c.n_outputs)
        if c.kind == 'text':
            self.decoder = nn.Linear(c.embed, c.rows, bias=c.has_bias('decoder'))
            self.decoder.weight = self.embeddings.tokens.weight
            if c.sentences: self.pair = nn.Linear(C, 2)
            if c.sbo: self.boundary = Boundary(c)
            if c.n_decoder: self.mae = Encoder(c, c.n_decoder)
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
            elif not name.endswith('scale'): p.fill_(0 if name.endswith('bias') else 1)

    def depth_of(self, name):
        """Depth of a parameter, for layer_decay and freeze: 0 embeddings, 1 .. n_layer blocks, n_layer + 1 heads."""
        if name.startswith('encoder.blocks.'): return int(name.split('.')[2]) + 1
        return 0 if name.startswith(('embeddings.', 'encoder.project.')) else self.config.n_layer + 1

    def hidden(self, ids, segments=None, mask=None):
        """ids, segments, mask: (B, T), 1 or true in mask for real tokens -> the last layer's hidden states (B, T, C)"""
        if mask is not None: mask = (mask > 0) if mask.size(1) else None
        # a row of padding alone: no NaN
        if mask is not None: mask = mask | (torch.arange(mask.size(1), device=ids.device) == 0)
        return self.encoder(self.embeddings(ids, segments), mask)

    def pooled(self, x, mask=None):
        """x: (B, T, C) -> what classification reads (B, C)"""
        c = self.config
        if c.pool == 'cls': x = x[:, 0]
        elif mask is None or not mask.size(1): x = x.mean(1)
        else: x = (x * (mask > 0).to(x.dtype)[..., None]).sum(1) / (mask > 0).sum(1, keepdim=True).clamp(min=1)
        if c.pooler == 'head': return self.head(x) if c.has_head else x
        return self.pooler(x).tanh() if c.pooler == 'tanh' else self.pooler(x).relu()

    def logits(self, ids, segments=None, mask=None):
        """ids, segments, mask: (B, T) -> masked language model (B, T, V); with another head: classes (B, n_labels), a
        number (B, 1), tags (B, T, n_labels), starts and ends (B, T, 2); choices, from (B, N, T): (B, N), -inf for rows
        of padding"""
        c = self.config
        if c.kind in ('none', 'pooled'):
            raise ValueError('these weights have no head, so there are no logits: use hidden(), or fine-tune first')
        if c.kind == 'choice':
            y = self.scores(*(None if a is None else a.flatten(0, 1) for a in (ids, segments, mask)))
            y = y.view(ids.shape[:2])                                      # (B, N)
            return y if mask is None or not mask.size(2) else y.masked_fill(~(mask > 0).any(2), -math.inf)
        return self.scores(ids, segments, mask)

    def tokens_of(self, x):
        """x: (.., E) -> (.., V): rows of padding have no logit"""
        y = self.decoder(x)
        # a slice of all costs a copy backward
        return y if self.config.rows == self.config.vocab_size else y[..., :self.config.vocab_size]

    def scores(self, ids, segments, mask):
        c = self.config
        if c.kind == 'text' and c.n_decoder:
            real = torch.ones_like(ids, dtype=torch.bool) if mask is None or not mask.size(1) else mask > 0
            hole = ids == c.mask_id
            x = self.hidden(ids, segments, real & ~hole)
            return self.tokens_of(self.head(self.decode(x, hole, segments, real)))
        x = self.hidden(ids, segments, mask)
        if c.kind == 'text': return self.tokens_of(self.head(x))
        if c.kind in ('labelled', 'choice'): return self.classifier(self.drop(self.pooled(x, mask)))
        return self.classifier(self.drop(self.head(x) if c.pooler == 'head' else x))

    def pair_logits(self, x): return self.pair(self.drop(self.pooled(x)))  # (B, T, C) -> (B, 2): next or in order, not

    def decode(self, x, hole, segments=None, mask=None):
        """MAE-LM: hidden states, [MASK] in holes (B, T), places added anew, through the small decoder -> (B, T, C)"""
        e = self.embeddings
        add, void = e.extras(x.size(1), x, segments), e.tokens.weight[self.config.mask_id]
        if hasattr(self.encoder, 'project'):
            add, void = F.linear(add, self.encoder.project.weight), self.encoder.project(void)
        return self.mae((torch.where(hole[..., None], void.to(x.dtype), x) + add).to(x.dtype), mask)

    def nll(self, x, targets):
        """Sum of -log p(target), and of hits, over targets >= 0. x: (N, E), targets: (N,)"""
        logits = self.tokens_of(x)                                         # (N, V)
        hits = None if self.training else (logits.argmax(1) == targets).sum()
        return F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction='sum'), hits

    def forward(self, ids, *rest, totals=None):
        """The arrays of batch() -> loss, stats. With totals, the numbers of targets of the global batch, the parts of a
        batch add up to the loss of the whole. The losses of the tasks are added: MLM + SBO + sentences."""
        if self.config.kind != 'text': return self.supervised(ids, *rest, totals=totals)
        c, (B, T), rest, targets = self.config, ids.shape, list(rest[:-1]), rest[-1]
        share = lambda k, t: (t >= 0).sum().clamp(min=1) if totals is None else totals[k]
        segments, flip = (rest.pop(0), rest.pop()) if c.sentences else (None, None)
        places, edges = rest[0], rest[1] if c.sbo else None
        if c.n_decoder:  # the encoder never meets a hidden token
            hole = torch.zeros_like(ids, dtype=torch.bool).scatter(1, places, True)
            kept = hole.to(torch.uint8).argsort(dim=1, stable=True)[:, :T - places.size(1)]    # (B, T - K), in order
            x = self.embeddings(ids, segments)
            x = self.encoder(x.gather(1, kept[..., None].expand(-1, -1, x.size(2))), None, kept)
            x = x.new_zeros(B, T, c.n_embd).scatter(1, kept[..., None].expand(-1, -1, c.n_embd), x)
            y = self.decode(x, hole, segments)
        else: y = x = self.hidden(ids, segments)
        row = T * torch.arange(B, device=ids.device)[:, None]              # places in the flattened batch
        at = lambda i: y.flatten(0, 1).index_select(0, (i + row).flatten())                    # (B, K) -> (B K, C)
        loss, hits = self.nll(self.head(at(places)), targets.flatten())
        loss = loss / share(0, targets)
        stats = {'mlm_loss': loss.detach()} if c.sbo or c.sentences else {}
        if hits is not None: stats['accuracy'] = hits / share(0, targets)
        if c.sbo:
            sbo, _ = self.nll(self.boundary(at(edges[..., 0]), at(edges[..., 1]), edges[..., 2].flatten()),
                              targets.flatten())
            stats['sbo_loss'] = sbo.detach() / share(0, targets)
            loss = loss + sbo / share(0, targets)
        if c.sentences:
            pair = self.pair_logits(x)                                     # (B, 2)
            nll = F.cross_entropy(pair.float(), flip, ignore_index=-1, reduction='sum') / share(1, flip)
            stats.update(sentence_loss=nll.detach(),
                         sentence_accuracy=(pair.argmax(1) == flip).sum() / share(1, flip))
            loss = loss + nll
        return loss, stats

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
        """Training flops of one row: (6 N + 12 L T C) T, where N leaves out look-up tables and counts MLM's head (and
        decoder matrix) for K of T tokens, a pooler for one, and a shared block as often as it runs."""
        c, T = self.config, self.config.block_size
        size = lambda *names: sum(p.numel() for n in names if hasattr(self, n) for p in getattr(self, n).parameters())
        N = size('encoder') + (sum(p.numel() for p in self.encoder.blocks.parameters())
                               * (c.n_layer // len(self.encoder.blocks) - 1))
        tokens, layers = T, c.n_layer
        if c.kind == 'text':
            decoder, K = c.rows * c.embed, c.n_masked
            row = 6 * (K * (size('head') + decoder + c.sbo * (size('boundary') + decoder)) + size('pooler', 'pair'))
            if c.n_decoder: tokens, row = T - K, row + (6 * size('mae') + 12 * c.n_decoder * T * c.n_embd) * T
        else: row = 6 * (size('classifier') * (T if c.kind in ('tagged', 'qa') else 1) + size('pooler', 'head'))
        local = 0 if not c.window else layers - -(-layers // c.global_every)
        return int((6 * N + 12 * c.n_embd * ((layers - local) * tokens + local * min(tokens, c.window + 1))) * tokens
                   + row)
