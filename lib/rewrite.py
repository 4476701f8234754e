"""A text for each text, with an encoder-decoder: translations, summaries, gaps filled."""
import re
import sys
import time

import torch

from lib.fill import after, fitted, tight
from lib.generate import packed
from lib.inputs import Spelled, coded, file_of, in_batches, inputs, report


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
