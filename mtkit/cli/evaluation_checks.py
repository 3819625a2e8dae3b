"""Checks of the options of `mtkit evaluate`: their values, and whether they go together."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mtkit.cli.evaluation_tables import FORMATS
from mtkit.cli.test_sets import has_hyps
from mtkit.errors import ConfigError


def check_format(output_format: str | None, as_json: bool) -> str:
    """Return the format of the output.

    Raises:
        ConfigError: If it is unknown, or --json asks for another one.
    """
    if output_format is not None and output_format not in FORMATS:
        what = f"unknown format {output_format!r}"
        raise ConfigError(what, where="--format", hint=f"one of {', '.join(FORMATS)}")
    if as_json and output_format not in (None, "json"):
        raise ConfigError(f"--json cannot be combined with --format {output_format}", hint="leave out one")
    return "json" if as_json else output_format or "text"


def check_paired(paired: str | None, num_systems: int, resamples: int) -> str:
    """Return which paired test to make: bs, ar or none.

    Raises:
        ConfigError: If there is no such test, or nothing to compare.
    """
    if paired not in (None, "bs", "ar", "none"):
        raise ConfigError(f"unknown test {paired!r}", where="--paired", hint="bs, ar or none")
    if paired in ("bs", "ar") and num_systems < 2:
        raise ConfigError(f"--paired {paired} needs two systems", hint="give another HYPS or --model")
    if resamples == 1:
        what = "1 resample gives no interval"
        raise ConfigError(what, where="--resamples", hint="0 for none; 1000 is usual")
    if paired == "bs" and resamples == 0:
        raise ConfigError("--paired bs needs resamples", where="--resamples", hint="1000 is usual")
    if paired is None:
        return "bs" if num_systems > 1 and resamples else "none"
    return paired


def check_combination(
    hyps: Sequence[str],
    ref: Sequence[str],
    model: Sequence[str],
    src: str | None,
    test: Sequence[str],
    test_set: Sequence[str],
    for_models: Sequence[str],
    *,
    reads_source: bool,
) -> None:
    """Check that the options go together.

    Args:
        hyps: files of translations.
        ref: files of references.
        model: the models.
        src: file of source lines.
        test: test sets in files.
        test_set: test sets of sacreBLEU.
        for_models: options in use that say how models translate.
        reads_source: whether something else than a model reads source lines.

    Raises:
        ConfigError: If they do not.
    """
    if not hyps and not model:
        raise ConfigError("nothing to score: give HYPS or --model", hint="mtkit evaluate --help")
    if test and (src is not None or ref):
        raise ConfigError("--test cannot be combined with --src or --ref", hint="it holds both sides")
    folder = next((path for path in hyps if os.path.isdir(path) and not has_hyps(path)), None)
    if folder is not None and not (ref or test or test_set or model):
        what = "a folder, not a file of translations"
        raise ConfigError(what, where=folder, hint=f"a model: --model {folder}")
    if src is not None and not ref:
        raise ConfigError("--src needs --ref", hint="mtkit evaluate --help")
    if src is not None and not model and not reads_source:
        raise ConfigError("--src needs --model, or a metric that reads it", hint="mtkit evaluate --help")
    if for_models and not model:
        raise ConfigError(f"{for_models[0]} needs --model", hint="mtkit evaluate --help")


def check_analysis(
    analysis: bool,
    train: Sequence[str] | None,
    labels: str | None,
    alignments: Sequence[str] | None,
    *,
    quiet: bool,
) -> None:
    """Check that the options of the analysis go together.

    Raises:
        ConfigError: If they do not.
    """
    for option, value in (("--train", train), ("--labels", labels), ("--alignments", alignments)):
        if value and not analysis:
            raise ConfigError(f"{option} needs --analysis", hint="mtkit evaluate --help")
    if analysis and quiet:
        raise ConfigError("--analysis cannot be combined with --quiet", hint="--format json has both")


def check_robustness(models: Sequence[str], others: Sequence[str]) -> None:
    """Check that the options go together with --robustness.

    Args:
        models: the models.
        others: options in use that cannot be combined with it.

    Raises:
        ConfigError: If they do not.
    """
    if not models:
        raise ConfigError("--robustness needs --model", hint="a model that translates the changed copies")
    if others:
        raise ConfigError(f"--robustness cannot be combined with {others[0]}", hint="run the command twice")
