"""Robustness of a trained model, measured on a few changed lines of a test set at the end of its training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtkit.config.sections import Config
from mtkit.formatting import format_count, format_duration
from mtkit.training.validation import EvalSet
from mtkit.translation.robustness import CLEAN, Copy, CopyResult, make_copies, measure, sample_evenly
from mtkit.translation.segments import Request
from mtkit.translation.translator import Translator

_KINDS = ("all capitals", "title case", "no final punctuation", "typos", "single words")
_NUM_LINES, _MIN_LINES = 200, 100
"""Lines that are changed; fewer than 100 would say little."""
_MAX_SECONDS, _MAX_SHARE_OF_TIME = 60.0, 0.02
"""Longest that this may take, in seconds or as a share of the training, whichever is longer."""


@dataclass(frozen=True)
class Robustness:
    """Results of changed lines of a test set.

    Attributes:
        copies: result of each copy, the clean one first; empty if nothing was measured.
        reason: why nothing was measured.
        left_out: why kinds of copies are left out.
    """

    copies: list[CopyResult] = field(default_factory=list)
    reason: str = ""
    left_out: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for results.json."""
        if not self.copies:
            return {"not_measured": self.reason}
        copies = [copy.as_dict(self.copies[0]) for copy in self.copies]
        return {"copies": copies, "left_out": self.left_out}

    def lines(self) -> Iterator[str]:
        """Yield what is told when it has been measured, line by line."""
        if not self.copies:
            return
        yield f"robustness, {format_count(self.copies[0].num_lines, 'line')} of the first test set, changed:"
        for copy in self.copies[1:]:
            fields = copy.as_dict(self.copies[0])
            parts = [f"{score['name']} {score['difference']:+.2f}" for score in fields["scores"]]
            parts += [
                f"{share.part:,} {name.replace('_', ' ')}"
                for name, share in copy.faults.items()
                if share.part
            ]
            yield f"    {copy.kind}: {', '.join(parts) or 'no faults'}"


def measure_robustness(
    test: EvalSet,
    hyps: Sequence[str],
    seconds: float,
    training_seconds: float,
    translator: Translator,
    config: Config,
    metrics: Sequence[str],
) -> Robustness:
    """Translate a few lines of a test set in capitals, with typos and so on; nothing if that would take long.

    Args:
        test: the test set.
        hyps: translations of its lines as they are.
        seconds: how long these took.
        training_seconds: how long the training took.
        translator: translates with the trained weights.
        config: config of the run.
        metrics: names of metrics.
    """
    num_lines = len(hyps)
    if num_lines < _MIN_LINES:
        return Robustness(reason=f"the test set has fewer than {_MIN_LINES} lines")
    expected = seconds / num_lines * min(num_lines, _NUM_LINES) * len(_KINDS)
    if expected > max(_MAX_SECONDS, _MAX_SHARE_OF_TIME * training_seconds):
        return Robustness(reason=f"it would have taken about {format_duration(expected)}")
    chosen = sample_evenly(range(num_lines), _NUM_LINES)
    requests = test.requests()
    srcs, refs = [requests[line].text for line in chosen], [[test.tgts[line] for line in chosen]]
    copies, left_out = make_copies(srcs, refs, _KINDS, max_words=_NUM_LINES)

    def translate(copy: Copy) -> list[str]:
        if copy.kind == CLEAN:
            return [hyps[line] for line in chosen]
        changed = [Request(src, tag=test.tag) for src in copy.srcs]
        return [translation.text for translation in translator.translate(changed)]

    tokenize, tgt = config.validation.bleu_tokenizer, config.data.tgt
    results = [measure(copy, translate(copy), metrics, tokenize=tokenize, tgt=tgt) for copy in copies]
    return Robustness(results, left_out=left_out)
