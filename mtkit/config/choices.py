"""Names that both the config and the modules behind it know. Without pydantic, so that the command line starts fast."""

from __future__ import annotations

from typing import Literal, get_args

Metric = Literal["bleu", "chrf", "chrf++", "ter"]
METRICS: tuple[Metric, ...] = get_args(Metric)
"""Metrics of sacreBLEU by which translations are scored."""

TrainPrecision = Literal["auto", "fp32", "bf16", "fp16"]
Precision = Literal[TrainPrecision, "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Precisions in which a model can translate; in all but int8 it can be trained."""
