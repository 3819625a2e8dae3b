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
from mtkit.decoding.reading import LINES_AT_ONCE, in_chunks
from mtkit.decoding.search import SearchOptions, final_scores
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

    def stream(self, pairs: Iterable[Sequence[str]]) -> Iterator[tuple[str, Translation]]:
        """See `Translator.score_stream`."""
        first = 1
        for chunk in in_chunks(pairs, LINES_AT_ONCE):
            srcs, tgts = [pair[0] for pair in chunk], [pair[1] for pair in chunk]
            yield from zip(srcs, self.score(srcs, tgts, first), strict=True)
            first += len(chunk)

    def score(self, srcs: Sequence[str], tgts: Sequence[str], first: int = 1) -> list[Translation]:
        """See `Translator.score`. Args: first: number of the first line, for messages."""
        if len(srcs) != len(tgts):
            raise DataError(
                f"{len(srcs):,} source lines, but {len(tgts):,} target lines", hint="line n goes with line n"
            )
        tokenizers = self.ensemble.tokenizers
        src_ids, tgt_ids = tokenizers.src.encode(srcs), tokenizers.tgt.encode(tgts)
        refuse_long(src_ids, self.max_source_pieces, "source", first)
        refuse_long(tgt_ids, self.decoding.max_length(self.max_source_pieces), "target", first)
        sizes = np.array(
            [max(len(s), len(t)) + 1 for s, t in zip(src_ids, tgt_ids, strict=True)], dtype=np.int32
        )
        scores = np.zeros(len(srcs))
        order = np.argsort(-sizes, kind="stable")
        order = order[sizes[order] > 1]  # an empty line that stays empty: 0, as `translate` says
        for batch in split_by_budget(sizes, order, self.decoding.batch_tokens):
            pairs = [(src_ids[i], tgt_ids[i]) for i in batch.tolist()]
            with out_of_memory_named("lower decoding.batch_tokens (--batch-tokens)"):
                scores[batch] = self.score_ids([s for s, _ in pairs], [t for _, t in pairs])
        return [Translation(text, score) for text, score in zip(tgts, scores.tolist(), strict=True)]

    @torch.inference_mode()
    def score_ids(self, src_ids: Sequence[Ids], tgt_ids: Sequence[Ids]) -> list[float]:
        """Log-probability over the length penalty of each pair, by one pass through the whole target."""
        src_BS = self.ensemble.sources(src_ids)
        tgt_in_BT, tgt_out_BT = self.ensemble.targets_in(tgt_ids), self.ensemble.targets_out(tgt_ids)
        log_probs_BTV = self.ensemble.log_probs(src_BS, tgt_in_BT)
        device = self.ensemble.device
        lengths_B = torch.tensor([len(ids) + 1 for ids in tgt_ids], device=device)
        real_BT = torch.arange(tgt_out_BT.shape[1], device=device) < lengths_B[:, None]
        log_probs_BT = log_probs_BTV.gather(2, tgt_out_BT[:, :, None])[:, :, 0]
        sums_B = log_probs_BT.masked_fill(~real_BT, 0.0).sum(1)
        coverage_BS = self.coverage(src_BS, tgt_in_BT, real_BT) if self.options.coverage_penalty else None
        scores: list[float] = final_scores(sums_B, lengths_B, self.options, coverage_BS).tolist()
        return scores

    def coverage(self, src_BS: Tensor, tgt_in_BT: Tensor, real_BT: Tensor) -> Tensor:
        """Attention that each source piece gets over the real places of given targets, 1 at padding: [B, S]."""
        stepper = self.ensemble.stepper(src_BS, keep_attention=True)
        total_BS = torch.zeros(src_BS.shape, device=self.ensemble.device)
        for place in range(tgt_in_BT.shape[1]):
            stepper.step(tgt_in_BT[:, place : place + 1])
            total_BS += stepper.attention()[:, 0] * real_BT[:, place : place + 1]
        return total_BS


def refuse_long(rows: Sequence[Ids], limit: int, side: str, first: int) -> None:
    """Raise DataError if a line has more pieces than `limit`."""
    for number, ids in enumerate(rows, first):
        if len(ids) > limit:
            what = f"{len(ids):,} pieces, but a {side} line of at most {limit:,} can be scored"
            raise DataError(what, where=f"{side} line {number}", hint="split the line")
