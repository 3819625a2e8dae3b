"""Word alignment: the source token that each token of a translation came from, read off the model's attention.

Shapes: B sentences, L layers, T target length with eos, S source length with eos.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtkit.data.alignments import WordIndex, WordLinks
from mtkit.data.batching import Ids, split_by_tokens
from mtkit.data.segmentation import Span
from mtkit.device import out_of_memory_errors
from mtkit.model.attention import MultiHeadAttention, causal_mask
from mtkit.model.transformer import Transformer
from mtkit.translation.ensemble import Ensemble

Weights = npt.NDArray[np.float32]


class Link(NamedTuple):
    """A span of a source text and the span of its translation that it became."""

    src: Span
    tgt: Span


@dataclass(frozen=True)
class SegmentAttention:
    """Cross-attention between a segment and its translation.

    Attributes:
        src, tgt: pieces of both sides, in `explain` with eos.
        weights: attention [L, T, S], mean over the heads; row t belongs to the step that predicts target token t, the
            last row to eos, and so does the last column, unless sources have none. Rows sum to 1.
        head: attention [T, S] of the head that was trained to align (`model.alignment_layer`), if there is one.
    """

    src: tuple[str, ...]
    tgt: tuple[str, ...]
    weights: Weights
    head: Weights | None = None

    def source_indices(self) -> list[int]:
        """Return for each target token the index of the source token that it came from, `len(src)` for eos.

        That is the token with the most attention in the step that predicts the target token: of the head that was
        trained to align, or else in the mean of the last two layers (Garg et al. 2019 take the last but one). In a
        4-layer model on Multi30k the upper layers were right for 90 % of 400 words with an unambiguous translation, the
        lower ones for 85 %.
        """
        weights = self.weights[-2:].mean(axis=0) if self.head is None else self.head
        best: list[int] = weights.argmax(axis=1).tolist()
        return best[: len(self.tgt)]


def word_links(links: Iterable[Link], src: str, tgt: str) -> WordLinks:
    """Return the words of two texts that links connect, in order."""
    src_words, tgt_words = WordIndex(src), WordIndex(tgt)
    found = {
        pair for link in links for pair in product(src_words.words_in(link.src), tgt_words.words_in(link.tgt))
    }
    return tuple(sorted(found))


def alignment_batches(pairs: Sequence[tuple[Ids, Ids]], batch_tokens: int) -> list[list[int]]:
    """Return the indices of the pairs of each batch, of similar length.

    Args:
        pairs: source and target tokens.
        batch_tokens: tokens of a batch, both sides, padding included.
    """
    sizes = np.array([len(s) + len(t) + 2 for s, t in pairs], dtype=np.int32)
    order = np.argsort(-sizes, kind="stable")
    return [batch.tolist() for batch in split_by_tokens(sizes, order, batch_tokens)]


def align_batch(ensemble: Ensemble, pairs: Sequence[tuple[Ids, Ids]]) -> list[SegmentAttention]:
    """Return the attention of the first model between the source and target tokens of each pair of a batch."""
    src, tgt = ensemble.tokenizers.src, ensemble.tokenizers.tgt
    src_BS, tgt_in_BT = ensemble.sources([s for s, _ in pairs]), ensemble.targets_in([t for _, t in pairs])
    lengths = [(len(t) + 1, len(s) + ensemble.source_eos) for s, t in pairs]
    with out_of_memory_errors("lower decoding.batch_tokens"):
        weights = _cross_attention(ensemble.models[0], src_BS, tgt_in_BT, lengths)
    return [
        SegmentAttention(tuple(map(src.piece, s.tolist())), tuple(map(tgt.piece, t.tolist())), *own)
        for (s, t), own in zip(pairs, weights, strict=True)
    ]


def align(
    ensemble: Ensemble, pairs: Sequence[tuple[Ids, Ids]], batch_tokens: int
) -> Iterator[tuple[int, SegmentAttention]]:
    """Yield the index of each pair and the attention of the first model between its sides.

    Pairs of similar length are batched, so the order is another than that of `pairs`. Only the matrices of one batch,
    which are large, are in memory at a time.
    """
    for batch in alignment_batches(pairs, batch_tokens):
        yield from zip(batch, align_batch(ensemble, [pairs[i] for i in batch]), strict=True)


@torch.inference_mode()
def _cross_attention(
    model: Transformer, src_BS: Tensor, tgt_in_BT: Tensor, lengths: Sequence[tuple[int, int]]
) -> list[tuple[Weights, Weights | None]]:
    """Return the cross-attention of each step of given translations.

    Args:
        model: the model.
        src_BS: sources, padded.
        tgt_in_BT: targets that begin with bos, padded.
        lengths: T and S of each sentence without padding, eos included.

    Returns:
        A matrix [L, T, S] for each sentence, and that of the head which aligns, [T, S], if one does.
    """
    memory_BSD, mask = model.encode(src_BS), model.source_mask(src_BS)
    positions_T = torch.arange(tgt_in_BT.shape[1], device=tgt_in_BT.device)
    mask_TT = causal_mask(tgt_in_BT.shape[1], tgt_in_BT.device)
    kept: list[Tensor] = []  # for each layer [B, T, S]
    heads: list[Tensor] = []

    def self_attention(attention: MultiHeadAttention, x: Tensor) -> Tensor:
        return attention.attend_self(x, mask_TT, positions_T)

    def cross_attention(attention: MultiHeadAttention, x: Tensor) -> Tensor:
        weights_BHTS = attention.memory_weights(x, memory_BSD, mask).float()
        if len(kept) == model.alignment_layer:
            heads.append(weights_BHTS[:, 0])
        kept.append(weights_BHTS.mean(dim=1))
        return attention.attend_memory(x, memory_BSD, mask)

    x_BTD = model.tgt_embedding.embed(tgt_in_BT, positions_T, model.residual_dtype)
    for layer in model.decoder_stack():
        x_BTD = layer(x_BTD, self_attention, cross_attention, model.compute_dtype)
    weights_BLTS = torch.stack(kept, dim=1).cpu().numpy()
    heads_BTS = heads[0].cpu().numpy() if heads else [None] * len(lengths)
    return [
        (weights[:, :T, :S].copy(), None if head is None else head[:T, :S].copy())
        for weights, head, (T, S) in zip(weights_BLTS, heads_BTS, lengths, strict=True)
    ]
