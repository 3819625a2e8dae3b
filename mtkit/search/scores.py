"""Scores: what hypotheses are ranked by.

Shapes: S source length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtkit.errors import TrainingError
from mtkit.search.state import SearchOptions


def final_scores(
    log_probs: Tensor, lengths: Tensor | int, options: SearchOptions, coverage_S: Tensor | None = None
) -> Tensor:
    """Return the scores that hypotheses are ranked by: log-probability / length penalty + coverage penalty.

    The coverage penalty is beta x sum of log(min(coverage, 1)) over the source tokens (Wu et al. 2016, eq. 14).

    Args:
        log_probs: [...], sums over the tokens and eos.
        lengths: lengths of the hypotheses, eos included.
        coverage_S: [..., S], attention that each source token received in all steps, 1 at padding.
    """
    scores = log_probs / length_penalty(lengths, options).to(log_probs.dtype)
    if coverage_S is not None:
        covered = coverage_S.clamp(min=1e-9, max=1.0).log().sum(-1)
        scores = scores + options.coverage_penalty * covered.to(scores)
    return scores


def length_penalty(lengths: Tensor | int, options: SearchOptions) -> Tensor:
    """Return ((5 + length) / 6) ** alpha (gnmt: Wu et al. 2016, eq. 14) or length ** alpha (simple); eos counts."""
    lengths = torch.as_tensor(lengths)
    if options.penalty_kind == "gnmt":
        return ((5.0 + lengths) / 6.0) ** options.length_penalty
    return lengths.float() ** options.length_penalty


def nan_error() -> TrainingError:
    """Return the error that the model's scores are NaN."""
    hint = "if this is fp16, use bf16 or fp32; otherwise the weights are damaged: use an earlier checkpoint"
    return TrainingError("the model's scores are NaN", hint=hint)
