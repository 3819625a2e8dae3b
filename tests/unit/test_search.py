"""Beam search against exhaustive search, on step functions that are tables of random numbers."""

import itertools
import math
import random

import pytest
import torch

from mtkit.decoding.search import Hypothesis, SearchOptions, gnmt_penalty, search
from mtkit.errors import TrainingError

BOS, EOS = 0, 1


class TableStepper:
    """Log-probabilities that depend on the whole prefix (and the sentence), drawn from its hash."""

    def __init__(self, sentences: list[int], vocab: int, beam_size: int, sharpness: float = 2.0) -> None:
        self.prefixes = [[(s,)] for s in sentences]
        self.vocab, self.sharpness = vocab, sharpness

    def scores(self, prefix: tuple[int, ...]) -> list[float]:
        rng = random.Random(str(prefix))
        return [rng.gauss(0, self.sharpness) for _ in range(self.vocab)]

    def step(self, tokens_BK: torch.Tensor) -> torch.Tensor:
        self.prefixes = [
            [(*prefix, token) for prefix, token in zip(row, tokens, strict=True)]
            for row, tokens in zip(self.prefixes, tokens_BK.tolist(), strict=True)
        ]
        return torch.tensor([[self.scores(p) for p in row] for row in self.prefixes], dtype=torch.float64)

    def logits(self, hidden_BKD: torch.Tensor) -> torch.Tensor:
        return hidden_BKD

    def reorder(self, parents_BK: torch.Tensor) -> None:
        self.prefixes = [
            [row[i] for i in parents] for row, parents in zip(self.prefixes, parents_BK.tolist(), strict=True)
        ]

    def keep(self, sentences_B: torch.Tensor) -> None:
        self.prefixes = [self.prefixes[i] for i in sentences_B.tolist()]


def exhaustive(
    sentence: int, vocab: int, max_length: int, alpha: float, suppressed: tuple[int, ...] = ()
) -> list[Hypothesis]:
    """Every hypothesis there is, best first."""
    table = TableStepper([sentence], vocab, 1)
    found = []
    body = [v for v in range(vocab) if v != EOS and v not in suppressed]
    for length in range(max_length):
        for ids in itertools.product(body, repeat=length):
            log_prob, prefix = 0.0, (sentence, BOS)
            for token in (*ids, EOS):
                logits = table.scores(prefix)
                log_prob += logits[token] - math.log(sum(math.exp(x) for x in logits))
                prefix = (*prefix, token)
            found.append(Hypothesis(list(ids), log_prob / ((5 + length + 1) / 6) ** alpha, log_prob))
    return sorted(found, key=lambda h: -h.score)


@pytest.mark.parametrize("seed", range(100))
def test_beam_search_is_exhaustive_search_when_the_beam_holds_all(seed: int) -> None:
    rng = random.Random(seed)
    vocab, max_length = rng.choice([(3, 4), (4, 3), (5, 3)])
    alpha = rng.choice([0.0, 0.6, 1.0, 2.0, -0.5])
    n_best = rng.choice([1, 3])
    suppressed = rng.choice([(), (BOS,)])
    beam_size = 2 * (vocab - 1) ** max_length  # more than there are hypotheses
    options = SearchOptions(beam_size, BOS, EOS, n_best, alpha, suppressed)
    sentences = [seed * 3, seed * 3 + 1, seed * 3 + 2]
    lengths = [max_length, max_length - 1, max_length]
    found = search(TableStepper(sentences, vocab, beam_size), lengths, options)
    for sentence, length, hypotheses in zip(sentences, lengths, found, strict=True):
        expected = exhaustive(sentence, vocab, length, alpha, suppressed)[:n_best]
        assert [h.ids for h in hypotheses] == [h.ids for h in expected]
        for hypothesis, reference in zip(hypotheses, expected, strict=True):
            assert hypothesis.score == pytest.approx(reference.score, abs=1e-5)
            assert hypothesis.log_prob == pytest.approx(reference.log_prob, abs=1e-5)


def plain_beam_search(
    sentence: int, vocab: int, max_length: int, beam_size: int, alpha: float
) -> list[Hypothesis]:
    """Textbook beam search of one sentence with Python lists: the reference for narrow beams."""
    table = TableStepper([sentence], vocab, 1)
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[Hypothesis] = []
    for length in range(1, max_length + 1):
        candidates = []
        for log_prob, ids in live:
            logits = table.scores((sentence, BOS, *ids))
            total = math.log(sum(math.exp(x) for x in logits))
            allowed = [EOS] if length == max_length else range(vocab)
            candidates += [(log_prob + logits[v] - total, (*ids, v)) for v in allowed]
        candidates.sort(reverse=True)
        for log_prob, ids in candidates[:beam_size]:
            if ids[-1] == EOS:
                penalty = ((5 + length) / 6) ** alpha
                finished.append(Hypothesis(list(ids[:-1]), log_prob / penalty, log_prob))
        live = [c for c in candidates if c[1][-1] != EOS][:beam_size]
        finished.sort(key=lambda h: -h.score)
        if len(finished) >= beam_size or not live:
            break
        bound = live[0][0] / ((5 + (max_length if alpha > 0 else length + 1)) / 6) ** alpha
        if finished and finished[0].score >= bound:
            break
    return finished


@pytest.mark.parametrize("beam_size", [1, 2, 3, 5])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_narrow_beams_against_a_plain_implementation(beam_size: int, alpha: float) -> None:
    sentences = list(range(40))
    lengths = [3 + s % 6 for s in sentences]
    options = SearchOptions(beam_size, BOS, EOS, 1, alpha)
    found = search(TableStepper(sentences, 7, beam_size), lengths, options)
    for sentence, length, hypotheses in zip(sentences, lengths, found, strict=True):
        assert hypotheses[0].ids == plain_beam_search(sentence, 7, length, beam_size, alpha)[0].ids


def test_greedy_takes_the_most_probable_piece_each_time() -> None:
    table = TableStepper([5], 6, 1)
    ids: list[int] = []
    while len(ids) < 8:
        logits = table.scores((5, BOS, *ids))
        best = max(range(6), key=lambda v: logits[v])
        if best == EOS:
            break
        ids.append(best)
    [[hypothesis]] = search(TableStepper([5], 6, 1), [9], SearchOptions(1, BOS, EOS))
    assert hypothesis.ids == ids


def test_neighbours_do_not_change_a_sentence() -> None:
    options = SearchOptions(4, BOS, EOS, n_best=4)
    together = search(TableStepper(list(range(30)), 9, 4), [10] * 30, options)
    alone = [search(TableStepper([s], 9, 4), [10], options)[0] for s in range(30)]
    assert [[h.ids for h in hyps] for hyps in together] == [[h.ids for h in hyps] for hyps in alone]


def test_a_length_of_one_leaves_only_the_end() -> None:
    [[hypothesis]] = search(TableStepper([1], 5, 3), [1], SearchOptions(3, BOS, EOS))
    assert hypothesis.ids == []


def test_suppressed_pieces_never_appear() -> None:
    options = SearchOptions(4, BOS, EOS, suppressed=(0, 3, 4))
    found = search(TableStepper(list(range(20)), 8, 4), [12] * 20, options)
    assert not {0, 3, 4} & {i for hyps in found for h in hyps for i in h.ids}


def test_no_sentences() -> None:
    assert search(TableStepper([], 5, 2), [], SearchOptions(2, BOS, EOS)) == []


def test_the_penalty_is_that_of_the_paper() -> None:
    assert float(gnmt_penalty(7, 1.0)) == pytest.approx(2.0)
    assert float(gnmt_penalty(7, 0.6)) == pytest.approx(2.0**0.6)


def test_scores_that_are_not_numbers_end_the_search() -> None:
    class Spoiled(TableStepper):
        def scores(self, prefix: tuple[int, ...]) -> list[float]:
            return [math.nan] * self.vocab

    with pytest.raises(TrainingError, match="not numbers"):
        search(Spoiled([1, 2], 5, 2), [6, 4], SearchOptions(2, BOS, EOS))
