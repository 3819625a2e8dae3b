"""Packages of the optional extras: one line where they are missing or do not load."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtkit.errors import ConfigError
from mtkit.packages import import_package


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent_extra.part", None, "key: the package absent_extra is not installed (pip install it)"),
        (
            "broken_extra",
            "import absent_extra",
            "key: the package broken_extra is installed, but cannot be imported: ",
        ),
        ("broken_extra", "raise ImportError('libx.so:\\nbad')", "cannot be imported: libx.so: bad ("),
    ],
)
def test_a_package_that_cannot_be_imported(
    name: str, content: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as caught:
        import_package(name, "pip install it", where="key")
    assert message in str(caught.value)
