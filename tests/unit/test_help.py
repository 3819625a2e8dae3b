"""Help for newcomers: help of command groups, options in panels, shell completion."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import tiny
import typer

from mtkit.cli import make_app
from mtkit.cli.terminal import invocation
from mtkit.config.choices import PRECISIONS
from mtkit.config.loading import config_keys, suggested_values
from mtkit.config.sections import Config, DecodingConfig
from mtkit.training.inputs import Inputs
from mtkit.training.validation import EvalSet


@pytest.mark.parametrize("group", [[], ["config"], ["benchmark"]], ids=lambda words: " ".join(words))
def test_a_group_alone_prints_its_help(group: list[str]) -> None:
    code, out, err = tiny.mtkit(*group)
    assert (code, err) == (0, "")
    assert out == tiny.mtkit(*group, "--help")[1]
    assert "Usage: " + " ".join(["mtkit", *group]) in out


def test_missing_arguments_are_a_usage_error() -> None:
    code, out, err = tiny.mtkit("config", "show")
    assert (code, out) == (2, "")
    assert "CONFIG" in tiny.one_line(err)


def translate_options() -> dict[str, Any]:
    command: Any = typer.main.get_command(make_app()).commands["translate"]  # type: ignore[attr-defined]
    return {p.name: p for p in command.params if p.param_type_name == "option"}


def test_every_option_of_translate_is_in_a_panel() -> None:
    panels = {name: option.rich_help_panel for name, option in translate_options().items()}
    assert [name for name, panel in panels.items() if panel is None] == []
    assert set(panels.values()) == {
        "Input and output", "Search", "Sampling", "Constraints", "Text handling", "Machine",
    }  # fmt: skip


def complete(*words: str) -> list[str]:
    """Return the completions of the last word of a command line, as a shell gets them."""
    command: Any = typer.main.get_command(make_app())
    *names, last = words
    with command.make_context("mtkit", list(names), resilient_parsing=True) as context:
        below = context.command.commands[names[0]]
        with below.make_context(names[0], list(names[1:]), parent=context, resilient_parsing=True) as inner:
            option = names[-1] if names[-1].startswith("--") else None
            (parameter,) = [
                p
                for p in below.params
                if option in p.opts or (not option and p.name in ("overrides", "values"))
            ]
            return [item.value for item in parameter.shell_complete(inner, last)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("translate", "m", "--precision", ""), PRECISIONS),
        (("translate", "m", "--stop", "un"), ["unbeaten"]),
        (("translate", "m", "--penalty-kind", ""), ["gnmt", "simple"]),
        (("translate", "m", "--mbr", ""), ["bleu", "chrf", "chrf++", "ter", "none"]),
        (("translate", "m", "--device", "c"), ["cpu", "cuda"]),
        (("evaluate", "--metric", "chr"), ["chrf", "chrf++"]),
        (("train", "my.yaml", "training.le"), ["training.learning_rate=", "training.learning_rate=0.001"]),
        (("train", "my.yaml", "training.warm"), ["training.warmup_steps=", "training.warmup_steps=1000"]),
        (("check", "my.yaml", "seed=1", "decoding.m"), [f"decoding.{key}=" for key in DecodingConfig.model_fields
                                                       if key.startswith("m")]),
        (("train", "my.yaml", "model.bias=f"), ["model.bias=false"]),
        (("train", "my.yaml", "training.schedule", "=", "co"), ["cosine", "constant"]),  # as bash splits it
        (("train", "my.yaml", "model.norm_position", ""), ["pre", "post"]),
        (("sweep", "my.yaml", "training.schedule", "=", "co"), ["cosine", "constant"]),
        (("train", "my.yaml", "nothing.l"), []),
    ],
)  # fmt: skip
def test_completion(words: tuple[str, ...], expected: list[str]) -> None:
    assert complete(*words) == list(expected)


def test_every_key_can_be_completed() -> None:
    keys = config_keys()
    assert {key.split(".")[0] for key in keys} == set(Config.model_fields)
    assert suggested_values("training.batch_tokens") == ["auto", "4096"]
    assert suggested_values("validation.metrics") == ["[bleu, chrf]"]
    assert suggested_values("run") == suggested_values("no.such") == []


def test_completion_does_not_import_torch() -> None:
    words = "mtkit train my.yaml training.sch"
    code = """
import sys
from mtkit.cli import make_app
try:
    make_app()([], prog_name="mtkit")
finally:
    assert not {"torch", "sacrebleu", "datasets"} & sys.modules.keys()
"""
    variables = {"_MTKIT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "3"}
    environment = tiny.child_environment() | variables
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == [
        f"training.schedule={name}" for name in ["", *suggested_values("training.schedule")]
    ]
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("called", "shown"),
    [
        (".venv/bin/mtkit", ".venv/bin/mtkit"),
        ("my tools/mtkit", "'my tools/mtkit'"),
        ("{installed}/mtkit", "mtkit"),
        ("{installed}/../bin/mtkit", "mtkit"),
        ("/x/mtkit/__main__.py", "python3 -m mtkit"),
        ("/x/pytest/__main__.py", "mtkit"),
    ],
)
def test_the_next_command_is_shown_as_the_user_called_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: str, shown: str
) -> None:
    for folder in ("bin", ".venv/bin", "my tools"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "mtkit").write_text("")
        (tmp_path / folder / "mtkit").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    monkeypatch.setattr(sys, "argv", [called.format(installed=tmp_path / "bin"), "train"])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "mtkit", "train"])
    assert invocation() == shown


@pytest.mark.parametrize(
    ("lines", "example"),
    [
        (["", "-n", "a\\nb", " c", "d\te", "x" * 200, "It's a dog.", "Next."], "It's a dog."),
        ([""], None),
    ],
)
def test_the_sentence_that_is_offered_reaches_echo_unchanged(lines: list[str], example: str | None) -> None:
    inputs = Inputs(cast(Any, None), cast(Any, None), None, [EvalSet("test", lines, lines)])
    assert inputs.example() == example
