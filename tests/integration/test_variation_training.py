"""Runs with subword sampling and augmented pairs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import tiny

UNIGRAM = [
    "tokenizer.type=unigram", "tokenizer.sampling_alpha=0.2", "augment.upper=0.3", "augment.typos=0.2",
    "model.positions=learned",
]  # fmt: skip
BPE = ["tokenizer.bpe_dropout=0.2"]
SHORT = [
    "validation.every_steps=3", "validation.metrics=[]", "validation.best=loss", "data.test=[]", "model.dropout=0.2",
    "training.batch_tokens=200", "training.accumulate=2", "data.max_length=30", "model.max_positions=31",
]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([UNIGRAM[1], UNIGRAM[0], *UNIGRAM[2:]], id="unigram"),
        pytest.param([*BPE, "model.positions=learned"], id="bpe", marks=pytest.mark.slow),
    ],
)
def test_a_run_trains_and_resumes_bit_for_bit(config: Path, tmp_path: Path, options: list[str]) -> None:
    short = [*options, *SHORT]
    for steps in (3, 6):
        run = f"run={tmp_path / 'a'}"
        assert tiny.mtkit("train", config, run, f"training.max_steps={steps}", *short)[0] == 0
    assert tiny.mtkit("train", config, f"run={tmp_path / 'b'}", "training.max_steps=6", *short)[0] == 0
    assert tiny.losses(tmp_path / "a") == tiny.losses(tmp_path / "b")
    code, _, err = tiny.mtkit(
        "train", config, f"run={tmp_path / 'a'}", *short, f"{options[0]}1", "training.max_steps=9"
    )
    assert code == 2 and options[0].partition("=")[0] in err


def test_check_tries_what_a_pass_may_bring(config: Path) -> None:
    code, out, _ = tiny.mtkit("check", config, *UNIGRAM, *SHORT, "training.max_steps=3")
    assert code == 0
    assert "target tokens, compared with the usual segmentation" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["tokenizer.type=bpe", "tokenizer.sampling_alpha=0.2"], "set bpe_dropout"),
        (["tokenizer.type=unigram", "tokenizer.bpe_dropout=0.1"], "set sampling_alpha"),
        (["tokenizer.sampling_sides=src"], "needs sampling_alpha or bpe_dropout"),
        (["augment.upper=0.7", "augment.title=0.7"], "cannot be more than 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config: Path, options: list[str], words: str) -> None:
    code, _, err = tiny.mtkit("check", config, *options)
    assert code == 2
    assert words in tiny.one_line(err)


REVERSE = ["data.reverse=true", "data.reverse_epochs=1", "model.positions=learned"]


def test_a_run_with_both_directions_first_resumes_bit_for_bit(config: Path, tmp_path: Path) -> None:
    options = [*REVERSE, *SHORT, "training.batch_tokens=1500"]
    for name, stops in (("a", (3, 9)), ("b", (9,))):
        for steps in stops:
            run = f"run={tmp_path / name}"
            assert tiny.mtkit("train", config, run, f"training.max_steps={steps}", *options)[0] == 0
    assert tiny.losses(tmp_path / "a") == tiny.losses(tmp_path / "b")
    assert tiny.records(tmp_path / "a", "train")[-1]["epoch"] > 1
    longer = "training.max_steps=12"
    code, _, err = tiny.mtkit(
        "train", config, f"run={tmp_path / 'a'}", *options, "data.reverse_epochs=2", longer
    )
    assert code == 2 and "data.reverse_epochs" in err


@pytest.mark.parametrize("command", [["check"], ["benchmark", "train", "--steps", "3"]])
def test_pairs_in_both_directions_are_measured(
    config: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setattr("mtkit.benchmark.machine.PEAK_SECONDS", 0.01)
    code, out, err = tiny.mtkit(*command, config, "data.reverse=true", "training.max_steps=2")
    assert code == 0, out + err


def test_both_directions_need_one_vocabulary(config: Path) -> None:
    code, _, err = tiny.mtkit("check", config, "data.reverse=true", "tokenizer.joint=false")
    assert code == 2
    assert "data.reverse needs a joint tokenizer" in tiny.one_line(err)
    code, _, err = tiny.mtkit("check", config, "data.reverse_epochs=2")
    assert code == 2
    assert "data.reverse" in tiny.one_line(err)


@pytest.mark.slow
@pytest.mark.parametrize("options", [UNIGRAM, [*BPE, *REVERSE]], ids=["unigram", "bpe-reverse"])
def test_two_processes_train_on_the_same_samples_as_one(
    config: Path, tmp_path: Path, options: list[str]
) -> None:
    short = [*options, *SHORT, "training.accumulate=4", "training.max_steps=8", "training.precision=fp32"]
    short += ["training.device=cpu", "training.log_every_steps=1"]
    assert tiny.mtkit("train", config, f"run={tmp_path / 'one'}", *short)[0] == 0
    line = tiny.torchrun(2, "train", config, f"run={tmp_path / 'two'}", *short)
    done = subprocess.run(line, env=tiny.child_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (tiny.records(tmp_path / name, "train") for name in ("one", "two"))
    assert [(each["step"], each["target_tokens"]) for each in one] == [
        (each["step"], each["target_tokens"]) for each in two
    ]
    for mine, theirs in zip(one, two, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
