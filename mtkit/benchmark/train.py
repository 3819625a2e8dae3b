"""`mtkit benchmark train`: training speed of a config on this machine, and of baseline loops on the same batches.

All loops run in one process and make the same updates in turn, so that a machine whose speed drifts is equally fast
for all of them. On a GPU, which is not waited for within a span of several updates, spans take turns. Speedups are
medians over the spans.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from rich.console import Console, Group, RenderableType
from rich.table import Column, Table

from mtkit.benchmark.flops import Positions, training_flops
from mtkit.benchmark.machine import machine_name, matmul_peaks
from mtkit.benchmark.reference import MarianLoop, ReferenceLoop
from mtkit.benchmark.synthetic import MEDIAN_SRC_TOKENS, SyntheticCorpus, SyntheticTokenizer
from mtkit.config.loading import AUTO
from mtkit.config.sections import AugmentConfig, Config
from mtkit.data.batching import make_batch, split_into_micro_batches
from mtkit.data.corpus import Corpus
from mtkit.data.order import Indices
from mtkit.data.tokenizer import Tokenizer, Tokenizers
from mtkit.device import dtype_name, out_of_memory_errors, reset_peak_memory, synchronize
from mtkit.errors import ConfigError
from mtkit.interop.initial import find_model
from mtkit.training.build import build_trainer
from mtkit.training.compiling import check_compiler
from mtkit.training.initial import InitialModel, open_initial_model
from mtkit.training.inputs import Inputs, configure_process, load_inputs
from mtkit.training.memory import out_of_memory_hint
from mtkit.training.parallel import Stage, untimed
from mtkit.training.preset import choose_values
from mtkit.training.progress import Progress
from mtkit.training.trainer import Trainer
from mtkit.training.updates import Update

STAGES = ("data", "forward", "loss", "backward", "optimizer")
_WARM_UP_UPDATES = 3
_MIN_UPDATES = 3
_MIN_SPANS = 3
_BASELINES = ("torch", "compile", "threads", "transformers")
_SYNTHETIC_BATCHES = 60
_UPDATES_IN_GPU_SPAN = 4


@dataclass(frozen=True)
class BaselineSpeed:
    """Speed of a baseline loop on the same batches."""

    name: str
    precision: str
    num_threads: int
    """Threads of the process; a loop around PyTorch's or Hugging Face's model runs in its fastest setting."""
    tgt_tokens_per_second: float
    """Median over the updates."""
    ratio: float
    """Speedup of mtkit over this loop: the median over the spans."""
    ratio_quartiles: tuple[float, float]


@dataclass(frozen=True)
class TrainBenchmark:
    """Result of `benchmark_train`. Tokens are real ones, eos included; medians are over spans (on a CPU, updates)."""

    machine: str
    torch: str
    precision: str
    num_workers: int
    num_parameters: int
    num_updates: int
    seconds_per_update: float
    src_tokens_per_second: float
    tgt_tokens_per_second: float
    padding_share: float
    """Share of padding in the positions of the batches, both sides."""
    shares: dict[str, float]
    """Share of each stage in the time of an update. The gradient of the output projection counts as loss."""
    peak_memory_bytes: int
    """Peak memory of tensors on a GPU, or of the process, over updates that include the largest batch of the epoch.
    Several workers are included."""
    flops_per_update: int
    """Operations in the matrix products, padding included (see mtkit/benchmark/flops.py)."""
    needed_flops_per_update: int
    """Operations for real tokens only."""
    flops_per_second: float
    """Speed with padding: what the machine computed."""
    needed_flops_per_second: float
    matmul_peaks: dict[str, float]
    """FLOP/s of the fastest square matrix product, by precision."""
    utilization: float
    """`flops_per_second` as a share of the peak in the run's precision."""
    against: tuple[BaselineSpeed, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return asdict(self)

    def table(self) -> RenderableType:
        """Return the result as tables for the terminal."""
        own = Table(title="mtkit benchmark train", show_header=False, title_justify="left")
        for name, value in self._rows():
            own.add_row(name, value)
        if not self.against:
            return own
        names = "precision", "threads", "target tokens/s", "speedup of mtkit"
        baselines = Table(Column("baseline", no_wrap=True), *names)
        for baseline in self.against:
            low, high = baseline.ratio_quartiles
            ratio = f"{baseline.ratio:.2f} (quartiles {low:.2f} to {high:.2f})"
            speed = f"{baseline.tgt_tokens_per_second:,.0f}"
            baselines.add_row(baseline.name, baseline.precision, str(baseline.num_threads), speed, ratio)
        return Group(own, baselines)

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "machine", f"{self.machine}, PyTorch {self.torch}"
        workers = f", {self.num_workers} workers" if self.num_workers > 1 else ""
        yield "model", f"{self.num_parameters:,} parameters, {self.precision}{workers}"
        yield "update", f"{1000 * self.seconds_per_update:,.0f} ms (median of {self.num_updates})"
        yield "target tokens/s", f"{self.tgt_tokens_per_second:,.0f}"
        yield "source tokens/s", f"{self.src_tokens_per_second:,.0f}"
        yield "padding", f"{100 * self.padding_share:.1f} % of positions"
        yield "time", ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.shares.items())
        yield "peak memory", f"{self.peak_memory_bytes / 2**20:,.0f} MiB"
        peaks = ", ".join(f"{name} {peak / 1e9:,.0f}" for name, peak in self.matmul_peaks.items())
        yield "matmul peak", f"{peaks} GFLOP/s"
        yield (
            "matrix products",
            f"{self.flops_per_second / 1e9:,.0f} GFLOP/s, {100 * self.utilization:.0f} % of the {self.precision} peak "
            f"({self.needed_flops_per_second / 1e9:,.0f} without padding)",
        )


def benchmark_train(
    config: Config,
    *,
    against: tuple[str, ...] = (),
    num_updates: int = 20,
    minutes: float | None = None,
    synthetic: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> TrainBenchmark:
    """Measure training with a config. The run folder is neither read nor written.

    Args:
        config: Config of the run.
        against: Baseline loops on the same batches: `torch`, `compile`, `threads`, `transformers`.
        num_updates: Updates to measure for each loop, after a warm-up.
        minutes: Time to measure for, instead of `num_updates`.
        synthetic: Use random tokens with the lengths of news text instead of the config's corpora.
        say: Receives progress messages.

    Raises:
        ConfigError: If a baseline is unknown or not installed, or the config needs more than random tokens.
        DataError: If a corpus is missing or malformed.
        TrainingError: If memory runs out.
    """
    for name in against:
        if name not in _BASELINES:
            raise ConfigError(f"unknown baseline {name!r}", where="`against`", hint=", ".join(_BASELINES))
    for key in ("distillation", "guided_alignment", "minimum_risk"):
        if synthetic and getattr(config.training, key):
            what = "random tokens mean nothing to teachers, and have no alignment and no text"
            raise ConfigError(what, where=f"training.{key}", hint="leave it out, or `synthetic`")
    if synthetic and config.preset == AUTO:
        what = "auto needs a corpus, and `synthetic` has none"
        raise ConfigError(what, where="preset", hint="name a preset, or leave out `synthetic`")
    device = configure_process(config)
    if "compile" in against:
        check_compiler(device, "`against` compile")
    with tempfile.TemporaryDirectory(prefix="mtkit-benchmark-") as scratch, ExitStack() as stack:
        config = config.model_copy(update={"run": scratch})
        if not synthetic:
            config, _ = choose_values(config)
        config, initial = open_initial_model(config, find_model)
        # random tokens are no text, and the baselines train on the pairs as they are
        if synthetic or against:
            usual = {"sampling_alpha": None, "bpe_dropout": 0.0}
            tokenizer = config.tokenizer.model_copy(update=usual)
            config = config.model_copy(update={"augment": AugmentConfig(), "tokenizer": tokenizer})
        inputs = synthetic_inputs(config) if synthetic else _real_inputs(config, Path(scratch), say, initial)
        clock = _StageClock(device)
        own = _MtkitLoop(config, inputs, clock)
        stack.callback(own.trainer.engine.close)
        warm_up = [own.largest_update(), *itertools.islice(own.updates(), _WARM_UP_UPDATES)]
        with out_of_memory_errors(out_of_memory_hint(config.training)):
            say("warming up, largest batch first")
            reset_peak_memory(own.trainer.device)
            _seconds(own, warm_up, device)
            memory = own.trainer.engine.peak_memory()
            baselines = [_make_baseline(name, own, warm_up[1:], say) for name in against]
            for baseline in baselines:
                _seconds(baseline, warm_up, device)
            say("measuring")
            timed = _run_in_turn([own, *baselines], own.updates(), num_updates, minutes, device)
            num_timed = sum(len(span.updates) for span in timed)
            shares = _time_shares(own, clock, max(_MIN_UPDATES, num_timed // 3))
        say("measuring the matmul peak")
        return _summarize(own, baselines, timed, shares, memory)


def _real_inputs(
    config: Config, folder: Path, say: Callable[[str], None], initial: InitialModel | None
) -> Inputs:
    """Return the inputs of training, without the validation pairs: nothing is validated."""
    inputs = load_inputs(config, folder, has_tokenizers=False, say=say, initial=initial)
    return replace(inputs, valid=None)


def synthetic_inputs(config: Config) -> Inputs:
    """Return the tokenizers and a corpus of random pairs, enough for some tens of batches."""
    tokenizer = cast(Tokenizer, SyntheticTokenizer(config.tokenizer.vocab_size))
    num_pairs = _SYNTHETIC_BATCHES * config.training.batch_token_budget // MEDIAN_SRC_TOKENS
    corpus = SyntheticCorpus(
        num_pairs, config.tokenizer.vocab_size, min(config.data.max_length, 250), config.seed
    )
    tokenizers = Tokenizers(tokenizer, tokenizer, joint=config.tokenizer.joint)
    return Inputs(tokenizers, cast(Corpus, corpus), valid=None, tests=[])


# --- loops --------------------------------------------------------------------------------------------------------


class _Loop(Protocol):
    """A training loop."""

    name: str
    precision: str
    num_threads: int

    def step(self, update: Update) -> None:
        """Make one update, and do not wait for a GPU."""


def _seconds(loop: _Loop, updates: Iterable[Update], device: torch.device) -> float:
    """Return the seconds that some updates take, until the device has made the last one."""
    synchronize(device)
    start = time.perf_counter()
    for update in updates:
        loop.step(update)
    synchronize(device)
    return time.perf_counter() - start


class _MtkitLoop:
    """mtkit's trainer without validation and checkpoints."""

    name = "mtkit"

    def __init__(self, config: Config, inputs: Inputs, stage: Stage = untimed) -> None:
        progress = Progress(Path(config.run), Console(quiet=True), writes_metrics=False)
        self.trainer = build_trainer(config, inputs, progress, stage=stage)
        self.precision, self.num_threads = self.trainer.precision, torch.get_num_threads()
        self.trainer.fit_to_memory()

    def step(self, update: Update) -> None:
        """Make one update; see `_Loop.step`."""
        self.trainer.train_step(update)

    def updates(self) -> Iterator[Update]:
        """Yield updates without end, epoch after epoch."""
        return self.trainer.loader.endless_updates()

    def largest_update(self) -> Update:
        """Return an update in which every batch is the one with the most positions."""
        largest = self.trainer.loader.epoch_batches(0).largest()
        return Update([largest] * self.trainer.config.training.batches_per_update)


class _TorchLoop:
    """A baseline loop on mtkit's batches. Making a batch is part of the step, as it is in mtkit.

    Args:
        name: `torch` or `transformers`.
        own: mtkit's trainer, for the same work.
        dtype: dtype of matrix products, by autocast.
        num_threads: threads of an operation on a CPU.
    """

    def __init__(self, name: str, own: Trainer, dtype: torch.dtype, num_threads: int) -> None:
        config, tokenizers = own.config, own.inputs.tokenizers
        kind = ReferenceLoop if name == "torch" else MarianLoop
        self.name = "nn.Transformer loop" if name == "torch" else "transformers (Marian)"
        self.own, self.num_threads, self.precision = own, num_threads, dtype_name(dtype)
        self.loop = kind(
            config.model, config.training, tokenizers.tgt.vocab_size, tokenizers.src.pad, own.device, dtype
        )

    def step(self, update: Update) -> None:
        """Make one update; see `_Loop.step`."""
        corpus, special = self.own.loader.corpus, self.own.loader.special
        with _threads(self.num_threads):
            self.loop.step([make_batch(corpus, pairs, special) for pairs in _micro_batches(self.own, update)])


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Run the block's operations in this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make_baseline(
    name: str, own: _MtkitLoop, updates: Sequence[Update], say: Callable[[str], None]
) -> _Loop:
    """Build a baseline loop for the same work. Loops around other models get the setting that is fastest for them.

    Args:
        name: which.
        own: mtkit's loop.
        updates: updates to try settings with; the first is not measured.
        say: receives progress messages.
    """
    trainer = own.trainer
    config = trainer.config
    if name in ("compile", "threads"):
        other = config.training.model_copy(update={"compile": name == "compile", "workers": 1})
        loop = _MtkitLoop(config.model_copy(update={"training": other}), trainer.inputs)
        loop.name = "mtkit, compiled" if name == "compile" else "mtkit, one worker"
        return loop
    settings = _settings(trainer.device, trainer.dtype)
    if len(settings) == 1:
        return _TorchLoop(name, trainer, *settings[0])
    say(f"looking for the fastest setting of {name}")
    seconds = {setting: _try(_TorchLoop(name, trainer, *setting), updates) for setting in settings}
    return _TorchLoop(name, trainer, *min(seconds, key=seconds.__getitem__))


def _settings(device: torch.device, dtype: torch.dtype) -> list[tuple[torch.dtype, int]]:
    """Return the precisions and numbers of threads that a plain loop may be fastest with.

    On a CPU these are float32 and the precision of the run, in one thread and in all. On a GPU there is one setting.
    """
    all_threads = torch.get_num_threads()
    if device.type != "cpu":
        return [(dtype, all_threads)]
    return [
        (each, number)
        for each in dict.fromkeys([torch.float32, dtype])
        for number in sorted({1, all_threads})
    ]


def _try(loop: _TorchLoop, updates: Sequence[Update]) -> float:
    """Return how long a loop takes for the updates after the first."""
    loop.step(updates[0])
    return _seconds(loop, updates[1:], loop.loop.device)


# --- measuring ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Span:
    """Updates that follow each other, and the seconds that each loop took for them, mtkit first."""

    updates: list[Update]
    seconds: list[float]


def _run_in_turn(
    loops: list[_Loop],
    updates: Iterator[Update],
    num_updates: int,
    minutes: float | None,
    device: torch.device,
) -> list[_Span]:
    """Let the loops make each span of updates in turn, until the number of updates or the time is reached."""
    length = 1 if device.type == "cpu" else _UPDATES_IN_GPU_SPAN
    timed: list[_Span] = []
    deadline = time.perf_counter() + 60 * (minutes or 0.0)
    while True:
        span = list(itertools.islice(updates, length))
        timed.append(_Span(span, [_seconds(loop, span, device) for loop in loops]))
        enough = length * len(timed) >= num_updates if minutes is None else time.perf_counter() >= deadline
        if enough and len(timed) >= _MIN_SPANS:
            return timed


class _StageClock:
    """Adds up the seconds of each stage while it runs: on a GPU those between two events, which nothing waits for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_running = False
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a stage."""
        if not self.is_running:
            yield
        elif self.device.type == "cpu":
            start = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - start
        else:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # without a stream an event is recorded on the current GPU, which may be another one
            stream = torch.cuda.current_stream(self.device)
            first.record(stream)
            yield
            last.record(stream)
            self._events.append((name, first, last))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage, once the device has finished."""
        for name, first, last in self._events:
            self._seconds[name] += first.elapsed_time(last) / 1000
        self._events = []
        return self._seconds


def _time_shares(own: _MtkitLoop, clock: _StageClock, num_updates: int) -> dict[str, float]:
    """Measure the share of each stage in the time of some updates, and that of everything else."""
    clock.is_running = True
    total = _seconds(own, itertools.islice(own.updates(), num_updates), own.trainer.device)
    shares = {name: seconds / total for name, seconds in clock.seconds().items()}
    return shares | {"other": 1 - sum(shares.values())}


def _summarize(
    own: _MtkitLoop,
    baselines: list[_Loop],
    timed: list[_Span],
    shares: dict[str, float],
    memory: int,
) -> TrainBenchmark:
    """Compute medians and rates."""
    trainer = own.trainer
    padded, needed = (
        [_count_positions(trainer, span.updates, padded=padded) for span in timed]
        for padded in (not trainer.config.training.pack, False)
    )
    seconds = [span.seconds[0] for span in timed]
    config, vocab_size = trainer.config.model, trainer.inputs.tokenizers.tgt.vocab_size
    passes = 2 if trainer.config.training.simcut or trainer.config.training.r_drop else 1
    flops, needed_flops = (
        [passes * training_flops(config, vocab_size, p) for p in ps] for ps in (padded, needed)
    )
    peaks = matmul_peaks(trainer.device)
    speed = _median_rate(flops, seconds)
    computed = sum(p.src + p.tgt for p in padded)
    return TrainBenchmark(
        machine=machine_name(trainer.device),
        torch=torch.__version__,
        precision=own.precision,
        num_workers=trainer.engine.num_workers,
        num_parameters=trainer.model.num_parameters(),
        num_updates=sum(len(span.updates) for span in timed),
        seconds_per_update=_median_per_update(seconds, timed),
        src_tokens_per_second=_median_rate([p.src for p in needed], seconds),
        tgt_tokens_per_second=_median_rate([p.tgt for p in needed], seconds),
        padding_share=1 - sum(p.src + p.tgt for p in needed) / computed,
        shares=shares,
        peak_memory_bytes=memory,
        flops_per_update=round(_median_per_update(flops, timed)),
        needed_flops_per_update=round(_median_per_update(needed_flops, timed)),
        flops_per_second=speed,
        needed_flops_per_second=_median_rate(needed_flops, seconds),
        matmul_peaks=peaks,
        utilization=speed / peaks.get(own.precision, peaks["fp32"]),
        against=tuple(
            _compare(baseline, [span.seconds[number] for span in timed], seconds, [p.tgt for p in needed])
            for number, baseline in enumerate(baselines, 1)
        ),
    )


def _compare(baseline: _Loop, theirs: list[float], own: list[float], num_targets: list[int]) -> BaselineSpeed:
    """Return a baseline's speed and the speedup over it, from the seconds and target tokens of each span."""
    ratios = [their / our for their, our in zip(theirs, own, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return BaselineSpeed(
        name=baseline.name,
        precision=baseline.precision,
        num_threads=baseline.num_threads,
        tgt_tokens_per_second=_median_rate(num_targets, theirs),
        ratio=statistics.median(ratios),
        ratio_quartiles=(low, high),
    )


def _median_rate(amounts: list[int], seconds: list[float]) -> float:
    """Return the median over spans of an amount per second."""
    return statistics.median(amount / s for amount, s in zip(amounts, seconds, strict=True))


def _median_per_update(amounts: Sequence[float], timed: list[_Span]) -> float:
    """Return the median over spans of an amount per update."""
    return statistics.median(amount / len(span.updates) for amount, span in zip(amounts, timed, strict=True))


def _count_positions(trainer: Trainer, updates: list[Update], *, padded: bool) -> Positions:
    """Count the positions of the micro-batches of some updates, with padding or without."""
    lengths = trainer.loader.corpus.src_lengths, trainer.loader.corpus.tgt_lengths
    each = (
        Positions.of_batch(*lengths, pairs, padded=padded)
        for update in updates
        for pairs in _micro_batches(trainer, update)
    )
    return sum(each, Positions())


def _micro_batches(trainer: Trainer, update: Update) -> list[Indices]:
    """Return the pairs of each micro-batch of an update."""
    micro_batches = split_into_micro_batches(update.batches, min_micro_batches=trainer.state.slices)
    return [pairs for pairs in micro_batches if len(pairs)]
