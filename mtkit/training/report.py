"""Reads run folders for the report, and writes it: `mtkit report`, and report.html of a run that trains."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from mtkit.checkpoint import CONFIG_FILE, MANIFEST_FILE, best_folder
from mtkit.config.loading import dump_config, flatten_config
from mtkit.config.sections import Config
from mtkit.config.yaml_document import format_value
from mtkit.data.sources import open_sources, read_sides, untagged
from mtkit.errors import ConfigError, DataError, MtkitError, StorageError
from mtkit.evaluation import metrics
from mtkit.evaluation.history import History, is_number, read_history, read_object
from mtkit.evaluation.metrics import Score
from mtkit.evaluation.overlap import Overlap, OverlapCounter, count_overlaps
from mtkit.evaluation.report.bundle import vega_bundle
from mtkit.evaluation.report.content import RunReport, TestAnalysis, TestSet, shared_tests
from mtkit.evaluation.report.page import render_report
from mtkit.evaluation.run_files import FACTS_FILE, REPORT_FILE, RESULTS_FILE, hyps_file
from mtkit.evaluation.runs import RunState
from mtkit.files import is_locked, read_lines, write_bytes
from mtkit.translation.breakdown import break_down
from mtkit.translation.model_folder import data_of_run, read_config
from mtkit.translation.options import LineProgress

_NUM_BOOTSTRAP = 1000
_GROUP_METRIC = "chrf"
"""Score of groups of sentences: unlike BLEU, it means something for few short ones."""
_MAX_SENTENCES, _MAX_WEIGHTS = 4, 200_000
"""Sentences and attention weights on a page; a weight takes two to four bytes."""
_MAX_SHARE_OF_TIME = 0.02
"""Largest share of the time between two reports of a run that trains that writing one may take."""


class ReportWriter:
    """Keeps report.html of a run that trains up to date. What fails here never stops the training.

    Args:
        run: run folder.
        say: shows a line.
        is_wanted: whether to write anything; only the main process should.
    """

    def __init__(self, run: Path, say: Callable[[str], None], *, is_wanted: bool) -> None:
        self._run, self._say = run, say
        self._is_wanted, self._has_complained = is_wanted, False
        self._next_time = 0.0

    def refresh(self, *, last: bool = False) -> None:
        """Write the report of what the run folder has. The first failure is said in a line, others are not.

        Args:
            last: whether the run ends. Otherwise nothing is written as long as it would take too large a part of the
                time since the last report.
        """
        if not self._is_wanted or (not last and time.monotonic() < self._next_time):
            return
        start = time.monotonic()
        try:
            vega_bundle()  # made once for all runs, if it is not in the cache
            start = time.monotonic()
            write_report([self._run], self._run / REPORT_FILE, loads_model=last)
        except Exception as error:
            if not self._has_complained:
                self._say(f"{REPORT_FILE} could not be written, training goes on: {_one_line(error)}")
            self._has_complained = True
        end = time.monotonic()
        self._next_time = end + (end - start) / _MAX_SHARE_OF_TIME


def _one_line(error: Exception) -> str:
    name = "" if isinstance(error, MtkitError) else f"{type(error).__name__}: "
    return name + " ".join(str(error).split())


def write_report(
    folders: Sequence[Path],
    output: Path,
    *,
    loads_model: bool = True,
    reads_training: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Write the page of one or several runs.

    Args:
        folders: run folders; the others are compared with the first.
        output: the HTML file.
        loads_model: whether to show the attention of the best checkpoint, if there is one run.
        reads_training: whether to compare the test sets with the training data of the first run.
        say: prints a line about the progress of that.

    Raises:
        ConfigError: If a folder is named twice, or a package that pages or scores need is not installed.
        DataError: If a model of a tokenizer for BLEU cannot be loaded, or training data cannot be read.
        StorageError: If a folder is not that of a run, or a file cannot be read or written.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, resolved, strict=True):
        if resolved.count(path) > 1:
            raise ConfigError("named twice", where=str(folder), hint="compare different runs")
    runs = [_read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        runs = [replace(run, name=str(folder)) for run, folder in zip(runs, folders, strict=True)]
    if loads_model and len(runs) == 1:
        runs = [replace(runs[0], attention=_attention_of_samples(folders[0], runs[0].history))]
    tests = shared_tests(runs)
    overlaps = _overlaps(folders[0], tests, say) if reads_training else [None] * len(tests)
    analyses = [_analyze(runs, *each) for each in zip(tests, overlaps, strict=True)]
    page = render_report(runs, analyses, vega_bundle())
    # Names of folders need not be UTF-8, and JSON can hold half of a surrogate pair.
    write_bytes(output, page.encode("utf-8", "replace"))


def _read_run(folder: Path) -> RunReport:
    """Read what a report shows of a run.

    Args:
        folder: run folder.

    Raises:
        StorageError: If it is not a run folder, or a file cannot be read.
    """
    if not folder.is_dir():
        what = "a file, not a run folder" if folder.exists() else "no such folder"
        raise StorageError(what, where=str(folder), hint="name a run folder")
    if (folder / MANIFEST_FILE).exists():
        hint = "name the run folder that it is in"
        raise StorageError("a model folder, not a run folder", where=str(folder), hint=hint)
    history = read_history(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise StorageError(
            f"no {CONFIG_FILE}: not a run folder", where=str(folder), hint="copy the whole folder"
        )
    config = read_config(folder, "it was written by another version of mtkit")
    results = read_object(folder / RESULTS_FILE)
    has_ended = is_number(results.get("step")) and results["step"] >= history.last_step
    state: RunState = "ended" if has_ended else "running" if is_locked(folder) else "stopped"
    return RunReport(
        name=folder.resolve().name,
        folder=os.path.abspath(folder),
        src=config.data.src,
        tgt=config.data.tgt,
        state=state,
        outcome=_outcome(state, history, config, results),
        best=config.validation.best,
        bleu_tokenizer=config.validation.bleu_tokenizer,
        history=history,
        tests=_read_tests(folder, config, results) if has_ended else [],
        facts=read_object(folder / FACTS_FILE),
        settings={key: format_value(value) for key, value in flatten_config(config).items()},
        config=dump_config(config),
        model=config.model,
    )


def _outcome(state: RunState, history: History, config: Config, results: dict[str, Any]) -> str:
    """Say in words why a run ended, or where it is."""
    if state == "ended":
        return str(results.get("ended", ""))
    limit = config.training.step_limit
    of_limit = f" of {limit:,}" if limit is not None else ""
    rollbacks = len(history.rollbacks)
    rolled = f", after {rollbacks} rollback{'s' if rollbacks > 1 else ''}" if rollbacks else ""
    # the page may outlast the training
    now = f" on {datetime.now():%Y-%m-%d at %H:%M}" if state == "running" else ""
    return f"at update {history.last_step:,}{of_limit}{rolled}{now}"


def _attention_of_samples(folder: Path, history: History) -> list[dict[str, Any]]:
    """Return the attention of the best checkpoint in the samples of the last validation, as plain data.

    Args:
        folder: run folder; without a checkpoint that can be loaded, there is none.
        history: has the samples.
    """
    [*_, last] = [[], *history.samples.values()]
    texts = list(dict.fromkeys(sample.src for sample in last))
    if not texts or not best_folder(folder).is_dir():
        return []
    from mtkit.translation.explain import attention_of_sentences  # takes seconds to import

    with suppress(MtkitError):
        return attention_of_sentences(folder, texts[:_MAX_SENTENCES], _MAX_WEIGHTS)
    return []


def _overlaps(folder: Path, tests: Sequence[Sequence[TestSet]], say: Callable[[str], None]) -> list[Overlap]:
    """Return the overlap of each test set with the training data of a run.

    Raises:
        ConfigError: If the training data needs a package that is not installed.
        DataError: If it cannot be read.
        StorageError: If the config cannot be read.
    """
    data = data_of_run(read_config(folder, "it was written by another version of mtkit"), folder)
    counters = [
        OverlapCounter(of_runs[0].srcs, [of_runs[0].refs], [own.hyps for own in of_runs]) for of_runs in tests
    ]
    sources = open_sources(untagged(data.train), data, "train")
    pairs = (pair for source in sources for _, pair in source.read())
    return count_overlaps(counters, LineProgress(say, task="reading training pairs").over(pairs))


def _analyze(runs: Sequence[RunReport], tests: Sequence[TestSet], overlap: Overlap | None) -> TestAnalysis:
    """Return the analysis of a test set that all runs have translated."""
    systems = {run.name: test.hyps for run, test in zip(runs, tests, strict=True)}
    first = tests[0]
    found = break_down(
        systems, [first.refs], srcs=first.srcs, overlap=overlap, metric=_GROUP_METRIC, tgt=runs[0].tgt
    )
    return TestAnalysis(first.name, found.as_dict(0))


# --- test sets ----------------------------------------------------------------------------------------------------


def _read_tests(folder: Path, config: Config, results: dict[str, Any]) -> list[TestSet]:
    """Return the test sets in results.json, with intervals if their text can be read."""
    texts, problem = _read_texts(folder, config)
    tests = []
    entries = results.get("tests")
    for entry in entries if isinstance(entries, list) else []:
        with suppress(KeyError, TypeError, ValueError, AttributeError):  # of another version
            setup = entry["translated_with"]
            decoding = config.decoding.model_copy(update=setup["decoding"])
            test = TestSet(
                entry["name"],
                [_score(fields) for fields in entry["scores"]],
                f"{decoding.label}, {setup['precision']} on {setup['device']}",
                _read_hyps(folder / hyps_file(entry["name"])),
                *texts.get(entry["name"], ([], [])),
                problem,
                entry.get("robustness", {}).get("copies", []),
            )
            tests.append(_with_intervals(test, config))
    return tests


def _score(fields: dict[str, Any]) -> Score:
    """Return a score of results.json."""
    return Score(str(fields["name"]), float(fields["score"]), str(fields["signature"]))


def _read_hyps(path: Path) -> list[str]:
    """Return the translations of a test set, none if the file is missing or damaged."""
    with suppress(MtkitError, OSError):
        return list(read_lines(path))
    return []


def _read_texts(folder: Path, config: Config) -> tuple[dict[str, tuple[list[str], list[str]]], str | None]:
    """Return sources and references of the test sets by name, and why they cannot be read, or None."""
    try:
        data = data_of_run(config, folder)
        sources = open_sources(untagged(data.test), data, "test")
        return {source.name: read_sides(source) for source in sources}, None
    except MtkitError as error:
        return {}, f"the references cannot be read: {_one_line(error)}"


def _with_intervals(test: TestSet, config: Config) -> TestSet:
    """Return a test set with the interval of each score, or with the reason why there is none."""
    if test.problem is not None:
        return test
    if not test.is_complete:
        return replace(test, problem="its translations and its references differ in number")
    chosen = [metrics.NAMES[score.name] for score in test.scores if score.name in metrics.NAMES]
    try:
        found = metrics.score(
            test.hyps,
            [test.refs],
            chosen,
            tokenize=config.validation.bleu_tokenizer,
            tgt=config.data.tgt,
            num_bootstrap=_NUM_BOOTSTRAP,
        )
    except (ConfigError, DataError) as error:
        return replace(test, problem=_one_line(error))
    by_name = {score.name: score for score in found}
    if any(abs(by_name.get(old.name, old).value - old.value) > 0.005 for old in test.scores):
        what = "the test set has changed since it was translated: its scores are others now"
        return replace(test, srcs=[], refs=[], problem=what)
    return replace(test, scores=[by_name.get(score.name, score) for score in test.scores])
