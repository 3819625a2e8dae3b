"""`mtkit diversify`: a better system from the same pairs, which models of both directions translate anew."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mtkit.cli import options
from mtkit.cli.terminal import check_not_stdin, invocation, print_stderr, print_stdout
from mtkit.cli.translators import choose_parallelism


def diversify(
    config: options.ConfigFile,
    overrides: options.Overrides = None,
    *,
    output: Annotated[
        str,
        typer.Option("--output", "-o", help="Run folder of the final model; the rest goes to RUN.stages."),
    ],
    models: Annotated[int, typer.Option(min=1, help="Models of each direction.")] = 3,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds; from the second on, models learn from the union of the last.")
    ] = 1,
    helpers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Override a key for the models that translate, e.g. `training.max_steps=2000`; repeat for more.",
        ),
    ] = None,
    final: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Override a key for the final model, e.g. `training.max_steps=9000`; repeat for more.",
        ),
    ] = None,
    max_ratio: options.MaxRatio = 3.0,
    fresh: options.Fresh = False,
    workers: options.Workers = "auto",
    threads: options.Threads = None,
) -> None:
    """Train on the corpus and on its translations by several models of both directions (Nguyen et al. 2020).

    K forward models translate the sources, K backward models the targets; the final model learns from the corpus and
    all that is new in these translations. The same command goes on where it was stopped.
    """
    check_not_stdin(config, "CONFIG")
    from mtkit.config.loading import load_config
    from mtkit.config.yaml_document import format_value
    from mtkit.pipelines.diversification import Diversification

    run = f"run={format_value(output)}"
    final_config, helper_config = (
        load_config(config, [*(overrides or ()), *(changes or ()), run]) for changes in (final, helpers)
    )
    plan = Diversification(final_config, helper_config, models, rounds, max_ratio or None)
    result = plan.run(print_stderr, fresh=fresh, parallelism=choose_parallelism(workers, threads))
    best = "" if result["best"] is None else f", best {final_config.validation.best} {result['best']:.2f}"
    print_stdout(f"\nThe model is in {Path(output)}{best}. Next:\n")
    print_stdout(f"    {invocation()} translate {shlex.quote(output)} < input.txt\n")
