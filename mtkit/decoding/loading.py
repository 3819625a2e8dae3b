"""From a folder on disk to a model that can translate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mtkit.checkpoint import CONFIG_FILE, MANIFEST_FILE, load_checkpoint, valid_checkpoints
from mtkit.config import Config, ModelConfig
from mtkit.configfile import load_config
from mtkit.data.tokenizer import Tokenizers, load_tokenizers
from mtkit.errors import ConfigError, StorageError
from mtkit.files import committed_folder
from mtkit.model.transformer import Transformer


def make_model(config: ModelConfig, tokenizers: Tokenizers) -> Transformer:
    """An untrained model for these vocabularies."""
    tied = "three-way" if tokenizers.joint else "two-way"
    return Transformer(config, tokenizers.src.vocab_size, tokenizers.tgt.vocab_size, tokenizers.src.pad, tied)


def copy_weights(model: Transformer, weights: dict[str, Tensor], where: str) -> None:
    """Fill a model's parameters. Raises: StorageError: names or shapes are not the model's."""
    own = dict(model.named_parameters())
    hint = "the config and the weights of a model belong together"
    if own.keys() != weights.keys():
        names = ", ".join(sorted(own.keys() ^ weights.keys())[:3])
        raise StorageError(f"not the weights of this model: {names}", where=where, hint=hint)
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != weights[name].shape:
                shapes = f"{list(weights[name].shape)}, not {list(parameter.shape)}"
                raise StorageError(f"{name} has the shape {shapes}", where=where, hint=hint)
            parameter.copy_(weights[name])


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
    best = committed_folder(path / "best")
    if best.is_dir():
        return best
    for folder, fault in valid_checkpoints(path):
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


def stored_config(checkpoint: Path, hint: str) -> Config:
    """The config in a checkpoint. Raises: StorageError: this version does not understand it; with the hint."""
    try:
        return load_config(checkpoint / CONFIG_FILE)
    except ConfigError as error:
        first, *problems = str(error).split("\n")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        what = f"not a config of this version: {problems[0] if problems else first}{more}"
        raise StorageError(what, where=str(checkpoint), hint=hint) from error


def load_model(path: Path) -> tuple[Config, Tokenizers, Transformer]:
    """The config, the tokenizers and the trained model of a run or checkpoint folder. Raises: StorageError."""
    folder = find_checkpoint(path)
    checkpoint = load_checkpoint(folder)
    config = stored_config(folder, hint="it was written by another version of mtkit, or changed by hand")
    tokenizers = load_tokenizers(tokenizer_folder(folder))
    if checkpoint.state.get("tokenizers", tokenizers.fingerprint) != tokenizers.fingerprint:
        what = "the tokenizer is not the one that this model was trained with"
        raise StorageError(what, where=str(tokenizer_folder(folder)), hint="copy the whole run folder again")
    model = make_model(config.model, tokenizers)
    copy_weights(model, checkpoint.weights, str(folder))
    return config, tokenizers, model


def load_others(paths: Sequence[str | Path], tokenizers: Tokenizers, first: str | Path) -> list[Transformer]:
    """Further models for an ensemble.

    Raises:
        StorageError: a folder or a file of it is missing or damaged.
        ConfigError: a model has other tokenizers than the first.
    """
    models = []
    for path in paths:
        _, own_tokenizers, model = load_model(Path(path))
        if own_tokenizers.fingerprint != tokenizers.fingerprint:
            what = f"its tokenizer is not that of {first}"
            raise ConfigError(what, where=str(path), hint="an ensemble shares one vocabulary")
        models.append(model)
    return models
