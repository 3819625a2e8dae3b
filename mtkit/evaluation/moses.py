"""BLEU as much of the literature computes it: of lower-cased text that Moses' scripts tokenized.

Both sides are lower-cased, normalized by `normalize-punctuation.perl` and tokenized by `tokenizer.perl`, in the form
of sacremoses and in the order of Multi30k's own preprocessing (Elliott et al. 2016), whose files are called
`lc.norm.tok`. Such numbers can be compared with published ones of the same form and with no others.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

from sacrebleu import BLEU

from mtkit.errors import ConfigError
from mtkit.languages import short_code
from mtkit.packages import import_package

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Signature
    from sacrebleu.metrics.bleu import BLEUScore

_CACHED_SENTENCES = 1 << 16
"""Prepared sentences that are kept: references are prepared again for each system."""


class MosesBleu(BLEU):
    """sacreBLEU's BLEU, without its own tokenizer, of text in Moses' form.

    Args:
        language: code of the language, whose rules Moses has for abbreviations, quotes and apostrophes. Those of a
            language that it does not know are those of English.
        effective_order: see `mtkit.evaluation.metrics.build_metrics`.

    Raises:
        ConfigError: If sacremoses is not installed, or no language is given.
    """

    def __init__(self, language: str | None, effective_order: bool = False) -> None:
        if not language:
            raise ConfigError(
                "bleu-moses needs the target language", hint="its rules differ from language to language"
            )
        sacremoses = import_package("sacremoses", "pip install 'mtkit[evaluate]'")
        self.language = short_code(language)
        normalizer = sacremoses.MosesPunctNormalizer(self.language)
        tokenizer = sacremoses.MosesTokenizer(self.language)

        @lru_cache(_CACHED_SENTENCES)
        def prepare(text: str) -> str:
            # a rule of the script sees the line end
            normalized: str = normalizer.normalize(text.lower() + "\n")
            return str(tokenizer.tokenize(normalized, return_str=True))

        self.prepare = prepare
        super().__init__(lowercase=True, tokenize="none", force=True, effective_order=effective_order)

    def _preprocess_segment(self, sent: str) -> str:
        return self.prepare(sent.rstrip())

    def _compute_score_from_stats(self, stats: list[int]) -> BLEUScore:
        score = super()._compute_score_from_stats(stats)
        score.name = "BLEU-Moses"
        return score

    def get_signature(self) -> Signature:
        """Return sacreBLEU's signature (`tok:none`) and what was done to the text before."""
        signature = super().get_signature()
        signature.update("moses", f"lc.norm.tok.{self.language}")
        signature.update("sacremoses", version("sacremoses"))
        return signature
