"""Beam search over a step function. It knows no model, so the tests can compare it with exhaustive search.

Every step appends one token to each live hypothesis:

1. the model scores all continuations and the token rules forbid some of them (`apply_token_rules`);
2. the 2K most probable continuations of a sentence are its candidates (`best_candidates`);
3. of the K best candidates, those that end with eos join the finished hypotheses (`_add_finished`);
4. the K best candidates that do not end become the live hypotheses (`_advance_live`);
5. sentences that are done leave the batch (`is_done`).

A hypothesis has at most `max_length` tokens, eos included; at the last position only eos is allowed. Its score is its
log-probability divided by a length penalty, plus a coverage penalty (`final_scores`). Forbidden tokens do not change
the log-probabilities of the others, so scoring a given translation yields the same score; with `renormalize` the others
share their probability, as they do in Hugging Face's generate with `renormalize_logits`.

In the first step each sentence has one hypothesis (bos), afterwards K. Diverse beam search splits the K hypotheses into
G groups with 2K/G candidates each; plain beam search has one group.

Shapes: B sentences still in the batch, K beam, G groups of the beam, C candidates of a group, V vocabulary,
T tokens so far, S source length.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from mtkit.search.constraints import Constraint, ConstraintTracker
from mtkit.search.greedy import greedy_search
from mtkit.search.scores import final_scores, length_penalty, nan_error
from mtkit.search.state import (
    NEG_INF,
    Beam,
    BestTokensStepper,
    Candidates,
    Hypothesis,
    SearchOptions,
    Stepper,
    StoppingState,
    any_or_unknown,
    init_beam,
    keep_rows,
    read_columns,
    remaining_rows,
    rows_on,
    should_sync,
)
from mtkit.search.token_rules import apply_token_rules
from mtkit.search.topk import topk_continuations

LOGITS_CHUNK = 2_500_000
"""Logits processed at a time on a CPU: 10 MB in float32, small enough for its cache."""


@torch.inference_mode()
def search(
    stepper: Stepper,
    max_lengths: Sequence[int],
    options: SearchOptions,
    device: torch.device | str = "cpu",
    prefixes: Sequence[Sequence[int]] | None = None,
    constraints: Sequence[Sequence[Constraint]] | None = None,
) -> list[list[Hypothesis]]:
    """Return the `n_best` hypotheses of each sentence, best first.

    Args:
        stepper: the model, already holding the sentences.
        max_lengths: for each sentence, the most tokens of a hypothesis, eos included; at least 1.
        options: beam size, penalties, token rules, groups.
        device: where the beam is held: that of the logits.
        prefixes: for each sentence, the tokens that its hypotheses start with; fewer than its `max_lengths`.
        constraints: for each sentence, the phrases that its hypotheses must contain.

    Raises:
        TrainingError: If the logits are NaN.
    """
    results: list[list[Hypothesis]] = [[] for _ in max_lengths]
    beam = init_beam(max_lengths, options, device, prefixes or [()] * len(max_lengths))
    tracker = ConstraintTracker(constraints, options) if constraints and any(constraints) else None
    best_stepper: BestTokensStepper | None = None  # set if candidates are found without all logits
    if tracker is None and _is_plain(beam, options) and isinstance(stepper, BestTokensStepper):
        best_stepper = stepper
        if options.beam_size == 1 and options.stop != "certain":
            return greedy_search(stepper, beam.max_lengths_B, options)
    longest = max(max_lengths, default=0)
    while len(beam.sentences_B):
        hidden_BKD = stepper.step(beam.tokens_BKT[:, :, -1])
        if options.coverage_penalty:
            beam.coverage_BKS = beam.coverage_BKS + stepper.attention()
        if best_stepper is not None:
            candidates = _plain_candidates(best_stepper, hidden_BKD, beam, options)
        else:
            candidates = _all_candidates(stepper, hidden_BKD, beam, options, tracker)
        _add_finished(beam, candidates, options)
        parents_BK = _advance_live(beam, candidates, options)
        if tracker is not None:
            tracker.advance(parents_BK, beam.tokens_BKT[:, :, -1])
        done_B = is_done(beam, options)
        if not should_sync(beam.length, longest, done_B.device):
            # A sentence that is done stays so, with what it has found.
            beam.log_probs_BK.masked_fill_(done_B[:, None], NEG_INF)
        elif any(done := _read_done(beam, done_B)):
            rows = [row for row, ended in enumerate(done) if ended]
            _write_results(beam, rows_on(done_B.device, rows), results, options)
            kept_B = rows_on(done_B.device, remaining_rows(done))
            parents_BK = parents_BK[kept_B]
            keep_rows(beam, kept_B)
            stepper.keep_rows(kept_B)
            if tracker is not None:
                tracker.keep_rows(kept_B)
        if options.beam_size > 1:
            stepper.reorder(parents_BK)
    return results


def _is_plain(beam: Beam, options: SearchOptions) -> bool:
    """Return whether the candidates depend on the most probable tokens of each hypothesis alone."""
    rules = options.min_length or options.no_repeat_ngram or options.groups > 1 or options.renormalize
    return not rules and not beam.prefixes_BP.shape[1] and options.eos not in options.suppressed


def _plain_candidates(
    stepper: BestTokensStepper, hidden_BKD: Tensor, beam: Beam, options: SearchOptions
) -> Candidates:
    """Return the candidates of a plain search: among the 2K best tokens of each hypothesis are the 2K best of all."""
    C = 2 * options.beam_size
    best = stepper.best_tokens(hidden_BKD, C, options.suppressed, options.eos)
    log_probs_BKC, tokens_BKC = best.log_probs_BKC + beam.log_probs_BK[:, :, None], best.tokens_BKC
    last_B = beam.max_lengths_B == beam.length + 1
    if last_B.any():
        log_probs_BKC[last_B] += NEG_INF  # what is not a number stays so, and is an error at the end
        log_probs_BKC[last_B, :, 0] = (best.eos_log_probs_BK + beam.log_probs_BK)[last_B]
        tokens_BKC[last_B, :, 0] = options.eos
    log_probs_BC, indices_BC = log_probs_BKC.flatten(1).topk(C, dim=1)
    tokens_B1C = tokens_BKC.flatten(1).gather(1, indices_BC)[:, None]
    parents_B1C = (indices_BC // C)[:, None]
    return Candidates(log_probs_BC[:, None], parents_B1C, tokens_B1C, tokens_B1C == options.eos)


def _read_done(beam: Beam, done_B: Tensor) -> list[bool]:
    """Return which sentences are done.

    Raises:
        TrainingError: If one is not done at its `max_length`, which happens only if scores are NaN.
    """
    too_long_B = ~done_B & (beam.length >= beam.max_lengths_B)
    done, too_long = torch.stack([done_B, too_long_B]).tolist()
    if any(too_long):
        raise nan_error()
    return done


def _all_candidates(
    stepper: Stepper,
    hidden_BKD: Tensor,
    beam: Beam,
    options: SearchOptions,
    tracker: ConstraintTracker | None,
) -> Candidates:
    """Return the candidates of all sentences.

    A CPU takes some sentences at a time, so that the logits are still in its cache when they are normalized and
    searched.
    """
    B, K = hidden_BKD.shape[:2]
    num_rows = B if hidden_BKD.is_cuda else max(1, LOGITS_CHUNK // (K * stepper.vocab_size))
    found = []
    for first in range(0, B, num_rows):
        rows = slice(first, first + num_rows)
        chunk = beam if num_rows >= B else Beam(**{name: value[rows] for name, value in vars(beam).items()})
        log_probs_BKV = _log_probs(stepper.logits(hidden_BKD[rows], first), chunk, options)
        if tracker is not None:
            tracker.forbid_early_eos(log_probs_BKV, first)
        candidates = best_candidates(log_probs_BKV, chunk, options)
        if tracker is not None:
            tracker.allocate(candidates, log_probs_BKV, chunk, first)
        found.append(candidates)
    if len(found) == 1:
        return found[0]
    columns = zip(*(vars(candidates).values() for candidates in found), strict=True)
    return Candidates(*map(torch.cat, columns))


def _log_probs(logits_BKV: Tensor, beam: Beam, options: SearchOptions) -> Tensor:
    """Return the log-probabilities of the next token, -inf where the rules forbid it."""
    if not options.renormalize:
        log_probs_BKV = logits_BKV.log_softmax(dim=-1, dtype=torch.float32)
        apply_token_rules(log_probs_BKV, beam, options)
        return log_probs_BKV
    allowed_BKV = logits_BKV.float()
    apply_token_rules(allowed_BKV, beam, options)
    nothing_BK1 = allowed_BKV.amax(dim=-1, keepdim=True) == NEG_INF  # the softmax of nothing is not a number
    return allowed_BKV.log_softmax(dim=-1).masked_fill_(nothing_BK1, NEG_INF)


def best_candidates(log_probs_BKV: Tensor, beam: Beam, options: SearchOptions) -> Candidates:
    """Return the C = 2K/G most probable continuations in each group.

    At most K/G of them end, one for each hypothesis of the group, so K/G are left to continue.

    The groups choose one after the other. A token costs `diversity` for each hypothesis of an earlier group that chose
    it at this step (Vijayakumar et al. 2018, eq. 4, Hamming diversity). This changes the choice, not the
    log-probabilities.

    Args:
        log_probs_BKV: log-probabilities of the next token, -inf where it is forbidden.
    """
    B, K, V = log_probs_BKV.shape
    size = options.beam_size // options.groups
    found, counts_BV = [], torch.zeros(B, V, device=log_probs_BKV.device)
    for group in range(options.groups):
        first = group * size if K > 1 else 0
        own = slice(first, first + size)
        penalties_BV = options.diversity * counts_BV if group else None
        log_probs_BC, parents_BC, tokens_BC = topk_continuations(
            log_probs_BKV[:, own], beam.log_probs_BK[:, own], 2 * size, penalties_BV
        )
        found.append((log_probs_BC, parents_BC + first, tokens_BC))
        if options.groups > 1:
            chosen_tokens = tokens_BC.gather(1, first_live(tokens_BC == options.eos, size))
            counts_BV.scatter_add_(1, chosen_tokens, torch.ones_like(chosen_tokens, dtype=torch.float32))
    log_probs, parents, tokens = (torch.stack(groups, dim=1) for groups in zip(*found, strict=True))
    return Candidates(log_probs, parents, tokens, tokens == options.eos)


def first_live(ends_C: Tensor, k: int) -> Tensor:
    """Return the indices of the first k candidates [..., C] that do not end, then of those that do if k is not reached.

    Returns:
        [..., k], or [..., C] if C is smaller.
    """
    C = ends_C.shape[-1]
    order = torch.arange(C, device=ends_C.device) + C * ends_C
    return order.topk(min(k, C), largest=False).indices


def _add_finished(beam: Beam, candidates: Candidates, options: SearchOptions) -> None:
    """Add to the finished hypotheses those of each group's best K/G candidates that end, and keep the best K."""
    K, size = options.beam_size, options.beam_size // options.groups
    log_probs_BK = candidates.log_probs_BGC[:, :, :size].flatten(1)  # fewer than K if the vocabulary is small
    ends_BK = candidates.ends_BGC[:, :, :size].flatten(1) & (log_probs_BK > NEG_INF)
    if not any_or_unknown(ends_BK):
        return
    parents_BK = candidates.parents_BGC[:, :, :size].flatten(1)
    log_probs_BK = log_probs_BK.masked_fill(~ends_BK, NEG_INF)
    coverage_BKS = _gather_beams(beam.coverage_BKS, parents_BK) if options.coverage_penalty else None
    scores_BK = final_scores(log_probs_BK, beam.length + 1, options, coverage_BKS)
    tokens_BKT = _gather_beams(beam.tokens_BKT[:, :, 1:], parents_BK)
    missing = tokens_BKT.shape[2] + 1 - beam.finished_tokens_BKT.shape[2]  # + 1: the longest has an eos too
    finished_BKT = F.pad(beam.finished_tokens_BKT, (0, missing), value=options.eos)
    tokens_BKT = F.pad(tokens_BKT, (0, 1), value=options.eos)
    beam.finished_scores_BK, order_BK = torch.cat([beam.finished_scores_BK, scores_BK], 1).topk(K, dim=1)
    beam.finished_log_probs_BK = torch.cat([beam.finished_log_probs_BK, log_probs_BK], 1).gather(1, order_BK)
    if options.keep_log_probs:
        sums_BKT = torch.cat([_gather_beams(beam.sums_BKT, parents_BK), log_probs_BK[:, :, None]], 2)
        old_sums_BKT = F.pad(beam.finished_sums_BKT, (0, sums_BKT.shape[2] - beam.finished_sums_BKT.shape[2]))
        beam.finished_sums_BKT = _gather_beams(torch.cat([old_sums_BKT, sums_BKT], 1), order_BK)
    beam.finished_tokens_BKT = _gather_beams(torch.cat([finished_BKT, tokens_BKT], 1), order_BK)
    beam.num_finished_B = beam.num_finished_B + ends_BK.sum(1)


def _advance_live(beam: Beam, candidates: Candidates, options: SearchOptions) -> Tensor:
    """Make the first K/G candidates of each group that do not end the live hypotheses.

    Returns:
        The previous hypothesis that each one continues: [B, K].
    """
    size = options.beam_size // options.groups
    order_BGK = first_live(candidates.ends_BGC, size)
    log_probs_BGC = candidates.log_probs_BGC.masked_fill(candidates.ends_BGC, NEG_INF)
    chosen = [x.gather(2, order_BGK) for x in (log_probs_BGC, candidates.parents_BGC, candidates.tokens_BGC)]
    if (missing := size - order_BGK.shape[2]) > 0:  # the vocabulary is smaller than the beam
        chosen = [
            F.pad(chosen[0], (0, missing), value=NEG_INF),
            *(F.pad(x, (0, missing)) for x in chosen[1:]),
        ]
    beam.log_probs_BK, parents_BK, tokens_BK = (x.flatten(1) for x in chosen)
    beam.tokens_BKT = torch.cat([_gather_beams(beam.tokens_BKT, parents_BK), tokens_BK[:, :, None]], dim=2)
    if options.keep_log_probs:
        sums_BKT = _gather_beams(beam.sums_BKT, parents_BK)
        beam.sums_BKT = torch.cat([sums_BKT, beam.log_probs_BK[:, :, None]], dim=2)
    if options.coverage_penalty:
        beam.coverage_BKS = _gather_beams(beam.coverage_BKS, parents_BK)
    return parents_BK


def _gather_beams(values_BKT: Tensor, beams_BK: Tensor) -> Tensor:
    """Select hypotheses `beams_BK` of each sentence from [B, any K, T]: [B, K, T]."""
    return values_BKT.gather(1, beams_BK[:, :, None].expand(-1, -1, values_BKT.shape[2]))


def is_done(beam: StoppingState, options: SearchOptions) -> Tensor:
    """Return which sentences need no further step: [B].

    A sentence is done if it has no live hypothesis, or if none can still beat the `n_best` finished ones (the upper
    bound is in `_max_scores`). With `stop: certain` these are the only reasons, so nothing better within the beam is
    missed. The other rules stop earlier:

    `finished`: as soon as K hypotheses have finished. So do fairseq, CTranslate2 with a length penalty, and Hugging
    Face's generate with early_stopping=True.

    `unbeaten`: as soon as K hypotheses have finished and the best of them would beat the best live one if that ended
    now. Without a length penalty this finds the same best hypothesis as `certain`, since the score of a live hypothesis
    only falls. So does CTranslate2, which then stops at the first step whose best candidate ends.

    `all_unbeaten`: as soon as K hypotheses have finished and the worst of the K best beats the best live one as it is,
    without a further token. So does Hugging Face's generate with early_stopping=False, its default.

    Greedy search stops at its first hypothesis under all three.
    """
    best_live_B = beam.log_probs_BK.amax(dim=1)
    hopeless_B = beam.finished_scores_BK[:, options.n_best - 1] >= _max_scores(beam, best_live_B, options)
    done_B = hopeless_B | (best_live_B == NEG_INF)
    if options.stop == "certain":
        return done_B
    enough_B = beam.num_finished_B >= options.beam_size
    if options.stop == "unbeaten" and options.beam_size > 1:
        penalty = length_penalty(beam.length + 1, options)
        enough_B &= beam.finished_scores_BK[:, 0] >= best_live_B / penalty
    if options.stop == "all_unbeaten" and options.beam_size > 1:
        enough_B &= beam.finished_scores_BK[:, -1] >= best_live_B / length_penalty(beam.length, options)
    return done_B | enough_B


def _max_scores(beam: StoppingState, log_probs_B: Tensor, options: SearchOptions) -> Tensor:
    """Return the highest scores that live hypotheses with these log-probabilities can still reach: [B].

    Log-probabilities only fall and coverage penalties are never positive, so the bound is the current log-probability,
    divided by the mildest length penalty still possible: that of the greatest length if the penalty grows with the
    length, otherwise that of ending now.
    """
    shortest = beam.length + 1
    lengths = beam.max_lengths_B.clamp(min=shortest) if options.length_penalty > 0 else shortest
    return log_probs_B / length_penalty(lengths, options)


def _write_results(
    beam: Beam, rows_B: Tensor, results: list[list[Hypothesis]], options: SearchOptions
) -> None:
    """Write the `n_best` finished hypotheses of these sentences into `results`."""
    columns = (
        beam.sentences_B,
        beam.finished_scores_BK,
        beam.finished_log_probs_BK,
        beam.finished_sums_BKT,
        beam.finished_tokens_BKT,
    )
    for sentence, scores, log_probs, sums, tokens in zip(
        *read_columns([column[rows_B] for column in columns]), strict=True
    ):
        hyps = [
            _hypothesis(ids, score, log_prob, to_each, options.eos)
            for ids, score, log_prob, to_each in zip(tokens, scores, log_probs, sums, strict=True)
            if score > NEG_INF
        ]
        first = {tuple(hyp.ids): hyp for hyp in reversed(hyps)}  # two groups may find the same one
        results[sentence] = [hyp for hyp in hyps if first[tuple(hyp.ids)] is hyp][: options.n_best]


def _hypothesis(tokens: list[int], score: float, log_prob: float, sums: list[float], eos: int) -> Hypothesis:
    """Return a finished hypothesis.

    Args:
        tokens: its tokens and eos, padded with eos.
        score: see `Hypothesis`.
        log_prob: see `Hypothesis`.
        sums: log-probability of bos, 0, and up to each token, padded; empty if that is not kept.
        eos: the token that ends it.
    """
    ids = tokens[: tokens.index(eos)] if eos in tokens else tokens
    ends = sums[: len(ids) + 2]
    return Hypothesis(ids, score, log_prob, tuple(after - before for before, after in pairwise(ends)))
