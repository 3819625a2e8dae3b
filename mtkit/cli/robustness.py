"""`mtkit evaluate --robustness`: changed copies of test sets, translated and measured, as tables and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mtkit.cli.evaluation_tables import (
    distinguish,
    escape_latex,
    escape_markdown,
    latex_table,
    markdown_table,
    render_table,
)
from mtkit.cli.terminal import print_stderr, print_stdout
from mtkit.cli.test_sets import TestSet

if TYPE_CHECKING:
    from mtkit.cli.evaluation_scores import Scoring
    from mtkit.config.sections import DecodingConfig
    from mtkit.translation.robustness import Copy, CopyResult


class _SetResult(NamedTuple):
    """Results of systems on the copies of a test set.

    Attributes:
        name: name of the test set.
        systems: names of the systems.
        copies: results of each system for each copy, the clean one first.
        left_out: why kinds of copies are left out.
    """

    name: str
    systems: list[str]
    copies: list[list[CopyResult]]
    left_out: dict[str, str]


def evaluate_robustness(
    decodings: Mapping[str, DecodingConfig],
    sets: Sequence[TestSet],
    scoring: Scoring,
    translate: Callable[[str, DecodingConfig, Sequence[TestSet]], list[list[str]]],
    output_format: str,
    *,
    quiet: bool,
) -> None:
    """Translate changed copies of the test sets with each model, and print what becomes of them.

    Args:
        decodings: how each model searches, by its name.
        sets: the test sets.
        scoring: settings of the scores.
        translate: returns a model's translations of each of some test sets; see `translate_sets`.
        output_format: one of `FORMATS`.
        quiet: whether to show no progress.

    Raises:
        ConfigError: If the device, precision or tag is not available.
        StorageError: If a model is missing or damaged.
    """
    from mtkit.translation.robustness import make_copies, measure

    copies, left_out = zip(*(make_copies(test.src_texts or [], test.refs) for test in sets), strict=True)
    flat = [(test, copy) for test, of_set in zip(sets, copies, strict=True) for copy in of_set]
    changed = [_as_test_set(test, copy) for test, copy in flat]
    num_lines = sum(len(copy.srcs) for _, copy in flat)
    if not quiet:
        print_stderr(f"{len(flat)} copies, {num_lines:,} lines, for each model")
    found: list[list[CopyResult]] = [[] for _ in flat]
    for name, decoding in decodings.items():
        hyps = translate(name, decoding, changed)
        for results, (_, copy), of_copy in zip(found, flat, hyps, strict=True):
            results.append(
                measure(copy, of_copy, scoring.metrics, tokenize=scoring.tokenize,
                        lowercase=scoring.lowercase, tgt=scoring.tgt)
            )  # fmt: skip
    of_sets, start = [], 0
    for test, of_set, reasons in zip(sets, copies, left_out, strict=True):
        end = start + len(of_set)
        of_sets.append(_SetResult(test.name, list(decodings), found[start:end], reasons))
        start = end
    print_stdout(_render(of_sets, output_format))


def _as_test_set(test: TestSet, copy: Copy) -> TestSet:
    """Return a copy as a test set; its lines have the tag of the original's first line."""
    from mtkit.translation.segments import Request

    tag = test.srcs[0].tag if test.srcs else ""
    return TestSet(copy.kind, [Request(src, tag=tag) for src in copy.srcs], [], [])


def _render(of_sets: Sequence[_SetResult], output_format: str) -> str:
    """Return the results in a format."""
    if output_format == "json":
        return json.dumps(list(map(_as_dict, of_sets)), indent=2, ensure_ascii=False) + "\n"
    parts = []
    for of_set in of_sets:
        header, rows, num_labels = _table(of_set)
        notes = _notes(of_set)
        match output_format:
            case "markdown":
                escaped = [list(map(escape_markdown, row)) for row in (header, *rows)]
                table = markdown_table(escaped[0], escaped[1:], num_labels)
                title = f"**{escape_markdown(of_set.name)}**\n\n" if len(of_sets) > 1 else ""
                lines = "".join(f"- {escape_markdown(note)}\n" for note in notes)
                parts.append(f"{title}{table}\n{lines}")
            case "latex":
                escaped = [list(map(escape_latex, row)) for row in (header, *rows)]
                title = f"% {of_set.name}\n" if len(of_sets) > 1 else ""
                lines = "".join(f"% {note}\n" for note in notes)
                parts.append(f"{title}{lines}{latex_table(escaped[0], escaped[1:], num_labels)}")
            case _:
                title = f"{of_set.name}\n" if len(of_sets) > 1 else ""
                lines = "".join(f"{note}\n" for note in notes)
                parts.append(f"{title}{render_table(header, rows, num_labels)}\n{lines}")
    return "\n".join(parts)


def _as_dict(of_set: _SetResult) -> dict[str, object]:
    """Return the results of a test set for JSON."""
    systems = [
        {
            "name": name,
            "copies": [results[system].as_dict(of_set.copies[0][system]) for results in of_set.copies],
        }
        for system, name in enumerate(of_set.systems)
    ]
    return {"name": of_set.name, "systems": systems, "left_out": of_set.left_out}


def _table(of_set: _SetResult) -> tuple[list[str], list[list[str]], int]:
    """Return header and rows of a table, and how many columns have labels."""
    from mtkit.evaluation.robustness_table import robustness_cells, robustness_header

    names = distinguish(of_set.systems)
    first = of_set.copies[0]
    clean = [result.as_dict(result) for result in first]
    several = len(names) > 1
    rows = []
    for results in of_set.copies:
        for number, result in enumerate(results):
            labels = [result.kind if number == 0 else "", *([names[number]] if several else [])]
            rows.append([*labels, *robustness_cells(result.as_dict(first[number]), clean[number])])
    header = ["copy", *(["system"] if several else []), *robustness_header(clean[0])]
    return header, rows, 2 if several else 1


def _notes(of_set: _SetResult) -> list[str]:
    """Return what stands below or above a table."""
    from mtkit.evaluation.robustness_table import NOTE

    notes = [f"{score.name}|{score.signature}" for score in of_set.copies[0][0].scores]
    return [
        *notes,
        NOTE,
        *(f"Left out: {kind}, because {reason}." for kind, reason in of_set.left_out.items()),
    ]
