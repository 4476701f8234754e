"""electra.py: against transformers in both directions, each objective against a slow reference written out here, tiny odd sizes."""
import ast, dataclasses, math, re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import bert, bpe, electra, train
from data import files
from data.rows import Random, keyed
from lib import detection
from lib import flops, models, tasks
from lib.models import layout_of
from lib.export import export_hf
from lib.weights import build_model

tf = pytest.importorskip('transformers')
tf.logging.set_verbosity_error()
tf.utils.logging.disable_progress_bar()

TINY = dict(vocab_size=99, block_size=37, n_layer=2, n_head=3, n_embd=30, n_hidden=44, embed_dim=14, generator_size=0.5, dropout=0.0, attention_dropout=0.0,
            eot_id=4, pad_id=0, cls_id=1, sep_id=2, mask_id=3)
EQUAL = dict(generator_size=1.0, generator_heads=3)
OBJECTIVES = {o: dict(objective=o) for o in electra.objectives} | dict(
    untied=dict(share='none'), one=dict(share='all', **EQUAL), no_projection=dict(embed_dim=0, vocab_multiple=16, generator_layers=1))
PRETRAINING = [o for o in OBJECTIVES if o != 'mlm']


def small(**changes): return electra.Config(**{**TINY, **changes})


def text_of(rows=8, seed=0, low=10, high=99):
    """A draw for `rows` rows of random text, some ends of documents in it, and the text."""
    text = np.random.default_rng(seed).integers(low, high, (rows, 400))
    text[:, 7::50] = 4
    return lambda length, overlap=0, stream=0: text[:, :length].copy(), text


def make_batch(config, rows=8, seed=0, step=0):
    return electra.batch(text_of(rows, seed)[0], config, Random(keyed(seed, step, np.arange(rows))))


def tensors(arrays): return [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]


def model_of(config, seed=0, spread=0.1):
    """A model whose every parameter is away from 0 and 1, so that a forgotten bias or norm shows."""
    torch.manual_seed(seed)
    model = electra.Model(config)
    with torch.no_grad():
        for p in model.parameters(): p.add_(spread * torch.randn_like(p))
    return model.eval()


# ---------------------------------------------------------------------------------------------------- twins

def test_twins_are_the_same_in_both_files():
    """What is marked stands in bert.py, letter for letter; and the encoder that is written shorter here gives BERT's numbers."""
    def parts(file):
        source = open(file, encoding='utf-8').read()
        found, lines = {}, source.splitlines()
        def visit(node, path):
            for n in node.body:
                if isinstance(n, (ast.FunctionDef, ast.ClassDef)):
                    first = min([n.lineno, *(d.lineno for d in n.decorator_list)])
                    found[path + n.name] = '\n'.join(lines[first - 1:n.end_lineno]), lines[first - 2].strip() == '# same as bert.py'
                    if isinstance(n, ast.ClassDef): visit(n, path + n.name + '.')
        visit(ast.parse(source), '')
        return found
    ours, theirs = parts(electra.__file__), parts(bert.__file__)
    assert parts(tasks.__file__)['role'] == (theirs['role'][0], True)      # which a model file cannot take from lib/
    marked = [n for n, (_, twin) in ours.items() if twin]
    assert len(marked) == open(electra.__file__, encoding='utf-8').read().count('# same as bert.py') >= 11
    for name in marked: assert ours[name][0] == theirs[name][0], f'{name} differs from bert.py'

    for changes in ({}, dict(positions='rotary', pre_norm=True, gated=True)):
        config = small(kind='none', **changes)
        model = model_of(config)
        common = {f.name for f in dataclasses.fields(bert.Config)} & {f.name for f in dataclasses.fields(electra.Config)}
        twin = bert.Model(bert.Config(**{n: getattr(config, n) for n in common})).eval()
        if config.pre_norm: twin.encoder.blocks[0].norm_1 = bert.LayerNorm(twin.config, 30)      # there the embeddings come normed
        twin.load_state_dict(model.state_dict(), strict=True)
        ids, mask = torch.randint(0, 99, (3, 20)), torch.rand(3, 20) > 0.3
        for args in ((ids,), (ids, ids % 2, mask)): assert (model.hidden(*args) - twin.hidden(*args)).abs().max() < 1e-5


def test_a_residual_stream_in_bf16(residual_streams):
    residual_streams(lambda on: model_of(small(residual_autocast=on)), electra.Block, tensors(make_batch(small())), 0.05)


def test_imports_recipes_and_flags():
    fields = {f.name for f in dataclasses.fields(electra.Config)} | {f.name for f in dataclasses.fields(train.Config)}
    for values in (electra.recipe, electra.finetune, *electra.recipes.values()): assert set(values) <= fields | {'preset'}
    assert set(electra.recipes) <= set(electra.presets) and electra.recipe['preset'] in electra.presets
    tree = ast.parse(open(electra.__file__, encoding='utf-8').read())
    imports = lambda nodes: {a.name.split('.')[0] for n in nodes if isinstance(n, ast.Import) for a in n.names} | {n.module.split('.')[0] for n in nodes if isinstance(n, ast.ImportFrom)}
    assert imports(tree.body) <= {'torch', 'numpy', 'dataclasses', 'functools', 'json', 'math'}
    assert imports([n for n in ast.walk(tree) if n not in tree.body]) <= {'lib'}               # what a flag asks for
    for changes, message in ((dict(objective='electr'), "'electr'"), (dict(share='some'), "'some'"), (dict(n_head=4), 'multiple of n_head=4'), (dict(mask_rate=1.5), 'share'),
                             (dict(positions='sinusoidal'), "'sinusoidal'"), (dict(positions='rotary', n_embd=15, n_head=3, generator_size=1.0), 'is odd'),
                             (dict(share='all'), '--generator_size=1'), (dict(generator_steps=5), '--generator_size=1 --share=none'), (dict(generator_steps=5, **EQUAL), '--share=none'),
                             (dict(generator_heads=4), '--generator_heads'), (dict(generator_size=-1.0), 'generator_size=-1'), (dict(generator_size=0.01), '0 wide')):
        with pytest.raises(ValueError, match=message): small(**changes)


# ---------------------------------------------------------------------------------------------------- sizes

SIZES = {'electra-small': (14, dict(max_position_embeddings=128)), 'electra-small-pp': (14, {}),
         'electra-base': (110, dict(embedding_size=768, hidden_size=768, num_attention_heads=12, intermediate_size=3072)),
         'electra-large': (335, dict(embedding_size=1024, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096))}
GENERATORS = {'electra-small': (64, 1, 12, 256), 'electra-small-pp': (256, 4, 12, 1024), 'electra-base': (256, 4, 12, 1024), 'electra-large': (256, 4, 24, 1024)}


@pytest.mark.parametrize('preset', SIZES)
def test_presets_have_the_sizes_of_the_paper(preset):
    """Millions of the paper, exact numbers of transformers: discriminator, and generator with the embeddings it shares."""
    config = electra.Config(**electra.presets[preset])
    with torch.device('meta'):
        model, generator = electra.Model(config), electra.Model(electra.generator_config(config))
        hf = tf.ElectraForPreTraining(tf.ElectraConfig(**SIZES[preset][1]))
        width, heads, layers, hidden = GENERATORS[preset]
        theirs = tf.ElectraForMaskedLM(tf.ElectraConfig(**{**SIZES[preset][1], 'hidden_size': width, 'num_attention_heads': heads, 'intermediate_size': hidden}))
    count = lambda m: sum(p.numel() for p in m.parameters())
    own = sum(p.numel() for n, p in model.named_parameters() if not n.startswith('generator.'))
    assert own == count(hf) and abs(own / 1e6 / SIZES[preset][0] - 1) < 0.04
    assert config.generator == GENERATORS[preset] and count(generator) == count(theirs)
    assert count(model) - own == count(theirs) - count(model.embeddings)


# ---------------------------------------------------------------------------------------------------- hidden tokens

def test_a_batch():
    """Exactly K different places, never a special token, 85 % of them hidden and none random, the text comes back."""
    config, shares, spread = small(block_size=202), np.zeros(2), np.zeros(202)
    for step in range(20):
        arrays = ids, picks, targets = make_batch(config, 64, step=step)
        places, u = picks[:, 0], picks[:, 1]
        assert ids.shape == (64, 202) and picks.shape == (64, 2, 30) and targets.shape == (64, 30) and config.n_masked == 30
        assert (np.diff(places, axis=1) > 0).all() and (targets >= 0).all() and not np.isin(targets, (0, 1, 2, 3, 4)).any()
        assert electra.count(*arrays) == (64 * 30, 64 * 202)
        new, restored = np.take_along_axis(ids, places, 1), ids.copy()
        assert ((new == 3) | (new == targets)).all() and (ids == 3).sum() == (new == 3).sum()
        np.put_along_axis(restored, places, targets, 1)
        assert (restored[:, 1:-1] == text_of(64)[1][:, :200]).all() and (restored[:, 0] == 1).all() and (restored[:, -1] == 2).all()
        shares += (new == 3).mean(), (u / 2 ** 31).mean()
        spread += np.bincount(places.ravel(), minlength=202)
        assert u.min() >= 0 and u.max() < 2 ** 31
    assert abs(shares / 20 - (0.85, 0.5)).max() < 0.008
    spread = spread[[i for i in range(1, 201) if (i - 8) % 50]]            # 196 places, 38,400 choices: 196 +- 13 times
    assert abs(spread / spread.mean() - 1).max() < 0.35
    a, b = make_batch(config, 8), electra.batch(lambda *x, **k: text_of(8)[1][3:5, :200], config, Random(keyed(0, 0, np.arange(3, 5))))
    for x, y in zip(a, b): assert (x[3:5] == y).all()                      # a row does not depend on the others


def test_places_that_do_not_count():
    """A row of separators has no targets: its tokens stay, count as real, and the numbers of targets differ by row."""
    config = small(mask_rate=0.3)
    draw, text = text_of()
    text[2], text[3, 5:] = 4, 4
    arrays = ids, picks, targets = electra.batch(draw, config, Random(keyed(0, np.arange(8))))
    assert (targets[2] == -1).all() and (targets[3] >= 0).sum() == 5 and electra.count(*arrays) == ((targets >= 0).sum(), ids.size)
    model = model_of(config)
    for objective in OBJECTIVES:
        model = model_of(small(mask_rate=0.3, **OBJECTIVES[objective]))
        assert all(torch.isfinite(v) for v in model(*tensors(arrays))[1].values())
    one = tensors([a[2:3] for a in arrays])
    loss, stats = model_of(config)(*one)
    logits = model_of(config).logits(one[0])
    assert stats['generator_loss'] == 0 and stats['replaced'] == 0 and abs(loss - 50 * F.softplus(logits).mean()) < 1e-4
    with pytest.raises(ValueError, match='no mask token.*--tokenizer=bpe'): make_batch(small(mask_id=-1))


def test_samples_follow_the_distribution():
    logits = torch.tensor([[0.0, -math.inf, 2.0, 1.0, -3.0, -math.inf]]).expand(40000, -1)
    got = torch.bincount(electra.sample(logits, torch.from_numpy(Random(keyed(3)).integers(0, 2 ** 31, 40000)[0])), minlength=6) / 40000
    assert (got - logits[0].softmax(0)).abs().max() < 0.01 and got[1] == got[5] == 0
    ends = torch.tensor([0, 2 ** 31 - 1])                                  # the first and the last token that can be
    assert electra.sample(logits[:2], ends).tolist() == [0, 4]
    many = torch.randn(2, 50000, generator=torch.Generator().manual_seed(0))
    cdf, u = many.double().softmax(1).cumsum(1), torch.tensor([123456789, 2000000000])
    assert electra.sample(many, u).tolist() == torch.searchsorted(cdf, (u / 2 ** 31)[:, None].double(), right=True)[:, 0].tolist()
    assert electra.sample(torch.full((1, 5), math.nan), ends[1:]).item() in range(5)       # the loss reports it


# ---------------------------------------------------------------------------------------------------- objectives

def reference(model, arrays):
    """Loss and stats by their definition, token by token: plain lists, log-softmax, no ties of shapes or sums."""
    c = model.config
    ids, picks, targets = tensors(arrays)
    generator = electra.Model(electra.generator_config(c))
    shared = {n: p for n, p in model.named_parameters(remove_duplicate=False) if not n.startswith('generator.')}
    own = {n[10:]: p for n, p in model.named_parameters(remove_duplicate=False) if n.startswith('generator.')}
    state = {n: own[n] if n in own else shared[n] for n in generator.state_dict()}
    class Logits(torch.nn.Module):
        def __init__(self): super().__init__(); self.g = generator
        def forward(self, x): return self.g.logits(x)
    y = torch.func.functional_call(Logits(), {'g.' + n: w for n, w in state.items()}, (ids,)).log_softmax(-1)      # (B, T, V)
    row, original, picked = ids.clone(), ids.clone(), []
    g_loss, hits = 0, 0
    for b in range(len(ids)):
        for k, t in enumerate(targets[b].tolist()):
            if t < 0: continue
            place, u = picks[b, 0, k].item(), picks[b, 1, k].item()
            g_loss = g_loss - y[b, place, t]
            hits += int(y[b, place].argmax() == t)
            row[b, place] = int((y[b, place].detach().double().exp().cumsum(0) <= u / 2 ** 31).sum())
            original[b, place] = t
            picked.append((b, place))
    n, real = len(picked), ids.numel()
    fake = row != original
    x = model.hidden(row)
    bce = lambda b, t: F.softplus(-model.detector(x[b, t])) if fake[b, t] else F.softplus(model.detector(x[b, t]))
    places = picked if c.objective in ('electra-15', 'replace-mlm') else [(b, t) for b in range(len(ids)) for t in range(ids.size(1))]
    if c.objective == 'replace-mlm': d_loss = sum(-model.mlm(x[p]).log_softmax(0)[original[p]] for p in places) / n
    elif c.objective == 'all-tokens-mlm':
        d_loss = 0
        for p in places:
            copy = 1 - model.detector(x[p]).sigmoid()
            d_loss = d_loss - (copy * (row[p] == original[p]) + (1 - copy) * model.mlm(x[p]).softmax(0)[original[p]]).log() / real
    else: d_loss = sum(bce(*p) for p in places) / len(places)
    weight = 1 if c.objective.endswith('mlm') else c.disc_weight
    stats = dict(generator_loss=g_loss / n, generator_accuracy=hits / n, replaced=fake.float().mean(), discriminator_loss=d_loss)
    return g_loss / n + weight * d_loss, stats, row, fake, places


@pytest.mark.parametrize('name', PRETRAINING)
def test_loss_and_gradients_against_a_slow_reference(name):
    """All objectives and ways to share; and what precision, recall and the area under the curve count, against sklearn."""
    from sklearn import metrics
    config = small(mask_rate=0.3, **OBJECTIVES[name])
    model, arrays = model_of(config), electra.batch(text_of(5, high=17)[0], config, Random(keyed(0, np.arange(5))))
    with torch.no_grad(): model.generator.mlm.decoder.bias[10:17] += 4.0   # so that some samples are the original
    loss, stats = model(*tensors(arrays))
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}       # a missing one is an unused parameter
    model.zero_grad()
    want, expected, row, fake, places = reference(model, arrays)
    want.backward()
    assert abs(loss - want) < 1e-4 * want
    for k, v in expected.items(): assert abs(stats[k] - v) < 1e-4, k
    assert 0.1 < stats['replaced'] < 0.3
    for n, p in model.named_parameters(): assert (p.grad - grads[n]).abs().max() < 2e-4 * max(1, p.grad.abs().max()), n
    assert all(g.abs().max() > 0 for n, g in grads.items())
    got = electra.summary({k: v.item() for k, v in stats.items()})
    if not config.has_detector: return
    at = tuple(zip(*places))
    score, truth = model.logits(row)[at].detach().numpy(), fake[at].numpy()
    rows = [np.equal(at[0], i) for i in range(len(row))]
    auc = sum(r.sum() * (metrics.roc_auc_score(truth[r], score[r]) if 0 < truth[r].sum() < r.sum() else 0.5) for r in rows) / len(truth)
    assert not {'caught', 'flagged'} & set(got)
    assert abs(got['precision'] - metrics.precision_score(truth, score > 0)) < 1e-5 and abs(got['recall'] - metrics.recall_score(truth, score > 0)) < 1e-5
    assert abs(got['auc'] - auc) < 1e-4 and 0 < got['precision'] < 1 and 0 < got['recall'] <= 1


def test_plain_masked_language_model():
    """objective=mlm is what a generator's folder holds; it trains, as BERT does on the same hidden tokens."""
    model, arrays = model_of(small(objective='mlm')), make_batch(small())
    ids, picks, targets = tensors(arrays)
    y = model.logits(ids).gather(1, picks[:, 0, :, None].expand(-1, -1, 99)).flatten(0, 1)
    loss, stats = model(ids, picks, targets)
    assert abs(loss - F.cross_entropy(y, targets.flatten(), ignore_index=-1)) < 1e-5
    assert abs(stats['accuracy'] - (y.argmax(1) == targets.flatten())[targets.flatten() >= 0].float().mean()) < 1e-6


@pytest.mark.parametrize('name', OBJECTIVES)
def test_parts_of_a_batch_add_up(name):
    """1 x 8, 4 x 2 and 8 x 1 with unequal numbers of targets: equal loss, stats and gradients, because samples belong to rows."""
    config = small(mask_rate=0.3, **OBJECTIVES[name])
    draw, text = text_of()
    text[2], text[3, 5:] = 4, 4
    arrays = electra.batch(draw, config, Random(keyed(0, np.arange(8))))
    totals, model, runs = torch.tensor([float(n) for n in electra.count(*arrays)]), model_of(config), []
    for size in (8, 2, 1):
        model.zero_grad()
        parts = [model(*tensors([x[i:i + size] for x in arrays]), totals=totals) for i in range(0, 8, size)]
        for loss, _ in parts: loss.backward()
        sums = {k: sum(s[k] for _, s in parts) for k in parts[0][1]} | {'loss': sum(l for l, _ in parts).detach()}
        runs.append((sums, {n: p.grad.clone() for n, p in model.named_parameters()}))
    assert abs(model(*tensors(arrays))[0] - runs[0][0]['loss']) < 1e-4     # without totals: a plain mean
    for sums, grads in runs[1:]:
        for k, v in sums.items(): assert abs(v - runs[0][0][k]) < 1e-4, k
        for n, g in grads.items(): assert (g - runs[0][1][n]).abs().max() < 1e-4, n


def test_lambda_and_what_each_loss_moves():
    arrays = tensors(make_batch(small()))
    losses = {}
    for weight in (0.0, 1.0, 50.0):
        model = model_of(small(disc_weight=weight, share='none')).train()
        loss, stats = model(*arrays)
        losses[weight] = loss.item()
        assert set(stats) == {'generator_loss', 'discriminator_loss', 'replaced'}
    assert abs(losses[0.0] - stats['generator_loss']) < 1e-5 and abs(losses[50.0] - losses[0.0] - 50 * (losses[1.0] - losses[0.0])) < 1e-3
    # the discriminator's loss alone reaches the generator neither by its weights nor by the samples
    model = model_of(small(share='none'))
    loss, _ = model(*arrays)
    only = lambda w: dict(zip([n for n, _ in model.named_parameters()], torch.autograd.grad(w(loss), list(model.parameters()), retain_graph=True, allow_unused=True)))
    both, mlm = only(lambda l: l), {}
    model.config = dataclasses.replace(model.config, disc_weight=0.0)
    mlm = dict(zip(both, torch.autograd.grad(model(*arrays)[0], list(model.parameters()), allow_unused=True)))
    for n, g in both.items():
        if n.startswith('generator.'): assert (g - mlm[n]).abs().max() < 1e-6, n
        else: assert g.abs().max() > 0 and mlm[n].abs().max() == 0, n


def test_a_sample_that_is_the_original_is_real():
    """A generator that is sure of the truth replaces nothing; one that is sure of another token replaces all, at the chosen places alone."""
    model, arrays = model_of(small()), make_batch(small())
    ids, picks, targets = tensors(arrays)
    whole = ids.scatter(1, picks[:, 0], targets)
    for constant, share in ((False, 0.0), (True, 1.0)):
        sure = torch.full((targets.numel(), 99), -50.0)
        sure[torch.arange(targets.numel()), 5 if constant else targets.flatten()] = 50.0
        model.generator.mlm.forward = lambda x: sure
        loss, stats = model(ids, picks, targets)
        assert abs(stats['replaced'] - share * targets.numel() / ids.numel()) < 1e-6 and stats['generator_accuracy'] == 1 - share
        row = ids.scatter(1, picks[:, 0], 5) if constant else whole
        y = model.logits(row)
        want = F.binary_cross_entropy_with_logits(y, (row != whole).float())
        assert abs(stats['discriminator_loss'] - want) < 1e-5
    model.generator.mlm.forward = lambda x: torch.full((targets.numel(), 99), -50.0).index_fill(1, torch.tensor([0]), 50.0)
    assert model(ids, picks, targets)[1]['replaced'] > 0                   # token 0 is a token


def test_area_under_the_curve():
    from sklearn.metrics import roc_auc_score
    g = torch.Generator().manual_seed(0)
    scores, positive, judged = torch.randint(0, 9, (5, 41), generator=g).float(), torch.rand(5, 41, generator=g) > 0.8, torch.rand(5, 41, generator=g) > 0.3
    positive = positive & judged                                           # many ties
    got = detection.area_under_curve(scores, positive, judged)
    for i in range(5): assert abs(got[i] - roc_auc_score(positive[i, judged[i]], scores[i, judged[i]])) < 1e-5
    assert (detection.area_under_curve(scores, torch.zeros_like(positive), judged) == 0.5).all()
    assert electra.summary(dict(caught=0.0, flagged=0.0, replaced=0.0, auc=0.5)) == dict(precision=0.0, recall=0.0, replaced=0.0, auc=0.5)


@pytest.mark.parametrize('name', OBJECTIVES)
def test_the_first_loss(name):
    """ln V of the generator and 50 ln 2 of the discriminator: nothing is known yet."""
    config = small(**OBJECTIVES[name])
    torch.manual_seed(0)
    loss, stats = electra.Model(config).eval()(*tensors(make_batch(config, 32)))
    want = {'mlm': 0, 'replace-mlm': math.log(99), 'all-tokens-mlm': -0.85 * math.log(0.5 + 0.5 / 99) - 0.15 * math.log(0.5 / 99)}.get(config.objective, 50 * math.log(2))
    assert abs(loss - math.log(99) - want) < 0.3
    if config.has_detector: assert abs(stats['auc'] - 0.5) < 0.15


def test_summary_of_stage_one_and_what_fine_tuning_leaves_out():
    stage = dict(generator_loss=3.0, replaced=0.1, generator_accuracy=0.2, discriminator_loss=0.0, caught=0.0, flagged=0.0, auc=0.0)
    assert electra.summary(stage) == dict(generator_loss=3.0, replaced=0.1, generator_accuracy=0.2)
    assert electra.summary(stage | dict(discriminator_loss=0.3, caught=0.05, flagged=0.1)) == dict(
        generator_loss=3.0, replaced=0.1, generator_accuracy=0.2, discriminator_loss=0.3, auc=0.0, precision=0.5, recall=0.5)
    assert electra.finetune['generator_steps'] == 0                        # else stage one would overwrite the discriminator


@pytest.mark.parametrize('name', ['electra', 'replace-mlm', 'all-tokens-mlm', 'mlm'])
def test_one_batch_is_learned_by_heart(name):
    """The discriminator's weight is 50: its 0.05 is 2.5 of a sum that began at 39."""
    config = small(**OBJECTIVES[name], **EQUAL)
    torch.manual_seed(0)
    model, arrays = electra.Model(config).train(), tensors(make_batch(config, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(240):
        loss, stats = model(*arrays)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    assert loss < (4.0 if name == 'electra' else 0.1) and stats.get('generator_loss', loss) < (0.5 if name == 'electra' else 0.1)


def test_a_discriminator_learns_to_catch():
    """Beside a generator that stays as it began, the discriminator learns what belongs into the text."""
    config = small(n_layer=1, mask_rate=0.3, share='none')
    torch.manual_seed(0)
    model = electra.Model(config)
    optimizer = torch.optim.AdamW([p for n, p in model.named_parameters() if not n.startswith('generator.')], lr=5e-3)
    base = np.arange(400) % 11 + 20
    for step in range(60):
        shift = np.random.default_rng(step).integers(0, 11, 16)
        arrays = electra.batch(lambda n, overlap=0, stream=0: np.stack([base[s:s + n] for s in shift]), config, Random(keyed(step, np.arange(16))))
        loss, _ = model(*tensors(arrays))
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    stats = electra.summary({k: v.item() for k, v in model.eval()(*tensors(arrays))[1].items()})
    assert stats['auc'] > 0.9 and stats['precision'] > 0.9 and stats['recall'] > 0.8, stats


@pytest.mark.parametrize('name', OBJECTIVES)
def test_one_compiled_graph(name):
    config = small(**{'n_layer': 1, **OBJECTIVES[name]})
    torch._dynamo.reset()
    model, arrays = model_of(config), tensors(make_batch(config, 4))
    fast = torch.compile(model, backend='eager', fullgraph=True)
    for training in (True, False):
        model.train(training)
        a, b = fast(*arrays, totals=torch.tensor([9.0, 99.0])), model(*arrays, totals=torch.tensor([9.0, 99.0]))
        assert abs(a[0] - b[0]) < 1e-4 and set(a[1]) == set(b[1])
    if name != 'untied': return
    model = model_of(small(n_layer=1, share='none', generator_steps=2, **EQUAL)).train()
    fast = torch.compile(model, backend='eager', fullgraph=True)           # a graph for each stage
    for step in (0, 2):
        model.before_step(step)
        assert abs(fast(*arrays)[0] - model(*arrays)[0]) < 1e-4


def test_checkpointed_activations_change_nothing():
    arrays, grads = tensors(make_batch(small())), []
    for on in (False, True):
        model = model_of(small(checkpoint_activations=on)).train()
        model(*arrays)[0].backward()
        grads.append(model.generator.encoder.blocks[0].attention.qkv.weight.grad)
    assert (grads[0] - grads[1]).abs().max() < 1e-5


# ---------------------------------------------------------------------------------------------------- sharing and stages

def test_what_is_shared():
    names = lambda **c: {n for n, _ in electra.Model(small(**c)).named_parameters() if n.startswith('generator.')}
    tied, untied, one = names(), names(share='none'), names(share='all', **EQUAL)
    assert one < tied < untied and untied - tied == {'generator.embeddings.' + n for n in ('tokens.weight', 'positions.weight', 'segments.weight', 'norm.weight', 'norm.bias')}
    assert {n.split('.')[1] for n in one} == {'mlm'} and 'generator.mlm.decoder.weight' not in tied and 'generator.encoder.project.weight' in tied
    model = electra.Model(small())
    assert model.generator.mlm.decoder.weight is model.embeddings.tokens.weight
    model = electra.Model(small(share='none'))
    assert model.generator.mlm.decoder.weight is model.generator.embeddings.tokens.weight


def two_stages(steps, n=3, model=None, start=0):
    """Train `steps` steps as the trainer does: ask before each one, and begin with fresh optimizer state when told so."""
    config = small(share='none', n_layer=1, generator_steps=n, **EQUAL)
    model = model or electra.Model(config)
    model.before_step(start)
    fresh = lambda: torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    optimizer = fresh()
    for step in range(start, steps):
        if model.before_step(step): optimizer = fresh()
        loss, stats = model.train()(*tensors(make_batch(config, 4, step=step)))
        optimizer.zero_grad(); loss.backward()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())   # no unused parameter, no spare gradient
        optimizer.step()
    return model, loss, stats


def test_two_stages():
    """The generator alone, then the discriminator from its weights while it stays; and the same when interrupted anywhere."""
    torch.manual_seed(0)
    start = electra.Model(small(share='none', n_layer=1, generator_steps=3, **EQUAL))
    copy = lambda m: (new := electra.Model(m.config), new.load_state_dict(m.state_dict()))[0]
    first, loss, stats = two_stages(3, model=copy(start))
    for n, p in first.named_parameters():
        if n.startswith('generator.'): assert not torch.equal(p, start.get_parameter(n)), n
        else: assert torch.equal(p, start.get_parameter(n)), n
    assert abs(loss - stats['generator_loss']) < 1e-6 and stats['discriminator_loss'] == 0
    taken = copy(first)
    assert taken.before_step(3) and not taken.before_step(4) and not taken.before_step(2)
    for n, p in taken.named_parameters():
        if n.startswith(('embeddings.', 'encoder.')): assert torch.equal(p, first.get_parameter('generator.' + n)), n
    last, loss, second = two_stages(6, model=copy(start))
    for n, p in last.named_parameters():
        if n.startswith('generator.'): assert torch.equal(p, first.get_parameter(n)), n
        else: assert not torch.equal(p, taken.get_parameter(n)), n
    assert abs(loss - 50 * second['discriminator_loss']) < 1e-4 and set(second) == set(stats)
    for stop in (1, 2, 3, 4, 5):
        again = two_stages(6, model=copy(two_stages(stop, model=copy(start))[0]), start=stop)[0]
        assert all(torch.equal(p, last.get_parameter(n)) for n, p in again.named_parameters()), stop
    model = electra.Model(small())
    assert not model.before_step(0) and not model.before_step(3) and all(p.requires_grad for p in model.parameters())


# ---------------------------------------------------------------------------------------------------- Hugging Face

SIZE = dict(vocab_size=99, embedding_size=13, hidden_size=28, num_hidden_layers=3, num_attention_heads=7, intermediate_size=37, max_position_embeddings=43)
HEADS = ('ForPreTraining', 'ForMaskedLM', 'ForSequenceClassification', 'ForTokenClassification', 'ForQuestionAnswering', 'ForMultipleChoice', 'Model')


def hf_model(head, **changes):
    torch.manual_seed(1)
    config = tf.ElectraConfig(**{**SIZE, **changes})
    config.num_labels = 5 if head in ('ForSequenceClassification', 'ForTokenClassification') else 2
    model = getattr(tf, 'Electra' + head)(config).eval()
    with torch.no_grad():
        for p in model.parameters(): p.add_(0.1 * torch.randn_like(p))
    return model


def hf_inputs(head):
    g = torch.Generator().manual_seed(3)
    ids, mask, segments = torch.randint(5, 99, (3, 13), generator=g), torch.ones(3, 13, dtype=torch.long), torch.zeros(3, 13, dtype=torch.long)
    mask[1, 9:], segments[:, 6:] = 0, 1
    args = [ids, segments, mask] if head != 'ForMultipleChoice' else [a[None] for a in (ids, segments, mask)]
    return dict(zip(('input_ids', 'token_type_ids', 'attention_mask'), args)), args, mask.bool()


def hf_result(out, real, head):
    if head == 'ForQuestionAnswering': return torch.stack((out.start_logits, out.end_logits), 2)[real]
    return out[0] if head in ('ForSequenceClassification', 'ForMultipleChoice') else out[0][real]


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('width', [13, 28])
def test_transformers_both_ways(head, width, tmp_path):
    theirs, ours, real = hf_inputs(head)
    hf = hf_model(head, embedding_size=width)
    hf.save_pretrained(tmp_path / 'a')
    model, _ = train.load_model(str(tmp_path / 'a'))
    assert isinstance(model, electra.Model)
    with torch.no_grad():
        want = hf_result(hf(**theirs), real, head)
        got = model.hidden(*ours)[real] if head == 'Model' else model.logits(*ours)
        if head not in ('ForSequenceClassification', 'ForMultipleChoice', 'Model'): got = got[real]
        assert got.shape == want.shape and (got - want).abs().max() < 1e-4
        export_hf(electra, model, None, str(tmp_path / 'b'))
        again, info = type(hf).from_pretrained(tmp_path / 'b', output_loading_info=True)
        assert not any(info.values()), info
        assert (hf_result(again.eval()(**theirs), real, head) - want).abs().max() < 1e-4
    if head == 'ForPreTraining':
        assert (electra.replaced(model, *ours)[real] - want.sigmoid()).abs().max() < 1e-5
        with pytest.raises(ValueError, match='without a generator'): model(*tensors(make_batch(small())))
    if head == 'ForMaskedLM':
        with pytest.raises(ValueError, match='no discriminator'): electra.replaced(model, *ours)


@pytest.mark.parametrize('name', PRETRAINING)
def test_two_models_go_and_come_back(name, tmp_path):
    """Discriminator and generator in transformers give our logits; read together they are the model that was written."""
    config = small(**OBJECTIVES[name])
    model, ids = model_of(config), torch.randint(5, 99, (2, 13))
    export_hf(electra, model, None, str(tmp_path))
    with torch.no_grad():
        generator = tf.AutoModelForMaskedLM.from_pretrained(tmp_path / 'generator').eval()
        embed = model.embeddings if config.share != 'none' else model.generator.embeddings
        ours = model.generator.mlm((model.encoder if config.share == 'all' else model.generator.encoder)(embed(ids)))
        assert (generator(ids).logits - ours).abs().max() < 1e-4
        cls = tf.ElectraForPreTraining if config.has_detector else tf.ElectraForMaskedLM
        assert (cls.from_pretrained(tmp_path).eval()(ids).logits - model.logits(ids)).abs().max() < 1e-4
    alone, _ = train.load_model(str(tmp_path / 'generator'))
    assert alone.config.objective == 'mlm' and (alone.logits(ids) - ours).abs().max() < 1e-4
    if config.objective not in ('electra', 'electra-15'): return
    parts = [files.read_hf(str(tmp_path / f)) for f in ('', 'generator')]
    back, state = layout_of(electra).from_hf(dict(parts[0][0], generator=parts[1][0]), parts[0][1] | {'generator/' + n: w for n, w in parts[1][1].items()})
    assert back.share == config.share and back.generator == config.generator
    twin = electra.Model(dataclasses.replace(back, objective=config.objective, **{n: TINY[n] for n in ('eot_id', 'cls_id', 'sep_id', 'mask_id')})).eval()
    twin.load_state_dict(state, strict=True)
    arrays = tensors(make_batch(config))
    assert abs(twin(*arrays)[0] - model(*arrays)[0]) < 1e-4


def test_old_names_and_refusals():
    hf = hf_model('ForPreTraining')
    weights = {k.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): v for k, v in hf.state_dict().items()}
    weights['electra.embeddings.position_ids'] = torch.arange(43)[None]
    config, state = layout_of(electra).from_hf(hf.config.to_dict() | dict(architectures=['ElectraForPreTraining']), weights)
    model = electra.Model(config)
    model.load_state_dict(state, strict=True)
    ids = torch.randint(5, 99, (2, 7))
    assert (model.eval().logits(ids) - hf(ids).logits).abs().max() < 1e-4
    good = hf.config.to_dict()
    for change, message in ((dict(model_type='bert'), "'bert'"), (dict(tie_word_embeddings=False), 'tie_word_embeddings=False'), (dict(hidden_act='relu'), "'relu'")):
        with pytest.raises(ValueError, match=message): layout_of(electra).from_hf(dict(good, **change), weights)
    with pytest.raises(ValueError, match='lack.*LayerNorm'): layout_of(electra).from_hf(good, {k: v for k, v in weights.items() if 'LayerNorm' not in k})
    with pytest.raises(ValueError, match='hold extra.thing'): layout_of(electra).from_hf(good, weights | {'extra.thing': torch.zeros(1)})
    with pytest.raises(ValueError, match="lacks 'hidden_size'"): layout_of(electra).from_hf({k: v for k, v in good.items() if k != 'hidden_size'}, weights)
    for changes in (dict(gated=True), dict(activation='relu'), dict(n_segments=0), dict(positions='rotary', n_embd=12, n_head=3), dict(pre_norm=True)):
        with pytest.raises(ValueError, match='no electra with'): layout_of(electra).to_hf(electra.Model(small(**changes)))
    parts = [layout_of(electra).to_hf(model_of(small())), layout_of(electra).to_hf_generator(model_of(small(n_hidden=80)))]
    with pytest.raises(ValueError, match='generator has n_hidden=40.*expects 22'):
        layout_of(electra).from_hf(dict(parts[0][0], generator=parts[1][0]), parts[0][1] | {'generator/' + n: w for n, w in parts[1][1].items()})


# ---------------------------------------------------------------------------------------------------- fine-tuning

@pytest.fixture(scope='module')
def tokenizer(): return bpe.byte()


def ready(tokenizer, **changes):
    ids = {r + '_id': getattr(tokenizer, r) for r in ('eot', 'pad', 'cls', 'sep', 'mask')}
    return small(**{'vocab_size': tokenizer.vocab_size, 'block_size': 64, **ids, **changes})


EXAMPLES = {
    'labelled': [dict(text='good', label=1), dict(text='bad bad', text_b='yes', label=0), dict(text='so so', label=2)],
    'tagged': [dict(tokens=['Ann', 'sees', 'Bob'], tags=[1, 0, 1]), dict(tokens=['He', 'runs'], tags=[0, 0])],
    'qa': [dict(context='Bells ring at noon today.', question='When?', answers=[dict(text='at noon', answer_start=11)]), dict(context='None here.', question='Who?', answers=[])],
    'choice': [dict(text='sky', choices=['blue', 'green', 'red'], label=0), dict(text='grass', choices=['blue', 'green'], label=1)],
}
KINDS = {'labelled': dict(n_labels=3, labels='["zero", "one", "two"]'), 'tagged': dict(n_labels=2, labels='["O", "B-X"]'), 'qa': dict(no_answer=True), 'choice': {}}


@pytest.mark.parametrize('kind', EXAMPLES)
def test_each_kind_learns_its_examples(kind, tokenizer):
    """From a pre-trained model to predictions, with rows of unequal length; label 0 counts; the generator stays behind."""
    config = ready(tokenizer, kind=kind, **KINDS[kind])
    rows = [dict(row, index=i) for i, e in enumerate(EXAMPLES[kind]) for row in tasks.encode(e, tokenizer, config)]
    draw = lambda *a: None
    draw.examples = lambda: rows
    arrays = models.make_batch(electra, draw, config, None)
    n = electra.count(*arrays)
    assert n == ({'labelled': 3, 'tagged': 5, 'qa': 4, 'choice': 2}[kind],)
    torch.manual_seed(0)
    old = model_of(ready(tokenizer), spread=0.05).train()
    model = build_model(electra, config, dict(old.state_dict()), 'old', 7, new_task=True)
    assert not any(k.startswith(('generator.', 'detector.')) for k in model.state_dict()) and torch.equal(model.encoder.blocks[1].mlp.up.weight, old.encoder.blocks[1].mlp.up.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(90):
        loss, stats = model(*tensors(arrays))
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    assert loss < 0.05 and stats['accuracy'] == 1
    got = tasks.predict(model.eval(), tensors(arrays), rows, tokenizer)
    want = {'labelled': [1, 0, 2], 'tagged': [[1, 0, 1], [0, 0]], 'qa': ['at noon', ''], 'choice': [0, 1]}[kind]
    assert [g['prediction'] for g in got] == want
    alone = tasks.predict(model, tensors(tasks.collate(rows[1:2], config)), rows[1:2], tokenizer)
    assert alone[0]['prediction'] == want[1] and abs(alone[0]['score'] - got[1]['score']) < 1e-3     # padding changes nothing
    named = {'labelled': 'one', 'tagged': ['B-X', 'O', 'B-X']}.get(kind, want[0])
    assert f'>>> {named} (truth: {named})' in models.show_of(electra)(model, tokenizer, rows)
    parts = [model(*tensors([a[i:i + 1] for a in arrays]), totals=torch.tensor([float(n[0])]))[0] for i in range(len(rows))]
    assert abs(sum(parts) - model(*tensors(arrays))[0]) < 1e-4
    assert flops.count(model, arrays) > 0


def test_padding_and_depths():
    """Rows of any length in one batch equal the rows alone; a row of padding gives no NaN; the depth of each parameter."""
    model, ids, mask = model_of(small()), torch.randint(10, 99, (3, 30)), torch.ones(3, 30, dtype=torch.bool)
    mask[1, 11:], mask[2] = False, False
    y = model.logits(ids, None, mask)
    assert y.shape == (3, 30) and torch.isfinite(y).all() and (y[1, :11] - model.logits(ids[1:2, :11])[0]).abs().max() < 1e-5
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    depth = {n: electra.Model(small(kind='labelled', n_labels=2)).depth_of(n) for n, _ in electra.Model(small(kind='labelled', n_labels=2)).named_parameters()}
    assert depth['embeddings.tokens.weight'] == depth['encoder.project.weight'] == 0 and depth['encoder.blocks.1.mlp.up.weight'] == 2 and depth['pooler.weight'] == 3
    with pytest.raises(ValueError, match='38 tokens.*block_size=37'): model.logits(torch.zeros(1, 38, dtype=torch.long))


def test_show_marks_what_is_caught_and_missed(tokenizer, monkeypatch):
    text = b'a line of text to replace something in, and more of it'
    for changes in ({}, dict(generator_size=0.0), dict(share='none')):
        model = model_of(ready(tokenizer, n_layer=1, **changes), spread=0.0)
        for caught in (0, 2, 99):                        # the places that get the highest probabilities
            def verdicts(model, ids):
                fake = ids[0, 1:-1] != torch.tensor(list(text))
                right, wrong = fake.nonzero()[:, 0][:caught], (~fake).nonzero()[:, 0]
                chance = torch.full((1, len(text) + 2), 0.1)
                chance[0, 1 + wrong] = 0.3
                chance[0, 1 + right] = 0.6
                return chance
            monkeypatch.setattr(electra, 'replaced', verdicts)
            shown, told = models.show_of(electra)(model, tokenizer, np.frombuffer(text, np.uint8)).rsplit('\n', 1)
            n = int(told.split(' of ')[1].split()[0])
            right = min(caught, n)
            assert 5 <= n <= 7 and f'>>> {right} of {n} replaced tokens caught among the {n} likeliest' in told
            assert f'{n - right} false alarms; {right} have a probability over 0.5' in told
            assert len(re.findall(r'\?.\?', shown)) == n - right and len(re.findall(r'\((?:<\|.*?\|>|.)\|.\)', shown, re.S)) == n - right
            assert len(re.findall(r'\[(?:<\|.*?\|>|.)\|.\]', shown, re.S)) == right
            original = re.sub(r'[\[(](?:<\|.*?\|>|.)\|(.)[\])]', r'\1', shown.replace('?', ''), flags=re.S)
            assert original == text.decode()
    assert models.show_of(electra)(model_of(ready(tokenizer, objective='replace-mlm')), tokenizer, np.frombuffer(text, np.uint8)) == ''


def test_pretraining_through_the_trainer(prepared, tmp_path):
    """train.py on electra.py: both losses fall, it saves, opens again, shows."""
    flags = f'--model=electra --data={prepared} --n_layer=1 --n_head=2 --n_embd=32 --embed_dim=16 --n_hidden=32 --generator_size=0.5 --block_size=32 --batch_size=16 --max_iters=40 --eval_interval=40'
    got = train.main([*flags.split(), '--eval_iters=16', '--log_interval=40', '--device=cpu', '--compile=false', f'--out_dir={tmp_path}/out'])
    assert got['val_generator_loss'] < 4.2 and got['val_discriminator_loss'] < 0.6 and got['val_loss'] < 34
    model, tokenizer = train.load_model(f'{tmp_path}/out')
    assert model.config.mask_id == tokenizer.mask and 'replaced tokens caught' in models.show_of(electra)(model, tokenizer, tokenizer.encode('one plus two is three; three minus one is two.'))


def test_two_stages_through_the_trainer(prepared, tmp_path):
    """Resumed before, at and after the change of stages: the weights of the run that was not interrupted, bit for bit."""
    flags = f'--model=electra --data={prepared} --n_layer=1 --n_head=2 --n_embd=32 --embed_dim=16 --n_hidden=32 --generator_size=1 --share=none --generator_steps=3 --block_size=32'.split()
    flags += '--batch_size=4 --micro_batch_size=2 --lr_schedule=constant --eval_interval=2 --eval_iters=4 --log_interval=1 --device=cpu --compile=false'.split()
    def weights(name, *stops):
        for i, stop in enumerate(stops): train.main([*(flags if i == 0 else ['--resume']), f'--max_iters={stop}', f'--out_dir={tmp_path}/{name}'])
        return torch.load(f'{tmp_path}/{name}/ckpt.pt', weights_only=True)['model']
    whole, first = weights('whole', 6), weights('first', 3)
    for n, w in whole.items(): assert torch.equal(w, first[n]) == n.startswith('generator.'), n
    for name, stops in (('at', (3, 6)), ('around', (2, 5, 6))):
        for n, w in weights(name, *stops).items(): assert torch.equal(w, whole[n]), (name, n)
