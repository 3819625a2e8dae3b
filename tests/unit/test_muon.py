"""Muon against the formula with a singular value decomposition, matrix by matrix; what it is for, and its state."""

from __future__ import annotations

import copy
import math

import pytest
import safetensors.torch
import torch
from torch import Tensor

from mtkit.config.loading import parse_config
from mtkit.config.sections import ModelConfig, TrainingConfig
from mtkit.errors import ConfigError
from mtkit.model.transformer import Transformer
from mtkit.training import muon as muon_module
from mtkit.training.muon import layer_matrices, orthogonalize
from mtkit.training.optimizer import (
    load_optimizer_state_dict,
    make_optimizer,
    make_scaler,
    optimizer_state_dict,
    set_learning_rate,
)

MUON = TrainingConfig(optimizer="muon", weight_decay=0.1)


def make(**keys: object) -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=16, encoder_layers=2, decoder_layers=1, num_heads=4, num_kv_heads=2, d_ff=24,
        activation="swiglu", positions="relative", dropout=0.0,
    ).model_copy(update=keys)  # fmt: skip
    return Transformer(config, 12, 12)


def set_gradients(model: Transformer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = (
            torch.randn(parameter.shape, generator=generator) if parameter.requires_grad else None
        )


def polynomial(singular: Tensor, num_iterations: int = 4) -> Tensor:
    """What iterations make of singular values: each is a polynomial of its own."""
    for _ in range(num_iterations):
        singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
    return singular


def by_decomposition(matrix: Tensor) -> Tensor:
    """Orthogonalize a matrix through its singular values."""
    u, singular, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    num_iterations = 4 if min(matrix.shape) <= 256 else 5
    return u @ polynomial(singular / matrix.double().norm(), num_iterations).diag() @ v


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (1, 5), (256, 300), (260, 257)])
def test_iterations_are_a_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    matrices = torch.randn(3, *shape, dtype=torch.float64) * 1e-4
    found = orthogonalize(matrices)
    for matrix, mine in zip(matrices, found, strict=True):
        torch.testing.assert_close(mine, by_decomposition(matrix), atol=1e-9, rtol=1e-7)
    singular = torch.linalg.svdvals(orthogonalize(torch.randn(1, 32, 64)))
    assert 0.6 < singular.min() < singular.max() < 1.3
    assert not orthogonalize(torch.zeros(1, *shape)).any()


def rows(name: str) -> list[int]:
    """Rows of the parts of a fused matrix: 4 heads of width 4, 2 of them for keys and values, and a gate."""
    return {"qkv": [16, 8, 8], "kv": [8, 8], "inner": [24, 24]}.get(name.split(".")[-2], [])


@pytest.mark.parametrize(("batch_elements", "num_workers"), [(1, 3), (600, 1), (2**17, 2)])
def test_updates_are_muon_written_out(
    batch_elements: int, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(muon_module._BATCH_ELEMENTS, "cpu", batch_elements)
    model = make()
    optimizer = make_optimizer(model, MUON, num_workers=num_workers)
    others = copy.deepcopy(model)
    adamw = make_optimizer(others, TrainingConfig(weight_decay=0.1))
    matrices = [name for name, p in model.named_parameters() if p in layer_matrices(model)]
    assert len(matrices) == 2 * 4 + 7
    weights = {name: model.get_parameter(name).detach().double() for name in matrices}
    momenta = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step in range(1, 4):
        rate = 0.1 / step
        for own, each in ((model, optimizer), (others, adamw)):
            set_gradients(own, step)
            set_learning_rate(each, rate)
            each.step()
        for name, weight in weights.items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            momenta[name] = 0.95 * momenta[name] + gradient.double()
            update = gradient.double() + 0.95 * momenta[name]
            parts = [
                by_decomposition(part) * 0.2 * math.sqrt(max(part.shape))
                for part in update.split(rows(name) or [len(update)])
            ]
            weights[name] = weight - rate * (0.1 * weight + torch.cat(parts))
            torch.testing.assert_close(
                model.get_parameter(name).double(), weights[name], atol=2e-5, rtol=1e-4
            )
    for name, parameter in model.named_parameters():
        if name not in matrices:
            assert torch.equal(parameter, others.get_parameter(name)), name  # AdamW's


def test_an_update_is_as_large_as_one_of_adamw() -> None:
    model = make(d_model=64, d_ff=256, num_heads=4, num_kv_heads=4, activation="relu")
    optimizer = make_optimizer(model, TrainingConfig(optimizer="muon"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    set_gradients(model, 1)
    set_learning_rate(optimizer, 0.01)
    optimizer.step()
    for name, parameter in model.named_parameters():
        if parameter in layer_matrices(model):
            rms = (parameter - before[name]).square().mean().sqrt().item()
            assert 0.1 * 0.01 < rms < 0.3 * 0.01, name


def test_it_is_for_matrices_of_layers_that_are_not_frozen() -> None:
    model = make()
    names = {name for name, p in model.named_parameters() if p in layer_matrices(model)}
    linear = {name for name, p in model.named_parameters() if p.dim() == 2 and "relative" not in name}
    assert names == linear - {"src_embedding.weight", "tgt_embedding.weight", "output.weight"}
    model.encoder.requires_grad_(False)
    optimizer = make_optimizer(model, MUON)
    before = copy.deepcopy(model)
    set_gradients(model, 1)
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name)) == name.startswith("encoder."), name


def test_saved_state_gives_the_same_next_updates_bit_for_bit() -> None:
    model = make()
    optimizer = make_optimizer(model, MUON)
    assert optimizer_state_dict(model, optimizer) == {}
    for step in range(3):
        set_gradients(model, step)
        set_learning_rate(optimizer, 0.01)
        optimizer.step()
    tensors = optimizer_state_dict(model, optimizer)
    names = {name for name, p in model.named_parameters() if p in layer_matrices(model)}
    assert {key.partition("/")[2] for key in tensors if key.startswith("momentum/")} == names
    assert not {key for key in tensors if key.startswith("exp_avg") and key.partition("/")[2] in names}
    saved = safetensors.torch.save(tensors)
    resumed = copy.deepcopy(model)
    second = make_optimizer(resumed, MUON)
    load_optimizer_state_dict(resumed, second, safetensors.torch.load(saved))
    for own, each in ((model, optimizer), (resumed, second)):
        set_gradients(own, 9)
        set_learning_rate(each, 0.01)
        each.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_matrix_products_are_in_bfloat16_where_training_is() -> None:
    updates = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = make()
        optimizer = make_optimizer(model, MUON, dtype)
        set_gradients(model, 1)
        set_learning_rate(optimizer, 1.0)
        optimizer.step()
        updates.append(model.encoder[0].attention.out.weight.detach().clone())  # type: ignore[union-attr]
    assert torch.equal(updates[0], updates[1])
    assert not torch.equal(updates[0], updates[2])
    torch.testing.assert_close(updates[0], updates[2], atol=0.05, rtol=0.05)


def test_the_loss_scale_of_fp16_is_undone_and_an_overflow_skips_the_update() -> None:
    plain, scaled = make(), make()
    optimizers = [make_optimizer(model, MUON) for model in (plain, scaled)]
    scaler = make_scaler(torch.device("cpu"), torch.float16)
    scaler.scale(torch.ones(1))  # the scale is made when it is first needed
    for model, optimizer in zip((plain, scaled), optimizers, strict=True):
        set_gradients(model, 1)
        set_learning_rate(optimizer, 0.01)
    optimizers[0].step()
    for parameter in scaled.parameters():
        assert parameter.grad is not None
        parameter.grad *= scaler.get_scale()
    scaler.unscale_(optimizers[1])
    scaler.step(optimizers[1])
    scaler.update()
    for mine, theirs in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    before = copy.deepcopy(scaled)
    next(scaled.parameters()).grad[0, 0] = math.inf  # type: ignore[index]
    scaler.unscale_(optimizers[1])
    scaler.step(optimizers[1])
    for mine, theirs in zip(before.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lora": {"rank": 2}}, "optimizer muon needs whole matrices: leave out lora"),
        ({"parallel": "fsdp"}, "optimizer muon needs parallel ddp"),
    ],
)
def test_what_has_no_whole_matrices_is_refused(keys: dict[str, object], message: str) -> None:
    data = {"src": "en", "tgt": "de", "train": [{"path": "x.tsv"}]}
    with pytest.raises(ConfigError, match=message):
        parse_config({
            "run": "r", "init": "elsewhere", "data": data, "training": {"optimizer": "muon", **keys},
        })  # fmt: skip
