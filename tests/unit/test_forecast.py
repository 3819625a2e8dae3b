"""Estimates and warnings of `mtkit check`."""

from __future__ import annotations

import pytest

from mtkit.config.loading import parse_config
from mtkit.config.sections import Config
from mtkit.training.forecast import Extent, Pace, in_words, objections

PACE = Pace(update=0.5, num_updates=5, validation=4.0)
GOOD = Extent(pairs=29_000, valid_pairs=1014, epoch=200, updates=4000)


def config(**sections: dict[str, object]) -> Config:
    pairs = [{"demo": "en-de", "pairs": 10}]
    data = {"src": "en", "tgt": "de", "train": pairs, "valid": pairs}
    return parse_config({"run": "x", "data": data, **sections})


def test_in_words() -> None:
    assert dict(in_words(config(), GOOD, PACE)) == {
        "epochs": "4,000 updates are 20.0 epochs of 200 updates",
        "time": "about 33 min 36 s on this machine: 4,000 updates of 0.5 s (median of 5 ordinary ones), "
        "4 validations of 4 s (judged by a part); test sets not counted",
    }


def test_a_run_that_goes_on_has_less_before_it() -> None:
    words = dict(in_words(config(), GOOD, PACE, num_done=2500))
    assert words["epochs"].endswith(" of 200 updates, 2,500 are done")
    assert words["time"].startswith("about 12 min 38 s on this machine: 1,500 updates of 0.5 s")
    assert "2 validations" in words["time"]


def test_a_time_limit_is_the_longest() -> None:
    limited = config(training={"time_limit_minutes": 3, "max_steps": 100_000})
    assert dict(in_words(limited, GOOD, PACE))["time"].startswith("about 3 min 00 s ")


def test_a_good_config_meets_no_objection() -> None:
    assert list(objections(config(), GOOD, PACE)) == []


@pytest.mark.parametrize(
    ("extent", "sections", "parts"),
    [
        (Extent(200, 1014, 2, 100_000), {"validation": {"patience": 5}},
         ["200 training pairs teach hardly more", "see each of them 50,000 times: they will be known by heart"]),
        (Extent(29_000, 1014, 200, 100_000), {}, ["no early stop: all 500 epochs are trained"]),
        (Extent(29_000, 1014, 200, 100_000), {"validation": {"patience": 5}}, []),
        (Extent(29_000, 0, 200, 4000), {}, ["no validation pairs: the last checkpoint counts as the best"]),
        (Extent(29_000, 24, 200, 4000), {}, ["scores of 24 validation pairs are mostly chance"]),
        (Extent(29_000, 1014, 200, 1000), {"training": {"warmup_steps": 10}}, ["only the last update is validated"]),
        (Extent(29_000, 1014, 200, 900), {"validation": {"every_steps": 100}}, ["before its learning rate has risen"]),
        (GOOD, {"validation": {"every_steps": 7}}, ["validations take longer than the updates between them"]),
    ],
)  # fmt: skip
def test_objections(extent: Extent, sections: dict[str, dict[str, object]], parts: list[str]) -> None:
    found = list(objections(config(**sections), extent, PACE))
    assert len(found) == len(parts)
    for text, part in zip(found, parts, strict=True):
        assert part in text
