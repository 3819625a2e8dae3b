"""Strict YAML: values, lines, errors, overrides, and dumps that read back equal."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import pytest
import yaml

from mtkit.config.yaml_document import apply_overrides, dump_yaml, format_value, load_yaml, parse_value
from mtkit.errors import ConfigError


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, word) for word in ("no", "yes", "on", "off", "y", "n", "NO", "Yes", "tRUE", "nUll", "none")),
        *((word, True) for word in ("true", "True", "TRUE")),
        *((word, False) for word in ("false", "False", "FALSE")),
        *((word, None) for word in ("null", "Null", "NULL", "~", "", "  ")),
        ("0", 0),
        ("-0", 0),
        ("+3", 3),
        ("-17", -17),
        ("9" * 30, int("9" * 30)),
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("1e+5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.5e1", -5.0),
        ("0.001", 0.001),
        ("012", "012"),
        ("-01", "-01"),
        ("01.5", "01.5"),
        ("1_000", "1_000"),
        ("1,5", "1,5"),
        ("0x10", "0x10"),
        ("0o7", "0o7"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("nan", "nan"),
        ("1e999", "1e999"),
        ("9" * 5000, "9" * 5000),
        (".", "."),
        ("12:30", "12:30"),
        ("2016-01-01", "2016-01-01"),
        ("1.2.3", "1.2.3"),
        ("٣", "٣"),
        ("=", "="),
        ("'1'", "1"),
        ('"no"', "no"),
        ('"a\\nb"', "a\nb"),
        ('"\\ud83d\\ude00"', "😀"),
        ("runs/my run", "runs/my run"),
        ("train[:10000]", "train[:10000]"),
        ("[1, no, 0.5]", [1, "no", 0.5]),
        ("{src: en, tgt: no}", {"src": "en", "tgt": "no"}),
        ("{1: a, true: b, ~: c}", {"1": "a", "true": "b", "~": "c"}),
        ("---", "---"),
        ("x#y", "x#y"),
    ],
)
def test_scalars(tmp_path: Path, text: str, value: object) -> None:
    for found in (parse_value(text), load_yaml(write(tmp_path, f"key: {text}\n")).data["key"]):
        assert found == value
        assert type(found) is type(value)


def test_a_file_with_everything(tmp_path: Path) -> None:
    text = """\
# A comment.
run: runs/x # another
list:
  - a
  - {b: 1,
     c: 2}
block: |
  one
  two
folded:
  three
section:
  empty: # nothing
  deep: {x: [1, 2]}
again: &name {y: 1}
alias: *name
"""
    document = load_yaml(write(tmp_path, "\ufeff" + text.replace("\n", "\r\n")))
    assert document.data == {
        "run": "runs/x",
        "list": ["a", {"b": 1, "c": 2}],
        "block": "one\ntwo\n",
        "folded": "three",
        "section": {"empty": None, "deep": {"x": [1, 2]}},
        "again": {"y": 1},
        "alias": {"y": 1},
    }
    lines = {
        ("run",): 2,
        ("list",): 3,
        ("list", 0): 4,
        ("list", 1): 5,
        ("list", 1, "b"): 5,
        ("list", 1, "c"): 6,
        ("block",): 7,
        ("folded",): 10,
        ("section", "empty"): 13,
        ("section", "deep", "x", 1): 14,
        ("section", "missing"): 12,
        ("section", "missing", "deeper"): 12,
        ("list", 7, "x"): 3,
        ("alias", "y"): 16,
    }
    for keys, line in lines.items():
        assert document.place_of(keys) == f"{tmp_path}/x.yaml:{line}", keys
    assert document.place_of(("nothing",)) == f"{tmp_path}/x.yaml"


def test_an_alias_is_a_copy(tmp_path: Path) -> None:
    document = load_yaml(write(tmp_path, "a: &x {y: [1]}\nb: *x\n"))
    changed = apply_overrides(document, ["a.y.0=2"])
    assert changed.data == {"a": {"y": [2]}, "b": {"y": [1]}}


BOMB = "".join(
    f"{key}: &{key} [{', '.join([f'*{below}'] * 9)}]\n"
    for below, key in zip("abcdefgh", "bcdefghi", strict=True)
)

BAD_FILES: dict[str, tuple[str | bytes, int | None, str, str]] = {
    # name: (text, line, what, hint)
    "empty": ("", None, "the file is empty", "at least run and data"),
    "only a comment": ("# x\n", None, "the file is empty", "at least"),
    "only a marker": ("---\n", None, "the file is empty", "at least"),
    "a list": ("\n- a\n", 2, "expected a mapping, got a list", "run: "),
    "a word": ("run\n", 1, "expected a mapping, got a single value", "run: "),
    "no space after the colon": ("run:x\n", 1, "got a single value", "run: "),
    "duplicate": ("a: 1\nb: 2\na: 3\n", 3, "duplicate key 'a', first on line 1", "remove"),
    "duplicate below": (
        "s:\n  a: 1\n  b: 1\n  a: 2\n",
        4,
        "duplicate key 'a', first on line 2",
        "remove",
    ),
    "duplicate in braces": ("s: {a: 1,\n  a: 2}\n", 2, "duplicate key 'a', first on line 1", "remove"),
    "duplicate, quoted": ("no: 1\n'no': 2\n", 2, "duplicate key 'no', first on line 1", "remove"),
    "duplicate in a list": (
        "s:\n  - a: 1\n    a: 1\n",
        3,
        "duplicate key 'a', first on line 2",
        "remove",
    ),
    "tab": ("a:\n\tb: 1\n", 2, "tab in the indentation", "spaces"),
    "tab later": ("a:\n  b: 1\n\tc: 2\n", 3, "tab in the indentation", "spaces"),
    "two colons": ("a: 1\nb: c: d\n", 2, "unexpected key: value", "quotes"),
    "indented too far": ("a: 1\n b: 2\n", 2, "unexpected key: value", "indentation"),
    "indented too little": ("a:\n  b: 1\n c: 2\n", 3, "wrong indentation", "indent"),
    "key after a list": ("- a\nb: 1\n", 2, "wrong indentation", "indent"),
    "open list": ("a: 1\nb: [1, 2\n", 2, "missing ] or comma", "close the bracket"),
    "open section": ("b: {x: 1\n\n\n", 1, "missing } or comma", "close the bracket"),
    "no comma": ("b: {x: 1 y: 2}\n", 1, "missing } or comma", "bracket"),
    "open quote": ("a: 'x\nb: 1\n", 1, "unclosed quote", "close the quote"),
    "open double quote": ('a: 1\nb: "x\n', 2, "unclosed quote", "close the quote"),
    "after a quote": ('a: "x" y\n', 1, "text after the end of a value", "quotes"),
    "no colon": ("a: 1\nb\nc: 2\n", 2, "expected key: value", "colon"),
    "no key": (": 1\n", 1, "colon without a key", "key: value"),
    "list as a key": ("? [a]\n: b\n", 1, "a key that is not a string", "key: value"),
    "list entry in a line": ("a: - b\n", 1, "unexpected list entry", "next line"),
    "at": ("a: @x\n", 1, "a plain string cannot start with '@'", "quotes"),
    "backtick": ("a: `x`\n", 1, "a plain string cannot start with '`'", "quotes"),
    "per cent": ("a: %x\n", 1, "a plain string cannot start with '%'", "quotes"),
    "bad escape": ('a: "\\q"\n', 1, "invalid YAML: found unknown escape character 'q'", "syntax"),
    "closing bracket": ("a: ]\n", 1, "invalid YAML: expected the node content", "syntax"),
    "unknown alias": ("a: 1\nb: *x\n", 2, "alias *x has no anchor &x before it", "quotes"),
    "alias of itself": ("a: &x [*x]\n", 1, "alias *x has no anchor &x before it", "quotes"),
    "merge key": (
        "a: &x {b: 1}\nc:\n  <<: *x\n",
        3,
        "merge keys (<<) are not supported",
        "write the keys out",
    ),
    "tag": ("a: 1\nb: !!int 3\n", 2, "tag !!int: tags are not supported", "remove the tag"),
    "own tag": ("a: !mine 3\n", 1, "tag !mine: tags are not supported", "remove the tag"),
    "bare tag": ("a: ! 3\n", 1, "tag !: tags are not supported", "remove the tag"),
    "tagged key": ("!!str a: 3\n", 1, "a key that is not a string", "key: value"),
    "object": (
        "a: !!python/object/apply:os.system [x]\n",
        1,
        "tag !!python/object/apply:os.system",
        "remove",
    ),
    "two documents": ("a: 1\n---\nb: 2\n", 2, "a second document", "---"),
    "deep": ("a: " + "[" * 100_000, 1, "nested more than 50 levels deep", "levels"),
    "alias bomb": ("a: &a [1, 2]\n" + BOMB, 5, "aliases expand to too many values", "write the values out"),
    "NUL": (b"a: 1\nb: \0\n", 2, "a NUL character, byte 4 of the line", "remove"),
    "not UTF-8": (b"a: 1\nb: \xe4\n", 2, "not UTF-8: 0xe4, byte 4 of the line", "iconv"),
    "escaped NUL": ('a: 1\nb: "x\\0"\n', 2, "a NUL character in a string", "remove"),
    "half of a pair": ('a: 1\nb: "\\ud83d"\n', 2, "half of a surrogate pair in a string", "remove"),
    "control character": ("a: 1\nb: \x01\n", 2, "character U+0001 is not allowed in YAML", "remove"),
    "U+2028": ("a: 1\nb: 'x\u2028y'\n", 2, "character U+2028", '"\\u2028"'),
    "lone carriage return": ("a: 1\nb: x\rc: y\n", 2, "character U+000D", '"\\u000D"'),
    "a corpus": ("A sentence of a corpus.\n" * 50_000, None, "too large for a config", "YAML"),
}


@pytest.mark.parametrize(("text", "line", "what", "hint"), BAD_FILES.values(), ids=BAD_FILES)
def test_invalid_files_are_errors(
    tmp_path: Path, text: str | bytes, line: int | None, what: str, hint: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    assert caught.value.where == (str(path) if line is None else f"{path}:{line}")
    assert what in caught.value.what
    assert hint in (caught.value.hint or "")
    assert "\n" not in str(caught.value)


def test_paths_that_are_not_files_are_errors(tmp_path: Path) -> None:
    write(tmp_path, "a: 1")
    with pytest.raises(ConfigError) as caught:
        load_yaml(tmp_path / "y.yaml")
    assert caught.value.what == "no such file"
    assert caught.value.where == str(tmp_path / "y.yaml")
    assert caught.value.hint == f"did you mean {tmp_path}/x.yaml?"
    with pytest.raises(ConfigError, match="a folder, not a file"):
        load_yaml(tmp_path)


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a: 1\na: 2")))
    with pytest.raises(ConfigError) as caught:
        load_yaml("-")
    assert caught.value.where == "stdin:2"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("run=y", "run", "y"),
        (" run =y", "run", "y"),
        ("run=a=b", "run", "a=b"),
        ("run=", "run", None),
        ("run=no", "run", "no"),
        ("new=1", "new", 1),
        ("data.src=fr", "data", {"src": "fr", "train": [{"path": "a"}, {"path": "b"}]}),
        (
            "data.new.deep=1e-3",
            "data",
            {"src": "en", "train": [{"path": "a"}, {"path": "b"}], "new": {"deep": 1e-3}},
        ),
        ("data.train.1.path=c", "data", {"src": "en", "train": [{"path": "a"}, {"path": "c"}]}),
        ("data.train.0=c", "data", {"src": "en", "train": ["c", {"path": "b"}]}),
        ("data.train=[{path: c}]", "data", {"src": "en", "train": [{"path": "c"}]}),
        ("data={src: de}", "data", {"src": "de"}),
        ("empty.x.y=3", "empty", {"x": {"y": 3}}),
        ('run="a\nb"', "run", "a b"),
        ("run=a#1", "run", "a#1"),
        ("run='a #1' ", "run", "a #1"),
        ("data.train=['a #1', b#2]", "data", {"src": "en", "train": ["a #1", "b#2"]}),
    ],
)
def test_overrides(tmp_path: Path, override: str, key: str, value: object) -> None:
    before = "run: x\ndata:\n  src: en\n  train:\n    - path: a\n    - path: b\nempty:\n"
    document = load_yaml(write(tmp_path, before))
    changed = apply_overrides(document, [override])
    assert changed.data[key] == value
    assert document.data == load_yaml(tmp_path / "x.yaml").data  # the old document is unchanged


def test_a_value_knows_where_it_was_set(tmp_path: Path) -> None:
    document = load_yaml(write(tmp_path, "run: x\ndata:\n  src: en\n  train: [a, b]\n"))
    changed = apply_overrides(document, ["data.src=fr", "data.src=de", "new.deep.key=1", "data.train=[c]"])
    path = f"{tmp_path}/x.yaml"
    places: dict[tuple[str | int, ...], str] = {
        ("run",): f"{path}:1",
        ("data",): f"{path}:2",
        ("data", "tgt"): f"{path}:2",
        ("data", "src"): "command line: data.src=de",
        ("data", "train", 0): "command line: data.train=[c]",
        ("new",): "command line: new.deep.key=1",
        ("new", "deep", "other"): "command line: new.deep.key=1",
    }
    for keys, place in places.items():
        assert changed.place_of(keys) == place


BAD_OVERRIDES = {
    "x": ("expected key=value", "training.max_steps=1000"),
    "": ("expected key=value", "training.max_steps=1000"),
    "=1": ("empty key", "training.max_steps=1000"),
    "a..b=1": ("empty key", "training.max_steps=1000"),
    ".a=1": ("empty key", "training.max_steps=1000"),
    "a.=1": ("empty key", "training.max_steps=1000"),
    "run.x=1": ("run is a value, not a section", "it is x"),
    "data.train.0.path.x=1": ("data.train.0.path is a value, not a section", "it is a"),
    "data.train.1.path=1": (
        "data.train has no entry 1",
        "it has 1 entry, 0; data.train=[...] replaces the list",
    ),
    "data.train.-1.path=1": ("data.train has no entry -1", "it has 1 entry, 0"),
    "data.train.x=1": ("data.train has no entry x", "it has 1 entry, 0"),
    "data.none.0=1": ("data.none has no entry 0", "it has 0 entries"),
    "data.valid.0.path=1": ("data.valid has no entry 0", "only lists have numbered entries; write key=[...]"),
    "0=1": ("the config has no entry 0", "only lists have"),
    "run=[1": ("missing ] or comma", "close"),
    "run={a: 1, a: 2}": ("duplicate key 'a'", "remove"),
    "run=@x": ("a plain string cannot start with '@'", "quotes"),
    "run=%x": ("a plain string cannot start with '%'", "quotes"),
    "run=*x": ("alias *x has no anchor", "quotes"),
    "run=!x": ("tag !x: tags are not supported", "remove"),
    "run='x": ("unclosed quote", "close"),
    "run=x\n- y": ("not a single value", "quotes"),
    "run=x\nseed: 2": ("wrong indentation", ""),
    "run=a #1": ("what follows # would be a comment", "quotes"),
    "run=#1": ("what follows # would be a comment", "quotes"),
    "run='a' #1": ("what follows # would be a comment", "quotes"),
    "data.train=[a, {path: b}] #1": ("what follows # would be a comment", "quotes"),
    "run=>#": ("not a single value", "quotes"),
    "run=\udcff": ("character U+DCFF is not allowed in YAML", "remove"),
}


@pytest.mark.parametrize(
    ("override", "what", "hint"), [(key, *expected) for key, expected in BAD_OVERRIDES.items()]
)
def test_invalid_overrides_are_errors(tmp_path: Path, override: str, what: str, hint: str) -> None:
    document = load_yaml(write(tmp_path, "run: x\ndata:\n  train: [{path: a}]\n  none: []\n"))
    with pytest.raises(ConfigError) as caught:
        apply_overrides(document, ["seed=1", override])
    shown = override.replace("\n", "\\n")
    assert caught.value.where == f"command line: {shown}"
    assert caught.value.what.startswith(what)
    assert hint in (caught.value.hint or "")
    assert "\n" not in str(caught.value)


TEXTS = [
    ["no", "yes", "on", "off", "y", "n", "true", "false", "null", "~", "True", "NULL", "nan", ".inf"],
    [
        "=",
        "<<",
        "-",
        "--",
        "---",
        "...",
        ".",
        "1",
        "012",
        "1e-4",
        ".5",
        "1_000",
        "0x10",
        "12:30",
        "2016-01-01",
        "+3",
    ],
    [
        "",
        " ",
        "a ",
        " a",
        "a b",
        "a  b",
        "a -b",
        "a: b",
        "a:b",
        "a #b",
        "a#b",
        "#",
        "[a]",
        "{a}",
        "a, b",
        "a\tb",
    ],
    [
        "'",
        '"',
        "\\",
        'a"b',
        "a\\nb",
        "a\nb",
        "\n",
        "a\r\nb",
        "\r",
        "\x07",
        "\x7f",
        "\x85",
        "\xa0",
        "\ufeff",
    ],
    [
        "\u2028",
        "é",
        "東京",
        "😀",
        "\udcff",
        "@a",
        "%a",
        "`a`",
        "&a",
        "*a",
        "!a",
        "|",
        ">",
        "?",
        "? a",
        "./x",
        "../x",
    ],
    ["/abs/path", "C:\\x", "train[:10000]", "a@b.c", "runs/my run", "x" * 500, "...x", "don't"],
]


@pytest.mark.parametrize("text", [text for texts in TEXTS for text in texts])
def test_strings_read_back(tmp_path: Path, text: str) -> None:
    data: dict[str, object] = {"a": text, "b": {"c": [text, {"d": text}]}, "e": [text]}
    if text != "<<" and text:
        data[text] = {text: 1}
    dumped = dump_yaml(data)
    assert load_yaml(write(tmp_path, dumped)).data == data
    assert parse_value(format_value(text)) == text
    if text != "\udcff":  # a byte of a file's name; other YAML readers, including 1.1, agree
        assert yaml.safe_load(dumped) == data


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -1, 10**20, 0.0, -0.5, 1e-8, 1e16, 1e300, 5e-324, 0.1 + 0.2),
        *([], {}, [[]], [{}], {"a": {}}, [1, [2, {"a": [None]}]], [{"a": 1}, 2], [1.0, 1]),
    ],
)
def test_values_read_back(tmp_path: Path, value: object) -> None:
    data = {"z": value, "a": {"b": value}}
    found = load_yaml(write(tmp_path, dump_yaml(data))).data
    assert found == data
    assert repr(found) == repr(data)  # types and order too
    assert parse_value(format_value(value)) == value
    assert yaml.safe_load(dump_yaml(data)) == data


def test_the_layout_of_a_dump() -> None:
    data = {
        "run": "runs/x",
        "data": {"tgt": "no", "train": [{"src": "a", "n": 1}], "test": ()},
        "betas": (0.9, 1e-9),
    }
    assert dump_yaml(data) == (
        'run: runs/x\ndata:\n  tgt: "no"\n  train:\n    - {src: a, "n": 1}\n  test: []\n'
        "betas: [0.9, 1.0e-09]\n"
    )
    assert dump_yaml({}) == "{}\n"


@pytest.mark.parametrize("value", [math.nan, math.inf, b"x", {1, 2}, Path("x")])
def test_other_types_cannot_be_dumped(value: object) -> None:
    with pytest.raises(TypeError, match="YAML cannot represent"):
        dump_yaml({"a": value})


@pytest.mark.parametrize(
    "text",
    [
        "a:\tb",
        "a: {b:\tc}",
        "a: b\t# c",
        "a: [1,\n\t2]",
        "a: [x?y]",
        "a: {b: c?}",
        "a: what?",
        "a: {b: 1, c: [x, y]}",
        "a: 'x",
    ],
)
def test_a_text_is_valid_with_libyaml_and_without_it_or_with_neither(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, "utf-8")

    def read() -> object:
        try:
            return load_yaml(path).data
        except ConfigError as error:
            return str(error)

    found = read()
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert read() == found
