"""Export of a trained model to CTranslate2, the C++ inference engine (https://github.com/OpenNMT/CTranslate2).

The exported folder holds the same weights; the same search gives the same translations up to rounding.
Only this module needs the package `ctranslate2`: `pip install mtkit[ctranslate2]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mtkit.config.sections import ModelConfig
from mtkit.data.tokenizer import Tokenizer, Tokenizers
from mtkit.errors import ConfigError
from mtkit.files import storage_errors
from mtkit.model.attention import Linear, MultiHeadAttention
from mtkit.model.layers import FeedForward
from mtkit.model.positions import LearnedPositions
from mtkit.model.transformer import Embedding, Transformer

_LAYER_NORM_EPSILON = {"layernorm": 1e-5, "rmsnorm": 1e-6}
_NUM_POSITIONS = 2048
"""Rows in the table of sinusoidal positions: the longest sequence that CTranslate2 will handle."""


def export(config: ModelConfig, model: Transformer, tokenizers: Tokenizers, folder: Path) -> None:
    """Write a model in float32 as a CTranslate2 folder, which must not exist.

    Raises:
        ConfigError: If `ctranslate2` is not installed, or does not support the architecture.
        StorageError: If the folder cannot be written.
    """
    specs = import_ctranslate2().specs
    _check_exportable(config)
    spec = _make_spec(specs, config)
    _fill_encoder(spec.encoder, config, model)
    _fill_decoder(spec.decoder, config, model)
    spec.register_source_vocabulary(_vocabulary(tokenizers.src))
    spec.register_target_vocabulary(_vocabulary(tokenizers.tgt))
    tgt = tokenizers.tgt
    spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = map(
        tgt.piece, (tgt.unk, tgt.bos, tgt.eos)
    )
    spec.config.decoder_start_token = spec.config.bos_token
    spec.config.add_source_bos, spec.config.add_source_eos = False, True
    spec.config.layer_norm_epsilon = _LAYER_NORM_EPSILON[config.norm]
    spec.validate()
    spec.optimize(quantization=None)
    with storage_errors(folder):
        folder.mkdir(parents=True)
        spec.save(str(folder))


def import_ctranslate2() -> Any:
    """Import and return the package.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import ctranslate2
    except ImportError as error:
        hint = "pip install 'mtkit[ctranslate2]'"
        raise ConfigError("the package ctranslate2 is not installed", hint=hint) from error
    return ctranslate2


def _check_exportable(config: ModelConfig) -> None:
    """Check that CTranslate2 supports the architecture.

    Raises:
        ConfigError: If not.
    """
    if config.positions in ("relative", "rotary"):
        what = f"{config.positions} positions cannot be exported to CTranslate2"
        raise ConfigError(what, where="model.positions", hint="use sinusoidal or learned positions")


def _make_spec(specs: Any, config: ModelConfig) -> Any:
    """Return an empty model with the config's shape."""
    activations = {
        "relu": specs.Activation.RELU,
        "gelu": specs.Activation.GELU,
        "silu": specs.Activation.SWISH,
        "swiglu": specs.Activation.SWISH,
        "geglu": specs.Activation.GELU,
    }
    shared: dict[str, Any] = {
        "num_heads": config.heads,
        "pre_norm": config.norm_position == "pre",
        "activation": activations[config.activation],
        "ffn_glu": config.is_gated,
        "rms_norm": config.norm == "rmsnorm",
        "num_heads_kv": config.kv_heads if config.kv_heads != config.heads else None,
    }
    return specs.TransformerSpec(
        specs.TransformerEncoderSpec(config.encoder_layers, **shared),
        specs.TransformerDecoderSpec(config.decoder_layers, **shared),
    )


def _fill_encoder(spec: Any, config: ModelConfig, model: Transformer) -> None:
    """Copy embedding, layers and final norm of the encoder."""
    _fill_embedding(spec.embeddings[0], spec.position_encodings, model.src_embedding)
    for layer_spec, layer in zip(spec.layer, model.encoder_stack(), strict=True):
        _fill_norm(layer_spec.self_attention.layer_norm, layer.attention_residual.norm)
        _fill_self_attention(layer_spec.self_attention, layer.attention)
        _fill_norm(layer_spec.ffn.layer_norm, layer.feed_forward_residual.norm)
        _fill_feed_forward(layer_spec.ffn, layer.feed_forward)
    if config.norm_position == "pre":
        _fill_norm(spec.layer_norm, model.encoder_norm)


def _fill_decoder(spec: Any, config: ModelConfig, model: Transformer) -> None:
    """Copy embedding, layers, final norm and output projection of the decoder."""
    _fill_embedding(spec.embeddings, spec.position_encodings, model.tgt_embedding)
    for layer_spec, layer in zip(spec.layer, model.decoder_stack(), strict=True):
        _fill_norm(layer_spec.self_attention.layer_norm, layer.attention_residual.norm)
        _fill_self_attention(layer_spec.self_attention, layer.attention)
        _fill_norm(layer_spec.attention.layer_norm, layer.cross_residual.norm)
        for linear_spec, linear in zip(
            layer_spec.attention.linear, (layer.cross.q, layer.cross.kv, layer.cross.out), strict=True
        ):
            _fill_linear(linear_spec, linear)
        _fill_norm(layer_spec.ffn.layer_norm, layer.feed_forward_residual.norm)
        _fill_feed_forward(layer_spec.ffn, layer.feed_forward)
    if config.norm_position == "pre":
        _fill_norm(spec.layer_norm, model.decoder_norm)
    _fill_linear(spec.projection, model.output)


def _fill_embedding(spec: Any, positions_spec: Any, embedding: Embedding) -> None:
    """Copy token embeddings and the table of positions."""
    assert embedding.positions is not None  # see _check_exportable
    spec.weight = _to_numpy(embedding.weight)
    positions = embedding.positions
    rows = len(positions.weight) if isinstance(positions, LearnedPositions) else _NUM_POSITIONS
    positions_spec.encodings = _to_numpy(positions(torch.arange(rows)))


def _fill_self_attention(spec: Any, attention: MultiHeadAttention) -> None:
    """Copy the fused projection of queries, keys and values, and the output projection."""
    _fill_linear(spec.linear[0], attention.qkv)
    _fill_linear(spec.linear[1], attention.out)


def _fill_feed_forward(spec: Any, layer: FeedForward) -> None:
    """Copy both matrices; there are separate ones for gate and value."""
    if layer.activation in ("swiglu", "geglu"):
        gate, value = layer.inner.weight.chunk(2)
        spec.linear_0.weight, spec.linear_0_noact.weight = _to_numpy(gate), _to_numpy(value)
        if layer.inner.bias is not None:
            gate_bias, value_bias = layer.inner.bias.chunk(2)
            spec.linear_0.bias, spec.linear_0_noact.bias = _to_numpy(gate_bias), _to_numpy(value_bias)
    else:
        _fill_linear(spec.linear_0, layer.inner)
    _fill_linear(spec.linear_1, layer.outer)


def _fill_linear(spec: Any, linear: Linear) -> None:
    """Copy matrix and bias."""
    spec.weight = _to_numpy(linear.weight)
    if linear.bias is not None:
        spec.bias = _to_numpy(linear.bias)


def _fill_norm(spec: Any, norm: nn.Module) -> None:
    """Copy scale and, except for RMSNorm, shift."""
    spec.gamma = _to_numpy(norm.weight)
    if getattr(norm, "bias", None) is not None:
        spec.beta = _to_numpy(norm.bias)


def _to_numpy(tensor: Any) -> npt.NDArray[np.float32]:
    """Copy a tensor to a float32 NumPy array."""
    copied: npt.NDArray[np.float32] = tensor.detach().float().cpu().numpy().copy()
    return copied


def _vocabulary(tokenizer: Tokenizer) -> list[str]:
    """Return the pieces by id; padding rows have names that never occur in text."""
    return [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
