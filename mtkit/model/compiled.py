"""Compilation of layers for training: one graph for each kind of layer, for batches of all sizes and lengths.

What is compiled is a function of a layer and its input. All layers of a kind share its graph, so that a deep model
takes no longer to compile than a shallow one; what happens around a layer (dropping it, recomputing it, gathering its
shards) stays ordinary Python. Sizes and lengths are marked as dynamic before the first graph is made, so that no batch
needs another one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function compiled by `torch.compile`, always the same one, so that its graphs are found again."""
    import torch._dynamo  # takes a second, and is needed only here

    # PyTorch would split the graph of a layer where DDP exchanges gradients, and refuses to do so with our functions.
    torch._dynamo.config.optimize_ddp = False
    return torch.compile(function)


def mark_size(tensor: Tensor, dim: int) -> None:
    """Mark a dimension of a tensor as dynamic. A size of 1 stays what it is: it may stand for any other."""
    if tensor.shape[dim] > 1:
        torch._dynamo.maybe_mark_dynamic(tensor, dim)  # mark_dynamic would raise if PyTorch cannot


def mark_lengths(*tensors: Tensor | None) -> None:
    """Mark the sizes of tensors as dynamic: of numbers [..., D] all but the width, of masks and positions all."""
    for tensor in tensors:
        if tensor is not None:
            for dim in range(tensor.dim() - tensor.is_floating_point()):
                mark_size(tensor, dim)
