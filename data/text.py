"""Text to token ids: your own files for train.py, and the tools that every data/NAME.py is made of.

What: reads running text (a .txt, .md, .py or any other UTF-8 file, a folder of them, .jsonl with a
"text" column, .gz of these), trains or loads a tokenizer, and writes a folder with train.bin and
val.bin (uint16 or uint32 ids, the end-of-text id after each document), tokenizer.json and
meta.json. Lines of {"text", "text_b"?, "label"}, {"text", "choices", "label"}, {"tokens", "tags"},
{"input", "target"}, {"prompt", "response"}, {"messages"} or {"context", "question", "answers"} are
supervised data: they are checked, and kept as text in train.jsonl and val.jsonl (see
data/supervised.py). Shards of llm.c and modded-nanogpt (NAME_train_000001.bin) are read as they
are.

A document is a file, a line of .jsonl, or what lies between lines that read <|endoftext|>. About
5 % of the documents are for validation, picked by a hash of their text, so that copies stay on one
side; where they are too few or too unequal for that, the last tenth of the text is. A folder with
train.* and val.* (valid.*, validation.*, dev.*) is taken with that split.

Text passes through in pieces of a megabyte: memory does not grow with the corpus. A folder is made
under a temporary name and renamed when it is whole; whoever comes second waits for it.

--data=A+B mixes what A and B name: one kind of data, with one tokenizer (see data/rows.py).

    python data/text.py notes.txt                   # or at once: python train.py --data=notes.txt
    python data/text.py books/ --tokenizer=gpt2 --out=data/books

To add a data set, copy a script such as data/shakespeare.py (running text) or data/squad.py
(examples) to data/NAME.py: train.py finds it by its name and its function prepare().
"""
import argparse
import contextlib
import difflib
import glob
import importlib
import inspect
import json
import os
import re
import shlex
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))       # folders are made in here
if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(HERE))

# What the scripts beside this one are made of: all of it can be had as text.NAME
from data import supervised
from data.download import Progress, checksum, download  # noqa: F401
from data.folders import finish, new_folder  # noqa: F401
from data.opening import (  # noqa: F401
    META, checked, first_words, is_count, is_list, is_name, is_prepared, is_str, mixed, open_meta,
    same_source, shard_files, shard_meta, shard_tokens, tokens)
from data.reading import (  # noqa: F401
    EOT, LINE, PIECE, cut, documents, files, fingerprint, is_text, open_binary, pieces, read_file,
    read_jsonl, reading, size_of, split_files, suffix, text_size)
from data.vocabulary import (  # noqa: F401
    BUILT_IN, get_tokenizer, load_once, load_tokenizer, same_tokenizer, tokenizer_tag)
from data.writing import (  # noqa: F401
    CORES, SAMPLE, encode, encoded, examples, for_validation, in_process, jobs, recut,
    start_process, write_examples, write_text)

MOST_VALIDATION = 5e7       # bytes of text: 50 MB are enough for anyone


# ---------------------------------------------------------------------------------- your own files

def prepare(source, tokenizer='bpe', vocab_size=8192, out=''):
    """Prepares your own text or examples. Returns the folder.

    It is `out`, or data/text/NAME-HASH-TOKENIZER, which is found again as long as the text is the
    same.
    """
    train, val = split_files(source)
    kind = kind_of_files(train)

    def write(folder, **tokenizing):
        if kind != 'text':
            return write_examples(folder, kind, lambda: examples(train, kind),
                                  (lambda: examples(val, kind)) if val else None,
                                  source=source, **tokenizing)
        total = sum(map(text_size, train + (val or [])))
        return write_text(folder, lambda: documents(train),
                          (lambda: documents(val)) if val else None,
                          share=min(0.05, MOST_VALIDATION / max(total, 1)), total=total,
                          source=source, **tokenizing)

    name = os.path.basename(os.path.abspath(source.split(',')[0])).split('.')[0]
    name = re.sub(r'[^\w-]+', '_', name) or 'text'
    name = f'text/{name}-{fingerprint(train + (val or []))}'
    return make(name, write, tokenizer or 'bpe', vocab_size, out=out)


def kind_of_files(paths):
    """The kind of data in the files, by the columns of the first line if all of them are .jsonl.

    Raises ValueError, with what to type, if no kind has these columns.
    """
    if not all(suffix(path) == '.jsonl' for path in paths):
        return 'text'
    lines = ((path, number, row) for path in paths for number, row in read_jsonl(path))
    path, number, row = next(lines, (paths[0], 1, {'text': ''}))
    kind = supervised.kind_of(row)
    sets = [columns for sets in supervised.COLUMNS.values() for columns in sets]
    if kind == 'text':                          # a misspelt label would mean another kind
        known = {column for columns in sets for column in columns}
        for column in set(row) - known:
            near = difflib.get_close_matches(column, known - {'text'}, 1, 0.7)
            if near:
                print(f'{path}: the column "{column}" is not used; did you mean "{near[0]}"? '
                      'As it is, "text" alone is learned', file=sys.stderr)
    if kind:
        return kind
    names = (name for name in row if isinstance(row[name], str) and len(name) < 50)
    column = json.dumps(next(names, 'NAME'))
    advice = f'rename one, like jq -c {shlex.quote(f"{{text: .[{column}]}}")} {path} > new.jsonl'
    if row.keys() & {'instruction', 'conversations'}:
        advice = f'python data/instruct.py --source={path} --out=DIR, then --data=DIR'
    expected = ', or '.join(' and '.join(f'"{name}"' for name in columns) for columns in sets)
    raise ValueError(f'{path} line {number}: the columns are {supervised.columns(row)}; '
                     f'expected {expected}: {advice}')


# ------------------------------------------------------------------------- from --data to a folder

def names():
    """The data sets: the scripts beside this one that have a function prepare()."""
    here = os.path.dirname(os.path.abspath(__file__))
    found = []
    for path in glob.glob(os.path.join(glob.escape(here), '[a-z]*.py')):
        name = os.path.basename(path)[:-3]
        with open(path, encoding='utf-8') as f:
            if name != 'text' and '\ndef prepare(' in f.read():
                found.append(name)
    return sorted(found)


def resolve(data, tokenizer='', vocab_size=0):
    """The prepared folder that --data means; it is made now if need be.

    data: the name of a data set, or NAME-TASK; a prepared folder; your own file or folder; or
        several of these with + between them, which gives as many folders with + between them
    tokenizer, vocab_size: '' and 0 take those of the data set

    Raises FileNotFoundError or ValueError, with what to type, if there is no such data.
    """
    if '+' in data and not os.path.exists(data):
        return resolve_mixture(data, tokenizer, vocab_size)
    name, _, task = data.partition('-')
    if name in names():
        return resolve_name(data, name, task, tokenizer, vocab_size)
    if os.path.isdir(data) and is_prepared(data):
        return checked(data, tokenizer, vocab_size)
    if os.path.exists(data) or ',' in data:
        return prepare(data, tokenizer or 'bpe', vocab_size)
    if os.sep in data:
        raise FileNotFoundError(f'--data={data}: no such file or folder')
    near = difflib.get_close_matches(data, names(), 1, 0.5) if '.' not in data else ()
    guess = f'; did you mean --data={near[0]}?' if near else ''
    raise FileNotFoundError(f'--data={data}: no data set, file or folder of that name; '
                            f'the data sets are {", ".join(names())}{guess}')


def resolve_name(data, name, task, tokenizer, vocab_size):
    """The folder of a data set, or of one of its tasks."""
    module = importlib.import_module('data.' + name)
    tasks = getattr(module, 'tasks', ())
    if task and task not in tasks:
        has = 'the tasks ' + ', '.join(tasks) if tasks else 'no tasks'
        expected = ' or '.join(f'--data={n}' for n in [name] + [f'{name}-{t}' for t in tasks])
        raise ValueError(f'--data={data}: {name} has {has}; expected {expected}')
    flags = dict(tokenizer=tokenizer, vocab_size=vocab_size, task=task)
    flags = {flag: value for flag, value in flags.items() if value}
    with naming(name, flags):
        return module.prepare(**flags)


def resolve_mixture(data, tokenizer, vocab_size):
    """The folders of a mixture. A vocabulary that is trained for the first part serves all."""
    def is_there(part):
        return os.path.isdir(part) and is_prepared(part)

    folders = {}
    shared = ''                                 # the tokenizer of those that are not prepared yet
    for part in sorted(data.split('+'), key=lambda part: not is_there(part)):
        if not part:
            raise ValueError(f'--data={data}: expected names of data sets with a + between, like '
                             'multi30k+summarize')
        if shared and not is_there(part):
            folder = resolve(part, shared)
        else:
            folder = resolve(part, tokenizer, vocab_size)
        folders[part] = os.path.relpath(folder)
        if shared:
            continue
        shared = tokenizer
        if tokenizer in ('', 'bpe', 'char'):
            meta = open_meta(folders[part], quick=True)
            shared = meta['tokenizer']
            if shared.endswith('.json'):
                shared = os.path.join(folders[part], shared)
    return '+'.join(folders[part] for part in data.split('+'))


# ---------------------------------------------------------------------- for the data sets' scripts

def make(name, write, tokenizer, vocab_size, default='', out=''):
    """The folder data/NAME-TAG of a data set: found, or made now.

    write: a function (folder, tokenizer=, vocab_size=, tag=) that fills the folder and returns its
        meta, as write_text and write_examples do
    tokenizer, vocab_size: see data/vocabulary.py; their short name is TAG
    default: the tag that is left out of the folder's name, which is then data/NAME
    out: the folder, if it is to have another name
    """
    vocab_size = vocab_size or 8192
    base = os.path.join(HERE, name)
    tag = tokenizer_tag(tokenizer, vocab_size)
    folder = out.rstrip('/') or (base if tag == default else f'{base}-{tag}')
    if not out and tokenizer not in BUILT_IN and not is_prepared(folder):
        found = made_with(base, tokenizer)
        if found:
            return found
    with new_folder(folder) as new:
        if new:
            meta = write(new, tokenizer=tokenizer, vocab_size=vocab_size, tag=tag)
            what = 'tokens' if meta['kind'] == 'text' else 'examples'
            print(f'made {os.path.relpath(folder)}: {meta["train_" + what]:,} {what} to train on, '
                  f'{meta["val_" + what]:,} for validation, tokenizer {tag} '
                  f'({meta["vocab_size"]:,} ids)', file=sys.stderr, flush=True)
    return checked(folder) if new else checked(folder, tokenizer, vocab_size)


def made_with(base, tokenizer):
    """The folder of a data set that was made with this tokenizer, or ''.

    A run that goes on brings the tokenizer file that was made here, under another name.
    """
    for folder in [base] + sorted(glob.glob(glob.escape(base) + '-*')):
        with contextlib.suppress(ValueError, OSError):
            meta = open_meta(folder, quick=True)
            # data/squad-2 is not data/squad with a tokenizer named 2
            if folder in (base, f'{base}-{meta["name"]}') and same_tokenizer(meta, tokenizer):
                return folder
    return ''


def fetch(name, url, folder, source='', sha256='', max_bytes=0):
    """The path of a file of a data set: downloaded to data/downloads/FOLDER, or found in `source`.

    source: a folder with the file (as it is, or as .gz), or the file itself; '' downloads it
    sha256, max_bytes: what a download is checked against

    Raises FileNotFoundError if the source has no such file.
    """
    if not source:
        path = os.path.join(HERE, 'downloads', folder, name)
        return download(url, path, sha256, max_bytes)
    for path in (source, os.path.join(source, name), os.path.join(source, name + '.gz')):
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(f'--source={source}: no {name} or {name}.gz in it; '
                            + (f'get it from {url}, then ' if url else '')
                            + 'python data/NAME.py --source=FOLDER')


@contextlib.contextmanager
def naming(name, flags):
    """Puts the script's name and its flags into errors that say what to type."""
    flags = ''.join(f' --{flag}={shlex.quote(str(value))}' for flag, value in flags.items())
    command = f'data/{name}.py{flags}'
    try:
        yield
    except (OSError, ValueError) as e:
        e.args = tuple(a.replace('data/NAME.py', command) if isinstance(a, str) else a
                       for a in e.args)
        raise


FLAGS = dict(tokenizer='bpe, char, byte, gpt2 or the file of a vocabulary',
             vocab_size='of a tokenizer that is trained here; 0: 8192',
             source='the files themselves, or a folder with them, in the place of a download',
             out='the folder to make')


def script(prepare, doc):
    """The command line of a data set: a flag for each parameter of its prepare()."""
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, p in inspect.signature(prepare).parameters.items():
        if p.default is p.empty:
            parser.add_argument(flag)
        else:
            parser.add_argument('--' + flag, type=type(p.default), default=p.default,
                                help=f'{FLAGS.get(flag, "")} (default: {p.default!r})'.strip())
    values = vars(parser.parse_args())
    program = os.path.basename(sys.argv[0])
    flags = {flag: value for flag, value in values.items()
             if flag != 'source' and value != parser.get_default(flag)}
    try:
        with naming(program.removesuffix('.py'), flags):
            began = time.time()
            folder = prepare(**values)
            if os.path.getmtime(os.path.join(folder, 'meta.json')) < began - 1:
                print(f'{os.path.relpath(folder)} was there already and is as it was: delete it to '
                      'make it anew', file=sys.stderr)
            print(folder)
    except KeyboardInterrupt:
        sys.exit('interrupted: no half-made folder is left')
    except (ValueError, OSError) as e:
        sys.exit(f'{program}: {e}')


if __name__ == '__main__':
    script(prepare, __doc__)
