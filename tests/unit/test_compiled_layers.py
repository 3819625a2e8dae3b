"""Compiled training: a graph for each kind of layer and one for the loss, whatever the lengths; the numbers stay.

The graphs run with PyTorch's own kernels here (backend "aot_eager"), so that they can be compared exactly; one test
compiles them for real.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mtkit.config.sections import ModelConfig
from mtkit.model import compiled as compiled_module
from mtkit.model import dropout as dropout_module
from mtkit.model.transformer import Transformer
from mtkit.training import loss as loss_module
from mtkit.training.loss import Consistency, TensorBatch
from mtkit.training.parallel import Objective

SIZES = {"d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "num_heads": 4, "d_ff": 48, "dropout": 0.0}
SHAPES = [
    (7, 13, 11),
    (5, 9, 12),
    (8, 8, 8),
    (1, 5, 6),
    (3, 20, 4),
    (6, 2, 3),
    (5, 1, 4),
    (4, 3, 1),
    (9, 6, 6),
]
"""B, S and T of batches: equal and unequal ones, and ones."""


def make_model(options: dict[str, Any]) -> Transformer:
    torch.manual_seed(1)
    return Transformer(ModelConfig.model_validate(SIZES | options), 60, 60).train()


def make_batch(B: int, S: int, T: int) -> TensorBatch:
    """Return random sentences whose last ones are shorter."""
    generator = torch.Generator().manual_seed(100 * S + T)
    src, tgt = (torch.randint(4, 60, (B, width), generator=generator) for width in (S, T))
    mask = torch.ones(B, T, dtype=torch.bool)
    if B > 2 and min(S, T) > 1:
        src[-2:, -1], mask[-1, -1] = 0, False
    links = torch.tensor([[0, 0, 0]])
    return TensorBatch(src, tgt, tgt.roll(-1, 1), mask, links)


def loss_and_gradient(
    model: Transformer, batch: TensorBatch, **options: Any
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of a batch and the gradients of the weights, with the same random numbers each time."""
    torch.manual_seed(7)
    model.zero_grad()
    loss, _ = Objective(model, 0.1, **options)(batch)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The graphs that are compiled; chunks of the loss are short."""
    from torch._dynamo.backends.debugging import aot_eager

    found: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        found.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    compiled_module.compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    monkeypatch.setattr(loss_module, "CHUNK_POSITIONS", 32)
    monkeypatch.setattr(loss_module, "_COMPILED_CHUNK_POSITIONS", 32)
    yield found
    compiled_module.compiled.cache_clear()
    torch._dynamo.reset()


DROPPING = {"dropout": 0.2, "attention_dropout": 0.1, "activation_dropout": 0.1, "layer_dropout": 0.4}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "relative positions": ({"positions": "relative", "max_relative_distance": 3}, {}, 3),
    "rotary positions, grouped heads": (
        {"positions": "rotary", "num_kv_heads": 2, "norm": "rmsnorm", "activation": "swiglu"}, {}, 3,
    ),
    "learned positions, norm after, shared layers": (
        {"positions": "learned", "norm_position": "post", "unique_decoder_layers": 1, "bias": False}, {}, 3,
    ),
    "dropout": (DROPPING, {}, 3),
    "simcut": (DROPPING | {"token_dropout": 0.1}, {"consistency": Consistency.simcut(3.0, 0.1)}, 3),
    "guided alignment": ({"alignment_layer": 2}, {"guided_alignment": 0.5}, 3),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recomputes"),
    [*((name, False) for name in OPTIONS), ("dropout", True), ("guided alignment", True)],
)
def test_batches_of_all_shapes_share_a_handful_of_graphs(
    name: str, recomputes: bool, graphs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model_options, options, most = OPTIONS[name]
    monkeypatch.setattr(
        dropout_module, "draws_with_pytorch", lambda x: True
    )  # eager and compiled draw the same
    eager = make_model(model_options)
    eager.recompute = recomputes
    model = copy.deepcopy(eager)
    model.compiles = True
    for shape in SHAPES:
        batch = make_batch(*shape)
        expected, expected_gradients = loss_and_gradient(eager, batch, **options)
        loss, gradients = loss_and_gradient(model, batch, **options)
        assert loss == pytest.approx(expected, rel=1e-5)
        assert gradients.keys() == expected_gradients.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[key], rtol=1e-4, atol=1e-5)
    assert 1 < len(graphs) <= most, len(graphs)


@pytest.mark.slow
def test_compiled_kernels_give_the_same_loss_and_gradient() -> None:
    """The whole compiler, in bf16, as a run uses it."""
    eager = make_model({"encoder_layers": 1, "decoder_layers": 1})
    eager.compute_dtype = torch.bfloat16
    model = copy.deepcopy(eager)
    model.compiles = True
    for shape in SHAPES[:3]:
        expected, expected_gradients = loss_and_gradient(eager, make_batch(*shape))
        loss, gradients = loss_and_gradient(model, make_batch(*shape))
        assert loss == pytest.approx(expected, rel=0.01)
        for key, gradient in gradients.items():
            assert (gradient - expected_gradients[key]).norm() < 0.05 * expected_gradients[
                key
            ].norm() + 1e-3, key


def test_validating_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    model = make_model({}).eval()
    model.compiles = True
    batch = make_batch(4, 5, 6)
    assert model(batch.src_BS, batch.tgt_in_BT).shape == (4, 6, 32)
