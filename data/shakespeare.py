"""Tiny Shakespeare: 1.1 MB of plays, the first text of char-rnn and nanoGPT.

What: one document, the first nine tenths to train on and the rest for validation, as nanoGPT cuts
it. The default tokenizer has one id for each character (65 of them, and the special ones), so
losses compare with nanoGPT's character recipe.

    python data/shakespeare.py                      # then: python train.py --data=shakespeare
    python data/shakespeare.py --tokenizer=gpt2 --source=FOLDER   # with input.txt(.gz)
"""
import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import text

URL = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
SHA256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'


def prepare(tokenizer='char', vocab_size=8192, source='', out=''):
    """Makes data/shakespeare, running text. Returns the folder."""
    def write(folder, **tokenizing):
        path = text.fetch('input.txt', URL, 'shakespeare', source, SHA256, max_bytes=1 << 22)
        with text.reading(path), text.open_binary(path) as f:
            plays = f.read().decode()
        at = len(plays) * 9 // 10
        return text.write_text(folder,
                               lambda: text.pieces(plays[:at]),
                               lambda: text.pieces(plays[at:]),
                               total=len(plays.encode()), source=source or URL, **tokenizing)

    return text.make('shakespeare', write, tokenizer, vocab_size, 'char', out)


if __name__ == '__main__':
    text.script(prepare, __doc__)
