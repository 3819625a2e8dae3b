"""Progress of training on the console: a live view in a terminal, plain lines elsewhere.

The same numbers are appended to `metrics.jsonl` in the run folder, one JSON object per line, and written to TensorBoard
with `training.tensorboard` and for Weights & Biases with `training.wandb`; the sample translations are appended to
`samples.jsonl`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mtkit.config.sections import TrainingConfig
from mtkit.evaluation.history import Sample, read_history
from mtkit.evaluation.run_files import METRICS_FILE, SAMPLES_FILE
from mtkit.files import append_line
from mtkit.formatting import format_duration
from mtkit.packages import import_package
from mtkit.training.display import Display
from mtkit.training.live_view import LiveView
from mtkit.training.wandb_log import WandbLog

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TENSORBOARD = "tensorboard"


class Progress:
    """Prints the progress of a run and logs its metrics.

    Args:
        run: run folder, where metrics.jsonl is.
        console: console to print to; a terminal gets a live view.
        metric: what the best checkpoint is selected by; the live view shows it.
        tensorboard: whether to write TensorBoard events as well.
        wandb: record of Weights & Biases to write as well, or None.
        writes_metrics: whether this process writes metrics.jsonl and events; only the main process should.

    Raises:
        ConfigError: If `tensorboard` is set but TensorBoard is not installed.
    """

    def __init__(
        self,
        run: Path,
        console: Console,
        metric: str = "loss",
        *,
        tensorboard: bool = False,
        wandb: WandbLog | None = None,
        writes_metrics: bool = True,
    ) -> None:
        self.run, self.display, self.writes_metrics = run, Display(console), writes_metrics
        self._writer: SummaryWriter | None = None
        if tensorboard and writes_metrics:
            self._writer = import_tensorboard().SummaryWriter(str(run / TENSORBOARD))
        self._wandb = wandb
        self._view = LiveView(metric)
        if self.display.is_live and (run / METRICS_FILE).is_file():
            self._view.continue_from(read_history(run))

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_live()
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.close()

    def say(self, line: str) -> None:
        """Print a line above the live view, where it stays."""
        self.display.say(line)

    def record(self, kind: str, step: int, numbers: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl (NaN and infinity become null) and write its numbers to the other logs.

        Args:
            kind: kind of the record, such as "train" or "valid".
            step: number of updates made.
            numbers: fields of the record.
        """
        if kind == "valid":
            self._view.add_validation(step, numbers)
        if not self.writes_metrics:
            return
        finite = {key: value if _is_finite(value) else None for key, value in numbers.items()}
        append_line(self.run / METRICS_FILE, json.dumps({"kind": kind, "step": step, **finite}))
        if self._writer is not None:
            for name, value in numbers.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb is not None and not self._wandb.add(kind, step, numbers):
            self.say("Weights & Biases has failed: nothing more is recorded for it")
            self._wandb = None

    def record_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Append the sample translations of a validation to samples.jsonl."""
        if self.writes_metrics and samples:
            line = {"kind": "valid", "step": step, "samples": samples}
            append_line(self.run / SAMPLES_FILE, json.dumps(line, ensure_ascii=False))

    def log_training(self, step: int, numbers: dict[str, float], seconds_left: float | None) -> None:
        """Record the training metrics of a step, and show them in the live view or as a line.

        Args:
            step: number of updates made.
            numbers: fields of the record.
            seconds_left: time until the end, if it can be foreseen.
        """
        self.record("train", step, numbers)
        if self.display.is_live:
            self._view.add_update(step, numbers)
            self.show_step(step, numbers["epoch"], numbers.get("seconds", 0.0), seconds_left)
            return
        shown = {
            "step": f"{step:,}",
            "epoch": f"{numbers['epoch']:.1f}",
            "loss": f"{numbers['loss']:.3f}",
            "lr": f"{numbers['lr']:.2e}",
            "target tokens/s": f"{numbers['target_tokens_per_second']:,.0f}",
        }
        if seconds_left is not None:
            shown["time left"] = format_duration(seconds_left)
        self.say("  ".join(f"{name} {value}" for name, value in shown.items()))

    @property
    def is_due(self) -> bool:
        """Return whether the live view may be drawn again."""
        return self.display.is_due

    def show_step(self, step: int, epochs: float, seconds: float, seconds_left: float | None) -> None:
        """Show how far training is in the live view, if that may be drawn again."""
        self._view.move_to(step, epochs, seconds, seconds_left)
        if self.is_due:
            self.display.redraw(self._view)

    def stop_live(self) -> None:
        """Remove the live view."""
        self.display.stop_live()

    def log_validation(self, step: int, line: str, samples: Sequence[Sample]) -> None:
        """Show the result of a validation, with a line for each set, and sample translations."""
        self._view.add_samples(step, samples)
        if self.display.is_live:
            self.display.redraw(self._view)
        self.say(line)
        if not self.display.is_live:
            for sample in samples:
                self.say(_sample_lines(sample))

    def log_rollback(self, step: int, line: str) -> None:
        """Print that the run was rolled back to a step, and drop what came later from the live view."""
        self._view.forget_after(step)
        if self.display.is_live:
            self.display.redraw(self._view)
        self.say(line)


def _is_finite(value: Any) -> bool:
    """Return whether a value can be written as JSON: any finite float, and any value that is not a float."""
    return not isinstance(value, float) or math.isfinite(value)


def _sample_lines(sample: Sample) -> str:
    """Format a sample as three lines: source, reference and translation."""
    src, ref, hyp = sample
    return f"    source      {src}\n    reference   {ref}\n    translation {hyp}"


def import_tensorboard() -> Any:
    """Return PyTorch's module for TensorBoard.

    Raises:
        ConfigError: If TensorBoard is not installed, or cannot be imported.
    """
    hint = "pip install 'mtkit[tensorboard]', or set this to false"
    import_package("tensorboard", hint, where="training.tensorboard")
    return import_package("torch.utils.tensorboard", hint, where="training.tensorboard")


def estimate_seconds_left(training: TrainingConfig, step: int, epochs: float, seconds: float) -> float | None:
    """Return the seconds until the first limit that can be foreseen, or None.

    Args:
        training: section `training`.
        step: updates made.
        epochs: epochs made.
        seconds: training time so far.
    """
    left = []
    if training.step_limit is not None and step > 1:
        left.append(seconds / step * (training.step_limit - step))
    if training.time_limit_minutes is not None:
        left.append(60 * training.time_limit_minutes - seconds)
    if training.max_epochs is not None and epochs > 0:
        left.append(seconds / epochs * (training.max_epochs - epochs))
    return max(0.0, min(left)) if left else None


def is_event_file(name: str) -> bool:
    """Return whether a file name is one that TensorBoard's writer gives its event files."""
    return name.startswith("events.out.tfevents.")


class Stopwatch:
    """Training time, summed over all restarts of a run, and throughput since the last training line.

    Args:
        seconds_before: training time of earlier starts of the run.

    Attributes:
        tokens: real target tokens since the last call of `tokens_per_second` or `restart_interval`.
    """

    def __init__(self, seconds_before: float) -> None:
        self._seconds_before, self._start = seconds_before, time.monotonic()
        self._interval_start, self.tokens = self._start, 0

    def total_seconds(self) -> float:
        """Return the training time in seconds, earlier starts included."""
        return self._seconds_before + time.monotonic() - self._start

    def restart_interval(self) -> None:
        """Measure throughput from now on, so that a validation does not count."""
        self._interval_start, self.tokens = time.monotonic(), 0

    def tokens_per_second(self) -> float:
        """Return the target tokens per second since the last call."""
        now = time.monotonic()
        throughput = self.tokens / max(now - self._interval_start, 1e-9)
        self._interval_start, self.tokens = now, 0
        return throughput
