"""Other systems that translate with the same weights, to be run in turn with mtkit: CTranslate2 and Hugging Face.

They get the same parts of long lines, and search with the same beam, penalties and bans. Both work in batches of 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mtkit.benchmark.hugging_face import generate, hugging_face_model
from mtkit.device import dtype_name
from mtkit.errors import ConfigError
from mtkit.interop.ctranslate2 import export, import_ctranslate2
from mtkit.translation.loading import load_model
from mtkit.translation.segments import Request, Segment
from mtkit.translation.sentence_splitting import join_translations
from mtkit.translation.translator import Translator

_BATCH_SIZE = 64
PEERS = ("ctranslate2", "transformers")


@dataclass(frozen=True)
class Output:
    """The translations of a round."""

    hyps: list[str]
    num_over_limit: int = 0
    """See `Speed`."""


System = Callable[[Sequence[str]], Output]
"""From lines to their translations."""


def check_comparable(translator: Translator) -> None:
    """Check that the others can search in the same way. Raises: ConfigError: at the key that they lack."""
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
            what = "no other system can be compared with this, for it has nothing like it"
            raise ConfigError(what, where=f"decoding.{key}", hint="change it, or leave out `against`")
    if len(translator.ensemble.models) > 1:
        raise ConfigError("no other system has ensembles", hint="leave out `against`")


def ctranslate2_systems(
    model: str, translator: Translator, compute_types: Sequence[str], folder: Path
) -> dict[str, System]:
    """CTranslate2 in each of its types. Args: folder: where the exported model goes; it must not exist.

    Raises:
        ConfigError: it is not installed, lacks a type, or cannot run the model.
    """
    config, tokenizers, network = load_model(Path(model))
    export(config.model, network, tokenizers, folder)
    return {
        f"CTranslate2 {kind}": ctranslate2_system(
            load_ctranslate2(folder, kind, translator.device), translator
        )
        for kind in compute_types
    }


def load_ctranslate2(folder: Path, kind: str, device: torch.device) -> Any:
    """CTranslate2's translator. Raises: ConfigError: it has no such type here."""
    ctranslate2 = import_ctranslate2()
    supported = ctranslate2.get_supported_compute_types(device.type)
    if kind not in supported:
        what = f"CTranslate2 has no {kind} on this machine"
        raise ConfigError(what, where="`compute_types`", hint=f"one of {', '.join(sorted(supported))}")
    return ctranslate2.Translator(
        str(folder),
        device=device.type,
        device_index=device.index or 0,
        compute_type=kind,
        intra_threads=torch.get_num_threads(),
    )


def ctranslate2_system(other: Any, translator: Translator) -> System:
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
    banned = [[tgt.piece(i)] for i in translator.search_options.suppressed]

    def run(parts: list[Segment]) -> list[list[int]]:
        found = other.translate_batch(
            [[src_pieces[i] for i in part.ids.tolist()] for part in parts],
            beam_size=decoding.beam_size,
            max_batch_size=_BATCH_SIZE,
            length_penalty=decoding.length_penalty,
            coverage_penalty=decoding.coverage_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram,
            max_decoding_length=max((part.max_length for part in parts), default=1),
            min_decoding_length=decoding.min_pieces,
            suppress_sequences=banned,
        )
        return [[tgt_ids[piece] for piece in result.hypotheses[0]] for result in found]

    return lambda lines: translated(lines, translator, run)


def hugging_face_systems(model: str, translator: Translator) -> dict[str, System]:
    """Hugging Face's `generate` in the precision of the translator's activations; like lengths go together.

    Raises:
        ConfigError: it is not installed, cannot run the model, or lacks a kind of search.
    """
    decoding = translator.decoding
    if decoding.coverage_penalty:
        what, hint = (
            "Hugging Face has no coverage penalty",
            "set it to 0, or leave transformers out of `against`",
        )
        raise ConfigError(what, where="decoding.coverage_penalty", hint=hint)
    config, tokenizers, network = load_model(Path(model))
    dtype = translator.model.compute_dtype
    longest = decoding.max_length(translator.max_source_tokens)
    made = hugging_face_model(config.model, network, tokenizers, longest).to(translator.device, dtype)

    def run(parts: list[Segment]) -> list[list[int]]:
        order = sorted(range(len(parts)), key=lambda i: -len(parts[i].ids))
        rows: list[list[int]] = [[] for _ in parts]
        for first in range(0, len(order), _BATCH_SIZE):
            batch = order[first : first + _BATCH_SIZE]
            found = generate(
                made, translator.ensemble.sources([parts[i].ids for i in batch]), tokenizers,
                beam_size=decoding.beam_size, length_penalty=decoding.length_penalty,
                most_pieces=max(parts[i].max_length for i in batch), suppressed=translator.search_options.suppressed,
                no_repeat_ngram=decoding.no_repeat_ngram, min_pieces=decoding.min_pieces,
            )  # fmt: skip
            for i, row in zip(batch, found, strict=True):
                rows[i] = row[:-1] if row and row[-1] == tokenizers.tgt.eos else row
        return rows

    return {f"Hugging Face {dtype_name(dtype)}": lambda lines: translated(lines, translator, run)}


def translated(
    lines: Sequence[str], translator: Translator, run: Callable[[list[Segment]], Iterable[list[int]]]
) -> Output:
    """The output of a system that makes target pieces, without eos, of the parts of the lines."""
    segmented = translator.segmenter.segment_lines([Request(line) for line in lines])
    parts = [segment for line in segmented for segment in line.segments]
    rows = list(run(parts))
    over = {p.line_number for p, row in zip(parts, rows, strict=True) if len(row) + 1 > p.max_length}
    texts = iter(translator.tokenizers.tgt.decode(rows))
    hyps = [
        join_translations(
            list(islice(texts, len(line.segments))), [segment.boundary for segment in line.segments]
        )[0]
        for line in segmented
    ]
    return Output(hyps, len(over))
