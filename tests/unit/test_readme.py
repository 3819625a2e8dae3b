"""The README is short, names every command, and its two command lines are complete; CI runs the second."""

from __future__ import annotations

import itertools
import os
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pages import README, ROOT, leaf_commands, mtkit_commands, shell_lines, split_command

MAX_LINES = 150


def line_ending(ending: str) -> str:
    """Return the one shell line of the README that ends like this."""
    (line,) = [line for line in shell_lines(README) if line.endswith(ending)]
    return line


def test_it_is_short() -> None:
    assert len(README.read_text("utf-8").split("\n")) <= MAX_LINES + 1


def test_ci_runs_the_second_command_and_nothing_else() -> None:
    lines = (ROOT / ".ci/run").read_text("utf-8").removesuffix("\n").split("\n")
    code = [line for line in lines if not line.startswith("#")]
    assert code == [
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        line_ending(" -m pytest -n 2 --dist loadfile"),
    ]
    assert lines[0] == "#!/usr/bin/env bash"
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_the_two_commands_are_complete() -> None:
    for line in (
        line_ending("mtkit train configs/quickstart.yaml"),
        line_ending(" -m pytest -n 2 --dist loadfile"),
    ):
        make, install, *jobs = line.split(" && ")
        assert make == "python3 -m venv .venv"
        assert install.startswith(".venv/bin/pip install -q -c constraints.txt ")
        assert jobs
        assert all(job.startswith(".venv/bin/") for job in jobs)


def test_constraints_pin_all_that_is_declared() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").removesuffix("\n").split("\n")
    assert lines[0].startswith("# ")
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    pins = dict(pairs)
    assert len(pins) == len(pairs)
    assert all(name == canonicalize_name(name) for name in pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    for requirement in map(Requirement, declared):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier


def test_every_command_is_named() -> None:
    assert set(leaf_commands()) <= {split_command(words)[0] for words in mtkit_commands(README)}
