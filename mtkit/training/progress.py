"""What a user sees while training runs: a live view in a terminal, plain lines elsewhere.

The same numbers go to `metrics.jsonl` in the run folder, one JSON object a line, and to TensorBoard if asked for.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, OverflowMethod
from rich.table import Table
from rich.text import Text

from mtkit.errors import ConfigError
from mtkit.files import append_line
from mtkit.training.display import Display

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE, TENSORBOARD = "metrics.jsonl", "tensorboard"

Sample = tuple[str, str, str]
"""Source, reference, translation."""


class Progress:
    """Shows what happens and records the numbers.

    Args:
        run: folder of metrics.jsonl.
        console: where to show; a live view if it is a terminal.
        tensorboard: write events too. Raises ConfigError if it is not installed.
        records: write at all: of several processes one does.
    """

    def __init__(
        self, run: Path, console: Console, tensorboard: bool = False, *, records: bool = True
    ) -> None:
        self.run, self.display, self.records = run, Display(console), records
        self.writer = _make_writer(run) if tensorboard and records else None
        self.numbers: dict[str, str] = {}
        """What the live view shows of training, by name."""
        self.validated_step, self.last_validation = 0, ""
        self.samples: Sequence[Sample] = ()

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
        self.display.say(line)

    def record(self, kind: str, step: int, numbers: dict[str, Any]) -> None:
        """Append to metrics.jsonl, where null stands for a number that JSON does not have, and to TensorBoard."""
        if not self.records:
            return
        finite = {key: value if _is_finite(value) else None for key, value in numbers.items()}
        append_line(self.run / METRICS_FILE, json.dumps({"kind": kind, "step": step, **finite}))
        if self.writer is not None:
            for name, value in numbers.items():
                if isinstance(value, int | float):
                    self.writer.add_scalar(f"{kind}/{name}", value, step)

    def training(self, step: int, numbers: dict[str, float], seconds_left: float | None) -> None:
        """Where training is: live in a terminal, else a plain line."""
        self.record("train", step, numbers)
        shown = {
            "step": f"{step:,}",
            "epoch": f"{numbers['epoch']:.1f}",
            "loss": f"{numbers['loss']:.3f}",
            "lr": f"{numbers['lr']:.2e}",
            "target tokens/s": f"{numbers['target_tokens_per_second']:,.0f}",
        }
        if seconds_left is not None:
            shown["time left"] = duration(seconds_left)
        self.numbers = shown
        if self.display.is_live:
            self.display.redraw(self._view())
        else:
            self.say("  ".join(f"{name} {value}" for name, value in shown.items()))

    def _view(self) -> Group:
        """The numbers of training, the last validation and its translations."""
        table = Table.grid(padding=(0, 2))
        for name, value in self.numbers.items():
            table.add_row(Text(name, style="dim"), Text(value, style="bold"))
        lines = self.display.spelled("\n".join(map(_sample_lines, self.samples)))
        overflow: OverflowMethod = "ellipsis" if self.display.spelled("…") == "…" else "crop"
        samples = Text(lines, "dim", no_wrap=True, overflow=overflow)
        return Group(table, Text(self.last_validation, style="green"), samples)

    def stop_live(self) -> None:
        """Leave the live view."""
        self.display.stop_live()

    def validation(self, step: int, line: str, samples: Sequence[Sample]) -> None:
        """What a validation found, in words, and sample translations."""
        self.validated_step, self.last_validation, self.samples = step, line, samples
        if self.display.is_live:
            self.display.redraw(self._view())
        self.say(line)
        if not self.display.is_live:
            for sample in samples:
                self.say(_sample_lines(sample))

    def rolled_back(self, step: int, line: str) -> None:
        """That the run went back to a step; a later validation is no longer shown."""
        if self.validated_step > step:
            self.validated_step, self.last_validation, self.samples = 0, "", ()
            if self.display.is_live:
                self.display.redraw(self._view())
        self.say(line)


def _is_finite(value: Any) -> bool:
    """Whether a value is no float, or a finite one."""
    return not isinstance(value, float) or math.isfinite(value)


def _sample_lines(sample: Sample) -> str:
    """A sample translation under its source and reference."""
    src, ref, hyp = sample
    return f"    source      {src}\n    reference   {ref}\n    translation {hyp}"


def _make_writer(run: Path) -> SummaryWriter:
    """TensorBoard's writer. Raises: ConfigError: it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        hint = "pip install 'mtkit[tensorboard]', or set it to false"
        raise ConfigError("TensorBoard is not installed", where="training.tensorboard", hint=hint) from error
    return SummaryWriter(str(run / TENSORBOARD))


def is_event_file(name: str) -> bool:
    """Whether TensorBoard's writer calls its files so."""
    return name.startswith("events.out.tfevents.")


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
        self.looked, self.tokens = self.start, 0

    def seconds(self) -> float:
        """Of training, earlier runs included."""
        return self.before + time.monotonic() - self.start

    def skip(self) -> None:
        """Do not count the time since the training line before: it went into a validation."""
        self.looked, self.tokens = time.monotonic(), 0

    def tokens_per_second(self) -> float:
        """Since the last call."""
        now = time.monotonic()
        speed = self.tokens / max(now - self.looked, 1e-9)
        self.looked, self.tokens = now, 0
        return speed
