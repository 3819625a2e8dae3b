"""Overview of many runs: where they are, how far they came, how well they do, and in which keys their configs differ.

Of long files only the end is read, so that a hundred runs are read in a second or two.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from mtkit.checkpoint import BEST, CHECKPOINTS, CONFIG_FILE, MANIFEST_FILE
from mtkit.config.loading import flatten_config, load_stored_config
from mtkit.config.sections import Config
from mtkit.errors import ConfigError, MtkitError, StorageError
from mtkit.evaluation.history import is_number, parse_record
from mtkit.evaluation.metrics import HIGHER_IS_BETTER
from mtkit.evaluation.run_files import CLAIM_FILE, METRICS_FILE, RESULTS_FILE
from mtkit.files import is_locked, read_lines_backwards

RunState = Literal["running", "ended", "stopped"]
"""Running: a process holds its lock. Ended: training came to its end. Stopped: neither; it can be resumed."""

SORT_KEYS = ("name", "steps", "best", "speed", "state", "when")
_SPEED_RECORDS = 20
"""Last training records whose median is the speed."""
_BEST_FIELD = b'"best": true'
"""What the record of a validation with a new best has."""


@dataclass(frozen=True)
class Best:
    """The best validation of a run, by `validation.best`."""

    metric: str
    value: float
    step: int | None

    @property
    def rank(self) -> float:
        """A number that is higher for a better value."""
        return self.value if HIGHER_IS_BETTER.get(self.metric, False) else -self.value


@dataclass(frozen=True)
class RunOverview:
    """A run folder as a line of a table.

    Attributes:
        name: the folder, relative to the one that was searched.
        folder: the folder.
        state: whether it is running, or came to its end.
        steps: updates made.
        limit: updates to make, or None if something else limits the run.
        best: its best validation.
        speed: target tokens per second, the median of the last training records.
        when: time of the last record, in seconds since 1970.
        settings: value of each key of its config, by dotted name.
        problems: what is wrong with the folder, each in a line.
    """

    name: str
    folder: Path
    state: RunState = "stopped"
    steps: int = 0
    limit: int | None = None
    best: Best | None = None
    speed: float | None = None
    when: float | None = None
    settings: dict[str, object] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


# --- finding run folders ------------------------------------------------------------------------------------------


def find_runs(folder: Path) -> list[RunOverview]:
    """Return the runs in a folder and below it, sorted by name.

    Raises:
        StorageError: If the folder does not exist.
    """
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no such folder"
        raise StorageError(what, where=str(folder), hint="name the folder that your run folders are in")
    # A run that a link leads to as well is listed once, by its own name.
    paths = {path.resolve(): path for path in sorted(_walk(folder), key=Path.is_symlink, reverse=True)}
    found = [read_overview(path, os.path.relpath(path, folder)) for path in paths.values()]
    return sorted(found, key=lambda run: _natural(run.name))


def _walk(folder: Path, *, descends: bool = True) -> Iterator[Path]:
    """Yield the run folders at or, with `descends`, below a folder.

    What is in a run folder or a hidden folder is not looked at. A link is followed to a run folder only.
    """
    try:
        with os.scandir(folder) as entries:
            names = {entry.name: entry for entry in entries}
            below = [
                entry.name
                for entry in names.values()
                if not entry.name.startswith(".") and (entry.is_symlink() or entry.is_dir())
            ]
    except OSError:
        return
    if _is_run(names.keys()):
        yield folder
    elif descends and not {CONFIG_FILE, MANIFEST_FILE} <= names.keys():  # else a model folder
        for name in sorted(below):
            yield from _walk(folder / name, descends=not names[name].is_symlink())


def _is_run(names: Collection[str]) -> bool:
    """Return whether these are the names in a run folder, even if it has lost some of them."""
    if CLAIM_FILE in names:
        return True
    return METRICS_FILE in names and any(name in names for name in (CONFIG_FILE, CHECKPOINTS, BEST))


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts run2 before run10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)]


# --- reading one --------------------------------------------------------------------------------------------------


def read_overview(path: Path, name: str = ".") -> RunOverview:
    """Read what a line of the table tells about a run folder, whatever is left of it.

    Args:
        path: run folder.
        name: its name in the table; `.` stands for that of the folder.
    """
    problems: list[str] = []
    config = _read_config(path, problems)
    results = _read_results(path / RESULTS_FILE, problems)
    log = _read_log(path / METRICS_FILE, problems, wants_best=config is None or bool(config.data.valid))
    has_ended = is_number(results.get("step")) and results["step"] >= log.steps
    best, step = (results.get("best"), results.get("best_step")) if has_ended else (None, None)
    if config is not None and not is_number(best):
        best, step = log.best.get(config.validation.best), log.best.get("step")
    return RunOverview(
        name=path.resolve().name if name == "." else name,
        folder=path,
        state="running" if is_locked(path) else "ended" if has_ended else "stopped",
        steps=max(log.steps, int(results["step"])) if has_ended else log.steps,
        limit=None if config is None else config.training.step_limit,
        best=Best(config.validation.best, float(best), step if isinstance(step, int) else None)
        if config is not None and is_number(best)
        else None,
        speed=median(log.speeds) if log.speeds else None,
        when=log.when,
        settings={} if config is None else {k: v for k, v in flatten_config(config).items() if k != "run"},
        problems=tuple(problems),
    )


def _read_config(path: Path, problems: list[str]) -> Config | None:
    """Return the config of a run; None, and a problem, if it cannot be read."""
    if not (path / CONFIG_FILE).is_file():
        problems.append(f"no {CONFIG_FILE}")
        return None
    try:
        return load_stored_config(path / CONFIG_FILE)
    except ConfigError as error:
        summary, *lines = str(error).split("\n")
        problems.append((lines or [summary])[0].replace(str(path / CONFIG_FILE), CONFIG_FILE))
    except RecursionError:
        problems.append(f"{CONFIG_FILE} is damaged")
    return None


def _read_results(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return results.json; nothing if it is not there, and a problem if it is damaged."""
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        pass
    problems.append(f"{RESULTS_FILE} is damaged")
    return {}


@dataclass
class _Log:
    """The end of metrics.jsonl: number of the last update, last best validation, speeds, time of the last record."""

    steps: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    speeds: list[float] = field(default_factory=list)
    when: float | None = None


def _read_log(path: Path, problems: list[str], *, wants_best: bool) -> _Log:
    """Read metrics.jsonl from its end until everything is known. What a rollback undid does not count.

    Args:
        path: the file.
        problems: what is wrong with it is added here.
        wants_best: whether there may be validations to look for.
    """
    log, valid_to, num_lines, num_records = _Log(), math.inf, 0, 0
    try:
        log.when = path.stat().st_mtime
        for line in read_lines_backwards(path):
            num_lines += 1
            if len(log.speeds) >= _SPEED_RECORDS and _BEST_FIELD not in line:
                continue
            record = parse_record(line)
            if record is None:
                continue
            num_records += 1
            if record["kind"] == "rollback":
                valid_to = min(valid_to, record["step"])
            elif record["step"] <= valid_to:
                log.steps = max(log.steps, record["step"])
                if is_number(record.get("target_tokens_per_second")):
                    log.speeds.append(record["target_tokens_per_second"])
            if record["kind"] == "valid" and record.get("best") is True and not log.best:
                log.best = record  # after a rollback the best weights stay
            if len(log.speeds) >= _SPEED_RECORDS and (log.best or not wants_best):
                break
    except FileNotFoundError:
        problems.append(f"no {METRICS_FILE}: its training has not begun, or the file is lost")
    except (OSError, MtkitError) as error:
        reason = error.what if isinstance(error, MtkitError) else error.strerror
        problems.append(f"{METRICS_FILE}: {reason}")
    if num_lines and not num_records:
        problems.append(f"{METRICS_FILE} is damaged: no line is a record")
    return log


# --- comparing ----------------------------------------------------------------------------------------------------


def differing_keys(runs: Sequence[RunOverview]) -> list[str]:
    """Return the keys that do not have the same value in all configs that could be read, in the order of the config."""
    settings = [run.settings for run in runs if run.settings]
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)]


def sort_runs(runs: Sequence[RunOverview], key: str, *, reverse: bool = False) -> list[RunOverview]:
    """Sort runs: by name and state from A to Z, by keys of the config upwards, by numbers from the best or highest.

    Runs without a value come last, even in reverse.

    Args:
        runs: the runs.
        key: one of `SORT_KEYS`, or a key of the config; its last part is enough where it is the only one.
        reverse: whether to sort the other way round.

    Raises:
        ConfigError: If there is no such key.
    """
    values = dict(zip((run.folder for run in runs), _sort_values(runs, key), strict=True))
    known = [run for run in runs if values[run.folder] is not None]
    unknown = [run for run in runs if values[run.folder] is None]
    return [*sorted(known, key=lambda run: values[run.folder], reverse=reverse), *unknown]


def _sort_values(runs: Sequence[RunOverview], key: str) -> list[Any]:
    """Return what each run is sorted by, None if it has no value."""
    match key:
        case "name":
            return [_natural(run.name) for run in runs]
        case "state":
            return [run.state for run in runs]
        case "steps":
            return [-run.steps for run in runs]
        case "best":
            return [None if run.best is None else (run.best.metric, -run.best.rank) for run in runs]
        case "speed":
            return [None if run.speed is None else -run.speed for run in runs]
        case "when":
            return [None if run.when is None else -run.when for run in runs]
    full = _full_key(runs, key)
    return [_sortable(run.settings[full]) if full in run.settings else None for run in runs]


def _full_key(runs: Sequence[RunOverview], key: str) -> str:
    """Return the dotted name of a key of the config.

    Raises:
        ConfigError: If no config has it, or several do.
    """
    keys = list(dict.fromkeys(each for run in runs for each in run.settings))
    named = [key] if key in keys else [each for each in keys if each.rpartition(".")[2] == key]
    if len(named) == 1:
        return named[0]
    if named:
        raise ConfigError(f"several keys end with {key}", where="`sort`", hint=" or ".join(named))
    hint = f"one of {', '.join(SORT_KEYS)}, or a key of the config such as training.learning_rate"
    raise ConfigError(f"there is no key {key!r}", where="`sort`", hint=hint)


def _sortable(value: object) -> tuple[int, float, str]:
    """Return a key that sorts values of any kind: null, numbers, text."""
    if value is None:
        return 0, 0.0, ""
    if isinstance(value, int | float):
        return 1, float(value), ""
    return 2, 0.0, str(value)
