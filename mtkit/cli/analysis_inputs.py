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
from mtkit.formatting import format_count
from mtkit.translation.options import LineProgress

if TYPE_CHECKING:
    from mtkit.config.sections import DataConfig
    from mtkit.data.sources import Source
    from mtkit.evaluation.analysis import Link
    from mtkit.evaluation.overlap import Overlap


class Analyzed(NamedTuple):
    """Inputs of the analysis.

    Attributes:
        labels: labels of each test set; None if there are none.
        alignments: alignments of each test set, by the name of the system.
        training: training data that the user names, opened.
        data: data section of the model's config, if there is a model: its training data is used if none is named.
    """

    labels: Sequence[list[str] | None]
    alignments: Sequence[dict[str, list[list[Link]]]]
    training: Sequence[Source]
    data: DataConfig | None


def read_labels(path: str | None, sets: Sequence[TestSet]) -> list[list[str] | None]:
    """Return the labels of each test set, from a file with those of all sets one after the other.

    Raises:
        DataError: If the file cannot be read, or has another number of lines than the test sets together.
    """
    from mtkit.files import read_lines

    if path is None:
        return [None for _ in sets]
    return [*split_by_set(path, [line.strip() for line in read_lines(path)], sets)]


def read_alignments(
    paths: Sequence[str], hyps: Sequence[str], baseline: Sequence[str], sets: Sequence[TestSet]
) -> list[dict[str, list[list[Link]]]]:
    """Return the alignments of each test set, by the name of the system.

    Lines are pairs such as `0-0 1-2`, of source and target words, from 0; or what `mtkit translate --alignment
    pharaoh` prints, which has such pairs after ` ||| `.

    Args:
        paths: the files.
        hyps: files of translations, each of which has a file of alignments.
        baseline: the baseline if it is another file of translations; it may have one, the last.
        sets: the test sets.

    Raises:
        ConfigError: If there are not as many files as files of translations.
        DataError: If a file cannot be read, is malformed, or has another number of lines than the test sets.
    """
    from mtkit.files import read_lines

    files = [*hyps, *baseline]
    if paths and len(paths) not in (len(hyps), len(files)):
        what = f"{format_count(len(paths), 'file')}, but {len(files)} of translations"
        raise ConfigError(what, where="--alignments", hint="one for each HYPS in order, then the baseline")
    of_sets: list[dict[str, list[list[Link]]]] = [{} for _ in sets]
    for path, system in zip(paths, files, strict=False):
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
    analyzed: Analyzed, sets: Sequence[TestSet], hyps_of: Mapping[str, list[list[str]]], *, quiet: bool
) -> list[Overlap | None]:
    """Read the training data once, and return its overlap with each test set; None if training is not known.

    Raises:
        DataError: If training data that the user names cannot be read; if that of a model is not there, a line on
            stderr says so.
    """
    from mtkit.data.sources import open_sources, untagged
    from mtkit.evaluation.overlap import OverlapCounter, count_overlaps

    try:
        sources = analyzed.training
        if not sources and analyzed.data is not None:
            # the tags of multilingual training are no part of its text
            sources = open_sources(untagged(analyzed.data.train), analyzed.data, "train")
        counters = [
            OverlapCounter(test.src_texts, test.refs, [hyps[number] for hyps in hyps_of.values()])
            for number, test in enumerate(sets)
        ]
        overlaps = count_overlaps(counters, _read_pairs(sources, quiet=quiet))
    except MtkitError as error:
        if analyzed.training:
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


def open_training(names: Sequence[str], columns: Columns | None) -> list[Source]:
    """Open training data that the user names, without reading it.

    Args:
        names: files of pairs, or SRC,TGT.
        columns: languages of both sides, if they are known.

    Raises:
        ConfigError: If the languages of a file of pairs are not known.
        DataError: If a file is missing.
    """
    from mtkit.config.sections import DataConfig, SourceConfig
    from mtkit.data.sources import open_sources

    found: list[SourceConfig] = []
    for name in names:
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
