"""Parts in, hypotheses out: batches of similar length, on a CPU several at a time, in the order of the parts.

Shapes: B sentences, S source length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from mtkit.config.sections import DecodingConfig
from mtkit.data.batching import Ids, split_by_tokens
from mtkit.data.tokenizer import Tokenizer
from mtkit.device import out_of_memory_errors
from mtkit.search.beam import search
from mtkit.search.sampling import SamplingOptions, sample
from mtkit.search.state import Hypothesis, SearchOptions
from mtkit.translation.ensemble import Ensemble
from mtkit.translation.mbr import make_utility, minimum_risk
from mtkit.translation.options import MAX_WORKERS
from mtkit.translation.segments import Segment

_MAX_BATCH_TOKENS_ON_CPU = 8192
"""Source pieces in a batch on a CPU: more are no faster, and lengths that differ more are padded more."""


class BatchedSearch:
    """Searches parts, or draws samples of their translations.

    Args:
        ensemble: the models.
        decoding: beam, penalties, size of the batches.
    """

    def __init__(self, ensemble: Ensemble, decoding: DecodingConfig) -> None:
        self.ensemble, self.decoding = ensemble, decoding
        self.options = _search_options(decoding, ensemble.tokenizers.tgt)
        self.sampling = _sampling_options(decoding)
        self.utility = None if decoding.mbr is None else make_utility(decoding.mbr)

    def search_segments(
        self,
        parts: Sequence[Segment],
        on_batch: Callable[[Sequence[int]], None] | None = None,
        num_workers: int = MAX_WORKERS,
    ) -> list[list[Hypothesis]]:
        """The hypotheses of each part, best first; samples in the order they were drawn.

        With minimum Bayes risk these are the `n_best` of least risk; as soon as a batch is searched, they are chosen.

        Args:
            on_batch: told after each batch which parts it had.
            num_workers: batches that may be searched at the same time on a CPU.
        """
        on_cpu = self.ensemble.device.type == "cpu"
        num_workers = min(torch.get_num_threads(), num_workers) if on_cpu else 1
        found: list[list[Hypothesis]] = [[] for _ in parts]
        sizes = np.array([len(part.ids) + 1 for part in parts], dtype=np.int32)
        for batch, hypotheses in self._run(parts, self._batches(sizes, num_workers), num_workers):
            for index, best in zip(batch, hypotheses, strict=True):
                found[index] = best
            if on_batch is not None:
                on_batch(batch)
        return found

    def _batches(self, sizes: Ids, num_workers: int) -> list[list[int]]:
        """Parts of similar length together, the longest first; if there are several, about as many for each worker.

        Otherwise one worker would end with a batch while the others wait.
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

    def _run(
        self, parts: Sequence[Segment], batches: list[list[int]], num_workers: int
    ) -> Iterator[tuple[list[int], list[list[Hypothesis]]]]:
        """Search batches, on a CPU several at a time, each with its share of the threads."""
        num_threads = torch.get_num_threads()
        num_workers = min(num_workers, len(batches))
        if num_workers < 2:
            yield from ((batch, self._search_batch([parts[i] for i in batch])) for batch in batches)
            return

        def work(batch: list[int]) -> list[list[Hypothesis]]:
            torch.set_num_threads(
                max(1, num_threads // num_workers)
            )  # of this worker, and of threads yet to begin
            return self._search_batch([parts[i] for i in batch])

        pool = ThreadPoolExecutor(num_workers)
        try:
            yield from zip(batches, pool.map(work, batches), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(num_threads)

    def _search_batch(self, parts: list[Segment]) -> list[list[Hypothesis]]:
        return list(map(self._chosen, self._hypotheses(parts)))

    def _chosen(self, hypotheses: list[Hypothesis]) -> list[Hypothesis]:
        """Those of least risk, if that is asked for."""
        if self.utility is None:
            return hypotheses
        texts = self.ensemble.tokenizers.tgt.decode([hypothesis.ids for hypothesis in hypotheses])
        ranked = minimum_risk(texts, self.utility)
        return [hypotheses[number] for number, _ in ranked[: self.decoding.n_best]]

    @torch.inference_mode()
    def _hypotheses(self, parts: list[Segment]) -> list[list[Hypothesis]]:
        src_BS = self.ensemble.sources([part.ids for part in parts])
        max_lengths, prefixes = [part.max_length for part in parts], [part.prefix for part in parts]
        device = self.ensemble.device
        with out_of_memory_errors("lower decoding.batch_tokens or the beam"):
            stepper = self.ensemble.stepper(src_BS, keep_attention=self.options.coverage_penalty > 0)
            if self.decoding.sample:
                numbers = [part.numbers for part in parts]
                return sample(stepper, max_lengths, self.options, self.sampling, device, prefixes, numbers)
            constraints = [part.constraints for part in parts]
            return search(stepper, max_lengths, self.options, device, prefixes, constraints)


def _search_options(decoding: DecodingConfig, tgt: Tokenizer) -> SearchOptions:
    """What the search looks for, in pieces of the target vocabulary."""
    unused = range(tgt.num_pieces, tgt.vocab_size)
    chosen = {piece for ids in tgt.encode(decoding.suppress) for piece in ids.tolist()}
    return SearchOptions(
        beam_size=decoding.mbr_candidates if decoding.mbr else decoding.beam_size,
        bos=tgt.bos,
        eos=tgt.eos,
        n_best=decoding.mbr_candidates if decoding.mbr else min(decoding.n_best, decoding.beam_size),
        length_penalty=decoding.length_penalty,
        suppressed=tuple(dict.fromkeys((tgt.pad, tgt.bos, tgt.unk, *unused, *sorted(chosen)))),
        penalty_kind=decoding.penalty_kind,
        coverage_penalty=decoding.coverage_penalty,
        stop=decoding.stop,
        min_length=decoding.min_pieces,
        no_repeat_ngram=decoding.no_repeat_ngram,
        groups=decoding.groups if not decoding.mbr else 1,
        diversity=decoding.diversity,
    )


def _sampling_options(decoding: DecodingConfig) -> SamplingOptions:
    """What samples are drawn from."""
    return SamplingOptions(
        num_samples=decoding.num_hypotheses,
        temperature=decoding.temperature,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        epsilon=decoding.epsilon,
        seed=decoding.sample_seed,
    )
