"""Forecast of a run from a few timed updates: its duration, its epochs, and settings that the user may regret."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mtkit.config.sections import Config
from mtkit.data.order import num_epochs_of
from mtkit.device import synchronize
from mtkit.formatting import format_count, format_duration, format_seconds
from mtkit.training.trainer import Trainer
from mtkit.training.validation import EvalSet, TextCorpus, Validator

_TIMED_UPDATES = 5
"""Updates that are timed, after one that is not."""
_MAX_SECONDS = 20.0
"""Once two updates are timed, no further one is after this many seconds."""
_VALIDATION_SAMPLE = 128
"""Validation pairs from which the duration of a validation is estimated."""

_MANY_EPOCHS = 50
"""A run with more epochs should be able to stop early."""
_ABSURD_EPOCHS = 1000
"""A run with more epochs memorizes its pairs."""
_FEW_PAIRS = 2000
"""A model trained on fewer pairs hardly generalizes."""
_FEW_VALID_PAIRS = 100
"""Scores on fewer validation pairs are mostly noise."""


@dataclass(frozen=True)
class RunSize:
    """Size of a run.

    Attributes:
        num_pairs: training pairs.
        num_valid_pairs: validation pairs.
        updates_per_epoch: updates per epoch; an update may span two epochs.
        num_updates: updates of the whole run, unless it stops early.
    """

    num_pairs: int
    num_valid_pairs: int
    updates_per_epoch: float
    num_updates: int

    @property
    def epochs(self) -> float:
        """Number of epochs."""
        return self.num_updates / self.updates_per_epoch


@dataclass(frozen=True)
class Speed:
    """Speed of a run on this machine.

    Attributes:
        update_seconds: median duration of an update.
        num_timed: number of updates that were timed.
        validation_seconds: estimated duration of a validation; 0 without validation pairs.
    """

    update_seconds: float
    num_timed: int
    validation_seconds: float


def measure_speed(trainer: Trainer) -> Speed:
    """Time some updates, which train the model, and a validation of some pairs.

    Args:
        trainer: trainer of the run.

    Raises:
        TrainingError: If the loss diverges or memory runs out.
    """
    updates = trainer.loader.endless_updates()
    seconds: list[float] = []
    for number in range(1 + _TIMED_UPDATES):
        is_enough = len(seconds) > 1 and sum(seconds) > _MAX_SECONDS
        if any(trainer.world.all_gather(is_enough)):
            break
        start = time.perf_counter()
        update = next(updates)
        trainer.train_step(update)
        synchronize(trainer.device)
        if number:  # the first is slower: its shapes are new
            seconds.append(time.perf_counter() - start)
    # on a GPU losses wait to be read, and divergence is found only then
    trainer.read_updates()
    return Speed(statistics.median(seconds), len(seconds), _validation_seconds(trainer))


def _validation_seconds(trainer: Trainer) -> float:
    """Return the duration of a validation in seconds, estimated from some of its pairs.

    Translations are limited to the length of references, because an untrained model would not stop before the limit.
    """
    if trainer.validator is None:
        return 0.0
    corpus, config = trainer.validator.corpus, trainer.config
    short_enough = np.sort(np.concatenate([pairs for _, pairs in trainer.validator.batches]))
    positions = np.linspace(0, len(short_enough) - 1, min(_VALIDATION_SAMPLE, len(short_enough))).astype(int)
    chosen = short_enough[positions].tolist()
    chosen_pairs = EvalSet("sample", [corpus.srcs[i] for i in chosen], [corpus.tgts[i] for i in chosen])
    sample = TextCorpus.of([chosen_pairs], trainer.inputs.tokenizers)
    ratio = float(sample.tgt_lengths.sum() / max(1, sample.src_lengths.sum()))
    decoding = config.decoding.model_copy(update={"max_length_ratio": ratio, "max_length_extra": 0})
    validator = Validator(sample, trainer.inputs.tokenizers, config.model_copy(update={"decoding": decoding}))
    model = validator.full_model(trainer.model).eval()
    start = time.perf_counter()
    validator.loss(model, trainer.world)
    loss_seconds = time.perf_counter() - start
    validator.validate(model, trainer.world)  # computes the loss once more
    translation_seconds = time.perf_counter() - start - 2 * loss_seconds
    translation_ratio = len(trainer.validator.translated_pairs) / len(validator.translated_pairs)
    loss_ratio = len(corpus.srcs) / len(chosen)
    return loss_seconds * loss_ratio + max(0.0, translation_seconds) * translation_ratio


def run_size(trainer: Trainer, speed: Speed) -> RunSize:
    """Return the size of a run.

    Args:
        trainer: trainer of the run.
        speed: its speed, which decides how far it gets with a time limit.
    """
    training = trainer.config.training
    order, size = trainer.loader.order, training.batches_per_update
    limits = [training.step_limit]
    if training.max_epochs is not None:
        limits.append(trainer.loader.num_updates(training.max_epochs))
    if training.time_limit_minutes is not None:
        with_validation = (
            speed.update_seconds + speed.validation_seconds / trainer.config.validation.every_steps
        )
        limits.append(max(1, round(60 * training.time_limit_minutes / with_validation)))
    num_updates = min(limit for limit in limits if limit is not None)
    num_valid = 0 if trainer.validator is None else len(trainer.validator.corpus.srcs)
    per_epoch = num_updates / num_epochs_of(order, num_updates * size)
    return RunSize(len(trainer.inputs.corpus), num_valid, per_epoch, num_updates)


def forecast(config: Config, size: RunSize, speed: Speed, num_done: int = 0) -> Iterator[tuple[str, str]]:
    """Yield what to expect of a run, as names and facts.

    Args:
        config: config of the run.
        size: its size.
        speed: its speed.
        num_done: updates already made.
    """
    num_left = max(0, size.num_updates - num_done)
    num_validations = -(-num_left // config.validation.every_steps) if size.num_valid_pairs else 0
    done = f", {num_done:,} are done" if num_done else ""
    epochs = f"{size.epochs:,.1f}" if size.epochs < 100 else f"{size.epochs:,.0f}"
    per_epoch = size.updates_per_epoch
    per_epoch_text = f"{per_epoch:.3g}" if per_epoch < 100 else f"{per_epoch:,.0f}"
    per_epoch_text += " update" if per_epoch_text == "1" else " updates"
    updates, are = format_count(size.num_updates, "update"), "is" if size.num_updates == 1 else "are"
    yield "epochs", f"{updates} {are} {epochs} epochs of {per_epoch_text}{done}"
    update_seconds, validation_seconds = map(format_seconds, (speed.update_seconds, speed.validation_seconds))
    parts = f"{format_count(num_left, 'update')} of {update_seconds} (median of {speed.num_timed})"
    if num_validations:
        parts += f", {format_count(num_validations, 'validation')} of {validation_seconds} (estimated)"
    seconds = num_left * speed.update_seconds + num_validations * speed.validation_seconds
    if config.training.time_limit_minutes is not None:
        # The limit ends the updates; the last of them is validated in any case.
        seconds = min(seconds, 60 * config.training.time_limit_minutes + speed.validation_seconds)
    yield "time", f"about {format_duration(seconds)} on this machine, without test sets: {parts}"


def find_problems(config: Config, size: RunSize, speed: Speed) -> Iterator[str]:
    """Yield what a user may regret about a config, and what to do about it; nothing of it is an error.

    Args:
        config: config of the run.
        size: its size.
        speed: its speed.
    """
    training, validation = config.training, config.validation
    if size.num_pairs < _FEW_PAIRS and config.init is None:
        yield f"a model trained on {format_count(size.num_pairs, 'pair')} hardly generalizes: find more"
    if size.epochs > _ABSURD_EPOCHS:
        yield (
            f"{size.num_updates:,} updates on {size.num_pairs:,} pairs are {size.epochs:,.0f} epochs: "
            f"the model memorizes the pairs long before (lower training.max_steps, or set training.max_epochs)"
        )
    if training.warmup_steps >= size.num_updates:
        yield (
            f"the run ends before the learning rate is warmed up "
            f"(training.warmup_steps is {training.warmup_steps:,} of {size.num_updates:,} updates)"
        )
    if training.minimum_risk is not None and config.init is None:
        yield (
            "minimum-risk training of random weights learns from translations that mean nothing "
            "(train without it first, and name that run in init)"
        )
    if not size.num_valid_pairs:
        yield "no validation pairs: the last checkpoint counts as the best, however it translates (set data.valid)"
        return
    if size.epochs > _MANY_EPOCHS and validation.patience is None and config.preset is None:
        yield (
            f"no early stopping: all {size.epochs:,.0f} epochs are trained, whether they help or not "
            "(set validation.patience, for example to 5)"
        )
    if size.num_valid_pairs < _FEW_VALID_PAIRS:
        yield f"scores of {size.num_valid_pairs:,} validation pairs are mostly noise (500 to 3,000 are usual)"
    if validation.every_steps >= size.num_updates:
        yield (
            f"only the last update is validated, so there is no best checkpoint to select "
            f"(lower validation.every_steps, now {validation.every_steps:,})"
        )
    elif speed.validation_seconds > validation.every_steps * speed.update_seconds:
        yield (
            "validations take longer than the updates between them "
            "(raise validation.every_steps, or set validation.max_sentences)"
        )
