"""What the model thinks of given translations.

Shapes: B sentences, S source length, T target length with eos, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from mtkit.config.sections import DecodingConfig
from mtkit.data.batching import Ids, split_by_tokens
from mtkit.device import out_of_memory_errors
from mtkit.errors import DataError
from mtkit.search.beam import LOGITS_CHUNK, final_scores
from mtkit.search.state import SearchOptions
from mtkit.translation.assembly import Translation
from mtkit.translation.ensemble import Ensemble
from mtkit.translation.options import LINES_AT_ONCE, TranslateOptions
from mtkit.translation.reading import read_chunks
from mtkit.translation.segments import Request, Segmenter
from mtkit.translation.sentence_splitting import split_sentences as split_sentences_of


@dataclass(frozen=True)
class Pair:
    """A line and its translation, as the parts that are scored.

    Attributes:
        src_parts: pieces of each part, those of the tag first.
        tgt_parts: pieces of the translation of each.
        num_tag: pieces of the tag.
    """

    src_parts: list[Ids]
    tgt_parts: list[Ids]
    num_tag: int

    def longest(self) -> dict[str, int]:
        """Pieces of the longest part of each side, without the tag."""
        src = max((len(ids) - self.num_tag for ids in self.src_parts), default=0)
        return {"source": src, "target": max(map(len, self.tgt_parts), default=0)}


class Scorer:
    """Scores pairs as the search would score them.

    Args:
        ensemble: the models.
        decoding: size of the batches, longest translation.
        options: the penalties.
        segmenter: how lines are taken apart, and how long a segment may be; a target has at most as many tokens as a
            translation of that may have.
    """

    def __init__(
        self, ensemble: Ensemble, decoding: DecodingConfig, options: SearchOptions, segmenter: Segmenter
    ) -> None:
        self.ensemble, self.decoding, self.options = ensemble, decoding, options
        self.segmenter = segmenter

    def stream(
        self,
        pairs: Iterable[Sequence[str]],
        skip_long: bool = False,
        tag: str = "",
        split_sentences: bool | None = None,
    ) -> Iterator[tuple[str, Translation | None]]:
        """See `Translator.score_stream`."""
        first = 1
        for chunk in read_chunks(pairs, LINES_AT_ONCE):
            srcs, tgts = [pair[0] for pair in chunk], [pair[1] for pair in chunk]
            cut = self._cut(srcs, tgts, tag, split_sentences)
            faults = self._too_long(cut, first)
            end = len(chunk) if skip_long else min(faults, default=len(chunk))
            order = [i for i in range(end) if i not in faults]
            scores = dict(zip(order, self._scores([cut[i] for i in order]), strict=True))
            for i in range(end):
                yield srcs[i], Translation(tgts[i], scores[i]) if i in scores else None
            if end < len(chunk):
                raise faults[end]
            first += len(chunk)

    def score(
        self, srcs: Sequence[str], tgts: Sequence[str], tag: str = "", split_sentences: bool | None = None
    ) -> list[Translation]:
        """See `Translator.score`."""
        if len(srcs) != len(tgts):
            raise DataError(
                f"{len(srcs):,} source lines, but {len(tgts):,} target lines", hint="line n goes with line n"
            )
        cut = self._cut(srcs, tgts, tag, split_sentences)
        for fault in self._too_long(cut, 1).values():
            raise fault
        return [Translation(text, score) for text, score in zip(tgts, self._scores(cut), strict=True)]

    def _cut(
        self, srcs: Sequence[str], tgts: Sequence[str], tag: str, split_sentences: bool | None
    ) -> list[Pair]:
        """The parts of each pair: of a source that would be translated in parts its parts.

        Which part of the target belongs to which is known only where it has as many sentences. Elsewhere the pair is
        one part.
        """
        requests = [Request(src, tag=tag) for src in srcs]
        options = TranslateOptions(split_sentences=split_sentences)
        tag_ids, encode = self.segmenter.tag_ids(tag), self.ensemble.tokenizers.tgt.encode
        pairs = []
        for src, parts, tgt, whole in zip(
            srcs, self.segmenter.parts(requests, 0, options), tgts, encode(tgts), strict=True
        ):
            src_parts, tgt_parts = [part.ids for part in parts], [whole]
            if len(parts) > 1:
                sentences = split_sentences_of(tgt)
                if len(sentences) == len(parts):
                    tgt_parts = encode(sentences)
                else:
                    src_parts = [np.concatenate([tag_ids, *self.ensemble.tokenizers.src.encode([src])])]
            elif not parts:  # of an empty line only the target counts
                src_parts = [np.array([], dtype=np.int32)]
            pairs.append(Pair(src_parts, tgt_parts, len(tag_ids)))
        return pairs

    def _too_long(self, pairs: Sequence[Pair], first: int) -> dict[int, DataError]:
        """The pairs with a part that cannot be scored, and what is to be said. Args: first: number of line 0."""
        limit = self.segmenter.max_source_tokens
        limits = {"source": limit, "target": self.decoding.max_length(limit)}
        faults: dict[int, DataError] = {}
        for i, pair in enumerate(pairs):
            for side, length in pair.longest().items():
                if length > limits[side] and i not in faults:
                    what = f"{length:,} pieces, but a {side} line of at most {limits[side]:,} can be scored"
                    hint = "split the line"
                    faults[i] = DataError(what, where=f"{side} line {first + i}", hint=hint)
        return faults

    def _scores(self, pairs: Sequence[Pair]) -> list[float]:
        """Of each pair the mean over its parts, which are scored in batches of similar length."""
        src_ids = [ids for pair in pairs for ids in pair.src_parts]
        tgt_ids = [ids for pair in pairs for ids in pair.tgt_parts]
        lengths = [max(len(src), len(tgt)) + 1 for src, tgt in zip(src_ids, tgt_ids, strict=True)]
        sizes = np.array(lengths, dtype=np.int32)
        scores = np.zeros(len(sizes))
        order = np.argsort(-sizes, kind="stable")
        order = order[sizes[order] > 1]  # an empty line that stays empty: 0, as `translate` says
        for batch in split_by_tokens(sizes, order, self.decoding.batch_tokens):
            with out_of_memory_errors("lower decoding.batch_tokens"):
                scores[batch] = self.score_ids([src_ids[i] for i in batch], [tgt_ids[i] for i in batch])
        of_parts = iter(scores.tolist())
        return [sum(islice(of_parts, len(pair.src_parts))) / len(pair.src_parts) for pair in pairs]

    @torch.inference_mode()
    def score_ids(self, src_ids: Sequence[Ids], tgt_ids: Sequence[Ids]) -> list[float]:
        """Log-probability over the length penalty of each pair, by one pass through the whole target."""
        src_BS = self.ensemble.sources(src_ids)
        tgt_in_BT, tgt_out_BT = self.ensemble.targets_in(tgt_ids), self.ensemble.targets_out(tgt_ids)
        device = self.ensemble.device
        lengths_B = torch.tensor([len(ids) + 1 for ids in tgt_ids], device=device)
        real_BT = torch.arange(tgt_out_BT.shape[1], device=device) < lengths_B[:, None]
        hidden = [hidden_BTD[real_BT] for hidden_BTD in self.ensemble.hidden(src_BS, tgt_in_BT)]
        log_probs_BT = torch.zeros(real_BT.shape, device=device)
        log_probs_BT[real_BT] = self._of_pieces(hidden, tgt_out_BT[real_BT])
        sums_B = log_probs_BT.sum(1)
        coverage_BS = self.coverage(src_BS, tgt_in_BT, real_BT) if self.options.coverage_penalty else None
        scores: list[float] = final_scores(sums_B, lengths_B, self.options, coverage_BS).tolist()
        return scores

    def _of_pieces(self, hidden: Sequence[Tensor], pieces_N: Tensor) -> Tensor:
        """Log-probabilities [N] of a piece at each of N places, some at a time. Args: hidden: of each model, [N, D]."""
        at_once = max(1, LOGITS_CHUNK // self.ensemble.tokenizers.tgt.vocab_size)
        found = [
            self.ensemble.log_probs([h[first : first + at_once] for h in hidden])
            .gather(1, pieces_N[first : first + at_once, None])
            .squeeze(1)
            for first in range(0, len(pieces_N), at_once)
        ]
        return torch.cat(found)

    def coverage(self, src_BS: Tensor, tgt_in_BT: Tensor, real_BT: Tensor) -> Tensor:
        """Attention that each source piece gets over the real places of given targets, 1 at padding: [B, S]."""
        stepper = self.ensemble.stepper(src_BS, keep_attention=True)
        total_BS = torch.zeros(src_BS.shape, device=self.ensemble.device)
        for place in range(tgt_in_BT.shape[1]):
            stepper.step(tgt_in_BT[:, place : place + 1])
            total_BS += stepper.attention()[:, 0] * real_BT[:, place : place + 1]
        return total_BS
