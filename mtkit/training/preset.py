"""Choices of a run, made once at its beginning: preset auto, and the updates that fit into a time limit.

The run folder stores the values (config.yaml, every checkpoint) and the reasons (facts.json). A run that is resumed
keeps them: see `mtkit.training.resume.keep_choices`.
"""

from __future__ import annotations

import gc
import math
import tempfile
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from mtkit.config.loading import AUTO, all_values, set_keys, with_values
from mtkit.config.presets import (
    WARMUP_SHARE,
    Choice,
    CorpusSize,
    Machine,
    choose,
    preset_values,
)
from mtkit.config.rules import ineffective_keys
from mtkit.config.sections import Config, DataConfig
from mtkit.config.yaml_document import format_value
from mtkit.data.filters import KEPT, PairFilter
from mtkit.data.order import num_batches_of
from mtkit.data.sources import open_sources
from mtkit.data.tokenizer import make_tokenizers
from mtkit.device import choose_device, choose_dtype
from mtkit.errors import ConfigError, DataError
from mtkit.formatting import format_count, format_seconds
from mtkit.job_limits import available_bytes, usable_cores
from mtkit.languages import weighted_length
from mtkit.training.build import build_trainer, make_pairs
from mtkit.training.distributed import SINGLE_PROCESS, World
from mtkit.training.forecast import Speed, measure_speed
from mtkit.training.inputs import Inputs
from mtkit.training.progress import Progress
from mtkit.training.trainer import Trainer
from mtkit.training.updates import make_order
from mtkit.translation.options import LineProgress

_BLOCK = 10_000
"""Pairs that are filtered together while a corpus is measured."""
_COUNTED_PAIRS = 50_000
"""Pairs whose characters are counted; larger corpora have vocabularies that are large enough for any script."""
_COVERAGE = 0.9995
"""Share of the text that the pieces of a vocabulary cover: the default of `tokenizer.character_coverage`."""
_TIME_FOR_TRAINING = 0.97
"""Share of a time limit that updates and validations may take, by estimate; checkpoints need some too."""
_VALIDATION_SHARE = 0.25
"""Largest share of a time limit that validations take, if a preset says how often they are; one there is always."""
_LEAST_UPDATE_SHARE = 0.25
"""Share of a time limit that updates get, however long a validation is."""


def choose_values(
    config: Config, size: CorpusSize | None = None, say: Callable[[str], None] = lambda line: None
) -> tuple[Config, list[str]]:
    """Choose the values of preset auto for the corpus and this machine.

    Args:
        config: config of the run.
        size: size of its corpus, if it has been measured already.
        say: prints a line about the progress.

    Returns:
        The config with the name of the preset and all values; and sentences, without a period, that say what was
        chosen and why. Without preset auto, the same config and what was named.

    Raises:
        ConfigError: If the values do not go together with those that are set.
        DataError: If a corpus is missing, malformed or empty.
        StorageError: If a model of the tokenizer is missing or damaged.
    """
    if config.preset is None:
        return config, []
    set_by_user = set_keys(config)
    reasons = [f"preset {config.preset}"]
    if config.preset == AUTO:
        choice = choose_for(config, size, say)
        config = with_values(config, choice.preset, choice.values)
        first, *others = choice.reasons
        reasons = [f"preset auto: {first}", *others]
    assert config.preset is not None and config.preset != AUTO
    usual, idle = preset_values(config.preset, {}), ineffective_keys(config)
    changes = [
        f"{key} {format_value(set_by_user[key])}"
        for key in usual
        if key in set_by_user and set_by_user[key] != usual[key] and key not in idle
    ]
    if changes:
        reasons.append(f"as the config says, {', '.join(changes)}")
    return config, reasons


def choose_for(
    config: Config, size: CorpusSize | None = None, say: Callable[[str], None] = lambda line: None
) -> Choice:
    """Return what auto chooses for a corpus and this machine; see `choose_values`.

    Raises:
        StorageError: If a model of the tokenizer is missing or damaged.
    """
    chosen, own = set_keys(config), config.tokenizer
    if own.model is not None or own.src_model is not None:
        chosen["tokenizer.vocab_size"] = make_tokenizers(own, []).src.num_pieces
    return choose(size or measure_corpus(config.data, say), _this_machine(config), chosen)


def measure_corpus(data: DataConfig, say: Callable[[str], None] = lambda line: None) -> CorpusSize:
    """Count the training pairs that are neither empty, nor far too long, nor duplicates that the config drops.

    Only tokens would tell exactly which pairs are too long, and the tokenizer is one of the things to be chosen.

    Args:
        data: section `data`.
        say: prints a line about the progress.

    Raises:
        DataError: If a source cannot be read, or there are no training pairs.
    """
    sources, pair_filter = open_sources(data.train, data, "train"), PairFilter(data)
    num_read, num_pairs, pairs_per_epoch, characters = 0, 0, 0.0, 0.0
    counts, lengths = Counter[str](), Counter[int]()
    progress = LineProgress(say, task="counting training pairs")
    for source, weight in zip(sources, data.train_weights, strict=True):
        pairs = (pair for _, pair in source.read())
        while block := list(islice(pairs, _BLOCK)):
            srcs, tgts = [pair.src.strip() for pair in block], [pair.tgt.strip() for pair in block]
            reasons = pair_filter.filter_texts(srcs, tgts)
            kept = [i for i in range(len(block)) if reasons[i] == KEPT]
            if num_pairs < _COUNTED_PAIRS:
                for i in kept:
                    counts.update(srcs[i])
                    counts.update(tgts[i])
            num_read, num_pairs = num_read + len(block), num_pairs + len(kept)
            pairs_per_epoch += weight * len(kept)
            longer = [max(weighted_length(srcs[i]), weighted_length(tgts[i])) for i in kept]
            characters += weight * sum(longer)
            lengths.update(map(round, longer))
            progress(len(block))
    if not num_pairs:
        hint = "all pairs are empty or too long" if num_read else "the files are empty"
        raise DataError("no training pairs", where=sources[0].location(1), hint=hint)
    reversed_epochs = (
        (math.inf if data.reverse_epochs is None else data.reverse_epochs) if data.reverse else 0
    )
    return CorpusSize(
        num_pairs,
        pairs_per_epoch,
        characters,
        _alphabet(counts),
        reversed_epochs,
        lengths,
        data.max_length,
    )


def _alphabet(counts: Counter[str]) -> int:
    """Return how many characters, the most frequent first, make up nearly all of the text."""
    totals = np.cumsum(sorted(counts.values(), reverse=True))
    return int(np.searchsorted(totals, _COVERAGE * totals[-1])) + 1


def _this_machine(config: Config) -> Machine:
    """Return what matters of this machine.

    Raises:
        ConfigError: If `training.device` is not available.
    """
    device = choose_device(config.training.device)
    has_bf16 = choose_dtype("auto", device) == torch.bfloat16
    if device.type == "cuda":
        memory, _ = torch.cuda.mem_get_info(device)
        return Machine(usable_cores(), memory, torch.cuda.get_device_name(device), has_bf16)
    return Machine(config.training.num_threads or usable_cores(), available_bytes(), None, has_bf16)


# --- epochs and time limit ------------------------------------------------------------------------------------------


def fit_to_limits(config: Config, inputs: Inputs, world: World = SINGLE_PROCESS) -> tuple[Config, list[str]]:
    """Set the number of updates to `training.max_epochs` of a preset, and to what fits into the time limit.

    Args:
        config: config of a new run.
        inputs: its inputs.
        world: the processes that train the model, all of which must call this.

    Returns:
        The config, and sentences that say what was found.

    Raises:
        ConfigError: If the warm-up that is set is not shorter.
        TrainingError: If memory runs out.
    """
    config, counted = _fit_to_epochs(config, inputs)
    config, measured = fit_into_time(config, inputs, world)
    return config, [*counted, *measured]


def _fit_to_epochs(config: Config, inputs: Inputs) -> tuple[Config, list[str]]:
    """Set the number of updates of a preset to those of the epochs that are set; warm-up and validations follow."""
    training = config.training
    if not config.fits_to_epochs:
        return config, []
    assert config.preset is not None and config.preset != AUTO and training.max_epochs is not None
    pairs, variation = make_pairs(config, inputs.tokenizers, inputs.corpus)
    data = config.data
    order = make_order(pairs, training, config.seed, data.train_weights, variation, data.reverse_epochs)
    steps = -(-num_batches_of(order, training.max_epochs) // training.batches_per_update)
    values = preset_values(config.preset, set_keys(config) | {"training.max_steps": steps})
    following = ("training.warmup_steps", "validation.every_steps")
    values = {key: values[key] for key in following if key in values} | {"training.max_steps": steps}
    config = with_values(config, config.preset, all_values(config) | values)
    epochs = format_count(training.max_epochs, "epoch")
    return config, [f"{format_count(steps, 'update')} for {epochs} of the encoded pairs"]


def fit_into_time(config: Config, inputs: Inputs, world: World = SINGLE_PROCESS) -> tuple[Config, list[str]]:
    """Set the number of updates to what fits into the time limit, after timing some; all processes must call this.

    With a preset, it is at most that of the preset; validations and warm-up that are not set keep their share.

    Args:
        config: config of a new run.
        inputs: its inputs.
        world: the processes that train the model.

    Returns:
        The config, and sentences that say what was measured. The same config if its schedule does not end with time.

    Raises:
        ConfigError: If the warm-up alone takes longer.
        TrainingError: If memory runs out.
    """
    if not config.training.ends_with_time:
        return config, []
    minutes, training, validation = config.training.time_limit_minutes, config.training, config.validation
    assert minutes is not None, "the schedule ends with time"
    limit = f"{minutes:g} {'minute' if minutes == 1 else 'minutes'}"
    speed, most = _measure(config, inputs, world)
    seconds = 60 * minutes * _TIME_FOR_TRAINING
    sets_interval = "every_steps" in validation.model_fields_set
    if config.preset is not None and training.max_steps is not None and not sets_interval:
        num_validations = max(1, round(training.max_steps / validation.every_steps))
        if speed.validation_seconds:
            affordable = int(_VALIDATION_SHARE * seconds / speed.validation_seconds)
            num_validations = max(1, min(num_validations, affordable))
        for_updates = seconds - num_validations * speed.validation_seconds
        steps = max(_LEAST_UPDATE_SHARE * seconds, for_updates) / speed.update_seconds
        every_steps = max(1, round(min(steps, most) / num_validations))
    else:
        every_steps = validation.every_steps
        steps = seconds / (speed.update_seconds + speed.validation_seconds / every_steps)
    steps = max(1, int(min(steps, most)))
    warmup = training.warmup_steps
    if "warmup_steps" not in training.model_fields_set:
        warmup = min(warmup, int(steps * WARMUP_SHARE))
    if warmup >= steps:
        what = f"{warmup:,} updates of warm-up, but in {limit} there is time for only {steps:,}"
        hint = "lower it, or raise training.time_limit_minutes"
        raise ConfigError(what, where="training.warmup_steps", hint=hint)
    values = {
        "training.max_steps": steps,
        "training.warmup_steps": warmup,
        "validation.every_steps": every_steps,
    }
    config = with_values(config, config.preset, all_values(config) | values)
    each = f"{format_seconds(speed.update_seconds)} each"
    if speed.validation_seconds:
        each += f", and validations of {format_seconds(speed.validation_seconds)}"
    updates = format_count(steps, "update")
    if steps == most:
        return config, [f"in {limit} there is more than enough time for {updates}: {each}"]
    return config, [f"in {limit} there is time for {updates}: {each}"]


def _most_updates(trainer: Trainer) -> float:
    """Return the number of updates of a preset, or of `max_epochs`; infinite without either."""
    training = trainer.config.training
    limits = [math.inf]
    if trainer.config.preset is not None and training.max_steps is not None:
        limits.append(training.max_steps)
    if training.max_epochs is not None:
        limits.append(trainer.loader.num_updates(training.max_epochs))
    return min(limits)


def _measure(config: Config, inputs: Inputs, world: World) -> tuple[Speed, float]:
    """Time some updates of a trainer that is then thrown away, so that nothing is learned from them.

    Returns:
        The speed, and the most updates that the config asks for.
    """
    with tempfile.TemporaryDirectory(prefix="mtkit-speed-") as scratch:
        progress = Progress(Path(scratch), Console(quiet=True))
        trainer = build_trainer(config.model_copy(update={"run": scratch}), inputs, progress, world=world)
        trainer.fit_to_memory()
        speed, most = measure_speed(trainer), _most_updates(trainer)
    del trainer
    gc.collect()
    slowest = [
        max(each)
        for each in zip(*world.all_gather([speed.update_seconds, speed.validation_seconds]), strict=True)
    ]
    return Speed(slowest[0], speed.num_timed, slowest[1]), most
