"""Recognition of files of sentence pairs by their names and first rows: languages, columns, other splits nearby.

In: file names. Out: entries of `data.train`, which `mtkit init` writes. Nothing is guessed again when a config is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

from mtkit.data.documents import read_sheet_header, read_units, unread_sheets_note
from mtkit.data.readers import TRANSLATION, csv_rows
from mtkit.errors import ConfigError, DataError
from mtkit.files import read_lines, strip_compression
from mtkit.languages import short_code

Languages = tuple[str, str]
Wanted = tuple[str | None, str | None]
"""Languages of source and target, as far as the user has named them."""
Entry = dict[str, object]
"""An entry of `data.train`, as in the YAML."""

_LOWER_REGIONS = "(?:zh[-_](?:cn|hk|tw|hans|hant)|pt_(?:br|pt)|fr_ca|es_(?:es|mx)|en_(?:gb|us))"
"""Codes with a region or script in lower case, as names of OPUS's files have them."""
_CODE = re.compile(rf"{_LOWER_REGIONS}|[a-z]{{2,3}}(?:[-_](?:[A-Z][a-z]{{3}}|[A-Z]{{2}}))*")
"""A language code: de, deu, pt-BR, pt_br, zho_Hans."""
_SIDE = re.compile(
    rf"(?:^|[._-])({_CODE.pattern}|pt-(?:br|pt)|fr-ca|es-(?:es|mx)|en-(?:gb|us)|(?<=[._])[a-z]{{2}}-[a-z]{{2}})$"
)
"""The side at the end of a text file's name: a code, also one with a hyphen before its region in lower case. Of
another pair of letters, such as de-at, nobody knows whether it is a region or two languages; but it is one side."""
_NAME_PART = re.compile(rf"(?:{_CODE.pattern})(?![^._-])|[^._-]+")
"""A language code in the name of a file, with its script or region, or any other word."""
_NOT_CODES = frozenset(
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
        "set",
    )
)
"""Endings of file names that look like language codes but are not."""
_ALSO_WORDS = frozenset(("my", "mt", "to"))
"""Codes of Burmese, Maltese and Tongan that names of files also have as words: my-mt, en-to-fr."""
_DOCUMENTS = (".tmx", ".xlf", ".xliff")
TABLES = (".tsv", ".csv", ".jsonl", ".parquet", ".xlsx", *_DOCUMENTS)
_VALID_NAME = re.compile(r"(?:valid|val|dev)(?!test)(?![a-z])|validation")
_TEST_NAME = re.compile(r"(?!train|valid|val[^a-z])(?!.*(?:latest|greatest|contest|protest|testament)).*test")
"""Names with `test` in them, such as newstest2014 and devtest, but not with words in which it means nothing."""
_SIDES = (("source", "target"), ("src", "tgt"), ("source", "translation"), ("src", "trg"))
"""Names of columns that tell source from target without naming the languages."""

_NUM_UNITS = 1000
"""Units of a translation memory that are read to find its languages."""

_HINT = "name the languages with `src` and `tgt`, e.g. en and de"


@dataclass(frozen=True)
class Recognized:
    """Languages and config entries of a set of files.

    Attributes:
        languages: language codes of source and target.
        entries: the entries for the config.
        notes: what the user should look at: columns that were guessed, and sheets that are not read.
    """

    languages: Languages
    entries: list[Entry]
    notes: tuple[str, ...] = ()


def recognize(paths: Sequence[str], wanted: Wanted, columns: tuple[str, str] | None = None) -> Recognized:
    """Return the config entries for these files: tables, and pairs of parallel text files.

    Args:
        paths: the files; of two parallel ones the source first, unless `wanted` tells which is which.
        wanted: the languages of source and target, as far as they are given.
        columns: the columns of the tables for source and target; by default they are recognized.

    Raises:
        ConfigError: If a text file has no other side, or languages or columns cannot be determined.
        DataError: If a file cannot be read.
    """
    for path in paths:
        if os.path.isdir(path):
            raise ConfigError("a folder, not a file", where=path, hint="name the files in it")
        if os.path.exists(path) and not os.path.isfile(path):  # such as <(zcat x.gz)
            raise ConfigError("a pipe, which cannot be read again", where=path, hint="write it to a file")
        if _suffix_of(path) not in (".parquet", ".xlsx", *_DOCUMENTS):
            next(read_lines(path), None)
    texts = [path for path in paths if _suffix_of(path) not in TABLES]
    tables = [path for path in paths if _suffix_of(path) in TABLES]
    entries: list[Entry] = []
    notes: tuple[str, ...] = ()
    languages: Languages | None = None if None in wanted else (str(wanted[0]), str(wanted[1]))
    for src, tgt in _pair_up(texts):
        found = _recognize_parallel(src, tgt, wanted)
        languages = _check_languages(found.languages, languages, src)
        entries += found.entries
    for path in tables:
        found = _recognize_table(path, languages or wanted, columns)
        languages = _check_languages(found.languages, languages, path)
        entries += found.entries
        notes += (*found.notes, *filter(None, [unread_sheets_note(Path(path))]))
    assert languages is not None, "there is at least one file"
    if languages[0] == languages[1]:
        raise ConfigError(f"source and target are both {languages[0]!r}", where=paths[0], hint=_HINT)
    return Recognized(languages, entries, notes)


def _check_languages(found: Languages, known: Languages | None, path: str) -> Languages:
    """Check that the languages found in a file are those known before, and return them.

    Raises:
        ConfigError: If they are different.
    """
    if known is not None and known != found:
        what = f"the languages are {' and '.join(found)}, not {' and '.join(known)}"
        raise ConfigError(what, where=path, hint="a config has one pair of languages")
    return found


# --- text files -------------------------------------------------------------------------------------------------------


def _suffix_of(path: str | Path) -> str:
    """Return the last suffix that is not a compression's, in lower case."""
    return strip_compression(path).suffix.lower()


def _split_side(path: str | Path) -> tuple[str, str]:
    """Split the name of a text file into stem and side: (train., en) for train.en.gz and train.en.txt.

    The side is a language code, or two as in train.de-at, or else the last suffix: src for train.src.
    """
    name = strip_compression(path).name
    bare = name.removesuffix(".txt")
    found = _SIDE.search(bare)
    if found is not None:
        return bare[: found.start(1)], found[1]
    return Path(name).stem, Path(name).suffix.removeprefix(".")


def _language_of(path: str) -> str | None:
    """Return the language in the name of a text file, or None."""
    side = _split_side(path)[1]
    # fr-ca is fr_ca here, for the name of a text file has one language; de_at is no code, de-at therefore unknown.
    return side if _is_code(side) or _is_code(side.replace("-", "_")) else None


def _pair_up(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of parallel text files: those whose names differ only in the side, or the only two given.

    Raises:
        ConfigError: If a file has no counterpart.
    """
    if len(paths) == 2:
        yield paths[0], paths[1]
        return
    by_name: dict[tuple[Path, str], list[str]] = {}
    for path in paths:
        by_name.setdefault((Path(path).parent, _split_side(path)[0]), []).append(path)
    for group in by_name.values():
        if len(group) != 2:
            hint = "names of parallel files differ only in the language: train.en train.de"
            raise ConfigError(
                f"expected two parallel files, got {len(group)}", where=", ".join(group), hint=hint
            )
        yield group[0], group[1]


def _recognize_parallel(src: str, tgt: str, wanted: Wanted) -> Recognized:
    """Return the entry for two parallel files, swapped if the wanted languages say so.

    Raises:
        ConfigError: If a language is unknown.
    """
    named = _language_of(src), _language_of(tgt)
    if None not in named and (wanted[0] == named[1] or wanted[1] == named[0]):
        src, tgt, named = tgt, src, (named[1], named[0])
    codes = (wanted[0] or named[0], wanted[1] or named[1])
    if codes[0] is None or codes[1] is None:
        unknown = src if codes[0] is None else tgt
        raise ConfigError("the file name does not contain a language", where=unknown, hint=_HINT)
    return Recognized((codes[0], codes[1]), [{"src": src, "tgt": tgt}])


# --- tables -----------------------------------------------------------------------------------------------------------


def _recognize_table(path: str, wanted: Wanted, columns: tuple[str, str] | None) -> Recognized:
    """Return the entry for a file of pairs, with its columns unless they are named like the languages.

    Raises:
        ConfigError: If languages or columns cannot be determined.
        DataError: If the file cannot be read.
    """
    known = _complete(_language_pair(path), wanted)
    if columns is not None:
        if known is None and not all(map(_is_code, columns)):
            raise ConfigError("the columns do not name the languages", where=path, hint=_HINT)
        return Recognized(known or columns, [{"path": path, "columns": list(columns)}])
    readers: dict[str, Callable[[str], Iterable[str] | Mapping[str, Iterable[str]]]] = {
        ".tsv": partial(_tsv_header, known=known), ".csv": _csv_header, ".jsonl": _jsonl_keys,
        ".parquet": _parquet_columns, ".xlsx": _sheet_header, **dict.fromkeys(_DOCUMENTS, _unit_languages),
    }  # fmt: skip
    found = readers[_suffix_of(path)](path)
    names = list(found)
    if isinstance(found, Mapping) and TRANSLATION in found:
        languages = _complete(None, wanted) or _complete(_two_codes(found[TRANSLATION], path), wanted)
        assert languages is not None, "two codes are languages"
        return Recognized(languages, [{"path": path}])
    if not names:  # A TSV without a header.
        if known is None:
            raise ConfigError("the file name does not contain its languages", where=path, hint=_HINT)
        if is_named_reverse(path, known):
            return Recognized(known, [{"path": path, "columns": [2, 1]}], (_guess(path, known, (2, 1)),))
        pair = _language_pair(path)
        is_doubtful = pair is not None and _is_reverse(pair, known)  # its folder has the other direction
        return Recognized(known, [{"path": path}], (_guess(path, known, (1, 2)),) if is_doubtful else ())
    codes = [name for name in names if _is_code(name)]
    if len(codes) > 2:
        codes = [code for code in codes if code != "id"]  # More often a number than Indonesian.
    is_guess = False
    if known is not None and set(known) <= set(names):
        chosen: Languages = known
    elif len(codes) == 2:
        chosen = codes[0], codes[1]
        known = known or _complete(chosen, wanted)
        if known is not None and _is_reverse(chosen, known):
            chosen = chosen[1], chosen[0]
    else:
        known_sides = [pair for pair in _SIDES if set(pair) <= set(names)]
        if not known_sides and len(names) != 2:
            hint = "name two of them like the languages, e.g. en and de, or choose them with `columns`"
            raise ConfigError(
                f"cannot tell source and target among the columns {', '.join(names)}", where=path, hint=hint
            )
        chosen = known_sides[0] if known_sides else (names[0], names[1])
        is_reverse = known is not None and is_named_reverse(path, known)
        chosen = (chosen[1], chosen[0]) if is_reverse else chosen
        is_guess = is_reverse or not known_sides
    if known is None:
        raise ConfigError("the columns do not name the languages", where=path, hint=_HINT)
    needs_columns = _suffix_of(path) == ".tsv" or chosen != known
    return Recognized(
        known,
        [{"path": path} | ({"columns": list(chosen)} if needs_columns else {})],
        (_guess(path, known, chosen),) if is_guess else (),
    )


def _guess(path: str, languages: Languages, columns: tuple[object, object]) -> str:
    """Return what tells the user about columns that were guessed."""
    (src, tgt), (one, other) = languages, columns
    return f"{path}: reading {src} from column {one!r} and {tgt} from column {other!r}"


def is_named_reverse(path: str, languages: Languages) -> bool:
    """Return whether a file is named after these languages in reverse, as train.en-de.tsv for de and en."""
    pair = _pair_in(strip_compression(path).stem)
    return pair is not None and _is_reverse(pair, languages)


def _is_reverse(pair: Languages, wanted: Wanted) -> bool:
    """Return whether the languages that the user has named are those of a pair in reverse."""
    src, tgt = map(short_code, pair)
    if src == tgt or wanted == (None, None):
        return False
    return all(code is None or short_code(code) == of for code, of in zip(wanted, (tgt, src), strict=True))


def _complete(pair: Languages | None, wanted: Wanted) -> Languages | None:
    """Return the languages that the user has named; one that is missing is that of a pair; None without a pair."""
    if pair is not None and _is_reverse(pair, wanted):
        pair = pair[1], pair[0]
    src, tgt = wanted[0] or (pair[0] if pair else None), wanted[1] or (pair[1] if pair else None)
    return (src, tgt) if src and tgt else None


def _is_code(text: str) -> bool:
    """Return whether a text looks like a language code."""
    return _CODE.fullmatch(text) is not None and text not in _NOT_CODES


def _two_codes(names: Iterable[str], path: str) -> Languages:
    """Return the two languages of a `translation` column.

    Raises:
        ConfigError: If it does not have exactly two.
    """
    codes = list(names)
    if len(codes) != 2:
        raise ConfigError(f"expected two languages, got {', '.join(codes) or 'none'}", where=path, hint=_HINT)
    return codes[0], codes[1]


def _language_pair(path: str) -> Languages | None:
    """Return the last two codes in the name of a file or its folder: en and de for x-en-de.tsv or x.en-to-de.tsv."""
    return _pair_in(strip_compression(path).stem) or _pair_in(Path(path).absolute().parent.name)


def _pair_in(name: str) -> Languages | None:
    """Return the last two codes in a name."""
    words = _NAME_PART.findall(name)
    around_to = [(words[i - 1], words[i + 1]) for i in range(1, len(words) - 1) if words[i] == "to"]
    for pair in reversed([*pairwise(words), *around_to]):
        if all(map(_is_code, pair)) and not _ALSO_WORDS.issuperset(pair):
            return pair
    return None


def _tsv_header(path: str, known: Languages | None) -> list[str]:
    """Return the header of a TSV, or nothing if its first line does not look like one.

    Short words look like codes (`yes` and `oui`), so these are a header only if one of them is a known language.
    """
    cells = next(read_lines(path), "").split("\t")
    if len(cells) < 2:
        raise DataError(
            "no tab in the first line", where=f"{path}:1", hint="separate source and target by a tab"
        )
    sides = tuple(cell.lower() for cell in cells[:2])
    are_codes = all(map(_is_code, cells[:2])) and (
        known is None or not set(map(short_code, known)).isdisjoint(map(short_code, cells))
    )
    return cells if sides in _SIDES or are_codes else []


def _csv_header(path: str) -> list[str]:
    """Return the header of a CSV."""
    return next((cells for _, cells in csv_rows(Path(path))), [])


def _jsonl_keys(path: str) -> dict[str, list[str]]:
    """Return the keys of the first object that have text, and `translation` with its own keys."""
    first = next((line for line in read_lines(path) if line.strip()), "{}")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        row = None
    if not isinstance(row, dict):
        hint = 'one JSON object per line, such as {"en": "Hello", "de": "Hallo"}'
        raise DataError("the first line is not a JSON object", where=f"{path}:1", hint=hint)
    return {
        key: list(value) if isinstance(value, dict) else []
        for key, value in row.items()
        if isinstance(value, str) or (key == TRANSLATION and isinstance(value, dict))
    }


def _sheet_header(path: str) -> list[str]:
    """Return the header of a spreadsheet."""
    return read_sheet_header(Path(path))


def _unit_languages(path: str) -> dict[str, list[str]]:
    """Return the languages of the first units of a TMX or XLIFF file as those of a `translation` column."""
    units = list(islice(read_units(Path(path)), _NUM_UNITS))
    tags = dict.fromkeys(tag for unit in units for tag in unit.texts if tag)
    return {TRANSLATION: list(dict.fromkeys(short_code(tag) for tag in tags))}


def _parquet_columns(path: str) -> dict[str, list[str]]:
    """Return the columns of text, and `translation` with its fields."""
    import pyarrow
    from pyarrow import parquet

    texts = (pyarrow.string(), pyarrow.large_string())
    try:
        return {
            field.name: [inner.name for inner in field.type] if pyarrow.types.is_struct(field.type) else []
            for field in parquet.read_schema(path)
            if field.type in texts or (field.name == TRANSLATION and pyarrow.types.is_struct(field.type))
        }
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: a name that is not UTF-8
        message = " ".join(str(error).split())
        raise DataError(f"cannot be read: {message}", where=path, hint="name a Parquet file") from error


# --- other splits -----------------------------------------------------------------------------------------------------


def find_held_out(
    entry: Entry, train: Sequence[str], valid: Sequence[str], test: Sequence[str]
) -> tuple[Sequence[str], Sequence[str], tuple[str, ...]]:
    """Find the validation and test files that are not given: files in the folder of the training pairs named like such.

    Args:
        entry: a config entry of training pairs.
        train: the training files.
        valid: the validation files, if they are given.
        test: the test files, if they are given.

    Returns:
        Validation files, test files, and notes that name those that were found.
    """
    notes: tuple[str, ...] = ()
    if not valid and (valid := _find_split_files(entry, _VALID_NAME, [*train, *test])):
        notes += (f"validation pairs, found by their names: {', '.join(valid)}",)
    if not test and (test := _find_split_files(entry, _TEST_NAME, [*train, *valid])):
        notes += (f"test pairs, found by their names: {', '.join(test)}",)
    return valid, test, notes


def _find_split_files(entry: Entry, pattern: re.Pattern[str], taken: Sequence[str]) -> list[str]:
    """Return files in the folder of the training pairs whose names begin with a pattern, with both sides.

    Args:
        entry: a config entry of training pairs.
        pattern: the pattern, for names in lower case.
        taken: files that belong to another split.
    """
    folder = Path(str(entry.get("path", entry.get("src")))).parent
    excluded = {os.path.abspath(name) for name in taken}
    # Copies that macOS and office programs leave behind are named ._test.en and ~$test.xlsx.
    names = sorted(
        name
        for name in os.listdir(folder)
        if pattern.match(name.lower()) and not name.startswith((".", "~$"))
    )
    found = [folder / name for name in names if os.path.abspath(folder / name) not in excluded]
    if "path" in entry:
        return [str(file) for file in found if _suffix_of(file) == _suffix_of(str(entry["path"]))]
    src, tgt = (_split_side(str(entry[side]))[1] for side in ("src", "tgt"))
    sides = {
        _split_side(file): str(file) for file in found if file.is_file() and _suffix_of(file) not in TABLES
    }
    both = [name for name, side in sides if side == src and (name, tgt) in sides]
    return [sides[name, side] for name in both for side in (src, tgt)]
