"""`mtkit evaluate`: translations against references."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtkit.cli import completion, options
from mtkit.cli.lines import refuse_unequal
from mtkit.cli.terminal import Ticker, print_text, say
from mtkit.cli.translators import decoding_of, load_translator_and_config
from mtkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mtkit.config.sections import Config, DataConfig
    from mtkit.evaluation.metrics import Score

References = tuple[str, list[str] | None, list[list[str]]]
"""Name, sources and streams of references of a test set."""


def evaluate(
    hyps: Annotated[
        str | None, typer.Argument(metavar="[HYPS]", help="Translations to score; `-` is stdin.")
    ] = None,
    ref: Annotated[list[str] | None, typer.Option(help="References; repeat the option for several.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Translate with this model instead of reading HYPS.")
    ] = None,
    src: Annotated[str | None, typer.Option(help="Source lines for --model.")] = None,
    test_set: Annotated[
        str | None, typer.Option(help="One of sacreBLEU's test sets, for example wmt20.")
    ] = None,
    langs: Annotated[str | None, typer.Option(help="Languages of the test set, for example en-de.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="bleu, chrf, chrf++, ter; repeat for several.",
            autocompletion=completion.values_of("decoding.mbr"),
        ),
    ] = None,
    tokenize: Annotated[
        str | None,
        typer.Option(help="sacreBLEU's tokenizer for BLEU.", autocompletion=completion.bleu_tokenizers),
    ] = None,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Ignore case.")] = False,
    resamples: Annotated[int, typer.Option(min=0, help="Of the 95 % bootstrap interval; 0 for none.")] = 1000,
    beam_size: options.BeamSize = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    as_json: options.AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the numbers alone.")] = False,
) -> None:
    """Score translations against references: from a file, or by translating a test set with a model.

    With --model alone, the test sets of the model's own config are translated.
    """
    from mtkit.evaluation import metrics
    from mtkit.files import read_lines
    from mtkit.translation.options import DEFAULT_OPTIONS, TranslateOptions

    names = [name.lower() for name in metric or ("bleu", "chrf++", "ter")]
    metrics.check_metrics(names, tokenize=tokenize)
    if (hyps is None) == (model is None):
        raise ConfigError("give either HYPS or --model", hint="mtkit evaluate --help")
    if src is not None and (model is None or not ref):
        raise ConfigError("--src goes with --model and --ref", hint="mtkit evaluate --help")
    if model is None and beam_size is not None:
        raise ConfigError("--beam-size goes with --model", hint="mtkit evaluate --help")
    if resamples == 1:
        raise ConfigError(
            "1 resample gives no interval", where="--resamples", hint="0 for none; 1000 is usual"
        )
    config = None
    tgt_language = langs.rpartition("-")[2] if langs else None
    if model is not None:
        decoding = decoding_of(model, {"beam_size": beam_size})
        translator, config = load_translator_and_config(model, decoding, device, precision)
        silent = quiet or as_json
        translate_options = DEFAULT_OPTIONS if silent else TranslateOptions(on_progress=Ticker())
        tokenize = tokenize or config.validation.bleu_tokenizer
        langs, tgt_language = langs or f"{config.data.src}-{config.data.tgt}", tgt_language or config.data.tgt
    metrics.check_metrics(names, tokenize=tokenize, tgt=tgt_language)
    told = metrics.bleu_warning(names, tgt_language, tokenize=tokenize)
    if told is not None and not quiet:
        say(told.replace("validation.bleu_tokenizer", "--tokenize"))
    results = {}
    data = None if config is None or model is None else _as_when_trained(config, model)
    for name, srcs, refs in _reference_sets(src, ref, test_set, langs, data):
        if hyps is None:
            found = [translation.text for translation in translator.translate(srcs or [], translate_options)]
        else:
            found = list(read_lines(hyps))
        refuse_unequal(src or hyps or name, found, ref or [name], refs)
        if not found:
            raise DataError("nothing to score", where=src or hyps, hint="it has no lines")
        results[name] = metrics.score(
            found,
            refs,
            names,
            tokenize=tokenize,
            lowercase=lowercase,
            tgt=tgt_language,
            num_bootstrap=resamples,
        )
    _print_scores(results, as_json=as_json, quiet=quiet)


def _reference_sets(
    src: str | None, ref: list[str] | None, test_set: str | None, langs: str | None, data: DataConfig | None
) -> list[References]:
    """(name, sources, reference streams) of what is to be evaluated."""
    from mtkit.files import read_lines

    if ref and test_set is not None:
        raise ConfigError("give either --ref or --test-set", hint="mtkit evaluate --help")
    if ref:
        if data is not None and src is None:
            raise ConfigError("--model and --ref need --src: what to translate", hint="mtkit evaluate --help")
        srcs = None if src is None else list(read_lines(src))
        refs = [list(read_lines(path)) for path in ref]
        if src is not None and srcs is not None:
            refuse_unequal(src, srcs, ref, refs)
        return [(ref[0], srcs, refs)]
    if test_set is not None:
        from mtkit.evaluation import metrics

        if langs is None or langs.count("-") != 1:
            raise ConfigError("--test-set needs --langs", hint="for example --langs en-de")
        srcs, refs = metrics.load_test_set(test_set, *langs.split("-"))
        return [(test_set, srcs, refs)]
    if data is None:
        raise ConfigError("nothing to compare with", hint="give --ref FILE or --test-set NAME")
    from mtkit.data.sources import open_sources, read_sides

    if not data.test:
        raise ConfigError("the model's config names no test set", hint="give --src and --ref, or --test-set")
    found: list[References] = []
    try:
        for source in open_sources(data.test, data, "test"):
            srcs, tgts = read_sides(source)
            found.append((source.name, srcs, [tgts]))
    except DataError as error:
        hint = f"{error.hint}; or name other files with --src and --ref"
        raise DataError(error.what, where=error.where, hint=hint) from error
    return found


def _as_when_trained(config: Config, model: str) -> DataConfig:
    """The data of a model's config, with relative paths from the folder in which it was trained, if that is known."""
    from mtkit.translation.model_folder import launch_folder

    home, root = launch_folder(Path(model), config.run), os.path.expanduser(config.data.root)
    if home is None or os.path.isabs(root):
        return config.data
    return config.data.model_copy(update={"root": str(home / root)})


def _print_scores(results: dict[str, list[Score]], *, as_json: bool, quiet: bool) -> None:
    """Scores of each test set: JSON, numbers alone, or lines with signatures."""
    if as_json:
        sets = [{"name": name, "scores": [s.as_dict() for s in scores]} for name, scores in results.items()]
        print_text(json.dumps(sets, indent=2, ensure_ascii=False) + "\n")
        return
    for name, scores in results.items():
        if len(results) > 1 and not quiet:
            print_text(f"{name}\n")
        for result in scores:
            print_text(f"{result.value:.2f}\n" if quiet else f"{result.format()}\n")
