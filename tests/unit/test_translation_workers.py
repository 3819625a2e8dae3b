"""Worker processes, really forked and killed, with tiny untrained models: nothing changes, and nothing is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_translator import make, save, sentences

from mtkit.errors import ConfigError, DataError, TrainingError
from mtkit.search.state import Hypothesis
from mtkit.translation import batched_search
from mtkit.translation.assembly import Translation
from mtkit.translation.engine import Search
from mtkit.translation.options import SERIAL, Parallelism, TranslateOptions
from mtkit.translation.segments import Request
from mtkit.translation.translator import Translator
from mtkit.translation.workers import Workers

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux forks workers")

LINES = ["", *sentences(26, longest=7), "x", "", "the man sees a bird, and my sister hears children. " * 5]


def forking(translator: Translator) -> Translator:
    """Return the translator with workers that are processes."""
    config = (translator.tokenizers, translator.decoding, translator.max_source_tokens)
    return Translator(translator.model, *config, forks=True)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few lines be several batches."""
    monkeypatch.setattr(batched_search, "_MIN_BATCH_TOKENS_ON_CPU", 64)


def translate(
    translator: Translator, lines: Sequence[str | Request], number: int, **keys: Any
) -> list[list[Translation]]:
    options = TranslateOptions(parallelism=Parallelism(number, 1), read_ahead=20, **keys)
    try:
        return list(translator.translate_n_best(lines, options))
    finally:
        assert len(translator.workers._children) == (number if number > 1 else 0)
        translator.close()


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(
    ("decoding", "keys"),
    [
        ({}, {"keep_links": True, "keep_log_probs": True}),
        ({"beam_size": 4, "n_best": 3}, {}),
        ({"sample": True, "n_best": 2}, {"first_line": 5}),
        ({"beam_size": 1}, {"split_sentences": True, "keep_attention": True}),
    ],
)
def test_any_number_of_workers_gives_the_same(decoding: Any, keys: Any) -> None:
    expected = translate(forking(make(**decoding)), LINES, 1, **keys)
    for number in (2, 3):
        found = translate(forking(make(**decoding)), LINES, number, **keys)
        assert [[t.text for t in n_best] for n_best in found] == [
            [t.text for t in n_best] for n_best in expected
        ]
        for own, other in zip(found, expected, strict=True):
            assert [t.score for t in own] == [t.score for t in other]
            assert [t.links for t in own] == [t.links for t in other]
            assert [t.log_probs for t in own] == [t.log_probs for t in other]
            for mine, theirs in zip(own[0].aligned, other[0].aligned, strict=True):
                assert (mine.weights == theirs.weights).all()


@pytest.mark.usefixtures("small_batches")
def test_faults_are_those_of_one_worker() -> None:
    """A fault stops the lines behind it and none before it, or is skipped, whoever computes."""
    lines: list[str | Request] = [*LINES[:25], Request("a bird", prefix="der " * 99), *LINES[:9]]
    told: list[int] = []
    for number in (1, 2):
        told.clear()
        translator = forking(make())
        options = TranslateOptions(parallelism=Parallelism(number, 1), read_ahead=10)
        results = translator.translate(lines, options)
        assert len([next(results) for _ in range(25)]) == 25
        with pytest.raises(DataError, match="its prefix and constraints need") as caught:
            next(results)
        assert caught.value.where == "line 26"
        found = translate(translator, lines, number, on_error="skip", on_fault=lambda i, _: told.append(i))
        assert told == [25]
        assert (found[25][0].text, len(found)) == ("", len(lines))


@pytest.mark.usefixtures("small_batches")
def test_scores_and_alignments_of_given_translations() -> None:
    translator = forking(make(batch_tokens=60))
    pairs = list(zip(LINES, ["der alte Mann."] * len(LINES), strict=True))
    found = []
    for number in (1, 2):
        parallelism = Parallelism(number, 1)
        scores = [
            result and result.score
            for _, result in translator.score_stream(pairs, True, parallelism=parallelism)
        ]
        found.append((scores, list(translator.align(pairs, parallelism=parallelism))))
    assert len(translator.workers._children) == 2
    translator.close()
    assert found[0] == found[1]


def kill_once(mark: Path, parent: int) -> Callable[..., Any]:
    """Return a search that kills the first worker that calls it."""
    search = batched_search.search

    def deadly(*arguments: Any) -> list[list[Hypothesis]]:
        if os.getpid() != parent:
            try:
                mark.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return search(*arguments)

    return deadly


@pytest.mark.usefixtures("small_batches")
def test_a_killed_worker_is_named_and_its_batch_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [t.text for t in make().translate(LINES, TranslateOptions(parallelism=SERIAL))]
    monkeypatch.setattr(batched_search, "search", kill_once(tmp_path / "killed", os.getpid()))
    translator, told = forking(make()), list[str]()
    options = TranslateOptions(parallelism=Parallelism(3, 1, told.append))
    assert [t.text for t in translator.translate(LINES, options)] == expected
    [message] = told
    assert message.startswith("worker ") and " was killed by SIGKILL; its batch is done again" in message
    assert len(translator.workers._children) == 2
    assert [t.text for t in translator.translate(LINES, options)] == expected
    translator.close()


@pytest.mark.usefixtures("small_batches")
def test_without_a_worker_left_the_main_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [t.text for t in make().translate(LINES, TranslateOptions(parallelism=SERIAL))]
    search, parent = batched_search.search, os.getpid()

    def deadly(*arguments: Any) -> list[list[Hypothesis]]:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return search(*arguments)

    monkeypatch.setattr(batched_search, "search", deadly)
    translator, told = forking(make()), list[str]()
    options = TranslateOptions(parallelism=Parallelism(2, 1, told.append))
    assert [t.text for t in translator.translate(LINES, options)] == expected
    assert len(told) == 2 and translator.workers._children == []


def test_errors_of_a_worker_are_raised_here() -> None:
    def fail(number: int) -> int:
        if number == 3:
            raise TrainingError("out of memory", hint="a smaller batch")
        return number

    found = Workers(torch.device("cpu"), forks=True)
    found.add(fail)
    results = found.run(fail, range(6), Parallelism(2, 1))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TrainingError, match=r"out of memory \(a smaller batch\)"):
        next(results)
    assert list(found.run(fail, [1, 2], Parallelism(2, 1))) == [1, 2]  # the workers live on
    found.close()


def test_a_process_forked_from_one_with_workers_computes_by_itself() -> None:
    def double(number: int) -> int:
        return 2 * number

    found = Workers(torch.device("cpu"), forks=True)
    found.add(double)
    assert list(found.run(double, range(6), Parallelism(2, 1))) == [0, 2, 4, 6, 8, 10]
    process = os.fork()
    if process == 0:
        code = 1
        try:
            signal.alarm(60)
            code = 0 if list(found.run(double, range(3), Parallelism(2, 1))) == [0, 2, 4] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert list(found.run(double, [5, 6], Parallelism(2, 1))) == [10, 12]  # those of this process live on
    found.close()


def test_results_that_are_asked_for_after_workers_were_closed_are_computed_here() -> None:
    def slow(number: int) -> int:
        time.sleep(0.01)
        return number

    found = Workers(torch.device("cpu"), forks=True)
    found.add(slow)
    results = found.run(slow, range(40), Parallelism(2, 1))
    assert next(results) == 0
    found.close()
    assert list(results) == list(range(1, 40))


def test_workers_have_threads_of_their_own_number_and_end_with_their_owner() -> None:
    def threads(_: int) -> tuple[int, int]:
        torch.exp(torch.randn(2**17))  # threads of OpenMP are not forked: this must not wait for them
        return os.getpid(), torch.get_num_threads()

    torch.set_num_threads(2)
    try:
        threads(0)
        found = Workers(torch.device("cpu"), forks=True)
        found.add(threads)
        processes = dict(found.run(threads, range(8), Parallelism(2, 2)))
    finally:
        torch.set_num_threads(1)
    assert set(processes.values()) == {2} and os.getpid() not in processes
    assert found.private_bytes() > 0
    del found
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_few_lines_start_no_worker_and_a_process_with_threads_forks_none_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    translator = forking(make())
    list(translator.translate(LINES[:20], TranslateOptions(parallelism=Parallelism(4, 1))))
    assert not translator.workers._children and not translator.workers._dealers
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(batched_search, "_MIN_BATCH_TOKENS_ON_CPU", 64)
    monkeypatch.setattr(threading, "active_count", lambda: 7)
    expected = [t.text for t in make().translate(LINES, TranslateOptions(parallelism=SERIAL))]
    assert [t.text for t in translator.translate(LINES)] == expected
    assert not translator.workers._children and translator.workers._dealers[0].number == 2
    translator.close()


def test_auto_is_one_worker_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    numbers = Workers(torch.device("cpu")).numbers
    assert numbers(Parallelism()) == (8, 1)
    assert numbers(Parallelism(num_threads=4)) == (2, 4)
    assert numbers(Parallelism(num_threads=16)) == (1, 16)
    assert numbers(Parallelism(3)) == (3, 2)
    assert numbers(SERIAL) == (1, 8)
    assert Workers(torch.device("cuda")).numbers(Parallelism()) == (1, 8)
    monkeypatch.setattr("mtkit.translation.workers.available_bytes", lambda: 1.6e9)
    assert numbers(Parallelism()) == (8, 1)  # threads share their memory
    forking_workers = Workers(torch.device("cpu"), forks=True)
    assert forking_workers.numbers(Parallelism()) == (3, 2)
    monkeypatch.setattr("mtkit.translation.workers.available_bytes", lambda: 0)
    assert forking_workers.numbers(Parallelism()) == (3, 2)  # what is taken is taken by these workers
    assert Workers(torch.device("cpu"), forks=True).numbers(Parallelism()) == (1, 8)
    for wrong in ({"num_workers": 0}, {"num_threads": -1}, {"num_workers": "all"}):
        with pytest.raises(ConfigError, match="is not a number from 1"):
            Parallelism(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("is_there", "num_read"), [(False, 10), (True, 30)])
def test_further_lines_are_read_only_if_they_are_there_and_workers_want_them(
    is_there: bool, num_read: int
) -> None:
    """And what was read before an error is translated first."""
    read: list[str] = []

    def stream() -> Iterator[str]:
        for line in sentences(50):
            read.append(line)
            yield line
        raise ValueError("the reader's own error")

    translator, running = make(), list[int]()
    start = translator.batched_search.start_search

    def begin(*arguments: Any) -> Search:
        running.append(len(running))
        return replace(start(*arguments), wants_more=lambda: len(running) % 3 > 0)

    translator.batched_search.start_search = begin  # type: ignore[method-assign]
    options = TranslateOptions(read_ahead=10, is_ready=lambda seconds: seconds > 0 or is_there)
    results = translator.translate(stream(), options)
    found = [next(results).text]
    assert len(read) == num_read
    with pytest.raises(ValueError, match="own error"):
        found.extend(translation.text for translation in results)
    assert found == [t.text for t in make().translate(sentences(50))]


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_batches")
def test_translate_with_workers_resumes_and_skips_as_with_one(tmp_path: Path) -> None:
    save(tmp_path / "run")
    lines = LINES[-12:]
    source = tiny.write_lines(tmp_path / "in", lines)
    outputs = []
    for number in (1, 2):
        out = tmp_path / f"out{number}"
        command = ("translate", tmp_path / "run", source, "-o", out, "--resume", "--workers", number,
                   "--read-ahead", 9, "--on-error", "copy", "--max-line-tokens", 30, "--n-best", 2)  # fmt: skip
        code, _, err = tiny.mtkit(*command)
        assert code == 0, err
        assert "was not translated but copied: 12" in err
        whole = out.read_bytes()
        out.write_bytes(whole[: len(whole) // 2])
        (note,) = tmp_path.glob(f"out{number}.mtkit-job")
        note.write_text(note.read_text().replace("finished output", "unfinished"))
        assert tiny.mtkit(*command)[0] == 0
        assert out.read_bytes() == whole
        outputs.append(whole)
    assert outputs[0] == outputs[1]


def test_options_of_workers_are_checked(tmp_path: Path) -> None:
    save(tmp_path / "run")
    code, _, err = tiny.mtkit("translate", tmp_path / "run", "--workers", "many", stdin="a\n")
    assert (code, err) == (2, "error: --workers: 'many' is not a number from 1 (a number, or auto)\n")
    assert tiny.mtkit("translate", tmp_path / "run", "--threads", 0, stdin="a\n")[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)]
)
def test_a_signal_ends_the_command_and_its_workers_at_once(tmp_path: Path, number: int, code: int) -> None:
    save(tmp_path / "run")
    source = tiny.write_lines(tmp_path / "in", sentences(4000))
    process = tiny.spawn("translate", tmp_path / "run", source, "-o", tmp_path / "out", "--workers", 2,
                         "--read-ahead", 500)  # fmt: skip
    while len(found := tiny.children(process.pid)) < 2 or not (tmp_path / "out").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert err.strip().split("\n")[-1] == "interrupted" if number == signal.SIGINT else "Traceback" not in err
    for _ in range(500):
        if not any(map(tiny.is_alive, found)):
            break
        time.sleep(0.02)
    assert not any(map(tiny.is_alive, found))


@pytest.mark.slow
def test_a_killed_worker_is_named_on_stderr(tmp_path: Path) -> None:
    save(tmp_path / "run")
    source = tiny.write_lines(tmp_path / "in", sentences(3000))
    expected = tmp_path / "expected"
    assert (
        tiny.mtkit("translate", tmp_path / "run", source, "-o", expected, "--quiet", "--workers", 1)[0] == 0
    )
    process = tiny.spawn(
        "translate", tmp_path / "run", source, "-o", tmp_path / "out", "--workers", 2, "--quiet"
    )
    while len(found := tiny.children(process.pid)) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(found[1], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0
    assert err.startswith(f"worker 2, process {found[1]}, was killed by SIGKILL; its batch is done again")
    assert err.count("\n") == 1
    assert (tmp_path / "out").read_bytes() == expected.read_bytes()


@pytest.mark.usefixtures("small_batches")
def test_threads_with_other_numbers_of_workers_do_not_disturb_each_other() -> None:
    translator = make()
    expected = [found.text for found in translator.translate(LINES, TranslateOptions(parallelism=SERIAL))]
    faults: list[BaseException] = []

    def run(number: int) -> None:
        try:
            options = TranslateOptions(parallelism=Parallelism(number, 1))
            for _ in range(4):
                assert [found.text for found in translator.translate(LINES, options)] == expected
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=[number]) for number in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("num_started", [0, 1])
def test_a_fork_that_fails_leaves_the_work_to_others(
    monkeypatch: pytest.MonkeyPatch, num_started: int
) -> None:
    expected = [found.text for found in make().translate(LINES, TranslateOptions(parallelism=SERIAL))]
    fork, said = os.fork, list[str]()

    def failing() -> int:
        if len(translator.workers._children) >= num_started:
            raise OSError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", failing)
    translator = forking(make())
    options = TranslateOptions(parallelism=Parallelism(3, 1, on_loss=said.append))
    assert [found.text for found in translator.translate(LINES, options)] == expected
    assert len(translator.workers._children) == num_started
    assert said[0] == "no further worker could be started: Resource temporarily unavailable"
    translator.close()
