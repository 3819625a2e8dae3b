"""Metrics that run in a Python environment of their own: COMET, MetricX, or any file with a class `Metric`.

The packages of neural metrics pin versions that exclude those of mtkit. So a metric runs in a child process under the
Python of its own environment, which executes `metric_worker/worker.py`; both exchange JSON objects, one a line, over
its stdin and stdout. `docs/external-metrics.md` describes the messages and how to write a metric.

What comes back is checked: a score that is missing or not finite is an error and never a number.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self

from mtkit.errors import ConfigError, DataError, MtkitError
from mtkit.evaluation.history import is_number
from mtkit.evaluation.metric_commands import WORKER_FOLDER, MetricCommand

_PROTOCOL = 1
_INPUTS = frozenset({"src", "hyp", "ref", "refs"})
_OWN_VARIABLES = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV"})
"""Environment variables about mtkit's Python, which another Python must not see."""

DECIMALS = 4
"""Digits after the point that are shown: scales differ, and many are from 0 to 1."""

_SILENCE_SECONDS = 600.0
_HELLO_SECONDS = 60.0
_END_SECONDS = 5.0
_STDERR_BYTES = 8192
_MAX_LINE = 1 << 28


@dataclass(frozen=True)
class ExternalScore:
    """Score of a system under an external metric.

    Attributes:
        name: the metric's name for itself, such as COMET.
        value: score of the system, on the metric's own scale.
        signature: how it was computed: number of references, model, version. A score is never shown without it.
        higher_is_better: whether more is better.
        segments: one score for each segment.
    """

    name: str
    value: float
    signature: str
    higher_is_better: bool
    segments: tuple[float, ...]

    def format(self) -> str:
        """Return one line in the form of sacreBLEU's."""
        return f"{self.name}|{self.signature} = {self.value:.{DECIMALS}f}"


class ExternalMetric:
    """A metric in a process of its own, to be used in a `with` statement.

    Entering starts the process and waits until the metric is loaded. After an error the process is stopped.

    Args:
        command: what to start.
        device: auto, cpu or cuda; cuda:1 is the second of the visible GPUs, which is then the only one that the metric
            sees, as cuda.
        silence_seconds: the longest that the process may say nothing, on stdout or stderr, before it is stopped.

    Attributes:
        name: the metric's name for itself.
        inputs: what it reads of a segment: "hyp" and some of "src", "ref" and "refs".
        higher_is_better: whether more is better.
    """

    def __init__(
        self,
        command: MetricCommand,
        *,
        device: str = "auto",
        silence_seconds: float = _SILENCE_SECONDS,
    ) -> None:
        self.command = command
        self.name = command.label
        self.inputs: frozenset[str] = frozenset()
        self.higher_is_better = True
        gpu = re.fullmatch(r"cuda:(\d+)", device)
        self._device = "cuda" if gpu else device
        self._gpu = int(gpu[1]) if gpu else None
        self._silence = silence_seconds
        self._next_id = 0

    def __enter__(self) -> Self:
        """Start the process and load the metric.

        Raises:
            ConfigError: If the process does not start, or lacks a package.
            DataError: If the process dies, is silent for too long, or does not keep the protocol.
        """
        self._start()
        try:
            hello = self._expect("hello", min(_HELLO_SECONDS, self._silence))
            if hello.get("protocol") != _PROTOCOL:
                raise self._nonsense(f"speaks protocol {hello.get('protocol')!r}, not {_PROTOCOL}")
            command = self.command
            self._send({"metric": command.metric, "model": command.model, "device": self._device})
            self._take_ready(self._expect("ready", self._silence))
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            with contextlib.suppress(OSError):
                self._stdin.close()  # the worker ends with its input
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
        self._kill()

    def score(
        self,
        srcs: Sequence[str] | None,
        hyps: Sequence[str],
        refs: Sequence[Sequence[str | None]],
        on_progress: Callable[[int], None] | None = None,
    ) -> ExternalScore:
        """Score a system.

        Args:
            srcs: source sentences, which some metrics do without.
            hyps: one translation per sentence.
            refs: streams of references, each as long as `hyps`; None is a missing reference.
            on_progress: called with the number of segments, or pairs of segment and reference, that are done.

        Raises:
            ConfigError: If the metric needs sources or references, and there are none.
            DataError: If the streams differ in length, the process dies, is silent for too long, or does not keep
                the protocol.
        """
        self._check_streams(srcs, hyps, refs)
        segments = [
            {
                "src": None if srcs is None else srcs[index],
                "hyp": hyp,
                "refs": [ref for stream in refs if (ref := stream[index]) is not None],
            }
            for index, hyp in enumerate(hyps)
        ]
        self._next_id += 1
        try:
            self._send({"id": self._next_id, "segments": segments})
            while (message := self._expect("scores", self._silence, progress=True))["type"] == "progress":
                if on_progress is not None and isinstance(message.get("done"), int):
                    on_progress(message["done"])
            return self._take_scores(message, len(hyps))
        except BaseException:
            self._kill()
            raise

    def _check_streams(
        self, srcs: Sequence[str] | None, hyps: Sequence[str], refs: Sequence[Sequence[str | None]]
    ) -> None:
        """Check that the metric gets what it needs.

        Raises:
            ConfigError: If sources or references are needed, and there are none.
            DataError: If there is nothing to score, or the streams differ in length.
        """
        if not hyps:
            raise DataError("no hypotheses to score")
        if "src" in self.inputs and srcs is None:
            raise ConfigError(f"{self.name} reads the source too", hint="give the source lines too")
        if srcs is not None and len(srcs) != len(hyps):
            raise DataError(f"{len(hyps)} hypotheses but {len(srcs)} sources")
        for stream in refs:
            if len(stream) != len(hyps):
                raise DataError(f"{len(hyps)} hypotheses but {len(stream)} references")
        if self.inputs & {"ref", "refs"}:
            for index in range(len(hyps)):
                if all(stream[index] is None for stream in refs):
                    raise DataError("no reference", where=f"sentence {index + 1}")

    def _start(self) -> None:
        """Start the process, and threads that read what it prints.

        Raises:
            ConfigError: If it cannot be started.
        """
        environment = {key: value for key, value in os.environ.items() if key not in _OWN_VARIABLES}
        if self.command.python == sys.executable:
            environment = dict(os.environ)
        if self._gpu is not None:
            # if there are fewer GPUs, the metric sees none and says so
            visible = environment.get("CUDA_VISIBLE_DEVICES")
            gpus = [str(self._gpu)] if visible is None else visible.split(",")[self._gpu :]
            environment["CUDA_VISIBLE_DEVICES"] = gpus[0] if gpus else ""
        try:
            self._process = subprocess.Popen(
                [self.command.python, str(WORKER_FOLDER / "worker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environment | {"PYTHONIOENCODING": "utf-8"},
                start_new_session=True,  # Ctrl-C reaches mtkit alone, which then stops the whole group
            )
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise ConfigError(
                f"cannot start its Python: {reason.lower()}", where=self.command.python
            ) from error
        assert self._process.stdin is not None
        self._stdin = self._process.stdin
        self._events: queue.Queue[bytes | None] = queue.Queue()
        self._last_sign = time.monotonic()
        self._stderr = b""
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._read_stdout, self._read_stderr)
        ]
        for thread in self._threads:
            thread.start()

    def _read_stdout(self) -> None:
        """Queue each line of stdout, and None at its end."""
        assert self._process.stdout is not None
        with os.fdopen(os.dup(self._process.stdout.fileno()), "rb") as stdout:
            while line := stdout.readline(_MAX_LINE):
                self._last_sign = time.monotonic()
                self._events.put(line)
        self._events.put(None)

    def _read_stderr(self) -> None:
        """Keep the end of stderr; anything that comes is a sign of life."""
        assert self._process.stderr is not None
        descriptor = self._process.stderr.fileno()
        while block := os.read(descriptor, 4096):
            self._last_sign = time.monotonic()
            self._stderr = (self._stderr + block)[-_STDERR_BYTES:]

    def _send(self, message: dict[str, Any]) -> None:
        """Write a message in a thread, because a process that reads nothing would block the writer."""
        line = (json.dumps(message) + "\n").encode()
        stdin = self._stdin

        def write() -> None:
            view = memoryview(line)
            with contextlib.suppress(OSError, ValueError):  # that it died is seen at the end of its output
                while view:
                    view = view[stdin.write(view) :]

        threading.Thread(target=write, daemon=True).start()

    def _expect(self, kind: str, limit: float, *, progress: bool = False) -> dict[str, Any]:
        """Return the next message, which is to be of a kind, or one of progress.

        Raises:
            ConfigError: If the metric lacks a package.
            DataError: If another message comes, or none.
        """
        message = self._parse(self._next_line(limit))
        match message.get("type"):
            case "error":
                self._fail(message)
            case "progress" if progress and message.get("id") == self._next_id:
                return message
            case found if found == kind and message.get("id") == (self._next_id if progress else None):
                return message
        raise self._nonsense(f"sent a message of type {message.get('type')!r} in place of {kind!r}")

    def _next_line(self, limit: float) -> bytes:
        """Return the next line of stdout.

        Raises:
            DataError: If the process ended, or was silent for longer than the limit.
        """
        self._last_sign = time.monotonic()
        while True:
            left = self._last_sign + limit - time.monotonic()
            if left <= 0:
                raise self._error(
                    f"silent for {limit:g} s; stopped", "give it more time, or try its environment by hand"
                )
            try:
                line = self._events.get(timeout=left)
            except queue.Empty:
                continue
            if line is None:
                raise self._death()
            return line

    def _parse(self, line: bytes) -> dict[str, Any]:
        """Parse a line.

        Raises:
            DataError: If it is no JSON object, or ends before its line does.
        """
        try:
            message = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            text = line[:60].decode("utf-8", errors="replace").strip()
            raise self._nonsense(f"printed {text!r}, which is no message")
        return message

    def _take_ready(self, message: dict[str, Any]) -> None:
        """Take what the metric says about itself.

        Raises:
            DataError: If it makes no sense.
        """
        name, inputs, higher = (message.get(key) for key in ("name", "inputs", "higher_is_better"))
        if not isinstance(name, str) or not name or "\n" in name or not isinstance(higher, bool):
            raise self._nonsense("gave no name, or not whether higher is better")
        if not isinstance(inputs, list) or not {"hyp"} <= set(map(str, inputs)) <= _INPUTS:
            raise self._nonsense(
                f"reads {inputs!r}; known are {', '.join(sorted(_INPUTS))}, and hyp is needed"
            )
        self.name, self.inputs, self.higher_is_better = name, frozenset(inputs), higher

    def _take_scores(self, message: dict[str, Any], num_segments: int) -> ExternalScore:
        """Check scores, and return them.

        Raises:
            DataError: If there are too few or too many, one is no finite number, or the signature is missing.
        """
        scores, system, signature = (message.get(key) for key in ("scores", "system", "signature"))
        if not isinstance(scores, list) or len(scores) != num_segments:
            count = len(scores) if isinstance(scores, list) else "no"
            raise self._nonsense(f"returned {count} scores for {num_segments} segments")
        for number, score in enumerate(scores, 1):
            if not is_number(score):
                raise self._nonsense(f"scored segment {number} with {score!r}, which is no finite number")
        if not is_number(system):
            raise self._nonsense(f"scored the system with {system!r}, which is no finite number")
        if not isinstance(signature, str) or not signature or "\n" in signature:
            raise self._nonsense("gave no signature")
        return ExternalScore(
            self.name, float(system), signature, self.higher_is_better, tuple(map(float, scores))
        )

    def _fail(self, message: dict[str, Any]) -> NoReturn:
        """Raise what the worker reports.

        Raises:
            ConfigError: If a package is missing.
            DataError: In all other cases.
        """
        missing = message.get("missing")
        if isinstance(missing, str):
            packages, python = self.command.install or missing.partition(".")[0], self.command.python
            hint = f"{python} -m pip install {packages}"
            # its packages would replace those of mtkit
            if python == sys.executable and self.command.install is not None:
                folder = f"{self.command.label.partition(':')[0]}-env"
                hint = f"python3 -m venv {folder}; {folder}/bin/pip install {packages}; then name this environment"
            raise ConfigError(
                f"the environment of {self.command.label} has no package {missing}", where=python, hint=hint
            )
        raise self._error(" ".join(str(message.get("what")).split()))

    def _death(self) -> MtkitError:
        """Return the error that says how the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        for thread in self._threads:
            thread.join(_END_SECONDS)
        code = self._process.returncode
        if code is None:
            how = "closed its output"
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
            how += ", perhaps for its memory" if code == -signal.SIGKILL else ""
        else:
            how = f"ended with exit code {code}"
        return self._error(f"its process {how}")

    def _nonsense(self, what: str) -> MtkitError:
        return self._error(what, "the metric or its environment is at fault")

    def _error(self, what: str, hint: str | None = None) -> MtkitError:
        """Return an error in one line, with the last line that the process printed to stderr."""
        printed = self._stderr.decode("utf-8", errors="replace").replace("\r", "\n").split("\n")
        last = next((line.strip() for line in reversed(printed) if line.strip()), None)
        if last is not None and last not in what:
            hint = f"{hint}; its last words: {last[:200]}" if hint else f"its last words: {last[:200]}"
        return DataError(what, where=f"metric {self.command.label}", hint=hint)

    def _kill(self) -> None:
        """End the process and all that it started, and close what connects to it."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for thread in self._threads:
            thread.join(_END_SECONDS)
        for stream in (self._stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
