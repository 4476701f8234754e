"""Speed, side by side: ours and its peers in one run, interleaved A B A B, as medians, spreads and ratios.

    python tests/bench.py bert              # also gpt, t5, electra, lora: a training step beside transformers'
    python tests/bench.py gpt --device=cuda --size=gpt2    # --size takes several: --size=tiny,wide
    python tests/bench.py sample            # decoding with and without a cache beside transformers' generate
    python tests/bench.py tune              # what each choice gives: compile modes, rows, kernels, dtypes, heads
    python tests/bench.py memory            # peaks, with and without checkpointed activations
    python tests/bench.py parity            # the logits beside transformers', on this device
    python tests/bench.py bpe               # training, encoding, preparing beside tokenizers and tiktoken
    python tests/bench.py data              # the data path alone: windows, masks, spans
    python tests/bench.py start             # train.py --help, and its first step
    python tests/bench.py all --device=cuda # all of these; a row that fails says so and leaves the others
    python tests/bench.py scaling           # against T, B, L, ranks; a Chinchilla fit: about 5 minutes (--quick: one)
    python tests/bench.py speedrun --seeds=5 -- python train.py --preset=speedrun-cpu --data=shakespeare \\
        --target_val_loss=1.88

The sides of a race are processes of their own, which take turns: each has its own peak of memory and its own time to
the first step (from the start of the process, imports included). "tuned" is transformers with what train.py does for
any model: fused AdamW, its settings of memory and products; "plain" is transformers with torch's default AdamW and
settings, as most people run it; "compiled" is tuned under torch.compile, and then ours is compiled too (--compile, the
default on CUDA). All have the same shapes, dtype, batch, rate and first weights; their first losses must agree, else
the row says DIFFERS. Tokens of a step are all that go in. A ratio over 1 means that ours is faster, or smaller; it is
the median of the rounds' ratios. TFLOP/s and MFU of all sides take the flops of ours (lib/flops.py says
what counts); MFU needs a peak that train.py knows, `of_matmul` is the share of what one large matrix product reaches here.
All rows also go to --out as lines of JSON. Run it on an idle machine: nothing else may use its cores.

speedrun trains the command once a seed, whole: --target_val_loss is kept from train.py, because a run that ends at its
first lucky evaluation is always under it. It reports the last validation loss, a one-sided t-test of its mean against
the target, and the first evaluation at which all seeds together pass (p < 0.01), and appends a row to --results.
"""
import argparse, contextlib, copy, dataclasses, functools, gc, hashlib, importlib, io, itertools, json, math, os
import platform, re, resource, shlex, shutil, statistics, subprocess, sys, tempfile, time, traceback
from importlib import metadata
from types import SimpleNamespace

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
        hardware = f'{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}, {hardware}'
    git = lambda *words: subprocess.run(['git', '-C', ROOT, *words], capture_output=True, text=True)
    at = git('describe', '--always').stdout.strip() or 'none'
    changed = at != 'none' and git('diff', '--quiet', 'HEAD', '--', '.', ':!results.md').returncode    # our own table
    return dict(hardware=hardware, python=platform.python_version(), git=at + '-dirty' * bool(changed),
                **{n: version(n) for n in ('torch', 'numpy', 'transformers', 'tokenizers', 'tiktoken', 'peft')})

def write(args, row):
    row |= dict(command=shlex.join(['python', 'tests/bench.py', *args.argv]), date=time.strftime('%F %T'),
                **environment(args.device))
    with open(args.out, 'a', encoding='utf-8') as f: f.write(json.dumps(row) + '\n')

def number(x): return f'{x:,.0f}' if abs(x) >= 1000 else f'{x:.3g}' if abs(x) < 100 else f'{x:.1f}'
def spread(values): return [round(f(values), 4) for f in (statistics.median, min, max)]

def report(args, what, unit, values, notes={}, less=False, failed={}):
    """values: {side: one number a round}, ours first; less: less is better; notes: {side: {name: value}}; failed:
    {side: error}. Prints a table, writes a row -> {side: its numbers}"""
    row, ours, lines = dict(what=what, unit=unit, sides={}), next(iter(values.values())), [f'{what} ({unit})']
    for side, rounds in values.items():
        median, low, high = spread(rounds)
        row['sides'][side] = now = dict(median=median, min=low, max=high, **notes.get(side, {}))
        line, ratio = f'  {side:26s} {number(median):>9s}  {f"({number(low)} to {number(high)})":20s}', ''
        if rounds is not ours:
            now['ratio'] = r = spread([b / a if less else a / b for a, b in zip(ours, rounds)])
            ratio = f'{r[0]:.2f} x ({r[1]:.2f} to {r[2]:.2f})'
        more = (f'  {k} {number(v) if isinstance(v, float) else v}' for k, v in notes.get(side, {}).items())
        lines.append(line + f' {ratio:23s}' * (len(values) > 1) + ''.join(more))
    for side, error in failed.items():
        row['sides'][side] = dict(error=error)
        lines.append(f'  {side:26s} failed: {error}')
    if not args.quiet: print('\n'.join(lines), flush=True)
    write(args, row)
    return row['sides']

# ---------------------------------------------------------------------------------------------------- the race

def peak(device):
    "largest memory so far in GB: allocated on the GPU, resident on a CPU"
    if device.startswith('cuda'):
        import torch
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    try: return int(re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())[1]) / 2 ** 20
    except (OSError, TypeError):                         # on Linux getrusage also counts the parent's, from before exec
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == 'darwin' else 20)

def turns(args, build):
    "a side: builds, makes its first step and says what came out; for every number sent to it then makes so many steps"
    import torch
    cuda = args.device.startswith('cuda')
    sync = torch.cuda.synchronize if cuda else lambda: None
    step = build()
    value = float(step()); sync()
    answer = dict(value=value, first=time.perf_counter() - BEGAN)
    with contextlib.suppress(AttributeError): answer['attention'] = step.attention()
    with contextlib.suppress(OSError):                   # memory that imports and compilation took does not count
        open('/proc/self/clear_refs', 'w').write('5')
    if cuda: torch.cuda.empty_cache(), torch.cuda.reset_peak_memory_stats(args.device)     # what is left is for others
    while True:
        steps = yield answer
        if cuda: step()                                  # untimed: takes back the memory that the last turn gave up
        sync(); began = time.perf_counter()
        for _ in range(steps): step()
        sync(); answer = dict(seconds=(time.perf_counter() - began) / steps, peak=peak(args.device))
        if cuda: torch.cuda.empty_cache()                # for the other sides

class Side:
    "turns() in a process of its own; with args.here, for tests, in this one"
    def __init__(self, args, race, name, build):
        self.process, self.run = None, turns(args, build) if args.here else None
        if args.here: return
        flags = [args.what, f'--race={race}', f'--side={name}', '--compile' if args.compile else '--no-compile']
        for k, v in vars(args).items():
            if k in ('what', 'race', 'side', 'compile', 'together') or v is False or isinstance(v, list): continue
            flags.append(f'--{k}' if v is True else f'--{k}={v}')
        self.errors, pipe = tempfile.TemporaryFile('w+'), subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), *flags], text=True, stdin=pipe, stdout=pipe, stderr=self.errors,
            env=dict(os.environ, TRANSFORMERS_VERBOSITY='error', HF_HUB_OFFLINE='1'))
    def answer(self, steps=None):
        "raises RuntimeError with what a process that died said last"
        if self.run: return self.run.send(steps)
        with contextlib.suppress(OSError):
            if steps: print(steps, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith('{'): return json.loads(line)
        self.errors.seek(0)
        said = [line.strip() for line in self.errors.read().splitlines() if line.strip()] or ['it said nothing']
        what = ': pip install -r requirements-dev.txt' * ('No module named' in said[-1])
        raise RuntimeError(f'{said[-1][:300]}{what} (exit status {self.process.wait()})')
    def close(self):
        if not self.process: return
        with contextlib.suppress(OSError): self.process.stdin.close()
        self.process.wait()

@functools.cache
def matmul_peak(device, dtype, small):
    "flops a second of a product of two large matrices, the best of five"
    import torch, train
    n = 64 if small else 8192 if device.startswith('cuda') else 2048
    a, best = torch.randn(n, n, device=train.pick_device(device), dtype=getattr(torch, dtype)), math.inf
    for _ in range(5):
        began = time.perf_counter()
        b = a @ a
        if b.is_cuda: torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    del a, b
    torch.cuda.empty_cache()                             # nothing without CUDA
    return 2 * n ** 3 / best

@functools.cache
def bandwidth(device, n=1 << 28):
    "bytes a second that a copy reads and writes, the best of five"
    import torch, train
    a, best = torch.ones(n, dtype=torch.uint8, device=train.pick_device(device)), math.inf
    b = torch.empty_like(a)
    for _ in range(5):
        began = time.perf_counter()
        b.copy_(a)
        if b.is_cuda: torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * n / best

def race(args, what, unit, work, sides, flops=0, exact=False, goal=0):
    """sides: {name: build}, ours first; build() -> step, a call that does `work` units (or work[name]) and returns a
    number by which we see that all sides do the same (within 1 %, or exactly). flops: of a unit. goal: units a second
    that we aim at on an H200. -> report's"""
    if args.side:                                        # we are a side, of this race or of another one
        if what != args.race: return
        run = turns(args, sides[args.side])
        print(json.dumps(next(run)), flush=True)
        for line in sys.stdin: print(json.dumps(run.send(int(line))), flush=True)
        return
    names = [s for s in sides if not args.sides or s in args.sides.split(',')]
    if not names: raise ValueError(f'--sides={args.sides}: expected some of --sides="{",".join(sides)}"')
    cuda, workers, first, rounds, failed = args.device.startswith('cuda'), {}, {}, {s: [] for s in names}, {}
    done = work if isinstance(work, dict) else dict.fromkeys(names, work)
    top = best = 0
    if flops and (cuda or args.dtype == 'float32'):
        best = matmul_peak(args.device, args.dtype, args.here)
    def ask(side, steps=None):
        if side in failed: return None
        try: return workers[side].answer(steps)
        except (RuntimeError, StopIteration, ValueError, OSError) as e:
            failed[side] = str(e) or type(e).__name__
            if args.here: traceback.print_exc()
    try:
        for s in names:                                  # one after another: nobody's first step is disturbed
            workers[s] = Side(args, what, s, sides[s])
            if not args.together: first[s] = ask(s)
        if args.together: first = {s: ask(s) for s in names}
        warm = [r['seconds'] for s in names if (r := ask(s, 1))]
        steps = args.inner or max(1, min(500, round(args.turn / max(warm[0], 1e-6)))) if warm else 1
        for _, s in itertools.product(range(args.repeat), names):                                    # A B A B
            if r := ask(s, steps): rounds[s].append(r)
    finally:
        for w in workers.values(): w.close()
    if names[0] in failed: raise RuntimeError(f'{what}: {names[0]}: {failed[names[0]]}')
    names, notes = [s for s in names if s not in failed], {}
    if cuda and args.dtype == 'bfloat16':
        from lib.device import PEAK
        top = next((v for k, v in PEAK.items() if k in environment(args.device)['hardware']), 0)
    for s in names:
        seconds, a, b = statistics.median(r['seconds'] for r in rounds[s]), first[names[0]]['value'], first[s]['value']
        notes[s] = dict(peak_gb=round(rounds[s][-1]['peak'], 3), first_step_s=round(first[s]['first'], 1))
        rate = done[s] / seconds
        if args.memory: notes[s]['tokens_per_second'] = round(rate, 1)
        if flops: notes[s]['tflops'] = flops * rate / 1e12
        if flops and top: notes[s]['mfu'] = round(flops * rate / top, 4)
        if best: notes[s]['of_matmul'] = round(flops * rate / best, 3)
        if goal and 'H200' in environment(args.device)['hardware']: notes[s]['of_goal'] = round(rate / goal, 3)
        if 'attention' in first[s]: notes[s]['attention'] = first[s]['attention']
        if not abs(a - b) <= (0 if exact else 0.01 * abs(a)): notes[s]['DIFFERS'] = f'{b:.4f}, not {a:.4f}'
    values = {s: [r['peak'] if args.memory else done[s] / r['seconds'] for r in rounds[s]] for s in names}
    return report(args, what, 'GB at most' if args.memory else unit, values, notes, args.memory, failed)

# ---------------------------------------------------------------------------------------------------- training steps

t5_v11 = dict(activation='gelu_tanh', gated=True, tied=False, scale_head=False)
electra_small = dict(n_head=4, n_embd=256, embed_dim=128, generator_size=0.25)
medium, xl = dict(n_layer=24, n_head=16, n_embd=1024), dict(n_layer=48, n_head=25, n_embd=1600)
SIZES = {  # {family: {size: (rows on a CPU, on CUDA, what differs from the Config)}}
    'gpt': {'tiny': (12, 512, dict(n_layer=4, n_head=4, n_embd=128, block_size=64, vocab_size=128)),  # nanoGPT's, CPU
            'wide': (8, 256, dict(n_layer=2, n_head=4, n_embd=128, block_size=128, vocab_size=50304)),
            'small': (8, 256, dict(n_layer=4, n_head=4, n_embd=256, block_size=256, vocab_size=8192)),
            'gpt2': (4, 32, dict(vocab_size=50304)), 'gpt2-medium': (2, 16, dict(medium, vocab_size=50304)),
            'gpt2-xl': (1, 4, dict(xl, vocab_size=50304))},
    'bert': {'tiny': (4, 4, dict(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=999)),
             'small': (16, 512, dict(n_layer=4, n_head=4, n_embd=256, block_size=128)),
             'base': (4, 256, dict(block_size=128)), 'base-512': (4, 64, dict()),
             'large': (4, 128, dict(medium, block_size=128))},
    't5': {'tiny': (2, 2, dict(t5_v11, n_layer=2, n_head=2, n_embd=32, head_dim=16, n_hidden=64, block_size=64)),
           'small': (8, 256, dict(t5_v11, n_layer=4, n_head=4, n_embd=256, n_hidden=512, block_size=256)),
           'base': (4, 64, dict(t5_v11, n_layer=12, n_head=12, n_embd=768)),
           'large': (4, 32, dict(t5_v11, **medium, n_hidden=2816))},
    'electra': {'tiny': (4, 4, dict(n_layer=2, n_head=2, n_embd=64, embed_dim=32, generator_size=0.25, block_size=32,
                                    vocab_size=999)),
                'small': (16, 512, dict(electra_small, block_size=128)), 'small-512': (16, 128, electra_small),
                'base': (4, 64, dict())},
}
SIZES['lora'] = SIZES['sample'] = SIZES['gpt']
GOALS = {  # tokens/s that we aim at on one H200 in bf16: about 0.6 of what its products reach
    ('gpt', 'gpt2'): 600e3, ('gpt', 'gpt2-medium'): 200e3, ('gpt', 'gpt2-xl'): 54e3, ('bert', 'base'): 800e3,
    ('t5', 'base'): 1050 * (512 + 114), ('electra', 'small'): 5e6,
    ('decode', 'gpt2'): 5000, ('decode', 'gpt2-xl'): 1000}
USUAL = {  # the sizes of a race without --size, the first one alone with --quick
    'cpu': dict(gpt='tiny,wide,small', bert='small,base', t5='small', electra='small', lora='small', sample='gpt2'),
    'cuda': dict(gpt='gpt2,gpt2-medium', bert='base,base-512', t5='base', electra='small', lora='gpt2', sample='gpt2')}

def pick(args, family):
    "-> model file, Config, rows, name of the size"
    from lib.flags import value_of
    from lib.words import nearest
    if args.size not in SIZES[family]:
        raise ValueError(f'--size={args.size}: {family} has {", ".join(SIZES[family])}')
    file = importlib.import_module({'lora': 'gpt', 'sample': 'gpt'}.get(family, family))
    kinds, cuda = {f.name: type(f.default) for f in dataclasses.fields(file.Config)}, args.device.startswith('cuda')
    *rows, fields = SIZES[family][args.size]
    fields = fields | {n: args.dropout for n in kinds if n.endswith('dropout')}
    if cuda: fields['vocab_multiple'] = 128              # rows of padding, which the loss does not see
    for pair in filter(None, args.set.split(',')):
        name, eq, value = pair.partition('=')
        if not eq or name not in kinds:
            raise ValueError(f'--set={pair}: expected FIELD=VALUE of {file.__name__}.py{nearest(name, kinds)}')
        fields[name] = value_of(name, kinds[name], value)
    return file, file.Config(**fields), args.rows or rows[cuda], args.size + f' {args.set}' * bool(args.set)

def random_rows(vocab_size, rows, step=0, corpus={}):
    "the protocol's draw and rng on random ids, none of them special"
    import numpy as np
    from data.rows import Corpus
    if vocab_size not in corpus:
        low, high = min(999, vocab_size // 4), vocab_size - min(199, vocab_size // 4)
        ids = np.random.default_rng(1).integers(low, high, 10 ** 7, dtype=np.uint16)
        corpus[vocab_size] = Corpus.__new__(Corpus)
        corpus[vocab_size].__dict__.update(split='train', seed=1, shuffle=True, kind='text', shards=[ids],
                                           tokens_per_row=0, length=0, overlap=0, items=[], examples=[])
    return corpus[vocab_size].rows(np.arange(rows) + rows * step)

def random_batch(file, config, rows):
    draw, rng = random_rows(config.vocab_size, rows)
    return file.batch(draw, config, rng)

def row_flops(file, config):
    "training flops of a row, on the meta device"
    import torch
    from lib.flops import flops
    with torch.device('meta'): model = file.Model(config)
    return flops(model, random_batch(file, config, 1))

def our_model(args, file, config, dtype=None):
    import torch, train
    device = train.pick_device(args.device)              # TF32 on CUDA; how memory is kept on a CPU
    train.pick_attention(device, config)
    torch.manual_seed(1)
    return file.Model(config).to(device, dtype), device

def twin(file, config, to_hf='to_hf'):
    "transformers' model of the same shape and weights. What our own takes is off the clock"
    global BEGAN
    import torch, transformers
    from data import files
    from lib import models
    began = time.perf_counter()
    transformers.utils.logging.disable_progress_bar(), transformers.logging.set_verbosity_error()
    torch.manual_seed(1)
    model = file.Model(config)
    with tempfile.TemporaryDirectory() as tmp:
        hf, weights = getattr(models.layout_of(file), to_hf)(model)
        files.write_safetensors(tmp + '/model.safetensors', weights)
        with open(tmp + '/config.json', 'w') as f: json.dump(hf, f)
        BEGAN += time.perf_counter() - began
        return getattr(transformers, hf['architectures'][0]).from_pretrained(tmp)

def stepper(args, device, model, optimizer, inputs, compiled, loss_of):
    """-> step(): forward, backward, update; returns the loss. step.attention(): the kernel in use. compiled: False, True
    or 'reduce-overhead', which is CUDA graphs: as train.py then, gradients keep their memory"""
    import torch
    from lib.device import attention_backend
    dtype, mode = getattr(torch, args.dtype), compiled if isinstance(compiled, str) else None
    net = torch.compile(model.train(), mode=mode) if compiled else model.train()
    for p in model.parameters() if mode else (): p.grad = torch.zeros_like(p) if p.requires_grad else None
    inputs = {k: torch.from_numpy(a).to(device) for k, a in inputs.items()}
    cast = lambda: torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    call = lambda f: f(*inputs.values()) if '0' in inputs else f(**inputs)
    def step():
        if mode: torch.compiler.cudagraph_mark_step_begin()
        with cast(): loss = loss_of(call(net))
        loss.backward(); optimizer.step(); optimizer.zero_grad(set_to_none=not mode)
        return loss.detach()
    def attention():
        with cast(): return attention_backend(lambda: call(model))
    if device.type == 'cuda': step.attention = attention
    return step

def spread_labels(ids, places, targets):
    "targets at K places of each row -> (B, T) as transformers has them, -100 elsewhere"
    import numpy as np
    labels = np.full_like(ids, -100)
    np.put_along_axis(labels, places, np.where(targets < 0, -100, targets), 1)
    return labels

def our_step(args, family, file, config, rows, compiled=None, optimizer='adamw', kernel='', everywhere=False, **fields):
    """-> a stepper with our model. compiled: as stepper has it, None as args say; kernel: the only one that attention
    may take; everywhere: logits at all places, not at the masked ones alone; fields: what differs from the Config"""
    import lora, torch, train
    config, arrays = dataclasses.replace(config, **fields), random_batch(file, config, rows)
    model, device = our_model(args, file, config)
    if family == 'lora': lora.wrap(model, rank=8, alpha=16, match='qkv')
    for k in KERNELS if kernel else (): getattr(torch.backends.cuda, f'enable_{k}_sdp')(k == kernel)
    net = model
    if everywhere:
        arrays = [arrays[0], spread_labels(*arrays)]
        class Everywhere(torch.nn.Module):
            def __init__(self): super().__init__(); self.model = model
            def forward(self, ids, targets):
                logits = self.model.logits(ids).flatten(0, 1).float()
                return torch.nn.functional.cross_entropy(logits, targets.flatten()),           # -100: no loss
        net = Everywhere()
    optimizers = train.make_optimizers(model, train.Config(learning_rate=1e-4, optimizer=optimizer))
    both = SimpleNamespace(step=lambda: [o.step() for o in optimizers],
                           zero_grad=lambda **kw: [o.zero_grad(**kw) for o in optimizers])
    inputs = {str(i): a for i, a in enumerate(arrays)}
    return stepper(args, device, net, both, inputs, args.compile if compiled is None else compiled, lambda out: out[0])

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
                noise = torch.empty_like(out.logits, dtype=torch.float).exponential_().log()
                new = torch.where(labels >= 0, (out.logits.float() - noise).argmax(-1), whole)
            out.loss = out.loss + 50 * self.discriminator(input_ids=new, labels=(new != whole).long()).loss
            return out
    return Pair()

def bench_step(args, family):
    "a training step of a model file beside transformers'"
    import numpy as np, torch
    file, config, rows, size = pick(args, family)
    arrays = random_batch(file, config, rows)
    ids, targets = arrays[0], arrays[-1]
    theirs, peer, shape = dict(input_ids=ids, labels=ids), lambda: twin(file, config), f'{rows} x {ids.shape[1]}'
    if family in ('bert', 'electra'):                    # arrays[1]: places (B, K), or with random numbers (B, 2, K)
        theirs['labels'] = spread_labels(ids, arrays[1] if family == 'bert' else arrays[1][:, 0], targets)
    if family == 'electra':                              # the text as it was before it was masked
        theirs['whole'] = np.where(theirs['labels'] < 0, ids, theirs['labels'])
        peer = lambda: electra_pair(file, config)
    if family == 't5':
        theirs['labels'] = np.where(targets < 0, -100, targets)
        shape = f'{rows} x ({ids.shape[1]} + {targets.shape[1]})'
    if family == 'lora':
        def peer():
            import peft
            return peft.get_peft_model(twin(file, config), peft.LoraConfig(
                r=8, lora_alpha=16, target_modules=['c_attn'], lora_dropout=0.0, fan_in_fan_out=True))
    ours = functools.partial(our_step, args, family, file, config, rows)
    def other(compiled=False, tuned=True, saved=False):
        import train
        device = train.pick_device(args.device) if tuned else torch.device(args.device)
        model = peer().to(device)
        if saved:
            for m in (model, *model.children()):
                for name in ('activation_checkpointing_enable', 'gradient_checkpointing_enable'):      # newer, older
                    if hasattr(m, name): getattr(m, name)(); break
        same = dict(betas=(0.9, 0.95), weight_decay=0.1, fused=True) if tuned else {}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, **same)
        return stepper(args, device, model, optimizer, theirs, compiled, lambda out: out.loss)
    name, side = 'peft' if family == 'lora' else 'transformers', functools.partial
    sides = {'ours': ours, f'{name} tuned': other, f'{name} plain': side(other, tuned=False)}
    if args.memory: sides = {'ours': ours, 'ours checkpointed': side(ours, checkpoint_activations=True),
                             f'{name} tuned': other, f'{name} checkpointed': side(other, saved=True),
                             f'{name} plain': side(other, tuned=False)}
    elif args.compile:
        sides[f'{name} compiled'] = side(other, compiled=True)
        if args.device.startswith('cuda'): sides['ours with graphs'] = side(ours, compiled='reduce-overhead')
    tokens, how = ids.size + targets.size * (family == 't5'), ' memory' if args.memory else ' step'
    flops = row_flops(file, config) * rows / tokens if family != 'lora' else 0    # an adapter's are fewer
    out = race(args, f'{family} {size}{how}, {shape}, {args.dtype}', 'tokens/s', tokens, sides, flops,
               goal=GOALS.get((family, args.size), 0))
    for B in sorted({1, rows}) if family == 't5' and not args.memory else ():
        bench_decode(args, 't5', file, config, size, ids[:B])
    return out

KERNELS = 'cudnn', 'flash', 'mem_efficient', 'math'

def variants(args, family, config, rows):
    "what may be chosen: {name: (what our_step is told, rows)}"
    cuda, fields = args.device.startswith('cuda'), {f.name for f in dataclasses.fields(config)}
    sides = {'ours': {}, 'eager' if args.compile else 'compiled': dict(compiled=not args.compile)}
    if args.compile and cuda:
        sides |= {'CUDA graphs': dict(compiled='reduce-overhead'),
                  'max-autotune': dict(compiled='max-autotune-no-cudagraphs')}
    if args.dtype != 'float32':
        sides['residual in bf16' if not config.residual_autocast else 'residual in fp32'] = dict(
            residual_autocast=not config.residual_autocast)
    kernels = KERNELS[2 * (family == 't5'):] if cuda else ('flash', 'math')    # of T5's bias some have no gradient
    sides |= {f'attention: {k}': dict(kernel=k) for k in kernels}
    if 'loss_chunk' in fields: sides['loss in chunks'] = dict(loss_chunk=4096 if cuda else 256)
    if family == 'bert': sides['logits everywhere'] = dict(everywhere=True)
    sides |= {'vocabulary not padded' if config.vocab_multiple > 1 else 'vocabulary padded':
              dict(vocab_multiple=1 if config.vocab_multiple > 1 else 128),
              'activations computed twice': dict(checkpoint_activations=True), 'Muon': dict(optimizer='muon')}
    sides = {name: (told, rows) for name, told in sides.items()}
    return sides | {'half the rows': ({}, max(1, rows // 2)), 'twice the rows': ({}, 2 * rows)}

def bench_tune(args):
    """The record of what can be chosen: our step beside our step with one thing changed; under 1 x, the change pays.
    First what to expect: a step whose products all run at the speed of a large one, then AdamW's traffic (weight,
    gradient and two moments read, three of them written: 28 bytes a weight at the speed of a copy), nothing else."""
    import torch
    for family in (f for f in args.families.split(',') if f != 'lora'):
        now = copy.copy(args)
        now.families, now.size = family, args.size or usual(args, family)[0]
        file, config, rows, size = pick(now, family)
        ids, *_, targets = random_batch(file, config, 1)
        T, sides = ids.size + targets.size * (family == 't5'), variants(now, family, config, rows)
        with torch.device('meta'): model = file.Model(config)
        N, flops, tokens = sum(p.numel() for p in model.parameters()), row_flops(file, config) / T, rows * T
        if not args.side:
            best = matmul_peak(args.device, args.dtype, args.here)
            products, update = tokens * flops / best, 28 * N / bandwidth(args.device, 1 << (20 if args.here else 28))
            print(f'{family} {size}: expected at most {tokens / (products + update):,.0f} tokens/s: {tokens:,} tokens '
                  f'in {1e3 * products:,.1f} ms of products ({best / 1e12:.3g} TFLOP/s), {1e3 * update:,.1f} of AdamW')
        steps = {name: functools.partial(our_step, now, family, file, config, n, **told)
                 for name, (told, n) in sides.items()}
        attempt(now, lambda now: race(now, f'tune {family} {size}, {rows} rows, {args.dtype}', 'tokens/s',
                                      {name: n * T for name, (_, n) in sides.items()}, steps, flops))

def bench_memory(args):
    for family in args.families.split(','):
        now = copy.copy(args)
        now.what, now.memory, now.repeat, now.inner = family, True, 1, args.inner or 2
        now.size = args.size or usual(args, family)[0]
        attempt(now, lambda now: bench_step(now, family))

def bench_parity(args):
    "equal weights, float32 without TF32: how far the logits are from transformers'; and, with --compile, our own loss"
    import torch
    for family in ('gpt', 'bert', 't5', 'electra'):
        now = copy.copy(args)
        now.size, now.dtype, now.set, now.rows = 'tiny', 'float32', 'vocab_multiple=100', 3
        file, config, rows, _ = pick(now, family)
        model, device = our_model(now, file, config)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        arrays = [torch.from_numpy(a).to(device) for a in random_batch(file, config, rows)]
        inputs = arrays[:1] if family != 't5' else [arrays[0], arrays[0].flip(1)]      # any ids will do for the decoder
        names = 'input_ids', 'decoder_input_ids'
        with torch.no_grad():
            mine = model.eval().logits(*inputs)
            theirs = twin(file, config).to(device).eval()(**dict(zip(names, inputs))).logits
            off = (mine - theirs.view_as(mine)).abs().max().item()
        sides = {'logits, largest difference': [off]}
        model.train()
        if args.compile and family != 'electra':         # which draws samples, others when compiled
            a, b = (float(net(*arrays)[0]) for net in (model, torch.compile(model)))
            sides['loss, compiled and not'] = [abs(a - b)]
        row = dict(what=f'parity {family}', unit='', sides={k: dict(median=v[0]) for k, v in sides.items()})
        good = all(v[0] < 1e-4 for v in sides.values())
        print(f'parity {family:8s} {args.device}: ' + ', '.join(f'{k} {v[0]:.1e}' for k, v in sides.items())
              + f'  {"as it should be" if good else "DIFFERS"}', flush=True)
        write(args, row | dict(good=good))

# ---------------------------------------------------------------------------------------------------- decoding

def bench_decode(args, family, file, config, size, ids, cached=True):
    "greedy decoding of args.tokens tokens that follow ids (B, T); the same ones must come out in float32"
    args, n = copy.copy(args), args.tokens
    args.inner = 1
    def ours():
        import torch, sample
        model, device = our_model(args, file, config, getattr(torch, args.dtype))
        prompt, T = torch.from_numpy(ids).to(device), ids.shape[1]
        how = dict(temperature=0, cache=cached, compile=args.compile and cached)
        if family == 'gpt': return lambda: sample.generate(model.eval(), prompt, n, **how)[:, T:].sum()
        model.eval().config.eot_id = -1                  # no text ends
        step = torch.compile(model.step, dynamic=False) if args.compile else None
        def run():
            with contextlib.nullcontext() if args.compile else sample.packed(model):
                return file.generate(model, prompt, max_new_tokens=n, step=step).sum()
        return torch.no_grad()(run)
    def other(**more):
        import torch, train
        device = train.pick_device(args.device)
        torch.backends.mkldnn.matmul.fp32_precision = 'ieee'             # else single rows take three times as long
        model = twin(file, config).to(device, getattr(torch, args.dtype)).eval()
        model.generation_config.eos_token_id = model.generation_config.bos_token_id = None
        prompt = torch.from_numpy(ids).to(device)
        more = dict(more, attention_mask=torch.ones_like(prompt), max_new_tokens=n, do_sample=False, use_cache=cached)
        return lambda: model.generate(prompt, **more)[:, -n:].sum()
    sides = {'ours': ours, 'transformers': other}
    if args.compile and cached: sides['transformers compiled'] = functools.partial(other, cache_implementation='static')
    what = f'decode {family} {size}, batch {len(ids)}, {n} tokens, {args.dtype}' + ', without a cache' * (not cached)
    race(args, what, 'tokens/s', len(ids) * n, sides, exact=args.dtype == 'float32',
         goal=GOALS.get(('decode', args.size), 0) * (family == 'gpt' and cached and len(ids) == 1))

def bench_sample(args):
    import numpy as np
    file, config, _, size = pick(args, 'sample')
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (args.rows or 1, 16))
    for cached in (True, False): bench_decode(args, 'gpt', file, config, size, ids, cached)

# -------------------------------------------------------------------------------------------------- tokenizers, data

def stdlib_texts():
    import sysconfig
    folder, paths, texts = sysconfig.get_path('stdlib'), [], []
    skip = ('site-packages', '__pycache__', 'test', 'tests', 'idle_test', 'lib2to3', 'dist-packages')
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(d for d in folders if d not in skip)
        paths += [os.path.join(base, f) for f in sorted(files) if f.endswith('.py')]
    for p in paths:
        with contextlib.suppress(UnicodeDecodeError): texts.append(open(p, encoding='utf-8').read())
    return texts

TRAIN = {'ours': 'import bpe; tok = bpe.train(texts, {n}, special=["<|endoftext|>"])',
         'tokenizers': 'import tokenizers as k; tok = k.Tokenizer(k.models.BPE()); level = k.pre_tokenizers.ByteLevel; '
                       'tok.pre_tokenizer = level(add_prefix_space=False); tok.train_from_iterator(texts, '
                       'k.trainers.BpeTrainer(vocab_size={n}, special_tokens=["<|endoftext|>"], '
                       'initial_alphabet=level.alphabet(), show_progress=False))'}
CHILD = '''import json, resource, sys, time; sys.path.insert(0, 'tests'); import bench
texts = json.load(open(sys.argv[1]))
import regex, numpy, tiktoken
t = time.perf_counter(); {body}
t = time.perf_counter() - t
print(t, max(bench.peak('cpu') * 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024))'''

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
        with open(tmp + '/texts.json', 'w') as f: json.dump(texts, f)
        for n in sizes:
            runs = {k: [] for k in TRAIN}
            for _, (k, code) in itertools.product(range(args.repeat), TRAIN.items()):    # a process each: its own peak
                command = [sys.executable, '-c', CHILD.format(body=code.format(n=n)), tmp + '/texts.json']
                out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
                runs[k].append([*map(float, out.split()[-2:])])
            notes = {k: dict(seconds=statistics.median(s for s, _ in v), peak_mb=round(max(m for _, m in v)))
                     for k, v in runs.items()}
            rates = {k: [size / s for s, _ in v] for k, v in runs.items()}
            report(args, f'train a vocabulary of {n}', 'MB/s', rates, notes)
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
    import bert, bpe, electra, gpt, t5
    tok, texts, n = bpe.train(stdlib_texts()[:40], 2048), 32, 2 if args.size == 'tiny' else 20
    ids = dict(vocab_size=2048, **{f'{r}_id': getattr(tok, r) for r in ('eot', 'pad', 'cls', 'sep', 'mask')})
    paths = [('gpt windows', gpt, gpt.Config())]
    paths += [(f't5 {o}', t5, t5.Config(objective=o)) for o in t5.objectives]
    paths += [(f'bert masks by {m}', bert, bert.Config(**ids, block_size=T, masking=m))
              for m in ('token', 'word', 'span') for T in (128, 512)]
    paths += [('electra masks', electra, electra.Config(**ids, block_size=T)) for T in (128, 512)]
    for what, file, config in paths:
        def once(step):
            draw, rng = random_rows(config.vocab_size, texts, step)
            draw.tokenizer = tok
            file.batch(draw, config, rng)
        tokens = config.lengths[0] if file is t5 else config.block_size
        seconds = [clocked(once, step) for step in range(n * args.repeat + 1)]
        rates = [texts * tokens / s for s in seconds[1:]]
        report(args, f'{what}, {texts} x {tokens}', 'tokens of text/s, one process', {'ours': rates})

def bench_start(args):
    "how long until train.py has said its flags, and until a run of one step (with its two evaluations) has ended"
    with tempfile.TemporaryDirectory() as tmp:
        where = [f'--device={args.device}', f'--data={args.data}', f'--out_dir={tmp}/run']
        one = [*where, '--max_iters=1', '--eval_iters=1']
        for what, flags in (('train.py --help', ['--help']), ('train.py, one step', one)):
            command = [sys.executable, os.path.join(ROOT, 'train.py'), *flags]
            run = functools.partial(subprocess.run, command, capture_output=True, check=True)
            run()                                        # the data is prepared then, the byte code written
            report(args, what, 's', {'ours': [clocked(run) for _ in range(args.repeat)]}, less=True)

# ---------------------------------------------------------------------------------------------------- runs of train.py

def train_run(launch, flags):
    "-> the rows of its metrics.jsonl. Raises RuntimeError with its last line if it fails"
    with tempfile.TemporaryDirectory() as tmp:
        command = [*launch, os.path.join(ROOT, 'train.py'), *flags, f'--out_dir={tmp}/run']
        out = None if sys.stdout.isatty() else subprocess.DEVNULL
        r = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)
        if r.returncode:
            said = [line for line in r.stderr.splitlines() if 'error' in line.lower()] or ['it said nothing']
            raise RuntimeError(f'{shlex.join(command)} ended with {r.returncode}: {said[-1]}')
        with open(f'{tmp}/run/metrics.jsonl') as f: return [json.loads(line) for line in f]

def split_command(words):
    "[python or torchrun ..., train.py,] flags -> what starts train.py, its flags as {name: text or None}"
    from lib.flags import split_flags
    at = next((i for i, word in enumerate(words) if os.path.basename(word) == 'train.py'), -1)
    if not words or at < 0 and not words[0].startswith('--'):
        raise ValueError(f'the command {shlex.join(words)!r}: expected bench.py speedrun -- python train.py FLAGS')
    launch = [sys.executable if w in ('python', 'python3') else w for w in words[:max(at, 0)]] or [sys.executable]
    if not shutil.which(launch[0]): raise ValueError(f'the command {shlex.join(words)!r}: there is no {launch[0]}')
    return launch, split_flags(words[at + 1:])

def p_under(losses, target):
    "one-sided t-test: how likely is a mean this low, if the true one is the target?"
    from scipy import stats
    return float(stats.ttest_1samp(losses, target, alternative='less').pvalue) if len(losses) > 1 else math.nan

def bench_speedrun(args):
    from lib.flags import value_of
    seeds, runs, (launch, given) = range(args.first_seed, args.first_seed + args.seeds), [], split_command(args.rest)
    for name in {'seed', 'out_dir'} & {*given}:
        raise ValueError(f'--{name}: speedrun sets it; --seeds=N and --first_seed=N stand before the --')
    target = value_of('target_val_loss', float, given.pop('target_val_loss', 'nan'))
    flags, model = ([f'--{k}' if v is None else f'--{k}={v}' for k, v in given.items()], given.get('model') or 'gpt')
    if given.get('eval_iters') not in (None, '0'):
        print(f'--eval_iters={given["eval_iters"]}: the validation set is no longer the one that the preset has')
    if claim := target == target and args.seeds > 1:     # all that a row needs, before a machine is busy for hours
        try: p_under([1.0, 2.0], 1.0)
        except ImportError: raise ValueError('the t-test needs scipy: pip install -r requirements-dev.txt') from None
        os.makedirs(os.path.dirname(os.path.abspath(args.results)), exist_ok=True)
        open(args.results, 'a').close()
    for seed in seeds:
        if not sys.stdout.isatty(): print(f'seed {seed}: training', flush=True)
        rows = train_run(launch, [*flags, f'--seed={seed}'])
        runs.append({r['step']: r for r in rows if 'val_loss' in r})
        last, mfu = runs[-1][max(runs[-1])], [r['mfu'] for r in rows if 'mfu' in r]
        last['tokens_per_second'] = last['tokens'] / max(last['train_seconds'], 1e-9)
        if mfu: last['mfu'] = statistics.median(mfu)
        when = lambda r: f'{r["step"]} steps, {r["train_seconds"]:.1f} s'
        hit = next((when(r) for r in runs[-1].values() if r['val_loss'] <= target), 'never')
        print(f'seed {seed}: validation loss {last["val_loss"]:.4f} after {when(last)}'
              + f'; at or under {target}: {hit}' * (target == target), flush=True)
        write(args, dict(what='speedrun, one seed', seed=seed, evaluations=[*runs[-1].values()]))
    column = lambda name, step=None: [r[max(r) if step is None else step].get(name, 0) for r in runs]
    mean, losses = lambda *a: statistics.mean(column(*a)), column('val_loss')
    sd, p = statistics.stdev(losses) if len(losses) > 1 else math.nan, p_under(losses, target) if claim else math.nan
    good = [s for s in sorted(set.intersection(*map(set, runs)))
            if claim and p_under(column('val_loss', s), target) < 0.01]
    passed = f'{good[0]} steps, {mean("train_seconds", good[0]):.1f} s' if good else '-'
    env = environment(args.device)
    cells = {'date': time.strftime('%F'), 'command': f'`{shlex.join(args.rest)}`', 'seeds': len(runs),
             'val loss': f'{mean("val_loss"):.4f} ± {sd:.4f}', 'range': f'{min(losses):.4f} to {max(losses):.4f}',
             'target': target if target == target else '-', 'p': f'{p:.2g}' if p == p else '-', 'p < 0.01 from': passed,
             'seconds': f'{mean("train_seconds"):.1f}', 'tokens/s': number(mean('tokens_per_second')),
             'mfu': f'{mean("mfu"):.1%}' if mean('mfu') else '-', 'machine': env['hardware'],
             'versions': f'Python {env["python"]}, torch {env["torch"]}', 'git': env['git']}
    for folder in (ROOT, os.getcwd()):                   # of a fork git knows nothing
        with contextlib.suppress(OSError), open(os.path.join(folder, model + '.py'), 'rb') as f:
            cells['git'] = f'{env["git"]}, {model}.py {hashlib.sha256(f.read()).hexdigest()[:8]}'
    print('\n'.join(f'{k:>14s}  {v}' for k, v in cells.items()))
    write(args, dict(cells, what='speedrun', losses=losses, p=p if claim else None))
    if not claim: return print('no row: a claim needs --target_val_loss=X behind the -- and --seeds=2 or more')
    with open(args.results, 'a', encoding='utf-8') as f:
        if not f.tell(): f.write(f'| {" | ".join(cells)} |\n|{" --- |" * len(cells)}\n')
        f.write(f'| {" | ".join(str(v).replace("|", "/") for v in cells.values())} |\n')
    print(f'a row more in {args.results}')

# ---------------------------------------------------------------------------------------------------- scaling

def fit_law(N, D, loss, delta=1e-3):
    """L = E + A / N^alpha + B / D^beta, by min over (a, b, e, alpha, beta) of sum Huber_delta(logsumexp(a - alpha ln N,
    b - beta ln D, e) - ln L), L-BFGS from the best of a grid of starts, in float64: Hoffmann et al. 2022 (2203.15556),
    section 3.3. -> (E, A, alpha, B, beta), the errors of ln L at each point. ln N and ln D are centred meanwhile, so
    that a and alpha do not pull at each other; each start first settles under a wide Huber loss, which is smooth."""
    import torch
    n, d, y = (torch.tensor([math.log(x) for x in xs], dtype=torch.float64) for xs in (N, D, loss))
    n0, d0, low = n.mean(), d.mean(), y.min()
    def error(p):                                        # (..., 5) -> (..., points)
        e, a, alpha, b, beta = p.unsqueeze(-1).unbind(-2)
        terms = torch.broadcast_tensors(e, a - alpha * (n - n0), b - beta * (d - d0))
        return torch.logsumexp(torch.stack(terms), 0) - y
    def cost(p, delta):
        r, rates = error(p).abs() / delta, p[..., 2::2]
        walls = (-rates).relu() + (rates - 3).relu()     # where points do not settle alpha or beta: no further
        return torch.where(r < 1, r * r / 2, r - 0.5).sum(-1) + (100 * walls / delta).square().sum(-1)
    near = [low - 0.05, low - 0.3, low - 1, low - 3]     # the three terms add up to about exp(low)
    rates = [0.1, 0.3, 0.6, 1.2]
    grid = torch.tensor([*itertools.product(near, near, rates, near, rates)], dtype=torch.float64)
    def settle(start, width, evaluations):
        p = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([p], max_iter=evaluations, max_eval=evaluations, history_size=20,
                                      tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn='strong_wolfe')
        def closure():
            optimizer.zero_grad()
            c = cost(p, width)
            c.backward()
            return c
        optimizer.step(closure)
        return p.detach()
    best = lambda ps, width, n: sorted(ps, key=lambda p: cost(p, width).nan_to_num(math.inf).item())[:n]
    near_by = [settle(p, 0.03, 200) for p in grid[cost(grid, 0.03).argsort()[:208:16]]]
    best = best([settle(p, delta, 800) for p in best(near_by, delta, 4)], delta, 1)[0]
    e, a, alpha, b, beta = best.tolist()
    A, B = math.exp(a + alpha * n0.item()), math.exp(b + beta * d0.item())
    return (math.exp(e), A, alpha, B, beta), error(best).tolist()

def law_at(law, N, D):
    E, A, alpha, B, beta = law
    return E + A / N ** alpha + B / D ** beta

def draw_law(path, points, law, title):
    "points: (parameters, tokens, loss) -> an SVG: loss against tokens, a colour a size, dots measured, lines fitted"
    sizes, budgets, losses = (sorted(set(x)) for x in zip(*points))
    W, H, left, right, top, bottom, low, high = 760, 420, 60, 130, 40, 45, budgets[0], budgets[-1]
    margin = 0.05 * (losses[-1] - losses[0]) or 0.1
    y0, y1 = losses[0] - margin, losses[-1] + margin
    X = lambda d: left + (W - left - right) * math.log(d / low) / (math.log(high / low) or 1)
    Y = lambda y: H - bottom - (H - top - bottom) * (min(max(y, y0), y1) - y0) / (y1 - y0)
    text = lambda x, y, s, more='': f'<text x="{x:.1f}" y="{y:.1f}" {more}>{s}</text>'
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {H}" font-family="sans-serif" font-size="12">'
           f'<rect width="{W}" height="{H}" fill="white"/>', text(left, 22, title, 'font-size="14"'),
           text(left, H - 8, 'validation loss against tokens seen (D)'),
           *(text(X(d), H - bottom + 18, f'{d / 1e6:.3g}M', 'text-anchor="middle"') for d in budgets)]
    for y in (y0 + (y1 - y0) * i / 5 for i in range(6)):
        out += [f'<path d="M{left} {Y(y):.1f}H{W - right}" stroke="#e4e4e4"/>',
                text(left - 8, Y(y) + 4, f'{y:.2f}', 'text-anchor="end"')]
    for i, N in enumerate(sizes):
        colour = f'hsl({220 - 200 * i / max(1, len(sizes) - 1):.0f} 70% 45%)'
        line = [(d, law_at(law, N, d)) for d in (low * (high / low) ** (j / 40) for j in range(41))]
        places = ' '.join(f'{X(d):.1f},{Y(y):.1f}' for d, y in line)
        out += [f'<polyline stroke="{colour}" fill="none" points="{places}"/>',
                text(W - right + 8, Y(line[-1][1]) + 4, f'N = {N / 1e3:,.0f}k', f'fill="{colour}"'),
                *(f'<circle cx="{X(d):.1f}" cy="{Y(y):.1f}" r="3" fill="{colour}"><title>{y:.4f}</title></circle>'
                  for n, d, y in points if n == N)]
    with open(path + '.tmp', 'w') as f: f.write('\n'.join(out + ['</svg>\n']))
    os.replace(path + '.tmp', path)

def scaling_grid(args, kind, whole):
    "speed and memory of a step against T (with as many tokens), with a window, against B and L; one at a time moves"
    Ts, L, window, shape = [128, 512, 2048], 4, 128, dict(n_head=4, n_embd=128, vocab_size=512)
    if kind == 'cuda':
        Ts, L, window, shape = [1024, 4096, 16384], 12, 1024, dict(n_head=12, n_embd=768, vocab_size=50304)
    if not whole: Ts, L = Ts[:2], L // 2
    if args.here: Ts, L, window, shape = [16, 32], 1, 16, dict(n_head=2, n_embd=16, vocab_size=64)
    T, tokens = Ts[0], 32 * Ts[0]
    points = [dict(T=t, B=max(1, tokens // t), L=L, window=w) for t in Ts for w in (0, window) if w < t]
    points += [dict(T=T, B=b, L=L, window=0) for b in ((2, 8, 128) if whole else (8,))]
    points += [dict(T=T, B=32, L=l, window=0) for l in ((L // 2, 2 * L) if whole else (2 * L,))]
    print(f'a training step of a GPT with {", ".join(f"{k}={v}" for k, v in shape.items())}\n'
          f'{"T":>6s} {"B":>5s} {"L":>4s} {"window":>7s} {"tokens/s":>10s} {"TFLOP/s":>8s} {"peak GB":>8s}')
    rows = []
    for p in points:
        now = copy.copy(args)
        now.what, now.size, now.rows, now.sides = 'gpt', 'tiny', p['B'], 'ours'
        now.quiet, now.turn = True, args.turn / 2
        fields = dict(shape, n_layer=p['L'], block_size=p['T'], window=p['window'])
        now.set = ','.join(f'{k}={v}' for k, v in fields.items())
        def run(now):
            r = bench_step(now, 'gpt')['ours']
            rows.append(dict(p, tokens_per_second=r['median'], tflops=r['tflops'], peak_gb=r['peak_gb']))
            print(f'{p["T"]:6d} {p["B"]:5d} {p["L"]:4d} {p["window"] or "-":>7} {r["median"]:10,.0f} '
                  f'{r["tflops"]:8.3g} {r["peak_gb"]:8.3g}', flush=True)
        attempt(now, run)
    return rows

CPU_RUN = dict(activation='relu2', learning_rate=3e-3, muon_lr=0.03, momentum=0.95)        # for widths of 32 to 128

def scaling_ranks(args, kind, whole):
    "speed of the same global batch on 1, 2, .. ranks; on a CPU they share its cores"
    import torch
    most = torch.cuda.device_count() if kind == 'cuda' else 2
    flags = dict(model='gpt', preset='gpt2' if kind == 'cuda' else 'speedrun-cpu', data=args.data, device=args.device,
                 batch_size=256 if kind == 'cuda' else 32, max_iters=40 if whole else 16, log_interval=4,
                 eval_interval=1000, eval_iters=2)
    if kind != 'cuda': flags |= dict(CPU_RUN, n_layer=4, n_head=4, n_embd=128, **bytes_of(args))
    rows = []
    def run(n):
        torchrun = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n}'] if n > 1 else []
        flags['micro_batch_size'] = min(32, flags['batch_size'] // n)
        log = train_run([sys.executable, *torchrun], [f'--{k}={v}' for k, v in flags.items()])
        log = [r for r in log if 'tokens_per_second' in r][1:]
        speed, memory = statistics.median(r['tokens_per_second'] for r in log), log[-1]['peak_memory_mb'] / 1024
        rows.append(dict(ranks=n, tokens_per_second=speed, peak_gb_a_rank=memory))
        print(f'{n} rank(s): {speed:10,.0f} tokens/s, {memory:.3g} GB a rank', flush=True)
    for n in (2 ** k for k in range(max(1, most).bit_length())): attempt(args, lambda args: run(n))
    return rows

def bytes_of(args):                                      # a prepared folder has its tokenizer
    return {} if os.path.exists(os.path.join(args.data, 'meta.json')) else dict(tokenizer='byte')

def bench_scaling(args):
    import train
    kind, whole = args.device.split(':')[0], not args.quick
    each = lambda text, usual: [int(float(x)) for x in (text or usual).split(',')]
    widths = each(args.widths, '32,64,96,128' if whole else '16,32,64')
    budgets = each(args.budgets, '2.5e5,5e5,1e6' if whole else '4e4,8e4,1.6e5')
    began, points = time.time(), []
    grid = scaling_grid(args, kind, whole)
    ranks = [] if args.here else scaling_ranks(args, kind, whole)
    for C, D in itertools.product(widths, budgets):
        steps = max(2, round(D / 2048))                  # 16 rows of 128 tokens
        flags = dict(CPU_RUN, model='gpt', preset='speedrun-cpu', n_embd=C, n_layer=max(2, C // 32),
                     n_head=max(1, C // 32), data=args.data, device=args.device, max_iters=steps,
                     eval_interval=steps, log_interval=steps,
                     eval_iters=256 if whole else 64, warmup_iters=min(10, steps // 4), **bytes_of(args))
        with tempfile.TemporaryDirectory() as tmp, contextlib.redirect_stdout(io.StringIO()):
            last = train.main([*(f'--{k}={v}' for k, v in flags.items()), f'--out_dir={tmp}/run'])
        points.append((last['parameters'], last['tokens'], last['val_loss']))   # tied, rotary: all weights multiply
        print(f'N {points[-1][0]:>9,}  D {last["tokens"]:>10,}  validation loss {last["val_loss"]:.4f}  '
              f'{last["train_seconds"]:.1f} s', flush=True)
    law, errors = fit_law(*zip(*points))
    E, A, alpha, B, beta = law
    title = f'L = {E:.3f} + {A:.3g} / N^{alpha:.3f} + {B:.3g} / D^{beta:.3f}'
    print(f'{title}\n{"N":>11s} {"D":>12s} {"measured":>9s} {"fitted":>9s} {"off":>8s}')
    for (N, D, loss), error in zip(points, errors):
        print(f'{N:11,} {D:12,} {loss:9.4f} {law_at(law, N, D):9.4f} {math.expm1(error):8.2%}')
    rms, largest = math.sqrt(statistics.mean(e * e for e in errors)), max(points, key=lambda p: p[0] * p[1])
    rest, _ = fit_law(*zip(*(p for p in points if p != largest)))
    ahead = law_at(rest, *largest[:2]) / largest[2] - 1
    print(f'root mean square error {rms:.2%}; fitted without the largest run, its loss is told {ahead:+.2%} off')
    odd = [('E', E)] * (E < 0.05 * min(p[2] for p in points))
    odd += [(k, v) for k, v in (('alpha', alpha), ('beta', beta)) if not 0.01 < v < 2]
    odd = [f'{k} = {v:.3g}' for k, v in odd]
    if odd: print(f'these runs do not determine {", ".join(odd)}: more sizes or longer runs are needed')
    else: print(f'for C flops the best N grows as C^{beta / (alpha + beta):.2f}')
    draw_law(args.plot, points, law, title)
    print(f'plot: {args.plot}; {time.time() - began:.0f} s in all')
    write(args, dict(what='scaling', grid=grid, ranks=ranks, points=points, law=law, errors=errors, ahead=ahead))

# ---------------------------------------------------------------------------------------------------- the command

def attempt(args, bench):
    "a row that fails says so and leaves the others"
    try: bench(args)
    except Exception as e:
        if args.side or args.what == 'speedrun': raise
        args.failures.append(f'{args.what} {args.size}: {" ".join(str(e).split()) or type(e).__name__}')
        print(f'FAILED: {args.failures[-1]}', flush=True)
        if os.environ.get('TRACEBACK'): traceback.print_exc()
        with contextlib.suppress(Exception): write(args, dict(what=args.what, size=args.size, error=args.failures[-1]))
    gc.collect()

def usual(args, name): return USUAL['cuda' if args.device.startswith('cuda') else 'cpu'][name].split(',')

BENCHES = {**{f: functools.partial(bench_step, family=f) for f in ('gpt', 'bert', 't5', 'electra', 'lora')},
           'sample': bench_sample, 'parity': bench_parity, 'memory': bench_memory, 'start': bench_start,
           'data': bench_data, 'bpe': bench_bpe, 'tune': bench_tune,
           'speedrun': bench_speedrun, 'scaling': bench_scaling}

def check(args):
    "raises ValueError with the first wrong flag, before anything is measured"
    least = dict(repeat=1, tokens=1, seeds=1, rows=0, inner=0, budget=0, turn=0.001)
    for name, low in least.items():
        value = getattr(args, name)
        if not low <= value < math.inf: raise ValueError(f'--{name}={value}: expected {low} or more')
    if args.dtype not in ('', 'bf16', 'bfloat16', 'float32'):
        raise ValueError(f'--dtype={args.dtype}: expected bf16 or float32')
    families = [f for f in SIZES if f != 'sample']
    if not {*args.families.split(',')} <= {*families}:
        raise ValueError(f'--families={args.families}: expected some of {",".join(families)}')
    have = SIZES.get(args.what, {})
    if args.what in ('memory', 'tune', 'all'): have = {size for sizes in SIZES.values() for size in sizes}
    for size in filter(None, args.size.split(',') if have else []):
        if size not in have: raise ValueError(f'--size={size}: {args.what} has {", ".join(have)}')
    if args.side: return
    try: open(args.out, 'a').close()
    except OSError as e: raise ValueError(f'--out={args.out}: {e.strerror}') from None

def main(argv):
    "-> a list of what failed"
    argv, rest = list(argv), []
    if '--' in argv: argv, rest = argv[:argv.index('--')], argv[argv.index('--') + 1:]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument('what', choices=[*BENCHES, 'all'])
    parser.add_argument('--compile', action=argparse.BooleanOptionalAction, help='torch.compile; default: on CUDA')
    for name, text in (('quick', 'the first size, 3 rounds, sides start together; scaling: a minute'),
                       ('together', 'the sides start at once: sooner done, first_step_s then means nothing'),
                       *((n, argparse.SUPPRESS) for n in ('memory', 'quiet', 'here'))):
        parser.add_argument('--' + name, action='store_true', help=text)
    sizes = '; '.join(f'{k}: {" ".join(v)}' for k, v in SIZES.items())
    for name, default, text in (
            ('device', 'cpu', 'cpu, cuda, cuda:1'), ('dtype', '', 'bf16 or float32; default: bf16 on CUDA'),
            ('size', '', f'one or more, with commas. {sizes}'), ('rows', 0, 'of a batch; 0: as the size says'),
            ('set', '', 'more fields of the Config: n_layer=2,n_embd=64'), ('dropout', 0.0, 'of both sides'),
            ('repeat', 5, 'rounds'), ('inner', 0, 'steps timed together; 0: as many as take --turn seconds of ours'),
            ('turn', 1.0, 'seconds'), ('tokens', 64, 'to decode'), ('sides', '', 'only these: ours,transformers tuned'),
            ('budget', 0.0, 'all: seconds after which no further part begins; 0: no limit'),
            ('families', 'gpt,bert,t5,electra,lora', 'tune, memory: only these'),
            ('seeds', 5, 'speedrun: how many'), ('first_seed', 1337, 'speedrun'),
            ('results', 'results.md', 'speedrun: table to append to'), ('out', 'bench.jsonl', 'lines of JSON'),
            ('data', 'stdlib', 'start, scaling: what is trained on'), ('plot', 'scaling.svg', 'scaling: where to draw'),
            ('widths', '', 'scaling: n_embd of the fit, such as 32,64,96,128'),
            ('budgets', '', 'scaling: tokens seen, of the fit, such as 2.5e5,5e5,1e6'),
            ('race', '', argparse.SUPPRESS), ('side', '', argparse.SUPPRESS)):
        parser.add_argument('--' + name, default=default, type=type(default), help=text.replace('%', '%%'))
    args, unknown = parser.parse_known_args(argv)
    behind = '; the command stands behind a --' * (args.what == 'speedrun')
    if unknown: parser.error(f'unknown: {shlex.join(unknown)}{behind}')
    check(args)
    args.argv, args.rest, args.failures = argv + ['--'] * bool(rest) + rest, rest, []
    if args.what == 'speedrun' and '--device=cpu' not in rest:             # what the rows say about the machine
        import torch
        args.device = 'cuda' if torch.cuda.is_available() else args.device
    cuda = args.device.startswith('cuda')
    args.dtype = {'bf16': 'bfloat16', '': 'bfloat16' if cuda else 'float32'}.get(args.dtype, args.dtype)
    args.compile = cuda if args.compile is None else args.compile
    if args.quick: args.repeat, args.together = min(args.repeat, 3), True
    if args.side: BENCHES[args.what](args)
    skipped = []
    for name in [n for n in BENCHES if n not in ('speedrun', 'scaling')] if args.what == 'all' else [args.what]:
        sizes = [s for s in args.size.split(',') if s] or ['']
        if name in SIZES and not args.size: sizes = usual(args, name)[:1 if args.quick else None]
        for size in () if args.side else sizes:
            if 0 < args.budget < time.perf_counter() - BEGAN: skipped.append(f'{name} {size}'.strip())
            else:
                now = copy.copy(args)
                now.what, now.size = name, size
                attempt(now, BENCHES[name])
    if skipped: print(f'--budget={args.budget:g} seconds are over; not measured: {", ".join(skipped)}')
    return args.failures

if __name__ == '__main__':
    try: failures = main(sys.argv[1:])
    except (ValueError, RuntimeError, OSError) as e: sys.exit(f'error: {e}')
    except KeyboardInterrupt:
        print('\nstopped', file=sys.stderr)
        os._exit(130)
    sys.exit(f'{len(failures)} failed: {"; ".join(f.partition(": ")[0] for f in failures)}' if failures else 0)
