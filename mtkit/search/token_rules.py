"""Token rules: which tokens must not come next. Each rule sets log-probabilities to -inf before the search chooses.

The rest is not renormalized: a hypothesis keeps the log-probability that the model gives it.

Shapes: B sentences, K hypotheses, V vocabulary, T tokens so far, P longest prefix.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mtkit.device import to_device
from mtkit.search.state import NEG_INF, SearchOptions, any_or_unknown


class Hypotheses(Protocol):
    """The part of a `Beam` or of `Samples` that the rules depend on."""

    tokens_BKT: Tensor  # starting with bos
    max_lengths_B: Tensor
    prefixes_BP: Tensor  # tokens to start with, then -1

    @property
    def length(self) -> int:
        """Tokens so far, not counting bos."""


def apply_token_rules(log_probs_BKV: Tensor, hyps: Hypotheses, options: SearchOptions) -> None:
    """Apply all rules in place. The maximum length takes precedence over the other rules, and a prefix over that."""
    forced_B = _forced_tokens(hyps)
    forced_BK = None
    if forced_B is not None:
        index_BK1 = forced_B.clamp(min=0)[:, None, None].expand(-1, log_probs_BKV.shape[1], -1)
        forced_BK = log_probs_BKV.gather(2, index_BK1)[:, :, 0]
    for first, end in options.suppressed_ranges:
        log_probs_BKV[:, :, first:end] = NEG_INF
    if hyps.length < options.min_length:
        early_B = hyps.max_lengths_B > hyps.length + 1
        log_probs_BKV[:, :, options.eos].masked_fill_(early_B[:, None], NEG_INF)
    if options.after_prefix:
        _restrict_after_prefix(log_probs_BKV, hyps, options.after_prefix)
    if options.no_repeat_ngram:
        _block_repeated_ngrams(log_probs_BKV, hyps.tokens_BKT[:, :, 1:], options.no_repeat_ngram)
    last_B = hyps.max_lengths_B == hyps.length + 1
    if any_or_unknown(last_B):
        _allow_only(log_probs_BKV, last_B, torch.full_like(last_B, options.eos, dtype=torch.long))
    if forced_B is not None and forced_BK is not None:
        _allow_only(log_probs_BKV, forced_B >= 0, forced_B.clamp(min=0), forced_BK)


def _allow_only(
    log_probs_BKV: Tensor, rows_B: Tensor, tokens_B: Tensor, allowed_BK: Tensor | None = None
) -> None:
    """Forbid all but one token in the sentences where `rows_B` is true; it gets `allowed_BK`, if that is given."""
    index_BK1 = tokens_B[:, None, None].expand(-1, log_probs_BKV.shape[1], -1)
    before_BK1 = log_probs_BKV.gather(2, index_BK1)
    if allowed_BK is not None:
        before_BK1 = torch.where(rows_B[:, None, None], allowed_BK[:, :, None], before_BK1)
    log_probs_BKV.masked_fill_(rows_B[:, None, None], NEG_INF).scatter_(2, index_BK1, before_BK1)


def _forced_tokens(hyps: Hypotheses) -> Tensor | None:
    """Return the next token of each sentence's prefix, -1 if it has none: [B]; None if no sentence has one."""
    if hyps.length >= hyps.prefixes_BP.shape[1]:
        return None
    forced_B = hyps.prefixes_BP[:, hyps.length]
    return forced_B if any_or_unknown(forced_B >= 0) else None


def _restrict_after_prefix(log_probs_BKV: Tensor, hyps: Hypotheses, allowed: tuple[int, ...]) -> None:
    """Forbid all but the allowed tokens in sentences whose prefix ends with the newest token."""
    t, prefixes_BP = hyps.length, hyps.prefixes_BP
    if not 0 < t <= prefixes_BP.shape[1]:
        return
    ends_B = prefixes_BP[:, t - 1] >= 0
    if t < prefixes_BP.shape[1]:
        ends_B = ends_B & (prefixes_BP[:, t] < 0)
    if any_or_unknown(ends_B):
        forbidden_V = torch.ones(log_probs_BKV.shape[2], dtype=torch.bool)
        forbidden_V[list(allowed)] = False
        forbidden_V = to_device(forbidden_V, log_probs_BKV.device)
        log_probs_BKV.masked_fill_(ends_B[:, None, None] & forbidden_V, NEG_INF)


def _block_repeated_ngrams(log_probs_BKV: Tensor, tokens_BKT: Tensor, n: int) -> None:
    """Forbid every token that would repeat an n-gram of its hypothesis (Paulus et al. 2018, section 2.5)."""
    T = tokens_BKT.shape[2]
    if n > T:
        return
    ngrams_BKMn = tokens_BKT.unfold(2, n, 1)  # [B, K, M = T - n + 1, n]
    newest_BKn = tokens_BKT[:, :, T - n + 1 :]  # [B, K, n - 1]
    same_BKM = (ngrams_BKMn[..., :-1] == newest_BKn[:, :, None]).all(-1)
    limits_BKM = torch.where(same_BKM, NEG_INF, -NEG_INF).to(log_probs_BKV.dtype)
    log_probs_BKV.scatter_reduce_(2, ngrams_BKMn[..., -1], limits_BKM, "amin")
