"""Opening prepared folders: meta.json, whether the files are what it says, shards of llm.c, mixtures of several."""
import glob, hashlib, json, os, re

import numpy as np

from data import reading, supervised
from data.download import checksum
from data.reading import EOT, SAMPLE
from data.vocabulary import same_tokenizer

is_name = lambda x: isinstance(x, str) and x != '' and os.path.basename(x) == x and x not in ('.', '..')
is_count = lambda x: type(x) is int and 0 <= x < 1 << 53
is_list = lambda fits: lambda x: isinstance(x, list) and all(map(fits, x))
is_str = lambda x: isinstance(x, str)
# what meta.json may say: it may come from anywhere, and names in it become paths
META = dict({n: is_count for n in ('vocab_size', *(f'{s}_{n}' for s in ('train', 'val')
                                                  for n in ('tokens', 'bytes', 'documents', 'examples')))},
            dtype=lambda x: x in ('uint16', 'uint32'), tokenizer=is_name, name=is_name, source=is_str,
            metric=lambda x: x is None or is_str(x), eot=lambda x: x is None or is_count(x),
            labels=lambda x: x is None or is_list(is_str)(x), more_val=is_list(is_name),
            special=lambda x: isinstance(x, dict) and all(map(is_count, x.values())),
            sha256=lambda x: isinstance(x, dict) and all(map(is_name, x)) and all(map(is_str, x.values())))

def first_words(error):
    return ' '.join(str(error).split())[:100]

def shard_files(folder, split):
    return sorted(p for p in glob.glob(os.path.join(glob.escape(folder), '*.bin'))
                  if re.search(rf'_{split}(_\d+)?\.bin$', p))

def shard_tokens(path):
    "the number of tokens of a shard: its header, int32[256] of (20240520, 1, count), against its size"
    size = os.path.getsize(path)
    header = [int(x) for x in np.fromfile(path, '<i4', min(256, size // 4))[:3]]
    if size < 1024 or header[:2] != [20240520, 1]:
        raise ValueError(f'{path}: not a shard of GPT-2 tokens (it begins with {header}); '
                         'expected the header [20240520, 1, count]')
    if size != 1024 + 2 * header[2]:
        raise ValueError(f'{path}: {size:,} bytes, its header says {1024 + 2 * header[2]:,} ({header[2]:,} tokens): '
                         'truncated or damaged, delete it and fetch it again')
    return header[2]

def is_prepared(folder):
    return (os.path.isfile(os.path.join(folder, 'meta.json'))
            or bool(shard_files(folder, 'train') or shard_files(folder, 'val')))

def tokens(folder, split):
    "ids of 'train' or 'val' as a list of memory maps, one per shard. Takes a prepared folder or its meta"
    meta = folder if isinstance(folder, dict) else open_meta(folder, quick=True)
    path = os.path.join(meta['folder'], f'{split}.bin')
    if os.path.exists(path):
        return [np.memmap(path, meta['dtype'], 'r') if os.path.getsize(path) else np.zeros(0, meta['dtype'])]
    return [np.memmap(p, '<u2', 'r', offset=1024, shape=(shard_tokens(p),)) for p in shard_files(meta['folder'], split)]

def open_meta(folder, check=False, quick=False):
    """meta.json of a prepared folder as a dict (of a folder of shards, the like of it), with its path as
    meta['folder'], after a look whether the files are what it says. check: compare all checksums too; quick: leave out
    the look at the ids. Of several folders with + between, a mixture: what they have in common, and meta['parts']."""
    if '+' in folder and not os.path.exists(folder):
        return mixed([open_meta(part, check, quick) for part in folder.split('+')], folder)
    folder = folder.rstrip('/') or '/'
    path, again = os.path.join(folder, 'meta.json'), f'delete {folder} and prepare it again'
    if not os.path.exists(path):
        if not is_prepared(folder):
            raise FileNotFoundError(f'{folder}: no prepared folder (it has no meta.json); make one: '
                                    'python data/text.py YOUR_TEXT --out=DIR')
        meta = shard_meta(folder)
    else:
        try:
            with open(path, encoding='utf-8') as f: meta = json.load(f)
            wanted = {'kind', 'version', 'tokenizer', 'name', 'vocab_size', 'sha256'}
            if meta.get('kind') == 'text': wanted |= {'dtype', 'train_tokens', 'val_tokens'}
            missing = sorted(wanted - meta.keys())
            end = 'bin' if meta.get('kind') == 'text' else 'jsonl'
            if not missing and meta['kind'] in list(supervised.COLUMNS):
                missing = [n for n in (f'train.{end}', f'val.{end}') if n not in meta['sha256']]
        except (ValueError, AttributeError, RecursionError, TypeError) as e:
            raise ValueError(f'{path}: not readable as JSON ({first_words(e)}): {again}') from None
        if missing or meta['version'] != 1 or meta['kind'] not in list(supervised.COLUMNS):
            found = f'no {", ".join(missing)}' if missing else f'version {meta["version"]!r}, kind {meta["kind"]!r}'
            raise ValueError(f'{path}: {found}; expected version 1 and a kind of {", ".join(supervised.COLUMNS)}: '
                             f'{again}')
        if wrong := next((n for n, fits in META.items() if n in meta and not fits(meta[n])), ''):
            raise ValueError(f'{path}: its {wrong!r} is {json.dumps(meta[wrong])[:60]}, which no prepared folder has: '
                             f'{again}')
        meta['folder'] = folder
        for name, digest in meta['sha256'].items():
            path = os.path.join(folder, name)
            if not os.path.exists(path): raise FileNotFoundError(f'{path}: missing, though meta.json lists it: {again}')
            if name.endswith('.bin'):
                n, size = meta.get(name[:-4] + '_tokens', 0), os.path.getsize(path)
                want = n * np.dtype(meta.get('dtype', 'uint16')).itemsize
                if size != want:
                    raise ValueError(f'{path}: {size:,} bytes, meta.json says {want:,} '
                                     f'({n:,} tokens of {meta["dtype"]}), '
                                     f'so it is {"truncated" if size < want else "another file"}: {again}')
            small = name == 'tokenizer.json' or name.endswith('.jsonl') and os.path.getsize(path) <= SAMPLE
            if (check or small and not quick or name == 'tokenizer.json') and checksum(path) != digest:
                raise ValueError(f'{path}: not the file that meta.json was written for (its checksum differs): {again}')
    if meta['kind'] == 'text' and not quick:
        for ids in tokens(meta, 'train') + tokens(meta, 'val'):
            for i in range(0, len(ids), max(reading.PIECE, len(ids) // 64)):       # all of a small file, 64 places of a large
                part = np.fromfile(ids.filename, ids.dtype, reading.PIECE, offset=ids.offset + i * ids.itemsize)
                if (top := int(part.max())) >= meta['vocab_size']:
                    raise ValueError(f'{ids.filename}: it has the id {top}, the tokenizer {meta["name"]} has '
                                     f'{meta["vocab_size"]} ids, so it was written with another tokenizer: {again}')
    return meta

def mixed(parts, folder):
    "metas -> one meta; the parts get a title each, which is part of the names of their metrics"
    first, titles = parts[0], []
    for meta in parts:
        asked = (os.path.join(first['folder'], first['tokenizer']) if first['tokenizer'].endswith('.json')
                 else first['tokenizer'])
        what = [(meta['kind'], first['kind'], f'{meta["kind"]} data, expected {first["kind"]}')]
        if meta['kind'] in ('labelled', 'tagged'):
            what += [(meta['labels'], first['labels'],
                      f'other labels ({", ".join(meta["labels"] or ["numbers"])[:60]})')]
        what += [(same_tokenizer(meta, asked), True,
                  f'the tokenizer {meta["name"]}, expected {first["name"]} ({first["vocab_size"]} ids)')]
        for has, wanted, words in what:
            if has == wanted: continue
            raise ValueError('a mixture has one kind of data, one set of labels and one tokenizer: '
                             f'{meta["folder"]} has {words} as in {first["folder"]}'
                             + ': name the data themselves and a --tokenizer for all of them' * ('tokenizer' in words))
        title = os.path.basename(meta['folder']).removesuffix('-' + meta['name'])
        title = re.sub(r'-[0-9a-f]{10}$', '', title)     # of data/text/NAME-HASH-TOKENIZER
        titles.append(title if title not in titles else f'{title}-{len(titles)}')
    sums = {n: sum(meta.get(n, 0) for meta in parts) for n in first if n.startswith(('train_', 'val_'))}
    sums |= {'no_answer': True} if any(meta.get('no_answer') for meta in parts) else {}
    return first | sums | dict(folder=folder, source=folder, metric='',
                               tokenizer=os.path.abspath(asked) if asked.endswith('.json') else asked,
                               parts=[meta | {'title': title} for meta, title in zip(parts, titles)],
                               sha256={f'{i}/{n}': d for i, meta in enumerate(parts)
                                       for n, d in meta['sha256'].items()})

def shard_meta(folder):
    meta = dict(kind='text', version=1, folder=folder, tokenizer='gpt2', name='gpt2', vocab_size=50257, dtype='uint16',
                special={EOT: 50256}, eot=50256, source='shards', sha256={})
    for split in ('train', 'val'):
        if not shard_files(folder, split):
            raise FileNotFoundError(f'{folder}: no {split} shard in it (NAME_{split}_000000.bin), and both kinds are '
                                    f'needed: get one, like python data/fineweb.py --shards=1 --out={folder}')
        meta[split + '_tokens'] = 0
        for path in shard_files(folder, split):
            meta[split + '_tokens'] += shard_tokens(path)
            with open(path, 'rb') as f:                  # its header and ends: checksums of many gigabytes take minutes
                head = f.read(1 << 16)
                f.seek(-min(len(head), 1 << 16), 2)
                meta['sha256'][os.path.basename(path)] = hashlib.sha256(head + f.read()).hexdigest()
    return meta

def same_source(folder, made_of):
    "the folder, or an error if it was made of other files than those that are given now"
    meta = open_meta(folder, quick=True)
    if made_of in ('', meta.get('made_of')): return folder
    raise ValueError(f'{folder} was made of something else ({meta["source"]}): '
                     'delete it, or pass --out=DIR for another folder')

def checked(folder, tokenizer='', vocab_size=0):
    meta = open_meta(folder)
    if not same_tokenizer(meta, tokenizer, vocab_size):
        asked = f'--vocab_size={vocab_size}' if same_tokenizer(meta, tokenizer) else f'--tokenizer={tokenizer}'
        raise ValueError(f'{folder} is prepared with the tokenizer {meta["name"]} ({meta["vocab_size"]} ids), asked '
                         f'for is {asked}: leave that out, or pass the text itself as --data to prepare it anew')
    return folder
