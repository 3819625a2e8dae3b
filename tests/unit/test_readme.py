"""What the README and the recipes say is true: commands parse, configs load, paths and keys exist, CI runs the same."""

from __future__ import annotations

import ast
import itertools
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mtkit
from mtkit.cli import app
from mtkit.config.loading import load_config
from mtkit.config.sections import Config, default_value
from mtkit.config.yaml_document import parse_value

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("recipes/**/*.md"))]
CONFIG_COMMANDS = ("train", "check", "config show")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), flags=re.M | re.S)


def inline_code(page: Path) -> list[str]:
    """What stands in single backticks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    return re.findall(r"`([^`]+)`", text)


def shell_lines() -> list[str]:
    """The lines of the README's shell blocks."""
    return "".join(blocks(README, "sh")).removesuffix("\n").split("\n")


def the_line(ending: str) -> str:
    """The one shell line of the README that ends like this."""
    (line,) = [line for line in shell_lines() if line.endswith(ending)]
    return line


def simple_commands(line: str) -> Iterator[list[str]]:
    """The commands of a shell line, cut at pipes and `&&`, without redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in lexer:
        if set(word) <= set("<>"):
            skip = True
        elif set(word) <= set("();|&"):
            yield words
            words = []
        elif skip:
            skip = False
        else:
            words.append(word)
    yield words


def mtkit_commands(*pages: Path) -> list[list[str]]:
    """Every `mtkit …` on these pages: the words after mtkit."""
    lines = [line for page in pages for block in blocks(page, "sh") for line in block.split("\n")]
    lines += [code for page in pages for code in inline_code(page)]
    commands = [words for line in lines if "mtkit" in line for words in simple_commands(line) if words]
    return [words[1:] for words in commands if words[0] in ("mtkit", ".venv/bin/mtkit")]


def subcommands(command: Any) -> dict[str, Any]:
    """The commands below a command, by name."""
    return dict(command.commands) if isinstance(command, typer.core.TyperGroup) else {}


def split_command(words: list[str]) -> tuple[str, Any, list[str]]:
    """The name of the (sub)command, the command itself, and its arguments."""
    command, names, rest = typer.main.get_command(app), [], list(words)
    while rest and rest[0] in subcommands(command):
        names.append(rest.pop(0))
        command = subcommands(command)[names[-1]]
    return " ".join(names), command, rest


def test_ci_runs_the_second_command_and_nothing_else() -> None:
    lines = (ROOT / ".ci/run").read_text("utf-8").removesuffix("\n").split("\n")
    code = [line for line in lines if not line.startswith("#")]
    assert code == [
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        the_line(" -m pytest -n 2 --dist loadfile"),
    ]
    assert lines[0] == "#!/usr/bin/env bash"
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_the_two_commands_are_complete() -> None:
    for line in (
        the_line("mtkit train configs/quickstart.yaml"),
        the_line(" -m pytest -n 2 --dist loadfile"),
    ):
        make, install, *jobs = line.split(" && ")
        assert make == "python3 -m venv .venv"
        assert install.startswith(".venv/bin/pip install -q -c constraints.txt ")
        assert jobs
        assert all(job.startswith(".venv/bin/") for job in jobs)


def test_constraints_pin_all_that_is_declared() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").removesuffix("\n").split("\n")
    assert lines[0].startswith("# ")
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    pins = dict(pairs)
    assert len(pins) == len(pairs)
    assert all(name == canonicalize_name(name) for name in pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    for requirement in map(Requirement, declared):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("words", mtkit_commands(*PAGES), ids=" ".join)
def test_commands_parse(tmp_path: Path, words: list[str]) -> None:
    name, command, arguments = split_command(words)
    if subcommands(command):
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(arguments) <= options | {"…"}
        return
    command.make_context(name, list(arguments))
    if name in CONFIG_COMMANDS and arguments[0] != "CONFIG":
        (tmp_path / "my.yaml").write_text(blocks(README, "yaml")[0], encoding="utf-8")
        folder = tmp_path if arguments[0] == "my.yaml" else ROOT
        load_config(folder / arguments[0], arguments[1:])


def test_every_command_is_in_the_readme() -> None:
    def leaves(command: Any, name: str) -> Iterator[str]:
        for child_name, child in subcommands(command).items():
            yield from leaves(child, f"{name} {child_name}".strip())
        if not subcommands(command):
            yield name

    shown = {split_command(words)[0] for words in mtkit_commands(README)}
    assert set(leaves(typer.main.get_command(app), "")) <= shown


@pytest.mark.parametrize("text", blocks(README, "yaml"))
def test_yaml_loads(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(path).data.root == "my-data"


def test_every_kind_of_source_is_shown() -> None:
    (text,) = [text for text in blocks(README, "yaml") if "every-kind" in text]
    assert {kind for kind in ("src", "path", "hub", "saved", "demo") if f"- {{{kind}: " in text} == {
        "src", "path", "hub", "saved", "demo",
    }  # fmt: skip


def test_keys_exist_and_have_these_defaults() -> None:
    keys = [code for code in inline_code(README) if re.fullmatch(r"[a-z]+\.[a-z_]+", code)]
    keys = [key for key in keys if key.split(".")[0] in Config.model_fields]
    assert len(keys) > 20
    rows = dict(re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| `([^`]*)` \|", README.read_text("utf-8"), flags=re.M))
    assert len(rows) > 20
    for key in keys:
        section_name, name = key.split(".")
        section: Any = Config.model_fields[section_name].annotation
        default = default_value(section.model_fields[name])
        assert key not in rows or parse_value(rows[key]) == default


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    places = r"(?:mtkit|configs|recipes|tests|\.ci)/[\w./-]*\w|(?:constraints\.txt|pyproject\.toml)"
    paths = re.findall(rf"(?<![\w./-])({places})", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_readme_shows_what_python_is_offered() -> None:
    for code in blocks(README, "python"):
        ast.parse(code)
    assert set(re.findall(r"\bmtkit\.([A-Za-z]\w+)", "".join(blocks(README, "python")))) == set(mtkit.__all__)
