"""Dropout: the rate, the scale of kept entries, the gradient, and the seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mtkit.model.dropout import add_dropped, drop_threshold, dropout, keep_mask

COUNT = 200_000
Drop = Callable[[Tensor, float], Tensor]


def sublayer_output(x: Tensor, probability: float) -> Tensor:
    return add_dropped(torch.zeros_like(x), x, probability, True)


def plain_dropout(x: Tensor, probability: float) -> Tensor:
    return dropout(x, probability, True)


both = pytest.mark.parametrize("drop", [plain_dropout, sublayer_output])


def within(count: float, n: int, probability: float) -> bool:
    """Return whether a count is within five standard deviations of the binomial distribution."""
    return abs(count - n * probability) < 5 * math.sqrt(n * probability * (1 - probability))


@both
@pytest.mark.parametrize("probability", [0.002, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_rate_and_scale(drop: Drop, probability: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(COUNT) + 0.5
    out = drop(x, probability)
    used = drop_threshold(probability) / 256
    assert abs(used - probability) <= 1 / 256
    assert within(int((out == 0).sum()), COUNT, used)
    kept = out != 0
    torch.testing.assert_close(out[kept], x[kept] / (1 - used), atol=0, rtol=1e-6)
    deviation = math.sqrt(used / (1 - used) * float((x**2).mean()) / COUNT)
    assert abs(float(out.mean() - x.mean())) < 5 * deviation  # the expectation is x


def test_probability_is_rounded_to_a_byte_but_never_to_zero_or_one() -> None:
    assert [drop_threshold(p) for p in (1e-9, 1 / 256, 0.1, 0.25, 0.5, 0.9999)] == [1, 1, 26, 64, 128, 255]


def test_the_eight_bytes_of_a_random_number_are_uniform_and_independent() -> None:
    torch.manual_seed(1)
    draws = torch.stack([keep_mask(torch.empty(8 * 20_000), dropped).view(-1, 8) for dropped in (64, 128)])
    for dropped, lanes in zip((64, 128), draws, strict=True):
        for lane in lanes.T:
            assert within(int((lane == 0).sum()), len(lane), dropped / 256)
    centered = draws[1] - draws[1].mean(0)
    correlations = centered.T @ centered / len(centered) / 0.25
    assert (correlations - torch.eye(8)).abs().max() < 5 / math.sqrt(len(centered)) + 0.01
    correlations = (centered[1:] * centered[:-1]).mean(0) / 0.25
    assert correlations.abs().max() < 5 / math.sqrt(len(centered))


@both
def test_the_seed_determines_the_mask(drop: Drop) -> None:
    x = torch.ones(1000)
    torch.manual_seed(3)
    first, second = drop(x, 0.5), drop(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(drop(x, 0.5), first)
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    assert not torch.equal(drop(x, 0.5), first)


@both
def test_gradient_is_mask_times_scale(drop: Drop) -> None:
    torch.manual_seed(5)
    x = torch.randn(40, 30, requires_grad=True)
    out = drop(x, 0.25)
    upstream = torch.randn_like(x)
    (grad,) = torch.autograd.grad(out, x, upstream)
    kept = out != 0
    assert 0 < int(kept.sum()) < kept.numel()
    torch.testing.assert_close(grad, torch.where(kept, upstream / 0.75, torch.zeros(())), atol=0, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_add_dropped_is_residual_plus_dropout(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    residual, x = torch.randn(2, 33, 7, dtype=dtype).unbind()
    torch.manual_seed(6)
    out = add_dropped(residual, x, 0.3, True)
    torch.manual_seed(6)
    dropped = dropout(x, 0.3, True)
    assert out.dtype == dropped.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-6, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    torch.testing.assert_close(out, residual + dropped, atol=tolerance, rtol=0)
    assert torch.equal(out[dropped == 0], residual[dropped == 0])


def test_add_dropped_passes_the_gradient_of_the_residual_unchanged() -> None:
    residual, x = torch.randn(2, 50, requires_grad=True).unbind()
    out = add_dropped(residual, x, 0.5, True)
    (grad,) = torch.autograd.grad(out.sum(), residual)
    assert torch.equal(grad, torch.ones(50))


def test_without_training_or_probability_dropout_does_nothing_and_draws_nothing() -> None:
    x, residual = torch.randn(2, 9).unbind()
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    assert dropout(x, 0.5, False) is x
    assert dropout(x, 0.0, True) is x
    assert torch.equal(add_dropped(residual, x, 0.5, False), residual + x)
    assert torch.equal(add_dropped(residual, x, 0.0, True), residual + x)
    assert torch.equal(torch.random.get_rng_state(), before)


@both
@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (9,), (0,), (3, 0, 2), (3, 5), (2, 3, 4, 5)])
def test_any_shape(drop: Drop, shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    out = drop(x, 0.5)
    assert out.shape == x.shape
    assert set(out.flatten().tolist()) <= {0.0, 2.0}


@both
def test_noncontiguous_views(drop: Drop) -> None:
    x = torch.rand(6, 4) + 1
    torch.manual_seed(8)
    out = drop(x.T, 0.5)
    torch.manual_seed(8)
    assert torch.equal(out, drop(x.T.contiguous(), 0.5))
    assert ((out == 0) | (out == 2 * x.T)).all()
