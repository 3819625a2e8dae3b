"""Attention for training on a CPU: the formula of `plain_attention`, its gradient written out.

On a CPU the fused kernel is slow to differentiate in bfloat16, and autograd makes a copy of every view that the
formula needs. Here the projections come in as they are and their gradients are written where they belong: each
layout is changed once. Scores, not queries, are scaled: there are fewer of them when sentences are short.

Shapes: B batch, T queries, S keys, D model width, H query heads, G key/value heads (G divides H), E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtkit.model.dropout import scaled_keep_mask


def cpu_attention(
    own_BTHE: Tensor, memory_BSHE: Tensor | None, mask: Tensor | None, heads: int, dropout_probability: float
) -> Tensor:
    """Multi-head attention between projections: [B, T, D].

    Args:
        own_BTHE: without a memory queries, keys and values [B, T, H + 2G, E]; with one the queries [B, T, H, E].
        memory_BSHE: keys and values of a memory [B, S, 2G, E].
        mask: True where a query may see a key; broadcasts to [B, H, T, S].
        heads: H.
        dropout_probability: of the weights.
    """
    return _Attention.apply(own_BTHE, memory_BSHE, mask, heads, dropout_probability)


def queries_keys_values(own: Tensor, memory: Tensor | None, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of projections (or of their gradients): [B, H, T, E] and twice [B, G, S, E]."""
    keys_values = own[:, :, heads:] if memory is None else memory
    k, v = keys_values.chunk(2, dim=2)
    return own[:, :, :heads].transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        own: Tensor,
        memory: Tensor | None,
        mask: Tensor | None,
        heads: int,
        dropout_probability: float,
    ) -> Tensor:
        q, k, v = queries_keys_values(own, memory, heads)
        (B, H, T, E), (G, S) = q.shape, k.shape[1:3]
        q, k, v = (
            q.reshape(B, G, -1, E),
            k.contiguous(),
            v.contiguous(),
        )  # heads that share keys: more queries
        scores_BHTS = (q @ k.transpose(-1, -2)).view(B, H, T, S)
        weights = masked(scores_BHTS, mask, E**-0.5).softmax(dim=-1)
        keep = scaled_keep_mask(weights, dropout_probability) if dropout_probability > 0 else None
        dropped = weights if keep is None else weights * keep
        out_BHTE = (dropped.view(B, G, -1, S) @ v).view(B, H, T, E)
        ctx.save_for_backward(own, memory, q, k, v, weights, keep, dropped)
        return out_BHTE.transpose(1, 2).flatten(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        own, memory, q, k, v, weights, keep, dropped = ctx.saved_tensors
        (B, H, T, S), (G, E) = weights.shape, (k.shape[1], k.shape[3])
        own_grad, memory_grad = torch.empty_like(own), None if memory is None else torch.empty_like(memory)
        q_grad, k_grad, v_grad = queries_keys_values(own_grad, memory_grad, H)
        grad = grad_BTD.view(B, T, H, E).transpose(1, 2).reshape(B, G, -1, E)
        v_grad.copy_(dropped.view(B, G, -1, S).transpose(-1, -2) @ grad)
        weights_grad = (grad @ v.transpose(-1, -2)).view(B, H, T, S)
        if keep is not None:
            weights_grad.mul_(keep)
        shares = weights_grad.mul_(weights)  # softmax: w (g - sum of w g)
        scores_grad = shares.addcmul_(weights, shares.sum(dim=-1, keepdim=True), value=-1).mul_(E**-0.5)
        scores_grad = scores_grad.view(B, G, -1, S)
        q_grad.copy_((scores_grad @ k).view(B, H, T, E))
        k_grad.copy_(scores_grad.transpose(-1, -2) @ q)
        return own_grad, memory_grad, None, None, None


def masked(scores_BHTS: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Scaled scores, minus infinity where nothing may be seen."""
    if mask is None:
        return scores_BHTS * scale
    bias = torch.zeros(mask.shape, dtype=scores_BHTS.dtype).masked_fill_(~mask, float("-inf"))
    return torch.add(bias, scores_BHTS, alpha=scale)
