"""Choices that the config shares with other modules. Free of pydantic, so that the command line starts quickly."""

from __future__ import annotations

from typing import Literal, get_args

Metric = Literal["bleu", "chrf", "chrf++", "ter"]
METRICS: tuple[Metric, ...] = get_args(Metric)
"""Metrics of sacreBLEU that can score translations."""
DEFAULT_METRICS: tuple[Metric, ...] = ("bleu", "chrf++", "ter")
"""Metrics that `mtkit evaluate` and `mtkit.evaluate` report by default."""

TrainPrecision = Literal["auto", "fp32", "bf16", "fp16"]
Precision = Literal[TrainPrecision, "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Precisions in which a model can translate; in all but int8 it can be trained."""
