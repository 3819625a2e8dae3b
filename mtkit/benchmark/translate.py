"""How fast a model translates here, on what the time is spent, and how other systems do with the same weights."""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mtkit.benchmark.peers import (
    PEERS,
    Output,
    System,
    check_comparable,
    ctranslate2_systems,
    hugging_face_systems,
)
from mtkit.config.sections import Config
from mtkit.data.tokenizer import Tokenizers
from mtkit.errors import ConfigError
from mtkit.evaluation import metrics
from mtkit.translation.options import TranslateOptions
from mtkit.translation.translator import Translator

_WARM_UP_LINES = 64


@dataclass(frozen=True)
class Speed:
    """What was measured of one system: medians over the rounds."""

    system: str
    sentences_per_second: float
    output_tokens_per_second: float
    rounds: list[float]
    """Sentences per second of each round."""
    bleu: float | None
    same_as_first: float
    """Share of the lines whose translation is that of the first system."""
    num_over_limit: int = 0
    """Lines with a translation longer than mtkit allows: others have one limit for all lines of a call, the largest."""

    def line(self) -> str:
        """In words."""
        bleu = "" if self.bleu is None else f"  BLEU {self.bleu:.2f}"
        over = f"  {self.num_over_limit:,} over mtkit's length limit" if self.num_over_limit else ""
        slowest, fastest = min(self.rounds), max(self.rounds)
        return (
            f"{self.system:24} {self.sentences_per_second:8.1f} sentences/s ({slowest:.1f} to {fastest:.1f})"
            f"  {self.output_tokens_per_second:8.0f} tokens/s{bleu}  same text {100 * self.same_as_first:.1f} %{over}"
        )


@dataclass(frozen=True)
class TranslateBenchmark:
    """All that was measured."""

    num_sentences: int
    search: str
    num_threads: int
    device: str
    speeds: list[Speed]
    shares: dict[str, float]
    """Of the time of one batch after the other in one thread of control."""
    peak_memory_mb: float
    """Of the process, before another system was loaded; on a GPU of what PyTorch allocated."""

    def lines(self) -> Iterator[str]:
        """In words."""
        yield f"{self.num_sentences:,} sentences, {self.search}, {self.num_threads} threads, {self.device}"
        yield from (speed.line() for speed in self.speeds)
        first, *others = self.speeds
        for other in others:
            ratio = first.sentences_per_second / other.sentences_per_second
            yield f"{first.system} is {ratio:.2f} times as fast as {other.system}"
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in self.shares.items())
        yield f"time: {shares}"
        yield f"peak memory: {self.peak_memory_mb:,.0f} MB"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def benchmark_translate(
    model: str,
    lines: Sequence[str],
    refs: Sequence[str] | None,
    make: Callable[[], tuple[Translator, Config]],
    *,
    against: Sequence[str] = (),
    compute_types: Sequence[str] = ("float32", "int8"),
    rounds: int = 3,
) -> TranslateBenchmark:
    """Translate the lines again and again, the systems in turn.

    Args:
        model: the folder.
        lines: what to translate.
        refs: its references, for BLEU.
        make: loads the translator.
        against: other systems, of `PEERS`.
        compute_types: types of CTranslate2.
        rounds: how often each system translates everything, after a warm-up.

    Raises:
        ConfigError: another system is not installed, lacks a type or an option of the search, or cannot run the model.
        StorageError: see `load_model`.
    """
    for name in against:
        if name not in PEERS:
            what = f"{name!r} is nothing to compare with"
            raise ConfigError(what, where="`against`", hint=" or ".join(PEERS))
    translator, config = make()
    if against:
        check_comparable(translator)
    systems: dict[str, System] = {
        f"mtkit {translator.precision}": lambda lines: _translate_all(translator, lines)
    }
    _translate_all(translator, lines[:_WARM_UP_LINES])
    shares = _time_shares(translator, lines[:512])
    _translate_all(translator, lines)  # as in a round, for the memory
    memory = peak_memory_mb(translator.device)
    with tempfile.TemporaryDirectory() as folder:
        if "ctranslate2" in against:
            systems |= ctranslate2_systems(model, translator, compute_types, Path(folder) / "model")
        if "transformers" in against:
            systems |= hugging_face_systems(model, translator)
        for system in list(systems.values())[1:]:
            system(lines[:_WARM_UP_LINES])
        times: dict[str, list[float]] = {name: [] for name in systems}
        outputs: dict[str, Output] = {}
        for _ in range(rounds):
            for name, system in systems.items():
                start = time.perf_counter()
                outputs[name] = system(lines)
                times[name].append(time.perf_counter() - start)
    first = next(iter(outputs.values())).hyps
    speeds = [
        _speed_of(name, times[name], outputs[name], translator.tokenizers, first, refs, config)
        for name in systems
    ]
    label = translator.decoding.label
    device = str(translator.device)
    return TranslateBenchmark(len(lines), label, torch.get_num_threads(), device, speeds, shares, memory)


def _speed_of(
    name: str,
    seconds: Sequence[float],
    output: Output,
    tokenizers: Tokenizers,
    first: Sequence[str],
    refs: Sequence[str] | None,
    config: Config,
) -> Speed:
    """The numbers of one system; its tokens are the pieces of its translations, eos included."""
    hyps, median = output.hyps, statistics.median(seconds)
    num_tokens = sum(len(ids) + 1 for ids in tokenizers.tgt.encode(hyps))
    bleu = None
    if refs is not None:
        tokenizer, tgt = config.validation.bleu_tokenizer, config.data.tgt
        bleu = metrics.score(hyps, [refs], ["bleu"], tokenize=tokenizer, tgt=tgt)[0].value
    same = sum(a == b for a, b in zip(hyps, first, strict=True)) / len(first)
    each = [len(hyps) / s for s in seconds]
    return Speed(name, len(hyps) / median, num_tokens / median, each, bleu, same, output.num_over_limit)


def _translate_all(translator: Translator, lines: Sequence[str]) -> Output:
    """The translations by mtkit."""
    return Output([translation.text for translation in translator.translate(lines)])


def _time_shares(translator: Translator, lines: Sequence[str]) -> dict[str, float]:
    """Which part of the time is spent on what, in one thread of control, so that they add up."""
    clock = _Clock(translator.device)
    model, tokenizers = translator.model, translator.tokenizers
    with clock.timed(model, "encode"), clock.timed(model, "step"):
        with clock.timed(model, "logits"), clock.timed(tokenizers.tgt, "decode"):
            start = time.perf_counter()
            list(translator.translate(lines, TranslateOptions(num_workers=1)))
            total = time.perf_counter() - start
    parts = {
        "encode": clock.seconds["encode"],
        "step": clock.seconds["step"] + clock.seconds["logits"],
        "detokenise": clock.seconds["decode"],
    }
    parts["search and the rest"] = total - sum(parts.values())
    return {name: seconds / total for name, seconds in parts.items()}


class _Clock:
    """Adds up how long methods take."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, thing: Any, name: str) -> Iterator[None]:
        """Measure a method of an object within the block."""
        method = getattr(thing, name)
        self.seconds[name] = 0.0

        def measured(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = method(*arguments)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[name] += time.perf_counter() - start
            return result

        setattr(thing, name, measured)
        try:
            yield
        finally:
            delattr(thing, name)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
