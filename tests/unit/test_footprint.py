"""Bytes that `mtkit check` foresees, against real files and tensors, with all, some or only adapters trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import exported
import pytest
import torch

from mtkit.config.loading import parse_config
from mtkit.data.tokenizer import Tokenizers
from mtkit.training.checkpointing import Checkpointer
from mtkit.training.distributed import SINGLE_PROCESS
from mtkit.training.footprint import Footprint
from mtkit.training.freezing import make_training_model
from mtkit.training.optimizer import ExponentialMovingAverage, make_optimizer
from mtkit.training.signals import Signals
from mtkit.training.state import TrainState


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    return exported.demo_tokenizers()


def tensor_bytes(folder: Path) -> int:
    """Return the bytes of all tensors in a folder: files without their headers."""
    total = 0
    for path in folder.glob("*.safetensors"):
        total += path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")
    return total


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize(
    "trained",
    [
        {},
        {"freeze": ["encoder.*", "*embedding*"]},
        {"optimizer": "muon", "freeze": ["*.out.*"]},
        {"lora": {"rank": 2, "targets": ["q", "inner"]}},
    ],
)
def test_the_footprint_is_what_is_allocated_and_written(
    tmp_path: Path, tokenizers: Tokenizers, trained: dict[str, Any], ema: float | None
) -> None:
    config = parse_config({
        "run": str(tmp_path), "init": "elsewhere",
        "data": {"src": "en", "tgt": "de", "train": [{"path": "none.tsv"}]},
        "model": exported.SIZE | {"output_bias": True}, "training": trained | {"ema_decay": ema},
    })  # fmt: skip
    model = make_training_model(config, tokenizers, torch.float32)
    optimizer = make_optimizer(model, config.training)
    average = None if ema is None else ExponentialMovingAverage(model, ema)
    state = TrainState(corpus="", valid="", tokenizers=tokenizers.fingerprint, usual_src_tokens=9)
    checkpointer = Checkpointer(config, model, optimizer, average, Signals(), SINGLE_PROCESS)
    if config.training.lora is not None:
        checkpointer.save_base(state)

    src, tgt = torch.randint(4, 90, (2, 5)), torch.randint(4, 90, (2, 5))
    model.logits(model(src, tgt)).sum().backward()
    optimizer.step()
    checkpointer.save_best(state)
    checkpointer.save(state)

    footprint = Footprint.of(model, config.training)
    moments = [value for states in optimizer.state.values() for value in states.values() if value.dim()]
    assert footprint.optimizer == sum(moment.nbytes for moment in moments)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    averages = [] if average is None else list(average.weights.values())
    allocated = [*model.parameters(), *gradients, *moments, *averages]
    assert footprint.memory == sum(tensor.nbytes for tensor in allocated)

    num_updates = 4 * sum(
        "step" in each for each in optimizer.state.values()
    )  # one float32 of AdamW's parameters
    assert footprint.checkpoint == tensor_bytes(next((tmp_path / "checkpoints").iterdir())) - num_updates
    assert footprint.best == tensor_bytes(tmp_path / "best")
    assert footprint.base == tensor_bytes(tmp_path / "base")
    most = footprint.checkpoint * (config.training.keep_last + 1) + 2 * footprint.best + footprint.base
    assert footprint.disk(config.training) == most
    written = sum(tensor_bytes(file.parent) for file in tmp_path.rglob("manifest.json"))
    assert written - num_updates <= footprint.disk(config.training)
