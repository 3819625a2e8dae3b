"""Loading and dumping configs: YAML, overrides or a dict to a `Config` and back.

Errors are reported together, each in one line with its place: first those of single values and of sections, and keys
that have no effect once there are no others.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, cast, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mtkit.config.presets import PRESETS, PresetName, preset_values, values_until_measured
from mtkit.config.rules import ineffective_keys, ineffective_settings
from mtkit.config.sections import Config, Section, SourceConfig, default_value, describe_keys
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

_EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a mapping",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_QUOTE = "put it in quotes"
# Names in other toolkits that are too different from ours for the spelling hint to find.
_OTHER_NAMES = {
    "lr": "learning_rate",
    "hidden_size": "d_model",
    "embed_dim": "d_model",
    "ff_size": "d_ff",
    "ffn_dim": "d_ff",
    "update_freq": "accumulate",
}


AUTO: Final = "auto"
"""The preset that is chosen for the corpus and the machine: see `mtkit.training.preset`."""
_PRESET_SECTIONS = ("augment", "tokenizer", "model", "training", "validation", "decoding")
"""Sections that a preset fills in."""
_SECTIONS_WITHOUT_AUTO = {"init", "tokenizer", "model", "training"}
"""Keys without which a file has preset auto by default."""

CHANGED_DEFAULTS: dict[str, object] = {
    "tokenizer.character_coverage": 1.0,
    "tokenizer.normalization": "nmt_nfkc",
    "training.learning_rate": 0.001,
    "validation.best": "bleu",
}
"""Defaults of mtkit 0.1.0 that have changed since. A run that started with one keeps it, unless the config sets the
key."""

_NO_CORPUS = {"path": "none.tsv"}
"""Stands for the corpora that a user's config must have."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config from YAML ("-" is stdin) and dotted `key=value` overrides.

    A file without tokenizer, model, training and init has preset auto by default; overrides do not change that. The
    values of auto stand for those that `mtkit.training.preset` chooses once the corpus has been counted.

    Raises:
        ConfigError: If the file or an override is invalid; it names file:line or the override. For several errors,
            `what` is a line with their number and then a line for each.
    """
    file = load_yaml(path)
    document = apply_overrides(file, overrides)
    data = document.data
    if "preset" not in data and not file.data.keys() & _SECTIONS_WITHOUT_AUTO:
        data = {"preset": AUTO, **data}
    config = _validate_with_preset(data, document)
    overridden = _overridden(config, document)
    if overridden:
        data = {
            name: {key: value for key, value in section.items() if f"{name}.{key}" not in overridden}
            if isinstance(section, Mapping)
            else section
            for name, section in data.items()
        }
        config = _validate_with_preset(data, document)
    return _check_effective(config, document)


def load_stored_config(path: Path, ignore_unknown: Collection[str] = ()) -> Config:
    """Read the config that some version of mtkit stored with weights.

    The weights were trained with it, so it is valid by definition: a key newer than that version gets its default,
    which is the behavior before it, and newer rules about several keys do not apply, nor do those of `config.rules`.
    Only `decoding.avoid_loops` changes what older models do, unless they are imported.

    Args:
        path: The file.
        ignore_unknown: Sections in which keys unknown to this version are ignored.

    Raises:
        ConfigError: If another key, or a value, is unknown to this version.
    """
    document = load_yaml(path)
    data = {name: _drop_unknown(name, value, ignore_unknown) for name, value in document.data.items()}
    corpora = data.get("data")
    if isinstance(corpora, dict) and corpora.get("train") == []:  # of an imported model
        decoding = {"avoid_loops": False, **cast(dict[str, object], data.get("decoding") or {})}
        changes = {"data": corpora | {"train": [_NO_CORPUS]}, "decoding": decoding}
        config = _validate(data | changes, document)
        return without_training_data(config)
    try:
        return _validate(data, document)
    except ConfigError:
        with suppress(ValidationError, LookupError, TypeError):
            return _validate_keys_alone(Config, data)
        raise


def without_training_data(config: Config) -> Config:
    """Return the config of a model that was not trained here."""
    return config.model_copy(update={"data": config.data.model_copy(update={"train": ()})})


def _drop_unknown(name: str, value: object, ignore_unknown: Collection[str]) -> object:
    """Return the value of a section, without its unknown keys if they are to be ignored."""
    section = _section((name,))
    if name not in ignore_unknown or section is None or not isinstance(value, dict):
        return value
    return {key: below for key, below in value.items() if key in section.model_fields}


def _validate_keys_alone(section: type[SomeSection], values: Mapping[str, Any]) -> SomeSection:
    """Build a section after checking each value against its own key, but no rules about several keys.

    Raises:
        KeyError: If a key is unknown or missing.
        TypeError: If the value of a section is not a mapping.
        ValueError: If a value is invalid for its key (pydantic.ValidationError).
    """
    read: dict[str, Any] = {name: values[name] for name, f in section.model_fields.items() if f.is_required()}
    for name, value in values.items():
        field = section.model_fields[name]
        below = _section_in(field.annotation)
        if below is not None and isinstance(value, list):
            read[name] = tuple(_validate_keys_alone(below, entry) for entry in value)
        elif below is not None and value is not None:
            read[name] = _validate_keys_alone(below, dict(value))
        else:
            bounds = field.metadata
            expected: Any = Annotated[(field.annotation, *bounds)] if bounds else field.annotation
            read[name] = TypeAdapter(expected, config=section.model_config).validate_python(value)
    return section.model_construct(**read)


def replace_sections(config: Config, sections: Mapping[str, Section]) -> Config:
    """Return a config with other sections, after checking the rules about keys of several sections.

    Raises:
        ConfigError: If the sections do not go together.
    """
    try:
        return Config.model_validate(dict(config) | dict(sections))
    except ValidationError as error:
        raise _as_config_error(error.errors(include_url=False), None) from None


def parse_config(data: Mapping[str, object]) -> Config:
    """Build a config from a dict laid out like the YAML.

    Raises:
        ConfigError: If it is invalid; as in `load_config`, but with keys for places.
    """
    return _check_effective(_validate_with_preset(data, None), None)


def set_keys(config: Config) -> dict[str, object]:
    """Return the values that were set and are not those of a preset or a default, by dotted name."""
    found: dict[str, object] = {"init": config.init}
    for name in _PRESET_SECTIONS:
        section = getattr(config, name)
        found |= {f"{name}.{key}": getattr(section, key) for key in sorted(section.model_fields_set)}
    return found


def all_values(config: Config) -> dict[str, object]:
    """Return the values of the sections that a preset fills in, by dotted name."""
    sections = ((name, getattr(config, name)) for name in _PRESET_SECTIONS)
    return {f"{name}.{key}": value for name, section in sections for key, value in section}


def with_values(config: Config, preset: str | None, values: Mapping[str, object]) -> Config:
    """Return a config with these values for the keys that were not set; these still count as not set.

    Args:
        config: The config.
        preset: Value of the key `preset`.
        values: Values by dotted name. Those that have no effect are left out, and those of keys that were set.

    Raises:
        ConfigError: If they do not go together with keys that were set.
    """
    data = config_to_dict(config, only_set=True) | {"preset": preset}
    if config.training.ends_with_time:
        data["training"].pop("max_steps", None)  # null is not a number of updates either
    return _fill_in(data, values, None)


def _validate_with_preset(data: Mapping[str, object], document: YamlDocument | None) -> Config:
    """Validate values, with those of their preset for the keys that are not set."""
    preset = data.get("preset")
    if not isinstance(preset, str) or preset not in (AUTO, *PRESETS):
        return _validate(data, document)
    chosen: dict[str, object] = {"init": data.get("init")}
    for name in _PRESET_SECTIONS:
        section = data.get(name)
        if isinstance(section, Mapping):
            chosen |= {f"{name}.{key}": value for key, value in section.items()}
    values = (
        values_until_measured(chosen) if preset == AUTO else preset_values(cast(PresetName, preset), chosen)
    )
    return _fill_in(data, values, document)


def _fill_in(
    data: Mapping[str, object], values: Mapping[str, object], document: YamlDocument | None
) -> Config:
    """Validate values with others for the keys that are not set, as `with_values` describes."""
    merged = dict(data)
    names: dict[str, set[str]] = {}
    for name in _PRESET_SECTIONS:
        section = {} if data.get(name) is None else data[name]
        if isinstance(section, Mapping):
            names[name] = set(section)
            others = {key: value for key, value in values.items() if key.partition(".")[0] == name}
            merged[name] = {key.partition(".")[2]: value for key, value in others.items()} | dict(section)
    config = _validate(merged, document)
    idle = {key for key in ineffective_keys(config) if key in values and not _is_in(key, names)}
    if idle:  # such as the size of a vocabulary with a given tokenizer: only its default is no error
        return _fill_in(data, {key: value for key, value in values.items() if key not in idle}, document)
    sections = {}
    for name, chosen in names.items():
        section = getattr(config, name)
        sections[name] = type(section).model_construct(_fields_set=chosen, **dict(section))
    return config.model_copy(update=sections)


def _is_in(key: str, names: Mapping[str, Collection[str]]) -> bool:
    """Return whether a dotted name is among the names of its section."""
    section, _, name = key.partition(".")
    return name in names.get(section, ())


def dump_config(config: Config) -> str:
    """Return the config as YAML that loads back equal: see `config_to_dict`."""
    return dump_yaml(config_to_dict(config))


def config_schema() -> dict[str, object]:
    """Return a JSON Schema of the YAML, with description and default of every key, for editors."""
    describe_keys()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def config_keys() -> dict[str, FieldInfo]:
    """Return the field of every key that an override may name, by dotted name such as `training.max_steps`."""
    found = {}
    for name, field in Config.model_fields.items():
        section = _section((name,))
        if section is None:
            found[name] = field
        else:
            found |= {f"{name}.{key}": below for key, below in section.model_fields.items()}
    return found


def suggested_values(name: str) -> list[str]:
    """Return values for a key as the YAML spells them: its literals and its default; empty for an unknown key."""
    field = config_keys().get(name)
    if field is None:
        return []
    literals = ["true", "false"] if field.annotation is bool else list(_literals(field.annotation))
    default = default_value(field)
    defaults = [] if default is None or field.is_required() else [format_value(default)]
    return list(dict.fromkeys([*literals, *defaults]))


def _literals(annotation: object) -> Iterator[str]:
    """Yield the literals in a type, except those of list entries."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) is not tuple:
        for part in get_args(annotation):
            yield from _literals(part)


def diff_configs(old: Config, new: Config) -> dict[str, str]:
    """Return the differences by key, as lines like `training.learning_rate: 0.001 -> 0.002`."""
    return dict(_differences("", config_to_dict(old), config_to_dict(new)))


def flatten_config(config: Config) -> dict[str, object]:
    """Return every value by its dotted name, such as `training.max_steps`; a corpus is one value, of the keys set."""
    return dict(_flatten("", config_to_dict(config)))


def _flatten(name: str, value: Any) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _flatten(f"{name}.{key}" if name else key, below)
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        yield from ((f"{name}.{number}", entry) for number, entry in enumerate(value))
    else:
        yield name, value


def config_to_dict(config: Config, *, only_set: bool = False) -> dict[str, Any]:
    """Return all values as `parse_config` takes them; of a corpus, whose keys exclude each other, those set.

    With preset auto, whose values are still to be chosen, the sections that it fills in have the keys that are set.

    Args:
        config: The config.
        only_set: Whether these sections have only such keys with any preset.
    """
    values = config.model_dump()
    if only_set or config.preset == AUTO:
        for name in _PRESET_SECTIONS:
            values[name] = getattr(config, name).model_dump(exclude_unset=True)
    for split in ("train", "valid", "test"):
        entries = values["data"][split]
        values["data"][split] = [
            {key: entry[key] for key in entry if entry[key] is not None} for entry in entries
        ]
    return values


def _differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            yield from _differences(f"{name}.{key}" if name else key, old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(f"{name}.{index}", before, after)
    elif old != new:
        yield name, f"{name}: {format_value(old)} -> {format_value(new)}"


def _validate(data: Mapping[str, object], document: YamlDocument | None) -> Config:
    # "training:" with nothing below it, or only comments, is null in YAML and means a section of defaults.
    filled = {key: {} if value is None and _section((key,)) else value for key, value in data.items()}
    try:
        return Config.model_validate(filled)
    except ValidationError as error:
        raise _as_config_error(error.errors(include_url=False), document) from None


def override_section(section: SomeSection, name: str, changes: Mapping[str, object]) -> SomeSection:
    """Return a copy of a section with other values for some of its keys.

    Args:
        section: The section.
        name: Its name in the config, for errors.
        changes: The new values by key.

    Raises:
        ConfigError: If the result is invalid, as in `parse_config`.
    """
    try:
        return type(section).model_validate({**section.model_dump(), **changes})
    except ValidationError as error:
        details = error.errors(include_url=False)
        for detail in details:
            detail["loc"] = (name, *detail["loc"])
        raise _as_config_error(details, None) from None


def _as_config_error(details: Sequence[ErrorDetails], document: YamlDocument | None) -> ConfigError:
    """Translate pydantic's errors into one of ours."""
    # Drop consequences of other errors: pydantic also calls a list empty if its only entry is invalid, and reports
    # keys whose default depends on an invalid key.
    places = {detail["loc"] for detail in details}
    inside = {place[:length] for place in places for length in range(len(place))}
    details = [
        detail
        for detail in details
        if not (detail["type"] == "too_short" and detail["loc"] in inside)
        and detail["type"] != "default_factory_not_called"
    ]
    return _merge([_translate_error(detail, document) for detail in details], document)


def _overridden(config: Config, document: YamlDocument) -> set[str]:
    """Return the keys of the file that have no effect because of an override, for which the file is not at fault."""
    overrides = {".".join(map(str, keys)) for keys in document.overrides}

    def is_overridden(key: str) -> bool:
        """Return whether an override names the key, or a section that it is in."""
        return any(f"{key}.".startswith(f"{name}.") for name in overrides)

    found = ineffective_settings(config)
    return {idle.key for idle in found if is_overridden(idle.other) and not is_overridden(idle.key)}


def _check_effective(config: Config, document: YamlDocument | None) -> Config:
    """Return the config if all keys that were set have an effect.

    Raises:
        ConfigError: If a key was set that has no effect.
    """
    errors = []
    for found in ineffective_settings(config):
        if document is None:
            errors.append(ConfigError(found.what, where=found.key, hint=found.hint))
        else:
            what, place = f"{found.key}: {found.what}", document.place_of(tuple(found.key.split(".")))
            errors.append(ConfigError(what, where=place, hint=found.hint))
    if errors:
        raise _merge(errors, document)
    return config


def _merge(errors: Sequence[ConfigError], document: YamlDocument | None) -> ConfigError:
    """Merge errors into one, sorted by line and without duplicates."""
    unique = sorted({str(error): error for error in errors}.values(), key=_sort_key)
    if len(unique) == 1:
        return unique[0]
    summary = f"{len(unique)} problems in {document.path if document else 'the config'}"
    return ConfigError("\n".join([summary, *map(str, unique)]))


def _sort_key(error: ConfigError) -> tuple[bool, int]:
    """Return a key that sorts by line, errors without one first and those of the command line last."""
    where = error.where or ""
    line = where.rpartition(":")[2]
    return where.startswith("command line: "), int(line) if line.isdecimal() else 0


def _translate_error(detail: ErrorDetails, document: YamlDocument | None) -> ConfigError:
    """Translate one of pydantic's errors into one of ours."""
    keys: Keys = detail["loc"]
    if detail["type"] == "missing" and isinstance(keys[-1], int):  # an entry of a list of fixed length
        keys = keys[:-1]
        what, hint = f"too few entries, got {len(detail['input'])}", _description(keys)
    else:
        what, hint = _what_and_hint(detail, keys)
    name = ".".join(map(str, keys))
    if document is None:
        return ConfigError(what, where=name or None, hint=hint)
    place = document.place_of(keys)
    if detail["type"] == "value_error":  # about a section: place it at a key that the message names
        words = re.findall(r"[a-z_]+(?:\.[a-z_]+)*", what)
        named = [(*keys, *word.split(".")) for word in words]
        overridden = [path for path in named if path in document.overrides]
        in_file = [path for path in named if path in document.lines]
        place = document.place_of([*overridden, *in_file, keys][0])
    if keys in document.overrides and hint == _QUOTE:  # the shell strips one pair of quotes
        key, _, text = document.overrides[keys].partition("=")
        hint = f"write '{key}=\"{text}\"'"
    return ConfigError(f"{name}: {what}" if name else what, where=place, hint=hint)


def _what_and_hint(detail: ErrorDetails, keys: Keys) -> tuple[str, str | None]:
    """Return the message and the hint for an invalid value at `keys`."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {_show(value)}", _type_hint(kind, value, keys)
    if kind in _BOUNDS:
        limit, words = _BOUNDS[kind]
        bound = f"{context[limit]:g}" if isinstance(context[limit], float) else context[limit]
        return f"must be {words} {bound}, got {_show(value)}", _default_hint(keys)
    match kind:
        case "missing":
            return "missing", _description(keys)
        case "extra_forbidden":
            return "unknown key", _unknown_hint(str(keys[-1]), keys[:-1])
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", context["expected"])
            close = difflib.get_close_matches(str(value).lower(), allowed, n=1)
            return (
                f"expected {_or(allowed)}, got {_show(value)}",
                f"did you mean {close[0]}?" if close else None,
            )
        case "too_short" | "string_too_short":
            return "must not be empty", _description(keys)
        case "too_long":
            return f"too many entries, got {context['actual_length']}", _description(keys)
        case "value_error":
            return str(context["error"]), None
    return detail["msg"].lower(), None


def _show(value: object) -> str:
    """Return a value as messages show it."""
    match value:
        case str():
            return repr(value[:60])
        case None:
            return "null"
        case bool() | int() | float():
            return str(value).lower()
        case list() | tuple():
            return f"a list of length {len(value)}"
        case Mapping():
            return "a mapping"
    return f"a {type(value).__name__}"


def _type_hint(kind: str, value: object, keys: Keys) -> str | None:
    """Return how to write what the user probably meant."""
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
    """Return the field of a key, or None if there is no such key."""
    section = _section(keys[:-1])
    return section.model_fields.get(str(keys[-1])) if keys and section else None


def _section(keys: Keys) -> type[Section] | None:
    """Return the class of the section at a path of keys, or None if there is no section."""
    section: type[Section] | None = Config
    for key in keys:
        if isinstance(key, str):
            field = section.model_fields.get(key) if section else None
            section = _section_in(field.annotation) if field else None
    return section


def _section_in(annotation: object) -> type[Section] | None:
    """Return the section class in a type such as `tuple[SourceConfig, ...]`, if any."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def _description(keys: Keys) -> str | None:
    """Return the description of a key or section, on one line."""
    describe_keys()
    field, section = _field(keys), _section(keys)
    text = (field and field.description) or (section and section.__doc__) or ""
    return " ".join(text.split()).rstrip(".") or None


def _default_hint(keys: Keys) -> str | None:
    """Return a hint that names the default of an optional key."""
    field = _field(keys)
    return (
        None
        if field is None or field.is_required()
        else f"the default is {format_value(default_value(field))}"
    )


def _unknown_hint(key: str, above: Keys) -> str:
    """Return a hint for a key that the section at `above` does not have."""
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
    return " ".join(hints) or "`mtkit config schema` lists all keys"


def _sections() -> Iterator[tuple[str, type[Section]]]:
    """Yield every section, preceded by where its keys belong."""
    yield "at the top level", Config
    for name in Config.model_fields:
        if section := _section((name,)):
            yield f"in {name}", section
    yield "in an entry of data.train", SourceConfig


def _or(words: Sequence[str]) -> str:
    """Join words like `a, b or c`."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
