"""`mtkit benchmark train`: how fast a config trains on this machine, and how fast others would on the same batches.

All competitors live in one process and make one update after the other in turn, so that a machine whose speed drifts
is the same for all; ratios are medians over pairs of neighbouring updates.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from rich.console import Console, Group, RenderableType
from rich.table import Table

from mtkit.benchmark.flops import Positions, training_flops
from mtkit.benchmark.machine import machine_name, matmul_peaks, synchronize
from mtkit.benchmark.reference import MarianLoop, ReferenceLoop
from mtkit.benchmark.synthetic import MEDIAN_SRC_TOKENS, SyntheticCorpus, SyntheticTokenizer
from mtkit.config.sections import Config
from mtkit.data.batching import make_batch, split_into_micro_batches
from mtkit.data.corpus import Corpus
from mtkit.data.order import Indices
from mtkit.data.tokenizer import Tokenizer, Tokenizers
from mtkit.device import dtype_name, out_of_memory_errors, peak_memory, reset_peak_memory
from mtkit.errors import ConfigError
from mtkit.training.compiling import check_compiler
from mtkit.training.inputs import configure_process, prepare
from mtkit.training.memory import find_num_micro_batches, largest_batch
from mtkit.training.progress import Progress
from mtkit.training.signals import Signals
from mtkit.training.trainer import Trainer, Update

STAGES = ("data", "forward", "loss", "backward", "optimizer")
_WARM_UP_UPDATES = 3
_LEAST_UPDATES = 3
_COMPETITORS = ("torch", "compile", "transformers")
_SYNTHETIC_BATCHES = 60

Say = Callable[[str], None]


@dataclass(frozen=True)
class Against:
    """A competitor on the same batches."""

    name: str
    precision: str
    tgt_tokens_per_second: float
    """Median over the updates."""
    ratio: float
    """mtkit's speed over this one's: the median over pairs of neighbouring updates."""
    ratio_quartiles: tuple[float, float]


@dataclass(frozen=True)
class TrainBenchmark:
    """What was measured. Tokens are real pieces with eos, never padding; medians are over updates."""

    machine: str
    torch: str
    precision: str
    num_parameters: int
    num_updates: int
    seconds_per_update: float
    src_tokens_per_second: float
    tgt_tokens_per_second: float
    padding_share: float
    """Of the positions of the batches, both sides."""
    shares: dict[str, float]
    """Of the time of an update, by stage. The output projection's gradient is worked out in the loss."""
    peak_memory_bytes: int
    """Of the tensors on a GPU, or of the whole process; the largest batch of the epoch is among the updates."""
    flops_per_update: int
    """Of its matrix products, padding included (see mtkit/benchmark/flops.py)."""
    needed_flops_per_update: int
    """Those of real positions alone."""
    flops_per_second: float
    """With padding: what the machine did."""
    needed_flops_per_second: float
    matmul_peaks: dict[str, float]
    """FLOP/s of the fastest square matrix product, by precision."""
    utilization: float
    """`flops_per_second` as a share of the peak in the run's precision."""
    against: tuple[Against, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> RenderableType:
        """For a terminal."""
        own = Table(title="mtkit benchmark train", show_header=False, title_justify="left")
        for name, value in self._rows():
            own.add_row(name, value)
        if not self.against:
            return own
        others = Table("against", "precision", "target tokens/s", "mtkit's speed over this")
        for other in self.against:
            low, high = other.ratio_quartiles
            ratio = f"{other.ratio:.2f} (quartiles {low:.2f} to {high:.2f})"
            others.add_row(other.name, other.precision, f"{other.tgt_tokens_per_second:,.0f}", ratio)
        return Group(own, others)

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "machine", f"{self.machine}, PyTorch {self.torch}"
        yield "model", f"{self.num_parameters:,} parameters, {self.precision}"
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
    say: Say = lambda line: None,
) -> TrainBenchmark:
    """Measure training with this config. The run folder is neither read nor written.

    Args:
        config: the run.
        against: competitors on the same batches: `torch`, `compile`, `transformers`.
        num_updates: measured of each, after the warm-up.
        minutes: measure for so long instead.
        synthetic: random pieces with lengths like those of news, instead of the config's corpora.
        say: told what is going on.

    Raises:
        ConfigError: an unknown competitor, or one that is not installed.
        DataError: a corpus is missing or malformed.
        TrainingError: out of memory.
    """
    _refuse_unknown(against)
    device = configure_process(config)
    if "compile" in against:
        check_compiler(device, "`against` compile")
    with tempfile.TemporaryDirectory(prefix="mtkit-benchmark-") as scratch:
        config = config.model_copy(update={"run": scratch})
        tokenizers, corpus = (
            synthetic_inputs(config) if synthetic else _real_inputs(config, Path(scratch), say)
        )
        own = MtkitLoop(config, corpus, tokenizers)
        largest = own.largest_update()
        with out_of_memory_errors(own.trainer.memory_hint()):
            say("warm-up, the largest batch first")
            reset_peak_memory(own.trainer.device)
            for update in [largest, *own.updates(_WARM_UP_UPDATES)]:
                own.step(update)
            memory = peak_memory(own.trainer.device)
            others = [_make_competitor(name, own) for name in against]
            for other in others:
                for update in [largest, *own.updates(_WARM_UP_UPDATES)]:
                    other.step(update)
            say("measuring")
            seconds = _run_interleaved([own, *others], own.updates(None), num_updates, minutes)
            shares = _measured_shares(own, max(_LEAST_UPDATES, len(seconds) // 3))
        say("measuring the matmul peak")
        return summary(own, others, seconds, shares, memory)


def _refuse_unknown(names: tuple[str, ...]) -> None:
    """Check the names of competitors. Raises: ConfigError."""
    for name in names:
        if name not in _COMPETITORS:
            raise ConfigError(f"{name!r} is unknown", where="`against`", hint=", ".join(_COMPETITORS))


def _real_inputs(config: Config, folder: Path, say: Say) -> tuple[Tokenizers, Corpus]:
    """The tokenizers and the encoded pairs that training would use."""
    inputs = prepare(config, folder, resumed=False, say=say)
    return inputs.tokenizers, inputs.corpus


def synthetic_inputs(config: Config) -> tuple[Tokenizers, Corpus]:
    """Random pairs, enough for some tens of batches, and the vocabulary that they are from."""
    tokenizer = cast(Tokenizer, SyntheticTokenizer(config.tokenizer.vocab_size))
    num_pairs = _SYNTHETIC_BATCHES * config.training.batch_token_budget // MEDIAN_SRC_TOKENS
    corpus = SyntheticCorpus(
        num_pairs, config.tokenizer.vocab_size, min(config.data.max_length, 250), config.seed
    )
    return Tokenizers(tokenizer, tokenizer, joint=config.tokenizer.joint), cast(Corpus, corpus)


# --- the competitors ----------------------------------------------------------------------------------------------


class Contestant(Protocol):
    """Something that makes updates."""

    name: str
    precision: str

    def step(self, update: Update) -> None:
        """One update, begun and finished."""


class MtkitLoop:
    """mtkit's own trainer, which does not validate or save."""

    name = "mtkit"

    def __init__(self, config: Config, corpus: Corpus, tokenizers: Tokenizers) -> None:
        progress = Progress(Path(config.run), Console(quiet=True))
        self.trainer = Trainer(config, corpus, tokenizers, None, progress, Signals())
        self.precision = dtype_name(self.trainer.dtype)
        if config.training.batch_tokens == "auto":
            self.trainer.state.slices = find_num_micro_batches(self.trainer)

    def step(self, update: Update) -> None:
        """One update, begun and finished."""
        self.trainer.train_step(update)
        synchronize(self.trainer.device)

    def updates(self, number: int | None) -> Iterator[Update]:
        """So many updates, or endlessly, epoch after epoch."""
        size = self.trainer.config.training.batches_per_update
        epoch = made = 0
        while number is None or made < number:
            order = self.trainer.epoch_order(epoch)
            numbered = [(epoch, i, order[i % len(order)]) for i in range(max(len(order), size))]
            for first in range(0, len(numbered) - size + 1, size):
                if made == number:
                    return
                yield numbered[first : first + size]
                made += 1
            epoch += 1

    def largest_update(self) -> Update:
        """An update of the batch with the most positions, as often as an update has batches."""
        number = self.trainer.config.training.batches_per_update
        return [(0, 0, largest_batch(self.trainer))] * number


class _TorchLoop:
    """A loop that knows nothing of mtkit but its batches, which are made while the clock runs, as mtkit's are."""

    def __init__(self, name: str, loop: ReferenceLoop, own: Trainer) -> None:
        self.name, self.loop, self.own = name, loop, own
        self.precision = dtype_name(loop.dtype)

    def step(self, update: Update) -> None:
        """One update, begun and finished."""
        self.loop.step([make_batch(self.own.corpus, p, self.own.special) for p in parts(self.own, update)])
        synchronize(self.loop.device)


def _make_competitor(name: str, own: MtkitLoop) -> Contestant:
    """A competitor for the same work.

    On a CPU the plain loops run in float32, as one writes them; on a GPU by autocast in the run's own precision.
    """
    trainer = own.trainer
    config = trainer.config
    dtype = torch.float32 if trainer.device.type == "cpu" else trainer.dtype
    if name == "compile":
        compiled = config.training.model_copy(update={"compile": True})
        loop = MtkitLoop(config.model_copy(update={"training": compiled}), trainer.corpus, trainer.tokenizers)
        loop.name = "mtkit, compiled"
        return loop
    shape = config.model, config.training, trainer.tokenizers.tgt.vocab_size, trainer.tokenizers.src.pad
    if name == "torch":
        return _TorchLoop("nn.Transformer loop", ReferenceLoop(*shape, trainer.device, dtype), trainer)
    return _TorchLoop("transformers (Marian)", MarianLoop(*shape, trainer.device, dtype), trainer)


# --- measuring ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """An update and the seconds that each competitor took for it, mtkit first."""

    update: Update
    seconds: list[float]


def _run_interleaved(
    competitors: list[Contestant], updates: Iterator[Update], num_updates: int, minutes: float | None
) -> list[Measured]:
    """Let each competitor make the same update, one after the other, until there are enough."""
    found: list[Measured] = []
    deadline = time.perf_counter() + 60 * (minutes or 0.0)
    for update in updates:
        seconds = []
        for competitor in competitors:
            start = time.perf_counter()
            competitor.step(update)
            seconds.append(time.perf_counter() - start)
        found.append(Measured(update, seconds))
        enough = len(found) >= num_updates if minutes is None else time.perf_counter() >= deadline
        if enough and len(found) >= _LEAST_UPDATES:
            break
    return found


class _StageClock:
    """Adds up the seconds of each stage; waits for a GPU at both ends, which makes updates a little slower."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure a block."""
        synchronize(self.device)
        start = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[name] += time.perf_counter() - start


def _measured_shares(own: MtkitLoop, num_updates: int) -> dict[str, float]:
    """The share of each stage in the time of some updates, and of what is none of them."""
    clock = _StageClock(own.trainer.device)
    own.trainer.measure(clock)
    start = time.perf_counter()
    for update in own.updates(num_updates):
        own.step(update)
    total = time.perf_counter() - start
    shares = {name: seconds / total for name, seconds in clock.seconds.items()}
    return shares | {"other": 1 - sum(shares.values())}


def summary(
    own: MtkitLoop,
    others: list[Contestant],
    measured: list[Measured],
    shares: dict[str, float],
    memory: int,
) -> TrainBenchmark:
    """The medians."""
    trainer = own.trainer
    padded, needed = (
        [positions(trainer, m.update, padded=padded) for m in measured] for padded in (True, False)
    )
    seconds = [m.seconds[0] for m in measured]
    config, vocab_size = trainer.config.model, trainer.tokenizers.tgt.vocab_size
    flops, needed_flops = ([training_flops(config, vocab_size, p) for p in ps] for ps in (padded, needed))
    peaks = matmul_peaks(trainer.device)
    speed = _median_ratio(flops, seconds)
    computed = sum(p.src + p.tgt for p in padded)
    return TrainBenchmark(
        machine=machine_name(trainer.device),
        torch=torch.__version__,
        precision=own.precision,
        num_parameters=trainer.model.num_parameters(),
        num_updates=len(measured),
        seconds_per_update=statistics.median(seconds),
        src_tokens_per_second=_median_ratio([p.src for p in needed], seconds),
        tgt_tokens_per_second=_median_ratio([p.tgt for p in needed], seconds),
        padding_share=1 - sum(p.src + p.tgt for p in needed) / computed,
        shares=shares,
        peak_memory_bytes=memory,
        flops_per_update=round(statistics.median(flops)),
        needed_flops_per_update=round(statistics.median(needed_flops)),
        flops_per_second=speed,
        needed_flops_per_second=_median_ratio(needed_flops, seconds),
        matmul_peaks=peaks,
        utilization=speed / peaks.get(own.precision, peaks["fp32"]),
        against=tuple(
            compared(other, [m.seconds[number] for m in measured], seconds, [p.tgt for p in needed])
            for number, other in enumerate(others, 1)
        ),
    )


def compared(other: Contestant, theirs: list[float], own: list[float], num_targets: list[int]) -> Against:
    """A competitor's speed and the ratio to it."""
    ratios = [their / our for their, our in zip(theirs, own, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Against(
        other.name,
        other.precision,
        _median_ratio(num_targets, theirs),
        statistics.median(ratios),
        (low, high),
    )


def _median_ratio(amounts: list[int], seconds: list[float]) -> float:
    """The median over updates of an amount a second."""
    return statistics.median(amount / s for amount, s in zip(amounts, seconds, strict=True))


def positions(trainer: Trainer, update: Update, *, padded: bool) -> Positions:
    """The positions of an update's batches, with padding or without."""
    lengths = trainer.corpus.src_lengths, trainer.corpus.tgt_lengths
    each = (Positions.of_batch(*lengths, part, padded=padded) for part in parts(trainer, update))
    return sum(each, Positions())


def parts(trainer: Trainer, update: Update) -> list[Indices]:
    """What an update runs one after the other: its batches, in slices if memory asks for them."""
    cut = split_into_micro_batches(
        [indices for _, _, indices in update], min_micro_batches=trainer.state.slices
    )
    return [part for part in cut if len(part)]
