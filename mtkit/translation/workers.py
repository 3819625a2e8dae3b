"""Workers: on a CPU, they compute batches at the same time, each a forked process with threads of its own.

Threads of one process fight over the interpreter's lock, which a step of a small model holds for most of its time. A
forked worker has the weights that are in memory already. The main process reads, tokenizes and detokenizes; workers
are given token ids and answer with hypotheses or scores, a batch at a time, as they become free. Which batches there
are does not depend on the number of workers, and so neither does a translation.

A worker that is killed takes nothing with it: its batch goes to another one, and at last to the main process.
"""

from __future__ import annotations

import os
import pickle
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from functools import cached_property, partial
from itertools import islice
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from mtkit.forking import Child, can_fork, fork_child
from mtkit.job_limits import available_bytes
from mtkit.translation.options import Parallelism

A = TypeVar("A")
R = TypeVar("R")

_WORKER_BYTES = 250_000_000
"""Memory that a worker of a small model takes for itself; `auto` starts no more than fit into half of what is free."""
_TASKS_AHEAD = 2
"""Batches for each worker: while there are fewer, further input is read."""


class Results(Iterator[R]):
    """Results in order, which may be computed before they are asked for.

    Args:
        results: the results.
        wants_more: returns whether workers are computing these, and will soon have nothing to do but for other
            arguments.
    """

    def __init__(self, results: Iterator[R], wants_more: Callable[[], bool] = lambda: False) -> None:
        self._results, self.wants_more = results, wants_more

    def __next__(self) -> R:
        return next(self._results)


class Workers:
    """Computes functions of batches in several processes, which start when they are needed and end with `close`.

    Args:
        device: where the functions compute. There are no workers for a GPU.
        forks: whether workers may be processes. These have the model as it was when they started.
    """

    def __init__(self, device: torch.device, *, forks: bool = False) -> None:
        self.functions: list[Callable[[Any], Any]] = []
        self.forks = forks
        self.on_cpu = device.type == "cpu"
        self._owner = os.getpid()
        self._children: list[Child] = []
        self._idle: SimpleQueue[Child | None] = SimpleQueue()
        self._num_lost = 0
        self._lock = threading.Lock()
        self._setup = threading.Lock()
        self._dealers: list[_Dealers] = []
        """The threads that wait for workers, or compute in their place, for each number of workers."""
        self._running: set[Future[Any]] = set()
        weakref.finalize(self, _close, self._children, self._dealers, self._owner)

    def add(self, *functions: Callable[[Any], Any]) -> None:
        """Add functions that workers can compute, before they start."""
        self.functions += functions

    def run(
        self,
        function: Callable[[A], R],
        arguments: Sequence[A],
        parallelism: Parallelism,
        *,
        window: int | None = None,
    ) -> Results[R]:
        """Return the results of a function for each argument, in order.

        Workers begin before the first result is asked for. With one worker, or one argument, this process computes
        each result when it is asked for.

        Args:
            function: one that was added.
            arguments: the arguments.
            parallelism: how many workers, with how many threads.
            window: results that may wait to be asked for, for each worker; None for no limit.
        """
        if self._owner != os.getpid():
            self._forget()
        number, num_threads = self.numbers(parallelism)
        number = min(number, len(arguments))
        if number < 2:
            return Results(self._compute_here(function, arguments, num_threads))
        dealers, forked = self._prepare(number, parallelism)
        index = self.functions.index(function) if forked else -1

        def submit(argument: A) -> Future[R]:
            if forked:
                compute = partial(self._ask, self._idle, index, argument, num_threads, parallelism.on_loss)
            else:
                compute = partial(_compute, function, argument, num_threads)
            task: Future[R] = Future()
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            dealers.tasks.put((task, compute))
            return task

        first = len(arguments) if window is None else number * window
        waiting = deque((submit(argument), argument) for argument in arguments[:first])
        compute_here = partial(self._compute_here, function, num_threads=num_threads)
        results = self._collect(waiting, iter(arguments[first:]), submit, compute_here, forked)

        def wants_more() -> bool:
            is_busy = not all(task.done() for task, _ in waiting)
            return is_busy and len(self._running) < _TASKS_AHEAD * dealers.number

        return Results(results, wants_more)

    def numbers(self, parallelism: Parallelism) -> tuple[int, int]:
        """Return the number of workers, and the threads of each; one worker has all threads."""
        available = torch.get_num_threads()
        if not self.on_cpu:
            number = 1
        elif parallelism.num_workers != "auto":
            number = parallelism.num_workers
        else:
            number = max(1, available // (parallelism.num_threads or 1))
            number = min(number, self._num_fitting) if self.forks else number
        return number, parallelism.num_threads or max(1, available // number)

    @cached_property
    def _num_fitting(self) -> int:
        """The workers that half of the memory holds, of what is free before the first one starts."""
        return max(1, int(available_bytes() / 2 / _WORKER_BYTES))

    def private_bytes(self) -> int:
        """Return the memory that the processes take beside that of the main process."""
        return sum(child.private_bytes() for child in self._children)

    def close(self) -> None:
        """End the workers. They hold no state, and start again when they are needed."""
        with self._lock:
            children, self._num_lost = list(self._children), 0
            self._children.clear()
            self._idle.put(None)  # whoever waits for an idle one
            self._idle = SimpleQueue()
        _close(children, self._dealers, self._owner)

    # --- this process -------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Forget the workers and the threads of the process that this one was forked from; fork none here."""
        self._owner, self._num_lost, self.forks = os.getpid(), 0, False
        self._idle, self._lock, self._setup = SimpleQueue(), threading.Lock(), threading.Lock()
        for inherited in (self._children, self._dealers, self._running):
            inherited.clear()

    def _compute_here(
        self, function: Callable[[A], R], arguments: Iterable[A], num_threads: int
    ) -> Iterator[R]:
        for argument in arguments:
            before = torch.get_num_threads()
            torch.set_num_threads(num_threads)
            try:
                result = [function(argument)]
            finally:
                torch.set_num_threads(before)
            yield result.pop()  # whoever asked decides how long it is kept

    def _collect(
        self,
        waiting: deque[tuple[Future[R], A]],
        rest: Iterator[A],
        submit: Callable[[A], Future[R]],
        compute_here: Callable[[list[A]], Iterator[R]],
        forked: bool,
    ) -> Iterator[R]:
        """Yield the results in order. What no worker is left for is computed here."""
        before = torch.get_num_threads()
        try:
            while waiting:
                task, argument = waiting[0]
                try:
                    result = [task.result()]
                except _NoWorkerLeftError:
                    result = list(compute_here([argument]))
                waiting.popleft()
                del task, argument
                waiting.extend((submit(following), following) for following in islice(rest, 1))
                yield result.pop()
        finally:
            running = [task for task, _ in waiting if not task.cancel()]
            if not forked:
                wait(running)  # a process must not end while one of its threads computes
                torch.set_num_threads(before)  # for threads that are yet to start

    def _may_fork(self, parallelism: Parallelism) -> bool:
        """Return whether workers may be forked now. A fork that nobody asked for needs a process without threads."""
        num_own = sum(dealers.number for dealers in self._dealers)
        alone = threading.active_count() - num_own == 1
        return can_fork() and (alone or parallelism.beside_threads or parallelism.num_workers != "auto")

    def _prepare(self, number: int, parallelism: Parallelism) -> tuple[_Dealers, bool]:
        """Start as many workers, unless they are there. One that was lost is not replaced: memory is short.

        Returns:
            The threads that wait for them, and whether they are processes.
        """
        with self._setup:
            may_fork = self.forks and self._may_fork(parallelism)
            while may_fork and len(self._children) + self._num_lost < number:
                try:
                    child = fork_child(len(self._children) + self._num_lost + 1, self._serve)
                except OSError as error:
                    parallelism.on_loss(f"no further worker could be started: {error.strerror}")
                    break
                self._children.append(child)
                self._idle.put(child)
            dealers = next((each for each in self._dealers if each.number == number), None)
            if dealers is None:
                dealers = _Dealers(number)
                self._dealers.append(dealers)
            return dealers, bool(self._children) or (may_fork and self._num_lost > 0)

    def _ask(
        self,
        idle: SimpleQueue[Child | None],
        index: int,
        argument: Any,
        num_threads: int,
        on_loss: Callable[[str], None],
    ) -> Any:
        """Let an idle worker compute a result; called in a thread for each worker. Raises an error if all are gone."""
        message = pickle.dumps((index, argument, num_threads), pickle.HIGHEST_PROTOCOL)
        while (child := idle.get()) is not None:
            try:
                child.connection.send_bytes(message)
                done, result = pickle.loads(child.connection.recv_bytes())
            except (EOFError, OSError):
                if self._lose(child):
                    how = child.describe_end()
                    on_loss(f"{how}; its batch is done again (if memory was short, use fewer workers)")
                continue
            idle.put(child)
            if not done:
                raise result
            return result
        idle.put(None)  # for the others who wait
        raise _NoWorkerLeftError

    def _lose(self, child: Child) -> bool:
        """Strike a worker off that has ended; returns whether it was lost, and not closed."""
        with self._lock:
            if child not in self._children:
                return False
            self._children.remove(child)
            self._num_lost += 1
            if not self._children:
                self._idle.put(None)
            return True

    # --- a worker -----------------------------------------------------------------------------------------------

    def _serve(self, connection: Connection) -> None:
        """Serve the main process until it ends. This is the whole life of a worker.

        It has a thread of its own, because the threads of OpenMP, which belong to the one that started them, were not
        forked.
        """
        thread = threading.Thread(target=self._answer_all, args=[connection])
        thread.start()
        thread.join()

    def _answer_all(self, connection: Connection) -> None:
        try:
            while True:
                index, argument, num_threads = pickle.loads(connection.recv_bytes())
                if torch.get_num_threads() != num_threads:
                    torch.set_num_threads(num_threads)
                connection.send_bytes(_answer(self.functions[index], argument))
        except (EOFError, OSError):  # the main process is gone
            return


class _NoWorkerLeftError(Exception):
    """All workers have ended."""


def _answer(function: Callable[[Any], Any], argument: Any) -> bytes:
    """Return a result, or the error in its place, as a message."""
    try:
        return pickle.dumps((True, function(argument)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        try:
            message = pickle.dumps((False, error), pickle.HIGHEST_PROTOCOL)
            pickle.loads(message)  # some errors can be written, but not read
        except Exception:
            return pickle.dumps((False, RuntimeError(text)), pickle.HIGHEST_PROTOCOL)
        return message


def _compute(function: Callable[[A], R], argument: A, num_threads: int) -> R:
    """Compute a result in a thread of this process."""
    torch.set_num_threads(num_threads)  # of this thread
    return function(argument)


class _Dealers:
    """Threads that compute tasks, each one at a time.

    They do not keep the process from ending: what they wait for are other processes.

    Args:
        number: number of threads.

    Attributes:
        tasks: what to compute, and where the result goes; None ends a thread.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        for _ in range(number):
            threading.Thread(target=_deal, args=[self.tasks], daemon=True).start()

    def end(self) -> None:
        """End the threads, after the tasks that they were given."""
        for _ in range(self.number):
            self.tasks.put(None)


def _deal(tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    """Compute one task after the other. This is the whole life of a thread."""
    while (item := tasks.get()) is not None:
        task, compute = item
        if not task.set_running_or_notify_cancel():
            continue
        try:
            result = compute()
        except BaseException as error:
            task.set_exception(error)
        else:
            task.set_result(result)
        del item, task, compute  # they would be kept until the next task


def _close(children: list[Child], dealers: list[_Dealers], owner: int) -> None:
    """End the workers of an object that is no longer used."""
    while dealers:
        dealers.pop().end()
    while os.getpid() == owner and children:
        children.pop().kill()
