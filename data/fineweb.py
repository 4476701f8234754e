"""FineWeb, 10 billion tokens of web text in GPT-2's vocabulary: the shards of llm.c and modded-nanogpt, as they lie.

What: fineweb_val_000000.bin and fineweb_train_000001.bin to 000103.bin, 100 million tokens (200 MB) each: int32[256]
header (magic 20240520, version 1, count), then uint16 ids. A broken download goes on where it stopped; each shard is
held against the count in its header. Documents begin with the end-of-text id here.

    python data/fineweb.py --shards=8                        # 1.8 GB; then: python train.py --data=fineweb
    python data/fineweb.py --shards=103 --source=/mnt/fineweb10B    # links the shards there; the rest is an error
"""
import os, shutil, sys

if __name__ == '__main__': sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import text

URL = 'https://huggingface.co/datasets/kjj0/fineweb10B-gpt2/resolve/main/'

def prepare(tokenizer='gpt2', vocab_size=0, source='', out='', shards=0):
    "shards: how many to train on; 0 takes what is there, or 8 when nothing is"
    if not 0 <= shards <= 103: raise ValueError(f'--shards={shards}: expected 1 to 103')
    folder = out or os.path.join(text.HERE, 'fineweb')
    if tokenizer in ('bpe', 'char', 'byte'):
        raise ValueError(f'--tokenizer={tokenizer}: the shards hold tokens of gpt2; '
                         'leave it out, or prepare text of your own')
    if shards or not all(text.shard_files(folder, split) for split in ('train', 'val')):
        for name in ['fineweb_val_000000.bin'] + [f'fineweb_train_{i:06d}.bin' for i in range(1, (shards or 8) + 1)]:
            path = os.path.join(folder, name)
            if os.path.exists(path): continue
            found = text.fetch(name, URL + name, folder, source, max_bytes=1 << 28)
            os.makedirs(folder, exist_ok=True)
            if found.endswith('.gz'):
                with text.reading(found), text.open_binary(found) as f, open(path + '.part', 'wb') as g:
                    shutil.copyfileobj(f, g)
                os.replace(path + '.part', path)
            elif found != path:
                text.shard_tokens(found)
                os.symlink(os.path.abspath(found), path)
            try: text.shard_tokens(path)
            except ValueError:
                os.remove(path)
                raise
    return text.checked(folder, tokenizer)

if __name__ == '__main__': text.script(prepare, __doc__)
