"""`mtkit distill`: a small, fast student that learns from the translations of a teacher."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from mtkit.cli import completion, options
from mtkit.cli.evaluation_tables import render_table
from mtkit.cli.terminal import check_not_stdin, invocation, print_stderr, print_stdout
from mtkit.cli.translators import choose_parallelism
from mtkit.config.choices import METRICS
from mtkit.errors import ConfigError
from mtkit.formatting import format_count

_SEARCHES = ("beam", *(f"mbr:{metric}" for metric in METRICS))


def distill(
    teachers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEACHER]...",
            help="Run or model folder of the teacher; several with the same vocabulary are an ensemble.",
        ),
    ] = None,
    *,
    student: Annotated[
        str, typer.Option(metavar="CONFIG", help="Config of the student, whose corpora are translated.")
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="Run folder of the student; in 8 bits it goes to RUN-int8, the rest to RUN.stages.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key of the student's config, e.g. `training.max_steps=2000`; repeat for more.",
        ),
    ] = None,
    mono: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="Source text without references, which is translated too; repeat for more."
        ),
    ] = None,
    teacher_search: Annotated[
        str,
        typer.Option(
            help="`beam`, or minimum Bayes risk under a metric: `mbr:chrf`.",
            autocompletion=completion.one_of(*_SEARCHES),
        ),
    ] = "beam",
    beam_size: Annotated[
        int | None, typer.Option(min=1, help="Beam size of the teacher; by default that of its config.")
    ] = None,
    mbr_candidates: Annotated[
        int | None, typer.Option(min=2, help="Candidates for --teacher-search mbr:METRIC.")
    ] = None,
    closest: Annotated[
        int,
        typer.Option(min=1, help="Of this many best translations, take the one closest to the reference."),
    ] = 1,
    translations: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Translations from anywhere, in place of the teacher's: line n is that of line n of the training "
            "corpora and then of --mono.",
        ),
    ] = None,
    backward: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Model of the opposite direction, which scores the translations too."
        ),
    ] = None,
    max_ratio: options.MaxRatio = 3.0,
    drop_worst: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the pairs with the worst scores to leave out.")
    ] = 0.02,
    keep_original: Annotated[
        bool, typer.Option("--keep-original", help="Learn from the original pairs too.")
    ] = False,
    first: Annotated[
        int, typer.Option(min=0, help="Shortlist: most frequent target tokens, which every sentence may use.")
    ] = 100,
    best: Annotated[
        int, typer.Option(min=1, help="Shortlist: most probable target tokens of each source token.")
    ] = 100,
    fresh: options.Fresh = False,
    workers: options.Workers = "auto",
    threads: options.Threads = None,
) -> None:
    """Train a student on the translations of a teacher, for translating on CPUs without a beam (Kim and Rush 2016).

    The teacher translates the training corpora of the student and --mono; what is no translation is left out and
    counted. The student is trained, gets a shortlist, and is written in 8 bits; a table compares score, speed and size.
    The same command goes on where it was stopped.
    """
    check_not_stdin(student, "--student")
    if teacher_search not in _SEARCHES:
        what = f"unknown search {teacher_search!r}"
        raise ConfigError(what, where="--teacher-search", hint=f"one of {', '.join(_SEARCHES)}")
    mbr = teacher_search.removeprefix("mbr:") if teacher_search != "beam" else None
    if mbr is None and mbr_candidates is not None:
        raise ConfigError("--mbr-candidates needs --teacher-search mbr:METRIC", hint="leave it out")
    if mbr is not None and beam_size is not None:
        what = "--beam-size cannot be combined with --teacher-search mbr:METRIC"
        raise ConfigError(what, hint="its beam is as wide as --mbr-candidates says")
    if translations is not None and (beam_size, mbr, closest) != (None, None, 1):
        what = "--translations cannot be combined with a search of the teacher"
        raise ConfigError(what, hint="leave out --beam-size, --teacher-search and --closest")
    from mtkit.config.loading import load_config
    from mtkit.config.yaml_document import format_value
    from mtkit.pipelines.distillation import Distillation

    config = load_config(student, [*(overrides or ()), f"run={format_value(output)}"])
    decoding: dict[str, Any] = {"mbr": mbr, "sample": False, "groups": 1}
    given = {"beam_size": beam_size, "mbr_candidates": mbr_candidates}
    decoding |= {key: value for key, value in given.items() if value is not None}
    plan = Distillation(
        config,
        tuple(teachers or ()),
        decoding,
        mono=tuple(mono or ()),
        translations=translations,
        backward=backward,
        closest=closest,
        max_ratio=max_ratio or None,
        drop_worst=drop_worst,
        keep_original=keep_original,
        first=first,
        best=best,
    )
    result = plan.run(print_stderr, fresh=fresh, parallelism=choose_parallelism(workers, threads))
    if result["systems"]:
        _print_table(result)
    print_stdout(f"\nThe student is in {Path(output)}, and in 8 bits in {plan.small}. Next:\n")
    print_stdout(f"    {invocation()} translate {shlex.quote(str(plan.small))} --beam-size 1 < input.txt\n")


def _print_table(result: dict[str, Any]) -> None:
    """Print the comparison of the systems."""
    lines, threads = format_count(result["lines"], "line"), format_count(result["threads"], "thread")
    print_stdout(f"\n{result['test set']}, {lines}, on the CPU with {threads}\n")
    names = list(result["systems"][0])
    rows = [[row["system"], *(_cell(name, row[name]) for name in names[1:])] for row in result["systems"]]
    print_stdout(render_table(names, rows))
    for signature in result["signatures"]:
        print_stdout(f"{signature}\n")


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if name == "p" else f"{value:.0f}" if name == "sentences/s" else f"{value:.2f}"
