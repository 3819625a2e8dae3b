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
from mtkit.packages import import_package

TYPES = ("float32", "float16", "bfloat16", "int8", "int8_float32", "int16")
"""Types in which the matrices can be stored; int8 lets CTranslate2 choose the type of the rest."""
_MIN_POSITIONS = 2048
"""Rows in the table of sinusoidal positions, at least; CTranslate2 handles no longer sequence."""


def export(
    config: ModelConfig,
    model: Transformer,
    tokenizers: Tokenizers,
    folder: Path,
    type_: str = "float32",
    longest: int = _MIN_POSITIONS,
) -> None:
    """Write a model as a CTranslate2 folder.

    Args:
        config: section `model`.
        model: the model.
        tokenizers: tokenizers, for the vocabularies.
        folder: folder to write.
        type_: type of the matrices, from `TYPES`.
        longest: tokens of the longest source or translation.

    Raises:
        ConfigError: If `ctranslate2` is not installed, or does not support the architecture or the vocabularies.
        StorageError: If the folder cannot be written.
    """
    check_expressible(config, tokenizers)
    specs = import_ctranslate2().specs
    spec = _make_spec(specs, config)
    _fill_encoder(spec.encoder, model, max(longest, _MIN_POSITIONS))
    _fill_decoder(spec.decoder, model, max(longest, _MIN_POSITIONS))
    spec.register_source_vocabulary(_source_vocabulary(tokenizers))
    spec.register_target_vocabulary(_vocabulary(tokenizers.tgt))
    tgt = tokenizers.tgt
    spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = map(
        tgt.piece, (tgt.unk, tgt.bos, tgt.eos)
    )
    spec.config.decoder_start_token = spec.config.bos_token
    spec.config.add_source_bos, spec.config.add_source_eos = False, config.source_eos
    spec.config.layer_norm_epsilon = config.epsilon
    spec.validate()
    spec.optimize(quantization=None if type_ == "float32" else type_)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        spec.save(str(folder))


def import_ctranslate2() -> Any:
    """Import and return the package.

    Raises:
        ConfigError: If it is not installed, or cannot be loaded.
    """
    return import_package("ctranslate2", "pip install 'mtkit[ctranslate2]'")


def check_expressible(config: ModelConfig, tokenizers: Tokenizers) -> None:
    """Check that CTranslate2 has the architecture, and that eos and unk can have the same names on both sides.

    Raises:
        ConfigError: If not, at the key that is in the way.
    """
    for key in ("residual_scale", "decoder_residual_scale"):
        if (scale := getattr(config, key)) not in (None, 1.0):
            what = f"CTranslate2 does not scale the residual stream, here by {scale:g}"
            raise ConfigError(what, where=f"model.{key}", hint="such a model runs in mtkit only")
    src, tgt = tokenizers.src, tokenizers.tgt
    pieces = {src.piece(i): i for i in range(src.vocab_size)}
    for own, other in ((src.eos, tgt.eos), (src.unk, tgt.unk)):
        name = tgt.piece(other)
        if pieces.get(name, own) != own:
            what = (
                f"{name!r} has another meaning in the source vocabulary, which CTranslate2 does not support"
            )
            raise ConfigError(what, where="tokenizer.src_model", hint="there is no way around it")


def _make_spec(specs: Any, config: ModelConfig) -> Any:
    """Return an empty model with the config's shape."""
    activations = {
        "relu": specs.Activation.RELU,
        "gelu": specs.Activation.GELU,
        "silu": specs.Activation.SWISH,
        "swiglu": specs.Activation.SWISH,
        "geglu": specs.Activation.GELU,
    }

    def shape(side: ModelConfig) -> dict[str, Any]:
        return {
            "num_heads": side.heads,
            "pre_norm": True,  # so that there is a place for a final norm; see below
            "no_final_norm": not side.has_final_norm,
            "activation": activations[config.activation],
            "layernorm_embedding": config.embedding_norm,
            "relative_position": config.positions == "relative",
            "rotary_dim": 0 if config.positions == "rotary" else None,  # 0 rotates the whole head
            "rotary_interleave": False,
            "ffn_glu": config.is_gated,
            "rms_norm": config.norm == "rmsnorm",
            "num_heads_kv": side.kv_heads if side.kv_heads != side.heads else None,
        }

    decoder = config.decoder
    layer = config.alignment_layer  # if there is one, its first head aligns
    alignment = {
        "alignment_layer": -1 if layer is None else layer - 1,
        "alignment_heads": decoder.heads if layer is None else 1,
    }
    spec = specs.TransformerSpec(
        specs.TransformerEncoderSpec(config.encoder_layers, **shape(config)),
        specs.TransformerDecoderSpec(config.decoder_layers, **shape(decoder), **alignment),
    )
    for side, own in ((spec.encoder, config), (spec.decoder, decoder)):
        side.pre_norm = own.norm_position == "pre"
        side.scale_embeddings = config.scale_embeddings
    return spec


def _fill_encoder(spec: Any, model: Transformer, num_positions: int) -> None:
    """Copy embedding, layers and final norm of the encoder."""
    _fill_embedding(spec.embeddings[0], spec, model.src_embedding, num_positions)
    for layer_spec, layer in zip(spec.layer, model.encoder_stack(), strict=True):
        _fill_norm(layer_spec.self_attention.layer_norm, layer.attention_residual.norm)
        _fill_self_attention(layer_spec.self_attention, layer.attention)
        _fill_norm(layer_spec.ffn.layer_norm, layer.feed_forward_residual.norm)
        _fill_feed_forward(layer_spec.ffn, layer.feed_forward)
    if not isinstance(model.encoder_norm, nn.Identity):
        _fill_norm(spec.layer_norm, model.encoder_norm)


def _fill_decoder(spec: Any, model: Transformer, num_positions: int) -> None:
    """Copy embedding, layers, final norm and output projection of the decoder."""
    _fill_embedding(spec.embeddings, spec, model.tgt_embedding, num_positions)
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
    if not isinstance(model.decoder_norm, nn.Identity):
        _fill_norm(spec.layer_norm, model.decoder_norm)
    _fill_linear(spec.projection, model.output)


def _fill_embedding(spec: Any, side: Any, embedding: Embedding, num_positions: int) -> None:
    """Copy token embeddings, the table of positions and the norm of their sum, if there are any."""
    spec.weight = _to_numpy(embedding.weight)
    positions = embedding.positions
    if positions is not None:
        # CTranslate2 fails beyond the end of the table, where mtkit repeats the last learned vector.
        learned = len(positions.weight) if isinstance(positions, LearnedPositions) else 0
        rows = max(learned, num_positions)
        side.position_encodings.encodings = _to_numpy(positions(torch.arange(rows)))
    if not isinstance(embedding.norm, nn.Identity):
        _fill_norm(side.layernorm_embedding, embedding.norm)


def _fill_self_attention(spec: Any, attention: MultiHeadAttention) -> None:
    """Copy the fused projection of queries, keys and values, the output projection, and relative positions."""
    _fill_linear(spec.linear[0], attention.qkv)
    _fill_linear(spec.linear[1], attention.out)
    if attention.relative is not None:
        spec.relative_position_keys = _to_numpy(attention.relative.keys)
        spec.relative_position_values = _to_numpy(attention.relative.values)


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


def _source_vocabulary(tokenizers: Tokenizers) -> list[str]:
    """Return the pieces of the source by id, eos and unk with their names in the target vocabulary."""
    src, tgt = tokenizers.src, tokenizers.tgt
    pieces = _vocabulary(src)
    pieces[src.eos], pieces[src.unk] = tgt.piece(tgt.eos), tgt.piece(tgt.unk)
    return pieces
