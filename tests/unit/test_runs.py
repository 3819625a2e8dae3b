"""The table of runs: found, read from their ends, compared, sorted, and listed even if they are damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from mtkit.config.loading import dump_config, parse_config
from mtkit.errors import ConfigError, StorageError
from mtkit.evaluation.runs import differing_keys, find_runs, sort_runs
from mtkit.files import FolderLock, read_lines_backwards

DATA = {"src": "en", "tgt": "de", "train": [{"path": "x.tsv"}], "valid": [{"path": "v.tsv"}]}


def update(step: int, speed: float = 1000.0) -> dict[str, object]:
    return {"kind": "train", "step": step, "loss": 1.0, "target_tokens_per_second": speed}


def valid(step: int, bleu: float, best: bool = True) -> dict[str, object]:
    return {"kind": "valid", "step": step, "loss": 1.0, "bleu": bleu, "best": best}


def make_run(folder: Path, *records: dict[str, object], ended: int | None = None, **settings: object) -> Path:
    """Write what the table reads of a run folder. Settings have `__` in place of the dot."""
    folder.mkdir(parents=True)
    data: dict[str, dict[str, object]] = {"data": dict(DATA), "training": {"max_steps": 100}}
    for key, value in settings.items():
        section, _, name = key.partition("__")
        data.setdefault(section, {})[name] = value
    (folder / "config.yaml").write_text(dump_config(parse_config({"run": str(folder), **data})))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / ".mtkit-run").write_text("{}")
    if ended is not None:
        results = {"ended": "over", "step": ended, "best": 50.0, "best_step": ended, "tests": []}
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def names(folder: Path, key: str, *, reverse: bool = False) -> list[str]:
    return [run.name for run in sort_runs(find_runs(folder), key, reverse=reverse)]


def test_states_steps_best_and_speed(tmp_path: Path) -> None:
    make_run(tmp_path / "done", update(50), valid(100, 3.0), ended=100)
    make_run(tmp_path / "going", *(update(step, 100.0 * step) for step in range(1, 41)), valid(40, 7.5))
    make_run(tmp_path / "halted", valid(10, 2.0), valid(20, 1.0, best=False), update(25), ended=20)
    with FolderLock(tmp_path / "going"):
        done, going, halted = find_runs(tmp_path)
    assert [run.state for run in (done, going, halted)] == ["ended", "running", "stopped"]
    assert [run.steps for run in (done, going, halted)] == [100, 40, 25]
    assert [run.best and (run.best.value, run.best.step) for run in (done, going, halted)] == [
        (50.0, 100), (7.5, 40), (2.0, 10),
    ]  # fmt: skip
    assert going.speed == pytest.approx(3050)  # the median of the last twenty
    assert all(run.problems == () and run.limit == 100 for run in (done, going, halted))


def test_what_a_rollback_undid_does_not_count(tmp_path: Path) -> None:
    rollback = {"kind": "rollback", "step": 20, "diverged_step": 45}
    make_run(tmp_path / "run", update(20), valid(20, 5.0), update(40), valid(40, 9.0), rollback)
    [run] = find_runs(tmp_path)
    assert run.steps == 20
    assert run.best is not None  # training keeps the best weights over a rollback
    assert (run.best.value, run.best.step) == (9.0, 40)


def test_run_folders_are_found_below_and_nothing_else(tmp_path: Path) -> None:
    make_run(tmp_path / "sweep/lr/run10")
    make_run(tmp_path / "sweep/lr/run2")
    make_run(tmp_path / "alone/checkpoints-of-mine")
    make_run(tmp_path / "alone/checkpoints-of-mine/inside")  # a run in a run is not looked for
    make_run(tmp_path / ".hidden/run")
    make_run(tmp_path / "model/run")  # a model folder is not looked at either
    for name in ("configs/config.yaml", "model/config.yaml", "model/manifest.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("run: x")
    make_run(tmp_path / "configs/run")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "latest").symlink_to("sweep/lr/run10")  # listed once, by its own name
    (tmp_path / "linked").symlink_to(make_run(tmp_path / ".hidden/elsewhere"))
    assert [run.name for run in find_runs(tmp_path)] == [
        "alone/checkpoints-of-mine", "configs/run", "linked", "sweep/lr/run2", "sweep/lr/run10",
    ]  # fmt: skip
    assert [run.name for run in find_runs(tmp_path / "sweep/lr/run2")] == ["run2"]
    with pytest.raises(StorageError, match="no such folder"):
        find_runs(tmp_path / "missing")


def test_keys_that_differ_and_sorting(tmp_path: Path) -> None:
    make_run(tmp_path / "a", valid(1, 20.0), update(30, 5.0), training__learning_rate=0.001)
    make_run(tmp_path / "b", valid(1, 30.0), update(10, 9.0), training__learning_rate=0.0005)
    make_run(tmp_path / "c", update(20, 7.0), model__dropout=0.3)
    assert differing_keys(find_runs(tmp_path)) == ["model.dropout", "training.learning_rate"]
    assert names(tmp_path, "name", reverse=True) == ["c", "b", "a"]
    assert names(tmp_path, "best") == ["b", "a", "c"]  # one without a score is last
    assert names(tmp_path, "best", reverse=True) == ["a", "b", "c"]
    assert names(tmp_path, "steps") == ["a", "c", "b"]
    assert names(tmp_path, "speed") == ["b", "c", "a"]
    assert names(tmp_path, "learning_rate") == ["b", "a", "c"]
    assert names(tmp_path, "training.learning_rate", reverse=True)[2] == "b"
    with pytest.raises(ConfigError, match="several keys end with max_length_ratio"):
        names(tmp_path, "max_length_ratio")
    with pytest.raises(ConfigError, match="no key 'lr'"):
        names(tmp_path, "lr")


def test_a_lower_loss_is_better(tmp_path: Path) -> None:
    for name, loss in (("high", 2.5), ("low", 1.5)):
        record = {"kind": "valid", "step": 1, "loss": loss, "best": True}
        make_run(tmp_path / name, record, validation__best="loss")
    assert names(tmp_path, "best") == ["low", "high"]


def test_damaged_folders_are_listed_with_what_is_wrong(tmp_path: Path) -> None:
    make_run(tmp_path / "whole", update(1))
    (make_run(tmp_path / "no-config", update(7)) / "config.yaml").unlink()
    (make_run(tmp_path / "bad-config", update(7)) / "config.yaml").write_text("run: [\n")
    with (make_run(tmp_path / "bad-key", update(7)) / "config.yaml").open("a") as config:
        config.write("future: 1\n")
    (make_run(tmp_path / "bad-results", update(7), ended=7) / "results.json").write_text('{"step": ')
    (make_run(tmp_path / "noise") / "metrics.jsonl").write_bytes(b"\xff\xfe\n" * 9)
    (make_run(tmp_path / "torn", update(3)) / "metrics.jsonl").open("a").write('{"kind": "train", "st')
    (make_run(tmp_path / "empty") / "metrics.jsonl").unlink()
    code, out, err = tiny.mtkit("runs", tmp_path)
    assert (code, err) == (0, "")
    table, problems = out.splitlines()[:9], out.splitlines()[9:]
    assert [line.split()[0] for line in table[1:]] == [
        "bad-config", "bad-key", "bad-results", "empty", "no-config", "noise", "torn", "whole",
    ]  # fmt: skip
    assert ["damaged" in line for line in table[1:]] == [True, True, False, False, True, False, False, False]
    assert [line.split(": ")[0] for line in problems] == [
        "bad-config", "bad-key", "bad-results", "empty", "no-config", "noise",
    ]  # fmt: skip
    for line, word in zip(
        problems,
        ("config.yaml:1", "future", "results.json", "no metrics", "no config", "no line"),
        strict=True,
    ):
        assert word in line


def test_the_table_and_json(tmp_path: Path) -> None:
    run = make_run(tmp_path / "größe\x1b[1m", valid(5, 12.345), update(50, 4321.4))
    make_run(tmp_path / "b", update(100), ended=100, training__learning_rate=0.002)
    code, out, err = tiny.mtkit("runs", tmp_path, "--sort", "steps")
    assert (code, err) == (0, "")
    header, first, second = out.splitlines()
    assert header.split() == ["run", "learning_rate", "steps", "best", "bleu", "tokens/s", "state", "when"]
    assert first.split()[:6] == ["b", "0.002", "100", "50.00", "1,000", "ended"]
    assert second.split()[:7] == [r"größe\x1b[1m", "0.001", "50", "of", "100", "12.35", "4,321"]
    assert header.index("state") == first.index("ended") == second.index("stopped")
    code, out, _ = tiny.mtkit("runs", tmp_path, "--json", "--sort", "steps", "--reverse")
    found = json.loads(out)[0]
    assert code == 0
    assert found["config"] == {"training.learning_rate": 0.001}
    assert found["best"] == {"metric": "bleu", "value": 12.345, "step": 5}
    assert (found["steps"], found["max_steps"], found["state"]) == (50, 100, "stopped")
    assert found["folder"] == str(run)


def test_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny.mtkit("runs", tmp_path) == (0, "", f"no run folder in {tmp_path}\n")
    assert tiny.mtkit("runs", tmp_path, "--json") == (0, "[]\n", "")
    monkeypatch.chdir(tmp_path)
    code, out, err = tiny.mtkit("runs")
    assert (code, out) == (5, "")
    assert "runs: no such folder" in tiny.one_line(err)


@pytest.mark.parametrize("block", [1, 3, 7, 1 << 16])
@pytest.mark.parametrize(
    "text", [b"", b"a", b"\n", b"a\n", b"a\nbc", b"a\n\nbcd\n\n", b"\n\na\n", b"abc\n" * 9]
)
def test_lines_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, block: int) -> None:
    monkeypatch.setattr("mtkit.files.writing._BACKWARD_BYTES", block)
    path = tmp_path / "file"
    path.write_bytes(text)
    assert list(read_lines_backwards(path)) == text.split(b"\n")[:-1][::-1]


@pytest.mark.slow
def test_a_hundred_runs_with_long_logs_take_two_seconds(tmp_path: Path) -> None:
    """Logs of 200,000 updates whose best validation came in the middle; processor time, with that of the start."""
    fields = {"nll": 1.23456789, "grad_norm": 0.123456, "lr": 1e-3, "epoch": 1.2, "seconds": 1.5}
    lines = [json.dumps(update(50 * number) | fields) for number in range(4000)]
    lines[2000] = json.dumps(valid(100_000, 9.0))
    text = "".join(line + "\n" for line in lines)
    for number in range(100):
        run = make_run(tmp_path / f"run{number}", training__learning_rate=0.001 + number / 1e6)
        (run / "metrics.jsonl").write_text(text)
    code = """
import resource, sys
from mtkit.cli import run
run(["runs", sys.argv[1], "--json"])
assert "torch" not in sys.modules
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, file=sys.stderr)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=tiny.child_environment(), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert [run["best"]["step"] for run in found] == [100_000] * 100
    assert float(done.stderr) < 2.0
