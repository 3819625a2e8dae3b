"""Distributed training: joining the processes that torchrun started, and the collectives between them.

Everything but gradients is exchanged as CPU tensors over gloo, even where gradients use NCCL. Nothing is pickled.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from mtkit.errors import ConfigError, TrainingError
from mtkit.torchrun import read_ranks

_COLLECTIVE_TIMEOUT = timedelta(seconds=60)
"""Timeout of collectives that all processes reach at the same time, such as the all-reduce of gradients."""
_COMPILE_TIMEOUT = timedelta(minutes=10)
"""The same when torch.compile may delay one of the processes."""
_RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
"""Time within which all processes must have started."""
_WAIT_TIMEOUT = timedelta(days=1)
"""Timeout while the other processes wait for the main one to read, encode, score or save."""


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees them. The collectives do nothing in a single process.

    Attributes:
        rank: rank of this process; rank 0 is the main process, which prints, writes and decides.
        size: number of processes.
        local_rank: rank on this machine, which selects the GPU; None in a single process.
        slow_group: process group with a long timeout, for waits of unknown length.
    """

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    slow_group: Any = None

    @property
    def is_main(self) -> bool:
        """Return whether this is the main process."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Return whether several processes train the model."""
        return self.size > 1

    def shard(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return this process's shard: every `size`-th item, beginning with that of its rank."""
        return items[self.rank :: self.size]

    def all_reduce(self, numbers: Sequence[float]) -> list[float]:
        """Sum each number over all processes, in double precision."""
        if not self.is_distributed:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        with peer_failure_errors():
            dist.all_reduce(tensor)
        return tensor.tolist()

    def barrier(self) -> None:
        """Wait until all processes have reached this point, however long that takes."""
        if self.is_distributed:
            with peer_failure_errors():
                dist.barrier(group=self.slow_group)

    def all_gather(self, value: Any) -> list[Any]:
        """Gather a JSON-serializable value from every process, in order of rank, however long that takes."""
        if not self.is_distributed:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with peer_failure_errors():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(own)]), group=self.slow_group)
            longest = max(int(size) for size in sizes)
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            padded = torch.nn.functional.pad(own, (0, longest - len(own)))
            dist.all_gather(texts, padded, group=self.slow_group)
        pairs = zip(texts, sizes, strict=True)
        return [json.loads(text[: int(size)].numpy().tobytes()) for text, size in pairs]

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the block in the main process, then in the first process of each other machine, then in all others.

        Without a shared cache each machine encodes a corpus only once. All leave it when the last one has run it.
        """
        turn = 0 if self.is_main else 1 if self.local_rank == 0 else 2
        for _ in range(turn):
            self.barrier()
        yield
        for _ in range(3 - turn):
            self.barrier()


SINGLE_PROCESS = World()


@contextmanager
def peer_failure_errors() -> Iterator[None]:
    """Turn the failure of another process, which the backends report in many ways, into a one-line error.

    Raises:
        TrainingError: If another process exited or timed out, or NCCL failed.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and "gloo" not in text and "Connection" not in text:
            raise
        # NCCL may have failed in this process, and says why
        if isinstance(error, dist.DistBackendError):
            cause = next((line for line in reversed(text.splitlines()) if line.strip()), "")
            what = f"NCCL failed, or another process of this run exited or timed out: {cause.strip()[:200]}"
            raise TrainingError(what, hint="look at the messages of all processes, rank 0 first") from error
        what = "another process of this run exited or timed out"
        raise TrainingError(what, hint="its own message says why; look at rank 0 first") from error


@contextmanager
def init_distributed(device: torch.device, *, compiles: bool = False) -> Iterator[World]:
    """Join the processes that torchrun started, and leave them at the end; without torchrun, do nothing.

    Args:
        device: device of this process's model; gradients use NCCL on a GPU, gloo on a CPU.
        compiles: whether torch.compile is used, which may delay a process.

    Raises:
        ConfigError: If torchrun's variables are incomplete, or two processes have the same GPU.
        TrainingError: If not all processes start in time.
    """
    rank, size, local_rank = read_ranks(communicates=True)
    if size == 1:
        yield SINGLE_PROCESS
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = _COMPILE_TIMEOUT if compiles else _COLLECTIVE_TIMEOUT
    with peer_failure_errors():
        store = rendezvous_store(rank, size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        slow_group = dist.new_group(backend="gloo", timeout=_WAIT_TIMEOUT)
    world = World(rank, size, local_rank, slow_group)
    try:
        if device.type == "cuda":
            _check_no_shared_gpus(world, device)
        yield world
    finally:
        dist.destroy_process_group()


def _check_no_shared_gpus(world: World, device: torch.device) -> None:
    """Check that each process has a GPU of its own, without which NCCL fails.

    Raises:
        ConfigError: If two processes have the same GPU.
    """
    owners: dict[str, int] = {}
    for rank, gpu in enumerate(world.all_gather(str(torch.cuda.get_device_properties(device).uuid))):
        if gpu in owners:
            what = f"processes {owners[gpu]} and {rank} have the same GPU"
            raise ConfigError(what, where="training.device", hint="start as many processes as there are GPUs")
        owners[gpu] = rank


def rendezvous_store(rank: int, size: int) -> Any:
    """Return a part of torchrun's store that only the processes of this start can see.

    torchrun may keep its store over a restart, with the addresses of processes that are dead by then. So every process
    puts a fresh nonce there, and rank 0 answers the nonces with a name until all others have confirmed that name; it
    becomes the prefix of their keys.

    Raises:
        TrainingError: If not all processes answer in time.
    """
    store, _, _ = next(rendezvous("env://", timeout=_RENDEZVOUS_TIMEOUT))
    nonce = secrets.token_hex(8)
    store.set(f"mtkit/nonce/{rank}", nonce)
    deadline = time.monotonic() + _RENDEZVOUS_TIMEOUT.total_seconds()
    while time.monotonic() < deadline:
        name = _offer_name(store, nonce, size) if rank == 0 else _confirm_name(store, nonce, rank)
        if name is not None:
            return PrefixStore(f"mtkit/{name}", store)
        time.sleep(0.02)
    raise TrainingError("not all processes of this run have started", hint="see the messages of the others")


def _offer_name(store: Any, name: str, size: int) -> str | None:
    """Answer the nonces present in the store with a name. Return it once all other processes have confirmed it."""
    store.set("mtkit/offer", json.dumps({"name": name, "nonces": _values(store, "nonce", size)}))
    confirmed = list(_values(store, "confirmed", size).values())
    return name if confirmed.count(name) == size - 1 else None


def _confirm_name(store: Any, nonce: str, rank: int) -> str | None:
    """Confirm and return the name that rank 0 offers, if the offer answers this process's nonce."""
    if not store.check(["mtkit/offer"]):
        return None
    offer = json.loads(store.get("mtkit/offer"))
    if offer["nonces"].get(f"mtkit/nonce/{rank}") != nonce:
        return None
    name: str = offer["name"]
    store.set(f"mtkit/confirmed/{rank}", name)
    return name


def _values(store: Any, kind: str, size: int) -> dict[str, str]:
    """Return the values of this kind that processes have put into the store, by key."""
    keys = (f"mtkit/{kind}/{rank}" for rank in range(size))
    return {key: store.get(key).decode() for key in keys if store.check([key])}
