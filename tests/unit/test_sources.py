"""Sources: parallel files, the demo, names, fingerprints, and errors in files."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mtkit.config.sections import DataConfig, SourceConfig
from mtkit.data.readers import Pair
from mtkit.data.sources import Source, Split, open_sources, read_sides
from mtkit.errors import ConfigError, DataError

ENGLISH = ["Hello", "Good morning", "Thanks"]
GERMAN = ["Hallo", "Guten Morgen", "Danke"]
PAIRS = [Pair(*sides) for sides in zip(ENGLISH, GERMAN, strict=True)]


def open_one(root: Path, role: Split = "train", languages: str = "en-de", **keys: Any) -> Source:
    src, tgt = languages.split("-")
    config = SourceConfig(**keys)
    data = DataConfig(root=str(root), src=src, tgt=tgt, train=(config,))
    return open_sources([config], data, role)[0]


def pairs_of(source: Source) -> list[Pair]:
    return [pair for _, pair in source.read()]


def write_parallel(root: Path, english: bytes, german: bytes) -> None:
    (root / "a.en").write_bytes(english)
    (root / "a.de").write_bytes(german)


def message_of(source: Source) -> str:
    with pytest.raises(DataError) as caught:
        pairs_of(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_tag_stands_before_each_source_line(tmp_path: Path) -> None:
    write_parallel(tmp_path, b"Hello\n\n Thanks\n", b"Hallo\n\nDanke\n")
    files = {"src": "a.en", "tgt": "a.de"}
    plain, tagged = open_one(tmp_path, **files), open_one(tmp_path, **files, tag="<2de>")
    assert pairs_of(tagged) == [("<2de> Hello", "Hallo"), ("", ""), ("<2de>  Thanks", "Danke")]
    assert (tagged.name, tagged.paths, tagged.location(3)) == (plain.name, plain.paths, plain.location(3))
    prints = {open_one(tmp_path, **files, tag=tag).fingerprint() for tag in (None, "<2de>", "<2fr>")}
    assert len(prints) == 3 and plain.fingerprint() in prints


# Two parallel files


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".bz2", bz2.compress),
        (".zst", lambda data: pa.compress(data, codec="zstd", asbytes=True)),
    ],
)
def test_parallel_files(tmp_path: Path, suffix: str, pack: Any) -> None:
    (tmp_path / f"a.en{suffix}").write_bytes(pack("\n".join(ENGLISH).encode()))
    (tmp_path / f"a.de{suffix}").write_bytes(pack("\n".join([*GERMAN, ""]).encode()))
    source = open_one(tmp_path, src=f"a.en{suffix}", tgt=f"a.de{suffix}")
    assert list(source.read()) == list(enumerate(PAIRS, 1))
    assert list(source.read()) == list(enumerate(PAIRS, 1))
    assert source.name == "a"
    assert source.location(2) == f"{tmp_path}/a.en{suffix}:2"


def test_relative_paths_start_at_root_and_absolute_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parallel(tmp_path, b"x\n", b"y\n")
    monkeypatch.chdir(tmp_path)
    source = open_one(Path(), src="a.en", tgt=str(tmp_path / "a.de"))
    assert pairs_of(source) == [Pair("x", "y")]
    assert source.location(1) == "a.en:1"


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    text = "one\u2028still one\rand\x0cone\x85more\r\ntwo\n"
    write_parallel(tmp_path, text.encode(), b"eins\nzwei\n")
    source = open_one(tmp_path, src="a.en", tgt="a.de")
    assert pairs_of(source) == [Pair("one\u2028still one\rand\x0cone\x85more", "eins"), Pair("two", "zwei")]


def test_unequal_files_are_refused_with_both_counts(tmp_path: Path) -> None:
    write_parallel(tmp_path, b"1\n2\n3\n", b"1\n2\n")
    message = message_of(open_one(tmp_path, src="a.en", tgt="a.de"))
    assert message.startswith(f"{tmp_path}/a.en: 3 lines, but 2 in {tmp_path}/a.de")


def test_invalid_utf8_is_named_by_line(tmp_path: Path) -> None:
    write_parallel(tmp_path, b"1\n2\n3\n", b"1\n2\xff\n3\n")
    assert message_of(open_one(tmp_path, src="a.en", tgt="a.de")).startswith(f"{tmp_path}/a.de:2: ")


def test_a_truncated_gz_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.en.gz").write_bytes(gzip.compress(bytes(range(97, 123)) * 1000)[:40])
    (tmp_path / "a.de").write_bytes(b"x\n")
    with pytest.raises(DataError, match=r"a\.en\.gz: a truncated \.gz file"):
        open_one(tmp_path, src="a.en.gz", tgt="a.de")


def test_missing_things_are_said_before_reading(tmp_path: Path) -> None:
    write_parallel(tmp_path, b"x\n", b"y\n")
    with pytest.raises(DataError, match=r"a\.fr: no such file"):
        open_one(tmp_path, src="a.en", tgt="a.fr")
    with pytest.raises(DataError, match="a folder, not a file"):
        open_one(tmp_path, src="a.en", tgt=".")
    with pytest.raises(DataError, match=r"data\.root: no such folder: .*/nowhere"):
        open_one(tmp_path / "nowhere", src="a.en", tgt="a.de")
    with pytest.raises(DataError, match=r"b\.parquet: no such file"):
        open_one(tmp_path, path="b.parquet")
    with pytest.raises(DataError, match="saved: no such folder"):
        open_one(tmp_path, saved="saved")
    with pytest.raises(DataError, match="hub: no such folder"):
        open_one(tmp_path, hub="./hub")


def test_an_unknown_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train\.0\.path: unknown file type: 'a\.txt\.gz'"):
        open_one(tmp_path, path="a.txt.gz")


def test_names_are_unique_and_given_ones_win(tmp_path: Path) -> None:
    write_parallel(tmp_path, b"x\n", b"y\n")
    given = ("given", None, None, "given", None)
    configs = tuple(SourceConfig(src="a.en", tgt="a.de", name=name) for name in given)
    data = DataConfig(root=str(tmp_path), src="en", tgt="de", train=configs)
    names = [source.name for source in open_sources(configs, data, "train")]
    assert names == ["given", "a", "a-2", "given-2", "a-3"]


def test_sides(tmp_path: Path) -> None:
    write_parallel(tmp_path, b"x\n\nz\n", b"1\n2\n\n")
    assert read_sides(open_one(tmp_path, "test", src="a.en", tgt="a.de")) == (["x", "", "z"], ["1", "2", ""])
    write_parallel(tmp_path, b"", b"")
    with pytest.raises(DataError, match="there are no pairs"):
        read_sides(open_one(tmp_path, "test", src="a.en", tgt="a.de"))


# One file of pairs


def test_the_suffix_says_what_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"Hello\tHallo\n"))
    (tmp_path / "a.CSV").write_bytes(b"en,de\nHello,Hallo\n")
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(b'{"en": "Hello", "de": "Hallo"}\n'))
    for name, line in (("a.tsv.gz", 1), ("a.CSV", 2), ("a.jsonl.xz", 1)):
        source = open_one(tmp_path, path=name)
        assert list(source.read()) == [(line, PAIRS[0])]
        assert source.name == "a"
        assert source.location(line) == f"{tmp_path}/{name}:{line}"


# The demo


def test_the_demo(tmp_path: Path) -> None:
    source = open_one(tmp_path, demo="en-de", pairs=50)
    pairs = pairs_of(source)
    assert len(pairs) == 50
    assert pairs_of(source) == pairs
    assert source.location(3) == "demo en-de (train): pair 3"
    assert not set(pairs) & set(pairs_of(open_one(tmp_path, "test", demo="en-de", pairs=50)))


def test_the_demo_speaks_its_languages_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train\.0\.demo: the demo is en-de, but the data is de-en"):
        open_one(tmp_path, demo="en-de", pairs=50, languages="de-en")


# Fingerprints


def test_the_fingerprint_of_the_demo_stays_while_its_pairs_do(tmp_path: Path) -> None:
    """Earlier caches and runs are found again; `tests/unit/test_demo.py` pins the pairs."""
    fingerprint = open_one(tmp_path, demo="en-de", pairs=5).fingerprint()
    assert fingerprint == "07eb1fe65f790fb8a0f43d06bbfae958cf107a5617470610237377bdefaceb41"


def test_fingerprints_follow_what_is_read(tmp_path: Path) -> None:
    write_parallel(tmp_path, b"x\n", b"y\n")
    parallel = open_one(tmp_path, src="a.en", tgt="a.de")
    (tmp_path / "a.csv").write_text("en,de,fr\nx,y,z\n", encoding="utf-8")
    (tmp_path / "copy.csv").write_text("en,de,fr\nx,y,z\n", encoding="utf-8")
    fingerprints = [
        parallel.fingerprint(),
        open_one(tmp_path, src="a.de", tgt="a.en").fingerprint(),
        open_one(tmp_path, path="a.csv").fingerprint(),
        open_one(tmp_path, path="a.csv", columns=("en", "fr")).fingerprint(),
        open_one(tmp_path, demo="en-de", pairs=5).fingerprint(),
        open_one(tmp_path, demo="en-de", pairs=6).fingerprint(),
        open_one(tmp_path, "valid", demo="en-de", pairs=5).fingerprint(),
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert open_one(tmp_path, path="copy.csv").fingerprint() == fingerprints[2]
    write_parallel(tmp_path, b"x\n", b"z\n")
    assert parallel.fingerprint() != fingerprints[0]


def test_a_file_that_grows_while_it_is_read_is_named(tmp_path: Path) -> None:
    for side in ("src", "tgt"):
        (tmp_path / side).write_text("a\nb\n")
    data = DataConfig(root=str(tmp_path), src="en", tgt="de", train=(SourceConfig(src="src", tgt="tgt"),))
    [source] = open_sources(data.train, data, "train")
    assert len(list(source.read())) == 2
    for side in ("src", "tgt"):
        (tmp_path / side).write_text("a\nb\nc\n")
    with pytest.raises(DataError, match="has changed since its lines were counted"):
        list(source.read())


def test_a_line_without_a_visible_character_has_no_tag(tmp_path: Path) -> None:
    (tmp_path / "src").write_text("a dog\n\u200b\n \n", encoding="utf-8")
    (tmp_path / "tgt").write_text("ein Hund\nx\ny\n", encoding="utf-8")
    config = SourceConfig(src="src", tgt="tgt", tag="<de>")
    data = DataConfig(root=str(tmp_path), src="en", tgt="de", train=(config,))
    [source] = open_sources(data.train, data, "train")
    assert [pair.src for _, pair in source.read()] == ["<de> a dog", "\u200b", " "]
