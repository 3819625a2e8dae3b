"""Progress on consoles of every kind is up to date, and no failure of a console ends a run."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, ConsoleDimensions

from mtkit.cli.terminal import escape_unencodable, open_output, print_stdout
from mtkit.evaluation.history import Sample
from mtkit.training.display import DRAWING_SHARE, Display
from mtkit.training.live_view import sparkline
from mtkit.training.progress import Progress

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
    print_stdout("in \udcff\n")  # the name of a file
    assert stdout.buffer.getvalue() == b"\\xe9\n" + "中\n".encode() + b"in \xff\n"  # type: ignore[attr-defined]


@pytest.fixture
def draws_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the live view be drawn however much of the time that takes."""
    monkeypatch.setattr("mtkit.training.display.DRAWING_SHARE", 1e9)


def last_view(file: io.StringIO) -> str:
    """Return what was written last, without its colors."""
    text = re.sub(r"\x1b\[[\d;]*m", "", file.getvalue())
    file.seek(0)
    file.truncate()
    return text


@pytest.mark.usefixtures("draws_always")
def test_the_live_view_shows_the_newest_validation(tmp_path: Path) -> None:
    file = io.StringIO()
    progress = Progress(tmp_path, terminal(file))
    progress.log_validation(5, "validation at step 5", [("a", "b", "before any update was shown")])
    assert "before any update was shown" in last_view(file)
    progress.log_training(9, NUMBERS, None)
    assert "before any update was shown" in last_view(file)
    progress.log_validation(10, "validation at step 10", [("a", "b", "the newer")])
    view = last_view(file)
    assert "newer" in view
    assert view.index("before any update was shown") < view.index("newer")  # the translation of before
    assert "validation at step 5" not in view
    progress.log_training(11, NUMBERS, None)
    assert "newer" in last_view(file)
    progress.log_validation(12, "validation at step 12", [("a", "b", "the newest")])
    view = last_view(file)
    assert view.index("newer") < view.index("newest")
    assert "before any update was shown" not in view
    progress.log_validation(15, "validation at step 15", [])
    assert "newer" not in last_view(file)
    progress.stop_live()


@pytest.mark.usefixtures("draws_always")
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


# --- a terminal that is really read -------------------------------------------------------------------------------


class Terminal:
    """A pseudo-terminal whose other end is read by a small emulator: lines, cursor movements, erasing.

    Attributes:
        stream: what a program writes to.
        written: everything that it wrote.
    """

    def __init__(self, columns: int = 100, rows: int = 30) -> None:
        self.reader, writer = os.openpty()
        self.stream = os.fdopen(writer, "w", encoding="utf-8", buffering=1)
        self.resize(columns, rows)
        self.written = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self) -> None:
        while True:
            try:
                self.written += os.read(self.reader, 65536)
            except OSError:  # the program's end is closed
                return

    def screen(self) -> list[str]:
        """Return the lines that are visible, with those that have scrolled away, once everything is read."""
        mark = b"\x1b]0;%d\x07" % time.monotonic_ns()  # sets a title; arrives after everything else
        os.write(self.stream.fileno(), mark)
        while mark not in self.written:
            time.sleep(0.001)
        lines, row, column = [""], 0, 0
        text = re.sub(r"\x1b\]0;\d+\x07", "", self.written.decode("utf-8"))
        for token in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|.", text, re.DOTALL):
            if token == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif token == "\r":
                column = 0
            elif token.startswith("\x1b["):
                kind, number = token[-1], int(re.sub(r"\D", "", token) or 1)
                assert kind in "AKmlhGH", token
                if kind == "A":
                    row -= number
                elif kind == "K":
                    lines[row] = ""
                elif kind == "G":
                    column = number - 1
            else:
                lines[row] = f"{lines[row]:{column}}"[:column] + token + lines[row][column + 1 :]
                column += 1
        return [line.rstrip() for line in lines]

    @property
    def cursor_is_visible(self) -> bool:
        return self.written.rfind(b"\x1b[?25h") >= self.written.rfind(b"\x1b[?25l")

    def close(self) -> None:
        self.stream.close()
        self._thread.join()
        os.close(self.reader)


class PtyConsole(Console):
    """A console that asks its own terminal for the size; rich asks those of stdin, stdout and stderr."""

    @property
    def size(self) -> ConsoleDimensions:
        return ConsoleDimensions(*os.get_terminal_size(self.file.fileno()))


@pytest.fixture
def pty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A terminal with colors, whose size nothing in the environment overrides."""
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    yield terminal
    terminal.close()


def advance(progress: Progress, step: int, hyp: str, bleu: float, *, best: bool = True) -> None:
    """Make some updates and a validation."""
    for at in range(step - 9, step + 1):
        numbers: dict[str, Any] = NUMBERS | {"loss": 9 - at / 10, "seconds": 60.0, "memory": 1.5e9}
        progress.log_training(at, numbers, 180.0)
    progress.record("valid", step, {"loss": 1.0, "bleu": bleu, "best": best})
    progress.log_validation(
        step, f"validation at step {step}", [Sample("A man runs.", "Ein Mann rennt.", hyp)]
    )


@pytest.mark.usefixtures("draws_always")
def test_the_view_of_a_terminal(tmp_path: Path, pty: Terminal) -> None:
    with Progress(tmp_path, PtyConsole(file=pty.stream), "bleu") as progress:
        progress.say("encoded 9 pairs")
        advance(progress, 10, "Ein Hund rennt.", 10.0)
        advance(progress, 20, "Ein Mann läuft.", 30.0)
        advance(progress, 30, "Ein Mann rennt.", 20.0, best=False)
        screen = pty.screen()
        assert screen[:4] == [
            "encoded 9 pairs", "validation at step 10", "validation at step 20", "validation at step 30",
        ]  # fmt: skip
        bar, numbers, loss, score, source, reference, before, translation = screen[4:12]
        assert bar.split("  ")[-4:] == ["25%", "step 30", "epoch 0.5", "time left 3 min 00 s"]
        assert bar.count("━") == 39  # and half a character between what is done and what is left
        assert numbers == "target tokens/s 5,000  lr 1.00e-03  memory 1.5 GB"
        assert loss.split() == ["loss", "6.000", sparkline([9 - at / 10 for at in range(1, 31)], 40)]
        assert score.split("  ")[-2:] == ["▁█▅", "best 30.00 at step 20"] and "20.00" in score
        assert source.endswith("source      A man runs.") and reference.endswith(
            "reference   Ein Mann rennt."
        )
        assert (
            before == "    before      Ein Mann läuft." and translation == "    translation Ein Mann rennt."
        )
        assert b"\x1b[9;31ml\xc3\xa4uft" in pty.written and b"\x1b[1;32mrennt" in pty.written
        assert not pty.cursor_is_visible
        progress.log_rollback(10, "rolled back")
        score = pty.screen()[8]
        assert score.split("  ")[-2:] == ["▁", "best 30.00 at step 20"]  # its weights are kept
    assert [line for line in pty.screen() if line] == [
        "encoded 9 pairs", "validation at step 10", "validation at step 20", "validation at step 30", "rolled back",
    ]  # fmt: skip
    assert pty.cursor_is_visible


@pytest.mark.usefixtures("draws_always")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_a_clean_screen(
    tmp_path: Path, pty: Terminal, error: type[BaseException]
) -> None:
    def run() -> None:
        with Progress(tmp_path, PtyConsole(file=pty.stream), "bleu") as progress:
            advance(progress, 10, "Ein Hund rennt.", 10.0)
            raise error

    with pytest.raises(error):
        run()
    assert [line for line in pty.screen() if line] == ["validation at step 10"]
    assert pty.cursor_is_visible


@pytest.mark.usefixtures("draws_always")
@pytest.mark.parametrize("columns", [20, 40, 60, 72, 200])
def test_no_line_is_longer_than_the_terminal_which_may_be_resized(
    tmp_path: Path, pty: Terminal, columns: int
) -> None:
    with Progress(tmp_path, PtyConsole(file=pty.stream), "perplexity") as progress:
        progress.log_training(1, NUMBERS | {"seconds": 60.0}, 6000.0)
        pty.resize(columns, 30)
        start = len(pty.written)
        progress.record("valid", 9, {"perplexity": 12345.678, "best": True})
        long = "Ein sehr langer Satz, der in keine Zeile passt. " * 6
        progress.log_validation(9, "v", [Sample(long, long, long), Sample("三个男人" * 40, "x", "y")])
        progress.log_training(9, NUMBERS | {"seconds": 60.0}, 6000.0)
        progress.say("")
        pty.screen()
        pty.written = pty.written[start:]
        for line in pty.screen():
            assert len(line) + len(re.findall(r"[三个男人]", line)) <= columns, line
        assert any(line.endswith("…") for line in pty.screen())


@pytest.mark.usefixtures("draws_always")
def test_no_color_has_none(tmp_path: Path, pty: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with Progress(tmp_path, PtyConsole(file=pty.stream), "bleu") as progress:
        advance(progress, 10, "Ein Hund rennt.", 10.0)
        advance(progress, 20, "Ein Mann rennt.", 30.0)
        assert "    before      Ein Hund rennt." in pty.screen()
    codes = set(re.findall(rb"\x1b\[([\d;]*)m", pty.written))
    assert codes <= {b"0", b"1", b"2", b"9"}  # bold, dim and strike only
    assert {b"1", b"9"} <= codes


@pytest.mark.usefixtures("draws_always")
def test_a_resumed_run_shows_what_went_before(tmp_path: Path, pty: Terminal) -> None:
    with Progress(tmp_path, Console(quiet=True), "bleu") as progress:
        advance(progress, 10, "Ein Hund rennt.", 10.0)
        progress.record_samples(10, [Sample("A man runs.", "Ein Mann rennt.", "Ein Hund rennt.")])
    with Progress(tmp_path, PtyConsole(file=pty.stream), "bleu") as progress:
        advance(progress, 20, "Ein Mann rennt.", 30.0)
        screen = pty.screen()
        assert "    before      Ein Hund rennt." in screen
        assert sum(char in "▁▂▃▄▅▆▇█" for line in screen if line.startswith("loss") for char in line) == 20
        assert any(line.endswith("▁█  best 30.00 at step 20") for line in screen)


def test_drawing_takes_a_small_share_of_the_time(tmp_path: Path, pty: Terminal) -> None:
    clock = iter(float(i) for i in range(10**6))
    display = Display(PtyConsole(file=pty.stream))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtkit.training.display.time.monotonic", lambda: next(clock))
        assert display.is_due
        display.redraw("a view")  # this takes one tick of the clock
        drawn = next(clock)
        while not display.is_due:
            pass
        assert 1 / (next(clock) - drawn) == pytest.approx(DRAWING_SHARE, rel=0.05)
    display.stop_live()
    assert not Display(Console(file=io.StringIO())).is_due


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([1.0], 9, "▁"),
        ([1.0, 1.0], 9, "▁▁"),
        ([0.0, 7.0, 3.5], 9, "▁█▅"),
        ([0.0, 2.0, 6.0, 8.0], 2, "▁█"),
        ([float(i) for i in range(80)], 8, "▁▂▃▄▅▆▇█"),
        ([0.0, 0.0, 9.0, 0.0, 9.0, 9.0], 3, "▁▅█"),
    ],
)
def test_sparklines(values: list[float], width: int, expected: str) -> None:
    assert sparkline(values, width) == expected
