"""Format of the output of `mtkit translate`, and recognition of the options with which a line was written."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtkit.translation.assembly import Translation
    from mtkit.translation.confidence import LineConfidence
    from mtkit.translation.next_words import Alternative

_SCORE = r"-?\d+\.\d{6}"
_LINKS = r"(\d+-\d+( \d+-\d+)*)?"
_PATTERNS = {
    "--alternatives": re.compile(rf"\d+ \|\|\| .* \|\|\| {_SCORE} \|\|\| .*"),
    "--n-best": re.compile(rf"\d+ \|\|\| .* \|\|\| {_SCORE}"),
    "--scores": re.compile(rf"{_SCORE}\t.*"),
    "--json": re.compile(r'\{"text": ".*", "score": .*\}'),
    "--confidence": re.compile(r"[01]\.\d{4}\t.*"),
    "--alignment": re.compile(rf".* \|\|\| {_LINKS}|\d+ \|\|\| .* \|\|\| {_LINKS} \|\|\| {_SCORE}"),
}
"""Lines that each option of `mtkit translate` writes. Hardly any translation looks like that by chance."""


@dataclass(frozen=True)
class LineFormat:
    """Fields of an output line.

    Args:
        n_best: one line for each of several translations: `LINE ||| TEXT ||| SCORE`, or with alignment
            `LINE ||| TEXT ||| 0-0 1-2 ||| SCORE`.
        scores: score and tab before the text.
        confidence: confidence and tab before the text.
        json: a JSON object for each line, with `text` and `score`, and what the other fields ask for: `confidence` and
            `words`, `alignment`, `n_best`.
        alignment: ` ||| ` and the pairs of linked words, such as `0-0 1-2`, after the text. Without any link, as for an
            empty line, nothing follows ` ||| `, so that every line has the same fields.
    """

    n_best: bool = False
    scores: bool = False
    confidence: bool = False
    json: bool = False
    alignment: bool = False

    @property
    def has_numbers(self) -> bool:
        """Return whether an input line has several lines, which begin with its number."""
        return self.n_best and not self.json

    def format(
        self, number: int, translations: Sequence[Translation], confidence: LineConfidence | None = None
    ) -> str:
        """Return the output for one line of the input.

        Args:
            number: number of the input line, from 1.
            translations: its translations, best first.
            confidence: confidence of the best one, if the format has it.
        """
        if self.json:
            return json.dumps(self._object(translations, confidence), ensure_ascii=False) + "\n"
        if self.n_best:
            return "".join(f"{number} ||| {self._text(t)} ||| {t.score:.6f}\n" for t in translations)
        best = translations[0]
        if confidence is not None:
            return f"{confidence.confidence:.4f}\t{best.text}\n"
        score = f"{best.score:.6f}\t" if self.scores else ""
        return f"{score}{self._text(best)}\n"

    def _object(
        self, translations: Sequence[Translation], confidence: LineConfidence | None
    ) -> dict[str, object]:
        """Return the JSON object of an input line."""
        found = [
            {"text": translation.text, "score": round(translation.score, 6)}
            | ({"alignment": [list(link) for link in translation.links]} if self.alignment else {})
            for translation in translations
        ]
        line: dict[str, object] = dict(found[0])
        if confidence is not None:
            line["confidence"] = round(confidence.confidence, 4)
            line["words"] = [
                {
                    "text": word.text,
                    "start": word.start,
                    "end": word.end,
                    "confidence": round(word.confidence, 4),
                }
                for word in confidence.words
            ]
        if self.n_best:
            line["n_best"] = found
        return line

    def _text(self, translation: Translation) -> str:
        """Return the text of a translation, with its alignment if wanted."""
        if not self.alignment:
            return translation.text
        return f"{translation.text} ||| {' '.join(f'{s}-{t}' for s, t in translation.links)}"

    def difference(self, line: str) -> str | None:
        """Return how a line differs from this format, such as "with --scores"; None if it does not."""
        in_text = {
            "--n-best": self.n_best,
            "--scores": self.scores,
            "--confidence": self.confidence,
            "--alignment": self.alignment,
        }
        if self.json and _PATTERNS["--json"].fullmatch(line):
            keys = json.loads(line).keys()
            for option, is_wanted in in_text.items():
                if is_wanted != (option[2:].replace("-", "_") in keys):
                    return f"without {option}" if is_wanted else f"with {option}"
            return None
        wanted = {"--json": True} if self.json else in_text
        for option, pattern in _PATTERNS.items():
            if (found := pattern.fullmatch(line) is not None) != wanted.get(option, False):
                return f"with {option}" if found else f"without {option}"
        return None


def format_alternatives(number: int, alternatives: Sequence[Alternative]) -> str:
    """Return the output of --alternatives for one line of the input: `LINE ||| WORD ||| PROBABILITY ||| TEXT`."""
    return "".join(f"{number} ||| {a.word} ||| {a.probability:.6f} ||| {a.text}\n" for a in alternatives)
