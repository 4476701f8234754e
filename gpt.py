"""Causal decoders in one file: GPT-1, GPT-2, GPT-3, Pythia, Llama 1/2/3, Mistral, and what lies between them.

    python train.py --model=gpt                               # trains the preset 'small' on Python's standard library
    python sample.py --out_dir=out/gpt --prompt="def main("   # continues your text

    python train.py --model=gpt --init_from=out/gpt --data=instruct     # instruction tuning, on prompts and responses
    python sample.py --out_dir=out/gpt-instruct --interactive           # a chat

One Config spans the family, because these models differ in a few choices only: where the norm stands, how a position
is told, what the MLP does. A preset is the smallest difference from the defaults, which are GPT-2 124M.

Papers: GPT-1 Radford et al. 2018, GPT-2 Radford et al. 2019, GPT-3 Brown et al. 2020 (2005.14165), Pythia Biderman et
al. 2023 (2304.01373), Llama Touvron et al. 2023 (2302.13971), Llama 3 2024 (2407.21783), Mistral Jiang et al. 2023
(2310.06825), rotary Su et al. 2021 (2104.09864), ALiBi Press et al. 2021 (2108.12409), squared ReLU So et al. 2021
(2109.08668), QK-norm Henry et al. 2020 (2010.04245), grouped-query Ainslie et al. 2023 (2305.13245), prefix decoder
Raffel et al. 2020 (1910.10683, section 3.2.2), multi-token prediction Gloeckle et al. 2024 (2404.19737), instruction
tuning Ouyang et al. 2022 (2203.02155, step 1), packing of examples that do not see each other Krell et al. 2021
(2107.02027).

Where we depart from them: GPT-3's alternating sparse attention is left out, all its layers are dense; dropout is one
number for embeddings, attention and residuals, as in nanoGPT; every pre-norm model starts from GPT-2's initialisation;
multi-token prediction averages its heads where the paper adds them (AdamW does not see the difference).

Letters: B batch, T tokens, S keys (T, or the cache's length), C width, H heads, G key/value heads, D head width,
F hidden width of the MLP, V vocabulary.
"""
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass
class Config:
    # size
    vocab_size: int = 50257      # V: number of tokens; train.py takes it from the data
    vocab_multiple: int = 1      # rows of the token table are rounded up to a multiple of this (128 suits a GPU)
    block_size: int = 1024       # T: tokens in a row
    n_layer: int = 12            # number of blocks
    n_head: int = 12             # H: attention heads
    n_embd: int = 768            # C: width of the model
    n_kv_head: int = 0           # G: key/value heads, each shared by n_head / n_kv_head query heads; 0: n_head
    head_dim: int = 0            # D: width of a head; 0: n_embd / n_head
    n_hidden: int = 0            # F: width of the MLP; 0: 4 n_embd, or 8/3 n_embd to the next multiple of 64 if gated
    # positions
    positions: str = 'learned'   # learned | sinusoidal | rotary | alibi | none
    rope_theta: float = 10000.0  # rotary: wavelengths are 2 pi theta^(2i/D)
    rope_fraction: float = 1.0   # rotary: share of each head's width that turns (Pythia: 0.25)
    rope_scaling: str = ''       # rotary: '' | linear | llama3, a stretch to longer texts
    rope_factor: float = 1.0     # rope_scaling: how many times longer
    rope_low: float = 1.0        # llama3 scaling: wavelengths over rope_original / rope_low are stretched
    rope_high: float = 4.0       # llama3 scaling: wavelengths under rope_original / rope_high are left alone
    rope_original: int = 8192    # llama3 scaling: block size before the stretch
    window: int = 0              # sliding window: a token sees itself and the window - 1 before it; 0: all before it
    # blocks
    norm: str = 'layernorm'      # layernorm | rmsnorm
    norm_eps: float = 1e-5       # added to the variance
    post_norm: bool = False      # norm after the residual sum (GPT-1), not before each branch
    qk_norm: bool = False        # RMSNorm on each head's queries and keys
    parallel: bool = False       # attention and MLP read the same input (NeoX)
    activation: str = 'gelu_tanh'  # gelu_tanh | gelu | relu | relu2 (squared) | silu
    gated: bool = False          # MLP = down(activation(gate(x)) * up(x)): with silu this is SwiGLU
    tied: bool = True            # the head's matrix is the token table
    bias: bool = True            # biases in the linear layers and LayerNorms
    biases: str = ''             # parts that keep a bias under --bias=false, any of: qkv out mlp norm
    dropout: float = 0.0         # on embeddings, attention weights and each branch
    init_std: float = 0.02       # standard deviation of the first weights
    # objective
    kind: str = 'text'           # text | instruct (loss on what the assistant says); train.py takes it from the data
    objective: str = 'next'      # next | prefix: a random prefix is read both ways, the loss is on the rest
    n_predict: int = 1           # tokens predicted at each place: 1 plain, 4 as in Gloeckle et al.
    # speed and memory
    loss_chunk: int = 0          # tokens whose logits are held at once; 0: all, on a CPU at most 2^25 logits
    checkpoint_activations: bool = False  # keep only the input of each block and compute the rest again backward
    residual_autocast: bool = False  # under autocast keep the residual stream in bf16 too: faster, slightly less exact

    def __post_init__(self):
        for name, choices in (('positions', ('learned', 'sinusoidal', 'rotary', 'alibi', 'none')),
                              ('norm', ('layernorm', 'rmsnorm')), ('activation', tuple(activations)),
                              ('rope_scaling', ('', 'linear', 'llama3')), ('objective', ('next', 'prefix')),
                              ('kind', kinds)):
            if getattr(self, name) not in choices:
                raise ValueError(f'{name}={getattr(self, name)!r} is not one of: {" ".join(map(repr, choices))}')
        for name in ('vocab_size', 'vocab_multiple', 'block_size', 'n_layer', 'n_head', 'n_embd', 'n_predict'):
            if getattr(self, name) < 1: raise ValueError(f'{name}={getattr(self, name)}: expected 1 or more')
        if self.window < 0: raise ValueError(f'window={self.window}: expected a number of tokens, or 0 for all')
        if not 0 <= self.init_std < 1e9: raise ValueError(f'init_std={self.init_std}: expected 0 or more, under 1e9')
        if not self.head_dim and self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} is not a multiple of n_head={self.n_head}; or give --head_dim')
        if self.n_head % self.kv_heads:
            raise ValueError(f'n_head={self.n_head} is not a multiple of n_kv_head={self.n_kv_head}')
        if self.positions == 'rotary' and self.rotary_width % 2:
            raise ValueError(f'rotary turns pairs, and {self.rotary_width} of a head\'s {self.width} numbers is odd')
        if self.kind == 'instruct' and (self.objective != 'next' or self.n_predict > 1):
            raise ValueError('instruction data trains the next token alone: add --objective=next --n_predict=1')
        if self.n_predict > self.block_size:
            raise ValueError(f'n_predict={self.n_predict} tokens do not fit block_size={self.block_size}')
        if self.post_norm and self.parallel: raise ValueError('post_norm and parallel exclude each other')
        if unknown := set(self.biases.split()) - {'qkv', 'out', 'mlp', 'norm'}:
            raise ValueError(f'biases={self.biases!r}: {" ".join(sorted(unknown))} is none of: qkv out mlp norm')

    @property
    def rows(self): return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple  # of the token table
    @property
    def kv_heads(self): return self.n_kv_head or self.n_head                                 # G
    @property
    def width(self): return self.head_dim or self.n_embd // self.n_head                      # D
    @property
    def rotary_width(self): return int(self.width * self.rope_fraction)                      # numbers of D that turn
    @property
    def hidden(self):                                                                        # F
        return self.n_hidden or (-(-8 * self.n_embd // 192) * 64 if self.gated else 4 * self.n_embd)
    def has_bias(self, part): return self.bias or part in self.biases.split()


activations = {'gelu_tanh': lambda x: F.gelu(x, approximate='tanh'), 'gelu': F.gelu, 'relu': F.relu,
               'relu2': lambda x: (y := F.relu(x)) * y, 'silu': F.silu}  # square() is fp32 under CUDA's autocast

# ---------------------------------------------------------------------------------------------------------------------
# presets: what differs from GPT-2 124M

_gpt3 = dict(block_size=2048)  # table 2.1; it gives 1.3B 24 heads and 13B a width of 5140, which do not multiply out
_pythia = dict(vocab_size=50304, block_size=2048, positions='rotary', rope_fraction=0.25, parallel=True,
               activation='gelu', tied=False)
_llama = dict(positions='rotary', norm='rmsnorm', activation='silu', gated=True, bias=False)
_7b = dict(_llama, vocab_size=32000, n_layer=32, n_head=32, n_embd=4096, n_hidden=11008, tied=False)
_modern = dict(positions='rotary', norm='rmsnorm', qk_norm=True, activation='relu2', bias=False)

presets = {
    'small': dict(_modern, vocab_size=8192, block_size=256, n_layer=4, n_head=2, n_embd=128),
    'speedrun-cpu': dict(_modern, block_size=128, n_layer=2, n_head=1, n_embd=64, activation='relu'),
    'speedrun-gpt2-exact': dict(residual_autocast=True),
    'speedrun-gpt2-adamw': dict(_modern, n_head=6, residual_autocast=True),
    'speedrun-gpt2': dict(_modern, n_head=6, residual_autocast=True),
    'gpt1': dict(vocab_size=40478, block_size=512, post_norm=True, dropout=0.1),
    'gpt2': dict(),
    'gpt2-medium': dict(n_layer=24, n_head=16, n_embd=1024),
    'gpt2-large': dict(n_layer=36, n_head=20, n_embd=1280),
    'gpt2-xl': dict(n_layer=48, n_head=25, n_embd=1600),
    'gpt3-125m': dict(_gpt3),
    'gpt3-350m': dict(_gpt3, n_layer=24, n_head=16, n_embd=1024),
    'gpt3-760m': dict(_gpt3, n_layer=24, n_head=16, n_embd=1536),
    'gpt3-1.3b': dict(_gpt3, n_layer=24, n_head=16, n_embd=2048),
    'gpt3-2.7b': dict(_gpt3, n_layer=32, n_head=32, n_embd=2560),
    'gpt3-6.7b': dict(_gpt3, n_layer=32, n_head=32, n_embd=4096),
    'gpt3-13b': dict(_gpt3, n_layer=40, n_head=40, n_embd=5120),
    'gpt3-175b': dict(_gpt3, n_layer=96, n_head=96, n_embd=12288),
    'pythia-70m': dict(_pythia, n_layer=6, n_head=8, n_embd=512),
    'pythia-160m': dict(_pythia),
    'pythia-410m': dict(_pythia, n_layer=24, n_head=16, n_embd=1024),
    'pythia-1b': dict(_pythia, n_layer=16, n_head=8, n_embd=2048),
    'llama-7b': dict(_7b, block_size=2048, norm_eps=1e-6),
    'llama2-7b': dict(_7b, block_size=4096),
    'llama3.2-1b': dict(_llama, vocab_size=128256, block_size=131072, n_layer=16, n_head=32, n_kv_head=8, n_embd=2048,
                        n_hidden=8192, rope_theta=5e5, rope_scaling='llama3', rope_factor=32.0),
    'smollm2-135m': dict(_llama, vocab_size=49152, block_size=8192, n_layer=30, n_head=9, n_kv_head=3, n_embd=576,
                         n_hidden=1536, rope_theta=1e5),
    'tinyllama-1.1b': dict(_llama, vocab_size=32000, block_size=2048, n_layer=22, n_head=32, n_kv_head=4, n_embd=2048,
                           n_hidden=5632, tied=False),
    'mistral-7b': dict(_7b | dict(n_hidden=14336), block_size=32768, n_kv_head=8, window=4096),
}

# what trains well: overrides of train.py's fields (and of Config's), for this file and for single presets
recipe = dict(preset='small', vocab_multiple=128)

recipes = {
    'small': dict(optimizer='muon', learning_rate=1e-2, min_lr=0.0, muon_lr=0.03, batch_size=8, max_iters=700,
                  warmup_iters=10, lr_schedule='linear', eval_interval=100, eval_iters=64),
    # many steps of a small model: found one flag at a time, on all of the validation text
    'speedrun-cpu': dict(optimizer='muon', learning_rate=1e-2, min_lr=0.0, muon_lr=0.04, momentum=0.85, batch_size=16,
                         max_iters=220, warmup_iters=10, lr_schedule='linear', eval_interval=20, eval_iters=0),
    # 524,288 tokens a step; evaluated on the first 10,485,760 tokens of FineWeb's validation shard; the goal is 3.28
    'speedrun-gpt2-exact': dict(learning_rate=6e-4, min_lr=0.0, batch_size=512, micro_batch_size=32, max_iters=19073,
                                warmup_iters=700, eval_interval=250, eval_iters=10240),    # llm.c's: 10 B tokens
    'speedrun-gpt2-adamw': dict(learning_rate=1.8e-3, min_lr=0.0, batch_size=512, micro_batch_size=32, max_iters=9536,
                                warmup_iters=250, lr_schedule='wsd', eval_interval=125, eval_iters=10240),
    'speedrun-gpt2': dict(optimizer='muon', learning_rate=3e-3, min_lr=0.0, muon_lr=0.02, batch_size=512,
                          micro_batch_size=32, max_iters=5100, warmup_iters=250, lr_schedule='wsd', eval_interval=125,
                          eval_iters=10240, weight_decay=0.01),      # Muon's rate is larger: so is each decay
    'gpt1': dict(learning_rate=2.5e-4, min_lr=0.0, batch_size=64, warmup_iters=2000, weight_decay=0.01, beta2=0.999),
    'gpt2': dict(learning_rate=6e-4, min_lr=6e-5, batch_size=480, max_iters=600000, warmup_iters=2000),
    **{f'gpt3-{size}': dict(learning_rate=rate, min_lr=rate / 10, batch_size=rows, warmup_iters=700)  # table 2.1
       for size, rate, rows in (('125m', 6e-4, 256), ('350m', 3e-4, 256), ('760m', 2.5e-4, 256), ('1.3b', 2e-4, 512),
                                ('2.7b', 1.6e-4, 512), ('6.7b', 1.2e-4, 1024), ('13b', 1e-4, 1024),
                                ('175b', 6e-5, 1600))},
}
# from given weights, a text or instructions. Small models take 1e-3, adapters 1e-3 to 5e-3
finetune = dict(learning_rate=3e-4, batch_size=8, max_iters=300, warmup_iters=10, eval_interval=100)

# ---------------------------------------------------------------------------------------------------------------------
# objective

likelihood = True  # the loss is that of text, so bits per byte can be told
kinds = ('text', 'instruct')
family = 'gpt'     # the tables of lib/ that fit this Model: instruction data, what is shown, Hugging Face's layout


def batch(draw, config, rng):
    """One micro-batch of running text: ids (B, T) and last the targets (B, T), the token after each place. Between them
    come, for the prefix objective, the lengths of the prefixes (B,), in which targets are -1: no loss; and for
    multi-token prediction the n_predict - 1 tokens after the last target (B, n_predict - 1). (Instruction data is made
    into ids, positions, targets by lib/chat.py.)"""
    T, n = config.block_size, config.n_predict
    tokens = draw(T + n, overlap=n)                                        # (B, T + n)
    ids, targets, between = tokens[:, :T], tokens[:, 1:T + 1], [tokens[:, T + 1:]] if n > 1 else []
    if config.objective == 'next': return ids, *between, targets
    prefix = rng.integers(1, T) if T > 1 else np.ones(len(ids), np.int64)  # tokens 0 .. prefix - 1 are given
    return ids, prefix, *between, np.where(np.arange(1, T + 1) < prefix[:, None], -1, targets)


def count(ids, *rest):
    """Targets of each head: at place t head k predicts token t + k, which is targets[t + k - 1]."""
    more = [a for a in rest[:-1] if a.ndim == 2 and a.shape != ids.shape]  # neither prefixes nor positions
    targets, T = np.concatenate([rest[-1], *more], axis=1), ids.shape[1]
    return tuple(int((targets[:, k:k + T] >= 0).sum()) for k in range(targets.shape[1] - T + 1))

# ---------------------------------------------------------------------------------------------------------------------
# positions. Computed in fp32 from the positions, once a forward pass, and never stored: a buffer would be cast by
# model.bfloat16() and lost on the meta device, and its length would bound the text.

def sinusoidal(positions, width):
    """Attention Is All You Need, 3.5: sin(p / 10000^(2i/C)) at 2i, the cosine at 2i + 1. (..., T) -> (..., T, C)"""
    angle = positions[..., None] * 1e4 ** (-torch.arange(0, width, 2, device=positions.device).float() / width)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., :width]


def rotary(config, positions):
    """Cosine and sine of every pair's angle. (..., T) -> two of (..., T, 1, R/2), for R = rotary_width"""
    R = config.rotary_width
    freq = config.rope_theta ** (-torch.arange(0, R, 2, device=positions.device).float() / R)  # theta^(-2i/R)
    if config.rope_scaling == 'linear': freq = freq / config.rope_factor
    if config.rope_scaling == 'llama3':  # slow pairs are stretched, fast ones kept, those between are blended
        turns = config.rope_original * freq / (2 * math.pi)
        kept = ((turns - config.rope_low) / (config.rope_high - config.rope_low)).clamp(0, 1)
        freq = freq * (kept + (1 - kept) / config.rope_factor)
    angle = positions[..., None, None].float() * freq
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Turns the pairs (i, i + R/2) of each head, Hugging Face's layout, in fp32. x: (B, T, H, D)"""
    R = 2 * cos.size(-1)
    a, b, rest = x.split((R // 2, R // 2, x.size(-1) - R), dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1).to(x.dtype)


def alibi_slopes(n_head, device=None):
    """2^(-8i/H), i = 1..H; when H is no power of two: those of the power below, then every other one of the power
    above, as in the authors' code. -> (H,)"""
    power = 2 ** int(math.log2(n_head))
    i = torch.cat((torch.arange(1, power + 1, device=device), torch.arange(n_head - power, device=device) + 0.5))
    return 2 ** (-8 / power * i)


def attention_mask(config, queries, keys, prefix=None):
    """Who sees whom, by positions (T,) and (S,): bool (B or 1, 1, T, S), or with ALiBi its bias, -inf where blind.
    Positions (B, T), for both the same, begin again at 0 in each of several texts of a row, which are blind to each
    other."""
    distance = queries[..., None] - keys[..., None, :]                     # (T, S) or (B, T, S)
    see = (distance >= 0).view(-1, *distance.shape[-2:])
    if queries.ndim == 2:
        text = (queries == 0).cumsum(-1)                                   # (B, T): its number in the row
        see = see & (text[:, :, None] == text[:, None])
    if prefix is not None:  # two tokens of the prefix see each other both ways
        see = see | ((queries < prefix.view(-1, 1))[:, :, None] & (keys < prefix.view(-1, 1))[:, None])
    if config.window: see = see & (distance.abs() < config.window)
    see = see[:, None]                                                     # (B or 1, 1, T, S)
    if config.positions != 'alibi': return see
    bias = -alibi_slopes(config.n_head, keys.device)[:, None, None] * distance.abs().unsqueeze(-3)  # (.., H, T, S)
    return bias.masked_fill(~see, -math.inf)


def window_mask(rows, T, W, device):
    """A sliding window over T tokens, in n blocks of W: each sees its own keys and those of the block before, so that
    the cost grows with T W, not with T^2. -> bool (rows n, 1, W, 2 W)"""
    queries, keys = torch.arange(W, 2 * W, device=device)[:, None], torch.arange(2 * W, device=device)
    see = (keys <= queries) & (keys > queries - W)                         # (W, 2 W)
    n = -(-T // W)
    before = torch.arange(n, device=device)[:, None, None] + keys // W > 0 # the first block has none before it
    return (see & before).expand(rows, n, W, 2 * W).flatten(0, 1)[:, None]

# ---------------------------------------------------------------------------------------------------------------------
# modules

class LayerNorm(nn.Module):
    """nn.LayerNorm that may lack its bias and returns its input's dtype (autocast would return fp32)."""
    def __init__(self, width, eps, bias):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
    def forward(self, x): return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32 whatever comes in."""
    def __init__(self, width, eps):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))
    def forward(self, x):
        exact = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(exact), self.weight.shape, self.weight.to(exact), self.eps).to(x.dtype)


def fused(width, bias, **parts):
    """Several linear layers of one input as one, which is faster. .parts has the rows of each, in order, for who wants
    them apart: adapters, Muon."""
    layer = nn.Linear(width, sum(parts.values()), bias=bias)
    layer.parts = parts
    return layer


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, H, G, D = config, config.n_head, config.kv_heads, config.width
        self.qkv = fused(config.n_embd, config.has_bias('qkv'), q=H * D, k=G * D, v=G * D)
        self.out = nn.Linear(H * D, config.n_embd, bias=config.has_bias('out'))
        if config.qk_norm: self.q_norm, self.k_norm = RMSNorm(D, config.norm_eps), RMSNorm(D, config.norm_eps)

    def forward(self, x, turn, mask, write):
        """x: (B, T, C). turn: cos and sin, or None. mask: (B or 1, H or 1, T, S), or None: causal, or window_mask's.
        write: puts keys and values into a cache and returns all that it holds, or None."""
        (B, T, _), H, G, D = x.shape, self.config.n_head, self.config.kv_heads, self.config.width
        q, k, v = (y.view(B, T, -1, D) for y in self.qkv(x).split((H * D, G * D, G * D), dim=-1))
        if self.config.qk_norm: q, k = self.q_norm(q), self.k_norm(k)
        if turn: q, k = rotate(q, *turn), rotate(k, *turn)
        W = T if mask is None else mask.size(-2)
        if W < T:                                                          # blocks of W tokens become rows of their own
            q, k, v = (F.pad(y, (0, 0, 0, 0, before, -T % W)).unflatten(1, (-1, W))
                       for y, before in ((q, 0), (k, W), (v, W)))          # (B, n, W, H, D), two of (B, 1 + n, W, G, D)
            k, v = (torch.cat((y[:, :-1], y[:, 1:]), dim=2).flatten(0, 1) for y in (k, v))     # (B n, 2 W, G, D)
            q = q.flatten(0, 1)                                            # (B n, W, H, D)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D), two of (B, G, T, D)
        if write is not None: k, v = write(k, v)                           # (B, G, S, D)
        if G < H and T == 1 and write is not None:  # the heads of a group become rows of queries: no key is copied
            q, mask = q.reshape(B, G, H // G, D), mask.view(-1, G, H // G, mask.size(-1)) if mask.size(1) == H else mask
        elif G < H:
            k, v = k.repeat_interleave(H // G, dim=1), v.repeat_interleave(H // G, dim=1)
        if mask is not None and mask.dtype != torch.bool: mask = mask.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, mask, self.config.dropout if self.training else 0.0, mask is None)
        return self.out(y.reshape(-1, H, W, D).transpose(1, 2).reshape(B, -1, H * D)[:, :T])


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


def make_norm(config):
    if config.norm == 'rmsnorm': return RMSNorm(config.n_embd, config.norm_eps)
    return LayerNorm(config.n_embd, config.norm_eps, config.has_bias('norm'))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.attention, self.mlp = config, Attention(config), MLP(config)
        self.norm_1, self.norm_2, self.drop = make_norm(config), make_norm(config), nn.Dropout(config.dropout)

    def forward(self, x, turn=None, mask=None, write=None):
        if self.config.post_norm:
            x = self.norm_1(x + self.drop(self.attention(x, turn, mask, write)))
            return self.norm_2(x + self.drop(self.mlp(x)))
        y = x + self.drop(self.attention(self.norm_1(x), turn, mask, write))
        return y + self.drop(self.mlp(self.norm_2(x if self.config.parallel else y)))


class Cache:
    """Keys and values of the tokens so far, in tensors of fixed size; the place is a tensor too, so that a compiled
    step never changes its shapes."""
    def __init__(self, config, rows, length, like):
        self.k, self.v = ([like.new_zeros(rows, config.kv_heads, length, config.width) for _ in range(config.n_layer)]
                          for _ in 'kv')                                   # (B, G, S, D) each
        self.position = torch.zeros((), dtype=torch.long, device=like.device)  # tokens held
        self.prefix = torch.zeros((), dtype=torch.long, device=like.device)    # tokens of the first call

    def put(self, layer, positions, S, k, v):
        """k, v: (B, G, T, D), written at positions (T,) -> the first S places, (B, G, S, D) each"""
        for held, new in ((self.k[layer], k), (self.v[layer], v)): held.index_copy_(2, positions, new.to(held.dtype))
        return self.k[layer][:, :, :S], self.v[layer][:, :, :S]


class ChunkedLoss(torch.autograd.Function):
    """Sum of -log p(target) as Model.nll has it, a few tokens at a time. What the backward pass needs, the gradients of
    x (N, C) and of the head's weight (rows, C), is computed right away: only the logits of one chunk ever exist."""

    @staticmethod
    def forward(ctx, x, weight, targets, V, chunk):
        auto, trains = torch.is_autocast_enabled(x.device.type), weight.requires_grad
        dtype = torch.get_autocast_dtype(x.device.type) if auto else x.dtype
        wide, w, dx = torch.promote_types(dtype, torch.float), weight[:V].to(dtype), torch.empty_like(x)
        loss, dw = x.new_zeros((), dtype=wide), torch.zeros_like(weight) if trains else None
        for i in range(0, len(x), chunk):
            part, t = x[i:i + chunk].to(dtype), targets[i:i + chunk, None]
            z, at = part @ w.T, t.clamp(min=0)                             # (n, V)
            p, (top, i_top) = z.softmax(-1, dtype=wide), z.max(-1, keepdim=True)
            nll = top.to(wide) - p.gather(1, i_top).log() - z.gather(1, at).to(wide)   # the sum's log: of the largest
            loss += torch.where(t >= 0, nll, 0.0).sum()
            p.scatter_add_(1, at, -torch.ones_like(nll))                   # the loss by the logits: p - [target]
            d = p.mul_(t >= 0).to(dtype)
            dx[i:i + chunk] = d @ w
            if trains and dtype == dw.dtype: dw[:V].addmm_(d.T, part)
            elif trains: dw[:V] += d.T @ part
        ctx.save_for_backward(dx, dw)
        return loss

    @staticmethod
    def backward(ctx, g):
        dx, dw = ctx.saved_tensors
        return dx.mul_(g), None if dw is None else dw.mul_(g), None, None, None     # a second backward is refused


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.rows, config.n_embd)
        if config.positions == 'learned': self.positions = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        # multi-token prediction: the last block is head 1's, each further head has one of its own beside it
        self.extra = nn.ModuleList(Block(config) for _ in range(config.n_predict - 1))
        self.norm = nn.Identity() if config.post_norm else make_norm(config)
        self.head = nn.Linear(config.n_embd, config.rows, bias=False)
        if config.tied: self.head.weight = self.tokens.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """GPT-2, 2.3: N(0, 0.02), the matrices that write to the residual stream 1/sqrt(2L) of it."""
        std, residual = self.config.init_std, 1 if self.config.post_norm else (2 * self.config.n_layer) ** -0.5
        for name, p in self.named_parameters():
            if p.ndim >= 2: p.normal_(0, std * residual if name.endswith(('out.weight', 'down.weight')) else std)
            else: p.fill_(0 if name.endswith('bias') else 1)

    def enter(self, ids, positions, keys, prefix):
        """What the first block gets: x (B, T, C), and what all share: cosine and sine, mask. positions: (T,) of the
        tokens, or (B, T) of packed ones, keys: (S,) of what they may see."""
        c, T, x = self.config, ids.size(1), self.tokens(ids)
        if c.positions == 'learned': x = x + self.positions(positions)
        if c.positions == 'sinusoidal':  # Attention Is All You Need, 3.4: the table times sqrt(C)
            x = x * math.sqrt(c.n_embd) + sinusoidal(positions, c.n_embd).to(x.dtype)
        if c.residual_autocast and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        turn = rotary(c, positions) if c.positions == 'rotary' else None
        plain = c.positions != 'alibi' and positions.ndim == 1 and keys is positions and prefix is None
        if plain and 0 < 2 * c.window < T: return self.drop(x), turn, window_mask(len(x), T, c.window, x.device)
        plain = plain and not 0 < c.window < T
        return self.drop(x), turn, None if plain else attention_mask(c, positions, keys, prefix)

    def run(self, block, *inputs):
        if not (self.config.checkpoint_activations and self.training): return block(*inputs)
        return checkpoint(block, *inputs, use_reentrant=False)

    def trunk(self, ids, prefix=None, positions=None):
        """All blocks but the last. ids: (B, T), prefix: (B,) or None, positions: (B, T) of packed examples, or None
        -> x (B, T, C), turn, mask"""
        self.check_length(ids.size(1))
        if positions is None: positions = torch.arange(ids.size(1), device=ids.device)
        x, turn, mask = self.enter(ids, positions, positions, prefix)
        for block in self.blocks[:-1]: x = self.run(block, x, turn, mask)
        return x, turn, mask

    def check_length(self, T):
        if T > self.config.block_size and self.config.positions == 'learned':
            raise ValueError(f'{T} tokens in a row, but learned positions end at block_size={self.config.block_size}')

    def nll(self, x, targets):
        """Sum of -log p(target), targets < 0 left out. x: (N, C), targets: (N,)"""
        logits = self.head(x)[:, :self.config.vocab_size]                  # (N, V): rows of padding have no logit
        return F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction='sum')

    def head_loss(self, block, x, turn, mask, targets):
        x, targets = self.norm(self.run(block, x, turn, mask)).flatten(0, 1), targets.flatten().clamp(min=-1)
        c, N = self.config, len(x)
        many = x.device.type == 'cpu' and N * c.vocab_size >> 22           # there it is as fast, in half the memory
        chunk = c.loss_chunk or -(-N // (1 + (N * c.vocab_size >> 25 if many else 0)))
        if chunk >= N and not many: return self.nll(x, targets)
        if torch.is_grad_enabled() and type(self.head) is nn.Linear:
            return ChunkedLoss.apply(x, self.head.weight, targets, c.vocab_size, chunk)
        pieces = zip(x.split(chunk), targets.split(chunk))                 # an adapter on the head: computed twice
        return sum(checkpoint(self.nll, *piece, use_reentrant=False) for piece in pieces)

    def forward(self, ids, *rest, totals=None):
        """The arrays of batch() -> loss, stats. With totals, the numbers of targets of the global batch, the parts of
        a batch add up to the loss of the whole. In eval mode only head 1 counts, so that the validation loss of
        multi-token prediction is that of the next token."""
        c, T = self.config, ids.size(1)
        if len(rest) != 1 + (c.objective == 'prefix') + (c.n_predict > 1) + (c.kind == 'instruct'):
            raise ValueError(f'{1 + len(rest)} arrays do not fit kind={c.kind}, objective={c.objective} and '
                             f'n_predict={c.n_predict}')
        targets = torch.cat((rest[-1], rest[-2]), dim=1) if c.n_predict > 1 else rest[-1]  # (B, T + n_predict - 1)
        given = {'prefix': c.objective == 'prefix', 'positions': c.kind == 'instruct'}
        x, turn, mask = self.trunk(ids, **{name: rest[0] for name, on in given.items() if on})
        heads, losses = [self.blocks[-1], *self.extra] if self.training else [self.blocks[-1]], []
        for k, block in enumerate(heads):
            y = targets[:, k:k + T]                                        # (B, T): token t + k for heads k = 1, 2, ..
            args = block, x, turn, mask, y  # head by head: the logits of one are gone before those of the next
            loss = self.head_loss(*args) if len(heads) == 1 else checkpoint(self.head_loss, *args, use_reentrant=False)
            losses.append(loss / ((y >= 0).sum().clamp(min=1) if totals is None else totals[k]))
        return sum(losses) / len(losses), {'next_loss': losses[0].detach()} if len(losses) > 1 else {}

    def logits(self, ids, prefix=None, positions=None):
        """ids (B, T) -> (B, T, V)"""
        x, turn, mask = self.trunk(ids, prefix, positions)
        return self.head(self.norm(self.blocks[-1](x, turn, mask)))[..., :self.config.vocab_size]

    def cache(self, rows, length):
        self.check_length(length)
        return Cache(self.config, rows, length, self.tokens.weight)

    def step(self, ids, cache):
        """ids (B, T), the prompt first, then one token at a time (T = 1) -> logits of the last place (B, V). The
        tokens of the first call are the prefix of a prefix decoder."""
        T, S, prefix = ids.size(1), cache.k[0].size(2), None
        if T > S: raise ValueError(f'prompt of {T} tokens, but the cache holds {S}: shorten the prompt')
        if ids.device.type == 'cpu' and not torch.compiler.is_compiling():  # reading the position costs nothing here
            if int(cache.position) + T > S: raise ValueError(f'the cache of {S} tokens is full')
            S = int(cache.position) + T                                    # no work on places still empty
        positions = cache.position + torch.arange(T, device=ids.device)
        if self.config.objective == 'prefix':
            prefix = cache.prefix.copy_(torch.where(cache.position == 0, T, cache.prefix))[None]
        x, turn, mask = self.enter(ids, positions, torch.arange(S, device=ids.device), prefix)
        for i, block in enumerate(self.blocks): x = block(x, turn, mask, lambda k, v: cache.put(i, positions, S, k, v))
        cache.position += T
        return self.head(self.norm(x[:, -1]))[:, :self.config.vocab_size]
