"""Parts in, hypotheses out: batches of similar length, on a CPU several at a time, in the order of the parts.

Shapes: B sentences, S source length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from mtkit.config import DecodingConfig
from mtkit.data.batching import Ids, Indices, split_by_budget
from mtkit.data.tokenizer import Tokenizer
from mtkit.decoding.ensemble import Ensemble
from mtkit.decoding.requests import Part
from mtkit.decoding.sampling import SamplingOptions, sample
from mtkit.decoding.search import Hypothesis, SearchOptions, search_until
from mtkit.device import out_of_memory_named

MOST_WORKERS = 4
"""Batches that are searched at the same time on a CPU: the small operations of one fill the pauses of the others."""

STRAGGLERS = 1 / 16
"""Share of a batch that is given up and searched anew with that of the others."""


class BatchSearch:
    """Searches parts, or draws samples of their translations.

    Args:
        ensemble: the models.
        decoding: beam, penalties, size of the batches.
    """

    def __init__(self, ensemble: Ensemble, decoding: DecodingConfig) -> None:
        self.ensemble, self.decoding = ensemble, decoding
        self.options = search_options(decoding, ensemble.tokenizers.tgt)
        self.sampling = sampling_options(decoding)
        self.num_workers = MOST_WORKERS
        """Batches that may be searched at the same time."""
        self.on_batch: Callable[[int], None] = lambda num_parts: None
        """Told after each batch how many parts were searched."""

    def search_parts(self, parts: Sequence[Part]) -> list[list[Hypothesis]]:
        """The hypotheses of each part, best first; samples in the order they were drawn.

        The last few sentences of a batch would cost as much for each step as many do. They are given up, and searched
        anew together with those of the other batches.
        """
        found: dict[int, list[Hypothesis]] = {}
        sizes = np.array([len(part.ids) + 1 for part in parts], dtype=np.int32)
        while len(found) < len(parts):
            waiting = np.array([i for i in range(len(parts)) if i not in found], dtype=np.int64)
            batches = self._batches(sizes, waiting[np.argsort(-sizes[waiting], kind="stable")])
            left_share = STRAGGLERS if len(batches) > 1 else 0.0
            for batch, of_batch in self._run(
                batches, lambda batch: [parts[i] for i in batch.tolist()], left_share
            ):
                found |= {int(batch[row]): hypotheses for row, hypotheses in of_batch.items()}
                self.on_batch(len(of_batch))
        return [found[i] for i in range(len(parts))]

    def _batches(self, sizes: Ids, order: Indices) -> list[Indices]:
        """Batches in this order; if there are several, as many for each of the workers."""
        budget = max(1, self.decoding.batch_tokens // self.decoding.num_hypotheses)
        batches = split_by_budget(sizes, order, budget)
        wanted = -(-len(batches) // self._most_workers()) * self._most_workers()
        while 1 < len(batches) < min(wanted, len(order)):
            budget = max(1, budget * len(batches) // wanted)
            batches = split_by_budget(sizes, order, budget)
        return batches

    def _most_workers(self) -> int:
        on_cpu = self.ensemble.device.type == "cpu"
        return min(torch.get_num_threads(), self.num_workers) if on_cpu else 1

    def _run(
        self, batches: list[Indices], parts_of: Callable[[Indices], list[Part]], left_share: float
    ) -> Iterator[tuple[Indices, dict[int, list[Hypothesis]]]]:
        """Search batches, on a CPU several at a time, each with its share of the threads."""
        num_threads = torch.get_num_threads()
        num_workers = min(self._most_workers(), len(batches))
        if num_workers < 2:
            yield from ((batch, self._search_batch(parts_of(batch), left_share)) for batch in batches)
            return

        def work(batch: Indices) -> dict[int, list[Hypothesis]]:
            torch.set_num_threads(max(1, num_threads // num_workers))  # of this worker alone
            return self._search_batch(parts_of(batch), left_share)

        pool = ThreadPoolExecutor(num_workers)
        try:
            yield from zip(batches, pool.map(work, batches), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)

    @torch.inference_mode()
    def _search_batch(self, parts: list[Part], left_share: float) -> dict[int, list[Hypothesis]]:
        """The hypotheses of all parts but the last few, by their numbers in the batch."""
        src_BS = self.ensemble.sources([part.ids for part in parts])
        max_lengths, prefixes = [part.max_length for part in parts], [part.prefix for part in parts]
        options, device = self.options, self.ensemble.device
        with out_of_memory_named("lower decoding.batch_tokens (--batch-tokens) or the beam"):
            stepper = self.ensemble.stepper(src_BS, keep_attention=options.coverage_penalty > 0)
            if self.decoding.sample:
                numbers = [part.numbers for part in parts]
                drawn = sample(stepper, max_lengths, options, self.sampling, device, prefixes, numbers)
                return dict(enumerate(drawn))
            constraints = [part.constraints for part in parts]
            num_left = int(left_share * len(parts))
            return search_until(num_left, stepper, max_lengths, options, device, prefixes, constraints)


def search_options(decoding: DecodingConfig, tgt: Tokenizer) -> SearchOptions:
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


def sampling_options(decoding: DecodingConfig) -> SamplingOptions:
    """What samples are drawn from."""
    return SamplingOptions(
        num_samples=decoding.num_hypotheses,
        temperature=decoding.temperature,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        epsilon=decoding.epsilon,
        seed=decoding.sample_seed,
    )
