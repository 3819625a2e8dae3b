"""`mtkit init`: write a config for given files."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from mtkit.cli.terminal import invocation, open_new_file, print_stderr, print_stdout
from mtkit.errors import ConfigError
from mtkit.formatting import format_count

_MISSING = {
    "valid": "no validation pairs found next to the training files; without them no checkpoint is known to be the best "
    "(hold out some with --hold-out 500, or name some with --valid)",
    "test": "no test pairs found; no score will be reported (name some with --test)",
}


def init(
    train: Annotated[
        list[str],
        typer.Argument(
            metavar="TRAIN...",
            help="Training pairs: two parallel files, e.g. train.en train.de, or .tsv, .csv, .jsonl, .parquet, .xlsx, "
            ".tmx, .xlf.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="YAML file to write; default SRC-TGT.yaml; `-` is stdout."),
    ] = None,
    valid: Annotated[
        list[str] | None,
        typer.Option(
            help="Validation pairs; repeat for two parallel files. Default: valid… or dev… next to TRAIN."
        ),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(help="Test pairs; repeat for two parallel files. Default: test… next to TRAIN."),
    ] = None,
    src: Annotated[
        str | None, typer.Option(help="Source language, if the file names do not show it.")
    ] = None,
    tgt: Annotated[
        str | None, typer.Option(help="Target language, if the file names do not show it.")
    ] = None,
    columns: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="SRC TGT",
            help="Columns of source and target in tables: titles, language tags (.tmx, .xlf), or numbers (.tsv without "
            "a header). Default: they are recognized.",
        ),
    ] = None,
    run: Annotated[str | None, typer.Option(help="Run folder; default runs/SRC-TGT.")] = None,
    hold_out: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Hold out N of the training pairs for validation, and N for testing, where there are no files for "
            "that. The pairs are written to train.tsv, valid.tsv and test.tsv in the folder NAME.data beside the "
            "config NAME.yaml; no source sentence is in two of them.",
        ),
    ] = None,
) -> None:
    """Write a config for your files: it recognizes languages and columns, preset auto chooses sizes and methods."""
    from mtkit.training.starter import make_starter_config

    if output == "-" and hold_out is not None:
        raise ConfigError("--hold-out writes files beside the config", where="-o -", hint="name a file")
    made = make_starter_config(
        train, valid or (), test or (), (src, tgt), columns, run, output, hold_out, print_stderr
    )
    remarks = [*made.notes, *filter(None, [made.warning]), *(_MISSING[split] for split in made.missing)]
    if output == "-":
        print_stdout(made.text)
        for remark in remarks:
            print_stderr(remark)
        return
    with open_new_file(made.path) as file:
        file.write(made.text)
    for name, number in made.divided.items():
        print_stdout(f"{name}: {format_count(number, 'pair')}\n")
    print_stdout(f"{made.path}: {' -> '.join(made.languages)}, {made.num_pairs:,} training pairs\n")
    for remark in remarks:
        print_stdout(f"{remark}\n")
    for command in ("check", "train"):
        print_stdout(f"    {invocation()} {command} {shlex.quote(made.path)}\n")
