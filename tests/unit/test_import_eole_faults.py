"""Folders of Eole that cannot be imported: one line each, and nothing written. Files as Eole writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peers
import pytest
import torch
from safetensors.torch import save_file

from mtkit.interop.formats import FORMATS
from mtkit.interop.importing import ImportOptions, import_model
from mtkit.translation.translator import Translator

TOKENS = ["<unk>", "<blank>", "<s>", "</s>", "the", "dog", "le", "chien"]


def tensors() -> dict[str, torch.Tensor]:
    """A state dict of one encoder and one decoder layer without biases, whose embeddings are shared."""
    size, width, ff = len(TOKENS), 8, 12
    shapes: dict[str, tuple[int, ...]] = {
        "src_emb.embeddings.weight": (size, width),
        "generator.bias": (size,),
    }
    norms = []
    for stack, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "context_attn"])):
        place = f"{stack}.transformer_layers.0"
        for attention in attentions:
            for part in ("linear_keys", "linear_values", "linear_query", "final_linear"):
                shapes[f"{place}.{attention}.{part}.weight"] = (width, width)
        shapes[f"{place}.mlp.gate_up_proj.weight"] = (ff, width)
        shapes[f"{place}.mlp.down_proj.weight"] = (width, ff)
        norms += [f"{stack}.layer_norm", f"{place}.input_layernorm", f"{place}.post_attention_layernorm"]
    for norm in (*norms, "decoder.transformer_layers.0.precontext_layernorm"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def config() -> dict[str, Any]:
    return {
        "model": {
            "architecture": "transformer", "hidden_size": 8, "layers": 1, "heads": 2, "transformer_ff": 12,
            "share_embeddings": True, "share_decoder_embeddings": True, "embeddings": {},
        }
    }  # fmt: skip


def write(folder: Path, settings: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings or config()))
    (folder / "vocab.json").write_text(json.dumps({"src": TOKENS, "tgt": TOKENS}))
    save_file(tensors(), folder / "model.00.safetensors")
    return folder


put = partial(peers.with_value, config())
"""The config with another value."""


def test_a_complete_folder_is_imported(tmp_path: Path) -> None:
    languages = ImportOptions("en", "fr")
    imported = import_model(str(write(tmp_path / "eole")), tmp_path / "ours", FORMATS, languages)
    assert imported.toolkit == "Eole" and imported.tokenizers.joint
    translator = Translator.load(tmp_path / "ours", max_length_extra=3)
    (translation,) = translator.translate(["the dog"])
    assert set(translation.text.split()) <= set(TOKENS)


CONFIGS: list[tuple[dict[str, Any], str]] = [
    (put("model.architecture", "rnn"), "model.architecture is 'rnn'"),
    (put("model.architecture", "transformer_lm"), "model.architecture is 'transformer_lm'"),
    (put("model.parallel_residual", True), "model.parallel_residual is True"),
    (put("model.decoder.num_experts", 8), "model.decoder.num_experts is 8"),
    (put("model.max_relative_positions", -1), "model.max_relative_positions is -1"),
    (put("model.embeddings.position_encoding_type", "Alibi"), "position_encoding_type is 'Alibi'"),
    (put("model.rope_config", {"rotary_theta": 1000000}), "model.rope_config.rotary_theta is 1000000"),
    (put("model.mlp_activation_fn", "gelu-tanh"), "mlp_activation_fn is 'gelu-tanh'"),
    (put("model.layer_norm", "gemma-rms"), "layer_norm is 'gemma-rms'"),
    (put("model.encoder.encoder_layer_style", "postnorm"), "encoder_layer_style is 'postnorm'"),
    (put("model.decoder.norm_eps", 1e-6), "model.decoder.norm_eps is 1e-06"),
    (put("model.generator_function", "sparsemax"), "model.generator_function is 'sparsemax'"),
    (put("model.layers", "six"), "layers is 'six', not int"),
    (put("transforms", ["onmt_tokenize"]), "transforms has 'onmt_tokenize'"),
]


@pytest.mark.parametrize(("settings", "message"), CONFIGS, ids=[message for _, message in CONFIGS])
def test_what_cannot_be_expressed_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    peers.check_refused(
        write(tmp_path / "eole", settings), tmp_path / "ours", message, ImportOptions("en", "fr")
    )


def without(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        save_file(
            {key: own for key, own in tensors().items() if key != name}, folder / "model.00.safetensors"
        )

    return damage


def half_of_the_biases(folder: Path) -> None:
    extra = {"encoder.transformer_layers.0.self_attn.linear_query.bias": torch.ones(8)}
    save_file(tensors() | extra, folder / "model.00.safetensors")


FILES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
    (lambda folder: (folder / "vocab.json").unlink(), "vocab.json"),
    (lambda folder: (folder / "vocab.json").write_text('{"src": ["<unk>"]}'), "'<blank>' is not a token"),
    (lambda folder: (folder / "model.00.safetensors").write_bytes(b"\1" * 99), "not a safetensors file"),
    (without("decoder.layer_norm.weight"), "no tensor 'decoder.layer_norm.weight'"),
    (half_of_the_biases, "has a bias"),
]


@pytest.mark.parametrize(("damage", "message"), FILES, ids=[message for _, message in FILES])
def test_damaged_files(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "eole")
    damage(folder)
    peers.check_refused(folder, tmp_path / "ours", message, ImportOptions("en", "fr"))
