"""`mtkit init`: a config from files."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from mtkit.cli.terminal import open_new, own_command, print_text

_MISSING = {
    "valid": "no validation pairs were found beside the training files: without them nothing tells when the model is "
    "best (move about 1,000 pairs out of the training files into files of their own, and name them with --valid)",
    "test": "no test pairs were found: no score will be reported (name some with --test)",
}


def init(
    train: Annotated[
        list[str],
        typer.Argument(
            metavar="TRAIN...",
            help="Training pairs: two parallel files, as train.en train.de, or .tsv, .csv, .jsonl, .parquet.",
        ),
    ],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The YAML file; default SRC-TGT.yaml; `-` is stdout.")
    ] = None,
    valid: Annotated[
        list[str] | None,
        typer.Option(help="Validation pairs; repeat for both files. Default: valid… or dev… beside TRAIN."),
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Test pairs; repeat for both files. Default: test… beside TRAIN.")
    ] = None,
    src: Annotated[
        str | None, typer.Option(help="Language of the source, where file names do not tell it.")
    ] = None,
    tgt: Annotated[
        str | None, typer.Option(help="Language of the target, where file names do not tell it.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="The run folder; default runs/SRC-TGT.")] = None,
) -> None:
    """Write a config for these files, to start from: languages and columns are recognised, sizes fit the pairs."""
    from mtkit.training.starter import make_starter_config

    made = make_starter_config(train, valid or (), test or (), (src, tgt), run)
    path = output or f"{'-'.join(made.languages)}.yaml"
    if path == "-":
        print_text(made.text)
        return
    with open_new(path) as file:
        file.write(made.text)
    print_text(f"{path}: {' -> '.join(made.languages)}, {made.num_pairs:,} training pairs\n")
    for split in made.missing:
        print_text(f"{_MISSING[split]}\n")
    for command in ("check", "train"):
        print_text(f"    {own_command()} {command} {shlex.quote(path)}\n")
