"""The page about runs: what it says, that it is whole and needs no network, and that no text of users is run."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

import mtkit.training.report
from mtkit.config.loading import dump_config, load_config
from mtkit.errors import ConfigError
from mtkit.evaluation import metrics
from mtkit.evaluation.analysis import split_words
from mtkit.evaluation.history import History, Sample
from mtkit.evaluation.report import charts
from mtkit.evaluation.report.bundle import vega_bundle
from mtkit.evaluation.report.samples import new_words, sample_histories
from mtkit.evaluation.significance import compare
from mtkit.training.report import ReportWriter, write_report

SCRIPT = "window.vegaEmbed = null"
EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> & "quotes"'
VOID = {"meta", "img", "br", "input"}


@pytest.fixture(autouse=True)
def short_script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the script of the charts, which takes seconds to make, except in slow tests."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(mtkit.training.report, "vega_bundle", lambda: SCRIPT)


class Page(HTMLParser):
    """A page: its elements, its text by the id of the enclosing section, its scripts and its data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.feed(self.html)
        assert self.open == []
        self.text = " ".join(" ".join(self.texts).split())
        self.data: dict[str, Any] = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def updates(last: int, every: int = 10) -> Iterator[dict[str, object]]:
    rng = random.Random(1)
    for step in range(every, last + 1, every):
        yield {
            "kind": "train", "step": step, "loss": 5.0 + rng.random(), "nll": 4.0 + rng.random(),
            "grad_norm": rng.random(), "lr": 1e-3, "epoch": step / 50, "target_tokens": step * 1000,
            "target_tokens_per_second": 5000 + rng.random(), "seconds": step / 10, "memory": 10**9 + step,
        }  # fmt: skip


def write_jsonl(path: Path, records: Iterator[dict[str, object]] | list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def make_run(run: Path, *, last: int = 200, changed: str = "", hyps: list[str] | None = None) -> Path:
    """Write the folder of a run that has ended, with a corpus whose first test sentence is malicious."""
    root = tiny.write_corpus(run.parent / "corpus")
    for side in ("src", "tgt"):
        lines = tiny.read_lines(root / f"test.{side}")
        tiny.write_lines(root / f"test.{side}", [EVIL, *lines[1:]])
    run.mkdir()
    config = tiny.write_config(run.parent / f"{run.name}.yaml", run=run, root=root)
    loaded = load_config(config, changed.split())
    (run / "config.yaml").write_text(dump_config(loaded), encoding="utf-8")
    valid = [{"kind": "valid", "step": step, "loss": 3 - step / 100, "perplexity": 9.0, "bleu": step / 10,
              "seconds": step / 10, "best": True} for step in range(100, last + 1, 100)]  # fmt: skip
    write_jsonl(run / "metrics.jsonl", [*updates(last), *valid])
    samples = [
        [EVIL, "un chien dort .", f"un chat {'dort' if step > 100 else EVIL} ."] for step in (100, 200)
    ]
    write_jsonl(run / "samples.jsonl", [{"kind": "valid", "step": step, "samples": [sample]}
                                        for step, sample in zip((100, 200), samples, strict=True)])  # fmt: skip
    (run / "facts.json").write_text(
        json.dumps({"mtkit": "0.1.0", "parameters": 1_234_567, "processor": EVIL})
    )
    refs = tiny.read_lines(root / "test.tgt")
    hyps = [*refs[:-4], *["le chien ."] * 4] if hyps is None else hyps
    (run / "best").mkdir()
    (run / "test").mkdir()
    tiny.write_lines(run / "test/test.hyps.txt", hyps)
    write_results(run, last, hyps, refs)
    return run


def write_results(run: Path, step: int, hyps: list[str], refs: list[str]) -> None:
    scores = [score.as_dict() for score in metrics.score(hyps, [refs], ["bleu", "chrf"], tgt="fr")]
    setup = {"precision": "fp32", "device": "cpu", "mtkit": "0.1.0", "decoding": {"beam_size": 3}}
    tests = [{"name": "test", "scores": scores, "translated_with": setup}]
    results = {
        "ended": f"step {step} is the last",
        "step": step,
        "best": 20.0,
        "best_step": step,
        "tests": tests,
    }
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")


def report(*runs: Path) -> Page:
    page = runs[0] / "report.html"
    output = ["-o", page] if len(runs) > 1 else []
    code, out, err = tiny.mtkit("report", *runs, *output)
    assert (code, out, err) == (0, "", f"the report is in {page}\n")
    return Page(page)


def test_a_run_that_has_ended(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run"))
    for expected in (
        "en → fr", "ended step 200 is the last", "best BLEU, validation 20.00 at update 200", "updates 200 4.0 epochs",
        "training time 20 s", "parameters 1.2 M", "beam 3, fp32 on cpu", "seed:12345", "data.train 0 {src:",
        "num_heads 2 d_ff 128",
    ):  # fmt: skip
        assert expected in page.text, expected
    titles = ["Loss", "BLEU in validation", "Learning rate", "Speed", "Gradient norm", "Peak memory"]
    assert [chart["title"] for chart in page.data["charts"]] == [*titles, "chrF2 by length"]
    assert all(chart["data"]["values"] and chart["description"] for chart in page.data["charts"])
    [places] = [[a for a in page.all("div") if a.get("class") == "chart"]]
    assert [place["id"] for place in places] == [f"chart-{i}" for i in range(7)]
    assert "highest 20.00 at update 200" in page.data["charts"][1]["description"]
    [test] = page.data["sentences"]
    assert (test["name"], test["of"], len(test["rows"])) == ("test", 16, 16)
    assert test["rows"][0]["chrf"] == [100.0]


def test_the_page_needs_no_network_and_runs_only_its_own_scripts(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run"))
    [policy] = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert page.all("link") == page.all("img") == []
    assert not any("src" in attributes for _, attributes in page.elements)
    data, *run = page.scripts
    assert run[0] == SCRIPT
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in run]
    assert policy.endswith(f"script-src {' '.join(hashes)}")
    assert "unsafe-eval" not in policy
    assert len(run) == 2


def test_text_of_users_is_inert(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run"))
    assert len(page.scripts) == 3
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert (
        page.text.count("<img src=x onerror=") == 3
    )  # source and translation of a sample, name of the processor
    assert page.data["sentences"][0]["rows"][0]["src"] == EVIL
    assert "alert(1)" in page.text


def test_everything_has_a_name_for_screen_readers(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run"))
    assert page.all("html") == [{"lang": "en"}]
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {a["href"] for a in page.all("a")} <= {f"#{each}" for each in ids}
    assert all(a["aria-labelledby"] in ids for a in page.all("section"))
    assert all("aria-label" in a for a in page.all("div") if "tabindex" in a)  # what scrolls has a name
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("nav")) == 1
    assert len(page.all("label")) == len(page.all("select")) + len(page.all("input"))
    assert all(a.get("scope") for a in page.all("th"))


def test_new_words_of_a_sample_are_marked(tmp_path: Path) -> None:
    assert new_words("a dog runs.", "a cat runs!") == [
        ("a ", False),
        ("cat", True),
        (" runs", False),
        ("!", True),
    ]
    assert new_words("我喜欢猫", "我喜欢狗") == [("我喜欢", False), ("狗", True)]
    assert new_words("", "a b") == [("a b", True)]
    page = report(make_run(tmp_path / "run"))
    assert len(page.all("mark")) == 1
    assert page.texts[page.texts.index("dort") - 1].endswith("un chat ")


def test_a_translation_is_told_when_it_changes() -> None:
    samples = {
        step: [Sample("s", "r", hyp)] for step, hyp in [(1, "a b"), (2, "a b"), (3, "a c"), (4, "a b")]
    }
    [found] = sample_histories(History([], [], None, samples, [], []))
    told = [(each["step"], each["until"], each["hyp"]) for each in found["translations"]]
    assert told == [(1, 2, "a b"), (3, 3, "a c"), (4, 4, "a b")]


def test_a_run_without_validation_that_was_stopped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", changed="data.valid=[]")
    (run / "results.json").unlink()
    write_jsonl(run / "metrics.jsonl", updates(30))
    page = report(run)
    assert "stopped at update 30 of 40" in page.text
    assert "run has not been validated" in page.text
    assert "No test set has been translated yet." in page.text
    assert [chart["title"] for chart in page.data["charts"]] == [
        "Loss",
        "Learning rate",
        "Speed",
        "Gradient norm",
        "Peak memory",
    ]


def test_a_damaged_score_is_not_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["tests"][0]["scores"][0]["score"] = "n/a"
    (run / "results.json").write_text(json.dumps(results))
    assert "No test set has been translated." in report(run).text


def test_facts_and_samples_of_another_kind_are_no_fault(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run").rename(tmp_path / os.fsdecode(b"run \xff"))
    facts = {"pairs": [], "vocabulary": {"src": "8000", "tgt": 8000}, "parameters": {}, "src_tokens": "x"}
    (run / "facts.json").write_text(json.dumps(facts | {"device_memory": "much", "valid": 3000}))
    write_jsonl(run / "samples.jsonl", [{"kind": "valid", "step": 100, "samples": [["\ud800", "b", "c"]]}])
    shutil.rmtree(run / "best")
    page = tmp_path / "page.html"
    assert tiny.mtkit("report", run, "-o", page)[0] == 0
    text = page.read_text("utf-8")
    assert all(part in text for part in ("run ?", "3,000", "8,000"))


def test_a_run_that_is_going_on_with_an_incomplete_line(tmp_path: Path) -> None:
    from mtkit.files import FolderLock

    run = make_run(tmp_path / "run")
    write_jsonl(run / "metrics.jsonl", updates(300))  # results.json is of an earlier end
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    with FolderLock(run):
        assert re.search(r"running at update 300 of 40 on \d{4}-\d\d-\d\d at \d\d:\d\d ", report(run).text)


def test_a_run_whose_training_has_just_begun(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("metrics.jsonl", "facts.json"):
        (run / name).write_text("")
    (run / "results.json").unlink()
    page = report(run)
    assert "No update has been logged yet." in page.text
    assert page.data["charts"] == []
    (run / "metrics.jsonl").write_bytes(b"\xff\n" * 3)
    assert "metrics.jsonl is damaged: no line of it can be read." in report(run).text


def test_what_is_not_a_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    empty, model, no_config = (tmp_path / name for name in ("empty", "model", "no_config"))
    for folder in (empty, model, no_config):
        folder.mkdir()
    (model / "manifest.json").touch()
    (no_config / "metrics.jsonl").touch()
    for path, expected in (
        (tmp_path / "missing", "no such folder"), (tmp_path / "file", "a file, not a run folder"),
        (empty, "no metrics.jsonl: not a run folder"), (model, "a model folder"), (no_config, "no config.yaml"),
    ):  # fmt: skip
        code, out, err = tiny.mtkit("report", path)
        assert (code, out) == (5, "")
        assert expected in tiny.one_line(err)
    assert list(empty.iterdir()) == []


def test_usage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for arguments, expected in (
        ([run, run], "--output: several runs need the file of the page (-o compare.html)"),
        ([run, tmp_path / "corpus/../run", "-o", "x.html"], f"{run}: named twice"),
        ([run, "-o", run / "results.json"], f"{run}/results.json is also another file of this command"),
    ):
        code, _, err = tiny.mtkit("report", *arguments)
        assert code == 2
        assert expected in tiny.one_line(err)


def test_references_that_are_gone_or_changed_cost_the_intervals_only(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    refs = tmp_path / "corpus/test.tgt"
    tiny.write_lines(refs, ["autre chose"] * 16)
    page = report(run)
    assert "No interval for test: the test set has changed since it was translated" in page.text
    assert page.data["sentences"] == []
    refs.unlink()
    assert "No interval for test: the references cannot be read:" in report(run).text


def test_two_runs_are_compared(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first")
    second = make_run(
        tmp_path / "second", changed="model.dropout=0.3", hyps=tiny.read_lines(tmp_path / "corpus/test.tgt")
    )
    page = report(first, second)
    for expected in ("first and second", "Compared with first", "significant", "model.dropout 0.1 0.3"):
        assert expected in page.text, expected
    [scores] = json.loads((second / "results.json").read_text())["tests"]
    refs, hyps = (
        tiny.read_lines(tmp_path / "corpus/test.tgt"),
        tiny.read_lines(first / "test/test.hyps.txt"),
    )
    baseline, system = compare([hyps, refs], [refs], ["bleu", "chrf"], tgt="fr")
    for before, after, own in zip(baseline, system, scores["scores"], strict=True):
        difference = f"{own['score'] - before.value:+.2f} {after.p_value:.3f}"
        assert f"second test {after.name} {difference} significant" in page.text
    loss = page.data["charts"][0]
    assert {(value["s"], value["d"]) for value in loss["data"]["values"]} == {
        (run, kind) for run in ("first", "second") for kind in ("training", "validation")
    }
    write_jsonl(first / "metrics.jsonl", updates(200))  # without validations
    page = report(first, second)
    for chart in page.data["charts"][:3]:  # a run keeps its color where another has no curve
        assert chart["layer"][0]["encoding"]["color"]["scale"]["domain"] == ["first", "second"]
    assert page.data["charts"][1]["layer"][0]["encoding"]["color"]["legend"]["values"] == ["second"]
    rows = page.data["sentences"][0]["rows"]
    assert rows[-1]["hyps"] == ["le chien .", rows[-1]["ref"]]
    assert rows[-1]["chrf"][0] < rows[-1]["chrf"][1] == 100.0


def test_the_analysis_of_the_translations(tmp_path: Path) -> None:
    """The last four translations are too short, and one sentence is long."""
    run = make_run(tmp_path / "run")
    refs = tiny.read_lines(tmp_path / "corpus/test.tgt")
    hyps = tiny.read_lines(run / "test/test.hyps.txt")
    page = report(run)
    [by_length] = [chart for chart in page.data["charts"] if chart["title"] == "chrF2 by length"]
    values = by_length["data"]["values"]
    assert sum(value["n"] for value in values) == len(refs)
    short = [i for i, ref in enumerate(refs) if len(split_words(ref)) < 10]
    [expected] = metrics.score([hyps[i] for i in short], [[refs[i] for i in short]], ["chrf"], tgt="fr")
    assert values[0] == {
        "g": "0–9",
        "n": len(short),
        "s": "run",
        "y": pytest.approx(expected.value, abs=1e-3),
    }
    words = [sum(len(split_words(line)) for line in lines) for lines in (hyps, refs)]
    assert f"words per word of the reference {words[0] / words[1]:.3f} {words[0]} to {words[1]}" in page.text
    assert re.search(r"repeated bigrams 0.00 % 0 of [1-9]", page.text)
    assert "also in training" not in page.text
    places = [a["id"] for a in page.all("div") if a.get("class") == "chart"]
    assert places == [f"chart-{i}" for i in range(len(page.data["charts"]))]


def test_robustness_is_told_where_it_was_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "Changed copies" not in report(run).html
    results = json.loads((run / "results.json").read_text())
    fault = {"part": 3, "whole": 9}
    clean: dict[str, Any] = {"copy": "clean", "lines": 9, "scores": [{"name": "BLEU", "score": 31.0, "difference": 0}],
                             "loops": fault, "copies": fault, "too_long": fault, "too_short": fault,
                             "lost": {}}  # fmt: skip
    capitals = clean | {
        "copy": "all capitals",
        "scores": [{"name": "BLEU", "score": 9.5, "difference": -21.5}],
    }
    results["tests"][0]["robustness"] = {"copies": [clean, capitals]}
    (run / "results.json").write_text(json.dumps(results))
    assert "all capitals 9 9.50 -21.50 3 3 3 3 –" in report(run).text
    results["tests"][0]["robustness"]["copies"][1].pop("loops")  # of another version
    (run / "results.json").write_text(json.dumps(results))
    assert "Changed copies" not in report(run).html


def test_overlap_with_training_is_read_on_request(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    train = {side: tiny.read_lines(tmp_path / f"corpus/train.{side}") for side in ("src", "tgt")}
    test = {side: tiny.read_lines(tmp_path / f"corpus/test.{side}") for side in ("src", "tgt")}
    code, _, _ = tiny.mtkit("report", run, "--overlap")
    assert code == 0
    page = Page(run / "report.html")
    seen = sum(src in train["src"] for src in test["src"])
    assert f"source sentences {100 * seen / 16:.2f} % {seen} of 16" in page.text
    assert "Compared with 400 pairs of training data." in page.text
    [by_frequency] = [chart for chart in page.data["charts"] if chart["title"] == "F1 of words by frequency"]
    assert by_frequency["data"]["values"][-1]["g"] in ("100–999", "1000+")
    (tmp_path / "corpus/train.src").unlink()
    code, out, err = tiny.mtkit("report", run, "--overlap")
    assert (code, out) == (3, "")
    assert "train.src" in tiny.one_line(err)


def test_equal_translations_are_no_significant_difference(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "first"), make_run(tmp_path / "second"))
    assert "second test BLEU +0.00 no difference" in page.text
    assert "second test BLEU +0.00 0.0" not in page.text


def test_a_tag_is_no_text_of_a_test_set(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    tagged = make_run(tmp_path / "b/tagged", changed="data.test.0.tag=<fr> tokenizer.user_symbols=[<fr>]")
    page = report(make_run(tmp_path / "plain"), tagged)
    assert "No test set with the same sentences" not in page.text


def test_runs_with_other_test_sets_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "b/first")
    lines = tiny.read_lines(tmp_path / "b/corpus/test.tgt")
    tiny.write_lines(tmp_path / "b/corpus/test.tgt", [*lines[:-1], "autre chose"])
    hyps = tiny.read_lines(second / "test/test.hyps.txt")
    write_results(second, 200, hyps, [*lines[:-1], "autre chose"])
    page = report(first, second)
    assert "No test set with the same sentences" in page.text
    assert page.data["sentences"] == []
    assert page.data["runs"] == [str(first), str(second)]  # folders of the same name


def test_failures_never_stop_a_training(tmp_path: Path) -> None:
    said: list[str] = []
    writer = ReportWriter(tmp_path / "missing", said.append, is_wanted=True)
    writer.refresh()
    writer.refresh()
    [line] = said
    assert line.startswith("report.html could not be written, training goes on: ")
    silent = ReportWriter(tmp_path / "missing", said.append, is_wanted=False)
    silent.refresh()
    assert len(said) == 1


def test_training_writes_the_page(tmp_path: Path) -> None:
    from mtkit import train

    root = tiny.write_corpus(tmp_path / "corpus")
    config = tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=root)
    seen: list[str] = []
    original = write_report

    def observed(folders: list[Path], output: Path, *, loads_model: bool) -> None:
        original(folders, output, loads_model=loads_model)
        seen.append(Page(output).text)
        assert bool(Page(output).data["attention"]) is ("ended" in seen[-1])  # which no validation waits for

    short = [
        "training.max_steps=4", "validation.every_steps=2", "training.report=true", "validation.max_sentences=4",
        "data.test=[]",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mtkit.training.report, "write_report", observed)
        patch.setattr(mtkit.training.report, "_MAX_SHARE_OF_TIME", math.inf)
        train(load_config(config, short))
        train(load_config(config, [*short, "training.max_steps=6"]))
    states = ["running at update 2", "running at update 4", "ended step 4 is the last", "running at update 6",
              "ended step 6 is the last"]  # fmt: skip
    assert [next(state for state in states if state in text) for text in seen] == states
    samples = [json.loads(line) for line in tiny.read_lines(tmp_path / "run/samples.jsonl")]
    assert [sample["step"] for sample in samples] == [2, 4, 6]
    assert all(len(sample["samples"]) == 2 for sample in samples)
    facts = json.loads((tmp_path / "run/facts.json").read_text())
    assert facts["pairs"]["kept"] == 400
    assert "parameters" in seen[-1]
    page = Page(tmp_path / "run/report.html")
    assert [each["text"] for each in page.data["attention"]] == [src for src, _, _ in samples[-1]["samples"]]
    for each in page.data["attention"]:
        assert each["src"][-1] == each["outputs"][-1]["piece"] == "</s>"
        [[cross, _]] = each["cross_attention"]  # one layer, two heads
        assert [len(row) for row in cross] == [len(each["src"])] * len(each["outputs"])
        assert all(abs(sum(row) - 100) <= len(row) / 2 for row in cross)  # percent
    assert len(page.all("label")) == len(page.all("select")) == 4


def test_training_waits_with_a_page_that_takes_too_much_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page takes 2 s: the next one is written 100 s later, or when the run ends."""
    clock = SimpleNamespace(now=0.0)
    written: list[float] = []

    def write(folders: list[Path], output: Path, *, loads_model: bool) -> None:
        written.append(clock.now)
        clock.now += 2

    monkeypatch.setattr(mtkit.training.report, "write_report", write)
    monkeypatch.setattr(mtkit.training.report, "time", SimpleNamespace(monotonic=lambda: clock.now))
    writer = ReportWriter(tmp_path, pytest.fail, is_wanted=True)
    for clock.now in (10, 40, 111, 113, 130):
        writer.refresh()
    writer.refresh(last=True)
    assert written == [10, 113, 130]


def test_training_does_not_wait_again_and_again_for_a_script_that_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that makes it stands still, and is ended after two minutes: the next try is 100 minutes later."""
    clock = SimpleNamespace(now=0.0)
    tried: list[float] = []

    def bundle() -> str:
        tried.append(clock.now)
        clock.now += 120
        raise ConfigError("no script in 120 seconds")

    monkeypatch.setattr(mtkit.training.report, "vega_bundle", bundle)
    monkeypatch.setattr(mtkit.training.report, "time", SimpleNamespace(monotonic=lambda: clock.now))
    said: list[str] = []
    writer = ReportWriter(tmp_path, said.append, is_wanted=True)
    for clock.now in (10, 200, 6000, 6131):
        writer.refresh()
    assert tried == [10, 6131]
    assert said == ["report.html could not be written, training goes on: no script in 120 seconds"]


@pytest.mark.slow
def test_the_report_of_a_hundred_thousand_updates(tmp_path: Path) -> None:
    """At most 2 s of processor time and 3 MB, with every update logged; the script of the charts is in the cache."""
    run = make_run(tmp_path / "run")
    valid = [
        {"kind": "valid", "step": s, "loss": 2.0, "bleu": s / 5000, "best": True}
        for s in range(100, 100_001, 100)
    ]
    write_jsonl(run / "metrics.jsonl", [*updates(100_000, 1), *valid])
    vega_bundle()
    start = time.process_time()
    write_report([run], tmp_path / "report.html")
    assert time.process_time() - start <= 2
    assert (tmp_path / "report.html").stat().st_size <= 3_000_000


@pytest.mark.slow
def test_every_specification_compiles(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second")
    for page in (report(first), report(first, second)):
        assert page.data["charts"]
        for chart in page.data["charts"]:
            code = "import json, sys, vl_convert; print(json.dumps(vl_convert.vegalite_to_vega(sys.stdin.read())))"
            done = subprocess.run([sys.executable, "-c", code], input=json.dumps(chart), capture_output=True,
                                  text=True, timeout=120, check=True)  # fmt: skip
            assert json.loads(done.stdout)["marks"], chart["title"]


CHROMIUM = shutil.which("chromium")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as in Debian's package chromium")
@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_the_page_in_a_browser(tmp_path: Path, scheme: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No console error, not even of the content security policy; every chart has marks, every sentence is shown."""
    encoder = [[[[100, 0], [20, 80]]]]  # one layer, one head
    attention = {
        "text": EVIL, "translation": "chien", "src": ["dog", "</s>"], "inputs": ["<s>", "chien"],
        "outputs": [{"piece": "chien"}, {"piece": "</s>"}], "encoder_attention": encoder,
        "decoder_attention": encoder, "cross_attention": [[[[90, 10], [30, 70]]]],
    }  # fmt: skip
    monkeypatch.setattr(mtkit.training.report, "_attention_of_samples", lambda *_: [attention])
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second")
    for runs in ([first], [first, second]):
        write_report(runs, tmp_path / "page.html")
        done = subprocess.run(
            [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
             f"--blink-settings=preferredColorScheme={scheme}", f"--user-data-dir={tmp_path / 'profile'}",
             "--virtual-time-budget=10000", "--dump-dom", (tmp_path / "page.html").as_uri()],
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert "CONSOLE" not in done.stderr, done.stderr
        assert done.stdout.count('role="graphics-document"') == 7 + (len(runs) == 1)
        assert "mark-rect role-mark" in done.stdout
        assert ("output token chien, source token dog: 0.900" in done.stdout) is (len(runs) == 1)
        assert done.stdout.count("mark-line role-mark") >= 6
        assert done.stdout.count('class="sentence"') == 10
        assert "10 of 16 sentences." in done.stdout


def test_a_curve_of_a_single_point_has_a_mark() -> None:
    found = [
        charts.line_chart("loss", "", {"train": points}, unit="nats")["layer"][0]["mark"]
        for points in ([(1, 2.0)], [(1, 2.0), (2, 1.0)])
    ]
    assert ["point" in mark for mark in found] == [True, False]
