"""Content of a report, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mtkit.evaluation.history import History
from mtkit.evaluation.metrics import Score
from mtkit.evaluation.runs import RunState

if TYPE_CHECKING:
    from mtkit.config.sections import ModelConfig


@dataclass(frozen=True)
class TestSet:
    """Translations and scores of a test set.

    Attributes:
        name: its name.
        scores: its scores, with intervals if the references could be read.
        setup: precision, device and search of the translations, in words.
        hyps: the translations; empty if they could not be read.
        srcs: source lines; empty if they could not be read.
        refs: references, likewise.
        problem: why there are no intervals, or None.
        robustness: results of changed copies, as plain data, the clean copy first; empty if they were not measured.
    """

    name: str
    scores: list[Score]
    setup: str
    hyps: list[str] = field(default_factory=list, repr=False)
    srcs: list[str] = field(default_factory=list, repr=False)
    refs: list[str] = field(default_factory=list, repr=False)
    problem: str | None = None
    robustness: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def is_complete(self) -> bool:
        """Return whether sources, references and translations are known."""
        return bool(self.hyps) and len(self.hyps) == len(self.refs) == len(self.srcs)


@dataclass(frozen=True)
class TestAnalysis:
    """Analysis of what all runs made of a test set.

    Attributes:
        name: name of the test set.
        analysis: what is shown, as plain data; see `Breakdown.as_dict`. Its systems are the runs.
    """

    name: str
    analysis: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class RunReport:
    """A run, as its report shows it.

    Attributes:
        name: name of the run folder.
        folder: its path.
        src: source language.
        tgt: target language.
        state: whether it has ended, is going on, or was stopped.
        outcome: why it ended, or where it is.
        best: name of the metric that chooses the best checkpoint, from `validation.best`.
        bleu_tokenizer: tokenizer for BLEU from the config, or None.
        history: its updates and validations.
        tests: its test sets.
        facts: what it trains, and on what, as in facts.json.
        settings: value of each key of the config, as YAML.
        config: the config, as YAML.
        model: section `model`.
        attention: sentences with the attention of every layer and head, in percent: see `attention_of_sentences`.
    """

    name: str
    folder: str
    src: str
    tgt: str
    state: RunState
    outcome: str
    best: str
    bleu_tokenizer: str | None
    history: History
    tests: list[TestSet]
    facts: dict[str, Any]
    settings: dict[str, str]
    config: str
    model: ModelConfig
    attention: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def same_test(self, test: TestSet) -> TestSet | None:
        """Return the test set with the same sentences, whatever its name, or None."""
        complete = (own for own in self.tests if own.is_complete)
        return next((own for own in complete if (own.srcs, own.refs) == (test.srcs, test.refs)), None)


def shared_tests(runs: Sequence[RunReport]) -> list[list[TestSet]]:
    """Return the complete test sets that all runs have translated: one entry a set, with those of each run."""
    found = []
    for test in runs[0].tests if runs else []:
        if test.is_complete:
            of_runs = [match for run in runs if (match := run.same_test(test)) is not None]
            if len(of_runs) == len(runs):
                found.append(of_runs)
    return found
