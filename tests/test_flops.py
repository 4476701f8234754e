"""lib/flops.py against the formula 6 N + 12 L T H D, written out by hand for each family."""
import numpy as np
import pytest
import torch

import bench
import bert
import electra
import gpt
import lora
import t5
from lib import flops


def counted(file, config):
    with torch.device('meta'):
        model = file.Model(config)
    return flops.count(model, bench.random_batch(file, config, 1))


def matrices(model):
    """Numbers in the matrices that rows are multiplied with"""
    return sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and not n.startswith(('positions', 'tokens')))


@pytest.mark.parametrize('name, per_token', (('gpt2', 0.855e9), ('gpt2-medium', 2.425e9), ('gpt2-xl', 10.28e9)))
def test_gpt2(name, per_token):
    config = gpt.Config(**gpt.presets[name])
    with torch.device('meta'):
        model = gpt.Model(config)
    row = [np.zeros((1, 1024), np.int64)] * 2
    N = matrices(model) + 50257 * config.n_embd
    want = (6 * N + 12 * config.n_layer * 1024 * config.n_embd) * 1024
    assert flops.count(model, row) == want and abs(want / 1024 / per_token - 1) < 1e-3


TINY = dict(vocab_size=99, block_size=37, n_layer=3, n_head=3, n_embd=42)


@pytest.mark.parametrize('kw, heads', (
    (dict(tied=False), 1), (dict(tied=True), 1), (dict(n_predict=3), 3), (dict(objective='prefix', n_predict=2), 2),
    (dict(positions='alibi', n_kv_head=1), 1), (dict(checkpoint_activations=True), 1), (dict(loss_chunk=5), 1),
    (dict(residual_autocast=True, dropout=0.1, positions='rotary', qk_norm=True, gated=True), 1), (dict(window=30), 1)))
def test_gpt(kw, heads):
    """A head for each token predicted has a block of its own. Neither memory that is saved nor keys that are shared
    change the figure; a look-up is no product."""
    config = gpt.Config(**TINY, **kw)
    with torch.device('meta'):
        model = gpt.Model(config)
    N = matrices(model) - (not config.tied) * 99 * 42 + heads * 99 * 42
    want = (6 * N + 12 * (3 + heads - 1) * 37 * 42) * 37
    assert counted(gpt, config) == want


def test_windows_count_what_is_computed():
    """Four blocks of 10 for 37 tokens, each of which sees 20 keys."""
    whole, part = (counted(gpt, gpt.Config(**TINY, window=w)) for w in (0, 10))
    assert whole - part == 12 * 3 * 42 * (37 * 37 - 4 * 10 * 20)


def test_bert():
    """Every token goes through the blocks, the masked ones through the head and the matrix of the tokens."""
    config = bert.Config(block_size=128)
    K = round(0.15 * 126)
    want = (6 * 12 * 12 * 768 ** 2 + 12 * 12 * 128 * 768) * 128 + 6 * K * (768 * 768 + 30522 * 768)
    assert counted(bert, config) == want and abs(want / 128 / 0.545e9 - 1) < 0.01


def test_electra():
    """From table 6 by hand; a generator's share is what its blocks, its head and K rows of the decoder take."""
    config = electra.Config(**electra.presets['electra-small'])
    def trunk(C):
        return (6 * (12 * 12 * C ** 2 + 128 * C) + 12 * 12 * 128 * C) * 128
    want = trunk(256) + trunk(64) + 6 * 19 * (64 * 128 + 30522 * 128) + 6 * 128 * (256 * 256 + 256)
    assert counted(electra, config) == want and abs(want / 128 / 1e9 - 0.070) < 0.006


def test_t5():
    """T5 1.1 base: 12 + 12 gated blocks of 768 and 2048, 512 tokens in and 114 out; cross-attention's keys are made of
    the 512."""
    C, F, S, T, L = 768, 2048, 512, 114, 12
    encoder = L * (6 * (4 * C * C + 3 * C * F) + 12 * C * S) * S
    decoder = L * ((6 * (6 * C * C + 3 * C * F) + 12 * C * (T + S)) * T + 6 * 2 * C * C * S)
    want = encoder + decoder + 6 * 32128 * C * T
    got = counted(t5, t5.Config(**t5.presets['t5-v1_1-base']))
    assert got == want and abs(got / 1e9 - 426) < 2


def test_nothing_of_the_model_changes():
    """Weights, random numbers, mode and gradients are as they were; with an adapter the figure grows by its share."""
    config = gpt.Config(**TINY, dropout=0.1, n_predict=2)                  # whose second head is there in training alone
    model = gpt.Model(config).eval()
    before = {n: w.clone() for n, w in model.state_dict().items()}
    random = torch.get_rng_state()
    row = bench.random_batch(gpt, config, 1)
    got = flops.count(model, row)
    assert got == flops.flops(model, row) == counted(gpt, config)
    assert torch.equal(random, torch.get_rng_state()) and not model.training
    assert all(torch.equal(w, before[n]) and w.device.type == 'cpu' for n, w in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.is_autocast_enabled('cpu') is False and torch.is_autocast_enabled.__module__ != flops.__name__
    assert flops.count(lora.wrap(model, 4, match='qkv'), row) == got + 6 * 37 * 4 * 4 * (42 + 3 * 42)


def test_what_a_model_file_says_itself_wins():
    class Own(gpt.Model):
        def flops(self):
            return 7
    assert flops.flops(Own(gpt.Config(**TINY)), ()) == 7


def test_a_model_that_reads_values_has_no_figure():
    class Reads(gpt.Model):
        def forward(self, ids, *rest):
            return super().forward(ids[:, :int(ids.max())], *rest)
    config = gpt.Config(**TINY)
    assert flops.flops(Reads(config), bench.random_batch(gpt, config, 1)) == 0
