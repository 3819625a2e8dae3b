"""Which source pieces each piece of a translation came from, read off the attention of the model.

Shapes: B sentences, L layers, T target length with eos, S source length with eos.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtkit.data.batching import Ids, split_by_tokens
from mtkit.data.tokenizer import Span
from mtkit.device import out_of_memory_errors
from mtkit.model.transformer import Transformer
from mtkit.translation.ensemble import Ensemble

Weights = npt.NDArray[np.float32]


Pairs = tuple[tuple[int, int], ...]
"""Numbers of a source word and of a target word, from 0, words being what white space divides."""


_VISIBLE = re.compile(r"[^\s\u00ad\u200b-\u200f\u2060\ufeff▁]")
"""What is neither white space nor, as the zero-width ones, made white space or nothing by normalisation."""


class Link(NamedTuple):
    """What of a source text became what of a translation."""

    src: Span
    tgt: Span


@dataclass(frozen=True)
class SegmentAttention:
    """A sentence, its translation and the attention between them.

    Attributes:
        src, tgt: pieces as text, without eos.
        weights: [L, T, S], mean over the heads; row t is of the step that gives target piece t, the last row and the
            last column are of eos. Rows sum to 1.
    """

    src: tuple[str, ...]
    tgt: tuple[str, ...]
    weights: Weights

    def best(self) -> list[int]:
        """For each target piece the source piece that it came from, `len(src)` for eos.

        It is the one that gets most attention in the step that gives the target piece, in the mean of the last two
        layers (Garg et al. 2019 take the last but one). Of a 4-layer model on Multi30k the upper layers were right for
        90 % of 400 words with a sure translation, the lower ones for 85 %.
        """
        best: list[int] = self.weights[-2:].mean(axis=0).argmax(axis=1).tolist()
        return best[: len(self.tgt)]


class WordIndex:
    """The words of a text by its characters, words being what white space divides."""

    def __init__(self, text: str) -> None:
        self.text, self.numbers, number, inside = text, [], 0, False
        for character in text:
            number += inside and character.isspace()  # of a space, the number of the word behind it
            inside = not character.isspace()
            self.numbers.append(number)
        self.count = number + inside

    def words_in(self, span: Span) -> range:
        """The words that a stretch of the text belongs to; if it is white space or empty, the word behind it."""
        if not self.count:
            return range(0)
        start, end = span[1], span[0]
        if found := _VISIBLE.search(self.text, *span):
            start = found.start()
            end = span[1] - cast(re.Match[str], _VISIBLE.search(self.text[slice(*span)][::-1])).start()
        first = self.numbers[start] if start < len(self.text) else self.count
        last = self.numbers[end - 1] if start < end else first
        return range(min(first, self.count - 1), min(last, self.count - 1) + 1)


def word_pairs(links: Iterable[Link], src: str, tgt: str) -> Pairs:
    """The words of two texts that links connect, in order."""
    src_words, tgt_words = WordIndex(src), WordIndex(tgt)
    found = {
        pair for link in links for pair in product(src_words.words_in(link.src), tgt_words.words_in(link.tgt))
    }
    return tuple(sorted(found))


def align(
    ensemble: Ensemble, pairs: Sequence[tuple[Ids, Ids]], batch_tokens: int
) -> Iterator[tuple[int, SegmentAttention]]:
    """Pairs of a source and a target with the attention between them, by the first model: number and pair.

    They come in an order of their own, batch by batch of similar length; of the matrices, which are large, none is
    held but those of the batch.

    Args:
        batch_tokens: pieces of a batch, both sides, padding included.
    """
    src, tgt = ensemble.tokenizers.src, ensemble.tokenizers.tgt
    sizes = np.array([len(s) + len(t) + 2 for s, t in pairs], dtype=np.int32)
    for batch in split_by_tokens(sizes, np.argsort(-sizes, kind="stable"), batch_tokens):
        rows = [pairs[i] for i in batch.tolist()]
        src_BS, tgt_in_BT = ensemble.sources([s for s, _ in rows]), ensemble.targets_in([t for _, t in rows])
        lengths = [(len(t) + 1, len(s) + 1) for s, t in rows]
        with out_of_memory_errors("lower decoding.batch_tokens"):
            weights = cross_attention(ensemble.models[0], src_BS, tgt_in_BT, lengths)
        for i, (s, t), own in zip(batch.tolist(), rows, weights, strict=True):
            yield (
                i,
                SegmentAttention(tuple(map(src.piece, s.tolist())), tuple(map(tgt.piece, t.tolist())), own),
            )
        del own, weights


@torch.inference_mode()
def cross_attention(
    model: Transformer, src_BS: Tensor, tgt_in_BT: Tensor, lengths: Sequence[tuple[int, int]]
) -> list[Weights]:
    """What each step of given translations attends to.

    Args:
        src_BS: sources, padded.
        tgt_in_BT: targets that begin with bos, padded.
        lengths: of each sentence the real T and S, eos included.

    Returns:
        For each sentence [L, T, S].
    """
    state = model.init_state(model.encode(src_BS), model.source_mask(src_BS))
    state.keep_weights = True
    steps = []
    for place in range(tgt_in_BT.shape[1]):
        model.step(tgt_in_BT[:, place : place + 1], state)
        steps.append(torch.stack(state.weights_BKS, dim=1)[:, :, 0])  # [B, L, S]
    weights_BLTS = torch.stack(steps, dim=2).cpu().numpy()
    return [weights[:, :T, :S].copy() for weights, (T, S) in zip(weights_BLTS, lengths, strict=True)]
