"""`mtkit benchmark translate`: speed, time per stage and memory of translation, compared with other systems.

The systems translate all lines in turn, so that a machine whose speed drifts is equally fast for all of them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mtkit.benchmark.machine import synchronize
from mtkit.benchmark.peers import (
    PEERS,
    Output,
    System,
    check_comparable,
    ctranslate2_systems,
    hugging_face_systems,
)
from mtkit.config.sections import Config
from mtkit.data.tokenizer import Tokenizer
from mtkit.device import peak_memory
from mtkit.errors import ConfigError
from mtkit.evaluation import metrics
from mtkit.translation.options import SERIAL, TranslateOptions
from mtkit.translation.translator import Translator

_WARM_UP_LINES = 64
_PROFILED_LINES = 512


@dataclass(frozen=True)
class Speed:
    """Speed of one system: medians over the rounds."""

    system: str
    sentences_per_second: float
    output_tokens_per_second: float
    """Tokens of the translations in mtkit's tokenization, eos included."""
    rounds: list[float]
    """Sentences per second in each round."""
    bleu: float | None
    same_as_first: float
    """Share of the lines with the same translation as the first system's."""
    num_over_limit: int = 0
    """Lines with a translation longer than mtkit allows; the others have one length limit for all lines of a call."""

    def line(self) -> str:
        """Return the result as one line of text."""
        bleu = "" if self.bleu is None else f"  BLEU {self.bleu:.2f}"
        over = f"  {self.num_over_limit:,} over mtkit's length limit" if self.num_over_limit else ""
        slowest, fastest = min(self.rounds), max(self.rounds)
        return (
            f"{self.system:24} {self.sentences_per_second:8.1f} sentences/s ({slowest:.1f} to {fastest:.1f})"
            f"  {self.output_tokens_per_second:8.0f} tokens/s{bleu}  same text {100 * self.same_as_first:.1f} %{over}"
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
    """Peak memory (in units of 2^20 bytes) before other systems are loaded: of the process, or of tensors on a GPU."""

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
        yield f"time: {shares}"
        yield f"peak memory: {self.peak_memory_mb:,.0f} MB"

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
    shares, memory_mb = _profile(translator, lines)
    with tempfile.TemporaryDirectory() as folder:
        systems: dict[str, System] = {
            f"mtkit {translator.precision}": lambda lines: _translate_all(translator, lines)
        }
        if "ctranslate2" in against:
            systems |= ctranslate2_systems(model, translator, compute_types, Path(folder) / "model")
        if "transformers" in against:
            systems |= hugging_face_systems(model, translator)
        timings = _run_in_turn(systems, lines, rounds)

    def bleu(hyps: Sequence[str]) -> float | None:
        if refs is None:
            return None
        tokenizer, tgt = config.validation.bleu_tokenizer, config.data.tgt
        return metrics.score(hyps, [refs], ["bleu"], tokenize=tokenizer, tgt=tgt)[0].value

    first = next(iter(timings.values())).output.hyps
    return TranslateBenchmark(
        num_sentences=len(lines),
        search=translator.decoding.label,
        num_threads=torch.get_num_threads(),
        device=f"{translator.device} ({translator.backend})",
        speeds=[
            _speed(name, timing, translator.tokenizers.tgt, bleu(timing.output.hyps), first)
            for name, timing in timings.items()
        ],
        shares=shares,
        peak_memory_mb=memory_mb,
    )


def _profile(translator: Translator, lines: Sequence[str]) -> tuple[dict[str, float], float]:
    """Return the share of each stage in the time, and the peak memory in MB, after a warm-up."""
    _translate_all(translator, lines[:_WARM_UP_LINES])
    shares = _time_shares(translator, lines[:_PROFILED_LINES])
    _translate_all(translator, lines)  # with all workers, as in a round, for the memory
    return shares, peak_memory(translator.device) / 2**20


@dataclass(frozen=True)
class _Timing:
    """Rounds of one system."""

    seconds: list[float]
    output: Output
    """Translations of the last round."""


def _run_in_turn(systems: Mapping[str, System], lines: Sequence[str], rounds: int) -> dict[str, _Timing]:
    """Let the systems translate all lines in turn, after a short warm-up of each; returns their timings by name."""
    for system in systems.values():
        system(lines[:_WARM_UP_LINES])
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    outputs: dict[str, Output] = {}
    for _ in range(rounds):
        for name, system in systems.items():
            start = time.perf_counter()
            outputs[name] = system(lines)
            seconds[name].append(time.perf_counter() - start)
    return {name: _Timing(seconds[name], outputs[name]) for name in systems}


def _speed(name: str, timing: _Timing, tgt: Tokenizer, bleu: float | None, first: Sequence[str]) -> Speed:
    """Return the speed of one system; `first` are the translations of the first one."""
    hyps, median = timing.output.hyps, statistics.median(timing.seconds)
    return Speed(
        system=name,
        sentences_per_second=len(hyps) / median,
        output_tokens_per_second=sum(len(ids) + 1 for ids in tgt.encode(hyps)) / median,
        rounds=[len(hyps) / seconds for seconds in timing.seconds],
        bleu=bleu,
        same_as_first=sum(a == b for a, b in zip(hyps, first, strict=True)) / len(first),
        num_over_limit=timing.output.num_over_limit,
    )


def _translate_all(translator: Translator, lines: Sequence[str]) -> Output:
    """Translate lines with mtkit."""
    return Output([translation.text for translation in translator.translate(lines)])


def _time_shares(translator: Translator, lines: Sequence[str]) -> dict[str, float]:
    """Return the share of each stage in the time, measured with one worker so that the shares add up to 1."""
    clock = _MethodClock(translator.device)
    native, tokenizers = translator.ensemble.native, translator.tokenizers
    model = native[0] if native else translator.model
    outputs = ("logits", "best_tokens") if native else ("logits",)
    with ExitStack() as timed:
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
