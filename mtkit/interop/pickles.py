"""Files written by `torch.save`: tensors and plain values only, never code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkit.errors import StorageError
from mtkit.files import storage_errors

_HINT = "mtkit loads tensors and plain values only; convert the file to safetensors with the toolkit that wrote it"


def load_pickle(path: Path, allowed: tuple[type, ...] = ()) -> Any:
    """Return the content of a file written by `torch.save`, on the CPU.

    Args:
        path: the file.
        allowed: harmless classes that it may contain besides tensors and plain values.

    Raises:
        StorageError: If it is missing, damaged, or wants to run code.
    """
    with storage_errors(path):
        if not path.is_file():
            raise StorageError("no such file", where=str(path), hint="check the path")
        try:
            with torch.serialization.safe_globals(list(allowed)):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            reason = str(error).replace("\n", " ")
            wants_code = "GLOBAL" in reason or "Unsupported" in reason
            what = (
                "it contains more than tensors and plain values"
                if wants_code
                else "damaged, or not a PyTorch file"
            )
            raise StorageError(what, where=str(path), hint=_HINT) from error
        except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
            raise StorageError(
                "damaged, or not a PyTorch file", where=str(path), hint="copy it again"
            ) from error


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Return a state dict written by `torch.save`.

    Raises:
        StorageError: If it is missing, damaged, not a state dict, or wants to run code.
    """
    found = load_pickle(path)
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise StorageError("not a state dict", where=str(path), hint="copy it again")
    return dict(found)
