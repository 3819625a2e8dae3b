"""A pipeline: runs the stages that are not done yet, and says how far it is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtkit.errors import ConfigError, DataError, StorageError
from mtkit.files import FolderLock, make_folder, remove_tree, sha256_file, storage_errors, write_text
from mtkit.formatting import format_duration
from mtkit.pipelines.child import run_child
from mtkit.pipelines.fingerprints import fingerprint
from mtkit.pipelines.records import Record, as_json
from mtkit.pipelines.stages import Effort, Stage
from mtkit.torchrun import read_ranks
from mtkit.training.signals import Interrupted, Signals
from mtkit.translation.model_folder import find_checkpoint
from mtkit.translation.options import PARALLEL, Parallelism

_RECORDS = "stages"
"""Folder of the records in that of the pipeline."""
_FRESH = "fresh"
"""Empty file beside the records of a pipeline that was started over: stages without a record begin anew."""


class Pipeline:
    """Context manager that runs stages; see the package's own description.

    Args:
        folder: its folder, made if it is missing, in which no other process may run a pipeline at the same time.
        efforts: effort of each stage, in the order in which they will be run.
        say: prints a line for the user.
        fresh: start over: when the first stage begins, records of earlier ones are removed, and their outputs in the
            folder of the pipeline. Outputs elsewhere are left to the stages, which are told so in `Context.fresh`, by a
            later call as well if this one is stopped before.
        parallelism: workers and threads of translations; they do not change the result of a stage.

    Raises:
        ConfigError: If torchrun started several processes (on entering).
        StorageError: If another process uses the folder, or it cannot be written (on entering).
    """

    def __init__(
        self,
        folder: Path,
        efforts: Sequence[Effort],
        say: Callable[[str], None],
        *,
        fresh: bool = False,
        parallelism: Parallelism = PARALLEL,
    ) -> None:
        self.folder, self.efforts, self.say = folder, list(efforts), say
        self.fresh = self._must_remove = fresh
        self.parallelism = parallelism
        self._number = 0
        self._seconds: dict[str, float] = defaultdict(float)
        self._numbers: dict[str, float] = defaultdict(float)
        self._hashes: dict[tuple[str, int, int], str] = {}
        self._remade: dict[str, str] = {}  # see `Record`
        self._stack = ExitStack()
        self._signals = Signals()
        self._signals.training_started = True  # there is something to resume

    def __enter__(self) -> Pipeline:
        if read_ranks().world_size > 1:
            what = "a pipeline starts the processes of its stages itself"
            raise ConfigError(what, hint="start it without torchrun")
        with ExitStack() as stack:
            self._lock = stack.enter_context(FolderLock(self.folder))
            make_folder(self.folder / _RECORDS)
            self.fresh |= (self.folder / _RECORDS / _FRESH).exists()
            stack.enter_context(self._signals.installed())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def check_free(self, name: str, folder: Path) -> None:
        """Check that a stage would not overwrite a model that it did not write; with `fresh` it may.

        Raises:
            ConfigError: If there is.
        """
        if self.fresh or self._record(name).exists():
            return
        with suppress(StorageError):
            find_checkpoint(folder)
            what = "there is a model already where this command is to write one"
            hint = "choose another run folder, move the model away, or start over with `fresh`"
            raise ConfigError(what, where=str(folder), hint=hint)

    def run(self, stage: Stage) -> dict[str, Any]:
        """Run a stage, or go on with it, unless it is done; return what its function returned.

        A stage that is done is run again if an output is missing. If that makes other outputs than before, later stages
        that read them begin anew.

        Raises:
            ConfigError: If it was begun with other settings or inputs.
            DataError: If an input is missing.
            MtkitError: If the stage raises it, or its process crashes.
            Interrupted: If a signal stops it; it goes on when it is run again.
        """
        path = self._record(stage.name)
        wanted = self._wanted(stage)
        if self._must_remove:  # only now: a mistake in the inputs must not cost what is there
            self._remove_earlier()
        record = Record.read(path)
        is_again = record is not None and (record.done or record.remade is not None)
        fresh = self.fresh and record is None
        if record is not None and (differences := record.differences(wanted)):
            # Inputs that are as a stage before this one made them again; those changed by hand are not.
            remade = {key: found for key, found in wanted.inputs.items() if self._remade.get(key) == found}
            if replace(record, inputs=record.inputs | remade).differences(wanted):
                what = f"stage {stage.name} was started with other settings or inputs: {differences}"
                hint = "repeat the command with which it was begun, choose another folder, or start over with `fresh`"
                raise ConfigError(what, where=str(self.folder), hint=hint)
            self._remove_outputs(record.outputs)
            record, fresh = None, True  # what is outside of the folder, the stage wrote and may replace
        self._number += 1
        place = f"[{self._number}/{len(self.efforts)}] {stage.name}"
        if record is not None and record.done and all(map(Path.exists, stage.outputs)):
            self._count(stage, record.seconds)
            self._remade |= record.remade or {}
            self.say(f"{place}: done before, in {format_duration(record.seconds)}")
            return record.result
        self.say(f"{place}{self._time_left(self._number - 1)}")
        begun = replace(record or wanted, done=False, remade={} if is_again else None)
        begun.write(path)
        done = self._run(stage, begun, path, is_new=record is None, fresh=fresh)
        if is_again:
            remade = {str(output): self._fingerprint(output) or "" for output in stage.outputs}
            done = replace(done, remade=remade)
            self._remade |= remade
        done.write(path)
        self._count(stage, done.seconds)
        self.say(f"{place}: done in {format_duration(done.seconds)}{self._time_left(self._number)}")
        if self._signals.pending is not None:
            self._signals.raise_interrupted()
        return done.result

    def _record(self, name: str) -> Path:
        """Return the file of the record of a stage."""
        return self.folder / _RECORDS / f"{name}.json"

    def _wanted(self, stage: Stage) -> Record:
        """Return the record with which a stage begins."""
        inputs = {}
        for path in stage.inputs:
            if (found := self._fingerprint(path)) is None:
                raise DataError("no such file or folder", where=str(path), hint="check the path")
            inputs[str(path)] = found
        work = f"{stage.work.__module__}:{stage.work.__qualname__}"
        return Record(work, as_json(stage.settings), inputs, [str(path) for path in stage.outputs])

    def _fingerprint(self, path: Path) -> str | None:
        """Return the fingerprint of an input."""
        return fingerprint(path, self._hash_file)

    def _hash_file(self, path: Path) -> str:
        """Return the hash of a file; one that has not changed is read once in the life of a pipeline."""
        with storage_errors(path):
            status = path.stat()
        key = (str(path), status.st_size, status.st_mtime_ns)
        if key not in self._hashes:
            self._hashes[key] = sha256_file(path)
        return self._hashes[key]

    def _run(self, stage: Stage, begun: Record, path: Path, *, is_new: bool, fresh: bool) -> Record:
        """Run the process of a stage and return its new record."""
        start = time.monotonic()
        outcome = path.with_suffix(".outcome")
        try:
            result = run_child(
                stage.name,
                path,
                outcome,
                self._lock.fileno(),
                fresh=fresh,
                parallelism=self.parallelism,
                signals=self._signals,
            )
        except (ConfigError, DataError):
            if is_new:  # otherwise the corrected command would be refused, or go on with what is wrong
                self._remove_outputs(begun.outputs)
                path.unlink(missing_ok=True)
            raise
        except Interrupted:
            replace(begun, seconds=begun.seconds + time.monotonic() - start).write(path)
            raise
        finally:
            outcome.unlink(missing_ok=True)
        return replace(begun, done=True, seconds=begun.seconds + time.monotonic() - start, result=result)

    def _count(self, stage: Stage, seconds: float) -> None:
        """Count the time of a stage that is done."""
        self._seconds[stage.effort.unit] += seconds
        self._numbers[stage.effort.unit] += stage.effort.number

    def _time_left(self, num_done: int) -> str:
        """Describe the time left, as far as stages with the same unit of effort are done; empty if none is left."""
        left = [effort for effort in self.efforts[num_done:] if effort.number]
        known = [effort for effort in left if self._numbers.get(effort.unit)]
        if not known:
            return ""
        seconds = sum(e.number * self._seconds[e.unit] / self._numbers[e.unit] for e in known)
        least = "at least " if len(known) < len(left) else "about "
        return f" ({least}{format_duration(seconds)} left)"

    def _remove_earlier(self) -> None:
        """Remove the records of earlier stages, and their outputs in the folder; note that it was started over."""
        write_text(self.folder / _RECORDS / _FRESH, "")
        for path in sorted((self.folder / _RECORDS).glob("*.json")):
            record = None
            with suppress(StorageError):
                record = Record.read(path)
            # The outputs of a record that cannot be read should have its name.
            self._remove_outputs(record.outputs if record else [str(self.folder / path.stem)])
            with storage_errors(path):
                path.unlink()
        self._must_remove = False

    def _remove_outputs(self, outputs: Sequence[str]) -> None:
        """Remove those outputs of a stage that are in the folder."""
        for output in map(Path, outputs):
            if output.resolve().is_relative_to(self.folder.resolve()):
                remove_tree(output)
