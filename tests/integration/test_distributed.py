"""Several real processes train one model: the world size does not change what is learned."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny

import mtkit
from mtkit.checkpoint import load_checkpoint, verify_checkpoint

STEPS = 12
OPTIONS = [
    "training.accumulate=4", "training.batch_tokens=100", f"training.max_steps={STEPS}", "training.precision=fp32",
    "training.device=cpu", "training.ema_decay=0.9", "model.attention_dropout=0.1", "validation.every_steps=6",
    "training.keep_last=100", "data.test=[]", "model.token_dropout=0.1", "model.layer_dropout=0.3",
]  # fmt: skip


def train_distributed(
    num_processes: int, config: Path, *overrides: str, options: Sequence[str] = OPTIONS
) -> subprocess.CompletedProcess[str]:
    """Run `mtkit train` in several processes until it ends."""
    line = tiny.torchrun(num_processes, "train", config, *options, *overrides)
    return subprocess.run(line, env=tiny.child_environment(), capture_output=True, text=True, timeout=200)


def losses(run: Path) -> list[tuple[int, float, float]]:
    """Return (step, loss, gradient norm) of every update."""
    return [(line["step"], line["loss"], line["grad_norm"]) for line in tiny.records(run, "train")]


def assert_same_updates(run: Path, other: Path) -> None:
    """Check that two runs learned the same from the same pairs, up to rounding."""
    assert len(losses(run)) == STEPS
    for (step, loss, norm), (other_step, other_loss, other_norm) in zip(
        losses(run), losses(other), strict=True
    ):
        assert step == other_step
        assert loss == pytest.approx(other_loss, abs=1e-5)
        assert norm == pytest.approx(other_norm, rel=1e-3)
    for mine, theirs in zip(tiny.records(run, "valid"), tiny.records(other, "valid"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert mine["bleu"] == pytest.approx(theirs["bleu"], abs=1e-6)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A run in one process."""
    folder = tmp_path_factory.mktemp("single")
    config = tiny.write_config(folder / "config.yaml", run=folder / "run", root=corpus)
    mtkit.train(mtkit.load_config(config, OPTIONS))
    return folder / "run"


@pytest.mark.parametrize(
    ("num_processes", "parallel"),
    [
        pytest.param(2, "ddp", marks=pytest.mark.slow),
        pytest.param(4, "ddp", marks=pytest.mark.slow),
        (2, "fsdp"),
    ],
    ids=lambda value: str(value),
)
def test_the_world_size_changes_nothing(
    single: Path, config: Path, tmp_path: Path, num_processes: int, parallel: str
) -> None:
    done = train_distributed(num_processes, config, f"training.parallel={parallel}")
    assert done.returncode == 0, done.stderr
    assert_same_updates(tmp_path / "run", single)
    assert done.stdout.count("training ended") == 1
    assert done.stdout.count("The model is in") == 1
    verify_checkpoint(tmp_path / "run/best")
    mine, theirs = (load_checkpoint(run / "best").weights for run in (tmp_path / "run", single))
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        assert weight.shape == theirs[name].shape
        assert (weight - theirs[name]).abs().max() < 1e-3
    optimizer = load_checkpoint(tiny.checkpoint(single, STEPS), with_optimizer=True).optimizer
    saved = load_checkpoint(tiny.checkpoint(tmp_path / "run", STEPS), with_optimizer=True).optimizer
    assert {name: value.shape for name, value in saved.items()} == {
        name: value.shape for name, value in optimizer.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_time_limit_is_estimated_together(config: Path, tmp_path: Path, parallel: str) -> None:
    limits = ["training.schedule=linear", "training.time_limit_minutes=0.05"]
    config.write_text(config.read_text("utf-8").replace("max_steps: 40, ", ""), encoding="utf-8")
    options = [option for option in OPTIONS if "max_steps" not in option]
    done = train_distributed(2, config, f"training.parallel={parallel}", *limits, options=options)
    assert done.returncode == 0, done.stderr
    assert "there is time for" in done.stdout, done.stdout


@pytest.mark.slow
def test_a_batch_is_cut_where_there_are_fewer_batches_than_processes(config: Path, tmp_path: Path) -> None:
    still = [
        f"model.{kind}=0.0" for kind in ("dropout", "attention_dropout", "token_dropout", "layer_dropout")
    ]
    overrides = ["training.accumulate=1", *still]
    done = train_distributed(3, config, *overrides)
    assert done.returncode == 0, done.stderr
    path = tiny.write_config(tmp_path / "b.yaml", run=tmp_path / "b", root=tmp_path)
    corpus = mtkit.load_config(config).data.root
    mtkit.train(mtkit.load_config(path, [*OPTIONS, *overrides, f"data.root={corpus}"]))
    assert_same_updates(tmp_path / "run", tmp_path / "b")


@pytest.mark.slow
def test_a_run_resumes_with_another_world_size(single: Path, config: Path, tmp_path: Path) -> None:
    first = train_distributed(2, config, "training.max_steps=5")
    assert first.returncode == 0, first.stderr
    mtkit.train(mtkit.load_config(config, [*OPTIONS, "training.max_steps=8"]))
    last = train_distributed(2, config, "training.parallel=fsdp")
    assert last.returncode == 0, last.stderr
    assert "resuming from step 8" in last.stdout
    mine = {step: loss for step, loss, _ in losses(tmp_path / "run")}
    assert mine == pytest.approx({step: loss for step, loss, _ in losses(single)}, abs=1e-5)


@pytest.mark.slow
def test_a_config_error_stops_all_processes_with_the_message_of_rank_0(config: Path) -> None:
    done = train_distributed(2, config, "data.root=/nowhere")
    assert done.returncode != 0
    assert "error: data.root: no such folder: /nowhere" in done.stderr


# --- faults -------------------------------------------------------------------------------------------------------


def workers(launcher: subprocess.Popen[str]) -> list[int]:
    """Return the process ids of a launcher's workers, in the order they were started."""
    path = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return sorted(map(int, path.read_text().split()))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_is_replaced_and_sigterm_to_the_launcher_saves_the_run(
    single: Path, config: Path, tmp_path: Path, rank: int
) -> None:
    run = tmp_path / "run"
    endless = ["training.save_every_steps=2", "validation.every_steps=1000", "training.max_steps=100000"]
    line = tiny.torchrun(2, "train", config, *OPTIONS, *endless, restarts=2)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    launcher = subprocess.Popen(line, env=tiny.child_environment(), **pipes)  # type: ignore[call-overload]
    try:
        tiny.wait_for(lambda: tiny.last_step(run) >= 4, 200)
        killed = workers(launcher)
        os.kill(killed[rank], signal.SIGKILL)
        tiny.wait_for(lambda: len(workers(launcher)) == 2 and not set(workers(launcher)) & set(killed), 200)
        before = tiny.last_step(run)
        tiny.wait_for(lambda: tiny.last_step(run) > max(before, STEPS), 200)
        launcher.send_signal(signal.SIGTERM)
        output, _ = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert "resuming from step" in output
    saved = tiny.checkpoints(run)[-1]
    assert saved >= STEPS, output
    verify_checkpoint(tiny.checkpoint(run, saved))
    assert saved == tiny.last_step(run)
    same = [
        (step, pytest.approx(loss, abs=1e-5), pytest.approx(norm, rel=1e-3))
        for step, loss, norm in losses(single)
    ]
    assert losses(run)[:STEPS] == same
