"""Operations of training in the compiled library: attention, cross-entropy, dropout and norms, with their gradients.

PyTorch makes each of many passes over memory; in a small model they take as long as its matrix products. Here each is a
pass or two. Random masks are those that PyTorch's way has. A process with several threads leaves them to PyTorch, which
shares an operation among them.

Shapes: B batch, T queries, S keys, H query heads, G key/value heads, E head width, D model width, V vocabulary.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_float, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mtkit.model.cpu.native.loading import address, declare, instruction_limit, load_library

PADDING_BYTES = 64
"""Random bytes after the last, which are read and not used."""
_VECTOR = 16
"""Numbers that must divide the width of a head or of the model."""
_DTYPES = (torch.float32, torch.bfloat16)


class _CAttention(Structure):
    """`Attention` in training.h."""

    _fields_ = [
        *[
            (name, c_int64)
            for name in ("bf16", "batch", "heads", "kv_heads", "queries", "keys", "head_width")
        ],
        *[(name, c_int64) for name in ("q_stride", "kv_stride")],
        *[(name, c_void_p) for name in ("q", "k", "v", "mask")],
        *[(name, c_int64) for name in ("mask_batch", "mask_query")],
        ("bytes", c_void_p),
        ("threshold", c_int64),
        ("scale", c_float),
        ("keep_scale", c_float),
        *[(name, c_void_p) for name in ("out", "normalizers", "grad", "q_grad", "k_grad", "v_grad")],
    ]


class _CNormTask(Structure):
    """`NormTask` in training.h."""

    _fields_ = [
        *[(name, c_int64) for name in ("bf16", "rows", "width")],
        *[(name, c_void_p) for name in ("x", "gain", "bias")],
        ("centered", c_int64),
        ("epsilon", c_float),
        *[(name, c_void_p) for name in ("out", "statistics", "grad", "x_grad", "gain_grad", "bias_grad")],
    ]


@cache
def _library() -> ctypes.CDLL | None:
    """Return the library with the types of its functions, or None if it was not built."""
    library = load_library("_training")
    if library is None:
        return None
    pointer, integer = c_void_p, c_int64
    functions: dict[str, tuple[type | None, list[type]]] = {
        "mtkit_training_instructions": (integer, []),
        "mtkit_attend": (integer, [integer, pointer]),
        "mtkit_attend_backward": (integer, [integer, pointer]),
        "mtkit_cross_entropy": (integer, [integer, pointer, *[integer] * 3, pointer, c_float, pointer]),
        "mtkit_drop": (
            None,
            [integer, pointer, pointer, integer, pointer, integer, c_float, integer, pointer, integer],
        ),
        "mtkit_norm": (None, [integer, pointer]),
        "mtkit_norm_backward": (None, [integer, pointer]),
    }
    return declare(library, functions)


def _call(name: str, *arguments: Any) -> Any:
    """Call a function of the library with the instructions to use."""
    library = _library()
    assert library is not None
    return getattr(library, name)(training_instructions(), *arguments)


def training_instructions() -> int:
    """Return the instructions to use, see `INSTRUCTIONS`; 0 without the library, or on a CPU that it does not suit.

    Raises:
        ConfigError: If the variable MTKIT_NATIVE has an unknown value.
    """
    library = _library()
    return 0 if library is None else min(library.mtkit_training_instructions(), instruction_limit())


def trains_natively(x: Tensor) -> bool:
    """Return whether operations on a tensor are computed in the library: on a CPU that it suits, in one thread."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype in _DTYPES
        and type(x) in (Tensor, torch.nn.Parameter)  # no fake or sharded ones
        and torch.get_num_threads() == 1
        and training_instructions() > 0
    )


# --- attention --------------------------------------------------------------------------------------------------------


def supports_attention(q: Tensor, mask: Tensor | None) -> bool:
    """Return whether the library can attend: head widths that are multiples of 16, and one mask for all heads.

    Args:
        q: queries, or all projections, [B, T, heads, E].
        mask: broadcasts to [B, H, T, S].
    """
    return q.shape[-1] % _VECTOR == 0 and (mask is None or mask.ndim < 3 or mask.shape[-3] == 1)


def attention(
    q_or_qkv: Tensor,
    memory_kv: Tensor | None,
    mask: Tensor | None,
    heads: int,
    random_bytes: Tensor | None,
    threshold: int,
) -> Tensor:
    """Compute what `cpu_attention` computes: [B, T, D].

    Args:
        q_or_qkv: as for `cpu_attention`.
        memory_kv: as for `cpu_attention`.
        mask: as for `cpu_attention`.
        heads: H.
        random_bytes: of each attention weight [B, H, T, S], and `PADDING_BYTES` more; None without dropout.
        threshold: bytes below it drop a weight.
    """
    return _Attention.apply(q_or_qkv, memory_kv, mask, heads, random_bytes, threshold)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_or_qkv: Tensor,
        memory_kv: Tensor | None,
        mask: Tensor | None,
        heads: int,
        random_bytes: Tensor | None,
        threshold: int,
    ) -> Tensor:
        q_or_qkv = q_or_qkv.contiguous()
        memory_kv = None if memory_kv is None else memory_kv.contiguous()
        B, T, _, E = q_or_qkv.shape
        if mask is not None:  # [B or 1, 1, T or 1, S]
            S = T if memory_kv is None else memory_kv.shape[1]
            mask = mask.view(*[1] * (4 - mask.ndim), *mask.shape).expand(-1, -1, -1, S).contiguous()
        out_BTD, normalizers_BHT = q_or_qkv.new_empty(B, T, heads * E), torch.empty(B, heads, T)
        task = _attention_task(q_or_qkv, memory_kv, mask, heads, random_bytes, threshold, normalizers_BHT)
        task.out = out_BTD.data_ptr()
        _check(_call("mtkit_attend", ctypes.byref(task)))
        ctx.save_for_backward(q_or_qkv, memory_kv, mask, random_bytes, normalizers_BHT)
        ctx.heads, ctx.threshold = heads, threshold
        return out_BTD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        q_or_qkv, memory_kv, mask, random_bytes, normalizers_BHT = ctx.saved_tensors
        grad_BTD, q_or_qkv_grad = grad_BTD.contiguous(), torch.empty_like(q_or_qkv)
        memory_kv_grad = None if memory_kv is None else torch.empty_like(memory_kv)
        task = _attention_task(
            q_or_qkv, memory_kv, mask, ctx.heads, random_bytes, ctx.threshold, normalizers_BHT
        )
        task.grad = grad_BTD.data_ptr()
        task.q_grad, task.k_grad, task.v_grad = _addresses(q_or_qkv_grad, memory_kv_grad, ctx.heads)
        _check(_call("mtkit_attend_backward", ctypes.byref(task)))
        return q_or_qkv_grad, memory_kv_grad, None, None, None, None


def _attention_task(
    q_or_qkv: Tensor,
    memory_kv: Tensor | None,
    mask: Tensor | None,
    heads: int,
    random_bytes: Tensor | None,
    threshold: int,
    normalizers_BHT: Tensor,
) -> _CAttention:
    """Return the structure of an attention, without its output or gradients."""
    kv = q_or_qkv if memory_kv is None else memory_kv
    (B, T, _, E), S = q_or_qkv.shape, kv.shape[1]
    q, k, v = _addresses(q_or_qkv, memory_kv, heads)
    return _CAttention(
        bf16=q_or_qkv.dtype == torch.bfloat16,
        batch=B,
        heads=heads,
        kv_heads=(kv.shape[2] - (heads if memory_kv is None else 0)) // 2,
        queries=T,
        keys=S,
        head_width=E,
        q_stride=q_or_qkv.stride(1),
        kv_stride=kv.stride(1),
        q=q,
        k=k,
        v=v,
        mask=address(mask),
        mask_batch=mask.stride(0) if mask is not None and len(mask) > 1 else 0,
        mask_query=mask.stride(2) if mask is not None and mask.shape[2] > 1 else 0,
        bytes=address(random_bytes),
        threshold=threshold,
        scale=E**-0.5,
        keep_scale=256 / (256 - threshold) if random_bytes is not None else 1.0,
        normalizers=normalizers_BHT.data_ptr(),
    )


def _addresses(q_or_qkv: Tensor, memory_kv: Tensor | None, heads: int) -> tuple[int, int, int]:
    """Return the addresses of the first query, key and value of contiguous projections, or of their gradients."""
    kv = q_or_qkv[:, :, heads:] if memory_kv is None else memory_kv
    return q_or_qkv.data_ptr(), kv.data_ptr(), kv[:, :, kv.shape[2] // 2 :].data_ptr()


# --- cross-entropy ----------------------------------------------------------------------------------------------------


def replace_by_gradient(logits_MV: Tensor, targets_M: Tensor, smoothing: float) -> tuple[float, float]:
    """Overwrite logits with the gradient of the label-smoothed cross-entropy; return its sum, and that of the nll."""
    assert logits_MV.is_contiguous()
    sums = (ctypes.c_double * 2)()
    M, V = logits_MV.shape
    is_bf16, targets_M = logits_MV.dtype == torch.bfloat16, targets_M.contiguous()
    addresses = logits_MV.data_ptr(), targets_M.data_ptr()
    _check(_call("mtkit_cross_entropy", addresses[0], is_bf16, M, V, addresses[1], smoothing, sums))
    return sums[0], sums[1]


# --- dropout ----------------------------------------------------------------------------------------------------------


def supports_dropout(x: Tensor, residual: Tensor | None = None) -> bool:
    """Return whether the library can drop entries of `x`, and add them to `residual`."""
    fits = residual is None or (residual.dtype == torch.float32 and residual.shape == x.shape)
    return fits and x.numel() % _VECTOR == 0


def add_dropped(residual: Tensor | None, x: Tensor, random_bytes: Tensor, threshold: int) -> Tensor:
    """Return `residual + dropout(x)`, in float32, or `dropout(x)`, in the dtype of `x`.

    Args:
        residual: in float32, or None.
        x: of the same shape.
        random_bytes: of each entry, and `PADDING_BYTES` more.
        threshold: bytes below it drop an entry.
    """
    return _AddDropped.apply(residual, x, random_bytes, threshold)


class _AddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor | None, x: Tensor, random_bytes: Tensor, threshold: int) -> Tensor:
        ctx.save_for_backward(random_bytes)
        ctx.threshold, ctx.dtype, ctx.has_residual = threshold, x.dtype, residual is not None
        return _drop(residual, x, random_bytes, threshold, x.dtype if residual is None else residual.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (random_bytes,) = ctx.saved_tensors
        x_grad = _drop(None, grad, random_bytes, ctx.threshold, ctx.dtype)
        return grad if ctx.has_residual else None, x_grad, None, None


def _drop(
    residual: Tensor | None, x: Tensor, random_bytes: Tensor, threshold: int, dtype: torch.dtype
) -> Tensor:
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    out = torch.empty(x.shape, dtype=dtype)
    _call(
        "mtkit_drop",
        address(residual),
        x.data_ptr(),
        x.dtype == torch.bfloat16,
        random_bytes.data_ptr(),
        threshold,
        256 / (256 - threshold),
        x.numel(),
        out.data_ptr(),
        dtype == torch.bfloat16,
    )
    return out


# --- norms ------------------------------------------------------------------------------------------------------------


def supports_norm(dtype: torch.dtype, x: Tensor, *parameters: Tensor) -> bool:
    """Return whether the library can normalize `x` with these parameters, all in float32, and return it in `dtype`."""
    inputs = all(y.dtype == torch.float32 for y in (x, *parameters))
    return dtype in _DTYPES and inputs and x.shape[-1] % _VECTOR == 0


def norm(x: Tensor, gain: Tensor, bias: Tensor | None, epsilon: float, dtype: torch.dtype) -> Tensor:
    """Normalize the last dimension of [..., D]: LayerNorm in `dtype`, or RMSNorm if there is no bias."""
    return _Norm.apply(x, gain, bias, epsilon, dtype)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor | None, epsilon: float, dtype: torch.dtype
    ) -> Tensor:
        x = x.contiguous()
        out, statistics = torch.empty(x.shape, dtype=dtype), torch.empty(x.numel() // x.shape[-1], 2)
        task = _norm_task(x, gain, bias, statistics, dtype)
        task.epsilon, task.out = epsilon, out.data_ptr()
        _call("mtkit_norm", ctypes.byref(task))
        ctx.save_for_backward(x, gain, bias, statistics)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, bias, statistics = ctx.saved_tensors
        grad, x_grad, gain_grad = grad.contiguous(), torch.empty_like(x), torch.zeros_like(gain)
        bias_grad = None if bias is None else torch.zeros_like(bias)
        task = _norm_task(x, gain, bias, statistics, grad.dtype)
        task.grad, task.x_grad = grad.data_ptr(), x_grad.data_ptr()
        task.gain_grad, task.bias_grad = gain_grad.data_ptr(), address(bias_grad)
        _call("mtkit_norm_backward", ctypes.byref(task))
        return x_grad, gain_grad, bias_grad, None, None


def _norm_task(
    x: Tensor, gain: Tensor, bias: Tensor | None, statistics: Tensor, dtype: torch.dtype
) -> _CNormTask:
    """Return the structure of a norm, without its output or gradients; `dtype` is that of the output."""
    return _CNormTask(
        bf16=dtype == torch.bfloat16,
        rows=len(statistics),
        width=x.shape[-1],
        x=x.data_ptr(),
        gain=gain.data_ptr(),
        bias=address(bias),
        centered=bias is not None,
        statistics=statistics.data_ptr(),
    )


def _check(result: int) -> None:
    """Raise torch.OutOfMemoryError if the result of a call is 0."""
    if not result:
        raise torch.OutOfMemoryError("can't allocate memory")
