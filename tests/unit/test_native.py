"""The compiled library gives what PyTorch gives, on every set of instructions that this CPU has.

Shapes: B sentences, K hypotheses, S source length, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtkit.config.sections import ModelConfig
from mtkit.errors import ConfigError, TrainingError
from mtkit.model.attention import Linear
from mtkit.model.cpu.native import loading
from mtkit.model.cpu.native.library import (
    INSTRUCTIONS,
    MAX_INPUTS,
    NativeLinear,
    instructions,
    library,
    padded,
)
from mtkit.model.cpu.native.model import NativeModel, supports, uses_native
from mtkit.model.layers import LayerNorm
from mtkit.model.quantized import quantize, quantize_matrix
from mtkit.model.transformer import Transformer
from mtkit.search.beam import search
from mtkit.search.shortlist import TokenLists
from mtkit.search.state import Hypothesis, SearchOptions
from mtkit.search.steppers import ModelStepper, NativeListStepper, NativeStepper

AVAILABLE = [name for name, number in INSTRUCTIONS.items() if 0 < number <= instructions()]
pytestmark = pytest.mark.skipif(
    not AVAILABLE, reason="the compiled library was not built, or does not suit this CPU"
)
each_instructions = pytest.mark.parametrize("kind", AVAILABLE)

BOS, EOS = 2, 3
SRC_VOCAB, TGT_VOCAB = 61, 77


def make(**keys: Any) -> Transformer:
    torch.manual_seed(0)
    sizes = {"d_model": 48, "num_heads": 4, "encoder_layers": 2, "decoder_layers": 2, "d_ff": 96}
    model = Transformer(ModelConfig(**sizes | keys), SRC_VOCAB, TGT_VOCAB, tie_embeddings="none").eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and gains too
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def native(model: Transformer, kind: str, int8: bool = False) -> NativeModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTKIT_NATIVE", kind)
        return NativeModel(model, int8)


def sources(*lengths: int, longest: int = 0) -> Tensor:
    src_BS = torch.zeros(len(lengths), max(longest, *lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        src_BS[row, :length] = torch.randint(
            1, SRC_VOCAB, (length,), generator=torch.Generator().manual_seed(row)
        )
    return src_BS


# --- against PyTorch --------------------------------------------------------------------------------------------

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd sizes": {"d_model": 6, "num_heads": 3, "d_ff": 10, "output_bias": True},
    "post-norm RMS": {"norm": "rmsnorm", "norm_position": "post", "positions": "learned", "bias": False},
    "rotary, grouped": {"positions": "rotary", "activation": "swiglu", "num_kv_heads": 2, "final_norm": False},
    "scaled": {"activation": "gelu", "residual_scale": 1.3, "decoder_residual_scale": 0.7, "embedding_norm": True},
    "fairseq": {"activation": "geglu", "sinusoids": "fairseq", "position_offset": 2, "scale_embeddings": False},
    "decoder of its own": {
        "activation": "silu", "unique_decoder_layers": 1, "decoder_num_heads": 2, "decoder_d_ff": 40,
        "decoder_norm_position": "post",
    },
}  # fmt: skip


@each_instructions
@pytest.mark.parametrize("keys", MODELS.values(), ids=MODELS.keys())
@torch.inference_mode()
def test_steps_equal_those_of_pytorch(keys: dict[str, Any], kind: str) -> None:
    """The searches of both reorder hypotheses, drop sentences and change the beam; 40 steps outgrow the first room."""
    model = make(**keys)
    src_BS, rng = sources(19, 3, 7, 16, 1), torch.Generator().manual_seed(1)
    ours, theirs = NativeStepper(native(model, kind), src_BS), ModelStepper(model, src_BS)
    tokens_BK = torch.full((5, 1), BOS)
    for step in range(40 if keys == {} else 12):
        ours_BKV, theirs_BKV = (each.logits(each.step(tokens_BK)) for each in (ours, theirs))
        torch.testing.assert_close(ours_BKV, theirs_BKV, atol=1e-5 * float(theirs_BKV.abs().max()), rtol=0)
        K, new_K = tokens_BK.shape[1], 3 if step < 8 else 4
        rows_B = torch.tensor([0, 4, 2]) if step == 5 else torch.arange(len(tokens_BK))
        parents_BK = torch.randint(K, (len(rows_B), new_K), generator=rng)
        for each in (ours, theirs):
            each.keep_rows(rows_B)
            each.reorder(parents_BK)
        tokens_BK = torch.randint(TGT_VOCAB, (len(rows_B), new_K), generator=rng)


@each_instructions
@torch.inference_mode()
def test_the_most_probable_tokens_are_those_of_all_logits(kind: str) -> None:
    model = make()
    stepper = NativeStepper(native(model, kind), sources(5, 9, 2))
    forbidden = [40, 0, 5, TGT_VOCAB - 1]
    hidden_BKD = stepper.step(torch.tensor([[7], [8], [9]]))
    best = stepper.best_tokens(hidden_BKD, 6, forbidden, EOS)
    expected_BKV = model.logits(hidden_BKD).log_softmax(dim=-1)
    torch.testing.assert_close(best.eos_log_probs_BK, expected_BKV[:, :, EOS])
    expected_BKV[:, :, forbidden] = -torch.inf
    values_BKC, tokens_BKC = expected_BKV.topk(6)
    torch.testing.assert_close(best.log_probs_BKC, values_BKC)
    assert torch.equal(best.tokens_BKC, tokens_BKC)


@each_instructions
@torch.inference_mode()
def test_equally_probable_tokens_are_in_ascending_order(kind: str) -> None:
    model = make(output_bias=True)
    model.output.weight.zero_()
    model.output.bias.copy_(torch.arange(TGT_VOCAB) % 3)
    stepper = NativeStepper(native(model, kind), sources(4))
    hidden_BKD = stepper.step(torch.tensor([[BOS]]))
    best = stepper.best_tokens(hidden_BKD, 30, [5], EOS)
    twos, ones = (list(range(first, TGT_VOCAB, 3)) for first in (2, 1))
    assert best.tokens_BKC.flatten().tolist() == [t for t in twos + ones if t != 5][:30]
    few = stepper.best_tokens(hidden_BKD, 4, range(3, TGT_VOCAB), EOS)
    assert (few.log_probs_BKC > -torch.inf).flatten().tolist() == [True, True, True, False]


@each_instructions
@pytest.mark.parametrize("width", [48, 64, 176])
@pytest.mark.parametrize("int8", [False, True])
@torch.inference_mode()
def test_the_most_probable_tokens_of_a_list_are_those_of_its_logits(
    kind: str, int8: bool, width: int
) -> None:
    """As the search does it, sentences leave the batch between the steps."""
    model = make(d_model=width, output_bias=int8)
    rng, allowed_BV = np.random.default_rng(1), np.zeros((3, TGT_VOCAB), dtype=np.bool_)
    for row, size in enumerate((1, 20, TGT_VOCAB)):
        allowed_BV[row, rng.permutation(TGT_VOCAB)[:size]] = True
    lists = TokenLists(allowed_BV | (np.arange(TGT_VOCAB) == EOS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTKIT_NATIVE", kind)
        stepper = NativeListStepper(NativeModel(model, int8, lists=True), sources(5, 9, 2), lists)
    whole = NativeStepper(stepper.model, sources(5, 9, 2))
    allowed_BV, tokens_BK, forbidden = (
        torch.from_numpy(lists.allowed_BV),
        torch.tensor([[7], [8], [9]]),
        [40, 0, 5],
    )
    for rows_B in (torch.arange(3), torch.tensor([2, 1])):
        hidden_BKD = stepper.step(tokens_BK)
        logits_BKV = whole.logits(whole.step(tokens_BK)).masked_fill(~allowed_BV[:, None], -torch.inf)
        torch.testing.assert_close(stepper.logits(hidden_BKD), logits_BKV, rtol=0, atol=0)
        expected_BKV = logits_BKV.log_softmax(dim=-1)
        best = stepper.best_tokens(hidden_BKD, 6, forbidden, EOS)
        torch.testing.assert_close(best.eos_log_probs_BK, expected_BKV[:, :, EOS])
        expected_BKV[:, :, forbidden] = -torch.inf
        values_BKC, tokens_BKC = expected_BKV.topk(6)
        torch.testing.assert_close(best.log_probs_BKC, values_BKC)
        found = values_BKC > -torch.inf
        assert torch.equal(best.tokens_BKC[found], tokens_BKC[found])
        for each in (stepper, whole):
            each.keep_rows(rows_B)
            each.reorder(torch.zeros(len(rows_B), 2, dtype=torch.long))
        allowed_BV, tokens_BK = allowed_BV[rows_B], tokens_BKC[rows_B, 0, :2].clamp(max=TGT_VOCAB - 1)


# --- 8-bit integers ---------------------------------------------------------------------------------------------


def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading.load_library("_native") is not None
    monkeypatch.setattr(loading, "_INTERFACE", 0)
    with pytest.warns(RuntimeWarning, match="another version of mtkit and not used"):
        assert loading.load_library.__wrapped__("_native") is None


@each_instructions
@pytest.mark.parametrize(
    ("inputs", "outputs", "rows"), [(16, 1, 1), (37, 33, 13), (130, 97, 7), (2, 64, 25), (MAX_INPUTS, 3, 2)]
)
@pytest.mark.parametrize("largest", [False, True])
def test_products_of_integers_are_exact(
    inputs: int, outputs: int, rows: int, largest: bool, kind: str
) -> None:
    """Also where every integer is the largest, so that sums would overflow 16 bits."""
    torch.manual_seed(inputs)
    linear, x = Linear(inputs, outputs), torch.randn(rows, inputs)
    if largest:
        linear.weight.data.fill_(1.0)
        x = torch.ones(rows, inputs) * torch.tensor([1.0, -1.0]).repeat(rows)[:rows, None]
    number = INSTRUCTIONS[kind]
    packed = NativeLinear(linear, True, number, (1, outputs), (1, padded(inputs)))
    x = torch.nn.functional.pad(x, (0, packed.inputs - inputs))
    found, work = torch.empty(rows, packed.outputs), torch.empty(rows + 16 + x.numel())
    library().mtkit_linear(
        number, ctypes.byref(packed.structure), x.data_ptr(), rows, found.data_ptr(), work.data_ptr()
    )
    levels = packed.input_levels
    x_scales = x.abs().amax(dim=1).clamp(min=1e-12) * torch.tensor(1.0 / levels)
    x_integers = (x * (1.0 / x_scales)[:, None]).round()[:, :inputs].long()
    integers, scales = quantize_matrix(linear.weight)
    sums = (x_integers @ integers.long().T).float()
    expected = sums * (x_scales[:, None] * scales) + linear.bias
    assert x_integers.abs().amax() == levels
    assert torch.equal(found[:, :outputs], expected)


@each_instructions
@torch.inference_mode()
def test_stored_integers_are_taken_as_they_are(kind: str) -> None:
    stored, hiddens = make(d_ff=40), []
    rounded = native(stored, kind, int8=True)
    quantize(stored)
    for each in (rounded, native(stored, kind, int8=True)):
        hiddens.append(NativeStepper(each, sources(6, 3)).step(torch.tensor([[5], [6]])))
    exact = ModelStepper(make(d_ff=40), sources(6, 3)).step(torch.tensor([[5], [6]]))
    torch.testing.assert_close(hiddens[1], hiddens[0], atol=0.1, rtol=0)  # but for the embeddings
    torch.testing.assert_close(hiddens[0], exact, atol=0.2, rtol=0)
    in_float32 = NativeStepper(native(stored, kind), sources(6, 3)).step(torch.tensor([[5], [6]]))
    theirs = ModelStepper(stored, sources(6, 3)).step(torch.tensor([[5], [6]]))
    torch.testing.assert_close(in_float32, theirs, atol=1e-5, rtol=1e-5)


# --- searches ---------------------------------------------------------------------------------------------------


class Hidden:
    """A stepper without `best_tokens`, so that the search takes all logits."""

    def __init__(self, stepper: NativeStepper) -> None:
        self.vocab_size, self.step, self.logits = stepper.vocab_size, stepper.step, stepper.logits
        self.reorder, self.keep_rows, self.attention = stepper.reorder, stepper.keep_rows, stepper.attention


def assert_same(ours: Sequence[list[Hypothesis]], theirs: Sequence[list[Hypothesis]]) -> None:
    assert [[h.ids for h in hyps] for hyps in ours] == [[h.ids for h in hyps] for hyps in theirs]
    for mine, other in zip(chain(*ours), chain(*theirs), strict=True):
        assert (mine.score, mine.log_prob) == pytest.approx((other.score, other.log_prob), abs=1e-5)
        assert mine.token_log_probs == pytest.approx(other.token_log_probs, abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beam_size": 1},
        {"beam_size": 1, "length_penalty": 0.0, "suppressed": (0, 1, 9)},
        {"stop": "certain"},
        {"beam_size": 1, "stop": "certain"},
        {"n_best": 4, "suppressed": (40, 0, 1)},
        {"min_length": 3, "no_repeat_ngram": 2},
        {"groups": 2},
    ],
    ids=str,
)
def test_a_search_finds_the_same_without_all_logits(changes: dict[str, Any]) -> None:
    model, lengths = native(make(), AVAILABLE[-1]), [9, 1, 30, 2, 17]
    src_BS = sources(5, 1, 14, 3, 17)
    options = replace(SearchOptions(4, BOS, EOS, keep_log_probs=True), **changes)
    ours = search(NativeStepper(model, src_BS), lengths, options)
    assert_same(ours, search(Hidden(NativeStepper(model, src_BS)), lengths, options))
    assert len({token for hyps in ours for hyp in hyps for token in hyp.ids}) > 5
    assert all(len(hyp.ids) < length for hyps, length in zip(ours, lengths, strict=True) for hyp in hyps)


@each_instructions
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("beam_size", [1, 3])
def test_no_translation_depends_on_its_batch(beam_size: int, int8: bool, kind: str) -> None:
    """Tokens and scores are the same to the last bit, whatever the batch and its padding."""
    model, options = native(make(), kind, int8), SearchOptions(beam_size, BOS, EOS, n_best=beam_size)
    lengths = [1 + 7 * i % 23 for i in range(26)]
    src_BS, limits = sources(*lengths, longest=30), [5 + length for length in lengths]
    together = search(NativeStepper(model, src_BS), limits, options)
    for size in (1, 7):
        apart = []
        for first in range(0, 26, size):
            rows = slice(first, first + size)
            batch_BS = src_BS[rows, : max(lengths[rows])]
            apart += search(NativeStepper(model, batch_BS), limits[rows], options)
        assert apart == together


@torch.inference_mode()
def test_a_search_of_nothing_and_of_an_empty_sentence() -> None:
    model, options = native(make(), AVAILABLE[-1]), SearchOptions(2, BOS, EOS)
    assert search(NativeStepper(model, torch.zeros(0, 0, dtype=torch.long)), [], options) == []
    greedy = replace(options, beam_size=1)
    assert search(NativeStepper(model, torch.zeros(0, 0, dtype=torch.long)), [], greedy) == []
    [[hypothesis]] = search(NativeStepper(model, torch.zeros(1, 1, dtype=torch.long)), [3], options)
    assert len(hypothesis.ids) <= 2


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("beam_size", [1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_that_are_not_numbers_are_an_error(beam_size: int, int8: bool, value: float) -> None:
    model = make()
    if int8:  # an activation, which is rounded
        model.src_embedding.weight[:, 5] = value
    else:
        model.output.weight[7, 5] = torch.nan
    stepper = NativeStepper(native(model, AVAILABLE[-1], int8), sources(3, 4))
    with pytest.raises(TrainingError, match="scores are NaN"):
        search(stepper, [6, 4], SearchOptions(beam_size, BOS, EOS))


# --- when it is used --------------------------------------------------------------------------------------------


def test_what_the_library_does_not_support_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert supports(make())
    assert not supports(make(positions="relative"))
    assert not supports(make(d_ff=MAX_INPUTS + 1, encoder_layers=1, decoder_layers=1))
    new_activation, new_norm = make(), make()
    new_activation.decoder[0].feed_forward.activation = "squared relu"
    new_norm.encoder_norm = type("NewNorm", (LayerNorm,), {})(new_norm.output.in_features)
    assert not supports(new_activation)
    assert not supports(new_norm)
    cpu = torch.device("cpu")
    assert [uses_native(name, cpu) for name in ("auto", "fp32", "int8", "bf16")] == [True, True, True, False]
    assert not uses_native("auto", torch.device("cuda"))
    monkeypatch.setenv("MTKIT_NATIVE", "none")
    assert not uses_native("auto", cpu)
    monkeypatch.setenv("MTKIT_NATIVE", "sse9")
    with pytest.raises(ConfigError, match="sse9"):
        instructions()
