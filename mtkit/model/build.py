"""Building a model: from a config and the vocabularies to a Transformer, and weights into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mtkit.config.sections import ModelConfig
from mtkit.data.tokenizer import Tokenizers
from mtkit.errors import StorageError
from mtkit.model.transformer import Transformer


def make_model(config: ModelConfig, tokenizers: Tokenizers) -> Transformer:
    """An untrained model for these vocabularies."""
    tied = "three-way" if tokenizers.joint else "two-way"
    return Transformer(config, tokenizers.src.vocab_size, tokenizers.tgt.vocab_size, tokenizers.src.pad, tied)


def copy_weights(
    model: Transformer,
    weights: Mapping[str, Tensor],
    where: str,
    held_as: Callable[[Tensor, Tensor], Tensor] = lambda weight, parameter: weight,
) -> None:
    """Fill a model's parameters.

    Args:
        model: to fill.
        weights: by name.
        where: for the message.
        held_as: gives what is copied, from a weight and its parameter: where shards are held, the shard.

    Raises:
        StorageError: names or shapes are not the model's; nothing was copied.
    """
    own = dict(model.named_parameters())
    hint = "the config and the weights of a model belong together"
    if own.keys() != weights.keys():
        names = ", ".join(sorted(own.keys() ^ weights.keys())[:3])
        raise StorageError(f"not the weights of this model: {names}", where=where, hint=hint)
    for name, parameter in own.items():
        if parameter.shape != weights[name].shape:
            shapes = f"{list(weights[name].shape)}, not {list(parameter.shape)}"
            raise StorageError(f"{name} has the shape {shapes}", where=where, hint=hint)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(held_as(weights[name], parameter))
