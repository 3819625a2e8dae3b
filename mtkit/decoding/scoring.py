"""What the model thinks of given translations.

Shapes: B sentences, S source length, T target length with eos, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mtkit.config import DecodingConfig
from mtkit.data.batching import Ids, split_by_budget
from mtkit.decoding.ensemble import Ensemble
from mtkit.decoding.options import LINES_AT_ONCE
from mtkit.decoding.reading import in_chunks
from mtkit.decoding.search import LOGITS_AT_ONCE, SearchOptions, final_scores
from mtkit.decoding.translation import Translation
from mtkit.device import out_of_memory_named
from mtkit.errors import DataError


class Scorer:
    """Scores pairs as the search would score them.

    Args:
        ensemble: the models.
        decoding: size of the batches, longest translation.
        options: the penalties.
        max_source_pieces: of a pair that is scored; of the target as many as a translation of that may have.
    """

    def __init__(
        self, ensemble: Ensemble, decoding: DecodingConfig, options: SearchOptions, max_source_pieces: int
    ) -> None:
        self.ensemble, self.decoding, self.options = ensemble, decoding, options
        self.max_source_pieces = max_source_pieces

    def stream(
        self, pairs: Iterable[Sequence[str]], skip_long: bool = False
    ) -> Iterator[tuple[str, Translation | None]]:
        """See `Translator.score_stream`."""
        first = 1
        for chunk in in_chunks(pairs, LINES_AT_ONCE):
            srcs, tgts = [pair[0] for pair in chunk], [pair[1] for pair in chunk]
            src_ids, tgt_ids = self._encode(srcs, tgts)
            faults = self._too_long(src_ids, tgt_ids, first)
            end = len(chunk) if skip_long else min(faults, default=len(chunk))
            order = [i for i in range(end) if i not in faults]
            scores = dict(zip(order, self._scores(src_ids, tgt_ids, order), strict=True))
            for i in range(end):
                yield srcs[i], Translation(tgts[i], scores[i]) if i in scores else None
            if end < len(chunk):
                raise faults[end]
            first += len(chunk)

    def score(self, srcs: Sequence[str], tgts: Sequence[str]) -> list[Translation]:
        """See `Translator.score`."""
        if len(srcs) != len(tgts):
            raise DataError(
                f"{len(srcs):,} source lines, but {len(tgts):,} target lines", hint="line n goes with line n"
            )
        src_ids, tgt_ids = self._encode(srcs, tgts)
        for fault in self._too_long(src_ids, tgt_ids, 1).values():
            raise fault
        scores = self._scores(src_ids, tgt_ids, range(len(srcs)))
        return [Translation(text, score) for text, score in zip(tgts, scores, strict=True)]

    def _encode(self, srcs: Sequence[str], tgts: Sequence[str]) -> tuple[list[Ids], list[Ids]]:
        tokenizers = self.ensemble.tokenizers
        return tokenizers.src.encode(srcs), tokenizers.tgt.encode(tgts)

    def _too_long(self, src_ids: list[Ids], tgt_ids: list[Ids], first: int) -> dict[int, DataError]:
        """The pairs that cannot be scored in one piece, and what is to be said. Args: first: number of line 0."""
        limit = self.max_source_pieces
        limits = {"source": limit, "target": self.decoding.max_length(limit)}
        faults: dict[int, DataError] = {}
        for i, pair in enumerate(zip(src_ids, tgt_ids, strict=True)):
            for ids, (side, most) in zip(pair, limits.items(), strict=True):
                if len(ids) > most and i not in faults:
                    what = f"{len(ids):,} pieces, but a {side} line of at most {most:,} can be scored"
                    faults[i] = DataError(what, where=f"{side} line {first + i}", hint="split the line")
        return faults

    def _scores(self, src_ids: list[Ids], tgt_ids: list[Ids], chosen: Sequence[int]) -> list[float]:
        """Of the chosen pairs, found in batches of similar length."""
        sizes = np.array([max(len(src_ids[i]), len(tgt_ids[i])) + 1 for i in chosen], dtype=np.int32)
        scores = np.zeros(len(chosen))
        order = np.argsort(-sizes, kind="stable")
        order = order[sizes[order] > 1]  # an empty line that stays empty: 0, as `translate` says
        for batch in split_by_budget(sizes, order, self.decoding.batch_tokens):
            rows = [chosen[i] for i in batch.tolist()]
            with out_of_memory_named("lower decoding.batch_tokens (--batch-tokens)"):
                scores[batch] = self.score_ids([src_ids[i] for i in rows], [tgt_ids[i] for i in rows])
        found: list[float] = scores.tolist()
        return found

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
        at_once = max(1, LOGITS_AT_ONCE // self.ensemble.tokenizers.tgt.vocab_size)
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
