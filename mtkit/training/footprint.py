"""Bytes that a run needs in memory and on disk: they follow from its parameters, and from which of them are trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mtkit.config.sections import TrainingConfig
from mtkit.training.muon import num_moments

_BYTES = 4
"""Weights, gradients and moments are float32."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a run needs. Frozen weights have no gradient and no optimizer state.

    Attributes:
        weights: all weights, those of adapters included.
        trained: weights that are trained.
        optimizer: state of the optimizer.
        has_ema: whether there is an EMA of the weights.
        has_adapters: whether adapters alone are trained, and saved apart.
        num_workers: number of workers, each of which has gradients of its own.
    """

    weights: int
    trained: int
    optimizer: int
    has_ema: bool
    has_adapters: bool
    num_workers: int = 1

    @classmethod
    def of(cls, model: nn.Module, training: TrainingConfig) -> Footprint:
        """Return the footprint of training a model.

        Args:
            model: the model, with its frozen parameters and adapters.
            training: section `training`, with the number of workers in place of `auto`.
        """
        parameters = list(model.parameters())
        weights = _BYTES * sum(p.numel() for p in parameters)
        trained = _BYTES * sum(p.numel() for p in parameters if p.requires_grad)
        moments = sum(number * p.numel() for p, number in num_moments(model, training).items())
        num_workers = 1 if training.workers == "auto" else training.workers
        has_ema, has_adapters = training.ema_decay is not None, training.lora is not None
        return cls(weights, trained, _BYTES * moments, has_ema, has_adapters, num_workers)

    @property
    def memory(self) -> int:
        """Weights, gradients, state of the optimizer, and EMA."""
        gradients = self.num_workers * self.trained
        return self.weights + gradients + self.optimizer + (self.weights if self.has_ema else 0)

    @property
    def best(self) -> int:
        """Weights to translate with in `best/`, or the adapters."""
        return self.trained if self.has_adapters else self.weights

    @property
    def checkpoint(self) -> int:
        """A checkpoint: what `best/` has, and the state of the optimizer; with an EMA, the raw weights as well."""
        return self.best + self.optimizer + (self.best if self.has_ema else 0)

    @property
    def base(self) -> int:
        """Weights in `base/`, to which adapters belong."""
        return self.weights - self.trained if self.has_adapters else 0

    def disk(self, training: TrainingConfig) -> int:
        """Return what a run writes at most: a new checkpoint and a new `best/` are there before old ones are deleted.

        Args:
            training: how many checkpoints are kept, and whether they are averaged.
        """
        average = self.weights if training.average_last is not None else 0
        return (training.num_checkpoints_kept + 1) * self.checkpoint + 2 * self.best + self.base + average
