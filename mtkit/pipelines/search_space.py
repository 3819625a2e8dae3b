"""Search space of a sweep: keys of the config with lists or ranges of values, and the trials drawn from it."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from mtkit.config.yaml_document import parse_value
from mtkit.errors import ConfigError

_RANGE = re.compile(r"([^.,/]|\d\.\d)+\.\.[^:]+(:log)?")
_MOST_TRIALS = 1000


@dataclass(frozen=True)
class Dimension:
    """Values of a key.

    Attributes:
        key: dotted name.
        values: the values as on the command line; of a range, its two ends.
        is_range: whether any number between the two is meant.
        is_log: whether the logarithm is uniform.
    """

    key: str
    values: tuple[str, ...]
    is_range: bool = False
    is_log: bool = False

    @classmethod
    def parse(cls, text: str) -> Dimension:
        """Parse `key=a,b,c`, `key=0.1..0.4` or `key=1e-4..1e-2:log`; commas in brackets and quotes do not separate.

        Raises:
            ConfigError: If it is none of these.
        """
        key, equals, given = text.partition("=")
        where = f"command line: {text}"
        if not equals or not key or not given:
            raise ConfigError(
                "expected key=value,value", where=where, hint="for example model.dropout=0.1,0.2,0.3"
            )
        if not _RANGE.fullmatch(given):
            values = _split(given)
            if "" in values or len(set(values)) < len(values):
                raise ConfigError("an empty or repeated value", where=where, hint="put commas in quotes")
            return cls(key, tuple(values))
        ends, log, _ = given.partition(":log")
        low, _, high = ends.partition("..")
        try:
            numbers = float(low), float(high)
        except ValueError:
            raise ConfigError(
                "the ends of a range are numbers", where=where, hint="key=1e-4..1e-2:log"
            ) from None
        if not numbers[0] < numbers[1] or (log and numbers[0] <= 0):
            hint = "the first one is lower, and with :log above 0"
            raise ConfigError("not the ends of a range", where=where, hint=hint)
        return cls(key, (low, high), is_range=True, is_log=bool(log))

    def draw(self, generator: random.Random) -> str:
        """Draw a value: an integer if both ends of a range are, else a number with three significant digits.

        It has more digits in a range so narrow that three do not tell its values apart.
        """
        if not self.is_range:
            return generator.choice(self.values)
        low, high = map(float, self.values)
        is_integer = all(isinstance(parse_value(end), int) for end in self.values)
        if is_integer and not self.is_log:
            return str(generator.randint(int(low), int(high)))
        if self.is_log:
            value = math.exp(generator.uniform(math.log(low), math.log(high)))
        else:
            value = generator.uniform(low, high)
        if is_integer:
            return str(min(int(high), max(int(low), round(value))))
        value = min(high, max(low, value))  # the exponential of a logarithm may lie just outside
        for digits in range(3, 17):
            text = f"{value:.{digits}g}"
            if low <= float(text) <= high and abs(float(text) - value) <= (high - low) / 200:
                return text
        return str(value)


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts]


def draw_trials(
    dimensions: Sequence[Dimension], num_samples: int | None, seed: int, *, shuffle: bool = False
) -> list[list[str]]:
    """Return the `key=value` of each trial: the whole grid, or random samples of the space, all different.

    Args:
        dimensions: keys and their values.
        num_samples: number of samples; None for the grid.
        seed: random seed.
        shuffle: whether the order of a grid is random, so that its beginning is a sample of it.

    Raises:
        ConfigError: If a grid has a range or too many points, or two dimensions the same key.
    """
    keys = [dimension.key for dimension in dimensions]
    repeated = next((key for key in keys if keys.count(key) > 1), None)
    if repeated is not None:
        raise ConfigError(
            "given twice", where=f"command line: {repeated}", hint="give all its values at once"
        )
    generator = random.Random(seed)
    ranged = next((dimension for dimension in dimensions if dimension.is_range), None)
    size = math.prod(len(dimension.values) for dimension in dimensions)
    if num_samples is None and ranged is not None:
        raise ConfigError("a range needs a number of samples", where=ranged.key, hint="set `samples`")
    if num_samples is None and size > _MOST_TRIALS:
        raise ConfigError(f"a grid of {size:,} trials", where="`samples`", hint="draw some of them at random")
    if ranged is None and (num_samples is None or num_samples >= size):
        trials = [tuple(values) for values in product(*(dimension.values for dimension in dimensions))]
        if shuffle:
            generator.shuffle(trials)
    else:
        assert num_samples is not None
        found: dict[tuple[str, ...], None] = {}
        for _ in range(100 * num_samples):
            if len(found) < num_samples:
                found[tuple(dimension.draw(generator) for dimension in dimensions)] = None
        trials = list(found)
    return [[f"{key}={value}" for key, value in zip(keys, values, strict=True)] for values in trials]
