"""Options of the model that exist because other toolkits have them, each against its formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mtkit.config.sections import ModelConfig
from mtkit.data.batching import collate_sources
from mtkit.model.layers import DecoderLayer, EncoderLayer, FeedForward
from mtkit.model.transformer import Transformer

SMALL: dict[str, Any] = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_heads": 2, "d_ff": 24}


def make(**options: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(**(SMALL | {"dropout": 0.0} | options)), 20, 20).eval()


def test_geglu_is_gelu_times_a_value() -> None:
    layer = FeedForward(ModelConfig(**SMALL, activation="geglu"))
    x = torch.randn(3, 16)
    gate, value = layer.inner(x).split(24, dim=-1)
    torch.testing.assert_close(layer(x), layer.outer(F.gelu(gate) * value))
    assert ModelConfig(d_model=48, activation="geglu").feed_forward == 128


@pytest.mark.parametrize("position", ["pre", "post"])
def test_the_residual_stream_is_scaled(position: str) -> None:
    model = make(norm_position=position, residual_scale=2.0, decoder_residual_scale=3.0)
    layer = model.encoder[0]
    assert isinstance(layer, EncoderLayer)
    x = torch.randn(2, 5, 16)
    residual = layer.attention_residual
    found = residual(x, lambda h: 0 * h, torch.float32)
    torch.testing.assert_close(found, 2 * x if position == "pre" else residual.norm(2 * x))
    decoder = model.decoder[0]
    assert isinstance(decoder, DecoderLayer) and decoder.cross_residual.scale == 3.0


def test_the_decoder_may_normalize_elsewhere_than_the_encoder() -> None:
    model = make(norm_position="pre", decoder_norm_position="post")
    encoder, decoder = model.encoder[0], model.decoder[0]
    assert isinstance(encoder, EncoderLayer) and isinstance(decoder, DecoderLayer)
    assert encoder.attention_residual.pre and not decoder.attention_residual.pre
    assert isinstance(model.decoder_norm, torch.nn.Identity)
    assert not isinstance(model.encoder_norm, torch.nn.Identity)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (True, True, True)),
        ({"bias": False}, (False, False, False)),
        ({"attention_bias": False}, (False, False, True)),
        ({"attention_bias": False, "attention_output_bias": True}, (False, True, True)),
        ({"bias": False, "attention_bias": True}, (True, True, False)),
    ],
)
def test_biases_of_attention(options: dict[str, Any], expected: tuple[bool, bool, bool]) -> None:
    layer = make(**options).decoder[0]
    assert isinstance(layer, DecoderLayer)
    linears = (layer.cross.kv, layer.cross.out, layer.feed_forward.inner)
    assert tuple(linear.bias is not None for linear in linears) == expected


def test_sources_without_eos() -> None:
    rows = [np.array(ids, dtype=np.int32) for ids in ([7, 8], [6], [])]
    assert collate_sources(rows, 0, 3, True).tolist() == [[7, 8, 3], [6, 3, 0], [3, 0, 0]]
    assert collate_sources(rows, 0, 3, False).tolist() == [[7, 8], [6, 0], [3, 0]]
    assert make().source_eos and not make(source_eos=False).source_eos


@pytest.mark.parametrize(
    "options",
    [
        {"residual_scale": 1.5, "decoder_norm_position": "post"},
        {"activation": "geglu", "attention_bias": False},
        {"decoder_residual_scale": 1.2, "attention_output_bias": False},
    ],
)
def test_steps_equal_whole_sequences(options: dict[str, Any]) -> None:
    model = make(**options)
    src, tgt = torch.randint(4, 20, (3, 6)), torch.randint(4, 20, (3, 5))
    with torch.no_grad():
        memory, mask = model.encode(src), model.source_mask(src)
        whole = model.decode(tgt, memory, mask)
        state = model.init_state(memory, mask)
        steps = [model.step(tgt[:, t : t + 1], state) for t in range(tgt.shape[1])]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)
