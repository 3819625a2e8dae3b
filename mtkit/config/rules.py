"""Keys that do nothing beside others: one table, for the YAML and, where it is of `decoding`, for the command line.

A key that does nothing is refused where a user sets it to another value than its default, but not where the command
line has changed what the file says of the other. What a run has stored is taken as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line, which reads the tables at its start, does without pydantic
    from mtkit.config.sections import Config, DecodingConfig, Section


@dataclass(frozen=True)
class Rule:
    """Keys that depend on another one.

    Args:
        keys: their dotted names.
        other: that of the key on which they depend.
        hint: why.
        values: with which the other counts as switched on; by default what is not false, empty or 1.
    """

    keys: tuple[str, ...]
    other: str
    hint: str
    values: tuple[str, ...] = ()

    def is_on(self, value: object) -> bool:
        """Whether this value of the other switches it on."""
        if self.values:
            return value in self.values
        return value > 1 if type(value) is int else bool(value)

    def condition(self) -> str:
        """The other as it must be to be on."""
        return f"{self.other} {' or '.join(self.values)}".rstrip()


NEEDS = (
    Rule(("decoding.temperature", "decoding.top_k", "decoding.top_p", "decoding.epsilon", "decoding.sample_seed"),
         "decoding.sample", "only samples have it"),
    Rule(("decoding.mbr_candidates",), "decoding.mbr", "a metric such as chrf chooses among them"),
    Rule(("decoding.diversity",), "decoding.groups", "2 or more, among which it divides"),
    Rule(("training.min_learning_rate",), "training.schedule", "the others have no end", ("linear", "cosine")),
    Rule(("model.max_positions",), "model.positions", "only these have a longest sequence", ("learned",)),
    Rule(("model.max_relative_distance",), "model.positions", "only these have a farthest distance", ("relative",)),
    Rule(("validation.beam_size", "validation.max_sentences"), "validation.metrics", "nothing is translated for none"),
    Rule(("validation.patience",), "data.valid", "nothing is validated, so that nothing could stop the run early"),
)  # fmt: skip
"""The keys do nothing unless the other is on."""

_OF_A_NEW_TOKENIZER = (
    "tokenizer.type", "tokenizer.vocab_size", "tokenizer.character_coverage", "tokenizer.byte_fallback",
    "tokenizer.normalization", "tokenizer.user_symbols", "tokenizer.training_lines",
)  # fmt: skip

EXCLUDES = (
    Rule(("decoding.groups", "decoding.diversity", "decoding.beam_size", "decoding.stop",
          "decoding.coverage_penalty"), "decoding.sample", "it is of the search, not of samples"),
    Rule(("decoding.groups", "decoding.diversity", "decoding.beam_size"), "decoding.mbr",
         "its beam is as wide as it has candidates"),
    Rule((*_OF_A_NEW_TOKENIZER, "tokenizer.joint"), "tokenizer.model", "an existing model is used as it is"),
    Rule(_OF_A_NEW_TOKENIZER, "tokenizer.src_model", "existing models are used as they are"),
)  # fmt: skip
"""The keys do nothing if the other is on."""

_DECODING = "decoding."


@dataclass(frozen=True)
class IneffectiveKey:
    """A key that does nothing: its dotted name, that of the key which makes it so, what is wrong, and why."""

    key: str
    other: str
    what: str
    hint: str


def ineffective_keys(config: Config) -> dict[str, IneffectiveKey]:
    """The keys that do nothing in a config, set or not, by their dotted names."""
    return _find_ineffective({rule.other: _value_of(config, rule.other) for rule in (*EXCLUDES, *NEEDS)})


def ineffective_settings(config: Config) -> Iterator[IneffectiveKey]:
    """The keys that do nothing and yet were set, to other values than their defaults."""
    for found in ineffective_keys(config).values():
        section, name = _section_of(config, found.key)
        if name in section.model_fields_set and _is_unusual(section, name):
            yield found


def ineffective_decoding_settings(
    decoding: DecodingConfig, names: Collection[str]
) -> Iterator[IneffectiveKey]:
    """The keys of `decoding` among these names that do nothing and yet have other values than their defaults."""
    ours = [rule.other for rule in (*EXCLUDES, *NEEDS) if rule.other.startswith(_DECODING)]
    for found in _find_ineffective(
        {other: getattr(decoding, other.removeprefix(_DECODING)) for other in ours}
    ).values():
        name = found.key.removeprefix(_DECODING)
        if name in names and _is_unusual(decoding, name):
            yield found


def _find_ineffective(values: Mapping[str, object]) -> dict[str, IneffectiveKey]:
    """The keys that do nothing, as far as the values of those on which they depend are given, by dotted names."""
    found: dict[str, IneffectiveKey] = {}
    for rules, on, word in ((EXCLUDES, True, "with"), (NEEDS, False, "without")):
        for rule in rules:
            if rule.other in values and rule.is_on(values[rule.other]) == on:
                what = f"does nothing {word} {rule.condition()}"
                for key in rule.keys:
                    found.setdefault(key, IneffectiveKey(key, rule.other, what, rule.hint))
    return found


def _is_unusual(section: Section, name: str) -> bool:
    from mtkit.config.sections import default_value

    default = default_value(type(section).model_fields[name])
    return bool(getattr(section, name) != default)


def _value_of(config: Config, key: str) -> object:
    """The value at a dotted name."""
    section, name = _section_of(config, key)
    return getattr(section, name)


def _section_of(config: Config, key: str) -> tuple[Section, str]:
    section, _, name = key.partition(".")
    return getattr(config, section), name
