"""Stages of pipelines that train and translate."""

from __future__ import annotations

from pathlib import Path

from mtkit import load_config
from mtkit.pipelines import Effort
from mtkit.pipelines.trainings import training_effort


def test_the_effort_of_a_training_is_what_limits_it(config: Path) -> None:
    assert training_effort(load_config(config)) == Effort("updates", 40)
    unlimited = load_config(config, ["training.max_steps=null", "training.max_epochs=3"])
    assert training_effort(unlimited) == Effort("epochs", 3)
