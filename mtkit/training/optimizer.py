"""AdamW, its state as named tensors, and the moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtkit.config.sections import TrainingConfig
from mtkit.training.parallel import is_sharded, shard_like


def make_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019); weight decay for matrices only, not for biases, norms and tables."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} - tables
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=training.learning_rate, betas=training.betas, eps=training.eps, fused=True
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the next update, for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_state_dict(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `KEY/PARAMETER` tensors, in shards where the parameters are."""
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_state_dict(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Put back what `optimizer_state_dict` gave, and nothing else: before the first update there is no state."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for full_name, value in tensors.items():
        key, _, name = full_name.partition("/")
        optimizer.state[parameters[name]][key] = shard_like(value, parameters[name])


class ExponentialMovingAverage:
    """Exponential moving average of the weights (Polyak and Juditsky 1992), with a short memory at the start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after this step."""
        decay = min(self.decay, step / (step + 10))
        own = list(self.weights.values())
        new = [parameter.detach() for parameter in model.parameters()]
        if is_sharded(own):  # FSDP2's shards have no such operation on lists
            for mean, value in zip(own, new, strict=True):
                mean.lerp_(value, 1 - decay)
            return
        torch._foreach_lerp_(own, new, 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the averaged weights with the model's; a second call puts both back, bit for bit."""
        for name, parameter in model.named_parameters():
            held = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(held)
