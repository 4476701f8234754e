"""Speed, side by side: ours and its peers in one run, interleaved A B A B, as medians, spreads and ratios.

    python tests/bench.py bert --size=small            # also gpt, t5, electra, lora: a training step beside transformers'
    python tests/bench.py gpt --device=cuda --size=gpt2 --compile
    python tests/bench.py sample                       # decoding with and without a cache beside transformers' generate
    python tests/bench.py bpe                          # training, encoding, preparing beside tokenizers and tiktoken
    python tests/bench.py data                         # the data path alone (windows, masks, spans), and start-up
    python tests/bench.py speedrun --seeds=5 -- --preset=speedrun-cpu --data=shakespeare --target_val_loss=1.88
    python tests/bench.py scaling                      # tokens/s and memory against T, B, L; a Chinchilla fit (about 10 minutes)
    python tests/bench.py all --size=tiny              # all but the last two, in a few minutes: does it work?

The sides of a race are processes of their own, which take turns: each has its own peak of memory and its own time to the first
step (from the start of the process, imports included). Both sides of a training step have the same shapes, dtype, batch, first
weights and fused AdamW, and train.py's settings of memory and TF32; their first losses must agree, else the row says DIFFERS.
The side "defaults" is transformers as people run it: torch's default AdamW and settings. --compile compiles both, and races
transformers without it too. Tokens of a step are all that go in. A ratio over 1 means that ours is faster; it is the median of
the rounds' ratios. TFLOP/s and MFU of all sides take Model.flops() of ours (its docstring has the formula), MFU only where
train.py knows the device's peak. All rows also go to bench.jsonl (--out) as lines of JSON. Run it on an idle machine.

speedrun trains the command once a seed, whole: --target_val_loss is kept from train.py, because a run that ends at its first
lucky evaluation is always under it. It reports the last validation loss, a one-sided t-test of its mean against the target, and
the first evaluation at which all seeds together pass (p < 0.01), and appends a row to --results.
"""
import argparse, copy, functools, gc, importlib, itertools, json, math, os, platform, re, resource, shlex, statistics
import subprocess, sys, tempfile, time
from importlib import metadata

BEGAN = time.perf_counter()
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

# ---------------------------------------------------------------------------------------------------- results

@functools.cache
def environment(device):
    "what a number depends on, for every row"
    def version(name):
        try: return metadata.version(name)
        except metadata.PackageNotFoundError: return None
    try: cpu = re.search('model name.*: (.+)', open('/proc/cpuinfo').read())[1]
    except (OSError, TypeError): cpu = platform.processor()
    hardware = f'{os.cpu_count()} x {cpu}'
    if device.startswith('cuda'):
        import torch
        hardware = f'{torch.cuda.get_device_name(device)}, {hardware}'
    git = subprocess.run(['git', '-C', ROOT, 'describe', '--always', '--dirty'], capture_output=True, text=True).stdout.strip()
    return dict(hardware=hardware, python=platform.python_version(), git=git or 'none',
                **{n: version(n) for n in ('torch', 'numpy', 'transformers', 'tokenizers', 'tiktoken', 'peft')})

def write(args, row):
    row |= dict(command=shlex.join(['python', *sys.argv]), date=time.strftime('%F %T'), **environment(args.device))
    with open(args.out, 'a') as f: f.write(json.dumps(row) + '\n')

def number(x): return f'{x:,.0f}' if abs(x) >= 1000 else f'{x:.3g}' if abs(x) < 100 else f'{x:.1f}'
def spread(values): return [round(f(values), 4) for f in (statistics.median, min, max)]

def report(args, what, unit, rates, notes={}):
    "rates: {side: one number a round, more is better}, ours first; notes: {side: {name: value}}. Prints a table"
    row, ours = dict(what=what, unit=unit, sides={}), next(iter(rates.values()))
    print(f'{what} ({unit})')
    for side, values in rates.items():
        median, low, high = spread(values)
        row['sides'][side] = now = dict(median=median, min=low, max=high, **notes.get(side, {}))
        line, ratio = f'  {side:24s} {number(median):>10s}  {f"({number(low)} to {number(high)})":22s}', ''
        if values is not ours:
            now['ratio'] = r = spread([a / b for a, b in zip(ours, values)])
            ratio = f'ours is {r[0]:.2f} x ({r[1]:.2f} to {r[2]:.2f})'
        more = (f'  {k} {number(v) if isinstance(v, float) else v}' for k, v in notes.get(side, {}).items())
        print(line + f' {ratio:33s}' * (len(rates) > 1) + ''.join(more), flush=True)
    write(args, row)

# ---------------------------------------------------------------------------------------------------- the race

def peak(device):
    "largest memory so far in GB: allocated on the GPU, resident on a CPU"
    if device.startswith('cuda'):
        import torch
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    try: return int(re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())[1]) / 2 ** 20
    except (OSError, TypeError):                         # on Linux getrusage also counts the parent's, from before exec
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == 'darwin' else 20)

def serve(args, build):
    "a side, in its own process: builds, makes the first step, then args.inner steps for every line that comes in"
    import torch
    sync = torch.cuda.synchronize if args.device.startswith('cuda') else lambda: None
    step = build()
    value = float(step()); sync()
    first = time.perf_counter() - BEGAN
    try: open('/proc/self/clear_refs', 'w').write('5')   # memory that imports and compilation took does not count
    except OSError: pass
    if args.device.startswith('cuda'): torch.cuda.reset_peak_memory_stats(args.device)
    print(json.dumps(dict(value=value, first=first)), flush=True)
    for _ in sys.stdin:
        sync(); began = time.perf_counter()
        for _ in range(args.inner): step()
        sync(); seconds = (time.perf_counter() - began) / args.inner
        print(json.dumps(dict(seconds=seconds, peak=peak(args.device))), flush=True)

def race(args, what, unit, work, sides, flops=0, exact=False):
    """sides: {name: build}, ours first; build() -> step, a call that does `work` units and returns a number by which we see
    that all sides do the same (within 1 %, or exactly). flops: of a step."""
    if args.side: return serve(args, sides[args.side]) if what == args.race else None        # of this race or of another one
    sides = [s for s in sides if not args.sides or s in args.sides.split(',')]
    flags = [f'--{k}' + f'={v}' * (v is not True) for k, v in vars(args).items()
             if isinstance(v, (int, float, str)) and v is not False and k not in ('what', 'side', 'race')]
    flags, environ = [args.what, *flags, f'--race={what}'], dict(os.environ, TRANSFORMERS_VERBOSITY='error', HF_HUB_OFFLINE='1')
    workers, errors = {}, {s: tempfile.TemporaryFile('w+') for s in sides}
    def answer(side):
        for line in workers[side].stdout:
            if line.startswith('{'): return json.loads(line)
        errors[side].seek(0)
        raise SystemExit(f'{what}: the side {side!r} failed\n{errors[side].read()[-3000:]}')
    def ask(side): print(file=workers[side].stdin, flush=True); return answer(side)
    try:
        first, rounds = {}, {s: [] for s in sides}
        for s in sides:                                  # one after another: nobody's first step is disturbed
            workers[s] = subprocess.Popen([sys.executable, os.path.abspath(__file__), *flags, f'--side={s}'], text=True, env=environ,
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors[s])
            first[s] = answer(s)
        for s in sides: ask(s)                           # warm-up
        for _, s in itertools.product(range(args.repeat), sides): rounds[s].append(ask(s))   # A B A B
    finally:
        for w in workers.values(): w.stdin.close(); w.wait()
    top, notes = 0, {}
    if args.device.startswith('cuda') and args.dtype == 'bfloat16':
        import train
        top = next((v for k, v in train.PEAK.items() if k in environment(args.device)['hardware']), 0)
    for s in sides:
        speed, a, b = flops / statistics.median(r['seconds'] for r in rounds[s]), first[sides[0]]['value'], first[s]['value']
        notes[s] = dict(peak_gb=round(rounds[s][-1]['peak'], 3), first_step_s=round(first[s]['first'], 1))
        if flops: notes[s]['tflops'] = speed / 1e12
        if flops and top: notes[s]['mfu'] = round(speed / top, 4)
        if abs(a - b) > (0 if exact else 0.01 * abs(a)): notes[s]['DIFFERS'] = f'{b:.4f}, not {a:.4f}'
    report(args, what, unit, {s: [work / r['seconds'] for r in rounds[s]] for s in sides}, notes)

# ---------------------------------------------------------------------------------------------------- training steps

t5_v11 = dict(activation='gelu_tanh', gated=True, tied=False, scale_head=False)
electra_small = dict(n_head=4, n_embd=256, embed_dim=128, generator_size=0.25)
SIZES = {  # {family: {size: (rows, what differs from the Config)}}
    'gpt': {'tiny': (12, dict(n_layer=4, n_head=4, n_embd=128, block_size=64, vocab_size=128)),    # nanoGPT's CPU recipe
            'small': (8, dict(n_layer=4, n_head=4, n_embd=256, block_size=256, vocab_size=8192)),
            'wide': (8, dict(n_layer=2, n_head=4, n_embd=128, block_size=128, vocab_size=50304)),
            'gpt2': (8, dict(vocab_size=50304)),
            'gpt2-medium': (8, dict(vocab_size=50304, n_layer=24, n_head=16, n_embd=1024)),
            'gpt2-xl': (4, dict(vocab_size=50304, n_layer=48, n_head=25, n_embd=1600))},
    'bert': {'tiny': (4, dict(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=999)),
             'small': (16, dict(n_layer=4, n_head=4, n_embd=256, block_size=128)),
             'base': (4, dict(block_size=128)), 'base-512': (4, dict()),
             'large': (4, dict(n_layer=24, n_head=16, n_embd=1024, block_size=128))},
    't5': {'tiny': (2, dict(t5_v11, n_layer=2, n_head=2, n_embd=32, head_dim=16, n_hidden=64, block_size=64)),
           'small': (8, dict(t5_v11, n_layer=4, n_head=4, n_embd=256, n_hidden=512, block_size=256)),
           'base': (4, dict(t5_v11, n_layer=12, n_head=12, n_embd=768)),
           'large': (4, dict(t5_v11, n_layer=24, n_head=16, n_embd=1024, n_hidden=2816))},
    'electra': {'tiny': (4, dict(n_layer=2, n_head=2, n_embd=64, embed_dim=32, generator_size=0.25, block_size=32, vocab_size=999)),
                'small': (16, dict(electra_small, block_size=128)), 'small-512': (16, electra_small), 'base': (4, dict())},
}
SIZES['lora'] = SIZES['sample'] = SIZES['gpt']

def pick(args, family, default='small'):
    "-> model file, Config, rows, name of the size. A missing model file ends the race, not the others"
    size = args.size or default
    if size not in SIZES[family]: raise SystemExit(f'--size={size}: {family} has {", ".join(SIZES[family])}')
    try: file = importlib.import_module({'lora': 'gpt', 'sample': 'gpt'}.get(family, family))
    except ModuleNotFoundError as e: raise SystemExit(f'{family}: {e}') from None
    (rows, fields), kinds = SIZES[family][size], {n: type(f.default) for n, f in file.Config.__dataclass_fields__.items()}
    fields = fields | {n: args.dropout for n in kinds if n.endswith('dropout')}
    for pair in filter(None, args.set.split(',')):
        name, value = pair.split('=')
        fields[name] = kinds[name](value)
    return file, file.Config(**fields), args.rows or rows, size + f' {args.set}' * bool(args.set)

def random_rows(vocab_size, rows, step=0, corpus={}):
    "the protocol's draw and rng on random ids, none of them special"
    import numpy as np
    from data.rows import Corpus
    if vocab_size not in corpus:
        ids = np.random.default_rng(1).integers(min(999, vocab_size // 4), vocab_size - min(199, vocab_size // 4), 10 ** 7)
        corpus[vocab_size] = Corpus.__new__(Corpus)
        corpus[vocab_size].__dict__.update(split='train', seed=1, shuffle=True, kind='text', shards=[ids.astype(np.uint16)],
                                           tokens_per_row=0, length=0, overlap=0, items=[], examples=[])
    return corpus[vocab_size].rows(np.arange(rows) + rows * step)

def our_model(args, file, config, dtype=None):
    import torch, train
    device = train.pick_device(args.device)              # TF32 on CUDA; how memory is kept on a CPU
    torch.manual_seed(1)
    return file.Model(config).to(device, dtype), device

def twin(file, config, to_hf='to_hf'):
    "transformers' model of the same shape and weights. What our own takes is off the clock"
    global BEGAN
    import torch, train, transformers
    began = time.perf_counter()
    torch.manual_seed(1)
    model = file.Model(config)
    with tempfile.TemporaryDirectory() as tmp:
        hf, weights = getattr(file, to_hf)(model)
        train.write_safetensors(tmp + '/model.safetensors', weights)
        json.dump(hf, open(tmp + '/config.json', 'w'))
        BEGAN += time.perf_counter() - began
        return getattr(transformers, hf['architectures'][0]).from_pretrained(tmp)

def stepper(args, device, model, optimizer, inputs, compiled, loss_of):
    "-> step(): forward, backward, update; returns the loss"
    import torch
    dtype, net = getattr(torch, args.dtype), torch.compile(model.train()) if compiled else model.train()
    inputs = {k: torch.from_numpy(a).to(device) for k, a in inputs.items()}
    def step():
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = loss_of(net(*inputs.values()) if '0' in inputs else net(**inputs))
        loss.backward(); optimizer.step(); optimizer.zero_grad()
        return loss.detach()
    return step

def electra_pair(file, config):
    "the loop of Clark et al. 2020, section 3, as a user of transformers writes it"
    import torch
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.generator, self.discriminator = twin(file, config, 'to_hf_generator'), twin(file, config)
            self.discriminator.electra.embeddings = self.generator.electra.embeddings
        def forward(self, input_ids, labels, whole):
            out = self.generator(input_ids=input_ids, labels=labels)
            with torch.no_grad():                        # a sample of the softmax at every place, by Gumbel's trick
                new = (out.logits.float() - torch.empty_like(out.logits, dtype=torch.float).exponential_().log()).argmax(-1)
                new = torch.where(labels >= 0, new, whole)
            out.loss = out.loss + 50 * self.discriminator(input_ids=new, labels=(new != whole).long()).loss
            return out
    return Pair()

def bench_step(args, family):
    "a training step of a model file beside transformers'"
    import numpy as np, torch
    file, config, rows, size = pick(args, family)
    arrays = file.batch(*(lambda draw, rng: (draw, config, rng))(*random_rows(config.vocab_size, rows)))
    ids, targets = arrays[0], arrays[-1]
    theirs, peer, change, shape = dict(input_ids=ids, labels=ids), lambda: twin(file, config), lambda m: m, f'{rows} x {ids.shape[1]}'
    if family in ('bert', 'electra'):                    # arrays[1]: places (B, K), or with random numbers (B, 2, K)
        places, theirs['labels'] = arrays[1] if family == 'bert' else arrays[1][:, 0], np.full_like(ids, -100)
        np.put_along_axis(theirs['labels'], places, np.where(targets < 0, -100, targets), 1)
    if family == 'electra':                              # the text as it was before it was masked
        theirs['whole'], peer = np.where(theirs['labels'] < 0, ids, theirs['labels']), lambda: electra_pair(file, config)
    if family == 't5':
        theirs['labels'], shape = np.where(targets < 0, -100, targets), f'{shape[:-len(str(ids.shape[1]))]}({ids.shape[1]} + {targets.shape[1]})'
    if family == 'lora':
        def change(model):
            import lora
            return lora.wrap(model, rank=8, alpha=16, match='qkv')
        def peer():
            import peft
            how = peft.LoraConfig(r=8, lora_alpha=16, target_modules=['c_attn'], lora_dropout=0.0, fan_in_fan_out=True)
            return peft.get_peft_model(twin(file, config), how)
    def ours():
        import train
        model, device = our_model(args, file, config)
        model, settings = change(model), train.Config(learning_rate=1e-4)
        optimizer, = train.make_optimizers(model, settings, device)
        return stepper(args, device, model, optimizer, {str(i): a for i, a in enumerate(arrays)}, args.compile, lambda out: out[0])
    def other(compiled=False, tuned=True):
        import train
        device = train.pick_device(args.device) if tuned else torch.device(args.device)
        model = peer().to(device)
        same = dict(betas=(0.9, 0.95), weight_decay=0.1, fused=True) if tuned else {}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, **same)
        return stepper(args, device, model, optimizer, theirs, compiled, lambda out: out.loss)
    name = 'peft' if family == 'lora' else 'transformers'
    sides = {'ours': ours, name: other, f'{name} defaults': functools.partial(other, tuned=False)}
    if args.compile: sides[f'{name} compiled'] = functools.partial(other, compiled=True)
    with torch.device('meta'): flops = file.Model(config).flops() * rows if family != 'lora' else 0     # frozen: fewer
    tokens = ids.size + targets.size * (family == 't5')
    race(args, f'{family} {size} step, {shape}, {args.dtype}', 'tokens/s', tokens, sides, flops)
    if family == 't5':
        for B in (1, rows): bench_decode(args, 't5', file, config, size, ids[:B])

# ---------------------------------------------------------------------------------------------------- decoding

def bench_decode(args, family, file, config, size, ids, cached=True):
    "greedy decoding of args.tokens tokens that follow ids (B, T); the same ones must come out in float32"
    args, n = copy.copy(args), args.tokens
    args.inner = 1
    def ours():
        import torch, sample
        model, device = our_model(args, file, config, getattr(torch, args.dtype))
        prompt, T = torch.from_numpy(ids).to(device), ids.shape[1]
        if family == 'gpt': return lambda: sample.generate(model.eval(), prompt, n, temperature=0, cache=cached, compile=args.compile and cached)[:, T:].sum()
        model.eval().config.eot_id = -1                  # no text ends
        step = torch.compile(model.step, dynamic=False) if args.compile else None
        return torch.no_grad()(lambda: file.generate(model, prompt, max_new_tokens=n, step=step).sum())
    def other(**more):
        import torch, train
        device = train.pick_device(args.device)
        model = twin(file, config).to(device, getattr(torch, args.dtype)).eval()
        model.generation_config.eos_token_id = model.generation_config.bos_token_id = None
        prompt = torch.from_numpy(ids).to(device)
        more = dict(more, attention_mask=torch.ones_like(prompt), max_new_tokens=n, do_sample=False, use_cache=cached)
        return lambda: model.generate(prompt, **more)[:, -n:].sum()
    sides = {'ours': ours, 'transformers': other}
    if args.compile and cached: sides['transformers compiled'] = functools.partial(other, cache_implementation='static')
    what = f'decode {family} {size}, batch {len(ids)}, {n} tokens, {args.dtype}' + ', without a cache' * (not cached)
    race(args, what, 'tokens/s', len(ids) * n, sides, exact=args.dtype == 'float32')

def bench_sample(args):
    import numpy as np
    file, config, _, size = pick(args, 'sample', 'gpt2')
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (args.rows or 1, 16))
    for cached in (True, False): bench_decode(args, 'gpt', file, config, size, ids, cached)

# ---------------------------------------------------------------------------------------------------- tokenizers and data

def stdlib_texts():
    import sysconfig
    folder, paths, texts = sysconfig.get_path('stdlib'), [], []
    skip = ('site-packages', '__pycache__', 'test', 'tests', 'idle_test', 'lib2to3', 'dist-packages')
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(d for d in folders if d not in skip)
        paths += [os.path.join(base, f) for f in sorted(files) if f.endswith('.py')]
    for p in paths:
        try: texts.append(open(p, encoding='utf-8').read())
        except UnicodeDecodeError: pass
    return texts

TRAIN = {'ours': 'import bpe; tok = bpe.train(texts, {n}, special=["<|endoftext|>"])',
         'tokenizers': 'import tokenizers as k; tok = k.Tokenizer(k.models.BPE()); level = k.pre_tokenizers.ByteLevel; '
                       'tok.pre_tokenizer = level(add_prefix_space=False); tok.train_from_iterator(texts, k.trainers.BpeTrainer('
                       'vocab_size={n}, special_tokens=["<|endoftext|>"], initial_alphabet=level.alphabet(), show_progress=False))'}
CHILD = '''import json, resource, sys, time
texts = json.load(open(sys.argv[1]))
import regex, numpy, tiktoken
t = time.perf_counter(); {body}
t = time.perf_counter() - t
print(t, max(resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024)'''

def clocked(f, *args, **kw):
    began = time.perf_counter()
    f(*args, **kw)
    return time.perf_counter() - began

def bench_bpe(args):
    import bpe, tiktoken
    from data import text
    texts, sizes, cores = stdlib_texts(), (8192, 32768), os.cpu_count()
    if args.size == 'tiny': texts, sizes = texts[:40], (512,)
    size = sum(len(t.encode()) for t in texts) / 1e6     # MB
    print(f'{size:.1f} MB of Python source, {cores} cores')
    with tempfile.TemporaryDirectory() as tmp:
        json.dump(texts, open(tmp + '/texts.json', 'w'))
        for n in sizes:
            runs = {k: [] for k in TRAIN}
            for _, (k, code) in itertools.product(range(args.repeat), TRAIN.items()):        # a process each: its own peak of memory
                command = [sys.executable, '-c', CHILD.format(body=code.format(n=n)), tmp + '/texts.json']
                runs[k].append([*map(float, subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())])
            notes = {k: dict(seconds=statistics.median(s for s, _ in v), peak_mb=round(max(m for _, m in v))) for k, v in runs.items()}
            report(args, f'train a vocabulary of {n}', 'MB/s', {k: [size / s for s, _ in v] for k, v in runs.items()}, notes)
        tok, more = bpe.train(texts, sizes[0]), texts * 5
        theirs = tiktoken.Encoding('x', pat_str=bpe.PATTERNS['gpt2'], mergeable_ranks=tok.encoding._mergeable_ranks,
                                   special_tokens={'<|endoftext|>': sizes[0] - 1})
        with open(tmp + '/t.txt', 'w', encoding='utf-8') as f: f.write(''.join(more))
        tok.save(tmp + '/tok.json')
        a, b, c, d = [], [], [], []
        for i in range(args.repeat):
            a.append(size / clocked(tok.encode_batch, texts))
            b.append(size / clocked(theirs.encode_ordinary_batch, texts, num_threads=cores))
            c.append(5 * size / clocked(text.prepare, tmp + '/t.txt', tokenizer=tmp + '/tok.json', out=f'{tmp}/p{i}'))
            d.append(5 * size / clocked(theirs.encode_ordinary_batch, more, num_threads=cores))
    report(args, 'encode_batch on all cores', 'MB/s', {'ours': a, 'tiktoken': b})
    report(args, f'prepare {5 * size:.0f} MB into .bin', 'MB/s', {'ours': c, 'tiktoken alone': d})

def bench_data(args):
    import bert, bpe, gpt, t5
    tok, run = bpe.train(stdlib_texts()[:40], 2048), functools.partial(subprocess.run, capture_output=True, check=True)
    ids = dict(vocab_size=2048, **{f'{r}_id': getattr(tok, r) for r in ('eot', 'pad', 'cls', 'sep', 'mask')})
    paths = [('gpt windows', gpt, gpt.Config(), 1024), *(('t5 ' + o, t5, c, c.lengths[0]) for o in t5.objectives for c in [t5.Config(objective=o)]),
             *((f'bert masks by {m}', bert, bert.Config(**ids, block_size=T, masking=m), T) for m in ('token', 'word', 'span') for T in (128, 512))]
    if os.path.exists(os.path.join(ROOT, 'electra.py')):
        import electra
        paths += [('electra masks', electra, electra.Config(**ids, block_size=T), T) for T in (128, 512)]
    for what, file, config, tokens in paths:
        def once(step):
            draw, rng = random_rows(config.vocab_size, 32, step)
            draw.tokenizer = tok
            file.batch(draw, config, rng)
        seconds = [clocked(once, step) for step in range((2 if args.size == 'tiny' else 20) * args.repeat + 1)]
        report(args, f'{what}, 32 x {tokens}', 'tokens of text/s, one process', {'ours': [32 * tokens / s for s in seconds[1:]]})
    with tempfile.TemporaryDirectory() as tmp:
        for what, flags in (('train.py --help', ['--help']), ('train.py, one step and its evaluations', ['--max_iters=1', '--eval_iters=1', f'--out_dir={tmp}/run'])):
            command = [sys.executable, os.path.join(ROOT, 'train.py'), f'--device={args.device}', *flags]
            run(command)                                 # the data is prepared then, the byte code written
            report(args, what, 's', {'ours': [clocked(run, command) for _ in range(args.repeat)]})

# ---------------------------------------------------------------------------------------------------- runs of train.py

def train_run(args, flags):
    "-> the rows of its metrics.jsonl"
    with tempfile.TemporaryDirectory() as tmp:
        command = [*(shlex.split(args.launch) or [sys.executable]), os.path.join(ROOT, 'train.py'), *flags, f'--out_dir={tmp}/run']
        r = subprocess.run(command, capture_output=True, text=True)
        if r.returncode: raise SystemExit(f'{shlex.join(command)}\nended with {r.returncode}: {" ".join(r.stderr.strip().splitlines()[-1:])}')
        return [json.loads(line) for line in open(f'{tmp}/run/metrics.jsonl')]

def p_under(losses, target):
    "one-sided t-test: how likely is a mean this low, if the true one is the target?"
    from scipy import stats
    return float(stats.ttest_1samp(losses, target, alternative='less').pvalue) if len(losses) > 1 else math.nan

def bench_speedrun(args):
    flags, target, seeds, runs = [], math.nan, range(args.first_seed, args.first_seed + args.seeds), []
    for flag in args.rest:
        if flag.startswith('--target_val_loss='): target = float(flag.split('=')[1])
        elif flag.startswith(('--seed=', '--out_dir=')): raise SystemExit(f'{flag}: speedrun sets it; --seeds=N stands before the --')
        else: flags.append(flag)
    for seed in seeds:
        rows = train_run(args, [*flags, f'--seed={seed}'])
        runs.append({r['step']: r for r in rows if 'val_loss' in r})
        last, mfu = runs[-1][max(runs[-1])], [r['mfu'] for r in rows if 'mfu' in r]
        last.update(tokens_per_second=last['tokens'] / last['train_seconds'], **(dict(mfu=statistics.median(mfu)) if mfu else {}))
        hit = next((f'{r["step"]} steps, {r["train_seconds"]:.1f} s' for r in runs[-1].values() if r['val_loss'] <= target), 'never')
        print(f'seed {seed}: validation loss {last["val_loss"]:.4f} after {last["step"]} steps, {last["train_seconds"]:.1f} s'
              + f'; at or under {target}: {hit}' * (target == target), flush=True)
    column = lambda name, step=None: [r[max(r) if step is None else step].get(name, 0) for r in runs]
    mean, losses = lambda *a: statistics.mean(column(*a)), column('val_loss')
    sd, p = statistics.stdev(losses) if len(losses) > 1 else math.nan, p_under(losses, target)
    good = [s for s in sorted(set.intersection(*map(set, runs))) if p_under(column('val_loss', s), target) < 0.01]
    passed = f'{good[0]} steps, {mean("train_seconds", good[0]):.1f} s' if good else '-'
    system, command = environment(args.device), 'train.py ' + shlex.join(flags)
    cells = {'date': time.strftime('%F'), 'command': f'`{command}`', 'seeds': len(runs), 'val loss': f'{mean("val_loss"):.4f} ± {sd:.4f}',
             'range': f'{min(losses):.4f} to {max(losses):.4f}', 'target': target if target == target else '-', 'p': f'{p:.2g}' if p == p else '-', 'p < 0.01 from': passed,
             'seconds': f'{mean("train_seconds"):.1f}', 'tokens/s': number(mean('tokens_per_second')), 'mfu': f'{mean("mfu"):.1%}' if mean('mfu') else '-',
             'machine': f'{system["hardware"]}; Python {system["python"]}, torch {system["torch"]}', 'git': system['git']}
    print('\n'.join(f'{k:>14s}  {v}' for k, v in cells.items()))
    new = not os.path.exists(args.results)
    with open(args.results, 'a', encoding='utf-8') as f:
        if new: f.write(f'| {" | ".join(cells)} |\n|{" --- |" * len(cells)}\n')
        f.write(f'| {" | ".join(str(v).replace("|", "/") for v in cells.values())} |\n')
    write(args, dict(cells, what='speedrun', runs=dict(zip(seeds, runs))))

# ---------------------------------------------------------------------------------------------------- scaling

def fit_law(N, D, loss):
    """L = E + A / N^alpha + B / D^beta, by min sum Huber_0.001(logsumexp(a - alpha ln N, b - beta ln D, e) - ln L), from many
    starts: Hoffmann et al. 2022, eq. 10. -> E, A, alpha, B, beta, root mean square error of ln L"""
    import numpy as np
    from scipy.optimize import least_squares
    n, d, y = np.log(N), np.log(D), np.log(loss)
    error = lambda p: np.logaddexp.reduce([p[1] - p[2] * n, p[3] - p[4] * d, np.full_like(y, p[0])]) - y
    fits = [least_squares(error, start, loss='huber', f_scale=1e-3, bounds=([-10, -10, 0, -10, 0], [10, 40, 3, 40, 3]))
            for start in itertools.product((-1, 0.5), (2, 6), (0.2, 0.5), (2, 6), (0.2, 0.5))]
    e, a, alpha, b, beta = best = min(fits, key=lambda r: r.cost).x.tolist()
    return math.exp(e), math.exp(a), alpha, math.exp(b), beta, float((error(best) ** 2).mean() ** 0.5)

def draw_law(path, points, law, title):
    "points: (parameters, tokens, loss) -> an SVG: loss against tokens, a colour for each size, dots measured, lines fitted"
    (E, A, alpha, B, beta, _), (sizes, budgets, losses) = law, (sorted(set(x)) for x in zip(*points))
    W, H, left, right, top, bottom, low, high = 760, 420, 60, 130, 40, 45, budgets[0], budgets[-1]
    y0, y1 = losses[0] - 0.05 * (losses[-1] - losses[0]), losses[-1] + 0.05 * (losses[-1] - losses[0])
    X = lambda d: left + (W - left - right) * math.log(d / low) / math.log(high / low)
    Y = lambda y: H - bottom - (H - top - bottom) * (y - y0) / (y1 - y0)
    text = lambda x, y, s, more='': f'<text x="{x:.1f}" y="{y:.1f}" {more}>{s}</text>'
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {H}" font-family="sans-serif" font-size="12">'
           f'<rect width="{W}" height="{H}" fill="white"/>', text(left, 22, title, 'font-size="14"'),
           text(left, H - 8, 'validation loss against tokens seen (D)'), *(text(X(d), H - bottom + 18, f'{d / 1e6:.3g}M', 'text-anchor="middle"') for d in budgets)]
    for y in (y0 + (y1 - y0) * i / 5 for i in range(6)):
        out += [f'<path d="M{left} {Y(y):.1f}H{W - right}" stroke="#e4e4e4"/>', text(left - 8, Y(y) + 4, f'{y:.2f}', 'text-anchor="end"')]
    for i, N in enumerate(sizes):
        fill = f'fill="hsl({220 - 200 * i / max(1, len(sizes) - 1):.0f} 70% 45%)"'
        line = [(d, E + A / N ** alpha + B / d ** beta) for d in (low * (high / low) ** (j / 40) for j in range(41))]
        out += [f'<polyline {fill.replace("fill", "stroke")} fill="none" points="{" ".join(f"{X(d):.1f},{Y(y):.1f}" for d, y in line)}"/>',
                text(W - right + 8, Y(line[-1][1]) + 4, f'N = {N / 1e3:,.0f}k', fill),
                *(f'<circle cx="{X(d):.1f}" cy="{Y(y):.1f}" r="3" {fill}><title>{y:.4f}</title></circle>' for n, d, y in points if n == N)]
    with open(path + '.tmp', 'w') as f: f.write('\n'.join(out + ['</svg>\n']))
    os.replace(path + '.tmp', path)

def bench_scaling(args):
    import torch, gpt
    tiny, points, each = args.size == 'tiny', [], lambda kind, text: [kind(float(x)) for x in text.split(',')]
    grid = dict(T=[32, 64], B=[2, 4], L=[1, 2]) if tiny else dict(T=each(int, args.T), B=each(int, args.B), L=each(int, args.L))
    middle = {k: v[len(v) // 2] for k, v in grid.items()}
    for p in {str(p): p for k, v in grid.items() for x in v for p in [middle | {k: x}]}.values():       # one at a time moves
        now = copy.copy(args)
        now.what, now.size, now.rows, now.sides = 'gpt', 'tiny', p['B'], 'ours'
        now.set = f'n_layer={p["L"]},block_size={p["T"]},n_embd={32 if tiny else 128},vocab_size=512'
        bench_step(now, 'gpt')
    for C, D in itertools.product([32, 64] if tiny else each(int, args.widths), [8192, 16384, 32768] if tiny else each(int, args.budgets)):
        shape, steps = dict(n_layer=max(2, C // 32), n_head=max(1, C // 32), n_embd=C), round(D / 2048)    # 16 rows of 128 tokens
        flags = dict(shape, model='gpt', preset='speedrun-cpu', data=args.data, tokenizer='byte', device=args.device, max_iters=steps,
                     eval_interval=steps, log_interval=steps, eval_iters=8 if tiny else 128, warmup_iters=min(10, steps // 4))
        last = train_run(args, [f'--{k}={v}' for k, v in flags.items()])[-1]
        config = gpt.Config(**gpt.presets['speedrun-cpu'] | shape | dict(vocab_size=361))
        with torch.device('meta'): flops = gpt.Model(config).flops() / config.block_size
        points.append((round((flops - 12 * config.n_layer * config.block_size * C) / 6), last['tokens'], last['val_loss']))
        print(f'N {points[-1][0]:>9,}  D {last["tokens"]:>10,}  validation loss {last["val_loss"]:.4f}  {last["train_seconds"]:.1f} s', flush=True)
    E, A, alpha, B, beta, error = law = fit_law(*zip(*points))
    title = f'L = {E:.3f} + {A:.3g} / N^{alpha:.3f} + {B:.3g} / D^{beta:.3f}'
    print(f'{title}, off by {error:.2%}; for C flops the best N grows as C^{beta / (alpha + beta):.2f}. Plot: {args.plot}')
    draw_law(args.plot, points, law, title)
    write(args, dict(what='scaling', points=points, law=law))

if __name__ == '__main__':
    argv, rest = sys.argv[1:], []
    if '--' in argv: argv, rest = argv[:argv.index('--')], argv[argv.index('--') + 1:]
    steps = {f: functools.partial(bench_step, family=f) for f in ('gpt', 'bert', 't5', 'electra', 'lora')}
    benches = dict(bpe=bench_bpe, **steps, sample=bench_sample, data=bench_data, speedrun=bench_speedrun, scaling=bench_scaling)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument('what', choices=[*benches, 'all'])
    parser.add_argument('--compile', action='store_true', help='torch.compile on both sides')
    for name, default, text in (
            ('device', 'cpu', 'cpu, cuda, cuda:1'), ('dtype', '', 'bf16 or float32; default: bf16 on CUDA'), ('rows', 0, 'of a batch; 0: as the size says'),
            ('size', '', '; '.join(f'{k}: {" ".join(v)}' for k, v in SIZES.items())), ('set', '', 'more fields of the Config: n_layer=2,n_embd=64'),
            ('dropout', 0.0, 'of both sides'), ('repeat', 5, 'rounds'), ('inner', 0, 'steps timed together; 0: 1 on a CPU, 10 on CUDA'),
            ('tokens', 64, 'to decode'), ('sides', '', 'only these sides of a race: ours,transformers'), ('seeds', 5, 'speedrun: how many'),
            ('first_seed', 1337, 'speedrun'), ('launch', '', 'speedrun: what starts train.py, such as "torchrun --standalone --nproc_per_node=8"'),
            ('results', 'results.md', 'speedrun: table to append to'), ('T', '64,128,256,512', 'scaling: lengths'), ('B', '2,8,32', 'scaling: rows'),
            ('L', '2,4,8', 'scaling: layers'), ('data', 'stdlib', 'scaling: text, read as bytes'), ('widths', '32,64,96,128', 'scaling: n_embd of the fit'),
            ('budgets', '2.5e5,5e5,1e6,2e6', 'scaling: tokens seen, of the fit'), ('plot', 'scaling.svg', 'scaling: where to draw'),
            ('out', 'bench.jsonl', 'lines of JSON'), ('race', '', argparse.SUPPRESS), ('side', '', argparse.SUPPRESS)):
        parser.add_argument('--' + name, default=default, type=type(default), help=text)
    args = parser.parse_args(argv)
    args.rest, args.dtype = rest, {'bf16': 'bfloat16', '': 'bfloat16' if args.device.startswith('cuda') else 'float32'}.get(args.dtype, args.dtype)
    args.inner = args.inner or (10 if args.device.startswith('cuda') else 1)
    for name, bench in benches.items():
        if name == args.what or args.what == 'all' and name not in ('speedrun', 'scaling'):
            try: bench(args)
            except SystemExit as e:                      # one that cannot run leaves the others
                if args.what != 'all': raise
                print(e)
            gc.collect()
