"""A Transformer that translates in the compiled library: one call encodes a batch, one call makes a decoder step.

It gives what `Transformer.encode`, `step` and `logits` give, up to rounding. A sentence's results do not depend on the
other sentences of its batch at all: padding is left out, each row has scales of its own, and sums have a fixed order.

The hypotheses of a batch are rows of the library's state. Each step leaves its keys and values where they are, and a
hypothesis has a list of the rows that its tokens had, so that to reorder hypotheses is to copy those lists.

Shapes: B sentences, R rows (hypotheses of all sentences), C candidates, D model width, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkit.model.attention import Linear, MultiHeadAttention, dequantize_matrix
from mtkit.model.cpu.native.library import (
    MAX_INPUTS,
    CLayer,
    CModel,
    CNorm,
    CStack,
    NativeLinear,
    instructions,
    library,
    padded,
)
from mtkit.model.cpu.native.loading import address
from mtkit.model.layers import DecoderLayer, EncoderLayer, FeedForward, LayerNorm, RMSNorm
from mtkit.model.positions import LearnedPositions, SinusoidalPositions, sinusoids
from mtkit.model.transformer import Embedding, Transformer

_ACTIVATIONS = {"relu": 0, "gelu": 1, "silu": 2, "geglu": 3, "swiglu": 4}
_LEAVES = {Linear, LayerNorm, RMSNorm, nn.Identity, SinusoidalPositions, LearnedPositions}
"""Modules without submodules that the library has code for."""
_HEAD_MULTIPLE = 16
_FIRST_POSITIONS = 256


def uses_native(precision: str, device: torch.device) -> bool:
    """Return whether to search in the compiled library: on a CPU that it suits, in float32 or 8-bit integers.

    Args:
        precision: auto, fp32, bf16, fp16 or int8.
        device: where the model runs.
    """
    return device.type == "cpu" and precision in ("auto", "fp32", "int8") and instructions() > 0


def supports(model: Transformer) -> bool:
    """Return whether the library can run a model.

    It has no relative positions, adapters or very wide layers, and no norms and activations but those that it was
    written for.
    """
    modules = list(model.modules())
    leaves = [module for module in modules if next(module.children(), None) is None]
    fits = all(module.in_features <= MAX_INPUTS for module in leaves if isinstance(module, Linear))
    feeds = [module for module in modules if isinstance(module, FeedForward)]
    return fits and {*map(type, leaves)} <= _LEAVES and all(feed.activation in _ACTIVATIONS for feed in feeds)


class NativeModel:
    """The weights of a model in the layout of the library.

    Args:
        model: the model; its matrices are in float32 or stored in 8 bits.
        int8: whether to multiply in 8-bit integers.
        lists: whether `best_tokens` will be called with lists, which needs the output matrix row by row.
    """

    def __init__(self, model: Transformer, int8: bool, lists: bool = False) -> None:
        self.instructions, self.int8 = instructions(), int8
        self._kept: list[object] = []  # what the structures point to
        self._packed: dict[int, NativeLinear] = {}  # by `id` of the layer
        self.src_pad = model.src_pad
        self.width, self.vocab_size = model.output.in_features, model.output.out_features
        self._padded_width = padded(self.width)
        self._encoder = _Sequences(model.src_embedding, next(iter(model.encoder_stack())).attention)
        self._decoder = _Sequences(model.tgt_embedding, next(iter(model.decoder_stack())).attention)
        output = self._linear(model.output, (1, self.vocab_size), (1, self._padded_width), float("-inf"))
        self.structure = CModel(
            self.instructions,
            self._stack(model.src_embedding, list(model.encoder_stack()), model.encoder_norm),
            self._stack(model.tgt_embedding, list(model.decoder_stack()), model.decoder_norm),
            output.structure,
        )
        self.output, self.output_in_rows = output, output.in_rows() if lists else None

    def _stack(
        self,
        embedding: Embedding,
        layers: Sequence[EncoderLayer] | Sequence[DecoderLayer],
        final_norm: nn.Module,
    ) -> CStack:
        """Return the structure of the encoder or of the decoder."""
        first = layers[0]
        attention, residual, feed = first.attention, first.attention_residual, first.feed_forward
        array = (CLayer * len(layers))(*map(self._layer, layers))
        table = embedding.weight.detach()
        if embedding.weight_scale is not None:
            table = dequantize_matrix(table, embedding.weight_scale.detach())
        table = F.pad(table.float(), (0, self._padded_width - self.width)).contiguous()
        self._kept += [array, table]
        return CStack(
            len(layers),
            self.width,
            self._padded_width,
            attention.heads,
            attention.kv_heads,
            padded(attention.head_width, _HEAD_MULTIPLE),
            padded(feed.outer.in_features),
            _ACTIVATIONS[feed.activation],
            residual.pre,
            attention.head_width // 2 if attention.rotary else 0,
            _epsilon(first.attention_residual.norm),
            residual.scale,
            attention.head_width**-0.5,
            embedding.scale,
            address(table),
            self._norm(embedding.norm),
            self._norm(final_norm),
            array,
        )

    def _layer(self, layer: EncoderLayer | DecoderLayer) -> CLayer:
        """Return the structure of a layer."""
        attention, feed, width = layer.attention, layer.feed_forward, (1, self._padded_width)
        heads, kv_heads, head = (
            attention.heads,
            attention.kv_heads,
            padded(attention.head_width, _HEAD_MULTIPLE),
        )
        inner_width = padded(feed.outer.in_features)
        gates = feed.inner.out_features // feed.outer.in_features
        structure = CLayer(
            self_norm=self._norm(layer.attention_residual.norm),
            feed_norm=self._norm(layer.feed_forward_residual.norm),
            qkv=self._linear(attention.qkv, (heads + 2 * kv_heads, head), width).structure,
            self_out=self._linear(attention.out, width, (heads, head)).structure,
            inner=self._linear(feed.inner, (gates, inner_width), width).structure,
            outer=self._linear(feed.outer, width, (1, inner_width)).structure,
        )
        if isinstance(layer, DecoderLayer):
            structure.cross_norm = self._norm(layer.cross_residual.norm)
            structure.q = self._linear(layer.cross.q, (heads, head), width).structure
            structure.kv = self._linear(layer.cross.kv, (2 * kv_heads, head), width).structure
            structure.cross_out = self._linear(layer.cross.out, width, (heads, head)).structure
        return structure

    def _linear(
        self, linear: Linear, outputs: tuple[int, int], inputs: tuple[int, int], padding_bias: float = 0.0
    ) -> NativeLinear:
        """Return a linear layer in the layout of the library, the same one for a shared layer."""
        key = id(linear)
        if key not in self._packed:
            self._packed[key] = NativeLinear(
                linear, self.int8, self.instructions, outputs, inputs, padding_bias
            )
        return self._packed[key]

    def _norm(self, norm: nn.Module) -> CNorm:
        """Return the structure of a norm; without one its pointers are NULL."""
        if not isinstance(norm, LayerNorm | RMSNorm):
            return CNorm(None, None)
        extra = self._padded_width - self.width
        gain = F.pad(norm.weight.detach().float(), (0, extra))
        bias = F.pad(norm.bias.detach().float(), (0, extra)) if isinstance(norm, LayerNorm) else None
        self._kept += [gain, bias]
        return CNorm(address(gain), address(bias))

    def encode(self, src_BS: Tensor) -> NativeState:
        """Encode source tokens, padded with `src_pad`, and return the state before the first step."""
        real_BS = src_BS != self.src_pad
        lengths_B, tokens = real_BS.sum(dim=1), src_BS[real_BS].contiguous()
        positions, angles = self._encoder.tables(src_BS.shape[1], self._padded_width)
        state = library().mtkit_encode(
            ctypes.byref(self.structure),
            tokens.data_ptr(),
            lengths_B.data_ptr(),
            len(src_BS),
            address(positions),
            address(angles),
        )
        return NativeState(state)

    def step(self, tokens_R: Tensor, state: NativeState) -> Tensor:
        """Append the newest token of each hypothesis to the state and return the hidden states [R, D]."""
        tokens_R = tokens_R.contiguous()
        hidden_RD = torch.empty(len(tokens_R), self.width)
        tables = self._decoder.tables(state.length + 1, self._padded_width)
        addresses = [None if table is None else table[state.length].data_ptr() for table in tables]
        _check(library().mtkit_step(state.address, tokens_R.data_ptr(), *addresses, hidden_RD.data_ptr()))
        state.length += 1
        return hidden_RD

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Project hidden states [R, D] to logits [R, V]."""
        hidden = self._pad(hidden_RD)
        out = torch.empty(len(hidden), self.output.outputs)
        work = torch.empty(hidden.numel() + len(hidden) + 16)
        library().mtkit_linear(
            self.instructions,
            ctypes.byref(self.output.structure),
            hidden.data_ptr(),
            len(hidden),
            out.data_ptr(),
            work.data_ptr(),
        )
        return out[:, : self.vocab_size]

    def best_tokens(
        self,
        hidden_RD: Tensor,
        number: int,
        forbidden: Sequence[int],
        eos: int,
        lists: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find the most probable tokens of each row that are not forbidden, without storing the logits.

        Tokens that are equally probable are in ascending order. Log-probabilities count the forbidden tokens.

        Args:
            hidden_RD: hidden states, those of a sentence one after the other.
            number: C.
            forbidden: the other tokens.
            eos: a token whose log-probability is returned in any case.
            lists: the only tokens that each sentence may use, of whose probability the others are shares: int32 [any],
                in ascending order for each sentence, and where those of each begin and end [B, 2]; None for all.

        Returns:
            Log-probabilities [R, C], best first (-inf if fewer tokens are allowed), tokens [R, C], and the
            log-probabilities [R] of eos.
        """
        hidden = self._pad(hidden_RD)
        R = len(hidden)
        log_probs_RC, tokens_RC = torch.empty(R, number), torch.empty(R, number, dtype=torch.long)
        eos_log_probs_R = torch.empty(R)
        forbidden_F = torch.tensor(sorted(set(forbidden)), dtype=torch.long)
        choice = forbidden_F.data_ptr(), len(forbidden_F), eos, number
        results = log_probs_RC.data_ptr(), tokens_RC.data_ptr(), eos_log_probs_R.data_ptr()
        if lists is None:
            at = ctypes.byref(self.structure)
            work = torch.empty(library().mtkit_best_work(at, R))
            library().mtkit_best(at, hidden.data_ptr(), R, *choice, *results, work.data_ptr())
        else:
            assert self.output_in_rows is not None, "made without lists"
            at = ctypes.byref(self.output_in_rows.structure)
            work = torch.empty(library().mtkit_best_listed_work(at, R))
            tokens_P, spans_B2 = lists
            listed = tokens_P.data_ptr(), spans_B2.data_ptr(), R // max(1, len(spans_B2))
            library().mtkit_best_listed(
                self.instructions, at, hidden.data_ptr(), R, *listed, *choice, *results, work.data_ptr()
            )
        return log_probs_RC, tokens_RC, eos_log_probs_R

    def _pad(self, hidden_RD: Tensor) -> Tensor:
        """Return hidden states of the padded width, contiguous."""
        if self.width != self._padded_width:
            return F.pad(hidden_RD, (0, self._padded_width - self.width))
        return hidden_RD.contiguous()


class NativeState:
    """The hypotheses of a batch, and the memory of its sentences. At first each sentence has one hypothesis.

    Args:
        address: of the library's state; None if memory was short.
    """

    def __init__(self, address: int | None) -> None:
        self._library = library()
        self.address, self.length = address, 0
        _check(address)

    def select(self, rows_R: Tensor) -> None:
        """Continue with these hypotheses, in this order; some may be missing and some repeated."""
        rows_R = rows_R.contiguous()
        _check(self._library.mtkit_select(self.address, rows_R.data_ptr(), len(rows_R)))

    def __del__(self) -> None:
        self._library.mtkit_free(self.address)


def _check(result: int | None) -> None:
    """Raise torch.OutOfMemoryError if the result of a call is 0 or None."""
    if not result:
        raise torch.OutOfMemoryError("can't allocate memory")


class _Sequences:
    """The positions of the source, or of the target, as tables that grow with the longest sentence so far."""

    def __init__(self, embedding: Embedding, attention: MultiHeadAttention) -> None:
        self.positions, self.rotary_width = (
            embedding.positions,
            attention.head_width if attention.rotary else 0,
        )
        self._tables: tuple[Tensor | None, Tensor | None] = None, None
        self._length = 0

    def tables(self, length: int, width: int) -> tuple[Tensor | None, Tensor | None]:
        """Return the vectors [at least length, width] that are added to embeddings, and the angles of rotary positions.

        Either is None for a model without it.
        """
        if length > self._length:
            longest = max(2 * length, _FIRST_POSITIONS)
            numbers, added, angles = torch.arange(longest), None, None
            if self.positions is not None:
                added = self.positions(numbers).detach().float()
                added = F.pad(added, (0, width - added.shape[1])).contiguous()
            if self.rotary_width:
                angles = sinusoids(numbers, self.rotary_width)
            self._tables = added, angles  # one assignment: threads may be here at the same time
            self._length = longest
        return self._tables


def _epsilon(norm: nn.Module) -> float:
    """Return what is added to the variance."""
    assert isinstance(norm, LayerNorm | RMSNorm)
    assert norm.eps is not None
    return norm.eps
