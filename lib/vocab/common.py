"""What all tokenizers and their readers share: patterns, bytes that can be printed, checks."""
import contextlib
import os

WORD = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERNS = {  # how the published vocabularies cut text; possessive (++) where it changes nothing but the time
    'gpt2': r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    'cl100k': r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
              r"|\s*[\r\n]|\s+(?!\S)|\s",
    'o200k': rf"[^\r\n\p{{L}}\p{{N}}]?{WORD % ('*', '+')}|[^\r\n\p{{L}}\p{{N}}]?{WORD % ('+', '*')}|\p{{N}}{{1,3}}"
             r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    'words': r'\S+',  # for WordPiece and Unigram, which look at words without their spaces
}
MOST = 1 << 22  # ids of a vocabulary; the largest published ones have a sixteenth of it

BYTES = sorted(range(256), key=lambda b: (not chr(b).isprintable() or b == 32, b))  # GPT-2's order
VISIBLE = {b: chr(b) if rank < 188 else chr(256 + rank - 188) for rank, b in enumerate(BYTES)}  # as GPT-2 spells them
INVISIBLE = {c: b for b, c in VISIBLE.items()}


def visible(token):  # b' the' -> 'Ġthe'
    return ''.join([VISIBLE[b] for b in token])


def invisible(token):  # 'Ġthe' -> b' the'
    return bytes([INVISIBLE[c] for c in token])


def utf8(text):
    """Bytes of a string; a lone surrogate becomes U+FFFD, as in tiktoken."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace').encode()


ROLES = {'eot': ['<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>', '[SEP]'], 'pad': ['<|pad|>', '[PAD]', '<pad>'],
         'cls': ['<|cls|>', '[CLS]', '<s>'], 'sep': ['<|sep|>', '[SEP]', '</s>'],
         'mask': ['<|mask|>', '[MASK]', '<mask>'], 'unk': ['<|unk|>', '[UNK]', '<unk>'],
         'bos': ['<|begin_of_text|>', '<s>', '<bos>', '<|endoftext|>']}


def check_id(i, token):  # a table as long as the largest id is made
    if type(i) is not int or not 0 <= i < MOST:
        raise ValueError(f'the token {str(token)[:40]!r} has the id {str(i)[:40]}; '
                         f'expected a whole number under {MOST}')


def write(path, text):
    with open(path + '.tmp', 'w', encoding='utf-8') as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + '.tmp', path)


@contextlib.contextmanager
def reading(path):
    """Files come from anywhere: whatever goes wrong while one is understood is a ValueError of one line."""
    try:
        yield
    except OSError:
        raise
    except BaseException as e:  # tiktoken's PanicException is no Exception
        if not isinstance(e, Exception) and type(e).__name__ != 'PanicException':
            raise
        line, plain = ' '.join(str(e).split())[:200], type(e) is ValueError
        raise ValueError(f'{path}: {line}' if plain else f'{path}: damaged, or not a tokenizer '
                         f'({type(e).__name__}: {line})') from None


def added_token(text, i, special=True, sides=''):
    return {'id': i, 'content': text, 'single_word': False, 'lstrip': 'l' in sides, 'rstrip': 'r' in sides,
            'normalized': False, 'special': special}


def description(kind, **state):
    """What a tokenizer's dumps() writes as JSON. Every reader turns its file into one."""
    return {'format': 'flatformers tokenizer', 'version': 1, 'kind': kind, **state}
