"""`mtkit sweep`: plan, promotion, resuming, several processes, files; runs that stop at a rung learn the same."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import tiny
from rich.console import Console

from mtkit.checkpoint import list_checkpoints
from mtkit.cli.sweep import _visible_gpus, _workers
from mtkit.config.loading import config_to_dict, load_config, parse_config
from mtkit.errors import TrainingError
from mtkit.files import FolderLock, sha256_file
from mtkit.pipelines.records import Record
from mtkit.pipelines.stages import Context
from mtkit.pipelines.sweep import _train_to_rung
from mtkit.training.run import train
from mtkit.training.workers import WorkerLostError

SWEEP = ["sweep", "my.yaml", "model.dropout=0.1,0.2,0.3", "training.learning_rate=0.01,0.02,0.03"]
STEPS = ["training.max_steps=90", "validation.every_steps=10"]
"""Rungs at 10, 30 and 90 updates."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.write_corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTKIT_CACHE", str(tmp_path / "cache"))
    tiny.write_config(tmp_path / "my.yaml", run=Path("runs/x"), root=Path("."))
    return tmp_path


class Children:
    """Stands for the processes of stages: pretends to train."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.failing: dict[str | tuple[str, int], Exception] = {}

    def __call__(self, name: str, record: Path, *_: Any, **__: Any) -> dict[str, Any]:
        settings = Record.read(record).settings  # type: ignore[union-attr]
        config, stop_at = parse_config(settings["config"]), settings["stop_at"]
        self.calls.append((Path(config.run).name, stop_at))
        run = Path(config.run)
        run.mkdir(parents=True, exist_ok=True)
        if error := self.failing.pop(run.name, None) or self.failing.pop(self.calls[-1], None):
            raise error
        if config.model.dropout == 0.1 and config.training.learning_rate == 0.01:
            return {"score": None, "failure": "the loss is not finite"}
        score = 10 * config.model.dropout + 100 * config.training.learning_rate + stop_at / 1000
        with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": "valid", "step": stop_at, "bleu": score, "loss": 1.0}) + "\n")
        return {"score": score, "step": stop_at, "best_step": stop_at}


@pytest.fixture
def children(here: Path, monkeypatch: pytest.MonkeyPatch) -> Children:
    found = Children()
    monkeypatch.setattr("mtkit.pipelines.pipeline.run_child", found)
    monkeypatch.setattr("mtkit.evaluation.report.bundle.vega_bundle", lambda: "// charts")
    monkeypatch.setattr("mtkit.pipelines.sweep._POLL_SECONDS", 0.01)
    return found


def test_a_sweep_promotes_the_best_and_writes_a_table_a_page_and_the_best_config(children: Children) -> None:
    code, out, err = tiny.mtkit(*SWEEP, *STEPS)
    assert code == 0, err
    assert "9 trials, rungs at 10, 30, 90 updates, in runs/x.sweep" in err
    assert (
        "rung 3 of 3, trial 8: training to update 90 with model.dropout=0.3 training.learning_rate=0.03"
        in err
    )
    assert "rung 1 of 3, trial 0: failed: the loss is not finite" in err
    assert err.count("of training left in all") == len(children.calls) - 1
    first = [(f"trial-{trial:03}", 10) for trial in range(9)]
    assert children.calls == [
        *first, ("trial-005", 30), ("trial-007", 30), ("trial-008", 30), ("trial-008", 90)
    ]  # fmt: skip
    title, header, _, best, *others = out.split("\n")
    assert title == "bleu in validation, best first:"
    names = ["trial", "dropout", "learning_rate", "rung 1", "rung 2", "rung 3", "updates", "time"]
    assert re.split("  +", header.strip()) == names
    assert best.split()[:7] == ["8", "0.3", "0.03", "6.01", "6.03", "6.09", "90"]
    assert [line.split()[0] for line in others[:8]] == ["5", "7", "2", "4", "6", "1", "3", "0"]
    assert "failed" in others[7]
    assert "mtkit train runs/x.sweep/best.yaml" in out

    folder = Path("runs/x.sweep")
    found = json.loads((folder / "sweep.json").read_bytes())
    assert [trial["trial"] for trial in found["trials"]] == [8, 5, 7, 2, 4, 6, 1, 3, 0]
    assert found["trials"][0]["values"] == {"model.dropout": "0.3", "training.learning_rate": "0.03"}
    assert found["trials"][0]["scores"] == pytest.approx([6.01, 6.03, 6.09])
    assert (found["metric"], found["rungs"]["8"]) == ("bleu", [10, 30, 90])
    assert found["trials"][-1]["failure"] == "the loss is not finite"
    config = load_config(folder / "best.yaml")
    assert config.run == "runs/x.sweep/trial-008"
    assert (config.model.dropout, config.training.max_steps) == (0.3, 90)
    assert config.data == load_config("my.yaml").data
    page = (folder / "sweep.html").read_text("utf-8")
    assert "dropout 0.3, learning_rate 0.03" in page and "// charts" in page and "vega-lite/v6" in page

    calls = len(children.calls)
    code, again, _ = tiny.mtkit(*SWEEP, *STEPS)
    assert (code, again, len(children.calls)) == (0, out, calls)
    code, _, err = tiny.mtkit(*SWEEP, "training.max_steps=99", "validation.every_steps=10")
    assert code == 2
    assert "another sweep: config.training.max_steps: 90 -> 99" in tiny.one_line(err)
    assert tiny.mtkit(*SWEEP, "training.max_steps=45", "validation.every_steps=10", "--fresh")[0] == 0
    assert len(children.calls) == 2 * calls
    assert children.calls[-1] == ("trial-008", 45)


def test_a_sweep_that_was_stopped_goes_on_and_a_busy_trial_is_left_to_its_process(children: Children) -> None:
    children.failing["trial-004"] = TrainingError("its process was killed by SIGKILL")
    code, _, err = tiny.mtkit(*SWEEP, *STEPS)
    assert (code, "killed by SIGKILL" in err) == (4, True)
    assert len(children.calls) == 5
    stages = Path("runs/x.sweep/trial-005.stages")
    with FolderLock(stages):
        children.failing["trial-008"] = KeyboardInterrupt()
        code, _, err = tiny.mtkit(*SWEEP, *STEPS, "--trial", "6")
    assert code == 130
    assert [name for name, _ in children.calls[5:]] == ["trial-006", "trial-007", "trial-008"]
    with FolderLock(stages):
        code, _, err = tiny.mtkit(*SWEEP, *STEPS, "--fresh")
    assert (code, "another run" in err) == (5, True)  # and it deleted nothing
    code, _, err = tiny.mtkit(*SWEEP, *STEPS)
    assert code == 0
    assert [name for name, _ in children.calls[8:]] == [
        "trial-004", "trial-005", "trial-008", "trial-005", "trial-007", "trial-008", "trial-008"
    ]  # fmt: skip


def test_a_trial_whose_process_is_killed_twice_has_failed(children: Children) -> None:
    for code in (4, 0):
        children.failing["trial-008"] = TrainingError("its process was killed by SIGKILL")
        found, _, err = tiny.mtkit(*SWEEP, *STEPS)
        assert found == code, err
    trials = json.loads(Path("runs/x.sweep/sweep.json").read_bytes())["trials"]
    [failure] = [trial["failure"] for trial in trials if trial["trial"] == 8]
    assert failure == "killed twice: its process was killed by SIGKILL"
    calls = len(children.calls)
    assert tiny.mtkit(*SWEEP, *STEPS)[0] == 0 and len(children.calls) == calls


def test_a_process_that_is_killed_once_at_each_rung_is_tried_again_each_time(children: Children) -> None:
    for rung in (10, 30, 90):
        children.failing["trial-008", rung] = TrainingError("its process was killed by SIGKILL")
        assert tiny.mtkit(*SWEEP, *STEPS)[0] == 4
    assert tiny.mtkit(*SWEEP, *STEPS)[0] == 0
    best = json.loads(Path("runs/x.sweep/sweep.json").read_bytes())["trials"][0]
    assert (best["trial"], best["failure"]) == (8, None)


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_lost_worker_is_no_failure_of_the_trial(
    here: Path, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    def train(*_: Any, **__: Any) -> None:
        raise (WorkerLostError if is_lost else TrainingError)("it ended")

    monkeypatch.setattr("mtkit.training.run.train", train)
    settings = {"config": config_to_dict(load_config("my.yaml")), "stop_at": 10}
    with pytest.raises(WorkerLostError) if is_lost else nullcontext():
        assert _train_to_rung(settings, Context(Console(quiet=True))) == {
            "score": None,
            "failure": "it ended",
        }


def test_samples_a_budget_and_preset_auto(children: Children) -> None:
    text = re.sub(r"(?m)^(tokenizer|model|training|  \{batch|   report).*\n", "", Path("my.yaml").read_text())
    Path("auto.yaml").write_text(text, encoding="utf-8")
    few = ["--samples", "4", "--budget", "60", "--reduction", "2", "-o", "found"]
    values = ["model.dropout=0.1..0.4", "training.max_steps=20,40", "validation.every_steps=5"]
    code, _, err = tiny.mtkit("sweep", "auto.yaml", *values, *few)
    assert code == 0, err
    assert "4 trials, rungs at 25 %, 50 %, 100 % of the updates of each, in found" in err
    assert 0 < sum(dict(children.calls).values()) <= 60
    plan = json.loads(Path("found/plan.json").read_bytes())
    assert {config["preset"] for config in plan["configs"]} == {"tiny"}
    assert all(config["training"]["optimizer"] == "muon" for config in plan["configs"])
    [first, *_], *_ = plan["choices"]
    assert re.match(r"preset auto: tiny for \d+ training pairs on", first) and first in err
    record = json.loads(next(Path("found").glob("trial-*.stages/stages/rung-0.json")).read_bytes())
    assert record["settings"]["choices"] in plan["choices"]
    code, _, err = tiny.mtkit("sweep", "auto.yaml", *values, *few[:2], "--budget", "20", "-o", "other")
    assert code == 2
    assert "error: --budget: 20 updates are not enough for 2 rungs (at least" in tiny.one_line(err)


@pytest.mark.parametrize("preset", ["auto", "null"])
def test_trials_that_start_from_a_model_set_no_other_keys_of_it(children: Children, preset: str) -> None:
    """What auto chose for the corpus stays."""
    kept = [
        line for line in tiny.read_lines(Path("my.yaml")) if not line.startswith(("tokenizer:", "model:"))
    ]
    text = "\n".join([f"preset: {preset}", "init: runs/other", *kept, ""])
    Path("my.yaml").write_text(text.replace("max_steps: 40, ", "" if preset == "auto" else "max_steps: 40, "))
    command = ["sweep", "my.yaml", "training.learning_rate=0.001,0.002", "--rungs", "1"]
    code, _, err = tiny.mtkit(*command)
    assert code == 0, err
    folder = Path("runs/x.sweep")
    stored = json.loads((folder / "trial-000.stages/stages/rung-0.json").read_bytes())["settings"]
    for found in (parse_config(stored["config"]), load_config(folder / "best.yaml")):
        assert (found.init, found.tokenizer.model_fields_set, found.model.model_fields_set) == (
            "runs/other", set(), set()
        )  # fmt: skip
        assert found.decoding.model_fields_set == {"beam_size", "max_length_ratio", "max_length_extra"}
        assert found.training.max_steps == stored["stop_at"]
    code, _, err = tiny.mtkit(*command, "model.dropout=0.1")
    assert code == 2 and "another sweep: config.model.dropout: null -> 0.1" in tiny.one_line(err)


@pytest.mark.parametrize(("code", "is_told"), [(1, True), (143, False), (-9, False)])
def test_a_worker_that_fails_is_named_and_one_that_is_stopped_is_not(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    code: int,
    is_told: bool,
) -> None:
    class Worker:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def wait(self) -> int:
            return code

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("mtkit.cli.sweep.subprocess.Popen", Worker)
    with _workers(1, ["my.yaml"], tmp_path):
        pass
    assert ("worker 1 failed" in capsys.readouterr().err) == is_told


def test_the_gpus_are_shared_out_among_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Mock()
    worker.return_value.wait.return_value = 0
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5,6,7")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("mtkit.cli.sweep.subprocess.Popen", worker)
    assert _visible_gpus("cuda:1") == _visible_gpus("cpu") == []
    with _workers(3, ["my.yaml"], tmp_path, _visible_gpus("auto")):
        pass
    found = [call.kwargs["env"]["CUDA_VISIBLE_DEVICES"] for call in worker.call_args_list]
    assert found == ["GPU-5", "6", "4"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert _visible_gpus("cuda") == ["0", "1", "2"]


def test_the_best_config_has_the_data_keys_that_were_tried(children: Children) -> None:
    """Two of them end alike."""
    keys = [
        "data.max_length=20,30",
        "data.train.0.license=A,B",
        "data.valid.0.license=C,D",
        "model.dropout=0.1,0.2",
    ]
    code, out, err = tiny.mtkit("sweep", "my.yaml", *keys, *STEPS, "--rungs", "1")
    assert code == 0, err
    assert "data.train.0.license   data.valid.0.license" in out
    folder = Path("runs/x.sweep")
    values = json.loads((folder / "sweep.json").read_bytes())["trials"][0]["values"]
    found = load_config(folder / "best.yaml").data
    assert values["data.max_length"] == str(found.max_length)
    assert (values["data.train.0.license"], values["data.valid.0.license"]) == (
        found.train[0].license, found.valid[0].license
    )  # fmt: skip
    assert found.test == load_config("my.yaml").data.test


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.dropout=0.1"], "command line: model.dropout=0.1: nothing to try"),
        (["model.drop=0.1,0.2"], "command line: model.drop=0.1: model.drop: unknown key"),
        (["model.dropout=0.1,2"], "command line: model.dropout=2: model.dropout: must be less than 1"),
        (["model.dropout=0.1..0.2"], "model.dropout: a range needs a number of samples (set --samples)"),
        (["model.dropout=0.1,0.2", "data.valid=[]"], "data.valid: a sweep needs validation pairs"),
        (["model.dropout=0.1,0.2", "--budget", "8 h"], "--budget: expected a number of updates or a time, got '8 h'"),
        (["model.dropout=0.1,0.2", "--trial", "1", "--fresh"], "--trial excludes --fresh"),
        (["model.dropout=0.1,0.2", "training.max_steps=null", "training.max_epochs=3"],
         "training.max_steps: a sweep needs to know where training ends"),
        (["model.dropout=0.1,0.2", "preset=tiny", "training={max_epochs: 3}"],
         "training.max_steps: preset tiny would end with its own updates, not with those of training.max_epochs"),
        (["run=a,b"], "command line: run: cannot be tried (each trial has a run folder of its own)"),
        (["data.test.0.src=a,b"], "command line: data.test.0.src: cannot be tried (no trial reads test sets)"),
        (["model.dropout=0.1,0.2,0.3", "training.max_steps=90", "validation.every_steps=90"],
         "validation.every_steps: 2 rungs would be at updates 90, 90 (rungs are at validations: set it to at most 30"),
        (["validation.best=bleu,loss"], "validation.best: trials with different metrics cannot be compared"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_swept(children: Children, arguments: list[str], message: str) -> None:
    code, _, err = tiny.mtkit("sweep", "my.yaml", *arguments)
    assert code == 2
    assert tiny.one_line(err).startswith(f"error: {message}")
    assert children.calls == [] and not Path("runs/x.sweep").exists()


def weights(run: Path) -> str:
    return sha256_file(list_checkpoints(run)[-1] / "model.safetensors")


def records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text("utf-8").removesuffix("\n").split("\n")
    timing = ("seconds", "target_tokens_per_second", "memory")
    return [{k: v for k, v in json.loads(line).items() if k not in timing} for line in lines]


def test_a_run_that_stops_at_an_update_learns_what_it_would_have_learned(here: Path) -> None:
    keys = [
        "training.schedule=cosine",
        "training.ema_decay=0.9",
        "validation.metrics=[]",
        "validation.best=loss",
    ]
    config = load_config(
        "my.yaml", [*keys, "training.max_steps=30", "validation.every_steps=10", "data.test=[]"]
    )
    whole, parts = (config.model_copy(update={"run": name}) for name in ("whole", "parts"))
    result = train(whole)
    for stop_at in (10, 20):
        stopped = train(parts, stop_at=stop_at)
        assert (stopped.step, stopped.reason) == (stop_at, f"stopped at step {stop_at}")
        assert not Path("parts/results.json").exists()
    assert train(parts, stop_at=10).step == 20
    ended = train(parts, stop_at=30)
    assert (ended.step, ended.reason, ended.best) == (30, "step 30 is the last", result.best)
    assert weights(Path("parts")) == weights(Path("whole"))
    assert records(Path("parts")) == records(Path("whole"))
    assert Path("parts/results.json").exists()


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_one_that_is_killed_is_continued(here: Path) -> None:
    arguments = [
        "sweep",
        "my.yaml",
        "training.learning_rate=0.001,0.01,0.02",
        *STEPS,
        "validation.num_samples=0",
    ]
    environment = tiny.child_environment() | {"MTKIT_CACHE": str(here / "cache")}
    first = subprocess.Popen(
        tiny.command(*arguments, "--trial", "0"), env=environment, start_new_session=True
    )
    stages = Path("runs/x.sweep")
    while not list(stages.glob("trial-000/checkpoints/step-*")):
        assert first.poll() is None
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = subprocess.run(
        tiny.command(*arguments, "--jobs", "2"), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((stages / "sweep.json").read_bytes())
    assert [len(trial["scores"]) for trial in found["trials"]] == [2, 1, 1]
    log = (stages / "worker-1.log").read_text("utf-8")
    assert "rung 1 of 2, trial 1" in log or "rung 1 of 2, trial 2" in log
    best = found["trials"][0]["run"]
    config = load_config(stages / "best.yaml").model_copy(update={"run": "alone"})
    assert train(config).step == 90
    assert weights(Path("alone")) == weights(Path(best))
