"""Causal decoders in one file: GPT-1/2/3, Pythia, Llama 1/2/3, Mistral, and what lies between them.

    python train.py --model=gpt                            # trains on Python's own source
    python sample.py --out_dir=out/gpt --prompt="def main("       # continues your text
    python train.py --model=gpt --init_from=out/gpt --data=instruct  # instruction tuning
    python sample.py --out_dir=out/gpt-instruct --interactive     # a chat

One Config spans the family, because these models differ in a few choices only: where the norm
stands, how positions are encoded, what the MLP does.

Papers: GPT-1 Radford et al. 2018, GPT-2 Radford et al. 2019, GPT-3 Brown et al. 2020 (2005.14165),
Pythia Biderman et al. 2023 (2304.01373), Llama Touvron et al. 2023 (2302.13971), Llama 3 2024
(2407.21783), Mistral Jiang et al. 2023 (2310.06825), rotary Su et al. 2021 (2104.09864), ALiBi
Press et al. 2021 (2108.12409), squared ReLU So et al. 2021 (2109.08668), QK-norm Henry et al. 2020
(2010.04245), grouped-query Ainslie et al. 2023 (2305.13245), prefix decoder Raffel et al. 2020
(1910.10683, section 3.2.2), multi-token prediction Gloeckle et al. 2024 (2404.19737), instruction
tuning Ouyang et al. 2022 (2203.02155, step 1), packing of examples that do not see each other
Krell et al. 2021 (2107.02027).

Where we depart from them: GPT-3's alternating sparse attention is left out, all its layers are
dense; dropout is one number for embeddings, attention and residuals, as in nanoGPT; every pre-norm
model starts from GPT-2's initialisation; multi-token prediction averages the losses of its
predictors where the paper adds them (Adam is invariant to the scale).

A row is one sequence of the batch, a place is a position in it. Letters: B batch (rows), T tokens
of a row, S keys (T, or the cache's length), C width, H attention heads, G key/value heads, D head
width, F hidden width of the MLP, V vocabulary.
"""
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

family = 'gpt'                  # which tables of lib/ fit this Model (chats, samples, Hugging Face)
kinds = ('text', 'instruct')    # kinds of data; the rows of instructions come from lib/chat.py
likelihood = True               # the loss is that of the text, so bits per byte can be computed
CHUNK_FROM = 2 ** 22            # CPU: from so many logits on, the loss takes 2^25 at a time


def round_up(n, multiple):
    """The first multiple of `multiple` that is n or more"""
    return -(-n // multiple) * multiple


def require(condition, message):
    if not condition:
        raise ValueError(message)


@dataclass
class Config:
    # size
    vocab_size: int = 50257      # V: number of tokens; train.py takes it from the data
    vocab_multiple: int = 1      # pad the token table to a multiple of this (128 suits a GPU)
    block_size: int = 1024       # T: tokens of a row
    n_layer: int = 12            # number of blocks
    n_head: int = 12             # H: attention heads
    n_embd: int = 768            # C: width of the model
    n_kv_head: int = 0           # G: key/value heads, each shared by H/G heads; 0: n_head
    head_dim: int = 0            # D: width of a head; 0: n_embd / n_head
    n_hidden: int = 0            # F: width of the MLP; 0: 4 n_embd, gated 8/3 (a multiple of 64)
    # positions
    positions: str = 'learned'   # learned | sinusoidal | rotary | alibi | none
    rope_theta: float = 10000.0  # rotary: wavelengths are 2 pi theta^(2i/D)
    rope_fraction: float = 1.0   # rotary: share of each head's width that is rotated
    rope_scaling: str = ''       # rotary: '' | linear | llama3, stretches to longer texts
    rope_factor: float = 1.0     # rope_scaling: how many times longer the texts get
    rope_low: float = 1.0        # llama3: wavelengths over rope_original / rope_low are stretched
    rope_high: float = 4.0       # llama3: wavelengths under rope_original / rope_high are kept
    rope_original: int = 8192    # llama3: block size before the stretch
    window: int = 0              # attends to the last `window` tokens, itself included; 0: all
    # blocks
    norm: str = 'layernorm'      # layernorm | rmsnorm
    norm_eps: float = 1e-5       # added to the variance
    post_norm: bool = False      # norm after each residual sum (GPT-1), not before each branch
    qk_norm: bool = False        # RMSNorm on each head's queries and keys
    parallel: bool = False       # attention and MLP read the same input (NeoX)
    activation: str = 'gelu_tanh'  # gelu_tanh | gelu | relu | relu2 (squared) | silu
    gated: bool = False          # MLP = down(activation(gate(x)) * up(x)): with silu this is SwiGLU
    tied: bool = True            # the head's matrix is the token table
    bias: bool = True            # biases in the linear layers and LayerNorms
    biases: str = ''             # parts with a bias under --bias=false, any of: qkv out mlp norm
    dropout: float = 0.0         # on embeddings, attention weights and each branch
    init_std: float = 0.02       # standard deviation of the first weights
    # objective
    kind: str = 'text'           # text | instruct (loss on responses); train.py sees it in the data
    objective: str = 'next'      # next | prefix: a prefix is read both ways, loss on the rest
    n_predict: int = 1           # tokens predicted at each place: 1 plain, 4 as in Gloeckle et al.
    # speed and memory
    loss_chunk: int = 0          # tokens whose logits exist at once; 0: all (CPU: see CHUNK_FROM)
    checkpoint_activations: bool = False  # store only blocks' inputs, recompute in backward
    residual_autocast: bool = False  # autocast: the residual stream in bf16 too; less exact

    def __post_init__(self):
        choices = dict(positions='learned sinusoidal rotary alibi none'.split(),
                       norm=('layernorm', 'rmsnorm'), activation=activations, kind=kinds,
                       rope_scaling=('', 'linear', 'llama3'), objective=('next', 'prefix'))
        for name, allowed in choices.items():
            value = getattr(self, name)
            require(value in allowed,
                    f'{name}={value!r} is not one of: {" ".join(map(repr, allowed))}')
        for name in 'vocab_size vocab_multiple block_size n_layer n_head n_embd n_predict'.split():
            value = getattr(self, name)
            require(value >= 1, f'{name}={value}: expected 1 or more')
        require(self.window >= 0, f'window={self.window}: expected 0 (all tokens) or more')
        require(0 <= self.init_std < 1e9, f'init_std={self.init_std}: expected 0 to 1e9')
        require(self.head_dim or self.n_embd % self.n_head == 0,
                f'n_embd={self.n_embd} is not a multiple of n_head={self.n_head}; set --head_dim')
        require(self.n_head % self.kv_heads == 0,
                f'n_head={self.n_head} is not a multiple of n_kv_head={self.n_kv_head}')
        require(self.positions != 'rotary' or self.rotary_width % 2 == 0,
                f'rotary turns pairs, and rope_fraction={self.rope_fraction} of a head of '
                f'{self.width} is odd')
        require(self.kind != 'instruct' or (self.objective == 'next' and self.n_predict == 1),
                'instruction data trains the next token alone: add --objective=next --n_predict=1')
        require(self.n_predict <= self.block_size,
                f'n_predict={self.n_predict} tokens do not fit block_size={self.block_size}')
        require(not (self.post_norm and self.parallel), 'post_norm and parallel exclude each other')
        unknown = set(self.biases.split()) - {'qkv', 'out', 'mlp', 'norm'}
        require(not unknown, f'biases={self.biases!r}: {" ".join(sorted(unknown))} is none of: '
                             'qkv out mlp norm')

    @property
    def rows(self):
        """Rows of the token table: V, padded"""
        return round_up(self.vocab_size, self.vocab_multiple)

    @property
    def kv_heads(self):
        """Number of key/value heads (G)"""
        return self.n_kv_head or self.n_head

    @property
    def width(self):
        """Width of a head (D)"""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def rotary_width(self):
        """Dimensions of each head that are rotated"""
        return int(self.width * self.rope_fraction)

    @property
    def hidden(self):
        """Hidden width of the MLP (F)"""
        if self.n_hidden:
            return self.n_hidden
        return round_up(8 * self.n_embd, 3 * 64) // 3 if self.gated else 4 * self.n_embd

    def has_bias(self, part):
        """Whether a part (qkv, out, mlp or norm) has biases"""
        return self.bias or part in self.biases.split()


def relu2(x):
    """The square of ReLU. x.square() would return fp32 under CUDA's autocast."""
    y = F.relu(x)
    return y * y


activations = dict(gelu_tanh=lambda x: F.gelu(x, approximate='tanh'), gelu=F.gelu, relu=F.relu,
                   relu2=relu2, silu=F.silu)

# --------------------------------------------------------------------------------------------------
# presets[name]: architecture, as differences from GPT-2 124M (Config's defaults).
# recipe: fields of train.py's Config, and of this one, for every preset; it names the default one.
# recipes[name]: how to train that preset, on top of recipe.
# finetune: replaces both when training starts from existing weights (--init_from).

# Table 2.1, but where its heads x head width is not the width: 1.3B has 16 heads here (24 there),
# 13B a width of 5120 (5140 there)
_gpt3 = dict(block_size=2048)
_pythia = dict(vocab_size=50304, block_size=2048, positions='rotary', rope_fraction=0.25,
               parallel=True, activation='gelu', tied=False)
_llama = dict(positions='rotary', norm='rmsnorm', activation='silu', gated=True, bias=False)
_7b = dict(_llama, vocab_size=32000, n_layer=32, n_head=32, n_embd=4096, n_hidden=11008, tied=False)
_modern = dict(positions='rotary', norm='rmsnorm', qk_norm=True, activation='relu2', bias=False)

presets = {
    'small': dict(_modern, vocab_size=8192, block_size=256, n_layer=4, n_head=2, n_embd=128),
    'speedrun-cpu': dict(_modern, block_size=128, n_layer=2, n_head=1, n_embd=64,
                         activation='relu'),
    # GPT-2's exact architecture; the residual stream is in bf16 for speed
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
    'llama3.2-1b': dict(_llama, vocab_size=128256, block_size=131072, n_layer=16, n_head=32,
                        n_kv_head=8, n_embd=2048, n_hidden=8192, rope_theta=5e5,
                        rope_scaling='llama3', rope_factor=32.0),
    'smollm2-135m': dict(_llama, vocab_size=49152, block_size=8192, n_layer=30, n_head=9,
                         n_kv_head=3, n_embd=576, n_hidden=1536, rope_theta=1e5),
    'tinyllama-1.1b': dict(_llama, vocab_size=32000, block_size=2048, n_layer=22, n_head=32,
                           n_kv_head=4, n_embd=2048, n_hidden=5632, tied=False),
    'mistral-7b': dict(_7b | dict(n_hidden=14336), block_size=32768, n_kv_head=8, window=4096),
}

recipe = dict(preset='small', vocab_multiple=128)

# 524,288 tokens a step; the goal is a loss of 3.28 on FineWeb's first 10,485,760 validation tokens
_speedrun = dict(batch_size=512, micro_batch_size=32, eval_interval=125, eval_iters=10240)
_cpu = dict(optimizer='muon', learning_rate=1e-2, min_lr=0.0, warmup_iters=10, lr_schedule='linear')


def _gpt3_recipe(rate, batch_size):  # table 2.1
    return dict(learning_rate=rate, min_lr=rate / 10, batch_size=batch_size, warmup_iters=700)


recipes = {
    'small': dict(_cpu, muon_lr=0.03, max_iters=700, batch_size=8, eval_interval=100,
                  eval_iters=64),
    # many steps of a small model: found one flag at a time, on all of the validation text
    'speedrun-cpu': dict(_cpu, muon_lr=0.04, momentum=0.85, batch_size=16, max_iters=220,
                         eval_interval=20, eval_iters=0),
    # llm.c's run on 10 B tokens
    'speedrun-gpt2-exact': dict(_speedrun, learning_rate=6e-4, min_lr=0.0, max_iters=19073,
                                warmup_iters=700, eval_interval=250),
    'speedrun-gpt2-adamw': dict(_speedrun, learning_rate=1.8e-3, min_lr=0.0, max_iters=9536,
                                warmup_iters=250, lr_schedule='wsd'),
    # decay is learning rate x weight_decay, and Muon's rate is larger: hence a smaller weight_decay
    'speedrun-gpt2': dict(_speedrun, optimizer='muon', learning_rate=3e-3, min_lr=0.0, muon_lr=0.02,
                          max_iters=5100, warmup_iters=250, lr_schedule='wsd', weight_decay=0.01),
    'gpt1': dict(learning_rate=2.5e-4, min_lr=0.0, batch_size=64, warmup_iters=2000,
                 weight_decay=0.01, beta2=0.999),
    'gpt2': dict(learning_rate=6e-4, min_lr=6e-5, batch_size=480, max_iters=600000,
                 warmup_iters=2000),
    'gpt3-125m': _gpt3_recipe(6e-4, 256),
    'gpt3-350m': _gpt3_recipe(3e-4, 256),
    'gpt3-760m': _gpt3_recipe(2.5e-4, 256),
    'gpt3-1.3b': _gpt3_recipe(2e-4, 512),
    'gpt3-2.7b': _gpt3_recipe(1.6e-4, 512),
    'gpt3-6.7b': _gpt3_recipe(1.2e-4, 1024),
    'gpt3-13b': _gpt3_recipe(1e-4, 1024),
    'gpt3-175b': _gpt3_recipe(6e-5, 1600),
}

# On text or instructions. Small models do better with 1e-3, adapters with 1e-3 to 5e-3.
finetune = dict(learning_rate=3e-4, batch_size=8, max_iters=300, warmup_iters=10, eval_interval=100)

# --------------------------------------------------------------------------------------------------
# objective

def array_names(config):
    """The arrays of a batch, in this order. Only ids and targets are always there."""
    arrays = dict(
        ids=True,                             # (B, T)
        prefix=config.objective == 'prefix',  # (B,): how many first tokens are read both ways
        positions=config.kind == 'instruct',  # (B, T): restart at 0 in each example of a row
        ahead=config.n_predict > 1,           # (B, n_predict - 1): the tokens after the last target
        targets=True)                         # (B, T): the token after each place; -1: no loss
    return [name for name, is_there in arrays.items() if is_there]


def batch(draw, config, rng):
    """One micro-batch of running text: the arrays that array_names lists. draw(n, overlap) ->
    windows of text (B, n), which begin every n - overlap tokens, so that here every token is an
    input once an epoch; rng.integers(low, high) -> (B,), one number a row (lib/models.py)."""
    T = config.block_size
    tokens = draw(T + config.n_predict, overlap=config.n_predict)  # (B, T + n_predict)
    arrays = dict(ids=tokens[:, :T], targets=tokens[:, 1:T + 1], ahead=tokens[:, T + 1:])
    if config.objective == 'prefix':
        prefix = rng.integers(1, T) if T > 1 else np.ones(len(tokens), np.int64)
        inside = np.arange(1, T + 1) < prefix[:, None]            # (B, T): targets in the prefix
        arrays['prefix'] = prefix
        arrays['targets'] = np.where(inside, -1, arrays['targets'])
    return tuple(arrays[name] for name in array_names(config))


def count(ids, *rest):
    """The number of targets of each predictor k = 1, 2, ...: at place t it predicts token t + k."""
    *between, targets = rest
    T = ids.shape[1]
    # The protocol gives no Config here; of these arrays only `ahead` is 2-D and narrower than ids.
    ahead = [array for array in between if array.ndim == 2 and array.shape[1] != T]
    targets = np.concatenate((targets, *ahead), axis=1)           # (B, T + n_predict - 1)
    n_predict = targets.shape[1] - T + 1
    return tuple(int((targets[:, k:k + T] >= 0).sum()) for k in range(n_predict))

# --------------------------------------------------------------------------------------------------
# positions and masks. Angles are computed in fp32, once a forward pass, and never stored: a buffer
# would be cast by model.bfloat16(), lost on the meta device, and bound the length of the text.

def rotary(config, positions):
    """Cosine and sine of each pair's angle. (..., T) -> two of (..., T, 1, R/2), R: rotary_width"""
    R = config.rotary_width
    even = torch.arange(0, R, 2, device=positions.device).float()  # 2i
    freq = config.rope_theta ** (-even / R)                       # theta^(-2i/R)
    if config.rope_scaling:
        from lib.positions import stretched
        freq = stretched(config, freq)
    angle = positions[..., None, None].float() * freq
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Turns the pairs (i, i + R/2) of each head, Hugging Face's layout, in fp32. x: (B, T, H, D)"""
    half = cos.size(-1)
    a, b, rest = x.split((half, half, x.size(-1) - 2 * half), dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1).to(x.dtype)


def attention_mask(config, queries, keys, prefix=None):
    """Which keys each query attends to: bool (B or 1, 1, T, S), or ALiBi's bias (B or 1, H, T, S).
    queries, keys: positions, (T,) and (S,), or both (B, T) for packed rows: positions restart at 0
    in each example, and examples do not attend to one another. prefix: (B,), how many first tokens
    of a row attend to one another in both directions."""
    distance = queries[..., None] - keys[..., None, :]            # (T, S) or (B, T, S)
    allowed = (distance >= 0).view(-1, *distance.shape[-2:])      # (B or 1, T, S): causal
    if queries.ndim == 2:
        example = (queries == 0).cumsum(-1)                       # (B, T): its number in the row
        allowed = allowed & (example[:, :, None] == example[:, None])
    if prefix is not None:
        prefix = prefix.view(-1, 1)
        allowed = allowed | ((queries < prefix)[:, :, None] & (keys < prefix)[:, None])
    if config.window:
        allowed = allowed & (distance.abs() < config.window)
    allowed = allowed[:, None]                                    # (B or 1, 1, T, S)
    if config.positions != 'alibi':
        return allowed
    from lib.positions import alibi
    return alibi(config.n_head, distance.abs()).masked_fill(~allowed, -math.inf)


def make_mask(config, rows, positions, keys, prefix):
    """The mask for scaled_dot_product_attention: None means plain causal; a sliding window over a
    long row gets a chunk mask (lib/windows.py); everything else the full mask. keys: positions of
    the keys in the cache, or None: there is no cache."""
    T = positions.size(-1)
    plain = config.positions != 'alibi' and keys is None and positions.ndim == 1 and prefix is None
    if plain and not 0 < config.window < T:
        return None
    if plain and 2 * config.window < T:
        from lib.windows import chunk_mask
        return chunk_mask(rows, T, config.window, positions.device)
    return attention_mask(config, positions, positions if keys is None else keys, prefix)

# --------------------------------------------------------------------------------------------------
# modules

class LayerNorm(nn.LayerNorm):
    """Returns its input's dtype, where nn.LayerNorm under autocast returns fp32."""
    def forward(self, x):
        return super().forward(x).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32 whatever comes in."""
    def forward(self, x):
        exact = torch.promote_types(x.dtype, torch.float32)
        y = F.rms_norm(x.to(exact), self.weight.shape, self.weight.to(exact), self.eps)
        return y.to(x.dtype)


def make_norm(config):
    if config.norm == 'rmsnorm':
        return RMSNorm(config.n_embd, config.norm_eps)
    return LayerNorm(config.n_embd, config.norm_eps, bias=config.has_bias('norm'))


def fused(width, bias, **parts):
    """Several linear layers of one input as one, which is faster. .parts gives the output size of
    each, for code that needs them separately (adapters, Muon)."""
    layer = nn.Linear(width, sum(parts.values()), bias=bias)
    layer.parts = parts
    return layer


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        H, G, D = config.n_head, config.kv_heads, config.width
        self.config = config
        self.qkv = fused(config.n_embd, config.has_bias('qkv'), q=H * D, k=G * D, v=G * D)
        self.out = nn.Linear(H * D, config.n_embd, bias=config.has_bias('out'))
        if config.qk_norm:
            self.q_norm = RMSNorm(D, config.norm_eps)
            self.k_norm = RMSNorm(D, config.norm_eps)

    def forward(self, x, rope, mask, update_cache):
        """x: (B, T, C) -> (B, T, C). rope: (cos, sin) or None. mask: see make_mask. update_cache:
        None, or a function that adds k, v to the cache and returns all cached k, v."""
        B, T, _ = x.shape
        H, G, D = self.config.n_head, self.config.kv_heads, self.config.width
        dropout = self.config.dropout if self.training else 0.0
        q, k, v = self.qkv(x).split((H * D, G * D, G * D), dim=-1)
        q, k, v = (y.view(B, T, -1, D) for y in (q, k, v))        # (B, T, H or G, D)
        if self.config.qk_norm:
            q = self.q_norm(q)
            k = self.k_norm(k)
        if rope is not None:
            q = rotate(q, *rope)
            k = rotate(k, *rope)
        if mask is not None and mask.size(-2) < T:                # a chunk mask
            from lib.windows import windowed_attention
            y = windowed_attention(q, k, v, mask, dropout)        # (B, T, H, D)
            return self.out(y.flatten(2))

        q, k, v = (y.transpose(1, 2) for y in (q, k, v))          # (B, H or G, T, D)
        if update_cache is not None:
            k, v = update_cache(k, v)                             # (B, G, S, D)
        if G < H and T == 1 and update_cache is not None:
            # Decoding one token: let the H/G query heads of a group be H/G queries of one head, so
            # that k and v need not be repeated. With a cache there always is a mask.
            q = q.reshape(B, G, H // G, D)
            if mask.size(1) == H:                                 # ALiBi: one bias per head
                mask = mask.view(-1, G, H // G, mask.size(-1))
        elif G < H:
            k = k.repeat_interleave(H // G, dim=1)                # (B, H, S, D)
            v = v.repeat_interleave(H // G, dim=1)
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None)
        y = y.reshape(B, H, T, D).transpose(1, 2)                 # (B, T, H, D)
        return self.out(y.reshape(B, T, H * D))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gated = config.gated
        self.activation = activations[config.activation]
        parts = dict(up=config.hidden)
        if config.gated:
            parts = dict(gate=config.hidden, up=config.hidden)
        self.up = fused(config.n_embd, config.has_bias('mlp'), **parts)
        self.down = nn.Linear(config.hidden, config.n_embd, bias=config.has_bias('mlp'))

    def forward(self, x):
        if not self.gated:
            return self.down(self.activation(self.up(x)))
        gate, up = self.up(x).chunk(2, dim=-1)                    # (B, T, F) each
        return self.down(self.activation(gate) * up)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.attention = Attention(config)
        self.mlp = MLP(config)
        self.norm_1 = make_norm(config)
        self.norm_2 = make_norm(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x, rope=None, mask=None, update_cache=None):
        """x: (B, T, C) -> (B, T, C). The other arguments are passed on to attention."""
        if self.config.post_norm:
            x = self.norm_1(x + self.drop(self.attention(x, rope, mask, update_cache)))
            return self.norm_2(x + self.drop(self.mlp(x)))
        y = x + self.drop(self.attention(self.norm_1(x), rope, mask, update_cache))
        mlp_input = x if self.config.parallel else y
        return y + self.drop(self.mlp(self.norm_2(mlp_input)))


class Cache:
    """Keys and values of the tokens so far, in tensors of fixed size. The position is a tensor too,
    so that a step is compiled once. like: a tensor with the dtype and device to use."""
    def __init__(self, config, rows, length, like):
        shape = (rows, config.kv_heads, length, config.width)     # (B, G, S, D)
        self.k = [like.new_zeros(shape) for _ in range(config.n_layer)]
        self.v = [like.new_zeros(shape) for _ in range(config.n_layer)]
        self.position = torch.zeros((), dtype=torch.long, device=like.device)  # tokens held
        self.prefix = torch.zeros((), dtype=torch.long, device=like.device)  # first call's tokens

    def put(self, layer, positions, S, k, v):
        """Writes k and v (B, G, T, D) at positions (T,) -> the first S places, (B, G, S, D) each"""
        keys = self.k[layer]
        values = self.v[layer]
        keys.index_copy_(2, positions, k.to(keys.dtype))
        values.index_copy_(2, positions, v.to(values.dtype))
        return keys[:, :, :S], values[:, :, :S]


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.rows, config.n_embd)
        if config.positions == 'learned':
            self.positions = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        # Multi-token prediction: predictor 1 is the last block; each further one has a block of its
        # own that reads the same input. All share norm and head.
        self.extra = nn.ModuleList(Block(config) for _ in range(config.n_predict - 1))
        self.norm = nn.Identity() if config.post_norm else make_norm(config)
        self.head = nn.Linear(config.n_embd, config.rows, bias=False)
        if config.tied:
            self.head.weight = self.tokens.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """GPT-2, section 2.3: N(0, init_std), for output projections times 1/sqrt(2 n_layer)"""
        std = self.config.init_std
        residual_scale = 1 if self.config.post_norm else (2 * self.config.n_layer) ** -0.5
        for name, p in self.named_parameters():
            if name.endswith(('out.weight', 'down.weight')):
                p.normal_(0, std * residual_scale)
            elif p.ndim >= 2:
                p.normal_(0, std)
            else:
                p.fill_(0 if name.endswith('bias') else 1)

    def check_length(self, T):
        if T > self.config.block_size and self.config.positions == 'learned':
            raise ValueError(f'{T} tokens in a row, but learned positions end at '
                             f'block_size={self.config.block_size}')

    def enter(self, ids, positions, keys, prefix):
        """Embeds ids (B, T) -> x (B, T, C) for the first block; rope and mask for all blocks.
        positions: of the tokens, (T,), or (B, T) if rows are packed. keys: positions of the keys in
        the cache (S,), None without a cache. prefix: see attention_mask. adapters.py wraps this."""
        c = self.config
        x = self.tokens(ids)
        if c.positions == 'learned':
            x = x + self.positions(positions)
        if c.positions == 'sinusoidal':  # the table times sqrt(C), as in Attention Is All You Need
            from lib.positions import sinusoidal
            x = x * math.sqrt(c.n_embd) + sinusoidal(positions, c.n_embd).to(x.dtype)
        if c.residual_autocast and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        rope = rotary(c, positions) if c.positions == 'rotary' else None
        return self.drop(x), rope, make_mask(c, ids.size(0), positions, keys, prefix)

    def run_block(self, block, *inputs):
        if self.config.checkpoint_activations and self.training:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def all_but_last_block(self, ids, prefix=None, positions=None):
        """ids: (B, T), prefix: (B,) or None, positions: (B, T) of packed rows, or None ->
        x (B, T, C) for the last block of each predictor; rope, mask"""
        self.check_length(ids.size(1))
        if positions is None:
            positions = torch.arange(ids.size(1), device=ids.device)
        x, rope, mask = self.enter(ids, positions, None, prefix)
        for block in self.blocks[:-1]:
            x = self.run_block(block, x, rope, mask)
        return x, rope, mask

    def logits(self, ids, prefix=None, positions=None):
        """ids (B, T) -> (B, T, V)"""
        x, rope, mask = self.all_but_last_block(ids, prefix, positions)
        x = self.norm(self.blocks[-1](x, rope, mask))
        return self.head(x)[..., :self.config.vocab_size]

    def predictor_loss(self, block, x, rope, mask, targets):
        """Runs one last block, norm and head -> summed cross-entropy; negative targets are ignored.
        targets: (B, T)"""
        c = self.config
        x = self.norm(self.run_block(block, x, rope, mask)).flatten(0, 1)  # (N, C), N = B T
        targets = targets.flatten().clamp(min=-1)                 # torch's -100 is accepted too
        use_chunks = x.device.type == 'cpu' and len(x) * c.vocab_size >= CHUNK_FROM
        if use_chunks or 0 < c.loss_chunk < len(x):
            from lib.loss import chunked_loss
            return chunked_loss(self.head, x, targets, c.vocab_size, c.loss_chunk)
        logits = self.head(x)[:, :c.vocab_size].float()           # (N, V): no padding rows
        return F.cross_entropy(logits, targets, ignore_index=-1, reduction='sum')

    def forward(self, *arrays, totals=None):
        """The arrays of batch() -> loss, stats. In eval mode only predictor 1 counts, so that the
        validation loss of multi-token prediction is that of the next token. totals: for each
        predictor, the number of targets in the whole global batch. Dividing by it, not by this
        micro-batch's count, makes the losses of micro-batches and ranks add up to the global mean.
        None: this batch's own."""
        c = self.config
        names = array_names(c)
        if len(arrays) != len(names):
            raise ValueError(f'{len(arrays)} arrays do not fit kind={c.kind}, n_predict='
                             f'{c.n_predict}, objective={c.objective}: expected {", ".join(names)}')
        given = dict(zip(names, arrays))
        ids = given['ids']
        targets = given['targets']
        if c.n_predict > 1:
            targets = torch.cat((targets, given['ahead']), dim=1)  # (B, T + n_predict - 1)

        x, rope, mask = self.all_but_last_block(ids, given.get('prefix'), given.get('positions'))
        predictors = [self.blocks[-1], *self.extra] if self.training else [self.blocks[-1]]
        losses = []
        for k, block in enumerate(predictors):
            y = targets[:, k:k + ids.size(1)]                     # (B, T): token t + 1 + k
            if len(predictors) == 1:
                loss = self.predictor_loss(block, x, rope, mask, y)
            else:
                # The logits of one predictor are freed before those of the next are computed.
                loss = checkpoint(self.predictor_loss, block, x, rope, mask, y, use_reentrant=False)
            total = (y >= 0).sum().clamp(min=1) if totals is None else totals[k]
            losses.append(loss / total)
        stats = {'next_loss': losses[0].detach()} if len(losses) > 1 else {}
        return sum(losses) / len(losses), stats

    def cache(self, rows, length):
        """An empty cache for `rows` texts of up to `length` tokens"""
        self.check_length(length)
        return Cache(self.config, rows, length, self.tokens.weight)

    def step(self, ids, cache):
        """ids (B, T), the prompt first, then one token at a time (T = 1) -> logits of the last
        place (B, V). The tokens of the first call are the prefix of a prefix decoder."""
        T = ids.size(1)
        capacity = cache.k[0].size(2)
        S = capacity
        if T > capacity:
            raise ValueError(f'prompt of {T} tokens, but the cache holds {capacity}: shorten it')
        if ids.device.type == 'cpu' and not torch.compiler.is_compiling():
            # Skip empty places. Eager CPU only: int() breaks a CUDA graph or makes the GPU wait.
            S = int(cache.position) + T
            if S > capacity:
                raise ValueError(f'the cache of {capacity} tokens is full')
        positions = cache.position + torch.arange(T, device=ids.device)
        prefix = None
        if self.config.objective == 'prefix':
            cache.prefix.copy_(torch.where(cache.position == 0, T, cache.prefix))
            prefix = cache.prefix[None]
        x, rope, mask = self.enter(ids, positions, torch.arange(S, device=ids.device), prefix)
        for i, block in enumerate(self.blocks):
            x = block(x, rope, mask, lambda k, v: cache.put(i, positions, S, k, v))
        cache.position += T
        return self.head(self.norm(x[:, -1]))[:, :self.config.vocab_size]
