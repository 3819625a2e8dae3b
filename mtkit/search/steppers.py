"""Models seen as step functions (see `search.Stepper`): one Transformer, or several that vote.

Shapes: B sentences, K hypotheses, S source length, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtkit.model.transformer import Transformer


class ModelStepper:
    """A Transformer that holds sentences.

    Args:
        src_BS: the sentences, padded.
        keep_attention: remember what each step attends to.
    """

    def __init__(self, model: Transformer, src_BS: Tensor, keep_attention: bool = False) -> None:
        self.model = model
        self.state = model.init_state(model.encode(src_BS), model.source_mask(src_BS))
        self.state.keep_weights = keep_attention
        self.vocab_size = model.tgt_embedding.num_embeddings

    def step(self, tokens_BK: Tensor) -> Tensor:
        """Hidden states [B, K, D]."""
        return self.model.step(tokens_BK, self.state)

    def logits(self, hidden_BKD: Tensor) -> Tensor:
        """Logits [B, K, V]."""
        return self.model.logits(hidden_BKD)

    def reorder(self, parents_BK: Tensor) -> None:
        """Continue with these hypotheses."""
        self.state.reorder(parents_BK)

    def keep(self, sentences_B: Tensor) -> None:
        """Continue with these sentences alone."""
        self.state.keep(sentences_B)

    def attention(self) -> Tensor:
        """Mean over heads and layers of the last step's cross-attention, [B, K, S]; 1 at padding."""
        weights_BKS = torch.stack(self.state.weights_BKS).mean(dim=0)
        return weights_BKS.masked_fill(~self.state.memory_mask[:, 0], 1.0)


class EnsembleStepper:
    """Several models, whose probabilities are averaged at each step. They share their vocabularies."""

    def __init__(self, steppers: Sequence[ModelStepper]) -> None:
        self.steppers = steppers
        self.vocab_size = steppers[0].vocab_size
        self.widths: list[int] = []

    def step(self, tokens_BK: Tensor) -> Tensor:
        """The hidden states of all models side by side: [B, K, sum of their D]."""
        hidden = [stepper.step(tokens_BK) for stepper in self.steppers]
        self.widths = [h.shape[-1] for h in hidden]
        return torch.cat(hidden, dim=-1)

    def logits(self, hidden_BKD: Tensor) -> Tensor:
        """Log of the mean probability: [B, K, V]."""
        parts = zip(self.steppers, hidden_BKD.split(self.widths, dim=-1), strict=True)
        return mean_log_probs([stepper.logits(part) for stepper, part in parts])

    def reorder(self, parents_BK: Tensor) -> None:
        """Continue with these hypotheses."""
        for stepper in self.steppers:
            stepper.reorder(parents_BK)

    def keep(self, sentences_B: Tensor) -> None:
        """Continue with these sentences alone."""
        for stepper in self.steppers:
            stepper.keep(sentences_B)

    def attention(self) -> Tensor:
        """Mean over the models: [B, K, S]."""
        return torch.stack([stepper.attention() for stepper in self.steppers]).mean(dim=0)


def mean_log_probs(logits: Sequence[Tensor]) -> Tensor:
    """The log of the mean probability, [..., V], of several models' logits; of one model its log-probabilities."""
    log_probs = [each.log_softmax(dim=-1, dtype=torch.float32) for each in logits]
    if len(log_probs) == 1:
        return log_probs[0]
    return torch.stack(log_probs).logsumexp(dim=0) - math.log(len(log_probs))
