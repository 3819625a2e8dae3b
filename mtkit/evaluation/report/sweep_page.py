"""The page of a sweep: a table of its trials, and the curve of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtkit import __version__
from mtkit.evaluation import metrics
from mtkit.evaluation.history import Points, read_history
from mtkit.evaluation.report.charts import line_chart
from mtkit.evaluation.report.document import render_document
from mtkit.evaluation.run_files import METRICS_FILE, REPORT_MARK
from mtkit.formatting import format_duration

_MOST_CURVES = 8
"""Curves that colors tell apart."""


def render_sweep(
    title: str,
    metric: str,
    num_rungs: int,
    rows: Sequence[Mapping[str, Any]],
    script: str,
) -> str:
    """Return the page of a sweep.

    Args:
        title: what was swept.
        metric: what trials are compared by.
        num_rungs: number of rungs.
        rows: the trials, best first, as in sweep.json.
        script: script that draws the charts, from `vega_bundle`.
    """
    curves: dict[str, Points] = {}
    for row in rows:
        run = Path(row["run"])
        has_begun = (run / METRICS_FILE).exists()  # a trial may fail before its first update
        if len(curves) < _MOST_CURVES and has_begun and (curve := read_history(run).valid_curve(metric)):
            curves[f"{row['trial']}: {_values(row)}"] = curve
    charts = []
    if curves:
        direction = "highest" if metrics.HIGHER_IS_BETTER.get(metric) else "lowest"
        best = max if direction == "highest" else min
        description = "; ".join(
            f"{name}: {direction} {best(value for _, value in curve):.4g}" for name, curve in curves.items()
        )
        charts.append(line_chart(f"{metric} in validation", description, curves, unit=metric, points=True))
    digits = 4 if metric == "loss" else 2
    table = [
        {
            "trial": row["trial"],
            "values": _values(row),
            "scores": [
                "" if rung >= len(row["scores"]) else _score(row["scores"][rung], digits)
                for rung in range(num_rungs)
            ],
            "steps": f"{row['steps']:,}",
            "time": format_duration(60 * row["minutes"]),
            "failure": row["failure"] or "",
        }
        for row in rows
    ]
    content = {
        "title": title,
        "metric": metric,
        "num_rungs": num_rungs,
        "table": table,
        "charts": charts,
        "most_curves": _MOST_CURVES,
        "mark": REPORT_MARK,
        "version": __version__,
    }
    data = {"charts": charts, "runs": [], "sentences": [], "attention": []}
    return render_document("sweep", content, data, script, like="report")


def _values(row: Mapping[str, Any]) -> str:
    """Return the values of a trial, each with its short key."""
    keys = short_keys(list(row["values"]))
    return ", ".join(f"{key} {value}" for key, value in zip(keys, row["values"].values(), strict=True))


def short_keys(keys: Sequence[str]) -> list[str]:
    """Return the last part of each dotted key, or the whole keys if two have the same one."""
    short = [key.rpartition(".")[2] for key in keys]
    return short if len(set(short)) == len(short) else list(keys)


def _score(score: float | None, digits: int) -> str:
    return "failed" if score is None else f"{score:.{digits}f}"
