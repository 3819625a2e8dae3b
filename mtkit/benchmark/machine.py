"""Name and peak matrix-product speed of this machine."""

from __future__ import annotations

import time

import torch

from mtkit.device import DTYPES, has_float8, processor_name, synchronize
from mtkit.formatting import format_count

_CPU_SIZES, _GPU_SIZES = (256, 1024, 2048), (4096, 8192)
PEAK_SECONDS = 0.5
"""Duration of the measurement for each precision and matrix size."""


def machine_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the CPU with the number of threads."""
    name = processor_name(device)
    return name if device.type == "cuda" else f"{name}, {format_count(torch.get_num_threads(), 'thread')}"


def matmul_peaks(device: torch.device) -> dict[str, float]:
    """Return the FLOP/s of the fastest square matrix product by precision; fp16 only if it is faster than fp32.

    Where the device has FP8, so has the result.
    """
    peaks = {name: _matmul_peak(device, dtype) for name, dtype in DTYPES.items()}
    if peaks["fp16"] <= peaks["fp32"]:
        del peaks["fp16"]
    if has_float8(device):
        peaks["fp8"] = _matmul_peak(device, torch.float8_e4m3fn)
    return peaks


def _matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s (2 n^3 per product) of the fastest of square products; slow precisions try one size only."""
    best = 0.0
    for size in _CPU_SIZES if device.type == "cpu" else _GPU_SIZES:
        if best and 2 * size**3 / best > PEAK_SECONDS:
            break
        left, right = torch.randn(2, size, size, device=device).to(dtype)
        one = torch.ones((), device=device)
        deadline = time.perf_counter() + PEAK_SECONDS
        while time.perf_counter() < deadline:
            start = time.perf_counter()
            if dtype.itemsize == 1:
                torch._scaled_mm(
                    left, right.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
                )
            else:
                torch.mm(left, right)
            synchronize(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
