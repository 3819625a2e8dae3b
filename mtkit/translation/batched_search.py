"""Searches segments in batches of similar length, on a CPU several batches at a time (see `workers`).

Shapes: B sentences, S source length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from mtkit.config.sections import DecodingConfig
from mtkit.data.batching import Ids, split_by_tokens
from mtkit.data.segmentation import WORD_START
from mtkit.data.tokenizer import Tokenizer
from mtkit.device import out_of_memory_errors
from mtkit.languages import is_unspaced
from mtkit.search.beam import search
from mtkit.search.constraints import Constraint
from mtkit.search.sampling import SamplingOptions, sample
from mtkit.search.shortlist import ReducedVocabulary, Shortlist, TokenLists
from mtkit.search.state import Hypothesis, SearchOptions
from mtkit.search.static_search import is_supported, static_search
from mtkit.translation.alignment import SegmentAttention, align_batch, alignment_batches
from mtkit.translation.engine import Search
from mtkit.translation.ensemble import Ensemble
from mtkit.translation.mbr import make_utility, minimum_risk
from mtkit.translation.numbers import has_number, number_variants
from mtkit.translation.options import PARALLEL, Parallelism
from mtkit.translation.segments import Segment
from mtkit.translation.word_boundaries import BEGINS_UNSPACED, encode_inside, tokens_after_number
from mtkit.translation.workers import Workers

_MAX_BATCH_TOKENS_ON_CPU = 8192
"""Source tokens of a batch on a CPU. Larger batches are no faster, and lengths that differ more need more padding."""
_NUM_BATCHES_ON_CPU = 8
"""Batches on a CPU, at least, so that workers have something to do. No number of workers changes a batch, because
different batches may differ in rounding."""
_MIN_BATCH_TOKENS_ON_CPU = 4096
"""Source tokens times hypotheses of a batch on a CPU that is not divided further to have `_NUM_BATCHES_ON_CPU`: a step
takes some time whatever the number of sentences."""
_ALIGNED_AHEAD = 2
"""Batches for each worker whose attention may be in memory."""
_LOOP = 4
"""Times in a row that a phrase comes in a loop."""
_LONGEST_PHRASE = 32
"""Tokens of such a phrase, at most, so that the time for a translation is proportional to its length."""
_ZEROS = re.compile(r"[0.,'’\s]*0[0.,'’\s]*")
_NO_REPEAT_NGRAM = 3
"""Tokens that no translation repeats where it would otherwise be a loop: the most with which it cannot be one."""


class BatchedSearch:
    """Searches for the translations of segments, or samples them.

    Args:
        ensemble: the models.
        decoding: beam, penalties, batch size.
        shortlist: the tokens that a translation may consist of; None for the whole vocabulary.
        workers: compute batches at the same time; made by default, as threads.
        tgt: code of the target language; see `make_utility`.
        bleu_tokenizer: tokenizer for minimum Bayes risk with BLEU; see `make_utility`.

    Attributes:
        options: options of the beam search.
        language: code of the target language, if it is known.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        decoding: DecodingConfig,
        shortlist: Shortlist | None = None,
        workers: Workers | None = None,
        tgt: str | None = None,
        bleu_tokenizer: str | None = None,
    ) -> None:
        self.ensemble, self.decoding, self.shortlist = ensemble, decoding, shortlist
        self.options = search_options(decoding, ensemble.tokenizers.tgt)
        self.sampling = _sampling_options(decoding)
        self.language = tgt
        self.utility = None if decoding.mbr is None else make_utility(decoding.mbr, tgt, bleu_tokenizer)
        self.workers = workers or Workers(ensemble.device)
        self.workers.add(self._search_batch, self._align_batch)

    def search_segments(
        self,
        segments: Sequence[Segment],
        parallelism: Parallelism = PARALLEL,
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each segment, best first; samples in the order they were drawn.

        See `start_search`.
        """
        return self.start_search(segments, parallelism=parallelism).finish()

    def start_search(
        self,
        segments: Sequence[Segment],
        on_batch: Callable[[list[Segment]], None] | None = None,
        parallelism: Parallelism = PARALLEL,
    ) -> Search:
        """Start the search for the hypotheses of each segment. Workers begin, if there are several.

        With minimum Bayes risk these are the `n_best` of least risk. A segment whose best hypothesis lacks one of its
        required numbers is searched a second time, with the numbers as constraints: most models copy numbers by
        themselves, and then translate better without constraints. With `decoding.avoid_loops`, one whose best
        hypothesis is a loop is searched a second time too, without repeated n-grams.

        Args:
            segments: the segments.
            on_batch: called with the segments of each batch when it is done.
            parallelism: how many batches are searched at the same time.
        """
        sizes = np.array([len(segment.ids) + 1 for segment in segments], dtype=np.int32)
        indices = self._split_into_batches(sizes)
        batches = [[segments[i] for i in batch] for batch in indices]
        if self._needs_attention or any(segment.spans for segment in segments):
            self.ensemble.pack()  # PyTorch will compute attention: workers share what is packed before they are forked
        results = self.workers.run(self._search_batch, batches, parallelism)

        def finish() -> list[list[Hypothesis]]:
            found: list[list[Hypothesis]] = [[] for _ in segments]
            for own, batch, hyps in zip(indices, batches, results, strict=True):
                for i, best in zip(own, hyps, strict=True):
                    found[i] = best
                if on_batch is not None:
                    on_batch(batch)
            for revised in (self._with_lost_numbers, self._without_loops):
                if again := revised(segments, found):
                    second = self.search_segments(list(again.values()), parallelism=parallelism)
                    for i, best in zip(again, second, strict=True):
                        found[i] = best or found[i]
            return found

        return Search(finish, results.wants_more)

    def with_number_constraints(self, segment: Segment) -> Segment:
        """Return the segment with its required numbers as constraints, as far as they can be written."""
        tgt, suppressed = self.ensemble.tokenizers.tgt, set(self.options.suppressed)
        constraints = segment.constraints
        for number in segment.required_numbers:
            variants = number_variants(number)
            encoded = [tuple(ids.tolist()) for ids in tgt.encode(variants)]
            if is_unspaced(self.language):
                encoded += encode_inside(tgt, variants)
            if phrases := tuple(ids for ids in encoded if suppressed.isdisjoint(ids)):
                constraints = (*constraints, Constraint(phrases, self._tokens_after_number))
        constrained = replace(segment, constraints=constraints, required_numbers=())
        return replace(constrained, max_length=max(segment.max_length, 2 * constrained.min_length))

    @property
    def _needs_attention(self) -> bool:
        """Whether the search needs the attention between both sides. Scores of samples have no coverage penalty."""
        return self.options.coverage_penalty > 0 and not self.decoding.sample

    @cached_property
    def _tokens_after_number(self) -> frozenset[int]:
        return tokens_after_number(self.ensemble.tokenizers.tgt)

    def align(
        self, pairs: Sequence[tuple[Ids, Ids]], parallelism: Parallelism = PARALLEL
    ) -> Iterator[tuple[int, SegmentAttention]]:
        """Yield the index of each pair of source and target tokens, and the attention between its sides.

        Pairs of similar length are batched, so the order is another than that of `pairs`. Only the matrices of a few
        batches, which are large, are in memory at a time.
        """
        indices = alignment_batches(pairs, self.decoding.batch_tokens)
        batches = [[pairs[i] for i in batch] for batch in indices]
        if pairs:
            self.ensemble.pack()
        found = self.workers.run(self._align_batch, batches, parallelism, window=_ALIGNED_AHEAD)
        for own in indices:
            attention = next(found)
            yield from zip(own, attention, strict=True)
            del attention

    def _align_batch(self, pairs: list[tuple[Ids, Ids]]) -> list[SegmentAttention]:
        """Return the attention of each pair of a batch."""
        return align_batch(self.ensemble, pairs)

    def _with_lost_numbers(
        self, segments: Sequence[Segment], found: Sequence[list[Hypothesis]]
    ) -> dict[int, Segment]:
        """Return by index the segments whose best hypothesis lacks a required number, with their constraints."""
        if self.decoding.sample:
            return {}
        indices = [i for i, segment in enumerate(segments) if segment.required_numbers and found[i]]
        texts = self.ensemble.tokenizers.tgt.decode([found[i][0].ids for i in indices])
        return {
            i: self.with_number_constraints(segments[i])
            for i, text in zip(indices, texts, strict=True)
            if not all(has_number(text, number) for number in segments[i].required_numbers)
        }

    def _without_loops(
        self, segments: Sequence[Segment], found: Sequence[list[Hypothesis]]
    ) -> dict[int, Segment]:
        """Return by index the segments whose best hypothesis is a loop, with repeated n-grams forbidden."""
        if self.decoding.sample or not self.decoding.avoid_loops:
            return {}
        if 0 < self.decoding.no_repeat_ngram <= _NO_REPEAT_NGRAM:
            return {}
        return {
            i: replace(segment, no_repeat_ngram=_NO_REPEAT_NGRAM)
            for i, segment in enumerate(segments)
            if found[i] and self._is_loop_to_break(segment, found[i][0])
        }

    def _is_loop_to_break(self, segment: Segment, hyp: Hypothesis) -> bool:
        """Return whether a hypothesis is a loop, and another one may be searched for.

        A source that has a loop itself may be translated by one, and a number may end in zeros.
        """
        if segment.constraints or segment.no_repeat_ngram:
            return False
        phrase = _loop(hyp.ids)
        if not phrase or _loop(segment.ids.tolist()):
            return False
        return not _ZEROS.fullmatch(self.ensemble.tokenizers.tgt.decode([phrase])[0])

    def _split_into_batches(self, sizes: Ids) -> list[list[int]]:
        """Return the indices of the segments of each batch, the longest segments first."""
        order = np.argsort(-sizes, kind="stable")
        num_hypotheses = self.decoding.num_hypotheses
        budget = max(1, self.decoding.batch_tokens // num_hypotheses)
        if self.ensemble.device.type == "cpu":
            share = int(sizes.sum()) // _NUM_BATCHES_ON_CPU
            share = max(share, _MIN_BATCH_TOKENS_ON_CPU // num_hypotheses, 1)
            budget = min(budget, _MAX_BATCH_TOKENS_ON_CPU, share)
        return [batch.tolist() for batch in split_by_tokens(sizes, order, budget)]

    def _search_batch(self, segments: list[Segment]) -> list[list[Hypothesis]]:
        """Return the hypotheses of each segment of a batch; in parts, if they would not fit into buckets at once."""
        size, buckets = len(segments), self.ensemble.buckets
        if buckets is not None:
            longest = max(len(segment.ids) for segment in segments) + 1
            size = buckets.max_sentences(longest, self.decoding.num_hypotheses)
        with self.ensemble.exclusive():
            parts = [segments[first : first + size] for first in range(0, len(segments), size)]
            return [hyps for part in parts for hyps in self._search_part(part)]

    @torch.inference_mode()
    def _search_part(self, segments: list[Segment]) -> list[list[Hypothesis]]:
        """Return the hypotheses of segments that are searched together."""
        src_BS = self.ensemble.sources([segment.ids for segment in segments])
        max_lengths = [segment.max_length for segment in segments]
        prefixes = [segment.prefix for segment in segments]
        constraints = [segment.constraints for segment in segments]
        keeps = any(segment.keep_log_probs for segment in segments)
        # A first search has no segments with a rule of their own, a second one has only such with the same.
        no_repeat = segments[0].no_repeat_ngram or self.options.no_repeat_ngram
        options = replace(self.options, keep_log_probs=keeps, no_repeat_ngram=no_repeat)
        keep_attention, lists = self._needs_attention, self._lists(segments)
        vocabulary: ReducedVocabulary | None = None
        if lists is not None and not self.ensemble.searches_natively(keep_attention):
            vocabulary = ReducedVocabulary(lists, options.bos, self.ensemble.device)
            options, prefixes = vocabulary.options(options), vocabulary.prefixes(prefixes)
            constraints = vocabulary.constraints(constraints)
        is_plain = lists is None and not any(constraints) and is_supported(options)
        device, buckets = self.ensemble.device, self.ensemble.buckets
        with out_of_memory_errors("lower decoding.batch_tokens or the beam"):
            if buckets is not None and is_plain and not self.decoding.sample:
                return self._least_risk(static_search(buckets, src_BS, max_lengths, options, prefixes))
            num_hypotheses = self.decoding.num_hypotheses
            stepper = self.ensemble.stepper(src_BS, num_hypotheses, keep_attention, vocabulary or lists)
            if self.decoding.sample:
                keys = [segment.sample_key for segment in segments]
                found = sample(stepper, max_lengths, options, self.sampling, device, prefixes, keys)
            else:
                found = search(stepper, max_lengths, options, device, prefixes, constraints)
        return self._least_risk(found if vocabulary is None else vocabulary.restore(found))

    def _least_risk(self, found: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
        """Return all hypotheses of each segment; with minimum Bayes risk, the `n_best` of least risk."""
        if self.utility is None:
            return found
        chosen = []
        for hyps in found:
            texts = self.ensemble.tokenizers.tgt.decode([hyp.ids for hyp in hyps])
            ranked = minimum_risk(texts, self.utility)
            chosen.append([hyps[index] for index, _ in ranked[: self.decoding.n_best]])
        return chosen

    def _lists(self, segments: Sequence[Segment]) -> TokenLists | None:
        """Return the tokens that each of these segments may use; None for all."""
        if self.shortlist is None:
            return None
        return self.shortlist.lists(
            [segment.ids for segment in segments],
            [segment.prefix for segment in segments],
            [segment.constraints for segment in segments],
            self.options.eos,
            self.ensemble.tokenizers.tgt.vocab_size,
        )


def _loop(ids: Sequence[int]) -> Sequence[int]:
    """Return a phrase of tokens that comes `_LOOP` times in a row; an empty one if there is none."""
    if len(ids) - len(set(ids)) < _LOOP - 1:
        return ()
    for size in range(1, min(_LONGEST_PHRASE, len(ids) // _LOOP) + 1):
        same = 0  # tokens in a row that are those `size` before them
        for i in range(size, len(ids)):
            same = same + 1 if ids[i] == ids[i - size] else 0
            if same == size * (_LOOP - 1):
                return ids[i - size + 1 : i + 1]
    return ()


def search_options(decoding: DecodingConfig, tgt: Tokenizer) -> SearchOptions:
    """Return the options of the beam search, in tokens of the target vocabulary."""
    unused = range(tgt.num_pieces, tgt.vocab_size)
    # bos may be eos, as in fairseq
    special = [token for token in (*tgt.special, tgt.unk) if token != tgt.eos]
    # A space before a text is a token of its own where no piece has both; translations need it.
    encoded = [tuple(ids.tolist()) for ids in tgt.encode(decoding.suppress)]
    encoded += encode_inside(tgt, [text for text in decoding.suppress if BEGINS_UNSPACED.match(text)])
    chosen = {token for ids in encoded for token in ids if len(ids) == 1 or tgt.piece(token) != WORD_START}
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
