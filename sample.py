"""Uses a trained model: continues your text, talks with you line by line, and measures.

    python sample.py --prompt="def main(" --num_samples=3            # continues the text with the model in out/gpt
    python sample.py --init_from=gpt2/ --eval=lm --text=book.txt     # perplexity and bits per byte of a Hugging Face folder

    python sample.py --interactive                                   # a prompt a line; Ctrl-C stops it, Ctrl-D leaves
    python sample.py --eval=hellaswag.jsonl                          # multiple choice, last words: see `evaluate`

From Python: `sample.generate(model, ids, 100)` continues ids (B, T), `sample.stream` does so token by token,
`sample.score` gives the log-likelihood of any text after any other.

The context is always the last block_size tokens, as in nanoGPT. While a text is shorter, keys and values are kept in a
cache, so a token costs one position; then each token moves the whole window by one place, which costs a window a token:
--slide=N moves it by N places at a time, which is faster and means that up to N - 1 tokens fewer are seen. Nothing here
knows a model by its name: what can be done with one depends on what its file offers (see `uses`, at the end).

Papers: top-p Holtzman et al. 2020 (1904.09751), min-p Nguyen et al. 2024 (2407.01082), repetition penalty Keskar et al.
2019 (1909.05858). Filters and their order are those of transformers; windows of --eval=lm are those of its guide to
perplexity, after a start token, so that the first token counts too.

Letters: B samples, T tokens, V vocabulary.
"""
import codecs, contextlib, dataclasses, functools, glob, json, math, os, sys, time
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

import bpe, train


@dataclass
class Config:
    # the model
    out_dir: str = 'out/gpt'         # folder of a run of train.py
    init_from: str = ''              # or other weights: a .pt file or a Hugging Face folder
    tokenizer: str = ''              # a vocabulary (file or name), for weights that come without
    device: str = 'auto'             # auto, cpu, cuda, cuda:1, mps
    dtype: str = 'auto'              # auto, bfloat16, float16, float32; auto: bfloat16 on CUDA, but float32 for --eval
    compile: str = 'auto'            # torch.compile of the step of one token: auto (on CUDA), true, false
    # continue a text
    prompt: str = ''                 # the text to continue, FILE:path, or - for stdin; '' starts a new document
    num_samples: int = 1             # continuations of it, made together
    max_new_tokens: int = 200        # length of a continuation
    temperature: float = 0.8         # under 1: safer, over 1: wilder, 0: always the likeliest token
    top_k: int = 200                 # only among the k likeliest tokens; 0: off
    top_p: float = 1.0               # only among the likeliest tokens that together have this probability; 1: off
    min_p: float = 0.0               # only tokens at least this many times as probable as the likeliest; 0: off
    repetition_penalty: float = 1.0  # over 1: tokens that the text has already are made less likely; 1: off
    stop: str = ''                   # end a continuation before this text; \n and \t stand for line end and tab
    ignore_eot: bool = False         # go on after the end-of-text token
    seed: int = 1337                 # the same seed gives the same text
    stream: bool = False             # show the text as it is made, one sample after another
    interactive: bool = False        # ask for prompts and continue them
    cache: bool = True               # false: compute the whole text anew for each token (slow; a check on the cache)
    slide: int = 1                   # past block_size, forget so many tokens at once; 1: as few as possible
    # evaluate
    eval: str = ''                   # lm: a text's likelihood; FILE.jsonl: multiple choice and last words
    text: str = ''                   # --eval=lm: the text, anything that train.py --data takes as your own text
    stride: int = 0                  # --eval=lm: tokens from one window to the next; 0: half of block_size
    batch_size: int = 8              # --eval: rows at a time; changes no result
    delimiter: str = ' '             # --eval=FILE.jsonl: stands between two parts that have no white space there

# ---------------------------------------------------------------------------------------------------- choosing a token

def filtered(logits, seen=None, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0):
    """What is left to choose from. logits: (B, V); seen: (B, V), the tokens that the text has already, for the penalty
    -> logits (B, K) fp32, -inf where ruled out, and their tokens (B, K), the likeliest first; or all V and None"""
    logits, tokens = logits.float(), None
    if repetition_penalty != 1:
        logits = torch.where(seen, torch.where(logits < 0, logits * repetition_penalty, logits / repetition_penalty), logits)
    if temperature == 0: return logits, None
    logits = logits / temperature
    if 0 < top_k < logits.size(-1): logits, tokens = logits.topk(top_k)    # (B, K) each
    elif top_p < 1: logits, tokens = logits.sort(descending=True)
    if top_p < 1:
        p = logits.softmax(-1)
        enough = p.cumsum(-1) - p >= top_p                                 # those before it have that much already
        logits = torch.cat((logits[:, :1], logits[:, 1:].masked_fill(enough[:, 1:], -math.inf)), dim=-1)
    if min_p > 0:                                                          # p < min_p max(p), told by the logits
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(min_p), -math.inf)
    return logits, tokens


def pick(logits, noise=None, seen=None, **options):
    """-> (B, 1). A race: token i arrives after noise / p, noise ~ Exp(1), and is first with probability p. The noise
    (B, K) is drawn by the caller, so nothing here waits for the device, as torch.multinomial does."""
    logits, tokens = filtered(logits, seen, **options)
    if noise is not None: logits = logits.softmax(-1) / noise
    choice = logits.argmax(-1, keepdim=True)
    return choice if tokens is None else tokens.gather(1, choice)


def advance(model, token, cache, noise, seen, vocab_size, options):
    """One more token in one piece, for torch.compile. token: (B, 1) -> (B, 1)"""
    token = pick(model.step(token, cache)[:, :vocab_size], noise, seen, **options)
    if seen is not None: seen.scatter_(1, token, True)
    return token

# ---------------------------------------------------------------------------------------------------- generating

def tensors(x):
    """All tensors of a cache, whatever it is made of. They are its whole state, each with B rows first or without rows."""
    if isinstance(x, torch.Tensor): return [x]
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else getattr(x, '__dict__', {}).values()
    return [t for part in parts for t in tensors(part)]


def prefill(model, ids, length, cache=None):
    """ids: (B, T) -> logits of what comes next (B, V), and the cache that holds them; a cache is given to be used again.
    If all rows are the same, as with several samples of a prompt, one is computed."""
    rows = ids[:1] if (ids == ids[:1]).all() else ids
    fresh = model.cache(len(rows), length)
    logits = model.step(rows, fresh).expand(len(ids), -1)
    if cache is None and len(rows) == len(ids): return logits, fresh
    if cache is None: cache = model.cache(len(ids), length)
    for old, new in zip(tensors(cache), tensors(fresh)): old.copy_(new)    # one row becomes all
    return logits, cache


class FewRows(torch.nn.Linear):
    """A linear layer on a CPU, where MKL's product of a matrix with one to four rows reaches a third of the memory's
    bandwidth or less; its batched product, of the matrix cut into a piece for each thread, reaches nearly all."""
    least = 2 ** 17                                                        # numbers in a matrix for which it pays
    def forward(self, x):
        W, n, rows, shape = self.weight, max(2, torch.get_num_threads()), x.numel() // x.size(-1), x.shape[:-1]
        if rows > 4 or W.numel() < self.least or torch.is_grad_enabled() or W.dtype != x.dtype: return super().forward(x)
        N, x = W.size(0) // n * n, x.reshape(rows, -1)
        y = torch.bmm(W[:N].view(n, N // n, -1), x.t().expand(n, -1, -1)).view(N, rows).t()            # (rows, N)
        if N < W.size(0): y = torch.cat((y, F.linear(x, W[N:])), dim=1)
        return (y if self.bias is None else y + self.bias).view(*shape, -1)


@contextlib.contextmanager
def few_rows(model, on=True):
    linears = [m for m in model.modules() if type(m) is torch.nn.Linear] if on and torch.backends.mkl.is_available() else []
    for m in linears: m.__class__ = FewRows
    try: yield
    finally:
        for m in linears: m.__class__ = torch.nn.Linear


@functools.cache
def compiled(): return torch.compile(advance, mode='reduce-overhead', dynamic=False, fullgraph=True)


@torch.no_grad()
def stream(model, ids, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=None,
           vocab_size=None, cache=True, slide=1, compile=False):
    """Yields ids (B, T + 1), (B, T + 2), ..., up to max_new_tokens more, on the model's device; they are views of one
    tensor. ids: (B, T), T >= 1, of one length; the rows are independent. Tokens from vocab_size on are never chosen."""
    device, limit, training = next(model.parameters()).device, model.config.block_size, model.training
    (B, T), V = ids.shape, min(vocab_size or model.config.vocab_size, model.config.vocab_size)
    if T < 1: raise ValueError('no ids to start from: give at least one, such as the end-of-text id')
    if not 1 <= slide <= limit: raise ValueError(f'slide={slide}: expected 1 to block_size={limit}')
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty)
    text = torch.cat((ids.to(device), torch.zeros(B, max_new_tokens, dtype=ids.dtype, device=device)), dim=1)
    rng = torch.Generator(device)
    rng.seed() if seed is None else rng.manual_seed(seed)
    noise = torch.empty(B, top_k if 0 < top_k < V else V, device=device) if temperature else None
    seen = None if repetition_penalty == 1 else torch.zeros(B, V + 1, dtype=torch.bool, device=device).scatter_(
        1, text[:, :T].clamp(max=V), True)[:, :V].contiguous()
    length = T + max_new_tokens
    if compile: length = -(-length // 256) * 256                           # few shapes: few compilations
    length, cache, kept = min(limit, length), cache and hasattr(model, 'step'), None
    start, fast, token = max(0, T - limit), compiled() if compile else advance, torch.empty(B, 1, dtype=torch.long, device=device)
    with few_rows(model, device.type == 'cpu' and not compile):
        for end in range(T, T + max_new_tokens):                           # the context is text[:, start:end]
            full = end - start > limit
            if full: start += slide
            if training: model.eval()                                      # each time: it may be trained between two yields
            if noise is not None: noise.exponential_(generator=rng)
            if kept is not None and not full:
                args = model, token, kept, noise, seen, V, options
                try: token.copy_(fast(*args))
                except Exception as e:
                    if fast is advance: raise
                    print(f'torch.compile failed, going on without it (slower): {str(e).splitlines()[0][:150]}', file=sys.stderr)
                    fast = advance
                    token.copy_(fast(*args))
            else:
                if cache: logits, kept = prefill(model, text[:, start:end], length, kept)
                else: logits = model.logits(text[:, start:end])[:, -1]
                token.copy_(pick(logits[:, :V], noise, seen, **options))
                if seen is not None: seen.scatter_(1, token, True)
                if compile and kept is not None and end == T:                          # written in place: CUDA graphs must know
                    for t in tensors([token, noise, seen, kept]): torch._dynamo.mark_static_address(t, guard=False)
            if training: model.train()
            text[:, end] = token[:, 0]
            yield text[:, :end + 1]


def generate(model, ids, max_new_tokens, eot=None, **options):
    """ids (B, T) -> (B, T + n), n <= max_new_tokens: it ends when every row has had the id `eot`, which then fills the
    rest of its row. Options and their defaults are those of `stream`; temperature=0 is greedy."""
    T, text = ids.size(1), ids.to(next(model.parameters()).device)
    for text in stream(model, ids, max_new_tokens, **options):
        n = text.size(1) - T
        if eot is not None and (n % 16 == 0 or text.device.type == 'cpu') and (text[:, T:] == eot).any(1).all(): break
    if eot is None: return text
    found = (text[:, T:] == eot).cumsum(1)                                 # (B, n): how many so far
    text = torch.cat((text[:, :T], text[:, T:].masked_fill(found > 0, eot)), dim=1)
    return text[:, :T + int((found == 0).any(0).sum()) + 1]                # the first column in which all have ended is the last

# ---------------------------------------------------------------------------------------------------- text in, text out

def start_ids(tokenizer, text):
    """The ids of a text as the beginning of a document: after the vocabulary's own start token, if it has one."""
    bos, eot, ids = getattr(tokenizer, 'bos', None), tokenizer.eot, tokenizer.encode(text, special=True)
    if bos not in (None, eot) and ids[:1] != [bos]: ids = [bos] + ids
    if not ids and eot is None: raise ValueError('nothing to start from: this vocabulary has no end-of-text token; give --prompt=TEXT')
    return ids or [eot]


def visible(tokenizer, before, ids, stop='', final=True):
    """-> the text of ids, which follow the ids `before`, and whether it has ended. It ends before `stop`. As long as more
    may come (not final), half a character and what may become `stop` are held back."""
    data = tokenizer.decode_bytes([*before, *ids])[len(tokenizer.decode_bytes(before)):]
    text = codecs.getincrementaldecoder('utf-8')('replace').decode(data, final)
    if stop and stop in text: return text[:text.index(stop)], True
    held = 0 if final else next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
    return text[:len(text) - held], False


def read_prompt(prompt):
    if prompt == '-': return sys.stdin.read()
    if not prompt.startswith('FILE:'): return prompt
    try: return open(prompt[5:], encoding='utf-8', newline='').read()
    except UnicodeDecodeError as e: raise ValueError(f'--prompt={prompt}: not UTF-8 text (byte {e.start})') from None
    except OSError as e: raise ValueError(f'--prompt={prompt}: {e.strerror}') from None


def continuations(model, tokenizer, prompt, config, rows, seed, show=None):
    """-> texts of `rows` samples after the prompt, and a line on its speed. show(piece) gets the first row's text as it
    comes."""
    ids = start_ids(tokenizer, prompt)
    if len(ids) > model.config.block_size:
        print(f'the prompt has {len(ids)} tokens; the model sees the last {model.config.block_size} (block_size)', file=sys.stderr)
    device, stop = next(model.parameters()).device, config.stop.replace(r'\n', '\n').replace(r'\t', '\t')
    eot = None if config.ignore_eot else tokenizer.eot
    options = {n: getattr(config, n) for n in ('temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty', 'cache', 'slide')}
    new, texts, ended = [[] for _ in range(rows)], [''] * rows, [False] * rows
    def take(columns, final):
        for r, more in enumerate(columns):
            if ended[r]: continue
            new[r] += more
            if eot in new[r]: new[r], ended[r] = new[r][:new[r].index(eot)], True
            if not (stop or final or ended[r] or r == 0 and show): continue    # the text is not asked for yet
            text, stopped = visible(tokenizer, ids[-8:], new[r], stop, final or ended[r])
            if r == 0 and show: show(text[len(texts[0]):])
            texts[r], ended[r] = text, ended[r] or stopped
    at, every, began, first = len(ids), 1 if show or device.type == 'cpu' else 16, time.perf_counter(), 0.0
    for text in stream(model, torch.tensor([ids] * rows), config.max_new_tokens, seed=seed, vocab_size=tokenizer.vocab_size,
                       compile=config.compile == 'true' or config.compile == 'auto' and device.type == 'cuda', **options):
        if text.size(1) - at < every and at > len(ids): continue           # reading the tokens waits for the device
        take(text[:, at:].tolist(), False)
        at, first = text.size(1), first or time.perf_counter() - began
        if all(ended): break
    take(text[:, at:].tolist(), True)
    n, seconds = text.size(1) - len(ids), time.perf_counter() - began
    return texts, (f'{rows} x {n} tokens in {seconds:.2f} s, {rows * n / seconds:.1f} tokens/s; after a prompt of {len(ids)} tokens '
                   f'the first one came in {first:.2f} s')


def complete(model, tokenizer, config):
    """Prints the prompt with each of its continuations, a line of dashes between. -> {'prompt', 'texts'}"""
    prompt, line, texts = read_prompt(config.prompt), '\n---------------\n', []
    if not config.stream:
        texts, speed = continuations(model, tokenizer, prompt, config, config.num_samples, config.seed)
        print(line.join(prompt + text for text in texts), flush=True)
        print(speed, file=sys.stderr)
    while len(texts) < config.num_samples:
        texts += speak(model, tokenizer, prompt, config, config.seed + len(texts))
        if len(texts) < config.num_samples: print(line[1:], end='')
    return dict(prompt=prompt, texts=texts)


def speak(model, tokenizer, prompt, config, seed):
    """One sample, shown as it is made."""
    print(prompt, end='', flush=True)
    texts, speed = continuations(model, tokenizer, prompt, config, 1, seed, lambda piece: print(piece, end='', flush=True))
    print(flush=True)
    print(speed, file=sys.stderr)
    return texts


def converse(model, tokenizer, config):
    """A loop of prompts. Each stands for itself. -> {'texts'}"""
    with contextlib.suppress(ImportError): import readline                 # line editing and history of input()
    texts, ask = [], '> ' if sys.stdin.isatty() else ''
    if ask: print('a prompt a line; Ctrl-C stops the answer, Ctrl-D leaves', file=sys.stderr)
    while True:
        try: prompt = input(ask)
        except EOFError: break
        except KeyboardInterrupt: print(); continue
        try: texts += speak(model, tokenizer, prompt, config, config.seed + len(texts))
        except KeyboardInterrupt: print(' ... stopped', flush=True)
        except ValueError as e: print(f'\n{e}', file=sys.stderr)           # such as a character unknown to the vocabulary
    if ask: print()
    return dict(texts=texts)

# ---------------------------------------------------------------------------------------------------- evaluating

@torch.no_grad()
def score(model, rows, batch_size=8, progress=False):
    """rows: [(ids, n)] -> [(log p of the last n ids after those before, whether each of them was the likeliest)]. At
    least one id comes before, at most block_size + 1 are all. Shorter rows are padded behind, where no token looks."""
    device, training, V = next(model.parameters()).device, model.training, model.config.vocab_size
    model.eval()
    order, out, done = sorted(range(len(rows)), key=lambda i: -len(rows[i][0])), [None] * len(rows), 0
    while done < len(order):
        longest = len(rows[order[done]][0]) - 1                            # memory: (B, T, V) logits are all there at once
        some = order[done:done + max(1, min(batch_size, 2 ** (29 if device.type == 'cuda' else 27) // (longest * V)))]
        x = np.zeros((len(some), longest + 1), np.int64)
        for r, i in enumerate(some): x[r, :len(rows[i][0])] = rows[i][0]
        x, found = torch.from_numpy(x).to(device), []
        logits = model.logits(x[:, :-1])                                   # (B, T, V)
        for r, i in enumerate(some):
            end, n = len(rows[i][0]), rows[i][1]
            guess, target = logits[r, end - 1 - n:end - 1].float(), x[r, end - n:end]
            found.append(torch.stack((-F.cross_entropy(guess, target, reduction='sum'), (guess.argmax(-1) == target).all().float())))
        for i, (p, best) in zip(some, torch.stack(found).tolist()): out[i] = p, best > 0
        done += len(some)
        if progress and sys.stderr.isatty(): print(f'\r{done}/{len(order)}', end='\r' if done < len(order) else '\r\033[K', file=sys.stderr, flush=True)
    model.train(training)
    return out


def evaluate_text(model, tokenizer, config):
    """Sliding windows of block_size tokens, `stride` apart: each token is predicted once, the first window's by what is
    before, all others by at least block_size - stride tokens. Documents are parted by the end-of-text token."""
    from data import text as reader
    limit = model.config.block_size
    stride = config.stride or max(1, limit // 2)
    if not config.text: raise ValueError('--eval=lm needs a text: --text=FILE')
    if not 1 <= stride <= limit: raise ValueError(f'--stride={stride}: expected 1 to block_size={limit}')
    documents, piece = [''], ''
    for piece, last in reader.documents(reader.files(config.text)):
        documents[-1] += piece
        if last: documents.append('')
    documents = [d for d in documents if d]
    if not documents: raise ValueError(f'--text={config.text}: holds no text')
    eot = [] if tokenizer.eot is None else [tokenizer.eot]
    start = [b] if (b := getattr(tokenizer, 'bos', None)) is not None else eot
    ids = np.concatenate([np.array([*(eot if i else start), *tokenizer.encode(d)], np.int64) for i, d in enumerate(documents)])
    n_bytes = sum(len(d.encode()) for d in documents) - (0 if start else len(tokenizer.decode_bytes(ids[:1].tolist())))
    last = len(ids) - 1                                                    # targets are ids 1 .. last
    if last < 1: raise ValueError(f'--text={config.text}: a single token, nothing to predict')
    ends = [*range(min(limit, last), last, stride), last]
    rows = [(ids[max(0, end - limit):end + 1], end - before) for before, end in zip([0, *ends], ends)]
    loss = -sum(p for p, _ in score(model, rows, config.batch_size, progress=True)) / last
    result = dict(loss=loss, perplexity=math.exp(min(loss, 700)), bits_per_byte=loss * last / math.log(2) / n_bytes, tokens=last, bytes=n_bytes)
    print(f'{config.text}: perplexity {result["perplexity"]:.3f}, {result["bits_per_byte"]:.4f} bits per byte (loss {loss:.4f} over '
          f'{last:,} tokens, {n_bytes:,} bytes; windows of {limit}, stride {stride})')
    return result


def read_items(path):
    """-> (line number, dict) of each line of a file of questions, checked"""
    expected = '{"query": text, "choices": [text, ...], "gold": number of the right one, from 0} or {"context": text, "continuation": text}'
    try: lines = open(path, 'rb').read().splitlines()
    except OSError as e: raise ValueError(f'--eval={path}: {e.strerror}; expected lm or a .jsonl file') from None
    full = lambda x: isinstance(x, str) and x.strip()
    for number, line in enumerate(lines, 1):
        if not line.strip(): continue
        try: item, wrong = json.loads(line), ''
        except ValueError as e: item, wrong = {}, f'not JSON ({str(e)[:80]})'
        if not isinstance(item, dict): wrong = f'a {type(item).__name__}'
        elif 'choices' in item:
            choices, gold = item['choices'], item.get('gold')
            if not (isinstance(item.get('query'), str) and isinstance(choices, list) and choices and all(map(full, choices))):
                wrong = '"query" is no text, or "choices" no list of texts'
            elif type(gold) is not int or not 0 <= gold < len(choices): wrong = f'"gold" is {gold!r} with {len(choices)} choices'
        elif not isinstance(item.get('context'), str) or not full(item.get('continuation')): wrong = wrong or f'has {", ".join(item) or "nothing"}'
        if wrong: raise ValueError(f'{path} line {number}: {wrong}; expected {expected}')
        yield number, item


def scored_row(tokenizer, before, after, delimiter, limit):
    """A text and what follows it -> (ids, n): the last n ids are those of `after`, with the white space in front of it.
    They are encoded as one text; what of it is `before` is where its ids and those of `before` alone agree."""
    if before and not before[-1:].isspace() and not after[:1].isspace(): after = delimiter + after
    head = start_ids(tokenizer, before.rstrip())
    ids = start_ids(tokenizer, before + after)
    if not before.rstrip() and ids[:len(head)] != head: ids = head + ids   # after nothing but the start token
    same = next((i for i, (a, b) in enumerate(zip(head, ids)) if a != b), min(len(head), len(ids) - 1))
    n = len(ids) - max(1, same)
    if n > limit: raise ValueError(f'{n} tokens to be scored, but the model sees {limit} (block_size)')
    return ids[-limit - 1:], n


def evaluate_items(model, tokenizer, config):
    """The accuracy of choosing the continuation with the highest log-likelihood, plain and divided by its UTF-8 bytes
    (acc and acc_norm of lm-evaluation-harness, which counts characters); for last words, how often greedy decoding gives
    them, and exp(-mean log-likelihood)."""
    items, rows = [], []
    for number, item in read_items(config.eval):
        before, afters = (item['query'], item['choices']) if 'choices' in item else (item['context'], [item['continuation']])
        try: rows += [scored_row(tokenizer, before, after, config.delimiter, model.config.block_size) for after in afters]
        except ValueError as e: raise ValueError(f'{config.eval} line {number}: {e}') from None
        items.append((item, afters))
    if not items: raise ValueError(f'--eval={config.eval}: no lines')
    found, plain, normed, exact, words = iter(score(model, rows, config.batch_size, progress=True)), [], [], [], []
    for item, afters in items:
        p, best = np.array([next(found) for _ in afters]).T                # (choices,) each
        if 'choices' not in item: exact.append(best[0]); words.append(p[0]); continue
        plain.append(p.argmax() == item['gold'])
        normed.append((p / [len(a.strip().encode()) for a in afters]).argmax() == item['gold'])
    result = {}
    if plain: result |= dict(items=len(plain), accuracy=float(np.mean(plain)), accuracy_norm=float(np.mean(normed)))
    if exact: result |= dict(words=len(exact), word_accuracy=float(np.mean(exact)), word_perplexity=float(np.exp(-np.mean(words))))
    if plain: print(f'{config.eval}: accuracy {result["accuracy"]:.4f}, length-normalised {result["accuracy_norm"]:.4f} ({len(plain)} items)')
    if exact: print(f'{config.eval}: last-word accuracy {result["word_accuracy"]:.4f}, perplexity {result["word_perplexity"]:.3f} ({len(exact)} items)')
    return result


def evaluate(model, tokenizer, config):
    return (evaluate_text if config.eval == 'lm' else evaluate_items)(model, tokenizer, config)

# ---------------------------------------------------------------------------------------------------- what can be done

def continues(model, file): return hasattr(model, 'step') or getattr(file, 'likelihood', False)
def likelihoods(model, file): return getattr(file, 'likelihood', False)    # logits(ids) are those of the next token

# The first line whose flag is given, or the last one: (flag, what a model must offer, the use, words for it).
# A use is a function of (model, tokenizer, config) that prints, and returns a dict.
uses = [('eval', likelihoods, evaluate, 'tell the likelihood of a text'),
        ('interactive', continues, converse, 'continue a text'),
        ('prompt', continues, complete, 'continue a text')]

# ---------------------------------------------------------------------------------------------------- the command line

dtypes = dict(bfloat16=torch.bfloat16, float16=torch.float16, float32=torch.float32)
ranges = dict(num_samples=(1, 1e9), max_new_tokens=(1, 1e9), temperature=(0, 1e9), top_k=(0, 1e9), top_p=(0, 1), min_p=(0, 1),
              repetition_penalty=(0.01, 100), slide=(1, 1e9), stride=(0, 1e9), batch_size=(1, 1e9))

def parse(argv):
    """flags -> Config. Raises ValueError with one line on a user's mistake."""
    fields, words, values = {f.name: f for f in dataclasses.fields(Config)}, list(argv), {}
    while words:                                                           # --name=value, --name value, --name for booleans
        word = words.pop(0)
        if word in ('-h', '--help'):
            print(f'{__doc__.strip()}\n')
            for group in dict.fromkeys(g for g, _, _ in train.fields_of(Config)):
                print(group + '\n' + '\n'.join(f'  --{f.name}={f.default}'.ljust(29) + text for g, text, f in train.fields_of(Config) if g == group))
            raise SystemExit(0)
        if not word.startswith('--'): raise ValueError(f'unexpected argument {word!r}: flags are written --name=value (see --help)')
        name, eq, text = word[2:].partition('=')
        name = name.replace('-', '_')
        if name not in fields: raise ValueError(f'unknown flag --{name}{train.nearest(name, list(fields)).replace("mean ", "mean --")} (--help lists all)')
        kind = type(fields[name].default)
        if not eq and kind is bool and not (words and words[0].lower() in ('true', 'false')): text = 'true'
        elif not eq and (not words or words[0].startswith('--')): raise ValueError(f'--{name} needs a value: --{name}=...')
        elif not eq: text = words.pop(0)
        values[name] = train.value_of(name, kind, text)
    config = Config(**values)
    for name, choices in dict(dtype=('auto', *dtypes), compile=('auto', 'true', 'false')).items():
        if getattr(config, name) not in choices: raise ValueError(f'--{name}={getattr(config, name)}: expected one of {", ".join(choices)}')
    for name, (low, high) in ranges.items():
        if not low <= getattr(config, name) <= high: raise ValueError(f'--{name}={getattr(config, name)}: expected {low} ' + (f'to {high}' if high < 1e9 else 'or more'))
    return config


def run(config):
    path, device = config.init_from or config.out_dir, train.pick_device(config.device)
    if not config.init_from and not os.path.exists(path):
        have = sorted(d for d in glob.glob('out/*') if os.path.exists(os.path.join(d, 'ckpt.pt')))
        raise FileNotFoundError(f'no run in {path}: train one with python train.py --model=gpt' + ('' if path == Config.out_dir else f' --out_dir={path}')
                                + f', or give --init_from=CHECKPOINT or --out_dir=RUN (here: {", ".join(have) or "none"})')
    model, tokenizer = train.load_model(path)
    if config.tokenizer: tokenizer = bpe.load(config.tokenizer)
    if tokenizer is None: raise ValueError(f'{path} has no tokenizer: give one with --tokenizer=FILE (or a name, such as gpt2)')
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f'{path} has {model.config.vocab_size} token ids, the vocabulary {tokenizer.name} {tokenizer.vocab_size}: it is not the one of this model')
    _, can, use, words = next((u for u in uses if getattr(config, u[0])), uses[-1])
    if not can(model, sys.modules[type(model).__module__]): raise ValueError(f'{path}: {type(model).__module__}.py cannot {words}')
    dtype = dtypes.get(config.dtype) or (torch.bfloat16 if device.type == 'cuda' and torch.cuda.is_bf16_supported() and use is not evaluate else torch.float32)
    return use(model.to(device, dtype).eval(), tokenizer, config)


def main(argv=None):
    """Does what the flags say; -> dict: 'texts', or what --eval has measured."""
    return run(parse(sys.argv[1:] if argv is None else argv))


def cli():
    """main for the shell: a user's mistake is one line, and exit status 2 for a wrong flag, 1 for the rest"""
    status = 2
    try: config = parse(sys.argv[1:]); status = 1; run(config); sys.stdout.flush(); return
    except KeyboardInterrupt: error, status = 'stopped', 130
    except BrokenPipeError: os.dup2(os.open(os.devnull, os.O_WRONLY), 1); sys.exit(1)  # `| head` has seen enough
    except torch.OutOfMemoryError as e: error = f'out of memory ({str(e).splitlines()[0]}): lower --num_samples, --max_new_tokens or --batch_size'
    except (ValueError, OSError) as e: error = ' '.join(str(e).split()) or type(e).__name__
    if os.environ.get('TRACEBACK'): raise
    print(f'\nsample.py: {error}' if status == 130 else f'sample.py: {error}', file=sys.stderr)
    sys.exit(status)

if __name__ == '__main__': cli()
