"""
What bpe.py and all readers share: patterns, roles of special tokens, bytes that can be printed,
checks of files.
"""
import contextlib
import os

# How the published vocabularies cut text into chunks. Possessive repeats (++) stand where they
# change nothing but the time that a search takes.
UPPER = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]'
LOWER = r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'
ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERNS = {
    'gpt2': r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    'cl100k': r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
              r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    'o200k': rf'[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDING}'
             rf'|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDING}|\p{{N}}{{1,3}}'
             r'| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+',
    'words': r'\S+',  # for WordPiece and Unigram, which look at words without their spaces
}

# The names of special tokens that play a role: the first one that a vocabulary has.
ROLES = {
    'eot': ['<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>', '[SEP]'],
    'pad': ['<|pad|>', '[PAD]', '<pad>'],
    'cls': ['<|cls|>', '[CLS]', '<s>'],
    'sep': ['<|sep|>', '[SEP]', '</s>'],
    'mask': ['<|mask|>', '[MASK]', '<mask>'],
    'unk': ['<|unk|>', '[UNK]', '<unk>'],
    'bos': ['<|begin_of_text|>', '<s>', '<bos>', '<|endoftext|>'],
}

MAX_IDS = 2 ** 22  # of a vocabulary; the largest published ones have a sixteenth of it

# GPT-2's files spell a byte as one printable character. The 188 bytes that are printable in Latin-1
# stand for themselves and come first; the other 68 are spelled with the characters from U+0100 on.
BYTES = sorted(range(256), key=lambda b: (not chr(b).isprintable() or b == 32, b))
N_PRINTABLE = 188
VISIBLE = {
    b: chr(b) if rank < N_PRINTABLE else chr(256 + rank - N_PRINTABLE)
    for rank, b in enumerate(BYTES)
}
INVISIBLE = {c: b for b, c in VISIBLE.items()}


def visible(token):
    """A token as GPT-2's files spell it: b' the' -> 'Ġthe'."""
    return ''.join([VISIBLE[b] for b in token])


def invisible(token):
    """The bytes that GPT-2's spelling stands for: 'Ġthe' -> b' the'."""
    return bytes([INVISIBLE[c] for c in token])


def utf8(text):
    """The bytes of a string. A lone surrogate becomes U+FFFD, as in tiktoken."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace').encode()


def description(kind, **state):
    """The dict that a tokenizer's dumps() writes as JSON. Every reader turns its file into one."""
    return {'format': 'flatformers tokenizer', 'version': 1, 'kind': kind, **state}


def added_token(text, i, special=True, sides=''):
    """
    An entry of the list "added_tokens" of a tokenizer.json.
    sides: 'l', 'r' or 'lr', where the token takes the white space beside it with it.
    """
    return {
        'id': i,
        'content': text,
        'single_word': False,
        'lstrip': 'l' in sides,
        'rstrip': 'r' in sides,
        'normalized': False,
        'special': special,
    }


def pattern_name(pattern):
    """The key of a pattern in PATTERNS, or the pattern itself if it is none of these."""
    for name, known in PATTERNS.items():
        if known == pattern:
            return name
    return pattern


def check_id(i, token):
    """Raises ValueError unless i can be an id. (A table as long as the largest id will be made.)"""
    if type(i) is not int or not 0 <= i < MAX_IDS:
        raise ValueError(f'the token {str(token)[:40]!r} has the id {str(i)[:40]}; '
                         f'expected a whole number under {MAX_IDS}')


@contextlib.contextmanager
def reading(path):
    """
    Files come from anywhere: whatever goes wrong while one is read becomes a ValueError of one
    line.
    """
    try:
        yield
    except OSError:
        raise
    except BaseException as e:
        # tiktoken's PanicException is no Exception, and neither is Ctrl-C, which goes through
        if not isinstance(e, Exception) and type(e).__name__ != 'PanicException':
            raise
        line = ' '.join(str(e).split())[:200]
        if type(e) is not ValueError:
            line = f'damaged, or not a tokenizer ({type(e).__name__}: {line})'
        raise ValueError(f'{path}: {line}') from None


def write(path, text):
    """Writes a file whole or not at all."""
    with open(path + '.tmp', 'w', encoding='utf-8') as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + '.tmp', path)
