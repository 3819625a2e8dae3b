"""Learning-rate schedules: pure functions of the step."""

import math

from mtkit.config.sections import TrainingConfig


def learning_rate(step: int, training: TrainingConfig, d_model: int) -> float:
    """Return the learning rate of an update.

    All schedules but noam rise linearly to `learning_rate` at `warmup_steps`. Then inverse_sqrt decays as
    1/sqrt(step); linear and cosine (Loshchilov and Hutter 2017, eq. 5, without restarts) reach `min_learning_rate` at
    the last step; constant stays. noam has the shape of inverse_sqrt, with the peak given by the model's width
    (Vaswani et al. 2017, eq. 3).

    Args:
        step: number of the update, from 1.
        training: the `training` section of the config.
        d_model: width of the model, for noam.
    """
    peak, low, warmup = training.learning_rate, training.min_learning_rate, training.warmup_steps
    if training.schedule == "noam":
        return peak * d_model**-0.5 * min(step**-0.5, step * max(warmup, 1) ** -1.5)
    if step <= warmup:
        return peak * step / warmup
    match training.schedule:
        case "inverse_sqrt":
            return peak * math.sqrt(max(warmup, 1) / step)
        case "linear":
            return peak + (low - peak) * decay_progress(step, training)
        case "cosine":
            return low + (peak - low) * (1 + math.cos(math.pi * decay_progress(step, training))) / 2
        case _:
            return peak


_LOWEST_PEAK = 5e-5
"""Peak learning rate below which a randomly initialized Transformer hardly learns."""


def low_peak_warning(training: TrainingConfig, d_model: int) -> str | None:
    """Return a warning if noam's factor looks like a learning rate, with which the model would not learn."""
    peak = learning_rate(max(training.warmup_steps, 1), training, d_model)
    if training.schedule != "noam" or peak >= _LOWEST_PEAK:
        return None
    return (
        f"the learning rate peaks at {peak:.1e}, too low to learn: with schedule noam, "
        f"training.learning_rate (now {training.learning_rate:g}) is a factor, usually 2.0"
    )


def decay_progress(step: int, training: TrainingConfig) -> float:
    """Return the share of the decay that is done: 0 at the end of the warm-up, 1 at the last step.

    Without a warm-up, the first step has the peak: a training of a single step learns too.
    """
    last = training.step_limit
    assert last is not None, "the config requires max_steps for these schedules"
    first = max(training.warmup_steps, 1)
    return min(1.0, (step - first) / max(last - first, 1))
