"""Files read together, line by line."""

from __future__ import annotations

import pytest

from mtkit.cli.lines import zip_lines
from mtkit.errors import DataError


def test_a_file_that_was_not_given_has_empty_lines() -> None:
    assert list(zip_lines([iter("ab"), None], ["x", None])) == [["a", ""], ["b", ""]]


@pytest.mark.parametrize(
    ("first", "second", "where"),
    [("ab", ["x", "y", "", "z"], "one"), ("ab", ["x", "y", ""], "one"), ("abc", ["x", "y"], "two")],
)
def test_a_shorter_file_is_refused(first: str, second: list[str], where: str) -> None:
    with pytest.raises(DataError, match="ends before line 13 of the others") as caught:
        list(zip_lines([iter(first), iter(second)], ["one", "two"], 11))
    assert caught.value.where == where
