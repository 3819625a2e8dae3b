"""Incremental decoding: the decoder's key/value cache, and its attentions over that cache.

No cache is copied when the search reorders its hypotheses. The K hypotheses of a sentence share one cache: each step
fills K slots, and each hypothesis has a mask of the slots on its own path (`visible_BKL`). The K newest tokens are the
queries of one attention with that mask. A reordering gathers the mask only: one byte for each slot instead of 2 x D
numbers in every layer. When the cache is full, slots that no hypothesis sees any more are dropped; since the hypotheses
of a beam share most of their past, few slots remain.

Shapes: B sentences, K hypotheses of each, S source length, L slots filled so far, D model width, H query heads,
G key/value heads, E head width, N = B x H.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtkit.model.attention import MultiHeadAttention

INITIAL_SLOTS = 64
"""Slots allocated at first. A full cache is doubled if it is still more than half full after it was compacted."""


@dataclass
class DecoderState:
    """State of the decoder between steps. Keys and values of the memory are held once for all beams of a sentence."""

    memory_kv: list[tuple[Tensor, Tensor]]  # for each layer: 2 x [B, G, S, E]
    memory_mask: Tensor  # [B, 1, 1, S], True at real source tokens
    self_kv: list[Tensor]  # for each layer: [2, B, G, slots, E], filled up to `num_slots`
    visible_BKL: Tensor  # bool: the slots on the path of each hypothesis
    positions_L: Tensor | None
    """Target position of each slot, for relative positions only. With it the cache is never compacted."""
    length: int = 0  # steps so far
    keep_weights: bool = False
    weights_BKS: list[Tensor] = field(default_factory=list)
    """Cross-attention weights of the last step for each layer, averaged over heads; only if `keep_weights`."""
    memory_bias_BS: Tensor | None = None  # 0 at real source tokens, -inf at padding

    @property
    def num_slots(self) -> int:
        """Filled slots of each sentence."""
        return self.visible_BKL.shape[2]

    def uses_batched_attention(self, num_heads: int) -> bool:
        """Return whether `_batched_attention` is faster: on CPUs, if every query head has keys of its own."""
        cache = self.self_kv[0]
        return cache.device.type == "cpu" and cache.shape[2] == num_heads

    def reorder(self, parents_BK: Tensor) -> None:
        """Continue with hypotheses `parents_BK` of each sentence, in this order; K may differ from before."""
        index_BKL = parents_BK[:, :, None].expand(-1, -1, self.num_slots)
        self.visible_BKL = self.visible_BKL.gather(1, index_BKL)

    def keep_rows(self, rows_B: Tensor) -> None:
        """Continue with sentences `rows_B` only, in this order. Only those that change their row are copied."""
        num_kept = len(rows_B)
        moved = (rows_B != torch.arange(num_kept, device=rows_B.device)).nonzero()[:, 0]
        if len(moved):
            sources, filled = rows_B[moved], self.num_slots
            for k, v in self.memory_kv:
                k[moved], v[moved] = k[sources], v[sources]
            for cache in self.self_kv:
                cache[:, moved, :, :filled] = cache[:, sources, :, :filled]
        self.memory_kv = [(k[:num_kept], v[:num_kept]) for k, v in self.memory_kv]
        self.self_kv = [cache[:, :num_kept] for cache in self.self_kv]
        self.memory_mask = self.memory_mask[rows_B]
        if self.memory_bias_BS is not None:
            self.memory_bias_BS = self.memory_bias_BS[rows_B]
        self.visible_BKL = self.visible_BKL[rows_B]

    def add_slots(self, num_hypotheses: int) -> slice:
        """Add the slots of a new step, each visible to its own hypothesis, and return where they are."""
        self._ensure_capacity(num_hypotheses)
        B, K, L = len(self.memory_mask), num_hypotheses, self.num_slots
        device = self.visible_BKL.device
        if not L:  # the first step may have any number of hypotheses
            self.visible_BKL = self.visible_BKL.new_empty(B, K, 0)
        own_BKK = torch.eye(K, dtype=torch.bool, device=device).expand(B, K, K)
        self.visible_BKL = torch.cat([self.visible_BKL, own_BKK], dim=2)
        if self.positions_L is not None:
            self.positions_L = torch.cat([self.positions_L, torch.full((K,), self.length, device=device)])
        return slice(L, L + K)

    def _ensure_capacity(self, num_new: int) -> None:
        """Make room for more slots: compact the caches, and enlarge them if they are still more than half full."""
        if self.num_slots + num_new <= self.self_kv[0].shape[3]:
            return
        if self.positions_L is None:
            self._compact()
        needed = self.num_slots + num_new
        if 2 * needed > self.self_kv[0].shape[3]:
            self._enlarge(2 * needed)

    def _compact(self) -> None:
        """Drop the slots of each sentence that none of its hypotheses sees."""
        seen_BL = self.visible_BKL.any(dim=1)
        num_kept = int(seen_BL.sum(dim=1).max())
        if num_kept == self.num_slots:
            return
        kept_BL = seen_BL.byte().argsort(dim=1, descending=True, stable=True)[:, :num_kept]
        for cache in self.self_kv:
            B, G, slots, E = cache.shape[1:]
            offsets_BG1 = slots * torch.arange(B * G, device=cache.device).view(B, G, 1)
            rows = (offsets_BG1 + kept_BL[:, None]).flatten()
            for k_or_v in cache:
                kept = k_or_v.flatten(0, 2).index_select(0, rows)
                k_or_v[:, :, :num_kept] = kept.view(B, G, num_kept, E)
        index_BKL = kept_BL[:, None].expand(-1, self.visible_BKL.shape[1], -1)
        self.visible_BKL = self.visible_BKL.gather(2, index_BKL)

    def _enlarge(self, num_slots: int) -> None:
        """Copy the caches into larger ones."""
        for layer, cache in enumerate(self.self_kv):
            old_slots = cache.shape[3]
            larger = cache.new_empty(*cache.shape[:3], num_slots, cache.shape[4])
            larger[:, :, :, :old_slots] = cache
            self.self_kv[layer] = larger


def init_state(
    attentions: list[MultiHeadAttention], memory_kv: list[tuple[Tensor, Tensor]], mask: Tensor
) -> DecoderState:
    """Return a state with one hypothesis for each sentence and no tokens yet.

    Args:
        attentions: self-attention of each layer.
        memory_kv: keys and values of the memory for each layer: 2 x [B, G, S, E].
        mask: [B, 1, 1, S], True at real source tokens.
    """
    k = memory_kv[0][0]
    dtype = _cache_dtype(k)
    memory_kv = [(k.to(dtype).contiguous(), v.to(dtype).contiguous()) for k, v in memory_kv]
    k = memory_kv[0][0]
    self_kv = [k.new_empty(2, len(mask), a.kv_heads, INITIAL_SLOTS, a.head_width) for a in attentions]
    visible_BKL = torch.empty(len(mask), 1, 0, dtype=torch.bool, device=k.device)
    relative = any(attention.relative is not None for attention in attentions)
    positions_L = torch.empty(0, dtype=torch.long, device=k.device) if relative else None
    bias_BS = torch.zeros(mask.shape[0], mask.shape[3], dtype=k.dtype, device=k.device)
    bias_BS.masked_fill_(~mask[:, 0, 0], float("-inf"))
    return DecoderState(memory_kv, mask, self_kv, visible_BKL, positions_L, memory_bias_BS=bias_BS)


def _cache_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of cached keys and values: that of the model, but float32 on CPUs.

    The batched products of one step are small, and CPUs compute small products faster in float32.
    """
    return torch.float32 if x.device.type == "cpu" else x.dtype


@dataclass
class StepMasks:
    """Slots, positions and masks of a step, computed once for all layers."""

    new: slice  # the slots of this step
    position: Tensor  # [1]: target position of the newest tokens
    relative: tuple[Tensor, Tensor] | None
    """Positions of queries [K] and slots [L], for relative positions only."""
    self_mask_B1KL: Tensor
    self_bias_NKL: Tensor | None
    """For `_batched_attention`, where it is used: 0 where visible, otherwise -inf."""


def begin_step(state: DecoderState, num_hypotheses: int, num_heads: int) -> StepMasks:
    """Add the slots of a step to the state and return its masks."""
    new = state.add_slots(num_hypotheses)
    visible = state.visible_BKL
    B, K, L = visible.shape
    bias_NKL = None
    if state.uses_batched_attention(num_heads) and state.positions_L is None:
        bias_BKL = torch.zeros(B, K, L, dtype=state.self_kv[0].dtype, device=visible.device)
        bias_BKL.masked_fill_(~visible, float("-inf"))
        bias_NKL = bias_BKL[:, None].expand(B, num_heads, K, L).reshape(-1, K, L)
    position = torch.full((1,), state.length, device=visible.device)
    relative = None if state.positions_L is None else (position.expand(K), state.positions_L)
    return StepMasks(new, position, relative, visible[:, None], bias_NKL)


def cached_self_attention(
    attention: MultiHeadAttention, x_BKD: Tensor, state: DecoderState, layer: int, masks: StepMasks
) -> Tensor:
    """Add the keys and values of the newest tokens to the cache and attend to it: [B, K, D]."""
    q_BHKE, k, v = attention.project_qkv(x_BKD, masks.position)
    cache = state.self_kv[layer]
    cache[0, :, :, masks.new], cache[1, :, :, masks.new] = k, v
    filled = slice(0, masks.new.stop)
    k_BGLE, v_BGLE = cache[0, :, :, filled], cache[1, :, :, filled]
    if masks.self_bias_NKL is None:
        k_BGLE, v_BGLE = k_BGLE.to(x_BKD.dtype), v_BGLE.to(x_BKD.dtype)
        return attention.attend(q_BHKE, k_BGLE, v_BGLE, masks.self_mask_B1KL, masks.relative)
    out_BHKE, _ = _batched_attention(q_BHKE, k_BGLE, v_BGLE, masks.self_bias_NKL)
    return attention.out(_merge_heads(out_BHKE, x_BKD.dtype))


def cached_cross_attention(
    attention: MultiHeadAttention, x_BKD: Tensor, state: DecoderState, layer: int
) -> Tensor:
    """Attend from the newest tokens to the memory, whose keys and values were projected once: [B, K, D]."""
    k_BGSE, v_BGSE = state.memory_kv[layer]
    if not state.keep_weights and not state.uses_batched_attention(attention.heads):
        memory_kv = k_BGSE.to(x_BKD.dtype), v_BGSE.to(x_BKD.dtype)
        return attention.attend_memory_kv(x_BKD, memory_kv, state.memory_mask)
    q_BHKE = attention.split_heads(attention.q(x_BKD))
    assert state.memory_bias_BS is not None
    B, H, K, _ = q_BHKE.shape
    if k_BGSE.shape[1] != H:
        k_BGSE, v_BGSE = (t.repeat_interleave(H // t.shape[1], dim=1) for t in (k_BGSE, v_BGSE))
    bias_N1S = state.memory_bias_BS[:, None].expand(B, H, -1).reshape(B * H, 1, -1)
    out_BHKE, weights_BHKS = _batched_attention(q_BHKE, k_BGSE, v_BGSE, bias_N1S)
    if state.keep_weights:
        state.weights_BKS.append(weights_BHKS.float().mean(dim=1))
    return attention.out(_merge_heads(out_BHKE, x_BKD.dtype))


def _merge_heads(out_BHKE: Tensor, dtype: torch.dtype) -> Tensor:
    """Concatenate the heads and convert to `dtype` in one copy: [B, K, D]."""
    return out_BHKE.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format).flatten(2)


def _batched_attention(
    q_BHKE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor, bias_NKL: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute attention in three calls: `baddbmm` for scores with the mask added, softmax, `bmm` for the weighted sum.

    Args:
        bias_NKL: [B x H, K or 1, L], added to the scores.

    Returns:
        The output [B, H, K, E] and the weights [B, H, K, L].
    """
    B, H, K, E = q_BHKE.shape
    k_NEL, v_NLE = k_BHLE.flatten(0, 1).transpose(1, 2), v_BHLE.flatten(0, 1)
    q_NKE = q_BHKE.to(k_NEL.dtype, memory_format=torch.contiguous_format).flatten(0, 1)
    scores_NKL = torch.baddbmm(bias_NKL, q_NKE, k_NEL, alpha=E**-0.5)
    weights_NKL = scores_NKL.softmax(dim=-1)
    out_NKE = torch.bmm(weights_NKL, v_NLE)
    return out_NKE.view(B, H, K, E), weights_NKL.view(B, H, K, -1)
