"""The device that a run computes on: how it is chosen, what it can do, how much memory it used."""
import contextlib
import ctypes
import os
import sys

import torch
import torch.nn.functional as F

# FLOP/s of dense bf16 products, from the data sheets
PEAK = {'B200': 2250e12, 'H200': 989e12, 'H100': 989e12, 'A100': 312e12, 'L40S': 362e12,
        'RTX 4090': 165e12, 'RTX 3090': 71e12}

M_TRIM_THRESHOLD = -1       # names of glibc's malloc.h
M_MMAP_MAX = -4


def pick_device(name):
    """The torch.device that --device means, made ready. Raises ValueError if this machine has none
    of that name."""
    if name == 'auto':
        name = 'cpu'
        if torch.cuda.is_available():
            name = 'cuda'
        elif torch.backends.mps.is_available():
            name = 'mps'
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device('meta')
    if device.type not in ('cpu', 'cuda', 'mps'):
        raise ValueError(f'--device={name}: expected auto, cpu, cuda, cuda:N or mps')
    if device.type == 'cuda':
        return ready_cuda(device)
    if device.type == 'cpu':
        keep_memory()
        wide_products()
    return device


def ready_cuda(device):
    """The GPU of this rank, with TF32 products allowed."""
    if not torch.cuda.is_available():
        raise ValueError(f'--device={device}: this torch ({torch.__version__}) sees no CUDA '
                         'device; use --device=cpu')
    if device.index is None:
        device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)))
    count = torch.cuda.device_count()
    if device.index >= count:
        raise ValueError(f'--device={device}: there are {count} GPUs (0 to {count - 1})')
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    return device


def keep_memory():
    """Keeps large blocks (logits) in the process when they are freed: fresh pages cost up to a
    third of a step."""
    with contextlib.suppress(OSError, AttributeError, TypeError):      # no glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)


def wide_products():
    """Gives matrix products in fp32 to oneDNN where MKL leaves AVX-512 unused, on AMD: they take
    half of the time.

    torch has only one setting for that, and it allows bf16 inside, which oneDNN takes up on AMX
    alone. So a product is held against float64 first.
    """
    matmul = getattr(torch.backends.mkldnn, 'matmul', None)
    wide = torch.backends.cpu.get_cpu_capability() == 'AVX512' and hasattr(matmul, 'fp32_precision')
    with contextlib.suppress(OSError):
        if not wide or 'AuthenticAMD' not in open('/proc/cpuinfo').read(4000):
            return
        matmul.fp32_precision = 'bf16'
        a = torch.arange(512 * 512.0).sin().view(512, 512)
        error = ((a @ a).double() - a.double() @ a.double()).abs().max()
        if error > 1e-3:
            matmul.fp32_precision = 'ieee'


def native_bf16():
    """Whether the GPU computes in bf16 itself. Older ones emulate it, slowly: float16 is what they
    have."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def pick_dtype(name, device, shard):
    """The dtype of matrix products that --dtype means. Raises ValueError if the device cannot train
    in it."""
    known = dict(bfloat16=torch.bfloat16, float16=torch.float16, float32=torch.float32)
    if name in known:
        dtype = known[name]
    elif device.type != 'cuda':
        dtype = torch.float32
    else:
        dtype = torch.bfloat16 if native_bf16() else torch.float16
    if dtype == torch.float16 and (device.type != 'cuda' or shard):
        raise ValueError('--dtype=float16 needs CUDA and no --shard: use bfloat16 or float32')
    return dtype


def peak_flops(device):
    """FLOP/s of the device's bf16 products by its data sheet, or 0 where it is not known."""
    if device.type != 'cuda':
        return 0
    name = torch.cuda.get_device_name(device)
    return next((flops for model, flops in PEAK.items() if model in name), 0)


def peak_memory(device):
    """The most memory used so far, in MB: the GPU's, or the process's on a CPU."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    try:
        import resource
    except ImportError:
        return windows_peak_memory()
    # ru_maxrss is in bytes on macOS, in kB elsewhere
    unit = 2 ** 20 if sys.platform == 'darwin' else 2 ** 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def windows_peak_memory():
    """The process's peak memory in MB as Windows counts it (PROCESS_MEMORY_COUNTERS of psapi.h)."""
    class Counters(ctypes.Structure):
        _fields_ = [('size', ctypes.c_uint32), ('page_faults', ctypes.c_uint32),
                    ('peak', ctypes.c_size_t), ('rest', ctypes.c_size_t * 7)]

    counters = Counters(size=ctypes.sizeof(Counters))
    kernel = ctypes.WinDLL('kernel32')
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.size)
    return counters.peak / 2 ** 20


def attention_backend(run):
    """The name of the kernel that scaled_dot_product_attention picks while run() runs, or
    'unknown'."""
    seen = set()
    real = F.scaled_dot_product_attention

    def spy(*args, **options):
        with contextlib.suppress(Exception):
            seen.add(torch.nn.attention.SDPBackend(torch._fused_sdp_choice(*args, **options)))
        return real(*args, **options)

    F.scaled_dot_product_attention = spy
    try:
        run()
    finally:
        F.scaled_dot_product_attention = real
    names = sorted(kernel.name.lower().replace('_attention', '') for kernel in seen)
    return ', '.join(names) or 'unknown'


def out_of_memory(error):
    """Whether an error is lack of memory, of a GPU or the machine. torch has a type of its own for
    GPUs alone."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    texts = ("can't allocate memory", 'CUBLAS_STATUS_ALLOC_FAILED', 'CUDA error: out of memory')
    return any(text in str(error) for text in texts)
