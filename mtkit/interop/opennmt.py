"""OpenNMT-py's models: one .pt file with `model`, `generator`, `vocab` and `opt` (https://github.com/OpenNMT/OpenNMT-py).

Version 3 is read; its `tools/convertv2_v3.py` converts older files. Sources have no eos, and every sublayer normalizes
its input. The activation `silu` there has a gate.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkit.data.segmentation import Preparation, Segmentation, Words
from mtkit.data.tokenizer import Tokenizers, VocabularyTokenizer
from mtkit.errors import ConfigError, StorageError
from mtkit.interop.importing import (
    ImportedModel,
    ImportOptions,
    Settings,
    StateDict,
    check_language,
    find_file,
    join_tokenizers,
    make_vocabulary,
    read_segmentation,
    tying,
)
from mtkit.interop.pickles import load_pickle

_ENDING = ".pt"
_NAMES_IN_FAIRSEQ = {"model.pt", "checkpoint_best.pt", "checkpoint_last.pt"}
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "swiglu", "gated-gelu": "geglu"}
_NORMS = {"standard": "layernorm", "rms": "rmsnorm"}
_POSITIONS = {"SinusoidalInterleaved": "interleaved", "SinusoidalConcat": "fairseq"}
_HINT = "copy the file again"
DECODING = {"beam_size": 5, "length_penalty": 1.0, "penalty_kind": "simple"}
"""How `translate` of both toolkits decodes, unless it is told otherwise."""
VOCABULARIES_DIFFER = "share_embeddings is true, but the vocabularies differ"


@dataclass(frozen=True)
class LayerNames:
    """Names of the parts of a layer.

    Attributes:
        attention_norm, cross_norm: norms before self-attention and cross-attention.
        feed_forward_norm: norm before the feed-forward layers.
        inner, gated, outer: feed-forward matrices; the second is there if the activation has a gate.
    """

    attention_norm: str
    cross_norm: str
    feed_forward_norm: str
    inner: str
    gated: str
    outer: str


_ENCODER = LayerNames(
    "layer_norm", "", "feed_forward.layer_norm", "feed_forward.w_1", "feed_forward.w_3", "feed_forward.w_2"
)
_DECODER = LayerNames(
    "layer_norm_1",
    "layer_norm_2",
    "feed_forward.layer_norm",
    "feed_forward.w_1",
    "feed_forward.w_3",
    "feed_forward.w_2",
)


class OpenNMTFormat:
    """A .pt file of OpenNMT-py, or a folder with one or more of them, of which that of the most steps is read."""

    name = "OpenNMT-py"
    files = f"a {_ENDING} file, and the files that split text"

    def recognizes(self, path: Path) -> bool:
        if path.is_dir():
            names = {file.name for file in path.glob(f"*{_ENDING}")} - _NAMES_IN_FAIRSEQ
            return bool(names) and not any(path.glob("dict.*.txt"))
        return path.suffix == _ENDING

    def read(self, path: Path, options: ImportOptions) -> ImportedModel:
        file = _newest(path) if path.is_dir() else path
        checkpoint = load_pickle(file, (argparse.Namespace,))
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("opt"), argparse.Namespace):
            raise StorageError("not a model of OpenNMT-py: no 'opt'", where=str(file), hint=_HINT)
        opt = Settings(vars(checkpoint["opt"]), str(file))
        model = _model_section(opt)
        return ImportedModel(
            toolkit=self.name,
            languages=(
                check_language(options.src, "src", str(file)),
                check_language(options.tgt, "tgt", str(file)),
            ),
            model=model,
            decoding=DECODING,
            tokenizers=_read_tokenizers(checkpoint, file, opt, options),
            weights=_read_weights(checkpoint, file, model, opt.get("rotary_interleave", bool, True)),
        )


def _newest(folder: Path) -> Path:
    """Return the file of the most steps: the number at the end of its name."""

    def step(path: Path) -> int:
        number = path.stem.rpartition("_")[2]
        return int(number) if number.isdecimal() else -1

    return max(sorted(folder.glob(f"*{_ENDING}")), key=step)


def _model_section(opt: Settings) -> dict[str, Any]:
    """Return the section `model` that computes what OpenNMT-py's Transformer does.

    Raises:
        ConfigError: If mtkit has no such architecture.
    """
    for stack in ("encoder", "decoder"):
        opt.choose(f"{stack}_type", {"transformer": None}, "rnn")
    opt.choose("model_task", {"seq2seq": None}, "seq2seq")
    opt.choose("model_type", {"text": None}, "text")
    opt.choose("self_attn_type", {"scaled-dot": None, "scaled-dot-flash": None}, "scaled-dot")
    opt.choose("generator_function", {"softmax": None}, "softmax")
    for key in ("copy_attn", "parallel_residual", "relative_positions_buckets", "sliding_window", "num_experts",
                "coverage_attn", "lora_layers", "lora_embedding", "quant_layers", "rotary_dim"):  # fmt: skip
        opt.refuse(key)
    opt.refuse("rotary_theta", (10000,))
    width = _width(opt)
    distance = opt.get("max_relative_positions", int, 0)
    qkv_bias = opt.get("add_qkvbias", bool, False)
    heads = opt.get("num_kv", int, 0)
    return {
        "d_model": width,
        "encoder_layers": opt.get("enc_layers", int),
        "decoder_layers": opt.get("dec_layers", int),
        "num_heads": opt.get("heads", int),
        "num_kv_heads": heads or None,
        "d_ff": opt.get("transformer_ff", int),
        "activation": opt.choose("pos_ffn_activation_fn", _ACTIVATIONS, "relu"),
        "norm": opt.choose("layer_norm", _NORMS, "standard"),
        "norm_epsilon": opt.get("norm_eps", float, 1e-6),
        "attention_bias": qkv_bias,
        "bias": opt.get("add_ffnbias", bool, True),
        "output_bias": True,
        "source_eos": False,
        **_positions(opt, distance),
        "dropout": first_number(opt, "dropout"),
        "attention_dropout": first_number(opt, "attention_dropout"),
        "activation_dropout": first_number(opt, "dropout"),
        "tie_embeddings": tying(
            opt.get("share_embeddings", bool, False), opt.get("share_decoder_embeddings", bool, False)
        ),
    }


def _width(opt: Settings) -> int:
    """Return the width of the model.

    Raises:
        ConfigError: If embeddings, encoder and decoder differ in it.
    """
    keys = ("enc_hid_size", "dec_hid_size", "src_word_vec_size", "tgt_word_vec_size")
    usual = max(opt.get("hidden_size", int, -1), opt.get("rnn_size", int, -1))
    widths = {key: opt.get(key, int, usual) for key in keys}
    other = next((key for key in keys if widths[key] != widths["enc_hid_size"]), None)
    if other is not None:
        what = f"{other} is {widths[other]}, but enc_hid_size is {widths['enc_hid_size']}"
        raise ConfigError(what, where=opt.where, hint="mtkit has one width")
    return widths["enc_hid_size"]


def _positions(opt: Settings, distance: int) -> dict[str, Any]:
    """Return the keys about positions. Embeddings are scaled only where sinusoids are added to them.

    Raises:
        ConfigError: If mtkit has no such positions.
    """
    added = opt.get("position_encoding", bool, False)
    if distance == -1 and not added:
        return {"positions": "rotary", "scale_embeddings": False}
    if distance > 0 and not added:
        return {"positions": "relative", "max_relative_distance": distance, "scale_embeddings": False}
    if distance == 0 and added:
        order = opt.choose("position_encoding_type", _POSITIONS, "SinusoidalInterleaved")
        return {"positions": "sinusoidal", "sinusoids": order}
    what = f"max_relative_positions is {distance} and position_encoding is {str(added).lower()}"
    hint = "mtkit has one kind of positions, and none alone or with a linear bias"
    raise ConfigError(what, where=opt.where, hint=hint)


def first_number(settings: Settings, key: str) -> float:
    """Return a number, or the first of a list: values for parts of the training. It is 0.1 if there is none.

    Raises:
        StorageError: If it is something else.
    """
    value = settings.get(key, object, 0.1)
    if isinstance(value, list):
        value = value[0] if value else 0.1
    name = key.rpartition(".")[2]
    return Settings({name: value}, settings.where).get(name, float, 0.1)


def _read_weights(
    checkpoint: Mapping[str, Any], path: Path, model: Mapping[str, Any], interleaved: bool
) -> dict[str, Tensor]:
    """Return the weights under mtkit's names."""
    tensors: dict[str, Tensor] = {}
    for part, prefix in (("model", ""), ("generator", "generator.")):
        state = checkpoint.get(part)
        if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise StorageError(f"not a model of OpenNMT-py: no '{part}'", where=str(path), hint=_HINT)
        tensors |= {prefix + name.removeprefix("0."): tensor for name, tensor in state.items()}
    source = StateDict(tensors, str(path))
    table = "embeddings.make_embedding.emb_luts.0.weight"
    weights = {
        "src_embedding.weight": source.take(f"encoder.{table}"),
        "tgt_embedding.weight": source.take(f"decoder.{table}"),
        "output.weight": source.take("generator.weight"),
        "output.bias": source.take("generator.bias"),
    }
    for stack, place, names in (
        ("encoder", "encoder.transformer", _ENCODER),
        ("decoder", "decoder.transformer_layers", _DECODER),
    ):
        for index in range(model[f"{stack}_layers"]):
            weights |= read_layer(source, f"{place}.{index}", f"{stack}.{index}", names, model, interleaved)
        weights |= source.affine(f"{stack}.layer_norm", f"{stack}_norm")
    source.check_all_used((".pe.pe",))  # the sinusoids are computed
    return weights


def read_layer(
    source: StateDict,
    place: str,
    name: str,
    names: LayerNames,
    model: Mapping[str, Any],
    interleaved: bool,
    distance_factor: float = 1.0,
) -> dict[str, Tensor]:
    """Return the weights of a layer of OpenNMT-py or Eole under mtkit's names.

    Args:
        source: the state dict.
        place: beginning of the names there.
        name: beginning of the names here.
        names: names of the parts there.
        model: section `model`.
        interleaved: whether rotary positions rotate neighboring columns of a head. mtkit rotates column i with column
            i + E/2, so that the rows of queries and keys are sorted.
        distance_factor: factor of the relative positions of keys; mtkit divides them by sqrt(E) like the keys.
    """
    kinds = ("query", "keys", "values")
    weights = source.fused([f"{place}.self_attn.linear_{kind}" for kind in kinds], f"{name}.attention.qkv")
    if model["positions"] == "rotary" and interleaved:
        width = model["d_model"] // model["num_heads"]
        rows = width * (model["num_heads"] + (model["num_kv_heads"] or model["num_heads"]))
        weights = {
            key: torch.cat([_even_first(tensor[:rows], width), tensor[rows:]])
            for key, tensor in weights.items()
        }
    weights |= source.affine(f"{place}.self_attn.final_linear", f"{name}.attention.out")
    weights |= source.affine(f"{place}.{names.attention_norm}", f"{name}.attention_residual.norm")
    if model["positions"] == "relative":  # one table for keys and values
        distances = source.take(f"{place}.self_attn.relative_positions_embeddings.weight")
        weights[f"{name}.attention.relative.keys"] = distances * distance_factor
        weights[f"{name}.attention.relative.values"] = distances
    if names.cross_norm:
        cross = f"{place}.context_attn"
        weights |= source.affine(f"{cross}.linear_query", f"{name}.cross.q")
        weights |= source.fused([f"{cross}.linear_{kind}" for kind in kinds[1:]], f"{name}.cross.kv")
        weights |= source.affine(f"{cross}.final_linear", f"{name}.cross.out")
        weights |= source.affine(f"{place}.{names.cross_norm}", f"{name}.cross_residual.norm")
    inner = [names.inner, names.gated] if model["activation"] in ("swiglu", "geglu") else [names.inner]
    weights |= source.fused([f"{place}.{part}" for part in inner], f"{name}.feed_forward.inner")
    weights |= source.affine(f"{place}.{names.outer}", f"{name}.feed_forward.outer")
    return weights | source.affine(f"{place}.{names.feed_forward_norm}", f"{name}.feed_forward_residual.norm")


def _even_first(rows: Tensor, width: int) -> Tensor:
    """Return the rows [heads x E, ...] of a projection with the even ones of each head before the odd ones."""
    return rows.unflatten(0, (-1, width // 2, 2)).transpose(1, 2).flatten(0, 2)


def _read_tokenizers(
    checkpoint: Mapping[str, Any], path: Path, opt: Settings, options: ImportOptions
) -> Tokenizers:
    """Return the tokenizers of both sides."""
    vocabs = checkpoint.get("vocab")
    if not isinstance(vocabs, Mapping):
        raise StorageError("not a model of OpenNMT-py 3: no 'vocab'", where=str(path), hint=_HINT)
    found = Settings(vocabs, str(path))
    found.refuse("src_feats")
    transforms = opt.get("transforms", list, [])
    check_unrestricted(opt)
    files = {side: opt.get(f"{side}_subword_model", str, "") for side in ("src", "tgt")}
    segmentations = read_segmentations(path.parent, transforms, files, opt, options)
    start = found.get("decoder_start_token", str, "<s>")
    special = {"pad": "<blank>", "unk": "<unk>", "bos": start, "eos": "</s>"}
    sides = [
        VocabularyTokenizer(
            segmentation, make_vocabulary(vocabulary_tokens(found, side), str(path), **special)
        )
        for side, segmentation in zip(("src", "tgt"), segmentations, strict=True)
    ]
    return join_tokenizers(
        sides, shared=opt.get("share_embeddings", bool, False), where=str(path), differ=VOCABULARIES_DIFFER
    )


def check_unrestricted(settings: Settings, place: str = "") -> None:
    """Check that the pieces of the transforms are not restricted to the frequent ones of a file.

    Args:
        settings: settings of the training.
        place: beginning of the keys.

    Raises:
        ConfigError: If they are.
    """
    for side in ("src", "tgt"):
        if settings.get(f"{place}{side}_vocab_threshold", int, 0) > 0:
            settings.refuse(f"{place}{side}_subword_vocab")


def vocabulary_tokens(vocabs: Settings, side: str) -> list[str]:
    """Return the tokens of a side by id.

    Raises:
        StorageError: If they are not strings.
    """
    tokens = vocabs.get(side, list)
    if not all(isinstance(token, str) for token in tokens):
        raise StorageError(f"the vocabulary {side} is not a list of strings", where=vocabs.where, hint=_HINT)
    return tokens


def read_segmentations(
    folder: Path,
    transforms: Sequence[object],
    files: Mapping[str, str],
    settings: Settings,
    options: ImportOptions,
) -> list[Segmentation]:
    """Return how both sides are split into pieces, as the transforms of the training say or the user.

    Args:
        folder: where the files are looked for.
        transforms: names of the transforms.
        files: paths of the models where the model was trained, by side.
        settings: settings, for messages.
        options: may name the files.

    Raises:
        ConfigError: If mtkit has no such transform, or a file is not there.
    """
    named = {"src": options.src_tokenizer, "tgt": options.tgt_tokenizer or options.src_tokenizer}
    kinds = {"sentencepiece": (".model", ".spm"), "bpe": (".codes", ".bpe", ".model")}
    used = [transform for transform in transforms if transform in kinds]
    if options.src_tokenizer is None and "onmt_tokenize" in transforms:
        hint = "name SentencePiece models or BPE codes with `src_tokenizer` and `tgt_tokenizer`"
        raise ConfigError("transforms has 'onmt_tokenize'", where=settings.where, hint=hint)
    sides: list[Segmentation] = []
    for side in ("src", "tgt"):
        if not used and named[side] is None:
            sides.append(Words(b""))
            continue
        path = find_file(
            folder, named[side], files[side] or files["src"], kinds[str(used[0])] if used else ()
        )
        sides.append(read_segmentation(path, Preparation()))
    return sides
