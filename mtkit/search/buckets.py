"""Buckets: what searches in fixed shapes use, one for each size of batch, kept from one batch to the next.

A bucket has the states of all models, and its calls are captured as CUDA graphs when they are first repeated.

Shapes: B sentences of a bucket, R of them that are searched (the first rows), K hypotheses of each, S source length,
D model width, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from mtkit.model.cuda_graphs import Capture, ReplayedCall, cuda_graphs, without_graphs
from mtkit.model.static import STEPS_AHEAD, Size, StaticState, num_bytes, round_up, round_up_slots, size_of
from mtkit.model.transformer import Transformer
from mtkit.search.state import SearchOptions
from mtkit.search.static_beam import StaticBeam
from mtkit.search.steppers import mean_log_probs

_SHARE_OF_MEMORY = 0.4
_MOST_BUCKETS = 96


class BucketSearch(NamedTuple):
    """Searches with the same options in a bucket.

    Attributes:
        beam: their beam.
        step: makes a whole step, of all models and of the beam.
    """

    beam: StaticBeam
    step: ReplayedCall


class Bucket:
    """The states of the models for batches of one size. Nothing refers back to it: its memory is free with it.

    Args:
        models: the models.
        size: the size.
        capture: captures the steps.
    """

    def __init__(self, models: Sequence[Transformer], size: Size, capture: Capture) -> None:
        self.models, self.size, self._capture = models, size, capture
        self.states = [StaticState(model, size) for model in models]
        B, K, device = size.sentences, size.hypotheses, self.states[0].device
        self.tokens_BK = torch.zeros(B, K, dtype=torch.long, device=device)
        """The newest tokens, for `step`."""
        self.hidden = [
            torch.zeros(B, K, model.tgt_embedding.embedding_dim, dtype=model.compute_dtype, device=device)
            for model in models
        ]
        """The hidden states [B, K, D] of each model after a `step`."""
        self._encodings = [ReplayedCall(state.encode, capture) for state in self.states]
        pairs = zip(self.states, self.hidden, strict=True)
        self._steps = [
            ReplayedCall(partial(_step, state, self.tokens_BK, hidden), capture) for state, hidden in pairs
        ]
        self._searches: dict[SearchOptions, BucketSearch] = {}

    @property
    def num_graphs(self) -> int:
        """Graphs that were captured."""
        calls = (*self._encodings, *self._steps, *(search.step for search in self._searches.values()))
        return sum(call.is_captured for call in calls)

    def load(self, index: int, src_BS: Tensor) -> None:
        """Begin with these sentences in one model."""
        self.states[index].put(src_BS)
        self._encodings[index]()

    def step(self, index: int) -> None:
        """Make a step of one model: from `tokens_BK` to `hidden[index]`."""
        self._steps[index]()

    def search(self, options: SearchOptions) -> BucketSearch:
        """Return the beam of searches with these options, and their step."""
        options = replace(options, keep_log_probs=False)  # a beam always does
        if options not in self._searches:
            beam = StaticBeam(self.size.sentences, self.size.slots, options, self.states[0].device)
            step = ReplayedCall(partial(_search_step, self.models, self.states, beam), self._capture)
            self._searches[options] = BucketSearch(beam, step)
        return self._searches[options]


def _step(state: StaticState, tokens_BK: Tensor, hidden_BKD: Tensor) -> None:
    """Make a step of one model."""
    hidden_BKD.copy_(state.step(tokens_BK))


def _search_step(models: Sequence[Transformer], states: Sequence[StaticState], beam: StaticBeam) -> None:
    """Make a step of all models and of the beam."""
    hidden = [state.step(beam.tokens_BK) for state in states]
    logits = [model.logits(h) for model, h in zip(models, hidden, strict=True)]
    parents_BK = beam.advance(mean_log_probs(logits))
    for state in states:
        state.reorder(parents_BK)


class Buckets:
    """The buckets of a translator, which searches one batch at a time in them.

    Args:
        models: the models, in evaluation mode, on one device.
        capture: captures steps; by default CUDA graphs on a GPU, and nothing on a CPU.
        max_bytes: most memory of the keys and values of all buckets; those that were not used for longest are dropped.
            By default 0.4 of what is free on a GPU, or 1 GB.
        fewest: sentences of the smallest bucket that a batch moves to, so that there are few graphs.

    Attributes:
        lock: to be held during a search.
    """

    def __init__(
        self,
        models: Sequence[Transformer],
        capture: Capture | None = None,
        max_bytes: int | None = None,
        fewest: int = 8,
    ) -> None:
        self.models, self.fewest, self.lock = tuple(models), fewest, Lock()
        self.device = next(models[0].parameters()).device
        if capture is None:
            capture = cuda_graphs(self.device) if self.device.type == "cuda" else without_graphs
        self._capture, self.max_bytes = capture, max_bytes or _memory_share(self.device)
        self._buckets: OrderedDict[Size, Bucket] = OrderedDict()

    @property
    def sizes(self) -> list[Size]:
        """The sizes of all buckets."""
        return list(self._buckets)

    @property
    def num_graphs(self) -> int:
        """Graphs that were captured and are kept."""
        return sum(bucket.num_graphs for bucket in self._buckets.values())

    def num_bytes(self, size: Size) -> int:
        """Return the memory of the keys and values of a bucket."""
        return sum(num_bytes(model, size) for model in self.models)

    def max_sentences(self, source: int, hypotheses: int) -> int:
        """Return the number of sentences whose keys and values take at most half of the memory for all buckets.

        Args:
            source: longest source; translations are assumed to be as long.
            hypotheses: K.
        """
        most = self.max_bytes // 2 // self.num_bytes(size_of(1, source, hypotheses, source))
        return max(1, 1 << max(0, most.bit_length() - 1))

    def bucket(self, size: Size) -> Bucket:
        """Return the bucket of a size; it is made if there is none."""
        if size not in self._buckets:
            total = sum(map(self.num_bytes, self._buckets)) + self.num_bytes(size)
            while self._buckets and (total > self.max_bytes or len(self._buckets) >= _MOST_BUCKETS):
                dropped, _ = self._buckets.popitem(last=False)
                total -= self.num_bytes(dropped)
            self._buckets[size] = Bucket(self.models, size, self._capture)
        self._buckets.move_to_end(size)
        return self._buckets[size]

    def enlarged(self, size: Size, num_slots: int) -> Bucket:
        """Return a bucket for a batch of this size with `num_slots` filled slots, and room for further steps."""
        needed = num_slots + STEPS_AHEAD * size.hypotheses
        return self.bucket(size if needed <= size.slots else size._replace(slots=round_up_slots(needed)))

    def reduced(self, size: Size, num_sentences: int) -> Bucket:
        """Return a bucket for what is left of a batch of this size: a smaller one if that is at most half."""
        smaller = max(round_up(num_sentences), self.fewest)
        return self.bucket(size._replace(sentences=smaller) if 2 * smaller <= size.sentences else size)


def _memory_share(device: torch.device) -> int:
    """Return the memory of all buckets on a device."""
    if device.type != "cuda":
        return 1 << 30
    free, _ = torch.cuda.mem_get_info(device)
    return int(_SHARE_OF_MEMORY * free)


class StaticStepper:
    """A Transformer in a bucket: its step has fixed shapes, whatever the search does between two steps.

    It does not know the attention of a step.

    Args:
        buckets: the buckets.
        index: index of the model among those of the buckets.
        src_BS: the sentences, padded.
        num_hypotheses: K, from the second step on.
    """

    @torch.inference_mode()
    def __init__(self, buckets: Buckets, index: int, src_BS: Tensor, num_hypotheses: int) -> None:
        self.buckets, self.index, self.model = buckets, index, buckets.models[index]
        self.vocab_size = self.model.tgt_embedding.num_embeddings
        self.bucket = buckets.bucket(size_of(len(src_BS), src_BS.shape[1], num_hypotheses))
        self.num_rows, self.num_filled = len(src_BS), 0
        self.bucket.load(index, src_BS)

    @property
    def _state(self) -> StaticState:
        return self.bucket.states[self.index]

    def step(self, tokens_BK: Tensor) -> Tensor:
        """Append the newest tokens and return the hidden states [B, K, D], which are valid until the next step."""
        size = self.bucket.size
        if self.num_filled + size.hypotheses > size.slots:
            slots_Rn = self._state.used_slots(self.num_rows, self.num_filled)
            target = self.buckets.enlarged(size, slots_Rn.shape[1])
            self._move_to(target, torch.arange(self.num_rows, device=tokens_BK.device), slots_Rn)
        self.bucket.tokens_BK[: self.num_rows] = tokens_BK  # one token of a sentence in the first step
        self.bucket.step(self.index)
        self.num_filled += size.hypotheses
        return self.bucket.hidden[self.index][: self.num_rows, : tokens_BK.shape[1]]

    def _move_to(self, target: Bucket, rows_R: Tensor, slots_Bn: Tensor) -> None:
        self._state.move_to(target.states[self.index], rows_R, slots_Bn)
        self.bucket, self.num_rows, self.num_filled = target, len(rows_R), slots_Bn.shape[1]

    def logits(self, hidden_BKD: Tensor, first: int = 0) -> Tensor:
        """Return the logits [B, K, V] of the next token."""
        return self.model.logits(hidden_BKD)

    def reorder(self, parents_BK: Tensor) -> None:
        """Continue with hypotheses `parents_BK` of each sentence."""
        self._state.reorder(parents_BK)

    def keep_rows(self, rows_B: Tensor) -> None:
        """Continue with sentences `rows_B` only."""
        if len(rows_B):
            target = self.buckets.reduced(self.bucket.size, len(rows_B))
            slots_n = torch.arange(self.num_filled, device=rows_B.device)
            self._move_to(target, rows_B, slots_n.expand(self.num_rows, -1))

    def attention(self) -> Tensor:
        """Raise: the coverage penalty needs another stepper."""
        raise NotImplementedError
