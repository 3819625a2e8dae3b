"""Matrices laid out once for the processor: what a model that only translates can afford.

oneDNN multiplies fastest by matrices in a blocked layout of its own. `F.linear` brings every matrix into some such
layout at each call; here it is done once. Only for CPUs; elsewhere, and where PyTorch was built without oneDNN, a
model stays as it is. The operators are those that `torch.compile` uses for frozen models, not a documented interface:
`can_pack` and `int8_steps` try them before they are relied on.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkit.device import choose_dtype
from mtkit.errors import ConfigError
from mtkit.model.attention import Linear
from mtkit.model.layers import FeedForward

Int8 = Literal["none", "output", "all"]
"""Which matrices multiply in 8-bit integers."""

INT8_SIZE = 2**17
"""Numbers in the smallest matrix that is worth turning its inputs into integers for."""


class PackedLinear(nn.Module):
    """A `Linear` that cannot be trained.

    Args:
        linear: in the precision that it is to run in.
        relu: whether relu is part of the product.
    """

    def __init__(self, linear: nn.Linear, relu: bool = False) -> None:
        super().__init__()
        self.activation = "relu" if relu else "none"
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("packed", _pack_matrix(linear.weight.detach()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features], activated."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.bias, self.activation, [], ""
        )
        return product


class Int8Linear(nn.Module):
    """A `Linear` that multiplies 8-bit integers, with float32 results, and cannot be trained.

    Each row of the matrix and each row of the input has a scale of its own, so that no sentence depends on its
    neighbours. Products and sums of integers are exact; what is lost is lost in rounding, of the input to 255 steps, of
    the matrix to 255 or (see `int8_steps`) 129.
    """

    bias: Tensor | None
    packed: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, linear: nn.Linear, relu: bool = False) -> None:
        super().__init__()
        self.relu = relu
        weight, steps = linear.weight.detach().float(), int8_steps()
        scales = weight.abs().amax(dim=1).clamp(min=1e-12) / steps
        rounded = (weight / scales[:, None]).round().to(torch.int8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("packed", torch.ops.onednn.qlinear_prepack(rounded, None), persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features] in float32, activated."""
        octets, row_scales = quantize_rows(x.flatten(0, -2))
        products = multiply_int8(octets, self.packed, self.scales, self.zeros).mul_(row_scales)
        if self.bias is not None:
            products.add_(self.bias)
        if self.relu:
            products.relu_()
        return products.unflatten(0, x.shape[:-1])


def quantize_rows(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, D] as bytes [N, D], 128 being zero, and what a step of each row is worth, [N, 1]."""
    worth_N1 = x_ND.abs().amax(dim=1, keepdim=True).float().clamp_(min=1e-12).mul_(1 / 127)
    rounded = (x_ND / worth_N1).round_().to(torch.int8)
    return rounded.view(torch.uint8).add_(128), worth_N1  # PyTorch is slow at float to uint8


def multiply_int8(octets: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """[N, in_features] by a packed matrix to [N, out_features] in float32, each column times its scale."""
    products: Tensor = torch.ops.onednn.qlinear_pointwise(
        octets, 1.0, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return products


def _pack_linear(linear: nn.Linear, int8: bool, relu: bool = False) -> nn.Module:
    """A linear layer in the form that is fastest here: 8-bit integers, oneDNN's layout, or as it is.

    In float32 without AVX-512, MKL, which `F.linear` calls, was 10 to 25 % faster than oneDNN with a packed matrix,
    and four times as fast with few rows; with AVX-512 it was the slower one.
    """
    if int8 and linear.weight.numel() >= INT8_SIZE:
        return Int8Linear(linear, relu)
    if linear.weight.dtype == torch.float32 and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return nn.Sequential(linear, nn.ReLU(inplace=True)) if relu else linear
    return PackedLinear(linear, relu)


def _pack_matrix(weight: Tensor) -> Tensor:
    """A matrix in oneDNN's layout."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return packed


@torch.inference_mode()
def can_pack(dtype: torch.dtype) -> bool:
    """Whether the operators are there and multiply as `F.linear` does."""
    if not torch.backends.mkldnn.is_available() or dtype not in (torch.float32, torch.bfloat16):
        return False
    x, weight = torch.linspace(-1, 1, 64).view(4, 16).to(dtype), torch.eye(32, 16).to(dtype)
    try:
        found = torch.ops.mkldnn._linear_pointwise(x, _pack_matrix(weight), None, "relu", [], "")
    except (AttributeError, RuntimeError):  # another PyTorch, another processor
        return False
    return torch.allclose(found, F.linear(x, weight).relu(), atol=1e-2)


@cache
@torch.inference_mode()
def int8_steps() -> int:
    """How large the integers of a matrix may be, so that sums are exact on this processor; 0 if none are.

    With instructions for it (VNNI, AMX) 127. Older processors add two neighbouring products of 8 bits in 16 bits, which
    is too little for 2 x 255 x 127, but not for 2 x 255 x 64. Which it is, the largest possible sums tell.
    """
    octets = torch.tensor([[255], [0], [128]], dtype=torch.uint8).expand(3, 64).contiguous()
    for steps in (127, 64):
        matrix = torch.full((96, 64), steps, dtype=torch.int8)
        matrix[::2] = -steps
        try:
            packed = torch.ops.onednn.qlinear_prepack(matrix, None)
            found = multiply_int8(octets, packed, torch.ones(96), torch.zeros(96, dtype=torch.long))
        except (AttributeError, RuntimeError):
            return 0
        if torch.equal(found, (octets.float() - 128) @ matrix.float().T):
            return steps
    return 0


def choose_int8(precision: str, device: torch.device) -> Int8:
    """Which matrices multiply in 8-bit integers.

    `auto` takes what was fastest: on a CPU without bfloat16 all that are large (at twice the speed of float32), with
    bfloat16 that of the output.

    Raises:
        ConfigError: int8 was asked for where it cannot be had.
    """
    possible = device.type == "cpu" and can_pack(torch.float32) and int8_steps() > 0
    if precision == "int8":
        if not possible:
            what = f"int8 products are not to be had on {'this CPU' if device.type == 'cpu' else device}"
            raise ConfigError(what, where="`precision`", hint="auto, or `device` cpu")
        return "all"
    if precision != "auto" or not possible:
        return "none"
    return "output" if choose_dtype("auto", device) == torch.bfloat16 else "all"


@torch.inference_mode()
def pack(model: nn.Module, int8: Int8 = "none") -> None:
    """Replace the matrices of a model that is only to translate from now on; nothing where it cannot be done.

    Args:
        model: on a CPU, in the precision that it is to run in; float32 for `int8="all"`.
        int8: see `choose_int8`.
    """
    if not can_pack(next(model.parameters()).dtype):
        return
    model.eval().requires_grad_(False)
    output = model.get_submodule("output")
    assert isinstance(output, Linear)
    _pack_children(model, {id(output): _pack_linear(output, int8 != "none")}, int8 == "all")


def _pack_children(module: nn.Module, done: dict[int, nn.Module], int8: bool) -> None:
    """Below a module; one that is used twice stays one."""
    for name, child in module.named_children():
        if id(child) not in done:
            if isinstance(child, FeedForward) and child.activation == "relu":
                inner, outer = _pack_linear(child.inner, int8, relu=True), _pack_linear(child.outer, int8)
                done[id(child)] = nn.Sequential(inner, outer)
            elif isinstance(child, Linear):
                done[id(child)] = _pack_linear(child, int8)
            else:
                _pack_children(child, done, int8)
                done[id(child)] = child
        setattr(module, name, done[id(child)])
