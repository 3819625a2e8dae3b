"""A language of forty words, and runs small enough to be trained in every test that needs one.

The corpora are real files, so that tests can damage them. Source: `the small dog sees a cat .`; target: other words,
the adjective after its noun, the verb at the end.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

ARTICLES = {"the": "le", "a": "un", "this": "ce", "my": "mon"}
ADJECTIVES = {"small": "petit", "big": "grand", "old": "vieux", "green": "vert", "sad": "triste"}
NOUNS = {"dog": "chien", "cat": "chat", "horse": "cheval", "bird": "oiseau", "boy": "garcon", "king": "roi"}
VERBS = {"sees": "voit", "hears": "entend", "follows": "suit", "likes": "aime"}
SPLITS = {"train": 400, "valid": 24, "test": 16}


def pairs(number: int, seed: int) -> list[tuple[str, str]]:
    """Return random sentences with their translations."""
    rng = random.Random(seed)

    def phrase() -> tuple[str, str]:
        article, adjective, noun = (rng.choice(list(words)) for words in (ARTICLES, ADJECTIVES, NOUNS))
        if rng.random() < 0.4:
            return f"{article} {noun}", f"{ARTICLES[article]} {NOUNS[noun]}"
        return f"{article} {adjective} {noun}", f"{ARTICLES[article]} {NOUNS[noun]} {ADJECTIVES[adjective]}"

    found = []
    for _ in range(number):
        (subject, sujet), (thing, objet), verb = phrase(), phrase(), rng.choice(list(VERBS))
        found.append((f"{subject} {verb} {thing} .", f"{sujet} {objet} {VERBS[verb]} ."))
    return found


def write_lines(path: Path, lines: list[str]) -> Path:
    """Write these lines to a text file."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return path


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file."""
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def write_corpus(folder: Path) -> Path:
    """Write train, valid and test sets as `.src` and `.tgt` files."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, number) in enumerate(SPLITS.items()):
        sides = zip(*pairs(number, seed), strict=True)
        for side, lines in zip(("src", "tgt"), sides, strict=True):
            write_lines(folder / f"{split}.{side}", list(lines))
    return folder


CONFIG = """\
run: {run}
data:
  root: {root}
  src: en
  tgt: fr
  train: [{{src: train.src, tgt: train.tgt}}]
  valid: [{{src: valid.src, tgt: valid.tgt}}]
  test: [{{src: test.src, tgt: test.tgt}}]
tokenizer: {{type: bpe, vocab_size: 96, byte_fallback: false}}
model: {{d_model: 32, encoder_layers: 1, decoder_layers: 1, num_heads: 2}}
training:
  {{batch_tokens: 400, max_steps: 40, learning_rate: 0.005, warmup_steps: 10, log_every_steps: 1, num_threads: 1,
   report: false, precision: fp32}}
validation: {{every_steps: 20, metrics: [bleu]}}
decoding: {{beam_size: 3, max_length_ratio: 1.5, max_length_extra: 4}}
"""


def write_config(path: Path, *, run: Path, root: Path) -> Path:
    """Write the config of a tiny run."""
    path.write_text(CONFIG.format(run=run, root=root), encoding="utf-8")
    return path


@functools.cache
def trained_run(base: Path) -> Path:
    """Return a run folder whose model has learned most of the language; trained once, to be copied, not changed."""
    from mtkit import load_config, train

    folder = base / "trained"
    root = write_corpus(folder / "data")
    config = write_config(folder / "config.yaml", run=folder / "run", root=root)
    learns_fast = ["model.positions=rotary", "model.dropout=0.0", "training.learning_rate=0.01"]
    train(load_config(config, ["training.max_steps=300", "validation.every_steps=100", *learns_fast]))
    return folder / "run"


def mtkit(*arguments: object, stdin: str | bytes | None = None) -> tuple[int, str, str]:
    """Run a command in this process and return its exit code, stdout and stderr."""
    from mtkit.cli import run

    text = stdin.encode() if isinstance(stdin, str) else stdin or b""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n") for _ in range(2))
    old_stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(text))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run([str(argument) for argument in arguments])
    finally:
        sys.stdin = old_stdin
    streams = []
    for stream in (out, err):
        stream.flush()
        streams.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return code, streams[0], streams[1]


def command(*arguments: object) -> list[str]:
    """Return the command line that runs `mtkit` in a process of its own."""
    return [sys.executable, "-m", "mtkit", *map(str, arguments)]


def torchrun(num_processes: int, *arguments: object, restarts: int = 0) -> list[str]:
    """Return the command line that starts several `mtkit` processes, to be run in `child_environment()`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={num_processes}", f"--max-restarts={restarts}", "-m", "mtkit"]
    return [*launcher, *map(str, arguments)]


def child_environment() -> dict[str, str]:
    """Return the environment of such a process: this mtkit, and one thread, because tests run in parallel.

    It stores compiled modules even where Python is told not to, since compiling them takes a quarter of a second.
    """
    import mtkit as package

    root = str(Path(package.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONFAULTHANDLER": "1",  # a crash says where it happened
    }


def spawn(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start `mtkit` in a process of its own, with its output in pipes."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*arguments), env=child_environment(), **(pipes | options))


def fork(
    *arguments: object, before: Callable[[], object] = lambda: None, **options: Any
) -> subprocess.Popen[str]:
    """Start `mtkit` like `spawn`, but as a copy of this process, which has spent the seconds of importing torch.

    Args:
        arguments: its arguments.
        before: called in the copy first, for example to patch something there.
        options: those of `Popen`.
    """
    from mtkit.cli import main

    def run() -> None:
        code = 1
        try:
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # one of these tells Popen that the process has begun
            streams = (os.fdopen(n, mode, encoding="utf-8") for n, mode in enumerate("rww"))
            sys.stdin, sys.stdout, sys.stderr = streams
            before()
            main(list(map(str, arguments)))
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    stream.flush()
            os._exit(code)  # it never comes to `exec`

    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable], preexec_fn=run, restore_signals=False, **(pipes | options))


def run_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `mtkit` in a process of its own until it ends."""
    pipes: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 300}
    return subprocess.run(command(*arguments), env=child_environment(), **(pipes | options))


def records(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl."""
    lines = (json.loads(line) for line in read_lines(run / "metrics.jsonl"))
    return [line for line in lines if kind in (None, line["kind"])]


def losses(run: Path) -> list[dict[str, Any]]:
    """Return what was learned at every logged step: all of metrics.jsonl except times and memory."""
    timed = ("seconds", "target_tokens_per_second", "memory")
    return [{key: line[key] for key in line if key not in timed} for line in records(run)]


def last_step(run: Path) -> int:
    """Return the last step in metrics.jsonl, of a run that may be writing it; 0 if there is none yet."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    """Wait until a condition holds; fail after this many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def checkpoints(run: Path) -> list[int]:
    """Return the steps of the checkpoints in a run folder."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def checkpoint(run: Path, step: int) -> Path:
    """Return the checkpoint folder of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def tensors(folder: Path) -> dict[str, bytes]:
    """Return what training resumes from: the model and the optimizer, byte for byte."""
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def one_line(stderr: str) -> str:
    """Return the only line of an error. Fails if there are more lines, or if it reads like a crash."""
    assert "Traceback" not in stderr, stderr
    assert re.fullmatch(r"[^\n]+\n", stderr), stderr
    return stderr.removesuffix("\n")


def tree(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder with their content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for a block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- fixtures, which the conftest.py of a folder imports ----------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def corpora_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep encoded corpora in a temporary folder, beside a short script of charts: the real one takes seconds."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    (cache / "pages").mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PackageNotFoundError):  # a machine that only trains needs no charts
        (cache / "pages" / f"vega-{version('vl-convert-python')}.js").write_text("window.vegaEmbed = null")
    with environment(MTKIT_CACHE=str(cache)):
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a trained model; read-only."""
    return trained_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of train, valid and test files; read-only."""
    return write_corpus(tmp_path_factory.getbasetemp() / "corpus")


@pytest.fixture
def config(tmp_path: Path, corpus: Path) -> Path:
    """The config of a run in `tmp_path / "run"`."""
    return write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=corpus)


def children(process: int) -> list[int]:
    """Return the process ids of a process's children."""
    path = Path(f"/proc/{process}/task/{process}/children")
    return list(map(int, path.read_text().split())) if path.exists() else []


def is_alive(process: int) -> bool:
    """Return whether a process runs; one that has ended may wait for its parent to notice."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
