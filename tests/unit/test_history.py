"""The history of a run, from logs that may be incomplete."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from mtkit.errors import StorageError
from mtkit.evaluation.history import Sample, read_history, thin


def write_log(path: Path, *records: dict[str, object], end: str = "") -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + end, encoding="utf-8")


def update(step: int, loss: float = 1.0) -> dict[str, object]:
    return {"kind": "train", "step": step, "loss": loss, "epoch": step / 2}


def valid(step: int, bleu: float | None = 10.0) -> dict[str, object]:
    return {"kind": "valid", "step": step, "bleu": bleu, "best": True, "seconds": step * 2.0}


def test_curves_have_the_finite_values(tmp_path: Path) -> None:
    write_log(tmp_path / "metrics.jsonl", update(1, 5.0), update(2, 4.0), valid(2), update(3), valid(4, None))
    history = read_history(tmp_path)
    assert history.train_curve("loss") == [(1, 5.0), (2, 4.0), (3, 1.0)]
    assert history.valid_curve("bleu") == [(2, 10.0)]
    assert history.valid_names() == ["bleu"]
    assert (history.last_step, history.seconds) == (4, 8.0)
    (tmp_path / "results.json").write_text('{"step": 9}')
    history = read_history(tmp_path)
    assert (history.last_step, history.epochs) == (9, 4.5)  # the last updates need not be logged


def test_damaged_lines_are_skipped(tmp_path: Path) -> None:
    damage = '[1]\n{"kind": "train"}\n{"step": "7", "kind": "train"}\n\xff\n{"kind": "train", "step": 3, "lo'
    write_log(tmp_path / "metrics.jsonl", update(1), update(2), end=damage)
    history = read_history(tmp_path)
    assert [record["step"] for record in history.updates] == [1, 2]
    assert history.num_damaged == 4  # the last line may be one that is being written


def test_no_line_is_too_strange(tmp_path: Path) -> None:
    write_log(tmp_path / "metrics.jsonl", update(1), update(2, 10**400), end="[" * 100_000 + "\n")
    history = read_history(tmp_path)
    assert (history.train_curve("loss"), history.last_step) == ([(1, 1.0)], 2)


def test_what_a_rollback_undid_is_not_told(tmp_path: Path) -> None:
    before = [update(1), update(2), valid(2, 9.0), update(3, 99.0), valid(4, 1.0)]
    rollback = {"kind": "rollback", "step": 2}
    write_log(tmp_path / "metrics.jsonl", *before, rollback, update(3, 0.5))
    samples = [{"kind": "valid", "step": step, "samples": [["s", "r", str(step)]]} for step in (2, 4)]
    write_log(tmp_path / "samples.jsonl", *samples)
    history = read_history(tmp_path)
    assert history.train_curve("loss") == [(1, 1.0), (2, 1.0), (3, 0.5)]
    assert history.valid_curve("bleu") == [(2, 9.0)]
    assert history.samples == {2: [Sample("s", "r", "2")]}
    assert history.rollbacks == [2]
    assert history.best is not None and history.best["step"] == 4  # its weights are kept


def test_of_samples_only_three_strings_are_told(tmp_path: Path) -> None:
    write_log(tmp_path / "metrics.jsonl", valid(1), valid(2))
    kept = [["s", "r", "h"], ["s", "r"], "srh", ["s", "r", 1]]
    write_log(tmp_path / "samples.jsonl", {"kind": "valid", "step": 1, "samples": kept},
              {"kind": "valid", "step": 2, "samples": None})  # fmt: skip
    assert read_history(tmp_path).samples == {1: [Sample("s", "r", "h")]}


def test_a_folder_without_a_log_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a run folder"):
        read_history(tmp_path)


def test_thinning_keeps_spikes_and_ends() -> None:
    rng = random.Random(1)
    points = [(step, rng.random()) for step in range(1, 100_001)]
    points[56_789], points[1234] = (56_790, 50.0), (1235, -50.0)
    thinned = thin(points, 1000)
    assert len(thinned) <= 1002
    assert thinned == sorted(thinned)
    assert {points[0], points[-1], points[56_789], points[1234]} <= set(thinned)
    assert thin(points[:1000], 1000) == points[:1000]
