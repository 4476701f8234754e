"""What must not change while the code is rebuilt: results, files and texts of revision 232c872.

Whole numbers are the same on every machine and are held as hashes in tests/pins/pins.json. Floats are not: there the old
revision, out of git or from FLATFORMERS_BEFORE=FOLDER, runs beside this one, and both must agree to the last bit. It runs
once on each machine, what it did is kept in pytest's cache. What a person reads is held in tests/pins/*.txt, with the
numbers masked that differ from machine to machine. After a change of wording on purpose, or for a new entry:

    python tests/test_pins.py --write            # writes tests/pins/*.txt and pins.json anew; look at the diff
"""
import glob
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time

import numpy as np
import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PINS = os.path.join(ROOT, 'tests', 'pins')
sys.path[:0] = [ROOT, PINS]

import bert
import bpe
import electra
import gpt
import t5
import train
from data import rows
from data import text
from lib.models import make_batch
from lib.models import rows_of

BEFORE = '232c872'
# places of what was added to files on purpose since: --method
ADDED = {f'{name}.pt.train.method' for name in ('ckpt', 'best', 'merged')}
FAMILIES = ('gpt', 'bert', 't5', 'electra')


def digest(*parts):
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            h.update(f'{part.dtype} {part.shape}'.encode() + np.ascontiguousarray(part).tobytes())
        else:
            h.update(repr(part).encode())
    return h.hexdigest()[:16]


# ------------------------------------------------------------------------------------- whole numbers and first weights

NUMBERS = 'zero one two three four five six seven eight nine ten'.split()
EXAMPLES = {
    'labelled': [dict(text=f'{NUMBERS[i % 11]} plus {NUMBERS[i % 7]}' + ' is a number' * (i % 5), label=i % 3)
                 for i in range(40)],
    'pair': [dict(text=' '.join(NUMBERS[:i]), text_b=' '.join(NUMBERS[i:]), label=i % 2) for i in range(9)],
    'tagged': [dict(tokens=NUMBERS[:n], tags=[i % 3 for i in range(n)]) for n in (1, 4, 11)],
    'choice': [dict(text='one plus', choices=['two', 'three minus one', ''], label=n) for n in range(3)],
    'qa': [dict(context=' '.join(NUMBERS * 3), question=f'What is {w}?',
                answers=[dict(text=w, answer_start=' '.join(NUMBERS).index(w))]) for w in ('two', 'nine')]
          + [dict(context='none', question='What?', answers=[])],
    'pairs': [dict(input=' '.join(NUMBERS[:n]), target=NUMBERS[n]) for n in (0, 2, 9)],
    'instruct': [dict(prompt='What is one?', response='two minus one')]
                + [dict(messages=[dict(role='system', content='Count.'), dict(role='user', content=f'{NUMBERS[n]}?'),
                                  dict(role='assistant', content=NUMBERS[n + 1]), dict(role='user', content='And?'),
                                  dict(role='assistant', content='Done.')]) for n in range(3)],
}
HEADS = {'bert': ('labelled', 'pair', 'tagged', 'choice', 'qa'), 'gpt': ('instruct',), 't5': ('pairs',),
         'electra': ('labelled', 'pair', 'tagged', 'choice', 'qa')}
OBJECTIVES = {
    'gpt': ['', 'objective=prefix', 'n_predict=2'],
    'bert': ['', 'masking=word', 'masking=span', 'masking=span sbo=true', 'sentences=nsp', 'sentences=sop',
             'static_masks=3', 'static_masks=3 masking=word', 'n_decoder=1', 'mask_rate=0.4 mask_share=0.5'],
    't5': ['objective=' + name for name in t5.objectives] + ['density=0.4 span=2.5', 'architecture=prefix'],
    'electra': ['objective=' + name for name in electra.objectives] + ['mask_rate=0.3'],
}
SIZES = {
    'gpt': dict(n_layer=2, n_head=2, n_embd=24, block_size=32),
    'bert': dict(n_layer=2, n_head=2, n_embd=24, n_hidden=40, block_size=32),
    't5': dict(n_layer=2, n_head=2, n_embd=24, head_dim=7, n_hidden=40, block_size=32),
    'electra': dict(n_layer=2, n_head=2, n_embd=24, n_hidden=40, block_size=32, embed_dim=14, generator_size=0.5),
}
FILES = dict(gpt=gpt, bert=bert, t5=t5, electra=electra)


def write_lines(path, lines):
    with open(path, 'w', encoding='utf-8', newline='\n') as f:
        f.write(''.join(line + '\n' for line in lines))
    return str(path)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Small prepared folders: two texts and labelled examples, with one vocabulary."""
    return prepare(str(tmp_path_factory.mktemp('pins')))


def prepare(folder):
    facts = [f'{NUMBERS[i % 6]} plus {NUMBERS[i // 6 % 5]} is {NUMBERS[i % 6 + i // 6 % 5]}.' for i in range(400)]
    order = np.argsort(rows.keyed(1, np.arange(400)))
    sums = write_lines(folder + '/sums.txt', (facts[i] for i in order))
    more = write_lines(folder + '/more.txt', (facts[i] + ' The end.' for i in order[:150]))
    labelled = write_lines(folder + '/labelled.jsonl', map(json.dumps, EXAMPLES['labelled'] * 3))
    made = dict(sums=text.prepare(sums, tokenizer='bpe', vocab_size=400, out=folder + '/sums'))
    vocabulary = made['sums'] + '/tokenizer.json'
    for name, source in (('more', more), ('labelled', labelled)):
        made[name] = text.prepare(source, tokenizer=vocabulary, out=f'{folder}/{name}')
    return made


def config_for(family, tokenizer, kind='text', **fields):
    """A tiny Config with the special tokens of a vocabulary."""
    file = FILES[family]
    known = set(file.Config.__dataclass_fields__)
    own = {f'{r}_id': getattr(tokenizer, r) for r in ('eot', 'pad', 'cls', 'sep', 'mask')}
    own |= dict(vocab_size=tokenizer.vocab_size, kind=kind, n_labels=3 if kind in ('labelled', 'tagged') else 0,
                no_answer=kind == 'qa', doc_stride=8, max_query=8, target_size=16)
    if hasattr(file, 'fill'):
        own |= file.fill(tokenizer)
    own |= SIZES[family] | fields
    return file.Config(**{n: v for n, v in own.items() if n in known and v is not None})


def typed_fields(family, words):
    kinds = {n: type(f.default) for n, f in FILES[family].Config.__dataclass_fields__.items()}
    pairs = (word.split('=') for word in words.split())
    return {n: v == 'true' if kinds[n] is bool else kinds[n](v) for n, v in pairs}


def integers_of_rows(folders):
    found = {}
    for n in (1, 2, 3, 10, 100, 4097):
        found[f'permute {n}'] = digest(rows.permute(np.arange(n), n, rows.keyed(3, n)))
    found['keyed'] = digest(rows.keyed(1337, 5, np.arange(50)), rows.keyed(), rows.keyed(-1, 2 ** 40))
    rng = rows.Random(rows.keyed(7, np.arange(9)))
    found['random'] = digest(rng.random(5, 2), rng.random(), rng.integers(-3, 1000, 4), rng.random(1))
    one, two = text.open_meta(folders['sums']), text.open_meta(folders['more'])
    for split, corpus in (('train', rows.training(one, 1337)), ('val', rows.validation(one, 1337)[''][0])):
        numbers = np.arange(0, 3000, 7)              # many epochs: every offset, every order
        draw, rng = corpus.rows(numbers)
        found[f'windows {split}'] = digest(draw(33, overlap=1), draw(8, stream=2), rng.integers(0, 99, 3))
    mixed = dict(one, parts=[one, two])
    for cap, temperature in ((0, 1.0), (0, 4.0), (900, 1.0)):
        mixture = rows.training(mixed, 1337, None, cap, temperature)
        draw, rng = mixture.rows(np.arange(0, 200_000, 501))
        found[f'mixture {cap} {temperature}'] = digest(mixture.part, mixture.place, draw(17), rng.random(2))
    return found


def integers_of_families(folders):
    found = {}
    meta = text.open_meta(folders['sums'])
    tokenizer = bpe.load(folders['sums'] + '/tokenizer.json')
    found['tokens'] = digest(*(open(f'{folders["sums"]}/{name}.bin', 'rb').read() for name in ('train', 'val')))
    for family, objectives in OBJECTIVES.items():
        file = FILES[family]
        for words in objectives:
            config = config_for(family, tokenizer, **typed_fields(family, words))
            draw, rng = rows.training(meta, 1337).rows(np.arange(8))
            draw.tokenizer = tokenizer
            found[f'{family} {words}'] = digest(*make_batch(file, draw, config, rng))
        for kind in HEADS[family]:
            config = config_for(family, tokenizer, kind='labelled' if kind == 'pair' else kind)
            some = [row for example in EXAMPLES[kind] for row in rows_of(file, config.kind).encode(example, tokenizer, config)]
            some = [dict(row, index=i) for i, row in enumerate(some)]
            found[f'{family} {kind} rows'] = digest([sorted(row.items()) for row in some])
            draw, rng = rows.training(meta, 1337).rows(np.arange(len(some)))
            draw.tokenizer, draw.examples = tokenizer, lambda: some
            found[f'{family} {kind} arrays'] = digest(*make_batch(file, draw, config, rng))
    return found


def integers_of_runs(folders, folder):
    """What the trainer hands a model: the order of the data, the numbers that mask it, the stream of dropout."""
    before = os.getcwd()
    shutil.copy(PINS + '/pins_spy.py', folder)
    os.chdir(folder)
    try:
        import pins_spy
        run = '--model=pins_spy --device=cpu --batch_size=4 --micro_batch_size=2 --warmup_iters=0 --log_interval=99 ' \
              '--eval_interval=7'.split()
        found, both = {}, f'{folders["sums"]}+{folders["more"]}'
        for name, flags in (('text', [f'--data={folders["sums"]}', '--max_iters=9']),
                            ('text again', ['--resume', '--out_dir=text', '--max_iters=14']),
                            ('mixture', [f'--data={both}', '--mix_temperature=2', '--max_iters=5']),
                            ('labelled', [f'--data={folders["labelled"]}', '--max_iters=9']),
                            ('by length', [f'--data={folders["labelled"]}', '--group_by_length', '--max_iters=45'])):
            resumed = '--resume' in flags
            train.main(flags if resumed else [*run, *flags, f'--out_dir={name}'])
            found['run of ' + name] = digest(pins_spy.told())
        return found
    finally:
        os.chdir(before)


def first_weights():
    found = {}
    for family, size in SIZES.items():
        torch.manual_seed(1337)
        model = FILES[family].Model(FILES[family].Config(vocab_size=410, **size))
        state = {k: v.numpy() for k, v in model.state_dict().items()}
        found[family] = digest(*(x for k in state for x in (k, state[k])))
    return found


def drawn_by_torch():
    """Tells one generator from another: torch draws other numbers with other kinds of processors."""
    torch.manual_seed(1337)
    drawn = torch.empty(40, 25).normal_(), torch.nn.init.trunc_normal_(torch.empty(40, 25)), torch.rand(40, 25)
    return digest(*(t.numpy() for t in drawn))


def all_integers(folders, folder):
    return integers_of_rows(folders) | integers_of_families(folders) | integers_of_runs(folders, folder)


def pinned(name):
    with open(PINS + '/pins.json', encoding='utf-8') as f:
        return json.load(f)[name]


def test_whole_numbers_are_those_of_the_old_revision(folders, tmp_path):
    assert all_integers(folders, str(tmp_path)) == pinned('integers')


def test_first_weights_are_those_of_the_old_revision():
    if drawn_by_torch() != pinned('drawn by torch'):
        pytest.skip('torch draws other random numbers on this machine than where these were written down')
    assert first_weights() == pinned('first weights')


# --------------------------------------------------------------------------------------------- both revisions, to the bit

def old_revision(folder):
    """-> the old revision's files, or why they cannot be had."""
    if given := os.environ.get('FLATFORMERS_BEFORE'):
        return given, ''
    command = ['git', '-C', ROOT, 'archive', '--format=tar', BEFORE]
    try:
        packed = subprocess.run(command, capture_output=True)
    except OSError:
        return '', f'needs git for the files of revision {BEFORE}, or FLATFORMERS_BEFORE=FOLDER with them'
    if packed.returncode:
        return '', f'needs revision {BEFORE} (a shallow clone lacks it), or FLATFORMERS_BEFORE=FOLDER with its files'
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as f:
        f.extractall(folder, filter='data')
    return folder, ''


class Driver:
    """A process that runs the commands of one revision."""
    def __init__(self, root, folder):
        self.log = open(folder + '.log', 'w', encoding='utf-8')
        command = [sys.executable, PINS + '/driver.py', root, folder]
        environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1')
        for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'TRACEBACK', 'PYTEST_CURRENT_TEST'):
            environment.pop(name, None)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
                                        env=environment)

    def ask(self, *words):
        print(*words, sep='\t', file=self.process.stdin, flush=True)
        self.file = words[-1]

    def answer(self):
        if not self.process.stdout.readline():
            self.process.wait()
            raise RuntimeError(open(self.log.name, encoding='utf-8').read()[-3000:])
        with open(self.file, encoding='utf-8') as f:
            return json.load(f)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def run_both(folder, kept):
    """-> {'new', 'old', 'new opens', 'old opens': what the commands of each revision do, 'why not': why there is no old
    one}. `kept` is a folder with the old revision's results of an earlier time, or where they are put."""
    drivers = dict(new=Driver(ROOT, folder + '/new'))
    why_not = ''
    if not os.path.exists(kept):
        old, why_not = old_revision(folder + '/revision')
        os.makedirs(folder + '/kept')
        if old:
            drivers['old'] = Driver(old, folder + '/kept/old')
    try:
        for name, driver in drivers.items():
            driver.ask('train', f'{folder}/{name}.json')
        found = {name: driver.answer() for name, driver in drivers.items()}
        if 'old' in drivers:
            shutil.copytree(folder + '/kept/old', folder + '/old')
            drivers['old'].ask('open', folder + '/old', folder + '/old-opens.json')
            found['old opens'] = drivers['old'].answer()
            with open(folder + '/kept/found.json', 'w', encoding='utf-8') as f:
                json.dump({name: found[name] for name in ('old', 'old opens')}, f)
            shutil.move(folder + '/kept', kept)
        if not why_not:                              # this revision goes on with the old one's files
            with open(kept + '/found.json', encoding='utf-8') as f:
                found |= json.load(f)
            shutil.copytree(kept + '/old', folder + '/old-with-new')
            drivers['new'].ask('open', folder + '/old-with-new', folder + '/new-opens.json')
            found['new opens'] = drivers['new'].answer()
        return found | {'why not': why_not}
    finally:
        for driver in drivers.values():
            driver.close()


def machine():
    """A name for all that the old revision's results hang on, and for the runs themselves."""
    cpu = platform.processor()
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo', encoding='utf-8') as f:
            cpu = sorted({line for line in f if line.startswith(('model name', 'flags'))})
    with open(PINS + '/driver.py', encoding='utf-8') as f:
        runs = f.read()
    return digest(runs, BEFORE, os.environ.get('FLATFORMERS_BEFORE'), torch.__version__, np.__version__, sys.version, cpu)


@pytest.fixture(scope='session')
def both(tmp_path_factory, request):
    """run_both, once for all processes of pytest-xdist: the first one runs, the others wait for its file."""
    base = tmp_path_factory.getbasetemp()
    folder = str(base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) + '/both'
    done = folder + '/all.json'
    try:
        os.mkdir(folder)
    except FileExistsError:
        until = time.time() + 600
        while not os.path.exists(done) and time.time() < until:
            time.sleep(0.1)
    else:
        try:
            found = run_both(folder, f'{request.config.cache.mkdir("pins")}/{machine()}')
        except RuntimeError as e:
            found = dict(failed=str(e))
        with open(done + '.tmp', 'w', encoding='utf-8') as f:
            json.dump(found, f)
        os.rename(done + '.tmp', done)
    with open(done, encoding='utf-8') as f:
        found = json.load(f)
    if 'failed' in found:
        pytest.fail(found['failed'])
    return found


def flat(x, place=''):
    """Nested dicts and lists -> {place: value}."""
    if isinstance(x, dict):
        items = x.items()
    elif isinstance(x, list):
        items = enumerate(x)
    else:
        return {place: x}
    found = {place: type(x).__name__}
    for k, v in items:
        found |= flat(v, f'{place}.{k}' if place else str(k))
    return found


def differences(old, new):
    """Lines that tell what is another result now; texts are held elsewhere."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, now = ({k: v for k, v in side.get(name, {}).items() if k not in ('stdout', 'stderr', 'log.txt')}
                       for side in (old, new))
        before, now = flat(before), flat(now)
        for place in sorted(before.keys() | now.keys()):
            if before.get(place, 'nothing') != now.get(place, 'nothing') and place not in ADDED:
                lines.append(f'{name}: {place} was {before.get(place, "nothing")!r}, is {now.get(place, "nothing")!r}')
    return lines


def check_equal(both, stage, kind):
    if both['why not']:
        pytest.skip(both['why not'])
    def some(found):
        return {k: v for k, v in found.items() if k.split(' ', 1)[-1].startswith(kind) and not k.startswith(('help', 'data'))}
    old, new = some(both['old' + stage]), some(both['new' + stage])
    assert len(old) > 3, 'too few runs'
    found = differences(old, new)
    assert not found, f'{len(found)} places differ, of these the first:\n' + '\n'.join(x[:300] for x in found[:25])


@pytest.mark.parametrize('family', FAMILIES)
def test_runs_and_samples_are_those_of_the_old_revision(both, family):
    check_equal(both, '', family)


@pytest.mark.parametrize('family', FAMILIES)
def test_files_of_the_old_revision_are_resumed_opened_and_sampled_alike(both, family):
    check_equal(both, ' opens', family)


def test_prepared_folders_are_those_of_the_old_revision(both):
    if both['why not']:
        pytest.skip(both['why not'])
    old, new = ({k: v for k, v in both[side].items() if k.startswith('data ')} for side in ('old', 'new'))
    assert len(old) > 9 and not differences(old, new)


def test_every_run_of_the_comparison_has_a_result(both):
    """A comparison of two errors would tell nothing."""
    failed = {name: found['result'] for stage in ('new', 'new opens') for name, found in both.get(stage, {}).items()
              if not name.startswith(('help', 'data')) and not isinstance(found['result'], dict)}
    assert not failed
    assert 'train gpt-ranks of rank 1' in both['new'] or not os.path.isdir('/proc/self/task')


# ---------------------------------------------------------------------------------------------------- what a person reads

def masked(said):
    """A text without what differs from machine to machine: floats, times, speeds, memory, versions, model's words."""
    said = re.sub(r'(?<![=\w.-])-?\d[\d,]*\.\d+(e[-+]?\d+)?(?! M param| steps|\w)', '#', said)
    said = re.sub(r'\d[\d.,]*k tokens/s', '# tokens/s', said)
    said = re.sub(r'\b\d+(\.\d)? (s|min|h)\b', '# s', said)
    said = re.sub(r'(texts,|x) \d+ tokens', r'\1 # tokens', said)
    said = re.sub(r'(?m)^#### .*: python train.py', '#### TIME: python train.py', said)
    said = re.sub(r'(?m)^# python .*', '# python VERSIONS', said)
    # what the model shows of itself at the end of a run
    said = re.sub(r'(?s)(# s of training\n)((?:(?!# s of training\n).)*?)(\n\d+ steps, [\d,]+ tokens in)',
                  lambda m: m[1] + m[3].lstrip('\n') if not m[2].strip() else m[1] + 'MODEL\'S WORDS' + m[3], said)
    return said


def masked_words(said, result):
    """What a model has said, of sample.py: it hangs on the last bits of floats."""
    if isinstance(result, dict):
        for answer in sorted(filter(str.strip, result.get('texts', ())), key=len, reverse=True):
            said = said.replace(answer, 'WORDS')
        for record in result.get('records', ()):
            for key in ('filled', 'output'):
                if record.get(key):
                    said = said.replace(record[key].replace('\n', '\\n'), 'WORDS').replace(record[key], 'WORDS')
    said = re.sub(r'("(?:output|filled|token|text|prediction)": )"(?:[^"\\]|\\.)*"', r'\1"WORDS"', said)
    said = re.sub(r'("(?:probabilities)": )\{[^{}]*\}', r'\1{...}', said)
    said = re.sub(r'(?m)^(\s*#)  .*$', r'\1  WORDS', said)
    said = re.sub(r'(?m)^[^\n\t,#]+ #(, [^\n\t,#]+ #)+', 'LABELS #', said)
    said = re.sub(r'\t(B-NUM|O)$', '\tTAG', said, flags=re.M)
    return re.sub(r'"(B-NUM|O)"', '"TAG"', said)


def flags_told(said):
    """Of a --help the flags with their defaults, not the words behind them."""
    return '\n'.join(re.findall(r'(?m)^  --\S+=.*?(?=  +\S| +$|$)|^presets.*', said)) + '\n'


def texts_of(found):
    """-> {file name: text}: what all runs have printed, by kind of command and family."""
    pages = {}
    for name, entry in found.items():
        what, _, case = name.partition(' ')
        if what == 'data' or 'ranks of rank 1' in name:
            continue
        page = f'{what}-{case.partition("-")[0].partition(" ")[0]}.txt'
        if what == 'help':
            said = flags_told(entry['stdout'])
        elif what == 'train':
            said = masked(entry['stdout'] + entry['stderr'])
            if case in ('gpt-adamw', 'bert-labelled'):
                said += '\n-- log.txt\n' + masked(entry['log.txt'])
        else:
            said = masked_words(masked(entry['stdout']), entry['result'])
            said += '-- stderr\n' + masked_words(masked(entry['stderr']), entry['result'])
            # what is filled in, and how many answers there are, differs between versions of torch
            if 'fills' in case:
                said = re.sub(r'(?m)^(?!.*<\|mask\|>)(?!\s*#|mask |--|$).+$', 'WORDS', said)
            if '-embed' in case:
                said = re.sub(r'(?m)^\s*#[# ]*\s+\S.*$', ' #  WORDS', said)
            if '-qa' in case:
                said = re.sub(r'(?:   #  WORDS\n)+', '   #  WORDS\n', said)
        pages[page] = pages.get(page, '') + f'==== {name}\n{said}\n'
    return pages


@pytest.mark.parametrize('page', sorted(map(os.path.basename, glob.glob(PINS + '/*.txt'))))
def test_texts_are_those_written_down(both, page):
    with open(f'{PINS}/{page}', encoding='utf-8') as f:
        expected = f.read()
    if not hasattr(os, 'fork'):
        expected = re.sub(r'(?s)==== train gpt-ranks.*?(?=\n==== )', '', expected)
    assert texts_of(both['new'])[page].splitlines() == expected.splitlines(), \
        'if the wording was changed on purpose: python tests/test_pins.py --write'


def test_every_text_has_a_page(both):
    assert sorted(texts_of(both['new'])) == sorted(map(os.path.basename, glob.glob(PINS + '/*.txt')))


def write():
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(folder + '/runs')
        found = {'integers': all_integers(prepare(folder), folder + '/runs'),
                 'drawn by torch': drawn_by_torch(), 'first weights': first_weights()}
        with open(PINS + '/pins.json', 'w', encoding='utf-8', newline='\n') as f:
            json.dump(found, f, indent=1)
            f.write('\n')
        driver = Driver(ROOT, folder + '/new')
        driver.ask('train', folder + '/new.json')
        for page, said in texts_of(driver.answer()).items():
            with open(f'{PINS}/{page}', 'w', encoding='utf-8', newline='\n') as f:
                f.write(said)
        driver.close()


if __name__ == '__main__':
    assert sys.argv[1:] == ['--write'], __doc__
    torch.set_num_threads(1)
    write()
