"""Measures translation in batches of so many sentences: mtkit, CTranslate2 and Hugging Face with the same weights.

All get the same tokens in the same batches and return tokens, in rounds that take turns. A batch of 1 gives the latency
of a sentence. Systems that are not installed are left out, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mtkit.data.batching import Ids
from mtkit.device import peak_memory, synchronize
from mtkit.evaluation.metrics import score
from mtkit.files import read_lines
from mtkit.interop.ctranslate2 import export
from mtkit.interop.ctranslate2_engine import load_ctranslate2
from mtkit.interop.hugging_face_engine import generate, hugging_face_model
from mtkit.translation.loading import load_model
from mtkit.translation.translator import Translator

Search = Callable[[Sequence[Ids]], list[list[int]]]
"""Translates a batch of sentences, from tokens to tokens."""


def mtkit_search(translator: Translator) -> Search:
    """Return mtkit's search."""
    return lambda batch: [hyps[0].ids for hyps in translator.search_ids(batch)]


def ctranslate2_search(model: Path, translator: Translator, folder: Path) -> Search:
    """Return CTranslate2's search, in float16 on a GPU."""
    config, tokenizers, network = load_model(model)
    export(config.model, network, tokenizers, folder)
    type_ = "float32" if translator.device.type == "cpu" else "float16"
    other = load_ctranslate2(folder, type_, translator.device)
    src, tgt, decoding = tokenizers.src, tokenizers.tgt, translator.decoding
    tgt_ids = {tgt.piece(i): i for i in range(tgt.vocab_size)}

    def search(batch: Sequence[Ids]) -> list[list[int]]:
        results = other.translate_batch(
            [[src.piece(i) for i in ids.tolist()] for ids in batch],
            beam_size=decoding.beam_size,
            max_batch_size=len(batch),
            length_penalty=decoding.length_penalty,
            max_decoding_length=max(decoding.max_length(len(ids)) for ids in batch),
        )
        return [[tgt_ids[piece] for piece in result.hypotheses[0]] for result in results]

    return search


def hugging_face_search(model: Path, translator: Translator) -> Search:
    """Return Hugging Face's `generate`, in the precision of mtkit."""
    config, tokenizers, network = load_model(model)
    longest, decoding = translator.decoding.max_length(translator.max_source_tokens), translator.decoding
    other = hugging_face_model(config.model, network, tokenizers, longest)
    other = other.to(translator.device, translator.model.compute_dtype)

    def search(batch: Sequence[Ids]) -> list[list[int]]:
        rows = generate(
            other, translator.ensemble.sources(batch), tokenizers,
            beam_size=decoding.beam_size, length_penalty=decoding.length_penalty,
            max_tokens=max(decoding.max_length(len(ids)) for ids in batch),
            suppressed=translator.search_options.suppressed, no_repeat_ngram=0, min_tokens=0,
        )  # fmt: skip
        return [row[:-1] if row and row[-1] == tokenizers.tgt.eos else row for row in rows]

    return search


def peak_bytes(search: Search, batches: list[list[Ids]], device: torch.device) -> int | None:
    """Return the peak memory of a GPU, in bytes, once all batches are translated; None on a CPU."""
    if device.type == "cpu":
        return None
    for batch in batches:
        search(batch)
    return peak_memory(device)


def time_rounds(
    searches: dict[str, Search], batches: list[list[Ids]], device: torch.device, seconds: float
) -> tuple[dict[str, list[float]], dict[str, list[list[int]]]]:
    """Let the systems translate all batches in turn, for so many seconds, at most five times; the first warms up.

    One that would not be done in time again is left out of further rounds, but each has at least one after the first.
    """
    times: dict[str, list[float]] = {name: [] for name in searches}
    outputs: dict[str, list[list[int]]] = {}
    deadline = time.perf_counter() + seconds
    for number in range(6):
        for name, search in searches.items():
            start = time.perf_counter()
            if number > 1 and start + times[name][-1] > deadline:
                continue
            found = [ids for batch in batches for ids in search(batch)]
            synchronize(device)
            if number:
                times[name].append(time.perf_counter() - start)
            outputs[name] = found
    return times, outputs


def main() -> None:
    """Print the measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help="folder of Multi30k")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--beam-size", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--lines", type=int, help="lines of the test set; by default all, but 25 in batches of 1"
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    settings = {"beam_size": args.beam_size, "penalty_kind": "simple", "stop": "finished", "length_penalty": 1.0,
                "batch_tokens": 1_000_000}  # fmt: skip
    translator = Translator.load(args.model, device=args.device, **settings)
    number = args.lines or (25 if args.batch_size == 1 else 1000)
    lines, refs = (
        list(read_lines(args.data / f"test_2016_flickr.{side}.gz"))[:number] for side in ("en", "de")
    )
    sources = translator.tokenizers.src.encode(lines)
    order = sorted(range(len(lines)), key=lambda i: -len(sources[i]))
    rows = [order[first : first + args.batch_size] for first in range(0, len(order), args.batch_size)]
    batches = [[sources[i] for i in row] for row in rows]
    left_out: dict[str, str] = {}
    searches = {f"mtkit {translator.precision}": mtkit_search(translator)}
    # before there is another system, whose memory would count too
    memory = peak_bytes(mtkit_search(translator), batches, translator.device)
    buckets = translator.ensemble.buckets
    if buckets is not None:
        os.environ["MTKIT_CUDA_GRAPHS"] = "none"
        plain = Translator.load(args.model, device=args.device, **settings)
        searches[f"mtkit {plain.precision} without graphs"] = mtkit_search(plain)
    with tempfile.TemporaryDirectory() as folder:
        for name, make in (
            ("CTranslate2", lambda: ctranslate2_search(args.model, translator, Path(folder) / "model")),
            ("Hugging Face", lambda: hugging_face_search(args.model, translator)),
        ):
            try:
                search = make()
                search(batches[-1])
            except Exception as error:
                left_out[name] = f"{type(error).__name__}: {str(error)[:300]}"
            else:
                searches[name] = search
        times, outputs = time_rounds(searches, batches, translator.device, args.seconds)
    systems = {}
    for name, own in times.items():
        hyps = [""] * len(lines)
        texts = translator.tokenizers.tgt.decode(outputs[name])
        for i, text in zip((i for row in rows for i in row), texts, strict=True):
            hyps[i] = text
        [bleu] = score(hyps, [refs], ["bleu"], tgt="de")
        seconds = statistics.median(own)
        systems[name] = {
            "sentences_per_second": len(lines) / seconds,
            "tokens_per_second": sum(len(ids) + 1 for ids in outputs[name]) / seconds,
            "ms_per_batch": 1000 * seconds / len(batches),
            "bleu": bleu.value,
            "rounds": len(own),
        }
    print(json.dumps({"beam_size": args.beam_size, "batch_size": args.batch_size, "lines": len(lines),
                      "systems": systems, "left_out": left_out,
                      "graphs": buckets and buckets.num_graphs,
                      "memory_bytes": memory}))  # fmt: skip


if __name__ == "__main__":
    main()
