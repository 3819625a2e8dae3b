"""Sweeps: successive halving over keys of the config, by validation score.

A sweep is a folder, and its files are all that several processes, on one machine or many, need to share the work:

    plan.json                what was asked for, and the config of each trial
    trial-000/               run folder of a trial
    trial-000.stages/        its records: which rungs it has come to, with which score (see `mtkit.pipelines`)
    sweep.json, sweep.html   the table, and the page with curves
    best.yaml                config of the best trial

Each process takes the next task that no other one works on (`Halving.open_tasks`), and waits while there is none. The
lock on the records of a trial is released when its process ends, however it ends; another one then goes on with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product, starmap
from pathlib import Path
from typing import Any, Literal

from mtkit.config.loading import AUTO, parse_config
from mtkit.config.presets import CorpusSize
from mtkit.config.sections import Config, DataConfig
from mtkit.config.yaml_document import dump_yaml
from mtkit.errors import ConfigError, FolderInUseError, TrainingError
from mtkit.evaluation.history import read_object
from mtkit.evaluation.metrics import HIGHER_IS_BETTER
from mtkit.files import FolderLock, make_folder, remove_tree, write_text
from mtkit.files.folders import is_locked
from mtkit.formatting import format_count, format_duration
from mtkit.pipelines.halving import Halving, Outcome, Task, default_num_rungs, rung_steps
from mtkit.pipelines.pipeline import Pipeline
from mtkit.pipelines.records import Record, describe_differences
from mtkit.pipelines.search_space import Dimension, draw_trials
from mtkit.pipelines.stages import Context, Effort, Settings, Stage
from mtkit.pipelines.trainings import check_end, train, training_values

_PLAN, _RESULTS, PAGE, BEST = "plan.json", "sweep.json", "sweep.html", "best.yaml"
_POLL_SECONDS = 2.0
_PLAN_SECONDS = 600.0
"""Longest time to wait for another process that makes the plan."""


@dataclass(frozen=True)
class SweepOptions:
    """Choice of what a sweep tries, and how long.

    Attributes:
        dimensions: keys and their values.
        num_samples: number of random trials; None for the whole grid.
        num_rungs: number of rungs; None for as many as leave fewer than `reduction` trials at the last.
        reduction: one in `reduction` trials is promoted to the next rung.
        budget: cost of the whole sweep; None for any.
        unit: what the budget counts.
        seed: random seed of the samples.
    """

    dimensions: Sequence[Dimension]
    num_samples: int | None = None
    num_rungs: int | None = None
    reduction: int = 3
    budget: float | None = None
    unit: Literal["updates", "seconds"] = "updates"
    seed: int = 1


@dataclass(frozen=True)
class Plan:
    """The trials of a sweep.

    Attributes:
        folder: folder of the sweep.
        trials: the `key=value` of each trial.
        configs: its config.
        halving: the rungs.
        original: config that the trials change.
        choices: what a preset chose for each trial, and why.
    """

    folder: Path
    trials: Sequence[Sequence[str]]
    configs: Sequence[Config]
    halving: Halving
    original: Config
    choices: Sequence[Sequence[str]]

    @property
    def metric(self) -> str:
        """Metric that trials are compared by."""
        return self.original.validation.best

    def run(self, trial: int) -> Path:
        """Return the run folder of a trial."""
        return self.folder / f"trial-{trial:03}"

    def stages(self, trial: int) -> Path:
        """Return the folder with the records of a trial."""
        return self.folder / f"trial-{trial:03}.stages"

    def record(self, task: Task) -> Path:
        """Return the file of the record of a task."""
        return self.stages(task.trial) / "stages" / f"rung-{task.rung}.json"

    def records(self) -> dict[Task, Record]:
        """Return the records of the tasks that are done."""
        found = {}
        for task in starmap(Task, product(range(len(self.trials)), range(self.halving.num_rungs))):
            record = Record.read(self.record(task))
            if record is not None and record.done:
                found[task] = record
        return found

    def outcomes(self) -> dict[Task, Outcome]:
        """Return the outcomes of the tasks that are done."""
        sign = 1.0 if HIGHER_IS_BETTER.get(self.metric, False) else -1.0
        return {
            task: Outcome(
                None if (score := record.result.get("score")) is None else sign * score, record.seconds
            )
            for task, record in self.records().items()
        }

    def seconds_left(self) -> float | None:
        """Return about how long the rest of the training takes, or None before anything is known."""
        outcomes = self.outcomes()
        seconds = sum(outcome.seconds for outcome in outcomes.values())
        left = (
            seconds / max(1, sum(map(self.halving.updates, outcomes))) * self.halving.updates_left(outcomes)
        )
        if self.halving.budget is not None and self.halving.unit == "seconds":
            left = min(left, max(0.0, self.halving.budget - seconds))
        return left if outcomes else None


@dataclass(frozen=True)
class Trial:
    """A row of the table.

    Attributes:
        number: number of the trial.
        values: its `key=value`.
        scores: validation score at each rung that it came to, the best so far; None where it failed.
        steps: updates that it was trained for.
        seconds: time that it took.
        failure: why it failed, or None.
    """

    number: int
    values: Sequence[str]
    scores: Sequence[float | None]
    steps: int
    seconds: float
    failure: str | None = None


# --- the plan -----------------------------------------------------------------------------------------------------


def make_plan(
    folder: Path,
    options: SweepOptions,
    load: Callable[[Sequence[str]], Config],
    *,
    fresh: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Return the plan of a sweep: the one in its folder if there is one, else a new one.

    Args:
        folder: folder of the sweep.
        options: what to try.
        load: loads the config with these `key=value` overrides.
        fresh: whether to delete an earlier sweep.
        say: prints a line about the progress.

    Raises:
        ConfigError: If a trial's config is invalid, cannot be swept, or the folder has another sweep.
        DataError: If the training pairs cannot be counted, for preset auto.
        StorageError: If the folder cannot be written.
    """
    original = load([])
    request = _request(original, options)
    drawn: dict[str, Any] = {}
    # a mistake must neither cost an earlier sweep nor leave a folder
    if fresh or not read_object(folder / _PLAN):
        drawn = _draw(folder, options, original, load, say)
    with _lock(folder):
        if fresh:
            _remove_earlier(folder)
        stored = read_object(folder / _PLAN)
        if not stored:
            stored = {"request": request, **(drawn or _draw(folder, options, original, load, say))}
            write_text(folder / _PLAN, json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    if differences := describe_differences(stored.get("request", {}), request):
        hint = "repeat the command with which it was begun, choose another folder, or start over with `fresh`"
        raise ConfigError(f"the folder has another sweep: {differences}", where=str(folder), hint=hint)
    halving = Halving(stored["steps"], options.reduction, options.budget, options.unit)
    configs = [parse_config(values) for values in stored["configs"]]
    if configs and Path(configs[0].run).resolve().parent != folder.resolve():
        hint = f"move it back to {Path(configs[0].run).parent}, or start over with `fresh`"
        raise ConfigError("the folder was moved while the sweep went on", where=str(folder), hint=hint)
    choices = stored.get("choices") or [[]] * len(configs)
    return Plan(folder, stored["trials"], configs, halving, original, choices)


def _request(config: Config, options: SweepOptions) -> dict[str, Any]:
    """Return what identifies a sweep, as JSON."""
    values = {key: value for key, value in vars(options).items() if key != "dimensions"}
    values["dimensions"] = [vars(dimension) for dimension in options.dimensions]
    return dict(json.loads(json.dumps({"config": training_values(config), **values})))


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep other processes from making the plan at the same time; wait for one that does."""
    deadline = time.monotonic() + _PLAN_SECONDS
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(FolderLock(folder))
                break
            except FolderInUseError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS / 10)
        yield


def _remove_earlier(folder: Path) -> None:
    """Delete what an earlier sweep left in the folder.

    Raises:
        StorageError: If a process works on it; nothing is deleted then.
    """
    trials = sorted(folder.glob("trial-*.stages"))
    with ExitStack() as stack:
        for stages in trials:  # all locks first: one trial that is in work must not cost the others
            stack.enter_context(FolderLock(stages))
        for stages in trials:
            remove_tree(folder / stages.name.removesuffix(".stages"))
    for path in (*trials, *(folder / name for name in (_PLAN, _RESULTS, PAGE, BEST))):
        remove_tree(path)


def _draw(
    folder: Path,
    options: SweepOptions,
    original: Config,
    load: Callable[[Sequence[str]], Config],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return the trials, their configs and rungs."""
    if not original.data.valid:
        raise ConfigError("a sweep needs validation pairs", where="data.valid", hint="hold out about 1,000")
    for dimension in options.dimensions:
        if dimension.key == "run" or f"{dimension.key}.".startswith("data.test."):
            hint = (
                "each trial has a run folder of its own"
                if dimension.key == "run"
                else "no trial reads test sets"
            )
            raise ConfigError("cannot be tried", where=f"command line: {dimension.key}", hint=hint)
    trials = draw_trials(
        options.dimensions, options.num_samples, options.seed, shuffle=options.budget is not None
    )
    configs, choices, sizes = [], list[list[str]](), dict[DataConfig, CorpusSize]()
    for number, overrides in enumerate(trials):
        config, reasons = load(overrides), list[str]()
        check_end(config)
        if config.preset == AUTO:
            from mtkit.training.preset import choose_values, measure_corpus

            if config.data not in sizes:
                sizes[config.data] = measure_corpus(config.data, say)
            config, reasons = choose_values(config, sizes[config.data])
        choices.append(reasons)
        if config.training.step_limit is None:
            raise ConfigError(
                "a sweep needs to know where training ends",
                where="training.max_steps",
                hint="set it; `budget` limits the whole sweep",
            )
        if config.validation.best != original.validation.best:
            raise ConfigError("trials with different metrics cannot be compared", where="validation.best")
        data = config.data.model_copy(update={"test": ()})  # a sweep chooses on validation pairs only
        configs.append(config.model_copy(update={"run": str(folder / f"trial-{number:03}"), "data": data}))
    num_rungs = options.num_rungs or default_num_rungs(len(trials), options.reduction)
    steps = [
        rung_steps(
            config.training.step_limit or 0, config.validation.every_steps, num_rungs, options.reduction
        )
        for config in configs
    ]
    for config, rungs in zip(configs, steps, strict=True):
        if len(set(rungs)) < num_rungs:
            first = (config.training.step_limit or 0) // options.reduction ** (num_rungs - 1)
            raise ConfigError(
                f"{format_count(num_rungs, 'rung')} would be at updates {', '.join(map(str, rungs))}",
                where="validation.every_steps",
                hint=f"rungs are at validations: set it to at most {max(1, first)}, or choose fewer `rungs`",
            )
    halving = Halving(steps, options.reduction, options.budget, options.unit)
    if options.budget is not None and options.unit == "updates":
        tasks = (Task(trial, rung) for trial in range(len(trials)) for rung in range(num_rungs))
        least = num_rungs * max(map(halving.updates, tasks))
        if options.budget < least:
            what = f"{options.budget:,.0f} updates are not enough for {format_count(num_rungs, 'rung')}"
            hint = f"at least {least:,}, or a lower training.max_steps"
            raise ConfigError(what, where="`budget`", hint=hint)
    resolved = list(map(training_values, configs))
    return {"trials": trials, "steps": steps, "configs": resolved, "choices": choices}


# --- the work -----------------------------------------------------------------------------------------------------


def work(plan: Plan, say: Callable[[str], None], first: int = 0) -> None:
    """Do the tasks of a sweep until none is left, together with other processes that do the same.

    Args:
        plan: the plan.
        say: prints a line for the user.
        first: trial to begin with.

    Raises:
        MtkitError: If a trial cannot be trained, other than for a loss that diverges or a lack of memory, or the first
            time that its process is killed.
        Interrupted: If a signal stops it; the same call goes on.
    """
    is_waiting = False
    while tasks := plan.halving.open_tasks(plan.outcomes()):
        num_trials = len(plan.trials)
        tasks.sort(key=lambda task: (task.trial - first) % num_trials)
        if any(_try_task(plan, task, say) for task in tasks):
            is_waiting = False
            continue
        if not is_waiting:
            say("waiting for the other processes of the sweep")
        is_waiting = True
        time.sleep(_POLL_SECONDS)


def _try_task(plan: Plan, task: Task, say: Callable[[str], None]) -> bool:
    """Do a task, unless another process works on its trial; return whether it was done."""
    folder, steps = plan.stages(task.trial), plan.halving.steps[task.trial]
    if is_locked(folder):
        return False
    updates = plan.halving.updates(task)
    with ExitStack() as stack:
        try:
            efforts = [Effort("updates", updates)]
            pipeline = stack.enter_context(Pipeline(folder, efforts, say=lambda line: None))
        except FolderInUseError:
            return False
        name = f"rung {task.rung + 1} of {plan.halving.num_rungs}, trial {task.trial}"
        left = plan.seconds_left()
        rest = "" if left is None else f"; about {format_duration(left)} of training left in all"
        say(f"{name}: training to update {steps[task.rung]:,} with {' '.join(plan.trials[task.trial])}{rest}")
        settings = {"config": training_values(plan.configs[task.trial]), "stop_at": steps[task.rung]}
        if choices := plan.choices[task.trial]:
            settings["choices"] = choices
        outputs = (plan.run(task.trial),)
        stage = Stage(f"rung-{task.rung}", _train_to_rung, settings, efforts[0], outputs=outputs)
        try:
            result = pipeline.run(stage)
        except TrainingError as error:  # its process was killed; if for lack of memory, it will be again
            killed = folder / f"killed-{task.rung}"
            if not killed.exists():
                write_text(killed, str(error))
                raise
            record, result = plan.record(task), {"score": None, "failure": f"killed twice: {error.what}"}
            if begun := Record.read(record):
                replace(begun, done=True, result=result).write(record)
    score = result.get("score")
    shown = f"failed: {result['failure']}" if score is None else f"{plan.metric} {_shown(plan.metric, score)}"
    say(f"{name}: {shown}")
    return True


def _shown(metric: str, score: float) -> str:
    """Format a score."""
    return f"{score:.4f}" if metric == "loss" else f"{score:.2f}"


def _train_to_rung(settings: Settings, context: Context) -> Mapping[str, Any]:
    """Train a trial to a rung. Returns its best score so far, or why it failed.

    Raises:
        MtkitError: As `mtkit.training.run.train` does; of TrainingError only that a worker was killed.
        Interrupted: If a signal stops it; the run is saved first.
    """
    from mtkit.training.workers import WorkerLostError

    try:
        result = train(settings, context)
    except WorkerLostError:
        raise
    except TrainingError as error:
        make_folder(Path(settings["config"]["run"]))
        return {"score": None, "failure": str(error)}
    if result["best"] is None:
        return {"score": None, "failure": "no validation gave a number"}
    return {"score": result["best"], "best_step": result["best_step"], "step": result["step"]}


# --- the outcome --------------------------------------------------------------------------------------------------


def _rank_trials(plan: Plan) -> list[Trial]:
    """Return the trials that were begun, best first: by rung, then by score; failed ones last."""
    records, outcomes = plan.records(), plan.outcomes()
    rows = []
    for number, values in enumerate(plan.trials):
        tasks = [task for task in records if task.trial == number]
        if not tasks:
            continue
        results = [records[task].result for task in tasks]
        last = outcomes[tasks[-1]].score
        seconds = sum(records[task].seconds for task in tasks)
        steps = max((int(result.get("step") or 0) for result in results), default=0)
        scores = [result.get("score") for result in results]
        trial = Trial(number, values, scores, steps, seconds, results[-1].get("failure"))
        rows.append(((last is None, -len(tasks), -(last or 0.0), number), trial))
    return [trial for _, trial in sorted(rows, key=lambda row: row[0])]


def write_outcome(plan: Plan) -> list[Trial]:
    """Write sweep.json, sweep.html and best.yaml, and return the trials, best first.

    Raises:
        TrainingError: If all trials failed.
        StorageError: If a file cannot be written.
    """
    from mtkit.evaluation.report.bundle import vega_bundle
    from mtkit.evaluation.report.sweep_page import render_sweep

    trials = _rank_trials(plan)
    rows: list[dict[str, Any]] = [
        {
            "trial": trial.number,
            "run": str(plan.run(trial.number)),
            "values": dict(value.split("=", 1) for value in trial.values),
            "scores": trial.scores,
            "steps": trial.steps,
            "minutes": round(trial.seconds / 60, 2),
            "failure": trial.failure,
        }
        for trial in trials
    ]
    rungs = [list(steps) for steps in plan.halving.steps]
    content = {
        "metric": plan.metric,
        "reduction": plan.halving.reduction,
        "rungs": {trial.number: rungs[trial.number] for trial in trials},
        "num_not_begun": len(plan.trials) - len(trials),
        "trials": rows,
    }
    write_text(plan.folder / _RESULTS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    page = render_sweep(plan.original.run, plan.metric, plan.halving.num_rungs, rows, vega_bundle())
    write_text(plan.folder / PAGE, page)
    if trials[0].failure is not None:
        hint = "sweep.json has the reason of each"
        raise TrainingError("all trials failed", where=str(plan.folder), hint=hint)
    best = plan.configs[trials[0].number]
    data = best.data.model_copy(update={"test": plan.original.data.test})
    best = best.model_copy(update={"data": data})
    chosen = " ".join(trials[0].values)
    text = f"# Best trial of a sweep: {chosen}\n{dump_yaml(training_values(best))}"
    write_text(plan.folder / BEST, text)
    return trials
