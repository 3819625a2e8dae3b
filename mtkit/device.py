"""Which device and which precision a model runs in, and how a CPU is made ready."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from mtkit.errors import ConfigError, TrainingError

_KERNELS_KEPT = 64
"""Compiled kernels in each cache: a batch has about ten matrices, and on a CPU few batches are searched together."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str, where: str = "training.device", local_rank: int | None = None) -> torch.device:
    """The device of this name; a GPU with its index, which `torch.cuda.set_device` asks for.

    Args:
        name: `auto` is a GPU if there is one; `cuda` without an index the present GPU of the process.
        where: for the message.
        local_rank: number on its machine of a process that trains together with others: it takes the GPU of that
            number, or the only one that its launcher lets it see.

    Raises:
        ConfigError: at `where`, it is not there, or the processes would share it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{name!r} is no device", where=where, hint="auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{name!r} is not supported", where=where, hint="auto, cpu, cuda or cuda:1")
    return device if device.type == "cpu" else _choose_gpu(device, where, local_rank)


def _choose_gpu(device: torch.device, where: str, local_rank: int | None) -> torch.device:
    """The GPU that `choose_device` describes. Raises: ConfigError."""
    index: int | None = device.index
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = f"{count} GPU{'s' if count > 1 else ''}" if count else "no GPU"
    if (index or 0) >= count:
        raise ConfigError(f"'{device}' is not there: PyTorch sees {there}", where=where, hint="auto or cpu")
    if local_rank is None:
        return torch.device("cuda", torch.cuda.current_device()) if index is None else device
    if index is not None:
        what = f"'{device}' names one GPU, but there are several processes, each with its own"
        raise ConfigError(what, where=where, hint="cuda or auto")
    if count == 1:
        return torch.device("cuda", 0)
    if local_rank >= count:
        what = f"no GPU for process {local_rank} of this machine: PyTorch sees {there}"
        raise ConfigError(what, where=where, hint="start as many processes as there are GPUs")
    return torch.device("cuda", local_rank)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of activations and matrix products; `auto` is bfloat16 where the device computes in it natively."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda":
        with torch.cuda.device(device):  # PyTorch asks the present one, and a machine may have two kinds
            return (
                torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
            )
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """The name that a config gives it."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AVX-512 BF16 or AMX)."""
    flags: set[str] = set()
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as file:
            line = next((line for line in file if line.startswith("flags")), "")
        flags = set(line.split())
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def limit_kernel_caches() -> None:
    """Let few of the kernels that oneDNN compiles be kept, so that memory does not grow with every new shape.

    By default two caches (of oneDNN, and of PyTorch around it in each thread) keep 1,024 kernels each, up to half a
    megabyte a piece, for each number of rows that a matrix was ever multiplied by; as they are freed one by one between
    tensors, the heap is riddled besides. Those of one batch are all that is needed again and again. The variables are
    read when the first kernel is compiled; what the user has set stays.
    """
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, str(_KERNELS_KEPT))


def configure_malloc() -> None:
    """Tell glibc to keep what is freed: tensors of a step reuse the pages of the step before.

    Otherwise every large tensor is mapped anew, and a tenth of a training step goes into page faults.
    """
    if sys.platform != "linux":
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of mallopt(3)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(mmap_threshold, 32 << 20)  # the largest that glibc takes
        libc.mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def out_of_memory_errors(hint: str) -> Iterator[None]:
    """Turn running out of memory into a TrainingError that names the knob."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError("out of memory", hint=hint) from error


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` begin anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, or that the process had in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with (
        suppress(OSError, StopIteration),
        open("/proc/self/status", encoding="ascii", errors="replace") as file,
    ):
        return int(next(line for line in file if line.startswith("VmHWM:")).split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
