"""Results of a run: test sets translated and scored with the best weights, and results.json."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mtkit import __version__
from mtkit.config.sections import Config, DecodingConfig
from mtkit.errors import ConfigError
from mtkit.evaluation import metrics
from mtkit.evaluation.metrics import Score
from mtkit.evaluation.run_files import RESULTS_FILE, TEST_FOLDER, hyps_file
from mtkit.files import storage_errors, write_text
from mtkit.formatting import format_count
from mtkit.training.progress import Progress
from mtkit.training.robustness import Robustness, measure_robustness
from mtkit.training.validation import EvalSet
from mtkit.translation.translator import Translator

TEST_METRICS = ("bleu", "chrf")
_MAX_NAME_BYTES = 200
"""File systems allow 255, of which mtkit needs some for what it adds to a name."""


@dataclass(frozen=True)
class TranslationSetup:
    """Precision, device and search with which test sets were translated."""

    precision: str
    device: str
    decoding: DecodingConfig

    def describe(self) -> str:
        """Describe the setup, as in "beam 5, bf16 on cpu"."""
        return f"{self.decoding.label}, {self.precision} on {self.device}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for results.json."""
        return {
            "precision": self.precision,
            "device": self.device,
            "mtkit": __version__,
            "decoding": self.decoding.model_dump(),
        }


@dataclass(frozen=True)
class TestResult:
    """Translations and scores of a test set.

    Attributes:
        name: its name.
        hyps: the translations.
        scores: their scores.
        translated_with: how they were made.
        seconds: how long that took.
        robustness: what became of changed lines; of the first test set only.
    """

    name: str
    hyps: list[str] = field(repr=False)
    scores: list[Score]
    translated_with: TranslationSetup
    seconds: float = 0.0
    robustness: Robustness | None = None


@dataclass(frozen=True)
class TrainResult:
    """Outcome of a run.

    Attributes:
        run: run folder.
        reason: why training ended.
        step: number of updates.
        best: best validation result, by `validation.best`.
        best_step: step of that validation.
        tests: results of the test sets.
        example: source sentence of a test or validation set, to try the model with.
    """

    run: Path
    reason: str
    step: int
    best: float | None
    best_step: int | None
    tests: list[TestResult] = field(default_factory=list)
    example: str | None = None


def check_test_names(names: Sequence[str]) -> None:
    """Check that each test set can be written to a file of its own.

    Raises:
        ConfigError: If a name cannot be used in a file name, or two lead to the same file, ignoring case.
    """
    name_by_file: dict[str, str] = {}
    for number, name in enumerate(names):
        where, file = f"data.test.{number}.name", hyps_file(name)
        if not name.strip() or not name.isprintable() or name in (".", ".."):
            raise ConfigError(f"{name!r} cannot be used as a file name", where=where, hint="rename it")
        if len(name.encode()) > _MAX_NAME_BYTES:
            what = f"{name[:20]!r}... is too long for a file name"
            raise ConfigError(what, where=where, hint=f"at most {_MAX_NAME_BYTES} bytes")
        if (other := name_by_file.setdefault(file.casefold(), name)) != name:
            what = f"{name!r} and {other!r} would write their translations to the same file, {file}"
            if hyps_file(other) != file:
                what += ", on file systems that ignore case, as on macOS"
            raise ConfigError(what, where=where, hint="rename one of them")


def score_tests(
    config: Config, tests: list[EvalSet], progress: Progress, training_seconds: float
) -> list[TestResult]:
    """Translate the test sets with the best weights, write the translations to the run folder and score them.

    Args:
        config: config of the run.
        tests: the test sets.
        progress: shows the scores.
        training_seconds: how long the training took.

    Raises:
        StorageError: If a file cannot be written.
    """
    if not tests:
        return []
    run, tokenizer = Path(config.run), config.validation.bleu_tokenizer
    device, precision = config.training.device, config.training.translation_precision
    translator = Translator.load(run, decoding=config.decoding, device=device, precision=precision)
    results = []
    with storage_errors(run):
        (run / TEST_FOLDER).mkdir(exist_ok=True)
    for test in tests:
        start = time.perf_counter()
        hyps = [translation.text for translation in translator.translate(test.requests())]
        seconds = time.perf_counter() - start
        write_text(run / hyps_file(test.name), "".join(hyp + "\n" for hyp in hyps))
        scores = metrics.score(hyps, [test.tgts], TEST_METRICS, tokenize=tokenizer, tgt=config.data.tgt)
        setup = TranslationSetup(translator.precision, str(translator.device), config.decoding)
        results.append(TestResult(test.name, hyps, scores, setup, seconds))
        progress.say(f"test {test.name}, {format_count(len(hyps), 'sentence')}, {setup.describe()}:")
        for score in scores:
            progress.say(f"    {score.format()}")
    first = results[0]
    robustness = measure_robustness(
        tests[0], first.hyps, first.seconds, training_seconds, translator, config, TEST_METRICS
    )
    for line in robustness.lines():
        progress.say(line)
    return [replace(first, robustness=robustness), *results[1:]]


def write_results(result: TrainResult) -> None:
    """Write results.json to the run folder.

    Raises:
        StorageError: If a file cannot be written.
    """
    text = json.dumps(_results_as_dict(result), indent=2, ensure_ascii=False)
    write_text(result.run / RESULTS_FILE, text + "\n")


def _results_as_dict(result: TrainResult) -> dict[str, Any]:
    """Return the content of results.json."""
    tests = [
        {
            "name": test.name,
            "scores": [score.as_dict() for score in test.scores],
            "translated_with": test.translated_with.as_dict(),
        }
        | ({} if test.robustness is None else {"robustness": test.robustness.as_dict()})
        for test in result.tests
    ]
    return {
        "ended": result.reason,
        "step": result.step,
        "best": result.best,
        "best_step": result.best_step,
        "tests": tests,
    }
