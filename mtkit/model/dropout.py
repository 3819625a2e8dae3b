"""Dropout (Srivastava et al. 2014) with masks that are cheap to draw on a CPU.

PyTorch draws the masks of CPU dropout one float at a time, which takes an eighth of a training step of a small model.
Here one random 64-bit number gives eight mask entries of one byte each, so the probability is rounded to 1/256.
Kept entries are scaled by the inverse of the rounded probability of keeping, so the expectation is exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Zero entries of `x` (any shape) with this probability and scale up the rest. Seeded by `torch.manual_seed`."""
    if not training or probability == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    return x * scaled_keep_mask(x, probability)


def add_dropped(residual: Tensor, x: Tensor, probability: float, training: bool) -> Tensor:
    """Return `residual + dropout(x)`, on CPUs in one pass. Both have the same shape, which may be any."""
    if not training or probability == 0.0:
        return residual + x
    if x.device.type != "cpu":
        return residual + F.dropout(x, probability)
    threshold = drop_threshold(probability)
    return torch.addcmul(residual, x, keep_mask(x, threshold), value=256 / (256 - threshold))


def scaled_keep_mask(like: Tensor, probability: float) -> Tensor:
    """Return the factors of dropout for `like` (any shape, on a CPU): 0, or the scale of kept entries."""
    threshold = drop_threshold(probability)
    return keep_mask(like, threshold).mul_(256 / (256 - threshold))


def drop_threshold(probability: float) -> int:
    """Return the threshold, 1 to 255, below which a random byte drops its entry."""
    return min(255, max(1, round(probability * 256)))


def keep_mask(like: Tensor, threshold: int) -> Tensor:
    """Return a random mask with the shape and dtype of `like`: 1 where an entry is kept, 0 where it is dropped."""
    words = torch.empty(-(-like.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    random_bytes = words.view(torch.uint8)[: like.numel()].view(like.shape)
    out = torch.empty_like(like, requires_grad=False)
    return torch.ge(random_bytes, threshold, out=out)  # into `out`: one pass, without a boolean tensor
