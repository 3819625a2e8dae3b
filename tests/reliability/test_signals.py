"""SIGTERM, SIGHUP and Ctrl-C at any time: the run is saved promptly, and the exit code tells."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiny

import mtkit
from mtkit.checkpoint import verify_checkpoint
from mtkit.data.tokenizer import Tokenizer
from mtkit.training.signals import Interrupted, Signals

OPTIONS = [
    "training.max_steps=6",
    "validation.every_steps=3",
    "validation.metrics=[]",
    "validation.best=loss",
]
AFTER_SAVING = "stopped after saving: run the same command again to resume"
BEFORE_TRAINING = "stopped before training began: run the same command again"


def slow_down(where: str, skip: int, mark: Path) -> None:
    """Make one call of a function slow: after some others, it leaves a mark and waits until that is removed."""
    signal.signal(
        signal.SIGHUP, signal.SIG_DFL
    )  # under nohup, the tests' children inherit that it is ignored
    module, _, name = where.rpartition(".")
    try:
        owner: Any = import_module(module)
    except ImportError:
        owner = getattr(import_module(module.rpartition(".")[0]), module.rpartition(".")[2])
    original, calls = getattr(owner, name), []

    def slowed(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == skip + 1:
            mark.touch()
            end = time.monotonic() + 60
            while mark.exists() and time.monotonic() < end:
                time.sleep(0.01)
        return original(*arguments, **options)

    setattr(owner, name, slowed)


PLACES = {
    "encoding": ("mtkit.data.encoding._next_texts", 0, BEFORE_TRAINING),
    "first-save": ("mtkit.checkpoint.write_checkpoint", 0, BEFORE_TRAINING),
    "validation": ("mtkit.training.validation.Validator.loss", 0, AFTER_SAVING),
    "best": ("mtkit.checkpoint.write_checkpoint", 1, AFTER_SAVING),
    "save": ("mtkit.checkpoint.write_checkpoint", 2, AFTER_SAVING),
    "tests": ("mtkit.translation.translator.Translator.translate", 0, AFTER_SAVING),
}
SLOW_PLACES = {"encoding", "first-save", "best", "tests"}
HUNG_UP = {"validation", "first-save"}
"""The places where the signal is SIGHUP, which a closed terminal sends."""


def start_slowed(place: str, config: Path, run: Path, mark: Path) -> subprocess.Popen[str]:
    """Start a run and wait until it reaches the slow function."""
    where, skip, _ = PLACES[place]

    def before() -> None:
        os.environ["MTKIT_CACHE"] = str(run.parent / "cache")
        slow_down(where, skip, mark)

    process = tiny.fork("train", config, f"run={run}", *OPTIONS, before=before)
    deadline = time.monotonic() + 300
    while not mark.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate())
        time.sleep(0.01)
    return process


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a signal."""
    folder = tmp_path_factory.mktemp("whole")
    config = tiny.write_config(folder / "config.yaml", run=folder / "run", root=corpus)
    assert tiny.mtkit("train", config, *OPTIONS)[0] == 0
    return folder / "run"


def assert_resumes_to_the_same_end(config: Path, run: Path, whole: Path) -> None:
    with tiny.environment(MTKIT_CACHE=str(run.parent / "cache")):
        assert tiny.mtkit("train", config, f"run={run}", *OPTIONS)[0] == 0
    assert tiny.losses(run) == tiny.losses(whole)
    for folder in ("checkpoints/step-00000006", "best"):
        assert tiny.tensors(run / folder) == tiny.tensors(whole / folder)
    leftovers = [*run.rglob("*.tmp"), *run.rglob(".*.old"), *(run.parent / "cache").rglob("*.tmp")]
    assert not leftovers


@pytest.mark.parametrize(
    "place", [pytest.param(p, marks=pytest.mark.slow if p in SLOW_PLACES else []) for p in PLACES]
)
def test_a_signal_anywhere(place: str, config: Path, tmp_path: Path, whole: Path) -> None:
    """Real processes are stopped in the middle of the slow function."""
    run = tmp_path / "run"
    mark = tmp_path / "mark"
    process = start_slowed(place, config, run, mark)
    start = time.monotonic()
    number, code = (signal.SIGHUP, 129) if place in HUNG_UP else (signal.SIGTERM, 143)
    process.send_signal(number)
    time.sleep(0.2)
    mark.unlink()  # what may not be torn apart comes to its end
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - start < 30  # seconds of a busy machine
    assert (process.returncode, tiny.one_line(err)) == (code, PLACES[place][2])
    for step in tiny.checkpoints(run):
        verify_checkpoint(tiny.checkpoint(run, step))
    assert_resumes_to_the_same_end(config, run, whole)


def test_a_second_ctrl_c_interrupts_a_save(config: Path, tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    process = start_slowed("save", config, run, tmp_path / "mark")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, "the first waits for the save"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, tiny.one_line(err)) == (130, "interrupted")
    assert tiny.checkpoints(run) == [0], "it did not wait for the save"
    assert_resumes_to_the_same_end(config, run, whole)


def test_nohup_is_respected() -> None:
    """`nohup` makes the process ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals().installed():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sigterm_while_torch_is_loaded(config: Path, tmp_path: Path) -> None:
    process = tiny.spawn("train", config, f"run={tmp_path / 'run'}", *OPTIONS)
    maps = Path(f"/proc/{process.pid}/maps")
    deadline = time.monotonic() + 60
    while "libtorch_python" not in maps.read_text() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, tiny.one_line(err)) == (143, BEFORE_TRAINING)


def test_sigterm_while_the_tokenizer_is_trained(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SentencePiece runs C++ for minutes without handling signals, so it has a thread of its own."""
    release = threading.Event()

    def train(**_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        release.wait(60)

    with monkeypatch.context() as patch:
        patch.setattr(sentencepiece.SentencePieceTrainer, "train", train)
        start = time.monotonic()
        options = [*OPTIONS, f"run={tmp_path / 'run'}", f"data.cache={tmp_path / 'cache'}"]
        with pytest.raises(Interrupted) as caught:
            mtkit.train(mtkit.load_config(config, options))
        assert time.monotonic() - start < 30  # seconds of a busy machine
        release.set()
    assert (caught.value.exit_code, caught.value.saved) == (143, False)


def test_ctrl_c_while_encoding_leaves_no_corpus_in_the_cache(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Tokenizer.encode_flat

    def encode_flat(self: Tokenizer, lines: list[str]) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)  # the main thread takes the signal, while this one encodes
        return original(self, lines)

    options = [*OPTIONS, f"run={tmp_path / 'run'}", f"data.cache={tmp_path / 'cache'}"]
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_flat", encode_flat)
        code, _, err = tiny.mtkit("train", config, *options)
    assert (code, tiny.one_line(err)) == (130, BEFORE_TRAINING)
    assert all(".partial.tmp" in path.name for path in (tmp_path / "cache/corpora").iterdir())
    assert tiny.mtkit("train", config, *options)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_sigterm_ten_times_at_random(config: Path, tmp_path: Path, seed: int) -> None:
    """Signals at random times are always handled, and in the end nothing is lost."""
    options = [*OPTIONS, "training.max_steps=400", "validation.every_steps=7", "data.test=[]"]
    whole, run, rng = tmp_path / "whole", tmp_path / "run", random.Random(seed)
    assert tiny.mtkit("train", config, f"run={whole}", *options)[0] == 0
    start = time.monotonic()
    first = tiny.run_process("train", config, f"run={tmp_path / 'first'}", *options, "training.max_steps=1")
    assert first.returncode == 0
    seconds_to_start = time.monotonic() - start
    for _ in range(10):
        process = tiny.spawn("train", config, f"run={run}", *options, stdout=subprocess.DEVNULL)
        time.sleep(seconds_to_start * rng.uniform(0.1, 1.3))
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - start < 30  # seconds of a busy machine
        # before the command line is read, the signal itself ends the process: for a shell that is 143 as well
        assert (process.returncode, err) in (
            (-signal.SIGTERM, ""),
            (143, f"{BEFORE_TRAINING}\n"),
            (143, f"{AFTER_SAVING}\n"),
        )
    assert tiny.mtkit("train", config, f"run={run}", *options)[0] == 0
    assert tiny.losses(run) == tiny.losses(whole)
    assert tiny.tensors(tiny.checkpoint(run, 400)) == tiny.tensors(tiny.checkpoint(whole, 400))
