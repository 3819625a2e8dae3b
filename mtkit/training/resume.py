"""Going on with a run: which checkpoint, whether the config and the data are still those it was made with."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mtkit.checkpoint import CONFIG_FILE, STATE_FILE, Checkpoint, best_folder, load_newest_checkpoint
from mtkit.config.loading import diff_configs, dump_config
from mtkit.config.rules import ineffective_keys
from mtkit.config.sections import Config, DataConfig
from mtkit.data.cache import cache_folder
from mtkit.data.corpus import Corpus
from mtkit.data.encoding import matches_fingerprint
from mtkit.data.sources import open_sources
from mtkit.data.tokenizer import load_tokenizers
from mtkit.errors import ConfigError, StorageError
from mtkit.files import storage_errors, write_text
from mtkit.training.inputs import Inputs
from mtkit.training.progress import METRICS_FILE
from mtkit.training.state import TrainState
from mtkit.training.trainer import Trainer
from mtkit.training.validation import validation_fingerprint
from mtkit.translation.model_folder import read_config

_HARMLESS = (
    "run", "data.root", "data.cache", "data.train", "data.valid", "data.test",
    "training.max_steps", "training.max_epochs", "training.time_limit_minutes",
    "training.device", "training.num_threads", "training.log_every_steps",
    "training.save_every_steps", "training.keep_last", "training.average_last", "training.tensorboard",
    "training.parallel", "training.activation_checkpointing", "training.on_divergence", "validation.patience",
    "validation.num_samples", "validation.every_steps", "validation.metrics", "training.compile", "decoding",
)  # fmt: skip
"""Keys that may change when a run goes on: what is learned stays the same (but a longer cosine is another curve).

Training and validation pairs may come from other files with the same text: see `_refuse_other_sources` and
`_refuse_other_validation`.
"""

_OTHER_DATA = "restore the files, choose another run folder, or start anew with `fresh`"

CHANGED_DEFAULTS: dict[str, object] = {
    "tokenizer.character_coverage": 1.0,
    "training.learning_rate": 0.001,
    "validation.best": "bleu",
}
"""Defaults of mtkit 0.1.0 that are others now: a run that began with one goes on with it, unless another is named."""


def find_resumable(config: Config, say: Callable[[str], None]) -> tuple[Config, Checkpoint | None]:
    """The config to go on with, and the newest valid checkpoint of the run folder, if it is of the same run.

    Raises:
        ConfigError: the config has changed in a way that changes what is learned.
        StorageError: there are checkpoints, but none is valid.
    """
    faults: list[StorageError] = []

    def pass_over(fault: StorageError) -> None:
        say(f"passing over a damaged checkpoint: {fault}")
        faults.append(fault)

    found = load_newest_checkpoint(Path(config.run), pass_over)
    if found is not None:
        folder, checkpoint = found
        hint = "it was written by another version of mtkit: start anew with `fresh`"
        stored = read_config(folder, hint)
        config = with_old_defaults(stored, config)
        refuse_changes(stored, config)
        if stored.data.train != config.data.train:
            _refuse_other_sources(checkpoint, config)
        if checkpoint.state.get("valid") is None:  # a run of 0.1.0 knows but the names of the files
            _refuse_other_validation(checkpoint, config, same=stored.data.valid == config.data.valid)
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


def with_old_defaults(old: Config, new: Config) -> Config:
    """The new config, with defaults of before where the old one has them and the user names nothing."""
    for key, before in CHANGED_DEFAULTS.items():
        name, _, field = key.partition(".")
        section = getattr(new, name)
        if field not in section.model_fields_set and getattr(getattr(old, name), field) == before:
            new = new.model_copy(update={name: section.model_copy(update={field: before})})
    return new


def refuse_changes(old: Config, new: Config) -> None:
    """Compare with the checkpoint's config. Raises: ConfigError: with the keys that changed."""
    ineffective = ineffective_keys(old).keys() & ineffective_keys(new).keys()
    changes = [
        line
        for line in diff_configs(old, new)
        if not is_harmless(line) and line.partition(":")[0] not in ineffective
    ]
    if changes:
        raise ConfigError(
            f"the config has changed since the last checkpoint: {'; '.join(changes)}",
            where=new.run,
            hint="undo it, choose another run folder, or start anew with `fresh`",
        )


def _refuse_other_sources(checkpoint: Checkpoint, config: Config) -> None:
    """Check that `data.train`, which was changed, names the same text. Raises: ConfigError: it does not; DataError."""
    sources = open_sources(config.data.train, config.data, "train")
    tokenizers = load_tokenizers(Path(config.run))
    if not matches_fingerprint(str(checkpoint.state.get("corpus")), sources, tokenizers, config.data):
        raise ConfigError(
            "names other text than the last checkpoint was trained on", where="data.train", hint=_OTHER_DATA
        )


def refuse_other_inputs(checkpoint: Checkpoint, inputs: Inputs, config: Config) -> None:
    """Compare what was read with what the checkpoint knows. Raises: ConfigError: it is other; StorageError."""
    state = checkpoint.state
    if "corpus" not in state:
        hint = "start anew with `fresh`"
        raise StorageError("the checkpoint's state names no corpus", where=STATE_FILE, hint=hint)
    if state.get("tokenizers", inputs.tokenizers.fingerprint) != inputs.tokenizers.fingerprint:
        what = "the tokenizer is not the one that this run began with"
        raise StorageError(what, where=config.run, hint="restore it, or start anew with `fresh`")
    _refuse_other_corpus(str(state["corpus"]), inputs, config.data)
    same = state.get("valid") in (None, validation_fingerprint(inputs.valid))
    _refuse_other_validation(checkpoint, config, same=same)


def _refuse_other_corpus(before: str, inputs: Inputs, data: DataConfig) -> None:
    """Compare training pairs with those of a fingerprint. Raises: ConfigError: they are others."""
    corpus = inputs.corpus
    if before == corpus.fingerprint or matches_fingerprint(before, corpus.sources, inputs.tokenizers, data):
        return
    changes = ""
    with suppress(StorageError):  # the cache may no longer hold it
        old = Corpus(cache_folder(data) / "corpora" / before[:32], before, ())
        first = corpus.first_difference(old)
        if first is None:  # the same pairs, read from other files
            return
        changes = f": {len(old):,} pairs then, {len(corpus):,} now"
        if first < len(corpus):
            changes += f"; the first that differs is {corpus.location(first)}"
    what = f"the training data has changed since the last checkpoint{changes}"
    raise ConfigError(what, where="data.train", hint=_OTHER_DATA)


def _refuse_other_validation(checkpoint: Checkpoint, config: Config, *, same: bool) -> None:
    """Where validation pairs are not the same, refuse to compare their scores with the best so far.

    Without `best/` there is nothing to lose: then the best is chosen anew.

    Raises:
        ConfigError: there is a best so far.
    """
    best = best_folder(Path(config.run))
    if same or checkpoint.state.get("best") is None or not best.is_dir():
        return
    raise ConfigError(
        "the validation pairs have changed since the last checkpoint: scores would not compare with the best so far",
        where="data.valid",
        hint=f"restore them, or move {best} away: then the best is chosen anew",
    )


def is_harmless(change: str) -> bool:
    """Whether a line of `diff_configs` is about a key that may change."""
    key = change.partition(":")[0]
    return any(key == harmless or key.startswith(f"{harmless}.") for harmless in _HARMLESS)


def start_or_resume(trainer: Trainer, checkpoint: Checkpoint | None, say: Callable[[str], None]) -> None:
    """Put the checkpoint's state into the trainer, or save step 0, which proves the disk before time is spent."""
    if checkpoint is not None:
        refuse_other_inputs(checkpoint, trainer.inputs, trainer.config)
    if trainer.world.is_main:
        write_text(trainer.run_folder / CONFIG_FILE, dump_config(trainer.config))
    steps = trainer.world.all_gather(-1 if checkpoint is None else checkpoint.state.get("step", 0))
    if len(set(steps)) > 1:
        what = f"the processes see different checkpoints, of the steps {sorted(set(steps))}"
        raise StorageError(what, where=trainer.config.run, hint="all need the same folder: use a shared disk")
    if checkpoint is None:
        trainer.save()
    else:
        _restore(trainer, checkpoint)
        if trainer.world.is_main:
            _truncate_metrics(trainer.run_folder / METRICS_FILE, TrainState.from_dict(checkpoint.state))
        say(f"going on from step {trainer.state.step}")
        if trainer.state.best != checkpoint.state.get("best"):
            say("there is no best/: the best is chosen anew")
    trainer.signals.training_started = True


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


def _truncate_metrics(path: Path, state: TrainState) -> None:
    """Forget what was logged after the checkpoint that the run goes on from: it will be logged again."""
    if not path.exists():
        return
    with storage_errors(path):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    kept = [line for line in lines if line and _is_logged_by(line, state)]
    write_text(path, "".join(line + "\n" for line in kept))


def _is_logged_by(line: str, state: TrainState) -> bool:
    """Whether a line of metrics.jsonl is whole, and of an update or a validation that the state knows."""
    try:
        numbers = json.loads(line)
        return int(numbers["step"]) <= (state.validated_step if numbers["kind"] == "valid" else state.step)
    except (ValueError, KeyError, TypeError):
        return False
