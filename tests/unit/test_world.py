"""The world: ranks and what they exchange."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from unittest.mock import MagicMock, Mock

import pytest
import torch
import torch.distributed as dist

from mtkit.errors import ConfigError, TrainingError
from mtkit.torchrun import Ranks, read_ranks
from mtkit.training import run
from mtkit.training.distributed import SINGLE_PROCESS, World, peer_failure_errors
from mtkit.training.validation import interleave

VARIABLES = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}


def test_ranks_come_from_torchrun() -> None:
    assert read_ranks({}) == read_ranks({"WORLD_SIZE": "1"}) == Ranks(0, 1, None)
    assert read_ranks(VARIABLES) == read_ranks(VARIABLES, communicates=True) == Ranks(3, 4, 1)
    assert read_ranks({"WORLD_SIZE": "3", "RANK": "2"}) == Ranks(2, 3, None)


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_incomplete_variables_are_refused(missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        read_ranks({name: value for name, value in VARIABLES.items() if name != missing}, communicates=True)


@pytest.mark.parametrize("rank", ["first", "4", "-1"])
def test_invalid_ranks_are_refused(rank: str) -> None:
    with pytest.raises(ConfigError, match=f"not a valid rank: WORLD_SIZE is '4', RANK is '{rank}'"):
        read_ranks(VARIABLES | {"RANK": rank})


def test_collectives_of_a_single_process_return_its_own_values() -> None:
    assert SINGLE_PROCESS.all_reduce([1.5, 2.0]) == [1.5, 2.0]
    assert SINGLE_PROCESS.all_gather({"a": 1}) == [{"a": 1}]
    SINGLE_PROCESS.barrier()
    with SINGLE_PROCESS.main_process_first():
        pass


def test_the_first_process_of_each_other_machine_follows_the_main_process() -> None:
    """Two machines with three processes each: otherwise all of the second would encode the corpus at once."""
    gate, order = threading.Barrier(6), list[int]()

    class Threads(World):
        def barrier(self) -> None:
            gate.wait(20)

    def enter(rank: int) -> None:
        with Threads(rank, 6, rank % 3).main_process_first():
            order.append(rank)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(enter, range(6)))
    assert order[:2] == [0, 3]
    assert sorted(order[2:]) == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("rank", "ended", "expected"),
    [
        (0, "step 1 is the last", ["average", "score", "results", "card", "report", "barrier"]),
        (1, "step 1 is the last", ["barrier"]),
        (0, None, []),
        (1, None, []),
    ],
)
def test_the_processes_of_a_run_end_together(
    rank: int, ended: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun may end rank 0 while it scores the test sets if all processes of another machine are gone."""
    calls = Mock()
    calls.score.return_value = []
    calls.barrier.side_effect = TrainingError("another process of this run was lost")
    trainer = MagicMock()
    trainer.train.return_value, trainer.report.refresh = ended, calls.report
    trainer.stopwatch.total_seconds.return_value = 1.0
    world = MagicMock(rank=rank, is_main=rank == 0, barrier=calls.barrier)
    monkeypatch.setattr(run, "configure_process", Mock())
    monkeypatch.setattr(run, "init_distributed", lambda *_, **__: nullcontext(world))
    monkeypatch.setattr(run, "_open_run", Mock(return_value=trainer))
    names = {
        "average": "average_last",
        "score": "score_tests",
        "results": "write_results",
        "card": "write_card",
    }
    for name, function in names.items():
        monkeypatch.setattr(run, function, getattr(calls, name))
    # the model is complete when rank 0 comes to the barrier; to the others, its loss is an error
    with pytest.raises(TrainingError) if rank and ended else nullcontext():
        run.train(trainer.config)
    assert [name for name, _, _ in calls.mock_calls] == expected


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("number", [0, 1, 5, 14])
def test_shards_come_back_in_order(size: int, number: int) -> None:
    items = [f"line {n}" for n in range(number)]
    shards = [list(World(rank, size).shard(items)) for rank in range(size)]
    assert sorted(item for shard in shards for item in shard) == sorted(items)
    assert interleave(shards) == items


def test_only_failures_of_other_processes_become_training_errors() -> None:
    with pytest.raises(TrainingError, match="another process"), peer_failure_errors():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")
    with pytest.raises(
        TrainingError, match=r"NCCL failed, or .*: Error while creating shared memory segment"
    ):
        with peer_failure_errors():
            raise dist.DistBackendError(
                "NCCL error in: NCCLUtils.cpp:94, unhandled system error\nLast error:\n"
                "Error while creating shared memory segment /dev/shm/nccl-a (size 9637888)\n\n"
            )
    with pytest.raises(RuntimeError, match="mat1 and mat2"), peer_failure_errors():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(torch.OutOfMemoryError), peer_failure_errors():
        raise torch.OutOfMemoryError("no more")
