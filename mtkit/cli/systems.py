"""The systems that `mtkit evaluate` scores: files of translations, and models that translate the test sets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mtkit.cli.terminal import print_stderr
from mtkit.cli.test_sets import TestSet, has_hyps
from mtkit.cli.translators import check_tag, load_translator
from mtkit.errors import ConfigError
from mtkit.languages import short_code
from mtkit.translation.options import LineProgress, Parallelism, TranslateOptions, ignore_progress

if TYPE_CHECKING:
    from mtkit.config.sections import Config, DecodingConfig


class System(NamedTuple):
    """A system that translates; its name is the path of its file of translations, or of its model."""

    name: str
    is_model: bool


def choose_systems(hyps: Sequence[str], models: Sequence[str], baseline: str | None) -> list[System]:
    """Return the systems in the order of their scores: the baseline, files, models.

    Raises:
        ConfigError: If a system is given twice.
    """
    systems = [*(System(path, False) for path in hyps), *(System(path, True) for path in models)]
    for one, other in combinations(systems, 2):
        if _is_same(one.name, other.name):
            same = "" if one.name == other.name else f", as {one.name}"
            raise ConfigError(f"given twice{same}", where=other.name, hint="leave out one")
    if baseline is None:
        return systems
    first = next((system for system in systems if _is_same(system.name, baseline)), None)
    first = first or System(baseline, os.path.isdir(baseline) and not has_hyps(baseline))
    return [first, *(system for system in systems if system != first)]


def _is_same(path: str, other: str) -> bool:
    """Return whether two paths are of the same file or folder."""
    both_exist = os.path.exists(path) and os.path.exists(other)
    return os.path.samefile(path, other) if both_exist else path == other


def config_of(model: str) -> Config:
    """Return the config of a model.

    Raises:
        StorageError: If the folder contains no model, or its config cannot be read.
    """
    from mtkit.translation.model_folder import find_checkpoint, read_model_config

    hint = "it was written by another version of mtkit, or changed by hand"
    path = Path(model)
    return read_model_config(path, find_checkpoint(path), hint, to_translate=True)


def translate_sets(
    model: str,
    decoding: DecodingConfig,
    sets: Sequence[TestSet],
    tag: str | None,
    device: str,
    precision: str,
    parallelism: Parallelism,
    *,
    quiet: bool,
) -> list[list[str]]:
    """Return a model's translations of each test set.

    Raises:
        ConfigError: If the device, precision or tag is not available.
        StorageError: If the model is missing or damaged.
    """
    translator = load_translator(model, decoding, device, precision)
    check_tag(tag, translator)
    progress = ignore_progress if quiet else LineProgress(print_stderr)
    translate_options = TranslateOptions(on_progress=progress, parallelism=parallelism)
    with closing(translator):
        return [
            [translation.text for translation in translator.translate(test.srcs or [], translate_options)]
            for test in sets
        ]


def warn_about_languages(models: Sequence[str]) -> None:
    """Say which models translate into another language than the first, which decides how to score."""
    target_of = {model: config_of(model).data.tgt for model in models}
    for model, target in target_of.items():
        first = target_of[models[0]]
        if short_code(target) != short_code(first):
            print_stderr(f"{model}: translates into {target}, not {first} as {models[0]}")


def warn_about_translations(hyps_of: Mapping[str, list[list[str]]], sets: Sequence[TestSet]) -> None:
    """Say if translations are the same as those of another system, or seem to be of another test set."""
    from mtkit.evaluation.pairing import looks_mispaired

    for (name, hyps), (other, others) in combinations(hyps_of.items(), 2):
        if hyps == others:
            print_stderr(f"{other}: the same translations as {name}")
    for name, hyps in hyps_of.items():
        for of_set, test in zip(hyps, sets, strict=True):
            if looks_mispaired(of_set, test.refs[0]):
                print_stderr(
                    f"{name}: no closer to its own references ({test.name}) than to those of other lines: is it a "
                    "translation of this test set, in this order?"
                )
