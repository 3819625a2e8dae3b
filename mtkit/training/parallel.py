"""Data parallelism with PyTorch's own engines: DDP replicates the model, FSDP2 shards it.

With DDP (Li et al. 2020) every process has all weights, and gradients are averaged. With FSDP2 (Zhao et al. 2023) each
process holds a shard of the weights, gradients and optimizer state, and gathers a layer's weights while the layer runs.
PyTorch's sharding takes half a second to import, so it is imported only by a run that uses it.
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
from mtkit.model.working_weights import CastWeight
from mtkit.training.distillation import Teachers
from mtkit.training.distributed import World
from mtkit.training.guided_alignment import alignment_loss
from mtkit.training.loss import Consistency, TensorBatch, hidden_at_targets, loss_sums
from mtkit.training.minimum_risk import MinimumRisk

Stage = Callable[[str], AbstractContextManager[None]]
"""Returns a context manager for a stage of an update, so that a benchmark can time it. The stages are "data",
"forward", "loss", "backward" and "optimizer"."""


def untimed(name: str) -> AbstractContextManager[None]:
    """Return a context manager that does nothing: the stage of a run that is not timed."""
    return nullcontext()


class Objective(nn.Module):
    """A model and its loss as one module, which DDP and FSDP2 wrap so that their hooks see the whole forward pass."""

    def __init__(
        self,
        model: Transformer,
        label_smoothing: float,
        stage: Stage = untimed,
        consistency: Consistency | None = None,
        teachers: Teachers | None = None,
        guided_alignment: float = 0.0,
        minimum_risk: MinimumRisk | None = None,
        packed_pad: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.label_smoothing, self.stage = model, label_smoothing, stage
        self.consistency, self.teachers, self.guided_alignment = consistency, teachers, guided_alignment
        self.minimum_risk, self.packed_pad = minimum_risk, packed_pad

    def forward(self, batch: Batch | TensorBatch) -> tuple[Tensor, Tensor]:
        """Return the loss and negative log-likelihood of a batch, summed over its real target tokens."""
        if isinstance(batch, Batch):
            batch = TensorBatch.from_batch(batch, self.model.output.weight.device, self.packed_pad)
        with self.stage("forward"):
            distillation = None
            if self.teachers is not None:
                distillation = self.teachers.read(batch.src_BS, batch.tgt_in_BT, batch.at_targets)
            alignment: list[Tensor] | None = [] if self.guided_alignment else None
            hidden, targets_M = hidden_at_targets(self.model, batch, self.consistency, alignment)
        with self.stage("loss"):
            output = self.model.output
            sums = loss_sums(
                hidden,
                output.weight,
                targets_M,
                self.label_smoothing,
                output.bias,
                self.consistency,
                distillation,
                compiles=self.model.compiles,
                cast_weight_VD=output.working.copy if isinstance(output.working, CastWeight) else None,
            )
            loss = sums.loss
            if alignment and batch.links is not None:
                loss = loss + self.guided_alignment * self._alignment_loss(alignment[0], batch.links)
            if self.minimum_risk is not None:
                weight, risk = self.minimum_risk.weight, self.minimum_risk.loss(self.model, batch)
                loss = (1 - weight) * loss + weight * risk
        return loss, sums.nll

    def _alignment_loss(self, log_weights: Tensor, links: Tensor) -> Tensor:
        """Return the loss of guided alignment; of two streams the mean with the weights of their cross-entropies."""
        shares = (1.0,) if self.consistency is None else self.consistency.cross_entropy
        streams = log_weights.chunk(len(shares))
        losses = [
            share * alignment_loss(own, links) for share, own in zip(shares, streams, strict=True) if share
        ]
        return torch.stack(losses).sum()


def apply_ddp(objective: Objective, world: World) -> nn.Module:
    """Return the objective wrapped in DDP, or itself in a single process."""
    if not world.is_distributed:
        return objective
    return DistributedDataParallel(objective, gradient_as_bucket_view=True)


def apply_fsdp(
    objective: Objective,
    initial: Transformer | None,
    world: World,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Shard the objective in place with FSDP2: each layer, then everything outside the layers.

    No device ever holds the whole model: what is sharded together, mostly one layer, is materialized in full just long
    enough to be sharded.

    Args:
        objective: objective whose model is on the meta device.
        initial: in the main process, the same model with its initial weights, on the CPU.
        world: the processes, all of which must call this.
        device: device of the shards.
        dtype: dtype of matrix products, in which FSDP2 gathers weights.
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
        _materialize(layer, device, fill)
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    _materialize(objective, device, fill)
    fully_shard(objective, mesh=mesh)


def _materialize(
    module: nn.Module, device: torch.device, fill: Callable[[nn.Parameter, Tensor], object]
) -> None:
    """Allocate the parameters that are on the meta device; shared parameters stay shared.

    Args:
        module: module, including its submodules.
        device: device to allocate on.
        fill: function that writes the values of a meta parameter into its new tensor.
    """
    materialized: dict[nn.Parameter, nn.Parameter] = {}
    for submodule in module.modules():
        for name, parameter in list(submodule.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            if parameter not in materialized:
                tensor = torch.empty_like(parameter, device=device, requires_grad=False)
                fill(parameter, tensor)
                materialized[parameter] = nn.Parameter(tensor, parameter.requires_grad)
            setattr(submodule, name, materialized[parameter])


def _layers_run_once(model: Transformer) -> Iterator[nn.Module]:
    """Yield the layers to shard one by one; layers that run several times per pass are sharded with the rest."""
    for layers, depth in ((model.encoder, model.encoder_depth), (model.decoder, model.decoder_depth)):
        if len(layers) == depth:
            yield from layers


@contextmanager
def no_gradient_sync(module: nn.Module, local: bool) -> Iterator[None]:
    """Keep gradients in the process inside the block if `local`: more micro-batches of the update follow.

    FSDP2 reduces those of each micro-batch, because it would keep all of them in each process, and not a share.
    """
    with module.no_sync() if local and isinstance(module, DistributedDataParallel) else nullcontext():
        yield


def unshard(model: Transformer, empty: Transformer, device: torch.device) -> Transformer:
    """Return a full copy of a sharded model, for validation.

    A search takes as many steps as its sentences need, so if layers were gathered at each step, every process would
    wait for the others. The copy is filled tensor by tensor. Its layers are in the dtype they compute in; embeddings,
    which are summed in float32, stay in float32.

    Args:
        model: the sharded model; every process must call this.
        empty: the same model on the meta device, which becomes the copy.
        device: device of the copy.
    """
    for layer in (*empty.encoder, *empty.decoder):
        layer.to(empty.compute_dtype)
    names = {parameter: name for name, parameter in empty.named_parameters()}
    shards = {name: parameter.detach() for name, parameter in model.named_parameters()}
    _materialize(empty, device, lambda meta, tensor: tensor.copy_(full_tensor(shards[names[meta]])))
    return empty


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor of a DTensor, and any other tensor itself. Every process must call this."""
    full: Tensor = getattr(tensor, "full_tensor", lambda: tensor)()
    return full


def full_state_dict(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Gather a state dict in the main process: its DTensors as full tensors on the CPU. Other processes get {}.

    Every process must call this. One full tensor at a time is on each device.
    """
    state_dict: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if world.is_main:
            state_dict[name] = full_tensor(tensor).cpu() if _is_dtensor(tensor) else tensor
        else:
            full_tensor(tensor)  # gathering takes every process
    return state_dict


def shard_like(tensor: Tensor, like: Any) -> Tensor:
    """Return this process's shard of a full tensor if `like` is a DTensor, else the tensor on its device."""
    tensor = tensor.to(like.device)
    if not (_is_dtensor(like) and tensor.dim()):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def num_local_elements(tensor: Any) -> int:
    """Return the number of elements of a tensor that this process holds."""
    local: Tensor = tensor.to_local() if _is_dtensor(tensor) else tensor
    return local.numel()


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Return whether any parameter is a DTensor, of which each process holds a shard."""
    return any(map(_is_dtensor, parameters))


def _is_dtensor(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, without importing the class."""
    return hasattr(tensor, "full_tensor")
