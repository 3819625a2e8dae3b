"""A loss that is no number stops the run before the weights are touched, or takes it back to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import mtkit
from mtkit.errors import TrainingError
from mtkit.training.state import LossWatch
from mtkit.training.trainer import Trainer

OPTIONS = ["training.save_every_steps=5", "training.max_steps=20", "training.on_divergence=rollback",
           "validation.every_steps=10", "training.keep_last=100", "data.test=[]"]  # fmt: skip


def spoil(monkeypatch: pytest.MonkeyPatch, spoiled: Callable[[int, int], bool], value: float) -> None:
    """Give the updates of these (epoch, batch) another loss, and their gradient too."""
    original = Trainer._gradients
    step = Trainer.train_step
    now: list[tuple[int, int]] = []

    def train_step(self: Trainer, update: Any) -> None:
        now[:] = [(epoch, number) for epoch, number, _ in update]
        step(self, update)

    def gradients(self: Trainer, batches: Any, num_targets: int) -> list[float]:
        sums = original(self, batches, num_targets)
        if not any(spoiled(*place) for place in now):
            return sums
        for parameter in self.model.parameters():
            assert parameter.grad is not None
            parameter.grad.fill_(value)
        return [value * num_targets, value * num_targets]

    monkeypatch.setattr(Trainer, "train_step", train_step)
    monkeypatch.setattr(Trainer, "_gradients", gradients)


def test_a_loss_that_is_no_number_takes_the_run_back_and_behind_its_sentences(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda epoch, number: (epoch, number) == (0, 7), float("nan"))
    result = mtkit.train(mtkit.load_config(config, OPTIONS))
    assert result.step == 20
    (line,) = tiny.records(tmp_path / "run", "rollback")
    assert line["step"] == 5
    assert line["diverged_step"] == 8
    assert "is not finite; its sentences: " in line["reason"]
    steps = [line["step"] for line in tiny.records(tmp_path / "run", "train")]
    assert steps == [*range(1, 8), *range(6, 21)]
    weights = mtkit.Translator.load(tmp_path / "run").model.parameters()
    assert all(torch.isfinite(weight).all() for weight in weights)


def test_a_run_that_went_back_can_be_stopped_and_goes_on_the_same(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda epoch, number: (epoch, number) == (0, 7), float("inf"))
    for name, stops in (("whole", ()), ("stopped", (6, 12))):
        path = tiny.write_config(tmp_path / f"{name}.yaml", run=tmp_path / name, root=corpus)
        for last in (*stops, 20):
            mtkit.train(mtkit.load_config(path, [*OPTIONS, f"training.max_steps={last}"]))
    last = [tiny.tensors(tiny.checkpoint(tmp_path / name, 20)) for name in ("whole", "stopped")]
    assert last[0].keys() == last[1].keys()


def test_a_jump_of_the_loss_takes_the_run_back(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossWatch, "UPDATES_TO_KNOW", 8)
    spoil(monkeypatch, lambda epoch, number: (epoch, number) == (0, 12), 300.0)
    mtkit.train(mtkit.load_config(config, OPTIONS))
    (line,) = tiny.records(tmp_path / "run", "rollback")
    assert line["step"] == 10
    assert "the loss jumped from" in line["reason"]


def test_going_back_again_and_again_ends(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda epoch, number: (epoch, number) >= (0, 7), float("nan"))
    with pytest.raises(TrainingError) as caught:
        mtkit.train(mtkit.load_config(config, OPTIONS))
    assert "going back 5 times did not help" in str(caught.value)
    assert len(tiny.records(tmp_path / "run", "rollback")) == 5
    assert tiny.checkpoints(tmp_path / "run") == [0, 5]


def test_by_default_it_stops_and_names_the_sentences(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda epoch, number: (epoch, number) == (0, 7), float("nan"))
    code, _, err = tiny.mtkit("train", config, *OPTIONS, "training.on_divergence=stop")
    assert code == 4
    assert "the loss of step 8 is not finite; its sentences: " in tiny.one_line(err)
    assert "/train.src:" in err
    assert "on_divergence rollback" in err
