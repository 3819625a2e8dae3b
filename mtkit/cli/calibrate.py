"""`mtkit calibrate`: fit the confidence of a model's translations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtkit.cli import options
from mtkit.cli.lines import check_same_length
from mtkit.cli.terminal import open_stdout, print_stderr, print_stdout
from mtkit.cli.test_sets import read_config_sets
from mtkit.cli.translators import check_tag, load_translator_and_config, resolve_decoding
from mtkit.errors import ConfigError
from mtkit.formatting import format_count
from mtkit.translation.options import LineProgress, TranslateOptions, ignore_progress

if TYPE_CHECKING:
    from mtkit.config.sections import DataConfig
    from mtkit.translation.segments import Request


def calibrate(
    model: options.ModelPath,
    src: Annotated[
        str | None,
        typer.Option(help="Source lines; by default, the validation sets of the model's config are used."),
    ] = None,
    ref: Annotated[str | None, typer.Option(help="Their references.")] = None,
    tag: options.Tag = None,
    ensemble: options.Ensemble = None,
    batch_tokens: options.BatchTokens = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Calibrate a model for `mtkit translate --confidence`, on validation pairs.

    The lines are translated and compared with their references; what that tells is written beside the weights, in
    confidence.json. Use pairs like the text to come, and none that the model was trained on. The calibration errors
    printed are those of a five-fold cross-validation.
    """
    if (src is None) != (ref is None):
        raise ConfigError("--src and --ref belong together", hint="mtkit calibrate --help")
    if tag is not None and src is None:
        raise ConfigError("--tag needs --src", hint="the validation sets have tags of their own")
    open_stdout()  # if it is closed, fail before anything is translated
    # Translations are searched for as by `mtkit translate --confidence`.
    decoding = resolve_decoding(model, {"sample": False, "mbr": "none", "batch_tokens": batch_tokens})
    translator, config = load_translator_and_config(model, decoding, device, precision, ensemble or ())
    check_tag(tag, translator)
    from mtkit.translation.confidence import fit_confidence
    from mtkit.translation.model_folder import data_of_run

    if src is not None and ref is not None:
        requests, refs = _read_pairs(src, ref, tag or "")
    else:
        requests, refs = _validation_pairs(data_of_run(config, Path(model)))
    report = ignore_progress if quiet else LineProgress(print_stderr, len(requests))
    kept = TranslateOptions(keep_log_probs=True, on_progress=report)
    confidence, found = fit_confidence(list(translator.translate(requests, kept)), refs)
    path = confidence.save(Path(model), found, list(map(Path, ensemble or ())))
    print_stdout(
        f"{format_count(found.lines, 'line')}, {format_count(found.words, 'word')}: "
        f"{found.right_words:.1%} of words right, {found.right_lines:.1%} of lines\n"
        f"calibration error {found.word_error:.3f} of words, {found.line_error:.3f} of lines\n"
        f"written to {path}\n"
    )


def _read_pairs(src: str, ref: str, tag: str) -> tuple[list[Request], list[str]]:
    """Read pairs from two text files.

    Raises:
        DataError: If a file cannot be read, or they differ in length.
    """
    from mtkit.files import read_lines
    from mtkit.translation.segments import Request

    srcs, refs = list(read_lines(src)), list(read_lines(ref))
    check_same_length(src, srcs, [ref], [refs])
    return [Request(line, tag=tag) for line in srcs], refs


def _validation_pairs(data: DataConfig) -> tuple[list[Request], list[str]]:
    """Read the validation sets of a model's config.

    Raises:
        ConfigError: If there are none.
        DataError: If one cannot be read.
    """
    if not data.valid:
        raise ConfigError("the model's config has no validation set", hint="give --src and --ref")
    sets = read_config_sets(data, "valid")
    return [request for each in sets for request in each.requests()], [
        ref for each in sets for ref in each.tgts
    ]
