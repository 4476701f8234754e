"""Files that may come from anywhere: JSON, safetensors, torch.save, Hugging Face's folders.

Nothing in a file runs, nothing takes more memory than the file is large, and whatever is wrong with
one is a ValueError of one line with its name. Written files appear whole or not at all.

The safetensors format: 8 bytes with the length of a header, the header (JSON: dtype, shape and
place of each tensor), then the bytes of the tensors.
"""
import contextlib
import io
import json
import math
import os
import zipfile

import numpy as np
import torch

SAFE = {
    'F64': torch.float64, 'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16,
    'I64': torch.int64, 'I32': torch.int32, 'I16': torch.int16, 'I8': torch.int8,
    'U8': torch.uint8, 'BOOL': torch.bool,
}
MOST_HEADER = 100_000_000   # bytes, as the format allows


def write_atomic(path, write):
    """Calls write(file) on a temporary file, flushes it to the disk and renames it to path.

    So path is always whole: the old file or the new one.
    """
    tmp = path + '.tmp'
    try:
        with open(tmp, 'wb') as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(tmp)
        raise


def first_line(error):
    """The first line of an error's message, or the name of its type if it has none."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def untrusted(path, but=()):
    """Turns whatever goes wrong while a file is interpreted into a ValueError with its name.

    but: types of errors that pass, besides OSError. With TRACEBACK=1 the cause is kept.
    """
    try:
        yield
    except (OSError, *but):
        raise
    except Exception as e:
        line = ' '.join(str(e).split())[:300]
        if not isinstance(e, ValueError):
            line = f'damaged, or not what it should be ({type(e).__name__}: {line[:150]})'
        if str(path) not in line:
            line = f'{path}: {line}'
        raise ValueError(line) from (e if os.environ.get('TRACEBACK') else None)


def read_json(path):
    """The JSON object in a file, a dict. Raises ValueError if there is something else."""
    with untrusted(path), open(path, encoding='utf-8') as f:
        try:
            found = json.load(f)
        except (ValueError, RecursionError):
            raise ValueError('not JSON') from None
        if not isinstance(found, dict):
            raise ValueError(f'a {type(found).__name__}; expected a JSON object')
        return found


# ----------------------------------------------------------------------------------------- weights

def read_pickle(path):
    """torch.load of tensors and plain values. Nothing in it runs, nothing is larger than it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as z:
            if any(member.compress_type for member in z.infolist()):
                raise ValueError('its members are compressed')
        return torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    with open(path, 'rb') as f:
        data = io.BytesIO(f.read())     # its read() gives no more than the file, whatever is asked
    return torch.load(data, map_location='cpu', weights_only=True)


def are_weights(weights, path):
    """Returns weights if they are plain tensors by name, of a size that the file can have.

    Raises ValueError if not. Tensors may share storage, so they may be up to 8 times the file.
    """
    if not isinstance(weights, dict):
        raise ValueError(f'{path}: a {type(weights).__name__}; expected tensors by name')
    for name, w in weights.items():
        is_plain = isinstance(w, torch.Tensor) and w.layout == torch.strided
        is_plain = is_plain and w.device.type == 'cpu' and w.dtype in SAFE.values()
        if not isinstance(name, str) or not is_plain:
            raise ValueError(f'{path}: {str(name)[:80]!r} is not a plain tensor; '
                             'expected tensors by name')
    claim = sum(w.numel() * w.element_size() for w in weights.values())
    size = os.path.getsize(path)
    if claim > 8 * size:
        raise ValueError(f'{path}: its tensors claim {claim:,} bytes, the file has {size:,}')
    return weights


def read_header(path):
    """The header of a safetensors file and the place where the tensors' bytes begin."""
    size = os.path.getsize(path)
    with open(path, 'rb') as f:
        n = int.from_bytes(f.read(8), 'little')
        if size < 8 or n > min(size - 8, MOST_HEADER):
            raise not_safetensors(path, f'a header of {n} bytes in {size} bytes')
        try:
            header = json.loads(f.read(n))
        except (ValueError, RecursionError):
            raise not_safetensors(path, 'its header is not JSON') from None
    if not isinstance(header, dict):
        raise not_safetensors(path, 'its header is not a JSON object')
    header.pop('__metadata__', None)
    return header, 8 + n


def not_safetensors(path, reason):
    """The error for a file that is not what it should be."""
    return ValueError(f'{path}: not a safetensors file ({reason})')


def read_safetensors(path):
    """The tensors of a safetensors file by name. Raises ValueError if its header does not fit."""
    header, begin = read_header(path)
    try:
        entries = []
        for name, entry in header.items():
            start, end = entry['data_offsets']
            entries.append((start, end, name, SAFE[entry['dtype']], tuple(entry['shape'])))
        entries.sort(key=lambda entry: entry[:2])       # in the order of their places
    except (KeyError, TypeError, ValueError):
        reason = "a tensor's entry lacks a known dtype, shape or data_offsets"
        raise not_safetensors(path, reason) from None
    data = np.zeros(0, np.uint8)
    if os.path.getsize(path) > begin:
        data = np.memmap(path, np.uint8, 'r', offset=begin)
    tensors = {}
    last = 0                                            # where the tensor before has ended
    for start, end, name, dtype, shape in entries:
        fits = all(type(x) is int and x >= 0 for x in (start, end, *shape))
        fits = fits and start == last and end <= len(data)
        if not fits or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f'{path}: tensor {name[:80]!r} of shape {str(list(shape))[:80]} '
                             f'claims bytes {str(start)[:20]} to {str(end)[:20]} of {len(data)}; '
                             'the file is cut short or corrupt')
        flat = torch.empty(0, dtype=dtype)
        if end > start:
            flat = torch.frombuffer(bytearray(data[start:end]), dtype=dtype)
        with untrusted(path):
            tensors[name] = flat.view(shape)
        last = end
    if last != len(data):
        reason = f'no tensor claims the last {len(data) - last} of {len(data)} bytes'
        raise not_safetensors(path, reason)
    return tensors


def write_safetensors(path, tensors):
    """Writes tensors by name, of any device and layout; their bytes stand in the order given."""
    names = {dtype: name for name, dtype in SAFE.items()}
    header = {'__metadata__': {'format': 'pt'}}
    end = 0
    for name, t in tensors.items():
        start = end
        end += t.numel() * t.element_size()
        header[name] = dict(dtype=names[t.dtype], shape=list(t.shape), data_offsets=[start, end])
    head = json.dumps(header).encode()
    head += b' ' * (-len(head) % 8)

    def write(f):
        f.write(len(head).to_bytes(8, 'little') + head)
        for t in tensors.values():
            if t.numel():
                flat = t.detach().cpu().contiguous().reshape(-1)
                f.write(flat.view(torch.uint8).numpy().tobytes())

    write_atomic(path, write)


# ------------------------------------------------------------------------ Hugging Face's folders

def read_bin(path):
    """The tensors of a pytorch_model.bin by name."""
    with untrusted(path):
        return are_weights(read_pickle(path), path)


def read_hf(folder):
    """The config (dict) and weights (tensors by name) of a folder in the Hugging Face layout.

    Raises FileNotFoundError if there are no weights or a shard is missing.
    """
    config = read_json(os.path.join(folder, 'config.json'))
    for name, read in (('model.safetensors', read_safetensors), ('pytorch_model.bin', read_bin)):
        index = os.path.join(folder, name + '.index.json')
        if os.path.exists(index):
            with untrusted(index):
                names = sorted(set(read_json(index)['weight_map'].values()))
        elif os.path.exists(os.path.join(folder, name)):
            names = [name]
        else:
            continue
        weights = {}
        check_shards(folder, names)
        for shard in names:
            weights |= read(os.path.join(folder, shard))
        return config, weights
    raise FileNotFoundError(f'{folder}: has a config.json but neither model.safetensors '
                            'nor pytorch_model.bin')


def check_shards(folder, names):
    """Raises FileNotFoundError if a shard that an index names is not in the folder."""
    for name in names:
        is_name = isinstance(name, str) and os.path.basename(name) == name
        if not is_name or not os.path.exists(os.path.join(folder, name)):
            raise FileNotFoundError(f'{folder}: the shard {name} is missing')
