"""Noise on machine translations, and the filter of pairs that a machine made."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mtkit.errors import ConfigError, StorageError
from mtkit.languages import WORD
from mtkit.pipelines.noise import Noise
from mtkit.pipelines.resumable_file import ResumableFile
from mtkit.pipelines.translation_filter import TranslationFilter, summary
from mtkit.translation.options import LineProgress


def test_noise_deletes_replaces_and_moves_as_often_as_it_should() -> None:
    words = [f"w{i}" for i in range(20)]
    noise, counts = Noise("<blank>"), Counter[str]()
    for line in range(2000):
        found = noise.apply(" ".join(words), line).split(" ")
        counts["kept"] += len(found)
        counts["replaced"] += found.count("<blank>")
    share_kept, share_replaced = counts["kept"] / 40_000, counts["replaced"] / counts["kept"]
    assert share_kept == pytest.approx(0.9, abs=0.01)
    assert share_replaced == pytest.approx(0.1, abs=0.01)


def test_no_word_moves_further_than_three_places_and_some_do_move_three() -> None:
    words = [str(i) for i in range(30)]
    noise = Noise("_", delete=0.0, replace=0.0)
    moves = Counter[int]()
    for line in range(500):
        order = [int(word) for word in noise.apply(" ".join(words), line).split(" ")]
        assert sorted(order) == list(range(30))
        moves.update(abs(place - word) for place, word in enumerate(order))
    assert set(moves) == {0, 1, 2, 3}


def test_noise_depends_on_seed_and_line_alone() -> None:
    text = "one two three four five six seven eight"
    assert Noise("_").apply(text, 7) == Noise("_").apply(text, 7)
    assert len({Noise("_", seed=seed).apply(text, line) for seed in (1, 2) for line in range(20)}) > 30
    without_spaces = Noise("_", replace=0.0, delete=0.0).apply("床前明月光", 3)
    assert sorted(without_spaces) == sorted("床前明月光")
    mixed = [Noise("_", delete=0.0).apply("美 대통령은 我喜欢 iPhone 15", line) for line in range(20)]
    words = {"美", "대통령은", "我", "喜", "欢", "iPhone", "15", "_"}
    assert {word for text in mixed for word in WORD.findall(text)} == words
    assert any("iPhone 15" in text for text in mixed) and any("喜欢" in text for text in mixed)
    for same in ("ฉันใช้ Windows ทุกวัน แต่เขาไม่ใช้", "我用 Windows。你呢？", text):
        assert Noise("_", delete=0.0, replace=0.0, distance=0).apply(same, 1) == same
    assert {Noise("_", delete=0.5, replace=0.5).apply("Thanks!", line) for line in range(20)} == {
        "Thanks!",
        "_",
    }
    assert all(Noise("_", delete=1.0, replace=0.0).apply(text, line) in text.split() for line in range(20))
    assert Noise("_").apply("", 0) == ""


class _Words:
    """Tokenizers that split at spaces."""

    def encode(self, lines: list[str]) -> list[np.ndarray]:
        return [np.arange(len(line.split())) for line in lines]

    @property
    def src(self) -> _Words:
        return self

    tgt = src


def test_what_is_no_translation_is_left_out_by_reason() -> None:
    translation_filter = TranslationFilter(_Words(), max_ratio=2.0)  # type: ignore[arg-type]
    loop = "a b a b a b a b a b"
    pairs = {
        ("ein Hund", "a dog"): "kept",
        ("", "a dog"): "empty",
        ("ein Hund", " "): "empty",
        ("Ein  Hund", "ein hund"): "copied",
        ("eins zwei drei vier", "1 2 3 4 5 6 7 8"): "kept",
        ("eins zwei drei vier", "1 2 3 4 5 6 7 8 9"): "too unequal in length",
        ("eins", "1 2 3 4"): "kept",
        ("eins zwei drei vier fünf sechs", loop): "repeating themselves",
        (loop, loop.replace("a", "c")): "kept",
    }
    reasons = translation_filter.reasons(*map(list, zip(*pairs, strict=True)))
    assert reasons == list(pairs.values())
    unlimited = TranslationFilter(_Words(), max_ratio=None)  # type: ignore[arg-type]
    assert unlimited.reasons(["eins"], ["1 2 3 4 5 6 7 8 9"]) == ["kept"]
    texts = ["我们" * 6, "สวัสดี" * 4, "一只狗和另一只狗在雪地里玩"]
    loops = ["repeating themselves"] * 2
    assert unlimited.reasons(["ein Hund"] * 3, texts) == [*loops, "kept"]
    # Without tokenizers characters count, of which Chinese needs fewer.
    found = TranslationFilter(None).reasons(["我们今天去公园散步"] * 2, ["a" * 41, "a" * 80])
    assert found == ["kept", "too unequal in length"]
    assert summary(Counter(reasons)).startswith("4 of 9 pairs kept; left out: 2 empty, 1 copied")
    assert summary({"kept": 3}) == "3 of 3 pairs kept"


def test_a_resumable_file_is_known_from_its_first_byte_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_note, calls = ResumableFile._write_note, []

    def killed(self: ResumableFile, *, finished: bool = False) -> None:
        calls.append(finished)
        if len(calls) == 2:  # after the first piece, before its note
            raise KeyboardInterrupt
        write_note(self, finished=finished)

    monkeypatch.setattr(ResumableFile, "_write_note", killed)
    with pytest.raises(KeyboardInterrupt):
        ResumableFile(tmp_path / "out", {}).append("one\n", 1, {})
    assert (tmp_path / "out.part").exists()
    assert ResumableFile(tmp_path / "out", {}).num_lines == 0


def test_a_resumable_file_forgets_what_its_note_does_not_know(tmp_path: Path) -> None:
    path, job = tmp_path / "out", {"seed": 1}
    first = ResumableFile(path, job)
    first.append("one\n", 1, {"kept": 1})
    with open(tmp_path / "out.part", "a", encoding="utf-8") as part:
        part.write("half of tw")
    assert not path.exists()

    with pytest.raises(StorageError, match="another process is writing this file"):
        ResumableFile(path, job, fresh=True)
    first.close()
    again = ResumableFile(path, job)
    assert (again.num_lines, again.counts, again.is_finished) == (1, {"kept": 1}, False)
    again.append("two\n", 1, {"kept": 1})
    again.finish()
    assert path.read_text() == "one\ntwo\n" and not (tmp_path / "out.part").exists()

    assert ResumableFile(path, job).is_finished
    with pytest.raises(ConfigError, match="another job"):
        ResumableFile(path, {"seed": 2})
    assert not ResumableFile(path, {"seed": 2}, fresh=True).is_finished
    path.write_text("by hand", encoding="utf-8")
    with pytest.raises(ConfigError, match="was modified"):
        ResumableFile(path, job)
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="not of this command"):
        ResumableFile(tmp_path / "mine", job)


def test_progress_tells_speed_and_time_left_of_what_is_translated_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, said = [100.0], list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = LineProgress(said.append, total=3000, done=1000)
    for _ in range(4):
        now[0] += 4
        progress(100)
    assert said == [
        "1,200 of 3,000 lines, 25 lines/s, time left 1 min 12 s",
        "1,400 of 3,000 lines, 25 lines/s, time left 1 min 04 s",
    ]
    LineProgress(said.append)(5)
    assert len(said) == 2
    progress = LineProgress(said.append, task="reading")
    now[0] += 8
    assert list(progress.over(range(250))) == [*range(250)]
    assert said[2:] == ["reading: 100 lines, 12 lines/s"]
