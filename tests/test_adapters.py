"""adapters.py against formulas written out, on all families."""
import os
import sys

import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import adapters
import lora
from test_lora import build, far, logits, near


def disturb(model, seed=7):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad: p.add_(torch.randn(p.shape, generator=g) * 0.2)
    return model


@pytest.mark.parametrize('family', ('gpt2', 'llama', 'bert', 't5'))
def test_bottleneck(family, tmp_path):
    model = build(family)
    before = logits(model)
    for name, match in (('houlsby', 'out,down'), ('pfeiffer', 'down')):
        adapters.bottleneck(model, 5, match, name=name)
        near(logits(model), before, 1e-5)                                  # starts as the base
        assert all(p.requires_grad == (f'.lora.{name}.' in n) for n, p in model.named_parameters())
        far(seen := logits(disturb(model)), before)
        assert not lora.save(model, tmp_path / name)
        assert torch.equal(logits(lora.load(build(family), str(tmp_path / name))), seen)
    layers = lora.adapted(model)
    assert {n.split('.')[-1] for n in layers} == {'out', 'down'}
    layer = next(v for n, v in layers.items() if n.endswith('down'))
    x, a = torch.randn(3, layer.in_features), layer.adapter()
    y = F.linear(x, layer.weight, layer.bias)
    h = y.double() @ a.D[0].double().T + a.d[0]
    near(layer(x), y + (0.5 * h * (1 + torch.erf(h / 2 ** 0.5))) @ a.U[0].double().T + a.u[0], 1e-6)
    lora.use(model, '')
    near(logits(model), before, 1e-5)
    lora.use(model, 'houlsby')
    with pytest.raises(ValueError, match='cannot be merged'): lora.merge(model)


def test_adamix():
    """Training takes one D and one U at random, each pair in its time; evaluation takes their mean."""
    model = disturb(adapters.bottleneck(build('gpt2'), 3, 'down', experts=2, activation='relu'))
    layer = model.blocks[0].mlp.down
    a, x = layer.adapter(), torch.randn(4, 168)
    y = F.linear(x, layer.weight, layer.bias)
    def through(D, d, U, u): return y + F.relu(y @ D.T + d) @ U.T + u
    near(layer(x), through(a.D.mean(0), a.d.mean(0), a.U.mean(0), a.u.mean(0)), 1e-6)
    pairs = [through(a.D[i], a.d[i], a.U[j], a.u[j]) for i in range(2) for j in range(2)]
    model.train()
    hits = []
    for _ in range(64):
        z = layer(x)
        hits.append(min(range(4), key=lambda k: (z - pairs[k]).abs().max().item()))
        near(z, pairs[hits[-1]], 1e-5)
    assert set(hits) == {0, 1, 2, 3}


def test_bitfit(tmp_path):
    model = build('bert', kind='labelled', n_labels=3)
    before = logits(model)
    adapters.bitfit(model, train='classifier')
    assert torch.equal(logits(model), before)
    assert all(p.requires_grad == (n.endswith('bias') or n == 'classifier.weight') for n, p in model.named_parameters())
    far(seen := logits(disturb(model)), before)
    assert not lora.save(model, tmp_path)
    lora.use(model, '')
    assert torch.equal(logits(model), before)
    again = lora.load(build('bert', kind='labelled', n_labels=3), str(tmp_path))
    assert torch.equal(logits(again), seen)
    lora.merge(again, unload=True)
    assert torch.equal(logits(again), seen) and not hasattr(again, 'lora')
    with pytest.raises(ValueError, match='no biases'): adapters.bitfit(build('llama'))


def test_errors():
    with pytest.raises(ValueError, match='experts=0'): adapters.bottleneck(build('gpt2'), experts=0)
    with pytest.raises(ValueError, match='activation'): adapters.bottleneck(build('gpt2'), activation='step')
    with pytest.raises(ValueError, match='import adapters'): lora.attach(build('gpt2'), 'x', {}, kind='prefix')
