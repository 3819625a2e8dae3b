"""Trains a config in several precisions from the same weights on the same batches, and prints their losses as JSON.

FP8 beside bf16 shows what a training loses by it. Where the device has no FP8, the same numbers are multiplied in
float32, which is slow, but tells the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from itertools import islice
from pathlib import Path

from rich.console import Console

from mtkit import load_config
from mtkit.device import configure_malloc, has_float8, limit_kernel_caches
from mtkit.training.build import build_trainer
from mtkit.training.inputs import load_inputs
from mtkit.training.progress import Progress


def losses(
    config_file: str, options: list[str], precision: str, num_updates: int
) -> tuple[list[float], bool]:
    """Return the loss per target token of each update, and whether the device has FP8."""
    with tempfile.TemporaryDirectory(prefix="mtkit-curves-") as folder:
        run = Path(folder)
        more = [f"run={run}", f"training.precision={precision}", "training.workers=1"]
        config = load_config(config_file, [*options, *more])
        inputs = load_inputs(config, run, has_tokenizers=False, say=lambda _: None)
        trainer = build_trainer(config, inputs, Progress(run, Console(quiet=True), writes_metrics=False))
        found = []
        engine, original = trainer.engine, trainer.engine.forward_backward

        def forward_backward(update, num_targets, step):  # type: ignore[no-untyped-def]
            sums = original(update, num_targets, step)
            found.append(sums[0] / num_targets)
            return sums

        engine.forward_backward = forward_backward  # type: ignore[method-assign]
        for update in islice(trainer.loader.updates(0, 0), num_updates):
            trainer.train_step(update)
        return [loss.item() for loss in found], has_float8(trainer.device)


def main() -> None:
    """Print the mean loss of each tenth of the updates, by precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("options", nargs="*", help="key=value, as for mtkit train")
    parser.add_argument("--precisions", default="bf16,fp8")
    parser.add_argument("--updates", type=int, default=300)
    args = parser.parse_args()
    limit_kernel_caches()
    configure_malloc(one_arena=True)
    width = max(1, args.updates // 10)
    result: dict[str, object] = {"updates_in_a_mean": width}
    for precision in args.precisions.split(","):
        curve, in_hardware = losses(args.config, args.options, precision, args.updates)
        means = [statistics.fmean(curve[first : first + width]) for first in range(0, len(curve), width)]
        result[precision] = [round(mean, 4) for mean in means]
        result["fp8_in_hardware"] = in_hardware
    print(json.dumps(result))


if __name__ == "__main__":
    main()
