"""Loads models from run folders and checkpoint folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mtkit.checkpoint import STATE_FILE, Checkpoint, load_base, load_checkpoint, read_json
from mtkit.config.sections import Config
from mtkit.data.tokenizer import Tokenizers, load_tokenizers
from mtkit.errors import ConfigError, StorageError
from mtkit.model.build import copy_weights, make_empty_model
from mtkit.model.lora import merge_adapters
from mtkit.model.quantized import dequantize, make_quantized_model
from mtkit.model.transformer import Transformer
from mtkit.translation.model_folder import find_checkpoint, read_config, read_model_config, tokenizer_folder


def load_model(path: Path) -> tuple[Config, Tokenizers, Transformer]:
    """Load the config, the tokenizers and the trained model of a run or checkpoint folder, in float32.

    Raises:
        StorageError: If the folder or a file in it is missing or damaged.
    """
    config, tokenizers, model = load_stored_model(path)
    dequantize(model)
    return config, tokenizers, model


def load_stored_model(path: Path) -> tuple[Config, Tokenizers, Transformer]:
    """Load a model as `load_model` does, but keep matrices that are stored in 8 bits as they are (see `quantized`).

    Raises:
        StorageError: If the folder or a file in it is missing or damaged.
    """
    folder = find_checkpoint(path)
    checkpoint = load_checkpoint(folder)
    hint = "it was written by another version of mtkit, or changed by hand"
    config = read_model_config(path, folder, hint, to_translate=True)
    weights = checkpoint.weights if checkpoint.int8 else _merged(checkpoint, folder)
    tokenizers = load_own_tokenizers(folder)
    if checkpoint.int8:
        return config, tokenizers, make_quantized_model(config.model, tokenizers, weights, str(folder))
    model = make_empty_model(config.model, tokenizers, str(folder))
    copy_weights(model, weights, str(folder))
    return config, tokenizers, model


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint folder by parameter name, in float32, LoRA adapters merged into them.

    Raises:
        StorageError: If a file in it is missing or damaged, or the weights are stored in 8 bits.
    """
    checkpoint = load_checkpoint(folder)
    if checkpoint.int8:
        raise StorageError(
            "its weights are stored in 8 bits",
            where=str(folder),
            hint="name the model that it was exported from",
        )
    return {name: weight.float() for name, weight in _merged(checkpoint, folder).items()}


def _merged(checkpoint: Checkpoint, folder: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint, its LoRA adapters merged into them.

    Raises:
        StorageError: If a file is missing or damaged.
    """
    if not checkpoint.adapters:
        return checkpoint.weights
    lora = read_config(folder, "it was written by another version of mtkit", to_translate=True).training.lora
    try:
        if lora is None:
            raise ValueError("the config has no training.lora")
        return merge_adapters(load_base(folder, checkpoint.state), checkpoint.adapters, lora)
    except ValueError as error:
        hint = "the config, the adapters and the weights of a model belong together"
        raise StorageError(str(error), where=str(folder), hint=hint) from error


def load_own_tokenizers(folder: Path) -> Tokenizers:
    """Load the tokenizers of a checkpoint, in its folder or in that of the run above it.

    Raises:
        StorageError: If they are missing or damaged, or not those that the model was trained with.
    """
    tokenizers = load_tokenizers(tokenizer_folder(folder))
    if read_json(folder / STATE_FILE).get("tokenizers", tokenizers.fingerprint) != tokenizers.fingerprint:
        what = "this is not the tokenizer that the model was trained with"
        raise StorageError(what, where=str(tokenizer_folder(folder)), hint="copy the whole run folder again")
    return tokenizers


def usual_src_tokens(path: str | Path) -> int | None:
    """Return the length in tokens that almost no training source exceeded; None if the model does not store it.

    Raises:
        StorageError: If the folder contains no model, or its state is damaged.
    """
    found = read_json(find_checkpoint(Path(path)) / STATE_FILE).get("usual_src_tokens")
    return found if isinstance(found, int) else None


def load_ensemble_members(
    paths: Sequence[str | Path], tokenizers: Tokenizers, source_eos: bool, first: str | Path
) -> list[Transformer]:
    """Load further models of an ensemble, as `load_stored_model` does.

    Args:
        paths: run or checkpoint folders.
        tokenizers: tokenizers of the first model.
        source_eos: whether sources of the first model end with eos.
        first: folder of the first model, for the message.

    Raises:
        StorageError: If a folder or a file in it is missing or damaged.
        ConfigError: If a model has other tokenizers than the first, or ends sources otherwise.
    """
    models: list[Transformer] = []
    for path in paths:
        _, own_tokenizers, model = load_stored_model(Path(path))
        if own_tokenizers.fingerprint != tokenizers.fingerprint:
            what = f"its tokenizer differs from that of {first}"
            raise ConfigError(what, where=str(path), hint="an ensemble shares one vocabulary")
        if model.source_eos != source_eos:
            what = f"its model.source_eos differs from that of {first}"
            raise ConfigError(what, where=str(path), hint="the models of an ensemble read the same sources")
        models.append(model)
    return models
