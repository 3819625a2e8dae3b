"""Stages of pipelines that train and translate."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from mtkit import load_config
from mtkit.pipelines import Context, Effort
from mtkit.pipelines.trainings import train, training, training_effort

QUIET = Context(Console(quiet=True))


def test_a_stage_that_trains(config: Path) -> None:
    loaded = load_config(
        config, ["training.max_steps=4", "training.warmup_steps=0", "validation.every_steps=2"]
    )
    stage = training("only", loaded)
    assert stage.outputs == (Path(loaded.run),)
    result = train(stage.settings, QUIET)
    assert (result["step"], result["ended"]) == (4, "step 4 is the last")
    assert (Path(loaded.run) / "results.json").is_file()
    assert train(stage.settings, QUIET)["step"] == 4  # what is trained is not trained again


def test_the_effort_of_a_training_is_what_limits_it(config: Path) -> None:
    assert training_effort(load_config(config)) == Effort("updates", 40)
    unlimited = load_config(config, ["training.max_steps=null", "training.max_epochs=3"])
    assert training_effort(unlimited) == Effort("epochs", 3)
