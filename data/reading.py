"""Reading text: files, folders, .gz and .jsonl, a piece at a time.

A document is a file, a line of .jsonl, or what lies between lines that read <|endoftext|>. It comes as pieces of at most
a megabyte, (piece, last), so that memory does not grow with the text.
"""
import codecs, contextlib, gzip, hashlib, json, os, re, sys, zipfile, zlib

from data import supervised

PIECE = 1 << 20                                          # characters encoded at once
LINE = 64 << 20                                          # bytes of a line of .jsonl, which is held whole
SAMPLE = 64 << 20                                        # a vocabulary is trained on this much text, spread evenly
EOT = '<|endoftext|>'

def open_binary(path):
    return gzip.open(path, 'rb') if path.endswith('.gz') else open(path, 'rb')

def suffix(path):
    return os.path.splitext(path.removesuffix('.gz'))[1].lower()

def size_of(text):
    return len(text) if text.isascii() else len(text.encode())

def text_size(path):
    "bytes of text in a file, to show progress against; of a .gz what its last four bytes say"
    with open(path, 'rb') as f:
        end = f.seek(0, 2)
        if not path.endswith('.gz') or end < 4: return end
        f.seek(-4, 2)
        return int.from_bytes(f.read(4), 'little')

def is_text(path):
    "whether a file met on a walk is UTF-8: looks at all of it when small, at its beginning when not"
    try:
        with open_binary(path) as f: head = f.read(4 * PIECE)
        codecs.getincrementaldecoder('utf-8')().decode(head, final=len(head) < 4 * PIECE)
    except (UnicodeDecodeError, OSError, EOFError, zlib.error):
        return False
    return b'\0' not in head

def files(source):
    "the files of a path (or of several with commas between), folders walked in sorted order"
    found, skipped = [], []
    for path in [source] if os.path.exists(source) else source.split(','):
        if not os.path.exists(path): raise FileNotFoundError(f'{path}: no such file or folder')
        if not os.path.isdir(path): found.append(path)
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(f for f in folders if not f.startswith('.') and f != '__pycache__')
            for p in (os.path.join(folder, n) for n in sorted(names) if not n.startswith('.')):
                if os.path.isfile(p) and os.path.getsize(p): (found if is_text(p) else skipped).append(p)
    if not found:
        what = (f'{len(skipped)} files, none of them UTF-8 text: {skipped[0]}' + ', ...' * (len(skipped) > 1)
                if skipped else 'no files but empty and hidden ones')
        raise ValueError(f'{source}: no text in it ({what}); expected .txt or other UTF-8 files, .jsonl, or .gz of '
                         'these: convert them (iconv, pdftotext), or name another folder or FILE')
    if skipped:
        print(f'{source}: left out {len(skipped)} files that are not UTF-8 text, like {skipped[0]}', file=sys.stderr)
    return found

@contextlib.contextmanager
def reading(path):
    "turns what can go wrong while a file is read into one line with its name"
    try: yield
    except UnicodeDecodeError as e:
        raise ValueError(f'{path}: not UTF-8 text (it has a byte 0x{e.object[e.start]:02x}): '
                         f'convert it, like iconv -f latin1 -t utf-8 {path} > new.txt') from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise ValueError(f'{path}: broken or truncated .gz ({e}): get the file again') from None
    except (zipfile.BadZipFile, KeyError) as e:          # KeyError: no such member
        raise ValueError(f'{path}: a broken .zip, or of something else ({e}): get the file again') from None

def cut(text):
    "where a long text is cut: between lines that end and begin in ink, as every pre-tokenizer cuts there by itself"
    at = text.rfind('\n', 1, PIECE)
    while at > PIECE // 2 and (text[at - 1].isspace() or text[at + 1].isspace()): at = text.rfind('\n', 1, at)
    return at + 1 if at > PIECE // 2 else text.rfind('\n', 1, PIECE) + 1 or text.rfind(' ', 1, PIECE) + 1 or PIECE

def pieces(text):
    "one document -> (piece, whether it is the document's last)"
    at = 0
    while len(text) - at > PIECE:
        end = at + cut(text[at:at + PIECE + 1])
        yield text[at:end], False
        at = end
    yield text[at:], True

def read_file(path):
    "a text file -> (piece, last), a block at a time; lines that read <|endoftext|> separate documents"
    border = re.compile(rf'(?m)^{re.escape(EOT)}[ \t]*\r?(?:\n|\Z)')
    decoder, text, inside, more = codecs.getincrementaldecoder('utf-8-sig')(), '', False, True
    with reading(path), open_binary(path) as f:
        while more:
            block = f.read(PIECE)
            more = bool(block)
            text += decoder.decode(block, final=not more)
            while len(text) > PIECE + 1 or text and not more:
                end = cut(text) if len(text) > PIECE + 1 else len(text)
                *done, rest = border.split(text[:end])
                for document in done:                    # a border closes what came before it, also in earlier blocks
                    if document or inside: yield document, True
                    inside = False
                if rest: yield rest, False
                inside, text = inside or bool(rest), text[end:]
    if inside: yield '', True

def read_jsonl(path):
    "a .jsonl file -> (line number, dict)"
    with reading(path), open_binary(path) as f:
        for number, line in enumerate(iter(lambda: f.readline(LINE), b''), 1):
            if len(line) == LINE:
                raise ValueError(f'{path} line {number}: longer than {LINE >> 20} MB; expected an example on each line')
            if not line.strip(): continue
            try: row = json.loads(line)
            except UnicodeDecodeError: raise
            except (ValueError, RecursionError) as e: row = getattr(e, 'msg', str(e))
            if not isinstance(row, dict):
                raise ValueError(f'{path} line {number}: not a JSON object ({str(row)[:40]}); '
                                 f'expected one like {{"text": "..."}} on each line')
            yield number, row

def documents(paths):
    "all text of the files -> (piece, last)"
    for path in paths:
        if suffix(path) != '.jsonl':
            yield from read_file(path)
            continue
        for number, row in read_jsonl(path):
            yield from pieces(supervised.mended(supervised.need(row, 'text', path, number)))
def split_files(source):
    "-> files to train on, files for validation or None. A folder with train.* and val.* brings its own split"
    found = files(source)
    named = lambda *stems: [p for p in found if os.path.basename(p).split('.')[0].lower() in stems]
    train, val = named('train'), named('val', 'valid', 'validation', 'dev')
    if not os.path.isdir(source) or not train or not val: return found, None
    if rest := [p for p in found if p not in train + val]:
        print(f'{source}: takes {len(train)} train and {len(val)} validation files, '
              f'leaves out {len(rest)} others like {rest[0]}', file=sys.stderr)
    return train, val

def fingerprint(paths):
    "hash of the files' contents; of files over 64 MB their size, time and ends only, so that a run starts at once"
    digest = hashlib.sha256()
    for path in paths:
        stat = os.stat(path)
        digest.update(f'{os.path.basename(path)} {stat.st_size} '.encode())
        with open(path, 'rb') as f:
            if stat.st_size > SAMPLE:
                digest.update(b'%d ' % stat.st_mtime_ns + f.read(PIECE))
                f.seek(-PIECE, 2)
            while block := f.read(PIECE): digest.update(block)
    return digest.hexdigest()[:10]
