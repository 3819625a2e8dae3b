"""Writes folders that `AutoModelForSeq2SeqLM` and `AutoTokenizer` of Hugging Face load, without `transformers`.

The class is the one that has the mathematics of the model (`CLASSES` in `hugging_face`); the tokenizer is always
`MarianTokenizer`, which takes two SentencePiece models and a table of ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mtkit.config.sections import Config, ModelConfig
from mtkit.data.tokenizer import Tokenizer, Tokenizers
from mtkit.errors import ConfigError
from mtkit.files import write_bytes, write_text
from mtkit.interop.exporting import DTYPES, HINT_OF_TOKENS, check_sentencepiece_alone
from mtkit.interop.hugging_face import CLASSES, FIRST_LEARNED, HuggingFaceClass
from mtkit.model.transformer import Transformer
from mtkit.translation.batched_search import search_options


@dataclass(frozen=True)
class Converted:
    """A model in the terms of Hugging Face.

    Attributes:
        config: content of config.json.
        weights: state dict; tied matrices are there once.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]


def convert(config: ModelConfig, model: Transformer, tokenizers: Tokenizers, longest: int) -> Converted:
    """Return a model in the terms of the class of Hugging Face that has its mathematics.

    Args:
        config: section `model`.
        model: the model, on the CPU.
        tokenizers: tokenizers of both sides.
        longest: most tokens of a sentence, eos included.

    Raises:
        ConfigError: If there is no such class.
    """
    kind = choose_class(config, model)
    tgt, decoder = tokenizers.tgt, config.decoder
    shared, tied = _ties(model)
    settings = {
        "model_type": kind.model_type,
        "architectures": [kind.architecture],
        "is_encoder_decoder": True,
        "vocab_size": tokenizers.src.vocab_size,
        "d_model": config.d_model,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "num_hidden_layers": config.encoder_layers,
        "encoder_attention_heads": config.heads,
        "decoder_attention_heads": decoder.heads,
        "encoder_ffn_dim": config.feed_forward,
        "decoder_ffn_dim": decoder.feed_forward,
        "activation_function": config.activation,
        "scale_embedding": config.scale_embeddings,
        "max_position_embeddings": config.max_positions
        if config.positions == "learned"
        else max(_POSITIONS, longest + 1),
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "tie_word_embeddings": tied,
        "pad_token_id": tgt.pad,
        "eos_token_id": tgt.eos,
        "bos_token_id": tgt.bos,
        "decoder_start_token_id": tgt.bos,
        "forced_eos_token_id": None,
    }
    if kind.model_type == "marian":
        settings |= {"decoder_vocab_size": tgt.vocab_size, "share_encoder_decoder_embeddings": shared}
    weights = _embeddings(model, shared, tied) | _layers(model)
    for side, norm, embedding in (
        ("encoder", model.encoder_norm, model.src_embedding),
        ("decoder", model.decoder_norm, model.tgt_embedding),
    ):
        if kind.norm_position == "pre":
            weights |= _affine(f"model.{side}.layer_norm", norm)
        if kind.embedding_norm:
            weights |= _affine(f"model.{side}.layernorm_embedding", embedding.norm)
        if kind.positions == "learned":
            assert embedding.positions is not None
            table = embedding.positions(torch.arange(config.max_positions))
            unused = table.new_zeros(FIRST_LEARNED, config.d_model)
            weights[f"model.{side}.embed_positions.weight"] = torch.cat([unused, table])
    if kind.logits_bias:
        bias = model.output.bias
        weights["final_logits_bias"] = torch.zeros(1, tgt.vocab_size) if bias is None else bias[None]
    return Converted(settings, {name: tensor.detach() for name, tensor in weights.items()})


_POSITIONS = 512
"""Sinusoidal positions, at least."""


def choose_class(config: ModelConfig, model: Transformer) -> HuggingFaceClass:
    """Return the class of Hugging Face that has the mathematics of a model.

    Raises:
        ConfigError: If there is none, at the key that is in the way.
    """
    order = "fairseq" if config.sinusoids == "fairseq" else "concatenated"
    found = next(
        (
            kind
            for kind in CLASSES.values()
            if kind.norm_position == config.norm_position
            and kind.positions == (config.positions if config.positions == "learned" else "sinusoidal")
            and (kind.positions == "learned" or kind.sinusoids == order)
        ),
        None,
    )
    if found is None:
        what = f"{config.sinusoids} sinusoids with post-norm"
        raise _refusal("sinusoids", what)
    shared, tied = _ties(model)
    first = model.src_pad + 1 if found.sinusoids == "fairseq" else 0
    expressible = {
        "positions": config.positions in ("sinusoidal", "learned"),
        "sinusoids": found.positions == "learned" or config.sinusoids == found.sinusoids,
        "position_offset": found.positions == "learned" or config.position_offset == first,
        "norm": config.norm == "layernorm",
        "norm_epsilon": config.epsilon == _EPSILON,
        "decoder_norm_position": config.decoder.norm_position == config.norm_position,
        "final_norm": config.has_final_norm
        == (found.norm_position == "pre")
        == config.decoder.has_final_norm,
        "embedding_norm": config.embedding_norm == found.embedding_norm,
        "activation": not config.is_gated,
        "num_kv_heads": config.kv_heads == config.heads and config.decoder.kv_heads == config.decoder.heads,
        "residual_scale": config.residual_scale == 1,
        "decoder_residual_scale": config.decoder.residual_scale == 1,
        "source_eos": config.source_eos,
        "output_bias": found.logits_bias or not config.output_bias,
        "tie_embeddings": found.model_type == "marian" or (shared and tied),
    }
    for key, is_expressible in expressible.items():
        if not is_expressible:
            raise _refusal(key, f"{getattr(config, key)}", found)
    return found


_EPSILON = 1e-5


def _refusal(key: str, value: str, kind: HuggingFaceClass | None = None) -> ConfigError:
    """Return the error about a key that the classes of Hugging Face lack."""
    name = f" in {kind.architecture}, which is closest" if kind is not None else ""
    what = f"{value} is not supported by Hugging Face's sequence-to-sequence models{name}"
    return ConfigError(what, where=f"model.{key}", hint="CTranslate2 has more architectures")


def _ties(model: Transformer) -> tuple[bool, bool]:
    """Return whether source and target embeddings are one matrix, and whether target and output matrix are."""
    tgt = model.tgt_embedding.weight
    return model.src_embedding.weight is tgt, model.output.weight is tgt


def _embeddings(model: Transformer, shared: bool, tied: bool) -> dict[str, Tensor]:
    """Return the embeddings and the output matrix."""
    weights = {"model.shared.weight": model.tgt_embedding.weight}
    if not shared:
        weights = {
            "model.encoder.embed_tokens.weight": model.src_embedding.weight,
            "model.decoder.embed_tokens.weight": model.tgt_embedding.weight,
        }
    return weights if tied else weights | {"lm_head.weight": model.output.weight}


def _layers(model: Any) -> dict[str, Tensor]:
    """Return the weights of all layers."""
    weights: dict[str, Tensor] = {}
    for side, stack in (("encoder", model.encoder_stack()), ("decoder", model.decoder_stack())):
        for number, layer in enumerate(stack):
            place = f"model.{side}.layers.{number}"
            weights |= _attention(f"{place}.self_attn", layer.attention.qkv, "qkv", layer.attention.out)
            weights |= _affine(f"{place}.self_attn_layer_norm", layer.attention_residual.norm)
            if side == "decoder":
                weights |= _affine(f"{place}.encoder_attn.q_proj", layer.cross.q)
                weights |= _attention(f"{place}.encoder_attn", layer.cross.kv, "kv", layer.cross.out)
                weights |= _affine(f"{place}.encoder_attn_layer_norm", layer.cross_residual.norm)
            weights |= _affine(f"{place}.fc1", layer.feed_forward.inner)
            weights |= _affine(f"{place}.fc2", layer.feed_forward.outer)
            weights |= _affine(f"{place}.final_layer_norm", layer.feed_forward_residual.norm)
    return weights


def _affine(place: str, module: Any) -> dict[str, Tensor]:
    """Return weight and bias of a module; without a bias, zeros."""
    bias = module.bias if module.bias is not None else module.weight.new_zeros(len(module.weight))
    return {f"{place}.weight": module.weight, f"{place}.bias": bias}


def _attention(place: str, fused: Any, names: str, out: Any) -> dict[str, Tensor]:
    """Return the output projection, and the projections (such as "qkv") that another one fuses."""
    both = _affine("", fused)
    chunks = zip(names, both[".weight"].chunk(len(names)), both[".bias"].chunk(len(names)), strict=True)
    return _affine(f"{place}.out_proj", out) | {
        f"{place}.{name}_proj.{kind}": tensor
        for name, *tensors in chunks
        for kind, tensor in zip(("weight", "bias"), tensors, strict=True)
    }


def check_tokenizers(tokenizers: Tokenizers) -> None:
    """Check that `MarianTokenizer` splits text as these do.

    Raises:
        ConfigError: If not.
    """
    check_sentencepiece_alone(tokenizers, "Hugging Face's MarianTokenizer")
    src, tgt = tokenizers.src, tokenizers.tgt
    for name in ("pad", "unk", "eos"):
        ids = getattr(src, name), getattr(tgt, name)
        same_id = ids[0] == ids[1] or name == "unk"
        if not same_id or src.piece(ids[0]) != tgt.piece(ids[1]):
            what = f"{name} is another token in the source than in the target vocabulary"
            raise ConfigError(what, where="tokenizer.src_model", hint=HINT_OF_TOKENS)


def write_folder(
    converted: Converted, config: Config, tokenizers: Tokenizers, folder: Path, type_: str
) -> None:
    """Write all files of a model into a folder.

    Args:
        converted: the model.
        config: its config.
        tokenizers: its tokenizers.
        folder: an existing folder.
        type_: type of the weights, from `DTYPES`.

    Raises:
        StorageError: If a file cannot be written.
    """
    dtype, longest = DTYPES[type_], converted.config["max_position_embeddings"]
    own = {
        # safetensors refuses shared memory
        name: tensor.to(dtype).clone(memory_format=torch.contiguous_format)
        for name, tensor in converted.weights.items()
    }
    write_bytes(folder / "model.safetensors", safetensors.torch.save(own, {"format": "pt"}))
    tgt, decoding = tokenizers.tgt, config.decoding
    separate = tokenizers.src is not tgt and not tokenizers.joint
    ids = {key: converted.config[key] for key in _TOKEN_IDS}
    names = {
        "unk_token": tgt.piece(tgt.unk),
        "eos_token": tgt.piece(tgt.eos),
        "pad_token": tgt.piece(tgt.pad),
    }
    if tgt.bos not in (tgt.pad, tgt.eos):
        names["bos_token"] = tgt.piece(tgt.bos)  # a special token is left out of decoded text
    described = {
        "config.json": {**converted.config, "dtype": type_},
        "generation_config.json": {
            **ids,
            "num_beams": decoding.beam_size,
            "length_penalty": decoding.length_penalty,
            "no_repeat_ngram_size": decoding.no_repeat_ngram,
            "early_stopping": decoding.beam_size > 1,
            "max_length": longest - 1,
            "min_new_tokens": decoding.min_pieces,
            "suppress_tokens": sorted(search_options(decoding, tgt).suppressed),
        },
        "tokenizer_config.json": {
            **names,
            "tokenizer_class": "MarianTokenizer",
            "source_lang": config.data.src,
            "target_lang": config.data.tgt,
            "separate_vocabs": separate,
            "model_max_length": config.data.max_length + 1,
        },
        "vocab.json": _vocabulary(tokenizers.src),
    }
    if separate:
        described["target_vocab.json"] = _vocabulary(tgt)
    for name, content in described.items():
        write_text(folder / name, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
    write_bytes(folder / "source.spm", tokenizers.src.model)
    write_bytes(folder / "target.spm", tgt.model)


_TOKEN_IDS = ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id", "forced_eos_token_id")


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of the tokens."""
    return {tokenizer.piece(index): index for index in range(tokenizer.vocab_size)}
