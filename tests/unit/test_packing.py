"""Packed and 8-bit weights give the results of the plain ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtkit.config.sections import ModelConfig
from mtkit.errors import ConfigError
from mtkit.model.attention import Linear
from mtkit.model.cpu.packing import (
    Int8Linear,
    PackedLinear,
    can_pack,
    choose_int8,
    int8_quant_max,
    multiply_int8,
    pack,
    quantize_rows,
)
from mtkit.model.transformer import Transformer

packable = pytest.mark.skipif(not can_pack(torch.float32), reason="this PyTorch has no packed matrices")


@packable
@pytest.mark.parametrize("with_avx512", [True, False])
@pytest.mark.parametrize("keys", [{}, {"activation": "swiglu", "bias": False}, {"unique_decoder_layers": 1}])
def test_a_packed_model_gives_the_same_results(
    keys: dict[str, Any], with_avx512: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    capability = "AVX512" if with_avx512 else "AVX2"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model, packed = small_model(**keys), small_model(**keys)
    pack(packed)
    torch.testing.assert_close(logits_of(packed), logits_of(model), atol=1e-4, rtol=1e-4)
    kinds = {type(module) for module in packed.modules()}
    assert (PackedLinear in kinds) == with_avx512
    assert len(list(packed.parameters())) < len(list(model.parameters())) or not with_avx512


def small_model(**keys: Any) -> Transformer:
    torch.manual_seed(1)
    config = ModelConfig(d_model=32, num_heads=2, encoder_layers=2, decoder_layers=2, **keys)
    return Transformer(config, 72, 72).eval()


@torch.no_grad()
def logits_of(model: Transformer) -> torch.Tensor:
    rng = torch.Generator().manual_seed(3)
    src, tgt = (torch.randint(1, 72, shape, generator=rng) for shape in ((3, 7), (3, 5)))
    return model.logits(model(src, tgt))


# --- 8-bit integers ---------------------------------------------------------------------------------------------

has_int8 = pytest.mark.skipif(int8_quant_max() == 0, reason="this PyTorch has no exact int8 products")


@has_int8
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_an_int8_product_is_close_and_does_not_depend_on_other_rows(bias: bool, relu: bool) -> None:
    torch.manual_seed(2)
    linear = Linear(64, 200, bias=bias)
    int8 = Int8Linear(linear, relu)
    x = torch.randn(5, 3, 64) * torch.tensor([1e-3, 1.0, 100.0])[:, None]
    with torch.no_grad():
        found, exact = int8(x), linear(x)
        exact = exact.relu() if relu else exact
        error = (found - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert error.max() < 0.03
        assert torch.equal(int8(x[2:3]), found[2:3])
        assert int8(torch.zeros(1, 64)).isfinite().all()


@has_int8
def test_the_largest_int8_sums_are_exact() -> None:
    steps = int8_quant_max()
    rng = torch.Generator().manual_seed(4)
    octets = torch.randint(0, 256, (50, 512), generator=rng).to(torch.uint8)
    octets[0], octets[1] = 255, 0
    matrix = torch.randint(-steps, steps + 1, (256, 512), generator=rng).to(torch.int8)
    matrix[0], matrix[1] = steps, -steps
    packed = torch.ops.onednn.qlinear_prepack(matrix, None)
    found = multiply_int8(octets, packed, torch.ones(256), torch.zeros(256, dtype=torch.long))
    assert torch.equal(found.double(), (octets.double() - 128) @ matrix.double().T)


def test_quantized_rows_dequantize_to_the_input() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5, 2.0], [0.0, 0.0, 0.0, 0.0], [-3e4, 0.0, 1e4, 2e4]])
    octets, worth = quantize_rows(x)
    assert octets.dtype == torch.uint8 and octets[0].tolist() == [192, 1, 160, 255]
    torch.testing.assert_close((octets.float() - 128) * worth, x, atol=2e-2, rtol=0.01)


@has_int8
def test_an_int8_model_is_close_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtkit.model.cpu.packing.INT8_MIN_SIZE", 2000)
    model = small_model()
    exact = logits_of(model)
    for kind in ("output", "all"):
        int8 = small_model()
        pack(int8, kind)  # type: ignore[arg-type]
        found = logits_of(int8)
        assert 0 < ((found - exact).norm() / exact.norm()) < 0.05
        number = sum(isinstance(module, Int8Linear) for module in int8.modules())
        assert number == 1 if kind == "output" else number > 4
    assert isinstance(int8.decoder[0].cross.out, Linear | PackedLinear)  # below INT8_MIN_SIZE


def test_choose_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr("mtkit.model.cpu.packing.can_pack", lambda dtype: True)
    monkeypatch.setattr("mtkit.model.cpu.packing.int8_quant_max", lambda: 127)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for bf16, kind in ((False, "all"), (True, "output")):
        monkeypatch.setattr("mtkit.device.cpu_has_bf16", lambda bf16=bf16: bf16)
        assert [choose_int8(name, cpu) for name in ("auto", "int8", "fp32", "bf16")] == [
            kind,
            "all",
            "none",
            "none",
        ]
    assert choose_int8("auto", cpu, auto_means_all=True) == "all"
    assert choose_int8("auto", gpu) == "none"
    with monkeypatch.context() as arm:
        arm.setattr("platform.machine", lambda: "aarch64")
        assert [choose_int8(name, cpu, auto_means_all=True) for name in ("auto", "int8")] == ["none", "all"]
    monkeypatch.setattr("mtkit.model.cpu.packing.int8_quant_max", lambda: 0)
    assert choose_int8("auto", cpu) == "none"
    for device in (cpu, gpu):
        with pytest.raises(ConfigError, match="int8 is not supported"):
            choose_int8("int8", device)
