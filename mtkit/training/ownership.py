"""Ownership of files in a run folder: training overwrites and deletes only what a run of that folder wrote.

Before it writes anything, a run claims the names of its outputs by listing them in `.mtkit-run`. A name that already
exists and is not claimed belongs to the user, and the run is refused. A folder that has checkpoints but no such list
(from mtkit before 0.2, or copied without hidden files) is recognized by the content of its files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mtkit.checkpoint import (
    BASE,
    BEST,
    CHECKPOINTS,
    CONFIG_FILE,
    MANIFEST_FILE,
    best_folder,
    find_leftovers,
    is_checkpoint_name,
    list_checkpoints,
)
from mtkit.config.sections import Config
from mtkit.config.yaml_document import dump_yaml, load_yaml
from mtkit.data.sources import Source, Split
from mtkit.data.tokenizer import TOKENIZER_FILES
from mtkit.errors import ConfigError, MtkitError, StorageError
from mtkit.evaluation.run_files import (
    CARD_FILE,
    CARD_PHRASE,
    CLAIM_FILE,
    FACTS_FILE,
    HYPS_SUFFIX,
    METRICS_FILE,
    REPORT_FILE,
    REPORT_MARK,
    RESULTS_FILE,
    SAMPLES_FILE,
    hyps_file,
)
from mtkit.files import remove_tree, storage_errors, write_text
from mtkit.training.averaging import AVERAGE_FOLDER
from mtkit.training.progress import TENSORBOARD, is_event_file
from mtkit.training.wandb_log import WANDB, is_wandb_file
from mtkit.translation.model_folder import SHORTLIST_FILE

_CONFIG_SECTIONS = {"run", "seed", "data", "tokenizer", "model", "training", "validation", "decoding"}
"""Keys that every stored config has had since the first version."""
_MODEL_FOLDERS = (BEST, AVERAGE_FOLDER, BASE)
_UNCONDITIONAL = {
    CONFIG_FILE, CARD_FILE, RESULTS_FILE, METRICS_FILE, SAMPLES_FILE, FACTS_FILE, CHECKPOINTS, BEST, *TOKENIZER_FILES,
}  # fmt: skip
"""Outputs of every run."""
_OUTPUTS = _UNCONDITIONAL | {AVERAGE_FOLDER, BASE, TENSORBOARD, WANDB, REPORT_FILE, SHORTLIST_FILE}

_SHARED_FOLDERS = {CHECKPOINTS: is_checkpoint_name, TENSORBOARD: is_event_file, WANDB: is_wandb_file}
"""Folders that may also hold files of the user, each with a predicate for the names that are mtkit's."""

Splits = Mapping[Split, Sequence[Source]]


def _output_names(config: Config, splits: Splits) -> set[str]:
    """Return the names of all outputs of a run, relative to its folder."""
    names = _UNCONDITIONAL | {hyps_file(source.name) for source in splits["test"]}
    if config.training.average_last is not None:
        names.add(AVERAGE_FOLDER)
    if config.training.lora is not None:
        names.add(BASE)
    if config.training.tensorboard:
        names.add(TENSORBOARD)
    if config.training.wandb:
        names.add(WANDB)
    if config.training.report:
        names.add(REPORT_FILE)
    return names


def claimed_names(run: Path) -> set[str]:
    """Return the names that runs of this folder have claimed, relative to it.

    Raises:
        StorageError: If the list of claims cannot be read.
    """
    claim = run / CLAIM_FILE
    if not claim.is_file():
        return set(_recognized_names(run))
    with storage_errors(claim):
        try:
            names = {name for name in json.loads(claim.read_bytes())["written"] if _is_output(name)}
        except (ValueError, KeyError, TypeError) as error:
            hint = "remove it; then mtkit recognizes its files by their content"
            raise StorageError("damaged", where=str(claim), hint=hint) from error
    if (run / AVERAGE_FOLDER / MANIFEST_FILE).is_file():  # `mtkit average` writes there too
        names.add(AVERAGE_FOLDER)
    if (run / SHORTLIST_FILE).is_file():  # `mtkit shortlist` writes it there
        names.add(SHORTLIST_FILE)
    if REPORT_MARK in _read_or_empty(run / REPORT_FILE):  # `mtkit report` writes it there
        names.add(REPORT_FILE)
    return names


def _is_output(name: str) -> bool:
    """Return whether a run writes an output of this name, so that an edited list cannot make it delete other files."""
    return name in _OUTPUTS or (name == hyps_file(Path(name).name.removesuffix(HYPS_SUFFIX)))


def _recognized_names(run: Path) -> Iterator[str]:
    """Yield the names of outputs recognized by their content, in a folder that has a checkpoint."""
    folders = [best_folder(run), *list_checkpoints(run)]
    if not any((folder / MANIFEST_FILE).is_file() for folder in folders):
        return
    yield from (CHECKPOINTS, BEST, METRICS_FILE, SAMPLES_FILE, TENSORBOARD, WANDB, *TOKENIZER_FILES)
    yield from (name for name in (AVERAGE_FOLDER, BASE) if (run / name / MANIFEST_FILE).is_file())
    if _is_stored_config(run / CONFIG_FILE):
        yield CONFIG_FILE
    if CARD_PHRASE in _read_or_empty(run / CARD_FILE):
        yield CARD_FILE
    if REPORT_MARK in _read_or_empty(run / REPORT_FILE):
        yield REPORT_FILE
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        if json.loads(_read_or_empty(run / FACTS_FILE)).keys() >= {"mtkit", "parameters"}:
            yield FACTS_FILE
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        results = json.loads(_read_or_empty(run / RESULTS_FILE))
        tests = [hyps_file(test["name"]) for test in results["tests"]]
        yield from (RESULTS_FILE, *tests)


def _is_stored_config(path: Path) -> bool:
    """Return whether a YAML file is what `dump_config` writes: every section, and neither comments nor formatting."""
    if not path.is_file():
        return False
    with suppress(MtkitError):
        data = load_yaml(path).data
        return data.keys() >= _CONFIG_SECTIONS and dump_yaml(data) == _read_or_empty(path)
    return False


def _read_or_empty(path: Path) -> str:
    """Read the text of a file; the empty string if it cannot be read."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def check_ownership(config: Config, splits: Splits, *, fresh: bool = False) -> None:
    """Check that training will neither overwrite nor, with `fresh`, delete files that are not its own.

    Raises:
        ConfigError: If it would, or if a source of the data is one of the outputs.
        StorageError: If the run folder or one of its parents is a file.
    """
    run = Path(config.run)
    for path in (run, *run.parents):
        if path.exists() and not path.is_dir():
            raise StorageError("a file, not a folder", where=str(path), hint="choose another run folder")
    claimed, outputs = claimed_names(run), _output_names(config, splits)
    conflicts = sorted(path for name in outputs - claimed for path in _conflicts(run, name))
    if conflicts:
        what = f"training would overwrite {', '.join(conflicts)}, which mtkit did not write"
        raise ConfigError(what, where=config.run, hint="move it away, or choose another run folder")
    resolved = {(run / name).resolve() for name in claimed | outputs}
    spm_models = (config.tokenizer.model, config.tokenizer.src_model, config.tokenizer.tgt_model)
    sources = [path for split in splits.values() for source in split for path in source.paths]
    if fresh:  # otherwise a tokenizer model in the run folder is at most replaced by itself
        sources += [Path(os.path.expanduser(model)) for model in spm_models if model is not None]
    distillation = config.training.distillation
    models = [("init", config.init)] if config.init is not None else []
    models += [
        ("training.distillation.teacher", path) for path in (distillation.teacher if distillation else ())
    ]
    for key, model in models:
        if not Path(model).is_dir():
            continue
        if Path(model).resolve() == run.resolve():
            what = "a run cannot start from its own folder" if key == "init" else "a run cannot teach itself"
            raise ConfigError(what, where=key, hint="choose another run folder")
        sources.append(Path(model))
    for source in sources:
        if not resolved.isdisjoint((source.resolve(), *source.resolve().parents)):
            what = "training reads this file, and would overwrite or delete it as its own output"
            raise ConfigError(what, where=str(source), hint="copy it elsewhere, or choose another run folder")


def _conflicts(run: Path, name: str) -> list[str]:
    """Return what exists in place of an unclaimed output, as names relative to the run folder."""
    path = run / name
    if name in _SHARED_FOLDERS and path.is_dir():
        return sorted(f"{name}/{entry}" for entry in os.listdir(path) if _SHARED_FOLDERS[name](entry))
    if name in _MODEL_FOLDERS and path.is_dir() and not any(path.iterdir()):
        return []
    if path.parent != run and os.path.lexists(path.parent) and not path.parent.is_dir():
        return [path.parent.name]
    return [name] if os.path.lexists(path) else []


def claim_outputs(config: Config, splits: Splits) -> None:
    """Add the outputs of this run to the claims of its folder, and remove temporary files of killed runs.

    Raises:
        StorageError: If the list of claims cannot be written.
    """
    run = Path(config.run)
    names = claimed_names(run) | _output_names(config, splits)
    write_text(run / CLAIM_FILE, json.dumps({"written": sorted(names)}, indent=1) + "\n")
    for name in names - {AVERAGE_FOLDER}:  # `mtkit average` takes no lock and may be writing there
        for leftover in find_leftovers(run / name):
            remove_tree(leftover)


def remove_outputs(run: Path) -> None:
    """Delete the outputs of earlier runs, except `config.yaml`, which stays until it is overwritten.

    Raises:
        StorageError: If one cannot be deleted.
    """
    with storage_errors(run):
        for name in sorted(claimed_names(run) - {CONFIG_FILE}):
            path = run / name
            if name in _SHARED_FOLDERS:
                _remove_entries(path, _SHARED_FOLDERS[name])
            else:
                old = [path.with_name(f".{name}.old")] if name in _MODEL_FOLDERS else []
                for each in (path, *old, *find_leftovers(path)):
                    _remove(each)
                if path.parent != run:
                    _remove_entries(path.parent, lambda entry: False)


def _remove_entries(folder: Path, is_own: Callable[[str], bool]) -> None:
    """Delete the entries of a folder that `is_own` accepts, then the folder if it is empty and not a link."""
    if not folder.is_dir():
        return
    for entry in os.listdir(folder):
        if is_own(entry):
            _remove(folder / entry)
    if not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()


def _remove(path: Path) -> None:
    """Delete a file, a link, or a folder with its content, if it exists.

    Raises:
        OSError: If it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
