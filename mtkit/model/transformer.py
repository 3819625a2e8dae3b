"""The encoder-decoder Transformer (Vaswani et al. 2017): read it from the top.

Training: `encode` the source, `decode` the whole target at once, `logits` for the positions that are not padding.
Translating: `encode`, `init_state`, then one `step` for each token; a step gives what `decode` would, up to rounding.

Shapes: B batch, S source length, T target length, D model width, V vocabulary, K beam.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtkit.config.sections import ModelConfig
from mtkit.model.attention import Linear, Mask, MultiHeadAttention, causal_mask
from mtkit.model.compiled import mark_lengths
from mtkit.model.dropout import draw_kept_layer, drop_tokens, dropout, with_zero_gradients
from mtkit.model.incremental import (
    DecoderState,
    begin_step,
    cached_cross_attention,
    cached_self_attention,
    init_state,
)
from mtkit.model.layers import DecoderLayer, EncoderLayer, make_norm
from mtkit.model.packed import PackedMask, Packing, mask_tensors
from mtkit.model.positions import LearnedPositions, SinusoidalPositions
from mtkit.model.working_weights import CastWeight, Float8Weight, suits_float8


class Embedding(nn.Embedding):
    """Token embeddings, scaled by sqrt(D) (Vaswani et al. 2017, section 3.4), plus sinusoidal or learned positions.

    With `embedding_norm` their sum is normalized (`layernorm_embedding` in fairseq and BART). If there is a
    `weight_scale`, the table consists of 8-bit integers, and each row has a scale (see `quantized`).
    """

    weight_scale: Tensor | None

    def __init__(self, vocab_size: int, config: ModelConfig) -> None:
        super().__init__(vocab_size, config.d_model)
        self.register_parameter("weight_scale", None)
        self.scale = math.sqrt(config.d_model) if config.scale_embeddings else 1.0
        self.dropout, self.token_dropout = config.dropout, config.token_dropout
        self.positions: SinusoidalPositions | LearnedPositions | None = None
        if config.positions == "sinusoidal":
            self.positions = SinusoidalPositions(config.d_model, config.sinusoids, config.position_offset)
        elif config.positions == "learned":
            self.positions = LearnedPositions(config.max_positions, config.d_model)
        self.norm = make_norm(config) if config.embedding_norm else nn.Identity()

    def embed(
        self, ids_BT: Tensor, positions_T: Tensor, dtype: torch.dtype, kept_BT: Tensor | None = None
    ) -> Tensor:
        """Embed tokens [B, T] at positions [T]: [B, T, D] in `dtype`. Those that are not kept are 0 plus position."""
        x_BTD = self(ids_BT)
        if kept_BT is not None:
            x_BTD = x_BTD * kept_BT[..., None]
        if self.weight_scale is not None:
            x_BTD = x_BTD * self.weight_scale[ids_BT][..., None]
        x_BTD = drop_tokens(x_BTD * self.scale, self.token_dropout, self.training)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(positions_T)
        return dropout(self.norm(x_BTD).to(dtype), self.dropout, self.training)


class Attend(Protocol):
    """Attention of the newest tokens over the cache of a layer."""

    def __call__(self, attention: MultiHeadAttention, x: Tensor, /, layer: int) -> Tensor:
        """Return the output [B, K, D], given the input of a sublayer and the number of its layer."""


class Transformer(nn.Module):
    """An encoder-decoder Transformer.

    Args:
        config: widths, depths and kinds of layers.
        src_vocab: size of the source vocabulary.
        tgt_vocab: size of the target vocabulary; equal to `src_vocab` for three-way tied embeddings.
        src_pad: token that pads source sentences.
        tie_embeddings: used if `config.tie_embeddings` is None. three-way ties both embeddings and the output matrix,
            two-way ties the target embedding and the output matrix (Press and Wolf 2017).

    Raises:
        ValueError: If embeddings are tied three-way and the vocabularies differ in size.
    """

    def __init__(
        self,
        config: ModelConfig,
        src_vocab: int,
        tgt_vocab: int,
        src_pad: int = 0,
        tie_embeddings: str = "three-way",
    ) -> None:
        super().__init__()
        self.src_pad, self.source_eos = src_pad, config.source_eos
        self.decoder_heads = config.decoder.heads
        self.compute_dtype = torch.float32
        """Dtype of matrix products, of the memory and of the hidden states."""
        self.uses_float8 = False
        """Whether training multiplies the matrices of the layers in FP8, where their sizes allow it."""
        self.recompute = False
        """Whether training recomputes the activations of a layer in the backward pass (activation checkpointing)."""
        self.compiles = False
        """Whether layers run compiled in training (see `compiled`)."""
        self.layer_dropout = config.layer_dropout
        tied = config.tie_embeddings or tie_embeddings
        if tied == "three-way" and src_vocab != tgt_vocab:
            raise ValueError(
                f"three-way tied embeddings need one vocabulary, not {src_vocab} and {tgt_vocab} tokens"
            )
        self.src_embedding = Embedding(src_vocab, config)
        self.tgt_embedding = Embedding(tgt_vocab, config)
        self.output = Linear(config.d_model, tgt_vocab, bias=config.output_bias)
        self.encoder = nn.ModuleList(
            EncoderLayer(config) for _ in range(config.unique_encoder_layers or config.encoder_layers)
        )
        self.decoder = nn.ModuleList(
            DecoderLayer(config.decoder) for _ in range(config.unique_decoder_layers or config.decoder_layers)
        )
        self.encoder_depth, self.decoder_depth = config.encoder_layers, config.decoder_layers
        self.alignment_layer = None if config.alignment_layer is None else config.alignment_layer - 1
        """Index of the decoder layer whose first head of cross-attention aligns, if one does."""
        self.encoder_norm = make_norm(config) if config.has_final_norm else nn.Identity()
        self.decoder_norm = make_norm(config) if config.decoder.has_final_norm else nn.Identity()
        self.init_weights()
        if tied == "three-way":
            self.src_embedding.weight = self.tgt_embedding.weight
        if tied != "none":
            self.output.weight = self.tgt_embedding.weight

    def init_weights(self) -> None:
        """Initialize matrices Xavier-uniform (Glorot and Bengio 2010), biases with 0, embeddings with variance 1/D."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in (self.src_embedding, self.tgt_embedding):
            nn.init.normal_(embedding.weight, std=embedding.embedding_dim**-0.5)
        nn.init.normal_(self.output.weight, std=self.output.in_features**-0.5)

    def encoder_stack(self) -> Iterable[EncoderLayer]:
        """Return the encoder layers in the order they run; shared layers repeat in a cycle."""
        return (self.encoder[i % len(self.encoder)] for i in range(self.encoder_depth))  # type: ignore[misc]

    def decoder_stack(self) -> Iterable[DecoderLayer]:
        """Return the decoder layers in the order they run; shared layers repeat in a cycle."""
        return (self.decoder[i % len(self.decoder)] for i in range(self.decoder_depth))  # type: ignore[misc]

    @property
    def residual_dtype(self) -> torch.dtype:
        """Dtype of the residual stream and the norms: float32 even if matrix products run in bf16 or fp16.

        The stream is a sum over all sublayers, which loses its small terms in bf16: the gradient error would be 1.3 to
        3.5 times as large.
        """
        return torch.promote_types(self.compute_dtype, torch.float32)

    def source_mask(self, src_BS: Tensor) -> Tensor:
        """Return [B, 1, 1, S]: True at real tokens, False at padding."""
        return (src_BS != self.src_pad)[:, None, None, :]

    def encode(
        self,
        src_BS: Tensor,
        kept_BS: Tensor | None = None,
        num_streams: int = 1,
        packing: Packing | None = None,
    ) -> Tensor:
        """Encode source tokens [B, S], padded with `src_pad`, into the memory [B, S, D].

        Args:
            src_BS: the tokens.
            kept_BS: whether a token keeps its embedding (see `Consistency`); by default all do.
            num_streams: number of equal parts of the batch, each of which drops layers of its own.
            packing: the sentences of a row, if they are packed: a row is then a stream.
        """
        if packing is None:
            mask: Mask = self.source_mask(src_BS)
            positions_S = torch.arange(src_BS.shape[1], device=src_BS.device)
        else:
            mask, positions_S = PackedMask(packing, packing), packing.positions
        x_BSD = self.src_embedding.embed(src_BS, positions_S, self.residual_dtype, kept_BS)
        compiles = self._compiles(packing, src_BS)
        if compiles:
            mark_lengths(*mask_tensors(mask), positions_S)
        for layer in self.encoder_stack():
            x_BSD = self._run_layer(
                num_streams, compiles, layer, x_BSD, mask, positions_S, self.compute_dtype
            )
        memory_BSD: Tensor = self.encoder_norm(x_BSD).to(self.compute_dtype)
        return memory_BSD

    def decode(
        self,
        tgt_BT: Tensor,
        memory_BSD: Tensor,
        memory_mask: Mask,
        kept_BT: Tensor | None = None,
        num_streams: int = 1,
        alignment: list[Tensor] | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Decode target tokens [B, T], bos first, into hidden states [B, T, D]; each position sees no later one.

        Args:
            tgt_BT: the tokens.
            memory_BSD: output of `encode`.
            memory_mask: output of `source_mask`, or what packed sentences see of the memory.
            kept_BT: whether a token keeps its embedding; by default all do.
            num_streams: number of equal parts of the batch, each of which drops layers of its own.
            alignment: gets the logs of the weights [B, T, S] of the head that aligns; None if they are not needed.
                Sentences must not be packed.
            packing: the sentences of a row, if they are packed.
        """
        if packing is None:
            positions_T = torch.arange(tgt_BT.shape[1], device=tgt_BT.device)
            mask: Mask = causal_mask(tgt_BT.shape[1], tgt_BT.device)
        else:
            mask, positions_T = PackedMask(packing, packing, causal=True), packing.positions

        def self_attention(attention: MultiHeadAttention, x: Tensor) -> Tensor:
            return attention.attend_self(x, mask, positions_T, causal=True)

        def cross_attention(attention: MultiHeadAttention, x: Tensor) -> Tensor:
            return attention.attend_memory(x, memory_BSD, memory_mask)

        def aligning_attention(attention: MultiHeadAttention, x: Tensor) -> Tensor:
            assert isinstance(memory_mask, Tensor)
            out_BTD, log_weights_BTS = attention.attend_memory_and_align(x, memory_BSD, memory_mask)
            if alignment is not None and not alignment:  # a layer that is recomputed comes here twice
                alignment.append(log_weights_BTS)
            return out_BTD

        x_BTD = self.tgt_embedding.embed(tgt_BT, positions_T, self.residual_dtype, kept_BT)
        if self.training and self.layer_dropout:  # if all layers are dropped, nothing depends on the memory
            x_BTD = with_zero_gradients(x_BTD, memory_BSD)
        aligning = None if alignment is None else self.alignment_layer
        compiles = self._compiles(packing, tgt_BT, memory_BSD)
        if compiles:
            mark_lengths(*mask_tensors(mask), positions_T, memory_BSD, *mask_tensors(memory_mask))
        for index, layer in enumerate(self.decoder_stack()):
            attend = aligning_attention if index == aligning else cross_attention
            compiles_layer = compiles and index != aligning  # this one adds to a list, recomputed or not
            x_BTD = self._run_layer(
                num_streams, compiles_layer, layer, x_BTD, self_attention, attend, self.compute_dtype
            )
        hidden_BTD: Tensor = self.decoder_norm(x_BTD).to(self.compute_dtype)
        return hidden_BTD

    def _compiles(self, packing: Packing | None, *tensors: Tensor) -> bool:
        """Return whether layers run compiled for a batch with tensors of these sizes, [B, T, ...]."""
        if packing is None:
            sizes = [size for tensor in tensors for size in tensor.shape[:2]]
        else:
            sizes = [packing.num_sentences, *(tensor.shape[1] for tensor in tensors)]
        # The graph for all sizes is wrong for a size of 1, which would need another one.
        return self.compiles and self.training and min(sizes) > 1

    def _run_layer(
        self, num_streams: int, compiles: bool, layer: nn.Module, x_BTD: Tensor, *more: Any
    ) -> Tensor:
        """Return the output of a layer, in training with `layer_dropout` and `recompute` if they are set."""
        kept = [True] * num_streams
        if self.training and self.layer_dropout:
            kept = draw_kept_layer(num_streams, self.layer_dropout)
        if compiles:
            mark_lengths(x_BTD)
        inputs = x_BTD, *more, kept, compiles
        if self.recompute and self.training and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(layer, *inputs, use_reentrant=False)
            return recomputed
        output: Tensor = layer(*inputs)
        return output

    @contextmanager
    def all_layers(self) -> Iterator[None]:
        """Run every layer inside the block, whatever `layer_dropout`: it shows how much memory training takes."""
        probability, self.layer_dropout = self.layer_dropout, 0.0
        try:
            yield
        finally:
            self.layer_dropout = probability

    @contextmanager
    def weights_cast_once(self) -> Iterator[None]:
        """Cast the matrices now, for all products of training inside the block; they must not change."""
        linears = [m for m in self.modules() if isinstance(m, Linear)]
        for linear in linears:
            if self.uses_float8 and linear is not self.output and suits_float8(linear.weight):
                linear.working = Float8Weight(linear.weight)
            elif self.compute_dtype != linear.weight.dtype:
                linear.working = CastWeight(linear.weight, self.compute_dtype)
        try:
            yield
        finally:
            for linear in linears:
                linear.working = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Project hidden states [..., D] to logits [..., V]."""
        logits: Tensor = self.output(hidden)
        return logits

    def forward(
        self,
        src_BS: Tensor,
        tgt_BT: Tensor,
        src_kept_BS: Tensor | None = None,
        tgt_kept_BT: Tensor | None = None,
        num_streams: int = 1,
        alignment: list[Tensor] | None = None,
        packings: tuple[Packing, Packing] | None = None,
    ) -> Tensor:
        """Return the hidden states [B, T, D] of the decoder, given both sides; the loss projects them to logits.

        `packings` are the sentences of both sides if they are packed; the other arguments are those of `encode` and
        `decode`.
        """
        src, tgt = packings or (None, None)
        memory_BSD = self.encode(src_BS, src_kept_BS, num_streams, src)
        mask: Mask = self.source_mask(src_BS) if packings is None else PackedMask(packings[1], packings[0])
        return self.decode(tgt_BT, memory_BSD, mask, tgt_kept_BT, num_streams, alignment, tgt)

    def init_state(self, memory_BSD: Tensor, memory_mask: Tensor) -> DecoderState:
        """Return the state before the first step, with one hypothesis for each sentence."""
        memory_kv = [layer.cross.project_memory(memory_BSD) for layer in self.decoder_stack()]
        return init_state([layer.attention for layer in self.decoder_stack()], memory_kv, memory_mask)

    def step(self, tokens_BK: Tensor, state: DecoderState) -> Tensor:
        """Append the newest tokens [B, K] to the state and return their hidden states [B, K, D], for `logits`."""
        masks = begin_step(state, tokens_BK.shape[1], self.decoder_heads)
        state.weights_BKS = []

        def self_attention(attention: MultiHeadAttention, x: Tensor, layer: int) -> Tensor:
            return cached_self_attention(attention, x, state, layer, masks)

        def cross_attention(attention: MultiHeadAttention, x: Tensor, layer: int) -> Tensor:
            return cached_cross_attention(attention, x, state, layer)

        hidden_BKD = self.step_with(tokens_BK, masks.position, self_attention, cross_attention)
        state.length += 1
        return hidden_BKD

    def step_with(
        self, tokens_BK: Tensor, position_1: Tensor, self_attention: Attend, cross_attention: Attend
    ) -> Tensor:
        """Return the hidden states [B, K, D] of the newest tokens at one position, given attentions over a cache."""
        x_BKD = self.tgt_embedding.embed(tokens_BK, position_1, self.residual_dtype)
        for index, layer in enumerate(self.decoder_stack()):
            own, cross = partial(self_attention, layer=index), partial(cross_attention, layer=index)
            x_BKD = layer(x_BKD, own, cross, self.compute_dtype)
        hidden_BKD: Tensor = self.decoder_norm(x_BKD).to(self.compute_dtype)
        return hidden_BKD

    def num_parameters(self) -> int:
        """Return the number of parameters; shared ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def num_trained_parameters(self) -> int:
        """Return the number of parameters that are not frozen; shared ones count once."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
