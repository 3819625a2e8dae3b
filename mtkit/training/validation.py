"""Loss and real translations of the validation pairs, without touching the state of training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch

from mtkit.config import Config
from mtkit.data.batching import Ids, SpecialIds, make_batch, pair_sizes, split_by_budget
from mtkit.data.tokenizer import Tokenizers
from mtkit.decoding.translator import Translator
from mtkit.device import out_of_memory_named
from mtkit.errors import DataError
from mtkit.evaluation import metrics
from mtkit.evaluation.metrics import Score
from mtkit.model.transformer import Transformer
from mtkit.training.distributed import ALONE, Processes
from mtkit.training.loss import batch_loss

LOSS_TOKENS = 4096
"""Size of a batch of which the loss is taken; larger ones are no faster, and might not fit."""

LOSS_DECIMALS, SCORE_DECIMALS = 4, 2
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

    @classmethod
    def of(cls, srcs: list[str], tgts: list[str], tokenizers: Tokenizers) -> TextCorpus:
        """Tokenize pairs."""
        return cls(srcs, tgts, tokenizers.src.encode(srcs), tokenizers.tgt.encode(tgts))

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


@dataclass(frozen=True)
class ValidationResult:
    """What a validation found. `loss` is the mean negative log-likelihood in nats for each target piece."""

    loss: float
    scores: dict[str, Score]
    hyps: list[str]

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that does not fit a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def standing(self, name: str) -> Standing:
        """By the loss, the perplexity, or the score of a metric."""
        return Standing(self.as_dict()[name], self.loss)

    def line(self) -> str:
        """In words."""
        parts = [f"loss {self.loss:.{LOSS_DECIMALS}f}", f"perplexity {self.perplexity:.2f}"]
        parts += [f"{score.name} {score.value:.{SCORE_DECIMALS}f}" for score in self.scores.values()]
        return "  ".join(parts)

    def as_dict(self) -> dict[str, float]:
        """For metrics.jsonl."""
        return {"loss": self.loss, "perplexity": self.perplexity} | {
            k: s.value for k, s in self.scores.items()
        }


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
    score, best = round(new.number, SCORE_DECIMALS), round(old.number, SCORE_DECIMALS)
    if score != best or new.loss is None or old.loss is None:
        return metrics.better(name, score, best)
    return round(new.loss, LOSS_DECIMALS) < round(old.loss, LOSS_DECIMALS)


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
        self.batches = split_by_budget(sizes, order, min(config.training.cut_tokens, LOSS_TOKENS))

    def validate(self, model: Transformer, processes: Processes = ALONE) -> ValidationResult:
        """Loss of all pairs, and the scores of real translations. The model is left in evaluation mode.

        Several processes share the work, and each has the whole result.
        """
        model.eval()
        loss = self.loss(model, processes)
        validation = self.config.validation
        if not validation.metrics:
            return ValidationResult(loss, {}, [])
        srcs, tgts = (side[: validation.max_sentences] for side in (self.corpus.srcs, self.corpus.tgts))
        translator = Translator(
            model, self.tokenizers, self.config.validation_decoding, self.config.data.max_length
        )
        own = [translation.text for translation in translator.translate(processes.share(srcs))]
        hyps = deal_back(processes.gather(own))
        scores = metrics.score(
            hyps, [tgts], validation.metrics, tokenize=validation.bleu_tokenizer, tgt=self.config.data.tgt
        )
        return ValidationResult(loss, dict(zip(validation.metrics, scores, strict=True)), hyps)

    @torch.inference_mode()
    def loss(self, model: Transformer, processes: Processes = ALONE) -> float:
        """Mean negative log-likelihood, in nats for each real target piece."""
        nll, count = 0.0, 0.0
        for indices in processes.share(self.batches):
            batch = make_batch(self.corpus, indices, self.special)
            with out_of_memory_named("free memory on the device, or lower data.max_length"):
                nll += batch_loss(model, batch, smoothing=0.0).nll.item()
            count += batch.num_targets
        nll, count = processes.sum([nll, count])
        return nll / count


def deal_back(shares: list[list[str]]) -> list[str]:
    """What `Processes.share` dealt out, in the order it had: [a, c], [b] to a, b, c."""
    rounds = zip_longest(*shares)
    return [item for one_round in rounds for item in one_round if item is not None]
