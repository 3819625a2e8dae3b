"""The page of a report about one run, or several that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from statistics import median
from typing import Any

from mtkit import __version__
from mtkit.evaluation import metrics
from mtkit.evaluation.history import Points, is_number
from mtkit.evaluation.report.analysis_section import analysis_section
from mtkit.evaluation.report.charts import Spec, line_chart
from mtkit.evaluation.report.content import RunReport, TestAnalysis, shared_tests
from mtkit.evaluation.report.document import render_document
from mtkit.evaluation.report.facts_section import fact_groups
from mtkit.evaluation.report.samples import evenly, sample_histories
from mtkit.evaluation.robustness_table import NOTE, robustness_cells, robustness_header
from mtkit.evaluation.run_files import REPORT_MARK
from mtkit.evaluation.significance import SIGNIFICANT, compare
from mtkit.formatting import format_duration, format_number

_METRIC_NAMES = {"bleu": "BLEU", "chrf": "chrF", "chrf++": "chrF++", "ter": "TER", "loss": "loss",
                 "perplexity": "perplexity"}  # fmt: skip
_COMPARED = ("bleu", "chrf")
"""Metrics whose difference between runs is tested."""
_MAX_TABLE_ROWS = 40
_MAX_SENTENCE_BYTES = 1_000_000
"""Most bytes of the sentences of test sets on a page."""


def render_report(runs: Sequence[RunReport], analyses: Sequence[TestAnalysis], script: str) -> str:
    """Return the page of one or several runs.

    Args:
        runs: the runs, with names that differ; others are compared with the first.
        analyses: analysis of test sets that all runs have translated.
        script: script that draws the charts, from `vega_bundle`.

    Raises:
        DataError: If a model of a tokenizer for BLEU cannot be loaded.
        ConfigError: If the tokenizer is unknown or not installed.
    """
    curves, sentences = _make_charts(runs), _sentences(runs)
    sections = [analysis_section(each) for each in analyses]
    charts = [*curves, *(chart for section in sections for chart in section["charts"])]
    names = [run.name for run in runs]
    attention = runs[0].attention if len(runs) == 1 else []
    data = {"charts": charts, "runs": names, "sentences": sentences, "attention": attention}
    directions = dict.fromkeys(f"{run.src} → {run.tgt}" for run in runs)
    content = {
        "title": names[0] if len(runs) == 1 else " and ".join([", ".join(names[:-1]), names[-1]]),
        "direction": ", ".join(directions),
        "runs": runs,
        "figures": [_key_figures(run) for run in runs],
        "curves": curves,
        "analyses": sections,
        "robustness": _robustness(runs),
        "robustness_note": NOTE,
        "validations": [_validation_table(run) for run in runs],
        "comparisons": _comparisons(runs),
        "differences": _config_differences(runs),
        "samples": [sample_histories(run.history) for run in runs],
        "facts": [fact_groups(run) for run in runs],
        "attention": attention,
        "has_sentences": bool(sentences),
        "mark": REPORT_MARK,
        "significant": SIGNIFICANT,
        "version": __version__,
    }
    return render_document("report", content, data, script)


# --- charts -------------------------------------------------------------------------------------------------------


def _make_charts(runs: Sequence[RunReport]) -> list[Spec]:
    """Return the specifications of all charts that the histories have numbers for."""
    charts = [_loss_chart(runs)]
    recorded = dict.fromkeys(name for run in runs for name in run.history.valid_names())
    for name in filter(metrics.HIGHER_IS_BETTER.__contains__, recorded):
        extreme = "highest" if metrics.HIGHER_IS_BETTER[name] else "lowest"
        shown = _metric_name(name)
        curves = {run.name: run.history.valid_curve(name) for run in runs}
        charts.append(_run_chart(f"{shown} in validation", curves, unit=shown, extreme=extreme, points=True))
    for title, name, unit, size in (
        ("Learning rate", "lr", "learning rate", 1),
        ("Speed", "target_tokens_per_second", "target tokens per second", 1),
        ("Gradient norm", "grad_norm", "norm before clipping", 1),
        ("Peak memory", "memory", "GB", 1e9),
    ):
        curves = {
            run.name: [(step, value / size) for step, value in run.history.train_curve(name)] for run in runs
        }
        charts.append(_run_chart(title, curves, unit=unit, extreme="highest", zero=True))
    return [chart for chart in charts if chart["data"]["values"]]


def _loss_chart(runs: Sequence[RunReport]) -> Spec:
    """Return the chart of the loss per target token in training and validation."""
    curves, kinds, owners = {}, {}, {}
    for run in runs:
        history = run.history
        for kind, curve in (
            ("training", history.train_curve("nll")),
            ("validation", history.valid_curve("loss")),
        ):
            if curve:
                name = kind if len(runs) == 1 else f"{run.name}, {kind}"
                curves[name], kinds[name], owners[name] = curve, kind, run.name
    description = "Negative log-likelihood per target token. " + _describe(curves, "lowest")
    several = len(runs) > 1
    return line_chart(
        "Loss",
        description,
        curves,
        unit="nats per token",
        dashes=kinds if several else None,
        colors=owners if several else None,
        series=[run.name for run in runs] if several else (),
    )


def _run_chart(
    title: str,
    curves: dict[str, Points],
    *,
    unit: str,
    extreme: str,
    points: bool = False,
    zero: bool = False,
) -> Spec:
    """Return a chart of the curves that have points."""
    series = list(curves)
    curves = {name: curve for name, curve in curves.items() if curve}
    description = _describe(curves, extreme)
    return line_chart(title, description, curves, unit=unit, series=series, points=points, zero=zero)


def _describe(curves: dict[str, Points], extreme: str) -> str:
    """Say in words where each curve starts, ends and has its extreme."""
    sentences = []
    for name, curve in curves.items():
        step, value = (max if extreme == "highest" else min)(curve, key=lambda point: point[1])
        (first, start), (last, end) = curve[0], curve[-1]
        sentences.append(
            f"{name}: {format_number(start)} at update {first:,}, {format_number(end)} at update {last:,}, "
            f"{extreme} {format_number(value)} at update {step:,}."
        )
    return " ".join(sentences)


def _metric_name(name: str) -> str:
    """Return the name of a number of a validation as it is written in text; of a set, after the name of the set."""
    of_set, _, metric = name.rpartition("/")
    shown = _METRIC_NAMES.get(metric, metric)
    return f"{of_set}: {shown}" if of_set else shown


# --- one run ------------------------------------------------------------------------------------------------------


def _key_figures(run: RunReport) -> list[tuple[str, str, str]]:
    """Return what is told at the top of a page: label, number and a remark."""
    history, figures = run.history, []
    if history.best is not None and is_number(value := history.best.get(run.best)):
        label, step = f"best {_metric_name(run.best)}, validation", history.best["step"]
        figures.append((label, _decimals(value, run.best), f"at update {step:,}"))
    for test in run.tests[:2]:
        for score in test.scores[:1]:
            interval = "" if score.confidence is None else f"± {score.confidence:.2f}, "
            figures.append((f"{score.name}, test", f"{score.value:.2f}", f"{interval}{test.name}"))
    epochs = "" if history.epochs is None else f"{history.epochs:.1f} epochs"
    figures.append(("updates", f"{history.last_step:,}", epochs))
    if history.seconds is not None:
        speeds = [value for _, value in history.train_curve("target_tokens_per_second")]
        remark = f"{format_number(round(median(speeds)))} target tokens/s" if speeds else ""
        figures.append(("training time", format_duration(history.seconds), remark))
    if isinstance(parameters := run.facts.get("parameters"), int):
        figures.append(("parameters", _in_millions(parameters), ""))
    return figures


def _robustness(runs: Sequence[RunReport]) -> list[dict[str, Any]]:
    """Return a table of changed copies for each test set of each run that has them."""
    tables = []
    for run in runs:
        for test in run.tests:
            with suppress(KeyError, TypeError, ValueError, IndexError):  # none, or of another version
                clean = test.robustness[0]
                rows = [(copy["copy"], robustness_cells(copy, clean)) for copy in test.robustness]
                name = test.name if len(runs) == 1 else f"{run.name}, {test.name}"
                tables.append({"name": name, "header": robustness_header(clean), "rows": rows})
    return tables


def _in_millions(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 100_000 else f"{number:,}"


def _validation_table(run: RunReport) -> dict[str, Any]:
    """Return the validations as a table: names of the columns, rows of cells, and how many rows are left out."""
    history = run.history
    names = history.valid_names()
    records = history.validations
    chosen = evenly(len(records), _MAX_TABLE_ROWS)
    rows = [
        {
            "step": records[index]["step"],
            "best": records[index].get("best") is True,
            "cells": [_decimals(records[index].get(name), name) for name in names],
        }
        for index in chosen
    ]
    return {
        "names": [_metric_name(name) for name in names],
        "rows": rows,
        "left_out": len(records) - len(rows),
    }


def _decimals(value: Any, name: str) -> str:
    """Return a number with the decimals that a validation shows, or a dash."""
    if not isinstance(value, int | float):
        return "–"
    return f"{value:.4f}" if name.rpartition("/")[2] == "loss" else f"{value:,.2f}"


# --- several runs -------------------------------------------------------------------------------------------------


def _comparisons(runs: Sequence[RunReport]) -> list[dict[str, Any]]:
    """Return the differences of test scores between the first run and each other, with p-values.

    Raises:
        DataError: If a model of a tokenizer for BLEU cannot be loaded.
        ConfigError: If the tokenizer is unknown or not installed.
    """
    if not runs:
        return []
    first, *others = runs
    rows = []
    for test in filter(lambda test: test.is_complete, first.tests):
        matches = {other.name: match for other in others if (match := other.same_test(test)) is not None}
        if not matches:
            continue
        baseline, *systems = compare(
            [test.hyps, *(match.hyps for match in matches.values())],
            [test.refs],
            _COMPARED,
            tokenize=first.bleu_tokenizer,
            tgt=first.tgt,
        )
        rows += [
            {
                "test": test.name,
                "run": name,
                "metric": after.name,
                "difference": after.value - before.value,
                "p_value": after.p_value,
                "is_significant": after.p_value is not None and after.p_value < SIGNIFICANT,
                "is_equal": after.value == before.value,
            }
            for name, scores in zip(matches, systems, strict=True)
            for before, after in zip(baseline, scores, strict=True)
        ]
    return rows


def _config_differences(runs: Sequence[RunReport]) -> list[tuple[str, list[str]]]:
    """Return the keys whose values differ between the runs, apart from the run folder, each with its values."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "run")
    values = [(key, [run.settings.get(key, "–") for run in runs]) for key in keys]
    return [(key, found) for key, found in values if len(set(found)) > 1]


def _sentences(runs: Sequence[RunReport]) -> list[dict[str, Any]]:
    """Return the sentences of test sets that all runs have, with the chrF of each translation.

    Of sets too large for a page, the sentences at the beginning are told.
    """
    found, left = [], _MAX_SENTENCE_BYTES
    for tests in shared_tests(runs):
        test, systems = tests[0], [own.hyps for own in tests]
        rows: list[dict[str, Any]] = []
        for number, (src, ref, *hyps) in enumerate(zip(test.srcs, test.refs, *systems, strict=True), 1):
            left -= sum(len(text.encode()) for text in (src, ref, *hyps))
            if left < 0:
                break
            rows.append({"n": number, "src": src, "ref": ref, "hyps": hyps})
        refs = [row["ref"] for row in rows]
        by_system = (
            metrics.score_sentences([row["hyps"][i] for row in rows], [refs], ["chrf"])
            for i in range(len(systems) if rows else 0)
        )
        scores = [found_scores.values for [found_scores] in by_system]
        for row, *chrf in zip(rows, *scores, strict=True):
            row["chrf"] = [round(score, 1) for score in chrf]
        if rows:
            found.append({"name": test.name, "of": len(test.srcs), "rows": rows})
    return found
