"""The device of the tests in this folder: a GPU. Without one they are skipped.

MTKIT_TEST_DEVICE=cpu runs them on a CPU, to see that the tests themselves are right.
"""

from __future__ import annotations

import os

import pytest
import torch
from tiny import config, corpora_cache, corpus, trained

__all__ = ["config", "corpora_cache", "corpus", "trained"]

NAME = os.environ.get("MTKIT_TEST_DEVICE", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of this folder where there is no GPU."""
    if NAME.startswith("cuda") and not torch.cuda.is_available():
        reason = f"PyTorch {torch.__version__} sees no GPU; MTKIT_TEST_DEVICE=cpu runs these tests on a CPU"
        for item in items:
            if "/tests/gpu/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device under test."""
    return torch.device(NAME)
