"""Building a model from a config and vocabularies, and loading weights into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from mtkit.config.sections import ModelConfig
from mtkit.data.tokenizer import Tokenizer, Tokenizers
from mtkit.errors import StorageError
from mtkit.model.transformer import Transformer

_HINT = "the config and the weights of a model belong together"


def make_model(
    config: ModelConfig, tokenizers: Tokenizers, compute_dtype: torch.dtype = torch.float32
) -> Transformer:
    """Return a model with initial weights, on the current default device.

    Args:
        config: section `model`.
        tokenizers: tokenizers, for the sizes of the vocabularies.
        compute_dtype: dtype of matrix products; weights are float32.
    """
    tied = "three-way" if tokenizers.joint else "two-way"
    model = Transformer(
        config, tokenizers.src.vocab_size, tokenizers.tgt.vocab_size, tokenizers.src.pad, tied
    )
    model.compute_dtype = compute_dtype
    return model


_INITIALIZATIONS = (Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_)
"""Functions by which PyTorch draws weights; `init.xavier_uniform_` calls one of them."""


class _WithoutInitialWeights(TorchFunctionMode):
    """A context in which random numbers are not drawn, so that new tensors keep arbitrary values."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the tensor unchanged for an initialization; call every other function."""
        named = kwargs or {}
        if func in _INITIALIZATIONS:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def make_empty_model(config: ModelConfig, tokenizers: Tokenizers, where: str) -> Transformer:
    """Return a model whose weights are arbitrary, to be replaced; random ones would take as long as reading it.

    Args:
        config: section `model`.
        tokenizers: tokenizers, for the sizes of the vocabularies.
        where: file or folder of the weights, for the error message.

    Raises:
        StorageError: If the model is too large for the memory.
    """
    try:
        with _WithoutInitialWeights():
            return make_model(config, tokenizers)
    except RuntimeError as error:  # of the allocator, or a size beyond 64 bits
        what = "a model of the sizes in its config does not fit into memory"
        raise StorageError(what, where=where, hint=_HINT) from error


def extend_vocabulary(
    weights: Mapping[str, Tensor], before: Tokenizers, after: Tokenizers
) -> dict[str, Tensor]:
    """Return the weights of a model whose vocabularies have become larger.

    The rows of new tokens, and unused ones, are the mean of those of the old tokens (Hewitt 2021, "Initializing new
    word embeddings for pretrained language models").

    Args:
        weights: weights by parameter name.
        before: the tokenizers that they belong to.
        after: tokenizers with more tokens.
    """
    sides = {"src_embedding.weight": (before.src, after.src)}
    for name in ("tgt_embedding.weight", "output.weight", "output.bias"):
        sides[name] = (before.tgt, after.tgt)
    return dict(weights) | {
        name: _extended_rows(weights[name], *tokenizers)
        for name, tokenizers in sides.items()
        if name in weights
    }


def _extended_rows(rows: Tensor, before: Tokenizer, after: Tokenizer) -> Tensor:
    """Return a row for each token of a larger vocabulary: that of before, or the mean of those."""
    old = {before.piece(index): index for index in range(before.num_pieces)}
    known = [(index, old[piece]) for index in range(after.num_pieces) if (piece := after.piece(index)) in old]
    extended = (
        rows[: before.num_pieces].mean(dim=0, keepdim=True).repeat(after.vocab_size, *[1] * (rows.dim() - 1))
    )
    new_indices, old_indices = zip(*known, strict=True)
    extended[list(new_indices)] = rows[list(old_indices)]
    return extended


def copy_weights(
    model: Transformer,
    weights: Mapping[str, Tensor],
    where: str,
    convert: Callable[[Tensor, Tensor], Tensor] = lambda weight, parameter: weight,
) -> None:
    """Copy weights into a model's parameters.

    Args:
        model: model to fill.
        weights: weights by parameter name.
        where: file or folder, for the error message.
        convert: returns what to copy, given a weight and its parameter; a sharded model copies its shard.

    Raises:
        StorageError: If names or shapes do not match the model; nothing is copied then.
    """
    parameters = dict(model.named_parameters())
    check_shapes(parameters, weights, where)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(convert(weights[name], parameter))


def check_shapes(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    """Check that weights have the names and shapes of a model's parameters.

    Args:
        parameters: parameters by name.
        weights: weights by parameter name.
        where: file or folder, for the error message.

    Raises:
        StorageError: If not.
    """
    if parameters.keys() != weights.keys():
        names = ", ".join(sorted(parameters.keys() ^ weights.keys())[:3])
        raise StorageError(f"the weights do not match the model: {names}", where=where, hint=_HINT)
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            shapes = f"{list(weights[name].shape)}, not {list(parameter.shape)}"
            raise StorageError(f"{name} has the shape {shapes}", where=where, hint=_HINT)
