"""The history of a run: what `metrics.jsonl` and `samples.jsonl` record, without what a rollback undid.

Both files have one JSON object per line. A run that is going on, or was killed, may leave the last line incomplete.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from mtkit.errors import StorageError
from mtkit.evaluation.run_files import METRICS_FILE, RESULTS_FILE, SAMPLES_FILE
from mtkit.files import storage_errors

Record = dict[str, Any]
Points = list[tuple[int, float]]
"""Steps in ascending order, each with a value."""

_MAX_POINTS = 1000
"""Most points of a curve on a page: about one for each pixel."""


class Sample(NamedTuple):
    """A sentence that was translated at a validation."""

    src: str
    ref: str
    hyp: str


@dataclass(frozen=True)
class History:
    """Updates and validations of a run, in the order of their steps.

    Attributes:
        updates: records of kind `train`, one every `training.log_every_steps` updates.
        validations: records of kind `valid`.
        best: the validation whose weights are the best, which stay even if a rollback undid it; None if there is none.
        samples: sample translations of each validation, by its step.
        rollbacks: steps that the run returned to after a divergence.
        divergences: records of kind `diverged`, in the order they were written.
        num_damaged: lines of metrics.jsonl that are no records; a last line that is incomplete does not count.
        ended_step: last update when training came to its end, which need not be logged; 0 if it has not.
    """

    updates: list[Record]
    validations: list[Record]
    best: Record | None
    samples: dict[int, list[Sample]]
    rollbacks: list[int]
    divergences: list[Record]
    num_damaged: int = 0
    ended_step: int = 0

    @property
    def last_step(self) -> int:
        """The last update that is known of, 0 if there is none."""
        logged = (records[-1]["step"] for records in (self.updates, self.validations) if records)
        return max(self.ended_step, *logged, 0)

    @property
    def epochs(self) -> float | None:
        """Passes over the training pairs until the last update, or None. Those since the last record are estimated."""
        points = [(step, epoch) for step, epoch in self.train_curve("epoch") if step > 0]
        if not points:
            return None
        step, epoch = points[-1]
        return epoch * self.last_step / step

    @property
    def seconds(self) -> float | None:
        """Training time of the last record that has it, or None."""
        found = [record["seconds"] for record in (*self.updates[-1:], *self.validations[-1:])
                 if is_number(record.get("seconds"))]  # fmt: skip
        return max(found, default=None)

    def train_curve(self, name: str) -> Points:
        """Return the finite values of a field of the updates."""
        return _points(self.updates, name)

    def valid_curve(self, name: str) -> Points:
        """Return the finite values of a field of the validations."""
        return _points(self.validations, name)

    def valid_names(self) -> list[str]:
        """Return the names of all numbers in the validations, in the order of their first appearance."""
        names = dict.fromkeys(name for record in self.validations for name in record)
        skipped = ("kind", "step", "seconds", "best")
        return [name for name in names if name not in skipped and self.valid_curve(name)]


def read_history(run: Path) -> History:
    """Read the history of a run. Lines that are incomplete or damaged are skipped.

    Args:
        run: run folder.

    Raises:
        StorageError: If it has no metrics.jsonl, or a file cannot be read.
    """
    path = run / METRICS_FILE
    if not path.is_file():
        what = f"no {METRICS_FILE}: not a run folder, or its training has not begun"
        raise StorageError(what, where=str(run), hint="name the run folder of the config")
    updates: dict[int, Record] = {}
    validations: dict[int, Record] = {}
    best: Record | None = None
    rollbacks, divergences, num_damaged = [], [], 0
    for line in _read_log(path):
        if (record := parse_record(line)) is None:
            num_damaged += line.endswith(b"\n")
            continue
        match record["kind"]:
            case "train":
                updates[record["step"]] = record
            case "valid":
                validations[record["step"]] = record
                best = record if record.get("best") is True else best
            case "diverged":
                divergences.append(record)
            case "rollback":
                rollbacks.append(record["step"])
                updates = {step: kept for step, kept in updates.items() if step <= record["step"]}
                validations = {step: kept for step, kept in validations.items() if step <= record["step"]}
    samples = {}
    if (run / SAMPLES_FILE).is_file():
        for line in _read_log(run / SAMPLES_FILE):
            if (record := parse_record(line)) is not None and record["step"] in validations:
                samples[record["step"]] = _read_samples(record)
    ended_step = read_object(run / RESULTS_FILE).get("step")
    return History(
        [updates[step] for step in sorted(updates)],
        [validations[step] for step in sorted(validations)],
        best,
        {step: samples[step] for step in sorted(samples) if samples[step]},
        rollbacks,
        divergences,
        num_damaged,
        int(ended_step) if is_number(ended_step) else 0,
    )


def _read_log(path: Path) -> Iterator[bytes]:
    """Yield the lines of a log.

    Raises:
        StorageError: If the file cannot be read.
    """
    with storage_errors(path), open(path, "rb") as file:
        yield from file


def parse_record(line: bytes) -> Record | None:
    """Return the record in a line of a log; None if it is incomplete or damaged."""
    with suppress(ValueError, RecursionError):
        record = json.loads(line)
        if isinstance(record, dict) and type(record.get("step")) is int and "kind" in record:
            return record
    return None


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a run folder; an empty one if the file is missing or damaged."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return found
    return {}


def _read_samples(record: Record) -> list[Sample]:
    """Return the samples of a record; those that are not three strings are left out."""
    found = record.get("samples")
    samples = found if isinstance(found, list) else []
    return [
        Sample(*sample)
        for sample in samples
        if isinstance(sample, list) and len(sample) == 3 and all(isinstance(text, str) for text in sample)
    ]


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a number that a float can be, finite and not a truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # false for NaN, infinity, and integers beyond all floats


def _points(records: Sequence[Record], name: str) -> Points:
    return [(record["step"], float(record[name])) for record in records if is_number(record.get(name))]


def thin(points: Points, limit: int = _MAX_POINTS) -> Points:
    """Return at most about `limit` points: the lowest and the highest of each of `limit / 2` buckets of equal size.

    What stands out in the curve, such as a spike, is kept, and so are the first and the last point.
    """
    if len(points) <= limit:
        return points
    size = math.ceil(2 * len(points) / limit)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        bucket = range(start, min(start + size, len(points)))
        kept |= {min(bucket, key=lambda i: points[i][1]), max(bucket, key=lambda i: points[i][1])}
    return [points[index] for index in sorted(kept)]
