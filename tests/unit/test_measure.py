"""recipes/measure.py: a row is a measurement of the commands, the configs and the commit that it names."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

MTKIT = """
import json, sys, time
from pathlib import Path

command, *words = sys.argv[1:]
keys = dict(word.split("=", 1) for word in words if "=" in word)
with open("calls.txt", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if command == "evaluate":
    signature, confidence = "tok:13a", 1.5
    print(json.dumps([{"scores": [{"name": "BLEU", "score": 20.0, "confidence": confidence, "signature": signature}]}]))
    sys.exit()
end = time.process_time() + 0.05
while time.process_time() < end:
    pass
if Path("fails").exists():
    Path("fails").unlink()
    sys.exit(1)
run = Path(keys["run"])
(run / "test").mkdir(parents=True, exist_ok=True)
(run / "test" / "set.hyps.txt").touch()
(run / "facts.json").write_text(json.dumps({"processor": "a CPU"}))
steps = int(keys.get("steps", 7))
(run / "results.json").write_text(json.dumps({"best": 19.0, "best_step": steps - 1, "step": steps}))
"""
SYSTEMS = """
seeds: [1, 2]
steps: 100
command: train $recipe/c.yaml run=$run steps=$steps
references: refs
langs: en-de
systems:
  plain: ""
  dropout 0.1: dropout=0.1
  two: ["train $recipe/c.yaml run=$run.first seed=$seed", "train $recipe/c.yaml run=$run $plain"]
"""


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a program in place of mtkit that writes down how it is called."""
    spec = importlib.util.spec_from_file_location("measure", ROOT / "recipes" / "measure.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "measure", module)
    spec.loader.exec_module(module)
    (tmp_path / "mtkit.py").write_text(MTKIT)
    (tmp_path / "systems.yaml").write_text(SYSTEMS)
    (tmp_path / "c.yaml").write_text("a: 1")
    monkeypatch.setattr(module, "MTKIT", [sys.executable, "mtkit.py"])
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "git", lambda *words: "" if words[0] == "status" else "abc")
    return module


def measured(module: ModuleType, folder: Path, *systems: str, again: bool = False) -> list[dict[str, Any]]:
    recipe = module.Recipe(folder)
    arguments = argparse.Namespace(
        systems=systems or None, seeds=None, runs=folder / "runs", data=folder, jobs=1, again=again
    )
    module.measure_missing(recipe, arguments)
    rows: list[dict[str, Any]] = recipe.current_rows()
    return rows


def calls(folder: Path) -> list[str]:
    """Return the calls of `mtkit train` since the last call of this, and forget them."""
    path = folder / "calls.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line.replace(str(folder), "") for line in lines if line.startswith("train")]


def test_each_system_is_measured_once(measure: ModuleType, tmp_path: Path) -> None:
    rows = measured(measure, tmp_path)
    assert [(row["system"], row["seed"]) for row in rows] == [
        ("plain", 1), ("dropout 0.1", 1), ("two", 1), ("plain", 2), ("dropout 0.1", 2), ("two", 2)
    ]  # fmt: skip
    assert calls(tmp_path)[2:4] == [
        "train /c.yaml run=/runs/two-1.first seed=1",
        "train /c.yaml run=/runs/two-1 /runs/plain-1",
    ]
    assert all(row["cpu_minutes"] >= 0 and row["commit"] == "abc" for row in rows)
    assert measured(measure, tmp_path) == rows and not calls(tmp_path)
    title, _, plain, *_, signature = measure.table(rows)
    assert title == "| system | updates | CPU minutes | validation | BLEU | 95 % | seeds |"
    assert plain.startswith("| plain | 100 |") and plain.endswith(
        "| 19.00 ± 0.00 | 20.00 ± 0.00 | ± 1.50 | 2 |"
    )
    assert signature == "BLEU: `tok:13a`"


def test_what_has_changed_is_measured_afresh(
    measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(measure, tmp_path, "plain")
    (tmp_path / "runs" / "plain-1" / "old").touch()
    (tmp_path / "systems.yaml").write_text(SYSTEMS.replace("steps: 100", "steps: 200"))
    assert [row["step"] for row in measured(measure, tmp_path, "plain")] == [200, 200]
    assert not (tmp_path / "runs" / "plain-1" / "old").exists() and len(calls(tmp_path)) == 4
    (tmp_path / "c.yaml").write_text("a: 2")
    assert len(measured(measure, tmp_path, "plain")) == len(calls(tmp_path)) == 2
    monkeypatch.setattr(measure, "git", lambda *words: "" if words[0] == "status" else "def")
    assert len(measured(measure, tmp_path, "plain")) == 2 and not calls(tmp_path)
    (tmp_path / "runs" / "plain-1" / "old").touch()
    assert {row["commit"] for row in measured(measure, tmp_path, "plain", again=True)} == {"def"}
    assert not (tmp_path / "runs" / "plain-1" / "old").exists() and len(calls(tmp_path)) == 2
    (tmp_path / "c.yaml").write_text("a: 1")
    (tmp_path / "systems.yaml").write_text(SYSTEMS)
    assert measure.Recipe(tmp_path).current_rows() == first


def test_a_system_that_was_stopped_goes_on_and_keeps_its_time(measure: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "fails").touch()
    with pytest.raises(SystemExit, match="exited with 1"):
        measured(measure, tmp_path, "two")
    note = tmp_path / "runs" / "two-1.json"
    first = json.loads(note.read_text())
    assert first["num_done"] == 0 and first["cpu_seconds"] > 0.05 and not first["is_running"]
    calls(tmp_path)
    measured(measure, tmp_path, "two")
    assert json.loads(note.read_text())["cpu_seconds"] > first["cpu_seconds"] + 0.1
    assert len(calls(tmp_path)) == 4


def test_a_time_that_a_killed_call_has_lost_is_not_told(measure: ModuleType, tmp_path: Path) -> None:
    recipe = measure.Recipe(tmp_path)
    run = tmp_path / "runs" / "plain-1"
    run.parent.mkdir()
    measure.write_progress(
        run, measure.Progress(recipe.identity("plain", 1, "updates", 100), "abc"), is_running=True
    )
    rows = measured(measure, tmp_path, "plain")
    assert [row["cpu_minutes"] is None for row in rows] == [True, False]
    recipe.baseline = "plain"
    with pytest.raises(SystemExit, match=r"no CPU time of dropout 0\.1 and plain"):
        recipe.relative_cost("dropout 0.1")


def test_a_lost_time_can_be_measured_again(measure: ModuleType, tmp_path: Path) -> None:
    identity = measure.Recipe(tmp_path).identity("plain", 1, "updates", 100)
    (tmp_path / "runs").mkdir()
    measure.write_progress(tmp_path / "runs" / "plain-1", measure.Progress(identity, "abc"), is_running=True)
    assert measured(measure, tmp_path, "plain")[0]["cpu_minutes"] is None
    assert all(row["cpu_minutes"] is not None for row in measured(measure, tmp_path, "plain", again=True))


def test_a_row_of_two_commits_names_neither(
    measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fails").touch()
    with pytest.raises(SystemExit):
        measured(measure, tmp_path, "plain")
    monkeypatch.setattr(measure, "git", lambda *words: "" if words[0] == "status" else "def")
    assert [row["commit"] for row in measured(measure, tmp_path, "plain")] == ["changed", "def"]


def test_what_begins_with_a_changed_system_is_measured_afresh(measure: ModuleType, tmp_path: Path) -> None:
    assert len(measured(measure, tmp_path)) == 6
    (tmp_path / "systems.yaml").write_text(SYSTEMS.replace('plain: ""', "plain: label_smoothing=0"))
    assert [row["system"] for row in measure.Recipe(tmp_path).current_rows()] == ["dropout 0.1"] * 2


def test_a_folder_of_something_else_is_left_alone(measure: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "runs" / "plain-1").mkdir(parents=True)
    with pytest.raises(SystemExit, match="is not from a measurement"):
        measured(measure, tmp_path, "plain")


def test_a_slower_system_gets_fewer_updates_for_equal_minutes(
    measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "systems.yaml").write_text("equal_minutes_to: plain" + SYSTEMS)
    monkeypatch.setattr(measure.Recipe, "relative_cost", lambda self, system: 2.0 if system == "two" else 1.0)
    rows = measured(measure, tmp_path)
    assert [row["steps"] for row in rows if row["equal"] == "minutes"] == [50, 50]
    assert (tmp_path / "runs" / "two-minutes-1").is_dir()
    assert any("two, equal minutes" in line for line in measure.table(rows))
