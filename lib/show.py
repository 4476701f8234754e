"""What a model has learned, as a text that a person reads at the end of a run."""
import sys

import numpy as np
import torch
from torch.nn import functional as F

from lib import pairs
from lib.tasks import collate, in_words, label_names, predict, role


@torch.no_grad()
def show_gpt(model, tokenizer, ids, n_prompt=24, n_new=72, temperature=0.8):
    """The first tokens of ids and the model's own continuation, as text. Of instruction data, where
    ids are examples: two prompts and the likeliest responses."""
    training = model.training
    device = model.tokens.weight.device
    T = model.config.block_size
    answers = model.config.kind == 'instruct'
    if answers:
        prompts = [prompt_of(example) for example in ids[:2]]
    else:
        prompts = [ids[:min(n_prompt, max(1, T // 2))]]
    rng = torch.Generator().manual_seed(0)
    lines = []
    model.eval()
    for prompt in prompts:
        prompt = np.asarray(prompt[-max(1, T // 2, T - n_new):], np.int64)
        cache = model.cache(1, min(T, len(prompt) + n_new))
        next_ids = torch.from_numpy(prompt)[None]                          # (1, T), then (1, 1)
        new = []
        for _ in range(min(n_new, T - len(prompt))):
            logits = model.step(next_ids.to(device), cache).float().cpu()
            p = F.softmax(logits / temperature, dim=-1)
            if answers:
                next_ids = p.argmax(-1, keepdim=True)
            else:
                next_ids = torch.multinomial(p, 1, generator=rng)
            if answers and next_ids.item() == tokenizer.eot:
                break
            new.append(next_ids.item())
        lines.append(f'{tokenizer.decode(prompt.tolist())} >>> {tokenizer.decode(new)}')
    model.train(training)
    return '\n'.join(lines)


def prompt_of(example):
    """The ids of an example of instruction data before its first target"""
    first = next(t for t, target in enumerate(example['targets']) if target >= 0)
    return example['ids'][:first + 1]


@torch.no_grad()
def show_bert(model, tokenizer, ids, n=96):
    """Validation text with every seventh token or so hidden, and what the model puts there:
    [guess], or [guess|truth] where it is wrong. With another head: see show_examples."""
    c = model.config
    if isinstance(ids[0], dict):
        return show_examples(model, tokenizer, ids)
    if c.kind != 'text':
        return ''
    ids = np.asarray(ids[:min(n, c.block_size - 2)], np.int64)
    hidden = np.sort(np.random.default_rng(0).permutation(len(ids))[:max(1, len(ids) // 7)])
    row = np.concatenate(([role(c, 'cls')], ids, [role(c, 'sep')]))
    row[1 + hidden] = role(c, 'mask')
    logits = model.logits(on_device(row, model)[None])[0, 1 + hidden]
    guesses = dict(zip(hidden.tolist(), logits.argmax(1).tolist()))

    text = Text(tokenizer)
    for i, token in enumerate(ids.tolist()):
        if i not in guesses:
            text.token(token)
        elif guesses[i] == token:
            text.marked('[', guesses[i], ']')
        else:
            text.marked('[', guesses[i], ']', token)
    hits = sum(guesses[i] == ids[i] for i in guesses)
    return (f'{text.written()}\n    >>> {hits} of {len(guesses)} hidden tokens filled '
            'as they were: [guess], or [guess|truth]')


@torch.no_grad()
def show_electra(model, tokenizer, ids, n=96):
    """Validation text in which the generator (without one: chance) replaced every seventh token or
    so, and which tokens the discriminator takes for replaced: as many as there are, the likeliest
    ones, since a young discriminator gives few of them more than 0.5. With another head: see
    show_examples."""
    c = model.config
    if isinstance(ids[0], dict):
        return show_examples(model, tokenizer, ids)
    if not c.has_detector:
        return ''
    file = sys.modules[type(model.config).__module__]             # electra.py or a copy of it
    rng = np.random.default_rng(0)
    ids = np.asarray(ids[:min(n, c.block_size - 2)], np.int64)
    places = 1 + np.sort(rng.permutation(len(ids))[:max(1, len(ids) // 7)])
    old = np.concatenate(([role(c, 'cls')], ids, [role(c, 'sep')]))
    new = old.copy()
    new[places] = role(c, 'mask')
    if c.has_generator:
        x = model.generator_hidden(on_device(new, model)[None])[0, places]             # (K, C)
        u = on_device(rng.integers(0, 2 ** 31, len(places)), model)
        new[places] = file.sample(model.generator.mlm(x), u).cpu()
    else:
        new[places] = rng.permutation(ids)[:len(places)]
    chance = file.replaced(model, on_device(new, model)[None])[0].cpu().numpy()[1:-1]
    old = old[1:-1]
    new = new[1:-1]
    fake = new != old
    flagged = np.zeros(len(fake), bool)
    flagged[np.argsort(-chance, kind='stable')[:fake.sum()]] = True

    text = Text(tokenizer)
    for token, shown, flag in zip(old.tolist(), new.tolist(), flagged):
        if token == shown and flag:
            text.marked('?', shown, '?')
        elif token == shown:
            text.token(token)
        elif flag:
            text.marked('[', shown, ']', token)
        else:
            text.marked('(', shown, ')', token)
    total = fake.sum()
    caught = (fake & flagged).sum()
    return (f'{text.written()}\n    >>> {caught} of {total} replaced tokens caught '
            f'among the {total} likeliest: [new|old] caught, (new|old) missed, '
            f'?token? {total - caught} false alarms; '
            f'{(chance > 0.5).sum()} have a probability over 0.5')


class Text:
    """Tokens one after another, some of them in marks. Runs of plain tokens are decoded together,
    for a character may take several."""

    def __init__(self, tokenizer):
        self.decode = tokenizer.decode
        self.text = ''
        self.run = []

    def token(self, token):
        self.run.append(token)

    def marked(self, left, token, right, truth=None):
        """token, or token|truth, between two marks"""
        word = self.decode([token])
        if truth is not None:
            word += '|' + self.decode([truth])
        self.text = f'{self.written()}{left}{word}{right}'
        self.run = []

    def written(self):
        return self.text + self.decode(self.run)


@torch.no_grad()
def show_examples(model, tokenizer, rows):
    """Examples with labels: the last part of each, the prediction and the truth."""
    c = model.config
    arrays = [on_device(a, model) for a in collate(rows, c)]
    lines = []
    for row, found in zip(rows, predict(model, arrays, rows, tokenizer)):
        text = tokenizer.decode((row['choices'][0] if 'choices' in row else row)['ids'])
        said = found.get('name', found['prediction'])
        lines.append(f'{text[-400:]}\n    >>> {said} (truth: {truth_of(row, c)})')
    return '\n'.join(lines)


def truth_of(row, config):
    """What a prediction should be, classes in words if they have names"""
    if config.kind == 'qa':
        if not row['start']:
            return ''
        start, _ = row['spans'][row['start'] - row['first']]
        _, end = row['spans'][row['end'] - row['first']]
        return row['context'][start:end]
    truth = row.get('label')
    if config.kind == 'tagged':
        truth = [tag for tag in row['tags'] if tag >= 0]
    names = label_names(config)
    return in_words(truth, names) if names else truth


def on_device(array, model):
    return torch.from_numpy(array).to(next(model.parameters()).device)


class SeededRow:
    """The random numbers of one row, as a model file's batch() asks for them."""

    def __init__(self, seed):
        self.generator = np.random.default_rng(seed)

    def random(self, *shape):
        return self.generator.random((1, *shape))


@torch.no_grad()
def show_t5(model, tokenizer, ids):
    """ids: (L,) tokens, or rows of kind pairs -> what the encoder reads, what the model writes, and
    what was expected."""
    file = sys.modules[type(model.config).__module__]                     # t5.py, or a copy of it
    config = model.config
    training = model.training
    model.eval()
    if config.kind == 'text':
        text = np.asarray(ids, np.int64)[None]
        batches = [file.batch(lambda n: text[:, :n], config, SeededRow(0))]
    else:
        batches = [pairs.collate([row], config) for row in ids[:4]]
    shown = [answer_of(file, model, tokenizer, arrays) for arrays in batches]
    model.train(training)
    return '\n'.join(shown)


def answer_of(file, model, tokenizer, arrays):
    """The arrays of one row -> its source, what the model writes, and the target. Of spans the
    source has the fillings in their places: [filling], or [filling|truth] where it is wrong."""
    config = model.config
    device = model.tokens.weight.device
    source = torch.from_numpy(arrays[0]).to(device)
    mask = torch.from_numpy(arrays[1]).to(device) if len(arrays) > 2 else None
    targets = arrays[-1][0]
    written = file.generate(model, source, mask, max_new_tokens=targets.size)[0].tolist()
    expected = targets[targets >= 0].tolist()

    read = arrays[0][0] if mask is None else arrays[0][0][arrays[1][0]]
    eot = config.eot_id if config.kind == 'pairs' else -1          # text is shown with its end
    text = pairs.text_of(read.tolist(), tokenizer, eot)
    if config.kind == 'text' and config.objective == 'spans':
        return filled_gaps(text, config, tokenizer, written, expected)
    return (f'{text}\n  >>> {pairs.text_of(written, tokenizer, config.eot_id)!r}\n'
            f'  was {pairs.text_of(expected, tokenizer, config.eot_id)!r}')


def filled_gaps(text, config, tokenizer, written, expected):
    """The text with [filling] or [filling|truth] in the place of each sentinel, and how many of
    them are right."""
    fillings = pieces(written, config, tokenizer)
    truth = pieces(expected, config, tokenizer)
    right = sum(fillings.get(sentinel) == was for sentinel, was in truth.items())
    for sentinel, was in truth.items():
        filling = fillings.get(sentinel, '')
        shown = f'[{filling}]' if filling == was else f'[{filling}|{was}]'
        text = text.replace(tokenizer.decode([sentinel]), shown, 1)
    return (f'{text}\n  >>> {right} of {len(truth)} gaps filled as they were: '
            '[filling], or [filling|truth]')


def pieces(ids, config, tokenizer):
    """What stands behind each sentinel of a target, {sentinel: text up to the next or the end}."""
    sentinels = [config.sentinel(i) for i in range(config.n_sentinel)]
    starts = [k for k, i in enumerate(ids) if i in sentinels]
    end = ids.index(config.eot_id) if config.eot_id in ids else len(ids)
    found = {}
    for a, b in zip(starts, [*starts[1:], end]):
        # decoded behind its sentinel: alone it may lose the space that it begins with
        sentinel = tokenizer.decode(ids[a:a + 1])
        found[ids[a]] = tokenizer.decode(ids[a:b]).removeprefix(sentinel)
    return found


by_family = {  # family of a model file -> function: show(model, tokenizer, ids) -> text
    'gpt': show_gpt,
    'bert': show_bert,
    'electra': show_electra,
    't5': show_t5,
}
