"""sample.py against transformers' generate, logits processors and losses, and against loops written out naively."""
import copy, dataclasses, io, json, math, os, shutil, subprocess, sys

import numpy as np
import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import bert, bpe, gpt, sample, t5, train
from lib.models import layout_of
from lib import fill as gaps, generate as generating, pairs, score as scoring, talk

transformers = pytest.importorskip('transformers')
torch.set_num_threads(1)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
V, LIMIT = 99, 13


def theirs(kind='gpt2', limit=LIMIT):
    """A random model of transformers, with large weights so that its choices are far apart."""
    torch.manual_seed(7)
    if kind == 'gpt2':
        config = transformers.GPT2Config(vocab_size=V, n_positions=limit, n_embd=28, n_layer=2, n_head=4, initializer_range=0.3,
                                         bos_token_id=None, eos_token_id=None)
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.LlamaConfig(vocab_size=V, max_position_embeddings=limit, hidden_size=24, intermediate_size=37, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, bos_token_id=None, eos_token_id=None)
    return transformers.LlamaForCausalLM(config).eval()


def ours(model):
    config, state = layout_of(gpt).from_hf(model.config.to_dict(), model.state_dict())
    mine = gpt.Model(config)
    mine.load_state_dict(state)
    return mine.eval()


def ids_of(rows, length, seed=3): return torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope='module')
def text_model():
    """A small random model with a byte tokenizer, more rows than the tokenizer has ids, and the tokenizer."""
    torch.manual_seed(5)
    tokenizer = bpe.byte()
    config = gpt.Config(vocab_size=tokenizer.vocab_size + 30, block_size=17, n_layer=1, n_head=2, n_embd=12, init_std=0.5)
    return gpt.Model(config).eval(), tokenizer


def save(folder, model, tokenizer, name='gpt'):
    os.makedirs(folder, exist_ok=True)
    torch.save(dict(model=model.state_dict(), config=dataclasses.asdict(model.config), model_name=name, source='', step=0,
                    tokenizer=tokenizer.dumps() if tokenizer else ''), os.path.join(folder, 'ckpt.pt'))
    return str(folder)


@pytest.fixture(scope='module')
def run_folder(text_model, tmp_path_factory): return save(tmp_path_factory.mktemp('run'), *text_model)

# ---------------------------------------------------------------------------------------------------- greedy

@pytest.mark.parametrize('kind,least', [('gpt2', 2 ** 17), ('llama', 2 ** 17), ('gpt2', 0)])
def test_greedy_equals_transformers(kind, least, monkeypatch):
    monkeypatch.setattr(generating.Packed, 'least', least)                    # 0: the matrices of this tiny model too
    model, limit = theirs(kind, 41), 41
    ids = ids_of(3, 5)
    expected = model.generate(ids, max_new_tokens=limit - 5, min_new_tokens=limit - 5, do_sample=False, pad_token_id=0)
    mine = ours(model)
    for cache in (True, False): assert torch.equal(sample.generate(mine, ids, limit - 5, temperature=0, cache=cache), expected)
    penalised = model.generate(ids, max_new_tokens=30, min_new_tokens=30, do_sample=False, repetition_penalty=1.7, pad_token_id=0)
    assert not torch.equal(penalised, expected[:, :35])
    for cache in (True, False):
        assert torch.equal(sample.generate(mine, ids, 30, temperature=0, repetition_penalty=1.7, cache=cache), penalised)


@pytest.mark.parametrize('kind,slide', [('gpt2', 1), ('llama', 1), ('gpt2', 4), ('gpt2', LIMIT)])
@pytest.mark.parametrize('T', [3, LIMIT, LIMIT + 9])
def test_past_block_size(kind, slide, T):
    """slide=1 is nanoGPT's idx[:, -block_size:]; slide=N starts N tokens later each time the window overflows."""
    model, n = theirs(kind), 25
    ids = ids_of(2, T)
    text, start = ids, max(0, T - LIMIT)
    with torch.no_grad():
        for _ in range(n):
            if text.size(1) - start > LIMIT: start += slide
            context = text[:, -LIMIT:] if slide == 1 else text[:, start:]
            text = torch.cat((text, model(context).logits[:, -1:].argmax(-1)), dim=1)
    mine = ours(model)
    for cache in (True, False): assert torch.equal(sample.generate(mine, ids, n, temperature=0, slide=slide, cache=cache), text)


def test_rows_are_independent_and_a_common_prompt_is_computed_once():
    mine, calls = ours(theirs()), []
    step = mine.step
    mine.step = lambda ids, cache: calls.append(tuple(ids.shape)) or step(ids, cache)
    same = ids_of(1, 4).expand(3, -1)
    out = sample.generate(mine, same, 6, temperature=0)
    assert calls == [(1, 4)] + [(3, 1)] * 5
    assert torch.equal(out, sample.generate(mine, same[:1], 6, temperature=0).expand(3, -1))
    mixed = ids_of(3, 4)
    out = sample.generate(mine, mixed, 12, temperature=0)
    for r in range(3): assert torch.equal(out[r:r + 1], sample.generate(mine, mixed[r:r + 1], 12, temperature=0))
    sampled = sample.generate(mine, same, 30, seed=1)
    assert len({tuple(r) for r in sampled.tolist()}) == 3                  # copies of the cache, not one for all
    assert torch.equal(sampled, sample.generate(mine, same, 30, seed=1)) and not torch.equal(sampled, sample.generate(mine, same, 30, seed=2))
    assert torch.equal(sampled, sample.generate(mine, same, 30, seed=1, cache=False))


def test_packed_layer_is_a_linear_layer(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.nn.functional, 'linear', lambda *a, real=torch.nn.functional.linear: calls.append(a[1].shape) or real(*a))
    monkeypatch.setattr(generating.Packed, 'least', 0)
    torch.manual_seed(0)
    for bias in (True, False):
        layer, x = torch.nn.Linear(301, 443, bias=bias), calls.clear()
        exact = lambda x: x.double() @ layer.weight.double().t() + (layer.bias.double() if bias else 0)
        with torch.no_grad(), sample.packed(torch.nn.ModuleList([layer])):
            for shape in ((1, 1), (3, 1), (1, 4), (2, 33), ()):
                x = torch.randn(*shape, 301)
                torch.testing.assert_close(layer(x).double(), exact(x), atol=1e-5, rtol=1e-5)
            assert not calls
            layer.weight.mul_(2)                                           # trained meanwhile
            torch.testing.assert_close(layer(x).double(), exact(x), atol=1e-5, rtol=1e-5)
            x = torch.randn(7, 301)
            torch.testing.assert_close(layer(x.double()), exact(x)) if layer.double() else None
            layer.float()
        with sample.packed(torch.nn.ModuleList([layer])):                  # with a gradient it is the plain layer
            calls.clear()
            layer(x).sum().backward()
            assert calls and layer.weight.grad is not None
        assert type(layer) is torch.nn.Linear
        copy.deepcopy(layer)


def test_state_of_the_model_comes_back():
    mine = ours(theirs()).train()
    before = torch.random.get_rng_state()
    for _ in sample.stream(mine, ids_of(1, 3), 4):
        assert mine.training and torch.is_grad_enabled()
    assert mine.training and torch.equal(before, torch.random.get_rng_state())
    assert all(type(m) is not generating.Packed for m in mine.modules())


def test_compiled_step_is_the_eager_one(monkeypatch):
    """One graph without a break, for two prompts of different lengths."""
    real = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, **kw: real(f, backend='eager', fullgraph=kw['fullgraph'], dynamic=kw['dynamic']))
    generating.compiled.cache_clear()
    monkeypatch.setattr(sample.sys, 'stderr', io.StringIO())
    mine = ours(theirs(limit=41))
    for T in (4, 7):
        for options in (dict(temperature=0), dict(seed=3, top_k=9, top_p=0.8, min_p=0.01, repetition_penalty=1.2)):
            assert torch.equal(sample.generate(mine, ids_of(2, T), 9, compile=True, **options), sample.generate(mine, ids_of(2, T), 9, **options))
    assert 'failed' not in sample.sys.stderr.getvalue()
    def broken(f, **kw):
        def call(*args): raise RuntimeError('no compiler')
        return call
    monkeypatch.setattr(torch, 'compile', broken)
    generating.compiled.cache_clear()
    assert torch.equal(sample.generate(mine, ids_of(2, 4), 9, compile=True, temperature=0), sample.generate(mine, ids_of(2, 4), 9, temperature=0))
    assert 'no compiler' in sample.sys.stderr.getvalue()
    generating.compiled.cache_clear()

# ---------------------------------------------------------------------------------------------------- sampling

@pytest.mark.parametrize('options', [
    dict(temperature=0.7), dict(top_k=5), dict(top_k=500), dict(top_p=0.6), dict(top_p=0.0), dict(min_p=0.2), dict(repetition_penalty=1.4),
    dict(repetition_penalty=0.7), dict(temperature=1.6, top_k=20, top_p=0.7), dict(temperature=0.6, top_p=0.95, min_p=0.05),
    dict(temperature=1.3, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.2)], ids=str)
def test_distribution_equals_transformers(options):
    logits, ids = 3 * torch.randn(4, V, generator=torch.Generator().manual_seed(1)), ids_of(4, 11)
    processors, p = transformers.LogitsProcessorList(), transformers.generation.logits_process
    if 'repetition_penalty' in options: processors.append(p.RepetitionPenaltyLogitsProcessor(options['repetition_penalty']))
    for name, make in (('temperature', p.TemperatureLogitsWarper), ('top_k', p.TopKLogitsWarper), ('top_p', p.TopPLogitsWarper), ('min_p', p.MinPLogitsWarper)):
        if name in options: processors.append(make(options[name]))
    expected = processors(ids, logits.clone()).softmax(-1)
    seen = torch.zeros(4, V, dtype=torch.bool).scatter_(1, ids, True)
    left, tokens = sample.filtered(logits, seen, **options)
    left = left.softmax(-1)
    if tokens is not None: left = torch.zeros(4, V).scatter(1, tokens, left)
    torch.testing.assert_close(left, expected, atol=1e-6, rtol=1e-5)


def test_options_reach_transformers_own_order():
    """The order in which transformers puts its processors together, not only each of them."""
    model = theirs()
    config = transformers.GenerationConfig(do_sample=True, temperature=1.4, top_k=30, top_p=0.8, min_p=0.03, repetition_penalty=1.3)
    chain = model._get_logits_processor(config, input_ids_seq_length=5, prefix_allowed_tokens_fn=None, logits_processor=[], device='cpu')
    logits, ids = 3 * torch.randn(2, V, generator=torch.Generator().manual_seed(2)), ids_of(2, 5)
    left, tokens = sample.filtered(logits, torch.zeros(2, V, dtype=torch.bool).scatter_(1, ids, True), temperature=1.4, top_k=30, top_p=0.8,
                                   min_p=0.03, repetition_penalty=1.3)
    torch.testing.assert_close(torch.zeros(2, V).scatter(1, tokens, left.softmax(-1)), chain(ids, logits.clone()).softmax(-1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('options', [dict(), dict(temperature=1.5, top_k=7), dict(top_p=0.9)], ids=str)
def test_samples_follow_the_distribution(options):
    """20,000 first tokens of one prompt against the probabilities of transformers' model."""
    model, ids, n = theirs(), ids_of(1, 6), 20000
    with torch.no_grad(): logits = model(ids).logits[:, -1] / 3
    mine = ours(model)
    mine.head.weight = torch.nn.Parameter(mine.head.weight / 3)            # flatter: many tokens have a share
    seen = sample.generate(mine, ids.expand(n, -1), 1, seed=11, **options)[:, -1]
    left, tokens = sample.filtered(logits, **options)
    p = left.softmax(-1)[0] if tokens is None else torch.zeros(V).scatter(0, tokens[0], left.softmax(-1)[0])
    count = torch.bincount(seen, minlength=V).float()
    assert (count[p == 0] == 0).all()
    big = p * n > 5
    chi2 = ((count - n * p)[big] ** 2 / (n * p)[big]).sum().item()
    assert big.sum() > 6 and chi2 < big.sum() + 5 * math.sqrt(2 * big.sum())


def test_only_ids_of_the_vocabulary(text_model):
    model, tokenizer = text_model
    wild = sample.generate(model, torch.zeros(4, 3, dtype=torch.long), 60, temperature=5.0)
    assert wild[:, 3:].max() >= tokenizer.vocab_size                       # the model itself would
    for options in (dict(temperature=5.0), dict(temperature=0), dict(top_k=300, repetition_penalty=1.1), dict(top_p=0.99, cache=False)):
        out = sample.generate(model, torch.zeros(4, 3, dtype=torch.long), 60, vocab_size=tokenizer.vocab_size, **options)
        assert out[:, 3:].max() < tokenizer.vocab_size


def test_end_of_text():
    mine, ids = ours(theirs()), ids_of(3, 4)
    free = sample.generate(mine, ids, 40, seed=2)
    eot = int(free[0, 9])
    out = sample.generate(mine, ids, 40, seed=2, eot=eot)
    for row, whole in zip(out[:, 4:].tolist(), free[:, 4:].tolist()):
        at = whole.index(eot) if eot in whole else len(whole)
        assert row == (whole[:at] + [eot] * 40)[:len(row)]
    assert out.size(1) == 4 + max(r.index(eot) + 1 if eot in r else 40 for r in free[:, 4:].tolist())
    one = sample.generate(mine, ids[:1], 40, temperature=0)
    eot = int(one[0, 6])
    assert sample.generate(mine, ids[:1], 40, temperature=0, eot=eot).tolist() == [one[0, :one[0, 4:].tolist().index(eot) + 5].tolist()]


def test_tokens_made_before_the_end_was_seen_are_cut_off(monkeypatch):
    """A GPU is asked every 16 tokens only."""
    made = torch.tensor([[1, 5, 6, 9, 7, 7], [2, 9, 8, 8, 8, 9]])          # after one token of prompt; 9 is the end
    monkeypatch.setattr('lib.generate.stream', lambda *a, **kw: iter([made]))
    assert sample.generate(ours(theirs()), made[:, :1], 5, eot=9).tolist() == [[1, 5, 6, 9], [2, 9, 9, 9]]


def test_any_model_with_the_protocol():
    """A model of its own kind: its cache is a dict, its next token depends on the last two."""
    class Pairs(torch.nn.Module):
        class config: vocab_size, block_size = 11, 8
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(11, 11, 11, generator=torch.Generator().manual_seed(0)))
        def logits(self, ids):
            before = torch.cat((torch.zeros_like(ids[:, :1]), ids[:, :-1]), dim=1)
            return self.table[before, ids]
        def cache(self, rows, length): return {'last': [torch.zeros(rows, dtype=torch.long)]}
        def step(self, ids, cache):
            both = torch.cat((cache['last'][0][:, None], ids), dim=1)
            cache['last'][0].copy_(ids[:, -1])
            return self.table[both[:, -2], both[:, -1]]
    model, ids = Pairs(), torch.tensor([[1, 2], [1, 2], [1, 2]])
    for options in (dict(temperature=0), dict(seed=4)):
        assert torch.equal(sample.generate(model, ids, 6, **options), sample.generate(model, ids, 6, cache=False, **options))
    del Pairs.step, Pairs.cache
    assert sample.generate(model, ids, 6).shape == (3, 8)
    with pytest.raises(ValueError, match='no ids'): next(sample.stream(model, ids[:, :0], 3))
    with pytest.raises(ValueError, match='slide=9'): next(sample.stream(model, ids, 3, slide=9))

# ---------------------------------------------------------------------------------------------------- text

def test_text_that_is_shown_never_breaks():
    tokenizer, text = bpe.byte(), 'aé€😀 stop sto'
    ids, shown = tokenizer.encode(text), []
    for n in range(len(ids) + 1): shown.append(talk.visible(tokenizer, [65], ids[:n], '', False)[0])
    assert shown[:5] == ['', 'a', 'a', 'aé', 'aé'] and shown[-1] == text and all(b.startswith(a) for a, b in zip(shown, shown[1:]))
    assert talk.visible(tokenizer, [], ids[:2], '', True) == ('a\ufffd', False)
    assert talk.visible(tokenizer, [], [200, 97], '', False) == ('\ufffda', False)          # a byte that begins nothing
    assert talk.visible(tokenizer, [], ids, 'stop', False) == ('aé€😀 ', True)
    for n in range(len(ids)):
        text_n, ended = talk.visible(tokenizer, [], ids[:n], 'stop', False)
        assert 'aé€😀 '.startswith(text_n) or ended
    assert talk.visible(tokenizer, [], tokenizer.encode('xx sto'), 'stop', False) == ('xx ', False)
    assert talk.visible(tokenizer, [], tokenizer.encode('xx sto'), 'stop', True) == ('xx sto', False)


def call(capsys, *argv):
    result = sample.main(['--device=cpu', *argv])
    return result, *capsys.readouterr()


def test_command(run_folder, text_model, capsys, monkeypatch, tmp_path):
    model, tokenizer = text_model
    flags = f'--out_dir={run_folder}', '--max_new_tokens=20', '--ignore_eot'
    result, out, err = call(capsys, *flags, '--prompt=héy', '--num_samples=3')
    parts = out[:-1].split('\n---------------\n')
    assert len(parts) == 3 and all(p.startswith('héy') for p in parts) and [p[3:] for p in parts] == result['texts'] and 'tokens/s' in err
    assert call(capsys, *flags, '--prompt=héy', '--num_samples=3')[1] == out and call(capsys, *flags, '--prompt=héy', '--num_samples=3', '--seed=5')[1] != out
    # greedy text, by hand
    ids = torch.tensor([tokenizer.encode('ab')])
    expected = tokenizer.decode(sample.generate(model, ids, 20, temperature=0, vocab_size=tokenizer.vocab_size, cache=False)[0, 2:].tolist())
    for more in ([], ['--stream'], ['--cache=false'], ['--stream', '--cache', 'false']):
        assert call(capsys, *flags, '--prompt=ab', '--temperature=0', *more)[:2] == (dict(prompt='ab', texts=[expected]), f'ab{expected}\n')
    # prompts of all sorts
    (tmp_path / 'p.txt').write_bytes('x\r\n€'.encode())
    assert call(capsys, *flags, f'--prompt=FILE:{tmp_path}/p.txt')[0]['prompt'] == 'x\r\n€'
    monkeypatch.setattr(sys, 'stdin', io.StringIO('from a pipe\n'))
    assert call(capsys, *flags, '--prompt', '-')[1].startswith('from a pipe\n')
    seen = []
    real = sample.stream
    monkeypatch.setattr('lib.generate.stream', lambda model, ids, *a, **kw: seen.append(ids.tolist()) or real(model, ids, *a, **kw))
    call(capsys, *flags)
    call(capsys, *flags, '--prompt=<|sep|>a')
    assert seen == [[[tokenizer.eot]], [[tokenizer.special['<|sep|>'], 97]]]
    assert 'the model sees the last 17' in call(capsys, *flags, '--prompt=' + 'x' * 30)[2]


def test_stop_and_end(run_folder, text_model, capsys, monkeypatch):
    tokenizer, flags = text_model[1], ('--prompt=a', f'--out_dir={run_folder}')
    def fake(model, ids, n, **kw):                                         # says this, whatever the model thinks
        for t in range(1, len(said) + 1):
            asked.append(t)
            yield torch.cat((ids, torch.tensor([said[:t]] * len(ids))), dim=1)
    monkeypatch.setattr('lib.generate.stream', fake)
    asked, said = [], [*tokenizer.encode('one\n\ntwo'), tokenizer.eot, *tokenizer.encode('three')]
    for more in ([], ['--stream']):
        assert call(capsys, *flags, *more)[1] == 'aone\n\ntwo\n' and asked[-1] == 9
        assert call(capsys, *flags, '--stop=\\n\\n', *more)[1] == 'aone\n'
        assert call(capsys, *flags, '--stop=two', *more)[1] == 'aone\n\n\n'
        assert call(capsys, *flags, '--stop=twos', *more)[1] == 'aone\n\ntwo\n'
        assert call(capsys, *flags, '--ignore_eot', *more)[1] == 'aone\n\ntwo<|endoftext|>three\n'


def test_streaming_shows_text_as_it_comes(run_folder, text_model, monkeypatch):
    model, tokenizer = text_model
    made, shown = [0], []
    real = sample.stream
    def counted(*a, **kw):
        for text in real(*a, **kw): made[0] += 1; yield text
    monkeypatch.setattr('lib.generate.stream', counted)
    config = sample.Config(max_new_tokens=15, ignore_eot=True, seed=1)
    texts, _ = sample.continuations(model, tokenizer, 'a', config, 1, 1, lambda piece: shown.append((made[0], piece)))
    assert ''.join(p for _, p in shown) == texts[0] and [n for n, _ in shown][:15] == list(range(1, 16))


def test_interactive(run_folder, monkeypatch, capsys):
    lines = iter(['first', KeyboardInterrupt, 'second', 'third', EOFError])
    def answer(prompt=''):
        line = next(lines)
        if isinstance(line, str): return line
        raise line
    monkeypatch.setattr('builtins.input', answer)
    real, calls = sample.stream, []
    def interrupted(*a, **kw):
        calls.append(1)
        for i, text in enumerate(real(*a, **kw)):
            if len(calls) == 2 and i == 3: raise KeyboardInterrupt
            yield text
    monkeypatch.setattr('lib.generate.stream', interrupted)
    result, out, err = call(capsys, f'--out_dir={run_folder}', '--interactive', '--max_new_tokens=12')
    assert len(result['texts']) == 2 and out.index('first') < out.index('second') < out.index('stopped') < out.index('third')
    assert err.count('tokens/s') == 2


def test_mistakes(run_folder, text_model, tmp_path, capsys, monkeypatch):
    model, _ = text_model
    ask = lambda *argv: sample.main(['--device=cpu', *argv])
    for argv, message in (
            (['--tempertaure=1'], 'unknown flag --tempertaure; did you mean --temperature'), (['prompt'], "unexpected argument 'prompt'"), (['--prompt'], '--prompt needs a value'),
            (['--top_p=2'], '--top_p=2.0: expected 0 to 1'), (['--num_samples=x'], '--num_samples=x: expected a whole number'), (['--stream=maybe'], 'true or false'),
            (['--dtype=int8'], 'expected one of auto'), (['--num_samples=0'], 'expected 1 or more'), ([f'--out_dir={tmp_path}/none'], 'python train.py'),
            ([f'--out_dir={run_folder}', '--prompt=FILE:none.txt'], 'No such file'), ([f'--out_dir={run_folder}', '--slide=18'], 'block_size=17'),
            ([f'--out_dir={run_folder}', '--eval=lm'], '--text=FILE'), ([f'--out_dir={run_folder}', '--eval=hellaswag'], 'expected lm or a .jsonl file'),
            ([f'--out_dir={run_folder}', '--eval=lm', '--text=none.txt'], 'none.txt'), ([f'--out_dir={run_folder}', '--eval=lm', f'--text={__file__}', '--stride=18'], 'block_size=17')):
        with pytest.raises((ValueError, OSError), match=message.replace('(', r'\(')) as e: ask(*argv)
        assert '\n' not in str(e.value)
    char = save(tmp_path / 'char', model, bpe.char(['abc']))
    with pytest.raises(ValueError, match="'€'"): ask(f'--out_dir={char}', '--prompt=a€')
    bare = save(tmp_path / 'bare', model, None)
    with pytest.raises(ValueError, match='--tokenizer=FILE'): ask(f'--out_dir={bare}', '--prompt=a')
    assert len(ask(f'--out_dir={bare}', '--prompt=a', '--tokenizer=byte', '--max_new_tokens=3')['texts']) == 1
    bpe.char([''.join(map(chr, range(400, 900)))]).save(str(tmp_path / 'large.json'))
    with pytest.raises(ValueError, match='not the one of this model'): ask(f'--out_dir={run_folder}', f'--tokenizer={tmp_path}/large.json')
    monkeypatch.setattr(gpt, 'likelihood', False)
    with pytest.raises(ValueError, match='gpt.py .kind=text. cannot tell the likelihood'): ask(f'--out_dir={run_folder}', '--eval=lm', f'--text={__file__}')


def test_shell_and_a_copied_model_file(text_model, tmp_path):
    """`cp gpt.py mine.py` is enough for sample.py too; statuses and one line of error as the shell sees them."""
    shutil.copy(gpt.__file__, tmp_path / 'mine.py')
    save(tmp_path / 'out' / 'gpt', *text_model, name='mine')
    env = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    def shell(*argv): return subprocess.run([sys.executable, os.path.join(ROOT, 'sample.py'), *argv], cwd=tmp_path, capture_output=True, text=True, env=env)
    good = shell('--prompt=ab', '--max_new_tokens=5')
    assert good.returncode == 0 and good.stdout.startswith('ab') and 'tokens/s' in good.stderr
    for argv, status in ((['--promt=x'], 2), (['--out_dir=no'], 1)):
        bad = shell(*argv)
        assert bad.returncode == status and bad.stdout == '' and bad.stderr.startswith('sample.py: ') and bad.stderr.count('\n') == 1


def test_help_is_short_and_help_all_has_every_flag(capsys, monkeypatch):
    fields = [f.name for f in dataclasses.fields(sample.Config)]
    assert set(sample.MAIN_FLAGS) < set(fields)
    for argv, names in ((['--help'], sample.MAIN_FLAGS), (['-h'], sample.MAIN_FLAGS), (['--help=all'], fields)):
        with pytest.raises(SystemExit) as e: sample.parse(argv)
        out = capsys.readouterr().out
        listed = [line.split('=')[0].strip() for line in out.splitlines() if line.startswith('  --')]
        assert e.value.code == 0 and sorted(listed) == sorted('--' + n for n in names) and max(map(len, out.splitlines())) <= 100
        assert (f'--help=all lists all {len(fields)} flags' in out and len(out.splitlines()) <= 45) == (argv != ['--help=all']), out
    assert all(text for _, text, _ in sample.fields_of(sample.Config))


def test_traceback_shows_where_a_mistake_was_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['sample.py', f'--out_dir={tmp_path}/none', '--device=cpu'])
    with pytest.raises(SystemExit): sample.cli()
    monkeypatch.setenv('TRACEBACK', '1')
    with pytest.raises(FileNotFoundError, match='no run in'): sample.cli()

# ---------------------------------------------------------------------------------------------------- evaluation

def logp(model, ids):
    """Naive: log p of each id after those before, by transformers, one text at a time. -> list of len(ids) - 1"""
    with torch.no_grad(): p = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    return [p[t, i].item() for t, i in enumerate(ids[1:])], [int(p[t].argmax()) == i for t, i in enumerate(ids[1:])]


@pytest.fixture(scope='module')
def byte_pair():
    """The same model twice: transformers' and ours, over bytes."""
    torch.manual_seed(9)
    tokenizer = bpe.byte()
    config = transformers.GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=23, n_embd=28, n_layer=2, n_head=4, initializer_range=0.2)
    model = transformers.GPT2LMHeadModel(config).eval()
    return model, ours(model), tokenizer


@pytest.mark.parametrize('stride', [0, 1, 7, 23])
def test_lm_equals_transformers(byte_pair, tmp_path, capsys, stride):
    model, mine, tokenizer = byte_pair
    text = 'Ein Text, länger als ein Fenster: fünf hundert Meilen 🙂.\n' * 2
    (tmp_path / 't.txt').write_text(text, encoding='utf-8')
    folder = save(tmp_path / 'run', mine, tokenizer)
    ids, step, total, at = [tokenizer.eot] + tokenizer.encode(text), stride or 11, 0.0, 0
    for end in [*range(23, len(ids) - 1, step), len(ids) - 1]:             # loss of transformers, with the labels of seen tokens masked
        window = torch.tensor([ids[max(0, end - 23):end + 1]])
        labels = window.clone()
        labels[:, :-(end - at)] = -100
        with torch.no_grad(): total += model(window[:, :-1]).logits[0].log_softmax(-1)[torch.arange(window.size(1) - 1), window[0, 1:]][labels[0, 1:] >= 0].sum().item()
        at = end
    results = [call(capsys, f'--init_from={folder}', '--eval=lm', f'--text={tmp_path}/t.txt', f'--batch_size={b}', f'--stride={stride}')[0] for b in (1, 5)]
    for r in results:
        assert r['tokens'] == len(ids) - 1 == r['bytes'] == len(text.encode())
        assert r['loss'] == pytest.approx(-total / r['tokens'], abs=1e-4) and r['perplexity'] == pytest.approx(math.exp(r['loss']), rel=1e-6)
        assert r['bits_per_byte'] == pytest.approx(-total / math.log(2) / len(text.encode()), abs=1e-4)


def test_lm_of_a_short_text_is_transformers_loss(byte_pair, tmp_path, capsys):
    model, mine, tokenizer = byte_pair
    (tmp_path / 't.txt').write_text('short text')
    ids = torch.tensor([[tokenizer.eot] + tokenizer.encode('short text')])
    with torch.no_grad(): expected = model(ids, labels=ids).loss.item()
    folder = save(tmp_path / 'run', mine, tokenizer)
    assert call(capsys, f'--init_from={folder}', '--eval=lm', f'--text={tmp_path}/t.txt')[0]['loss'] == pytest.approx(expected, abs=1e-5)
    (tmp_path / 'e.txt').write_text('')
    with pytest.raises(ValueError, match='e.txt'): sample.main([f'--init_from={folder}', '--eval=lm', f'--text={tmp_path}/e.txt'])


def test_items_equal_naive_scores(byte_pair, tmp_path, capsys):
    model, mine, tokenizer = byte_pair
    rng = np.random.default_rng(0)
    word = lambda n: ''.join(chr(c) for c in rng.integers(97, 123, n))
    items = [dict(query=word(rng.integers(1, 16)), choices=[word(rng.integers(1, 9)) for _ in range(rng.integers(2, 5))], gold=0) for _ in range(40)]
    items += [dict(query='', choices=['ab', 'cd e'], gold=1), dict(query='ends ', choices=[' x', 'yy'], gold=0), dict(query='long' * 7, choices=['one', 'two2'], gold=1)]
    lasts = [dict(context=word(rng.integers(1, 16)), continuation=word(1 + i % 2)) for i in range(30)]
    def naive(before, after):                                              # bytes: ids of a text are those of its parts
        after = after if not before or before[-1] == ' ' or after[0] == ' ' else ' ' + after
        white = len(before) - len(before.rstrip())
        after, before = before[len(before) - white:] + after, before[:len(before) - white]
        tail = tokenizer.encode(after)
        ids = ([] if before else [tokenizer.eot]) + tokenizer.encode(before) + tail
        p, best = logp(model, ids[-24:])
        return sum(p[-len(tail):]), all(best[-len(tail):])
    for item in lasts[::3]:                                                # some that are right
        ids = torch.tensor([tokenizer.encode(item['context'] + ' ')])
        with torch.no_grad(): item['continuation'] = tokenizer.decode([int(model(ids).logits[0, -1, 33:127].argmax()) + 33])
    plain = norm = 0
    for item in items:
        p = [naive(item['query'], c)[0] for c in item['choices']]
        item['gold'] = int(rng.integers(len(p))) if rng.random() < 0.5 else int(np.argmax(p))
        plain += np.argmax(p) == item['gold']
        norm += np.argmax([x / len(c.strip()) for x, c in zip(p, item['choices'])]) == item['gold']
    words = [naive(i['context'], i['continuation']) for i in lasts]
    path = tmp_path / 'items.jsonl'
    path.write_text('\n'.join(map(json.dumps, items + lasts)) + '\n\n')
    folder, results = save(tmp_path / 'run', mine, tokenizer), []
    for size in (1, 3, 64): results.append(call(capsys, f'--init_from={folder}', f'--eval={path}', f'--batch_size={size}')[0])
    for r in results:
        assert (r['items'], r['words']) == (43, 30)
        assert r['accuracy'] == pytest.approx(plain / 43) and r['accuracy_norm'] == pytest.approx(norm / 43) and plain != norm
        assert r['word_accuracy'] == pytest.approx(np.mean([b for _, b in words]))
        assert r['word_perplexity'] == pytest.approx(math.exp(-np.mean([p for p, _ in words])), rel=1e-3)


def test_scores_do_not_depend_on_the_batch(byte_pair):
    model, mine, _ = byte_pair
    rng = np.random.default_rng(1)
    rows = []
    for n in (2, 24, 9, 3, 17):
        ids = rng.integers(0, 256, n)
        rows.append((ids, int(rng.integers(1, n))))
    expected = [sum(logp(model, ids.tolist())[0][-n:]) for ids, n in rows]
    for size in (1, 2, 5):
        assert [p for p, _ in sample.score(mine, rows, size)] == pytest.approx(expected, abs=1e-3)
    assert not mine.training


def test_boundary_inside_a_token():
    """Where a merge crosses from query to choice, the scored part begins with the merged token."""
    tokenizer = bpe.train(['abab abab abab '] * 50, 256 + 105 + 4)
    ids, n = scoring.scored_row(tokenizer, 'ab a', 'bab', '', 64)
    assert ids == tokenizer.encode('ab abab') and 1 <= n < len(ids) and tokenizer.decode(ids[-n:]).endswith('bab')
    ids, n = scoring.scored_row(tokenizer, 'x y', 'z', ' ', 64)
    assert tokenizer.decode(ids) == 'x y z' and tokenizer.decode(ids[-n:]) == ' z'
    ids, n = scoring.scored_row(bpe.byte(), 'ab  ', 'cd', ' ', 64)          # white space belongs to what is scored
    assert bytes(ids) == b'ab  cd' and n == 4
    ids, n = scoring.scored_row(bpe.byte(), 'abcdefgh', 'ij', ' ', 5)       # five are seen, and the last one is a target
    assert bytes(ids) == b'fgh ij' and n == 3
    assert bytes(scoring.scored_row(bpe.byte(), 'ab', ' cd', ' ', 64)[0]) == b'ab cd'
    ids, n = scoring.scored_row(bpe.byte(), '', 'ij', ' ', 64)
    assert ids == [bpe.byte().eot, *b'ij'] and n == 2


@pytest.mark.parametrize('line,message', [
    ('{"query": "a"', 'not JSON'), ('[' * 100_000, 'not JSON'), ('[1]', 'a list'), ('{"query": "a"}', 'has query'), ('{"query": "a", "choices": "bc", "gold": 0}', 'is not a list of texts'),
    ('{"query": "a", "choices": ["b", "c"], "gold": 2}', '"gold" is 2 with 2 choices'), ('{"query": "a", "choices": ["b", "c"], "gold": "b"}', "\"gold\" is 'b'"),
    ('{"context": "a", "continuation": ""}', 'expected {"query"'), ('{"query": "a", "choices": ["b", "' + 'c' * 30 + '"], "gold": 0}', 'model sees 23')])
def test_malformed_items(byte_pair, tmp_path, line, message):
    _, mine, tokenizer = byte_pair
    path, folder = tmp_path / 'bad.jsonl', save(tmp_path / 'run', mine, tokenizer)
    path.write_text('{"query": "a", "choices": ["b", "c"], "gold": 1}\n\n' + line + '\n')
    with pytest.raises(ValueError, match='bad.jsonl line 3: ') as e: sample.main([f'--init_from={folder}', f'--eval={path}', '--device=cpu'])
    assert message in str(e.value) and '\n' not in str(e.value)

# ---------------------------------------------------------------------------------------------------- encoders

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *".,?!'-()", 'the', 'capital', 'of', 'france', 'is', 'paris', 'who', 'won', 'a', 'film', 'bad',
         'good', '##s', '##ing', '##al', 'town', 'in', 'b', 'c', 'd', '##d', '##e', '##t', 't', 'n']


@pytest.fixture(scope='module')
def hf(tmp_path_factory):
    """hf(head, **config): folder of a tiny random BERT as transformers saves it, with a WordPiece vocabulary, and the model."""
    tokenizer, done = transformers.BertTokenizer(vocab={w: i for i, w in enumerate(WORDS)}), {}
    def make(head, **more):
        key = head + str(more)
        if key not in done:
            torch.manual_seed(len(done))
            config = transformers.BertConfig(vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=37,
                                             max_position_embeddings=29, initializer_range=0.5, **more)
            model, folder = getattr(transformers, 'Bert' + head)(config).eval(), str(tmp_path_factory.mktemp('hf'))
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            done[key] = folder, model
        return *done[key], tokenizer
    return make


def test_fillings_equal_transformers(hf, capsys):
    folder, model, tokenizer = hf('ForMaskedLM')
    pipe = transformers.pipeline('fill-mask', model=model, tokenizer=tokenizer, device='cpu')
    for text in ('The capital of [MASK] is Paris.', 'The [MASK] of [MASK] is good.'):
        result, out, _ = call(capsys, f'--init_from={folder}', f'--prompt={text}', '--top=7')
        (record,), theirs = result['records'], pipe(text, top_k=7)
        theirs = theirs if isinstance(theirs[0], list) else [theirs]
        assert len(record['masks']) == len(theirs) == text.count('[MASK]')
        for mine, other in zip(record['masks'], theirs):
            assert [m['token'] for m in mine] == [o['token_str'].removeprefix('##') for o in other]
            assert [m['probability'] for m in mine] == pytest.approx([o['score'] for o in other], abs=1e-5)
            if len(theirs) == 1: assert [m['text'].lower().replace(' ', '') for m in mine] == [o['sequence'].replace(' ', '').replace('ofis', 'of[UNK]is' if o['token_str'] == '[UNK]' else 'ofis').lower() for o in other]
    assert out.count('mask ') == 2 and out.endswith(record['text'] + '\n')


def test_a_file_of_gaps_and_the_places_of_fillings(hf, tmp_path, capsys):
    folder = hf('ForMaskedLM')[0]
    lines = ['The [MASK] .', 'Who won in [MASK] town?', 'a [MASK]']
    (tmp_path / 'p.txt').write_text('\n'.join(lines) + '\n')
    records = call(capsys, f'--init_from={folder}', f'--prompt=FILE:{tmp_path}/p.txt', '--batch_size=2', f'--out={tmp_path}/o.jsonl')[0]['records']
    assert [json.loads(line) for line in open(tmp_path / 'o.jsonl')] == records
    for line, r in zip(lines, records):                                    # padding and order change nothing
        alone = sample.main([f'--init_from={folder}', f'--prompt={line}', '--device=cpu', '--json'])['records'][0]
        assert json.loads(capsys.readouterr().out) == alone
        assert alone['masks'][0][0]['probability'] == pytest.approx(r['masks'][0][0]['probability'], abs=1e-5) and alone['text'] == r['text']
    wordpiece, gpt2 = train.load_model(folder)[1], bpe.train(['the town is good and the film is not '] * 40, 256 + 105 + 20)
    def join(tokenizer, parts, *pieces): return gaps.join(tokenizer, parts, list(pieces))
    assert join(wordpiece, ['of ', ' is ', '.'], ' france', 's') == 'of france iss.' and join(wordpiece, ['well-', ''], ' known') == 'well-known'
    assert join(gpt2, ['of ', ' is'], ' france') == 'of france is' and join(gpt2, ['of ', ' is'], 'ten') == 'often is' and join(gpt2, ['', ' is'], ' it') == 'it is'
    assert join(bpe.byte(), ['of ', ''], 'f') == 'of f' and join(bpe.byte(), ['a', 'b'], ' ') == 'a b'
    assert gaps.give_space_to_gap(gpt2, 'of [M] is', r'\[M\]') == 'of[M] is' and gaps.give_space_to_gap(bpe.byte(), 'of [M]', r'\[M\]') == 'of [M]'
    assert gaps.text_after(wordpiece, [WORDS.index('##s')], 4) == 's' and gaps.text_after(wordpiece, [WORDS.index('the')], 4) == ' the'


def encoder(tmp_path, kind, tokenizer, name='run', **more):
    """A checkpoint of bert.py as train.py writes it."""
    torch.manual_seed(3)
    config = bert.Config(**{**dict(vocab_size=tokenizer.vocab_size, block_size=41, n_layer=2, n_head=3, n_embd=24, n_hidden=37, init_std=0.5, kind=kind, eot_id=tokenizer.eot,
                                   pad_id=tokenizer.pad, cls_id=tokenizer.cls, sep_id=tokenizer.sep, mask_id=tokenizer.mask), **more})
    return save(tmp_path / name, bert.Model(config), tokenizer, 'bert')


def test_our_own_mask_token(tmp_path, capsys):
    folder, tokenizer = encoder(tmp_path, 'text', bpe.byte()), bpe.byte()
    model = train.load_model(folder)[0]
    record = call(capsys, f'--out_dir={folder}', '--prompt=ab[MASK]d<|mask|>')[0]['records'][0]
    ids = torch.tensor([[tokenizer.cls, 97, 98, tokenizer.mask, 100, tokenizer.mask, tokenizer.sep]])
    with torch.no_grad(): p = model.logits(ids).softmax(-1)[0, [3, 5]].topk(5)
    assert [[m['probability'] for m in row] for row in record['masks']] == [pytest.approx(row, abs=1e-6) for row in p.values.tolist()]
    with pytest.raises(ValueError, match='2 masks, 1 of them within block_size=41'): call(capsys, f'--out_dir={folder}', '--prompt=[MASK]' + 'x' * 60 + '[MASK]')


def test_classes_equal_transformers(hf, tmp_path, capsys):
    folder, model, tokenizer = hf('ForSequenceClassification', id2label={0: 'bad', 1: 'so-so', 2: 'good'}, label2id={'bad': 0, 'so-so': 1, 'good': 2})
    rows = [dict(text='a good film', label='good'), dict(text='the town', text_b='is bad, bad'), dict(text='who won in paris? ' * 9)]
    (tmp_path / 'x.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n\n')
    result, out, err = call(capsys, f'--init_from={folder}', f'--classify={tmp_path}/x.jsonl', '--top=2')
    for row, r, line in zip(rows, result['records'], out.splitlines()):
        with torch.no_grad(): p = model(**tokenizer(*[row[k] for k in ('text', 'text_b') if k in row], truncation=True, max_length=29, return_tensors='pt')).logits[0].softmax(-1)
        assert r['probabilities'] == pytest.approx(dict(zip(('bad', 'so-so', 'good'), p.tolist())), abs=1e-5)
        assert r['prediction'] == ('bad', 'so-so', 'good')[p.argmax()] and line.startswith(f'{r["prediction"]} {p.max():.4f}, ') and line.count(', ') - row['text'].count(',') >= 1
        assert '\t' + row['text'] in line
    assert '1 of 3 texts fill block_size=29' in err
    alone = call(capsys, f'--init_from={folder}', '--classify=a good film')[0]['records'][0]
    assert alone['probabilities'] == pytest.approx(result['records'][0]['probabilities'], abs=1e-5)


def test_values_tags_choices(hf, tmp_path, capsys, monkeypatch):
    folder, model, tokenizer = hf('ForSequenceClassification', num_labels=1)
    monkeypatch.setattr(sys, 'stdin', io.StringIO('a good film\nbad town\n'))
    result, out, _ = call(capsys, f'--init_from={folder}', '--classify=-')
    with torch.no_grad(): expected = [model(**tokenizer(t, return_tensors='pt')).logits.item() for t in ('a good film', 'bad town')]
    assert [r['prediction'] for r in result['records']] == pytest.approx(expected, abs=1e-5) and out == f'{expected[0]:.4f}\ta good film\n{expected[1]:.4f}\tbad town\n'
    folder, model, tokenizer = hf('ForTokenClassification', id2label={0: 'O', 1: 'B-PER', 2: 'I-PER'}, label2id={'O': 0, 'B-PER': 1, 'I-PER': 2})
    words = [['the', 'towns', 'won'], ['paris']]
    (tmp_path / 't.txt').write_text('\n'.join(map(' '.join, words)))
    result, out, _ = call(capsys, f'--init_from={folder}', f'--classify={tmp_path}/t.txt')
    for w, r in zip(words, result['records']):
        x = tokenizer(w, is_split_into_words=True, return_tensors='pt')
        with torch.no_grad(): y = model(**x).logits[0].argmax(-1)
        assert r['tokens'] == w and r['prediction'] == [('O', 'B-PER', 'I-PER')[y[x.word_ids().index(i)]] for i in range(len(w))]
    assert out.splitlines()[:3] == [f'{w}\t{t}' for w, t in zip(words[0], result['records'][0]['prediction'])]
    folder, model, tokenizer = hf('ForMultipleChoice')
    item = dict(text='who won', choices=['paris', 'the capital of france', 'a town'])
    (tmp_path / 'c.jsonl').write_text(json.dumps(item))
    record = call(capsys, f'--init_from={folder}', f'--classify={tmp_path}/c.jsonl')[0]['records'][0]
    x = tokenizer(['who won'] * 3, item['choices'], padding=True, return_tensors='pt')
    with torch.no_grad(): p = model(**{k: v[None] for k, v in x.items()}).logits[0].softmax(-1)
    assert record['probabilities'] == pytest.approx(dict(enumerate(p.tolist())), abs=1e-5) and record['prediction'] == int(p.argmax())


def test_pairs_of_texts(tmp_path, capsys):
    """A run on pairs wants pairs, one on single texts single ones; where the data had both, or nobody knows, all is taken."""
    pairs, path = [dict(text=f'is it {i}', text_b=f'it is {i % 3}', label='ny'[i % 3 == 0]) for i in range(24)], tmp_path / 'x.jsonl'
    flags = '--model=bert --preset=small --n_layer=1 --n_head=2 --n_embd=24 --n_hidden=37 --block_size=29 --batch_size=4 --max_iters=1 --device=cpu'.split()
    from data import text
    def trained(name, keep):
        path.write_text(''.join(json.dumps({k: v for k, v in row.items() if keep(i) or k != 'text_b'}) + '\n' for i, row in enumerate(pairs)))
        train.main([*flags, f'--data={text.prepare(str(path), "byte", out=str(tmp_path / ("data" + name)))}', f'--out_dir={tmp_path}/{name}'])
        capsys.readouterr()
        return lambda asked: sample.main([f'--out_dir={tmp_path}/{name}', f'--classify={asked}', '--device=cpu'])['records']
    both, single, mixed = trained('both', lambda i: True), trained('single', lambda i: False), trained('mixed', lambda i: i % 2)
    (tmp_path / 'p.tsv').write_text('is it 3\tit is 0\nis it 4\tit is 1\n')
    (tmp_path / 'p.jsonl').write_text(''.join(json.dumps({k: v for k, v in row.items() if k != 'label'}) + '\n' for row in pairs[3:5]))
    (tmp_path / 's.txt').write_text('is it 3\tit is 0\nis it 4\n')
    (tmp_path / 's.jsonl').write_text('{"text": "is it 3"}\n')
    tabs, lines = both(tmp_path / 'p.tsv'), both(tmp_path / 'p.jsonl')
    assert [(r['text'], r['text_b']) for r in tabs] == [('is it 3', 'it is 0'), ('is it 4', 'it is 1')] and tabs == lines
    assert both('is it 3\tit is 0')[0]['probabilities'] == pytest.approx(tabs[0]['probabilities'], abs=1e-6)
    for asked, says in (('is it 3', r'--classify: 1 text; expected text and text_b with a tab between, or a .jsonl file with these columns \(.*both was trained on pairs of texts'),
                        (tmp_path / 's.txt', 's.txt line 2: 1 text; expected text and text_b with a tab between'), (tmp_path / 's.jsonl', 's.jsonl line 1: no "text_b" column .*trained on pairs')):
        with pytest.raises(ValueError, match=says): both(asked)
    with pytest.raises(ValueError, match="'is it 3' has a \"text_b\", but .*single was trained on single texts: leave it out"): single(tmp_path / 'p.jsonl')
    assert len(single(tmp_path / 's.txt')) == 2 and 'text_b' not in single('is it 3\tit is 0')[0]                 # a tab is text
    assert len(mixed(tmp_path / 's.jsonl') + mixed(tmp_path / 'p.jsonl')) == 3
    for name in ('both', 'single'):                                        # an older checkpoint does not tell
        saved = torch.load(tmp_path / name / 'ckpt.pt', weights_only=True)
        assert saved.pop('columns') == dict(both='label text text_b', single='label text')[name]
        torch.save(saved, tmp_path / name / 'ckpt.pt')
    assert len(both(tmp_path / 's.txt') + both(tmp_path / 'p.jsonl') + single(tmp_path / 'p.jsonl')) == 6


def test_a_prompt_that_is_a_file_is_text_and_says_so(run_folder, hf, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'p.jsonl').write_text('{"text": "a [MASK]"}\n')
    result, out, err = call(capsys, f'--out_dir={run_folder}', '--prompt=p.jsonl', '--max_new_tokens=2')
    assert result['prompt'] == 'p.jsonl' and [line for line in err.splitlines() if 'FILE' in line] == ['--prompt=p.jsonl is taken as a text; --prompt=FILE:p.jsonl reads the file']
    with pytest.raises(ValueError, match='no gap to fill'): call(capsys, f'--init_from={hf("ForMaskedLM")[0]}', '--prompt=p.jsonl')
    assert '--prompt=FILE:p.jsonl reads the file' in capsys.readouterr().err
    assert 'FILE' not in call(capsys, f'--init_from={hf("ForMaskedLM")[0]}', '--prompt=FILE:p.jsonl')[2] + call(capsys, f'--out_dir={run_folder}', '--prompt=none.jsonl', '--max_new_tokens=2')[2]


def test_a_checkpoint_of_our_own_names_its_labels(tmp_path, capsys):
    for labels, names in (('["no", "yes", "so"]', {'no', 'yes', 'so'}), ('', {'0', '1', '2'})):
        folder = encoder(tmp_path, 'labelled', bpe.byte(), n_labels=3, labels=labels, name=f'run{len(labels)}')
        assert set(call(capsys, f'--out_dir={folder}', '--classify=what')[0]['records'][0]['probabilities']) == names


def test_vectors_equal_transformers(hf, tmp_path, capsys):
    folder, model, tokenizer = hf('Model')
    lines = ['the capital of france is paris.', 'who', '', 'a good film in town', 'bad films']
    (tmp_path / 'l.txt').write_text('\n'.join(lines) + '\n')
    x = tokenizer(lines, padding=True, return_tensors='pt')
    with torch.no_grad(): h = model(**x).last_hidden_state
    mean = (h * x.attention_mask[..., None]).sum(1) / x.attention_mask.sum(1, keepdim=True)
    for more, expected in (([], mean), (['--pool=cls'], h[:, 0]), (['--normalize', '--batch_size=2'], torch.nn.functional.normalize(mean, dim=-1))):
        call(capsys, f'--init_from={folder}', f'--embed={tmp_path}/l.txt', f'--out={tmp_path}/v.npy', *more)
        found = np.load(tmp_path / 'v.npy')
        assert found.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-4)
    result, out, _ = call(capsys, f'--init_from={folder}', f'--embed=FILE:{tmp_path}/l.txt')
    unit = torch.nn.functional.normalize(mean, dim=-1)
    torch.testing.assert_close(torch.tensor([r['cosines'] for r in result['records']]), unit @ unit.t(), atol=1e-5, rtol=1e-4)
    assert len(out.splitlines()) == 5
    from scipy.stats import spearmanr
    pairs = [dict(text=lines[i], text_b=lines[j], label=y) for i, j, y in ((0, 1, 2.5), (1, 3, 0.5), (3, 4, 4.0), (0, 4, 1.0))]
    (tmp_path / 'p.jsonl').write_text(''.join(json.dumps(p) + '\n' for p in pairs))
    result, out, said = call(capsys, f'--init_from={folder}', f'--embed={tmp_path}/p.jsonl')
    cosines = [float(unit[lines.index(p['text'])] @ unit[lines.index(p['text_b'])]) for p in pairs]
    np.testing.assert_allclose([r['cosine'] for r in result['records']], cosines, atol=1e-5)
    assert result['spearman'] == pytest.approx(spearmanr(cosines, [p['label'] for p in pairs])[0]) and 'Spearman' in said
    for kind in ('text', 'labelled'): assert sample.main([f'--out_dir={encoder(tmp_path, kind, bpe.byte(), kind)}', '--embed=a', f'--out={tmp_path}/v.npy', '--device=cpu'])['vectors'].shape == (1, 24)


@pytest.mark.parametrize('no_answer', [False, True])
def test_answers_are_the_best_spans(tmp_path, capsys, no_answer):
    """By hand, in float64, over every window and every span."""
    tokenizer, context, question = bpe.byte(), 'Who was it? It was neither Ada nor Grace, it was someone else.', 'who?'
    folder = encoder(tmp_path, 'qa', tokenizer, doc_stride=11, max_answer=6, no_answer=no_answer)
    model = train.load_model(folder)[0].double()
    data, best = context.encode(), {}
    room = 41 - 4 - 3
    for at in range(0, len(data), 11):
        part = list(data[at:at + room])
        ids = [tokenizer.cls, *question.encode(), tokenizer.sep, *part, tokenizer.sep]
        with torch.no_grad(): y = model.logits(torch.tensor([ids]), torch.tensor([[0] * 6 + [1] * (len(part) + 1)]))[0]
        score, a, b = max((float(y[6 + a, 0] + y[6 + b, 1]), a, b) for a in range(len(part)) for b in range(a, min(a + 6, len(part))))
        text = data[at + a:at + b + 1].decode().strip()
        if no_answer:
            score -= float(y[0, 0] + y[0, 1])
            text = text if score > 0 else ''
        best[text] = max(score, best.get(text, -math.inf))
        if at + room >= len(data): break
    (tmp_path / 'c.txt').write_text(context)
    (tmp_path / 'q.txt').write_text('what about this?\nwho?\n')
    expected = sorted(best.items(), key=lambda pair: -pair[1])[:5]
    result, out, _ = call(capsys, f'--out_dir={folder}', '--answer', f'--context={tmp_path}/c.txt', f'--question={question}', '--batch_size=2')
    assert [(a['text'], pytest.approx(a['score'], abs=1e-3)) for a in result['records'][0]['answers']] == expected and len(out.splitlines()) == len(expected)
    both = call(capsys, f'--out_dir={folder}', f'--context={context}', f'--question={tmp_path}/q.txt', '--top=1')[0]['records']
    assert [r['question'] for r in both] == ['what about this?', 'who?'] and both[1]['answers'][0]['text'] == expected[0][0]
    assert [len(r['answers']) for r in both] == [1, 1] and len(expected) > 1


def test_replaced_tokens(tmp_path, capsys, monkeypatch):
    """A model file that says detects, such as electra.py; its logits are those of a token's id."""
    shutil.copy(bert.__file__, tmp_path / 'doubts.py')
    with open(tmp_path / 'doubts.py', 'a') as f: f.write('\ndetects = True\nModel.logits = lambda self, ids, segments=None, mask=None: (ids.float() - 98) * 3\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = encoder(tmp_path, 'text', bpe.byte())
    saved = torch.load(folder + '/ckpt.pt', weights_only=True)
    torch.save({**saved, 'model_name': 'doubts'}, folder + '/ckpt.pt')
    result, out, _ = call(capsys, f'--out_dir={folder}', '--prompt=abc d')
    expected = [1 / (1 + math.exp(-3 * (i - 98))) for i in b'abc d']
    assert ''.join(result['records'][0]['tokens']) == 'abc d' and result['records'][0]['replaced'] == pytest.approx(expected, abs=1e-6)
    assert out.splitlines() == [f'{p:.4f}  {t}' for p, t in zip(expected, ['a', 'b', 'c', "' '", 'd'])]
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
    assert call(capsys, f'--out_dir={folder}', '--prompt=abc d')[1] == 'a\033[41;30mb\033[0m\033[41;30mc\033[0m \033[41;30md\033[0m\n'

# ---------------------------------------------------------------------------------------------------- text to text

@pytest.fixture(scope='module')
def translator(tmp_path_factory):
    """A tiny random T5 over bytes, ours and transformers', and the folder of a run."""
    torch.manual_seed(2)
    tokenizer = bpe.byte()
    config = transformers.T5Config(vocab_size=tokenizer.vocab_size, d_model=24, d_kv=7, d_ff=37, num_layers=2, num_heads=3, pad_token_id=tokenizer.pad,
                                   eos_token_id=tokenizer.eot, decoder_start_token_id=tokenizer.pad, n_positions=64)
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        theirs.shared.weight.mul_(0.5)
        theirs.shared.weight[tokenizer.eot] = 0.5                          # so that the texts differ
    made, state = layout_of(t5).from_hf(config.to_dict(), {k: v.clone() for k, v in theirs.state_dict().items()})
    made = dataclasses.replace(made, **{k: v for k, v in t5.fill(tokenizer).items() if k != 'start_id'})
    model = t5.Model(made)
    model.load_state_dict(state)
    return model.eval(), theirs, tokenizer, save(tmp_path_factory.mktemp('t5'), model, tokenizer, 't5')


LINES = ['turn this round', 'x', '', 'another, rather longer line', 'and one']


@pytest.mark.parametrize('flags,options', [([], {}), (['--beams=3', '--length_penalty=0.6'], dict(num_beams=3, length_penalty=0.6)),
                                           (['--no_repeat_ngram=2', '--batch_size=1'], dict(no_repeat_ngram_size=2)),
                                           (['--beams=2', '--no_repeat_ngram=3', '--batch_size=2'], dict(num_beams=2, no_repeat_ngram_size=3))], ids=str)
def test_texts_equal_transformers(translator, tmp_path, capsys, flags, options):
    model, theirs, tokenizer, folder = translator
    (tmp_path / 'in.txt').write_text('\n'.join(LINES) + '\n')
    expected = []
    for line in LINES:                                                     # one by one: no padding in the oracle
        ids = torch.tensor([[*tokenizer.encode(line), tokenizer.eot]])
        out = theirs.generate(ids, max_new_tokens=13, do_sample=False, **options)[0, 1:].tolist()
        expected.append(tokenizer.decode([i for i in out[:out.index(tokenizer.eot) if tokenizer.eot in out else None]]))
    result, out, err = call(capsys, f'--out_dir={folder}', f'--prompt=FILE:{tmp_path}/in.txt', '--max_new_tokens=13', *flags)
    assert [r['output'] for r in result['records']] == expected and len(set(expected)) > 2 and '5 texts' in err
    assert out.split('\n')[:-1] == [e.replace('\n', '\\n') for e in expected]
    call(capsys, f'--out_dir={folder}', f'--prompt=FILE:{tmp_path}/in.txt', '--max_new_tokens=13', f'--out={tmp_path}/o.txt', *flags)
    assert (tmp_path / 'o.txt').read_bytes().decode() == out


def test_cached_equals_uncached_and_draws(translator, capsys, tmp_path):
    model, _, tokenizer, folder = translator
    ids = torch.tensor([[*tokenizer.encode('turn this'), tokenizer.eot]])
    said = [tokenizer.pad]
    with torch.no_grad():
        for _ in range(17): said.append(int(model.logits(ids, torch.tensor([said]))[0, -1].argmax()))
    said = said[1:said.index(tokenizer.eot)] if tokenizer.eot in said else said[1:]
    alone = lambda *more: call(capsys, f'--out_dir={folder}', '--prompt=turn this', '--max_new_tokens=17', *more)[0]['records'][0]['output']
    assert alone() == tokenizer.decode(said) == alone('--top_k=1') == alone('--temperature=0')
    drawn = [alone('--temperature=3', '--seed=1'), alone('--temperature=3', '--seed=1'), alone('--temperature=3', '--seed=2'), alone('--top_p=1')]
    assert drawn[0] == drawn[1] and len(set(drawn)) == 3
    with pytest.raises(ValueError, match='beam search'): alone('--beams=2', '--temperature=1')


def test_sentinels_are_filled(translator, capsys, monkeypatch):
    model, _, tokenizer, folder = translator
    a, b, c = tokenizer.sentinels[:3]
    seen, options = [], []
    def fake(model, source, mask, *rest, **more):
        seen.append(source[0].tolist())
        options.append(more)
        model.step = lambda ids, cache: torch.zeros(1, 999)                # a head with more rows than the vocabulary has texts
        assert more['step'](None, None).shape == (1, tokenizer.vocab_size)
        return torch.tensor([[a, *b'for', b, *b'week', c, *b'no', tokenizer.eot, *b'x']])
    monkeypatch.setattr(t5, 'generate', fake)
    result, out, _ = call(capsys, f'--out_dir={folder}', '--prompt=Thanks <extra_id_0> you <|sentinel_1|>!<extra_id_7>')
    assert out == 'Thanks for you week!<|sentinel_7|>\n' and result['records'][0]['output'] == '<|sentinel_0|>for<|sentinel_1|>week<|sentinel_2|>no'
    assert seen[0][:15] == [*b'Thanks ', a, *b' you ', b, ord('!')]
    assert call(capsys, f'--out_dir={folder}', '--prompt=plain', '--beams=3', '--length_penalty=0.6', '--no_repeat_ngram=2')[1].startswith('<|sentinel_0|>')
    call(capsys, f'--out_dir={folder}', '--prompt=plain', '--top_p=0.5', '--top_k=7')
    known = [{k: v for k, v in o.items() if k not in ('generator', 'step')} for o in options[1:]]
    assert known == [dict(beams=3, length_penalty=0.6, no_repeat_ngram=2), dict(beams=1, length_penalty=1.0, no_repeat_ngram=0, temperature=0.8, top_k=7, top_p=0.5)]
    assert call(capsys, f'--out_dir={folder}', '--prompt=say <extra_id_2>')[1] == 'say no\n'                   # it ends with end-of-text


def test_metric_of_a_file(translator, tmp_path, capsys):
    _, _, tokenizer, folder = translator
    flags = f'--out_dir={folder}', f'--prompt=FILE:{tmp_path}/in.jsonl', '--max_new_tokens=7'
    (tmp_path / 'in.jsonl').write_text('\n'.join(json.dumps(dict(input=line)) for line in LINES))
    said = [r['output'] for r in call(capsys, *flags)[0]['records']]
    with pytest.raises(ValueError, match='in.jsonl line 1: no "target"'): sample.main([*flags, '--metric=exact_match', '--device=cpu'])
    (tmp_path / 'in.jsonl').write_text('\n'.join(json.dumps(dict(input=line, target=t if i % 2 else 'no')) for i, (line, t) in enumerate(zip(LINES, said))))
    result, out, err = call(capsys, *flags, '--metric=exact_match')
    assert result['exact_match'] == 0.4 and 'exact_match 0.4' in err and out.count('\n') == 5
    with pytest.raises(ValueError, match='--metric=blue: expected one of'): sample.main([*flags, '--metric=blue', '--device=cpu'])


@pytest.mark.parametrize('architecture', ['decoder', 'prefix'])
def test_other_architectures(architecture, tmp_path, capsys):
    tokenizer = bpe.byte()
    torch.manual_seed(1)
    model = t5.Model(t5.Config(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=2, n_head=3, n_embd=24, head_dim=7, n_hidden=37, architecture=architecture,
                               kind='pairs', pad_id=tokenizer.pad, eot_id=tokenizer.eot, **t5.fill(tokenizer)))
    folder = save(tmp_path / 'run', model, tokenizer, 't5')
    (tmp_path / 'in.txt').write_text('\n'.join(LINES))
    records = call(capsys, f'--out_dir={folder}', f'--prompt=FILE:{tmp_path}/in.txt', '--max_new_tokens=5')[0]['records']
    for line, r in zip(LINES, records):
        out = t5.generate(model, torch.tensor([[*line.encode(), tokenizer.eot]]), max_new_tokens=5)
        assert r['output'] == pairs.text_of(out[0].tolist(), tokenizer, tokenizer.eot)

# ---------------------------------------------------------------------------------------------------- what does not go together

def test_what_a_model_cannot_do(run_folder, translator, hf, tmp_path):
    masked, t5_run, tagged = hf('ForMaskedLM')[0], translator[3], hf('ForTokenClassification', num_labels=3)[0]
    qa, choice = encoder(tmp_path, 'qa', bpe.byte(), 'qa'), encoder(tmp_path, 'choice', bpe.byte(), 'choice')
    (tmp_path / 'bad.jsonl').write_text('{"text": "a"}\n{"text_b": 1}\n')
    for path, argv, message in (
            (masked, ['--classify=a'], 'bert.py (kind=text) cannot classify: first python train.py --init_from='), (masked, ['--prompt=a'], 'write [MASK]'),
            (masked, [], 'nothing asked for; it can give vectors (--embed), fill in [MASK] (--prompt)'), (masked, ['--eval=lm'], 'cannot tell the likelihood'),
            (masked, ['--prompt=[MASK]', '--stream'], '--stream does not go with --prompt on bert.py'), (masked, ['--interactive'], 'cannot continue a text'),
            (masked, ['--question=a'], '--data=squad'), (masked, ['--prompt=[MASK]', '--classify=a'], 'cannot classify'),
            (masked, ['--embed=a'], '--out=vectors.npy'), (masked, ['--embed=none.txt'], '--embed=FILE:none.txt: No such file'),
            (tagged, ['--prompt=[MASK]'], 'bert.py (kind=tagged) cannot continue a text or'), (tagged, ['--classify=FILE:none'], 'No such file'),
            (tagged, [f'--classify={tmp_path}/bad.jsonl'], 'bad.jsonl line 1: no "tokens" column'), (choice, ['--classify=a'], '--classify line 1: no "choices" column'),
            (qa, ['--answer'], '--answer needs --question'), (qa, ['--context=a'], '--answer needs --question'), (qa, ['--classify=a'], 'cannot classify'),
            (qa, ['--question=a', '--context=FILE:none'], '--context=FILE:none: No such file'), (run_folder, ['--embed=a'], 'gpt.py (kind=text) cannot give vectors'),
            (run_folder, ['--classify=a'], 'gpt.py (kind=text) cannot classify'), (run_folder, ['--prompt=a', '--beams=3'], '--beams does not go with --prompt on gpt.py'),
            (t5_run, ['--classify=a'], 't5.py (kind=text) cannot classify'), (t5_run, ['--prompt=a', '--min_p=0.1'], '--min_p does not go'),
            (t5_run, ['--prompt=FILE:none'], '--prompt=FILE:none: No such file'), (t5_run, [], 'nothing asked for; it can answer a text (--prompt)'),
            (masked, ['--embed=a', '--out=no/v.npy'], '--out=no/v.npy: no folder no'), (masked, ['--embed=a', '--pool=max'], '--pool=max: expected one of mean, cls'), (masked, ['--prompt=[MASK]', '--top=0'], 'expected 1 or more')):
        with pytest.raises((ValueError, OSError)) as e: sample.main([f'--init_from={path}', '--device=cpu', *argv])
        assert message in str(e.value) and '\n' not in str(e.value), (argv, str(e.value))
