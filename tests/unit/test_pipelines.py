"""Pipelines: stages run once, in processes of their own; stopped and changed ones."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pipeline_stages
import pytest

from mtkit.checkpoint import MANIFEST_FILE, Checkpoint, save_checkpoint
from mtkit.config.loading import dump_config
from mtkit.config.sections import AugmentConfig, Config, DataConfig, DecodingConfig, SourceConfig
from mtkit.errors import ConfigError, DataError, MtkitError, StorageError, TrainingError
from mtkit.pipelines import Effort, Pipeline, Settings, Stage, child, fingerprint, pipeline
from mtkit.pipelines.records import describe_differences
from mtkit.pipelines.stages import Context
from mtkit.training.signals import Interrupted


def stages(folder: Path, suffix: str = "x", work: Any = pipeline_stages.copy) -> list[Stage]:
    """Return two stages that copy a file, and then the copy."""
    folder.mkdir(exist_ok=True)
    made = []
    for name, source, target in (("first", "a", "b"), ("second", "b", "c")):
        settings = {"from": f"{folder}/{source}", "to": f"{folder}/{target}", "log": f"{folder}/log",
                    "suffix": suffix, "forbidden": f"{folder}/forbidden"}  # fmt: skip
        inputs, outputs = (folder / source,), (folder / target,)
        made.append(Stage(name, work, settings, Effort("files", 1), inputs, outputs))
    return made


def run(folder: Path, todo: list[Stage], say: Callable[[str], None] = print, **options: Any) -> list[Any]:
    with Pipeline(folder / "p", [stage.effort for stage in todo], say, **options) as opened:
        return [opened.run(stage) for stage in todo]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").write_text("text", encoding="utf-8")
    return tmp_path


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run stages in this process: starting one is not what these tests are about."""

    def run_here(name: str, record: Path, outcome: Path, lock: int, *, fresh: bool, **_: Any) -> Any:
        found = pipeline.Record.read(record)
        assert found is not None
        settings: Settings = found.settings
        return getattr(pipeline_stages, found.work.partition(":")[2])(settings, Context(None, fresh))  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "run_child", run_here)


def test_stages_run_in_processes_of_their_own_and_once(folder: Path) -> None:
    lines: list[str] = []
    assert run(folder, stages(folder), lines.append) == [{"length": 4}, {"length": 5}]
    assert (folder / "c").read_text() == "textxx"
    assert [line.partition(":")[0] for line in lines if "done in" in line] == ["[1/2] first", "[2/2] second"]
    assert "left" in lines[1] and "left" not in lines[-1]

    lines.clear()
    assert run(folder, stages(folder), lines.append) == [{"length": 4}, {"length": 5}]
    assert ["done before" in line for line in lines] == [True, True]
    assert len((folder / "log").read_text().splitlines()) == 2


@pytest.mark.usefixtures("in_this_process")
def test_a_stage_whose_output_is_missing_is_run_again(folder: Path) -> None:
    run(folder, stages(folder))
    (folder / "c").unlink()
    run(folder, stages(folder))
    assert (folder / "c").read_text() == "textxx"
    assert len((folder / "log").read_text().splitlines()) == 3


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("is_stopped", [False, True])
def test_stages_after_one_that_is_run_again_read_its_new_output(folder: Path, is_stopped: bool) -> None:
    first, second = stages(folder)
    first = replace(first, work=pipeline_stages.count_calls)
    run(folder, [first, second])
    before = (folder / "c").read_text()
    (folder / "b").unlink()
    if is_stopped:
        run(folder, [first])
    run(folder, [first, second])
    assert before != (folder / "c").read_text() == (folder / "b").read_text() + "x"
    assert (folder / "log").read_text().endswith("c True\n")  # it replaces its own output
    (folder / "b").write_text("by hand", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"stage second .*b has changed"):
        run(folder, [first, second])


@pytest.mark.usefixtures("in_this_process")
def test_other_settings_and_inputs_are_refused_by_name(folder: Path) -> None:
    run(folder, stages(folder))
    with pytest.raises(
        ConfigError, match="stage first was started with other settings or inputs: suffix: x -> z"
    ):
        run(folder, stages(folder, "z"))
    (folder / "a").write_text("other", encoding="utf-8")
    with pytest.raises(ConfigError, match="a has changed"):
        run(folder, stages(folder))
    (folder / "a").unlink()
    with pytest.raises(DataError, match="no such file"):
        run(folder, stages(folder))


def test_a_key_that_is_new_in_mtkit_differs_only_if_it_is_set() -> None:
    def differences(new: dict[str, Any]) -> str:
        old = {"config": {"seed": 1, "data": {"src": "en"}}}
        first, second = (pipeline.Record("work", settings, {}, []) for settings in (old, new))
        return first.differences(second)

    new = {
        "seed": 1,
        "data": {"src": "en", "drop_duplicates": False},
        "augment": AugmentConfig().model_dump(),
    }
    assert differences({"config": new}) == ""
    new["data"] = {"src": "en", "drop_duplicates": True}
    assert differences({"config": new}) == "config.data.drop_duplicates: null -> true"
    assert differences({"config": {"data": {"src": "en"}}}) == "config.seed: 1 -> null"


def test_a_default_that_mtkit_changed_is_no_difference() -> None:
    old, new, other = (
        {"config": {"tokenizer": {"normalization": name}}} for name in ("nmt_nfkc", "auto", "identity")
    )
    assert describe_differences(old, new) == ""
    assert describe_differences(old, other) == "config.tokenizer.normalization: nmt_nfkc -> identity"


def test_a_key_set_to_its_default_differs_from_what_preset_auto_would_choose() -> None:
    old = {"config": {"preset": "auto", "model": {}}}
    new = {"config": {"preset": "auto", "model": {"dropout": 0.1}}}
    assert describe_differences(old, new) == "config.model.dropout: null -> 0.1"


def test_a_key_set_to_its_default_differs_from_that_of_the_model_to_start_from() -> None:
    old: dict[str, Any] = {"config": {"init": "runs/x", "decoding": {}}}
    new = {"config": {"init": "runs/x", "decoding": {"beam_size": 5}}}
    assert describe_differences(old, new) == "config.decoding.beam_size: null -> 5"


@pytest.mark.usefixtures("in_this_process")
def test_an_output_changed_by_hand_is_not_read_by_the_next_stage_unnoticed(folder: Path) -> None:
    run(folder, stages(folder))
    (folder / "b").write_text("by hand", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"stage second .*b has changed"):
        run(folder, stages(folder))


@pytest.mark.usefixtures("in_this_process")
def test_fresh_starts_over(folder: Path) -> None:
    run(folder, stages(folder))
    run(folder, stages(folder, "z"), fresh=True)
    assert (folder / "c").read_text() == "textzz"
    assert [line.split()[1] for line in (folder / "log").read_text().splitlines()] == [
        "False", "False", "True", "True",
    ]  # fmt: skip


@pytest.mark.usefixtures("in_this_process")
def test_a_pipeline_that_was_started_over_and_stopped_remembers_it(folder: Path) -> None:
    run(folder, stages(folder))
    with Pipeline(folder / "p", [], print, fresh=True) as opened:
        opened.run(stages(folder, "z")[0])
    run(folder, stages(folder, "z"))
    log = (folder / "log").read_text().splitlines()
    assert [line.split()[1] for line in log] == ["False", "False", "True", "True"]


@pytest.mark.usefixtures("in_this_process")
def test_a_missing_input_does_not_cost_what_is_to_be_replaced(folder: Path) -> None:
    run(folder, stages(folder))
    before = {path: path.read_bytes() for path in (folder / "p" / "stages").iterdir()}
    (folder / "a").rename(folder / "elsewhere")
    with pytest.raises(DataError, match="no such file"):
        run(folder, stages(folder), fresh=True)
    assert before == {path: path.read_bytes() for path in (folder / "p" / "stages").iterdir()}


def test_a_model_of_another_command_is_noticed_before_the_first_stage(folder: Path) -> None:
    model = folder / "model"
    with Pipeline(folder / "p", [], print) as opened:
        opened.check_free("first", model)
        model.mkdir()
        (model / MANIFEST_FILE).touch()
        with pytest.raises(ConfigError, match="model: there is a model already"):
            opened.check_free("first", model)
        (folder / "p" / "stages" / "first.json").touch()  # the stage has begun, and wrote it
        opened.check_free("first", model)
    with Pipeline(folder / "q", [], print, fresh=True) as opened:
        opened.check_free("first", model)


@pytest.mark.usefixtures("in_this_process")
def test_an_error_names_itself_and_the_corrected_command_goes_on(folder: Path) -> None:
    (folder / "forbidden").touch()
    with pytest.raises(DataError, match=r"forbidden.*remove it"):
        run(folder, stages(folder, "x", pipeline_stages.copy_unless_forbidden))
    (folder / "forbidden").unlink()
    run(
        folder, stages(folder, "z", pipeline_stages.copy_unless_forbidden)
    )  # other settings: nothing was begun
    assert (folder / "c").read_text() == "textzz"


@pytest.mark.usefixtures("in_this_process")
def test_an_error_leaves_no_output_that_the_corrected_command_would_go_on_with(folder: Path) -> None:
    stage = stages(folder, "x", pipeline_stages.copy_unless_forbidden)[0]
    part = folder / "p" / "part"
    part.mkdir(parents=True)
    (folder / "forbidden").touch()
    with pytest.raises(DataError):
        run(folder, [replace(stage, outputs=(part, folder / "a"))])
    assert not part.exists() and (folder / "a").exists()


def test_an_error_of_the_user_crosses_the_process(folder: Path) -> None:
    (folder / "forbidden").touch()
    with pytest.raises(DataError) as error:
        run(folder, stages(folder, "x", pipeline_stages.copy_unless_forbidden))
    assert str(error.value) == f"{folder}/forbidden: it is forbidden (remove it)"
    assert not list((folder / "p" / "stages").iterdir())


@pytest.mark.parametrize(
    ("work", "kind", "message"),
    [
        (pipeline_stages.die, TrainingError, "stage bad: its process was killed by SIGKILL"),
        (pipeline_stages.crash, MtkitError, "stage bad: its process crashed with exit code 1"),
    ],
)
def test_a_crash_is_named(folder: Path, work: Any, kind: type[MtkitError], message: str) -> None:
    with pytest.raises(kind, match=message):
        run(folder, [Stage("bad", work, {}, Effort("files", 1))])


def test_signals_reach_the_stage_and_stop_the_pipeline(folder: Path) -> None:
    waits = folder / "waits"

    def stop() -> None:
        while not waits.exists() or not waits.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    stage = Stage("long", pipeline_stages.wait, {"waits": str(waits)}, Effort("files", 1))
    with pytest.raises(Interrupted) as stopped:
        run(folder, [stage])
    thread.join()
    assert (stopped.value.exit_code, stopped.value.stage) == (143, "long")
    with pytest.raises(ProcessLookupError):
        os.kill(int(waits.read_text()), 0)
    record = pipeline.Record.read(folder / "p" / "stages" / "long.json")
    assert record is not None and not record.done and record.seconds > 0


@pytest.mark.usefixtures("in_this_process")
def test_one_pipeline_at_a_time_in_a_folder(folder: Path) -> None:
    with Pipeline(folder / "p", [], print):
        with pytest.raises(StorageError, match="another run"):
            run(folder, stages(folder))


@pytest.mark.usefixtures("in_this_process")
def test_damaged_records_are_refused_until_the_pipeline_is_started_over(folder: Path) -> None:
    records, output = folder / "p" / "stages", folder / "p" / "first"
    records.mkdir(parents=True)
    output.mkdir()
    (records / "first.json").write_text("{", encoding="utf-8")
    with pytest.raises(StorageError, match=r"first\.json: damaged"):
        run(folder, stages(folder))
    run(folder, stages(folder), fresh=True)
    assert not output.exists()


def test_an_outcome_needs_no_room_on_a_full_disk(tmp_path: Path) -> None:
    outcome = tmp_path / "outcome"
    outcome.write_bytes(b" " * 1000)
    child.write_outcome(outcome, child.raised(StorageError("no space left", where="x", hint="free some")))
    assert outcome.stat().st_size == 1000
    assert json.loads(outcome.read_bytes())["what"] == "no space left"


def test_errors_keep_their_class() -> None:
    class Special(DataError):
        pass

    assert child.raised(Special("bad", where="here"))["error"] == "DataError"


def test_fingerprints(tmp_path: Path) -> None:
    file, tree = tmp_path / "file", tmp_path / "tree"
    assert fingerprint(file) is None
    file.write_bytes(b"1")
    (tree / "below").mkdir(parents=True)
    (tree / "below" / "file").write_bytes(b"1")
    before = fingerprint(file), fingerprint(tree)
    (tree / ".lock").touch()
    assert (fingerprint(file), fingerprint(tree)) == before
    (tree / "below" / "file").write_bytes(b"2")
    file.write_bytes(b"2")
    assert fingerprint(file) != before[0] and fingerprint(tree) != before[1]


def test_the_fingerprint_of_a_run_changes_with_its_decoding_settings(tmp_path: Path) -> None:
    data = DataConfig(src="en", tgt="de", train=(SourceConfig(demo="en-de", pairs=10),))
    stored, changed = (
        dump_config(Config(run="run", data=data, decoding=DecodingConfig(beam_size=size))) for size in (2, 3)
    )
    save_checkpoint(tmp_path / "best", Checkpoint({}, stored))
    (tmp_path / "config.yaml").write_text(stored)
    before = fingerprint(tmp_path)
    assert before == fingerprint(tmp_path / "best")
    (tmp_path / "config.yaml").write_text(changed)
    assert fingerprint(tmp_path) != before


def test_a_pipeline_reads_the_files_of_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree").mkdir()
    path = tmp_path / "tree" / "file"
    path.write_bytes(b"1")
    hash_file = Mock(side_effect=pipeline.sha256_file)
    monkeypatch.setattr(pipeline, "sha256_file", hash_file)
    opened = Pipeline(tmp_path / "p", [], print)
    found = [opened._fingerprint(tmp_path / "tree") for _ in range(3)]
    assert found == [fingerprint(tmp_path / "tree")] * 3
    hash_file.assert_called_once_with(path)
    path.write_bytes(b"12")
    assert opened._fingerprint(tmp_path / "tree") == fingerprint(tmp_path / "tree") != found[0]
