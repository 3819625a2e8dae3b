"""A GPU that exists in name only: tensors in main memory that refuse to mix with those of the CPU.

Inside `PretendedGPU`, a tensor that is made on or moved to "cuda" computes on the CPU with real values, so code that
depends on values runs as it would. But it says that its device is cuda:0, so the code for GPUs is what runs, and:

- An operation with tensors of both kinds raises, as PyTorch does on a GPU. What PyTorch allows there is allowed here:
  numbers (tensors without dimensions) of the CPU, and indices on the CPU.
- Whatever makes the CPU wait for a GPU is counted, with the line of mtkit that asked for it: reading a value (`item`,
  `tolist`, `bool`), operations whose result has a shape that depends on values (`nonzero`, boolean indices), and copies
  in either direction, unless they are asynchronous and from pinned memory.

A CUDA graph is a recording of operations (see `taped_calls`), in which nothing may wait.

Which storages are on the GPU is an attribute of theirs. Function modes see calls of Python (devices are arguments and
properties there); dispatch modes see every operation below, those of the backward pass included.
"""

from __future__ import annotations

import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint
from taped_calls import READS_VALUES, tape
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mtkit.search import buckets

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")

_DEVICE = torch.Tensor.device.__get__  # type: ignore[attr-defined]
_IS_CUDA = torch.Tensor.is_cuda.__get__  # type: ignore[attr-defined]
_IS_CPU = torch.Tensor.is_cpu.__get__  # type: ignore[attr-defined]
_TO_HOST = (torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__)
_FROM_HOST = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")


def is_on_gpu(tensor: Tensor) -> bool:
    """Return whether a tensor is on the pretended GPU."""
    return getattr(tensor.untyped_storage(), "on_gpu", False)


def _is_gpu(device: object) -> bool:
    return torch.device(device).type == "cuda" if isinstance(device, str | torch.device) else False


class PretendedGPU:
    """The GPU, to be entered.

    Attributes:
        waits: where the CPU had to wait for it, and why, in order.
    """

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.launches = 0
        """Operations on the GPU."""
        self._local = threading.local()
        self._stack = ExitStack()

    def __enter__(self) -> PretendedGPU:
        for target, name, fake in _patches(self):
            self._stack.enter_context(mock.patch.object(target, name, fake))
        self._stack.enter_context(self.modes())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextmanager
    def modes(self) -> Iterator[None]:
        """See the calls of this thread inside the block."""
        with _Operations(self), _Functions(self):
            yield

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Yield what the block waited for, once it is over: how often, by place."""
        start, found = len(self.waits), Counter[str]()
        yield found
        found.update(self.waits[start:])

    def wait(self, why: str) -> None:
        """Count a wait, at the innermost line of mtkit."""
        frames = [
            f for f in traceback.extract_stack() if "/mtkit/" in f.filename and "/tests/" not in f.filename
        ]
        place = f"{frames[-1].filename.rpartition('/mtkit/')[2]}:{frames[-1].lineno}" if frames else "a test"
        self.waits.append(f"{place} {why}")

    @property
    def wanted(self) -> str | None:
        """Device of a tensor that is made now: the argument of the call if it has one, or that of its tensors."""
        return getattr(self._local, "wanted", None)

    @property
    def asked_for(self) -> str | None:
        """Device that is an argument of the present call."""
        return getattr(self._local, "asked_for", None)

    @contextmanager
    def making(self, asked_for: str | None, otherwise: str) -> Iterator[None]:
        """Make tensors on this device inside the block."""
        before = self.wanted, self.asked_for
        self._local.wanted, self._local.asked_for = asked_for or otherwise, asked_for
        try:
            yield
        finally:
            self._local.wanted, self._local.asked_for = before


class _Functions(TorchFunctionMode):
    """Answers questions about devices, and keeps the word "cuda" from a PyTorch that may know none."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        own = args[0] if args and isinstance(args[0], Tensor) else None
        if own is not None and not own.is_meta:
            if func == _DEVICE:
                return GPU if is_on_gpu(own) else func(*args)
            if func == _IS_CUDA:
                return is_on_gpu(own)
            if func == _IS_CPU:
                return not is_on_gpu(own)
            if func is torch.Tensor.get_device:
                return 0 if is_on_gpu(own) else -1
            if func in _TO_HOST and is_on_gpu(own):
                raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu() first")
            if func is torch.Tensor.tolist and is_on_gpu(own):
                self.gpu.wait("tolist")
                return func(*args)
            if func is torch.Tensor.pin_memory:
                pinned = own.clone()
                pinned.untyped_storage().pinned = True  # type: ignore[attr-defined]
                return pinned
            if func is torch.Tensor.is_pinned:
                return getattr(own.untyped_storage(), "pinned", False)
            if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
                return self._move(func, own, args[1:], kwargs)
        if getattr(func, "__name__", "") == "_parse_to":  # of nn.Module.to
            return func(*args, **kwargs)
        asked_for = None
        if "device" in kwargs and kwargs["device"] is not None:
            asked_for = "gpu" if _is_gpu(kwargs["device"]) else str(kwargs["device"])
            kwargs["device"] = CPU if asked_for == "gpu" else kwargs["device"]
        on_gpu = any(isinstance(x, Tensor) and not x.is_meta and is_on_gpu(x) for x in _flat((args, kwargs)))
        with self.gpu.making(asked_for, "gpu" if on_gpu else "cpu"):
            out = func(*args, **kwargs)
        is_new = asked_for == "gpu" or (asked_for is None and on_gpu and func is torch.Tensor.new_tensor)
        if func in _FROM_HOST and is_new and not is_on_gpu(out):
            self.gpu.wait("a copy of numbers to the GPU")
            out.untyped_storage().on_gpu = True
        return out

    def _move(self, func: Any, own: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """Do the work of `to`, `cpu` and `cuda`."""
        here = GPU if is_on_gpu(own) else CPU
        copy = kwargs.pop("copy", False)
        if func is torch.Tensor.to:
            if args and isinstance(args[0], Tensor):
                args = (GPU if is_on_gpu(args[0]) else args[0].device, args[0].dtype, *args[1:])
            device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        else:
            device, dtype = (CPU if func is torch.Tensor.cpu else GPU), None
            non_blocking, memory_format = kwargs.get("non_blocking", False), None
        device = here if device is None else device
        if device.type not in ("cpu", "cuda"):
            return func(own, device)
        options: dict[str, Any] = {} if memory_format is None else {"memory_format": memory_format}
        target = "gpu" if device.type == "cuda" else "cpu"
        with self.gpu.making(target, target):
            if device.type == here.type:
                return torch.Tensor.to(own, CPU, dtype or own.dtype, copy=copy, **options)
            is_pinned = target == "cpu" or getattr(own.untyped_storage(), "pinned", False)
            if not (non_blocking and is_pinned):
                self.gpu.wait(f"a copy to the {target}")
            return torch.Tensor.to(own, CPU, dtype or own.dtype, copy=True, **options)


class _Operations(TorchDispatchMode):
    """Checks and counts the operations, and keeps track of where their results are."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and its import takes seconds

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        tensors = [x for x in _flat((args, kwargs)) if isinstance(x, Tensor) and not x.is_meta]
        ours = [x for x in tensors if is_on_gpu(x)]
        others = [x for x in tensors if not is_on_gpu(x)]
        if ours:
            self.gpu.launches += 1
            self._check(name, func, args, others)
            self._count(name, args, kwargs, others)
        out = func(*args, **kwargs)
        target = "gpu" if ours else "cpu"
        if not tensors:
            target = self.gpu.wanted or "cpu"
        if name in ("_to_copy", "to") and self.gpu.asked_for is not None:
            target = self.gpu.asked_for
        if target == "gpu":
            present = {x.untyped_storage()._cdata for x in others}
            for x in _flat(out):
                if isinstance(x, Tensor) and not x.is_meta and x.untyped_storage()._cdata not in present:
                    x.untyped_storage().on_gpu = True  # type: ignore[attr-defined]
        return out

    def _check(self, name: str, func: Any, args: Any, others: list[Tensor]) -> None:
        """Raise if an operation would mix both kinds of tensors."""
        if name in ("copy_", "_foreach_copy_", "_to_copy", "to", "record_stream"):
            return
        allowed: list[Tensor] = []
        if name in _INDEXED:
            allowed = [x for x in args[1] if x is not None]
        wrong = [x for x in others if x.dim() and not any(x is each for each in allowed)]
        if func._schema.is_mutable and args and any(args[0] is x for x in others):
            wrong.append(args[0])
        if wrong:
            shapes = ", ".join(str(list(x.shape)) for x in wrong)
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({name} with {shapes} on the CPU)"
            )

    def _count(self, name: str, args: Any, kwargs: dict[str, Any], others: list[Tensor]) -> None:
        """Count what an operation on the GPU would wait for."""
        if name in READS_VALUES:
            self.gpu.wait(name)
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.gpu.wait("repeat_interleave without output_size")
        if name == "copy_" and others and args[0].numel() and args[1].dim():
            non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            is_pinned = args[0] is others[0] or getattr(args[1].untyped_storage(), "pinned", False)
            if not (non_blocking and is_pinned):
                self.gpu.wait("a copy between CPU and GPU")
        if name in _INDEXED:
            indices = [x for x in args[1] if x is not None]
            bools = [x for x in indices if x.dtype in (torch.bool, torch.uint8)]
            is_number = len(args) > 2 and args[2].dim() == 0 and any(args[2] is x for x in others)
            if bools and not (is_number and len(indices) == 1):  # with one mask a number is filled in
                self.gpu.wait("a boolean index")
            elif any(x is each for x in indices for each in others):
                self.gpu.wait("an index on the CPU")
            elif is_number and not bools:
                self.gpu.wait("a number on the CPU, assigned by an index")


def _flat(values: Any) -> list[Any]:
    return tree_flatten(values)[0]


def _patches(gpu: PretendedGPU) -> Iterator[tuple[Any, str, Any]]:
    """Yield what stands for a CUDA build of PyTorch: module or class, name, and its stand-in."""
    real_submit, real_backward = ThreadPoolExecutor.submit, torch.autograd.backward
    real_engine = torch.autograd._engine_run_backward
    real_group = torch._C._group_tensors_by_device_and_dtype

    def submit(pool: ThreadPoolExecutor, task: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        def seen() -> Any:
            with gpu.modes():
                return task(*args, **kwargs)

        return real_submit(pool, seen)

    def backward(tensor: Tensor, *args: Any, **kwargs: Any) -> None:
        with gpu.making(None, "gpu" if is_on_gpu(tensor) else "cpu"):
            real_backward(tensor, *args, **kwargs)

    def group(columns: Any, with_indices: bool = False) -> dict[Any, Any]:
        grouped = real_group(columns, with_indices)
        first = {
            key: next(x for column in value[0] for x in column if x is not None)
            for key, value in grouped.items()
        }
        return {(first[key].device, key[1]): value for key, value in grouped.items()}

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        with _Functions(gpu):  # PyTorch leaves the mode for the call that led here, but Python runs in it
            return real_engine(*args, **kwargs)

    def capture(call: Callable[[], None]) -> Callable[[], None]:
        with gpu.counted() as waits:
            repeat = tape(call)
        if waits:
            raise RuntimeError(f"operation not permitted when stream is capturing: {waits}")

        def replay() -> None:
            with gpu.making("gpu", "gpu"):
                repeat()

        return replay

    yield buckets, "cuda_graphs", lambda device: capture
    yield ThreadPoolExecutor, "submit", submit
    yield torch.autograd, "_engine_run_backward", run_backward
    yield torch._C, "_group_tensors_by_device_and_dtype", group
    # What is saved for a backward pass is saved below the modes, where all tensors are on the CPU.
    checks = {"default": lambda x: {"shape": x.shape, "dtype": x.dtype}}
    yield torch.utils.checkpoint, "_allowed_determinism_checks_to_fns", checks
    yield torch.Tensor, "backward", backward
    properties = mock.Mock(total_memory=8 << 30, uuid="0", major=9, minor=0, multi_processor_count=1)
    properties.name = "pretended"
    stands_for: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": lambda device: nullcontext(),
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda device=None: gpu.wait("synchronize"),
        "max_memory_allocated": lambda device=None: 1 << 20,
        "memory_allocated": lambda device=None: 1 << 20,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda device=None: (8 << 30, 8 << 30),
        "get_device_name": lambda device=None: "pretended",
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (9, 0),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "manual_seed_all": lambda seed: None,
        "is_current_stream_capturing": lambda: False,
    }
    yield from ((torch.cuda, name, fake) for name, fake in stands_for.items())


def pretend_gpu() -> AbstractContextManager[PretendedGPU]:
    """Return a pretended GPU, to be entered."""
    return PretendedGPU()
