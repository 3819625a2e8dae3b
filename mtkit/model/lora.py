"""LoRA: low-rank adapters of frozen matrices (Hu et al. 2022).

A matrix W of shape [O, D] computes W x + alpha/r B A x, with A [r, D] random and B [O, r] zero at first; only A and B
are trained. Afterwards alpha/r B A is added to W, and the model is as fast as before.

mtkit fuses the projections of attention, so an adapter of q, k or v belongs to some rows of a matrix. Adapters have the
names `encoder.0.attention.qkv.lora_q_a` and `..._b`: layer, fused matrix, part of it, factor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkit.config.sections import LoraConfig
from mtkit.errors import ConfigError
from mtkit.model.attention import Linear, MultiHeadAttention
from mtkit.model.dropout import dropout
from mtkit.model.layers import FeedForward

_PARTS = {
    "qkv": ("q", "k", "v"),
    "kv": ("k", "v"),
    "q": ("q",),
    "out": ("out",),
    "inner": ("inner",),
    "outer": ("outer",),
}
"""Parts of each matrix, by its name in its layer."""
_ADAPTER = re.compile(r"(?P<matrix>.+)\.lora_(?P<part>\w+)_a")


def _first_row(part: str, num_all: int, num_rows: int) -> int:
    """Return where the rows of a part begin in a fused matrix: q comes first, then k, then v."""
    return {"k": num_all - 2 * num_rows, "v": num_all - num_rows}.get(part, 0)


class LoraLinear(Linear):
    """A frozen linear layer with adapters on some of its rows.

    Args:
        linear: the layer, whose parameters it takes over.
        rows: number of rows of each part that has an adapter.
        lora: rank, alpha and dropout of the adapters.
    """

    def __init__(self, linear: Linear, rows: Mapping[str, int], lora: LoraConfig) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.rows, self.scale, self.dropout = dict(rows), lora.alpha / lora.rank, lora.dropout
        for part, num_rows in rows.items():
            a_RD = nn.init.normal_(
                linear.weight.new_empty(lora.rank, linear.in_features), std=linear.in_features**-0.5
            )
            self.register_parameter(f"lora_{part}_a", nn.Parameter(a_RD))
            self.register_parameter(
                f"lora_{part}_b", nn.Parameter(linear.weight.new_zeros(num_rows, lora.rank))
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features], in the dtype of `x`."""
        y = super().forward(x)
        dropped = dropout(x, self.dropout, self.training)
        for part, num_rows in self.rows.items():
            a, b = (self.get_parameter(f"lora_{part}_{factor}").to(x.dtype) for factor in "ab")
            change = F.linear(F.linear(dropped, a), b) * self.scale  # [..., rows]
            first = _first_row(part, self.out_features, num_rows)
            y = y + F.pad(change, (first, self.out_features - first - num_rows))
        return y


def add_adapters(model: nn.Module, lora: LoraConfig) -> None:
    """Freeze a model, and add adapters to the matrices that `lora.targets` names.

    Args:
        model: the model, before it is sharded or has an optimizer.
        lora: which matrices, and the rank, alpha and dropout of their adapters.

    Raises:
        ConfigError: If a target names no matrix.
    """
    model.requires_grad_(False)
    places = list(_matrices(model))
    unused = [
        t for t in lora.targets if not any(_names(t, f"{layer}.{part}") for layer, _, part, _ in places)
    ]
    if unused:
        what = f"no matrix has a name like {unused[0]!r}"
        example = f"{places[0][0]}.{places[0][2]}"
        hint = f"q, k, v, out, inner and outer are those of all layers, {example} is one of them"
        raise ConfigError(what, where=f"training.lora.targets[{lora.targets.index(unused[0])}]", hint=hint)
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for layer, name, part, num_rows in places:
        if any(_names(target, f"{layer}.{part}") for target in lora.targets):
            rows.setdefault((layer, name), {})[part] = num_rows
    for (layer, name), parts in rows.items():
        parent = model.get_submodule(layer)
        linear = parent.get_submodule(name)
        assert isinstance(linear, Linear)
        setattr(parent, name, LoraLinear(linear, parts, lora))


def _matrices(model: nn.Module) -> Iterator[tuple[str, str, str, int]]:
    """Yield layer, name, part and number of rows of each matrix that may have an adapter."""
    for layer, module in model.named_modules():
        if not isinstance(module, MultiHeadAttention | FeedForward):
            continue
        for name, linear in module.named_children():
            if not isinstance(linear, Linear):
                continue
            rows = dict.fromkeys(_PARTS[name], linear.out_features)
            if isinstance(module, MultiHeadAttention) and name in ("qkv", "kv"):
                kv_rows = module.kv_heads * module.head_width
                rows |= {"k": kv_rows, "v": kv_rows}
            if name == "qkv":
                rows["q"] = linear.out_features - 2 * rows["k"]
            for part, num_rows in rows.items():
                yield layer, name, part, num_rows


def _names(target: str, name: str) -> bool:
    """Return whether an entry of `targets` names a matrix such as `encoder.0.attention.q`."""
    return fnmatchcase(name, target) or name.endswith(f".{target}")


@torch.no_grad()
def merge_adapters(
    weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor], lora: LoraConfig
) -> dict[str, Tensor]:
    """Return the weights of a model with its adapters added.

    Args:
        weights: weights without adapters, by parameter name.
        adapters: the adapters, by parameter name.
        lora: rank and alpha that they were trained with.

    Raises:
        ValueError: If they do not fit the weights.
    """
    merged = dict(weights)
    for name, a_RD in adapters.items():
        found = _ADAPTER.fullmatch(name)
        if found is None:
            continue
        matrix, b_OR = f"{found['matrix']}.weight", adapters.get(f"{name[:-1]}b")
        if b_OR is None or matrix not in merged or b_OR.shape[1] != a_RD.shape[0]:
            raise ValueError(f"{name} does not fit the weights")
        weight = merged[matrix].clone()
        first = _first_row(found["part"], weight.shape[0], b_OR.shape[0])
        rows = weight[max(0, first) : max(0, first) + b_OR.shape[0]]
        if rows.shape != (b_OR.shape[0], a_RD.shape[1]):
            raise ValueError(f"{name} does not fit the weights")
        rows += (lora.alpha / lora.rank) * (b_OR.float() @ a_RD.float())
        merged[matrix] = weight
    return merged


def adapter_parameters(modules: Sequence[nn.Module]) -> Iterator[nn.Parameter]:
    """Yield the adapters among the parameters of modules."""
    for module in modules:
        if isinstance(module, LoraLinear):
            yield from (
                parameter for name, parameter in module.named_parameters() if name.startswith("lora_")
            )
