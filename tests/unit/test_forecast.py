"""Estimates and warnings of `mtkit check`."""

from __future__ import annotations

import pytest

from mtkit.config.loading import parse_config
from mtkit.config.sections import Config
from mtkit.training.forecast import RunSize, Speed, find_problems, forecast

SPEED = Speed(update_seconds=0.5, num_timed=5, validation_seconds=4.0)
GOOD = RunSize(num_pairs=29_000, num_valid_pairs=1014, updates_per_epoch=200, num_updates=4000)


def config(**sections: dict[str, object]) -> Config:
    pairs = [{"demo": "en-de", "pairs": 10}]
    data = {"src": "en", "tgt": "de", "train": pairs, "valid": pairs}
    return parse_config({"run": "x", "data": data, **sections})


def test_forecast_of_a_new_run() -> None:
    assert dict(forecast(config(), GOOD, SPEED)) == {
        "epochs": "4,000 updates are 20.0 epochs of 200 updates",
        "time": "about 33 min 36 s on this machine, without test sets: 4,000 updates of 0.5 s (median of 5), "
        "4 validations of 4 s (estimated)",
    }


def test_a_resumed_run_has_less_left() -> None:
    facts = dict(forecast(config(), GOOD, SPEED, num_done=2500))
    assert facts["epochs"].endswith(" of 200 updates, 2,500 are done")
    assert facts["time"].startswith(
        "about 12 min 38 s on this machine, without test sets: 1,500 updates of 0.5 s"
    )
    assert "2 validations" in facts["time"]


def test_a_time_limit_is_the_longest() -> None:
    limited = config(training={"time_limit_minutes": 3, "max_steps": 100_000})
    time = dict(forecast(limited, GOOD, SPEED))["time"]
    assert time.startswith("about 3 min 04 s ")  # and the last validation
    assert "4 validations of 120 s" in dict(forecast(limited, GOOD, Speed(0.5, 5, 120.0)))["time"]


def test_a_good_config_has_no_problems() -> None:
    assert list(find_problems(config(), GOOD, SPEED)) == []


@pytest.mark.parametrize(
    ("size", "sections", "parts"),
    [
        (RunSize(200, 1014, 2, 100_000), {"validation": {"patience": 5}},
         ["trained on 200 pairs hardly generalizes", "on 200 pairs are 50,000 epochs: the model memorizes"]),
        (RunSize(29_000, 1014, 200, 100_000), {}, ["no early stopping: all 500 epochs are trained"]),
        (RunSize(29_000, 1014, 200, 100_000), {"validation": {"patience": 5}}, []),
        (RunSize(29_000, 0, 200, 4000), {}, ["no validation pairs: the last checkpoint counts as the best"]),
        (RunSize(29_000, 24, 200, 4000), {}, ["scores of 24 validation pairs are mostly noise"]),
        (RunSize(29_000, 1014, 200, 1000), {"training": {"warmup_steps": 10}}, ["only the last update is validated"]),
        (RunSize(29_000, 1014, 200, 900), {"validation": {"every_steps": 100}}, ["ends before the learning rate is"]),
        (GOOD, {"training": {"minimum_risk": {}}}, ["minimum-risk training of random weights"]),
        (GOOD, {"validation": {"every_steps": 7}}, ["validations take longer than the updates between them"]),
    ],
)  # fmt: skip
def test_problems(size: RunSize, sections: dict[str, dict[str, object]], parts: list[str]) -> None:
    found = list(find_problems(config(**sections), size, SPEED))
    assert len(found) == len(parts)
    for text, part in zip(found, parts, strict=True):
        assert part in text
