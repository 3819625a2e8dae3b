"""Saving memory does not change what is learned, and what does not fit is known before the first update."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import mtkit
from mtkit.errors import TrainingError
from mtkit.training import memory, run
from mtkit.training.loss import TensorBatch
from mtkit.training.parallel import Objective
from mtkit.training.progress import Progress
from mtkit.training.trainer import Trainer

SAME = [
    "training.precision=fp32", "training.max_steps=8", "model.attention_dropout=0.1", "model.token_dropout=0.1",
    "model.layer_dropout=0.3", "data.test=[]",
]  # fmt: skip


def train(config: Path, *overrides: str) -> None:
    """Train through the Python API."""
    mtkit.train(mtkit.load_config(config, [*SAME, *overrides]))


@pytest.fixture
def two(tmp_path: Path, corpus: Path) -> tuple[Path, Path]:
    """Return configs of runs in `tmp_path / "a"` and `tmp_path / "b"`."""
    a, b = (
        tiny.write_config(tmp_path / f"{name}.yaml", run=tmp_path / name, root=corpus) for name in ("a", "b")
    )
    return a, b


def test_activation_checkpointing_gives_the_same_numbers_bit_for_bit(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    train(two[0])
    train(two[1], "training.activation_checkpointing=true")
    assert tiny.losses(tmp_path / "a") == tiny.losses(tmp_path / "b")
    assert tiny.tensors(tiny.checkpoint(tmp_path / "a", 8)) == tiny.tensors(
        tiny.checkpoint(tmp_path / "b", 8)
    )


def test_activation_checkpointing_runs_every_layer_again(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtkit.model.layers import EncoderLayer

    calls = []
    original = EncoderLayer.forward
    monkeypatch.setattr(EncoderLayer, "forward", lambda *inputs: calls.append(1) or original(*inputs))
    train(config, "training.max_steps=1", "data.valid=[]")
    plain = len(calls)
    train(config.rename(config.with_name("c.yaml")), "run=" + str(config.parent / "c"), "training.max_steps=1",
          "data.valid=[]", "training.activation_checkpointing=true")  # fmt: skip
    assert len(calls) - plain == 2 * plain


def test_slices_change_nothing_but_rounding(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = [
        f"model.{kind}=0.0" for kind in ("dropout", "attention_dropout", "token_dropout", "layer_dropout")
    ]
    train(two[0], "training.batch_tokens=400", *still)
    monkeypatch.setattr("mtkit.training.trainer.find_num_micro_batches", lambda *_: 4)
    train(two[1], "training.batch_tokens=auto", "training.update_tokens=400", *still)
    for mine, theirs in zip(tiny.losses(tmp_path / "a"), tiny.losses(tmp_path / "b"), strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=2e-5)


def test_auto_takes_one_slice_where_memory_is_plenty_and_more_where_it_is_not(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    original = memory.find_num_micro_batches
    monkeypatch.setattr(
        "mtkit.training.trainer.find_num_micro_batches",
        lambda *arguments: found.append(original(*arguments)) or found[-1],
    )
    auto = ["training.batch_tokens=auto", "training.update_tokens=1500", "training.max_steps=2"]
    train(config, *auto)
    peaks = iter([0, 10**9])
    monkeypatch.setattr(memory, "available_bytes", lambda num_processes: 0.4e9)
    monkeypatch.setattr(memory, "peak_memory", lambda device: next(peaks))
    train(config, *auto, "run=" + str(config.parent / "tight"))
    assert found == [1, 4]  # one slice of the probe took 1 GB, with the margin 1.25: a quarter fits into 0.4


def test_a_cpu_without_free_memory_is_refused(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([0, 10**9])
    monkeypatch.setattr(memory, "available_bytes", lambda num_processes: 0.0)
    monkeypatch.setattr(memory, "peak_memory", lambda device: next(peaks))
    with pytest.raises(TrainingError, match=r"^out of memory with a single pair "):
        train(config, "training.batch_tokens=auto", "training.update_tokens=1500")


def test_a_run_that_goes_on_where_memory_is_less_is_cut_finer_and_never_coarser(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = ["training.batch_tokens=auto", "training.update_tokens=1500", "data.valid=[]"]
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, line: said.append(line))
    for step, (room, slices) in enumerate(
        [(1.3e9, 1), (1.1e9, 1), (0.9e9, 2), (0.4e9, 4), (9e9, 4)], start=1
    ):  # the largest batch takes 1 GB
        peaks = iter([0, 10**9])
        monkeypatch.setattr(memory, "available_bytes", lambda num_processes, room=room: room)
        monkeypatch.setattr(memory, "peak_memory", lambda device, peaks=peaks: next(peaks))
        train(config, *auto, f"training.max_steps={step}")
        state = json.loads((tiny.checkpoint(tmp_path / "run", step) / "state.json").read_text())
        assert (state["step"], state["slices"]) == (step, slices)
    assert [line for line in said if line.startswith("batches are split")] == [
        "batches are split into 2 micro-batches to fit in memory, 1 before: dropout masks differ from here on",
        "batches are split into 4 micro-batches to fit in memory, 2 before: dropout masks differ from here on",
    ]


def test_memory_that_runs_out_is_known_before_the_first_update(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Objective, batch: Any) -> Any:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(Objective, "forward", forward)
    monkeypatch.setattr(Trainer, "train_step", lambda *_: pytest.fail("an update was begun"))
    with pytest.raises(TrainingError) as caught:
        train(config)
    assert str(caught.value).startswith("out of memory (lower training.batch_tokens (now 400)")


@pytest.mark.parametrize(
    ("place", "hint"),
    [
        ("mtkit.model.transformer.Transformer.to", "choose a smaller model"),
        ("mtkit.training.build.ExponentialMovingAverage", "choose a smaller model"),
        ("mtkit.training.engine.Engine.step", "lower training.batch_tokens"),
        ("mtkit.training.optimizer.ExponentialMovingAverage.update", "lower training.batch_tokens"),
        ("mtkit.training.checkpointing.load_optimizer_state_dict", "free memory on the device"),
    ],
)
def test_memory_that_runs_out_elsewhere_is_one_line_too(
    place: str, hint: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: out of memory")

    options = ["data.valid=[]", "training.workers=1", "training.ema_decay=0.9"]
    if place.endswith("load_optimizer_state_dict"):
        train(config, *options, "training.max_steps=1")
    monkeypatch.setattr(place, fail)
    with pytest.raises(TrainingError) as caught:
        train(config, *options, "training.max_steps=2")
    assert str(caught.value).startswith(f"out of memory ({hint}")


def test_a_batch_does_not_fit_whatever_the_lack_of_memory_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), RuntimeError("mat1 and mat2")]

    def fail(*_: Any) -> None:
        raise errors.pop(0)

    monkeypatch.setattr(memory, "_try_micro_batch", fail)
    nothing: Any = None
    assert not memory._fits(nothing, nothing, nothing, 1)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        memory._fits(nothing, nothing, nothing, 1)


def test_the_largest_and_the_smallest_batch_run_first_and_leave_no_trace(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[int] = []
    original = Objective.forward

    def forward(self: Objective, batch: Any) -> Any:
        tensors = (
            batch if isinstance(batch, TensorBatch) else TensorBatch.from_batch(batch, torch.device("cpu"))
        )
        shapes.append(tensors.src_BS.numel() + tensors.tgt_in_BT.numel())
        return original(self, batch)

    monkeypatch.setattr(Objective, "forward", forward)
    train(config, "training.max_steps=40", "data.valid=[]")
    assert shapes[0] == max(shapes)
    assert shapes[1] == min(shapes)


def test_the_memory_of_training_is_free_before_test_sets_are_scored(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers: list[weakref.ref[Trainer]] = []
    emptied: list[bool] = []
    build, score = run.build_trainer, run.score_tests

    def build_trainer(*arguments: Any) -> Trainer:
        trainer = build(*arguments)
        trainers.append(weakref.ref(trainer))
        return trainer

    def empty_cache() -> None:
        assert [trainer() for trainer in trainers] == [None]
        emptied.append(True)

    def score_tests(*arguments: Any) -> Any:
        assert emptied
        return score(*arguments)

    monkeypatch.setattr(run, "build_trainer", build_trainer)
    monkeypatch.setattr(run, "score_tests", score_tests)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    gc.disable()
    try:
        mtkit.train(mtkit.load_config(config, ["training.max_steps=1"]))
    finally:
        gc.enable()
    assert trainers
