"""Runs that learn from teachers: resumed bit for bit, in several processes, and refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
from test_distributed import OPTIONS, train_distributed

SHORT = [
    "validation.every_steps=3", "validation.metrics=[]", "validation.best=loss", "data.test=[]", "model.dropout=0.2",
    "model.d_model=16", "model.positions=rotary",
]  # fmt: skip


@pytest.fixture
def teacher(config: Path, tmp_path: Path) -> Path:
    """A run folder with a model of another width and other positions."""
    steps = ["training.max_steps=1", "data.valid=[]", "data.test=[]"]
    assert tiny.mtkit("train", config, f"run={tmp_path / 'teacher'}", *steps)[0] == 0
    return tmp_path / "teacher"


def options(teacher: Path, run: Path, *more: str) -> list[str]:
    """Return the options of a student of that run, which has its tokenizer."""
    teaching = f"training.distillation={{teacher: [{teacher}], weight: 0.7, temperature: 2}}"
    tokenizer = f"tokenizer={{model: {run.parent}/teacher/tokenizer.model}}"
    return [f"run={run}", tokenizer, teaching, *SHORT, *more]


def test_a_student_resumes_bit_for_bit_if_its_teacher_is_the_same(
    config: Path, tmp_path: Path, teacher: Path
) -> None:
    a, b, moved = (tmp_path / name for name in ("a", "b", "moved"))
    assert tiny.mtkit("train", config, *options(teacher, a, "training.max_steps=6"))[0] == 0
    assert tiny.mtkit("train", config, *options(teacher, b, "training.max_steps=3"))[0] == 0
    shutil.copytree(teacher, moved)
    assert tiny.mtkit("train", config, *options(moved, b, "training.max_steps=6"))[0] == 0
    assert tiny.losses(a) == tiny.losses(b)
    assert f"learned from the predictions of {teacher}." in (a / "README.md").read_text()
    code, _, err = tiny.mtkit("train", config, *options(a, b, "training.max_steps=8"))
    assert code == 2 and "the weights of the teachers have changed" in tiny.one_line(err)
    code, _, err = tiny.mtkit("train", config, *options(tmp_path / "none", b, "training.max_steps=8"))
    assert code == 5 and "no such folder" in tiny.one_line(err)
    code, _, err = tiny.mtkit("train", config, *options(b, b, "--fresh"))
    assert code == 2 and "a run cannot teach itself" in tiny.one_line(err)


def test_check_tells_the_memory_of_teachers_and_what_does_not_fit(
    config: Path, tmp_path: Path, teacher: Path
) -> None:
    code, out, err = tiny.mtkit("check", config, *options(teacher, tmp_path / "a"))
    assert code == 0, err
    assert "for the weights of the teachers" in out
    other = [f"training.distillation.teacher=[{teacher}]", *SHORT, "tokenizer.vocab_size=80"]
    code, _, err = tiny.mtkit("check", config, *other)
    assert code == 2 and "the vocabularies of the teacher" in tiny.one_line(err)
    code, _, err = tiny.mtkit("check", config, *options(teacher, tmp_path / "a", "model.source_eos=false"))
    assert code == 2 and "model.source_eos" in tiny.one_line(err)
    code, _, err = tiny.mtkit("check", config, *options(teacher, tmp_path / "a", "data.reverse=true"))
    assert code == 2 and "data.reverse needs teachers of both directions" in tiny.one_line(err)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_several_processes_learn_the_same(config: Path, tmp_path: Path, teacher: Path, parallel: str) -> None:
    shared = [*OPTIONS, "training.max_steps=4"]
    assert tiny.mtkit("train", config, *options(teacher, tmp_path / "a", *shared))[0] == 0
    done = train_distributed(
        2, config, *options(teacher, tmp_path / "b", *shared, f"training.parallel={parallel}")
    )
    assert done.returncode == 0, done.stderr
    for one, two in zip(
        tiny.records(tmp_path / "a", "train"), tiny.records(tmp_path / "b", "train"), strict=True
    ):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
