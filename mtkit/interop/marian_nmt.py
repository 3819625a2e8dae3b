"""Models of marian-nmt itself: `.npz` with the options in it, vocabularies, decoder.yml (https://marian-nmt.github.io).

OPUS-MT publishes such folders as archives. hugging_face.py reads the class of this name in `transformers`.

Marian's decoder starts with a vector of zeros, and no token has that embedding. Here it is a further token, which is
padding too, with a row of zeros and a logit that is never chosen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtkit.config.yaml_document import load_yaml
from mtkit.config.yaml_reader import YamlReader
from mtkit.data.tokenizer import Tokenizers
from mtkit.errors import ConfigError, StorageError
from mtkit.formatting import format_count
from mtkit.interop.importing import (
    ImportedModel,
    ImportOptions,
    Settings,
    StateDict,
    check_language,
    join_tokenizers,
    tying,
)
from mtkit.interop.marian_vocabulary import read_tokenizer
from mtkit.interop.npz import load_npz

_DECODER = "decoder.yml"
_OPTIONS = "special:model.yml"
_ACTIVATIONS = {"swish": "silu", "relu": "relu", "gelu": "gelu"}
_NORMS = {"n": "layernorm", "r": "rmsnorm"}
_START_LOGIT = -100.0
"""Bias of the token that stands for the vector of zeros: e to this power is 0 beside any other logit."""
_SWISH_GELU = 1.702
"""Marian's gelu was x sigmoid(1.702 x) before version 1.12.3, which is silu(1.702 x) / 1.702."""
_EXACT_GELU = (1, 12, 3)
_REFUSED = (
    "right-left", "ulr", "lemma-dim-emb", "transformer-pool", "transformer-disable-position-embeddings",
    "transformer-no-bias", "transformer-no-affine", "transformer-alibi-shift",
)  # fmt: skip
_HINT = "import the model again from a complete copy"


class MarianNMTFormat:
    """A folder with a model of marian-nmt, or the .npz file in it."""

    name = "Marian"
    files = f"model.npz, vocab.yml or vocab.spm, {_DECODER}"

    def recognizes(self, path: Path) -> bool:
        if path.is_file():
            return path.suffix == ".npz"
        is_binary = any(path.glob("*.bin")) and any(path.glob("*.spm"))
        return any(path.glob("*.npz")) or (path / _DECODER).is_file() or is_binary

    def read(self, path: Path, options: ImportOptions) -> ImportedModel:
        model = _find_model(path)
        arrays = load_npz(model)
        config = _read_options(arrays, model)
        training = _settings_beside(model, ("vocabs",))
        # Marian writes vocabs into two files beside a model, the dropout into one of them.
        section = _model_section(config, _settings_beside(model, ("transformer-dropout",)))
        weights = _Weights(arrays, str(model), config, section)
        languages = _languages(model.parent, options)
        return ImportedModel(
            toolkit=self.name,
            languages=languages,
            model=section | weights.positions,
            decoding=_decoding_section(_settings_beside(model, ("beam-size",))),
            tokenizers=_read_tokenizers(model, training, weights, languages, options),
            weights=weights.read(),
            max_length=min(512, weights.positions.get("max_positions", 513) - 1),
        )


def _find_model(path: Path) -> Path:
    """Return the file of a model: the one that decoder.yml names, or the only one in the folder.

    Raises:
        ConfigError: If there is none, or several, or it is in Marian's binary format or of CTranslate2.
        StorageError: If it is missing.
    """
    if path.is_file():
        return path
    if (path / _DECODER).is_file():
        settings = Settings(load_yaml(path / _DECODER).data, str(path / _DECODER))
        found = [_beside(path, name) for name in _names(settings, "models")]
        where = settings.where
    else:
        found = [file for file in sorted(path.glob("*.npz")) if not file.name.endswith(".optimizer.npz")]
        found = found or sorted(path.glob("*.bin"))
        where = str(path)
    if len(found) != 1:
        what = f"{len(found)} models: {', '.join(file.name for file in found[:3])}"
        raise ConfigError(what, where=where, hint="name one of them: the .npz file itself")
    if found[0].suffix == ".bin":
        vocabularies = [*path.glob("*vocabulary.json"), *path.glob("*vocabulary.txt")]
        if found[0].name == "model.bin" and vocabularies:
            what = "a model of CTranslate2, which cannot be imported"
            raise ConfigError(what, where=where, hint="import the model that it was converted from")
        hint = "import the .npz that marian-conv made it from"
        raise ConfigError("a binary model, perhaps quantized", where=str(found[0]), hint=hint)
    return found[0]


def _beside(folder: Path, name: str) -> Path:
    """Return a file in the folder of the model, which was named by a path in it or where the model was trained."""
    leaves = Path(name).is_absolute() or ".." in Path(name).parts
    return folder / name if not leaves and (folder / name).is_file() else folder / Path(name).name


def _names(settings: Settings, key: str) -> list[str]:
    """Return a list of file names.

    Raises:
        StorageError: If it is something else.
    """
    names = settings.get(key, list)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise StorageError(f"{key} is not a list of files", where=settings.where, hint=_HINT)
    return names


def _settings_beside(model: Path, wanted: tuple[str, ...]) -> Settings:
    """Return the first file of settings next to a model that has the wanted keys; empty settings if none has.

    decoder.yml counts only for a model that it names.

    Raises:
        ConfigError: If one is not YAML.
    """
    for name in (f"{model.name}.decoder.yml", _DECODER, f"{model.name}.yml", "config.yml"):
        path = model.parent / name
        if path.is_file():
            settings = Settings(load_yaml(path).data, str(path))
            own = name != _DECODER or model.name in {Path(other).name for other in _names(settings, "models")}
            if own and all(settings.has(key) for key in wanted):
                return settings
    return Settings({}, str(model.parent))


def _read_options(arrays: dict[str, npt.NDArray[Any]], path: Path) -> Settings:
    """Take the options, which are YAML in an array of bytes, out of the arrays.

    Raises:
        ConfigError: If they are not YAML.
        StorageError: If they are missing.
    """
    if _OPTIONS not in arrays:
        hint = "Marian writes its options into every model"
        raise StorageError(f"no {_OPTIONS}, not a model of Marian", where=str(path), hint=hint)
    where = f"{path}: {_OPTIONS}"
    try:
        text = arrays.pop(_OPTIONS).tobytes().split(b"\0")[0].decode("utf-8")
    except UnicodeDecodeError as error:
        raise StorageError("not UTF-8 text", where=where, hint=_HINT) from error
    values = YamlReader(text, where).document()
    if not isinstance(values, dict):
        raise StorageError("not a mapping of options", where=where, hint=_HINT)
    return Settings(values, where)


def _model_section(config: Settings, training: Settings) -> dict[str, Any]:
    """Return the section `model` that computes what Marian's Transformer does, without positions.

    Raises:
        ConfigError: If mtkit has no such architecture.
    """
    config.choose("type", {"transformer": None})
    config.choose("transformer-decoder-autoreg", {"self-attention": None}, "self-attention")
    config.choose("transformer-attention-mask", {"default": None}, "default")
    for key in _REFUSED:
        config.refuse(key)
    config.refuse("lemma-dependency")
    config.refuse("input-types", ([], ["sequence"], ["sequence", "sequence"]))
    for key in ("transformer-ffn-depth", "transformer-decoder-ffn-depth"):
        config.refuse(key, (0, 2))
    activation = config.choose("transformer-ffn-activation", _ACTIVATIONS, "swish")
    dropout = training.get("transformer-dropout", float, 0.1)
    return {
        "d_model": config.get("dim-emb", int),
        "encoder_layers": config.get("enc-depth", int),
        "decoder_layers": config.get("dec-depth", int),
        "unique_decoder_layers": _unique_layers(config),
        "num_heads": config.get("transformer-heads", int),
        "d_ff": config.get("transformer-dim-ffn", int),
        "decoder_d_ff": config.get("transformer-decoder-dim-ffn", int, 0) or None,
        "activation": "silu" if _has_swish_gelu(config) else activation,
        **_norm_keys(config),
        "output_bias": True,
        "dropout": dropout if "d" in config.get("transformer-postprocess", str, "dan") else 0.0,
        "attention_dropout": training.get("transformer-dropout-attention", float, 0.0),
        "activation_dropout": training.get("transformer-dropout-ffn", float, 0.0),
        "tie_embeddings": tying(*_shares(config)),
    }


def _norm_keys(config: Settings) -> dict[str, Any]:
    """Return where norms are; dropout, d, matters in training only.

    Raises:
        ConfigError: If mtkit has no such order of norm, sum and dropout.
    """
    names = ("preprocess", "postprocess", "postprocess-emb", "postprocess-top")
    own = {
        name: config.get(f"transformer-{name}", str, default)
        for name, default in zip(names, ("", "dan", "d", ""), strict=True)
    }
    pre, post, embedding, top = (operations.replace("d", "") for operations in own.values())
    position = {"": "post", "n": "pre", "r": "pre"}.get(pre)
    norm = pre or post.removeprefix("a")
    if position is None or norm not in _NORMS or post != ("a" if pre else f"a{norm}"):
        shown = [f"{own[name]!r:.20}" for name in ("preprocess", "postprocess")]
        what = f"transformer-preprocess is {shown[0]}, transformer-postprocess {shown[1]}"
        hint = "mtkit has a norm before each sublayer (n, da) or after each sum ('', dan), also r for n"
        raise ConfigError(what, where=config.where, hint=hint)
    for name, found in (("postprocess-emb", embedding), ("postprocess-top", top)):
        if found not in ("", norm):
            hint = f"mtkit has {norm!r} there, or nothing"
            raise ConfigError(f"transformer-{name} is {own[name]!r:.20}", where=config.where, hint=hint)
    return {
        "norm": _NORMS[norm],
        "norm_epsilon": 1e-6,
        "norm_position": position,
        "final_norm": top != "",
        "embedding_norm": embedding != "",
    }


def _shares(config: Settings) -> tuple[bool, bool]:
    """Return whether source and target share an embedding, and whether the output matrix is that of the target."""
    has_one = config.get("tied-embeddings-all", bool, False)
    return (
        has_one or config.get("tied-embeddings-src", bool, False),
        has_one or config.get("tied-embeddings", bool, False),
    )


def _layer_numbers(config: Settings) -> Sequence[int]:
    """Return the number of the weights that each layer of the decoder uses, from 1.

    Raises:
        ConfigError: If transformer-tied-layers is not such a list.
    """
    depth = config.get("dec-depth", int)
    tied = config.get("transformer-tied-layers", list, [])
    if tied and (len(tied) != depth or not all(type(number) is int and number > 0 for number in tied)):
        what = f"transformer-tied-layers is {tied!s:.40} for {depth} layers"
        raise ConfigError(what, where=config.where, hint="Marian needs one number for each layer")
    return tied or range(1, depth + 1)


def _unique_layers(config: Settings) -> int | None:
    """Return the number of distinct decoder layers if they are reused in a cycle, else None."""
    if not config.get("transformer-tied-layers", list, []):
        return None
    numbers = list(_layer_numbers(config))
    period = max(numbers, default=0)
    in_cycle = all(number == index % period + 1 for index, number in enumerate(numbers))
    return period if in_cycle and period < len(numbers) else None


def _has_swish_gelu(config: Settings) -> bool:
    """Return whether the activation is Marian's older gelu."""
    if config.get("transformer-ffn-activation", str, "swish") != "gelu":
        return False
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", config.get("version", str, ""))
    return found is None or tuple(map(int, found.groups())) < _EXACT_GELU


def _decoding_section(settings: Settings) -> dict[str, Any]:
    """Return how Marian searches, with the settings next to the model. eos counts in the length of the source there."""
    factor = settings.get("max-length-factor", float, 3.0)
    search: dict[str, Any] = {
        "stop": "finished", "max_length_ratio": factor, "max_length_extra": max(0, round(factor) - 1)
    }  # fmt: skip
    if settings.has("beam-size"):
        search["beam_size"] = settings.get("beam-size", int)
        value = settings.values.get("normalize")
        power = float(value) if isinstance(value, bool) else settings.get("normalize", float, 0.0)
        search |= {"penalty_kind": "simple", "length_penalty": power}
    return search


class _Weights:
    """The arrays of a model as weights under mtkit's names.

    Args:
        arrays: the arrays.
        where: the file, for messages.
        config: the options.
        model: the section `model`.

    Attributes:
        rows: rows of the embeddings of source and target.
        positions: keys of the section `model` about positions.

    Raises:
        ConfigError: If the weights are quantized.
        StorageError: If an embedding is missing.
    """

    def __init__(
        self, arrays: Mapping[str, npt.NDArray[Any]], where: str, config: Settings, model: Mapping[str, Any]
    ) -> None:
        self._source = StateDict(dict(_tensors(arrays, where)), where)
        self._config, self._model = config, model
        self._width: int = model["d_model"]
        self.shares_embeddings, self._shares_output = _shares(config)
        names = ["Wemb"] * 2 if self.shares_embeddings else ["encoder_Wemb", "decoder_Wemb"]
        self._embeddings = [self._source.take(name) for name in names]
        for name, matrix in zip(names, self._embeddings, strict=True):
            self._shaped(matrix, name, (len(matrix), self._width))
        self.rows = tuple(map(len, self._embeddings))
        self.positions = self._positions()

    def _positions(self) -> dict[str, Any]:
        """Return the keys about positions. Trained ones are among the weights; embeddings are not scaled then."""
        if "Wpos" in self._source:
            number = len(self._source.take("Wpos"))
            return {"positions": "learned", "max_positions": number, "scale_embeddings": False}
        return {"positions": "sinusoidal", "sinusoids": "fairseq"}

    def read(self) -> dict[str, Tensor]:
        """Return the weights, with a row for the token that the decoder starts with.

        Raises:
            ConfigError: If the model has parts that mtkit does not know.
            StorageError: If a tensor is missing or has another shape than the options say.
        """
        weights = self._token_matrices()
        if self.positions["positions"] == "learned":
            for side in ("src", "tgt"):
                weights[f"{side}_embedding.positions.weight"] = self._take(
                    "Wpos", self.positions["max_positions"], self._width
                )
        numbers = _layer_numbers(self._config)[: self._model["unique_decoder_layers"]]
        for stack, order in (("encoder", range(1, self._model["encoder_layers"] + 1)), ("decoder", numbers)):
            for index, number in enumerate(order):
                weights |= self._layer(f"{stack}_l{number}", f"{stack}.{index}", stack == "decoder")
            if self._model["embedding_norm"]:
                side = "src" if stack == "encoder" else "tgt"
                weights |= self._norm(f"{stack}_emb", f"{side}_embedding.norm", "_pre")
            if self._model["final_norm"]:
                weights |= self._norm(f"{stack}_top", f"{stack}_norm")
        self._source.check_all_used(("special:",))
        return weights

    def _token_matrices(self) -> dict[str, Tensor]:
        """Return the embeddings and the output matrix with its bias."""
        src, tgt = (torch.cat([matrix, torch.zeros(1, self._width)]) for matrix in self._embeddings)
        weights = {"src_embedding.weight": src, "tgt_embedding.weight": tgt, "output.weight": tgt}
        place, size = "decoder_ff_logit_out", self.rows[1]
        if not self._shares_output:
            if f"{place}_W" in self._source:  # of older versions
                output = self._take(f"{place}_W", self._width, size).T
            else:
                output = self._take(f"{place}_Wt", size, self._width)
            weights["output.weight"] = torch.cat([output, torch.zeros(1, self._width)])
        omitted = self._config.get("output-omit-bias", bool, False)
        bias = torch.zeros(size) if omitted else self._take(f"{place}_b", 1, size).flatten()
        return weights | {"output.bias": torch.cat([bias, torch.tensor([_START_LOGIT])])}

    def _layer(self, place: str, name: str, is_decoder: bool) -> dict[str, Tensor]:
        """Return the weights of a layer."""
        weights = self._attention(f"{place}_self", name, {"attention.qkv": "qkv"}, "attention")
        if is_decoder:
            weights |= self._attention(f"{place}_context", name, {"cross.q": "q", "cross.kv": "kv"}, "cross")
        width = (self._model["decoder_d_ff"] if is_decoder else None) or self._model["d_ff"]
        inner, outer = f"{name}.feed_forward.inner", f"{name}.feed_forward.outer"
        weights |= self._affine(f"{place}_ffn", "1", inner, self._width, width)
        weights |= self._affine(f"{place}_ffn", "2", outer, width, self._width)
        if _has_swish_gelu(self._config):
            weights[f"{inner}.weight"] = weights[f"{inner}.weight"] * _SWISH_GELU
            weights[f"{inner}.bias"] = weights[f"{inner}.bias"] * _SWISH_GELU
            weights[f"{outer}.weight"] = weights[f"{outer}.weight"] / _SWISH_GELU
        return weights | self._sublayer_norm(f"{place}_ffn_ffn", f"{name}.feed_forward_residual.norm")

    def _attention(
        self, place: str, name: str, projections: Mapping[str, str], own: str
    ) -> dict[str, Tensor]:
        """Return the weights of an attention and its norm.

        Args:
            place: the attention there.
            name: the layer here.
            projections: the letters of the projections that are one matrix here, by its name.
            own: the attention here.
        """
        width = self._width
        weights = {}
        for fused, letters in projections.items():
            parts = [self._affine(place, letter, "part", width, width) for letter in letters]
            for kind in ("weight", "bias"):
                weights[f"{name}.{fused}.{kind}"] = torch.cat([part[f"part.{kind}"] for part in parts])
        out = f"{name}.{own}.out"
        if self._config.get("transformer-no-projection", bool, False):
            weights |= {f"{out}.weight": torch.eye(width), f"{out}.bias": torch.zeros(width)}
        else:
            weights |= self._affine(place, "o", out, width, width)
        return weights | self._sublayer_norm(f"{place}_Wo", f"{name}.{own}_residual.norm")

    def _affine(self, place: str, suffix: str, name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
        """Return a matrix, which is transposed there, and its bias."""
        return {
            f"{name}.weight": self._take(f"{place}_W{suffix}", inputs, outputs).T.contiguous(),
            f"{name}.bias": self._take(f"{place}_b{suffix}", 1, outputs).flatten(),
        }

    def _sublayer_norm(self, place: str, name: str) -> dict[str, Tensor]:
        """Return the norm of a sublayer."""
        return self._norm(place, name, "_pre" if self._model["norm_position"] == "pre" else "")

    def _norm(self, place: str, name: str, suffix: str = "") -> dict[str, Tensor]:
        """Return a norm."""
        if self._model["norm"] == "rmsnorm":
            return {f"{name}.weight": self._take(f"{place}_rms_scale{suffix}", 1, self._width).flatten()}
        return {
            f"{name}.{kind}": self._take(f"{place}_ln_{own}{suffix}", 1, self._width).flatten()
            for kind, own in (("weight", "scale"), ("bias", "bias"))
        }

    def _take(self, name: str, *shape: int) -> Tensor:
        """Return a tensor of a certain shape.

        Raises:
            StorageError: If it is missing or has another shape.
        """
        return self._shaped(self._source.take(name), name, shape)

    def _shaped(self, tensor: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor after checking its shape.

        Raises:
            StorageError: If it is another one.
        """
        if tuple(tensor.shape) != shape:
            what = f"{name} has the shape {list(tensor.shape)}, not {list(shape)}"
            raise StorageError(
                what, where=self._source.where, hint="the options and the weights belong together"
            )
        return tensor


def _tensors(arrays: Mapping[str, npt.NDArray[Any]], where: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the arrays as tensors.

    Raises:
        ConfigError: If one is not of floating-point numbers.
    """
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            hint = "import the model that it was quantized from"
            raise ConfigError(f"{name} is quantized: {array.dtype}", where=where, hint=hint)
        yield name, torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _languages(folder: Path, options: ImportOptions) -> tuple[str, str]:
    """Return the languages: what the user says, or those in the name of the folder, such as opus-mt-en-fr.

    Raises:
        ConfigError: If neither names them.
    """
    found = re.fullmatch(r"(?:opus.*-)?([a-z]{2,3})-([a-z]{2,3})", folder.absolute().name)
    src, tgt = found.groups() if found else (None, None)
    return (
        check_language(options.src or src, "src", str(folder)),
        check_language(options.tgt or tgt, "tgt", str(folder)),
    )


def _read_tokenizers(
    model: Path, settings: Settings, weights: _Weights, languages: tuple[str, str], options: ImportOptions
) -> Tokenizers:
    """Return the tokenizers of both sides.

    Raises:
        ConfigError: If mtkit has no such vocabulary, or what splits text for it is not there or not needed.
        StorageError: If a file is missing or damaged, or does not fit the weights.
    """
    paths = _find_vocabularies(model, settings, languages)
    own = (options.src_tokenizer, options.tgt_tokenizer)
    for path, file, key in zip(paths, own, ("src_tokenizer", "tgt_tokenizer"), strict=True):
        if path.suffix == ".spm" and file is not None:
            what = f"`{key}` is not for a vocabulary that splits text itself"
            raise ConfigError(what, where=str(path), hint="leave it out")
    given = (own[0], own[1] or own[0])
    sides = [
        read_tokenizer(path, side, rows, file, language)
        for path, side, rows, file, language in zip(
            paths, ("source", "target"), weights.rows, given, languages, strict=True
        )
    ]
    return join_tokenizers(
        sides,
        shared=weights.shares_embeddings,
        where=str(model.parent),
        differ=f"{paths[0].name} and {paths[1].name} differ, but their embeddings are tied",
    )


def _find_vocabularies(model: Path, settings: Settings, languages: tuple[str, str]) -> list[Path]:
    """Return the vocabularies of source and target: those that the settings name, or those in the folder.

    Raises:
        ConfigError: If the settings name another number, or it is unclear which they are.
        StorageError: If one is missing.
    """
    folder = model.parent
    if settings.has("vocabs"):
        found = [_beside(folder, name) for name in _names(settings, "vocabs")]
        if len(found) > 2:
            what = f"{len(found)} vocabularies"
            raise ConfigError(what, where=settings.where, hint="mtkit has one source and one target")
    else:
        found = [
            path
            for path in sorted(folder.iterdir())
            if re.search(r"vocab.*\.(yml|yaml|json|txt|spm)$", path.name) and path.is_file()
        ]
        number = len(found)
        if number == 2:
            named = [[path for path in found if f".{code}." in path.name] for code in languages]
            found = [path for paths in named for path in paths]
        if number not in (1, 2) or len(found) != number:
            what = f"no vocabs in a {_DECODER}, and {format_count(number, 'file')} that may be vocabularies"
            if number == 2:
                what += f", but are not named after {' and '.join(languages)}"
            hint = f"write {_DECODER} with the lists models and vocabs"
            raise ConfigError(what, where=str(folder), hint=hint)
    for path in found:
        if not path.is_file():
            raise StorageError("no such vocabulary", where=str(path), hint=_HINT)
    return [found[0], found[-1]]
