"""Fills gaps in a text, and finds tokens that were replaced."""
import re
import sys

from lib.inputs import Columns
from lib.inputs import ReadsSpecial
from lib.inputs import longest
from lib.inputs import make_rows
from lib.inputs import map_batches
from lib.inputs import read_examples
from lib.inputs import report

LOGITS = 2 ** 27  # elements of the logits of a batch, at most
DOUBTFUL = 0.1            # probability of being replaced from which a token is painted yellow
REPLACED = 0.5            # and from which it is painted red


# ---- spaces

def words_begin_with_spaces(tokenizer):
    """Whether a space belongs to the word behind it: ' the' is one token."""
    return any(token[:1] == b' ' and token[1:2].isalpha() for token in tokenizer.tokens)


def give_space_to_gap(tokenizer, text, gap):
    """Takes away the space in front of a gap, where it belongs to the word that is missing.
    gap: a regular expression."""
    if not words_begin_with_spaces(tokenizer):
        return text
    return re.sub(f' ({gap})', r'\1', text)


def text_after(tokenizer, ids, before):
    """The text of ids that stand after the id `before`, with the space that it may begin with."""
    start = len(tokenizer.decode_bytes([before]))
    return tokenizer.decode_bytes([before, *ids])[start:].decode('utf-8', 'replace')


def join(tokenizer, parts, pieces):
    """parts[0] pieces[0] parts[1] ..., with the spaces that the words of this vocabulary need."""
    spaces = words_begin_with_spaces(tokenizer)
    text = parts[0]
    for piece, part in zip(pieces, parts[1:]):
        if spaces and not piece.startswith(' '):  # goes on with a word, or closes a sentence
            text = text.removesuffix(' ')
        elif spaces and not (text[-1:].isalnum() or text[-1:] == '_'):
            piece = piece[1:]
        text += piece + part
    return text


# ---- gaps

def fill(model, tokenizer, config):
    """The likeliest tokens for each [MASK], each by itself, and the text with the best ones."""
    if tokenizer.mask is None:
        raise ValueError(f'the vocabulary {tokenizer.name} has no mask token: nothing to fill')
    mask = next(name for name, i in tokenizer.special.items() if i == tokenizer.mask)
    examples = read_examples('prompt', config.prompt, Columns(('text',)), bare_path=False)
    texts = [example['text'].replace('[MASK]', mask) for example in examples]
    for text in texts:
        if mask not in text:
            raise ValueError(f'--prompt={text[:60]}: no gap to fill; '
                             'write [MASK] for each missing token')
    given = [dict(text=give_space_to_gap(tokenizer, text, re.escape(mask)), label=0)
             for text in texts]
    rows, c = make_rows(model, ReadsSpecial(tokenizer), given, kind='labelled')

    def likeliest(arrays, rows):
        """-> for each row the probabilities and the ids of the best tokens, (masks, top) each"""
        best = []
        k = min(config.top, tokenizer.vocab_size)
        for ids, logits in zip(arrays[0], model.logits(*arrays[:-1])):  # (T,), (T, V)
            p = logits[ids == tokenizer.mask].float().softmax(-1)
            p, tokens = p[:, :tokenizer.vocab_size].topk(k)
            best.append((p.tolist(), tokens.tolist()))
        return best

    batch_size = max(1, min(config.batch_size, LOGITS // (c.block_size * c.vocab_size)))
    records = []
    for text, (p, ids) in zip(texts, map_batches(likeliest, model, c, rows, batch_size)):
        parts = text.split(mask)
        if len(ids) != len(parts) - 1:
            raise ValueError(f'--prompt has {len(parts) - 1} masks, {len(ids)} of them '
                             f'within block_size={c.block_size} tokens')
        records.append(filled_record(tokenizer, text, parts, p, ids))
    return report(records, config, lambda record: show_fillings(record, len(records) > 1))


def filled_record(tokenizer, text, parts, probabilities, ids):
    """parts: the text between the gaps; probabilities, ids: of the best tokens, (masks, top)
    -> {'prompt', 'masks', 'text'}. If there is but one gap, each of its fillings has a 'text'."""
    masks = []
    pieces = []
    for mask_p, mask_ids in zip(probabilities, ids):
        pieces.append([text_after(tokenizer, [i], tokenizer.mask) for i in mask_ids])
        masks.append([dict(token=piece.strip() or piece, probability=p)
                      for piece, p in zip(pieces[-1], mask_p)])
    if len(masks) == 1:
        for filling, piece in zip(masks[0], pieces[0]):
            filling['text'] = join(tokenizer, parts, [piece])
    best = [row[0] for row in pieces]
    return dict(prompt=text, masks=masks, text=join(tokenizer, parts, best))


def show_fillings(record, many):
    """A record as text. many: there are others, so it begins with its prompt."""
    lines = []
    if many:
        lines.append(record['prompt'])
    for number, fillings in enumerate(record['masks'], 1):
        if len(record['masks']) > 1:
            lines.append(f'mask {number}')
        for filling in fillings:
            token = on_one_line(filling['token'])
            text = on_one_line(filling.get('text', ''))
            lines.append(f'  {filling["probability"]:.4f}  {token:<16}  {text}'.rstrip())
    if len(record['masks']) > 1:
        lines.append(record['text'])
    return '\n'.join(lines)


def on_one_line(text):
    return text.replace('\n', '\\n').replace('\t', '\\t')


# ---- replaced tokens

def detect(model, tokenizer, config):
    """ELECTRA's question, for each token: was it replaced? On a terminal it prints the text, with
    the doubtful tokens in colour."""
    examples = read_examples('prompt', config.prompt, Columns(('text',)), bare_path=False)
    given = [dict(example, label=0) for example in examples]
    rows, c = make_rows(model, ReadsSpecial(tokenizer), given, kind='labelled')
    if any('[MASK]' in example['text'] for example in given):
        print('note: a discriminator fills no gaps, [MASK] is plain text to it; its generator '
              'does: --export_hf=DIR writes DIR/generator', file=sys.stderr)

    def probabilities(arrays, rows):
        p = model.logits(*arrays[:-1]).float().sigmoid()  # (B, T)
        return list(zip(arrays[0].tolist(), p.tolist()))

    records = []
    for row, (ids, p) in zip(rows, map_batches(probabilities, model, c, rows, config.batch_size)):
        end = longest(row) - 1  # [CLS] text [SEP]
        tokens = [text_after(tokenizer, [ids[i]], ids[i - 1]) for i in range(1, end)]
        records.append(dict(tokens=tokens, replaced=p[1:end]))
    colour = sys.stdout.isatty() and not config.out

    def show(record):
        pairs = list(zip(record['tokens'], record['replaced']))
        if colour:
            return ''.join(painted(token, p) for token, p in pairs).strip()
        text = '\n'.join(f'{p:.4f}  {token.strip() or repr(token)}' for token, p in pairs)
        if len(records) > 1:
            text += '\n'  # an empty line between two texts
        return text

    return report(records, config, show)


def painted(token, p):
    """A token as a terminal shows it in the colour of its probability of being replaced."""
    if p < DOUBTFUL:
        return token
    background = 41 if p >= REPLACED else 43  # red, yellow
    return f'\033[{background};30m{token}\033[0m'
