"""Rules about options that go together, checked before anything is loaded or written.

A rule names options of the command line. The option that they need or exclude may also be enabled, or disabled, by the
`decoding` section of the model's config. Rules about keys of that section come from `mtkit.config.rules`, so that the
YAML obeys the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from mtkit.config import rules as config_rules
from mtkit.errors import ConfigError

if TYPE_CHECKING:
    from mtkit.config.sections import DecodingConfig


@dataclass(frozen=True)
class Rule:
    """Options that need, or exclude, another one.

    Args:
        options: the rule holds for each of them.
        other: the option that they need or exclude.
        hint: why.
    """

    options: tuple[str, ...]
    other: str
    hint: str


@dataclass(frozen=True)
class Rules:
    """The rules of a command."""

    needs: tuple[Rule, ...] = ()
    """Options that have no effect without the other."""
    excludes: tuple[Rule, ...] = ()
    """Options that have no effect, or another one, together with the other."""


_IRREGULAR = {"sample_seed": "--seed", "compute_types": "--compute-type"}
"""Options whose names differ from those of their keys or parameters."""


def option_of(name: str) -> str:
    """Return the option that sets a parameter of the library, or a key of `decoding`."""
    name = name.removeprefix("decoding.")
    return _IRREGULAR.get(name, f"--{name.replace('_', '-')}")


def name_options(message: str, command: Any) -> str:
    """Return an error message of the library with options in place of parameters and keys.

    The library does not know the command line. It names parameters in backticks, and keys of the config: "raise
    `max_line_tokens`" becomes "raise --max-line-tokens", and "lower decoding.batch_tokens" becomes "lower
    --batch-tokens" if the command has that option.

    Args:
        message: the error message.
        command: the running click command.
    """
    options = {option for parameter in command.params for option in parameter.opts}

    def option_or_key(key: re.Match[str]) -> str:
        return option if (option := option_of(key[0])) in options else key[0]

    message = re.sub(r"`([a-z_]+)`", lambda name: option_of(name[1]), message)
    return re.sub(r"\bdecoding\.[a-z_]+", option_or_key, message)


def _decoding_rules(rules: Sequence[config_rules.Rule]) -> Iterator[Rule]:
    """Yield the config's rules about keys of `decoding` as rules about options."""
    for rule in rules:
        if rule.other.startswith("decoding."):
            yield Rule(tuple(map(option_of, rule.keys)), option_of(rule.other), rule.hint)


TRANSLATE = Rules(
    needs=(
        Rule(("--resume",), "-o", "the length of the file tells where to resume"),
        *_decoding_rules(config_rules.NEEDS),
    ),
    excludes=(
        Rule(("--resume",), "--attention", "its file cannot be appended to: leave out one of them"),
        Rule(("--constraints",), "--sample", "samples cannot be constrained"),
        *_decoding_rules(config_rules.EXCLUDES),
        Rule(("--scores",), "--n-best", "it prints scores already"),
        Rule(("--scores",), "--json", "it prints scores already"),
        Rule(("--scores", "--alignment"), "--confidence", "leave it out; --json prints scores too"),
        Rule(("--n-best",), "--confidence", "only that of the best translation is known"),
        Rule(("--confidence",), "--sample", "it was fitted on translations that a beam found"),
        Rule(("--confidence",), "--mbr", "it was fitted on translations that a beam found"),
        Rule(("--prefix", "--constraints", "--protect"), "--confidence", "it is that of what the model chose itself"),
        Rule(("--ensemble", "--constraints", "--alternatives", "--attention", "--sample", "--mbr", "--groups",
              "--confidence", "--shortlist", "--avoid-loops"),
             "--engine", "only mtkit's own models have it"),
        Rule(("--n-best", "--sample", "--mbr", "--constraints", "--split-sentences", "--protect", "--alignment",
              "--attention", "--scores", "--confidence", "--json", "--resume", "--read-ahead", "--shortlist",
              "--truecase", "--avoid-loops", "--batch-tokens", "--workers", "--threads"), "--alternatives",
             "leave it out"),
    ),
)  # fmt: skip

_OFF = {"groups": 1, "mbr": "none"}
"""Values that disable an option."""


def check_options(context: typer.Context, rules: Rules, decoding: DecodingConfig) -> None:
    """Check that a command line obeys the rules of its command.

    Args:
        context: the parsed command line.
        rules: rules of the command.
        decoding: the model's settings, as the command line overrides them.

    Raises:
        ConfigError: If options cannot be combined, or one lacks another that it needs.
    """
    check_rules(rules, given_options(context), enabled_options(decoding))


def given_options(context: typer.Context) -> set[str]:
    """Return the names, long and short, of the options on the command line, except those that it disables."""
    given = set()
    for parameter in context.command.params:
        name = str(parameter.name)
        source, value = context.get_parameter_source(name), context.params.get(name)
        is_off = value is False or (name in _OFF and value == _OFF[name])
        if source is not None and source.name == "COMMANDLINE" and not is_off:
            given.update(parameter.opts)
    return given


def enabled_options(decoding: DecodingConfig) -> set[str]:
    """Return the options of `mtkit translate` that a config enables."""
    rules = [
        rule for rule in (*config_rules.NEEDS, *config_rules.EXCLUDES) if rule.other.startswith("decoding.")
    ]
    values = {rule: getattr(decoding, rule.other.removeprefix("decoding.")) for rule in rules}
    return {option_of(rule.other) for rule, value in values.items() if rule.is_on(value)}


def check_rules(rules: Rules, given: Collection[str], in_config: Collection[str]) -> None:
    """Check that options obey rules.

    Args:
        rules: rules of the command.
        given: options on the command line.
        in_config: options that the model's config enables.

    Raises:
        ConfigError: If a rule is broken; for the first one.
    """
    for rule in rules.excludes:
        for option in rule.options:
            if option in given and rule.other in given:
                raise ConfigError(f"{option} cannot be combined with {rule.other}", hint=rule.hint)
            if option in given and rule.other in in_config:
                what = f"{option} cannot be combined with {rule.other}, which the model's config enables"
                raise ConfigError(what, hint=f"{rule.hint}; {OFF_SWITCHES[rule.other]} disables it")
    for rule in rules.needs:
        for option in rule.options:
            if option in given and rule.other not in given and rule.other not in in_config:
                raise ConfigError(f"{option} needs {rule.other}", hint=rule.hint)


OFF_SWITCHES = {"--sample": "--no-sample", "--mbr": "--mbr none", "--groups": "--groups 1"}
"""Options that disable what a config enables."""
