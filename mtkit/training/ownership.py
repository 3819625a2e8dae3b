"""Whose a file in the run folder is: a run overwrites and deletes what it wrote itself, and nothing else.

Before a run writes anything it claims the names that it will write: `.mtkit-run` in the run folder lists them. A name
that is taken by then and not claimed is the user's, and the run is refused. A folder without the list that holds
checkpoints (of mtkit before 0.2, or copied without hidden files) is known by what is in its files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mtkit.checkpoint import (
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
from mtkit.data.tokenizer import JOINT_FILE, SRC_FILE, TGT_FILE
from mtkit.errors import ConfigError, MtkitError, StorageError
from mtkit.files import remove_tree, storage_errors, write_text
from mtkit.training.averaging import AVERAGE_FOLDER
from mtkit.training.progress import METRICS_FILE, TENSORBOARD, is_event_file
from mtkit.training.results import CARD_FILE, CARD_PHRASE, HYPS_SUFFIX, RESULTS_FILE, hyps_file

_CLAIM_FILE = ".mtkit-run"
_TOKENIZER_FILES = (JOINT_FILE, SRC_FILE, TGT_FILE)
_SECTIONS = {"run", "seed", "data", "tokenizer", "model", "training", "validation", "decoding"}
"""Of every config that a run has stored, from the first version on."""
_MODEL_FOLDERS = (BEST, AVERAGE_FOLDER)
_ALWAYS = {CONFIG_FILE, CARD_FILE, RESULTS_FILE, METRICS_FILE, CHECKPOINTS, BEST, *_TOKENIZER_FILES}
_OUTPUTS = _ALWAYS | {AVERAGE_FOLDER, TENSORBOARD}

_SHARED = {CHECKPOINTS: is_checkpoint_name, TENSORBOARD: is_event_file}
"""Folders in which a user may have other things, and which names in them are mtkit's."""

Splits = Mapping[Split, Sequence[Source]]


def _written_by(config: Config, splits: Splits) -> set[str]:
    """The names, from the run folder, of all that a run writes."""
    names = _ALWAYS | {hyps_file(source.name) for source in splits["test"]}
    if config.training.average_last is not None:
        names.add(AVERAGE_FOLDER)
    if config.training.tensorboard:
        names.add(TENSORBOARD)
    return names


def claimed_names(run: Path) -> set[str]:
    """The names that runs of this folder wrote or were about to write. Raises: StorageError."""
    claim = run / _CLAIM_FILE
    if not claim.is_file():
        return set(_recognized_names(run))
    with storage_errors(claim):
        try:
            names = {name for name in json.loads(claim.read_bytes())["written"] if _is_output(name)}
        except (ValueError, KeyError, TypeError) as error:
            hint = "remove it: then what mtkit wrote is known by what is in the files"
            raise StorageError("damaged", where=str(claim), hint=hint) from error
    if (run / AVERAGE_FOLDER / MANIFEST_FILE).is_file():  # `mtkit average` writes there too
        names.add(AVERAGE_FOLDER)
    return names


def _is_output(name: str) -> bool:
    """Whether a run writes something of this name; a list that was tampered with may say anything."""
    return name in _OUTPUTS or (name == hyps_file(Path(name).name.removesuffix(HYPS_SUFFIX)))


def _recognized_names(run: Path) -> Iterator[str]:
    """The names of what is mtkit's by its content, in a folder that holds a checkpoint."""
    folders = [best_folder(run), *list_checkpoints(run)]
    if not any((folder / MANIFEST_FILE).is_file() for folder in folders):
        return
    yield from (CHECKPOINTS, BEST, METRICS_FILE, TENSORBOARD, *_TOKENIZER_FILES)
    if (run / AVERAGE_FOLDER / MANIFEST_FILE).is_file():
        yield AVERAGE_FOLDER
    if _is_resolved_config(run / CONFIG_FILE):
        yield CONFIG_FILE
    if CARD_PHRASE in _text_of(run / CARD_FILE):
        yield CARD_FILE
    with suppress(ValueError, KeyError, TypeError):
        results = json.loads(_text_of(run / RESULTS_FILE))
        tests = [hyps_file(test["name"]) for test in results["tests"]]
        yield from (RESULTS_FILE, *tests)


def _is_resolved_config(path: Path) -> bool:
    """Whether a YAML file is as `dump_config` writes it: every section, nothing but keys and values."""
    if not path.is_file():
        return False
    with suppress(MtkitError):
        data = load_yaml(path).data
        return data.keys() >= _SECTIONS and dump_yaml(data) == _text_of(path)
    return False


def _text_of(path: Path) -> str:
    """The text of a file; nothing if there is none."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def check_ownership(config: Config, splits: Splits, *, fresh: bool = False) -> None:
    """Check that training will overwrite (and `fresh` delete) nothing that a run of this folder did not write.

    Raises:
        ConfigError: it would; or an output of the run is a source of its data.
        StorageError: the run folder, or what should hold it, is a file.
    """
    run = Path(config.run)
    for path in (run, *run.parents):
        if path.exists() and not path.is_dir():
            raise StorageError("a file, not a folder", where=str(path), hint="choose another run folder")
    claimed, written = claimed_names(run), _written_by(config, splits)
    taken = sorted(place for name in written - claimed for place in _in_the_way(run, name))
    if taken:
        what = f"training would overwrite {', '.join(taken)}, which mtkit did not write"
        raise ConfigError(what, where=config.run, hint="move it away, or choose another run folder")
    outputs = {(run / name).resolve() for name in claimed | written}
    models = (config.tokenizer.model, config.tokenizer.src_model, config.tokenizer.tgt_model)
    sources = [path for split in splits.values() for source in split for path in source.paths]
    if fresh:  # else they are at most replaced by themselves
        sources += [Path(os.path.expanduser(model)) for model in models if model is not None]
    for source in sources:
        if not outputs.isdisjoint((source.resolve(), *source.resolve().parents)):
            what = "training reads it, and would overwrite or delete it as its own output"
            raise ConfigError(what, where=str(source), hint="copy it elsewhere, or choose another run folder")


def _in_the_way(run: Path, name: str) -> list[str]:
    """What is where an unclaimed name belongs, as names from the run folder."""
    path = run / name
    if name in _SHARED and path.is_dir():
        return sorted(f"{name}/{entry}" for entry in os.listdir(path) if _SHARED[name](entry))
    if name in _MODEL_FOLDERS and path.is_dir() and not any(path.iterdir()):
        return []
    if path.parent != run and os.path.lexists(path.parent) and not path.parent.is_dir():
        return [path.parent.name]
    return [name] if os.path.lexists(path) else []


def claim_outputs(config: Config, splits: Splits) -> None:
    """Write down what this run writes, beside what earlier ones did; sweep out what killed ones left half written.

    Raises:
        StorageError: it cannot be written.
    """
    run = Path(config.run)
    names = claimed_names(run) | _written_by(config, splits)
    write_text(run / _CLAIM_FILE, json.dumps({"written": sorted(names)}, indent=1) + "\n")
    for name in names - {AVERAGE_FOLDER}:  # `mtkit average`, which takes no lock, may be writing there
        for leftover in find_leftovers(run / name):
            remove_tree(leftover)


def remove_outputs(run: Path) -> None:
    """Delete what runs of this folder wrote; `config.yaml` stays until it is overwritten. Raises: StorageError."""
    with storage_errors(run):
        for name in sorted(claimed_names(run) - {CONFIG_FILE}):
            path = run / name
            if name in _SHARED:
                _remove_inside(path, _SHARED[name])
            else:
                old = [path.with_name(f".{name}.old")] if name in _MODEL_FOLDERS else []
                for each in (path, *old, *find_leftovers(path)):
                    remove(each)
                if path.parent != run:
                    _remove_inside(path.parent, lambda entry: False)


def _remove_inside(folder: Path, is_own: Callable[[str], bool]) -> None:
    """Delete a folder's entries of such names, and the folder if it is empty then; a link to one stays."""
    if not folder.is_dir():
        return
    for entry in os.listdir(folder):
        if is_own(entry):
            remove(folder / entry)
    if not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()


def remove(path: Path) -> None:
    """Delete a folder with all that is in it, a file or a link, if it is there. Raises: OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
