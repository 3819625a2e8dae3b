"""Attention: scaled dot-product attention (plain and fused), and the multi-head layer around it.

Shapes: B batch, T queries, S keys, D model width, H query heads, G key/value heads (G divides H), E head width.
A mask is boolean and broadcasts to [B, H, T, S]; True means that the query may attend to the key. Packed sentences
have a `PackedMask` instead.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkit.model.cpu.attention import cpu_attention
from mtkit.model.dropout import dropout
from mtkit.model.packed import PackedMask, block_mask, has_packed_kernel, packed_attention
from mtkit.model.positions import RelativePositions, rotate
from mtkit.model.working_weights import CastWeight, Float8Weight


class Linear(nn.Linear):
    """`nn.Linear` that keeps its parameters in float32 and runs the product in the dtype of its input.

    If there is a `weight_scale`, the matrix consists of 8-bit integers, and each row has a scale (see `quantized`). In
    an update of training, `working` is what products take of the matrix (see `working_weights`).
    """

    weight_scale: Tensor | None
    working: CastWeight | Float8Weight | None = None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: str | None = None
    ) -> None:
        super().__init__(in_features, out_features, bias, device)
        self.register_parameter("weight_scale", None)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features], in the dtype of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.working is not None and self.training:
            return self.working.product(x, self.weight, bias)
        weight = (
            self.weight if self.weight_scale is None else dequantize_matrix(self.weight, self.weight_scale)
        )
        return F.linear(x, weight.to(x.dtype), bias)


def dequantize_matrix(weight_OD: Tensor, scales_O: Tensor) -> Tensor:
    """Return a matrix of 8-bit integers [O, D] in float32, each row multiplied by its scale."""
    return weight_OD * scales_O[:, None]


def causal_mask(length: int, device: torch.device) -> Tensor:
    """Return [T, T]: each position attends to itself and to earlier ones."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def _attention_weights(
    q_BHTE: Tensor,
    k_BGSE: Tensor,
    mask: Tensor | None,
    relative: tuple[RelativePositions, Tensor] | None = None,
) -> Tensor:
    """Compute softmax(q k^T / sqrt(E)) (Vaswani et al. 2017, eq. 1): [B, H, T, S]; rows sum to 1.

    Every H/G query heads share one key/value head (grouped-query attention, Ainslie et al. 2023).

    Args:
        relative: relative positions and the bucket [T, S] of each query and key.
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
    return scores.softmax(dim=-1)


def plain_attention(
    q_BHTE: Tensor,
    k_BGSE: Tensor,
    v_BGSE: Tensor,
    mask: Tensor | None,
    dropout_probability: float = 0.0,
    relative: tuple[RelativePositions, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute softmax(q k^T / sqrt(E)) v (Vaswani et al. 2017, eq. 1) step by step.

    Args:
        relative: as for `_attention_weights`.

    Returns:
        The output [B, H, T, E] and the weights [B, H, T, S] (before dropout).
    """
    B, H, T, E = q_BHTE.shape
    G, S = k_BGSE.shape[1:3]
    weights = _attention_weights(q_BHTE, k_BGSE, mask, relative)
    dropped = dropout(weights, dropout_probability, dropout_probability > 0)
    out = (dropped.reshape(B, G, -1, S) @ v_BGSE).view(B, H, T, E)
    if relative is not None:
        positions, buckets_TS = relative
        out = out + positions.value_sums(dropped, buckets_TS)
    return out, weights


def fused_attention(
    q_BHTE: Tensor,
    k_BGSE: Tensor,
    v_BGSE: Tensor,
    mask: Tensor | None,
    dropout_probability: float = 0.0,
    *,
    causal: bool = False,
) -> Tensor:
    """Compute the same with PyTorch's fused kernel, which never stores the weights: [B, H, T, E].

    Args:
        causal: whether the mask is the causal one; the fastest kernel takes no other, and knows this one by name.
    """
    grouped = q_BHTE.shape[1] != k_BGSE.shape[1]
    return F.scaled_dot_product_attention(
        q_BHTE,
        k_BGSE,
        v_BGSE,
        attn_mask=None if causal else mask,
        dropout_p=dropout_probability,
        is_causal=causal,
        enable_gqa=grouped,
    )


def fused_is_faster(x: Tensor) -> bool:
    """Return whether the fused kernel is faster than `plain_attention` on this device."""
    return x.device.type != "cpu"


def uses_cpu_training_kernel(x: Tensor) -> bool:
    """Return whether attention runs on a CPU with gradients, the case that `cpu_attention` is written for."""
    return x.device.type == "cpu" and torch.is_grad_enabled()


Mask = Tensor | PackedMask | None
"""What hides keys; None hides nothing."""


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2): self-attention, or cross-attention to a memory.

    Projections are fused: one product for q, k and v of self-attention, one for k and v of a memory.

    Args:
        width: D, the model width.
        heads: H, query heads.
        kv_heads: G, key/value heads; divides H.
        cross: attend to a memory instead of the input itself.
        rotary: rotate queries and keys by their positions.
        max_relative_distance: clipping distance of relative positions; None is without them.
        dropout: dropout probability of the attention weights.
        bias: whether the projections to queries, keys and values have biases.
        output_bias: whether the output projection has one; None is as `bias` says.
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
        output_bias: bool | None = None,
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
        self.out = Linear(width, width, bias=bias if output_bias is None else output_bias)
        self.relative: RelativePositions | None = None
        if max_relative_distance is not None:
            self.relative = RelativePositions(max_relative_distance, self.head_width)

    def split_heads(self, x_BTD: Tensor) -> Tensor:
        """Split [B, T, heads x E] into [B, heads, T, E]."""
        return x_BTD.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def project_qkv(self, x_BTD: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, H, T, E], keys and values [B, G, T, E] of self-attention, rotated by rotary positions."""
        heads = self.split_heads(self.qkv(x_BTD))  # [B, H + 2G, T, E]
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if self.rotary:
            q, k = rotate(q, positions_T), rotate(k, positions_T)
        return q, k, v

    def project_memory(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, G, S, E] of a memory; when decoding, once for all steps and beams."""
        k, v = self.split_heads(self.kv(memory_BSD)).chunk(2, dim=1)
        return k, v

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Mask,
        positions: tuple[Tensor, Tensor] | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """Attend with all heads and apply the output projection: [B, T, D].

        Args:
            positions: positions of the queries [T] and of the keys [S]; only relative positions need them.
            causal: whether the mask is the causal one.
        """
        probability = self.dropout if self.training else 0.0
        if isinstance(mask, PackedMask):
            if has_packed_kernel(q):
                out = packed_attention(q, k, v, mask, probability)
            else:
                out, _ = plain_attention(q, k, v, block_mask(mask), probability)
            return self.out(out.transpose(1, 2).flatten(2))
        if self.relative is not None:
            assert positions is not None
            relative = (self.relative, self.relative.buckets(*positions))
            out, _ = plain_attention(q, k, v, mask, probability, relative)
        elif fused_is_faster(q):
            out = fused_attention(q, k, v, mask, probability, causal=causal)
        else:
            out, _ = plain_attention(q, k, v, mask, probability)
        return self.out(out.transpose(1, 2).flatten(2))  # [B, H, T, E] -> [B, T, D]

    def attend_self(self, x_BTD: Tensor, mask: Mask, positions_T: Tensor, *, causal: bool = False) -> Tensor:
        """Attend from a sequence to itself: [B, T, D]. `causal` says whether the mask is the causal one."""
        is_plain = self.relative is None and not self.rotary
        if uses_cpu_training_kernel(x_BTD) and is_plain and not isinstance(mask, PackedMask):
            return self._attend_on_cpu(self.qkv(x_BTD), None, mask)
        q, k, v = self.project_qkv(x_BTD, positions_T)
        return self.attend(q, k, v, mask, (positions_T, positions_T), causal=causal)

    def attend_memory_kv(
        self, x_BTD: Tensor, memory_kv: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Tensor:
        """Attend to a memory whose keys and values are projected already: [B, T, D]."""
        return self.attend(self.split_heads(self.q(x_BTD)), *memory_kv, mask)

    def attend_memory(self, x_BTD: Tensor, memory_BSD: Tensor, mask: Mask) -> Tensor:
        """Attend to a memory: [B, T, D]."""
        return self._attend_projected(self.q(x_BTD), self.kv(memory_BSD), mask)

    def attend_memory_and_align(
        self, x_BTD: Tensor, memory_BSD: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend to a memory, and return also the logs of the first head's weights: [B, T, D] and [B, T, S].

        The kernels that attend with all heads do not store weights, so those of this head are computed beside them.
        """
        q_BTD, kv = self.q(x_BTD), self.kv(memory_BSD)  # kv [B, S, 2 x G x E], keys first
        E = self.head_width
        scores_BTS = (q_BTD[..., :E] @ kv[..., :E].transpose(1, 2)) * E**-0.5
        scores_BTS = scores_BTS.to(torch.promote_types(scores_BTS.dtype, torch.float32))
        log_weights_BTS = scores_BTS.masked_fill(~mask[:, 0], float("-inf")).log_softmax(dim=-1)
        return self._attend_projected(q_BTD, kv, mask), log_weights_BTS

    def _attend_projected(self, q_BTD: Tensor, kv: Tensor, mask: Mask) -> Tensor:
        """Attend to a memory whose projection `kv` is not split into heads: [B, T, D]."""
        if uses_cpu_training_kernel(q_BTD) and not isinstance(mask, PackedMask):
            return self._attend_on_cpu(q_BTD, kv, mask)
        k, v = self.split_heads(kv).chunk(2, dim=1)
        return self.attend(self.split_heads(q_BTD), k, v, mask)

    def self_weights(self, x_BTD: Tensor, mask: Tensor | None, positions_T: Tensor) -> Tensor:
        """Return the weights [B, H, T, T] with which `attend_self`, whose kernels do not store them, attends."""
        q, k, _ = self.project_qkv(x_BTD, positions_T)
        relative = None
        if self.relative is not None:
            relative = (self.relative, self.relative.buckets(positions_T, positions_T))
        return _attention_weights(q, k, mask, relative)

    def memory_weights(self, x_BTD: Tensor, memory_BSD: Tensor, mask: Tensor | None) -> Tensor:
        """Return the weights [B, H, T, S] with which `attend_memory`, whose kernels do not store them, attends."""
        k, _ = self.project_memory(memory_BSD)
        return _attention_weights(self.split_heads(self.q(x_BTD)), k, mask)

    def _attend_on_cpu(self, q_or_qkv: Tensor, memory_kv: Tensor | None, mask: Tensor | None) -> Tensor:
        q_or_qkv = q_or_qkv.unflatten(-1, (-1, self.head_width))
        if memory_kv is not None:
            memory_kv = memory_kv.unflatten(-1, (-1, self.head_width))
        probability = self.dropout if self.training else 0.0
        return self.out(cpu_attention(q_or_qkv, memory_kv, mask, self.heads, probability))
