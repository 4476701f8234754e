"""Fetches files from the network: resumed when broken off, checked, and in place only when whole.

    download('https://.../input.txt', 'data/downloads/shakespeare/input.txt', sha256='86c4e6aa...',
             max_bytes=4_000_000)
"""
import contextlib
import errno
import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request

try:
    import fcntl
except ImportError:         # Windows: no lock
    fcntl = None

BLOCK = 1 << 18             # bytes that are read from the network at once
BY_HAND = 'get the file by hand and run python data/NAME.py --source=FOLDER'


class Progress:
    """Shows how far a job is: one live line on a terminal, elsewhere a line every half minute.

    what: name of the job. total: bytes of all of it, 0 if they are not known
    """

    def __init__(self, what, total=0):
        self.what = what
        self.total = total
        self.start = time.time()
        self.shown = self.start
        self.live = sys.stderr.isatty()

    def __call__(self, done, last=False):
        """Shows how many bytes are done, unless a line was shown just before.

        last: show it in any case, as the end of the job
        """
        now = time.time()
        pause = 0.2 if self.live else 30
        if not last and now - self.shown < pause:
            return
        self.shown = now
        seconds = max(now - self.start, 1e-9)
        line = f'{self.what}: {done / 1e6:,.1f} MB'
        if last:
            line += f' in {seconds:.1f} s'
        elif self.total > done:
            left = seconds * (self.total / max(done, 1) - 1)
            line += f' of {self.total / 1e6:,.1f} ({done / self.total:.0%}), {left:,.0f} s left'
        line += f', {done / 1e6 / seconds:.1f} MB/s'
        if self.live:
            line = '\r\033[K' + line
        end = '' if self.live and not last else '\n'
        print(line, end=end, file=sys.stderr, flush=True)


def checksum(path):
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def receive(url, f, max_bytes):
    """Appends what is missing of url to the open file f.

    Returns the bytes that are there and those that are expected (0: the server does not say).
    Raises ValueError if there are more than max_bytes, and then empties the file.
    """
    have = f.seek(0, 2)
    headers = {'User-Agent': 'Mozilla/5.0 (flatformers)', 'Accept-Encoding': 'identity'}
    if have:
        headers['Range'] = f'bytes={have}-'
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as e:
        if e.code != 416 or not have:
            raise
        if (e.headers.get('Content-Range') or '').endswith(f'/{have}'):     # all of it was there
            return have, have
        f.truncate(0)
        return receive(url, f, max_bytes)
    with answer:
        span = answer.headers.get('Content-Range') or ''
        if answer.status == 206 and span.startswith(f'bytes {have}-'):
            total = int(span.rpartition('/')[2].replace('*', '0'))
        else:                                           # the server sends it from the beginning
            f.truncate(0)
            have = 0
            total = int(answer.headers.get('Content-Length') or 0)
        progress = Progress(f'fetching {os.path.basename(f.name).removesuffix(".part")}', total)
        while not max_bytes or max(have, total) <= max_bytes:
            block = answer.read(BLOCK)
            if not block:
                progress(have, last=True)
                return have, total
            have += f.write(block)
            progress(have)
    f.truncate(0)
    raise ValueError(f'{url}: {max(have, total):,} bytes, expected at most {max_bytes:,}: '
                     'it is not the right file, thrown away')


def try_once(url, f, max_bytes):
    """One try of receive(). Returns the bytes that are there, those expected, and what is wrong.

    Raises OSError if the disk is full, ValueError if the server sends another file.
    """
    try:
        have, total = receive(url, f, max_bytes)
        return have, total, f'the connection closed after {have:,} of {total:,} bytes'
    except ValueError as e:
        if isinstance(e, UnicodeError) or 'invalid literal' in str(e):
            raise ValueError(f'{url}: the server gives a size that is not a number: '
                             f'{BY_HAND}') from None
        raise
    except urllib.error.HTTPError as e:
        problem = f'{e.code} {e.reason}'
    except (OSError, http.client.HTTPException) as e:
        if isinstance(e, OSError) and e.errno == errno.ENOSPC:
            raise
        problem = str(getattr(e, 'reason', '') or e)
    return f.seek(0, 2), sys.maxsize, problem


def put_in_place(url, part, path, f, sha256):
    """Gives a complete file its name. Raises ValueError if its checksum is not sha256."""
    os.fsync(f.fileno())
    if sha256:
        digest = checksum(part)
        if digest != sha256:
            f.truncate(0)
            raise ValueError(f'{url}: checksum {digest[:16]}..., expected {sha256[:16]}...: '
                             f'thrown away; run it again, or {BY_HAND}')
    if not fcntl:                                       # Windows renames no open file
        f.close()
    os.replace(part, path)


def download(url, path, sha256='', max_bytes=0):
    """Fetches url to path, which appears only when it is whole and has the checksum. Returns path.

    What a broken connection or Ctrl-C leaves stays in path.part, and the next call goes on from
    there. Raises ConnectionError if the file cannot be reached, ValueError if it is another file
    than expected. max_bytes: 0 for any number
    """
    if os.path.exists(path):
        return path
    folder = os.path.dirname(path) or '.'
    os.makedirs(folder, exist_ok=True)
    part = path + '.part'
    best = 0
    with open(part, 'ab') as f:
        if fcntl:
            fcntl.flock(f, fcntl.LOCK_EX)               # of two runs one fetches, the other waits
        try:
            while not os.path.exists(path):
                have, total, problem = try_once(url, f, max_bytes)
                f.flush()
                if have >= total:
                    put_in_place(url, part, path, f, sha256)
                elif have <= best:                      # try again only while it brings us further
                    kept = f'{have:,} bytes are kept, run it again to go on, or ' if have else ''
                    raise ConnectionError(f'could not reach {url} ({problem}): {kept}{BY_HAND}')
                best = have
        finally:
            done = os.path.exists(path)
            if os.path.exists(part) and (done or not os.path.getsize(part)):
                os.remove(part)
            with contextlib.suppress(OSError):
                os.rmdir(folder)                        # if it is empty
    return path
