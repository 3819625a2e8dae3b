"""Matrices as products take them: cast once an update, while the weights that are trained stay in float32.

Micro-batches, and layers that are recomputed, share the copies; gradients go to the float32 weights, in which they are
summed.

With 8-bit floating-point numbers (Micikevicius et al. 2022) all three products of a linear layer run in FP8: weights
and inputs in E4M3, which has more digits, gradients in E5M2, which has the wider range. Each tensor is divided by a
scale of its own, so that its largest number becomes the largest that the format has. Scales stay on the device.

Shapes: M rows of the input, D its width, O output features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_MULTIPLE = 16
"""The hardware multiplies FP8 matrices whose sizes are multiples of this; rows of the input are padded."""
_SMALLEST_SCALE = 1e-12


class CastWeight:
    """A matrix in the dtype of products.

    Args:
        weight: the matrix in float32.
        dtype: dtype of products.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.copy = weight.detach().to(dtype)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map [..., D] to [..., O], with gradients for the weight in float32."""
        return F.linear(x, _Cast.apply(weight, self.copy), bias)


class _Cast(torch.autograd.Function):
    """A cast whose result exists already."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].to(ctx.dtype), None


class Float8Weight:
    """A matrix in E4M3, by rows and by columns: the hardware wants the numbers of a sum side by side.

    Args:
        weight_OD: the matrix in float32.
    """

    def __init__(self, weight_OD: Tensor) -> None:
        weight_OD = weight_OD.detach()
        self.scale = _scale(weight_OD, E4M3)
        self.rows_OD = _cast(weight_OD, self.scale, E4M3)
        self.columns_DO = self.rows_OD.T.contiguous()

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map [..., D] to [..., O] in the dtype of `x`, with gradients for the weight in float32."""
        y: Tensor = _Float8Product.apply(x, weight, self.rows_OD, self.columns_DO, self.scale)
        return y if bias is None else y + bias


def suits_float8(weight_OD: Tensor) -> bool:
    """Return whether the sizes of a matrix are those that the hardware multiplies in FP8."""
    return all(size % _MULTIPLE == 0 for size in weight_OD.shape)


class _Float8Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, rows_OD: Tensor, columns_DO: Tensor, weight_scale: Tensor
    ) -> Tensor:
        x_MD = _padded_rows(x)
        x_scale = _scale(x_MD, E4M3)
        x8_MD = _cast(x_MD, x_scale, E4M3)
        y_MO = _multiply(x8_MD, rows_OD.T, x_scale, weight_scale, x.dtype, fast=True)
        ctx.save_for_backward(x8_MD, x_scale, columns_DO, weight_scale)
        ctx.dtype = weight.dtype
        return _without_padding(y_MO, x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x8_MD, x_scale, columns_DO, weight_scale = ctx.saved_tensors
        dtype = grads[0].dtype
        grad_MO = _padded_rows(grads[0])
        scale = _scale(grad_MO, E5M2)
        grad8_MO = _cast(grad_MO, scale, E5M2)
        x_grad = weight_grad = None
        if ctx.needs_input_grad[0]:
            x_grad_MD = _multiply(grad8_MO, columns_DO.T, scale, weight_scale, dtype)
            x_grad = _without_padding(x_grad_MD, grads[0].shape)
        if ctx.needs_input_grad[1]:
            x8_by_columns = x8_MD.T.contiguous().T
            weight_grad_OD = _multiply(grad8_MO.T.contiguous(), x8_by_columns, scale, x_scale, dtype)
            weight_grad = weight_grad_OD.to(ctx.dtype)
        return x_grad, weight_grad, None, None, None


def _padded_rows(x: Tensor) -> Tensor:
    """Return [..., D] as [M, D], with rows of zeros so that M is a multiple of what the hardware wants."""
    x_MD = x.flatten(0, -2)
    return F.pad(x_MD, (0, 0, 0, -len(x_MD) % _MULTIPLE))


def _without_padding(y_MO: Tensor, shape: torch.Size) -> Tensor:
    """Return a product of padded rows as [..., O], the other sizes being those of `shape`."""
    num_rows = shape[:-1].numel()
    return y_MO[:num_rows].view(*shape[:-1], -1)


def _scale(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what the numbers of a tensor are divided by, so that they use the whole range of an 8-bit dtype: []."""
    return (x.abs().amax().float() / torch.finfo(dtype).max).clamp(min=_SMALLEST_SCALE)


def _cast(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers of a tensor divided by their scale, in an 8-bit dtype."""
    largest = torch.finfo(dtype).max
    return (x.float() / scale).clamp(-largest, largest).to(dtype)


def _multiply(
    a_MK: Tensor, b_KN: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype, *, fast: bool = False
) -> Tensor:
    """Multiply 8-bit matrices, the first of which is stored by rows and the second by columns: [M, N] in `dtype`.

    A CPU computes with the same numbers in float32, to show what FP8 does to a training.

    Args:
        a_MK, b_KN: the matrices.
        a_scale, b_scale: their scales.
        dtype: dtype of the product.
        fast: whether sums may be kept with fewer digits.
    """
    if a_MK.device.type == "cpu":
        return ((a_MK.float() @ b_KN.float()) * (a_scale * b_scale)).to(dtype)
    return torch._scaled_mm(
        a_MK, b_KN, scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast
    )
