"""The device and the precision that a model runs in, memory on both, and settings of a CPU process."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from mtkit.errors import ConfigError, TrainingError
from mtkit.job_limits import cpu_quota

_KERNELS_KEPT = 64
"""Compiled kernels per cache: a batch has about ten matrices, and few batches run at a time."""

_FLOAT8_CAPABILITY = (8, 9)
"""CUDA compute capability from which GPUs multiply matrices in FP8."""

_OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What errors say that mean a lack of memory and are no `torch.OutOfMemoryError`."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a tensor of the CPU on a device, without waiting for it."""
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def choose_device(name: str, where: str = "training.device", local_rank: int | None = None) -> torch.device:
    """Return the device of this name, a GPU with its index (`torch.cuda.set_device` needs it).

    For a GPU, the attention of cuDNN is turned off in this process.

    Args:
        name: `auto` is a GPU if there is one; `cuda` without an index is the current GPU of the process.
        where: the config key or parameter for error messages.
        local_rank: the local rank in distributed training, else None. The process takes the GPU with this index, or
            the only GPU that its launcher makes visible.

    Raises:
        ConfigError: If there is no such device, PyTorch was not built for it, or several processes would share it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"unknown device {name!r}", where=where, hint="auto, cpu, cuda or cuda:1"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported", where=where, hint="auto, cpu, cuda or cuda:1")
    if device.type == "cpu":
        return device
    gpu = _choose_gpu(device, where, local_rank)
    _check_kernels(gpu, where)
    return gpu


def _choose_gpu(device: torch.device, where: str, local_rank: int | None) -> torch.device:
    """Return the GPU of a process, as `choose_device` describes."""
    index: int | None = device.index
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = f"{count} GPU{'s' if count > 1 else ''}" if count else "no GPU"
    seen = f"PyTorch sees {number}"
    if (index or 0) >= count:
        raise ConfigError(f"no device '{device}': {seen}", where=where, hint="auto or cpu")
    # PyTorch prefers cuDNN's attention since 2.11, on compute capability 9 and 10. It is fast where shapes repeat
    # (huggingface/transformers PR 48163), but for each new shape it builds a plan, half a second in each direction
    # (modelscope/FunASR issue 3704), and batches have hundreds of shapes. Its gradients can be NaN where there is a
    # mask (pytorch/pytorch issue 196678).
    torch.backends.cuda.enable_cudnn_sdp(False)
    if local_rank is None:
        return torch.device("cuda", torch.cuda.current_device()) if index is None else device
    if index is not None:
        what = f"'{device}' is one GPU, but each of the processes needs its own"
        raise ConfigError(what, where=where, hint="cuda or auto")
    if count == 1:
        return torch.device("cuda", 0)
    if local_rank >= count:
        what = f"no GPU for local rank {local_rank}: {seen}"
        raise ConfigError(what, where=where, hint="start one process per GPU")
    return torch.device("cuda", local_rank)


def _check_kernels(gpu: torch.device, where: str) -> None:
    """Check that PyTorch was built for a GPU; new builds leave out old ones.

    Raises:
        ConfigError: If not.
    """
    built = re.findall(r"(sm|compute)_(\d+)", " ".join(torch.cuda.get_arch_list()))
    if not built:  # not NVIDIA's
        return
    capability = torch.cuda.get_device_capability(gpu)
    for kind, number in built:  # kernels (sm) run on later minor versions, PTX (compute) on all later ones
        version = divmod(int(number), 10)
        if version <= capability and (kind == "compute" or version[0] == capability[0]):
            return
    what = f"this PyTorch has no kernels for {torch.cuda.get_device_name(gpu)} (sm_{capability[0]}{capability[1]})"
    hint = "install a PyTorch for an older CUDA, such as 12.6, or choose cpu"
    raise ConfigError(what, where=where, hint=hint)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of activations and matrix products; `auto` is bfloat16 if the device supports it natively.

    With `fp8` it is bfloat16, for everything but the products in FP8.
    """
    if precision == "fp8":
        return torch.bfloat16
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda":
        with torch.cuda.device(device):  # PyTorch checks the current GPU, and a machine may have two kinds.
            return (
                torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
            )
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def has_float8(device: torch.device) -> bool:
    """Return whether a device multiplies matrices in FP8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FLOAT8_CAPABILITY


def check_float8(device: torch.device) -> None:
    """Check that a device multiplies matrices in FP8.

    Raises:
        ConfigError: If it does not.
    """
    if has_float8(device):
        return
    what = f"{processor_name(device)} does not multiply matrices in FP8"
    hint = "bf16; NVIDIA GPUs have FP8 since Ada and Hopper"
    raise ConfigError(what, where="training.precision fp8", hint=hint)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in the config."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def processor_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    return name


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 matrices in hardware (AVX-512 BF16 or AMX)."""
    flags: set[str] = set()
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as file:
            line = next((line for line in file if line.startswith("flags")), "")
        flags = set(line.split())
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def limit_kernel_caches() -> None:
    """Limit oneDNN's caches of compiled kernels, so that memory does not grow with every new shape.

    By default two caches (oneDNN's own, and PyTorch's around it in each thread) keep 1,024 kernels each, up to half a
    megabyte per kernel, one for each number of rows that a matrix was ever multiplied by. Freed one by one between
    tensors, they also fragment the heap. Only the kernels of one batch are needed repeatedly. The variables are read
    when the first kernel is compiled; values set by the user are kept.
    """
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, str(_KERNELS_KEPT))


def limit_threads() -> None:
    """Let PyTorch use no more threads than the quota of a container allows, which it does not read itself.

    A quota that is used up stops all threads until its period is over. A number in `OMP_NUM_THREADS` is kept.
    """
    quota = cpu_quota()
    if "OMP_NUM_THREADS" not in os.environ and quota < torch.get_num_threads():
        torch.set_num_threads(math.ceil(quota))


def configure_malloc(*, one_arena: bool = False) -> None:
    """Make glibc keep freed memory, so that the tensors of a step reuse the pages of the previous step.

    Otherwise every large tensor is mapped again, and a tenth of a training step is spent on page faults.

    Args:
        one_arena: use one heap for all threads. Otherwise forward and backward pass, which run in different threads,
            keep the freed memory of a step twice.
    """
    if sys.platform != "linux":
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # M_TRIM_THRESHOLD, … of mallopt(3)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        if one_arena:
            libc.mallopt(arena_max, 1)
        libc.mallopt(mmap_threshold, 32 << 20)  # the largest value that glibc accepts
        libc.mallopt(trim_threshold, 2**31 - 1)


def use_deterministic_algorithms(wanted: bool) -> None:
    """Let this process use only algorithms of a GPU that give the same result each time, or all algorithms again.

    The library of matrix products reads the variable when it is first used; a value set by the user is kept.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    elif not torch.are_deterministic_algorithms_enabled():
        return  # PyTorch's function would import its compiler
    torch.use_deterministic_algorithms(wanted)
    # nothing of mtkit reads memory that it has not written
    torch.utils.deterministic.fill_uninitialized_memory = not wanted  # type: ignore[attr-defined]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of PyTorch means a lack of memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


@contextmanager
def out_of_memory_errors(hint: str) -> Iterator[None]:
    """Turn an out-of-memory error of PyTorch into a `TrainingError` with a hint which setting to change.

    Raises:
        TrainingError: If the block runs out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError("out of memory", hint=hint) from error


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak that `peak_memory` returns, if the system supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of tensors on a GPU, or of the process (resident set) on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with (
        suppress(OSError, StopIteration),
        open("/proc/self/status", encoding="ascii", errors="replace") as file,
    ):
        return int(next(line for line in file if line.startswith("VmHWM:")).split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
