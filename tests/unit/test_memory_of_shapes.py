"""Memory does not grow with each new batch shape."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_translator import make, tiny_config, tokenizers

from mtkit.config.sections import Config, DataConfig, SourceConfig
from mtkit.model.build import make_model
from mtkit.translation.translator import Translator

VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def test_a_translator_on_a_cpu_keeps_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of compiled kernels is small, unless the user sets its size."""
    data = DataConfig(src="en", tgt="de", train=(SourceConfig(demo="en-de", pairs=10),))
    config = Config(run="run", data=data, decoding=make().decoding)
    monkeypatch.delenv(VARIABLES[0], raising=False)
    monkeypatch.setenv(VARIABLES[1], "77")
    model = make_model(tiny_config(), tokenizers()).eval()
    Translator.of(config, tokenizers(), model, None, torch.device("cpu"), "fp32")
    assert int(os.environ[VARIABLES[0]]) < 100
    assert os.environ[VARIABLES[1]] == "77"


MANY_SHAPES = """
import random, sys
import numpy as np
import torch
from test_translator import tiny_config, tokenizers
from mtkit.config.sections import Config, DataConfig, DecodingConfig, SourceConfig
from mtkit.model.build import make_model
from mtkit.translation.translator import Translator

def resident():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS:")).split()[1]) // 1024

data = DataConfig(src="en", tgt="de", train=(SourceConfig(demo="en-de", pairs=10),))
decoding = DecodingConfig(beam_size=2, max_length_ratio=0.05, max_length_extra=2)
model = make_model(tiny_config(d_model=256, d_ff=512, num_heads=4), tokenizers()).eval()
translator = Translator.of(
    Config(run="run", data=data, decoding=decoding), tokenizers(), model, None, torch.device("cpu"), sys.argv[1]
)
rng = random.Random(1)
shapes = [(number, length) for number in range(1, 31) for length in range(2, 32)]
rng.shuffle(shapes)
shapes[:0] = [(30, 31)]  # the largest first
for count, (number, length) in enumerate(shapes[:360], 1):
    translator.search_ids([np.full(length, 7, dtype=np.int32)] * number)
    if count in (90, 360):
        print(resident())
"""


@pytest.mark.slow  # needs many shapes
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_memory_is_constant_over_many_shapes(precision: str) -> None:
    """270 more shapes took 2 MiB in a process of their own, 200 (int8) to 570 (bf16) with PyTorch's default caches."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    paths = [str(Path(__file__).parent), *filter(None, [environment.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", MANY_SHAPES, precision],
        env=environment | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    first, last = map(int, done.stdout.split())
    assert last - first < 50, (first, last)
