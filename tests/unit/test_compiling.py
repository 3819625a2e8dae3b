"""Requirements of torch.compile are checked before training starts; its failures are one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch._dynamo.exc import BackendCompilerFailed

from mtkit.errors import ConfigError, TrainingError
from mtkit.training import compiling
from mtkit.training.compiling import check_compiler, compile_errors


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the whole PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiling.sys, "platform", "linux")
    return folder


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config of a run in `tmp_path / "run"`."""
    monkeypatch.setenv("MTKIT_CACHE", str(tmp_path / "cache"))
    root = tiny.write_corpus(tmp_path / "data")
    return tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=root)


def add(folder: Path, name: str) -> None:
    """Add a program with this name."""
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("command", [["train"], ["check"], ["benchmark", "train"]])
def test_a_missing_compiler_is_reported_before_anything_is_read(
    programs: Path, config: Path, command: list[str]
) -> None:
    code, _, stderr = tiny.mtkit(*command, config, "training.compile=true", "data.root=/nowhere")
    assert (code, tiny.one_line(stderr)) == (
        2,
        "error: training.compile: no C++ compiler g++ (install g++, or set CXX)",
    )


def test_a_peer_that_compiles_is_refused_too(programs: Path, config: Path) -> None:
    code, _, stderr = tiny.mtkit("benchmark", "train", config, "--against", "compile")
    assert (code, tiny.one_line(stderr).split(" (")[0]) == (
        2,
        "error: --against compile: no C++ compiler g++",
    )


def test_a_cpu_needs_a_cpp_compiler_and_the_headers_of_python(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setenv("CXX", "g++-99")
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler g\+\+-99"):
        check_compiler(cpu)
    add(programs, "g++-99")
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ConfigError, match="C headers"):
        check_compiler(cpu)
    (tmp_path / "Python.h").touch()
    check_compiler(cpu)


def test_a_gpu_needs_triton_and_a_c_compiler(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        check_compiler(gpu)
    assert str(caught.value) == "training.compile: Triton is not installed (pip install triton)"
    monkeypatch.setattr(compiling, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match="needs a C compiler"):
        check_compiler(gpu)
    add(programs, "clang")
    check_compiler(gpu)


def test_a_compile_error_is_one_line() -> None:
    said = "C++ compile error\n\nCommand:\ng++ x.hpp\n\nOutput:\nx.cpp:1: fatal error: omp.h: no such file\n"
    with pytest.raises(TrainingError) as caught, compile_errors():
        raise BackendCompilerFailed(None, RuntimeError(said), None)
    assert str(caught.value) == (
        "training.compile: the model could not be compiled: x.cpp:1: fatal error: omp.h: no such file "
        "(set it to false; the traceback shows the compiler's whole output)"
    )
    with pytest.raises(RuntimeError, match="mat1"), compile_errors():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.slow
def test_a_failing_compiler_stops_training_with_one_line(
    programs: Path, tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = '#!/bin/sh\n[ "$1" = --version ] && { echo g++ 12; exit 0; }\necho "x.cpp:1: error: not today"\nexit 1\n'
    (programs / "g++").write_text(compiler)
    (programs / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    done = tiny.run_process("train", config, "training.compile=true")
    assert done.returncode == 4
    assert tiny.one_line(done.stderr).startswith(
        "error: training.compile: the model could not be compiled: x.cpp:1: error: not today ("
    )
