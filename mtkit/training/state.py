"""Where a run stands, beside its weights: what a checkpoint's state.json holds."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mtkit import __version__

FORMAT = 1
"""Another number when a state is written that an earlier version would go on from wrongly. A new key needs none: it
has a default, which is what was before it."""


@dataclass
class Window:
    """Sums over the updates since the last line of progress."""

    loss: float = 0.0
    nll: float = 0.0
    norm: float = 0.0
    rate: float = 0.0
    targets: int = 0
    updates: int = 0

    def add(self, loss: float, nll: float, norm: float, rate: float, num_targets: int) -> None:
        """The loss and nll of an update are means over its targets."""
        self.loss += loss * num_targets
        self.nll += nll * num_targets
        self.norm += norm
        self.rate = rate
        self.targets += num_targets
        self.updates += 1

    def means(self) -> dict[str, float]:
        """Losses for each target, gradient norm for each update, the latest rate."""
        return {
            "loss": self.loss / self.targets,
            "nll": self.nll / self.targets,
            "grad_norm": self.norm / self.updates,
            "lr": self.rate,
        }


@dataclass
class SpikeDetector:
    """Tells a spike of the loss from its usual ups and downs.

    A long exponential average knows the usual loss and its variance, a short one the present loss. It is a spike when
    the present loss is more than `SPIKE_DEVIATIONS` standard deviations above the usual, after enough updates to know.
    The loss of an update is a mean over its targets, with a variance of one through their number: an update counts by
    its targets, so that the few of a left-over batch move little and are allowed more.
    """

    SPIKE_DEVIATIONS = 6.0
    UPDATES_TO_KNOW = 100
    LONG, SHORT = 0.99, 0.7  # decay at each update

    updates: int = 0
    mean: float = 0.0
    variance: float = 0.0
    present: float = 0.0
    targets: float = 0.0
    """Of a usual update, for which the variance is."""

    def add(self, loss: float, num_targets: int) -> bool:
        """Take in the loss of an update; returns whether it is a spike (then it is not taken in as usual)."""
        if self.updates == 0:
            self.mean = self.present = loss
        if not self.targets:  # the first update, or the first since targets are counted
            self.targets = num_targets
        self.updates += 1
        weight = num_targets / self.targets
        self.present += share(weight, self.SHORT) * (loss - self.present)
        deviation = math.sqrt(self.variance)
        known = self.updates > self.UPDATES_TO_KNOW
        if known and self.present > self.mean + self.SPIKE_DEVIATIONS * deviation:
            return True
        decay = min(self.LONG, 1 - 1 / self.updates)
        distance = loss - self.mean
        if known:  # else a spike would make itself usual before it is seen as one
            limit = 3 * deviation / math.sqrt(weight)
            distance = max(-limit, min(limit, distance))
        self.mean += share(weight, decay) * distance
        self.variance = decay * (self.variance + (1 - decay) * weight * distance**2)
        self.targets += (1 - decay) * (num_targets - self.targets)
        return False


def share(weight: float, decay: float) -> float:
    """Of a new value in an exponential average of values with weights, if those before had weight 1 on average."""
    return (1 - decay) * weight / (decay + (1 - decay) * weight)


@dataclass
class TrainState:
    """Where a run stands, beside its weights."""

    step: int = 0
    """Updates made."""
    epoch: int = 0
    """Epoch of the next batch."""
    batch: int = 0
    """Number of the next batch in that epoch."""
    target_tokens: int = 0
    """Real target pieces trained on."""
    seconds: float = 0.0
    """Training time, earlier runs of the folder included."""
    validated_step: int = 0
    best: float | None = None
    """Best validation number so far, of the kind that the config names."""
    best_loss: float | None = None
    """The loss there."""
    best_step: int | None = None
    validations_without_best: int = 0
    scaler: dict[str, Any] | None = None
    """Of the losses, fp16 only."""
    corpus: str = ""
    """Fingerprint of the training pairs."""
    valid: str | None = None
    """Fingerprint of the validation pairs by which the best was chosen; None where it was not kept yet."""
    tokenizers: str = ""
    """Fingerprint of the tokenizers: `load_model` takes no others."""
    usual_src_tokens: int | None = None
    """As many or fewer has almost every source of the training pairs: a longer line is split when it is translated."""
    slices: int = 1
    """Into how many slices a batch is cut so that memory holds; found at each start for `batch_tokens: auto`."""
    rollbacks: int = 0
    """How often the run went back to a checkpoint because the loss diverged."""
    skipped: list[int] = field(default_factory=list)
    """Numbers of the pairs at which it diverged: no later update has them."""
    window: Window = field(default_factory=Window)
    """What the next line of progress will tell of the updates made so far."""
    watch: SpikeDetector = field(default_factory=SpikeDetector)
    """What the loss usually is."""

    def forget_best(self) -> None:
        """Let the next validation, which may be of this step, be the first."""
        self.best = self.best_loss = self.best_step = None
        self.validated_step = self.validations_without_best = 0

    def as_dict(self) -> dict[str, Any]:
        """For state.json, with the version that writes it."""
        return {"mtkit": __version__, "format": FORMAT, **asdict(self)}

    @classmethod
    def of(cls, values: dict[str, Any]) -> TrainState:
        """What `as_dict` gave, in whichever version: what is missing has its default, what is unknown is left out.

        Raises:
            KeyError, TypeError, ValueError: it is of a later format, or does not say where the run stands.
        """
        if values.get("format", FORMAT) > FORMAT:
            raise ValueError(f"written by mtkit {values.get('mtkit')}, in a later format")
        parts = {"window": Window, "watch": SpikeDetector}
        read = {name: part(**known(part, values.get(name, {}))) for name, part in parts.items()}
        where = {name: values[name] for name in ("step", "epoch", "batch")}
        return cls(**known(cls, values) | where | read)


def known(part: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values that a dataclass has a field for."""
    names = {each.name for each in fields(part)}
    return {name: value for name, value in values.items() if name in names}
