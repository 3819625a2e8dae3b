"""AdamW against its formula, a state that survives saving bit for bit, and the EMA."""

from __future__ import annotations

import copy
import math

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from mtkit.config.sections import ModelConfig, TrainingConfig
from mtkit.model.transformer import Transformer
from mtkit.training.loss import loss_sums
from mtkit.training.optimizer import (
    ExponentialMovingAverage,
    load_optimizer_state_dict,
    make_optimizer,
    optimizer_state_dict,
    set_learning_rate,
)


def make_model(tie_embeddings: str = "three-way") -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=8,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=1,
        positions="relative",
        tie_embeddings=tie_embeddings,
        dropout=0.2,
    )
    return Transformer(config, 16, 16, 0)


def update(model: Transformer, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Make one update with tokens that depend on the step."""
    torch.manual_seed(step)
    src, tgt = torch.randint(4, 16, (3, 5)), torch.randint(4, 16, (3, 6))
    hidden = model(src, tgt)
    loss_sums(hidden.flatten(0, 1), model.output.weight, tgt.flatten(), 0.1).loss.backward()
    set_learning_rate(optimizer, 0.01 / step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    for (name, ours), (_, theirs) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("tied", ["three-way", "none"])
def test_saved_state_gives_the_same_next_updates_bit_for_bit(tied: str, steps: int) -> None:
    training = TrainingConfig(weight_decay=0.1)
    model = make_model(tied)
    optimizer = make_optimizer(model, training)
    for step in range(1, steps + 1):
        update(model, optimizer, step)
    saved = safetensors.torch.save(
        {k: v.contiguous() for k, v in optimizer_state_dict(model, optimizer).items()}
    )
    resumed = copy.deepcopy(model)
    second = make_optimizer(resumed, training)
    load_optimizer_state_dict(resumed, second, safetensors.torch.load(saved))
    for step in range(steps + 1, steps + 4):
        update(model, optimizer, step)
        update(resumed, second, step)
        assert_same_weights(model, resumed)
    ours, theirs = optimizer_state_dict(model, optimizer), optimizer_state_dict(resumed, second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_state_is_named_by_key_and_parameter() -> None:
    model = make_model()
    optimizer = make_optimizer(model, TrainingConfig())
    assert optimizer_state_dict(model, optimizer) == {}
    update(model, optimizer, 1)
    names = [name for name, _ in model.named_parameters()]
    expected = {f"{key}/{name}" for name in names for key in ("step", "exp_avg", "exp_avg_sq")}
    tensors = optimizer_state_dict(model, optimizer)
    assert tensors.keys() == expected
    assert tensors["step/src_embedding.weight"].item() == 1.0
    assert tensors["exp_avg/src_embedding.weight"].shape == (16, 8)


def test_a_fresh_state_would_not_do() -> None:
    """The round trip above would show nothing if the state did not matter."""
    model = make_model()
    optimizer = make_optimizer(model, TrainingConfig())
    update(model, optimizer, 1)
    fresh = copy.deepcopy(model)
    update(model, optimizer, 2)
    update(fresh, make_optimizer(fresh, TrainingConfig()), 2)
    assert not torch.equal(model.output.weight, fresh.output.weight)


def test_updates_are_adamw_written_out() -> None:
    torch.manual_seed(1)
    layer = nn.Linear(4, 3, bias=False).double()
    training = TrainingConfig(betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2)
    optimizer = make_optimizer(layer, training)
    weight = layer.weight.detach().clone()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 6):
        grad = torch.randn_like(weight)
        layer.weight.grad = grad.clone()
        set_learning_rate(optimizer, rate := 0.1 / step)
        optimizer.step()
        mean, square = 0.8 * mean + 0.2 * grad, 0.95 * square + 0.05 * grad**2
        denominator = (square / (1 - 0.95**step)).sqrt() + 1e-3
        weight = weight - rate * (0.2 * weight + mean / (1 - 0.8**step) / denominator)
        torch.testing.assert_close(layer.weight.detach(), weight, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("tied", ["three-way", "two-way", "none"])
def test_weight_decay_is_for_matrices_alone(tied: str) -> None:
    model = make_model(tied)
    optimizer = make_optimizer(model, TrainingConfig(weight_decay=0.3))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == dict(model.named_parameters()).keys()  # each once
    for name, value in decay.items():
        table = name.endswith(("relative.keys", "relative.values"))
        vector = name.endswith("bias") or "norm" in name
        embedding = name == "src_embedding.weight" or name == "tgt_embedding.weight"
        decays = not (table or vector or embedding)
        assert value == (0.3 if decays else 0.0), name


def test_embeddings_decay_if_that_is_asked_for() -> None:
    config = ModelConfig(
        d_model=8, num_heads=2, encoder_layers=1, decoder_layers=1, positions="learned", tie_embeddings="none"
    )
    model = Transformer(config, 16, 16, 0)
    decayed, _ = make_optimizer(model, TrainingConfig(decay_embeddings=True)).param_groups
    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() == 2}
    ids = {id(parameter) for parameter in decayed["params"]}
    assert {name for name, parameter in model.named_parameters() if id(parameter) in ids} == matrices


def test_one_rate_for_all_groups() -> None:
    optimizer = make_optimizer(make_model(), TrainingConfig())
    set_learning_rate(optimizer, 0.123)
    assert [group["lr"] for group in optimizer.param_groups] == [0.123, 0.123]


# --- moving average ----------------------------------------------------------------------------------------------


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_moving_average_is_the_formula() -> None:
    model = make_model()
    average = ExponentialMovingAverage(model, 0.7)
    expected = {name: weight.double() for name, weight in weights_of(model).items()}
    optimizer = make_optimizer(model, TrainingConfig())
    for step in range(1, 31):  # the full decay is reached at step 24
        update(model, optimizer, step)
        average.update(model, step)
        decay = min(0.7, step / (step + 10))
        for name, weight in weights_of(model).items():
            expected[name] = decay * expected[name] + (1 - decay) * weight.double()
            torch.testing.assert_close(average.weights[name].double(), expected[name], atol=1e-6, rtol=1e-5)


def test_swap_exchanges_and_a_second_one_puts_back_bit_for_bit() -> None:
    model = make_model()
    average = ExponentialMovingAverage(model, 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        model.encoder[0].feed_forward.inner.bias[:3] = torch.tensor([-0.0, math.nan, 1e-42])
    average.update(model, 5)
    own, averaged = weights_of(model), {name: weight.clone() for name, weight in average.weights.items()}

    def bits(weights: dict[str, Tensor]) -> dict[str, list[int]]:
        return {name: weight.view(torch.int32).flatten().tolist() for name, weight in weights.items()}

    average.swap(model)
    assert bits(weights_of(model)) == bits(averaged)
    assert bits(average.weights) == bits(own)
    assert model.src_embedding.weight is model.output.weight  # still one
    average.swap(model)
    assert bits(weights_of(model)) == bits(own)
    assert bits(average.weights) == bits(averaged)


def test_the_average_is_no_view_of_the_model() -> None:
    model = make_model()
    average = ExponentialMovingAverage(model, 0.9)
    before = {name: weight.clone() for name, weight in average.weights.items()}
    update(model, make_optimizer(model, TrainingConfig()), 1)
    assert all(torch.equal(average.weights[name], before[name]) for name in before)
    assert average.weights.keys() == weights_of(model).keys()
    assert not any(weight.requires_grad for weight in average.weights.values())
