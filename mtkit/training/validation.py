"""Loss and real translations of the validation pairs, without touching the state of training."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
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
from mtkit.training.loss import batch_loss
from mtkit.translation.translator import Translator

_LOSS_TOKENS = 4096
"""Size of a batch of which the loss is taken; larger ones are no faster, and might not fit."""

_LOSS_DECIMALS, _SCORE_DECIMALS = 4, 2
"""With which numbers are shown, and compared."""


def special_ids(tokenizers: Tokenizers) -> SpecialIds:
    """The ids that frame sentences of these tokenizers."""
    src, tgt = tokenizers.src, tokenizers.tgt
    return SpecialIds(src.pad, src.eos, tgt.pad, tgt.bos, tgt.eos)


@dataclass(frozen=True)
class TextCorpus:
    """Validation pairs: their text for the metrics, their ids for the loss."""

    srcs: list[str]
    tgts: list[str]
    src_ids: list[Ids]
    tgt_ids: list[Ids]
    sets: Mapping[str, range]
    """Which pairs each validation set has, by its name."""

    @classmethod
    def of(
        cls, srcs: list[str], tgts: list[str], tokenizers: Tokenizers, sizes: Mapping[str, int] | None = None
    ) -> TextCorpus:
        """Tokenize pairs.

        Args:
            sizes: pairs of each validation set by its name, in their order; by default there is one.
        """
        sizes = {"valid": len(srcs)} if sizes is None else sizes
        ends = accumulate(sizes.values())
        sets = {name: range(end - sizes[name], end) for name, end in zip(sizes, ends, strict=True)}
        return cls(srcs, tgts, tokenizers.src.encode(srcs), tokenizers.tgt.encode(tgts), sets)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the text."""
        return hashlib.sha256(json.dumps([self.srcs, self.tgts]).encode()).hexdigest()

    @cached_property
    def src_lengths(self) -> Ids:
        """Pieces of each source."""
        return np.array(list(map(len, self.src_ids)), dtype=np.int32)

    @cached_property
    def tgt_lengths(self) -> Ids:
        """Pieces of each target."""
        return np.array(list(map(len, self.tgt_ids)), dtype=np.int32)

    def src(self, index: int) -> Ids:
        """Source ids of a pair."""
        return self.src_ids[index]

    def tgt(self, index: int) -> Ids:
        """Target ids of a pair."""
        return self.tgt_ids[index]


def fingerprint_of(valid: TextCorpus | None) -> str:
    """That of validation pairs; without any, the empty one."""
    return "" if valid is None else valid.fingerprint


@dataclass(frozen=True)
class ValidationResult:
    """What a validation found. `loss` is the mean negative log-likelihood in nats for each target piece."""

    loss: float
    scores: dict[str, Score]
    hyps: list[str]
    sets: Mapping[str, ValidationResult] = field(default_factory=dict)
    """What was found for each set, if there are several."""

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that does not fit a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def standing(self, name: str) -> Standing:
        """By the loss, the perplexity, or the score of a metric."""
        return Standing(self.as_dict()[name], self.loss)

    def line(self) -> str:
        """In words."""
        parts = [f"loss {self.loss:.{_LOSS_DECIMALS}f}", f"perplexity {self.perplexity:.2f}"]
        parts += [f"{score.name} {score.value:.{_SCORE_DECIMALS}f}" for score in self.scores.values()]
        return "  ".join(parts)

    def set_lines(self) -> list[str]:
        """Each of several sets in words."""
        return [f"    {name}: {result.line()}" for name, result in self.sets.items()]

    def as_dict(self) -> dict[str, float]:
        """For metrics.jsonl; the numbers of a set have its name and a slash before theirs."""
        numbers = {"loss": self.loss, "perplexity": self.perplexity}
        numbers |= {name: score.value for name, score in self.scores.items()}
        for name, result in self.sets.items():
            numbers |= {f"{name}/{key}": number for key, number in result.as_dict().items()}
        return numbers


class Standing(NamedTuple):
    """What validations are ranked by."""

    number: float
    """What `validation.best` names."""
    loss: float | None
    """Decides between equal scores; None where it is not known."""


def is_better(name: str, new: Standing, old: Standing | None) -> bool:
    """Whether a validation is better than another: by the number of that name, and at equal scores by the loss.

    Scores are equal, and so are then losses, if they are shown alike, with two and four decimals: while BLEU is 0.00
    the loss tells whether the model learns, and the last digits of neither do. A number that is none is never better.
    """
    if old is None:
        return not math.isnan(new.number)
    if name in ("loss", "perplexity"):
        return new.number < old.number
    score, best = round(new.number, _SCORE_DECIMALS), round(old.number, _SCORE_DECIMALS)
    if score != best or new.loss is None or old.loss is None:
        return metrics.is_better(name, score, best)
    return round(new.loss, _LOSS_DECIMALS) < round(old.loss, _LOSS_DECIMALS)


class Validator:
    """Validates a model on the same pairs again and again."""

    def __init__(self, corpus: TextCorpus, tokenizers: Tokenizers, config: Config) -> None:
        self.corpus, self.tokenizers, self.config = corpus, tokenizers, config
        self.special = special_ids(tokenizers)
        sizes = pair_sizes(corpus.src_lengths, corpus.tgt_lengths)
        order = np.argsort(sizes, kind="stable")
        order = order[sizes[order] <= config.data.max_length + 1]
        self.num_left_out = len(sizes) - len(order)
        """Pairs longer than `data.max_length`: not in the loss, for they might not fit; translated in parts."""
        if not len(order):
            raise DataError("every pair is longer than data.max_length", where="data.valid", hint="raise it")
        budget = min(config.training.batch_token_budget, _LOSS_TOKENS)
        self.batches = [
            (number, batch)
            for number, pairs in enumerate(corpus.sets.values())
            for batch in split_by_tokens(sizes, order[(pairs.start <= order) & (order < pairs.stop)], budget)
        ]
        """The number of a set and pairs of it."""
        most = config.validation.max_sentences
        self.translated = {name: pairs[:most] for name, pairs in corpus.sets.items()}
        """The pairs of each set that are translated."""

    @property
    def translated_pairs(self) -> list[tuple[str, str]]:
        """The pairs that are translated, source first."""
        chosen = chain.from_iterable(self.translated.values())
        return [(self.corpus.srcs[i], self.corpus.tgts[i]) for i in chosen]

    def validate(self, model: Transformer, world: World = SINGLE_PROCESS) -> ValidationResult:
        """Loss of all pairs, and the scores of real translations. The model is left in evaluation mode.

        Several processes share the work, and each has the whole result.
        """
        model.eval()
        loss, of_sets = self.loss(model, world)
        hyps: list[str] = []
        if self.config.validation.metrics:
            translator = Translator(
                model, self.tokenizers, self.config.validation_decoding, self.config.data.max_length
            )
            srcs = [src for src, _ in self.translated_pairs]
            own = [translation.text for translation in translator.translate(world.shard(srcs))]
            hyps = interleave(world.all_gather(own))
        refs = [tgt for _, tgt in self.translated_pairs]
        if len(of_sets) == 1:
            return ValidationResult(loss, self.scores(hyps, refs), hyps)
        sets, start = {}, 0
        for (name, pairs), own_loss in zip(self.translated.items(), of_sets, strict=True):
            part = slice(start, start + len(pairs))
            sets[name] = ValidationResult(own_loss, self.scores(hyps[part], refs[part]), hyps[part])
            start = part.stop
        return ValidationResult(loss, self.scores(hyps, refs), hyps, sets)

    def scores(self, hyps: list[str], refs: list[str]) -> dict[str, Score]:
        """The scores of translations under the metrics of validation."""
        validation = self.config.validation
        if not validation.metrics:
            return {}
        tokenizer, tgt = validation.bleu_tokenizer, self.config.data.tgt
        scores = metrics.score(hyps, [refs], validation.metrics, tokenize=tokenizer, tgt=tgt)
        return dict(zip(validation.metrics, scores, strict=True))

    @torch.inference_mode()
    def loss(self, model: Transformer, world: World = SINGLE_PROCESS) -> tuple[float, list[float]]:
        """Mean negative log-likelihood, in nats for each real target piece, of all pairs and of those of each set.

        That of a set without any pair short enough is not a number.
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
        each = [nll / count if count else math.nan for nll, count in zip(nlls, counts, strict=True)]
        return sum(nlls) / sum(counts), each


def interleave(shares: list[list[str]]) -> list[str]:
    """What `World.share` dealt out, in the order it had: [a, c], [b] to a, b, c."""
    rounds = zip_longest(*shares)
    return [item for one_round in rounds for item in one_round if item is not None]
