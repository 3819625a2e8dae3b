"""The largest of very many numbers, on which a search would otherwise spend more time than on its bookkeeping.

Shapes: B sentences, K beam, V vocabulary, C candidates, N blocks of `_BLOCK` pieces.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 64


def largest(
    log_probs_BKV: Tensor, previous_BK: Tensor, number: int, prices_BV: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The most probable continuations of each sentence, best first.

    The maximum of every block of 64 pieces is fast to find; the best C numbers lie in the C blocks with the largest
    maxima, so that only these are looked into.

    Args:
        log_probs_BKV: of the pieces after each hypothesis.
        previous_BK: log-probability of each hypothesis so far, to be added.
        number: how many candidates are wanted.
        prices_BV: what a piece costs in the choice; the log-probabilities given back do not contain it.

    Returns:
        Log-probabilities, beams and pieces: [B, C] each, C the smaller of `number` and K x V.
    """
    B, K, V = log_probs_BKV.shape
    values_BKV = log_probs_BKV if prices_BV is None else log_probs_BKV - prices_BV[:, None]
    C = min(number, K * V)
    if V <= 4 * _BLOCK or K * V // _BLOCK <= C:
        values_BC, places_BC = (values_BKV + previous_BK[:, :, None]).flatten(1).topk(C, dim=1)
        beams_BC, pieces_BC = places_BC // V, places_BC % V
    else:
        values_BC, beams_BC, pieces_BC = _largest_in_blocks(values_BKV, previous_BK, C)
    if prices_BV is not None:
        values_BC = values_BC + prices_BV.gather(1, pieces_BC)
    return values_BC, beams_BC, pieces_BC


def _largest_in_blocks(values_BKV: Tensor, previous_BK: Tensor, C: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `largest`. Where there are fewer than C that are not -inf, the rest are -inf at any place."""
    V = values_BKV.shape[2]
    whole = V // _BLOCK * _BLOCK
    maxima_BKN = values_BKV[:, :, :whole].unflatten(2, (-1, _BLOCK)).amax(dim=3)
    if whole < V:  # the last block is shorter
        maxima_BKN = torch.cat([maxima_BKN, values_BKV[:, :, whole:].amax(dim=2, keepdim=True)], dim=2)
    N = maxima_BKN.shape[2]
    maxima_BM = (maxima_BKN + previous_BK[:, :, None]).flatten(1)  # [B, K x N]
    chosen_BC = maxima_BM.topk(C, dim=1, sorted=False).indices
    beams_BC, inside_b = chosen_BC // N, torch.arange(_BLOCK, device=chosen_BC.device)
    pieces_BCb = (chosen_BC % N * _BLOCK)[:, :, None] + inside_b
    places_BM = (beams_BC[:, :, None] * V + pieces_BCb.clamp(max=V - 1)).flatten(1)  # [B, C x 64]
    inside_BCb = values_BKV.flatten(1).gather(1, places_BM).unflatten(1, (C, _BLOCK))
    inside_BCb = inside_BCb.masked_fill(pieces_BCb >= V, float("-inf"))
    inside_BCb = inside_BCb + previous_BK.gather(1, beams_BC)[:, :, None]
    values_BC, order_BC = inside_BCb.flatten(1).topk(C, dim=1)
    beams_BC = beams_BC.gather(1, order_BC // _BLOCK)
    return values_BC, beams_BC, pieces_BCb.flatten(1).gather(1, order_BC).clamp(max=V - 1)
