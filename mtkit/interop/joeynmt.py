"""JoeyNMT's model folders: config.yaml, checkpoints, src_vocab.txt and trg_vocab.txt.

The checkpoint is a dict with the weights under `model_state` (https://github.com/joeynmt/joeynmt, version 2). Text is
split by SentencePiece or subword-nmt, whose files JoeyNMT copies into the folder, or into words or characters.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from mtkit.config.yaml_document import load_yaml
from mtkit.data.segmentation import (
    BytePairEncoding,
    Characters,
    Preparation,
    Segmentation,
    SentencePiece,
    Words,
)
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
    read_file,
    read_lines_of,
    tying,
)
from mtkit.interop.pickles import load_pickle

_CONFIG = "config.yaml"
_SIDES = {"src": "encoder", "trg": "decoder"}
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "silu"}
_HINT = "copy the whole model_dir again"


class JoeyFormat:
    """A `model_dir` of JoeyNMT."""

    name = "JoeyNMT"
    files = f"{_CONFIG}, best.ckpt, src_vocab.txt, trg_vocab.txt"

    def recognizes(self, path: Path) -> bool:
        return (path / _CONFIG).is_file() and ((path / "src_vocab.txt").is_file() or any(path.glob("*.ckpt")))

    def read(self, path: Path, options: ImportOptions) -> ImportedModel:
        config = Settings(load_yaml(path / _CONFIG).data, str(path / _CONFIG))
        model = _model_section(config)
        return ImportedModel(
            toolkit=self.name,
            languages=(
                check_language(options.src or config.get("data.src.lang", str, ""), "src", config.where),
                check_language(options.tgt or config.get("data.trg.lang", str, ""), "tgt", config.where),
            ),
            model=model,
            decoding=_decoding_section(config),
            notes=_left_out(config),
            tokenizers=_read_tokenizers(path, config, options),
            weights=_read_weights(_checkpoint_file(path), config),
        )


def _model_section(config: Settings) -> dict[str, Any]:
    """Return the section `model` that computes what JoeyNMT's Transformer does.

    Raises:
        ConfigError: If mtkit has no such architecture.
    """
    for stack, default in (("encoder", "recurrent"), ("decoder", "transformer")):
        config.choose(f"model.{stack}.type", {"transformer": None}, default)
        config.choose(f"model.{stack}.activation", _ACTIVATIONS, "relu")
        width = config.get(f"model.{stack}.hidden_size", int)
        if config.get(f"model.{stack}.embeddings.embedding_dim", int) != width:
            what = f"model.{stack}.embeddings.embedding_dim is not model.{stack}.hidden_size"
            raise ConfigError(what, where=config.where, hint="mtkit has one width")
    _check_same(config, "hidden_size", int, 512)
    _check_same(config, "activation", str, "relu")
    shared = config.get("model.tied_embeddings", bool, False)
    if not shared:
        _check_same(config, "embeddings.scale", bool, False)
    tied = config.get("model.tied_softmax", bool, False)
    positions, final_norm = _norms(config)
    scales = _residual_scales(config)
    return {
        "d_model": config.get("model.encoder.hidden_size", int),
        "encoder_layers": config.get("model.encoder.num_layers", int, 8),
        "decoder_layers": config.get("model.decoder.num_layers", int, 4),
        "num_heads": config.get("model.encoder.num_heads", int, 4),
        "decoder_num_heads": config.get("model.decoder.num_heads", int, 8),
        "d_ff": config.get("model.encoder.ff_size", int, 2048),
        "decoder_d_ff": config.get("model.decoder.ff_size", int, 2048),
        "activation": config.choose("model.encoder.activation", _ACTIVATIONS, "relu"),
        "norm_position": positions[0],
        "decoder_norm_position": positions[1],
        "final_norm": final_norm,
        "norm_epsilon": 1e-6,
        "residual_scale": scales[0],
        "decoder_residual_scale": scales[1],
        "scale_embeddings": config.get("model.encoder.embeddings.scale", bool, False),
        "sinusoids": "interleaved",
        "dropout": config.get("model.encoder.dropout", float, 0.1),
        "attention_dropout": config.get("model.encoder.dropout", float, 0.1),
        "activation_dropout": config.get("model.encoder.dropout", float, 0.1),
        "tie_embeddings": tying(shared, tied),
    }


def _check_same(config: Settings, key: str, kind: type, default: Any) -> None:
    """Check that a key has the same value for encoder and decoder.

    Raises:
        ConfigError: If not.
    """
    own, other = (config.get(f"model.{stack}.{key}", kind, default) for stack in _SIDES.values())
    if own != other:
        what = f"model.encoder.{key} is {own!r}, but model.decoder.{key} is {other!r}"
        raise ConfigError(what, where=config.where, hint="mtkit has one value for both")


def _norms(config: Settings) -> tuple[list[str], bool | None]:
    """Return where encoder and decoder normalize, and `final_norm`.

    Without the key, an encoder of JoeyNMT 2.0 to 2.2 normalizes after its sublayers; one of 2.3 before them, but it has
    no final norm. The tensors are the same.

    Raises:
        ConfigError: If mtkit has no such combination, or the key is missing and the version is not 2.3 or later.
    """
    places = {"pre": "pre", "post": "post"}
    positions = [
        config.choose(f"model.{stack}.layer_norm", places, default)
        for stack, default in (("encoder", "pre"), ("decoder", "post"))
    ]
    if config.has("model.encoder.layer_norm"):
        return positions, None
    # Sample configs of 2.1 to 2.3 say 2.0.0, so that an older version decides nothing.
    version = re.match(r"(\d+)\.(\d+)", str(config.values.get("joeynmt_version")))
    if version is None or tuple(map(int, version.groups())) < (2, 3):
        hint = (
            "write post there if JoeyNMT 2.0 to 2.2 trained the model, or joeynmt_version: 2.3.0 if 2.3 did"
        )
        raise ConfigError("model.encoder.layer_norm is missing", where=config.where, hint=hint)
    if positions[1] == "pre":
        what = "model.decoder.layer_norm is 'pre', but model.encoder.layer_norm is missing"
        raise ConfigError(what, where=config.where, hint="mtkit has final norms in both stacks or in none")
    return positions, False


def _residual_scales(config: Settings) -> tuple[float, float]:
    """Return the factors of the residual streams: `alpha`, or those of DeepNet, whose initializer sets them."""
    if config.get("model.initializer", str, "xavier_uniform") == "xavier_normal":
        num_encoder = config.get("model.encoder.num_layers", int, 8)
        num_decoder = config.get("model.decoder.num_layers", int, 4)
        return 0.81 * (num_encoder**4 * num_decoder) ** (1 / 16), (3 * num_decoder) ** (1 / 4)
    return config.get("model.encoder.alpha", float, 1.0), config.get("model.decoder.alpha", float, 1.0)


def _decoding_section(config: Settings) -> dict[str, Any]:
    """Return how the config asks to decode in testing. `alpha` is the older name of `beam_alpha` and comes first."""
    penalty = config.get("testing.alpha", float, config.get("testing.beam_alpha", float, -1.0))
    section: dict[str, Any] = {
        "beam_size": max(1, config.get("testing.beam_size", int, 1)),
        "length_penalty": max(0.0, penalty),
        "penalty_kind": "gnmt",
        "min_pieces": max(0, config.get("testing.min_output_length", int, 1)),
        "no_repeat_ngram": max(0, config.get("testing.no_repeat_ngram_size", int, -1)),
    }
    if (longest := config.get("testing.max_output_length", int, -1)) > 0:
        section |= {"max_length_ratio": 0.0, "max_length_extra": longest}
    return section


def _left_out(config: Settings) -> tuple[str, ...]:
    """Return a line for a value of the search that mtkit has no counterpart for."""
    penalty = config.get("testing.repetition_penalty", float, -1.0)
    line = f"{_CONFIG}: testing.repetition_penalty {penalty:g} has no counterpart and is left out"
    return (line,) if penalty > 1 else ()


def _checkpoint_file(folder: Path) -> Path:
    """Return the best checkpoint, the latest, or the one of the most steps.

    Raises:
        StorageError: If there is none.
    """
    for name in ("best.ckpt", "latest.ckpt"):
        if (folder / name).exists():
            return folder / name
    numbered = [path for path in folder.glob("*.ckpt") if path.stem.isdecimal()]
    if not numbered:
        raise StorageError("no best.ckpt in this folder", where=str(folder), hint=_HINT)
    return max(numbered, key=lambda path: int(path.stem))


def _read_weights(path: Path, config: Settings) -> dict[str, Tensor]:
    """Return the weights under mtkit's names."""
    checkpoint = load_pickle(path)
    tensors = checkpoint.get("model_state") if isinstance(checkpoint, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise StorageError("not a checkpoint of JoeyNMT: no model_state", where=str(path), hint=_HINT)
    source = StateDict(tensors, str(path))
    weights = {
        "src_embedding.weight": source.take("src_embed.lut.weight"),
        "tgt_embedding.weight": source.take("trg_embed.lut.weight"),
        "output.weight": source.take("decoder.output_layer.weight"),
    }
    for stack, default in (("encoder", 8), ("decoder", 4)):
        for index in range(config.get(f"model.{stack}.num_layers", int, default)):
            weights |= _read_layer(source, f"{stack}.layers.{index}", f"{stack}.{index}", stack == "decoder")
        if f"{stack}.layer_norm.weight" in source:
            weights |= source.affine(f"{stack}.layer_norm", f"{stack}_norm")
    source.check_all_used((".pe.pe",))  # the sinusoids are computed
    return weights


def _read_layer(source: StateDict, place: str, name: str, is_decoder: bool) -> dict[str, Tensor]:
    """Return the weights of a layer."""
    attention = f"{place}.{'trg_trg_att' if is_decoder else 'src_src_att'}"
    norm = f"{place}.{'x_layer_norm' if is_decoder else 'layer_norm'}"
    weights = source.fused([f"{attention}.{kind}_layer" for kind in "qkv"], f"{name}.attention.qkv")
    weights |= source.affine(f"{attention}.output_layer", f"{name}.attention.out")
    weights |= source.affine(norm, f"{name}.attention_residual.norm")
    if is_decoder:
        cross = f"{place}.src_trg_att"
        weights |= source.affine(f"{cross}.q_layer", f"{name}.cross.q")
        weights |= source.fused([f"{cross}.{kind}_layer" for kind in "kv"], f"{name}.cross.kv")
        weights |= source.affine(f"{cross}.output_layer", f"{name}.cross.out")
        weights |= source.affine(f"{place}.dec_layer_norm", f"{name}.cross_residual.norm")
    inside = f"{place}.feed_forward"
    weights |= source.affine(f"{inside}.pwff_layer.0", f"{name}.feed_forward.inner")
    weights |= source.affine(f"{inside}.pwff_layer.3", f"{name}.feed_forward.outer")
    return weights | source.affine(f"{inside}.layer_norm", f"{name}.feed_forward_residual.norm")


def _read_tokenizers(folder: Path, config: Settings, options: ImportOptions) -> Tokenizers:
    """Return the tokenizers of both sides."""
    config.refuse("data.special_symbols.sep_token")
    config.refuse("data.special_symbols.lang_tags")
    special = {
        name: config.get(f"data.special_symbols.{name}_token", str, default)
        for name, default in (("unk", "<unk>"), ("pad", "<pad>"), ("bos", "<s>"), ("eos", "</s>"))
    }
    sides = []
    for side in _SIDES:
        path = folder / f"{side}_vocab.txt"
        tokens = list(dict.fromkeys([*special.values(), *read_lines_of(path)]))
        vocabulary = make_vocabulary(tokens, str(path), **special)
        segmentation = _read_segmentation(folder, config, side, options, vocabulary.pieces)
        sides.append(VocabularyTokenizer(segmentation, vocabulary))
    return join_tokenizers(
        sides,
        shared=config.get("model.tied_embeddings", bool, False),
        where=str(folder),
        differ="model.tied_embeddings is true, but src_vocab.txt and trg_vocab.txt differ",
    )


def _read_segmentation(
    folder: Path, config: Settings, side: str, options: ImportOptions, pieces: frozenset[str]
) -> Segmentation:
    """Return how a side is split into pieces.

    Raises:
        ConfigError: If mtkit cannot split text this way, a file is not there, or the user names one that is not needed.
        StorageError: If a file is damaged.
    """
    place = f"data.{side}"
    own = options.src_tokenizer if side == "src" else options.tgt_tokenizer
    config.refuse(f"{place}.normalize")
    moses = {"none": None, "moses": config.get(f"{place}.lang", str, "en")}
    language = config.choose(f"{place}.tokenizer_cfg.pretokenizer", moses, "none")
    lowercase = config.get(f"{place}.lowercase", bool, False)
    preparation = Preparation(moses=language, escape=language is not None, lowercase=lowercase)
    level = config.choose(f"{place}.level", {name: name for name in ("bpe", "word", "char")})
    if level != "bpe":
        if own is not None:
            what = f"`{side.replace('trg', 'tgt')}_tokenizer` is not for {place}.level '{level}'"
            raise ConfigError(what, where=config.where, hint="leave it out")
        return (Words if level == "word" else Characters)(b"", preparation=preparation)
    named = own or options.src_tokenizer
    kinds = {"sentencepiece": SentencePiece, "subword-nmt": BytePairEncoding}
    older = config.get(f"{place}.bpe_type", str, "sentencepiece")  # the key before version 2
    kind = config.choose(f"{place}.tokenizer_type", kinds, older)
    if kind is SentencePiece:
        wanted = config.get(f"{place}.tokenizer_cfg.model_file", str, "")
        path = find_file(folder, named, wanted, (".model", ".spm"))
        return SentencePiece(read_file(path), str(path), preparation=preparation, only=pieces)
    wanted = config.get(f"{place}.tokenizer_cfg.codes", str, "")
    path = find_file(folder, named, wanted, (".codes", ".bpe"))
    separator = config.get(f"{place}.tokenizer_cfg.separator", str, "@@")
    return BytePairEncoding(
        read_file(path), separator=separator, preparation=preparation, only=pieces, where=str(path)
    )
