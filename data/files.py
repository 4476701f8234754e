"""
Files that may come from anywhere: JSON, safetensors, torch.save, folders in the Hugging Face layout.

Nothing in a file runs, nothing takes more memory than the file is large, and whatever is wrong with one is a ValueError
of one line with its name. Written files appear whole or not at all. The safetensors format: 8 bytes with the length of
a header, the header (JSON: dtype, shape and place of each tensor), then the bytes of the tensors.
"""
import contextlib, io, json, math, os, zipfile

import numpy as np
import torch

def write_atomic(path, write):
    "write(file) to a temporary name, flush it to the disk, rename it: `path` is always whole, the old one or the new"
    tmp = path + '.tmp'
    try:
        with open(tmp, 'wb') as f:
            write(f); f.flush(); os.fsync(f.fileno())
        os.replace(tmp, path)
    except BaseException:
        with contextlib.suppress(OSError): os.remove(tmp)
        raise

SAFE = {'F64': torch.float64, 'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16, 'I64': torch.int64,
        'I32': torch.int32, 'I16': torch.int16, 'I8': torch.int8, 'U8': torch.uint8, 'BOOL': torch.bool}

def first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]

@contextlib.contextmanager
def untrusted(path, but=()):
    "files come from anywhere: whatever goes wrong while one is understood is a ValueError of one line with its name"
    try: yield
    except (OSError, *but): raise
    except Exception as e:
        line = ' '.join(str(e).split())[:300]
        if not isinstance(e, ValueError): line = f'damaged, or not what it should be ({type(e).__name__}: {line[:150]})'
        cause = e if os.environ.get('TRACEBACK') else None
        raise ValueError(line if str(path) in line else f'{path}: {line}') from cause

def read_json(path):
    with untrusted(path), open(path, encoding='utf-8') as f:
        try: found = json.load(f)
        except (ValueError, RecursionError): raise ValueError('not JSON') from None
        if not isinstance(found, dict): raise ValueError(f'a {type(found).__name__}; expected a JSON object')
        return found

def read_pickle(path):
    "torch.load of tensors and plain values: nothing in the file runs, and nothing is larger than the file"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as z:
            if any(member.compress_type for member in z.infolist()): raise ValueError('its members are compressed')
        return torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    with open(path, 'rb') as f: data = io.BytesIO(f.read())                # whose read() is no larger than the file
    return torch.load(data, map_location='cpu', weights_only=True)

def are_weights(weights, path):
    "tensors by name, as plain as they are when written, together no larger than the file (some may be shared)"
    if not isinstance(weights, dict): raise ValueError(f'{path}: a {type(weights).__name__}; expected tensors by name')
    for n, w in weights.items():
        plain = isinstance(w, torch.Tensor) and w.layout == torch.strided and w.device.type == 'cpu'
        if not isinstance(n, str) or not plain or w.dtype not in SAFE.values():
            raise ValueError(f'{path}: {str(n)[:80]!r} is no plain tensor; expected tensors by name')
    claim, size = sum(w.numel() * w.element_size() for w in weights.values()), os.path.getsize(path)
    if claim > 8 * size: raise ValueError(f'{path}: its tensors claim {claim:,} bytes, the file has {size:,}')
    return weights

def read_safetensors(path):
    "the file's tensors by name. The format: 8 bytes of header length, a JSON header, buffers. ValueError if it lies"
    size, wrong = os.path.getsize(path), lambda why: ValueError(f'{path}: not a safetensors file ({why})')
    with open(path, 'rb') as f:
        n = int.from_bytes(f.read(8), 'little')
        if size < 8 or n > min(size - 8, 100_000_000): raise wrong(f'a header of {n} bytes in {size} bytes')
        try: header = json.loads(f.read(n))
        except (ValueError, RecursionError): raise wrong('its header is no JSON') from None
    if not isinstance(header, dict): raise wrong('its header is no JSON object')
    header.pop('__metadata__', None)
    try:                                             # in the order of their places
        entries = []
        for name, e in header.items():
            a, b = e['data_offsets']
            entries.append((a, b, name, SAFE[e['dtype']], tuple(e['shape'])))
        entries.sort(key=lambda entry: entry[:2])
    except (KeyError, TypeError, ValueError):
        raise wrong("a tensor's entry lacks a known dtype, shape or data_offsets") from None
    data, out, last = np.memmap(path, np.uint8, 'r', offset=8 + n) if size > 8 + n else np.zeros(0, np.uint8), {}, 0
    for a, b, name, dtype, shape in entries:
        numbers = all(type(x) is int and x >= 0 for x in (a, b, *shape))
        if not numbers or a != last or b > len(data) or b - a != math.prod(shape) * dtype.itemsize:
            raise ValueError(f'{path}: tensor {name[:80]!r} of shape {str(list(shape))[:80]} claims bytes '
                             f'{str(a)[:20]} to {str(b)[:20]} of {len(data)}; the file is cut short or corrupt')
        flat = torch.frombuffer(bytearray(data[a:b]), dtype=dtype) if b > a else torch.empty(0, dtype=dtype)
        with untrusted(path): out[name], last = flat.view(shape), b
    if last != len(data): raise wrong(f'of {len(data)} bytes no tensor claims the last {len(data) - last}')
    return out

def write_safetensors(path, tensors):
    "tensors by name, of any device and layout; their bytes stand in the order given"
    kinds, header, at = {v: k for k, v in SAFE.items()}, {'__metadata__': {'format': 'pt'}}, 0
    for name, t in tensors.items():
        start, at = at, at + t.numel() * t.element_size()
        header[name] = dict(dtype=kinds[t.dtype], shape=list(t.shape), data_offsets=[start, at])
    head = json.dumps(header).encode()
    head += b' ' * (-len(head) % 8)
    def write(f):
        f.write(len(head).to_bytes(8, 'little') + head)
        for t in tensors.values():
            if t.numel(): f.write(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    write_atomic(path, write)

def read_hf(folder):
    "a folder in the Hugging Face layout -> its config (dict) and weights (dict of tensors)"
    where = lambda name: os.path.join(folder, name)
    config = read_json(where('config.json'))
    def read_bin(path):
        with untrusted(path): return are_weights(read_pickle(path), path)
    for name, read in (('model.safetensors', read_safetensors), ('pytorch_model.bin', read_bin)):
        index = where(name + '.index.json')
        if os.path.exists(index):
            with untrusted(index): names = sorted(set(read_json(index)['weight_map'].values()))
        elif os.path.exists(where(name)): names = [name]
        else: continue
        ours = lambda n: isinstance(n, str) and os.path.basename(n) == n and os.path.exists(where(n))
        if bad := [n for n in names if not ours(n)]:
            raise FileNotFoundError(f'{folder}: the shard {bad[0]} is missing')
        return config, {k: v for n in names for k, v in read(where(n)).items()}
    raise FileNotFoundError(f'{folder}: has a config.json but neither model.safetensors nor pytorch_model.bin')
