"""The training state, and the detection of loss spikes."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from mtkit.training.state import FORMAT, SpikeDetector, TrainState, Window


def falling_losses(number: int) -> list[float]:
    """Return losses as in training: falling, with the noise of batches."""
    noise = np.random.default_rng(1).normal(0, 0.15, number)
    return [2 + 6 * 0.995**step + float(noise[step]) for step in range(number)]


def test_ordinary_losses_are_no_spike() -> None:
    watch = SpikeDetector()
    assert not any(watch.observe(loss, 4000) for loss in falling_losses(3000))


def test_one_bad_batch_is_no_spike_but_a_jump_that_stays_is() -> None:
    watch = SpikeDetector()
    losses = falling_losses(800)
    for loss in losses:
        watch.observe(loss, 4000)
    assert not watch.observe(losses[-1] + 0.6, 4000)
    jumped = [watch.observe(losses[-1] + 4, 4000) for _ in range(3)]
    assert any(jumped)


def test_a_left_over_batch_is_no_spike_but_a_jump_behind_it_is() -> None:
    """The mean over a hundredth of the targets varies ten times as much and is a hundredth of the evidence."""
    watch = SpikeDetector()
    noise = np.random.default_rng(1).normal(0, 1.5, 3000)
    spikes = [
        watch.observe(loss, 4000) or (step % 20 == 0 and watch.observe(loss + float(noise[step]), 40))
        for step, loss in enumerate(falling_losses(3000))
    ]
    assert not any(spikes)
    assert watch.mean == pytest.approx(2, abs=0.1)
    assert math.sqrt(watch.variance) == pytest.approx(0.15, rel=0.3)
    assert not watch.observe(20.0, 40)
    assert any(watch.observe(6.0, 4000) for _ in range(3))


def test_targets_weigh_as_updates_do() -> None:
    """If all updates are equal, the number of their targets does not matter."""
    one, many = SpikeDetector(), SpikeDetector()
    for loss in falling_losses(300):
        assert one.observe(loss, 1) == many.observe(loss, 5000)
    assert (one.mean, one.variance, one.present) == pytest.approx((many.mean, many.variance, many.present))


def test_a_watch_that_did_not_count_targets_goes_on() -> None:
    watch = SpikeDetector()
    for loss in falling_losses(300):
        watch.observe(loss, 4000)
    old = {key: value for key, value in asdict(watch).items() if key != "targets"}
    goes_on = SpikeDetector(**old)
    assert not goes_on.observe(watch.mean, 4000)
    assert goes_on.targets == 4000


def test_nothing_is_a_spike_before_the_usual_is_known() -> None:
    watch = SpikeDetector()
    assert not any(watch.observe(loss, 4000) for loss in [2.0] * 50 + [9.0] * 50)


def test_the_usual_is_the_mean_and_the_variance() -> None:
    watch = SpikeDetector()
    for loss in np.random.default_rng(2).normal(3, 0.2, 5000):
        watch.observe(float(loss), 4000)
    assert watch.mean == pytest.approx(3, abs=0.06)
    assert watch.variance == pytest.approx(0.04, rel=0.35)


def test_a_state_survives_json() -> None:
    state = TrainState(step=7, best=3.5, window=Window(loss=2.0, updates=3), scaler={"scale": 4.0})
    state.watch.observe(3.0, 4000)
    assert TrainState.from_dict(json.loads(json.dumps(state.as_dict()))) == state


@pytest.mark.parametrize("key", ["step", "epoch", "batch"])
def test_a_state_says_where_the_run_stands(key: str) -> None:
    values = TrainState().as_dict()
    del values[key]
    with pytest.raises(KeyError):
        TrainState.from_dict(values)


def test_states_of_other_versions_are_read() -> None:
    """Missing fields get their defaults; fields of later versions are ignored, in nested objects too."""
    before = TrainState(step=3, best=3.5).as_dict()
    for key in ("mtkit", "format", "best_loss", "watch"):
        del before[key]
    del before["window"]["norm"]
    assert TrainState.from_dict(before) == TrainState(step=3, best=3.5)
    later = TrainState(step=3).as_dict() | {"mtkit": "7.0", "more": 1}
    later["window"]["more"] = 2
    assert TrainState.from_dict(later) == TrainState(step=3)
    with pytest.raises(ValueError, match=r"written by mtkit 7\.0, in a newer format"):
        TrainState.from_dict(later | {"format": FORMAT + 1})
