"""The device that a run computes on."""
import contextlib
import ctypes
import os
import resource
import sys

import torch
import torch.nn.functional as F


# bf16 dense FLOP/s, from data sheets
PEAK = {'B200': 2250e12, 'H200': 989e12, 'H100': 989e12, 'A100': 312e12, 'L40S': 362e12, 'RTX 4090': 165e12,
        'RTX 3090': 71e12}


def wide_products():
    """MKL leaves AVX-512 unused on AMD, oneDNN does not: matrix products in half of the time. torch gives fp32 to
    oneDNN only by the setting that allows bf16 inside, which oneDNN takes up on AMX alone: a product is held against
    fp64 first."""
    matmul, a = getattr(torch.backends.mkldnn, 'matmul', None), torch.arange(512 * 512.0).sin().view(512, 512)
    with contextlib.suppress(OSError):
        wide = torch.backends.cpu.get_cpu_capability() == 'AVX512' and hasattr(matmul, 'fp32_precision')
        if not wide or 'AuthenticAMD' not in open('/proc/cpuinfo').read(4000): return
        matmul.fp32_precision = 'bf16'
        if ((a @ a).double() - a.double() @ a.double()).abs().max() > 1e-3: matmul.fp32_precision = 'ieee'


def native_bf16():                                   # older GPUs emulate it, slowly: float16 is what they have
    return torch.cuda.is_bf16_supported(including_emulation=False)


def pick_device(name):
    local = int(os.environ.get('LOCAL_RANK', 0))
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    try: device = torch.device(name)
    except RuntimeError: raise ValueError(f'--device={name}: expected auto, cpu, cuda, cuda:N or mps') from None
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            raise ValueError(f'--device={name}: this torch ({torch.__version__}) sees no CUDA device; use --device=cpu')
        device = torch.device('cuda', local if device.index is None else device.index)
        if device.index >= (n := torch.cuda.device_count()):
            raise ValueError(f'--device={device}: there are {n} GPUs (0 to {n - 1})')
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    elif device.type == 'cpu':
        # keep large blocks (logits) in the process: fresh pages cost up to a third of a step
        with contextlib.suppress(OSError, AttributeError, TypeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(-4, 0), libc.mallopt(-1, 2 ** 31 - 1)            # glibc's M_MMAP_MAX, M_TRIM_THRESHOLD
        wide_products()
    elif device.type != 'mps': raise ValueError(f'--device={name}: expected auto, cpu, cuda, cuda:N or mps')
    return device


def peak_memory(device):                             # in MB
    if device.type == 'cuda': return torch.cuda.max_memory_allocated(device) / 2 ** 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == 'darwin' else 10)


def attention_backend(run):
    "the name of the kernel that scaled_dot_product_attention picks while run() runs"
    seen, real = set(), F.scaled_dot_product_attention
    def spy(*a, **kw):
        with contextlib.suppress(Exception): seen.add(torch.nn.attention.SDPBackend(torch._fused_sdp_choice(*a, **kw)))
        return real(*a, **kw)
    F.scaled_dot_product_attention = spy
    try: run()
    finally: F.scaled_dot_product_attention = real
    return ', '.join(sorted(kernel.name.lower().replace('_attention', '') for kernel in seen)) or 'unknown'


def out_of_memory(e):
    "whether an error is lack of memory, of a GPU or the machine: torch has one type for the first alone"
    return isinstance(e, (MemoryError, torch.OutOfMemoryError)) or any(
        s in str(e) for s in ("can't allocate memory", 'CUBLAS_STATUS_ALLOC_FAILED', 'CUDA error: out of memory'))
