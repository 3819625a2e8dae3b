"""Attention: the scaled dot product, twice (plain and fused), and the multi-head layer around it.

Shapes: B batch, T queries, S keys, D model width, H query heads, G key/value heads (G divides H), E head width.
A mask is boolean and broadcasts to [B, H, T, S]; True means "may be seen".
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkit.model.cpu.attention import cpu_attention
from mtkit.model.dropout import dropout
from mtkit.model.positions import RelativePositions, rotate


class Linear(nn.Linear):
    """`nn.Linear` whose parameters stay in float32 while the product runs in the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features], in the dtype of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


def causal_mask(length: int, device: torch.device) -> Tensor:
    """[T, T]: each position sees itself and what came before."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def plain_attention(
    q_BHTE: Tensor,
    k_BGSE: Tensor,
    v_BGSE: Tensor,
    mask: Tensor | None,
    dropout_probability: float = 0.0,
    relative: tuple[RelativePositions, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(E)) v (Vaswani et al. 2017, eq. 1), step by step.

    With fewer key/value heads than query heads, each group of H/G query heads shares one (Ainslie et al. 2023).

    Args:
        relative: relative positions and their [T, S] table rows.

    Returns:
        The output [B, H, T, E] and the weights [B, H, T, S] (before dropout).
    """
    B, H, T, E = q_BHTE.shape
    G, S = k_BGSE.shape[1:3]
    scaled = q_BHTE * E**-0.5
    scores = (scaled.reshape(B, G, -1, E) @ k_BGSE.transpose(-1, -2)).view(B, H, T, S)
    if relative is not None:
        positions, buckets_TS = relative
        scores = scores + positions.key_scores(scaled, buckets_TS)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)
    dropped = dropout(weights, dropout_probability, dropout_probability > 0)
    out = (dropped.reshape(B, G, -1, S) @ v_BGSE).view(B, H, T, E)
    if relative is not None:
        out = out + positions.value_sums(dropped, buckets_TS)
    return out, weights


def fused_attention(
    q_BHTE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, mask: Tensor | None, dropout_probability: float = 0.0
) -> Tensor:
    """The same through PyTorch's fused kernel, which never stores the weights: [B, H, T, E]."""
    grouped = q_BHTE.shape[1] != k_BGSE.shape[1]
    return F.scaled_dot_product_attention(
        q_BHTE, k_BGSE, v_BGSE, attn_mask=mask, dropout_p=dropout_probability, enable_gqa=grouped
    )


def fused_is_faster(x: Tensor) -> bool:
    """Whether the fused kernel is the faster one for this device and precision."""
    return x.device.type != "cpu"


def uses_cpu_training_kernel(x: Tensor) -> bool:
    """Whether attention runs on a CPU and will be differentiated, for which `cpu_attention` is made."""
    return x.device.type == "cpu" and torch.is_grad_enabled()


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2): self-attention, or attention to a memory.

    The projections are fused: one product for q, k, v of self-attention, one for k, v of a memory.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        *,
        cross: bool = False,
        rotary: bool = False,
        max_relative_distance: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.cross, self.rotary, self.dropout = cross, rotary, dropout
        kv_width = 2 * kv_heads * self.head_width
        if cross:
            self.q = Linear(width, width, bias=bias)
            self.kv = Linear(width, kv_width, bias=bias)
        else:
            self.qkv = Linear(width, width + kv_width, bias=bias)
        self.out = Linear(width, width, bias=bias)
        self.relative: RelativePositions | None = None
        if max_relative_distance is not None:
            self.relative = RelativePositions(max_relative_distance, self.head_width)

    def split_heads(self, x_BTD: Tensor) -> Tensor:
        """[B, T, heads x E] to [B, heads, T, E]."""
        return x_BTD.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def project_qkv(self, x_BTD: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, E], keys and values [B, G, T, E] of self-attention, rotated if positions are rotary."""
        heads = self.split_heads(self.qkv(x_BTD))  # [B, H + 2G, T, E]
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if self.rotary:
            q, k = rotate(q, positions_T), rotate(k, positions_T)
        return q, k, v

    def project_memory(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, S, E] of a memory: once for a sentence, whatever the number of steps and beams."""
        k, v = self.split_heads(self.kv(memory_BSD)).chunk(2, dim=1)
        return k, v

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, queries_T: Tensor, keys_S: Tensor
    ) -> Tensor:
        """Attention of all heads and the output projection: [B, T, D]. Positions matter to relative ones only."""
        probability = self.dropout if self.training else 0.0
        if self.relative is not None:
            relative = (self.relative, self.relative.buckets(queries_T, keys_S))
            out, _ = plain_attention(q, k, v, mask, probability, relative)
        elif fused_is_faster(q):
            out = fused_attention(q, k, v, mask, probability)
        else:
            out, _ = plain_attention(q, k, v, mask, probability)
        return self.out(out.transpose(1, 2).flatten(2))  # [B, H, T, E] -> [B, T, D]

    def attend_self(self, x_BTD: Tensor, mask: Tensor | None, positions_T: Tensor) -> Tensor:
        """Self-attention of a whole sequence: [B, T, D]."""
        if uses_cpu_training_kernel(x_BTD) and self.relative is None and not self.rotary:
            return self._attend_on_cpu(self.qkv(x_BTD), None, mask)
        q, k, v = self.project_qkv(x_BTD, positions_T)
        return self.attend(q, k, v, mask, positions_T, positions_T)

    def attend_memory(self, x_BTD: Tensor, memory_kv: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Attention to a memory: [B, T, D]."""
        k, v = memory_kv
        q = self.split_heads(self.q(x_BTD))
        nowhere = torch.empty(0, device=x_BTD.device)
        return self.attend(q, k, v, mask, nowhere, nowhere)

    def attend_full_memory(self, x_BTD: Tensor, memory_BSD: Tensor, mask: Tensor | None) -> Tensor:
        """Attention to a memory of which no keys and values are kept: [B, T, D]."""
        if uses_cpu_training_kernel(x_BTD):
            return self._attend_on_cpu(self.q(x_BTD), self.kv(memory_BSD), mask)
        return self.attend_memory(x_BTD, self.project_memory(memory_BSD), mask)

    def _attend_on_cpu(self, own_BTD: Tensor, memory_BSD: Tensor | None, mask: Tensor | None) -> Tensor:
        own_BTHE = own_BTD.unflatten(-1, (-1, self.head_width))
        memory_BSHE = None if memory_BSD is None else memory_BSD.unflatten(-1, (-1, self.head_width))
        probability = self.dropout if self.training else 0.0
        return self.out(cpu_attention(own_BTHE, memory_BSHE, mask, self.heads, probability))
