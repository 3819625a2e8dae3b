"""Learning rates against formulas written by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from mtkit.config.sections import TrainingConfig
from mtkit.training.schedule import decay_progress, learning_rate, low_peak_warning

SCHEDULES = ["inverse_sqrt", "noam", "linear", "cosine", "constant"]


def training(schedule: str, **keys: Any) -> TrainingConfig:
    defaults = {"learning_rate": 0.004, "warmup_steps": 100, "max_steps": 1000}
    return TrainingConfig(schedule=schedule, **(defaults | keys))


def rates(config: TrainingConfig, d_model: int = 64) -> list[float]:
    """Return the learning rates of the steps 1 ... 1200."""
    return [learning_rate(step, config, d_model) for step in range(1, 1201)]


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "linear", "cosine", "constant"])
def test_warm_up_is_linear(schedule: str) -> None:
    config = training(schedule)
    assert rates(config)[:100] == pytest.approx([0.004 * step / 100 for step in range(1, 101)])
    assert learning_rate(100, config, 64) == 0.004


def test_inverse_square_root() -> None:
    assert rates(training("inverse_sqrt"))[100:] == pytest.approx(
        [0.004 * 10 / math.sqrt(step) for step in range(101, 1201)]
    )
    assert learning_rate(400, training("inverse_sqrt"), 64) == pytest.approx(0.002)


@pytest.mark.parametrize(("d_model", "warmup"), [(64, 100), (512, 4000)])
def test_noam_follows_the_formula_of_the_paper(d_model: int, warmup: int) -> None:
    config = training("noam", learning_rate=2.0, warmup_steps=warmup, max_steps=None)
    for step in (1, 2, 50, 99, 100, 101, 999, 3999, 4000, 4001, 100_000):
        formula = 2.0 * d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert learning_rate(step, config, d_model) == pytest.approx(formula, rel=1e-12)


def test_noam_is_inverse_square_root_with_another_peak() -> None:
    peak = 2.0 * (64 * 100) ** -0.5
    noam, ours = training("noam", learning_rate=2.0), training("inverse_sqrt", learning_rate=peak)
    assert rates(noam) == pytest.approx(rates(ours))


@pytest.mark.parametrize("low", [0.0, 0.001])
def test_linear(low: float) -> None:
    expected = [0.004 - (0.004 - low) * (step - 100) / 900 for step in range(101, 1001)]
    assert rates(training("linear", min_learning_rate=low))[100:] == pytest.approx(expected + [low] * 200)


@pytest.mark.parametrize("low", [0.0, 0.001])
def test_cosine(low: float) -> None:
    expected = [
        low + 0.5 * (0.004 - low) * (1 + math.cos(math.pi * (step - 100) / 900)) for step in range(101, 1001)
    ]
    assert rates(training("cosine", min_learning_rate=low))[100:] == pytest.approx(expected + [low] * 200)
    assert learning_rate(550, training("cosine", min_learning_rate=low), 64) == pytest.approx(
        (0.004 + low) / 2
    )


def test_constant() -> None:
    assert set(rates(training("constant"))[99:]) == {0.004}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rates_rise_until_the_end_of_the_warm_up_then_fall_continuously(schedule: str) -> None:
    all_rates = rates(training(schedule))
    peak = all_rates[99]
    steps = [(b - a) / peak for a, b in itertools.pairwise(all_rates)]
    assert max(map(abs, steps)) <= 0.0101  # a warm-up step is the largest
    assert all(step > 0 for step in steps[:99])
    assert all(step <= 1e-12 for step in steps[99:])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warm_up_the_first_step_is_at_the_peak(schedule: str) -> None:
    config = training(schedule, warmup_steps=0)
    peak = 0.004 / 8 if schedule == "noam" else 0.004
    assert learning_rate(1, config, 64) == peak
    assert schedule == "noam" or learning_rate(1, training(schedule, warmup_steps=0, max_steps=1), 64) == peak
    all_rates = rates(config)
    assert all(b <= a + 1e-15 for a, b in itertools.pairwise(all_rates))
    assert all(rate >= 0 for rate in all_rates)


def test_a_warm_up_of_one_step() -> None:
    for schedule in SCHEDULES:
        assert learning_rate(1, training(schedule, warmup_steps=1), 1) == pytest.approx(0.004)


def test_progress_ends_at_one() -> None:
    config = training("linear")
    assert [decay_progress(step, config) for step in (100, 550, 1000, 5000)] == [0.0, 0.5, 1.0, 1.0]


def test_default_factor_of_noam() -> None:
    """The default factor is 2.0, as in the paper's code; a given learning rate is used as it is."""
    config = TrainingConfig(schedule="noam", warmup_steps=4000)
    assert config.learning_rate == 2.0
    assert max(learning_rate(step, config, 512) for step in (3999, 4000, 4001)) == pytest.approx(
        1.4e-3, rel=0.01
    )
    assert [TrainingConfig(schedule=other).learning_rate for other in ("inverse_sqrt", "constant")] == [
        0.001
    ] * 2
    assert TrainingConfig(schedule="noam", learning_rate=0.001).learning_rate == 0.001


@pytest.mark.parametrize(
    ("keys", "peak"),
    [
        ({"schedule": "noam", "learning_rate": 0.001, "warmup_steps": 4000}, "7.0e-07"),
        ({"schedule": "noam", "learning_rate": 0.001, "warmup_steps": 0}, "4.4e-05"),
        ({"schedule": "noam", "learning_rate": 0.5}, None),
        ({"schedule": "noam"}, None),
        ({"schedule": "inverse_sqrt", "learning_rate": 1e-7}, None),
    ],
)
def test_a_learning_rate_given_as_the_factor_of_noam_is_warned_about(
    keys: dict[str, Any], peak: str | None
) -> None:
    warning = low_peak_warning(TrainingConfig(**keys), 512)
    assert (warning is None) == (peak is None)
    assert peak is None or (warning is not None and peak in warning and "usually 2.0" in warning)
