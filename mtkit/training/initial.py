"""Fine-tuning: a run that starts from the weights, the tokenizers and the architecture of another model (`init`).

The run stores what it takes over, so that resuming it does not need that model any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtkit.checkpoint import stores_int8
from mtkit.config.loading import override_section, replace_sections
from mtkit.config.sections import Config, Section
from mtkit.config.yaml_document import format_value
from mtkit.errors import ConfigError
from mtkit.translation.model_folder import find_checkpoint, read_model_config

if TYPE_CHECKING:  # `mtkit config show` does without torch
    from torch import Tensor

    from mtkit.data.tokenizer import Tokenizers

FindModel = Callable[[str], Path]
"""Returns the run or model folder that `init` names."""

_FREE_KEYS = {
    "model": (
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "token_dropout",
        "layer_dropout",
        "alignment_layer",
    ),
    "tokenizer": ("add_tokens", "sampling_alpha", "bpe_dropout", "sampling_sides"),
}
"""Keys of the sections that come from the initial model that may be set anew."""


@dataclass(frozen=True)
class InitialModel:
    """The model that a run starts from.

    Attributes:
        folder: its checkpoint.
        new_tokens: tokens that are added to its vocabulary.
    """

    folder: Path
    new_tokens: tuple[str, ...] = ()

    def load_weights(self) -> dict[str, Tensor]:
        """Load its weights by parameter name, with rows for the new tokens.

        Raises:
            StorageError: If a file is missing or damaged.
        """
        from mtkit.model.build import extend_vocabulary
        from mtkit.translation.loading import load_own_tokenizers, load_weights

        weights = load_weights(self.folder)
        if not self.new_tokens:
            return weights
        return extend_vocabulary(weights, load_own_tokenizers(self.folder), self.load_tokenizers())

    def load_tokenizers(self) -> Tokenizers:
        """Load its tokenizers, with the new tokens.

        Raises:
            ConfigError: If a token cannot be added.
            StorageError: If a file is missing or damaged.
        """
        from mtkit.data.tokenizer import add_tokens
        from mtkit.translation.loading import load_own_tokenizers

        tokenizers = load_own_tokenizers(self.folder)
        return add_tokens(tokenizers, self.new_tokens) if self.new_tokens else tokenizers


def local_model(name: str) -> Path:
    """Return a folder unchanged: a `FindModel` that knows the models of mtkit alone."""
    return Path(name)


def open_initial_model(config: Config, find_model: FindModel) -> tuple[Config, InitialModel | None]:
    """Find the model that `init` names, and take over its architecture, tokenizer and decoding settings.

    Args:
        config: config of the run.
        find_model: finds the folder; it may download or convert the model.

    Returns:
        The resolved config, and the model; None without `init`.

    Raises:
        ConfigError: If the config sets a key to another value than the model has, or there is no such model.
        StorageError: If the model is damaged.
    """
    if config.init is None:
        return config, None
    path = find_model(config.init)
    folder = find_checkpoint(path)
    if stores_int8(folder):
        hint = "name the model that it was exported from"
        raise ConfigError(
            "weights in 8 bits, which cannot be trained", where=f"init: {config.init}", hint=hint
        )
    hint = "it was written by another version of mtkit: train or import it again"
    found = read_model_config(path, folder, hint)
    return take_over(config, found), InitialModel(folder, config.tokenizer.add_tokens)


def take_over(config: Config, other: Config) -> Config:
    """Return a config with the sections `model` and `tokenizer` of another, and `decoding` where it is not set.

    Args:
        config: config of the run.
        other: config of the initial model, or the one that the run has stored.

    Raises:
        ConfigError: If the config sets a key to another value that cannot be changed.
    """
    conflicts = [line for name in _FREE_KEYS for line in _conflicts(name, config, other)]
    if conflicts:
        what = f"not as in the model that training starts from: {'; '.join(conflicts)}"
        raise ConfigError(
            what, where=f"init: {config.init}", hint="leave these keys out, or train from scratch"
        )
    sections: dict[str, Section] = {}
    for name, free in _FREE_KEYS.items():
        section = getattr(config, name)
        changes = {key: getattr(section, key) for key in free if key in section.model_fields_set}
        if name == "tokenizer":
            changes["add_tokens"] = config.tokenizer.add_tokens  # those of the other model are there already
            strengths = ("sampling_alpha", "bpe_dropout")
            # Sides to sample are an error without sampling, so those of the other model are not taken over then.
            if not any(changes.get(key, getattr(other.tokenizer, key)) for key in strengths):
                changes.setdefault("sampling_sides", "both")
        sections[name] = override_section(getattr(other, name), name, changes)
    search = {key: getattr(config.decoding, key) for key in config.decoding.model_fields_set}
    sections["decoding"] = override_section(other.decoding, "decoding", search)
    return replace_sections(config, sections)


def _conflicts(name: str, config: Config, other: Config) -> Iterator[str]:
    """Yield the keys of a section that are set to another value than in the other config, with both values."""
    section, theirs = getattr(config, name), getattr(other, name)
    for key in sorted(section.model_fields_set - {*_FREE_KEYS[name]}):
        if getattr(section, key) != getattr(theirs, key):
            values = format_value(getattr(section, key)), format_value(getattr(theirs, key))
            yield f"{name}.{key} is {values[1]}, not {values[0]}"
