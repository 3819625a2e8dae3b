"""A non-finite loss stops the run before the weights are touched, or rolls it back to a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

import mtkit
from mtkit.errors import TrainingError
from mtkit.training.engine import Engine
from mtkit.training.progress import Progress
from mtkit.training.state import SpikeDetector
from mtkit.training.updates import Update, UpdateLoader
from mtkit.training.validation import ValidationResult, Validator

OPTIONS = ["training.save_every_steps=5", "training.max_steps=20", "training.on_divergence=rollback",
           "validation.every_steps=10", "training.keep_last=100", "data.test=[]"]  # fmt: skip
RARE = [
    "training.save_every_steps=100",
    "validation.every_steps=100",
    "validation.metrics=[]",
    "validation.best=loss",
]


def spoil(monkeypatch: pytest.MonkeyPatch, spoiled: Callable[[int, int], bool], value: float) -> None:
    """Change the loss and the gradient of the updates with these (epoch, batch)."""
    original = Engine.forward_backward

    def forward_backward(self: Engine, update: Update, num_targets: int, step: int) -> Tensor:
        sums = original(self, update, num_targets, step)
        if not spoiled(update.epoch, update.last_batch):
            return sums
        for parameter in self.model.parameters():
            assert parameter.grad is not None
            parameter.grad.fill_(value)
        return torch.full_like(sums, value * num_targets)

    monkeypatch.setattr(Engine, "forward_backward", forward_backward)


def poison(monkeypatch: pytest.MonkeyPatch, *poisonous: int) -> None:
    """Make the loss of every update that contains one of these pairs NaN."""
    original = Engine.forward_backward

    def forward_backward(self: Engine, update: Update, num_targets: int, step: int) -> Tensor:
        sums = original(self, update, num_targets, step)
        return sums * math.nan if np.isin(update.pairs(), poisonous).any() else sums

    monkeypatch.setattr(Engine, "forward_backward", forward_backward)


def test_pairs_at_which_it_diverged_are_met_once(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 17, 250)  # in two updates
    seen: list[int] = []
    original = UpdateLoader.num_targets

    def num_targets(self: UpdateLoader, update: Update) -> int:
        seen.extend(update.pairs())
        return original(self, update)

    monkeypatch.setattr(UpdateLoader, "num_targets", num_targets)
    result = mtkit.train(
        mtkit.load_config(config, [*OPTIONS, *RARE, "training.max_steps=null", "training.max_epochs=2"])
    )
    lines = tiny.records(tmp_path / "run", "rollback")
    (step,) = tiny.checkpoints(tmp_path / "run")[-1:]
    state = json.loads((tiny.checkpoint(tmp_path / "run", step) / "state.json").read_text())
    skipped = state["skipped"]
    assert {17, 250} < set(skipped)
    assert sum(len(line["sentences"]) for line in lines) == len(skipped)
    assert (state["rollbacks"], result.step) == (2, step)
    assert {seen.count(pair) for pair in skipped} == {1}


def test_going_back_to_the_start_forgets_all(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that diverges at its fourth update continues like one that skipped its first four."""
    options = [*OPTIONS, *RARE, "training.max_steps=10", "training.ema_decay=0.9"]
    for name, first in (("later", 3), ("at-once", 0)):
        path = tiny.write_config(tmp_path / f"{name}.yaml", run=tmp_path / name, root=corpus)
        with monkeypatch.context() as patch:
            spoil(patch, lambda epoch, number, first=first: epoch == 0 and first <= number <= 3, math.nan)
            mtkit.train(mtkit.load_config(path, options))
    later, at_once = (tiny.checkpoint(tmp_path / name, 10) for name in ("later", "at-once"))
    assert len(tiny.records(tmp_path / "at-once", "rollback")) == 4
    assert tiny.tensors(later) == tiny.tensors(at_once)


def test_when_all_pairs_diverge_the_run_stops(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, *range(400))
    with pytest.raises(TrainingError, match="no other pairs are left"):
        mtkit.train(mtkit.load_config(config, [*OPTIONS, "training.batch_tokens=100000"]))


def test_a_run_that_is_killed_behind_a_rollback_goes_on_the_same(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run does not diverge again: the state records its position and the pairs to skip."""
    poison(monkeypatch, 17)

    class Killed(BaseException):
        pass

    def killed(self: Progress, step: int, line: str) -> None:
        raise Killed

    for name in ("whole", "killed"):
        path = tiny.write_config(tmp_path / f"{name}.yaml", run=tmp_path / name, root=corpus)
        config = mtkit.load_config(path, [*OPTIONS, *RARE, "training.max_steps=45"])
        if name == "killed":
            with monkeypatch.context() as patch:
                patch.setattr(Progress, "log_rollback", killed)
                with pytest.raises(Killed):
                    mtkit.train(config)
        mtkit.train(config)
        assert len(tiny.records(tmp_path / name, "rollback")) == 1
    whole, killed_run = (tiny.tensors(tiny.checkpoint(tmp_path / name, 45)) for name in ("whole", "killed"))
    assert whole == killed_run


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
    for name, stops in (("whole", ()), ("stopped", (5, 12))):
        path = tiny.write_config(tmp_path / f"{name}.yaml", run=tmp_path / name, root=corpus)
        for last in (*stops, 20):
            mtkit.train(mtkit.load_config(path, [*OPTIONS, *RARE[2:], f"training.max_steps={last}"]))
        assert len(tiny.records(tmp_path / name, "rollback")) == 1
    whole, stopped = (tiny.tensors(tiny.checkpoint(tmp_path / name, 20)) for name in ("whole", "stopped"))
    assert whole == stopped


def test_a_jump_of_the_loss_takes_the_run_back(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpikeDetector, "WARM_UP_UPDATES", 8)
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
    assert "5 rollbacks did not help" in str(caught.value)
    assert len(tiny.records(tmp_path / "run", "rollback")) == 5
    assert tiny.checkpoints(tmp_path / "run") == [0, 5]


def test_by_default_it_stops_and_names_the_sentences(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda epoch, number: (epoch, number) == (0, 7), float("nan"))
    code, _, err = tiny.mtkit("train", config, *OPTIONS, "training.on_divergence=stop")
    assert code == 4
    assert "the loss of step 8 is not finite; its sentences: " in tiny.one_line(err)
    assert "/train.src:" in err
    assert "on_divergence rollback" in err


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_precision_can_go_back(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    spoil(monkeypatch, lambda epoch, number: (epoch, number) == (0, 7), float("nan"))
    mtkit.train(mtkit.load_config(config, [*OPTIONS, f"training.precision={precision}"]))
    (line,) = tiny.records(tmp_path / "run", "rollback")
    assert line["step"] == 5


def test_going_back_keeps_the_best_and_all_sentences_are_recorded(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda epoch, number: (epoch, number) == (0, 12), float("nan"))
    rare = ["training.save_every_steps=100", "validation.every_steps=5", "validation.best=loss"]
    result = mtkit.train(mtkit.load_config(config, [*OPTIONS, *rare]))
    validations = tiny.records(tmp_path / "run", "valid")
    assert result.best == min(line["loss"] for line in validations)
    (line,) = tiny.records(tmp_path / "run", "diverged")
    assert line["step"] == 13
    assert len(line["sentences"]) > 8
    assert all("/train.src:" in place for place in line["sentences"])


def test_a_best_validation_behind_the_checkpoint_starts_patience_anew(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that, the first validation after the rollback would be one too many."""
    losses = iter([1.0, 2.0, 3.0, 0.5, 2.0, 2.0, 2.0])
    monkeypatch.setattr(Validator, "validate", lambda *_, **__: ValidationResult(next(losses), {}, []))
    spoil(monkeypatch, lambda epoch, number: (epoch, number) == (0, 8), math.nan)
    result = mtkit.train(
        mtkit.load_config(
            config,
            [*OPTIONS, *RARE, "validation.every_steps=2", "validation.patience=3",
             "training.save_every_steps=6"],
        )
    )  # fmt: skip
    assert len(tiny.records(tmp_path / "run", "rollback")) == 1
    assert (result.best, result.best_step, result.step) == (0.5, 8, 12)
