"""Search space and successive halving: against direct descriptions, in any order of work, within a budget."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise

import pytest

from mtkit.errors import ConfigError
from mtkit.pipelines.halving import Halving, Outcome, Task, default_num_rungs, rung_steps
from mtkit.pipelines.search_space import Dimension, draw_trials

# --- search space -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.dropout=0.1,0.2", Dimension("model.dropout", ("0.1", "0.2"))),
        ("a.b=[0.9, 0.98],[0.9, 0.999]", Dimension("a.b", ("[0.9, 0.98]", "[0.9, 0.999]"))),
        ('a.b="x,y",z', Dimension("a.b", ('"x,y"', "z"))),
        ("a.b=../x.yaml,y", Dimension("a.b", ("../x.yaml", "y"))),
        ("init=runs/a,../b", Dimension("init", ("runs/a", "../b"))),
        ("init=runs/../b,runs/c", Dimension("init", ("runs/../b", "runs/c"))),
        ("a.b=5", Dimension("a.b", ("5",))),
        ("a.b=0.1..0.4", Dimension("a.b", ("0.1", "0.4"), is_range=True)),
        ("a.b=1e-4..1e-2:log", Dimension("a.b", ("1e-4", "1e-2"), is_range=True, is_log=True)),
        ("a.b=-1.5..2", Dimension("a.b", ("-1.5", "2"), is_range=True)),
    ],
)
def test_values_are_parsed(text: str, expected: Dimension) -> None:
    assert Dimension.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("model.dropout", "expected key=value,value"),
        ("=1,2", "expected key=value,value"),
        ("a.b=1,,2", "an empty or repeated value"),
        ("a.b=1,2,1", "an empty or repeated value"),
        ("a.b=2..1", "not the ends of a range"),
        ("a.b=0..1:log", "not the ends of a range"),
        ("a.b=x..y", "the ends of a range are numbers"),
        ("a.b=0.1..0.2..0.3", "the ends of a range are numbers"),
    ],
)
def test_values_that_cannot_be_parsed(text: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Dimension.parse(text)
    assert str(caught.value).startswith(f"command line: {text}: {what}")


def test_a_grid_and_samples_of_it() -> None:
    space = [Dimension.parse("a=1,2"), Dimension.parse("b=x,y,z")]
    grid = draw_trials(space, None, 1)
    assert grid == [[f"a={a}", f"b={b}"] for a in (1, 2) for b in "xyz"]
    assert draw_trials(space, 100, 1) == grid
    samples = draw_trials(space, 4, 1)
    assert len(samples) == 4 and all(sample in grid for sample in samples)
    assert len({tuple(sample) for sample in samples}) == 4
    assert samples == draw_trials(space, 4, 1) != draw_trials(space, 4, 2)
    shuffled = draw_trials(space, None, 1, shuffle=True)
    assert sorted(shuffled) == grid != shuffled


def test_samples_of_ranges_are_within_and_log_ranges_uniform_in_the_logarithm() -> None:
    space = [Dimension.parse("lr=1e-4..1e-2:log"), Dimension.parse("n=1..3"), Dimension.parse("p=0.1..0.5")]
    values = [[float(text.partition("=")[2]) for text in sample] for sample in draw_trials(space, 400, 3)]
    rates, counts, shares = zip(*values, strict=True)
    assert min(rates) >= 1e-4 and max(rates) <= 1e-2
    assert sum(rate < 1e-3 for rate in rates) == pytest.approx(200, abs=40)
    assert set(counts) == {1, 2, 3}
    assert sum(shares) / 400 == pytest.approx(0.3, abs=0.02)


def test_all_values_of_a_range_are_drawn_equally_often() -> None:
    generator = random.Random(1)
    counts = Counter(Dimension.parse("n=2..4").draw(generator) for _ in range(3000))
    assert counts.keys() == {"2", "3", "4"}
    assert all(count == pytest.approx(1000, abs=100) for count in counts.values())
    narrow = [float(Dimension.parse("b=0.999..0.9999").draw(generator)) for _ in range(1000)]
    assert 0.999 <= min(narrow) < 0.9991 and 0.9998 < max(narrow) <= 0.9999
    assert sum(narrow) / 1000 == pytest.approx(0.99945, abs=2e-5)


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(ConfigError, match="a range needs a number of samples"):
        draw_trials([Dimension.parse("a=0.1..0.2")], None, 1)
    with pytest.raises(ConfigError, match="given twice"):
        draw_trials([Dimension.parse("a=1,2"), Dimension.parse("a=3,4")], None, 1)
    with pytest.raises(ConfigError, match="a grid of 10,000 trials"):
        draw_trials([Dimension.parse(f"{key}={','.join(map(str, range(10)))}") for key in "abcd"], None, 1)


# --- halving ------------------------------------------------------------------------------------------------------


def sweep(halving: Halving, scores: list[float | None], seed: int | None = None) -> list[Task]:
    """Do all tasks, in their order or any; each trial has the same score at all rungs, and costs 2 s an update."""
    generator = random.Random(seed)
    outcomes: dict[Task, Outcome] = {}
    while tasks := halving.open_tasks(outcomes):
        assert not outcomes.keys() & set(tasks)
        task = tasks[0] if seed is None else generator.choice(tasks)
        outcomes[task] = Outcome(scores[task.trial], 2.0 * halving.updates(task))
    return list(outcomes)


def test_nine_three_one() -> None:
    scores = [3.0, 9.0, 1.0, 4.0, 9.0, 5.0, 2.0, 6.0, 8.0]
    halving = Halving([[100, 300, 900]] * 9)
    done = sweep(halving, scores)
    assert done == [*(Task(trial, 0) for trial in range(9)), Task(1, 1), Task(4, 1), Task(8, 1), Task(1, 2)]
    assert [halving.updates(task) for task in done] == [100] * 9 + [200] * 3 + [600]
    for seed in range(20):
        assert sorted(sweep(halving, scores, seed)) == sorted(done)


def test_failed_trials_are_not_promoted() -> None:
    halving = Halving([[1, 3, 9]] * 9)
    scores: list[float | None] = [None] * 9
    assert sweep(halving, scores) == [Task(trial, 0) for trial in range(9)]
    scores[5] = -7.0
    assert sweep(halving, scores)[9:] == [Task(5, 1), Task(5, 2)]


def test_what_a_rung_costs_counts_against_its_budget() -> None:
    """The speed of the rung before says how many tasks there are, until it is known that they take twice as long."""
    halving = Halving([[10, 20]] * 8, 2, 2 * 80.0, "seconds")
    outcomes = {Task(trial, 0): Outcome(float(trial), 10.0) for trial in range(8)}
    assert len(halving.open_tasks(outcomes)) == 4
    halving = Halving([[10, 20]] * 8, 2, 2 * 40.0, "seconds")
    assert len(halving.open_tasks(outcomes)) == 4
    outcomes[Task(7, 1)] = Outcome(7.0, 20.0)
    assert halving.open_tasks(outcomes) == [Task(6, 1), Task(5, 1)]


def test_the_updates_that_are_left() -> None:
    halving = Halving([[10, 30, 90]] * 9)
    outcomes: dict[Task, Outcome] = {}
    assert halving.updates_left(outcomes) == 9 * 10 + 3 * 20 + 60
    while tasks := halving.open_tasks(outcomes):
        before = halving.updates_left(outcomes)
        outcomes[tasks[0]] = Outcome(float(tasks[0].trial))
        assert halving.updates_left(outcomes) == before - halving.updates(tasks[0])
    assert halving.updates_left(outcomes) == 0
    assert halving.updates_left({Task(trial, 0): Outcome(None) for trial in range(9)}) == 0


@pytest.mark.parametrize("reduction", [2, 3, 4])
@pytest.mark.parametrize("num_trials", range(1, 30))
def test_with_the_usual_number_of_rungs_too_few_to_be_reduced_reach_the_end(
    num_trials: int, reduction: int
) -> None:
    num_rungs = default_num_rungs(num_trials, reduction)
    assert num_rungs == 1 + max(r for r in range(10) if reduction**r <= num_trials)
    steps = rung_steps(1000, 10, num_rungs, reduction)
    done = sweep(Halving([steps] * num_trials, reduction), [float(trial) for trial in range(num_trials)])
    last = [task.trial for task in done if task.rung == num_rungs - 1]
    assert num_trials - 1 in last and len(last) < reduction
    counts = [sum(task.rung == rung for task in done) for rung in range(num_rungs)]
    assert all(after == max(1, before // reduction) for before, after in pairwise(counts))


def test_rungs_are_where_runs_are_validated_anyway() -> None:
    assert rung_steps(4600, 230, 3, 3) == [690, 1610, 4600]
    assert rung_steps(100, 30, 2, 2) == [60, 100]
    assert rung_steps(10, 30, 2, 2) == [10, 10]
    for max_steps in range(1, 60):
        for every in (1, 7, 100):
            steps = rung_steps(max_steps, every, 3, 3)
            assert steps == sorted(steps) and steps[-1] == max_steps
            assert all(step % every == 0 or step == max_steps for step in steps)


@pytest.mark.parametrize("unit", ["updates", "seconds"])
@pytest.mark.parametrize("budget", [900, 1800, 2700, 100_000])
def test_a_budget_is_shared_among_the_rungs(unit: str, budget: int) -> None:
    """A rung has the first trials that its share pays for, and the last rung at least one."""
    halving = Halving([[100, 300, 900]] * 27, 3, budget * (2 if unit == "seconds" else 1), unit)  # type: ignore[arg-type]
    done = sweep(halving, [float(trial) for trial in range(27)])
    counts = [sum(task.rung == rung for task in done) for rung in range(3)]
    first = min(27, budget // 300)
    assert counts[0] == first + (unit == "seconds" and first < 27 and budget % 300 > 0)
    assert counts[1] == max(1, min(counts[0] // 3, budget // 3 // 200))
    assert counts[2] == max(1, min(counts[1] // 3, budget // 3 // 600))
    spent = sum(halving.updates(task) for task in done)
    if budget >= 3 * 600:  # less does not pay for the last rung
        assert spent <= budget
    assert math.isfinite(spent)
