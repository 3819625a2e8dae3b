"""fairseq models of the architecture `transformer`: a checkpoint, dict.SRC.txt, dict.TGT.txt, and what splits text.

The classes there are `TransformerModel` and `Dictionary` (https://github.com/facebookresearch/fairseq). Neither fairseq
nor omegaconf is needed: the options of a checkpoint are read without running code.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mtkit.data.segmentation import Preparation, Segmentation
from mtkit.data.tokenizer import Tokenizers, Vocabulary, VocabularyTokenizer
from mtkit.errors import ConfigError, StorageError
from mtkit.interop.importing import (
    ImportedModel,
    ImportOptions,
    Settings,
    StateDict,
    check_language,
    guess_preparation,
    join_tokenizers,
    read_bart_layer,
    read_file,
    read_segmentation,
    tying,
)
from mtkit.interop.pickles import StandIn, load_pickle, stand_ins

_TRAINED = ("checkpoint_best.pt", "checkpoint_last.pt")
_CHECKPOINTS = ("model.pt", *_TRAINED)
_PACKAGES = ("fairseq", "omegaconf", "numpy")
_METERS = tuple((StandIn, f"fairseq.meters.{name}Meter") for name in ("Average", "Stopwatch", "Time"))
_PLAIN = (argparse.Namespace, dict, list, int, float, str, bool, defaultdict, (StandIn, "typing.Any"))
"""What the options of a checkpoint consist of, apart from classes of fairseq and omegaconf."""

_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "silu"}

_BASE = {
    "encoder_embed_dim": 512, "encoder_ffn_embed_dim": 2048, "encoder_layers": 6, "encoder_attention_heads": 8,
    "decoder_layers": 6, "decoder_attention_heads": 8, "encoder_normalize_before": False,
    "decoder_normalize_before": False, "encoder_learned_pos": False, "decoder_learned_pos": False,
    "activation_fn": "relu", "dropout": 0.1, "max_source_positions": 1024, "max_target_positions": 1024,
}  # fmt: skip
_TINY = _BASE | {
    "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 64, "encoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_layers": 2, "decoder_attention_heads": 2,
}  # fmt: skip
_SMALL = _BASE | {
    "encoder_ffn_embed_dim": 1024,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
_BIG = _BASE | {
    "encoder_embed_dim": 1024, "encoder_ffn_embed_dim": 4096, "encoder_attention_heads": 16,
    "decoder_attention_heads": 16, "dropout": 0.3,
}  # fmt: skip
_PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "transformer": _BASE,
    "transformer_tiny": _TINY,
    "transformer_iwslt_de_en": _SMALL,
    "transformer_wmt_en_de": _BASE,
    "transformer_vaswani_wmt_en_de_big": _BIG,
    "transformer_vaswani_wmt_en_fr_big": _BIG | {"dropout": 0.1},
    "transformer_wmt_en_de_big": _BIG | {"attention_dropout": 0.1},
    "transformer_wmt_en_de_big_t2t": _BIG | _PRE_NORM | {"attention_dropout": 0.1, "activation_dropout": 0.1},
}
"""What an architecture sets; checkpoints name most options, old ones not all."""

_REFUSED = (
    "adaptive_input", "adaptive_softmax_cutoff", "base_layers", "char_inputs", "cross_self_attention",
    "decoder_layers_to_keep", "decoder_xformers_att_config", "encoder_layers_to_keep", "encoder_xformers_att_config",
    "no_cross_attention", "no_decoder_final_norm", "no_token_positional_embeddings", "quant_noise_pq",
    "quant_noise_scalar", "scale_attn", "scale_fc", "scale_heads", "scale_resids", "tie_adaptive_weights",
)  # fmt: skip
"""Options of parts that mtkit does not have."""

_COPIES = tuple(
    f".{name}_{kind}" for name in ("in_proj", "out_proj", "fc1", "fc2") for kind in ("weight", "bias")
)
"""Ends of the names of tensors that fairseq 0.12 stores a second time in each encoder layer."""


class FairseqFormat:
    """A folder with a checkpoint of fairseq, dictionaries and what splits text; or the checkpoint in it."""

    name = "fairseq"
    files = "model.pt or checkpoint_best.pt, dict.SRC.txt, dict.TGT.txt, BPE codes or a SentencePiece model"

    def recognizes(self, path: Path) -> bool:
        if path.is_file():
            return path.suffix == ".pt" and any(path.parent.glob("dict.*.txt"))
        if any((path / name).is_file() for name in _TRAINED):
            return True
        return any(path.glob("*.pt")) and any(path.glob("dict.*.txt"))

    def read(self, path: Path, options: ImportOptions) -> ImportedModel:
        checkpoint = path if path.is_file() else _find_checkpoint(path)
        folder = checkpoint.parent
        settings, tensors = _read_checkpoint(checkpoint)
        model = _model_section(settings)
        weights = _read_weights(StateDict(_renamed(tensors), settings.where), settings)
        if model["norm_position"] == "pre" and "encoder_norm.weight" not in weights:
            model["final_norm"] = False  # as before fairseq 0.6
        if model["positions"] == "learned":
            model["max_positions"] = len(weights["src_embedding.positions.weight"])
        languages = _languages(folder, settings, options)
        rows = (len(weights["src_embedding.weight"]), len(weights["tgt_embedding.weight"]))
        longest = min(settings.get(f"max_{side}_positions", int) for side in ("source", "target"))
        return ImportedModel(
            toolkit=self.name,
            languages=(options.src or languages[0], options.tgt or languages[1]),
            model=model,
            # What fairseq-generate does by default.
            decoding={
                "beam_size": 5,
                "length_penalty": 1.0,
                "penalty_kind": "simple",
                "stop": "finished",
                "min_pieces": 1,
            },
            tokenizers=_read_tokenizers(folder, settings, options, languages, rows),
            weights=weights,
            max_length=min(longest, model.get("max_positions", longest)) - 1,
        )


def _find_checkpoint(folder: Path) -> Path:
    """Return the checkpoint of a folder.

    Raises:
        ConfigError: If there are several, of which none is the model or the best or last checkpoint.
    """
    named = [folder / name for name in _CHECKPOINTS if (folder / name).is_file()]
    found = named[:1] or sorted(folder.glob("*.pt"))
    if len(found) > 1:
        what = f"{len(found)} checkpoints: {', '.join(path.name for path in found[:3])}"
        raise ConfigError(what, where=str(folder), hint="name one of them: the file itself")
    return found[0]


def _read_checkpoint(path: Path) -> tuple[Settings, dict[str, Tensor]]:
    """Return the options of a checkpoint, with those of its architecture, and its state dict.

    Raises:
        ConfigError: If mtkit does not have the task or the architecture.
        StorageError: If it is damaged, not of fairseq, or wants to run code.
    """
    found = load_pickle(path, [*_PLAIN, *_METERS, *stand_ins(path, _PACKAGES)])
    tensors = found.get("model") if isinstance(found, Mapping) else None
    if not isinstance(tensors, Mapping) or not all(isinstance(x, Tensor) for x in tensors.values()):
        raise StorageError(
            'not a checkpoint of fairseq: it has no entry "model"',
            where=str(path),
            hint="name the file that fairseq-train saved model.pt",
        )
    given = _plain_options(found)
    if not given:
        hint = "import a checkpoint as fairseq-train saved it"
        raise StorageError("it has no options: neither args nor cfg", where=str(path), hint=hint)
    task = given.get("task", "translation")
    if task != "translation":
        hint = "mtkit imports models of the task translation"
        raise ConfigError(f"task: {task!r:.60}", where=str(path), hint=hint)
    arch = given.get("arch")
    if arch not in _ARCHITECTURES:
        hint = f"mtkit imports {', '.join(_ARCHITECTURES)}"
        raise ConfigError(f"arch: unknown architecture {arch!r:.60}", where=str(path), hint=hint)
    values = _ARCHITECTURES[arch] | given
    for kind in ("embed_dim", "ffn_embed_dim"):
        values.setdefault(f"decoder_{kind}", values[f"encoder_{kind}"])
    return Settings(values, str(path)), dict(tensors)


def _plain_options(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in `args`, or in `cfg` if there is none: those of the model, task, tokenizer and BPE."""
    if (args := checkpoint.get("args")) is not None:
        return _as_dict(args)
    cfg = _as_dict(checkpoint.get("cfg"))
    if not (model := _as_dict(cfg.get("model"))):
        return {}
    found = {"arch": model.get("_name")} | model
    for key in ("task", "tokenizer", "bpe"):
        section = cfg.get(key)
        options = _as_dict(section)
        name = section if isinstance(section, str) else options.pop("_name", None)
        found = options | found | ({key: name} if name is not None else {})
    return found


def _as_dict(value: object) -> dict[str, Any]:
    """Return a Namespace, a dict or a config of omegaconf as a dict of plain values; anything else is empty."""
    if isinstance(value, argparse.Namespace):
        return vars(value)
    if isinstance(value, StandIn):
        value = _without_omegaconf(value)
    return dict(value) if isinstance(value, Mapping) else {}


def _without_omegaconf(value: object) -> object:
    """Return the content of the nodes of omegaconf, which are loaded as stand-ins."""
    if isinstance(value, StandIn):
        state = vars(value)
        return _without_omegaconf(state["_content"] if "_content" in state else state.get("_val"))
    if isinstance(value, Mapping):
        return {key: _without_omegaconf(item) for key, item in value.items()}
    return value


def _model_section(settings: Settings) -> dict[str, Any]:
    """Return the section `model` that computes what TransformerModel does.

    Raises:
        ConfigError: If mtkit lacks what an option names.
    """

    for key in _REFUSED:
        settings.refuse(key)
    d_model = settings.get("encoder_embed_dim", int)
    for key in ("decoder_embed_dim", "decoder_input_dim", "decoder_output_dim"):
        settings.refuse(key, [d_model])
    learned = settings.get("encoder_learned_pos", bool, False)
    settings.refuse("decoder_learned_pos", [learned])
    before = [settings.get(f"{side}_normalize_before", bool) for side in ("encoder", "decoder")]
    inner = settings.get("activation_dropout", float, 0.0) or settings.get("relu_dropout", float, 0.0)
    return {
        "d_model": d_model,
        "encoder_layers": settings.get("encoder_layers", int),
        "decoder_layers": settings.get("decoder_layers", int),
        "num_heads": settings.get("encoder_attention_heads", int),
        "decoder_num_heads": settings.get("decoder_attention_heads", int),
        "d_ff": settings.get("encoder_ffn_embed_dim", int),
        "decoder_d_ff": settings.get("decoder_ffn_embed_dim", int),
        "activation": settings.choose("activation_fn", _ACTIVATIONS),
        "norm_position": "pre" if before[0] else "post",
        "decoder_norm_position": "pre" if before[1] else "post",
        "embedding_norm": settings.get("layernorm_embedding", bool, False),
        "scale_embeddings": not settings.get("no_scale_embedding", bool, False),
        "positions": "learned" if learned else "sinusoidal",
        "sinusoids": "fairseq",
        "position_offset": _SPECIALS.index("<pad>") + 1,
        "dropout": float(settings.get("dropout", float)),
        "attention_dropout": float(settings.get("attention_dropout", float, 0.0)),
        "activation_dropout": float(inner),
        "tie_embeddings": _tying(settings),
    }


def _tying(settings: Settings) -> str:
    """Return which matrices are one."""
    share_all = settings.get("share_all_embeddings", bool, False)
    return tying(share_all, share_all or settings.get("share_decoder_input_output_embed", bool, False))


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with today's names: norms once had numbers, and q, k and v were one matrix."""
    norms = {
        "encoder.0": "self_attn", "encoder.1": "final",
        "decoder.0": "self_attn", "decoder.1": "encoder_attn", "decoder.2": "final",
    }  # fmt: skip
    renamed = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"((encoder|decoder)\.layers\.\d+)\.layer_norms\.(\d)\.(\w+)", name)
        if found and (norm := norms.get(f"{found[2]}.{found[3]}")):
            renamed[f"{found[1]}.{norm}_layer_norm.{found[4]}"] = tensor
        elif found := re.fullmatch(r"(.+_attn)\.in_proj_(weight|bias)", name):
            for projection, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{found[1]}.{projection}_proj.{found[2]}"] = part
        else:
            renamed["decoder.output_projection.weight" if name == "decoder.embed_out" else name] = tensor
    return renamed


def _read_weights(source: StateDict, settings: Settings) -> dict[str, Tensor]:
    """Return the weights under mtkit's names.

    Raises:
        ConfigError: If there are tensors that mtkit has no place for.
        StorageError: If one is missing.
    """
    weights = {}
    positions = []
    for side, stack in (("src", "encoder"), ("tgt", "decoder")):
        weights[f"{side}_embedding.weight"] = source.take(f"{stack}.embed_tokens.weight")
        if settings.get(f"{stack}_learned_pos", bool, False):
            # The rows up to that of padding are never used.
            positions.append(source.take(f"{stack}.embed_positions.weight")[_SPECIALS.index("<pad>") + 1 :])
        if settings.get("layernorm_embedding", bool, False):
            weights |= source.affine(f"{stack}.layernorm_embedding", f"{side}_embedding.norm")
        if f"{stack}.layer_norm.weight" in source:
            weights |= source.affine(f"{stack}.layer_norm", f"{stack}_norm")
        for index in range(settings.get(f"{stack}_layers", int)):
            weights |= read_bart_layer(
                source, f"{stack}.layers.{index}", f"{stack}.{index}", stack == "decoder"
            )
    if positions:
        longest = min(map(len, positions))  # mtkit has as many for both sides
        weights |= {
            f"{side}_embedding.positions.weight": rows[:longest]
            for side, rows in zip(("src", "tgt"), positions, strict=True)
        }
    output = "decoder.output_projection.weight"
    is_stored = output in source or _tying(settings) == "none"
    weights["output.weight"] = source.take(output) if is_stored else weights["tgt_embedding.weight"]
    source.check_all_used((
        "encoder.version", "decoder.version", "embed_positions._float_tensor", "embed_positions.weights", *_COPIES,
    ))  # fmt: skip
    return weights


def _languages(folder: Path, settings: Settings, options: ImportOptions) -> tuple[str, str]:
    """Return the languages that the dictionaries are named after.

    Raises:
        ConfigError: If neither the checkpoint nor the user names them.
    """
    return (
        check_language(settings.get("source_lang", str, "") or options.src, "src", str(folder)),
        check_language(settings.get("target_lang", str, "") or options.tgt, "tgt", str(folder)),
    )


def _read_tokenizers(
    folder: Path,
    settings: Settings,
    options: ImportOptions,
    languages: tuple[str, str],
    rows: tuple[int, int],
) -> Tokenizers:
    """Return the tokenizers: the dictionaries over BPE codes or SentencePiece models.

    Raises:
        ConfigError: If what splits text is not there, or mtkit does not have it.
        StorageError: If a file is missing or damaged, or does not fit the embeddings.
    """
    files = (options.src_tokenizer, options.tgt_tokenizer or options.src_tokenizer)
    sides = []
    for language, given, size in zip(languages, files, rows, strict=True):
        tokens = _read_dictionary(folder / f"dict.{language}.txt", size)
        vocabulary = Vocabulary(
            tokens, pad="<pad>", unk="<unk>", bos="</s>", eos="</s>", special=(_SPECIALS[0],)
        )
        segmentation = _read_segmentation(given or _find_segmentation(folder), settings, language, tokens)
        sides.append(VocabularyTokenizer(segmentation, vocabulary))
    return join_tokenizers(
        sides,
        shared=settings.get("share_all_embeddings", bool, False),
        where=str(folder / f"dict.{languages[1]}.txt"),
        differ="share_all_embeddings is set, but the dictionaries differ",
        hint=f"copy dict.{languages[0]}.txt to it",
    )


def _read_dictionary(path: Path, size: int) -> tuple[str, ...]:
    """Return the tokens by id: four special ones, then one a line, each followed by a count.

    Raises:
        StorageError: If it is missing, not a dictionary, or does not have a token for each row of the embedding.
    """
    hint = "copy the dictionaries that the model was trained with from the folder of fairseq-preprocess"
    if not path.exists():
        raise StorageError("no such file", where=str(path), hint=hint)
    try:
        text = read_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise StorageError("not UTF-8 text", where=str(path), hint=hint) from error
    ids = {token: index for index, token in enumerate(_SPECIALS)}
    for number, line in enumerate(re.split("\r\n|\r|\n", text.rstrip("\r\n")), 1):
        token, _, count = line.rstrip().rpartition(" ")
        problem = None
        if count == "#fairseq:overwrite":
            problem = "a token that replaces an earlier one, which mtkit does not have"
        elif not token or not re.fullmatch(r"-?\d+", count):
            problem = "expected a token and its count"
        elif token in ids:
            problem = f"the token {token!r:.40} is there twice"
        if problem:
            raise StorageError(problem, where=f"{path}:{number}", hint=hint)
        ids[token] = len(ids)
    if len(ids) != size:
        what = f"{len(ids):,} tokens with the four special ones, but the embedding has {size:,} rows"
        raise StorageError(what, where=str(path), hint=hint)
    return tuple(ids)


def _find_segmentation(folder: Path) -> Path:
    """Return the file of a folder that splits text.

    Raises:
        ConfigError: If there is none, or several.
    """
    for pattern in (
        "sentencepiece.bpe.model", "spm.model", "bpecodes", "code", "codes", "*.model", "*.codes",
    ):  # fmt: skip
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            what = f"{len(found)} files that split text: {', '.join(path.name for path in found[:3])}"
            raise ConfigError(
                what, where=str(folder), hint="name them with `src_tokenizer` and `tgt_tokenizer`"
            )
        if found:
            return found[0]
    what = "no BPE codes (bpecodes) and no SentencePiece model (sentencepiece.bpe.model)"
    raise ConfigError(what, where=str(folder), hint="name the file with `src_tokenizer`")


def _read_segmentation(
    path: Path, settings: Settings, language: str, tokens: tuple[str, ...]
) -> Segmentation:
    """Return what splits the text of a side.

    Raises:
        ConfigError: If mtkit does not have the tokenizer or the kind of BPE.
        StorageError: If the file is missing or damaged.
    """
    known = {"tokenizer": (None, "moses", "space"), "bpe": (None, "sentencepiece", "subword_nmt", "fastbpe")}
    for key, values in known.items():
        if (value := settings.values.get(key)) not in values:
            hint = f"mtkit has {', '.join(name for name in values if name)}"
            raise ConfigError(f"{key}: {value!r:.40}", where=settings.where, hint=hint)
    moses = settings.values.get("tokenizer")
    if moses == "moses":
        escape, dashes = (
            not settings.get(f"moses_no_{key}", bool, False) for key in ("escape", "dash_splits")
        )
        preparation = Preparation(language, escape, dashes)
    else:  # fairseq-train knows nothing of tokenization before fairseq-preprocess
        preparation = guess_preparation(tokens, language) if moses is None else Preparation()
    return read_segmentation(path, preparation, settings.get("bpe_separator", str, "@@"))
