"""Inputs of `mtkit evaluate --analysis` beside translations: labels, alignments, training data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mtkit.cli.terminal import print_stderr
from mtkit.cli.test_sets import TestSet, split_by_set
from mtkit.data.readers import Columns
from mtkit.errors import ConfigError, DataError, MtkitError
from mtkit.translation.options import LineProgress

if TYPE_CHECKING:
    from mtkit.config.sections import DataConfig
    from mtkit.data.sources import Source
    from mtkit.evaluation.analysis import Link
    from mtkit.evaluation.overlap import Overlap


class Analyzed(NamedTuple):
    """Options of the analysis.

    Attributes:
        labels: file with a label of each sentence, of all test sets one after the other.
        alignments: files with alignments, one for each file of translations, in their order.
        training: training data that the user names.
        data: data section of the model's config, if there is a model: its training data is used if none is named.
        columns: languages of both sides, if they are known.
    """

    labels: str | None
    alignments: Sequence[str]
    training: Sequence[str]
    data: DataConfig | None
    columns: Columns | None


def read_labels(path: str | None, sets: Sequence[TestSet]) -> list[list[str] | None]:
    """Return the labels of each test set.

    Raises:
        DataError: If the file cannot be read, or has another number of lines than the test sets together.
    """
    from mtkit.files import read_lines

    if path is None:
        return [None for _ in sets]
    return [*split_by_set(path, [line.strip() for line in read_lines(path)], sets)]


def read_alignments(
    paths: Sequence[str], hyps: Sequence[str], sets: Sequence[TestSet]
) -> list[dict[str, list[list[Link]]]]:
    """Return the alignments of each test set, by the name of the system.

    Lines are pairs such as `0-0 1-2`, of source and target words, from 0; or what `mtkit translate --alignment
    pharaoh` prints, which has such pairs after ` ||| `.

    Raises:
        ConfigError: If there are not as many files as files of translations.
        DataError: If a file cannot be read, is malformed, or has another number of lines than the test sets.
    """
    from mtkit.files import read_lines

    if paths and len(paths) != len(hyps):
        what = f"{len(paths)} files, but {len(hyps)} of translations"
        raise ConfigError(what, where="--alignments", hint="one for each HYPS, in the same order")
    of_sets: list[dict[str, list[list[Link]]]] = [{} for _ in sets]
    for path, system in zip(paths, hyps, strict=True) if paths else ():
        links = [_links(line, f"{path}:{number}") for number, line in enumerate(read_lines(path), 1)]
        for of_set, part in zip(of_sets, split_by_set(path, links, sets), strict=True):
            of_set[system] = part
    return of_sets


def _links(line: str, where: str) -> list[Link]:
    """Return the links of a line.

    Raises:
        DataError: If it has anything else.
    """
    pairs = line.rpartition("|||")[2].split()
    if bad := next((pair for pair in pairs if not re.fullmatch(r"[0-9]{1,9}-[0-9]{1,9}", pair)), None):
        raise DataError(f"{bad!r} is no pair of words", where=where, hint="pairs are written 0-0 1-2")
    return [(int(source), int(target)) for source, target in (pair.split("-") for pair in pairs)]


def find_overlaps(
    options: Analyzed, sets: Sequence[TestSet], hyps_of: Mapping[str, list[list[str]]], *, quiet: bool
) -> list[Overlap | None]:
    """Read the training data once, and return its overlap with each test set; None if training is not known.

    Raises:
        ConfigError: If the languages of a file of pairs are not known.
        DataError: If training data that the user names cannot be read; if that of a model is not there, a line on
            stderr says so.
    """
    from mtkit.evaluation.overlap import OverlapCounter, count_overlaps

    try:
        sources = _training_sources(options)
        counters = [
            OverlapCounter(test.src_texts, test.refs, [hyps[number] for hyps in hyps_of.values()])
            for number, test in enumerate(sets)
        ]
        overlaps = count_overlaps(counters, _read_pairs(sources, quiet=quiet))
    except MtkitError as error:
        if options.training:
            raise
        print_stderr(f"the analysis goes without the model's training data: {error}")
        return [None for _ in sets]
    return [*overlaps] if sources else [None for _ in sets]


def _read_pairs(sources: Sequence[Source], *, quiet: bool) -> Iterator[tuple[str, str]]:
    """Yield the pairs of the training data, and report on stderr how many they are."""
    report = None if quiet else LineProgress(print_stderr)
    for source in sources:
        for _, pair in source.read():
            yield pair
            if report is not None:
                report(1)


def _training_sources(options: Analyzed) -> list[Source]:
    """Return the training data, without the tags of multilingual training.

    Raises:
        ConfigError: If the languages of a file of pairs are not known.
        DataError: If a file is missing.
    """
    from mtkit.config.sections import DataConfig, SourceConfig
    from mtkit.data.sources import open_sources, untagged

    if not options.training:
        if options.data is None:
            return []
        configs = untagged(options.data.train)
        return open_sources(configs, options.data, "train")
    columns = options.columns
    found: list[SourceConfig] = []
    for name in options.training:
        sides = [os.path.abspath(part) for part in name.split(",")]
        if len(sides) == 2 and not os.path.exists(name):
            found.append(SourceConfig(src=sides[0], tgt=sides[1]))
        elif columns is None:
            raise ConfigError("which of its languages?", where=name, hint="name them, e.g. --langs en-de")
        else:
            found.append(SourceConfig(path=os.path.abspath(name), columns=columns.names))
    src, tgt = columns.languages if columns else ("src", "tgt")
    try:
        return open_sources(found, DataConfig(src=src, tgt=tgt, train=tuple(found)), "train")
    except ConfigError as error:
        raise ConfigError(error.what, where="--train", hint="a file of pairs, or SRC,TGT") from error
    except DataError as error:
        hint = "check the path" if "data.root" in str(error.hint) else error.hint
        raise DataError(error.what, where=error.where, hint=hint) from error
