"""External metrics: a small metric in a child process, and every way in which such a process can fail.

The environment is this Python; broken environments are folders whose bin/python is a script. COMET runs against a
stand-in package `comet` that has the interface of unbabel-comet 2.2 (`download_model`, `load_from_checkpoint`, a model
with `requires_references`, `hparams` and `predict`): the real one needs gigabytes. MetricX is tested with a tiny
random mT5 in test_metricx.py.
"""

from __future__ import annotations

import ast
import os
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from mtkit.errors import ConfigError, DataError, MtkitError
from mtkit.evaluation.external_metrics import ExternalMetric, ExternalScore
from mtkit.evaluation.metric_commands import EXTERNAL_METRICS, is_external, metric_command

WORKER = Path(__file__).parents[2] / "mtkit/evaluation/metric_worker"
TOKEN_F1 = Path(__file__).parents[1] / "token_f1.py"

SRCS = ["eins zwei", "drei", "vier"]
HYPS = ["one two two", "three", ""]
REFS = ["one two", "tree", "four"]


def score(
    metric: str,
    environment: str | None = None,
    refs: list[list[str | None]] | None = None,
    silence: float = 20,
    srcs: list[str] | None = SRCS,
) -> ExternalScore:
    with ExternalMetric(
        metric_command(metric, environment), device="cpu", silence_seconds=silence
    ) as external:
        return external.score(srcs, HYPS, refs or [list(REFS)])


def write_metric(folder: Path, body: str, inputs: str = '("hyp",)', start: str = "pass") -> str:
    """Write a metric whose `score` has this body."""
    text = f"""
import os, sys, time
class Metric:
    name = "Test"; higher_is_better = True; signature = "v:1"; inputs = {inputs}
    def __init__(self, model, device):
        {start}
    def score(self, segments, progress):
        {body}
"""
    path = folder / "metric.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def write_environment(folder: Path, script: str) -> str:
    """Write a folder whose bin/python is a script."""
    python = folder / "env/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(script, encoding="utf-8")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return str(folder / "env")


# Scores


def test_scores_of_a_metric_in_another_process() -> None:
    """Token F1 by hand: 2 of 3 and 2 of 2 tokens, 2 * 2/3 / (5/3) = 0.8; no match; nothing to match."""
    result = score(f"{TOKEN_F1}:lower", srcs=None)
    assert result.segments == pytest.approx((0.8, 0.0, 0.0))
    assert result.value == pytest.approx(0.8 / 3)
    assert result.format() == "token F1|nrefs:1|case:lower|version:1 = 0.2667"
    assert result.higher_is_better


def test_the_mean_over_references_and_missing_ones() -> None:
    result = score(str(TOKEN_F1), refs=[list(REFS), ["one two two", None, "four"]])
    assert result.segments == pytest.approx((0.9, 0.0, 0.0))
    assert result.signature == "nrefs:var-mean|case:mixed|version:1"


def test_a_metric_may_compute_the_score_of_the_system_and_read_all_references(tmp_path: Path) -> None:
    path = write_metric(
        tmp_path,
        "return [len(s['refs']) for s in segments]\n"
        "    def system_score(self, segments, scores):\n        return max(scores) * 10",
        inputs='("hyp", "refs")',
    )
    result = score(path, refs=[list(REFS), [None, "x", None]])
    assert (result.segments, result.value, result.signature) == ((1, 2, 1), 20, "nrefs:var|v:1")


def test_one_process_scores_several_systems_and_reports_progress(tmp_path: Path) -> None:
    path = write_metric(tmp_path, "progress(1); progress(2); return [os.getpid()] * len(segments)")
    done: list[int] = []
    with ExternalMetric(metric_command(path), silence_seconds=20) as external:
        first = external.score(None, ["a", "b"], [], done.append)
        second = external.score(None, ["c"], [])
    assert done == [1, 2]
    assert first.value == second.value != os.getpid()
    assert first.signature == "v:1"  # no references were read


def test_text_arrives_as_it_is(tmp_path: Path) -> None:
    hyps = ["Ä\u2028b\x00\ud7ff 😀", '"\\', "\t "]
    path = write_metric(tmp_path, f"return [s['hyp'] == h for s, h in zip(segments, {hyps!r})]")
    with ExternalMetric(metric_command(path), silence_seconds=20) as external:
        assert external.score(None, hyps, []).segments == (1, 1, 1)


def test_what_a_metric_prints_is_no_message(tmp_path: Path) -> None:
    body = "print('loading'); os.system('echo child'); sys.stdout.write('x'); return [0.5] * len(segments)"
    assert score(write_metric(tmp_path, body)).value == 0.5


def test_a_metric_of_an_installed_module_and_files_beside_a_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_metric(tmp_path, "return [1] * len(segments)")
    (tmp_path / "package").mkdir()
    (tmp_path / "metric.py").rename(tmp_path / "package/length.py")
    (tmp_path / "user.py").write_text("from package.length import Metric\n", encoding="utf-8")
    assert score(str(tmp_path / "user.py")).value == 1
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # this Python's own, so it is kept
    assert score("package.length").value == 1


def test_the_variables_of_this_python_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    environment = write_environment(tmp_path, f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    path = write_metric(tmp_path, "return [float('PYTHONPATH' in os.environ)] * len(segments)")
    assert score(path, environment).value == 0


@pytest.mark.parametrize(
    ("device", "visible", "told"),
    [
        ("cuda", "2,3", "cuda on 2,3"),
        ("cuda:1", None, "cuda on 1"),
        ("cuda:1", "2,3", "cuda on 3"),
        ("cuda:2", "2,3", "cuda on "),
    ],
)
def test_a_metric_sees_the_gpu_it_is_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, told: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    start = "self.signature = device + ' on ' + os.environ['CUDA_VISIBLE_DEVICES']"
    path = write_metric(tmp_path, "return [1] * len(segments)", start=start)
    with ExternalMetric(metric_command(path), device=device, silence_seconds=20) as external:
        assert external.score(None, HYPS, []).signature == told


# Failures: one line each, and no process stays


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("return [1.0]", "returned 1 scores for 3 segments"),
        ("return [1.0] * 4", "returned 4 scores for 3 segments"),
        ("return [1.0, float('nan'), 1.0]", "scored segment 2 with nan, which is no finite number"),
        ("return [1.0, 1.0, float('inf')]", "scored segment 3 with inf"),
        ("return None", "TypeError: 'NoneType' object is not iterable"),
        ("return ['good'] * 3", "ValueError: could not convert string to float: 'good'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("os._exit(7)", "its process ended with exit code 7"),
        ("sys.exit('no license')", "SystemExit: no license"),
        ("os.kill(os.getpid(), 9)", "its process was ended by SIGKILL, perhaps for its memory"),
        ("os.write(2, b'a\\nout of memory\\n'); os._exit(1)", "exit code 1 .its last words: out of memory."),
        ("import nowhere.at_all", "has no package nowhere"),
    ],
)
def test_a_metric_that_fails(tmp_path: Path, body: str, error: str) -> None:
    with pytest.raises(MtkitError, match=error) as caught:
        score(write_metric(tmp_path, body))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code in (2, 3)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("#!/bin/sh\necho hello\n", "printed 'hello', which is no message"),
        ("#!/bin/sh\nprintf '[1]\\n'\n", "printed '.1.', which is no message"),
        ("#!/bin/sh\nprintf '\\377\\n'\n", "which is no message"),
        ("#!/bin/sh\nprintf '{\"type\": '\n", "which is no message"),
        ('#!/bin/sh\necho \'{"type": "hello", "protocol": 2}\'\n', "speaks protocol 2, not 1"),
        ('#!/bin/sh\necho \'{"type": "scores"}\'\n', "sent a message of type 'scores' in place of 'hello'"),
        ("#!/bin/sh\necho 'no torch here' >&2\nexit 3\n", "exit code 3 .its last words: no torch here."),
        ("#!/bin/sh\n", "its process ended with exit code 0"),
        ("#!/no/such/interpreter\n", "cannot start its Python: no such file or directory"),
        ("no program\n", "cannot start its Python: exec format error"),
    ],
)
def test_a_broken_environment(tmp_path: Path, script: str, error: str) -> None:
    with pytest.raises(MtkitError, match=error) as caught:
        score(str(TOKEN_F1), write_environment(tmp_path, script))
    assert "\n" not in str(caught.value)


READY = '"type": "ready", "name": "N", "inputs": ["hyp"], "higher_is_better": true'


@pytest.mark.parametrize(
    ("ready", "scores", "error"),
    [
        (READY.replace('"N"', '""'), "", "gave no name"),
        (READY.replace("true", '"yes"'), "", "gave no name, or not whether higher is better"),
        (READY.replace('"hyp"', '"ref"'), "", "reads .'ref'.; known are hyp, ref, refs, src, and hyp is needed"),
        (READY.replace('"hyp"', '"hyp", "audio"'), "", "reads .'hyp', 'audio'."),
        (READY, '"id": 2, "type": "scores"', "sent a message of type 'scores' in place of 'scores'"),
        (READY, '"id": 1, "type": "scores", "scores": {}', "returned no scores for 3 segments"),
        (READY, '"id": 1, "type": "scores", "scores": [1, true, 1]', "segment 2 with True"),
        (READY, '"id": 1, "type": "scores", "scores": [1, "1", 1]', "segment 2 with '1'"),
        (READY, f'"id": 1, "type": "scores", "scores": [1, 1, 1{"0" * 400}]', "segment 3 with 10+"),
        (READY, '"id": 1, "type": "scores", "scores": [1, 1, 1], "system": null', "the system with None"),
        (READY, '"id": 1, "type": "scores", "scores": [1, 1, 1], "system": 1', "gave no signature"),
    ],
)  # fmt: skip
def test_messages_that_make_no_sense(tmp_path: Path, ready: str, scores: str, error: str) -> None:
    script = f"""#!/bin/sh
echo '{{"type": "hello", "protocol": 1}}'
read start
echo '{{{ready}}}'
read request
echo '{{{scores}}}'
"""
    with pytest.raises(DataError, match=error):
        score(str(TOKEN_F1), write_environment(tmp_path, script))


@pytest.mark.parametrize("silent", ["at start", "while loading", "while scoring"])
def test_a_process_that_hangs_is_stopped(tmp_path: Path, silent: str) -> None:
    pid = tmp_path / "pid"
    hang = f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    environment, path = None, str(TOKEN_F1)
    if silent == "at start":
        environment = write_environment(tmp_path, f"#!/bin/sh\necho $$ > {pid}\nexec sleep 60\n")
    elif silent == "while loading":
        path = write_metric(tmp_path, "return []", start=hang)
    else:
        path = write_metric(tmp_path, hang)
    with pytest.raises(DataError, match=r"silent for 0\.5 s; stopped"):
        score(path, environment, silence=0.5)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_signs_of_life_keep_a_slow_metric_alive(tmp_path: Path) -> None:
    body = "[(time.sleep(0.2), os.write(2, b'.')) for _ in range(5)]; return [1] * len(segments)"
    assert score(write_metric(tmp_path, body), silence=0.7).value == 1


def test_ctrl_c_stops_the_process_and_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    body = f"os.system('sleep 60 & echo $! > {pid}.part; mv {pid}.part {pid}'); time.sleep(60)"

    def interrupt() -> None:
        while not pid.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), 2)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        score(write_metric(tmp_path, body))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # an orphan may wait for init before it is gone
        try:
            state = Path(f"/proc/{int(pid.read_text())}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.02)
    pytest.fail("the child of the metric is still running")


def test_a_process_that_reads_nothing_blocks_nobody(tmp_path: Path) -> None:
    script = f'#!/bin/sh\necho \'{{"type": "hello", "protocol": 1}}\'\necho \'{{{READY}}}\'\nexec sleep 60\n'
    command = metric_command(str(TOKEN_F1), write_environment(tmp_path, script))
    with ExternalMetric(command, silence_seconds=1) as external:
        with pytest.raises(DataError, match="silent for 1 s"):
            external.score(None, ["x" * 1_000_000], [])


# Mistakes of the user


def test_environments_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for environment, error in [
        (tmp_path / "nowhere", "no such environment .make one: python3 -m venv"),
        (tmp_path, "no Python environment: it has no bin/python"),
        (tmp_path / "file", "not an executable Python"),
    ]:
        with pytest.raises(ConfigError, match=error):
            metric_command("comet", str(environment))
    assert metric_command("comet", sys.executable).python == sys.executable
    assert metric_command("COMET:X").metric == metric_command("comet:X").metric


def test_names_of_external_metrics() -> None:
    names = [
        *EXTERNAL_METRICS,
        "comet:Unbabel/XCOMET-XL",
        "COMET",
        "my/metric.py",
        "metric.py:large",
        "a.b",
        "a.b:x/y.z",
    ]
    assert all(map(is_external, names))
    assert not any(map(is_external, ["bleu", "chrf++", "blue", "", ".", "bleu:x.y"]))


def test_metrics_that_are_none() -> None:
    with pytest.raises(ConfigError, match=r"^/nowhere/m\.py: no such file of a metric"):
        metric_command("/nowhere/m.py")
    with pytest.raises(
        ConfigError, match=r"unknown metric 'blue' .comet, metricx, FILE\.py or PACKAGE\.MODULE"
    ):
        metric_command("blue")
    with pytest.raises(ConfigError, match=r"the environment of no.module has no package no"):
        score("no.module")
    with pytest.raises(DataError, match=r"AttributeError: module 'posixpath' has no attribute 'Metric'"):
        score("os.path")


def test_what_a_metric_needs_is_asked_for(tmp_path: Path) -> None:
    path = write_metric(tmp_path, "return [1] * len(segments)", inputs='("src", "hyp", "ref")')
    with ExternalMetric(metric_command(path), silence_seconds=20) as external:
        with pytest.raises(ConfigError, match="Test reads the source too"):
            external.score(None, HYPS, [REFS])
        with pytest.raises(DataError, match=r"^sentence 2: no reference$"):
            external.score(SRCS, HYPS, [["a", None, "c"]])
        with pytest.raises(DataError, match=r"^3 hypotheses but 2 sources$"):
            external.score(SRCS[:2], HYPS, [REFS])
        with pytest.raises(DataError, match=r"^3 hypotheses but 1 references$"):
            external.score(SRCS, HYPS, [["a"]])
        with pytest.raises(DataError, match="no hypotheses"):
            external.score([], [], [[]])
        assert (
            external.score(SRCS, HYPS, [REFS]).value == 1
        )  # mistakes are found before they reach the process


# COMET


COMET = """
import os
def download_model(name):
    path = os.path.join(os.environ["COMET_MODELS"], name, "checkpoints", "model.ckpt")
    if not os.path.exists(path):
        raise KeyError(f"Model '{name}' not supported by COMET.")
    return path
class Prediction(dict):
    pass
class Model:
    def __init__(self, path):
        kind = open(path).read()
        self.hparams = type("AttributeDict", (dict,), {"__getattr__": dict.get})()
        if kind == "unified":
            self.hparams["input_segments"] = ["mt", "src", "ref"]
        self.with_ref = kind != "referenceless"
        self.kind = kind
    def requires_references(self):
        return self.kind == "regression"
    def predict(self, samples, batch_size=16, gpus=1, progress_bar=True):
        assert gpus == 0 and samples
        print("GPU available: False")
        wanted = {"src", "mt", "ref"} if self.with_ref else {"src", "mt"}
        assert all(set(sample) == wanted for sample in samples), samples
        scores = [len(s["mt"]) / 10 + (s["mt"] == s.get("ref")) for s in samples]
        return Prediction(scores=scores, system_score=sum(scores) / len(scores))
def load_from_checkpoint(path):
    return Model(path)
"""


@pytest.fixture
def comet_environment(tmp_path: Path) -> str:
    """Return an environment with a stand-in for unbabel-comet, and a stand-in for torch without a GPU."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "comet.py").write_text(COMET, encoding="utf-8")
    (packages / "torch.py").write_text(
        "class cuda:\n    is_available = staticmethod(bool)\n", encoding="utf-8"
    )
    for name, kind in [("wmt22-comet-da", "regression"), ("kiwi", "referenceless"), ("xcomet", "unified")]:
        checkpoint = tmp_path / f"models/Unbabel/{name}/checkpoints/model.ckpt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_text(kind, encoding="utf-8")
    (packages / "unbabel_comet-2.2.7.dist-info").mkdir()
    (packages / "unbabel_comet-2.2.7.dist-info/METADATA").write_text(
        "Name: unbabel-comet\nVersion: 2.2.7\n", encoding="utf-8"
    )
    script = f'#!/bin/sh\nPYTHONPATH={packages} COMET_MODELS={tmp_path}/models exec {sys.executable} "$@"\n'
    return write_environment(tmp_path, script)


def test_comet(comet_environment: str, tmp_path: Path) -> None:
    default = score("comet", comet_environment, refs=[["one two", "three", "four"]])
    assert default.segments == pytest.approx((1.1, 1.5, 0))
    assert default.format() == ("COMET|nrefs:1|model:Unbabel/wmt22-comet-da|unbabel-comet:2.2.7 = 0.8667")
    assert score("comet:Unbabel/xcomet", comet_environment, refs=[["one two", "three", "four"]]).value == (
        default.value
    )
    checkpoint = tmp_path / "models/Unbabel/kiwi/checkpoints/model.ckpt"
    without = score(f"comet:{checkpoint}", comet_environment)
    assert without.segments == pytest.approx((1.1, 0.5, 0))
    assert without.signature == "model:kiwi|unbabel-comet:2.2.7"
    with pytest.raises(DataError, match="Model 'Unbabel/typo' not supported by COMET"):
        score("comet:Unbabel/typo", comet_environment)


def test_comet_without_its_package(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"has no package comet .*comet-env/bin/pip install unbabel-comet; then"
    ):
        score("comet")
    environment = write_environment(tmp_path, f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    with pytest.raises(
        ConfigError, match=r"has no package comet .*env/bin/python -m pip install unbabel-comet"
    ):
        score("comet", environment)


# The files that run elsewhere


@pytest.mark.parametrize("path", sorted(WORKER.glob("*.py")), ids=lambda path: path.stem)
def test_workers_parse_under_python_3_8_and_import_nothing_of_mtkit(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(name.split(".")[0] == "mtkit" for name in names)
    outside = {
        "typing",
        "collections",
        "collections.abc",
        "importlib",
        "importlib.metadata",
        "importlib.util",
    }
    top = {n for node in tree.body if isinstance(node, ast.Import) for n in (a.name for a in node.names)}
    assert top <= outside | {"json", "os", "sys", "traceback"}
