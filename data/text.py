"""Text to token ids: your own files for train.py, and the tools that every data/NAME.py is made of.

What: reads running text (a .txt, .md, .py or any other UTF-8 file, a folder of them, .jsonl with a "text" column, .gz
of these), trains or loads a tokenizer, and writes a folder with train.bin and val.bin (uint16 or uint32 ids, the
end-of-text id after each document), tokenizer.json and meta.json. Lines of {"text", "text_b"?, "label"}, {"text",
"choices", "label"}, {"tokens", "tags"}, {"input", "target"}, {"prompt", "response"}, {"messages"} or {"context",
"question", "answers"} are supervised data: checked, and kept as text in train.jsonl and val.jsonl (see
data/supervised.py). Shards of llm.c and modded-nanogpt (NAME_train_000001.bin) are read as they lie.

A document is a file, a line of .jsonl, or what lies between lines that read <|endoftext|>. About 5 % of the documents
are for validation, picked by a hash of their text, so that copies stay on one side; where they are too few or too
unequal for that, the last tenth of the text is. A folder with train.* and val.* (valid.*, validation.*, dev.*) is taken
with that split.

Text passes through in pieces of a megabyte: memory does not grow with the corpus. A folder is made at a temporary name
and renamed when it is whole; whoever comes second waits and finds it.

--data=A+B mixes what A and B name: one kind of data, with one tokenizer (see data/rows.py).

    python data/text.py notes.txt                            # or at once: python train.py --data=notes.txt
    python data/text.py books/ --tokenizer=gpt2 --out=data/books
"""
import argparse, contextlib, difflib, glob, importlib, inspect, json, os, re, shlex, sys

HERE = os.path.dirname(os.path.abspath(__file__))         # folders are made in here
if __name__ == '__main__': sys.path.insert(0, os.path.dirname(HERE))
from data import supervised
from data.download import Progress, checksum, download
from data.opening import (META, checked, first_words, is_count, is_list, is_name, is_prepared, is_str, mixed, open_meta,
                          same_source, shard_files, shard_meta, shard_tokens, tokens)
from data.reading import (EOT, LINE, PIECE, SAMPLE, cut, documents, files, fingerprint, is_text, open_binary, pieces,
                          read_file, read_jsonl, reading, size_of, split_files, suffix, text_size)
from data.vocabulary import BUILT_IN, get_tokenizer, load_once, load_tokenizer, same_tokenizer, tokenizer_tag
from data.writing import (CORES, encode, encoded, examples, finish, for_validation, in_process, jobs, new_folder, recut,
                          start_process, write_examples, write_text)

# ---------------------------------------------------------------------------------------------- from --data to a folder

def make(name, write, tokenizer, vocab_size, default='', out=''):
    """The folder data/NAME-TAG (data/NAME when TAG is `default`; or `out`): found, or made by write(folder,
    tokenizer=..., vocab_size=..., tag=...)."""
    vocab_size, base = vocab_size or 8192, os.path.join(HERE, name)
    tag = tokenizer_tag(tokenizer, vocab_size)
    folder = out.rstrip('/') or (base if tag == default else f'{base}-{tag}')
    if not out and tokenizer not in BUILT_IN and not is_prepared(folder):   # a resumed run brings a tokenizer made here
        for found in [base] + sorted(glob.glob(glob.escape(base) + '-*')):
            with contextlib.suppress(ValueError, OSError):
                meta = open_meta(found, quick=True)      # data/squad-2 is not data/squad with a tokenizer named 2
                if found in (base, f'{base}-{meta["name"]}') and same_tokenizer(meta, tokenizer): return found
    with new_folder(folder) as new:
        if new:
            meta = write(new, tokenizer=tokenizer, vocab_size=vocab_size, tag=tag)
            what = 'tokens' if meta['kind'] == 'text' else 'examples'
            print(f'made {os.path.relpath(folder)}: {meta["train_" + what]:,} {what} to train on, '
                  f'{meta["val_" + what]:,} for validation, tokenizer {tag} ({meta["vocab_size"]:,} ids)',
                  file=sys.stderr, flush=True)
    return checked(folder) if new else checked(folder, tokenizer, vocab_size)

def prepare(source, tokenizer='bpe', vocab_size=8192, out=''):
    "your own text -> out, or data/text/NAME-HASH-TOKENIZER, which is found again as long as the text is the same"
    train, val = split_files(source)
    kind = 'text'
    if all(suffix(p) == '.jsonl' for p in train):
        path, (number, row) = next(((p, line) for p in train for line in read_jsonl(p)), (train[0], (1, {'text': ''})))
        kind = supervised.kind_of(row)
        known = {column for sets in supervised.COLUMNS.values() for one in sets for column in one}
        for column in set(row) - known if kind == 'text' else ():          # a misspelt label would mean another kind
            if like := difflib.get_close_matches(column, known - {'text'}, 1, 0.7):
                print(f'{path}: the column "{column}" is not used; did you mean "{like[0]}"? '
                      'As it is, "text" alone is learned', file=sys.stderr)
        if not kind:
            column = json.dumps(next((c for c in row if isinstance(row[c], str) and len(c) < 50), 'NAME'))
            how = f'rename one, like jq -c {shlex.quote(f"{{text: .[{column}]}}")} {path} > new.jsonl'
            if row.keys() & {'instruction', 'conversations'}:
                how = f'python data/instruct.py --source={path} --out=DIR, then --data=DIR'
            raise ValueError(f'{path} line {number}: the columns are {supervised.columns(row)}; expected '
                             + ', or '.join(' and '.join(f'"{c}"' for c in s)
                                            for sets in supervised.COLUMNS.values() for s in sets) + f': {how}')
    def write(folder, **tokenizing):
        if kind != 'text':
            return write_examples(folder, kind, lambda: examples(train, kind), val and (lambda: examples(val, kind)),
                                  source=source, **tokenizing)
        total = sum(map(text_size, train + (val or [])))
        # 50 MB of validation text is enough for anyone
        return write_text(folder, lambda: documents(train), val and (lambda: documents(val)),
                          share=min(0.05, 5e7 / max(total, 1)), total=total, source=source, **tokenizing)
    stem = re.sub(r'[^\w-]+', '_', os.path.basename(os.path.abspath(source.split(',')[0])).split('.')[0]) or 'text'
    return make(f'text/{stem}-{fingerprint(train + (val or []))}', write, tokenizer or 'bpe', vocab_size, out=out)

def names():
    "the data sets: the scripts beside this one that have a prepare()"
    here = os.path.dirname(os.path.abspath(__file__))
    found = [p for p in glob.glob(os.path.join(glob.escape(here), '[a-z]*.py')) if os.path.basename(p) != 'text.py']
    return sorted(os.path.basename(p)[:-3] for p in found if '\ndef prepare(' in open(p, encoding='utf-8').read())

def resolve(data, tokenizer='', vocab_size=0):
    """what --data means -> a prepared folder, made now if need be. tokenizer '' and vocab_size 0 take the data set's
    own. Of several with + between -> as many folders with + between; where each would train a vocabulary of its own,
    the first one's serves all."""
    if '+' in data and not os.path.exists(data):
        folders, shared, there = {}, '', lambda part: os.path.isdir(part) and is_prepared(part)
        for part in sorted(data.split('+'), key=lambda part: not there(part)):
            if not part:
                raise ValueError(f'--data={data}: '
                                 'expected names of data sets with a + between, like multi30k+summarize')
            folders[part] = os.path.relpath(resolve(part, shared) if shared and not there(part)
                                            else resolve(part, tokenizer, vocab_size))
            if tokenizer in ('', 'bpe', 'char') and not shared:
                meta = open_meta(folders[part], quick=True)
                shared = (os.path.join(folders[part], meta['tokenizer']) if meta['tokenizer'].endswith('.json')
                          else meta['tokenizer'])
            elif not shared: shared = tokenizer
        return '+'.join(folders[part] for part in data.split('+'))
    name, _, task = data.partition('-')
    if name in names():
        module = importlib.import_module('data.' + name)
        known = getattr(module, 'tasks', ())
        if task and task not in known:
            raise ValueError(f'--data={data}: {name} has {"the tasks " + ", ".join(known) if known else "no tasks"}; '
                             'expected --data='
                             + ' or --data='.join([name] + [f'{name}-{t}' for t in known]))
        given = {k: v for k, v in dict(tokenizer=tokenizer, vocab_size=vocab_size, task=task).items() if v}
        with naming(name, given): return module.prepare(**given)
    if os.path.isdir(data) and is_prepared(data): return checked(data, tokenizer, vocab_size)
    if os.path.exists(data) or ',' in data: return prepare(data, tokenizer or 'bpe', vocab_size)
    if os.sep in data: raise FileNotFoundError(f'--data={data}: no such file or folder')
    near = difflib.get_close_matches(data, names(), 1, 0.5) if '.' not in data else ()
    raise FileNotFoundError(f'--data={data}: no data set, file or folder of that name; '
                            f'the data sets are {", ".join(names())}'
                            + (f'; did you mean --data={near[0]}?' if near else ''))

# ------------------------------------------------------------------------------------------- for the data sets' scripts

def fetch(name, url, folder, source='', sha256='', max_bytes=0):
    "a file of a data set: from the folder `source` if given (as is, or .gz), else downloaded to data/downloads/FOLDER"
    if not source: return download(url, os.path.join(HERE, 'downloads', folder, name), sha256, max_bytes)
    for path in (source, os.path.join(source, name), os.path.join(source, name + '.gz')):
        if os.path.isfile(path): return path
    raise FileNotFoundError(f'--source={source}: no {name} or {name}.gz in it; get it from {url}, then '
                            'python data/NAME.py --source=FOLDER')

@contextlib.contextmanager
def naming(name, flags):
    "errors that say what to type name the script, and the flags that it was given"
    command = f'data/{name}.py' + ''.join(f' --{k}={shlex.quote(str(v))}' for k, v in flags.items())
    try: yield
    except (OSError, ValueError) as e:
        e.args = tuple(a.replace('data/NAME.py', command) if isinstance(a, str) else a for a in e.args)
        raise

def script(prepare, doc):
    "the command line of a data set: a flag for each parameter of its prepare()"
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    for name, p in inspect.signature(prepare).parameters.items():
        if p.default is p.empty: parser.add_argument(name)
        else: parser.add_argument('--' + name, type=type(p.default), default=p.default, help=f'default: {p.default!r}')
    given, name = vars(parser.parse_args()), os.path.basename(sys.argv[0])
    try:
        flags = {k: v for k, v in given.items() if k != 'source' and v != parser.get_default(k)}
        with naming(name.removesuffix('.py'), flags): print(prepare(**given))
    except KeyboardInterrupt: sys.exit('interrupted: nothing half made is left')
    except (ValueError, OSError) as e: sys.exit(f'{name}: {e}')

if __name__ == '__main__': script(prepare, __doc__)
