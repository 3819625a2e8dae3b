"""Successive halving (Jamieson and Talwalkar 2016): what to train next, as a function of what is known.

All trials are trained to the first rung; the best third (with a reduction of 3) goes on to the next rung, and so on;
the last rung is the end of training. As a third of the trials is trained three times as long, each rung costs about
the same. A rung is complete when all of its trials are, so that the outcome does not depend on how many processes work
on it, or in what order. The asynchronous variant (ASHA, Li et al. 2018) promotes earlier and keeps more processes busy,
but would promote others each time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple


class Task(NamedTuple):
    """A trial to be trained to a rung, both counted from 0."""

    trial: int
    rung: int


@dataclass(frozen=True)
class Outcome:
    """Outcome of a task.

    Attributes:
        score: validation score, greater is better; None if the trial failed.
        seconds: time that the task took.
    """

    score: float | None
    seconds: float = 0.0


@dataclass(frozen=True)
class Halving:
    """The rungs of a sweep.

    Attributes:
        steps: update of each rung, for each trial.
        reduction: one in `reduction` trials is promoted to the next rung.
        budget: cost of all tasks together; None if it does not matter.
        unit: what the budget counts.
    """

    steps: Sequence[Sequence[int]]
    reduction: int = 3
    budget: float | None = None
    unit: Literal["updates", "seconds"] = "updates"

    @property
    def num_rungs(self) -> int:
        """Number of rungs."""
        return len(self.steps[0])

    def updates(self, task: Task) -> int:
        """Return the updates from the rung before to that of a task."""
        steps = self.steps[task.trial]
        return steps[task.rung] - (steps[task.rung - 1] if task.rung else 0)

    def open_tasks(self, outcomes: dict[Task, Outcome]) -> list[Task]:
        """Return the tasks that can be done now, in the order of preference; none if all is done.

        Args:
            outcomes: outcomes of the tasks that are done.
        """
        members = list(range(len(self.steps)))
        for rung in range(self.num_rungs):
            tasks = self._affordable([Task(trial, rung) for trial in members], outcomes)
            if missing := [task for task in tasks if task not in outcomes]:
                return missing
            members = [task.trial for task in self.ranked(tasks, outcomes)]
            members = members[: max(1, len(tasks) // self.reduction)]
        return []

    def updates_left(self, outcomes: dict[Task, Outcome]) -> int:
        """Return about how many updates the tasks take that are not done.

        Which trials will come to a later rung is not known: theirs are counted as those of the first trials.

        Args:
            outcomes: outcomes of the tasks that are done.
        """
        members, left, is_known = list(range(len(self.steps))), 0, True
        for rung in range(self.num_rungs):
            tasks = [Task(trial, rung) for trial in members]
            if is_known:
                tasks = self._affordable(tasks, outcomes)
            missing = [task for task in tasks if task not in outcomes]
            left += sum(map(self.updates, missing))
            is_known = is_known and not missing
            members = [task.trial for task in (self.ranked(tasks, outcomes) if is_known else tasks)]
            members = members[: max(1, len(tasks) // self.reduction)]
        return left

    def ranked(self, tasks: Sequence[Task], outcomes: dict[Task, Outcome]) -> list[Task]:
        """Return the tasks that did not fail, best first; ties go to the lower trial number."""
        scores = {task: outcomes[task].score for task in tasks}
        good = [(-score, task.trial, task) for task, score in scores.items() if score is not None]
        return [task for _, _, task in sorted(good)]

    def _affordable(self, tasks: list[Task], outcomes: dict[Task, Outcome]) -> list[Task]:
        """Return the tasks of a rung that are done, and the first ones that its share of the budget pays for."""
        if self.budget is None:
            return tasks
        kept: list[Task] = []
        share, spent = self.budget / self.num_rungs, 0.0
        for task in tasks:
            spent += self._cost(task, outcomes)
            if task in outcomes or spent <= share * (1 + 1e-9) or not kept:
                kept.append(task)
        return kept

    def _cost(self, task: Task, outcomes: dict[Task, Outcome]) -> float:
        """Return the cost of a task: measured if it is done, otherwise estimated.

        The estimate is from the speed of the trial's previous rung or, for the first rung, of earlier trials.
        """
        if self.unit == "updates":
            return self.updates(task)
        if task in outcomes:
            return outcomes[task].seconds
        if task.rung:
            before = Task(task.trial, task.rung - 1)
            return outcomes[before].seconds * self.updates(task) / max(1, self.updates(before))
        known = [
            (outcomes[other].seconds, self.updates(other))
            for other in (Task(trial, 0) for trial in range(task.trial))
            if other in outcomes
        ]
        seconds, updates = map(sum, zip(*known, strict=True)) if known else (0.0, 1)
        return seconds / updates * self.updates(task)


def default_num_rungs(num_trials: int, reduction: int) -> int:
    """Return how many rungs it takes until fewer than `reduction` trials are left."""
    num_rungs = 1
    while num_trials >= reduction**num_rungs:
        num_rungs += 1
    return num_rungs


def rung_steps(max_steps: int, every_steps: int, num_rungs: int, reduction: int) -> list[int]:
    """Return the update of each rung: the last is the end, each other one a share of the one after it.

    They are multiples of the interval of validations, so that a run that stops there is validated no more often.
    """
    wanted = [max_steps / reduction ** (num_rungs - 1 - rung) for rung in range(num_rungs)]
    return [min(max_steps, math.ceil(step / every_steps - 1e-9) * every_steps) for step in wanted]
