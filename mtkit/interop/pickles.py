"""Files written by `torch.save`: tensors and plain values only, never code."""

from __future__ import annotations

import errno
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkit.errors import StorageError
from mtkit.files import storage_errors

_HINT = "mtkit loads tensors and plain values only; convert the file to safetensors with the toolkit that wrote it"


class StandIn:
    """Takes the place of an object of another toolkit: it keeps its attributes and runs none of its code."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        """Keep the attributes."""
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


def stand_ins(path: Path, packages: Sequence[str]) -> list[tuple[type, str]]:
    """Return what `load_pickle` may load from a file as stand-ins: the classes of these packages.

    A file in the format that PyTorch wrote before version 1.6 cannot be searched without loading it; there are none.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # reading a damaged pickle may raise anything
        return []  # load_pickle says what is wrong with the file
    return [(StandIn, name) for name in names if name.split(".")[0] in packages]


def load_pickle(path: Path, allowed: Sequence[type | tuple[type, str]] = ()) -> Any:
    """Return the content of a file written by `torch.save`, on the CPU.

    Args:
        path: the file.
        allowed: harmless classes that it may contain besides tensors and plain values; with a name, those that are
            loaded in place of the class of this name.

    Raises:
        StorageError: If it is missing, damaged, or wants to run code.
    """
    with storage_errors(path):
        if not path.is_file():
            raise StorageError("no such file", where=str(path), hint="check the path")
        try:
            _check_size(path)
            with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, about pickle protocols
                return torch.load(path, map_location="cpu", weights_only=True)
        except StorageError:
            raise
        except pickle.UnpicklingError as error:
            reason = str(error).replace("\n", " ")
            wants_code = "GLOBAL" in reason or "Unsupported" in reason
            what = (
                "it contains more than tensors and plain values"
                if wants_code
                else "damaged, or not a PyTorch file"
            )
            raise StorageError(what, where=str(path), hint=_HINT) from error
        except Exception as error:  # reading a damaged pickle may raise anything
            # EINVAL: it seeks before the start
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            raise StorageError(
                "damaged, or not a PyTorch file", where=str(path), hint="copy it again"
            ) from error


def _check_size(path: Path) -> None:
    """Check that a file does not unpack to more than its size: `torch.save` compresses nothing.

    Raises:
        StorageError: If it does.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > path.stat().st_size:
            what = "it is compressed, and may unpack to far more than its size"
            raise StorageError(what, where=str(path), hint="save it with torch.save")


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Return a state dict written by `torch.save`.

    Raises:
        StorageError: If it is missing, damaged, not a state dict, or wants to run code.
    """
    found = load_pickle(path)
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise StorageError("not a state dict", where=str(path), hint="copy it again")
    return dict(found)
