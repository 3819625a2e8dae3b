"""What files of sentence pairs are, judged by their names and first rows: languages, columns, and the sets beside them.

`mtkit init` writes an entry of `data.train` for each; nothing here is guessed again when a config is read.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from mtkit.data.readers import TRANSLATION
from mtkit.errors import ConfigError, DataError
from mtkit.files import read_lines, strip_compression

Languages = tuple[str, str]
Entry = dict[str, object]
"""An entry of `data.train`, as it stands in the YAML."""

_CODE = re.compile(r"[a-z]{2,3}(?:[-_](?:[A-Z][a-z]{3}|[A-Z]{2}))*")
"""A language code: de, deu, pt-BR, zho_Hans."""
_NO_CODES = frozenset(
    (
        "src",
        "tgt",
        "trg",
        "ref",
        "hyp",
        "out",
        "raw",
        "tok",
        "bpe",
        "txt",
        "csv",
        "tsv",
        "dev",
        "val",
        "all",
        "new",
        "old",
    )
)
"""What looks like a code at the end of a file's name, and is none."""
TABLES = (".tsv", ".csv", ".jsonl", ".parquet")
VALID_NAME = re.compile(r"(?:valid|val|dev)(?!test)(?![a-z])|validation")
TEST_NAME = re.compile(r"(?!train|valid|val[^a-z]).*test")
_SIDES = (("source", "target"), ("src", "tgt"), ("source", "translation"), ("src", "trg"))
"""Names of columns that say which is which, but not the languages."""

_HINT = "name the languages with `src` and `tgt`, e.g. en and de"


@dataclass(frozen=True)
class Recognized:
    """What a set of files is.

    Attributes:
        languages: the codes of source and target.
        entries: for the config.
    """

    languages: Languages
    entries: list[Entry]


def recognize(paths: Sequence[str], wanted: tuple[str | None, str | None]) -> Recognized:
    """The entries of a config for these files: tables, and text files that belong together two by two.

    Args:
        paths: as the user names them; of two parallel files the source first, unless `wanted` says which is which.
        wanted: the languages, as far as they are given.

    Raises:
        ConfigError: a file without its other side, languages or columns that cannot be told.
        DataError: a file cannot be read.
    """
    for path in paths:
        if os.path.isdir(path):
            raise ConfigError("a folder, not a file", where=path, hint="name the files in it")
        if _suffix_of(path) != ".parquet":
            next(read_lines(path), None)
    texts = [path for path in paths if _suffix_of(path) not in TABLES]
    tables = [path for path in paths if _suffix_of(path) in TABLES]
    entries: list[Entry] = []
    languages: Languages | None = None if None in wanted else (str(wanted[0]), str(wanted[1]))
    for src, tgt in _in_pairs(texts):
        found = _recognize_parallel(src, tgt, wanted)
        languages = _agreed(languages, found.languages, src)
        entries += found.entries
    for path in tables:
        found = _recognize_table(path, languages)
        languages = _agreed(languages, found.languages, path)
        entries += found.entries
    assert languages is not None, "there is at least one file"
    if languages[0] == languages[1]:
        raise ConfigError(f"both sides are {languages[0]!r}", where=paths[0], hint=_HINT)
    return Recognized(languages, entries)


def _agreed(known: Languages | None, found: Languages, path: str) -> Languages:
    """The languages of all files. Raises: ConfigError: those of one are others."""
    if known is not None and known != found:
        what = f"{' and '.join(found)}, but the languages are {' and '.join(known)}"
        raise ConfigError(what, where=path, hint="one config is for one pair of languages")
    return found


# --- text files -------------------------------------------------------------------------------------------------------


def _suffix_of(path: str | Path) -> str:
    """The last suffix but that of a compression, in small letters."""
    return strip_compression(path).suffix.lower()


def _parts_of(path: str | Path) -> tuple[str, str]:
    """The name of a text file without what tells its side, and that: (train., en) of train.en.gz or train.en.txt.

    What tells its side is a language, or else the last suffix: src of train.src.
    """
    name = strip_compression(path).name
    bare = name.removesuffix(".txt")
    found = re.search(rf"(?:^|[._-])({_CODE.pattern})$", bare)
    if found is not None:
        return bare[: found.start(1)], found[1]
    return Path(name).stem, Path(name).suffix.removeprefix(".")


def _language_of(path: str) -> str | None:
    """The language that the name of a text file tells."""
    side = _parts_of(path)[1]
    return side if _is_code(side) else None


def _in_pairs(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Text files two by two: those whose names differ in nothing but the language, or else the only two there are.

    Raises:
        ConfigError: a file is left alone.
    """
    if len(paths) == 2:
        yield paths[0], paths[1]
        return
    by_name: dict[tuple[Path, str], list[str]] = {}
    for path in paths:
        by_name.setdefault((Path(path).parent, _parts_of(path)[0]), []).append(path)
    for group in by_name.values():
        if len(group) != 2:
            hint = "two parallel files are called alike but for the language: train.en train.de"
            raise ConfigError(f"{len(group)} files for two sides", where=", ".join(group), hint=hint)
        yield group[0], group[1]


def _recognize_parallel(src: str, tgt: str, wanted: tuple[str | None, str | None]) -> Recognized:
    """Two parallel files, source first. Raises: ConfigError: their languages cannot be told."""
    named = _language_of(src), _language_of(tgt)
    if None not in named and (wanted[0] == named[1] or wanted[1] == named[0]):
        src, tgt, named = tgt, src, (named[1], named[0])
    codes = (wanted[0] or named[0], wanted[1] or named[1])
    if codes[0] is None or codes[1] is None:
        unknown = src if codes[0] is None else tgt
        raise ConfigError("its name does not tell its language", where=unknown, hint=_HINT)
    return Recognized((codes[0], codes[1]), [{"src": src, "tgt": tgt}])


# --- tables -----------------------------------------------------------------------------------------------------------


def _recognize_table(path: str, languages: Languages | None) -> Recognized:
    """A file of pairs, with its columns where they are not called like the languages.

    Raises:
        ConfigError: languages or columns that cannot be told.
        DataError: it cannot be read.
    """
    readers: dict[str, Callable[[str], Iterable[str] | Mapping[str, Iterable[str]]]] = {
        ".tsv": _tsv_header, ".csv": _csv_header, ".jsonl": _jsonl_keys, ".parquet": _parquet_columns,
    }  # fmt: skip
    columns = readers[_suffix_of(path)](path)
    names = list(columns)
    if isinstance(columns, Mapping) and TRANSLATION in columns:
        return Recognized(languages or _two_codes(columns[TRANSLATION], path), [{"path": path}])
    known = languages or _language_pair(path)
    if not names:  # a TSV without a header
        if known is None:
            raise ConfigError("its name does not tell its languages", where=path, hint=_HINT)
        return Recognized(known, [{"path": path}])
    codes = [name for name in names if _is_code(name)]
    if len(codes) > 2:
        codes = [code for code in codes if code != "id"]  # a number more often than Indonesian
    if known is not None and set(known) <= set(names):
        chosen: Languages = known
    elif len(codes) == 2:
        chosen = codes[0], codes[1]
    else:
        there = [pair for pair in _SIDES if set(pair) <= set(names)]
        if not there and len(names) != 2:
            hint = "call two of them like the languages, such as en and de"
            raise ConfigError(
                f"which columns are the sides? There are {', '.join(names)}", where=path, hint=hint
            )
        chosen = there[0] if there else (names[0], names[1])
    if known is None and len(codes) != 2:
        raise ConfigError("its columns do not tell its languages", where=path, hint=_HINT)
    languages = known or chosen
    named = _suffix_of(path) == ".tsv" or chosen != languages
    return Recognized(languages, [{"path": path} | ({"columns": list(chosen)} if named else {})])


def _is_code(text: str) -> bool:
    """Whether a text reads like a language code."""
    return _CODE.fullmatch(text) is not None and text not in _NO_CODES


def _two_codes(names: Iterable[str], path: str) -> Languages:
    """The two languages of a `translation` column. Raises: ConfigError: it has not two."""
    codes = list(names)
    if len(codes) != 2:
        raise ConfigError(f"which two languages? There are {', '.join(codes)}", where=path, hint=_HINT)
    return codes[0], codes[1]


def _language_pair(path: str) -> Languages | None:
    """The last two codes side by side in the name of a file, or of its folder: en and de of tatoeba-en-de.tsv."""
    for name in (strip_compression(path).stem, Path(path).absolute().parent.name):
        words = re.split("[._-]", name)
        for first, second in reversed(list(pairwise(words))):
            if _is_code(first) and _is_code(second):
                return first, second
    return None


def _tsv_header(path: str) -> list[str]:
    """The header of a TSV, if its first line reads like one."""
    cells = next(read_lines(path), "").split("\t")
    if len(cells) < 2:
        raise DataError(
            "no tab in its first line", where=f"{path}:1", hint="a tab stands between source and target"
        )
    sides = tuple(cell.lower() for cell in cells[:2])
    return cells if sides in _SIDES or all(map(_is_code, cells[:2])) else []


def _csv_header(path: str) -> list[str]:
    """The header of a CSV."""
    return next(csv.reader(line + "\n" for line in read_lines(path)), [])


def _jsonl_keys(path: str) -> dict[str, list[str]]:
    """The keys of the first object, those of texts and of `translation`, with the keys below."""
    first = next((line for line in read_lines(path) if line.strip()), "{}")
    try:
        row = json.loads(first)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        hint = 'one JSON object a line, such as {"en": "Hello", "de": "Hallo"}'
        raise DataError("its first line is no JSON object", where=f"{path}:1", hint=hint)
    return {
        key: list(value) if isinstance(value, dict) else []
        for key, value in row.items()
        if isinstance(value, str) or (key == TRANSLATION and isinstance(value, dict))
    }


def _parquet_columns(path: str) -> dict[str, list[str]]:
    """The columns of texts, and `translation`, with the fields below."""
    import pyarrow
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
    except (OSError, pyarrow.ArrowException) as error:
        message = " ".join(str(error).split())
        raise DataError(f"cannot be read: {message}", where=path, hint="name a Parquet file") from error
    texts = (pyarrow.string(), pyarrow.large_string())
    return {
        field.name: [below.name for below in field.type] if pyarrow.types.is_struct(field.type) else []
        for field in schema
        if field.type in texts or (field.name == TRANSLATION and pyarrow.types.is_struct(field.type))
    }


# --- what stands beside -----------------------------------------------------------------------------------------------


def find_split_files(entry: Entry, kind: re.Pattern[str], taken: Sequence[str]) -> list[str]:
    """Files beside those of an entry that are called like a validation or test set, both sides of each.

    Args:
        entry: of the training pairs.
        kind: `VALID_NAME` or `TEST_NAME`, how the names begin.
        taken: files that are something else.
    """
    folder = Path(str(entry.get("path", entry.get("src")))).parent
    other = {os.path.abspath(name) for name in taken}
    names = sorted(name for name in os.listdir(folder) if kind.match(name.lower()))
    found = [folder / name for name in names if os.path.abspath(folder / name) not in other]
    if "path" in entry:
        return [str(file) for file in found if _suffix_of(file) == _suffix_of(str(entry["path"]))]
    src, tgt = (_parts_of(str(entry[side]))[1] for side in ("src", "tgt"))
    sides = {
        _parts_of(file): str(file) for file in found if file.is_file() and _suffix_of(file) not in TABLES
    }
    both = [name for name, side in sides if side == src and (name, tgt) in sides]
    return [sides[name, side] for name in both for side in (src, tgt)]
