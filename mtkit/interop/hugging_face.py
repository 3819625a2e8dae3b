"""Hugging Face Marian models, such as `Helsinki-NLP/opus-mt-en-fr`: config.json, weights, two .spm files, vocab.json.

`transformers` is not needed: safetensors and SentencePiece models are read directly. The class there is
`MarianMTModel` (https://huggingface.co/docs/transformers/model_doc/marian). Folders that mtkit exported may have
another class of `CLASSES`, with the same tokenizer.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkit.checkpoint import load_tensors, read_json
from mtkit.data.segmentation import SentencePiece
from mtkit.data.tokenizer import Tokenizer, Tokenizers, Vocabulary, VocabularyTokenizer
from mtkit.errors import ConfigError, StorageError
from mtkit.formatting import format_count
from mtkit.interop.importing import (
    ImportedModel,
    ImportOptions,
    Settings,
    StateDict,
    check_language,
    read_bart_layer,
    read_file,
    tying,
)
from mtkit.interop.pickles import load_state_dict

_CONFIG, _SAFETENSORS, _PICKLE = "config.json", "model.safetensors", "pytorch_model.bin"
_ACTIVATIONS = {"relu": "relu", "swish": "silu", "silu": "silu", "gelu": "gelu"}
_HINT = "download the model again"


@dataclass(frozen=True)
class HuggingFaceClass:
    """Architecture of an encoder-decoder class of Hugging Face, as far as the classes that descend from BART differ.

    Attributes:
        model_type: name in config.json.
        architecture: name of the class.
        norm_position: where sublayers are normalized; pre comes with a norm after the last layer.
        positions: sinusoidal or learned.
        sinusoids: their order.
        embedding_norm: whether embeddings are normalized.
        logits_bias: whether logits have a bias.
    """

    model_type: str
    architecture: str
    norm_position: str
    positions: str = "sinusoidal"
    sinusoids: str = "concatenated"
    embedding_norm: bool = False
    logits_bias: bool = True


CLASSES = {
    kind.model_type: kind
    for kind in (
        HuggingFaceClass("marian", "MarianMTModel", "post"),
        HuggingFaceClass("pegasus", "PegasusForConditionalGeneration", "pre"),
        HuggingFaceClass(
            "m2m_100", "M2M100ForConditionalGeneration", "pre", sinusoids="fairseq", logits_bias=False
        ),
        HuggingFaceClass("bart", "BartForConditionalGeneration", "post", "learned", embedding_norm=True),
        HuggingFaceClass("mbart", "MBartForConditionalGeneration", "pre", "learned", embedding_norm=True),
    )
}
"""Classes by `model_type`."""
FIRST_LEARNED = 2
"""Row of the first learned position in BART and mBART; the rows before it are not used."""


class MarianFormat:
    """A folder as `MarianMTModel.save_pretrained` and `MarianTokenizer.save_pretrained` write it."""

    name = "Hugging Face Marian"
    files = f"{_CONFIG}, {_SAFETENSORS} or {_PICKLE}, source.spm, target.spm, vocab.json"

    def recognizes(self, folder: Path) -> bool:
        return (folder / _CONFIG).is_file() and any(
            (folder / name).exists() for name in (_SAFETENSORS, _PICKLE)
        )

    def read(self, folder: Path, options: ImportOptions) -> ImportedModel:
        config = Settings(read_json(folder / _CONFIG), str(folder / _CONFIG))
        kind = CLASSES.get(config.get("model_type", str))
        lacks_spm = not (folder / "source.spm").exists()
        if kind is None or (kind.model_type != "marian" and lacks_spm):
            what = f"a {config.get('model_type', str)} model, not Marian"
            hint = "mtkit imports Marian models of Hugging Face, and what it exported to Hugging Face itself"
            raise ConfigError(what, where=str(folder / _CONFIG), hint=hint)
        if options.src_tokenizer or options.tgt_tokenizer:
            what = "`src_tokenizer` and `tgt_tokenizer` are not for models of Hugging Face"
            raise ConfigError(
                what, where=str(folder), hint="leave them out: it has source.spm and target.spm"
            )
        tokenizers, languages, notes = _read_tokenizers(folder, config, options)
        generation = _generation_settings(folder, config)
        return ImportedModel(
            toolkit=self.name,
            languages=languages,
            model=_model_section(config, kind),
            decoding=_decoding_section(generation),
            notes=(*_left_out(generation, tokenizers.tgt), *notes),
            tokenizers=tokenizers,
            weights=_read_weights(folder, config, kind),
            max_length=config.get("max_position_embeddings", int, 512) - 1,
        )


def _model_section(config: Settings, kind: HuggingFaceClass) -> dict[str, Any]:
    """Return the section `model` that computes what the class does.

    Raises:
        ConfigError: If the activation is unknown.
    """
    shared = config.get("share_encoder_decoder_embeddings", bool, True)
    tied = config.get("tie_word_embeddings", bool, True)
    return {
        "d_model": config.get("d_model", int),
        "encoder_layers": config.get("encoder_layers", int),
        "decoder_layers": config.get("decoder_layers", int),
        "num_heads": config.get("encoder_attention_heads", int),
        "decoder_num_heads": config.get("decoder_attention_heads", int),
        "d_ff": config.get("encoder_ffn_dim", int),
        "decoder_d_ff": config.get("decoder_ffn_dim", int),
        "activation": config.choose("activation_function", _ACTIVATIONS),
        "norm_position": kind.norm_position,
        "embedding_norm": kind.embedding_norm,
        "positions": kind.positions,
        **_position_keys(config, kind),
        "scale_embeddings": config.get("scale_embedding", bool, False),
        "output_bias": kind.logits_bias,
        "dropout": config.get("dropout", float, 0.1),
        "attention_dropout": config.get("attention_dropout", float, 0.0),
        "activation_dropout": config.get("activation_dropout", float, 0.0),
        "tie_embeddings": tying(shared, tied),
    }


def _position_keys(config: Settings, kind: HuggingFaceClass) -> dict[str, Any]:
    """Return the keys that learned positions need, or sinusoids of this class."""
    if kind.positions == "learned":
        return {"max_positions": config.get("max_position_embeddings", int)}
    if kind.sinusoids == "fairseq":
        return {"sinusoids": "fairseq", "position_offset": config.get("pad_token_id", int) + 1}
    return {}


def _generation_settings(folder: Path, config: Settings) -> Settings:
    """Return the settings of the search: generation_config.json, or config.json of older models."""
    path = folder / "generation_config.json"
    return Settings(read_json(path), str(path)) if path.exists() else config


def _decoding_section(generation: Settings) -> dict[str, Any]:
    """Return the section `decoding` that searches as `generate` does with these values.

    Raises:
        ConfigError: If `early_stopping` is unknown.
        StorageError: If a value is of another type.
    """
    early_stopping = generation.values.get("early_stopping") or False
    if not isinstance(early_stopping, bool | str) or early_stopping not in _STOPS:
        hint = "true, false and never are known"
        raise ConfigError(f"early_stopping is {early_stopping!r:.40}", where=generation.where, hint=hint)
    least = generation.get("min_length", int, 0) - 1, generation.get("min_new_tokens", int, 0)
    section: dict[str, Any] = {
        "length_penalty": generation.get("length_penalty", float, 1.0),
        "penalty_kind": "simple",
        "stop": _STOPS[early_stopping],
        "min_pieces": max(0, *least),
        "no_repeat_ngram": generation.get("no_repeat_ngram_size", int, 0),
        "renormalize": generation.get("renormalize_logits", bool, False),
    }
    if generation.has("num_beams"):
        section["beam_size"] = generation.get("num_beams", int)
    # `max_new_tokens` comes before `max_length`, which counts the token that the decoder starts with, too.
    longest = generation.get("max_new_tokens", int, -1) + 1 or generation.get("max_length", int, 0)
    if longest > 2:
        # Here, eos comes on top.
        section |= {"max_length_ratio": 0.0, "max_length_extra": longest - 2}
    return section


def _left_out(generation: Settings, tgt: Tokenizer) -> tuple[str, ...]:
    """Return a line for each value of the search that mtkit has no counterpart for."""
    never = [token for token in (*tgt.special, tgt.unk) if token != tgt.eos]
    lines = []
    for key, value in generation.values.items():
        tokens = value if isinstance(value, list) else []
        flat = [token for item in tokens for token in (item if isinstance(item, list) else [item])]
        forbids = key in ("bad_words_ids", "suppress_tokens") and any(token not in never for token in flat)
        if forbids or (key in _UNSUPPORTED and value not in _UNSUPPORTED[key]):
            name = Path(generation.where).name
            lines.append(f"{name}: {key} {value!r:.40} has no counterpart and is left out")
    return tuple(lines)


_STOPS = {True: "finished", False: "all_unbeaten", "never": "certain"}
"""`decoding.stop` for `early_stopping`."""
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "repetition_penalty": (None, 1, 1.0), "encoder_repetition_penalty": (None, 1, 1.0), "do_sample": (None, False),
    "encoder_no_repeat_ngram_size": (None, 0), "forced_bos_token_id": (None,), "num_beam_groups": (None, 1),
    "begin_suppress_tokens": (None, []), "exponential_decay_length_penalty": (None,), "sequence_bias": (None,),
}  # fmt: skip
"""Keys that change what `generate` returns and have no counterpart, with the values that change nothing."""


def _read_weights(folder: Path, config: Settings, kind: HuggingFaceClass) -> dict[str, Tensor]:
    """Return the weights under mtkit's names."""
    path = folder / (_SAFETENSORS if (folder / _SAFETENSORS).exists() else _PICKLE)
    source = StateDict(load_tensors(path) if path.name == _SAFETENSORS else load_state_dict(path), str(path))
    shared = "model.shared.weight"
    weights = {}
    for side, stack in (("src", "encoder"), ("tgt", "decoder")):
        # tied matrices may be stored under one of their names only
        own = f"model.{stack}.embed_tokens.weight"
        name = next((name for name in (own, shared, "lm_head.weight") if name in source), own)
        weights[f"{side}_embedding.weight"] = source.take(name)
    tied = config.get("tie_word_embeddings", bool, True)
    weights["output.weight"] = weights["tgt_embedding.weight"] if tied else source.take("lm_head.weight")
    bias = "final_logits_bias"
    size = len(weights["output.weight"])
    if kind.logits_bias:
        weights["output.bias"] = source.take(bias).flatten() if bias in source else torch.zeros(size)
    for side in ("encoder", "decoder"):
        embedding = "src_embedding" if side == "encoder" else "tgt_embedding"
        if kind.norm_position == "pre":
            weights |= source.affine(f"model.{side}.layer_norm", f"{side}_norm")
        if kind.embedding_norm:
            weights |= source.affine(f"model.{side}.layernorm_embedding", f"{embedding}.norm")
        if kind.positions == "learned":
            table = source.take(f"model.{side}.embed_positions.weight")
            weights[f"{embedding}.positions.weight"] = table[FIRST_LEARNED:]
        for index in range(config.get(f"{side}_layers", int)):
            weights |= read_bart_layer(
                source, f"model.{side}.layers.{index}", f"{side}.{index}", side == "decoder"
            )
    # The sinusoids are computed; tied matrices may be stored under each of their names.
    source.check_all_used(
        ("embed_positions.weight", "embed_tokens.weight", "lm_head.weight", "model.shared.weight")
    )
    return weights


def _read_tokenizers(
    folder: Path, config: Settings, options: ImportOptions
) -> tuple[Tokenizers, tuple[str, str], list[str]]:
    """Return the tokenizers, the languages, and what the user should know."""
    path = folder / "tokenizer_config.json"
    settings = Settings(read_json(path) if path.exists() else {}, str(path))
    separate = settings.get("separate_vocabs", bool, False)
    src_tokens = _read_vocabulary(folder / "vocab.json", config.get("vocab_size", int))
    added = _added_tokens(folder, settings, src_tokens)
    src_tokens = tuple(added.get(index, token) for index, token in enumerate(src_tokens))
    target_file = folder / "target_vocab.json"
    size = config.get("decoder_vocab_size", int, 0) or config.get("vocab_size", int)
    tgt_tokens = _read_vocabulary(target_file, size) if separate else src_tokens
    start = config.get("decoder_start_token_id", int)
    pad, eos = (config.get(f"{name}_token_id", int) for name in ("pad", "eos"))
    src_special = {"pad": pad, "eos": eos, "bos": pad if separate else start}
    tgt_special = {"pad": pad, "eos": eos, "bos": start}
    if separate and 0 <= pad < len(src_tokens) and src_tokens[pad] in tgt_tokens:
        # config.json has the id in the source vocabulary
        tgt_special["pad"] = tgt_tokens.index(src_tokens[pad])
    sides = []
    for tokens, special, name in (
        (src_tokens, src_special, "source.spm"),
        (tgt_tokens, tgt_special, "target.spm"),
    ):
        for key, index in special.items():
            if not 0 <= index < len(tokens):
                what = f"the {key} token {index} is not in the vocabulary of {len(tokens)} tokens"
                raise StorageError(what, where=config.where, hint=_HINT)
        names = {key: tokens[index] for key, index in special.items()}
        unk = settings.values.get("unk_token", "<unk>")
        unk = str(unk.get("content") if isinstance(unk, dict) else unk)  # older files describe the token
        try:
            vocabulary = Vocabulary(tokens, unk=unk, tags=True, special=_unused(tokens), **names)
        except ValueError as error:
            raise StorageError(str(error), where=str(folder / "vocab.json"), hint=_HINT) from error
        model = SentencePiece(read_file(folder / name), str(folder / name))
        sides.append(VocabularyTokenizer(model, vocabulary))
    src, tgt = sides
    named = (
        options.src or settings.get("source_lang", str, "") or _language(folder, 0),
        options.tgt or settings.get("target_lang", str, "") or _language(folder, 1),
    )
    languages = check_language(named[0], "src", str(folder)), check_language(named[1], "tgt", str(folder))
    shared = not separate and config.get("share_encoder_decoder_embeddings", bool, True)
    split = [
        token
        for index, token in added.items()
        if index not in (*src.special, src.unk) and not src.is_single_piece(token)
    ]
    notes = []
    if split:
        shown = ", ".join(map(repr, split[:3])) + ", …" * (len(split) > 3)
        notes.append(f"{format_count(len(split), 'added token')} that mtkit splits in text: {shown}")
    return Tokenizers(src, tgt, joint=shared), languages, notes


def _added_tokens(folder: Path, settings: Settings, tokens: tuple[str, ...]) -> dict[int, str]:
    """Return the tokens by id that were added to a tokenizer, for rows that have no token in vocab.json.

    Args:
        folder: folder of the model, with added_tokens.json if the tokenizer is of an older version.
        settings: tokenizer_config.json, which lists them in newer versions, and special tokens of vocab.json too.
        tokens: the tokens of vocab.json.

    Raises:
        StorageError: If they are not strings with ids.
    """
    path = folder / "added_tokens.json"
    ids = read_json(path) if path.exists() else {}
    listed = settings.get("added_tokens_decoder", dict, {})
    try:
        ids |= {token["content"]: int(index) for index, token in listed.items()}
        if not all(isinstance(token, str) and type(index) is int for token, index in ids.items()):
            raise ValueError("another type")
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            "the added tokens are not strings with ids", where=str(folder), hint=_HINT
        ) from error
    known = {*tokens}
    return {
        index: token for token, index in ids.items() if token not in known and f"<unused {index}>" in known
    }


def _unused(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of rows without a token, as `_read_vocabulary` and exports of mtkit write them."""
    return tuple(token for index, token in enumerate(tokens) if token == f"<unused {index}>")


def _language(folder: Path, side: int) -> str | None:
    """Return a language from a folder name such as opus-mt-en-fr, opus-mt-tc-big-en-fr or opus-mt-en-ROMANCE."""
    code = "([a-z]{2,3}|[A-Z_]+)"
    found = re.fullmatch(f"opus-mt-(?:.+-)?{code}-{code}", folder.absolute().name)
    return found[side + 1] if found else None


def _read_vocabulary(path: Path, size: int) -> tuple[str, ...]:
    """Return the tokens by id; ids without a token get names that never occur in text.

    Raises:
        StorageError: If it is not such a file, or has ids beyond the embedding.
    """
    try:
        ids = json.loads(read_file(path))
        if not isinstance(ids, dict) or not all(type(index) is int for index in ids.values()):
            raise ValueError("not a mapping from tokens to ids")
    except (ValueError, RecursionError) as error:
        raise StorageError(f"not a vocabulary: {error}", where=str(path), hint=_HINT) from error
    tokens = {index: token for token, index in ids.items()}
    if len(tokens) != len(ids):
        raise StorageError("two tokens have the same id", where=str(path), hint=_HINT)
    if tokens and (min(tokens) < 0 or max(tokens) >= size):
        what = f"{len(tokens):,} tokens with ids up to {max(tokens)}, but the model has {size:,} rows"
        raise StorageError(what, where=str(path), hint=_HINT)
    return tuple(tokens.get(index, f"<unused {index}>") for index in range(size))
