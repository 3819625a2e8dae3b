"""Searches segments in batches of similar length, on a CPU several batches at a time.

Shapes: B sentences, S source length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from mtkit.config.sections import DecodingConfig
from mtkit.data.batching import Ids, split_by_tokens
from mtkit.data.tokenizer import Tokenizer
from mtkit.device import out_of_memory_errors
from mtkit.search.beam import search
from mtkit.search.constraints import Constraint
from mtkit.search.sampling import SamplingOptions, sample
from mtkit.search.shortlist import ReducedVocabulary, Shortlist
from mtkit.search.state import Hypothesis, SearchOptions
from mtkit.translation.alignment import SegmentAttention, align
from mtkit.translation.ensemble import Ensemble
from mtkit.translation.mbr import make_utility, minimum_risk
from mtkit.translation.numbers import has_number, number_variants
from mtkit.translation.options import MAX_WORKERS
from mtkit.translation.segments import Segment
from mtkit.translation.word_boundaries import tokens_after_number

_MAX_BATCH_TOKENS_ON_CPU = 8192
"""Source tokens of a batch on a CPU. Larger batches are no faster, and lengths that differ more need more padding."""


class BatchedSearch:
    """Searches for the translations of segments, or samples them.

    Args:
        ensemble: the models.
        decoding: beam, penalties, batch size.
        shortlist: the tokens that a translation may consist of; None for the whole vocabulary.

    Attributes:
        options: options of the beam search.
    """

    def __init__(
        self, ensemble: Ensemble, decoding: DecodingConfig, shortlist: Shortlist | None = None
    ) -> None:
        self.ensemble, self.decoding, self.shortlist = ensemble, decoding, shortlist
        self.options = search_options(decoding, ensemble.tokenizers.tgt)
        self.sampling = _sampling_options(decoding)
        self.utility = None if decoding.mbr is None else make_utility(decoding.mbr)

    def search_segments(
        self,
        segments: Sequence[Segment],
        on_batch: Callable[[list[Segment]], None] | None = None,
        num_workers: int = MAX_WORKERS,
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each segment, best first; samples in the order they were drawn.

        With minimum Bayes risk these are the `n_best` of least risk. A segment whose best hypothesis lacks one of its
        required numbers is searched a second time, with the numbers as constraints: most models copy numbers by
        themselves, and then translate better without constraints.

        Args:
            segments: the segments.
            on_batch: called with the segments of each batch when it is done.
            num_workers: batches that may be searched at the same time on a CPU.
        """
        on_cpu = self.ensemble.device.type == "cpu"
        num_workers = min(torch.get_num_threads(), num_workers) if on_cpu else 1
        sizes = np.array([len(segment.ids) + 1 for segment in segments], dtype=np.int32)
        indices = self._split_into_batches(sizes, num_workers)
        batches = [[segments[i] for i in batch] for batch in indices]
        found: list[list[Hypothesis]] = [[] for _ in segments]
        results = self._search_batches(batches, num_workers)
        for own, batch, hyps in zip(indices, batches, results, strict=True):
            for i, best in zip(own, hyps, strict=True):
                found[i] = best
            if on_batch is not None:
                on_batch(batch)
        if again := self._lacking_numbers(segments, found):
            constrained = [self.with_number_constraints(segments[i]) for i in again]
            second = self.search_segments(constrained, num_workers=num_workers)
            for i, best in zip(again, second, strict=True):
                found[i] = best or found[i]
        return found

    def with_number_constraints(self, segment: Segment) -> Segment:
        """Return the segment with its required numbers as constraints, as far as they can be written."""
        tgt, suppressed = self.ensemble.tokenizers.tgt, set(self.options.suppressed)
        constraints = segment.constraints
        for number in segment.required_numbers:
            encoded = [tuple(ids.tolist()) for ids in tgt.encode(number_variants(number))]
            if phrases := tuple(ids for ids in encoded if suppressed.isdisjoint(ids)):
                constraints = (*constraints, Constraint(phrases, self._tokens_after_number))
        constrained = replace(segment, constraints=constraints, required_numbers=())
        return replace(constrained, max_length=max(segment.max_length, 2 * constrained.min_length))

    @cached_property
    def _tokens_after_number(self) -> frozenset[int]:
        return tokens_after_number(self.ensemble.tokenizers.tgt)

    def align(self, pairs: Sequence[tuple[Ids, Ids]]) -> Iterator[tuple[int, SegmentAttention]]:
        """Yield the index of each pair of source and target tokens, and the attention between its sides."""
        return align(self.ensemble, pairs, self.decoding.batch_tokens)

    def _lacking_numbers(self, segments: Sequence[Segment], found: Sequence[list[Hypothesis]]) -> list[int]:
        """Return the indices of the segments whose best hypothesis lacks a required number."""
        if self.decoding.sample:
            return []
        indices = [i for i, segment in enumerate(segments) if segment.required_numbers and found[i]]
        texts = self.ensemble.tokenizers.tgt.decode([found[i][0].ids for i in indices])
        return [
            i
            for i, text in zip(indices, texts, strict=True)
            if not all(has_number(text, number) for number in segments[i].required_numbers)
        ]

    def _split_into_batches(self, sizes: Ids, num_workers: int) -> list[list[int]]:
        """Return the indices of the segments of each batch, the longest segments first.

        If there are several batches, every worker gets about as many: otherwise one would be left with the last batch
        while the others wait.
        """
        order = np.argsort(-sizes, kind="stable")
        budget = max(1, self.decoding.batch_tokens // self.decoding.num_hypotheses)
        if self.ensemble.device.type == "cpu":
            budget = min(budget, _MAX_BATCH_TOKENS_ON_CPU)
        batches = split_by_tokens(sizes, order, budget)
        wanted = -(-len(batches) // num_workers) * num_workers
        while 1 < len(batches) < min(wanted, len(order)):
            budget = max(1, budget * len(batches) // wanted)
            batches = split_by_tokens(sizes, order, budget)
        return [batch.tolist() for batch in batches]

    def _search_batches(
        self, batches: list[list[Segment]], num_workers: int
    ) -> Iterator[list[list[Hypothesis]]]:
        """Yield the hypotheses of each batch. Workers share the threads evenly."""
        num_threads = torch.get_num_threads()
        num_workers = min(num_workers, len(batches))
        if num_workers < 2:
            yield from map(self._search_batch, batches)
            return

        def search_in_worker(batch: list[Segment]) -> list[list[Hypothesis]]:
            # This holds for this worker, and for threads that are yet to start.
            torch.set_num_threads(max(1, num_threads // num_workers))
            return self._search_batch(batch)

        pool = ThreadPoolExecutor(num_workers)
        try:
            yield from pool.map(search_in_worker, batches)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(num_threads)

    @torch.inference_mode()
    def _search_batch(self, segments: list[Segment]) -> list[list[Hypothesis]]:
        """Return the hypotheses of each segment of a batch."""
        src_BS = self.ensemble.sources([segment.ids for segment in segments])
        max_lengths = [segment.max_length for segment in segments]
        prefixes = [segment.prefix for segment in segments]
        constraints = [segment.constraints for segment in segments]
        keeps = any(segment.keep_log_probs for segment in segments)
        options, vocabulary = replace(self.options, keep_log_probs=keeps), self._reduced_vocabulary(segments)
        if vocabulary is not None:
            options, prefixes = vocabulary.options(options), vocabulary.prefixes(prefixes)
            constraints = vocabulary.constraints(constraints)
        device, keep_attention = self.ensemble.device, options.coverage_penalty > 0
        with out_of_memory_errors("lower decoding.batch_tokens or the beam"):
            stepper = self.ensemble.stepper(src_BS, keep_attention, vocabulary)
            if self.decoding.sample:
                keys = [segment.sample_key for segment in segments]
                found = sample(stepper, max_lengths, options, self.sampling, device, prefixes, keys)
            else:
                found = search(stepper, max_lengths, options, device, prefixes, constraints)
        if vocabulary is not None:
            found = vocabulary.restore(found)
        return found if self.utility is None else list(map(self._least_risk, found))

    def _reduced_vocabulary(self, segments: Sequence[Segment]) -> ReducedVocabulary | None:
        """Return the tokens that these segments may use; None for all."""
        if self.shortlist is None:
            return None
        return ReducedVocabulary(
            self.shortlist,
            [segment.ids for segment in segments],
            [segment.prefix for segment in segments],
            [segment.constraints for segment in segments],
            self.options,
            self.ensemble.tokenizers.tgt.vocab_size,
            self.ensemble.device,
        )

    def _least_risk(self, hyps: list[Hypothesis]) -> list[Hypothesis]:
        """Return the `n_best` hypotheses of least Bayes risk."""
        assert self.utility is not None
        texts = self.ensemble.tokenizers.tgt.decode([hyp.ids for hyp in hyps])
        ranked = minimum_risk(texts, self.utility)
        return [hyps[index] for index, _ in ranked[: self.decoding.n_best]]


def search_options(decoding: DecodingConfig, tgt: Tokenizer) -> SearchOptions:
    """Return the options of the beam search, in tokens of the target vocabulary."""
    unused = range(tgt.num_pieces, tgt.vocab_size)
    special = [
        token for token in (*tgt.special, tgt.unk) if token != tgt.eos
    ]  # bos may be eos, as in fairseq
    chosen = {token for ids in tgt.encode(decoding.suppress) for token in ids.tolist()}
    return SearchOptions(
        beam_size=decoding.mbr_candidates if decoding.mbr else decoding.beam_size,
        bos=tgt.bos,
        eos=tgt.eos,
        n_best=decoding.mbr_candidates if decoding.mbr else min(decoding.n_best, decoding.beam_size),
        length_penalty=decoding.length_penalty,
        suppressed=tuple(dict.fromkeys((*special, *unused, *sorted(chosen)))),
        penalty_kind=decoding.penalty_kind,
        coverage_penalty=decoding.coverage_penalty,
        stop=decoding.stop,
        min_length=decoding.min_pieces,
        no_repeat_ngram=decoding.no_repeat_ngram,
        groups=decoding.groups if not decoding.mbr else 1,
        diversity=decoding.diversity,
        renormalize=decoding.renormalize,
    )


def _sampling_options(decoding: DecodingConfig) -> SamplingOptions:
    """Return the options of sampling."""
    return SamplingOptions(
        num_samples=decoding.num_hypotheses,
        temperature=decoding.temperature,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        epsilon=decoding.epsilon,
        seed=decoding.sample_seed,
    )
