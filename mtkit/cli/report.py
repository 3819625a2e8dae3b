"""`mtkit report`: a page about one or several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtkit.cli.terminal import check_not_overwriting, print_stderr


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run folders; the others are compared with the first."),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The page; by default report.html in the run folder."
        ),
    ] = None,
    overlap: Annotated[
        bool,
        typer.Option(
            "--overlap",
            help="Read the training data of the first run too, for its overlap with the test sets and the words by "
            "their frequency in it. Takes about a minute for three million pairs.",
        ),
    ] = False,
) -> None:
    """Write a page about a run, or one that compares runs: curves, scores, analysis, samples, data and config.

    The page is one HTML file that any browser opens without a network. Training writes it too, after validations.
    """
    from mtkit.errors import ConfigError
    from mtkit.evaluation.run_files import REPORT_FILE, REPORT_MARK
    from mtkit.training.report import write_report

    if output is None and len(runs) > 1:
        raise ConfigError("several runs need the file of the page", where="--output", hint="-o compare.html")
    path = Path(runs[0], REPORT_FILE) if output is None else Path(output)
    # An earlier page may be overwritten, the other files of a run may not.
    if path.is_file() and REPORT_MARK not in path.read_text(encoding="utf-8", errors="replace"):
        check_not_overwriting(output, [str(file) for run in runs for file in Path(run).rglob("*")])
    write_report([Path(run) for run in runs], path, reads_training=overlap, say=print_stderr)
    print_stderr(f"the report is in {path}")
