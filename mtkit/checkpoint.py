"""Checkpoints: folders that are complete or not there at all, checked by hash before they are used.

```
step-00012000/  model.safetensors  optimizer.safetensors  state.json  config.yaml  manifest.json
```

A checkpoint is written to a temporary folder beside its place: every file fsynced, the manifest (sizes and sha256)
last, then renamed. Nothing is ever unpickled: tensors are safetensors, the rest is JSON and YAML.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from mtkit.errors import StorageError
from mtkit.files import commit_folder, committed_folder, sha256_file, storage_errors, write_bytes, write_text

MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"
CONFIG_FILE, MANIFEST_FILE = "config.yaml", "manifest.json"
_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_OLD_STEP_FOLDER = re.compile(r"\.(step-\d{8,})\.old")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        weights: the model's parameters by name.
        config: the resolved YAML.
        state: plain numbers and strings of the run.
        optimizer: the optimizer's tensors by name; empty in a folder that is only to translate with.
    """

    weights: dict[str, Tensor]
    config: str
    state: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step belongs."""
    return run / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; until the last moment an old one in its place stays valid. Raises: StorageError."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with storage_errors(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    try:
        _write_tensors(temporary / MODEL_FILE, checkpoint.weights)
        if checkpoint.optimizer:
            _write_tensors(temporary / OPTIMIZER_FILE, checkpoint.optimizer)
        write_text(temporary / STATE_FILE, json.dumps(checkpoint.state, indent=2) + "\n")
        write_text(temporary / CONFIG_FILE, checkpoint.config)
        with storage_errors(temporary):
            files = {path.name: _entry(path) for path in sorted(temporary.iterdir())}
        write_text(temporary / MANIFEST_FILE, json.dumps({"format": 1, "files": files}, indent=2) + "\n")
        commit_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(contiguous))


def _entry(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def verify_checkpoint(folder: Path) -> None:
    """Check every file against the manifest. Raises: StorageError: it says which file is missing or damaged."""
    hint = "copy the folder again, or use another checkpoint"
    manifest = read_json(folder / MANIFEST_FILE)
    files = manifest.get("files") if manifest.get("format") == 1 else None
    if not isinstance(files, dict) or not {MODEL_FILE, CONFIG_FILE, STATE_FILE} <= files.keys():
        raise StorageError("damaged", where=str(folder / MANIFEST_FILE), hint=hint)
    for name, entry in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise StorageError("missing from the checkpoint", where=str(path), hint=hint)
        with storage_errors(path):
            if entry != _entry(path):
                raise StorageError("damaged: not what the manifest says", where=str(path), hint=hint)


def load_checkpoint(folder: Path, *, with_optimizer: bool = False) -> Checkpoint:
    """Read a checkpoint that passes `verify_checkpoint`. Raises: StorageError."""
    verify_checkpoint(folder)
    with storage_errors(folder):
        config = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    stored = (folder / OPTIMIZER_FILE).exists()  # before the first update an optimizer holds nothing
    optimizer = read_tensors(folder / OPTIMIZER_FILE) if with_optimizer and stored else {}
    return Checkpoint(read_tensors(folder / MODEL_FILE), config, read_json(folder / STATE_FILE), optimizer)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file. Raises: StorageError: missing, damaged or of another kind."""
    with storage_errors(path):
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            what = "damaged, or not a safetensors file"
            raise StorageError(what, where=str(path), hint="use another checkpoint") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: StorageError: missing or damaged."""
    with storage_errors(path):
        try:
            value = json.loads(path.read_bytes())
        except ValueError as error:
            raise StorageError("not JSON", where=str(path), hint="use another checkpoint") from error
    if not isinstance(value, dict):
        raise StorageError("not a JSON object", where=str(path), hint="use another checkpoint")
    return value


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first; not yet verified."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    names = {name for name in os.listdir(folder) if _STEP_FOLDER.fullmatch(name)}
    names |= {match[1] for name in os.listdir(folder) if (match := _OLD_STEP_FOLDER.fullmatch(name))}
    return [committed_folder(folder / name) for name in sorted(names, key=step_of, reverse=True)]


def step_of(name: str) -> int:
    """The step in a checkpoint folder's name."""
    match = _STEP_FOLDER.search(name)
    assert match is not None, name
    return int(match[1])


def valid_checkpoints(run: Path) -> Iterator[tuple[Path, StorageError | None]]:
    """Checkpoint folders, newest first, each with what is wrong with it, up to the first that is valid."""
    for folder in checkpoints_of(run):
        try:
            verify_checkpoint(folder)
        except StorageError as error:
            yield folder, error
            continue
        yield folder, None
        return


def remove_old_checkpoints(run: Path, step: int, keep_last: int) -> None:
    """Delete all but the newest checkpoints up to a step, and what interrupted saves left behind.

    A later one is damaged, for the run went on from before it: it counts for nothing until it is written again.
    """
    folders = [folder for folder in checkpoints_of(run) if step_of(folder.name) <= step]
    for folder in folders[keep_last:]:
        shutil.rmtree(folder, ignore_errors=True)
    for parent in (run / "checkpoints", run):
        with suppress(FileNotFoundError):
            for leftover in parent.glob(".*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
