"""`mtkit benchmark translate`: speed, time per stage and memory of translation, compared with other systems.

Other systems are measured in their fastest setting, which a short round finds; mtkit is measured as it is by default.
All go from text to text, and translate all lines in turn, so that a machine whose speed drifts is equally fast for all.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mtkit.benchmark.peers import (
    PEERS,
    check_comparable,
    ctranslate2_candidate,
    export_to_ctranslate2,
    hugging_face_candidate,
)
from mtkit.benchmark.settings import Candidate, Output, Setting, System, fastest_setting, layouts
from mtkit.config.sections import Config
from mtkit.data.tokenizer import Tokenizer
from mtkit.device import peak_memory, synchronize
from mtkit.errors import ConfigError
from mtkit.evaluation import metrics
from mtkit.translation.options import PARALLEL, SERIAL, TranslateOptions
from mtkit.translation.translator import Translator

_WARM_UP_LINES = 64
_PROFILED_LINES = 512
_SINGLE_LINES = 20
"""Lines that are translated one by one, for the latency."""
_STARTS = 3
"""Processes that are started, for the time to the first translation."""


@dataclass(frozen=True)
class Speed:
    """Speed of one system: medians over the rounds."""

    system: str
    setting: str
    """Workers, threads and batches."""
    sentences_per_second: float
    output_tokens_per_second: float
    """Tokens of the translations in mtkit's tokenization, eos included."""
    rounds: list[float]
    """Sentences per second in each round."""
    bleu: float | None
    same_as_first: float
    """Share of the lines with the same translation as the first system's."""
    milliseconds_per_line: float
    """Time to translate a single line, at the fastest number of threads."""
    num_over_limit: int = 0
    """Lines with a translation longer than mtkit allows; the others have one length limit for all lines of a call."""

    def line(self) -> str:
        """Return the result as one line of text."""
        bleu = "" if self.bleu is None else f"  BLEU {self.bleu:.2f}"
        over = f"  {self.num_over_limit:,} over mtkit's length limit" if self.num_over_limit else ""
        slowest, fastest = min(self.rounds), max(self.rounds)
        return (
            f"{f'{self.system}, {self.setting}':60} {self.sentences_per_second:8.1f} sentences/s"
            f" ({slowest:.1f} to {fastest:.1f})"
            f"  {self.output_tokens_per_second:8.0f} tokens/s{bleu}  same text {100 * self.same_as_first:.1f} %"
            f"  one line {self.milliseconds_per_line:.1f} ms{over}"
        )


@dataclass(frozen=True)
class TranslateBenchmark:
    """Result of `benchmark_translate`; the first system is mtkit."""

    num_sentences: int
    search: str
    num_threads: int
    device: str
    speeds: list[Speed]
    shares: dict[str, float]
    """Share of each stage in the time of translating batch by batch with one worker."""
    peak_memory_mb: float
    """Peak memory (in units of 2^20 bytes) before other systems are loaded: of the process and what its workers have of
    their own, or of tensors on a GPU."""
    workers_memory_mb: float
    """Memory of the workers in it, after they translated all lines."""
    seconds_to_first: float | None = None
    """Time from the start of `mtkit translate` to the first translation; None if it was not measured, or failed."""
    has_graphs: bool = False
    """Whether mtkit uses CUDA graphs; the shares are those without them."""

    def lines(self) -> Iterator[str]:
        """Yield the result as lines of text."""
        threads = "1 thread" if self.num_threads == 1 else f"{self.num_threads} threads"
        yield f"{self.num_sentences:,} sentences, {self.search}, {threads}, {self.device}"
        yield from (speed.line() for speed in self.speeds)
        first, *others = self.speeds
        for other in others:
            ratio = first.sentences_per_second / other.sentences_per_second
            yield f"{first.system} is {ratio:.2f} times as fast as {other.system}"
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in self.shares.items())
        yield f"time{' without CUDA graphs' if self.has_graphs else ''}: {shares}"
        workers = f", {self.workers_memory_mb:,.0f} MB of it of workers" if self.workers_memory_mb else ""
        yield f"peak memory: {self.peak_memory_mb:,.0f} MB{workers}"
        if self.seconds_to_first is not None:
            yield f"from the start of the command to the first translation: {self.seconds_to_first:.2f} s"

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return asdict(self)


def benchmark_translate(
    model: str,
    lines: Sequence[str],
    refs: Sequence[str] | None,
    load: Callable[[], tuple[Translator, Config]],
    *,
    against: Sequence[str] = (),
    compute_types: Sequence[str] = ("float32", "int8"),
    rounds: int = 3,
    command: Sequence[str] | None = None,
) -> TranslateBenchmark:
    """Translate the lines several times, the systems in turn.

    Args:
        model: The model folder.
        lines: Lines to translate.
        refs: Their references, for BLEU.
        load: Loads the translator of the model, and its config.
        against: Other systems, from `PEERS`.
        compute_types: CTranslate2's types.
        rounds: How often each system translates all lines, after a warm-up.
        command: Starts `mtkit translate` with this model and these settings, to measure the time to the first
            translation of a line on its stdin; None not to.

    Raises:
        ConfigError: If another system is unknown, not installed, or does not support the model or the search.
        StorageError: If the model cannot be loaded.
    """
    for name in against:
        if name not in PEERS:
            raise ConfigError(f"unknown system {name!r}", where="`against`", hint=" or ".join(PEERS))
    translator, config = load()
    if against:
        check_comparable(translator)
    on_cpu, num_cores = translator.device.type == "cpu", torch.get_num_threads()
    shares = _profile(translator, lines)
    memory_mb, workers_mb = (size / 2**20 for size in _memory(translator, lines))
    own = Setting(*translator.workers.numbers(PARALLEL))
    systems: dict[str, tuple[Setting, System]] = {f"mtkit {translator.precision}": (own, _Own(translator))}
    with tempfile.TemporaryDirectory() as folder:
        candidates: list[Candidate] = []
        if "ctranslate2" in against:
            export_to_ctranslate2(model, Path(folder) / "model")
            candidates += [
                ctranslate2_candidate(Path(folder) / "model", translator, kind) for kind in compute_types
            ]
        if "transformers" in against:
            candidates.append(hugging_face_candidate(model, translator))
        latencies = {next(iter(systems)): _milliseconds(_Own(translator), lines)}
        for candidate in candidates:
            setting = fastest_setting(candidate, lines, num_cores if on_cpu else 1)
            latencies[candidate.name] = _least_milliseconds(candidate, lines, num_cores if on_cpu else 1)
            systems[candidate.name] = (setting, candidate.make(setting))
        timings = _run_in_turn({name: system for name, (_, system) in systems.items()}, lines, rounds)
        for _, system in systems.values():
            system.close()

    def bleu(hyps: Sequence[str]) -> float | None:
        if refs is None:
            return None
        tokenizer, tgt = config.validation.bleu_tokenizer, config.data.tgt
        return metrics.score(hyps, [refs], ["bleu"], tokenize=tokenizer, tgt=tgt)[0].value

    first = next(iter(timings.values())).output.hyps
    return TranslateBenchmark(
        num_sentences=len(lines),
        search=translator.decoding.label,
        num_threads=num_cores,
        device=f"{translator.device} ({translator.backend})",
        speeds=[
            _speed(
                name,
                str(systems[name][0]),
                timing,
                translator.tokenizers.tgt,
                bleu(timing.output.hyps),
                first,
                latencies[name],
            )
            for name, timing in timings.items()
        ],
        shares=shares,
        peak_memory_mb=memory_mb,
        workers_memory_mb=workers_mb,
        seconds_to_first=None if command is None else _seconds_to_first(command, lines),
        has_graphs=translator.ensemble.buckets is not None,
    )


class _Own:
    """mtkit as it is by default; see `System`."""

    def __init__(self, translator: Translator) -> None:
        self.translator, self.num_threads = translator, torch.get_num_threads()

    def translate(self, lines: Sequence[str]) -> Output:
        torch.set_num_threads(self.num_threads)  # loading CTranslate2 changes them for the whole process
        return Output([translation.text for translation in self.translator.translate(lines)])

    def close(self) -> None:
        self.translator.close()


def _profile(translator: Translator, lines: Sequence[str]) -> dict[str, float]:
    """Return the share of each stage in the time, after a warm-up."""
    _Own(translator).translate(lines[:_WARM_UP_LINES])
    return _time_shares(translator, lines[:_PROFILED_LINES])


def _memory(translator: Translator, lines: Sequence[str]) -> tuple[float, float]:
    """Return the peak memory in bytes of translating all lines, as in a round, and what of it workers have."""
    _Own(translator).translate(lines)
    of_workers = translator.workers.private_bytes()
    return peak_memory(translator.device) + of_workers, of_workers


def _milliseconds(system: System, lines: Sequence[str]) -> float:
    """Return the median time to translate a single line, after each was translated once."""
    singles, found = [line for line in lines if line.strip()][:_SINGLE_LINES], []
    for times in (0, 1):
        for line in singles:
            start = time.perf_counter()
            system.translate([line])
            if times:
                found.append(1000 * (time.perf_counter() - start))
    return statistics.median(found) if found else 0.0


def _least_milliseconds(candidate: Candidate, lines: Sequence[str], num_cores: int) -> float:
    """Return the time to translate a single line with as many threads as are fastest for it."""
    found = []
    for num_threads in sorted({1, *(threads for _, threads in layouts(num_cores))}):
        system = candidate.make(Setting(1, num_threads, 1))
        found.append(_milliseconds(system, lines))
        system.close()
    return min(found)


def _seconds_to_first(command: Sequence[str], lines: Sequence[str]) -> float | None:
    """Return the median time from the start of a command to its first line, given one on stdin; None if it fails."""
    line, found = next((line for line in lines if line.strip()), "a"), []
    for _ in range(_STARTS):
        start = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            if not process.stdout.readline():
                return None
            found.append(time.perf_counter() - start)
            process.stdin.close()
    return statistics.median(found)


@dataclass(frozen=True)
class _Timing:
    """Rounds of one system."""

    seconds: list[float]
    output: Output
    """Translations of the last round."""


def _run_in_turn(systems: Mapping[str, System], lines: Sequence[str], rounds: int) -> dict[str, _Timing]:
    """Let the systems translate all lines in turn, after a short warm-up of each; returns their timings by name."""
    for system in systems.values():
        system.translate(lines[:_WARM_UP_LINES])
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    outputs: dict[str, Output] = {}
    for _ in range(rounds):
        for name, system in systems.items():
            start = time.perf_counter()
            outputs[name] = system.translate(lines)
            seconds[name].append(time.perf_counter() - start)
    return {name: _Timing(seconds[name], outputs[name]) for name in systems}


def _speed(
    name: str,
    setting: str,
    timing: _Timing,
    tgt: Tokenizer,
    bleu: float | None,
    first: Sequence[str],
    milliseconds: float,
) -> Speed:
    """Return the speed of one system; `first` are the translations of the first one."""
    hyps, median = timing.output.hyps, statistics.median(timing.seconds)
    return Speed(
        system=name,
        setting=setting,
        sentences_per_second=len(hyps) / median,
        output_tokens_per_second=sum(len(ids) + 1 for ids in tgt.encode(hyps)) / median,
        rounds=[len(hyps) / seconds for seconds in timing.seconds],
        bleu=bleu,
        same_as_first=sum(a == b for a, b in zip(hyps, first, strict=True)) / len(first),
        milliseconds_per_line=milliseconds,
        num_over_limit=timing.output.num_over_limit,
    )


def _time_shares(translator: Translator, lines: Sequence[str]) -> dict[str, float]:
    """Return the share of each stage in the time, measured with one worker so that the shares add up to 1.

    CUDA graphs are not used: a replay calls no method, and waiting for the GPU cannot be captured.
    """
    clock, ensemble = _MethodClock(translator.device), translator.ensemble
    native, tokenizers = ensemble.native, translator.tokenizers
    model = native[0] if native else translator.model
    outputs = ("logits", "best_tokens") if native else ("logits",)
    with ExitStack() as timed:
        timed.callback(setattr, ensemble, "buckets", ensemble.buckets)
        ensemble.buckets = None
        for name in ("encode", "step", *outputs):
            timed.enter_context(clock.timing(model, name))
        with clock.timing(tokenizers.tgt, "decode"):
            start = time.perf_counter()
            list(translator.translate(lines, TranslateOptions(parallelism=SERIAL)))
            total = time.perf_counter() - start
    stages = {
        "encode": clock.seconds["encode"],
        "step": sum(clock.seconds[name] for name in ("step", *outputs)),
        "detokenise": clock.seconds["decode"],
    }
    stages["search and the rest"] = total - sum(stages.values())
    return {name: seconds / total for name, seconds in stages.items()}


class _MethodClock:
    """Adds up the seconds spent in methods, by name."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, obj: Any, name: str) -> Iterator[None]:
        """Time a method of an object within the block."""
        method = getattr(obj, name)
        self.seconds[name] = 0.0

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = method(*arguments)
            synchronize(self.device)
            self.seconds[name] += time.perf_counter() - start
            return result

        setattr(obj, name, timed)
        try:
            yield
        finally:
            delattr(obj, name)
