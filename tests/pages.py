"""Read the documentation: code blocks, shell commands and links of README.md, docs/ and recipes/."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from mtkit.cli import make_app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("recipes/**/*.md"))]


def page_name(page: Path) -> str:
    """Return the path of a page from the repository root."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), flags=re.M | re.S)


def prose(page: Path) -> str:
    """Return the text outside the fenced code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)


def inline_code(page: Path) -> list[str]:
    """Return what stands in single backticks."""
    return re.findall(r"`([^`]+)`", prose(page))


def shell_lines(page: Path) -> list[str]:
    """Return the lines of the shell blocks."""
    return [line for block in blocks(page, "sh") for line in block.removesuffix("\n").split("\n")]


def mtkit_commands(page: Path) -> list[list[str]]:
    """Return every `mtkit …` of a page, as the words after `mtkit`."""
    lines = [line for line in [*shell_lines(page), *inline_code(page)] if "mtkit" in line]
    commands = [words for line in lines for words in _simple_commands(line) if words]
    return [words[1:] for words in commands if words[0] in ("mtkit", ".venv/bin/mtkit")]


def _simple_commands(line: str) -> Iterator[list[str]]:
    """Split a shell line at pipes and `&&`, and leave out redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in lexer:
        if word and set(word) <= set("<>"):
            skip = True
        elif word and set(word) <= set("();|&"):
            yield words
            words = []
        elif skip:
            skip = False
        else:
            words.append(word)
    yield words


def subcommands(command: Any) -> dict[str, Any]:
    """Return the commands below a command, by name."""
    return dict(command.commands) if isinstance(command, typer.core.TyperGroup) else {}


def leaf_commands(command: Any = None, name: str = "") -> dict[str, Any]:
    """Return every command that does something, by its full name, such as `config show`."""
    command = typer.main.get_command(make_app()) if command is None else command
    if not subcommands(command):
        return {name: command}
    leaves: dict[str, Any] = {}
    for child_name, child in subcommands(command).items():
        leaves |= leaf_commands(child, f"{name} {child_name}".strip())
    return leaves


def split_command(words: list[str]) -> tuple[str, Any, list[str]]:
    """Return the name of the (sub)command, the command itself, and its arguments."""
    command, names, rest = typer.main.get_command(make_app()), [], list(words)
    while rest and rest[0] in subcommands(command):
        names.append(rest.pop(0))
        command = subcommands(command)[names[-1]]
    return " ".join(names), command, rest


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), flags=re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        number = 0
        while (anchor := slug if number == 0 else f"{slug}-{number}") in found:
            number += 1
        found.add(anchor)
    return found
