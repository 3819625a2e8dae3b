"""Models as step functions (see `state.Stepper`): one Transformer, or an ensemble of several.

Shapes: B sentences, N those at first, K hypotheses, D model width, S source length, V vocabulary, U tokens of a
shortlist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtkit.model.cpu.native.model import NativeModel
from mtkit.model.cpu.packing import select_rows
from mtkit.model.transformer import Transformer
from mtkit.search.shortlist import ReducedVocabulary, TokenLists
from mtkit.search.state import NEG_INF, BestTokens, Stepper


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


class NativeStepper:
    """A Transformer in the compiled library, which does not know the attention of a step.

    Args:
        model: the model.
        src_BS: the sentences, padded.
    """

    def __init__(self, model: NativeModel, src_BS: Tensor) -> None:
        self.model, self.state, self.vocab_size = model, model.encode(src_BS), model.vocab_size
        self.num_hypotheses = 1
        self.lists: tuple[Tensor, Tensor] | None = None

    def step(self, tokens_BK: Tensor) -> Tensor:
        """Append the newest tokens and return the hidden states [B, K, D]."""
        self.num_hypotheses = tokens_BK.shape[1]
        return self.model.step(tokens_BK.flatten(), self.state).unflatten(0, tokens_BK.shape)

    def logits(self, hidden_BKD: Tensor, first: int = 0) -> Tensor:
        """Return the logits [B, K, V] of the next token."""
        return self.model.logits(hidden_BKD.flatten(0, 1)).unflatten(0, hidden_BKD.shape[:2])

    def best_tokens(self, hidden_BKD: Tensor, number: int, forbidden: Sequence[int], eos: int) -> BestTokens:
        """Return the most probable tokens that are not forbidden, and the log-probability of eos."""
        shape = hidden_BKD.shape[:2]
        found = self.model.best_tokens(hidden_BKD.flatten(0, 1), number, forbidden, eos, self.lists)
        return BestTokens(*(each.unflatten(0, shape) for each in found))

    def reorder(self, parents_BK: Tensor) -> None:
        """Continue with hypotheses `parents_BK` of each sentence."""
        firsts_B1 = self.num_hypotheses * torch.arange(len(parents_BK))[:, None]
        self.state.select((firsts_B1 + parents_BK).flatten())
        self.num_hypotheses = parents_BK.shape[1]

    def keep_rows(self, rows_B: Tensor) -> None:
        """Continue with sentences `rows_B` only."""
        hypotheses_K = torch.arange(self.num_hypotheses)
        self.state.select((self.num_hypotheses * rows_B[:, None] + hypotheses_K).flatten())

    def attention(self) -> Tensor:
        """Raise: the coverage penalty needs another stepper."""
        raise NotImplementedError


class NativeListStepper(NativeStepper):
    """A Transformer in the compiled library that predicts the tokens of each sentence's own list only.

    Args:
        model: the model.
        src_BS: the sentences, padded.
        lists: the tokens that each sentence may use.
    """

    def __init__(self, model: NativeModel, src_BS: Tensor, lists: TokenLists) -> None:
        super().__init__(model, src_BS)
        self.lists, self.allowed_NV = lists.flat, torch.from_numpy(lists.allowed_BV)
        self.sentences_B = torch.arange(len(src_BS))

    def logits(self, hidden_BKD: Tensor, first: int = 0) -> Tensor:
        """Return the logits [B, K, V] of the next token, -inf for those that are not in the list of a sentence."""
        allowed_BV = self.allowed_NV[self.sentences_B[first : first + len(hidden_BKD)]]
        return super().logits(hidden_BKD).masked_fill_(~allowed_BV[:, None], NEG_INF)

    def keep_rows(self, rows_B: Tensor) -> None:
        """Continue with sentences `rows_B` only."""
        super().keep_rows(rows_B)
        assert self.lists is not None
        tokens_P, spans_B2 = self.lists
        self.lists, self.sentences_B = (tokens_P, spans_B2[rows_B]), self.sentences_B[rows_B]


class ShortlistStepper:
    """A stepper that predicts the tokens of a shortlist only.

    Args:
        stepper: predicts all tokens.
        output: the output matrix of its model.
        vocabulary: the tokens that the sentences may use, and their numbers in the search.
    """

    def __init__(self, stepper: Stepper, output: nn.Module, vocabulary: ReducedVocabulary) -> None:
        self.stepper = stepper
        self.tokens_U, self.forbidden_B1U = vocabulary.tokens_U, vocabulary.forbidden_B1U
        self.output = select_rows(output, self.tokens_U)
        self.vocab_size = len(self.tokens_U)

    def step(self, tokens_BK: Tensor) -> Tensor:
        """Append the newest tokens, by their numbers, and return the hidden states [B, K, D]."""
        return self.stepper.step(self.tokens_U[tokens_BK])

    def logits(self, hidden_BKD: Tensor, first: int = 0) -> Tensor:
        """Return the logits [B, K, U] of the next token, -inf for those that are not in the list of a sentence."""
        logits_BKU: Tensor = self.output(hidden_BKD)
        return logits_BKU.masked_fill_(self.forbidden_B1U[first : first + len(logits_BKU)], NEG_INF)

    def reorder(self, parents_BK: Tensor) -> None:
        """Continue with hypotheses `parents_BK` of each sentence."""
        self.stepper.reorder(parents_BK)

    def keep_rows(self, rows_B: Tensor) -> None:
        """Continue with sentences `rows_B` only."""
        self.stepper.keep_rows(rows_B)
        self.forbidden_B1U = self.forbidden_B1U[rows_B]

    def attention(self) -> Tensor:
        """Return the attention of the last step."""
        return self.stepper.attention()


class EnsembleStepper:
    """Several models that share their vocabularies, with their probabilities averaged at each step."""

    def __init__(self, steppers: Sequence[Stepper]) -> None:
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
