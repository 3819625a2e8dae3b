"""What a run came to: test sets translated and scored with the best weights, and the model card."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtkit.config import Config, SourceConfig
from mtkit.decoding.translator import Translator
from mtkit.evaluation import metrics
from mtkit.evaluation.metrics import Score
from mtkit.files import storage_errors, write_text
from mtkit.training.progress import Progress

TEST_METRICS = ("bleu", "chrf")
TEST_FOLDER, HYPS_SUFFIX = "test", ".hyps.txt"
RESULTS_FILE, CARD_FILE = "results.json", "README.md"
CARD_PHRASE = "Trained with mtkit for "
"""By it a model card is known."""


@dataclass(frozen=True)
class TestResult:
    """A test set, translated and scored."""

    name: str
    hyps: list[str]
    scores: list[Score]


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
class TextSet:
    """A validation or test set."""

    name: str
    srcs: list[str]
    tgts: list[str]


def hyps_file(name: str) -> str:
    """Where the translations of a test set go, from the run folder."""
    return f"{TEST_FOLDER}/{name.replace('/', '_')}{HYPS_SUFFIX}"


def score_tests(config: Config, tests: list[TextSet], progress: Progress) -> list[TestResult]:
    """Translate the test sets with the best weights, write the translations, score them."""
    if not tests:
        return []
    run, tokenizer = Path(config.run), config.validation.bleu_tokenizer
    device, precision = config.training.device, config.training.precision
    translator = Translator.load(run, decoding=config.decoding, device=device, precision=precision)
    results = []
    with storage_errors(run):
        (run / TEST_FOLDER).mkdir(exist_ok=True)
    for test in tests:
        hyps = [translation.text for translation in translator.translate(test.srcs)]
        write_text(run / hyps_file(test.name), "".join(hyp + "\n" for hyp in hyps))
        scores = metrics.score(hyps, [test.tgts], TEST_METRICS, tokenize=tokenizer, tgt=config.data.tgt)
        results.append(TestResult(test.name, hyps, scores))
        progress.say(f"test {test.name}, {len(hyps):,} sentences, {config.decoding.label}:")
        for result in scores:
            progress.say(f"    {result.format()}")
    return results


def write_results(config: Config, result: TrainResult) -> None:
    """Write results.json and the model card into the run folder. Raises: StorageError."""
    text = json.dumps(results_as_dict(result), indent=2, ensure_ascii=False)
    write_text(result.run / RESULTS_FILE, text + "\n")
    write_text(result.run / CARD_FILE, model_card(config, result))


def results_as_dict(result: TrainResult) -> dict[str, Any]:
    """For results.json."""
    tests = [
        {"name": test.name, "scores": [score.as_dict() for score in test.scores]} for test in result.tests
    ]
    return {
        "ended": result.reason,
        "step": result.step,
        "best": result.best,
        "best_step": result.best_step,
        "tests": tests,
    }


def model_card(config: Config, result: TrainResult) -> str:
    """A README for the run folder: what the model is, how good it is, how to use it."""
    lines = [
        f"# {config.data.src} → {config.data.tgt} translation model",
        "",
        f"{CARD_PHRASE}{result.step:,} updates; {result.reason}.",
        "",
    ]
    for test in result.tests:
        lines += [f"- {test.name}: {s.name} {s.value:.2f} (`{s.signature}`)" for s in test.scores]
    lines += [
        "",
        "Use: `mtkit translate THIS_FOLDER < input.txt`. Everything the model needs is in this folder.",
        "The config it was trained with is `config.yaml`.",
        "",
        "Trained on: " + ", ".join(map(describe_source, config.data.train)),
        "",
    ]
    return "\n".join(lines)


def describe_source(source: SourceConfig) -> str:
    """A data source in a few words."""
    return " ".join(f"{key} {value}" for key, value in source.model_dump(exclude_none=True).items())
