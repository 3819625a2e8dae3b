"""Packed batches: the loss and the gradient are those of the padded batch, up to rounding."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from mtkit.config.sections import ModelConfig
from mtkit.data.batching import Batch, SpecialIds, collate_pairs, without_targets
from mtkit.errors import ConfigError
from mtkit.model import attention as attention_module
from mtkit.model import dropout as dropout_module
from mtkit.model import packed as packed_module
from mtkit.model.attention import plain_attention
from mtkit.model.packed import PackedMask, Packing, block_mask, packed_attention
from mtkit.model.transformer import Transformer
from mtkit.training.loss import Consistency, TensorBatch
from mtkit.training.parallel import Objective

CPU = torch.device("cpu")
LENGTHS = [(5, 3), (1, 7), (9, 1), (4, 4), (2, 6)]


def make_batch() -> Batch:
    """Return pairs of many lengths, padded."""
    random = np.random.default_rng(4)
    srcs, tgts = (
        [random.integers(4, 50, n).astype(np.int32) for n in side] for side in zip(*LENGTHS, strict=True)
    )
    return collate_pairs(srcs, list(tgts), np.arange(len(LENGTHS)), SpecialIds(0, 3, 0, 2, 3))


def make_model(**options: Any) -> Transformer:
    torch.manual_seed(1)
    sizes = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_heads": 4,
        "d_ff": 48,
        "dropout": 0.0,
    }
    return Transformer(ModelConfig.model_validate(sizes | options), 50, 50).train()


def loss_and_gradient(
    model: Transformer, packed_pad: int | None, batch: Batch | None = None, **options: Any
) -> tuple[float, float, dict[str, Tensor]]:
    torch.manual_seed(7)
    model.zero_grad()
    loss, nll = Objective(model, 0.1, packed_pad=packed_pad, **options)(batch or make_batch())
    loss.backward()
    return (
        loss.item(),
        nll.item(),
        {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
    )


KINDS: dict[str, dict[str, Any]] = {
    "sinusoidal": {},
    "rotary": {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu"},
    "learned, norm after": {"positions": "learned", "norm_position": "post", "bias": False},
}


def check_equal(padded: tuple[Any, ...], packed: tuple[Any, ...]) -> None:
    assert packed[:2] == pytest.approx(padded[:2], rel=1e-5)
    assert packed[2].keys() == padded[2].keys()
    for name, gradient in packed[2].items():
        torch.testing.assert_close(gradient, padded[2][name], rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_and_padded_batches_have_the_same_loss_and_gradient(kind: str) -> None:
    model = make_model(**KINDS[kind])
    check_equal(loss_and_gradient(model, None), loss_and_gradient(model, 0))


@pytest.mark.parametrize("consistency", [Consistency.simcut(3.0, 0.0), Consistency.r_drop(5.0)])
def test_two_streams_are_two_rows(consistency: Consistency, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that differ: the second one drops other layers."""
    model = make_model(layer_dropout=0.5)
    padded = loss_and_gradient(model, None, consistency=consistency)
    packed = loss_and_gradient(model, 0, consistency=consistency)
    check_equal(padded, packed)
    kept = copy.deepcopy(model)
    kept.layer_dropout = 0.0
    assert loss_and_gradient(kept, 0, consistency=consistency)[0] != pytest.approx(packed[0], rel=1e-4)


def test_dropout_and_cutoff_work_on_packed_tokens() -> None:
    model = make_model(dropout=0.1, attention_dropout=0.1, token_dropout=0.1)
    loss, _, gradient = loss_and_gradient(model, 0, consistency=Consistency.simcut(3.0, 0.2))
    assert loss > 0 and all(each.isfinite().all() for each in gradient.values())


def test_nothing_is_padding_and_sentences_keep_their_order() -> None:
    batch = make_batch()
    packed = TensorBatch.from_batch(batch, CPU, 0)
    assert packed.packings is not None
    src, tgt = packed.packings
    assert packed.src_BS.shape == (1, sum(s + 1 for s, _ in LENGTHS))
    assert packed.tgt_in_BT.shape == packed.tgt_out_BT.shape == (1, batch.num_targets)
    for row, (s, t) in enumerate(LENGTHS):
        first, end = src.starts[row : row + 2].tolist()
        assert packed.src_BS[0, first:end].tolist() == batch.src[row, : s + 1].tolist()
        assert src.positions[first:end].tolist() == list(range(s + 1))
        first, end = tgt.starts[row : row + 2].tolist()
        assert packed.tgt_out_BT[0, first:end].tolist() == batch.tgt_out[row, : t + 1].tolist()
    assert (src.longest, tgt.longest, src.starts.dtype) == (10, 8, torch.int32)
    assert src.of_rows(2).tolist() == [*src.starts.tolist(), *(src.starts[1:] + len(src.positions)).tolist()]


def test_a_batch_without_targets_stays_padded() -> None:
    model = make_model()
    batch = without_targets(make_batch())
    assert TensorBatch.from_batch(batch, CPU, 0).packings is None
    loss, _, gradient = loss_and_gradient(model, 0, batch)
    assert loss == 0 and not any(each.any() for each in gradient.values())


def flash(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, longest_q: int, longest_k: int,
    dropout: float, causal: bool, debug: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Compute what PyTorch's kernel does, sentence by sentence."""
    assert starts_q.dtype == starts_k.dtype == torch.int32 and dropout == 0 and not debug
    lengths = [starts.diff().max().item() for starts in (starts_q, starts_k)]
    assert lengths == [longest_q, longest_k]
    outs = []
    for first_q, end_q, first_k, end_k in zip(
        starts_q[:-1].tolist(),
        starts_q[1:].tolist(),
        starts_k[:-1].tolist(),
        starts_k[1:].tolist(),
        strict=True,
    ):
        own = (x[first:end].transpose(0, 1)[None] for x, first, end in
               ((q, first_q, end_q), (k, first_k, end_k), (v, first_k, end_k)))  # fmt: skip
        mask = torch.ones(end_q - first_q, end_k - first_k, dtype=torch.bool)
        out, _ = plain_attention(*own, mask.tril() if causal else mask)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs), torch.empty(0)


@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_gets_each_sentence(num_rows: int, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the kernel of a GPU: its arguments, and the layout of its result."""
    monkeypatch.setattr(packed_module.torch.ops.aten, "_flash_attention_forward", flash)
    generator = torch.Generator().manual_seed(2)

    def packing(*lengths: int) -> Packing:
        starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
        return Packing(starts, torch.cat([torch.arange(n) for n in lengths]), max(lengths))

    tgt = packing(3, 1, 5)
    mask = PackedMask(tgt, tgt if causal else packing(2, 4, 1), causal)
    num_queries, num_keys = len(mask.queries.positions), len(mask.keys.positions)
    q = torch.randn(num_rows, 2, num_queries, 8, generator=generator)
    k, v = (torch.randn(num_rows, 2, num_keys, 8, generator=generator) for _ in range(2))
    expected, _ = plain_attention(q, k, v, block_mask(mask))
    torch.testing.assert_close(packed_attention(q, k, v, mask, 0.0), expected)


def test_the_kernel_of_this_pytorch_takes_these_arguments() -> None:
    """Its shapes and its gradient, on tensors without numbers."""
    q, k, v = (
        torch.randn(1, 4, n, 16, device="meta", dtype=torch.bfloat16, requires_grad=True)
        for n in (20, 33, 33)
    )
    starts = torch.zeros(4, dtype=torch.int32, device="meta")
    mask = PackedMask(*(Packing(starts, torch.zeros(n, device="meta"), 9) for n in (20, 33)))
    out = packed_attention(q, k, v, mask, 0.1)
    out.sum().backward()
    assert out.shape == q.shape and q.grad.shape == q.shape and k.grad.shape == v.grad.shape == k.shape  # type: ignore[union-attr]


def test_the_fused_kernel_knows_the_causal_mask_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    padded = loss_and_gradient(model, None)
    monkeypatch.setattr(attention_module, "fused_is_faster", lambda x: True)
    monkeypatch.setattr(attention_module, "uses_cpu_training_kernel", lambda x: False)
    seen = []
    original = torch.nn.functional.scaled_dot_product_attention

    def attend(*tensors: Tensor, attn_mask: Tensor | None, is_causal: bool, **options: Any) -> Tensor:
        seen.append((attn_mask is None, is_causal))
        return original(*tensors, attn_mask=attn_mask, is_causal=is_causal, **options)

    monkeypatch.setattr(attention_module.F, "scaled_dot_product_attention", attend)
    check_equal(padded, loss_and_gradient(model, None))
    assert seen == [(False, False)] * 2 + [(True, True), (False, False)] * 2


@pytest.mark.slow
def test_compiled_layers_take_packed_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout_module, "draws_with_pytorch", lambda x: True)
    model = make_model(dropout=0.1)
    compiled = copy.deepcopy(model)
    compiled.compiles = True
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: original(f, backend="aot_eager", fullgraph=True))
    random = np.random.default_rng(5)
    for number in range(6):
        num_rows = 1 if number == 3 else 3 + number
        tgts = [random.integers(4, 50, n).astype(np.int32) for n in random.integers(1, 9, num_rows)]
        batch = collate_pairs(tgts[::-1], tgts, np.arange(len(tgts)), SpecialIds(0, 3, 0, 2, 3))
        check_equal(loss_and_gradient(model, 0, batch), loss_and_gradient(compiled, 0, batch))
    assert (
        torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6
    )  # lengths of the longest may become dynamic late


# --- config -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("model.positions=relative", "model.positions relative needs padded sentences"),
        ("model.num_kv_heads=1", "model.num_kv_heads needs padded sentences"),
        ("training.minimum_risk={metric: chrf}", "training.minimum_risk needs padded sentences"),
    ],
)
def test_what_needs_padding_is_refused(option: str, reason: str, tmp_path: Path) -> None:
    path = tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=tmp_path)
    code, _, stderr = tiny.mtkit("config", "show", path, "training.pack=true", option)
    assert code == 2 and reason in tiny.one_line(stderr)


def test_a_cpu_packs_nothing(tmp_path: Path) -> None:
    path = tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=tmp_path)
    code, _, stderr = tiny.mtkit("train", path, "training.pack=true", "training.device=cpu")
    expected = "error: training.pack: packed sentences need a GPU and half precision, not fp32 on cpu (set it to false)"
    assert (code, tiny.one_line(stderr)) == (2, expected)


def test_what_the_kernel_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtkit import load_config
    from mtkit.training.inputs import _check_packing

    path = tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=tmp_path)
    gpu = torch.device("cuda", 0)
    capability = (8, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ConfigError, match="a multiple of 8"):
        _check_packing(load_config(path, ["model.num_heads=8", "training.precision=bf16"]), gpu)
    _check_packing(load_config(path, ["training.precision=bf16"]), gpu)
    with pytest.raises(ConfigError, match="not fp32 on cuda:0"):
        _check_packing(load_config(path, ["training.precision=fp32"]), gpu)
    capability = (7, 5)
    with pytest.raises(ConfigError, match="need an NVIDIA GPU of Ampere or newer, not Tesla T4"):
        _check_packing(load_config(path, ["training.precision=fp16"]), gpu)
