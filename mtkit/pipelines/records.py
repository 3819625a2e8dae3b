"""Records of stages: with which settings and inputs each was begun, whether it is done, and what it returned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mtkit.config.loading import AUTO, CHANGED_DEFAULTS, config_keys
from mtkit.config.sections import Config, Section, default_value
from mtkit.config.yaml_document import format_value
from mtkit.errors import StorageError
from mtkit.files import storage_errors, write_text

_SHOWN_DIFFERENCES = 5


@dataclass(frozen=True)
class Record:
    """The record of a stage.

    Attributes:
        work: module and name of its function.
        settings: its settings, as JSON reads them back.
        inputs: fingerprint of each input by its path.
        outputs: paths of the outputs.
        done: whether the function has returned.
        seconds: time that it has taken so far.
        result: what it returned.
        remade: fingerprint of each output, if it was run again after it had been done: later stages may have read other
            ones. Empty until it is done again, and None for a stage that was done once.
    """

    work: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    outputs: list[str]
    done: bool = False
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)
    remade: dict[str, str] | None = None

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """Read a record; None if there is none.

        Raises:
            StorageError: If it cannot be read, or is damaged.
        """
        if not path.is_file():
            return None
        with storage_errors(path):
            text = path.read_bytes()
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            hint = "start over with `fresh`, or choose another folder"
            raise StorageError("damaged", where=str(path), hint=hint) from error

    def write(self, path: Path) -> None:
        """Write the record.

        Raises:
            StorageError: If it cannot be written.
        """
        write_text(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    def differences(self, other: Record) -> str:
        """Describe how a stage that is to be run differs from this record; empty if it does not."""
        found = [] if self.work == other.work else [f"{self.work} -> {other.work}"]
        found += _differences("", self.settings, other.settings)
        for path in [*self.inputs, *(path for path in other.inputs if path not in self.inputs)]:
            if self.inputs.get(path) != other.inputs.get(path):
                found.append(f"{path} has changed" if path in other.inputs and path in self.inputs
                             else f"{path} is {'no longer' if path in self.inputs else 'now'} read")  # fmt: skip
        return _join(found)


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describe how settings, as JSON reads them back, differ from earlier ones; empty if they do not."""
    return _join(list(_differences("", old, new)))


def _join(differences: Sequence[str]) -> str:
    """Return the first differences and how many more there are."""
    more = len(differences) - _SHOWN_DIFFERENCES
    return "; ".join(differences[:_SHOWN_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")


def as_json(value: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return settings or a result as JSON reads them back: lists for tuples."""
    return dict(json.loads(json.dumps(value or {})))


def _differences(name: str, old: Any, new: Any, *, only_set: bool = False) -> Iterator[str]:
    """Yield the settings that differ, by dotted name.

    Args:
        name: name of the settings; empty for all.
        old: how they were.
        new: how they are.
        only_set: whether sections of a config have the keys that were set only, as with preset auto or `init`, so that
            one at its default is a difference too.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        only_set = only_set or any(each.get("preset") == AUTO or each.get("init") for each in (old, new))
        for key in old | new:
            full = f"{name}.{key}" if name else key
            if key in old or only_set or not _is_default(full, new[key]):
                yield from _differences(full, old.get(key), new.get(key), only_set=only_set)
    elif old != new and not _is_changed_default(name, old, new):
        yield f"{name}: {format_value(old)} -> {format_value(new)}"


def _is_changed_default(name: str, old: Any, new: Any) -> bool:
    """Return whether a key of a config has its default, and had the one of an earlier version of mtkit."""
    key = name.removeprefix("config.")
    return key in CHANGED_DEFAULTS and CHANGED_DEFAULTS[key] == old and _is_default(name, new)


def _is_default(name: str, value: Any) -> bool:
    """Return whether a setting is a key of a config at its default: what it was before mtkit had that key."""
    keys = config_keys() | dict(Config.model_fields)
    parts = name.split(".")
    known = [keys[key] for i in range(len(parts)) if (key := ".".join(parts[i:])) in keys]
    if not known or known[0].is_required():
        return False
    default = default_value(known[0])
    if isinstance(default, Section):
        default = default.model_dump()
    return bool(as_json({"": value}) == as_json({"": default}))
