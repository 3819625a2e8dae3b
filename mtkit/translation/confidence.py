"""Confidence: the probability that a word of a translation is right, and the share of a line that is.

What is right is told by a reference, aligned with the translation by the fewest insertions, deletions and substitutions
of words:

- A word is right if it is aligned with the same word of the reference. These are the OK and BAD tags of the shared
  tasks on quality estimation (Specia et al. 2018), without shifts; here case counts, since a user sees it too.
- Of a line, the confidence is the expected share of the alignment that is right: of the words of both sides, those
  aligned with each other counted once. A word that is missing counts like a wrong one. So it is the probability that
  a place of the line, picked at random, needs no edit; 1 minus it is close to the edit rate that sentence-level
  quality estimation predicts.

Both are logistic regressions on what the search knows anyway, fitted on validation pairs by `mtkit calibrate` and kept
beside the weights, in confidence.json. One reference is one translation of many, so good synonyms count as wrong:
confidences are lower than a reader's judgement, by as much as the references of the validation set are other than what
the model writes.

W words of a translation, F features, N rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtkit.checkpoint import MANIFEST_FILE, read_json
from mtkit.data.segmentation import Span
from mtkit.errors import DataError, StorageError
from mtkit.files import storage_errors, write_text
from mtkit.formatting import format_count
from mtkit.languages import UNSPACED
from mtkit.translation.logistic import EDGE, Array, Logistic, calibration_error
from mtkit.translation.model_folder import find_checkpoint

if TYPE_CHECKING:
    from mtkit.translation.assembly import SegmentLogProbs, Translation

_MIN_LINES = 100
"""Fewest lines that confidence is fitted on: with fewer, its parameters are mostly noise."""

_MARKS = (
    r"!-/:-@\[-`{-~\u00a1-\u00bf\u060c\u061b\u061f\u06d4\u0964\u0965\u2010-\u205e\u3001-\u3004\u3008-\u303f"
    r"\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
_LETTERS = rf"[^\s{_MARKS}{UNSPACED}]+"
_WORD = re.compile(rf"[{UNSPACED}]|{_LETTERS}(?:[-'’.,:/_@]{_LETTERS})*|\S")

_WORD_FEATURES = (
    "log-probability", "probability", "probability of the token before", "probability of the token after",
    "lowest log-probability of the three tokens before", "mean log-probability of the segment",
    "geometric mean probability of the segment", "log of the number of words", "punctuation",
)  # fmt: skip
_LINE_FEATURES = (
    "log-odds of the mean confidence of its words", "mean confidence of its words", "log of the length ratio",
    "log of the number of words",
)  # fmt: skip
_FORMAT = 1


def word_spans(text: str) -> list[Span]:
    """Return the words of a text: a mark of punctuation is a word, and so is each letter of a script without spaces.

    Apostrophes, hyphens, points and the like between letters or digits belong to the word: "don't", "3.5".
    """
    return [match.span() for match in _WORD.finditer(text)]


def right_words(hyp: Sequence[str], ref: Sequence[str]) -> tuple[list[bool], float]:
    """Return which words of a translation are right, and the share of its alignment with the reference that is.

    The share is 1 if both are empty.
    """
    distances = [list(range(len(ref) + 1))]
    for i, word in enumerate(hyp, 1):
        above, row = distances[-1], [i]
        for j, other in enumerate(ref, 1):
            row.append(min(above[j - 1] + (word != other), above[j] + 1, row[-1] + 1))
        distances.append(row)
    is_right, num_places = [False] * len(hyp), 0
    i, j = len(hyp), len(ref)
    while i or j:
        num_places += 1
        here = distances[i][j]
        if i and j and here == distances[i - 1][j - 1] + (hyp[i - 1] != ref[j - 1]):
            i, j = i - 1, j - 1
            is_right[i] = hyp[i] == ref[j]
        elif i and here == distances[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
    return is_right, sum(is_right) / num_places if num_places else 1.0


@dataclass(frozen=True)
class WordConfidence:
    """A word of a translation, and the probability that it is right.

    Attributes:
        text: the word.
        start: position of its first character in the translation.
        end: position after its last character.
        confidence: the probability.
    """

    text: str
    start: int
    end: int
    confidence: float


@dataclass(frozen=True)
class LineConfidence:
    """Confidence of a translation.

    Attributes:
        confidence: expected share of the line that is right.
        words: its words.
    """

    confidence: float
    words: tuple[WordConfidence, ...] = ()


@dataclass(frozen=True)
class FittedOn:
    """Data that confidence was fitted on, and its errors on data that it was not fitted on.

    Attributes:
        lines: number of validation pairs.
        words: number of words of their translations.
        right_words: share of these that are right.
        right_lines: mean share of a line that is right.
        word_error: calibration error of words, each predicted by the fit on other lines.
        line_error: calibration error of lines, each predicted by the fit on other lines.
    """

    lines: int
    words: int
    right_words: float
    right_lines: float
    word_error: float
    line_error: float


@dataclass(frozen=True)
class Confidence:
    """Tells the confidence of the translations of one model.

    Attributes:
        words: predicts whether a word is right.
        lines: predicts the share of a line that is right.
    """

    words: Logistic
    lines: Logistic

    def of(self, translation: Translation) -> LineConfidence:
        """Return the confidence of a translation, which must have its log-probabilities.

        It is 1 for the empty translation of an empty line, and 0 for a line that could not be translated.

        Raises:
            ValueError: If the translation lacks its log-probabilities.
        """
        if translation.fault is not None:
            return LineConfidence(0.0)
        if not translation.log_probs:
            if translation.text:
                how = "translate with TranslateOptions(keep_log_probs=True)"
                raise ValueError(f"no log-probabilities: {how}; samples and protected lines have none")
            return LineConfidence(1.0)
        spans, rows_WF = _word_features(translation)
        if not spans:
            return LineConfidence(EDGE)
        of_words_W = self.words.predict(rows_WF)
        [of_line] = self.lines.predict(_line_features(translation, of_words_W)[None]).tolist()
        words = (
            WordConfidence(translation.text[start:end], start, end, confidence)
            for (start, end), confidence in zip(spans, of_words_W.tolist(), strict=True)
        )
        return LineConfidence(of_line, tuple(words))

    def save(self, path: Path, fitted_on: FittedOn, ensemble: Sequence[Path] = ()) -> Path:
        """Write confidence beside the weights of a run or checkpoint folder, and return the path of the file.

        Args:
            path: the folder.
            fitted_on: what it was fitted on.
            ensemble: folders of the further models of an ensemble, each of which has a file of its own in the folder
                of the first model.

        Raises:
            StorageError: If it cannot be written.
        """
        file, digest = _file_of(path, ensemble)
        content = {"format": _FORMAT, "weights": digest, **asdict(self), "fitted_on": asdict(fitted_on)}
        write_text(file, json.dumps(content, indent=2) + "\n")
        return file

    @classmethod
    def load(cls, path: Path | str, ensemble: Sequence[Path | str] = ()) -> Confidence:
        """Load the confidence of a model or ensemble.

        Args:
            path: run or checkpoint folder.
            ensemble: folders of the further models of an ensemble.

        Raises:
            StorageError: If it was never fitted, was fitted for other weights, or is damaged.
        """
        file, digest = _file_of(Path(path), list(map(Path, ensemble)))
        hint = f"run `mtkit calibrate {path}`" + (" with the same `ensemble`" if ensemble else "")
        if not file.exists():
            what = "the confidence of this ensemble" if ensemble else "the model's confidence"
            raise StorageError(f"{what} is not calibrated", where=str(path), hint=hint)
        content = read_json(file)
        if content.get("weights") != digest:
            raise StorageError("made for other weights", where=str(file), hint=hint)
        try:
            if content["format"] != _FORMAT:
                raise ValueError("another format")
            words = _read_logistic(content["words"], _WORD_FEATURES)
            return cls(words, _read_logistic(content["lines"], _LINE_FEATURES))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StorageError("damaged, or of another version", where=str(file), hint=hint) from error


def fit_confidence(translations: Sequence[Translation], refs: Sequence[str]) -> tuple[Confidence, FittedOn]:
    """Fit confidence on translations and references of a validation set.

    The calibration errors are those of five-fold cross-validation, each fold being every fifth line.

    Args:
        translations: with log-probabilities.
        refs: a reference of each.

    Raises:
        DataError: If there are too few of them.
    """
    pairs = [(t, ref) for t, ref in zip(translations, refs, strict=True) if t.log_probs]
    if len(pairs) < _MIN_LINES:
        what = f"{format_count(len(pairs), 'line')} to calibrate on, but it takes {_MIN_LINES}"
        raise DataError(what, hint="name more pairs with `src` and `ref`")
    examples = [_Example.of(translation, ref) for translation, ref in pairs]
    confidence = _fit(examples)
    folds = [examples[i::5] for i in range(5)]
    words, lines = [], []
    for number, fold in enumerate(folds):
        of_rest = _fit([example for i, rest in enumerate(folds) if i != number for example in rest])
        for example in fold:
            of_words = of_rest.words.predict(example.rows_WF)
            words.append(of_words)
            lines.append(of_rest.lines.predict(_line_features(example.translation, of_words)[None]))
    outcomes = np.concatenate([example.is_right_W for fold in folds for example in fold])
    shares = np.array([example.share for fold in folds for example in fold])
    return confidence, FittedOn(
        lines=len(examples),
        words=len(outcomes),
        right_words=round(float(outcomes.mean()), 4) if len(outcomes) else 0.0,
        right_lines=round(float(shares.mean()), 4),
        word_error=round(calibration_error(np.concatenate(words), outcomes), 4),
        line_error=round(calibration_error(np.concatenate(lines), shares), 4),
    )


@dataclass(frozen=True)
class _Example:
    """A translation with what its reference tells about it."""

    translation: Translation
    rows_WF: Array
    is_right_W: Array
    share: float

    @classmethod
    def of(cls, translation: Translation, ref: str) -> _Example:
        """Compare a translation with a reference."""
        spans, rows_WF = _word_features(translation)
        hyp_words = [translation.text[slice(*span)] for span in spans]
        is_right, share = right_words(hyp_words, [ref[slice(*span)] for span in word_spans(ref)])
        return cls(translation, rows_WF, np.array(is_right, dtype=np.float64), share)


def _fit(examples: Sequence[_Example]) -> Confidence:
    """Fit the words first, then the lines, whose features come from the words."""
    rows, outcomes = (
        np.concatenate(x) for x in zip(*((e.rows_WF, e.is_right_W) for e in examples), strict=True)
    )
    words = Logistic.fit(_WORD_FEATURES, rows, outcomes)
    of_lines = [_line_features(e.translation, words.predict(e.rows_WF)) for e in examples]
    shares = np.array([e.share for e in examples])
    return Confidence(words, Logistic.fit(_LINE_FEATURES, np.array(of_lines), shares))


def _word_features(translation: Translation) -> tuple[list[Span], Array]:
    """Return the words of a translation, and their features [W, F]."""
    spans = word_spans(translation.text)
    rows, segments = [], [_SegmentTokens(segment) for segment in translation.log_probs]
    starts = [segment.start for segment in translation.log_probs]
    num_words = math.log(max(1, len(spans)))
    for start, end in spans:
        segment = segments[max(0, bisect_right(starts, start) - 1)]
        rows.append((*segment.features(start, end), num_words, float(not translation.text[start].isalnum())))
    return spans, np.array(rows, dtype=np.float64).reshape(len(rows), len(_WORD_FEATURES))


class _SegmentTokens:
    """Log-probabilities of a segment's tokens by their place in the text."""

    def __init__(self, segment: SegmentLogProbs) -> None:
        self.log_probs = segment.log_probs
        self.ends = [segment.start + end for end in accumulate(segment.lengths)]
        self.mean = sum(self.log_probs) / len(self.log_probs)

    def features(self, start: int, end: int) -> tuple[float, ...]:
        """Return the features of the word at these characters."""
        last = max(0, len(self.ends) - 1)
        i = min(last, bisect_right(self.ends, start))  # the first token that ends after the word has begun
        j = min(last, bisect_left(self.ends, end))  # the first token that ends with the word or after it
        own, before = sum(self.log_probs[i : j + 1]), self.log_probs[max(0, i - 3) : i]
        previous, following = before[-1] if before else 0.0, self.log_probs[j + 1]
        return (
            own, math.exp(own), math.exp(previous), math.exp(following), min(before, default=0.0),
            self.mean, math.exp(self.mean),
        )  # fmt: skip


def _line_features(translation: Translation, of_words_W: Array) -> Array:
    """Return the features [F] of a line, given the confidence of its words."""
    num_src = sum(segment.num_src_tokens for segment in translation.log_probs)
    num_tgt = sum(len(segment.lengths) for segment in translation.log_probs)
    mean = float(of_words_W.mean()) if len(of_words_W) else EDGE
    ratio, num_words = math.log((num_tgt + 1) / (num_src + 1)), math.log(len(of_words_W) + 1)
    return np.array([math.log(mean / (1 - mean)), mean, ratio, num_words])


def _file_of(path: Path, ensemble: Sequence[Path]) -> tuple[Path, str]:
    """Return the file of a model or ensemble, and a digest of the manifests, which hold those of the weights."""
    folders, digest = [find_checkpoint(each) for each in (path, *ensemble)], hashlib.sha256()
    for folder in folders:
        with storage_errors(folder / MANIFEST_FILE):
            digest.update((folder / MANIFEST_FILE).read_bytes())
    of_ensemble = f"-{digest.hexdigest()[:12]}" if ensemble else ""
    return folders[0] / f"confidence{of_ensemble}.json", digest.hexdigest()


def _read_logistic(content: Any, features: tuple[str, ...]) -> Logistic:
    """Return a logistic regression as JSON has it.

    Raises:
        ValueError: If it has other features, or a number is not finite.
        KeyError: If a field is missing.
        TypeError: If a field has another type.
    """
    found = Logistic(
        tuple(content["features"]), tuple(map(float, content["weights"])), float(content["bias"])
    )
    if found.features != features or len(found.weights) != len(features):
        raise ValueError("other features")
    if not all(map(math.isfinite, (*found.weights, found.bias))):
        raise ValueError("not a number")
    return found
