"""Results of changed copies of a test set as rows of a table. They are plain data, as in JSON and results.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOTE = (
    "Δ: difference from clean. Loops, copies of the source, too long, too short: lines with such a translation. Lost: "
    "numbers, URLs, e-mail addresses and emoji that a translation lacks."
)
"""What the columns mean."""

_FAULTS = {"loops": "loops", "copies": "copies", "too_long": "too long", "too_short": "too short"}
"""Titles of the faults, by their keys."""


def robustness_header(clean: Mapping[str, Any]) -> list[str]:
    """Return the titles of the columns after that of the copy's name.

    Args:
        clean: result of the clean copy: see `CopyResult.as_dict`.
    """
    return [
        "lines",
        *(title for score in clean["scores"] for title in (score["name"], "Δ")),
        *_FAULTS.values(),
        "lost",
    ]


def robustness_cells(result: Mapping[str, Any], clean: Mapping[str, Any]) -> list[str]:
    """Return the cells of a copy's row, under `robustness_header`."""
    cells = [f"{result['lines']:,}"]
    scores = {score["name"]: score for score in result["scores"]}
    for name in (score["name"] for score in clean["scores"]):
        score = scores.get(name)
        is_changed = score is not None and result["copy"] != clean["copy"]
        cells += ["–" if score is None else f"{score['score']:.2f}"]
        cells += [f"{score['difference']:+.2f}" if score is not None and is_changed else "–"]
    cells += [f"{result[key]['part']:,}" for key in _FAULTS]
    lost, whole = (sum(share[key] for share in result["lost"].values()) for key in ("part", "whole"))
    return [*cells, f"{lost:,}/{whole:,}" if whole else "–"]
