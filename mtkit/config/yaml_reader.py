"""YAML parser below `yaml_document`: text to plain values and the line of each.

Plain scalars follow a subset of the YAML 1.2 core schema. `true` and `false` (also True, TRUE, ...) are the only
booleans, so `no` is a language. null, `~` and an empty scalar are null. Numbers are decimal, such as `1e-4` and `.5`;
`012`, `0x10`, `1_000`, `.inf`, `12:30` and dates are strings. Keys are always strings and aliases are copies. Tags and
merge keys are errors, and so are the characters other than "\\n" that YAML 1.1 takes for line ends. Escapes of a
surrogate pair are one character; those of half of one, and of NUL, are errors.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from mtkit.errors import ConfigError

Keys = tuple[str | int, ...]

_MAX_DEPTH = 50
_MAX_ALIASED_VALUES = 10_000
_LINE_END = re.compile("[\r\x85\u2028\u2029]")
_DIFFERENT = re.compile(r"[\t?]")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_NO_TEXT = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
"""NUL and halves of surrogate pairs, except those by which Python spells bytes of file names that are not UTF-8."""
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class YamlReader:
    """Builds the values of one document from the events of PyYAML's parser and records their lines.

    libyaml parses ten times as fast as the parser written in Python. That one parses where libyaml is missing or finds
    an error, and what has tabs or question marks, of which libyaml accepts more: so a text is valid everywhere or
    nowhere, with the same message.

    Args:
        text: The YAML.
        name: Name of the file for messages, or None if places should not be named.

    Attributes:
        lines: Line (from 1) of each path of keys read so far.
    """

    def __init__(self, text: str, name: str | None) -> None:
        self.text = text
        self.name = name
        self.lines: dict[Keys, int] = {}
        self._anchors: dict[str, tuple[object, int]] = {}
        self._num_values = 0
        self._num_aliased = 0

    def document(self) -> object:
        """Return the value of the document, or None if it is empty.

        Raises:
            ConfigError: If the text is not YAML or contains what this module rejects.
        """
        if found := _LINE_END.search(self.text):
            code = ord(found[0])
            what = f"character U+{code:04X}, which some YAML readers take for a line end"
            raise self._error(what, f'write "\\u{code:04X}" in double quotes', found.start())
        try:
            self._events = self._parse()
            next(self._events)  # start of the stream
            if not isinstance(next(self._events), DocumentStartEvent):
                return None
            value = self._value(next(self._events), ())
            next(self._events)  # end of the document
            after = next(self._events)
        except yaml.reader.ReaderError as error:
            what = f"character U+{error.character:04X} is not allowed in YAML"
            raise self._error(what, "remove it", error.position) from error
        except yaml.MarkedYAMLError as error:
            raise self._error(*_translate_error(error)) from error
        if isinstance(after, DocumentStartEvent):
            raise self._fault("a second document", after, "remove the second --- and everything after it")
        return value

    def _parse(self) -> Iterator[Event]:
        if not _DIFFERENT.search(self.text):
            with suppress(AttributeError, UnicodeError, yaml.YAMLError):
                return iter(list(yaml.parse(self.text, Loader=yaml.CSafeLoader)))
        return iter(yaml.parse(self.text, Loader=yaml.SafeLoader))

    def _value(self, event: Event, keys: Keys) -> object:
        self.lines.setdefault(keys, self._line(event))
        if len(keys) > _MAX_DEPTH:
            raise self._fault(
                f"nested more than {_MAX_DEPTH} levels deep", event, "a config has two or three levels"
            )
        if isinstance(event, AliasEvent):
            return self._alias(event)
        assert isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise self._fault(f"tag {tag}: tags are not supported", event, "remove the tag")
        before = self._num_values
        self._num_values += 1
        value: object
        match event:
            case MappingStartEvent():
                value = self._mapping(keys)
            case SequenceStartEvent():
                value = self._sequence(keys)
            case _:
                value = _plain(event.value) if event.implicit[0] else self._quoted(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._num_values - before)
        return value

    def _quoted(self, event: ScalarEvent) -> str:
        """Return the string of a scalar whose escapes may stand for any character."""
        # JSON spells a character beyond U+FFFF as two escapes.
        text = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), event.value)
        if found := _NO_TEXT.search(text):
            what = "a NUL character" if found[0] == "\0" else "half of a surrogate pair"
            raise self._fault(f"{what} in a string", event, "remove it")
        return text

    def _mapping(self, keys: Keys) -> dict[str, object]:
        values: dict[str, object] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            if not isinstance(event, ScalarEvent) or event.tag is not None or not event.value:
                raise self._fault("a key that is not a string", event, "write key: value")
            here = (*keys, event.value)
            if event.value in values:
                what = f"duplicate key {event.value!r}, first on line {self.lines[here]}"
                raise self._fault(what, event, "remove one of them")
            if event.value == "<<":
                raise self._fault("merge keys (<<) are not supported", event, "write the keys out")
            self.lines[here] = self._line(event)
            values[event.value] = self._value(next(self._events), here)
        return values

    def _sequence(self, keys: Keys) -> list[object]:
        values: list[object] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            values.append(self._value(event, (*keys, len(values))))
        return values

    def _alias(self, event: AliasEvent) -> object:
        if event.anchor not in self._anchors:  # or is inside its own anchor
            what = f"alias *{event.anchor} has no anchor &{event.anchor} before it"
            raise self._fault(what, event, "put a string that starts with * in quotes")
        value, size = self._anchors[event.anchor]
        self._num_values += size
        self._num_aliased += size
        if self._num_aliased > _MAX_ALIASED_VALUES:  # nine aliases of nine aliases of ...
            raise self._fault("aliases expand to too many values", event, "write the values out")
        return copy.deepcopy(value)

    def _line(self, event: Event) -> int:
        return self.text.count("\n", 0, _index(event.start_mark)) + 1

    def _fault(self, what: str, event: Event, hint: str) -> ConfigError:
        return self._error(what, hint, _index(event.start_mark))

    def _error(self, what: str, hint: str, index: int) -> ConfigError:
        line = self.text.count("\n", 0, index) + 1
        return ConfigError(what, where=self.name and f"{self.name}:{line}", hint=hint)


def _index(mark: Any) -> int:
    """Return the character offset (from 0) of a PyYAML mark."""
    return int(mark.index) if mark else 0


def _plain(text: str) -> object:
    """Return the value of a plain (unquoted) scalar."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text[0] in "tT"
    if len(text) < 400:  # Python rejects integers of more than 4300 digits
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
            return number
    return text


def _translate_error(error: yaml.MarkedYAMLError) -> tuple[str, str, int]:
    """Return message, hint and character offset of a syntax error."""
    problem, context = str(error.problem), str(error.context)
    at = _index(error.problem_mark or error.context_mark)
    start = _index(error.context_mark) if error.context_mark else at
    if r"'\t'" in problem:
        return "tab in the indentation", "use spaces", at
    if "cannot start any token" in problem:
        return f"a plain string cannot start with {problem.split()[2]}", "put it in quotes", at
    if "could not find expected ':'" in problem:
        return "expected key: value", "add the colon and a space, or fix the indentation", start
    if "mapping values are not allowed" in problem:
        return "unexpected key: value", "fix the indentation; a string with ': ' needs quotes", at
    if "flow" in context and "expected ','" in problem:
        return f"missing {problem.split()[3][1]} or comma", "close the bracket that starts here", start
    if "quoted scalar" in context and "end of stream" in problem:
        return "unclosed quote", "close the quote that starts here", start
    if "sequence entries are not allowed" in problem:
        return "unexpected list entry", "start the list on the next line, or quote the string", at
    if "expected <block end>" in problem and problem.endswith("':'"):
        return "colon without a key", "write key: value", at
    if "expected <block end>" in problem and problem.endswith("'<scalar>'"):
        return (
            "text after the end of a value",
            "put the whole value in quotes, or fix the indentation",
            at,
        )
    if "expected <block end>" in problem:
        return "wrong indentation", "indent all keys of a section equally", at
    return f"invalid YAML: {problem}".replace(r"'\x00'", "the end"), "check the syntax of this line", at
