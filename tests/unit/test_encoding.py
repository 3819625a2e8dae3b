"""An interrupted encoding continues where it stopped, and the file is the same, byte for byte."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mtkit.config.sections import DataConfig, SourceConfig, TokenizerConfig
from mtkit.data import corpus, encoding
from mtkit.data.corpus import Corpus
from mtkit.data.encoding import encode_corpus
from mtkit.data.filters import DigestSet
from mtkit.data.sources import open_sources
from mtkit.data.tokenizer import Tokenizer, Tokenizers, make_tokenizers
from tests import tiny

ROWS, AT_ONCE = 64, 20
NUM_PAIRS = 1000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sources, whose pairs are left out for every reason, and a tokenizer."""
    folder = tmp_path_factory.mktemp("root")
    rng, pairs = random.Random(0), tiny.pairs(NUM_PAIRS, seed=0)
    for place in range(0, NUM_PAIRS, 7):
        src, tgt = pairs[place]
        pairs[place] = rng.choice(
            [("", tgt), (src * 9, tgt), ("a", tgt * 2), pairs[place // 2], (src, " \u2028")]
        )
    for name, part in (("one", pairs[:333]), ("two", pairs[333:])):
        for side, lines in zip(("src", "tgt"), zip(*part, strict=True), strict=True):
            tiny.write_lines(folder / f"{name}.{side}", list(lines))
    sources = open_sources(data(folder, folder).train, data(folder, folder), "train")
    tokenizers = make_tokenizers(TokenizerConfig(vocab_size=96, type="bpe", byte_fallback=False),
                                 (pair for source in sources for _, pair in source.read()))  # fmt: skip
    tokenizers.src.save(folder / "tokenizer.model")
    return folder


def data(root: Path, cache: Path) -> DataConfig:
    train = tuple(SourceConfig(src=f"{name}.src", tgt=f"{name}.tgt") for name in ("one", "two"))
    return DataConfig(root=str(root), src="en", tgt="fr", train=train, cache=str(cache), drop_duplicates=True,
                      max_length=30, max_length_ratio=2.0)  # fmt: skip


def nothing_to_say(value: object) -> None:
    """Say nothing."""


def encode(root: Path, cache: Path, on_progress: Callable[[int], None] = nothing_to_say,
           say: Callable[[str], None] = nothing_to_say) -> Corpus:  # fmt: skip
    config = data(root, cache)
    tokenizer = Tokenizer.load(root / "tokenizer.model")
    return encode_corpus(open_sources(config.train, config, "train"), Tokenizers(tokenizer, tokenizer, True), config,
                         on_progress, say)  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make record batches and chunks hold only a few pairs."""
    for module in (corpus, encoding):
        monkeypatch.setattr(module, "ROWS", ROWS)
    monkeypatch.setattr(encoding, "_CHUNK_PAIRS", AT_ONCE)


@pytest.fixture
def whole(root: Path, tmp_path: Path, small: None) -> dict[str, bytes]:
    """The files of an undisturbed encoding."""
    encode(root, tmp_path / "whole")
    return files(tmp_path / "whole")


def files(cache: Path) -> dict[str, bytes]:
    """Return the files of the only corpus in the cache."""
    (folder,) = (cache / "corpora").iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class BrokenOff(BaseException):
    """Stands for a signal."""


def break_off(root: Path, cache: Path, after: int) -> Path:
    """Encode until this many pairs have been read, and return the folder left behind."""

    num_read = 0

    def stop(number: int) -> None:
        nonlocal num_read
        num_read += number
        if num_read >= after:
            raise BrokenOff

    with pytest.raises(BrokenOff):
        encode(root, cache, stop)
    (folder,) = (cache / "corpora").iterdir()
    return folder


def progress(root: Path, cache: Path) -> list[int]:
    """Encode to the end and return the numbers of pairs that were reported."""
    told: list[int] = []
    encode(root, cache, told.append)
    return told


def test_it_goes_on_where_it_stopped(root: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    folder = break_off(root, tmp_path / "cache", 700)
    break_off(root, tmp_path / "cache", 900)
    marks = len((folder / "progress.jsonl").read_text().splitlines())
    assert marks > 700 // ROWS // 2
    first = progress(root, tmp_path / "cache")[0]
    assert 700 < first < 900, "the pairs read for the last full record batch"
    assert files(tmp_path / "cache") == whole
    assert set(whole) == {"pairs.arrow", "info.json"}
    assert all(
        reason in whole["info.json"].decode() for reason in ("empty", "too_long", "ratio", "duplicate")
    )
    assert b": 0" not in whole["info.json"]


def nothing(folder: Path) -> None:
    """Do no damage."""


def flip_the_middle(folder: Path) -> None:
    content = bytearray((folder / "pairs.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "pairs.arrow").write_bytes(content)


def cut_the_file(folder: Path) -> None:
    content = (folder / "pairs.arrow").read_bytes()
    (folder / "pairs.arrow").write_bytes(content[: len(content) // 2])


def flip_a_mark(folder: Path) -> None:
    lines = (folder / "progress.jsonl").read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace('"kept": 2', '"kept": 3')
    (folder / "progress.jsonl").write_text("".join(lines))


def cut_a_mark(folder: Path) -> None:
    content = (folder / "progress.jsonl").read_bytes()
    (folder / "progress.jsonl").write_bytes(content[: len(content) // 2])


def kill_while_taking_over(folder: Path) -> None:
    (folder / "pairs.arrow").rename(folder / "before.arrow")
    (folder / "pairs.arrow").write_bytes((folder / "before.arrow").read_bytes()[:2000])


def empty_the_file(folder: Path) -> None:
    (folder / "pairs.arrow").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "least"),
    [
        (nothing, 600),
        (kill_while_taking_over, 600),
        (flip_the_middle, 200),
        (cut_the_file, 200),
        (flip_a_mark, 200),
        (cut_a_mark, 200),
        (empty_the_file, AT_ONCE),
    ],
)
def test_only_what_is_good_is_gone_on_with(
    root: Path, tmp_path: Path, whole: dict[str, bytes], damage: Callable[[Path], None], least: int
) -> None:
    damage(break_off(root, tmp_path / "cache", 800))
    first = progress(root, tmp_path / "cache")[0]
    assert least <= first < (800 if least == 600 else 600)
    assert files(tmp_path / "cache") == whole


def test_killed_before_it_had_its_name(
    root: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "publish_folder", lambda *_: (_ for _ in ()).throw(BrokenOff))
        with pytest.raises(BrokenOff):
            encode(root, tmp_path / "cache")
    assert progress(root, tmp_path / "cache") == [], "nothing was read again"
    assert files(tmp_path / "cache") == whole


SLOWED = """
import sys, time
from pathlib import Path
from mtkit.data import corpus, encoding
from tests.unit import test_encoding

corpus.ROWS = encoding.ROWS = test_encoding.ROWS
encoding._CHUNK_PAIRS = test_encoding.AT_ONCE
test_encoding.encode(Path(sys.argv[1]), Path(sys.argv[2]), lambda number: time.sleep(0.1))
"""


def test_killed_for_real_while_another_waits_for_it(
    root: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """The process, slowed down so that it is still alive then, is killed with SIGKILL; the other one goes on."""
    cache = tmp_path / "cache"
    words = [sys.executable, "-c", SLOWED, str(root), str(cache)]
    process = subprocess.Popen(words, env=tiny.child_environment(), cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    marks: list[Path] = []
    while not (marks and len(marks[0].read_bytes().splitlines()) >= 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        marks = list(cache.glob("corpora/.*.partial.tmp/progress.jsonl"))
        time.sleep(0.01)
    said: list[str] = []
    told: list[int] = []

    def say(line: str) -> None:
        assert process.poll() is None and not told
        said.append(line)
        process.kill()

    encode(root, cache, told.append, say)
    process.wait()
    assert said == ["waiting for another process that encodes the same pairs"]
    assert told[0] > 2 * ROWS and sum(told) == NUM_PAIRS
    assert files(cache) == whole


def test_a_set_of_digests() -> None:
    """DigestSet agrees with Python's set, for digests of all partitions, repeated in the same call and later."""
    rng, digests, seen = np.random.default_rng(0), DigestSet(), set[int]()
    for count in (1, 0, 50, 3000, 7, 500):
        values = rng.integers(0, 2**64, count, dtype=np.uint64)
        values = np.concatenate([values, values[::3], rng.integers(0, 300, count, dtype=np.uint64)])
        expected = []
        for value in values.tolist():
            expected.append(value not in seen)
            seen.add(value)
        assert digests.add(values).tolist() == expected
    assert not digests.add(np.array(sorted(seen), np.uint64)).any()
    assert sum(len(known) for bucket in digests._buckets for known in bucket) == len(seen)


def test_memory_of_a_set_of_digests() -> None:
    rng, digests, count, at_once = np.random.default_rng(0), DigestSet(), 400_000, 1 << 12
    tracemalloc.start()
    try:
        for _ in range(count // at_once):
            digests.add(rng.integers(0, 2**64, at_once, dtype=np.uint64))
        assert tracemalloc.get_traced_memory()[1] < 12 * count
    finally:
        tracemalloc.stop()
