"""Which options of a command go together: rules that are held before anything is loaded or written.

A rule speaks of options of the command line. The option that they need, or with which they do not go, may instead be
switched on, or off, by the `decoding:` section of the model's config. Rules about keys of that section are those that
the YAML observes (`config.rules`).
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
    """What a command line must observe. Args: options: each of them; other: the option that they need or refuse."""

    options: tuple[str, ...]
    other: str
    hint: str


@dataclass(frozen=True)
class Rules:
    """The rules of a command."""

    needs: tuple[Rule, ...] = ()
    """The options do nothing without the other."""
    excludes: tuple[Rule, ...] = ()
    """The options do nothing, or something else than they say, together with the other."""


_IRREGULAR = {"sample_seed": "--seed", "compute_types": "--compute-type"}
"""Options that are not called as the key or parameter that they set."""


def option_of(name: str) -> str:
    """Return the option that sets a parameter of the library, or a key of `decoding`."""
    name = name.removeprefix("decoding.")
    return _IRREGULAR.get(name, f"--{name.replace('_', '-')}")


def name_options(message: str, command: Any) -> str:
    """Return a message of mtkit's library in the words of the command line.

    The library knows no options. It puts the name of a parameter in backticks, and names keys of the config: "raise
    `max_line_tokens`" becomes "raise --max-line-tokens", and "lower decoding.batch_tokens" becomes "lower
    --batch-tokens" if the command has that option.
    """
    options = {option for parameter in command.params for option in parameter.opts}

    def option_or_key(key: re.Match[str]) -> str:
        return option if (option := option_of(key[0])) in options else key[0]

    message = re.sub(r"`([a-z_]+)`", lambda name: option_of(name[1]), message)
    return re.sub(r"\bdecoding\.[a-z_]+", option_or_key, message)


def _of_decoding(rules: Sequence[config_rules.Rule]) -> Iterator[Rule]:
    """The rules of the config about keys of `decoding`, of options."""
    for rule in rules:
        if rule.other.startswith("decoding."):
            yield Rule(tuple(map(option_of, rule.keys)), option_of(rule.other), rule.hint)


TRANSLATE = Rules(
    needs=(
        Rule(("--resume",), "-o", "what was written says where to go on"),
        *_of_decoding(config_rules.NEEDS),
    ),
    excludes=(
        Rule(("--resume",), "--attention", "its file cannot be continued: leave out one of them"),
        Rule(("--constraints",), "--sample", "they are of the search, not of samples"),
        *_of_decoding(config_rules.EXCLUDES),
        Rule(("--scores",), "--n-best", "which prints scores anyway"),
        Rule(("--n-best", "--sample", "--mbr", "--constraints", "--split-sentences", "--protect", "--alignment",
              "--attention", "--scores", "--resume", "--read-ahead"), "--alternatives", "leave it out"),
    ),
)  # fmt: skip

_OFF = {"groups": 1, "mbr": "none"}
"""Values with which an option switches off."""


def check_options(context: typer.Context, rules: Rules, decoding: DecodingConfig) -> None:
    """Hold the rules of a command against its command line.

    Args:
        context: of the command, parsed.
        rules: what must be so.
        decoding: the model's own settings with what the command line changes in them.

    Raises:
        ConfigError: options that do not go together.
    """
    hold(rules, given_options(context), switched_on(decoding))


def given_options(context: typer.Context) -> set[str]:
    """The names, long and short, of the options that the command line gives, unless it switches them off."""
    given = set()
    for parameter in context.command.params:
        name = str(parameter.name)
        source, value = context.get_parameter_source(name), context.params.get(name)
        is_off = value is False or (name in _OFF and value == _OFF[name])
        if source is not None and source.name == "COMMANDLINE" and not is_off:
            given.update(parameter.opts)
    return given


def switched_on(decoding: DecodingConfig) -> set[str]:
    """The options of `translate` that a config has switched on."""
    rules = [
        rule for rule in (*config_rules.NEEDS, *config_rules.EXCLUDES) if rule.other.startswith("decoding.")
    ]
    values = {rule: getattr(decoding, rule.other.removeprefix("decoding.")) for rule in rules}
    return {option_of(rule.other) for rule, value in values.items() if rule.is_on(value)}


def hold(rules: Rules, given: Collection[str], by_config: Collection[str]) -> None:
    """Check options by name.

    Args:
        rules: what must be so.
        given: those of the command line.
        by_config: those that the config has switched on.

    Raises:
        ConfigError: at the first rule that is not observed.
    """
    for rule in rules.excludes:
        for option in rule.options:
            if option in given and rule.other in given:
                raise ConfigError(f"{option} does not go with {rule.other}", hint=rule.hint)
            if option in given and rule.other in by_config:
                what = f"{option} does not go with {rule.other}, which the model's config switches on"
                raise ConfigError(what, hint=f"{rule.hint}; {SWITCHES_OFF[rule.other]} switches it off")
    for rule in rules.needs:
        for option in rule.options:
            if option in given and rule.other not in given and rule.other not in by_config:
                raise ConfigError(f"{option} needs {rule.other}", hint=rule.hint)


SWITCHES_OFF = {"--sample": "--no-sample", "--mbr": "--mbr none", "--groups": "--groups 1"}
"""How the command line takes back what a config has switched on."""
