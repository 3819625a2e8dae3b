"""What `torch.compile` needs beside PyTorch, and its failures in one line."""

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
"""Characters of a compiler's message that are shown."""


def check_compiler(device: torch.device, where: str = _WHERE) -> None:
    """See that what PyTorch compiles for this device with is there.

    Args:
        device: of the model.
        where: who asks to compile.

    Raises:
        ConfigError: at `where`, with what to install.
    """
    missing = _missing_for(device)
    if missing is not None:
        what, hint = missing
        raise ConfigError(what, where=where, hint=hint)


def _missing_for(device: torch.device) -> tuple[str, str] | None:
    """What is missing to compile for a device, and what to do; None if nothing is."""
    if device.type == "cuda":
        if find_spec("triton") is None:
            return "Triton is not installed", "pip install triton"
        if not any(map(shutil.which, [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"])):
            return "there is no C compiler, which Triton needs", "install gcc, or name a compiler in CC"
    else:
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            return f"there is no C++ compiler {compiler}", f"install {compiler}, or name another in CXX"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "the C headers of Python are missing", "install python3-dev, or the like of your system"
    return None


@contextmanager
def compile_errors() -> Iterator[None]:
    """Turn a failure of `torch.compile` into a TrainingError of one line."""
    try:
        yield
    except RuntimeError as error:
        modules = [kind.__module__ for kind in type(error).__mro__]
        if not any(name.startswith(("torch._dynamo", "torch._inductor")) for name in modules):
            raise
        lines = [line.strip() for line in str(error).split("\n") if line.strip()] or [type(error).__name__]
        reason = next((line for line in lines if "error:" in line), lines[0])[:_LONGEST_REASON]
        hint = "set it to false; the traceback shows all that the compiler said"
        raise TrainingError(f"the model could not be compiled: {reason}", where=_WHERE, hint=hint) from error
