"""
How often does each chunk of a text occur? Texts of any length are read in blocks, and counted on
all cores.
"""
import gzip
import multiprocessing
import os
import zlib
from collections import Counter
from itertools import chain, islice

import regex

from lib.vocab.common import PATTERNS

# Where a text may be cut without changing its chunks: in none of our patterns does a chunk hold a
# space after a character that is not white space, nor any white space after a letter or digit; and
# what follows such a place cannot change what is before it, since only chunks of pure white space
# look ahead.
CUT = regex.compile(r'(?<=\S) |(?<=[\p{L}\p{N}])\s')
BLOCK = 2 ** 18  # characters handed to a process or thread at once
READ = 2 ** 22  # characters read from a file at once
FEW_BLOCKS = 4  # with fewer, processes cost more than they save


def blocks(texts, cut, size=BLOCK):
    """
    Lists of strings with about `size` characters together.
    A long text is cut where the regular expression `cut` matches; None: never.
    """
    block = []
    held = 0
    for text in texts:
        at = 0
        while at < len(text):
            found = cut.search(text, at + size) if cut else None
            end = found.start() if found else len(text)
            block.append(text[at:end])
            held += end - at
            at = end
            if held >= size:
                yield block
                block = []
                held = 0
    if block:
        yield block


def read_texts(paths, pattern='gpt2'):
    """
    The text of files (also .gz), a few megabytes at a time where the pattern allows a cut. Raises
    ValueError if a file is no UTF-8 text, a damaged .gz or empty, OSError if it cannot be opened.
    """
    cut = CUT if pattern in PATTERNS else None
    size = READ if cut else -1
    for path in paths:
        opener = gzip.open if path.endswith('.gz') else open
        with opener(path, 'rt', encoding='utf-8', newline='') as f:
            empty = True
            rest = ''
            try:
                while part := f.read(size):
                    *done, rest = chain.from_iterable(blocks([rest + part], cut))
                    empty = False
                    yield from done
            except UnicodeDecodeError as e:
                raise ValueError(f'{path}: not UTF-8 text ({e.reason} at byte {e.start} '
                                 'of a block)') from None
            except (EOFError, gzip.BadGzipFile, zlib.error) as e:
                raise ValueError(f'{path}: damaged gzip file ({e})') from None
            if empty:
                raise ValueError(f'{path}: the file is empty')
            yield rest


def available_cores():
    """The cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_chunks(texts, pattern='gpt2', cores=0, progress=None):
    """
    {chunk: how often it occurs in texts}.

    texts: an iterable of strings, which is streamed to one process per core, or one string.
    pattern: a key of PATTERNS or a regular expression. cores: 0 for all. progress: a function that
    shows a line. Raises ValueError if the pattern is no regular expression or has a capturing
    group.
    """
    split = compiled(pattern)
    cores = cores or available_cores()
    texts = [texts] if isinstance(texts, str) else texts
    stream = blocks(texts, CUT if pattern in PATTERNS else None)
    head = list(islice(stream, FEW_BLOCKS))
    stream = chain(head, stream)
    if len(head) == FEW_BLOCKS and cores > 1 and hasattr(os, 'fork'):
        return count_on_cores(stream, split.pattern, cores, progress)
    count = Counter()
    for text in chain.from_iterable(stream):
        count.update(split.findall(text))
    return count


def compiled(pattern):
    """The regular expression that cuts text into chunks."""
    try:
        split = regex.compile(PATTERNS.get(pattern, pattern))
    except regex.error as e:
        raise ValueError(f'pattern {pattern!r} is neither one of {", ".join(PATTERNS)} '
                         f'nor a regular expression: {e}') from None
    if split.groups:
        raise ValueError(f'pattern {pattern!r} has a capturing group: '
                         'write (?:...) instead of (...)')
    return split


def count_on_cores(stream, pattern, cores, progress):
    """The counts of a stream of blocks, handed to the processes in turn."""
    context = multiprocessing.get_context('fork')
    pipes = []
    for _ in range(cores):
        ours, theirs = context.Pipe()
        context.Process(target=count_worker, args=(theirs, pattern), daemon=True).start()
        theirs.close()  # so that a worker's death is an error here, not a wait without end
        pipes.append(ours)
    seen = 0
    for i, block in enumerate(stream):
        # send waits while that worker is busy, so no more than a few blocks are ever held
        pipes[i % cores].send(block)
        seen += sum(map(len, block))
        if progress:
            progress(f'counting chunks: {seen / 1e6:.1f} M characters')
    for pipe in pipes:
        pipe.send(None)
    count = Counter()
    for pipe in pipes:
        count.update(pipe.recv())
    return count


def count_worker(pipe, pattern):
    """
    A process: counts the blocks that come through the pipe, until None comes, and sends the counts
    back.
    """
    count = Counter()
    chunks = regex.compile(pattern).findall
    try:
        for block in iter(pipe.recv, None):
            for text in block:
                count.update(chunks(text))
        pipe.send(dict(count))
    except (EOFError, OSError, KeyboardInterrupt):
        pass  # the parent is gone or was interrupted: leave without a word
