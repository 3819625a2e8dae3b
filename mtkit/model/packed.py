"""Sentences packed end to end, without padding: attention within each of them.

A packed batch has a row of all its sentences, [1, N] tokens (with two streams [2, N], the same sentences in both), and
everything but attention treats it like any other batch. Attention gets the boundaries of the sentences instead of a
mask. On an NVIDIA GPU since Ampere, in half precision, PyTorch's variable-length kernel (FlashAttention-2, Dao 2023)
computes each sentence by itself; elsewhere a mask of blocks does the same, which is slow and meant for tests.

Shapes: R rows (streams), N tokens of a row, H heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_WIDEST_HEAD, _HEAD_MULTIPLE = 256, 8
"""Head widths that the kernel supports."""


@dataclass(frozen=True)
class Packing:
    """The sentences of a row, one after the other.

    Attributes:
        starts: where each sentence begins, and the number of tokens: [sentences + 1], int32.
        positions: position of each token in its sentence: [N].
        longest: tokens of the longest sentence.
    """

    starts: Tensor
    positions: Tensor
    longest: int

    @property
    def num_sentences(self) -> int:
        """Number of sentences of a row."""
        return len(self.starts) - 1

    def of_rows(self, num_rows: int) -> Tensor:
        """Return the starts of the sentences of several such rows, one after the other: [rows x sentences + 1]."""
        size = len(self.positions)
        return torch.cat([self.starts, *(self.starts[1:] + row * size for row in range(1, num_rows))])

    def sentence_of_token(self) -> Tensor:
        """Return the number of the sentence of each token: [N]."""
        return torch.bucketize(
            torch.arange(len(self.positions), device=self.starts.device), self.starts[1:], right=True
        )


class PackedMask(NamedTuple):
    """The tokens that attention between packed sentences sees: those of the same sentence.

    Attributes:
        queries: sentences of the queries.
        keys: sentences of the keys, as many.
        causal: whether a query sees no later key.
    """

    queries: Packing
    keys: Packing
    causal: bool = False


def packed_attention(
    q_RHNE: Tensor, k_RHNE: Tensor, v_RHNE: Tensor, mask: PackedMask, dropout_probability: float
) -> Tensor:
    """Compute softmax(q k^T / sqrt(E)) v within each sentence, with PyTorch's kernel: [R, H, N, E]."""
    num_rows = len(q_RHNE)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_RHNE, k_RHNE, v_RHNE))  # [R x N, H, E]
    # The operator behind torch.nn.attention.varlen: that function has no dropout, and changed its arguments.
    out, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, mask.queries.of_rows(num_rows), mask.keys.of_rows(num_rows), mask.queries.longest, mask.keys.longest,
        dropout_probability, mask.causal, False,
    )  # fmt: skip
    return out.unflatten(0, (num_rows, -1)).transpose(1, 2)


def has_packed_kernel(x: Tensor) -> bool:
    """Return whether `packed_attention` runs where `x` is, in its dtype."""
    return x.device.type == "cuda" and x.dtype in (torch.bfloat16, torch.float16)


def suits_packed_kernel(head_width: int) -> bool:
    """Return whether the kernel supports heads of this width."""
    return head_width <= _WIDEST_HEAD and head_width % _HEAD_MULTIPLE == 0


def block_mask(mask: PackedMask) -> Tensor:
    """Return [N queries, N keys]: True where a query may attend to a key."""
    queries, keys = mask.queries.sentence_of_token(), mask.keys.sentence_of_token()
    visible = queries[:, None] == keys
    if mask.causal:
        visible &= mask.queries.positions[:, None] >= mask.keys.positions
    return visible


def mask_tensors(mask: Tensor | PackedMask | None) -> list[Tensor]:
    """Return the tensors whose sizes are those of a batch, in a mask of attention."""
    if isinstance(mask, PackedMask):
        return [x for packing in (mask.queries, mask.keys) for x in (packing.starts, packing.positions)]
    return [] if mask is None else [mask]
