"""What makes training fast on a GPU: FP8, packed batches, compiled layers; each learns what plain training does."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from mtkit import load_config
from mtkit.config.sections import ModelConfig
from mtkit.data.batching import Batch, SpecialIds, collate_pairs
from mtkit.device import has_float8
from mtkit.model.attention import plain_attention
from mtkit.model.packed import PackedMask, Packing, block_mask, has_packed_kernel, packed_attention
from mtkit.model.transformer import Transformer
from mtkit.model.working_weights import Float8Weight
from mtkit.training.build import build_trainer
from mtkit.training.inputs import load_inputs
from mtkit.training.loss import Consistency
from mtkit.training.parallel import Objective
from mtkit.training.progress import Progress
from mtkit.training.trainer import Trainer


def needs_float8(device: torch.device) -> None:
    if device.type == "cuda" and not has_float8(device):
        pytest.skip("this GPU has no FP8")


def make_batch(seed: int = 4, rows: int = 12, longest: int = 20) -> Batch:
    """Return pairs of many lengths, padded."""
    random = np.random.default_rng(seed)
    srcs, tgts = (
        [random.integers(4, 100, n).astype(np.int32) for n in random.integers(1, longest, rows)]
        for _ in range(2)
    )
    return collate_pairs(srcs, list(tgts), np.arange(rows), SpecialIds(0, 3, 0, 2, 3))


def make_model(device: torch.device, **options: Any) -> Transformer:
    torch.manual_seed(1)
    sizes = {
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_heads": 4,
        "d_ff": 96,
        "dropout": 0.0,
    }
    model = Transformer(ModelConfig.model_validate(sizes | options), 100, 100).train().to(device)
    model.compute_dtype = torch.bfloat16
    return model


def loss_and_gradient(
    model: Transformer, batch: Batch, packed_pad: int | None = None, **options: Any
) -> tuple[float, Tensor]:
    torch.manual_seed(7)
    model.zero_grad()
    with model.weights_cast_once():
        loss, _ = Objective(model, 0.1, packed_pad=packed_pad, **options)(batch)
        loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def check_close(found: tuple[float, Tensor], expected: tuple[float, Tensor], tolerance: float) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert (found[1] - expected[1]).norm() < 3 * tolerance * expected[1].norm()


# --- FP8 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [48, 37, 1])
def test_a_product_in_fp8_is_the_one_that_a_cpu_emulates(rows: int, device: torch.device) -> None:
    needs_float8(device)
    generator = torch.Generator().manual_seed(3)
    x, grad = (torch.randn(rows, n, generator=generator).to(torch.bfloat16) for n in (64, 96))
    weight = torch.randn(96, 64, generator=generator) * 0.1
    found = []
    for where in (torch.device("cpu"), device):
        own_x, own_weight = (each.clone().to(where).requires_grad_() for each in (x, weight))
        y = Float8Weight(own_weight).product(own_x, own_weight, None)
        y.backward(grad.to(where))
        found.append([each.float().cpu() for each in (y.detach(), own_x.grad, own_weight.grad)])
    for expected, own in zip(*found, strict=True):
        assert (own - expected).norm() < 0.01 * expected.norm()


def test_fp8_is_refused_where_there_is_none_and_trains_where_it_is(device: torch.device) -> None:
    needs_float8(device)
    model, batch = make_model(device), make_batch()
    expected = loss_and_gradient(model, batch)
    model.uses_float8 = True
    check_close(loss_and_gradient(model, batch), expected, 0.06)


# --- packed batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("num_rows", [1, 2])
def test_the_kernel_for_lengths_is_attention_with_a_mask(
    causal: bool, num_rows: int, device: torch.device
) -> None:
    q, k, v = (
        torch.randn(num_rows, 4, n, 16, device=device).to(torch.bfloat16).requires_grad_()
        for n in (23, 23, 23)
    )
    if not has_packed_kernel(q):
        pytest.skip("needs a GPU")
    lengths = [5, 1, 17]
    starts = torch.tensor([0, 5, 6, 23], dtype=torch.int32, device=device)
    packing = Packing(starts, torch.cat([torch.arange(n, device=device) for n in lengths]), 17)
    mask = PackedMask(packing, packing, causal)
    out = packed_attention(q, k, v, mask, 0.0)
    expected, _ = plain_attention(q.float(), k.float(), v.float(), block_mask(mask))
    torch.testing.assert_close(out.float(), expected, atol=0.02, rtol=0.02)
    grad = torch.randn_like(expected)
    gradients = torch.autograd.grad(out, (q, k, v), grad.to(out.dtype))
    for own, wanted in zip(gradients, torch.autograd.grad(expected, (q, k, v), grad), strict=True):
        assert (own.float() - wanted.float()).norm() < 0.03 * wanted.float().norm()


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("streams", [1, 2])
def test_packed_and_padded_batches_have_the_same_loss(
    positions: str, streams: int, device: torch.device
) -> None:
    consistency = Consistency.r_drop(5.0) if streams == 2 else None
    model, batch = make_model(device, positions=positions), make_batch()
    expected = loss_and_gradient(model, batch, consistency=consistency)
    check_close(loss_and_gradient(model, batch, 0, consistency=consistency), expected, 0.01)


def test_dropout_of_attention_works_on_packed_sentences(device: torch.device) -> None:
    model, batch = make_model(device, attention_dropout=0.2, dropout=0.1), make_batch()
    first, again = (loss_and_gradient(model, batch, 0) for _ in range(2))
    assert first[0] == again[0]
    assert first[0] == pytest.approx(loss_and_gradient(model.eval(), batch)[0], rel=0.1)


# --- compiled layers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["padded", "packed", "fp8", "relative"])
def test_batches_of_all_sizes_share_a_handful_of_graphs(kind: str, device: torch.device) -> None:
    from torch._dynamo.utils import counters

    if kind == "fp8":
        needs_float8(device)
    model = make_model(device, **({"positions": "relative"} if kind == "relative" else {}))
    model.uses_float8 = kind == "fp8"
    compiled = copy.deepcopy(model)
    compiled.compiles = True
    packed_pad = 0 if kind == "packed" else None
    torch._dynamo.reset()
    counters.clear()
    for seed, (rows, longest) in enumerate([(12, 20), (7, 30), (30, 8), (3, 40), (1, 9), (12, 12)]):
        batch = make_batch(seed, rows, longest)
        expected = loss_and_gradient(model, batch, packed_pad)
        check_close(
            loss_and_gradient(compiled, batch, packed_pad),
            expected,
            0.05 if kind == "fp8" else 0.015,  # E5M2 rounds gradients by up to an eighth
        )
    # attention guards on whether lengths of source and target are multiples of 8
    assert counters["stats"]["unique_graphs"] <= (6 if kind == "packed" else 7)


# --- updates ------------------------------------------------------------------------------------------------------


def make_trainer(config: Path, run: Path, options: list[str]) -> Trainer:
    loaded = load_config(
        config, [*options, f"run={run}", "training.log_every_steps=100", "training.workers=1"]
    )
    run.mkdir(exist_ok=True)
    inputs = load_inputs(loaded, run, has_tokenizers=False, say=lambda _: None)
    return build_trainer(loaded, inputs, Progress(run, Console(quiet=True), writes_metrics=False))


FAST = {
    "bf16": ["training.precision=bf16"],
    "fp8": ["training.precision=fp8"],
    "packed": ["training.precision=bf16", "training.pack=true"],
    "packed, fp8, compiled": ["training.precision=fp8", "training.pack=true", "training.compile=true"],
}


@pytest.mark.parametrize("name", FAST)
def test_fast_updates_learn_and_wait_for_nothing(
    name: str, config: Path, tmp_path: Path, device: torch.device
) -> None:
    """PyTorch itself raises where an update waits for the GPU."""
    if "fp8" in name:
        needs_float8(device)
    shape = ["model.d_model=64", "model.num_heads=4", "model.dropout=0", "training.accumulate=2"]
    losses = []
    for options in (FAST["bf16"], FAST[name]):
        trainer = make_trainer(config, tmp_path / "run", [*shape, *options, f"training.device={device}"])
        updates = [trainer.loader.fetch(update, 1) for update in islice(trainer.loader.updates(0, 0), 24)]
        for number, update in enumerate(updates):
            is_watched = device.type == "cuda" and number >= 12  # everything is compiled by then
            with _errors_where_it_waits() if is_watched else nullcontext():
                trainer.train_step(update)
        trainer.read_updates()
        losses.append(trainer.state.watch.mean)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


class _errors_where_it_waits:
    def __enter__(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *error: object) -> None:
        torch.cuda.set_sync_debug_mode("default")
