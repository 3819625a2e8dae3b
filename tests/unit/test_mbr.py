"""Minimum Bayes risk against a direct computation, and its approximation for many candidates."""

from __future__ import annotations

import random

import numpy as np
import pytest
import sacrebleu

from mtkit.config.choices import METRICS
from mtkit.errors import ConfigError
from mtkit.translation.mbr import aggregated_chrf, make_utility, minimum_risk

WORDS = ["der", "ein", "alte", "Mann", "Hund", "Vogel", "sieht", "hört", "heute", "im", "Garten", "nicht"]


def candidates(number: int, seed: int = 1) -> list[str]:
    rng = random.Random(seed)
    base = rng.choices(WORDS, k=7)
    return [" ".join(rng.choice(WORDS) if rng.random() < 0.4 else w for w in base) for _ in range(number)]


@pytest.mark.parametrize("name", METRICS)
def test_against_a_direct_computation(name: str) -> None:
    texts = [*candidates(8), candidates(8)[2]]  # one counts twice
    metric = {
        "bleu": sacrebleu.BLEU(effective_order=True),
        "chrf": sacrebleu.CHRF(),
        "chrf++": sacrebleu.CHRF(word_order=2),
        "ter": sacrebleu.TER(),
    }[name]
    sign = -1 if name == "ter" else 1
    risk = [sign * sum(metric.sentence_score(h, [r]).score for r in texts) / len(texts) for h in texts]
    ranked = minimum_risk(texts, make_utility(name))
    assert {number for number, _ in ranked} == {texts.index(text) for text in texts}
    for number, utility in ranked:
        assert utility == pytest.approx(risk[number])
    assert ranked[0][1] == pytest.approx(max(risk))
    assert [u for _, u in ranked] == sorted((u for _, u in ranked), reverse=True)


@pytest.mark.parametrize("name", METRICS)
def test_utilities_equal_sacrebleu(name: str) -> None:
    texts = [
        "",
        " ",
        "a",
        "ab.",
        "(hi)",
        "a a a a a a",
        "Ein Hund, ein Hund!",
        "... ein\u2009Hund",
        "犬がいる。",
    ]
    texts += ["Hund\n", "the the the the the cat", *candidates(6)]
    metric = {
        "bleu": sacrebleu.BLEU(effective_order=True),
        "chrf": sacrebleu.CHRF(),
        "chrf++": sacrebleu.CHRF(word_order=2),
        "ter": sacrebleu.TER(),
    }[name]
    sign = -1 if name == "ter" else 1
    hyps, refs = texts, texts[::-1][:9]
    expected = [[sign * metric.sentence_score(hyp, [ref]).score for ref in refs] for hyp in hyps]
    found = make_utility(name)(hyps, refs)
    assert found.shape == (len(hyps), len(refs))
    assert found == pytest.approx(np.array(expected), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("tgt", "chosen", "tokenizer"), [("zho_Hans", None, "zh"), ("th", "char", "char")])
def test_bleu_has_the_words_of_the_target_language(tgt: str, chosen: str | None, tokenizer: str) -> None:
    """The default tokenizer of sacreBLEU sees a Chinese sentence as a single word."""
    hyps, ref = ["他在公园里跑步。", "她们去学校读书。"], "他在公园里散步。"
    metric = sacrebleu.BLEU(effective_order=True, tokenize=tokenizer)
    expected = [[metric.sentence_score(hyp, [ref]).score] for hyp in hyps]
    assert make_utility("bleu", tgt, chosen)(hyps, [ref]) == pytest.approx(np.array(expected))
    assert expected[0] > expected[1]


@pytest.mark.parametrize("name", ["bleu", "chrf", "chrf++"])
def test_sacrebleu_is_not_called_for_every_pair(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing 32 candidates that way takes a fifth of a second or more."""
    utility = make_utility(name)
    for metric in (sacrebleu.BLEU, sacrebleu.CHRF):
        monkeypatch.setattr(metric, "sentence_score", lambda *texts: pytest.fail("asked"))
    assert len(minimum_risk(candidates(32), utility)) == len(set(candidates(32)))


def test_no_candidates_have_no_risk() -> None:
    assert [minimum_risk([], make_utility(name)) for name in METRICS] == [[], [], [], []]


def test_aggregated_chrf_of_one_reference_is_chrf() -> None:
    """The mean counts of a single text are its own, so the result is sacreBLEU's sentence score."""
    hyp, ref = "der alte Mann sieht den Hund", "ein alter Mann sah einen Hund"
    both = aggregated_chrf([hyp, ref], [0.0, 1.0])
    assert both[0] == pytest.approx(sacrebleu.CHRF().sentence_score(hyp, [ref]).score, abs=1e-6)
    assert both[1] == pytest.approx(100)


def test_only_the_best_of_many_candidates_are_compared_exactly() -> None:
    utility = make_utility("chrf")
    close = 0
    for seed in range(10):
        texts = candidates(40, seed)
        exact, fast = minimum_risk(texts, utility), minimum_risk(texts, utility, num_exact=8)
        assert len(fast) == 8
        utilities = dict(exact)
        assert all(utilities[number] == pytest.approx(value) for number, value in fast)
        close += fast[0][0] == exact[0][0]
    assert close >= 9


def test_an_unknown_utility() -> None:
    with pytest.raises(ConfigError, match="unknown metric 'comet'"):
        make_utility("comet")
