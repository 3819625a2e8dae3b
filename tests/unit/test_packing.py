"""Packed matrices give what the plain ones give; the search over many pieces finds what a sort finds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from mtkit.config import ModelConfig
from mtkit.decoding.topk import largest
from mtkit.model.packing import Int8Linear, can_multiply_int8, can_pack, pack
from mtkit.model.transformer import Transformer

packable = pytest.mark.skipif(not can_pack(torch.float32), reason="this PyTorch has no packed matrices")


@packable
@pytest.mark.parametrize("keys", [{}, {"activation": "swiglu", "bias": False}, {"unique_decoder_layers": 1}])
def test_a_packed_model_is_the_model(keys: dict[str, Any]) -> None:
    torch.manual_seed(1)
    config = ModelConfig(d_model=32, num_heads=2, encoder_layers=2, decoder_layers=2, **keys)
    model = Transformer(config, 72, 72).eval()
    packed = copy.deepcopy(model)
    pack(packed)
    src, tgt = torch.randint(1, 72, (3, 7)), torch.randint(1, 72, (3, 5))
    with torch.no_grad():
        torch.testing.assert_close(
            packed.logits(packed(src, tgt)), model.logits(model(src, tgt)), atol=1e-4, rtol=1e-4
        )
    assert len(list(packed.parameters())) < len(list(model.parameters()))


@pytest.mark.skipif(not can_multiply_int8(), reason="this PyTorch has no int8 products")
def test_an_int8_product_is_near_and_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(2)
    linear = torch.nn.Linear(64, 200, bias=False)
    int8 = Int8Linear(linear)
    x = torch.randn(5, 3, 64) * torch.tensor([1e-3, 1.0, 100.0])[:, None]
    with torch.no_grad():
        found, exact = int8(x), linear(x)
        error = (found - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert error.max() < 0.02
        assert torch.equal(int8(x[2:3]), found[2:3])


@pytest.mark.parametrize("V", [8, 100, 320, 1000, 8008])
@pytest.mark.parametrize("priced", [False, True])
def test_the_largest_of_many(V: int, priced: bool) -> None:
    torch.manual_seed(V)
    scores = torch.randn(4, 3, V).log_softmax(-1)
    scores[1] = -torch.inf
    scores[1, :, 5] = -1.0  # fewer than wanted
    previous = torch.tensor([[0.0, -1.0, -torch.inf], [0.0, -2.0, -1.0], [-3.0, -3.5, 0.0], [0.0, 0.0, 0.0]])
    prices = torch.rand(4, V).round() if priced else None
    values, beams, pieces = largest(scores, previous, 10, prices)
    sums = scores + previous[:, :, None]
    chosen_by = sums if prices is None else sums - prices[:, None]
    expected = chosen_by.flatten(1).sort(dim=1, descending=True).values[:, :10]
    price = 0 if prices is None else prices.gather(1, pieces)
    torch.testing.assert_close(values - price, expected)
    real = values > -torch.inf
    there = sums.flatten(1).gather(1, beams * V + pieces)
    torch.testing.assert_close(there[real], values[real])
    assert (pieces < V).all()
    assert all(
        len({*row}) == len(row) for row in [(beams * V + pieces)[i][real[i]].tolist() for i in range(4)]
    )
