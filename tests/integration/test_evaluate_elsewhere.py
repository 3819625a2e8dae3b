"""`mtkit evaluate` with metrics in other processes: all formats, failures that lose no other score, significance."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mtkit.cli.process import run
from mtkit.evaluation.external_metrics import ExternalScore
from mtkit.evaluation.segment_means import score_means

TOKEN_F1 = str(Path(__file__).parents[1] / "token_f1.py")
NEEDS_SOURCE = """
class Metric:
    name = "copies"; inputs = ("src", "hyp"); higher_is_better = False; signature = "v:1"
    def __init__(self, model, device): pass
    def score(self, segments, progress): return [segment["src"] == segment["hyp"] for segment in segments]
"""
FAILS_LATER = """
import os
class Metric:
    name = "short"; inputs = ("hyp",); higher_is_better = True; signature = "v:1"
    def __init__(self, model, device): self.calls = 0
    def score(self, segments, progress):
        self.calls += 1
        if self.calls == 2:
            os._exit(1)
        return [0.5] * len(segments)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "src": "ein Hund\nzwei Katzen\ndrei\n",
        "ref": "a dog\ntwo cats\nthree\n",
        "one": "a dog\ntwo dogs\ndrei\n",
        "two": "one dog\ntwo cats\nthree\n",
        "copies.py": NEEDS_SOURCE,
        "later.py": FAILS_LATER,
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")


def evaluate(*arguments: str) -> int:
    return run(["evaluate", *arguments])


def test_one_system(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = ["--metric", TOKEN_F1, "--metric", "chrf", "--device", "cpu"]
    assert evaluate("one", "--ref", "ref", *metrics, "--resamples", "0") == 0
    chrf, f1 = capsys.readouterr().out.splitlines()
    assert chrf.startswith("chrF2|")
    assert f1 == "token F1|nrefs:1|case:mixed|version:1 = 0.5000"


def test_two_systems_in_all_formats(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "one",
        "two",
        "--src",
        "src",
        "--ref",
        "ref",
        "--metric",
        f"{TOKEN_F1}:lower",
        "--metric",
        "copies.py",
    ]
    arguments += ["--metric-env", sys.executable, "--resamples", "20", "--segments", "segments.tsv"]
    assert evaluate(*arguments, "--format", "json") == 0
    [found] = json.loads(capsys.readouterr().out)
    f1, copies = zip(*(system["scores"] for system in found["systems"]), strict=True)
    assert [score["score"] for score in f1] == pytest.approx([0.5, 2.5 / 3])
    assert [score["score"] for score in copies] == pytest.approx([1 / 3, 0])
    assert f1[1]["signature"] == "nrefs:1|case:lower|version:1|bs:20|seed:12345"
    assert "p_value" in f1[1] and "p_value" not in f1[0]
    rows = Path("segments.tsv").read_text().splitlines()
    assert rows[0].split("\t")[3:] == ["token F1|nrefs:1|case:lower|version:1", "copies|v:1"]
    assert rows[3].split("\t") == ["ref", "3", "one", "0.000000", "1.000000"]
    for name, number in [("text", "0.8333"), ("latex", r"\textbf{0.8333}"), ("markdown", "**0.8333**")]:
        assert evaluate(*arguments, "--format", name) == 0
        out = capsys.readouterr().out
        assert number in out and "copies|v:1|bs:20|seed:12345" in out, name


@pytest.mark.parametrize("output_format", ["text", "json", "latex", "markdown"])
def test_a_metric_that_fails_loses_no_other_score(
    output_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["one", "two", "--ref", "ref", "--resamples", "0", "--format", output_format]
    metrics = ["--metric", "later.py", "--metric", "no.module", "--metric", "chrf", "--metric", TOKEN_F1]
    assert evaluate(*arguments, *metrics) == 2
    out, err = capsys.readouterr()
    assert "chrF2" in out and "token F1" in out and "short" not in out
    assert err.splitlines() == [
        "ref: one: short|v:1 = 0.5000",
        "error: metric later.py: its process ended with exit code 1",
        f"error: {sys.executable}: the environment of no.module has no package no ({sys.executable} -m pip install no)",
    ]
    assert evaluate(*arguments, "--metric", "later.py") == 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--metric", "comet", "--metric-env", "nowhere"], "nowhere: no such environment"),
        (["--metric", "comet", "--metric-env", "."], ".: no Python environment"),
        (
            ["--metric", "comet", "--metric-env", "a", "--metric-env", "b"],
            "--metric-env: given twice: a and b",
        ),
        (
            ["--metric", "comet", "--metric-env", "metricx=a"],
            "--metric-env: metricx is none of the metrics (--metric metricx)",
        ),
        (["--metric-env", "a"], "--metric-env needs a metric that runs elsewhere"),
        (["--langs", "de"], "--langs: 'de' is one language (for example --langs en-de, or en-zh-TW)"),
        (["--metric", "other.py"], "other.py: no such file of a metric"),
        (["--metric", "copies.py"], "ref: copies reads the source (give it: --src FILE, or --test SRC,REF)"),
        (["--src", "src"], "--src needs --model, or a metric that reads it"),
    ],
)
def test_mistakes(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("one", "--ref", "ref", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith(f"error: {error}")


def test_environments_of_several_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    named = ["--metric-env", f"{TOKEN_F1}={sys.executable}", "--metric-env", "nowhere"]
    assert evaluate("one", "--ref", "ref", "--metric", f"{TOKEN_F1}:lower", *named) == 0
    assert evaluate("one", "--ref", "ref", "--metric", TOKEN_F1, "--metric", "copies.py", *named) == 2
    assert "nowhere: no such environment" in capsys.readouterr().err


# Intervals and tests of means


def external(segments: list[float]) -> ExternalScore:
    return ExternalScore("X", float(np.mean(segments)), "v:1", True, tuple(segments))


def test_intervals_and_p_values_are_those_of_plain_resampling() -> None:
    """The formulas of sacreBLEU's paired tests on means, written out."""
    rng = np.random.default_rng(1)
    one, two = rng.normal(0.5, 0.1, 40), rng.normal(0.53, 0.1, 40)
    pair = [external(one.tolist()), external(two.tolist())]
    options = {"num_bootstrap": 200, "num_trials": 300, "seed": 7}
    first, second = score_means(pair, paired="bs", **options)  # type: ignore[arg-type]
    rows = np.random.default_rng(7).choice(40, size=(200, 40), replace=True)
    means = np.sort(two[rows].mean(axis=1))
    assert second.mean == pytest.approx(means.mean(), rel=1e-5)
    assert second.confidence == pytest.approx((means[-6] - means[5]) / 2, rel=1e-5)
    differences = np.abs(one[rows].mean(axis=1) - two[rows].mean(axis=1))
    real = abs(one.mean() - two.mean())
    expected = ((differences - differences.mean() > real).sum() + 1) / 201
    assert second.p_value == pytest.approx(expected) and first.p_value is None
    assert second.signature == "v:1|bs:200|seed:7" and second.format().startswith("X|v:1|bs:200|seed:7 = 0.")
    swap = np.random.default_rng(7).integers(2, size=(300, 40), dtype=bool)
    shuffled = np.where(swap, one, two).mean(axis=1) - np.where(swap, two, one).mean(axis=1)
    _, second = score_means(pair, paired="ar", **options)  # type: ignore[arg-type]
    assert second.p_value == pytest.approx(((np.abs(shuffled) > real).sum() + 1) / 301)
    assert second.signature == "v:1|bs:200|ar:300|seed:7"


def test_a_mean_below_zero_has_an_interval() -> None:
    own = np.random.default_rng(1).normal(-0.3, 0.1, 40)
    [score] = score_means([external(own.tolist())], paired="none", num_bootstrap=200, num_trials=10, seed=7)
    rows = np.random.default_rng(7).choice(40, size=(200, 40), replace=True)
    means = np.sort(own[rows].mean(axis=1))
    assert score.mean == pytest.approx(means.mean(), rel=1e-4)
    assert score.confidence == pytest.approx((means[-6] - means[5]) / 2, rel=1e-4)


def test_a_score_that_is_no_mean_has_no_interval() -> None:
    corpus = ExternalScore("X", 9.0, "v:1", True, (1.0, 2.0))
    scores = score_means([corpus, corpus], paired="bs", num_bootstrap=10, num_trials=10, seed=1)
    assert [(score.value, score.mean, score.p_value, score.signature) for score in scores] == [
        (9.0, None, None, "v:1")
    ] * 2
