"""The compiled libraries are there where they can be built: without them mtkit is slower, and their tests skip."""

from __future__ import annotations

import platform
import shutil

import pytest

from mtkit.model.cpu.native.loading import load_library

can_build = shutil.which("cc") is not None and platform.machine() == "x86_64"


@pytest.mark.skipif(not can_build, reason="no C compiler, or another processor")
@pytest.mark.parametrize("name", ["_native", "_training"])
def test_a_library_was_built(name: str) -> None:
    assert load_library(name) is not None
