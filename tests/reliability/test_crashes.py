"""A save interrupted at any of its calls, by a crash or by the disk, costs nothing but itself."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import tiny
import torch
from faults import at_each_call, dies_at, in_a_child, raises

from mtkit.checkpoint import (
    Checkpoint,
    load_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
    step_folder,
    verify_newest_first,
)
from mtkit.errors import StorageError
from mtkit.training.run import remove_outputs
from mtkit.translation.loading import find_checkpoint

KEEP = 2


@pytest.fixture(autouse=True)
def disk_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count fsync calls without waiting for them: these tests crash a process, thousands of times, not the machine."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def checkpoint_of(step: int) -> Checkpoint:
    """Return a checkpoint whose every part tells its step, so that a mixture would show."""
    weights = {"weight": torch.full((300,), float(step))}
    optimizer = {"exp_avg/weight": torch.full((300,), -float(step))}
    return Checkpoint(weights, f"step: {step}\n", {"step": step}, optimizer)


def save(run: Path, step: int) -> None:
    """Save as training does after a validation: best/, the checkpoint, the deletion of old ones."""
    held = checkpoint_of(step)
    save_checkpoint(run / "best", Checkpoint(held.weights, held.config, held.state))
    save_checkpoint(step_folder(run, step), held)
    remove_old_checkpoints(run, step, KEEP)


def loaded_step(folder: Path) -> int:
    """Return the step of a complete checkpoint; fail if any part of it is damaged or of another step."""
    with_optimizer = "best" not in folder.name  # best/ is to translate with
    found = load_checkpoint(folder, with_optimizer=with_optimizer)
    assert bool(found.optimizer) == with_optimizer
    step = found.state["step"]
    assert found.config == f"step: {step}\n"
    assert found.weights["weight"].tolist() == [step] * 300
    assert all(tensor.tolist() == [-step] * 300 for tensor in found.optimizer.values())
    return int(step)


def newest(run: Path) -> int | None:
    """Return the step of the checkpoint a run would resume from."""
    for folder, fault in verify_newest_first(run):
        if fault is None:
            return loaded_step(folder)
    return None


def names(run: Path) -> set[str]:
    """Return the folders and files of a run."""
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_dir() or path.parent == run}


def assert_works_and_is_clean(run: Path, step: int) -> None:
    """Check that the next save works as usual and that nothing is left of the interrupted one."""
    save(run, step)
    assert newest(run) == step
    assert loaded_step(run / "best") == step
    steps = [folder for folder in names(run) if folder.startswith("checkpoints/")]
    assert len(steps) <= KEEP
    assert names(run) - set(steps) == {"best", "checkpoints"}
    assert all(folder.startswith("checkpoints/step-") for folder in steps)


def no_run(run: Path) -> None:
    """The state before the first save."""


def saved_thrice(run: Path) -> None:
    """The state before a save that replaces best/ and deletes the oldest checkpoint."""
    for step in (1, 2, 3):
        save(run, step)


def saved_and_damaged(run: Path) -> None:
    """The state before a save that replaces a damaged checkpoint: the run has resumed from the one before."""
    for step in (2, 3, 4):
        save(run, step)
    (step_folder(run, 4) / "model.safetensors").write_bytes(b"damaged")


def saved_but_broken_off(run: Path) -> None:
    """The state before a save after a crash between the two renames of best/, with leftovers of all kinds."""
    for step in (2, 3):
        save(run, step)
    (run / "best").rename(run / ".best.old")
    shutil.copytree(run / ".best.old", run / ".best.1234.tmp")
    shutil.copytree(step_folder(run, 3), run / "checkpoints/.step-00000003.old")
    (run / ".config.yaml.1234.tmp").write_text("half")


BEFORE = [
    pytest.param(no_run, marks=pytest.mark.slow),
    saved_thrice,
    pytest.param(saved_and_damaged, marks=pytest.mark.slow),
    pytest.param(saved_but_broken_off, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_crash_at_every_call_of_a_save(before: Callable[[Path], None], every: int, tmp_path: Path) -> None:
    """The process really ends at its k-th write, fsync, rename, ..., for k = 1 until the save completes.

    Without the slow tests k is odd: there is hardly a call whose neighbor does not leave the disk alike.
    """
    template = tmp_path / "template"
    template.mkdir()
    before(template)
    old = newest(template)
    found = set()
    for number in range(1, 1000, every):
        run = shutil.copytree(template, tmp_path / str(number), symlinks=True)

        def broken_off(run: Path = run, number: int = number) -> None:
            with at_each_call(dies_at(number)):
                save(run, 4)

        code = in_a_child(broken_off)
        assert code in (0, 9)
        after = newest(run)
        found.add(after)
        assert after in (old, 4)
        if old is not None or after is not None:
            assert loaded_step(find_checkpoint(run)) in (old, after, 4)
        if code == 0:
            assert after == 4
            assert_works_and_is_clean(run, 5)
            break
        assert_works_and_is_clean(run, 4 if number // every % 2 else 5)
        shutil.rmtree(run)
    assert number > 60, "so many calls a save makes at least"
    assert found == {old, 4}


ERRORS = [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EDQUOT, errno.EROFS]


@pytest.mark.parametrize(
    ("before", "code"),
    [
        (saved_thrice, errno.ENOSPC),
        (no_run, errno.EIO),
        *(pytest.param(saved_thrice, code, marks=pytest.mark.slow) for code in ERRORS[1:]),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else value.__name__,
)
def test_an_error_at_every_call_of_a_save(before: Callable[[Path], None], code: int, tmp_path: Path) -> None:
    """One call fails, or this call and all that follow, deletions included."""
    template = tmp_path / "template"
    template.mkdir()
    before(template)
    old = newest(template)

    def error() -> OSError:
        return OSError(code, os.strerror(code))

    for number in range(1, 1000):
        finished = []
        for last in (number, 1000):
            run = shutil.copytree(template, tmp_path / f"{number}-{last}")
            with at_each_call(raises(error, number, last)) as calls:
                try:
                    save(run, 4)
                    finished.append(True)
                except StorageError as fault:
                    finished.append(False)
                    assert_is_one_line_about(fault, run, code)
            after = newest(run)
            assert after in (old, 4)
            assert after == 4 or not finished[-1]
            if old is not None:
                assert loaded_step(find_checkpoint(run)) in (old, 4)
            assert_works_and_is_clean(run, 5)
            shutil.rmtree(run)
        if number > len(calls):
            break
    assert all(finished)
    assert number > 40


def assert_is_one_line_about(fault: StorageError, run: Path, code: int) -> None:
    assert fault.exit_code == 5
    assert fault.what == os.strerror(code).lower()
    assert (fault.where or "").startswith(str(run))
    assert ".tmp" not in str(fault)
    assert "\n" not in str(fault)


def test_a_second_ctrl_c_at_every_call_of_a_save(tmp_path: Path) -> None:
    """The process ends at once: what was begun is undone now or by the next save."""
    template = tmp_path / "template"
    saved_thrice(template)
    for number in range(1, 1000):
        run = shutil.copytree(template, tmp_path / str(number))
        with at_each_call(raises(KeyboardInterrupt, number, number)) as calls, suppress(KeyboardInterrupt):
            save(run, 4)
        assert newest(run) in (3, 4)
        assert loaded_step(find_checkpoint(run)) in (3, 4)
        assert_works_and_is_clean(run, 5)
        shutil.rmtree(run)
        if number > len(calls):
            break


def test_what_is_saved_is_on_the_disk_before_it_has_its_name(tmp_path: Path) -> None:
    """The order survives a power failure: content, then the names inside, then the folder's name, then its parent."""
    run = tmp_path / "run"
    with at_each_call(lambda *_: None) as calls:
        save(run, 1)
    for folder in (step_folder(run, 1), run / "best"):
        start = str(folder.with_name(f".{folder.name}."))
        (renamed,) = [n for n, (name, at) in enumerate(calls) if name == "rename" and at.startswith(start)]
        temporary = calls[renamed][1]
        inside = os.listdir(folder)
        for path in (temporary, *(f"{temporary}/{name}" for name in inside)):
            synced = [n for n, call in enumerate(calls) if call == ("fsync", path)]
            assert any(n < renamed for n in synced), path
            changes = [n for n, (name, at) in enumerate(calls) if name == "write" and at.startswith(path)]
            assert max(changes, default=-1) < max(n for n in synced if n < renamed), path
        assert ("fsync", str(folder.parent)) in calls[renamed:]
        manifest = [n for n, (_, path) in enumerate(calls) if path.startswith(f"{temporary}/.manifest")]
        others = [n for n, (name, path) in enumerate(calls) if name == "write" and path.startswith(temporary)]
        assert sorted(others)[-1] in manifest, "the manifest is written last"
    made = [path for name, path in calls if name == "mkdir"]
    assert str(run) in made and str(run / "checkpoints") in made
    for path in (run, run / "checkpoints"):
        assert ("fsync", str(path.parent)) in calls[calls.index(("mkdir", str(path))) :]


def test_best_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/best").symlink_to(tmp_path / "disk")
    for step in (1, 2, 3):
        save(tmp_path / "run", step)
        assert loaded_step(tmp_path / "run/best") == step
    assert (tmp_path / "disk").is_dir()
    assert not (tmp_path / "run/.best.old").is_symlink()


def test_fresh_forgets_what_a_crash_left_beside_best(tmp_path: Path) -> None:
    saved_but_broken_off(tmp_path)
    remove_outputs(tmp_path)
    with pytest.raises(StorageError, match="no checkpoint in this folder"):
        find_checkpoint(tmp_path)


# --- through the command line -------------------------------------------------------------------------------------


LARGE = ["model.d_model=128", "data.test=[]", "training.max_steps=6", "validation.every_steps=3"]


def limited(config: Path, run: Path, limit: int) -> tuple[int, str, str]:
    """Train in a process whose files may not grow beyond a limit, which simulates a full disk.

    Returns:
        Its exit code, stdout and stderr.
    """
    import resource

    process = tiny.fork(
        "train", config, f"run={run}", *LARGE,
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("largest", "steps"),
    [("model.safetensors", []), pytest.param("optimizer.safetensors", [0], marks=pytest.mark.slow)],
    ids=["first-save", "later"],
)
def test_a_file_that_cannot_grow(config: Path, tmp_path: Path, largest: str, steps: list[int]) -> None:
    """Saving fails at step 0, before time is spent, or later, when the optimizer state is larger than the model."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert tiny.mtkit("train", config, f"run={whole}", *LARGE)[0] == 0
    limit = (tiny.checkpoint(whole, 3) / largest).stat().st_size - 1
    assert (whole / "tokenizer.model").stat().st_size < limit
    code, out, err = limited(config, run, limit)
    line = tiny.one_line(err)
    assert code == 5
    assert f"{run}/checkpoints/step-" in line
    assert "file too large (the limit of file sizes is reached" in line
    assert tiny.checkpoints(run) == steps
    assert ("loss" in out) == bool(steps)
    assert not list(run.rglob("*.tmp"))
    assert tiny.mtkit("train", config, f"run={run}", *LARGE)[0] == 0
    assert tiny.tensors(tiny.checkpoint(run, 6)) == tiny.tensors(tiny.checkpoint(whole, 6))


IN_A_SMALL_DISK = """
mount -t tmpfs -o size={kilobytes}k none "$1" || exit 77
cd "$1"; shift
{python} -m mtkit "$@"; code=$?
for folder in run/checkpoints/step-*; do echo "there: $folder"; done
{python} -c 'from pathlib import Path; from mtkit.checkpoint import *
for path in list_checkpoints(Path("run")): verify_checkpoint(path)' || exit 1
exit $code
"""


@pytest.mark.parametrize(("kilobytes", "steps"), [(700, 0), (4000, 1)])
@pytest.mark.slow
def test_a_disk_that_is_really_full(config: Path, tmp_path: Path, kilobytes: int, steps: int) -> None:
    """Uses a file system of its own, if the system lets a test mount one."""
    (tmp_path / "disk").mkdir()
    script = IN_A_SMALL_DISK.format(kilobytes=kilobytes, python=sys.executable)
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", tmp_path / "disk"]
    try:
        done = subprocess.run(
            [*inside, "train", config, "run=run", *LARGE],
            env=tiny.child_environment(), capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no unshare")
    if done.returncode in (1, 77) and "mtkit" not in done.stderr and "error:" not in done.stderr:
        pytest.skip(f"no file systems of its own: {done.stderr}")
    line = tiny.one_line(done.stderr)
    assert done.returncode == 5, line
    assert "no space left on device (free some space" in line
    assert done.stdout.count("there: run/checkpoints/step-0") == steps, done.stdout
    assert ("loss" in done.stdout) == bool(steps)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    code, _, err = tiny.mtkit("train", config)
    assert code == 5
    assert "permission denied" in tiny.one_line(err)


def on_a_read_only_disk(folder: Path) -> Callable[[str, int, str], None]:
    """Return an action that makes every change below the folder fail, except creating a folder that exists."""

    def action(name: str, count: int, path: str) -> None:
        if Path(path).is_relative_to(folder) and not (name == "mkdir" and Path(path).is_dir()):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    return action


@pytest.mark.parametrize("there", [(), ("hashes", "tokenizers"), ("hashes", "tokenizers", "corpora")])
@pytest.mark.parametrize("command", ["train", "check"])
def test_a_cache_that_cannot_be_written_says_what_names_it(
    config: Path, tmp_path: Path, there: tuple[str, ...], command: str
) -> None:
    cache = tmp_path / "cache"
    for name in there:
        (cache / name).mkdir(parents=True)
    with at_each_call(on_a_read_only_disk(cache)):
        code, _, err = tiny.mtkit(command, config, f"data.cache={cache}")
    line = tiny.one_line(err)
    assert code == 5
    assert line.startswith(f"error: {cache}")
    assert "read-only file system (choose a folder on a disk that can be written to; data.cache" in line
    assert "MTKIT_CACHE" in line


def test_a_cache_that_holds_all_may_be_read_only(config: Path, tmp_path: Path) -> None:
    cache, short = tmp_path / "cache", ["training.max_steps=1", "data.test=[]"]
    assert tiny.mtkit("train", config, f"data.cache={cache}", f"run={tmp_path / 'a'}", *short)[0] == 0
    with at_each_call(on_a_read_only_disk(cache)):
        code, _, err = tiny.mtkit("train", config, f"data.cache={cache}", f"run={tmp_path / 'b'}", *short)
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    "code",
    [pytest.param(code, marks=[] if code == errno.ENOSPC else pytest.mark.slow) for code in ERRORS],
    ids=lambda code: errno.errorcode[code],
)
def test_an_error_while_training_is_one_line(config: Path, tmp_path: Path, code: int) -> None:
    """The calls are spread over the saves of steps 0, 3 and 6, metrics.jsonl and the results."""
    run = tmp_path / "run"
    options = ["training.max_steps=6", "validation.every_steps=3", "validation.metrics=[]",
               "validation.best=loss", "training.log_every_steps=3"]  # fmt: skip
    assert tiny.mtkit("train", config, f"run={run}", *options)[0] == 0  # fills the cache
    with at_each_call(lambda *_: None) as calls:
        assert tiny.mtkit("train", config, f"run={tmp_path / 'whole'}", *options)[0] == 0
    place = ERRORS.index(code)
    for number in range(1 + place * len(calls) // 40, len(calls), len(calls) // 4):
        shutil.rmtree(run, ignore_errors=True)
        with at_each_call(raises(lambda: OSError(code, os.strerror(code)), number, 10**9)):
            found, _, err = tiny.mtkit("train", config, f"run={run}", *options)
        assert found == 5, calls[number - 1]
        line = tiny.one_line(err)
        assert os.strerror(code).lower() in line
        assert tiny.mtkit("train", config, f"run={run}", *options)[0] == 0, calls[number - 1]
    files = [tiny.tensors(tiny.checkpoint(folder, 6)) for folder in (tmp_path / "whole", run)]
    assert files[0] == files[1]
