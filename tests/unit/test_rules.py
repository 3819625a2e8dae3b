"""Options that go together: every rule of the tables, from the command line and against a model's config."""

from __future__ import annotations

import ast
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import typer

import mtkit
from mtkit.cli import make_app
from mtkit.cli.rules import (
    OFF_SWITCHES,
    TRANSLATE,
    Rule,
    Rules,
    check_options,
    check_rules,
    enabled_options,
    given_options,
    name_options,
    option_of,
)
from mtkit.config import rules as config_rules
from mtkit.config.sections import DecodingConfig
from mtkit.errors import ConfigError

TABLES = {("translate",): TRANSLATE}

VALUES = {"--mbr": "chrf", "--stop": "certain"}
"""Values of options that take a word; others take the number 2, or nothing."""


def command_of(names: tuple[str, ...]) -> Any:
    command = typer.main.get_command(make_app())
    for name in names:
        command = command.commands[name]  # type: ignore[attr-defined]
    return command


def parse(names: tuple[str, ...], *options: str) -> typer.Context:
    """Parse a command line with these options, each with a value if it takes one, and return its context."""
    command = command_of(names)
    flags = {
        name
        for parameter in command.params
        if getattr(parameter, "is_flag", False)
        for name in parameter.opts
    }
    words = [word for o in options for word in ([o] if o in flags else [o, VALUES.get(o, "2")])]
    context: typer.Context = command.make_context("x", ["model", "file", *words])
    return context


def parameters(kind: str) -> list[Any]:
    """Return command, rules, option and rule for each rule that needs or excludes something."""
    return [
        pytest.param(names, rules, option, rule, id=f"{' '.join(names)} {option} {rule.other}")
        for names, rules in TABLES.items()
        for rule in getattr(rules, kind)
        for option in rule.options
    ]


@pytest.mark.parametrize(("names", "rules"), list(TABLES.items()))
def test_every_option_of_the_tables_exists(names: tuple[str, ...], rules: Rules) -> None:
    there = {option for parameter in command_of(names).params for option in parameter.opts}
    for rule in (*rules.needs, *rules.excludes):
        assert {*rule.options, rule.other} <= there
    switches = {option for p in command_of(("translate",)).params for option in (*p.opts, *p.secondary_opts)}
    assert {text.split()[0] for text in OFF_SWITCHES.values()} <= switches


@pytest.mark.parametrize(("names", "rules", "option", "rule"), parameters("needs"))
def test_an_option_needs_another(names: tuple[str, ...], rules: Rules, option: str, rule: Rule) -> None:
    needed = f"^{option} needs {rule.other} "
    with pytest.raises(ConfigError, match=needed):
        check_options(parse(names, option), rules, DecodingConfig())
    assert {option, rule.other} <= given_options(parse(names, option, rule.other))
    alone = Rules(needs=(rule,))
    check_options(parse(names, option, rule.other), alone, DecodingConfig())
    check_rules(alone, {option}, {rule.other})


@pytest.mark.parametrize(("names", "rules", "option", "rule"), parameters("excludes"))
def test_an_option_excludes_another(names: tuple[str, ...], rules: Rules, option: str, rule: Rule) -> None:
    with pytest.raises(ConfigError, match=rf"^{option} cannot be combined with {rule.other} \("):
        check_options(parse(names, option, rule.other), Rules(excludes=(rule,)), DecodingConfig())
    with pytest.raises(ConfigError):
        check_options(parse(names, option, rule.other), rules, DecodingConfig())
    check_options(parse(names, option), Rules(excludes=(rule,)), DecodingConfig())


def test_the_config_may_enable_what_an_option_needs() -> None:
    sampling, groups = DecodingConfig(sample=True), DecodingConfig(beam_size=4, groups=2)
    check_options(parse(("translate",), "--seed", "--top-p"), TRANSLATE, sampling)
    check_options(parse(("translate",), "--diversity"), TRANSLATE, groups)
    check_options(
        parse(("translate",), "--sample", "--mbr"), TRANSLATE, groups
    )  # an option given counts more
    with pytest.raises(ConfigError, match=r"--sample, which the model's config enables .*--no-sample"):
        check_options(parse(("translate",), "--constraints"), TRANSLATE, sampling)


def test_an_engine_may_be_told_to_leave_loops_as_it_does() -> None:
    for option in ("--no-avoid-loops", "--avoid-loops"):
        words = ["model", "--engine", "ctranslate2", option]
        context = command_of(("translate",)).make_context("x", words)
        with nullcontext() if option == "--no-avoid-loops" else pytest.raises(ConfigError, match="--engine"):
            check_options(context, TRANSLATE, DecodingConfig())


@pytest.mark.parametrize("option", ["--avoid-loops", "--batch-tokens", "--workers", "--threads"])
def test_alternatives_refuse_what_they_would_ignore(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} cannot be combined with --alternatives"):
        check_options(parse(("translate",), option, "--alternatives"), TRANSLATE, DecodingConfig())


@pytest.mark.parametrize("decoding", [DecodingConfig(), DecodingConfig(sample=True)])
def test_sampling_and_minimum_risk_can_be_combined(decoding: DecodingConfig) -> None:
    options = ["--sample", "--temperature", "--mbr", "--mbr-candidates", "--n-best", "--protect"]
    check_options(parse(("translate",), *options), TRANSLATE, decoding)


def test_zero_is_a_value_but_disabled_options_do_not_count() -> None:
    command = command_of(("translate",))
    context = command.make_context("x", ["m", "--seed", "0", "--groups", "1", "--mbr", "none", "--no-sample"])
    assert given_options(context) == {"model", "--seed"}


def test_the_command_line_obeys_the_rules_of_the_yaml() -> None:
    """Every rule about keys of `decoding`, in one table for both."""
    for table, held in ((config_rules.NEEDS, TRANSLATE.needs), (config_rules.EXCLUDES, TRANSLATE.excludes)):
        for rule in table:
            if rule.other.startswith("decoding."):
                assert Rule(tuple(map(option_of, rule.keys)), option_of(rule.other), rule.hint) in held
    on = DecodingConfig(sample=True, mbr="chrf", groups=5)
    assert enabled_options(on) == {"--sample", "--mbr", "--groups"}
    assert enabled_options(DecodingConfig()) == set()


@pytest.mark.parametrize(
    ("names", "message", "shown"),
    [
        (("translate",), "raise `max_line_tokens`", "raise --max-line-tokens"),
        (("translate",), "decoding.sample_seed: -1", "--seed: -1"),
        (("translate",), "lower decoding.batch_tokens or the beam", "lower --batch-tokens or the beam"),
        (("evaluate",), "lower decoding.batch_tokens or the beam", "lower decoding.batch_tokens or the beam"),
        (("benchmark", "translate"), "`compute_types`: no int4", "--compute-type: no int4"),
        (("check",), "start anew with `fresh`", "start anew with --fresh"),
        (("train",), "`pip install x`, or set decoding.stop", "`pip install x`, or set decoding.stop"),
    ],
)
def test_the_command_line_names_options_where_the_library_names_parameters_and_keys(
    names: tuple[str, ...], message: str, shown: str
) -> None:
    assert name_options(message, command_of(names)) == shown


def test_only_the_command_line_knows_options() -> None:
    """Messages of the library name parameters in backticks, and each of them is also an option."""
    root: Any = typer.main.get_command(make_app())
    commands = [*root.commands.values(), *root.commands["benchmark"].commands.values()]
    options = {option for command in commands for p in command.params for option in p.opts}
    package = Path(mtkit.__file__).parent
    named = set()
    for path in package.rglob("*.py"):
        if path.is_relative_to(package / "cli"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        for text in (node.value for node in texts if id(node) not in prose):
            assert not re.search(r"--[a-z]", re.sub(r"`?sacrebleu --[a-z]+", "", text)), (path, text)
            named |= {option_of(name) for name in re.findall(r"`([a-z_]+)`", text)}
    assert "--fresh" in named
    assert named <= options
