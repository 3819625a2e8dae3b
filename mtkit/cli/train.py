"""`mtkit train`, and what comes before and after it: `mtkit check`, `mtkit average`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mtkit.cli import options
from mtkit.cli.terminal import flush_or_drop, make_console, own_command, print_text
from mtkit.torchrun import is_main_process


def train(
    config: options.ConfigPath,
    overrides: options.Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete what an earlier run left in the run folder.")
    ] = False,
) -> None:
    """Train a model, or go on where the run folder stands; then translate and score the test sets."""
    from mtkit.config.loading import load_config

    loaded = load_config(config, overrides or ())
    from mtkit.training.signals import Signals

    console = make_console(sys.stdout)
    console.quiet = not is_main_process()
    with Signals().installed() as early:  # a signal while torch is loaded, too; it would be lost in an import
        with early.deferred():
            from mtkit.training.display import Display
            from mtkit.training.run import train as run_training

        result = run_training(loaded, fresh=fresh, console=console)
    translate = f"{own_command()} translate {shlex.quote(str(result.run))}"
    echoed = (
        f"echo {shlex.quote(result.example)} | {translate}" if result.example else f"{translate} < input.txt"
    )
    Display(console).say(f"\nThe model is in {result.run}. Next:\n    {echoed}")
    flush_or_drop(sys.stdout)  # who does not read how training went does not make it fail


def check(config: options.ConfigPath, overrides: options.Overrides = None) -> None:
    """See what `train` would do, without training: config, data, tokenizer, model, memory, largest batch, time."""
    from mtkit.config.loading import load_config

    loaded = load_config(config, overrides or ())
    from mtkit.training.check import check_run

    check_run(loaded, make_console(sys.stdout))


def average(
    models: Annotated[
        list[str], typer.Argument(metavar="MODELS...", help="A run folder, or checkpoint folders of one run.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="The new folder.")],
    last: Annotated[int | None, typer.Option(min=2, help="The newest checkpoints of the run.")] = None,
    best: Annotated[int | None, typer.Option(min=2, help="Those with the best validation.")] = None,
) -> None:
    """Average the weights of checkpoints of one run into a new model folder, with which `translate` works.

    Checkpoints that are to be averaged must be there: see `training.keep_last`, `training.average_last`.
    """
    from mtkit.training.averaging import average_checkpoints

    sources = average_checkpoints([Path(model) for model in models], Path(output), last=last, best=best)
    names = ", ".join(map(str, sources))
    print_text(f"the average of {len(sources)} checkpoints is in {Path(output)}: {names}\n")
