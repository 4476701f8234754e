"""Continues token ids with a causal model: the choice of a token, the cache, and the loop of one
token after another.

A model needs logits(ids); with cache(rows, length) and step(ids, cache) a token costs one position.
The step can be compiled, see `advance`; on a CPU linear layers are packed, see `Packed`.

Papers: top-p Holtzman et al. 2020 (1904.09751), min-p Nguyen et al. 2024 (2407.01082), repetition
penalty Keskar et al. 2019 (1909.05858). Filters and their order are those of transformers.

Letters: B rows, T tokens, V vocabulary, K tokens that are left to choose from.
"""
import contextlib
import functools
import math
import sys
import weakref

import torch

# With a compiled step, lengths of caches are multiples of this: few shapes need few compilations.
GRAPH_LENGTH = 256
# A GPU is asked every 16 tokens whether all rows have ended, because the answer waits for it.
EOT_INTERVAL = 16


def round_up(n, multiple):
    return -(-n // multiple) * multiple


# ---- choosing a token

def filtered(logits, seen=None, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0,
             repetition_penalty=1.0):
    """Rules tokens out. logits: (B, V); seen: (B, V) bool, the tokens that the text already has,
    for the penalty.

    Returns logits (B, K) in fp32, -inf where a token is ruled out, and the tokens (B, K) that they
    belong to, the likeliest first; or logits of all V tokens and None.
    """
    logits = logits.float()
    if repetition_penalty != 1:
        less = torch.where(logits < 0, logits * repetition_penalty, logits / repetition_penalty)
        logits = torch.where(seen, less, logits)
    if temperature == 0:
        return logits, None
    logits = logits / temperature
    tokens = None
    if 0 < top_k < logits.size(-1):
        logits, tokens = logits.topk(top_k)  # (B, K) each
    elif top_p < 1:
        logits, tokens = logits.sort(descending=True)
    if top_p < 1:
        p = logits.softmax(-1)
        enough = p.cumsum(-1) - p >= top_p  # likelier tokens have that much already
        rest = logits[:, 1:].masked_fill(enough[:, 1:], -math.inf)
        logits = torch.cat((logits[:, :1], rest), dim=-1)
    if min_p > 0:  # p < min_p max(p), told by the logits
        least = logits.amax(-1, keepdim=True) + math.log(min_p)
        logits = logits.masked_fill(logits < least, -math.inf)
    return logits, tokens


def pick(logits, noise=None, seen=None, **options):
    """Draws a token for each row, or takes the likeliest where there is no noise. -> (B, 1)

    It is a race: token i arrives after noise / p, noise ~ Exp(1), and is first with probability p.
    The caller draws the noise (B, K), so that nothing here waits for the device, as
    torch.multinomial does.
    """
    logits, tokens = filtered(logits, seen, **options)
    if noise is not None:
        logits = logits.softmax(-1) / noise
    choice = logits.argmax(-1, keepdim=True)
    if tokens is None:
        return choice
    return tokens.gather(1, choice)


def advance(model, token, cache, noise, seen, vocab_size, options):
    """One more token, in one piece for torch.compile. token: (B, 1), the last one -> (B, 1), the
    next one"""
    logits = model.step(token, cache)[:, :vocab_size]
    token = pick(logits, noise, seen, **options)
    if seen is not None:
        seen.scatter_(1, token, True)
    return token


@functools.cache
def compiled():
    """`advance` as one CUDA graph."""
    return torch.compile(advance, mode='reduce-overhead', dynamic=False, fullgraph=True)


# ---- the cache

def tensors(x):
    """All tensors of a cache, whatever it is made of. They are its whole state; each has B rows
    first, or no rows."""
    if isinstance(x, torch.Tensor):
        return [x]
    if isinstance(x, dict):
        parts = x.values()
    elif isinstance(x, (list, tuple)):
        parts = x
    else:
        parts = getattr(x, '__dict__', {}).values()
    return [t for part in parts for t in tensors(part)]


def prefill(model, ids, length, cache=None):
    """Reads a prompt. ids: (B, T) -> logits of what comes next (B, V), and a cache that holds the
    prompt and has room for `length` tokens. A given cache is used again.

    If all rows are the same, as with several samples of one prompt, only one of them is computed.
    """
    rows = ids[:1] if (ids == ids[:1]).all() else ids
    fresh = model.cache(len(rows), length)
    logits = model.step(rows, fresh).expand(len(ids), -1)
    if cache is None and len(rows) == len(ids):
        return logits, fresh
    if cache is None:
        cache = model.cache(len(ids), length)
    for old, new in zip(tensors(cache), tensors(fresh)):
        old.copy_(new)  # one row becomes all
    return logits, cache


# ---- linear layers on a CPU

# Packed layer -> (the state of the matrix that was copied, the copy)
copies = weakref.WeakKeyDictionary()


class Packed(torch.nn.Linear):
    """A linear layer on a CPU with a copy of its matrix in the layout of oneDNN. A product with a
    few rows then takes a half to a quarter of F.linear's time, which reads the matrix at a third of
    the memory's bandwidth."""
    least = 2 ** 17  # elements of a matrix for which it pays

    def forward(self, x):
        W = self.weight
        plain = (W.numel() < self.least or not W.dtype == x.dtype == torch.float32
                 or torch.is_grad_enabled() or torch.compiler.is_compiling()
                 or torch.is_autocast_enabled('cpu'))
        if plain:
            return super().forward(x)
        version = 0 if W.is_inference() else W._version  # it may be trained between two calls
        state = (W.data_ptr(), version)
        if copies.get(self, (None,))[0] != state:
            rows = x.numel() // x.size(-1)
            copies[self] = state, torch.ops.mkldnn._reorder_linear_weight(W.detach(), rows)
        return torch.ops.mkldnn._linear_pointwise(x, copies[self][1], self.bias, 'none', [], '')


@contextlib.contextmanager
def packed(model):
    """Within it the linear layers of a model on a CPU are Packed. The copies are kept for the next
    time."""
    on_cpu = next(model.parameters()).device.type == 'cpu'
    matmul = getattr(torch.backends.mkldnn, 'matmul', None)
    able = (on_cpu and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, '_linear_pointwise'))
    linears = [m for m in model.modules() if type(m) is torch.nn.Linear] if able else []
    precision = getattr(matmul, 'fp32_precision', '')
    if able and precision:
        # lib/device.py may have set another precision, which is slow for single rows
        matmul.fp32_precision = 'ieee'
    for m in linears:
        m.__class__ = Packed
    try:
        yield
    finally:
        for m in linears:
            m.__class__ = torch.nn.Linear
        if able and precision:
            matmul.fp32_precision = precision


# ---- generating

def tokens_in(text, vocab_size):
    """text: (B, T) ids -> (B, V) bool: whether the text has the token. Ids from vocab_size on do
    not count."""
    seen = torch.zeros(len(text), vocab_size + 1, dtype=torch.bool, device=text.device)
    seen.scatter_(1, text.clamp(max=vocab_size), True)
    return seen[:, :vocab_size].contiguous()


@torch.no_grad()
def stream(model, ids, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0,
           repetition_penalty=1.0, seed=None, vocab_size=None, cache=True, slide=1, compile=False):
    """Yields ids (B, T + 1), (B, T + 2), ..., up to max_new_tokens more, on the model's device;
    they are views of one tensor.

    ids: (B, T), T >= 1, all of one length; the rows are independent. Tokens from vocab_size on are
    never chosen. slide: how many tokens are forgotten at a time when the text outgrows block_size.
    Raises ValueError if there are no ids, or if slide is not from 1 to block_size.
    """
    B, T = ids.shape
    V = min(vocab_size or model.config.vocab_size, model.config.vocab_size)
    limit = model.config.block_size
    if T < 1:
        raise ValueError('no ids to start from: give at least one, such as the end-of-text id')
    if not 1 <= slide <= limit:
        raise ValueError(f'slide={slide}: expected 1 to block_size={limit}')
    device = next(model.parameters()).device
    training = model.training
    use_cache = cache and hasattr(model, 'step')
    length = T + max_new_tokens  # tokens that a cache has room for
    if compile:
        length = round_up(length, GRAPH_LENGTH)
    length = min(limit, length)
    room = torch.zeros(B, max_new_tokens, dtype=ids.dtype, device=device)
    text = torch.cat((ids.to(device), room), dim=1)

    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                   repetition_penalty=repetition_penalty)
    rng = torch.Generator(device)
    rng.seed() if seed is None else rng.manual_seed(seed)
    noise = None
    if temperature:
        noise = torch.empty(B, top_k if 0 < top_k < V else V, device=device)
    seen = None
    if repetition_penalty != 1:
        seen = tokens_in(text[:, :T], V)

    step = compiled() if compile else advance
    cache = None  # holds text[:, start:end - 1]
    token = torch.empty(B, 1, dtype=torch.long, device=device)
    start = max(0, T - limit)
    with contextlib.nullcontext() if compile else packed(model):
        for end in range(T, T + max_new_tokens):  # the context is text[:, start:end]
            full = end - start > limit
            if full:
                start += slide
            if training:
                model.eval()  # it may be trained between two yields
            if noise is not None:
                noise.exponential_(generator=rng)
            if cache is None or full:
                context = text[:, start:end]
                if use_cache:
                    logits, cache = prefill(model, context, length, cache)
                else:
                    logits = model.logits(context)[:, -1]
                token.copy_(pick(logits[:, :V], noise, seen, **options))
                if seen is not None:
                    seen.scatter_(1, token, True)
                if compile and use_cache and end == T:
                    # written in place: CUDA graphs must know
                    for t in tensors([token, noise, seen, cache]):
                        torch._dynamo.mark_static_address(t, guard=False)
            else:
                args = model, token, cache, noise, seen, V, options
                try:
                    token.copy_(step(*args))
                except Exception as e:
                    if step is advance:
                        raise
                    print_compile_error(e)
                    step = advance
                    token.copy_(step(*args))
            if training:
                model.train()
            text[:, end] = token[:, 0]
            yield text[:, :end + 1]


def print_compile_error(error):
    why = str(error).splitlines()[0][:150]
    print(f'torch.compile failed, going on without it (slower): {why}', file=sys.stderr)


def generate(model, ids, max_new_tokens, eot=None, **options):
    """Continues ids (B, T) -> (B, T + n), n <= max_new_tokens.

    It ends when every row has had the id `eot`, which then fills the rest of its row. The options
    and their defaults are those of `stream`; temperature=0 is greedy.
    """
    T = ids.size(1)
    text = ids.to(next(model.parameters()).device)
    for text in stream(model, ids, max_new_tokens, **options):
        n = text.size(1) - T
        look = text.device.type == 'cpu' or n % EOT_INTERVAL == 0
        if eot is not None and look and (text[:, T:] == eot).any(1).all():
            break
    if eot is None:
        return text
    found = (text[:, T:] == eot).cumsum(1)  # (B, n): how many so far
    text = torch.cat((text[:, :T], text[:, T:].masked_fill(found > 0, eot)), dim=1)
    unfinished = int((found == 0).any(0).sum())  # columns in which some row goes on
    return text[:, :T + unfinished + 1]  # the first in which none does is the last
