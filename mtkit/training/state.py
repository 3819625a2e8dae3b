"""State of a run beside its weights: the contents of a checkpoint's state.json."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mtkit import __version__

FORMAT = 1
"""Version of the format. It changes only when an earlier mtkit would continue wrongly from the new state; a new key
does not need that, because its default means what was done before the key existed."""


@dataclass
class Window:
    """Sums over the updates since the last progress line."""

    loss: float = 0.0
    nll: float = 0.0
    norm: float = 0.0
    rate: float = 0.0
    targets: int = 0
    updates: int = 0

    def add(self, loss: float, nll: float, norm: float, rate: float, num_targets: int) -> None:
        """Add an update.

        Args:
            loss: mean loss per target token.
            nll: mean negative log-likelihood per target token, in nats.
            norm: gradient norm before clipping.
            rate: learning rate.
            num_targets: real target tokens.
        """
        self.loss += loss * num_targets
        self.nll += nll * num_targets
        self.norm += norm
        self.rate = rate
        self.targets += num_targets
        self.updates += 1

    def means(self) -> dict[str, float]:
        """Return the losses per target token, the gradient norm per update and the latest learning rate."""
        return {
            "loss": self.loss / self.targets,
            "nll": self.nll / self.targets,
            "grad_norm": self.norm / self.updates,
            "lr": self.rate,
        }


@dataclass
class SpikeDetector:
    """Tells a spike of the loss from its usual noise.

    A slow exponential average tracks the mean and variance of the loss, a fast one its current level. The loss spikes
    when the current level is more than `SPIKE_DEVIATIONS` standard deviations above the mean, once enough updates have
    been seen. The loss of an update is a mean over its target tokens, so its variance is inversely proportional to
    their number: an update is weighted by it, and the small last batch of an epoch moves the averages little and may
    deviate more.
    """

    SPIKE_DEVIATIONS = 6.0
    WARM_UP_UPDATES = 100
    SLOW_DECAY, FAST_DECAY = 0.99, 0.7  # per update

    updates: int = 0
    mean: float = 0.0
    variance: float = 0.0
    """Variance of the loss of an update with `targets` target tokens."""
    present: float = 0.0
    """Current level: the fast average."""
    targets: float = 0.0
    """Target tokens of an average update."""

    def observe(self, loss: float, num_targets: int) -> bool:
        """Return whether the loss of an update is a spike; if it is not, include it in the averages."""
        if self.updates == 0:
            self.mean = self.present = loss
        if not self.targets:  # the first update, or the first after a state that did not count targets
            self.targets = num_targets
        self.updates += 1
        weight = num_targets / self.targets
        self.present += _new_value_share(weight, self.FAST_DECAY) * (loss - self.present)
        deviation = math.sqrt(self.variance)
        warmed_up = self.updates > self.WARM_UP_UPDATES
        if warmed_up and self.present > self.mean + self.SPIKE_DEVIATIONS * deviation:
            return True
        decay = min(self.SLOW_DECAY, 1 - 1 / self.updates)
        distance = loss - self.mean
        if warmed_up:  # otherwise a spike would raise the mean before it is detected
            limit = 3 * deviation / math.sqrt(weight)
            distance = max(-limit, min(limit, distance))
        self.mean += _new_value_share(weight, decay) * distance
        self.variance = decay * (self.variance + (1 - decay) * weight * distance**2)
        self.targets += (1 - decay) * (num_targets - self.targets)
        return False


def _new_value_share(weight: float, decay: float) -> float:
    """Return the share of a new value in an exponential average, if earlier values had a weight of 1 on average."""
    return (1 - decay) * weight / (decay + (1 - decay) * weight)


@dataclass
class TrainState:
    """State of a run beside its weights."""

    step: int = 0
    """Number of updates made."""
    epoch: int = 0
    """Epoch of the next batch."""
    batch: int = 0
    """Number of the next batch in that epoch."""
    target_tokens: int = 0
    """Real target tokens trained on."""
    seconds: float = 0.0
    """Training time, earlier starts included."""
    validated_step: int = 0
    """Step of the last validation."""
    best: float | None = None
    """Best value so far of the metric that `validation.best` names."""
    best_loss: float | None = None
    """Validation loss at that step."""
    best_step: int | None = None
    """Step of the best validation."""
    validations_without_best: int = 0
    """Validations since the best one."""
    scaler: dict[str, Any] | None = None
    """State dict of the loss scaler; fp16 only."""
    corpus: str = ""
    """Fingerprint of the training pairs."""
    valid: str | None = None
    """Fingerprint of the validation pairs; None in a state written before it was stored."""
    tokenizers: str = ""
    """Fingerprint of the tokenizers: `load_model` accepts no others."""
    teachers: str = ""
    """Hash of the weights of the teachers; empty without distillation."""
    base: str = ""
    """SHA-256 of the weights that LoRA adapters belong to; empty without LoRA."""
    usual_src_tokens: int | None = None
    """Length that almost no training source exceeds: longer lines are split before they are translated."""
    slices: int = 1
    """Micro-batches per batch, so that it fits in memory; found at each start with `batch_tokens: auto`."""
    rollbacks: int = 0
    """Number of rollbacks after a divergence."""
    skipped: list[int] = field(default_factory=list)
    """Indices of the pairs at which the loss diverged: no later update contains them."""
    window: Window = field(default_factory=Window)
    """Sums for the next progress line."""
    watch: SpikeDetector = field(default_factory=SpikeDetector)
    """Detector of loss spikes."""

    @cached_property
    def skipped_array(self) -> npt.NDArray[np.int64]:
        """`skipped`, in ascending order; converting a long list for each update would take milliseconds."""
        return np.sort(np.array(self.skipped, dtype=np.int64))

    def move_past(self, epoch: int, batch: int) -> None:
        """Continue after this batch of an epoch."""
        self.epoch, self.batch = epoch, batch + 1

    def add_validation(self, value: float, loss: float | None, *, improved: bool) -> None:
        """Enter the validation of the current step; `improved` says whether it is the best so far."""
        self.validated_step = self.step
        self.validations_without_best = 0 if improved else self.validations_without_best + 1
        if improved:
            self.best, self.best_loss, self.best_step = value, loss, self.step

    def reset_best(self) -> None:
        """Forget the best validation, so that the next one, perhaps at this very step, is the best."""
        self.best = self.best_loss = self.best_step = None
        self.validated_step = self.validations_without_best = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the contents of state.json, with the version of mtkit that writes it."""
        return {"mtkit": __version__, "format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        """Create a state from what `as_dict` of any version returned. Missing keys get their default.

        Raises:
            KeyError: If it does not say where the run stands.
            TypeError: If a part is not an object.
            ValueError: If its format is newer than this version.
        """
        if values.get("format", FORMAT) > FORMAT:
            raise ValueError(f"written by mtkit {values.get('mtkit')}, in a newer format")
        nested = {
            name: part(**_known_fields(part, values.get(name, {})))
            for name, part in (("window", Window), ("watch", SpikeDetector))
        }
        position = {name: values[name] for name in ("step", "epoch", "batch")}
        return cls(**_known_fields(cls, values) | position | nested)


def _known_fields(cls: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return the values for which a dataclass has a field."""
    names = {each.name for each in fields(cls)}
    return {name: value for name, value in values.items() if name in names}
