"""Breakdowns of translations: where the errors are, and of what kind.

Everything here is counted on plain text. A word is a run of letters, digits and marks; any other visible character is a
word of its own, and so is each letter of Chinese, Japanese, Thai, Lao, Burmese and Khmer. Case counts. Where a sentence
has several references, lengths and words are those of the first that it has; what counts as an error must be an error
against each of them.

The F-measure of words by their frequency in training follows compare-mt (Neubig et al. 2019, "compare-mt: A Tool for
Holistic Comparison of Language Generation Systems").
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mtkit.languages import HANGUL, UNSPACED

_LENGTH_BOUNDS = (10, 20, 30, 40, 50, 60)
"""Lengths in words at which a new group of sentences begins."""

_FREQUENCY_BOUNDS = (1, 2, 5, 10, 100, 1000)
"""Counts in training at which a new group of words begins."""

Streams = Sequence[Sequence[str | None]]
"""References: one or more streams as long as the translations; None is a missing reference."""

Link = tuple[int, int]
"""An alignment link: number of a source word, number of a target word."""


@dataclass(frozen=True)
class Group:
    """Sentences that have something in common.

    Attributes:
        label: what they have in common.
        sentences: their indices, in order.
    """

    label: str
    sentences: tuple[int, ...]


@dataclass(frozen=True)
class WordGroup:
    """Agreement with the reference on the words of a group.

    Attributes:
        label: the group.
        num_ref: words of the group in the references.
        num_hyp: words of the group in the translations.
        num_matched: words in both; a word counts as often as it occurs in both sentences.
    """

    label: str
    num_ref: int
    num_hyp: int
    num_matched: int

    @property
    def precision(self) -> float | None:
        """Share of the words in the translations that are in the references; None if there are no words."""
        return self.num_matched / self.num_hyp if self.num_hyp else None

    @property
    def recall(self) -> float | None:
        """Share of the words in the references that are in the translations; None if there are no words."""
        return self.num_matched / self.num_ref if self.num_ref else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None if there are no words at all."""
        total = self.num_ref + self.num_hyp
        return 2 * self.num_matched / total if total else None


@dataclass(frozen=True)
class Share:
    """Part of a whole.

    Attributes:
        part: size of the part.
        whole: size of the whole.
        sentences: indices of the sentences that have some of the part.
    """

    part: int
    whole: int
    sentences: tuple[int, ...] = ()

    @property
    def value(self) -> float | None:
        """The part divided by the whole; None if the whole is empty."""
        return self.part / self.whole if self.whole else None

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers for JSON; sentences are counted from 1."""
        return {
            "part": self.part,
            "whole": self.whole,
            "share": self.value,
            "sentences": [index + 1 for index in self.sentences],
        }


@dataclass(frozen=True)
class SentenceDifference:
    """Difference between two systems on a sentence.

    Attributes:
        sentence: its index.
        value: score of the second system minus that of the first.
    """

    sentence: int
    value: float


def split_words(text: str) -> list[str]:
    """Return the words of a text, see the top of this module."""
    return _word_pattern().findall(text)


@lru_cache(maxsize=1)
def _word_pattern() -> re.Pattern[str]:
    marks = "".join(chr(code) for code in range(0x300, 0xFE30) if unicodedata.category(chr(code))[0] == "M")
    letter = rf"[^\W{UNSPACED}]"
    return re.compile(rf"[{UNSPACED}][{marks}]*|{letter}(?:{letter}|[{marks}\u200c\u200d])*|[^\w\s]|_")


def first_references(refs: Streams) -> list[str]:
    """Return the first reference that each sentence has, "" if none."""
    return [
        next((ref for ref in of_sentence if ref is not None), "") for of_sentence in zip(*refs, strict=True)
    ]


def group_by_length(lines: Sequence[str], bounds: Sequence[int] = _LENGTH_BOUNDS) -> list[Group]:
    """Return the lines in groups by their number of words, shortest first; empty groups are left out.

    Args:
        lines: usually the references, so that all systems have the same groups.
        bounds: numbers of words at which a new group begins, ascending.
    """
    groups: list[list[int]] = [[] for _ in range(len(bounds) + 1)]
    for index, line in enumerate(lines):
        groups[bisect_right(bounds, len(split_words(line)))].append(index)
    return [Group(label, tuple(found)) for label, found in zip(_labels(bounds), groups, strict=True) if found]


def group_by_label(labels: Sequence[str]) -> list[Group]:
    """Return the sentences in groups by their labels, in the order in which the labels first occur."""
    found: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        found.setdefault(label, []).append(index)
    return [Group(label, tuple(sentences)) for label, sentences in found.items()]


def words_by_frequency(
    hyps: Sequence[str],
    refs: Streams,
    counts: Mapping[str, int],
    bounds: Sequence[int] = _FREQUENCY_BOUNDS,
) -> list[WordGroup]:
    """Return the agreement with the first reference on rare and on frequent words, rarest first.

    Args:
        hyps: translations.
        refs: references.
        counts: how often each word of translations and references occurs on the target side of training; a word
            that is missing occurs never.
        bounds: counts at which a new group begins, ascending.
    """
    num_ref, num_hyp, num_matched = ([0] * (len(bounds) + 1) for _ in range(3))
    for hyp, ref in zip(hyps, first_references(refs), strict=True):
        in_hyp, in_ref = Counter(split_words(hyp)), Counter(split_words(ref))
        for found, totals in ((in_hyp, num_hyp), (in_ref, num_ref), (in_hyp & in_ref, num_matched)):
            for word, count in found.items():
                totals[bisect_right(bounds, counts.get(word, 0))] += count
    groups = zip(_labels(bounds), num_ref, num_hyp, num_matched, strict=True)
    return [WordGroup(*group) for group in groups]


def length_ratio(hyps: Sequence[str], refs: Streams) -> Share:
    """Return the words of the translations over those of the first references."""
    num_hyp = sum(len(split_words(hyp)) for hyp in hyps)
    return Share(num_hyp, sum(len(split_words(ref)) for ref in first_references(refs)))


def repetitions(hyps: Sequence[str], refs: Streams, n: int = 2) -> Share:
    """Return the share of n-grams that repeat an earlier one of their sentence more often than any reference does.

    An n-gram that occurs h times in a translation, and at most r times in a reference, has h - max(r, 1) such
    repetitions.
    """
    part = whole = 0
    sentences = []
    for index, hyp in enumerate(hyps):
        found = _ngrams(split_words(hyp), n)
        whole += found.total()
        repeated = {ngram: count for ngram, count in found.items() if count > 1}
        if not repeated:
            continue
        in_refs = [_ngrams(split_words(ref), n) for stream in refs if (ref := stream[index]) is not None]
        surplus = sum(
            max(0, count - max([1, *(in_ref[ngram] for in_ref in in_refs)]))
            for ngram, count in repeated.items()
        )
        part += surplus
        if surplus:
            sentences.append(index)
    return Share(part, whole, tuple(sentences))


def copied_words(srcs: Sequence[str], hyps: Sequence[str], refs: Streams) -> Share:
    """Return the share of source words that the translation has more often than any reference: untranslated words.

    Words without a letter are not counted. A word that a reference has too, such as most names, is no error.
    """
    part = whole = 0
    sentences = []
    for index, (src, hyp) in enumerate(zip(srcs, hyps, strict=True)):
        in_src = Counter(word for word in split_words(src) if _has_letter(word))
        whole += in_src.total()
        in_refs = Counter[str]()
        for stream in refs:
            in_refs |= Counter(split_words(stream[index] or ""))
        copied = in_src & (Counter(split_words(hyp)) - in_refs)
        part += copied.total()
        if copied:
            sentences.append(index)
    return Share(part, whole, tuple(sentences))


def copied_lines(srcs: Sequence[str], hyps: Sequence[str], refs: Streams) -> Share:
    """Return the share of lines whose translation is the source, up to spaces, although no reference is.

    Lines without a letter are not counted.
    """
    whole, sentences = 0, []
    for index, (src, hyp) in enumerate(zip(srcs, hyps, strict=True)):
        if not _has_letter(src):
            continue
        whole += 1
        same = src.split()
        if hyp.split() == same and not any((stream[index] or "").split() == same for stream in refs):
            sentences.append(index)
    return Share(len(sentences), whole, tuple(sentences))


def loops(srcs: Sequence[str], hyps: Sequence[str], refs: Streams) -> Share:
    """Return the share of lines whose translation has a repetition loop, although neither source nor reference has one.

    A loop is a stretch of 2 to 100 characters, spaces included, that comes four times or more in a row.
    """
    sentences = [
        index
        for index, (src, hyp) in enumerate(zip(srcs, hyps, strict=True))
        if _has_loop(hyp) and not any(_has_loop(text or "") for text in (src, *(s[index] for s in refs)))
    ]
    return Share(len(sentences), len(hyps), tuple(sentences))


def far_too_long(srcs: Sequence[str], hyps: Sequence[str], refs: Streams) -> Share:
    """Return the share of lines whose translation has more than twice as many words, and 3 more, than the reference.

    Lines without a reference are compared with their source.
    """
    return _of_other_length(srcs, hyps, refs, lambda num_hyp, num_ref: num_hyp > 2 * num_ref + 3)


def far_too_short(srcs: Sequence[str], hyps: Sequence[str], refs: Streams) -> Share:
    """Return the share of lines whose reference has more than twice as many words, and 3 more, than the translation.

    Lines without a reference are compared with their source. A translation without any word is always too short.
    """
    return _of_other_length(
        srcs, hyps, refs, lambda num_hyp, num_ref: num_ref > (2 * num_hyp + 3 if num_hyp else 0)
    )


def _of_other_length(
    srcs: Sequence[str], hyps: Sequence[str], refs: Streams, is_wrong: Callable[[int, int], bool]
) -> Share:
    """Return the share of lines with a wrong number of words, judged by that number and that of each reference."""
    sentences = []
    for index, (src, hyp) in enumerate(zip(srcs, hyps, strict=True)):
        present = [ref for stream in refs if (ref := stream[index]) is not None] or [src]
        if all(is_wrong(len(split_words(hyp)), len(split_words(ref))) for ref in present):
            sentences.append(index)
    return Share(len(sentences), len(hyps), tuple(sentences))


def unaligned_words(srcs: Sequence[str], alignments: Sequence[Sequence[Link]]) -> Share:
    """Return the share of source words that no word of the translation is aligned to: hints at omissions.

    Args:
        srcs: source sentences; here a word is what stands between spaces, as in the alignments of mtkit.
        alignments: links of each sentence; source words are counted from 0.
    """
    part = whole = 0
    sentences = []
    for index, (src, links) in enumerate(zip(srcs, alignments, strict=True)):
        num_words = len(src.split())
        missing = num_words - len({source for source, _ in links if 0 <= source < num_words})
        part, whole = part + missing, whole + num_words
        if missing:
            sentences.append(index)
    return Share(part, whole, tuple(sentences))


def lost_items(
    srcs: Sequence[str],
    hyps: Sequence[str],
    refs: Streams,
    find: Callable[[str], Sequence[str]],
    has: Callable[[str, str], bool],
) -> Share:
    """Return the share of items of the source, such as numbers, that each reference has but not the translation.

    Args:
        srcs: source sentences.
        hyps: translations.
        refs: references; an item that one of them lacks is not counted, because it need not be kept.
        find: returns the items of a text.
        has: returns whether a text has an item.
    """
    part = whole = 0
    sentences = []
    for index, (src, hyp) in enumerate(zip(srcs, hyps, strict=True)):
        present = [ref for stream in refs if (ref := stream[index]) is not None] or [""]
        wanted = [item for item in dict.fromkeys(find(src)) if all(has(ref, item) for ref in present)]
        lost = sum(not has(hyp, item) for item in wanted)
        part, whole = part + lost, whole + len(wanted)
        if lost:
            sentences.append(index)
    return Share(part, whole, tuple(sentences))


def find_names(text: str) -> list[str]:
    """Return the words that begin with a capital letter and have more than one character.

    With `lost_items` these are words that source and reference write alike: names in scripts with capital letters, but
    also acronyms and, rarely, other words that both languages share. Names that are translated or inflected are missed.
    """
    return [word for word in split_words(text) if len(word) > 1 and word[0].isupper()]


def has_word(text: str, word: str) -> bool:
    """Return whether a text has a word, in the same case."""
    return word in split_words(text)


_URL = re.compile(
    rf"(?:https?://|ftp://|www\.)(?:[^\s<>\"“”„«»{UNSPACED}{HANGUL}]|(?<=[/=_-])[{HANGUL}]+)+", re.IGNORECASE
)


def find_urls(text: str) -> list[str]:
    """Return the web addresses of a text, without punctuation that follows them."""
    return [found.rstrip(".,;:!?'…)]}。！？，、）」』》】،؛؟۔।") for found in _URL.findall(text)]


_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]++@[\w-]+(?:\.[\w-]+)+")


def find_emails(text: str) -> list[str]:
    """Return the e-mail addresses of a text."""
    return _EMAIL.findall(text)


_PICTURE = "[\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]"
_EMOJI = re.compile(
    f"[\U0001f1e6-\U0001f1ff]{{2}}|{_PICTURE}[\ufe0f\U0001f3fb-\U0001f3ff]*(?:\u200d{_PICTURE}[\ufe0f\U0001f3fb-\U0001f3ff]*)*"
)


def find_emoji(text: str) -> list[str]:
    """Return the emoji and other pictures of a text; what is joined to one picture is one."""
    return _EMOJI.findall(text)


def has_text(text: str, part: str) -> bool:
    """Return whether a text contains another."""
    return part in text


def rank_sentences(scores: Sequence[float]) -> list[int]:
    """Return the indices of sentences from the highest score to the lowest; of equal scores, the first comes first."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def largest_differences(
    first: Sequence[float], second: Sequence[float], count: int
) -> tuple[list[SentenceDifference], list[SentenceDifference]]:
    """Return the sentences on which the second system is most ahead of the first, and those on which it is most behind.

    Args:
        first: a score for each sentence; higher is better.
        second: the other system's scores.
        count: the most sentences in each list; ties are left out.
    """
    differences = [
        SentenceDifference(index, after - before)
        for index, (before, after) in enumerate(zip(first, second, strict=True))
    ]
    ahead = sorted(differences, key=lambda difference: -difference.value)
    behind = sorted(differences, key=lambda difference: difference.value)
    return [d for d in ahead[:count] if d.value > 0], [d for d in behind[:count] if d.value < 0]


def _labels(bounds: Sequence[int]) -> list[str]:
    """Return the names of the groups that bounds make: 0–9, 10–19, 20+ for 10 and 20."""
    starts = [0, *bounds]
    labels = [
        f"{start}" if end == start + 1 else f"{start}–{end - 1}"
        for start, end in zip(starts, bounds, strict=False)
    ]
    return [*labels, f"{starts[-1]}+"]


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


_LOOP = re.compile(r"(.{2,100}?)\1{3}")


def _has_loop(text: str) -> bool:
    """Return whether a stretch of a text comes four times in a row; the end of the text counts as a space."""
    return _LOOP.search(f"{text} ") is not None


def _has_letter(text: str) -> bool:
    return any(character.isalpha() for character in text)
