"""The chunked loss against PyTorch's cross-entropy, and its gradients against PyTorch's and finite differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtkit.config.sections import ModelConfig
from mtkit.data.batching import Batch, SpecialIds, make_batch
from mtkit.model.transformer import Transformer
from mtkit.training import loss as loss_module
from mtkit.training.loss import batch_loss, loss_sums

smoothings = pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])


def inputs(M: int, D: int, V: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(M, D, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(V, (M,), generator=generator)


def pytorch_loss(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, targets, label_smoothing=smoothing, reduction="sum")


@smoothings
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("M", "D", "V"), [(1, 3, 2), (7, 5, 11), (40, 16, 50), (1100, 4, 9)])
def test_loss_and_gradients_equal_those_of_pytorch(
    M: int, D: int, V: int, dtype: torch.dtype, smoothing: float
) -> None:
    hidden, weight, targets = inputs(M, D, V, dtype=dtype)
    sums = loss_sums(hidden, weight, targets, smoothing)
    expected = pytorch_loss(hidden, weight, targets, smoothing)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert sums.loss.item() == pytest.approx(expected.item(), rel=tolerance)
    assert sums.nll.item() == pytest.approx(pytorch_loss(hidden, weight, targets, 0.0).item(), rel=tolerance)
    for ours, theirs in zip(
        torch.autograd.grad(3 * sums.loss, (hidden, weight)),
        torch.autograd.grad(3 * expected, (hidden, weight)),
        strict=True,
    ):
        assert ours.dtype == theirs.dtype == dtype
        torch.testing.assert_close(ours, theirs, atol=10 * tolerance, rtol=10 * tolerance)


@smoothings
def test_loss_equals_the_formula(smoothing: float) -> None:
    hidden, weight, targets = inputs(3, 4, 5)
    sums = loss_sums(hidden, weight, targets, smoothing)
    loss = nll = 0.0
    for row, target in zip((hidden @ weight.T).tolist(), targets.tolist(), strict=True):
        normalizer = math.log(sum(math.exp(x) for x in row))
        nll += normalizer - row[target]
        for v, x in enumerate(row):
            wanted = (1 - smoothing) * (v == target) + smoothing / 5
            loss += wanted * (normalizer - x)
    assert sums.loss.item() == pytest.approx(loss, rel=1e-5)
    assert sums.nll.item() == pytest.approx(nll, rel=1e-5)


@smoothings
def test_gradients_equal_finite_differences(smoothing: float) -> None:
    hidden, weight, targets = inputs(6, 3, 7, dtype=torch.float64)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return loss_sums(hidden, weight, targets, smoothing).loss

    assert torch.autograd.gradcheck(loss, (hidden, weight))


@pytest.mark.parametrize("chunk", [1, 2, 7, 29, 30, 1000])
def test_chunk_size_does_not_change_the_loss(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    hidden, weight, targets = inputs(30, 8, 20)
    whole = loss_sums(hidden, weight, targets, 0.1)
    whole_grads = torch.autograd.grad(whole.loss, (hidden, weight))
    monkeypatch.setattr(loss_module, "CHUNK_POSITIONS", chunk)
    parts = loss_sums(hidden, weight, targets, 0.1)
    torch.testing.assert_close(parts.loss, whole.loss, atol=0, rtol=1e-6)
    torch.testing.assert_close(parts.nll, whole.nll, atol=0, rtol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(parts.loss, (hidden, weight)), whole_grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_the_weight_gradient_is_float32(dtype: torch.dtype) -> None:
    hidden, weight, targets = inputs(50, 16, 30)
    exact = loss_sums(hidden, weight, targets, 0.1)
    exact_grads = torch.autograd.grad(exact.loss, (hidden, weight))
    half = loss_sums(hidden.to(dtype), weight, targets, 0.1)
    assert half.loss.dtype == half.nll.dtype == torch.float32
    torch.testing.assert_close(half.loss, exact.loss, atol=0, rtol=0.02)
    torch.testing.assert_close(half.nll, exact.nll, atol=0, rtol=0.02)
    for ours, theirs in zip(torch.autograd.grad(half.loss, (hidden, weight)), exact_grads, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.03 * theirs.norm()


def test_nll_carries_no_gradient() -> None:
    assert not loss_sums(*inputs(4, 3, 5), 0.1).nll.requires_grad


def test_without_gradients_the_sums_are_the_same() -> None:
    hidden, weight, targets = inputs(9, 4, 6)
    with_grad = loss_sums(hidden, weight, targets, 0.1)
    with torch.inference_mode():
        without = loss_sums(hidden.detach(), weight.detach(), targets, 0.1)
    assert torch.equal(without.loss, with_grad.loss)
    assert torch.equal(without.nll, with_grad.nll)
    assert not without.loss.requires_grad


def test_either_input_may_be_frozen() -> None:
    hidden, weight, targets = inputs(9, 4, 6)
    both = torch.autograd.grad(loss_sums(hidden, weight, targets, 0.1).loss, (hidden, weight))
    (hidden_grad,) = torch.autograd.grad(loss_sums(hidden, weight.detach(), targets, 0.1).loss, hidden)
    (weight_grad,) = torch.autograd.grad(loss_sums(hidden.detach(), weight, targets, 0.1).loss, weight)
    assert torch.equal(hidden_grad, both[0])
    assert torch.equal(weight_grad, both[1])


@smoothings
@pytest.mark.parametrize("M", [7, 1100])
def test_with_a_bias_it_equals_torch(M: int, smoothing: float) -> None:
    hidden, weight, targets = inputs(M, 5, 11)
    bias = torch.linspace(-1, 1, 11).requires_grad_()
    ours = loss_sums(hidden, weight, targets, smoothing, bias).loss
    logits = F.linear(hidden, weight, bias)
    theirs = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    inputs_ = (hidden, weight, bias)
    for own, other in zip(
        torch.autograd.grad(ours, inputs_), torch.autograd.grad(theirs, inputs_), strict=True
    ):
        torch.testing.assert_close(own, other, atol=1e-3, rtol=1e-5)


def test_a_weight_used_twice_gets_both_gradients() -> None:
    _, weight, targets = inputs(6, 4, 5)
    ids = torch.tensor([0, 4, 4, 1, 2, 3])
    loss_sums(weight[ids].tanh(), weight, targets, 0.1).loss.backward()
    ours, weight.grad = weight.grad, None
    pytorch_loss(weight[ids].tanh(), weight, targets, 0.1).backward()
    assert ours is not None
    torch.testing.assert_close(ours, weight.grad, atol=1e-5, rtol=1e-5)


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    sums = loss_sums(hidden, weight, torch.tensor([0, 1]), 0.1)
    grads = torch.autograd.grad(sums.loss, (hidden, weight))
    assert sums.nll.item() == 0.0
    assert sums.loss.item() == pytest.approx(2 * 0.05 * 2e4)
    assert all(grad.isfinite().all() for grad in grads)


# --- of a batch --------------------------------------------------------------------------------------------------


class Pairs:
    """A corpus in memory."""

    def __init__(self, *pairs: tuple[list[int], list[int]]) -> None:
        self.pairs = pairs
        self.src_lengths = np.array([len(src) for src, _ in pairs], dtype=np.int32)
        self.tgt_lengths = np.array([len(tgt) for _, tgt in pairs], dtype=np.int32)

    def src(self, index: int) -> Any:
        return np.array(self.pairs[index][0], dtype=np.int32)

    def tgt(self, index: int) -> Any:
        return np.array(self.pairs[index][1], dtype=np.int32)

    def batch(self, *indices: int) -> Batch:
        return make_batch(self, np.array(indices), SpecialIds(0, 3, 0, 2, 3))


def tiny_model(**keys: Any) -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(d_model=8, num_heads=2, encoder_layers=1, decoder_layers=2, dropout=0.0, **keys)
    return Transformer(config, 16, 16, 0)


CORPUS = Pairs(([4, 5, 6], [7, 8]), ([9], [10, 11, 12, 13]), ([14, 15], [4]))


@smoothings
def test_padding_does_not_change_the_loss_of_a_batch(smoothing: float) -> None:
    model, batch = tiny_model(), CORPUS.batch(0, 1, 2)
    sums = batch_loss(model, batch, smoothing)
    logits = model.logits(model(torch.from_numpy(batch.src), torch.from_numpy(batch.tgt_in)))
    targets = torch.from_numpy(batch.tgt_out).masked_fill(~torch.from_numpy(batch.tgt_mask), -100)
    expected = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing, reduction="sum"
    )
    assert batch.num_targets == 10
    assert sums.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(sums.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_loss_of_a_batch_is_the_sum_over_its_micro_batches() -> None:
    model = tiny_model(positions="rotary")
    whole = batch_loss(model, CORPUS.batch(0, 1, 2), 0.1)
    parts = [batch_loss(model, CORPUS.batch(*indices), 0.1) for indices in ((2,), (1, 0))]
    assert whole.loss.item() == pytest.approx(sum(p.loss.item() for p in parts), rel=1e-5)
    assert whole.nll.item() == pytest.approx(sum(p.nll.item() for p in parts), rel=1e-5)
