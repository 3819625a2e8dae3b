"""TSV, CSV and JSONL: the pairs they yield, and the line named when they are wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mtkit.config.sections import SourceConfig
from mtkit.data.readers import Columns, NumberedPairs, Pair, read_csv, read_jsonl, read_tsv
from mtkit.errors import DataError

EN_DE = Columns(None, ("en", "de"))


def named(src: str, tgt: str) -> Columns:
    return Columns((src, tgt), ("en", "de"))


def message_of(pairs: NumberedPairs) -> str:
    with pytest.raises(DataError) as caught:
        list(pairs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_tsv_takes_two_columns_and_knows_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('"Hello\tHallo\tCC-BY\nYes"\tJa\n', encoding="utf-8")
    assert list(read_tsv(path, EN_DE)) == [(1, Pair('"Hello', "Hallo")), (2, Pair('Yes"', "Ja"))]


def test_tsv_with_columns_has_a_header(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("id\tde\ten\n7\tHallo\tHello\n", encoding="utf-8")
    assert list(read_tsv(path, named("en", "de"))) == [(2, Pair("Hello", "Hallo"))]
    message = message_of(read_tsv(path, named("en", "fr")))
    assert message.startswith(f"{path}:1: no column 'fr'; there are: 'id', 'de', 'en'")


def test_tsv_with_numbers_of_columns_has_no_header(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("7\tHallo\tHello\n", encoding="utf-8")
    columns = SourceConfig.model_validate({"path": "a.tsv", "columns": [3, 2]}).columns
    assert list(read_tsv(path, Columns(columns, ("en", "de")))) == [(1, Pair("Hello", "Hallo"))]
    assert message_of(read_tsv(path, named("4", "1"))).startswith(f"{path}:1: 3 of 4 columns")


def test_tsv_with_a_missing_column(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("Hello\tHallo\nHello Hallo\n", encoding="utf-8")
    assert message_of(read_tsv(path, EN_DE)).startswith(f"{path}:2: 1 of 2 columns")


def test_csv_is_text_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    text = 'id,en,de\n1,"He said ""hi"", twice","Er sagte\nzweimal"\n\n2,NA,null\n3,42,2020-01-01\n4,,\n'
    path.write_bytes(gzip.compress(text.encode()))
    assert list(read_csv(path, EN_DE)) == [
        (2, Pair('He said "hi", twice', "Er sagte zweimal")),
        (5, Pair("NA", "null")),
        (6, Pair("42", "2020-01-01")),
        (7, Pair("", "")),
    ]
    assert list(read_csv(path, named("de", "id")))[1] == (5, Pair("null", "2"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ":1: no column 'en' and no column 'de'"),
        ("source,de\n", ":1: no column 'en'; there are: 'source', 'de'"),
        ("en,de\nHello, you,Hallo\n", ":2: 3 cells, but 2 in the header"),
        ('en,de\na,b\n"x"y,z\n', ":3: not CSV"),
        ('en,de\na,b\n"x,z\n', ":3: not CSV"),
        ("en,de\na,b\nx\ry,z\n", ":3: not CSV"),
    ],
)
def test_faulty_csv(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    assert message_of(read_csv(path, EN_DE)).startswith(f"{path}{said}")


def test_a_cell_of_a_megabyte(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"en,de\n{'x' * 1_000_000},y\n", encoding="utf-8")
    assert list(read_csv(path, EN_DE)) == [(2, Pair("x" * 1_000_000, "y"))]


def write_jsonl(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, {"id": 1, "en": "2020-01-01", "de": "a\nb\u2028c"}, {"en": "x", "de": "y"})
    assert list(read_jsonl(path, EN_DE)) == [(1, Pair("2020-01-01", "a b\u2028c")), (2, Pair("x", "y"))]
    write_jsonl(path, {"translation": {"de": "Hallo", "en": "Hello"}})
    assert list(read_jsonl(path, EN_DE)) == [(1, Pair("Hello", "Hallo"))]
    assert list(read_jsonl(path, Columns(None, ("de", "en")))) == [(1, Pair("Hallo", "Hello"))]
    write_jsonl(path, {"s": "Hello", "t": "Hallo"})
    assert list(read_jsonl(path, named("s", "t"))) == [(1, Pair("Hello", "Hallo"))]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"en": "a", "de": ', "not JSON: Expecting value"),
        ('["a", "b"]', "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"n": ' + "9" * 10_000 + "}", "not JSON"),
        ('{"en": "a"}', "no column 'de'; there are: 'en'"),
        ('{"en": "a", "de": null}', "the column 'de' is null"),
        ('{"en": "a", "de": 5}', "the column 'de' is 5, not text"),
        ('{"en": "a", "de": "\\u0000"}', "a NUL character in column 'de'"),
        ('{"en": "a", "de": "\\ud800"}', "half of a surrogate pair"),
        ('{"translation": "a"}', "the column 'translation' does not contain texts by language"),
        ('{"translation": {"en": "a", "fr": "b"}}', "no language 'de'; there are: 'en', 'fr'"),
    ],
)
def test_faulty_jsonl(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"en": "x", "de": "y"}}\n\n{line}\n', encoding="utf-8")
    assert message_of(read_jsonl(path, EN_DE)).startswith(f"{path}:3: {said}")
