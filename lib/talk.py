"""Text in, text out: continuations of a prompt, and the conversation that a chat continues."""
import codecs
import sys
import time

import torch

from lib import generate
from lib import models
from lib.inputs import model_file
from lib.inputs import read_prompt

BEFORE = 8  # ids of the prompt that the first new ones are decoded with
READ_INTERVAL = 16        # tokens of a GPU are read so many at a time, for reading waits for it


def start_ids(tokenizer, text):
    """The ids of a text as the beginning of a document: after the vocabulary's own start token, if
    it has one. Raises ValueError if there are none."""
    bos = getattr(tokenizer, 'bos', None)
    eot = tokenizer.eot
    ids = tokenizer.encode(text, special=True)
    if bos not in (None, eot) and ids[:1] != [bos]:
        ids = [bos] + ids
    if ids:
        return ids
    if eot is None:
        raise ValueError('nothing to start from: this vocabulary has no end-of-text token; '
                         'give --prompt=TEXT')
    return [eot]


def visible(tokenizer, before, ids, stop='', final=True):
    """The text of ids, which follow the ids `before` -> (text, whether it has ended).

    It ends before the text `stop`. As long as more may come (not final), half a character and what
    may become `stop` are held back.
    """
    data = tokenizer.decode_bytes([*before, *ids])
    data = data[len(tokenizer.decode_bytes(before)):]
    text = codecs.getincrementaldecoder('utf-8')('replace').decode(data, final)
    if stop and stop in text:
        return text[:text.index(stop)], True
    if not final:
        for n in range(len(stop) - 1, 0, -1):
            if text.endswith(stop[:n]):
                return text[:-n], False
    return text, False


class Sample:
    """One continuation, while it is made."""

    def __init__(self):
        self.ids = []
        self.text = ''  # as far as it has been asked for
        self.ended = False

    def add(self, ids, eot):
        """More ids. At the id `eot` it ends."""
        self.ids += ids
        if eot in self.ids:
            self.ids = self.ids[:self.ids.index(eot)]
            self.ended = True

    def update_text(self, tokenizer, before, stop, final):
        """-> what is new of the text since the last call"""
        shown = len(self.text)
        self.text, stopped = visible(tokenizer, before, self.ids, stop, final or self.ended)
        self.ended = self.ended or stopped
        return self.text[shown:]


def continuations(model, tokenizer, prompt, config, rows, seed, show=None):
    """Continues a text, or the messages of a conversation, `rows` times -> (texts, a line on the
    speed). show(piece) gets the first one's text as it comes."""
    is_text = isinstance(prompt, str)
    if is_text:
        ids = start_ids(tokenizer, prompt)
        before = ids[-BEFORE:]
    else:
        ids = conversation_ids(model, tokenizer, prompt, config)
        before = []  # a message is decoded by itself
    if len(ids) > model.config.block_size:
        print(f'the prompt has {len(ids)} tokens; the model sees the last '
              f'{model.config.block_size} (block_size)', file=sys.stderr)
    device = next(model.parameters()).device
    stop = config.stop.replace(r'\n', '\n').replace(r'\t', '\t')
    eot = None if config.ignore_eot else tokenizer.eot
    samples = [Sample() for _ in range(rows)]

    def take(columns, final):
        for sample, more in zip(samples, columns):
            if sample.ended:
                continue
            sample.add(more, eot)
            shown = show and sample is samples[0]
            if stop or final or sample.ended or shown:  # else nobody asks for the text yet
                piece = sample.update_text(tokenizer, before, stop, final)
                if shown:
                    show(piece)

    options = {name: getattr(config, name) for name in (
        'temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty', 'cache', 'slide')}
    compile = config.compile == 'true' or config.compile == 'auto' and device.type == 'cuda'
    read_interval = 1 if show or device.type == 'cpu' else READ_INTERVAL
    began = time.perf_counter()
    first_after = 0.0  # seconds until the first token
    done = len(ids)  # tokens that have been taken
    for text in generate.stream(model, torch.tensor([ids] * rows), config.max_new_tokens, seed=seed,
                                vocab_size=tokenizer.vocab_size, compile=compile, **options):
        if text.size(1) - done < read_interval and done > len(ids):
            continue
        take(text[:, done:].tolist(), False)
        done = text.size(1)
        first_after = first_after or time.perf_counter() - began
        if all(sample.ended for sample in samples):
            break
    take(text[:, done:].tolist(), True)
    n = text.size(1) - len(ids)
    seconds = time.perf_counter() - began
    speed = (f'{rows} x {n} tokens in {seconds:.2f} s, {rows * n / seconds:.1f} tokens/s; '
             f'after a prompt of {len(ids)} tokens the first one came in {first_after:.2f} s')
    return [sample.text for sample in samples], speed


def opening(config):
    """The messages that a chat begins with."""
    system = read_prompt(config.system, 'system')
    if not system:
        return []
    return [dict(role='system', content=system)]


def conversation_ids(model, tokenizer, messages, config):
    """The ids of a conversation, up to where the model speaks.

    While it and an answer (of max_new_tokens, but at most half a window) do not fit into the
    window, the oldest message of the user and its answer are taken out of `messages`.
    """
    chat = models.chat_of(model_file(model))
    limit = model.config.block_size
    answer = min(config.max_new_tokens, limit // 2)
    while True:
        ids = chat(messages, tokenizer, model.config)
        asked = [i for i, message in enumerate(messages) if message['role'] == 'user']
        if len(asked) < 2 or len(ids) + answer <= limit:
            return ids
        oldest = messages[asked[0]]['content'][:60]
        print(f'forgotten, to make room: {oldest!r} and its answer', file=sys.stderr)
        del messages[asked[0]:asked[1]]
