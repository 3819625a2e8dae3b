"""Matrices are cast once an update; FP8 products, emulated on the CPU with the same numbers, are about exact ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rich.console import Console
from torch import Tensor

from mtkit import load_config
from mtkit.benchmark.train import synthetic_inputs
from mtkit.config.sections import ModelConfig
from mtkit.device import check_float8
from mtkit.errors import ConfigError
from mtkit.model import working_weights
from mtkit.model.transformer import Transformer
from mtkit.model.working_weights import E4M3, E5M2, CastWeight, Float8Weight, suits_float8
from mtkit.training.build import build_trainer
from mtkit.training.inputs import load_inputs
from mtkit.training.loss import TensorBatch
from mtkit.training.parallel import Objective
from mtkit.training.progress import Progress
from mtkit.training.state import TrainState


def make_model(**options: Any) -> Transformer:
    torch.manual_seed(1)
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "num_heads": 4, "d_ff": 48}
    model = Transformer(ModelConfig.model_validate(sizes | options), 60, 60).train()
    model.compute_dtype = torch.bfloat16
    return model


def make_batch() -> TensorBatch:
    generator = torch.Generator().manual_seed(3)
    src, tgt = (torch.randint(4, 60, (5, width), generator=generator) for width in (9, 7))
    return TensorBatch(src, tgt, tgt.roll(-1, 1), torch.ones(5, 7, dtype=torch.bool))


def loss_and_gradient(model: Transformer) -> tuple[float, Tensor]:
    torch.manual_seed(7)
    model.zero_grad()
    loss, _ = Objective(model, 0.1)(make_batch())
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("recomputes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_cast_that_is_shared_gives_the_same_gradient(recomputes: bool) -> None:
    model = make_model()
    model.recompute = recomputes
    expected, expected_gradient = loss_and_gradient(model)
    with model.weights_cast_once():
        loss, gradient = loss_and_gradient(model)
    assert loss == expected and torch.equal(gradient, expected_gradient)
    assert all(m.working is None for m in model.modules() if isinstance(m, torch.nn.Linear))


def test_translating_takes_the_weights_as_they_are() -> None:
    model = make_model().eval()
    batch = make_batch()
    with torch.no_grad(), model.weights_cast_once():
        for parameter in model.decoder.parameters():
            parameter.zero_()
        inside = model(batch.src_BS, batch.tgt_in_BT)
    assert torch.equal(inside, model(batch.src_BS, batch.tgt_in_BT))


@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp32"])
def test_an_update_casts_each_matrix_once(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTKIT_CACHE", str(tmp_path / "cache"))
    casts = []
    for kind in (CastWeight, Float8Weight):
        original = kind.__init__

        def init(self: Any, weight: Tensor, *more: Any, original: Any = original, kind: type = kind) -> None:
            casts.append(kind)
            original(self, weight, *more)

        monkeypatch.setattr(kind, "__init__", init)
    root = tiny.write_corpus(tmp_path / "data")
    path = tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=root)
    config = load_config(
        path, [f"training.precision={precision}", "training.workers=1", "training.accumulate=3"]
    )
    inputs = load_inputs(config, tmp_path, has_tokenizers=False, say=lambda _: None)
    trainer = build_trainer(config, inputs, Progress(tmp_path, Console(quiet=True), writes_metrics=False))
    trainer.train_step(next(trainer.loader.updates(0, 0)))
    num_matrices = 4 * trainer.model.encoder_depth + 7 * trainer.model.decoder_depth
    assert len(casts) == (0 if precision == "fp32" else num_matrices + 1)  # and the output matrix
    assert casts.count(Float8Weight) == (num_matrices if precision == "fp8" else 0)
    assert all(p.grad is None or p.grad.dtype == p.dtype == torch.float32 for p in trainer.model.parameters())


def test_the_loss_scale_of_a_checkpoint_is_restored(tmp_path: Path) -> None:
    config = load_config(
        tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=tmp_path),
        ["training.precision=fp16", "training.device=cpu"],
    )
    progress = Progress(tmp_path, Console(quiet=True), writes_metrics=False)
    trainer = build_trainer(config, synthetic_inputs(config), progress)
    scaler = trainer.engine.scaler.state_dict() | {"scale": 4.0}
    trainer._continue_from(TrainState(scaler=scaler))
    assert trainer.engine.scaler.state_dict() == scaler


# --- FP8 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 7), (16,), (1,), (2, 3, 5)])
def test_a_product_in_fp8_is_about_the_exact_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(*shape, 64), torch.randn(48, 64) * 0.1, torch.randn(48)
    grad = torch.randn(*shape, 48)
    inputs = [x.to(torch.bfloat16), weight, bias.to(torch.bfloat16)]
    own = [each.clone().requires_grad_() for each in inputs]
    y = Float8Weight(weight).product(*own)
    exact = [each.float().requires_grad_() for each in inputs]
    expected = torch.nn.functional.linear(*exact)
    assert y.dtype == torch.bfloat16 and y.shape == expected.shape
    assert (y - expected).norm() < 0.06 * expected.norm()
    gradients = torch.autograd.grad(y, own, grad.to(y.dtype))
    for found, wanted in zip(gradients, torch.autograd.grad(expected, exact, grad), strict=True):
        assert (found - wanted).norm() < 0.12 * wanted.norm()
    assert gradients[1].dtype == torch.float32


def test_scales_use_the_whole_range() -> None:
    x = torch.tensor([[1e-6, -3.0], [0.5, 2.0]])
    for dtype in (E4M3, E5M2):
        scale = working_weights._scale(x, dtype)
        cast = working_weights._cast(x, scale, dtype)
        assert cast.float().abs().max() == torch.finfo(dtype).max
        torch.testing.assert_close(cast.float() * scale, x, rtol=0.13, atol=0.02)
    assert not working_weights._cast(x * 0, working_weights._scale(x * 0, E4M3), E4M3).float().any()


def test_numbers_that_are_not_finite_are_not_hidden() -> None:
    weight = torch.randn(16, 16)
    x = torch.randn(4, 16)
    for wrong in (math.inf, math.nan):
        x[1, 2] = wrong
        assert not Float8Weight(weight).product(x, weight, None).isfinite().all()


def test_the_hardware_gets_sizes_and_layouts_that_it_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first factor by rows, the second by columns, sizes in multiples of 16, no two factors in E5M2."""
    seen = []

    def multiply(
        a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype, fast: bool = False
    ) -> Tensor:
        assert a.stride() == (a.shape[1], 1) and b.stride() == (1, b.shape[0])
        assert all(size % 16 == 0 for size in (*a.shape, *b.shape))
        assert (a_scale.dtype, b_scale.dtype, a_scale.dim(), b_scale.dim()) == (
            torch.float32,
            torch.float32,
            0,
            0,
        )
        seen.append((a.dtype, b.dtype))
        return original(a, b, a_scale, b_scale, dtype, fast=fast)

    original = working_weights._multiply
    monkeypatch.setattr(working_weights, "_multiply", multiply)
    model = make_model()
    model.uses_float8 = True
    with model.weights_cast_once():
        loss_and_gradient(model)
    num_products = 2 * 4 + 2 * 7 - 2 * 1  # of layers; keys and values of the memory are one product
    assert seen.count((E4M3, E4M3)) * 2 == seen.count((E5M2, E4M3)) and len(seen) >= num_products


def test_matrices_of_other_sizes_stay_in_bf16() -> None:
    assert suits_float8(torch.zeros(32, 48)) and not suits_float8(torch.zeros(32, 40))
    model = make_model(d_ff=40)
    model.uses_float8 = True
    with model.weights_cast_once():
        layer = model.encoder[0]
        kinds = [
            type(m.working) for m in (layer.attention.qkv, layer.feed_forward.inner, layer.feed_forward.outer)
        ]
    assert kinds == [Float8Weight, CastWeight, CastWeight]


def test_the_gradient_of_a_model_in_fp8_is_about_that_in_bf16() -> None:
    model = make_model(dropout=0.0)
    with model.weights_cast_once():
        expected, expected_gradient = loss_and_gradient(model)
    model.uses_float8 = True
    with model.weights_cast_once():
        loss, gradient = loss_and_gradient(model)
    assert loss == pytest.approx(expected, rel=0.02)
    assert 0 < (gradient - expected_gradient).norm() < 0.2 * expected_gradient.norm()


def test_devices_without_fp8_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTKIT_CACHE", str(tmp_path / "cache"))
    root = tiny.write_corpus(tmp_path / "data")
    path = tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=root)
    code, _, stderr = tiny.mtkit("train", path, "training.precision=fp8", "training.device=cpu")
    line = tiny.one_line(stderr)
    assert code == 2 and line.startswith("error: training.precision fp8: ")
    assert line.endswith(
        "does not multiply matrices in FP8 (bf16; NVIDIA GPUs have FP8 since Ada and Hopper)"
    )
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ConfigError, match="a GPU does not multiply"):
        check_float8(gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_float8(gpu)


def test_fsdp_and_fp8_exclude_each_other(tmp_path: Path) -> None:
    path = tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=tmp_path)
    code, _, stderr = tiny.mtkit("config", "show", path, "training.precision=fp8", "training.parallel=fsdp")
    assert code == 2 and "parallel fsdp needs precision bf16 or fp32: FP8" in tiny.one_line(stderr)
