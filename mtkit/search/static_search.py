"""Beam search, or greedy search with a beam of one, whose whole step has fixed shapes, so that it can be captured.

It finds what `beam.search` finds. A step is one call of a bucket: the models, the choice among their continuations, the
bookkeeping of the beam, and the reordering of the caches. Every few steps it reads which sentences are done; they are
only hidden until at most half of the batch is left, which then moves to a smaller bucket.

Shapes: B sentences, R of them that are searched (the first rows), S source length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtkit.model.static import size_of
from mtkit.search.buckets import Bucket, Buckets
from mtkit.search.scores import nan_error
from mtkit.search.state import SYNC_EVERY_STEPS, Hypothesis, SearchOptions, remaining_rows, rows_on


def is_supported(options: SearchOptions) -> bool:
    """Return whether a search has no options besides those of fixed shapes.

    These are beam size, length penalty, stop rule, limits of length, prefixes and suppressed tokens.
    """
    rules = options.coverage_penalty or options.no_repeat_ngram or options.groups > 1 or options.renormalize
    return not rules and not options.after_prefix and options.eos not in options.suppressed


@torch.inference_mode()
def static_search(
    buckets: Buckets,
    src_BS: Tensor,
    max_lengths: Sequence[int],
    options: SearchOptions,
    prefixes: Sequence[Sequence[int]],
) -> list[list[Hypothesis]]:
    """Return the `n_best` hypotheses of each sentence, best first.

    Args:
        buckets: the models.
        src_BS: the sentences, padded.
        max_lengths: for each sentence, the most tokens of a hypothesis, eos included; at least 1.
        options: options that are supported.
        prefixes: for each sentence, the tokens that its hypotheses start with; fewer than its `max_lengths`.

    Raises:
        TrainingError: If the logits are NaN.
    """
    results: list[list[Hypothesis]] = [[] for _ in max_lengths]
    if not results:
        return results
    batch = _Batch(buckets, src_BS, max_lengths, options, prefixes)
    longest = max(max_lengths)
    while batch.sentences:
        batch.step()
        if batch.length % SYNC_EVERY_STEPS and batch.length < longest:
            continue
        done = batch.beam.done_B[: len(batch.sentences)].tolist()
        if batch.length >= longest and not all(done):
            raise nan_error()
        kept = remaining_rows(done)
        target = buckets.reduced(batch.bucket.size, len(kept)) if kept else None
        if target is not batch.bucket:
            batch.write_results([row for row, is_done in enumerate(done) if is_done], results)
            batch.keep_rows(kept, target)
    return results


class _Batch:
    """Sentences of a batch that are left, in the bucket where they are searched.

    Args:
        buckets: the models.
        src_BS: the sentences, padded.
        max_lengths: for each sentence, the most tokens of a hypothesis.
        options: options of the search.
        prefixes: for each sentence, the tokens that its hypotheses start with.
    """

    def __init__(
        self,
        buckets: Buckets,
        src_BS: Tensor,
        max_lengths: Sequence[int],
        options: SearchOptions,
        prefixes: Sequence[Sequence[int]],
    ) -> None:
        self.buckets, self.options = buckets, options
        self.sentences = list(range(len(max_lengths)))
        """The sentence of each row, as an index into the caller's order."""
        self.length = self.num_filled = 0
        size = size_of(len(src_BS), src_BS.shape[1], options.beam_size, max(map(len, prefixes)))
        self.bucket = buckets.bucket(size)
        for index in range(len(self.bucket.states)):
            self.bucket.load(index, src_BS)
        self.beam, self._search_step = self.bucket.search(options)
        self.beam.start(max_lengths, prefixes)

    def step(self) -> None:
        """Append a token to each hypothesis."""
        size = self.bucket.size
        if self.num_filled + size.hypotheses > size.slots:
            num_rows = len(self.sentences)
            slots_Rn = self.bucket.states[0].used_slots(num_rows, self.num_filled)
            rows_R = torch.arange(num_rows, device=slots_Rn.device)
            self._move_to(self.buckets.enlarged(size, slots_Rn.shape[1]), rows_R, slots_Rn)
        self._search_step()
        self.num_filled += size.hypotheses
        self.length += 1

    def write_results(self, rows: Sequence[int], results: list[list[Hypothesis]]) -> None:
        """Write the hypotheses of these rows into `results`."""
        for row, found in zip(rows, self.beam.results(rows, self.length, self.options), strict=True):
            results[self.sentences[row]] = found

    def keep_rows(self, rows: Sequence[int], target: Bucket | None) -> None:
        """Continue with these rows only in another bucket; None if there are none."""
        if target is not None:
            rows_R = rows_on(self.buckets.device, rows)
            slots_n = torch.arange(self.num_filled, device=self.buckets.device)
            self._move_to(target, rows_R, slots_n.expand(len(self.sentences), -1))
        self.sentences = [self.sentences[row] for row in rows]

    def _move_to(self, target: Bucket, rows_R: Tensor, slots_Bn: Tensor) -> None:
        for own, new in zip(self.bucket.states, target.states, strict=True):
            own.move_to(new, rows_R, slots_Bn)
        if target is not self.bucket:
            before, (self.beam, self._search_step) = self.beam, target.search(self.options)
            before.move_to(self.beam, rows_R)
        self.bucket, self.num_filled = target, slots_Bn.shape[1]
