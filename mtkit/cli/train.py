"""`mtkit train`, `mtkit check`, `mtkit average` and `mtkit merge`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtkit.cli import options
from mtkit.cli.terminal import flush_or_discard, invocation, make_console, print_stdout
from mtkit.torchrun import is_main_process

if TYPE_CHECKING:
    from mtkit.config.sections import Config


def train(
    config: options.ConfigPath,
    overrides: options.Overrides = None,
    fresh: options.Fresh = False,
) -> None:
    """Train a model, or resume its training; then translate and score the test sets."""
    from mtkit.config.loading import load_config

    train_and_report(load_config(config, overrides or ()), fresh=fresh)


def train_and_report(config: Config, *, fresh: bool) -> None:
    """Train a model, or resume its training, and say how to translate with it."""
    from mtkit.training.signals import Signals

    console = make_console(sys.stdout)
    console.quiet = not is_main_process()
    with Signals().installed() as early:  # signals that arrive during the import of torch would be lost
        with early.deferred():
            from mtkit.evaluation.run_files import REPORT_FILE
            from mtkit.interop.initial import find_model
            from mtkit.training.display import Display
            from mtkit.training.run import train as run_training

        result = run_training(config, fresh=fresh, console=console, find_model=find_model)
    translate = f"{invocation()} translate {shlex.quote(str(result.run))}"
    echoed = (
        f"echo {shlex.quote(result.example)} | {translate}" if result.example else f"{translate} < input.txt"
    )
    page = result.run / REPORT_FILE
    about = f", a page about the run in {page}" if page.is_file() else ""
    Display(console).say(f"\nThe model is in {result.run}{about}. Next:\n    {echoed}")
    flush_or_discard(sys.stdout)  # training has succeeded, whether or not its output is read


def check(config: options.ConfigPath, overrides: options.Overrides = None) -> None:
    """Make a dry run: check config, data, tokenizer, model, memory and the largest batch; estimate the time."""
    from mtkit.config.loading import load_config

    loaded = load_config(config, overrides or ())
    from mtkit.interop.initial import find_model
    from mtkit.training.check import check_run

    check_run(loaded, make_console(sys.stdout), find_model)


def merge(
    model: Annotated[str, typer.Argument(metavar="RUN", help="Run folder or checkpoint with LoRA adapters.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Model folder to write.")],
) -> None:
    """Merge the LoRA adapters of a run into its weights: a model folder, to export or to fine-tune further.

    Translating does not need it: adapters are merged when a model is loaded.
    """
    from mtkit.training.merging import merge as merge_model

    merged = merge_model(Path(model), Path(output))
    print_stdout(f"merged {merged} into {Path(output)}\n")


def average(
    models: Annotated[
        list[str], typer.Argument(metavar="MODELS...", help="A run folder, or checkpoint folders of one run.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Model folder to write.")],
    last: Annotated[int | None, typer.Option(min=2, help="Number of newest checkpoints to average.")] = None,
    best: Annotated[
        int | None,
        typer.Option(min=2, help="Number of best checkpoints to average, by validation score."),
    ] = None,
) -> None:
    """Average the weights of several checkpoints of one run into a new model folder.

    The run must still have these checkpoints: see `training.keep_last` and `training.average_last`.
    """
    from mtkit.training.averaging import average_checkpoints

    sources = average_checkpoints([Path(model) for model in models], Path(output), last=last, best=best)
    names = ", ".join(map(str, sources))
    print_stdout(f"averaged {len(sources)} checkpoints into {Path(output)}: {names}\n")
