"""The most probable continuations among K x V log-probabilities, which `torch.topk` alone would be slow to find.

Shapes: B sentences, K beam, V vocabulary, C candidates, N blocks of `_BLOCK` tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 64


def topk_continuations(
    log_probs_BKV: Tensor, previous_BK: Tensor, k: int, penalties_BV: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k most probable continuations of each sentence, best first.

    The maximum of every block of 64 tokens is fast to compute. The C largest numbers lie in the C blocks with the
    largest maxima, so only these blocks are searched.

    Args:
        log_probs_BKV: log-probabilities of the next token.
        previous_BK: log-probability of each hypothesis so far; it is added.
        k: number of continuations.
        penalties_BV: subtracted from the log-probabilities for the choice, but not from those returned.

    Returns:
        Log-probabilities, hypotheses and tokens: [B, C] each, C the smaller of k and K x V.
    """
    B, K, V = log_probs_BKV.shape
    values_BKV = log_probs_BKV if penalties_BV is None else log_probs_BKV - penalties_BV[:, None]
    C = min(k, K * V)
    if V <= 4 * _BLOCK or K * V // _BLOCK <= C:
        values_BC, indices_BC = (values_BKV + previous_BK[:, :, None]).flatten(1).topk(C, dim=1)
        beams_BC, tokens_BC = indices_BC // V, indices_BC % V
    else:
        values_BC, beams_BC, tokens_BC = _topk_in_blocks(values_BKV, previous_BK, C)
    if penalties_BV is not None:
        values_BC = values_BC + penalties_BV.gather(1, tokens_BC)
    return values_BC, beams_BC, tokens_BC


def _topk_in_blocks(values_BKV: Tensor, previous_BK: Tensor, C: int) -> tuple[Tensor, Tensor, Tensor]:
    """Do the work of `topk_continuations` by blocks. If fewer than C are above -inf, the rest are any that are -inf."""
    V = values_BKV.shape[2]
    divisible = V // _BLOCK * _BLOCK
    maxima_BKN = values_BKV[:, :, :divisible].unflatten(2, (-1, _BLOCK)).amax(dim=3)
    if divisible < V:  # the last block is shorter
        maxima_BKN = torch.cat([maxima_BKN, values_BKV[:, :, divisible:].amax(dim=2, keepdim=True)], dim=2)
    N = maxima_BKN.shape[2]
    maxima_BM = (maxima_BKN + previous_BK[:, :, None]).flatten(1)  # [B, K x N]
    blocks_BC = maxima_BM.topk(C, dim=1, sorted=False).indices
    beams_BC, offsets_b = blocks_BC // N, torch.arange(_BLOCK, device=blocks_BC.device)
    tokens_BCb = (blocks_BC % N * _BLOCK)[:, :, None] + offsets_b  # [B, C, 64]
    indices_BM = (beams_BC[:, :, None] * V + tokens_BCb.clamp(max=V - 1)).flatten(1)  # [B, C x 64]
    values_BCb = values_BKV.flatten(1).gather(1, indices_BM).unflatten(1, (C, _BLOCK))
    values_BCb = values_BCb.masked_fill(tokens_BCb >= V, float("-inf"))
    values_BCb = values_BCb + previous_BK.gather(1, beams_BC)[:, :, None]
    values_BC, order_BC = values_BCb.flatten(1).topk(C, dim=1)
    beams_BC = beams_BC.gather(1, order_BC // _BLOCK)
    return values_BC, beams_BC, tokens_BCb.flatten(1).gather(1, order_BC).clamp(max=V - 1)
