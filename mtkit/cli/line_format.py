"""How the translations of a line are written, and by which options an output was written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtkit.translation.assembly import Translation

SCORE = r"-?\d+\.\d{6}"
_LINKS = r"(\d+-\d+( \d+-\d+)*)?"
_WRITTEN_WITH = {
    "--alternatives": re.compile(rf"\d+ \|\|\| .* \|\|\| {SCORE} \|\|\| .*"),
    "--n-best": re.compile(rf"\d+ \|\|\| .* \|\|\| {SCORE}"),
    "--scores": re.compile(rf"{SCORE}\t.*"),
    "--alignment": re.compile(rf".* \|\|\| {_LINKS}|\d+ \|\|\| .* \|\|\| {_LINKS} \|\|\| {SCORE}"),
}
"""What the lines are like that an option of `mtkit translate` asks for; hardly a translation is like that by itself."""


@dataclass(frozen=True)
class LineFormat:
    """What a line of the output holds.

    Args:
        n_best: several translations of each line of the input, a line for each: `LINE ||| TEXT ||| SCORE`, with the
            alignment `LINE ||| TEXT ||| 0-0 1-2 ||| SCORE`.
        scores: score and tab before the text.
        alignment: ` ||| ` and the linked words, such as `0-0 1-2`, behind the text. A line without links, as that
            of an empty text, has nothing behind ` ||| `, so that every line has the same fields.
    """

    n_best: bool = False
    scores: bool = False
    alignment: bool = False

    def lines(self, number: int, translations: Sequence[Translation]) -> str:
        """The lines of the translations, best first, of line `number` of the input (from 1)."""
        if self.n_best:
            return "".join(f"{number} ||| {self._text(t)} ||| {t.score:.6f}\n" for t in translations)
        best = translations[0]
        score = f"{best.score:.6f}\t" if self.scores else ""
        return f"{score}{self._text(best)}\n"

    def _text(self, translation: Translation) -> str:
        """With the links, if they are asked for."""
        if not self.alignment:
            return translation.text
        return f"{translation.text} ||| {' '.join(f'{s}-{t}' for s, t in translation.links)}"

    def difference(self, line: str) -> str | None:
        """How a line was written that is not of this format, such as "with --scores"; None if it may be of this."""
        asked_for = {"--n-best": self.n_best, "--scores": self.scores, "--alignment": self.alignment}
        for option, pattern in _WRITTEN_WITH.items():
            if (found := pattern.fullmatch(line) is not None) != asked_for.get(option, False):
                return f"with {option}" if found else f"without {option}"
        return None
