"""Findings in the log of a run: loss, gradient norm and learning rate of its updates, loss of its validations.

Losses are in nats per target token. Two levels tell where a loss stands: that of chance, the logarithm of the
vocabulary size, and that of frequencies, the entropy of the tokens, which a model reaches that knows no more than how
often each of them occurs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, median

from mtkit.config.sections import Config
from mtkit.evaluation.history import History, Points
from mtkit.formatting import format_count
from mtkit.training.diagnosis.finding import Finding

_MIN_UPDATES = 50
"""Updates before which nothing is said about the loss."""
_NEAR_CHANCE, _NEAR_FREQUENCIES = 0.25, 0.3
"""Nats above or below which a loss is at that level."""
_LOW_RATE = 1e-4
"""Learning rates below this are low for training from scratch, where 5e-4 to 5e-3 are usual."""
_LOW_RATE_OF_FINE_TUNING = 2e-6
_HIGH_RATE, _ABSURD_RATE = 3e-3, 0.02
"""Learning rates that can be too high, and that are for any Transformer."""
_LEARNED = 1.0
"""Loss below which a model has learned something, whatever its vocabulary."""
_RISE, _RELATIVE_RISE = 0.3, 0.1
"""Nats, and share of the lowest loss, by which a later loss is higher if something is wrong."""
_MANY_ROLLBACKS = 3
_CLIPPED = 10.0
"""Gradient norm as a multiple of `training.clip_norm` from which updates are only directions."""
_TINY_GRADIENT = 1e-3
_STILL_FALLING, _STILL_HIGH = 0.15, 1.5
"""Nats by which the validation loss fell over the last quarter of a run that ended too early, and its last value."""


@dataclass(frozen=True)
class Levels:
    """Levels that a loss is compared with.

    Attributes:
        vocab_size: pieces of the target vocabulary.
        frequencies: entropy of the target tokens, in nats; None if the training text could not be read.
    """

    vocab_size: int
    frequencies: float | None

    @property
    def chance(self) -> float:
        """Loss of a model for which all tokens are equally probable."""
        return math.log(self.vocab_size)


def find_in_curves(history: History, config: Config, levels: Levels, *, has_ended: bool) -> Iterator[Finding]:
    """Yield what is wrong with the course of training.

    Args:
        history: its records.
        config: the config.
        levels: what losses are compared with.
        has_ended: whether training came to its end.
    """
    yield from _divergence(history)
    losses = history.train_curve("nll") or history.train_curve("loss")
    if len(losses) >= 2 and history.last_step >= _MIN_UPDATES:
        found = list(_level(history, losses, config, levels))
        yield from found or _rise(losses, config)
        yield from _gradient(history, losses, config)
    if has_ended:
        yield from _too_short(history, config)
    yield from _overfitting(history, losses)


# --- the loss of updates ------------------------------------------------------------------------------------------


def _divergence(history: History) -> Iterator[Finding]:
    """Yield a finding if training stopped at a divergence, or was rolled back again and again."""
    last = history.divergences[-1] if history.divergences else None
    has_stopped = last is not None and len(history.divergences) > len(history.rollbacks)
    if last is None or not (has_stopped or len(history.rollbacks) >= _MANY_ROLLBACKS):
        return
    reason = str(last.get("reason", "")).partition("; its sentences")[0]
    seen = (
        f"training stopped: {reason}"
        if has_stopped
        else f"{len(history.rollbacks)} rollbacks; the last: {reason}"
    )
    yield Finding(
        "divergence",
        seen,
        "the learning rate is too high for this model, its warm-up too short, or some pairs are garbage",
        "lower training.learning_rate to a third, raise training.warmup_steps, keep training.clip_norm at 1.0; "
        "`training.on_divergence: rollback` skips the pairs at which it happens",
    )


def _level(history: History, losses: Points, config: Config, levels: Levels) -> Iterator[Finding]:
    """Yield findings if the loss has never come down."""
    start, end = losses[0][1], _end(losses)
    rates = [rate for _, rate in history.train_curve("lr")]
    peak = max(rates, default=config.training.learning_rate)
    if config.init is not None:
        if peak <= _LOW_RATE_OF_FINE_TUNING and end > 0.98 * start:
            yield _low_rate(
                f"the loss went from {start:.3f} to {end:.3f} at a learning rate of at most {peak:.1e}"
            )
        return
    is_at_chance = end >= levels.chance - _NEAR_CHANCE
    if is_at_chance:
        yield Finding(
            "chance",
            f"the training loss is {end:.2f} after {format_count(history.last_step, 'update')}; that of chance, the "
            f"logarithm of {levels.vocab_size:,} pieces, is {levels.chance:.2f}",
            "the model has learned nothing: for it, all pieces are about equally probable",
            "see that training.learning_rate is not near zero and training.freeze is empty, and train longer",
        )
    knows_frequencies_at_most = is_at_chance or (
        levels.frequencies is not None and end >= levels.frequencies - _NEAR_FREQUENCIES
    )
    is_stuck = knows_frequencies_at_most and peak >= _HIGH_RATE and not _is_falling(losses)
    is_absurd = end > _LEARNED and peak >= _ABSURD_RATE
    updates = format_count(history.last_step, "update")
    seen = (
        f"the loss went from {start:.2f} to {end:.2f} in {updates}, at a learning rate of at most {peak:.1e}"
    )
    if knows_frequencies_at_most and peak <= _LOW_RATE:
        yield _low_rate(seen, warming_up=history.last_step < config.training.warmup_steps)
    elif is_stuck or is_absurd:
        yield Finding(
            "learning-rate-high",
            seen,
            "the learning rate is too high: the model knows which pieces are frequent, and nothing about the source",
            "lower training.learning_rate: 0.001 suits most models; raise training.warmup_steps",
        )


def _low_rate(seen: str, *, warming_up: bool = False) -> Finding:
    change = (
        "lower training.warmup_steps: the run was over before the learning rate was warmed up"
        if warming_up
        else "raise training.learning_rate: 0.001 suits most models that start from nothing, 0.0001 to 0.0005 those "
        "that start from another one"
    )
    return Finding("learning-rate-low", seen, "the learning rate is too low: the loss hardly moves", change)


def _rise(losses: Points, config: Config) -> Iterator[Finding]:
    """Yield a finding if the training loss has gone up for good."""
    window = max(1, len(losses) // 10)
    sums = list(accumulate((loss for _, loss in losses), initial=0.0))
    means = [(after - before) / window for before, after in zip(sums, sums[window:], strict=False)]
    lowest = min(means)
    at, end = means.index(lowest), means[-1]
    if len(losses) >= 10 and at < 0.8 * len(means) and end - lowest >= max(_RISE, _RELATIVE_RISE * lowest):
        yield Finding(
            "loss-rises",
            f"the training loss was {lowest:.2f} around update {losses[at + window // 2][0]:,} and is {end:.2f} now",
            "the learning rate is too high: training has become unstable",
            f"lower training.learning_rate (it is {config.training.learning_rate:g}) to a third, or raise "
            "training.warmup_steps",
        )


def _gradient(history: History, losses: Points, config: Config) -> Iterator[Finding]:
    """Yield a finding if gradients are far too large, or next to nothing while the loss is high."""
    norms = [norm for _, norm in history.train_curve("grad_norm")]
    if len(norms) < 2:
        return
    usual, clip = median(norms[len(norms) // 2 :]), config.training.clip_norm
    if clip is not None and usual >= _CLIPPED * clip:
        yield Finding(
            "gradient",
            f"the gradient norm is usually {usual:.1f}, training.clip_norm is {clip:g}",
            "every update is clipped to a fraction: training is unstable, or the norm to clip to is too small",
            "lower training.learning_rate, use `model.norm_position: pre`, or set training.clip_norm to 1.0",
        )
    elif usual < _TINY_GRADIENT and _end(losses) > _LEARNED:
        yield Finding(
            "gradient",
            f"the gradient norm is usually {usual:.1e} although the loss is {_end(losses):.2f}",
            "nothing pulls at the weights: they have run into a corner from which training does not return",
            "start again with a lower training.learning_rate and `model.norm_position: pre`",
        )


def _end(losses: Points) -> float:
    """Return the mean of the last tenth of a curve."""
    return fmean(loss for _, loss in losses[-max(1, len(losses) // 10) :])


def _is_falling(losses: Points) -> bool:
    """Return whether the last quarter of a curve is lower than the one before it."""
    quarter = max(1, len(losses) // 4)
    values = [loss for _, loss in losses]
    return len(values) < 4 or fmean(values[-2 * quarter : -quarter]) - fmean(values[-quarter:]) > 0.1


# --- validations --------------------------------------------------------------------------------------------------


def _too_short(history: History, config: Config) -> Iterator[Finding]:
    """Yield a finding if training ended while the validation loss was still falling steeply."""
    warmup = config.training.warmup_steps
    if 0 < history.last_step <= warmup and config.training.schedule != "constant":
        yield Finding(
            "too-few-updates",
            f"training ended after {format_count(history.last_step, 'update')}; training.warmup_steps is {warmup:,}",
            "the run was over before the learning rate was warmed up",
            "raise training.max_steps, or lower training.warmup_steps to a tenth of it",
        )
        return
    losses = history.valid_curve("loss")
    before = [(step, loss) for step, loss in losses if step <= 0.75 * history.last_step]
    if not before or before[-1] == losses[-1] or losses[-1][1] < _STILL_HIGH:
        return
    (step, loss), (last, end) = before[-1], losses[-1]
    fall = (loss - end) * (0.25 * last) / (last - step)
    if fall >= _STILL_FALLING and end == min(loss for _, loss in losses):
        yield Finding(
            "too-few-updates",
            f"the validation loss fell from {loss:.2f} at update {step:,} to {end:.2f} at the last, {last:,}",
            "training ended while the model was still learning fast",
            "raise training.max_steps; the command that started the run continues it",
        )


def _overfitting(history: History, train: Points) -> Iterator[Finding]:
    """Yield a finding if the validation loss has been rising since the first half of the run."""
    losses = history.valid_curve("loss")
    if len(losses) < 3 or not train:
        return
    at, lowest = min(losses, key=lambda point: point[1])
    last, end = losses[-1]
    if at > 0.6 * last or end - lowest < max(_RISE, _RELATIVE_RISE * lowest) or _end(train) > lowest - 0.5:
        return
    epochs = dict(history.train_curve("epoch")).get(train[-1][0])
    after = f" after {epochs:,.0f} epochs" if epochs is not None else ""
    yield Finding(
        "overfitting",
        f"the validation loss was lowest at update {at:,}, {lowest:.2f}, and is {end:.2f} at update {last:,}; the "
        f"training loss is {_end(train):.2f}{after}",
        "the model learns the training pairs by heart instead of the language: there are too few for its size",
        "more pairs help most; then a higher model.dropout (0.3), a smaller model.d_model, fewer updates "
        "(validation.patience: 5), or fine-tuning a model that knows the languages (init)",
    )
