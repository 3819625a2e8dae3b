"""Whole runs on a GPU: resuming, kills, memory, overflow, several processes, determinism, compilation."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.distributed as dist
from rich.console import Console

from mtkit import load_config, train
from mtkit.errors import TrainingError
from mtkit.training.build import build_trainer
from mtkit.training.distributed import World
from mtkit.training.engine import Engine
from mtkit.training.inputs import load_inputs
from mtkit.training.progress import Progress
from mtkit.training.trainer import Trainer
from mtkit.training.updates import Update

TOLERANCE = 1e-3
"""Relative difference of losses after a resume, where algorithms need not be deterministic (measure it, see README)."""


@pytest.fixture
def options(device: torch.device) -> list[str]:
    """The options of a short run with everything that is stored."""
    return [f"training.device={device}", "training.workers=1", "training.max_steps=8", "validation.every_steps=4",
            "training.ema_decay=0.9", "training.accumulate=2", "data.test=[]", "training.keep_last=100",
            "model.attention_dropout=0.1"]  # fmt: skip


def weights(run: Path, step: int) -> dict[str, bytes]:
    return tiny.tensors(tiny.checkpoint(run, step))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_deterministic_run_resumes_bit_for_bit(
    precision: str, optimizer: str, config: Path, tmp_path: Path, options: list[str]
) -> None:
    """In processes of their own, because determinism is a setting of a process."""
    options += [
        "training.deterministic=true",
        f"training.precision={precision}",
        f"training.optimizer={optimizer}",
    ]
    for run, stops in (("whole", [8]), ("resumed", [4, 8])):
        for step in stops:
            done = tiny.run_process(
                "train", config, *options, f"run={tmp_path / run}", f"training.max_steps={step}"
            )
            assert done.returncode == 0, done.stderr
    assert tiny.losses(tmp_path / "whole") == tiny.losses(tmp_path / "resumed")
    assert weights(tmp_path / "whole", 8) == weights(tmp_path / "resumed", 8)


def test_a_run_resumes_within_the_tolerance(
    config: Path, tmp_path: Path, options: list[str], record_property: Any
) -> None:
    for run, stops in (("whole", [8]), ("resumed", [4, 8])):
        for step in stops:
            train(load_config(config, [*options, f"run={tmp_path / run}", f"training.max_steps={step}"]))
    whole, resumed = (
        [line["loss"] for line in tiny.records(tmp_path / run, "train")] for run in ("whole", "resumed")
    )
    assert resumed == pytest.approx(whole, rel=TOLERANCE)
    is_same = weights(tmp_path / "whole", 8) == weights(tmp_path / "resumed", 8)
    record_property("bit-identical without training.deterministic", is_same)


def test_a_killed_run_goes_on_where_it_was_saved(config: Path, tmp_path: Path, options: list[str]) -> None:
    process = tiny.spawn(
        "train",
        config,
        *options,
        "training.max_steps=100000",
        "training.deterministic=true",
        f"run={tmp_path / 'a'}",
    )
    try:
        deadline = time.monotonic() + 200
        while not tiny.checkpoint(tmp_path / "a", 8).is_dir() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    last = max(tiny.checkpoints(tmp_path / "a"))
    step = 4 * (last // 4 + 1)
    for run in ("a", "b"):
        done = tiny.run_process(
            "train", config, *options, f"training.max_steps={step}", "training.deterministic=true",
            f"run={tmp_path / run}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert tiny.losses(tmp_path / "a") == tiny.losses(tmp_path / "b")


def test_memory_that_runs_out_is_one_line(
    config: Path, tmp_path: Path, options: list[str], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cuda":  # a share of the memory that holds PyTorch's context, and no batch
        gpu = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.set_per_process_memory_fraction(1e-5, gpu)
        torch.cuda.empty_cache()
    else:
        error = torch.OutOfMemoryError("pretended")
        monkeypatch.setattr(Engine, "_backward", lambda *_, **__: (_ for _ in ()).throw(error))
    try:
        with pytest.raises(TrainingError, match=r"^out of memory \("):
            train(load_config(config, [*options, f"run={tmp_path / 'run'}", "model.d_model=512"]))
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, gpu)


def test_an_overflow_of_fp16_skips_the_update(
    config: Path, tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of the third update is infinite: the weights stay, the loss scale is halved."""
    before: dict[int, dict[str, torch.Tensor]] = {}
    scales: dict[int, float] = {}
    original, original_step = Engine.forward_backward, Engine.step

    def forward_backward(self: Engine, update: Update, num_targets: int, step: int) -> torch.Tensor:
        sums = original(self, update, num_targets, step)
        before[step] = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        if step == 2:
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(torch.inf)  # type: ignore[union-attr]
        return sums

    def step(self: Engine, rate: float) -> None:
        original_step(self, rate)
        scales[len(scales)] = self.scaler.get_scale()

    monkeypatch.setattr(Engine, "forward_backward", forward_backward)
    monkeypatch.setattr(Engine, "step", step)
    train(load_config(config, [*options, f"run={tmp_path / 'run'}", "training.precision=fp16", "training.max_steps=5",
                               "training.ema_decay=null"]))  # fmt: skip
    assert all(torch.equal(before[2][name], before[3][name]) for name in before[2])
    assert not all(torch.equal(before[3][name], before[4][name]) for name in before[3])
    assert (scales[2], scales[3]) == (scales[1] / 2, scales[2])


@pytest.mark.parametrize("then", ["stop", "rollback"])
def test_a_divergence_is_found(
    then: str, config: Path, tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Engine.forward_backward

    def forward_backward(self: Engine, update: Update, num_targets: int, step: int) -> torch.Tensor:
        sums = original(self, update, num_targets, step)
        return sums * torch.nan if update.last_batch == 5 else sums

    monkeypatch.setattr(Engine, "forward_backward", forward_backward)
    more = [f"run={tmp_path / 'run'}", f"training.on_divergence={then}", "training.log_every_steps=100",
            "training.save_every_steps=2"]  # fmt: skip
    if then == "stop":
        with pytest.raises(TrainingError, match="the loss of step 3 is not finite"):
            train(load_config(config, [*options, *more]))
        return
    train(load_config(config, [*options, *more]))
    assert [line["diverged_step"] for line in tiny.records(tmp_path / "run", "diverged")] == [3]
    assert tiny.checkpoints(tmp_path / "run")[-1] == 8


def test_updates_are_made_without_waiting(
    config: Path, tmp_path: Path, options: list[str], device: torch.device
) -> None:
    """PyTorch itself raises where an update waits for the GPU."""
    loaded = load_config(config, [*options, f"run={tmp_path / 'run'}", "training.log_every_steps=100"])
    trainer = _trainer(loaded)
    updates = [trainer.loader.fetch(update, 1) for update in islice(trainer.loader.updates(0, 0), 6)]
    for update in updates[:3]:
        trainer.train_step(update)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for update in updates[3:]:
            trainer.train_step(update)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.step == 6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_model_learns_the_same(
    precision: str, config: Path, tmp_path: Path, options: list[str]
) -> None:
    losses = []
    for compiled in ("false", "true"):
        run = tmp_path / compiled
        train(load_config(config, [*options, f"run={run}", f"training.compile={compiled}", "model.dropout=0",
                                   "model.attention_dropout=0", f"training.precision={precision}"]))  # fmt: skip
        losses.append([line["loss"] for line in tiny.records(run, "train")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if precision == "fp32" else 0.02)


# --- several processes --------------------------------------------------------------------------------------------


def _trainer(config: Any, world: World | None = None) -> Trainer:
    run = Path(config.run)
    run.mkdir(exist_ok=True)
    inputs = load_inputs(config, run, has_tokenizers=False, say=lambda _: None)
    progress = Progress(run, Console(quiet=True), writes_metrics=False)
    return build_trainer(config, inputs, progress, world=world or World())


class AloneButDistributed(World):
    """One process whose gradients travel as if there were more."""

    @property
    def is_distributed(self) -> bool:
        """Return that several processes train the model."""
        return True


@contextmanager
def process_group(device: torch.device, folder: Path) -> Iterator[World]:
    """Join a group of one process, with the backend of the device."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(torch.cuda.current_device())
    dist.init_process_group(backend, init_method=f"file://{folder / 'group'}", rank=0, world_size=1)
    try:
        yield AloneButDistributed(slow_group=dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("compiles", ["false", "true"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_process_learns_the_same_alone_and_in_a_group(
    parallel: str, compiles: str, config: Path, tmp_path: Path, options: list[str], device: torch.device
) -> None:
    loaded = load_config(config, [*options, f"run={tmp_path / 'run'}", "training.precision=fp32",
                                  f"training.parallel={parallel}", f"training.compile={compiles}"])  # fmt: skip
    windows = []
    for is_alone in (True, False):
        with nullcontext() if is_alone else process_group(device, tmp_path) as world:
            trainer = _trainer(loaded, world)
            for update in islice(trainer.loader.updates(0, 0), 4):
                trainer.train_step(update)
            trainer.read_updates()
            windows.append([trainer.state.watch.mean, trainer.state.watch.present])
    assert windows[1] == pytest.approx(windows[0], rel=1e-4)


SHARED = """
import torch.distributed as dist
from mtkit.training import distributed
join = dist.init_process_group
dist.init_process_group = lambda backend, **options: join("gloo", **options)
distributed._check_no_shared_gpus = lambda *_: None
from mtkit.cli import main
main()
"""
"""mtkit with gloo for gradients too, which lets two processes share a GPU; NCCL does not."""


def test_two_processes_on_one_device_learn_what_one_does(
    config: Path, tmp_path: Path, options: list[str]
) -> None:
    (tmp_path / "shared.py").write_text(SHARED)
    options += ["training.precision=fp32", "training.accumulate=4", "training.max_steps=6"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    line = [*launcher, tmp_path / "shared.py", "train", config, *options, f"run={tmp_path / 'two'}"]
    done = subprocess.run(
        list(map(str, line)), env=tiny.child_environment(), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    train(load_config(config, [*options, f"run={tmp_path / 'one'}"]))
    one, two = ([line["loss"] for line in tiny.records(tmp_path / run, "train")] for run in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-3) and len(two) == 6


def test_two_processes_that_would_share_a_gpu_are_refused(
    config: Path, options: list[str], device: torch.device
) -> None:
    if device.type != "cuda" or torch.cuda.device_count() > 1:
        pytest.skip("needs exactly one GPU")
    line = tiny.torchrun(2, "train", config, *options)
    done = subprocess.run(line, env=tiny.child_environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode != 0 and "have the same GPU" in done.stderr


def test_the_speed_of_training_is_measured(config: Path, options: list[str]) -> None:
    done = tiny.run_process("benchmark", "train", config, *options[:2], "--steps", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tgt_tokens_per_second"] > 0
