"""Divergence: noticing that the loss has left its course, and rolling back to a checkpoint from before.

A rollback restores the newest checkpoint and continues after the update that diverged, whose pairs are skipped from
then on (Chowdhery et al. 2022, section 5.1).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from mtkit.checkpoint import load_newest_checkpoint
from mtkit.config.sections import Config
from mtkit.data.corpus import Corpus
from mtkit.data.directions import BothDirections
from mtkit.errors import TrainingError
from mtkit.training.checkpointing import Checkpointer
from mtkit.training.distributed import World
from mtkit.training.progress import Progress
from mtkit.training.state import SpikeDetector, TrainState
from mtkit.training.updates import Update

_MAX_ROLLBACKS = 5
"""Limit of rollbacks to the same checkpoint; if they do not help, the sentences are not the cause."""
_SHOWN_SENTENCES = 8
_HINT = "lower training.learning_rate, lengthen warmup_steps, or look at these lines"


def observe_loss(
    detector: SpikeDetector,
    step: int,
    loss: float,
    grad_norm: float,
    num_targets: int,
    *,
    handles_overflow: bool,
    handles_spikes: bool,
) -> str | None:
    """Update the detector with the loss of an update whose gradient has not been applied yet.

    Args:
        detector: detector of loss spikes.
        step: number of the update.
        loss: mean loss per target token.
        grad_norm: gradient norm before clipping.
        num_targets: real target tokens.
        handles_overflow: whether a loss scaler skips updates whose gradient is not finite.
        handles_spikes: whether a spike is a divergence; otherwise it is only tracked.

    Returns:
        What is wrong with the loss or the gradient, or None.
    """
    if not math.isfinite(loss):
        return f"the loss of step {step} is not finite"
    if not math.isfinite(grad_norm) and not handles_overflow:
        return f"the gradient of step {step} is not finite"
    if detector.observe(loss, num_targets) and handles_spikes:
        return f"the loss jumped from {detector.mean:.2f} to {detector.present:.2f} at step {step}"
    return None


@dataclass(frozen=True)
class Divergence:
    """An update at which the loss diverged.

    Attributes:
        step: number of the update.
        reason: what is wrong with its loss or gradient.
        sentences: file and line of each of its pairs.
    """

    step: int
    reason: str
    sentences: list[str]

    def __str__(self) -> str:
        """Return the reason and the first sentences."""
        shown, more = ", ".join(self.sentences[:_SHOWN_SENTENCES]), len(self.sentences) - _SHOWN_SENTENCES
        return f"{self.reason}; its sentences: {shown}" + (f" and {more} more" if more > 0 else "")

    def as_dict(self) -> dict[str, object]:
        """Return the fields for metrics.jsonl."""
        return {"diverged_step": self.step, "reason": str(self), "sentences": self.sentences}


class Rollback:
    """Returns to the newest checkpoint after a divergence."""

    def __init__(
        self,
        config: Config,
        corpus: Corpus | BothDirections,
        checkpointer: Checkpointer,
        progress: Progress,
        world: World,
    ) -> None:
        self.config, self.corpus, self.checkpointer = config, corpus, checkpointer
        self.progress, self.world = progress, world
        self._num_rollbacks_to: Counter[int] = Counter()

    def recover(self, divergence: Divergence, update: Update, state: TrainState) -> TrainState:
        """Restore the newest checkpoint, and return the state to continue with after the update that diverged.

        Args:
            divergence: what went wrong.
            update: the update that diverged.
            state: the state before the update.

        Raises:
            TrainingError: If the config says to stop, there is no checkpoint, no pair is left, or earlier rollbacks
                did not help.
        """
        if self.config.training.on_divergence == "stop":
            raise TrainingError(str(divergence), hint=f"{_HINT}; training.on_divergence rollback skips them")
        skipped = sorted({*state.skipped, *update.pairs()})
        if len(skipped) == len(self.corpus):
            raise TrainingError(f"{divergence}; and no other pairs are left", hint=_HINT)
        run_folder = Path(self.config.run)
        found = load_newest_checkpoint(run_folder, lambda fault: self.progress.say(str(fault)))
        steps = self.world.all_gather(None if found is None else found[1].state["step"])
        if found is None or len(set(steps)) > 1:
            raise TrainingError(f"{divergence}; and there is no checkpoint to roll back to", hint=_HINT)
        folder, checkpoint = found
        restored = self.checkpointer.restore(checkpoint, str(folder), state)
        self._num_rollbacks_to[restored.step] += 1
        if self._num_rollbacks_to[restored.step] > _MAX_ROLLBACKS:
            raise TrainingError(f"{divergence}; {_MAX_ROLLBACKS} rollbacks did not help", hint=_HINT)
        if state.best is not None:  # best/ has not been touched
            if (state.best_step or 0) > restored.step:
                restored.validations_without_best = 0
            restored = replace(
                restored, best=state.best, best_loss=state.best_loss, best_step=state.best_step
            )
        restored.move_past(update.epoch, update.last_batch)
        restored.rollbacks, restored.skipped = state.rollbacks + 1, skipped
        return restored
