"""How long a run will take and how often it sees its pairs, judged by a few updates; and what speaks against it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from mtkit.config.sections import Config
from mtkit.formatting import format_duration
from mtkit.training.trainer import Trainer
from mtkit.training.updates import Update
from mtkit.training.validation import TextCorpus, Validator

_MEASURED_UPDATES = 5
"""Ordinary updates that are timed, after one that is not."""
_LONG_ENOUGH = 20.0
"""Seconds after which no further update is timed, once there are two."""
_VALIDATION_SAMPLE = 128
"""Validation pairs by which the time of a validation is judged."""

_MANY_EPOCHS = 50
"""A run that may see each pair so often should be able to stop early."""
_ABSURD_EPOCHS = 1000
"""A run that sees each pair so often learns them by heart, and no more than that."""
_FEW_PAIRS = 2000
"""Fewer training pairs teach hardly more than themselves."""
_FEW_VALID_PAIRS = 100
"""The scores of fewer validation pairs are mostly chance."""


@dataclass(frozen=True)
class Extent:
    """How much a config asks for, of a corpus.

    Attributes:
        pairs: training pairs.
        valid_pairs: validation pairs.
        epoch: updates of an epoch; an update may be of two.
        updates: updates of the whole run, unless it stops early.
    """

    pairs: int
    valid_pairs: int
    epoch: float
    updates: int

    @property
    def epochs(self) -> float:
        """How often the run sees each pair."""
        return self.updates / self.epoch


@dataclass(frozen=True)
class Pace:
    """How fast this machine is at it.

    Attributes:
        update: seconds of an update.
        num_updates: by how many that was judged.
        validation: seconds of a validation; 0 without one.
    """

    update: float
    num_updates: int
    validation: float


def measure_pace(trainer: Trainer) -> Pace:
    """Time ordinary updates, which train the model, and a validation of some pairs."""
    size = trainer.config.training.batches_per_update
    batches = cycle(trainer.loader.epoch_batches(trainer.state.epoch))
    seconds: list[float] = []
    for number in range(1 + _MEASURED_UPDATES):
        if len(seconds) > 1 and sum(seconds) > _LONG_ENOUGH:
            break
        update = Update(list(islice(batches, size)))
        start = time.perf_counter()
        trainer.train_step(update)
        if number:  # the first is slower: it meets new shapes
            seconds.append(time.perf_counter() - start)
    return Pace(statistics.median(seconds), len(seconds), _validation_seconds(trainer))


def _validation_seconds(trainer: Trainer) -> float:
    """Seconds of a validation, judged by some of its pairs.

    Their translations may be no longer than references are: an untrained model would go on to the limit.
    """
    if trainer.validator is None:
        return 0.0
    corpus, config = trainer.validator.corpus, trainer.config
    fitting = np.sort(np.concatenate([pairs for _, pairs in trainer.validator.batches]))
    places = np.linspace(0, len(fitting) - 1, min(_VALIDATION_SAMPLE, len(fitting))).astype(int)
    chosen = fitting[places].tolist()
    some = TextCorpus.from_text(
        [corpus.srcs[i] for i in chosen], [corpus.tgts[i] for i in chosen], trainer.inputs.tokenizers
    )
    ratio = float(some.tgt_lengths.sum() / max(1, some.src_lengths.sum()))
    decoding = config.decoding.model_copy(update={"max_length_ratio": ratio, "max_length_extra": 0})
    validator = Validator(some, trainer.inputs.tokenizers, config.model_copy(update={"decoding": decoding}))
    start = time.perf_counter()
    validator.loss(trainer.model)
    loss = time.perf_counter() - start
    validator.validate(trainer.model)
    translations = time.perf_counter() - start - 2 * loss
    more = len(trainer.validator.translated_pairs) / len(validator.translated_pairs)
    return loss * len(corpus.srcs) / len(chosen) + max(0.0, translations) * more


def extent_of(trainer: Trainer, pace: Pace) -> Extent:
    """How much the config asks for."""
    training = trainer.config.training
    num_batches, size = len(trainer.loader.order), training.batches_per_update
    limits = [training.step_limit]
    if training.max_epochs is not None:
        limits.append(math.ceil(training.max_epochs * num_batches / size))
    if training.time_limit_minutes is not None:
        with_validation = pace.update + pace.validation / trainer.config.validation.every_steps
        limits.append(max(1, round(60 * training.time_limit_minutes / with_validation)))
    updates = min(limit for limit in limits if limit is not None)
    valid = 0 if trainer.validator is None else len(trainer.validator.corpus.srcs)
    return Extent(len(trainer.inputs.corpus), valid, num_batches / size, updates)


def in_words(config: Config, extent: Extent, pace: Pace, num_done: int = 0) -> Iterator[tuple[str, str]]:
    """What is to be expected, a name and a fact each.

    Args:
        num_done: updates that the run has made already.
    """
    left = max(0, extent.updates - num_done)
    validations = -(-left // config.validation.every_steps) if extent.valid_pairs else 0
    done = f", {num_done:,} are done" if num_done else ""
    epochs = f"{extent.epochs:,.1f}" if extent.epochs < 100 else f"{extent.epochs:,.0f}"
    of_one = f"{extent.epoch:.3g}" if extent.epoch < 100 else f"{extent.epoch:,.0f}"
    yield "epochs", f"{extent.updates:,} updates are {epochs} epochs of {of_one} updates{done}"
    parts = f"{left:,} updates of {pace.update:.2g} s (median of {pace.num_updates} ordinary ones)"
    if validations:
        parts += f", {validations:,} validations of {pace.validation:.2g} s (judged by a part)"
    seconds = left * pace.update + validations * pace.validation
    if config.training.time_limit_minutes is not None:
        seconds = min(seconds, 60 * config.training.time_limit_minutes)
    yield "time", f"about {format_duration(seconds)} on this machine: {parts}; test sets not counted"


def objections(config: Config, extent: Extent, pace: Pace) -> Iterator[str]:
    """What a user will regret about a config, each with what to do; none is an error."""
    training, validation = config.training, config.validation
    if extent.pairs < _FEW_PAIRS:
        yield f"{extent.pairs:,} training pairs teach hardly more than themselves: find more"
    if extent.epochs > _ABSURD_EPOCHS:
        yield (
            f"{extent.updates:,} updates on {extent.pairs:,} pairs see each of them {extent.epochs:,.0f} times: "
            f"they will be known by heart long before (lower training.max_steps, or set training.max_epochs)"
        )
    if training.warmup_steps >= extent.updates:
        yield (
            f"the run ends before its learning rate has risen "
            f"(training.warmup_steps is {training.warmup_steps:,} of {extent.updates:,} updates)"
        )
    if not extent.valid_pairs:
        yield "no validation pairs: the last checkpoint counts as the best, however it translates (set data.valid)"
        return
    if extent.epochs > _MANY_EPOCHS and validation.patience is None:
        yield (
            f"no early stop: all {extent.epochs:,.0f} epochs are trained, learning or not "
            "(set validation.patience, for example to 5)"
        )
    if extent.valid_pairs < _FEW_VALID_PAIRS:
        yield f"scores of {extent.valid_pairs:,} validation pairs are mostly chance (500 to 3,000 are usual)"
    if validation.every_steps >= extent.updates:
        yield (
            f"only the last update is validated, so that nothing chooses among checkpoints "
            f"(lower validation.every_steps, now {validation.every_steps:,})"
        )
    elif pace.validation > validation.every_steps * pace.update:
        yield (
            "validations take longer than the updates between them "
            "(raise validation.every_steps, or set validation.max_sentences)"
        )
