"""`mtkit check`: everything that `train` does before its first update, and a few updates.

It writes nothing but the cache of encoded corpora, which `train` then finds.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.console import Console

from mtkit.config.sections import Config, TrainingConfig
from mtkit.data.tokenizer import Tokenizers
from mtkit.device import out_of_memory_errors, synchronize
from mtkit.errors import StorageError
from mtkit.files import storage_errors
from mtkit.formatting import format_bytes, format_count
from mtkit.training.build import build_trainer, describe
from mtkit.training.footprint import Footprint
from mtkit.training.forecast import find_problems, forecast, measure_speed, run_size
from mtkit.training.initial import FindModel, local_model, open_initial_model
from mtkit.training.inputs import configure_process, load_inputs, open_splits
from mtkit.training.memory import out_of_memory_hint, try_batch
from mtkit.training.ownership import check_ownership
from mtkit.training.preset import choose_values, fit_to_limits
from mtkit.training.progress import Progress
from mtkit.training.resume import check_inputs, find_resumable, start_from
from mtkit.training.trainer import Trainer
from mtkit.training.updates import Update
from mtkit.training.validation import TextCorpus

_SAMPLE_LINES = 2000


def check_run(config: Config, console: Console, find_model: FindModel = local_model) -> None:
    """Check everything that a run needs, and print what was found.

    Args:
        config: config of the run.
        console: console to print to.
        find_model: finds the folder of the model that `init` names; by default it is that folder.

    Raises:
        ConfigError: If the config needs something that is not available, or differs from that of the checkpoint.
        DataError: If a corpus is missing, malformed or empty.
        TrainingError: If memory runs out or the loss diverges.
        StorageError: If the run folder is damaged or the disk is too small.
    """

    def say(name: str, fact: str) -> None:
        console.print(f"{name:<10} {fact}", markup=False, highlight=False, soft_wrap=True)

    say("config", f"{config.data.src} -> {config.data.tgt}, run folder {config.run}")
    configure_process(config)
    check_ownership(config, open_splits(config.data))
    config, checkpoint = find_resumable(config, lambda line: say("resume", line))
    resumed = checkpoint is not None
    say("resume", "the run folder has a checkpoint of this run" if resumed else "a new run")
    if not resumed:
        config, choices = choose_values(config, say=lambda line: say("data", line))
        for sentence in choices:
            say("choice", sentence)
    config, initial = (config, None) if resumed else open_initial_model(config, find_model)
    if initial is not None:
        say("init", f"starts from the weights and tokenizers of {initial.folder}")
    with tempfile.TemporaryDirectory(prefix="mtkit-check-") as scratch, ExitStack() as stack:
        tokenizer_folder = Path(config.run) if resumed else Path(scratch)
        inputs = load_inputs(
            config,
            tokenizer_folder,
            has_tokenizers=resumed,
            say=lambda line: say("data", line),
            initial=initial,
        )
        if checkpoint is not None:
            check_inputs(checkpoint, inputs, config)
        for test in inputs.tests:
            say("test", f"{test.name}: {format_count(len(test.srcs), 'pair')}")
        if inputs.valid is not None:
            for name, pairs in inputs.valid.sets.items():
                say("valid", f"{name}: {format_count(len(pairs), 'pair')}")
            _check_round_trip(inputs.valid, inputs.tokenizers, say)
        if not resumed:
            config, choices = fit_to_limits(config, inputs)
            for sentence in choices:
                say("choice", sentence)
        progress = Progress(Path(scratch), Console(quiet=True), tensorboard=config.training.tensorboard)
        # in the scratch folder, a divergence finds no checkpoint to roll back to
        trainer = build_trainer(config.model_copy(update={"run": scratch}), inputs, progress)
        stack.callback(trainer.engine.close)
        describe(trainer, say)
        if initial is not None:
            start_from(trainer, initial)
        footprint = Footprint.of(trainer.model, trainer.config.training)
        gradients = (
            f"gradients of {footprint.num_workers} workers" if footprint.num_workers > 1 else "gradients"
        )
        what = f"{gradients}, optimizer and EMA" if footprint.has_ema else f"{gradients} and optimizer"
        say("memory", f"{format_bytes(footprint.memory)} for weights, {what}")
        if inputs.teachers is not None:
            say("memory", f"{format_bytes(inputs.teachers.num_bytes)} for the weights of the teachers")
        _check_largest_batch(trainer, say)
        _check_disk(config, footprint, say)
        step = checkpoint.state.get("step") if checkpoint is not None else None
        _report_forecast(trainer, step if isinstance(step, int) else 0, say)
        say("ok", f"mtkit train would run: {_format_limits(config.training)}")


_Say = Callable[[str, str], None]
"""Prints a fact and its name."""


def _check_round_trip(valid: TextCorpus, tokenizers: Tokenizers, say: _Say) -> None:
    """Report how many validation lines survive encoding and decoding, apart from white space."""
    for name, tokenizer, lines in (
        ("source", tokenizers.src, valid.srcs[:_SAMPLE_LINES]),
        ("target", tokenizers.tgt, valid.tgts[:_SAMPLE_LINES]),
    ):
        rows = tokenizer.encode(lines)
        unknown = sum(int(np.count_nonzero(row == tokenizer.unk)) for row in rows)
        num_tokens = sum(map(len, rows))
        changed = [
            (before, after)
            for before, after in zip(lines, tokenizer.decode(rows), strict=True)
            if " ".join(before.split()) != " ".join(after.split())
        ]
        num_words = sum(len(line.split()) for line in lines)
        say(
            "tokenizer",
            f"{name}: {len(lines) - len(changed):,} of {len(lines):,} lines survive a round trip, "
            f"{unknown:,} unknown tokens, {num_tokens / max(num_words, 1):.2f} tokens per word",
        )
        for before, after in changed[:1]:
            say("", f"for example {before!r} becomes {after!r}")


def _check_largest_batch(trainer: Trainer, say: _Say) -> None:
    """Make an update of the batch with the most positions, which runs out of memory if any does.

    Raises:
        TrainingError: If it does.
    """
    training, corpus = trainer.config.training, trainer.loader.corpus
    if training.batch_tokens == "auto":
        trainer.fit_to_memory()
        say("memory", f"micro-batches per batch, so that it fits: {trainer.state.slices}")
    batch = trainer.loader.epoch_batches(0).largest()
    src, tgt = corpus.src_lengths[batch].max() + 1, corpus.tgt_lengths[batch].max() + 1
    if trainer.loader.variation is not None:  # as long as the pairs may be in any pass
        with out_of_memory_errors(out_of_memory_hint(training)):
            try_batch(trainer.engine, trainer.loader, batch, trainer.state.slices)
    start = time.perf_counter()
    with trainer.model.all_layers():
        trainer.train_step(Update([batch] * training.batches_per_update))
        synchronize(trainer.device)
    seconds = time.perf_counter() - start
    memory = format_bytes(trainer.engine.peak_memory())
    trainer.engine.close()  # the next ones do drop layers
    say("largest", f"batch: {len(batch)} pairs x {src} source and {tgt} target tokens")
    say("update", f"of the largest batch: {seconds:.2f} s, peak memory {memory}")


def _check_disk(config: Config, footprint: Footprint, say: _Say) -> None:
    """Check that the checkpoints will fit on the disk.

    Raises:
        StorageError: If they will not.
    """
    run = Path(config.run).absolute()
    with storage_errors(run):
        existing = next(folder for folder in (run, *run.parents) if folder.is_dir())
        free = shutil.disk_usage(existing).free
    needed, each = footprint.disk(config.training), format_bytes(footprint.checkpoint)
    say("disk", f"{format_bytes(needed)} for checkpoints of {each}, {format_bytes(free)} free in {existing}")
    if needed > free:
        hint = "free some space, choose another run folder, or lower training.keep_last"
        raise StorageError("not enough disk space for the checkpoints", where=str(run), hint=hint)


def _report_forecast(trainer: Trainer, num_done: int, say: _Say) -> None:
    """Report how long the run will take, how many epochs it has, and what the user may regret."""
    speed = measure_speed(trainer)
    size = run_size(trainer, speed)
    for name, fact in forecast(trainer.config, size, speed, num_done):
        say(name, fact)
    for warning in find_problems(trainer.config, size, speed):
        say("warning", warning)


def _format_limits(training: TrainingConfig) -> str:
    """Return the limits at which the run ends."""
    limits = [
        f"{limit:,} {unit}"
        for limit, unit in (
            (training.step_limit, "updates"),
            (training.max_epochs, "epochs"),
            (training.time_limit_minutes, "minutes"),
        )
        if limit is not None
    ]
    return "at most " + " or ".join(limits)
