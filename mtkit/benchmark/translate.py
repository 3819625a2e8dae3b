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
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mtkit.config import Config
from mtkit.data.tokenizer import Tokenizers
from mtkit.decoding.loading import load_model
from mtkit.decoding.requests import Request
from mtkit.decoding.translator import Translator
from mtkit.errors import ConfigError
from mtkit.evaluation import metrics
from mtkit.interop.ctranslate2 import export, import_ctranslate2

BATCH_OF_CTRANSLATE2 = 64
WARM_UP_LINES = 64


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
    """Lines with a translation longer than mtkit allows: CTranslate2 has one limit for all lines, the largest."""

    def line(self) -> str:
        """In words."""
        bleu = "" if self.bleu is None else f"  BLEU {self.bleu:.2f}"
        over = f"  {self.num_over_limit:,} over mtkit's length limit" if self.num_over_limit else ""
        slowest, fastest = min(self.rounds), max(self.rounds)
        return (
            f"{self.system:24} {self.sentences_per_second:8.1f} sentences/s ({slowest:.1f} to {fastest:.1f})"
            f"  {self.output_tokens_per_second:8.0f} tokens/s{bleu}  same {100 * self.same_as_first:.1f} %{over}"
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


@dataclass(frozen=True)
class Output:
    """The translations of a round."""

    hyps: list[str]
    num_over_limit: int = 0
    """See `Speed`."""


System = Callable[[Sequence[str]], Output]
"""From lines to their translations."""


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
        compute_types: types of CTranslate2 to compare with, such as float32 and int8; it then runs with batches of 64,
            gets long lines in the same parts, and has the same beam, penalties and bans.
        rounds: how often each system translates everything, after a warm-up.

    Raises:
        ConfigError: CTranslate2 is not installed, lacks a type or an option of the search, or cannot run the model.
        StorageError: see `load_model`.
    """
    translator, config = make()
    if compute_types:
        refuse_unlike(translator)
    systems: dict[str, System] = {
        f"mtkit {precision_name(translator)}": lambda lines: translate_all(translator, lines)
    }
    translate_all(translator, lines[:WARM_UP_LINES])
    shares = time_shares(translator, lines[:512])
    translate_all(translator, lines)  # as in a round, for the memory
    memory = peak_memory_mb(translator.device)
    with tempfile.TemporaryDirectory() as folder:
        if compute_types:
            exact, tokenizers, network = load_model(Path(model))
            export(exact.model, network, tokenizers, Path(folder) / "model")
            for kind in compute_types:
                other = load_ctranslate2(Path(folder) / "model", kind, translator.device)
                systems[f"CTranslate2 {kind}"] = system = other_system(other, translator)
                system(lines[:WARM_UP_LINES])
        times: dict[str, list[float]] = {name: [] for name in systems}
        outputs: dict[str, Output] = {}
        for _ in range(rounds):
            for name, system in systems.items():
                start = time.perf_counter()
                outputs[name] = system(lines)
                times[name].append(time.perf_counter() - start)
    first = next(iter(outputs.values())).hyps
    speeds = [
        speed_of(name, times[name], outputs[name], translator.tokenizers, first, refs, config.data.tgt)
        for name in systems
    ]
    beam = translator.decoding.beam_size
    device = str(translator.device)
    return Report(len(lines), beam, torch.get_num_threads(), device, speeds, shares, memory)


def refuse_unlike(translator: Translator) -> None:
    """Check that CTranslate2 can search in the same way. Raises: ConfigError: at the key that it lacks."""
    decoding = translator.decoding
    lacking = {
        "sample": decoding.sample,
        "mbr": decoding.mbr is not None,
        "groups": decoding.groups > 1,
        "stop": decoding.stop != "finished",
        "penalty_kind": decoding.penalty_kind != "simple" and decoding.length_penalty != 0,
    }
    for key, is_set in lacking.items():
        if is_set:
            what = "CTranslate2 cannot be compared with this, for it has nothing like it"
            raise ConfigError(what, where=f"decoding.{key}", hint="change it, or leave out --against")
    if len(translator.ensemble.models) > 1:
        raise ConfigError("CTranslate2 has no ensembles", hint="leave out --against")


def speed_of(
    name: str,
    seconds: Sequence[float],
    output: Output,
    tokenizers: Tokenizers,
    first: Sequence[str],
    refs: Sequence[str] | None,
    tgt: str,
) -> Speed:
    """The numbers of one system; its tokens are the pieces of its translations, eos included."""
    hyps, median = output.hyps, statistics.median(seconds)
    num_tokens = sum(len(ids) + 1 for ids in tokenizers.tgt.encode(hyps))
    bleu = None if refs is None else metrics.score(hyps, [refs], ["bleu"], tgt=tgt)[0].value
    same = sum(a == b for a, b in zip(hyps, first, strict=True)) / len(first)
    each = [len(hyps) / s for s in seconds]
    return Speed(name, len(hyps) / median, num_tokens / median, each, bleu, same, output.num_over_limit)


def precision_name(translator: Translator) -> str:
    """How the model computes: fp32, bf16, fp16, or bf16 with an int8 output matrix."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    int8 = type(translator.model.output).__name__ == "Int8Linear"
    return names[translator.model.compute_dtype] + (" + int8 output" if int8 else "")


def translate_all(translator: Translator, lines: Sequence[str]) -> Output:
    """The translations by mtkit."""
    return Output([translation.text for translation in translator.translate(lines)])


def load_ctranslate2(folder: Path, kind: str, device: torch.device) -> Any:
    """CTranslate2's translator. Raises: ConfigError: it has no such type here."""
    ctranslate2 = import_ctranslate2()
    supported = ctranslate2.get_supported_compute_types(device.type)
    if kind not in supported:
        what = f"CTranslate2 has no {kind} on this machine"
        raise ConfigError(what, where="--compute-type", hint=f"one of {', '.join(sorted(supported))}")
    return ctranslate2.Translator(
        str(folder),
        device=device.type,
        device_index=device.index or 0,
        compute_type=kind,
        intra_threads=torch.get_num_threads(),
    )


def other_system(other: Any, translator: Translator) -> System:
    """The same search by CTranslate2, from text to text.

    Args:
        other: its translator.
        translator: whose tokenizers, parts of long lines, beam, penalties, bans and limits it gets. Two of these are
            not quite the same: it takes one longest length for all lines, so what is longer than mtkit's own is
            counted; and it normalizes probabilities after its bans (repeated n-grams, shortest length), mtkit before.
    """
    src, tgt = translator.tokenizers.src, translator.tokenizers.tgt
    src_pieces = [src.piece(i) for i in range(src.vocab_size)]
    tgt_ids = {tgt.piece(i): i for i in range(tgt.vocab_size)}
    decoding = translator.decoding
    banned = [[tgt.piece(i)] for i in translator.options.suppressed]

    def run(lines: Sequence[str]) -> Output:
        cut = list(translator.cutter.parts([Request(line) for line in lines], 0, translator.split))
        parts = [part for line_parts in cut for part in line_parts]
        found = other.translate_batch(
            [[src_pieces[i] for i in part.ids.tolist()] for part in parts],
            beam_size=decoding.beam_size,
            max_batch_size=BATCH_OF_CTRANSLATE2,
            length_penalty=decoding.length_penalty,
            coverage_penalty=decoding.coverage_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram,
            max_decoding_length=max((part.max_length for part in parts), default=1),
            min_decoding_length=decoding.min_pieces,
            suppress_sequences=banned,
        )
        rows = [[tgt_ids[piece] for piece in result.hypotheses[0]] for result in found]
        over = {p.number for p, row in zip(parts, rows, strict=True) if len(row) + 1 > p.max_length}
        texts = iter(tgt.decode(rows))
        hyps = [" ".join(islice(texts, len(line_parts))) for line_parts in cut]
        return Output(hyps, len(over))

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
