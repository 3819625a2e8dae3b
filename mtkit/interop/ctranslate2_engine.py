"""Runs models that were exported to CTranslate2, and writes such exports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtkit.checkpoint import MANIFEST_FILE, exported_to, verify_files
from mtkit.config.sections import DecodingConfig
from mtkit.data.batching import Ids, split_by_tokens
from mtkit.data.tokenizer import Tokenizers, load_tokenizers
from mtkit.device import limit_threads
from mtkit.errors import ConfigError, StorageError
from mtkit.interop.ctranslate2 import TYPES, check_expressible, export, import_ctranslate2
from mtkit.interop.exporting import LoadedModel, search_of_engines, write_self_contained
from mtkit.search.state import Hypothesis
from mtkit.translation.alignment import SegmentAttention
from mtkit.translation.batched_search import search_options
from mtkit.translation.engine import Engine, Search, search_in_batches
from mtkit.translation.line_translator import LineTranslator
from mtkit.translation.loading import usual_src_tokens
from mtkit.translation.model_folder import read_config
from mtkit.translation.options import PARALLEL, Parallelism
from mtkit.translation.segments import Segment
from mtkit.translation.workers import Workers

_ENGINE = "ctranslate2"
"""Its name in options and in the manifest of an export."""

_UNSUPPORTED = {
    "penalty_kind": lambda decoding: decoding.penalty_kind != "simple" and decoding.length_penalty != 0,
    "stop": lambda decoding: decoding.stop != "finished",
    "groups": lambda decoding: decoding.groups > 1,
    "sample": lambda decoding: decoding.sample,
    "mbr": lambda decoding: decoding.mbr is not None,
}
"""Keys of `decoding`, and when CTranslate2 cannot search as they say."""


class CTranslate2Exporter:
    """Writes folders for CTranslate2, from which mtkit translates too."""

    name = "CTranslate2"
    types: tuple[str, ...] = TYPES

    def check(self, model: LoadedModel) -> None:
        import_ctranslate2()
        check_expressible(model.config.model, model.tokenizers)

    def write(self, model: LoadedModel, folder: Path, type_: str) -> None:
        export(model.config.model, model.network, model.tokenizers, folder, type_, model.longest)
        config = model.config.model_copy(update={"decoding": self.search(model.config.decoding)})
        write_self_contained(model, config, folder, _ENGINE)

    def search(self, decoding: DecodingConfig) -> DecodingConfig:
        return search_of_engines(decoding)

    def tokenizer(self, folder: Path) -> None:
        """CTranslate2 takes tokens."""

    def computed_in(self, type_: str) -> str:
        """Return the type, or float32 where CTranslate2 does not have it on this CPU."""
        return type_ if type_ in import_ctranslate2().get_supported_compute_types("cpu") else "float32"

    def unproven(self) -> None:
        """Every export can be proven: the package that writes it also runs it."""

    def engine(self, model: LoadedModel, folder: Path, type_: str, decoding: DecodingConfig) -> Engine:
        other = load_ctranslate2(folder, self.computed_in(type_), torch.device("cpu"))
        return _CTranslate2Engine(other, model.tokenizers, decoding)


class _CTranslate2Engine:
    """CTranslate2 in the place of mtkit's search; see `Engine`.

    It renormalizes probabilities after its token rules, and does not count those of a prefix in the score.

    Args:
        other: CTranslate2's translator.
        tokenizers: tokenizers of both sides.
        decoding: how to search.
        num_workers: batches that it is given at the same time.

    Raises:
        ConfigError: If CTranslate2 cannot search this way.
    """

    def __init__(
        self, other: Any, tokenizers: Tokenizers, decoding: DecodingConfig, num_workers: int = 1
    ) -> None:
        _check_search(decoding)
        self.num_workers = num_workers
        self.other, self.decoding = other, decoding
        self.options = search_options(decoding, tokenizers.tgt)
        src, tgt = tokenizers.src, tokenizers.tgt
        self._src_pieces = [src.piece(i) for i in range(src.vocab_size)]
        self._src_pieces[src.unk] = tgt.piece(tgt.unk)  # as in the exported vocabulary
        self._tgt_pieces = [tgt.piece(i) for i in range(tgt.vocab_size)]
        self._tgt_ids = {piece: index for index, piece in enumerate(self._tgt_pieces)}

    def start_search(
        self,
        segments: Sequence[Segment],
        on_batch: Callable[[list[Segment]], None] | None = None,
        parallelism: Parallelism = PARALLEL,
    ) -> Search:
        """CTranslate2 has workers of its own, as many as it was loaded with.

        The limit of the length is that of the longest segment of a batch; longer hypotheses of the others are cut.
        """
        budget = max(1, self.decoding.batch_tokens // self.decoding.beam_size)
        return Search(
            partial(search_in_batches, segments, budget, self._search_batch, on_batch, self.num_workers)
        )

    def _search_batch(self, segments: list[Segment]) -> list[list[Hypothesis]]:
        """Return the hypotheses of each segment of a batch."""
        decoding, options = self.decoding, self.options
        results = self.other.translate_batch(
            self._sources([segment.ids for segment in segments]),
            target_prefix=[[self._tgt_pieces[i] for i in segment.prefix] for segment in segments],
            beam_size=decoding.beam_size,
            num_hypotheses=options.n_best,
            length_penalty=decoding.length_penalty,
            coverage_penalty=decoding.coverage_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram,
            max_input_length=0,
            max_decoding_length=max(segment.max_length for segment in segments),
            min_decoding_length=decoding.min_pieces,
            suppress_sequences=[[self._tgt_pieces[i]] for i in options.suppressed],
            return_scores=True,
        )
        return [
            [
                self._hypothesis(pieces, score, segment.max_length)
                for pieces, score in zip(result.hypotheses, result.scores, strict=True)
            ]
            for segment, result in zip(segments, results, strict=True)
        ]

    def _hypothesis(self, pieces: Sequence[str], score: float, max_length: int) -> Hypothesis:
        """Return a hypothesis, cut to its length limit."""
        log_prob = score * (len(pieces) + 1) ** self.decoding.length_penalty
        return Hypothesis([self._tgt_ids[piece] for piece in pieces[: max_length - 1]], score, log_prob)

    def align(
        self, pairs: Sequence[tuple[Ids, Ids]], parallelism: Parallelism = PARALLEL
    ) -> Iterator[tuple[int, SegmentAttention]]:
        """The attention is that of the last layer, without eos on either side."""
        sizes = np.array([len(src) + len(tgt) + 2 for src, tgt in pairs], dtype=np.int32)
        order = np.argsort(-sizes, kind="stable")
        for indices in split_by_tokens(sizes, order, self.decoding.batch_tokens):
            rows = [pairs[i] for i in indices.tolist()]
            results = self.other.translate_batch(
                self._sources([src for src, _ in rows]),
                target_prefix=[[self._tgt_pieces[i] for i in tgt.tolist()] for _, tgt in rows],
                beam_size=1,
                max_input_length=0,
                max_decoding_length=max(1, *(len(tgt) for _, tgt in rows)),
                return_attention=True,
            )
            for i, (src, tgt), result in zip(indices.tolist(), rows, results, strict=True):
                weights = np.array(result.attention[0], dtype=np.float32)[: len(tgt)]
                pieces = (
                    [self._src_pieces[j] for j in src.tolist()],
                    [self._tgt_pieces[j] for j in tgt.tolist()],
                )
                yield i, SegmentAttention(tuple(pieces[0]), tuple(pieces[1]), weights[None])

    def _sources(self, sentences: Sequence[Ids]) -> list[list[str]]:
        return [[self._src_pieces[i] for i in ids.tolist()] for ids in sentences]


def _check_search(decoding: DecodingConfig) -> None:
    """Check that CTranslate2 can search this way.

    Raises:
        ConfigError: If it cannot, at the key.
    """
    for key, is_set in _UNSUPPORTED.items():
        if is_set(decoding):
            what = f"CTranslate2 does not support {key} {getattr(decoding, key)}"
            raise ConfigError(
                what, where=f"decoding.{key}", hint="leave it out, or translate with mtkit's own model"
            )


def load_ctranslate2(
    folder: Path,
    compute_type: str,
    device: torch.device,
    where: str = "`compute_types`",
    num_workers: int = 1,
    num_threads: int | None = None,
) -> Any:
    """Load CTranslate2's translator.

    Args:
        folder: exported model.
        compute_type: type to compute in, or default for that of the model.
        device: where to run.
        where: parameter that the type is from.
        num_workers: batches that it translates at the same time.
        num_threads: threads of each worker; by default those of PyTorch.

    Raises:
        ConfigError: If this machine does not support the type.
        StorageError: If the model cannot be read.
    """
    ctranslate2 = import_ctranslate2()
    supported = {"default"} | ctranslate2.get_supported_compute_types(device.type)
    if compute_type not in supported:
        what = f"CTranslate2 does not support {compute_type} on this machine"
        raise ConfigError(what, where=where, hint=f"one of {', '.join(sorted(supported))}")
    try:
        return ctranslate2.Translator(
            str(folder),
            device=device.type,
            device_index=device.index or 0,
            compute_type=compute_type,
            inter_threads=num_workers,
            intra_threads=num_threads or torch.get_num_threads(),
        )
    except (RuntimeError, ValueError) as error:
        what = f"CTranslate2 cannot load it: {' '.join(str(error).split())}"
        raise StorageError(what, where=str(folder), hint="export the model again") from error


_COMPUTE_TYPES = {
    "auto": "default",
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "int8": "int8",
}
"""CTranslate2's names of mtkit's precisions."""


def load_line_translator(
    path: Path,
    decoding: DecodingConfig,
    device: torch.device,
    precision: str = "auto",
    parallelism: Parallelism = PARALLEL,
) -> LineTranslator:
    """Load a model that was exported to CTranslate2.

    Args:
        path: folder of the export.
        decoding: how to search.
        device: where to run.
        precision: auto (the type of the export), fp32, bf16, fp16 or int8.
        parallelism: workers, which are threads that share the weights, and threads of each.

    Raises:
        ConfigError: If CTranslate2 is not installed, cannot search this way, or lacks the precision on this machine.
        StorageError: If the folder is missing or damaged, or is another model.
    """
    if not path.is_dir():
        what = "a file, not an exported model" if path.exists() else "no such folder"
        raise StorageError(what, where=str(path), hint="name a folder that `mtkit export` wrote")
    if not (path / MANIFEST_FILE).is_file() or exported_to(path) != _ENGINE:
        what = f"not a model that was exported to {_ENGINE}"
        raise StorageError(what, where=str(path), hint="write one with `mtkit export`")
    _check_search(decoding)
    verify_files(path, {"model.bin"})
    config = read_config(path, "export the model again", to_translate=True)
    tokenizers = load_tokenizers(path)
    limit_threads()
    number, num_threads = Workers(device).numbers(parallelism)
    type_ = _COMPUTE_TYPES[precision]
    other = load_ctranslate2(path, type_, device, "`precision`", number, num_threads)
    engine = _CTranslate2Engine(other, tokenizers, decoding, number)
    usual, data = usual_src_tokens(path), config.data
    return LineTranslator(engine, tokenizers, decoding, data.max_length, usual, data.tgt)
