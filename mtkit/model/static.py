"""Incremental decoding with tensors of fixed shape, for CUDA graphs: what `incremental` does with growing ones.

A step does the same operations on the same tensors each time: where it writes is a number on the device, and masks hide
what is not there yet. Sentences, source tokens and slots are padded to sizes of which there are few (`Size`). When the
slots are full, those that no hypothesis sees are dropped, or the search goes on in a larger state.

Shapes: N layers, B sentences of a state, R of them that are searched (the first rows), K hypotheses of each, S source
length, L slots, D model width, G key/value heads, E head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mtkit.model.attention import MultiHeadAttention, fused_attention
from mtkit.model.transformer import Transformer

STEPS_AHEAD = 8
"""Steps for which there is room, at least, after the slots were full."""
_SOURCE_MULTIPLE = 16
_FEWEST_SLOTS = 64
_NEG_INF = float("-inf")


class Size(NamedTuple):
    """Numbers that the shapes of a state depend on, besides the model."""

    sentences: int
    source: int
    hypotheses: int
    slots: int


def round_up(number: int) -> int:
    """Return the smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32 ... that is not less: at most half more than needed."""
    power = 1 << max(0, number - 1).bit_length()
    return power * 3 // 4 if power >= 4 and power * 3 // 4 >= number else power


def round_up_slots(number: int) -> int:
    """Return the smallest of 64, 128, 256 ... that is not less."""
    return max(_FEWEST_SLOTS, 1 << (number - 1).bit_length())


def size_of(sentences: int, source: int, hypotheses: int, steps: int = 0) -> Size:
    """Return the size to begin with.

    Args:
        sentences: R.
        source: length of the longest one.
        hypotheses: K.
        steps: steps for which there must be room.
    """
    slots = round_up_slots(max(2 * STEPS_AHEAD * hypotheses, steps + STEPS_AHEAD * hypotheses))
    source = _SOURCE_MULTIPLE * round_up(-(-source // _SOURCE_MULTIPLE))
    return Size(round_up(sentences), source, hypotheses, slots)


def num_bytes(model: Transformer, size: Size) -> int:
    """Return the memory of the keys and values of a state."""
    attention = _first_attention(model)
    slot = 2 * model.decoder_depth * attention.kv_heads * attention.head_width * model.compute_dtype.itemsize
    return slot * size.sentences * (size.source + size.slots)


def _first_attention(model: Transformer) -> MultiHeadAttention:
    return next(iter(model.decoder_stack())).attention


class StaticState:
    """State of the decoder between steps, for batches of one size.

    Args:
        model: the model, in evaluation mode.
        size: the size.
    """

    def __init__(self, model: Transformer, size: Size) -> None:
        attention, (B, S, K, L) = _first_attention(model), size
        self.model, self.size = model, size
        self.device, dtype = next(model.parameters()).device, model.compute_dtype
        shape = model.decoder_depth, 2, B, attention.kv_heads

        def zeros(*shape: int) -> Tensor:  # what is hidden has weight 0, but must be a number
            return torch.zeros(shape, dtype=dtype, device=self.device)

        self._src_BS = torch.zeros(B, S, dtype=torch.long, device=self.device)
        self.memory_kv = zeros(*shape, S, attention.head_width)
        self.self_kv = zeros(*shape, L, attention.head_width)
        self.memory_bias_B11S = zeros(B, 1, 1, S)
        """Added to the scores of cross-attention: 0 at real source tokens, otherwise -inf."""
        self.bias_BKL = zeros(B, K, L)
        """Added to the scores of self-attention: 0 at the slots on the path of a hypothesis, otherwise -inf."""
        hypotheses_K = torch.arange(K, device=self.device)
        self._offsets_K = hypotheses_K
        own_BKK = (hypotheses_K == hypotheses_K[:, None]).expand(B, K, K)
        self._own_bias_BKK = zeros(B, K, K).masked_fill_(~own_BKK, _NEG_INF)
        self._positions_L = torch.arange(L, device=self.device) // K
        """Target position of each slot, for relative positions only, with which no slots are dropped."""
        self._is_relative = attention.relative is not None
        self._next_1 = torch.zeros(1, dtype=torch.long, device=self.device)
        """The first slot of the next step."""
        self._position_1 = torch.zeros_like(self._next_1)

    def put(self, src_BS: Tensor) -> None:
        """Hold these sentences, for `encode`; the others consist of one token."""
        pad = self.model.src_pad
        self._src_BS.fill_(pad)
        self._src_BS[:, 0].fill_(int(pad == 0))
        self._src_BS[: len(src_BS), : src_BS.shape[1]] = src_BS

    def encode(self) -> None:
        """Encode the sentences and begin with them. This can be captured."""
        memory_BSD, mask_B11S = self.model.encode(self._src_BS), self.model.source_mask(self._src_BS)
        for layer, own in zip(self.model.decoder_stack(), self.memory_kv, strict=True):
            k_BGSE, v_BGSE = layer.cross.project_memory(memory_BSD)
            own[0].copy_(k_BGSE)
            own[1].copy_(v_BGSE)
        self.memory_bias_B11S.zero_().masked_fill_(~mask_B11S, _NEG_INF)
        self.bias_BKL.fill_(_NEG_INF)
        for tensor in (self.self_kv, self._next_1, self._position_1):
            tensor.zero_()

    def _hide_all(self) -> None:
        """Hide everything, except one source token of each sentence: the softmax of nothing is not a number."""
        self.bias_BKL.fill_(_NEG_INF)
        self.memory_bias_B11S.fill_(_NEG_INF)
        self.memory_bias_B11S[..., 0] = 0.0

    def step(self, tokens_BK: Tensor) -> Tensor:
        """Append the newest tokens and return their hidden states [B, K, D]. This can be captured."""
        slots_K = self._next_1 + self._offsets_K
        self.bias_BKL.index_copy_(2, slots_K, self._own_bias_BKK)
        bias_B1KL = self.bias_BKL[:, None]
        relative = (self._position_1.expand(self.size.hypotheses), self._positions_L)

        def self_attention(attention: MultiHeadAttention, x_BKD: Tensor, layer: int) -> Tensor:
            q, k, v = attention.project_qkv(x_BKD, self._position_1)
            k_BGLE, v_BGLE = self.self_kv[layer]
            k_BGLE.index_copy_(2, slots_K, k)
            v_BGLE.index_copy_(2, slots_K, v)
            if self._is_relative:
                return attention.attend(q, k_BGLE, v_BGLE, bias_B1KL == 0, relative)
            return _attend(attention, q, k_BGLE, v_BGLE, bias_B1KL)

        def cross_attention(attention: MultiHeadAttention, x_BKD: Tensor, layer: int) -> Tensor:
            q = attention.split_heads(attention.q(x_BKD))
            k_BGSE, v_BGSE = self.memory_kv[layer]
            return _attend(attention, q, k_BGSE, v_BGSE, self.memory_bias_B11S)

        hidden_BKD = self.model.step_with(tokens_BK, self._position_1, self_attention, cross_attention)
        self._next_1 += self.size.hypotheses
        self._position_1 += 1
        return hidden_BKD

    def reorder(self, parents_RK: Tensor) -> None:
        """Continue with hypotheses `parents_RK` of the first sentences. This can be captured."""
        bias_RKL = self.bias_BKL[: len(parents_RK)]
        bias_RKL.copy_(bias_RKL.gather(1, parents_RK[:, :, None].expand(-1, -1, self.size.slots)))

    def used_slots(self, num_rows: int, num_filled: int) -> Tensor:
        """Return the filled slots [R, n] that hypotheses of the first sentences see; n is that of the most. Waits."""
        if self._is_relative:
            return torch.arange(num_filled, device=self.device).expand(num_rows, -1)
        seen_RL = (self.bias_BKL[:num_rows, :, :num_filled] == 0).any(dim=1)
        most = int(seen_RL.sum(dim=1).max())
        return seen_RL.byte().argsort(dim=1, descending=True, stable=True)[:, :most]

    def move_to(self, target: StaticState, rows_R: Tensor, slots_Bn: Tensor) -> None:
        """Continue in another state, or in this one, with sentences `rows_R` and these slots of each row."""
        (_, S, _, L), R, n = self.size, len(rows_R), slots_Bn.shape[1]
        slots_Rn = slots_Bn[rows_R]
        G = self.self_kv.shape[3]
        heads_RG1 = (rows_R[:, None] * G + torch.arange(G, device=self.device))[:, :, None]
        flat = (heads_RG1 * L + slots_Rn[:, None]).flatten()
        for own, new in zip(self.self_kv.flatten(0, 1), target.self_kv.flatten(0, 1), strict=True):
            kept = own.flatten(0, 2).index_select(0, flat)  # a copy, so that both may be the same state
            new[:R, :, :n] = kept.view(R, G, n, -1)
        bias_RKn = self.bias_BKL[rows_R].gather(2, slots_Rn[:, None].expand(-1, self.size.hypotheses, -1))
        memory_bias_R11S, memory_kv = self.memory_bias_B11S[rows_R], self.memory_kv[:, :, rows_R]
        target._hide_all()
        target.bias_BKL[:R, :, :n] = bias_RKn
        target.memory_bias_B11S[:R, :, :, :S] = memory_bias_R11S
        target.memory_kv[:, :, :R, :, :S] = memory_kv
        target._next_1.fill_(n)
        target._position_1.copy_(self._position_1)


def _attend(attention: MultiHeadAttention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attend with all heads; a mask that is added to the scores need not be converted in every layer: [B, K, D]."""
    return attention.out(fused_attention(q, k, v, bias).transpose(1, 2).flatten(2))
