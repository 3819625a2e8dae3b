"""CUDA graphs: a sequence of operations on a GPU that is recorded once and then started with a single call.

Python and PyTorch need longer to start the few hundred operations of a step than a GPU needs to run them.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from mtkit.errors import ConfigError

Call = Callable[[], None]
"""A function that works in place, each time on the same tensors, and whose operations do not depend on their values."""
Capture = Callable[[Call], Call]
"""Returns a call that does what the given one does; the given one may be run, but its operations have no effect."""


def are_wanted(device: torch.device) -> bool:
    """Return whether to use graphs: on a GPU, unless MTKIT_CUDA_GRAPHS is "none".

    Raises:
        ConfigError: If the variable has another value.
    """
    value = os.environ.get("MTKIT_CUDA_GRAPHS", "")
    if value not in ("", "none"):
        raise ConfigError(
            f"unknown value {value!r}", where="MTKIT_CUDA_GRAPHS", hint="none, or leave it unset"
        )
    return device.type == "cuda" and not value


def without_graphs(call: Call) -> Call:
    """Return the call itself: the `Capture` of a device that has no graphs."""
    return call


def cuda_graphs(device: torch.device) -> Capture:
    """Return what captures calls on a GPU. Its graphs share the memory of their temporary tensors.

    A call that cannot be captured is returned as it is, with a warning.
    """
    pool = torch.cuda.graph_pool_handle()
    stream = torch.cuda.Stream(device)  # one for all graphs: cuBLAS keeps a workspace for each stream
    # A pool ends with the last of its graphs, and its handle with it. This one stays, even if all others are dropped.
    kept: torch.cuda.CUDAGraph | None = None

    def capture(call: Call) -> Call:
        nonlocal pool, kept
        try:
            graph = None
            with suppress(torch.OutOfMemoryError):
                graph = _record(call, pool, stream)
            if graph is None:
                torch.cuda.empty_cache()  # PyTorch does not do so itself while it records
                graph = _record(call, pool, stream)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # PyTorch may still record into the pool, and would refuse to begin another graph there
            pool, kept = torch.cuda.graph_pool_handle(), None
            message = f"this step runs without a CUDA graph, more slowly: {str(error).strip()}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            return call
        kept = kept or graph
        replay: Call = graph.replay
        return replay

    return capture


def _record(call: Call, pool: Any, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """Return a graph of a call, which is recorded on a stream."""
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    collects = gc.isenabled()
    gc.disable()  # to free the tensors or graphs of others would disturb the recording
    try:
        with torch.cuda.stream(stream):
            # a thread without a handle of cuBLAS gets one here: while it records it cannot
            torch.cuda.current_blas_handle()
            # The workspace of cuBLAS is made anew in the pool of the graphs, and forgotten after the recording. If one
            # outside of the pool were shared, dropping a graph would free it, since PyTorch PR 175276.
            torch._C._cuda_clearCublasWorkspaces()
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                call()
            except BaseException:
                with suppress(RuntimeError):  # which says only that the recording is of no use
                    graph.capture_end()
                raise
            graph.capture_end()
            torch._C._cuda_clearCublasWorkspaces()
    finally:
        if collects:
            gc.enable()
    current.wait_stream(stream)
    return graph


class ReplayedCall:
    """A call that is run the first time, when libraries prepare what they need, then captured and replayed.

    Args:
        call: the call.
        capture: captures it.

    Attributes:
        is_captured: whether it is replayed.
    """

    def __init__(self, call: Call, capture: Capture) -> None:
        self._call, self._capture = call, capture
        self._num_calls, self.is_captured = 0, False

    def __call__(self) -> None:
        """Run or replay it."""
        if self._num_calls == 1:
            original, self._call = self._call, self._capture(self._call)
            self.is_captured = self._call is not original
        self._call()
        self._num_calls += 1
