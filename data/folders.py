"""Makes a prepared folder: it appears when it is whole, and only one process makes it."""
import contextlib
import json
import os
import shutil
import sys

from data.download import checksum

try:
    import fcntl
except ImportError:         # Windows: no lock, so prepare data before you start several processes
    fcntl = None


def wait_for(lock, out):
    """Waits until no other process holds the lock."""
    if not fcntl:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f'waiting for the process that prepares {out}', file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def claim(out, new):
    """Makes the temporary folder `new`. Returns the open file that locks it; None if `out` exists.

    Raises FileExistsError if `out` exists but is not a prepared folder.
    """
    while not os.path.exists(os.path.join(out, 'meta.json')):
        if os.path.lexists(out) and (not os.path.isdir(out) or os.listdir(out)):
            raise FileExistsError(f'{out} exists and is not a prepared folder '
                                  '(it has no meta.json): move it away, or pass another --out')
        os.makedirs(new, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):    # renamed or removed just now: look again
            lock = open(os.path.join(new, '.lock'), 'w')
            claimed = False
            try:
                wait_for(lock, out)
                claimed = os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name))
                if claimed:
                    return lock
            finally:
                if not claimed:
                    lock.close()
    return None


@contextlib.contextmanager
def new_folder(out):
    """A temporary folder that becomes `out` if the block ends well, and is removed if not.

    Yields its path, or '' if `out` is there already. The lock lies in the temporary folder and ends
    with its process: other processes wait for it, and a killed one blocks nobody.
    """
    out = out.rstrip('/')
    new = out + '.tmp'
    lock = claim(out, new)
    if lock is None:
        yield ''
        return
    try:
        for name in set(os.listdir(new)) - {'.lock'}:   # a killed run has left them
            os.remove(os.path.join(new, name))
        yield new
        for name in os.listdir(new):
            with open(os.path.join(new, name), 'rb+') as f:     # Windows syncs no file that is read
                os.fsync(f.fileno())
        if os.path.isdir(out):                          # an empty one
            os.rmdir(out)
        if not fcntl:                                   # Windows renames no folder in use
            lock.close()
        os.rename(new, out)
        os.remove(os.path.join(out, '.lock'))
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    finally:
        lock.close()


def finish(folder, tok, tag, meta):
    """Writes tokenizer.json and, with the checksums of all files, meta.json. Returns the meta."""
    tok.save(os.path.join(folder, 'tokenizer.json'))
    meta |= dict(version=1, tokenizer='tokenizer.json', name=tag, vocab_size=tok.vocab_size,
                 special=tok.special, eot=tok.eot)
    names = sorted(n for n in os.listdir(folder) if n != '.lock')
    meta['sha256'] = {n: checksum(os.path.join(folder, n)) for n in names}
    with open(os.path.join(folder, 'meta.json'), 'w') as f:
        json.dump(meta, f, indent=1)
    return meta
