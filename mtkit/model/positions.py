"""How a Transformer knows the order of its input: four encodings of positions.

Shapes: B batch, T target length (queries), S source length (keys), D model width, H heads, E head width.
"""

import torch
from torch import Tensor, nn


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sines in the first half, cosines in the second (Vaswani et al. 2017, section 3.5, order of columns aside).

    Args:
        positions: integers of any shape [...].
        width: even number of columns.

    Returns:
        [..., width] in float32.
    """
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
    angles = positions[..., None].float() * frequencies  # [..., width/2]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class SinusoidalPositions(nn.Module):
    """Fixed sinusoids added to the embeddings. Any length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, positions_T: Tensor) -> Tensor:
        """Positions [T] to vectors [T, D]."""
        return sinusoids(positions_T, self.width)


class LearnedPositions(nn.Module):
    """A trained vector for each position, up to `max_positions`."""

    def __init__(self, max_positions: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_positions, width).normal_(std=width**-0.5))

    def forward(self, positions_T: Tensor) -> Tensor:
        """Positions [T] to vectors [T, D]; those beyond the last learned one get its vector."""
        return self.weight[positions_T.clamp(max=self.weight.shape[0] - 1)]


def rotate(x_BHTE: Tensor, positions_T: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, eq. 34): turn each pair of columns by an angle that grows with the position.

    A product of a rotated query and a rotated key then depends on the distance between them alone.
    """
    width = x_BHTE.shape[-1]
    sin, cos = sinusoids(positions_T, width).to(x_BHTE.dtype).chunk(2, dim=-1)  # [T, E/2] each
    first, second = x_BHTE.chunk(2, dim=-1)  # [B, H, T, E/2] each
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)  # [B, H, T, E]


class RelativePositions(nn.Module):
    """Relative positions (Shaw et al. 2018): a trained vector for each distance joins keys (eq. 4) and values (eq. 3).

    Distances beyond `max_distance` are clipped. The tables are shared by the heads of a layer.
    The products with the 2 x max_distance + 1 vectors are made once for each query, then picked by distance,
    so that nothing of shape [T, S, E] ever exists.
    """

    def __init__(self, max_distance: int, head_width: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.keys = nn.Parameter(torch.empty(2 * max_distance + 1, head_width).normal_(std=head_width**-0.5))
        self.values = nn.Parameter(
            torch.empty(2 * max_distance + 1, head_width).normal_(std=head_width**-0.5)
        )

    def buckets(self, queries_T: Tensor, keys_S: Tensor) -> Tensor:
        """Row of the tables for each pair of a query position and a key position: [T, S]."""
        distance = keys_S[None, :] - queries_T[:, None]
        return distance.clamp(-self.max_distance, self.max_distance) + self.max_distance

    def key_scores(self, q_BHTE: Tensor, buckets_TS: Tensor) -> Tensor:
        """What the distances add to the unscaled attention scores: [B, H, T, S]."""
        scores = q_BHTE @ self.keys.to(q_BHTE.dtype).T  # [B, H, T, 2M+1]
        return scores.gather(-1, buckets_TS.expand(*q_BHTE.shape[:2], -1, -1))

    def value_sums(self, weights_BHTS: Tensor, buckets_TS: Tensor) -> Tensor:
        """What the distances add to the attention output: [B, H, T, E]."""
        sums = weights_BHTS.new_zeros(*weights_BHTS.shape[:3], self.values.shape[0])  # [B, H, T, 2M+1]
        sums = sums.scatter_add(-1, buckets_TS.expand_as(weights_BHTS), weights_BHTS)
        return sums @ self.values.to(weights_BHTS.dtype)
