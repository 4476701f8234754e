"""Speed, side by side: ours and a peer's in one run, interleaved A B A B, as medians and ratios.

    python tests/bench.py bpe                       # tokenizer training, encoding and preparing beside tokenizers and tiktoken
    python tests/bench.py gpt --size=tiny           # a training step beside transformers' (eager), equal shapes and optimizer
    python tests/bench.py gpt --device=cuda --size=gpt2 --rows=32 --dtype=bfloat16 --compile
    python tests/bench.py sample                    # decoding with and without a cache beside transformers' generate
    python tests/bench.py data                      # the data path alone, and start-up
    python tests/bench.py all                       # all of these

Every row goes to the screen and, as a line of JSON, to bench.jsonl (--out). A ratio over 1 means that ours is faster. Flops of a
row are Model.flops(): 6 N + 12 L T D a token, N without position and input look-up. Run it on an idle machine; the spread tells.
"""
import argparse, gc, json, os, platform, resource, statistics, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)


def report(args, what, unit, ours, theirs=None, peer='', **more):
    "ours, theirs: lists of rates, more is better"
    a, row = statistics.median(ours), dict(what=what, unit=unit, ours=round(statistics.median(ours), 3), spread=[round(min(ours), 3), round(max(ours), 3)])
    line = f'{what:42s} {a:12,.1f} {unit:12s} ({min(ours):,.1f} to {max(ours):,.1f})'
    if theirs:
        b = statistics.median(theirs)
        row.update(peer=peer, theirs=round(b, 3), ratio=round(a / b, 3))
        line += f' | {peer} {b:,.1f} | ratio {a / b:.2f}'
    print(line + ''.join(f' | {k} {v}' for k, v in more.items()), flush=True)
    with open(args.out, 'a') as f: f.write(json.dumps({**row, **more, 'python': platform.python_version(), 'command': ' '.join(sys.argv), 'date': time.strftime('%F %T')}) + '\n')


def stdlib_texts():
    from data import text, stdlib
    import sysconfig
    folder, paths = sysconfig.get_path('stdlib'), []
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(d for d in folders if d not in ('site-packages', '__pycache__', 'test', 'tests', 'idle_test', 'lib2to3', 'dist-packages'))
        paths += [os.path.join(base, f) for f in sorted(files) if f.endswith('.py')]
    texts = []
    for p in paths:
        try: texts.append(open(p, encoding='utf-8').read())
        except UnicodeDecodeError: pass
    return texts


TRAIN = {'ours': 'import bpe; tok = bpe.train(texts, {n}, special=["<|endoftext|>"])',
         'tokenizers': 'import tokenizers as k; tok = k.Tokenizer(k.models.BPE()); tok.pre_tokenizer = k.pre_tokenizers.ByteLevel(add_prefix_space=False); '
                       'tok.train_from_iterator(texts, k.trainers.BpeTrainer(vocab_size={n}, special_tokens=["<|endoftext|>"], initial_alphabet=k.pre_tokenizers.ByteLevel.alphabet(), show_progress=False))'}
CHILD = '''import json, resource, sys, time
texts = json.load(open(sys.argv[1])); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import regex, numpy, tiktoken
t = time.perf_counter(); {body}
print(time.perf_counter() - t, (max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)) / 1024)'''


def bench_bpe(args, sizes=(8192, 32768)):
    import bpe, tiktoken
    texts = stdlib_texts()
    size = sum(len(t.encode()) for t in texts)
    print(f'{size / 1e6:.1f} MB of Python source, {os.cpu_count()} cores')
    with tempfile.TemporaryDirectory() as tmp:
        json.dump(texts, open(tmp + '/texts.json', 'w'))
        for n in sizes:
            seconds, memory = {k: [] for k in TRAIN}, {}
            for _ in range(args.repeat):
                for k, code in TRAIN.items():                  # a process each: its own peak of memory
                    r = subprocess.run([sys.executable, '-c', CHILD.format(body=code.format(n=n)), tmp + '/texts.json'], cwd=ROOT, capture_output=True, text=True, check=True)
                    s, m = map(float, r.stdout.split())
                    seconds[k].append(s); memory[k] = max(memory.get(k, 0), m)
            rate = {k: [size / 1e6 / s for s in v] for k, v in seconds.items()}
            report(args, f'train a vocabulary of {n}', 'MB/s', rate['ours'], rate['tokenizers'], 'tokenizers', seconds=round(statistics.median(seconds['ours']), 2), peak_mb=f'{memory["ours"]:.0f} and {memory["tokenizers"]:.0f}')
    tok = bpe.train(texts, 8192)
    theirs = tiktoken.Encoding('x', pat_str=bpe.PATTERNS['gpt2'], mergeable_ranks=tok.encoding._mergeable_ranks, special_tokens={'<|endoftext|>': 8191})
    a, b = [], []
    for _ in range(args.repeat):
        t = time.perf_counter(); tok.encode_batch(texts); a.append(size / 1e6 / (time.perf_counter() - t))
        t = time.perf_counter(); theirs.encode_ordinary_batch(texts, num_threads=os.cpu_count()); b.append(size / 1e6 / (time.perf_counter() - t))
    report(args, 'encode_batch on all cores', 'MB/s', a, b, 'tiktoken')
    from data import text
    a, b, c = [], [], (texts * 5)
    with tempfile.TemporaryDirectory() as tmp:
        with open(tmp + '/t.txt', 'w', encoding='utf-8') as f: f.write(''.join(c))
        tok.save(tmp + '/tok.json')
        for i in range(args.repeat):
            t = time.perf_counter(); text.prepare(tmp + '/t.txt', tokenizer=tmp + '/tok.json', out=f'{tmp}/p{i}'); a.append(5 * size / 1e6 / (time.perf_counter() - t))
            t = time.perf_counter(); theirs.encode_ordinary_batch(c, num_threads=os.cpu_count()); b.append(5 * size / 1e6 / (time.perf_counter() - t))
    report(args, f'prepare {5 * size / 1e6:.0f} MB into .bin', 'MB/s', a, b, 'tiktoken alone')


SIZES = {'tiny': dict(n_layer=4, n_head=4, n_embd=128, block_size=64, vocab_size=128),            # nanoGPT's CPU recipe
         'small': dict(n_layer=4, n_head=4, n_embd=256, block_size=256, vocab_size=8192),
         'wide': dict(n_layer=2, n_head=4, n_embd=128, block_size=128, vocab_size=50304), 'gpt2': dict(vocab_size=50304), 'gpt2-medium': dict(vocab_size=50304, n_layer=24, n_head=16, n_embd=1024)}


def bench_gpt(args):
    import torch, transformers, gpt, train
    train.pick_device(args.device)                       # the settings of train.py: TF32 on CUDA, how memory is kept on a CPU
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    size = SIZES[args.size]
    config = gpt.Config(**size)
    hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=config.vocab_size, n_positions=config.block_size, n_embd=config.n_embd, n_layer=config.n_layer, n_head=config.n_head, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)).to(device)
    ours = gpt.Model(config).to(device)
    x = torch.randint(0, config.vocab_size, (args.rows, config.block_size + 1), device=device)
    settings = train.Config(learning_rate=1e-4)
    step_ours = train.make_optimizers(ours, settings, device)[0]
    step_hf = torch.optim.AdamW(hf.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    net, peer = (torch.compile(ours), torch.compile(hf)) if args.compile else (ours, hf)
    sync = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    def once(loss, opt):
        sync(); t = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32): value = loss()
        value.backward(); opt.step(); opt.zero_grad(); sync()
        return time.perf_counter() - t
    runs = {'ours': lambda: once(lambda: net(x[:, :-1], x[:, 1:])[0], step_ours), 'theirs': lambda: once(lambda: peer(input_ids=x[:, :-1], labels=x[:, :-1]).loss, step_hf)}
    first, memory, times = {}, {}, {k: [] for k in runs}
    for k, f in runs.items():
        if device.type == 'cuda': torch.cuda.reset_peak_memory_stats()
        first[k] = f(); f()
        if device.type == 'cuda': memory[k] = torch.cuda.max_memory_allocated() / 2 ** 30
    for _ in range(args.repeat * 2):
        for k, f in runs.items(): times[k].append(f())
    rate = {k: [args.rows * config.block_size / s for s in v] for k, v in times.items()}
    tflops = ours.flops() * args.rows / statistics.median(times['ours']) / 1e12
    report(args, f'gpt {args.size} step, {args.rows} x {config.block_size}, {args.dtype}', 'tokens/s', rate['ours'], rate['theirs'], 'transformers', tflops=round(tflops, 3), first_step=f'{first["ours"]:.1f} and {first["theirs"]:.1f} s', **({'peak_gb': f'{memory["ours"]:.2f} and {memory["theirs"]:.2f}'} if memory else {}))


def bench_sample(args):
    import torch, transformers, gpt, sample
    config = gpt.Config()
    ours = gpt.Model(config).to(args.device).eval()
    hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=None, eos_token_id=None)).to(args.device).eval()
    x, n, a, b, c = torch.randint(0, 50257, (1, 16), device=args.device), 64, [], [], []
    with torch.no_grad():
        for _ in range(args.repeat + 1):
            t = time.perf_counter(); sample.generate(ours, x, n, temperature=0); a.append(n / (time.perf_counter() - t))
            t = time.perf_counter(); hf.generate(x, max_new_tokens=n, min_new_tokens=n, do_sample=False); b.append(n / (time.perf_counter() - t))
        t = time.perf_counter(); sample.generate(ours, x, n, temperature=0, cache=False); c.append(n / (time.perf_counter() - t))
    report(args, 'decode GPT-2 124M, batch 1', 'tokens/s', a[1:], b[1:], 'transformers, cached')
    report(args, 'decode GPT-2 124M, without a cache', 'tokens/s', c)


def bench_data(args):
    import numpy as np, gpt
    from data import rows
    corpus = rows.Corpus.__new__(rows.Corpus)
    corpus.__dict__.update(split='train', seed=1, shuffle=True, kind='text', shards=[np.random.randint(0, 50257, 10 ** 8).astype(np.uint16)], tokens_per_row=0, length=0, overlap=0, items=[], examples=[])
    config, rates = gpt.Config(), []
    for step in range(20 * args.repeat):
        t = time.perf_counter(); draw, rng = corpus.rows(np.arange(32) + 32 * step); gpt.batch(draw, config, rng); rates.append(32 * 1024 / (time.perf_counter() - t))
    report(args, 'gpt windows, 32 x 1024', 'tokens/s', rates)
    times = []
    for _ in range(args.repeat):
        t = time.perf_counter(); subprocess.run([sys.executable, 'train.py', '--help'], cwd=ROOT, capture_output=True, check=True); times.append(time.perf_counter() - t)
    report(args, 'train.py --help', '1/s', [1 / t for t in times], seconds=round(statistics.median(times), 2))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benches = dict(bpe=bench_bpe, gpt=bench_gpt, sample=bench_sample, data=bench_data)
    parser.add_argument('what', choices=[*benches, 'all'])
    parser.add_argument('--device', default='cpu'); parser.add_argument('--dtype', default='float32')
    parser.add_argument('--size', default='small', choices=SIZES); parser.add_argument('--rows', type=int, default=8)
    parser.add_argument('--repeat', type=int, default=5); parser.add_argument('--compile', action='store_true')
    parser.add_argument('--out', default='bench.jsonl')
    args = parser.parse_args()
    for name, bench in benches.items():
        if args.what in (name, 'all'): bench(args); gc.collect()
