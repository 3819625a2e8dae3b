"""Greedy search: the most probable token at each step, without the bookkeeping of a beam.

It finds what beam search with one hypothesis finds. Sentences leave the batch when they end.

Shapes: B sentences still in the batch, N sentences, T longest `max_length`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtkit.search.scores import final_scores, nan_error
from mtkit.search.state import NEG_INF, BestTokensStepper, Hypothesis, SearchOptions, remaining_rows, rows_on


def greedy_search(
    stepper: BestTokensStepper, max_lengths_N: Tensor, options: SearchOptions
) -> list[list[Hypothesis]]:
    """Return the hypothesis of each sentence; none if no token is allowed.

    Args:
        stepper: the model, already holding the sentences.
        max_lengths_N: for each sentence, the most tokens of its hypothesis, eos included; at least 1.
        options: bos, eos, suppressed tokens, length penalty.

    Raises:
        TrainingError: If the log-probabilities are NaN.
    """
    N, T = len(max_lengths_N), int(max_lengths_N.max()) if len(max_lengths_N) else 0
    tokens_NT = torch.full((N, T), options.eos)
    log_probs_NT, sums_N = torch.zeros(N, T), torch.zeros(N)
    sentences_B, max_lengths_B = torch.arange(N), max_lengths_N
    newest_B = torch.full((N,), options.bos)
    shortest = int(max_lengths_N.min()) if N else 0
    for t in range(T):
        best = stepper.best_tokens(stepper.step(newest_B[:, None]), 1, options.suppressed, options.eos)
        newest_B, log_probs_B = best.tokens_BKC[:, 0, 0], best.log_probs_BKC[:, 0, 0]
        if t + 1 >= shortest:
            last_B = max_lengths_B == t + 1
            newest_B = newest_B.masked_fill(last_B, options.eos)
            log_probs_B = torch.where(last_B, best.eos_log_probs_BK[:, 0], log_probs_B)
        tokens_NT[sentences_B, t], log_probs_NT[sentences_B, t] = newest_B, log_probs_B
        sums_N[sentences_B] += log_probs_B
        done_B = (newest_B == options.eos) | (log_probs_B == NEG_INF)
        if done_B.any():
            kept_B = rows_on(done_B.device, remaining_rows(done_B.tolist()))
            if not len(kept_B):
                break
            sentences_B, max_lengths_B, newest_B = (
                sentences_B[kept_B],
                max_lengths_B[kept_B],
                newest_B[kept_B],
            )
            stepper.keep_rows(kept_B)
    return _hypotheses(tokens_NT, log_probs_NT, sums_N, options)


def _hypotheses(
    tokens_NT: Tensor, log_probs_NT: Tensor, sums_N: Tensor, options: SearchOptions
) -> list[list[Hypothesis]]:
    """Return hypotheses, given their tokens and log-probabilities, padded with eos and 0, and the sums of those.

    Raises:
        TrainingError: If a log-probability is not a number.
    """
    lengths_N = (tokens_NT != options.eos).sum(dim=1)
    if sums_N.isnan().any():
        raise nan_error()
    scores_N = final_scores(sums_N, lengths_N + 1, options)
    columns = [x.tolist() for x in (tokens_NT, log_probs_NT, lengths_N, scores_N, sums_N)]
    return [
        [
            Hypothesis(
                tokens[:length], score, log_prob, tuple(each[: length + 1]) if options.keep_log_probs else ()
            )
        ]
        if log_prob > NEG_INF
        else []
        for tokens, each, length, score, log_prob in zip(*columns, strict=True)
    ]
