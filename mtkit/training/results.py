"""What a run came to: test sets translated and scored with the best weights, and the model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtkit import __version__
from mtkit.config.sections import Config, DecodingConfig, SourceConfig
from mtkit.errors import ConfigError
from mtkit.evaluation import metrics
from mtkit.evaluation.metrics import Score
from mtkit.files import storage_errors, write_text
from mtkit.training.progress import Progress
from mtkit.translation.translator import Translator

TEST_METRICS = ("bleu", "chrf")
_TEST_FOLDER, HYPS_SUFFIX = "test", ".hyps.txt"
_LONGEST_NAME = 200
"""Bytes: 255, which file systems take, less what mtkit puts around a name."""
RESULTS_FILE, CARD_FILE = "results.json", "README.md"
CARD_PHRASE = "Trained with mtkit for "
"""By it a model card is known."""


@dataclass(frozen=True)
class TranslatedWith:
    """How sentences were translated."""

    precision: str
    device: str
    decoding: DecodingConfig

    def line(self) -> str:
        """In words."""
        return f"{self.decoding.label}, {self.precision} on {self.device}"

    def as_dict(self) -> dict[str, Any]:
        """For results.json."""
        decoding = self.decoding.model_dump()
        return {
            "precision": self.precision,
            "device": self.device,
            "mtkit": __version__,
            "decoding": decoding,
        }


@dataclass(frozen=True)
class TestResult:
    """A test set, translated and scored."""

    name: str
    hyps: list[str]
    scores: list[Score]
    translated_with: TranslatedWith


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    run: Path
    reason: str
    """Why training ended."""
    step: int
    best: float | None
    """Best validation number."""
    best_step: int | None
    tests: list[TestResult] = field(default_factory=list)
    example: str | None = None
    """A source sentence of a test or validation set, to try the model with."""


@dataclass(frozen=True)
class EvalSet:
    """A validation or test set."""

    name: str
    srcs: list[str]
    tgts: list[str]


def hyps_file(name: str) -> str:
    """Where the translations of a test set go, from the run folder."""
    return f"{_TEST_FOLDER}/{name.replace('/', '_')}{HYPS_SUFFIX}"


def check_test_names(names: Sequence[str]) -> None:
    """Check that each test set has a file of its own.

    Raises:
        ConfigError: a name cannot be that of a file, or two have the same, whatever their case.
    """
    by_file: dict[str, str] = {}
    for number, name in enumerate(names):
        where, file = f"data.test[{number}].name", hyps_file(name)
        if not name.strip() or not name.isprintable() or name in (".", ".."):
            raise ConfigError(f"{name!r} cannot name a file", where=where, hint="give it another name")
        if len(name.encode()) > _LONGEST_NAME:
            what = f"{name[:20]!r} and so on is too long to name a file"
            raise ConfigError(what, where=where, hint=f"at most {_LONGEST_NAME} bytes")
        if (other := by_file.setdefault(file.casefold(), name)) != name:
            what = f"the translations of {name!r} and of {other!r} would be the same file, {file}"
            if hyps_file(other) != file:
                what += ", on systems that tell no case apart, such as macOS"
            raise ConfigError(what, where=where, hint="give it another name")


def score_tests(config: Config, tests: list[EvalSet], progress: Progress) -> list[TestResult]:
    """Translate the test sets with the best weights, write the translations, score them."""
    if not tests:
        return []
    run, tokenizer = Path(config.run), config.validation.bleu_tokenizer
    device, precision = config.training.device, config.training.precision
    translator = Translator.load(run, decoding=config.decoding, device=device, precision=precision)
    results = []
    with storage_errors(run):
        (run / _TEST_FOLDER).mkdir(exist_ok=True)
    for test in tests:
        hyps = [translation.text for translation in translator.translate(test.srcs)]
        write_text(run / hyps_file(test.name), "".join(hyp + "\n" for hyp in hyps))
        scores = metrics.score(hyps, [test.tgts], TEST_METRICS, tokenize=tokenizer, tgt=config.data.tgt)
        used = TranslatedWith(translator.precision, str(translator.device), config.decoding)
        results.append(TestResult(test.name, hyps, scores, used))
        progress.say(f"test {test.name}, {len(hyps):,} sentences, {used.line()}:")
        for result in scores:
            progress.say(f"    {result.format()}")
    return results


def write_results(config: Config, result: TrainResult) -> None:
    """Write results.json and the model card into the run folder. Raises: StorageError."""
    text = json.dumps(_results_as_dict(result), indent=2, ensure_ascii=False)
    write_text(result.run / RESULTS_FILE, text + "\n")
    write_text(result.run / CARD_FILE, _model_card(config, result))


def _results_as_dict(result: TrainResult) -> dict[str, Any]:
    """For results.json."""
    tests = [
        {
            "name": test.name,
            "scores": [score.as_dict() for score in test.scores],
            "translated_with": test.translated_with.as_dict(),
        }
        for test in result.tests
    ]
    return {
        "ended": result.reason,
        "step": result.step,
        "best": result.best,
        "best_step": result.best_step,
        "tests": tests,
    }


def _model_card(config: Config, result: TrainResult) -> str:
    """A README for the run folder: what the model is, how good it is, how to use it."""
    lines = [
        f"# {config.data.src} → {config.data.tgt} translation model",
        "",
        f"{CARD_PHRASE}{result.step:,} updates; {result.reason}.",
        "",
    ]
    for test in result.tests:
        used = f"{test.translated_with.line()}, mtkit {__version__}"
        lines += [f"- {test.name}: {s.name} {s.value:.2f} (`{s.signature}`; {used})" for s in test.scores]
    lines += [
        "",
        "Use: `mtkit translate THIS_FOLDER < input.txt`. Everything the model needs is in this folder.",
        "The config it was trained with is `config.yaml`.",
        "",
        "Trained on: " + ", ".join(map(_describe_source, config.data.train)),
        "",
    ]
    return "\n".join(lines)


def _describe_source(source: SourceConfig) -> str:
    """A data source in a few words."""
    return " ".join(f"{key} {value}" for key, value in source.model_dump(exclude_none=True).items())
