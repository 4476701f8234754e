"""FineWeb, 10 billion tokens of web text in GPT-2's vocabulary.

What: the shards of llm.c and modded-nanogpt, fineweb_val_000000.bin and fineweb_train_000001.bin to
000103.bin, 100 million tokens (200 MB) each, taken as they are: a header int32[256] (magic
20240520, version 1, count), then uint16 ids. A broken download goes on where it stopped; the size
of each shard is compared with the count in its header. Documents begin with the end-of-text id
here.

    python data/fineweb.py --shards=8               # 1.8 GB; then: python train.py --data=fineweb
    python data/fineweb.py --shards=103 --source=/mnt/fineweb10B    # links to the shards there
"""
import os
import shutil
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import text

URL = 'https://huggingface.co/datasets/kjj0/fineweb10B-gpt2/resolve/main/'
SHARDS = 103


def place(found, path):
    """Unpacks a shard that was found, or links to it, so that it is at `path`.

    Raises ValueError if it is damaged; then nothing is left there.
    """
    if found.endswith('.gz'):
        part = path + '.part'
        with text.reading(found), text.open_binary(found) as f, open(part, 'wb') as out:
            shutil.copyfileobj(f, out)
        os.replace(part, path)
    elif found != path:
        text.shard_tokens(found)
        os.symlink(os.path.abspath(found), path)
    try:
        text.shard_tokens(path)
    except ValueError:
        os.remove(path)
        raise


def prepare(tokenizer='gpt2', vocab_size=0, source='', out='', shards=0):
    """Makes data/fineweb, a folder of shards. Returns the folder.

    shards: how many to train on; 0 takes what is there, or 8 when nothing is
    source: a folder with the shards; one that it lacks is an error
    """
    if not 0 <= shards <= SHARDS:
        raise ValueError(f'--shards={shards}: expected 1 to {SHARDS}')
    if tokenizer in ('bpe', 'char', 'byte'):
        raise ValueError(f'--tokenizer={tokenizer}: the shards hold tokens of gpt2; '
                         'leave it out, or prepare text of your own')
    folder = out or os.path.join(text.HERE, 'fineweb')
    is_there = all(text.shard_files(folder, split) for split in ('train', 'val'))
    if shards or not is_there:
        numbers = range(1, (shards or 8) + 1)
        for name in ['fineweb_val_000000.bin'] + [f'fineweb_train_{i:06d}.bin' for i in numbers]:
            path = os.path.join(folder, name)
            if os.path.exists(path):
                continue
            found = text.fetch(name, URL + name, folder, source, max_bytes=1 << 28)
            os.makedirs(folder, exist_ok=True)
            place(found, path)
    return text.checked(folder, tokenizer)


if __name__ == '__main__':
    text.script(prepare, __doc__)
