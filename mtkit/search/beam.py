"""Beam search over a step function: it knows nothing of models, so it can be held against exhaustive search.

A hypothesis has at most its sentence's `max_length` pieces, the final eos included; at the last position only eos
is allowed. Its score is its log-probability divided by a length penalty, plus a coverage penalty (see `final_scores`).
Probabilities are of the model's full softmax also where pieces are forbidden, so `score` gives the same numbers.

The first step has one hypothesis for each sentence (bos), the others have K. Diverse search splits the K into groups;
plain search is the case of one group.

Shapes: B sentences still in the batch, K beam, G groups of the beam, C candidates of a group, V vocabulary,
T pieces so far, S source length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtkit.errors import TrainingError
from mtkit.search.constraints import Constraint, ConstraintTracker
from mtkit.search.state import (
    NEG_INF,
    Beam,
    Candidates,
    Hypothesis,
    SearchOptions,
    Stepper,
    keep_sentences,
    start_beam,
    survivors,
)
from mtkit.search.token_rules import apply_token_rules
from mtkit.search.topk import largest

LOGITS_CHUNK = 2_500_000
"""Numbers that are looked through together on a CPU: 10 MB, which its cache may hold."""


@torch.inference_mode()
def search(
    stepper: Stepper,
    max_lengths: Sequence[int],
    options: SearchOptions,
    device: torch.device | str = "cpu",
    prefixes: Sequence[Sequence[int]] | None = None,
    constraints: Sequence[Sequence[Constraint]] | None = None,
) -> list[list[Hypothesis]]:
    """The best hypotheses of each sentence, best first.

    Args:
        stepper: the model, already holding the sentences.
        max_lengths: for each sentence the most pieces of a hypothesis, eos included; at least 1.
        prefixes: for each sentence the pieces that its hypotheses begin with; shorter than its `max_lengths`.
        constraints: for each sentence what must appear in its hypotheses (see `constraints`).
    """
    results: list[list[Hypothesis]] = [[] for _ in max_lengths]
    beam = start_beam(max_lengths, options, device, prefixes or [()] * len(max_lengths))
    tracker = ConstraintTracker(constraints, options) if constraints and any(constraints) else None
    while max_lengths:
        _check_limits_are_finite(beam)
        hidden_BKD = stepper.step(beam.tokens_BKT[:, :, -1])
        if options.coverage_penalty:
            beam.coverage_BKS = beam.coverage_BKS + stepper.attention()
        candidates = _all_candidates(stepper, hidden_BKD, beam, options, tracker)
        _finish_hypotheses(beam, candidates, options)
        parents_BK = _continue_hypotheses(beam, candidates, options)
        if tracker is not None:
            tracker.advance(parents_BK, beam.tokens_BKT[:, :, -1])
        ended_B = _has_ended(beam, options)
        if ended_B.any():
            _collect(beam, ended_B, results, options)
            kept_B = survivors(ended_B)
            if not len(kept_B):
                break
            parents_BK = parents_BK[kept_B]
            keep_sentences(beam, kept_B)
            stepper.keep(kept_B)
            if tracker is not None:
                tracker.keep(kept_B)
        if options.beam_size > 1:
            stepper.reorder(parents_BK)
    return results


def _check_limits_are_finite(beam: Beam) -> None:
    """Raise TrainingError if no hypothesis ended in time, which only scores that are not numbers bring about."""
    if (beam.length >= beam.max_lengths_B).any():
        hint = "with fp16, use bf16 or fp32; else the weights are spoiled: use an earlier checkpoint"
        raise TrainingError("the model's scores are not numbers", hint=hint)


def _all_candidates(
    stepper: Stepper,
    hidden_BKD: Tensor,
    beam: Beam,
    options: SearchOptions,
    tracker: ConstraintTracker | None,
) -> Candidates:
    """The candidates of all sentences.

    On CPUs of some sentences at a time: numbers that fit the cache are made, normalized and looked through there.
    """
    B, K = hidden_BKD.shape[:2]
    num_rows = B if hidden_BKD.is_cuda else max(1, LOGITS_CHUNK // (K * stepper.vocab_size))
    found = []
    for first in range(0, B, num_rows):
        rows = slice(first, first + num_rows)
        log_probs_BKV = stepper.logits(hidden_BKD[rows]).log_softmax(dim=-1, dtype=torch.float32)
        part = beam if num_rows >= B else Beam(**{name: value[rows] for name, value in vars(beam).items()})
        apply_token_rules(log_probs_BKV, part, options)
        if tracker is not None:
            tracker.apply_token_rules(log_probs_BKV, first)
        candidates = best_candidates(log_probs_BKV, part, options)
        if tracker is not None:
            tracker.allocate(candidates, log_probs_BKV, part, first)
        found.append(candidates)
    return (
        found[0] if len(found) == 1 else Candidates(*map(torch.cat, zip(*map(as_tuple, found), strict=True)))
    )


def as_tuple(candidates: Candidates) -> tuple[Tensor, ...]:
    """Its tensors in their order."""
    return tuple(vars(candidates).values())


def best_candidates(log_probs_BKV: Tensor, beam: Beam, options: SearchOptions) -> Candidates:
    """Twice as many as go on: enough, since each beam offers eos at most once.

    With groups, one after the other: a piece that an earlier group of the sentence chose costs `diversity`
    (Vijayakumar et al. 2018, eq. 4, Hamming diversity). It changes the choice, not the log-probability.
    """
    B, K, V = log_probs_BKV.shape
    size = options.beam_size // options.groups
    found, counts_BV = [], torch.zeros(B, V, device=log_probs_BKV.device)
    for group in range(options.groups):
        first = group * size if K > 1 else 0
        own = slice(first, first + size)
        prices_BV = options.diversity * counts_BV if group else None
        candidates = largest(log_probs_BKV[:, own], beam.log_probs_BK[:, own], 2 * size, prices_BV)
        log_probs_BC, parents_BC, tokens_BC = candidates
        found.append((log_probs_BC, parents_BC + first, tokens_BC))
        if options.groups > 1:
            chosen_BC = _first_that_go_on(tokens_BC == options.eos, size)
            chosen_tokens = tokens_BC.gather(1, chosen_BC)
            counts_BV.scatter_add_(1, chosen_tokens, torch.ones_like(chosen_tokens, dtype=torch.float32))
    log_probs, parents, tokens = (torch.stack(parts, dim=1) for parts in zip(*found, strict=True))
    return Candidates(log_probs, parents, tokens, tokens == options.eos)


def _first_that_go_on(ends_C: Tensor, number: int) -> Tensor:
    """Places of the first so many candidates [..., C] that do not end, in order; ended ones follow if too few."""
    C = ends_C.shape[-1]
    places = torch.arange(C, device=ends_C.device) + C * ends_C
    return places.topk(min(number, C), largest=False).indices


def _finish_hypotheses(beam: Beam, candidates: Candidates, options: SearchOptions) -> None:
    """Those of each group's best K/G candidates that end join the finished ones, of which the best K are kept."""
    K, size = options.beam_size, options.beam_size // options.groups
    log_probs_BK = candidates.log_probs_BGC[:, :, :size].flatten(1)  # fewer than K with a small vocabulary
    ends_BK = candidates.ends_BGC[:, :, :size].flatten(1) & (log_probs_BK > NEG_INF)
    if not ends_BK.any():
        return
    parents_BK = candidates.parents_BGC[:, :, :size].flatten(1)
    log_probs_BK = log_probs_BK.masked_fill(~ends_BK, NEG_INF)
    coverage_BKS = _gather_beams(beam.coverage_BKS, parents_BK) if options.coverage_penalty else None
    scores_BK = final_scores(log_probs_BK, beam.length + 1, options, coverage_BKS)
    tokens_BKT = _gather_beams(beam.tokens_BKT[:, :, 1:], parents_BK)
    room = tokens_BKT.shape[2] + 1 - beam.done_tokens_BKT.shape[2]  # eos ends it also where it is the longest
    done_BKT = torch.nn.functional.pad(beam.done_tokens_BKT, (0, room), value=options.eos)
    tokens_BKT = torch.nn.functional.pad(tokens_BKT, (0, 1), value=options.eos)
    beam.done_scores_BK, order_BK = torch.cat([beam.done_scores_BK, scores_BK], 1).topk(K, dim=1)
    beam.done_log_probs_BK = torch.cat([beam.done_log_probs_BK, log_probs_BK], 1).gather(1, order_BK)
    beam.done_tokens_BKT = _gather_beams(torch.cat([done_BKT, tokens_BKT], 1), order_BK)
    beam.done_counts_B = beam.done_counts_B + ends_BK.sum(1)


def _continue_hypotheses(beam: Beam, candidates: Candidates, options: SearchOptions) -> Tensor:
    """The first K/G candidates of each group that do not end go on. Returns which beam each continues: [B, K]."""
    size = options.beam_size // options.groups
    order_BGC = _first_that_go_on(candidates.ends_BGC, size)
    log_probs_BGC = candidates.log_probs_BGC.masked_fill(candidates.ends_BGC, NEG_INF)
    chosen = [x.gather(2, order_BGC) for x in (log_probs_BGC, candidates.parents_BGC, candidates.tokens_BGC)]
    if (missing := size - order_BGC.shape[2]) > 0:  # a vocabulary smaller than the beam
        pad = torch.nn.functional.pad
        chosen = [pad(chosen[0], (0, missing), value=NEG_INF), *(pad(x, (0, missing)) for x in chosen[1:])]
    beam.log_probs_BK, parents_BK, tokens_BK = (x.flatten(1) for x in chosen)
    beam.tokens_BKT = torch.cat([_gather_beams(beam.tokens_BKT, parents_BK), tokens_BK[:, :, None]], dim=2)
    if options.coverage_penalty:
        beam.coverage_BKS = _gather_beams(beam.coverage_BKS, parents_BK)
    return parents_BK


def _has_ended(beam: Beam, options: SearchOptions) -> Tensor:
    """[B]: which sentences need no further step.

    Always those of which no hypothesis is alive, or no live one can still beat the `n_best` finished: since
    log-probabilities only fall, a live hypothesis is at best worth its present log-probability under the mildest
    penalty that is left to it. For `stop: certain` that is all, and then nothing better within the beam is missed.
    For `finished`, also those with K finished hypotheses (the rule of fairseq, of CTranslate2 with a length penalty,
    and of Hugging Face's generate with early_stopping=True); for `unbeaten`, of these only where the best finished
    hypothesis would beat the best live one if that ended now (generate's early_stopping=False, for the best instead of
    the worst finished one). Greedy search ends with its hypothesis in both. Without a length penalty `unbeaten` and
    `certain` find the same best hypothesis, for then no live one is worth more later; so does CTranslate2, which there
    ends a sentence at the first step whose best candidate ends.
    """
    best_live_B = beam.log_probs_BK.amax(dim=1)
    hopeless_B = beam.done_scores_BK[:, options.n_best - 1] >= _best_possible_scores(
        beam, best_live_B, options
    )
    ended_B = hopeless_B | (best_live_B == NEG_INF)
    if options.stop == "certain":
        return ended_B
    enough_B = beam.done_counts_B >= options.beam_size
    if options.stop == "unbeaten" and options.beam_size > 1:
        penalty = length_penalty(beam.length + 1, options)
        enough_B &= beam.done_scores_BK[:, 0] >= best_live_B / penalty
    return ended_B | enough_B


def _best_possible_scores(beam: Beam, log_probs_B: Tensor, options: SearchOptions) -> Tensor:
    """Upper bounds of what live hypotheses of these log-probabilities can still come to: [B]."""
    grows = options.length_penalty > 0
    longest_B = beam.max_lengths_B.clamp(min=beam.length + 1)
    lengths_B = longest_B if grows else torch.full_like(longest_B, beam.length + 1)
    return log_probs_B / length_penalty(lengths_B, options)


def final_scores(
    log_probs: Tensor, lengths: Tensor | int, options: SearchOptions, coverage_S: Tensor | None = None
) -> Tensor:
    """What hypotheses are ranked by (Wu et al. 2016, eq. 14): log-probability / length penalty + coverage penalty.

    The coverage penalty is beta x sum of log(min(coverage, 1)) over the source pieces.

    Args:
        log_probs: [...], sums over the pieces and eos.
        lengths: of the hypotheses, eos included.
        coverage_S: [..., S], attention that each source piece got in all steps, 1 where there is none.
    """
    scores = log_probs / length_penalty(lengths, options).to(log_probs)
    if coverage_S is not None:
        covered = coverage_S.clamp(min=1e-9, max=1.0).log().sum(-1)
        scores = scores + options.coverage_penalty * covered.to(scores)
    return scores


def length_penalty(lengths: Tensor | int, options: SearchOptions) -> Tensor:
    """The penalty of the options; lengths count eos."""
    if options.penalty_kind == "gnmt":
        return gnmt_penalty(lengths, options.length_penalty)
    return torch.as_tensor(lengths).float() ** options.length_penalty


def gnmt_penalty(lengths: Tensor | int, alpha: float) -> Tensor:
    """((5 + length) / 6) ** alpha (Wu et al. 2016, eq. 14); lengths count eos."""
    return ((5.0 + torch.as_tensor(lengths)) / 6.0) ** alpha


def _gather_beams(values_BKT: Tensor, beams_BK: Tensor) -> Tensor:
    """Rows of these beams: [B, K, T]."""
    return values_BKT.gather(1, beams_BK[:, :, None].expand(-1, -1, values_BKT.shape[2]))


def _collect(beam: Beam, ended_B: Tensor, results: list[list[Hypothesis]], options: SearchOptions) -> None:
    """Write the finished hypotheses of the sentences that have ended into the results."""
    rows = ended_B.nonzero()[:, 0]
    for sentence, scores, log_probs, tokens in zip(
        beam.sentences_B[rows].tolist(),
        beam.done_scores_BK[rows].tolist(),
        beam.done_log_probs_BK[rows].tolist(),
        beam.done_tokens_BKT[rows].tolist(),
        strict=True,
    ):
        found = [
            Hypothesis(ids[: ids.index(options.eos)] if options.eos in ids else ids, score, log_prob)
            for ids, score, log_prob in zip(tokens, scores, log_probs, strict=True)
            if score > NEG_INF
        ]
        different = {tuple(hypothesis.ids): hypothesis for hypothesis in reversed(found)}  # groups may agree
        results[sentence] = [h for h in found if different[tuple(h.ids)] is h][: options.n_best]
