"""Label-smoothed cross-entropy over real target tokens, without ever materializing the logits of a whole batch.

With SimCut or R-Drop a batch runs twice, as two streams that differ in dropout and cutoff, and their predictions are
drawn together. With distillation, the predictions of teachers are a part of the target.

Shapes: M real target positions, D model width, V vocabulary, N streams; B, S, T as in mtkit/data/batching.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtkit.data.batching import Batch
from mtkit.device import to_device
from mtkit.model.compiled import compiled, mark_size
from mtkit.model.cpu.native import training as native
from mtkit.model.packed import Packing
from mtkit.model.transformer import Transformer
from mtkit.training.distillation import TeacherPredictions

CHUNK_POSITIONS = 1024
"""Target positions whose logits exist at the same time."""
_COMPILED_CHUNK_POSITIONS = 4096
"""The same for a compiled loss, which keeps no other tensor of their size."""
_ROWS_IN_CACHE = 128
"""Positions that a CPU processes at a time, so that their logits stay in its cache."""


@dataclass(frozen=True)
class Consistency:
    """Terms of a loss over two streams of the same batch, p1 and p2 being their predictions at a position.

    Attributes:
        cross_entropy: weights of the cross-entropies of p1 and of p2.
        divergence: weights of KL(p1 || p2) and of KL(p2 || p1).
        cutoff: probability that a token of the second stream, on either side, has no embedding.
    """

    cross_entropy: tuple[float, float]
    divergence: tuple[float, float]
    cutoff: float = 0.0

    @classmethod
    def simcut(cls, alpha: float, cutoff: float) -> Consistency:
        """SimCut (Gao et al. 2022, eq. 6): the second stream has tokens cut off, and the gradient goes through both."""
        return cls((1.0, 0.0), (alpha, 0.0), cutoff)

    @classmethod
    def r_drop(cls, alpha: float) -> Consistency:
        """R-Drop (Liang et al. 2021, eq. 4), halved, so that the loss is that of a token as without it."""
        return cls((0.5, 0.5), (alpha / 4, alpha / 4))


class LossSums(NamedTuple):
    """Sums over positions, to be divided by the number of positions of a whole update."""

    loss: Tensor
    """The training objective: (1 - smoothing) x negative log-likelihood + smoothing x the mean negative log-probability
    over the vocabulary, with the terms of `Consistency` and `TeacherPredictions` if there are any. Scalar."""
    nll: Tensor
    """Negative log-likelihood in nats, whose mean is the log of the perplexity. Scalar, without gradient."""


class _ChunkedLoss(torch.autograd.Function):
    """Output projection, log-softmax and label smoothing (Szegedy et al. 2016, section 7), one chunk at a time.

    The gradient, softmax minus smoothed target, is computed in the forward pass, while a chunk's logits exist.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NMD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_M: Tensor,
        smoothing: float,
        consistency: Consistency | None,
        distillation: TeacherPredictions | None,
        compiles: bool,
        cast_weight_VD: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the sums of loss and nll, in float32 or better."""
        weight = weight_VD.to(hidden_NMD.dtype) if cast_weight_VD is None else cast_weight_VD
        bias = None if bias_V is None else bias_V.to(hidden_NMD.dtype)
        sum_dtype = torch.promote_types(hidden_NMD.dtype, torch.float32)
        loss, nll = hidden_NMD.new_zeros(2, dtype=sum_dtype)
        needs_grad = any(ctx.needs_input_grad)
        hidden_grad = torch.empty_like(hidden_NMD) if needs_grad else None
        weight_grad = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None  # it may be frozen
        bias_grad = torch.zeros_like(bias_V) if ctx.needs_input_grad[2] and bias_V is not None else None
        is_plain = needs_grad and consistency is None and distillation is None and not compiles
        chunk = _COMPILED_CHUNK_POSITIONS if compiles else CHUNK_POSITIONS
        size = chunk // (len(hidden_NMD) + (distillation is not None))
        for start in range(0, hidden_NMD.shape[1], size):
            positions = slice(start, start + size)
            hidden = hidden_NMD[:, positions]
            rows = hidden.flatten(0, 1)
            logits = rows @ weight.T  # [N x chunk, V]
            if bias is not None:
                logits += bias
            if is_plain and native.trains_natively(logits):
                sums = native.replace_by_gradient(logits, targets_M[positions], smoothing)
                chunk_loss, chunk_nll = logits.new_tensor(sums, dtype=sum_dtype)
            else:
                teachers = None if distillation is None else distillation.probabilities(positions, sum_dtype)
                logits_NCV, targets_C1 = logits.view(*hidden.shape[:2], -1), targets_M[positions, None]
                replace_by_gradient = _replace_by_gradient
                if compiles and len(targets_C1) > 1:
                    replace_by_gradient = compiled(_replace_by_gradient)
                    mark_size(logits_NCV, 1)
                    mark_size(targets_C1, 0)
                    if teachers is not None:
                        mark_size(teachers, 0)
                chunk_loss, chunk_nll = replace_by_gradient(
                    logits_NCV, targets_C1, smoothing, consistency, sum_dtype, distillation, teachers
                )
            loss, nll = loss + chunk_loss, nll + chunk_nll
            if hidden_grad is not None:
                hidden_grad[:, positions] = (logits @ weight).view_as(hidden)
            if weight_grad is not None:
                weight_grad += logits.T @ rows
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
        return hidden_grad * scale.to(hidden_grad.dtype), *of_parameters, *[None] * 6


def _replace_by_gradient(
    logits_NCV: Tensor,
    targets_C1: Tensor,
    smoothing: float,
    consistency: Consistency | None,
    sum_dtype: torch.dtype,
    distillation: TeacherPredictions | None,
    teachers_CV: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the sums of loss and nll of a chunk of C positions, and overwrite its logits with the loss's gradient.

    A CPU processes few rows at a time, so that they stay in its cache from one operation to the next.
    """
    loss, nll = logits_NCV.new_zeros(2, dtype=sum_dtype)
    num_rows = len(targets_C1)
    if logits_NCV.device.type == "cpu" and not torch.compiler.is_compiling():
        num_rows = _ROWS_IN_CACHE // len(logits_NCV)
    blocks = zip(logits_NCV.split(num_rows, dim=1), targets_C1.split(num_rows), strict=True)
    for number, (rows, targets) in enumerate(blocks):
        streams = [_smoothed_cross_entropy(stream.to(sum_dtype), targets, smoothing) for stream in rows]
        if distillation is not None and teachers_CV is not None:
            taught = teachers_CV[number * num_rows :][: len(targets)]
            for i, (own_loss, own_nll, gradient) in enumerate(streams):
                own_loss, gradient = distillation.mix(rows[i].to(sum_dtype), taught, own_loss, gradient)
                streams[i] = own_loss, own_nll, gradient
        if consistency is None:
            [(rows_loss, rows_nll, gradient)] = streams
            gradients = [gradient]
        else:
            rows_loss, rows_nll, gradients = _consistent(rows.to(sum_dtype), streams, consistency)
        loss, nll = loss + rows_loss, nll + rows_nll
        for stream, gradient in zip(rows, gradients, strict=True):
            stream.copy_(gradient)
    return loss, nll


def _smoothed_cross_entropy(
    logits: Tensor, targets_M1: Tensor, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums of loss and nll, and the gradient of the loss, of logits [positions, V].

    With z = logsumexp(logits), the nll is z - logit of the target, and the mean negative log-probability over the
    vocabulary is z - mean logit, so no log-probability but the target's is computed. z itself is the largest logit
    minus the log of the largest probability, which is at least 1/V and therefore never rounded to 0.
    """
    probabilities = logits.softmax(dim=1)
    z = logits.amax(dim=1, keepdim=True) - probabilities.amax(dim=1, keepdim=True).log()
    nll = (z - logits.gather(1, targets_M1)).sum()
    uniform = (z - logits.mean(dim=1, keepdim=True)).sum()
    gradient = probabilities.sub_(smoothing / logits.shape[1])
    if torch.compiler.is_compiling():  # a comparison becomes part of the pass that writes the gradient
        is_target = torch.arange(logits.shape[1], device=logits.device) == targets_M1
        gradient = torch.where(is_target, gradient + (smoothing - 1), gradient)
    else:
        gradient.scatter_add_(1, targets_M1, torch.full_like(targets_M1, smoothing - 1, dtype=logits.dtype))
    return (1 - smoothing) * nll + smoothing * uniform, nll, gradient


def _consistent(
    logits_2CV: Tensor, streams: Sequence[tuple[Tensor, Tensor, Tensor]], consistency: Consistency
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the sums of loss and nll of two streams, and the gradient of the loss in each.

    The gradient of KL(p || q) is p (log p - log q - KL(p || q)) in the logits of p, and q - p in those of q.

    Args:
        logits_2CV: logits of both streams.
        streams: loss, nll and gradient of each stream's own cross-entropy.
        consistency: weights of the terms.
    """
    losses, nlls, own_gradients = zip(*streams, strict=True)
    weights = consistency.cross_entropy
    loss = sum(weight * own for weight, own in zip(weights, losses, strict=True))
    nll = sum(weight * own for weight, own in zip(weights, nlls, strict=True))
    gradients = [weight * own for weight, own in zip(weights, own_gradients, strict=True)]
    log_probs = logits_2CV.log_softmax(dim=-1)
    probabilities = log_probs.exp()
    for p, q, weight in ((0, 1, consistency.divergence[0]), (1, 0, consistency.divergence[1])):
        if weight:
            ratios = log_probs[p] - log_probs[q]
            divergences = (probabilities[p] * ratios).sum(dim=-1, keepdim=True)
            loss = loss + weight * divergences.sum()
            gradients[p] += weight * probabilities[p] * (ratios - divergences)
            gradients[q] += weight * (probabilities[q] - probabilities[p])
    return loss, nll, gradients


def loss_sums(
    hidden: Tensor,
    output_weight_VD: Tensor,
    targets_M: Tensor,
    smoothing: float,
    output_bias_V: Tensor | None = None,
    consistency: Consistency | None = None,
    distillation: TeacherPredictions | None = None,
    *,
    compiles: bool = False,
    cast_weight_VD: Tensor | None = None,
) -> LossSums:
    """Return the loss at the real target positions, summed.

    Args:
        hidden: decoder output at these positions, [M, D]; with `consistency` that of two streams, [2, M, D].
        output_weight_VD: output projection.
        targets_M: target tokens, the ids to predict.
        smoothing: label smoothing, at least 0 and below 1.
        output_bias_V: bias of the logits, if there is one.
        consistency: terms of the loss over two streams.
        distillation: predictions of teachers, from which each stream learns.
        compiles: whether the loss of a chunk, from its logits to their gradient, runs compiled.
        cast_weight_VD: output projection in the dtype of the products, if it has been cast already.
    """
    hidden_NMD = hidden[None] if consistency is None else hidden
    weight_VD, bias_V = output_weight_VD, output_bias_V
    if not torch.is_grad_enabled():  # otherwise their gradients would still be computed
        weight_VD, bias_V = weight_VD.detach(), None if bias_V is None else bias_V.detach()
    loss, nll = _ChunkedLoss.apply(
        hidden_NMD,
        weight_VD,
        bias_V,
        targets_M,
        smoothing,
        consistency,
        distillation,
        compiles,
        cast_weight_VD,
    )
    return LossSums(loss, nll)


@dataclass(frozen=True)
class TensorBatch:
    """A batch as tensors on the device of the model; shapes as in `Batch`."""

    src_BS: Tensor
    tgt_in_BT: Tensor
    tgt_out_BT: Tensor
    mask_BT: Tensor
    links: Tensor | None = None
    positions_M: Tensor | None = None
    """Positions of the real target tokens among all B x T; only on a GPU, which must be waited for to find them."""
    packings: tuple[Packing, Packing] | None = None
    """The sentences of both sides, if they are packed: B is then 1, and no token is padding."""

    @classmethod
    def from_batch(cls, batch: Batch, device: torch.device, packed_pad: int | None = None) -> TensorBatch:
        """Wrap the arrays of a batch without a copy, or copy them to a GPU asynchronously, through pinned memory.

        Args:
            batch: the batch.
            device: where the tensors are to be.
            packed_pad: the token that pads sources, if sentences are to be packed. A batch without targets never is.
        """
        if packed_pad is not None and batch.tgt_mask.any():
            return cls._packed(batch, batch.src != packed_pad, device)
        arrays = batch.src, batch.tgt_in, batch.tgt_out, batch.tgt_mask, batch.links
        tensors = [None if array is None else torch.from_numpy(array) for array in arrays]
        if device.type == "cuda":
            tensors.append(torch.from_numpy(np.flatnonzero(batch.tgt_mask)))
        tensors = [x if x is None else to_device(x, device) for x in tensors]
        return cls(*tensors)  # type: ignore[arg-type]  # links may be None

    @classmethod
    def _packed(cls, batch: Batch, src_mask: npt.NDArray[np.bool_], device: torch.device) -> TensorBatch:
        """Return the real tokens of a batch, packed in a row."""

        def tensor(array: npt.NDArray[Any]) -> Tensor:
            return to_device(torch.from_numpy(array), device)

        def packing(mask: npt.NDArray[np.bool_]) -> Packing:
            lengths = mask.sum(axis=1)
            starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            return Packing(tensor(starts), tensor(np.nonzero(mask)[1]), int(lengths.max()))

        sides = (batch.src, src_mask), (batch.tgt_in, batch.tgt_mask), (batch.tgt_out, batch.tgt_mask)
        src, tgt_in, tgt_out = (tensor(tokens[mask][None]) for tokens, mask in sides)
        packings = packing(src_mask), packing(batch.tgt_mask)
        return cls(src, tgt_in, tgt_out, torch.ones_like(tgt_out, dtype=torch.bool), packings=packings)

    def at_targets(self, x_NBT: Tensor) -> Tensor:
        """Return the real target positions of N streams, a tensor [N x B, T, ...]: [N, M, ...]."""
        if self.packings is not None:
            return x_NBT
        N = len(x_NBT) // len(self.mask_BT)
        if self.positions_M is not None:
            return x_NBT.unflatten(0, (N, -1)).flatten(1, 2).index_select(1, self.positions_M)
        found = x_NBT[self.mask_BT if N == 1 else self.mask_BT.repeat(N, 1)]  # [N x M, ...]
        return found.view(N, len(found) // N, *found.shape[1:])


def hidden_at_targets(
    model: Transformer,
    batch: Batch | TensorBatch,
    consistency: Consistency | None = None,
    alignment: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the decoder output at the real target positions of a batch, and the target tokens there [M].

    The output is [M, D], or [2, M, D] with `consistency`: the batch runs twice, as one of twice as many rows.
    `alignment` gets the logs of attention of all rows (see `Transformer.decode`).
    """
    if isinstance(batch, Batch):
        batch = TensorBatch.from_batch(batch, model.output.weight.device)
    [targets_M] = batch.at_targets(batch.tgt_out_BT)
    packings = batch.packings
    if consistency is None:
        hidden_BTD = model(batch.src_BS, batch.tgt_in_BT, alignment=alignment, packings=packings)
        [hidden_MD] = batch.at_targets(hidden_BTD)
        return hidden_MD, targets_M
    src, tgt = (torch.cat([side, side]) for side in (batch.src_BS, batch.tgt_in_BT))
    kept = (
        [_cut_off_second(ids, consistency.cutoff) for ids in (src, tgt)]
        if consistency.cutoff
        else [None, None]
    )
    hidden_BTD = model(src, tgt, *kept, num_streams=2, alignment=alignment, packings=packings)
    return batch.at_targets(hidden_BTD), targets_M


def _cut_off_second(ids: Tensor, probability: float) -> Tensor:
    """Return which tokens keep their embedding: all of the first stream, and each of the second by chance."""
    kept = torch.rand(ids.shape, device=ids.device) >= probability
    kept[: len(ids) // 2] = True
    return kept


def batch_loss(model: Transformer, batch: Batch, smoothing: float) -> LossSums:
    """Return the loss of a batch, summed over its real target positions; padding is never projected."""
    hidden_MD, targets_M = hidden_at_targets(model, batch)
    return loss_sums(hidden_MD, model.output.weight, targets_M, smoothing, model.output.bias)
