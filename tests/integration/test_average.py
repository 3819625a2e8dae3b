"""`mtkit average`: the mean of checkpoint weights, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from safetensors.numpy import load_file

import mtkit
from mtkit.checkpoint import load_checkpoint, parse_step, verify_checkpoint
from mtkit.errors import StorageError
from mtkit.training.averaging import average_last, average_weights, best_checkpoints, read_validations

OPTIONS = [
    "training.max_steps=20",
    "validation.every_steps=4",
    "training.keep_last=100",
    "validation.best=loss",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A run with checkpoints of steps 0, 4, ... 20; read-only."""
    folder = tmp_path_factory.mktemp("averaged")
    config = tiny.write_config(folder / "config.yaml", run=folder / "run", root=corpus)
    mtkit.train(mtkit.load_config(config, [*OPTIONS, "data.test=[]"]))
    return folder / "run"


def mean(run: Path, *steps: int) -> dict[str, np.ndarray]:
    """Compute the expected average in another way."""
    found = [load_file(tiny.checkpoint(run, step) / "model.safetensors") for step in steps]
    return {
        name: np.mean([weights[name].astype(np.longdouble) for weights in found], axis=0).astype(np.float32)
        for name in found[0]
    }


def assert_average(folder: Path, expected: dict[str, np.ndarray]) -> None:
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert weights[name].dtype == np.float32
        np.testing.assert_allclose(weights[name], value, rtol=1e-7, atol=0)


def fails(code: int, *parts: str, arguments: list[object]) -> None:
    found, out, err = tiny.mtkit("average", *arguments)
    line = tiny.one_line(err)
    assert (found, out) == (code, ""), line
    assert [part for part in parts if part not in line] == [], line


def test_the_last_checkpoints_of_a_run(run: Path, tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "deep" / "average"
    code, out, err = tiny.mtkit("average", run, "--last", 3, "-o", folder)
    assert (code, err) == (0, "")
    assert out.startswith(f"averaged 3 checkpoints into {folder}: {tiny.checkpoint(run, 20)}, ")
    assert_average(folder, mean(run, 12, 16, 20))
    assert verify_checkpoint(folder) == {"model.safetensors", "config.yaml", "state.json", "tokenizer.model"}
    moved = folder.rename(tmp_path / "moved")  # it needs nothing outside itself
    code, hyps, err = tiny.mtkit("translate", moved, corpus / "test.src", "--quiet")
    assert (code, err) == (0, "")
    assert len(hyps.splitlines()) == tiny.SPLITS["test"]


def test_the_checkpoints_with_the_best_validation(run: Path, tmp_path: Path) -> None:
    """The validation scores are not in the order of the steps, one is NaN, and the last line is incomplete."""
    copy = shutil.copytree(run, tmp_path / "run")
    numbers = {4: 1.0, 8: 5.0, 12: None, 16: 2.0, 20: 3.0}
    lines = [json.dumps({"kind": "valid", "step": step, "loss": loss}) for step, loss in numbers.items()]
    (copy / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "valid", "step": 12, "lo']))
    found = read_validations(copy / "metrics.jsonl", "loss")
    assert {step: own.value for step, own in found.items()} == {4: 1.0, 8: 5.0, 16: 2.0, 20: 3.0}
    code, out, _ = tiny.mtkit("average", copy, "--best", 3, "-o", tmp_path / "average")
    assert code == 0
    steps = [tiny.checkpoint(copy, step) for step in (4, 16, 20)]
    assert out.endswith(": " + ", ".join(map(str, steps)) + "\n")
    assert_average(tmp_path / "average", mean(copy, 4, 16, 20))
    fails(2, "4 checkpoints with a validation (loss), not 5", "--best 4", "keep_last",
          arguments=[copy, "--best", 5, "-o", tmp_path / "other"])  # fmt: skip


def test_equal_scores_are_ranked_by_the_loss(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    numbers = {4: (0.001, 5.0), 8: (0.004, 7.0), 12: (0.0, 4.0), 16: (0.1, 9.0), 20: (0.003, 6.0)}
    lines = [
        json.dumps({"kind": "valid", "step": step, "bleu": bleu, "loss": loss})
        for step, (bleu, loss) in numbers.items()
    ]
    (copy / "metrics.jsonl").write_text("\n".join(lines))
    for config in copy.glob("checkpoints/*/config.yaml"):
        text = config.read_text()
        config.write_text(text.replace("best: loss", "best: bleu"))
    assert [parse_step(folder.name) for folder in best_checkpoints(copy, 5)] == [16, 12, 4, 20, 8]


def test_named_checkpoints(run: Path, tmp_path: Path) -> None:
    named = [tiny.checkpoint(run, step) for step in (8, 4)]
    assert tiny.mtkit("average", *named, "-o", tmp_path / "average")[0] == 0
    assert_average(tmp_path / "average", mean(run, 8, 4))
    state = json.loads((tmp_path / "average/state.json").read_text())
    assert state["averaged"] == ["step-00000008, step 8", "step-00000004, step 4"]
    # an average can be averaged again, and a run folder stands for its best
    assert tiny.mtkit("average", tmp_path / "average", run, "-o", tmp_path / "second")[0] == 0


def test_the_average_of_a_checkpoint_and_its_copy_is_the_checkpoint(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny.checkpoint(run, 20), tmp_path / "run" / "copy")
    shutil.copy(run / "tokenizer.model", tmp_path / "run")
    assert tiny.mtkit("average", copy, tiny.checkpoint(run, 20), "-o", tmp_path / "average")[0] == 0
    same = [(folder / "model.safetensors").read_bytes() for folder in (copy, tmp_path / "average")]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["{run}"], ["at least two checkpoints", "--last 5"]),
        (["{run}", "{step}", "--last", 2], ["need a single run folder"]),
        (["{run}", "--last", 2, "--best", 2], ["either --last or --best"]),
        (["{run}", "--last", 6], ["5 checkpoints, not 6", "--last 5", "training.keep_last"]),
        (["{run}", "--last", 1], ["--last", "2"]),
        (["{step}", "--last", 2], ["a checkpoint, not a run folder"]),
        (["{step}", "{step}"], ["named twice"]),
    ],
)
def test_contradictory_arguments_are_refused(
    run: Path, tmp_path: Path, arguments: list[object], parts: list[str]
) -> None:
    places = {"run": run, "step": tiny.checkpoint(run, 20)}
    filled = [str(argument).format(**places) for argument in arguments]
    fails(2, *parts, arguments=[*filled, "-o", tmp_path / "average"])
    assert not (tmp_path / "average").exists()


def test_nothing_is_overwritten(run: Path, tmp_path: Path) -> None:
    before = tiny.tree(run)
    for taken in (run, run / "best", run / "config.yaml"):
        fails(2, str(taken), "already exists", arguments=[run, "--last", 2, "-o", taken])
    assert tiny.tree(run) == before
    (tmp_path / "empty").mkdir()
    assert tiny.mtkit("average", run, "--last", 2, "-o", tmp_path / "empty")[0] == 0


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("seed=2", "seed: 1 -> 2"),
        ("model.d_model=16", "model.d_model: 32 -> 16"),
        ("training.learning_rate=0.004", "training.learning_rate: 0.005 -> 0.004"),
        ("tokenizer.vocab_size=80", "different tokenizers"),
        ("data.train=[{src: valid.src, tgt: valid.tgt}]", "different tokenizers"),
    ],
)
def test_checkpoints_of_different_runs_are_refused(
    run: Path, corpus: Path, tmp_path: Path, change: str, part: str
) -> None:
    config = tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=corpus)
    mtkit.train(mtkit.load_config(config, ["training.max_steps=1", "data.test=[]", "data.valid=[]", change]))
    other = tiny.checkpoint(tmp_path / "run", 1)
    fails(2, part, str(other), "one run",
          arguments=[tiny.checkpoint(run, 20), other, "-o", tmp_path / "average"])  # fmt: skip


def test_damaged_checkpoints_are_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    path = tiny.checkpoint(copy, 16) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    fails(5, str(path), "damaged", arguments=[copy, "--last", 2, "-o", tmp_path / "average"])
    fails(5, "no such folder", arguments=[tmp_path / "no", "--last", 2, "-o", tmp_path / "average"])
    assert not (tmp_path / "average").exists()


def test_weights_of_different_models_are_refused(tmp_path: Path) -> None:
    """The tensors differ in ways that no config shows."""
    tensors = [
        {"a": torch.ones(2), "b": torch.ones(3)},
        {"a": torch.ones(2)},
        {"a": torch.ones(2), "b": torch.ones(1)},
        {"a": torch.ones(2), "b": torch.ones(3, dtype=torch.float16)},
    ]
    paths = [tmp_path / str(number) for number in range(4)]
    for path, held in zip(paths, tensors, strict=True):
        path.write_bytes(safetensors.torch.save(held))
    for path, what in zip(paths[1:], ("different tensors: b", "b is", "b is"), strict=True):
        with pytest.raises(StorageError, match=what) as caught:
            average_weights([paths[0], path])
        assert caught.value.where == str(path)


def test_weights_are_accumulated_in_float64(tmp_path: Path) -> None:
    """Summed in float32, the small number would be lost next to the large ones."""
    paths = [tmp_path / str(number) for number in range(4)]
    for path, value in zip(paths, (1e8, 1.0, -1e8, 1.0), strict=True):
        path.write_bytes(safetensors.torch.save({"a": torch.tensor([value])}))
    assert average_weights(paths)["a"].tolist() == [0.5]
    assert average_weights(paths)["a"].dtype == torch.float32


def test_average_at_the_end_of_training(run: Path, corpus: Path, tmp_path: Path) -> None:
    """`training.average_last` keeps as many checkpoints as it needs and replaces an earlier average."""
    config = tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=corpus)
    options = [*OPTIONS, "data.test=[]", "training.average_last=3", "training.keep_last=1"]
    options.append("validation.metrics=[]")  # its weights are those of the other run all the same
    said: list[str] = []
    for steps, averaged in ((12, (4, 8, 12)), (20, (12, 16, 20))):
        loaded = mtkit.load_config(config, [*options, f"training.max_steps={steps}"])
        mtkit.train(loaded)
        assert tiny.checkpoints(tmp_path / "run") == list(averaged)
        assert_average(tmp_path / "run" / "average", mean(run, *averaged))
        folder = average_last(loaded, said.append)
        assert folder == tmp_path / "run" / "average"
        assert f"of 3 checkpoints, steps {averaged[0]} to {averaged[2]}" in said[-1]
        assert_average(folder, mean(run, *averaged))
    assert tiny.mtkit("translate", folder, stdin="a dog .\n")[0] == 0
    short = mtkit.load_config(config, [*options, "training.max_steps=2", f"run={tmp_path / 'short'}"])
    mtkit.train(short)
    assert average_last(short, said.append) is None
    assert said[-1] == "no average: the run has 1 checkpoint"
    assert average_last(mtkit.load_config(config), said.append) is None
    assert load_checkpoint(folder).state["averaged"]
