"""What must not be the next piece: every rule sets log-probabilities to -inf before the search chooses.

Probabilities are not renormalized afterwards: a hypothesis keeps the log-probability that the model gives it.

Shapes: B sentences, K hypotheses, V vocabulary, T pieces so far.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mtkit.search.state import NEG_INF, SearchOptions


class SearchState(Protocol):
    """What the rules look at; a `beam.Beam` is one."""

    tokens_BKT: Tensor  # bos first
    max_lengths_B: Tensor
    prefixes_BP: Tensor  # pieces to begin with, then -1

    @property
    def length(self) -> int:
        """Pieces so far, bos not counted."""


def apply_token_rules(log_probs_BKV: Tensor, beam: SearchState, rules: SearchOptions) -> None:
    """Apply all rules in place. A given prefix counts more than the others, the greatest length more than those."""
    forced_B = _forced_tokens(beam)
    kept_BK = None
    if forced_B is not None:
        index_BK1 = forced_B.clamp(min=0)[:, None, None].expand(-1, log_probs_BKV.shape[1], -1)
        kept_BK = log_probs_BKV.gather(2, index_BK1)[:, :, 0]
    if rules.suppressed:
        log_probs_BKV[:, :, list(rules.suppressed)] = NEG_INF
    if beam.length < rules.min_length:
        early_B = beam.max_lengths_B > beam.length + 1
        log_probs_BKV[early_B, :, rules.eos] = NEG_INF
    if rules.after_prefix:
        _restrict_after_prefix(log_probs_BKV, beam, rules.after_prefix)
    if rules.no_repeat_ngram:
        _block_repeated_ngrams(log_probs_BKV, beam.tokens_BKT[:, :, 1:], rules.no_repeat_ngram)
    last_B = beam.max_lengths_B == beam.length + 1
    if last_B.any():
        ends_BK = log_probs_BKV[last_B, :, rules.eos]
        log_probs_BKV[last_B] = NEG_INF
        log_probs_BKV[last_B, :, rules.eos] = ends_BK
    if forced_B is not None and kept_BK is not None:
        rows_B = (forced_B >= 0).nonzero()[:, 0]
        log_probs_BKV[rows_B] = NEG_INF
        log_probs_BKV[rows_B, :, forced_B[rows_B]] = kept_BK[rows_B]


def _forced_tokens(beam: SearchState) -> Tensor | None:
    """The prefix's next piece of each sentence, -1 where it has none: [B]; None if no sentence has any."""
    if beam.length >= beam.prefixes_BP.shape[1]:
        return None
    forced_B = beam.prefixes_BP[:, beam.length]
    return forced_B if (forced_B >= 0).any() else None


def _restrict_after_prefix(log_probs_BKV: Tensor, beam: SearchState, allowed: tuple[int, ...]) -> None:
    """Where a prefix has just ended, only these pieces."""
    place, prefixes_BP = beam.length, beam.prefixes_BP
    if not 0 < place <= prefixes_BP.shape[1]:
        return
    behind_B = prefixes_BP[:, place - 1] >= 0
    if place < prefixes_BP.shape[1]:
        behind_B = behind_B & (prefixes_BP[:, place] < 0)
    if behind_B.any():
        others_V = torch.ones(log_probs_BKV.shape[2], dtype=torch.bool, device=log_probs_BKV.device)
        others_V[list(allowed)] = False
        log_probs_BKV.masked_fill_(behind_B[:, None, None] & others_V, NEG_INF)


def _block_repeated_ngrams(log_probs_BKV: Tensor, tokens_BKT: Tensor, n: int) -> None:
    """No sequence of n pieces twice in a hypothesis (Paulus et al. 2018, section 2.5)."""
    T = tokens_BKT.shape[2]
    if n > T:
        return
    grams_BKMn = tokens_BKT.unfold(2, n, 1)  # [B, K, T - n + 1, n]
    newest_BKn = tokens_BKT[:, :, T - n + 1 :]  # [B, K, n - 1]
    same_BKM = (grams_BKMn[..., :-1] == newest_BKn[:, :, None]).all(-1)
    b, k, m = same_BKM.nonzero(as_tuple=True)
    log_probs_BKV[b, k, grams_BKMn[b, k, m, -1]] = NEG_INF
