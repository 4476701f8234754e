"""Getting files from the network: resumed when broken off, checked, and in place only when whole.

    download('https://.../input.txt', 'data/downloads/shakespeare/input.txt', sha256='86c4e6aa...', max_bytes=4_000_000)
"""
import contextlib, errno, hashlib, http.client, os, sys, time, urllib.error, urllib.request

try: import fcntl
except ImportError: fcntl = None                         # Windows: no lock

class Progress:
    "one live line on a terminal; elsewhere a plain line every half minute, and the last"
    def __init__(self, what, total=0):
        self.what, self.total, self.start, self.shown, self.live = (
            what, total, time.time(), time.time(), sys.stderr.isatty())

    def __call__(self, done, last=False):
        now = time.time()
        if not last and now - self.shown < (0.2 if self.live else 30): return
        seconds, self.shown = max(now - self.start, 1e-9), now
        line = f'{self.what}: {done / 1e6:,.1f} MB'
        if last: line += f' in {seconds:.1f} s'
        elif self.total > done:
            line += (f' of {self.total / 1e6:,.1f} ({done / self.total:.0%}), '
                     f'{seconds * (self.total / max(done, 1) - 1):,.0f} s left')
        line += f', {done / 1e6 / seconds:.1f} MB/s'
        print(('\r\033[K' if self.live else '') + line, end='' if self.live and not last else '\n',
              file=sys.stderr, flush=True)

def checksum(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 22): digest.update(block)
    return digest.hexdigest()

def receive(url, f, max_bytes):
    "appends what is missing of url to the open file f -> bytes there, bytes expected (0: the server does not say)"
    have = f.seek(0, 2)
    headers = ({'User-Agent': 'Mozilla/5.0 (flatformers)', 'Accept-Encoding': 'identity'}
               | ({'Range': f'bytes={have}-'} if have else {}))
    try: answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as e:
        if e.code != 416 or not have: raise
        if (e.headers.get('Content-Range') or '').endswith(f'/{have}'): return have, have        # all of it was there
        f.truncate(0)
        return receive(url, f, max_bytes)
    with answer:
        span = answer.headers.get('Content-Range') or ''
        if answer.status == 206 and span.startswith(f'bytes {have}-'):
            total = int(span.rpartition('/')[2].replace('*', '0'))
        else:                                            # the server sends it from the beginning
            f.truncate(0)
            have, total = 0, int(answer.headers.get('Content-Length') or 0)
        progress = Progress(f'fetching {os.path.basename(f.name)[:-5]}', total)
        while not max_bytes or max(have, total) <= max_bytes:
            block = answer.read(1 << 18)
            if not block:
                progress(have, last=True)
                return have, total
            have += f.write(block)
            progress(have)
    f.truncate(0)
    raise ValueError(f'{url}: {max(have, total):,} bytes, expected at most {max_bytes:,}: '
                     'not the file it should be, thrown away')

def download(url, path, sha256='', max_bytes=0):
    """Fetches url to path, which appears only when it is whole and has the checksum. What a broken connection or Ctrl-C
    leaves stays in path.part, and the next call goes on from there."""
    if os.path.exists(path): return path
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    part, best, by_hand = path + '.part', 0, 'get the file by hand and run python data/NAME.py --source=FOLDER'
    with open(part, 'ab') as f:
        if fcntl: fcntl.flock(f, fcntl.LOCK_EX)          # of two runs one fetches, the other waits
        try:
            while not os.path.exists(path):
                try:
                    have, total = receive(url, f, max_bytes)
                    problem = f'the connection closed after {have:,} of {total:,} bytes'
                except ValueError as e:
                    if isinstance(e, UnicodeError) or 'invalid literal' in str(e):
                        raise ValueError(f'{url}: the server says a size that is no number: {by_hand}') from None
                    raise
                except (OSError, http.client.HTTPException) as e:
                    if isinstance(e, OSError) and e.errno == errno.ENOSPC: raise
                    problem = (f'{e.code} {e.reason}' if isinstance(e, urllib.error.HTTPError)
                               else str(getattr(e, 'reason', '') or e))
                    have, total = f.seek(0, 2), sys.maxsize
                f.flush()
                if have >= total:
                    os.fsync(f.fileno())
                    if sha256 and (digest := checksum(part)) != sha256:
                        f.truncate(0)
                        raise ValueError(f'{url}: checksum {digest[:16]}..., expected {sha256[:16]}...: thrown away; '
                                         f'run it again, or {by_hand}')
                    os.replace(part, path)
                elif have <= best:                       # try again only as long as each try brings us further
                    kept = f'{have:,} bytes are kept, run it again to go on, or ' if have else ''
                    raise ConnectionError(f'could not reach {url} ({problem}): {kept}{by_hand}')
                best = have
        finally:
            if os.path.exists(part) and (os.path.exists(path) or not os.path.getsize(part)): os.remove(part)
            with contextlib.suppress(OSError): os.rmdir(os.path.dirname(path) or '.')            # if it is empty
    return path
