"""Lines in, translations out, in the same order: lines -> requests -> parts -> batches -> hypotheses -> translations.

`segments` cuts lines into segments, `batched_search` searches them; here a line's translations are put together again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Unpack

import torch

from mtkit.config.rules import ineffective_decoding_settings
from mtkit.config.sections import Config, DecodingConfig
from mtkit.data.batching import Ids
from mtkit.data.tokenizer import Tokenizers
from mtkit.device import choose_device, choose_dtype, configure_malloc, dtype_name, limit_kernel_caches
from mtkit.errors import ConfigError, DataError
from mtkit.model.cpu.packing import Int8, choose_int8, pack
from mtkit.model.transformer import Transformer
from mtkit.search.state import Hypothesis
from mtkit.translation.assembly import Assembler, SearchedLine, Translation
from mtkit.translation.batched_search import BatchedSearch
from mtkit.translation.ensemble import Ensemble
from mtkit.translation.loading import load_ensemble_members, load_model, usual_src_tokens
from mtkit.translation.model_folder import override_decoding, read_decoding
from mtkit.translation.next_words import Alternative, best_next_words
from mtkit.translation.numbers import has_number
from mtkit.translation.options import (
    DEFAULT_OPTIONS,
    DecodingOverrides,
    TranslateOptions,
    check_precision,
    refuse_text,
)
from mtkit.translation.reading import read_chunks
from mtkit.translation.scoring import Scorer
from mtkit.translation.segments import Request, Segment, Segmenter

MAX_LINES_WITH_ATTENTION = 16
"""Lines whose attention is in memory at the same time, if it is kept: layers x target x source numbers of each."""


class Translator:
    """A trained model (or several that vote), the tokenizers and how to search.

    Args:
        model: in the precision and on the device it is to run in.
        tokenizers: of both sides.
        decoding: beam, penalties, limits.
        max_source_tokens: longer lines are split at sentence ends, longer sentences are cut (see `sentence_splitting`),
            translated part by part and joined.
        others: further models of an ensemble, for the same vocabularies.
        int8: which matrices of the models were packed to multiply in 8-bit integers.
        usual_src_tokens: lines of several sentences that are longer than this are translated sentence by sentence;
            None: than `max_source_tokens`.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizers: Tokenizers,
        decoding: DecodingConfig,
        max_source_tokens: int = 256,
        others: Sequence[Transformer] = (),
        int8: Int8 = "none",
        usual_src_tokens: int | None = None,
    ) -> None:
        self.model, self.tokenizers, self.decoding = model, tokenizers, decoding
        self.max_source_tokens, self.int8 = max_source_tokens, int8
        self.ensemble = Ensemble((model, *others), tokenizers)
        self.device = self.ensemble.device
        self.batched_search = BatchedSearch(self.ensemble, decoding)
        self.search_options = self.batched_search.options
        self.segmenter = Segmenter(
            tokenizers, decoding, self.search_options.suppressed, max_source_tokens, usual_src_tokens
        )
        self.scorer = Scorer(self.ensemble, decoding, self.search_options, self.segmenter)
        self.assembler = Assembler(self.ensemble, decoding.batch_tokens)

    @property
    def precision(self) -> str:
        """How the model computes: fp32, bf16, fp16, int8, or one of these with an int8 output matrix."""
        dtype = dtype_name(self.model.compute_dtype)
        return {"all": "int8", "output": f"{dtype} + int8 output", "none": dtype}[self.int8]

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        decoding: DecodingConfig | None = None,
        device: str = "auto",
        precision: str = "auto",
        ensemble: Sequence[str | Path] = (),
        **changes: Unpack[DecodingOverrides],
    ) -> Translator:
        """A translator from a run folder (its best checkpoint) or a checkpoint folder.

        Args:
            path: the folder.
            decoding: instead of the run's own settings.
            changes: keys of these settings that are to have another value, such as beam_size=3.
            device: auto, cpu, cuda, cuda:1 ...
            precision: auto, fp32, bf16, fp16 or int8.
            ensemble: folders of further models with the same tokenizers, whose probabilities are averaged.

        Raises:
            StorageError: the folder or a file of it is missing or damaged.
            ConfigError: a key or value that decoding does not have, or a key that does nothing beside the others; the
                device is not there, or has no int8; a model of the ensemble has another vocabulary.
        """
        check_precision(precision)
        decoding = override_decoding(decoding or read_decoding(Path(path)), changes)
        for found in ineffective_decoding_settings(decoding, changes):
            raise ConfigError(found.what, where=found.key, hint=found.hint)
        chosen = choose_device(device, "device")
        config, tokenizers, model = load_model(Path(path))
        others = load_ensemble_members(ensemble, tokenizers, path)
        return cls.of(config, tokenizers, model, decoding, chosen, precision, others, usual_src_tokens(path))

    @classmethod
    def of(
        cls,
        config: Config,
        tokenizers: Tokenizers,
        model: Transformer,
        decoding: DecodingConfig | None,
        device: torch.device,
        precision: str,
        others: Sequence[Transformer] = (),
        usual_src_tokens: int | None = None,
    ) -> Translator:
        """A translator of models in memory, which are moved to the device and the precision.

        On a CPU their matrices are packed, so they can be trained no more.

        Raises:
            ConfigError: int8 on a GPU, or on a processor that cannot multiply so.
        """
        if device.type == "cpu":
            limit_kernel_caches()
            configure_malloc()
        int8 = choose_int8(precision, device)
        dtype = choose_dtype("fp32" if precision == "int8" else precision, device)
        for each in (model, *others):
            each.compute_dtype = dtype
            each.to(device=device, dtype=dtype).eval()
            if device.type == "cpu":
                pack(each, int8)
        decoding = decoding or config.decoding
        return cls(model, tokenizers, decoding, config.data.max_length, others, int8, usual_src_tokens)

    def translate_one(self, line: str | Request, options: TranslateOptions = DEFAULT_OPTIONS) -> Translation:
        """The best translation of one line. Raises: DataError: see `translate_n_best`."""
        return next(self.translate([line], options))

    def translate(
        self, lines: Iterable[str | Request], options: TranslateOptions = DEFAULT_OPTIONS
    ) -> Iterator[Translation]:
        """The best translation of each line, in order; lines are read ahead by `options.read_ahead`.

        Raises:
            DataError: see `translate_n_best`.
        """
        return (translations[0] for translations in self.translate_n_best(lines, options))

    def translate_n_best(
        self, lines: Iterable[str | Request], options: TranslateOptions = DEFAULT_OPTIONS
    ) -> Iterator[list[Translation]]:
        """The `n_best` translations of each line, best first; samples in the order they were drawn.

        Every call counts its lines from `options.first_line`, so the same call gives the same samples.

        Raises:
            DataError: a prefix or constraints that cannot be met; at the line's number. The lines before are yielded.
                With `options.on_error` "skip" or "copy" only what ends the lines, as a file that cannot be read.
        """
        refuse_text(lines, "lines")
        return self._translate_chunks(lines, options)

    def _translate_chunks(
        self, lines: Iterable[str | Request], options: TranslateOptions
    ) -> Iterator[list[Translation]]:
        """Translate what is read ahead, again and again."""
        first = options.first_line
        for chunk in read_chunks(lines, options.read_ahead, options.is_ready):
            yield from self._translate_chunk(list(map(Request.of, chunk)), first, options)
            first += len(chunk)

    def alternatives(
        self, lines: Iterable[str | Request], number: int, options: TranslateOptions = DEFAULT_OPTIONS
    ) -> Iterator[list[Alternative]]:
        """For each line the most probable words behind its prefix, each with the best translation that goes on so.

        The prefix consists of whole words, and none of its words is made longer. Punctuation behind a word is a word of
        its own. An empty line has no alternatives.

        Args:
            lines: each one sentence; constraints do not matter.
            number: alternatives of each line, best first; fewer where there are fewer.
            options: of which links, attention and read-ahead do not matter; `copy` on errors is as `skip`.

        Raises:
            DataError: a prefix or a line that is too long, unless `options.on_error` says otherwise.
        """
        refuse_text(lines, "lines")
        return self._alternatives(lines, number, options)

    def _alternatives(
        self, lines: Iterable[str | Request], number: int, options: TranslateOptions
    ) -> Iterator[list[Alternative]]:
        """Take line by line."""
        for line_number, line in enumerate(lines, options.first_line):
            try:
                part = self.segmenter.single(Request.of(line), line_number, options)
            except DataError as fault:
                if options.on_error == "stop":
                    raise
                options.on_fault(line_number, fault)
                part = None
            ends = self.segmenter.word_ends
            yield best_next_words(self.ensemble, part, self.search_options, ends, number) if part else []
            options.on_progress(1)

    def score_stream(
        self,
        pairs: Iterable[Sequence[str]],
        skip_long: bool = False,
        *,
        tag: str = "",
        split_sentences: bool | None = None,
    ) -> Iterator[tuple[str, Translation | None]]:
        """`score` of any number of pairs, each with its source, in constant memory.

        Args:
            skip_long: give None for a pair too long to be scored.
            tag, split_sentences: see `score`.

        Raises:
            DataError: such a pair otherwise, or what reading raises; after the lines before it.
        """
        return self.scorer.stream(pairs, skip_long, tag, split_sentences)

    def score(
        self,
        srcs: Sequence[str],
        tgts: Sequence[str],
        *,
        tag: str = "",
        split_sentences: bool | None = None,
    ) -> list[Translation]:
        """What the model thinks of given translations: the score `translate` would print for them.

        That of their texts, cut into tokens as training texts are: a translation that the search made of other tokens,
        which it seldom does, has another score. A line that `translate` would cut is scored sentence by sentence if its
        translation has as many, else in one piece.

        Args:
            tag: see `Request`.
            split_sentences: see `TranslateOptions`.

        Raises:
            DataError: not as many sources as targets; a line too long to be scored.
        """
        refuse_text(srcs, "srcs")
        refuse_text(tgts, "tgts")
        return self.scorer.score(srcs, tgts, tag, split_sentences)

    def search_ids(self, sentences: Sequence[Ids]) -> list[list[Hypothesis]]:
        """The hypotheses of tokenized sentences, in their order."""
        limit = self.decoding.max_length
        return self.batched_search.search_segments(
            [Segment(ids, limit(len(ids)), number) for number, ids in enumerate(sentences)]
        )

    def _translate_chunk(
        self, requests: list[Request], first: int, options: TranslateOptions
    ) -> Iterator[list[Translation]]:
        """Search the parts of all lines together, and join those of each line. Args: first: number of line 0."""
        cut: list[list[Segment] | DataError] = []
        for parts in self.segmenter.parts_or_faults(requests, first, options):
            cut.append(parts)
            if isinstance(parts, DataError) and options.on_error == "stop":
                break
        lines = self._searched(requests, cut, options)
        num_together = MAX_LINES_WITH_ATTENTION if options.keep_attention else max(1, len(lines))
        for start in range(0, len(lines), num_together):
            some = slice(start, start + num_together)
            joined = self.assembler.join(lines[some], options.keep_attention)
            numbered = zip(range(first + start, first + len(lines)), requests[some], joined, strict=False)
            for number, request, translations in numbered:
                fault = translations[0].fault
                if fault is None:
                    yield translations
                else:  # raised after the translations of the lines before it
                    none = Translation.none_of(request.text, fault, options.on_error)
                    options.on_fault(number, fault)
                    yield [none]

    def _searched(
        self, requests: list[Request], cut: list[list[Segment] | DataError], options: TranslateOptions
    ) -> list[SearchedLine]:
        """The parts of lines, as far as they were cut, with what is found for them."""
        of_lines = [[] if isinstance(parts, DataError) else parts for parts in cut]
        every = [part for parts in of_lines for part in parts]
        finished = _LineCounter(list(map(len, of_lines)), options.on_progress)
        workers = options.num_workers
        found = self.batched_search.search_segments(every, finished, workers)
        of_parts = iter(self._with_kept(every, found, workers))
        return [
            SearchedLine(
                parts,
                list(islice(of_parts, len(parts))),
                options.keep_links or request.links,
                request.text,
                outcome if isinstance(outcome, DataError) else None,
            )
            for request, outcome, parts in zip(requests, cut, of_lines, strict=False)
        ]

    def _with_kept(
        self, parts: list[Segment], chosen: list[list[Hypothesis]], num_workers: int
    ) -> list[list[Hypothesis]]:
        """The same, with parts translated again whose best translation lacks a number that is to be kept.

        Most often a model copies by itself, and then best where it is free; constraints cost more than they give there.
        """
        wanting = [
            i for i, part in enumerate(parts) if part.numbers_kept and chosen[i] and not self.decoding.sample
        ]
        texts = self.tokenizers.tgt.decode([chosen[i][0].ids for i in wanting])
        again = [
            i
            for i, text in zip(wanting, texts, strict=True)
            if not all(has_number(text, number) for number in parts[i].numbers_kept)
        ]
        if not again:
            return chosen
        found = list(chosen)
        results = self.batched_search.search_segments(
            [self.segmenter.keeping(parts[i]) for i in again], num_workers=num_workers
        )
        for i, hypotheses in zip(again, results, strict=True):
            found[i] = hypotheses or chosen[i]
        return found


class _LineCounter:
    """Counts lines as their parts are searched: a line is done with its last part, an empty one from the beginning.

    Args:
        num_parts: of each line.
        tell: is told how many more lines are done.
    """

    def __init__(self, num_parts: Sequence[int], tell: Callable[[int], None]) -> None:
        self.num_left, self.tell = list(num_parts), tell
        self.lines = [line for line, number in enumerate(num_parts) for _ in range(number)]
        if empty := self.num_left.count(0):
            tell(empty)

    def __call__(self, parts: Sequence[int]) -> None:
        """These parts were searched."""
        num_done = 0
        for part in parts:
            self.num_left[self.lines[part]] -= 1
            num_done += not self.num_left[self.lines[part]]
        if num_done:
            self.tell(num_done)
