"""What the tests share: the project's root on the path, one thread a process, and a small prepared text."""
import os, sys

os.environ.setdefault('OMP_NUM_THREADS', '1')            # tiny models; and subprocesses that the tests start
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import pytest


@pytest.fixture(scope='session')
def corpus(tmp_path_factory):
    """A text file of about 60 kB with some structure to learn: sums in words, seeded."""
    import random
    rng, words = random.Random(5), 'zero one two three four five six seven eight nine ten'.split()
    lines = []
    for _ in range(1500):
        a, b = rng.randrange(6), rng.randrange(5)
        lines.append(f'{words[a]} plus {words[b]} is {words[a + b]}; {words[a + b]} minus {words[b]} is {words[a]}.')
    path = tmp_path_factory.mktemp('corpus') / 'sums.txt'
    path.write_text('\n'.join(lines) + '\n')
    return path


@pytest.fixture(scope='session')
def prepared(corpus, tmp_path_factory):
    """The same text as a prepared folder, in characters."""
    from data import text
    return text.prepare(str(corpus), tokenizer='char', out=str(tmp_path_factory.mktemp('prepared') / 'sums'))
