"""The world: ranks and what they exchange."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from mtkit.errors import ConfigError, TrainingError
from mtkit.torchrun import Ranks, read_ranks
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
