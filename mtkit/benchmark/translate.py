"""How fast a model translates here, on what the time is spent, and how CTranslate2 does with the same weights."""

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

from mtkit.config import Config
from mtkit.data.tokenizer import Tokenizers
from mtkit.decoding.loading import load_model
from mtkit.decoding.translator import Translator
from mtkit.errors import ConfigError
from mtkit.evaluation import metrics
from mtkit.interop.ctranslate2 import export, import_ctranslate2

BATCH_OF_CTRANSLATE2 = 64


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

    def line(self) -> str:
        """In words."""
        bleu = "" if self.bleu is None else f"  BLEU {self.bleu:.2f}"
        slowest, fastest = min(self.rounds), max(self.rounds)
        return (
            f"{self.system:24} {self.sentences_per_second:8.1f} sentences/s ({slowest:.1f} to {fastest:.1f})"
            f"  {self.output_tokens_per_second:8.0f} tokens/s{bleu}  same {100 * self.same_as_first:.1f} %"
        )


@dataclass(frozen=True)
class Report:
    """All that was measured."""

    num_sentences: int
    beam_size: int
    num_threads: int
    device: str
    speeds: list[Speed]
    shares: dict[str, float]
    """Of the time of one batch after the other in one thread of control."""
    peak_memory_mb: float
    """Of the process, before another system was loaded; on a GPU of what PyTorch allocated."""

    def lines(self) -> Iterator[str]:
        """In words."""
        yield f"{self.num_sentences:,} sentences, beam {self.beam_size}, {self.num_threads} threads, {self.device}"
        yield from (speed.line() for speed in self.speeds)
        if len(self.speeds) > 1:
            fastest = max(self.speeds[1:], key=lambda speed: speed.sentences_per_second)
            ratio = self.speeds[0].sentences_per_second / fastest.sentences_per_second
            yield f"{self.speeds[0].system} is {ratio:.2f} times as fast as {fastest.system}"
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in self.shares.items())
        yield f"time: {shares}"
        yield f"peak memory: {self.peak_memory_mb:,.0f} MB"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def benchmark(
    model: str,
    lines: Sequence[str],
    refs: Sequence[str] | None,
    make: Callable[[], tuple[Translator, Config]],
    *,
    compute_types: Sequence[str] = (),
    rounds: int = 3,
) -> Report:
    """Translate the lines again and again, the systems in turn.

    Args:
        model: the folder.
        lines: what to translate.
        refs: its references, for BLEU.
        make: loads the translator.
        compute_types: types of CTranslate2 to compare with, such as float32 and int8; it then runs with batches of 64
            and the same beam, limits and simple length penalty.
        rounds: how often each system translates everything, after a short warm-up.

    Raises:
        ConfigError: CTranslate2 is not installed, lacks a type, or cannot run the model.
        StorageError: see `load_model`.
    """
    translator, config = make()
    systems: dict[str, Callable[[], tuple[list[str], int]]] = {
        f"mtkit {precision_name(translator)}": lambda: translate_all(translator, lines)
    }
    list(translator.translate(lines[:64]))
    shares = time_shares(translator, lines[:512])
    memory = peak_memory_mb(translator.device)
    with tempfile.TemporaryDirectory() as folder:
        if compute_types:
            exact, tokenizers, network = load_model(Path(model))
            export(exact.model, network, tokenizers, Path(folder) / "model")
            for kind in compute_types:
                other = load_ctranslate2(Path(folder) / "model", kind, translator.device)
                systems[f"CTranslate2 {kind}"] = other_system(other, translator, tokenizers, lines)
        times: dict[str, list[float]] = {name: [] for name in systems}
        hyps: dict[str, tuple[list[str], int]] = {}
        for _ in range(rounds):
            for name, run in systems.items():
                start = time.perf_counter()
                hyps[name] = run()
                times[name].append(time.perf_counter() - start)
    first = next(iter(hyps.values()))[0]
    speeds = [speed_of(name, times[name], *hyps[name], first, refs, config.data.tgt) for name in systems]
    beam = translator.decoding.beam_size
    device = str(translator.device)
    return Report(len(lines), beam, torch.get_num_threads(), device, speeds, shares, memory)


def speed_of(
    name: str,
    seconds: Sequence[float],
    hyps: Sequence[str],
    num_tokens: int,
    first: Sequence[str],
    refs: Sequence[str] | None,
    tgt: str,
) -> Speed:
    """The numbers of one system."""
    median = statistics.median(seconds)
    bleu = None if refs is None else metrics.score(hyps, [refs], ["bleu"], tgt=tgt)[0].value
    same = sum(a == b for a, b in zip(hyps, first, strict=True)) / len(first)
    each = [len(hyps) / s for s in seconds]
    return Speed(name, len(hyps) / median, num_tokens / median, each, bleu, same)


def precision_name(translator: Translator) -> str:
    """How the model computes: fp32, bf16, fp16, or bf16 with an int8 output matrix."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    int8 = type(translator.model.output).__name__ == "Int8Linear"
    return names[translator.model.compute_dtype] + (" + int8 output" if int8 else "")


def translate_all(translator: Translator, lines: Sequence[str]) -> tuple[list[str], int]:
    """Translations and how many pieces they have, eos included."""
    hyps = [translation.text for translation in translator.translate(lines)]
    return hyps, sum(len(ids) + 1 for ids in translator.tokenizers.tgt.encode(hyps))


def load_ctranslate2(folder: Path, kind: str, device: torch.device) -> Any:
    """CTranslate2's translator. Raises: ConfigError: it has no such type here."""
    ctranslate2 = import_ctranslate2()
    supported = ctranslate2.get_supported_compute_types(device.type)
    if kind not in supported:
        what = f"CTranslate2 has no {kind} on this machine"
        raise ConfigError(what, where="--compute-type", hint=f"one of {', '.join(sorted(supported))}")
    return ctranslate2.Translator(
        str(folder), device=device.type, compute_type=kind, intra_threads=torch.get_num_threads()
    )


def other_system(
    other: Any, translator: Translator, tokenizers: Tokenizers, lines: Sequence[str]
) -> Callable[[], tuple[list[str], int]]:
    """The same search by CTranslate2, from text to text."""
    src, tgt = tokenizers.src, tokenizers.tgt
    ids = {tgt.piece(i): i for i in range(tgt.vocab_size)}
    options, decoding = translator.options, translator.decoding
    banned = [[tgt.piece(i)] for i in options.suppressed]
    longest = max(
        (translator.decoding.max_length(len(pieces)) for pieces in src.encode(list(lines))), default=1
    )

    def run() -> tuple[list[str], int]:
        found = other.translate_batch(
            [src.pieces(line) for line in lines],
            beam_size=decoding.beam_size,
            max_batch_size=BATCH_OF_CTRANSLATE2,
            length_penalty=decoding.length_penalty,
            max_decoding_length=longest,
            min_decoding_length=decoding.min_pieces,
            suppress_sequences=banned,
        )
        rows = [[ids[piece] for piece in result.hypotheses[0]] for result in found]
        return tgt.decode(rows), sum(len(row) + 1 for row in rows)

    return run


def time_shares(translator: Translator, lines: Sequence[str]) -> dict[str, float]:
    """Which part of the time is spent on what, in one thread of control, so that they add up."""
    clock = Clock(translator.device)
    model, tokenizers = translator.model, translator.tokenizers
    with single_worker(translator), clock.timed(model, "encode"), clock.timed(model, "step"):
        with clock.timed(model, "logits"), clock.timed(tokenizers.tgt, "decode"):
            start = time.perf_counter()
            list(translator.translate(lines))
            total = time.perf_counter() - start
    parts = {
        "encode": clock.seconds["encode"],
        "step": clock.seconds["step"] + clock.seconds["logits"],
        "detokenise": clock.seconds["decode"],
    }
    parts["search and the rest"] = total - sum(parts.values())
    return {name: seconds / total for name, seconds in parts.items()}


class Clock:
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


@contextmanager
def single_worker(translator: Translator) -> Iterator[None]:
    """One batch at a time within the block."""
    before, translator.batches.num_workers = translator.batches.num_workers, 1
    try:
        yield
    finally:
        translator.batches.num_workers = before


def peak_memory_mb(device: torch.device) -> float:
    """The most memory so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
