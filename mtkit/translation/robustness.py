"""Robustness: copies of a test set that are changed as users' text differs from clean text, and what becomes of them.

Every copy is a function of the test set. Where a reference would change with its source (letter case, final
punctuation, sentences that are joined), it is changed alike; a misspelled source keeps its reference. What is added to
a line (a number, an address, an emoji) must come back in the translation, and is taken away from it before the rest is
scored, so that all scores but those of changed case compare with that of the clean copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from mtkit.data.perturbation import add_typos, has_case, title, upper, without_final_punctuation
from mtkit.evaluation import analysis
from mtkit.evaluation.analysis import Share
from mtkit.evaluation.metrics import Score, score
from mtkit.languages import HAN_AND_KANA
from mtkit.translation.numbers import has_number, last_span, required_numbers

CLEAN = "clean"
_CASED = ("all capitals", "title case")
"""Kinds of copies that need letters with case."""
KINDS = (
    *_CASED, "no final punctuation", "typos", "joined sentences", "numbers", "URLs", "e-mail addresses", "emoji",
    "single words",
)  # fmt: skip
"""Kinds of changed copies."""

_NUM_JOINED = 3
_MAX_WORDS = 1000
_WORDS_OF_ADDRESSES = ("garden", "river", "market", "window", "paper", "silver", "summit", "harbor")
_EMOJI = "😀😂😍👍🎉❤🔥😢🙏🚗🐶☀"
_NO_SPACE_AFTER = re.compile(rf"[{HAN_AND_KANA}。！？…」』）]$")


@dataclass(frozen=True)
class Copy:
    """A copy of a test set.

    Attributes:
        kind: what is changed.
        srcs: source lines.
        refs: streams of references; none if there is nothing to compare with.
        added: text that was added at the end of each source, which the scores leave out; empty if there is none.
    """

    kind: str
    srcs: list[str]
    refs: list[list[str | None]]
    added: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CopyResult:
    """Result of a system on a copy.

    Attributes:
        kind: what is changed.
        num_lines: lines of the copy.
        scores: scores; empty without references.
        faults: shares of lines whose translation is faulty, by the name of the fault.
        lost: shares of items of the source that the translation lacks, by what they are.
    """

    kind: str
    num_lines: int
    scores: list[Score]
    faults: dict[str, Share]
    lost: dict[str, Share]

    def as_dict(self, clean: CopyResult) -> dict[str, Any]:
        """Return the numbers for JSON, with the difference of each score from that of the clean copy."""
        before = {score.name: score.value for score in clean.scores}
        return {
            "copy": self.kind,
            "lines": self.num_lines,
            "scores": [
                score.as_dict() | {"difference": score.value - before[score.name]} for score in self.scores
            ],
            **{name: share.as_dict() for name, share in self.faults.items()},
            "lost": {name: share.as_dict() for name, share in self.lost.items()},
        }


def make_copies(
    srcs: Sequence[str],
    refs: Sequence[Sequence[str | None]],
    kinds: Sequence[str] = KINDS,
    max_words: int = _MAX_WORDS,
) -> tuple[list[Copy], dict[str, str]]:
    """Return the clean copy of a test set and the changed ones, and why kinds are left out.

    Args:
        srcs: source lines.
        refs: streams of references.
        kinds: names from `KINDS`.
        max_words: most lines in the copy of single words.
    """
    copies, left_out = [Copy(CLEAN, list(srcs), [list(stream) for stream in refs])], {}
    for kind in kinds:
        copy = _make_copy(kind, srcs, refs, max_words)
        if kind in _CASED and not any(map(has_case, srcs)):
            left_out[kind] = "the source has no upper and lower case"
        elif copy.srcs == list(srcs) or not copy.srcs:
            left_out[kind] = "there is nothing to change"
        else:
            copies.append(copy)
    return copies, left_out


def _make_copy(kind: str, srcs: Sequence[str], refs: Sequence[Sequence[str | None]], max_words: int) -> Copy:
    """Return a changed copy of a test set."""
    same = [list(stream) for stream in refs]
    match kind:
        case "all capitals":
            return _changed_alike(kind, upper, srcs, refs)
        case "title case":
            return _changed_alike(kind, title, srcs, refs)
        case "no final punctuation":
            return _changed_alike(kind, without_final_punctuation, srcs, refs)
        case "typos":
            return Copy(kind, [add_typos(src, Random(number)) for number, src in enumerate(srcs)], same)
        case "joined sentences":
            return Copy(kind, _join(srcs), [_join(stream) for stream in refs])
        case "single words":
            return Copy(kind, _words(srcs, max_words), [])
    added = [_ITEMS[kind](number) for number in range(len(srcs))]
    return Copy(kind, [f"{src} {item}" for src, item in zip(srcs, added, strict=True)], same, added)


def _changed_alike(
    kind: str, change: Callable[[str], str], srcs: Sequence[str], refs: Sequence[Sequence[str | None]]
) -> Copy:
    changed = [[None if ref is None else change(ref) for ref in stream] for stream in refs]
    return Copy(kind, list(map(change, srcs)), changed)


def _join(lines: Sequence[str | None]) -> list[Any]:
    """Return each three lines as one; None if one of them is None."""
    joined = []
    for first in range(0, len(lines), _NUM_JOINED):
        line = ""
        group = lines[first : first + _NUM_JOINED]
        for part in filter(None, group):
            line += part if not line or _NO_SPACE_AFTER.search(line) else f" {part}"
        joined.append(None if None in group else line)
    return joined


def _words(lines: Sequence[str], count: int) -> list[str]:
    """Return different words of the lines, at most `count`, evenly from first to last."""
    found = dict.fromkeys(word for line in lines for word in analysis.split_words(line) if word[0].isalpha())
    return sample_evenly(list(found), count)


def sample_evenly(items: Sequence[Any], count: int) -> list[Any]:
    """Return this many items, evenly from first to last, or all if there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]


def _scrambled(number: int) -> int:
    """Return a number below 10,000 that hardly depends on its neighbors' (a multiplicative hash)."""
    return number * 2_654_435_761 % 2**32 * 10_000 >> 32


def _address(number: int) -> str:
    """Return a name of one or two words for an address."""
    first, second = divmod(_scrambled(number), len(_WORDS_OF_ADDRESSES))
    words = _WORDS_OF_ADDRESSES
    return f"{words[second]}-{words[first % len(words)]}"


_ITEMS: dict[str, Callable[[int], str]] = {
    "numbers": lambda number: f"({1000 + _scrambled(number) * 9 // 10})",
    "URLs": lambda number: f"https://www.{_address(number)}.org/{_address(number + 1)}",
    "e-mail addresses": lambda number: f"info@{_address(number)}.org",
    "emoji": lambda number: _EMOJI[_scrambled(number) % len(_EMOJI)],
}
"""What is added to the line with a number."""

_LOST: dict[str, tuple[Callable[[str], Sequence[str]], Callable[[str, str], bool]]] = {
    "numbers": (required_numbers, has_number),
    "URLs": (analysis.find_urls, analysis.has_text),
    "e-mail addresses": (analysis.find_emails, analysis.has_text),
    "emoji": (analysis.find_emoji, analysis.has_text),
}
"""What finds the items of a text, and what tells whether a text has one."""


def measure(
    copy: Copy,
    hyps: Sequence[str],
    metrics: Sequence[str],
    *,
    tokenize: str | None = None,
    lowercase: bool = False,
    tgt: str | None = None,
) -> CopyResult:
    """Return what a system made of a copy.

    Args:
        copy: the copy.
        hyps: its translations.
        metrics: see `mtkit.evaluation.metrics.score`, as for the others.
        tokenize: tokenizer for BLEU.
        lowercase: whether to ignore case.
        tgt: code of the target language.
    """
    srcs, refs = copy.srcs, copy.refs
    if copy.added:  # the references must have the items too
        refs = [
            [None if ref is None else f"{ref} {item}" for ref, item in zip(stream, copy.added, strict=True)]
            for stream in refs
        ]
    streams = refs or [[None] * len(srcs)]
    faults = {
        "loops": analysis.loops(srcs, hyps, streams),
        "copies": analysis.copied_lines(srcs, hyps, streams),
        "too_long": analysis.far_too_long(srcs, hyps, streams),
        "too_short": analysis.far_too_short(srcs, hyps, streams),
    }
    scores: list[Score] = []
    if copy.refs:
        kept = list(map(_without, hyps, copy.added)) if copy.added else hyps
        scores = score(kept, copy.refs, metrics, tokenize=tokenize, lowercase=lowercase, tgt=tgt)
    lost = {name: analysis.lost_items(srcs, hyps, streams, *of_kind) for name, of_kind in _LOST.items()}
    return CopyResult(copy.kind, len(srcs), scores, faults, lost)


def _without(hyp: str, item: str) -> str:
    """Return a translation without the item that was added to its source, in parentheses or not.

    A number may be in the notation of the target language.
    """
    item = item.strip("()")
    start = hyp.rfind(item)
    span = last_span(hyp, item) if item.isdigit() else (start, start + len(item)) if start >= 0 else None
    if span is None:
        return hyp
    before, after = hyp[: span[0]], hyp[span[1] :]
    if before.endswith(("(", "（")) and after.startswith((")", "）")):
        before, after = before[:-1], after[1:]
    return " ".join(f"{before} {after}".split())
