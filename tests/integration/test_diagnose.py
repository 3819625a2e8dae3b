"""Runs that are broken on purpose, each in one way, are diagnosed; whole ones are not.

What the broken runs left is kept, shortened, in tests/data/diagnosis.json, which the quick tests read. After a change
of the cases: `PYTHONPATH=tests python tests/integration/test_diagnose.py tests/data/diagnosis.json`.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny

from mtkit.config.loading import dump_config, load_config
from mtkit.errors import TrainingError
from mtkit.training.diagnosis.diagnose import diagnose
from mtkit.training.run import train
from mtkit.translation.translator import Translator

Pairs = list[tuple[str, str]]

FAST = [
    "model.positions=rotary", "model.dropout=0.0", "training.learning_rate=0.01", "training.max_steps=300",
    "training.log_every_steps=10", "validation.every_steps=60",
]  # fmt: skip
NUMBERS = {"train": 400, "valid": 40, "test": 32}


class Case(NamedTuple):
    """A way to break a run, and what is found.

    Attributes:
        expected: kinds of the findings that must be there.
        change: returns other pairs for a split.
        overrides: changes of the config.
        num_train: training pairs.
    """

    expected: set[str]
    change: Callable[[str, Pairs], Pairs] = lambda split, pairs: pairs
    overrides: tuple[str, ...] = ()
    num_train: int = NUMBERS["train"]


def only(split: str, change: Callable[[Pairs], Pairs]) -> Callable[[str, Pairs], Pairs]:
    return lambda name, pairs: change(pairs) if name == split else pairs


def targets(change: Callable[[str], str]) -> Callable[[Pairs], Pairs]:
    return lambda pairs: [(src, change(tgt)) for src, tgt in pairs]


def shuffled(pairs: Pairs) -> Pairs:
    tgts = [tgt for _, tgt in pairs]
    random.Random(9).shuffle(tgts)
    return [(src, tgt) for (src, _), tgt in zip(pairs, tgts, strict=True)]


def shifted(pairs: Pairs) -> Pairs:
    return [(src, pairs[i - 1][1]) for i, (src, _) in enumerate(pairs)]


def cyrillic(text: str) -> str:
    return "".join(chr(ord("а") + ord(c) - ord("a")) if "a" <= c <= "z" else c for c in text)


def backwards(text: str) -> str:
    return " ".join(word[::-1] for word in text.split())


def stretched(text: str) -> str:
    return " ".join([text.split()[0]] * 12)


CASES = {
    "healthy": Case(set()),
    "low rate": Case({"learning-rate-low", "chance"}, overrides=("training.learning_rate=0.000001",)),
    "high rate": Case({"learning-rate-high"}, overrides=("training.learning_rate=3.0",)),
    "high rate, not clipped": Case(
        {"learning-rate-high"}, overrides=("training.learning_rate=0.3", "training.clip_norm=null")
    ),
    "in warm-up": Case({"too-few-updates"}, overrides=("training.warmup_steps=4000",)),
    "few updates": Case(
        {"too-few-updates"},
        overrides=("training.max_steps=60", "training.learning_rate=0.002", "validation.every_steps=15"),
    ),
    "copies": Case({"equal-sides", "copies"}, only("train", lambda pairs: [(src, src) for src, _ in pairs])),
    "short targets": Case({"short-output"}, only("train", targets(lambda tgt: " ".join(tgt.split()[:2])))),
    "endless targets": Case({"endless-output"}, only("train", targets(stretched))),
    "empty targets": Case(
        {"empty-pairs"},
        only("train", lambda pairs: [(src, tgt if i % 4 else "") for i, (src, tgt) in enumerate(pairs)]),
    ),
    "shuffled validation": Case({"misaligned-validation"}, only("valid", shuffled)),
    "shifted validation": Case({"misaligned-validation"}, only("valid", shifted)),
    "shuffled training": Case({"source-ignored"}, only("train", shuffled), num_train=2000),
    "swapped validation": Case({"swapped-sides"}, only("valid", lambda pairs: [(tgt, src) for src, tgt in pairs])),
    "other language": Case({"other-language"}, only("valid", targets(backwards))),
    "other script": Case({"script", "vocabulary"}, only("valid", targets(cyrillic))),
    "duplicates": Case({"duplicates"}, only("train", lambda pairs: pairs[:40] * 10)),
    "test in training": Case({"test-in-training"}, only("test", lambda pairs: tiny.pairs(len(pairs), seed=0))),
    "overfitting": Case(
        {"overfitting"}, overrides=("training.label_smoothing=0.0", "validation.every_steps=20"), num_train=30
    ),
}  # fmt: skip

RECORDED = (
    "healthy", "low rate", "high rate", "high rate, not clipped", "in warm-up", "few updates", "copies",
    "short targets", "endless targets", "overfitting",
)  # fmt: skip
"""Cases whose logs and translations are kept for the quick tests."""


def make_run(folder: Path, case: Case) -> Path:
    """Train a run that is broken as the case says."""
    root = folder / "data"
    root.mkdir(parents=True)
    for seed, (split, number) in enumerate((NUMBERS | {"train": case.num_train}).items()):
        sides = zip(*case.change(split, tiny.pairs(number, seed)), strict=True)
        for side, lines in zip(("src", "tgt"), sides, strict=True):
            tiny.write_lines(root / f"{split}.{side}", list(lines))
    config = tiny.write_config(folder / "config.yaml", run=folder / "run", root=root)
    train(load_config(config, [*FAST, *case.overrides]))
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_found(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    found = diagnose(make_run(tmp_path, case))
    kinds = [finding.kind for finding in found.findings]
    assert case.expected <= set(kinds)
    assert bool(kinds) == bool(case.expected)
    assert found.unchecked == []
    if name == "shifted validation":
        assert "it fits the source one line above it" in found.findings[0].seen


def with_corpus(trained: Path, root: Path, *overrides: str) -> Path:
    """Copy a run, with another corpus in its config."""
    run = shutil.copytree(trained, root.parent / "run")
    config = load_config(run / "config.yaml", [f"data.root={root}", *overrides])
    (run / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return run


def test_pairs_too_long_for_the_model_are_not_scored(trained: Path, tmp_path: Path) -> None:
    root = tiny.write_corpus(tmp_path / "data")
    for split in ("train", "valid"):
        for side, at in (("src", 1), ("tgt", 3)):
            lines = tiny.read_lines(root / f"{split}.{side}")
            lines[at] = "th" * 200  # more letters than data.max_length tokens
            tiny.write_lines(root / f"{split}.{side}", lines)
    found = diagnose(with_corpus(trained, root))
    assert found.unchecked == []
    assert "whether 32 training and 22 validation targets" in found.checked[-1]


@pytest.mark.parametrize("tag", ["null", "<2de>"])
def test_equal_pairs_are_found_whatever_their_tags(trained: Path, tmp_path: Path, tag: str) -> None:
    root = tiny.write_corpus(tmp_path / "data")
    pairs = tiny.pairs(60, seed=0)
    for name, sides in (("test", pairs), ("train", [*pairs, *((src, src) for src, _ in pairs)])):
        for side, lines in zip(("src", "tgt"), zip(*sides, strict=True), strict=True):
            tiny.write_lines(root / f"{name}.{side}", list(lines))
    tags = ["data.train.0.tag=<2fr>", f"data.test.0.tag={tag}", "tokenizer.user_symbols=[<2fr>, <2de>]"]
    found = diagnose(with_corpus(trained, root, *tags))
    assert {"equal-sides", "test-in-training"} <= {finding.kind for finding in found.findings}


@pytest.mark.slow
def test_a_tokenizer_of_other_data(tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", Case(set(), overrides=("training.max_steps=1",)))
    case = Case(
        set(),
        lambda split, pairs: [(cyrillic(src), cyrillic(tgt)) for src, tgt in pairs],
        (f"tokenizer.model={other}/tokenizer.model", "tokenizer.vocab_size=8000"),
    )
    [first, *_] = diagnose(make_run(tmp_path / "run", case)).findings
    assert first.kind == "vocabulary"
    assert "unknown" in first.seen


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["stop", "rollback"])
def test_divergence(tmp_path: Path, policy: str) -> None:
    overrides = ["training.learning_rate=1e30", "training.warmup_steps=0", f"training.on_divergence={policy}"]
    with pytest.raises(TrainingError):
        make_run(tmp_path, Case(set(), overrides=tuple(overrides)))
    assert "divergence" in {finding.kind for finding in diagnose(tmp_path / "run").findings}


def record(path: Path) -> None:
    """Write what the quick tests need of some runs: the log, and translations of validation sentences."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in RECORDED:
            run = make_run(Path(folder, name), CASES[name])
            translator = Translator.load(run, beam_size=1)
            sides = [tiny.read_lines(run.parent / f"data/valid.{side}")[:16] for side in ("src", "tgt")]
            hyps = [hyp.text for hyp in translator.translate(sides[0])]
            fields = ("kind", "step", "nll", "loss", "grad_norm", "lr", "epoch")
            log = [{key: line[key] for key in fields if key in line} for line in tiny.records(run)]
            short = json.loads(json.dumps(log), parse_float=lambda text: float(f"{float(text):.4g}"))
            found[name] = {"log": short, "samples": list(zip(*sides, hyps, strict=True))}
    path.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record(Path(sys.argv[1]))
