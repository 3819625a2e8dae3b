"""Averages of the weights of several checkpoints of one run (Vaswani et al. 2017, section 6.1).

The base model of that paper is the average of its last 5 checkpoints, the big one that of its last 20. The average
costs nothing when translating, and is usually a little better than each of the checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mtkit.checkpoint import (
    CHECKPOINTS,
    CONFIG_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    STATE_FILE,
    Checkpoint,
    find_leftovers,
    list_checkpoints,
    parse_step,
    read_json,
    safetensors_errors,
    save_checkpoint,
    verify_checkpoint,
)
from mtkit.config.loading import diff_configs
from mtkit.config.sections import Config
from mtkit.data.tokenizer import load_tokenizers
from mtkit.errors import ConfigError, StorageError
from mtkit.files import committed_folder, remove_tree, storage_errors
from mtkit.training.progress import METRICS_FILE
from mtkit.training.resume import is_harmless
from mtkit.training.validation import Standing, is_better
from mtkit.translation.model_folder import find_checkpoint, read_config, tokenizer_folder

AVERAGE_FOLDER = "average"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Average:
    """What was averaged into which folder."""

    folder: Path
    sources: list[Path]


def average(
    paths: Sequence[Path], output: Path, *, last: int | None = None, best: int | None = None
) -> Average:
    """Write the average of checkpoints as a model folder that needs nothing outside itself.

    Args:
        paths: one run folder, if `last` or `best` is given; else two checkpoint or run folders or more.
        output: the new folder.
        last: average so many newest checkpoints of the run.
        best: average so many checkpoints of the run with the best validation, by the run's own `validation.best`.

    Raises:
        ConfigError: what is asked for is not clear or not there; the checkpoints are not of one run.
        StorageError: a checkpoint is missing or damaged, or the folder cannot be written.
    """
    _refuse_to_replace(output)
    if (last is None) == (best is None) and last is not None:
        raise ConfigError("give either `last` or `best`", hint="not both")
    if last is None and best is None:
        sources = _named_checkpoints(paths)
    elif len(paths) != 1:
        raise ConfigError(
            "`last` and `best` choose among the checkpoints of one run", hint="name one run folder"
        )
    else:
        run = paths[0]
        sources = _last_checkpoints(run, last) if last is not None else best_checkpoints(run, best or 0)
    write_average(sources, output)
    return Average(output, sources)


def average_last(config: Config, say: Say) -> Path | None:
    """At the end of training: average the last checkpoints as `training.average_last` says, into the run folder.

    A run too short to have so many averages those that it has; with fewer than two there is nothing to do.

    Returns:
        the folder, or None.

    Raises:
        StorageError: a checkpoint is damaged, or the disk failed.
    """
    wanted, run = config.training.average_last, Path(config.run)
    if wanted is None:
        return None
    sources = _trained_checkpoints(run)[:wanted]
    if len(sources) < 2:
        say(f"no average: the run has {len(sources)} checkpoint")
        return None
    folder = run / AVERAGE_FOLDER
    for leftover in find_leftovers(folder):  # of a run that was killed while it wrote one
        remove_tree(leftover)
    write_average(sources, folder)
    say(f"average    of {len(sources)} checkpoints, steps {_step_range(sources)}, in {folder}")
    return folder


def _step_range(sources: Sequence[Path]) -> str:
    """From the first to the last step of checkpoint folders."""
    steps = sorted(parse_step(source.name) for source in sources)
    return f"{steps[0]:,} to {steps[-1]:,}"


# --- which checkpoints --------------------------------------------------------------------------------------------


def _refuse_to_replace(output: Path) -> None:
    """Check that nothing would be lost. Raises: ConfigError: there is something at the place."""
    with storage_errors(output):
        taken = output.is_file() or output.is_symlink() or (output.is_dir() and any(output.iterdir()))
    if taken or committed_folder(output) != output:
        raise ConfigError("there is something already", where=str(output), hint="choose another folder")


def _named_checkpoints(paths: Sequence[Path]) -> list[Path]:
    """The checkpoint that each path means, a run folder its best. Raises: ConfigError, StorageError."""
    if len(paths) < 2:
        hint = "for one run folder, say which: `last` 5 or `best` 5"
        raise ConfigError("one model is no average", where=str(paths[0]) if paths else None, hint=hint)
    found = [find_checkpoint(path) for path in paths]
    places = [folder.resolve() for folder in found]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ConfigError("named twice", where=str(paths[number]), hint="name each checkpoint once")
    return found


def _trained_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, newest first, without that of step 0, which has learned nothing."""
    return [folder for folder in list_checkpoints(run) if parse_step(folder.name) > 0]


def _last_checkpoints(run: Path, number: int) -> list[Path]:
    """The newest checkpoints of a run. Raises: ConfigError: there are fewer; StorageError: it is no run."""
    found = _trained_checkpoints(_checked_run(run))
    return enough(found, number, run, "`last`", "checkpoints")


def best_checkpoints(run: Path, number: int) -> list[Path]:
    """The checkpoints with the best validation of a run, best first. Raises: ConfigError, StorageError."""
    found = _trained_checkpoints(_checked_run(run))
    if not found:
        return enough(found, number, run, "`best`", "checkpoints")
    hint = "it was written by another version of mtkit, or changed by hand"
    name = read_config(found[0], hint).validation.best
    standings = validation_standings(run / METRICS_FILE, name)
    measured = [folder for folder in found if parse_step(folder.name) in standings]
    ranked: list[Path] = []
    for folder in measured:  # newest first: of equals the newer
        own = standings[parse_step(folder.name)]
        worse = (i for i, f in enumerate(ranked) if is_better(name, own, standings[parse_step(f.name)]))
        ranked.insert(next(worse, len(ranked)), folder)
    return enough(ranked, number, run, "`best`", f"checkpoints with a validation ({name})")


def _checked_run(run: Path) -> Path:
    """The path, if it is a folder but no checkpoint. Raises: ConfigError, StorageError."""
    if not run.is_dir():
        raise StorageError("no such folder", where=str(run), hint="name a run folder")
    if (run / MANIFEST_FILE).exists():
        raise ConfigError(
            "a checkpoint, not a run folder", where=str(run), hint="name the run folder above it"
        )
    if not (run / CHECKPOINTS).is_dir():
        raise StorageError("no checkpoints: not a run folder", where=str(run), hint="name a run folder")
    return run


def enough(found: list[Path], number: int, run: Path, option: str, what: str) -> list[Path]:
    """The first `number`. Raises: ConfigError: there are fewer."""
    if len(found) < number:
        fewer = f"{option} {len(found)}, or " if len(found) > 1 else ""
        hint = f"{fewer}train with a larger training.keep_last"
        raise ConfigError(f"{len(found)} {what}, not {number}", where=str(run), hint=hint)
    return found[:number]


def validation_standings(path: Path, name: str) -> dict[int, Standing]:
    """The standing of each validated step in a metrics.jsonl. A line that is not whole is passed over."""
    with storage_errors(path):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    standings: dict[int, Standing] = {}
    for line in lines:
        try:
            record = json.loads(line)
            if record["kind"] == "valid":
                loss = record.get("loss")
                standing = Standing(float(record[name]), None if loss is None else float(loss))
                standings[int(record["step"])] = standing
        except (ValueError, KeyError, TypeError, AttributeError):  # null stands for what is no number
            continue
    return standings


# --- the average --------------------------------------------------------------------------------------------------


def write_average(sources: Sequence[Path], output: Path) -> None:
    """Verify the checkpoints, average their weights, write a folder with config and tokenizers.

    Raises:
        ConfigError: they are not of one run.
        StorageError: one is damaged, or the folder cannot be written.
    """
    for source in sources:
        verify_checkpoint(source)
    hint = "it was written by another version of mtkit, or changed by hand"
    first = read_config(sources[0], hint)
    states = [read_json(source / STATE_FILE) for source in sources]
    tokenizers = [tokenizer_folder(source) for source in sources]
    fingerprints = {load_tokenizers(folder).fingerprint for folder in dict.fromkeys(tokenizers)}
    fingerprints |= {state["tokenizers"] for state in states if state.get("tokenizers")}
    if len(fingerprints) > 1:
        _refuse_other_runs(sources, "they have different tokenizers")
    for source in sources[1:]:
        changes = [line for line in diff_configs(first, read_config(source, hint)) if not is_harmless(line)]
        if changes:
            _refuse_other_runs((sources[0], source), f"their configs differ: {'; '.join(changes)}")
    one_run = len(set(tokenizers)) == 1  # in which the data stayed the same, whichever version named it how
    if not one_run and len({state.get("corpus") for state in states}) > 1:
        _refuse_other_runs(sources, "they were trained on different data")
    weights = average_weights([source / MODEL_FILE for source in sources])
    state = {
        "averaged": [_step_label(source, state) for source, state in zip(sources, states, strict=True)],
        "tokenizers": fingerprints.pop(),
        "corpus": states[0].get("corpus"),
        "usual_src_tokens": states[0].get("usual_src_tokens"),
    }
    with storage_errors(sources[0]):
        config = (sources[0] / CONFIG_FILE).read_bytes().decode()
        models = {path.name: path.read_bytes() for path in sorted(tokenizers[0].glob("tokenizer*.model"))}
    save_checkpoint(output, Checkpoint(weights, config, state), models)


def _step_label(source: Path, state: dict[str, object]) -> str:
    """How the average's state.json calls a checkpoint."""
    return f"{source.name}, step {state['step']}" if "step" in state else source.name


def _refuse_other_runs(sources: Sequence[Path], what: str) -> None:
    """Raises: ConfigError: these are not checkpoints of one run."""
    where = " and ".join(map(str, sources[:2])) + (f" and {len(sources) - 2} more" if sources[2:] else "")
    raise ConfigError(what, where=where, hint="only the weights of one run can be averaged")


def average_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of each tensor of safetensors files, summed in float64, in the type that it has in the first.

    The files are mapped and read a tensor at a time: memory is that of one model and one tensor, however many
    files there are.

    Raises:
        StorageError: a file is damaged, or names, shapes or types differ.
    """
    with ExitStack() as stack:
        files = []
        for path in paths:
            with safetensors_errors(path):
                files.append((path, stack.enter_context(safe_open(path, framework="pt"))))
        first_path, first = files[0]
        names = sorted(first.keys())
        for path, file in files[1:]:
            if differing := sorted(set(names) ^ set(file.keys())):
                _refuse_other_weights(path, first_path, f"not the same tensors: {', '.join(differing[:3])}")
        return {name: _mean_tensor(name, files) for name in names}


def _mean_tensor(name: str, files: Sequence[tuple[Path, safe_open]]) -> Tensor:
    """The mean of a tensor over open files. Raises: StorageError: they hold it in different shapes or types."""
    first_path = files[0][0]
    first: Tensor | None = None
    total = torch.empty(0)
    for path, file in files:
        with safetensors_errors(path):
            tensor = file.get_tensor(name)
        if first is None:
            first, total = tensor, tensor.to(torch.float64, copy=True)
            continue
        if tensor.shape != first.shape or tensor.dtype != first.dtype:
            shapes = f"{list(tensor.shape)} {tensor.dtype}, not {list(first.shape)} {first.dtype}"
            _refuse_other_weights(path, first_path, f"{name} is {shapes}")
        total += tensor
    assert first is not None
    return (total / len(files)).to(first.dtype)


def _refuse_other_weights(path: Path, first: Path, what: str) -> None:
    """Raises: StorageError: the weights do not fit those of the first file."""
    raise StorageError(what, where=str(path), hint=f"as in {first}: average checkpoints of one model")
