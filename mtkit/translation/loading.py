"""From a folder on disk to a model that can translate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtkit.checkpoint import STATE_FILE, load_checkpoint, read_json
from mtkit.config.sections import Config
from mtkit.data.tokenizer import Tokenizers, load_tokenizers
from mtkit.errors import ConfigError, StorageError
from mtkit.model.build import copy_weights, make_model
from mtkit.model.transformer import Transformer
from mtkit.translation.model_folder import find_checkpoint, read_config, tokenizer_folder


def load_model(path: Path) -> tuple[Config, Tokenizers, Transformer]:
    """The config, the tokenizers and the trained model of a run or checkpoint folder. Raises: StorageError."""
    folder = find_checkpoint(path)
    checkpoint = load_checkpoint(folder)
    hint = "it was written by another version of mtkit, or changed by hand"
    config = read_config(folder, hint, to_translate=True)
    tokenizers = load_tokenizers(tokenizer_folder(folder))
    if checkpoint.state.get("tokenizers", tokenizers.fingerprint) != tokenizers.fingerprint:
        what = "the tokenizer is not the one that this model was trained with"
        raise StorageError(what, where=str(tokenizer_folder(folder)), hint="copy the whole run folder again")
    model = make_model(config.model, tokenizers)
    copy_weights(model, checkpoint.weights, str(folder))
    return config, tokenizers, model


def usual_src_tokens(path: str | Path) -> int | None:
    """The length in tokens that almost no training source of a model exceeds; None for models that do not store it.

    Raises:
        StorageError: there is no model, or what is said of it is damaged.
    """
    found = read_json(find_checkpoint(Path(path)) / STATE_FILE).get("usual_src_tokens")
    return found if isinstance(found, int) else None


def load_ensemble_members(
    paths: Sequence[str | Path], tokenizers: Tokenizers, first: str | Path
) -> list[Transformer]:
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
