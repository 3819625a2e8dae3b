"""AdamW or Muon and its state dict, loss scaling for fp16, and the EMA of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtkit.config.sections import TrainingConfig
from mtkit.model.lora import adapter_parameters
from mtkit.model.positions import LearnedPositions
from mtkit.training.muon import Muon, layer_matrices
from mtkit.training.parallel import is_sharded, shard_like


def make_optimizer(
    model: nn.Module, training: TrainingConfig, dtype: torch.dtype = torch.float32, num_workers: int = 1
) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019) or Muon of the parameters that are not frozen.

    Weight decay is for matrices, not for biases and norms, and for embeddings only with `decay_embeddings`.

    Args:
        model: the model, sharded or not.
        training: section `training`.
        dtype: dtype of matrix products, in bfloat16 those of Muon too.
        num_workers: number of workers, which wait during a step, so that Muon has their cores.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | LearnedPositions)}
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    decayed = decayed | embeddings if training.decay_embeddings else decayed - embeddings
    decayed |= {id(parameter) for parameter in adapter_parameters(list(model.modules()))}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices: dict[Tensor, list[int]] = {}
    if training.optimizer == "muon":
        matrices = {matrix: rows for matrix, rows in layer_matrices(model).items() if matrix.requires_grad}
        parameters = [parameter for parameter in parameters if parameter not in matrices]
    groups = [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        groups, lr=training.learning_rate, betas=training.betas, eps=training.eps, fused=True
    )
    if training.optimizer == "adamw":
        return adamw
    own_dtype = dtype if dtype == torch.bfloat16 else torch.float32  # fp16 would overflow
    return Muon(matrices, training.weight_decay, own_dtype, adamw, num_workers)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_state_dict(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as `KEY/PARAMETER` tensors, sharded like the parameters."""
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state_dict(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Replace the optimizer's state with what `optimizer_state_dict` returned; it is empty before the first update."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for full_name, value in tensors.items():
        key, _, name = full_name.partition("/")
        optimizer.state[parameters[name]][key] = shard_like(value, parameters[name])


def make_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Return a loss scaler, which keeps small fp16 gradients from underflowing (Micikevicius et al. 2018).

    It is disabled in other precisions.
    """
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


class ExponentialMovingAverage:
    """EMA of the weights (Polyak and Juditsky 1992), whose decay is lower in the first updates."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Include the weights after this step."""
        decay = min(self.decay, step / (step + 10))
        averages = list(self.weights.values())
        parameters = [parameter.detach() for parameter in model.parameters()]
        if is_sharded(averages):  # DTensors do not support torch._foreach_lerp_
            for average, parameter in zip(averages, parameters, strict=True):
                average.lerp_(parameter, 1 - decay)
            return
        torch._foreach_lerp_(averages, parameters, 1 - decay)

    @torch.no_grad()
    def reset(self, model: nn.Module) -> None:
        """Set the EMA to the model's weights."""
        for name, parameter in model.named_parameters():
            self.weights[name].copy_(parameter)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the EMA with the model's weights; a second call restores both, bit for bit."""
        for name, parameter in model.named_parameters():
            raw = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(raw)
