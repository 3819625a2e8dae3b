"""The computation of an update: forward and backward passes, gradient clipping and the optimizer step.

Dropout is a function of (seed, step, micro-batch).
"""

from __future__ import annotations

import hashlib
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from mtkit.data.batching import Batch
from mtkit.device import peak_memory
from mtkit.errors import TrainingError
from mtkit.model.transformer import Transformer
from mtkit.training.compiling import compile_errors
from mtkit.training.distributed import World
from mtkit.training.loss import TensorBatch
from mtkit.training.optimizer import make_scaler, set_learning_rate
from mtkit.training.parallel import Stage, full_tensor, is_sharded, no_gradient_sync
from mtkit.training.updates import Update
from mtkit.training.workers import MicroBatches, Workers, single_thread

_MIN_LOSS_SCALE = 2.0**-14


class Engine:
    """Computes the gradients of a model and applies them.

    Args:
        model: the model, sharded or not.
        objective: the model and its loss, wrapped for distributed training.
        optimizer: optimizer of the model.
        device: device of the model.
        seed: seed of dropout.
        clip_norm: norm that gradients are clipped to, or None.
        world: the processes that train the model.
        stage: times the stages of an update.
        num_workers: processes of this machine that compute gradients, this one included.
    """

    def __init__(
        self,
        model: Transformer,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        seed: int,
        clip_norm: float | None,
        world: World,
        stage: Stage,
        num_workers: int = 1,
    ) -> None:
        self.model, self.objective, self.optimizer, self.device = model, objective, optimizer, device
        self.seed, self.clip_norm, self.world, self.stage = seed, clip_norm, world, stage
        self.scaler = make_scaler(device, model.compute_dtype)
        self.num_workers = num_workers
        self.workers = None
        if num_workers > 1:
            self.workers = Workers(model, num_workers, lambda *work: self._accumulate(*work).tolist())

    def forward_backward(self, update: Update, num_targets: int, step: int) -> torch.Tensor:
        """Compute the gradients of this process's micro-batches, and return the sums of their loss and NLL: [2].

        Args:
            update: update whose micro-batches are on the device.
            num_targets: target tokens of the whole update.
            step: number of updates made before.
        """
        if self.workers is None:
            return self._accumulate(update.micro_batches, num_targets, step)
        return torch.tensor(self.workers.run(update.micro_batches, num_targets, step), dtype=torch.float64)

    def _accumulate(self, micro_batches: MicroBatches, num_targets: int, step: int) -> torch.Tensor:
        """Accumulate the gradients of micro-batches in this process, and return the sums of loss and NLL: [2]."""
        self.objective.train()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        last = max(micro_batches, default=0)
        with self._weights_cast_once():
            for number, batch in micro_batches.items():
                torch.manual_seed(_dropout_seed(self.seed, step, number))
                sums += self._backward(batch, num_targets, local=number != last)
        return sums

    def _weights_cast_once(self) -> AbstractContextManager[None]:
        """Return a context manager in which micro-batches share the cast weights. FSDP2 casts shards itself."""
        return nullcontext() if is_sharded(self.model.parameters()) else self.model.weights_cast_once()

    def _backward(self, batch: Batch | TensorBatch, num_targets: int, *, local: bool) -> torch.Tensor:
        """Accumulate the gradient of a micro-batch's loss sum over `num_targets`. Returns loss and NLL sums: [2].

        Args:
            batch: the micro-batch.
            num_targets: target tokens of the whole update.
            local: whether more micro-batches follow, so that gradients need not be exchanged yet.
        """
        with no_gradient_sync(self.objective, local), compile_errors():
            loss, nll = self.objective(batch)
            with self.stage("backward"):
                # DDP and FSDP2 average gradients over the processes, but the sum is needed
                self.scaler.scale(loss * (self.world.size / num_targets)).backward()
        return torch.stack([loss.detach(), nll]).double()

    def clip_gradients(self) -> torch.Tensor:
        """Scale large gradients down to `clip_norm`, and return the norm before, a scalar on the device."""
        with self.stage("optimizer"):
            self.scaler.unscale_(self.optimizer)
            limit = self.clip_norm or math.inf
            return full_tensor(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))

    def step(self, rate: float) -> None:
        """Apply the gradients with this learning rate."""
        with self.stage("optimizer"):
            set_learning_rate(self.optimizer, rate)
            self.scaler.step(self.optimizer)  # fp16: skipped if a gradient overflowed
            self.scaler.update()
            self.discard_gradients()

    def check_loss_scale(self) -> None:
        """Check that fp16 training makes progress: each overflow halves the loss scale and skips the update.

        A GPU must be waited for.

        Raises:
            TrainingError: If the loss scale has become too small.
        """
        if self.scaler.is_enabled() and self.scaler.get_scale() < _MIN_LOSS_SCALE:
            what = "gradients overflow fp16 at every loss scale"
            raise TrainingError(what, hint="set training.precision to bf16 or fp32, or lower learning_rate")

    def threads(self) -> AbstractContextManager[None]:
        """Return a context manager in which an update is made: beside workers, this process has a single thread."""
        return nullcontext() if self.workers is None else single_thread()

    def start(self) -> None:
        """Start the workers, if there are to be any. Otherwise the first update does."""
        if self.workers is not None:
            self.workers.start()

    def close(self) -> None:
        """End the workers, if there are any. The next update starts them again."""
        if self.workers is not None:
            self.workers.close()

    def peak_memory(self) -> int:
        """Return the peak memory in bytes: on a CPU that of this process, and what its workers have now."""
        return peak_memory(self.device) + (0 if self.workers is None else self.workers.private_bytes())

    def discard_gradients(self) -> None:
        """Free the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def dry_run(self, batch: Batch) -> None:
        """Run the forward and backward pass of a batch, and discard the gradient; nothing else changes."""
        self.objective.train()
        local = not is_sharded(self.model.parameters())  # FSDP2 would keep unreduced gradients
        try:
            with self.model.all_layers(), self._weights_cast_once():
                self._backward(batch, batch.num_targets, local=local)
        finally:
            self.discard_gradients()

    def reset_scaler(self, state: dict[str, Any] | None) -> None:
        """Start with a new loss scaler, because one that diverged in mid-update cannot continue.

        Args:
            state: its state dict, if a checkpoint has one.
        """
        self.scaler = make_scaler(self.device, self.model.compute_dtype)
        if state is not None:
            self.scaler.load_state_dict(state)


def _dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """Return the seed of a micro-batch's dropout: a hash, so that consecutive numbers give unrelated masks."""
    digest = hashlib.sha256(f"{seed} {step} {micro_batch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
