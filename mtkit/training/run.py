"""A whole run: load the inputs, train or resume, average checkpoints, and score the test sets."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from mtkit.checkpoint import CONFIG_FILE
from mtkit.config.loading import AUTO, dump_config, load_stored_config
from mtkit.config.sections import Config
from mtkit.data.tokenizer import make_tokenizers
from mtkit.errors import TrainingError
from mtkit.files import FolderLock, write_text
from mtkit.formatting import format_duration
from mtkit.training.averaging import average_last
from mtkit.training.build import build_trainer, describe
from mtkit.training.card import write_card
from mtkit.training.display import Display
from mtkit.training.distributed import World, init_distributed
from mtkit.training.facts import write_facts
from mtkit.training.freezing import check_freeze_and_lora
from mtkit.training.initial import FindModel, local_model, open_initial_model
from mtkit.training.inputs import configure_process, load_inputs, open_splits
from mtkit.training.ownership import check_ownership, claim_outputs, remove_outputs
from mtkit.training.preset import choose_values, fit_to_limits
from mtkit.training.progress import Progress
from mtkit.training.results import TrainResult, score_tests, write_results
from mtkit.training.resume import find_resumable, keep_choices, start_or_resume
from mtkit.training.signals import Signals
from mtkit.training.trainer import Trainer
from mtkit.training.wandb_log import WandbLog
from mtkit.training.workers import check_workers
from mtkit.translation.model_folder import find_checkpoint


def train(
    config: Config,
    *,
    fresh: bool = False,
    console: Console | None = None,
    find_model: FindModel = local_model,
    stop_at: int | None = None,
    choices: Sequence[str] = (),
) -> TrainResult:
    """Train, or resume from the newest checkpoint of the run folder, and score the test sets with the best weights.

    Args:
        config: config of the run.
        fresh: whether to delete what an earlier run left in the folder.
        console: console to show progress on; by default none.
        find_model: finds the folder of the model that `init` names; by default it is that folder.
        stop_at: update at which to stop; the run can be resumed there and learns what it would have learned without the
            stop. It should be a multiple of `validation.every_steps`, because it is validated there. Nothing is
            averaged and no test set scored.
        choices: what was chosen before this call, and why, as `choose_values` says it.

    Returns:
        Where the run ended, and the scores of the test sets.

    Raises:
        ConfigError: If the config needs something that is not available, or differs from that of the checkpoint.
        DataError: If a corpus is missing, malformed or empty.
        TrainingError: If the loss diverges or memory runs out.
        StorageError: If the disk fails, or another process uses the run folder.
        Interrupted: If SIGINT, SIGTERM or SIGHUP arrives; the run is saved first.
    """
    signals = Signals()
    console = console or Console(quiet=True)
    device = configure_process(config)
    with ExitStack() as stack:
        stack.enter_context(signals.installed())
        world = stack.enter_context(init_distributed(device, compiles=config.training.compile))
        signals.is_distributed = world.is_distributed
        trainer = _open_run(
            config, console, signals, world, stack, fresh=fresh, find_model=find_model, choices=list(choices)
        )
        config, tests, example = trainer.config, trainer.inputs.tests, trainer.inputs.example()
        ended = trainer.train(stop_at)
        reason = ended or f"stopped at step {trainer.state.step}"
        signals.is_distributed = False  # no other process is in an update that this one must finish
        state, progress, report = trainer.state, trainer.progress, trainer.report
        seconds = trainer.stopwatch.total_seconds()
        progress.say(f"training {f'ended: {ended}' if ended else reason}; {format_duration(seconds)} in all")
        del trainer  # frees its memory: the test sets need only the best weights
        gc.collect()  # importing torch._dynamo leaves a reference cycle with the frames that built the optimizer
        # what PyTorch keeps would count as used where the memory of searches is chosen
        torch.cuda.empty_cache()
        result = TrainResult(Path(config.run), reason, state.step, state.best, state.best_step, [])
        if ended is None:
            return result
        # The processes end together: once all those of a machine have ended, torchrun waits there for five minutes and
        # leaves, which may end rank 0 on another machine. If rank 0 fails, its connections close and the others fail.
        if not world.is_main:
            world.barrier()
            return result
        average_last(config, progress.say)
        result = replace(result, tests=score_tests(config, tests, progress, seconds), example=example)
        write_results(result)
        write_card(config, result, {test.name: test.tgts for test in tests})
        report.refresh(last=True)
        # the run is complete, even if another process was lost meanwhile
        with suppress(TrainingError):
            world.barrier()
        return result


def _open_run(
    config: Config,
    console: Console,
    signals: Signals,
    world: World,
    stack: ExitStack,
    *,
    fresh: bool,
    find_model: FindModel,
    choices: list[str],
) -> Trainer:
    """Return a trainer that is ready to start or resume. The main process writes what the others then find on disk.

    Args:
        config: config of the run.
        console: console to show progress on.
        signals: installed signal handlers.
        world: the processes of the run.
        stack: holds the lock on the run folder and the progress until the end of the run.
        fresh: whether to delete what an earlier run left in the folder.
        find_model: finds the folder of the model that `init` names.
        choices: what was chosen before.
    """
    run = Path(config.run)
    with world.main_process_first():
        if world.is_main:
            config, choices = _claim_folder(
                config, find_model, choices, stack, Display(console).say, fresh=fresh
            )
        lines: list[str] = []
        config, checkpoint = find_resumable(config, lines.append)
        if checkpoint is None and not choices:
            config, choices = _choose(config, world, Display(console).say)
        wandb = WandbLog(config) if config.training.wandb and world.is_main else None
        progress = Progress(
            run,
            console,
            config.validation.best,
            tensorboard=config.training.tensorboard,
            wandb=wandb,
            writes_metrics=world.is_main,
        )
        stack.enter_context(progress)

        def say(name: str, fact: str) -> None:
            progress.say(f"{name:<10} {fact}")

        for line in lines:
            progress.say(line)
        for sentence in choices:
            say("choice", sentence)
        config, initial = (config, None) if checkpoint else open_initial_model(config, find_model)
        has_tokenizers = checkpoint is not None or not world.is_main
        inputs = load_inputs(config, run, has_tokenizers=has_tokenizers, say=progress.say, initial=initial)
    if checkpoint is None:
        config, measured = fit_to_limits(config, inputs, world)
        for sentence in measured:
            say("choice", sentence)
        choices += measured
    trainer = build_trainer(config, inputs, progress, signals, world)
    if wandb is not None:
        wandb.update_config(trainer.config)
    describe(trainer, say)
    start_or_resume(trainer, checkpoint, progress.say, initial)
    if world.is_main:  # only now: a run that is refused changes nothing
        write_facts(trainer, None if checkpoint else choices)
    return trainer


def _claim_folder(
    config: Config,
    find_model: FindModel,
    choices: list[str],
    stack: ExitStack,
    say: Callable[[str], None],
    *,
    fresh: bool,
) -> tuple[Config, list[str]]:
    """Lock the run folder and claim its outputs; with `fresh`, delete those of earlier runs.

    Returns:
        The config and the sentences about what preset auto chose, which a fresh run chooses here.
    """
    run = Path(config.run)
    splits = open_splits(config.data)  # a mistake in the new run must not cost the old one
    check_ownership(config, splits, fresh=fresh)
    if fresh:
        config, own = choose_values(config, say=say)
        choices = choices or own
        config, _ = open_initial_model(config, find_model)
        _check_before_removal(config)
    stack.enter_context(FolderLock(run))
    claim_outputs(config, splits)
    if fresh:
        # the config may have been read from the old run
        write_text(run / CONFIG_FILE, dump_config(config))
        remove_outputs(run)
    return config, choices


def _check_before_removal(config: Config) -> None:
    """Check what a run would otherwise refuse only once the outputs of the earlier run are gone.

    Raises:
        ConfigError: If there cannot be several workers, or a name in `freeze` or `lora` matches nothing.
        StorageError: If a tokenizer or teacher that the config names is missing or damaged.
    """
    check_workers(config.training)
    check_freeze_and_lora(config)
    tokenizer, distillation = config.tokenizer, config.training.distillation
    # with `init`, the names of the files are those of the initial model, which holds the tokenizers itself
    if config.init is None and (tokenizer.model is not None or tokenizer.src_model is not None):
        make_tokenizers(tokenizer, ())
    for teacher in distillation.teacher if distillation else ():
        find_checkpoint(Path(teacher))


def _choose(config: Config, world: World, say: Callable[[str], None]) -> tuple[Config, list[str]]:
    """Choose the values of preset auto for a new run: the main process does, the others read what it chose."""
    if config.preset != AUTO:
        return choose_values(config)
    stored = Path(config.run) / CONFIG_FILE
    if not world.is_main:
        return keep_choices(load_stored_config(stored), config), []
    config, choices = choose_values(config, say=say)
    if world.is_distributed:
        write_text(stored, dump_config(config))
    return config, choices
