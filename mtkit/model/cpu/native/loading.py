"""Loading of the compiled libraries, and the instructions that they may use.

They are built with mtkit where there is a C compiler, used on x86-64 CPUs with AVX2, and called through ctypes, without
PyTorch's or Python's headers, so that one build suits every version of both.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from torch import Tensor

from mtkit.errors import ConfigError

INSTRUCTIONS = {"none": 0, "avx2": 1, "avx512": 2, "vnni": 3}
"""Values of the variable MTKIT_NATIVE, which limits the instructions that are used; `none` uses PyTorch alone."""

_INTERFACE = 2
"""What a library must return as its interface; see cpu.h."""


@cache
def load_library(name: str) -> ctypes.CDLL | None:
    """Return a library, or None if it was not built, or with other sources than these.

    Args:
        name: its name, such as `_native`.
    """
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"{name}{suffix}")
        if path.exists():
            try:
                library = ctypes.CDLL(str(path))
            except OSError:  # built for another system
                return None
            if getattr(library, "mtkit_interface", int)() == _INTERFACE:
                return library
            what = f"{path.name} is of another version of mtkit and not used: install mtkit again to build it"
            warnings.warn(what, RuntimeWarning, stacklevel=2)
            return None
    return None


def declare(library: ctypes.CDLL, functions: Mapping[str, tuple[type | None, Sequence[type]]]) -> ctypes.CDLL:
    """Set the types of a library's functions, of the result and of the arguments, and return the library."""
    for name, (result, arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def address(x: Tensor | None) -> int | None:
    """Return the address of a tensor, None for none."""
    return None if x is None else x.data_ptr()


def instruction_limit() -> int:
    """Return the best instructions that may be used, see `INSTRUCTIONS`.

    Raises:
        ConfigError: If the variable MTKIT_NATIVE has another value.
    """
    limit = os.environ.get("MTKIT_NATIVE", "vnni")
    if limit not in INSTRUCTIONS:
        raise ConfigError(
            f"unknown instructions {limit!r}", where="MTKIT_NATIVE", hint=" or ".join(INSTRUCTIONS)
        )
    return INSTRUCTIONS[limit]
