"""Runs many tiny commands of one revision in one process and tells what came of them, for tests/test_pins.py.

    python tests/pins/driver.py ROOT FOLDER      # ROOT: the revision's files; FOLDER: where its runs are written

A stage is named by a line of stdin, and answered by the name of a JSON file on stdout:

    train FILE      prepares data, trains every family in many ways, exports, samples from all of that
    open FOLDER FILE     goes on with the runs that are in FOLDER, opens and samples them

The file holds {name: {what: value}}: of a run of the trainer its result, metrics, checkpoints (tensors hashed) and other
files without times, and what it printed; of a run of sample.py what it returned and printed. Everything goes through
train.main, sample.main and data/text.py's prepare, so that it fits any revision.
"""
import contextlib
import functools
import glob
import hashlib
import inspect
import io
import json
import os
import random
import socket
import sys
import warnings

ROOT = os.path.abspath(sys.argv[1])
sys.path.insert(0, ROOT)
os.makedirs(sys.argv[2], exist_ok=True)
os.chdir(sys.argv[2])
warnings.simplefilter('ignore')

import numpy as np
import torch

import sample
import train
from data import text

# a hundred runs in one process: the source of a Config is parsed once, and nothing waits for a disk
inspect.getsource = functools.cache(inspect.getsource)
os.fsync = lambda file: None

TIMES = {'train_seconds', 'total_seconds', 'tokens_per_second', 'peak_memory_mb'}
FAMILIES = {
    'gpt': '--model=gpt --n_layer=2 --n_head=2 --n_embd=24 --block_size=32 --dropout=0.1',
    'bert': '--model=bert --n_layer=2 --n_head=2 --n_embd=24 --n_hidden=40 --block_size=32 --dropout=0.1 '
            '--attention_dropout=0.1',
    't5': '--model=t5 --n_layer=2 --n_head=2 --n_embd=24 --head_dim=7 --n_hidden=40 --block_size=32 --dropout=0.1',
    'electra': '--model=electra --n_layer=2 --n_head=2 --n_embd=24 --n_hidden=40 --block_size=32 --embed_dim=14 '
               '--generator_size=0.5 --dropout=0.1 --attention_dropout=0.1',
}
STEPS = '--device=cpu --batch_size=4 --micro_batch_size=2 --max_iters=6 --eval_interval=3 --eval_iters=4 ' \
        '--log_interval=2 --warmup_iters=2 --learning_rate=0.003'
TUNE = '--device=cpu --batch_size=4 --max_iters=2 --eval_interval=2 --log_interval=1 --warmup_iters=1 ' \
       '--learning_rate=0.01'


def training_runs():
    """name -> flags of the trainer; the name is also the run's folder."""
    runs = {}
    for family, size in FAMILIES.items():
        for optimizer in ('adamw', 'muon', 'adafactor'):
            runs[f'{family}-{optimizer}'] = f'{size} {STEPS} --data=data/sums --optimizer={optimizer}'
        runs[f'{family}-bf16'] = f'{size} {STEPS} --data=data/sums --dtype=bfloat16 --max_iters=3'
    runs |= {
        'bert-layers': f'{FAMILIES["bert"]} {STEPS} --data=data/sums --layer_decay=0.8 --bias_correction=false '
                       '--unfreeze_interval=2 --masking=word --sentences=nsp --n_segments=2',
        't5-rms': f'{FAMILIES["t5"]} {STEPS} --data=data/sums --rms_scale --lr_schedule=inverse_sqrt --objective=ul2',
        'electra-stages': f'{FAMILIES["electra"]} {STEPS} --data=data/sums --generator_steps=3 --generator_size=1 '
                          '--share=none --lr_schedule=wsd',
        'gpt-prefix': f'{FAMILIES["gpt"]} {STEPS} --data=data/sums --objective=prefix --min_lr=0.001 '
                      '--lr_schedule=linear --grad_clip=0',
        'gpt-mixture': f'{FAMILIES["gpt"]} {STEPS} --data=data/sums+data/more --mix_temperature=2',
        't5-mixture': f'{FAMILIES["t5"]} {TUNE} --data=data/pairs+data/pairs2 --target_size=16 --mix_cap=9',
        'gpt-lora': f'--init_from=runs/gpt-adamw {STEPS} --data=data/more --lora_rank=2 --lora_dropout=0.1 --merge',
        'gpt-instruct': f'{FAMILIES["gpt"]} {TUNE} --data=data/instruct',
        'gpt-messages': f'--init_from=runs/gpt-adamw {TUNE} --data=data/messages',
        't5-pairs': f'{FAMILIES["t5"]} {TUNE} --data=data/pairs --target_size=16 --beams=2',
        'bert-labelled': f'--init_from=runs/bert-adamw {STEPS} --data=data/labelled --group_by_length',
        'bert-two': f'--init_from=runs/bert-adamw {TUNE} --data=data/two --baseline',
        'bert-number': f'--init_from=runs/bert-adamw {TUNE} --data=data/number --pool=mean',
        'bert-bottleneck': f'--init_from=runs/bert-adamw {TUNE} --data=data/labelled --adapter=bottleneck',
        'bert-prefix': f'--init_from=runs/bert-adamw {TUNE} --data=data/labelled --adapter=prefix --adapter_size=3',
    }
    for family in ('bert', 'electra'):
        for kind in ('tagged', 'choice', 'qa'):
            runs[f'{family}-{kind}'] = f'--init_from=runs/{family}-adamw {TUNE} --data=data/{kind} --doc_stride=8 ' \
                                       '--max_query=8'
    runs['electra-labelled'] = f'--init_from=runs/electra-adamw {TUNE} --data=data/labelled'
    presets = {'gpt': 'gpt2', 'bert': 'bert-tiny', 't5': 't5-small', 'electra': 'electra-small'}
    for family, preset in presets.items():
        runs[f'{family}-hf'] = f'{FAMILIES[family]} {STEPS} --preset={preset} --data=data/sums --max_iters=1 ' \
                               f'--export_hf=hf/{family}'
    return runs


def later_runs():
    """name -> flags, of runs that start where the runs of another revision ended."""
    resumed = ('gpt-muon', 'gpt-lora', 'gpt-mixture', 'bert-layers', 'bert-labelled', 'bert-bottleneck', 't5-adafactor',
               'electra-stages')
    runs = {f'{name}-resumed': f'--resume --out_dir=runs/{name} --max_iters=8' for name in resumed}
    for family in FAMILIES:
        runs[f'{family}-again'] = f'--init_from=hf/{family} --max_iters=0 --export_hf=hf/{family}-again'
        runs[f'{family}-best'] = f'--init_from=runs/{family}-adamw/best.pt {TUNE} --data=data/more --max_iters=1'
    runs['gpt-merged'] = f'--init_from=runs/gpt-lora/merged.pt {TUNE} --data=data/more --max_iters=1'
    return runs


def sampling_runs():
    """name -> (flags of sample.py, lines of stdin)."""
    gpt = ['--out_dir=runs/gpt-adamw', '--max_new_tokens=12']
    chat = ['--out_dir=runs/gpt-instruct', '--max_new_tokens=8']
    runs = {
        'gpt-prompt': [*gpt, '--prompt=one plus', '--num_samples=2'],
        'gpt-greedy': [*gpt, '--prompt=one plus', '--temperature=0', '--max_new_tokens=40'],
        'gpt-slide': [*gpt, '--prompt=one plus', '--max_new_tokens=40', '--slide=5'],
        'gpt-no-cache': [*gpt, '--prompt=one plus', '--max_new_tokens=40', '--cache=false'],
        'gpt-stream': [*gpt, '--prompt=one plus', '--stream', '--num_samples=2'],
        'gpt-choosing': [*gpt, '--prompt=two', '--top_p=0.9', '--min_p=0.001', '--repetition_penalty=1.3', '--top_k=50',
                         '--stop=e', '--ignore_eot'],
        'gpt-document': [*gpt],
        'gpt-stdin': [*gpt, '--prompt=-'],
        'gpt-long': [*gpt, '--prompt=' + 'one plus two is three. ' * 9],
        'gpt-interactive': [*gpt, '--interactive'],
        'gpt-bf16': ['--out_dir=runs/gpt-bf16', '--max_new_tokens=12', '--prompt=one plus', '--dtype=bfloat16'],
        'gpt-lm': ['--out_dir=runs/gpt-adamw', '--eval=lm', '--text=lines.txt', '--stride=7'],
        'gpt-items': ['--out_dir=runs/gpt-adamw', '--eval=items.jsonl'],
        'gpt-chat': [*chat, '--prompt=What is one?', '--system=Be brief.'],
        'gpt-chats': [*chat, '--interactive'],
        'gpt-adapted': ['--init_from=runs/gpt-adamw', '--lora=runs/gpt-lora', '--prompt=one', '--max_new_tokens=9'],
        'gpt-adapter': ['--out_dir=runs/gpt-lora', '--prompt=one', '--max_new_tokens=9'],
        'gpt-merged': ['--init_from=runs/gpt-lora/merged.pt', '--prompt=one', '--max_new_tokens=9'],
        'gpt-best': ['--init_from=runs/gpt-adamw/best.pt', '--prompt=one', '--max_new_tokens=9'],
        'gpt-hf': ['--init_from=hf/gpt', '--prompt=one', '--max_new_tokens=9'],
        'bert-fill': ['--out_dir=runs/bert-adamw', '--prompt=one plus [MASK] is three.'],
        'bert-fills': ['--out_dir=runs/bert-adamw', '--prompt=FILE:gaps.txt', '--top=2'],
        'bert-hf': ['--init_from=hf/bert', '--prompt=one plus [MASK] is three.'],
        'bert-bf16': ['--out_dir=runs/bert-bf16', '--prompt=one plus [MASK] is three.', '--dtype=bfloat16'],
        'bert-classify': ['--out_dir=runs/bert-labelled', '--classify=lines.txt', '--batch_size=2'],
        'bert-prefix': ['--out_dir=runs/bert-prefix', '--classify=one plus two is three.'],
        'bert-bottleneck': ['--init_from=runs/bert-adamw', '--lora=runs/bert-bottleneck', '--classify=lines.txt'],
        'bert-two': ['--out_dir=runs/bert-two', '--classify=one\ttwo'],
        'bert-number': ['--out_dir=runs/bert-number', '--classify=-'],
        'bert-tagged': ['--out_dir=runs/bert-tagged', '--classify=lines.txt'],
        'bert-choice': ['--out_dir=runs/bert-choice', '--classify=choices.jsonl'],
        'bert-qa': ['--out_dir=runs/bert-qa', '--context=page.txt', '--question=What is two?', '--top=2'],
        'bert-embed': ['--out_dir=runs/bert-adamw', '--embed=lines.txt'],
        'bert-cosines': ['--out_dir=runs/bert-adamw', '--embed=sides.jsonl', '--pool=cls'],
        'bert-vectors': ['--out_dir=runs/bert-adamw', '--embed=lines.txt', '--out=vectors.npy', '--normalize'],
        'electra-detect': ['--out_dir=runs/electra-adamw', '--prompt=one plus two is banana.'],
        'electra-mask': ['--out_dir=runs/electra-adamw', '--prompt=one [MASK].'],
        'electra-hf': ['--init_from=hf/electra', '--prompt=one plus two is banana.'],
        'electra-classify': ['--out_dir=runs/electra-labelled', '--classify=lines.txt'],
        'electra-qa': ['--out_dir=runs/electra-qa', '--context=page.txt', '--question=What is two?'],
        't5-write': ['--out_dir=runs/t5-pairs', '--prompt=FILE:lines.txt', '--max_new_tokens=9'],
        't5-beams': ['--out_dir=runs/t5-pairs', '--prompt=one plus two', '--max_new_tokens=9', '--beams=3',
                     '--no_repeat_ngram=2', '--length_penalty=0.7'],
        't5-drawn': ['--out_dir=runs/t5-pairs', '--prompt=one plus two', '--max_new_tokens=9', '--temperature=0.9'],
        't5-metric': ['--out_dir=runs/t5-pairs', '--prompt=FILE:pairs.jsonl', '--max_new_tokens=9', '--metric=bleu'],
        't5-fill': ['--out_dir=runs/t5-adamw', '--prompt=one <extra_id_0> two is <extra_id_1>.', '--max_new_tokens=9'],
        't5-hf': ['--init_from=hf/t5', '--prompt=one plus two', '--max_new_tokens=9'],
    }
    for name in ('bert-fill', 'bert-classify', 'bert-tagged', 'bert-choice', 'bert-qa', 'bert-number', 'bert-embed',
                 'electra-detect', 't5-write'):
        runs[name + '-json'] = [*runs[name], '--json']
    stdin = {
        'gpt-stdin': 'three\nminus',
        'gpt-interactive': 'one\nthree plus\n',
        'gpt-chats': 'What is one?\nAnd two?\n/reset\n\nHello\n',
        'bert-number': 'one plus two\nthree\n',
        'bert-number-json': 'one plus two\nthree\n',
    }
    return {name: (flags, stdin.get(name, '')) for name, flags in runs.items()}


WORDS = 'zero one two three four five six seven eight nine ten'.split()


def write_inputs():
    """Small files of every kind, and the folders that they are prepared into."""
    rng = random.Random(5)

    def number():
        return rng.randrange(6)

    def fact():
        a, b = number(), rng.randrange(5)
        return f'{WORDS[a]} plus {WORDS[b]} is {WORDS[a + b]}; {WORDS[a + b]} minus {WORDS[b]} is {WORDS[a]}.'

    def write(path, lines):
        with open(path, 'w', encoding='utf-8', newline='\n') as f:
            f.write(''.join(line + '\n' for line in lines))

    def write_rows(path, make, n=60):
        write(path, (json.dumps(make(i)) for i in range(n)))

    def labelled(i):
        a = number()
        return dict(text=f'{fact()} ' * rng.choice((1, 1, 2)) + str(i), label=('low', 'mid', 'high')[a // 2])

    def tagged(i):
        words = fact().split()
        return dict(tokens=words, tags=['B-NUM' if w.strip('.;') in WORDS else 'O' for w in words])

    def qa(i):
        a, b = rng.sample(range(11), 2)
        context = f'{i} things: {WORDS[a]} is a number. {fact()} And {WORDS[b]} is the end.'
        at = context.index(WORDS[b] + ' is the end')
        return dict(context=context, question='What is the end?', answers=[dict(text=WORDS[b], answer_start=at)])

    def messages(i):
        turns = [dict(role='system', content='Count.')] if i % 2 else []
        for _ in range(1 + i % 3):
            a = number()
            turns += [dict(role='user', content=f'{WORDS[a]}?'), dict(role='assistant', content=f'{WORDS[a + 1]}.')]
        return dict(messages=turns)

    write('sums.txt', (fact() for _ in range(300)))
    write('more.txt', (f'{fact()} The end of {i}.' for i in range(120)))
    write_rows('labelled.jsonl', labelled)
    write_rows('two.jsonl', lambda i: dict(text=fact(), text_b=str(i), label='odd' if i % 2 else 'even'))
    write_rows('number.jsonl', lambda i: dict(text=f'{fact()} {i}', label=i / 7))
    write_rows('tagged.jsonl', tagged)
    write_rows('choice.jsonl', lambda i: dict(text=f'{i} {fact()}', choices=[WORDS[number()], fact()], label=i % 2))
    write_rows('qa.jsonl', qa)
    write_rows('pairs.jsonl', lambda i: dict(input=fact(), target=f'{WORDS[number()]} {i}'), 30)
    write_rows('pairs2.jsonl', lambda i: dict(input=f'{i} of {fact()}', target=WORDS[number()]), 40)
    write_rows('instruct.jsonl', lambda i: dict(prompt=f'What is {i}?', response=fact()))
    write_rows('messages.jsonl', messages)
    write('lines.txt', ['one plus two is three.', 'four minus two', 'nine'])
    write('page.txt', ['one is a number. two is the end. three plus four is seven. ' * 3])
    write('gaps.txt', ['one [MASK] two is [MASK].', 'ten minus [MASK] is nine.'])
    write('items.jsonl', [json.dumps(row) for row in (
        dict(query='one plus one is', choices=['two', 'nine', 'ten'], gold=0),
        dict(query='two ', choices=['plus', 'four minus one'], gold=1),
        dict(context='one plus two is', continuation='three'))])
    write('choices.jsonl', [json.dumps(dict(text='one plus', choices=['two', 'ten', 'is']))])
    write('sides.jsonl', [json.dumps(dict(text=WORDS[i], text_b=f'{WORDS[i + 1]} plus', label=i)) for i in range(3)])
    text.prepare('sums.txt', tokenizer='bpe', vocab_size=500, out='data/sums')
    for name in ('more', 'labelled', 'two', 'number', 'tagged', 'choice', 'qa', 'pairs', 'pairs2', 'instruct', 'messages'):
        source = 'more.txt' if name == 'more' else f'{name}.jsonl'
        text.prepare(source, tokenizer='data/sums/tokenizer.json', out=f'data/{name}')


def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


def plain(x):
    """Anything that a checkpoint or a result holds -> JSON: tensors and arrays as a hash, times left out."""
    if isinstance(x, torch.Tensor):
        bits = x.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f'{x.dtype} {list(x.shape)} {digest(bits)}'
    if isinstance(x, np.ndarray):
        return f'{x.dtype} {list(x.shape)} {digest(np.ascontiguousarray(x).tobytes())}'
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, dict):
        return {str(k): plain(v) for k, v in x.items() if k not in TIMES}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    return x


def captured(work, stdin=''):
    """-> what work() returns or raises, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding='utf-8')
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            result = plain(work())
    except (ValueError, OSError, RuntimeError, KeyError, AttributeError, TypeError, SystemExit) as e:
        result = f'{type(e).__name__}: {e}'
    finally:
        sys.stdin = before
    return dict(result=result, stdout=out.getvalue(), stderr=err.getvalue())


def read_checkpoint(path):
    saved = torch.load(path, weights_only=False)      # our own file
    saved.pop('source')
    saved['tokenizer'] = digest(saved['tokenizer'].encode())
    return plain(saved)


def read_log(path):
    """log.txt without the scripts that it holds, which differ from revision to revision."""
    said = []
    keep = True
    for line in open(path, encoding='utf-8').read().splitlines():
        if line.startswith('#### '):
            keep = not line.endswith('.py')
        if keep:
            said.append(line)
    return '\n'.join(said) + '\n'


def files_of(folder):
    """What a run has left in its folder."""
    found = dict(files=sorted(os.listdir(folder)))
    for path in sorted(glob.glob(folder + '/*')):
        name = os.path.basename(path)
        if name.endswith('.pt'):
            found[name] = read_checkpoint(path)
        elif name.endswith('.jsonl'):
            found[name] = [plain(json.loads(line)) for line in open(path, encoding='utf-8')]
        elif name in ('loss.svg', 'tokenizer.json', 'adapter_config.json'):
            found[name] = digest(open(path, 'rb').read())
        elif name.endswith('.safetensors'):
            found[name] = read_safetensors(path)
        elif name == 'log.txt':
            found[name] = read_log(path)
    return found


def read_safetensors(path):
    """name -> type, shape and hash, whatever the order in the file."""
    data = open(path, 'rb').read()
    n = int.from_bytes(data[:8], 'little')
    header, body = json.loads(data[8:8 + n]), data[8 + n:]
    header.pop('__metadata__', None)
    return {k: f'{v["dtype"]} {v["shape"]} {digest(body[slice(*v["data_offsets"])])}' for k, v in header.items()}


def exported(folder):
    found = {}
    for path in sorted(glob.glob(folder + '/**', recursive=True)):
        name = os.path.relpath(path, folder)
        if name.endswith('.safetensors'):
            found[name] = read_safetensors(path)
        elif name.endswith('config.json'):
            found[name] = json.load(open(path, encoding='utf-8'))
        elif os.path.isfile(path):
            found[name] = digest(open(path, 'rb').read())
    return found


def train_run(name, flags):
    found = captured(lambda: train.main(flags.split() + [f'--out_dir=runs/{name}'] * ('--out_dir' not in flags)))
    folder = f'runs/{name}'
    for word in flags.split():
        if word.startswith('--out_dir='):
            folder = word.partition('=')[2]
        if word.startswith('--export_hf='):
            found['export'] = exported(word.partition('=')[2])
    if os.path.isdir(folder):
        found |= files_of(folder)
    return found


def sample_run(flags, stdin):
    return captured(lambda: sample.main(['--device=cpu', *flags]), stdin)


def start_ranks(ready):
    """Two processes that train together as soon as the data is there; forked before torch has threads of its own."""
    can = hasattr(os, 'fork') and os.path.isdir('/proc/self/task') and len(os.listdir('/proc/self/task')) == 1
    if not can:
        return []
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    pids = []
    for rank in range(2):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        status = 1
        try:
            os.close(ready[1])
            os.read(ready[0], 1)                     # returns when the first process closes its end
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
                              MASTER_PORT=str(port))
            found = train_run('gpt-ranks', f'{FAMILIES["gpt"]} {STEPS} --data=data/sums --batch_size=8')
            with open(f'ranks-{rank}.json', 'w', encoding='utf-8') as f:
                json.dump(found, f)
            status = 0
        finally:
            os._exit(status)
    return pids


def stage_train():
    ready = os.pipe()
    pids = start_ranks(ready)
    write_inputs()
    os.close(ready[0])
    os.close(ready[1])
    found = {}
    for folder in sorted(os.listdir('data')):
        meta = json.load(open(f'data/{folder}/meta.json', encoding='utf-8'))
        found[f'data {folder}'] = dict(meta=meta, files=sorted(os.listdir(f'data/{folder}')))
    for name, flags in training_runs().items():
        found[f'train {name}'] = train_run(name, flags)
    for name, (flags, stdin) in sampling_runs().items():
        found[f'sample {name}'] = sample_run(flags, stdin)
    if os.path.exists('vectors.npy'):
        found['sample bert-vectors']['file'] = plain(np.load('vectors.npy'))
    for rank, pid in enumerate(pids):
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if os.path.exists(f'ranks-{rank}.json'):
            found[f'train gpt-ranks of rank {rank}'] = json.load(open(f'ranks-{rank}.json', encoding='utf-8'))
        else:
            found[f'train gpt-ranks of rank {rank}'] = dict(result=f'ended with status {status}')
    for family in FAMILIES:
        found[f'help {family}'] = captured(lambda: train.main([f'--model={family}', '--help']))
    found['help sample'] = captured(lambda: sample.main(['--help=all']))
    return found


def stage_open():
    wanted = 'prompt chat lm adapted adapter merged best hf bf16 fill classify prefix bottleneck qa detect beams'.split()
    found = {f'sample {name}': sample_run(flags, stdin) for name, (flags, stdin) in sampling_runs().items()
             if name.split('-', 1)[1] in wanted}
    for name, flags in later_runs().items():
        found[f'train {name}'] = train_run(name, flags)
    found['sample gpt-resumed'] = sample_run(['--out_dir=runs/gpt-muon', '--prompt=one', '--max_new_tokens=9'], '')
    return found


def main():
    answer = os.fdopen(os.dup(1), 'w')               # what others print must not get between the answers
    os.dup2(2, 1)
    for line in sys.stdin:
        stage, *words = line.rstrip('\n').split('\t')
        if stage == 'open':
            os.chdir(words[0])
        found = stage_train() if stage == 'train' else stage_open()
        with open(words[-1], 'w', encoding='utf-8') as f:
            json.dump(found, f, indent=1)
        print('done', file=answer, flush=True)


if __name__ == '__main__':
    torch.set_num_threads(1)
    main()
