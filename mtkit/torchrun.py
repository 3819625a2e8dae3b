"""Environment variables that torchrun sets in the processes it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from mtkit.errors import ConfigError

_HINT = "start several processes with torchrun, or unset WORLD_SIZE"


class Ranks(NamedTuple):
    """Place of a process among those that torchrun started.

    Attributes:
        rank: number of the process, from 0.
        world_size: number of processes.
        local_rank: number of the process on its machine, from 0; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = None


def read_ranks(variables: Mapping[str, str] = os.environ, *, communicates: bool = False) -> Ranks:
    """Read the place of this process; without torchrun it is the only one.

    Args:
        variables: the environment.
        communicates: whether the processes will form a process group. Then all variables must be set that
            `torch.distributed` needs; otherwise RANK and WORLD_SIZE are enough.

    Raises:
        ConfigError: If WORLD_SIZE is above 1 and another variable is missing or not a valid number.
    """
    world_size = variables.get("WORLD_SIZE", "1")
    if world_size == "1":
        return Ranks()
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if communicates else ("RANK",)
    for name in needed:
        if not variables.get(name):
            raise ConfigError(f"WORLD_SIZE is set, but {name} is not", hint=_HINT)
    rank, local_rank = variables["RANK"], variables.get("LOCAL_RANK")
    numbers = [rank, world_size] + ([local_rank] if local_rank else [])
    if not all(map(str.isdecimal, numbers)) or int(rank) >= int(world_size):
        names = [name for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if variables.get(name)]
        found = ", ".join(f"{name} is {variables[name]!r}" for name in names)
        raise ConfigError(f"not a valid rank: {found}", hint=_HINT)
    return Ranks(int(rank), int(world_size), int(local_rank) if local_rank else None)


def local_world_size() -> int:
    """Return the number of processes that torchrun started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def was_restarted() -> bool:
    """Return whether torchrun or SLURM has started this command again, with the same arguments, after it had ended."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count.isdecimal() and int(count) > 0 for count in counts)


def is_main_process() -> bool:
    """Return whether this process prints and writes: the one of rank 0, or the only one. Never raises."""
    return os.environ.get("RANK", "0") == "0"
