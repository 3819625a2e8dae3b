"""A CUDA graph in name only: the operations of a call are recorded with their tensors, and repeated on these.

As on a GPU, what Python does in the call happens once, when it is captured; a replay reads and writes the same memory.
Whatever a capture on a GPU refuses, since the CPU would have to wait, is refused here too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

READS_VALUES = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "_unique2",
    "unique_dim",
}
"""Operations for which the CPU waits."""


def tape(call: Callable[[], None]) -> Callable[[], None]:
    """Return a call that repeats the operations of `call`; the first time, they were done while it was recorded."""
    with Recorder() as recorder:
        call()
    is_done = True

    def replay() -> None:
        nonlocal is_done
        if not is_done:
            recorder.replay()
        is_done = False

    return replay


class Recorder(TorchDispatchMode):
    """Records operations.

    Attributes:
        shapes: name of each operation, and the shapes of its tensors.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and its import takes seconds

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.shapes: list[tuple[str, list[list[int]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        inputs = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        is_masked = name.startswith(("index", "_index_put")) and any(
            x.dtype == torch.bool for x in inputs[1:]
        )
        if name in READS_VALUES or (is_masked and name != "index_copy_"):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        out = func(*args, **kwargs)
        known = {x.untyped_storage()._cdata for x in inputs}
        outputs = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]
        is_view = all(x.untyped_storage()._cdata in known for x in outputs) and not func._schema.is_mutable
        self.shapes.append((name, [list(x.shape) for x in (*inputs, *outputs)]))
        if not is_view:
            self._operations.append((func, args, kwargs, outputs))
        return out

    def replay(self) -> None:
        """Do the operations again."""
        for func, args, kwargs, outputs in self._operations:
            with torch._C.DisableTorchFunction():  # modes of functions have seen the call already
                again = tree_flatten(func(*args, **kwargs))[0]
            for out, new in zip(outputs, (x for x in again if isinstance(x, Tensor)), strict=True):
                if new is not out:
                    out.copy_(new)
