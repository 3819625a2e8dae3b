"""Word-level knowledge distillation: a student learns the predictions of trained models, its teachers.

The loss of a target token is (1 - weight) x its label-smoothed cross-entropy + weight x T^2 x the cross-entropy between
the teachers' distribution and the student's, both at temperature T (Hinton et al. 2015, section 2; Kim and Rush 2016,
section 3.1). T^2 keeps the size of the gradients. Of several teachers the probabilities are averaged.

Shapes: B batch, S source length, T target length, M real target positions, C positions of a chunk, D width of a
teacher, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mtkit.config.sections import Config
from mtkit.data.tokenizer import Tokenizers
from mtkit.errors import ConfigError
from mtkit.model.transformer import Transformer
from mtkit.translation.loading import load_model

_WHERE = "training.distillation.teacher"


class TeacherPredictions:
    """Predictions of teachers at the real target positions of a batch. Their logits exist for a chunk at a time.

    Args:
        teachers: the models.
        hidden: decoder output [M, D] of each.
        weight: share of the loss that their predictions have.
        temperature: T.
    """

    def __init__(
        self, teachers: Sequence[Transformer], hidden: Sequence[Tensor], weight: float, temperature: float
    ) -> None:
        self.teachers, self.hidden = teachers, hidden
        self.weight, self.temperature = weight, temperature

    def probabilities(self, positions: slice, dtype: torch.dtype) -> Tensor:
        """Return the mean of the teachers' distributions at some positions: [C, V]."""
        mean_CV: Tensor | None = None
        for teacher, hidden_MD in zip(self.teachers, self.hidden, strict=True):
            logits_CV = teacher.logits(hidden_MD[positions]).to(dtype)
            probabilities_CV = logits_CV.div_(self.temperature).softmax(dim=1)
            mean_CV = probabilities_CV if mean_CV is None else mean_CV.add_(probabilities_CV)
        assert mean_CV is not None, "at least one teacher"
        return mean_CV.div_(len(self.teachers))

    def mix(
        self, logits_CV: Tensor, teachers_CV: Tensor, own_loss: Tensor, own_gradient_CV: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of the loss with the teachers' part, and its gradient [C, V] in the student's logits.

        The gradient of T^2 x the cross-entropy is T x (student's distribution - teachers').

        Args:
            logits_CV: logits of the student.
            teachers_CV: `probabilities`.
            own_loss: sum of the loss without teachers.
            own_gradient_CV: its gradient; overwritten.
        """
        T, weight = self.temperature, self.weight
        log_probs_CV = (logits_CV / T).log_softmax(dim=1)
        cross_entropy = -torch.dot(teachers_CV.flatten(), log_probs_CV.flatten())
        gradient_CV = own_gradient_CV.mul_(1 - weight).add_(
            log_probs_CV.exp_() - teachers_CV, alpha=weight * T
        )
        return (1 - weight) * own_loss + weight * T**2 * cross_entropy, gradient_CV


class Teachers:
    """Trained models that a student learns from.

    Args:
        models: at least one, with the student's vocabularies.
        weight: share of the loss that their predictions have.
        temperature: temperature of all distributions in that part.
    """

    def __init__(self, models: Sequence[Transformer], weight: float, temperature: float) -> None:
        self.models, self.weight, self.temperature = tuple(models), weight, temperature
        for model in self.models:
            model.eval().requires_grad_(False)

    @property
    def num_bytes(self) -> int:
        """Bytes of their weights in memory."""
        return sum(p.numel() * p.element_size() for model in self.models for p in model.parameters())

    def fingerprint(self) -> str:
        """Return a hash of their weights, as long as they are as they were loaded."""
        digest = hashlib.sha256()
        for model in self.models:
            for name, parameter in model.named_parameters():
                digest.update(f"{name} {list(parameter.shape)} ".encode())
                digest.update(parameter.detach().contiguous().numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move their weights to a device, in the dtype of its matrix products."""
        for model in self.models:
            model.to(device=device, dtype=dtype)
            model.compute_dtype = dtype

    @torch.no_grad()
    def read(
        self, src_BS: Tensor, tgt_in_BT: Tensor, at_targets: Callable[[Tensor], Tensor]
    ) -> TeacherPredictions:
        """Run the teachers on a batch; `at_targets` selects its real target positions (see `TensorBatch`)."""
        hidden = [at_targets(model(src_BS, tgt_in_BT))[0] for model in self.models]
        return TeacherPredictions(self.models, hidden, self.weight, self.temperature)


def load_teachers(config: Config, tokenizers: Tokenizers) -> Teachers | None:
    """Load the teachers that a config names, in float32 on the CPU; None if it names none.

    Args:
        config: config of the run.
        tokenizers: tokenizers of the student.

    Raises:
        ConfigError: If the vocabularies of a teacher differ from the student's, or it cannot read the same sentences.
        StorageError: If a folder or a file in it is missing or damaged.
    """
    distillation = config.training.distillation
    if distillation is None:
        return None
    models = []
    for path in distillation.teacher:
        theirs, own_tokenizers, model = load_model(Path(path))
        _check_vocabularies(path, own_tokenizers, tokenizers)
        if model.source_eos != config.model.source_eos:
            what = f"model.source_eos of the teacher {path} is {model.source_eos}, that of this run is not"
            raise ConfigError(what, where=_WHERE, hint="teacher and student read the same tokens")
        if config.data.reverse and (not theirs.data.reverse or theirs.data.reverse_epochs is not None):
            what = f"data.reverse needs teachers of both directions, and {path} was trained on one"
            raise ConfigError(what, where=_WHERE, hint="leave data.reverse out, or train a teacher with it")
        longest = config.data.max_length + 1
        if theirs.model.positions == "learned" and theirs.model.max_positions < longest:
            what = f"the teacher {path} has {theirs.model.max_positions} positions, which are fewer than {longest}"
            raise ConfigError(what, where=_WHERE, hint="lower data.max_length")
        models.append(model)
    return Teachers(models, distillation.weight, distillation.temperature)


def _check_vocabularies(path: str, theirs: Tokenizers, own: Tokenizers) -> None:
    """Check that a teacher has the vocabularies of the student.

    Raises:
        ConfigError: If it does not.
    """
    if theirs.fingerprint == own.fingerprint:
        return
    keys = "tokenizer.model" if theirs.joint else "tokenizer.src_model and tokenizer.tgt_model"
    raise ConfigError(
        f"the vocabularies of the teacher {path} differ from those of this run",
        where=_WHERE,
        hint=f"set {keys} to the files of the teacher",
    )
