"""Stages of a pipeline: what to run, with which settings, on which files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mtkit.translation.options import PARALLEL, Parallelism

Settings = Mapping[str, Any]
"""Settings of a stage: what JSON has, with strings for keys."""


@dataclass(frozen=True)
class Context:
    """Circumstances of a stage that do not change its result.

    Attributes:
        console: console to show progress on.
        fresh: whether to delete what an earlier pipeline left in the outputs.
        parallelism: workers and threads of translations on a CPU.
    """

    console: Console
    fresh: bool = False
    parallelism: Parallelism = PARALLEL


@dataclass(frozen=True)
class Effort:
    """Amount of what a stage has to do, to estimate its time from that of others.

    Attributes:
        unit: what is counted, such as "updates" or "lines". Efforts of one unit take equally long.
        number: how many there are; 0 for a stage whose time does not matter.
    """

    unit: str
    number: float


Work = Callable[[Settings, Context], Mapping[str, Any] | None]
"""What a stage does: a function at the top level of a module. It returns what later stages, or people, want to know."""


def use_threads(settings: Settings) -> None:
    """Set torch's number of threads to `num_threads` of the settings, unless it is None."""
    import torch

    if settings["num_threads"] is not None:
        torch.set_num_threads(settings["num_threads"])


@dataclass(frozen=True)
class Stage:
    """A stage of a pipeline.

    Attributes:
        name: its name, unique in the pipeline and fit for a file name.
        work: what it does.
        settings: settings of `work`.
        effort: how much it has to do.
        inputs: files and folders that it reads; the stage is refused if they change.
        outputs: files and folders that it writes; the stage is run again if one is missing.
    """

    name: str
    work: Work
    settings: Settings
    effort: Effort
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
