"""Sampling: frequencies match the model's probabilities, and no sample depends on its batch."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from test_search import BOS, EOS, TableStepper

from mtkit.errors import TrainingError
from mtkit.search.sampling import SamplingOptions, init_samples, sample, truncated_probabilities
from mtkit.search.state import SearchOptions

OPTIONS = SearchOptions(1, BOS, EOS, length_penalty=0.0)


def all_probabilities(
    sentence: int, vocab: int, max_length: int, temperature: float
) -> dict[tuple[int, ...], float]:
    """Return the probability with which each possible hypothesis is drawn."""
    table = TableStepper([sentence], vocab, 1)
    found, open_ones = {}, [((), 1.0)]
    for length in range(1, max_length + 1):
        longer = []
        for ids, probability in open_ones:
            scores = [score / temperature for score in table.scores((sentence, BOS, *ids))]
            total = sum(map(math.exp, scores))
            for v in range(vocab):
                p = probability if length == max_length else probability * math.exp(scores[v]) / total
                if v == EOS:
                    found[ids] = p
                elif length < max_length:
                    longer.append(((*ids, v), p))
        open_ones = longer
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_frequencies_match_the_probabilities(temperature: float) -> None:
    """Pearson's chi-square over all hypotheses expected at least five times; its 0.001 quantile by Wilson-Hilferty."""
    num = 4000
    expected = all_probabilities(3, 4, 3, temperature)
    assert sum(expected.values()) == pytest.approx(1.0)
    sampling = SamplingOptions(num, temperature=temperature, seed=5)
    [hypotheses] = sample(TableStepper([3], 4, num), [3], OPTIONS, sampling)
    counts = Counter(tuple(h.ids) for h in hypotheses)
    assert counts.keys() <= expected.keys()
    often = {ids: p for ids, p in expected.items() if p * num >= 5}
    cells = [(counts[ids], p * num) for ids, p in often.items()]
    rest = num - sum(e for _, e in cells)
    cells.append((num - sum(c for c, _ in cells), rest)) if rest >= 5 else None
    chi_square = sum((count - e) ** 2 / e for count, e in cells)
    df = len(cells) - 1
    assert df >= 5
    assert chi_square < df * (1 - 2 / (9 * df) + 3.09 * math.sqrt(2 / (9 * df))) ** 3


def test_samples_do_not_depend_on_the_batch() -> None:
    sampling = SamplingOptions(3, seed=2)
    together = sample(TableStepper(list(range(20)), 9, 3), [8] * 20, OPTIONS, sampling)
    backwards = sample(
        TableStepper(list(range(20))[::-1], 9, 3),
        [8] * 20,
        OPTIONS,
        sampling,
        rng_keys=[(s,) for s in range(20)][::-1],
    )
    single = [sample(TableStepper([s], 9, 3), [8], OPTIONS, sampling, rng_keys=[(s,)])[0] for s in range(20)]
    ids = [[h.ids for h in hypotheses] for hypotheses in together]
    assert ids == [[h.ids for h in hypotheses] for hypotheses in backwards[::-1]]
    assert ids == [[h.ids for h in hypotheses] for hypotheses in single]
    other = sample(TableStepper(list(range(20)), 9, 3), [8] * 20, OPTIONS, SamplingOptions(3, seed=3))
    assert ids != [[h.ids for h in hypotheses] for hypotheses in other]


def test_each_segment_has_its_own_random_numbers_and_the_first_has_those_of_an_unsplit_line() -> None:
    sampling = SamplingOptions(2, seed=3)
    table = TableStepper([4, 4, 4], 9, 2)
    rng_keys = [(7,), (7, 1), (7, 2)]
    segments = sample(table, [12] * 3, OPTIONS, sampling, rng_keys=rng_keys)
    assert len({tuple(map(str, hypotheses)) for hypotheses in segments}) == 3
    uniforms_BKT = init_samples([12] * 3, OPTIONS, sampling, "cpu", None, rng_keys).uniforms_BKT
    unsplit = [np.random.default_rng((3, 7, k)).random(12) for k in range(2)]
    assert (uniforms_BKT[0].numpy() == np.array(unsplit)).all()


def test_log_probabilities_are_those_of_the_model() -> None:
    [hypotheses] = sample(TableStepper([1], 6, 5), [6], OPTIONS, SamplingOptions(5, temperature=2.0, top_k=3))
    table = TableStepper([1], 6, 1)
    for hypothesis in hypotheses:
        log_prob, past = 0.0, (1, BOS)
        for token in (*hypothesis.ids, EOS):
            scores = table.scores(past)
            log_prob += scores[token] - math.log(sum(map(math.exp, scores)))
            past = (*past, token)
        assert hypothesis.log_prob == pytest.approx(log_prob, abs=1e-4)


def test_scores_that_are_not_numbers_are_an_error() -> None:
    class Damaged(TableStepper):
        def logits(self, *arguments: Any) -> torch.Tensor:
            return super().logits(*arguments) * torch.nan

    with pytest.raises(TrainingError, match="scores are NaN"):
        sample(Damaged([1], 6, 5), [6], OPTIONS, SamplingOptions(5))


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (SamplingOptions(), [0.5, 0.25, 0.15, 0.06, 0.04]),
        (SamplingOptions(top_k=2), [0.5, 0.25, 0, 0, 0]),
        (SamplingOptions(top_p=0.75), [0.5, 0.25, 0, 0, 0]),
        (SamplingOptions(top_p=0.76), [0.5, 0.25, 0.15, 0, 0]),
        (SamplingOptions(top_p=0.01), [0.5, 0, 0, 0, 0]),
        (SamplingOptions(epsilon=0.1), [0.5, 0.25, 0.15, 0, 0]),
        (SamplingOptions(epsilon=0.9), [0.5, 0, 0, 0, 0]),
    ],
)
def test_truncation(sampling: SamplingOptions, kept: list[float]) -> None:
    log_probs = torch.tensor([[[0.5, 0.25, 0.15, 0.06, 0.04]]]).log()
    torch.testing.assert_close(
        truncated_probabilities(log_probs, sampling), torch.tensor([[kept]]), atol=1e-6, rtol=0
    )


def test_every_sample_starts_with_the_prefix() -> None:
    found = sample(TableStepper([1, 2], 6, 4), [7, 7], OPTIONS, SamplingOptions(4), prefixes=[(3, 4), ()])
    assert all(h.ids[:2] == [3, 4] for h in found[0])
    assert all(len(h.ids) <= 6 for hypotheses in found for h in hypotheses)
