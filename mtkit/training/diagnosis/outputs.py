"""Findings in translations of the run's model, beside their sources and references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from mtkit.evaluation.history import Sample
from mtkit.formatting import visible
from mtkit.languages import WORD
from mtkit.training.diagnosis.finding import Finding

_MIN_SENTENCES = 8
_SAME, _COPIES, _EMPTY, _LOOPS = 0.5, 0.3, 0.1, 0.2
"""Shares of translations from which something is wrong."""
_SHORT, _LONG = 0.6, 1.7
"""Length of all translations, relative to that of the references, from which something is wrong."""
_REPEATS, _LONGEST_LOOP = 4, 8
"""Times that the same one to eight words follow each other in an endless translation."""


def find_in_outputs(samples: Sequence[Sample]) -> Iterator[Finding]:
    """Yield what is wrong with translations of different sentences."""
    samples = list({sample.src: sample for sample in samples if sample.src.strip()}.values())
    if len(samples) < _MIN_SENTENCES:
        return
    same = list(_same(samples))
    yield from same
    yield from _copies(samples)
    yield from _lengths(samples, is_same=bool(same))


def _same(samples: Sequence[Sample]) -> Iterator[Finding]:
    """Yield a finding if different sentences have the same translation."""
    (text, count), *_ = Counter(sample.hyp for sample in samples).most_common(1)
    refs = Counter(sample.ref for sample in samples).most_common(1)[0][1]
    if count / len(samples) >= _SAME and refs < count / 2 and text.strip():
        yield Finding(
            "same-output",
            f"{count} of {len(samples)} different sentences are translated as {_quote(text)}",
            "the model does not look at the source: it writes what is most frequent. Every model begins like that; "
            "later it means that it has not begun to learn, or that sources and targets do not belong together",
            "train longer; if the loss no longer falls, lower training.learning_rate and raise training.warmup_steps, "
            "and see that line n of the source goes with line n of the target",
        )


def _copies(samples: Sequence[Sample]) -> Iterator[Finding]:
    """Yield a finding if translations are copies of their source, although the references are not."""
    copies = [s for s in samples if _overlap(s.hyp, s.src) >= 0.8 and _overlap(s.ref, s.src) < 0.5]
    if len(copies) / len(samples) >= _COPIES:
        yield Finding(
            "copies",
            f"{len(copies)} of {len(samples)} translations repeat their source, such as {_quote(copies[0].hyp)}",
            "the model has learned to copy: many training pairs have the same text on both sides, or the source "
            "language is among the targets",
            "remove pairs whose two sides are equal or in the same language from data.train",
        )


def _lengths(samples: Sequence[Sample], *, is_same: bool) -> Iterator[Finding]:
    """Yield findings if translations are empty, too short, or do not end."""
    empty = sum(not sample.hyp.strip() for sample in samples)
    ratio = sum(len(sample.hyp) for sample in samples) / max(1, sum(len(sample.ref) for sample in samples))
    loops = [sample.hyp for sample in samples if repeats(sample.hyp)]
    seen = f"the translations are {ratio:.2f} times as long as the references"
    if empty / len(samples) >= _EMPTY and not all(not sample.ref.strip() for sample in samples):
        yield Finding(
            "empty-output",
            f"{empty} of {len(samples)} translations are empty",
            "the model ends at once: many training pairs have a short or missing target, or it has hardly learned",
            "remove pairs with an empty or far too short target (data.max_length_ratio: 3), and train longer",
        )
    elif ratio < _SHORT and not is_same:
        yield Finding(
            "short-output",
            seen,
            "the model stops too early: targets in training are cut off or incomplete, or the search favors short "
            "translations",
            "look at the training targets; set data.max_length_ratio to 3, decoding.length_penalty to 1.0 and "
            "decoding.max_length_ratio to 2.0 or more",
        )
    if len(loops) / len(samples) >= _LOOPS or (ratio > _LONG and not is_same):
        repeated = f"{len(loops)} of {len(samples)} translations repeat the same words"
        example = f"{repeated}, such as {_quote(loops[0])}; " if loops else ""
        yield Finding(
            "endless-output",
            f"{example}{seen}",
            "the model loses its place and does not end: it is not trained enough, or the training targets are longer "
            "than their sources, or several sentences in one",
            "train longer or on more pairs; look at the training targets, set data.max_length_ratio to 3",
        )


def _overlap(one: str, other: str) -> float:
    """Return the share of the words of a text that are also in another one."""
    words, others = Counter(one.casefold().split()), Counter(other.casefold().split())
    return (words & others).total() / max(1, words.total())


def repeats(text: str) -> bool:
    """Return whether up to eight words, or characters of a script without spaces, are repeated again and again."""
    words = WORD.findall(text)
    for size in range(1, _LONGEST_LOOP + 1):
        run = 0
        for i in range(size, len(words)):
            run = run + 1 if words[i] == words[i - size] else 0
            if run >= size * (_REPEATS - 1) and len(words) >= 2 * _REPEATS:
                return True
    return False


def _quote(text: str) -> str:
    """Return the first 60 characters of a text in quotation marks."""
    text = visible(text)
    return f"“{text if len(text) <= 60 else text[:59] + '…'}”"
