"""`mtkit diversify` from the command line: a folder that trains, translates and trains again."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from rich.console import Console

from mtkit import load_config
from mtkit.data.readers import Pair
from mtkit.pipelines import Context, diversification_stages, pipeline, trainings
from mtkit.pipelines.corpora import write_corpora
from mtkit.pipelines.diversification import DIRECTIONS
from mtkit.pipelines.records import Record, as_json
from mtkit.training.signals import Interrupted

SMALL = ("training.max_steps=2", "training.warmup_steps=0", "validation.every_steps=2", "validation.metrics=[]",
         "validation.best=loss", "decoding.max_length_ratio=1.1", "decoding.max_length_extra=0",
         "decoding.beam_size=1", "data.test=[]")  # fmt: skip


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the stages in this process, which has imported torch already; returns the names of those that ran."""
    ran: list[str] = []

    def run_here(name: str, record: Path, outcome: Path, lock: int, *, fresh: bool, **_: Any) -> Any:
        found = Record.read(record)
        assert found is not None
        module, _, function = found.work.partition(":")
        where = trainings if module == trainings.__name__ else diversification_stages
        ran.append(name)
        return as_json(getattr(where, function)(found.settings, Context(Console(quiet=True), fresh)))

    monkeypatch.setattr(pipeline, "run_child", run_here)
    return ran


def few_pairs(corpus: Path, folder: Path, num_pairs: int) -> Path:
    """Copy a corpus with some of its training pairs only."""
    shutil.copytree(corpus, folder)
    for side in ("src", "tgt"):
        tiny.write_lines(folder / f"train.{side}", tiny.read_lines(corpus / f"train.{side}")[:num_pairs])
    return folder


def test_a_diversified_run_is_a_usual_run_that_tells_where_its_pairs_come_from(
    config: Path, corpus: Path, tmp_path: Path, in_this_process: list[str]
) -> None:
    few = few_pairs(corpus, tmp_path / "few", 60)
    run = tmp_path / "diverse"
    command = ("diversify", config, *SMALL, f"data.root={few}", "--models", 1, "-o", run, "--max-ratio", 0,
               "--final", "training.max_steps=3", "--helpers", "seed=7")  # fmt: skip
    code, out, err = tiny.mtkit(*command)
    assert code == 0, err
    assert in_this_process == [
        "corpora", "tokenizers", "estimate", "forward-1", "forward-1-translations", "backward-1",
        "backward-1-translations", "union-1", "final",
    ]  # fmt: skip
    assert (
        re.search(r"2 trainings of .*, 2 translations of 60 pairs.*, and the final training of", err)
        and "[9/9] final" in err
    )
    final = load_config(run / "config.yaml")
    assert final.training.max_steps == 3 and final.seed == 1
    synthetic = final.data.train[1].synthetic
    assert synthetic is not None and synthetic.endswith("1 forward and 1 backward models (diversification)")
    assert synthetic.split(" translated")[0] in (run / "README.md").read_text(encoding="utf-8")
    backward = load_config(tmp_path / "diverse.stages" / "backward-1" / "config.yaml")
    assert (backward.seed, backward.data.src, backward.training.max_steps) == (7, "fr", 2)

    in_this_process.clear()
    assert tiny.mtkit(*command)[0] == 0 and not in_this_process
    code, _, err = tiny.mtkit(*command, "model.dropout=0.2")
    assert code == 2 and "model.dropout: " in err and "--fresh" in err.splitlines()[-1]


def test_a_second_round_learns_from_the_union_of_the_first(
    config: Path, corpus: Path, tmp_path: Path, in_this_process: list[str]
) -> None:
    few = few_pairs(corpus, tmp_path / "few", 40)
    command = ("diversify", config, *SMALL, f"data.root={few}", "--models", 1, "--rounds", 2, "--max-ratio", 0,
               "-o", tmp_path / "diverse")  # fmt: skip
    code, _, err = tiny.mtkit(*command)
    assert code == 0, err
    assert in_this_process[-7:] == [
        "union-1", "round-2-forward-1", "round-2-forward-1-translations", "round-2-backward-1",
        "round-2-backward-1-translations", "union-2", "final",
    ]  # fmt: skip
    stages = tmp_path / "diverse.stages"
    second, backward = (load_config(stages / f"round-2-{name}-1" / "config.yaml") for name in DIRECTIONS)
    assert "union-1/train-0.src" in str(second.data.train[1].src)
    assert "union-1/train-0.tgt" in str(backward.data.train[1].src)
    unions = [len(tiny.read_lines(stages / f"union-{number}" / "train-0.src")) for number in (1, 2)]
    assert 0 < unions[0] <= unions[1]
    assert "union-2/train-0.src" in str(load_config(tmp_path / "diverse" / "config.yaml").data.train[1].src)


def test_translations_of_another_job_are_replaced_when_started_over(trained: Path, tmp_path: Path) -> None:
    write_corpora(tmp_path, [("train-0", (Pair(*pair) for pair in tiny.pairs(5, 1)))])
    settings = {
        "model": str(trained), "corpora": str(tmp_path), "names": {"train-0": ""}, "machine_side": "tgt",
        "folder": str(tmp_path / "out"), "device": "cpu", "precision": "fp32", "num_threads": 1,
    }  # fmt: skip
    for max_ratio, is_fresh in ((None, False), (3.0, True)):
        context = Context(Console(quiet=True), is_fresh)
        found = diversification_stages.translate_corpora(settings | {"max_ratio": max_ratio}, context)
        assert sum(found.values()) == 5


def test_what_a_preset_chose_is_a_fact_of_each_run(config: Path, corpus: Path, tmp_path: Path) -> None:
    chosen = load_config(config, [*SMALL, f"data.root={corpus}", f"run={tmp_path / 'run'}"])
    stage = trainings.training("final", chosen, choices=["preset auto: tiny for 3 training pairs"])
    for is_fresh in (False, True):
        trainings.train(stage.settings, Context(Console(quiet=True), is_fresh))
        facts = json.loads((tmp_path / "run" / "facts.json").read_text(encoding="utf-8"))
        assert facts["choices"] == ["preset auto: tiny for 3 training pairs"]


def test_stdin_is_no_config_of_a_pipeline(tmp_path: Path) -> None:
    for command in (
        ["diversify", "-"],
        ["distill", "--student", "-"],
        ["sweep", "-", "model.dropout=0.1,0.2"],
    ):
        code, _, err = tiny.mtkit(*command, "-o", tmp_path / "run")
        assert code == 2 and "name a file" in tiny.one_line(err)


def test_a_signal_names_the_stage_that_it_stopped(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_child(name: str, *_: object, **options: object) -> None:
        raise Interrupted(signal.SIGTERM, saved=False, stage=name)

    monkeypatch.setattr(pipeline, "run_child", run_child)
    code, _, err = tiny.mtkit("diversify", config, "-o", tmp_path / "run")
    last = err.splitlines()[-1]
    assert (code, last) == (143, "stopped in stage corpora: run the same command again to go on")


@pytest.mark.slow
def test_a_killed_pipeline_goes_on_where_it_was(config: Path, tmp_path: Path) -> None:
    """Killed in the middle of a training, terminated in the middle of another stage, and finished."""
    run, stages = tmp_path / "diverse", tmp_path / "diverse.stages"
    steps = ("training.max_steps=120", "training.warmup_steps=10", "training.save_every_steps=20")
    command = ("diversify", config, *SMALL[3:], *steps, "--models", 1, "-o", run)
    process = tiny.spawn(*command)
    checkpoint = tiny.checkpoint(stages / "forward-1", 20)
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()

    first = tiny.run_process(*command)  # the process of the stage saves, and may hold the folder for a moment
    while first.returncode == 5 and "is using this folder" in first.stderr:
        time.sleep(0.5)
        first = tiny.run_process(*command)
    assert first.returncode == 0, first.stderr
    assert "[1/9] corpora: done before" in first.stderr
    steps_made = [line["step"] for line in tiny.records(stages / "forward-1", "train")]
    assert steps_made == sorted(set(steps_made)) and steps_made[-1] == 120
    again = tiny.run_process(*command)
    assert again.returncode == 0 and again.stderr.count("done before") == 9
