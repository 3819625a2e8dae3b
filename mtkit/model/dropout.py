"""Dropout of entries (Srivastava et al. 2014), with masks that are cheap to draw on a CPU, of tokens and of layers.

PyTorch draws the masks of CPU dropout one float at a time, which takes an eighth of a training step of a small model.
Here one random 64-bit number gives eight mask entries of one byte each, so the probability is rounded to 1/256.
Kept entries are scaled by the inverse of the rounded probability of keeping, so the expectation is exact.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkit.model.cpu.native import training as native


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Zero entries of `x` (any shape) with this probability and scale up the rest. Seeded by `torch.manual_seed`."""
    if not training or probability == 0.0:
        return x
    if draws_with_pytorch(x):
        return F.dropout(x, probability)
    if _drops_natively(x):
        threshold = drop_threshold(probability)
        return native.add_dropped(None, x, random_bytes(x.numel()), threshold)
    return x * scaled_keep_mask(x, probability)


def add_dropped(residual: Tensor, x: Tensor, probability: float, training: bool) -> Tensor:
    """Return `residual + dropout(x)`, on CPUs in one pass. Both have the same shape, which may be any."""
    if not training or probability == 0.0:
        return residual + x
    if draws_with_pytorch(x):
        return residual + F.dropout(x, probability)
    threshold = drop_threshold(probability)
    if _drops_natively(x, residual):
        return native.add_dropped(residual, x, random_bytes(x.numel()), threshold)
    return torch.addcmul(residual, x, keep_mask(x, threshold), value=256 / (256 - threshold))


def draws_with_pytorch(x: Tensor) -> bool:
    """Return whether PyTorch's dropout is used: on GPUs, and in compiled code, which draws masks on the way."""
    return x.device.type != "cpu" or torch.compiler.is_compiling()


def _drops_natively(x: Tensor, residual: Tensor | None = None) -> bool:
    """Return whether dropout with gradients runs in the compiled library."""
    return torch.is_grad_enabled() and native.trains_natively(x) and native.supports_dropout(x, residual)


def scaled_keep_mask(like: Tensor, probability: float) -> Tensor:
    """Return the factors of dropout for `like` (any shape, on a CPU): 0, or the scale of kept entries."""
    if draws_with_pytorch(like):
        return F.dropout(torch.ones_like(like), probability)
    threshold = drop_threshold(probability)
    return keep_mask(like, threshold).mul_(256 / (256 - threshold))


def drop_threshold(probability: float) -> int:
    """Return the threshold, 1 to 255, below which a random byte drops its entry."""
    return min(255, max(1, round(probability * 256)))


def keep_mask(like: Tensor, threshold: int) -> Tensor:
    """Return a random mask with the shape and dtype of `like`: 1 where an entry is kept, 0 where it is dropped."""
    drawn = random_bytes(like.numel())[: like.numel()].view(like.shape)
    out = torch.empty_like(like, requires_grad=False)
    return torch.ge(drawn, threshold, out=out)  # into `out`: one pass, without a boolean tensor


def random_bytes(number: int) -> Tensor:
    """Return random bytes, which are drawn eight at a time, and `PADDING_BYTES` that the compiled library may read."""
    num_words = -(-number // 8)
    words = torch.empty(num_words + native.PADDING_BYTES // 8, dtype=torch.int64)
    words[:num_words].random_(-(2**63), None)
    return words.view(torch.uint8)


def drop_tokens(x_BTD: Tensor, probability: float, training: bool) -> Tensor:
    """Zero whole tokens of [B, T, D] with this probability and scale up the rest.

    Gal and Ghahramani (2016, section 4.3) drop a word of the vocabulary wherever a sentence has it. Marian drops a
    position in all sentences of a batch; here each token is drawn by itself. As in Marian, tokens that are kept are
    multiplied by 1/(1 - probability).
    """
    if not training or probability == 0.0:
        return x_BTD
    return x_BTD * dropout(x_BTD.new_ones(*x_BTD.shape[:2], 1), probability, training)


def draw_kept_layer(num_streams: int, probability: float) -> list[bool]:
    """Return whether each stream of a batch keeps a layer, which it skips with this probability."""
    kept: list[bool] = (torch.rand(num_streams) >= probability).tolist()
    return kept


def drop_layer(
    layer: nn.Module, run: Callable[[Tensor], Tensor], x_BTD: Tensor, kept: Sequence[bool]
) -> Tensor:
    """Return the output of a layer for the streams that keep it, and its input for the others (Fan et al. 2020).

    A layer that no stream keeps does not run, but its parameters get a gradient of zeros: AdamW moves a weight by
    past gradients too, and processes that drop different layers must exchange the same gradients.

    Args:
        layer: the layer.
        run: maps its input [B, T, D] to its output, of the same shape and dtype.
        x_BTD: the input; B is a multiple of the number of streams.
        kept: whether each stream keeps the layer.
    """
    if all(kept):
        return run(x_BTD)
    if not any(kept):
        return with_zero_gradients(x_BTD, *layer.parameters())
    size, like_B = len(x_BTD) // len(kept), x_BTD[:, 0, 0]
    rows_B = torch.cat([torch.full_like(like_B[:size], own, dtype=torch.bool) for own in kept])
    return torch.where(rows_B[:, None, None], run(x_BTD), x_BTD)


def with_zero_gradients(x: Tensor, *others: Tensor) -> Tensor:
    """Return `x`, such that its backward pass gives the others, which it does not depend on, gradients of zeros."""
    connected: Tensor = _WithZeroGradients.apply(x, *others)
    return connected


class _WithZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *others: Tensor) -> Tensor:
        ctx.save_for_backward(*others)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        others = zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        return grads[0], *(torch.zeros_like(other) if needed else None for other, needed in others)
