"""`mtkit import`: convert a model of another toolkit."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mtkit.cli.terminal import invocation, print_stdout


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder or file of the model, or its name on the Hugging Face hub: Helsinki-NLP/opus-mt-en-fr.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Model folder to write; it must not exist.")],
    src: Annotated[str | None, typer.Option(help="Source language, if the files do not name it.")] = None,
    tgt: Annotated[str | None, typer.Option(help="Target language, if the files do not name it.")] = None,
    src_tokenizer: Annotated[
        str | None,
        typer.Option(help="SentencePiece model or BPE codes of the source, if they are not in the folder."),
    ] = None,
    tgt_tokenizer: Annotated[
        str | None, typer.Option(help="The same of the target; default: that of the source.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit, tag or branch of a model on the hub; default: the newest.")
    ] = None,
) -> None:
    """Convert a model of another toolkit into a model folder: to translate, evaluate, fine-tune or export it."""
    from mtkit.interop.hub import resolve_model

    # before torch is imported, which takes longer than to find a mistake
    folder = resolve_model(source, revision)
    from mtkit.interop.formats import FORMATS
    from mtkit.interop.importing import ImportOptions
    from mtkit.interop.importing import import_model as convert

    files = [None if path is None else Path(path) for path in (src_tokenizer, tgt_tokenizer)]
    imported = convert(folder, Path(output), FORMATS, ImportOptions(src, tgt, *files))
    tokens = " and ".join(
        f"{tokenizer.vocab_size:,}"
        for tokenizer in dict.fromkeys((imported.tokenizers.src, imported.tokenizers.tgt))
    )
    print_stdout(f"{output}: {imported.toolkit}, {' -> '.join(imported.languages)}, {tokens} tokens\n")
    for note in imported.notes:
        print_stdout(f"{note}\n")
    print_stdout(f"    echo '…' | {invocation()} translate {shlex.quote(output)}\n")
