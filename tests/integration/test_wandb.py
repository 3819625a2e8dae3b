"""Records for Weights & Biases: in its offline mode, written by the real package and read with its own messages."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from mtkit.config.loading import load_config
from mtkit.training.wandb_log import WandbLog


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """A server that every request would reach: the list of those who connected to it."""
    connections = list[object]()
    server = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{server.getsockname()[1]}"

    def accept() -> None:
        while True:
            try:
                connection, whence = server.accept()
            except OSError:
                return
            connections.append(whence)
            connection.close()

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, address)
    monkeypatch.setenv("WANDB_MODE", "online")  # the run is offline all the same
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    threading.Thread(target=accept, daemon=True).start()
    yield connections
    server.close()


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file in the format of LevelDB's log, which begins with seven bytes of wandb's own.

    Blocks have 32 KiB; each piece of a record has its checksum, its length and its kind before it.
    """
    assert content[:4] == b":W&B"
    position, record = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        size, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        record += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def read_record(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the config and the history of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = folder.glob("*.wandb")
    config: dict[str, Any] = {}
    history = []
    for data in leveldb_records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            history.append({
                item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            })  # fmt: skip
    return config, history


def test_a_run_is_recorded_without_network(config: Path, tmp_path: Path, network: list[object]) -> None:
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    options = ["training.max_steps=4", "validation.every_steps=2", "training.wandb=true"]
    code, _, err = tiny.mtkit("train", config, *options)
    assert code == 0, err
    [folder] = (run / "wandb").glob("offline-run-*")
    settings, history = read_record(folder)
    assert settings["training"]["max_steps"] == 4 and settings["data"]["tgt"] == "fr"
    expected = []
    for record in tiny.records(run):
        numbers = {
            f"{record['kind']}/{name}": value
            for name, value in record.items()
            if name not in ("kind", "step") and isinstance(value, int | float) and not isinstance(value, bool)
        }
        expected.append({"step": record["step"], **numbers})
    found = [{name: value for name, value in row.items() if not name.startswith("_")} for row in history]
    assert found == expected and len(found) == 6
    # Resumed, it has a second record; anew, only that of the new run.
    assert tiny.mtkit("train", config, "training.max_steps=5", *options[1:])[0] == 0
    assert len(list((run / "wandb").glob("offline-run-*"))) == 2
    (run / "wandb" / "mine.txt").write_text("mine")
    code, _, err = tiny.mtkit("train", config, *options, "--fresh")
    assert code == 0, err
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1
    assert (run / "wandb" / "mine.txt").read_text() == "mine"
    assert network == []


def test_a_failure_of_its_process_ends_no_run(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")

    def lost(*_: object, **__: object) -> None:
        raise ConnectionResetError("Connection lost")  # as when its process was killed

    monkeypatch.setattr(wandb.Run, "log", lost)
    code, out, err = tiny.mtkit("train", config, "training.max_steps=3", "training.wandb=true")
    assert code == 0
    assert (out + err).count("Weights & Biases has failed: nothing more is recorded for it") == 1
    assert [record["step"] for record in tiny.records(tmp_path / "run", "train")] == [1, 2, 3]


def test_without_the_package(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny.mtkit("train", config, "training.max_steps=1")[0] == 0
    before = tiny.tree(tmp_path / "run" / "best")
    monkeypatch.setitem(sys.modules, "wandb", None)
    for command in (["train", config, "--fresh"], ["check", config]):
        code, _, err = tiny.mtkit(*command, "training.wandb=true")
        assert code == 2
        assert (
            "training.wandb: the package wandb is not installed (pip install 'mtkit[wandb]'"
            in tiny.one_line(err)
        )
    assert tiny.tree(tmp_path / "run" / "best") == before  # a run that cannot start keeps the old one


class FakeRun:
    """A run of wandb that notes what it is given."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.rows = settings, list[dict[str, Any]]()
        self.config: dict[str, Any] = dict(settings["config"])
        self.is_finished = False

    def define_metric(self, *_: object, **__: object) -> None:
        pass

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs of a package that takes the place of wandb, which need not be installed."""
    runs = list[FakeRun]()

    class Fake:
        Error = RuntimeError

        @staticmethod
        def Settings(**settings: object) -> dict[str, object]:
            return settings

        @staticmethod
        def init(**settings: Any) -> FakeRun:
            runs.append(FakeRun(settings))
            return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", Fake)  # type: ignore[arg-type]
    return runs


def test_what_is_asked_of_the_package(fake_runs: list[FakeRun], tmp_path: Path) -> None:
    """Hold this where wandb is not installed: the mode is offline, whatever the environment says."""
    log = WandbLog(load_config(tiny.write_config(tmp_path / "c.yaml", run=tmp_path / "run", root=tmp_path)))
    assert log.add("train", 3, {"loss": 2.5, "lr": float("nan"), "best": True, "name": "x", "count": 4})
    log.close()
    [made] = fake_runs
    assert made.rows == [{"step": 3, "train/loss": 2.5, "train/count": 4}] and made.is_finished
    assert (made.settings["mode"], made.settings["dir"]) == ("offline", str(tmp_path / "run"))
    assert made.settings["config"]["data"]["src"] == "en"


def test_the_recorded_config_has_the_sections_of_the_initial_model(
    fake_runs: list[FakeRun], trained: Path, config: Path
) -> None:
    lines = [line for line in tiny.read_lines(config) if not line.startswith(("tokenizer:", "model:"))]
    tiny.write_lines(config, [f"init: {trained}", *lines])
    code, _, err = tiny.mtkit("train", config, "training.max_steps=1", "training.wandb=true")
    assert code == 0, err
    [made] = fake_runs
    assert made.config["model"] == load_config(trained / "config.yaml").model.model_dump(mode="json")
