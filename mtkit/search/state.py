"""The data of a search: its options, its live and finished hypotheses, and the model it asks.

Shapes: B sentences still in the batch, K beam, G groups of the beam, C candidates of a group, V vocabulary,
T tokens so far, S source length, P longest prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

NEG_INF = float("-inf")
"""The log-probability of what must not happen."""


class Stepper(Protocol):
    """A model that is asked for one piece after the other."""

    @property
    def vocab_size(self) -> int:
        """V: number of pieces."""

    def step(self, tokens_BK: Tensor) -> Tensor:
        """What `logits` needs about the hypotheses that end with these newest pieces [B, K]: [B, K, anything]."""

    def logits(self, hidden_BKD: Tensor) -> Tensor:
        """Unnormalized log-probabilities [B, K, V] of the next piece, of all or some of the sentences."""

    def reorder(self, parents_BK: Tensor) -> None:
        """Continue with these hypotheses of each sentence, in this order; there may be more or fewer than before."""

    def keep(self, sentences_B: Tensor) -> None:
        """Continue with these sentences alone, in this order."""

    def attention(self) -> Tensor:
        """What the last step attended to, [B, K, S]; 1 where a source has no piece. Only for the coverage penalty."""


@dataclass(frozen=True)
class SearchOptions:
    """What the search looks for.

    Args:
        beam_size: hypotheses kept at each step; 1 is greedy search.
        bos: the piece that comes first.
        eos: the piece that ends a hypothesis.
        n_best: finished hypotheses given back for each sentence; at most `beam_size`.
        length_penalty: alpha of the penalty; 0 compares plain log-probabilities.
        suppressed: pieces that never appear.
        penalty_kind: gnmt is ((5 + length) / 6) ** alpha (Wu et al. 2016, eq. 14), simple is length ** alpha.
        coverage_penalty: beta of Wu et al. 2016, eq. 14; 0 is off.
        stop: when a sentence ends, see `_has_ended`.
        min_length: pieces before eos at least.
        no_repeat_ngram: no sequence of so many pieces appears twice; 0 is off.
        groups: groups of diverse search (Vijayakumar et al. 2018); divides `beam_size`.
        diversity: what a group's piece costs the later groups at the same step.
        after_prefix: the only pieces that may come right behind a prefix; empty: any.
    """

    beam_size: int
    bos: int
    eos: int
    n_best: int = 1
    length_penalty: float = 1.0
    suppressed: tuple[int, ...] = ()
    penalty_kind: Literal["gnmt", "simple"] = "gnmt"
    coverage_penalty: float = 0.0
    stop: Literal["finished", "unbeaten", "certain"] = "unbeaten"
    min_length: int = 0
    no_repeat_ngram: int = 0
    groups: int = 1
    diversity: float = 0.5
    after_prefix: tuple[int, ...] = ()


@dataclass(frozen=True)
class Hypothesis:
    """A finished translation."""

    ids: list[int]
    """Its pieces, without bos and eos."""
    score: float
    """Its log-probability over its length penalty, plus its coverage penalty: what hypotheses are ranked by."""
    log_prob: float
    """Sum of the natural log-probabilities of its pieces and of eos."""


@dataclass
class Beam:
    """The search as data: live hypotheses, and the best finished ones of each sentence."""

    sentences_B: Tensor  # their numbers in the caller's order
    max_lengths_B: Tensor  # most pieces, eos included
    prefixes_BP: Tensor  # pieces that a hypothesis begins with, then -1
    tokens_BKT: Tensor  # live hypotheses, bos first
    log_probs_BK: Tensor  # -inf where there is none
    coverage_BKS: Tensor  # attention that each source piece got so far; S is 0 where it does not matter
    done_scores_BK: Tensor  # finished hypotheses, best first; -inf where there is none
    done_log_probs_BK: Tensor
    done_tokens_BKT: Tensor  # without bos; eos and eos for all after it
    done_counts_B: Tensor  # how many have finished so far

    @property
    def length(self) -> int:
        """Pieces of the live hypotheses, bos not counted."""
        return self.tokens_BKT.shape[2] - 1


@dataclass
class Candidates:
    """The most probable continuations in each group, best first. The first K/G of a group may finish."""

    log_probs_BGC: Tensor
    parents_BGC: Tensor  # which beam each continues
    tokens_BGC: Tensor
    ends_BGC: Tensor  # True where the token is eos


def start_beam(
    max_lengths: Sequence[int],
    options: SearchOptions,
    device: torch.device | str,
    prefixes: Sequence[Sequence[int]],
) -> Beam:
    """One live hypothesis for each sentence: bos."""
    B, K = len(max_lengths), options.beam_size
    longest_prefix = max(map(len, prefixes), default=0)
    padded = [[*prefix, *[-1] * (longest_prefix - len(prefix))] for prefix in prefixes]
    return Beam(
        sentences_B=torch.arange(B, device=device),
        max_lengths_B=torch.tensor(max_lengths, dtype=torch.long, device=device),
        prefixes_BP=torch.tensor(padded, dtype=torch.long, device=device).view(B, longest_prefix),
        tokens_BKT=torch.full((B, 1, 1), options.bos, device=device),
        log_probs_BK=torch.zeros(B, 1, device=device),
        coverage_BKS=torch.zeros(B, 1, 1 if options.coverage_penalty else 0, device=device),
        done_scores_BK=torch.full((B, K), NEG_INF, device=device),
        done_log_probs_BK=torch.full((B, K), NEG_INF, device=device),
        done_tokens_BKT=torch.full((B, K, 0), options.eos, device=device),
        done_counts_B=torch.zeros(B, dtype=torch.long, device=device),
    )


def survivors(ended_B: Tensor) -> Tensor:
    """Rows of the sentences that go on: each keeps its place, but for the last, which fill the gaps of the ended ones.

    So few have to be moved, among all that is remembered of them, however often sentences end.
    """
    num_kept = len(ended_B) - int(ended_B.sum())
    rows_B = torch.arange(len(ended_B), device=ended_B.device)
    kept_B, last_B = rows_B[:num_kept], rows_B[num_kept:]
    kept_B[ended_B[:num_kept]] = last_B[~ended_B[num_kept:]]
    return kept_B


def keep_sentences(record: object, kept_B: Tensor) -> None:
    """Go on with these sentences alone. Args: record: a beam, or samples: tensors with a row for each sentence."""
    for name, value in vars(record).items():
        setattr(record, name, value[kept_B])
