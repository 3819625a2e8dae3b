"""Measures the systems of a recipe, and keeps a row of each in its results.jsonl.

    python recipes/measure.py recipes/tatoeba-10k --data ../tatoeba-10k --jobs 2
    python recipes/measure.py recipes/tatoeba-10k --table

The recipe's systems.yaml has a command of mtkit for each system. It runs with every seed, in one thread if there are
several jobs, and its translations of the test set are scored. A command that was stopped goes on where it was. What has
a row already does not run again, unless its commands or configs have changed, or with --again the commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product, repeat
from pathlib import Path
from string import Template
from threading import Lock
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
MTKIT = [sys.executable, "-m", "mtkit"]
SAME_COST = 0.1  # relative difference in CPU time up to which a system is not trained again at equal minutes

Row = dict[str, Any]
writing = Lock()


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path, help="folder with systems.yaml")
    parser.add_argument("--data", type=Path, help="folder of the corpus, $data in the commands")
    parser.add_argument(
        "--runs", type=Path, help="folder for the run folders; by default runs/ and the recipe's name"
    )
    parser.add_argument("--systems", nargs="+", help="names; by default all")
    parser.add_argument("--seeds", type=int, nargs="+", help="by default those of systems.yaml")
    parser.add_argument("--jobs", type=int, default=1, help="systems at a time, of one thread each")
    parser.add_argument("--again", action="store_true", help="run again what another commit has run")
    parser.add_argument("--table", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    recipe = Recipe(arguments.recipe)
    if not arguments.table:
        if arguments.data is None:
            parser.error("--data is missing")
        measure_missing(recipe, arguments)
    print("\n".join(table(recipe.current_rows())))


class Recipe:
    """A folder with systems.yaml and results.jsonl.

    systems.yaml has:

    - seeds: what $seed stands for.
    - steps: what $steps stands for; $every is a tenth of it.
    - equal_minutes_to: name of a system. Each other one runs twice: with $steps as it is, and with as many as take the
      CPU time of this one.
    - command: what all systems have in common.
    - systems: for each name the rest of its command, or a list of whole commands. $run is its run folder, $data the
      folder of the corpus, $recipe that of the recipe, $NAME the run folder of another system with the same seed.
    - references: file of the test set's references in $data; its translations are those that the run folder has.
    - metrics: for `mtkit evaluate`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        spec = yaml.safe_load((self.folder / "systems.yaml").read_text(encoding="utf-8"))
        self.seeds: list[int] = spec["seeds"]
        self.steps: int = spec.get("steps", 0)
        self.baseline: str | None = spec.get("equal_minutes_to")
        self.command: str = spec.get("command", "")
        self.systems: dict[str, str | list[str]] = spec["systems"]
        self.references: str = spec["references"]
        self.langs: str = spec["langs"]
        self.metrics: list[str] = spec.get("metrics", ["bleu", "chrf"])

    def commands(self, system: str, seed: int, steps: int) -> list[str]:
        """Return the commands of a system, in which the names of folders are not filled in."""
        spec = self.systems[system]
        lines = spec if isinstance(spec, list) else [f"{self.command} {spec}"]
        values = {"seed": seed, "steps": steps, "every": max(1, steps // 10)}
        return [Template(line).safe_substitute(values).strip() for line in lines]

    def folders(self, run: Path, data: Path, seed: int) -> dict[str, str]:
        """Return what the names of folders in the commands of a run stand for."""
        others = {_placeholder(system): str(run_folder(run.parent, system, seed)) for system in self.systems}
        return {**others, "run": str(run), "data": str(data), "recipe": str(self.folder)}

    def config_hash(self, commands: list[str]) -> str:
        """Return a hash of the configs that commands name, without their comments."""
        words = [word for command in commands for word in shlex.split(command) if word.endswith(".yaml")]
        paths = [ROOT / Template(word).safe_substitute(recipe=str(self.folder)) for word in words]
        configs = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths]
        return hashlib.sha256(json.dumps(configs).encode()).hexdigest()[:12]

    def identity(self, system: str, seed: int, equal: str, steps: int) -> Row:
        """Return what tells a row from others, apart from the commit."""
        commands = self.commands(system, seed, steps)
        config = self.config_hash(commands)
        names = {found["named"] for line in commands for found in Template.pattern.finditer(line)}
        for other in self.systems:  # with which this one begins
            if _placeholder(other) in names:
                begins_with = self.identity(other, seed, "updates", self.steps)
                config = hashlib.sha256(json.dumps([config, begins_with]).encode()).hexdigest()[:12]
        return {"system": system, "seed": seed, "equal": equal, "steps": steps, "commands": commands,
                "config": config}  # fmt: skip

    def is_used(self, system: str) -> bool:
        """Return whether another system begins with this one, or is compared with its cost."""
        name = "$" + _placeholder(system)
        return system == self.baseline or any(name in str(spec) for spec in self.systems.values())

    def relative_cost(self, system: str) -> float:
        """Return the CPU time of a system as a multiple of the baseline's, with the first seed that both have."""
        costs = {
            (row["system"], row["seed"]): row["cpu_minutes"]
            for row in self.current_rows()
            if row["equal"] == "updates" and row["cpu_minutes"] is not None
        }
        for name, seed in costs:
            if name == system and (self.baseline, seed) in costs:
                return float(costs[name, seed] / costs[self.baseline, seed])
        hint = "measure both, with --again if a killed call has lost it"
        sys.exit(f"no CPU time of {system} and {self.baseline} with the same seed: {hint}")

    def rows(self) -> list[Row]:
        """Return the rows of results.jsonl."""
        path = self.folder / "results.jsonl"
        return [json.loads(line) for line in path.open(encoding="utf-8")] if path.exists() else []

    def current_rows(self) -> list[Row]:
        """Return the newest row of each system, seed and kind of comparison, of today's commands and configs."""
        found = {}
        for row in self.rows():
            steps = self.steps if row["equal"] == "updates" else row["steps"]
            if row["system"] in self.systems:
                identity = self.identity(row["system"], row["seed"], row["equal"], steps)
                if row | identity == row:
                    found[row["system"], row["seed"], row["equal"]] = row
        return list(found.values())

    def add(self, row: Row) -> None:
        """Append a row to results.jsonl."""
        with writing, (self.folder / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _placeholder(system: str) -> str:
    """Return the name of a system in commands."""
    return system.replace(" ", "_")


def run_folder(runs: Path, system: str, seed: int, equal: str = "updates") -> Path:
    """Return the run folder of a system."""
    return runs / "-".join(
        [system.replace(" ", "-"), *(["minutes"] if equal == "minutes" else []), str(seed)]
    )


@dataclass
class Progress:
    """What is done of a run, in a file beside its folder.

    Attributes:
        identity: see `Recipe.identity`.
        commit: that of mtkit.
        num_done: number of its commands that are done.
        seconds: time that they and the one that was stopped have taken.
        cpu_seconds: CPU time.
        is_running: whether a command runs. If it does at the start of a call, its times were lost.
        is_timed: whether no time was lost.
    """

    identity: Row
    commit: str
    num_done: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    is_running: bool = False
    is_timed: bool = True


def open_progress(run: Path, identity: Row, commit: str, *, again: bool) -> Progress:
    """Return what is done of a run; delete what an earlier measurement with other commands or configs left."""
    note = beside(run, ".json")
    if note.exists():
        found = Progress(**json.loads(note.read_text(encoding="utf-8")))
        found.is_timed = found.is_timed and not found.is_running
        is_same = found.commit == commit != "changed"
        if found.identity == identity and (not again or (is_same and found.is_timed)):
            if not is_same and found.num_done < len(identity["commands"]):
                found.commit = "changed"  # another one makes the rest
            return found
        for path in (run, beside(run, "-int8"), *run.parent.glob(f"{run.name}.*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif run.exists():
        sys.exit(f"{run} is not from a measurement that can go on: delete it, or choose other --runs")
    return Progress(identity, commit)


def beside(run: Path, suffix: str) -> Path:
    """Return the path of something that belongs to a run folder."""
    return run.with_name(run.name + suffix)


def measure_missing(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Measure every system that has no row: those first that others begin with."""
    names = arguments.systems or list(recipe.systems)
    equals = ["updates", "minutes"] if recipe.baseline else ["updates"]
    for seed, is_used, equal in product(arguments.seeds or recipe.seeds, (True, False), equals):
        chosen = [name for name in names if recipe.is_used(name) == is_used]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(measure, repeat(recipe), repeat(arguments), chosen, repeat(seed), repeat(equal)))


def measure(recipe: Recipe, arguments: argparse.Namespace, system: str, seed: int, equal: str) -> None:
    """Run the commands of a system and add its row, unless it has one."""
    steps = recipe.steps
    if equal == "minutes":
        ratio = 1.0 if system == recipe.baseline else recipe.relative_cost(system)
        if abs(ratio - 1) < SAME_COST:
            return
        steps = round(steps / ratio)
    commit = git("rev-parse", "HEAD") if not git("status", "--porcelain", "mtkit") else "changed"
    row = recipe.identity(system, seed, equal, steps)
    known = [old for old in recipe.rows() if old | row == old]
    if known and not arguments.again:
        return
    if any(old["commit"] == commit != "changed" and old["cpu_minutes"] is not None for old in known):
        return
    runs = (arguments.runs or ROOT / "runs" / recipe.folder.name).resolve()
    runs.mkdir(parents=True, exist_ok=True)
    run, data = run_folder(runs, system, seed, equal), arguments.data.resolve()
    progress = open_progress(run, row, commit, again=arguments.again)
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if arguments.jobs > 1 else {})}
    for command in row["commands"][progress.num_done :]:
        filled = Template(command).substitute(recipe.folders(run, data, seed))
        run_command(filled, run, progress, environment)
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    facts = json.loads((run / "facts.json").read_text(encoding="utf-8"))
    hyps = next((run / "test").glob("*.hyps.txt"))
    minutes = [
        round(each / 60, 3) if progress.is_timed else None
        for each in (progress.seconds, progress.cpu_seconds)
    ]
    row |= {
        "commit": progress.commit, "minutes": minutes[0], "cpu_minutes": minutes[1],
        "jobs": arguments.jobs, "machine": f"{os.cpu_count()} x {facts['processor']}",
        "validation": results["best"], "best_step": results["best_step"], "step": results["step"],
        "scores": score(hyps, data / recipe.references, recipe),
    }  # fmt: skip
    recipe.add(row)


def run_command(command: str, run: Path, progress: Progress, environment: dict[str, str]) -> None:
    """Run a command of mtkit, and add its times to the progress, those of its processes included."""
    words, log = shlex.split(command), beside(run, ".log")
    path = Path(words[words.index(">") + 1]) if ">" in words else log
    words = words[: words.index(">")] if ">" in words else words
    write_progress(run, progress, is_running=True)
    start = time.time()
    with log.open("a", encoding="utf-8") as errors, path.open("a" if path == log else "w") as output:
        process = subprocess.Popen([*MTKIT, *words], stdout=output, stderr=errors, env=environment, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    progress.seconds += time.time() - start
    progress.cpu_seconds += usage.ru_utime + usage.ru_stime
    progress.num_done += process.returncode == 0
    write_progress(run, progress, is_running=False)
    if process.returncode:
        sys.exit(f"mtkit {command}\nexited with {process.returncode}: see {log}")


def write_progress(run: Path, progress: Progress, *, is_running: bool) -> None:
    """Write the file beside the run folder."""
    progress.is_running = is_running
    beside(run, ".json").write_text(json.dumps(asdict(progress)), encoding="utf-8")


def score(hyps: Path, references: Path, recipe: Recipe) -> list[Row]:
    """Return the scores of translations, with intervals and signatures."""
    metrics = [word for metric in recipe.metrics for word in ("--metric", metric)]
    words = ["evaluate", str(hyps), "--ref", str(references), *metrics, "--langs", recipe.langs, "--json"]
    printed = subprocess.run([*MTKIT, *words], check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout
    scores: list[Row] = json.loads(printed)[0]["scores"]
    return scores


def git(*words: str) -> str:
    """Return what a git command prints about mtkit."""
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()


def table(rows: list[Row]) -> list[str]:
    """Return a Markdown table, and the signatures of the scores.

    For each system it has the mean and standard deviation of the scores over the seeds, and half the mean width of
    their 95 % intervals, which tell how much another test set of this size could differ.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["system"], row["equal"]), []).append(row)
    names = [score["name"] for score in rows[0]["scores"]] if rows else []
    lines = [
        "| system | updates | CPU minutes | validation | "
        + "".join(f"{name} | 95 % | " for name in names)
        + "seeds |",
        "|---" * (2 * len(names) + 5) + "|",
    ]
    for (system, equal), group in groups.items():
        times = [row["cpu_minutes"] for row in group if row["cpu_minutes"] is not None]
        cells = [
            system + (", equal minutes" if equal == "minutes" else ""),
            f"{group[0]['step']:,}",
            f"{statistics.mean(times):.1f}" if times else "–",
            mean_and_deviation([row["validation"] for row in group]),
        ]
        for scores in zip(*(row["scores"] for row in group), strict=True):
            cells.append(mean_and_deviation([score["score"] for score in scores]))
            cells.append(f"± {statistics.mean(score['confidence'] for score in scores):.2f}")
        lines.append(f"| {' | '.join([*cells, str(len(group))])} |")
    signatures = dict.fromkeys(
        f"{score['name']}: `{score['signature']}`" for row in rows for score in row["scores"]
    )
    return [*lines, "", *signatures]


def mean_and_deviation(values: list[float]) -> str:
    """Return the mean of values, and their standard deviation if there are several."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
