"""Scores given translations as the search would score them.

Shapes: B sentences, S source length, T target length with eos, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from mtkit.data.alignments import WordLinks
from mtkit.data.batching import Ids, split_by_tokens
from mtkit.device import out_of_memory_errors
from mtkit.errors import DataError
from mtkit.search.beam import LOGITS_CHUNK
from mtkit.search.scores import final_scores
from mtkit.translation.alignment import Link, word_links
from mtkit.translation.assembly import Translation
from mtkit.translation.batched_search import BatchedSearch
from mtkit.translation.options import LINES_AT_ONCE, PARALLEL, Parallelism, TranslateOptions
from mtkit.translation.reading import read_chunks
from mtkit.translation.segments import Request, Segmenter
from mtkit.translation.sentence_splitting import split_sentences as split_into_sentences


@dataclass(frozen=True)
class _SegmentedPair:
    """A line and its translation, as the segments that are scored.

    Attributes:
        src_segments: tokens of each segment of the line, those of the tag first.
        tgt_segments: tokens of the translation of each.
        num_tag_tokens: tokens of the tag.
    """

    src_segments: list[Ids]
    tgt_segments: list[Ids]
    num_tag_tokens: int

    def longest(self) -> dict[str, int]:
        """Return the tokens of the longest segment of each side, without the tag."""
        src = max((len(ids) - self.num_tag_tokens for ids in self.src_segments), default=0)
        return {"source": src, "target": max(map(len, self.tgt_segments), default=0)}


class Scorer:
    """Scores pairs of a line and its translation.

    Args:
        engine: the models, the penalties, the batch size, and how long a translation may be.
        segmenter: splits the lines, and tells how long a segment may be; a target may have as many tokens as the
            longest translation of such a segment.
    """

    def __init__(self, engine: BatchedSearch, segmenter: Segmenter) -> None:
        self.engine, self.segmenter = engine, segmenter
        self.ensemble, self.decoding, self.options = engine.ensemble, engine.decoding, engine.options
        self.workers = engine.workers
        self.workers.add(self._score_batch)

    def stream(
        self,
        pairs: Iterable[Sequence[str]],
        skip_long: bool = False,
        tag: str = "",
        split_sentences: bool | None = None,
        parallelism: Parallelism = PARALLEL,
    ) -> Iterator[tuple[str, Translation | None]]:
        """Yield the source and the score of each pair (see `Translator.score_stream`)."""
        first = 1
        for chunk in read_chunks(pairs, LINES_AT_ONCE):
            srcs, tgts = [pair[0] for pair in chunk], [pair[1] for pair in chunk]
            segmented, faults = self._segment_pairs(srcs, tgts, tag, split_sentences, first)
            end = len(chunk) if skip_long else min(faults, default=len(chunk))
            order = [i for i in range(end) if i not in faults]
            scores = dict(
                zip(order, self._score_pairs([segmented[i] for i in order], parallelism), strict=True)
            )
            for i in range(end):
                yield srcs[i], Translation(tgts[i], scores[i]) if i in scores else None
            if end < len(chunk):
                raise faults[end]
            first += len(chunk)

    def score(
        self,
        srcs: Sequence[str],
        tgts: Sequence[str],
        tag: str = "",
        split_sentences: bool | None = None,
        parallelism: Parallelism = PARALLEL,
    ) -> list[Translation]:
        """Return the translations with their scores (see `Translator.score`)."""
        if len(srcs) != len(tgts):
            raise DataError(
                f"{len(srcs):,} source lines, but {len(tgts):,} target lines", hint="line n goes with line n"
            )
        segmented, faults = self._segment_pairs(srcs, tgts, tag, split_sentences)
        if faults:
            raise faults[min(faults)]
        scores = self._score_pairs(segmented, parallelism)
        return [Translation(text, score) for text, score in zip(tgts, scores, strict=True)]

    def align(
        self, pairs: Iterable[Sequence[str]], tag: str = "", parallelism: Parallelism = PARALLEL
    ) -> Iterator[WordLinks]:
        """Yield the word alignment of each pair (see `Translator.align`)."""
        src, tgt = self.ensemble.tokenizers.src, self.ensemble.tokenizers.tgt
        [tag_ids] = src.encode([tag])
        limit = self.segmenter.max_source_tokens
        max_target = self.decoding.max_length(limit)
        for chunk in read_chunks(pairs, LINES_AT_ONCE):
            srcs, tgts = [pair[0] for pair in chunk], [pair[1] for pair in chunk]
            ids = list(zip(src.encode(srcs), tgt.encode(tgts), strict=True))
            aligned = [i for i, (s, t) in enumerate(ids) if 0 < len(s) <= limit and 0 < len(t) <= max_target]
            links: dict[int, WordLinks] = {}
            tokens = [(np.concatenate([tag_ids, ids[i][0]]), ids[i][1]) for i in aligned]
            for number, attention in self.engine.align(tokens, parallelism):
                i = aligned[number]
                spans = src.spans(srcs[i]), tgt.spans(tgts[i])
                found = [
                    Link(spans[0][s - len(tag_ids)], span)
                    for s, span in zip(attention.source_indices(), spans[1], strict=True)
                    if len(tag_ids) <= s < len(tag_ids) + len(spans[0])
                ]
                links[i] = word_links(found, srcs[i], tgts[i])
            for i in range(len(chunk)):
                yield links.get(i, ())

    def _segment_pairs(
        self, srcs: Sequence[str], tgts: Sequence[str], tag: str, split_sentences: bool | None, first: int = 1
    ) -> tuple[list[_SegmentedPair], dict[int, DataError]]:
        """Split the lines as `translate` does, and their translations to match.

        Segments of the two sides can only be matched if the translation has as many sentences as the line has segments.
        Otherwise the pair is one segment.

        Returns:
            The pairs, and the error of each that cannot be scored, by its index. `first` is the first line's number.
        """
        requests = [Request(src, tag=tag, keep_case=True) for src in srcs]
        options = TranslateOptions(split_sentences=split_sentences, on_error="skip")
        lines = self.segmenter.segment_lines(requests, first - 1, options)
        src, encode = self.ensemble.tokenizers.src, self.ensemble.tokenizers.tgt.encode
        [tag_ids] = src.encode([tag])
        pairs = []
        for line, tgt, whole in zip(lines, tgts, encode(tgts), strict=True):
            src_segments, tgt_segments = [segment.ids for segment in line.segments], [whole]
            if len(src_segments) > 1:
                sentences = split_into_sentences(tgt)
                if len(sentences) == len(src_segments):
                    tgt_segments = encode(sentences)
                else:
                    [src_ids] = src.encode([line.request.text])
                    src_segments = [np.concatenate([tag_ids, src_ids])]
            elif not src_segments:  # for an empty line only the target counts
                src_segments = [np.array([], dtype=np.int32)]
            pairs.append(_SegmentedPair(src_segments, tgt_segments, len(tag_ids)))
        unreadable = {i: line.fault for i, line in enumerate(lines) if line.fault is not None}
        return pairs, self._too_long(pairs, first) | unreadable

    def _too_long(self, pairs: Sequence[_SegmentedPair], first: int) -> dict[int, DataError]:
        """Return the index and the error of each pair with a segment that is too long; `first` is the first line."""
        limit = self.segmenter.max_source_tokens
        limits = {"source": limit, "target": self.decoding.max_length(limit)}
        faults: dict[int, DataError] = {}
        for i, pair in enumerate(pairs):
            for side, length in pair.longest().items():
                if length > limits[side] and i not in faults:
                    what = f"{length:,} tokens, but a {side} line may have at most {limits[side]:,}"
                    faults[i] = DataError(what, where=f"{side} line {first + i}", hint="split the line")
        return faults

    def _score_pairs(self, pairs: Sequence[_SegmentedPair], parallelism: Parallelism) -> list[float]:
        """Return the mean score of the segments of each pair. Segments of similar length are batched."""
        src_ids = [ids for pair in pairs for ids in pair.src_segments]
        tgt_ids = [ids for pair in pairs for ids in pair.tgt_segments]
        lengths = [max(len(src), len(tgt)) + 1 for src, tgt in zip(src_ids, tgt_ids, strict=True)]
        sizes = np.array(lengths, dtype=np.int32)
        scores = np.zeros(len(sizes))
        order = np.argsort(-sizes, kind="stable")
        order = order[sizes[order] > 1]  # an empty line that stays empty has the score 0, as in `translate`
        indices = split_by_tokens(sizes, order, self.decoding.batch_tokens)
        batches = [([src_ids[i] for i in batch], [tgt_ids[i] for i in batch]) for batch in indices]
        self.ensemble.pack()
        found = self.workers.run(self._score_batch, batches, parallelism)
        for batch, own in zip(indices, found, strict=True):
            scores[batch] = own
        rest = iter(scores.tolist())
        return [sum(islice(rest, len(pair.src_segments))) / len(pair.src_segments) for pair in pairs]

    def _score_batch(self, batch: tuple[Sequence[Ids], Sequence[Ids]]) -> list[float]:
        """Return the score of each pair of token ids in a batch."""
        with out_of_memory_errors("lower decoding.batch_tokens"):
            return self.score_ids(*batch)

    @torch.inference_mode()
    def score_ids(self, src_ids: Sequence[Ids], tgt_ids: Sequence[Ids]) -> list[float]:
        """Return the score of each pair of token ids, by teacher forcing."""
        src_BS = self.ensemble.sources(src_ids)
        tgt_in_BT, tgt_out_BT = self.ensemble.targets_in(tgt_ids), self.ensemble.targets_out(tgt_ids)
        device = self.ensemble.device
        lengths_B = torch.tensor([len(ids) + 1 for ids in tgt_ids], device=device)
        real_BT = torch.arange(tgt_out_BT.shape[1], device=device) < lengths_B[:, None]
        hidden = [hidden_BTD[real_BT] for hidden_BTD in self.ensemble.hidden(src_BS, tgt_in_BT)]
        log_probs_BT = torch.zeros(real_BT.shape, device=device)
        log_probs_BT[real_BT] = self._token_log_probs(hidden, tgt_out_BT[real_BT])
        sums_B = log_probs_BT.sum(1)
        coverage_BS = self._coverage(src_BS, tgt_in_BT, real_BT) if self.options.coverage_penalty else None
        scores: list[float] = final_scores(sums_B, lengths_B, self.options, coverage_BS).tolist()
        return scores

    def _token_log_probs(self, hidden: Sequence[Tensor], tokens_N: Tensor) -> Tensor:
        """Return the log-probabilities [N] of tokens, given the hidden states [N, D] of each model."""
        # a GPU has no cache to stay in, and small products leave it idle: 0.6 GB in float32
        num_logits = LOGITS_CHUNK if self.ensemble.device.type == "cpu" else 64 * LOGITS_CHUNK
        chunk = max(1, num_logits // self.ensemble.tokenizers.tgt.vocab_size)
        found = [
            self.ensemble.log_probs([h[first : first + chunk] for h in hidden])
            .gather(1, tokens_N[first : first + chunk, None])
            .squeeze(1)
            for first in range(0, len(tokens_N), chunk)
        ]
        return torch.cat(found)

    def _coverage(self, src_BS: Tensor, tgt_in_BT: Tensor, real_BT: Tensor) -> Tensor:
        """Return the attention that each source token gets from the real target tokens, 1 at padding: [B, S]."""
        stepper = self.ensemble.stepper(src_BS, 1, keep_attention=True)
        total_BS = torch.zeros(src_BS.shape, device=self.ensemble.device)
        for position in range(tgt_in_BT.shape[1]):
            stepper.step(tgt_in_BT[:, position : position + 1])
            total_BS += stepper.attention()[:, 0] * real_BT[:, position : position + 1]
        return total_BS
