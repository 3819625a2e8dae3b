"""Which device and which precision a model runs in, and how a CPU is made ready."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from mtkit.errors import ConfigError, TrainingError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str, where: str = "training.device", number: int = 0) -> torch.device:
    """The device of this name. Raises: ConfigError: at `where`, it is not there.

    Args:
        name: `auto` is a GPU if there is one.
        where: for the message.
        number: of the GPU, where the name does not say it: that of the process on its machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and number:
        name = f"cuda:{number}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{name!r} is no device", where=where, hint="auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{name!r} is not supported", where=where, hint="auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = f"{torch.cuda.device_count()} GPUs" if torch.cuda.is_available() else "no GPU"
        raise ConfigError(f"{name!r} is not there: PyTorch sees {there}", where=where, hint="auto or cpu")
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of activations and matrix products; `auto` is bfloat16 where the device computes in it natively."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
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


def keep_freed_memory() -> None:
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
def out_of_memory_named(hint: str) -> Iterator[None]:
    """Turn running out of memory into a TrainingError that names the knob."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError("out of memory", hint=hint) from error


def forget_peak_memory(device: torch.device) -> None:
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
