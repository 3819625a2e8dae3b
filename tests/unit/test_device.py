"""Choosing the GPU of a process, and its errors, with PyTorch's CUDA calls faked: no GPU is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.cuda._utils import _get_device_index

from mtkit.device import choose_device, out_of_memory_errors
from mtkit.errors import ConfigError, TrainingError
from mtkit.training import distributed
from mtkit.training.distributed import World, init_distributed

TOLD = {"WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}


class Gpus:
    """Stands for `torch.cuda` on a machine with several GPUs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.present, self.capability = 0, (9, 0)
        fakes = {
            "is_available": lambda: count > 0,
            "device_count": lambda: count,
            "current_device": lambda: self.present,
            "set_device": self.set_device,
            "get_arch_list": lambda: ["sm_75", "sm_80", "sm_90a", "compute_120"],
            "get_device_capability": lambda device: self.capability,
            "get_device_name": lambda device: "Tesla V100",
            "get_device_properties": lambda device: SimpleNamespace(uuid=f"GPU-{device.index}"),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        self.uses_cudnn = True
        monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", self.enable_cudnn_sdp)

    def enable_cudnn_sdp(self, enabled: bool) -> None:
        self.uses_cudnn = enabled

    def set_device(self, device: torch.device) -> None:
        """Refuse a device without an index, as PyTorch does."""
        self.present = _get_device_index(device)


@pytest.mark.parametrize(
    ("capability", "is_supported"),
    [((7, 0), False), ((7, 5), True), ((8, 9), True), ((9, 0), True), ((10, 0), False), ((12, 1), True)],
)
def test_a_gpu_that_pytorch_was_not_built_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], is_supported: bool
) -> None:
    Gpus(monkeypatch, 1).capability = capability
    if is_supported:
        assert choose_device("auto") == torch.device("cuda", 0)
        return
    with pytest.raises(ConfigError, match=r"this PyTorch has no kernels for Tesla V100 \(sm_\d+\)"):
        choose_device("auto")


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("count", "local_rank", "expected"),
    [
        (2, 0, 0),
        (2, 1, 1),
        (1, 0, 0),
        (1, 1, 0),
    ],  # the last two: a launcher that shows each process its own GPU
)
def test_every_process_has_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, name: str, count: int, local_rank: int, expected: int
) -> None:
    Gpus(monkeypatch, count)
    assert choose_device(name, local_rank=local_rank) == torch.device("cuda", expected)


def test_one_process_has_the_present_gpu_or_the_one_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus(monkeypatch, 2)
    assert choose_device("cpu").type == "cpu" and gpus.uses_cudnn
    assert choose_device("cuda") == choose_device("auto") == torch.device("cuda:0")
    assert not gpus.uses_cudnn
    assert choose_device("cuda:1") == torch.device("cuda:1")
    gpus.set_device(torch.device("cuda:1"))  # a user's own choice, or training's before its test sets
    assert choose_device("cuda") == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("name", "count", "local_rank", "message"),
    [
        ("cuda", 0, None, "training.device: no device 'cuda': PyTorch sees no GPU (auto or cpu)"),
        ("cuda:2", 2, None, "training.device: no device 'cuda:2': PyTorch sees 2 GPUs (auto or cpu)"),
        (
            "cuda:1",
            2,
            1,
            "training.device: 'cuda:1' is one GPU, but each of the processes needs its own (cuda or auto)",
        ),
        (
            "cuda",
            2,
            2,
            "training.device: no GPU for local rank 2: PyTorch sees 2 GPUs (start one process per GPU)",
        ),
    ],
)
def test_a_gpu_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, name: str, count: int, local_rank: int | None, message: str
) -> None:
    Gpus(monkeypatch, count)
    with pytest.raises(ConfigError) as caught:
        choose_device(name, local_rank=local_rank)
    assert str(caught.value) == message


def fake_join(monkeypatch: pytest.MonkeyPatch, rank: int, gpus_seen: list[str]) -> list[Any]:
    """Make `init_distributed` join no group; return the list of backends it asks for."""
    asked: list[Any] = []
    for name, value in (TOLD | {"RANK": str(rank), "LOCAL_RANK": str(rank)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "rendezvous_store", lambda rank, size: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: asked.append(backend))
    monkeypatch.setattr(torch.distributed, "new_group", lambda **_: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(World, "all_gather", lambda self, value: gpus_seen)
    return asked


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_join_on_two_gpus(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    gpus = Gpus(monkeypatch, 2)
    asked = fake_join(monkeypatch, rank, ["GPU-0", "GPU-1"])
    with init_distributed(choose_device("auto", local_rank=rank)) as world:
        assert (gpus.present, world.local_rank) == (rank, rank)
        assert choose_device("auto", local_rank=world.local_rank).index == rank  # the trainer asks again
        assert choose_device("auto").index == rank  # and so do the test sets
    assert asked == ["cpu:gloo,cuda:nccl"]


def test_two_processes_that_see_the_same_gpu_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpus(monkeypatch, 1)
    fake_join(monkeypatch, 1, ["GPU-0", "GPU-0"])
    with pytest.raises(ConfigError) as caught, init_distributed(choose_device("auto", local_rank=1)):
        pytest.fail("joined")
    assert str(caught.value) == (
        "training.device: processes 0 and 1 have the same GPU (start as many processes as there are GPUs)"
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_every_lack_of_memory_is_known(error: RuntimeError) -> None:
    with (
        pytest.raises(TrainingError, match=r"^out of memory \(buy some\)$"),
        out_of_memory_errors("buy some"),
    ):
        raise error


def test_other_errors_are_not_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="illegal"), out_of_memory_errors("buy some"):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
