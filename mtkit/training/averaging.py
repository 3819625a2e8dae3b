"""Checkpoint averaging: the mean of the weights of several checkpoints of one run (Vaswani et al. 2017, section 6.1).

The base model of that paper averages its last 5 checkpoints, the big one its last 20. An averaged model costs nothing
extra at translation time and usually scores a little higher than any of its checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
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
    stores_int8,
    verify_checkpoint,
)
from mtkit.config.loading import diff_configs
from mtkit.config.sections import Config
from mtkit.data.tokenizer import load_tokenizers
from mtkit.errors import ConfigError, StorageError
from mtkit.evaluation.run_files import METRICS_FILE
from mtkit.files import committed_folder, remove_tree, storage_errors
from mtkit.formatting import format_count
from mtkit.training.resume import is_harmless
from mtkit.training.validation import SelectionScore, is_better
from mtkit.translation.model_folder import find_checkpoint, read_config, tokenizer_folder

AVERAGE_FOLDER = "average"
_OTHER_VERSION = "it was written by another version of mtkit, or edited by hand"


def average_checkpoints(
    paths: Sequence[Path], output: Path, *, last: int | None = None, best: int | None = None
) -> list[Path]:
    """Average checkpoints of one run and write the result as a self-contained model folder.

    Args:
        paths: one run folder if `last` or `best` is given; otherwise at least two checkpoint or run folders.
        output: folder to create.
        last: number of newest checkpoints to average.
        best: number of checkpoints to average, those with the best validation by the run's `validation.best`.

    Returns:
        Folders of the averaged checkpoints.

    Raises:
        ConfigError: If the arguments contradict each other, the run has too few checkpoints, `output` is not empty,
            or the checkpoints belong to different runs.
        StorageError: If a checkpoint is missing or damaged, or the folder cannot be written.
    """
    check_output_is_free(output)
    if last is not None and best is not None:
        raise ConfigError("give either `last` or `best`", hint="not both")
    if last is None and best is None:
        sources = _named_checkpoints(paths)
    elif len(paths) != 1:
        raise ConfigError("`last` and `best` need a single run folder", hint="name one run folder")
    else:
        run = paths[0]
        sources = _last_checkpoints(run, last) if last is not None else best_checkpoints(run, best or 0)
    write_average(sources, output)
    return sources


def average_last(config: Config, say: Callable[[str], None]) -> Path | None:
    """Average the last checkpoints of a finished run into its folder, as `training.average_last` asks.

    A run with fewer checkpoints than that averages all of them.

    Returns:
        Folder of the average, or None without `training.average_last` or with fewer than two checkpoints.

    Raises:
        StorageError: If a checkpoint is damaged or the disk fails.
    """
    num_wanted, run = config.training.average_last, Path(config.run)
    if num_wanted is None:
        return None
    sources = _trained_checkpoints(run)[:num_wanted]
    if len(sources) < 2:
        say(f"no average: the run has {format_count(len(sources), 'checkpoint')}")
        return None
    folder = run / AVERAGE_FOLDER
    for leftover in find_leftovers(folder):  # of a process that was killed while it wrote the average
        remove_tree(leftover)
    write_average(sources, folder)
    steps = sorted(parse_step(source.name) for source in sources)
    say(f"average    of {len(sources)} checkpoints, steps {steps[0]:,} to {steps[-1]:,}, in {folder}")
    return folder


# --- choosing checkpoints -----------------------------------------------------------------------------------------


def check_output_is_free(output: Path) -> None:
    """Check that the output does not exist or is an empty folder.

    Raises:
        ConfigError: If there is something at the path.
    """
    with storage_errors(output):
        taken = output.is_file() or output.is_symlink() or (output.is_dir() and any(output.iterdir()))
    if taken or committed_folder(output) != output:
        raise ConfigError("already exists", where=str(output), hint="choose another folder")


def _named_checkpoints(paths: Sequence[Path]) -> list[Path]:
    """Return the checkpoint folder of each path; a run folder stands for its best checkpoint.

    Raises:
        ConfigError: If there are fewer than two paths, or two name the same checkpoint.
        StorageError: If a path holds no checkpoint.
    """
    if len(paths) < 2:
        hint = "for a run folder, say which of its checkpoints: `last` 5 or `best` 5"
        where = str(paths[0]) if paths else None
        raise ConfigError("an average needs at least two checkpoints", where=where, hint=hint)
    found = [find_checkpoint(path) for path in paths]
    resolved = [folder.resolve() for folder in found]
    for number, folder in enumerate(resolved):
        if folder in resolved[:number]:
            raise ConfigError("named twice", where=str(paths[number]), hint="name each checkpoint once")
    return found


def _trained_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, newest first, without the untrained one of step 0."""
    return [folder for folder in list_checkpoints(run) if parse_step(folder.name) > 0]


def _last_checkpoints(run: Path, number: int) -> list[Path]:
    """Return the newest checkpoints of a run.

    Raises:
        ConfigError: If there are fewer.
        StorageError: If it is not a run folder.
    """
    _check_run_folder(run)
    return _first_of(_trained_checkpoints(run), number, run, "`last`", "checkpoints")


def best_checkpoints(run: Path, number: int) -> list[Path]:
    """Return the checkpoints of a run with the best validation, best first; of equal ones the newer comes first.

    Raises:
        ConfigError: If fewer checkpoints have been validated.
        StorageError: If it is not a run folder.
    """
    _check_run_folder(run)
    found = _trained_checkpoints(run)
    if not found:
        return _first_of(found, number, run, "`best`", "checkpoints")
    metric = read_config(found[0], _OTHER_VERSION).validation.best
    results = read_validations(run / METRICS_FILE, metric)
    ranked: list[Path] = []
    for folder in found:  # newest first
        if (result := results.get(parse_step(folder.name))) is None:
            continue
        worse = (i for i, f in enumerate(ranked) if is_better(metric, result, results[parse_step(f.name)]))
        ranked.insert(next(worse, len(ranked)), folder)
    return _first_of(ranked, number, run, "`best`", f"checkpoints with a validation ({metric})")


def _check_run_folder(run: Path) -> None:
    """Check that a path is a run folder.

    Raises:
        ConfigError: If it is a checkpoint.
        StorageError: If it does not exist or has no checkpoints.
    """
    if not run.is_dir():
        raise StorageError("no such folder", where=str(run), hint="name a run folder")
    if (run / MANIFEST_FILE).exists():
        raise ConfigError(
            "a checkpoint, not a run folder", where=str(run), hint="name the run folder above it"
        )
    if not (run / CHECKPOINTS).is_dir():
        raise StorageError("no checkpoints: not a run folder", where=str(run), hint="name a run folder")


def _first_of(found: list[Path], number: int, run: Path, parameter: str, what: str) -> list[Path]:
    """Return the first `number` folders.

    Raises:
        ConfigError: If there are fewer.
    """
    if len(found) < number:
        fewer = f"{parameter} {len(found)}, or " if len(found) > 1 else ""
        hint = f"{fewer}train with a larger training.keep_last"
        raise ConfigError(f"{len(found)} {what}, not {number}", where=str(run), hint=hint)
    return found[:number]


def read_validations(path: Path, metric: str) -> dict[int, SelectionScore]:
    """Read the validation results in a metrics.jsonl, by step. Incomplete lines are skipped.

    Args:
        path: the metrics.jsonl.
        metric: name of the number that ranks validations, as in `validation.best`.

    Raises:
        StorageError: If the file cannot be read.
    """
    with storage_errors(path):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    results: dict[int, SelectionScore] = {}
    for line in lines:
        try:
            record = json.loads(line)
            if record["kind"] == "valid":
                loss = record.get("loss")
                result = SelectionScore(float(record[metric]), None if loss is None else float(loss))
                results[int(record["step"])] = result
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            # also a null, which stands for NaN or infinity
            continue
    return results


# --- averaging ----------------------------------------------------------------------------------------------------


def write_average(sources: Sequence[Path], output: Path) -> None:
    """Average the weights of checkpoints and write them to a folder with config and tokenizers.

    Raises:
        ConfigError: If the checkpoints belong to different runs.
        StorageError: If one is damaged, or the folder cannot be written.
    """
    for source in sources:
        if MODEL_FILE not in verify_checkpoint(source):
            what = "LoRA adapters, whose average is not that of the models"
            raise ConfigError(what, where=str(source), hint="merge each with its weights first")
        if stores_int8(source):
            hint = "average the models that they were exported from, and export the average"
            raise ConfigError("weights in 8 bits, which are not averaged", where=str(source), hint=hint)
    first = read_config(sources[0], _OTHER_VERSION)
    states = [read_json(source / STATE_FILE) for source in sources]
    tokenizers = [tokenizer_folder(source) for source in sources]
    fingerprints = {load_tokenizers(folder).fingerprint for folder in dict.fromkeys(tokenizers)}
    fingerprints |= {state["tokenizers"] for state in states if state.get("tokenizers")}
    if len(fingerprints) > 1:
        raise _different_runs(sources, "they have different tokenizers")
    for source in sources[1:]:
        found = diff_configs(first, read_config(source, _OTHER_VERSION))
        changes = [line for key, line in found.items() if not is_harmless(key)]
        if changes:
            raise _different_runs((sources[0], source), f"their configs differ: {'; '.join(changes)}")
    # Within one run folder the data is the same even if versions of mtkit fingerprint it differently.
    same_folder = len(set(tokenizers)) == 1
    if not same_folder and len({state.get("corpus") for state in states}) > 1:
        raise _different_runs(sources, "they were trained on different data")
    weights = average_weights([source / MODEL_FILE for source in sources])
    state = {
        "averaged": [_step_label(source, state) for source, state in zip(sources, states, strict=True)],
        "tokenizers": fingerprints.pop(),
        "corpus": states[0].get("corpus"),
        "usual_src_tokens": states[0].get("usual_src_tokens"),
    }
    with storage_errors(sources[0]):
        config = (sources[0] / CONFIG_FILE).read_bytes().decode()
    models = load_tokenizers(tokenizers[0]).files()
    save_checkpoint(output, Checkpoint(weights, config, state), models)


def _step_label(source: Path, state: dict[str, object]) -> str:
    """Return the name of a checkpoint in the `averaged` list of state.json."""
    return f"{source.name}, step {state['step']}" if "step" in state else source.name


def _different_runs(sources: Sequence[Path], what: str) -> ConfigError:
    """Return the error for checkpoints that do not belong to one run."""
    where = " and ".join(map(str, sources[:2])) + (f" and {len(sources) - 2} more" if sources[2:] else "")
    return ConfigError(what, where=where, hint="only checkpoints of one run can be averaged")


def average_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Return the mean of each tensor over safetensors files, accumulated in float64, in the dtype of the first file.

    The files are memory-mapped and read one tensor at a time: this takes the memory of one model plus one tensor,
    however many files there are.

    Raises:
        StorageError: If a file is damaged, or names, shapes or dtypes differ.
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
                raise _different_weights(path, first_path, f"different tensors: {', '.join(differing[:3])}")
        return {name: _mean_tensor(name, files) for name in names}


def _mean_tensor(name: str, files: Sequence[tuple[Path, safe_open]]) -> Tensor:
    """Return the mean of one tensor over open files.

    Raises:
        StorageError: If its shape or dtype differs between files.
    """
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
            raise _different_weights(path, first_path, f"{name} is {shapes}")
        total += tensor
    assert first is not None
    return (total / len(files)).to(first.dtype)


def _different_weights(path: Path, first: Path, what: str) -> StorageError:
    """Return the error for weights that do not match those of the first file."""
    return StorageError(what, where=str(path), hint=f"unlike {first}: average checkpoints of one model")
