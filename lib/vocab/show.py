"""Shows how a tokenizer cuts a text, for a terminal."""

COLOURS = (153, 194, 223, 218, 189, 229)  # of a terminal's 256
END = '\033[0m'


def show(tokenizer, text, colour):
    """Prints the text cut into its tokens, then their ids, each token and its id in one colour."""
    ids = tokenizer.encode(text)
    cells = [printable(tokenizer.tokens[i]) for i in ids]
    if colour:
        starts = [f'\033[30;48;5;{c}m' for c in COLOURS]
        paint = [starts[n % len(starts)] for n in range(len(ids))]
        print(''.join(f'{start}{cell}{END}' for start, cell in zip(paint, cells)))
        print(' '.join(f'{start}{i}{END}' for start, i in zip(paint, ids)))
    else:
        print(''.join(f'{cell}|' for cell in cells))
        print(*ids)


def printable(token):
    """A token's bytes as characters that can be shown; a new line is marked, then begun."""
    out = ''
    for c in token.decode('utf-8', 'backslashreplace'):
        if c.isprintable():
            out += c
        elif c == '\n':
            out += '⏎\n'
        else:
            out += c.encode('unicode_escape').decode()
    return out
