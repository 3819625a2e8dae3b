"""How the model is spread over processes: whole in each (DDP), or in shards (FSDP2), by PyTorch's own engine.

With DDP (Li et al. 2020) every process has all weights, and gradients are averaged. With FSDP2 (Zhao et al. 2023)
each holds a shard of weights, gradients and optimizer, and a layer's weights are gathered while it runs.
PyTorch's sharding takes half a second to import: only a run that shards does so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtkit.data.batching import Batch
from mtkit.model.transformer import Transformer
from mtkit.training.distributed import World
from mtkit.training.loss import TensorBatch, hidden_at_targets, loss_sums

Stage = Callable[[str], AbstractContextManager[None]]
"""Entered around each stage of an update, for a benchmark to measure."""


def untimed(name: str) -> AbstractContextManager[None]:
    """The stage that nobody measures."""
    return nullcontext()


class Objective(nn.Module):
    """A model and its loss as one module: what DDP and FSDP2 wrap, so that their hooks see all of the way."""

    def __init__(self, model: Transformer, label_smoothing: float) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing
        self.stage: Stage = untimed

    def forward(self, batch: Batch | TensorBatch) -> tuple[Tensor, Tensor]:
        """Loss and nll sums over the real targets of a batch."""
        with self.stage("forward"):
            hidden_MD, targets_M = hidden_at_targets(self.model, batch)
        with self.stage("loss"):
            sums = loss_sums(hidden_MD, self.model.output.weight, targets_M, self.label_smoothing)
        return sums.loss, sums.nll


def whole_in_each(objective: Objective, world: World) -> nn.Module:
    """The objective as several processes run it, each with all of the model (DDP); alone, as it is."""
    return (
        DistributedDataParallel(objective, gradient_as_bucket_view=True)
        if world.is_distributed
        else objective
    )


def shard(
    objective: Objective,
    initial: Transformer | None,
    world: World,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give every process its shard of each layer, and of what is outside of the layers (FSDP2).

    No process has the whole model on its device: what is sharded together, most often a layer, is whole there for as
    long as it takes to cut it.

    Args:
        objective: of a model without memory, on the meta device.
        initial: in the main process, the same model with its first weights, on the CPU.
        world: every process of the run calls this.
        device: of the shards.
        dtype: of the matrix products: what FSDP2 gathers weights in.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    names = {parameter: name for name, parameter in objective.model.named_parameters()}
    weights = {} if initial is None else dict(initial.named_parameters())

    @torch.no_grad()
    def fill(parameter: nn.Parameter, tensor: Tensor) -> None:
        if weights:
            tensor.copy_(weights[names[parameter]])
        dist.broadcast(tensor, src=0)

    mesh = init_device_mesh(device.type, (world.size,))
    policy = MixedPrecisionPolicy(
        None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for layer in _layers_run_once(objective.model):
        materialize(layer, device, fill)
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    materialize(objective, device, fill)
    fully_shard(objective, mesh=mesh)


def materialize(
    module: nn.Module, device: torch.device, fill: Callable[[nn.Parameter, Tensor], object]
) -> None:
    """Give the parameters that are on the meta device memory; those that are shared stay shared.

    Args:
        module: with its submodules.
        device: where the memory is.
        fill: called with each such parameter and the tensor that takes its place, to write its values.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            if parameter not in made:
                tensor = torch.empty_like(parameter, device=device, requires_grad=False)
                fill(parameter, tensor)
                made[parameter] = nn.Parameter(tensor, parameter.requires_grad)
            setattr(part, name, made[parameter])


def _layers_run_once(model: Transformer) -> Iterator[nn.Module]:
    """The layers that are sharded one by one; those that run again in a cycle stay with the rest."""
    for layers, depth in ((model.encoder, model.encoder_depth), (model.decoder, model.decoder_depth)):
        if len(layers) == depth:
            yield from layers


@contextmanager
def no_gradient_sync(module: nn.Module, local: bool) -> Iterator[None]:
    """While accumulating, gradients stay in the process until the last batch of the update."""
    synchronize = getattr(module, "set_requires_gradient_sync", None)
    if synchronize is not None:  # FSDP2
        synchronize(not local)
        yield
        return
    with module.no_sync() if local and isinstance(module, DistributedDataParallel) else nullcontext():
        yield


def _is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor: held in parts by the processes."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded: every process has to ask for it."""
    gathered: Tensor = getattr(tensor, "full_tensor", lambda: tensor)()
    return gathered


def gathered(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """In the main process all tensors, those in shards made whole on its CPU; in the others none.

    All processes have to come here. One whole tensor at a time is on each device.
    """
    held: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if world.is_main:
            held[name] = whole(tensor).cpu() if _is_shard(tensor) else tensor
        else:
            whole(tensor)  # it takes all of them
    return held


def shard_like(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor as the other one is held: the same, or this process's shard of it."""
    tensor = tensor.to(like.device)
    if not (_is_shard(like) and tensor.dim()):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def num_held(tensor: Any) -> int:
    """Numbers of a tensor that this process holds."""
    held: Tensor = tensor.to_local() if _is_shard(tensor) else tensor
    return held.numel()


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether any of them is held in shards."""
    return any(map(_is_shard, parameters))
