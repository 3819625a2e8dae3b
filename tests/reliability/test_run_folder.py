"""Run folders survive a kill before the first save, a `--fresh` that cannot start, and leftovers of other runs."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tiny

from mtkit.training.ownership import claimed_names


def fails(code: int, *parts: str, arguments: list[object]) -> None:
    """Run a command that must fail with one line containing these parts."""
    found, _, err = tiny.mtkit(*arguments)
    line = tiny.one_line(err)
    assert found == code, line
    assert [part for part in parts if part not in line] == [], line


def test_a_run_killed_before_its_first_update_starts_again(config: Path, tmp_path: Path) -> None:
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
    assert "resuming from step 0" in out
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
        ("training.freeze=[encodr.*]", 2),
        ("training.tensorboard=true", 2),
        ("training.workers=2 training.precision=fp16", 2),
        ("training.distillation.teacher=[runs/typo]", 5),
        ("tokenizer.model=typo.model", 5),
    ],
)
def test_a_fresh_run_that_cannot_start_keeps_the_old_one(
    config: Path, old_run: Path, monkeypatch: pytest.MonkeyPatch, mistake: str, code: int
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    before = tiny.tree(old_run)
    fails(code, arguments=["train", config, f"run={old_run}", "--fresh", *mistake.split()])
    assert {name: data for name, data in tiny.tree(old_run).items() if name != ".lock"} == {
        name: data for name, data in before.items() if name != ".lock"
    }


def test_fresh_with_tensorboard(config: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    options = [f"run={tmp_path / 'run'}", "training.max_steps=2", "training.tensorboard=true"]
    assert tiny.mtkit("train", config, *options)[0] == 0
    assert tiny.mtkit("train", config, *options, "--fresh")[0] == 0
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_events_of_another_program_are_named_and_kept(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later `--fresh` could not tell them from the run's own."""
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    events = tmp_path / "run" / "tensorboard" / "events.out.tfevents.7.mine"
    events.parent.mkdir(parents=True)
    events.write_text("mine")
    part = f"training would overwrite tensorboard/{events.name}, which mtkit did not"
    fails(2, part, arguments=["train", config, "training.tensorboard=true"])
    assert events.read_text() == "mine"


def test_a_model_without_its_checkpoints_is_not_overwritten(config: Path, old_run: Path) -> None:
    shutil.rmtree(old_run / "checkpoints")
    before = tiny.tree(old_run / "best")
    fails(5, "without its checkpoints", "--fresh", arguments=["train", config, f"run={old_run}"])
    assert tiny.tree(old_run / "best") == before


def test_separate_tokenizers_replace_a_joint_one_that_was_left_behind(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("mtkit.training.inputs.encode_corpus", killed)
        with pytest.raises(Killed):
            tiny.mtkit("train", config, f"run={run}")
    assert (run / "tokenizer.model").exists()
    options = [f"run={run}", "training.max_steps=2", "tokenizer.joint=false", "tokenizer.vocab_size=64"]
    assert tiny.mtkit("train", config, *options)[0] == 0
    assert not (run / "tokenizer.model").exists()
    assert tiny.mtkit("translate", run, stdin="a\n")[0] == 0


class Killed(BaseException):
    """Stands for SIGKILL."""


def killed(*_: object) -> None:
    raise Killed


# --- what is not mtkit's ------------------------------------------------------------------------------------------


SHORT = ["training.max_steps=2", "training.average_last=2", "training.save_every_steps=1"]


@pytest.fixture
def project(tmp_path: Path, corpus: Path) -> Path:
    """Create a user's folder with a config, data and other files, some with names that a run uses too."""
    folder = tmp_path / "project"
    shutil.copytree(corpus, folder / "data")
    tiny.write_config(folder / "config.yaml", run=folder, root=folder / "data")
    users = {
        "README.md": "# My project\n",
        "test/news.txt": "news\n",
        "checkpoints/notes.txt": "mine\n",
        ".draft.7.tmp": "a draft\n",
        ".README.md.old": "an old one\n",
        "tensorboard/mine.txt": "mine\n",
    }
    for name, text in users.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("command", [["train"], ["train", "--fresh"], ["check"]], ids=" ".join)
def test_a_users_files_are_named_and_kept(
    project: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    before = tiny.tree(project)
    arguments = [*command, "config.yaml", "run=."]
    fails(
        2,
        ".: training would overwrite README.md, config.yaml, which mtkit did not",
        "choose another",
        arguments=arguments,
    )
    assert tiny.tree(project) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "tokenizer.model", "best/x", "test/test.hyps.txt", "test"])
def test_every_file_that_would_be_overwritten_is_named(config: Path, tmp_path: Path, name: str) -> None:
    place = tmp_path / "run" / name
    place.parent.mkdir(parents=True)
    place.write_text("mine\n")
    shown = name.split("/")[0] if name == "best/x" else name
    fails(2, f"training would overwrite {shown}, which mtkit did not", arguments=["train", config])
    assert tiny.tree(tmp_path / "run") == {name: b"mine\n"}


def test_files_of_the_user_survive_a_run_in_their_folder_and_fresh(project: Path, tmp_path: Path) -> None:
    config = (project / "config.yaml").rename(tmp_path / "mine.yaml")
    (project / "README.md").rename(project / "NOTES.md")
    before = tiny.tree(project)
    assert tiny.mtkit("train", config, *SHORT)[0] == 0
    (project / "checkpoints/.step-00000002.77.tmp").mkdir()
    (project / ".metrics.jsonl.77.tmp").touch()
    first = tiny.tree(project)
    assert first.items() >= before.items()
    assert {"README.md", "config.yaml", "test/test.hyps.txt", "average/manifest.json"} <= first.keys()
    short = ["training.max_steps=1", "training.save_every_steps=1"]
    code, out, err = tiny.mtkit("train", config, *short, "--fresh", "data.test=[]")
    assert (code, err) == (0, "")
    assert "going on" not in out
    again = tiny.tree(project)
    assert again.items() >= before.items()
    assert tiny.checkpoints(project) == [0, 1]
    gone = ("average", "test/test.hyps.txt", ".metrics.jsonl.77.tmp", "checkpoints/.step-00000002.77.tmp")
    assert [name for name in gone if (project / name).exists()] == []


def test_fresh_can_read_its_config_from_the_run_folder(config: Path, tmp_path: Path) -> None:
    own = tmp_path / "run" / "config.yaml"
    assert tiny.mtkit("train", config, "training.max_steps=1")[0] == 0
    before = own.read_text()
    assert tiny.mtkit("train", own, "--fresh")[0] == 0
    assert own.read_text() == before


def test_fresh_keeps_a_link_to_another_disk(config: Path, tmp_path: Path) -> None:
    disk, run = tmp_path / "disk", tmp_path / "run"
    for folder in (disk, run):
        folder.mkdir()
    (disk / "other").write_text("of somebody else")
    (run / "checkpoints").symlink_to(disk)
    for steps in (2, 1):
        options = [f"training.max_steps={steps}", "training.save_every_steps=1", "--fresh"]
        assert tiny.mtkit("train", config, *options)[0] == 0
        assert (run / "checkpoints").readlink() == disk
        assert tiny.checkpoints(run) == list(range(max(0, steps - 1), steps + 1))
        assert (disk / "other").read_text() == "of somebody else"


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_a_source_must_not_be_an_output(config: Path, old_run: Path, corpus: Path, fresh: list[str]) -> None:
    (old_run.parent / "link.src").symlink_to(old_run / "test/test.hyps.txt")
    shutil.copy(corpus / "test.tgt", old_run.parent / "text.tgt")
    more = "data.train=[{src: link.src, tgt: text.tgt}]"
    before = tiny.tree(old_run)
    arguments = ["train", config, f"run={old_run}", f"data.root={old_run.parent}", more, *fresh]
    fails(2, "link.src: training reads this file", arguments=[*arguments, "data.valid=[]", "data.test=[]"])
    assert tiny.tree(old_run) == before


def test_fresh_does_not_delete_a_tokenizer_that_the_config_names(config: Path, old_run: Path) -> None:
    model = old_run / "tokenizer.model"
    arguments = ["train", config, f"run={old_run}", f"tokenizer.model={model}", "--fresh"]
    fails(2, f"{model}: training reads this file", arguments=arguments)
    assert model.exists()


def test_a_run_without_its_claims_is_recognized_by_its_files(config: Path, old_run: Path) -> None:
    (old_run / ".mtkit-run").unlink()
    (old_run / "notes.md").write_text("mine")
    assert tiny.mtkit("train", config, f"run={old_run}", "--fresh", "training.max_steps=1")[0] == 0
    assert tiny.checkpoints(old_run) == [0, 1]
    assert (old_run / "notes.md").read_text() == "mine"
    (old_run / ".mtkit-run").unlink()
    for name in ("config.yaml", "README.md", "results.json"):
        (old_run / name).write_text("{run: mine}\n")
    parts = "training would overwrite README.md, config.yaml, results.json, test/test.hyps.txt, which mtkit did not"
    fails(2, parts, arguments=["train", config, f"run={old_run}", "--fresh"])


def test_edited_claims_delete_nothing_else(config: Path, old_run: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("x")
    names = ["../victim", "test/../../victim", str(tmp_path / "victim"), "best"]
    (old_run / ".mtkit-run").write_text(json.dumps({"written": names}))
    assert claimed_names(old_run) == {"best"}


def test_a_lock_of_another_program_is_kept(config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("not 123")
    fails(5, ".lock: not a lock of mtkit's", arguments=["train", config])
    assert (tmp_path / "run" / ".lock").read_text() == "not 123"


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["a/b", "a_b"], ["data.test.1.name", "'a_b' and 'a/b'", "test/a_b.hyps.txt"]),
        (["News", "news"], ["'news' and 'News'", "macOS"]),
        (["x" * 201], ["data.test.0.name", "too long", "200 bytes"]),
        (["ü" * 101], ["too long"]),
        ([".."], ["'..' cannot be used as a file name"]),
        ([" "], ["' ' cannot be used as a file name"]),
        (["a\\0b"], ["a NUL character"]),
        (["a\\nb"], ["cannot be used as a file name"]),
    ],
)
def test_names_of_test_sets_must_be_file_names(config: Path, names: list[str], parts: list[str]) -> None:
    entries = ", ".join(f'{{name: "{name}", src: test.src, tgt: test.tgt}}' for name in names)
    for command in ("train", "check"):
        fails(2, *parts, arguments=[command, config, f"data.test=[{entries}]"])


def test_the_longest_name_of_a_test_set(config: Path, tmp_path: Path) -> None:
    options = ["training.max_steps=1", f"data.test=[{{name: {'x' * 200}, src: test.src, tgt: test.tgt}}]"]
    assert tiny.mtkit("train", config, *options)[0] == 0
    assert (tmp_path / f"run/test/{'x' * 200}.hyps.txt").exists()


def test_test_sets_are_read_before_training(config: Path, corpus: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(corpus, tmp_path / "data"))
    with open(data / "test.tgt", "a", encoding="utf-8") as file:
        file.write("one more\n")
    fails(3, "test.src", arguments=["train", config, f"run={tmp_path / 'run'}", f"data.root={data}"])
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_huge_validation_pair_is_left_out_of_the_loss(config: Path, corpus: Path, tmp_path: Path) -> None:
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
    assert "left out of the loss: 1 pair longer than data.max_length" in out
    [validation] = tiny.records(tmp_path / "run", "valid")
    assert validation["best"]


def test_a_line_too_long_to_be_scored_is_refused(trained: Path, tmp_path: Path) -> None:
    long, short = tmp_path / "long.txt", tmp_path / "short.txt"
    long.write_text("a dog\n" + "a dog " * 5000 + "\n", encoding="utf-8")
    short.write_text("a\nb\n", encoding="utf-8")
    fails(3, "source line 2", arguments=["score", trained, long, short])
    fails(3, "target line 2", arguments=["score", trained, short, long])
