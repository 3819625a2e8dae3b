"""Minimum-risk training: the loss against enumeration, how candidates are drawn, and that the expected risk falls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import sacrebleu
import torch
from test_consistency import R_DROP
from torch import Tensor

from mtkit.config.loading import parse_config
from mtkit.config.sections import Config, MinimumRiskConfig, ModelConfig
from mtkit.errors import ConfigError
from mtkit.model.transformer import Transformer
from mtkit.training import minimum_risk
from mtkit.training.loss import TensorBatch
from mtkit.training.minimum_risk import MinimumRisk, candidate_log_probs, expected_risks
from mtkit.training.parallel import Objective

LETTERS = (4, 5)
EVERY = [list(ids) for length in range(3) for ids in product(LETTERS, repeat=length)]
"""All sequences of at most two letters."""


class Letters:
    """A tokenizer of which each token is a word."""

    pad, bos, eos, unk, num_pieces, vocab_size, special = 0, 1, 2, 3, 6, 8, (0, 1, 2)

    def encode(self, lines: Sequence[str]) -> list[Any]:
        return [[] for _ in lines]

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        return [" ".join("????ab??"[token] for token in ids) for ids in sequences]


def make(**settings: Any) -> MinimumRisk:
    config = Config.model_validate({"run": "r", "data": {"src": "en", "tgt": "de", "train": [{"path": "x"}]}})
    tokenizer: Any = Letters()
    return MinimumRisk(MinimumRiskConfig(**settings), config, tokenizer)


def make_model(dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> Transformer:
    torch.manual_seed(1)
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "num_heads": 2, "d_ff": 8}
    model = Transformer(ModelConfig.model_validate(sizes | {"dropout": dropout}), 8, 8).to(dtype)
    model.compute_dtype = dtype
    return model


def make_batch() -> TensorBatch:
    """Three sentences, of which the last has no target, as where a process has no row."""
    src = torch.tensor([[4, 5, 2], [5, 2, 0], [4, 2, 0]])
    tgt_in = torch.tensor([[1, 4, 5], [1, 5, 0], [1, 0, 0]])
    tgt_out = torch.tensor([[4, 5, 2], [5, 2, 0], [2, 0, 0]])
    return TensorBatch(src, tgt_in, tgt_out, torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]]).bool())


def log_prob(model: Transformer, src: list[int], ids: list[int]) -> Tensor:
    """The log-probability of one sequence, token by token."""
    total = torch.zeros((), dtype=torch.float64)
    for length, token in enumerate([*ids, 2]):
        logits = model.logits(model(torch.tensor([src]), torch.tensor([[1, *ids[:length]]])))
        total = total + logits[0, -1].log_softmax(dim=0)[token]
    return total


def gradients(loss: Tensor, model: Transformer) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))


@pytest.mark.parametrize(("alpha", "chunk"), [(1.0, 1024), (1.0, 3), (0.3, 1024)])
def test_loss_and_gradient_are_those_of_the_exact_expectation(
    alpha: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all sequences as candidates: the sum of P r over that of P, if alpha is 1."""
    monkeypatch.setattr(minimum_risk, "CHUNK_POSITIONS", chunk)
    risk, model, batch = make(alpha=alpha, metric="chrf"), make_model(), make_batch()
    monkeypatch.setattr(risk, "draw", lambda *_: [EVERY] * 3)
    mine = risk.loss(model, batch)

    expected = torch.zeros((), dtype=torch.float64)
    for src, ref, weight in ((([4, 5, 2]), "a b", 3), ([5, 2], "b", 2)):
        texts = Letters().decode(EVERY)
        risks = [1 - sacrebleu.sentence_chrf(text, [ref]).score / 100 for text in texts]
        powers = [(alpha * log_prob(model, src, ids)).exp() for ids in EVERY]
        weighted = [power * own for power, own in zip(powers, risks, strict=True)]
        expected = expected + weight * torch.stack(weighted).sum() / torch.stack(powers).sum()
    assert mine.item() == pytest.approx(expected.item(), rel=1e-12)
    for ours, wanted in zip(gradients(mine, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-12, rtol=1e-10)


def test_fewer_candidates_than_others_have() -> None:
    model, batch = make_model(), make_batch()
    tokenizer: Any = Letters()
    found = candidate_log_probs(model, batch.src_BS[:2], [[[4], [], [5, 4]], [[5, 5]]], tokenizer, 4)
    assert found[1].tolist() == [
        pytest.approx(log_prob(model, [5, 2], [5, 5]).item()),
        -torch.inf,
        -torch.inf,
    ]
    assert found[0].tolist() == pytest.approx(
        [log_prob(model, [4, 5, 2], ids).item() for ids in ([4], [], [5, 4])]
    )
    risks = expected_risks(found, torch.tensor([[0.1, 0.2, 0.3], [0.4, 9.0, 9.0]], dtype=torch.float64), 0.5)
    assert risks[1].item() == pytest.approx(0.4)


@pytest.mark.parametrize("metric", ["bleu", "chrf", "chrf++"])
def test_risks_are_those_of_sacrebleu(metric: str) -> None:
    score: dict[str, Callable[..., Any]] = {
        "bleu": sacrebleu.sentence_bleu,
        "chrf": sacrebleu.sentence_chrf,
        "chrf++": lambda hyp, refs: sacrebleu.sentence_chrf(hyp, refs, word_order=2),
    }
    found = make(metric=metric).risks([[[4, 5, 5], [5, 4, 4, 5]], [[]]], [[4, 5, 5], [4]])
    wanted = 1 - score[metric]("b a a b", ["a b b"]).score / 100
    assert found == [[pytest.approx(0.0), pytest.approx(wanted)], [1.0]]


def test_candidates_are_different_and_depend_on_seed_and_row_only() -> None:
    risk, model = make(samples=6), make_model(dropout=0.5, dtype=torch.float32)
    src, refs = make_batch().src_BS[:2], [[4, 5], [5]]
    state = torch.get_rng_state()
    found = risk.draw(model, src, refs, seed=3)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert risk.draw(model, src, refs, seed=3) == found != risk.draw(model, src, refs, seed=4)
    assert risk.draw(model, src[:1], refs[:1], seed=3) == found[:1]
    assert [own[0] for own in found] == refs
    for own in found:
        assert len({tuple(ids) for ids in own}) == len(own) > 2
        assert all(token in LETTERS for ids in own for token in ids)
    without = make(samples=6, include_reference=False).draw(model, src, refs, seed=3)
    assert all(
        set(map(tuple, own)) <= set(map(tuple, full)) for own, full in zip(without, found, strict=True)
    )


def test_activations_are_computed_again_with_the_same_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    risk, model, batch = make(samples=3), make_model(dropout=0.5), make_batch()

    def run() -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(5)
        loss = risk.loss(model, batch)
        return loss, gradients(loss, model)

    loss, found = run()
    monkeypatch.setattr(
        minimum_risk, "checkpoint", lambda function, *inputs, use_reentrant: function(*inputs)
    )
    stored, wanted = run()
    assert loss.item() == stored.item()
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=1e-11)


def test_the_objective_mixes_both_losses() -> None:
    model, batch = make_model(), make_batch()
    risk = make(samples=3, weight=0.7)
    for method in (None, R_DROP):
        alone, nll = Objective(model, 0.1, consistency=method)(batch)
        torch.manual_seed(5)
        mixed, same_nll = Objective(model, 0.1, consistency=method, minimum_risk=risk)(batch)
        torch.manual_seed(5)
        assert mixed.item() == pytest.approx(0.3 * alone.item() + 0.7 * risk.loss(model, batch).item())
        assert same_nll.item() == nll.item()


def test_the_expected_risk_falls() -> None:
    """Of a model that learns from its samples alone; all sequences are enumerated before and after."""
    risk, model, batch = (
        make(samples=6, include_reference=False),
        make_model(dtype=torch.float32),
        make_batch(),
    )
    tokenizer: Any = Letters()

    def expected() -> list[float]:
        with torch.no_grad():
            log_probs = candidate_log_probs(model, batch.src_BS, [EVERY] * 3, tokenizer, 100)
            risks = torch.tensor(risk.risks([EVERY] * 3, [[4, 5], [5], []]))
            return expected_risks(log_probs, risks, 1.0)[:2].tolist()

    before = expected()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(12):
        torch.manual_seed(step)
        optimizer.zero_grad()
        risk.loss(model, batch).backward()
        optimizer.step()
    assert all(after < 0.7 * old for after, old in zip(expected(), before, strict=True))


def test_fsdp_is_refused() -> None:
    keys = {"run": "r", "data": {"src": "en", "tgt": "de", "train": [{"path": "x"}]}}
    with pytest.raises(ConfigError, match="minimum_risk needs parallel ddp"):
        parse_config(keys | {"training": {"minimum_risk": {}, "parallel": "fsdp"}})
