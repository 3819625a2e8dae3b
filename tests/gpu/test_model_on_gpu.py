"""The model and the search on a GPU: what holds on a CPU, and the CPU's numbers and hypotheses in float32."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from mtkit.config.sections import DecodingConfig, ModelConfig
from mtkit.model.cuda_graphs import without_graphs
from mtkit.model.static import size_of
from mtkit.model.transformer import Transformer
from mtkit.search.buckets import Buckets
from mtkit.training.loss import TensorBatch, hidden_at_targets, loss_sums
from mtkit.translation.loading import load_model
from mtkit.translation.translator import Translator

KINDS: dict[str, dict[str, Any]] = {
    "sinusoidal": {},
    "rotary, grouped heads": {"positions": "rotary", "num_kv_heads": 2, "norm": "rmsnorm", "activation": "swiglu"},
    "relative": {"positions": "relative", "max_relative_distance": 3},
    "learned, post-norm": {"positions": "learned", "norm_position": "post", "activation": "gelu"},
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, **more: Any) -> Transformer:
    """Return a model with random weights on the CPU, in evaluation mode."""
    torch.manual_seed(1)
    sizes = {
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_heads": 4,
        "d_ff": 96,
        "dropout": 0.0,
    }
    return Transformer(ModelConfig.model_validate(sizes | KINDS[kind] | more), 100, 100).eval()


def make_batch(device: torch.device) -> TensorBatch:
    """Return random sentences of many lengths."""
    generator = torch.Generator().manual_seed(2)
    src, tgt = (torch.randint(4, 99, (7, width), generator=generator) for width in (13, 11))
    src_lengths, tgt_lengths = torch.tensor([13, 1, 7, 9, 4, 12, 2]), torch.tensor([11, 3, 1, 8, 10, 5, 6])
    src[torch.arange(13) >= src_lengths[:, None]] = 0
    mask = torch.arange(11) < tgt_lengths[:, None]
    positions = mask.flatten().nonzero()[:, 0]
    tensors = (src, tgt, tgt.roll(-1, 1), mask, positions)
    src, tgt_in, tgt_out, mask, positions = (tensor.to(device) for tensor in tensors)
    return TensorBatch(src, tgt_in, tgt_out, mask, positions_M=None if device.type == "cpu" else positions)


@every_kind
@torch.no_grad()
def test_padding_and_later_tokens_change_nothing(kind: str, device: torch.device) -> None:
    model, batch = make(kind).to(device), make_batch(device)
    hidden = model(batch.src_BS, batch.tgt_in_BT)
    for row in range(len(hidden)):
        src = batch.src_BS[row : row + 1][batch.src_BS[row : row + 1] != 0][None]
        length = int(batch.mask_BT[row].sum())
        alone = model(src, batch.tgt_in_BT[row : row + 1, :length])
        torch.testing.assert_close(hidden[row, :length], alone[0], atol=1e-5, rtol=1e-4)


@every_kind
@torch.no_grad()
def test_a_cached_step_is_a_full_decode(kind: str, device: torch.device) -> None:
    model, batch = make(kind).to(device), make_batch(device)
    memory, mask = model.encode(batch.src_BS), model.source_mask(batch.src_BS)
    whole = model.decode(batch.tgt_in_BT, memory, mask)
    state = model.init_state(memory, mask)
    steps = [model.step(batch.tgt_in_BT[:, t : t + 1], state) for t in range(batch.tgt_in_BT.shape[1])]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-4)


@every_kind
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.05), ("fp16", 0.03)])
def test_loss_and_gradient_are_those_of_a_cpu(
    kind: str, precision: str, tolerance: float, device: torch.device
) -> None:
    found = []
    for where in (torch.device("cpu"), device):
        model = make(kind).train().to(where)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        model.compute_dtype = torch.float32 if where.type == "cpu" else dtype
        hidden, targets = hidden_at_targets(model, make_batch(where))
        loss = loss_sums(hidden, model.output.weight, targets, 0.1, model.output.bias).loss
        (loss / len(targets)).backward()
        gradients = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
        found.append((loss.item(), torch.cat([each.flatten() for each in gradients])))
    (expected, gradient), (loss, on_gpu) = found
    assert loss == pytest.approx(expected, rel=tolerance)
    assert (on_gpu - gradient).norm() < tolerance * gradient.norm()


# --- search -------------------------------------------------------------------------------------------------------

SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"beam_size": 1},
    "beam": {"beam_size": 5, "n_best": 3},
    "certain": {"beam_size": 4, "stop": "certain", "length_penalty": 0.6},
    "coverage": {"beam_size": 4, "coverage_penalty": 0.2, "no_repeat_ngram": 3},
    "groups": {"beam_size": 4, "groups": 2, "min_pieces": 4},
    "samples": {"sample": True, "n_best": 4, "top_p": 0.9},
    "ensemble": {"beam_size": 3},
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_finds_the_hypotheses_of_a_cpu(name: str, trained: Path, device: torch.device) -> None:
    srcs = [src for src, _ in tiny.pairs(60, 11)]
    members = [trained] if name == "ensemble" else []
    decoding = DecodingConfig.model_validate(SEARCHES[name])
    found = {}
    for where in ("cpu", str(device)):
        translator = Translator.load(
            trained, decoding=decoding, device=where, precision="fp32", ensemble=members
        )
        found[where] = list(translator.translate(srcs))
    for own, other in zip(found[str(device)], found["cpu"], strict=True):
        assert own.text == other.text
        assert own.score == pytest.approx(other.score, abs=1e-3)


@pytest.mark.parametrize("name", ["greedy", "beam", "certain", "groups", "samples"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs_repeat_what_plain_steps_do(
    name: str, precision: str, trained: Path, device: torch.device
) -> None:
    """In batches of many sizes, with graphs that later batches of the same sizes use again."""
    _, tokenizers, model = load_model(trained)
    model.compute_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model.to(device, model.compute_dtype).eval()
    decoding = DecodingConfig.model_validate(SEARCHES[name])
    graphs, plain = Buckets([model]), Buckets([model], without_graphs)
    srcs = [src for src, _ in tiny.pairs(70, 13)]

    def translate(lines: list[str], buckets: Buckets | None) -> list[tuple[str, float]]:
        translator = Translator(model, tokenizers, decoding, buckets=buckets)
        return [(each.text, each.score) for each in translator.translate(lines)]

    for lines in (srcs, srcs[:9], srcs[:1], srcs, srcs[5:14], srcs[1:2]):
        found = translate(lines, graphs)
        for own, other in zip(found, translate(lines, plain), strict=True):
            assert own == (other[0], pytest.approx(other[1], abs=1e-3))
        if precision == "fp32":
            assert [text for text, _ in found] == [text for text, _ in translate(lines, None)]
    assert graphs.sizes == plain.sizes and len(graphs.sizes) < 40
    assert (0 < graphs.num_graphs < 40) == (device.type == "cuda")


@pytest.mark.filterwarnings("error::RuntimeWarning")  # of a step that is not captured
def test_dropped_graphs_give_their_memory_back(trained: Path, device: torch.device) -> None:
    _, tokenizers, model = load_model(trained)
    model.to(device).eval()
    srcs = [src for src, _ in tiny.pairs(40, 14)]
    buckets = Buckets([model], max_bytes=Buckets([model]).num_bytes(size_of(8, 16, 5)))
    translator = Translator(model, tokenizers, DecodingConfig(), buckets=buckets)
    used = []
    for _ in range(6):
        for count in (1, 2, 3, 5, 8, 13, 40):
            list(translator.translate(srcs[:count]))
            assert sum(map(buckets.num_bytes, buckets.sizes)) <= buckets.max_bytes
        used.append(torch.cuda.memory_allocated(device) if device.type == "cuda" else 0)
    assert used[-1] <= 1.1 * used[1] + (1 << 20)


def test_half_precision_translates_about_the_same(trained: Path, device: torch.device) -> None:
    srcs = [src for src, _ in tiny.pairs(60, 11)]

    def texts(precision: str) -> list[str]:
        translator = Translator.load(trained, device=str(device), precision=precision)
        return [translation.text for translation in translator.translate(srcs)]

    exact = texts("fp32")
    for precision in ("bf16", "fp16"):
        same = sum(a == b for a, b in zip(texts(precision), exact, strict=True))
        assert same >= 0.8 * len(exact)


def test_scores_and_links_are_those_of_a_cpu(trained: Path, device: torch.device) -> None:
    pairs = tiny.pairs(30, 12)
    srcs, tgts = zip(*pairs, strict=True)
    cpu, gpu = (Translator.load(trained, device=where, precision="fp32") for where in ("cpu", str(device)))
    for own, other in zip(gpu.score(srcs, tgts), cpu.score(srcs, tgts), strict=True):
        assert own.score == pytest.approx(other.score, abs=1e-3)
    assert list(gpu.align(pairs)) == list(cpu.align(pairs))


def test_a_model_is_copied_to_the_device_as_it_is(device: torch.device) -> None:
    model = make("sinusoidal")
    there = copy.deepcopy(model).to(device)
    back: dict[str, Tensor] = {name: weight.cpu() for name, weight in there.state_dict().items()}
    assert all(torch.equal(back[name], weight) for name, weight in model.state_dict().items())
