"""`mtkit export`: write a model for another engine, or in another type."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtkit.cli import completion, options
from mtkit.cli.lines import check_same_length
from mtkit.cli.terminal import invocation, print_stdout
from mtkit.errors import ConfigError

if TYPE_CHECKING:
    from mtkit.interop.exporting import Exporter, LoadedModel
    from mtkit.interop.proof import ProofText

ENGINES = ("ctranslate2", "huggingface", "onnx", "mtkit")
"""Values of --to."""


def export(
    model: options.ModelPath,
    to: Annotated[
        str,
        typer.Option(
            help="ctranslate2, huggingface, onnx, or mtkit for a smaller model folder.",
            autocompletion=completion.one_of(*ENGINES),
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write; it must not exist.")],
    type_: Annotated[
        str,
        typer.Option(
            "--type",
            help="Type of the weights: float32, float16, bfloat16 (not ONNX) or int8 (not Hugging Face); "
            "CTranslate2 also has int8_float32 and int16.",
            autocompletion=completion.one_of(
                "float32", "float16", "bfloat16", "int8", "int8_float32", "int16"
            ),
        ),
    ] = "float32",
    max_loss: Annotated[
        float | None, typer.Option(help="Most BLEU that a smaller --type may lose; needs references.")
    ] = None,
    src: Annotated[
        str | None,
        typer.Option(help="Source lines to compare translations of; default: the model's test set."),
    ] = None,
    ref: Annotated[
        str | None, typer.Option(help="Their references, for the loss of a smaller --type.")
    ] = None,
) -> None:
    """Export a model to another engine or type, and prove that it translates the same.

    200 sentences are translated by mtkit and by the exported model. The folder appears only if they agree.
    """
    exporter = _exporter(to)
    if ref is not None and src is None:
        raise ConfigError("--ref needs --src", hint="mtkit export --help")
    if max_loss is not None and max_loss < 0:
        raise ConfigError("it must not be negative", where="--max-loss", hint="for example 0.3")
    from mtkit.interop.exporting import export_model
    from mtkit.interop.proof import own_text

    def find_text(loaded: LoadedModel) -> ProofText:
        if src is not None:
            return _read_text(src, ref)
        return own_text(Path(model), loaded.config, loaded.tokenizers)

    export_model(
        Path(model), exporter, Path(output), find_text, lambda line: print_stdout(f"{line}\n"),
        type_=type_, max_loss=max_loss,
    )  # fmt: skip
    print_stdout(f"{output}: {to}, {type_}\n")
    if to == "onnx":
        print_stdout(f"    echo '…' | python {shlex.quote(f'{output}/translate.py')}\n")
    elif to != "huggingface":
        engine = "--engine ctranslate2 " if to == "ctranslate2" else ""
        print_stdout(f"    echo '…' | {invocation()} translate {engine}{shlex.quote(output)}\n")


def _exporter(to: str) -> Exporter:
    """Return what writes models for an engine."""
    if to not in ENGINES:
        raise ConfigError(f"unknown engine {to!r}", where="--to", hint=f"one of {', '.join(ENGINES)}")
    if to == "ctranslate2":
        from mtkit.interop.ctranslate2_engine import CTranslate2Exporter

        return CTranslate2Exporter()
    if to == "mtkit":
        from mtkit.interop.own import OwnExporter

        return OwnExporter()
    if to == "onnx":
        from mtkit.interop.onnx_engine import OnnxExporter

        return OnnxExporter()
    from mtkit.interop.hugging_face_engine import HuggingFaceExporter

    return HuggingFaceExporter()


def _read_text(src: str, ref: str | None) -> ProofText:
    """Read the text that the options name.

    Raises:
        DataError: If a file cannot be read or is empty, or they differ in length.
    """
    from mtkit.errors import DataError
    from mtkit.files import read_lines
    from mtkit.interop.proof import ProofText

    srcs = list(read_lines(src))
    refs = None if ref is None else list(read_lines(ref))
    if ref is not None and refs is not None:
        check_same_length(src, srcs, [ref], [refs])
    if not srcs:
        raise DataError("nothing to translate", where=src, hint="it has no lines")
    return ProofText(src, srcs, refs)
