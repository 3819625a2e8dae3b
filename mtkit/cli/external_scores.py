"""Scores of metrics that run in a Python environment of their own, for `mtkit evaluate --metric`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mtkit.cli.terminal import print_stderr
from mtkit.cli.test_sets import TestSet
from mtkit.errors import ConfigError, MtkitError
from mtkit.translation.options import LineProgress

if TYPE_CHECKING:
    from mtkit.evaluation.external_metrics import ExternalScore
    from mtkit.evaluation.metric_commands import MetricCommand

    ExternalScores = tuple[list[list[list[ExternalScore]]], list[MtkitError]]
    """For each metric that did not fail, and each test set, the score of each system; then the errors."""


def metric_commands(names: Sequence[str], environments: Sequence[str]) -> list[MetricCommand]:
    """Return what to start for each external metric.

    Args:
        names: the metrics, `METRIC[:MODEL]`.
        environments: `PATH`, for all of them, or `METRIC=PATH`, for one.

    Raises:
        ConfigError: If a metric, file or environment does not exist, or an environment is for no metric.
    """
    from mtkit.evaluation.metric_commands import EXTERNAL_METRICS, metric_command

    of_all: str | None = None
    of_one: dict[str, str] = {}
    for environment in environments:
        name, is_named, path = environment.partition("=")
        if is_named and any(name in (metric, metric.partition(":")[0]) for metric in names):
            of_one[name] = path
        elif is_named and name in EXTERNAL_METRICS:
            raise ConfigError(f"{name} is none of the metrics", where="--metric-env", hint=f"--metric {name}")
        elif of_all is None:
            of_all = environment
        else:
            hint = "one for all metrics, or METRIC=PATH for each"
            raise ConfigError(f"given twice: {of_all} and {environment}", where="--metric-env", hint=hint)
    if environments and not names:
        what = "--metric-env needs a metric that runs elsewhere"
        raise ConfigError(what, hint="for example --metric comet")
    return [
        metric_command(name, of_one.get(name, of_one.get(name.partition(":")[0], of_all))) for name in names
    ]


def score_elsewhere(
    commands: Sequence[MetricCommand],
    hyps_of: Mapping[str, list[list[str]]],
    sets: Sequence[TestSet],
    device: str,
    silence_seconds: float,
    *,
    quiet: bool,
) -> ExternalScores:
    """Return the scores of metrics, and the errors of those that failed.

    What a metric scored before its error is printed to stderr.
    """
    from mtkit.evaluation.external_metrics import ExternalMetric

    complete: list[list[list[ExternalScore]]] = []
    faults: list[MtkitError] = []
    for command in commands:
        scored: list[list[ExternalScore]] = []
        try:
            with ExternalMetric(command, device=device, silence_seconds=silence_seconds) as metric:
                for number, test in enumerate(sets):
                    scored.append([])
                    srcs = test.src_texts
                    if "src" in metric.inputs and srcs is None:
                        what = f"{metric.name} reads the source"
                        raise ConfigError(
                            what, where=test.name, hint="give it: --src FILE, or --test SRC,REF"
                        )
                    for hyps in hyps_of.values():
                        scored[-1].append(
                            metric.score(srcs, hyps[number], test.refs, None if quiet else _Progress())
                        )
        except MtkitError as error:
            faults.append(error)
            for test, of_set in zip(sets, scored, strict=False):
                for system, score in zip(hyps_of, of_set, strict=False):
                    print_stderr(f"{test.name}: {system}: {score.format()}")
            continue
        complete.append(scored)
    return complete, faults


class _Progress:
    """Report of progress from the number of segments that are done."""

    def __init__(self) -> None:
        self._report = LineProgress(print_stderr)
        self._done = 0

    def __call__(self, done: int) -> None:
        self._report(max(0, done - self._done))
        self._done = max(done, self._done)
