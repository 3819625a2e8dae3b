"""`mtkit check`: everything `train` would do before its first update, its most expensive one and a few others.

It leaves no trace: nothing is written but the cache of encoded corpora, which `train` then finds.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console

from mtkit.config.sections import Config
from mtkit.data.tokenizer import Tokenizers
from mtkit.device import peak_memory
from mtkit.errors import StorageError
from mtkit.files import storage_errors
from mtkit.training.build import build_trainer, describe
from mtkit.training.forecast import extent_of, in_words, measure_pace, objections
from mtkit.training.inputs import configure_process, load_inputs, open_splits
from mtkit.training.ownership import check_ownership
from mtkit.training.progress import Progress
from mtkit.training.resume import find_resumable, refuse_other_inputs
from mtkit.training.trainer import Trainer
from mtkit.training.updates import Update
from mtkit.training.validation import TextCorpus

_SAMPLE_LINES = 2000
_ADAM_TENSORS = 4  # weights, gradients and two moments, all float32


def check_run(config: Config, console: Console) -> None:
    """Go through all that a run needs and say what was found.

    Raises:
        ConfigError, DataError, TrainingError, StorageError: what `train` would stop at.
    """
    say = _Reporter(console)
    say("config", f"{config.data.src} -> {config.data.tgt}, run folder {config.run}")
    configure_process(config)
    check_ownership(config, open_splits(config.data))
    config, checkpoint = find_resumable(config, lambda line: say("resume", line))
    resumed = checkpoint is not None
    say("resume", "the run folder has a checkpoint of this run" if resumed else "a new run")
    with tempfile.TemporaryDirectory(prefix="mtkit-check-") as scratch:
        tokenizer_folder = Path(config.run) if resumed else Path(scratch)
        inputs = load_inputs(
            config, tokenizer_folder, has_tokenizers=resumed, say=lambda line: say("data", line)
        )
        if checkpoint is not None:
            refuse_other_inputs(checkpoint, inputs, config)
        for test in inputs.tests:
            say("test", f"{test.name}: {len(test.srcs):,} pairs")
        if inputs.valid is not None:
            for name, pairs in inputs.valid.sets.items():
                say("valid", f"{name}: {len(pairs):,} pairs")
            _check_round_trip(inputs.valid, inputs.tokenizers, say)
        progress = Progress(Path(scratch), Console(quiet=True), config.training.tensorboard)
        own = config.model_copy(update={"run": scratch})  # where an update that diverges finds no checkpoint
        trainer = build_trainer(own, inputs, progress)
        describe(trainer, lambda line: say(*line.split(maxsplit=1)))
        held = trainer.model.num_parameters() * 4 * _ADAM_TENSORS
        say("memory", f"{megabytes(held)} for weights and optimizer")
        _check_largest_batch(trainer, say)
        _check_disk(config, trainer, say)
        done = checkpoint.state.get("step") if checkpoint is not None else None
        _foretell(trainer, done if isinstance(done, int) else 0, say)
        say("ok", f"train would run: mtkit train does what was checked here; {limits(trainer)}")


class _Reporter:
    """Prints what was found, a name and a fact a line."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, name: str, fact: str) -> None:
        self.console.print(f"{name:<10} {fact}", markup=False, highlight=False, soft_wrap=True)


Say = Callable[[str, str], None]


def _check_round_trip(valid: TextCorpus, tokenizers: Tokenizers, say: Say) -> None:
    """How many validation lines the tokenizers give back as they were, white space and normalization aside."""
    for name, tokenizer, lines in (
        ("source", tokenizers.src, valid.srcs[:_SAMPLE_LINES]),
        ("target", tokenizers.tgt, valid.tgts[:_SAMPLE_LINES]),
    ):
        rows = tokenizer.encode(lines)
        unknown = sum(int(np.count_nonzero(row == tokenizer.unk)) for row in rows)
        pieces = sum(map(len, rows))
        changed = [
            (before, after)
            for before, after in zip(lines, tokenizer.decode(rows), strict=True)
            if " ".join(before.split()) != " ".join(after.split())
        ]
        words = sum(len(line.split()) for line in lines)
        say(
            "tokenizer",
            f"{name}: {len(lines) - len(changed):,} of {len(lines):,} lines come back as they were, "
            f"{unknown:,} unknown pieces, {pieces / max(words, 1):.2f} pieces a word",
        )
        for before, after in changed[:1]:
            say("", f"for example {before!r} comes back as {after!r}")


def _check_largest_batch(trainer: Trainer, say: Say) -> None:
    """An update of the batch with the most positions: it is the one that runs out of memory if any does."""
    training, corpus = trainer.config.training, trainer.inputs.corpus
    if training.batch_tokens == "auto":
        trainer.fit_to_memory()
        say("slices", f"a batch runs in {trainer.state.slices}, so that it fits")
    batch = trainer.loader.epoch_batches(0).largest()
    src, tgt = corpus.src_lengths[batch].max() + 1, corpus.tgt_lengths[batch].max() + 1
    start = time.perf_counter()
    trainer.train_step(Update([batch] * training.batches_per_update))
    seconds = time.perf_counter() - start
    memory = megabytes(peak_memory(trainer.device))
    say("largest", f"batch: {len(batch)} pairs x {src} source and {tgt} target pieces")
    say("update", f"with it took {seconds:.2f} s; peak memory {memory}")


def _check_disk(config: Config, trainer: Trainer, say: Say) -> None:
    """Whether the checkpoints will fit. Raises: StorageError: they will not."""
    run = Path(config.run).absolute()
    with storage_errors(run):
        there = next(folder for folder in (run, *run.parents) if folder.is_dir())
        free = shutil.disk_usage(there).free
    weights = trainer.model.num_parameters() * 4
    averaged = config.training.ema_decay is not None
    checkpoint = weights * (_ADAM_TENSORS if averaged else _ADAM_TENSORS - 1)
    needed = checkpoint * (config.training.num_checkpoints_kept + 1) + 2 * weights
    say("disk", f"{megabytes(needed)} for checkpoints, {megabytes(free)} free in {there}")
    if needed > free:
        hint = "free some space, choose another run folder, or lower training.keep_last"
        raise StorageError("no room for the checkpoints", where=str(run), hint=hint)


def _foretell(trainer: Trainer, num_done: int, say: Say) -> None:
    """How long it will take, how many epochs that is, and what speaks against it."""
    pace = measure_pace(trainer)
    extent = extent_of(trainer, pace)
    for name, fact in in_words(trainer.config, extent, pace, num_done):
        say(name, fact)
    for objection in objections(trainer.config, extent, pace):
        say("warning", objection)


def limits(trainer: Trainer) -> str:
    """How the run will end."""
    training = trainer.config.training
    named = [
        f"{limit:,} {unit}"
        for limit, unit in (
            (training.step_limit, "updates"),
            (training.max_epochs, "epochs"),
            (training.time_limit_minutes, "minutes"),
        )
        if limit is not None
    ]
    return "at most " + " or ".join(named)


def megabytes(count: int) -> str:
    """Bytes as people say them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
