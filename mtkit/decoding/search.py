"""Beam search over a step function: it knows nothing of models, so it can be held against exhaustive search.

A hypothesis has at most its sentence's `max_length` pieces, the final eos included; at the last position only eos
is allowed. Its score is its log-probability divided by the GNMT length penalty ((5 + length) / 6) ** alpha.
Probabilities are of the model's full softmax also where pieces are suppressed, so `score` gives the same numbers.

Shapes: B sentences still searched, K beam, C candidates of a beam, V vocabulary, T pieces so far, N = B x K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mtkit.errors import TrainingError

NEVER = float("-inf")


class Stepper(Protocol):
    """A model that is asked for one piece after the other."""

    def step(self, tokens_BK: Tensor) -> Tensor:
        """Unnormalized log-probabilities [B, K, V] of what follows the newest pieces [B, K]."""

    def reorder(self, hypotheses_N: Tensor) -> None:
        """Continue with these hypotheses, named by their row b x K + k."""

    def keep(self, sentences_B: Tensor) -> None:
        """Continue with these sentences alone."""


@dataclass(frozen=True)
class SearchOptions:
    """What the search looks for.

    Args:
        beam_size: hypotheses kept at each step; 1 is greedy search.
        n_best: finished hypotheses given back for each sentence; at most `beam_size`.
        length_penalty: alpha of Wu et al. 2016, eq. 14; 0 compares plain log-probabilities.
        bos: the piece that comes first.
        eos: the piece that ends a hypothesis.
        suppressed: pieces that never appear.
    """

    beam_size: int
    bos: int
    eos: int
    n_best: int = 1
    length_penalty: float = 1.0
    suppressed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Hypothesis:
    """A finished translation."""

    ids: list[int]
    """Its pieces, without bos and eos."""
    score: float
    """Its log-probability over its length penalty: what hypotheses are ranked by."""
    log_prob: float
    """Sum of the natural log-probabilities of its pieces and of eos."""


@dataclass
class Beam:
    """The search as data: live hypotheses, and the best finished ones of each sentence."""

    sentences_B: Tensor  # their numbers in the caller's order
    max_lengths_B: Tensor  # most pieces, eos included
    tokens_BKT: Tensor  # live hypotheses, bos first
    log_probs_BK: Tensor  # -inf where there is none yet
    done_scores_BK: Tensor  # finished hypotheses, best first; -inf where there is none
    done_log_probs_BK: Tensor
    done_tokens_BKT: Tensor  # without bos, eos and all after it
    done_counts_B: Tensor  # how many have finished so far

    @property
    def length(self) -> int:
        """Pieces of the live hypotheses, bos not counted."""
        return self.tokens_BKT.shape[2] - 1


def gnmt_penalty(lengths: Tensor | int, alpha: float) -> Tensor:
    """((5 + length) / 6) ** alpha (Wu et al. 2016, eq. 14); lengths count eos."""
    return ((5.0 + torch.as_tensor(lengths)) / 6.0) ** alpha


@torch.inference_mode()
def search(
    stepper: Stepper, max_lengths: Sequence[int], options: SearchOptions, device: torch.device | str = "cpu"
) -> list[list[Hypothesis]]:
    """The best hypotheses of each sentence, best first.

    Args:
        stepper: the model, already holding the sentences.
        max_lengths: for each sentence the most pieces of a hypothesis, eos included; at least 1.

    A sentence ends when `beam_size` hypotheses are finished, or when no live one can beat the `n_best` finished.
    """
    results: list[list[Hypothesis]] = [[] for _ in max_lengths]
    beam = start_beam(max_lengths, options, device)
    while len(beam.sentences_B):
        refuse_endless(beam, max_lengths)
        logits_BKV = stepper.step(beam.tokens_BKT[:, :, -1])
        candidates = best_candidates(logits_BKV, beam, options)
        finish_hypotheses(beam, candidates, options)
        parents_BK = continue_hypotheses(beam, candidates, options)
        ended_B = has_ended(beam, options)
        if ended_B.any():
            collect(beam, ended_B, results, options)
            kept_B = (~ended_B).nonzero()[:, 0]
            keep_sentences(beam, kept_B)
            stepper.keep(kept_B)
            parents_BK = parents_BK[kept_B]
        if len(beam.sentences_B) and options.beam_size > 1:
            first_rows = torch.arange(len(parents_BK), device=device)[:, None] * options.beam_size
            stepper.reorder((first_rows + parents_BK).flatten())
    return results


def refuse_endless(beam: Beam, max_lengths: Sequence[int]) -> None:
    """Raise TrainingError if no hypothesis ended in time, which only scores that are not numbers bring about."""
    if beam.length >= max(max_lengths):
        hint = "with fp16, use bf16 or fp32; else the weights are spoiled: use an earlier checkpoint"
        raise TrainingError("the model's scores are not numbers", hint=hint)


def start_beam(max_lengths: Sequence[int], options: SearchOptions, device: torch.device | str) -> Beam:
    """One live hypothesis for each sentence: bos."""
    B, K = len(max_lengths), options.beam_size
    log_probs_BK = torch.full((B, K), NEVER, device=device)
    log_probs_BK[:, 0] = 0.0
    return Beam(
        sentences_B=torch.arange(B, device=device),
        max_lengths_B=torch.tensor(max_lengths, device=device),
        tokens_BKT=torch.full((B, K, 1), options.bos, device=device),
        log_probs_BK=log_probs_BK,
        done_scores_BK=torch.full((B, K), NEVER, device=device),
        done_log_probs_BK=torch.full((B, K), NEVER, device=device),
        done_tokens_BKT=torch.full((B, K, max(max_lengths, default=1)), options.eos, device=device),
        done_counts_B=torch.zeros(B, dtype=torch.long, device=device),
    )


@dataclass
class Candidates:
    """The most probable continuations of each sentence, best first, C for each sentence."""

    log_probs_BC: Tensor
    parents_BC: Tensor  # which beam each continues
    tokens_BC: Tensor
    ends_BC: Tensor  # True where the token is eos


def best_candidates(logits_BKV: Tensor, beam: Beam, options: SearchOptions) -> Candidates:
    """The 2K most probable continuations: enough for K that go on, since each beam offers eos at most once.

    The best 2K of each beam are chosen by logits, and only those are normalized.
    """
    B, K, V = logits_BKV.shape
    normalizers_BK1 = logits_BKV.float().logsumexp(dim=-1, keepdim=True)
    if options.suppressed:
        logits_BKV[:, :, list(options.suppressed)] = NEVER
    last_B = beam.max_lengths_B == beam.length + 1
    if last_B.any():
        only_eos_V = torch.arange(V, device=logits_BKV.device) != options.eos
        logits_BKV = logits_BKV.masked_fill(last_B[:, None, None] & only_eos_V, NEVER)
    logits_BKC, tokens_BKC = logits_BKV.topk(min(2 * K, V), dim=-1)
    log_probs_BKC = logits_BKC.float() - normalizers_BK1 + beam.log_probs_BK[:, :, None]
    C = tokens_BKC.shape[2]
    log_probs_BC, order_BC = log_probs_BKC.flatten(1).topk(min(2 * K, K * C), dim=-1)
    tokens_BC = tokens_BKC.flatten(1).gather(1, order_BC)
    return Candidates(log_probs_BC, order_BC // C, tokens_BC, tokens_BC == options.eos)


def finish_hypotheses(beam: Beam, candidates: Candidates, options: SearchOptions) -> None:
    """Those of the best K candidates that end with eos join the finished ones, of which the best K are kept."""
    K = options.beam_size
    ends_BK = candidates.ends_BC[:, :K] & (candidates.log_probs_BC[:, :K] > NEVER)
    if not ends_BK.any():
        return
    log_probs_BK = candidates.log_probs_BC[:, :K].masked_fill(~ends_BK, NEVER)
    scores_BK = log_probs_BK / gnmt_penalty(beam.length + 1, options.length_penalty).to(log_probs_BK)
    tokens_BKT = gather_beams(beam.tokens_BKT[:, :, 1:], candidates.parents_BC[:, :K])
    room = beam.done_tokens_BKT.shape[2] - tokens_BKT.shape[2]
    tokens_BKT = torch.nn.functional.pad(tokens_BKT, (0, room), value=options.eos)
    beam.done_scores_BK, order_BK = torch.cat([beam.done_scores_BK, scores_BK], 1).topk(K, dim=1)
    beam.done_log_probs_BK = torch.cat([beam.done_log_probs_BK, log_probs_BK], 1).gather(1, order_BK)
    beam.done_tokens_BKT = gather_beams(torch.cat([beam.done_tokens_BKT, tokens_BKT], 1), order_BK)
    beam.done_counts_B = beam.done_counts_B + ends_BK.sum(1)


def continue_hypotheses(beam: Beam, candidates: Candidates, options: SearchOptions) -> Tensor:
    """The best K candidates that do not end go on. Returns which beam each of them continues: [B, K]."""
    going_on_BC = candidates.log_probs_BC.masked_fill(candidates.ends_BC, NEVER)
    K = options.beam_size
    if going_on_BC.shape[1] < K:  # a vocabulary smaller than the beam
        going_on_BC = torch.nn.functional.pad(going_on_BC, (0, K - going_on_BC.shape[1]), value=NEVER)
    beam.log_probs_BK, order_BK = going_on_BC.topk(K, dim=1)
    order_BK = order_BK.clamp(max=candidates.tokens_BC.shape[1] - 1)
    parents_BK = candidates.parents_BC.gather(1, order_BK)
    tokens_BK1 = candidates.tokens_BC.gather(1, order_BK)[:, :, None]
    beam.tokens_BKT = torch.cat([gather_beams(beam.tokens_BKT, parents_BK), tokens_BK1], dim=2)
    return parents_BK


def has_ended(beam: Beam, options: SearchOptions) -> Tensor:
    """[B]: K hypotheses are finished, or none is alive, or the best live one cannot beat the finished ones.

    Log-probabilities only fall, so with a penalty that grows a live hypothesis is at best worth its present
    log-probability over the penalty of the greatest length.
    """
    best_live_B = beam.log_probs_BK[:, 0]
    grows = options.length_penalty > 0
    lengths_B = beam.max_lengths_B if grows else torch.full_like(beam.max_lengths_B, beam.length + 1)
    bound_B = best_live_B / gnmt_penalty(lengths_B, options.length_penalty)
    hopeless_B = beam.done_scores_BK[:, options.n_best - 1] >= bound_B
    return hopeless_B | (best_live_B == NEVER) | (beam.done_counts_B >= options.beam_size)


def gather_beams(values_BKT: Tensor, beams_BK: Tensor) -> Tensor:
    """Rows of these beams: [B, K, T]."""
    return values_BKT.gather(1, beams_BK[:, :, None].expand(-1, -1, values_BKT.shape[2]))


def keep_sentences(beam: Beam, kept_B: Tensor) -> None:
    """Go on with these sentences alone."""
    for name, value in vars(beam).items():
        setattr(beam, name, value[kept_B])


def collect(beam: Beam, ended_B: Tensor, results: list[list[Hypothesis]], options: SearchOptions) -> None:
    """Write the finished hypotheses of the sentences that have ended into the results."""
    rows = ended_B.nonzero()[:, 0]
    for sentence, scores, log_probs, tokens in zip(
        beam.sentences_B[rows].tolist(),
        beam.done_scores_BK[rows, : options.n_best].tolist(),
        beam.done_log_probs_BK[rows, : options.n_best].tolist(),
        beam.done_tokens_BKT[rows, : options.n_best].tolist(),
        strict=True,
    ):
        results[sentence] = [
            Hypothesis(ids[: ids.index(options.eos)] if options.eos in ids else ids, score, log_prob)
            for ids, score, log_prob in zip(tokens, scores, log_probs, strict=True)
            if score > NEVER
        ]
