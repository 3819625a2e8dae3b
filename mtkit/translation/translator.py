"""Translates and scores with mtkit's own models. How lines are translated is in `line_translator`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor, nn

from mtkit.config.rules import ineffective_decoding_settings
from mtkit.config.sections import Config, DecodingConfig
from mtkit.data.alignments import WordLinks
from mtkit.data.batching import Ids
from mtkit.data.tokenizer import Tokenizers
from mtkit.device import (
    choose_device,
    choose_dtype,
    configure_malloc,
    dtype_name,
    limit_kernel_caches,
    limit_threads,
)
from mtkit.errors import ConfigError, DataError
from mtkit.model.cpu.native.library import instructions_name
from mtkit.model.cpu.native.model import NativeModel, supports, uses_native
from mtkit.model.cpu.packing import Int8, choose_int8, pack, takes_stored_int8
from mtkit.model.cuda_graphs import are_wanted
from mtkit.model.quantized import dequantize, is_quantized
from mtkit.model.transformer import Transformer
from mtkit.search.buckets import Buckets
from mtkit.search.shortlist import Shortlist
from mtkit.search.state import Hypothesis
from mtkit.translation.assembly import Translation
from mtkit.translation.batched_search import BatchedSearch
from mtkit.translation.ensemble import Ensemble
from mtkit.translation.line_translator import LineTranslator
from mtkit.translation.loading import load_ensemble_members, load_stored_model, usual_src_tokens
from mtkit.translation.model_folder import override_decoding, read_decoding
from mtkit.translation.next_words import Alternative, best_next_words
from mtkit.translation.options import (
    DEFAULT_OPTIONS,
    PARALLEL,
    DecodingOverrides,
    Parallelism,
    TranslateOptions,
    check_precision,
    reject_single_text,
)
from mtkit.translation.scoring import Scorer
from mtkit.translation.segments import Request, Segment
from mtkit.translation.shortlist import load_shortlist
from mtkit.translation.word_boundaries import tokens_after_word, tokens_inside_word
from mtkit.translation.workers import Workers


class Translator(LineTranslator):
    """A trained model (or an ensemble) with its tokenizers and the settings of the search.

    Args:
        model: the model, in the precision and on the device that it runs in.
        tokenizers: the tokenizers of both sides.
        decoding: beam, penalties, limits.
        max_source_tokens: longer lines are split at sentence ends, longer sentences are cut (see `sentence_splitting`);
            their translations are joined.
        others: further models of an ensemble, with the same vocabularies.
        int8: which matrices of the models are packed for 8-bit multiplication.
        usual_src_tokens: lines of several sentences that are longer than this are translated sentence by sentence;
            None for `max_source_tokens`.
        shortlist: the tokens that a translation may consist of; None for the whole vocabulary.
        native: all models in the compiled library; none if it cannot run them.
        tgt: code of the target language, if it is known; see `make_utility` and `LineTranslator`.
        bleu_tokenizer: tokenizer for minimum Bayes risk with BLEU; see `make_utility`.
        forks: whether workers may be processes, which do not see later changes of the model.
        buckets: all models in fixed shapes, for CUDA graphs; None if caches grow with each step.
        pack: see `Ensemble`.
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
        shortlist: Shortlist | None = None,
        native: Sequence[NativeModel] = (),
        *,
        tgt: str | None = None,
        bleu_tokenizer: str | None = None,
        forks: bool = False,
        buckets: Buckets | None = None,
        pack: Callable[[Transformer], None] | None = None,
    ) -> None:
        self.model, self.int8 = model, int8
        self.ensemble = Ensemble((model, *others), tokenizers, native, buckets, pack)
        self.device = self.ensemble.device
        self.workers = Workers(self.device, forks=forks)
        self.batched_search = BatchedSearch(
            self.ensemble, decoding, shortlist, self.workers, tgt, bleu_tokenizer
        )
        super().__init__(self.batched_search, tokenizers, decoding, max_source_tokens, usual_src_tokens, tgt)
        self.scorer = Scorer(self.batched_search, self.segmenter)

    @property
    def precision(self) -> str:
        """Precision of the computations: fp32, bf16, fp16, int8, or one of these with an int8 output matrix."""
        dtype = dtype_name(self.model.compute_dtype)
        return {"all": "int8", "output": f"{dtype} + int8 output", "none": dtype}[self.int8]

    @property
    def backend(self) -> str:
        """Name of what searches: PyTorch, with CUDA graphs or without, or the compiled library and its instructions."""
        if native := self.ensemble.native:
            return f"compiled, {instructions_name(native[0].instructions)}"
        return "PyTorch" if self.ensemble.buckets is None else "PyTorch, CUDA graphs"

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
        """Load a translator from a run folder (its best checkpoint) or from a checkpoint folder.

        Args:
            path: the folder.
            decoding: settings of the search; by default those of the run.
            device: auto, cpu, cuda, cuda:1 ...
            precision: auto, fp32, bf16, fp16 or int8.
            ensemble: folders of further models with the same tokenizers, whose probabilities are averaged.
            changes: keys of `decoding` with other values, such as beam_size=3.

        Raises:
            StorageError: If the folder or a file in it is missing or damaged.
            ConfigError: If a key or value of `changes` is invalid, or a key has no effect beside the others; if the
                device is not available or does not support int8; if a model of the ensemble has other vocabularies.
        """
        check_precision(precision)
        decoding = override_decoding(decoding or read_decoding(Path(path)), changes)
        for found in ineffective_decoding_settings(decoding, changes):
            raise ConfigError(found.what, where=found.key, hint=found.hint)
        return cls.load_with_config(path, decoding, choose_device(device, "device"), precision, ensemble)[0]

    @classmethod
    def load_with_config(
        cls,
        path: str | Path,
        decoding: DecodingConfig,
        device: torch.device,
        precision: str,
        ensemble: Sequence[str | Path] = (),
    ) -> tuple[Translator, Config]:
        """Load a translator as `load` does, with a device that is chosen, and the config of its model.

        Raises:
            StorageError: If the folder or a file in it is missing or damaged.
            ConfigError: If the device does not support int8, or a model of the ensemble has other vocabularies.
        """
        config, tokenizers, model = load_stored_model(Path(path))
        others = load_ensemble_members(ensemble, tokenizers, model.source_eos, path)
        usual = usual_src_tokens(path)
        shortlist = load_shortlist(Path(path), tokenizers) if decoding.shortlist else None
        return cls.of(
            config, tokenizers, model, decoding, device, precision, others, usual, shortlist
        ), config

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
        shortlist: Shortlist | None = None,
    ) -> Translator:
        """Make a translator from models in memory, which are moved to the device and converted to the precision.

        On a CPU their matrices are packed, at once or when PyTorch computes with them, so the models cannot be trained
        any more. Matrices stored in 8 bits are packed as they are for int8, which is then also what `auto` means on a
        CPU that has it; for other precisions they are dequantized.

        Raises:
            ConfigError: If the device does not support int8.
        """
        if device.type == "cpu":
            limit_kernel_caches()
            configure_malloc()
            limit_threads()
        models = (model, *others)
        runs_native = uses_native(precision, device) and all(map(supports, models))
        if runs_native:  # the library multiplies integers on every CPU that it runs on
            int8: Int8 = "none" if precision == "fp32" else "all"
        else:
            int8 = choose_int8(precision, device, all(map(is_quantized, models)))
        dtype = choose_dtype("fp32" if int8 == "all" else precision, device)
        for each in models:
            if is_quantized(each) and (int8 != "all" or not takes_stored_int8()):
                dequantize(each)
            each.compute_dtype = dtype
            norms = _norm_weights(each) if device.type == "cuda" else {}
            each.to(device=device, dtype=dtype).eval()
            # Norms compute in float32: with weights of that dtype, a step has nothing to convert.
            for parameter, weight in norms.items():
                parameter.data = weight.to(device)
        native = (
            [NativeModel(each, int8 == "all", shortlist is not None) for each in models]
            if runs_native
            else []
        )
        packing = partial(pack, int8=int8, keep_output_rows=shortlist is not None)
        decoding = decoding or config.decoding
        longest = config.data.max_length
        translator = cls(
            model,
            tokenizers,
            decoding,
            longest,
            others,
            int8,
            usual_src_tokens,
            shortlist,
            native,
            tgt=config.data.tgt,
            bleu_tokenizer=config.validation.bleu_tokenizer,
            forks=True,
            buckets=Buckets(models) if are_wanted(device) else None,
            pack=packing if device.type == "cpu" else None,
        )
        if not runs_native:
            translator.ensemble.pack()

        return translator

    def close(self) -> None:
        """End the workers, which otherwise wait for further lines until the translator is deleted."""
        self.workers.close()

    def alternatives(
        self, lines: Iterable[str | Request], number: int, options: TranslateOptions = DEFAULT_OPTIONS
    ) -> Iterator[list[Alternative]]:
        """Yield for each line the most probable words after its prefix, each with the best translation it begins.

        They are searched for in the whole vocabulary, not in a shortlist.
        The prefix consists of whole words; no alternative makes its last word longer. Punctuation after a word is a
        word of its own. An empty line has no alternatives.

        Args:
            lines: one sentence each; constraints are ignored.
            number: alternatives of each line, best first; there may be fewer.
            options: links, attention and read-ahead are ignored; "copy" on errors is the same as "skip".

        Raises:
            DataError: If a prefix or a line is too long, unless `options.on_error` says otherwise.
        """
        reject_single_text(lines, "lines")
        return self._alternatives(lines, number, options)

    def _alternatives(
        self, lines: Iterable[str | Request], number: int, options: TranslateOptions
    ) -> Iterator[list[Alternative]]:
        """Find alternatives line by line."""
        for line_number, line in enumerate(lines, options.first_line):
            try:
                segment = self.segmenter.single_segment(Request.of(line), line_number, options)
            except DataError as fault:
                if options.on_error == "stop":
                    raise
                options.on_fault(line_number, fault)
                segment = None
            if segment is None:
                yield []
            else:
                yield best_next_words(
                    self.ensemble, segment, self.search_options,
                    self._tokens_after_word, self._tokens_inside_word, number,
                )  # fmt: skip
            options.on_progress(1)

    @cached_property
    def _tokens_after_word(self) -> frozenset[int]:
        return tokens_after_word(self.tokenizers.tgt)

    @cached_property
    def _tokens_inside_word(self) -> frozenset[int]:
        return tokens_inside_word(self.tokenizers.tgt)

    def score_stream(
        self,
        pairs: Iterable[Sequence[str]],
        skip_long: bool = False,
        *,
        tag: str = "",
        split_sentences: bool | None = None,
        parallelism: Parallelism = PARALLEL,
    ) -> Iterator[tuple[str, Translation | None]]:
        """Yield the source and the `score` of each pair, in constant memory.

        Args:
            pairs: source and translation.
            skip_long: yield None instead of a score for a pair that is too long.
            tag: see `Request`.
            split_sentences: see `TranslateOptions`.
            parallelism: see `TranslateOptions`.

        Raises:
            DataError: If a pair is too long and `skip_long` is false, or the pairs cannot be read; after the pairs
                before it.
        """
        return self.scorer.stream(pairs, skip_long, tag, split_sentences, parallelism)

    def align(
        self, pairs: Iterable[Sequence[str]], *, tag: str = "", parallelism: Parallelism = PARALLEL
    ) -> Iterator[WordLinks]:
        """Yield the linked words of each pair, by the attention of the model to the source, in constant memory.

        A line is one segment. One that is too long for the model has no links.

        Args:
            pairs: source and translation.
            tag: see `Request`.
            parallelism: see `TranslateOptions`.

        Raises:
            DataError: If the pairs cannot be read.
        """
        return self.scorer.align(pairs, tag, parallelism)

    def score(
        self,
        srcs: Sequence[str],
        tgts: Sequence[str],
        *,
        tag: str = "",
        split_sentences: bool | None = None,
        parallelism: Parallelism = PARALLEL,
    ) -> list[Translation]:
        """Return given translations with the scores that `translate` would give them.

        Texts are tokenized as in training: a hypothesis that the search built from other tokens, which is rare, has
        another score. A line that `translate` would split is scored sentence by sentence if its translation has as
        many sentences, otherwise as a whole.

        Args:
            srcs: the lines.
            tgts: a translation of each.
            tag: see `Request`.
            split_sentences: see `TranslateOptions`.
            parallelism: see `TranslateOptions`.

        Raises:
            DataError: If the numbers of sources and targets differ, or a line is too long.
        """
        reject_single_text(srcs, "srcs")
        reject_single_text(tgts, "tgts")
        return self.scorer.score(srcs, tgts, tag, split_sentences, parallelism)

    def search_ids(self, sentences: Sequence[Ids]) -> list[list[Hypothesis]]:
        """Return the hypotheses of tokenized sentences, in order."""
        limit = self.decoding.max_length
        return self.batched_search.search_segments(
            [Segment(ids, limit(len(ids)), number) for number, ids in enumerate(sentences)]
        )


def _norm_weights(model: Transformer) -> dict[nn.Parameter, Tensor]:
    """Return the weights and biases of all norms."""
    norms = (module for module in model.modules() if isinstance(module, nn.LayerNorm | nn.RMSNorm))
    return {parameter: parameter.data for norm in norms for parameter in norm.parameters()}
