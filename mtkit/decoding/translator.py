"""Lines in, translations out: the way from text through the search and back, in batches, in the original order.

Shapes: B sentences, S source length, N = B x K hypotheses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mtkit.config import Config, DecodingConfig
from mtkit.data.batching import Ids, Indices, pad_rows, split_by_budget
from mtkit.data.tokenizer import Tokenizers
from mtkit.decoding.alignment import Aligned, cross_attention, word_numbers
from mtkit.decoding.alternatives import Alternative, next_words
from mtkit.decoding.constraints import Constraint
from mtkit.decoding.loading import load_model, load_others
from mtkit.decoding.longtext import WORD_START, cut_place, split_sentences
from mtkit.decoding.mbr import make_utility, minimum_risk
from mtkit.decoding.sampling import SamplingOptions, sample
from mtkit.decoding.search import Hypothesis, SearchOptions, final_scores, search
from mtkit.decoding.stepper import EnsembleStepper, ModelStepper
from mtkit.device import choose_device, choose_dtype, keep_freed_memory, out_of_memory_named
from mtkit.errors import DataError, MtkitError
from mtkit.model.packing import choose_int8, pack
from mtkit.model.transformer import Transformer

T = TypeVar("T")

LINES_AT_ONCE = 4096
"""Lines read before the first batch is made: they are sorted by length, and their translations come out together."""

MOST_WORKERS = 4
"""Batches that are searched at the same time on a CPU: the small operations of one fill the pauses of the others."""


@dataclass(frozen=True)
class Translation:
    """A translation of a line."""

    text: str
    score: float
    """What hypotheses are ranked by; 0 for an empty line, the mean over the parts of a cut line."""
    aligned: tuple[Aligned, ...] = ()
    """Of each part of the line, if the translator keeps attention."""

    def with_text(self, text: str) -> Translation:
        """The same with another text."""
        return replace(self, text=text)

    def word_links(self) -> list[tuple[int, int]]:
        """Pairs of a source word and a target word of the line, from 0. Needs `aligned`."""
        links, first_src, first_tgt = [], 0, 0
        for part in self.aligned:
            links += [(first_src + s, first_tgt + t) for s, t in part.word_links()]
            first_src += max(word_numbers(part.src), default=-1) + 1
            first_tgt += max(word_numbers(part.tgt), default=-1) + 1
        return links


@dataclass(frozen=True)
class Request:
    """A line to translate, and what its translation must be like.

    Args:
        text: the line.
        prefix: how the translation begins.
        constraints: words or phrases that must appear in it; of each tuple at least one.
        kept: texts of the line that must appear in it too, each in the translation of the part where it stands; where
            the search leaves one out, the part is searched again with all of them as constraints.
    """

    text: str
    prefix: str = ""
    constraints: tuple[tuple[str, ...], ...] = ()
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Pieces that are translated as one: a line, or a part of a long one."""

    ids: Ids
    max_length: int  # of a hypothesis, eos included
    number: int  # of the line, for the random numbers of samples
    prefix: tuple[int, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    kept: tuple[str, ...] = ()  # texts that become constraints if the search left them out


class Translator:
    """A trained model (or several that vote), the tokenizers and how to search.

    Args:
        model: in the precision and on the device it is to run in.
        tokenizers: of both sides.
        decoding: beam, penalties, limits.
        max_source_pieces: longer lines are split at sentence ends, longer sentences are cut (see `longtext`),
            translated part by part and joined.
        others: further models of an ensemble, for the same vocabularies.
        split: split every line at sentence ends, not only the long ones.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizers: Tokenizers,
        decoding: DecodingConfig,
        max_source_pieces: int = 256,
        others: Sequence[Transformer] = (),
        split: bool = False,
    ) -> None:
        self.model, self.tokenizers, self.decoding = model, tokenizers, decoding
        self.models = (model, *others)
        self.max_source_pieces, self.split = max_source_pieces, split
        self.device = next(model.parameters()).device
        self.on_batch: Callable[[int], None] = lambda num_sentences: None
        """Told after each batch how many sentences (or parts of long lines) were translated."""
        self.num_workers = MOST_WORKERS
        """Batches that may be searched at the same time."""
        self.keeps_attention = False
        """Whether translations come with their attention."""
        self.lines_at_once: int | None = None
        """Instead of `LINES_AT_ONCE`."""
        self.first_number = 0
        """Number of the next line, on which the random numbers of its samples depend."""
        tgt = tokenizers.tgt
        unused = range(tgt.num_pieces, tgt.vocab_size)
        chosen = {piece for ids in tgt.encode(decoding.suppress) for piece in ids.tolist()}
        self.options = SearchOptions(
            beam_size=decoding.mbr_candidates if decoding.mbr else decoding.beam_size,
            bos=tgt.bos,
            eos=tgt.eos,
            n_best=decoding.mbr_candidates if decoding.mbr else min(decoding.n_best, decoding.beam_size),
            length_penalty=decoding.length_penalty,
            suppressed=tuple(dict.fromkeys((tgt.pad, tgt.bos, tgt.unk, *unused, *sorted(chosen)))),
            penalty_kind=decoding.penalty_kind,
            coverage_penalty=decoding.coverage_penalty,
            stop=decoding.stop,
            min_length=decoding.min_pieces,
            no_repeat_ngram=decoding.no_repeat_ngram,
            groups=decoding.groups if not decoding.mbr else 1,
            diversity=decoding.diversity,
        )
        self.sampling = SamplingOptions(
            num_samples=decoding.num_hypotheses,
            temperature=decoding.temperature,
            top_k=decoding.top_k,
            top_p=decoding.top_p,
            epsilon=decoding.epsilon,
            seed=decoding.sample_seed,
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        decoding: DecodingConfig | None = None,
        device: str = "auto",
        precision: str = "auto",
        ensemble: Sequence[str | Path] = (),
    ) -> Translator:
        """A translator from a run folder (its best checkpoint) or a checkpoint folder.

        Args:
            path: the folder.
            decoding: instead of the run's own settings.
            device: auto, cpu, cuda, cuda:1 ...
            precision: auto, fp32, bf16, fp16 or int8.
            ensemble: folders of further models with the same tokenizers, whose probabilities are averaged.

        Raises:
            StorageError: the folder or a file of it is missing or damaged.
            ConfigError: the device is not there; a model of the ensemble has another vocabulary.
        """
        config, tokenizers, model = load_model(Path(path))
        others = load_others(ensemble, tokenizers, path)
        return cls.of(config, tokenizers, model, decoding, choose_device(device), precision, others)

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
    ) -> Translator:
        """A translator of models in memory, which are moved to the device and the precision.

        On a CPU their matrices are packed, so they can be trained no more.

        Raises:
            ConfigError: int8 on a GPU, or on a processor that cannot multiply so.
        """
        int8 = choose_int8(precision, device)
        dtype = choose_dtype(precision, device)
        for each in (model, *others):
            each.compute_dtype = dtype
            each.to(device=device, dtype=dtype).eval()
            if device.type == "cpu":
                pack(each, int8)
        if device.type == "cpu":
            keep_freed_memory()
        return cls(model, tokenizers, decoding or config.decoding, config.data.max_length, others)

    def translate(self, lines: Iterable[str | Request]) -> Iterator[Translation]:
        """The best translation of each line, in order; lines are read ahead by `LINES_AT_ONCE`."""
        return (translations[0] for translations in self.translate_n_best(lines))

    def translate_n_best(self, lines: Iterable[str | Request]) -> Iterator[list[Translation]]:
        """The `n_best` translations of each line, best first; samples in the order they were drawn.

        Raises:
            DataError: a prefix or constraints that cannot be met; at the line's number. The lines before are yielded.
        """
        stream = iter(lines)
        while True:
            chunk, fault = read_ahead(stream, self.lines_at_once or LINES_AT_ONCE)
            if chunk:
                yield from self._translate_chunk(
                    [Request(line) if isinstance(line, str) else line for line in chunk]
                )
            if fault is not None:
                raise fault
            if not chunk:
                return

    def alternatives(self, lines: Iterable[str | Request], number: int) -> Iterator[list[Alternative]]:
        """For each line the most probable words behind its prefix, each with the best translation that goes on so.

        The prefix consists of whole words, and none of its words is made longer. An empty line has no alternatives.

        Args:
            lines: each one sentence; constraints do not matter.
            number: alternatives of each line, best first; fewer where there are fewer.

        Raises:
            DataError: a prefix or a line that is too long.
        """
        for line in lines:
            request = line if isinstance(line, Request) else Request(line)
            where = self.first_number
            self.first_number += 1
            parts = self._demand(Request(request.text), self._cut_all([request])[0], where)
            if len(parts) > 1:
                what = "a line with alternatives must be one sentence"
                raise DataError(what, where=f"line {where + 1}", hint="split the line")
            if parts:
                parts = self._demand(replace(request, constraints=(), kept=()), [parts[0].ids], where)
            yield self._alternatives(parts[0], number) if parts else []
            self.on_batch(1)

    @torch.inference_mode()
    def _alternatives(self, part: Part, number: int) -> list[Alternative]:
        """See `alternatives`."""
        tgt, followers = self.tokenizers.tgt, self.followers - set(self.options.suppressed)

        def log_probs_after(words: Sequence[tuple[int, ...]]) -> Tensor:
            begun = [np.array([*part.prefix, *word], dtype=np.int32) for word in words]
            src_NS = self._pad_sources([part.ids] * len(words))
            tgt_in_NT = self._tensor(pad_rows(begun, tgt.pad, first=tgt.bos))
            lasts_N = torch.tensor([len(ids) for ids in begun], device=self.device)
            return self._log_probs(src_NS, tgt_in_NT)[torch.arange(len(words), device=self.device), lasts_N]

        forbidden = frozenset(self.options.suppressed)
        at_boundary, wanted = bool(part.prefix), 2 * number  # pieces of the same word may differ
        words = next_words(log_probs_after, followers, tgt.eos, forbidden, wanted, at_boundary)
        texts = tgt.decode([word.ids for word in words])
        first = {
            text: word
            for text, word in reversed(list(zip(texts, words, strict=True)))
            if text or not word.ids
        }
        chosen = sorted(first.items(), key=lambda item: -item[1].log_prob)[:number]
        prefixes = [(*part.prefix, *word.ids) for _, word in chosen]
        limits = [
            max(part.max_length, len(begun) + 1) if word.ids else len(begun) + 1
            for begun, (_, word) in zip(prefixes, chosen, strict=True)
        ]
        src_NS = self._pad_sources([part.ids] * len(chosen))
        stepper = self._stepper(src_NS, keep_attention=self.options.coverage_penalty > 0)
        options = replace(self.options, n_best=1, after_prefix=tuple(sorted({*followers, tgt.eos})))
        found = search(stepper, limits, options, self.device, prefixes)
        return [
            Alternative(text, float(np.exp(word.log_prob)), tgt.decode([best.ids])[0], best.score)
            for (text, word), (best, *_) in zip(chosen, found, strict=True)
        ]

    def score_stream(self, pairs: Iterable[Sequence[str]]) -> Iterator[tuple[str, Translation]]:
        """`score` of any number of pairs, each with its source, in constant memory.

        Raises:
            DataError: a line too long to be scored in one piece, or what reading raises; after the lines before it.
        """
        stream, first = iter(pairs), 1
        while True:
            chunk, fault = read_ahead(stream, LINES_AT_ONCE)
            srcs, tgts = [pair[0] for pair in chunk], [pair[1] for pair in chunk]
            yield from zip(srcs, self.score(srcs, tgts, first), strict=True)
            first += len(chunk)
            if fault is not None:
                raise fault
            if not chunk:
                return

    def score(self, srcs: Sequence[str], tgts: Sequence[str], first: int = 1) -> list[Translation]:
        """What the model thinks of given translations: the score `translate` would print for them.

        Args:
            first: number of the first line, for messages.

        Raises:
            DataError: not as many sources as targets; a line too long to be scored in one piece.
        """
        if len(srcs) != len(tgts):
            raise DataError(
                f"{len(srcs):,} source lines, but {len(tgts):,} target lines", hint="line n goes with line n"
            )
        src_ids, tgt_ids = self.tokenizers.src.encode(srcs), self.tokenizers.tgt.encode(tgts)
        self._refuse_long(src_ids, self.max_source_pieces, "source", first)
        self._refuse_long(tgt_ids, self.max_length(self.max_source_pieces), "target", first)
        sizes = np.array(
            [max(len(s), len(t)) + 1 for s, t in zip(src_ids, tgt_ids, strict=True)], dtype=np.int32
        )
        scores = np.zeros(len(srcs))
        order = np.argsort(-sizes, kind="stable")
        order = order[sizes[order] > 1]  # an empty line that stays empty: 0, as `translate` says
        for batch in split_by_budget(sizes, order, self.decoding.batch_tokens):
            pairs = [(src_ids[i], tgt_ids[i]) for i in batch.tolist()]
            with out_of_memory_named("lower decoding.batch_tokens (--batch-tokens)"):
                scores[batch] = self.score_ids([s for s, _ in pairs], [t for _, t in pairs])
        return [Translation(text, score) for text, score in zip(tgts, scores.tolist(), strict=True)]

    def _refuse_long(self, rows: Sequence[Ids], limit: int, side: str, first: int) -> None:
        """Raise DataError if a line has more pieces than `limit`."""
        for number, ids in enumerate(rows, first):
            if len(ids) > limit:
                what = f"{len(ids):,} pieces, but a {side} line of at most {limit:,} can be scored"
                raise DataError(what, where=f"{side} line {number}", hint="split the line")

    @torch.inference_mode()
    def score_ids(self, src_ids: Sequence[Ids], tgt_ids: Sequence[Ids]) -> list[float]:
        """Log-probability over the length penalty of each pair, by one pass through the whole target."""
        tgt = self.tokenizers.tgt
        src_BS = self._pad_sources(src_ids)
        tgt_in_BT = self._tensor(pad_rows(list(tgt_ids), tgt.pad, first=tgt.bos))
        tgt_out_BT = self._tensor(pad_rows(list(tgt_ids), tgt.pad, last=tgt.eos))
        log_probs_BTV = self._log_probs(src_BS, tgt_in_BT)
        lengths_B = torch.tensor([len(ids) + 1 for ids in tgt_ids], device=self.device)
        real_BT = torch.arange(tgt_out_BT.shape[1], device=self.device) < lengths_B[:, None]
        log_probs_BT = log_probs_BTV.gather(2, tgt_out_BT[:, :, None])[:, :, 0]
        sums_B = log_probs_BT.masked_fill(~real_BT, 0.0).sum(1)
        coverage_BS = self.coverage(src_BS, tgt_in_BT, real_BT) if self.options.coverage_penalty else None
        scores: list[float] = final_scores(sums_B, lengths_B, self.options, coverage_BS).tolist()
        return scores

    def _log_probs(self, src_BS: Tensor, tgt_in_BT: Tensor) -> Tensor:
        """Of all pieces at all places, [B, T, V]; of an ensemble the log of the mean probability."""
        parts = [m.logits(m(src_BS, tgt_in_BT)).log_softmax(dim=-1, dtype=torch.float32) for m in self.models]
        if len(parts) == 1:
            return parts[0]
        return torch.stack(parts).logsumexp(dim=0) - float(np.log(len(parts)))

    def coverage(self, src_BS: Tensor, tgt_in_BT: Tensor, real_BT: Tensor) -> Tensor:
        """Attention that each source piece gets over the real places of given targets, 1 at padding: [B, S]."""
        stepper = self._stepper(src_BS, keep_attention=True)
        total_BS = torch.zeros(src_BS.shape, device=self.device)
        for place in range(tgt_in_BT.shape[1]):
            stepper.step(tgt_in_BT[:, place : place + 1])
            total_BS += stepper.attention()[:, 0] * real_BT[:, place : place + 1]
        return total_BS

    def search_ids(self, sentences: Sequence[Ids]) -> list[list[Hypothesis]]:
        """The hypotheses of tokenized sentences, in their order, found in batches of similar length."""
        return self.search_parts(
            [Part(ids, self.max_length(len(ids)), number) for number, ids in enumerate(sentences)]
        )

    def search_parts(self, parts: Sequence[Part]) -> list[list[Hypothesis]]:
        """The same for parts with prefixes and constraints."""
        found: list[list[Hypothesis]] = [[] for _ in parts]
        sizes = np.array([len(part.ids) + 1 for part in parts], dtype=np.int32)
        budget = max(1, self.decoding.batch_tokens // self.decoding.num_hypotheses)
        batches = split_by_budget(sizes, np.argsort(-sizes, kind="stable"), budget)
        for batch, hypotheses in self._run(batches, lambda batch: [parts[i] for i in batch.tolist()]):
            for index, best in zip(batch.tolist(), hypotheses, strict=True):
                found[index] = best
            self.on_batch(len(batch))
        return found

    def _run(
        self, batches: list[Indices], parts_of: Callable[[Indices], list[Part]]
    ) -> Iterator[tuple[Indices, list[list[Hypothesis]]]]:
        """Search batches, on a CPU several at a time, each with its share of the threads."""
        num_threads = torch.get_num_threads()
        num_workers = min(num_threads, self.num_workers, len(batches)) if self.device.type == "cpu" else 1
        if num_workers < 2:
            yield from ((batch, self._search_batch(parts_of(batch))) for batch in batches)
            return

        def work(batch: Indices) -> list[list[Hypothesis]]:
            torch.set_num_threads(max(1, num_threads // num_workers))  # of this worker alone
            return self._search_batch(parts_of(batch))

        pool = ThreadPoolExecutor(num_workers)
        try:
            yield from zip(batches, pool.map(work, batches), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)

    def _stepper(self, src_BS: Tensor, keep_attention: bool = False) -> ModelStepper | EnsembleStepper:
        steppers = [ModelStepper(model, src_BS, keep_attention) for model in self.models]
        return steppers[0] if len(steppers) == 1 else EnsembleStepper(steppers)

    @torch.inference_mode()
    def _search_batch(self, parts: list[Part]) -> list[list[Hypothesis]]:
        src_BS = self._pad_sources([part.ids for part in parts])
        max_lengths, prefixes = [part.max_length for part in parts], [part.prefix for part in parts]
        with out_of_memory_named("lower decoding.batch_tokens (--batch-tokens) or the beam"):
            stepper = self._stepper(src_BS, keep_attention=self.options.coverage_penalty > 0)
            if self.decoding.sample:
                numbers = [part.number for part in parts]
                return sample(
                    stepper, max_lengths, self.options, self.sampling, self.device, prefixes, numbers
                )
            constraints = [part.constraints for part in parts]
            return search(stepper, max_lengths, self.options, self.device, prefixes, constraints)

    def max_length(self, num_source_pieces: int) -> int:
        """Most pieces of a translation, eos included."""
        return int(self.decoding.max_length_ratio * num_source_pieces) + self.decoding.max_length_extra + 1

    def _pad_sources(self, sentences: Sequence[Ids]) -> Tensor:
        src = self.tokenizers.src
        return self._tensor(pad_rows(list(sentences), src.pad, last=src.eos))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _translate_chunk(self, requests: list[Request]) -> Iterator[list[Translation]]:
        """Cut long lines, translate the parts of all lines together, and join the parts of each."""
        first, self.first_number = self.first_number, self.first_number + len(requests)
        lines: list[list[Part]] = []
        fault = None
        for number, ids in enumerate(self._cut_all(requests), first):
            try:
                lines.append(self._demand(requests[number - first], ids, number))
            except DataError as error:  # told after the translations of the lines before it
                fault = error
                break
        every = [part for parts in lines for part in parts]
        chosen = self._with_kept(every, [self._chosen(hypotheses) for hypotheses in self.search_parts(every)])
        aligned = iter(self._align(every, chosen) if self.keeps_attention else ())
        found = iter(chosen)
        for parts in lines:
            hypotheses = [next(found) for _ in parts]
            for part, of_part in zip(parts, hypotheses, strict=True):
                refuse_none(part, of_part)
            translations = self._join(hypotheses)
            own = tuple(islice(aligned, len(parts)))
            yield [replace(translations[0], aligned=own), *translations[1:]] if own else translations
        if fault is not None:
            raise fault

    def _cut_all(self, requests: list[Request]) -> list[list[Ids]]:
        """The parts of each line."""
        texts = [request.text for request in requests]
        encoded = self.tokenizers.src.encode(texts)
        return list(map(self._cut_line, texts, encoded))

    def _demand(self, request: Request, line_parts: list[Ids], number: int) -> list[Part]:
        """The parts of a line with its prefix (on the first) and its constraints. Raises: DataError: impossible."""
        limits = [self.max_length(len(ids)) for ids in line_parts]
        parts = [Part(ids, limit, number) for ids, limit in zip(line_parts, limits, strict=True)]
        where, tgt = f"line {number + 1}", self.tokenizers.tgt
        if request.kept:
            texts = self.tokenizers.src.decode(line_parts)
            parts = [
                replace(part, kept=tuple(kept for kept in request.kept if kept in text))
                for part, text in zip(parts, texts, strict=True)
            ]
        if not request.prefix and not request.constraints:
            return parts
        if len(parts) != 1:
            what = "a line with a prefix or constraints must be one sentence that is not empty"
            raise DataError(what, where=where, hint="give one sentence a line, without --split-sentences")
        (part,) = parts
        prefix = tuple(tgt.encode([request.prefix])[0].tolist())
        constraints = tuple(self._constraint(words, where) for words in request.constraints)
        needed = len(prefix) + sum(constraint.num_pieces for constraint in constraints) + 1
        if self.decoding.sample and constraints:
            raise DataError("constraints need a search, not samples", where=where, hint="leave out --sample")
        if needed > part.max_length:
            what = (
                f"its prefix and constraints have {needed:,} pieces, but at most {part.max_length:,} may come"
            )
            raise DataError(what, where=where, hint="raise --max-length-ratio")
        return [replace(part, prefix=prefix, constraints=constraints)]

    @cached_property
    def followers(self) -> frozenset[int]:
        """Target pieces that do not lengthen the word before them: they begin a word, or with a punctuation mark."""
        tgt = self.tokenizers.tgt
        return frozenset(i for i in range(tgt.num_pieces) if tgt.piece(i)[0] in f'{WORD_START}.;!?)]}}…"”»')

    def _with_kept(self, parts: list[Part], chosen: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
        """The same, with parts translated again whose best translation lacks a text that is to be kept.

        Most often a model copies by itself, and then best where it is free; constraints cost more than they give there.
        """
        wanting = [i for i, part in enumerate(parts) if part.kept and chosen[i] and not self.decoding.sample]
        texts = self.tokenizers.tgt.decode([chosen[i][0].ids for i in wanting])
        again = [
            i
            for i, text in zip(wanting, texts, strict=True)
            if any(re.search(rf"(?<!\w){re.escape(kept)}(?!\w)", text) is None for kept in parts[i].kept)
        ]
        if not again:
            return chosen
        found, told = list(chosen), self.on_batch
        self.on_batch = lambda num_sentences: None  # they were counted before
        try:
            results = self.search_parts([self._keeping(parts[i]) for i in again])
        finally:
            self.on_batch = told
        for i, hypotheses in zip(again, results, strict=True):
            found[i] = self._chosen(hypotheses) if hypotheses else chosen[i]
        return found

    def _keeping(self, part: Part) -> Part:
        """A part with its kept texts as further constraints, as far as they can be written."""
        phrases = [tuple(ids.tolist()) for ids in self.tokenizers.tgt.encode(part.kept)]
        suppressed = set(self.options.suppressed)
        kept = [
            Constraint((phrase,), self.followers)
            for phrase in phrases
            if phrase and not set(phrase) & suppressed
        ]
        constraints = (*part.constraints, *kept)
        needed = len(part.prefix) + sum(constraint.num_pieces for constraint in constraints) + 1
        return replace(part, constraints=constraints, max_length=max(part.max_length, 2 * needed))

    def _constraint(self, words: Sequence[str], where: str) -> Constraint:
        """One of these phrases, as pieces. Raises: DataError: it cannot be written in pieces that may appear."""
        phrases = [tuple(ids.tolist()) for ids in self.tokenizers.tgt.encode(list(words))]
        possible = [phrase for phrase in phrases if phrase and not set(phrase) & set(self.options.suppressed)]
        if not possible:
            what = f"the constraint {' | '.join(words)!r} cannot be met: the vocabulary lacks its characters"
            raise DataError(what, where=where, hint="leave it out")
        return Constraint(tuple(possible))

    def _chosen(self, hypotheses: list[Hypothesis]) -> list[Hypothesis]:
        """The `n_best` hypotheses; with minimum Bayes risk those of least risk."""
        if self.decoding.mbr is None:
            return hypotheses
        texts = self.tokenizers.tgt.decode([hypothesis.ids for hypothesis in hypotheses])
        ranked = minimum_risk(texts, make_utility(self.decoding.mbr))
        return [hypotheses[number] for number, _ in ranked[: self.decoding.n_best]]

    def _align(self, parts: list[Part], chosen: list[list[Hypothesis]]) -> list[Aligned]:
        """The best hypothesis of each part with its attention, by the first model."""
        found: dict[int, Aligned] = {}
        src, tgt = self.tokenizers.src, self.tokenizers.tgt
        best = [np.array(hypotheses[0].ids, dtype=np.int32) for hypotheses in chosen]
        sizes = np.array(
            [len(p.ids) + len(ids) + 2 for p, ids in zip(parts, best, strict=True)], dtype=np.int32
        )
        for batch in split_by_budget(sizes, np.argsort(-sizes, kind="stable"), self.decoding.batch_tokens):
            rows = batch.tolist()
            src_BS = self._pad_sources([parts[i].ids for i in rows])
            tgt_in_BT = self._tensor(pad_rows([best[i] for i in rows], tgt.pad, first=tgt.bos))
            lengths = [(len(best[i]) + 1, len(parts[i].ids) + 1) for i in rows]
            for i, weights in zip(rows, cross_attention(self.model, src_BS, tgt_in_BT, lengths), strict=True):
                texts = (
                    tuple(map(src.piece, parts[i].ids.tolist())),
                    tuple(map(tgt.piece, best[i].tolist())),
                )
                found[i] = Aligned(*texts, weights)
        return [found[i] for i in range(len(parts))]

    def _join(self, parts: list[list[Hypothesis]]) -> list[Translation]:
        """The translations of a line from those of its parts: best with best, second with second."""
        if not parts:
            return [Translation("", 0.0)]
        joined = []
        for ranked in zip(*parts, strict=False):  # as many as every part has
            texts = self.tokenizers.tgt.decode([hypothesis.ids for hypothesis in ranked])
            score = sum(hypothesis.score for hypothesis in ranked) / len(ranked)
            joined.append(Translation(" ".join(texts), score))
        return joined

    def _cut_line(self, line: str, ids: Ids) -> list[Ids]:
        """The parts of a line: itself, or its sentences, and of too long ones their parts; none for an empty line."""
        if len(ids) <= self.max_source_pieces and not self.split:
            return [ids] if len(ids) else []
        sentences = split_sentences(line)
        return [
            part
            for text, own in zip(sentences, self.tokenizers.src.encode(sentences), strict=True)
            for part in self._cut(text, own)
        ]

    def _cut(self, line: str, ids: Ids) -> list[Ids]:
        """Parts of at most `max_source_pieces`; none for an empty line."""
        limit = self.max_source_pieces
        if len(ids) <= limit:
            return [ids] if len(ids) else []
        pieces, parts, start = self.tokenizers.src.pieces(line), [], 0
        while len(ids) - start > limit:
            end = start + cut_place(pieces[start : start + limit])
            parts.append(ids[start:end])
            start = end
        return [*parts, ids[start:]]


def refuse_none(part: Part, hypotheses: Sequence[Hypothesis]) -> None:
    """Check that a part of a line has a translation. Raises: DataError: it says why it may have none."""
    if hypotheses:
        return
    what, hint = "no translation has a score that is a number", "a milder length penalty or temperature"
    if part.constraints:
        what, hint = "no translation meets all constraints", "a wider beam (--beam-size)"
    raise DataError(what, where=f"line {part.number + 1}", hint=hint)


def read_ahead(stream: Iterator[T], number: int) -> tuple[list[T], MtkitError | None]:
    """So many of the next items, or those before an error, and the error."""
    chunk: list[T] = []
    try:
        for item in islice(stream, number):
            chunk.append(item)
    except MtkitError as error:
        return chunk, error
    return chunk, None
