"""Models as step functions (see `state.Stepper`): one Transformer, or an ensemble of several.

Shapes: B sentences, K hypotheses, D model width, S source length, V vocabulary, U tokens of a shortlist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtkit.model.cpu.packing import select_rows
from mtkit.model.transformer import Transformer
from mtkit.search.shortlist import ReducedVocabulary
from mtkit.search.state import NEG_INF


class ModelStepper:
    """A Transformer that holds the source sentences and the keys and values of the hypotheses.

    Args:
        model: the model, in evaluation mode.
        src_BS: the sentences, padded.
        keep_attention: remember the attention of each step, for `attention`.
    """

    def __init__(self, model: Transformer, src_BS: Tensor, keep_attention: bool = False) -> None:
        self.model = model
        self.state = model.init_state(model.encode(src_BS), model.source_mask(src_BS))
        self.state.keep_weights = keep_attention
        self.vocab_size = model.tgt_embedding.num_embeddings

    def step(self, tokens_BK: Tensor) -> Tensor:
        """Append the newest tokens and return the hidden states [B, K, D]."""
        return self.model.step(tokens_BK, self.state)

    def logits(self, hidden_BKD: Tensor, first: int = 0) -> Tensor:
        """Return the logits [B, K, V] of the next token."""
        return self.model.logits(hidden_BKD)

    def reorder(self, parents_BK: Tensor) -> None:
        """Continue with hypotheses `parents_BK` of each sentence."""
        self.state.reorder(parents_BK)

    def keep_rows(self, rows_B: Tensor) -> None:
        """Continue with sentences `rows_B` only."""
        self.state.keep_rows(rows_B)

    def attention(self) -> Tensor:
        """Return the mean cross-attention of the last step over heads and layers: [B, K, S]; 1 at padding."""
        weights_BKS = torch.stack(self.state.weights_BKS).mean(dim=0)
        return weights_BKS.masked_fill(~self.state.memory_mask[:, 0], 1.0)


class ShortlistStepper(ModelStepper):
    """A Transformer that predicts the tokens of a shortlist only.

    Args:
        model: the model, in evaluation mode.
        src_BS: the sentences, padded.
        vocabulary: the tokens that the sentences may use, and their numbers in the search.
        keep_attention: remember the attention of each step, for `attention`.
    """

    def __init__(
        self,
        model: Transformer,
        src_BS: Tensor,
        vocabulary: ReducedVocabulary,
        keep_attention: bool = False,
    ) -> None:
        super().__init__(model, src_BS, keep_attention)
        self.tokens_U, self.forbidden_B1U = vocabulary.tokens_U, vocabulary.forbidden_B1U
        self.output = select_rows(model.output, self.tokens_U)
        self.vocab_size = len(self.tokens_U)

    def step(self, tokens_BK: Tensor) -> Tensor:
        """Append the newest tokens, by their numbers, and return the hidden states [B, K, D]."""
        return super().step(self.tokens_U[tokens_BK])

    def logits(self, hidden_BKD: Tensor, first: int = 0) -> Tensor:
        """Return the logits [B, K, U] of the next token, -inf for those that are not in the list of a sentence."""
        logits_BKU: Tensor = self.output(hidden_BKD)
        return logits_BKU.masked_fill_(self.forbidden_B1U[first : first + len(logits_BKU)], NEG_INF)

    def keep_rows(self, rows_B: Tensor) -> None:
        """Continue with sentences `rows_B` only."""
        super().keep_rows(rows_B)
        self.forbidden_B1U = self.forbidden_B1U[rows_B]


class EnsembleStepper:
    """Several models that share their vocabularies, with their probabilities averaged at each step."""

    def __init__(self, steppers: Sequence[ModelStepper]) -> None:
        self.steppers = steppers
        self.vocab_size = steppers[0].vocab_size
        self.widths: list[int] = []

    def step(self, tokens_BK: Tensor) -> Tensor:
        """Append the newest tokens and return the hidden states of all models, concatenated: [B, K, sum of D]."""
        hidden = [stepper.step(tokens_BK) for stepper in self.steppers]
        self.widths = [h.shape[-1] for h in hidden]
        return torch.cat(hidden, dim=-1)

    def logits(self, hidden_BKD: Tensor, first: int = 0) -> Tensor:
        """Return the log of the mean probability of the next token: [B, K, V]."""
        hidden = hidden_BKD.split(self.widths, dim=-1)
        return mean_log_probs(
            [stepper.logits(h, first) for stepper, h in zip(self.steppers, hidden, strict=True)]
        )

    def reorder(self, parents_BK: Tensor) -> None:
        """Continue with hypotheses `parents_BK` of each sentence."""
        for stepper in self.steppers:
            stepper.reorder(parents_BK)

    def keep_rows(self, rows_B: Tensor) -> None:
        """Continue with sentences `rows_B` only."""
        for stepper in self.steppers:
            stepper.keep_rows(rows_B)

    def attention(self) -> Tensor:
        """Return the mean attention of the models: [B, K, S]."""
        return torch.stack([stepper.attention() for stepper in self.steppers]).mean(dim=0)


def mean_log_probs(logits: Sequence[Tensor]) -> Tensor:
    """Return the log of the mean probability [..., V] of several models, or the log-probabilities of one."""
    log_probs = [each.log_softmax(dim=-1, dtype=torch.float32) for each in logits]
    if len(log_probs) == 1:
        return log_probs[0]
    return torch.stack(log_probs).logsumexp(dim=0) - math.log(len(log_probs))
