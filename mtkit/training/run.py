"""A whole run, from a config to a scored translator: prepare, train, translate the test sets, say what came out."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from mtkit.checkpoint import CONFIG_FILE
from mtkit.config.loading import dump_config
from mtkit.config.sections import Config
from mtkit.files import FolderLock, write_text
from mtkit.formatting import format_duration
from mtkit.training.averaging import average_last
from mtkit.training.build import build_trainer, describe
from mtkit.training.distributed import World, init_distributed
from mtkit.training.inputs import configure_process, load_inputs, open_splits
from mtkit.training.ownership import check_ownership, claim_outputs, remove_outputs
from mtkit.training.progress import Progress
from mtkit.training.results import TrainResult, score_tests, write_results
from mtkit.training.resume import find_resumable, start_or_resume
from mtkit.training.signals import Signals
from mtkit.training.trainer import Trainer


def train(config: Config, *, fresh: bool = False, console: Console | None = None) -> TrainResult:
    """Train, or go on from the newest checkpoint of the run folder, and score the test sets with the best weights.

    Args:
        config: the run.
        fresh: delete what an earlier run left in the folder.
        console: where progress is shown; by default nowhere.

    Raises:
        ConfigError: the config asks for what is not there, or it differs from that of the checkpoint.
        DataError: a corpus is missing, malformed or empty.
        TrainingError: not-a-number, out of memory.
        StorageError: the disk failed, or another run uses the folder.
        Interrupted: SIGINT, SIGTERM or SIGHUP, after saving.
    """
    signals = Signals()
    console = console or Console(quiet=True)
    device = configure_process(config)
    with ExitStack() as stack:
        stack.enter_context(signals.installed())
        world = stack.enter_context(init_distributed(device, compiles=config.training.compile))
        signals.is_distributed = world.is_distributed
        trainer = _open_run(config, console, signals, world, stack, fresh=fresh)
        config, inputs = trainer.config, trainer.inputs
        reason = trainer.train()
        signals.is_distributed = False  # from here on each is alone
        state, progress = trainer.state, trainer.progress
        progress.say(f"training ended: {reason}; {format_duration(trainer.stopwatch.total_seconds())} in all")
        del trainer  # the test sets need the memory of the best weights alone
        if not world.is_main:
            return TrainResult(Path(config.run), reason, state.step, state.best, state.best_step, [])
        average_last(config, progress.say)
        tests = score_tests(config, inputs.tests, progress)
        example = inputs.example()
        result = TrainResult(
            Path(config.run), reason, state.step, state.best, state.best_step, tests, example
        )
        write_results(config, result)
        return result


def _open_run(
    config: Config,
    console: Console,
    signals: Signals,
    world: World,
    stack: ExitStack,
    *,
    fresh: bool,
) -> Trainer:
    """A trainer that stands where the run stands. The main process makes what the others then find on the disk.

    Args:
        stack: holds the lock on the run folder and the progress until the end of the run.
    """
    run = Path(config.run)
    with world.main_process_first():
        if world.is_main:
            splits = open_splits(config.data)  # what is wrong with the new run should not cost the old one
            check_ownership(config, splits, fresh=fresh)
            stack.enter_context(FolderLock(run))
            claim_outputs(config, splits)
            if fresh:
                write_text(run / CONFIG_FILE, dump_config(config))  # it may be the only copy of what was read
                remove_outputs(run)
        progress = Progress(run, console, config.training.tensorboard, writes_metrics=world.is_main)
        stack.enter_context(progress)
        config, checkpoint = find_resumable(config, progress.say)
        has_tokenizers = checkpoint is not None or not world.is_main
        inputs = load_inputs(config, run, has_tokenizers=has_tokenizers, say=progress.say)
    world.barrier()  # another machine may have had a corpus of its own to encode
    trainer = build_trainer(config, inputs, progress, signals, world)
    describe(trainer, progress.say)
    start_or_resume(trainer, checkpoint, progress.say)
    return trainer
