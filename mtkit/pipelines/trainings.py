"""Stage that trains a model. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtkit.config.loading import AUTO, config_to_dict, parse_config
from mtkit.config.sections import Config
from mtkit.data.sources import Split, open_sources
from mtkit.errors import ConfigError, DataError
from mtkit.pipelines.stages import Context, Effort, Settings, Stage


def training(name: str, config: Config, inputs: tuple[Path, ...] = (), choices: Sequence[str] = ()) -> Stage:
    """Return a stage that trains in the run folder of a config, as `mtkit train` does, or resumes there.

    Its result has `step`, `best`, `best_step` and `ended`, as in results.json, which has the scores of the test sets.

    Args:
        name: name of the stage.
        config: config of the run.
        inputs: files that it reads. Those of its corpora need not be among them: a run is not resumed with others.
        choices: what a preset chose for the config, and why.
    """
    settings = {"config": training_values(config), **({"choices": list(choices)} if choices else {})}
    return Stage(name, train, settings, training_effort(config), inputs, (Path(config.run),))


def training_values(config: Config) -> dict[str, Any]:
    """Return a config as `config_to_dict` does, to be trained with after `parse_config`.

    With `init`, the sections that come from the initial model have only the keys that are set: the others would count
    as set too, and be refused, or replace those of the model.
    """
    values = config_to_dict(config)
    if config.init is not None:
        for name in ("tokenizer", "model", "decoding"):
            values[name] = getattr(config, name).model_dump(exclude_unset=True)
    return values


def check_training(config: Config) -> None:
    """Check a training on pairs that are still to be made, before hours are spent on making them.

    Raises:
        ConfigError: If a source needs a package that is not installed, or the schedule is to end with a time limit or
            with epochs.
        DataError: If a file is missing that it reads beside its pairs.
    """
    check_end(config)
    splits: tuple[Split, ...] = ("valid", "test")
    for split in splits:
        open_sources(getattr(config.data, split), config.data, split)
    tokenizer = config.tokenizer
    for path in filter(None, (tokenizer.model, tokenizer.src_model, tokenizer.tgt_model)):
        if not Path(path).expanduser().is_file():
            raise DataError(
                "no such file", where=path, hint="the config names it as a tokenizer: check the path"
            )


def check_end(config: Config) -> None:
    """Check that the schedule ends where the config says: pipelines plan before updates are timed or pairs counted.

    Raises:
        ConfigError: If it is to end with a time limit, or with the epochs of a named preset.
    """
    if config.training.ends_with_time:
        what = "the schedule needs to know where training ends"
        hint = "set it; training.time_limit_minutes may end a training before"
        raise ConfigError(what, where="training.max_steps", hint=hint)
    # a pipeline hands all values on as set, the updates of a preset too; auto's are an estimate of the epochs
    if config.fits_to_epochs and config.preset != AUTO:
        what = f"preset {config.preset} would end with its own updates, not with those of training.max_epochs"
        raise ConfigError(what, where="training.max_steps", hint="set it; training.max_epochs may end before")


def training_effort(config: Config) -> Effort:
    """Return the effort of a training in the unit of its limit: updates, epochs or minutes."""
    limits = config.training
    if limits.step_limit is not None:
        return Effort("updates", limits.step_limit)
    if limits.max_epochs is not None:
        return Effort("epochs", limits.max_epochs)
    return Effort("minutes", limits.time_limit_minutes or 1)


def train(settings: Settings, context: Context) -> dict[str, Any]:
    """Train the model of `settings["config"]`, or resume its training; to the end, or to the update `stop_at`.

    Raises:
        MtkitError: As `mtkit.training.run.train` does.
        Interrupted: If a signal stops it; the run is saved first.
    """
    from mtkit.interop.initial import find_model
    from mtkit.training.run import train as run_training

    config = parse_config(settings["config"])
    result = run_training(
        config,
        fresh=context.fresh,
        console=context.console,
        find_model=find_model,
        stop_at=settings.get("stop_at"),
        choices=settings.get("choices", ()),
    )
    return {
        "step": result.step,
        "best": result.best,
        "best_step": result.best_step,
        "ended": result.reason,
    }
