"""Memory of one process of a sharded run (FSDP2), in bytes, measured by PyTorch's profiler.

The process group is PyTorch's fake one, which exchanges nothing: one process counts what it allocates. That real
groups learn the same as a single process is shown in tests/integration/test_distributed.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rich.console import Console
from torch import distributed
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

import mtkit
from mtkit.benchmark.train import synthetic_inputs
from mtkit.checkpoint import load_checkpoint
from mtkit.model.build import make_model
from mtkit.training.build import build_trainer
from mtkit.training.distributed import SINGLE_PROCESS, World
from mtkit.training.parallel import unshard
from mtkit.training.progress import Progress
from mtkit.training.trainer import Trainer

SIZE = 4
OPTIONS = [
    "training.parallel=fsdp", "training.precision=bf16", "training.device=cpu", "tokenizer.vocab_size=256",
    "model.d_model=64", "model.encoder_layers=6", "model.decoder_layers=6", "training.ema_decay=0.9",
]  # fmt: skip


def most_bytes(work: Callable[[], Any]) -> tuple[Any, int]:
    """Return a call's result and the peak of the tensor bytes it added."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return result, most


def trainer_of(folder: Path, world: World = SINGLE_PROCESS) -> Trainer:
    """Return a trainer of random pairs whose optimizer has made an update."""
    path = tiny.write_config(folder / "config.yaml", run=folder / "run", root=folder)
    config = mtkit.load_config(path, OPTIONS)
    progress = Progress(folder / "run", Console(quiet=True), writes_metrics=False)
    return build_trainer(config, synthetic_inputs(config), progress, world=world)


def step(trainer: Trainer) -> None:
    """Make an update with zero gradients, so that the optimizer has its moments."""
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.engine.optimizer.step()
    trainer.engine.discard_gradients()


@pytest.fixture(params=[0, 1])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """One of four ranks, of which only this one exists."""
    distributed.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=SIZE)
    try:
        yield World(request.param, SIZE, request.param)
    finally:
        distributed.destroy_process_group()


def test_no_process_holds_more_than_its_share_and_a_layer(tmp_path: Path, world: World) -> None:
    alone = trainer_of(tmp_path)
    step(alone)
    alone.save()
    whole = 4 * alone.model.num_parameters()
    layer = 4 * max(sum(p.numel() for p in layer.parameters()) for layer in alone.model.decoder)
    largest = 4 * max(p.numel() for p in alone.model.parameters())
    assert max(layer, 8 * largest) < whole / 4
    share = 1.01 * whole / SIZE  # few tensors cannot be divided by four

    trainer, most = most_bytes(lambda: trainer_of(tmp_path, world))
    step(trainer)
    on_host = whole if world.is_main else 0  # the first weights, on the CPU whatever the device
    assert most < on_host + 2 * share + 2 * layer

    checkpoint, most = most_bytes(lambda: trainer.checkpointer.checkpoint(trainer.state))
    on_host = 4 * whole if world.is_main else 0  # the checkpoint: weights, their average, two moments
    assert most < on_host + 4 * largest
    assert bool(checkpoint.weights) == bool(checkpoint.optimizer) == world.is_main

    with torch.device("meta"):
        empty = make_model(trainer.config.model, trainer.inputs.tokenizers, trainer.dtype)
    _, most = most_bytes(lambda: unshard(trainer.model, empty, trainer.device))
    assert most < whole / 2 + 8 * largest  # layers in bf16

    saved = load_checkpoint(tiny.checkpoint(tmp_path / "run", 0), with_optimizer=True)
    _, most = most_bytes(lambda: trainer.restore(saved, "here"))
    assert most < 3 * share + 4 * largest  # an average and two moments anew
