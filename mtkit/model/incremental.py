"""A decoder one step at a time: what it remembers, and its attentions over that.

No cache is ever copied when the search reorders its hypotheses. The keys and values of a sentence's K hypotheses lie
side by side, K places for each step, and each hypothesis has a list of the places it came through (`visible`): the K
newest pieces are the queries of one attention, masked by that list. A reordering changes the list alone, a few bytes
for each place instead of 2 x D numbers in every layer. Places that no hypothesis came through are given up when there
is no room for more: hypotheses of a beam have most of their past in common.

Shapes: B sentences, K hypotheses of each, S source length, L places filled so far, D model width, H query heads,
G key/value heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtkit.model.attention import MultiHeadAttention

INITIAL_SLOTS = 64
"""Places made at first; doubled where they are full, and still half full without those that no hypothesis needs."""


@dataclass
class DecoderState:
    """What a decoder remembers between steps. Keys and values of a memory are held once for all beams of a sentence."""

    memory_kv: list[tuple[Tensor, Tensor]]  # of each layer: 2 x [B, G, S, E]
    memory_mask: Tensor  # [B, 1, 1, S], True at real source pieces
    self_kv: list[Tensor]  # of each layer: [2, B, G, places, E], filled up to `num_slots`
    visible_BKL: Tensor  # bool: the places that each hypothesis came through
    steps_L: Tensor | None
    """The step at which each place was filled, if attention looks at it: then all places stay."""
    length: int = 0  # steps so far
    keep_weights: bool = False
    weights_BKS: list[Tensor] = field(default_factory=list)
    """Cross-attention weights of the last step, of each layer, mean of the heads; only if `keep_weights`."""
    memory_bias_BS: Tensor | None = None  # 0 at real source pieces, else -inf

    @property
    def num_slots(self) -> int:
        """Filled places of each sentence."""
        return self.visible_BKL.shape[2]

    def is_batched(self, num_heads: int) -> bool:
        """Whether `_batched_attention` is the way: on CPUs, where each head has keys of its own."""
        cache = self.self_kv[0]
        return cache.device.type == "cpu" and cache.shape[2] == num_heads

    def reorder(self, parents_BK: Tensor) -> None:
        """Continue with these hypotheses of each sentence, in this order; there may be more or fewer than before."""
        index_BKL = parents_BK[:, :, None].expand(-1, -1, self.num_slots)
        self.visible_BKL = self.visible_BKL.gather(1, index_BKL)

    def keep(self, sentences_B: Tensor) -> None:
        """Continue with these sentences alone, in this order; only those whose row changes are copied."""
        num_kept = len(sentences_B)
        moved = (sentences_B != torch.arange(num_kept, device=sentences_B.device)).nonzero()[:, 0]
        if len(moved):
            sources, filled = sentences_B[moved], self.num_slots
            for k, v in self.memory_kv:
                k[moved], v[moved] = k[sources], v[sources]
            for cache in self.self_kv:
                cache[:, moved, :, :filled] = cache[:, sources, :, :filled]
        self.memory_kv = [(k[:num_kept], v[:num_kept]) for k, v in self.memory_kv]
        self.self_kv = [cache[:, :num_kept] for cache in self.self_kv]
        self.memory_mask = self.memory_mask[sentences_B]
        if self.memory_bias_BS is not None:
            self.memory_bias_BS = self.memory_bias_BS[sentences_B]
        self.visible_BKL = self.visible_BKL[sentences_B]

    def grow(self, num_hypotheses: int) -> slice:
        """Add the places of a new step, each seen by its own hypothesis. Returns where they are."""
        self._make_room(num_hypotheses)
        B, K, L = len(self.memory_mask), num_hypotheses, self.num_slots
        device = self.visible_BKL.device
        if not L:  # nothing is shared yet: begin with as many hypotheses as there are
            self.visible_BKL = self.visible_BKL.new_empty(B, K, 0)
        own_BKK = torch.eye(K, dtype=torch.bool, device=device).expand(B, K, K)
        self.visible_BKL = torch.cat([self.visible_BKL, own_BKK], dim=2)
        if self.steps_L is not None:
            self.steps_L = torch.cat([self.steps_L, torch.full((K,), self.length, device=device)])
        return slice(L, L + K)

    def _make_room(self, number: int) -> None:
        """For so many more places."""
        if self.num_slots + number <= self.self_kv[0].shape[3]:
            return
        if self.steps_L is None:
            self._forget_unseen()
        needed = self.num_slots + number
        if 2 * needed > self.self_kv[0].shape[3]:
            self._enlarge(2 * needed)

    def _forget_unseen(self) -> None:
        """Give up the places of each sentence that none of its hypotheses came through."""
        seen_BL = self.visible_BKL.any(dim=1)
        num_kept = int(seen_BL.sum(dim=1).max())
        if num_kept == self.num_slots:
            return
        kept_BL = seen_BL.byte().argsort(dim=1, descending=True, stable=True)[:, :num_kept]
        for cache in self.self_kv:
            B, G, P, E = cache.shape[1:]
            starts_BG1 = P * torch.arange(B * G, device=cache.device).view(B, G, 1)
            rows = (starts_BG1 + kept_BL[:, None]).flatten()
            for k_or_v in cache:
                kept = k_or_v.flatten(0, 2).index_select(0, rows)
                k_or_v[:, :, :num_kept] = kept.view(B, G, num_kept, E)
        index_BKL = kept_BL[:, None].expand(-1, self.visible_BKL.shape[1], -1)
        self.visible_BKL = self.visible_BKL.gather(2, index_BKL)

    def _enlarge(self, num_slots: int) -> None:
        """Larger caches, with what was in the old ones."""
        for layer, cache in enumerate(self.self_kv):
            old_places = cache.shape[3]
            larger = cache.new_empty(*cache.shape[:3], num_slots, cache.shape[4])
            larger[:, :, :, :old_places] = cache
            self.self_kv[layer] = larger


def init_state(
    attentions: list[MultiHeadAttention], memory_kv: list[tuple[Tensor, Tensor]], mask: Tensor
) -> DecoderState:
    """An empty state with one hypothesis for each sentence.

    Args:
        attentions: self-attention of each layer.
        memory_kv: see `DecoderState`, like `mask`.
    """
    k = memory_kv[0][0]
    dtype = _cache_dtype(k)
    memory_kv = [(k.to(dtype).contiguous(), v.to(dtype).contiguous()) for k, v in memory_kv]
    k = memory_kv[0][0]
    self_kv = [k.new_empty(2, len(mask), a.kv_heads, INITIAL_SLOTS, a.head_width) for a in attentions]
    visible_BKL = torch.empty(len(mask), 1, 0, dtype=torch.bool, device=k.device)
    relative = any(attention.relative is not None for attention in attentions)
    steps_L = torch.empty(0, dtype=torch.long, device=k.device) if relative else None
    bias_BS = torch.zeros(mask.shape[0], mask.shape[3], dtype=k.dtype, device=k.device)
    bias_BS.masked_fill_(~mask[:, 0, 0], float("-inf"))
    return DecoderState(memory_kv, mask, self_kv, visible_BKL, steps_L, memory_bias_BS=bias_BS)


def _cache_dtype(x: Tensor) -> torch.dtype:
    """The precision of keys and values: that of the model, but float32 on CPUs.

    Batches of small products are faster in float32 there; the large products, in bfloat16, are another matter.
    """
    return torch.float32 if x.device.type == "cpu" else x.dtype


@dataclass
class StepMasks:
    """The masks of a step, made once for all layers: what the newest pieces see of the past."""

    new: slice  # the places of this step
    position: Tensor  # [1]: of the newest pieces
    positions_K: Tensor  # the same for each hypothesis
    self_mask_B1KL: Tensor
    self_bias_NKL: (
        Tensor | None
    )  # for `_batched_attention`, if that is the way; N = B x H: 0 where visible, else -inf


def step_masks(state: DecoderState, num_hypotheses: int, num_heads: int) -> StepMasks:
    """Makes room for a step and says what it may see."""
    new = state.grow(num_hypotheses)
    visible = state.visible_BKL
    B, K, L = visible.shape
    bias_NKL = None
    if state.is_batched(num_heads) and state.steps_L is None:  # relative positions are another way
        bias_BKL = torch.zeros(B, K, L, dtype=state.self_kv[0].dtype, device=visible.device)
        bias_BKL.masked_fill_(~visible, float("-inf"))
        bias_NKL = bias_BKL[:, None].expand(B, num_heads, K, L).reshape(-1, K, L)
    position = torch.tensor([state.length], device=visible.device)
    return StepMasks(new, position, position.expand(K), visible[:, None], bias_NKL)


def attend_past(
    attention: MultiHeadAttention, x_BKD: Tensor, state: DecoderState, layer: int, masks: StepMasks
) -> Tensor:
    """Self-attention of the newest pieces, whose keys and values join the cache: [B, K, D]."""
    q_BHKE, k, v = attention.project_qkv(x_BKD, masks.position)
    cache = state.self_kv[layer]
    cache[0, :, :, masks.new], cache[1, :, :, masks.new] = k, v
    past = slice(0, masks.new.stop)
    k_BGLE, v_BGLE = cache[0, :, :, past], cache[1, :, :, past]
    if masks.self_bias_NKL is None:
        k_BGLE, v_BGLE = k_BGLE.to(x_BKD.dtype), v_BGLE.to(x_BKD.dtype)
        mask = masks.self_mask_B1KL
        keys_L = k_BGLE.new_empty(0) if state.steps_L is None else state.steps_L
        return attention.attend(q_BHKE, k_BGLE, v_BGLE, mask, masks.positions_K, keys_L)
    out_BHKE, _ = _batched_attention(q_BHKE, k_BGLE, v_BGLE, masks.self_bias_NKL)
    return attention.out(joined(out_BHKE, x_BKD.dtype))


def attend_memory(attention: MultiHeadAttention, x_BKD: Tensor, state: DecoderState, layer: int) -> Tensor:
    """Attention of the newest pieces to the source: [B, K, D]."""
    k_BGSE, v_BGSE = state.memory_kv[layer]
    if not state.keep_weights and not state.is_batched(attention.heads):
        return attention.attend_memory(
            x_BKD, (k_BGSE.to(x_BKD.dtype), v_BGSE.to(x_BKD.dtype)), state.memory_mask
        )
    q_BHKE = attention.split_heads(attention.q(x_BKD))
    assert state.memory_bias_BS is not None
    B, H, K, _ = q_BHKE.shape
    if k_BGSE.shape[1] != H:
        k_BGSE, v_BGSE = (t.repeat_interleave(H // t.shape[1], dim=1) for t in (k_BGSE, v_BGSE))
    bias_N1S = state.memory_bias_BS[:, None].expand(B, H, -1).reshape(B * H, 1, -1)
    out_BHKE, weights_BHKS = _batched_attention(q_BHKE, k_BGSE, v_BGSE, bias_N1S)
    if state.keep_weights:
        state.weights_BKS.append(weights_BHKS.float().mean(dim=1))
    return attention.out(joined(out_BHKE, x_BKD.dtype))


def joined(out_BHKE: Tensor, dtype: torch.dtype) -> Tensor:
    """The heads side by side, [B, K, D], in one copy."""
    return out_BHKE.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format).flatten(2)


def _batched_attention(
    q_BHKE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor, bias_NKL: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention as three calls: scores with the mask added in the product, softmax in place, the weighted sum.

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
