"""`mtkit evaluate --analysis`: its numbers in all formats, its inputs and their mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import tiny
import yaml

from mtkit.cli.process import run

SRCS = ["ein Hund", "zwei Katzen", "Nummer 1,000"]
REFS = ["a dog", "two cats", "number 1,000"]
ONE = ["a dog", "two dogs", "number 1000"]
TWO = ["one dog", "two cats", "number number number"]
FILES = {
    "src": SRCS,
    "ref": REFS,
    "one": ONE,
    "two": TWO,
    "labels": ["chat", "news", "news"],
    "align": ["0-0 1-1", "0-0", "number ||| 0-0"],
    "train.tsv": ["ein Hund\ta dog", "kein Hund\tno dog", "x\tcats are cats"],
    "train.src": ["ein Hund", "y"],
    "train.tgt": ["a dog", "z"],
}
ALL = [
    "one", "two", "--src", "src", "--ref", "ref", "--metric", "chrf", "--resamples", "0", "--analysis",
    "--labels", "labels", "--alignments", "align", "--alignments", "align", "--train", "train.tsv", "--langs", "de-en",
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, lines in FILES.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def evaluate(*arguments: str) -> int:
    return run(["evaluate", *arguments])


def chrf(hyps: list[str], refs: list[str]) -> float:
    return sacrebleu.corpus_chrf(hyps, [refs]).score


def test_json_has_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(*ALL, "--format", "json") == 0
    [of_set] = json.loads(capsys.readouterr().out)
    analysis: dict[str, Any] = of_set["analysis"]
    one, two = analysis["systems"]
    assert analysis["metric"].startswith("chrF2|nrefs:1|")
    assert one["by_length"] == [{"group": "0–9", "sentences": 3, "score": pytest.approx(chrf(ONE, REFS))}]
    assert two["by_label"] == [
        {"group": "chat", "sentences": 1, "score": pytest.approx(chrf(TWO[:1], REFS[:1]))},
        {"group": "news", "sentences": 2, "score": pytest.approx(chrf(TWO[1:], REFS[1:]))},
    ]
    assert [group["group"] for group in one["by_frequency"]] == [
        "0",
        "1",
        "2–4",
        "5–9",
        "10–99",
        "100–999",
        "1000+",
    ]
    never = {"group": "0", "in_references": 5, "in_translations": 4, "matched": 2, "f1": pytest.approx(4 / 9)}
    assert (
        one["by_frequency"][0] == never
    )  # two, number of: two, dogs, number, 1000; two, number, 1, `,`, 000
    assert one["length_ratio"] == {"part": 6, "whole": 8, "share": 0.75, "sentences": []}
    assert two["errors"]["repeated bigrams"] == {"part": 1, "whole": 4, "share": 0.25, "sentences": [3]}
    assert two["errors"]["lost numbers"] == {"part": 1, "whole": 1, "share": 1.0, "sentences": [3]}
    assert one["errors"]["unaligned source words"]["part"] == 2
    assert one["errors"]["copied source words"]["whole"] == 5
    overlap = analysis["overlap"]
    assert (overlap["training_pairs"], overlap["pairs"]["sentences"], overlap["sources"]["part"]) == (
        3,
        [1],
        1,
    )
    assert two["score_outside_training"] == pytest.approx(chrf(TWO[1:], REFS[1:]))
    assert [each["sentence"] for each in one["best"]] == [1, 3, 2]
    assert [each["sentence"] for each in one["worst"]] == [2, 3, 1]
    assert [each["sentence"] for each in two["ahead"]] == [2]
    assert {each["sentence"] for each in two["behind"]} == {1, 3}
    assert one["ahead"] == one["behind"] == []


@pytest.mark.parametrize(
    ("output_format", "wanted"),
    [
        ("text", ["\nchrF2 by label\n", "100.00 % (1/1)", "\n  line 2: +81.6\n", "\n    one        two dogs\n"]),
        ("markdown", ["**chrF2 by label**\n", "| lost numbers | 0.00 % (0/1) | 100.00 % (1/1) |", "\n- line 2: +81.6"]),
        ("latex", ["% chrF2 by label\n", r"lost numbers & 0.00 \% (0/1) & 100.00 \% (1/1) \\", r"\item line 2: +81.6"]),
    ],
)  # fmt: skip
def test_other_formats(output_format: str, wanted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(*ALL, "--format", output_format) == 0
    out = capsys.readouterr().out
    assert [text for text in wanted if text not in out] == []


def test_without_sources_and_training(capsys: pytest.CaptureFixture[str]) -> None:
    Path("one").write_text("a\xa0\x1b[2Jdog\ntwo\u200cdogs\n*_%\n", encoding="utf-8")
    assert evaluate("one", "--ref", "ref", "--resamples", "0", "--analysis") == 0
    out, err = capsys.readouterr()
    assert "repeated bigrams" in out and "copied" not in out and "training" not in out and err == ""
    assert "a \N{REPLACEMENT CHARACTER}[2Jdog" in out and "\x1b" not in out
    assert "two\u200cdogs" in out
    for output_format, text in [("markdown", r"\*\_%"), ("latex", r"*\_\%")]:
        assert (
            evaluate("one", "--ref", "ref", "--resamples", "0", "--analysis", "--format", output_format) == 0
        )
        assert text in capsys.readouterr().out


def test_several_test_sets_share_files(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "labels", "align"):
        Path(name).write_text(Path(name).read_text() * 2)
    arguments = ["--test", "src,ref", "--test", "src,ref", "--labels", "labels", "--alignments", "align"]
    training = ["--train", "train.src,train.tgt", "--train", "train.tsv", "--langs", "de-en"]
    assert evaluate("one", *arguments, *training, "--analysis", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["analysis"] == second["analysis"] and first["analysis"]["overlap"]["training_pairs"] == 5


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--labels", "labels"], 2, "--labels needs --analysis"),
        (["--train", "train.tsv"], 2, "--train needs --analysis"),
        (["--analysis", "-q"], 2, "--analysis cannot be combined with --quiet"),
        (["--analysis", "--labels", "train.src"], 3, "train.src: 2 lines, but 3 in ref"),
        (["--analysis", "--alignments", "src"], 3, "src:1: 'ein' is no pair of words (pairs are written 0-0 1-2)"),
        (["--analysis", "--alignments", "align", "--alignments", "align"], 2, "--alignments: 2 files, but 1"),
        (["two", "--analysis", "--alignments", "align"], 2, "--alignments: 1 file, but 2"),
        (["--analysis", "--train", "train.tsv"], 2, "train.tsv: which of its languages? (name them"),
        (["--analysis", "--train", "nowhere.tsv", "--langs", "de-en"], 3, "nowhere.tsv: no such file (check the path)"),
        (["--analysis", "--labels", "nowhere"], 3, "nowhere: no such file"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_anything_is_scored(
    arguments: list[str], code: int, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("one", "--ref", "ref", "--metric", "chrf", *arguments) == code
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1 and error in err and err.startswith("error: ")
    assert out == ""


def test_faults_in_training_data_lose_no_score(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("one", "--ref", "ref", "--metric", "chrf", "--analysis", "--train", "train.src,ref") == 3
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and "train.src: 2 lines, but 3 in" in err and "chrF2|" in out


@pytest.mark.parametrize("files", [["align"], ["align", "other"]])
def test_the_baseline_may_have_alignments(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("other").write_text("0-0\n" * 3)
    options = ["--src", "src", "--ref", "ref", "--resamples", "0", "--analysis", "--json"]
    alignments = [part for file in files for part in ("--alignments", file)]
    assert evaluate("one", "--baseline", "two", *options, *alignments) == 0
    [found] = json.loads(capsys.readouterr().out)
    systems = {system["name"]: system for system in found["analysis"]["systems"]}
    assert ("unaligned source words" in systems["two"]["errors"]) == (len(files) == 2)
    assert systems["one"]["errors"]["unaligned source words"]["part"] == 2


def test_the_training_data_of_a_model(trained: Path, corpus: Path) -> None:
    """It is read from where the config says; if it is not there, the rest of the analysis is."""
    options = ["--model", trained, "--metric", "chrf", "--resamples", 0, "--analysis"]
    [found] = json.loads(tiny.mtkit("evaluate", *options, "--json", "-q")[1])
    overlap = found["analysis"]["overlap"]
    assert overlap["training_pairs"] == len((corpus / "train.src").read_text().splitlines())
    assert overlap["sources"]["whole"] == len((corpus / "test.src").read_text().splitlines())
    found = yaml.safe_load((trained / "config.yaml").read_text())["data"]
    data = Path(found["root"], found["train"][0]["src"])
    assert data.is_absolute()
    data.rename(f"{data}.gone")
    try:
        code, out, err = tiny.mtkit("evaluate", *options)
    finally:
        Path(f"{data}.gone").rename(data)
    assert code == 0 and "copied source words" in out and "of training" not in out
    assert "the analysis goes without the model's training data: " in err and "train.src" in err
