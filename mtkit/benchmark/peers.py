"""Other systems that translate with the same weights as mtkit, to be timed in turn: CTranslate2 and Hugging Face.

They get the same segments of long lines and search with the same beam size, penalties and token rules, in batches of
64 sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mtkit.device import dtype_name
from mtkit.errors import ConfigError
from mtkit.interop.ctranslate2 import export
from mtkit.interop.ctranslate2_engine import load_ctranslate2
from mtkit.interop.hugging_face_engine import generate, hugging_face_model
from mtkit.translation.loading import load_model
from mtkit.translation.segments import Request, Segment
from mtkit.translation.sentence_splitting import join_translations
from mtkit.translation.translator import Translator

_BATCH_SIZE = 64
PEERS = ("ctranslate2", "transformers")


@dataclass(frozen=True)
class Output:
    """Translations by one system."""

    hyps: list[str]
    num_over_limit: int = 0
    """Lines with a translation longer than mtkit allows (see `Speed`)."""


System = Callable[[Sequence[str]], Output]
"""Translates lines."""


def check_comparable(translator: Translator) -> None:
    """Check that the other systems support the translator's kind of search.

    Raises:
        ConfigError: If not, at the key that they do not support.
    """
    decoding = translator.decoding
    unsupported = {
        "sample": decoding.sample,
        "mbr": decoding.mbr is not None,
        "groups": decoding.groups > 1,
        "stop": decoding.stop != "finished",
        "penalty_kind": decoding.penalty_kind != "simple" and decoding.length_penalty != 0,
    }
    for key, is_set in unsupported.items():
        if is_set:
            what = "not supported by the systems to compare with"
            raise ConfigError(what, where=f"decoding.{key}", hint="change it, or leave out `against`")
    if len(translator.ensemble.models) > 1:
        raise ConfigError("the systems to compare with do not support ensembles", hint="leave out `against`")


def ctranslate2_systems(
    model: str, translator: Translator, compute_types: Sequence[str], folder: Path
) -> dict[str, System]:
    """Return CTranslate2 in each of its compute types, by display name.

    Args:
        model: The model folder.
        translator: mtkit's translator, whose search settings to use.
        compute_types: CTranslate2's types, such as int8.
        folder: Where to export the model; must not exist.

    Raises:
        ConfigError: If CTranslate2 is not installed, or does not support a type or the architecture.
        StorageError: If the model cannot be read or exported.
    """
    config, tokenizers, network = load_model(Path(model))
    export(config.model, network, tokenizers, folder)
    return {
        f"CTranslate2 {compute_type}": ctranslate2_system(
            load_ctranslate2(folder, compute_type, translator.device), translator
        )
        for compute_type in compute_types
    }


def ctranslate2_system(other: Any, translator: Translator) -> System:
    """Return a system that searches with CTranslate2 as mtkit does, from text to text.

    Two settings differ slightly. CTranslate2 has one length limit for all lines of a call, so translations longer than
    mtkit's limit are counted; and it renormalizes probabilities after its token rules, which mtkit does not.

    Args:
        other: CTranslate2's translator.
        translator: mtkit's translator, whose tokenizers, segments and search settings to use.
    """
    src, tgt = translator.tokenizers.src, translator.tokenizers.tgt
    src_pieces = [src.piece(i) for i in range(src.vocab_size)]
    tgt_ids = {tgt.piece(i): i for i in range(tgt.vocab_size)}
    decoding = translator.decoding
    suppressed = [[tgt.piece(i)] for i in translator.search_options.suppressed]

    def search(segments: list[Segment]) -> list[list[int]]:
        results = other.translate_batch(
            [[src_pieces[i] for i in segment.ids.tolist()] for segment in segments],
            beam_size=decoding.beam_size,
            max_batch_size=_BATCH_SIZE,
            length_penalty=decoding.length_penalty,
            coverage_penalty=decoding.coverage_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram,
            max_decoding_length=max((segment.max_length for segment in segments), default=1),
            min_decoding_length=decoding.min_pieces,
            suppress_sequences=suppressed,
        )
        return [[tgt_ids[piece] for piece in result.hypotheses[0]] for result in results]

    return lambda lines: _translate(lines, translator, search)


def hugging_face_systems(model: str, translator: Translator) -> dict[str, System]:
    """Return Hugging Face's `generate` in the precision of the translator's activations, by display name.

    Sentences of similar length share a batch.

    Args:
        model: The model folder.
        translator: mtkit's translator, whose search settings to use.

    Raises:
        ConfigError: If the package is not installed, or does not support the architecture or a coverage penalty.
        StorageError: If the model cannot be read.
    """
    decoding = translator.decoding
    if decoding.coverage_penalty:
        what = "Hugging Face does not support a coverage penalty"
        hint = "set it to 0, or leave transformers out of `against`"
        raise ConfigError(what, where="decoding.coverage_penalty", hint=hint)
    config, tokenizers, network = load_model(Path(model))
    dtype = translator.model.compute_dtype
    longest = decoding.max_length(translator.max_source_tokens)
    hf_model = hugging_face_model(config.model, network, tokenizers, longest).to(translator.device, dtype)

    def search(segments: list[Segment]) -> list[list[int]]:
        order = sorted(range(len(segments)), key=lambda i: -len(segments[i].ids))
        rows: list[list[int]] = [[] for _ in segments]
        for first in range(0, len(order), _BATCH_SIZE):
            batch = order[first : first + _BATCH_SIZE]
            hyps = generate(
                hf_model, translator.ensemble.sources([segments[i].ids for i in batch]), tokenizers,
                beam_size=decoding.beam_size, length_penalty=decoding.length_penalty,
                max_tokens=max(segments[i].max_length for i in batch),
                suppressed=translator.search_options.suppressed,
                no_repeat_ngram=decoding.no_repeat_ngram, min_tokens=decoding.min_pieces,
            )  # fmt: skip
            for i, row in zip(batch, hyps, strict=True):
                rows[i] = row[:-1] if row and row[-1] == tokenizers.tgt.eos else row
        return rows

    return {f"Hugging Face {dtype_name(dtype)}": lambda lines: _translate(lines, translator, search)}


def _translate(
    lines: Sequence[str], translator: Translator, search: Callable[[list[Segment]], Iterable[list[int]]]
) -> Output:
    """Translate lines with a search that returns the target ids of each segment, without eos."""
    segmented = translator.segmenter.segment_lines([Request(line) for line in lines])
    segments = [segment for line in segmented for segment in line.segments]
    rows = list(search(segments))
    too_long = {s.line_number for s, row in zip(segments, rows, strict=True) if len(row) + 1 > s.max_length}
    texts = iter(translator.tokenizers.tgt.decode(rows))
    hyps = [
        join_translations(list(islice(texts, len(line.segments))), [s.boundary for s in line.segments])[0]
        for line in segmented
    ]
    return Output(hyps, len(too_long))
