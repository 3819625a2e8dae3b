"""The most probable continuations, against sorting all of them."""

from __future__ import annotations

import pytest
import torch

from mtkit.search.topk import topk_continuations


@pytest.mark.parametrize("V", [8, 100, 320, 1000, 8008])
@pytest.mark.parametrize("penalized", [False, True])
def test_the_most_probable_of_all_continuations(V: int, penalized: bool) -> None:
    torch.manual_seed(V)
    log_probs = torch.randn(4, 3, V).log_softmax(-1)
    log_probs[1] = -torch.inf
    log_probs[1, :, 5] = -1.0  # fewer than k are possible
    previous = torch.tensor([[0.0, -1.0, -torch.inf], [0.0, -2.0, -1.0], [-3.0, -3.5, 0.0], [0.0, 0.0, 0.0]])
    penalties = torch.rand(4, V).round() if penalized else None
    values, beams, tokens = topk_continuations(log_probs, previous, 10, penalties)
    sums = log_probs + previous[:, :, None]
    ranked_by = sums if penalties is None else sums - penalties[:, None]
    expected = ranked_by.flatten(1).sort(dim=1, descending=True).values[:, :10]
    paid = 0 if penalties is None else penalties.gather(1, tokens)
    torch.testing.assert_close(values - paid, expected)
    possible = values > -torch.inf
    indices = beams * V + tokens
    torch.testing.assert_close(sums.flatten(1).gather(1, indices)[possible], values[possible])
    assert (tokens < V).all()
    for row in range(4):
        chosen = indices[row][possible[row]].tolist()
        assert len(set(chosen)) == len(chosen)
