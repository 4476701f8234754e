"""Reads text a piece at a time: files, folders of them, .jsonl with a "text" column, .gz of these.

A document is a file, a line of .jsonl, or what lies between lines that read <|endoftext|>. It is
read as pieces of at most a megabyte, each a pair (piece, last), where `last` says whether the piece
is the end of its document. So memory does not grow with the text.

    for piece, last in documents(files('books/')):
        ...
"""
import codecs
import contextlib
import gzip
import hashlib
import json
import os
import re
import sys
import zipfile
import zlib

from data import supervised

PIECE = 1 << 20             # characters that are encoded at once
LINE = 64 << 20             # bytes of a line of .jsonl, which is held in memory as a whole
SMALL_FILE = 64 << 20       # bytes of a file that is compared as a whole, not by its ends alone
EOT = '<|endoftext|>'


# ------------------------------------------------------------------------------------------- files

def open_binary(path):
    """Opens a file for reading bytes; a .gz is unpacked on the way."""
    return gzip.open(path, 'rb') if path.endswith('.gz') else open(path, 'rb')


def suffix(path):
    """The ending that tells what is in a file: '.jsonl' for a.jsonl and for a.jsonl.gz."""
    return os.path.splitext(path.removesuffix('.gz'))[1].lower()


def size_of(text):
    """The number of bytes of a string in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def text_size(path):
    """The bytes of text in a file, to show progress. A .gz states their number in its last four."""
    with open(path, 'rb') as f:
        size = f.seek(0, 2)
        if not path.endswith('.gz') or size < 4:
            return size
        f.seek(-4, 2)
        return int.from_bytes(f.read(4), 'little')


def is_text(path):
    """Whether a file is UTF-8 text. Only its first four megabytes are read."""
    limit = 4 * PIECE
    try:
        with open_binary(path) as f:
            head = f.read(limit)
        codecs.getincrementaldecoder('utf-8')().decode(head, final=len(head) < limit)
    except (UnicodeDecodeError, OSError, EOFError, zlib.error):
        return False
    return b'\0' not in head


def walk(folder):
    """The files below a folder in sorted order, without hidden and empty ones."""
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith('.') and f != '__pycache__')
        for name in sorted(names):
            path = os.path.join(here, name)
            if not name.startswith('.') and os.path.isfile(path) and os.path.getsize(path):
                yield path


def files(source):
    """The files of a path, or of several paths with commas between them.

    A file that is named is always taken. Of a folder, the files that are UTF-8 text are taken, and
    a line on stderr says how many others were left out. Raises FileNotFoundError if a path does not
    exist, ValueError if no text is found.
    """
    found = []
    skipped = []
    for path in [source] if os.path.exists(source) else source.split(','):
        if not os.path.exists(path):
            raise FileNotFoundError(f'{path}: no such file or folder')
        if not os.path.isdir(path):
            found.append(path)
            continue
        for file in walk(path):
            if is_text(file):
                found.append(file)
            else:
                skipped.append(file)
    if not found:
        reason = 'no files but empty and hidden ones'
        if skipped:
            more = ', ...' if len(skipped) > 1 else ''
            reason = f'{len(skipped)} files, none of them UTF-8 text: {skipped[0]}{more}'
        raise ValueError(f'{source}: no text in it ({reason}); expected .txt or other UTF-8 files, '
                         '.jsonl, or .gz of these: convert the files (iconv, pdftotext), or name '
                         'another folder or FILE')
    if skipped:
        print(f'{source}: left out {len(skipped)} files that are not UTF-8 text, '
              f'like {skipped[0]}', file=sys.stderr)
    return found


def split_files(source):
    """The files to train on, and the files for validation or None.

    A folder with files named train.* and val.* (valid.*, validation.*, dev.*) brings its own split.
    Its other files, such as test.*, are left out.
    """
    found = files(source)

    def named(*stems):
        return [p for p in found if os.path.basename(p).split('.')[0].lower() in stems]

    train = named('train')
    val = named('val', 'valid', 'validation', 'dev')
    if not os.path.isdir(source) or not train or not val:
        return found, None
    others = [p for p in found if p not in train + val]
    if others:
        print(f'{source}: takes {len(train)} train and {len(val)} validation files, '
              f'leaves out {len(others)} others like {others[0]}', file=sys.stderr)
    return train, val


def fingerprint(paths):
    """A hash of the files' names and contents, ten characters long.

    Of a file over 64 MB the size, the time and both ends count, so that a run starts at once.
    """
    digest = hashlib.sha256()
    for path in paths:
        stat = os.stat(path)
        digest.update(f'{os.path.basename(path)} {stat.st_size} '.encode())
        with open(path, 'rb') as f:
            if stat.st_size > SMALL_FILE:
                digest.update(b'%d ' % stat.st_mtime_ns + f.read(PIECE))
                f.seek(-PIECE, 2)
            while block := f.read(PIECE):
                digest.update(block)
    return digest.hexdigest()[:10]


@contextlib.contextmanager
def reading(path):
    """Turns what can go wrong while a file is read into a ValueError of one line that names it."""
    try:
        yield
    except UnicodeDecodeError as e:
        raise ValueError(f'{path}: not UTF-8 text (it has a byte 0x{e.object[e.start]:02x}): '
                         f'convert it, like iconv -f latin1 -t utf-8 {path} > new.txt') from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise ValueError(f'{path}: broken or truncated .gz ({e}): get the file again') from None
    except (zipfile.BadZipFile, KeyError) as e:         # KeyError: the member is not in it
        raise ValueError(f'{path}: a broken .zip, or one of other data ({e}): '
                         'get the file again') from None


# --------------------------------------------------------------------------------------- documents

def cut(text):
    """Where to cut a text of more than PIECE characters, so that its tokens stay what they are.

    Best is the end of a line, if no white space is before or after it: every pre-tokenizer cuts
    there by itself. If the second half of the piece has no such place: after its last line, else
    after its last space, else anywhere.
    """
    at = text.rfind('\n', 1, PIECE)
    while at > PIECE // 2 and (text[at - 1].isspace() or text[at + 1].isspace()):
        at = text.rfind('\n', 1, at)
    if at > PIECE // 2:
        return at + 1
    for character in '\n ':
        at = text.rfind(character, 1, PIECE)
        if at > 0:
            return at + 1
    return PIECE


def pieces(text):
    """Yields one document as (piece, last)."""
    at = 0
    while len(text) - at > PIECE:
        end = at + cut(text[at:at + PIECE + 1])
        yield text[at:end], False
        at = end
    yield text[at:], True


def read_file(path):
    """Yields the documents of a text file as (piece, last), while it reads a block at a time.

    Lines that read <|endoftext|> stand between documents. A byte order mark is dropped.
    """
    border = re.compile(rf'(?m)^{re.escape(EOT)}[ \t]*\r?(?:\n|\Z)')
    decoder = codecs.getincrementaldecoder('utf-8-sig')()
    text = ''
    inside = False          # a document has begun in what was yielded, and did not end there
    more = True
    with reading(path), open_binary(path) as f:
        while more:
            block = f.read(PIECE)
            more = bool(block)
            text += decoder.decode(block, final=not more)
            while len(text) > PIECE + 1 or (text and not more):
                end = cut(text) if len(text) > PIECE + 1 else len(text)
                *done, rest = border.split(text[:end])
                for document in done:       # a border also ends what began in earlier blocks
                    if document or inside:
                        yield document, True
                    inside = False
                if rest:
                    yield rest, False
                    inside = True
                text = text[end:]
    if inside:
        yield '', True


def read_jsonl(path):
    """Yields the lines of a .jsonl file as (line number, dict); empty lines are passed over.

    Raises ValueError with the line's number if a line is not a JSON object, or too long.
    """
    with reading(path), open_binary(path) as f:
        for number, line in enumerate(iter(lambda: f.readline(LINE), b''), 1):
            if len(line) == LINE:
                raise ValueError(f'{path} line {number}: longer than {LINE >> 20} MB; '
                                 'expected an example on each line')
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError:                  # reading() says what is wrong
                raise
            except (ValueError, RecursionError) as e:
                row = getattr(e, 'msg', str(e))
            if not isinstance(row, dict):
                raise ValueError(f'{path} line {number}: not a JSON object ({str(row)[:40]}); '
                                 'expected one like {"text": "..."} on each line')
            yield number, row


def documents(paths):
    """Yields all text of the files as (piece, last)."""
    for path in paths:
        if suffix(path) != '.jsonl':
            yield from read_file(path)
            continue
        for number, row in read_jsonl(path):
            yield from pieces(supervised.mended(supervised.need(row, 'text', path, number)))
