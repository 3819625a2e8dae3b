"""What a user sees while training runs: a live view in a terminal, plain lines elsewhere.

The same numbers go to `metrics.jsonl` in the run folder, one JSON object a line, and to TensorBoard if asked for.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mtkit.errors import ConfigError
from mtkit.files import append_line

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LINES_SHOWN = 8


class Progress:
    """Shows what happens and records the numbers.

    Args:
        run: folder of metrics.jsonl.
        console: where to show; a live view if it is a terminal.
        tensorboard: write events too. Raises ConfigError if it is not installed.
    """

    def __init__(self, run: Path, console: Console, tensorboard: bool = False) -> None:
        self.run, self.console = run, console
        self.writer = make_writer(run) if tensorboard else None
        self.live: Live | None = None
        self.recent: deque[str] = deque(maxlen=LINES_SHOWN)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_live()
        if self.writer is not None:
            self.writer.close()

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def record(self, kind: str, step: int, numbers: dict[str, Any]) -> None:
        """Append to metrics.jsonl and to TensorBoard."""
        append_line(self.run / "metrics.jsonl", json.dumps({"kind": kind, "step": step, **numbers}))
        if self.writer is not None:
            for name, value in numbers.items():
                if isinstance(value, int | float):
                    self.writer.add_scalar(f"{kind}/{name}", value, step)

    def train_line(self, step: int, numbers: dict[str, float], eta_seconds: float | None, best: str) -> None:
        """Where training is: live, or as a plain line."""
        self.record("train", step, numbers)
        eta = f"  {duration(eta_seconds)} left" if eta_seconds is not None else ""
        line = (
            f"step {step}  epoch {numbers['epoch']:.1f}  loss {numbers['loss']:.3f}  lr {numbers['lr']:.2e}  "
            f"{numbers['target_tokens_per_second']:,.0f} target tokens/s{eta}"
        )
        if not self.console.is_terminal:
            self.say(line)
            return
        if self.live is None:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        self.live.update(self._view(line, best), refresh=True)

    def _view(self, line: str, best: str) -> Group:
        table = Table.grid(padding=(0, 2))
        for part in line.split("  "):
            name, _, value = part.partition(" ")
            table.add_row(Text(name, style="dim"), Text(value, style="bold"))
        return Group(table, Text(best, style="green"))

    def stop_live(self) -> None:
        """Leave the live view."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def validation(
        self, step: int, numbers: dict[str, Any], line: str, samples: Sequence[tuple[str, str, str]]
    ) -> None:
        """The numbers of a validation, and sample translations: source, reference, hypothesis."""
        self.record("valid", step, numbers)
        self.say(line)
        for src, ref, hyp in samples:
            self.say(f"    source      {src}\n    reference   {ref}\n    translation {hyp}")


def make_writer(run: Path) -> SummaryWriter:
    """TensorBoard's writer. Raises: ConfigError: it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        hint = "pip install 'mtkit[tensorboard]', or set it to false"
        raise ConfigError("TensorBoard is not installed", where="training.tensorboard", hint=hint) from error
    return SummaryWriter(str(run / "tensorboard"))


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Stopwatch:
    """Seconds of training, over all the runs of a folder, and target tokens since the last look."""

    def __init__(self, seconds_before: float) -> None:
        self.before, self.start = seconds_before, time.monotonic()
        self.looked, self.tokens, self.paused = self.start, 0, 0.0

    def seconds(self) -> float:
        """Of training, earlier runs included."""
        return self.before + time.monotonic() - self.start

    def tokens_per_second(self) -> float:
        """Since the last call."""
        now = time.monotonic()
        speed = self.tokens / max(now - self.looked, 1e-9)
        self.looked, self.tokens = now, 0
        return speed
