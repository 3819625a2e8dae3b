"""Shards, and how far an interrupted job came."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtkit.decoding.jobs import Job, Shard, num_done
from mtkit.errors import ConfigError


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_shards_are_the_whole(tmp_path: Path, count: int) -> None:
    (tmp_path / "a").write_text("".join(f"{i}\n" for i in range(9)))
    (tmp_path / "b").write_text("".join(f"{i}\n" for i in range(9, 13)))
    files = [str(tmp_path / "a"), str(tmp_path / "b")]
    parts = [list(Job.plan(files, Shard(i + 1, count)).read()) for i in range(count)]
    assert [line for part in parts for line in part] == [str(i) for i in range(13)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_shard_goes_on_where_it_stopped(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("".join(f"{i}\n" for i in range(10)))
    job = Job.plan([str(tmp_path / "a")], Shard(2, 2), 3)
    assert (list(job.read()), job.first, job.total) == (["8", "9"], 8, 2)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/", "-1/2", "1/2/3"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(ConfigError, match="is no part"):
        Shard.parse(text)


def test_stdin_cannot_be_divided() -> None:
    with pytest.raises(ConfigError, match="only files can be divided"):
        Job.plan(["-"], Shard(1, 2))


@pytest.mark.parametrize(
    ("text", "n_best", "done", "left"),
    [
        ("", False, 0, ""),
        ("a\nb\n", False, 2, "a\nb\n"),
        ("a\nb", False, 1, "a\n"),
        ("half a li", False, 0, ""),
        (
            "1 ||| a ||| -1\n1 ||| b ||| -2\n2 ||| c ||| -1\n2 ||| d",
            True,
            1,
            "1 ||| a ||| -1\n1 ||| b ||| -2\n",
        ),
        ("5 ||| a ||| -1\n6 ||| b ||| -2\n7 ||| c ||| -1\n", True, 2, "5 ||| a ||| -1\n6 ||| b ||| -2\n"),
        ("", True, 0, ""),
    ],
)
def test_what_is_done(tmp_path: Path, text: str, n_best: bool, done: int, left: str) -> None:
    path = tmp_path / "out"
    assert num_done(str(path), n_best) == 0
    path.write_text(text)
    assert num_done(str(path), n_best) == done
    assert path.read_text() == left
