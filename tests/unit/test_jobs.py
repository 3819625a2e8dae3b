"""Shards, and the progress of an interrupted job."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtkit.cli.jobs import Job, Shard, count_finished_lines, truncate_unfinished
from mtkit.cli.line_format import LineFormat
from mtkit.errors import ConfigError
from mtkit.files import LineReader


def lines_of(job: Job) -> list[str]:
    return list(job.select(LineReader(job.files)))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_shards_partition_the_input(tmp_path: Path, count: int) -> None:
    (tmp_path / "a").write_text("".join(f"{i}\n" for i in range(9)))
    (tmp_path / "b").write_text("".join(f"{i}\n" for i in range(9, 13)))
    files = [str(tmp_path / "a"), str(tmp_path / "b")]
    parts = [lines_of(Job.plan(files, Shard(i + 1, count))) for i in range(count)]
    assert [line for part in parts for line in part] == [str(i) for i in range(13)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_shard_resumes_where_it_stopped(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("".join(f"{i}\n" for i in range(10)))
    job = Job.plan([str(tmp_path / "a")], Shard(2, 2)).skip(3)
    assert (lines_of(job), job.first, job.total) == (["8", "9"], 8, 2)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/", "-1/2", "1/2/3"])
def test_an_invalid_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be i/n"):
        Shard.parse(text)


def test_stdin_cannot_be_sharded() -> None:
    with pytest.raises(ConfigError, match="stdin cannot be sharded"):
        Job.plan(["-"], Shard(1, 2))


PLAIN, N_BEST = LineFormat(), LineFormat(n_best=True)
JSON, N_BEST_JSON = LineFormat(json=True), LineFormat(n_best=True, json=True)
OBJECT = '{"text": "a", "score": -0.25}\n'
OBJECT_OF_TWO = '{"text": "a", "score": -0.25, "n_best": [{"text": "a", "score": -0.25}]}\n'


@pytest.mark.parametrize(
    ("text", "line_format", "first", "done", "left"),
    [
        ("", PLAIN, 1, 0, ""),
        ("a\nb\n", PLAIN, 1, 2, "a\nb\n"),
        ("a\nb", PLAIN, 1, 1, "a\n"),
        ("\n\n", PLAIN, 1, 2, "\n\n"),
        ("half a li", PLAIN, 1, 0, ""),
        ("-0.500000\ta\n-1.000000\tb", LineFormat(scores=True), 1, 1, "-0.500000\ta\n"),
        ("a ||| 0-0 1-1\n ||| \nb ||| 0-", LineFormat(alignment=True), 1, 2, "a ||| 0-0 1-1\n ||| \n"),
        ("-0.500000\ta ||| 0-0\n", LineFormat(scores=True, alignment=True), 1, 1, "-0.500000\ta ||| 0-0\n"),
        (
            "1 ||| a ||| -1.000000\n1 ||| b ||| -2.000000\n2 ||| c ||| -1.000000\n2 ||| d",
            N_BEST,
            1,
            1,
            "1 ||| a ||| -1.000000\n1 ||| b ||| -2.000000\n",
        ),
        (
            "5 ||| a ||| -1.000000\n6 |||  ||| 0.000000\n7 ||| c ||| -1.000000\n",
            N_BEST,
            5,
            2,
            "5 ||| a ||| -1.000000\n6 |||  ||| 0.000000\n",
        ),
        ("", N_BEST, 1, 0, ""),
        (OBJECT + '{"text"', JSON, 1, 1, OBJECT),
        (OBJECT_OF_TWO * 2, N_BEST_JSON, 1, 2, OBJECT_OF_TWO * 2),
        ("1 ||| a", N_BEST, 1, 0, ""),
    ],
)
def test_finished_lines_are_counted_and_the_rest_is_cut_off(
    tmp_path: Path, text: str, line_format: LineFormat, first: int, done: int, left: str
) -> None:
    path = tmp_path / "out"
    assert count_finished_lines(str(path), line_format, first) == 0
    truncate_unfinished(str(path), line_format)
    assert not path.exists()
    path.write_text(text)
    assert count_finished_lines(str(path), line_format, first) == done
    assert path.read_text() == text
    truncate_unfinished(str(path), line_format)
    assert path.read_text() == left


def test_only_the_end_of_an_output_is_read_to_cut_it_off(tmp_path: Path) -> None:
    path, whole = tmp_path / "out", b"1 ||| \xff ||| -1.000000\n"
    path.write_bytes(whole + b"11 ||| c ||| -1.000000\n11 ||| d ||| -2.000000\n")
    truncate_unfinished(path, N_BEST)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("text", "line_format", "what"),
    [
        ("1 ||| a ||| -1.000000\n", PLAIN, "was written with --n-best"),
        ("1 |||  ||| 0.000000\n", LineFormat(alignment=True), "was written with --n-best"),
        ("-0.250000\ta\n", PLAIN, "was written with --scores"),
        ("a ||| 0-0 1-2\n", PLAIN, "was written with --alignment"),
        (" ||| \n", PLAIN, "was written with --alignment"),
        ("1 ||| chat ||| 0.900000 ||| le chat\n", PLAIN, "was written with --alternatives"),
        ("a\n", N_BEST, "was written without --n-best"),
        ("a\n", JSON, "was written without --json"),
        (OBJECT, PLAIN, "was written with --json"),
        (OBJECT, N_BEST_JSON, "was written without --n-best"),
        (OBJECT_OF_TWO, JSON, "was written with --n-best"),
        ("a\n", LineFormat(scores=True), "was written without --scores"),
        ("a\n", LineFormat(alignment=True), "was written without --alignment"),
        ("-0.250000\ta\n", LineFormat(alignment=True), "was written with --scores"),
        ("3 ||| a ||| -1.000000\n", N_BEST, "is not the output of a job that begins at line 1"),
    ],
)
def test_the_output_of_another_job_is_not_touched(
    tmp_path: Path, text: str, line_format: LineFormat, what: str
) -> None:
    path = tmp_path / "out"
    path.write_text(f"{text}a line that was not en")
    with pytest.raises(ConfigError, match=what):
        count_finished_lines(str(path), line_format)
    assert path.read_text() == f"{text}a line that was not en"


def test_an_output_longer_than_the_job_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a\nb\n")
    with pytest.raises(ConfigError, match="the output has 3 lines, but there are 2 to translate"):
        Job.plan([str(tmp_path / "a")], Shard()).skip(3)
    assert Job(("-",)).skip(3).first == 3
