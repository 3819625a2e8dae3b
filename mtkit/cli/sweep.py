"""`mtkit sweep`: the best values of some keys, by successive halving."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mtkit.cli import completion, options
from mtkit.cli.evaluation_tables import render_table
from mtkit.cli.terminal import check_not_stdin, invocation, print_stderr, print_stdout
from mtkit.errors import ConfigError
from mtkit.formatting import format_count, format_duration
from mtkit.job_limits import usable_cores

if TYPE_CHECKING:
    from mtkit.config.sections import Config
    from mtkit.pipelines.sweep import Plan, Trial

_STOPPED = 128
"""Exit codes above this are those of a process that was told to stop, or that another one takes over from."""
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)(min|h)?")


def sweep(
    config: options.ConfigFile,
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUES...",
            help="Keys to try: a list such as model.dropout=0.1,0.2, or with --samples a range such as "
            "training.learning_rate=1e-4..1e-2:log. A single value changes all trials.",
            autocompletion=completion.overrides,
        ),
    ],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder of the sweep; default RUN.sweep.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Number of random trials; by default the whole grid.")
    ] = None,
    reduction: Annotated[
        int, typer.Option(min=2, help="One in N trials goes on from each rung to the next.")
    ] = 3,
    rungs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of rungs; by default as many as leave fewer than --reduction trials at the last.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Cost of the whole sweep: a number of updates, or a time such as 90min or 8h."),
    ] = None,
    sample_seed: Annotated[int, typer.Option("--sample-seed", min=0, help="Random seed of the samples.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Number of trials at a time on this machine.")] = 1,
    trial: Annotated[
        int | None,
        typer.Option(
            min=0, help="Begin with this trial, as one of many processes (a job array) of this sweep."
        ),
    ] = None,
    fresh: options.Fresh = False,
) -> None:
    """Find good values of some keys: train many trials a little, and the best ones on to the end.

    Trials are compared by their validation score. Each is a run folder that goes on where it stopped.
    """
    check_not_stdin(config, "CONFIG")
    from mtkit.config.loading import load_config

    if trial is not None and (fresh or jobs > 1):
        what = f"--trial excludes {'--fresh' if fresh else '--jobs'}"
        raise ConfigError(
            what, hint="each process of a job array is one worker; delete the folder to start over"
        )
    amount, unit = _parse_budget(budget)
    from mtkit.pipelines.search_space import Dimension
    from mtkit.pipelines.sweep import BEST, PAGE, SweepOptions, make_plan, write_outcome
    from mtkit.pipelines.sweep import work as do_work

    dimensions = [Dimension.parse(text) for text in values]
    fixed = [f"{each.key}={each.values[0]}" for each in dimensions if len(each.values) == 1]
    varied = [each for each in dimensions if len(each.values) > 1]
    if not varied:
        raise ConfigError("nothing to try", where=f"command line: {values[0]}", hint="key=value,value")

    def load(overrides: Sequence[str]) -> Config:
        return load_config(config, [*fixed, *overrides])

    folder = Path(output or f"{load([]).run.rstrip('/')}.sweep")
    plan = make_plan(
        folder,
        SweepOptions(varied, samples, rungs, reduction, amount, unit, sample_seed),
        load,
        fresh=fresh,
        say=print_stderr,
    )
    for reason in dict.fromkeys(chain.from_iterable(plan.choices)):
        print_stderr(reason)
    print_stderr(f"{format_count(len(plan.trials), 'trial')}, rungs at {_rungs(plan)}, in {folder}")
    command = [config, *values, "--output", str(folder), "--reduction", str(reduction)]
    for option, value in (("--samples", samples), ("--rungs", rungs), ("--budget", budget)):
        command += [] if value is None else [option, str(value)]
    gpus = _visible_gpus(load([]).training.device) if jobs > 1 else []
    if 0 < len(gpus) < jobs:
        print_stderr(f"{jobs} trials at a time share {format_count(len(gpus), 'GPU')}")
    with _workers(jobs - 1, [*command, "--sample-seed", str(sample_seed)], folder, gpus):
        do_work(plan, print_stderr, trial or 0)
    trials = write_outcome(plan)
    print_stdout(f"{plan.metric} in validation, best first:\n{_table(plan, trials)}")
    best = shlex.quote(str(folder / BEST))
    print_stdout(f"\nA page with curves is in {folder / PAGE}. To score the test sets with the best trial:\n")
    print_stdout(f"    {invocation()} train {best}\n")


def _parse_budget(text: str | None) -> tuple[float | None, Literal["updates", "seconds"]]:
    """Return a budget and its unit.

    Raises:
        ConfigError: If it is neither a number of updates nor a time.
    """
    if text is None:
        return None, "updates"
    match = _BUDGET.fullmatch(text)
    if match is None or float(match[1]) == 0:
        what = f"expected a number of updates or a time, got {text!r}"
        raise ConfigError(what, where="--budget", hint="20000, 90min or 8h")
    if match[2] is None:
        return float(match[1]), "updates"
    return float(match[1]) * (60 if match[2] == "min" else 3600), "seconds"


def _rungs(plan: Plan) -> str:
    """Return the updates of the rungs; if they differ between trials, their shares of the training."""
    if len({tuple(steps) for steps in plan.halving.steps}) == 1:
        return ", ".join(f"{step:,}" for step in plan.halving.steps[0]) + " updates"
    shares = [step / plan.halving.steps[0][-1] for step in plan.halving.steps[0]]
    return ", ".join(f"{100 * share:.0f} %" for share in shares) + " of the updates of each"


def _visible_gpus(device: str) -> list[str]:
    """Return the GPUs among which trials may be shared out, as CUDA_VISIBLE_DEVICES names them.

    Args:
        device: `training.device`; there are none if it names one.
    """
    if device not in ("auto", "cuda"):
        return []
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else [str(number) for number in range(count)])[:count]


@contextmanager
def _workers(number: int, command: Sequence[str], folder: Path, gpus: Sequence[str] = ()) -> Iterator[None]:
    """Start other processes that work on the same sweep, and wait for them; if the block fails, stop them.

    The threads of this machine are shared among all of them, and so are its GPUs: this process has the first one.

    Args:
        number: how many.
        command: arguments and options of the sweep.
        folder: its folder, where each writes a log.
        gpus: the GPUs, as CUDA_VISIBLE_DEVICES names them.
    """
    if number == 0:
        yield
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // (number + 1))))
    workers = []

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for worker in range(1, number + 1):
            with open(folder / f"worker-{worker}.log", "wb") as log:
                arguments = ["-P", "-m", "mtkit", "sweep", *command, "--trial", str(worker)]
                environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
                if gpus:
                    environment["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]
                workers.append(
                    subprocess.Popen(
                        [sys.executable, *arguments],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env=environment,
                    )
                )
        yield
    except BaseException:
        for process in workers:
            process.terminate()
        raise
    finally:
        for number_of_signal, handler in before.items():
            signal.signal(number_of_signal, handler)
        for worker, process in enumerate(workers, 1):
            if 0 < process.wait() < _STOPPED:
                print_stderr(f"worker {worker} failed: see {folder / f'worker-{worker}.log'}")


def _table(plan: Plan, trials: Sequence[Trial]) -> str:
    """Return the table of the trials, best first."""
    from mtkit.evaluation.report.sweep_page import short_keys

    digits = 4 if plan.metric == "loss" else 2
    keys = short_keys([value.partition("=")[0] for value in plan.trials[0]])
    rungs = range(plan.halving.num_rungs)
    header = ["trial", *keys, *(f"rung {rung + 1}" for rung in rungs), "updates", "time"]
    rows = []
    for trial in trials:
        values = [value.partition("=")[2] for value in trial.values]
        scores = ["failed" if score is None else f"{score:.{digits}f}" for score in trial.scores]
        scores += ["" for _ in rungs][len(scores) :]
        rows.append([str(trial.number), *values, *scores, f"{trial.steps:,}", format_duration(trial.seconds)])
    return render_table(header, rows, num_labels=1 + len(keys))
