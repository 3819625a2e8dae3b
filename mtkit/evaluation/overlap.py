"""Overlap of test and training data: how much of a test set did the model see?

Training data is read once, as a stream. What is kept is about the test set alone, so memory does not grow with
training: hashes of the lines and n-grams of the test set, and the counts of its words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from mtkit.evaluation.analysis import Share, Streams, split_words

_NGRAM_WORDS = 8
"""Words in a row that chance seldom repeats."""


@dataclass(frozen=True)
class Overlap:
    """Overlap of a test set with training data.

    Attributes:
        num_pairs: pairs of the training data.
        sources: test sentences whose source is also one in training; `sentences` has their indices, here and below.
        targets: test sentences of which a reference is also a target in training.
        pairs: test sentences that are in training with a reference of theirs.
        ngram_words: length of the n-grams in words.
        source_ngrams: different n-grams of the source side that the source side of training has too.
        target_ngrams: the same of the references and the target side.
        counts: how often the words of references and translations occur on the target side of training; of words
            that never occur, 0.
    """

    num_pairs: int
    sources: Share
    targets: Share
    pairs: Share
    ngram_words: int
    source_ngrams: Share
    target_ngrams: Share
    counts: dict[str, int]


class OverlapCounter:
    """Compares a test set with training data, of which it is given one pair after the other.

    Lines are compared without spaces at their ends and with single spaces between words; case counts.

    Args:
        srcs: source sentences of the test set; None if they are not known.
        refs: references.
        hyps: translations of any number of systems, whose words are counted too.
        ngram_words: length of the n-grams.
    """

    def __init__(
        self,
        srcs: Sequence[str] | None,
        refs: Streams,
        hyps: Sequence[Sequence[str]] = (),
        ngram_words: int = _NGRAM_WORDS,
    ) -> None:
        self._num_sentences = len(refs[0])
        self._ngram_words = ngram_words
        self._num_pairs = 0
        known = [] if srcs is None else list(srcs)
        self._sources = _hash_lines(known)
        self._targets: dict[int, list[int]] = {}
        self._pairs: dict[tuple[int, int], list[int]] = {}
        self._has_sources = srcs is not None
        for stream in refs:
            for index, ref in enumerate(stream):
                if ref is not None:
                    self._targets.setdefault(_hash(ref), []).append(index)
                    if known:
                        self._pairs.setdefault((_hash(known[index]), _hash(ref)), []).append(index)
        present = [ref for stream in refs for ref in stream if ref is not None]
        self._source_ngrams, self._target_ngrams = _Ngrams(known, ngram_words), _Ngrams(present, ngram_words)
        lines = chain(present, *hyps)
        self._counts = dict.fromkeys((word for line in lines for word in split_words(line)), 0)
        self._seen_sources, self._seen_targets, self._seen_pairs = set[int](), set[int](), set[int]()

    def add(self, src: str, tgt: str) -> None:
        """Compare a training pair."""
        self._num_pairs += 1
        src_hash, tgt_hash = _hash(src), _hash(tgt)
        self._seen_sources.update(self._sources.get(src_hash, ()))
        self._seen_targets.update(self._targets.get(tgt_hash, ()))
        self._seen_pairs.update(self._pairs.get((src_hash, tgt_hash), ()))
        words = split_words(tgt)
        for word in words:
            if word in self._counts:
                self._counts[word] += 1
        self._target_ngrams.find_in(words)
        if self._has_sources:
            self._source_ngrams.find_in(split_words(src))

    def result(self) -> Overlap:
        """Return what was found so far."""

        def share(seen: set[int], is_known: bool = True) -> Share:
            return Share(len(seen), self._num_sentences if is_known else 0, tuple(sorted(seen)))

        return Overlap(
            self._num_pairs,
            share(self._seen_sources, self._has_sources),
            share(self._seen_targets),
            share(self._seen_pairs, self._has_sources),
            self._ngram_words,
            self._source_ngrams.share(),
            self._target_ngrams.share(),
            self._counts,
        )


def count_overlaps(counters: Sequence[OverlapCounter], pairs: Iterable[tuple[str, str]]) -> list[Overlap]:
    """Read training data once, and return its overlap with each test set."""
    for src, tgt in pairs:
        for counter in counters:
            counter.add(src, tgt)
    return [counter.result() for counter in counters]


class _Ngrams:
    """The different n-grams of a test set, and those of them that were found.

    Args:
        lines: lines of the test set.
        n: words of an n-gram.
    """

    def __init__(self, lines: Sequence[str], n: int) -> None:
        self._n = n
        self._found: dict[int, bool] = {}
        self._words: set[str] = set()
        for line in lines:
            words = split_words(line)
            if len(words) >= n:
                self._words.update(words)
            for start in range(len(words) - n + 1):
                self._found[hash(tuple(words[start : start + n]))] = False

    def find_in(self, words: Sequence[str]) -> None:
        """Note the n-grams of a sentence; only runs of words that occur in the test set are looked up."""
        run = 0
        for end, word in enumerate(words, 1):
            run = run + 1 if word in self._words else 0
            if run >= self._n:
                key = hash(tuple(words[end - self._n : end]))
                if key in self._found:
                    self._found[key] = True

    def share(self) -> Share:
        """Return how many of the n-grams were found."""
        return Share(sum(self._found.values()), len(self._found))


def _hash(line: str) -> int:
    """Return a hash of 64 bits; one of 10,000 lines shares that of one of a billion with a probability of 10^-6."""
    return hash(" ".join(line.split()))


def _hash_lines(lines: Sequence[str]) -> dict[int, list[int]]:
    """Return the indices of the lines that have each hash."""
    found: dict[int, list[int]] = {}
    for index, line in enumerate(lines):
        found.setdefault(_hash(line), []).append(index)
    return found
