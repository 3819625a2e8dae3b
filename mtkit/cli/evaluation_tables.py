"""Scores of systems on test sets as lines, JSON, and tables for the terminal, LaTeX and Markdown."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mtkit.cli.terminal import is_terminal, make_console
from mtkit.formatting import format_count

if TYPE_CHECKING:
    from rich.table import Table

    from mtkit.evaluation.metrics import Score

FORMATS = ("text", "json", "latex", "markdown")
"""Values of --format."""


class SetScores(NamedTuple):
    """Scores of all systems on a test set.

    Attributes:
        name: name of the test set.
        num_sentences: its length.
        systems: names of the systems, the baseline first.
        scores: scores of each system, one per metric.
    """

    name: str
    num_sentences: int
    systems: list[str]
    scores: list[list[Score]]


def render(
    results: Sequence[SetScores],
    output_format: str,
    *,
    quiet: bool,
    analyses: Sequence[dict[str, Any]] = (),
) -> str:
    """Return what a command prints.

    Args:
        results: scores of each test set.
        analyses: analysis of each test set, for JSON; none if it was not asked for.
        output_format: one of `FORMATS`.
        quiet: the numbers alone, if the format is text.
    """
    match output_format:
        case "json":
            sets = [_as_dict(of_set) for of_set in results]
            for found, analysis in zip(sets, analyses, strict=False):
                found["analysis"] = analysis
            return json.dumps(sets, indent=2, ensure_ascii=False) + "\n"
        case "latex":
            return _latex(results)
        case "markdown":
            return _markdown(results)
    if quiet:
        return "".join(map(_numbers, results))
    return _lines(results) if len(results[0].systems) == 1 else _terminal_table(results)


def _as_dict(of_set: SetScores) -> dict[str, Any]:
    """Return a test set for JSON; of a single system its scores alone."""
    scores = [[score.as_dict() for score in of_system] for of_system in of_set.scores]
    if len(scores) == 1:
        return {"name": of_set.name, "scores": scores[0]}
    systems = [
        {"name": name, "scores": of_system} for name, of_system in zip(of_set.systems, scores, strict=True)
    ]
    return {"name": of_set.name, "sentences": of_set.num_sentences, "systems": systems}


def _numbers(of_set: SetScores) -> str:
    """Return the numbers of a test set: a line for each score, or for each of several systems."""
    if len(of_set.systems) == 1:
        return "".join(f"{_number(score)}\n" for score in of_set.scores[0])
    rows = ("\t".join(map(_number, of_system)) for of_system in of_set.scores)
    return "".join(f"{row}\n" for row in rows)


def _number(score: Score) -> str:
    return f"{score.value:.{score.decimals}f}"


def _lines(results: Sequence[SetScores]) -> str:
    """Return the scores of one system as `sacrebleu` prints them."""
    lines = []
    for of_set in results:
        lines += [of_set.name] if len(results) > 1 else []
        lines += [score.format() for score in of_set.scores[0]]
    return "".join(f"{line}\n" for line in lines)


# --- tables -------------------------------------------------------------------------------------------------------


class _Cell(NamedTuple):
    """A score in a table.

    Attributes:
        score: the score.
        change: its difference from the baseline's, if it is not the baseline's own.
        is_best: whether none of the other systems scores better.
    """

    score: Score
    change: float | None
    is_best: bool

    @property
    def interval(self) -> str:
        """Half the width of the interval, or nothing."""
        if self.score.confidence is None:
            return ""
        return f" ± {self.score.confidence:.{self.score.decimals}f}"

    @property
    def test(self) -> str:
        """Difference from the baseline and its p-value, or nothing."""
        if self.score.p_value is None or self.change is None:
            return ""
        if self.change == 0:  # sacreBLEU's p-value would be small, as if no difference could not be chance
            return "no difference"
        star = "*" if self.is_significant else ""
        return f"{self.change:+.{self.score.decimals}f}, p = {self.score.p_value:.4f}{star}"

    @property
    def is_significant(self) -> bool:
        from mtkit.evaluation.significance import SIGNIFICANT

        return bool(self.change) and self.score.p_value is not None and self.score.p_value < SIGNIFICANT

    @property
    def is_better(self) -> bool:
        """Tell whether the system scores better than the baseline."""
        return self.change is not None and (self.change > 0) == self.score.higher_is_better


def _header(results: Sequence[SetScores]) -> list[str]:
    names = [score.name for score in results[0].scores[0]]
    interval = " ± 95 % CI"
    has_interval = [score.confidence is not None for score in results[0].scores[0]]
    metrics = [name + interval if has else name for name, has in zip(names, has_interval, strict=True)]
    return [*(["Test set"] if len(results) > 1 else []), "System", *metrics]


def _rows(results: Sequence[SetScores]) -> list[tuple[list[str], list[_Cell]]]:
    """Return the rows of a table: labels, and a cell for each metric. The name of a test set stands once."""
    rows = []
    for of_set in results:
        baseline = of_set.scores[0]
        best = [
            (max if column[0].higher_is_better else min)(score.value for score in column)
            for column in zip(*of_set.scores, strict=True)
        ]
        names = distinguish(of_set.systems)
        is_compared = any(score.p_value is not None for score in of_set.scores[-1])
        for number, (name, scores) in enumerate(zip(names, of_set.scores, strict=True)):
            label = f"{name} (baseline)" if number == 0 and is_compared else name
            cells = [
                _Cell(
                    score,
                    score.value - baseline[column].value if number else None,
                    len(of_set.scores) > 1 and score.value == best[column],
                )
                for column, score in enumerate(scores)
            ]
            labels = [of_set.name if number == 0 else ""] if len(results) > 1 else []
            rows.append(([*labels, label], cells))
    return rows


def distinguish(paths: Sequence[str]) -> list[str]:
    """Return paths without the folders in which all of them begin and the names in which all of them end."""
    parts = [Path(path).parts for path in paths]
    if len(parts) < 2:
        return list(paths)
    shortest = min(map(len, parts))
    start = next((i for i in range(shortest) if len({path[i] for path in parts}) > 1), shortest - 1)
    most = min(shortest - 1, shortest - start - 1)
    end = next((i for i in range(most) if len({path[-1 - i] for path in parts}) > 1), most)
    return [str(Path(*path[start : len(path) - end])) for path in parts]


def _notes(results: Sequence[SetScores]) -> list[str]:
    """Return what stands below a table: signatures and what the p-values are."""
    from mtkit.evaluation.significance import SIGNIFICANT

    notes = []
    for column, first in enumerate(results[0].scores[0]):
        signatures = {of_set.name: of_set.scores[0][column].signature for of_set in results}
        if len(set(signatures.values())) == 1:
            notes.append(f"{first.name}|{first.signature}")
        else:
            notes += [f"{first.name}|{signature} ({name})" for name, signature in signatures.items()]
    for of_set in results:
        tested = [score for scores in of_set.scores[1:] for score in scores if score.p_value is not None]
        if tested:
            sizes = f"({format_count(of_set.num_sentences, 'sentence')})" if len(results) == 1 else ""
            test = "approximate randomization" if "|ar:" in tested[0].signature else "bootstrap resampling"
            notes.append(
                f"p: paired {test} against {distinguish(of_set.systems)[0]} {sizes}".rstrip()
                + f"; * is p < {SIGNIFICANT}: the difference is hardly chance"
            )
            break
    return notes


def _terminal_table(results: Sequence[SetScores]) -> str:
    """Return a table with notes, in colors if stdout is a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    num_metrics = len(results[0].scores[0])
    for number, name in enumerate(_header(results)[-num_metrics - 1 :]):
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for (*test_set, name), cells in _rows(results):
        for title in filter(None, test_set):
            table.add_section()
            table.add_row(Text(title, style="bold"))
        texts = [Text(f"  {name}" if test_set else name)]
        for cell in cells:
            text = Text(_number(cell.score), style="bold" if cell.is_best else "")
            text.append(cell.interval, style="not bold dim")
            if cell.test:
                color = "green" if cell.is_better else "red"
                text.append(f"\n{cell.test}", style=f"not bold {color if cell.is_significant else 'dim'}")
            texts.append(text)
        table.add_row(*texts)
    return _print_table(table) + "\n" + "".join(f"{note}\n" for note in _notes(results))


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]], num_labels: int = 1) -> str:
    """Return a table whose first columns have labels and whose others have numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(Text(name), justify="left" if number < num_labels else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return _print_table(table)


def _print_table(table: Table) -> str:
    """Return a table as it looks on stdout: as wide as the terminal, or as it needs to be."""
    console = make_console(sys.stdout)
    if not is_terminal(sys.stdout):
        console.width = console.measure(table, options=console.options.update(width=10_000)).maximum
    with console.capture() as capture:
        console.print(table)
    rendered = "".join(f"{line.rstrip()}\n" for line in capture.get().rstrip().split("\n"))
    return rendered.lstrip("\n")


def _markdown(results: Sequence[SetScores]) -> str:
    """Return a table of GitHub's Markdown, with notes below it."""

    def cell(found: _Cell) -> str:
        value = f"**{_number(found.score)}**" if found.is_best else _number(found.score)
        return value + found.interval + (f"<br>{found.test.replace('*', escaped_star)}" if found.test else "")

    escaped_star = r"\*"
    header = _header(results)
    rows = [[*map(escape_markdown, names), *map(cell, cells)] for names, cells in _rows(results)]
    table = markdown_table(header, rows, len(header) - len(results[0].scores[0]))
    notes = [note.replace("; * is", f"; {escaped_star} is") for note in _notes(results)]
    signatures = [note if note.startswith("p: ") else f"`{note}`" for note in notes]
    return table + "\n" + "".join(f"- {note}\n" for note in signatures)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], num_labels: int = 1) -> str:
    """Return a table of GitHub's Markdown.

    Args:
        header: titles of the columns, escaped.
        rows: cells, escaped.
        num_labels: number of the first columns, which are aligned left; the others are aligned right.
    """
    rules = ["---"] * num_labels + ["---:"] * (len(header) - num_labels)
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rules, *rows))


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}  # fmt: skip


def _latex(results: Sequence[SetScores]) -> str:
    """Return a table for LaTeX (package booktabs), with the notes as comments before it."""

    def cell(found: _Cell) -> str:
        value = f"\\textbf{{{_number(found.score)}}}" if found.is_best else _number(found.score)
        change, comma, p_value = found.test.partition(", ")
        test = f"${change}$, ${p_value.replace('*', '^{*}')}$" if comma else change
        test = f" [{test}]" if test else ""
        return value + escape_latex(found.interval) + test

    header = _header(results)
    rows = [[*map(escape_latex, names), *map(cell, cells)] for names, cells in _rows(results)]
    notes = "".join(f"% {note}\n" for note in _notes(results))
    num_labels = len(header) - len(results[0].scores[0])
    return notes + latex_table(list(map(escape_latex, header)), rows, num_labels)


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]], num_labels: int = 1) -> str:
    """Return a table for LaTeX (package booktabs).

    Args:
        header: titles of the columns, escaped.
        rows: cells, escaped.
        num_labels: number of the first columns, which are aligned left; the others are aligned right.
    """
    first, *others = (" & ".join(row) + r" \\" for row in (header, *rows))
    lines = [
        f"\\begin{{tabular}}{{{'l' * num_labels}{'r' * (len(header) - num_labels)}}}",
        "\\toprule",
        first,
        "\\midrule",
        *others,
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "".join(f"{line}\n" for line in lines)


def escape_latex(text: str) -> str:
    """Return a text as LaTeX shows it."""
    escaped = re.sub(r"[\\~^&%$#_{}]", lambda found: _LATEX[found[0]], text)
    return escaped.replace("±", r"$\pm$")


def escape_markdown(text: str) -> str:
    """Return a text as Markdown shows it."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", text)
