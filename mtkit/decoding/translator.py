"""Lines in, translations out: the way from text through the search and back, in batches, in the original order.

Shapes: B sentences, S source length, N = B x K hypotheses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtkit.config import Config, DecodingConfig
from mtkit.data.batching import Ids, pad_rows, split_by_budget
from mtkit.data.tokenizer import Tokenizers
from mtkit.decoding.loading import load_model
from mtkit.decoding.search import Hypothesis, SearchOptions, gnmt_penalty, search
from mtkit.decoding.stepper import ModelStepper
from mtkit.device import choose_device, choose_dtype, keep_freed_memory, out_of_memory_named
from mtkit.errors import DataError
from mtkit.model.packing import pack
from mtkit.model.transformer import Transformer

LINES_AT_ONCE = 4096
"""Lines read before the first batch is made: they are sorted by length, and their translations come out together."""

PREFERRED_CUTS = ".!?;:,"
FULL_WIDTH_CUTS = "。！？；：，、"  # no space follows these
WORD_START = "\u2581"


@dataclass(frozen=True)
class Translation:
    """A translation of a line."""

    text: str
    score: float
    """Log-probability over the GNMT length penalty; 0 for an empty line, the mean over the parts of a cut line."""


class Translator:
    """A trained model, its tokenizers and how to search.

    Args:
        model: in the precision and on the device it is to run in.
        tokenizers: of both sides.
        decoding: beam, penalty, limits.
        max_source_pieces: longer lines are cut (see `cut_place`), translated part by part and joined.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizers: Tokenizers,
        decoding: DecodingConfig,
        max_source_pieces: int = 256,
    ) -> None:
        self.model, self.tokenizers, self.decoding = model, tokenizers, decoding
        self.max_source_pieces = max_source_pieces
        self.device = next(model.parameters()).device
        self.on_batch: Callable[[int], None] = lambda num_sentences: None
        """Told after each batch how many sentences (or parts of long lines) were translated."""
        tgt = tokenizers.tgt
        unused = range(tgt.num_pieces, tgt.vocab_size)
        self.options = SearchOptions(
            beam_size=decoding.beam_size,
            bos=tgt.bos,
            eos=tgt.eos,
            n_best=decoding.n_best,
            length_penalty=decoding.length_penalty,
            suppressed=(tgt.pad, tgt.bos, tgt.unk, *unused),
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        decoding: DecodingConfig | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> Translator:
        """A translator from a run folder (its best checkpoint) or a checkpoint folder.

        Args:
            path: the folder.
            decoding: instead of the run's own settings.
            device: auto, cpu, cuda, cuda:1 ...
            precision: auto, fp32, bf16 or fp16.

        Raises:
            StorageError: the folder or a file of it is missing or damaged.
            ConfigError: the device is not there.
        """
        config, tokenizers, model = load_model(Path(path))
        return cls.of(config, tokenizers, model, decoding, choose_device(device), precision)

    @classmethod
    def of(
        cls,
        config: Config,
        tokenizers: Tokenizers,
        model: Transformer,
        decoding: DecodingConfig | None,
        device: torch.device,
        precision: str,
    ) -> Translator:
        """A translator of a model in memory, which is moved to the device and the precision."""
        dtype = choose_dtype(precision, device)
        model.compute_dtype = dtype
        model.to(device=device, dtype=dtype).eval()
        if device.type == "cpu":
            keep_freed_memory()
            pack(model, int8_output=precision == "auto" and dtype == torch.bfloat16)
        return cls(model, tokenizers, decoding or config.decoding, config.data.max_length)

    def translate(self, lines: Iterable[str]) -> Iterator[Translation]:
        """The best translation of each line, in order; lines are read ahead by `LINES_AT_ONCE`."""
        return (translations[0] for translations in self.translate_n_best(lines))

    def translate_n_best(self, lines: Iterable[str]) -> Iterator[list[Translation]]:
        """The `n_best` translations of each line, best first."""
        stream = iter(lines)
        while chunk := list(islice(stream, LINES_AT_ONCE)):
            yield from self._translate_chunk(chunk)

    def score(self, srcs: Sequence[str], tgts: Sequence[str]) -> list[Translation]:
        """What the model thinks of given translations: the score `translate` would print for them.

        Raises:
            DataError: not as many sources as targets; a line too long to be scored in one piece.
        """
        if len(srcs) != len(tgts):
            raise DataError(
                f"{len(srcs):,} source lines, but {len(tgts):,} target lines", hint="line n goes with line n"
            )
        src_ids, tgt_ids = self.tokenizers.src.encode(srcs), self.tokenizers.tgt.encode(tgts)
        self._refuse_long(src_ids, self.max_source_pieces, "source")
        self._refuse_long(tgt_ids, self.max_length(self.max_source_pieces), "target")
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

    def _refuse_long(self, rows: Sequence[Ids], limit: int, side: str) -> None:
        """Raise DataError if a line has more pieces than `limit`."""
        for number, ids in enumerate(rows, 1):
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
        log_probs_BTV = self.model.logits(self.model(src_BS, tgt_in_BT)).float().log_softmax(dim=-1)
        lengths_B = torch.tensor([len(ids) + 1 for ids in tgt_ids], device=self.device)
        real_BT = torch.arange(tgt_out_BT.shape[1], device=self.device) < lengths_B[:, None]
        log_probs_BT = log_probs_BTV.gather(2, tgt_out_BT[:, :, None])[:, :, 0]
        sums_B = log_probs_BT.masked_fill(~real_BT, 0.0).sum(1)
        scores: list[float] = (sums_B / gnmt_penalty(lengths_B, self.options.length_penalty)).tolist()
        return scores

    def search_ids(self, sentences: Sequence[Ids]) -> list[list[Hypothesis]]:
        """The hypotheses of tokenized sentences, in their order, found in batches of similar length."""
        found: list[list[Hypothesis]] = [[] for _ in sentences]
        sizes = np.array([len(ids) + 1 for ids in sentences], dtype=np.int32)
        budget = max(1, self.decoding.batch_tokens // self.decoding.beam_size)
        for batch in split_by_budget(sizes, np.argsort(-sizes, kind="stable"), budget):
            hypotheses = self._search_batch([sentences[i] for i in batch.tolist()])
            for index, best in zip(batch.tolist(), hypotheses, strict=True):
                found[index] = best
            self.on_batch(len(batch))
        return found

    @torch.inference_mode()
    def _search_batch(self, sentences: list[Ids]) -> list[list[Hypothesis]]:
        max_lengths = [self.max_length(len(ids)) for ids in sentences]
        src_BS = self._pad_sources(sentences)
        with out_of_memory_named("lower decoding.batch_tokens (--batch-tokens) or the beam"):
            stepper = ModelStepper(self.model, src_BS)
            return search(stepper, max_lengths, self.options, self.device)

    def max_length(self, num_source_pieces: int) -> int:
        """Most pieces of a translation, eos included."""
        return int(self.decoding.max_length_ratio * num_source_pieces) + self.decoding.max_length_extra + 1

    def _pad_sources(self, sentences: Sequence[Ids]) -> Tensor:
        src = self.tokenizers.src
        return self._tensor(pad_rows(list(sentences), src.pad, last=src.eos))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _translate_chunk(self, lines: list[str]) -> Iterator[list[Translation]]:
        """Cut long lines, translate the parts of all lines together, and join the parts of each."""
        parts = list(map(self._cut, lines, self.tokenizers.src.encode(lines)))
        found = iter(self.search_ids([part for line_parts in parts for part in line_parts]))
        for line_parts in parts:
            yield self._join([next(found) for _ in line_parts])

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


def cut_place(pieces: Sequence[str]) -> int:
    """Where to cut: at the last clause that ends in the second half, else before the last word, else at the end."""
    places = range(len(pieces) // 2 + 1, len(pieces))
    words = [i for i in places if pieces[i].startswith(WORD_START)]
    clauses = [i for i in words if pieces[i - 1][-1] in PREFERRED_CUTS]
    clauses += [i for i in places if pieces[i - 1][-1] in FULL_WIDTH_CUTS]
    return max(clauses or words or [len(pieces)])
