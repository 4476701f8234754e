"""--method: a technique around a model, held by a toy one, label smoothing with targets that are read backwards."""
import json, os, sys

import pytest
import torch
from torch.nn import functional as F

import gpt, train
from lib import method

TOY = '''"""Label smoothing, on text that is read from its end."""
from dataclasses import dataclass
import numpy as np
import torch


@dataclass
class Config:
    smoothing: float = 0.1      # share of the uniform distribution in the targets
    reverse: bool = False       # read each window from its end


recipe = dict(learning_rate=3e-3, smoothing=0.2)
direction = -1


def batch(draw, config, rng):
    tokens = draw(config.block_size + 1, overlap=1)
    return tokens[:, :-1], tokens[:, 1:]


def summary(stats):
    return {name.upper(): value for name, value in stats.items()}


def prepare(model, config):
    assert all(p.device.type == 'cpu' for p in model.parameters())


def forward(model, plain, ids, targets, totals=None):
    share = model.technique.smoothing
    if model.technique.reverse:
        ids, targets = targets.flip(1), ids.flip(1)
    loss, stats = plain(ids, targets, totals=totals)
    n = (targets >= 0).sum() if totals is None else totals[0]
    uniform = -(model.logits(ids).float().log_softmax(-1).mean(-1) * (targets >= 0)).sum() / n
    return (1 - share) * loss + share * uniform, {**stats, 'uniform': uniform.detach()}
'''
TINY = ['--model=gpt', '--preset=', '--n_layer=2', '--n_head=2', '--n_embd=16', '--block_size=16', '--batch_size=8', '--dropout=0.1', '--optimizer=adamw', '--vocab_multiple=1',
        '--max_iters=6', '--eval_interval=3', '--log_interval=2', '--eval_iters=8', '--device=cpu', '--warmup_iters=2', '--learning_rate=1e-2']


@pytest.fixture
def toy(tmp_path, monkeypatch, prepared):
    """run(*flags) -> its result; --out_dir is given. The technique lies in the current folder."""
    (tmp_path / 'toy.py').write_text(TOY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, 'toy', raising=False)
    yield lambda out, *flags, method='toy': train.main([*TINY, f'--data={prepared}', f'--method={method}', f'--out_dir={tmp_path}/{out}', *flags])
    sys.modules.pop('toy', None)
    sys.path[:] = [p for p in sys.path if p != str(tmp_path)]


def saved(folder): return torch.load(os.path.join(folder, 'ckpt.pt'), weights_only=True)


def same(a, b, atol=0.0):
    assert a.keys() == b.keys()
    for name in a: assert (a[name] - b[name]).abs().max() <= atol, name


def test_the_loss_is_the_technique_s(toy):
    import importlib
    sys.path.insert(0, os.getcwd())
    technique = importlib.import_module('toy')
    file = method.combine(gpt, technique, dict(smoothing=0.3, reverse=False))
    config = gpt.Config(vocab_size=37, block_size=13, n_layer=1, n_head=2, n_embd=24)
    torch.manual_seed(0)
    model = file.Model(config)
    ids, targets = torch.randint(37, (3, 13)), torch.randint(37, (3, 13))
    targets[0, :5] = -1
    wanted = F.cross_entropy(model.logits(ids).flatten(0, 1), targets.flatten(), ignore_index=-1, label_smoothing=0.3)
    loss, stats = model(ids, targets)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-6) and set(stats) == {'uniform'}
    halves = [model(ids[a:b], targets[a:b], totals=torch.tensor([34.0]))[0].item() for a, b in ((0, 1), (1, 3))]
    assert sum(halves) == pytest.approx(wanted.item(), abs=1e-6)
    assert file.batch is technique.batch and file.presets is gpt.presets and file.__name__ == 'gpt' and not hasattr(file, 'direction')
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in gpt.Model(config).named_parameters()]
    assert isinstance(model, gpt.Model) and type(model).__module__ == 'gpt'


def test_a_run_with_it_differs_from_one_without_and_opens_without_it(toy, tmp_path):
    smooth, plain = toy('smooth'), toy('plain', method='')
    toy('none', '--smoothing=0')
    assert smooth['val_loss'] > plain['val_loss'] and 'val_UNIFORM' in smooth and 'val_UNIFORM' not in plain
    same(saved('none')['model'], saved('plain')['model'], 1e-6)
    assert max((saved('smooth')['model'][n] - w).abs().max() for n, w in saved('plain')['model'].items()) > 1e-4
    assert saved('smooth')['method'] == dict(smoothing=0.2, reverse=False) and saved('smooth')['train']['method'] == 'toy'
    rows = [json.loads(line) for line in open('smooth/metrics.jsonl')]
    assert any('train_UNIFORM' in row for row in rows)
    (tmp_path / 'toy.py').unlink()
    model, tokenizer = train.load_model('smooth')
    assert type(model) is gpt.Model and tokenizer.decode(tokenizer.encode('one')) == 'one'


def test_it_resumes_bit_for_bit(toy):
    toy('whole', '--smoothing=0.25', '--reverse')
    toy('half', '--smoothing=0.25', '--reverse', '--max_iters=3', '--lr_decay_iters=6')
    train.main(['--resume', '--out_dir=half', '--max_iters=6'])
    same(saved('whole')['model'], saved('half')['model'])
    assert saved('half')['method'] == dict(smoothing=0.25, reverse=True)
    for flag in ('--smoothing=0.5', '--method=other'):
        with pytest.raises(ValueError, match='--resume: --(smoothing|method)=|no file other.py'): train.main(['--resume', '--out_dir=half', '--max_iters=9', flag])


def test_micro_batches_and_ranks_agree(toy, forks, tmp_path, prepared):
    toy('one', '--dropout=0')
    toy('four', '--dropout=0', '--micro_batch_size=2')
    same(saved('one')['model'], saved('four')['model'], 1e-5)
    forks.run(*TINY, f'--data={prepared}', '--method=toy', f'--out_dir={tmp_path}/two', '--dropout=0', ranks=2, cwd=tmp_path)
    same(saved('one')['model'], saved('two')['model'], 1e-5)


def test_adapters_go_with_it(toy, capsys):
    toy('base', method='')
    toy('tuned', '--init_from=base', '--lora_rank=2', '--lora_match=q,v')
    state = saved('tuned')
    assert state['method']['smoothing'] == 0.2                            # its recipe
    assert state['lora'] and all('lora' in name or '.a' in name or '.b' in name for name in state['model'])
    capsys.readouterr()
    train.main(['--resume', '--out_dir=tuned', '--max_iters=8'])
    assert 'a new task' not in capsys.readouterr().out                    # the run goes on with its own
    model, _ = train.load_model('tuned')
    assert any(not torch.equal(w, saved('base')['model'][n]) for n, w in model.state_dict().items())


def test_mistakes_are_one_line(toy, tmp_path, capsys):
    with pytest.raises(ValueError, match='unknown flag --smoothing'): toy('x', '--smoothing=1', method='')
    with pytest.raises(ValueError, match='--method=toi: no file toi.py here'): toy('x', method='toi')
    with pytest.raises(ValueError, match='--method=gpt: gpt.py does not define forward'): toy('x', method='gpt')
    (tmp_path / 'clash.py').write_text(TOY.replace('smoothing: float', 'dropout: float'))
    with pytest.raises(ValueError, match='its flag --dropout exists already'): toy('x', method='clash')
    with pytest.raises(SystemExit): toy('x', '--help=all')
    assert '--smoothing=0.2' in capsys.readouterr().out
    assert not os.path.exists('x')
    sys.modules.pop('clash', None)
