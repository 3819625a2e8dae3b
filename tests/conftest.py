"""Fixtures shared by all tests."""

import gc
import signal

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: threads only get in each other's way
# A shell that starts the tests in the background makes them ignore SIGINT, and processes that they start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist take files in their order, slow folders first, instead of those with most tests first."""
    config.option.loadscopereorder = False


@pytest.fixture(scope="module", autouse=True)
def imported_modules_are_no_garbage() -> None:
    """Let the collector, which runs at the end of every training, pass over what is there when a file begins."""
    gc.collect()
    gc.freeze()
