"""Check README.md, docs/ and recipes/: commands parse, YAML loads, keys, options, paths and links exist."""

from __future__ import annotations

import ast
import importlib
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import (
    PAGES,
    ROOT,
    anchors,
    blocks,
    inline_code,
    leaf_commands,
    mtkit_commands,
    page_name,
    prose,
    split_command,
    subcommands,
)
from test_imports import LAYERS

import mtkit
from mtkit.config.loading import load_config, parse_config
from mtkit.config.sections import Config, SourceConfig, default_value
from mtkit.config.yaml_document import parse_value
from mtkit.errors import MtkitError

CONFIG_COMMANDS = ("train", "check", "config show", "benchmark train", "benchmark data")
MINIMAL: dict[str, Any] = {"run": "r", "data": {"src": "en", "tgt": "de", "train": [{"path": "x.tsv"}]}}
FILES = ("model.safetensors", "model.pt")
"""Names of files that read like config keys."""
FOREIGN_OPTIONS = {
    "-c", "-e", "-m", "-a", "-dc", "-n",
    "--standalone", "--nproc-per-node", "--nnodes", "--max-restarts", "--rdzv-backend", "--rdzv-id", "--rdzv-endpoint",
    "--signal",
    "-l", "--paired-bs", "--paired-ar", "--sentence-level", "--again", "--only", "--tiny", "--work",
}  # fmt: skip
"""Options of python, pip, torchrun, SLURM, sacreBLEU, scripts of recipes and others."""

each_page = pytest.mark.parametrize("page", PAGES, ids=page_name)
each_command = pytest.mark.parametrize(
    "words",
    sorted({tuple(words) for page in PAGES for words in mtkit_commands(page)}),
    ids=" ".join,
)


@each_command
def test_commands_parse(tmp_path: Path, words: tuple[str, ...]) -> None:
    name, command, arguments = split_command(list(words))
    if subcommands(command):
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(arguments) <= options | {"…"}
        return
    if not arguments:  # a command's name alone, in a sentence
        return
    command.make_context(name, list(arguments))
    if name in CONFIG_COMMANDS and not arguments[0].startswith(("CONFIG", "[CONFIG]", "--")):
        overrides = [word for word in arguments[1:] if re.match(r"[a-z_.]+=", word)]
        config = ROOT / arguments[0] if "/" in arguments[0] else _config_of_the_readme(tmp_path)
        load_config(config, overrides)


def _config_of_the_readme(folder: Path) -> Path:
    """Write the README's config to a file."""
    path = folder / "my.yaml"
    path.write_text(blocks(ROOT / "README.md", "yaml")[0], encoding="utf-8")
    return path


@each_page
def test_yaml_loads(tmp_path: Path, page: Path) -> None:
    for text in blocks(page, "yaml"):
        values: dict[str, Any] = yaml.safe_load(text)
        if "run" in values:
            path = tmp_path / "x.yaml"
            path.write_text(text, encoding="utf-8")
            load_config(path)
        else:  # a few keys, to be put into a config
            parse_config(MINIMAL | values | {"data": MINIMAL["data"] | values.get("data", {})})


@each_page
def test_keys_exist_and_have_these_defaults(page: Path) -> None:
    named = [
        re.match(r"([a-z]+)\.([a-z_]+)(?:$|[=:])", code) for code in inline_code(page) if code not in FILES
    ]
    for section_name, name in [key.groups() for key in named if key and key[1] in Config.model_fields]:
        assert name in Config.model_fields[section_name].annotation.model_fields, f"{section_name}.{name}"  # type: ignore[union-attr]
    for key, default in re.findall(
        r"^\| `([a-z]+\.[a-z_]+)` \| `([^`]*)` \|", page.read_text("utf-8"), flags=re.M
    ):
        section_name, name = key.split(".")
        section: Any = Config.model_fields[section_name].annotation
        assert parse_value(default) == default_value(section.model_fields[name]), key


@each_page
def test_options_exist(page: Path) -> None:
    known = {option for command in leaf_commands().values() for p in command.params for option in _names(p)}
    known |= {"--version", "--debug", "--help", "--install-completion"} | FOREIGN_OPTIONS
    assert [code for code in _options_named_on(page) if code not in known] == []


def _options_named_on(page: Path) -> list[str]:
    """Return the options in inline code and in mtkit commands."""
    in_commands = [word for words in mtkit_commands(page) for word in words]
    in_text = [word for code in inline_code(page) for word in code.split()]
    return [word.partition("=")[0] for word in (*in_text, *in_commands) if re.match(r"--?[a-z]", word)]


def _names(parameter: Any) -> list[str]:
    return [*parameter.opts, *parameter.secondary_opts]


def test_every_option_of_every_command_is_documented() -> None:
    named = {word for page in PAGES for word in _options_named_on(page)}
    for name, command in leaf_commands().items():
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        missing = [p.opts[0] for p in options if not named & set(_names(p))]
        assert missing == [], f"mtkit {name}"


@each_page
def test_links_and_anchors_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@each_page
def test_paths_exist(page: Path) -> None:
    places = r"(?:mtkit|configs|recipes|docs|tests|\.ci)/[\w./-]*\w|(?:constraints\.txt|pyproject\.toml)"
    paths = re.findall(rf"(?<![\w./-])({places})", page.read_text("utf-8"))
    assert [path for path in paths if not (ROOT / path).exists()] == []


@each_page
def test_python_parses_and_imports_what_exists(page: Path) -> None:
    for code in blocks(page, "python"):
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mtkit"):
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        assert set(re.findall(r"\bmtkit\.([A-Za-z]\w+)", code)) <= set(mtkit.__all__)


def test_the_whole_python_api_is_shown() -> None:
    code = "".join(code for page in PAGES for code in blocks(page, "python"))
    assert set(re.findall(r"\bmtkit\.([A-Za-z]\w+)", code)) == set(mtkit.__all__)


def test_every_kind_of_source_is_shown() -> None:
    entries = "".join(text for page in PAGES for text in blocks(page, "yaml"))
    for kind in ("src", "path", "hub", "saved", "demo"):
        assert kind in SourceConfig.model_fields
        assert f"- {{{kind}: " in entries


ARCHITECTURE = ROOT / "docs/architecture.md"
MAX_GLOSSARY_ENTRIES = 30


def test_the_glossary_is_short() -> None:
    """The glossary has at most 30 entries, each of one line."""
    section = ARCHITECTURE.read_text("utf-8").partition("\n## Glossary\n")[2].partition("\n## ")[0]
    lines = section.strip().split("\n")
    assert all(re.match(r"- \*\*[^*]+\*\*.*[.)]$", line) for line in lines)
    assert 0 < len(lines) <= MAX_GLOSSARY_ENTRIES


def test_the_rule_of_imports_is_that_of_the_code() -> None:
    (text,) = blocks(ARCHITECTURE, "text")
    assert [line.split() for line in text.removesuffix("\n").split("\n")] == LAYERS[:-1]  # without __main__


def test_the_package_map_names_every_package() -> None:
    named = set(re.findall(r"`mtkit/(\w+)`", ARCHITECTURE.read_text("utf-8")))
    assert {path.parent.name for path in ROOT.glob("mtkit/*/__init__.py")} <= named


def test_exit_codes_are_those_of_the_code() -> None:
    section = (
        (ROOT / "docs/training.md").read_text("utf-8").partition("\n## Exit codes\n")[2].partition("\n## ")[0]
    )
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", section, flags=re.M)}
    errors = {error.exit_code for error in (MtkitError, *MtkitError.__subclasses__())}
    signals = {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)}
    assert documented == {0} | errors | signals
    source = (ROOT / "mtkit/cli/process.py").read_text("utf-8")
    assert {int(code) for code in re.findall(r"\b1[2-5]\d\b", source)} == signals
