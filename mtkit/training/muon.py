"""Muon (Jordan et al. 2024): an optimizer for the matrices of layers, which makes each update orthogonal.

The momentum of a matrix is replaced by an approximation of U V^T, where U S V^T is its singular value decomposition,
so that rare directions move as far as common ones. Embeddings, the output projection, norms and biases are left to
AdamW.

`torch.optim.Muon` is not used: it takes matrices one by one, always in bfloat16, which CPUs without it emulate, and
takes fused projections of attention for one matrix. Jordan et al. found it better to orthogonalize q, k and v apart.

Shapes: N matrices of equal shape, R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from mtkit.config.sections import TrainingConfig
from mtkit.model.attention import MultiHeadAttention
from mtkit.model.layers import FeedForward

_MOMENTUM = 0.95
_COEFFICIENTS = 3.4445, -4.7750, 2.0315
_WIDE = 256
"""Matrices with more rows and columns have smaller singular values at first, and take five iterations, others four."""
_RMS = 0.2
"""Root mean square of an update over the learning rate, about that of AdamW (Liu et al. 2025, section 2.2)."""
_MIN_NORM = 1e-7
_BATCH_ELEMENTS = {"cpu": 2**17, "cuda": 2**24}
"""Elements of the matrices that are orthogonalized together: on a CPU, few enough to stay in its cache."""


def layer_matrices(model: nn.Module) -> dict[Tensor, list[int]]:
    """Return the matrices of attention and feed-forward layers, with the number of rows of each part.

    A projection to queries, keys and values has three parts, one to keys and values two, and one with a gate two.
    """
    parts: dict[Tensor, list[int]] = {}
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            kv_rows = module.kv_heads * module.head_width
            width = module.out.in_features
            if module.cross:
                parts[module.q.weight], parts[module.kv.weight] = [width], [kv_rows, kv_rows]
            else:
                parts[module.qkv.weight] = [width, kv_rows, kv_rows]
            parts[module.out.weight] = [module.out.out_features]
        elif isinstance(module, FeedForward):
            width = module.outer.in_features
            parts[module.inner.weight] = [width] * (module.inner.out_features // width)
            parts[module.outer.weight] = [module.outer.out_features]
    return parts


def num_moments(model: nn.Module, training: TrainingConfig) -> dict[Tensor, int]:
    """Return how many tensors of its shape the optimizer stores for each parameter that is trained."""
    matrices = layer_matrices(model) if training.optimizer == "muon" else {}
    return {
        parameter: 1 if parameter in matrices else 2
        for parameter in model.parameters()
        if parameter.requires_grad
    }


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return approximations of U V^T of matrices U S V^T, of shape [N, R, C], in their dtype.

    Newton-Schulz iterations X <- a X + b (X X^T) X + c (X X^T)^2 X bring the singular values near 1, to 0.7 to 1.2, and
    no closer: with these coefficients they leave 0 fastest (Jordan et al. 2024). Beginning with a norm of 1, four
    iterations do so from 0.005 on, and five from 0.0015 on.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices  # X X^T is then the smaller of two
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_MIN_NORM)  # singular values of at most 1
    for _ in range(4 if x.shape[1] <= _WIDE else 5):
        products = torch.bmm(x, x.mT)  # `x @ x.mT` of a single matrix would take almost twice as long
        polynomials = torch.baddbmm(products, products, products, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomials, x, beta=a)
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Muon for some matrices, and AdamW for all other parameters.

    An update is scaled by 0.2 sqrt(max(R, C)), so that learning rate and weight decay of AdamW suit both (Liu et al.
    2025, "Muon is scalable for LLM training", eq. 4). The state of a matrix is its momentum, half of AdamW's.

    Args:
        matrices: matrices, with the number of rows of each part, which is orthogonalized by itself.
        weight_decay: decoupled weight decay of the matrices.
        dtype: dtype of the iterations.
        adamw: the optimizer of the other parameters.
        num_threads: number of threads that share the matrices, each of which computes in a single one.
    """

    def __init__(
        self,
        matrices: Mapping[Tensor, Sequence[int]],
        weight_decay: float,
        dtype: torch.dtype,
        adamw: torch.optim.AdamW,
        num_threads: int = 1,
    ) -> None:
        super().__init__([{"params": list(matrices), "weight_decay": weight_decay, "lr": 0.0}], {})
        self.parts, self.dtype, self.adamw = dict(matrices), dtype, adamw
        self.num_threads = num_threads
        self._step_supports_amp_scaling = True
        """Whether a `GradScaler` tells `step` if fp16 overflowed, in `found_inf`, instead of reading that itself."""
        self.param_groups += adamw.param_groups
        self.state = adamw.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        assert closure is None, "gradients are computed before"
        overflowed: Tensor | None = getattr(self, "found_inf", None)
        self.adamw.grad_scale, self.adamw.found_inf = None, overflowed  # type: ignore[attr-defined]
        self.adamw.step()
        group = self.param_groups[0]
        matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
        if not matrices:
            return
        gradients = [matrix.grad for matrix in matrices]
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)
        momenta = [self.state[matrix]["momentum"] for matrix in matrices]
        before = [] if overflowed is None else [tensor.clone() for tensor in (*matrices, *momenta)]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        updates = torch._foreach_lerp(gradients, momenta, _MOMENTUM)  # Nesterov's
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        pairs = zip(matrices, updates, strict=True)
        parts = [
            part
            for matrix, update in pairs
            for part in zip(matrix.split(self.parts[matrix]), update.split(self.parts[matrix]), strict=True)
        ]
        batches = list(_batches_of_equal_shape(parts))
        rates = [group["lr"]] * len(batches)
        if self.num_threads == 1:
            list(map(self._apply, batches, rates))
        else:
            with ThreadPoolExecutor(self.num_threads, thread_name_prefix="muon") as threads:
                list(threads.map(self._apply, batches, rates))
        if overflowed is not None:
            for tensor, old in zip((*matrices, *momenta), before, strict=True):
                tensor.copy_(torch.where(overflowed > 0, old, tensor))

    @torch.no_grad()
    def _apply(self, batch: Sequence[tuple[Tensor, Tensor]], rate: float) -> None:
        """Make the updates of matrices of equal shape orthogonal, and apply them."""
        matrices, updates = zip(*batch, strict=True)
        orthogonal = orthogonalize(torch.stack(updates).to(self.dtype)).to(matrices[0].dtype)
        scale = _RMS * math.sqrt(max(matrices[0].shape))
        torch._foreach_add_(matrices, orthogonal.unbind(), alpha=-rate * scale)


def _batches_of_equal_shape(parts: Iterable[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield matrices of equal shape together, each with its update, as many as `_BATCH_ELEMENTS` allows."""
    by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
    for part in parts:
        by_shape.setdefault(part[0].shape, []).append(part)
    for shape, of_shape in by_shape.items():
        elements = _BATCH_ELEMENTS.get(of_shape[0][0].device.type, _BATCH_ELEMENTS["cuda"])
        size = max(1, elements // shape.numel())
        yield from (of_shape[start : start + size] for start in range(0, len(of_shape), size))
