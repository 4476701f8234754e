"""Labelled data through the trainer: a new head on given weights, the task's metric, predictions, freezing, baselines.

Oracles: scikit-learn's metrics on the written predictions, and the equations of layer-wise rates."""
import json, os, shutil, subprocess, sys

import numpy as np
import pytest
import torch

import bert, train
from lib import tasks
from data import files, text
from sklearn.metrics import accuracy_score
from lib.checkpoint import load_checkpoint

TINY = '--model=bert --preset=small --n_layer=3 --n_head=2 --n_embd=24 --n_hidden=40 --block_size=32 --device=cpu --log_interval=2'.split()
TUNE = '--model=bert --device=cpu --log_interval=2 --eval_interval=5 --max_iters=10 --batch_size=8 --learning_rate=0.003'.split()


def lines_of(path): return [json.loads(line) for line in open(path, encoding='utf-8')]
def state(out): return torch.load(os.path.join(out, 'ckpt.pt'), weights_only=True)


@pytest.fixture(scope='module')
def pretrained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp('pre')
    data = text.prepare(str(corpus), tokenizer='bpe', vocab_size=500, out=str(folder / 'sums'))
    out = str(folder / 'out')
    train.main([*TINY, f'--data={data}', f'--out_dir={out}', '--batch_size=8', '--max_iters=4', '--eval_interval=4', '--eval_iters=3'])
    return out


@pytest.fixture(scope='module')
def sums(tmp_path_factory):
    """Sums that are right or wrong, and two more labels for other tests."""
    rng, words = np.random.default_rng(3), 'zero one two three four five six seven eight nine ten'.split()
    folder = tmp_path_factory.mktemp('labelled')
    def write(name, make, n=300):
        path = folder / name
        rows = [make(*rng.integers(0, 5, 2)) for _ in range(n)]           # the number makes each line another one
        path.write_text(''.join(json.dumps(r | {'text': f'{r["text"]} {i}'}) + '\n' for i, r in enumerate(rows)))
        return str(path)
    said = lambda a, b, c: f'{words[a]} plus {words[b]} is {words[c]}.'
    return dict(
        two=write('two.jsonl', lambda a, b: dict(text=said(a, b, a + b if a > 1 else 10), label='right' if a > 1 else 'wrong')),
        three=write('three.jsonl', lambda a, b: dict(text=words[a], text_b=words[b], label='more' if a > b else 'less' if a < b else 'same')),
        number=write('number.jsonl', lambda a, b: dict(text=said(a, b, a + b), label=float(a) / 2)))


def tune(pretrained, data, out, *flags):
    return train.main([*TUNE, f'--init_from={pretrained}', f'--data={data}', f'--out_dir={out}', *flags])


def test_a_new_head_learns_and_its_predictions_are_written(pretrained, sums, tmp_path, capsys):
    out = str(tmp_path / 'out')
    result = tune(pretrained, sums['two'], out, '--max_iters=40', '--eval_interval=20', '--learning_rate=0.01')
    said = capsys.readouterr().out
    assert f'all weights come from {pretrained}, but classifier start anew' in said
    saved = state(out)
    assert json.loads(saved['config']['labels']) == ['right', 'wrong'] and saved['config']['n_labels'] == 2
    folder = text.prepare(sums['two'], next(iter([os.path.join(os.path.dirname(pretrained), 'sums', 'tokenizer.json')])), 0)
    truth = [e['label'] for e in lines_of(os.path.join(folder, 'val.jsonl'))]
    predictions = lines_of(os.path.join(out, 'predictions.jsonl'))
    assert [p['index'] for p in predictions] == list(range(len(truth)))
    assert result['best_accuracy'] == pytest.approx(accuracy_score(truth, [p['prediction'] for p in predictions]))
    counts = np.bincount([e['label'] for e in lines_of(os.path.join(folder, 'train.jsonl'))])
    assert result['commonest_accuracy'] == pytest.approx(np.mean(np.array(truth) == counts.argmax()))
    assert 'the commonest class' in said and result['best_accuracy'] == 1.0
    assert all(p['name'] == ['right', 'wrong'][p['prediction']] for p in predictions)
    best = torch.load(os.path.join(out, 'best.pt'), weights_only=True)
    assert 'classifier.weight' in best['model']


def test_predictions_that_find_no_room_do_not_end_the_run(pretrained, sums, tmp_path, monkeypatch):
    def full(path, write, real=files.write_atomic):
        if path.endswith('predictions.jsonl'): raise OSError(28, 'No space left on device')
        real(path, write)
    monkeypatch.setattr(files, 'write_atomic', full)
    out = str(tmp_path / 'out')
    assert tune(pretrained, sums['two'], out, '--max_iters=1')['steps'] == 1 and os.path.exists(out + '/ckpt.pt') and not os.path.exists(out + '/predictions.jsonl')


def test_a_body_comes_from_the_weights_and_a_baseline_does_not(pretrained, sums, tmp_path, capsys):
    out = str(tmp_path / 'out')
    result = tune(pretrained, sums['two'], out, '--max_iters=2', '--learning_rate=1e-12', '--baseline')
    given, tuned, new = state(pretrained)['model'], state(out)['model'], state(out + '-new')['model']
    name = 'encoder.blocks.1.mlp.up.weight'
    assert torch.allclose(tuned[name], given[name], atol=1e-6) and not torch.allclose(new[name], given[name], atol=1e-3)
    assert new[name].shape == given[name].shape and result['baseline']['out_dir'] == out + '-new'
    last = capsys.readouterr().out.strip().splitlines()[-3:]
    assert any(f'{result["best_accuracy"]:.4f}, from new weights {result["baseline"]["best_accuracy"]:.4f}' in line for line in last)
    with pytest.raises(ValueError, match='--baseline compares with weights'): train.main([*TUNE, '--baseline'])


def test_another_set_of_classes_starts_the_head_anew(pretrained, sums, tmp_path):
    first, second, third = (str(tmp_path / n) for n in ('a', 'b', 'c'))
    tune(pretrained, sums['two'], first, '--max_iters=1')
    tune(first, sums['three'], second, '--max_iters=1', '--learning_rate=1e-12')
    assert state(second)['model']['classifier.weight'].shape[0] == 3
    tune(first, sums['two'], third, '--max_iters=1', '--learning_rate=1e-12')                  # the same task goes on
    assert torch.allclose(state(third)['model']['classifier.weight'], state(first)['model']['classifier.weight'], atol=1e-6)


def test_regression_reports_correlation(pretrained, sums, tmp_path):
    out = str(tmp_path / 'out')
    result = tune(pretrained, sums['number'], out, '--max_iters=60', '--eval_interval=20', '--learning_rate=0.01')
    assert result['best_pearson_spearman'] > 0.5 and 'commonest_accuracy' not in result
    assert isinstance(lines_of(os.path.join(out, 'predictions.jsonl'))[0]['prediction'], float)


def test_freeze_leaves_the_lowest_layers(pretrained, sums, tmp_path):
    out = str(tmp_path / 'out')
    tune(pretrained, sums['two'], out, '--max_iters=2', '--freeze=2')
    before, after = state(pretrained)['model'], state(out)['model']
    moved = {k for k, w in after.items() if k in before and not torch.equal(w, before[k])}
    assert moved and all(k.startswith(('encoder.blocks.2.', 'encoder.norm', 'pooler', 'head')) for k in moved)
    with pytest.raises(ValueError, match='--freeze=4'): tune(pretrained, sums['two'], out, '--freeze=4')


def test_gradual_unfreezing_goes_down_from_the_head(pretrained, sums, tmp_path):
    moved = []
    for steps in (1, 3, 5):
        out = str(tmp_path / str(steps))
        tune(pretrained, sums['two'], out, f'--max_iters={steps}', '--unfreeze_interval=2', '--warmup_iters=0', '--lr_schedule=constant')
        before, after = state(pretrained)['model'], state(out)['model']
        moved.append({int(k.split('.')[2]) for k in after if k.startswith('encoder.blocks.') and not torch.equal(after[k], before[k])})
    assert moved == [set(), {2}, {1, 2}]


def test_layer_decay_is_geometric_from_the_head(pretrained, monkeypatch):
    model, _ = train.load_model(pretrained)
    config = train.Config(model='bert', learning_rate=1.0, layer_decay=0.5)
    adam, = train.make_optimizers(model, config)
    names = {p: n for n, p in model.named_parameters()}
    peak = {names[p]: g['peak'] for g in adam.param_groups for p in g['params']}
    assert peak['head.dense.weight'] == 1 and peak['encoder.blocks.2.mlp.up.weight'] == 0.5
    assert peak['encoder.blocks.0.mlp.up.weight'] == 0.125 and peak['embeddings.tokens.weight'] == 0.0625


def test_patience_stops_on_the_tasks_metric(pretrained, sums, tmp_path):
    out = str(tmp_path / 'out')
    result = tune(pretrained, sums['two'], out, '--max_iters=50', '--eval_interval=1', '--patience=3', '--learning_rate=1e-12')
    assert result['steps'] == 3                                           # nothing is learned: step 0 stays the best
    log = [m for m in lines_of(os.path.join(out, 'metrics.jsonl')) if 'val_accuracy' in m]
    assert len(log) == 4


def test_epochs_and_evaluation_once_an_epoch(pretrained, sums, tmp_path):
    out = str(tmp_path / 'out')
    flags = [f for f in TUNE if not f.startswith(('--max_iters', '--eval_interval'))]
    result = train.main([*flags, f'--init_from={pretrained}', f'--data={sums["two"]}', f'--out_dir={out}', '--epochs=2'])
    n = len(lines_of(os.path.join(text.prepare(sums['two'], os.path.join(os.path.dirname(pretrained), 'sums', 'tokenizer.json'), 0), 'train.jsonl')))
    per = -(-n // 8)
    assert result['steps'] == -(-2 * n // 8)
    assert [m['step'] for m in lines_of(os.path.join(out, 'metrics.jsonl')) if 'val_loss' in m] == sorted({0, per, 2 * per if 2 * n % 8 == 0 else result['steps'], result['steps']} & {0, per, result['steps'], 2 * per})


@pytest.mark.parametrize('kind', ['two', 'three', 'number'])
def test_micro_batches_change_nothing_on_labelled_data(pretrained, sums, tmp_path, kind):
    one, many = str(tmp_path / 'one'), str(tmp_path / 'many')
    flags = ['--max_iters=3', '--dropout=0', '--attention_dropout=0']
    a, b = tune(pretrained, sums[kind], one, *flags), tune(pretrained, sums[kind], many, '--micro_batch_size=2', *flags)
    for k, w in state(one)['model'].items(): assert (w - state(many)['model'][k]).abs().max() < 3e-5, k
    assert a['val_loss'] == pytest.approx(b['val_loss'], abs=1e-4)


def test_resume_of_fine_tuning_is_bit_exact(pretrained, sums, tmp_path):
    whole, cut = str(tmp_path / 'whole'), str(tmp_path / 'cut')
    flags = ['--lr_schedule=constant', '--eval_interval=3']
    tune(pretrained, sums['two'], whole, '--max_iters=6', *flags)
    tune(pretrained, sums['two'], cut, '--max_iters=3', *flags)
    train.main(['--model=bert', '--resume', f'--out_dir={cut}', '--max_iters=6'])
    a, b = state(whole)['model'], state(cut)['model']
    for k in a: assert torch.equal(a[k], b[k]), k


def test_whole_words_are_masked_through_the_trainer(corpus, tmp_path, capsys):
    data = text.prepare(str(corpus), tokenizer='bpe', vocab_size=500, out=str(tmp_path / 'sums'))
    result = train.main([*TINY, f'--data={data}', f'--out_dir={tmp_path / "out"}', '--batch_size=4', '--max_iters=2', '--eval_iters=2', '--masking=word'])
    assert np.isfinite(result['val_loss'])
    assert f"sample.py --out_dir={tmp_path / 'out'} --prompt='TEXT [MASK] TEXT' |" in capsys.readouterr().out


def test_a_tokenizer_without_roles_is_not_given_berts(corpus, tmp_path):
    """Its text holds ordinary tokens 101 to 103; [CLS] and [SEP] fall back on the end of text, a mask must be named."""
    import bpe
    tokens = bpe.train([corpus.read_text()], 400, special=['<|endoftext|>'])
    tokens.save(str(tmp_path / 'tok.json'))
    data = text.prepare(str(corpus), tokenizer=str(tmp_path / 'tok.json'), out=str(tmp_path / 'sums'))
    run = [*TINY, f'--data={data}', f'--out_dir={tmp_path / "out"}', '--batch_size=4', '--max_iters=1', '--eval_iters=2']
    with pytest.raises(ValueError, match='no mask token'): train.main(run)
    train.main([*run, '--mask_id=7'])
    config = state(str(tmp_path / 'out'))['config']
    assert (config['cls_id'], config['sep_id'], config['mask_id']) == (-1, -1, 7)


def test_group_by_length_reorders_a_pool_of_batches(pretrained, sums, tmp_path, monkeypatch):
    """Sixteen batches hold the same examples as without it, each batch examples of about one length."""
    seen, collate = {}, tasks.collate
    def run(name, *flags):
        seen[name] = []
        def spy(rows, config):
            if torch.is_grad_enabled(): seen[name].append([(e['index'], len(e['ids'])) for e in rows])
            return collate(rows, config)
        monkeypatch.setattr(tasks, 'collate', spy)
        tune(pretrained, sums['three'], str(tmp_path / name), '--max_iters=16', '--eval_interval=99', '--batch_size=4', *flags)
        return seen[name][-17:-1]                                          # of the last step's successor, too, a batch was made
    plain, grouped = run('plain'), run('grouped', '--group_by_length')
    assert sorted(sum(plain, [])) == sorted(sum(grouped, []))
    spread = lambda batches: sum(max(n for _, n in b) - min(n for _, n in b) for b in batches)
    assert spread(grouped) < spread(plain) / 2
    means = [np.mean([n for _, n in b]) for b in grouped]
    assert means != sorted(means)                                          # short ones do not come first


def test_tags_answers_and_choices_through_the_trainer(pretrained, tmp_path):
    """Each kind of data gets its head, its metric and its predictions; the metric is recomputed from what was written."""
    rng, words = np.random.default_rng(4), 'zero one two three four five six'.split()
    def tagged(i):
        said = [words[j] for j in rng.integers(0, 7, 5)] + [str(i)]
        return dict(tokens=said, tags=['B-small' if w in words[:3] else 'O' for w in said])
    def choice(i):
        a = rng.integers(0, 5)
        return dict(text=f'{i} plus one after {words[a]} is', choices=[words[a + 1], words[a]][::rng.choice([1, -1])], label=0)
    def qa(i):
        a, b = words[rng.integers(0, 7)], words[rng.integers(0, 7)]
        context = f'number {i} begins: {a} plus {b} is said.'
        return dict(context=context, question='what comes after plus?', answers=[dict(text=b, answer_start=context.index('plus') + 5)])
    for name, make, metric in (('tagged', tagged, 'f1'), ('choice', choice, 'accuracy'), ('qa', qa, 'f1')):
        path, out = tmp_path / (name + '.jsonl'), str(tmp_path / name)
        path.write_text(''.join(json.dumps(make(i)) + '\n' for i in range(120)))
        result = tune(pretrained, str(path), out, '--max_iters=6', '--eval_interval=3')
        predictions = lines_of(os.path.join(out, 'predictions.jsonl'))
        assert state(out)['config']['kind'] == name and 0 <= result['best_' + metric] <= 1 and predictions
        folder = text.prepare(str(path), os.path.join(os.path.dirname(pretrained), 'sums', 'tokenizer.json'), 0)
        truth = lines_of(os.path.join(folder, 'val.jsonl'))
        if name == 'choice': assert result['best_accuracy'] == np.mean([p['prediction'] == t['label'] for p, t in zip(predictions, truth)])
        if name == 'tagged':
            hits = [p == t for a, b in zip(predictions, truth) for p, t in zip(a['prediction'], b['tags'], strict=True)]
            assert np.mean(hits) == pytest.approx(max(m['val_accuracy'] for m in lines_of(os.path.join(out, 'metrics.jsonl')) if m.get('val_f1') == result['best_f1']))
        if name == 'qa': assert all(p['prediction'] in t['context'] for p, t in zip(predictions, truth))


def test_two_ranks_fine_tune_as_one(pretrained, sums, tmp_path):
    """Labelled rows of unequal length, the lowest layers frozen, a batch split over processes: the same weights."""
    flags = [*TUNE, f'--init_from={pretrained}', f'--data={sums["three"]}', '--max_iters=3', '--freeze=1', '--dropout=0', '--attention_dropout=0']
    one, two = str(tmp_path / 'one'), str(tmp_path / 'two')
    a = train.main([*flags, f'--out_dir={one}'])
    root = os.path.dirname(os.path.abspath(train.__file__))
    r = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', 'train.py', *flags, f'--out_dir={two}'],
                       cwd=root, capture_output=True, text=True, timeout=240)
    assert r.returncode == 0, r.stderr[-2000:]
    first, second = state(one)['model'], state(two)['model']
    for k in first: assert (first[k] - second[k]).abs().max() < 1e-5, k
    assert [p['prediction'] for p in lines_of(os.path.join(one, 'predictions.jsonl'))] == [p['prediction'] for p in lines_of(os.path.join(two, 'predictions.jsonl'))]
    assert f'{a["best_accuracy"]:.4f}' in r.stdout


def test_the_commonest_class_is_that_of_the_training_set(pretrained, tmp_path):
    path, out = tmp_path / 'x.jsonl', str(tmp_path / 'out')
    path.write_text(''.join(json.dumps(dict(text=f'one {i}', label='abc'[min(2, i % 5)])) + '\n' for i in range(150)))
    result = tune(pretrained, str(path), out, '--max_iters=1')
    folder = text.prepare(str(path), os.path.join(os.path.dirname(pretrained), 'sums', 'tokenizer.json'), 0)
    assert result['commonest_accuracy'] == np.mean([e['label'] == 2 for e in lines_of(os.path.join(folder, 'val.jsonl'))]) > 0.4


def test_the_best_of_several_rows_of_an_example_counts(pretrained, tmp_path, monkeypatch):
    """Windows of a long context compete by their score."""
    path, out, predict = tmp_path / 'x.jsonl', str(tmp_path / 'out'), tasks.predict
    line = lambda i: dict(context=f'number {i} ' + 'plus one is two ' * 30, question='what?', answers=[dict(text=str(i), answer_start=7)])
    path.write_text(''.join(json.dumps(line(i)) + '\n' for i in range(60)))
    rows = []
    def spy(*args):
        rows.extend(found := predict(*args))
        return found
    monkeypatch.setattr(tasks, 'predict', spy)
    tune(pretrained, str(path), out, '--max_iters=1', '--eval_interval=9', '--doc_stride=8', '--max_query=4')
    predictions = lines_of(os.path.join(out, 'predictions.jsonl'))
    for p in predictions:
        scores = [r['score'] for r in rows if r['index'] == p['index']]
        assert len(scores) > 4 and p['score'] in scores
    n = sum(len(tasks.encode(e, train.load_model(out)[1], train.load_model(out)[0].config)) for e in lines_of(
        os.path.join(text.prepare(str(path), os.path.join(os.path.dirname(pretrained), 'sums', 'tokenizer.json'), 0), 'val.jsonl')))
    of = lambda part, i: max(r['score'] for r in part if r['index'] == i)
    best = [all(p['score'] == of(part, p['index']) for p in predictions) for part in (rows[:n], rows[n:2 * n])]
    assert True in best                                                    # an evaluation before the step, one after it


def test_an_adapter_run_resumes_and_knows_its_base(pretrained, sums, tmp_path):
    """Checkpoints hold the adapter alone; with other weights in its base's place it is refused, not silently wrong."""
    base, out, whole = (str(tmp_path / n) for n in ('base', 'out', 'whole'))
    shutil.copytree(pretrained, base)
    flags = ['--lora_rank=2', '--lr_schedule=constant', '--eval_interval=2', '--learning_rate=0.01']
    tune(base, sums['two'], whole, '--max_iters=4', *flags)
    tune(base, sums['two'], out, '--max_iters=2', *flags)
    train.main(['--model=bert', '--resume', f'--out_dir={out}', '--max_iters=4'])
    a, b = state(whole)['model'], state(out)['model']
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert not any(k.startswith('embeddings.') for k in a) and sum(w.numel() for w in a.values()) < 0.2 * 30000
    model, _ = train.load_model(out)
    given = state(pretrained)['model']
    assert torch.equal(model.embeddings.tokens.weight, given['embeddings.tokens.weight'])
    assert not torch.equal(model.encoder.blocks[0].attention.qkv.weight, given['encoder.blocks.0.attention.qkv.weight'])
    other = torch.load(os.path.join(base, 'ckpt.pt'), weights_only=True)
    other['model']['encoder.blocks.0.mlp.up.weight'] += 1
    torch.save(other, os.path.join(base, 'ckpt.pt'))
    with pytest.raises(ValueError, match='now holds other weights'): train.load_model(out)
    with pytest.raises(ValueError, match='now holds other weights'): train.main(['--model=bert', '--resume', f'--out_dir={out}', '--max_iters=9'])
    shutil.copytree(pretrained, base + '-2')                               # where a later run moves what it finds
    again, _ = train.load_model(out)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    shutil.rmtree(base), shutil.rmtree(base + '-2')
    with pytest.raises(ValueError, match='the weights that were in .*base, which is gone: find them'): train.load_model(out)


def test_some_examples_are_spread_over_the_file(pretrained, tmp_path, capsys):
    """Files lie sorted by class: --eval_iters takes rows from everywhere, and the commonest class is scored on the same."""
    words = 'zero one two three'.split()
    for name, n in (('train', 30), ('val', 10)):
        (tmp_path / f'{name}.jsonl').write_text(''.join(json.dumps(dict(text=f'{w} is here {i}', label=w)) + '\n' for w in words for i in range(n + 9 * (w == 'two'))))
    result = tune(pretrained, str(tmp_path), str(tmp_path / 'out'), '--max_iters=1', '--eval_iters=12')
    places = [i * 49 // 12 for i in range(12)]
    assert [p['index'] for p in lines_of(str(tmp_path / 'out/predictions.jsonl'))] == places
    assert result['commonest_accuracy'] == pytest.approx(np.mean([20 <= i < 39 for i in places]))


def test_weights_know_their_model_file(pretrained, sums, tmp_path, capsys):
    """--init_from without --model takes the model file of the weights, with what fine-tunes it well."""
    hf, out = str(tmp_path / 'hf'), str(tmp_path / 'out')
    train.main([f'--init_from={pretrained}', '--max_iters=0', f'--export_hf={hf}'])
    for source in (pretrained, os.path.join(pretrained, 'best.pt'), hf):
        config, file, *_ = train.parse([f'--init_from={source}', f'--data={sums["two"]}'])
        assert file is bert and config.learning_rate == bert.finetune['learning_rate'] and config.out_dir == 'out/bert-two-jsonl'
    train.main([f'--init_from={pretrained}', f'--data={sums["two"]}', f'--out_dir={out}', '--max_iters=1', '--device=cpu', '--warmup_iters=3'])
    assert state(out)['model_name'] == 'bert'
    assert 'all 1 steps are warm-up, no learning rate gets to its peak: lower --warmup_iters=3' in capsys.readouterr().out
    os.remove(os.path.join(out, 'ckpt.pt'))
    with pytest.raises(FileNotFoundError, match=r'best\.pt is there: --init_from=.*best.pt starts from its weights'): load_checkpoint(out)


@pytest.mark.parametrize('flags, says', [(['--freeze=9'], '3 layers'), (['--max_iters=-1'], '--max_iters=-1'), (['--eval_interval=-5'], '0 or more'),
                                         (['--export_hf=hf', '--pooler=tanh'], '--export_hf: transformers has no'), (['--log_to=wandb'], 'pip install wandb')])
def test_a_late_mistake_leaves_the_earlier_run_alone(pretrained, sums, tmp_path, flags, says, monkeypatch):
    out = str(tmp_path / 'out')
    tune(pretrained, sums['two'], out, '--max_iters=1')
    before = sorted(os.listdir(out)), os.path.getmtime(os.path.join(out, 'ckpt.pt'))
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(ValueError, match=says): tune(pretrained, sums['two'], out, '--dropout=0', *flags)
    assert (sorted(os.listdir(out)), os.path.getmtime(os.path.join(out, 'ckpt.pt'))) == before and os.listdir(tmp_path) == ['out']


def test_a_run_folder_serves_as_a_vocabulary(pretrained, sums, tmp_path):
    import bpe
    assert bpe.load(pretrained).dumps() == state(pretrained)['tokenizer']
    folder = text.prepare(sums['two'], tokenizer=pretrained, out=str(tmp_path / 'data'))
    tune(pretrained, folder, str(tmp_path / 'out'), '--max_iters=1')


def test_nothing_is_compiled_on_the_clock(pretrained, tmp_path, monkeypatch):
    "rows of many lengths: a graph for training and one for evaluation, both made before the first step"
    data, real, seen = tmp_path / 'lengths.jsonl', torch.compile, []
    with open(data, 'w') as f:
        for i in range(120): f.write(json.dumps(dict(text=f'one {i} ' + 'two ' * (i % 9) * (i % 3 == 0), label='ab'[i % 2])) + '\n')
    def graph(module, inputs):
        seen.append(len(inputs))
        return module.forward
    monkeypatch.setattr(torch, 'compile', lambda f, mode, dynamic: real(f, backend=graph, dynamic=dynamic))
    enough, fetched = [], train.Feed.send
    def send(self, arrays):
        enough.append((len(seen), *arrays[0].shape))
        return fetched(self, arrays)
    monkeypatch.setattr(train.Feed, 'send', send)
    torch._dynamo.reset()
    tune(pretrained, str(data), str(tmp_path / 'out'), '--compile=true', '--batch_size=3', '--max_iters=6', '--eval_interval=3')
    torch._dynamo.reset()
    assert len(seen) == 2 and enough[-1][0] == 2 and len({e[2] for e in enough}) > 1, enough
