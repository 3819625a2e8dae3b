"""The compiled operations of training give what PyTorch gives, gradients included, on every set of instructions.

Shapes: B batch, T queries, S keys, H query heads, G key/value heads, E head width, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtkit.config.sections import ModelConfig
from mtkit.model.attention import causal_mask
from mtkit.model.cpu.attention import cpu_attention
from mtkit.model.cpu.native import training
from mtkit.model.cpu.native.loading import INSTRUCTIONS
from mtkit.model.dropout import add_dropped, dropout
from mtkit.model.layers import LayerNorm, RMSNorm
from mtkit.model.transformer import Transformer
from mtkit.training.loss import loss_sums

AVAILABLE = [name for name in ("avx2", "avx512") if INSTRUCTIONS[name] <= training.training_instructions()]
pytestmark = pytest.mark.skipif(
    not AVAILABLE, reason="the compiled library was not built, or does not suit this CPU"
)
each_instructions = pytest.mark.parametrize("kind", AVAILABLE)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2e-2}

Gradients = list[Tensor]


def both(kind: str, compute: Callable[[], Tensor], *inputs: Tensor) -> tuple[Gradients, Gradients]:
    """Return the output and the gradients of inputs in the library and in PyTorch, drawn with the same seed."""
    results = []
    for instructions in (kind, "none"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MTKIT_NATIVE", instructions)
            torch.manual_seed(7)
            out = compute()
            torch.manual_seed(8)
            direction = torch.randn(out.shape).to(out.dtype)
            results.append([out.detach(), *torch.autograd.grad(out, inputs, direction)])
    own, expected = results
    return own, expected


def assert_close(own: Gradients, expected: Gradients, dtype: torch.dtype) -> None:
    """Check that tensors agree, compared with their largest entries."""
    for mine, other in zip(own, expected, strict=True):
        assert mine.dtype == other.dtype and mine.shape == other.shape
        torch.testing.assert_close(
            mine.float(), other.float(), rtol=0, atol=TOLERANCES[dtype] * other.abs().max().item()
        )


def was_native(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the name of each function of the library that is called."""
    called: list[str] = []
    call = training._call

    def note(name: str, *arguments: Any) -> Any:
        called.append(name)
        return call(name, *arguments)

    monkeypatch.setattr(training, "_call", note)
    return called


@each_instructions
@each_dtype
@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize(
    ("T", "S", "G", "E", "masked"),
    [
        (14, None, 4, 32, "causal"),
        (33, None, 2, 16, "causal"),
        (1, None, 4, 16, None),
        (9, 17, 1, 48, "padding"),
    ],
)
def test_attention(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    dtype: torch.dtype,
    probability: float,
    T: int,
    S: int | None,
    G: int,
    E: int,
    masked: str | None,
) -> None:
    """Self-attention and cross-attention, with the same random masks, and heads that share keys."""
    called, B, H = was_native(monkeypatch), 3, 4
    torch.manual_seed(0)
    if S is None:
        inputs = [torch.randn(B, T, H + 2 * G, E, dtype=dtype, requires_grad=True)]
    else:
        shapes = (B, T, H, E), (B, S, 2 * G, E)
        inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    mask = causal_mask(T, torch.device("cpu")) if masked == "causal" else None
    if masked == "padding":
        assert S is not None
        mask = (torch.arange(S) < torch.tensor([S, 1, 5])[:, None])[:, None, None]
    memory = inputs[1] if S is not None else None
    own, expected = both(kind, lambda: cpu_attention(inputs[0], memory, mask, H, probability), *inputs)
    assert called == ["mtkit_attend", "mtkit_attend_backward"]
    assert_close(own, expected, dtype)


@each_instructions
def test_attention_gives_padding_no_weight_whatever_it_holds(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTKIT_NATIVE", kind)
    torch.manual_seed(0)
    q, kv = torch.randn(2, 5, 4, 16), torch.randn(2, 7, 8, 16)
    mask = (torch.arange(7) < torch.tensor([4, 7])[:, None])[:, None, None]
    out = cpu_attention(q, kv, mask, 4, 0.0)
    kv[0, 4:, :4], kv[0, 4:, 4:] = 100, 1e30
    assert torch.equal(cpu_attention(q, kv, mask, 4, 0.0), out)


@each_instructions
@each_dtype
@pytest.mark.parametrize("V", [77, 96, 5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype, V: int, smoothing: float
) -> None:
    called = was_native(monkeypatch)
    torch.manual_seed(0)
    hidden, weight = (
        torch.randn(40, 16, dtype=dtype, requires_grad=True),
        torch.randn(V, 16, requires_grad=True),
    )
    targets = torch.randint(0, V, (40,))
    targets[0] = V - 1
    own, expected = both(kind, lambda: loss_sums(hidden, weight, targets, smoothing).loss, hidden, weight)
    assert called == ["mtkit_cross_entropy"]
    assert_close(own, expected, dtype)


@each_instructions
@pytest.mark.parametrize("extreme", [1e4, float("nan"), float("inf")])
def test_cross_entropy_of_extreme_logits_is_that_of_pytorch(
    kind: str, extreme: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is not finite must be seen."""
    logits = torch.randn(4, 50)
    logits[1, 3] = extreme
    targets = torch.tensor([3, 3, 0, 49])
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.1)
    monkeypatch.setenv("MTKIT_NATIVE", kind)
    loss, _ = training.replace_by_gradient(logits, targets, 0.1)
    torch.testing.assert_close(loss, expected.item(), equal_nan=True, rtol=1e-5, atol=1e-5)


@each_instructions
@each_dtype
@pytest.mark.parametrize("has_residual", [True, False])
def test_dropout_has_the_same_mask(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype, has_residual: bool
) -> None:
    called = was_native(monkeypatch)
    torch.manual_seed(0)
    residual = torch.randn(3, 5, 16, requires_grad=True)
    x = torch.randn(3, 5, 16, dtype=dtype, requires_grad=True)
    if has_residual:
        own, expected = both(kind, lambda: add_dropped(residual, x, 0.3, True), residual, x)
    else:
        own, expected = both(kind, lambda: dropout(x, 0.3, True), x)
    assert called == ["mtkit_drop", "mtkit_drop"]
    assert torch.equal(own[0] == 0, expected[0] == 0)
    assert_close(own, expected, dtype)


@each_instructions
@each_dtype
@pytest.mark.parametrize("kind_of_norm", [LayerNorm, RMSNorm])
def test_norm(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype, kind_of_norm: type[LayerNorm | RMSNorm]
) -> None:
    called = was_native(monkeypatch)
    torch.manual_seed(0)
    norm = kind_of_norm(48, eps=1e-5)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = (3 + torch.randn(4, 7, 48)).requires_grad_()
    own, expected = both(kind, lambda: norm(x, dtype), x, *norm.parameters())
    assert called == ["mtkit_norm", "mtkit_norm_backward"]
    assert_close(own, expected, dtype)


@each_instructions
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_a_whole_model_with_dropout_has_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch, kind: str, norm_position: str
) -> None:
    called = was_native(monkeypatch)
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=64, num_heads=4, num_kv_heads=2, d_ff=96, encoder_layers=2, decoder_layers=2,
        norm_position=norm_position, dropout=0.2, attention_dropout=0.1, activation_dropout=0.1,
    )  # fmt: skip
    model = Transformer(config, 50, 50)
    src, tgt = torch.randint(1, 50, (6, 11)), torch.randint(1, 50, (6, 9))
    src[2:, 7:] = 0

    def loss() -> Tensor:
        return loss_sums(model(src, tgt).flatten(0, 1), model.output.weight, tgt.flatten(), 0.1).loss

    own, expected = both(kind, loss, *model.parameters())
    assert_close(own, expected, torch.float32)
    assert len(set(called)) == 6, "all functions of the library are used"


def test_what_the_library_does_not_support_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths that are no multiple of 16, masks that differ between heads, float64 and float16."""
    called = was_native(monkeypatch)
    x = torch.randn(2, 3, 20, requires_grad=True)
    LayerNorm(20)(x).sum().backward()
    dropout(x, 0.1, True)
    assert LayerNorm(16)(torch.randn(4, 16), torch.float16).dtype == torch.float16
    LayerNorm(16).double()(torch.randn(4, 16, dtype=torch.double))
    cpu_attention(torch.randn(2, 3, 6, 10), None, None, 2, 0.0)
    cpu_attention(torch.randn(2, 3, 6, 16), None, torch.ones(2, 2, 3, 3, dtype=torch.bool), 2, 0.0)
    loss_sums(torch.randn(4, 8).double().requires_grad_(), torch.randn(9, 8).double(), torch.arange(4), 0.1)
    assert called == []


def test_several_threads_share_the_operations_of_pytorch() -> None:
    x = torch.zeros(16)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert not training.trains_natively(x)
        torch.set_num_threads(1)
        assert training.trains_natively(x)
    finally:
        torch.set_num_threads(before)


def test_without_the_library_pytorch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_library", lambda: None)
    assert not training.trains_natively(torch.zeros(16))


def test_without_gradients_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Translation and validation do not depend on how training is computed."""
    called = was_native(monkeypatch)
    with torch.no_grad():
        model = Transformer(ModelConfig(d_model=32, encoder_layers=1, decoder_layers=1), 50, 50).eval()
        ids = torch.randint(1, 50, (2, 5))
        loss_sums(model(ids, ids).flatten(0, 1), model.output.weight, ids.flatten(), 0.1)
    assert called == []
