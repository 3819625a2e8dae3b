"""Minimum Bayes risk: of several candidates the one that agrees most with all of them.

The expected utility of a candidate is estimated over pseudo-references, which are the candidates themselves
(Kumar and Byrne 2004; for samples of neural models Eikema and Aziz 2020). Utilities are sacreBLEU's sentence scores.

With n different candidates that takes n x n scores. For many candidates `coarse_to_fine` first ranks all of them in
time linear in n, by chrF against one reference with the mean n-gram counts of all (reference aggregation: Vamvas and
Sennrich 2024, section 3, who find it almost as good as the whole matrix), then compares the best of them exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from mtkit.errors import ConfigError

Utility = Callable[[str, str], float]
"""How good a hypothesis is if the second text is the truth; higher is better."""

CHRF_ORDER = 6
CHRF_BETA = 2.0

UTILITIES = ("bleu", "chrf", "chrf++", "ter")


def make_utility(name: str) -> Utility:
    """The sentence score of a metric of sacreBLEU; TER with its sign turned. Raises: ConfigError: no such metric."""
    import sacrebleu

    match name:
        case "bleu":
            metric: Any = sacrebleu.BLEU(effective_order=True)  # sentences may be shorter than four words
        case "chrf":
            metric = sacrebleu.CHRF()
        case "chrf++":
            metric = sacrebleu.CHRF(word_order=2)
        case "ter":
            metric = sacrebleu.TER()
        case _:
            raise ConfigError(
                f"unknown metric {name!r}", where="--mbr", hint=f"one of {', '.join(UTILITIES)}"
            )
    sign = -1.0 if name == "ter" else 1.0
    return lambda hyp, ref: sign * float(metric.sentence_score(hyp, [ref]).score)


def expected_utilities(
    hyps: Sequence[str], refs: Sequence[str], weights: Sequence[float], utility: Utility
) -> list[float]:
    """Of each hypothesis, the weighted mean of its utilities over the references."""
    total = sum(weights)
    return [
        sum(weight * utility(hyp, ref) for ref, weight in zip(refs, weights, strict=True)) / total
        for hyp in hyps
    ]


def minimum_risk(candidates: Sequence[str], utility: Utility, num_exact: int = 64) -> list[tuple[int, float]]:
    """The candidates by falling expected utility: their number (of the first of equal texts) and the utility.

    Args:
        candidates: translations of one sentence; equal ones count as often as they occur.
        num_exact: different candidates up to this number are compared each with each; of more, the best so many by
            `aggregated_chrf` are compared with all.
    """
    counts = Counter(candidates)
    texts, weights = list(counts), [float(count) for count in counts.values()]
    chosen = texts
    if len(texts) > num_exact:
        ranks = dict(zip(texts, aggregated_chrf(texts, weights), strict=True))
        chosen = sorted(texts, key=lambda text: -ranks[text])[:num_exact]
    utilities = expected_utilities(chosen, texts, weights, utility)
    first = {text: number for number, text in reversed(list(enumerate(candidates)))}
    order = sorted(range(len(chosen)), key=lambda i: (-utilities[i], first[chosen[i]]))
    return [(first[chosen[i]], utilities[i]) for i in order]


def aggregated_chrf(texts: Sequence[str], weights: Sequence[float]) -> list[float]:
    """chrF (Popović 2015) of each text against one reference, whose n-gram counts are the weighted mean of all."""
    grams = [character_ngrams(text) for text in texts]
    total = sum(weights)
    mean: list[Counter[str]] = [Counter() for _ in range(CHRF_ORDER)]
    for orders, weight in zip(grams, weights, strict=True):
        for counter, order in zip(mean, orders, strict=True):
            for gram, count in order.items():
                counter[gram] += count * weight / total  # type: ignore[assignment]
    sizes = [sum(counter.values()) for counter in mean]
    return [chrf_of_counts(orders, mean, sizes) for orders in grams]


def character_ngrams(text: str) -> list[Counter[str]]:
    """Counts of the n-grams of 1 to 6 characters, spaces left out."""
    joined = "".join(text.split())
    return [Counter(joined[i : i + n] for i in range(len(joined) - n + 1)) for n in range(1, CHRF_ORDER + 1)]


def chrf_of_counts(
    hyp: Sequence[Counter[str]], ref: Sequence[Counter[str]], ref_sizes: Sequence[float]
) -> float:
    """F score of mean precision and recall over the orders that both have."""
    precisions, recalls = [], []
    for own, theirs, ref_size in zip(hyp, ref, ref_sizes, strict=True):
        size = sum(own.values())
        if size and ref_size:
            matches = sum(min(count, theirs[gram]) for gram, count in own.items() if gram in theirs)
            precisions.append(matches / size)
            recalls.append(matches / ref_size)
    if not precisions:
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    if precision + recall == 0.0:
        return 0.0
    factor = CHRF_BETA**2
    return 100 * (1 + factor) * precision * recall / (factor * precision + recall)
