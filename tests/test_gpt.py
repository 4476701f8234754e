"""gpt.py against transformers, against a decoder written out in float64, and against the papers' figures."""
import ast
import dataclasses
import importlib.util
import json
import math
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import gpt
from lib import loss
from lib import positions
from lib import show
from lib.models import layout_of

TINY = dict(vocab_size=99, block_size=37, n_layer=3, n_head=3, n_embd=42)
LLAMA = dict(positions='rotary', norm='rmsnorm', activation='silu', gated=True, bias=False)
CASES = {  # one of each choice, in odd sizes
    'gpt2': dict(), 'nanogpt': dict(bias=False), 'gpt1': dict(post_norm=True), 'sinusoidal': dict(positions='sinusoidal'),
    'alibi': dict(positions='alibi'), 'none': dict(positions='none'), 'rotary': dict(positions='rotary'),
    'neox': dict(positions='rotary', rope_fraction=0.5, n_embd=36, parallel=True, activation='gelu', tied=False),
    'llama': dict(LLAMA, n_head=6, n_kv_head=2, head_dim=10, n_hidden=53, tied=False, biases='qkv mlp'),
    'llama3': dict(LLAMA, rope_theta=500.0, rope_scaling='llama3', rope_factor=4.0, rope_original=16),
    'linear': dict(LLAMA, rope_scaling='linear', rope_factor=3.0), 'mistral': dict(LLAMA, n_head=6, n_embd=48, n_kv_head=3, window=5),
    'qk_norm': dict(LLAMA, gated=False, activation='relu2', qk_norm=True, vocab_multiple=16), 'relu': dict(activation='relu'),
    'alibi-all': dict(positions='alibi', n_head=6, n_kv_head=1, window=7, norm='rmsnorm', gated=True, post_norm=True),
}


def build(seed=0, noise=0.1, **kw):
    """A model whose weights, biases and norms are all far from their first values."""
    torch.manual_seed(seed)
    model = gpt.Model(gpt.Config(**{**TINY, **kw}))
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p) * noise)
    return model.eval()


def tokens(*shape, seed=1, high=99): return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def plain(model, ids, prefix=None):
    """The decoder once more, written out in float64: loops over heads, explicit softmax, explicit masks. ids: (T,)"""
    c, w = model.config, {k: v.double() for k, v in model.state_dict().items()}
    H, G, D, T = c.n_head, c.kv_heads, c.width, len(ids)
    def norm(x, name):
        if c.norm == 'layernorm': x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + c.norm_eps).sqrt() * w[name + '.weight']
        return x + w.get(name + '.bias', 0)
    def linear(x, name): return x @ w[name + '.weight'].T + w.get(name + '.bias', 0)
    def act(x):
        if c.activation == 'gelu': return 0.5 * x * (1 + torch.erf(x / 2 ** 0.5))
        if c.activation == 'gelu_tanh': return 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x ** 3)))
        return {'relu': x.clamp(min=0), 'relu2': x.clamp(min=0) ** 2, 'silu': x / (1 + (-x).exp())}[c.activation]
    def turned(x):  # (T, D)
        R, out = int(D * c.rope_fraction), x.clone()
        for i in range(R // 2):
            freq = c.rope_theta ** (-2 * i / R)
            if c.rope_scaling == 'linear': freq /= c.rope_factor
            if c.rope_scaling == 'llama3':
                wave = 2 * math.pi / freq
                if wave > c.rope_original / c.rope_low: freq /= c.rope_factor
                elif wave >= c.rope_original / c.rope_high:
                    s = (c.rope_original / wave - c.rope_low) / (c.rope_high - c.rope_low)
                    freq = (1 - s) * freq / c.rope_factor + s * freq
            for t in range(T):
                a, b = x[t, i], x[t, i + R // 2]
                out[t, i] = a * math.cos(t * freq) - b * math.sin(t * freq)
                out[t, i + R // 2] = b * math.cos(t * freq) + a * math.sin(t * freq)
        return out
    def slope(h):
        def powers(n): return [2 ** (-8 * (i + 1) / n) for i in range(n)]
        below = 2 ** math.floor(math.log2(H))
        return (powers(below) + powers(2 * below)[0::2])[h]
    def attention(x, name):
        y, heads = linear(x, name + '.qkv'), []
        for h in range(H):
            g = h // (H // G)
            q, k, v = (y[:, i * D:i * D + D] for i in (h, H + g, H + G + g))
            if c.qk_norm:
                q, k = (z / (z.square().mean(-1, keepdim=True) + c.norm_eps).sqrt() * w[f'{name}.{n}.weight']
                        for z, n in ((q, 'q_norm'), (k, 'k_norm')))
            if c.positions == 'rotary': q, k = turned(q), turned(k)
            s = q @ k.T / D ** 0.5
            for i in range(T):
                for j in range(T):
                    see = j <= i or (prefix and i < prefix and j < prefix)
                    if c.window and abs(i - j) >= c.window: see = False
                    if c.positions == 'alibi': s[i, j] -= slope(h) * abs(i - j)
                    if not see: s[i, j] = -math.inf
            heads.append(s.softmax(-1) @ v)
        return linear(torch.cat(heads, -1), name + '.out')
    def mlp(x, name):
        up = linear(x, name + '.up')
        if c.gated: up = act(up[:, :c.hidden]) * up[:, c.hidden:]
        else: up = act(up)
        return linear(up, name + '.down')
    x = w['tokens.weight'][ids]
    if c.positions == 'learned': x = x + w['positions.weight'][:T]
    if c.positions == 'sinusoidal':
        x = x * c.n_embd ** 0.5
        for t in range(T):
            for i in range(c.n_embd):
                angle = t / 10000 ** ((i - i % 2) / c.n_embd)
                x[t, i] += math.cos(angle) if i % 2 else math.sin(angle)
    for i in range(c.n_layer):
        b = f'blocks.{i}.'
        if c.post_norm:
            x = norm(x + attention(x, b + 'attention'), b + 'norm_1')
            x = norm(x + mlp(x, b + 'mlp'), b + 'norm_2')
        else:
            y = x + attention(norm(x, b + 'norm_1'), b + 'attention')
            x = y + mlp(norm(x if c.parallel else y, b + 'norm_2'), b + 'mlp')
    if not c.post_norm: x = norm(x, 'norm')
    return linear(x, 'head')[:, :c.vocab_size]

# ---------------------------------------------------------------------------------------------- the function computed

@pytest.mark.parametrize('case', CASES)
def test_equals_plain_decoder_in_float64(case):
    model, ids = build(**CASES[case]), tokens(1, 13)
    expected = plain(model, ids[0])
    assert (model.logits(ids)[0].double() - expected).abs().max() < 1e-4 * max(1, expected.abs().max())
    assert torch.allclose(model.double().logits(ids)[0], expected, atol=1e-5)  # rotary angles stay in fp32


@pytest.mark.parametrize('case', CASES)
def test_causal(case):
    model, ids = build(**CASES[case]), tokens(2, 17)
    changed = ids.clone()
    changed[:, 9] = (ids[:, 9] + 1) % 99
    a, b = model.logits(ids), model.logits(changed)
    assert torch.equal(a[:, :9], b[:, :9])
    assert (a[:, 9:] != b[:, 9:]).any(-1).all() or 'window' in CASES[case]  # and all later ones see it


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('prompt', (1, 11))
def test_cached_steps_equal_full_forward(case, prompt):
    model, T = build(**CASES[case]), 37 if CASES[case].get('positions', 'learned') == 'learned' else 45  # past block_size
    ids = tokens(2, T)
    with torch.no_grad():
        full, cache = model.logits(ids), model.cache(2, T)
        out = [model.step(ids[:, :prompt], cache)] + [model.step(ids[:, t:t + 1], cache) for t in range(prompt, T)]
    assert (torch.stack(out, 1) - full[:, prompt - 1:]).abs().max() < 1e-4
    with pytest.raises(ValueError, match='full'): model.step(ids[:, :1], cache)


def test_cache_refuses_what_does_not_fit():
    model = build()
    with pytest.raises(ValueError, match='prompt of 9 tokens'): model.step(tokens(1, 9), model.cache(1, 8))
    with pytest.raises(ValueError, match='block_size=37'): model.cache(1, 38)
    with pytest.raises(ValueError, match='block_size=37'): model.logits(tokens(1, 38))
    assert build(positions='rotary').logits(tokens(1, 45)).shape == (1, 45, 99)


def test_prompt_in_pieces_and_static_shapes():
    """A second piece of several tokens sees the first; the shapes that a compiled step would use give the same."""
    model, ids = build(**CASES['mistral']), tokens(2, 20)
    cache = model.cache(2, 30)
    model.step(ids[:, :7], cache)
    assert (model.step(ids[:, 7:], cache) - model.logits(ids)[:, -1]).abs().max() < 1e-5
    cache, compiling = model.cache(2, 30), torch.compiler.is_compiling
    try:
        torch.compiler.is_compiling = lambda: True
        model.step(ids[:, :19], cache)
        out = model.step(ids[:, 19:], cache)
    finally: torch.compiler.is_compiling = compiling
    assert (out - model.logits(ids)[:, -1]).abs().max() < 1e-5 and int(cache.position) == 20


def test_alibi_slopes():
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    assert torch.allclose(positions.alibi_slopes(8), torch.tensor([2.0 ** -i for i in range(1, 9)]))  # the paper's example
    for H in (1, 2, 3, 6, 12, 16, 20):
        theirs = build_alibi_tensor(torch.ones(1, 2), H, torch.float32)[:, 0, 1]  # slope times distance 1
        assert torch.allclose(positions.alibi_slopes(H), theirs), H


def test_masks_are_infinite():
    for kw in (dict(positions='alibi'), dict(positions='alibi', window=3)):
        at = torch.arange(9)
        mask = gpt.attention_mask(gpt.Config(**TINY, **kw), at, at)
        blind = torch.ones(9, 9, dtype=torch.bool).triu(1)
        assert (mask[..., blind] == -math.inf).all() and mask[..., at, at].eq(0).all()
    assert gpt.attention_mask(gpt.Config(**TINY, window=3), at, at).dtype == torch.bool


def test_rotary_equals_transformers_and_sees_distances_only():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
    config, T = gpt.Config(**{**TINY, 'positions': 'rotary', 'head_dim': 14}), 11
    q, k = torch.randn(2, 1, T, 3, 14)
    cos, sin = gpt.rotary(config, torch.arange(T))
    theirs = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *(torch.cat((x, x), -1).transpose(0, 1) for x in (cos, sin)))
    ours = [gpt.rotate(x, cos, sin).transpose(1, 2) for x in (q, k)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs))
    far = gpt.rotary(config, torch.arange(T) + 1000)
    scores = [torch.einsum('bthd,bshd->bhts', gpt.rotate(q, *r), gpt.rotate(k, *r)) for r in ((cos, sin), far)]
    assert torch.allclose(*scores, atol=1e-3)


def test_exact_parts_stay_in_fp32():
    """Rotary tables and RMS statistics do not follow the weights to bf16."""
    model = build(**CASES['llama3']).bfloat16()
    assert all(t.dtype == torch.float32 for t in gpt.rotary(model.config, torch.arange(5)))
    norm, x = gpt.RMSNorm(512, 1e-6).bfloat16(), (torch.randn(7, 512) * 30).bfloat16()
    torch.nn.init.normal_(norm.weight)
    exact = (x.double() / x.double().square().mean(-1, keepdim=True).sqrt() * norm.weight.double()).bfloat16()
    assert (norm(x) != exact).float().mean() < 1e-3  # of bf16 arithmetic a third would differ
    model, ids = build(**CASES['llama3']), tokens(2, 13)
    with torch.autocast('cpu', torch.bfloat16):
        assert gpt.rotary(model.config, torch.arange(5))[0].dtype == torch.float32
        loss = model(ids, tokens(2, 13, seed=2))[0]
    assert loss.dtype == torch.float32 and abs(loss - model(ids, tokens(2, 13, seed=2))[0]) < 0.05
    half = build(**CASES['llama3'], residual_autocast=True)
    seen = []
    half.blocks[1].register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    with torch.autocast('cpu', torch.bfloat16): other = half(ids, tokens(2, 13, seed=2))[0]
    assert seen == [torch.bfloat16] and abs(loss - other) < 0.1

# ---------------------------------------------------------------------------------------------- the loss and its parts

@pytest.mark.parametrize('case', ('gpt2', 'gpt1', 'neox', 'qk_norm', 'mistral', 'sinusoidal', 'alibi'))
def test_first_loss_is_that_of_chance_and_one_batch_can_be_learned(case):
    torch.manual_seed(0)
    model = gpt.Model(gpt.Config(**{**TINY, **CASES[case]}))
    x = tokens(4, 18)
    first, stats = model(x[:, :-1], x[:, 1:])
    assert abs(first.item() - math.log(99)) < 0.35 and stats == {}
    opt = torch.optim.AdamW(model.parameters(), lr=6e-3, fused=True)
    for _ in range(120):
        loss, _ = model(x[:, :-1], x[:, 1:])
        loss.backward(), opt.step(), opt.zero_grad()
    assert loss < 0.05


def gradients(model, *arrays, **kw):
    model.zero_grad()
    model(*arrays, **kw)[0].backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def close(a, b, atol=1e-6): return a.keys() == b.keys() and all(torch.allclose(a[n], b[n], atol=atol, rtol=1e-4) for n in a)


@pytest.mark.parametrize('T, W, G', [(37, 5, 0), (64, 16, 2), (13, 6, 1), (12, 6, 0)])
def test_a_window_costs_what_it_sees(T, W, G, monkeypatch):
    "rows longer than two windows are cut into blocks: nothing but the cost differs from a mask of all pairs"
    c = gpt.Config(**dict(TINY, block_size=T, window=W, n_kv_head=G, n_head=4, n_embd=24, positions='rotary'))
    model, ids, real, sizes = gpt.Model(c).double(), torch.randint(0, 99, (3, T)), F.scaled_dot_product_attention, []
    def attend(q, k, v, *args, **more):
        sizes.append((k.size(2), q.size(2)))
        return real(q, k, v, *args, **more)
    monkeypatch.setattr(F, 'scaled_dot_product_attention', attend)
    got, enter = gradients(model, ids, ids), model.enter
    assert {*sizes} == {(2 * W, W) if T > 2 * W else (T, T)}
    at = torch.arange(T)
    monkeypatch.setattr(model, 'enter', lambda *a: (*enter(*a)[:2], gpt.attention_mask(c, at, at)))
    for name, g in gradients(model, ids, ids).items(): assert (g - got[name]).abs().max() < 1e-12, name


def test_loss_is_the_mean_over_targets_and_totals_add_up():
    model, x, y = build(**CASES['llama']), tokens(6, 13), tokens(6, 13, seed=2)
    y[0] = -1; y[1, 3:] = -1; y[4, ::2] = -100
    logp = model.logits(x).log_softmax(-1)
    by_hand = -sum(logp[b, t, y[b, t]] for b in range(6) for t in range(13) if y[b, t] >= 0) / (y >= 0).sum()
    loss = model(x, y)[0]
    assert torch.allclose(loss, by_hand, atol=1e-5)
    whole, totals = gradients(model, x, y), torch.tensor(gpt.count(x.numpy(), y.numpy())).float()
    parts = [gradients(model, x[i:j], y[i:j], totals=totals) for i, j in ((0, 1), (1, 3), (3, 6))]
    assert torch.allclose(loss, sum(model(x[i:j], y[i:j], totals=totals)[0] for i, j in ((0, 1), (1, 3), (3, 6))))
    assert close(whole, {n: sum(p[n] for p in parts) for n in whole})
    assert model(x[:1], y[:1])[0] == 0  # no target at all is no NaN


@pytest.mark.parametrize('kw', (dict(loss_chunk=5), dict(checkpoint_activations=True), dict(loss_chunk=7, n_predict=2)))
def test_saving_memory_changes_nothing(kw):
    x, y, ahead = tokens(3, 13), tokens(3, 13, seed=2), tokens(3, 1, seed=3)
    y[1, 4:] = -1
    n = kw.pop('n_predict', 1)
    a, b = build(n_predict=n).train(), build(n_predict=n, **kw).train()
    arrays = (x, ahead, y) if n > 1 else (x, y)
    runs, kept = [], {a: [], b: []}  # computed a second time in the backward pass; logits held for it
    b.blocks[0].mlp.register_forward_pre_hook(lambda *args: runs.append(1))
    def measured(m):
        note = lambda t: (kept[m].append(t.shape) if t.shape[-1:] == (99,) and t.ndim == 2 else None) or t
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t): return gradients(m, *arrays)
    assert close(measured(a), measured(b))
    if n == 1 and b.config.loss_chunk: assert kept[a] and not kept[b]
    if b.config.checkpoint_activations: assert len(runs) > 1
    assert torch.allclose(a(*arrays)[0], b(*arrays)[0])


@pytest.mark.parametrize('chunk, dtype', ((0, torch.float32), (17, torch.float32), (17, torch.bfloat16)))
def test_the_loss_of_a_wide_vocabulary(chunk, dtype):
    """In chunks, and in one piece on a CPU, beside float64; in bf16 beside the plain loss in bf16."""
    model, V = build(vocab_size=70001, n_layer=1, loss_chunk=chunk).train(), 70001
    x = torch.randn(64, model.config.n_embd, requires_grad=True)
    t = torch.randint(V, (64,), generator=torch.Generator().manual_seed(1))
    t[5:9] = -1
    with torch.no_grad(): x.mul_(3); model.head.weight.normal_(0, 0.3)
    def grads(f):
        loss = f(); loss.backward()
        out = [loss.detach(), x.grad.clone(), model.head.weight.grad.clone()]
        x.grad = model.head.weight.grad = None
        return out
    def whole():
        if dtype == torch.bfloat16: return F.cross_entropy(model.head(x)[:, :V].float(), t, ignore_index=-1, reduction='sum')
        return F.cross_entropy(x.double() @ model.head.weight.double().T, t, ignore_index=-1, reduction='sum')
    same = lambda block, x, *rest: x                     # the norm and the last block are not what is tried
    model.norm, model.run_block = torch.nn.Identity(), same
    with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        ours, theirs = grads(lambda: 2 * model.predictor_loss(None, x[None], None, None, t[None])), grads(lambda: 2 * whole())
    for a, b in zip(ours, theirs): assert (a - b).abs().max() <= (2e-2 if dtype == torch.bfloat16 else 1e-5) * b.abs().max()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        model.predictor_loss(None, x[None], None, None, t[None])
    assert max(saved) == model.head.weight.numel() == 70001 * model.config.n_embd and max(saved) < 64 * V


def test_chunks_of_the_loss_are_equal_parts(monkeypatch):
    """64 tokens of 99 logits, at most about 2000 at once: four chunks of 16; or as many tokens as are asked for."""
    monkeypatch.setattr(loss, 'CHUNK_LOGITS', 2000)
    head, x, y, sizes = torch.nn.Linear(8, 99, bias=False), torch.randn(64, 8), tokens(64), []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, 'softmax', lambda z, *a, **kw: sizes.append(len(z)) or softmax(z, *a, **kw))
    for chunk, expected in ((0, [16] * 4), (30, [30, 30, 4])):
        sizes.clear()
        loss.chunked_loss(head, x, y, 99, chunk)
        assert sizes == expected


def test_padded_rows_take_no_part():
    a, b = build(tied=False), build(tied=False, vocab_multiple=64)
    assert b.tokens.weight.shape == b.head.weight.shape == (128, 42)
    state = {k: F.pad(v, (0, 0, 0, 29), value=9.0) if k in ('tokens.weight', 'head.weight') else v for k, v in a.state_dict().items()}
    b.load_state_dict(state)
    x, y = tokens(3, 13), tokens(3, 13, seed=2)
    assert torch.equal(a.logits(x), b.logits(x)) and torch.allclose(a(x, y)[0], b(x, y)[0])
    assert a.step(x, a.cache(3, 20)).shape == b.step(x, b.cache(3, 20)).shape == (3, 99)
    grads = gradients(b, x, y)
    assert grads['head.weight'][99:].eq(0).all() and grads['head.weight'][:99].ne(0).any(1).all()


def test_dropout_only_in_training():
    model, x = build(dropout=0.5), tokens(2, 9)
    assert torch.equal(model.logits(x), model.logits(x))
    model.train()
    assert not torch.equal(model.logits(x), model.logits(x))


@pytest.mark.parametrize('kw', (dict(LLAMA, n_kv_head=1, qk_norm=True, vocab_multiple=64),
                                dict(positions='alibi', objective='prefix', n_predict=2, loss_chunk=16)))
def test_compiled_loss_equals_eager(kw):
    model, x, y = build(n_layer=1, **{k: v for k, v in kw.items()}).train(), tokens(2, 13), tokens(2, 13, seed=2)
    arrays = (x, torch.tensor([3, 8]), tokens(2, 1), y) if 'objective' in kw else (x, y)
    eager, compiled = gradients(model, *arrays), torch.compile(model, fullgraph=True, backend='aot_eager')
    assert torch.allclose(model(*arrays)[0], compiled(*arrays)[0]) and close(eager, gradients(model, *arrays))
    compiled(*arrays)[0].backward()


def test_inductor_and_compiled_step():
    model, x, y = build(**CASES['mistral'] | dict(n_layer=1)), tokens(2, 13), tokens(2, 13, seed=2)
    assert torch.allclose(model(x, y)[0], torch.compile(model, fullgraph=True)(x, y)[0], atol=1e-5)
    cache, step = model.cache(2, 16), torch.compile(model.step, fullgraph=True, backend='eager')
    with torch.no_grad():
        model.step(x[:, :4], cache)
        for t in range(4, 13):
            with torch._dynamo.config.patch(error_on_recompile=t > 4): out = step(x[:, t:t + 1], cache)
    assert torch.allclose(out, model.logits(x)[:, -1], atol=1e-5)

# ---------------------------------------------------------------------------------------------- objectives

class Numbers:
    """What train.py hands to batch(): consecutive numbers as text, and random integers per row."""
    def __init__(self, B): self.B, self.rng = B, np.random.default_rng(0)
    def __call__(self, length, overlap=0, stream=0):
        return np.stack([np.arange(length) + b * (length - overlap) for b in range(self.B)])
    def integers(self, low, high, *shape): return self.rng.integers(low, high, (self.B, *shape))


@pytest.mark.parametrize('objective', ('next', 'prefix'))
@pytest.mark.parametrize('n', (1, 3))
def test_batch(objective, n):
    config = gpt.Config(**TINY, objective=objective, n_predict=n)
    numbers = Numbers(50)
    ids, *between, targets = gpt.batch(numbers, config, numbers)
    assert ids.shape == targets.shape == (50, 37) and ids[1, 0] == ids[0, -1] + 1  # windows follow without a gap
    keep = targets >= 0
    assert (targets[keep] == ids[keep] + 1).all()
    if n > 1: assert (between.pop() == ids[:, -1:] + np.arange(2, n + 1)).all()
    if objective == 'prefix':
        prefix = between.pop()
        assert prefix.shape == (50,) and prefix.min() >= 1 and prefix.max() <= 36 and len(set(prefix)) > 20
        assert (keep == (np.arange(1, 38) >= prefix[:, None])).all()  # token t + 1 lies past the prefix
    else: assert keep.all()
    assert not between
    arrays = gpt.batch(numbers, config, numbers)
    assert len(gpt.count(*arrays)) == n and gpt.count(*arrays)[0] == (arrays[-1] >= 0).sum()


def test_prefix_sees_itself_both_ways():
    model, ids = build(objective='prefix'), tokens(2, 13)
    prefix = torch.tensor([4, 9])
    out = model.logits(ids, prefix)
    for row, p in enumerate(prefix.tolist()):
        for t in range(13):
            changed = ids.clone(); changed[row, t] = (ids[row, t] + 1) % 99
            moved = (model.logits(changed, prefix)[row] != out[row]).any(-1)
            first = 0 if t < p else t
            assert not moved[:first].any() and moved[first:].all()
        assert (out[row].double() - plain(model, ids[row], p)).abs().max() < 1e-4
    assert torch.equal(model.logits(ids, torch.tensor([1, 1])), model.logits(ids, torch.tensor([0, 0])))


def test_prefix_loss_and_steps():
    model, ids = build(objective='prefix', **CASES['llama']), tokens(2, 14)
    prefix, y = torch.tensor([5, 5]), ids[:, 1:].clone()
    y[:, :4] = -1  # tokens 1..4 are given
    logp = model.logits(ids[:, :-1], prefix).log_softmax(-1)
    by_hand = -sum(logp[b, t, ids[b, t + 1]] for b in range(2) for t in range(4, 13)) / 18
    assert torch.allclose(model(ids[:, :-1], prefix, y)[0], by_hand, atol=1e-5)
    cache = model.cache(2, 14)
    out = [model.step(ids[:, :5], cache)] + [model.step(ids[:, t:t + 1], cache) for t in range(5, 14)]
    assert (torch.stack(out, 1) - model.logits(ids, prefix)[:, 4:]).abs().max() < 1e-4


def test_multi_token_prediction():
    model, ids = build(n_predict=3).train(), tokens(2, 16)
    x, y, ahead = ids[:, :13], ids[:, 1:14].clone(), ids[:, 14:]
    y[1, :6] = -1
    all_targets = torch.cat((y, ahead), 1)
    trunk, rope, mask = model.all_but_last_block(x)
    losses = []
    for k, block in enumerate([model.blocks[-1], *model.extra]):  # head k predicts token t + 1 + k
        logp, want = model.head(model.norm(block(trunk, rope, mask))).log_softmax(-1), all_targets[:, k:k + 13]
        losses.append(-sum(logp[b, t, want[b, t]] for b in range(2) for t in range(13) if want[b, t] >= 0) / (want >= 0).sum())
    loss, stats = model(x, ahead, y)
    assert torch.allclose(loss, sum(losses) / 3, atol=1e-5) and torch.allclose(stats['next_loss'], losses[0], atol=1e-5)
    totals = torch.tensor(gpt.count(x.numpy(), ahead.numpy(), y.numpy())).float()
    assert totals.tolist() == [20, 21, 22]
    parts = [gradients(model, x[b:b + 1], ahead[b:b + 1], y[b:b + 1], totals=totals) for b in (0, 1)]
    assert close(gradients(model, x, ahead, y), {n: parts[0][n] + parts[1][n] for n in parts[0]})
    assert set(parts[0]) == dict(model.named_parameters()).keys()  # no parameter is left without a gradient
    # judged as a plain decoder, and with one head it is one
    one = build(n_predict=1)
    one.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith('extra')}, strict=True)
    assert torch.equal(model.eval()(x, ahead, y)[0], one(x, y)[0]) and torch.equal(model.logits(x), one.logits(x))
    assert close({n: g for n, g in gradients(model, x, ahead, y).items()}, gradients(one, x, y))
    with pytest.raises(ValueError, match='n_predict=3'): model(x, y)

# ---------------------------------------------------------------------------------------------- sizes and first weights

PUBLISHED = {  # the papers' (GPT-3: table 2.1, rounded there) or the published weights' numbers of parameters
    'gpt1': 116534784, 'gpt2': 124439808, 'gpt2-medium': 354823168, 'gpt2-large': 774030080, 'gpt2-xl': 1557611200,
    'gpt3-125m': 125e6, 'gpt3-350m': 350e6, 'gpt3-760m': 760e6, 'gpt3-1.3b': 1.3e9, 'gpt3-2.7b': 2.7e9, 'gpt3-6.7b': 6.7e9,
    'gpt3-13b': 13e9, 'gpt3-175b': 175e9, 'pythia-70m': 70426624, 'pythia-160m': 162322944, 'pythia-410m': 405334016,
    'pythia-1b': 1011781632, 'llama-7b': 6738415616, 'llama2-7b': 6738415616, 'llama3.2-1b': 1235814400,
    'smollm2-135m': 134515008, 'tinyllama-1.1b': 1100048384, 'mistral-7b': 7241732096}


@pytest.mark.parametrize('name', gpt.presets)
def test_presets(name):
    with torch.device('meta'): model = gpt.Model(gpt.Config(**gpt.presets[name]))
    have = sum(p.numel() for p in model.parameters())
    if name in PUBLISHED: assert abs(have / PUBLISHED[name] - 1) < (0.025 if 'gpt3' in name else 1e-12)
    else: assert name == 'small' or name.startswith('speedrun-')
    defaults = {f.name: f.default for f in dataclasses.fields(gpt.Config)}
    assert all(defaults[k] != v for k, v in gpt.presets[name].items()), 'the smallest difference'


def test_recipes():
    assert gpt.recipe['preset'] in gpt.presets and gpt.recipe['vocab_multiple'] == 128
    assert set(gpt.recipes) <= set(gpt.presets) and gpt.presets['gpt2'] == {}


def test_first_weights():
    torch.manual_seed(0)
    model = gpt.Model(gpt.Config(vocab_size=999, block_size=99, n_layer=5, n_head=3, n_embd=96))
    for name, p in model.named_parameters():
        if p.ndim == 2:
            std = 0.02 / math.sqrt(2 * 5) if name.endswith(('attention.out.weight', 'mlp.down.weight')) else 0.02
            assert abs(p.std() / std - 1) < 0.05 and abs(p.mean()) < std * 0.05, name
        else: assert (p == (0 if name.endswith('bias') else 1)).all()
    post = gpt.Model(gpt.Config(**TINY, post_norm=True))
    assert abs(post.blocks[0].mlp.down.weight.std() / 0.02 - 1) < 0.1


def test_tied_head_is_one_parameter():
    model = build()
    assert model.head.weight is model.tokens.weight
    assert sum(p is model.tokens.weight for p in model.parameters()) == 1 and build(tied=False).head.weight.ndim == 2
    before = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in build(tied=False).parameters()) == before + 99 * 42


def test_fused_layers_name_their_parts():
    block = build(**CASES['llama']).blocks[0]
    assert block.attention.qkv.parts == dict(q=60, k=20, v=20)
    assert block.mlp.up.parts == dict(gate=53, up=53) and sum(block.mlp.up.parts.values()) == block.mlp.up.out_features


@pytest.mark.parametrize('wrong, says', (
    (dict(positions='rope'), "positions='rope' is not one of: 'learned'"), (dict(activation='swish'), 'gelu_tanh'),
    (dict(n_head=5), 'n_embd=42 is not a multiple of n_head=5'), (dict(n_kv_head=2), 'n_kv_head=2'), (dict(n_layer=0), 'n_layer=0'),
    (dict(positions='rotary', head_dim=7), 'odd'), (dict(post_norm=True, parallel=True), 'exclude'), (dict(biases='q'), 'none of')))
def test_a_wrong_config_is_told_in_one_line(wrong, says):
    with pytest.raises(ValueError) as error: gpt.Config(**{**TINY, **wrong})
    assert says in str(error.value) and '\n' not in str(error.value)

# ---------------------------------------------------------------------------------------------- transformers

K = dict(vocab_size=99, hidden_size=36, num_hidden_layers=2, num_attention_heads=6, intermediate_size=37, max_position_embeddings=40)
G = dict(vocab_size=99, n_embd=21, n_layer=2, n_head=3, n_positions=37, bos_token_id=0, eos_token_id=0)
ROPE3 = dict(rope_type='llama3', rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
HF = {
    'gpt2': ('GPT2', dict(G)), 'gpt2-untied': ('GPT2', dict(G, n_inner=13, activation_function='relu', tie_word_embeddings=False)),
    'gpt1': ('OpenAIGPT', {k: v for k, v in G.items() if 'token' not in k}),
    'neox': ('GPTNeoX', dict(K, rope_parameters=dict(rope_type='default', rope_theta=1234.0, partial_rotary_factor=2 / 3))),
    'neox-serial': ('GPTNeoX', dict(K, use_parallel_residual=False, rotary_pct=1.0, attention_bias=False, hidden_act='gelu_new')),
    'llama': ('Llama', dict(K, num_key_value_heads=2, head_dim=10, attention_bias=True, mlp_bias=True)),
    'llama-mha': ('Llama', dict(K, rms_norm_eps=1e-3)),
    'llama3': ('Llama', dict(K, num_key_value_heads=3, tie_word_embeddings=True, rope_parameters=ROPE3)),
    'llama-linear': ('Llama', dict(K, rope_parameters=dict(rope_type='linear', rope_theta=1e4, factor=3.0))),
    'mistral': ('Mistral', dict(K, num_key_value_heads=2, sliding_window=5)),
    'mistral-wide': ('Mistral', dict(K, num_key_value_heads=1, sliding_window=None)),
    'qwen3': ('Qwen3', dict(K, num_key_value_heads=2, head_dim=8)),
}


def theirs(name, folder):
    """A random model of transformers, norms and biases included -> it, its config.json, its tensors."""
    import transformers
    from safetensors.torch import load_file
    kind, settings = HF[name]
    torch.manual_seed(0)
    cls = kind + ('LMHeadModel' if kind.endswith(('GPT', 'GPT2')) else 'ForCausalLM')
    model = getattr(transformers, cls)(getattr(transformers, kind + 'Config')(**settings)).eval()
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder)
    return model, json.load(open(f'{folder}/config.json')), load_file(f'{folder}/model.safetensors')


@pytest.mark.parametrize('name', HF)
def test_transformers_both_ways(name, tmp_path):
    import transformers
    from safetensors.torch import save_file
    hf, hf_config, weights = theirs(name, tmp_path / 'a')
    config, state = layout_of(gpt).from_hf(hf_config, weights)
    model, ids = gpt.Model(config).eval(), tokens(2, 29)
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        assert (hf(ids).logits - model.logits(ids)).abs().max() < 1e-4
        hf_config, weights = layout_of(gpt).to_hf(model)
        os.makedirs(tmp_path / 'b')
        json.dump(hf_config, open(tmp_path / 'b' / 'config.json', 'w'))
        save_file(weights, tmp_path / 'b' / 'model.safetensors', metadata=dict(format='pt'))
        back, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'b', output_loading_info=True)
        assert not any(info.values()) and (type(back) is type(hf) or name == 'mistral-wide')  # without a window it is a Llama
        assert (back.eval()(ids).logits - model.logits(ids)).abs().max() < 1e-4
    again, state = layout_of(gpt).from_hf(*layout_of(gpt).to_hf(model))
    assert again == dataclasses.replace(config, n_hidden=config.hidden, n_kv_head=again.n_kv_head, head_dim=again.head_dim,
                                        bias=again.bias, biases=again.biases)
    ours = model.state_dict()
    assert all(torch.equal(state[k], ours[k]) for k in ours)


def read_config(config):
    layout = layout_of(gpt)
    return layout.build(layout.read_config(config))


def test_config_of_transformers_4():
    """As the hub holds them: rope_theta, rope_scaling, torch_dtype; names without prefix; constants among the weights."""
    old = dict(architectures=['LlamaForCausalLM'], model_type='llama', torch_dtype='bfloat16', vocab_size=99, hidden_size=36,
               intermediate_size=37, num_hidden_layers=1, num_attention_heads=6, num_key_value_heads=2, hidden_act='silu',
               max_position_embeddings=131, rms_norm_eps=1e-5, rope_theta=500000.0, tie_word_embeddings=True, attention_bias=False,
               rope_scaling=dict(factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=8192, rope_type='llama3'))
    new = {k: v for k, v in old.items() if not k.startswith('rope')} | dict(rope_parameters=old['rope_scaling'] | dict(rope_theta=500000.0))
    weights = layout_of(gpt).to_hf(gpt.Model(read_config(new)))[1]
    a, b = layout_of(gpt).from_hf(old, weights)[0], layout_of(gpt).from_hf(new, weights)[0]
    assert a == b and (a.rope_theta, a.rope_factor, a.rope_scaling, a.rope_original) == (5e5, 32.0, 'llama3', 8192)
    assert read_config(old | dict(rope_scaling=dict(type='linear', factor=2.0))).rope_scaling == 'linear'
    neox = dict(model_type='gpt_neox', vocab_size=99, hidden_size=36, intermediate_size=37, num_hidden_layers=1, num_attention_heads=3,
                max_position_embeddings=20, hidden_act='gelu', rotary_pct=0.5, rotary_emb_base=1234, use_parallel_residual=True)
    config = read_config(neox)
    assert (config.rope_fraction, config.rope_theta, config.parallel, config.tied) == (0.5, 1234.0, True, False)


def test_old_weights_open(tmp_path):
    hf, config, weights = theirs('gpt2', tmp_path)
    plain_names = {k.removeprefix('transformer.'): v for k, v in weights.items()} | {'h.0.attn.bias': torch.ones(1, 1, 37, 37)}
    a, b = layout_of(gpt).from_hf(config, weights)[1], layout_of(gpt).from_hf(config, plain_names)[1]
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_what_cannot_be_read_is_told_in_one_line(tmp_path):
    _, config, weights = theirs('llama', tmp_path)
    rope = config['rope_parameters']
    for change, says in ((dict(model_type='bloom'), "'bloom'"), (dict(hidden_act='mish'), "'mish'"), (dict(quantization_config={}), 'quantization'),
                         (dict(rope_parameters=rope | dict(rope_type='yarn', factor=2.0)), "'yarn'"), (dict(hidden_size=42), 'says'),
                         (dict(num_hidden_layers=3), 'lack model.layers.2'), (dict(num_hidden_layers=1), 'does not explain')):
        with pytest.raises(ValueError) as error: layout_of(gpt).from_hf(config | change, weights)
        assert says in str(error.value) and '\n' not in str(error.value), change
    with pytest.raises(ValueError, match='lacks .*vocab_size'): layout_of(gpt).from_hf({k: v for k, v in config.items() if k != 'vocab_size'}, weights)


def test_what_cannot_be_written_is_told(tmp_path):
    for kw, says in ((dict(positions='alibi'), 'alibi'), (dict(gated=True), 'gated'), (dict(LLAMA, gated=False), 'gated=False'),
                     (dict(LLAMA, post_norm=True), 'post_norm'), (dict(window=5), 'window'), (dict(LLAMA, rope_fraction=0.5, head_dim=8), 'rope_fraction'),
                     (dict(n_kv_head=1), 'kv_heads'), (dict(LLAMA, window=5, biases='qkv'), 'qkv.bias')):
        with pytest.raises(ValueError) as error: layout_of(gpt).to_hf(build(**kw))
        assert says in str(error.value) and '\n' not in str(error.value), kw


def test_export_without_biases_and_with_padding(tmp_path):
    """nanoGPT's GPT-2 without biases becomes a GPT-2 with zero biases; padded rows and extra heads stay behind."""
    import transformers
    from safetensors.torch import save_file
    model, ids = build(bias=False, vocab_multiple=64, n_predict=2), tokens(2, 19)
    hf_config, weights = layout_of(gpt).to_hf(model)
    json.dump(hf_config, open(tmp_path / 'config.json', 'w'))
    save_file(weights, tmp_path / 'model.safetensors', metadata=dict(format='pt'))
    with torch.no_grad():
        assert (transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits - model.logits(ids)).abs().max() < 1e-4

# ---------------------------------------------------------------------------------------------- the file itself

def imports(nodes):
    for node in nodes:
        if isinstance(node, ast.Import): yield from (n.name for n in node.names)
        if isinstance(node, ast.ImportFrom): yield node.module


def test_the_file_stands_alone(tmp_path, monkeypatch):
    """torch and numpy alone; neighbours for what a flag asks for, and for many logits on a CPU. A copy trains without them."""
    source = open(gpt.__file__).read()
    tree = ast.parse(source)
    top, all_of_them = set(imports(tree.body)), set(imports(ast.walk(tree)))
    assert {name.split('.')[0] for name in top} <= {'math', 'dataclasses', 'numpy', 'torch'}
    assert all_of_them - top <= {'lib.loss', 'lib.windows', 'lib.positions'}
    shutil.copy(gpt.__file__, tmp_path / 'mine.py')
    spec = importlib.util.spec_from_file_location('mine', tmp_path / 'mine.py')
    sys.modules['mine'] = mine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mine)
    for name in [n for n in sys.modules if n.split('.')[0] == 'lib']: monkeypatch.setitem(sys.modules, name, None)
    for config in (mine.Config(**TINY), mine.Config(**mine.presets['small'])):
        model = mine.Model(config)
        loss = model(tokens(1, 5), tokens(1, 5))[0]
        loss.backward()
        assert loss > 0 and model.step(tokens(1, 5), model.cache(1, 6)).shape == (1, config.vocab_size)
    with pytest.raises(ImportError): mine.Model(mine.Config(**TINY, positions='alibi')).logits(tokens(1, 5))
    for field in dataclasses.fields(gpt.Config):
        assert type(field.default) in (int, float, bool, str)
        line, = (l for l in source.splitlines() if l.startswith(f'    {field.name}: '))
        assert '  # ' in line, field.name


class Letters:
    def decode(self, ids): return ''.join(chr(97 + i % 26) for i in ids)


def test_show():
    model = build(objective='prefix').train()
    text = show.by_family['gpt'](model, Letters(), tokens(40)[:38].numpy())
    assert text == show.by_family['gpt'](model, Letters(), tokens(40)[:38].numpy()) and model.training
    assert ' >>> ' in text and text.startswith(Letters().decode(tokens(40)[:18].tolist()))
