"""Every config in the repository loads, is short, survives a dump, and its model can be built."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from string import Template

import pytest
import torch

from mtkit.config.loading import dump_config, load_config
from mtkit.config.sections import Config
from mtkit.model.transformer import Transformer

ROOT = Path(__file__).parents[2]
SYSTEMS = sorted(ROOT.glob("recipes/*/systems.yaml"))
CONFIGS = sorted({*ROOT.glob("configs/*.yaml"), *ROOT.glob("recipes/*/*.yaml")} - {*SYSTEMS})
RECIPES = sorted(path.parent for path in ROOT.glob("recipes/*/README.md"))
MAX_LINES = 60

each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
each_recipe = pytest.mark.parametrize("folder", RECIPES, ids=lambda folder: folder.name)


def build_model(config: Config) -> Transformer:
    """Build the model of a config with the largest vocabulary it allows, without allocating weights."""
    vocab_size = -(-config.tokenizer.vocab_size // 8) * 8
    with torch.device("meta"):
        return Transformer(config.model, vocab_size, vocab_size)


@each_config
def test_it_is_short_and_says_what_it_is_for(path: Path) -> None:
    lines = path.read_text("utf-8").removesuffix("\n").split("\n")
    assert len(lines) <= MAX_LINES
    assert lines[0].startswith("# ")


@each_config
def test_it_survives_a_dump(tmp_path: Path, path: Path) -> None:
    config = load_config(path)
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(dump_config(config), encoding="utf-8")
    assert load_config(dumped) == config
    assert dump_config(load_config(dumped)) == dump_config(config)


@each_config
def test_it_runs_anywhere(path: Path) -> None:
    config = load_config(path)
    assert config.run == f"runs/{path.stem}"
    files = [file for split in (config.data.train, config.data.valid, config.data.test) for file in split]
    names = [name for file in files for name in (file.src, file.tgt, file.path, file.saved) if name]
    assert [name for name in [config.data.root, *names] if Path(name).is_absolute()] == []


@each_config
def test_its_model_has_the_parameter_count_in_its_readme(path: Path) -> None:
    millions = build_model(load_config(path)).num_parameters() / 1e6
    page = ROOT / "README.md" if path.parent.name == "configs" else path.parent / "README.md"
    row = re.search(rf"^\| `{path.relative_to(ROOT)}` \| ([0-9.]+) M \|", page.read_text("utf-8"), re.M)
    assert row is not None
    assert row[1] == f"{millions:.1f}"


def test_the_quickstart_needs_no_files() -> None:
    data = load_config(ROOT / "configs/quickstart.yaml").data
    assert data.valid
    assert data.test
    assert all(source.demo == "en-de" for source in (*data.train, *data.valid, *data.test))


@each_recipe
def test_a_recipe_is_listed_and_its_configs_read_the_data_that_it_names(folder: Path) -> None:
    assert f"({folder.name}/README.md)" in (ROOT / "recipes/README.md").read_text("utf-8")
    text = (folder / "README.md").read_text("utf-8")
    used = [path for path in CONFIGS if path.relative_to(ROOT).as_posix() in text]
    assert used
    if folder.name in WITHOUT_A_SCORE:
        return
    sums = (folder / "SHA256SUMS").read_text("utf-8").removesuffix("\n").split("\n")
    assert [line for line in sums if not re.fullmatch(r"[0-9a-f]{64}  \S+", line)] == []
    for path in used:
        data = load_config(path).data
        sources = (*data.train, *data.valid, *data.test)
        files = [name for source in sources for name in (source.path, source.src, source.tgt) if name]
        assert [line.split("  ")[1] for line in sums] == files


@pytest.mark.parametrize("path", SYSTEMS, ids=lambda path: path.parent.name)
def test_the_trainings_of_a_recipe_have_valid_keys(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "recipes")
    measure = importlib.import_module("measure")
    recipe = measure.Recipe(path.parent)
    folders = recipe.folders(tmp_path / "run", tmp_path, seed=1)
    commands = [
        Template(line).substitute(folders)
        for name in recipe.systems
        for line in recipe.commands(name, 1, recipe.steps)
    ]
    trainings = [shlex.split(line)[1:] for line in commands if line.startswith("train ")]
    assert len(trainings) >= len(recipe.systems) - 1
    for config, *overrides in trainings:
        assert load_config(config, overrides).seed == 1


WITHOUT_A_SCORE = ("gpu", "several-machines")
"""Recipes that describe how to do something and promise no score."""
