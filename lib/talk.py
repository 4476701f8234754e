"""Text in, text out: continuations of a prompt, and the conversation that a chat hears."""
import codecs
import sys
import time

import torch

from lib import generate, models
from lib.inputs import file_of, read_prompt


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
    for text in generate.stream(model, torch.tensor([ids] * rows), config.max_new_tokens, seed=seed, vocab_size=tokenizer.vocab_size,
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
