"""Continues token ids with a causal model: choosing a token, the cache, the loop of one token after another."""
import contextlib
import functools
import math
import sys
import weakref

import torch


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
    if able and before: matmul.fp32_precision = 'ieee'                     # see lib/device.py: slow for single rows
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
