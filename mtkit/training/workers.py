"""Worker processes: on a CPU, they compute the gradient of an update together, each in a single thread.

Threads of one process meet at the end of every operation, and an operation of a small model takes microseconds. Workers
meet twice an update. The main process forks them, so that a worker starts in milliseconds with the memory that is there
already. Weights and gradients are in shared memory:

1. The main process deals the micro-batches of an update, and keeps the first worker's share for itself. Each worker
   writes the sum of the gradients of its micro-batches into a row of its own.
2. Each worker adds up its part of all rows, in their order. The main process then has the gradient of the update, and
   clips, steps and saves as it does alone, while the workers wait.

What waits, waits for a message and takes no time from other programs. Workers hold no state, so a checkpoint knows
nothing of them. They ignore the signals of a terminal, and end with the main process, however that ends.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from mmap import mmap
from multiprocessing.connection import Connection
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from mtkit.config.sections import Config, TrainingConfig
from mtkit.device import choose_device
from mtkit.errors import ConfigError, TrainingError
from mtkit.forking import Child, fork_child
from mtkit.job_limits import available_bytes
from mtkit.torchrun import read_ranks
from mtkit.training.loss import TensorBatch

_MIN_TOKENS = 256
"""Tokens of an update for each worker, at least, if their number is `auto`."""
_GRADIENTS_SHARE = 0.5
"""Largest share of the free memory for the gradients of the workers, if their number is `auto`."""
_ALIGNMENT = 16
"""Tensors in shared memory start at multiples of this number of float32, a cache line."""
_CHUNK = 1 << 16
"""Gradients that are added up at a time, so that they stay in the cache."""

MicroBatches = Mapping[int, TensorBatch]
"""Micro-batches of an update by their number."""

Accumulate = Callable[[MicroBatches, int, int], list[float]]
"""Adds the gradients of micro-batches to those of the parameters, given the target tokens of the update and the number
of updates made before; returns sums of the losses."""


class WorkerLostError(TrainingError):
    """A worker ended in the middle of a run. The weights are those of the last update."""


def _find_objection(training: TrainingConfig) -> tuple[str, str] | None:
    """Return why a run cannot have several workers, and what to do about it, or None.

    Args:
        training: section `training`.
    """
    if choose_device(training.device).type != "cpu":
        return "several workers are for CPUs: a GPU needs only one process", "set it to 1, or device to cpu"
    if read_ranks().world_size > 1:
        return (
            "several workers cannot be combined with torchrun",
            "start as many processes as there are cores",
        )
    if not sys.platform.startswith("linux"):
        return "several workers need Linux", "set it to 1, and num_threads to the number of cores"
    if training.compile:
        return "several workers cannot be combined with compile", "set one of them to its default"
    if training.precision == "fp16":
        return "several workers cannot be combined with precision fp16", "set precision to bf16 or fp32"
    return None


def check_workers(training: TrainingConfig) -> None:
    """Check that a run can have several workers, if the config gives such a number.

    Args:
        training: section `training`.

    Raises:
        ConfigError: If it wants several where there can be only one.
    """
    if training.workers in (1, "auto"):
        return
    objection = _find_objection(training)
    if objection is not None:
        raise ConfigError(objection[0], where=f"training.workers {training.workers}", hint=objection[1])


def choose_num_workers(training: TrainingConfig, model: nn.Module) -> int:
    """Return the number of workers of a new run.

    With `auto` it is one a thread, as long as each has enough to do and their gradients take half of the free memory.

    Args:
        training: section `training`.
        model: the model that they will train.

    Raises:
        ConfigError: If the config wants several where there can be only one.
    """
    if training.workers != "auto":
        check_workers(training)
        return training.workers
    tokens = training.batch_token_budget * training.batches_per_update
    most = min(torch.get_num_threads(), tokens // _MIN_TOKENS)
    if _find_objection(training) is not None or most < 2:
        return 1
    gradients = 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return max(1, int(min(most, _GRADIENTS_SHARE * available_bytes() / max(1, gradients))))


def keep_workers(old: Config, new: Config) -> Config:
    """Return the config of a run that is resumed: `auto` keeps the number of workers, so that no loss changes.

    Args:
        old: stored config of the run; one without a number had a single worker.
        new: config to resume with.
    """
    if new.training.workers != "auto" or _find_objection(new.training) is not None:
        return new
    workers = 1 if old.training.workers == "auto" else old.training.workers
    return with_workers(new, workers)


def with_workers(config: Config, number: int) -> Config:
    """Return the config with this number of workers."""
    return config.model_copy(update={"training": config.training.model_copy(update={"workers": number})})


class Workers:
    """Computes gradients in several processes. They start with `start` or the first update, and end with `close`.

    Args:
        model: the model; its parameters are moved into shared memory when the workers start.
        number: number of workers, the main process included.
        accumulate: computes gradients in one process; it sees the parameters as they are at that time.
    """

    def __init__(self, model: nn.Module, number: int, accumulate: Accumulate) -> None:
        self.model, self.number, self.accumulate = model, number, accumulate
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._gradients: Tensor | None = None
        self._rows: list[list[Tensor]] = []
        """Gradients of each worker, by parameter; the first row is that of the main process."""
        self._children: list[_Worker] = []

    def run(self, micro_batches: MicroBatches, num_targets: int, step: int) -> list[float]:
        """Accumulate the gradients of micro-batches in all workers, and return sums of their losses.

        Args:
            micro_batches: the micro-batches by number.
            num_targets: target tokens of the whole update.
            step: number of updates made before.

        Raises:
            TrainingError: If a worker was killed.
        """
        self.start()
        try:
            with single_thread():
                return self._run(micro_batches, num_targets, step)
        except BaseException:
            self.close()  # others may still compute: what they send would be taken for an answer to the next update
            raise

    def _run(self, micro_batches: MicroBatches, num_targets: int, step: int) -> list[float]:
        own, *shares = deal(micro_batches, self.number)
        for child, share in zip(self._children, shares, strict=True):
            numbers = list(share)
            child.send(json.dumps({"numbers": numbers, "targets": num_targets, "step": step}).encode())
            for number in numbers:
                child.send(_pack(share[number]))
        answers = [self._compute(0, own, num_targets, step)]
        answers += [json.loads(child.receive()) for child in self._children]
        for child in self._children:
            child.send(b"add")
        self._add_up(0)
        for child in self._children:
            child.receive()
        without = set.intersection(*(set(answer["without_gradient"]) for answer in answers))
        for number, (parameter, gradient) in enumerate(zip(self._trained, self._rows[0], strict=True)):
            parameter.grad = None if number in without else gradient
        return [sum(sums) for sums in zip(*(answer["sums"] for answer in answers), strict=True)]

    def _compute(self, row: int, micro_batches: MicroBatches, num_targets: int, step: int) -> dict[str, Any]:
        """Write the gradients of micro-batches into a row. Returns sums of losses, and parameters without gradient."""
        for parameter in self._trained:
            parameter.grad = None
        sums = self.accumulate(micro_batches, num_targets, step)
        without = [number for number, parameter in enumerate(self._trained) if parameter.grad is None]
        for parameter, out in zip(self._trained, self._rows[row], strict=True):
            out.zero_() if parameter.grad is None else out.copy_(parameter.grad)
            parameter.grad = None
        return {"sums": sums, "without_gradient": without}

    def _add_up(self, row: int) -> None:
        """Add a worker's part of all rows up, into the first."""
        assert self._gradients is not None
        size = self._gradients.shape[1]
        start, end = (size * worker // self.number for worker in (row, row + 1))
        for chunk in self._gradients[:, start:end].split(_CHUNK, dim=1):
            for others in chunk[1:]:
                chunk[0] += others

    def private_bytes(self) -> int:
        """Return the memory that the workers take beside that of the main process."""
        return sum(worker.child.private_bytes() for worker in self._children)

    def close(self) -> None:
        """End the workers. They hold no state."""
        while self._children:
            self._children.pop().child.kill()

    # --- start ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Move parameters and gradients into shared memory, and fork the workers, unless they run already.

        A fork is safest while this process has no other thread, which might hold a lock that no one in the child opens.
        """
        if self._children:
            return
        if self._gradients is None:
            self._share()
        for row in range(1, self.number):
            self._children.append(_Worker(fork_child(row, partial(self._serve, row))))

    def _share(self) -> None:
        """Move the parameters into shared memory, and make room for the gradients there."""
        parameters = list(self.model.parameters())
        weights = _shared_zeros(_padded_size(parameters))
        for parameter, view in zip(parameters, _views(weights, parameters), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        size = _padded_size(self._trained)
        self._gradients = _shared_zeros(self.number * size).view(self.number, size)
        self._rows = [_views(row, self._trained) for row in self._gradients]

    def _serve(self, row: int, connection: Connection) -> None:
        """Serve the main process until it ends. This is the whole life of a worker."""
        torch.set_num_threads(1)
        while True:
            try:
                answer = self._answer(row, connection)
            except (EOFError, OSError):  # the main process is gone
                raise
            except BaseException as error:
                text = "".join(traceback.format_exception(error))
                connection.send_bytes(json.dumps({"error": text}).encode())
                raise
            connection.send_bytes(json.dumps(answer).encode())

    def _answer(self, row: int, connection: Connection) -> dict[str, Any]:
        """Receive what to do, do it, and return the answer."""
        message = connection.recv_bytes()
        if message == b"add":
            self._add_up(row)
            return {}
        task = json.loads(message)
        micro_batches = {number: _unpack(connection.recv_bytes()) for number in task["numbers"]}
        return self._compute(row, micro_batches, task["targets"], task["step"])


def deal(micro_batches: MicroBatches, num_workers: int) -> list[MicroBatches]:
    """Deal micro-batches so that all workers finish at about the same time: the largest first, to whom has least.

    Args:
        micro_batches: the micro-batches by number.
        num_workers: number of workers.

    Returns:
        The micro-batches of each worker, by ascending number.
    """
    costs = {number: _cost(batch) for number, batch in micro_batches.items()}
    loads = [0] * num_workers
    owners = {}
    for number in sorted(costs, key=lambda number: (-costs[number], number)):
        owner = owners[number] = loads.index(min(loads))
        loads[owner] += costs[number]
    return [
        {number: batch for number, batch in micro_batches.items() if owners[number] == worker}
        for worker in range(num_workers)
    ]


def _cost(batch: TensorBatch) -> int:
    """Return about how long a micro-batch takes: a decoder has twice the attention of an encoder, and the logits."""
    return batch.src_BS.numel() + 2 * batch.tgt_in_BT.numel()


@contextmanager
def single_thread() -> Iterator[None]:
    """Run the block's operations in one thread, because the other cores have workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- the main process's side of a worker ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Worker:
    """A worker, as the main process sees it.

    Attributes:
        child: its process.
    """

    child: Child

    def send(self, message: bytes) -> None:
        """Send a message.

        Raises:
            TrainingError: If the worker has ended.
        """
        try:
            self.child.connection.send_bytes(message)
        except OSError as error:
            raise self._loss() from error

    def receive(self) -> bytes:
        """Wait for a message, and return it.

        Raises:
            TrainingError: If the worker has ended.
            RuntimeError: If an error ended it: a bug, or a lack of memory.
        """
        try:
            message = self.child.connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._loss() from error
        if message.startswith(b'{"error"'):
            raise RuntimeError(json.loads(message)["error"])
        return message

    def _loss(self) -> WorkerLostError:
        """Return the error that says how the worker ended."""
        hint = "run the same command again to resume; a system that is out of memory kills processes"
        return WorkerLostError(self.child.describe_end(), hint=hint)


# --- memory and messages ----------------------------------------------------------------------------------------------


def _shared_zeros(size: int) -> Tensor:
    """Return float32 zeros in memory that forked processes share; not in /dev/shm, which containers keep small."""
    return torch.frombuffer(mmap(-1, 4 * max(1, size)), dtype=torch.float32)[:size]


def _padded_size(parameters: Sequence[Tensor]) -> int:
    """Return the elements of all parameters, each padded."""
    return sum(-(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT for parameter in parameters)


def _views(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the parts of a flat tensor that correspond to the parameters, in their shapes."""
    sizes = [-(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT for parameter in parameters]
    parts = zip(flat.split(sizes), parameters, strict=True)
    return [part[: parameter.numel()].view(parameter.shape) for part, parameter in parts]


def _pack(batch: TensorBatch) -> bytes:
    """Return a micro-batch as bytes."""
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    packed: bytes = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    )
    return packed


def _unpack(message: bytes) -> TensorBatch:
    """Return the micro-batch that `_pack` packed."""
    return TensorBatch(**safetensors.torch.load(message))  # type: ignore[arg-type]  # workers do not pack
