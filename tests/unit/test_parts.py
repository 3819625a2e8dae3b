"""Updates cut into parts: every pair is trained on once, whatever the number of processes and slices."""

from __future__ import annotations

import numpy as np
import pytest

from mtkit.config.sections import TrainingConfig
from mtkit.data.batching import num_positions, split_into_micro_batches


def update(*sizes: int) -> list[np.ndarray]:
    """Batches of so many pairs, numbered through."""
    numbers = iter(range(sum(sizes)))
    return [np.array([next(numbers) for _ in range(size)]) for size in sizes]


@pytest.mark.parametrize("slices", [1, 2, 3])
@pytest.mark.parametrize("num_processes", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("sizes", [(10,), (7, 5), (3, 1, 9, 4), (1,)])
def test_every_pair_is_in_one_part_and_every_process_has_as_many_parts(
    sizes: tuple[int, ...], num_processes: int, slices: int
) -> None:
    batches = update(*sizes)
    parts = split_into_micro_batches(batches, num_processes, slices)
    assert sorted(np.concatenate(parts).tolist()) == list(range(sum(sizes)))
    assert len(parts) % num_processes == 0
    assert len(parts) % len(batches) == 0
    assert len(parts) // len(batches) >= slices
    for number, batch in enumerate(batches):
        of_batch = parts[number * len(parts) // len(batches) : (number + 1) * len(parts) // len(batches)]
        assert sorted(np.concatenate(of_batch).tolist()) == batch.tolist()
        assert max(map(len, of_batch)) - min(map(len, of_batch)) <= 1


def test_whole_batches_stay_whole_where_they_deal_out_evenly() -> None:
    batches = update(4, 3, 5, 2)
    for num_processes in (1, 2, 4):
        parts = split_into_micro_batches(batches, num_processes)
        assert [part.tolist() for part in parts] == [batch.tolist() for batch in batches]


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
def test_what_an_update_is_made_of(keys: dict[str, int | str], batch_token_budget: int, batches: int) -> None:
    training = TrainingConfig.model_validate(keys)
    assert (training.batch_token_budget, training.batches_per_update) == (batch_token_budget, batches)
