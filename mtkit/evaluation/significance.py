"""Comparison of systems that translated the same sentences: is a difference in score more than chance?

The tests give what `sacrebleu --paired-bs` and `--paired-ar` give: paired bootstrap resampling
(Koehn 2004) and paired approximate randomization (Riezler and Maxwell 2005).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from mtkit.config.choices import DEFAULT_METRICS
from mtkit.errors import ConfigError, DataError
from mtkit.evaluation.metrics import (
    DEFAULT_SEED,
    ERROR_RATES,
    Score,
    bootstrap_seed,
    build_metrics,
    check_streams,
    resample,
    score,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from sacrebleu.metrics.base import Metric, Signature
    from sacrebleu.significance import Result

SIGNIFICANT = 0.05
"""p-value below which a difference is called significant."""

PairedTest = Literal["bs", "ar"]
"""Paired tests, as sacreBLEU's signatures name them: bootstrap resampling, approximate randomization."""


def compare(
    systems: Sequence[Sequence[str]],
    refs: Sequence[Sequence[str | None]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    test: PairedTest = "bs",
    tokenize: str | None = None,
    lowercase: bool = False,
    tgt: str | None = None,
    num_bootstrap: int = 1000,
    num_trials: int = 10_000,
    seed: int = DEFAULT_SEED,
) -> list[list[Score]]:
    """Score several systems, and test the difference of each from the first, the baseline.

    Args:
        systems: translations of each system, the baseline's first.
        refs: see `score`, as are `metrics`, `tokenize`, `lowercase` and `tgt`.
        metrics: names of metrics.
        test: bootstrap resampling or approximate randomization.
        tokenize: tokenizer for BLEU.
        lowercase: whether to ignore case.
        tgt: code of the target language.
        num_bootstrap: resamples for the test "bs" and for the 95% intervals; with the test "ar", 0 computes none.
        num_trials: trials of the test "ar".
        seed: seed for both; sacreBLEU takes 0 for none.

    Returns:
        For each system one score per metric. All but the baseline's have p-values. Of a score equal to the baseline's
        it is small in sacreBLEU, and means nothing.

    Raises:
        DataError: If there is nothing to compare, streams differ in length, a sentence has no reference, or a model of
            a tokenizer cannot be downloaded.
        ConfigError: If a metric or tokenizer is unknown or not installed, or a number is too small.
    """
    if len(systems) < 2:
        raise DataError(f"{len(systems)} systems cannot be compared", hint="give at least two")
    for hyps in systems:
        check_streams(hyps, refs)
    if seed < 1 or num_bootstrap < (2 if test == "bs" else 0) or num_bootstrap == 1 or num_trials < 1:
        raise ConfigError("too few resamples or trials, or no seed", hint="usual are 1000, 10000 and 12345")
    by_metric = [
        compare_under(metric, systems, refs, test, num_bootstrap, num_trials, seed)
        for metric in build_metrics(metrics, tokenize, lowercase, tgt)
    ]
    return [list(of_system) for of_system in zip(*by_metric, strict=True)]


def compare_under(
    metric: Metric,
    systems: Sequence[Sequence[str]],
    refs: Sequence[Sequence[str | None]],
    test: PairedTest,
    num_bootstrap: int,
    num_trials: int,
    seed: int,
) -> list[Score]:
    """Return the score of each system under one metric."""
    from sacrebleu.significance import PairedTest as SacrebleuTest
    from sacrebleu.significance import Result

    streams = cast(list[list[str]], [list(stream) for stream in refs])
    if test == "bs":
        name, signature, found = _paired_bootstrap(metric, systems, streams, num_bootstrap, seed)
    else:
        named: list[tuple[str, Sequence[str]]] = [
            (str(number), list(hyps)) for number, hyps in enumerate(systems)
        ]
        with bootstrap_seed(seed):
            run = SacrebleuTest(
                named,
                {"metric": metric},
                streams,
                test_type=test,
                n_samples=num_trials,
                n_ar_confidence=num_bootstrap or -1,
            )
            signatures, results = run()
        [(name, signature)] = signatures.items()
        found = cast(list[Result], results[name])

    def number(value: float | None) -> float | None:
        return None if value is None else float(value)

    return [
        Score(
            name=name,
            value=float(result.score),
            signature=signature.format(),
            mean=number(result.mean),
            confidence=number(result.ci),
            p_value=number(result.p_value),
            higher_is_better=name not in ERROR_RATES,
        )
        for result in found
    ]


def _paired_bootstrap(
    metric: Metric, systems: Sequence[Sequence[str]], streams: list[list[str]], number: int, seed: int
) -> tuple[str, Signature, list[Result]]:
    """Return the metric's name, its signature and the results of sacreBLEU's test; for the memory, see `resample`."""
    import numpy as np
    from sacrebleu.significance import Result, _compute_p_value, estimate_ci

    results: list[Result] = []
    resampled: list[npt.NDArray[np.floating[Any]]] = []
    for hyps in systems:
        stats = metric._extract_corpus_statistics(list(hyps), streams)
        score = metric._aggregate_and_compute(stats)
        resampled.append(np.array([each.score for each in resample(stats, metric, number, seed)]))
        result = Result(score.score, None, *estimate_ci(resampled[-1]))
        if results:
            differences = np.abs(resampled[-1] - resampled[0])
            difference = abs(results[0].score - score.score)
            result.p_value = _compute_p_value(differences - differences.mean(), difference)
        results.append(result)
    signature = metric.get_signature()
    signature.update("seed", str(seed))
    signature.update("bs", number)
    return score.name, signature, results


@dataclass(frozen=True)
class Difference:
    """Difference between the scores of two systems on the same sentences.

    Attributes:
        name: sacreBLEU's name of the metric.
        before, after: scores of both systems.
        low, high: 95% interval of `after - before`.
        signature: sacreBLEU's signature of the scores.
    """

    name: str
    before: float
    after: float
    low: float
    high: float
    signature: str

    @property
    def value(self) -> float:
        """`after - before`."""
        return self.after - self.before


def paired_difference(
    before: Sequence[str],
    after: Sequence[str],
    refs: Sequence[Sequence[str]],
    metric: str,
    *,
    tokenize: str | None = None,
    tgt: str | None = None,
    num_bootstrap: int = 1000,
) -> Difference:
    """Compare two systems, with the interval of paired bootstrap resampling (Koehn 2004).

    Args:
        before, after: translations by both systems.
        refs: streams of references.
        metric: name from `METRICS`.
        tokenize, tgt: see `score`.
        num_bootstrap: resamples of the sentences, each scored for both systems.

    Raises:
        DataError: If there is nothing to score, or streams differ in length.
        ConfigError: If the metric or tokenizer is unknown or not installed.
    """
    import numpy as np

    check_streams(before, refs)
    check_streams(after, refs)
    [built] = build_metrics([metric], tokenize, lowercase=False, tgt=tgt)
    streams = [list(stream) for stream in refs]
    statistics = [
        np.array(built._extract_corpus_statistics(list(hyps), streams), dtype=float)
        for hyps in (before, after)
    ]
    rng = np.random.default_rng(DEFAULT_SEED)

    def scores(rows: npt.NDArray[np.int64]) -> list[float]:
        return [
            float(built._compute_score_from_stats(own[rows].sum(axis=0).tolist()).score) for own in statistics
        ]

    first, second = scores(np.arange(len(before)))
    resampled = [scores(rng.integers(len(before), size=len(before))) for _ in range(num_bootstrap)]
    low, high = np.percentile([b - a for a, b in resampled], [2.5, 97.5]).tolist()
    [own] = score(after, refs, [metric], tokenize=tokenize, tgt=tgt)
    return Difference(own.name, first, second, low, high, own.signature)
