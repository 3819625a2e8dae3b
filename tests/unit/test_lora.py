"""LoRA against its definition: outputs, gradients, merging, and which matrices have an adapter."""

from __future__ import annotations

import pytest
import torch

from mtkit.config.sections import LoraConfig, ModelConfig
from mtkit.model.attention import Linear
from mtkit.model.lora import LoraLinear, add_adapters, merge_adapters
from mtkit.model.transformer import Transformer


def make_model(**keys: object) -> Transformer:
    torch.manual_seed(0)
    values = {
        "d_model": 16,
        "num_heads": 4,
        "num_kv_heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "dropout": 0.0,
    }
    return Transformer(ModelConfig(**(values | keys)), 20, 20)  # type: ignore[arg-type]


def test_full_rank_adapters_have_the_gradients_of_the_matrix() -> None:
    """With a full rank and A the identity, B gets alpha/r times the gradient that the matrix would get."""
    torch.manual_seed(1)
    linear, lora = Linear(6, 12), LoraConfig(rank=6, alpha=3.0)
    x, target = torch.randn(5, 6), torch.randn(5, 12)
    (linear(x) - target).square().sum().backward()
    assert linear.weight.grad is not None
    expected = linear.weight.grad.clone()
    adapted = LoraLinear(linear, {"q": 8, "k": 2, "v": 2}, lora)
    for part in ("q", "k", "v"):
        torch.nn.init.eye_(adapted.get_parameter(f"lora_{part}_a"))
    (adapted(x) - target).square().sum().backward()
    found = torch.cat([adapted.get_parameter(f"lora_{part}_b").grad for part in ("q", "k", "v")])  # type: ignore[misc]
    torch.testing.assert_close(found, 0.5 * expected)
    for part in ("q", "k", "v"):  # and A that of B, which is zero
        assert not adapted.get_parameter(f"lora_{part}_a").grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("keys", [{}, {"activation": "swiglu", "num_kv_heads": 4, "bias": False}])
def test_a_model_with_adapters_computes_what_it_computes_merged(keys: dict[str, object]) -> None:
    model, lora = (
        make_model(**keys).eval(),
        LoraConfig(rank=3, alpha=7.0, targets=("q", "k", "v", "out", "inner", "outer")),
    )
    src, tgt = torch.randint(0, 20, (3, 5)), torch.randint(0, 20, (3, 4))
    with torch.no_grad():
        before = model(src, tgt)
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    add_adapters(model, lora)
    with torch.no_grad():
        torch.testing.assert_close(model(src, tgt), before)  # B is zero
        adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for parameter in adapters.values():
            parameter.normal_(std=0.3)
        found = model(src, tgt)
    merged = make_model(**keys).eval()
    merged.load_state_dict(merge_adapters(base, adapters, lora), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(merged(src, tgt), found, atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 0.1
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == base.keys()


def test_targets_are_names_or_patterns() -> None:
    model = make_model()
    add_adapters(model, LoraConfig(targets=("decoder.1.cross.q", "encoder.*.v", "inner")))
    found = {name.removesuffix("_a") for name, _ in model.named_parameters() if name.endswith("_a")}
    assert found == {
        "decoder.1.cross.q.lora_q", "encoder.0.attention.qkv.lora_v", "encoder.0.feed_forward.inner.lora_inner",
        "decoder.0.feed_forward.inner.lora_inner", "decoder.1.feed_forward.inner.lora_inner",
    }  # fmt: skip
    assert model.get_parameter("encoder.0.attention.qkv.lora_v_b").shape == (8, 8)


def test_dropout_is_on_what_the_adapters_multiply() -> None:
    torch.manual_seed(0)
    adapted = LoraLinear(Linear(8, 8), {"q": 8}, LoraConfig(dropout=0.5))
    x = torch.randn(4, 8)
    torch.testing.assert_close(adapted.train()(x), adapted.eval()(x))  # B is zero
    torch.nn.init.ones_(adapted.get_parameter("lora_q_b"))
    assert not torch.allclose(adapted.train()(x), adapted.eval()(x))


def test_adapters_that_do_not_fit_are_refused() -> None:
    weights, lora = {"x.q.weight": torch.zeros(4, 4)}, LoraConfig(rank=2)
    for adapters in (
        {"x.q.lora_q_a": torch.zeros(2, 4)},
        {"x.q.lora_q_a": torch.zeros(2, 4), "x.q.lora_q_b": torch.zeros(4, 3)},
        {"x.q.lora_q_a": torch.zeros(2, 5), "x.q.lora_q_b": torch.zeros(4, 2)},
        {"y.q.lora_q_a": torch.zeros(2, 4), "y.q.lora_q_b": torch.zeros(4, 2)},
        {"x.q.lora_k_a": torch.zeros(2, 4), "x.q.lora_k_b": torch.zeros(9, 2)},
    ):
        with pytest.raises(ValueError, match="does not fit the weights"):
            merge_adapters(weights, adapters, lora)
