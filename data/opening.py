"""Opens prepared folders: reads meta.json and checks the files; also shards, and mixtures.

A prepared folder may come from anywhere. So its meta.json is checked before names in it become
paths and numbers in it become sizes. Shards are those of llm.c and modded-nanogpt,
NAME_train_000001.bin and NAME_val_000000.bin, which bring no meta.json.
"""
import glob
import hashlib
import json
import os
import re

import numpy as np

from data import reading, supervised
from data.download import checksum
from data.reading import EOT, SMALL_FILE
from data.vocabulary import same_tokenizer

SHARD_MAGIC = 20240520
SHARD_HEADER = 1024         # bytes: int32[256] of (magic, version 1, number of tokens, 0, ...)


# ------------------------------------------------------------------------- what meta.json may say

def is_str(x):
    return isinstance(x, str)


def is_name(x):
    """Whether x can be the name of a file in the folder, and not a path out of it."""
    return is_str(x) and x not in ('', '.', '..') and os.path.basename(x) == x


def is_count(x):
    """Whether x is a whole number from 0, and not absurdly large."""
    return type(x) is int and 0 <= x < 1 << 53


def is_dtype(x):
    return x in ('uint16', 'uint32')


def is_list(fits):
    """A check that a value is a list of values that pass the check `fits`."""
    return lambda x: isinstance(x, list) and all(map(fits, x))


def is_dict(key_fits, value_fits):
    """A check that a value is a dict whose keys and values pass these checks."""
    def fits(x):
        return isinstance(x, dict) and all(map(key_fits, x)) and all(map(value_fits, x.values()))
    return fits


def or_none(fits):
    """A check that a value is None or passes the check `fits`."""
    return lambda x: x is None or fits(x)


COUNTS = [f'{split}_{what}' for split in ('train', 'val')
          for what in ('tokens', 'bytes', 'documents', 'examples')]
META = {
    'vocab_size': is_count,
    **{name: is_count for name in COUNTS},
    'dtype': is_dtype,
    'tokenizer': is_name,
    'name': is_name,
    'source': is_str,
    'metric': or_none(is_str),
    'eot': or_none(is_count),
    'labels': or_none(is_list(is_str)),
    'more_val': is_list(is_name),
    'special': is_dict(is_str, is_count),
    'sha256': is_dict(is_name, is_str),
}


def first_words(error):
    """The beginning of an error's message, on one line."""
    return ' '.join(str(error).split())[:100]


# ------------------------------------------------------------------------------------------ shards

def shard_files(folder, split):
    """The shards of 'train' or 'val' in a folder, in order."""
    paths = glob.glob(os.path.join(glob.escape(folder), '*.bin'))
    return sorted(p for p in paths if re.search(rf'_{split}(_\d+)?\.bin$', p))


def shard_tokens(path):
    """The number of tokens of a shard. Raises ValueError if its header and its size disagree."""
    size = os.path.getsize(path)
    header = [int(x) for x in np.fromfile(path, '<i4', min(256, size // 4))[:3]]
    if size < SHARD_HEADER or header[:2] != [SHARD_MAGIC, 1]:
        raise ValueError(f'{path}: not a shard of GPT-2 tokens (it begins with {header}); '
                         f'expected the header [{SHARD_MAGIC}, 1, count]')
    count = header[2]
    wanted = SHARD_HEADER + 2 * count
    if size != wanted:
        raise ValueError(f'{path}: {size:,} bytes, but its header says {wanted:,} ({count:,} '
                         'tokens): it is truncated or damaged, so delete it and fetch it again')
    return count


def shard_meta(folder):
    """What meta.json would say of a folder of shards.

    Checksums of many gigabytes would take minutes, so those of shards cover their ends alone.
    """
    meta = dict(kind='text', version=1, folder=folder, tokenizer='gpt2', name='gpt2',
                vocab_size=50257, dtype='uint16', special={EOT: 50256}, eot=50256,
                source='shards', sha256={})
    for split in ('train', 'val'):
        paths = shard_files(folder, split)
        if not paths:
            raise FileNotFoundError(
                f'{folder}: no {split} shard in it (NAME_{split}_000000.bin), and both kinds are '
                f'needed: get one, like python data/fineweb.py --shards=1 --out={folder}')
        meta[split + '_tokens'] = 0
        for path in paths:
            meta[split + '_tokens'] += shard_tokens(path)
            with open(path, 'rb') as f:
                head = f.read(1 << 16)
                f.seek(-min(len(head), 1 << 16), 2)
                digest = hashlib.sha256(head + f.read())
            meta['sha256'][os.path.basename(path)] = digest.hexdigest()
    return meta


# ---------------------------------------------------------------------------------------- a folder

def is_prepared(folder):
    """Whether a folder has a meta.json or shards."""
    if os.path.isfile(os.path.join(folder, 'meta.json')):
        return True
    return bool(shard_files(folder, 'train') or shard_files(folder, 'val'))


def tokens(folder, split):
    """The ids of 'train' or 'val' as a list of memory maps, one a shard.

    folder: a prepared folder, or what open_meta has read of it
    """
    meta = folder if isinstance(folder, dict) else open_meta(folder, quick=True)
    path = os.path.join(meta['folder'], f'{split}.bin')
    if not os.path.exists(path):
        return [np.memmap(p, '<u2', 'r', offset=SHARD_HEADER, shape=(shard_tokens(p),))
                for p in shard_files(meta['folder'], split)]
    if os.path.getsize(path) == 0:                      # which cannot be mapped
        return [np.zeros(0, meta['dtype'])]
    return [np.memmap(path, meta['dtype'], 'r')]


def open_meta(folder, check=False, quick=False):
    """Reads and checks meta.json of a prepared folder. Returns it with its path as meta['folder'].

    folder: also a folder of shards; or several with + between them, a mixture: the meta then is
        what they have in common, and meta['parts'] has the meta of each
    check: compare all checksums, also those of large files
    quick: do not look at the ids

    Raises FileNotFoundError or ValueError if the folder is not a prepared one, or damaged.
    """
    if '+' in folder and not os.path.exists(folder):
        return mixed([open_meta(part, check, quick) for part in folder.split('+')], folder)
    folder = folder.rstrip('/') or '/'
    again = f'delete {folder} and prepare it again'
    if os.path.exists(os.path.join(folder, 'meta.json')):
        meta = read_meta(folder, again)
        check_files(meta, check, quick, again)
    elif is_prepared(folder):
        meta = shard_meta(folder)
    else:
        raise FileNotFoundError(f'{folder}: not a prepared folder (it has no meta.json); make one: '
                                'python data/text.py YOUR_TEXT --out=DIR')
    if meta['kind'] == 'text' and not quick:
        check_ids(meta, again)
    return meta


def read_meta(folder, again):
    """Reads meta.json of a folder. Raises ValueError if it says what no prepared folder has."""
    path = os.path.join(folder, 'meta.json')
    kinds = list(supervised.COLUMNS)
    wanted = {'kind', 'version', 'tokenizer', 'name', 'vocab_size', 'sha256'}
    try:
        with open(path, encoding='utf-8') as f:
            meta = json.load(f)
        ending = 'jsonl'
        if meta.get('kind') == 'text':
            wanted |= {'dtype', 'train_tokens', 'val_tokens'}
            ending = 'bin'
        missing = sorted(wanted - meta.keys())
        if not missing and meta['kind'] in kinds:
            both = f'train.{ending}', f'val.{ending}'
            missing = [name for name in both if name not in meta['sha256']]
    except (ValueError, AttributeError, RecursionError, TypeError) as e:
        raise ValueError(f'{path}: not readable as JSON ({first_words(e)}): {again}') from None
    if missing or meta['version'] != 1 or meta['kind'] not in kinds:
        found = f'version {meta.get("version")!r}, kind {meta.get("kind")!r}'
        if missing:
            found = f'no {", ".join(missing)}'
        raise ValueError(f'{path}: {found}; expected version 1 and a kind of {", ".join(kinds)}: '
                         f'{again}')
    for name, fits in META.items():
        if name in meta and not fits(meta[name]):
            raise ValueError(f'{path}: its {name!r} is {json.dumps(meta[name])[:60]}, '
                             f'which no prepared folder has: {again}')
    meta['folder'] = folder
    return meta


def check_files(meta, check, quick, again):
    """Compares the files of a folder with its meta: sizes, and checksums of what is small."""
    for name, digest in meta['sha256'].items():
        path = os.path.join(meta['folder'], name)
        if not os.path.exists(path):
            raise FileNotFoundError(f'{path}: missing, though meta.json lists it: {again}')
        size = os.path.getsize(path)
        if name.endswith('.bin'):
            n = meta.get(name[:-4] + '_tokens', 0)
            dtype = meta.get('dtype', 'uint16')
            wanted = n * np.dtype(dtype).itemsize
            if size != wanted:
                reason = 'truncated' if size < wanted else 'another file'
                raise ValueError(f'{path}: {size:,} bytes, but meta.json says {wanted:,} '
                                 f'({n:,} tokens of {dtype}), so it is {reason}: {again}')
        small = name.endswith('.jsonl') and size <= SMALL_FILE and not quick
        if (check or small or name == 'tokenizer.json') and checksum(path) != digest:
            raise ValueError(f'{path}: not the file that meta.json was written for '
                             f'(its checksum differs): {again}')


def check_ids(meta, again):
    """Raises ValueError if the text has ids that its tokenizer does not have.

    All ids of a small file are looked at, and those at 64 places of a large one.
    """
    for ids in tokens(meta, 'train') + tokens(meta, 'val'):
        for i in range(0, len(ids), max(reading.PIECE, len(ids) // 64)):
            part = np.fromfile(ids.filename, ids.dtype, reading.PIECE,
                               offset=ids.offset + i * ids.itemsize)
            top = int(part.max())
            if top >= meta['vocab_size']:
                raise ValueError(
                    f'{ids.filename}: it has the id {top}, but the tokenizer {meta["name"]} has '
                    f'{meta["vocab_size"]} ids, so it was written with another tokenizer: {again}')


def checked(folder, tokenizer='', vocab_size=0):
    """The folder, or ValueError if it was prepared with another tokenizer than is asked for."""
    meta = open_meta(folder)
    if not same_tokenizer(meta, tokenizer, vocab_size):
        asked = f'--tokenizer={tokenizer}'
        if same_tokenizer(meta, tokenizer):
            asked = f'--vocab_size={vocab_size}'
        raise ValueError(f'{folder} is prepared with the tokenizer {meta["name"]} '
                         f'({meta["vocab_size"]} ids), but {asked} asks for another: '
                         'leave that out, or pass the text itself as --data to prepare it anew')
    return folder


def same_source(folder, made_of):
    """The folder, or ValueError if it was made of other files than those that are given now."""
    meta = open_meta(folder, quick=True)
    if made_of and made_of != meta.get('made_of'):
        raise ValueError(f'{folder} was made of something else ({meta["source"]}): '
                         'delete it, or pass --out=DIR for another folder')
    return folder


# ---------------------------------------------------------------------------------------- mixtures

def vocabulary_path(meta):
    """The name or path of a folder's tokenizer, as one would pass it to --tokenizer."""
    if meta['tokenizer'].endswith('.json'):
        return os.path.join(meta['folder'], meta['tokenizer'])
    return meta['tokenizer']


def check_alike(meta, first):
    """Raises ValueError if a part of a mixture is of another kind than the first one."""
    wrong = ''
    if meta['kind'] != first['kind']:
        wrong = f'{meta["kind"]} data, expected {first["kind"]} data'
    elif meta['kind'] in ('labelled', 'tagged') and meta['labels'] != first['labels']:
        wrong = f'other labels ({", ".join(meta["labels"] or ["numbers"])[:60]})'
    if wrong:
        wrong += f' as in {first["folder"]}'
    elif not same_tokenizer(meta, vocabulary_path(first)):
        wrong = (f'the tokenizer {meta["name"]}, expected {first["name"]} '
                 f'({first["vocab_size"]} ids) as in {first["folder"]}: '
                 'name the data themselves and a --tokenizer for all of them')
    if wrong:
        raise ValueError('a mixture has one kind of data, one set of labels and one tokenizer: '
                         f'{meta["folder"]} has {wrong}')


def title_of(meta):
    """A short name of a folder: of data/text/NAME-HASH-TOKENIZER it is NAME."""
    title = os.path.basename(meta['folder']).removesuffix('-' + meta['name'])
    return re.sub(r'-[0-9a-f]{10}$', '', title)


def mixed(parts, folder):
    """The meta of a mixture of folders. Each part gets a title, for the names of its metrics.

    Raises ValueError if the parts differ in their kind of data, labels or tokenizer.
    """
    first = parts[0]
    titles = []
    for meta in parts:
        check_alike(meta, first)
        title = title_of(meta)
        titles.append(title if title not in titles else f'{title}-{len(titles)}')
    meta = first | dict(folder=folder, source=folder, metric='')
    for name in first:
        if name.startswith(('train_', 'val_')):
            meta[name] = sum(part.get(name, 0) for part in parts)
    if any(part.get('no_answer') for part in parts):
        meta['no_answer'] = True
    path = vocabulary_path(first)
    meta['tokenizer'] = os.path.abspath(path) if path.endswith('.json') else path
    meta['parts'] = [part | {'title': title} for part, title in zip(parts, titles)]
    meta['sha256'] = {f'{i}/{name}': digest for i, part in enumerate(parts)
                      for name, digest in part['sha256'].items()}
    return meta
