"""Packed weights: the matrices of a model that only translates, laid out once for the CPU, or quantized to 8 bits.

oneDNN multiplies fastest by matrices in a blocked layout of its own. `F.linear` converts a matrix to such a layout at
each call; here that is done once. On other devices, and if PyTorch was built without oneDNN, a model stays as it is.
The operators are those that `torch.compile` uses for frozen models. They are not a documented interface, so `can_pack`
and `int8_quant_max` test them before anything depends on them.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkit.device import choose_dtype
from mtkit.errors import ConfigError
from mtkit.model.attention import Linear
from mtkit.model.layers import FeedForward
from mtkit.model.quantized import QUANT_MAX, dequantize, quantize_matrix

Int8 = Literal["none", "output", "all"]
"""The matrices that are multiplied in 8-bit integers."""

INT8_MIN_SIZE = 2**17
"""Elements of the smallest matrix whose product in integers is worth the quantization of its input."""


class PackedLinear(nn.Module):
    """A `Linear` in oneDNN's layout. It cannot be trained.

    Args:
        linear: the layer, in the dtype in which it will run.
        relu: apply ReLU to the output, as part of the product.
        keep_rows: keep the matrix as it was too, for `select_rows`.
    """

    bias: Tensor | None
    packed: Tensor

    def __init__(self, linear: nn.Linear, relu: bool = False, keep_rows: bool = False) -> None:
        super().__init__()
        self.activation = "relu" if relu else "none"
        self.unpacked = linear.weight.detach() if keep_rows else None
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("packed", _pack_matrix(linear.weight.detach()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features], with ReLU if that is part of the product."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.bias, self.activation, [], ""
        )
        return product


class Int8Linear(nn.Module):
    """A `Linear` that multiplies 8-bit integers and returns float32. It cannot be trained.

    Each row of the matrix and each row of the input has a scale of its own, so no sentence depends on the others in its
    batch. Products and sums of integers are exact. The only loss is rounding: of the input to 255 levels, of the matrix
    to 255 or 129 levels (see `int8_quant_max`).

    Args:
        linear: the layer; a matrix that is stored in 8 bits is taken as it is.
        relu: apply ReLU to the output.
        keep_rows: keep the integers unpacked too, for `select_rows`.
    """

    bias: Tensor | None
    packed: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, linear: Linear, relu: bool = False, keep_rows: bool = False) -> None:
        super().__init__()
        self.relu = relu
        if linear.weight_scale is None:
            rounded, scales = quantize_matrix(linear.weight, int8_quant_max())
        else:
            rounded, scales = linear.weight.detach(), linear.weight_scale.detach()
        self.unpacked = rounded if keep_rows else None
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("packed", torch.ops.onednn.qlinear_prepack(rounded, None), persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features] in float32, with ReLU if that is part of the product."""
        x_uint8, row_scales = quantize_rows(x.flatten(0, -2))
        products = multiply_int8(x_uint8, self.packed, self.scales, self.zeros).mul_(row_scales)
        if self.bias is not None:
            products.add_(self.bias)
        if self.relu:
            products.relu_()
        return products.unflatten(0, x.shape[:-1])


def quantize_rows(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row to unsigned bytes [N, D] with zero point 128, and return them and the scales [N, 1]."""
    scales_N1 = x_ND.abs().amax(dim=1, keepdim=True).float().clamp_(min=1e-12).mul_(1 / 127)
    rounded = (x_ND / scales_N1).round_().to(torch.int8)  # via int8: PyTorch is slow at float to uint8
    return rounded.view(torch.uint8).add_(128), scales_N1


def multiply_int8(x_uint8: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """Multiply bytes [N, in_features] by a packed matrix: [N, out_features] in float32, each column scaled."""
    products: Tensor = torch.ops.onednn.qlinear_pointwise(
        x_uint8, 1.0, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return products


@torch.inference_mode()
def select_rows(layer: nn.Module, rows_N: Tensor) -> nn.Module:
    """Return a linear layer that computes only these outputs of another one, with the same rounding.

    Args:
        layer: a `Linear`, or one that was packed with `keep_rows`.
        rows_N: indices of the outputs.
    """
    assert isinstance(layer, Linear | PackedLinear | Int8Linear)
    scales = layer.scales if isinstance(layer, Int8Linear) else getattr(layer, "weight_scale", None)
    matrix = layer.weight if isinstance(layer, Linear) else layer.unpacked
    assert matrix is not None, "packed without keep_rows"
    selected = Linear(matrix.shape[1], len(rows_N), bias=layer.bias is not None, device="meta")
    selected.weight = nn.Parameter(matrix[rows_N], requires_grad=False)
    if layer.bias is not None:
        selected.bias = nn.Parameter(layer.bias[rows_N], requires_grad=False)
    if scales is not None:
        selected.weight_scale = nn.Parameter(scales[rows_N], requires_grad=False)
    return selected if isinstance(layer, Linear) else type(layer)(selected)


def _pack_linear(linear: Linear, int8: bool, relu: bool = False, keep_rows: bool = False) -> nn.Module:
    """Return the fastest form of a linear layer on this CPU: 8-bit integers, oneDNN's layout, or unchanged.

    In float32 without AVX-512, MKL, which `F.linear` calls, was 10 to 25 % faster than oneDNN with a packed matrix, and
    four times as fast with few rows. With AVX-512 oneDNN was faster.
    """
    if int8 and linear.weight.numel() >= INT8_MIN_SIZE:
        return Int8Linear(linear, relu, keep_rows)
    dequantize(linear)
    if linear.weight.dtype == torch.float32 and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return nn.Sequential(linear, nn.ReLU(inplace=True)) if relu else linear
    return PackedLinear(linear, relu, keep_rows)


def _pack_matrix(weight: Tensor) -> Tensor:
    """Return a matrix in oneDNN's layout."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return packed


@torch.inference_mode()
def can_pack(dtype: torch.dtype) -> bool:
    """Return whether the operators exist and multiply as `F.linear` does."""
    if not torch.backends.mkldnn.is_available() or dtype not in (torch.float32, torch.bfloat16):
        return False
    x, weight = torch.linspace(-1, 1, 64).view(4, 16).to(dtype), torch.eye(32, 16).to(dtype)
    try:
        found = torch.ops.mkldnn._linear_pointwise(x, _pack_matrix(weight), None, "relu", [], "")
    except (AttributeError, RuntimeError):  # not in this PyTorch, or not on this CPU
        return False
    return torch.allclose(found, F.linear(x, weight).relu(), atol=1e-2)


@cache
@torch.inference_mode()
def int8_quant_max() -> int:
    """Return the largest integers that a matrix may contain so that sums are exact on this CPU; 0 if none are.

    CPUs with 8-bit instructions (VNNI, AMX) allow 127. Older ones add two neighboring 8-bit products in 16 bits, where
    2 x 255 x 127 overflows but 2 x 255 x 64 does not. A product with the largest possible sums shows which is the case.
    """
    x_uint8 = torch.tensor([[255], [0], [128]], dtype=torch.uint8).expand(3, 64).contiguous()
    for quant_max in (127, 64):
        matrix = torch.full((96, 64), quant_max, dtype=torch.int8)
        matrix[::2] = -quant_max
        try:
            packed = torch.ops.onednn.qlinear_prepack(matrix, None)
            found = multiply_int8(x_uint8, packed, torch.ones(96), torch.zeros(96, dtype=torch.long))
        except (AttributeError, RuntimeError):
            return 0
        if torch.equal(found, (x_uint8.float() - 128) @ matrix.float().T):
            return quant_max
    return 0


def can_multiply_int8() -> bool:
    """Return whether a model can be packed for 8-bit multiplication on this CPU."""
    return can_pack(torch.float32) and int8_quant_max() > 0


def choose_int8(precision: str, device: torch.device, auto_means_all: bool = False) -> Int8:
    """Return which matrices to multiply in 8-bit integers.

    `auto` is what was fastest on x86: without bfloat16 all large matrices (twice as fast as float32), with bfloat16
    only the output matrix. On other CPUs it is none: oneDNN has no fast kernel for these products there, but a
    reference that converts the matrix at each call (pytorch/pytorch PR 135058).

    Args:
        precision: auto, fp32, bf16, fp16 or int8.
        device: where the model runs.
        auto_means_all: whether `auto` means all matrices in any case, because they are stored in 8 bits.

    Raises:
        ConfigError: If `precision` is int8 and this device does not support it.
    """
    possible = device.type == "cpu" and can_multiply_int8()
    if precision == "int8":
        if not possible:
            what = f"int8 is not supported on {'this CPU' if device.type == 'cpu' else device}"
            raise ConfigError(what, where="`precision`", hint="use auto, or `device` cpu")
        return "all"
    if precision != "auto" or not possible or platform.machine() not in ("x86_64", "AMD64"):
        return "none"
    return "output" if choose_dtype("auto", device) == torch.bfloat16 and not auto_means_all else "all"


def takes_stored_int8() -> bool:
    """Return whether this CPU multiplies matrices that are stored in 8 bits without rounding them again."""
    return int8_quant_max() >= QUANT_MAX


@torch.inference_mode()
def pack(model: nn.Module, int8: Int8 = "none", keep_output_rows: bool = False) -> None:
    """Replace the linear layers of a model by packed ones, in place, unless this CPU does not support it.

    The model can no longer be trained.

    Args:
        model: on a CPU, in the dtype in which it will run; float32 for `int8="all"`, which takes matrices that are
            stored in 8 bits as they are.
        int8: matrices to multiply in 8-bit integers (see `choose_int8`).
        keep_output_rows: keep the output matrix unpacked too, so that a shortlist can select rows of it.
    """
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    if not can_pack(dtype):
        return
    if int8_quant_max() == 0:
        int8 = "none"
    model.eval().requires_grad_(False)
    output = model.get_submodule("output")
    assert isinstance(output, Linear)
    _pack_children(
        model, {id(output): _pack_linear(output, int8 != "none", keep_rows=keep_output_rows)}, int8 == "all"
    )


def _pack_children(module: nn.Module, packed: dict[int, nn.Module], int8: bool) -> None:
    """Pack the linear layers below a module.

    Args:
        packed: replacements made so far, by `id` of the original module, so that shared modules stay shared.
    """
    for name, child in module.named_children():
        if id(child) not in packed:
            if isinstance(child, FeedForward) and child.activation == "relu":
                inner, outer = _pack_linear(child.inner, int8, relu=True), _pack_linear(child.outer, int8)
                packed[id(child)] = nn.Sequential(inner, outer)
            elif isinstance(child, Linear):
                packed[id(child)] = _pack_linear(child, int8)
            else:
                _pack_children(child, packed, int8)
                packed[id(child)] = child
        setattr(module, name, packed[id(child)])
