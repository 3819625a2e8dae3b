"""What this machine can do: its name, the matrix products a second that it reaches, the memory that was used."""

from __future__ import annotations

import platform
import time
from contextlib import suppress

import torch

from mtkit.device import DTYPES

_CPU_SIZES, _GPU_SIZES = (256, 1024, 2048), (4096, 8192)
PEAK_SECONDS = 0.5
"""For each precision and size."""


def machine_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_peaks(device: torch.device) -> dict[str, float]:
    """FLOP/s of the fastest square matrix product in each precision; fp16 only where it is faster than fp32."""
    peaks = {name: _matmul_peak(device, dtype) for name, dtype in DTYPES.items()}
    if peaks["fp16"] <= peaks["fp32"]:
        del peaks["fp16"]
    return peaks


def _matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of repeated square products, 2 n^3 each. A slow precision is given up at the first size."""
    best = 0.0
    for size in _CPU_SIZES if device.type == "cpu" else _GPU_SIZES:
        if best and 2 * size**3 / best > PEAK_SECONDS:
            break
        left, right = torch.randn(2, size, size, device=device).to(dtype)
        deadline = time.perf_counter() + PEAK_SECONDS
        while time.perf_counter() < deadline:
            start = time.perf_counter()
            torch.mm(left, right)
            synchronize(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
