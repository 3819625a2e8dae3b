"""Beam search against exhaustive search, on step functions that are tables of random numbers."""

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from mtkit.errors import TrainingError
from mtkit.search.beam import best_candidates, length_penalty, search
from mtkit.search.constraints import Constraint, ConstraintTracker
from mtkit.search.state import Hypothesis, SearchOptions, init_beam, remaining_rows

BOS, EOS = 0, 1


class TableStepper:
    """Log-probabilities that depend on the whole prefix (and the sentence), drawn from its hash."""

    def __init__(self, sentences: list[int], vocab: int, beam_size: int, sharpness: float = 2.0) -> None:
        self.prefixes = [[(s,)] for s in sentences]
        self.vocab, self.vocab_size, self.sharpness = vocab, vocab, sharpness

    def scores(self, prefix: tuple[int, ...]) -> list[float]:
        rng = random.Random(str(prefix))
        return [rng.gauss(0, self.sharpness) for _ in range(self.vocab)]

    def step(self, tokens_BK: torch.Tensor) -> torch.Tensor:
        self.prefixes = [
            [(*prefix, token) for prefix, token in zip(row, tokens, strict=True)]
            for row, tokens in zip(self.prefixes, tokens_BK.tolist(), strict=True)
        ]
        return torch.tensor([[self.scores(p) for p in row] for row in self.prefixes], dtype=torch.float64)

    def logits(self, hidden_BKD: torch.Tensor, first: int = 0) -> torch.Tensor:
        return hidden_BKD

    def reorder(self, parents_BK: torch.Tensor) -> None:
        self.prefixes = [
            [row[i] for i in parents] for row, parents in zip(self.prefixes, parents_BK.tolist(), strict=True)
        ]

    def attention(self) -> torch.Tensor:
        return torch.tensor([[attention_row(prefix) for prefix in row] for row in self.prefixes])

    def keep_rows(self, rows_B: torch.Tensor) -> None:
        self.prefixes = [self.prefixes[i] for i in rows_B.tolist()]


def attention_row(prefix: tuple[int, ...], sources: int = 3) -> list[float]:
    """Return the attention of a step, drawn from the hash of the prefix."""
    rng = random.Random(f"attention {prefix}")
    weights = [rng.random() ** 3 for _ in range(sources)]
    return [weight / sum(weights) for weight in weights]


def repeats(ids: tuple[int, ...], n: int) -> bool:
    grams = [ids[i : i + n] for i in range(len(ids) - n + 1)]
    return n > 0 and len(grams) > len(set(grams))


def contains(ids: tuple[int, ...], phrase: tuple[int, ...]) -> bool:
    return any(ids[i : i + len(phrase)] == phrase for i in range(len(ids)))


def exhaustive(
    sentence: int,
    vocab: int,
    max_length: int,
    options: SearchOptions,
    prefix: tuple[int, ...] = (),
    constraints: tuple[Constraint, ...] = (),
) -> list[Hypothesis]:
    """Return every possible hypothesis, best first."""
    table = TableStepper([sentence], vocab, 1)
    found = []
    alpha = options.length_penalty
    for length in range(max_length):
        for ids in itertools.product(range(vocab), repeat=length):
            free = ids[len(prefix) :]
            if (
                EOS in ids
                or set(free) & set(options.suppressed)
                or ids[: len(prefix)] != prefix
                or (length < options.min_length and length + 1 < max_length)
                or any(
                    repeats(ids[:end], options.no_repeat_ngram) for end in range(len(prefix) + 1, length + 1)
                )
                or not all(any(contains(ids, p) for p in c.phrases) for c in constraints)
            ):
                continue
            log_probs, past, coverage = list[float](), (sentence, BOS), [0.0] * 3
            for token in (*ids, EOS):
                logits = table.scores(past)
                log_probs.append(logits[token] - math.log(sum(math.exp(x) for x in logits)))
                coverage = [c + a for c, a in zip(coverage, attention_row(past), strict=True)]
                past = (*past, token)
            size = (5 + length + 1) / 6 if options.penalty_kind == "gnmt" else length + 1
            covered = sum(math.log(min(c, 1.0)) for c in coverage)
            score = sum(log_probs) / size**alpha + options.coverage_penalty * covered
            found.append(Hypothesis(list(ids), score, sum(log_probs), tuple(log_probs)))
    return sorted(found, key=lambda h: -h.score)


@pytest.mark.parametrize("stop", ["finished", "unbeaten", "all_unbeaten", "certain"])
@pytest.mark.parametrize("seed", range(100))
def test_beam_search_equals_exhaustive_search_if_the_beam_holds_all(seed: int, stop: Any) -> None:
    """Every option is tested, in random combinations."""
    rng = random.Random(f"{seed} {stop}")
    vocab, max_length = rng.choice([(3, 4), (4, 3), (5, 3)])
    beam_size = 2 * (vocab - 1) ** max_length  # more than there are hypotheses
    options = SearchOptions(
        beam_size,
        BOS,
        EOS,
        n_best=rng.choice([1, 3]),
        length_penalty=rng.choice([0.0, 0.6, 1.0, 2.0, -0.5]),
        suppressed=rng.choice([(), (BOS,)]),
        penalty_kind=rng.choice(["gnmt", "simple"]),
        coverage_penalty=rng.choice([0.0, 0.3]),
        stop=stop,
        min_length=rng.choice([0, 0, 1, 2]),
        no_repeat_ngram=rng.choice([0, 0, 1, 2]),
        keep_log_probs=seed % 2 == 0,
    )
    sentences = [seed * 3, seed * 3 + 1, seed * 3 + 2]
    lengths = [max_length, max_length - 1, max_length]
    prefixes = [(), (), ()] if rng.random() < 0.6 else [(2,), (), (0,)]
    wanted = (Constraint(((2,), (0, 2))),)
    constraints = [wanted, (), ()] if rng.random() < 0.4 and not options.no_repeat_ngram else [()] * 3
    found = search(TableStepper(sentences, vocab, beam_size), lengths, options, "cpu", prefixes, constraints)
    for i, sentence in enumerate(sentences):
        every = exhaustive(sentence, vocab, lengths[i], options, prefixes[i], constraints[i])
        expected = every[: options.n_best]
        assert [h.ids for h in found[i]] == [h.ids for h in expected]
        for hypothesis, reference in zip(found[i], expected, strict=True):
            assert hypothesis.score == pytest.approx(reference.score, abs=1e-5)
            assert hypothesis.log_prob == pytest.approx(reference.log_prob, abs=1e-5)
            kept = reference.token_log_probs if options.keep_log_probs else ()
            assert hypothesis.token_log_probs == pytest.approx(kept, abs=1e-5)


@pytest.mark.parametrize(("beam_size", "groups"), [(2, 1), (5, 1), (4, 2), (6, 3)])
def test_constraints_are_always_met_in_a_narrow_beam(beam_size: int, groups: int) -> None:
    rng = random.Random(7)
    sentences = list(range(40))
    constraints = [
        tuple(
            Constraint(
                tuple(tuple(rng.choices(range(2, 12), k=rng.randint(1, 3))) for _ in range(rng.randint(1, 2)))
            )
            for _ in range(rng.randint(0, 2))
        )
        for _ in sentences
    ]
    options = SearchOptions(beam_size, BOS, EOS, n_best=beam_size, groups=groups)
    found = search(TableStepper(sentences, 12, beam_size), [9] * 40, options, "cpu", None, constraints)
    free = search(TableStepper(sentences, 12, beam_size), [9] * 40, options)
    for wanted, hypotheses, without in zip(constraints, found, free, strict=True):
        assert hypotheses
        for ids in (tuple(hypothesis.ids) for hypothesis in hypotheses):
            assert all(any(contains(ids, phrase) for phrase in c.phrases) for c in wanted)
        if not wanted:
            assert hypotheses == without


def test_every_group_allocates_its_own_part_of_the_beam_to_constraints() -> None:
    """Three groups of two hypotheses; the constrained token is so improbable that no beam would hold it."""
    options = SearchOptions(6, BOS, EOS, groups=3, diversity=2.0)
    tracker = ConstraintTracker([(Constraint(((5,),)),)], options)
    tracker.states = [[((0,),)] * 6]
    beam = init_beam([9], options, "cpu", [()])
    beam.log_probs_BK = torch.zeros(1, 6)
    log_probs_BKV = torch.tensor([-4.0, -9.0, -1.0, -2.0, -2.1, -30.0]).expand(1, 6, 6)
    candidates = best_candidates(log_probs_BKV, beam, options)
    tracker.allocate(candidates, log_probs_BKV, beam)
    for group in range(3):
        chosen = list(zip(*(x[0, group].tolist() for x in vars(candidates).values()), strict=True))
        assert all(parent in (2 * group, 2 * group + 1) for _, parent, _, _ in chosen)
        assert chosen[0][0] == -30.0 and chosen[0][2] == 5
    second = candidates.tokens_BGC[0, :, 1].tolist()
    assert second == [2, 3, 4]  # the best besides the constraint, then those that no earlier group chose


def test_groups_against_a_plain_implementation() -> None:
    """The reference is diverse beam search (Vijayakumar et al. 2018) with Python lists, one sentence at a time."""
    options = SearchOptions(
        6, BOS, EOS, n_best=6, groups=3, diversity=0.7, stop="certain", length_penalty=0.0
    )
    sentences = list(range(30))
    found = search(TableStepper(sentences, 7, 6), [5] * 30, options)
    for sentence, hypotheses in zip(sentences, found, strict=True):
        expected = plain_groups(sentence, 7, 5, options)
        best = sorted(expected.items(), key=lambda item: -item[1])
        assert hypotheses[0].ids == list(best[0][0])
        assert all(expected[tuple(h.ids)] == pytest.approx(h.score, abs=1e-5) for h in hypotheses)


def plain_groups(
    sentence: int, vocab: int, max_length: int, options: SearchOptions
) -> dict[tuple[int, ...], float]:
    """Return the log-probability of every hypothesis that any group finishes."""
    table = TableStepper([sentence], vocab, 1)
    size = options.beam_size // options.groups
    live = [[(0.0, ())] for _ in range(options.groups)]
    finished: dict[tuple[int, ...], float] = {}
    for length in range(1, max_length + 1):
        counts = [0] * vocab
        for group in range(options.groups):
            candidates = []
            for log_prob, ids in live[group]:
                logits = table.scores((sentence, BOS, *ids))
                total = math.log(sum(math.exp(x) for x in logits))
                for v in [EOS] if length == max_length else range(vocab):
                    true = log_prob + logits[v] - total
                    candidates.append((true - options.diversity * counts[v], true, (*ids, v)))
            candidates.sort(reverse=True)
            finished |= {ids[:-1]: true for _, true, ids in candidates[:size] if ids[-1] == EOS}
            live[group] = [(true, ids) for _, true, ids in candidates if ids[-1] != EOS][:size]
            for _, ids in live[group]:
                counts[ids[-1]] += 1
    return finished


def plain_beam_search(
    sentence: int, vocab: int, max_length: int, beam_size: int, alpha: float, stop: str
) -> list[Hypothesis]:
    """Run textbook beam search on one sentence with Python lists: the reference for narrow beams."""
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
        if not live:
            break
        now = live[0][0] / ((5 + length + 1) / 6) ** alpha  # score of the best live one if it ended next
        beaten = finished and (stop == "finished" or beam_size == 1 or finished[0].score >= now)
        if stop == "all_unbeaten" and len(finished) >= beam_size > 1:
            beaten = finished[beam_size - 1].score >= live[0][0] / ((5 + length) / 6) ** alpha
        if len(finished) >= beam_size and beaten:
            break
        bound = live[0][0] / ((5 + (max_length if alpha > 0 else length + 1)) / 6) ** alpha
        if finished and finished[0].score >= bound:
            break
    return finished


@pytest.mark.parametrize("beam_size", [1, 2, 3, 5])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("stop", ["finished", "unbeaten", "all_unbeaten"])
def test_narrow_beams_against_a_plain_implementation(beam_size: int, alpha: float, stop: Any) -> None:
    sentences = list(range(40))
    lengths = [3 + s % 6 for s in sentences]
    options = SearchOptions(beam_size, BOS, EOS, 1, alpha, stop=stop)
    found = search(TableStepper(sentences, 7, beam_size), lengths, options)
    for sentence, length, hypotheses in zip(sentences, lengths, found, strict=True):
        assert hypotheses[0].ids == plain_beam_search(sentence, 7, length, beam_size, alpha, stop)[0].ids


@pytest.mark.parametrize("beam_size", [1, 4])
def test_renormalized_scores_are_those_of_a_vocabulary_without_the_forbidden_tokens(beam_size: int) -> None:
    """A model whose logits of the forbidden token are -inf has them anyway; the forced end then costs nothing."""

    class Without(TableStepper):
        def logits(self, hidden_BKD: torch.Tensor, first: int = 0) -> torch.Tensor:
            logits_BKV = super().logits(hidden_BKD, first).clone()
            logits_BKV[..., 5] = -math.inf
            if len(self.prefixes[0][0]) == 2 + 5:  # sentence, bos and five tokens: the last position
                logits_BKV[..., [v for v in range(7) if v != EOS]] = -math.inf
            return logits_BKV

    sentences, options = (
        list(range(30)),
        SearchOptions(beam_size, BOS, EOS, length_penalty=0.0, suppressed=(5,)),
    )
    own = search(TableStepper(sentences, 7, beam_size), [6] * 30, replace(options, renormalize=True))
    plain = search(TableStepper(sentences, 7, beam_size), [6] * 30, options)
    expected = search(Without(sentences, 7, beam_size), [6] * 30, options)
    for hypotheses, reference in zip(own, expected, strict=True):
        assert [h.ids for h in hypotheses] == [h.ids for h in reference]
        assert hypotheses[0].log_prob == pytest.approx(reference[0].log_prob, abs=1e-4)
    assert any(a[0].log_prob > b[0].log_prob + 0.1 for a, b in zip(own, plain, strict=True))


def test_a_hypothesis_with_no_token_left_is_dropped_if_scores_are_renormalized() -> None:
    options = SearchOptions(
        2, BOS, EOS, suppressed=(0, 3, 4), no_repeat_ngram=1, min_length=9, renormalize=True
    )
    [found] = search(TableStepper([1], 5, 2), [6], options)
    assert found == []


def test_greedy_search_takes_the_most_probable_token_at_each_step() -> None:
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


def test_a_sentence_does_not_depend_on_its_batch() -> None:
    options = SearchOptions(4, BOS, EOS, n_best=4)
    together = search(TableStepper(list(range(30)), 9, 4), [10] * 30, options)
    single = [search(TableStepper([s], 9, 4), [10], options)[0] for s in range(30)]
    assert [[h.ids for h in hyps] for hyps in together] == [[h.ids for h in hyps] for hyps in single]


def test_a_max_length_of_one_leaves_only_eos() -> None:
    [[hypothesis]] = search(TableStepper([1], 5, 3), [1], SearchOptions(3, BOS, EOS))
    assert hypothesis.ids == []


def test_suppressed_tokens_never_appear() -> None:
    options = SearchOptions(4, BOS, EOS, suppressed=(0, 3, 4))
    found = search(TableStepper(list(range(20)), 8, 4), [12] * 20, options)
    assert not {0, 3, 4} & {i for hyps in found for h in hyps for i in h.ids}


def test_no_sentences() -> None:
    assert search(TableStepper([], 5, 2), [], SearchOptions(2, BOS, EOS)) == []


def test_the_gnmt_penalty_is_the_formula_of_the_paper() -> None:
    for alpha in (1.0, 0.6):
        options = SearchOptions(1, BOS, EOS, length_penalty=alpha)
        assert float(length_penalty(7, options)) == pytest.approx(2.0**alpha)


def test_nan_scores_end_the_search_with_an_error() -> None:
    class NanStepper(TableStepper):
        def scores(self, prefix: tuple[int, ...]) -> list[float]:
            return [math.nan] * self.vocab

    with pytest.raises(TrainingError, match="scores are NaN"):
        search(NanStepper([1, 2], 5, 2), [6, 4], SearchOptions(2, BOS, EOS))


@pytest.mark.parametrize("seed", range(20))
def test_remaining_sentences_keep_their_rows_or_fill_gaps(seed: int) -> None:
    done = torch.rand(9, generator=torch.Generator().manual_seed(seed)) < 0.1 * (seed % 11)
    kept = remaining_rows(done.tolist())
    assert sorted(kept) == (~done).nonzero()[:, 0].tolist()
    assert all(old == new or old >= len(kept) for new, old in enumerate(kept))
