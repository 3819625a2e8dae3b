"""End to end, from the command line and the Python API: a YAML file in, a scored translator out."""

import contextlib
import gzip
import io
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
import typer.main
from rich.console import Console
from torch import Tensor

import mtkit
from mtkit.checkpoint import load_checkpoint, save_checkpoint
from mtkit.cli import make_app
from mtkit.model.transformer import Transformer
from mtkit.training.engine import Engine
from mtkit.training.progress import Progress
from mtkit.training.run import TrainResult
from mtkit.training.validation import Validator
from mtkit.translation.model_folder import launch_folder


def train(config: Path, *overrides: str) -> TrainResult:
    """Train through the Python API."""
    return mtkit.train(mtkit.load_config(config, overrides))


def test_what_a_validation_found_is_shown_when_it_is_saved(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, saved = tmp_path / "run", list[tuple[int, ...]]()

    def validation(self: Progress, step: int, line: str, samples: object) -> None:
        best = json.loads((run / "best/state.json").read_text())["step"]
        saved.append((step, tiny.checkpoints(run)[-1], best, tiny.records(run, "valid")[-1]["step"]))

    monkeypatch.setattr(Progress, "log_validation", validation)
    train(
        config,
        "training.max_steps=2",
        "validation.every_steps=1",
        "validation.metrics=[]",
        "validation.best=loss",
    )
    assert saved == [(1, 1, 1, 1), (2, 2, 2, 2)]


# --- the run that a user sees -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FirstRun:
    """Result of running `mtkit train` in a process of its own."""

    folder: Path
    run: Path
    stdout: str
    stderr: str
    code: int


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> FirstRun:
    folder = tmp_path_factory.mktemp("first")
    config = tiny.write_config(folder / "config.yaml", run=Path("runs/first"), root=corpus)
    config.write_text(config.read_text().replace(", precision: fp32", ""))
    done = tiny.run_process("train", "config.yaml", "training.keep_last=1", cwd=folder)
    return FirstRun(folder, folder / "runs/first", done.stdout, done.stderr, done.returncode)


def test_a_run_ends_well_and_is_quiet_on_stderr(first: FirstRun) -> None:
    assert (first.code, first.stderr) == (0, "")


def test_a_run_says_what_it_does(first: FirstRun) -> None:
    lines = [line for line in first.stdout.split("\n") if not line.startswith("encoding: ")]
    assert lines[0] == "data       400 of 400 pairs kept"
    assert [line.split("  ")[0] for line in lines[1:4]] == ["tokenizer", "batches", "model"]
    assert sum(line.startswith("step ") for line in lines) == 40
    assert sum(line.startswith("validation at step ") for line in lines) == 2
    assert "training ended: step 40 is the last" in first.stdout
    assert "\x1b" not in first.stdout


def test_the_last_line_says_what_to_type(first: FirstRun) -> None:
    typed = first.stdout.removesuffix("\n").split("\n")[-1]
    sentence = tiny.pairs(1, seed=2)[0][0]
    assert typed == f"    echo '{sentence}' | {sys.executable} -m mtkit translate runs/first"
    done = subprocess.run(
        typed, shell=True, cwd=first.folder, env=tiny.child_environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == tiny.read_lines(first.folder / "runs/first/test/test.hyps.txt")[0] + "\n"


def test_the_files_of_a_run(first: FirstRun) -> None:
    checkpoint = ["config.yaml", "manifest.json", "model.safetensors", "state.json"]
    assert sorted(tiny.tree(first.run)) == sorted(
        [
            ".lock",
            ".mtkit-run",
            "README.md",
            "config.yaml",
            "facts.json",
            "metrics.jsonl",
            "results.json",
            "samples.jsonl",
            "test/test.hyps.txt",
            "tokenizer.model",
            *(f"best/{name}" for name in checkpoint),
            *(f"checkpoints/step-00000040/{name}" for name in [*checkpoint, "optimizer.safetensors"]),
        ]
    )


def test_metrics_hold_every_update_and_every_validation(first: FirstRun) -> None:
    updates, validations = tiny.records(first.run, "train"), tiny.records(first.run, "valid")
    assert [line["step"] for line in updates] == list(range(1, 41))
    assert [line["step"] for line in validations] == [20, 40]
    assert all(
        set(line)
        == {
            "kind", "step", "loss", "nll", "grad_norm", "lr", "epoch", "target_tokens",
            "target_tokens_per_second", "seconds", "memory",
        }
        for line in updates
    )  # fmt: skip
    assert all(
        set(line) == {"kind", "step", "loss", "perplexity", "bleu", "seconds", "best"} for line in validations
    )
    assert updates[-1]["loss"] < updates[0]["loss"] - 1
    assert validations[1]["perplexity"] == pytest.approx(math.exp(validations[1]["loss"]))
    peaks = [line["memory"] for line in updates]
    assert peaks[0] > 5e7  # PyTorch alone takes more
    assert min(peaks) > 0.99 * peaks[0]  # Linux counts pages of several threads approximately
    tokens = [line["target_tokens"] for line in updates]
    assert tokens == sorted(set(tokens))


def test_results_are_what_was_printed(first: FirstRun) -> None:
    results = json.loads((first.run / "results.json").read_text())
    assert (results["ended"], results["step"]) == ("step 40 is the last", 40)
    (test,) = results["tests"]
    assert test["name"] == "test"
    used = test["translated_with"]
    assert (used["device"], used["mtkit"], used["decoding"]["beam_size"]) == ("cpu", mtkit.__version__, 3)
    precision = mtkit.Translator.load(first.run).precision
    assert used["precision"] == precision
    shown = f"beam 3, {precision} on cpu"
    assert f"test test, 16 sentences, {shown}:" in first.stdout
    card = (first.run / "README.md").read_text()
    assert f"; {shown}, mtkit {mtkit.__version__}." in card
    assert "\n| training | `{src: train.src, tgt: train.tgt}` | not given |" in card
    assert [score["name"] for score in test["scores"]] == ["BLEU", "chrF2"]
    for score in test["scores"]:
        assert f"{score['name']}|{score['signature']} = {score['score']:.2f}" in first.stdout
        assert f"| test | {score['name']} | {score['score']:.2f} |" in card


def test_the_commands_of_the_model_card_run(first: FirstRun, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (first.run / "README.md").read_text()
    [command] = re.findall(r"```sh\n(echo .*)\n", card)
    echo, text, pipe, name, *arguments = shlex.split(command)
    assert (echo, pipe, name) == ("echo", "|", "mtkit")
    monkeypatch.chdir(first.run)
    code, out, err = tiny.mtkit(*arguments, stdin=text)
    assert (code, err) == (0, "")
    [python] = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(python, {})
    assert shown.getvalue() == out


def test_the_translations_of_the_test_set_are_kept(first: FirstRun, corpus: Path) -> None:
    code, out, _ = tiny.mtkit("translate", first.run, corpus / "test.src")
    assert code == 0
    assert out == (first.run / "test/test.hyps.txt").read_text()
    scores = mtkit.evaluate(out.split("\n")[:-1], [tiny.read_lines(corpus / "test.tgt")], ["bleu"])
    results = json.loads((first.run / "results.json").read_text())
    assert scores[0].value == results["tests"][0]["scores"][0]["score"]


def test_the_resolved_config_is_kept(first: FirstRun) -> None:
    config = mtkit.load_config(first.folder / "config.yaml", ["training.keep_last=1", "training.workers=1"])
    assert mtkit.load_config(first.run / "config.yaml") == config
    assert mtkit.load_config(first.run / "best/config.yaml") == config


def test_the_same_command_again_changes_no_weights(first: FirstRun, tmp_path: Path) -> None:
    config = shutil.copy(first.folder / "config.yaml", tmp_path)
    shutil.copytree(first.run, tmp_path / "run")
    before = tiny.tree(tmp_path / "run")
    code, out, err = tiny.mtkit("train", config, "training.keep_last=1", f"run={tmp_path / 'run'}")
    assert (code, err) == (0, "")
    assert "resuming from step 40" in out
    assert out.endswith(f"mtkit translate {tmp_path / 'run'}\n")  # on one line, however long
    assert tiny.tree(tmp_path / "run").keys() == before.keys()
    same = [name for name in before if not name.startswith((".lock", "README", "config.yaml"))]
    assert [name for name in same if (tmp_path / "run" / name).read_bytes() != before[name]] == []


def test_check_says_what_train_would_do_and_leaves_nothing(config: Path, tmp_path: Path) -> None:
    before = tiny.tree(tmp_path)
    code, out, err = tiny.mtkit("check", config)
    assert (code, err) == (0, "")
    lines = out.removesuffix("\n").split("\n")
    names = [
        "config",
        "resume",
        "test",
        "valid",
        "tokenizer",
        "data",
        "batches",
        "model",
        "largest",
        "disk",
        "epochs",
        "time",
        "ok",
    ]
    assert [name for name in names if not any(line.split(" ")[0] == name for line in lines)] == []
    assert "24 of 24 lines survive a round trip" in out
    assert "\nepochs     40 updates are 2.4 epochs of 17 updates\n" in out
    assert re.search(r"\ntime .* 40 updates of .* s \(median of 5\), 2 validations of .* s ", out)
    assert lines[-1].startswith("ok ")
    assert tiny.tree(tmp_path) == before


def test_check_sees_that_a_run_would_go_on(first: FirstRun, tmp_path: Path) -> None:
    config = shutil.copy(first.folder / "config.yaml", tmp_path)
    run = shutil.copytree(first.run, tmp_path / "run")
    before = tiny.tree(run)
    code, out, err = tiny.mtkit("check", config, "training.keep_last=1", f"run={run}")
    assert (code, err) == (0, "")
    assert "the run folder has a checkpoint of this run" in out
    assert "of 17 updates, 40 are done\ntime       about 0 s " in out
    assert tiny.tree(run) == before


def test_check_of_a_run_of_a_single_update(config: Path) -> None:
    """Timing uses more updates than the run has."""
    one = ["training.batch_tokens=100000", "training.max_epochs=1", "training.max_steps=null"]
    code, out, err = tiny.mtkit("check", config, *one)
    assert (code, err) == (0, "")
    assert "\nepochs     1 update is 1.0 epochs of 1 update\n" in out
    code, out, err = tiny.mtkit("check", config, *one, "training.max_epochs=2", "training.accumulate=2")
    assert (code, err) == (0, "")
    assert "\nepochs     1 update is 2.0 epochs of 0.5 updates\n" in out


@pytest.mark.parametrize("then", ["stop", "rollback"])
def test_check_of_a_run_that_diverges_leaves_the_run_as_it_was(
    first: FirstRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    config = shutil.copy(first.folder / "config.yaml", tmp_path)
    run = shutil.copytree(first.run, tmp_path / "run")
    before = tiny.tree(run)
    monkeypatch.setattr(Engine, "forward_backward", lambda *_: torch.full((2,), math.nan))
    code, _, err = tiny.mtkit("check", config, f"run={run}", f"training.on_divergence={then}")
    assert code == 4
    assert tiny.one_line(err).startswith("error: the loss of step 1 is not finite; its sentences: ")
    assert tiny.tree(run) == before


# --- translate ----------------------------------------------------------------------------------------------------


def test_lines_come_back_in_order(trained: Path, corpus: Path) -> None:
    """The model knows the training sentences, so each translation must line up with its source."""
    srcs, tgts = (tiny.read_lines(corpus / f"train.{side}")[:100] for side in ("src", "tgt"))
    code, out, err = tiny.mtkit("translate", trained, stdin="".join(f"{line}\n" for line in srcs))
    assert (code, err) == (0, "")
    right = [hyp == tgt for hyp, tgt in zip(out.split("\n")[:-1], tgts, strict=True)]
    assert sum(right) > 80


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("", []),
        ("\n", [False]),
        ("\n\n\n", [False] * 3),
        ("the dog sees a cat .", [True]),
        ("\nthe dog sees a cat .\n\n", [False, True, False]),
        ("   \nthe dog sees a cat .\r\n\r\n", [False, True, False]),
        ("the dog\u2028sees\x0ba\x85cat .\n", [True]),
    ],
)
def test_one_line_in_is_one_line_out(trained: Path, text: str, pattern: list[bool]) -> None:
    code, out, err = tiny.mtkit("translate", trained, stdin=text)
    assert (code, err) == (0, "")
    assert out == "" or out.endswith("\n")
    assert [bool(line) for line in out.split("\n")[:-1]] == pattern


def test_files_are_translated_one_after_the_other(trained: Path, corpus: Path, tmp_path: Path) -> None:
    lines = tiny.read_lines(corpus / "test.src")
    plain = tiny.write_lines(tmp_path / "plain.txt", lines[:5])
    packed = tmp_path / "packed.txt.gz"
    packed.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines[5:]).encode()))
    _, whole, _ = tiny.mtkit("translate", trained, corpus / "test.src")
    code, out, _ = tiny.mtkit("translate", trained, plain, packed)
    assert (code, out) == (0, whole)
    code, out, _ = tiny.mtkit("translate", trained, plain, "-", stdin="".join(f"{x}\n" for x in lines[5:]))
    assert (code, out) == (0, whole)


def test_output_goes_to_a_file(trained: Path, corpus: Path, tmp_path: Path) -> None:
    _, whole, _ = tiny.mtkit("translate", trained, corpus / "test.src")
    code, out, err = tiny.mtkit("translate", trained, corpus / "test.src", "-o", tmp_path / "out.txt")
    assert (code, out, err) == (0, "", "")
    assert (tmp_path / "out.txt").read_text() == whole


@pytest.mark.parametrize("options", [["--batch-tokens", 1], ["--batch-tokens", 100000]])
def test_the_size_of_a_batch_changes_no_translation(
    trained: Path, corpus: Path, options: list[object]
) -> None:
    _, whole, _ = tiny.mtkit("translate", trained, corpus / "test.src")
    _, out, _ = tiny.mtkit("translate", trained, corpus / "test.src", *options)
    assert out == whole


def test_scores_stand_before_the_translations(trained: Path, corpus: Path) -> None:
    _, plain, _ = tiny.mtkit("translate", trained, corpus / "test.src")
    code, out, _ = tiny.mtkit("translate", trained, corpus / "test.src", "--scores")
    assert code == 0
    rows = [line.split("\t") for line in out.split("\n")[:-1]]
    assert [text for _, text in rows] == plain.split("\n")[:-1]
    assert all(float(score) < 0 for score, _ in rows)


def test_n_best_are_ranked_and_begin_with_the_best(trained: Path, corpus: Path) -> None:
    _, best, _ = tiny.mtkit("translate", trained, corpus / "test.src", "--scores", "--beam-size", 4)
    arguments = ["translate", trained, corpus / "test.src", "--n-best", 3, "--beam-size", 4]
    code, out, _ = tiny.mtkit(*arguments)
    assert code == 0
    rows = [line.split(" ||| ") for line in out.split("\n")[:-1]]
    numbers = [int(number) for number, _, _ in rows]
    assert numbers == [number for number in range(1, 17) for _ in range(3)]
    assert len({(number, text) for number, text, _ in rows}) > 3 * 16 * 0.9
    for first in range(0, len(rows), 3):
        scores = [float(score) for _, _, score in rows[first : first + 3]]
        assert scores == sorted(scores, reverse=True)
    tops = [f"{score}\t{text}" for _, text, score in rows[::3]]
    assert tops == best.split("\n")[:-1]


def test_n_best_alone_widens_the_beam(trained: Path) -> None:
    code, out, _ = tiny.mtkit("translate", trained, "--n-best", 7, stdin="the dog sees a cat .\n")
    assert code == 0
    assert len(out.split("\n")[:-1]) == 7


def test_n_best_of_an_empty_line_is_empty(trained: Path) -> None:
    _, out, _ = tiny.mtkit("translate", trained, "--n-best", 2, stdin="\n")
    assert out == "1 |||  ||| 0.000000\n"


def test_nothing_translated_as_nothing_has_the_score_0(trained: Path, tmp_path: Path) -> None:
    path = tiny.write_lines(tmp_path / "empty.txt", ["", " "])
    assert tiny.mtkit("translate", trained, path, "--scores") == (0, "0.000000\t\n" * 2, "")
    assert tiny.mtkit("score", trained, path, path) == (0, "0.000000\n" * 2, "")


@pytest.mark.parametrize("options", [[], ["--length-penalty", "0"], ["--length-penalty", "0.6"]])
def test_score_is_what_translate_printed(
    trained: Path, corpus: Path, tmp_path: Path, options: list[str]
) -> None:
    arguments = ["--precision", "fp32", *options]
    _, out, _ = tiny.mtkit("translate", trained, corpus / "test.src", "--scores", *arguments)
    printed, texts = zip(*(line.split("\t") for line in out.split("\n")[:-1]), strict=True)
    hyps = tiny.write_lines(tmp_path / "hyps.txt", list(texts))
    code, out, err = tiny.mtkit("score", trained, corpus / "test.src", hyps, *arguments)
    assert (code, err) == (0, "")
    scores = [float(line) for line in out.split("\n")[:-1]]
    assert scores == pytest.approx([float(score) for score in printed], abs=1e-5)


def test_a_line_longer_than_the_model_knows_is_translated_in_parts(
    trained: Path, tmp_path: Path, corpus: Path
) -> None:
    lines = tiny.read_lines(corpus / "test.src")
    long = " ".join(lines * 8)  # about 900 pieces; the parts have at most 256
    code, out, _ = tiny.mtkit("translate", trained, "--beam-size", 1, stdin=f"{long}\n{lines[0]}\n")
    assert code == 0
    translated, short, end = out.split("\n")
    assert (translated != "", short, end) == (
        True,
        tiny.mtkit("translate", trained, "--beam-size", 1, stdin=lines[0])[1].strip(),
        "",
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_each_precision_translates(trained: Path, corpus: Path, precision: str) -> None:
    arguments = ["translate", trained, corpus / "test.src", "--precision", precision, "--device", "cpu"]
    code, out, _ = tiny.mtkit(*arguments)
    assert code == 0
    _, exact, _ = tiny.mtkit("translate", trained, corpus / "test.src", "--precision", "fp32")
    same = [a == b for a, b in zip(out.split("\n"), exact.split("\n"), strict=True)]
    assert sum(same) > 12


def test_a_run_folder_can_be_moved(trained: Path, corpus: Path, tmp_path: Path) -> None:
    moved = tmp_path / "somewhere/else"
    shutil.copytree(trained, moved)
    path = moved / "config.yaml"
    path.write_text(path.read_text().replace(str(trained.parent), "/nowhere"))
    _, whole, _ = tiny.mtkit("translate", trained, corpus / "test.src")
    for model in (moved, moved / "best"):
        assert tiny.mtkit("translate", model, corpus / "test.src") == (0, whole, "")


def test_any_checkpoint_translates(first: FirstRun) -> None:
    code, out, _ = tiny.mtkit("translate", tiny.checkpoint(first.run, 40), stdin="the dog sees a cat .")
    assert code == 0
    assert out.count("\n") == 1


# --- evaluate -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hyps(trained: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hyps") / "hyps.txt"
    assert tiny.mtkit("translate", trained, corpus / "test.src", "-o", path)[0] == 0
    return path


def evaluate_json(*arguments: object, stdin: str | None = None) -> list[dict[str, Any]]:
    """Return the test sets of `mtkit evaluate --json`."""
    code, out, err = tiny.mtkit("evaluate", "--json", "--resamples", 0, *arguments, stdin=stdin)
    assert (code, err) == (0, "")
    return json.loads(out)


def values(of_set: dict[str, Any]) -> list[float]:
    """Return the scores of a test set."""
    return [score["score"] for score in of_set["scores"]]


def test_evaluate_a_file(hyps: Path, corpus: Path) -> None:
    code, out, err = tiny.mtkit("evaluate", hyps, "--ref", corpus / "test.tgt")
    assert (code, err) == (0, "")
    lines = out.split("\n")
    assert [line.partition("|")[0] for line in lines] == ["BLEU", "chrF2++", "TER", ""]
    assert all("nrefs:1" in line and "version:" in line and "±" in line for line in lines[:-1])
    expected = mtkit.evaluate(tiny.read_lines(hyps), [tiny.read_lines(corpus / "test.tgt")])
    assert [f"{score.value:.2f}" for score in expected] == [
        line.partition(" = ")[2].split()[0] for line in lines[:-1]
    ]


def test_evaluate_as_json_and_as_bare_numbers(hyps: Path, corpus: Path) -> None:
    arguments = [hyps, "--ref", corpus / "test.tgt", "--metric", "chrf", "--metric", "bleu"]
    (found,) = evaluate_json(*arguments)
    assert [score["name"] for score in found["scores"]] == ["chrF2", "BLEU"]
    assert all(score["signature"] for score in found["scores"])
    code, out, _ = tiny.mtkit("evaluate", "-q", *arguments)
    assert (code, out) == (0, "".join(f"{value:.2f}\n" for value in values(found)))


def test_evaluate_with_several_references(hyps: Path, corpus: Path, tmp_path: Path) -> None:
    refs = tiny.read_lines(corpus / "test.tgt")
    others = tiny.write_lines(tmp_path / "others.txt", tiny.read_lines(hyps))
    (one,) = evaluate_json(hyps, "--ref", corpus / "test.tgt")
    (two,) = evaluate_json(hyps, "--ref", corpus / "test.tgt", "--ref", others)
    assert "nrefs:2" in two["scores"][0]["signature"]
    assert values(one)[0] < values(two)[0] == pytest.approx(100)
    assert mtkit.evaluate(refs, [refs, tiny.read_lines(others)])[0].value == pytest.approx(100)


def test_evaluate_reads_stdin(hyps: Path, corpus: Path) -> None:
    (from_file,) = evaluate_json(hyps, "--ref", corpus / "test.tgt")
    assert evaluate_json("-", "--ref", corpus / "test.tgt", stdin=hyps.read_text()) == [from_file]


def test_evaluate_a_model_on_its_own_test_sets(trained: Path, hyps: Path) -> None:
    (own,) = evaluate_json("--model", trained, "--metric", "bleu")
    results = json.loads((trained / "results.json").read_text())
    assert own["name"] == "test"
    assert values(own)[0] == results["tests"][0]["scores"][0]["score"]


def test_evaluate_a_model_from_another_folder(
    trained: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths in the config start where the run was started, not where this command runs."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    run = shutil.copytree(trained, home / "runs/x")
    shutil.copytree(corpus, home / "data")
    elsewhere.mkdir()
    checkpoint = load_checkpoint(run / "best")
    text = re.sub(r"(?m)^  root: .*", "  root: data", checkpoint.config)
    text = re.sub(r"(?m)^run: .*", "run: ./runs/x", text)
    save_checkpoint(run / "best", replace(checkpoint, config=text))
    (run / "config.yaml").write_text(text)
    (expected,) = evaluate_json("--model", trained, "--metric", "bleu")
    monkeypatch.chdir(elsewhere)
    for model in (run, "../home/runs/x/best"):
        assert evaluate_json("--model", model, "--metric", "BLEU") == [expected]
    moved = shutil.copytree(run, tmp_path / "moved")
    code, out, err = tiny.mtkit("evaluate", "--model", moved)
    assert (code, out) == (3, "")
    assert "data.root: no such folder: data (the path is relative to " in tiny.one_line(err)
    assert err.endswith("; or name other files with --src and --ref)\n")


@pytest.mark.parametrize(
    ("folder", "run", "home"),
    [
        ("a/runs/x", "runs/x", "a"),
        ("a/runs/x", "./runs//x/", "a"),
        ("a/runs/x", ".", "a/runs/x"),
        ("a/runs/y", "runs/x", None),
        ("a/runs/x", "../a/runs/x", None),
        ("a/runs/x", "/a/runs/x", None),
        ("a/runs/x", "~/runs/x", None),
    ],
)
def test_where_a_run_was_started(tmp_path: Path, folder: str, run: str, home: str | None) -> None:
    (tmp_path / folder / "best").mkdir(parents=True)
    (tmp_path / folder / "tokenizer.model").touch()
    (tmp_path / folder / "best/manifest.json").touch()
    expected = None if home is None else tmp_path / home
    for path in (tmp_path / folder, tmp_path / folder / "best"):
        assert launch_folder(path, run) == expected


def test_evaluate_a_model_on_other_files(trained: Path, corpus: Path) -> None:
    arguments = ["--model", trained, "--src", corpus / "valid.src", "--ref", corpus / "valid.tgt"]
    (found,) = evaluate_json(*arguments, "--metric", "bleu")
    _, out, _ = tiny.mtkit("translate", trained, corpus / "valid.src")
    refs = tiny.read_lines(corpus / "valid.tgt")
    assert values(found)[0] == mtkit.evaluate(out.split("\n")[:-1], [refs], ["bleu"])[0].value


def test_lowercase_and_tokenizer_are_in_the_signature(hyps: Path, corpus: Path) -> None:
    (found,) = evaluate_json(
        hyps, "--ref", corpus / "test.tgt", "--lowercase", "--tokenize", "char", "--metric", "bleu"
    )
    assert "case:lc" in found["scores"][0]["signature"]
    assert "tok:char" in found["scores"][0]["signature"]


# --- config, help and version -------------------------------------------------------------------------------------


def test_config_show_prints_every_key(config: Path, tmp_path: Path) -> None:
    code, out, err = tiny.mtkit("config", "show", config, "training.max_steps=7")
    assert (code, err) == (0, "")
    shown = tmp_path / "shown.yaml"
    shown.write_text(out)
    assert mtkit.load_config(shown) == mtkit.load_config(config, ["training.max_steps=7"])
    assert "  max_steps: 7\n" in out
    assert "  clip_norm: 1.0\n" in out


def test_a_config_may_come_from_stdin(config: Path) -> None:
    _, shown, _ = tiny.mtkit("config", "show", config)
    assert tiny.mtkit("config", "show", "-", stdin=config.read_text()) == (0, shown, "")


def test_config_schema_is_a_schema_of_the_sections() -> None:
    code, out, err = tiny.mtkit("config", "schema")
    assert (code, err) == (0, "")
    sections = [
        "run",
        "seed",
        "preset",
        "init",
        "data",
        "augment",
        "tokenizer",
        "model",
        "training",
        "validation",
        "decoding",
    ]
    assert list(json.loads(out)["properties"]) == sections


def test_version() -> None:
    assert tiny.mtkit("--version") == (0, f"mtkit {mtkit.__version__}\n", "")


def all_commands(group: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Return the words of every command, groups included."""
    yield names
    for name, command in getattr(group, "commands", {}).items():
        yield from all_commands(command, (*names, name))


@pytest.mark.parametrize("words", list(all_commands(typer.main.get_command(make_app()))))
def test_every_help_has_an_example(words: tuple[str, ...]) -> None:
    code, out, err = tiny.mtkit(*words, "--help")
    assert (code, err) == (0, "")
    assert "Example" in out


def test_no_command_is_no_error_but_help() -> None:
    code, out, err = tiny.mtkit()
    assert (code, err) == (0, "")
    assert "Example" in out


def test_help_does_not_wait_for_torch() -> None:
    program = """
import sys
from mtkit.cli import run
for arguments in [["--help"], ["--version"], ["train", "--help"], ["config", "schema"]]:
    assert run(arguments) == 0
heavy = {"torch", "datasets", "sacrebleu", "sentencepiece", "pandas", "numpy"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=tiny.child_environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- the Python API -----------------------------------------------------------------------------------------------


def test_a_notebook_needs_no_command_line(config: Path, tmp_path: Path, corpus: Path) -> None:
    options = ["training.max_steps=10", "validation.every_steps=5", "training.precision=auto"]
    result = mtkit.train(mtkit.load_config(config, options))
    assert (result.run, result.step, result.reason) == (tmp_path / "run", 10, "step 10 is the last")
    assert [test.name for test in result.tests] == ["test"]
    translator = mtkit.Translator.load(result.run)
    lines = tiny.read_lines(corpus / "test.src")
    translations = [translation.text for translation in translator.translate(lines)]
    assert translations == result.tests[0].hyps
    scores = mtkit.evaluate(translations, [tiny.read_lines(corpus / "test.tgt")], ["bleu", "chrf"])
    assert [score.value for score in scores] == [score.value for score in result.tests[0].scores]


def test_training_says_nothing_unless_asked(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(config, "training.max_steps=2")
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_a_live_view_and_the_same_numbers(config: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    mtkit.train(
        mtkit.load_config(config, ["training.max_steps=20", "validation.every_steps=10"]), console=console
    )
    assert "\x1b" in shown.getvalue()
    assert "validation at step 20" in shown.getvalue()
    train(config, "training.max_steps=20", "validation.every_steps=10", f"run={tmp_path / 'plain'}")
    assert tiny.losses(tmp_path / "run") == tiny.losses(tmp_path / "plain")


# --- how a run ends, and what is the best -------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["loss", "bleu", "chrf"])
def test_the_best_checkpoint_is_best_by_the_chosen_number(config: Path, tmp_path: Path, metric: str) -> None:
    result = train(
        config, "training.max_steps=30", "validation.every_steps=5", "validation.metrics=[bleu, chrf]",
        f"validation.best={metric}", "training.keep_last=100", "training.learning_rate=0.03",
    )  # fmt: skip
    run = tmp_path / "run"
    found = {line["step"]: (line[metric], line["loss"]) for line in tiny.records(run, "valid")}
    assert list(found) == [5, 10, 15, 20, 25, 30]
    shown = {
        step: (-round(number, 2), round(loss, 4)) if metric != "loss" else (number, loss)
        for step, (number, loss) in found.items()
    }
    assert result.best_step == min(shown, key=lambda step: shown[step])
    assert result.best == found[result.best_step][0]
    best = tiny.checkpoint(run, result.best_step) / "model.safetensors"
    assert (run / "best/model.safetensors").read_bytes() == best.read_bytes()
    flags = [line["best"] for line in tiny.records(run, "valid")]
    assert [step for step, flag in zip(found, flags, strict=True) if flag][-1] == result.best_step


def test_patience_ends_a_run_that_gets_no_better(config: Path, tmp_path: Path) -> None:
    result = train(
        config, "training.learning_rate=1e-12", "validation.every_steps=3", "validation.patience=2",
        "validation.best=bleu",
    )  # fmt: skip
    assert (result.step, result.best_step) == (9, 3)
    assert result.reason == "no better bleu in 2 validations"
    assert tiny.checkpoints(tmp_path / "run")[-1] == 9


def test_a_run_that_learns_while_its_score_is_zero_goes_on(config: Path, tmp_path: Path) -> None:
    """The loss shows that it learns."""
    result = train(config, "validation.every_steps=2", "validation.patience=1", "training.max_steps=6")
    found = tiny.records(tmp_path / "run", "valid")
    assert {round(line["bleu"], 2) for line in found} == {0.0}
    assert (result.step, result.best_step, result.best) == (6, 6, found[-1]["bleu"])


def test_each_validation_set_has_its_numbers(config: Path, tmp_path: Path) -> None:
    sets = "data.valid=[{src: valid.src, tgt: valid.tgt}, {name: other, src: test.src, tgt: test.tgt}]"
    keys = [sets, "training.max_steps=2", "data.test=[]", "validation.num_samples=0"]
    code, out, _ = tiny.mtkit("train", config, *keys)
    [line] = tiny.records(tmp_path / "run", "valid")
    assert code == 0
    for name in ("valid", "other"):
        assert f"    {name}: loss {line[f'{name}/loss']:.4f}  perplexity " in out
        assert {f"{name}/perplexity", f"{name}/bleu"} <= line.keys()
    low, high = sorted((line["valid/loss"], line["other/loss"]))
    assert low < line["loss"] < high


def test_patience_still_counts_after_a_run_has_ended(config: Path) -> None:
    options = ["training.learning_rate=1e-12", "validation.every_steps=3", "validation.patience=2"]
    train(config, *options)
    assert train(config, *options).step == 9
    assert train(config, *options, "validation.patience=3").step == 12


def test_without_validation_pairs_the_last_weights_are_the_best(config: Path, tmp_path: Path) -> None:
    result = train(config, "data.valid=[]", "training.max_steps=6", "training.save_every_steps=3")
    assert (result.best, result.best_step) == (None, None)
    run = tmp_path / "run"
    assert tiny.records(run, "valid") == []
    last = tiny.checkpoint(run, 6) / "model.safetensors"
    assert (run / "best/model.safetensors").read_bytes() == last.read_bytes()
    assert tiny.checkpoints(run) == [3, 6]


def test_epochs_end_a_run(config: Path, tmp_path: Path) -> None:
    result = train(config, "training.max_steps=null", "training.max_epochs=2")
    assert result.reason == "epoch 2 was the last"
    updates = tiny.records(tmp_path / "run", "train")
    assert updates[-1]["step"] == result.step
    assert updates[-1]["epoch"] == 2.0
    assert tiny.records(tmp_path / "run", "valid")[-1]["step"] == result.step
    assert tiny.checkpoints(tmp_path / "run")[-1] == result.step


def test_minutes_end_a_run(config: Path, tmp_path: Path) -> None:
    limits = ["training.max_steps=null", "training.time_limit_minutes=0.005"]
    result = train(config, *limits)
    assert result.reason == "the time limit of 0.005 min is over"
    assert result.step >= 1
    assert tiny.records(tmp_path / "run", "valid")[-1]["step"] == result.step
    assert train(config, *limits).step == result.step  # earlier runs of the folder count


def test_old_checkpoints_are_deleted(config: Path, tmp_path: Path) -> None:
    train(config, "training.max_steps=12", "training.save_every_steps=2", "training.keep_last=3")
    assert tiny.checkpoints(tmp_path / "run") == [8, 10, 12]


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restarted_command_does_not_begin_afresh_again(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    command = ["train", config, "--fresh"]
    monkeypatch.setenv(variable, "0")
    assert tiny.mtkit(*command, "training.max_steps=2")[0] == 0
    monkeypatch.setenv(variable, "1")
    code, out, _ = tiny.mtkit(*command, "training.max_steps=4")
    assert code == 0 and "resuming from step 2" in out
    monkeypatch.delenv(variable)
    code, out, _ = tiny.mtkit(*command, "training.max_steps=4")
    assert code == 0 and "resuming" not in out


def test_a_report_that_was_asked_for_later_is_no_foreign_file(config: Path, tmp_path: Path) -> None:
    without = "training.report=false"
    train(config, "training.max_steps=2", without)
    assert tiny.mtkit("report", tmp_path / "run")[0] == 0
    assert train(config, "training.max_steps=4", without).step == 4


def test_fresh_begins_again_and_leaves_foreign_files(config: Path, tmp_path: Path) -> None:
    train(config, "training.max_steps=4")
    (tmp_path / "run/notes.txt").write_text("mine")
    code, out, err = tiny.mtkit("train", config, "seed=5", "training.max_steps=3", "--fresh")
    assert (code, err) == (0, "")
    assert "resuming" not in out
    assert tiny.checkpoints(tmp_path / "run") == [0, 3]
    assert [line["step"] for line in tiny.records(tmp_path / "run", "train")] == [1, 2, 3]
    assert (tmp_path / "run/notes.txt").read_text() == "mine"


# --- ways to train ------------------------------------------------------------------------------------------------


def test_accumulated_batches_make_one_update(config: Path, tmp_path: Path) -> None:
    epoch = [
        "training.max_steps=null",
        "training.max_epochs=1",
        "validation.metrics=[]",
        "validation.best=loss",
    ]
    one = train(config, *epoch)
    three = train(config, *epoch, "training.accumulate=3", f"run={tmp_path / 'three'}")
    assert three.step == -(-one.step // 3)
    last_one, last_three = (tiny.records(run, "train")[-1] for run in (one.run, three.run))
    assert last_one["target_tokens"] == last_three["target_tokens"]
    # Before the first update the weights are the same: its loss is the mean over the targets of three batches.
    first = tiny.records(three.run, "train")[0]
    assert first["target_tokens"] == tiny.records(one.run, "train")[2]["target_tokens"]


def rate(schedule: str, step: int) -> float:
    """Return the learning rate of a 12-step run (4 of warm-up, peak 0.01, end 0.001) by the published formulas."""
    if schedule == "noam":
        return 0.01 * 32**-0.5 * min(step**-0.5, step * 4**-1.5)
    if step <= 4:
        return 0.01 * step / 4
    done = (step - 4) / 8
    return {
        "inverse_sqrt": 0.01 * (4 / step) ** 0.5,
        "linear": 0.01 * (1 - done) + 0.001 * done,
        "cosine": 0.001 + 0.009 * (1 + math.cos(math.pi * done)) / 2,
        "constant": 0.01,
    }[schedule]


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "noam", "linear", "cosine", "constant"])
def test_schedules(config: Path, tmp_path: Path, schedule: str) -> None:
    end = ["training.min_learning_rate=0.001"] if schedule in ("linear", "cosine") else []
    train(
        config, f"training.schedule={schedule}", "training.max_steps=12", "training.warmup_steps=4",
        "training.learning_rate=0.01", *end, "validation.metrics=[]", "validation.best=loss", "data.test=[]",
    )  # fmt: skip
    rates = [line["lr"] for line in tiny.records(tmp_path / "run", "train")]
    assert rates == pytest.approx([rate(schedule, step) for step in range(1, 13)], rel=1e-9)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_each_precision_learns(config: Path, tmp_path: Path, precision: str) -> None:
    train(config, f"training.precision={precision}", "training.max_steps=30")
    updates = tiny.records(tmp_path / "run", "train")
    assert all(math.isfinite(line["loss"]) for line in updates)
    assert "Infinity" not in (tmp_path / "run/metrics.jsonl").read_text()  # of a norm that overflowed
    assert updates[-1]["loss"] < updates[0]["loss"] - 1
    stored = safetensors.torch.load_file(tmp_path / "run/best/model.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {"torch.float32"}


def test_averaged_weights_are_what_is_validated_and_translated_with(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated: list[dict[str, Tensor]] = []
    original = Validator.loss

    def loss(self: Validator, model: Transformer, *world: Any) -> tuple[float, list[float]]:
        validated.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return original(self, model, *world)

    monkeypatch.setattr(Validator, "loss", loss)
    train(config, "training.ema_decay=0.9", "training.max_steps=20")
    run = tmp_path / "run"
    averaged = safetensors.torch.load_file(run / "checkpoints/step-00000020/model.safetensors")
    state = safetensors.torch.load_file(run / "checkpoints/step-00000020/optimizer.safetensors")
    best = safetensors.torch.load_file(run / "best/model.safetensors")
    for name, tensor in averaged.items():
        assert validated[-1][name].equal(tensor)
        assert best[name].equal(tensor)
        assert not state[f"weight/{name}"].equal(tensor)


def test_two_tokenizers_and_their_run_folder(config: Path, tmp_path: Path) -> None:
    train(config, "tokenizer.joint=false", "tokenizer.vocab_size=64", "training.max_steps=3")
    names = {path.name for path in (tmp_path / "run").glob("tokenizer*")}
    assert names == {"tokenizer.src.model", "tokenizer.tgt.model"}
    assert tiny.mtkit("translate", tmp_path / "run", stdin="the dog .\n")[0] == 0


def test_the_demo_trains_without_any_file(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(
        f"run: {tmp_path / 'run'}\n"
        "data:\n"
        "  {src: en, tgt: de, train: [{demo: en-de, pairs: 300}], valid: [{demo: en-de, pairs: 10}],\n"
        "   test: [{name: held-out, demo: en-de, pairs: 10}]}\n"
        "tokenizer: {vocab_size: 300, byte_fallback: false}\n"
        "model: {d_model: 32, encoder_layers: 1, decoder_layers: 1}\n"
        "training: {batch_tokens: 400, max_steps: 5, num_threads: 1, report: false}\n"
    )
    result = train(path, "validation.bleu_tokenizer=char")
    assert [test.name for test in result.tests] == ["held-out"]
    assert len(result.tests[0].hyps) == 10
    assert "tok:char" in (tmp_path / "run/results.json").read_text()


def test_the_tokenizer_of_the_same_texts_and_settings_is_trained_once(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["training.max_steps=1", "data.valid=[]", "data.test=[]", f"data.cache={tmp_path / 'cache'}"]
    train(config, *small)
    model = (tmp_path / "run/tokenizer.model").read_bytes()
    trained = []
    monkeypatch.setattr("mtkit.data.tokenizer.train_sentencepiece", lambda *_: trained.append(1) or model)
    train(config, *small, f"run={tmp_path / 'again'}")
    assert not trained
    assert (tmp_path / "again/tokenizer.model").read_bytes() == model
    for change in ("seed=2", "tokenizer.vocab_size=90", "data.train=[{src: valid.src, tgt: valid.tgt}]"):
        train(config, *small, f"run={tmp_path / change[:4]}", change)
    assert len(trained) == 3
