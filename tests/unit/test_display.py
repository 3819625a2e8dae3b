"""Progress on consoles of every kind is up to date, and no failure of a console ends a run."""

from __future__ import annotations

import errno
import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mtkit.cli.terminal import escape_unencodable, open_output
from mtkit.training.progress import Progress, Sample

NUMBERS = {"epoch": 0.5, "loss": 2.0, "lr": 1e-3, "target_tokens_per_second": 5000.0}
CHINESE: Sample = ("三个男人", "drei Männer", "drei Männer…")


class Failing(io.StringIO):
    """A file that accepts a number of writes, then fails."""

    def __init__(self, error: Exception, num_writes: int = 0) -> None:
        super().__init__()
        self.error, self.left = error, num_writes

    def write(self, text: str) -> int:
        """Count a write; raise the error when there were enough."""
        if not self.left:
            raise self.error
        self.left -= 1
        return super().write(text)


def terminal(file: io.TextIOBase, width: int = 100) -> Console:
    """Return a terminal that writes to this file."""
    return Console(file=file, force_terminal=True, force_interactive=True, width=width)  # type: ignore[arg-type]


def show_everything(progress: Progress) -> None:
    """Show everything a run shows."""
    progress.say("data 中")
    progress.log_training(1, NUMBERS, 60.0)
    progress.log_validation(1, "validation at step 1: loss 2", [CHINESE])
    progress.log_training(2, NUMBERS, 50.0)
    progress.log_rollback(0, "the loss jumped")
    progress.stop_live()
    progress.say("training ended")


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_outside_the_encoding_are_escaped(tmp_path: Path, encoding: str, live: bool) -> None:
    written = io.BytesIO()
    file = io.TextIOWrapper(written, encoding=encoding)
    show_everything(Progress(tmp_path, terminal(file, width=30) if live else Console(file=file)))
    text = written.getvalue().decode(encoding)
    assert ("drei Männer" if encoding != "ascii" else r"drei M\xe4nner") in text
    assert ("data 中" if encoding == "utf-8" else r"data \u4e2d") in text
    assert "training ended" in text


def test_undecodable_file_names_are_escaped(tmp_path: Path) -> None:
    file = io.StringIO()
    Progress(tmp_path, Console(file=file)).say("run \udcff")
    assert file.getvalue() == "run \\udcff\n"


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("num_writes", range(8))
@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "the terminal"), ValueError("closed"), SystemExit(1)], ids=repr
)
def test_a_failing_console_is_silenced(tmp_path: Path, error: Exception, num_writes: int, live: bool) -> None:
    before = sys.stdout, sys.stderr
    file = Failing(error, num_writes)
    show_everything(Progress(tmp_path, terminal(file) if live else Console(file=file)))
    assert (sys.stdout, sys.stderr) == before
    steps = (tmp_path / "metrics.jsonl").read_text()
    assert steps.count('"kind": "train"') == 2


def test_translations_are_always_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that is only shown may be spelled differently; a command's output may not."""
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)
    escape_unencodable()
    print("é", file=stderr, flush=True)
    print("é", flush=True)
    with open_output(None) as out:
        out.write("中\n")
        with pytest.raises(UnicodeEncodeError):
            out.write("\udcff")
    assert stderr.buffer.getvalue() == b"\\xe9\n"  # type: ignore[attr-defined]
    assert stdout.buffer.getvalue() == b"\\xe9\n" + "中\n".encode()  # type: ignore[attr-defined]


def last_view(file: io.StringIO) -> str:
    """Return what was written last."""
    text = file.getvalue()
    file.seek(0)
    file.truncate()
    return text


def test_the_live_view_shows_the_newest_validation(tmp_path: Path) -> None:
    file = io.StringIO()
    progress = Progress(tmp_path, terminal(file))
    progress.log_validation(5, "validation at step 5", [("a", "b", "before any update was shown")])
    assert "before any update was shown" in last_view(file)
    progress.log_training(9, NUMBERS, None)
    assert "before any update was shown" in last_view(file)
    progress.log_validation(10, "validation at step 10", [("a", "b", "newer")])
    view = last_view(file)
    assert "newer" in view
    assert "before any update was shown" not in view
    assert "validation at step 5" not in view
    progress.log_training(11, NUMBERS, None)
    assert "newer" in last_view(file)
    progress.log_validation(15, "validation at step 15", [])
    assert "newer" not in last_view(file)
    progress.stop_live()


def test_a_rollback_drops_later_validations_from_the_live_view(tmp_path: Path) -> None:
    file = io.StringIO()
    progress = Progress(tmp_path, terminal(file))
    progress.log_training(9, NUMBERS, None)
    progress.log_validation(10, "validation at step 10", [("a", "b", "of weights that are gone")])
    last_view(file)
    progress.log_rollback(10, "back to where it was validated")
    assert "of weights that are gone" in last_view(file)
    progress.log_rollback(5, "back")
    progress.log_training(6, NUMBERS, None)
    view = last_view(file)
    assert "of weights that are gone" not in view
    assert "validation at step 10" not in view
    progress.stop_live()


def test_a_terminal_that_cannot_redraw_gets_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    show_everything(Progress(tmp_path, Console(file=file, force_terminal=True)))
    assert "step 1  epoch 0.5" in file.getvalue()
    assert "translation drei Männer" in file.getvalue()
