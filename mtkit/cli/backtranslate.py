"""`mtkit backtranslate`: synthetic training pairs from text in the target language."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtkit.cli import completion, options
from mtkit.cli.inputs import count_input_lines, open_inputs, texts_of, warn_about_sheets
from mtkit.cli.jobs import count_all_lines
from mtkit.cli.terminal import check_not_compressed, check_not_overwriting, print_stderr, print_stdout
from mtkit.cli.translators import check_tag, choose_parallelism, load_translator, resolve_decoding
from mtkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mtkit.config.sections import DecodingConfig
    from mtkit.translation.segments import Request

_METHODS = ("beam", "sample", "noise")


def backtranslate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Run or checkpoint folder of a model from the language of the text to the other one.",
        ),
    ],
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILES...",
            help="Text in the target language of the final system: lines, .tmx, .xlf or .xlsx; `-` is stdin.",
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="TSV to write: machine translation, tab, line of the text.")
    ],
    method: Annotated[
        str,
        typer.Option(
            help="`beam`: the best translation; `sample`: a random one; `noise`: the best one with words deleted, "
            "replaced and moved.",
            autocompletion=completion.one_of(*_METHODS),
        ),
    ] = "beam",
    tag: Annotated[
        str | None,
        typer.Option(help="Tag of these pairs for the config that is printed at the end, e.g. `<bt>`."),
    ] = None,
    sample_seed: Annotated[
        int | None, typer.Option(min=0, help="Random seed of samples and noise; default 1.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Sample from the k most probable tokens; by default from all.")
    ] = None,
    filler: Annotated[
        str | None,
        typer.Option(help="What stands for a replaced word with --method noise; default `<blank>`."),
    ] = None,
    max_ratio: options.MaxRatio = 3.0,
    column: Annotated[
        int | None, typer.Option(min=1, help="Column of tab-separated lines to translate, from 1.")
    ] = None,
    columns: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="SRC TGT",
            help="Language tags of MODEL's source and target in .tmx and .xlf files, titles of their columns in "
            ".xlsx; by default, the languages of the model.",
        ),
    ] = None,
    model_tag: Annotated[
        str | None,
        typer.Option(help="Target-language tag that MODEL needs before each line, e.g. `>>eng<<`."),
    ] = None,
    fresh: options.Fresh = False,
    beam_size: options.BeamSize = None,
    batch_tokens: options.BatchTokens = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    workers: options.Workers = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Make training pairs from text in the target language: a model translates it back to the source language.

    Empty, copied, repetitive and far too long or short translations are left out and counted. The file appears when it
    is whole; the same command goes on with a job that was stopped, and the bytes are the same.
    """
    _check_options(method, sample_seed, top_k, filler, beam_size, tag)
    parallelism = choose_parallelism(workers, threads)
    seed = 1 if sample_seed is None else sample_seed
    check_not_compressed(output)
    check_not_overwriting(output, files)
    if Path(output).suffix.lower() != ".tsv":
        what = f"{output} would have tab-separated lines, which training reads from a file named .tsv only"
        raise ConfigError(what, where="--output", hint="let the name end in .tsv")
    decoding = resolve_decoding(model, {
        "sample": method == "sample", "mbr": "none", "groups": 1, "top_k": top_k, "sample_seed": seed,
        "beam_size": beam_size, "batch_tokens": batch_tokens,
    })  # fmt: skip
    from mtkit.pipelines.fingerprints import fingerprint
    from mtkit.pipelines.noise import Noise
    from mtkit.pipelines.resumable_file import ResumableFile
    from mtkit.pipelines.translation_filter import TranslationFilter, summary
    from mtkit.training.signals import Signals
    from mtkit.translation.model_folder import read_languages, shortlist_file

    noise = Noise(filler or "<blank>", seed=seed) if method == "noise" else None
    text_language, other_language = read_languages(Path(model))
    read_document = texts_of((columns or (text_language, ""))[0])
    total = count_all_lines(files, partial(count_input_lines, read_document=read_document))
    job = {
        "model": fingerprint(Path(model)),
        "input": [None if path == "-" else fingerprint(Path(path)) for path in files],
        "decoding": decoding.model_dump(mode="json", exclude={"batch_tokens"}),
        "options": [
            method,
            seed,
            noise and noise.filler,
            max_ratio,
            column,
            columns,
            model_tag,
            precision,
        ],
    }
    table = shortlist_file(Path(model))
    if decoding.shortlist and table.is_file():
        job["shortlist"] = fingerprint(table)
    signals = Signals()
    signals.training_started = True  # there is something to resume
    with signals.installed(), closing(ResumableFile(Path(output), job, fresh=fresh)) as file:
        if not file.is_finished:
            with signals.deferred():
                from mtkit.pipelines.translations import write_pairs
                from mtkit.translation.options import LineProgress, ignore_progress

            translator = load_translator(model, decoding, device, precision)
            check_tag(model_tag, translator, "--model-tag")
            if not quiet:
                warn_about_sheets(files)
            reader = open_inputs(files, read_document, keep_bad=True)
            progress = ignore_progress if quiet else LineProgress(print_stderr, total, file.num_lines)
            if file.num_lines and not quiet:
                print_stderr(f"{output}: {file.num_lines:,} lines are done, going on from there")
            translation_filter = TranslationFilter(translator.tokenizers, max_ratio or None)
            requests = _requests(reader, column, model_tag or "")
            write_pairs(file, requests, translator, translation_filter, "src", noise, progress, parallelism)
    print_stdout(f"{output}: {summary(file.counts)}\n")
    how = _describe(method, decoding)
    _print_config(
        output, (other_language, text_language), tag, noise.filler if noise else None, f"{how} by {model}"
    )


def _check_options(
    method: str,
    seed: int | None,
    top_k: int | None,
    filler: str | None,
    beam_size: int | None,
    tag: str | None,
) -> None:
    """Check options that go with one method, and the tag.

    Raises:
        ConfigError: If the method is unknown, an option has no effect with it, or filler or tag is not one word.
    """
    if method not in _METHODS:
        raise ConfigError(f"unknown method {method!r}", where="--method", hint=", ".join(_METHODS))
    for option, value, wanted in (("--sample-seed", seed, ("sample", "noise")), ("--top-k", top_k, ("sample",)),
                                  ("--filler", filler, ("noise",)),
                                  ("--beam-size", beam_size, ("beam", "noise"))):  # fmt: skip
        if value is not None and method not in wanted:
            raise ConfigError(f"{option} needs --method {' or '.join(wanted)}", hint="leave it out")
    if filler is not None and filler.split() != [filler]:
        raise ConfigError(f"{filler!r} is blank or has a space", where="--filler", hint="give one word")
    if tag is not None and tag.split() != [tag]:
        raise ConfigError(f"{tag!r} is blank or has a space", where="--tag", hint="give one token")


def _requests(lines: Iterator[str], column: int | None, tag: str) -> Iterator[Request]:
    """Yield the lines of the text.

    Raises:
        DataError: If a line lacks the column.
    """
    from mtkit.translation.segments import Request

    for number, line in enumerate(lines, 1):
        fault, text = getattr(line, "fault", None), line
        if column is not None and fault is None:
            cells = line.split("\t")
            if len(cells) < column:
                what = f"{len(cells)} of {column} columns in line {number:,}"
                raise DataError(what, where="--column", hint="columns are separated by one tab")
            text = cells[column - 1]
        yield Request(str(text), fault=fault, tag=tag)


def _describe(method: str, decoding: DecodingConfig) -> str:
    """Describe how the text was translated."""
    return f"back-translated with {decoding.label}" + (" and noise" if method == "noise" else "")


def _print_config(
    output: str, languages: tuple[str, str], tag: str | None, filler: str | None, synthetic: str
) -> None:
    """Print what a config needs to learn from the pairs."""
    from mtkit.config.yaml_document import format_value

    symbols = [symbol for symbol in (tag, filler) if symbol is not None]
    entry = {"path": os.path.abspath(output), "tag": tag, "weight": 1, "synthetic": synthetic}
    fields = ", ".join(f"{key}: {format_value(value)}" for key, value in entry.items() if value is not None)
    print_stdout(f"In a config from {languages[0]} to {languages[1]}, below data.train:\n  - {{{fields}}}\n")
    if symbols:
        print_stdout(f"and for a new vocabulary:\ntokenizer: {{user_symbols: {format_value(symbols)}}}\n")
