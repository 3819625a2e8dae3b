"""Word-level distillation: the loss against a direct computation, and which teachers are taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_consistency import R_DROP, SIMCUT, direct, model_and_batch, streams
from torch import Tensor

from mtkit.config.sections import ModelConfig
from mtkit.model.transformer import Transformer
from mtkit.training import loss as loss_module
from mtkit.training.distillation import TeacherPredictions, Teachers
from mtkit.training.loss import Consistency, loss_sums
from mtkit.training.parallel import Objective


def teacher(seed: int, width: int, V: int = 7, **keys: object) -> Transformer:
    """Return a random teacher that computes in double precision."""
    torch.manual_seed(seed)
    config = ModelConfig.model_validate(
        {"d_model": width, "encoder_layers": 1, "decoder_layers": 1, "num_heads": 1, "dropout": 0.5, **keys}
    )
    model = Transformer(config, V, V).double().eval()
    model.compute_dtype = torch.float64
    return model


def with_teachers(
    M: int = 9, weight: float = 0.3, temperature: float = 2.0
) -> tuple[TeacherPredictions, Tensor]:
    """Return what two teachers of different widths predict, and the mean of their distributions, directly."""
    models = [teacher(1, 6, output_bias=True), teacher(2, 10)]
    torch.manual_seed(3)
    hidden = [torch.randn(M, width, dtype=torch.float64) for width in (6, 10)]
    logits = [model.logits(own).detach() for model, own in zip(models, hidden, strict=True)]
    mean = (torch.stack(logits) / temperature).softmax(dim=-1).mean(dim=0)
    with torch.no_grad():
        return TeacherPredictions(models, hidden, weight, temperature), mean


def taught(logits: Tensor, targets: Tensor, probabilities: Tensor, weight: float, T: float) -> Tensor:
    """The loss of one stream as Hinton et al. write it, by autograd."""
    own = F.cross_entropy(logits, targets, label_smoothing=0.1, reduction="sum")
    return (1 - weight) * own + weight * T**2 * F.cross_entropy(logits / T, probabilities, reduction="sum")


@pytest.mark.parametrize(("weight", "temperature"), [(0.3, 2.0), (1.0, 1.0)])
@pytest.mark.parametrize("chunk", [4, 1024])
def test_loss_and_gradients_equal_a_direct_computation(
    weight: float, temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_POSITIONS", chunk)
    hidden, weights, bias, targets = streams()
    distillation, mean = with_teachers(weight=weight, temperature=temperature)
    sums = loss_sums(hidden[0], weights, targets, 0.1, bias, distillation=distillation)
    expected = taught(hidden[0] @ weights.T + bias, targets, mean, weight, temperature)
    assert sums.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    nll = F.cross_entropy(hidden[0] @ weights.T + bias, targets, reduction="sum").item()
    assert sums.nll.item() == pytest.approx(nll, rel=1e-12)
    mine, theirs = (torch.autograd.grad(2 * own, (hidden, weights, bias)) for own in (sums.loss, expected))
    for ours, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("method", [SIMCUT, R_DROP], ids=["simcut", "r_drop"])
def test_both_streams_learn_from_the_teachers(method: Consistency) -> None:
    hidden, weights, bias, targets = streams()
    distillation, mean = with_teachers()
    sums = loss_sums(hidden, weights, targets, 0.1, bias, method, distillation)
    expected = direct(hidden, weights, bias, targets, method)
    for share, own in zip(method.cross_entropy, hidden @ weights.T + bias, strict=True):
        plain = F.cross_entropy(own, targets, label_smoothing=0.1, reduction="sum")
        expected = expected + share * (taught(own, targets, mean, 0.3, 2.0) - plain)
    assert sums.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    mine, theirs = (torch.autograd.grad(own, (hidden, weights, bias)) for own in (sums.loss, expected))
    for ours, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-12, rtol=1e-11)


def test_the_cpu_processes_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weights, bias, targets = streams()
    distillation, _ = with_teachers()
    whole = loss_sums(hidden[0], weights, targets, 0.1, bias, distillation=distillation).loss
    monkeypatch.setattr(loss_module, "_ROWS_IN_CACHE", 2)
    blocks = loss_sums(hidden[0], weights, targets, 0.1, bias, distillation=distillation).loss
    assert blocks.item() == pytest.approx(whole.item(), rel=1e-12)


def test_a_student_that_agrees_with_its_only_teacher_has_no_gradient() -> None:
    """Teachers run without dropout, on the batch as it is; their weights are not trained and not part of the module."""
    model, batch = model_and_batch(dropout=0.0)
    same, _ = model_and_batch(dropout=0.5)
    teachers = Teachers([same.train()], weight=1.0, temperature=3.0)
    objective = Objective(model, 0.1, teachers=teachers)
    assert {*map(id, objective.parameters())} == {*map(id, model.parameters())}
    loss, _ = objective.train()(batch)
    for gradient in torch.autograd.grad(loss, list(model.parameters()), allow_unused=True):
        assert gradient is not None and gradient.abs().max() < 1e-4
    assert all(not parameter.requires_grad for parameter in same.parameters())


def test_teachers_are_known_by_their_weights() -> None:
    one, other = Teachers([teacher(1, 6)], 0.5, 1.0), Teachers([teacher(2, 6)], 0.5, 1.0)
    assert one.fingerprint() == Teachers([teacher(1, 6)], 0.9, 2.0).fingerprint() != other.fingerprint()
    assert one.num_bytes == 8 * one.models[0].num_parameters()
