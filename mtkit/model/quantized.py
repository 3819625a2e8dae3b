"""Matrices stored in 8 bits: what `mtkit export --to mtkit --type int8` writes.

The matrices of linear layers and the token embeddings are integers from -127 to 127. Each row has a scale of its own,
its largest magnitude divided by 127, as in CTranslate2 (https://opennmt.net/CTranslate2/quantization.html). The scales
of `NAME` are called `NAME_scale`. Everything else stays in float32: biases, norms, learned and relative positions.

Such a model can embed and multiply, but it is meant to be packed for the CPU, which takes the integers as they are (see
`cpu.packing`), or to be dequantized. It cannot be trained.

Shapes: O output features, or tokens of a vocabulary; D input features, or width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from mtkit.config.sections import ModelConfig
from mtkit.data.tokenizer import Tokenizers
from mtkit.errors import StorageError
from mtkit.model.attention import Linear, dequantize_matrix
from mtkit.model.build import check_shapes, make_empty_model
from mtkit.model.transformer import Embedding, Transformer

QUANT_MAX = 127
"""The largest integer in a stored matrix."""


def quantize_matrix(weight_OD: Tensor, quant_max: int = QUANT_MAX) -> tuple[Tensor, Tensor]:
    """Return a matrix as 8-bit integers [O, D] up to `quant_max`, and the scale of each row [O] in float32."""
    weight_OD = weight_OD.detach().float()
    scales_O = weight_OD.abs().amax(dim=1).clamp(min=1e-12) / quant_max
    return (weight_OD / scales_O[:, None]).round().to(torch.int8), scales_O


def is_quantized(model: Transformer) -> bool:
    """Return whether the matrices of a model are 8-bit integers."""
    return isinstance(model.output, Linear) and model.output.weight_scale is not None


@torch.no_grad()
def quantize(model: Transformer) -> None:
    """Turn the matrices of a model into 8-bit integers, in place; tied ones stay tied."""
    _convert(_layers(model), lambda layer: quantize_matrix(layer.weight))


@torch.no_grad()
def dequantize(module: nn.Module) -> None:
    """Turn 8-bit matrices of a module into float32, in place; tied ones stay tied. Others are left as they are."""

    def convert(layer: Linear | Embedding) -> tuple[Tensor, None]:
        assert layer.weight_scale is not None
        return dequantize_matrix(layer.weight, layer.weight_scale), None

    _convert((layer for layer in _layers(module) if layer.weight_scale is not None), convert)


def _convert(
    layers: Iterable[Linear | Embedding],
    convert: Callable[[Linear | Embedding], tuple[Tensor, Tensor | None]],
) -> None:
    """Replace the matrix and the scales of each layer.

    Args:
        layers: the layers.
        convert: returns the new matrix and its scales; called once for layers that share a matrix.
    """
    converted: dict[Tensor, tuple[nn.Parameter, nn.Parameter | None]] = {}
    for layer in layers:
        old = layer.weight
        if old not in converted:
            weight, scales = convert(layer)
            converted[old] = _parameter(weight), None if scales is None else _parameter(scales)
        layer.weight, layer.weight_scale = converted[old]


def _layers(module: nn.Module) -> Iterator[Linear | Embedding]:
    """Yield the layers whose matrices are stored in 8 bits."""
    for layer in module.modules():
        if isinstance(layer, Linear | Embedding):
            yield layer


def _empty_like(weight_OD: Tensor) -> tuple[Tensor, Tensor]:
    """Return an 8-bit matrix [O, D] and scales [O] with arbitrary values."""
    return torch.empty_like(weight_OD, dtype=torch.int8), weight_OD.new_empty(len(weight_OD))


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


def make_quantized_model(
    config: ModelConfig, tokenizers: Tokenizers, weights: Mapping[str, Tensor], where: str
) -> Transformer:
    """Return a model with stored 8-bit weights, which are taken as they are, without a copy.

    Args:
        config: section `model`.
        tokenizers: tokenizers, for the sizes of the vocabularies.
        weights: weights by parameter name.
        where: folder, for the error message.

    Raises:
        StorageError: If names, shapes or dtypes do not match the model, or it is too large for the memory.
    """
    model = make_empty_model(config, tokenizers, where)
    _convert(_layers(model), lambda layer: _empty_like(layer.weight))
    parameters = dict(model.named_parameters())
    check_shapes(parameters, weights, where)
    for name, parameter in parameters.items():
        if weights[name].dtype != parameter.dtype:
            what = f"{name} is {weights[name].dtype}, not {parameter.dtype}"
            raise StorageError(what, where=where, hint="export the model again")
    loaded = {id(parameter): _parameter(weights[name]) for name, parameter in parameters.items()}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, loaded[id(parameter)])
    return model
