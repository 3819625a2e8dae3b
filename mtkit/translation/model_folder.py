"""What is where in a run folder or checkpoint folder, known without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mtkit.checkpoint import CONFIG_FILE, MANIFEST_FILE, best_folder, verify_newest_first
from mtkit.config.loading import load_stored_config, override_section
from mtkit.config.sections import Config, DecodingConfig
from mtkit.errors import ConfigError, StorageError


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: itself, or a run's best one, or its newest valid one.

    Raises:
        StorageError: there is none.
    """
    if not path.is_dir():
        what = "a file, not a model folder" if path.exists() else "no such folder"
        raise StorageError(what, where=str(path), hint="name a run folder or a checkpoint folder")
    if (path / MANIFEST_FILE).exists():
        return path
    best = best_folder(path)
    if best.is_dir():
        return best
    for folder, fault in verify_newest_first(path):
        if fault is None:
            return folder
    what = "no checkpoint in this folder"
    raise StorageError(
        what, where=str(path), hint=f"a model folder holds {MANIFEST_FILE}: train one, or copy all of it"
    )


def tokenizer_folder(checkpoint: Path) -> Path:
    """Where a checkpoint's tokenizers are: beside its weights, or in the run folder above."""
    for folder in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
        if any(folder.glob("tokenizer*.model")):
            return folder
    return checkpoint


def launch_folder(path: Path, run: str) -> Path | None:
    """The folder in which `mtkit train` was called: there the relative paths of a run's config start.

    Known is the run folder, and how the config calls it; if it still lies so, what is above is that folder.

    Args:
        path: of a run or checkpoint.
        run: as in its config.

    Returns: None where the config says an absolute path, or the run folder was moved or renamed.
    """
    folder = Path(os.path.abspath(tokenizer_folder(find_checkpoint(path))))
    parts = Path(os.path.normpath(run)).parts
    above = len(folder.parts) - len(parts)
    if os.path.isabs(os.path.expanduser(run)) or ".." in parts or folder.parts[above:] != parts:
        return None
    return Path(*folder.parts[:above])


_SECTIONS_OF_TRAINING = ("training", "validation")
"""They decide nothing about what a trained model does."""


def read_config(checkpoint: Path, hint: str, *, to_translate: bool = False) -> Config:
    """The config in a checkpoint, of this version of mtkit or another.

    Args:
        checkpoint: the folder.
        hint: for the error.
        to_translate: unknown keys of the sections about training do not matter.

    Raises:
        StorageError: this version does not understand it.
    """
    try:
        return load_stored_config(checkpoint / CONFIG_FILE, _SECTIONS_OF_TRAINING if to_translate else ())
    except ConfigError as error:
        first, *problems = str(error).split("\n")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        what = f"not a config of this version: {problems[0] if problems else first}{more}"
        raise StorageError(what, where=str(checkpoint), hint=hint) from error


def read_decoding(path: Path) -> DecodingConfig:
    """How a run or checkpoint folder asks to be decoded; what this says, nothing has verified.

    Of a damaged folder these are the defaults: `loading.load_model` will say what is wrong with it.

    Raises:
        StorageError: there is no checkpoint.
    """
    folder = find_checkpoint(path)
    try:
        return read_config(folder, hint="", to_translate=True).decoding
    except StorageError:
        return DecodingConfig()


def override_decoding(decoding: DecodingConfig, changes: Mapping[str, object]) -> DecodingConfig:
    """How to decode, with other values for some keys; a larger `n_best` alone widens the beam.

    Raises:
        ConfigError: as for a config: no such key, or a value that it does not take.
    """
    wanted = changes.get("n_best")
    if isinstance(wanted, int) and wanted > decoding.beam_size and "beam_size" not in changes:
        groups = changes.get("groups", decoding.groups)
        groups = groups if isinstance(groups, int) and groups > 0 else 1
        changes = {**changes, "beam_size": -(-wanted // groups) * groups}
    return override_section(decoding, "decoding", changes)
