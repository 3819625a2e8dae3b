"""From a YAML file, overrides or a dict to a `Config` and back; all problems at once, in plain words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mtkit.config.rules import ineffective_settings
from mtkit.config.sections import Config, Section, SourceConfig, default_value
from mtkit.config.yaml_document import (
    YamlDocument,
    apply_overrides,
    dump_yaml,
    format_value,
    load_yaml,
    parse_value,
)
from mtkit.config.yaml_reader import Keys
from mtkit.errors import ConfigError

SomeSection = TypeVar("SomeSection", bound=Section)

_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "keys and values",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_QUOTE = "put it in quotes"
# What other toolkits call it, where the names are too different to be guessed.
_OTHER_NAMES = {
    "lr": "learning_rate",
    "hidden_size": "d_model",
    "embed_dim": "d_model",
    "ff_size": "d_ff",
    "ffn_dim": "d_ff",
    "update_freq": "accumulate",
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config from YAML ("-" is stdin) and dotted `key=value` overrides.

    Raises:
        ConfigError: with file:line, or the override. If there are several problems, its `what` is a line with
            their number and then a line for each.
    """
    document = apply_overrides(load_yaml(path), overrides)
    return _held(_validated(document.data, document), document)


def load_stored_config(path: Path, passed_over: Collection[str] = ()) -> Config:
    """Read a config that some version of mtkit wrote beside weights, and that is what they were made with.

    A key that the version did not have yet gets its default, which is what was before it. A rule about several keys
    that came later does not hold for it, nor do those of `config.rules`.

    Args:
        path: the file.
        passed_over: sections in which keys that this version does not know do not matter.

    Raises:
        ConfigError: there is another unknown key, or a value that this version does not know.
    """
    document = load_yaml(path)
    data = {name: _known(name, value, passed_over) for name, value in document.data.items()}
    try:
        return _validated(data, document)
    except ConfigError:
        with suppress(ValidationError, LookupError, TypeError):
            return _as_it_stands(Config, data)
        raise


def _known(name: str, value: object, passed_over: Collection[str]) -> object:
    """The value of a section, without its unknown keys if they do not matter."""
    section = _section((name,))
    if name not in passed_over or section is None or not isinstance(value, dict):
        return value
    return {key: below for key, below in value.items() if key in section.model_fields}


def _as_it_stands(section: type[SomeSection], values: Mapping[str, Any]) -> SomeSection:
    """A section whose values are each what its key wants, whatever the rules about several keys say.

    Raises:
        KeyError: a key is unknown, or missing.
        TypeError, ValidationError: a value is not what its key wants.
    """
    read: dict[str, Any] = {name: values[name] for name, f in section.model_fields.items() if f.is_required()}
    for name, value in values.items():
        field = section.model_fields[name]
        below = _section_in(field.annotation)
        if below is not None and isinstance(value, list):
            read[name] = tuple(_as_it_stands(below, entry) for entry in value)
        elif below is not None:
            read[name] = _as_it_stands(below, dict(value))
        else:
            rules = field.metadata  # of this key alone
            wanted: Any = Annotated[(field.annotation, *rules)] if rules else field.annotation
            read[name] = TypeAdapter(wanted, config=section.model_config).validate_python(value)
    return section.model_construct(**read)


def parse_config(data: Mapping[str, object]) -> Config:
    """The config of a dict laid out like the YAML. Raises: ConfigError, as `load_config` but with keys."""
    return _held(_validated(data, None), None)


def dump_config(config: Config) -> str:
    """The resolved YAML: every key (of a data source, those that are set); loads back equal."""
    return dump_yaml(_values(config))


def config_schema() -> dict[str, object]:
    """JSON Schema of the YAML, with the description and default of every key, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def config_keys() -> dict[str, FieldInfo]:
    """Every key that an override may name, such as `training.max_steps`, with its field."""
    found = {}
    for name, field in Config.model_fields.items():
        section = _section((name,))
        if section is None:
            found[name] = field
        else:
            found |= {f"{name}.{key}": below for key, below in section.model_fields.items()}
    return found


def suggested_values(name: str) -> list[str]:
    """What a key may be, as it is written: the words that it takes, and its default; nothing for other names."""
    field = config_keys().get(name)
    if field is None:
        return []
    words = ["true", "false"] if field.annotation is bool else list(_words(field.annotation))
    default = default_value(field)
    known = [] if default is None or field.is_required() else [format_value(default)]
    return list(dict.fromkeys([*words, *known]))


def _words(annotation: object) -> Iterator[str]:
    """The words that a type names; those of a list's entries do not count."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) is not tuple:
        for part in get_args(annotation):
            yield from _words(part)


def diff_configs(old: Config, new: Config) -> list[str]:
    """What changed: lines like `training.learning_rate: 0.001 -> 0.002`, in the order of the keys."""
    return list(_differences("", _values(old), _values(new)))


def _values(config: Config) -> dict[str, Any]:
    values = config.model_dump()
    for split in ("train", "valid", "test"):
        entries = values["data"][split]
        values["data"][split] = [
            {key: entry[key] for key in entry if entry[key] is not None} for entry in entries
        ]
    return values


def _differences(name: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            yield from _differences(f"{name}.{key}" if name else key, old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(f"{name}.{index}", before, after)
    elif old != new:
        yield f"{name}: {format_value(old)} -> {format_value(new)}"


def _validated(data: Mapping[str, object], document: YamlDocument | None) -> Config:
    # "training:" with nothing below it, or with every line commented out, is a section of defaults.
    filled = {key: {} if value is None and _section((key,)) else value for key, value in data.items()}
    try:
        return Config.model_validate(filled)
    except ValidationError as error:
        raise _told(error.errors(include_url=False), document) from None


def override_section(section: SomeSection, name: str, changes: Mapping[str, object]) -> SomeSection:
    """A section with other values for some of its keys.

    Raises:
        ConfigError: as `parse_config` raises it; `name` is what the section is called there.
    """
    try:
        return type(section).model_validate({**section.model_dump(), **changes})
    except ValidationError as error:
        details = error.errors(include_url=False)
        for detail in details:
            detail["loc"] = (name, *detail["loc"])
        raise _told(details, None) from None


def _told(details: Sequence[ErrorDetails], document: YamlDocument | None) -> ConfigError:
    """All of pydantic's errors, as a user should hear them."""
    # A list whose only entry is wrong is called empty as well, and where a key is wrong, others have no default yet:
    # that is no news.
    places = {detail["loc"] for detail in details}
    inside = {place[:length] for place in places for length in range(len(place))}
    details = [
        detail
        for detail in details
        if not (detail["type"] == "too_short" and detail["loc"] in inside)
        and detail["type"] != "default_factory_not_called"
    ]
    return _all_in_one([_problem(detail, document) for detail in details], document)


def _held(config: Config, document: YamlDocument | None) -> Config:
    """The config, if no key was set that does nothing. Raises: ConfigError."""
    problems = []
    for found in ineffective_settings(config):
        if document is None:
            problems.append(ConfigError(found.what, where=found.key, hint=found.hint))
            continue
        key, other = (tuple(name.split(".")) for name in (found.key, found.other))
        if key in document.overrides or other not in document.overrides:
            what, place = f"{found.key}: {found.what}", document.place_of(key)
            problems.append(ConfigError(what, where=place, hint=found.hint))
    if problems:
        raise _all_in_one(problems, document)
    return config


def _all_in_one(found: Sequence[ConfigError], document: YamlDocument | None) -> ConfigError:
    """One error that tells of all, by line; of equal ones once."""
    problems = sorted({str(problem): problem for problem in found}.values(), key=_order)
    if len(problems) == 1:
        return problems[0]
    summary = f"{len(problems)} problems in {document.path if document else 'the config'}"
    return ConfigError("\n".join([summary, *map(str, problems)]))


def _order(problem: ConfigError) -> tuple[bool, int]:
    """By line; those without one first, those of the command line last."""
    where = problem.where or ""
    line = where.rpartition(":")[2]
    return where.startswith("command line: "), int(line) if line.isdecimal() else 0


def _problem(detail: ErrorDetails, document: YamlDocument | None) -> ConfigError:
    """One of pydantic's errors, as a user should hear it."""
    keys: Keys = detail["loc"]
    if detail["type"] == "missing" and isinstance(keys[-1], int):  # Of a list with a fixed number of entries.
        keys = keys[:-1]
        what, hint = f"too few entries: {_shown(detail['input'])}", _about(keys)
    else:
        what, hint = _in_words(detail, keys)
    name = ".".join(map(str, keys))
    if document is None:
        return ConfigError(what, where=name or None, hint=hint)
    place = document.place_of(keys)
    if detail["type"] == "value_error":  # Of a whole section: of the keys that it names, one that is set.
        words = re.findall(r"[a-z_]+(?:\.[a-z_]+)*", what)
        named = [(*keys, *word.split(".")) for word in words]
        overridden = [path for path in named if path in document.overrides]
        in_file = [path for path in named if path in document.lines]
        place = document.place_of([*overridden, *in_file, keys][0])
    if keys in document.overrides and hint == _QUOTE:  # The shell takes a pair of quotes for itself.
        key, _, text = document.overrides[keys].partition("=")
        hint = f"write '{key}=\"{text}\"'"
    return ConfigError(f"{name}: {what}" if name else what, where=place, hint=hint)


def _in_words(detail: ErrorDetails, keys: Keys) -> tuple[str, str | None]:
    """What is wrong with the value at `keys`, and what to do."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in _WANTED:
        return f"wants {_WANTED[kind]}, got {_shown(value)}", _type_hint(kind, value, keys)
    if kind in _BOUNDS:
        limit, words = _BOUNDS[kind]
        bound = f"{context[limit]:g}" if isinstance(context[limit], float) else context[limit]
        return f"must be {words} {bound}, got {_shown(value)}", _default(keys)
    match kind:
        case "missing":
            return "missing", _about(keys)
        case "extra_forbidden":
            return "unknown key", _unknown_hint(str(keys[-1]), keys[:-1])
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", context["expected"])
            close = difflib.get_close_matches(str(value).lower(), allowed, n=1)
            return (
                f"wants {_or(allowed)}, got {_shown(value)}",
                f"did you mean {close[0]}?" if close else None,
            )
        case "too_short" | "string_too_short":
            return "must not be empty", _about(keys)
        case "too_long":
            return f"too many entries: {_shown(value)}", _about(keys)
        case "value_error":
            return str(context["error"]), None
    return detail["msg"].lower(), None


def _shown(value: object) -> str:
    """A value in a message."""
    match value:
        case str():
            return f"the text {value[:60]!r}"
        case None:
            return "null"
        case bool() | int() | float():
            return str(value).lower()
        case list() | tuple():
            return f"a list of {len(value)}"
        case Mapping():
            return "keys and values"
    return f"a {type(value).__name__}"


def _type_hint(kind: str, value: object, keys: Keys) -> str | None:
    """How to write what was probably meant."""
    match kind, value:
        case "int_type", float() if value.is_integer():
            return f"write {int(value)}"
        case "int_type" | "float_type", str() if re.fullmatch(r"[-+0-9._' eE]+", value):
            number = parse_value(re.sub(r"[_' ]|\b0+(?=[0-9])", "", value))
            return f"write {number}" if isinstance(number, int | float) else None
        case "bool_type", str() | int() if str(value).lower() in ("yes", "on", "y", "1", "true"):
            return "write true"
        case "bool_type", str() | int() if str(value).lower() in ("no", "off", "n", "0", "false"):
            return "write false"
        case "string_type", bool() | int() | float():
            return _QUOTE
        case "tuple_type", Mapping():
            return "start an entry with a dash:  - key: value"
        case "tuple_type", str() | int() | float():
            return f"write [{{path: {value}}}]" if _section(keys) else f"write [{value}]"
        case "model_type", str():
            return f"write {{path: {value}}}" if isinstance(keys[-1], int) else "write  key: value"
    return None


def _field(keys: Keys) -> FieldInfo | None:
    """The field of a key, if there is such a key."""
    section = _section(keys[:-1])
    return section.model_fields.get(str(keys[-1])) if keys and section else None


def _section(keys: Keys) -> type[Section] | None:
    """The class of the section at a path of keys; None if there is something else, or nothing."""
    section: type[Section] | None = Config
    for key in keys:
        if isinstance(key, str):
            field = section.model_fields.get(key) if section else None
            section = _section_in(field.annotation) if field else None
    return section


def _section_in(annotation: object) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def _about(keys: Keys) -> str | None:
    """The description of a key."""
    field, section = _field(keys), _section(keys)
    text = (field and field.description) or (section and section.__doc__) or ""
    return text.rstrip(".") or None


def _default(keys: Keys) -> str | None:
    field = _field(keys)
    return (
        None
        if field is None or field.is_required()
        else f"the default is {format_value(default_value(field))}"
    )


def _unknown_hint(key: str, above: Keys) -> str:
    """What a user may have meant by a key that the section at `above` does not have."""
    section = _section(above) or Config
    if "." in key:
        return "write what follows the dot on the next line, indented"
    wanted = key.lower().replace("-", "_")
    wanted = _OTHER_NAMES.get(wanted, wanted)
    others = {place: other.model_fields for place, other in _sections() if other is not section}
    homes = [place for place, keys in others.items() if wanted in keys]
    close = difflib.get_close_matches(wanted, section.model_fields, n=1, cutoff=0.8 if homes else 0.6)
    hints = [f"did you mean {close[0]}?"] if close else []
    if homes:
        hints.append(f"{wanted} belongs {_or(homes)}")
    elif not close:
        far = [(key, place) for place, keys in others.items() for key in keys]
        close = difflib.get_close_matches(wanted, [key for key, _ in far], n=1, cutoff=0.7)
        hints = [f"did you mean {close[0]} {dict(far)[close[0]]}?"] if close else []
    return " ".join(hints) or "`mtkit config schema` lists the keys"


def _sections() -> Iterator[tuple[str, type[Section]]]:
    """Every section, after where its keys belong."""
    yield "at the top level", Config
    for name in Config.model_fields:
        if section := _section((name,)):
            yield f"in {name}", section
    yield "in an entry of data.train", SourceConfig


def _or(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
