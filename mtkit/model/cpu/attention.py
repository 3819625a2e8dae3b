"""Attention for training on a CPU: the formula of `plain_attention` with its gradient written by hand.

On a CPU the fused kernel has a slow backward pass in bfloat16, and autograd copies every view that the formula needs.
Here the projections come in as they are, and their gradients are written to where they belong, so each layout changes
once. Scores are scaled instead of queries: short sentences have fewer of them.

Shapes: B batch, T queries, S keys, D model width, H query heads, G key/value heads (G divides H), E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtkit.model.cpu.native import training as native
from mtkit.model.dropout import drop_threshold, random_bytes, scaled_keep_mask


def cpu_attention(
    q_or_qkv: Tensor, memory_kv: Tensor | None, mask: Tensor | None, heads: int, dropout_probability: float
) -> Tensor:
    """Compute multi-head attention between the projections: [B, T, D].

    Args:
        q_or_qkv: self-attention: queries, keys and values [B, T, H + 2G, E]; cross-attention: queries [B, T, H, E].
        memory_kv: cross-attention: keys and values of the memory [B, S, 2G, E]; otherwise None.
        mask: True where a query may attend to a key; broadcasts to [B, H, T, S].
        heads: H.
        dropout_probability: dropout probability of the attention weights.
    """
    if native.trains_natively(q_or_qkv) and native.supports_attention(q_or_qkv, mask):
        kv = q_or_qkv if memory_kv is None else memory_kv
        B, T, S = *q_or_qkv.shape[:2], kv.shape[1]
        drawn = random_bytes(B * heads * T * S) if dropout_probability > 0 else None
        threshold = drop_threshold(dropout_probability)
        return native.attention(q_or_qkv, memory_kv, mask, heads, drawn, threshold)
    return _Attention.apply(q_or_qkv, memory_kv, mask, heads, dropout_probability)


def split_qkv(q_or_qkv: Tensor, memory_kv: Tensor | None, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return views of projections, or of their gradients: q [B, H, T, E], k and v [B, G, S, E]."""
    kv = q_or_qkv[:, :, heads:] if memory_kv is None else memory_kv
    k, v = kv.chunk(2, dim=2)
    return q_or_qkv[:, :, :heads].transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_or_qkv: Tensor,
        memory_kv: Tensor | None,
        mask: Tensor | None,
        heads: int,
        dropout_probability: float,
    ) -> Tensor:
        q, k, v = split_qkv(q_or_qkv, memory_kv, heads)
        (B, H, T, E), (G, S) = q.shape, k.shape[1:3]
        q = q.reshape(B, G, -1, E)  # query heads that share a key/value head become more queries of one head
        k, v = k.contiguous(), v.contiguous()
        scores_BHTS = (q @ k.transpose(-1, -2)).view(B, H, T, S)
        weights = _scale_and_mask(scores_BHTS, mask, E**-0.5).softmax(dim=-1)
        keep = scaled_keep_mask(weights, dropout_probability) if dropout_probability > 0 else None
        dropped = weights if keep is None else weights * keep
        out_BHTE = (dropped.view(B, G, -1, S) @ v).view(B, H, T, E)
        ctx.save_for_backward(q_or_qkv, memory_kv, q, k, v, weights, keep, dropped)
        return out_BHTE.transpose(1, 2).flatten(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        q_or_qkv, memory_kv, q, k, v, weights, keep, dropped = ctx.saved_tensors
        (B, H, T, S), (G, E) = weights.shape, (k.shape[1], k.shape[3])
        q_or_qkv_grad = torch.empty_like(q_or_qkv)
        memory_kv_grad = None if memory_kv is None else torch.empty_like(memory_kv)
        q_grad, k_grad, v_grad = split_qkv(q_or_qkv_grad, memory_kv_grad, H)
        grad = grad_BTD.view(B, T, H, E).transpose(1, 2).reshape(B, G, -1, E)
        v_grad.copy_(dropped.view(B, G, -1, S).transpose(-1, -2) @ grad)
        weights_grad = (grad @ v.transpose(-1, -2)).view(B, H, T, S)
        if keep is not None:
            weights_grad.mul_(keep)
        products = weights_grad.mul_(weights)  # softmax: the gradient of scores is w g - w sum(w g)
        scores_grad = products.addcmul_(weights, products.sum(dim=-1, keepdim=True), value=-1).mul_(E**-0.5)
        scores_grad = scores_grad.view(B, G, -1, S)
        q_grad.copy_((scores_grad @ k).view(B, H, T, E))
        k_grad.copy_(scores_grad.transpose(-1, -2) @ q)
        return q_or_qkv_grad, memory_kv_grad, None, None, None


def _scale_and_mask(scores_BHTS: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return the scaled scores, -inf where the mask is False."""
    if mask is None:
        return scores_BHTS * scale
    bias = torch.zeros(mask.shape, dtype=scores_BHTS.dtype).masked_fill_(~mask, float("-inf"))
    return torch.add(bias, scores_BHTS, alpha=scale)
