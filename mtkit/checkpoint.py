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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkit.errors import StorageError
from mtkit.files import (
    commit_folder,
    committed_folder,
    make_folder,
    remove_tree,
    sha256_file,
    storage_errors,
    write_bytes,
    write_text,
)

if TYPE_CHECKING:
    from torch import Tensor

MODEL_FILE, _OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"
CONFIG_FILE, MANIFEST_FILE = "config.yaml", "manifest.json"
CHECKPOINTS, BEST = "checkpoints", "best"
"""Folders of a run."""
_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_OLD_STEP_FOLDER = re.compile(r"\.(step-\d{8,})\.old")
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.\d+\.tmp")


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
    return run / CHECKPOINTS / f"step-{step:08d}"


def best_folder(run: Path) -> Path:
    """Where the best weights of a run are, if it has any."""
    return committed_folder(run / BEST)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, files: Mapping[str, bytes] | None = None) -> None:
    """Write a checkpoint; until the last moment an old one in its place stays valid.

    Args:
        folder: its place.
        checkpoint: what it holds.
        files: more files by name, for a folder that needs nothing outside itself: its tokenizers.

    Raises:
        StorageError: at `folder`; what was there is there still.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        remove_tree(temporary)
        make_folder(folder.parent)
        with storage_errors(folder):
            temporary.mkdir()
        _write_files(temporary, checkpoint, files or {})
        commit_folder(temporary, folder)
    except StorageError as error:  # of the file's temporary name nobody should hear
        where = (error.where or str(folder)).replace(str(temporary), str(folder))
        raise StorageError(error.what, where=where, hint=error.hint) from error
    finally:
        remove_tree(temporary)


def _write_files(folder: Path, checkpoint: Checkpoint, files: Mapping[str, bytes]) -> None:
    """Fill a new folder, the manifest last."""
    _write_tensors(folder / MODEL_FILE, checkpoint.weights)
    if checkpoint.optimizer:
        _write_tensors(folder / _OPTIMIZER_FILE, checkpoint.optimizer)
    write_text(folder / STATE_FILE, json.dumps(checkpoint.state, indent=2) + "\n")
    write_text(folder / CONFIG_FILE, checkpoint.config)
    for name, data in files.items():
        write_bytes(folder / name, data)
    with storage_errors(folder):
        entries = {path.name: _entry(path) for path in sorted(folder.iterdir())}
    write_text(folder / MANIFEST_FILE, json.dumps({"format": 1, "files": entries}, indent=2) + "\n")


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    import safetensors.torch

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(contiguous))


def _entry(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def verify_checkpoint(folder: Path) -> set[str]:
    """Check every file against the manifest, and the step against the folder's name. Returns the files' names.

    Raises:
        StorageError: it says which file is missing or damaged.
    """
    hint = "copy the folder again, or use another checkpoint"
    manifest = read_json(folder / MANIFEST_FILE)
    files = manifest.get("files") if manifest.get("format") == 1 else None
    if not isinstance(files, dict) or not {MODEL_FILE, CONFIG_FILE, STATE_FILE} <= files.keys():
        raise StorageError("damaged", where=str(folder / MANIFEST_FILE), hint=hint)
    for name, entry in files.items():
        path = folder / name
        if "\0" in name or Path(name).name != name or not path.is_file():
            raise StorageError("missing from the checkpoint", where=repr(str(path))[1:-1], hint=hint)
        with storage_errors(path):
            if entry != _entry(path):
                raise StorageError("damaged: not what the manifest says", where=str(path), hint=hint)
    step = read_json(folder / STATE_FILE).get("step")
    if step is not None and _STEP_FOLDER.search(folder.name) and step != parse_step(folder.name):
        raise StorageError(f"holds step {step!r:.20}, not that of its name", where=str(folder), hint=hint)
    return set(files)


def load_checkpoint(folder: Path, *, with_optimizer: bool = False) -> Checkpoint:
    """Read a checkpoint that passes `verify_checkpoint`, which is called here.

    Raises:
        StorageError: missing or damaged; or the optimizer is wanted, and the folder is only to translate with.
    """
    files = verify_checkpoint(folder)
    state = read_json(folder / STATE_FILE)
    stored = _OPTIMIZER_FILE in files  # before the first update an optimizer holds nothing
    if with_optimizer and not stored and state.get("step"):
        raise StorageError("no optimizer in it", where=str(folder), hint="use another checkpoint")
    with storage_errors(folder):
        try:
            config = (folder / CONFIG_FILE).read_bytes().decode()
        except UnicodeDecodeError as error:
            hint = "use another checkpoint"
            raise StorageError("not UTF-8", where=str(folder / CONFIG_FILE), hint=hint) from error
    optimizer = load_tensors(folder / _OPTIMIZER_FILE) if with_optimizer and stored else {}
    return Checkpoint(load_tensors(folder / MODEL_FILE), config, state, optimizer)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file. Raises: StorageError: missing, damaged or of another kind."""
    import safetensors.torch

    with safetensors_errors(path):
        return safetensors.torch.load_file(path)


@contextmanager
def safetensors_errors(path: Path) -> Iterator[None]:
    """Turns what safetensors raises in reading a file into a StorageError."""
    import safetensors

    with storage_errors(path):
        try:
            yield
        except safetensors.SafetensorError as error:
            what = "damaged, or not a safetensors file"
            raise StorageError(what, where=str(path), hint="use another checkpoint") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: StorageError: missing or damaged."""
    hint = "use another checkpoint"
    with storage_errors(path):
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise StorageError("not a file", where=str(path), hint=hint)
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise StorageError("not JSON", where=str(path), hint=hint) from error
    if not isinstance(value, dict):
        raise StorageError("not a JSON object", where=str(path), hint=hint)
    return value


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first; not yet verified."""
    folder = run / CHECKPOINTS
    if not folder.is_dir():
        return []
    names = {name for name in os.listdir(folder) if _STEP_FOLDER.fullmatch(name)}
    names |= {match[1] for name in os.listdir(folder) if (match := _OLD_STEP_FOLDER.fullmatch(name))}
    return [committed_folder(folder / name) for name in sorted(names, key=parse_step, reverse=True)]


def is_checkpoint_name(name: str) -> bool:
    """Whether an entry of `checkpoints/` is mtkit's: a checkpoint, or what an interrupted save left of one."""
    match = _LEFTOVER.fullmatch(name) or _OLD_STEP_FOLDER.fullmatch(name)
    return _STEP_FOLDER.fullmatch(match[1] if match else name) is not None


def find_leftovers(path: Path) -> list[Path]:
    """What interrupted writes of a file or folder left beside it, under temporary names of mtkit's own."""
    if not path.parent.is_dir():
        return []
    matches = [(name, _LEFTOVER.fullmatch(name)) for name in os.listdir(path.parent)]
    return [
        path.with_name(name) for name, match in matches if match is not None and match["name"] == path.name
    ]


def parse_step(name: str) -> int:
    """The step in a checkpoint folder's name."""
    match = _STEP_FOLDER.search(name)
    assert match is not None, name
    return int(match[1])


def verify_newest_first(run: Path) -> Iterator[tuple[Path, StorageError | None]]:
    """Checkpoint folders, newest first, each with what is wrong with it, up to the first that is valid."""
    for folder in list_checkpoints(run):
        try:
            verify_checkpoint(folder)
        except StorageError as error:
            yield folder, error
            continue
        yield folder, None
        return


def load_newest_checkpoint(
    run: Path, on_fault: Callable[[StorageError], None]
) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint of a run that can be trained on from, with its optimizer; None if there is none.

    Args:
        on_fault: told what is wrong with those that are passed over.
    """
    for folder in list_checkpoints(run):
        try:
            return folder, load_checkpoint(folder, with_optimizer=True)
        except StorageError as fault:
            on_fault(fault)
    return None


def remove_old_checkpoints(run: Path, step: int, keep_last: int) -> None:
    """Delete all but the newest checkpoints up to a step, and what interrupted saves left behind.

    A later one is damaged, for the run went on from before it: it counts for nothing until it is written again.
    """
    folder = run / CHECKPOINTS
    for name in os.listdir(folder):
        match = _OLD_STEP_FOLDER.fullmatch(name)
        replaced = match is not None and (folder / match[1]).exists()
        if replaced or (name.endswith(".tmp") and is_checkpoint_name(name)):
            remove_tree(folder / name)
    best = run / BEST
    for leftover in find_leftovers(best) + ([best.with_name(".best.old")] if best.exists() else []):
        remove_tree(leftover)
    folders = [folder for folder in list_checkpoints(run) if parse_step(folder.name) <= step]
    for folder in folders[keep_last:]:
        doomed = folder.with_name(f".{step_folder(run, parse_step(folder.name)).name}.{os.getpid()}.tmp")
        with suppress(OSError):
            os.rename(folder, doomed)  # half deleted it must not bear the name of a checkpoint
        remove_tree(doomed)
