"""lora.py against peft, and against the formulas written out in float64."""
import copy
import itertools
import json
import math
import os
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import bert
import gpt
import lora
import sample
import t5
import train
from data import files
from lib import wrapped
from lib.models import layout_of
from lib.export import export_hf

LLAMA = dict(positions='rotary', norm='rmsnorm', activation='silu', gated=True, bias=False, n_head=6, n_kv_head=2, head_dim=10, n_hidden=53, tied=False)
SIZES = dict(vocab_size=99, block_size=37, n_layer=2, n_head=3, n_embd=42)
FAMILIES = {'gpt2': (gpt, {}), 'llama': (gpt, LLAMA), 'bert': (bert, dict(dropout=0.0, attention_dropout=0.0)), 't5': (t5, dict(head_dim=10, n_hidden=53)),
            'neox': (gpt, dict(positions='rotary', n_embd=36, parallel=True, activation='gelu', tied=False)),
            't5v11': (t5, dict(head_dim=10, n_hidden=53, gated=True, activation='gelu_tanh', tied=False, scale_head=False)),
            'albert': (bert, dict(dropout=0.0, attention_dropout=0.0, share_layers=True, embed_dim=17)),
            'modernbert': (bert, dict(dropout=0.0, attention_dropout=0.0, positions='rotary', n_segments=0, pre_norm=True, gated=True, bias=False, biases='decoder', pooler='head'))}


def build(family, seed=0, **kw):
    """A model whose weights are far from their first values."""
    file, more = FAMILIES[family]
    torch.manual_seed(seed)
    model = file.Model(file.Config(**{**SIZES, **more, **kw}))
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def tokens(*shape, seed=1): return torch.randint(2, 99, shape, generator=torch.Generator().manual_seed(seed))

@torch.no_grad()
def logits(model):
    ids = tokens(2, 13)
    return model.logits(ids, tokens(2, 7, seed=3)) if type(model).__module__ == 't5' else model.logits(ids)


def disturb(model, seed=7):
    """As after training: B is not zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if 'lora' in n and p.requires_grad: p.add_(torch.randn(p.shape, generator=g) * 0.2)
    return model


def near(a, b, tolerance=1e-4): assert (a - b).abs().max() < tolerance * (1 + b.abs().max()), (a - b).abs().max()
def far(a, b): assert (a - b).abs().max() > 0.01


# ---- one layer, in float64

@pytest.mark.parametrize('rslora', (False, True))
@pytest.mark.parametrize('dora', (False, True))
def test_formula(rslora, dora):
    model = build('gpt2')
    layer = model.blocks[1].attention.qkv
    W, b = layer.weight.detach().double(), layer.bias.detach().double()
    lora.wrap(model, 3, 7.0, 'q,v', rslora=rslora, dora=dora)
    a, C, s = layer.adapter(), 42, 7 / (math.sqrt(3) if rslora else 3)
    assert a.spans == [[0, 42], [84, 126]] and a.A.shape == (6, C) and a.B.shape == (84, 3)
    disturb(model)
    A, B, V = a.A.detach().double(), a.B.detach().double(), W.clone()
    V[:42] += s * B[:42] @ A[:3]
    V[84:] += s * B[42:] @ A[3:]
    if dora:
        m = a.m.detach().double()
        for i, row in enumerate([*range(42), *range(84, 126)]): V[row] *= m[i] / V[row].norm()
    x = torch.randn(2, 5, C)
    near(layer(x).double(), x.double() @ V.T + b, 1e-6)
    lora.merge(model)
    near(layer.weight.double(), V, 1e-6)


def test_dora_gradient():
    """The norm is a constant of the gradient (section 4.3), and m has one."""
    model = build('llama')
    layer = model.blocks[0].mlp.down
    lora.wrap(disturb(lora.wrap(model, 2, 3, 'up', name='other')), 2, 3, 'down', dora=True)
    disturb(model)
    a, W, x = layer.adapter(), layer.weight.detach(), torch.randn(5, 53)
    A, B, m = (p.detach().clone().requires_grad_() for p in (a.A, a.B, a.m))
    V = W + 1.5 * B @ A
    (x @ (m / V.norm(dim=1).detach() * V.T)).square().sum().backward()
    layer(x).square().sum().backward()
    for p, q in ((a.A, A), (a.B, B), (a.m, m)): near(p.grad, q.grad, 1e-5)


@pytest.mark.parametrize('family', FAMILIES)
def test_starts_as_the_base(family):
    model = build(family)
    before = logits(model)
    for i, how in enumerate((dict(), dict(rslora=True), dict(dora=True))):
        lora.wrap(model, 3, 7, 'all', name=f'a{i}', **how)
        near(logits(model), before, 1e-5)
    for layer in lora.adapted(model).values():
        a, bound = layer.adapter(), layer.in_features ** -0.5              # Kaiming-uniform(sqrt 5)
        assert not a.B.any() and a.A.abs().max() <= bound and 0.7 < a.A.std() / bound * 3 ** 0.5 < 1.3


# ---- merging

def test_merged_every_subset():
    names = ('q', 'k', 'v', 'out', 'up', 'gate', 'down')
    base = build('llama')
    before = logits(base)
    for n in range(1, len(names) + 1):
        for some in itertools.combinations(names, n):
            model = disturb(lora.wrap(copy.deepcopy(base), 2, 5, ','.join(some)))
            apart = logits(model)
            far(apart, before)
            lora.merge(model)
            near(logits(model), apart)
            lora.unmerge(model)
            assert torch.equal(logits(model), apart)


@pytest.mark.parametrize('bits', (0, 8, 16))
@pytest.mark.parametrize('family', ('gpt2', 'llama', 'bert', 't5'))
def test_merge_unmerge_merge(family, bits):
    base = build(family)
    plain = {n: p.clone() for n, p in base.state_dict().items()}
    model = disturb(lora.wrap(base, 3, 7, 'all', dora=family == 'bert', bits=bits))
    apart = logits(model)
    for _ in range(2):
        lora.merge(model), lora.merge(model)                               # twice is once
        near(logits(model), apart)
        together = logits(model)
        with pytest.raises(ValueError, match='unmerge'): lora.use(model, '')
        lora.unmerge(model), lora.unmerge(model)
        assert torch.equal(logits(model), apart)
    if not bits: assert all(torch.equal(p, plain[n]) for n, p in model.state_dict().items() if n in plain)
    for mode in (True, False): model.train(mode)                           # changes nothing
    assert torch.equal(logits(model), apart)
    assert not {'train', 'eval'} & {k for c in (lora.Adapter, wrapped.Linear, wrapped.Held) for k in vars(c)}
    lora.merge(model, unload=True)
    assert {type(m) for m in lora.linears(model).values()} == {torch.nn.Linear} and model.state_dict().keys() == plain.keys()
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    near(logits(model), together, 2e-5)
    file = sys.modules[type(model).__module__]
    layout_of(file).to_hf(model)


def test_generates():
    model = disturb(lora.wrap(build('llama'), 3, 7, 'all'))
    ids = tokens(2, 5)
    text = sample.generate(model, ids, 9, temperature=0)
    assert not torch.equal(text, sample.generate(build('llama'), ids, 9, temperature=0))
    assert torch.equal(text, sample.generate(model, ids, 9, temperature=0, cache=False))
    lora.merge(model, unload=True)
    assert torch.equal(text, sample.generate(model, ids, 9, temperature=0))


# ---- what trains

@pytest.mark.parametrize('bits', (0, 8))
def test_only_adapters_train(bits):
    model = build('gpt2')
    lora.wrap(model, 2, 4, 'q,v,down', dropout=0.1, dora=True, bits=bits)
    base = {n: p.clone() for n, p in model.state_dict().items() if '.lora.' not in n}
    config = train.Config(learning_rate=1e-2, weight_decay=0.1)
    optimizer, = train.make_optimizers(model.train(), config)
    for group in optimizer.param_groups: group['lr'] = 1e-2
    losses, ids = [], tokens(3, 12)
    for _ in range(30):
        loss = model(ids[:, :-1], ids[:, 1:])[0]
        loss.backward()
        assert all((p.grad is not None) == ('.lora.' in n) for n, p in model.named_parameters())
        optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    assert {id(p) for p in optimizer.state} == {id(p) for n, p in model.named_parameters() if '.lora.' in n}
    assert all(torch.equal(p, base[n]) for n, p in model.state_dict().items() if n in base)


def test_dropout():
    model = disturb(lora.wrap(build('gpt2', dropout=0.0), 2, 4, dropout=0.5))
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


# ---- several adapters

def test_switch():
    model = build('bert', kind='labelled', n_labels=3)
    base = logits(model)
    lora.wrap(model, 2, 4, 'q', name='one', train='classifier,pooler')
    torch.nn.init.normal_(model.classifier.weight)
    one = logits(disturb(model, 1))
    lora.wrap(model, 3, 4, 'v,out', name='two', train='classifier', dora=True)
    two = logits(disturb(model, 2))
    assert not model.pooler.dense.weight.requires_grad if hasattr(model.pooler, 'dense') else not model.pooler.weight.requires_grad
    for name, seen in (('one', one), ('two', two), ('', base), ('one', one), ('', base), ('two', two)):
        lora.use(model, name)
        assert torch.equal(logits(model), seen)
        assert all(p.requires_grad == (bool(name) and (f'.lora.{name}.' in n or n.startswith('classifier') or n.startswith('pooler') and name == 'one'))
                   for n, p in model.named_parameters())
    far(one, base), far(two, one)
    with pytest.raises(ValueError, match="no adapter 'three': the model has one, two"): lora.use(model, 'three')
    with pytest.raises(ValueError, match="has an adapter 'two'"): lora.wrap(model, name='two')


# ---- the frozen base in fewer bits

def test_bytes():
    def size(model): return sum(t.numel() * t.element_size() for m in model.blocks.modules() for t in [*m._parameters.values(), *m._buffers.values()] if t is not None)
    model = build('llama', n_embd=240, head_dim=40, n_hidden=330)
    full, before = size(model), logits(model)
    for bits, share in ((16, 1 / 2), (8, 1 / 4)):
        small = lora.wrap(copy.deepcopy(model), 1, 1, 'q', bits=bits)
        assert share < size(small) / full < share + 0.05
        near(logits(small), before, 0.03)
        assert all(p.dtype == torch.float32 for n, p in small.named_parameters())
        for name, layer in lora.adapted(small).items():
            W, got = model.get_submodule(name).weight, layer.weight
            step = W.abs().amax(dim=1, keepdim=True) / 127 if bits == 8 else W.abs() / 128
            assert ((got - W).abs() <= step / 2 * 1.001).all()


def test_held_gradient_and_memory():
    """Backward is that of the same matrix in fp32, and keeps no fp32 copy of it from the forward pass."""
    x, layer = torch.randn(5, 64, requires_grad=True), torch.nn.Linear(64, 96)
    layer.requires_grad_(False)
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([layer])
    lora.hold(model, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t): y = layer(x)
    assert sum(t.numel() * t.element_size() for t in kept) < 96 * 64 * 2
    y.square().sum().backward()
    z = torch.nn.functional.linear(u := x.detach().requires_grad_(), layer.weight, layer.bias)
    z.square().sum().backward()
    near(y, z, 1e-6), near(x.grad, u.grad, 1e-6)


@pytest.mark.parametrize('bits', (0, 8, 16))
def test_autocast_bf16_and_compile(bits):
    for dora in (False, True):
        model = disturb(lora.wrap(build('gpt2'), 2, 4, 'all', dora=dora, bits=bits))
        exact = logits(model)
        with torch.autocast('cpu', torch.bfloat16):
            near(logits(model).float(), exact, 0.03)
            assert model.blocks[0].mlp.down(torch.randn(3, 168)).dtype == torch.bfloat16
        assert torch.equal(torch.compile(model.logits, backend='eager', fullgraph=True)(tokens(2, 13)), exact)
        half = copy.deepcopy(model).bfloat16()
        near(logits(half).float(), exact, 0.05)
        lora.merge(half, unload=True)
        near(logits(half).float(), exact, 0.05)


# ---- errors

def test_refused():
    model = build('gpt2')
    with pytest.raises(ValueError, match='head: its matrix is the table of tokens too'): lora.wrap(model, match='q,head')
    with pytest.raises(ValueError, match="match='qq' fits no linear layer: this model has q, k, v, qkv, out, up, down, head"): lora.wrap(model, match='v,qq')
    with pytest.raises(ValueError, match='as a whole and its parts'): lora.wrap(model, match='q,qkv')
    with pytest.raises(ValueError, match='match'): lora.wrap(model, match=' ')
    with pytest.raises(ValueError, match='rank=0'): lora.wrap(model, 0)
    with pytest.raises(ValueError, match='dropout=1'): lora.wrap(model, dropout=1.0)
    with pytest.raises(ValueError, match='bits'): lora.wrap(model, bits=4)
    with pytest.raises(ValueError, match="no 'classifer'"): lora.wrap(model, train='classifer')
    with pytest.raises(ValueError, match='shared'): lora.wrap(model, train='tokens')
    with pytest.raises(ValueError, match='wrap'): lora.merge(model)
    with pytest.raises(ValueError, match='letters'): lora.wrap(model, name='a.b')
    assert not hasattr(model, 'lora') and not lora.adapted(model)          # nothing was changed on the way
    model = build('gpt2', tied=False)
    far(logits(disturb(lora.wrap(model, match='head'))), logits(build('gpt2', tied=False)))
    assert lora.matching(model, 'blocks.1.attention.qkv,blocks.0.mlp.up') == {'blocks.1.attention.qkv': [[0, 126]], 'blocks.0.mlp.up': [[0, 168]]}


# ---- files of our own

def test_own_files(tmp_path):
    """A model that transformers has not, and what a checkpoint holds."""
    odd = dict(positions='rotary', norm='rmsnorm', qk_norm=True, activation='relu2', bias=False, n_embd=36)
    model = disturb(lora.wrap(build('gpt2', **odd), 3, 7, 'k,down', rslora=True, dropout=0.1))
    seen = logits(model)
    assert not lora.save(model, tmp_path / 'a')
    torch.save(dict(model=lora.state(model), lora=lora.settings(model), config={}, model_name='gpt'), tmp_path / 'ckpt.pt')
    size = sum(w.numel() for w in files.read_safetensors(str(tmp_path / 'a' / 'adapter_model.safetensors')).values())
    assert size == sum(p.numel() for p in model.parameters() if p.requires_grad)               # the adapter alone
    for path in (tmp_path / 'a', tmp_path, tmp_path / 'ckpt.pt'):
        new = lora.load(build('gpt2', **odd), str(path), name='x')
        assert torch.equal(logits(new), seen) and lora.settings(new) == lora.settings(model)
    lora.load_state(new, lora.settings(model), {n: w * 0 for n, w in lora.state(model).items()}, 'x')
    near(logits(new), logits(build('gpt2', **odd)), 1e-6)
    with pytest.raises(ValueError, match='of another model'): lora.load(build('llama', n_layer=1), str(tmp_path / 'a'))
    with pytest.raises(ValueError, match='has'): lora.load(build('gpt2', **dict(odd, n_embd=48)), str(tmp_path / 'a'))
    with pytest.raises(FileNotFoundError, match='adapter_config.json'): lora.load(model, str(tmp_path / 'a' / '..' / '..'))
    good, state = lora.settings(model), lora.state(model)
    for odd_state in (dict(list(state.items())[1:]), state | {'tokens.lora_A': torch.zeros(2)}):
        with pytest.raises(ValueError, match='file and its settings differ'): lora.load_state(build('gpt2', **odd), good, odd_state)
    layer = next(iter(good['layers']))
    for change in (dict(scale=math.inf), dict(scale=math.nan), dict(rank=10 ** 9), dict(rank=0), dict(spans=[[0, 10 ** 9]]), dict(spans=[[0, 7], [5, 9]]), dict(spans=[[5, 5]]), dict(spans=[[7, 5]]), dict(spans=[[0, 2.5]])):
        with pytest.raises(ValueError, match=f"settings are damaged: {layer} has"):
            lora.load_state(build('gpt2', **odd), good | dict(layers=good['layers'] | {layer: good['layers'][layer] | change}), state)
    for dropout in (1, -0.1, math.nan):
        with pytest.raises(ValueError, match='settings are damaged: it has'): lora.load_state(build('gpt2', **odd), good | dict(dropout=dropout), state)
    torch.save(dict(model={}, config={}, model_name='gpt'), tmp_path / 'ckpt.pt')
    with pytest.raises(ValueError, match='whole model'): lora.load(model, str(tmp_path), 'y')


# ---- peft

@pytest.fixture(scope='module')
def hf():
    transformers, peft = pytest.importorskip('transformers'), pytest.importorskip('peft')
    transformers.logging.set_verbosity_error()
    def opened(model, folder):
        export_hf(sys.modules[type(model).__module__], model, None, str(folder))
        cls = getattr(transformers, json.load(open(folder / 'config.json'))['architectures'][0])
        return cls.from_pretrained(folder).eval()
    opened.peft = peft
    return opened


@torch.no_grad()
def theirs(model):
    kind, ids = model.config.model_type, tokens(2, 13)
    return model(input_ids=ids, decoder_input_ids=tokens(2, 7, seed=3)).logits if kind == 't5' else model(input_ids=ids).logits


HOWS = {'plain': dict(), 'rslora': dict(rslora=True), 'dora': dict(dora=True)}

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('family, match, how', [(f, m, h) for f in FAMILIES for m in ('q,v', 'all', 'k,down', 'out') for h in HOWS
                                                if m == 'all' or h == 'plain' or f in ('gpt2', 't5')])
def test_peft_reads_ours(family, match, how, hf, tmp_path):
    model = build(family)
    base = hf(model, tmp_path / 'base')
    near(theirs(base), before := logits(model))
    disturb(lora.wrap(model, 3, 7, match, **HOWS[how]))
    far(seen := logits(model), before)
    assert lora.save(model, tmp_path / 'lora')
    near(theirs(hf.peft.PeftModel.from_pretrained(base, tmp_path / 'lora')), seen)
    again = lora.load(build(family), str(tmp_path / 'lora'))
    near(logits(again), seen)
    lora.merge(model)
    assert lora.save(model, tmp_path / 'merged')                           # the same files while merged
    a, b = (files.read_safetensors(str(tmp_path / f / 'adapter_model.safetensors')) for f in ('lora', 'merged'))
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


THEIR = {'gpt2': (['c_attn'], ['c_attn', 'c_proj', 'c_fc']), 'llama': (['q_proj', 'v_proj'], 'all-linear'), 'bert': (['query', 'value'], ['key', 'dense']),
         't5': (['q', 'v'], ['k', 'o', 'wi', 'wo']), 'neox': (['query_key_value'], ['query_key_value', 'dense_h_to_4h']), 'albert': (['query', 'ffn'],),
         'modernbert': (['Wqkv'], ['Wi', 'Wo'])}

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('how', HOWS)
@pytest.mark.parametrize('family', THEIR)
def test_ours_reads_peft(family, how, hf, tmp_path):
    for i, targets in enumerate(THEIR[family]):
        model = build(family, kind='labelled', n_labels=3) if family == 'bert' and i == 0 else build(family)
        base = hf(model, tmp_path / f'base{i}')
        patterns = dict(rank_pattern={'q_proj': 5, 'c_attn': 2}, alpha_pattern={'v_proj': 11, 'wo': 2}) if how == 'rslora' else {}
        save = ['classifier'] if hasattr(model, 'classifier') else None
        one = hf.peft.get_peft_model(base, hf.peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets, use_rslora=how == 'rslora', use_dora=how == 'dora',
                                                              modules_to_save=save, exclude_modules=['pooler.dense', 'transform.dense'], **patterns)).eval()
        torch.manual_seed(5)
        with torch.no_grad():
            for n, p in one.named_parameters():
                if p.requires_grad: p.add_(torch.randn_like(p) * 0.2)
        one.save_pretrained(tmp_path / f'lora{i}')
        far(seen := theirs(one), logits(model))
        lora.load(model, str(tmp_path / f'lora{i}'))
        near(logits(model), seen)
        lora.save(model, tmp_path / 'back')                                # and written again, read again
        near(theirs(hf.peft.PeftModel.from_pretrained(hf(build(family, **dict(kind='labelled', n_labels=3) if save else {}), tmp_path / 'b'), tmp_path / 'back')), seen)


def test_peft_refused(tmp_path):
    model = build('llama')
    lora.save(lora.wrap(model, 2, 2), tmp_path)
    file = tmp_path / 'adapter_config.json'
    good = json.load(open(file))
    for change, words in ((dict(bias='all'), "bias='all'"), (dict(init_lora_weights='pissa_niter_4'), 'pissa'), (dict(r=None), '"r"'), (dict(use_dora=True), 'q_proj: its')):
        file.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=words): lora.load(build('llama'), str(tmp_path))
    file.write_text(json.dumps(good))
    with pytest.raises(ValueError, match='another model'): lora.load(build('gpt2'), str(tmp_path))
    with pytest.raises(ValueError, match='does not fit'): lora.load(build('llama', n_embd=48), str(tmp_path))
    tensors = files.read_safetensors(str(tmp_path / 'adapter_model.safetensors'))
    for more, words in (({'base_model.model.q_proj.lora_A.weight': torch.zeros(2, 36)}, 'has q_proj.weight, which this model has not'),
                        ({'base_model.model.model.norm.weight': torch.zeros(3)}, r'model.norm.weight is \(3,\), the model has')):
        files.write_safetensors(str(tmp_path / 'adapter_model.safetensors'), tensors | more)
        with pytest.raises(ValueError, match=words): lora.load(build('llama'), str(tmp_path))
    file.write_text('{')
    with pytest.raises(ValueError, match='not JSON'): lora.load(model, str(tmp_path))


@pytest.mark.parametrize('path', [('dropout',), ('heads',), ('kind',), ('layers',), ('layers', 'blocks.0.attention.qkv', 'rank'), ('layers', 'blocks.0.attention.qkv', 'spans')])
def test_a_tensor_among_the_settings_of_a_file_is_refused(path):
    """An expanded one has a billion numbers in a file of some bytes: a comparison would make a billion more."""
    build = lambda: gpt.Model(gpt.Config(n_layer=1, n_head=2, n_embd=24, vocab_size=31, block_size=16))
    model = lora.wrap(build(), rank=2)
    settings, tensors = copy.deepcopy(lora.settings(model)), lora.state(model)
    node = settings
    for key in path[:-1]: node = node[key]
    assert path[-1] in node
    node[path[-1]] = torch.zeros(1).expand(10 ** 9)
    with pytest.raises(ValueError, match='a tensor stands among them'): lora.load_state(build(), settings, tensors)
