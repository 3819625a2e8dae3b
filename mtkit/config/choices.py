"""Choices that the config shares with other modules. Free of pydantic, so that the command line starts quickly."""

from __future__ import annotations

from typing import Literal, get_args

Metric = Literal["bleu", "chrf", "chrf++", "ter"]
METRICS: tuple[Metric, ...] = get_args(Metric)
"""Metrics of sacreBLEU that can score translations."""
DEFAULT_METRICS: tuple[Metric, ...] = ("bleu", "chrf++", "ter")
"""Metrics that `mtkit evaluate` and `mtkit.evaluate` report by default."""

_FloatPrecision = Literal["auto", "fp32", "bf16", "fp16"]
TrainPrecision = Literal[_FloatPrecision, "fp8"]
Precision = Literal[_FloatPrecision, "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Precisions in which a model can translate."""

MOST_THREADS = 1024
"""The largest number of threads; PyTorch cannot start any number of them."""
