"""Several processes that train one model: who they are, and the few things they say to each other.

`torchrun` starts them and tells each its number in the environment. What they exchange beside gradients goes over
CPU tensors (gloo), also where gradients go over NCCL. Nothing is pickled.
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
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from mtkit.errors import ConfigError, TrainingError
from mtkit.torchrun import read_ranks

_COLLECTIVE_TIMEOUT = timedelta(seconds=60)
"""For gradients and the like, which all processes come to at the same time."""
_COMPILE_TIMEOUT = timedelta(minutes=10)
"""The same, where torch.compile may hold one of them up."""
_RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
"""Until all have started."""
_WAIT_TIMEOUT = timedelta(days=1)
"""Where processes wait for the first one to read, encode, score or save."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them. In a single process all its methods do nothing.

    Attributes:
        rank: this one's number; 0 is the one that speaks, writes and decides.
        size: how many there are.
        local_rank: its number on its own machine, which chooses its GPU; None for one process alone.
        patient: group of the same processes, for waits that may be long.
    """

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    patient: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether several processes train this model."""
        return self.size > 1

    def shard(self, items: Sequence[Any]) -> Sequence[Any]:
        """This process's share: every item is some process's."""
        return items[self.rank :: self.size]

    def all_reduce(self, numbers: Sequence[float]) -> list[float]:
        """Each number summed over the processes, in double precision."""
        if not self.is_distributed:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        with peer_failure_errors():
            dist.all_reduce(tensor)
        return tensor.tolist()

    def barrier(self) -> None:
        """Until all have come here; as long as it takes."""
        if self.is_distributed:
            with peer_failure_errors():
                dist.barrier(group=self.patient)

    def all_gather(self, value: Any) -> list[Any]:
        """What JSON can say, of every process, in the order of their numbers; as long as it takes."""
        if not self.is_distributed:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with peer_failure_errors():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(own)]), group=self.patient)
            longest = max(int(size) for size in sizes)
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(texts, _pad_to(own, longest), group=self.patient)
        pairs = zip(texts, sizes, strict=True)
        return [json.loads(text[: int(size)].numpy().tobytes()) for text, size in pairs]

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """A block that the others enter when the main process has left it."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()


SINGLE_PROCESS = World()
"""The only process of a run."""


def _pad_to(values: Tensor, length: int) -> Tensor:
    """[n] to [length], with zeros at the end."""
    return torch.nn.functional.pad(values, (0, length - len(values)))


@contextmanager
def peer_failure_errors() -> Iterator[None]:
    """Turn the loss of another process, which the engines report in many ways, into one line."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and "gloo" not in text and "Connection" not in text:
            raise
        what = "another process of this run ended, or did not answer in time"
        raise TrainingError(what, hint="its own message says why; see that of process 0 first") from error


@contextmanager
def init_distributed(device: torch.device, *, compiles: bool = False) -> Iterator[World]:
    """Join the processes that torchrun started; without torchrun, one alone.

    Args:
        device: of this process's model: decides between NCCL and gloo for gradients.
        compiles: whether torch.compile may hold a process up.
    """
    rank, size, local_rank = read_ranks(communicates=True)
    if size == 1:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = _COMPILE_TIMEOUT if compiles else _COLLECTIVE_TIMEOUT
    with peer_failure_errors():
        store = rendezvous_store(rank, size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        patient = dist.new_group(backend="gloo", timeout=_WAIT_TIMEOUT)
    world = World(rank, size, local_rank, patient)
    try:
        if device.type == "cuda":
            _refuse_shared_gpus(world, device)
        yield world
    finally:
        dist.destroy_process_group()


def _refuse_shared_gpus(world: World, device: torch.device) -> None:
    """Check that each process has a GPU of its own: NCCL fails without. Raises: ConfigError: two have the same."""
    owners: dict[str, int] = {}
    for rank, gpu in enumerate(world.all_gather(str(torch.cuda.get_device_properties(device).uuid))):
        if gpu in owners:
            what = f"processes {owners[gpu]} and {rank} have the same GPU"
            raise ConfigError(what, where="training.device", hint="start as many processes as there are GPUs")
        owners[gpu] = rank


def rendezvous_store(rank: int, size: int) -> Any:
    """A part of the launcher's store that only these processes know, not those before a restart.

    torchrun may keep its store over a restart, and with it the addresses of processes that are dead. So every process
    leaves a fresh word there; process 0 answers those words with a name until all have said that they read it.

    Raises:
        TrainingError: not all came in time.
    """
    store, _, _ = next(rendezvous("env://", timeout=_RENDEZVOUS_TIMEOUT))
    word = secrets.token_hex(8)
    store.set(f"mtkit/word/{rank}", word)
    end = time.monotonic() + _RENDEZVOUS_TIMEOUT.total_seconds()
    while time.monotonic() < end:
        name = _offer_name(store, word, size) if rank == 0 else _read_name(store, word, rank)
        if name is not None:
            return PrefixStore(f"mtkit/{name}", store)
        time.sleep(0.02)
    raise TrainingError("not all processes of this run came", hint="see the messages of the others")


def _offer_name(store: Any, name: str, size: int) -> str | None:
    """Answer the words that are there with a name; returns it when all others have read it."""
    words = {key: store.get(key).decode() for key in _keys_there(store, "word", size)}
    store.set("mtkit/answer", json.dumps({"name": name, "words": words}))
    read = [store.get(key).decode() for key in _keys_there(store, "read", size)]
    return name if read.count(name) == size - 1 else None


def _read_name(store: Any, word: str, rank: int) -> str | None:
    """The name in process 0's answer, if it answers this process's own word."""
    if not store.check(["mtkit/answer"]):
        return None
    answer = json.loads(store.get("mtkit/answer"))
    if answer["words"].get(f"mtkit/word/{rank}") != word:
        return None
    name: str = answer["name"]
    store.set(f"mtkit/read/{rank}", name)
    return name


def _keys_there(store: Any, kind: str, size: int) -> list[str]:
    """Which processes left something of this kind."""
    keys = (f"mtkit/{kind}/{rank}" for rank in range(size))
    return [key for key in keys if store.check([key])]
