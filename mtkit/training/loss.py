"""Label-smoothed cross-entropy over real target tokens, without ever materializing the logits of a whole batch.

Shapes: M real target positions, D model width, V vocabulary; B, S, T as in mtkit/data/batching.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtkit.data.batching import Batch
from mtkit.model.transformer import Transformer

CHUNK_POSITIONS = 1024
"""Target positions whose logits exist at the same time."""
_ROWS_IN_CACHE = 128
"""Positions that a CPU processes at a time, so that their logits stay in its cache."""


class LossSums(NamedTuple):
    """Sums over positions, to be divided by the number of positions of a whole update."""

    loss: Tensor
    """The training objective: (1 - smoothing) x negative log-likelihood + smoothing x the mean negative
    log-probability over the vocabulary. Scalar."""
    nll: Tensor
    """Negative log-likelihood in nats, whose mean is the log of the perplexity. Scalar, without gradient."""


class _SmoothedCrossEntropy(torch.autograd.Function):
    """Output projection, log-softmax and label smoothing (Szegedy et al. 2016, section 7), one chunk at a time.

    The gradient, softmax minus smoothed target, is computed in the forward pass, while a chunk's logits exist.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_M: Tensor,
        smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        """Return the sums of loss and nll, in float32 or better."""
        weight = weight_VD.to(hidden_MD.dtype)
        bias = None if bias_V is None else bias_V.to(hidden_MD.dtype)
        sum_dtype = torch.promote_types(hidden_MD.dtype, torch.float32)
        loss, nll = hidden_MD.new_zeros(2, dtype=sum_dtype)
        needs_grad = any(ctx.needs_input_grad)
        hidden_grad = torch.empty_like(hidden_MD) if needs_grad else None
        weight_grad = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None  # it may be frozen
        bias_grad = torch.zeros_like(bias_V) if ctx.needs_input_grad[2] and bias_V is not None else None
        for start in range(0, hidden_MD.shape[0], CHUNK_POSITIONS):
            rows = slice(start, start + CHUNK_POSITIONS)
            logits = hidden_MD[rows] @ weight.T  # [chunk, V]
            if bias is not None:
                logits += bias
            chunk_loss, chunk_nll = _replace_by_gradient(logits, targets_M[rows, None], smoothing, sum_dtype)
            loss, nll = loss + chunk_loss, nll + chunk_nll
            if hidden_grad is not None:
                hidden_grad[rows] = logits @ weight
            if weight_grad is not None:
                weight_grad += logits.T @ hidden_MD[rows]
            if bias_grad is not None:
                bias_grad += logits.sum(dim=0, dtype=bias_grad.dtype)
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients computed in the forward pass, scaled by the incoming one."""
        hidden_grad, weight_grad, bias_grad = ctx.saved_tensors
        scale = grads[0]
        of_parameters = [None if grad is None else grad * scale for grad in (weight_grad, bias_grad)]
        return hidden_grad * scale.to(hidden_grad.dtype), *of_parameters, None, None


def _replace_by_gradient(
    logits: Tensor, targets_M1: Tensor, smoothing: float, sum_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the sums of loss and nll of a chunk, and overwrite its logits [chunk, V] with the gradient of the loss.

    A CPU processes few rows at a time, so that they stay in its cache from one operation to the next.
    """
    loss, nll = logits.new_zeros(2, dtype=sum_dtype)
    num_rows = _ROWS_IN_CACHE if logits.device.type == "cpu" else len(logits)
    for rows, targets in zip(logits.split(num_rows), targets_M1.split(num_rows), strict=True):
        rows_loss, rows_nll, probabilities = _smoothed_cross_entropy(rows.to(sum_dtype), targets, smoothing)
        loss, nll = loss + rows_loss, nll + rows_nll
        gradient = probabilities.sub_(smoothing / logits.shape[1])
        rows.copy_(
            gradient.scatter_add_(1, targets, torch.full_like(targets, smoothing - 1, dtype=sum_dtype))
        )
    return loss, nll


def _smoothed_cross_entropy(
    logits: Tensor, targets_M1: Tensor, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums of loss and nll, and the softmax, of logits [positions, V].

    With z = logsumexp(logits), the nll is z - logit of the target, and the mean negative log-probability over the
    vocabulary is z - mean logit, so no log-probability but the target's is computed. z itself is the largest logit
    minus the log of the largest probability, which is at least 1/V and therefore never rounded to 0.
    """
    probabilities = logits.softmax(dim=1)
    z = logits.amax(dim=1, keepdim=True) - probabilities.amax(dim=1, keepdim=True).log()
    nll = (z - logits.gather(1, targets_M1)).sum()
    uniform = (z - logits.mean(dim=1, keepdim=True)).sum()
    return (1 - smoothing) * nll + smoothing * uniform, nll, probabilities


def loss_sums(
    hidden_MD: Tensor,
    output_weight_VD: Tensor,
    targets_M: Tensor,
    smoothing: float,
    output_bias_V: Tensor | None = None,
) -> LossSums:
    """Return the loss at the real target positions, summed.

    Args:
        hidden_MD: decoder output at these positions.
        output_weight_VD: output projection.
        targets_M: target tokens, the ids to predict.
        smoothing: label smoothing, at least 0 and below 1.
        output_bias_V: bias of the logits, if there is one.
    """
    weight_VD, bias_V = output_weight_VD, output_bias_V
    if not torch.is_grad_enabled():  # otherwise their gradients would still be computed
        weight_VD, bias_V = weight_VD.detach(), None if bias_V is None else bias_V.detach()
    loss, nll = _SmoothedCrossEntropy.apply(hidden_MD, weight_VD, bias_V, targets_M, smoothing)
    return LossSums(loss, nll)


@dataclass(frozen=True)
class TensorBatch:
    """A batch as tensors on the device of the model; shapes as in `Batch`."""

    src_BS: Tensor
    tgt_in_BT: Tensor
    tgt_out_BT: Tensor
    mask_BT: Tensor

    @classmethod
    def from_batch(cls, batch: Batch, device: torch.device) -> TensorBatch:
        """Wrap the arrays of a batch without a copy, or copy them to a GPU asynchronously, through pinned memory."""
        arrays = batch.src, batch.tgt_in, batch.tgt_out, batch.tgt_mask
        tensors = [torch.from_numpy(array) for array in arrays]
        if device.type == "cuda":
            tensors = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
        return cls(*tensors)


def hidden_at_targets(model: Transformer, batch: Batch | TensorBatch) -> tuple[Tensor, Tensor]:
    """Return the decoder output at the real target positions of a batch [M, D], and the target tokens there [M]."""
    if isinstance(batch, Batch):
        batch = TensorBatch.from_batch(batch, model.output.weight.device)
    return model(batch.src_BS, batch.tgt_in_BT)[batch.mask_BT], batch.tgt_out_BT[batch.mask_BT]


def batch_loss(model: Transformer, batch: Batch, smoothing: float) -> LossSums:
    """Return the loss of a batch, summed over its real target positions; padding is never projected."""
    hidden_MD, targets_M = hidden_at_targets(model, batch)
    return loss_sums(hidden_MD, model.output.weight, targets_M, smoothing, model.output.bias)
