"""Scores of systems as the options of `mtkit evaluate` ask for them: of whole test sets, and of each sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mtkit.cli.terminal import open_output
from mtkit.cli.test_sets import TestSet

if TYPE_CHECKING:
    from mtkit.evaluation.external_metrics import ExternalScore
    from mtkit.evaluation.metrics import Score


class Scoring(NamedTuple):
    """Settings of the scores.

    Attributes:
        metrics: names of metrics.
        tokenize: tokenizer of sacreBLEU for BLEU; None for that of the language.
        lowercase: whether to ignore case.
        tgt: code of the target language, if it is known.
        paired: paired test: bs, ar or none.
        resamples: bootstrap resamples; 0 for none.
        trials: trials of approximate randomization.
        seed: seed of both.
    """

    metrics: list[str]
    tokenize: str | None
    lowercase: bool
    tgt: str | None
    paired: str
    resamples: int
    trials: int
    seed: int


def add_intervals(of_set: Sequence[ExternalScore], scoring: Scoring) -> list[Score]:
    """Return the scores of systems under a metric that runs elsewhere, with intervals and p-values."""
    from mtkit.evaluation.segment_means import score_means

    return score_means(
        of_set,
        paired=scoring.paired,
        num_bootstrap=scoring.resamples,
        num_trials=scoring.trials,
        seed=scoring.seed,
    )


def score_systems(systems: Sequence[list[str]], refs: list[list[str]], scoring: Scoring) -> list[list[Score]]:
    """Return the scores of each system on a test set."""
    from mtkit.evaluation.metrics import score
    from mtkit.evaluation.significance import compare

    names, tokenize, lowercase, tgt, paired, resamples, trials, seed = scoring
    if not names:
        return [[] for _ in systems]
    match paired if len(systems) > 1 else "none":
        case "bs" | "ar" as test:
            return compare(
                systems, refs, names, test=test, tokenize=tokenize, lowercase=lowercase, tgt=tgt,
                num_bootstrap=resamples, num_trials=trials, seed=seed,
            )  # fmt: skip
    return [
        score(
            hyps,
            refs,
            names,
            tokenize=tokenize,
            lowercase=lowercase,
            tgt=tgt,
            num_bootstrap=resamples,
            seed=seed,
        )
        for hyps in systems
    ]


def write_segments(
    path: str,
    hyps_of: Mapping[str, list[list[str]]],
    sets: Sequence[TestSet],
    scoring: Scoring,
    external: Sequence[Sequence[Sequence[ExternalScore]]],
) -> None:
    """Write a line for each sentence of each system: test set, number, system, scores, tab-separated.

    The titles of the scores are their signatures, with `nrefs:var` if the test sets differ in their references.

    Raises:
        StorageError: If the file cannot be written.
    """
    from mtkit.evaluation.metrics import SentenceScores, score_sentences

    with open_output(path) as out:
        found: list[tuple[str, str, list[SentenceScores]]] = []
        for number, test in enumerate(sets):
            for system, (name, hyps) in enumerate(hyps_of.items()):
                columns = score_sentences(
                    hyps[number], test.refs, scoring.metrics, tokenize=scoring.tokenize,
                    lowercase=scoring.lowercase, tgt=scoring.tgt,
                )  # fmt: skip
                for of_metric in external:
                    own = of_metric[number][system]
                    columns.append(SentenceScores(own.name, list(own.segments), own.signature))
                found.append((test.name, name, columns))
        titles = []
        for of_column in zip(*(columns for _, _, columns in found), strict=True):
            signatures = {column.signature for column in of_column}
            # of `nrefs:1` and `nrefs:2-mean` of an external metric, the latter
            signature = max(signatures, key=len)
            if len(signatures) > 1:
                signature = re.sub(r"nrefs:\d+", "nrefs:var", signature)
            titles.append(f"{of_column[0].name}|{signature}")
        out.write("\t".join(["test set", "sentence", "system", *titles]) + "\n")
        for test_name, name, columns in found:
            for line, values in enumerate(zip(*(column.values for column in columns), strict=True), 1):
                numbers = (f"{value:.6f}" for value in values)
                out.write("\t".join([test_name, str(line), name, *numbers]) + "\n")
