"""What a run folder survives: death before the first save, a `--fresh` that cannot begin, leftovers of other runs."""

import shutil
from pathlib import Path

import pytest
import tiny


def fails(code: int, *parts: str, arguments: list[object]) -> None:
    """Run a command that must fail in one line with all these parts."""
    found, _, err = tiny.mtkit(*arguments)
    line = tiny.one_line(err)
    assert found == code, line
    assert [part for part in parts if part not in line] == [], line


def test_a_run_that_died_before_its_first_update_begins_again(config: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    shorter = ["training.max_steps=6", "validation.every_steps=3"]
    tiny.mtkit("train", config, f"run={other}", *shorter)
    tiny.mtkit("train", config, f"run={run}", *shorter, "training.keep_last=10")
    for step in (3, 6):
        shutil.rmtree(tiny.checkpoint(run, step))
    shutil.rmtree(run / "best")
    assert tiny.checkpoints(run) == [0]
    code, out, err = tiny.mtkit("train", config, f"run={run}", *shorter, "training.keep_last=10")
    assert (code, err) == (0, "")
    assert "going on from step 0" in out
    assert tiny.tensors(tiny.checkpoint(run, 6)) == tiny.tensors(tiny.checkpoint(other, 6))


@pytest.fixture
def old_run(config: Path, trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "old"))


@pytest.mark.parametrize(
    ("mistake", "code"),
    [
        ("data.train.0.src=missing.src", 3),
        ("data.test.0.tgt=missing.tgt", 3),
        ("training.device=cuda:99", 2),
        ("data.root=/nowhere", 3),
    ],
)
def test_a_fresh_run_that_cannot_begin_leaves_the_old_one(
    config: Path, old_run: Path, mistake: str, code: int
) -> None:
    before = tiny.tree(old_run)
    fails(code, arguments=["train", config, f"run={old_run}", "--fresh", mistake])
    assert {name: data for name, data in tiny.tree(old_run).items() if name != ".lock"} == {
        name: data for name, data in before.items() if name != ".lock"
    }


def test_fresh_with_tensorboard_begins_again(config: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    options = [f"run={tmp_path / 'run'}", "training.max_steps=2", "training.tensorboard=true"]
    assert tiny.mtkit("train", config, *options)[0] == 0
    assert tiny.mtkit("train", config, *options, "--fresh")[0] == 0
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_model_without_its_checkpoints_is_not_overwritten(config: Path, old_run: Path) -> None:
    shutil.rmtree(old_run / "checkpoints")
    before = tiny.tree(old_run / "best")
    fails(5, "without its checkpoints", "--fresh", arguments=["train", config, f"run={old_run}"])
    assert tiny.tree(old_run / "best") == before


def test_separate_tokenizers_replace_a_joint_one_that_was_left_behind(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "tokenizer.model").write_bytes(b"left by a run that died")
    options = [f"run={run}", "training.max_steps=2", "tokenizer.joint=false", "tokenizer.vocab_size=64"]
    assert tiny.mtkit("train", config, *options)[0] == 0
    assert not (run / "tokenizer.model").exists()
    assert tiny.mtkit("translate", run, stdin="a\n")[0] == 0


def test_test_sets_are_read_before_training(config: Path, corpus: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(corpus, tmp_path / "data"))
    with open(data / "test.tgt", "a", encoding="utf-8") as file:
        file.write("one more\n")
    fails(3, "test.src", arguments=["train", config, f"run={tmp_path / 'run'}", f"data.root={data}"])
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_megabyte_in_the_validation_set_is_left_out_of_the_loss(
    config: Path, corpus: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(corpus, tmp_path / "data"))
    for side in ("src", "tgt"):
        with open(data / f"valid.{side}", "a", encoding="utf-8") as file:
            file.write("a dog " * 5000 + "\n")
    options = [
        f"run={tmp_path / 'run'}",
        f"data.root={data}",
        "training.max_steps=2",
        "validation.metrics=[]",
    ]
    code, out, err = tiny.mtkit("train", config, *options, "validation.best=perplexity")
    assert (code, err) == (0, "")
    assert "1 pairs longer than data.max_length are not in the loss" in out
    [validation] = tiny.records(tmp_path / "run", "valid")
    assert validation["best"]


def test_a_line_too_long_to_be_scored_is_refused(trained: Path, tmp_path: Path) -> None:
    long, short = tmp_path / "long.txt", tmp_path / "short.txt"
    long.write_text("a dog\n" + "a dog " * 5000 + "\n", encoding="utf-8")
    short.write_text("a\nb\n", encoding="utf-8")
    fails(3, "source line 2", arguments=["score", trained, long, short])
    fails(3, "target line 2", arguments=["score", trained, short, long])
