"""Layers of the encoder and the decoder: norms, feed-forward, residual connections, and the two kinds of layer.

Shapes: B batch, S source length, T target length, D model width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkit.config.sections import ModelConfig
from mtkit.model.attention import Linear, Mask, MultiHeadAttention
from mtkit.model.compiled import compiled
from mtkit.model.cpu.native import training as native
from mtkit.model.dropout import add_dropped, drop_layer, dropout


class LayerNorm(nn.LayerNorm):
    """Layer normalization (Ba et al. 2016) in the dtype of its input."""

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Normalize the last dimension of [..., D], and return the result in `dtype`, by default that of `x`."""
        if _is_native_norm(dtype or x.dtype, x, self.weight, self.bias):
            return native.norm(x, self.weight, self.bias, self.eps, dtype or x.dtype)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).to(dtype or x.dtype)


class RMSNorm(nn.RMSNorm):
    """Root mean square layer normalization (Zhang and Sennrich 2019) in the dtype of its input."""

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Normalize the last dimension of [..., D], and return the result in `dtype`, by default that of `x`."""
        if self.eps is not None and _is_native_norm(dtype or x.dtype, x, self.weight):
            return native.norm(x, self.weight, None, self.eps, dtype or x.dtype)
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(dtype or x.dtype)


def _is_native_norm(dtype: torch.dtype, x: Tensor, *parameters: Tensor) -> bool:
    """Return whether a norm with gradients and a result in `dtype` runs in the compiled library."""
    is_native = torch.is_grad_enabled() and native.trains_natively(x)
    return is_native and native.supports_norm(dtype, x, *parameters)


def make_norm(config: ModelConfig) -> nn.Module:
    """Return the norm that `config.norm` names."""
    norm = LayerNorm if config.norm == "layernorm" else RMSNorm
    return norm(config.d_model, eps=config.epsilon)


class FeedForward(nn.Module):
    """Position-wise feed-forward network (Vaswani et al. 2017, section 3.3), or a gated one (Shazeer 2020, eq. 6)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.feed_forward
        self.activation, self.dropout = config.activation, config.activation_dropout
        self.inner = Linear(config.d_model, 2 * width if config.is_gated else width, bias=config.bias)
        self.outer = Linear(width, config.d_model, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map [B, T, D] to the same shape."""
        h = self.activate(self.inner(x_BTD))  # [B, T, F]
        return self.outer(dropout(h, self.dropout, self.training))

    def activate(self, h: Tensor) -> Tensor:
        """Apply the activation: [B, T, F] (2F with a gate) to [B, T, F]."""
        match self.activation:
            case "relu":
                return F.relu(h)
            case "gelu":
                return F.gelu(h)
            case "silu":
                return F.silu(h)
            case _:
                gate, value = h.chunk(2, dim=-1)
                return (F.silu(gate) if self.activation == "swiglu" else F.gelu(gate)) * value


class _Residual(nn.Module):
    """Residual connection around a sublayer, with the norm before the sublayer (pre) or after the sum (post).

    The residual stream and the norms keep the dtype of the input, whatever the dtype of the sublayer.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm, self.pre, self.dropout = make_norm(config), config.norm_position == "pre", config.dropout
        self.scale = config.residual_scale

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
        """Map [B, T, D] to the same shape and dtype; the sublayer's matrix products run in `dtype`."""
        residual = x if self.scale == 1 else self.scale * x
        if self.pre:
            return add_dropped(residual, sublayer(self.norm(x, dtype)), self.dropout, self.training)
        normed: Tensor = self.norm(add_dropped(residual, sublayer(x.to(dtype)), self.dropout, self.training))
        return normed


def _make_attention(config: ModelConfig, *, cross: bool = False) -> MultiHeadAttention:
    """Return self-attention with the positions of the config, or cross-attention, which has none."""
    relative = config.positions == "relative" and not cross
    return MultiHeadAttention(
        config.d_model,
        config.heads,
        config.kv_heads,
        cross=cross,
        rotary=config.positions == "rotary" and not cross,
        max_relative_distance=config.max_relative_distance if relative else None,
        dropout=config.attention_dropout,
        bias=config.has_attention_bias,
        output_bias=config.has_attention_output_bias,
    )


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual connection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention, self.attention_residual = _make_attention(config), _Residual(config)
        self.feed_forward, self.feed_forward_residual = FeedForward(config), _Residual(config)

    def forward(
        self,
        x_BSD: Tensor,
        mask: Mask,
        positions_S: Tensor,
        dtype: torch.dtype,
        kept: Sequence[bool] = (True,),
        compiles: bool = False,
    ) -> Tensor:
        """Map [B, S, D] to the same shape and dtype; matrix products run in `dtype`.

        `kept` says which streams of a batch keep the layer (see `drop_layer`), `compiles` whether it runs compiled.
        """
        run = compiled(EncoderLayer._run) if compiles else EncoderLayer._run
        return drop_layer(self, lambda x: run(self, x, mask, positions_S, dtype), x_BSD, kept)

    def _run(self, x_BSD: Tensor, mask: Mask, positions_S: Tensor, dtype: torch.dtype) -> Tensor:
        def attention(x: Tensor) -> Tensor:
            return self.attention.attend_self(x, mask, positions_S)

        x_BSD = self.attention_residual(x_BSD, attention, dtype)
        return self.feed_forward_residual(x_BSD, self.feed_forward, dtype)


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention to the memory, and feed-forward, each with a residual connection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention, self.attention_residual = _make_attention(config), _Residual(config)
        self.cross, self.cross_residual = _make_attention(config, cross=True), _Residual(config)
        self.feed_forward, self.feed_forward_residual = FeedForward(config), _Residual(config)

    def forward(
        self,
        x_BTD: Tensor,
        self_attention: Callable[[MultiHeadAttention, Tensor], Tensor],
        cross_attention: Callable[[MultiHeadAttention, Tensor], Tensor],
        dtype: torch.dtype,
        kept: Sequence[bool] = (True,),
        compiles: bool = False,
    ) -> Tensor:
        """Map [B, T, D] to the same shape and dtype; matrix products run in `dtype`.

        The caller passes how each attention is computed, so that training on whole sequences and decoding step by step
        from a cache share this code. `kept` says which streams of a batch keep the layer (see `drop_layer`), `compiles`
        whether it runs compiled.
        """
        run = compiled(DecoderLayer._run) if compiles else DecoderLayer._run
        return drop_layer(self, lambda x: run(self, x, self_attention, cross_attention, dtype), x_BTD, kept)

    def _run(
        self,
        x_BTD: Tensor,
        self_attention: Callable[[MultiHeadAttention, Tensor], Tensor],
        cross_attention: Callable[[MultiHeadAttention, Tensor], Tensor],
        dtype: torch.dtype,
    ) -> Tensor:
        x_BTD = self.attention_residual(x_BTD, lambda x: self_attention(self.attention, x), dtype)
        x_BTD = self.cross_residual(x_BTD, lambda x: cross_attention(self.cross, x), dtype)
        return self.feed_forward_residual(x_BTD, self.feed_forward, dtype)
