"""Fills gaps in a text, and finds tokens that were replaced."""
import re
import sys

from lib.inputs import Spelled, coded, in_batches, inputs, lists, report


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
