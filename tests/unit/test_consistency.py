"""SimCut and R-Drop: the loss of two streams against a direct computation, and what the streams are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from mtkit.benchmark.train import synthetic_inputs
from mtkit.config.loading import load_config, parse_config
from mtkit.config.sections import ModelConfig
from mtkit.errors import ConfigError
from mtkit.model.transformer import Transformer
from mtkit.training import loss as loss_module
from mtkit.training.build import build_trainer
from mtkit.training.loss import Consistency, TensorBatch, hidden_at_targets, loss_sums
from mtkit.training.parallel import Objective
from mtkit.training.progress import Progress
from tests import tiny

SIMCUT, R_DROP = Consistency.simcut(3.0, 0.05), Consistency.r_drop(5.0)
methods = pytest.mark.parametrize("method", [SIMCUT, R_DROP], ids=["simcut", "r_drop"])


def streams(M: int = 9, D: int = 4, V: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((2, M, D), (V, D), (V,))
    )
    return hidden, weight, bias, torch.randint(V, (M,), generator=generator)


def direct(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, method: Consistency) -> Tensor:
    """The loss as the papers write it, by autograd."""
    logits = hidden @ weight.T + bias
    first, second = (F.cross_entropy(own, targets, label_smoothing=0.1, reduction="sum") for own in logits)
    p, q = logits.log_softmax(dim=-1)
    forward, backward = (F.kl_div(b, a, log_target=True, reduction="sum") for a, b in ((p, q), (q, p)))
    if method is SIMCUT:
        return first + 3 * forward
    return (first + second + 5 * (forward + backward) / 2) / 2


@methods
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [2, 6, 1024])
def test_loss_and_gradients_equal_a_direct_computation(
    method: Consistency, dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_POSITIONS", chunk)
    hidden, weight, bias, targets = streams(dtype=dtype)
    sums = loss_sums(hidden, weight, targets, 0.1, bias, method)
    expected = direct(hidden, weight, bias, targets, method)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert sums.loss.item() == pytest.approx(expected.item(), rel=tolerance)
    mine, theirs = (torch.autograd.grad(2 * own, (hidden, weight, bias)) for own in (sums.loss, expected))
    for ours, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, wanted, atol=10 * tolerance, rtol=10 * tolerance)
    nll = [F.cross_entropy(own @ weight.T + bias, targets, reduction="sum").item() for own in hidden]
    assert sums.nll.item() == pytest.approx(nll[0] if method is SIMCUT else sum(nll) / 2, rel=tolerance)


@methods
def test_equal_streams_have_the_loss_of_one(method: Consistency) -> None:
    hidden, weight, bias, targets = streams()
    same = hidden[:1].expand(2, -1, -1)
    both, one = (
        loss_sums(same, weight, targets, 0.1, bias, method),
        loss_sums(hidden[0], weight, targets, 0.1, bias),
    )
    assert both.loss.item() == pytest.approx(one.loss.item(), rel=1e-12)
    assert both.nll.item() == pytest.approx(one.nll.item(), rel=1e-12)


def model_and_batch(dropout: float) -> tuple[Transformer, TensorBatch]:
    torch.manual_seed(1)
    config = ModelConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, num_heads=2, d_ff=16, dropout=dropout
    )
    model = Transformer(config, 30, 30)
    src, tgt_in, tgt_out = (torch.randint(4, 29, (5, width)) for width in (7, 6, 6))
    src[1, 4:] = 0
    mask = torch.arange(6)[None] < torch.tensor([6, 3, 4, 6, 1])[:, None]
    return model.train(), TensorBatch(src, tgt_in, tgt_out, mask)


def test_the_first_stream_of_simcut_is_the_batch_and_the_second_lacks_tokens() -> None:
    model, batch = model_and_batch(dropout=0.0)
    plain, targets = hidden_at_targets(model, batch)
    (first, second), same_targets = hidden_at_targets(model, batch, Consistency.simcut(3.0, 0.5))
    assert torch.equal(targets, same_targets)
    torch.testing.assert_close(first, plain)
    assert not torch.allclose(second, plain)
    for uncut in (Consistency.simcut(3.0, 0.0), R_DROP):
        (first, second), _ = hidden_at_targets(model, batch, uncut)
        torch.testing.assert_close(first, second)


def test_a_token_that_is_cut_off_is_its_position_alone() -> None:
    model, batch = model_and_batch(dropout=0.0)
    kept = torch.ones_like(batch.src_BS, dtype=torch.bool)
    kept[:, 2] = False
    cut = model.encode(batch.src_BS, kept)
    other = batch.src_BS.clone()
    other[:, 2] = 29
    torch.testing.assert_close(model.encode(other, kept), cut)
    with torch.no_grad():
        model.src_embedding.weight[29] = 0
    torch.testing.assert_close(model.encode(other), cut)


def test_streams_of_r_drop_differ_in_dropout_alone_and_are_seeded() -> None:
    model, batch = model_and_batch(dropout=0.3)
    torch.manual_seed(7)
    (first, second), _ = hidden_at_targets(model, batch, R_DROP)
    torch.manual_seed(7)
    again, _ = hidden_at_targets(model, batch, R_DROP)
    assert torch.equal(torch.stack([first, second]), again)
    assert not torch.allclose(first, second)


@methods
def test_an_objective_without_differences_is_that_of_one_stream(method: Consistency) -> None:
    model, batch = model_and_batch(dropout=0.0)
    uncut = Consistency(method.cross_entropy, method.divergence)
    losses = [Objective(model, 0.1, consistency=each)(batch)[0] for each in (None, uncut)]
    grads = [torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) for loss in losses]
    torch.testing.assert_close(losses[0], losses[1])
    for plain, twice in zip(*grads, strict=True):
        torch.testing.assert_close(plain, twice, atol=1e-5, rtol=1e-4)


def test_both_at_once_are_refused() -> None:
    data = {"src": "en", "tgt": "de", "train": [{"path": "x.tsv"}]}
    with pytest.raises(ConfigError, match="either simcut or r_drop"):
        parse_config({"run": "r", "data": data, "training": {"simcut": 3, "r_drop": 5}})


def test_the_rate_of_simcut_is_the_one_of_the_config(tmp_path: Path) -> None:
    path = tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=tmp_path)
    config = load_config(path, ["training.simcut=2", "training.cutoff=0.4", "training.device=cpu"])
    progress = Progress(tmp_path, Console(quiet=True), writes_metrics=False)
    trainer = build_trainer(config, synthetic_inputs(config), progress)
    assert trainer.engine.objective.consistency == Consistency.simcut(2.0, 0.4)
