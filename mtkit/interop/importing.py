"""Models of other toolkits become model folders of mtkit: `mtkit import`.

Each toolkit has a module with a `Format`, which recognizes what lies in a folder and reads it. What it reads is an
`ImportedModel`: a config, tokenizers, and weights under mtkit's names. No code in a file is ever run: pickles are read
with `weights_only`, everything else as safetensors, npz without objects, JSON and YAML.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from mtkit.checkpoint import MANIFEST_FILE, Checkpoint, best_folder, save_checkpoint
from mtkit.config.loading import dump_config, parse_config, without_training_data
from mtkit.config.sections import Config
from mtkit.data.segmentation import BytePairEncoding, Preparation, SentencePiece
from mtkit.data.tokenizer import Tokenizers, Vocabulary, VocabularyTokenizer
from mtkit.errors import ConfigError, StorageError
from mtkit.files import storage_errors
from mtkit.model.build import copy_weights, make_empty_model

_HINT = "import the model again from a complete copy"

T = TypeVar("T")


@dataclass(frozen=True)
class ImportOptions:
    """Facts about a model that its files lack, from the user.

    Attributes:
        src, tgt: language codes.
        src_tokenizer, tgt_tokenizer: files that split text, of toolkits that do not keep them with the weights.
    """

    src: str | None = None
    tgt: str | None = None
    src_tokenizer: Path | None = None
    tgt_tokenizer: Path | None = None


@dataclass(frozen=True)
class ImportedModel:
    """A model of another toolkit, in the terms of mtkit.

    Attributes:
        toolkit: where it is from, for messages and the model card.
        languages: codes of source and target.
        model: keys of the section `model`.
        decoding: keys of the section `decoding`.
        tokenizers: tokenizers of both sides, with the model's own vocabularies.
        weights: state dict; tied matrices under each of their names, or under one.
        max_length: tokens of the longest source that the model can take.
        notes: what the user should know, such as settings that are left out.
    """

    toolkit: str
    languages: tuple[str, str]
    model: Mapping[str, Any]
    decoding: Mapping[str, Any]
    tokenizers: Tokenizers
    weights: Mapping[str, Tensor]
    max_length: int = 512
    notes: tuple[str, ...] = ()


class Format(Protocol):
    """A kind of model folder."""

    name: str
    """Toolkit, as users know it."""
    files: str
    """What such a folder holds, for messages."""

    def recognizes(self, folder: Path) -> bool:
        """Return whether the files in a folder are of this kind."""

    def read(self, folder: Path, options: ImportOptions) -> ImportedModel:
        """Read a model.

        Raises:
            ConfigError: If mtkit has no such architecture, or needs an option.
            StorageError: If a file is missing, damaged or does not fit the others.
        """


def import_model(
    source: str, output: Path, formats: Sequence[Format], options: ImportOptions
) -> ImportedModel:
    """Convert the model in a folder, and write it as a model folder of mtkit.

    Args:
        source: a folder, or a file if the toolkit keeps a model in one.
        output: folder to write; it must not exist.
        formats: the formats to recognize, the most specific first.
        options: what the user says about the model.

    Raises:
        ConfigError: If the format or the architecture is unknown, or an option is needed.
        StorageError: If a file is missing, damaged or does not fit the others, or the output cannot be written.
    """
    if output.exists():
        raise ConfigError("it exists already", where=str(output), hint="choose another folder, or delete it")
    folder = Path(source)
    if not folder.exists():
        raise ConfigError("no such file or folder", where=source, hint="check the path")
    found = next((format_ for format_ in formats if format_.recognizes(folder)), None)
    if found is None:
        if (folder / MANIFEST_FILE).is_file() or best_folder(folder).is_dir():
            hint = "use it as it is, or the model that it was exported from"
            raise ConfigError("written by mtkit: there is nothing to import", where=source, hint=hint)
        known = "; ".join(f"{format_.name}: {format_.files}" for format_ in formats)
        raise ConfigError("no model of a known format", where=source, hint=known)
    imported = found.read(folder, options)
    _save_model(imported, source, output)
    return imported


def _save_model(imported: ImportedModel, source: str, output: Path) -> None:
    """Write an imported model as a model folder, after checking that its weights fit its config.

    Raises:
        ConfigError: If the config is not valid.
        StorageError: If weights are missing, left over or of another shape, or the folder cannot be written.
    """
    config = _make_config(imported, output)
    model = make_empty_model(config.model, imported.tokenizers, source)
    copy_weights(model, _untied(imported.weights, dict(model.named_parameters())), source)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise StorageError(f"{name} is not finite", where=source, hint=_HINT)
    state = {"imported": imported.toolkit, "tokenizers": imported.tokenizers.fingerprint}
    save_checkpoint(output, Checkpoint(weights, dump_config(config), state), imported.tokenizers.files())


def _make_config(imported: ImportedModel, output: Path) -> Config:
    """Return the config of an imported model, which names no training data.

    Raises:
        ConfigError: If it is not valid.
    """
    src, tgt = imported.languages
    config = parse_config({
        "run": str(output),
        "data": {"src": src, "tgt": tgt, "train": [{"path": "none.tsv"}], "max_length": imported.max_length},
        "tokenizer": {"joint": imported.tokenizers.joint, "vocab_size": max(16, imported.tokenizers.tgt.vocab_size)},
        "model": dict(imported.model),
        "decoding": {"avoid_loops": False, **imported.decoding},  # other toolkits do not
    })  # fmt: skip
    return without_training_data(config)


def _untied(weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without the names that tied matrices have besides their first.

    Raises:
        StorageError: If matrices that are tied in the model differ in the file.
    """
    embeddings = ("src_embedding.weight", "tgt_embedding.weight", "output.weight")
    there = [name for name in embeddings if name in parameters]
    kept = {
        name: tensor.float() for name, tensor in weights.items() if name not in embeddings or name in there
    }
    for name in set(embeddings) & weights.keys() - set(there):
        alike = there[0] if name == "tgt_embedding.weight" or len(there) == 1 else there[-1]
        if alike in weights and not torch.equal(weights[name].float(), weights[alike].float()):
            raise StorageError(f"{name} and {alike} are tied, but differ", where="weights", hint=_HINT)
        kept.setdefault(alike, weights[name].float())
    return kept


class Settings:
    """Settings of a model of another toolkit, checked when they are asked for.

    Args:
        values: sections of keys, as deep as the toolkit has them.
        where: the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return a value.

        Args:
            key: the names of sections and the key, with dots between them.
            kind: its type; a whole number counts as a float.
            default: returned if it is missing or null; None if it must be there.

        Raises:
            StorageError: If it is missing or of another type.
        """
        value = self._find(key)
        if value is None and default is not None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            what = f"{key} is missing" if value is None else f"{key} is {value!r:.40}, not {kind.__name__}"
            raise StorageError(what, where=self.where, hint=_HINT)
        return value

    def has(self, key: str) -> bool:
        """Return whether a key is there and not null."""
        return self._find(key) is not None

    def _find(self, key: str) -> Any:
        """Return a value, or None if it is not there."""
        value: Any = self.values
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def choose(self, key: str, choices: Mapping[str, T], default: str | None = None) -> T:
        """Return what mtkit has for a value.

        Raises:
            ConfigError: If it has nothing for it.
            StorageError: If it is missing or not a string.
        """
        value = self.get(key, str, default)
        if value not in choices:
            hint = f"mtkit has {', '.join(choices)}"
            raise ConfigError(f"{key} is {value!r:.40}", where=self.where, hint=hint)
        return choices[value]

    def refuse(self, key: str, allowed: Sequence[object] = (False, 0, "", "none")) -> None:
        """Check that a key is missing, null, empty, or has a value that mtkit can express.

        Raises:
            ConfigError: If not.
        """
        value = self._find(key)
        if value is not None and value not in allowed and value != [] and value != {}:
            raise ConfigError(f"{key} is {value!r:.40}", where=self.where, hint="mtkit has nothing like it")


class StateDict:
    """Tensors of another toolkit by name; remembers which were asked for.

    Args:
        tensors: the state dict.
        where: the file, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.tensors, self.where = tensors, where
        self.used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str) -> Tensor:
        """Return a tensor.

        Raises:
            StorageError: If it is missing, or one number stands for many in it.
        """
        if name not in self.tensors:
            raise StorageError(f"no tensor {name!r}", where=self.where, hint=_HINT)
        self.used.add(name)
        tensor = self.tensors[name]
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            what = f"{name} has the shape {list(tensor.shape)!s:.60}, but fewer numbers"
            raise StorageError(what, where=self.where, hint=_HINT)
        return tensor

    def affine(self, place: str, name: str) -> dict[str, Tensor]:
        """Return `name.weight`, and `name.bias` if there is one, of a linear layer or norm at `place`."""
        found = {f"{name}.weight": self.take(f"{place}.weight")}
        if f"{place}.bias" in self:
            found[f"{name}.bias"] = self.take(f"{place}.bias")
        return found

    def fused(self, places: Sequence[str], name: str) -> dict[str, Tensor]:
        """Return the weight and bias of several linear layers as one layer of mtkit, stacked in this order.

        Raises:
            StorageError: If a weight is missing, or a bias of some of them.
        """
        layers = [self.affine(place, name) for place in places]
        for place, layer in zip(places, layers, strict=True):
            if layer.keys() != layers[0].keys():
                what = f"only one of {places[0]} and {place} has a bias"
                raise StorageError(what, where=self.where, hint=_HINT)
        return {key: torch.cat([layer[key] for layer in layers]) for key in layers[0]}

    def check_all_used(self, ignored: Sequence[str] = ()) -> None:
        """Check that no tensor is left: a model with more tensors has parts that mtkit does not know.

        Args:
            ignored: beginnings or ends of names that do not matter.

        Raises:
            ConfigError: If there is one.
        """
        left = [
            name
            for name in self.tensors
            if name not in self.used
            and not any(name.startswith(part) or name.endswith(part) for part in ignored)
        ]
        if left:
            what = f"tensors that mtkit has no place for: {', '.join(left[:3])}"
            raise ConfigError(
                what, where=self.where, hint="the architecture has parts that mtkit does not have"
            )


def read_bart_layer(source: StateDict, place: str, name: str, is_decoder: bool) -> dict[str, Tensor]:
    """Return the weights of a layer that is named as in fairseq, BART and Marian models of Hugging Face.

    Args:
        source: the state dict.
        place: the layer there, such as `encoder.layers.0`.
        name: the layer in mtkit, such as `encoder.0`.
        is_decoder: whether it attends to the memory.

    Raises:
        StorageError: If a tensor is missing.
    """
    attention = f"{place}.self_attn"
    weights = source.fused([f"{attention}.{kind}_proj" for kind in "qkv"], f"{name}.attention.qkv")
    weights |= source.affine(f"{attention}.out_proj", f"{name}.attention.out")
    weights |= source.affine(f"{place}.self_attn_layer_norm", f"{name}.attention_residual.norm")
    if is_decoder:
        cross = f"{place}.encoder_attn"
        weights |= source.affine(f"{cross}.q_proj", f"{name}.cross.q")
        weights |= source.fused([f"{cross}.{kind}_proj" for kind in "kv"], f"{name}.cross.kv")
        weights |= source.affine(f"{cross}.out_proj", f"{name}.cross.out")
        weights |= source.affine(f"{place}.encoder_attn_layer_norm", f"{name}.cross_residual.norm")
    weights |= source.affine(f"{place}.fc1", f"{name}.feed_forward.inner")
    weights |= source.affine(f"{place}.fc2", f"{name}.feed_forward.outer")
    return weights | source.affine(f"{place}.final_layer_norm", f"{name}.feed_forward_residual.norm")


def tying(shares_embeddings: bool, shares_output: bool) -> str:
    """Return `tie_embeddings`, given whether the embeddings are one and whether the target's is the output matrix."""
    return ("three-way" if shares_embeddings else "two-way") if shares_output else "none"


def check_language(code: str | None, key: str, where: str) -> str:
    """Return the code of a language.

    Raises:
        ConfigError: If it is unknown.
    """
    if not code:
        raise ConfigError("the files do not name the languages", where=where, hint=f"name it with `{key}`")
    return code


def make_vocabulary(tokens: Sequence[str], where: str, **special: str) -> Vocabulary:
    """Return a vocabulary.

    Raises:
        StorageError: If a token is there twice, or a special one is missing.
    """
    try:
        return Vocabulary(tuple(tokens), **special)  # type: ignore[arg-type]
    except ValueError as error:
        raise StorageError(str(error), where=where, hint=_HINT) from error


def find_file(folder: Path, named: Path | None, wanted: str | None, endings: Sequence[str]) -> Path:
    """Return a file that splits text: the one that the user names, or one in the folder of the model.

    Args:
        folder: folder of the model.
        named: what the user names.
        wanted: path of the file where the model was trained; its name is looked for in the folder.
        endings: if it is not there, the only file with one of these endings is taken.

    Raises:
        ConfigError: If there is none, or more than one.
    """
    if named is not None:
        return named
    if wanted and (folder / Path(wanted).name).is_file():
        return folder / Path(wanted).name
    found = [
        path for path in sorted(folder.iterdir()) if path.is_file() and path.name.endswith(tuple(endings))
    ]
    if len(found) == 1:
        return found[0]
    what = f"no {Path(wanted).name if wanted else ' or '.join(endings)} in this folder"
    raise ConfigError(what, where=str(folder), hint="name the file with `src_tokenizer` and `tgt_tokenizer`")


def read_segmentation(
    path: Path, preparation: Preparation, separator: str = "@@"
) -> SentencePiece | BytePairEncoding:
    """Return what a file splits text by: a SentencePiece model, or the BPE codes of subword-nmt or fastBPE.

    Args:
        path: the file.
        preparation: what happens to a line first.
        separator: the mark of a piece of BPE that does not end a word.

    Raises:
        ConfigError: If a package that is needed is not installed.
        StorageError: If the file is missing or damaged.
    """
    content = read_file(path)
    # The first field of a SentencePiece model has the number 1; no file of codes begins with a line break.
    if content.startswith(b"\n") or path.suffix == ".spm":
        return SentencePiece(content, str(path), preparation=preparation)
    codes = _as_subword_nmt(content)
    return BytePairEncoding(codes, separator=separator, preparation=preparation, where=str(path))


def _as_subword_nmt(codes: bytes) -> bytes:
    """Return the codes of fastBPE, which have counts, as those of subword-nmt; others unchanged."""
    lines = codes.rstrip(b"\n").split(b"\n")
    if not all(re.fullmatch(rb"\S+ \S+ \d+", line.rstrip(b"\r")) for line in lines):
        return codes
    return b"\n".join([b"#version: 0.2", *(line.rsplit(b" ", 1)[0] for line in lines)]) + b"\n"


def guess_preparation(tokens: Collection[str], language: str) -> Preparation:
    """Return Moses tokenization if a vocabulary has the entities that it writes, otherwise nothing."""
    if "&apos;" in tokens or "&quot;" in tokens:
        return Preparation(language, escape=True, split_dashes="@-@" in tokens)
    return Preparation()


def join_tokenizers(
    sides: Sequence[VocabularyTokenizer], *, shared: bool, where: str, differ: str, hint: str = _HINT
) -> Tokenizers:
    """Return the tokenizers of both sides.

    Args:
        sides: the tokenizers of source and target.
        shared: whether the model has one embedding for both.
        where: the place that says so, for the message.
        differ: message if their vocabularies differ then.
        hint: what to do about it.

    Raises:
        StorageError: If they do.
    """
    src, tgt = sides
    if shared and src.vocabulary != tgt.vocabulary:
        raise StorageError(differ, where=where, hint=hint)
    return Tokenizers(src, src if src.fingerprint == tgt.fingerprint else tgt, joint=shared)


def read_lines_of(path: Path) -> list[str]:
    """Return the lines of a text file.

    Raises:
        StorageError: If it is missing or not UTF-8.
    """
    try:
        text = read_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise StorageError("not UTF-8 text", where=str(path), hint=_HINT) from error
    return text.removesuffix("\n").split("\n") if text else []


def read_file(path: Path) -> bytes:
    """Return the content of a file of a model.

    Raises:
        StorageError: If it is missing or cannot be read.
    """
    with storage_errors(path):
        return path.read_bytes()
