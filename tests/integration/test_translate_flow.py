"""Translations are written as soon as there is input; tested with real processes that wait for each other."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from pathlib import Path

import pytest
import tiny

LINES = ["the small dog sees a cat .", "my bird hears this king ."]


def test_output_flows_through_pipes(trained: Path) -> None:
    """The second line is sent only after the translation of the first has been read."""
    process = tiny.fork("translate", trained, "-q", "--precision", "fp32", stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    found = []
    for line in LINES:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        assert select.select([process.stdout], [], [], 120)[0], "nothing came"
        found.append(process.stdout.readline())
    assert process.communicate() == ("", "")
    assert process.returncode == 0
    text = "".join(f"{line}\n" for line in LINES)
    assert tiny.mtkit("translate", trained, "-q", "--precision", "fp32", stdin=text) == (
        0,
        "".join(found),
        "",
    )


@pytest.mark.slow  # another process, for the same reader
def test_a_terminal_has_a_prompt(trained: Path) -> None:
    ours, theirs = pty.openpty()
    process = tiny.spawn("translate", trained, "--precision", "fp32", stdin=theirs, stderr=theirs)
    os.close(theirs)
    assert process.stdout is not None
    for line in LINES:
        os.write(ours, f"{line}\n".encode())
        assert process.stdout.readline() != ""
    os.write(ours, b"\x04")
    assert process.wait(120) == 0
    said = os.read(ours, 10_000).decode().replace("\r\n", "\n")
    assert "Type a line to translate, Ctrl-D to end.\n" in said
    assert said.count("> ") in (2, 3)  # the first line may have been there before it could be asked for
    assert said.endswith("> \n")
    os.close(ours)
