"""adapters.py against formulas written out and against peft, on all families, and through the trainer."""
import contextlib
import copy
import json
import math
import os
import sys
import types

import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import adapters
import electra
import gpt
import lora
import sample
import test_lora
from lib.models import layout_of
import train
from data import text
from lib import models
from test_lora import LLAMA, build, far, logits, near, tokens
from data.rows import validation

test_lora.FAMILIES['electra'] = electra, dict(dropout=0.0, attention_dropout=0.0, objective='mlm')
MINDS = ('gpt2', 'llama', 'bert', 'electra', 't5')


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
    with pytest.raises(ValueError, match='import adapters'): lora.attach(build('gpt2'), 'x', {}, kind='suffix')
    for call in (adapters.prefix, adapters.prompt):
        with pytest.raises(ValueError, match='length=0'): call(build('gpt2'), 0)
    with pytest.raises(ValueError, match='encoder-decoder'): adapters.prompt(build('t5', architecture='decoder'))
    with pytest.raises(ValueError, match='compares the classes'): adapters.bottleneck(build('gpt2'), experts=2, consistency=1.0)


# ---- AdaMix's second loss

def test_consistency():
    """eq. 4, from the two passes that the very same random numbers give."""
    model = build('bert', kind='labelled', n_labels=3)
    ids, labels, none = tokens(5, 9), torch.tensor([0, 2, -1, 1, 0]), torch.zeros(5, 0, dtype=torch.bool)
    arrays = ids, torch.zeros_like(ids), none, labels
    disturb(adapters.bottleneck(model, 3, 'down', experts=3, consistency=0.7, train='classifier'))
    assert 'consistency' not in model(*arrays)[1] and type(model).__module__ == 'bert'
    model.train()
    torch.manual_seed(4)
    p, q = (model.logits(*arrays[:3]).double().softmax(-1) for _ in range(2))
    far(p, q)
    real = labels >= 0
    kl = lambda a, b: (a * (a / b).log()).sum(-1)[real].sum()
    for totals, n in ((None, 4), (torch.tensor([11.0]), 11)):
        torch.manual_seed(4)
        loss, stats = model(*arrays, totals=totals)
        both = (kl(p, q) + kl(q, p)) / 2 / n
        near(stats['consistency'].double(), both, 1e-5)
        near(loss.double(), -p[real, labels[real]].log().sum() / n + 0.7 * both, 1e-5)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    lora.load_state(again := build('bert', kind='labelled', n_labels=3).train(), lora.settings(model), lora.state(model))
    torch.manual_seed(4)
    assert torch.equal(again(*arrays, totals=totals)[0], loss)
    lora.use(model, '')
    assert 'consistency' not in model(*arrays)[1]
    with pytest.raises(ValueError, match='compares the classes'):
        adapters.bottleneck(build('bert', kind='labelled', n_labels=0), experts=2, consistency=1.0)


# ---- prefixes and prompts

HOW = {'prefix': lambda m, **kw: adapters.prefix(m, 5, **kw), 'prompt': lambda m, **kw: adapters.prompt(m, 5, **kw),
       'mlp': lambda m, **kw: adapters.prefix(m, 5, hidden=11, **kw)}


@pytest.mark.parametrize('family', MINDS)
@pytest.mark.parametrize('how', HOW)
def test_virtual_tokens_train_switch_and_save(family, how, tmp_path):
    model = build(family)
    before, given = logits(model), {n: p.clone() for n, p in model.state_dict().items()}
    HOW[how](model, name='one')
    assert all(p.requires_grad == ('.lora.one.' in n) for n, p in model.named_parameters())
    far(seen := logits(disturb(model)), before)
    lora.wrap(model, 2, 3, name='two')
    near(logits(model), before, 1e-5)
    for name, y in (('one', seen), ('', before), ('one', seen)):
        lora.use(model, name)
        assert torch.equal(logits(model), y) if name else (logits(model) - y).abs().max() < 1e-5
    ids = tokens(3, 12)
    arrays = dict(gpt=(ids, ids), bert=(ids, ids[:, :4].clamp(max=9), ids[:, :4]), t5=(ids, ids[:, :7]),
                  electra=(ids, torch.stack((ids[:, :2].clamp(max=9), ids[:, :2]), 1), ids[:, :2]))[type(model).__module__]
    model.train()
    model(*arrays)[0].backward()
    assert all((p.grad is not None and bool(p.grad.abs().max() > 0)) == ('.lora.one.' in n) for n, p in model.named_parameters())
    model.eval()
    assert torch.equal(logits(copy.deepcopy(model)), seen)
    with pytest.raises(ValueError, match='cannot be merged'): lora.merge(model)
    assert not lora.save(model, tmp_path)
    again = lora.load(build(family), str(tmp_path))
    assert torch.equal(logits(again), seen) and lora.settings(again) == lora.settings(model)
    numel = lambda m: sum(p.numel() for p in m.parameters() if p.requires_grad)
    assert numel(again) == numel(model)                                    # what layers share is one
    assert all(torch.equal(p, given[n]) for n, p in model.state_dict().items() if n in given)
    adapters.bitfit(again, name='last') if family == 'gpt2' else lora.wrap(again, 2, name='last')
    lora.merge(again, unload=True)                                         # takes away what lies beside it
    near(logits(again), before, 1e-5)
    assert again.state_dict().keys() == given.keys() and type(again) is type(build(family))


@pytest.mark.parametrize('family, kw', [('gpt2', {}), ('llama', {}), ('llama', dict(qk_norm=True, window=6)), ('gpt2', dict(positions='alibi', window=5)), ('bert', {}),
                                        ('electra', {}), ('modernbert', dict(window=6)), ('t5', {})])
def test_prefix_is_more_keys(family, kw):
    """softmax(q [P; K]^T) [P_v; V] in float64, from the q, k, v and mask that the base computes in each layer."""
    model, calls = build(family, n_layer=1, **kw).double(), []
    ids, seg = tokens(2, 11), torch.zeros(2, 11, dtype=torch.long)
    real = torch.arange(11) < torch.tensor([[11], [6]])
    file = type(model).__module__
    run = dict(gpt=lambda: model.logits(ids), t5=lambda: model.logits(ids, tokens(2, 7, seed=3), real)).get(file, lambda: model.logits(ids, seg, real))
    layers = {n: model.get_submodule(n) for n in adapters.attentions(model)}
    outs = []
    for layer in layers.values(): layer.out.register_forward_pre_hook(lambda m, x: outs.append(x[0].detach()))
    sdpa = F.scaled_dot_product_attention
    def spy(q, k, v, mask=None, drop=0.0, is_causal=False, scale=None):
        calls.append((q, k, v, mask, is_causal, scale))
        return sdpa(q, k, v, mask, drop, is_causal, scale=scale)
    with pytest.MonkeyPatch.context() as m, torch.no_grad():
        m.setattr(F, 'scaled_dot_product_attention', spy)
        run()
    assert len(calls) == len(outs) == len(layers)
    disturb(adapters.prefix(model, 3))
    outs.clear()
    with torch.no_grad(): run()
    # of layers in a row only the first one's input is still what it was: of t5 the encoder's
    (q, k, v, mask, causal, scale), a = calls[0], next(iter(layers.values())).adapter()
    D = q.size(-1)
    K, V = (p.view(3, -1, D).transpose(0, 1).repeat_interleave(q.size(1) // (p.size(1) // D), 0).expand(2, -1, -1, -1) for p in (a.K, a.V))
    s = q @ torch.cat((K, k), 2).mT * (D ** -0.5 if scale is None else scale)
    T, S = q.size(2), k.size(2)
    if causal: mask = torch.ones(T, S).tril().bool()
    if mask is not None:
        see = mask.expand(2, q.size(1), T, S)
        s[..., 3:] = s[..., 3:].masked_fill(~see, -math.inf) if see.dtype == torch.bool else s[..., 3:] + see
    y = (s.softmax(-1) @ torch.cat((V, v), 2)).transpose(1, 2).flatten(2)
    near(outs[0], y, 1e-6 if file == 't5' else 1e-9)


def test_prefix_mlp():
    """All layers share the vectors and the first half of the MLP; unrolled, it is the same as a plain prefix."""
    model, plain = disturb(adapters.prefix(build('bert'), 4, hidden=7)), adapters.prefix(build('bert'), 4)
    a, b = (model.encoder.blocks[i].attention.adapter() for i in range(2))
    assert a.E is b.E and a.D is b.D and a.d is b.d and a.U is not b.U
    for i, one in enumerate((a, b)):
        kv = torch.tanh(a.E @ a.D.T + a.d) @ one.U.T + one.u
        own = plain.encoder.blocks[i].attention.adapter()
        with torch.no_grad(): own.K.copy_(kv[:, :42]), own.V.copy_(kv[:, 42:])
    near(logits(model), logits(plain), 1e-5)
    assert not adapters.prefix(build('bert'), 4, hidden=7).encoder.blocks[1].attention.adapter().pair()[1].any()


@pytest.mark.parametrize('how', HOW)
@pytest.mark.parametrize('kw', (dict(LLAMA), dict(LLAMA, window=4), dict(), dict(positions='alibi'), dict(positions='sinusoidal', objective='prefix')))
def test_gpt_generates_with_a_cache_as_without(how, kw):
    model = disturb(HOW[how](build('gpt2', **kw)))
    ids = tokens(2, 5)
    cache, whole = model.cache(2, 12), tokens(2, 12, seed=9)
    seen = model.logits(whole, **dict(prefix=torch.tensor([5, 5])) if 'objective' in kw else {})
    near(model.step(whole[:, :5], cache), seen[:, 4])
    for t in range(5, 12): near(model.step(whole[:, t:t + 1], cache), seen[:, t])
    if 'objective' not in kw:
        text = sample.generate(model, ids, 9, temperature=0)
        assert torch.equal(text, sample.generate(model, ids, 9, temperature=0, cache=False))


@pytest.mark.parametrize('how', HOW)
@torch.no_grad()
def test_t5_generates_as_its_logits_say(how):
    model = disturb(HOW[how](build('t5')))
    source, mask = tokens(3, 9), torch.arange(9) < torch.tensor([[9], [4], [7]])
    target = tokens(3, 6, seed=5)
    cache, seen = model.cache(3, 6, source, mask), model.logits(source, target, mask)
    for t in range(6): near(model.step(target[:, t:t + 1], cache), seen[:, t])
    near(model.logits(source[1:2, :4], target[1:2]), seen[1:2])            # padding changes nothing


@pytest.mark.parametrize('how', HOW)
def test_padding_and_packing_change_nothing(how):
    for family in ('bert', 'electra'):
        model = disturb(HOW[how](build(family)))
        ids, real = tokens(2, 11), torch.arange(11) < torch.tensor([[11], [6]])
        near(model.logits(ids, None, real)[1:, :6], model.logits(ids[1:, :6]))
    for kw in ({}, LLAMA, dict(positions='alibi')):
        model = disturb(HOW[how](build('gpt2', kind='instruct', **kw)))
        ids, positions = tokens(1, 12), torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]])
        y = model.logits(ids, positions=positions)
        for a, b in ((0, 5), (5, 8), (8, 12)): near(y[:, a:b], model.logits(ids[:, a:b]))


@pytest.mark.parametrize('family', MINDS)
@pytest.mark.parametrize('how', HOW)
def test_virtual_tokens_compile_checkpoint_and_bf16(family, how):
    model = disturb(HOW[how](build(family)))
    exact, file = logits(model), type(model).__module__
    torch._dynamo.reset()
    inputs = (tokens(2, 13), tokens(2, 7, seed=3)) if file == 't5' else (tokens(2, 13),)
    assert (torch.compile(model.logits, backend='eager', fullgraph=True)(*inputs) - exact).abs().max() < 1e-5
    with torch.autocast('cpu', torch.bfloat16): near(logits(model).float(), exact, 0.05)
    near(logits(copy.deepcopy(model).bfloat16()).float(), exact, 0.08)
    ids = tokens(3, 12)
    if file in ('gpt', 't5'):
        grads = []
        for on in (False, True):
            model.config.checkpoint_activations = on
            model.train().zero_grad(), model(ids, ids)[0].backward()
            grads.append([p.grad for p in model.parameters() if p.requires_grad])
        for a, b in zip(*grads): near(a, b, 1e-6)


# ---- prompts, each family its own oracle

def test_a_prompt_of_real_tokens_is_these_tokens():
    """A prompt that holds the embeddings of tokens is that text in front, its places dropped."""
    front, ids = tokens(1, 5, seed=8), tokens(2, 11)
    both = torch.cat((front.expand(2, -1), ids), 1)
    for kw in (LLAMA, dict(LLAMA, n_predict=3), dict(positions='none')):
        model, base = adapters.prompt(build('gpt2', **kw), 5), build('gpt2', **kw)
        with torch.no_grad(): model.tokens.adapter().P.copy_(base.tokens(front)[0])
        near(model.logits(ids), base.logits(both)[:, 5:])
    model, base = adapters.prompt(build('gpt2', kind='text', **kw), 5).train(), base.train()
    model, base = adapters.prompt(build('t5'), 5), build('t5')
    with torch.no_grad(): model.tokens.adapter().P.copy_(base.tokens(front)[0])
    target, real = tokens(2, 7, seed=3), torch.arange(11) < torch.tensor([[11], [6]])
    near(model.logits(ids, target), base.logits(both, target))
    near(model.logits(ids, target, real), base.logits(both, target, F.pad(real, (5, 0), value=True)))
    for family in ('bert', 'electra', 'modernbert'):
        model, base = adapters.prompt(build(family), 5), build(family)
        with torch.no_grad(): model.encoder.adapter().P.copy_(base.embeddings(both)[0, :5])
        x = torch.cat((base.embeddings(both)[:, :5], base.embeddings(ids)), 1)
        near(model.hidden(ids, None, real), base.encoder(x, F.pad(real, (5, 0), value=True))[:, 5:])
        adapters.prompt(model, 5, name='b')


def test_mae_encodes_with_a_prompt():
    """positions, of the tokens that BERT's MAE-LM keeps, move behind the prompt's."""
    kw = dict(n_decoder=1, positions='rotary', n_segments=0)
    model, base, ids = adapters.prompt(build('bert', **kw), 5), build('bert', **kw), tokens(2, 8)
    x, at = base.embeddings(ids), torch.tensor([[0, 2, 3, 5, 6, 8, 9, 10]] * 2)
    front = model.encoder.adapter().P.expand(2, -1, -1)
    own = torch.arange(5).expand(2, -1)
    near(model.encoder(x, None, at), base.encoder(torch.cat((front, x), 1), None, torch.cat((own, at + 5), 1))[:, 5:])


# ---- peft

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('hidden', (0, 9))
@pytest.mark.parametrize('kind', ('prefix', 'prompt'))
def test_peft_has_the_same(kind, hidden):
    """peft's GPT-2 counts positions on behind the virtual tokens: its table gets rows for them in front, of zeros, for
    the vectors hold them."""
    if kind == 'prompt' and hidden: return
    transformers, peft = pytest.importorskip('transformers'), pytest.importorskip('peft')
    P, model, ids = 5, build('gpt2'), tokens(2, 13)
    config, weights = layout_of(gpt).to_hf(model)
    wpe = weights['transformer.wpe.weight']
    weights['transformer.wpe.weight'] = torch.cat((torch.zeros(P, 42), wpe))
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**dict(config, n_positions=37 + P)))
    base.load_state_dict(weights, strict=False), base.tie_weights()
    how = (peft.PrefixTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=P, prefix_projection=hidden > 0, encoder_hidden_size=hidden or None)
           if kind == 'prefix' else peft.PromptTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=P))
    theirs, before = peft.get_peft_model(base, how).eval(), logits(model)
    disturb(theirs)
    p = theirs.prompt_encoder['default']
    with torch.no_grad():
        if kind == 'prompt': adapters.prompt(model, P).tokens.adapter().P.copy_(p.embedding.weight)
        else:
            adapters.prefix(model, P, hidden)
            for i, block in enumerate(model.blocks):                       # theirs: layers of keys, values, in turn
                a, rows = block.attention.adapter(), slice(84 * i, 84 * i + 84)
                if hidden:
                    first, _, last = p.transform
                    for x, y in ((a.E, p.embedding.weight), (a.D, first.weight), (a.d, first.bias), (a.U, last.weight[rows]), (a.u, last.bias[rows])):
                        x.copy_(y)
                else: a.K.copy_(p.embedding.weight[:, rows][:, :42]), a.V.copy_(p.embedding.weight[:, rows][:, 42:])
        seen = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -13:]
        far(seen, before), near(logits(model), seen)


# ---- through the trainer

FEW = '--device=cpu --log_interval=2 --eval_interval=2 --eval_iters=3 --batch_size=4 --learning_rate=0.01 --lr_schedule=constant --warmup_iters=0'.split()
SMALL = '--n_layer=2 --n_head=2 --n_embd=24 --block_size=48'.split()
KINDS = {'lora': ['--lora_rank=2'], 'bottleneck': ['--adapter=bottleneck', '--adapter_size=3'], 'prefix': ['--adapter=prefix', '--adapter_size=3'],
         'adamix': ['--adapter=adamix', '--adapter_experts=2'], 'mlp': ['--adapter=prefix', '--adapter_size=3', '--adapter_hidden=5'],
         'prompt': ['--adapter=prompt', '--adapter_size=3'], 'bitfit': ['--adapter=bitfit']}


@pytest.fixture(scope='module')
def bases(corpus, tmp_path_factory):
    """-> function: family -> flags of a run on given weights and on data of the kind"""
    folder, made = tmp_path_factory.mktemp('bases'), {}
    raw = text.prepare(str(corpus), tokenizer='bpe', vocab_size=500, out=str(folder / 'raw'))
    lines = [l for l in open(corpus).read().splitlines()][:120]
    rows = dict(labelled=[dict(text=f'{l} {i}', label='zero' if 'zero' in l else 'none') for i, l in enumerate(lines)],
                pairs=[dict(input=l.split(';')[0], target=f'{l.split(";")[1]} {i}') for i, l in enumerate(lines)],
                instruct=[dict(prompt=l.split(';')[0], response=f'{l.split(";")[1]} {i}') for i, l in enumerate(lines)])
    for kind, some in rows.items(): (folder / f'{kind}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in some))
    more = dict(gpt=['--preset=small', '--bias=true', '--positions=rotary', '--norm=layernorm', '--qk_norm=false', '--activation=gelu_tanh', '--optimizer=adamw'],
                t5=['--n_hidden=40'], electra=['--preset=electra-small', '--embed_dim=24', '--n_hidden=40', '--generator_heads=1', '--generator_size=0.5'], bert=['--preset=small', '--n_hidden=40', '--bias=true'])
    def get(family, kind=''):
        out = str(folder / family)
        if family not in made:
            made[family] = train.main([f'--model={family}', f'--data={raw}', f'--out_dir={out}', '--max_iters=2', *FEW, *SMALL, *more[family]])
        data = str(folder / f'{family}-{kind}') if kind else raw
        if not os.path.exists(data): text.prepare(str(folder / f'{kind}.jsonl'), tokenizer=out, out=data)
        return [f'--init_from={out}', f'--data={data}', *FEW]
    return get


def state(out): return torch.load(os.path.join(out, 'ckpt.pt'), weights_only=True)

TASKS = [('gpt', ''), ('gpt', 'instruct'), ('bert', 'labelled'), ('electra', 'labelled'), ('t5', 'pairs')]

@pytest.mark.parametrize('family, data, kind', [(*t, k) for t in TASKS for k in KINDS if t[1] in ('', 'labelled') and t[0] != 'electra'
                                                or k in ('lora', 'prefix', 'prompt')] + [('t5', 'pairs', 'bitfit')])
def test_each_kind_is_trained_resumed_and_opened(family, data, kind, bases, tmp_path, capsys):
    flags, out, half = [*bases(family, data), *KINDS[kind]], str(tmp_path / 'out'), str(tmp_path / 'half')
    if family == 't5' and kind == 'bitfit':
        with pytest.raises(ValueError, match='no biases'): train.main([*flags, f'--out_dir={out}'])
        assert not os.path.exists(out)
        return
    if (family, kind) == ('bert', 'adamix'): flags.append('--adapter_consistency=0.5')
    result = train.main([*flags, f'--out_dir={out}', '--max_iters=4', '--save_interval=2'])
    train.main([*flags, f'--out_dir={half}', '--max_iters=2'])
    train.main(['--resume', f'--model={family}', f'--out_dir={half}', '--max_iters=4'])
    a, b, base = state(out)['model'], state(half)['model'], state(flags[0][12:])['model']
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    heads = {k for k in a if k.startswith(('classifier', 'pooler'))}
    assert heads == ({k for k in a if k.split('.')[0] in ('classifier', 'pooler') } if data == 'labelled' else set())
    assert ('classifier.weight' in heads) == (data == 'labelled')
    assert all('.lora_' in k or k in heads or kind == 'bitfit' and k.endswith('bias') for k in a)
    model, tokenizer = train.load_model(out)                               # with the adapter on, whatever its kind
    wanted = result['val_loss']
    assert (hasattr(model, 'lora')) == (kind not in ('lora', 'bitfit'))
    plain = {k: v for k, v in model.state_dict().items() if k in base and k not in a}
    if kind != 'lora': assert plain and all(torch.equal(v, base[k]) for k, v in plain.items() if v.shape == base[k].shape)
    # the loss that the run reported, from the opened model: the same rows through the trainer's own evaluation
    file = sys.modules[type(model).__module__]
    encode = lambda e: models.rows_of(file, model.config.kind).encode(e, tokenizer, model.config)
    (title, (rows, m)), = validation(text.open_meta(flags[1][7:]), 1337, encode).items()
    look = train.Evaluation(train.Feed(file, model.config, rows, torch.device('cpu'), tokenizer), 4, 3, m, 0, 1)
    net = types.SimpleNamespace(model=model, autocast=contextlib.nullcontext, whole_weights=contextlib.nullcontext,
                                evaluate=lambda arrays, totals, full_size: model(*arrays, totals=totals))
    with torch.no_grad(): found = look(net)
    model.eval()
    assert found['val_loss'] == pytest.approx(wanted, rel=1e-5)
    if data != 'instruct':                                                 # and beside a base, as sample.py does it
        use = ['--classify=one plus two'] if data == 'labelled' else ['--prompt=one plus', '--max_new_tokens=5', '--temperature=0']
        other = sample.run(sample.parse([flags[0], f'--lora={out}', *use, '--device=cpu']))
        mine = sample.run(sample.parse([f'--out_dir={out}', *use, '--device=cpu']))
        said = lambda found: found.get('texts') or found['records']
        assert said(other) == said(mine)
        capsys.readouterr(), train.load_model(out, base=flags[0][12:])
        assert capsys.readouterr().err == ''
        moved = torch.load(flags[0][12:] + '/ckpt.pt', weights_only=True)
        for w in moved['model'].values(): w *= 1.01
        torch.save(moved, tmp_path / 'moved.pt')
        train.load_model(out, base=str(tmp_path / 'moved.pt'))
        assert f'note: {out} was made for other weights than those of' in capsys.readouterr().err
    elif data == 'labelled': sample.run(sample.parse([f'--out_dir={out}', '--classify=one plus one is two', '--device=cpu']))


@pytest.mark.parametrize('family, data', [t for t in TASKS if t[1] != 'instruct'])
def test_lora_merges_and_is_exported(family, data, bases, tmp_path):
    transformers = pytest.importorskip('transformers')
    out, hf = str(tmp_path / 'out'), str(tmp_path / 'hf')
    train.main([*bases(family, data), '--lora_rank=2', '--lora_match=all', '--max_iters=2', f'--out_dir={out}', '--merge', f'--export_hf={hf}'])
    merged, apart = torch.load(f'{out}/merged.pt', weights_only=True), train.load_model(out)[0]
    assert 'lora' not in merged and merged['model'].keys() == apart.state_dict().keys()
    ids = tokens(2, 9)
    args = (ids, tokens(2, 5)) if family == 't5' else (ids,)
    with torch.no_grad():
        seen = apart.logits(*args)
        near(train.load_model(f'{out}/merged.pt')[0].logits(*args), seen, 1e-5)
        near(train.load_model(hf)[0].logits(*args), seen, 1e-5)
        cls = getattr(transformers, json.load(open(f'{hf}/config.json'))['architectures'][0])
        theirs = cls.from_pretrained(hf).eval()
        near((theirs(input_ids=ids, decoder_input_ids=args[1]) if family == 't5' else theirs(input_ids=ids)).logits, seen)


def test_wrong_flags(bases, tmp_path):
    flags = [*bases('gpt'), f'--out_dir={tmp_path / "out"}']
    for more, says in ((['--adapter=prefix', '--merge'], '--adapter=prefix cannot become part'), (['--adapter=prompt', '--export_hf=x'], '--adapter=prompt cannot'),
                       (['--adapter=prefix', '--lora_rank=3'], '--lora_rank is of low-rank'), (['--adapter_size=3'], '--adapter_size=3: goes with'),
                       (['--adapter=lora', '--adapter_size=3'], '--adapter_size=3: goes with'), (['--adapter=prefx'], 'did you mean prefix'), (['--dora'], '--dora is of adapters, and without one'), (['--merge'], '--merge is of adapters'),
                       (['--adapter=prefix', '--adapter_size=-1'], 'length=-1'), (['--adapter=adamix', '--adapter_consistency=1'], 'compares the classes')):
        with pytest.raises(ValueError, match=says): train.main([*flags, *more])
    with pytest.raises(ValueError, match='--adapter=prefix needs weights'): train.main([*flags[1:], '--adapter=prefix'])
    train.main([*flags, '--adapter=prefix', '--max_iters=1'])
    with pytest.raises(ValueError, match='an adapter .prefix. that no'): train.main([f'--init_from={tmp_path / "out"}', *flags[1:-1], f'--out_dir={tmp_path / "b"}'])
    assert sorted(os.listdir(tmp_path)) == ['out']


@pytest.mark.parametrize('kind', ['prefix', 'prompt'])
@pytest.mark.parametrize('P, window', [(4, 5), (20, 5), (20, 40)])
def test_virtual_tokens_and_windows(kind, P, window, monkeypatch):
    "a window cuts long rows into blocks: what stands in front of the text is seen from each of them"
    torch.manual_seed(0)
    c = gpt.Config(vocab_size=99, block_size=37, n_layer=3, n_head=4, n_kv_head=2, n_embd=24, window=window, positions='rotary')
    model, ids, at = gpt.Model(c).double(), torch.randint(0, 99, (3, 37)), torch.arange(37)
    getattr(adapters, kind)(model, P)
    model.double()
    fast, masks = model.logits(ids), []
    real = gpt.Model.enter
    def enter(self, ids, positions, keys, prefix):
        x, rope, mask = real(self, ids, positions, keys, prefix)
        if len(positions) < 37: return x, rope, mask
        return x, rope, masks.append(mask) or gpt.attention_mask(c, at, at)
    monkeypatch.setattr(gpt.Model, 'enter', enter)
    assert (model.logits(ids) - fast).abs().max() < 1e-12
    assert [m if m is None else m.shape[-2:] for m in masks] == [None if window > 37 else (window, 2 * window)]
