"""Strict YAML documents that record the line of each value, and dotted `key=value` overrides on top of them.

`yaml_reader` says what counts as a number, a boolean or a string.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mtkit.config.yaml_reader import Keys, YamlReader
from mtkit.errors import ConfigError, DataError
from mtkit.files import read_lines

_MAX_CHARACTERS = 1_000_000
_PLAIN_STRING = re.compile(r"[^\W\d]([\w./@+-]| (?=[\w/]))*|\.{0,2}/[\w./@+-]*")
_END_TOKENS = (yaml.BlockEndToken, yaml.StreamEndToken)
# Strings here, but not in other YAML readers; so they are quoted when written.
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


@dataclass(frozen=True)
class YamlDocument:
    """Values of a YAML file, each with its place.

    Attributes:
        data: The values.
        path: Name of the file, for messages.
        lines: Line (from 1) of each path of keys in the file.
        overrides: The `key=value` that set it, for each path of keys from the command line.
    """

    data: dict[str, object]
    path: str
    lines: dict[Keys, int]
    overrides: dict[Keys, str] = field(default_factory=dict)

    def place_of(self, keys: Keys) -> str:
        """Return where a value, or the section around it, was set: `file:line` or `command line: key=value`."""
        for near in _outward(keys):
            if near in self.overrides:
                return f"command line: {self.overrides[near]}"
            if near and near in self.lines:
                return f"{self.path}:{self.lines[near]}"
        return self.path


def _outward(keys: Keys) -> Iterator[Keys]:
    """Yield the path and all its prefixes, longest first."""
    return (keys[:length] for length in range(len(keys), -1, -1))


def load_yaml(path: str | Path) -> YamlDocument:
    """Read a YAML file of keys and values ("-" is stdin).

    Raises:
        ConfigError: If the file cannot be read, is not YAML, or contains what `YamlReader` rejects.
    """
    lines: list[str] = []
    size = 0
    try:
        for line in read_lines(path):
            lines.append(line)
            size += len(line) + 1
            if size > _MAX_CHARACTERS:
                raise ConfigError("too large for a config", where=str(path), hint="give a YAML file")
    except DataError as error:
        raise ConfigError(error.what, where=error.where, hint=error.hint) from error
    name = "stdin" if str(path) == "-" else str(path)
    reader = YamlReader("\n".join(lines), name)
    data = reader.document()
    if data is None:
        raise ConfigError("the file is empty", where=name, hint="a config needs at least run and data")
    if not isinstance(data, dict):
        what = f"expected a mapping, got {'a list' if isinstance(data, list) else 'a single value'}"
        raise ConfigError(what, where=f"{name}:{reader.lines[()]}", hint="for example  run: runs/my-run")
    return YamlDocument(data, name, reader.lines)


def parse_value(text: str) -> object:
    """Parse the value of an override by the rules of the YAML file; an empty string is null.

    Raises:
        ConfigError: If the text is not a single YAML value, or ends with a comment.
    """
    entry = f"- {text}"  # in a list, "%" and "---" have no special meaning
    values = YamlReader(entry, None).document()
    if not isinstance(values, list) or len(values) != 1:
        raise ConfigError("not a single value", hint="put a string in quotes")
    # YAML drops comments: runs/x #1 and runs/x #2 would be the same folder.
    try:
        end = [token.end_mark.index for token in yaml.scan(entry) if not isinstance(token, _END_TOKENS)][-1]
    except yaml.YAMLError:  # libyaml, which has parsed it, is less strict
        raise ConfigError("not a single value", hint="put a string in quotes") from None
    if "#" in entry[end:]:
        raise ConfigError("what follows # would be a comment", hint="put the value in quotes")
    return values[0]


def apply_overrides(document: YamlDocument, overrides: Sequence[str]) -> YamlDocument:
    """Return a copy of a document with dotted `key=value` overrides applied, such as `data.train.0.src=x`.

    Missing sections are created, missing list entries are not. Later overrides win.

    Raises:
        ConfigError: If an override has no `=`, an empty key, a list entry that does not exist, a key below a value, or
            an invalid value.
    """
    data, lines, places = copy.deepcopy(document.data), dict(document.lines), dict(document.overrides)
    for override in overrides:
        shown = override.replace("\n", "\\n")  # an error is one line
        where = f"command line: {shown}"
        name, equals, text = override.partition("=")
        keys = name.strip().split(".")
        if not equals:
            raise ConfigError("expected key=value", where=where, hint="for example training.max_steps=1000")
        if "" in keys:
            raise ConfigError("empty key", where=where, hint="for example training.max_steps=1000")
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
    """Set a value. Returns its path, and the length of the shortest prefix of that path that did not exist before."""
    key, name = keys[0], ".".join(map(str, above))
    index = int(key) if key.isascii() and key.isdecimal() else None
    if isinstance(container, list) and (index is None or index >= len(container)):
        count = "1 entry, 0" if len(container) == 1 else f"{len(container)} entries, counted from 0"
        raise ConfigError(
            f"{name} has no entry {key}", hint=f"it has {count}; {name}=[...] replaces the list"
        )
    if isinstance(container, dict) and index is not None:
        raise ConfigError(
            f"{name or 'the config'} has no entry {key}",
            hint="only lists have numbered entries; write key=[...]",
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
    """Dump values as YAML that `load_yaml` reads back equal, with keys in order; safe for YAML 1.1 readers too.

    Sections and lists of sections are written as blocks, everything below them on one line.
    """
    return "".join(f"{line}\n" for line in _block(data, "")) or "{}\n"


def _block(data: Mapping[str, object], indent: str) -> Iterator[str]:
    """Yield the lines of a section."""
    for key, value in data.items():
        start = f"{indent}{_format_string(key)}:"
        if isinstance(value, Mapping) and value:
            yield start
            yield from _block(value, f"{indent}  ")
        elif isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value):
            yield start
            yield from (f"{indent}  - {format_value(entry)}" for entry in value)
        else:
            yield f"{start} {format_value(value)}"


def format_value(value: object) -> str:
    """Format a value as YAML on one line that `parse_value` reads back.

    Raises:
        TypeError: If YAML has no such type.
    """
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return _format_string(value)
        case int():
            return str(value)
        case float() if math.isfinite(value):
            digits = repr(value)  # YAML 1.1 needs a point before the exponent
            return digits if "." in digits or "e" not in digits else digits.replace("e", ".0e")
        case Mapping():
            return (
                "{"
                + ", ".join(f"{_format_string(key)}: {format_value(below)}" for key, below in value.items())
                + "}"
            )
        case list() | tuple():
            return "[" + ", ".join(map(format_value, value)) + "]"
    raise TypeError(f"YAML cannot represent {value!r}")


def _format_string(text: str) -> str:
    """Format a string as a scalar, in quotes unless every YAML reader takes it for a string."""
    if _PLAIN_STRING.fullmatch(text) and text.lower() not in _WORDS:
        return text
    safe = (char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08X}" for char in text)
    return f'"{"".join(safe)}"'
