"""Encoder-decoders in one file: T5, T5 v1.1, Flan-T5, mT5, UL2, AlexaTM's shape, and the noises of T5 and BART.

    python train.py --model=t5                                     # fills the holes in the standard library's source
    python train.py --model=t5 --init_from=out/t5 --data=my.jsonl  # learns to turn "input" into "target"

A text is damaged, the encoder reads the damaged text, the decoder writes what is missing. Which damage is --objective:

    spans      Thank you <X> me to your party <Y>  ->  <X> for inviting <Y> last week   (T5, 3.1.4; lengths do not vary)
    drop       Thank you me to your party week     ->  for inviting last
    prefix     Thank you for inviting              ->  me to your party last week
    mass       Thank you <M> <M> me to your <M>    ->  the whole text; bert: a tenth of the <M> are random tokens
    deshuffle  party me for your to last week      ->  the whole text
    mask delete infill permute rotate              ->  the whole text: BART's five (2.2); infill puts one <M> for
               a span of Poisson length, also of length 0; bart is permute, then infill
    ul2        spans of 7 settings, each row begins with the token of its mode: R usual, S the end is missing, X extreme
    alexatm    the whole text from one without some spans (4 of 5 rows); or [CLM] and the first 20 to 80 % -> the rest

Papers: T5 Raffel et al. 2020 (1910.10683), v1.1 Shazeer 2020 (2002.05202), BART Lewis et al. 2020 (1910.13461), UL2 Tay
et al. 2022 (2205.05131), AlexaTM 20B Soltan et al. 2022 (2208.01448), Flan Chung et al. 2022 (2210.11416), mT5 Xue et
al. 2021 (2010.11934); RMS-scaled AdamW: nanoT5, Nawrot 2023 (2309.02373).

Where we depart from them: an exact share of each row is damaged (the papers draw each token), so shapes are static; an
untied head starts at C^-1/2, so that the first loss is ln V; shared=true leaves the decoder's cross-attention and the
two tables of positions unshared; a decoder alone has its loss on the targets only; UL2's modes and AlexaTM's [CLM] are
the last sentinels; AlexaTM's shape has T5's norm and positions.

Letters: B batch, T target tokens, S source tokens, L tokens of the undamaged text, C width, H heads, D head width,
F hidden width of the MLP, V vocabulary, R rows while decoding (B times the beams).
"""
import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass
class Config:
    vocab_size: int = 32128      # V: number of tokens; train.py takes it from the data
    vocab_multiple: int = 1      # rows of the token table are rounded up to a multiple of this (128 suits a GPU)
    block_size: int = 512        # S: tokens that the encoder reads; how much text that is follows from the objective
    target_size: int = 128       # T: tokens of the longest target of input/target data (an objective sets its own)
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
    architecture: str = 'encoder-decoder'  # encoder-decoder | decoder (a language model of source + target) | prefix
    shared: bool = False         # the encoder's blocks are the decoder's, but for cross-attention
    checkpoint_activations: bool = False  # keep each block's input only and recompute the block in the backward pass
    residual_autocast: bool = False  # under autocast keep the residual stream in bf16 too: faster, slightly less exact
    objective: str = 'spans'  # spans drop prefix mass bert deshuffle mask delete infill permute rotate bart ul2 alexatm
    density: float = 0.0         # share of the tokens that is damaged; 0: 0.15, but 0.3 for infill and bart
    span: float = 3.0            # mean length of a span
    kind: str = 'text'           # text (the objective above) | pairs; train.py takes it from the data
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
        for name, choices in (('activation', tuple(activations)),
                              ('architecture', ('encoder-decoder', 'decoder', 'prefix')),
                              ('objective', tuple(objectives)), ('kind', kinds)):
            if getattr(self, name) not in choices:
                raise ValueError(f'{name}={getattr(self, name)!r} is not one of: {" ".join(map(repr, choices))}')
        for name in ('vocab_size', 'vocab_multiple', 'target_size', 'n_layer', 'n_head', 'n_embd', 'n_hidden', 'beams'):
            if getattr(self, name) < 1: raise ValueError(f'{name}={getattr(self, name)}: expected 1 or more')
        if self.block_size < 8: raise ValueError(f'block_size={self.block_size}: expected 8 or more')
        if not self.head_dim and self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} is not a multiple of n_head={self.n_head}; or give --head_dim')
        if self.buckets < 4 or self.buckets % 4 or self.max_distance <= self.buckets // 2:
            raise ValueError(f'buckets={self.buckets}, max_distance={self.max_distance}: '
                             'expected a multiple of 4, and more than half of it')
        if not 0 <= self.density <= 0.9: raise ValueError(f'density={self.density}: expected 0 to 0.9')
        if self.span < 1: raise ValueError(f'span={self.span}: expected 1 or more')
        if self.shared and (self.n_decoder_layer or self.n_layer) != self.n_layer:
            raise ValueError(f'shared=true needs as many blocks on both sides: n_layer={self.n_layer}, '
                             f'n_decoder_layer={self.n_decoder_layer}')

    @property
    def rows(self): return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple  # of the token table
    @property
    def width(self): return self.head_dim or self.n_embd // self.n_head                      # D
    @property
    def start(self): return self.pad_id if self.start_id < 0 else self.start_id
    @property
    def two(self): return self.architecture == 'encoder-decoder'
    @property
    def lengths(self):
        """(L, S, T): the longest text whose damaged form fits into block_size, both forms' lengths (568, 512, 114)."""
        if self.kind != 'text': return 0, self.block_size, self.target_size
        L = self.block_size
        while L > 2 and sizes(self, L)[0] > self.block_size: L -= 1
        while sizes(self, L + 1)[0] <= self.block_size: L += 1
        return L, *sizes(self, L)


activations = {'relu': F.relu, 'gelu_tanh': lambda x: F.gelu(x, approximate='tanh'), 'gelu': F.gelu, 'silu': F.silu}
kinds = ('text', 'pairs')
family = 't5'                  # whose tables of lib/ fit: Hugging Face's layout; a copy keeps the line

# ---------------------------------------------------------------------------------------------------------------------
# presets: what differs from T5-small

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
_mt5 = dict(vocab_size=250112, sentinel_first=250099, mask_id=250099)

presets = {
    # density: more to learn from a row
    'small': dict(_v11, block_size=128, n_layer=3, n_head=4, n_embd=256, n_hidden=512, density=0.3),
    **{f't5-{size}': p for size, p in _v10_sizes.items()},
    **{f't5-v1_1-{size}': dict(_v11, **p) for size, p in _v11_sizes.items()},
    **{f'flan-t5-{size}': dict(_v11, **p, dropout=0.1) for size, p in _v11_sizes.items()},  # made for fine-tuning
    **{f'mt5-{size}': dict(_v11, **p, **_mt5, block_size=1024) for size, p in _v11_sizes.items()},
    'speedrun-nanot5': dict(_v11, **_v11_sizes['base']),
    'ul2': dict(_v11 | dict(activation='silu'), n_layer=32, n_head=16, head_dim=256, n_embd=4096, n_hidden=16384,
                objective='ul2'),
    'alexatm-20b': dict(vocab_size=150000, block_size=1024, n_layer=46, n_decoder_layer=32, n_head=32, head_dim=128,
                        n_embd=4096, n_hidden=16384, activation='gelu', tied=False, scale_head=False,
                        objective='alexatm'),
}

# what trains well: overrides of train.py's fields (and of Config's). Rates are relative: each matrix moves by
# learning_rate times its own RMS. Weights to start from are fine-tuned as the paper does it, at a constant rate
# (3.1.2); a preset is pre-trained, with the paper's 1 / sqrt(step).
recipe = dict(preset='small', vocab_multiple=128, rms_scale=True, learning_rate=1e-3, lr_schedule='constant',
              batch_size=32, warmup_iters=20, weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-6, grad_clip=1.0)
recipes = {name: dict(learning_rate=1e-2, lr_schedule='inverse_sqrt', warmup_iters=10000, max_iters=524288,
                      batch_size=128, eval_interval=1000) for name in presets}
recipes['t5-v1_1-base'] |= dict(learning_rate=2e-2, min_lr=1e-5, lr_schedule='cosine', max_iters=65536)  # nanoT5's
recipes['speedrun-nanot5'] = recipes['t5-v1_1-base'] | dict(micro_batch_size=64, eval_iters=2048, log_interval=100)
recipes['small'] = dict(learning_rate=1e-2, lr_schedule='linear', warmup_iters=20, max_iters=900, batch_size=16,
                        beta2=0.98, eval_interval=300, eval_iters=64)
finetune = ({n: v for n, v in recipe.items() if n not in ('preset', 'vocab_multiple')}
            | dict(epochs=3.0, eval_interval=0))

# ---------------------------------------------------------------------------------------------------------------------
# objectives. Each takes the text (B, L) and uniform numbers u (B, 2L), and returns source (B, S), target (B, T), ended
# by eot_id and then padded with -1. No loop over rows: what a row keeps is a mask, which numpy reads out row after row.

def choose(u, n):
    """Which n of each row: those with the smallest u. (B, L) -> bool (B, L)"""
    chosen = np.zeros(u.shape, bool)
    if n: np.put_along_axis(chosen, np.argpartition(u, n - 1, axis=1)[:, :n], True, axis=1)
    return chosen


def split(u, total, n):
    """`total` cut into n parts, none empty, all ways equally likely -> the end of each part (B, n)"""
    cuts = np.argpartition(u[:, :total - 1], n - 2, axis=1)[:, :n - 1] + 1 if n > 1 else np.zeros((len(u), 0), np.int64)
    return np.concatenate((np.sort(cuts, axis=1), np.full((len(u), 1), total)), axis=1)


def before(ends): return np.concatenate((np.zeros_like(ends[:, :1]), ends[:, :-1]), axis=1)


def weave(c, tokens, keep, width, at=None, special=0):
    """The kept tokens of each row, with `special` at the columns `at` (B, n) (a column from width on: not there), the
    end of text behind them, and -1 up to `width`. -> (B, width)"""
    B, n = len(tokens), keep.sum(1)
    if at is not None: n = n + (at < width).sum(1)
    out = np.full((B, width + 1), -1)                                      # the last column takes what is not there
    slot = np.arange(width + 1) < n[:, None]
    out[np.arange(B), n] = c.eot_id
    if at is not None:
        np.put_along_axis(slot, np.minimum(at, width), False, axis=1)
        np.put_along_axis(out, np.minimum(at, width), np.broadcast_to(special, at.shape), axis=1)
    out[slot] = tokens[keep]
    return out[:, :width]


def sentinel(c, i): return c.sentinel_first + c.sentinel_step * i


def noisy(L, density, span):
    """-> damaged tokens of a text of L, spans they come in: T5's own rounding"""
    noise = min(max(round(L * density), 1), L - 1)
    return noise, min(max(round(noise / span), 1), noise, L - noise)


def share(c): return c.density or (0.3 if c.objective in ('infill', 'bart') else 0.15)
def most(noise, span): return int(noise / span + 6 * math.sqrt(noise / span)) + 4  # Poisson spans that surely suffice


def spans(c, tokens, u, density=0., span=0.):
    (B, L), (noise, n) = tokens.shape, noisy(tokens.shape[1], density or share(c), span or c.span)
    kept, lost = split(u, L - noise, n), split(u[:, L:], noise, n)         # (B, n): tokens up to the end of span i
    edge = np.zeros((B, L + 1), np.int8)
    np.put_along_axis(edge, kept + before(lost), 1, axis=1)                # a span begins
    np.put_along_axis(edge, kept + lost, -1, axis=1)                       # and ends; the last one ends the text
    gone, i = edge[:, :L].cumsum(axis=1, dtype=np.int8) > 0, np.arange(n)
    S, T = L - noise + n + 1, noise + n + 1
    return (weave(c, tokens, ~gone, S, kept + i, sentinel(c, i)),
            weave(c, tokens, gone, T, before(lost) + i, sentinel(c, i)))


def drop(c, tokens, u):
    L = tokens.shape[1]
    n = noisy(L, share(c), 1)[0]
    gone = choose(u[:, :L], n)
    return weave(c, tokens, ~gone, L - n + 1), weave(c, tokens, gone, n + 1)


def prefix(c, tokens, u, low=0., high=1.):
    L = tokens.shape[1]
    n = np.clip((L * (low + (high - low) * u[:, :1])).astype(np.int64), 1, L - 1)
    first = np.arange(L) < n
    return weave(c, tokens, first, L), weave(c, tokens, ~first, L)


def whole(c, tokens): return weave(c, tokens, np.ones(tokens.shape, bool), tokens.shape[1] + 1)


def mask(c, tokens, u, random=0.):
    L = tokens.shape[1]
    gone, new = choose(u[:, :L], noisy(L, share(c), 1)[0]), c.mask_id
    if random: new = np.where(u[:, L:] < random, (u[:, L:] / random * c.vocab_size).astype(np.int64), new)
    return whole(c, np.where(gone, new, tokens)), whole(c, tokens)


def delete(c, tokens, u): return drop(c, tokens, u)[0], whole(c, tokens)
def deshuffle(c, tokens, u):
    return whole(c, np.take_along_axis(tokens, np.argsort(u[:, :tokens.shape[1]]), axis=1)), whole(c, tokens)


def permute(c, tokens, u):
    sentence = before(np.cumsum(tokens == c.stop_id, axis=1))              # (B, L): 0 0 0 1 1 2 ..
    order = np.argsort(np.take_along_axis(u, sentence, axis=1), axis=1, kind='stable')
    return whole(c, np.take_along_axis(tokens, order, axis=1)), whole(c, tokens)


def rotate(c, tokens, u):
    L = tokens.shape[1]
    order = (np.arange(L) + (u[:, :1] * L).astype(np.int64)) % L
    return whole(c, np.take_along_axis(tokens, order, axis=1)), whole(c, tokens)


def infill(c, tokens, u, marked=True):
    """Spans of Poisson lengths until `noise` tokens are in one; each becomes a single <M>, or nothing."""
    (B, L), (noise, _) = tokens.shape, noisy(tokens.shape[1], share(c), 1)
    n = most(noise, c.span)
    k = np.arange(int(c.span + 10 * math.sqrt(c.span)) + 10)
    chance = np.exp(k * math.log(c.span) - c.span - np.array([math.lgamma(i + 1) for i in k]))   # span^k e^-span / k!
    ends = np.minimum(np.searchsorted(chance.cumsum(), u[:, :n]).cumsum(axis=1), noise)          # (B, n) lost so far
    ends[:, -1] = noise
    used = before(ends) < noise
    at = np.sort(np.where(used, (u[:, L:L + n] * (L - noise + 1)).astype(np.int64), L), axis=1)  # kept before a span
    places = np.arange(B)[:, None] * (L + 1) + np.minimum(at + before(ends), L)
    count = lambda x: np.bincount(x.ravel(), minlength=B * (L + 1)).reshape(B, L + 1)
    gone = (count(places) - count(np.where(used, places + ends - before(ends), places)))[:, :L].cumsum(axis=1) > 0
    S = L - noise + marked * n + 1
    return (weave(c, tokens, ~gone, S, *(np.where(used, at + np.arange(n), S), c.mask_id) if marked else ()),
            whole(c, tokens))


def bart(c, tokens, u):
    moved = permute(c, tokens, u[:, ::-1])[0][:, :-1]
    return infill(c, moved, u)[0], whole(c, tokens)


# UL2, table 1: mean length of a span, density, mode (R 0, S 1, X 2). S is a single span, which ends the text.
_ul2 = ((3, 0.15, 0), (8, 0.15, 0), (1e9, 0.25, 1), (3, 0.5, 2), (8, 0.5, 2), (64, 0.15, 2), (64, 0.5, 2))


def mixture(c, tokens, u, pick, ways):
    """Row by row one of `ways`, each with the chance that `pick` (B,) has of its number; None: no first token."""
    S, T = sizes(c, tokens.shape[1])
    source, target = np.full((len(tokens), S), -1), np.full((len(tokens), T), -1)
    for i, (way, first) in enumerate(ways):
        r = pick == i
        if not r.any(): continue
        a, b = way(c, tokens[r], u[r])
        if first is not None: a = np.concatenate((np.full((len(a), 1), first), a), axis=1)
        source[r, :a.shape[1]], target[r, :b.shape[1]] = a[:, :S], b
    return source, target


def ul2(c, tokens, u):
    ways = [(lambda c, t, u, span=span, density=density: spans(c, t, u, density, span),
             sentinel(c, c.n_sentinel - 1 - mode)) for span, density, mode in _ul2]
    return mixture(c, tokens, u, (u[:, -1] * len(ways)).astype(np.int64), ways)


def alexatm(c, tokens, u):
    ways = [(lambda c, t, u: infill(c, t, u, marked=False), None),
            (lambda c, t, u: prefix(c, t, u, 0.2, 0.8), sentinel(c, c.n_sentinel - 1))]
    return mixture(c, tokens, u, (u[:, -1] > 0.8).astype(np.int64), ways)


objectives = dict(spans=spans, drop=drop, prefix=prefix, mass=mask, bert=lambda c, t, u: mask(c, t, u, random=0.1),
                  mask=mask, deshuffle=deshuffle, delete=delete, infill=infill, permute=permute, rotate=rotate,
                  bart=bart, ul2=ul2, alexatm=alexatm)
ragged = ('prefix', 'infill', 'bart', 'ul2', 'alexatm')  # the others fill every place of every row


def sizes(c, L):
    """-> (S, T) of a text of L tokens"""
    noise, n = noisy(L, share(c), c.span)
    if c.objective == 'spans': return L - noise + n + 1, noise + n + 1
    if c.objective == 'ul2':
        all = [noisy(L, density, span) for span, density, _ in _ul2]
        return max(L - noise + n for noise, n in all) + 2, max(noise + n for noise, n in all) + 1
    if c.objective == 'prefix': return L, L
    if c.objective == 'alexatm': return max(L - noise + 1, int(0.8 * L) + 2), L + 1
    if c.objective in ('infill', 'bart'): return L - noise + most(noise, c.span) + 1, L + 1
    return L + 1 - noise * (c.objective in ('drop', 'delete')), noise + 1 if c.objective == 'drop' else L + 1


def batch(draw, config, rng):
    """One micro-batch: source (B, S) and last the targets (B, T). Where rows differ in length, two arrays stand
    between: which tokens of the source are real, bool (B, S); and the places (of B T) that the loss is computed at,
    real targets first (their number is rounded up to a multiple of 64). Targets of padding are -1."""
    if config.kind == 'pairs':
        found = draw.examples()
        source, targets = (np.full((len(found), -(-max(len(e[k]) for e in found) // 8) * 8), -1)
                           for k in ('source', 'target'))
        for i, e in enumerate(found):
            source[i, :len(e['source'])], targets[i, :len(e['target'])] = e['source'], e['target']
    else:
        L, *_ = config.lengths
        needed = dict(spans=noisy(L, share(config), config.span)[1], ul2=noisy(L, 0.5, 3)[1] + 3,
                      alexatm=1).get(config.objective, 0)
        if needed and config.sentinel_first < 0:
            raise ValueError(f'objective={config.objective} needs sentinels, which this tokenizer lacks: '
                             'use --tokenizer=bpe')
        if needed > config.n_sentinel:
            raise ValueError(f'{L} tokens in a row take {needed} sentinels, there are {config.n_sentinel}: '
                             'lower --block_size or raise --span')
        tokens = draw(L)                                                   # (B, L)
        source, targets = objectives[config.objective](config, tokens, rng.random(2 * L))
        if config.objective not in ragged: return source, targets
    real, n = source >= 0, int((targets >= 0).sum())
    places = np.argsort(targets.ravel() < 0, kind='stable')[:-(-n // 64) * 64]
    return np.where(real, source, config.pad_id), real, places, targets


def fill(tokenizer):
    """The Config fields that a tokenizer sets beside vocab_size, eot_id and pad_id."""
    s, stops = tokenizer.sentinels, [i for i in map(tokenizer.encode, '.\n') if len(i) == 1] if tokenizer else []
    roles = [i for i in (tokenizer.mask, *s[:1], tokenizer.eot) if i is not None]
    return dict(sentinel_first=s[0] if s else -1, sentinel_step=s[1] - s[0] if len(s) > 1 else 1, n_sentinel=len(s),
                mask_id=roles[0] if roles else 0, stop_id=stops[0][0] if stops else -1,
                start_id=-1 if tokenizer.pad is not None or tokenizer.eot is None else tokenizer.eot)


def encode(example, tokenizer, config):
    """{"input", "target"} -> [{'source', 'target'}], both cut to what the model reads and writes, and ended."""
    cut = lambda text, n: [*tokenizer.encode(text)[:n - 1], config.eot_id]
    return [dict(source=cut(example['input'], config.block_size), target=cut(example['target'], config.target_size))]

# ---------------------------------------------------------------------------------------------------------------------
# modules

class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32 whatever comes in; returns the weight's dtype."""
    def __init__(self, width, eps):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))
    def forward(self, x):
        exact = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(exact), self.weight.shape, self.weight.to(exact), self.eps).to(self.weight.dtype)


def fused(width, **parts):
    """Several linear layers of one input as one, which is faster. .parts has the rows of each, in order, for who wants
    them apart: adapters, Muon."""
    layer = nn.Linear(width, sum(parts.values()), bias=False)
    layer.parts = parts
    return layer


class Attention(nn.Module):
    """softmax(q k^T + bias) v, without 1/sqrt(D), which the first weights of q hold. Those differ from the first
    weights of k and v, so q is a matrix by itself: an RMS-scaled learning rate needs its own RMS."""
    def __init__(self, config):
        super().__init__()
        self.H, self.dropout, W = config.n_head, config.dropout, config.n_head * config.width
        self.q, self.kv = nn.Linear(config.n_embd, W, bias=False), fused(config.n_embd, k=W, v=W)
        self.out = nn.Linear(W, config.n_embd, bias=False)

    def heads(self, x): return x.unflatten(-1, (self.H, -1)).transpose(1, 2)  # (B, T, H D) -> (B, H, T, D)
    def keys(self, x): return tuple(map(self.heads, self.kv(x).chunk(2, dim=-1)))

    def forward(self, x, keys, bias=None):
        """x: (R, T, C); keys: k and v (B, H, S, D); bias: float, or bool for who is seen, (1 or B, 1 or H, 1 or T, S).
        Rows that share their keys (the beams of one source, R = n B) are taken together."""
        (R, T, _), (k, v), q = x.shape, keys, self.heads(self.q(x))        # (R, H, T, D)
        if R != len(k): q = q.unflatten(0, (len(k), -1)).transpose(1, 2).flatten(2, 3)            # (B, H, n T, D)
        drop = self.dropout if self.training else 0.0
        if x.device.type == 'cpu' and (T == 1 or bias is not None and bias.requires_grad):
            s = q @ k.transpose(-1, -2)                                    # torch has no fast kernel for these two
            if bias is not None: s = s.add_(bias) if bias.dtype != torch.bool else s.masked_fill_(~bias, -math.inf)
            y = F.dropout(s.softmax(dim=-1), drop) @ v
        else: y = F.scaled_dot_product_attention(q, k, v, bias, drop, scale=1.0)
        return self.out(y.unflatten(2, (-1, T)).permute(0, 2, 3, 1, 4).reshape(R, T, -1))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gated, self.activation, self.drop = (config.gated, activations[config.activation],
                                                  nn.Dropout(config.dropout))
        parts = dict(gate=config.n_hidden, up=config.n_hidden) if config.gated else dict(up=config.n_hidden)
        self.up, self.down = fused(config.n_embd, **parts), nn.Linear(config.n_hidden, config.n_embd, bias=False)

    def forward(self, x):
        if self.gated:
            gate, up = self.up(x).chunk(2, dim=-1)                         # (B, T, F) each
            x = self.drop(self.activation(gate) * up)
        else: x = self.drop(self.activation(self.up(x)))
        device = x.device.type
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
            with torch.autocast(device, enabled=False): return self.down(x.float())               # overflows in fp16
        return self.down(x if torch.is_autocast_enabled(device) else x.to(self.down.weight.dtype))


class Block(nn.Module):
    def __init__(self, config, cross):
        super().__init__()
        self.norm_self, self.attention = RMSNorm(config.n_embd, config.norm_eps), Attention(config)
        if cross: self.norm_cross, self.cross = RMSNorm(config.n_embd, config.norm_eps), Attention(config)
        self.norm_mlp, self.mlp, self.drop = (RMSNorm(config.n_embd, config.norm_eps), MLP(config),
                                              nn.Dropout(config.dropout))

    def forward(self, x, bias, memory=None, real=None, write=None):
        """memory: what the encoder says (B, S, C), or its keys and values; None: no cross-attention. real: (B, 1, 1, S)
        bool. write: puts keys and values into a cache and returns all that it holds."""
        y = self.norm_self(x)
        keys = self.attention.keys(y)
        x = x + self.drop(self.attention(y, keys if write is None else write(*keys), bias))
        if memory is not None:
            x = x + self.drop(self.cross(
                self.norm_cross(x), memory if isinstance(memory, tuple) else self.cross.keys(memory), real))
        return x + self.drop(self.mlp(self.norm_mlp(x)))


def bucket(far, two_way, n, max_distance):
    """Class of the relative position far = key - query: half of the classes are exact, the others grow with the
    logarithm up to max_distance; two_way: half of them for each side, else all for the past (T5, 2.1). Of any shape"""
    side = 0
    if two_way: n = n // 2; side = (far > 0) * n
    far = far.abs() if two_way else -far.clamp(max=0)
    wide = n // 2 + (torch.log(far.float() / (n // 2)) / math.log(max_distance / (n // 2)) * (n - n // 2)).long()
    return side + torch.where(far < n // 2, far, wide.clamp(max=n - 1))    # log 0 = -inf is not taken


class HeadLoss(torch.autograd.Function):
    """Sum of -log softmax(x W^T)[y] over y >= 0, times scale. The gradient (p - 1[y]) is made while p is at hand, some
    rows at a time: memory fresh from the system costs a CPU as much as a third of the multiplications."""
    @staticmethod
    def forward(ctx, x, W, V, y, scale, rows=192):
        dx, dW, loss, buffer = (torch.empty_like(x), torch.zeros_like(W), x.new_zeros(()),
                                x.new_empty(min(rows, len(x)), V))
        W, dV = W[:V], dW[:V]
        for a in range(0, len(x), rows):
            part, (target, real) = x[a:a + rows], (
                lambda t: (t.clamp(min=0)[:, None], (t >= 0)[:, None]))(y[a:a + rows])
            z = torch.mm(part, W.t(), out=buffer[:len(part)])              # (rows, V)
            (top, i), hit = z.max(dim=1, keepdim=True), z.gather(1, target)
            p = torch._softmax(z, 1, False, out=z)                         # log sum exp z = top - log p(top)
            loss += ((top - p.gather(1, i).log() - hit) * real).sum()
            p.scatter_add_(1, target, -torch.ones_like(hit))
            if not real.all(): p.mul_(real)
            torch.mm(p, W, out=dx[a:a + rows])
            dV.addmm_(p.t(), part * scale)
        ctx.save_for_backward(dx.mul_(scale), dW)
        return loss * scale

    @staticmethod
    def backward(ctx, g):
        dx, dW = ctx.saved_tensors
        return *((dx, dW) if g == 1 else (dx * g, dW * g)), None, None, None, None


class Cache:
    """Keys and values of the tokens so far, in tensors of fixed size; the place is a tensor too, so that a compiled
    step never changes its shapes. `memory` holds each block's keys and values of the source, computed once."""
    def __init__(self, config, rows, length, bias, memory, real):
        shape = (config.n_decoder_layer or config.n_layer, rows, config.n_head, length, config.width)
        self.length, self.bias, self.memory, self.real = length, bias, memory, real   # bias: (H, length), by distance
        self.k, self.v = bias.new_zeros(shape), bias.new_zeros(shape)
        self.seen = None                               # (R, 1, 1, length): a decoder alone reads padding in its prompts
        self.position = torch.zeros((), dtype=torch.long, device=bias.device)         # tokens held
        self.places = torch.arange(length, device=bias.device)

    def reorder(self, rows):
        """Row i becomes what row rows[i] was, (R,); the beams of a source stay among themselves."""
        n = int(self.position) if self.position.device.type == 'cpu' else self.length
        for x in (self.k, self.v): x[:, :, :, :n] = x[:, rows, :, :n]


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, C, L = config, config.n_embd, config.n_decoder_layer or config.n_layer
        self.tokens, self.drop = nn.Embedding(config.rows, C), nn.Dropout(config.dropout)
        if config.two:
            if not config.shared:
                self.encoder = nn.ModuleList(Block(config, cross=False) for _ in range(config.n_layer))
            self.encoder_bias, self.encoder_norm = (nn.Embedding(config.buckets, config.n_head),
                                                    RMSNorm(C, config.norm_eps))
        self.decoder = nn.ModuleList(Block(config, cross=config.two) for _ in range(L))
        self.decoder_bias, self.decoder_norm = nn.Embedding(config.buckets, config.n_head), RMSNorm(C, config.norm_eps)
        self.head = nn.Linear(C, config.rows, bias=False)
        if config.tied: self.head.weight = self.tokens.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Every branch starts at unit variance (mesh-tensorflow's code; q: (C D)^-1/2 stands in for 1/sqrt(D))."""
        c = self.config
        std = {'q': (c.n_embd * c.width) ** -0.5, 'out': (c.n_head * c.width) ** -0.5, 'down': c.n_hidden ** -0.5,
               'tokens': 1.0}
        for name, p in self.named_parameters():
            if p.ndim == 2: p.normal_(0, std.get(name.split('.')[-2], c.n_embd ** -0.5))

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        for m in self.modules():                       # model.half() spares the matrix whose output overflows
            if isinstance(m, MLP) and m.down.weight.dtype == torch.float16: m.down.float()
        return self

    def bias(self, table, T, S, two_way, real=None, causal=False):
        """Bias of T queries on S keys, (1 or B, H, T, S), -inf where blind. Computed per distance, then laid out by
        reading rows of T + S numbers with a stride one shorter: each row begins one place further on. The gradient is a
        plain sum."""
        c, r = self.config, torch.arange(S + T, device=table.weight.device)
        far = torch.where(r < S, r, r - S - T)                             # 0 .. S - 1, -T .. -1
        w = table(bucket(far, two_way, c.buckets, c.max_distance)).t()     # (H, S + T)
        w = (w[:, None].expand(-1, T, -1).flatten(1)[:, :T * (S + T - 1)].unflatten(1, (T, -1))[:, :, :S]
             .contiguous()[None])
        if causal: w = w.masked_fill(r[:S] > r[:T, None], -math.inf)
        if real is not None: w = w.masked_fill(~real, -math.inf)
        device = w.device.type
        return w.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else w

    def run(self, block, *inputs):
        if not (self.config.checkpoint_activations and self.training): return block(*inputs)
        return checkpoint(block, *inputs, use_reentrant=False)

    def begin(self, x):
        """What the first block gets: x (B, T, C) with dropout, in bf16 under residual_autocast."""
        if self.config.residual_autocast and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return self.drop(x)

    def encode(self, source, real=None):
        """source: ids (B, S) or their vectors (B, S, C), real: bool (B, 1, 1, S) -> (B, S, C)"""
        x, S = self.begin(self.tokens(source) if source.ndim == 2 else source), source.size(1)
        bias = self.bias(self.encoder_bias, S, S, True, real)
        for block in self.decoder if self.config.shared else self.encoder: x = self.run(block, x, bias)
        return self.drop(self.encoder_norm(x))

    def join(self, source, target_in, mask):
        """Source and target as one row of S + T, padding first -> x (B, S + T, C), bias, the real (B, 1, 1, S + T)"""
        S, real, see = source.size(1), None, None
        if mask is not None:
            turn = (torch.arange(S, device=mask.device) + mask.sum(1, keepdim=True)) % S     # the last token comes last
            source, mask = source.gather(1, turn), mask.gather(1, turn)
            real = see = torch.cat((mask, torch.ones_like(target_in, dtype=torch.bool)), dim=1)[:, None, None]
        ids = torch.cat((source, target_in), dim=1)
        i = torch.arange(ids.size(1), device=ids.device)
        past = i <= i[:, None]                                             # (S + T, S + T)
        if self.config.architecture == 'prefix': past = past | ((i < S) & (i < S)[:, None])
        see = past if see is None else past & see | (i == i[:, None])      # a query of padding sees itself: no NaN
        bias = self.bias(self.decoder_bias, len(i), len(i), self.config.architecture == 'prefix', see)
        return self.begin(self.tokens(ids)), bias, real

    def hidden(self, source, target_in, mask=None):
        """-> what the head reads, (B, T, C)"""
        real = None if mask is None else mask[:, None, None]
        if self.config.two:
            S, T = source.size(1), target_in.size(1)
            both = self.tokens(torch.cat((source, target_in), dim=1))      # one look-up, so one gradient of the table
            memory, x, bias = (self.encode(both[:, :S], real), self.begin(both[:, S:]),
                               self.bias(self.decoder_bias, T, T, False, causal=True))
            for block in self.decoder: x = self.run(block, x, bias, memory, real)
        else:
            x, bias, _ = self.join(source, target_in, mask)
            for block in self.decoder: x = self.run(block, x, bias)
            x = x[:, source.size(1):]
        x = self.drop(self.decoder_norm(x))
        return x * self.config.n_embd ** -0.5 if self.config.scale_head else x

    def forward(self, source, *rest, totals=None):
        """The arrays of batch() -> loss, stats. With totals, the number of targets of the global batch, the parts of a
        batch add up to the loss of the whole. In eval mode stats has the accuracy of the single tokens."""
        *between, targets = rest
        mask, places = between or (None, None)
        start = torch.full_like(targets[:, :1], self.config.start)
        x = self.hidden(source, torch.cat((start, targets[:, :-1].clamp(min=0)), dim=1), mask).flatten(0, 1)
        y = targets.flatten()
        if places is not None: x, y = x[places], y[places]                 # no logits for padding
        total, V = (y >= 0).sum().clamp(min=1) if totals is None else totals[0], self.config.vocab_size
        # may the head's matrix be read directly? Not if it is compiled, sharded or wrapped (an adapter)
        if (self.training and x.device.type == 'cpu' and x.dtype == self.head.weight.dtype == torch.float32
                and not torch.compiler.is_compiling() and type(self.head) is nn.Linear
                and type(self.head.weight) is nn.Parameter and self.head.weight.requires_grad
                and not torch.is_autocast_enabled('cpu')):
            return HeadLoss.apply(x, self.head.weight, V, y, 1 / total), {}
        logits = self.head(x)[:, :V].float()                               # (K, V): rows of padding have no logit
        loss = F.cross_entropy(logits, y, ignore_index=-1, reduction='sum') / total
        return loss, {} if self.training else {'accuracy': (logits.argmax(dim=-1) == y).sum() / total}

    def logits(self, source, target_in, mask=None):
        """source (B, S), what the decoder reads (B, T), which source tokens are real (B, S) -> (B, T, V)"""
        return self.head(self.hidden(source, target_in, mask))[..., :self.config.vocab_size]

    def cache(self, rows, length, source, mask=None):
        """Reads the source (B, S) once, for `rows` rows (a multiple n of B: row i continues source i // n), each of
        which may step through `length` tokens. mask: bool (B, S), which source tokens are real."""
        c, B, S = self.config, *source.shape
        length, real = length + (not c.two) * S, None if mask is None else mask[:, None, None]
        far = -torch.arange(length, device=source.device)
        bias = self.decoder_bias(bucket(far, c.architecture == 'prefix', c.buckets, c.max_distance)).t().contiguous()
        if c.two:
            memory = self.encode(source, real)
            return Cache(c, rows, length, bias,
                         [tuple(x.contiguous() for x in b.cross.keys(memory)) for b in self.decoder], real)
        cache = Cache(c, rows, length, bias, [None] * len(self.decoder), None)
        x, bias, real = self.join(source, source[:, :0], mask)
        for i, block in enumerate(self.decoder):
            def write(k, v):
                for all, new in ((cache.k, k), (cache.v, v)): all[i, :, :, :S] = new.repeat_interleave(rows // B, dim=0)
                return k, v
            x = block(x, bias, write=write)
        if real is not None: cache.seen = F.pad(real, (0, length - S), value=True).repeat_interleave(rows // B, dim=0)
        cache.position += S
        return cache

    def step(self, ids, cache):
        """ids (R, T), the start token first -> logits of the token that follows the last one (R, V)"""
        T, S = ids.size(1), cache.length
        positions = cache.position + cache.places[:T]
        if not torch.compiler.is_compiling() and ids.device.type == 'cpu':  # reading the place costs nothing here
            S = int(cache.position) + T  # no work on places that are still empty
            positions = cache.places[S - T:S]
            if S > cache.length: raise ValueError(f'the cache of {cache.length} tokens is full')
        far = positions[:, None] - cache.places[:S]                        # (T, S)
        bias = cache.bias[:, far.clamp(min=0)].masked_fill(far < 0, -math.inf)[None]              # (1, H, T, S)
        if cache.seen is not None: bias = bias.masked_fill(~cache.seen[..., :S], -math.inf)
        x = self.tokens(ids)
        for block, keys, values, memory in zip(self.decoder, cache.k, cache.v, cache.memory):
            def write(k, v):
                keys.index_copy_(2, positions, k.to(keys.dtype)), values.index_copy_(2, positions, v.to(keys.dtype))
                return keys[:, :, :S], values[:, :, :S]
            x = block(x, bias, memory, cache.real, write)
        cache.position += T
        x = self.decoder_norm(x[:, -1])
        if self.config.scale_head: x = x * self.config.n_embd ** -0.5
        return self.head(x)[:, :self.config.vocab_size]

    def flops(self):
        """Training flops of one row: 6 N per token a matrix sees, 12 L H D per query and key; causality not halved."""
        c, (_, S, T), A = self.config, self.config.lengths, self.config.n_head * self.config.width
        mlp, E, L = (2 + c.gated) * c.n_embd * c.n_hidden, c.n_layer, c.n_decoder_layer or c.n_layer
        head = 6 * c.rows * c.n_embd * T
        if not c.two: return L * (6 * (4 * A * c.n_embd + mlp) + 12 * A * (S + T)) * (S + T) + head
        encoder = E * (6 * (4 * A * c.n_embd + mlp) + 12 * A * S) * S
        return encoder + L * ((6 * (6 * A * c.n_embd + mlp) + 12 * A * (T + S)) * T + 6 * 2 * A * c.n_embd * S) + head

# ---------------------------------------------------------------------------------------------------------------------
# writing

def unrepeated(scores, ids, n):
    """scores (R, V) with -inf for every token that would repeat an n-gram of ids (R, t)"""
    if ids.size(1) < n: return scores
    grams = ids.unfold(1, n, 1)                                            # (R, t - n + 1, n)
    again = (grams[..., :-1] == ids[:, None, ids.size(1) + 1 - n:]).all(dim=-1)
    banned = torch.zeros(len(ids), scores.size(1) + 1, dtype=torch.bool, device=ids.device)
    banned.scatter_(1, torch.where(again, grams[..., -1], scores.size(1)), True)
    return scores.masked_fill(banned[:, :-1], -math.inf)


@torch.no_grad()
def generate(model, source, mask=None, max_new_tokens=64, temperature=0.0, top_k=0, top_p=1.0, beams=1,
             length_penalty=1.0, no_repeat_ngram=0, early_stopping=False, generator=None, step=None):
    """What the model answers to source (B, S): tokens (B, n <= max_new_tokens), up to eot_id and then pad_id. mask:
    bool (B, S), which source tokens are real. temperature 0 takes the likeliest token, else one is drawn from the top_k
    and the top_p likeliest. beams > 1: beam search, by (sum of log p) / tokens^length_penalty. step: model.step,
    perhaps compiled."""
    if beams > 1 and temperature:
        raise ValueError('beam search takes the likeliest texts: leave out temperature, or beams')
    c, B, step = model.config, len(source), step or model.step
    cache = model.cache(B * beams, max_new_tokens, source, mask)
    if beams > 1:
        return search(c, B, cache, step, max_new_tokens, beams, length_penalty, no_repeat_ngram, early_stopping)
    out = torch.full((B, max_new_tokens + 1), c.pad_id, device=source.device)
    out[:, 0], done = c.start, torch.zeros(B, dtype=torch.bool, device=source.device)
    for t in range(1, max_new_tokens + 1):
        scores = step(out[:, t - 1:t], cache).float()                      # (B, V)
        if no_repeat_ngram: scores = unrepeated(scores, out[:, :t], no_repeat_ngram)
        if temperature:
            best, order = (scores / temperature).sort(dim=-1, descending=True)
            if top_k: best[:, top_k:] = -math.inf
            p = best.softmax(dim=-1)
            p = p.masked_fill(p.cumsum(dim=-1) - p >= top_p, 0)            # the likeliest one always stays
            next = order.gather(1, torch.multinomial(p, 1, generator=generator))[:, 0]
        else: next = scores.argmax(dim=-1)
        out[:, t] = torch.where(done, c.pad_id, next)
        done |= next == c.eot_id
        # a GPU is asked seldom: it would have to wait
        if (out.device.type == 'cpu' or t % 16 == 0) and done.all(): break
    return out[:, 1:t + 1]


def search(c, B, cache, step, n, K, length_penalty, no_repeat_ngram, early_stopping):
    """Beam search with transformers' rules: the 2 K best continuations; those of the K best that end go to the
    finished, the K best others go on; over when the best running beam, at its length, is no better than the worst of K
    finished ones."""
    device = cache.bias.device
    ids = torch.full((B, K, n + 1), c.pad_id, device=device)
    ids[:, :, 0] = c.start
    scores = torch.zeros(B, K, device=device).index_fill_(1, torch.arange(1, K, device=device), -1e9)  # beams are one
    final, best = ids.clone(), torch.full((B, K), -math.inf, device=device)     # K finished texts, the best one first
    better = torch.ones(B, 1, dtype=torch.bool, device=device)                  # may a running beam still win?
    pick = lambda x, i: x.gather(1, i[..., None].expand(-1, -1, n + 1))
    for t in range(1, n + 1):
        p = step(ids[:, :, t - 1].reshape(B * K, 1), cache).float().log_softmax(dim=-1)           # (B K, V)
        if no_repeat_ngram: p = unrepeated(p, ids[:, :, :t].flatten(0, 1), no_repeat_ngram)
        V = p.size(1)
        top, i = (p.view(B, K, V) + scores[..., None]).flatten(1).topk(2 * K)   # (B, 2 K)
        parent, grown = i // V, pick(ids, i // V)
        grown[:, :, t] = i % V
        ends = (i % V == c.eot_id) | (t == n)
        valid = ends & (torch.arange(2 * K, device=device) < K) & better
        if early_stopping: valid = valid & ~(best > -math.inf).all(dim=1, keepdim=True)
        best, j = torch.cat((best, (top / t ** length_penalty).masked_fill(~valid, -math.inf)), dim=1).topk(K)
        final = pick(torch.cat((final, grown), dim=1), j)
        scores, j = top.masked_fill(ends, -1e9).topk(K)
        ids, rows = pick(grown, j), parent.gather(1, j) + K * torch.arange(B, device=device)[:, None]
        better = better & (scores[:, :1] / t ** length_penalty > best[:, -1:])
        if t == n or not better.any() or early_stopping and (best > -math.inf).all(): break
        cache.reorder(rows.flatten())
    final = final[:, 0, 1:]
    end = (final == c.eot_id).int().argmax(dim=1).where((final == c.eot_id).any(dim=1), n - 1)
    return final[:, :int(end.max()) + 1]


def text_of(ids, tokenizer, eot):
    ids = ids.tolist() if hasattr(ids, 'tolist') else list(ids)
    return tokenizer.decode(ids[:ids.index(eot)] if eot in ids else ids)


def predict(model, arrays, examples, tokenizer):
    """The arrays of batch(), on the model's device -> [{'index', 'prediction': text}]"""
    c = model.config
    out = generate(model, arrays[0], arrays[1] if len(arrays) > 2 else None, c.target_size, beams=c.beams)
    return [dict(index=e['index'], prediction=text_of(row, tokenizer, c.eot_id)) for e, row in zip(examples, out)]


class _Seeded:  # the protocol's rng for one row
    def __init__(self, seed): self.rng = np.random.default_rng(seed)
    def random(self, *shape): return self.rng.random((1, *shape))


@torch.no_grad()
def show(model, tokenizer, ids):
    """ids: (L,) tokens, or examples of input/target data -> the damaged text and what the model writes. Of spans
    the text with the fillings in their places: [filling], or [filling|truth] where it is wrong."""
    c, device, training, lines = model.config, model.tokens.weight.device, model.training, []
    model.eval()
    if c.kind == 'text': rows = [batch(lambda n: np.asarray(ids, np.int64)[None, :n], c, _Seeded(0))]
    else: rows = [batch(SimpleNamespace(examples=lambda: [e]), c, None) for e in ids[:4]]
    for arrays in rows:
        source, mask, targets = arrays[0], arrays[1] if len(arrays) > 2 else None, arrays[-1][0]
        given = [None if a is None else torch.from_numpy(a).to(device) for a in (source, mask)]
        out = generate(model, *given, max_new_tokens=targets.size)
        said, meant = out[0].tolist(), targets[targets >= 0].tolist()
        text = text_of(source[0][:mask[0].sum()] if mask is not None else source[0], tokenizer,
                       -1 if c.kind == 'text' else c.eot_id)
        if c.kind != 'text' or c.objective != 'spans':
            lines += [f'{text}\n  >>> {text_of(said, tokenizer, c.eot_id)!r}\n'
                      f'  was {text_of(meant, tokenizer, c.eot_id)!r}']
            continue
        marks, fills = [sentinel(c, i) for i in range(c.n_sentinel)], []
        for row in (said, meant):                      # sentinel -> the tokens up to the next one
            cut = [k for k, i in enumerate(row) if i in marks] + [row.index(c.eot_id) if c.eot_id in row else len(row)]
            fills.append({row[a]: tokenizer.decode(row[a:b]).removeprefix(tokenizer.decode(row[a:a + 1]))
                          for a, b in zip(cut, cut[1:])})  # after its sentinel: with the space that it may begin with
        for mark, was in fills[1].items():
            filled = fills[0].get(mark, '')
            text = text.replace(tokenizer.decode([mark]), f'[{filled}]' if filled == was else f'[{filled}|{was}]', 1)
        right = sum(fills[0].get(m) == w for m, w in fills[1].items())
        lines += [f'{text}\n  >>> {right} of {len(fills[1])} gaps filled as they were: [filling], or [filling|truth]']
    model.train(training)
    return '\n'.join(lines)
