"""Strict YAML files that remember where each value stands, and dotted `key=value` overrides on top of them.

What counts as a number, a boolean or a text is told in `yamlreader`.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtkit.config.yaml_reader import Keys, YamlReader
from mtkit.errors import ConfigError, DataError
from mtkit.files import read_lines

_MAX_CHARACTERS = 1_000_000
_PLAIN_TEXT = re.compile(r"[^\W\d]([\w./@+-]| (?=[\w/]))*|\.{0,2}/[\w./@+-]*")
# What is a text here but not for other readers of YAML, and so is quoted when it is written.
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


@dataclass(frozen=True)
class YamlDocument:
    """Values of a YAML file, with the place of each.

    `lines` and `overrides` map a path of keys to its line, or to the command line's `key=value` that set it.
    """

    data: dict[str, object]
    path: str
    lines: dict[Keys, int]
    overrides: dict[Keys, str] = field(default_factory=dict)

    def line_of(self, keys: Keys) -> int:
        """Line (from 1) of a value, or of the nearest value around it that stands in the file."""
        return next((self.lines[near] for near in _outward(keys) if near in self.lines), 1)

    def place_of(self, keys: Keys) -> str:
        """Where a value comes from: `file:line`, or `command line: key=value`; else of what is around it."""
        for near in _outward(keys):
            if near in self.overrides:
                return f"command line: {self.overrides[near]}"
            if near and near in self.lines:
                return f"{self.path}:{self.lines[near]}"
        return self.path


def _outward(keys: Keys) -> Iterator[Keys]:
    return (keys[:length] for length in range(len(keys), -1, -1))


def load_yaml(path: str | Path) -> YamlDocument:
    """Read a YAML file of keys and values ("-" is stdin).

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds what `yamlreader` refuses.
    """
    lines: list[str] = []
    size = 0
    try:
        for line in read_lines(path):
            lines.append(line)
            size += len(line) + 1
            if size > _MAX_CHARACTERS:
                raise ConfigError("too large for a config", where=str(path), hint="name a YAML file")
    except DataError as error:
        raise ConfigError(error.what, where=error.where, hint=error.hint) from error
    name = "stdin" if str(path) == "-" else str(path)
    reader = YamlReader("\n".join(lines), name)
    data = reader.document()
    if data is None:
        raise ConfigError("the file is empty", where=name, hint="a config needs at least run and data")
    if not isinstance(data, dict):
        what = f"keys and values expected, found {'a list' if isinstance(data, list) else 'a single value'}"
        raise ConfigError(
            what, where=f"{name}:{reader.lines[()]}", hint="write for example  run: runs/my-run"
        )
    return YamlDocument(data, name, reader.lines)


def parse_value(text: str) -> object:
    """The value of an override, by the rules of a YAML file; nothing is null.

    Raises:
        ConfigError: not one YAML value.
    """
    values = YamlReader(f"- {text}", None).document()  # In a list, "%" and "---" have no special meaning.
    if not isinstance(values, list) or len(values) != 1:
        raise ConfigError("not one value", hint="put a text in quotes")
    return values[0]


def apply_overrides(document: YamlDocument, overrides: Sequence[str]) -> YamlDocument:
    """A new document with dotted `key=value` put over it: `data.train.0.src=x` is the first entry's key.

    Sections that are missing are made; list entries are not. A later override wins.

    Raises:
        ConfigError: no `=`, an empty key, an entry that does not exist, a key below a value, a bad value.
    """
    data, lines, places = copy.deepcopy(document.data), dict(document.lines), dict(document.overrides)
    for override in overrides:
        shown = override.replace("\n", "\\n")  # An error is one line.
        where = f"command line: {shown}"
        name, equals, text = override.partition("=")
        keys = name.strip().split(".")
        if not equals:
            raise ConfigError("key=value expected", where=where, hint="for example training.max_steps=1000")
        if "" in keys:
            raise ConfigError("an empty key", where=where, hint="for example training.max_steps=1000")
        try:
            path, first_new = _put(data, keys, parse_value(text), ())
        except ConfigError as error:
            raise ConfigError(error.what, where=where, hint=error.hint) from error
        for known in (lines, places):
            for old in [old for old in known if old[: len(path)] == path]:
                del known[old]
        places.update({path[:length]: shown for length in range(first_new, len(path) + 1)})
    return YamlDocument(data, document.path, lines, places)


def _put(container: Any, keys: Sequence[str], value: object, above: Keys) -> tuple[Keys, int]:
    """Set a value; its path, and the length of the shortest part of that path which is new."""
    key, name = keys[0], ".".join(map(str, above))
    index = int(key) if key.isascii() and key.isdecimal() else None
    if isinstance(container, list) and (index is None or index >= len(container)):
        count = "1 entry, 0" if len(container) == 1 else f"{len(container)} entries, counted from 0"
        raise ConfigError(f"{name} has no entry {key}", hint=f"it has {count}; {name}=[...] sets them all")
    if isinstance(container, dict) and index is not None:
        raise ConfigError(
            f"{name or 'the config'} has no entry {key}", hint="only a list has: write key=[...]"
        )
    step: Any = key if index is None else index
    path: Keys = (*above, step)
    if len(keys) == 1:
        container[step] = value
        return path, len(path)
    below = container[step] if isinstance(container, list) else container.get(step)
    if below is None:
        below = container[step] = {}
        return _put(below, keys[1:], value, path)[0], len(path)
    if not isinstance(below, dict | list):
        what = f"{'.'.join(map(str, path))} is a value, not a section"
        raise ConfigError(what, hint=f"it is {format_value(below)}")
    return _put(below, keys[1:], value, path)


def dump_yaml(data: Mapping[str, object]) -> str:
    """YAML that `load_yaml` reads back equal, keys in order; also safe for readers of YAML 1.1.

    Sections and lists of sections are written in lines, everything below on one line.
    """
    return "".join(f"{line}\n" for line in _block(data, "")) or "{}\n"


def _block(data: Mapping[str, object], indent: str) -> Iterator[str]:
    for key, value in data.items():
        start = f"{indent}{_text(key)}:"
        if isinstance(value, Mapping) and value:
            yield start
            yield from _block(value, f"{indent}  ")
        elif isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value):
            yield start
            yield from (f"{indent}  - {format_value(entry)}" for entry in value)
        else:
            yield f"{start} {format_value(value)}"


def format_value(value: object) -> str:
    """A value as YAML on one line; `parse_value` reads it back. Raises: TypeError, for other types."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return _text(value)
        case int():
            return str(value)
        case float() if math.isfinite(value):
            digits = repr(value)  # YAML 1.1 wants a point before the exponent.
            return digits if "." in digits or "e" not in digits else digits.replace("e", ".0e")
        case Mapping():
            return (
                "{" + ", ".join(f"{_text(key)}: {format_value(below)}" for key, below in value.items()) + "}"
            )
        case list() | tuple():
            return "[" + ", ".join(map(format_value, value)) + "]"
    raise TypeError(f"no YAML for {value!r}")


def _text(text: str) -> str:
    """A text as a scalar, in quotes unless every reader of YAML takes it for a text."""
    if _PLAIN_TEXT.fullmatch(text) and text.lower() not in _WORDS:
        return text
    safe = (char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08X}" for char in text)
    return f'"{"".join(safe)}"'
