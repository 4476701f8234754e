"""data/: labelled, tagged, choice and paired examples, the data sets made of them, and mixtures of several."""
import gzip, json, os, shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import bpe
from data import instruct, multi30k, rows, summarize, supervised, text


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(text, 'HERE', str(tmp_path / 'made'))
    monkeypatch.setattr(os, 'fsync', lambda f: None)       # many tiny folders
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(path, content):
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    content = content if isinstance(content, bytes) else content.encode()
    with (gzip.open if str(path).endswith('.gz') else open)(path, 'wb') as f: f.write(content)
    return str(path)


def lines(*rows):
    return ''.join(json.dumps(row) + '\n' for row in rows)


def read(folder, split):
    return [json.loads(line) for line in open(f'{folder}/{split}.jsonl')]


def refused(call, *words, kind=ValueError):
    with pytest.raises(kind) as e: call()
    assert '\n' not in str(e.value) and all(w in str(e.value) for w in words), str(e.value)

# ---------------------------------------------------------------------------------------------------- kinds

def test_tagged():
    rows = [dict(tokens=['Ann', 'sees', 'Rome'], tags=['B-PER', 'O', 'B-LOC'], id=i) for i in range(7)] + [dict(tokens=['', 'é'], tags=['O', 'I-PER'])]
    folder = text.prepare(put('a.jsonl', lines(*rows)), 'byte')
    meta, train = text.open_meta(folder, check=True), read(folder, 'train') + read(folder, 'val')
    assert (meta['kind'], meta['metric'], meta['labels']) == ('tagged', 'tags', ['B-LOC', 'B-PER', 'I-PER', 'O'])   # sorted
    assert dict(tokens=['Ann', 'sees', 'Rome'], tags=[1, 3, 0]) in train and dict(tokens=['', 'é'], tags=[3, 2]) in train and len(train) == 8
    folder = text.prepare(put('b.jsonl', lines(dict(tokens=['a', 'b'], tags=[7, 0]), dict(tokens=['a'], tags=[10]))), 'byte')
    assert text.open_meta(folder)['labels'] == ['0', '7', '10'] and read(folder, 'train') == [dict(tokens=['a', 'b'], tags=[1, 0])]


def test_choice():
    rows = [dict(text='The owl', choices=['flew', 'sang', 'ate'][:n], label=n - 1, other=0) for n in (2, 3, 2)]
    folder = text.prepare(put('a.jsonl', lines(*rows)), 'byte')
    meta = text.open_meta(folder, check=True)
    assert (meta['kind'], meta['metric'], meta['labels']) == ('choice', 'accuracy', None)
    assert read(folder, 'train') + read(folder, 'val') == [dict(text='The owl', choices=['flew', 'sang', 'ate'][:n], label=n - 1) for n in (2, 3, 2)]


def test_references():
    """Pairs may name several texts that are right; without them, target alone is."""
    rows = [dict(input='a', target='b'), dict(input='a', target='b', references=['b', 'c']), dict(input='a', target='b', references=None)]
    assert [supervised.check(r, 'pairs', 'a', 1) for r in rows] == [rows[0], rows[1], rows[0]]
    refused(lambda: supervised.check(rows[0] | {'references': []}, 'pairs', 'a.jsonl', 3), 'a.jsonl line 3', '"references" is []', 'a list of strings')


TAG, PICK = dict(tokens=['a', 'b'], tags=['O', 'X']), dict(text='a', choices=['b', 'c'], label=0)

@pytest.mark.parametrize('rows, words', [
    ([TAG, TAG | dict(tags=['O'])], ['line 2', '"tags" is ["O"]', 'as there are tokens: 2']),
    ([TAG | dict(tokens='a b')], ['line 1', '"tokens" is "a b"', 'a list of words']),
    ([TAG | dict(tokens=[], tags=[])], ['"tokens" is []']),
    ([TAG | dict(tokens=['a', 5])], ['"tokens" is ["a", 5]']),
    ([TAG | dict(tags=[0.5, 1])], ['"tags" is [0.5, 1]', 'whole numbers']),
    ([TAG | dict(tags=[True, False])], ['"tags" is [true']),
    ([TAG, TAG | dict(tags=[0, 1])], ['some labels are strings', 'numbers']),
    ([TAG | dict(tags=['O', 'O'])] * 3, ["every label is 'O'"]),
    ([TAG, dict(tokens=['a'])], ['line 2', 'no "tags"', 'it has tokens']),
    ([PICK, PICK | dict(label=2)], ['line 2', '"label" is 2', '0 to 1']),
    ([PICK, PICK | dict(label=-1)], ['"label" is -1']), ([PICK | dict(label='b')], ['"label" is "b"', 'the place of the right choice']),
    ([PICK | dict(label=True)], ['"label" is true']), ([PICK | dict(choices=['b'])], ['"choices" is ["b"]', 'two or more']),
    ([PICK | dict(choices='bc')], ['"choices" is "bc"']), ([PICK, dict(text='a', label=0)], ['line 2', 'no "choices"']),
    ([dict(text='a', label=float('inf')), dict(text='b', label=0.5)], ['"label" is Infinity']),
    ([dict(text='a', label=10 ** 400), dict(text='b', label=0.5)], ['"label" is 1000'])])
def test_bad_examples_are_refused(rows, words):
    refused(lambda: text.prepare(put('a.jsonl', lines(*rows)), 'byte'), 'a.jsonl', *words)
    assert not os.path.exists(text.HERE) or not any(files for _, _, files in os.walk(text.HERE))


def test_half_characters():
    """JSON can spell half of a character, which no tokenizer takes."""
    put('a.jsonl', '{"input": "a\\ud800", "target": "\\ud83d\\ude42"}\n' * 3)
    assert read(text.prepare('a.jsonl', 'bpe', 400), 'train')[0] == dict(input='a\ufffd', target='🙂')
    put('b.jsonl', '{"text": "\\ud800", "label": "\\udc00"}\n{"text": "\\ud800", "label": "b"}\n')
    assert text.open_meta(text.prepare('b.jsonl', 'byte'))['labels'] == ['b', '\ufffd']


@pytest.mark.parametrize('line', ['[' * 100000, '{"text": ' + '9' * 5000 + '}', '{"text": [}', 'NaN', '\ufeff', '{"a\\nb": 1}', '{' + '"x": 1, ' * 9])
def test_lines_that_are_no_examples(line):
    refused(lambda: text.prepare(put('a.jsonl', line + '\n'), 'byte'), 'a.jsonl line 1')


ANY = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda x: st.lists(x, max_size=3) | st.dictionaries(
    st.sampled_from(['text', 'answer_start', 'role', 'content', 'a']), x, max_size=3), max_leaves=5)
GOOD = {'choice': dict(text='a', choices=['b', 'c', 'd'], label=2), 'labelled': dict(text='a', text_b='b', label=1), 'value': dict(text='a', label=0.5),
        'tagged': dict(tokens=['a', 'b'], tags=['O', 'B-X']), 'pairs': dict(input='a', target='b', references=['b']), 'instruct': dict(prompt='a', response='b'),
        'chat': dict(messages=[dict(role='user', content='a'), dict(role='assistant', content='b')]), 'text': dict(text='a'),
        'qa': dict(context='an owl', question='b', answers=[dict(text='owl', answer_start=3)])}
ROWS = st.sampled_from(list(GOOD)).flatmap(lambda kind: st.lists(st.just(GOOD[kind]) | st.tuples(st.sampled_from(list(GOOD[kind])), ANY).map(
    lambda change: GOOD[kind] | dict([change])) | st.dictionaries(st.sampled_from(list(GOOD[kind]) + ['x']), ANY), min_size=1, max_size=4))

@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(ROWS)
def test_any_json_is_taken_or_refused_in_one_line(rows):
    """Whatever stands in the columns: a folder whose lines pass the check again, or ValueError with the place and no line break."""
    shutil.rmtree('out', ignore_errors=True)
    path = put('any.jsonl', lines(*rows * 3))
    try: meta = text.open_meta(text.prepare(path, 'byte', out='out'), check=True)
    except ValueError as e:
        assert len(str(e).splitlines()) == 1 and 'any.jsonl' in str(e) and not os.path.exists('out'), str(e)
        return
    if meta['kind'] == 'text': return
    kept = read('out', 'train') + read('out', 'val')
    assert len(kept) == 3 * len(rows) == meta['train_examples'] + meta['val_examples']
    for row in kept: assert supervised.check(row, meta['kind'], 'a', 1) == row


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=30) | st.sampled_from([b'{"input": "a", "target": "b"}', b'{"text": "a", "label": 1}', b'{"text": "a"}', b'']), max_size=4))
def test_any_bytes_are_taken_or_refused_in_one_line(rows):
    shutil.rmtree('out', ignore_errors=True)
    path = put('any.jsonl', b'\n'.join(rows))
    try: text.prepare(path, 'byte', out='out')
    except ValueError as e: assert len(str(e).splitlines()) == 1 and 'any.jsonl' in str(e) and not os.path.exists('out'), str(e)


def test_another_tasks_folder_is_not_taken():
    """data/sums-2 with the same tokenizer is not data/sums, though its name begins so."""
    write = lambda n: lambda folder, **kw: text.write_examples(folder, 'pairs', lambda: iter([dict(input=n, target=n)] * 4), **kw)
    bpe.byte().save('mine.json')
    other = text.make('sums-2', write('2'), 'mine.json', 0, 'byte')
    one = text.make('sums', write('1'), 'mine.json', 0, 'byte')
    assert one != other and read(one, 'train')[0]['input'] == '1' and text.make('sums', None, 'mine.json', 0, 'byte') == one

# ---------------------------------------------------------------------------------------------------- data sets

def test_multi30k():
    sides = dict(en=['A man.', 'Two "dogs"\u2028run', '', 'Owls'], de=['Ein Mann.', 'Zwei Hunde', 'leer', 'Eulen '])
    for split in ('train', 'val', 'test_2016_flickr'):
        for x in sides: put(f'src/{split}.{x}' + '.gz' * (x == 'de'), ''.join(s + '\n' for s in sides[x]))
    folder = multi30k.prepare('byte', source='src', out='out')
    meta, pairs = text.open_meta(folder, check=True), read(folder, 'train')
    assert (meta['kind'], meta['metric'], meta['train_examples'], meta['val_examples']) == ('pairs', 'bleu', 3, 3)
    assert pairs[0] == dict(input='translate English to German: A man.', target='Ein Mann.') and pairs[2]['target'] == 'Eulen'
    assert read(folder, 'test') == pairs and open('out/test.input.txt', newline='\n').read().split('\n')[:-1] == [p['input'] for p in pairs]
    assert open('out/test.target.txt').read() == 'Ein Mann.\nZwei Hunde\nEulen\n'
    for split in ('test_2016_flickr',): [os.remove(f'src/{split}.{x}' + '.gz' * (x == 'de')) for x in sides]
    back = multi30k.prepare('byte', source='src', task='de-en')                # without a test set
    assert back.endswith('made/multi30k-de-en-byte') and read(back, 'val')[1] == dict(input='translate German to English: Zwei Hunde', target='Two "dogs"\u2028run')
    assert sorted(os.listdir(back)) == ['meta.json', 'tokenizer.json', 'train.jsonl', 'val.jsonl'] and text.resolve('multi30k-de-en', 'byte') == back
    put('src/val.en', 'one\n')
    refused(lambda: multi30k.prepare('byte', source='src'), 'val.en has 1 lines', 'val.de.gz 4', 'as many in both')
    refused(lambda: multi30k.prepare('byte', source='src', task='en-xx'), '--task=en-xx', 'en-de, de-en')
    refused(lambda: multi30k.prepare('byte', source='src', task='en-fr'), 'no train.fr', 'raw.githubusercontent', kind=FileNotFoundError)


def test_multi30k_from_the_network(monkeypatch):
    monkeypatch.setattr(multi30k, 'PAIRS', dict(train=3, val=3, test_2016_flickr=3))
    def download(url, path, sha256='', max_bytes=0):
        assert url == multi30k.URL + os.path.basename(path) and max_bytes
        return put('net/' + os.path.basename(path), f'{path[-5:]}\nb\nc\n')
    monkeypatch.setattr(text, 'download', download)
    assert read(multi30k.prepare('byte'), 'test')[0] == dict(input='translate English to German: en.gz', target='de.gz')
    monkeypatch.setattr(multi30k, 'PAIRS', dict(train=4, val=3, test_2016_flickr=3))
    refused(lambda: multi30k.prepare('byte', out='new'), 'train.en.gz has 3 lines', 'expected 4')


def test_summarize(monkeypatch):
    rows = [dict(source=['It is long.', 'Very long.'], target=['Long.', 'Too long.'][:1 + i % 2], paper_id=str(i)) for i in range(4)]
    put('sci/train.jsonl.gz', lines(*rows)); put('sci/dev.jsonl', lines(*rows[:3])); put('sci/test.jsonl', lines(*rows))
    folder = summarize.prepare('byte', source='sci')
    meta, val = text.open_meta(folder, check=True), read(folder, 'val')
    assert (meta['kind'], meta['metric'], meta['train_examples'], folder) == ('pairs', 'rouge', 4, text.HERE + '/summarize-byte')
    assert val[0] == dict(input='summarize: It is long. Very long.', target='Long.') and val[1]['references'] == ['Long.', 'Too long.']
    assert text.resolve('summarize', 'byte') == summarize.prepare('byte', source='sci') == folder
    news = put('news.jsonl', lines(*[dict(article=f'a{i}', body='b', highlights='h', short='s') for i in range(9)]))
    refused(lambda: summarize.prepare('byte', source=news), 'made of something else (sci)', '--out')
    folder = summarize.prepare('byte', source=news, out='news')
    assert read(folder, 'train')[0] == dict(input='summarize: a0', target='h') and len(read(folder, 'val')) >= 1
    folder = summarize.prepare('byte', source=news, out='news2', input='body', target='short', prefix='tl;dr ')
    assert read(folder, 'train')[0] == dict(input='tl;dr b', target='s')
    refused(lambda: summarize.prepare('byte', source=news, out='n', target='tldr'), 'news.jsonl line 1', 'no "tldr"', 'article, body')
    refused(lambda: summarize.prepare('byte', source=put('x.jsonl', lines(dict(text='a', summary=[]))), out='n'), '"summary" is []', 'list of strings')
    monkeypatch.setattr(text, 'download', lambda url, path, *_: put('net/' + os.path.basename(url), lines(*rows)))
    assert text.open_meta(summarize.prepare('byte', out='scitldr'))['source'] == 'SciTLDR'


ALPACA = [dict(instruction=f'Say {i}.', input='quietly ' * (i % 2), output=f'{i}!') for i in range(60)]

def test_instruct(monkeypatch):
    put('a.json.gz', json.dumps(ALPACA + [dict(instruction='Hush.', input='', output=' ')]))
    folder = instruct.prepare('byte', source='a.json.gz', share=0.2)
    meta, rows = text.open_meta(folder, check=True), read(folder, 'train') + read(folder, 'val')
    assert meta['kind'] == 'instruct' and len(rows) == 60 and 3 <= meta['val_examples'] <= 25 and text.resolve('instruct', 'byte') == folder
    assert dict(prompt='Say 2.', response='2!') in rows and dict(prompt='Say 3.\n\nquietly', response='3!') in rows
    refused(lambda: instruct.prepare('byte', source='a.json.gz', share=0.1), 'made of something else', '--out')
    seeds = [dict(id=i, instruction=f'Do {i}', instances=[dict(input='<noinput>', output='a'), dict(input='x', output='b')]) for i in range(40)]
    folder = instruct.prepare('byte', source=put('seed.jsonl', lines(*seeds)), out='seed')
    train, val = read(folder, 'train'), read(folder, 'val')
    assert {'prompt': 'Do 3', 'response': 'a'} in train + val and {'prompt': 'Do 3\n\nx', 'response': 'b'} in train + val
    assert val and not {r['prompt'][:5].strip() for r in train} & {r['prompt'][:5].strip() for r in val}       # both instances on one side
    talk = [dict(conversations=[dict(**{'from': 'human'}, value='hi'), dict(**{'from': 'gpt'}, value='ho')]), dict(messages=[dict(role='assistant', content='x')]),
            dict(instruction='a', context='b', response='c'), dict(prompt='a', response='b')]
    folder = instruct.prepare('byte', source=put('talk.json', json.dumps(dict(data=talk))), out='talk')
    assert read(folder, 'train') + read(folder, 'val') == [dict(messages=[dict(role='user', content='hi'), dict(role='assistant', content='ho')]), talk[1],
                                                           dict(prompt='a\n\nb', response='c'), talk[3]]
    monkeypatch.setattr(text, 'download', lambda url, path, *_: put('net/x.json', json.dumps(ALPACA)))
    assert text.resolve('instruct-alpaca', 'byte') == text.HERE + '/instruct-alpaca-byte'


@pytest.mark.parametrize('content, words', [
    ('[1]', ['item 1', 'expected {"instruction"']), ('{"a": 1}', ['no list of examples']), ('[]', ['no list of examples']), ('[{"instruction": ', ['not JSON']),
    ('[' * 100000, ['not JSON']), ('[{"instruction": 5, "output": "x"}]', ['line 1', '"instruction" is 5']), ('[{"instruction": "a"}]', ['no "output"', 'it has instruction']),
    ('[{"instruction": "a", "instances": []}]', ['"instances" is []']), ('[{"conversations": "x"}]', ['"conversations" is "x"']),
    ('[{"conversations": [{"from": "pope", "value": "x"}]}]', ['"messages"', 'assistant turn']), ('[{"title": "a"}]', ['no "instruction"']),
    (json.dumps(ALPACA[:1]), ['1 examples']), ('[{"instruction": "a", "output": ""}]', ['0 examples'])])
def test_bad_instructions_are_refused(content, words):
    refused(lambda: instruct.prepare('byte', source=put('a.json', content)), 'a.json', *words)
    refused(lambda: instruct.prepare('byte', source='a.json', share=1.0), '--share=1.0')

# ---------------------------------------------------------------------------------------------------- mixtures

def pairs(path, n, name, **more):
    return text.prepare(put(path, lines(*[dict(input=f'{name} {i}', target=name) for i in range(n)])), 'byte', **more)


def drawn(corpus, numbers):
    return corpus.rows(numbers)[0].examples()


def mixture(*sizes, **settings):
    names = 'abc'[:len(sizes)]
    folder = '+'.join(pairs(f'{x}/train.jsonl', n, x, out=f'mix-{x}-byte') for x, n in zip(names, sizes))
    return rows.training(text.open_meta(folder), 7, lambda e: [dict(source=[1] * len(e['input']), text=e['input'])], **settings)


@pytest.mark.parametrize('settings, shares', [(dict(), [600, 300, 60]), (dict(cap=300), [300, 300, 60]), (dict(temperature=2.0), [600 ** 0.5, 300 ** 0.5, 60 ** 0.5]),
                                              (dict(cap=300, temperature=2.0), [300 ** 0.5, 300 ** 0.5, 60 ** 0.5]), (dict(temperature=1e9), [1, 1, 1])])
def test_mixing_rates(settings, shares):
    mix = mixture(640, 320, 64, **settings)                                # about 5 % of each is for validation
    sizes = np.array([len(p.examples) for p in mix.parts], float)
    want = np.minimum(sizes, settings.get('cap', 1e9)) ** (1 / settings.get('temperature', 1))
    np.testing.assert_allclose(mix.counts / mix.counts.sum(), want / want.sum(), atol=2e-5)
    np.testing.assert_allclose(want / want.sum(), np.array(shares) / sum(shares), rtol=0.1)
    seen = [e['text'][0] for e in drawn(mix, range(960))]                  # also in any stretch: a period is spread evenly
    np.testing.assert_allclose([seen.count(x) for x in 'abc'], 960 * want / want.sum(), atol=4)
    assert len(mix) == sum(sizes) and mix.tokens_per_row in (4, 5)


def test_a_tiny_part_of_a_mixture_is_seen():
    from types import SimpleNamespace
    part = lambda n: SimpleNamespace(kind='pairs', items=[], examples=range(n))
    for sizes, counts in (((10 ** 7, 3), [65535, 1]), ((3, 10 ** 7, 5), [1, 65534, 1])):
        assert rows.Mixture([*map(part, sizes)], 7).counts.tolist() == counts


def test_mixture_is_stateless_and_goes_through_epochs():
    mix = mixture(30, 17)
    a, b = (len(p.examples) for p in mix.parts)
    whole = [e['text'] for e in drawn(mix, range(70000))]                  # over the border of a period
    assert [e['text'] for e in drawn(mix, [65535, 3, 65536, 3])] == [whole[i] for i in (65535, 3, 65536, 3)]
    for name, n in (('a', a), ('b', b)):
        own = [t for t in whole if t[0] == name]
        for start in (0, n, 5 * n, len(own) // n * n - n): assert len(set(own[start:start + n])) == n      # an epoch has each example once
        assert own[:n] != own[n:2 * n]
    other = rows.Mixture(mix.parts, 8)
    assert (other.part != mix.part).any() and (other.counts == mix.counts).all()
    first, again = (mix.rows([5, 6])[1].random(3) for _ in range(2))
    assert (first == again).all() and (first[0] != first[1]).all()


def test_mixture_of_running_text():
    for x in 'ab': text.prepare(put(f'{x}.txt', f'{x}{x}{x} ' * (300 if x == 'a' else 900)), 'byte', out=f'{x}-out')
    meta = text.open_meta('a-out+b-out')
    mix = rows.training(meta, 3)
    draw, rng = mix.rows(range(64))
    x = draw(9, 1)
    kinds = [{ord('a'), ord(' ')} >= set(r.tolist()) for r in x]
    assert x.shape == (64, 9) and 13 <= sum(kinds) <= 19 and (draw(9, 1) == x).all() and draw(9, 1, stream=1).shape == x.shape and mix.tokens_per_row == 8
    assert meta['train_tokens'] == sum(len(s) for p in mix.parts for s in p.shards) and rng.integers(0, 9, 2).shape == (64, 2)


def test_mixture_is_resolved_and_checked():
    for x in 'ab': put(f'{x}.jsonl', lines(*[dict(input=f'{x} {i}', target=x) for i in range(9)]))
    folders = text.resolve('a.jsonl+b.jsonl')                              # both with the vocabulary of the first
    meta = text.open_meta(folders, check=True)
    assert [m['name'][:7] for m in meta['parts']] == ['bpe8192', 'bpe8192'] and bpe.load(meta['tokenizer']).vocab_size == meta['vocab_size']
    assert (meta['kind'], meta['train_examples'], meta['folder']) == ('pairs', sum(m['train_examples'] for m in meta['parts']), folders)
    assert text.resolve('a.jsonl+b.jsonl') == folders == text.resolve('a.jsonl+b.jsonl', meta['tokenizer'])   # a run that goes on
    assert len(meta['sha256']) == 6 and [m['title'] for m in meta['parts']] == ['a', 'b']
    assert text.resolve('a.jsonl+b.jsonl', 'byte').count('-byte') == 2
    text.prepare('b.jsonl', 'byte', out='b-byte')
    assert text.open_meta(text.resolve('a.jsonl+b-byte'))['name'] == 'byte'    # what is prepared has a tokenizer already
    text.prepare('a.jsonl', 'bpe', 365, out='a-bpe')
    refused(lambda: text.open_meta(text.resolve('b-byte+a-bpe')), 'one kind of data', 'a-bpe has the tokenizer bpe365, expected byte', '--tokenizer')
    put('c.jsonl', lines(dict(text='a', label=0), dict(text='b', label=1), dict(text='b', label=2)))
    refused(lambda: text.open_meta(text.resolve('a.jsonl+c.jsonl', 'byte')), 'labelled data, expected pairs')
    put('d.jsonl', lines(dict(text='a', label=0), dict(text='b', label=1), dict(text='b', label=1)))
    refused(lambda: text.open_meta(text.resolve('c.jsonl+d.jsonl', 'byte')), 'other labels (0, 1)')
    refused(lambda: text.resolve('a.jsonl+nope'), '--data=nope', kind=FileNotFoundError)
    refused(lambda: text.resolve('a.jsonl+'), '--data=a.jsonl+', 'a + between')
    put('x+y.jsonl', lines(*[dict(input='a', target='b')] * 3))            # a file may be called so
    assert text.open_meta(text.resolve('x+y.jsonl', 'byte'))['train_examples'] == 2
    for bad in (dict(temperature=0.0), dict(cap=-1)): refused(lambda: rows.training(text.open_meta('b-byte+b-byte'), 1, lambda e: [e], **bad), '--mix_')


def test_validation_sets():
    for x in 'ab': pairs(f'{x}.jsonl', 9, x, out=f'{x}-byte')
    plain, mixed = (rows.validation(text.open_meta(f), 1, lambda e: [e]) for f in ('a-byte', 'a-byte+b-byte+a-byte'))
    assert list(plain) == [''] and list(mixed) == ['a', 'b', 'a-2'] and mixed['b'][1]['metric'] == 'exact_match'
    assert [e['input'][0] for e in mixed['b'][0].examples] == ['b'] * len(mixed['b'][0])


def test_training_on_a_mixture():
    """Through train.py: every task's own metric, the mean that tells the best checkpoint, and the same weights after a resume."""
    import torch, train
    for name, change in (('up', str.upper), ('down', str.lower)):
        put(f'{name}.jsonl', lines(*[dict(input=f'{name}: Owl{i}', target=change(f'Owl{i}')) for i in range(40)]))
    size = '--n_layer=1 --n_embd=16 --n_head=2 --head_dim=8 --n_hidden=24 --block_size=24 --target_size=8 --batch_size=7 --eval_interval=2 --device=cpu'.split()
    run = lambda *flags: train.main(['--model=t5', '--data=up.jsonl+down.jsonl', '--tokenizer=byte', *size, *flags])
    whole = run('--out_dir=a', '--max_iters=4', '--mix_cap=20')
    assert {'val_score', 'val_loss', 'val_exact_match_up', 'val_exact_match_down', 'val_rouge1_up', 'val_loss_down'} <= whole.keys() and 'best_score' in whole
    assert whole['val_loss'] == pytest.approx((whole['val_loss_up'] + whole['val_loss_down']) / 2)
    assert whole['val_score'] == pytest.approx((whole['val_exact_match_up'] + whole['val_exact_match_down']) / 2)
    assert {json.loads(line)['data'] for line in open('a/predictions.jsonl')} == {'up', 'down'}
    run('--out_dir=b', '--max_iters=4', '--mix_cap=20', '--time_limit=0.000001')
    train.main(['--resume', '--out_dir=b', '--time_limit=0', '--max_iters=4'])
    a, b = (torch.load(f'{x}/ckpt.pt', weights_only=True) for x in 'ab')
    assert a['step'] == b['step'] == 4 and all((w == b['model'][k]).all() for k, w in a['model'].items())


def test_a_misspelt_label_is_said(tmp_path, capsys):
    from data import text
    path = tmp_path / 'x.jsonl'
    path.write_text(''.join('{"text": "some words %d", "lable": 1}\n' % i for i in range(40)))
    text.prepare(str(path), tokenizer='byte', out=str(tmp_path / 'out'))
    assert 'did you mean "label"' in capsys.readouterr().err
