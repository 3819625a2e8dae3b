"""Measures mtkit on a GPU, in calls of at most nine minutes: installs, tests, trains, translates, writes results.json.

Call it again, and it goes on where it stopped. It needs PyTorch and no network; README.md says how to prepare it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STEP_STARTS_WITHIN = 0.5
"""A step is started if so much of its time is left in this call; otherwise in the next one."""

MACHINE = """
import json, platform, sys, time, torch
device, n = torch.device(sys.argv[1]), int(sys.argv[2])
on_gpu = device.type == "cuda"
wait = (lambda: torch.cuda.synchronize(device)) if on_gpu else (lambda: None)
a, b = (torch.randn(n, n, device=device).to(torch.bfloat16) for _ in range(2))
for _ in range(3): a @ b
wait(); start = time.perf_counter()
for _ in range(20): a @ b
wait(); seconds = time.perf_counter() - start
memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else None
print(json.dumps({"device": torch.cuda.get_device_name(device) if on_gpu else platform.processor(), "memory": memory,
                  "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
                  "bf16_tflops": round(20 * 2 * n**3 / seconds / 1e12, 3)}))
"""


@dataclass(frozen=True)
class Step:
    """A measurement in a process of its own.

    Attributes:
        name: its key in results.json.
        command: what to run, from the root of the repository.
        seconds: most seconds that it may take.
        read: returns the numbers to keep, given its standard output.
        resumes: whether it goes on where it was stopped; otherwise one that took too long is not tried again.
    """

    name: str
    command: Sequence[str]
    seconds: float
    read: Callable[[str], dict[str, Any]] = field(default=lambda out: {"last": out.strip().split("\n")[-12:]})
    resumes: bool = False


def read_json(out: str) -> dict[str, Any]:
    """Return the JSON object that a command printed, perhaps after other lines."""
    found: dict[str, Any] = json.loads(out[out.index("{") :])
    return found


def training_numbers(out: str) -> dict[str, Any]:
    """Return what `mtkit benchmark train --json` measured."""
    numbers = read_json(out)
    keys = ("precision", "num_parameters", "seconds_per_update", "src_tokens_per_second", "tgt_tokens_per_second",
            "padding_share", "shares", "peak_memory_bytes", "flops_per_second", "matmul_peaks", "utilization",
            "against")  # fmt: skip
    return {key: numbers[key] for key in keys}


def seconds_to_bleu(run: Path, target: float) -> Callable[[str], dict[str, Any]]:
    """Return a reader of a run's validations: its best BLEU, and the seconds of training until the target."""

    def read(out: str) -> dict[str, Any]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]
        valid = [line for line in lines if line["kind"] == "valid"]
        reached = next((line["seconds"] for line in valid if line["bleu"] >= target), None)
        tests = json.loads((run / "results.json").read_text()) if (run / "results.json").is_file() else None
        speeds = [line["target_tokens_per_second"] for line in lines if line["kind"] == "train"]
        return {
            "target": target, "seconds_to_target": reached, "best_bleu": max(line["bleu"] for line in valid),
            "steps": valid[-1]["step"], "training_seconds": valid[-1]["seconds"], "tests": tests,
            "target_tokens_per_second": sorted(speeds)[len(speeds) // 2],
        }  # fmt: skip

    return read


def steps(args: argparse.Namespace, work: Path) -> Iterator[Step]:
    """Yield the measurements in their order: what breaks most, first."""
    python, mtkit = sys.executable, (sys.executable, "-m", "mtkit")
    tiny, device = args.tiny, f"training.device={args.device}"
    on_gpu = not args.device.startswith("cpu")  # a CPU neither packs nor has FP8
    yield Step("machine", (python, "-c", MACHINE, args.device, "256" if tiny else "8192"), 60, read_json)
    # A name for each test, so that a step that is stopped tells how far it came.
    pytest = (python, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider")
    if on_gpu and find_spec("xdist") is not None:
        pytest += ("-n", "6")
    for name in ("test_model_on_gpu", "test_training_on_gpu", "test_runs_on_gpu"):
        some = ("-k", "masks or padding or greedy or overflow or fp8 and emulates") if tiny else ()
        yield Step(name, (*pytest, f"tests/gpu/{name}.py", *some), 500)
    small = ("model.d_model=32", "model.d_ff=64", "model.encoder_layers=1", "model.decoder_layers=1",
             "tokenizer.vocab_size=500") if tiny else ()  # fmt: skip

    def training(name: str, shape: str, tokens: int, updates: int, seconds: float, *more: str) -> Step:
        tokens, updates = (512, 3) if tiny else (tokens, updates)
        command = (*mtkit, "benchmark", "train", f"configs/{shape}.yaml", device, f"training.batch_tokens={tokens}",
                   *small, "--synthetic", "--steps", str(updates), "--json", *more)  # fmt: skip
        return Step(name, command, seconds, training_numbers)

    for shape in ("base", "big"):
        yield training(f"train-{shape}-25000", shape, 25_000, 20, 90)
    data = Path(args.data)
    if data.is_dir():
        few = ("training.max_steps=4", "training.warmup_steps=2", "validation.every_steps=2",
               "validation.max_sentences=8", "training.batch_tokens=512", *small) if tiny else ()  # fmt: skip

        def multi30k(name: str, config: str, seconds: float, *more: str) -> Step:
            run = work / name
            command = (*mtkit, "train", f"configs/{config}.yaml", f"run={run}", *more,
                       f"data.root={data.resolve()}", device, *few)  # fmt: skip
            return Step(name, command, seconds, seconds_to_bleu(run, 39.0), resumes=True)

        def decoding(beam_size: int, batch_size: int) -> Step:
            command = (python, str(Path(__file__).with_name("decoding.py")), str(work / "multi30k-base"), str(data),
                       "--device", args.device, "--beam-size", str(beam_size), "--batch-size", str(batch_size),
                       *(["--lines", "6"] if tiny else []))  # fmt: skip
            return Step(f"decode-beam{beam_size}-batch{batch_size}", command, 150, read_json)

        yield multi30k(
            "multi30k-base", "base", 240, f"data={MULTI30K}", "training.max_steps=1500", "training.batch_tokens=12000",
            "training.warmup_steps=400", "validation.every_steps=500",
        )  # fmt: skip
        # written at the end of training
        is_trained = (work / "multi30k-base" / "results.json").is_file()
        if is_trained:
            yield decoding(5, 64)
    for shape in ("base", "big"):
        yield training(f"train-{shape}-50000", shape, 50_000, 20, 90)
    compiled, packed, fp8 = "training.compile=true", "training.pack=true", "training.precision=fp8"
    yield training("train-big-compiled", "big", 25_000, 20, 300, compiled)
    if on_gpu:
        yield training("train-big-packed", "big", 25_000, 20, 120, packed)
        yield training("train-big-packed-compiled", "big", 25_000, 20, 300, packed, compiled)
        yield training("train-big-fp8", "big", 25_000, 20, 120, fp8)
        yield training("train-big-fp8-compiled", "big", 25_000, 20, 300, fp8, compiled)
        yield training("train-big-fp8-packed-compiled", "big", 50_000, 20, 300, fp8, packed, compiled)
    yield training("train-base-compiled", "base", 25_000, 20, 300, compiled)
    if on_gpu:
        yield training("train-base-packed-compiled", "base", 25_000, 20, 300, packed, compiled)
    for peer in ("transformers", "torch"):
        yield training(f"train-big-against-{peer}", "big", 25_000, 10, 150, "--against", peer)
    fairseq = (
        python,
        str(Path(__file__).with_name("fairseq_speed.py")),
        args.device,
        *(["tiny"] if tiny else []),
    )
    yield Step("train-big-fairseq", fairseq, 150, read_json)
    if not data.is_dir():
        return
    sizes = ("training.batch_tokens=512", *small) if tiny else ("training.batch_tokens=12000",)
    curves = (python, str(Path(__file__).with_name("loss_curves.py")), "configs/big.yaml", device, f"data={MULTI30K}",
              f"data.root={data.resolve()}", "training.warmup_steps=100", *sizes,
              "--updates", "4" if tiny else "400")  # fmt: skip
    yield Step("fp8-loss-curve", curves, 300, read_json)
    yield multi30k("multi30k", "multi30k-en-de", 420)
    if is_trained:
        for beam_size, batch_size in ((5, 512), (5, 1), (1, 64), (1, 512), (1, 1)):
            yield decoding(beam_size, batch_size)


MULTI30K = (
    "{src: en, tgt: de, train: [{src: train.en.gz, tgt: train.de.gz}], "
    "valid: [{src: val.en.gz, tgt: val.de.gz}]}"
)


class Results:
    """results.json: what was measured, on what, at which commit."""

    def __init__(self, path: Path, commit: str) -> None:
        self.path, self.commit = path, commit
        stored = json.loads(path.read_text()) if path.is_file() else {}
        self.steps: dict[str, Any] = stored.get("steps", {}) if stored.get("commit") == commit else {}

    def write(self, name: str, result: dict[str, Any]) -> None:
        """Store the result of a step."""
        self.steps[name] = result
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps({"commit": self.commit, "steps": self.steps}, indent=1) + "\n")
        temporary.replace(self.path)


def run_step(step: Step, seconds: float, environment: dict[str, str], log: Path) -> dict[str, Any]:
    """Run a step for so many seconds at most, and return its result."""
    start = time.monotonic()
    with log.open("w") as errors:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 15)
            try:
                out, _ = process.communicate(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                out, _ = process.communicate()
            state = "stopped" if step.resumes else "too slow"
            return {"state": state, "seconds": round(time.monotonic() - start, 1), "last": out[-2000:]}
    took = round(time.monotonic() - start, 1)
    with log.open("a") as file:
        file.write(f"\n--- standard output ---\n{out}")
    if process.returncode:
        last = [*log.read_text().split("--- standard")[0][-2500:].split("\n"), *out[-1500:].split("\n")]
        return {"state": "failed", "seconds": took, "code": process.returncode, "last": last}
    try:
        return {"state": "done", "seconds": took, **step.read(out)}
    except (ValueError, KeyError, OSError, IndexError) as error:
        return {
            "state": "failed",
            "seconds": took,
            "why": f"{type(error).__name__}: {error}",
            "last": out[-2000:],
        }


def find_commit() -> str:
    """Return the commit that is measured: MTKIT_COMMIT where the folder has no history, or the machine no git."""
    if commit := os.environ.get("MTKIT_COMMIT"):
        return commit
    with suppress(OSError):
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        return git.stdout.strip() or "unknown"
    return "unknown"


def install(wheels: Path, site: Path, environment: dict[str, str]) -> None:
    """Unpack wheels into a folder, in front of what the machine has."""
    found = sorted(map(str, wheels.glob("*.whl")))
    if found and not site.is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run(
            [*command, "--no-cache-dir", "--target", str(site), *found], check=True, env=environment
        )


def main() -> int:
    """Run the steps that are not done yet, as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="gpu-results", help="folder of results.json and logs")
    parser.add_argument("--work", default="/tmp/mtkit-gpu", help="folder of runs and installed wheels")
    parser.add_argument("--wheels", default="wheels", help="folder of wheels to install, if there is one")
    parser.add_argument("--data", default="data/multi30k-en-de", help="folder of Multi30k, if there is one")
    parser.add_argument(
        "--device", default="cuda", help="cuda, one GPU such as cuda:1, or cpu to try the script"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="most minutes of this call")
    parser.add_argument("--only", default="", help="run only the steps whose names contain this")
    parser.add_argument("--again", action="store_true", help="run steps again that failed")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes, to try the script; in subfolders tiny"
    )
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes - 10
    out, work = (Path(folder) / ("tiny" if args.tiny else "") for folder in (args.out, args.work))
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    results = Results(out / "results.json", find_commit())
    site = work / "site"
    paths = [str(ROOT), str(ROOT / "tests"), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "MTKIT_CACHE": str(work / "cache"),
        "MTKIT_TEST_DEVICE": args.device,
    }  # fmt: skip
    install(Path(args.wheels), site, environment)
    kept = {"done", "too slow"} if args.again else {"done", "too slow", "failed"}
    remaining = 0
    for step in steps(args, work):
        if args.only not in step.name or results.steps.get(step.name, {}).get("state") in kept:
            continue
        left = deadline - time.monotonic()
        if left < STEP_STARTS_WITHIN * step.seconds:
            remaining += 1
            continue
        result = run_step(step, min(step.seconds, left), environment, out / f"{step.name}.log")
        if step.name == "machine" and "code" in result:
            why = next(filter(str.strip, reversed(result["last"])), f"exit code {result['code']}")
            print(f"nothing can be measured on {args.device}: {why}", file=sys.stderr)
            return 1
        if result["state"] == "too slow" and left < step.seconds:
            result["state"] = "stopped"  # it had less time than it may take: the next call tries again
        remaining += result["state"] == "stopped"
        results.write(step.name, result)
        print(f"{step.name}: {result['state']}, {result['seconds']} s", flush=True)
    print(f"{remaining} steps are left: call again" if remaining else "nothing is left", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
