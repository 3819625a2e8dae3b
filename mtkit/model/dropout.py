"""Dropout (Srivastava et al. 2014), with masks that are cheap to draw on a CPU.

PyTorch draws CPU dropout masks one float after the other; at small widths that is an eighth of a training step.
Here one 64-bit draw gives eight mask entries of one byte each, so a probability is rounded to 1/256.
What is kept is scaled by the inverse of the probability really used, so the expectation is exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Zero entries of `x` (any shape) with the given probability and scale the others up. Seed: `torch.manual_seed`."""
    if not training or probability == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    return x * scaled_keep_mask(x, probability)


def add_dropped(residual: Tensor, x: Tensor, probability: float, training: bool) -> Tensor:
    """`residual + dropout(x)`, in one pass where the mask is at hand. Both any shape, the same."""
    if not training or probability == 0.0:
        return residual + x
    if x.device.type != "cpu":
        return residual + F.dropout(x, probability)
    dropped = dropped_bytes(probability)
    return torch.addcmul(residual, x, keep_mask(x, dropped), value=256 / (256 - dropped))


def scaled_keep_mask(like: Tensor, probability: float) -> Tensor:
    """What `like` (on a CPU, any shape) is to be multiplied with: 0, or the scale of what is kept."""
    dropped = dropped_bytes(probability)
    return keep_mask(like, dropped).mul_(256 / (256 - dropped))


def dropped_bytes(probability: float) -> int:
    """How many of the 256 values of a byte mean that an entry is dropped; at least one, at most 255."""
    return min(255, max(1, round(probability * 256)))


def keep_mask(like: Tensor, dropped: int) -> Tensor:
    """1 where an entry is kept, else 0: shape and dtype of `like`."""
    words = torch.empty(-(-like.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    octets = words.view(torch.uint8)[: like.numel()].view(like.shape)
    return torch.ge(octets, dropped, out=torch.empty_like(like, requires_grad=False))  # one pass, no booleans
