"""Other systems that translate with the same weights as mtkit, to be timed in turn: CTranslate2 and Hugging Face.

They get the same segments of long lines and search with the same beam size, penalties and token rules, from text to
text, each in its fastest setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mtkit.benchmark.settings import Candidate, Output, Setting, System
from mtkit.device import dtype_name
from mtkit.errors import ConfigError
from mtkit.interop.ctranslate2 import export
from mtkit.interop.ctranslate2_engine import load_ctranslate2
from mtkit.interop.hugging_face_engine import generate, hugging_face_model
from mtkit.translation.loading import load_model
from mtkit.translation.options import Parallelism
from mtkit.translation.segments import Request, Segment
from mtkit.translation.sentence_splitting import join_translations
from mtkit.translation.translator import Translator
from mtkit.translation.workers import Workers

_TOKEN_BATCHES = (512, 1024, 2048, 4096)
"""Batches of CTranslate2 that are counted in tokens."""
PEERS = ("ctranslate2", "transformers")


@dataclass(frozen=True)
class _Peer:
    """Another system in one setting; see `System`.

    Args:
        translator: mtkit's translator, whose tokenizers and segments it uses.
        search: returns the target ids of each segment, without eos.
        close: gives back what the system holds.
    """

    translator: Translator
    search: Callable[[list[Segment]], Iterable[list[int]]]
    close: Callable[[], None] = lambda: None

    def translate(self, lines: Sequence[str]) -> Output:
        translator = self.translator
        segmented = translator.segmenter.segment_lines([Request(line) for line in lines])
        segments = [segment for line in segmented for segment in line.segments]
        rows = list(self.search(segments))
        too_long = {
            s.line_number for s, row in zip(segments, rows, strict=True) if len(row) + 1 > s.max_length
        }
        tgt = translator.tokenizers.tgt
        texts = iter([segment.decode(tgt, row) for segment, row in zip(segments, rows, strict=True)])
        hyps = [
            join_translations(list(islice(texts, len(line.segments))), [s.boundary for s in line.segments])[0]
            for line in segmented
        ]
        return Output(hyps, len(too_long))


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
    if len(translator.ensemble) > 1:
        raise ConfigError("the systems to compare with do not support ensembles", hint="leave out `against`")


def export_to_ctranslate2(model: str, folder: Path) -> None:
    """Export a model for CTranslate2.

    Args:
        model: The model folder.
        folder: Where to export it; must not exist.

    Raises:
        ConfigError: If CTranslate2 is not installed, or does not support the architecture.
        StorageError: If the model cannot be read or exported.
    """
    config, tokenizers, network = load_model(Path(model))
    export(config.model, network, tokenizers, folder)


def ctranslate2_candidate(folder: Path, translator: Translator, compute_type: str) -> Candidate:
    """Return CTranslate2 in one of its compute types.

    Args:
        folder: The exported model.
        translator: mtkit's translator, whose search settings to use.
        compute_type: CTranslate2's type, such as int8.

    Raises:
        ConfigError: If CTranslate2 does not support the type.
    """

    def make(setting: Setting) -> System:
        other = load_ctranslate2(
            folder,
            compute_type,
            translator.device,
            num_workers=setting.num_workers,
            num_threads=setting.num_threads,
        )
        return ctranslate2_system(other, translator, setting)

    make(Setting(1, 1)).close()  # an unknown type is an error before anything is measured
    return Candidate(f"CTranslate2 {compute_type}", make, _TOKEN_BATCHES)


def ctranslate2_system(other: Any, translator: Translator, setting: Setting) -> System:
    """Return a system that searches with CTranslate2 as mtkit does, from text to text.

    Two settings differ slightly. CTranslate2 has one length limit for all lines of a call, so translations longer than
    mtkit's limit are counted; and it renormalizes probabilities after its token rules, which mtkit does not.

    Args:
        other: CTranslate2's translator.
        translator: mtkit's translator, whose tokenizers, segments and search settings to use.
        setting: the size of its batches; the workers are those that it was loaded with.
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
            max_batch_size=setting.batch_size or 1,
            batch_type="tokens" if setting.batch_type == "tokens" else "examples",
            length_penalty=decoding.length_penalty,
            coverage_penalty=decoding.coverage_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram,
            max_decoding_length=max((segment.max_length for segment in segments), default=1),
            min_decoding_length=decoding.min_pieces,
            suppress_sequences=suppressed,
        )
        return [[tgt_ids[piece] for piece in result.hypotheses[0]] for result in results]

    return _Peer(translator, search, other.unload_model)


def hugging_face_candidate(model: str, translator: Translator) -> Candidate:
    """Return Hugging Face's `generate` in the precision of the translator's activations.

    Sentences of similar length share a batch. It has no workers of its own: they are processes, as mtkit's are.

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

    def search_batch(segments: list[Segment]) -> list[list[int]]:
        hyps = generate(
            hf_model, translator.ensemble.sources([segment.ids for segment in segments]), tokenizers,
            beam_size=decoding.beam_size, length_penalty=decoding.length_penalty,
            max_tokens=max(segment.max_length for segment in segments),
            suppressed=translator.search_options.suppressed,
            no_repeat_ngram=decoding.no_repeat_ngram, min_tokens=decoding.min_pieces,
        )  # fmt: skip
        return [row[:-1] if row and row[-1] == tokenizers.tgt.eos else row for row in hyps]

    def search(workers: Workers, setting: Setting, segments: list[Segment]) -> list[list[int]]:
        order = sorted(range(len(segments)), key=lambda i: -len(segments[i].ids))
        size = setting.batch_size or 1
        indices = [order[first : first + size] for first in range(0, len(order), size)]
        batches = [[segments[i] for i in own] for own in indices]
        rows: list[list[int]] = [[] for _ in segments]
        parallelism = Parallelism(setting.num_workers, setting.num_threads)
        for own, found in zip(indices, workers.run(search_batch, batches, parallelism), strict=True):
            for i, row in zip(own, found, strict=True):
                rows[i] = row
        return rows

    def make(setting: Setting) -> System:
        workers = Workers(translator.device, forks=True)
        workers.add(search_batch)
        return _Peer(translator, partial(search, workers, setting), workers.close)

    return Candidate(f"Hugging Face {dtype_name(dtype)}", make)
