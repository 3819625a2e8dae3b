"""Models of mtkit go to other engines: `mtkit export`.

Each engine has a module with an `Exporter`, which writes a model for it and runs what it wrote. An export is written to
a temporary folder, proven there (see `proof`), and published only then.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from mtkit.checkpoint import CONFIG_FILE, STATE_FILE, stores_int8, write_manifest
from mtkit.config.loading import dump_config
from mtkit.config.sections import Config, DecodingConfig
from mtkit.data.segmentation import Preparation, SentencePiece
from mtkit.data.tokenizer import Tokenizers, VocabularyTokenizer
from mtkit.errors import ConfigError
from mtkit.files import publish_folder, storage_errors, temporary_folder, write_bytes, write_text
from mtkit.interop.proof import EngineTokenizer, ProofText, prove_equal, prove_loss, prove_tokenizer
from mtkit.model.transformer import Transformer
from mtkit.search.shortlist import Shortlist
from mtkit.translation.engine import Engine
from mtkit.translation.line_translator import LineTranslator
from mtkit.translation.loading import load_model, usual_src_tokens
from mtkit.translation.model_folder import find_checkpoint
from mtkit.translation.shortlist import load_shortlist

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Types of floating-point numbers, by their names in `--type`."""


@dataclass(frozen=True)
class LoadedModel:
    """A model to export.

    Attributes:
        config: its config.
        tokenizers: its tokenizers.
        network: the model, in float32 on the CPU.
        usual_src_tokens: see `Translator`.
        shortlist: its shortlist, if it has one.
    """

    config: Config
    tokenizers: Tokenizers
    network: Transformer
    usual_src_tokens: int | None
    shortlist: Shortlist | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest source or translation that a search can have, eos included."""
        longest_source = self.config.data.max_length + 1
        return max(longest_source, self.config.decoding.max_length(longest_source))


class Exporter(Protocol):
    """A kind of folder that models are exported to."""

    name: str
    """Name of the engine, for messages."""
    types: tuple[str, ...]
    """Types of the weights, float32 first."""

    def check(self, model: LoadedModel) -> None:
        """Check that the engine can run a model.

        Raises:
            ConfigError: If it cannot, at the key that is in the way, or if a package is missing.
        """

    def write(self, model: LoadedModel, folder: Path, type_: str) -> None:
        """Write a model into a folder, which exists and is empty.

        Raises:
            StorageError: If it cannot be written.
        """

    def search(self, decoding: DecodingConfig) -> DecodingConfig:
        """Return the search of the engine that comes closest to that of a model."""

    def tokenizer(self, folder: Path) -> EngineTokenizer | None:
        """Return the tokenizer in a folder that was written; None for an engine that takes tokens."""

    def computed_in(self, type_: str) -> str:
        """Return the type in which this machine computes with weights of a type."""

    def unproven(self) -> str | None:
        """Return why an export cannot be proven on this machine; None if it can."""

    def engine(self, model: LoadedModel, folder: Path, type_: str, decoding: DecodingConfig) -> Engine:
        """Load what was written, to translate with it."""


def export_model(
    path: Path,
    exporter: Exporter,
    output: Path,
    find_text: Callable[[LoadedModel], ProofText],
    say: Callable[[str], None],
    *,
    type_: str = "float32",
    max_loss: float | None = None,
) -> None:
    """Export a model, and prove that it translates as mtkit does.

    Args:
        path: run or checkpoint folder.
        exporter: where to.
        output: folder to write; it must not exist.
        find_text: returns the text to prove it with.
        say: prints a result.
        type_: type of the weights.
        max_loss: most BLEU that the type may lose.

    Raises:
        ConfigError: If the architecture or the type cannot be exported, or the export translates worse than allowed.
        DataError: If the text cannot be read.
        StorageError: If the model is missing or damaged, or the output cannot be written.
    """
    if output.exists():
        raise ConfigError("it exists already", where=str(output), hint="choose another folder, or delete it")
    if type_ not in exporter.types:
        what = f"{exporter.name} has no type {type_!r}"
        raise ConfigError(what, where="`type`", hint=f"one of {', '.join(exporter.types)}")
    config, tokenizers, network = load_model(path)
    shortlist = load_shortlist(path, tokenizers)
    model = LoadedModel(config, tokenizers, network, usual_src_tokens(path), shortlist)
    exporter.check(model)
    if type_ == "float16":
        _check_float16(model.network, exporter)
    if stores_int8(find_checkpoint(path)):
        say(f"{path} has its matrices in 8 bits; what they lost stays lost")
    text = find_text(model)
    if max_loss is not None and text.refs is None:
        hint = "name a test set with `src` and `ref`"
        raise ConfigError("there are no references to measure a loss with", where="`max_loss`", hint=hint)
    if max_loss is not None and (why := exporter.unproven()) is not None:
        raise ConfigError("the loss cannot be measured", where="`max_loss`", hint=why)
    for key, value in exporter.search(model.config.decoding).model_dump().items():
        if value != (before := getattr(model.config.decoding, key)):
            say(f"{exporter.name} searches with decoding.{key} {value}, because it lacks {before}")
    with temporary_folder(output) as temporary:
        final, reference = temporary / "export", temporary / "float32"
        _write(exporter, model, final, type_)
        if (why := exporter.unproven()) is not None:
            say(f"not proven: {why}")
        else:
            if type_ == "float32":
                reference = final
            else:
                _write(exporter, model, reference, "float32")
            _prove(path, exporter, model, (reference, final), text, say, type_, max_loss)
        if not publish_folder(final, output):
            raise ConfigError(
                "it exists already", where=str(output), hint="choose another folder, or delete it"
            )


def _write(exporter: Exporter, model: LoadedModel, folder: Path, type_: str) -> None:
    """Write a model into a new folder."""
    with storage_errors(folder):
        folder.mkdir()
    exporter.write(model, folder, type_)


def _prove(
    path: Path,
    exporter: Exporter,
    model: LoadedModel,
    folders: tuple[Path, Path],
    text: ProofText,
    say: Callable[[str], None],
    type_: str,
    max_loss: float | None,
) -> None:
    """Prove that an export in float32 gives the same translations, and measure what its type loses.

    Args:
        path: folder of the model.
        exporter: where the model was exported to.
        model: the model.
        folders: the export in float32, and in its type.
        text: the text to translate.
        say: prints a result.
        type_: type of the export.
        max_loss: most BLEU that the type may lose.

    Raises:
        ConfigError: If it translates otherwise, or worse than allowed.
    """
    reference, final = folders
    say(f"{exporter.name}, {text.name}:")

    def engine(folder: Path, kind: str) -> Callable[[DecodingConfig], Engine]:
        return lambda decoding: exporter.engine(model, folder, kind, decoding)

    say(prove_equal(path, model.config, text, engine(reference, "float32"), exporter.name))
    if (tokenizer := exporter.tokenizer(final)) is not None:
        say(prove_tokenizer(model.tokenizers, text, tokenizer, exporter.name))
    if type_ != "float32":
        typed = engine(final, type_)
        config, tokenizers, usual = model.config, model.tokenizers, model.usual_src_tokens
        data, decoding = config.data, exporter.search(config.decoding)

        def translate(engine: Engine) -> list[str]:
            lines = LineTranslator(engine, tokenizers, decoding, data.max_length, usual, data.tgt)
            return [translation.text for translation in lines.translate(text.srcs)]

        hyps = translate(typed(decoding))
        before = translate(engine(reference, "float32")(decoding))
        for line in prove_loss(config, hyps, before, text, type_, exporter.computed_in(type_), max_loss):
            say(line)


def search_of_engines(decoding: DecodingConfig) -> DecodingConfig:
    """Return the search that comes closest to that of a model among those that other engines have.

    They stop when a beam of hypotheses has finished, and their length penalty is `length ** alpha`.
    """
    plain = {"penalty_kind": "simple", "stop": "finished", "groups": 1, "sample": False, "mbr": None}
    plain |= {"renormalize": False, "avoid_loops": False}
    return decoding.model_copy(update={**plain, "n_best": min(decoding.n_best, decoding.beam_size)})


def _check_float16(network: Transformer, exporter: Exporter) -> None:
    """Check that no weight is infinite in float16.

    Raises:
        ConfigError: If one is.
    """
    for name, parameter in network.named_parameters():
        if not parameter.half().isfinite().all():
            others = [type_ for type_ in exporter.types if type_ in ("float32", "bfloat16")]
            what = f"{name} has a number that is too large for float16"
            raise ConfigError(what, where="`type`", hint=f"choose {' or '.join(others)}")


def check_sentencepiece_alone(tokenizers: Tokenizers, engine: str) -> None:
    """Check that text is split by SentencePiece, with nothing before or after it.

    Args:
        tokenizers: tokenizers of both sides.
        engine: what has nothing else, for the message.

    Raises:
        ConfigError: If not.
    """
    for tokenizer in (tokenizers.src, tokenizers.tgt):
        if isinstance(tokenizer, VocabularyTokenizer):
            segmentation = tokenizer.segmentation
            plain = segmentation.preparation == Preparation() and segmentation.only is None
            if not isinstance(segmentation, SentencePiece) or not plain:
                what = f"{engine} needs SentencePiece alone, not {segmentation.kind}"
                what += "" if plain else " with preparation or a restricted vocabulary"
                raise ConfigError(what, where="tokenizer", hint=HINT_OF_TOKENS)


HINT_OF_TOKENS = "CTranslate2 takes tokens, so it has no such limit"
"""Hint for tokenizers that an engine lacks."""


def write_self_contained(model: LoadedModel, config: Config, folder: Path, engine: str) -> None:
    """Add to an exported folder what mtkit needs to translate with it: config, tokenizers, state and a manifest.

    Raises:
        StorageError: If it cannot be written.
    """
    state = {"usual_src_tokens": model.usual_src_tokens, "tokenizers": model.tokenizers.fingerprint}
    write_text(folder / CONFIG_FILE, dump_config(config))
    write_text(folder / STATE_FILE, json.dumps(state, indent=2) + "\n")
    for name, content in model.tokenizers.files().items():
        write_bytes(folder / name, content)
    write_manifest(folder, engine=engine)
