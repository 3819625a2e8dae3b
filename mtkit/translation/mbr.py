"""Minimum Bayes risk: chooses the candidate that agrees most with all candidates.

The expected utility of a candidate is estimated over pseudo-references, which are the candidates themselves
(Kumar and Byrne 2004; for samples of neural models Eikema and Aziz 2020). Utilities are sacreBLEU's sentence scores.

With n different candidates that takes n x n scores. For BLEU and chrF the n-grams of each text are counted once and
compared with those of all others at once; TER is computed by sacreBLEU pair by pair. If there are many candidates, all
are first ranked in time linear in n, by chrF against one reference with the mean n-gram counts of all (reference
aggregation: Vamvas and Sennrich 2024, section 3, who find it almost as good as the whole matrix); then the best are
compared exactly.

Shapes: H hypotheses, R references, G different n-grams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from string import punctuation

import numpy as np
import numpy.typing as npt

from mtkit.config.choices import METRICS
from mtkit.errors import ConfigError
from mtkit.evaluation.metrics import check_metrics, default_tokenizer, make_ter

Matrix = npt.NDArray[np.float64]
Utility = Callable[[Sequence[str], Sequence[str]], Matrix]
"""Function that returns the utility [H, R] of each hypothesis under each reference; higher is better."""
_NgramCounts = Mapping[str, int]
"""Count of each n-gram of one length in a text."""

_CHRF_ORDER = 6
_CHRF_BETA = 2.0
_CHRF_WORD_ORDER = 2  # of chrF++
_BLEU_ORDER = 4


def make_utility(name: str, tgt: str | None = None, tokenize: str | None = None) -> Utility:
    """Return the sentence score of a metric of sacreBLEU; for TER with its sign inverted.

    Args:
        name: the metric.
        tgt: code of the target language, which decides how BLEU splits a text into words, as in `evaluation.metrics`.
        tokenize: sacreBLEU's tokenizer for BLEU; by default that of the target language.

    Raises:
        ConfigError: If there is no such metric, or the tokenizer is unknown or not installed.
        DataError: If a model of the tokenizer cannot be downloaded.
    """
    import sacrebleu

    match name:
        case "bleu":
            check_metrics(["bleu"], tokenize=tokenize, tgt=tgt)
            # sentences may be shorter than four words
            metric = sacrebleu.BLEU(tokenize=tokenize or default_tokenizer(tgt), effective_order=True)
            return partial(_sentence_bleu, tokenize=metric.tokenizer)
        case "chrf":
            return partial(_sentence_chrf, grams=_character_ngrams)
        case "chrf++":
            return partial(_sentence_chrf, grams=_character_and_word_ngrams)
        case "ter":
            ter = make_ter(tgt)
            return lambda hyps, refs: np.array(
                [[-float(ter.sentence_score(hyp, [ref]).score) for ref in refs] for hyp in hyps]
            )
    raise ConfigError(f"unknown metric {name!r}", where="`mbr`", hint=f"one of {', '.join(METRICS)}")


# --- sentence scores of all pairs -------------------------------------------------------------------------------------


def _sentence_chrf(
    hyps: Sequence[str], refs: Sequence[str], grams: Callable[[str], list[_NgramCounts]]
) -> Matrix:
    """Return chrF (Popović 2015, 2017) of each hypothesis against each reference, [H, R], as sacreBLEU computes it.

    Args:
        hyps: hypotheses.
        refs: references.
        grams: returns the n-gram counts of a text for each order.
    """
    counted = _counts_of([*hyps, *refs], grams)
    precision, recall, num_orders = (np.zeros((len(hyps), len(refs))) for _ in range(3))
    for of_hyps, of_refs in zip(_by_order(counted, hyps), _by_order(counted, refs), strict=True):
        matches_HR = _num_matches(of_hyps, of_refs)
        hyp_H1, ref_1R = _num_ngrams(of_hyps)[:, None], _num_ngrams(of_refs)[None, :]
        both_HR = (hyp_H1 > 0) & (ref_1R > 0)
        precision += np.where(both_HR, matches_HR / np.maximum(hyp_H1, 1), 0.0)
        recall += np.where(both_HR, matches_HR / np.maximum(ref_1R, 1), 0.0)
        num_orders += both_HR
    precision /= np.maximum(num_orders, 1)
    recall /= np.maximum(num_orders, 1)
    factor = _CHRF_BETA**2
    denominator = factor * precision + recall
    return 100 * ((1 + factor) * precision * recall / np.where(denominator > 0, denominator, 1.0))


def _sentence_bleu(hyps: Sequence[str], refs: Sequence[str], tokenize: Callable[[str], str]) -> Matrix:
    """Return sentence BLEU (Papineni et al. 2002) of each hypothesis against each reference, [H, R], as in sacreBLEU.

    Orders for which a hypothesis is too short do not count, and the k-th order without a match has 1 / 2^k matches
    (smoothing `exp`: Chen and Cherry 2014, method 3).

    Args:
        hyps: hypotheses.
        refs: references.
        tokenize: separates the words of a text by spaces.
    """
    counted = _counts_of(
        [*hyps, *refs], lambda text: _word_ngrams(tokenize(text.rstrip()).split(), _BLEU_ORDER)
    )
    log_sum, num_orders, any_match = (np.zeros((len(hyps), len(refs))) for _ in range(3))
    halves = np.ones((len(hyps), len(refs)))
    lengths: list[tuple[Matrix, Matrix]] = []
    for of_hyps, of_refs in zip(_by_order(counted, hyps), _by_order(counted, refs), strict=True):
        matches_HR, total_H1 = _num_matches(of_hyps, of_refs), _num_ngrams(of_hyps)[:, None]
        lengths.append((total_H1, _num_ngrams(of_refs)[None, :]))
        long_enough = total_H1 > 0
        none = (matches_HR == 0) & long_enough
        halves = np.where(none, 2 * halves, halves)
        shares = np.where(none, 1 / halves, matches_HR) / np.maximum(total_H1, 1)
        log_sum += np.log(np.where(long_enough, 100 * shares, 1.0))
        num_orders += long_enough
        any_match += matches_HR
    hyp_H1, ref_1R = lengths[0]  # numbers of words
    brevity = np.minimum(0.0, 1 - ref_1R / np.maximum(hyp_H1, 1))
    return np.where(any_match > 0, np.exp(brevity + log_sum / np.maximum(num_orders, 1)), 0.0)


def _counts_of(
    texts: Sequence[str], grams: Callable[[str], list[_NgramCounts]]
) -> dict[str, list[_NgramCounts]]:
    """Return the n-gram counts of each different text for all orders."""
    return {text: grams(text) for text in dict.fromkeys(texts)}


def _by_order(
    counted: Mapping[str, list[_NgramCounts]], texts: Sequence[str]
) -> list[tuple[_NgramCounts, ...]]:
    """Return for each order the n-gram counts of these texts."""
    return list(zip(*(counted[text] for text in texts), strict=True))


def _num_ngrams(grams: Sequence[_NgramCounts]) -> Matrix:
    """Return the number of n-grams of each text."""
    return np.array([sum(counts.values()) for counts in grams], dtype=np.float64)


def _num_matches(hyps: Sequence[_NgramCounts], refs: Sequence[_NgramCounts]) -> Matrix:
    """Return the number of n-grams [H, R] that each hypothesis shares with each reference, clipped to its counts."""
    columns = {
        gram: column for column, gram in enumerate(dict.fromkeys(gram for ref in refs for gram in ref))
    }
    hyps_HG, refs_RG = (_count_matrix(texts, columns) for texts in (hyps, refs))
    matches = [np.minimum(hyp_G, refs_RG).sum(axis=1) for hyp_G in hyps_HG]
    return np.array(matches, dtype=np.float64).reshape(len(hyps), len(refs))


def _count_matrix(texts: Sequence[_NgramCounts], columns: Mapping[str, int]) -> npt.NDArray[np.int32]:
    """Return the counts of the n-grams that have a column, with a row for each text."""
    matrix = np.zeros((len(texts), len(columns)), dtype=np.int32)
    for row, grams in zip(matrix, texts, strict=True):
        known = {columns[gram]: count for gram, count in grams.items() if gram in columns}
        row[list(known)] = list(known.values())
    return matrix


# --- choosing ---------------------------------------------------------------------------------------------------------


def minimum_risk(candidates: Sequence[str], utility: Utility, num_exact: int = 64) -> list[tuple[int, float]]:
    """Rank candidates by expected utility, best first.

    Args:
        candidates: translations of one sentence; equal ones count as often as they occur.
        utility: the utility (see `make_utility`).
        num_exact: number of different candidates that are compared with all; if there are more, these are the best
            by `aggregated_chrf`.

    Returns:
        Index of each candidate that was compared (for equal texts of the first one), and its expected utility.
    """
    if not candidates:
        return []
    counts = Counter(candidates)
    texts, weights = list(counts), [float(count) for count in counts.values()]
    chosen = texts
    if len(texts) > num_exact:
        ranks = dict(zip(texts, aggregated_chrf(texts, weights), strict=True))
        chosen = sorted(texts, key=lambda text: -ranks[text])[:num_exact]
    utilities = (utility(chosen, texts) @ np.array(weights) / sum(weights)).tolist()
    first = {text: number for number, text in reversed(list(enumerate(candidates)))}
    order = sorted(range(len(chosen)), key=lambda i: (-utilities[i], first[chosen[i]]))
    return [(first[chosen[i]], utilities[i]) for i in order]


def aggregated_chrf(texts: Sequence[str], weights: Sequence[float]) -> list[float]:
    """Return chrF (Popović 2015) of each text against one reference with the weighted mean of all n-gram counts."""
    grams = [_character_ngrams(text) for text in texts]
    total = sum(weights)
    mean: list[Counter[str]] = [Counter() for _ in range(_CHRF_ORDER)]
    for orders, weight in zip(grams, weights, strict=True):
        for counter, order in zip(mean, orders, strict=True):
            for gram, count in order.items():
                counter[gram] += count * weight / total  # type: ignore[assignment]
    sizes = [sum(counter.values()) for counter in mean]
    return [_chrf_of_counts(orders, mean, sizes) for orders in grams]


def _character_ngrams(text: str) -> list[_NgramCounts]:
    """Return the counts of the n-grams of 1 to 6 characters, without spaces."""
    joined = "".join(text.split())
    return [Counter(joined[i : i + n] for i in range(len(joined) - n + 1)) for n in range(1, _CHRF_ORDER + 1)]


def _character_and_word_ngrams(text: str) -> list[_NgramCounts]:
    """Return the counts of the n-grams of 1 to 6 characters, then of 1 and 2 words.

    A punctuation mark at the end of a word, or else at its beginning, is a word of its own.
    """
    words = []
    for word in text.split():
        if len(word) > 1 and word[-1] in punctuation:
            words += [word[:-1], word[-1]]
        elif len(word) > 1 and word[0] in punctuation:
            words += [word[0], word[1:]]
        else:
            words.append(word)
    return _character_ngrams(text) + _word_ngrams(words, _CHRF_WORD_ORDER)


def _word_ngrams(words: Sequence[str], order: int) -> list[_NgramCounts]:
    """Return the counts of the n-grams of 1 to `order` words."""
    return [
        Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1)) for n in range(1, order + 1)
    ]


def _chrf_of_counts(
    hyp: Sequence[_NgramCounts], ref: Sequence[Mapping[str, float]], ref_sizes: Sequence[float]
) -> float:
    """Return the F score of the mean precision and recall over the orders that both texts have."""
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
    factor = _CHRF_BETA**2
    return 100 * (1 + factor) * precision * recall / (factor * precision + recall)
