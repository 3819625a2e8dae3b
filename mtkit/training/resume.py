"""Resuming a run: finding its checkpoint, and checking that the config and the data are still the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mtkit.checkpoint import CONFIG_FILE, STATE_FILE, Checkpoint, best_folder, load_newest_checkpoint
from mtkit.config.loading import (
    AUTO,
    CHANGED_DEFAULTS,
    all_values,
    diff_configs,
    dump_config,
    set_keys,
    with_values,
)
from mtkit.config.rules import ineffective_keys
from mtkit.config.sections import Config, DataConfig
from mtkit.config.yaml_document import format_value
from mtkit.data.cache import cache_folder
from mtkit.data.corpus import Corpus
from mtkit.data.encoding import matches_fingerprint
from mtkit.data.sources import open_sources
from mtkit.data.tokenizer import load_tokenizers
from mtkit.errors import ConfigError, StorageError
from mtkit.evaluation.run_files import METRICS_FILE, SAMPLES_FILE
from mtkit.files import storage_errors, write_text
from mtkit.formatting import format_count
from mtkit.training.initial import InitialModel, take_over
from mtkit.training.inputs import Inputs
from mtkit.training.state import TrainState
from mtkit.training.trainer import Trainer
from mtkit.training.validation import validation_fingerprint
from mtkit.training.workers import keep_workers
from mtkit.translation.model_folder import read_config

_HARMLESS = (
    "run", "preset", "data.root", "data.cache", "data.train", "data.valid", "data.test",
    "training.max_steps", "training.max_epochs", "training.time_limit_minutes",
    "training.device", "training.num_threads", "training.workers", "training.log_every_steps",
    "training.save_every_steps", "training.keep_last", "training.average_last", "training.tensorboard",
    "training.wandb", "training.report", "training.parallel", "training.activation_checkpointing",
    "training.on_divergence", "training.distillation.teacher",
    "validation.patience", "validation.num_samples", "validation.every_steps", "validation.metrics",
    "training.compile", "training.pack", "training.deterministic", "decoding",
)  # fmt: skip
"""Keys that may change when a run is resumed, because they do not change what is learned (`max_steps` does with a
schedule that ends there).

Training and validation pairs may come from other files with the same text: see `_check_sources` and
`_check_validation`. Teachers may have moved: see `check_inputs`.
"""

_DRAWN_WITH = {
    f"decoding.{key}"
    for key in ("max_length_ratio", "max_length_extra", "suppress", "min_pieces", "no_repeat_ngram")
}
"""Keys of the section `decoding` that the samples of minimum-risk training depend on."""

_OTHER_DATA = "restore the files, choose another run folder, or start anew with `fresh`"


def find_resumable(config: Config, say: Callable[[str], None]) -> tuple[Config, Checkpoint | None]:
    """Find the newest valid checkpoint of the run folder, and check that it belongs to this config.

    Args:
        config: config of the run.
        say: shows a line.

    Returns:
        The config to resume with, and the checkpoint; None for a new run.

    Raises:
        ConfigError: If the config has changed in a way that changes what is learned.
        DataError: If a source of training pairs that has changed is missing or malformed.
        StorageError: If there are checkpoints, but none is valid.
    """
    faults: list[StorageError] = []

    def skip(fault: StorageError) -> None:
        say(f"skipping a damaged checkpoint: {fault}")
        faults.append(fault)

    found = load_newest_checkpoint(Path(config.run), skip)
    if found is not None:
        folder, checkpoint = found
        hint = "it was written by another version of mtkit: start anew with `fresh`"
        stored = read_config(folder, hint)
        if config.init is not None and config.init == stored.init:
            config = take_over(config, stored)
        if config.preset == AUTO:
            say("preset auto: the values that the run began with")
        config = keep_workers(stored, with_old_defaults(stored, keep_choices(stored, config)))
        check_changes(stored, config)
        if stored.data.train != config.data.train:
            _check_sources(checkpoint, config)
        if checkpoint.state.get("valid") is None:  # 0.1.0 stored the names of the files only
            _check_validation(checkpoint, config, same=stored.data.valid == config.data.valid)
        return config, checkpoint
    if faults:
        raise StorageError(
            "no checkpoint of this run is valid",
            where=config.run,
            hint="start anew with `fresh`, or restore one",
        )
    if best_folder(Path(config.run)).is_dir():
        raise StorageError(
            "a trained model without its checkpoints",
            where=config.run,
            hint="choose another run folder, or start anew with `fresh`",
        )
    return config, None


def keep_choices(stored: Config, config: Config) -> Config:
    """Return the config with what the run chose when it began, for keys that are not set.

    These are all values of preset auto, or of the same named preset, which another version may have changed; and the
    number of updates that fit into the time limit. With more epochs, a preset has as many times more updates. A limit
    of epochs or time stays until another limit is set.

    Args:
        stored: config of the run.
        config: config to resume with.

    Raises:
        ConfigError: If a key that is set does not go together with these.
    """
    values, training = all_values(stored), stored.training
    if config.preset == AUTO or (config.preset is not None and config.preset == stored.preset):
        before, epochs = training.max_epochs or math.inf, config.training.max_epochs or 0
        if epochs > before and training.max_steps is not None and training.time_limit_minutes is None:
            values["training.max_steps"] = math.ceil(training.max_steps * epochs / before)
        limits = {"training.max_epochs", "training.time_limit_minutes"}
        if set_keys(config).keys() & {"training.max_steps", *limits}:
            values = {key: value for key, value in values.items() if key not in limits}
        return with_values(config, stored.preset, values)
    if config.training.ends_with_time and training.max_steps is not None:
        keys = ("training.max_steps", "training.warmup_steps")
        return with_values(config, None, all_values(config) | {key: values[key] for key in keys})
    return config


def with_old_defaults(old: Config, new: Config) -> Config:
    """Return the new config, with the former default of each key that the old config left at it and the new one does
    not set.
    """
    for key, before in CHANGED_DEFAULTS.items():
        name, _, field = key.partition(".")
        section = getattr(new, name)
        if field not in section.model_fields_set and getattr(getattr(old, name), field) == before:
            new = new.model_copy(update={name: section.model_copy(update={field: before})})
    return new


def check_changes(old: Config, new: Config) -> None:
    """Check that the config has not changed in a way that changes what is learned.

    Raises:
        ConfigError: If it has; the message names the keys.
    """
    ineffective = ineffective_keys(old).keys() & ineffective_keys(new).keys()
    drawn_with = _DRAWN_WITH if old.training.minimum_risk is not None else set()
    changes = [
        line
        for key, line in diff_configs(old, new).items()
        if key not in ineffective and (not is_harmless(key) or key in drawn_with)
    ]
    mixes = [config.data.train_weights for config in (old, new)]
    if mixes[0] != mixes[1] and {*mixes[0], *mixes[1]} != {1.0}:
        weights = " -> ".join(format_value(list(weights)) for weights in mixes)
        changes.append(f"weights in data.train: {weights}")
    if changes:
        hint = "undo it, choose another run folder, or start anew with `fresh`"
        if old.preset is not None and new.preset is None:
            hint = f"the run began with preset {old.preset}: write `preset: auto` into the config to keep it"
        raise ConfigError(
            f"the config has changed since the last checkpoint: {'; '.join(changes)}",
            where=new.run,
            hint=hint,
        )


def _check_sources(checkpoint: Checkpoint, config: Config) -> None:
    """Check that `data.train`, which has changed, still names the same text.

    Raises:
        ConfigError: If it does not.
        DataError: If a source is missing or malformed.
    """
    sources = open_sources(config.data.train, config.data, "train")
    tokenizers = load_tokenizers(Path(config.run))
    if not matches_fingerprint(str(checkpoint.state.get("corpus")), sources, tokenizers, config.data):
        raise ConfigError(
            "names different text from what the last checkpoint was trained on",
            where="data.train",
            hint=_OTHER_DATA,
        )


def check_inputs(checkpoint: Checkpoint, inputs: Inputs, config: Config) -> None:
    """Check that the tokenizers, the teachers, the training and the validation pairs are those of the checkpoint.

    Raises:
        ConfigError: If the teachers, or the training or validation pairs have changed.
        StorageError: If the tokenizers have changed, or the checkpoint does not say which data it was trained on.
    """
    state = checkpoint.state
    if "corpus" not in state:
        hint = "start anew with `fresh`"
        raise StorageError("the checkpoint's state names no corpus", where=STATE_FILE, hint=hint)
    if state.get("tokenizers", inputs.tokenizers.fingerprint) != inputs.tokenizers.fingerprint:
        what = "the tokenizer is not the one that this run started with"
        raise StorageError(what, where=config.run, hint="restore it, or start anew with `fresh`")
    if state.get("teachers", "") != inputs.teachers_fingerprint:
        what = "the weights of the teachers have changed since the last checkpoint"
        hint = "name those it was trained with, choose another run folder, or start anew with `fresh`"
        raise ConfigError(what, where="training.distillation.teacher", hint=hint)
    _check_corpus(str(state["corpus"]), inputs, config.data)
    same = state.get("valid") in (None, validation_fingerprint(inputs.valid))
    _check_validation(checkpoint, config, same=same)


def _check_corpus(before: str, inputs: Inputs, data: DataConfig) -> None:
    """Check that the training pairs have the fingerprint of the checkpoint.

    Raises:
        ConfigError: If they do not; the message names the first pair that differs, if the old corpus is still cached.
    """
    corpus = inputs.corpus
    if before == corpus.fingerprint or matches_fingerprint(before, corpus.sources, inputs.tokenizers, data):
        return
    changes = ""
    with suppress(StorageError):  # it may no longer be in the cache
        old = Corpus(cache_folder(data) / "corpora" / before[:32], before, ())
        first = corpus.first_difference(old)
        if first is None:  # the same pairs, read from other files
            return
        changes = f": {format_count(len(old), 'pair')} before, {len(corpus):,} now"
        if first < len(corpus):
            changes += f"; the first that differs is {corpus.location(first)}"
    what = f"the training data has changed since the last checkpoint{changes}"
    raise ConfigError(what, where="data.train", hint=_OTHER_DATA)


def _check_validation(checkpoint: Checkpoint, config: Config, *, same: bool) -> None:
    """Check that scores are comparable with the best so far. Without best/, the best checkpoint is selected anew.

    Args:
        checkpoint: checkpoint to resume from.
        config: config of the run.
        same: whether the validation pairs are the same.

    Raises:
        ConfigError: If the validation pairs have changed and there is a best checkpoint.
    """
    best = best_folder(Path(config.run))
    if same or checkpoint.state.get("best") is None or not best.is_dir():
        return
    raise ConfigError(
        "the validation pairs have changed since the last checkpoint: scores are not comparable with the best so far",
        where="data.valid",
        hint=f"restore them, or move {best} away to select the best checkpoint anew",
    )


def is_harmless(key: str) -> bool:
    """Return whether a key may change when a run is resumed."""
    return any(key == harmless or key.startswith(f"{harmless}.") for harmless in _HARMLESS)


def start_or_resume(
    trainer: Trainer,
    checkpoint: Checkpoint | None,
    say: Callable[[str], None],
    initial: InitialModel | None = None,
) -> None:
    """Restore the trainer from the checkpoint, or save step 0, which tests the disk before any time is spent.

    Args:
        trainer: trainer at step 0.
        checkpoint: checkpoint to resume from, or None for a new run.
        say: shows a line.
        initial: model that a new run starts from, or None for random weights.

    Raises:
        ConfigError: If the data has changed since the checkpoint.
        StorageError: If the checkpoint does not match, or the disk fails.
    """
    if checkpoint is not None:
        check_inputs(checkpoint, trainer.inputs, trainer.config)
    if trainer.world.is_main:
        write_text(trainer.run_folder / CONFIG_FILE, dump_config(trainer.config))
    steps = trainer.world.all_gather(-1 if checkpoint is None else checkpoint.state.get("step", 0))
    if len(set(steps)) > 1:
        what = f"the processes see checkpoints of different steps: {sorted(set(steps))}"
        raise StorageError(what, where=trainer.config.run, hint="put the run folder on a shared disk")
    if checkpoint is None:
        if initial is not None:
            start_from(trainer, initial)
            say(f"starting from {initial.folder}")
            if trainer.config.training.lora is not None:
                trainer.state.base = trainer.checkpointer.save_base(trainer.state)
        trainer.save()
    else:
        _restore(trainer, checkpoint)
        if trainer.world.is_main:
            for name in (METRICS_FILE, SAMPLES_FILE):
                _truncate_log(trainer.run_folder / name, TrainState.from_dict(checkpoint.state))
        say(f"resuming from step {trainer.state.step}")
        if trainer.state.best != checkpoint.state.get("best"):
            say("best/ is missing: the best checkpoint is selected anew")
    trainer.signals.training_started = True


def start_from(trainer: Trainer, initial: InitialModel) -> None:
    """Give a trainer at step 0 the weights of another model.

    Raises:
        StorageError: If they are damaged or do not fit.
    """
    trainer.checkpointer.start_from(initial.load_weights(), str(initial.folder))


def _restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Restore the trainer from the checkpoint.

    Raises:
        StorageError: If the checkpoint is of another model or of an incompatible version.
    """
    where = str(trainer.run_folder)
    try:
        trainer.restore(checkpoint, where)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = "the checkpoint's state is not compatible with this version of mtkit"
        raise StorageError(what, where=where, hint="start anew with `fresh`") from error


def _truncate_log(path: Path, state: TrainState) -> None:
    """Remove what was logged after the checkpoint: it will be logged again."""
    if not path.exists():
        return
    with storage_errors(path):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    kept = [line for line in lines if line and _is_logged_by(line, state)]
    write_text(path, "".join(line + "\n" for line in kept))


def _is_logged_by(line: str, state: TrainState) -> bool:
    """Return whether a line of a log is complete, and about an update or validation that the state includes."""
    try:
        numbers = json.loads(line)
        return int(numbers["step"]) <= (state.validated_step if numbers["kind"] == "valid" else state.step)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
