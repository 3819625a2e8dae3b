"""The data of a search: its options, its live and finished hypotheses, and the interface of the model it queries.

Shapes: B sentences still in the batch, K beam, G groups of the beam, C candidates of a group, V vocabulary,
T tokens so far, S source length, P longest prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import numpy.typing as npt
import torch
from torch import Tensor

from mtkit.device import to_device

NEG_INF = float("-inf")
"""The log-probability of what must not happen."""


class Stepper(Protocol):
    """A model that holds the source sentences and predicts one token after the other."""

    @property
    def vocab_size(self) -> int:
        """V: size of the target vocabulary."""

    def step(self, tokens_BK: Tensor) -> Tensor:
        """Append the newest tokens [B, K] to the hypotheses and return their hidden states [B, K, any size]."""

    def logits(self, hidden_BKD: Tensor, first: int = 0) -> Tensor:
        """Return the logits [B, K, V] of the next token in consecutive sentences, of which `first` is the first."""

    def reorder(self, parents_BK: Tensor) -> None:
        """Continue with hypotheses `parents_BK` of each sentence, in this order; K may differ from before."""

    def keep_rows(self, rows_B: Tensor) -> None:
        """Continue with sentences `rows_B` only, in this order."""

    def attention(self) -> Tensor:
        """Return the attention [B, K, S] of the last step, 1 at padding. Needed for the coverage penalty only."""


@dataclass(frozen=True)
class BestTokens:
    """The most probable tokens after each hypothesis."""

    log_probs_BKC: Tensor  # best first; -inf where there are fewer
    tokens_BKC: Tensor
    eos_log_probs_BK: Tensor


@runtime_checkable
class BestTokensStepper(Stepper, Protocol):
    """A stepper that finds the most probable tokens faster than by all logits."""

    def best_tokens(self, hidden_BKD: Tensor, number: int, forbidden: Sequence[int], eos: int) -> BestTokens:
        """Return the most probable tokens that are not forbidden, and the log-probability of eos."""


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search.

    Args:
        beam_size: K, hypotheses kept at each step; 1 is greedy search.
        bos: token that every hypothesis starts with.
        eos: token that ends a hypothesis.
        n_best: finished hypotheses returned for each sentence; at most `beam_size`.
        length_penalty: alpha of the length penalty; 0 ranks by log-probability.
        suppressed: tokens that never appear.
        penalty_kind: gnmt is ((5 + length) / 6) ** alpha (Wu et al. 2016, eq. 14), simple is length ** alpha.
        coverage_penalty: beta of Wu et al. 2016, eq. 14; 0 is off.
        stop: when a sentence is done, see `beam.is_done`.
        min_length: tokens before eos, at least.
        no_repeat_ngram: no n-gram of this size appears twice; 0 is off.
        groups: G, groups of diverse beam search (Vijayakumar et al. 2018); divides `beam_size`.
        diversity: penalty of a token for each hypothesis of an earlier group that chose it at the same step.
        after_prefix: the only tokens allowed right after a prefix; empty allows any.
        renormalize: whether the probabilities of the tokens that the rules allow are scaled to add up to 1.
        keep_log_probs: whether hypotheses keep the log-probability of each token.
    """

    beam_size: int
    bos: int
    eos: int
    n_best: int = 1
    length_penalty: float = 1.0
    suppressed: tuple[int, ...] = ()
    penalty_kind: Literal["gnmt", "simple"] = "gnmt"
    coverage_penalty: float = 0.0
    stop: Literal["finished", "unbeaten", "all_unbeaten", "certain"] = "unbeaten"
    min_length: int = 0
    no_repeat_ngram: int = 0
    groups: int = 1
    diversity: float = 0.5
    after_prefix: tuple[int, ...] = ()
    renormalize: bool = False
    keep_log_probs: bool = False

    @cached_property
    def suppressed_ranges(self) -> list[tuple[int, int]]:
        """First and last + 1 of each run of suppressed tokens: slices are filled without an index on the device."""
        tokens = sorted({*self.suppressed})
        ends = [i for i, (token, other) in enumerate(pairwise(tokens), 1) if other != token + 1]
        starts = [0, *ends]
        return [
            (tokens[i], tokens[j - 1] + 1)
            for i, j in zip(starts, [*ends, len(tokens)], strict=True)
            if tokens
        ]


@dataclass(frozen=True)
class Hypothesis:
    """A finished translation."""

    ids: list[int]
    """Its tokens, without bos and eos."""
    score: float
    """Log-probability over length penalty, plus coverage penalty: what hypotheses are ranked by."""
    log_prob: float
    """Sum of the natural log-probabilities of its tokens and of eos."""
    token_log_probs: tuple[float, ...] = ()
    """Log-probability of each token and of eos, if the search keeps them."""


@dataclass
class Beam:
    """The live hypotheses, and the K best finished ones, of each sentence. Every field has a row for each sentence."""

    sentences_B: Tensor  # index in the caller's order
    max_lengths_B: Tensor  # most tokens, eos included
    prefixes_BP: Tensor  # tokens that a hypothesis must start with, then -1
    tokens_BKT: Tensor  # live hypotheses, starting with bos
    log_probs_BK: Tensor  # of live hypotheses; -inf where there are fewer than K
    sums_BKT: Tensor  # log-probability of a live hypothesis up to each of its tokens, if that is kept
    coverage_BKS: Tensor  # attention received by each source token so far; S is 0 without coverage penalty
    finished_scores_BK: Tensor  # best first; -inf where there are fewer than K
    finished_log_probs_BK: Tensor
    finished_sums_BKT: Tensor  # log-probability up to each token and eos, padded with 0
    finished_tokens_BKT: Tensor  # without bos, padded with eos
    num_finished_B: Tensor  # hypotheses finished so far, also those that dropped out of the K best

    @property
    def length(self) -> int:
        """Tokens in the live hypotheses, not counting bos."""
        return self.tokens_BKT.shape[2] - 1


class StoppingState(Protocol):
    """Numbers that decide which sentences of a beam are done."""

    max_lengths_B: Tensor
    log_probs_BK: Tensor
    finished_scores_BK: Tensor
    num_finished_B: Tensor

    @property
    def length(self) -> int | Tensor:
        """Tokens in the live hypotheses, not counting bos."""


@dataclass
class Candidates:
    """The most probable continuations in each group, best first. Only the first K/G of a group may finish."""

    log_probs_BGC: Tensor
    parents_BGC: Tensor  # the live hypothesis that each one continues, an index into K
    tokens_BGC: Tensor
    ends_BGC: Tensor  # True where the token is eos


def init_beam(
    max_lengths: Sequence[int],
    options: SearchOptions,
    device: torch.device | str,
    prefixes: Sequence[Sequence[int]],
) -> Beam:
    """Return a beam with one live hypothesis for each sentence: bos."""
    B, K = len(max_lengths), options.beam_size
    return Beam(
        sentences_B=torch.arange(B, device=device),
        max_lengths_B=to_device(torch.tensor(max_lengths, dtype=torch.long), device),
        prefixes_BP=pad_prefixes(prefixes, device),
        tokens_BKT=torch.full((B, 1, 1), options.bos, device=device),
        log_probs_BK=torch.zeros(B, 1, device=device),
        sums_BKT=torch.zeros(B, 1, 1, device=device),
        coverage_BKS=torch.zeros(B, 1, 1 if options.coverage_penalty else 0, device=device),
        finished_scores_BK=torch.full((B, K), NEG_INF, device=device),
        finished_log_probs_BK=torch.full((B, K), NEG_INF, device=device),
        finished_sums_BKT=torch.zeros(B, K, 0, device=device),
        finished_tokens_BKT=torch.full((B, K, 0), options.eos, device=device),
        num_finished_B=torch.zeros(B, dtype=torch.long, device=device),
    )


def pad_prefixes(prefixes: Sequence[Sequence[int]], device: torch.device | str) -> Tensor:
    """Return the prefixes as one tensor [B, P], padded with -1."""
    P = max(map(len, prefixes), default=0)
    padded = [[*prefix, *[-1] * (P - len(prefix))] for prefix in prefixes]
    return to_device(torch.tensor(padded, dtype=torch.long).view(len(prefixes), P), device)


SYNC_EVERY_STEPS = 8
"""Steps between synchronizations of a search on a GPU: reading which sentences are done waits for it."""


def should_sync(length: int, longest: int, device: torch.device) -> bool:
    """Return whether a search reads which sentences are done after `length` of at most `longest` steps."""
    return device.type == "cpu" or length % SYNC_EVERY_STEPS == 0 or length >= longest


def any_or_unknown(condition: Tensor) -> bool:
    """Return whether any element is true; always True on a GPU, to avoid a synchronization."""
    return condition.device.type != "cpu" or bool(condition.any())


def remaining_rows(done: Sequence[bool]) -> list[int]:
    """Return the rows of the sentences that are not done, in an order that moves as few as possible.

    A row keeps its place, except that the last rows fill the gaps of those that are done: caches are large, and with
    this order only a filled gap has to be copied.
    """
    num_kept = len(done) - sum(done)
    last = (row for row in range(num_kept, len(done)) if not done[row])
    return [next(last) if done[row] else row for row in range(num_kept)]


def rows_on(device: torch.device, rows: Sequence[int]) -> Tensor:
    """Return numbers of rows as a tensor on a device, without synchronizing."""
    return to_device(torch.tensor(rows, dtype=torch.long), device)


def read_columns(columns: Sequence[Tensor]) -> list[list[Any]]:
    """Return tensors with a row for each sentence as lists; from a GPU in one copy, because each one would wait."""
    return [array.tolist() for array in read_arrays(columns)]


def read_arrays(tensors: Sequence[Tensor]) -> list[npt.NDArray[Any]]:
    """Return tensors as arrays; from a GPU in one copy, because each one would wait."""
    if tensors[0].device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    doubles = [tensor.double().flatten() for tensor in tensors]  # exact for float32 and tokens
    numbers = torch.cat(doubles).cpu()
    parts = numbers.split([tensor.numel() for tensor in tensors])
    return [part.view(t.shape).to(t.dtype).numpy() for part, t in zip(parts, tensors, strict=True)]


def keep_rows(state: object, rows_B: Tensor) -> None:
    """Keep only these sentences of a `Beam`, or of any object whose attributes are tensors [B, ...]."""
    for name, value in vars(state).items():
        setattr(state, name, value[rows_B])
