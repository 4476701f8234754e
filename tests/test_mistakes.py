"""What people type wrong: each mistake is one line on stderr that says what came, what was expected and what to type; the
status is not 0, there is no traceback, and no file that was there has changed."""
import importlib, json, os, re, shlex, shutil, struct, subprocess, sys

import numpy as np
import pytest
import torch

import bpe, gpt, sample, train
from data import text

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GPT = '--model=gpt --preset=gpt2 --n_layer=2 --n_head=2 --n_embd=24 --block_size=16 --batch_size=4 --max_iters=2 --eval_interval=2 --eval_iters=3 --device=cpu --optimizer=adamw --micro_batch_size=0'
BERT = '--model=bert --preset=small --n_layer=2 --n_head=2 --n_embd=24 --n_hidden=40 --block_size=32 --batch_size=4 --max_iters=2 --eval_interval=2 --eval_iters=3 --device=cpu'


@pytest.fixture(scope='session')
def world(corpus, tmp_path_factory):
    """A folder with what mistakes are made with: runs, prepared data, damaged files."""
    root = tmp_path_factory.mktemp('world')
    def put(name, content):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path
    lines = lambda *rows: ''.join(json.dumps(r) + '\n' for r in rows)
    words = corpus.read_text()[:6000]
    put('sums.txt', words), put('empty.txt', ''), put('latin.txt', 'caf\xe9'.encode('latin1') * 9), put('cut.gz', b'\x1f\x8b\x08\0')
    labelled = [dict(text=f'{i} {words[i:i + 20]}', label='ab'[i % 2]) for i in range(60)]
    put('labelled.jsonl', lines(*labelled)), put('lacks.jsonl', lines(dict(text='a', label='x'), dict(text='b')))
    put('types.jsonl', lines(dict(text='a', label='x'), dict(text=5, label='y'))), put('broken.jsonl', '{"text": "a"}\n{"text": \n')
    put('columns.jsonl', lines(dict(title='a', body='b'))), put('mixed.jsonl', lines(dict(text='a', label='x'), dict(text='b', label=3)))
    put('one.jsonl', lines(*[dict(text=f'{i}', label='x') for i in range(30)])), put('items.jsonl', lines(dict(query='a', choices=['b'], gold=7)))
    put('other.pt', b'no checkpoint at all'), put('nothing/readme.txt', 'x')
    put('papers/a.pdf', b'%PDF\xff\0'), put('papers/b.pdf', b'%PDF\xff\0'), put('hollow/.hidden', 'x'), put('alpaca.jsonl', lines(dict(instruction='a', output='b')))
    real, text.HERE = text.HERE, str(root / 'made')
    try:
        for name, tokenizer, source in (('chars', 'char', 'sums.txt'), ('bytes', 'byte', 'sums.txt'), ('pairs', 'bpe', 'sums.txt'),
                                        ('classes', 'bpe', 'labelled.jsonl')):
            text.prepare(str(root / source), tokenizer, 500 if tokenizer == 'bpe' else 0, str(root / name))
        train.main([*GPT.split(), f'--data={root}/chars', f'--out_dir={root}/run', f'--export_hf={root}/hf'])
        train.main([*GPT.split(), f'--init_from={root}/run', f'--data={root}/chars', f'--out_dir={root}/adapter', '--lora_rank=2'])
        train.main([*BERT.split(), f'--data={root}/pairs', f'--out_dir={root}/bert'])
    finally: text.HERE = real
    def copy(name, source): shutil.copytree(root / source, root / name); return root / name
    copy('short', 'bytes'), os.truncate(root / 'short/train.bin', 100)
    copy('swapped', 'chars'), shutil.copy(root / 'bytes/tokenizer.json', root / 'swapped')
    copy('sizes', 'bytes'), put('sizes/meta.json', json.dumps((sizes := json.loads((root / 'bytes/meta.json').read_text())) | dict(vocab_size=sizes['vocab_size'] + 5)))
    copy('old', 'chars'), put('old/meta.json', json.dumps(json.loads((root / 'chars/meta.json').read_text()) | dict(version=7)))
    np.full(os.path.getsize(root / 'bytes/train.bin') // 2, 999, np.uint16).tofile(str(copy('beyond', 'bytes') / 'train.bin'))
    put('cut/ckpt.pt', (root / 'run/ckpt.pt').read_bytes()[:5000]), torch.save(dict(weights=torch.ones(3)), root / 'theirs.pt')
    config = json.loads((root / 'hf/config.json').read_text())
    for name, change in (('hf_type', dict(model_type='mamba')), ('hf_size', dict(n_embd=48)), ('hf_deep', dict(n_layer=10 ** 9)),
                         ('hf_word', dict(n_embd='wide'))):
        copy(name, 'hf'), put(f'{name}/config.json', json.dumps(config | change))
    copy('hf_cut', 'hf'), os.truncate(root / 'hf_cut/model.safetensors', 3000)
    copy('hf_json', 'hf'), put('hf_json/config.json', '{"model_type": ')
    put('hf_bare/config.json', json.dumps(config)), copy('hf_plain', 'hf'), os.remove(root / 'hf_plain/tokenizer.json') if (root / 'hf_plain/tokenizer.json').exists() else 0
    put('hf_shard/config.json', json.dumps(config)), put('hf_shard/model.safetensors.index.json', json.dumps(dict(weight_map=dict(a='../run/ckpt.pt'))))
    put('peft/adapter_config.json', json.dumps(dict(peft_type='LORA', r=2))), put('peft/adapter_model.safetensors', struct.pack('<Q', 2) + b'{}')
    put('peft_cut/adapter_config.json', '{"r": 2'), put('here/.keep', '')
    return root


def tree(root):
    return {p: (s.st_size, s.st_mtime_ns) for d, _, names in os.walk(root) for p in [d, *(os.path.join(d, n) for n in names)]
            if (s := os.stat(p)) and (os.path.isfile(p) or not p.endswith('here'))}


# a command, and what its line says. train: trains in {w}/here with --data={w}/chars if nothing else is given
TABLE = r"""
train --n_layer                                         | --n_layer needs a value: --n_layer=\.\.\.
train --n_layer=two                                     | --n_layer=two: expected a whole number
train --learning_rate=-1                                | --learning_rate=-1\.0: expected more than 0
train --max_iters=-5                                    | --max_iters=-5: expected 0 or more
train --max_iters=1e3                                   | --max_iters=1e3: expected a whole number
train --eval_interval=-1                                | --eval_interval=-1: expected 0 or more
train --epochs=-1                                       | --epochs=-1\.0: expected 0 or more
train --deterministic=yes                               | --deterministic=yes: expected true or false
train -n_layer=3                                        | unexpected argument '-n_layer=3': flags are written --name=value
train --optimiser=adamw                                 | unknown flag --optimiser; did you mean --optimizer\?
train --optimizer=adamww                                | --optimizer=adamww: expected one of .*; did you mean adamw\?
train --preset=gtp2                                     | --preset=gtp2: gpt.py has .*; did you mean gpt2\?
train --log_to=wandbb                                   | --log_to=wandbb: expected one of .*did you mean wandb\?
train --dtype=fp16                                      | --dtype=fp16: expected one of auto, bfloat16
train --dtype=float16                                   | --dtype=float16 needs CUDA .*: use bfloat16 or float32
train --model=gpt.py                                    | --model=gpt.py: no file gpt.py.py here; model files: .*did you mean gpt\?
train --model=json                                      | --model=json: no file json.py here; model files:
train --model=train                                     | train.py does not define .*: see the protocol
train --n_head=5                                        | n_embd=24 is not a multiple of n_head=5
train --n_embd=0                                        | n_embd=0: expected 1 or more
train --window=-3                                       | window=-3: expected 0 .all tokens. or more
train --n_layer=1000000000                              | more than 30,000 tensors: lower --n_layer
train --n_embd=2000000                                  | G parameters take .* GB, this machine has .*: lower --n_embd
train --n_embd=1000000000000000000                      | a model of these sizes: .*
train --vocab_multiple=1000000000000                    | G parameters take .* GB, this machine has
train --block_size=0                                    | block_size=0: expected 1 or more
train --block_size=99999                                | one window takes 100000: lower --block_size
train --batch_size=100000000000000                      | out of memory .*; lower --micro_batch_size
train --batch_size=6 --micro_batch_size=4               | --batch_size=6 does not split .*: try --batch_size=8
train --shard                                           | --shard needs several ranks: torchrun
train --freeze=2                                        | --freeze, --unfreeze_interval and --layer_decay need a Model that has depth_of.*: leave them out
train --new_weights                                     | --new_weights compares with weights: add --init_from=RUN
train --baseline                                        | --baseline compares with weights: add --init_from=RUN
train --positions=rope                                  | positions='rope' is not one of: 'learned'
train --init_std=-1                                     | init_std=-1.0: expected 0 to 1e9
train --model=bert --preset=bert-tiny --init_std=1e308 | init_std=1e\+308: expected 0 to 1e9
train --positions=alibi --export_hf={w}/there           | --export_hf: transformers has no model for positions=alibi .*; leave it out
train --out_dir={w}/sums.txt                            | --out_dir=.*sums.txt cannot be written .*: choose another
train --out_dir=/proc/nowhere                           | --out_dir=/proc/nowhere cannot be written .*: choose another
train --device=gpu                                      | --device=gpu: expected auto, cpu, cuda, cuda:N or mps
train --device=cuda:99                                  | --device=cuda:99: (this torch .* sees no CUDA device; use --device=cpu|there are \d+ GPUs)
train --device=meta                                     | --device=meta: expected auto, cpu, cuda, cuda:N or mps

train --data=nowhere.txt                                | --data=nowhere.txt: no data set, file or folder of that name; the data sets are
train --data=stdlb                                      | did you mean --data=stdlib\?
train --data=stdlib-classes                             | stdlib has the tasks names, modules
train --data={w}/empty.txt                              | empty.txt: no text in it
train --data={w}/broken.jsonl --tokenizer=byte          | broken.jsonl line 2: not a JSON object
train --data={w}/lacks.jsonl --tokenizer=byte           | lacks.jsonl line 2: no "label" column \(it has text\); expected it on every line
train --data={w}/types.jsonl --tokenizer=byte           | types.jsonl line 2: "text" is 5; expected a string
train --data={w}/mixed.jsonl --tokenizer=byte           | some labels are strings \('x'\), some are numbers \(3\); expected one type
train --data={w}/one.jsonl --tokenizer=byte             | every label is 'x'; expected at least two different ones
train --data={w}/columns.jsonl                          | columns.jsonl line 1: the columns are title, body; expected "text" .*: rename one, like jq -c '\{text: .\["title"\]\}' .*columns.jsonl > new.jsonl
train --data={w}/alpaca.jsonl                           | the columns are instruction, output; expected .*: python data/instruct.py --source=.*alpaca.jsonl --out=DIR, then --data=DIR
train --data={w}/papers                                 | papers: no text in it \(2 files, none of them UTF-8 text: .*a.pdf, ...\); expected .txt or other UTF-8 files, .* name another folder or FILE
train --data={w}/hollow                                 | hollow: no text in it \(no files but empty and hidden ones\); expected
train --data={w}/nothing/nothing.txt                    | nothing.txt: no such file or folder
train --data={w}/chars --tokenizer=byte                 | is prepared with the tokenizer char .*but --tokenizer=byte asks for another: leave that out
train --data={w}/pairs --vocab_size=300                 | but --vocab_size=300 asks for another: leave that out
train --data={w}/chars --tokenizer=nowhere.json         | --tokenizer=nowhere.json: .*expected bpe, char, byte, gpt2, or the path of a vocabulary
train --data={w}/classes                                | holds labelled data, gpt.py trains on text
train --data={w}/short                                  | train.bin: 100 bytes, but meta.json says .*truncated: delete .* and prepare it again
train --data={w}/beyond                                 | train.bin: it has the id 999, but the tokenizer byte has \d+ ids
train --data={w}/swapped                                | tokenizer.json: not the file that meta.json was written for
train --data={w}/old                                    | meta.json: version 7, kind 'text'; expected version 1
train --data={w}/sizes                                  | sizes: meta.json says \d+ ids, tokenizer.json has \d+: delete .* and prepare it again
train --data={w}/chars+{w}/bytes                        | a mixture has one kind of data, one set of labels and one tokenizer
train --data={w}/chars+                                 | expected names of data sets with a \+ between
train --data={w}/chars+{w}/chars --mix_cap=-1           | --mix_cap=-1: expected a number of examples
train --data={w}/chars+{w}/chars --mix_temperature=0    | --mix_temperature=0.0: expected more than 0

train --resume                                          | no checkpoint out/gpt: .*train first: python train.py --out_dir=out/gpt
train --resume --out_dir={w}/cut                        | cut/ckpt.pt: cannot be read as a checkpoint .*cut short or of another program
train --resume --out_dir={w}/run --n_layer=3            | --resume: --n_layer=3, but the run has 2: leave it out
train --resume --out_dir={w}/run --optimizer=muon       | --resume: --optimizer=muon, but the run has adamw: leave it out
train --resume --out_dir={w}/run --lora_rank=2          | --resume: --lora_rank=2, but the run has 0: leave it out
train --resume --out_dir={w}/run --model=bert           | holds a run of --model=gpt, not bert
train --resume --out_dir={w}/run --data={w}/bytes       | prepared with the tokenizer byte .* was trained with char .*: pass the text itself
train --resume --out_dir={w}/run/best.pt --max_iters=9  | best.pt
train --init_from=nowhere                               | no checkpoint nowhere: give an out_dir, a .pt file or a Hugging Face folder
train --init_from={w}/nothing                           | no checkpoint in .*nothing: expected .*ckpt.pt
train --init_from={w}/other.pt                          | other.pt: cannot be read as a checkpoint
train --init_from={w}/theirs.pt                         | theirs.pt: not a checkpoint of this trainer \(it lacks model, config or model_name\)
train --init_from={w}/run --model=bert                  | holds a model of gpt.py, not of --model=bert, whose Config has no .* more\): leave out --model
train --init_from={w}/bert --model=gpt                  | holds a model of bert.py, not of --model=gpt, whose Config has no .* more\): leave out --model
train --init_from={w}/bert --model=electra              | holds a model of bert.py, not of --model=electra, whose Config has no
train --init_from={w}/run --n_embd=48                   | the weights do not fit the model: size mismatch .*; take back what changed the model \(a flag, .*--new_weights
train --init_from={w}/run --n_layer=4                   | the weights do not fit the model: Missing key 'blocks.2.*' \(and \d+ more\), which gpt.py has with these settings
train --init_from={w}/run --data={w}/bytes              | is prepared with the tokenizer byte .* was trained with char .*: pass the text itself
train --init_from={w}/hf_plain --data={w}/bytes         | bytes has \d+ token ids, the model of .*hf_plain \d+: leave out --tokenizer
train --init_from={w}/hf_type                           | config.json has model_type 'mamba'; known: .*gpt2
train --init_from={w}/hf_size                           | gives \(\d+, 24\), config.json says \(\d+, 48\)
train --init_from={w}/hf_deep                           | config.json says n_layer=1000000000, the weights are \d+ tensors
train --init_from={w}/hf_word                           | hf_word: invalid literal .*'wide'
train --init_from={w}/hf_cut                            | model.safetensors: tensor .*the file is cut short or corrupt
train --init_from={w}/hf_json                           | config.json: not JSON
train --init_from={w}/hf_bare                           | has a config.json but neither model.safetensors nor pytorch_model.bin
train --init_from={w}/hf_shard                          | the shard \.\./run/ckpt.pt is missing

train --lora_rank=2                                     | --lora_rank needs weights to adapt: give --init_from
train --lora_rank=-1 --init_from={w}/run                | (rank|lora_rank)=-1: expected
train --lora_rank=2 --init_from={w}/run --lora_match=qq | match='qq' fits no linear layer: this model has .*all takes those of the blocks
train --lora_rank=2 --init_from={w}/run --lora_match=q,qkv    | has .*qkv as a whole and its parts too: name one or the other
train --lora_rank=2 --init_from={w}/run --lora_dropout=1.5    | dropout=1.5: expected 0 or more and under 1
train --lora_rank=2 --init_from={w}/run --lora_bits=4   | (lora_)?bits=4: expected
sample --out_dir={w}/run --lora={w}/run                 | holds a whole model, no adapter: --init_from=.*opens it
sample --out_dir={w}/run --lora=nowhere                 | no adapter nowhere: expected a folder
sample --out_dir={w}/run --lora={w}/nothing             | no adapter in .*nothing: expected adapter_config.json, or ckpt.pt
sample --out_dir={w}/run --lora={w}/peft_cut            | adapter_config.json: not JSON
sample --out_dir={w}/bert --lora={w}/adapter --prompt=[MASK] | it is of another model

sample                                                  | no run in out/gpt: train one with python train.py --model=gpt
sample --out_dir={w}/nothing                            | no checkpoint in .*nothing
sample --init_from={w}/other.pt                         | other.pt: cannot be read as a checkpoint
sample --init_from={w}/hf_plain                         | has no tokenizer: give one with --tokenizer=FILE
sample --out_dir={w}/run --tokenizer=nowhere.json       | nowhere.json: no such file or folder, nor one of the names
sample --out_dir={w}/run --tokenizer=byte               | token ids, the vocabulary byte \d+: it is not the one of this model
sample --out_dir={w}/run --max_new_token=3              | unknown flag --max_new_token; did you mean --max_new_tokens\?
sample --out_dir={w}/run --temperature=-1               | --temperature=-1.0: expected 0 or more
sample --out_dir={w}/run --top_p=2                      | --top_p=2.0: expected 0 to 1
sample --out_dir={w}/run --num_samples=0                | --num_samples=0: expected 1 or more
sample --out_dir={w}/run --prompt=FILE:nowhere.txt      | --prompt=FILE:nowhere.txt: No such file
sample --out_dir={w}/run --prompt=FILE:{w}/latin.txt    | latin.txt: not UTF-8 text \(byte 3\)
sample --out_dir={w}/run --prompt=日本                  | character '日' is not among the \d+ of this char tokenizer
sample --out_dir={w}/run --classify=words               | cannot classify: first python train.py .*; it can .*continue a text
sample --out_dir={w}/run --beams=2 --prompt=a           | --beams does not go with --prompt on gpt.py, which takes
sample --out_dir={w}/run --slide=99                     | slide=99: expected 1 to block_size=16
sample --out_dir={w}/run --eval=nowhere.jsonl           | --eval=nowhere.jsonl: No such file .*; expected lm or a .jsonl file
sample --out_dir={w}/run --eval={w}/items.jsonl         | items.jsonl line 1: "gold" is 7 with 1 choices; expected
sample --out_dir={w}/run --eval=lm                      | --eval=lm needs a text: --text=FILE
sample --out_dir={w}/run --eval=lm --text={w}/empty.txt | empty.txt.*holds no text|no text in it
sample --out_dir={w}/run --eval=lm --text={w}/sums.txt --stride=99 | --stride=99: expected 1 to block_size=16
sample --out_dir={w}/run --out=/nowhere/x.txt           | --out=/nowhere/x.txt: no folder /nowhere
sample --out_dir={w}/run --dtype=half                   | --dtype=half: expected one of auto, bfloat16, float16, float32
sample --out_dir={w}/bert --prompt=words                | no gap to fill; write \[MASK\] for each missing token
sample --out_dir={w}/bert                               | nothing asked for; it can
sample --out_dir={w}/bert --question=who                | cannot answer questions: first python train.py

bpe show --tokenizer nowhere --text a                   | nowhere: no such file or folder, nor one of the names byte
bpe show --tokenizer {w}/sums.txt --text a              | sums.txt: not a tokenizer: expected our own JSON
bpe decode --tokenizer byte 999                         | id 999 is not in 0 \.\. \d+, the ids of byte
bpe encode --tokenizer byte --input nowhere.txt         | nowhere.txt: No such file
bpe encode --tokenizer byte --input {w}/latin.txt       | latin.txt: not UTF-8 text
bpe train --input {w}/sums.txt --vocab_size 10 --out t.json   | vocab_size 10 is too small: 256 bytes
bpe train --input {w}/empty.txt --out t.json            | empty.txt: the file is empty
bpe train --input {w}/cut.gz --out t.json               | cut.gz
bpe train --input {w}/sums.txt --pattern ( --out t.json | nor a regular expression
bpe train --input {w}/sums.txt --out nowhere/t.json     | nowhere/t.json.* No such file
data.text nowhere.txt                                   | nowhere.txt: no such file or folder
data.text {w}/latin.txt                                 | latin.txt: not UTF-8 text .*convert it, like iconv
data.text {w}/cut.gz                                    | cut.gz: broken or truncated .gz
data.text {w}/sums.txt --tokenizer=nowhere.json         | --tokenizer=nowhere.json: .*expected bpe, char, byte, gpt2
data.text {w}/sums.txt --out={w}/run                    | exists and is not a prepared folder \(it has no meta.json\): move it away
data.glue --task=sst3                                   | --task=sst3: expected one of cola, sst2
data.glue --task=rte --source=nowhere                   | --source=nowhere: no .*train.tsv or train.tsv.gz in it; get it from http.*RTE.zip, then python data/glue.py --task=rte --source=FOLDER
data.instruct --share=2                                 | --share=2.0: expected a share between 0 and 1
data.instruct --source={w}/sums.txt                     | sums.txt line 1: not a JSON object
data.summarize --source={w}/columns.jsonl --input=text  | columns.jsonl line 1: no "text" column
data.wikitext --task=3                                  | --task=3: expected 2 or 103
data.fineweb --shards=200                               | --shards=200: expected 1 to 103
data.fineweb --tokenizer=byte                           | the shards hold tokens of gpt2; leave it out
data.c4 --shards=2000                                   | --shards=2000: expected 1 to 1024
data.c4 --raw=true                                      | --raw=true: expected --source=FILE or FOLDER
data.openwebtext --subsets=99                           | --subsets=99: expected 1 to 21
data.shakespeare --source=nowhere                       | --source=nowhere: no input.txt .* get it from http.*, then python data/shakespeare.py --source=FOLDER
"""
ROWS = [tuple(part.strip() for part in line.split(' | ', 1)) for line in TABLE.splitlines() if line.strip()]


def arguments(command, world):
    program, *flags = [word.format(w=world) for word in shlex.split(command.replace(' ( ', " '(' "))]
    if program == 'train':
        usual = {f.split('=')[0]: f for f in f'{GPT} --data={world}/chars'.split()}
        if any(f in ('--resume', '--model=train', '--model=json') for f in flags): usual = {'--device': '--device=cpu'}
        if any(f.startswith('--init_from') for f in flags): usual = {n: f for n, f in usual.items() if n in ('--data', '--device', '--batch_size', '--max_iters')}
        usual.setdefault('--device', '--device=cpu')
        flags = [f for n, f in usual.items() if n not in {f.split('=')[0] for f in flags}] + flags
    return program, flags


def run_here(program, flags, monkeypatch):
    """-> exit status; what a script would print as it exits goes to stderr"""
    monkeypatch.setattr(sys, 'argv', [program.replace('.', '/') + '.py', *flags])
    monkeypatch.setattr(sys, 'stdin', open(os.devnull))
    try:
        if program in ('train', 'sample'): {'train': train, 'sample': sample}[program].cli()
        elif program == 'bpe': return bpe.main(flags)
        else: text.script(importlib.import_module(program).prepare, '')
    except SystemExit as e:
        if isinstance(e.code, str): print(e.code, file=sys.stderr)
        return 1 if isinstance(e.code, str) else e.code
    return 0


@pytest.mark.parametrize('command, says', ROWS, ids=[c for c, _ in ROWS])
def test_a_mistake(command, says, world, monkeypatch, capfd):
    monkeypatch.chdir(world / 'here')
    monkeypatch.setattr(text, 'HERE', str(world / 'made'))
    program, flags = arguments(command, world)
    before = tree(world)
    capfd.readouterr()
    status = run_here(program, flags, monkeypatch)
    said = capfd.readouterr().err
    lines = [line for line in said.split('\n') if line.strip()]
    assert status not in (0, None), said
    assert len(lines) == 1 and re.search(says, lines[0]), said
    after = tree(world)
    changed = [p for p in before | after if before.get(p) != after.get(p)]
    assert all(p == str(world) or p.startswith(str(world / 'made')) for p in changed), changed     # where data is prepared


@pytest.mark.parametrize('program, flags, says', [
    ('train', ['--model=bert', '--data=glue-sst2', '--tokenizer=byte'], 'python data/glue.py --tokenizer=byte --task=sst2 --source=FOLDER'),
    ('train', ['--init_from={w}/run', '--data=shakespeare'], 'python data/shakespeare.py --tokenizer={w}/run --source=FOLDER'),
    ('data.glue', ['--task=rte-text', '--vocab_size=999'], 'python data/glue.py --vocab_size=999 --task=rte-text --source=FOLDER'),
    ('data.fineweb', ['--shards=1', '--out={w}/made/fine'], 'python data/fineweb.py --out={w}/made/fine --shards=1 --source=FOLDER')])
def test_a_failed_download_says_what_to_type(program, flags, says, world, monkeypatch, capfd):
    from data import download
    def unreachable(*a): raise ConnectionRefusedError('refused')
    monkeypatch.setattr(download, 'receive', unreachable)
    monkeypatch.chdir(world / 'here')
    monkeypatch.setattr(text, 'HERE', str(world / 'made'))
    assert run_here(program, [f.format(w=world) for f in flags] + ['--device=cpu'] * (program == 'train'), monkeypatch) == 1
    line, = [line for line in capfd.readouterr().err.splitlines() if line]
    assert 'could not reach http' in line and line.endswith('get the file by hand and run ' + says.format(w=world)), line


def test_glue_takes_the_archive_that_was_fetched_by_hand(tmp_path):
    import zipfile
    from data import glue
    rows = lambda n: 'sentence\tlabel\n' + ''.join(f'film {i}\t{i % 2}\n' for i in range(n))
    with zipfile.ZipFile(tmp_path / 'SST-2.zip', 'w') as z: z.writestr('SST-2/train.tsv', rows(9)), z.writestr('SST-2/dev.tsv', rows(4))
    for i, source in enumerate((tmp_path, tmp_path / 'SST-2.zip')):
        meta = text.open_meta(glue.prepare('byte', source=str(source), out=str(tmp_path / f'out{i}'), task='sst2'))
        assert (meta['train_examples'], meta['val_examples'], meta['labels']) == (9, 4, ['negative', 'positive'])
    with open(tmp_path / 'SST-2.zip', 'r+b') as f: f.truncate(40)
    with pytest.raises(ValueError, match='SST-2.zip: a broken .zip'): glue.prepare('byte', source=str(tmp_path), out=str(tmp_path / 'out2'), task='sst2')


def test_the_table_is_long(): assert len(ROWS) == len({c for c, _ in ROWS}) >= 140


@pytest.mark.parametrize('command', ['train --n_layer=two', 'sample --out_dir={w}/nothing', 'bpe decode --tokenizer byte 999', 'data.text nowhere.txt'])
def test_a_mistake_in_the_shell(command, world):
    program, flags = arguments(command, world)
    r = subprocess.run([sys.executable, os.path.join(ROOT, program.replace('.', '/') + '.py'), *flags], cwd=world / 'here', capture_output=True, text=True, timeout=200)
    assert r.returncode in (1, 2) and r.stdout == '' and len(r.stderr.strip().splitlines()) == 1, r.stderr
    assert re.search(dict(ROWS)[command], r.stderr)


@pytest.mark.parametrize('error', [
    torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 1 GiB\nmore lines'),
    RuntimeError('[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 99 bytes.'),
    MemoryError('Unable to allocate 7 TiB for an array')], ids=['cuda', 'torch', 'numpy'])
def test_out_of_memory_names_the_flag_to_lower(error, world, tmp_path, monkeypatch, capfd):
    def no_memory(*a, **k): raise error
    monkeypatch.chdir(tmp_path)
    for program, flags, method, says in (
            ('train', [*GPT.split(), f'--data={world}/chars', '--out_dir=new'], 'forward', r'^error: out of memory \(.*; lower --micro_batch_size'),
            ('sample', [f'--out_dir={world}/run', '--device=cpu'], 'step', r'^sample.py: out of memory \(.*: lower --num_samples')):
        monkeypatch.setattr(gpt.Model, method, no_memory)
        assert run_here(program, flags, monkeypatch) == 1
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and re.search(says, lines[0]), lines


def test_an_error_of_the_program_itself_is_not_called_lack_of_memory(world, tmp_path, monkeypatch):
    def broken(*a, **k): raise RuntimeError('mat1 and mat2 shapes cannot be multiplied')
    monkeypatch.setattr(gpt.Model, 'forward', broken)
    with pytest.raises(RuntimeError, match='shapes'): run_here('train', [*GPT.split(), f'--data={world}/chars', f'--out_dir={tmp_path}/new'], monkeypatch)
