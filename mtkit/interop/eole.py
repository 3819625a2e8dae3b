"""Eole's model folders: config.json, vocab.json and model.00.safetensors (https://github.com/eole-nlp/eole).

Eole continues OpenNMT-py: sources have no eos, and every sublayer normalizes its input. config.json has only what the
user set, at the level of the model or of encoder and decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mtkit.checkpoint import load_tensors, read_json
from mtkit.data.tokenizer import Tokenizers, VocabularyTokenizer
from mtkit.errors import ConfigError
from mtkit.interop.importing import (
    ImportedModel,
    ImportOptions,
    Settings,
    StateDict,
    check_language,
    join_tokenizers,
    make_vocabulary,
    tying,
)
from mtkit.interop.opennmt import (
    DECODING,
    VOCABULARIES_DIFFER,
    LayerNames,
    check_unrestricted,
    first_number,
    read_layer,
    read_segmentations,
    vocabulary_tokens,
)

T = TypeVar("T")

_CONFIG, _WEIGHTS, _VOCABULARY = "config.json", "model.00.safetensors", "vocab.json"
_ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu", "silu": "silu", "gated-silu": "swiglu", "gated-gelu": "geglu"
}  # fmt: skip
_NORMS = {"standard": "layernorm", "rms": "rmsnorm"}
_SINUSOIDS = {"SinusoidalInterleaved": "interleaved", "SinusoidalConcat": "fairseq"}
_POSITIONS = {
    **dict.fromkeys(_SINUSOIDS, "sinusoidal"), "Learned": "learned", "Relative": "relative", "Rotary": "rotary"
}  # fmt: skip
# max_relative_positions is of Eole 0.0.1, which chose the kind of positions by it, as OpenNMT-py does.
_REFUSED = (
    "parallel_residual", "relative_positions_buckets", "sliding_window", "num_experts", "ffn_layernorm", "query_norm",
    "key_norm", "value_norm", "q_gating", "attn_scaling", "head_dim", "coverage_attn", "layer_types",
    "rope_config.scaling_type", "rope_config.rotary_dim", "rope_config.partial_rotary_factor", "max_relative_positions",
)  # fmt: skip
_ENCODER = LayerNames(
    attention_norm="input_layernorm",
    cross_norm="",
    feed_forward_norm="post_attention_layernorm",
    inner="mlp.gate_up_proj",
    gated="mlp.up_proj",
    outer="mlp.down_proj",
)
_DECODER = replace(_ENCODER, cross_norm="precontext_layernorm")


class EoleFormat:
    """A model folder of Eole."""

    name = "Eole"
    files = f"{_CONFIG}, {_WEIGHTS}, {_VOCABULARY}"

    def recognizes(self, path: Path) -> bool:
        return (path / _CONFIG).is_file() and (path / _WEIGHTS).exists()

    def read(self, path: Path, options: ImportOptions) -> ImportedModel:
        config = _Config(path / _CONFIG)
        model = _model_section(config)
        source = StateDict(load_tensors(path / _WEIGHTS), str(path / _WEIGHTS))
        model |= _biases(source)
        return ImportedModel(
            toolkit=self.name,
            languages=(
                check_language(options.src, "src", config.where),
                check_language(options.tgt, "tgt", config.where),
            ),
            model=model,
            decoding=DECODING,
            max_length=min(512, model.get("max_positions", 513) - 1),
            tokenizers=_read_tokenizers(path, config, options),
            weights=_read_weights(source, model, config.of("rope_config.rotary_interleave", bool, True)),
        )


class _Config(Settings):
    """The settings of config.json."""

    def __init__(self, path: Path) -> None:
        super().__init__(read_json(path), str(path))

    def of(self, key: str, kind: type[T], default: T, stack: str = "encoder") -> T:
        """Return a value of the encoder or decoder: its own, or that of the model.

        Raises:
            StorageError: If it is of another type.
        """
        own = f"model.{stack}.{key}"
        return self.get(own if self.has(own) else f"model.{key}", kind, default)

    def of_both(self, key: str, kind: type[T], default: T) -> T:
        """Return a value that encoder and decoder share.

        Raises:
            ConfigError: If they differ in it.
        """
        own, other = (self.of(key, kind, default, stack) for stack in ("encoder", "decoder"))
        if own != other:
            what = f"model.encoder.{key} is {own!r}, but model.decoder.{key} is {other!r}"
            raise ConfigError(what, where=self.where, hint="mtkit has one value for both")
        return own

    def choose_both(self, key: str, choices: Mapping[str, str], default: str) -> str:
        """Return what mtkit has for a value that encoder and decoder share.

        Raises:
            ConfigError: If it has nothing for it, or they differ.
        """
        value = self.of_both(key, str, default)
        return Settings({key: value}, self.where).choose(key, choices)


def _model_section(config: _Config) -> dict[str, Any]:
    """Return the section `model` that computes what Eole's Transformer does, without the keys about biases.

    Raises:
        ConfigError: If mtkit has no such architecture.
    """
    config.choose("model.architecture", {"transformer": None, "custom": None}, "custom")
    own = config.get("model.architecture", str, "custom") == "transformer"
    for stack in ("encoder", "decoder"):
        if not own:
            config.choose(f"model.{stack}.{stack}_type", {"transformer": None}, "rnn")
        for key in _REFUSED:
            config.refuse(f"model.{stack}.{key}")
        config.refuse(f"model.{stack}.rope_config.rotary_theta", (10000,))
        config.refuse(f"model.{stack}.add_key_bias", (config.of("add_qkvbias", bool, False, stack),))
    for key in (*_REFUSED, "add_estimator"):
        config.refuse(f"model.{key}")
    config.refuse("model.rope_config.rotary_theta", (10000,))
    config.refuse("model.encoder.encoder_layer_style", ("standard",))
    config.refuse("model.encoder.final_encoder_layer_norm", (True,))
    config.choose("model.generator_function", {"softmax": None}, "softmax")
    return {
        "d_model": config.of_both("hidden_size", int, 512),
        "encoder_layers": config.of("layers", int, 2),
        "decoder_layers": config.of("layers", int, 2, "decoder"),
        "num_heads": config.of("heads", int, 8),
        "decoder_num_heads": config.of("heads", int, 8, "decoder"),
        "num_kv_heads": config.of_both("heads_kv", int, 0) or None,
        "d_ff": config.of("transformer_ff", int, 2048),
        "decoder_d_ff": config.of("transformer_ff", int, 2048, "decoder"),
        "activation": config.choose_both("mlp_activation_fn", _ACTIVATIONS, "relu"),
        "norm": config.choose_both("layer_norm", _NORMS, "standard"),
        "norm_epsilon": config.of_both("norm_eps", float, 1e-5),
        "source_eos": False,
        **_positions(config),
        "dropout": first_number(config, "training.dropout"),
        "attention_dropout": first_number(config, "training.attention_dropout"),
        "activation_dropout": first_number(config, "training.dropout"),
        "tie_embeddings": tying(
            config.get("model.share_embeddings", bool, False),
            config.get("model.share_decoder_embeddings", bool, False),
        ),
    }


def _positions(config: _Config) -> dict[str, Any]:
    """Return the keys about positions. Embeddings are scaled with sinusoids, or if the config says so.

    Raises:
        ConfigError: If mtkit has no such positions.
    """
    place = "model.embeddings"
    above = config.get("model.position_encoding_type", str, "SinusoidalInterleaved")
    kind = config.choose(f"{place}.position_encoding_type", _POSITIONS, above)
    scaled = config.get(f"{place}.normalize", bool, False)
    number = config.get(f"{place}.n_positions", int, config.of("n_positions", int, 0))
    config.refuse(f"{place}.position_shift")
    match kind:
        case "sinusoidal":
            order = config.get(f"{place}.position_encoding_type", str, above)
            return {"positions": kind, "sinusoids": _SINUSOIDS[order]}
        case "learned":
            config.refuse(f"{place}.normalize")  # it would scale the positions, too
            return {"positions": kind, "max_positions": number, "scale_embeddings": False}
        case "relative":
            return {"positions": kind, "max_relative_distance": number, "scale_embeddings": scaled}
        case _:
            return {"positions": kind, "scale_embeddings": scaled}


def _biases(source: StateDict) -> dict[str, bool]:
    """Return the keys about biases, which the weights show: encoder and decoder may differ in them."""

    def has(part: str) -> bool:
        return any(name.endswith(f"{part}.bias") for name in source.tensors)

    return {
        "bias": has("mlp.gate_up_proj"),
        "attention_bias": has("linear_query"),
        "attention_output_bias": has("final_linear"),
        "output_bias": has("generator"),
    }


def _read_weights(source: StateDict, model: dict[str, Any], interleaved: bool) -> dict[str, Tensor]:
    """Return the weights under mtkit's names. Shared matrices are stored once."""
    src, tgt, out = "src_emb.embeddings.weight", "tgt_emb.embeddings.weight", "generator.weight"
    target = tgt if tgt in source else src
    weights = {
        "src_embedding.weight": source.take(src),
        "tgt_embedding.weight": source.take(target),
        "output.weight": source.take(out if out in source else target),
    }
    if model["output_bias"]:
        weights["output.bias"] = source.take("generator.bias")
    if model["positions"] == "learned":
        for side in ("src", "tgt"):
            weights[f"{side}_embedding.positions.weight"] = source.take(f"{side}_emb.pe.weight")
    for stack, names in (("encoder", _ENCODER), ("decoder", _DECODER)):
        for index in range(model[f"{stack}_layers"]):
            place = f"{stack}.transformer_layers.{index}"
            heads = model["decoder_num_heads" if stack == "decoder" else "num_heads"]
            own = model | {"num_heads": heads}
            factor = (model["d_model"] / heads) ** 0.5  # Eole adds relative positions to the scores unscaled
            weights |= read_layer(source, place, f"{stack}.{index}", names, own, interleaved, factor)
        weights |= source.affine(f"{stack}.layer_norm", f"{stack}_norm")
    source.check_all_used((".pe.pe", ".layer_scalar"))  # computed, or 1
    return weights | _zero_biases(weights, model)


def _zero_biases(weights: Mapping[str, Tensor], model: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return biases of 0 for layers without biases whose likes in the other stack have them."""
    parts = {
        "attention_bias": ("attention.qkv", "cross.q", "cross.kv"),
        "attention_output_bias": ("attention.out", "cross.out"),
        "bias": ("feed_forward.inner", "feed_forward.outer"),
    }
    endings = tuple(f"{part}.weight" for key, names in parts.items() if model[key] for part in names)
    places = [name.removesuffix(".weight") for name in weights if name.endswith(endings)]
    return {
        f"{place}.bias": torch.zeros(len(weights[f"{place}.weight"]))
        for place in places
        if f"{place}.bias" not in weights
    }


def _read_tokenizers(folder: Path, config: _Config, options: ImportOptions) -> Tokenizers:
    """Return the tokenizers of both sides."""
    path = folder / _VOCABULARY
    found = Settings(read_json(path), str(path))
    for kind in ("sentencepiece", "bpe"):
        check_unrestricted(config, f"transforms_configs.{kind}.")
    files = {}
    for side in ("src", "tgt"):
        key = f"{side}_subword_model"
        names = [config.get(f"transforms_configs.{kind}.{key}", str, "") for kind in ("sentencepiece", "bpe")]
        files[side] = next(filter(None, names), "")
    transforms = config.get("transforms", list, config.get("training.transforms", list, []))
    segmentations = read_segmentations(folder, transforms, files, config, options)
    special = {
        "pad": found.get("specials.pad_token", str, "<blank>"),
        "unk": found.get("specials.unk_token", str, "<unk>"),
        "bos": found.get("decoder_start_token", str, "<s>"),
        "eos": found.get("specials.eos_token", str, "</s>"),
    }
    sides = [
        VocabularyTokenizer(
            segmentation, make_vocabulary(vocabulary_tokens(found, side), str(path), **special)
        )
        for side, segmentation in zip(("src", "tgt"), segmentations, strict=True)
    ]
    shared = config.get("model.share_embeddings", bool, False)
    return join_tokenizers(sides, shared=shared, where=str(path), differ=VOCABULARIES_DIFFER)
