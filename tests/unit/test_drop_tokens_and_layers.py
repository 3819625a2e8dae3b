"""Token dropout, layer dropout and attention dropout against direct computations with the same masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtkit.config.sections import ModelConfig
from mtkit.model import attention as attention_module
from mtkit.model import transformer as transformer_module
from mtkit.model.attention import MultiHeadAttention, causal_mask
from mtkit.model.cpu import attention as cpu_module
from mtkit.model.dropout import draw_kept_layer, drop_tokens
from mtkit.model.transformer import Transformer

SRC, TGT = torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0]]), torch.tensor([[1, 4, 4], [1, 9, 10]])


def make(**keys: object) -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=16, encoder_layers=3, decoder_layers=2, num_heads=2, d_ff=16, dropout=0.0
    ).model_copy(update=keys)
    return Transformer(config, 12, 12).train()


# --- tokens ------------------------------------------------------------------------------------------------------


def test_whole_tokens_are_zeroed_and_the_others_scaled() -> None:
    torch.manual_seed(1)
    x = torch.randn(200, 50, 3)
    dropped = drop_tokens(x, 0.25, training=True)
    zero = (dropped == 0).all(dim=-1)
    torch.testing.assert_close(dropped[~zero], x[~zero] / 0.75)
    assert zero.double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert not zero.all(dim=0).any()  # each sentence draws its own
    assert drop_tokens(x, 0.25, training=False) is x
    assert drop_tokens(x, 0.0, training=True) is x


@pytest.mark.parametrize("side", ["src", "tgt"])
def test_a_dropped_token_is_its_position_alone(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(token_dropout=0.5)
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])[..., None]
    monkeypatch.setattr(transformer_module, "drop_tokens", lambda x, p, training: x * mask / (1 - p))
    embedding = model.src_embedding if side == "src" else model.tgt_embedding
    ids, positions = TGT, torch.arange(3)
    assert embedding.positions is not None
    expected = embedding.weight[ids] * 4 * mask * 2 + embedding.positions(positions)
    torch.testing.assert_close(embedding.embed(ids, positions, torch.float32), expected)


def test_token_dropout_reaches_both_sides_in_training_alone() -> None:
    model = make(token_dropout=0.5)
    memory, mask = model.encode(SRC), model.source_mask(SRC)
    assert not torch.equal(memory, model.encode(SRC))
    assert not torch.equal(model.decode(TGT, memory, mask), model.decode(TGT, memory, mask))
    model.eval()
    without = make(token_dropout=0.0).eval()
    assert torch.equal(model(SRC, TGT), without(SRC, TGT))


# --- layers ------------------------------------------------------------------------------------------------------


def choose(monkeypatch: pytest.MonkeyPatch, *kept: list[bool]) -> None:
    """Let the layers be kept as given, in the order they run."""
    choices = iter(kept)
    monkeypatch.setattr(transformer_module, "draw_kept_layer", lambda num_streams, probability: next(choices))


def gradients(model: Transformer, hidden: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    hidden.square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def without_layers(model: Transformer, encoder: list[int], decoder: list[int]) -> Transformer:
    """A model that never had some layers."""
    rest = make(encoder_layers=len(encoder), decoder_layers=len(decoder))
    rest.load_state_dict(model.state_dict(), strict=False)
    for layers, own, numbers in (
        (rest.encoder, model.encoder, encoder),
        (rest.decoder, model.decoder, decoder),
    ):
        for layer, number in zip(layers, numbers, strict=True):
            layer.load_state_dict(own[number].state_dict())
    return rest


@pytest.mark.parametrize("recompute", [False, True])
def test_a_dropped_layer_is_as_if_it_were_not_there(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(layer_dropout=0.5)
    model.recompute = recompute
    choose(monkeypatch, [True], [False], [True], [False], [True])
    hidden = model(SRC, TGT)
    rest = without_layers(model, [0, 2], [1])
    expected = rest(SRC, TGT)
    torch.testing.assert_close(hidden, expected)
    mine, theirs = gradients(model, hidden), gradients(rest, expected)
    names = {"encoder.1.": "encoder.2.", "decoder.0.": "decoder.1."}
    for name, gradient in theirs.items():
        place, wanted = name[:10], gradient
        torch.testing.assert_close(mine[names.get(place, place) + name[10:]], wanted)
    for name in ("encoder.1.feed_forward.inner.weight", "decoder.0.cross.kv.bias"):
        gradient = mine[name]
        assert gradient is not None and not gradient.any()  # zeros, never None


def test_without_any_layer_every_parameter_still_has_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(layer_dropout=0.5)
    choose(monkeypatch, *[[False]] * 5)
    found = gradients(model, model.logits(model(SRC, TGT)))
    assert all(gradient is not None for gradient in found.values())
    assert {name.split(".")[0] for name, gradient in found.items() if gradient is not None and gradient.any()} == {
        "src_embedding", "decoder_norm",
    }  # fmt: skip


def test_streams_drop_layers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(layer_dropout=0.5)
    both = [[True, True], [True, False], [False, False], [False, True], [True, True]]
    choose(monkeypatch, *both)
    hidden = model(SRC.repeat(2, 1), TGT.repeat(2, 1), num_streams=2)
    for stream, part in enumerate(hidden.chunk(2)):
        choose(monkeypatch, *([kept[stream]] for kept in both))
        torch.testing.assert_close(part, model(SRC, TGT))


def test_layers_that_are_shared_are_dropped_run_by_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(layer_dropout=0.5, unique_encoder_layers=1, unique_decoder_layers=1)
    choose(monkeypatch, [False], [True], [False], [False], [True])
    once = without_layers(model, [0], [0])
    torch.testing.assert_close(model(SRC, TGT), once(SRC, TGT))


def test_layers_are_drawn_with_their_probability_and_seeded() -> None:
    torch.manual_seed(3)
    draws = [draw_kept_layer(2, 0.2) for _ in range(2000)]
    shares = torch.tensor(draws).double().mean(dim=0)
    torch.testing.assert_close(shares, torch.full((2,), 0.8, dtype=torch.float64), atol=0.03, rtol=0)
    torch.manual_seed(3)
    assert [draw_kept_layer(2, 0.2) for _ in range(2000)] == draws


def test_layers_are_dropped_in_training_alone_and_never_while_memory_is_measured() -> None:
    model, whole = make(layer_dropout=0.9), make()
    expected = whole(SRC, TGT)
    with model.all_layers():
        assert torch.equal(model(SRC, TGT), expected)
    torch.manual_seed(0)
    assert not torch.allclose(model(SRC, TGT), expected)
    assert torch.equal(model.eval()(SRC, TGT), expected)


# --- attention ---------------------------------------------------------------------------------------------------

KEPT = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0]])


def scaled_mask(weights: Tensor, probability: float) -> Tensor:
    return KEPT.expand_as(weights) / (1 - probability)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", ["plain", "cross", "rotary", "relative"])
def test_each_kind_of_attention_drops_its_weights(
    kind: str, grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output with a given mask, on the path for training and on that without gradients."""
    torch.manual_seed(0)
    layer = MultiHeadAttention(
        16, 4, 2, cross=kind == "cross", rotary=kind == "rotary",
        max_relative_distance=2 if kind == "relative" else None, dropout=0.2,
    ).train()  # fmt: skip
    monkeypatch.setattr(cpu_module, "scaled_keep_mask", scaled_mask)
    monkeypatch.setattr(attention_module, "dropout", lambda w, p, on: w * scaled_mask(w, p) if on else w)
    x, memory, positions = torch.randn(3, 4, 16), torch.randn(3, 4, 16), torch.arange(4)
    mask = causal_mask(4, x.device)
    with torch.set_grad_enabled(grad):
        if kind == "cross":
            out, weights = layer.attend_memory(x, memory, mask), layer.memory_weights(x, memory, mask)
            v = layer.project_memory(memory)[1]
        else:
            out, weights = layer.attend_self(x, mask, positions), layer.self_weights(x, mask, positions)
            v = layer.project_qkv(x, positions)[2]
        dropped = weights * KEPT / 0.8
        expected = dropped @ v.repeat_interleave(2, dim=1)
        if layer.relative is not None:
            expected = expected + layer.relative.value_sums(
                dropped, layer.relative.buckets(positions, positions)
            )
        torch.testing.assert_close(out, layer.out(expected.transpose(1, 2).flatten(2)))
