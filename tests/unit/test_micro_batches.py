"""Micro-batches of an update: every pair is trained on once, at any world size and accumulation."""

from __future__ import annotations

import numpy as np
import pytest

from mtkit.config.sections import TrainingConfig
from mtkit.data.batching import num_positions, split_into_micro_batches


def update(*sizes: int) -> list[np.ndarray]:
    """Return batches of these sizes, whose pairs are numbered from 0."""
    numbers = iter(range(sum(sizes)))
    return [np.array([next(numbers) for _ in range(size)]) for size in sizes]


@pytest.mark.parametrize("min_micro_batches", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("sizes", [(10,), (7, 5), (3, 1, 9, 4), (1,)])
def test_every_pair_is_in_one_micro_batch_and_all_processes_have_equally_many(
    sizes: tuple[int, ...], world_size: int, min_micro_batches: int
) -> None:
    batches = update(*sizes)
    micro_batches = split_into_micro_batches(batches, world_size, min_micro_batches)
    assert sorted(np.concatenate(micro_batches).tolist()) == list(range(sum(sizes)))
    assert len(micro_batches) % world_size == 0
    assert len(micro_batches) % len(batches) == 0
    assert len(micro_batches) // len(batches) >= min_micro_batches
    for number, batch in enumerate(batches):
        of_batch = micro_batches[
            number * len(micro_batches) // len(batches) : (number + 1) * len(micro_batches) // len(batches)
        ]
        assert sorted(np.concatenate(of_batch).tolist()) == batch.tolist()
        assert max(map(len, of_batch)) - min(map(len, of_batch)) <= 1


def test_batches_are_not_split_if_they_divide_evenly() -> None:
    batches = update(4, 3, 5, 2)
    for world_size in (1, 2, 4):
        micro_batches = split_into_micro_batches(batches, world_size)
        assert [micro_batch.tolist() for micro_batch in micro_batches] == [
            batch.tolist() for batch in batches
        ]


def test_positions_of_a_batch_are_padded_on_both_sides() -> None:
    src, tgt = np.array([3, 5, 1], np.int32), np.array([2, 2, 7], np.int32)
    assert num_positions(np.array([0, 1]), src, tgt) == 2 * (6 + 3)
    assert num_positions(np.array([0, 1, 2]), src, tgt) == 3 * (6 + 8)


@pytest.mark.parametrize(
    ("keys", "batch_token_budget", "batches"),
    [
        ({"batch_tokens": 1000, "accumulate": 3}, 1000, 3),
        ({"batch_tokens": 1000, "update_tokens": 3900}, 1000, 4),
        ({"batch_tokens": 1000, "update_tokens": 100}, 1000, 1),
        ({"batch_tokens": "auto", "update_tokens": 25000}, 25000, 1),
    ],
)
def test_batches_per_update(keys: dict[str, int | str], batch_token_budget: int, batches: int) -> None:
    training = TrainingConfig.model_validate(keys)
    assert (training.batch_token_budget, training.batches_per_update) == (batch_token_budget, batches)
