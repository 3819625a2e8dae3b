"""Keys that have no effect with or without others: one table for the YAML and, for `decoding`, the command line.

Setting such a key to another value than its default is an error, unless it is the command line that changed the other
key in the file. A stored config of a run is taken as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line reads the tables at startup and does without pydantic
    from mtkit.config.sections import Config, DecodingConfig, Section


@dataclass(frozen=True)
class Rule:
    """Keys that depend on another key.

    Attributes:
        keys: Their dotted names.
        other: Dotted name of the key that they depend on.
        hint: The reason.
        values: Values that switch the other key on; by default any that is not false, empty or 1.
    """

    keys: tuple[str, ...]
    other: str
    hint: str
    values: tuple[str, ...] = ()

    def is_on(self, value: object) -> bool:
        """Return whether this value of the other key switches it on."""
        if self.values:
            return value in self.values
        return value > 1 if type(value) is int else bool(value)

    def condition(self) -> str:
        """Return the other key with the values that switch it on, for messages."""
        return f"{self.other} {' or '.join(self.values)}".rstrip()


NEEDS = (
    Rule(("decoding.temperature", "decoding.top_k", "decoding.top_p", "decoding.epsilon", "decoding.sample_seed"),
         "decoding.sample", "it applies to sampling only"),
    Rule(("decoding.mbr_candidates",), "decoding.mbr", "a metric such as chrf, which chooses among the candidates"),
    Rule(("decoding.diversity",), "decoding.groups", "2 or more; it penalizes repetition between groups"),
    Rule(("training.min_learning_rate",), "training.schedule", "other schedules have no final value",
         ("linear", "cosine")),
    Rule(("model.max_positions",), "model.positions", "other positions have no maximum length", ("learned",)),
    Rule(("model.max_relative_distance",), "model.positions", "other positions have no maximum distance",
         ("relative",)),
    Rule(("validation.beam_size", "validation.max_sentences"), "validation.metrics",
         "nothing is translated without metrics"),
    Rule(("training.cutoff",), "training.simcut", "only SimCut cuts off tokens"),
    Rule(("data.reverse_epochs",), "data.reverse", "otherwise all epochs have one direction"),
    Rule(("validation.patience",), "data.valid", "early stopping needs a validation set"),
)  # fmt: skip
"""Rules whose keys have no effect unless the other key is on."""

_TOKENIZER_TRAINING = (
    "tokenizer.type", "tokenizer.vocab_size", "tokenizer.character_coverage", "tokenizer.byte_fallback",
    "tokenizer.normalization", "tokenizer.user_symbols", "tokenizer.training_lines",
)  # fmt: skip

EXCLUDES = (
    Rule(("decoding.groups", "decoding.diversity", "decoding.beam_size", "decoding.stop",
          "decoding.coverage_penalty", "decoding.avoid_loops"), "decoding.sample", "it applies to beam search only"),
    Rule(("decoding.groups", "decoding.diversity", "decoding.beam_size"), "decoding.mbr",
         "its beam size is the number of candidates"),
    Rule((*_TOKENIZER_TRAINING, "tokenizer.joint"), "tokenizer.model", "an existing model is used unchanged"),
    Rule(_TOKENIZER_TRAINING, "tokenizer.src_model", "existing models are used unchanged"),
)  # fmt: skip
"""Rules whose keys have no effect if the other key is on."""

_DECODING = "decoding."


@dataclass(frozen=True)
class IneffectiveKey:
    """A key that has no effect."""

    key: str
    """Dotted name."""
    other: str
    """Dotted name of the key that it depends on."""
    what: str
    """Error message."""
    hint: str


def ineffective_keys(config: Config) -> dict[str, IneffectiveKey]:
    """Return the keys that have no effect in a config, whether set or not, by dotted name."""
    return _find_ineffective({rule.other: _get(config, rule.other) for rule in (*EXCLUDES, *NEEDS)})


def ineffective_settings(config: Config) -> Iterator[IneffectiveKey]:
    """Yield the keys that have no effect although they were set to another value than their default."""
    for found in ineffective_keys(config).values():
        section, _, name = found.key.partition(".")
        if name in getattr(config, section).model_fields_set and _has_other_value(
            getattr(config, section), name
        ):
            yield found


def ineffective_decoding_settings(
    decoding: DecodingConfig, names: Collection[str]
) -> Iterator[IneffectiveKey]:
    """Yield those of the named keys of `decoding` that have no effect although they are not at their default."""
    others = {rule.other for rule in (*EXCLUDES, *NEEDS) if rule.other.startswith(_DECODING)}
    values = {other: getattr(decoding, other.removeprefix(_DECODING)) for other in others}
    for found in _find_ineffective(values).values():
        name = found.key.removeprefix(_DECODING)
        if name in names and _has_other_value(decoding, name):
            yield found


def _find_ineffective(values: Mapping[str, object]) -> dict[str, IneffectiveKey]:
    """Apply the rules about these other keys, which are given with their values; returns keys by dotted name."""
    found: dict[str, IneffectiveKey] = {}
    for rules, on, word in ((EXCLUDES, True, "with"), (NEEDS, False, "without")):
        for rule in rules:
            if rule.other in values and rule.is_on(values[rule.other]) == on:
                what = f"has no effect {word} {rule.condition()}"
                for key in rule.keys:
                    found.setdefault(key, IneffectiveKey(key, rule.other, what, rule.hint))
    return found


def _has_other_value(section: Section, name: str) -> bool:
    """Return whether a key has another value than its default."""
    from mtkit.config.sections import default_value

    return bool(getattr(section, name) != default_value(type(section).model_fields[name]))


def _get(config: Config, key: str) -> object:
    """Return the value at a dotted name."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)
