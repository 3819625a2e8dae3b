"""recipes/gpu: its steps run where their inputs exist, and on the GPU that was asked for."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pretended_gpu import PretendedGPU

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "gpu"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, f"gpu_{name}", module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("state", ["done", "stopped"])
def test_a_model_is_measured_once_it_is_trained(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = load("measure", monkeypatch)

    def run_step(step: Any, *_: Any) -> dict[str, Any]:
        if step.name != "multi30k-base":
            return {"state": "done", "seconds": 1.0}
        if state == "done":
            folder = tmp_path / "work" / step.name
            folder.mkdir()
            (folder / "results.json").touch()
        return {"state": state, "seconds": 1.0}

    monkeypatch.setattr(measure, "run_step", run_step)
    folders = (f"--{name}={tmp_path / name}" for name in ("out", "work", "data"))
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(sys, "argv", ["measure.py", *folders])
    assert measure.main() == 0
    steps = json.loads((tmp_path / "out" / "results.json").read_text())["steps"]
    assert any(name.startswith("decode") for name in steps) == (state == "done")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == ("nothing is left" if state == "done" else "1 steps are left: call again")


def test_the_machine_is_the_gpu_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = load("measure", monkeypatch)
    waited: list[object] = []
    monkeypatch.setattr(sys, "argv", ["-c", "cuda:1", "4"])
    with PretendedGPU():
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
        exec(measure.MACHINE, {})
    assert waited == 2 * [torch.device("cuda", 1)]
    assert json.loads(capsys.readouterr().out)["device"] == "pretended"


def test_the_peak_of_memory_is_that_of_one_system_on_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    decoding = load("decoding", monkeypatch)
    gpu, events = torch.device("cuda", 1), list[object]()
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: events.append(device) or 7)
    assert decoding.peak_bytes(events.append, ["batch 1", "batch 2"], gpu) == 7
    assert events == ["batch 1", "batch 2", gpu]
    assert decoding.peak_bytes(events.append, ["batch 1"], torch.device("cpu")) is None
