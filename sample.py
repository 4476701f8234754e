"""Uses a trained model: continues your text, fills its gaps, rewrites, classifies and answers it, and measures.

    python sample.py --prompt="def main(" --num_samples=3            # continues the text with the model in out/gpt
    python sample.py --init_from=gpt2/ --eval=lm --text=book.txt     # perplexity and bits per byte of a Hugging Face folder
    python sample.py --interactive                                   # a prompt a line; Ctrl-C stops it, Ctrl-D leaves
    python sample.py --out_dir=out/gpt-instruct --interactive        # a chat, with a model tuned on instructions
    python sample.py --eval=hellaswag.jsonl                          # multiple choice, last words: see `evaluate`

    python sample.py --out_dir=out/bert --prompt="import [MASK]"     # the likeliest fillings of each gap
    python sample.py --out_dir=out/bert-sst2 --classify=reviews.txt  # labels, values, tags or choices, a text a line
    python sample.py --out_dir=out/bert-squad --context=page.txt --question="Who won?"       # the answer in the text
    python sample.py --init_from=bert/ --embed=lines.txt --out=vectors.npy                   # (lines, width) float32
    python sample.py --init_from=t5/ --prompt=FILE:lines.txt --beams=4 --out=german.txt      # a text in, a text out

A FILE has a text a line (two with a tab between, if the model was trained on pairs); one that ends in .jsonl an object a line, with the columns that train.py takes for such data
("text", "text_b", "tokens", "choices", "input", "target"). - stands for the lines of stdin. From Python: `sample.main([...])`
returns what it prints, `sample.generate(model, ids, 100)` continues ids (B, T), `sample.stream` does so token by token,
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
import codecs, collections, contextlib, dataclasses, functools, glob, json, math, os, re, signal, sys, time, types, weakref
from dataclasses import dataclass

if __name__ == '__main__':                                                 # Ctrl-C while torch is imported, which takes seconds
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b'\nsample.py: stopped\n'), os._exit(130)))

import numpy as np
import torch
from torch.nn import functional as F

import bpe, lora, train
from data import files
from lib import models


@dataclass
class Config:
    # the model
    out_dir: str = 'out/gpt'         # folder of a run of train.py
    init_from: str = ''              # or other weights: a .pt file or a Hugging Face folder
    lora: str = ''                   # an adapter for these weights: a folder of lora.save or peft, or a run with --adapter
    tokenizer: str = ''              # a vocabulary (file or name), for weights that come without
    device: str = 'auto'             # auto, cpu, cuda, cuda:1, mps
    dtype: str = 'auto'              # auto, bfloat16, float16, float32; auto: bfloat16 to write on CUDA, else float32
    compile: str = 'auto'            # torch.compile of the step of one token: auto (on CUDA), true, false
    # continue a text (gpt)
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
    interactive: bool = False        # ask for prompts and continue them; a chat, if the model was tuned on instructions
    system: str = ''                 # chat and its --prompt: what the model is told before, TEXT or FILE:path
    cache: bool = True               # false: compute the whole text anew for each token (slow; a check on the cache)
    slide: int = 1                   # past block_size, forget so many tokens at once; 1: as few as possible
    # evaluate
    eval: str = ''                   # lm: a text's likelihood; FILE.jsonl: multiple choice and last words
    text: str = ''                   # --eval=lm: the text, anything that train.py --data takes as your own text
    stride: int = 0                  # --eval=lm: tokens from one window to the next; 0: half of block_size
    delimiter: str = ' '             # --eval=FILE.jsonl: stands between two parts that have no white space there
    # text to text (t5): --prompt is a text, FILE:path or -, a text a line; a text with <extra_id_0> in it is filled
    beams: int = 1                   # beam search with so many; 1: greedy, or a draw if --temperature, --top_k or --top_p is given
    length_penalty: float = 1.0      # beams are compared by (log p) / tokens^this: over 1 favours long texts
    no_repeat_ngram: int = 0         # never write the same n tokens twice; 0: off
    metric: str = ''                 # bleu, rouge, exact_match, ...: compare with the "target" column of the file
    # read a text (bert, electra): --prompt with [MASK] is filled; with electra each token is doubted
    top: int = 5                     # so many fillings, labels or answers
    classify: str = ''               # TEXT, FILE or -: its label, value, tags or choice, whatever the model was fine-tuned for
    question: str = ''               # TEXT, FILE or -: to be answered out of --context
    context: str = ''                # TEXT or FILE, of any length
    answer: bool = False             # implied by --question
    embed: str = ''                  # TEXT, FILE or -: a vector a line into --out=FILE.npy, or how alike the lines are
    pool: str = 'mean'               # the vector of a text: mean of its last hidden states, or that of the first token: cls
    normalize: bool = False          # vectors of length 1
    # all but continuing
    batch_size: int = 32             # rows at a time; changes no result (but what is drawn)
    out: str = ''                    # write what would be printed to this file
    json: bool = False               # print JSON lines; also where --out ends in .jsonl

    given = ()                       # the flags that were typed

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


copies = weakref.WeakKeyDictionary()                                     # of Packed layers: what of, the copy

class Packed(torch.nn.Linear):
    """A linear layer on a CPU with a copy of its matrix as oneDNN lays it: a product with a few rows then takes a half to
    a quarter of F.linear's time, which reads the matrix at a third of the memory's bandwidth."""
    least = 2 ** 17                                                        # numbers in a matrix for which it pays
    def forward(self, x):
        W = self.weight
        if (W.numel() < self.least or not W.dtype == x.dtype == torch.float32 or torch.is_grad_enabled()
                or torch.compiler.is_compiling() or torch.is_autocast_enabled('cpu')): return super().forward(x)
        made_of = W.data_ptr(), 0 if W.is_inference() else W._version      # it may be trained between two calls
        if copies.get(self, (None,))[0] != made_of:
            copies[self] = made_of, torch.ops.mkldnn._reorder_linear_weight(W.detach(), x.numel() // x.size(-1))
        return torch.ops.mkldnn._linear_pointwise(x, copies[self][1], self.bias, 'none', [], '')


@contextlib.contextmanager
def packed(model):
    """While it lasts the linear layers of a model on a CPU are Packed; the copies stay for the next time."""
    cpu, matmul = next(model.parameters()).device.type == 'cpu', getattr(torch.backends.mkldnn, 'matmul', None)
    able = cpu and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')
    linears = [m for m in model.modules() if type(m) is torch.nn.Linear] if able else []
    before = getattr(matmul, 'fp32_precision', '')
    if able and before: matmul.fp32_precision = 'ieee'                     # see train.wide_products: slow for single rows
    for m in linears: m.__class__ = Packed
    try: yield
    finally:
        for m in linears: m.__class__ = torch.nn.Linear
        if able and before: matmul.fp32_precision = before


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
    with contextlib.nullcontext() if compile else packed(model):
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


def read_prompt(prompt, flag='prompt'):
    if prompt == '-': return sys.stdin.read()
    if not prompt.startswith('FILE:'):
        if os.path.isfile(prompt): print(f'--{flag}={prompt} is taken as a text; --{flag}=FILE:{prompt} reads the file', file=sys.stderr)
        elif flag == 'context' and re.fullmatch(r'\S+\.(jsonl|txt|tsv|md)', prompt): raise ValueError(f'--context={prompt}: No such file')
        return prompt
    try: return open(prompt[5:], encoding='utf-8', newline='').read()
    except UnicodeDecodeError as e: raise ValueError(f'--{flag}={prompt}: not UTF-8 text (byte {e.start})') from None
    except OSError as e: raise ValueError(f'--{flag}={prompt}: {e.strerror}') from None


def heard(model, tokenizer, messages, config):
    """The ids of a conversation, up to where the model speaks. While it and an answer (of max_new_tokens, but at most
    half a window) do not fit the window, the oldest message of the user and its answer go out of `messages`."""
    limit = model.config.block_size
    while True:
        ids = models.chat_of(file_of(model))(messages, tokenizer, model.config)
        asked = [i for i, m in enumerate(messages) if m['role'] == 'user']
        if len(asked) < 2 or len(ids) + min(config.max_new_tokens, limit // 2) <= limit: return ids
        print(f'forgotten, to make room: {messages[asked[0]]["content"][:60]!r} and its answer', file=sys.stderr)
        del messages[asked[0]:asked[1]]


def continuations(model, tokenizer, prompt, config, rows, seed, show=None):
    """-> texts of `rows` samples after the prompt, a text or messages, and a line on its speed. show(piece) gets the
    first row's text as it comes."""
    plain = isinstance(prompt, str)
    ids = start_ids(tokenizer, prompt) if plain else heard(model, tokenizer, prompt, config)
    before = ids[-8:] if plain else []                                     # a message is decoded by itself
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
            text, stopped = visible(tokenizer, before, new[r], stop, final or ended[r])
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


def opening(config, *said):
    """The messages that a chat begins with."""
    system = read_prompt(config.system, 'system')
    return [*([dict(role='system', content=system)] if system else []), *said]


def complete(model, tokenizer, config):
    """Prints the prompt with each of its continuations, a line of dashes between; the answers alone, if the model is
    one for chats. -> {'prompt', 'texts'}"""
    text, line, texts = read_prompt(config.prompt), '\n---------------\n', []
    prompt = shown = text
    if chats(model, file_of(model)):
        if not text.strip(): raise ValueError('nothing is asked: give --prompt=TEXT, or --interactive for a chat')
        prompt, shown = opening(config, dict(role='user', content=text.strip())), ''
    if not config.stream:
        texts, speed = continuations(model, tokenizer, prompt, config, config.num_samples, config.seed)
        print(line.join(shown + text for text in texts), flush=True)
        print(speed, file=sys.stderr)
    while len(texts) < config.num_samples:
        texts += speak(model, tokenizer, prompt, config, config.seed + len(texts), [])
        if len(texts) < config.num_samples: print(line[1:], end='')
    return dict(prompt=text, texts=texts)


def speak(model, tokenizer, prompt, config, seed, said):
    """One sample, shown as it is made, and put into the list `said`, which has what there is of it after a Ctrl-C."""
    def show(piece):
        said.append(piece)
        print(piece, end='', flush=True)
    if isinstance(prompt, str): print(prompt, end='', flush=True)
    texts, speed = continuations(model, tokenizer, prompt, config, 1, seed, show)
    print(flush=True)
    print(speed, file=sys.stderr)
    return texts


def converse(model, tokenizer, config):
    """A loop of prompts. Each stands for itself, unless the model is one for chats: then it hears all that was said
    since the beginning or /reset. -> {'texts'}, in a chat also the 'messages'"""
    with contextlib.suppress(ImportError): import readline                 # line editing and history of input()
    texts, ask, chat = [], '> ' if sys.stdin.isatty() else '', chats(model, file_of(model))
    messages = opening(config)
    more = '/reset forgets what was said, ' if chat else ''
    if ask: print(f'a prompt a line; {more}Ctrl-C stops the answer, Ctrl-D leaves', file=sys.stderr)
    while True:
        try: prompt = input(ask)
        except EOFError: break
        except KeyboardInterrupt: print(); continue
        said = []
        if chat and prompt.strip() == '/reset': messages = opening(config)
        if chat and prompt.strip() in ('', '/reset'): continue
        if chat: messages.append(dict(role='user', content=prompt.strip()))
        try: texts += speak(model, tokenizer, messages if chat else prompt, config, config.seed + len(texts), said)
        except KeyboardInterrupt: print(' ... stopped', flush=True)
        except ValueError as e: print(f'\n{e}', file=sys.stderr)           # such as a character unknown to the vocabulary
        if chat and ''.join(said): messages.append(dict(role='assistant', content=''.join(said)))
        elif chat: messages.pop()                                          # unanswered: as if it had not been said
    if ask: print()
    return dict(texts=texts, **(dict(messages=messages) if chat else {}))

# ---------------------------------------------------------------------------------------------------- lines in, lines out

def objects(path, lines, expected):
    """Lines of JSON -> (line number, dict) of each that is not empty"""
    for number, line in enumerate(lines, 1):
        if not line.strip(): continue
        try: item = json.loads(line)
        except (ValueError, RecursionError) as e: raise ValueError(f'{path} line {number}: not JSON ({str(e)[:80]}); expected {expected}') from None
        if not isinstance(item, dict): raise ValueError(f'{path} line {number}: a {type(item).__name__}; expected {expected}')
        yield number, item


def show_progress(done, total):
    if sys.stderr.isatty(): print(f'\r{done}/{total}', end='\r' if done < total else '\r\033[K', file=sys.stderr, flush=True)


def inputs(flag, value, columns, bare=True):
    """What --flag=value names -> [dict]. columns: names that a line of .jsonl must have, ?: may have, *: a list of texts.
    A plain line is the first of them; where there must be several texts, they stand with tabs between. bare: a path needs
    no FILE: in front."""
    from data import supervised
    path = value[5:] if value.startswith('FILE:') else \
        value if bare and (os.path.isfile(value) or re.fullmatch(r'\S+\.(jsonl|txt|tsv)', value)) else ''
    text, first = read_prompt(path and 'FILE:' + path or value, flag), columns.split()[0]
    lines = text.replace('\r\n', '\n').removesuffix('\n').split('\n') if path or value == '-' else [text]
    must = [c for c in columns.split() if '?' not in c and '*' not in columns]
    def plain(line):
        if len(must) < 2: return {first.strip('*'): line.split() if '*' in first else line}
        parts = line.split('\t')
        if len(parts) == len(must): return dict(zip(must, parts))
        raise ValueError(f'{path or "--" + flag}{f" line {lines.index(line) + 1}" * (len(lines) > 1)}: {len(parts)} text{"s" * (len(parts) > 1)}; '
                         f'expected {" and ".join(must)} with a tab between, or a .jsonl file with these columns')
    rows = dict(objects(path, lines, f'an object with {columns}') if path.endswith('.jsonl') else enumerate(map(plain, lines), 1))
    for number, row in rows.items():
        for name in (c.strip('?*') for c in columns.split() if '?' not in c or c.strip('?*') in row):
            texts = lambda x: isinstance(x, list) and all(isinstance(t, str) for t in x) and (x or name == 'tokens')
            supervised.need(row, name, path or f'--{flag}', number, *((texts, 'a list of strings') if name + '*' in columns else ()))
    if not rows: raise ValueError(f'--{flag}={value}: no lines')
    return [*rows.values()]


def report(records, config, text):
    """Prints the records, or writes them to --out: a line of JSON each, or text(record). -> {'records'}"""
    lines = [json.dumps(r, ensure_ascii=False) if config.json or config.out.endswith('.jsonl') else text(r) for r in records]
    if config.out: files.write_atomic(config.out, lambda f: f.write(''.join(line + '\n' for line in lines).encode()))
    else: print('\n'.join(lines), flush=True)
    return dict(records=records)


def file_of(model): return sys.modules[type(model).__module__]


class Spelled:
    """A tokenizer that reads the special tokens which are spelled out in a text."""
    def __init__(self, tokenizer): self.tokenizer = tokenizer
    def __getattr__(self, name): return getattr(self.tokenizer, name)
    def encode(self, text): return self.tokenizer.encode(text, special=True)


def coded(model, tokenizer, examples, **changes):
    """examples -> rows as the model file makes them, and the Config for its batch(). Weights that come from elsewhere
    know their special tokens by the tokenizer only."""
    c = model.config
    ids = {f'{r}_id': getattr(tokenizer, r) for r in ('cls', 'sep', 'mask', 'pad') if getattr(tokenizer, r) is not None}
    c = dataclasses.replace(c, **{n: i for n, i in ids.items() if hasattr(c, n)}, **changes)
    rows = [dict(row, index=i) for i, e in enumerate(examples) for row in models.rows_of(file_of(model), c.kind).encode(e, tokenizer, c)]
    full = sum(any(len(x) >= c.block_size for x in lists(row)) for row in rows) if c.kind != 'qa' else 0
    if full: print(f'{full} of {len(rows)} texts fill block_size={c.block_size}: what is longer is cut', file=sys.stderr)
    return rows, c


def lists(x):
    """All lists of numbers in a row, whatever the model file calls them."""
    if isinstance(x, list) and x and isinstance(x[0], int): return [x]
    return [y for part in (x.values() if isinstance(x, dict) else x if isinstance(x, list) else ()) for y in lists(part)]


@torch.no_grad()
def in_batches(model, c, rows, batch_size, work):
    """work(tensors of batch(), rows) -> a list; all of these lists as one, in the order of the rows. Rows of a like length
    go together, the longest first, so that little is padding and memory runs out at once or never."""
    order = sorted(range(len(rows)), key=lambda i: -sum(map(len, lists(rows[i]))))
    out, file, device = [None] * len(rows), file_of(model), next(model.parameters()).device
    for a in range(0, len(rows), batch_size):
        some = [rows[i] for i in order[a:a + batch_size]]
        arrays = models.make_batch(file, types.SimpleNamespace(examples=lambda: some), c, None)
        found = work([torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in arrays], some)
        for i, y in zip(order[a:], found): out[i] = y
        if len(rows) > batch_size: show_progress(a + len(some), len(rows))
    return out

# ---------------------------------------------------------------------------------------------------- filling gaps

def spaced(tokenizer): return any(t[:1] == b' ' and t[1:2].isalpha() for t in tokenizer.tokens)   # ' the' is one token


def tight(tokenizer, text, marks):
    """The space in front of a gap belongs to the word that is missing, where words carry it."""
    return re.sub(f' ({marks})', r'\1', text) if spaced(tokenizer) else text


def after(tokenizer, ids, before):
    """The text of ids that stand after the id `before`, with the space that it may begin with."""
    return tokenizer.decode_bytes([before, *ids])[len(tokenizer.decode_bytes([before])):].decode('utf-8', 'replace')


def fitted(tokenizer, parts, pieces):
    """parts[0] pieces[0] parts[1] ... with the spaces that the words of this vocabulary ask for."""
    text = parts[0]
    for piece, part in zip(pieces, parts[1:]):
        if not spaced(tokenizer): pass
        elif not piece.startswith(' '): text = text.removesuffix(' ')      # goes on with a word, or closes a sentence
        elif not (text[-1:].isalnum() or text[-1:] == '_'): piece = piece[1:]
        text += piece + part
    return text


def fill(model, tokenizer, config):
    """The likeliest tokens for each [MASK], each by itself, and the text with the best ones."""
    if tokenizer.mask is None: raise ValueError(f'the vocabulary {tokenizer.name} has no mask token: nothing to fill')
    name, V = next(s for s, i in tokenizer.special.items() if i == tokenizer.mask), tokenizer.vocab_size
    texts = [row['text'].replace('[MASK]', name) for row in inputs('prompt', config.prompt, 'text', bare=False)]
    for text in texts:
        if name not in text: raise ValueError(f'--prompt={text[:60]}: no gap to fill; write [MASK] for each missing token')
    given = [dict(text=tight(tokenizer, t, re.escape(name)), label=0) for t in texts]
    rows, c = coded(model, Spelled(tokenizer), given, kind='labelled')
    def work(arrays, rows):
        holes, logits = arrays[0] == tokenizer.mask, model.logits(*arrays[:-1])                # (B, T), (B, T, V)
        best = [y[hole].float().softmax(-1)[:, :V].topk(min(config.top, V)) for y, hole in zip(logits, holes)]
        return [(p.tolist(), i.tolist()) for p, i in best]                 # (masks, top) each
    records, size = [], max(1, min(config.batch_size, 2 ** 27 // (c.block_size * c.vocab_size)))    # (B, T, V)
    for text, (p, ids) in zip(texts, in_batches(model, c, rows, size, work)):
        parts, pieces = text.split(name), [[after(tokenizer, [i], tokenizer.mask) for i in row] for row in ids]
        if len(pieces) != len(parts) - 1:
            raise ValueError(f'--prompt has {len(parts) - 1} masks, {len(pieces)} of them within block_size={c.block_size} tokens')
        masks = [[dict(token=t.strip() or t, probability=q) for t, q in zip(*both)] for both in zip(pieces, p)]
        for m, piece in zip(masks[0], pieces[0] if len(masks) == 1 else ()): m['text'] = fitted(tokenizer, parts, [piece])
        records.append(dict(prompt=text, masks=masks, text=fitted(tokenizer, parts, [row[0] for row in pieces])))
    def shown(r):
        seen = lambda t: t.replace('\n', '\\n').replace('\t', '\\t')       # a filling may be a line end
        line = lambda m: f'  {m["probability"]:.4f}  {seen(m["token"]):<16}  {seen(m.get("text", ""))}'.rstrip()
        lines = [x for n, row in enumerate(r['masks'], 1) for x in [f'mask {n}'] * (len(r['masks']) > 1) + [*map(line, row)]]
        return '\n'.join([r['prompt']] * (len(texts) > 1) + lines + [r['text']] * (len(r['masks']) > 1))
    return report(records, config, shown)


def detect(model, tokenizer, config):
    """ELECTRA's question, for each token: was it replaced? On a terminal the text, with the doubtful tokens in colour."""
    given = [dict(row, label=0) for row in inputs('prompt', config.prompt, 'text', bare=False)]
    rows, c = coded(model, Spelled(tokenizer), given, kind='labelled')
    if any('[MASK]' in row['text'] for row in given):
        print('note: a discriminator fills no gaps, [MASK] is plain text to it; its generator does: --export_hf=DIR writes DIR/generator',
              file=sys.stderr)
    def work(arrays, rows): return [*zip(arrays[0].tolist(), model.logits(*arrays[:-1]).float().sigmoid().tolist())]
    records, colour = [], sys.stdout.isatty() and not config.out
    for row, (ids, p) in zip(rows, in_batches(model, c, rows, config.batch_size, work)):
        n = max(map(len, lists(row))) - 1                                  # [CLS] text [SEP]
        records.append(dict(tokens=[after(tokenizer, ids[i:i + 1], ids[i - 1]) for i in range(1, n)], replaced=p[1:n]))
    paint = lambda t, p: f'\033[{41 if p >= 0.5 else 43};30m{t}\033[0m' if p >= 0.1 else t
    line = lambda t, p: f'{p:.4f}  {t.strip() or repr(t)}'
    return report(records, config, lambda r: ''.join(map(paint, *r.values())).strip() if colour else
                  '\n'.join(map(line, *r.values())) + '\n' * (len(records) > 1))


def write(model, tokenizer, config):
    """Encoder-decoders: a text for each text. Where the input has sentinels, the text with its gaps filled."""
    file, c, began = file_of(model), model.config, time.perf_counter()
    from data import metrics
    if config.metric and config.metric not in metrics.metrics:
        raise ValueError(f'--metric={config.metric}: expected one of {", ".join(metrics.metrics)}')
    examples = inputs('prompt', config.prompt, 'input target' if config.metric else 'input', bare=False)
    name = {i: s for s, i in {**tokenizer.added, **tokenizer.special}.items()}
    own = lambda m: name[tokenizer.sentinels[n]] if (n := int(m[1] or m[2])) < len(tokenizer.sentinels) else m[0]
    texts = [re.sub(r'<\|sentinel_(\d+)\|>|<extra_id_(\d+)>', own, e['input']) for e in examples]
    marks = '|'.join(re.escape(name[i]) for i in tokenizer.sentinels) or '(?!)'
    given = [dict(input=tight(tokenizer, t, marks), target='') for t in texts]
    rows, c = coded(model, Spelled(tokenizer), given, kind='pairs')
    drawn, device = {'temperature', 'top_k', 'top_p'} & set(config.given), next(model.parameters()).device
    options = {n: getattr(config, n) for n in ('temperature', 'top_k', 'top_p') if drawn}
    options.update(beams=config.beams, length_penalty=config.length_penalty, no_repeat_ngram=config.no_repeat_ngram,
                   generator=torch.Generator(device).manual_seed(config.seed),
                   step=lambda ids, cache: model.step(ids, cache)[:, :tokenizer.vocab_size])   # never an id without a text
    work = lambda arrays, rows: file.generate(model, *arrays[:2], config.max_new_tokens, **options).tolist()
    records, count = [], 0
    with packed(model): answers = list(in_batches(model, c, rows, config.batch_size, work))
    for e, text, ids in zip(examples, texts, answers):
        ids = ids[:ids.index(c.eot_id)] if c.eot_id in ids else ids
        records.append(dict(e, output=file.text_of(ids, tokenizer, c.eot_id)))
        cuts, count = [i for i, t in enumerate(ids) if t in tokenizer.sentinels] + [len(ids)], count + len(ids)
        pieces = {name[ids[a]]: after(tokenizer, ids[a + 1:b], ids[a]) for a, b in zip(cuts, cuts[1:])}
        parts = re.split(f'({marks})', text)                               # text, sentinel, text, ...
        if pieces.keys() & {*parts[1::2]}:
            records[-1]['filled'] = fitted(tokenizer, parts[::2], [pieces.get(m, m) for m in parts[1::2]])
    print(f'{len(records)} texts, {count} tokens in {time.perf_counter() - began:.2f} s', file=sys.stderr)
    result = report(records, config, lambda r: r.get('filled', r['output']).replace('\n', '\\n' if len(records) > 1 else '\n'))
    if config.metric:
        found = metrics.compute(config.metric, [r['output'] for r in records], [e.get('references') or e['target'] for e in examples])
        print(', '.join(f'{n} {v:.4f}' for n, v in found.items()), file=sys.stdout if config.out else sys.stderr)
        result |= found
    return result

# ---------------------------------------------------------------------------------------------------- reading

def trained_on(config):
    """-> the columns of the examples that a run was trained on, with ? where some lacked it; [] if nothing tells"""
    for path in (config.lora, config.init_from or config.out_dir):
        if os.path.isdir(path): path = '' if os.path.exists(os.path.join(path, 'config.json')) else os.path.join(path, 'ckpt.pt')
        if os.path.isfile(path): return train.load_checkpoint(path).get('columns', '').split()
    return []


def classify(model, tokenizer, config):
    """Of each text the label and their probabilities, a value (regression), a tag for each word, or the right choice."""
    file, kind, labels = file_of(model), model.config.kind, getattr(model.config, 'labels', '')
    known, path = trained_on(config) if kind == 'labelled' else [], config.lora or config.init_from or config.out_dir
    columns = dict(labelled='text text_b' if 'text_b' in known else 'text text_b?', tagged='tokens*', choice='text choices*')[kind]
    names = json.loads(labels) if labels else [str(i) for i in range(model.config.n_labels)]
    try: examples = inputs('classify', config.classify, columns)
    except ValueError as e: raise ValueError(f'{e} ({path} was trained on pairs of texts)' if 'text_b' in known else e) from None
    if odd := [e['text'] for e in examples if 'text_b' in e and known and not {'text_b', 'text_b?'} & {*known}]:
        raise ValueError(f'--classify={config.classify}: {odd[0][:40]!r} has a "text_b", but {path} was trained on single texts: leave it out')
    rows, c = coded(model, tokenizer, [dict(e, label=0, tags=[0] * len(e.get('tokens', ()))) for e in examples])
    def work(arrays, rows):
        if kind == 'tagged': return [[names[i] for i in r['prediction']] for r in models.rows_of(file, kind).predict(model, arrays, rows, tokenizer)]
        y = model.logits(*arrays[:-1]).float()                             # (B, classes), (B, 1) or (B, choices)
        return y[:, 0].tolist() if kind == 'labelled' and not names else y.softmax(-1).tolist()
    records = []
    for e, y in zip(examples, in_batches(model, c, rows, config.batch_size, work)):
        e = {k: e[k] for k in ('text', 'text_b', 'tokens', 'choices') if k in e}
        records.append(dict(e, prediction=y))
        if kind == 'tagged' or kind == 'labelled' and not names: continue
        y = dict(sorted(zip(names if kind == 'labelled' else range(len(e['choices'])), y), key=lambda pair: -pair[1]))
        records[-1].update(prediction=next(iter(y)), probabilities=y)
    def shown(r):
        if kind == 'tagged': return '\n'.join(map('{}\t{}'.format, r['tokens'], r['prediction'])) + '\n' * (len(records) > 1)
        best = [f'{r["choices"][n] if kind == "choice" else n} {p:.4f}' for n, p in r.get('probabilities', {}).items()]
        return '\t'.join([', '.join(best[:config.top]) or f'{r["prediction"]:.4f}', *(r[k] for k in ('text', 'text_b') if k in r)])
    return report(records, config, shown)


def embed(model, tokenizer, config):
    """A vector a text: the mean of the last hidden states of its tokens, [CLS] and [SEP] counted, or that of [CLS]. Of lines
    with "text_b" the cosine of each pair, and how it goes with "label" if that is there (semantic similarity, STS-B)."""
    from data import metrics
    records = inputs('embed', config.embed, 'text text_b?')
    pairs = all('text_b' in row for row in records)
    texts = [row[side] for side in ('text', 'text_b')[:1 + pairs] for row in records]
    if not config.out and not pairs and not 1 < len(texts) <= 10:
        raise ValueError(f'--embed of {len(texts)} texts: give --out=vectors.npy (without it 2 to 10 texts are compared)')
    rows, c = coded(model, tokenizer, [dict(text=t, label=0) for t in texts], kind='labelled')
    def work(arrays, rows):
        x, mask = model.hidden(*arrays[:-1]).float(), arrays[2]            # (B, T, C), (B, T) bool or (B, 0): no padding
        if config.pool == 'cls': x = x[:, 0]
        else: x = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True) if mask.size(1) else x.mean(1)
        return (F.normalize(x, dim=-1) if config.normalize else x).cpu()
    vectors = torch.stack(in_batches(model, c, rows, config.batch_size, work))                 # (texts, C)
    if config.out:
        files.write_atomic(config.out, lambda f: np.save(f, vectors.numpy()))
        print(f'{config.out}: {len(vectors)} vectors of {vectors.size(1)} float32', file=sys.stderr)
        return dict(vectors=vectors.numpy())
    if pairs:
        for row, cosine in zip(records, F.cosine_similarity(*vectors.chunk(2)).tolist()): row['cosine'] = cosine
        result = report(records, config, lambda r: f'{r["cosine"]:7.4f}   {r["text"]} | {r["text_b"]}')
        if all(isinstance(row.get('label'), (int, float)) for row in records) and len(records) > 1:
            result |= metrics.correlations([row['cosine'] for row in records], [row['label'] for row in records])
            print(f'cosine and label: Spearman {result["spearman"]:.4f}, Pearson {result["pearson"]:.4f}', file=sys.stderr)
        return result
    alike = F.normalize(vectors, dim=-1) @ F.normalize(vectors, dim=-1).t()                    # cosines
    return report([dict(text=t, cosines=row) for t, row in zip(texts, alike.tolist())], config,
                  lambda r: ' '.join(f'{v:7.4f}' for v in r['cosines']) + '   ' + r['text'])


def answer(model, tokenizer, config):
    """The best span of the context for each question, and the next ones that other windows of it give. The score is the
    sum of the logits of its start and end, less those of no answer if the model knows that."""
    if not (config.question and config.context): raise ValueError('--answer needs --question=TEXT and --context=TEXT or FILE')
    questions = [row['question'] for row in inputs('question', config.question, 'question')]
    context = read_prompt('FILE:' * os.path.isfile(config.context) + config.context, 'context')
    rows, c = coded(model, tokenizer, [dict(context=context, question=q) for q in questions])
    rows_of = models.rows_of(file_of(model), c.kind)
    work = lambda arrays, rows: rows_of.predict(model, arrays, rows, tokenizer)
    found = sorted(in_batches(model, c, rows, config.batch_size, work), key=lambda r: -r['score'])
    best = [{} for _ in questions]
    for r in found: best[r['index']].setdefault(r['prediction'], r['score'])                   # windows overlap: once each
    records = [dict(question=q, answers=[dict(text=t, score=s) for t, s in [*b.items()][:config.top]])
               for q, b in zip(questions, best)]
    return report(records, config, lambda r: '\n'.join([r['question']] * (len(records) > 1) + [
        f'{a["score"]:8.3f}  {a["text"] or "(no answer)"}' for a in r['answers']]))

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
        if progress: show_progress(done, len(order))
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
    for number, item in objects(path, lines, expected):
        wrong = ''
        if 'choices' in item:
            choices, gold = item['choices'], item.get('gold')
            if not (isinstance(item.get('query'), str) and isinstance(choices, list) and choices and all(map(full, choices))):
                wrong = '"query" is no text, or "choices" no list of texts'
            elif type(gold) is not int or not 0 <= gold < len(choices): wrong = f'"gold" is {gold!r} with {len(choices)} choices'
        elif not isinstance(item.get('context'), str) or not full(item.get('continuation')): wrong = f'has {", ".join(item) or "nothing"}'
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

def writes(model, file): return hasattr(file, 'generate')                 # a source in, a text out
def chats(model, file): return models.chat_of(file) is not None and getattr(model.config, 'kind', '') == 'instruct'
def continues(model, file):
    return not writes(model, file) and not chats(model, file) and (hasattr(model, 'step') or likelihoods(model, file))
def likelihoods(model, file): return getattr(file, 'likelihood', False)    # logits(ids) are those of the next token
def encodes(model, file): return hasattr(model, 'hidden') and 'labelled' in getattr(file, 'kinds', ()) and not hasattr(model, 'step')
def is_for(*kinds): return lambda model, file: encodes(model, file) and model.config.kind in kinds
def detects(model, file):                                                  # logits (B, T): was this token replaced?
    return is_for('text')(model, file) and getattr(model.config, 'has_detector', getattr(file, 'detects', False))
def fills(model, file): return is_for('text')(model, file) and not detects(model, file)

# The first line whose flag is given and whose condition holds: the flag, what a model must offer, the use, words for it,
# the further flags that it takes, how to get such a model. A use is a function of (model, tokenizer, config) that prints,
# and returns a dict.
Use = collections.namedtuple('Use', 'flag can run words takes how', defaults=[''])
tuned = 'python train.py --init_from={} --data='
drawing = 'temperature top_k top_p max_new_tokens seed '
playing = drawing + 'num_samples min_p repetition_penalty stop ignore_eot stream cache slide'
uses = [Use('eval', likelihoods, evaluate, 'tell the likelihood of a text', 'text stride delimiter batch_size'),
        Use('interactive', continues, converse, 'continue a text', playing),
        Use('interactive', chats, converse, 'chat', playing + ' system'),
        Use('classify', is_for('labelled', 'tagged', 'choice'), classify, 'classify', 'top batch_size out json', tuned + 'LABELLED.jsonl'),
        Use('answer', is_for('qa'), answer, 'answer questions', 'question context top batch_size out json', tuned + 'squad'),
        Use('embed', encodes, embed, 'give vectors', 'pool normalize batch_size out json'),
        Use('prompt', continues, complete, 'continue a text', playing),
        Use('prompt', chats, complete, 'answer a prompt', playing + ' system'),
        Use('prompt', writes, write, 'answer a text', drawing + 'beams length_penalty no_repeat_ngram metric batch_size out json'),
        Use('prompt', detects, detect, 'find replaced tokens', 'batch_size out json'),
        Use('prompt', fills, fill, 'fill in [MASK]', 'top batch_size out json')]


def choose(config, path, model, file):
    """-> the Use that the flags ask for"""
    able = [u for u in uses if u.can(model, file)]
    asked = next((u.flag for u in uses if getattr(config, u.flag)), '')
    here = f'{path}: {file.__name__}.py' + (f' (kind={model.config.kind})' if hasattr(model.config, 'kind') else '')
    words = dict.fromkeys(u.words for u in able)
    offers = ', '.join(f'{w} ({", ".join("--" + u.flag for u in able if u.words == w)})' for w in words) or 'none of what sample.py does'
    use = next((u for u in able if asked == u.flag or not asked and u.run is complete), None)  # no prompt: a new document
    if use is None and not asked: raise ValueError(f'{here}: nothing asked for; it can {offers}')
    if use is None:
        some = [u for u in uses if u.flag == asked]
        how = f': first {some[0].how.format(path)}' if some[0].how else ''
        raise ValueError(f'{here} cannot {" or ".join(u.words for u in some)}{how}; it can {offers}')
    fit = {use.flag, *use.takes.split(), *(f.name for group, _, f in train.fields_of(Config) if group == 'the model')}
    if odd := [n for n in config.given if n not in fit]:
        raise ValueError(f'--{odd[0]} does not go with --{use.flag} on {file.__name__}.py, which takes --{" --".join(use.takes.split())}')
    return use

# ---------------------------------------------------------------------------------------------------- the command line

dtypes = dict(bfloat16=torch.bfloat16, float16=torch.float16, float32=torch.float32)
ranges = dict(num_samples=(1, 1e9), max_new_tokens=(1, 1e9), temperature=(0, 1e9), top_k=(0, 1e9), top_p=(0, 1), min_p=(0, 1),
              repetition_penalty=(0.01, 100), slide=(1, 1e9), stride=(0, 1e9), batch_size=(1, 1e9), beams=(1, 1e9), top=(1, 1e9),
              no_repeat_ngram=(0, 1e9))

def parse(argv):
    """flags -> Config. Raises ValueError with one line on a user's mistake."""
    fields, given = train.fields_of(Config), train.split_flags(argv)
    if 'help' in given:
        print(f'{__doc__.strip()}\n')
        for group in dict.fromkeys(g for g, _, _ in fields):
            print(group + '\n' + '\n'.join(f'  --{f.name}={f.default}'.ljust(29) + text for g, text, f in fields if g == group))
        raise SystemExit(0)
    usual = {f.name: f.default for _, _, f in fields}
    for name in given:
        if name not in usual: raise ValueError(f'unknown flag --{name}{train.nearest(name, [*usual], "--")} (--help lists all)')
    config = Config(**{n: train.value_of(n, type(usual[n]), text) for n, text in given.items()})
    config.given, config.answer = tuple(given), config.answer or bool(config.question or config.context)
    if not os.path.isdir(folder := os.path.dirname(config.out) or '.'): raise ValueError(f'--out={config.out}: no folder {folder}')
    for name, choices in dict(dtype=('auto', *dtypes), compile=('auto', 'true', 'false'), pool=('mean', 'cls')).items():
        if getattr(config, name) not in choices: raise ValueError(f'--{name}={getattr(config, name)}: expected one of {", ".join(choices)}')
    for name, (low, high) in ranges.items():
        if not low <= getattr(config, name) <= high: raise ValueError(f'--{name}={getattr(config, name)}: expected {low} ' + (f'to {high}' if high < 1e9 else 'or more'))
    return config


def run(config):
    path, device = config.init_from or config.out_dir, train.pick_device(config.device)
    if not config.init_from and not os.path.exists(path):
        have = sorted(d for d in glob.glob('out/*') if os.path.exists(os.path.join(d, 'ckpt.pt')))
        raise FileNotFoundError(f'no run in {path}: train one with python train.py --model=gpt' + ('' if path == Config.out_dir else f' --out_dir={path}')
                                + f', or give --init_from=CHECKPOINT or --out_dir=RUN (here: {", ".join(have[:9]) or "none"}' + ' ...' * (len(have) > 9) + ')')
    if config.lora.endswith('.pt') or os.path.exists(os.path.join(config.lora, 'ckpt.pt')):    # a run, with the head that it made
        model, tokenizer = train.load_model(config.lora, base=path)
    else:
        model, tokenizer = train.load_model(path)
        if config.lora and lora.mergeable(lora.load(model, config.lora)): lora.merge(model, unload=True)
    if config.tokenizer: tokenizer = bpe.load(config.tokenizer)
    if tokenizer is None: raise ValueError(f'{path} has no tokenizer: give one with --tokenizer=FILE (or a name, such as gpt2)')
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f'{path} has {model.config.vocab_size} token ids, the vocabulary {tokenizer.name} {tokenizer.vocab_size}: it is not the one of this model')
    use = choose(config, path, model, file_of(model)).run
    half = use in (complete, converse, write) and device.type == 'cuda' and train.native_bf16()
    return use(model.to(device, dtypes.get(config.dtype) or (torch.bfloat16 if half else torch.float32)).eval(), tokenizer, config)


def main(argv=None):
    """Does what the flags say; -> dict: 'texts', 'records', or what --eval has measured."""
    return run(parse(sys.argv[1:] if argv is None else argv))


def cli():
    """main for the shell: a user's mistake is one line, and exit status 2 for a wrong flag, 1 for the rest"""
    status = 2
    try: config = parse(sys.argv[1:]); status = 1; run(config); sys.stdout.flush(); return
    except KeyboardInterrupt: error, status = 'stopped', 130
    except BrokenPipeError: os.dup2(os.open(os.devnull, os.O_WRONLY), 1); sys.exit(1)  # `| head` has seen enough
    except (MemoryError, RuntimeError) as e:
        if not train.out_of_memory(e): raise
        error = f'out of memory ({files.first_line(e)[:200]}): lower --num_samples, --max_new_tokens or --batch_size'
    except (ValueError, OSError) as e: error = ' '.join(str(e).split()) or type(e).__name__
    if os.environ.get('TRACEBACK'): raise
    print(f'\nsample.py: {error}' if status == 130 else f'sample.py: {error}', file=sys.stderr)
    sys.exit(status)

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli()
