"""The script of the charts is made by a process of its own, once per version, and then kept in the cache."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtkit.errors import ConfigError
from mtkit.evaluation.report import bundle
from mtkit.evaluation.report.bundle import vega_bundle

MAKES_SCRIPT = """
import os
with open({log!r}, "a") as file:
    print(os.getpid(), file=file)
def javascript_bundle():
    return "const end = '</script>'"
"""


class Package:
    """A package in the place of vl-convert-python, which takes seconds.

    Attributes:
        folder: where it is installed.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self._log = folder, log
        folder.mkdir()
        self.set_version("1.2")
        self.set_code(MAKES_SCRIPT.format(log=str(log)))

    def set_version(self, version: str) -> None:
        info = self.folder / "vl_convert_python-0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: vl-convert-python\nVersion: {version}\n"
        )

    def set_code(self, code: str) -> None:
        (self.folder / "vl_convert.py").write_text(code)

    def processes(self) -> list[int]:
        """Return the ids of the processes that have imported it."""
        return [int(line) for line in self._log.read_text().split()] if self._log.exists() else []


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Package:
    """Return a package that is found before the real one, beside an empty cache."""
    made = Package(tmp_path / "packages", tmp_path / "log")
    monkeypatch.syspath_prepend(made.folder)
    monkeypatch.setenv("MTKIT_CACHE", str(tmp_path / "cache"))
    return made


def test_another_process_makes_the_script_once_and_it_cannot_end_its_element(
    package: Package, tmp_path: Path
) -> None:
    first, second = vega_bundle(), vega_bundle()
    assert first == second == "const end = '<\\/script>'"
    [process] = package.processes()
    assert process != os.getpid()
    assert "vl_convert" not in sys.modules
    assert [path.name for path in (tmp_path / "cache/pages").iterdir()] == ["vega-1.2.js"]


def test_another_version_has_another_script(package: Package) -> None:
    vega_bundle()
    package.set_version("1.3")
    vega_bundle()
    assert len(package.processes()) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(package: Package, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    assert vega_bundle() == vega_bundle()
    assert len(package.processes()) == 2


def test_without_the_package_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(bundle, "version", missing)
    with pytest.raises(ConfigError, match=r"vl-convert-python.*pip install"):
        vega_bundle()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise ImportError('wrong ELF class')", "ImportError: wrong ELF class"),
        ("import os; os.abort()", "exit code -6"),
        ("def javascript_bundle():\n    return ''", "exit code 0"),
        ("import time\ntime.sleep(60)", "did not make the script of the charts in 0.3 seconds"),
    ],
)
def test_a_process_that_fails_is_one_line(
    package: Package, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, expected: str
) -> None:
    package.set_code(code)
    if "sleep" in code:
        monkeypatch.setattr(bundle, "_TIME_LIMIT_SECONDS", 0.3)
    with pytest.raises(ConfigError) as caught:
        vega_bundle()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_an_interrupt_ends_the_process(package: Package, tmp_path: Path) -> None:
    """Ctrl-C raises KeyboardInterrupt at once, and the other process does not outlive it."""
    log = tmp_path / "log"
    package.set_code(MAKES_SCRIPT.format(log=str(log)) + "import time\ntime.sleep(60)\n")
    root = Path(bundle.__file__).parents[3]
    code = f"import sys; sys.path[:0] = [{str(package.folder)!r}, {str(root)!r}]\n"
    code += "from mtkit.evaluation.report.bundle import vega_bundle\nvega_bundle()"
    caller = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.01)
    [process] = package.processes()
    caller.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in caller.communicate(timeout=60)[1]
    while is_there(process) and time.monotonic() < deadline:  # until the system has removed it
        time.sleep(0.01)
    assert not is_there(process)


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
