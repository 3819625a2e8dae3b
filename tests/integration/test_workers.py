"""Workers change neither what is learned nor what happens when a run is stopped, killed or resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

import mtkit
from mtkit.checkpoint import load_checkpoint
from mtkit.config.sections import Config
from mtkit.errors import ConfigError, TrainingError
from mtkit.training.loss import TensorBatch
from mtkit.training.workers import WorkerLostError, Workers, choose_num_workers, deal, keep_workers

MODEL = nn.Linear(1, 1)
STEPS = 6
OPTIONS = [
    "training.accumulate=2", "training.batch_tokens=300", f"training.max_steps={STEPS}",
    "training.precision=fp32", "training.ema_decay=0.9", "model.attention_dropout=0.1", "validation.every_steps=3",
    "validation.metrics=[]", "validation.best=loss", "data.test=[]", "training.keep_last=100",
]  # fmt: skip


def load(folder: Path, corpus: Path, *overrides: str) -> Config:
    """Return the config of a small run in this folder."""
    path = tiny.write_config(folder / "config.yaml", run=folder / "run", root=corpus)
    return mtkit.load_config(path, [*OPTIONS, *overrides])


def assert_same_losses(run: Path, other: Path, tolerance: float = 1e-5) -> None:
    """Check that two runs learned the same, up to rounding."""
    mine, theirs = (tiny.records(each, "train") for each in (run, other))
    assert len(mine) == len(theirs) == STEPS
    for key in ("loss", "nll", "grad_norm"):
        expected = [line[key] for line in theirs]
        assert [line[key] for line in mine] == pytest.approx(expected, rel=tolerance)
    mine, theirs = (tiny.records(each, "valid") for each in (run, other))
    assert [line["loss"] for line in mine] == pytest.approx([line["loss"] for line in theirs], rel=tolerance)


# --- the same mathematics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [
        pytest.param(["training.accumulate=4"], 1e-5, id="plain"),
        pytest.param(["training.simcut=3", "training.clip_norm=0.1"], 1e-5, id="simcut", marks=pytest.mark.slow),
        pytest.param(["model.layer_dropout=0.3", "training.optimizer=muon"], 1e-4, id="muon", marks=pytest.mark.slow),
        pytest.param(["training.precision=bf16"], 1e-3, id="bf16", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_two_workers_learn_what_one_process_does(
    corpus: Path, tmp_path: Path, method: list[str], tolerance: float
) -> None:
    """With as many batches as workers the micro-batches are the same, and so are their dropout masks."""
    runs = []
    for workers in (1, 2):
        (tmp_path / f"{workers}").mkdir()
        config = load(tmp_path / f"{workers}", corpus, *method, f"training.workers={workers}")
        mtkit.train(config)
        runs.append(Path(config.run))
    assert_same_losses(*runs, tolerance)
    assert not tiny.children(os.getpid()), "no worker is left"
    mine, theirs = (load_checkpoint(run / "best").weights for run in runs)
    assert all((mine[name] - weight).abs().max() < 100 * tolerance for name, weight in theirs.items())


def test_a_batch_is_cut_where_there_are_fewer_batches_than_workers(corpus: Path, tmp_path: Path) -> None:
    runs = []
    for workers in (1, 3):
        (tmp_path / f"{workers}").mkdir()
        without = ["training.accumulate=1", "model.dropout=0", "model.attention_dropout=0"]
        config = load(tmp_path / f"{workers}", corpus, *without, f"training.workers={workers}")
        mtkit.train(config)
        runs.append(Path(config.run))
    assert_same_losses(*runs)


def test_a_resumed_run_keeps_its_workers_and_its_losses_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = load(tmp_path / "whole", corpus, "training.workers=2")
    mtkit.train(whole)
    mtkit.train(load(tmp_path / "stopped", corpus, "training.workers=2", "training.max_steps=3"))
    resumed = load(tmp_path / "stopped", corpus)  # one thread
    assert (resumed.training.workers, choose_num_workers(resumed.training, MODEL)) == ("auto", 1)
    mtkit.train(resumed)
    run = Path(resumed.run)
    assert mtkit.load_config(run / "config.yaml").training.workers == 2
    assert tiny.losses(run) == tiny.losses(Path(whole.run))
    assert tiny.tensors(tiny.checkpoint(run, STEPS)) == tiny.tensors(tiny.checkpoint(Path(whole.run), STEPS))
    mtkit.train(load(tmp_path / "stopped", corpus, "training.workers=1", "training.max_steps=7"))
    assert tiny.last_step(run) == 7


def test_auto_is_stored_as_a_number(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    config = load(tmp_path, corpus, "training.max_steps=1", "data.valid=[]")
    mtkit.train(config)
    stored = mtkit.load_config(Path(config.run) / "config.yaml")
    assert (config.training.workers, stored.training.workers) == ("auto", 2)


def test_a_run_from_before_there_were_workers_keeps_one(corpus: Path, tmp_path: Path) -> None:
    old, new = load(tmp_path, corpus), load(tmp_path, corpus, "training.workers=2")
    assert keep_workers(old, old).training.workers == 1
    assert keep_workers(new, old).training.workers == 2
    assert keep_workers(old, new) is new
    elsewhere = load(tmp_path, corpus, "training.compile=true")
    assert keep_workers(new, elsewhere) is elsewhere


def test_a_run_rolls_back_with_workers(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtkit.training import trainer

    original, reasons = trainer.observe_loss, ["a test says so"]

    def observe(watch: object, step: int, *rest: float, **options: bool) -> str | None:
        return reasons.pop() if step == 5 and reasons else original(watch, step, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "observe_loss", observe)
    config = load(tmp_path, corpus, "training.workers=2", "training.on_divergence=rollback")
    mtkit.train(config)
    [record] = tiny.records(Path(config.run), "rollback")
    assert (record["step"], record["diverged_step"]) == (3, 5)
    assert tiny.last_step(Path(config.run)) == STEPS


# --- the parts ----------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_all_micro_batches() -> None:
    """A parameter without gradient in all workers has none, as without workers; one with a gradient in some has it."""
    model = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in ("all", "some", "none", "frozen")})
    model["frozen"].requires_grad_(False)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rows = torch.arange(30.0).view(5, 2, 3)

    def accumulate(micro_batches: object, num_targets: int, step: int) -> list[float]:
        assert isinstance(micro_batches, dict)
        total = 0.0
        for number, batch in micro_batches.items():
            loss = model["all"](batch.src_BS).square().sum() / num_targets
            if number == 3:
                loss = loss + model["some"](batch.src_BS).sum()
            loss.backward()
            total += float(loss.detach())
        return [total, float(step)]

    batches = {number: TensorBatch(*(row.clone() for _ in range(4))) for number, row in enumerate(rows)}
    expected = accumulate(batches, 7, 1)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    workers = Workers(model, 3, accumulate)
    try:
        for _ in range(2):  # the second time with workers that have run before
            sums = workers.run(batches, 7, 1)
            assert sums == pytest.approx([expected[0], 3.0])
            for name, parameter in model.named_parameters():
                if gradients[name] is None:
                    assert parameter.grad is None, name
                else:
                    torch.testing.assert_close(parameter.grad, gradients[name])
        assert workers.private_bytes() > 0
        with torch.no_grad():  # workers see what the main process writes
            model["all"].weight.mul_(2)
        assert workers.run({0: batches[0]}, 7, 1)[0] == pytest.approx(
            4 * float((rows[0] @ weights["all.weight"].T).square().sum()) / 7
        )
    finally:
        workers.close()
    assert not tiny.children(os.getpid())


def test_an_error_in_a_worker_is_raised_with_its_traceback() -> None:
    main = os.getpid()

    def accumulate(micro_batches: object, num_targets: int, step: int) -> list[float]:
        if os.getpid() != main:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return [0.0, 0.0]

    workers = Workers(nn.Linear(2, 2), 2, accumulate)
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*accumulate.*can't allocate memory"):
        workers.run({}, 1, 0)
    assert not tiny.children(os.getpid())


def test_a_killed_worker_is_named() -> None:
    main = os.getpid()

    def accumulate(micro_batches: object, num_targets: int, step: int) -> list[float]:
        if os.getpid() != main and step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return [0.0, 0.0]

    workers = Workers(nn.Linear(2, 2), 2, accumulate)
    workers.run({}, 1, 0)
    [process] = tiny.children(main)
    with pytest.raises(
        WorkerLostError, match=rf"^worker 1, process {process}, was killed by SIGKILL \(run the same"
    ):
        workers.run({}, 1, 1)
    assert not tiny.children(main)


def test_workers_end_with_a_main_process_that_is_killed() -> None:
    reader, writer = os.pipe()
    main = os.fork()
    if main == 0:
        try:
            Workers(nn.Linear(2, 2), 3, lambda *_: [0.0, 0.0]).run({}, 1, 0)
            os.write(writer, json.dumps(tiny.children(os.getpid())).encode())
            time.sleep(60)
        finally:
            os._exit(1)
    workers = json.loads(os.read(reader, 100))
    assert len(workers) == 2 and all(map(tiny.is_alive, workers))
    os.kill(main, signal.SIGKILL)
    os.waitpid(main, 0)
    tiny.wait_for(lambda: not any(map(tiny.is_alive, workers)), 10)


def test_micro_batches_are_dealt_by_their_size() -> None:
    def batch(rows: int, length: int) -> TensorBatch:
        return TensorBatch(*[torch.zeros(rows, length)] * 4)

    shares = deal({0: batch(9, 10), 1: batch(3, 10), 2: batch(5, 10), 3: batch(1, 10)}, 2)
    assert [list(share) for share in shares] == [[0], [1, 2, 3]]
    assert deal({0: batch(2, 2)}, 2)[1] == {}


# --- what cannot be combined --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [("training.compile=true", "compile"), ("training.precision=fp16", "fp16")],
)
def test_what_workers_exclude(corpus: Path, tmp_path: Path, override: str, words: str) -> None:
    alone = load(tmp_path, corpus, override)
    assert choose_num_workers(alone.training, MODEL) == 1
    with pytest.raises(
        ConfigError, match=rf"^training.workers 2: several workers cannot be combined with .*{words}"
    ):
        choose_num_workers(load(tmp_path, corpus, override, "training.workers=2").training, MODEL)


def test_workers_exclude_torchrun(corpus: Path, tmp_path: Path) -> None:
    with tiny.environment(WORLD_SIZE="2", RANK="0"):
        assert choose_num_workers(load(tmp_path, corpus).training, MODEL) == 1
        with pytest.raises(ConfigError, match="cannot be combined with torchrun"):
            choose_num_workers(load(tmp_path, corpus, "training.workers=2").training, MODEL)


def test_auto_gives_each_worker_enough_to_do(corpus: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        number = [
            choose_num_workers(load(tmp_path, corpus, f"training.batch_tokens={tokens}").training, MODEL)
            for tokens in (100, 300, 4096)
        ]
    finally:
        torch.set_num_threads(before)
    assert number == [1, 2, 4]


@pytest.mark.parametrize(("free", "expected"), [(8 * 400, 4), (6.5 * 400, 3), (100, 1)])
def test_auto_leaves_memory_beside_the_gradients(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, expected: int
) -> None:
    model = nn.Linear(10, 10, bias=False)  # 400 bytes
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr("mtkit.training.workers.available_bytes", lambda: free)
    training = load(tmp_path, corpus, "training.batch_tokens=4096").training
    assert choose_num_workers(training, model) == expected


def test_check_and_benchmark_count_the_memory_of_workers(corpus: Path, tmp_path: Path) -> None:
    load(tmp_path, corpus)
    config = tmp_path / "config.yaml"
    code, out, _ = tiny.mtkit("check", config, *OPTIONS, "training.workers=2")
    assert code == 0
    assert "for weights, gradients of 2 workers, optimizer and EMA" in out
    assert "fp32 on cpu, 2 workers" in out
    code, out, _ = tiny.mtkit("benchmark", "train", config, *OPTIONS, "training.workers=2", "--against=threads",
                              "--steps=3", "--json")  # fmt: skip
    assert code == 0
    result = json.loads(out)
    assert (result["num_workers"], result["against"][0]["name"]) == (2, "mtkit, one worker")
    assert not tiny.children(os.getpid())


# --- real processes -----------------------------------------------------------------------------------------------

LONG = ["training.max_steps=100000", "validation.every_steps=100000", "training.workers=3"]


def start(config: Path, run: Path) -> subprocess.Popen[str]:
    """Start a long run and wait for its first updates."""
    process = tiny.fork("train", config, f"run={run}", *OPTIONS, *LONG, start_new_session=True)
    try:
        tiny.wait_for(lambda: tiny.last_step(run) >= 3 or process.poll() is not None, 60)
        assert process.poll() is None, process.communicate()
    except BaseException:
        process.kill()
        raise
    return process


def test_a_killed_worker_stops_the_run_and_loses_nothing(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(config, run)
    killed = tiny.children(process.pid)[1]
    os.kill(killed, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == TrainingError.exit_code, out
    assert tiny.one_line(err).startswith(f"error: worker 2, process {killed}, was killed by SIGKILL (")
    step = tiny.last_step(run)
    assert tiny.checkpoints(run)[-1] == step >= 3
    mtkit.train(mtkit.load_config(config, [f"run={run}", *OPTIONS, *LONG, f"training.max_steps={step + 2}"]))
    mtkit.train(
        mtkit.load_config(config, [f"run={tmp_path}/b", *OPTIONS, *LONG, f"training.max_steps={step + 2}"])
    )
    assert tiny.tensors(tiny.checkpoint(run, step + 2)) == tiny.tensors(
        tiny.checkpoint(tmp_path / "b", step + 2)
    )


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_to_all_processes_saves_the_run(
    config: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A terminal sends Ctrl-C to all processes of a group, and schedulers do so with SIGTERM."""
    process = start(config, tmp_path / "run")
    workers = tiny.children(process.pid)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert tiny.one_line(err) == "stopped after saving: run the same command again to resume"
    assert tiny.checkpoints(tmp_path / "run")[-1] == tiny.last_step(tmp_path / "run")
    assert not any(map(tiny.is_alive, workers))
