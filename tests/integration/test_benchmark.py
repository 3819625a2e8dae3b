"""`mtkit benchmark train`: its measurements are complete and add up, and the run folder stays as it is."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from mtkit.benchmark import train as train_benchmark
from mtkit.benchmark.machine import matmul_peaks
from mtkit.benchmark.train import STAGES, _TorchLoop
from mtkit.device import peak_memory
from mtkit.training.updates import Update
from mtkit.translation.loading import load_model


def benchmark(*arguments: object) -> dict[str, Any]:
    """Return the JSON that the command prints."""
    code, out, err = tiny.mtkit("benchmark", "train", *arguments, "--json", "--steps", 3)
    assert code == 0, err
    return json.loads(out)


@pytest.fixture
def no_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the machine's peak only briefly; it takes seconds otherwise."""
    monkeypatch.setattr("mtkit.benchmark.machine.PEAK_SECONDS", 0.01)


@pytest.mark.usefixtures("no_peaks")
def test_numbers_are_complete_and_add_up(config: Path, tmp_path: Path) -> None:
    found = benchmark(config, "--against", "torch", "training.accumulate=2", "training.precision=fp32")
    assert found["precision"] == "fp32"
    assert found["num_updates"] == 3
    assert found["shares"].keys() == {*STAGES, "other"}
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert all(share > 0 for share in found["shares"].values())
    for name in ("src_tokens_per_second", "tgt_tokens_per_second", "flops_per_second", "peak_memory_bytes"):
        assert found[name] > 0
    assert 0 < found["padding_share"] < 0.5
    assert found["needed_flops_per_update"] < found["flops_per_update"]
    assert found["utilization"] == found["flops_per_second"] / found["matmul_peaks"]["fp32"]
    (other,) = found["against"]
    assert (other["name"], other["precision"]) == ("nn.Transformer loop", "fp32")
    low, high = other["ratio_quartiles"]
    assert 0 < low <= other["ratio"] <= high
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_peaks")
def test_synthetic_batches_need_no_corpus(config: Path) -> None:
    missing = "data.root=/nowhere"
    assert tiny.mtkit("benchmark", "train", config, missing)[0] == 3
    found = benchmark(
        config, missing, "--synthetic", "training.batch_tokens=auto", "training.update_tokens=300"
    )
    assert found["against"] == []
    assert found["tgt_tokens_per_second"] > 0


@pytest.mark.usefixtures("no_peaks")
def test_the_model_is_the_one_that_training_starts_from(trained: Path, config: Path) -> None:
    lines = [line for line in tiny.read_lines(config) if not line.startswith(("tokenizer:", "model:"))]
    tiny.write_lines(config, [f"init: {trained}", *lines])
    size = load_model(trained)[2].num_parameters()
    assert benchmark(config)["num_parameters"] == size
    assert benchmark(config, "--synthetic")["num_parameters"] == size
    assert tiny.mtkit("benchmark", "data", config, "--pairs", 1000)[0] == 0


@pytest.mark.usefixtures("no_peaks")
def test_what_random_tokens_can_be_trained_on(config: Path) -> None:
    assert benchmark(config, "--synthetic", "data.reverse=true")["num_updates"] == 3
    for key, message in (
        ("training.minimum_risk={metric: chrf}", "training.minimum_risk: random tokens"),
        ("preset=auto", "preset: auto needs a corpus"),
    ):
        code, _, err = tiny.mtkit("benchmark", "train", config, "--synthetic", key)
        assert code == 2 and message in tiny.one_line(err)


@pytest.mark.usefixtures("no_peaks")
def test_the_table_has_all_rows(config: Path) -> None:
    code, out, _ = tiny.mtkit("benchmark", "train", config, "--against", "torch", "--steps", 3)
    assert code == 0
    for words in ("target tokens/s", "padding", "forward", "peak memory", "nn.Transformer loop"):
        assert words in out


@pytest.mark.usefixtures("no_peaks")
def test_against_transformers(config: Path) -> None:
    pytest.importorskip("transformers")
    (other,) = benchmark(config, "--against", "transformers")["against"]
    assert other["name"] == "transformers (Marian)"
    assert other["ratio"] > 0


@pytest.mark.usefixtures("no_peaks")
def test_a_baseline_runs_in_its_fastest_setting(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU: float32 and the precision of the run, in one thread and in all."""
    seconds = {("fp32", 1): 4.0, ("fp32", 2): 3.0, ("bf16", 1): 1.0, ("bf16", 2): 2.0}
    tried = []

    def measure(loop: _TorchLoop, updates: Sequence[Update]) -> float:
        assert len(updates) == 3
        tried.append((loop.precision, loop.num_threads))
        return seconds[tried[-1]]

    monkeypatch.setattr("mtkit.benchmark.train._try", measure)
    threads_before = torch.get_num_threads()
    try:
        found = benchmark(
            config,
            "--against",
            "torch",
            "training.precision=bf16",
            "training.num_threads=2",
            "training.workers=1",
        )
    finally:
        torch.set_num_threads(threads_before)
    (other,) = found["against"]
    assert sorted(tried) == sorted(seconds)
    assert (other["precision"], other["num_threads"]) == ("bf16", 1)


def test_a_baseline_that_is_unknown_or_not_installed(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = tiny.mtkit("benchmark", "train", config, "--against", "fairseq")
    assert code == 2
    assert (
        tiny.one_line(err)
        == "error: --against: unknown baseline 'fairseq' (torch, compile, threads, transformers)"
    )
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it raises ImportError
    code, _, err = tiny.mtkit("benchmark", "train", config, "--against", "transformers")
    assert code == 2
    assert "the package transformers is not installed (pip install transformers)" in err


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtkit.benchmark.machine.PEAK_SECONDS", 0.05)
    cpu = torch.device("cpu")
    peaks = matmul_peaks(cpu)
    assert peaks.keys() >= {"fp32", "bf16"}
    assert all(1e8 < peak < 1e14 for peak in peaks.values())
    before = peak_memory(cpu)
    held = torch.ones(64 << 20)  # 256 MiB
    assert peak_memory(cpu) >= before + 100 * 2**20
    del held


def test_cost_per_pair(config: Path) -> None:
    code, out, err = tiny.mtkit("benchmark", "data", config, "--pairs", 3000, "--json")
    assert code == 0, err
    costs = {cost["work"]: cost for cost in json.loads(out)["costs"]}
    assert list(costs)[-1] == f"encoding {tiny.SPLITS['train']} pairs"
    assert costs["lengths"]["bytes_held"] == 4
    assert all(cost["microseconds"] > 0 for work, cost in costs.items() if work != "lengths")
    assert (
        8
        < costs["duplicate detection without hashing"]["bytes_held"]
        < costs["duplicate detection without hashing"]["bytes_peak"]
    )
    code, out, _ = tiny.mtkit("benchmark", "data", "--pairs", 500)
    assert code == 0
    assert "start of an epoch" in out
    assert "encoding" not in out


# --- a GPU, which is not at hand ----------------------------------------------------------------------------------


class CountingLoop:
    """A loop that only remembers what happened."""

    precision = "bf16"

    def __init__(self, name: str, happened: list[str]) -> None:
        self.name, self.happened = name, happened

    def step(self, update: Update) -> None:
        self.happened.append(self.name)


def test_a_gpu_is_waited_for_only_at_the_ends_of_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    monkeypatch.setattr(train_benchmark, "synchronize", lambda device: happened.append("wait"))
    loops = [CountingLoop(name, happened) for name in ("own", "other")]
    updates = (Update([np.array([number])]) for number in itertools.count())
    spans = train_benchmark._run_in_turn(loops, updates, 10, None, torch.device("cuda", 0))
    turn = [each for name in ("own", "other") for each in ("wait", *[name] * 4, "wait")]
    assert happened == turn * 3
    pairs = [int(update.batches[0][0]) for span in spans for update in span.updates]
    assert pairs == list(range(12)) and all(len(span.seconds) == 2 for span in spans)


def test_stages_on_a_gpu_are_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_of_gpu = itertools.count(step=250)  # milliseconds

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            assert stream == "stream of cuda:1"  # not of the current GPU
            self.at = next(clock_of_gpu)

        def elapsed_time(self, last: Event) -> float:
            return last.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    clock = train_benchmark._StageClock(torch.device("cuda", 1))
    with clock("forward"):
        pass
    assert not any(clock.seconds().values())  # it does not run yet
    clock.is_running = True
    for name in ("forward", "loss", "forward"):
        with clock(name):
            pass
    assert {name: own for name, own in clock.seconds().items() if own} == {"forward": 0.5, "loss": 0.25}
