"""The encoded corpus: what the filters keep, equality with direct encoding, the cache."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mtkit.config.sections import DataConfig, SourceConfig, TokenizerConfig
from mtkit.data import cache, corpus, encoding
from mtkit.data.corpus import Corpus
from mtkit.data.encoding import encode_corpus, matches_fingerprint
from mtkit.data.filters import FilterCounts
from mtkit.data.readers import NumberedPairs, Pair
from mtkit.data.sources import DEFAULT_HASHES, ParallelFiles, Source, open_sources
from mtkit.data.tables import Hashes
from mtkit.data.tokenizer import Tokenizers, make_tokenizers
from mtkit.demo import EARLIER_GENERATORS
from mtkit.errors import DataError, StorageError
from mtkit.files import FolderLock, sha256_file

WORDS = [
    ("one", "eins"),
    ("two", "zwei"),
    ("three", "drei"),
    ("four", "vier"),
    ("five", "fünf"),
    ("six", "sechs"),
]
PAIRS = [
    Pair(" ".join(word[0] for word in order), " ".join(word[1] for word in order))
    for first in range(len(WORDS))
    for last in range(first, len(WORDS))
    for order in (WORDS[first : last + 1], WORDS[first : last + 1][::-1])
]


@dataclass(frozen=True)
class Setting:
    """A folder with corpora and their cache."""

    root: Path
    tokenizers: Tokenizers

    def write(self, pairs: Sequence[Pair], name: str = "train") -> None:
        for side, texts in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
            (self.root / f"{name}.{side}").write_text(
                "".join(f"{text}\n" for text in texts), encoding="utf-8"
            )

    def data(self, names: Sequence[str] = ("train",), **keys: Any) -> DataConfig:
        train = tuple(SourceConfig(src=f"{name}.en", tgt=f"{name}.de") for name in names)
        folder = str(self.root / "cache")
        return DataConfig(root=str(self.root), src="en", tgt="de", train=train, cache=folder, **keys)

    def sources(self, data: DataConfig) -> list[Source]:
        return open_sources(data.train, data, "train")

    def encode(self, names: Sequence[str] = ("train",), **keys: Any) -> Corpus:
        data = self.data(names, **keys)
        return encode_corpus(self.sources(data), self.tokenizers, data)

    def entries(self) -> list[Path]:
        return sorted((self.root / "cache" / "corpora").iterdir())


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    return make_tokenizers(TokenizerConfig(vocab_size=320), PAIRS)


@pytest.fixture
def setting(tmp_path: Path, tokenizers: Tokenizers) -> Setting:
    setting = Setting(tmp_path, tokenizers)
    setting.write(PAIRS)
    return setting


def pairs_of(encoded: Corpus, tokenizers: Tokenizers) -> list[Pair]:
    numbers = range(len(encoded))
    src = tokenizers.src.decode([encoded.src(i) for i in numbers])
    return list(map(Pair, src, tokenizers.tgt.decode([encoded.tgt(i) for i in numbers])))


@pytest.mark.parametrize("rows", [1, 7, corpus.ROWS])
def test_it_equals_direct_encoding(setting: Setting, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(corpus, "ROWS", rows)
    monkeypatch.setattr(encoding, "ROWS", rows)
    monkeypatch.setattr(encoding, "_CHUNK_PAIRS", 5)
    encoded = setting.encode()
    assert len(encoded) == len(PAIRS)
    for get, lengths, texts, tokenizer in (
        (encoded.src, encoded.src_lengths, [pair.src for pair in PAIRS], setting.tokenizers.src),
        (encoded.tgt, encoded.tgt_lengths, [pair.tgt for pair in PAIRS], setting.tokenizers.tgt),
    ):
        expected = [row.tolist() for row in tokenizer.encode(texts)]
        assert [get(i).tolist() for i in range(len(PAIRS))] == expected
        assert lengths.tolist() == [len(row) for row in expected]
        assert (lengths.dtype, get(0).dtype) == (np.int16, np.int32)


@pytest.mark.parametrize("longest", [2, 2**15 - 2, 2**15 - 1, 2**15])
def test_a_length_and_its_frame_fit_their_type(longest: int) -> None:
    type_of_lengths = corpus._length_type(longest)
    assert np.full(1, longest, type_of_lengths)[0] + 1 == longest + 1
    assert type_of_lengths is (np.int16 if longest < 2**15 - 1 else np.int32)


def test_rows_are_views_that_cannot_be_written_to(setting: Setting) -> None:
    encoded = setting.encode()
    first, second = encoded.src(3), encoded.src(3)
    assert np.shares_memory(first, second)
    assert not first.flags.owndata
    assert not first.flags.writeable


def test_places_are_lines_of_files(setting: Setting) -> None:
    setting.write([Pair("", "x"), *PAIRS[:3]], "other")
    encoded = setting.encode(["train", "other"])
    assert len(encoded) == len(PAIRS) + 3
    assert encoded.location(0) == f"{setting.root}/train.en:1"
    assert encoded.location(len(PAIRS)) == f"{setting.root}/other.en:2"
    with pytest.raises(IndexError):
        encoded.location(len(encoded))


@dataclass(frozen=True)
class OnePair(Source):
    """A source of one pair or none."""

    pairs: int

    def read(self) -> NumberedPairs:
        yield from [(7, PAIRS[0])] * self.pairs

    def location(self, number: int) -> str:
        return f"{self.name}:{number}"

    def fingerprint(self, hashes: Hashes = DEFAULT_HASHES) -> str:
        return self.name


def test_places_in_more_sources_than_16_bits_count(setting: Setting) -> None:
    sources = [OnePair(str(number), number % 40_000 == 0) for number in range(40_001)]
    data = setting.data()
    for encoded in (encode_corpus(sources, setting.tokenizers, data) for _ in range(2)):  # written, then read
        assert [encoded.location(0), encoded.location(1)] == ["0:7", "40000:7"]


def test_a_folder_of_before_with_16_bits_is_read(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "SCHEMA", corpus._schema(pa.int16()))
        before = setting.encode()
    (entry,) = setting.entries()
    written = entry.stat().st_mtime_ns
    encoded = setting.encode()
    assert entry.stat().st_mtime_ns == written
    assert [encoded.location(i) for i in range(len(PAIRS))] == [before.location(i) for i in range(len(PAIRS))]
    assert pairs_of(encoded, setting.tokenizers) == PAIRS


def test_filters_leave_out_and_count(setting: Setting) -> None:
    kept = [PAIRS[0], Pair(" one ", "eins "), Pair("one", "eins eins eins")]
    dropped = [
        Pair("", "eins"),
        Pair(" \u2028", "eins"),
        Pair("\u200b", "eins"),
        Pair("one " * 9, "eins"),
        PAIRS[0],
    ]
    setting.write([*kept, *dropped, Pair("x" * 1_000_000, "eins")])
    encoded = setting.encode(max_length=8, max_length_ratio=2.5)
    assert encoded.counts == FilterCounts(kept=3, empty=3, too_long=2, ratio=1)
    assert encoded.counts.num_read == 9
    assert encoded.counts.summary() == (
        "3 of 9 pairs kept; left out: 3 empty, 2 too long, 1 too unequal in length"
    )
    assert pairs_of(encoded, setting.tokenizers) == [PAIRS[0]] * 3
    encoded = setting.encode(max_length=8, drop_duplicates=True)
    assert encoded.counts == FilterCounts(kept=2, empty=3, too_long=2, duplicate=2)
    assert FilterCounts(kept=1000).summary() == "1,000 of 1,000 pairs kept"


def test_nothing_left(setting: Setting) -> None:
    setting.write([Pair("", "x"), Pair("one " * 50, "x")])
    with pytest.raises(
        DataError, match="no pair is left to train on: 0 of 2 pairs kept; left out: 1 empty, 1 too long"
    ):
        setting.encode(max_length=5)
    for name in ("train.en", "train.de"):
        (setting.root / name).write_bytes(b"")
    with pytest.raises(DataError, match="no pair is left to train on: 0 of 0 pairs kept"):
        setting.encode()
    assert setting.entries() == []


def test_a_hit_does_not_read_the_text(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    first = setting.encode()

    def untouched(self: ParallelFiles) -> None:
        raise AssertionError

    monkeypatch.setattr(ParallelFiles, "read", untouched)
    again = setting.encode()
    assert again.fingerprint == first.fingerprint
    assert again.counts == first.counts
    assert pairs_of(again, setting.tokenizers) == PAIRS


def test_other_content_is_another_corpus(setting: Setting) -> None:
    fingerprints = [setting.encode().fingerprint]
    fingerprints.append(setting.encode(max_length=100).fingerprint)
    fingerprints.append(setting.encode(["train", "train"]).fingerprint)
    data, separate = setting.data(), TokenizerConfig(vocab_size=320, joint=False)
    other = make_tokenizers(separate, PAIRS)
    fingerprints.append(encode_corpus(setting.sources(data), other, data).fingerprint)
    times = (setting.root / "train.en").stat()
    setting.write([Pair("One", "eins"), *PAIRS[1:]])
    os.utime(setting.root / "train.en", ns=(times.st_atime_ns, times.st_mtime_ns))
    fingerprints.append(setting.encode().fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)


def test_the_same_content_elsewhere_is_the_same_corpus(setting: Setting) -> None:
    first = setting.encode()
    setting.write(PAIRS, "copy")
    copy = setting.encode(["copy"])
    assert copy.fingerprint == first.fingerprint
    assert copy.location(0) == f"{setting.root}/copy.en:1"
    assert len(setting.entries()) == 1


def test_packed_anew_it_is_the_same_corpus(setting: Setting) -> None:
    first = setting.encode()
    data = setting.data()
    for side, pack in (("en", gzip.compress), ("de", lzma.compress)):
        suffix = {"en": "gz", "de": "xz"}[side]
        text = (setting.root / f"train.{side}").read_bytes()
        windows = b"\xef\xbb\xbf" + text.removesuffix(b"\n").replace(b"\n", b"\r\n")
        (setting.root / f"other.{side}.{suffix}").write_bytes(pack(windows))
    packed = data.model_copy(update={"train": (SourceConfig(src="other.en.gz", tgt="other.de.xz"),)})
    sources = setting.sources(packed)
    assert encode_corpus(sources, setting.tokenizers, packed).fingerprint == first.fingerprint
    assert len(setting.entries()) == 1
    hashes = Hashes(of_text=sha256_file)  # as mtkit 0.1.0 did
    before = [
        encoding._fingerprint(s, setting.tokenizers, data, hashes) for s in (sources, setting.sources(data))
    ]
    assert before[1] == first.fingerprint != before[0]
    assert matches_fingerprint(before[0], sources, setting.tokenizers, packed)
    assert not matches_fingerprint(before[0], setting.sources(data), setting.tokenizers, data)


def test_a_corpus_of_the_demo_of_before_is_known(setting: Setting) -> None:
    data = setting.data().model_copy(update={"train": (SourceConfig(demo="en-de", pairs=5),)})
    (demo,) = sources = open_sources(data.train, data, "train")
    others = open_sources([SourceConfig(demo="en-de", pairs=6)], data, "train")
    earlier = [Hashes(generator=generator) for generator in EARLIER_GENERATORS]
    as_in_0_1_0 = "2bd1c55d93454dd83975a7c97ecc38dba51ffcc25b2b4f32a009baedccd1e1fc"
    assert demo.fingerprint(earlier[-1]) == as_in_0_1_0 != demo.fingerprint()
    for before in earlier:
        fingerprint = encoding._fingerprint(sources, setting.tokenizers, data, before)
        assert matches_fingerprint(fingerprint, sources, setting.tokenizers, data)
        assert not matches_fingerprint(fingerprint, others, setting.tokenizers, data)


@pytest.mark.parametrize("rows", [3, corpus.ROWS])
def test_the_first_difference(setting: Setting, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(corpus, "ROWS", rows)
    monkeypatch.setattr(encoding, "ROWS", rows)
    first = setting.encode()
    for name, pairs, difference in (
        ("same", [*PAIRS, Pair("", "")], None),
        ("more", [*PAIRS, PAIRS[0]], len(PAIRS)),
        ("less", PAIRS[:-1], len(PAIRS) - 1),
        ("exchanged", [*PAIRS[:5], PAIRS[6], PAIRS[5], *PAIRS[7:]], 5),
        ("one side", [*PAIRS[:8], Pair(PAIRS[8].src, PAIRS[9].tgt), *PAIRS[9:]], 8),
    ):
        setting.write(pairs, name)
        other = setting.encode([name])
        assert other.first_difference(first) == first.first_difference(other) == difference, name


@pytest.mark.parametrize(
    "what", ["truncated", "longer", "no info", "bad info", "no pairs", "other", "scrambled"]
)
def test_a_damaged_entry_is_made_again(setting: Setting, what: str) -> None:
    setting.encode()
    (entry,) = setting.entries()
    pairs, info = entry / "pairs.arrow", entry / "info.json"
    match what:
        case "truncated":
            pairs.write_bytes(pairs.read_bytes()[:-1000])
        case "longer":
            pairs.write_bytes(pairs.read_bytes() + b"x")
        case "no info":
            info.unlink()
        case "bad info":
            info.write_text("{")
        case "no pairs":
            pairs.unlink()
        case "other":
            info.write_text(json.dumps({**json.loads(info.read_text()), "fingerprint": "0" * 64}))
        case "scrambled":
            pairs.write_bytes(pairs.read_bytes()[::-1])
    assert pairs_of(setting.encode(), setting.tokenizers) == PAIRS
    assert setting.entries() == [entry]
    assert pairs_of(setting.encode(), setting.tokenizers) == PAIRS


def test_several_at_once(setting: Setting) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = [future.result() for future in [pool.submit(setting.encode) for _ in range(8)]]
    assert all(pairs_of(encoded, setting.tokenizers) == PAIRS for encoded in done)
    assert len(setting.entries()) == 1


def test_a_failure_leaves_nothing_and_abandoned_folders_are_swept_out(setting: Setting) -> None:
    setting.encode()
    (entry,) = setting.entries()
    old, young, held = (entry.with_name(f".{name}.tmp") for name in ("old", "young", "held"))
    for folder in (old, young, held):
        folder.mkdir()
        (folder / "pairs.arrow").write_bytes(b"x")
    two_days_ago = time.time() - 2 * 24 * 3600
    for path in (old / "pairs.arrow", old, held / "pairs.arrow", held):
        os.utime(path, (two_days_ago, two_days_ago))
    (setting.root / "train.en").write_bytes(
        "".join(f"{pair.src}\n" for pair in PAIRS[:-1]).encode() + b"\xff\n"
    )
    with FolderLock(held):  # by a process that was suspended
        os.utime(held / ".lock", (two_days_ago, two_days_ago))
        os.utime(held, (two_days_ago, two_days_ago))
        with pytest.raises(DataError, match=rf"train\.en:{len(PAIRS)}: not UTF-8"):
            setting.encode()
        assert setting.entries() == sorted([entry, young, held])


def test_progress_counts_the_pairs_read(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_CHUNK_PAIRS", 20)
    data = setting.data()
    told: list[int] = []
    encode_corpus(setting.sources(data), setting.tokenizers, data, told.append)
    assert told == [20, 20, 2]


def test_a_cache_that_cannot_be_written(setting: Setting) -> None:
    (setting.root / "cache").write_bytes(b"a file")
    with pytest.raises(
        StorageError, match=f"^{setting.root}/cache: .*; data.cache .* MTKIT_CACHE, sets the cache folder"
    ):
        setting.encode()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, setting: Setting) -> None:
    data = setting.data()
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("MTKIT_CACHE", "~/m")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.cache_folder(data) == setting.root / "cache"
    unnamed = data.model_copy(update={"cache": None})
    assert cache.cache_folder(unnamed) == Path("/home/somebody/m")
    monkeypatch.delenv("MTKIT_CACHE")
    assert cache.cache_folder(unnamed) == Path("/x/mtkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder(unnamed) == Path("/home/somebody/.cache/mtkit")
    monkeypatch.setattr(os.path, "expanduser", str)  # as for a user that has no home
    with pytest.raises(StorageError, match=r"^~/\.cache/mtkit: no such home folder .*MTKIT_CACHE"):
        cache.cache_folder(unnamed)


def test_hashes_are_remembered_of_files_that_have_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / os.fsdecode(b"file \xff")  # names need not be UTF-8
    path.write_bytes(b"one")
    (tmp_path / "hashes").mkdir()
    memo = cache.HashCache(tmp_path / "hashes", lambda path: hashed[path.read_bytes()])
    hashed = {b"one": "1" * 64, b"two, longer": "2" * 64}
    fresh = memo(path)
    assert list((tmp_path / "hashes").iterdir()) == []
    monkeypatch.setattr(cache, "_SETTLED_NS", 0)
    assert memo(path) == fresh
    assert len(list((tmp_path / "hashes").iterdir())) == 1
    hashed[b"one"] = "not asked for"
    assert memo(path) == fresh
    assert cache.HashCache(tmp_path / "hashes", lambda _: "3" * 64, "another kind ")(path) == "3" * 64
    path.write_bytes(b"two, longer")
    assert memo(path) == "2" * 64
