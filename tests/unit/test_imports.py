"""Imports run one way, and what must start quickly imports nothing slow."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mtkit

PACKAGE = Path(mtkit.__file__).parent

LAYERS = [
    ["errors"],
    ["files", "formatting", "job_limits", "languages", "packages", "torchrun"],
    ["config"],
    ["checkpoint", "device", "forking"],
    ["demo"],
    ["data"],
    ["model"],
    ["search", "evaluation"],
    ["translation"],
    ["training"],
    ["interop"],
    ["pipelines"],
    ["benchmark"],
    ["cli"],
    ["__main__"],
]
"""Packages and modules from the bottom to the top. A line imports from the lines above it, not from its neighbours."""

RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def modules() -> dict[str, Path]:
    """Return all modules of the package by name, without `mtkit.`; the package itself has the empty name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()

STARTS_WITHOUT_TORCH = [
    *(name for name in MODULES if name.split(".")[0] == "config"),
    "errors",
    *(name for name in MODULES if name.split(".")[0] == "files"),
    "formatting",
    "job_limits",
    "languages",
    "packages",
    "torchrun",
    "checkpoint",
    *(name for name in MODULES if name.split(".")[0] == "demo"),
    "data.documents",
    "data.filling",
    "data.readers",
    "evaluation.history",
    "evaluation.metrics",
    "evaluation.run_files",
    "evaluation.runs",
    "translation.model_folder",
    "translation.options",
    "translation.reading",
    *(name for name in MODULES if name.split(".")[0] == "cli"),
]

SLOW = {
    "torch",
    "datasets",
    "pandas",
    "pyarrow",
    "sacrebleu",
    "sentencepiece",
    "safetensors",
    "huggingface_hub",
    "jinja2",
    "vl_convert",
}


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def is_for_types_alone(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def nodes_that_run(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when a module is imported: no imports for types, no bodies of functions."""
    for node in ast.iter_child_nodes(tree):
        if not is_for_types_alone(node) and not isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        ):
            yield node
            yield from nodes_that_run(node)


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Yield the full names of imported modules."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("mtkit.") in MODULES else node.module


def own_imports(module: str) -> set[str]:
    """Return the modules of mtkit that a module imports anywhere, without `mtkit.`."""
    names = set(imported(ast.walk(TREES[module])))
    return {name.removeprefix("mtkit").removeprefix(".") for name in names if name.split(".")[0] == "mtkit"}


def top(module: str) -> str:
    return module.split(".")[0]


def test_the_layers_name_all_there_is() -> None:
    """A new top-level module or package needs a place in LAYERS."""
    assert {top(name) for name in MODULES if name} <= RANKS.keys()
    assert all(
        (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists() for name in RANKS if name != "interop"
    )


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_run_one_way(module: str) -> None:
    for name in own_imports(module) - {""}:  # of the package itself only the version, see below
        assert name in MODULES, f"mtkit.{module} imports mtkit.{name}, which is not there"
        assert top(name) == top(module) or RANKS[top(name)] < RANKS[top(module)], (
            f"mtkit.{module} imports mtkit.{name}, which stands beside or above it"
        )


def test_of_the_package_itself_only_the_version_is_imported() -> None:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "mtkit":
                packages = {alias.name for alias in node.names if alias.name in MODULES}
                assert {alias.name for alias in node.names} - packages <= {"__version__"}, name


def test_files_that_are_no_code_are_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]
    others = [
        path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".so")
    ]
    assert others
    for path in others:
        package = ".".join(path.parent.relative_to(PACKAGE.parent).parts)
        assert any(path.match(pattern) for pattern in patterns[package]), path


def test_no_circles() -> None:
    """Imports for types count too: they would only hide a circle."""
    graph = {name: own_imports(name) for name in MODULES if name}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_only_the_command_line_ends_the_process() -> None:
    for name, path in MODULES.items():
        if top(name) in ("cli", "__main__") or name == "forking":  # a forked process ends itself
            continue
        text = path.read_text(encoding="utf-8")
        assert not any(call in text for call in ("sys.exit(", "os._exit(", "raise SystemExit")), name


@pytest.mark.parametrize("module", STARTS_WITHOUT_TORCH)
def test_nothing_slow_at_the_top_of_what_starts_quickly(module: str) -> None:
    names = set(imported(nodes_that_run(TREES[module])))
    assert not {name.split(".")[0] for name in names} & SLOW
    own = {name.removeprefix("mtkit.") for name in names if name.startswith("mtkit.")}
    assert own <= set(STARTS_WITHOUT_TORCH)


def test_datasets_and_pandas_are_imported_where_they_are_used() -> None:
    for name, tree in TREES.items():
        names = imported(nodes_that_run(tree))
        assert not {full.split(".")[0] for full in names} & {"datasets", "pandas", "huggingface_hub"}, name


def test_starting_loads_nothing_slow() -> None:
    code = f"""
import sys
import mtkit, mtkit.cli
loaded = {{"pydantic"}} & sys.modules.keys()  # the command line is defined without the config
import mtkit.config, mtkit.config.loading
mtkit.load_config
loaded |= {{"mtkit.demo.lexicon"}} & sys.modules.keys()
import mtkit.demo.generator
loaded |= {SLOW!r} & sys.modules.keys()
sys.exit(f"loaded: {{sorted(loaded)}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_public_names_are_there() -> None:
    for name in mtkit.__all__:
        assert callable(getattr(mtkit, name))
    with pytest.raises(AttributeError, match="no attribute 'translator'"):
        _ = mtkit.translator


def top_level_names(tree: ast.Module) -> dict[str, ast.stmt]:
    """Return the names a module defines at the top level."""
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            found |= {name.id: node for name in names}
    return found


def in_signature(node: ast.stmt) -> set[str]:
    """Yield the names a caller sees: annotations, base classes, the right-hand side of a type alias."""
    shown: list[ast.AST | None] = []
    if isinstance(node, ast.Assign | ast.AnnAssign):
        shown += [node.value] if isinstance(node.value, ast.Subscript | ast.BinOp) else []
        shown += [node.annotation] if isinstance(node, ast.AnnAssign) else []
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef):
            shown += [
                inner.returns,
                *(each.annotation for each in ast.walk(inner.args) if isinstance(each, ast.arg)),
            ]
        elif isinstance(inner, ast.ClassDef):
            shown += [
                *inner.bases,
                *(each.annotation for each in inner.body if isinstance(each, ast.AnnAssign)),
            ]
    return {name.id for part in shown if part for name in ast.walk(part) if isinstance(name, ast.Name)}


def words(path: Path) -> set[str]:
    return set(re.findall(r"\w+", path.read_text(encoding="utf-8")))


WORDS = {name: words(path) for name, path in MODULES.items()}
WORDS_OUTSIDE = set().union(
    *(words(path) for folder in ("tests", "recipes") for path in (PACKAGE.parent / folder).rglob("*.py"))
)


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_a_leading_underscore_marks_what_other_modules_do_not_use(module: str) -> None:
    """A name is public if another module or a test uses it, or a public signature contains it; others are private."""
    defined = top_level_names(TREES[module])
    elsewhere = WORDS_OUTSIDE.union(*(found for name, found in WORDS.items() if name != module))
    commands = {
        name
        for name, node in defined.items()
        if top(module) == "cli" and isinstance(node, ast.FunctionDef) and node.decorator_list
    }
    public = {name for name in defined if name in elsewhere} | commands
    while (
        more := {shown for name in public for shown in in_signature(defined[name])} & defined.keys() - public
    ):
        public |= more
    assert not {name for name in defined if not name.startswith("_")} - public, (
        "prefix these with an underscore"
    )


def test_no_module_imports_a_private_name() -> None:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mtkit"):
                private = [
                    alias.name
                    for alias in node.names
                    if alias.name.startswith("_") and alias.name != "__version__"
                ]
                assert not private, (module, private)
