"""Validation: loss and scores of translations on the validation pairs. It does not change the state of training."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain, zip_longest
from typing import NamedTuple

import numpy as np
import torch

from mtkit.config.sections import Config
from mtkit.data.batching import Ids, SpecialIds, make_batch, pair_sizes, split_by_tokens
from mtkit.data.tokenizer import Tokenizers
from mtkit.device import out_of_memory_errors
from mtkit.errors import DataError
from mtkit.evaluation import metrics
from mtkit.evaluation.metrics import Score
from mtkit.model.transformer import Transformer
from mtkit.training.distributed import SINGLE_PROCESS, World
from mtkit.training.freezing import make_training_model
from mtkit.training.loss import batch_loss
from mtkit.training.parallel import is_sharded, unshard
from mtkit.translation.segments import Request
from mtkit.translation.translator import Translator

_LOSS_TOKENS = 4096
"""Most tokens in a batch of the loss; larger batches are no faster, and might not fit in memory."""

_LOSS_DECIMALS, _SCORE_DECIMALS = 4, 2
"""Decimals with which losses and scores are shown and compared."""


def special_ids(tokenizers: Tokenizers, source_eos: bool) -> SpecialIds:
    """Return the ids that frame and pad sentences of these tokenizers.

    Args:
        tokenizers: the tokenizers.
        source_eos: whether sources end with eos (`model.source_eos`).
    """
    src, tgt = tokenizers.src, tokenizers.tgt
    return SpecialIds(src.pad, src.eos, tgt.pad, tgt.bos, tgt.eos, source_eos)


@dataclass(frozen=True)
class EvalSet:
    """Source and reference sentences of a validation or test set.

    Attributes:
        name: its name in reports.
        srcs: source lines, with their tag.
        tgts: references.
        tag: tag that each source line begins with.
    """

    name: str
    srcs: list[str]
    tgts: list[str]
    tag: str = ""

    def requests(self) -> list[Request]:
        """Return the lines to translate, with the tag apart: it goes before each segment of a long line."""
        start = f"{self.tag} " if self.tag else ""
        return [Request(src.removeprefix(start), tag=self.tag) for src in self.srcs]


@dataclass(frozen=True)
class TextCorpus:
    """Validation pairs: text for the metrics, ids for the loss.

    Attributes:
        srcs: source sentences.
        tgts: target sentences.
        src_ids: token ids of each source.
        tgt_ids: token ids of each target.
        requests: source sentences as they are translated.
        sets: pairs of each validation set, by its name.
    """

    srcs: list[str]
    tgts: list[str]
    src_ids: list[Ids]
    tgt_ids: list[Ids]
    requests: list[Request]
    sets: Mapping[str, range]

    @classmethod
    def of(cls, sets: Sequence[EvalSet], tokenizers: Tokenizers) -> TextCorpus:
        """Tokenize validation sets."""
        srcs = [line for each in sets for line in each.srcs]
        tgts = [line for each in sets for line in each.tgts]
        requests = [request for each in sets for request in each.requests()]
        ends = accumulate(len(each.srcs) for each in sets)
        pairs = {each.name: range(end - len(each.srcs), end) for each, end in zip(sets, ends, strict=True)}
        return cls(srcs, tgts, tokenizers.src.encode(srcs), tokenizers.tgt.encode(tgts), requests, pairs)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the text."""
        return hashlib.sha256(json.dumps([self.srcs, self.tgts]).encode()).hexdigest()

    @cached_property
    def src_lengths(self) -> Ids:
        """Number of tokens of each source."""
        return np.array(list(map(len, self.src_ids)), dtype=np.int32)

    @cached_property
    def tgt_lengths(self) -> Ids:
        """Number of tokens of each target."""
        return np.array(list(map(len, self.tgt_ids)), dtype=np.int32)

    def src(self, index: int) -> Ids:
        """Return the source ids of a pair."""
        return self.src_ids[index]

    def tgt(self, index: int) -> Ids:
        """Return the target ids of a pair."""
        return self.tgt_ids[index]


def validation_fingerprint(valid: TextCorpus | None) -> str:
    """Return the fingerprint of the validation pairs, empty if there are none."""
    return "" if valid is None else valid.fingerprint


@dataclass(frozen=True)
class ValidationResult:
    """Result of a validation.

    Attributes:
        loss: mean negative log-likelihood per target token, in nats.
        scores: score of each metric.
        hyps: hypotheses.
        sets: result of each validation set, if there are several.
    """

    loss: float
    scores: dict[str, Score]
    hyps: list[str]
    sets: Mapping[str, ValidationResult] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """exp(loss), infinite if that overflows a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def selection_score(self, name: str) -> SelectionScore:
        """Return what the best checkpoint is selected by: the loss, the perplexity or the score of a metric."""
        return SelectionScore(self.as_dict()[name], self.loss)

    def line(self) -> str:
        """Return the result as a line of text."""
        parts = [f"loss {self.loss:.{_LOSS_DECIMALS}f}", f"perplexity {self.perplexity:.2f}"]
        parts += [f"{score.name} {score.value:.{_SCORE_DECIMALS}f}" for score in self.scores.values()]
        return "  ".join(parts)

    def set_lines(self) -> list[str]:
        """Return the result of each set as a line of text, if there are several."""
        return [f"    {name}: {result.line()}" for name, result in self.sets.items()]

    def as_dict(self) -> dict[str, float]:
        """Return the fields for metrics.jsonl; those of a set are prefixed by its name and a slash."""
        numbers = {"loss": self.loss, "perplexity": self.perplexity}
        numbers |= {name: score.value for name, score in self.scores.items()}
        for name, result in self.sets.items():
            numbers |= {f"{name}/{key}": number for key, number in result.as_dict().items()}
        return numbers


class SelectionScore(NamedTuple):
    """Score by which the best checkpoint is selected.

    Attributes:
        value: value of the metric that `validation.best` names.
        loss: validation loss, which decides between equal values; None if it is not known.
    """

    value: float
    loss: float | None


def is_better(name: str, new: SelectionScore, old: SelectionScore | None) -> bool:
    """Return whether a validation is better than another in the named metric, or has a lower loss at the same score.

    Scores, and the losses that decide between equal ones, are compared as they are shown, with two and four decimals:
    while BLEU is 0.00, the loss tells whether the model learns. As the metric itself, a loss or perplexity is compared
    as it is. NaN is never better.
    """
    if old is None:
        return not math.isnan(new.value)
    if name in ("loss", "perplexity"):
        return new.value < old.value
    score, best = round(new.value, _SCORE_DECIMALS), round(old.value, _SCORE_DECIMALS)
    if score != best or new.loss is None or old.loss is None:
        return metrics.is_better(name, score, best)
    return round(new.loss, _LOSS_DECIMALS) < round(old.loss, _LOSS_DECIMALS)


class Validator:
    """Validates a model on the same pairs each time.

    Args:
        corpus: the validation pairs.
        tokenizers: tokenizers of the model.
        config: config of the run.

    Raises:
        DataError: If every pair is longer than `data.max_length`.

    Attributes:
        num_left_out: pairs longer than `data.max_length`, which might not fit in memory. They are translated, in
            segments, but not in the loss.
        batches: number of the validation set and pairs of each batch of the loss.
        translated: pairs of each validation set that are translated.
    """

    def __init__(self, corpus: TextCorpus, tokenizers: Tokenizers, config: Config) -> None:
        self.corpus, self.tokenizers, self.config = corpus, tokenizers, config
        self.special = special_ids(tokenizers, config.model.source_eos)
        sizes = pair_sizes(corpus.src_lengths, corpus.tgt_lengths)
        order = np.argsort(sizes, kind="stable")
        order = order[sizes[order] <= config.data.max_length + 1]
        self.num_left_out = len(sizes) - len(order)
        if not len(order):
            raise DataError("every pair is longer than data.max_length", where="data.valid", hint="raise it")
        budget = min(config.training.batch_token_budget, _LOSS_TOKENS)
        self.batches = [
            (number, batch)
            for number, pairs in enumerate(corpus.sets.values())
            for batch in split_by_tokens(sizes, order[(pairs.start <= order) & (order < pairs.stop)], budget)
        ]
        max_sentences = config.validation.max_sentences
        self.translated = {name: pairs[:max_sentences] for name, pairs in corpus.sets.items()}

    @property
    def translated_pairs(self) -> list[tuple[str, str]]:
        """Source and target of the pairs that are translated."""
        return [(self.corpus.srcs[i], self.corpus.tgts[i]) for i in self._chosen]

    @property
    def _chosen(self) -> list[int]:
        return list(chain.from_iterable(self.translated.values()))

    def validate(self, model: Transformer, world: World = SINGLE_PROCESS) -> ValidationResult:
        """Compute the loss of all pairs, translate, and score the translations. Leaves the model in evaluation mode.

        Args:
            model: the model, sharded or not.
            world: the processes, which share the work; each returns the whole result.
        """
        model = self.full_model(model)
        model.eval()
        loss, set_losses = self.loss(model, world)
        hyps: list[str] = []
        if self.config.validation.metrics:
            data = self.config.data
            translator = Translator(
                model, self.tokenizers, self.config.validation_decoding, data.max_length, tgt=data.tgt
            )
            requests = [self.corpus.requests[i] for i in self._chosen]
            hyps = [translation.text for translation in translator.translate(world.shard(requests))]
            hyps = interleave(world.all_gather(hyps))
        refs = [tgt for _, tgt in self.translated_pairs]
        if len(set_losses) == 1:
            return ValidationResult(loss, self.scores(hyps, refs), hyps)
        sets, start = {}, 0
        for (name, pairs), set_loss in zip(self.translated.items(), set_losses, strict=True):
            rows = slice(start, start + len(pairs))
            sets[name] = ValidationResult(set_loss, self.scores(hyps[rows], refs[rows]), hyps[rows])
            start = rows.stop
        return ValidationResult(loss, self.scores(hyps, refs), hyps, sets)

    def full_model(self, model: Transformer) -> Transformer:
        """Return the model, or a full copy of it if it is sharded."""
        if not is_sharded(model.parameters()):
            return model
        with torch.device("meta"):
            empty = make_training_model(self.config, self.tokenizers, model.compute_dtype)
        return unshard(model, empty, next(model.parameters()).device)

    def scores(self, hyps: list[str], refs: list[str]) -> dict[str, Score]:
        """Return the scores of translations with `validation.metrics`, by metric."""
        validation = self.config.validation
        if not validation.metrics:
            return {}
        tokenizer, tgt = validation.bleu_tokenizer, self.config.data.tgt
        scores = metrics.score(hyps, [refs], validation.metrics, tokenize=tokenizer, tgt=tgt)
        return dict(zip(validation.metrics, scores, strict=True))

    @torch.inference_mode()
    def loss(self, model: Transformer, world: World = SINGLE_PROCESS) -> tuple[float, list[float]]:
        """Return the mean negative log-likelihood per real target token, in nats, of all pairs and of each set.

        The loss of a set without any pair that is short enough is NaN.
        """
        num_sets = len(self.corpus.sets)
        nlls, counts = [0.0] * num_sets, [0.0] * num_sets
        for number, indices in world.shard(self.batches):
            batch = make_batch(self.corpus, indices, self.special)
            with out_of_memory_errors("free memory on the device, or lower data.max_length"):
                nlls[number] += batch_loss(model, batch, smoothing=0.0).nll.item()
            counts[number] += batch.num_targets
        sums = world.all_reduce([*nlls, *counts])
        nlls, counts = sums[:num_sets], sums[num_sets:]
        set_losses = [nll / count if count else math.nan for nll, count in zip(nlls, counts, strict=True)]
        return sum(nlls) / sum(counts), set_losses


def interleave(shards: list[list[str]]) -> list[str]:
    """Undo `World.shard`: interleave the shards of all processes, [a, c] and [b] to [a, b, c]."""
    rounds = zip_longest(*shards)
    return [item for one_round in rounds for item in one_round if item is not None]
