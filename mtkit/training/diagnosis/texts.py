"""Findings in the text of a run: training, validation and test pairs, and how the tokenizers split them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from mtkit.data.readers import Pair
from mtkit.languages import WORD
from mtkit.training.diagnosis.finding import Finding, percent

_FREQUENT = 50
"""Words that make up much of any text in their language, whatever it is about."""
_LONG_WORD = 15
"""Mean length from which words are stretches of a script without spaces; then characters are counted."""
_MIN_WORDS = 100
_KNOWN, _FOREIGN = 0.15, 0.3
"""Share of the frequent words in held-out training text from which they say something, and the part of that share
below which text is in another language."""
_STRAY_LETTERS = 0.5
_UNKNOWN, _SPELLED = 0.03, 0.1
"""Shares of unknown tokens, and of those that spell a byte, from which a tokenizer does not suit a text."""
_TIMES_WORSE = 4.0
_EMPTY_PAIRS, _DUPLICATES, _EQUAL, _OVERLAP = 0.1, 0.3, 0.1, 0.05
_MIN_WORDS_OF_OVERLAP = 4
"""Shorter sentences are in many texts by nature."""


@dataclass(frozen=True)
class TokenCounts:
    """Counts of the tokens that a tokenizer splits a text into."""

    tokens: int
    unknown: int
    spelled: int
    """Tokens that stand for one byte."""

    @property
    def lost(self) -> float:
        """Share of the tokens that are unknown."""
        return self.unknown / max(1, self.tokens)

    @property
    def in_bytes(self) -> float:
        """Share of the tokens that spell a byte."""
        return self.spelled / max(1, self.tokens)


CountTokens = Callable[[Sequence[str]], TokenCounts]


@dataclass
class TrainingText:
    """Facts about the training pairs, gathered in reading them.

    Attributes:
        sample: pairs drawn at random.
        num_read: pairs read.
        num_empty: pairs with an empty side.
        num_duplicates: pairs that repeat an earlier one.
        num_equal: pairs whose two sides are the same text.
        tags: tags of the corpora, "" for none.
    """

    sample: list[Pair] = field(default_factory=list)
    num_read: int = 0
    num_empty: int = 0
    num_duplicates: int = 0
    num_equal: int = 0
    tags: set[str] = field(default_factory=set)
    _digests: set[bytes] = field(default_factory=set)

    def add(self, pair: Pair, tag: str = "") -> None:
        """Count a pair, whose source begins with the tag."""
        self.num_read += 1
        self.tags.add(tag)
        digest = _digest(pair)
        self.num_empty += not (pair.src.strip() and pair.tgt.strip())
        self.num_duplicates += digest in self._digests
        self.num_equal += bool(pair.src.strip()) and pair.src.removeprefix(tag).split() == pair.tgt.split()
        self._digests.add(digest)

    def has(self, pair: Pair) -> bool:
        """Return whether a pair, given without a tag, is among those read."""
        return any(_digest(Pair(f"{tag} {pair.src}", pair.tgt)) in self._digests for tag in self.tags)


def _digest(pair: Pair) -> bytes:
    text = "\n".join(" ".join(side.split()) for side in pair)
    return blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()


# --- the training pairs alone -------------------------------------------------------------------------------------


def find_in_training_text(
    text: TrainingText, count_src: CountTokens, count_tgt: CountTokens, *, drops_duplicates: bool
) -> Iterator[Finding]:
    """Yield what is wrong with the training pairs.

    Args:
        text: the pairs.
        count_src: splits source lines.
        count_tgt: splits target lines.
        drops_duplicates: whether the run leaves out pairs that repeat an earlier one.
    """
    if text.num_read and text.num_empty / text.num_read >= _EMPTY_PAIRS:
        yield Finding(
            "empty-pairs",
            f"{text.num_empty:,} of {text.num_read:,} training pairs have an empty side",
            "the files are not what they should be, or their lines have shifted",
            "look at the files that data.train names; such pairs are left out in training",
        )
    if not drops_duplicates and text.num_read and text.num_duplicates / text.num_read >= _DUPLICATES:
        yield Finding(
            "duplicates",
            f"{text.num_duplicates:,} of {text.num_read:,} training pairs repeat an earlier one",
            "the model sees a few pairs again and again, and learns them by heart",
            "set data.drop_duplicates to true",
        )
    if text.num_read and text.num_equal / text.num_read >= _EQUAL:
        yield Finding(
            "equal-sides",
            f"{text.num_equal:,} of {text.num_read:,} training pairs have the same text on both sides",
            "these pairs are not translated, and the model learns to copy its source",
            "remove them from data.train, or name the right file as tgt",
        )
    for side, count, lines in (
        ("source", count_src, [pair.src for pair in text.sample]),
        ("target", count_tgt, [pair.tgt for pair in text.sample]),
    ):
        counts = count(lines)
        if counts.lost >= _UNKNOWN or counts.in_bytes >= _SPELLED:
            yield _vocabulary(f"the {side} side of the training text", counts, None)


def _vocabulary(where: str, counts: TokenCounts, usual: TokenCounts | None) -> Finding:
    lost = counts.lost >= _UNKNOWN
    seen = (
        f"{percent(counts.lost)} of the tokens in {where} are unknown"
        if lost
        else f"{percent(counts.in_bytes)} of the tokens in {where} spell single bytes"
    )
    if usual is None:
        meaning = "the tokenizer was trained on other text: of another language, script or normalization"
        change = (
            "leave out tokenizer.model, so that one is trained on data.train, or name one of these languages"
        )
    else:
        seen += f"; of those in the training text, {percent(usual.lost if lost else usual.in_bytes)}"
        meaning = "this text has characters that training text does not: another language, script or encoding"
        change = "see that data.valid and data.test name the right files, in the right order: src, then tgt"
    return Finding("vocabulary", seen, meaning, change)


# --- validation and test sets -------------------------------------------------------------------------------------


def find_in_set(
    name: str,
    key: str,
    pairs: Sequence[Pair],
    training: TrainingText,
    count_src: CountTokens,
    count_tgt: CountTokens,
    tag: str = "",
) -> Iterator[Finding]:
    """Yield what is wrong with a validation or test set, compared with the training text.

    Args:
        name: name of the set, such as "validation set news".
        key: key of the config that names it.
        pairs: its pairs.
        training: the training pairs.
        count_src: splits source lines.
        count_tgt: splits target lines.
        tag: tag that the sources of the set begin with.
    """
    trained = [[pair.src for pair in training.sample], [pair.tgt for pair in training.sample]]
    lines = [[pair.src for pair in pairs], [pair.tgt for pair in pairs]]
    languages = list(_languages(name, key, lines, trained))
    yield from languages
    for side, count, text, usual_text in zip(
        ("source", "target"), (count_src, count_tgt), lines, trained, strict=True
    ):
        counts, usual = count(text), count(usual_text)
        is_lost = counts.lost >= max(_UNKNOWN, _TIMES_WORSE * usual.lost)
        is_spelled = counts.in_bytes >= max(_SPELLED, _TIMES_WORSE * usual.in_bytes)
        if is_lost or is_spelled:
            yield _vocabulary(f"the {side} side of the {name}", counts, usual)
    untagged = [Pair(pair.src.removeprefix(tag), pair.tgt) for pair in pairs]
    long = [pair for pair in untagged if len(WORD.findall(pair.src)) >= _MIN_WORDS_OF_OVERLAP]
    found = sum(map(training.has, long))
    if long and found >= 3 and found / len(long) >= _OVERLAP:
        yield Finding(
            "test-in-training",
            f"{found:,} of {len(long):,} pairs of the {name} are training pairs too",
            "its scores are too good: the model has seen the answers",
            f"remove these pairs from data.train, or name other held-out pairs in {key}",
        )


def _languages(
    name: str, key: str, lines: Sequence[list[str]], trained: Sequence[list[str]]
) -> Iterator[Finding]:
    """Yield a finding if the sides are swapped, or one is in another script or language than in training."""
    profiles = [_Profile(text) for text in trained]
    # of each side, by both profiles
    known = [[profile.share(text) for profile in profiles] for text in lines]
    scripts = [_letters(text) for text in trained]
    strays = [[_strays(_letters(text), own) for own in scripts] for text in lines]
    by_words = all(_is_swapped(known[side][side], known[side][1 - side]) for side in (0, 1))
    by_script = all(strays[side][side] > _STRAY_LETTERS > strays[side][1 - side] for side in (0, 1))
    if by_words or by_script:
        yield Finding(
            "swapped-sides",
            f"the source side of the {name} reads like the target side of the training text, and the other way round",
            "source and target are swapped",
            f"exchange src and tgt in {key} (or columns, for a table)",
        )
        return
    for side, word in enumerate(("source", "target")):
        if strays[side][side] > _STRAY_LETTERS:
            yield Finding(
                "script",
                f"{percent(strays[side][side])} of the letters on the {word} side of the {name} are of a script that "
                "the training text hardly has",
                "it is in another language than the training text",
                f"see that {key} names the right files",
            )
            continue
        usual, share = profiles[side].usual, known[side][side]
        if usual is not None and share is not None and usual >= _KNOWN and share < _FOREIGN * usual:
            yield Finding(
                "other-language",
                f"the {_FREQUENT} most frequent words of the training text make up {percent(share)} of the {word} side "
                f"of the {name}; of held-out training text, {percent(usual)}",
                "it is in another language than the training text",
                f"see that {key} names the right files",
            )


def _is_swapped(own: float | None, other: float | None) -> bool:
    """Return whether a text has more of the words that are frequent on the other side than of those on its own."""
    return own is not None and other is not None and other > 2 * own + 0.05


class _Profile:
    """The most frequent words of a text, or its characters if it has no spaces.

    Attributes:
        usual: their share in a part of the text that they were not counted in; None if it is too short.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        words = _words(lines)
        self._by_character = bool(words) and sum(map(len, words)) / len(words) > _LONG_WORD
        counted, held_out = lines[::2], lines[1::2]
        self._frequent = {unit for unit, _ in Counter(self._units(counted)).most_common(_FREQUENT)}
        self.usual = self.share(held_out)

    def share(self, lines: Sequence[str]) -> float | None:
        """Return the share of these words in a text, None if it is too short."""
        units = self._units(lines)
        return (
            sum(unit in self._frequent for unit in units) / len(units) if len(units) >= _MIN_WORDS else None
        )

    def _units(self, lines: Sequence[str]) -> list[str]:
        words = _words(lines)
        return [c for word in words for c in word] if self._by_character else words


def _words(lines: Iterable[str]) -> list[str]:
    """Return the words of lines in lower case, without punctuation and numbers."""
    text = "".join(
        c if c.isalpha() or unicodedata.category(c)[0] == "M" else " " for c in "\n".join(lines).casefold()
    )
    return text.split()


def _letters(lines: Iterable[str]) -> Counter[str]:
    """Return how often each script occurs: the first word of the Unicode names of letters."""
    characters = Counter("".join(lines))
    found: Counter[str] = Counter()
    for character, count in characters.items():
        if character.isalpha():
            found[unicodedata.name(character, "?").partition(" ")[0]] += count
    return found


def _strays(found: Counter[str], usual: Counter[str]) -> float:
    """Return the share of letters whose script makes up less than 1 % of the letters of another text."""
    if not usual.total() or not found.total():
        return 0.0
    strays = sum(count for script, count in found.items() if usual[script] < 0.01 * usual.total())
    return strays / found.total()
