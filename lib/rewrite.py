"""A text for each text, with an encoder-decoder: translations, summaries, gaps filled."""
import re
import sys
import time

import torch

from data import metrics
from lib.fill import give_space_to_gap
from lib.fill import join
from lib.fill import text_after
from lib.generate import packed
from lib.inputs import Columns
from lib.inputs import ReadsSpecial
from lib.inputs import make_rows
from lib.inputs import map_batches
from lib.inputs import model_file
from lib.inputs import read_examples
from lib.inputs import report

GAP = r'<\|sentinel_(\d+)\|>|<extra_id_(\d+)>'  # how a gap is written: our way, T5's


def write(model, tokenizer, config):
    """Encoder-decoders: a text for each text. Where the input has sentinels, the text with its
    gaps filled. -> {'records'}, and what --metric has measured"""
    file = model_file(model)
    eot = model.config.eot_id
    began = time.perf_counter()
    if config.metric and config.metric not in metrics.metrics:
        raise ValueError(f'--metric={config.metric}: expected one of {", ".join(metrics.metrics)}')
    columns = Columns(('input', 'target') if config.metric else ('input',))
    examples = read_examples('prompt', config.prompt, columns, bare_path=False)
    names = {i: name for name, i in {**tokenizer.added, **tokenizer.special}.items()}
    sentinels = [names[i] for i in tokenizer.sentinels]
    texts = [with_own_gaps(example['input'], sentinels) for example in examples]
    gap = '|'.join(map(re.escape, sentinels)) or '(?!)'  # (?!) is found nowhere
    given = [dict(input=give_space_to_gap(tokenizer, text, gap), target='') for text in texts]
    rows, c = make_rows(model, ReadsSpecial(tokenizer), given, kind='pairs')

    options = writing_options(model, tokenizer, config)

    def answers(arrays, rows):
        source, mask = arrays[:2]
        return file.generate(model, source, mask, config.max_new_tokens, **options).tolist()

    with packed(model):
        found = map_batches(answers, model, c, rows, config.batch_size)
    records = []
    n_tokens = 0
    for example, text, ids in zip(examples, texts, found):
        if eot in ids:
            ids = ids[:ids.index(eot)]
        n_tokens += len(ids)
        record = dict(example, output=tokenizer.decode(ids))
        filled = fill_gaps(tokenizer, text, gap, ids, names)
        if filled is not None:
            record['filled'] = filled
        records.append(record)
    seconds = time.perf_counter() - began
    print(f'{len(records)} texts, {n_tokens} tokens in {seconds:.2f} s', file=sys.stderr)

    line_end = '\\n' if len(records) > 1 else '\n'  # one line for each of many

    def show(record):
        return record.get('filled', record['output']).replace('\n', line_end)

    result = report(records, config, show)
    if config.metric:
        result |= measure(config, records)
    return result


def writing_options(model, tokenizer, config):
    """The options of the model file's generate. It draws if one of the flags for that is given."""
    drawing = ('temperature', 'top_k', 'top_p')
    options = {}
    if set(drawing) & set(config.given):
        options = {name: getattr(config, name) for name in drawing}

    def step(ids, cache):
        return model.step(ids, cache)[:, :tokenizer.vocab_size]  # never an id without a text

    device = next(model.parameters()).device
    return dict(options, beams=config.beams, length_penalty=config.length_penalty,
                no_repeat_ngram=config.no_repeat_ngram, step=step,
                generator=torch.Generator(device).manual_seed(config.seed))


def with_own_gaps(text, sentinels):
    """A text with each gap written as this vocabulary's sentinel of that number."""
    def own(match):
        number = int(match[1] or match[2])
        return sentinels[number] if number < len(sentinels) else match[0]
    return re.sub(GAP, own, text)


def fill_gaps(tokenizer, text, gap, ids, names):
    """The text with the pieces in its gaps that the ids have for them, each after its sentinel, or
    None if they have none. names: {id: special token}."""
    starts = [n for n, i in enumerate(ids) if i in tokenizer.sentinels]
    pieces = {}
    for start, end in zip(starts, starts[1:] + [len(ids)]):
        sentinel = ids[start]
        pieces[names[sentinel]] = text_after(tokenizer, ids[start + 1:end], sentinel)
    parts = re.split(f'({gap})', text)  # text, sentinel, text, ...
    gaps = parts[1::2]
    if not pieces.keys() & set(gaps):
        return None
    return join(tokenizer, parts[::2], [pieces.get(name, name) for name in gaps])


def measure(config, records):
    """Prints how far the outputs agree with the targets. -> {metric: number}"""
    outputs = [record['output'] for record in records]
    targets = [record.get('references') or record['target'] for record in records]
    found = metrics.compute(config.metric, outputs, targets)
    line = ', '.join(f'{name} {value:.4f}' for name, value in found.items())
    print(line, file=sys.stdout if config.out else sys.stderr)
    return found
