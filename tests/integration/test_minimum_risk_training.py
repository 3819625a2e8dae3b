"""Runs of minimum-risk training: resumed bit for bit, in several processes, and with adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from test_distributed import OPTIONS, train_distributed

RISK = "training.minimum_risk={metric: chrf, samples: 3, weight: 0.6}"
SHORT = [
    RISK, "validation.metrics=[]", "validation.best=loss", "data.test=[]", "training.batch_tokens=64",
    "validation.every_steps=2", "training.report=false",
]  # fmt: skip


def test_a_run_resumes_bit_for_bit(config: Path, tmp_path: Path) -> None:
    a, b = (tmp_path / name for name in ("a", "b"))
    for run, steps in ((a, 4), (b, 2), (b, 4)):
        code, _, err = tiny.mtkit("train", config, f"run={run}", *SHORT, f"training.max_steps={steps}")
        assert code == 0, err
    assert tiny.losses(a) == tiny.losses(b)
    changed = [f"run={b}", *SHORT, "training.max_steps=6", "training.minimum_risk.alpha=0.5"]
    code, _, err = tiny.mtkit("train", config, *changed)
    assert code == 2 and "training.minimum_risk.alpha: 1.0 -> 0.5" in tiny.one_line(err)


@pytest.mark.slow
def test_adapters_learn_from_risk_too(config: Path, trained: Path, tmp_path: Path) -> None:
    adapters = [f"init={trained}", "training.lora={rank: 2}", "training.max_steps=2"]
    assert tiny.mtkit("train", config, f"run={tmp_path / 'a'}", *SHORT, *adapters)[0] == 0


@pytest.mark.slow
def test_several_processes_learn_the_same(config: Path, tmp_path: Path) -> None:
    shared = [*OPTIONS, RISK, "training.max_steps=3"]
    assert tiny.mtkit("train", config, f"run={tmp_path / 'a'}", *shared)[0] == 0
    done = train_distributed(2, config, f"run={tmp_path / 'b'}", *shared)
    assert done.returncode == 0, done.stderr
    for one, two in zip(
        tiny.records(tmp_path / "a", "train"), tiny.records(tmp_path / "b", "train"), strict=True
    ):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_memory_options_and_half_precision_go_together(config: Path, tmp_path: Path) -> None:
    options = ["training.activation_checkpointing=true", "training.precision=bf16", "training.max_steps=2"]
    code, _, err = tiny.mtkit("train", config, f"run={tmp_path / 'a'}", *SHORT, *options, "training.simcut=3")
    assert code == 0, err
    code, out, err = tiny.mtkit("check", config, f"run={tmp_path / 'b'}", *SHORT, *options)
    assert code == 0, err
    assert "of the largest batch" in out
