"""Finds checkpoints, tokenizers and settings in run folders and checkpoint folders, without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mtkit.checkpoint import CONFIG_FILE, MANIFEST_FILE, best_folder, folders_above, verify_newest_first
from mtkit.config.loading import load_stored_config, override_section
from mtkit.config.sections import Config, DataConfig, DecodingConfig
from mtkit.errors import ConfigError, StorageError

SHORTLIST_FILE = "shortlist.safetensors"
"""Shortlist of a model, beside its tokenizers."""


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path refers to: the path itself, the best one of a run, or its newest valid one.

    Raises:
        StorageError: If there is none.
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
        what,
        where=str(path),
        hint=f"a model folder contains {MANIFEST_FILE}: train a model, or copy the whole folder; "
        "`mtkit import` reads models of other toolkits",
    )


def tokenizer_folder(checkpoint: Path) -> Path:
    """Return the folder of a checkpoint's tokenizers: the checkpoint itself, or the run folder above."""
    for folder in (checkpoint, *folders_above(checkpoint)):
        if any(folder.glob("tokenizer*.model")):
            return folder
    return checkpoint


def shortlist_file(path: Path) -> Path:
    """Return where the shortlist of a run or model folder is kept, whether it has one or not.

    Raises:
        StorageError: If the folder contains no model.
    """
    return tokenizer_folder(find_checkpoint(path)) / SHORTLIST_FILE


def launch_folder(path: Path, run: str) -> Path | None:
    """Return the folder in which `mtkit train` was called, which relative paths in a run's config refer to.

    If the run folder still ends with the path that the config gives it, that is the folder above.

    Args:
        path: a run or checkpoint folder.
        run: `run` in its config.

    Returns:
        The folder; None if the path in the config is absolute, or the run folder was moved or renamed.
    """
    folder = Path(os.path.abspath(tokenizer_folder(find_checkpoint(path))))
    parts = Path(os.path.normpath(run)).parts
    above = len(folder.parts) - len(parts)
    if os.path.isabs(os.path.expanduser(run)) or ".." in parts or folder.parts[above:] != parts:
        return None
    return Path(*folder.parts[:above])


def data_of_run(config: Config, path: Path) -> DataConfig:
    """Return the data section of a model's config, its root relative to where the model was trained, if known."""
    folder, root = launch_folder(path, config.run), os.path.expanduser(config.data.root)
    if folder is None or os.path.isabs(root):
        return config.data
    return config.data.model_copy(update={"root": str(folder / root)})


_SECTIONS_OF_TRAINING = ("training", "validation")
"""Sections that do not affect what a trained model computes."""


def read_config(checkpoint: Path, hint: str, *, to_translate: bool = False) -> Config:
    """Return the config in a checkpoint, which another version of mtkit may have written.

    Args:
        checkpoint: the folder.
        hint: hint of the error.
        to_translate: whether unknown keys in the sections about training are ignored.

    Raises:
        StorageError: If this version cannot read it.
    """
    try:
        return load_stored_config(checkpoint / CONFIG_FILE, _SECTIONS_OF_TRAINING if to_translate else ())
    except ConfigError as error:
        first, *problems = str(error).split("\n")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        what = f"not a config of this version: {problems[0] if problems else first}{more}"
        raise StorageError(what, where=str(checkpoint), hint=hint) from error


def read_model_config(path: Path, checkpoint: Path, hint: str, *, to_translate: bool = False) -> Config:
    """Return the config of a model.

    The model of a run has the sections `data` and `decoding` that the run was last trained with: parts of them may
    change whenever it is resumed, and its best checkpoint keeps those of when it was written.

    Args:
        path: a run or checkpoint folder.
        checkpoint: what `find_checkpoint` returns for it.
        hint: hint of the error.
        to_translate: whether unknown keys in the sections about training are ignored.

    Raises:
        StorageError: If this version cannot read the config in the checkpoint.
    """
    config = read_config(checkpoint, hint, to_translate=to_translate)
    if checkpoint != path:
        # a file that is missing or damaged is no reason to refuse the model
        with suppress(StorageError):
            last = read_config(path, hint, to_translate=to_translate)
            # data.root may be relative to where the run was trained, which `run` tells
            return config.model_copy(update={"run": last.run, "data": last.data, "decoding": last.decoding})
    return config


def read_decoding(path: Path) -> DecodingConfig:
    """Return the decoding settings of a run or checkpoint folder, whose files are not verified.

    For a damaged folder these are the defaults: `loading.load_model` will raise the error.

    Raises:
        StorageError: If there is no checkpoint.
    """
    folder = find_checkpoint(path)
    try:
        return read_model_config(path, folder, hint="", to_translate=True).decoding
    except StorageError:
        return DecodingConfig()


def read_languages(path: Path) -> tuple[str, str]:
    """Return the languages of a model, source and target, from the config of a run or checkpoint folder.

    Raises:
        StorageError: If there is no checkpoint, or its config cannot be read.
    """
    data = read_config(find_checkpoint(path), "name another model", to_translate=True).data
    return data.src, data.tgt


def override_decoding(decoding: DecodingConfig, changes: Mapping[str, object]) -> DecodingConfig:
    """Return decoding settings with other values for some keys.

    Without `beam_size`, the beam becomes as wide as `n_best` and `groups` need.

    Raises:
        ConfigError: If a key or a value is invalid.
    """
    n_best, groups = changes.get("n_best", 1), changes.get("groups", decoding.groups)
    if "beam_size" not in changes and isinstance(n_best, int) and isinstance(groups, int) and groups > 0:
        size = max(decoding.beam_size, n_best)
        changes = {**changes, "beam_size": -(-size // groups) * groups}
    return override_section(decoding, "decoding", changes)
