"""Checkpoints: folders that are complete or not there at all, verified by hash before they are used.

```
step-00012000/  model.safetensors  optimizer.safetensors  state.json  config.yaml  manifest.json
```

A checkpoint is written to a temporary folder, every file fsynced, the manifest (sizes and SHA-256) last, and then
renamed. Nothing is ever unpickled: tensors are stored as safetensors, everything else as JSON and YAML.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkit.errors import StorageError
from mtkit.files import (
    commit_folder,
    committed_folder,
    remove_tree,
    sha256_file,
    storage_errors,
    temporary_folder,
    write_bytes,
    write_text,
)

if TYPE_CHECKING:
    from torch import Tensor

MODEL_FILE, _OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"
ADAPTERS_FILE = "adapters.safetensors"
"""LoRA adapters of the weights in `BASE`, in place of the model's file."""
CONFIG_FILE, MANIFEST_FILE = "config.yaml", "manifest.json"
CHECKPOINTS, BEST, BASE = "checkpoints", "best", "base"
"""Folders of a run; the last one has the weights that LoRA adapters belong to."""
_INT8 = {"mtkit type": "int8", "mtkit version": "1"}
"""Metadata of a file of weights in 8 bits; one in floating point has none."""
_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_OLD_STEP_FOLDER = re.compile(r"\.(step-\d{8,})\.old")
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.\d+\.tmp")
_HINT = "use another checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint.

    Attributes:
        weights: the model's state dict; empty if there are adapters.
        config: the resolved YAML.
        state: numbers and strings that describe the run at this step.
        optimizer: the optimizer's tensors by name; empty in a folder that is only for translation.
        adapters: LoRA adapters by parameter name, of the weights whose file `state["base"]` has the SHA-256 of.
        int8: whether matrices are stored as 8-bit integers, with scales (see `mtkit.model.quantized`).
    """

    weights: dict[str, Tensor]
    config: str
    state: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    adapters: dict[str, Tensor] = field(default_factory=dict)
    int8: bool = False


def step_folder(run: Path, step: int) -> Path:
    """Return the folder for the checkpoint of a step."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def parse_step(name: str) -> int:
    """Return the step in the name of a checkpoint folder."""
    match = _STEP_FOLDER.search(name)
    assert match is not None, name
    return int(match[1])


def best_folder(run: Path) -> Path:
    """Return the folder of a run's best weights, whether it exists or not."""
    return committed_folder(run / BEST)


# --- writing ------------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, checkpoint: Checkpoint, files: Mapping[str, bytes] | None = None) -> None:
    """Write a checkpoint; an old one in the same folder stays valid until the new one is complete.

    Args:
        folder: where to write it.
        checkpoint: its content.
        files: more files by name, for example the tokenizers of a folder that is to be self-contained.

    Raises:
        StorageError: If it cannot be written (at `folder`); what was there before is still there.
    """
    with temporary_folder(folder) as temporary:
        write_checkpoint(temporary, checkpoint, files or {})
        commit_folder(temporary, folder)


def write_checkpoint(folder: Path, checkpoint: Checkpoint, files: Mapping[str, bytes]) -> None:
    """Write the files of a checkpoint into an empty folder, the manifest last.

    Raises:
        StorageError: If they cannot be written.
    """
    if checkpoint.adapters:
        _write_tensors(folder / ADAPTERS_FILE, checkpoint.adapters)
    else:
        _write_tensors(folder / MODEL_FILE, checkpoint.weights, _INT8 if checkpoint.int8 else None)
    if checkpoint.optimizer:
        _write_tensors(folder / _OPTIMIZER_FILE, checkpoint.optimizer)
    write_text(folder / STATE_FILE, json.dumps(checkpoint.state, indent=2) + "\n")
    write_text(folder / CONFIG_FILE, checkpoint.config)
    for name, data in files.items():
        write_bytes(folder / name, data)
    write_manifest(folder)


def write_manifest(folder: Path, **more: str) -> None:
    """Write the manifest of a folder that has all its other files.

    Args:
        folder: the folder.
        more: further entries, such as the engine that a model was exported to.

    Raises:
        StorageError: If it cannot be written.
    """
    with storage_errors(folder):
        entries = {path.name: _manifest_entry(path) for path in sorted(folder.iterdir())}
    manifest = {"format": 1, **more, "files": entries}
    write_text(folder / MANIFEST_FILE, json.dumps(manifest, indent=2) + "\n")


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    import safetensors.torch

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(contiguous, metadata))


def _manifest_entry(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


# --- reading ------------------------------------------------------------------------------------------------------


def verify_checkpoint(folder: Path) -> set[str]:
    """Check every file against the manifest, and the step against the folder's name.

    Returns:
        the names of the files.

    Raises:
        StorageError: If a file is missing or damaged; the error names it.
    """
    if (engine := exported_to(folder)) is not None:
        hint = f"translate with `engine` {engine}"
        raise StorageError(f"a model that was exported to {engine}", where=str(folder), hint=hint)
    files = verify_files(folder, {CONFIG_FILE, STATE_FILE})
    if files.isdisjoint({MODEL_FILE, ADAPTERS_FILE}):
        hint = "copy the folder again, or use another checkpoint"
        raise StorageError("damaged", where=str(folder / MANIFEST_FILE), hint=hint)
    step = read_json(folder / STATE_FILE).get("step")
    if step is not None and _STEP_FOLDER.search(folder.name) and step != parse_step(folder.name):
        hint = "copy the folder again, or use another checkpoint"
        raise StorageError(f"contains step {step!r:.20}, unlike its name", where=str(folder), hint=hint)
    return files


def exported_to(folder: Path) -> str | None:
    """Return the engine that the model in a folder was exported to; None for a checkpoint.

    Raises:
        StorageError: If the manifest is missing or damaged.
    """
    engine = read_json(folder / MANIFEST_FILE).get("engine")
    return engine if isinstance(engine, str) else None


def verify_files(folder: Path, required: Collection[str]) -> set[str]:
    """Check every file of a folder against its manifest.

    Args:
        folder: the folder.
        required: files that must be there.

    Returns:
        the names of the files.

    Raises:
        StorageError: If a file is missing or damaged; the error names it.
    """
    hint = "copy the folder again, or use another checkpoint"
    manifest = read_json(folder / MANIFEST_FILE)
    files = manifest.get("files") if manifest.get("format") == 1 else None
    if not isinstance(files, dict) or not set(required) <= files.keys():
        raise StorageError("damaged", where=str(folder / MANIFEST_FILE), hint=hint)
    for name, entry in files.items():
        path = folder / name
        if "\0" in name or Path(name).name != name or not path.is_file():
            raise StorageError("missing from the checkpoint", where=repr(str(path))[1:-1], hint=hint)
        with storage_errors(path):
            if entry != _manifest_entry(path):
                raise StorageError("damaged: does not match the manifest", where=str(path), hint=hint)
    return set(files)


def load_checkpoint(folder: Path, *, with_optimizer: bool = False) -> Checkpoint:
    """Verify a checkpoint and load it.

    Raises:
        StorageError: If it is missing or damaged, or has no optimizer state although `with_optimizer` is set.
    """
    before = _manifest_bytes(folder)
    try:
        return _load_once(folder, with_optimizer=with_optimizer)
    except StorageError:
        if _manifest_bytes(folder) in (before, None):
            raise
    return _load_once(folder, with_optimizer=with_optimizer)  # training has replaced it in the meantime


def _manifest_bytes(folder: Path) -> bytes | None:
    """Return the manifest of a checkpoint as it is now; None if there is none."""
    path = folder / MANIFEST_FILE
    with suppress(OSError):
        return path.read_bytes() if path.is_file() else None
    return None


def _load_once(folder: Path, *, with_optimizer: bool) -> Checkpoint:
    """Verify a checkpoint and load it; see `load_checkpoint`."""
    files = verify_checkpoint(folder)
    state = read_json(folder / STATE_FILE)
    has_optimizer = _OPTIMIZER_FILE in files  # Before the first update there is no optimizer state.
    if with_optimizer and not has_optimizer and state.get("step"):
        raise StorageError("no optimizer state in this checkpoint", where=str(folder), hint=_HINT)
    with storage_errors(folder):
        try:
            config = (folder / CONFIG_FILE).read_bytes().decode()
        except UnicodeDecodeError as error:
            raise StorageError("not UTF-8", where=str(folder / CONFIG_FILE), hint=_HINT) from error
    optimizer = load_tensors(folder / _OPTIMIZER_FILE) if with_optimizer and has_optimizer else {}
    weights, adapters = (
        load_tensors(folder / name) if name in files else {} for name in (MODEL_FILE, ADAPTERS_FILE)
    )
    return Checkpoint(weights, config, state, optimizer, adapters, stores_int8(folder))


def stores_int8(folder: Path) -> bool:
    """Return whether the matrices in a checkpoint are stored as 8-bit integers.

    Raises:
        StorageError: If its weights are damaged, or stored in a way that this version does not know.
    """
    from safetensors import safe_open

    path = folder / MODEL_FILE
    if not path.exists():  # there are adapters instead
        return False
    with safetensors_errors(path), safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    found = {key: metadata.get(key, "") for key in _INT8}
    if found != _INT8 and any(found.values()):
        what = f"weights of type {found['mtkit type']!r:.20}, version {found['mtkit version']!r:.20}"
        hint = "another version of mtkit wrote it: export the model again, or update mtkit"
        raise StorageError(what, where=str(path), hint=hint)
    return found == _INT8


def folders_above(folder: Path) -> tuple[Path, ...]:
    """Return the folders of which one is the run folder of a checkpoint in a run, which may be a link or "."."""
    real = folder.resolve()
    return folder.parent, folder.parent.parent, real.parent, real.parent.parent


def load_base(folder: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Load the weights to which the adapters of a checkpoint belong.

    Args:
        folder: the checkpoint, in its run folder.
        state: its state.

    Raises:
        StorageError: If the weights are missing, damaged, or not those that the adapters were trained for.
    """
    runs = [run for run in folders_above(folder) if (run / BASE / MANIFEST_FILE).is_file()]
    if not runs:
        hint = "copy the whole run folder, or merge it there first"
        raise StorageError(f"adapters without the weights in {BASE}/", where=str(folder), hint=hint)
    base = load_checkpoint(runs[0] / BASE)
    if sha256_file(runs[0] / BASE / MODEL_FILE) != state.get("base"):
        what = "not the weights that these adapters were trained for"
        raise StorageError(what, where=str(runs[0] / BASE), hint=f"restore those of {folder}")
    return base.weights


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load a safetensors file.

    Raises:
        StorageError: If it is missing, damaged or not a safetensors file.
    """
    import safetensors.torch

    with safetensors_errors(path):
        return safetensors.torch.load_file(path)


@contextmanager
def safetensors_errors(path: Path) -> Iterator[None]:
    """Turn errors of reading a safetensors file into a `StorageError`.

    Raises:
        StorageError: If the block raises such an error.
    """
    import safetensors

    with storage_errors(path):
        try:
            yield
        except safetensors.SafetensorError as error:
            raise StorageError("damaged, or not a safetensors file", where=str(path), hint=_HINT) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StorageError: If the file is missing, or is not a JSON object.
    """
    with storage_errors(path):
        if path.exists() and not path.is_file():  # Reading a pipe would block.
            raise StorageError("not a file", where=str(path), hint=_HINT)
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise StorageError("not JSON", where=str(path), hint=_HINT) from error
    if not isinstance(value, dict):
        raise StorageError("not a JSON object", where=str(path), hint=_HINT)
    return value


# --- the checkpoints of a run -------------------------------------------------------------------------------------


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest first, without verifying them."""
    folder = run / CHECKPOINTS
    if not folder.is_dir():
        return []
    names = {name for name in os.listdir(folder) if _STEP_FOLDER.fullmatch(name)}
    names |= {match[1] for name in os.listdir(folder) if (match := _OLD_STEP_FOLDER.fullmatch(name))}
    return [committed_folder(folder / name) for name in sorted(names, key=parse_step, reverse=True)]


def verify_newest_first(run: Path) -> Iterator[tuple[Path, StorageError | None]]:
    """Verify the checkpoints of a run, newest first, up to the first valid one; yield each with its error or None."""
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
    """Load the newest checkpoint from which training can resume, with its optimizer state; None if there is none.

    Args:
        run: the run folder.
        on_fault: called with the error of each newer checkpoint that is skipped.
    """
    for folder in list_checkpoints(run):
        try:
            return folder, load_checkpoint(folder, with_optimizer=True)
        except StorageError as fault:
            on_fault(fault)
    return None


def is_checkpoint_name(name: str) -> bool:
    """Return whether mtkit writes such a name into `checkpoints/`: a checkpoint, or a leftover of saving one."""
    match = _LEFTOVER.fullmatch(name) or _OLD_STEP_FOLDER.fullmatch(name)
    return _STEP_FOLDER.fullmatch(match[1] if match else name) is not None


def find_leftovers(path: Path) -> list[Path]:
    """Return the temporary files and folders that interrupted writes of a file or folder left beside it."""
    if not path.parent.is_dir():
        return []
    matches = [(name, _LEFTOVER.fullmatch(name)) for name in os.listdir(path.parent)]
    return [
        path.with_name(name) for name, match in matches if match is not None and match["name"] == path.name
    ]


def remove_old_checkpoints(run: Path, step: int, keep_last: int) -> None:
    """Delete all but the newest checkpoints up to a step, and what interrupted saves left behind.

    Checkpoints after `step` do not count: they are damaged, because the run resumed from an earlier one, and they
    will be written again.
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
            os.rename(folder, doomed)  # A half-deleted folder must not be taken for a checkpoint.
        remove_tree(doomed)
