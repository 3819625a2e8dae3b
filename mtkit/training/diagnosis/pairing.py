"""Findings in how probable the model finds targets with their own source, and with the source of another pair.

For each target the log-probability given its own source is compared with those given sources of other pairs. In the
share of comparisons that its own source wins, neither the length of the target nor its words play a role: 0.5 is
chance, and a model that translates comes near 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mtkit.data.readers import Pair
from mtkit.formatting import format_count
from mtkit.training.diagnosis.finding import Finding, percent

_NUM_TARGETS, _NUM_OTHERS = 32, 6
_MIN_TARGETS = 12
_USES_SOURCE, _BY_CHANCE, _GAP = 0.8, 0.62, 0.2
"""Shares of won comparisons: of a model that translates, of chance with some luck, and between the two."""
_MAX_CHARACTERS = 400

Score = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Log-probability of each target, given its source."""


@dataclass(frozen=True)
class Pairing:
    """Measure of how well sources and targets belong together, for the model.

    Attributes:
        wins: share of comparisons that a target's own source wins.
        shift: number of lines by which targets and sources have shifted, if that makes them fit; else 0.
        num_targets: targets that were compared.
    """

    wins: float
    shift: int
    num_targets: int


def measure_pairing(pairs: Sequence[Pair], score: Score) -> Pairing | None:
    """Compare targets with their own and other sources; None if there are too few pairs.

    Args:
        pairs: consecutive pairs of a corpus; the first ones that are neither empty nor long are taken.
        score: scores pairs with the model.
    """
    # positions are kept, so that lines that have shifted can be found
    fits = [all(side.strip() and len(side) <= _MAX_CHARACTERS for side in pair) for pair in pairs]
    chosen = [i for i, fit in enumerate(fits) if fit][:_NUM_TARGETS]
    if len(chosen) < _MIN_TARGETS:
        return None
    step = max(1, len(chosen) // (_NUM_OTHERS + 3))
    offsets = [3 + step * k for k in range(_NUM_OTHERS)]
    sources, targets = [], []
    for place, i in enumerate(chosen):
        others = [chosen[(place + offset) % len(chosen)] for offset in offsets]
        near = [i + d if 0 <= i + d < len(pairs) and fits[i + d] else i for d in (-1, 1)]
        for j in (i, *others, *near):
            sources.append(pairs[j].src)
            targets.append(pairs[i].tgt)
    scores = list(score(sources, targets))
    size = 1 + _NUM_OTHERS + 2
    rows = [scores[start : start + size] for start in range(0, len(scores), size)]

    def wins(own: int) -> float:
        rounds = [(row[own], other) for row in rows for other in row[1 : 1 + _NUM_OTHERS]]
        return sum((mine > other) + 0.5 * (mine == other) for mine, other in rounds) / len(rounds)

    before, after = wins(1 + _NUM_OTHERS), wins(2 + _NUM_OTHERS)
    shift = 0
    if max(before, after) >= _USES_SOURCE and wins(0) <= _BY_CHANCE:
        shift = -1 if before > after else 1
    return Pairing(wins(0), shift, len(chosen))


def find_in_pairing(training: Pairing | None, valid: Pairing | None, num_updates: int) -> Iterator[Finding]:
    """Yield a finding if the model does not use the source, or if only validation pairs do not fit together.

    Args:
        training: training pairs.
        valid: validation pairs.
        num_updates: updates of the run.
    """
    if training is not None and training.wins <= _BY_CHANCE:
        yield Finding(
            "source-ignored",
            f"given its own source, a training target is more probable than given another in {percent(training.wins)} "
            f"of {training.num_targets * _NUM_OTHERS:,} comparisons; half would be chance",
            f"after {format_count(num_updates, 'update')} the model does not use the source: sources and targets do "
            "not belong together (one file is sorted, shuffled or has lost lines), or it has not begun to learn",
            "see that line n of the source is translated by line n of the target in data.train; then train longer, "
            "with training.learning_rate and training.warmup_steps as in configs/small.yaml",
        )
    elif training is not None and valid is not None and valid.wins <= min(_BY_CHANCE, training.wins - _GAP):
        where = {-1: "the source one line above it", 1: "the source one line below it"}
        shifted = f"; it fits {where[valid.shift]}" if valid.shift else ""
        yield Finding(
            "misaligned-validation",
            f"given its own source, a validation target is more probable than given another in {percent(valid.wins)} "
            f"of the comparisons, a training target in {percent(training.wins)}{shifted}",
            "source and target of the validation pairs do not belong together: one file is shuffled or has lost "
            "lines. Or those of the training pairs do not, and the model has learned them by heart",
            "see that line n of the source is translated by line n of the target in data.valid, and in data.train",
        )
