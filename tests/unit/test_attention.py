"""Attention and positions against PyTorch's own attention and against the papers' formulas, written as loops."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkit.model import attention
from mtkit.model.attention import (
    Linear,
    MultiHeadAttention,
    causal_mask,
    fused_attention,
    plain_attention,
)
from mtkit.model.cpu.attention import cpu_attention, split_qkv
from mtkit.model.positions import LearnedPositions, RelativePositions, SinusoidalPositions, rotate, sinusoids

CPU = torch.device("cpu")


def random_mask(kind: str, B: int, H: int, T: int, S: int) -> Tensor | None:
    """Return a mask in which every query sees at least one key."""
    match kind:
        case "none":
            return None
        case "causal":
            return causal_mask(max(T, S), CPU)[-T:, :S] | (torch.arange(S) == 0)
        case "padding":
            lengths = torch.randint(1, S + 1, (B,))
            return (torch.arange(S) < lengths[:, None])[:, None, None, :]
        case _:
            return (torch.rand(B, H, T, S) < 0.5) | (torch.arange(S) == torch.randint(S, (B, H, T, 1)))


@pytest.mark.parametrize("seed", range(40))
def test_plain_and_fused_attention_agree_with_their_gradients(seed: int) -> None:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    B, G, group, E = rng.randint(1, 4), rng.randint(1, 3), rng.randint(1, 3), rng.randint(1, 9)
    T, S = rng.randint(1, 11), rng.randint(1, 11)
    q, k, v = torch.randn(B, G * group, T, E), torch.randn(B, G, S, E), torch.randn(B, G, S, E)
    mask = random_mask(("none", "causal", "padding", "random")[seed % 4], B, G * group, T, S)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    plain, weights = plain_attention(q, k, v, mask)
    fused = fused_attention(q, k, v, mask)
    torch.testing.assert_close(plain, fused, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, G * group, T), atol=1e-5, rtol=0)
    if mask is not None:
        assert not weights[~mask.expand_as(weights)].any()
    upstream = torch.randn_like(plain)
    for ours, theirs in zip(
        torch.autograd.grad(plain, inputs, upstream),
        torch.autograd.grad(fused, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_plain_attention_is_the_formula_of_the_paper() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 4, 3, dtype=torch.float64).unbind()
    out, weights = plain_attention(q, k, v, None)
    for b, h, t in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(4)).tolist():
        scores = [sum(a * c for a, c in zip(q[b, h, t], k[b, h, s], strict=True)) for s in range(4)]
        exps = [math.exp(score / math.sqrt(3)) for score in scores]
        for s in range(4):
            assert weights[b, h, t, s].item() == pytest.approx(exps[s] / sum(exps), abs=1e-12)
        expected = sum(exps[s] / sum(exps) * v[b, h, s] for s in range(4))
        torch.testing.assert_close(out[b, h, t], expected, atol=1e-12, rtol=0)


def test_plain_attention_drops_weights_after_the_softmax() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 50, 50).unbind()
    _, weights = plain_attention(q, k, v, None)
    torch.manual_seed(1)
    out, undropped = plain_attention(
        q, k, torch.eye(50).expand(1, 2, 50, 50), None, 0.25
    )  # shows the weights
    assert torch.equal(undropped, weights)
    kept = out != 0
    assert 0.6 < kept.float().mean() < 0.9
    torch.testing.assert_close(out[kept], weights[kept] / 0.75)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("seed", range(24))
def test_cpu_attention_equals_plain_attention_with_its_gradients(seed: int, cross: bool) -> None:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    B, G, group, E = rng.randint(1, 4), rng.randint(1, 3), rng.randint(1, 3), rng.randint(1, 9)
    T = rng.randint(1, 11)
    S, H = rng.randint(1, 11) if cross else T, G * group
    mask = random_mask(("none", "causal", "padding", "random")[seed % 4], B, H, T, S)
    own = torch.randn(B, T, H if cross else H + 2 * G, E, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(B, S, 2 * G, E, dtype=torch.float64, requires_grad=True) if cross else None
    probability = rng.choice([0.0, 0.4])
    torch.manual_seed(7)
    ours = cpu_attention(own, memory, mask, H, probability)
    torch.manual_seed(7)
    plain, _ = plain_attention(*split_qkv(own, memory, H), mask, probability)
    plain = plain.transpose(1, 2).flatten(2)
    torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0)
    upstream = torch.randn_like(plain)
    inputs = [own] if memory is None else [own, memory]
    for grad, expected in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(plain, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(grad, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("cross", [False, True])
def test_cpu_attention_passes_gradcheck(cross: bool) -> None:
    torch.manual_seed(0)
    own = torch.randn(2, 3, 4 if cross else 8, 2, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 5, 4, 2, dtype=torch.float64, requires_grad=True) if cross else None
    mask = torch.ones(3, 5 if cross else 3, dtype=torch.bool).tril()
    assert torch.autograd.gradcheck(
        lambda own, memory: cpu_attention(own, memory, mask, 4, 0.0), (own, memory)
    )


def test_cpu_attention_in_bfloat16_is_as_accurate_as_the_fused_kernel() -> None:
    torch.manual_seed(0)
    B, T, H, E = 8, 30, 4, 32
    mask = causal_mask(T, CPU)
    own, upstream = torch.randn(B, T, 3 * H, E), torch.randn(B, T, H * E)

    def run(kernel: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = own.to(dtype).requires_grad_()
        if kernel == "cpu":
            out = cpu_attention(x, None, mask, H, 0.0)
        else:
            out = fused_attention(*split_qkv(x, None, H), mask).transpose(1, 2).flatten(2)
        return out, torch.autograd.grad(out, x, upstream.to(dtype))[0]

    truth = run("fused", torch.float64)
    for exact, ours, theirs in zip(
        truth, run("cpu", torch.bfloat16), run("fused", torch.bfloat16), strict=True
    ):
        error, fused_error = ((x.double() - exact).norm() / exact.norm() for x in (ours, theirs))
        assert error < max(1.5 * fused_error, 0.01)


def test_causal_mask() -> None:
    assert causal_mask(3, CPU).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


kinds = pytest.mark.parametrize("kind", ["trained on cpu", "plain", "fused"])


def use(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the layers use one of the three implementations."""
    monkeypatch.setattr(attention, "uses_cpu_training_kernel", lambda x: kind == "trained on cpu")
    monkeypatch.setattr(attention, "fused_is_faster", lambda x: kind == "fused")


def copied(
    width: int, heads: int, bias: bool, cross: bool
) -> tuple[MultiHeadAttention, nn.MultiheadAttention]:
    """Return our layer and PyTorch's with the same weights."""
    theirs = nn.MultiheadAttention(width, heads, bias=bias, batch_first=True)
    ours = MultiHeadAttention(width, heads, heads, cross=cross, bias=bias)
    with torch.no_grad():
        if bias:
            nn.init.normal_(theirs.in_proj_bias)
            nn.init.normal_(theirs.out_proj.bias)
        pairs = [(ours.out, theirs.out_proj.weight, theirs.out_proj.bias)]
        weight, offset = theirs.in_proj_weight, theirs.in_proj_bias
        if cross:
            pairs.append((ours.q, weight[:width], offset[:width] if bias else None))
            pairs.append((ours.kv, weight[width:], offset[width:] if bias else None))
        else:
            pairs.append((ours.qkv, weight, offset))
        for linear, their_weight, their_bias in pairs:
            linear.weight.copy_(their_weight)
            if bias:
                linear.bias.copy_(their_bias)
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("width", "heads"), [(12, 1), (12, 3), (16, 4), (8, 8)])
@kinds
def test_self_attention_equals_torch(
    monkeypatch: pytest.MonkeyPatch, kind: str, width: int, heads: int, bias: bool
) -> None:
    use(kind, monkeypatch)
    torch.manual_seed(width + heads)
    ours, theirs = copied(width, heads, bias, cross=False)
    x = torch.randn(3, 7, width)
    real = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    causal = causal_mask(7, CPU)
    mask = causal & real[:, None, None, :]
    expected, expected_weights = theirs(
        x, x, x, attn_mask=~causal, key_padding_mask=~real, average_attn_weights=False
    )
    positions = torch.arange(7)
    torch.testing.assert_close(ours.attend_self(x, mask, positions), expected, atol=1e-5, rtol=0)
    q, k, v = ours.project_qkv(x, positions)
    torch.testing.assert_close(plain_attention(q, k, v, mask)[1], expected_weights, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
@kinds
def test_cross_attention_equals_torch(monkeypatch: pytest.MonkeyPatch, kind: str, bias: bool) -> None:
    use(kind, monkeypatch)
    torch.manual_seed(5)
    ours, theirs = copied(12, 3, bias, cross=True)
    x, memory = torch.randn(4, 5, 12), torch.randn(4, 9, 12)
    real = torch.arange(9) < torch.tensor([9, 1, 5, 8])[:, None]
    expected, _ = theirs(x, memory, memory, key_padding_mask=~real)
    for out in (
        ours.attend_memory(x, memory, real[:, None, None, :]),
        ours.attend_memory_kv(x, ours.project_memory(memory), real[:, None, None, :]),
    ):
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kv_heads", [1, 2, 3])
def test_grouped_heads_equal_full_heads_whose_keys_and_values_are_repeated(kv_heads: int) -> None:
    torch.manual_seed(kv_heads)
    E, group = 4, 6 // kv_heads
    grouped, full = MultiHeadAttention(24, 6, kv_heads), MultiHeadAttention(24, 6, 6)
    with torch.no_grad():
        nn.init.normal_(grouped.qkv.bias)
        for name in ("weight", "bias"):
            parameter = getattr(grouped.qkv, name)
            q, k, v = parameter.split([24, kv_heads * E, kv_heads * E])
            repeated = [
                p.unflatten(0, (kv_heads, E)).repeat_interleave(group, dim=0).flatten(0, 1) for p in (k, v)
            ]
            getattr(full.qkv, name).copy_(torch.cat([q, *repeated]))
            getattr(full.out, name).copy_(getattr(grouped.out, name))
    x, positions = torch.randn(2, 5, 24), torch.arange(5)
    mask = causal_mask(5, CPU)
    torch.testing.assert_close(
        grouped.attend_self(x, mask, positions), full.attend_self(x, mask, positions), atol=1e-5, rtol=0
    )
    assert grouped.qkv.out_features == 24 + 2 * kv_heads * E


def test_linear_computes_in_the_dtype_of_its_input() -> None:
    linear = Linear(6, 4)
    x = torch.randn(3, 6)
    assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))
    half = linear(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert linear.weight.dtype == torch.float32
    torch.testing.assert_close(half.float(), linear(x), atol=0.05, rtol=0.05)


# --- positions ------------------------------------------------------------------------------------------------


def test_sinusoids_are_the_formula_of_the_paper() -> None:
    width = 10
    table = SinusoidalPositions(width)(torch.arange(60))
    assert table.shape == (60, width)
    assert table.dtype == torch.float32
    for position in range(60):
        for i in range(width // 2):
            angle = position / 10000 ** (2 * i / width)
            assert table[position, i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[position, width // 2 + i].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_learned_positions_beyond_the_last_get_its_vector() -> None:
    learned = LearnedPositions(4, 6)
    rows = learned(torch.tensor([0, 3, 4, 900]))
    assert torch.equal(rows, learned.weight[[0, 3, 3, 3]])


def test_rotation_is_a_product_of_complex_numbers_and_keeps_the_norm() -> None:
    torch.manual_seed(0)
    x, positions = torch.randn(2, 3, 50, 8), torch.arange(50)
    rotated = rotate(x, positions)
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1), atol=1e-5, rtol=0)
    assert torch.equal(rotated[:, :, 0], x[:, :, 0])  # position 0 is not rotated
    frequencies = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turns = torch.exp(1j * positions[:, None] * frequencies)
    expected = torch.complex(x[..., :4].double(), x[..., 4:].double()) * turns
    torch.testing.assert_close(
        rotated.double(), torch.cat([expected.real, expected.imag], -1), atol=1e-5, rtol=0
    )


def test_rotary_scores_depend_on_the_distance_only() -> None:
    torch.manual_seed(1)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(i: int, j: int) -> float:
        return (rotate(q, torch.tensor([i])) * rotate(k, torch.tensor([j]))).sum().item()

    for distance in (-40, -3, 0, 1, 17):
        scores = [score(start + distance, start) for start in (40, 41, 60, 123)]
        assert scores == pytest.approx([scores[0]] * 4, abs=2e-4)
    assert len({round(score(i, 0), 3) for i in range(10)}) == 10  # and they do depend on it


def test_a_rotary_layer_rotates_queries_and_keys_but_not_values() -> None:
    torch.manual_seed(4)
    turned, plain = MultiHeadAttention(16, 4, 2, rotary=True), MultiHeadAttention(16, 4, 2)
    plain.load_state_dict(turned.state_dict())
    x, positions = torch.randn(2, 5, 16), torch.tensor([3, 4, 5, 6, 7])
    q, k, v = plain.project_qkv(x, positions)
    turned_q, turned_k, turned_v = turned.project_qkv(x, positions)
    assert torch.equal(turned_q, rotate(q, positions))
    assert torch.equal(turned_k, rotate(k, positions))
    assert torch.equal(turned_v, v)


def naive_relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    table: RelativePositions,
    queries: list[int],
    keys: list[int],
) -> Tensor:
    """Compute Shaw et al. 2018, eq. 3 and 4, one query of one head at a time. H query heads, as many key heads."""
    B, H, T, E = q.shape
    out = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                rows = [
                    max(-table.max_distance, min(table.max_distance, j - queries[t])) + table.max_distance
                    for j in keys
                ]
                scores = [
                    torch.dot(q[b, h, t], k[b, h, s] + table.keys[row]) / math.sqrt(E)
                    if mask[b, 0, t, s]
                    else torch.tensor(-math.inf, dtype=q.dtype)
                    for s, row in enumerate(rows)
                ]
                weights = torch.stack(scores).softmax(0)
                for s, row in enumerate(rows):
                    out[b, h, t] += weights[s] * (v[b, h, s] + table.values[row])
    return out


@pytest.mark.parametrize("max_distance", [1, 3, 20])
def test_relative_attention_is_the_paper_written_as_loops(max_distance: int) -> None:
    torch.manual_seed(max_distance)
    B, H, T, S, E = 2, 4, 3, 7, 5
    table = RelativePositions(max_distance, E).double()
    q = torch.randn(B, H, T, E, dtype=torch.float64)
    k, v = torch.randn(2, B, 2, S, E, dtype=torch.float64).unbind()
    queries, keys = [4, 5, 6], list(range(7))
    mask = causal_mask(S, CPU)[4:].expand(B, 1, T, S).clone()
    mask[1, :, :, 2] = False
    buckets = table.buckets(torch.tensor(queries), torch.tensor(keys))
    out, _ = plain_attention(q, k, v, mask, relative=(table, buckets))
    repeated_k, repeated_v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    with torch.no_grad():
        expected = naive_relative_attention(q, repeated_k, repeated_v, mask, table, queries, keys)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


def test_relative_attention_depends_on_distances_only() -> None:
    torch.manual_seed(2)
    layer = MultiHeadAttention(12, 3, 3, max_relative_distance=2)
    x, mask = torch.randn(2, 6, 12), causal_mask(6, CPU)
    here, there = (
        layer.attend_self(x, mask, torch.arange(6)),
        layer.attend_self(x, mask, torch.arange(6) + 31),
    )
    assert torch.equal(here, there)
    apart = layer.attend_self(x, mask, torch.tensor([0, 2, 4, 6, 8, 10]))
    assert not torch.allclose(here, apart, atol=1e-3)


@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_positions_inside_attention_keep_the_dtype_of_the_input(positions: str) -> None:
    torch.manual_seed(3)
    layer = MultiHeadAttention(
        16, 2, 1, rotary=positions == "rotary", max_relative_distance=3 if positions == "relative" else None
    )
    x, mask, where = torch.randn(2, 9, 16), causal_mask(9, CPU), torch.arange(9)
    half = layer.attend_self(x.bfloat16(), mask, where)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), layer.attend_self(x, mask, where), atol=0.05, rtol=0.05)


def test_sinusoids_take_any_shape_of_positions() -> None:
    table = sinusoids(torch.arange(12).view(3, 4), 6)
    assert torch.equal(table.flatten(0, 1), sinusoids(torch.arange(12), 6))
