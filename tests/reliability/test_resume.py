"""A run that was stopped, in whatever way, resumes as if it had not been: the same weights, bit for bit."""

import gzip
import hashlib
import io
import json
import lzma
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from rich.console import Console

import mtkit
from mtkit.checkpoint import verify_checkpoint
from mtkit.config.loading import load_stored_config
from mtkit.config.sections import Config, TrainingConfig
from mtkit.data.tokenizer import load_tokenizers
from mtkit.errors import ConfigError
from mtkit.files import sha256_file
from mtkit.training import checkpointing
from mtkit.training import resume as resuming
from mtkit.training.resume import check_changes, with_old_defaults
from mtkit.training.signals import Interrupted
from mtkit.training.trainer import Trainer
from mtkit.training.validation import Validator

OPTIONS = [
    "training.max_steps=20", "validation.every_steps=6", "model.attention_dropout=0.1",
    "model.activation_dropout=0.1", "training.keep_last=100",
]  # fmt: skip
LAST = 20


@pytest.fixture
def make(tmp_path: Path, corpus: Path) -> Callable[..., Config]:
    """Write the config of a run in a folder below the test's own."""

    def configure(name: str, *overrides: str) -> Config:
        path = tiny.write_config(tmp_path / f"{name}.yaml", run=tmp_path / name, root=corpus)
        return mtkit.load_config(path, [*OPTIONS, *overrides])

    return configure


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Config:
    """The config of a run that nothing has stopped; read-only."""
    folder = tmp_path_factory.mktemp("whole")
    path = tiny.write_config(folder / "whole.yaml", run=folder / "whole", root=corpus)
    config = mtkit.load_config(path, OPTIONS)
    mtkit.train(config)
    return config


def train_and_interrupt(config: Config, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until SIGTERM arrives in the middle of an update."""
    original = Trainer.train_step

    def train_step(self: Trainer, update: Any) -> None:
        if self.state.step + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        original(self, update)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        with pytest.raises(Interrupted) as caught:
            mtkit.train(config)
    assert caught.value.exit_code == 143
    assert tiny.checkpoints(Path(config.run))[-1] == step


def assert_same(stopped: Config, whole: Config, last: int = LAST) -> None:
    """Check that two runs have the same result: everything trained, logged and translated."""
    a, b = Path(stopped.run), Path(whole.run)
    assert tiny.losses(a) == tiny.losses(b)
    trained_a, trained_b = (tiny.tensors(tiny.checkpoint(run, last)) for run in (a, b))
    assert set(trained_a) == {"model.safetensors", "optimizer.safetensors"}
    assert trained_a == trained_b
    assert tiny.tensors(a / "best") == tiny.tensors(b / "best")
    for name in ("results.json", "test/test.hyps.txt"):
        assert (a / name).read_text() == (b / name).read_text()


# --- stopped by a signal, anywhere --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param([], id="plain"),
        pytest.param(["training.accumulate=2"], id="accumulate", marks=pytest.mark.slow),
        pytest.param(
            [
                "training.accumulate=3",
                "training.ema_decay=0.9",
                "training.precision=bf16",
                "training.log_every_steps=7",
            ],
            id="ema-bf16-seldom-logged",
        ),
        pytest.param(["training.schedule=cosine"], id="cosine", marks=pytest.mark.slow),
        pytest.param(["training.precision=fp16"], id="fp16", marks=pytest.mark.slow),
        pytest.param(
            ["training.max_steps=null", "training.max_epochs=1"], id="epochs", marks=pytest.mark.slow
        ),
    ],
)
def test_stopped_four_times(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    whole, stopped = make("whole", *overrides), make("stopped", *overrides)
    last = mtkit.train(whole).step
    for step in (1, 8, 9, 17):
        if step < last:
            train_and_interrupt(stopped, step, monkeypatch)
    assert mtkit.train(stopped).step == last
    assert_same(stopped, whole, last)


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_stopped_at_the_edge_of_an_epoch(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    """The run stops after the last update of an epoch, and after an update with batches of two epochs."""
    batches = ["training.batch_tokens=800", f"training.accumulate={accumulate}"]
    whole, stopped = make("whole", *batches), make("stopped", *batches)
    shown = io.StringIO()
    mtkit.train(whole, console=Console(file=shown))
    num_batches = int(re.findall(r"batches +(\d+) an epoch", shown.getvalue())[0])
    assert num_batches % 2 == 1, "an odd number, so that a pair of batches straddles the edge"
    steps = [num_batches] if accumulate == 1 else [num_batches // 2 + 1, num_batches]
    for step in steps:
        train_and_interrupt(stopped, step, monkeypatch)
    states = [state_of(Path(stopped.run), step) for step in steps]
    edges = [(0, num_batches)] if accumulate == 1 else [(1, 1), (1, num_batches)]
    assert [(state["epoch"], state["batch"]) for state in states] == edges
    mtkit.train(stopped)
    assert_same(stopped, whole)


def state_of(run: Path, step: int) -> dict[str, Any]:
    """Return the training state stored in a checkpoint."""
    return json.loads((tiny.checkpoint(run, step) / "state.json").read_text())


def test_stopped_while_validating(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped = (make(name, "training.ema_decay=0.9") for name in ("whole", "stopped"))
    mtkit.train(whole)
    original = Validator.loss

    def loss(self: Validator, model: Any, *world: Any) -> float:
        signal.raise_signal(signal.SIGTERM)
        return original(self, model, *world)

    for _ in range(2):  # the second time at once, without an update in between
        with monkeypatch.context() as patch:
            patch.setattr(Validator, "loss", loss)
            with pytest.raises(Interrupted):
                mtkit.train(stopped)
    assert tiny.checkpoints(Path(stopped.run)) == [0, 6]
    mtkit.train(stopped)
    assert_same(stopped, whole)


def test_killed_after_a_validation_that_a_signal_had_broken(
    make: Callable[..., Config], whole: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint saved on the signal knows nothing of the validation, which is repeated and logged once."""
    stopped = make("stopped")
    with monkeypatch.context() as patch:
        patch.setattr(Validator, "loss", lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            mtkit.train(stopped)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed_at(9))
        with pytest.raises(Killed):
            mtkit.train(stopped)
    mtkit.train(stopped)
    assert_same(stopped, whole)


class Killed(BaseException):
    """Stands for SIGKILL: nothing is saved."""


def killed_at(step: int) -> Callable[[Trainer, Any], None]:
    """Return a `train_step` that kills the process after this step."""
    original = Trainer.train_step

    def train_step(self: Trainer, update: Any) -> None:
        original(self, update)
        if self.state.step == step:
            raise Killed

    return train_step


def test_a_signal_while_saving_waits_for_the_checkpoint(
    make: Callable[..., Config], whole: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = make("stopped")
    original = checkpointing.save_checkpoint

    def save_checkpoint(folder: Path, checkpoint: Any) -> None:
        if folder.name == "step-00000006" and not folder.exists():
            signal.raise_signal(signal.SIGINT)
        original(folder, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "save_checkpoint", save_checkpoint)
        with pytest.raises(Interrupted) as caught:
            mtkit.train(stopped)
    assert caught.value.exit_code == 130
    verify_checkpoint(tiny.checkpoint(Path(stopped.run), 6))
    mtkit.train(stopped)
    assert_same(stopped, whole)


def test_a_finished_run_goes_on_when_given_more_steps(make: Callable[..., Config], whole: Config) -> None:
    longer = make("longer", "training.max_steps=12")
    mtkit.train(longer)
    mtkit.train(make("longer"))
    assert_same(longer, whole)


# --- processes that are really killed -----------------------------------------------------------------------------


LONG = ["training.save_every_steps=5", "validation.every_steps=100"]
ENDLESS = "training.max_steps=100000"


@pytest.fixture
def long_config(tmp_path: Path, corpus: Path) -> Path:
    """The config of a run that is stopped before its end."""
    return tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "whole", root=corpus)


def start(config: Path, run: Path) -> subprocess.Popen[str]:
    """Start a training process and wait until it has made an update."""
    metrics = run / "metrics.jsonl"
    before = metrics.read_text() if metrics.exists() else ""
    process = tiny.fork("train", config, f"run={run}", *LONG, ENDLESS, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        # A process that goes on first forgets the lines after its checkpoint, then adds its own.
        if metrics.exists() and metrics.read_text() not in before and metrics.read_text() != before:
            return process
        time.sleep(0.01)
    process.kill()
    raise AssertionError(process.communicate())


def finish(config: Path, run: Path, last: int) -> Config:
    """Train to a step in this process."""
    loaded = mtkit.load_config(config, [*LONG, f"run={run}", f"training.max_steps={last}"])
    mtkit.train(loaded)
    return loaded


def test_killed_terminated_and_interrupted(long_config: Path, tmp_path: Path) -> None:
    """The process is killed at a random time, then stopped by each signal; another run is refused meanwhile."""
    run, rng = tmp_path / "run", random.Random(7)
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start(long_config, run)
        if number == signal.SIGTERM:
            assert_second_run_is_refused(long_config, run, process.pid)
        time.sleep(rng.uniform(0.0, 0.3))
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
        assert process.returncode == code
        if number == signal.SIGKILL:
            continue
        assert tiny.one_line(err) == "stopped after saving: run the same command again to resume"
        newest = tiny.checkpoints(run)[-1]
        verify_checkpoint(tiny.checkpoint(run, newest))
        assert tiny.records(run, "train")[-1]["step"] == newest
    last = newest + 3
    assert_same(finish(long_config, run, last), finish(long_config, tmp_path / "whole", last), last)


def assert_second_run_is_refused(config: Path, run: Path, pid: int) -> None:
    code, _, err = tiny.mtkit("train", config, f"run={run}", *LONG, ENDLESS)
    assert code == 5
    line = tiny.one_line(err)
    assert line.startswith(f"error: {run}: another run, process {pid}, is using this folder")
    assert "wait for it" in line


# --- damaged checkpoints ------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "config.yaml", "manifest.json"]


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A folder with a run to step 12 and a run to step 18; read-only."""
    folder = tmp_path_factory.mktemp("halfway")
    for steps in (12, 18):
        config = tiny.write_config(folder / f"{steps}.yaml", run=folder / str(steps), root=corpus)
        mtkit.train(mtkit.load_config(config, [*OPTIONS, f"training.max_steps={steps}"]))
    return folder


@pytest.fixture
def copied(halfway: Path, tmp_path: Path) -> list[str]:
    """Return the command that resumes a copy of the run, up to step 18."""
    shutil.copytree(halfway / "12", tmp_path / "run")
    config = shutil.copy(halfway / "12.yaml", tmp_path)
    return ["train", config, *OPTIONS, f"run={tmp_path / 'run'}", "training.max_steps=18"]


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_passed_over_and_replaced(
    copied: list[str], halfway: Path, tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    run = tmp_path / "run"
    damage(tiny.checkpoint(run, 12) / file)
    code, out, err = tiny.mtkit(*copied, "data.test=[]", "training.keep_last=1")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.split("\n") if "damaged checkpoint" in line]
    assert str(tiny.checkpoint(run, 12)) in line
    assert file in line or damage is flip  # of a flipped manifest it may be any file that does not fit it
    assert "resuming from step 6" in out
    assert tiny.checkpoints(run) == [18]
    assert tiny.tensors(tiny.checkpoint(run, 18)) == tiny.tensors(tiny.checkpoint(halfway / "18", 18))
    assert tiny.losses(run) == tiny.losses(halfway / "18")


def test_a_damaged_checkpoint_does_not_cost_the_valid_one_before_it(
    copied: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving step 8 must not count the damaged step 12 as a checkpoint to keep."""
    run = tmp_path / "run"
    flip(tiny.checkpoint(run, 12) / "model.safetensors")
    monkeypatch.setattr(Trainer, "train_step", killed_at(9))
    with pytest.raises(Killed):
        tiny.mtkit(*copied, "training.save_every_steps=2", "training.keep_last=1")
    verify_checkpoint(tiny.checkpoint(run, 8))


def test_without_a_valid_checkpoint_nothing_is_overwritten(copied: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in tiny.checkpoints(run):
        truncate(tiny.checkpoint(run, step) / "model.safetensors")
    before = tiny.tree(run)
    code, _, err = tiny.mtkit(*copied)
    assert code == 5
    assert "no checkpoint of this run is valid" in tiny.one_line(err)
    assert "--fresh" in err
    assert {name for name in before if tiny.tree(run).get(name) != before[name]} <= {".lock"}


def test_what_a_killed_save_left_is_not_taken_for_a_checkpoint(
    copied: list[str], halfway: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    half_written = run / "checkpoints/.step-00000015.99.tmp"
    shutil.copytree(tiny.checkpoint(run, 12), half_written)
    code, out, _ = tiny.mtkit(*copied)
    assert code == 0
    assert "resuming from step 12" in out
    assert not half_written.exists()
    assert tiny.tensors(tiny.checkpoint(run, 18)) == tiny.tensors(tiny.checkpoint(halfway / "18", 18))


def test_a_crash_between_the_two_renames_loses_nothing(copied: list[str], tmp_path: Path) -> None:
    checkpoint = tiny.checkpoint(tmp_path / "run", 12)
    checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.old"))
    code, out, _ = tiny.mtkit(*copied)
    assert code == 0
    assert "resuming from step 12" in out


def test_a_half_written_line_of_metrics_is_forgotten(
    copied: list[str], halfway: Path, tmp_path: Path
) -> None:
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 13}\n{"kind": "tra')
    assert tiny.mtkit(*copied)[0] == 0
    assert tiny.losses(tmp_path / "run") == tiny.losses(halfway / "18")


def test_a_full_disk_while_saving_keeps_the_checkpoint_before(
    copied: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.fsync

    def fsync(descriptor: int) -> None:
        if "step-00000018" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        code, _, err = tiny.mtkit(*copied)
    assert code == 5
    line = tiny.one_line(err)
    assert "step-00000018" in line
    assert "no space left on device (free some space" in line
    verify_checkpoint(tiny.checkpoint(tmp_path / "run", 12))
    assert tiny.checkpoints(tmp_path / "run")[-1] == 12
    assert tiny.mtkit(*copied)[0] == 0


# --- another version of mtkit -------------------------------------------------------------------------------------


def rewrite(
    checkpoint: Path, config: Callable[[str], str], state: Callable[[dict[str, Any]], object]
) -> None:
    """Change the config and the state of a checkpoint, with a matching manifest."""
    path = checkpoint / "state.json"
    path.write_text(json.dumps(state(json.loads(path.read_text()))))
    path = checkpoint / "config.yaml"
    path.write_text(config(path.read_text()))
    names = sorted(path.name for path in checkpoint.iterdir() if path.name != "manifest.json")
    files = {
        name: {"bytes": (checkpoint / name).stat().st_size, "sha256": sha256_file(checkpoint / name)}
        for name in names
    }
    (checkpoint / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


STATE_OF_0_1_0 = (
    "step", "epoch", "batch", "target_tokens", "seconds", "validated_step", "best", "best_step",
    "validations_without_best", "scaler", "corpus", "tokenizers", "slices", "rollbacks", "window", "watch",
)  # fmt: skip


@pytest.fixture
def of_0_1_0(copied: list[str], halfway: Path, corpus: Path, tmp_path: Path) -> list[str]:
    """Return the command that resumes a run folder written by mtkit 0.1.0."""
    config = (Path(__file__).parents[1] / "data/config-0.1.0.yaml").read_text()
    config = config.replace("RUN", str(tmp_path / "run")).replace("DATA", str(corpus))
    (tmp_path / "run/.mtkit-run").unlink()
    (tmp_path / "run/config.yaml").write_text(config)
    for folder in (*(tmp_path / "run/checkpoints").iterdir(), tmp_path / "run/best"):
        rewrite(folder, lambda text: config, lambda state: {key: state[key] for key in STATE_OF_0_1_0})
    return copied


def updates(run: Path) -> list[dict[str, Any]]:
    """Return the records of updates; validations may differ, since 0.1.0 ranked equal ones in another way."""
    return [line for line in tiny.losses(run) if line["kind"] == "train"]


def test_a_run_of_0_1_0_goes_on_and_translates(of_0_1_0: list[str], halfway: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    before = tiny.mtkit("translate", halfway / "12", stdin="the dog\n")
    assert tiny.mtkit("translate", run, stdin="the dog\n") == before
    assert tiny.mtkit("average", run, "--last", "2", "-o", tmp_path / "average")[0] == 0
    code, out, err = tiny.mtkit(*of_0_1_0)
    assert (code, err) == (0, "")
    assert "resuming from step 12" in out
    assert tiny.tensors(tiny.checkpoint(run, 18)) == tiny.tensors(tiny.checkpoint(halfway / "18", 18))
    assert updates(run) == updates(halfway / "18")
    state = state_of(run, 18)
    assert (state["mtkit"], state["format"]) == (mtkit.__version__, 1)


def test_a_default_that_has_changed_since_is_that_of_before(
    copied: list[str], halfway: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run started with today's default of label_smoothing; the test then changes the default to 0.3."""
    monkeypatch.setitem(resuming.CHANGED_DEFAULTS, "training.label_smoothing", 0.1)
    field = TrainingConfig.model_fields["label_smoothing"]
    with monkeypatch.context() as patch:
        patch.setattr(field, "default", 0.3)
        TrainingConfig.model_rebuild(force=True)
        Config.model_rebuild(force=True)
        try:
            line = tiny.one_line(tiny.mtkit(*copied, "training.label_smoothing=0.3")[2])
            code, _, err = tiny.mtkit(*copied)
        finally:
            patch.undo()
            TrainingConfig.model_rebuild(force=True)
            Config.model_rebuild(force=True)
    assert "training.label_smoothing: 0.1 -> 0.3" in line
    assert (code, err) == (0, "")
    trained = tiny.tensors(tiny.checkpoint(tmp_path / "run", 18))
    assert trained == tiny.tensors(tiny.checkpoint(halfway / "18", 18))


def test_a_key_or_a_number_of_a_newer_version_is_passed_over_where_it_does_not_matter(
    copied: list[str], tmp_path: Path
) -> None:
    def add(section: str) -> Callable[[str], str]:
        return lambda text: text.replace(f"{section}:\n", f"{section}:\n  new_key: 7\n")

    run = tmp_path / "run"
    for folder in (tiny.checkpoint(run, 12), run / "best"):
        rewrite(folder, add("training"), lambda state: state | {"new_number": 3})
    assert tiny.mtkit("translate", run, stdin="the dog\n")[0] == 0
    code, _, err = tiny.mtkit(*copied)
    assert code == 5
    assert "training.new_key: unknown key" in tiny.one_line(err)
    assert "another version" in err
    rewrite(run / "best", add("model"), lambda state: state)
    code, _, err = tiny.mtkit("translate", run, stdin="the dog\n")
    assert code == 5
    assert "model.new_key: unknown key" in tiny.one_line(err)


def test_a_later_format_is_refused_with_its_version(copied: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    later = {"format": 2, "mtkit": "7.0"}
    rewrite(tiny.checkpoint(run, 12), lambda text: text, lambda state: state | later)
    code, _, err = tiny.mtkit(*copied)
    assert code == 5
    assert "of another version of mtkit: written by mtkit 7.0, in a newer format" in tiny.one_line(err)


# --- another config, another corpus -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "seed=2",
        "data.src=es",
        "data.max_length=100",
        "tokenizer.vocab_size=80",
        "model.d_model=64",
        "model.dropout=0.2",
        "model.positions=rotary",
        "training.batch_tokens=401",
        "training.accumulate=2",
        "training.learning_rate=0.004",
        "training.label_smoothing=0.0",
        "training.precision=bf16",
        "training.ema_decay=0.99",
        "validation.best=loss",
    ],
)
def test_a_change_of_what_is_learned_is_refused(copied: list[str], tmp_path: Path, change: str) -> None:
    before = tiny.tree(tmp_path / "run")
    code, _, err = tiny.mtkit(*copied, change)
    assert code == 2
    key, _, value = change.partition("=")
    line = tiny.one_line(err)
    assert f"{key}: " in line
    assert f"-> {value}" in line
    assert "--fresh" in line
    assert {name for name in before if tiny.tree(tmp_path / "run").get(name) != before[name]} <= {".lock"}


def test_all_changes_are_named(copied: list[str]) -> None:
    code, _, err = tiny.mtkit(*copied, "seed=2", "model.dropout=0.2", "training.keep_last=1")
    assert code == 2
    assert "seed: 1 -> 2" in err
    assert "model.dropout: 0.1 -> 0.2" in err
    assert "keep_last" not in err


def test_harmless_changes_are_accepted(copied: list[str], halfway: Path, tmp_path: Path) -> None:
    harmless = [
        "training.keep_last=2", "training.log_every_steps=3", "training.save_every_steps=4",
        "validation.num_samples=0", "validation.patience=50", "validation.every_steps=5",
        "validation.metrics=[bleu, chrf]", "decoding.beam_size=2", "data.test=[]",
        "training.device=cpu",
    ]  # fmt: skip
    code, out, err = tiny.mtkit(*copied, *harmless)
    assert (code, err) == (0, "")
    assert "resuming from step 12" in out
    trained = tiny.tensors(tiny.checkpoint(tmp_path / "run", 18))
    assert trained == tiny.tensors(tiny.checkpoint(halfway / "18", 18))


def test_the_coverage_that_was_a_default_before_is_no_change(config: Path) -> None:
    """The key concerns a tokenizer that the run already has."""
    by_bytes = "tokenizer.byte_fallback=true"
    old, new = (
        mtkit.load_config(config, [by_bytes, *more]) for more in (["tokenizer.character_coverage=1.0"], [])
    )
    check_changes(old, with_old_defaults(old, new))
    with pytest.raises(ConfigError, match=r"character_coverage: 0\.9995 -> 1\.0"):
        check_changes(new, old)


def test_what_the_samples_of_minimum_risk_depend_on_does_not_change(config: Path) -> None:
    limit, beam = "decoding.max_length_extra=3", "decoding.beam_size=3"
    check_changes(mtkit.load_config(config), mtkit.load_config(config, [limit, beam]))
    risk = "training.minimum_risk={samples: 4}"
    check_changes(mtkit.load_config(config, [risk]), mtkit.load_config(config, [risk, beam]))
    with pytest.raises(ConfigError, match=r"decoding\.max_length_extra"):
        check_changes(mtkit.load_config(config, [risk]), mtkit.load_config(config, [risk, limit]))


def test_a_key_that_did_nothing_may_be_taken_away(config: Path, tmp_path: Path) -> None:
    """A YAML with such a key is refused now, so the user must be able to remove it."""
    text, idle = config.read_text(), tmp_path / "idle.yaml"
    idle.write_text(text.replace("log_every_steps: 1", "log_every_steps: 1, min_learning_rate: 0.001"))
    with pytest.raises(ConfigError, match="min_learning_rate: has no effect without"):
        mtkit.load_config(idle)
    check_changes(load_stored_config(idle), mtkit.load_config(config))
    cosine = ["training.schedule=cosine"]
    with pytest.raises(ConfigError, match=r"min_learning_rate: 0\.001 -> 0\.0"):
        check_changes(mtkit.load_config(idle, cosine), mtkit.load_config(config, cosine))


def test_the_corpus_may_move_but_not_change(copied: list[str], corpus: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(corpus, tmp_path / "moved")
    path = moved / "train.tgt"
    text = path.read_text()
    path.write_text(text.replace("chien", "chat", 1))
    for command in ("train", "check"):
        code, _, err = tiny.mtkit(command, *copied[1:], f"data.root={moved}")
        assert code == 2
        assert tiny.one_line(err).startswith("error: data.train: the training data has changed")
        line = text[: text.index("chien")].count("\n") + 1
        assert f"400 pairs before, 400 now; the first that differs is {moved}/train.src:{line} (" in err
    path.write_text(text)
    code, out, _ = tiny.mtkit(*copied, f"data.root={moved}")
    assert code == 0
    assert "resuming from step 12" in out


def test_files_may_be_renamed_and_packed_anew(
    copied: list[str], halfway: Path, corpus: Path, tmp_path: Path
) -> None:
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for name in ("train", "valid"):
        (renamed / f"{name}-new.en.gz").write_bytes(gzip.compress((corpus / f"{name}.src").read_bytes()))
        (renamed / f"{name}-new.fr.xz").write_bytes(lzma.compress((corpus / f"{name}.tgt").read_bytes()))
    new = [f"data.{name}=[{{src: {name}-new.en.gz, tgt: {name}-new.fr.xz}}]" for name in ("train", "valid")]
    there = [f"data.root={renamed}", *new, "data.test=[]"]
    other = f"data.train=[{{src: {corpus}/valid.src, tgt: {corpus}/valid.tgt}}]"
    for command in ("train", "check"):
        code, _, err = tiny.mtkit(command, *copied[1:], other)
        assert code == 2
        assert tiny.one_line(err).startswith(
            "error: data.train: names different text from what the last checkpoint"
        )
        assert tiny.mtkit(command, *copied[1:], *there)[0] == 0
    run = tmp_path / "run"
    assert tiny.tensors(tiny.checkpoint(run, 18)) == tiny.tensors(tiny.checkpoint(halfway / "18", 18))
    assert tiny.mtkit("average", run, "--last", "3", "-o", tmp_path / "average")[0] == 0


def test_the_fingerprint_of_0_1_0_is_known(copied: list[str], corpus: Path, tmp_path: Path) -> None:
    """Fingerprints of compressed files used to be computed from their bytes."""
    packed = []
    for side in ("src", "tgt"):
        packed.append(corpus.parent / f"{tmp_path.name}.{side}.gz")
        packed[-1].write_bytes(gzip.compress((corpus / f"train.{side}").read_bytes()))
    run = tmp_path / "run"
    tokenizers = load_tokenizers(run).fingerprint
    files = json.dumps(["parallel", *map(sha256_file, packed)])
    texts = [hashlib.sha256(files.encode()).hexdigest()]
    before = hashlib.sha256(json.dumps([1, texts, tokenizers, [256, None, False]]).encode()).hexdigest()
    rewrite(tiny.checkpoint(run, 12), lambda text: text, lambda state: state | {"corpus": before})
    train = f"data.train=[{{src: {packed[0]}, tgt: {packed[1]}}}]"
    code, _, err = tiny.mtkit(*copied)
    assert code == 2
    assert "the training data has changed" in tiny.one_line(err)
    assert tiny.mtkit(*copied, train)[0] == 0
    assert state_of(run, 18)["corpus"] == state_of(run, 6)["corpus"] != before
    assert tiny.mtkit("average", run, "--last", "3", "-o", tmp_path / "average")[0] == 0


def test_the_same_pairs_from_other_files_are_the_same_corpus(
    copied: list[str], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table compressed differently or a generator with edited code gives the same pairs; the cache knows them."""
    monkeypatch.setattr("mtkit.data.sources._hash", lambda *parts: "another")
    code, out, _ = tiny.mtkit(*copied)
    assert code == 0
    assert "resuming from step 12" in out


def test_another_validation_set_is_not_compared_with(
    copied: list[str], halfway: Path, corpus: Path, tmp_path: Path
) -> None:
    moved, run = Path(shutil.copytree(corpus, tmp_path / "moved")), tmp_path / "run"
    tiny.write_lines(moved / "valid.tgt", tiny.read_lines(moved / "valid.tgt")[::-1])
    there = [*copied[1:], f"data.root={moved}"]
    before = tiny.tree(run)
    for command in (["train", *there], ["check", *there], ["train", *copied[1:], "data.valid=[]"]):
        code, _, err = tiny.mtkit(*command)
        assert code == 2
        line = tiny.one_line(err)
        assert line.startswith(
            "error: data.valid: the validation pairs have changed since the last checkpoint"
        )
        assert f"move {run}/best away" in line
    assert {name for name in before if tiny.tree(run).get(name) != before[name]} <= {".lock"}
    (run / "best").rename(tmp_path / "old-best")
    code, out, _ = tiny.mtkit("train", *there, "training.max_steps=12")
    assert code == 0
    assert "best/ is missing: the best checkpoint is selected anew" in out
    assert state_of(run, 12)["best_step"] == 12
    assert [line["step"] for line in tiny.records(run, "valid")] == [6, 12, 12]
    assert tiny.mtkit("train", *there)[0] == 0
    assert tiny.tensors(tiny.checkpoint(run, 18)) == tiny.tensors(tiny.checkpoint(halfway / "18", 18))


def test_of_a_run_of_0_1_0_the_names_of_the_validation_files_count(of_0_1_0: list[str], corpus: Path) -> None:
    other = f"data.valid=[{{src: {corpus}/test.src, tgt: {corpus}/test.tgt}}]"
    code, _, err = tiny.mtkit(*of_0_1_0, other)
    assert code == 2
    assert tiny.one_line(err).startswith("error: data.valid: the validation pairs have changed")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda lines: [*lines, "the dog"], ["400 pairs before, 401 now", "train.src:401 ("]),
        (lambda lines: lines[:-1], ["400 pairs before, 399 now ("]),
        (lambda lines: [lines[1], lines[0], *lines[2:]], ["400 pairs before, 400 now", "train.src:1 ("]),
        (lambda lines: lines[5:] + lines[:5], ["400 pairs before, 400 now", "train.src:1 ("]),
    ],
    ids=["added", "removed", "exchanged", "rotated"],
)
def test_what_changed_in_the_corpus_is_said(
    copied: list[str],
    corpus: Path,
    tmp_path: Path,
    change: Callable[[list[str]], list[str]],
    parts: list[str],
) -> None:
    moved = shutil.copytree(corpus, tmp_path / "moved")
    for side in ("src", "tgt"):
        path = moved / f"train.{side}"
        tiny.write_lines(path, change(tiny.read_lines(path)))
    code, _, err = tiny.mtkit(*copied, f"data.root={moved}")
    line = tiny.one_line(err)
    assert code == 2
    assert [part for part in parts if part not in line] == [], line


def test_a_missing_tokenizer_is_said(copied: list[str], tmp_path: Path) -> None:
    (tmp_path / "run/tokenizer.model").unlink()
    code, _, err = tiny.mtkit(*copied)
    assert code == 5
    assert "no tokenizer.model in this folder" in tiny.one_line(err)


def test_fresh_forgets_even_what_is_damaged(copied: list[str], tmp_path: Path) -> None:
    for step in tiny.checkpoints(tmp_path / "run"):
        truncate(tiny.checkpoint(tmp_path / "run", step) / "manifest.json")
    code, out, _ = tiny.mtkit(*copied, "--fresh", "seed=3", "training.max_steps=2")
    assert code == 0
    assert "going on" not in out
