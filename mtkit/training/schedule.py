"""How the learning rate rises and falls: a pure function of the step."""

import math

from mtkit.config.sections import TrainingConfig


def learning_rate(step: int, training: TrainingConfig, d_model: int) -> float:
    """The rate of an update; steps count from 1.

    inverse_sqrt rises linearly to the peak at `warmup_steps`, then falls as 1/sqrt(step). noam is the same curve
    with the peak given by the model's width (Vaswani et al. 2017, eq. 3). linear and cosine (Loshchilov and
    Hutter 2017, eq. 5, without restarts) end at `min_learning_rate` at the last step.
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
            return peak + (low - peak) * progress(step, training)
        case "cosine":
            return low + (peak - low) * (1 + math.cos(math.pi * progress(step, training))) / 2
        case _:
            return peak


_LOWEST_PEAK = 5e-5
"""Below it a Transformer that begins with random weights hardly learns."""


def low_peak_warning(training: TrainingConfig, d_model: int) -> str | None:
    """A warning, if the factor of noam looks like a learning rate; then nothing would be learned."""
    peak = learning_rate(max(training.warmup_steps, 1), training, d_model)
    if training.schedule != "noam" or peak >= _LOWEST_PEAK:
        return None
    return (
        f"the learning rate is at most {peak:.1e}, at which little is learned: with schedule noam "
        f"training.learning_rate, here {training.learning_rate:g}, is a factor, usually 2.0"
    )


def progress(step: int, training: TrainingConfig) -> float:
    """From 0 at the end of the warm-up to 1 at the last step."""
    last = training.step_limit
    assert last is not None, "the config asks for max_steps with these schedules"
    return min(1.0, (step - training.warmup_steps) / (last - training.warmup_steps))
