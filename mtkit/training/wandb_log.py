"""Metrics of a run for Weights & Biases, in its offline mode: files in the run folder, no network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtkit.config.sections import Config
from mtkit.errors import ConfigError
from mtkit.evaluation.history import is_number
from mtkit.packages import import_package

WANDB = "wandb"
"""Folder of its files in the run folder, whose name it chooses itself."""
_FILES = ("latest-run", "debug.log", "debug-internal.log")


class WandbLog:
    """Writes the numbers of a run where `wandb sync` finds them.

    Whatever WANDB_MODE says, nothing is sent. Each start of a run has a record of its own; the name of the run is that
    of their group.

    Args:
        config: config of the run.

    Raises:
        ConfigError: If the package is not installed, or cannot start.
    """

    def __init__(self, config: Config) -> None:
        wandb, run = import_wandb(), Path(config.run)
        name = run.resolve().name
        settings = wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_git=True,
            x_disable_stats=True,
            x_disable_meta=True,
        )
        try:
            self._run: Any = wandb.init(
                mode="offline", dir=str(run), name=name, group=name, config=config.model_dump(mode="json"),
                settings=settings,
            )  # fmt: skip
            self._run.define_metric("*", step_metric="step")  # after a rollback, steps come again
        except (wandb.Error, OSError) as error:
            what = f"Weights & Biases cannot start: {' '.join(str(error).split()):.200}"
            raise ConfigError(what, where="training.wandb", hint="set this to false") from error

    def update_config(self, config: Config) -> None:
        """Replace the recorded config: that of a new run is whole only once its inputs are read."""
        try:
            self._run.config.update(config.model_dump(mode="json"), allow_val_change=True)
        except Exception:  # see add
            return

    def add(self, kind: str, step: int, numbers: Mapping[str, Any]) -> bool:
        """Add the finite numbers of a record, and return whether that worked: its failures must not end a run."""
        found = {f"{kind}/{name}": value for name, value in numbers.items() if is_number(value)}
        try:
            self._run.log({"step": step, **found})
        except Exception:  # of its helper process, which may have been killed
            return False
        return True

    def close(self) -> None:
        """Finish the record."""
        try:
            self._run.finish()
        except Exception:  # see add
            return


def import_wandb() -> Any:
    """Return the package.

    Raises:
        ConfigError: If it is not installed.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it is read on import
    return import_package("wandb", "pip install 'mtkit[wandb]', or set this to false", where="training.wandb")


def is_wandb_file(name: str) -> bool:
    """Return whether a name is one that Weights & Biases gives to a file or folder of an offline run."""
    return name.startswith("offline-run-") or name in _FILES
