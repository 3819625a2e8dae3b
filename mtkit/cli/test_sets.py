"""Test sets that the options of `mtkit evaluate` name, and the translations of them in files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from mtkit.cli.lines import check_same_length
from mtkit.cli.terminal import print_stderr
from mtkit.data.readers import Columns
from mtkit.errors import ConfigError, DataError, StorageError
from mtkit.files import strip_compression

if TYPE_CHECKING:
    from mtkit.config.sections import DataConfig
    from mtkit.training.validation import EvalSet
    from mtkit.translation.segments import Request

_CODE = r"([a-z]{2,3}(?:-[A-Z][a-z]{3})?(?:-(?:[A-Z]{2}|[0-9]{3}))?)"
_LANGUAGE_PAIR = re.compile(f"{_CODE}-{_CODE}")
"""Two codes of languages with or without script and region, such as en-zh-TW or en-zh-Hant."""

_HELP = "mtkit evaluate --help"
_T = TypeVar("_T")


class TestSet(NamedTuple):
    """A test set.

    Attributes:
        name: name of the set.
        srcs: source lines, as requests to translate them; None if they are not known.
        refs: one list of lines for each file of references.
        ref_names: names of these files, for messages.
    """

    name: str
    srcs: Sequence[Request] | None
    refs: list[list[str]]
    ref_names: list[str]

    @property
    def src_texts(self) -> list[str] | None:
        """The source lines without tags; None if they are not known."""
        return None if self.srcs is None else [request.text for request in self.srcs]


def load_test_sets(
    src: str | None,
    ref: Sequence[str],
    tests: Sequence[str],
    names: Sequence[str],
    columns: Columns | None,
    langs: str | None,
    tag: str | None,
    data: DataConfig | None,
    *,
    quiet: bool,
) -> list[TestSet]:
    """Load the test sets that the options name: files, sets of sacreBLEU, or those in a model's config.

    Args:
        src: file of source lines.
        ref: files of references.
        tests: files of pairs, or of source and references, separated by commas.
        names: names of sets of sacreBLEU.
        columns: languages of both sides, if they are known.
        langs: languages of the sets of sacreBLEU.
        tag: target-language tag of each line.
        data: the data section of the model's config, if there is a model.
        quiet: whether to tell nothing about columns that were guessed.

    Raises:
        ConfigError: If the options name none, or cannot be combined.
        DataError: If a set cannot be read, has no lines, or its files differ in length.
    """
    if ref and names:
        raise ConfigError("give either --ref or --test-set", hint=_HELP)
    if not (ref or tests or names):
        if data is None:
            raise ConfigError("no references", hint="give --ref FILE, --test FILE or --test-set NAME")
        if tag is not None:
            what = "--tag needs --src, --test or --test-set"
            raise ConfigError(what, hint="the model's own test sets have theirs in its config")
        return _config_test_sets(data)
    sets = []
    if ref:
        if data is not None and src is None:
            raise ConfigError("--model with --ref needs --src", hint=_HELP)
        sets.append(_text_set(ref[0], src, ref, columns, tag))
    for test in tests:
        files = [test] if os.path.exists(test) else test.split(",")
        if len(files) > 1:
            name = strip_compression(files[0]).stem
            sets.append(_text_set(name, files[0], files[1:], columns, tag))
        else:
            sets.append(_pairs_in(test, columns, tag, quiet=quiet))
    for name in names:
        from mtkit.evaluation.metrics import load_test_set

        if langs is None:
            raise ConfigError("--test-set needs --langs", hint="for example --langs en-de")
        srcs, refs = load_test_set(name, *split_pair(langs))
        sets.append(TestSet(name, _requests(srcs, tag), refs, [name]))
    return [
        test._replace(name=name) for test, name in zip(sets, _distinct([s.name for s in sets]), strict=True)
    ]


def read_hyps(path: str, columns: Columns | None, sets: Sequence[TestSet]) -> list[list[str]]:
    """Return the translations of each test set: those of a file, one set after the other, or of a folder.

    Args:
        path: a file, or a folder with a file NAME.hyps.txt for each set, as training writes it; for a single set, a
            folder with one such file of any name. "-" is stdin.
        columns: languages of both sides of a document, if they are known.
        sets: the test sets.

    Raises:
        ConfigError: If the path is a folder without such files, or a document whose language is not known.
        DataError: If a file cannot be read, or differs in length from the references.
    """
    if path != "-" and os.path.isdir(path):
        return [_hyps_in_folder(Path(path), test, is_only=len(sets) == 1) for test in sets]
    return split_by_set(path, list(_read_side(path, columns, 1)), sets)


def split_by_set(path: str, lines: list[_T], sets: Sequence[TestSet]) -> list[list[_T]]:
    """Return what the lines of a file tell about each test set, one set after the other.

    Args:
        path: the file.
        lines: its lines, or what was read from each.
        sets: the test sets.

    Raises:
        DataError: If there are more or fewer than the test sets have together.
    """
    counts = [len(test.refs[0]) for test in sets]
    if len(sets) == 1:
        check_same_length(path, lines, sets[0].ref_names, sets[0].refs)
    elif len(lines) != sum(counts):
        what = f"{len(lines):,} lines, but the test sets have {' + '.join(map(str, counts))} = {sum(counts)}"
        raise DataError(what, where=path, hint="all sets in one file, one after the other")
    ends = [sum(counts[: number + 1]) for number in range(len(counts))]
    return [lines[end - count : end] for end, count in zip(ends, counts, strict=True)]


def has_hyps(folder: str) -> bool:
    """Return whether a folder has translations of test sets, as training writes them."""
    from mtkit.evaluation.run_files import HYPS_SUFFIX

    return any(Path(folder).glob(f"*{HYPS_SUFFIX}"))


def _hyps_in_folder(folder: Path, test: TestSet, *, is_only: bool) -> list[str]:
    """Return the translations of a test set in a folder that training wrote.

    Args:
        folder: the folder.
        test: the test set.
        is_only: whether there are no other test sets. Then the only file is taken, whatever its name.

    Raises:
        ConfigError: If the folder does not have them.
        DataError: If they cannot be read, or differ in length from the references.
    """
    from mtkit.evaluation.run_files import HYPS_SUFFIX, hyps_file
    from mtkit.files import read_lines
    from mtkit.translation.model_folder import find_checkpoint

    path = folder / Path(hyps_file(test.name)).name
    if not path.exists():
        there = sorted(folder.glob(f"*{HYPS_SUFFIX}"))
        if not there:
            hint = "name a file, or a model with --model"
            with suppress(StorageError):
                find_checkpoint(folder)
                hint = f"a model: --model {folder}"
            raise ConfigError("a folder, not a file of translations", where=str(folder), hint=hint)
        if not is_only or len(there) > 1:
            what = f"no {path.name} in this folder of translations"
            hint = f"there are: {', '.join(file.name for file in there)}"
            raise ConfigError(what, where=str(folder), hint=hint)
        [path] = there
    lines = list(read_lines(path))
    check_same_length(str(path), lines, test.ref_names, test.refs)
    return lines


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names, with a number after those that came before."""
    return [
        f"{name}-{names[:i].count(name) + 1}" if name in names[:i] else name for i, name in enumerate(names)
    ]


def _requests(lines: Sequence[str], tag: str | None) -> list[Request]:
    """Return source lines as requests, with a tag."""
    from mtkit.translation.segments import Request

    return [Request(line, tag=tag or "") for line in lines]


def _text_set(
    name: str, src: str | None, ref: Sequence[str], columns: Columns | None, tag: str | None
) -> TestSet:
    """Return a test set from a file of source lines, if there is one, and files of references."""
    refs = [_complete_side(path, columns, 1) for path in ref]
    if not refs[0]:
        raise DataError("nothing to score", where=src or ref[0], hint="it has no lines")
    check_same_length(ref[0], refs[0], ref, refs)
    if src is None:
        return TestSet(name, None, refs, list(ref))
    srcs = _complete_side(src, columns, 0)
    check_same_length(src, srcs, ref, refs)
    return TestSet(name, _requests(srcs, tag), refs, list(ref))


def _read_side(path: str, columns: Columns | None, side: int) -> Iterator[str]:
    """Yield the lines of a text file, or the texts of one side of a document: 0 is the source, 1 the target.

    Raises:
        ConfigError: If it is a document whose languages are not known.
        DataError: If the file cannot be read.
    """
    from mtkit.data.documents import is_document, read_side
    from mtkit.files import read_lines

    if not is_document(path):
        yield from read_lines(path)
        return
    for _, text in read_side(Path(path), _known(columns, path)[side]):
        yield text


def _complete_side(path: str, columns: Columns | None, side: int) -> list[str]:
    """Return what `_read_side` yields, if no unit of a document is empty.

    Raises:
        ConfigError: If it is a document whose languages are not known.
        DataError: If the file cannot be read, or a unit lacks the side.
    """
    from mtkit.data.documents import is_document, location_in, read_side

    if not is_document(path):
        return list(_read_side(path, columns, side))
    language = _known(columns, path)[side]
    numbered = list(read_side(Path(path), language))
    empty = next((number for number, text in numbered if not text), None)
    if empty is not None:
        what, where = f"no text for {language!r}", location_in(Path(path), empty)
        raise DataError(what, where=where, hint="complete it; --test FILE leaves out what is incomplete")
    return [text for _, text in numbered]


def _known(columns: Columns | None, path: str) -> tuple[str, str]:
    """Return the languages of a document.

    Raises:
        ConfigError: If they are not known.
    """
    if columns is None:
        raise ConfigError("which of its languages?", where=path, hint="name them, e.g. --langs en-de")
    return columns.names or columns.languages


def _pairs_in(path: str, columns: Columns | None, tag: str | None, *, quiet: bool) -> TestSet:
    """Return the pairs of a file as a test set; incomplete units of a document are left out.

    A TSV without a header is read in the order of the languages in its name.

    Raises:
        ConfigError: If its languages are not known, or it is no file of pairs.
        DataError: If it cannot be read, or has no pairs.
    """
    from mtkit.config.sections import DataConfig, SourceConfig
    from mtkit.data.recognize import is_named_reverse
    from mtkit.data.sources import open_sources, read_sides

    is_tsv = strip_compression(path).suffix.lower() == ".tsv"
    if columns is not None and columns.names is None and is_tsv and is_named_reverse(path, columns.languages):
        columns = Columns(("2", "1"), columns.languages)
        if not quiet:
            print_stderr(
                f"{path}: by its name, {columns.languages[0]} is the second column (if not: --columns 1 2)"
            )
    src, tgt = ("src", "tgt") if columns is None else _known(columns, path)
    config = SourceConfig(path=os.path.abspath(path), columns=columns.names if columns else None)
    data = DataConfig(src=src, tgt=tgt, train=(config,))
    try:
        [source] = open_sources([config], data, "test")
        _known(columns, path)
        srcs, tgts = read_sides(source)
    except ConfigError as error:
        if error.where == path:
            raise
        hint = f"{error.hint}; or text files: --test SRC,REF" if error.hint else None
        raise ConfigError(error.what, where="--test", hint=hint) from error
    except DataError as error:
        hint = "name them: --columns SRC TGT" if "columns:" in str(error.hint) else error.hint
        hint = "check the path" if "data.root" in str(hint) else hint
        raise DataError(error.what, where=error.where, hint=hint) from error
    return TestSet(source.name, _requests(srcs, tag), [tgts], [source.name])


def _config_test_sets(data: DataConfig) -> list[TestSet]:
    """Load the test sets in a model's config.

    Raises:
        ConfigError: If there are none.
        DataError: If one cannot be read.
    """
    if not data.test:
        raise ConfigError(
            "the model's config has no test set", hint="give --test FILE, --src and --ref, or --test-set"
        )
    sets = read_config_sets(data, "test")
    return [TestSet(test.name, test.requests(), [test.tgts], [test.name]) for test in sets]


def read_config_sets(data: DataConfig, split: Literal["valid", "test"]) -> list[EvalSet]:
    """Read the validation or test sets that the config of a model names.

    Raises:
        DataError: If one cannot be read.
    """
    from mtkit.data.sources import open_sources
    from mtkit.training.inputs import read_set

    configs = data.valid if split == "valid" else data.test
    try:
        return list(map(read_set, open_sources(configs, data, split), configs))
    except DataError as error:
        others = "name other files with --src and --ref"
        hint = f"{error.hint}; or {others}" if error.hint else others
        raise DataError(error.what, where=error.where, hint=hint) from error


def split_pair(langs: str) -> tuple[str, str]:
    """Return the two codes in a value of --langs.

    Raises:
        ConfigError: If it is one language, or cannot be told where the second one begins.
    """
    parts = langs.split("-")
    if len(parts) == 2 and all(parts):
        return parts[0], parts[1]
    found = _LANGUAGE_PAIR.fullmatch(langs)
    if found is None:
        what = f"{langs!r} is {'one language' if len(parts) == 1 else 'not a pair of languages'}"
        raise ConfigError(what, where="--langs", hint="for example --langs en-de, or en-zh-TW")
    return found[1], found[2]
