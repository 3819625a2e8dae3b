"""Batches are collated in a thread during the previous update: the same batches, and the thread ends with the loop."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import mtkit
from mtkit.data.batching import Batch, make_batch
from mtkit.errors import StorageError, TrainingError
from mtkit.training import updates
from mtkit.training.loss import TensorBatch
from mtkit.training.trainer import Trainer
from tests import tiny

OPTIONS = ["training.max_epochs=1", "training.max_steps=null", "training.accumulate=2", "data.test=[]",
           "validation.every_steps=100", "training.batch_tokens=200"]  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    root = tiny.write_corpus(tmp_path / "data")
    return tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=root)


def test_a_thread_makes_every_batch_of_the_loop(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, list[int]]] = []
    run: list[list[int]] = []
    step = Trainer.train_step

    def make(*arguments: Any) -> Batch:
        batch = make_batch(*arguments)
        made.append((threading.current_thread().name, batch.indices.tolist()))
        return batch

    def train_step(self: Trainer, update: Any) -> None:
        run.extend(indices.tolist() for indices in update.batches)
        step(self, update)

    monkeypatch.setattr(updates, "make_batch", make)
    monkeypatch.setattr(Trainer, "train_step", train_step)
    result = mtkit.train(mtkit.load_config(config, OPTIONS))
    assert result.step > 5
    assert [indices for _, indices in made] == run
    assert all(name.startswith("batches") for name, _ in made)
    assert sorted(pair for indices in run for pair in indices) == list(range(tiny.SPLITS["train"]))
    assert not alive("batches")


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (StorageError("the disk is gone"), StorageError, "the disk is gone"),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            TrainingError,
            "out of memory .lower training.batch_t",
        ),
    ],
)
def test_what_the_thread_meets_is_raised_where_its_batch_is_due(
    config: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, error: type[Exception], message: str
) -> None:
    calls: list[int] = []

    def make(*arguments: Any) -> Batch:
        calls.append(1)
        if len(calls) == 7:  # the first batch of the fourth update
            raise failure
        return make_batch(*arguments)

    monkeypatch.setattr(updates, "make_batch", make)
    with pytest.raises(error, match=message):
        mtkit.train(mtkit.load_config(config, OPTIONS))
    steps = [line["step"] for line in tiny.records(config.parent / "run", "train")]
    assert steps == [1, 2, 3]
    assert not alive("batches")


def alive(beginning: str) -> list[str]:
    """Return the live threads with such a name."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(beginning)]


def test_a_batch_goes_to_a_gpu_through_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def pin_memory(self: torch.Tensor) -> torch.Tensor:
        calls.append(("pin", self.shape))
        return self

    def to(self: torch.Tensor, device: torch.device, *, non_blocking: bool) -> torch.Tensor:
        calls.append(("copy", self.shape, device, non_blocking))
        return self

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    arrays = {
        name: torch.zeros(2, n).long().numpy() for n, name in enumerate(("src", "tgt_in", "tgt_out"), 3)
    }
    batch = Batch(**arrays, tgt_mask=arrays["tgt_out"] > 0, indices=arrays["src"][:, 0])
    there = TensorBatch.from_batch(batch, torch.device("cuda", 1))
    shapes = [
        (2, 3),
        (2, 4),
        (2, 5),
        (2, 5),
        (0,),
    ]  # the last: positions of real targets, of which there are none
    assert calls == [
        call for shape in shapes for call in (("pin", shape), ("copy", shape, torch.device("cuda", 1), True))
    ]
    assert there.src_BS.tolist() == batch.src.tolist()
    calls.clear()
    assert TensorBatch.from_batch(batch, torch.device("cpu")).tgt_in_BT.data_ptr() == batch.tgt_in.ctypes.data
    assert not calls
