"""Requirements of `torch.compile` beyond PyTorch, and its failures as one-line errors."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from mtkit.errors import ConfigError, TrainingError

_WHERE = "training.compile"
_LONGEST_REASON = 200
"""Characters shown of a compiler's message."""


def check_compiler(device: torch.device, where: str = _WHERE) -> None:
    """Check that the tools are installed with which PyTorch compiles for this device.

    Args:
        device: device of the model.
        where: config key or option that asks for compilation.

    Raises:
        ConfigError: If something is missing.
    """
    missing = _missing_tool(device)
    if missing is not None:
        what, hint = missing
        raise ConfigError(what, where=where, hint=hint)


def _missing_tool(device: torch.device) -> tuple[str, str] | None:
    """Return what is missing to compile for a device and what to do about it, or None."""
    if device.type == "cuda":
        if find_spec("triton") is None:
            return "Triton is not installed", "pip install triton"
        if not any(map(shutil.which, [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"])):
            return "Triton needs a C compiler, and there is none", "install gcc, or set CC"
    else:
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            return f"no C++ compiler {compiler}", f"install {compiler}, or set CXX"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's C headers are missing", "install python3-dev, or your system's equivalent"
    return None


@contextmanager
def compile_errors() -> Iterator[None]:
    """Turn a failure of `torch.compile` into a one-line error.

    Raises:
        TrainingError: If Dynamo or Inductor failed.
    """
    try:
        yield
    except RuntimeError as error:
        modules = [kind.__module__ for kind in type(error).__mro__]
        if not any(name.startswith(("torch._dynamo", "torch._inductor")) for name in modules):
            raise
        lines = [line.strip() for line in str(error).split("\n") if line.strip()] or [type(error).__name__]
        reason = next((line for line in lines if "error:" in line), lines[0])[:_LONGEST_REASON]
        hint = "set it to false; the traceback shows the compiler's whole output"
        raise TrainingError(f"the model could not be compiled: {reason}", where=_WHERE, hint=hint) from error
