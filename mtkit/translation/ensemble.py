"""One model, or several whose probabilities are averaged, for search and scoring.

Shapes: B sentences, S source length, T target length, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from mtkit.data.batching import Ids, collate_sources, collate_tokens
from mtkit.data.tokenizer import Tokenizers
from mtkit.model.cpu.native.model import NativeModel
from mtkit.model.transformer import Transformer
from mtkit.search.buckets import Buckets, StaticStepper
from mtkit.search.shortlist import ReducedVocabulary, TokenLists
from mtkit.search.state import Stepper
from mtkit.search.steppers import (
    EnsembleStepper,
    ModelStepper,
    NativeListStepper,
    NativeStepper,
    ShortlistStepper,
    mean_log_probs,
)


class Ensemble:
    """Models on one device, with the tokenizers that they share.

    Args:
        models: at least one; the first one aligns.
        tokenizers: the tokenizers of both sides.
        native: the same models in the compiled library, for the search; none if it cannot run them.
        buckets: the same models in fixed shapes, for the search on a GPU; None if caches grow with each step.
        pack: packs a model for a CPU before PyTorch computes with it; a search in the compiled library does without.
    """

    def __init__(
        self,
        models: Sequence[Transformer],
        tokenizers: Tokenizers,
        native: Sequence[NativeModel] = (),
        buckets: Buckets | None = None,
        pack: Callable[[Transformer], None] | None = None,
    ) -> None:
        self.tokenizers, self.native, self.buckets = tokenizers, tuple(native), buckets
        self.device, self.source_eos = next(models[0].parameters()).device, models[0].source_eos
        self._models, self._pack = tuple(models), pack
        self._packing = threading.Lock()

    @property
    def models(self) -> tuple[Transformer, ...]:
        """The models, for PyTorch to compute with."""
        self.pack()
        return self._models

    def pack(self) -> None:
        """Pack the models, unless they are. What is done before workers are forked is in memory once."""
        with self._packing:
            if self._pack is not None:
                for model in self._models:
                    self._pack(model)
            self._pack = None

    def __len__(self) -> int:
        """Return the number of models."""
        return len(self._models)

    def exclusive(self) -> AbstractContextManager[object]:
        """Return what a search holds while it lasts: buckets are for one at a time."""
        return nullcontext() if self.buckets is None else self.buckets.lock

    def sources(self, sentences: Sequence[Ids]) -> Tensor:
        """Return sources as the models expect them, padded: [B, S]."""
        src = self.tokenizers.src
        return self._tensor(collate_sources(sentences, src.pad, src.eos, self.source_eos))

    def targets_in(self, sentences: Sequence[Ids]) -> Tensor:
        """Return targets that begin with bos, padded: [B, T]."""
        tgt = self.tokenizers.tgt
        return self._tensor(collate_tokens(list(sentences), tgt.pad, bos=tgt.bos))

    def targets_out(self, sentences: Sequence[Ids]) -> Tensor:
        """Return targets that end with eos, padded: [B, T]."""
        tgt = self.tokenizers.tgt
        return self._tensor(collate_tokens(list(sentences), tgt.pad, eos=tgt.eos))

    def searches_natively(self, keep_attention: bool) -> bool:
        """Return whether the steps of a search are computed in the compiled library."""
        return bool(self.native) and not keep_attention

    def stepper(
        self,
        src_BS: Tensor,
        num_hypotheses: int,
        keep_attention: bool = False,
        vocabulary: ReducedVocabulary | TokenLists | None = None,
    ) -> Stepper:
        """Return a step function for these sources.

        Args:
            src_BS: the sources.
            num_hypotheses: hypotheses of each, from the second step on.
            keep_attention: whether the attention of each step is needed.
            vocabulary: the tokens of a shortlist, in the compiled library as lists of each sentence; None for all.
        """
        steppers: list[Stepper] = []
        for index in range(len(self)):
            stepper: Stepper
            if self.searches_natively(keep_attention):
                if isinstance(vocabulary, TokenLists):
                    stepper = NativeListStepper(self.native[index], src_BS, vocabulary)
                else:
                    stepper = NativeStepper(self.native[index], src_BS)
            elif self.buckets is not None and not keep_attention:
                stepper = StaticStepper(self.buckets, index, src_BS, num_hypotheses)
            else:
                stepper = ModelStepper(self.models[index], src_BS, keep_attention)
            if isinstance(vocabulary, ReducedVocabulary):
                stepper = ShortlistStepper(stepper, self.models[index].output, vocabulary)
            steppers.append(stepper)
        return steppers[0] if len(steppers) == 1 else EnsembleStepper(steppers)

    def hidden(self, src_BS: Tensor, tgt_in_BT: Tensor) -> list[Tensor]:
        """Return the hidden states [B, T, D] of given targets for each model."""
        return [model(src_BS, tgt_in_BT) for model in self.models]

    def log_probs(self, hidden: Sequence[Tensor]) -> Tensor:
        """Return the log-probabilities [..., V] of all tokens, given the hidden states [..., D] of each model."""
        return mean_log_probs([model.logits(h) for model, h in zip(self.models, hidden, strict=True)])

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)
