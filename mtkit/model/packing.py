"""Matrices laid out once for the processor: what a model that only translates can afford.

oneDNN multiplies fastest by matrices in a blocked layout of its own. `F.linear` brings every matrix into some such
layout at each call; here it is done once. Only for CPUs; elsewhere, and where PyTorch was built without oneDNN, a
model stays as it is. The operators are those that `torch.compile` uses for frozen models, not a documented interface:
`can_pack` tries them before they are relied on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkit.model.attention import Linear
from mtkit.model.layers import FeedForward


class PackedLinear(nn.Module):
    """A `Linear` that cannot be trained. Args: linear: in the precision that it is to run in."""

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.activation = activation
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("packed", pack_matrix(linear.weight.detach()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features], activated."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.bias, self.activation, [], ""
        )
        return product


class PackedFeedForward(nn.Module):
    """A feed-forward layer whose relu is part of the product."""

    def __init__(self, layer: FeedForward) -> None:
        super().__init__()
        self.activate = layer.activate
        self.fused = layer.activation == "relu"
        self.inner = PackedLinear(layer.inner, "relu" if self.fused else "none")
        self.outer = PackedLinear(layer.outer)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to the same shape."""
        h = self.inner(x_BTD)
        return self.outer(h if self.fused else self.activate(h))


class Int8Linear(nn.Module):
    """A product in 8-bit integers (AVX-512 VNNI, AMX), with float32 results, by a matrix without a bias.

    Each row of the matrix and each row of the input has a scale of its own, so that no sentence depends on its
    neighbours. Products and sums of integers are exact; what is lost is lost in rounding to 255 steps.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        rounded = (weight / scales[:, None]).round().to(torch.int8)
        self.register_buffer("packed", torch.ops.onednn.qlinear_prepack(rounded, None), persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features] in float32."""
        rows = x.flatten(0, -2).float()
        row_scales = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        octets = (rows / row_scales).round_().add_(128).to(torch.uint8)
        products: Tensor = torch.ops.onednn.qlinear_pointwise(
            octets,
            1.0,
            128,
            self.packed,
            self.scales,
            self.zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return products.mul_(row_scales).unflatten(0, x.shape[:-1])


def pack_matrix(weight: Tensor) -> Tensor:
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
        found = torch.ops.mkldnn._linear_pointwise(x, pack_matrix(weight), None, "relu", [], "")
    except (AttributeError, RuntimeError):  # another PyTorch, another processor
        return False
    return torch.allclose(found, F.linear(x, weight).relu(), atol=1e-2)


@torch.inference_mode()
def can_multiply_int8() -> bool:
    """Whether `Int8Linear` works here and is right."""
    linear = nn.Linear(64, 96, bias=False)
    x = torch.linspace(-2, 2, 3 * 64).view(3, 64).sin()
    try:
        found = Int8Linear(linear)(x)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(found, linear(x), atol=0.05)


@torch.inference_mode()
def pack(model: nn.Module, int8_output: bool = False) -> None:
    """Replace the matrices of a model that is only to translate from now on; nothing where it cannot be done.

    Args:
        model: in the precision that it is to run in.
        int8_output: multiply by the output matrix, the largest, in 8-bit integers.
    """
    parameter = next(model.parameters())
    if parameter.device.type == "cpu" and can_pack(parameter.dtype):
        model.eval().requires_grad_(False)
        output = model.get_submodule("output")
        int8 = Int8Linear(output) if int8_output and can_multiply_int8() else None  # type: ignore[arg-type]
        _pack_children(model, {})
        if int8 is not None:
            model.set_submodule("output", int8)


def _pack_children(module: nn.Module, done: dict[int, nn.Module]) -> None:
    """Below a module; one that is used twice stays one."""
    for name, child in module.named_children():
        if id(child) not in done:
            if isinstance(child, FeedForward):
                done[id(child)] = PackedFeedForward(child)
            elif isinstance(child, Linear):
                done[id(child)] = PackedLinear(child)
            else:
                _pack_children(child, done)
                done[id(child)] = child
        setattr(module, name, done[id(child)])
