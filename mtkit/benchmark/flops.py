"""Floating-point operations of an update of a Transformer, from its shape.

Only matrix products count, with two operations per multiply-add. Backward needs two products for each one of forward,
so training is three times forward. Embedding lookups, norms, softmax, activations, the optimizer and what activation
checkpointing recomputes do not count.

Symbols: D model width, F feed-forward width, V vocabulary, G key/value heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from mtkit.config.sections import ModelConfig
from mtkit.data.order import Indices, Lengths

_FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True)
class Positions:
    """Source and target positions of an update and their products, summed over its pairs."""

    src: int = 0
    tgt: int = 0
    src_src: int = 0
    tgt_tgt: int = 0
    tgt_src: int = 0
    projected: int = 0
    """Target positions projected to the vocabulary: the real tokens."""

    def __add__(self, other: Positions) -> Positions:
        return Positions(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @classmethod
    def of_batch(
        cls, src_lengths: Lengths, tgt_lengths: Lengths, batch: Indices, *, padded: bool
    ) -> Positions:
        """Count the positions of a batch, with padding (as computed) or without."""
        src, tgt = src_lengths[batch].astype(np.int64) + 1, tgt_lengths[batch].astype(np.int64) + 1
        projected = int(tgt.sum())
        if padded:
            src, tgt = np.full_like(src, src.max()), np.full_like(tgt, tgt.max())
        return cls(
            src=int(src.sum()),
            tgt=int(tgt.sum()),
            src_src=int((src * src).sum()),
            tgt_tgt=int((tgt * tgt).sum()),
            tgt_src=int((tgt * src).sum()),
            projected=projected,
        )


def forward_flops(config: ModelConfig, vocab_size: int, positions: Positions) -> int:
    """Return the floating-point operations from the embeddings to the logits of the real tokens."""
    D = config.d_model
    scores = 2 * D  # q k^T and weights v, for a query and a key, over all heads
    distances = scores * (2 * config.max_relative_distance + 1) if config.positions == "relative" else 0
    cross_attention = 2 * D * D  # query and output projections; keys and values count per source position
    per_tgt = _per_position(config.decoder) + distances + cross_attention
    encoder = (_per_position(config) + distances) * positions.src + scores * positions.src_src
    decoder = (
        per_tgt * positions.tgt
        + scores * (positions.tgt_tgt + positions.tgt_src)
        + D * _kv_width(config.decoder) * positions.src
    )
    multiply_adds = (
        config.encoder_layers * encoder
        + config.decoder_layers * decoder
        + D * vocab_size * positions.projected
    )
    return 2 * multiply_adds


def _per_position(config: ModelConfig) -> int:
    """Return the multiply-adds of a layer's projections for self-attention, and of its feed-forward part."""
    D, F = config.d_model, config.feed_forward
    return D * (D + _kv_width(config)) + D * D + (3 if config.is_gated else 2) * D * F


def _kv_width(config: ModelConfig) -> int:
    """Return the columns of keys and values together: 2GE."""
    return 2 * config.kv_heads * (config.d_model // config.heads)


def training_flops(config: ModelConfig, vocab_size: int, positions: Positions) -> int:
    """Return the floating-point operations of forward and backward."""
    return _FORWARD_AND_BACKWARD * forward_flops(config, vocab_size, positions)
