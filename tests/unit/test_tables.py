"""Tables read by `datasets`: Parquet, saved folders, the hub."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mtkit.config.sections import DataConfig, SourceConfig
from mtkit.data.readers import Pair
from mtkit.data.sources import Source, Split, open_sources
from mtkit.data.tables import HubTable
from mtkit.errors import DataError

ENGLISH = ["Hello", "Good morning", "Thanks"]
GERMAN = ["Hallo", "Guten Morgen", "Danke"]
PAIRS = [Pair(*sides) for sides in zip(ENGLISH, GERMAN, strict=True)]


def open_one(root: Path, role: Split = "train", languages: str = "en-de", **keys: Any) -> Source:
    src, tgt = languages.split("-")
    config = SourceConfig(**keys)
    data = DataConfig(root=str(root), src=src, tgt=tgt, train=(config,))
    return open_sources([config], data, role)[0]


def pairs_of(source: Source) -> list[Pair]:
    return [pair for _, pair in source.read()]


def message_of(source: Source) -> str:
    with pytest.raises(DataError) as caught:
        pairs_of(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The `datasets` library, with its cache in the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    return datasets


def table(datasets: Any, **columns: Sequence[object]) -> Any:
    return datasets.Dataset.from_dict(columns)


def test_parquet(tmp_path: Path, datasets: Any) -> None:
    path = tmp_path / "a[1]*.parquet"
    table(datasets, id=[1, 2, 3], en=ENGLISH, de=GERMAN).to_parquet(path)
    source = open_one(tmp_path, path=path.name)
    assert list(source.read()) == list(enumerate(PAIRS, 1))
    assert list(source.read()) == list(enumerate(PAIRS, 1))
    assert source.location(3) == f"{path}: row 3"
    message = message_of(open_one(tmp_path, path=path.name, columns=("en", "fr")))
    assert message.startswith(f"{path}: no column 'fr'; there are: 'id', 'en', 'de'")
    message = message_of(open_one(tmp_path, path=path.name, columns=("en", "id")))
    assert message.startswith(f"{path}: row 1: the column 'id' is 1, not text")
    path.write_bytes(path.read_bytes()[:100])
    assert "cannot be read" in message_of(open_one(tmp_path, path=path.name))
    table(datasets, en=ENGLISH, de=GERMAN).select([]).to_parquet(path)
    assert pairs_of(open_one(tmp_path, path=path.name)) == []


def test_a_null_is_named_by_row(tmp_path: Path, datasets: Any) -> None:
    table(datasets, en=["a"] * 1500, de=["b"] * 1499 + [None]).to_parquet(tmp_path / "a.parquet")
    message = message_of(open_one(tmp_path, path="a.parquet"))
    assert "row 1500: the column 'de' is null" in message


def test_saved_folders(tmp_path: Path, datasets: Any) -> None:
    rows = table(datasets, en=ENGLISH, de=GERMAN)
    rows.with_format("numpy").save_to_disk(tmp_path / "one")
    assert pairs_of(open_one(tmp_path, saved="one")) == PAIRS
    assert pairs_of(open_one(tmp_path, saved="one", split="train[1:]")) == PAIRS[1:]
    assert "Unknown split" in message_of(open_one(tmp_path, saved="one", split="dev"))
    splits = {"train": rows, "validation": rows.select([0])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "many")
    source = open_one(tmp_path, "valid", saved="many")
    assert list(source.read()) == [(1, PAIRS[0])]
    assert source.location(1) == f"{tmp_path}/many: row 1"
    assert pairs_of(open_one(tmp_path, saved="many", split="validation+train[:1]")) == [PAIRS[0]] * 2
    (tmp_path / "empty").mkdir()
    assert "cannot be read" in message_of(open_one(tmp_path, saved="empty"))


def test_a_damaged_saved_folder(tmp_path: Path, datasets: Any) -> None:
    table(datasets, en=ENGLISH, de=GERMAN).save_to_disk(tmp_path / "one")
    data = tmp_path / "one" / "data-00000-of-00001.arrow"
    data.write_bytes(data.read_bytes()[:100])
    assert "cannot be read" in message_of(open_one(tmp_path, saved="one"))


def write_hub_folder(datasets: Any, folder: Path, pairs: list[Pair]) -> None:
    folder.mkdir(exist_ok=True)
    translations = [{"de": pair.tgt, "en": pair.src} for pair in pairs]
    table(datasets, translation=translations).to_parquet(folder / "train-00000-of-00001.parquet")
    table(datasets, translation=translations[:1]).to_parquet(folder / "test-00000-of-00001.parquet")


def test_a_local_folder_as_a_hub_data_set(
    tmp_path: Path, datasets: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    write_hub_folder(datasets, tmp_path / "my-data", PAIRS)
    capfd.readouterr()
    source = open_one(tmp_path, hub="my-data")
    assert list(source.read()) == list(enumerate(PAIRS, 1))
    assert source.name == "my-data"
    assert source.location(2) == f"{tmp_path}/my-data train: row 2"
    assert pairs_of(open_one(tmp_path, "test", hub="my-data")) == PAIRS[:1]
    assert pairs_of(open_one(tmp_path, hub="my-data", split="train[1:2]")) == PAIRS[1:2]
    assert 'Unknown split "validation"' in message_of(open_one(tmp_path, "valid", hub="my-data"))
    assert "no language 'fr'; there are: " in message_of(open_one(tmp_path, hub="my-data", languages="en-fr"))
    assert capfd.readouterr() == ("", "")
    assert datasets.is_progress_bar_enabled()

    before = source.fingerprint()
    shutil.rmtree(tmp_path / "my-data")
    write_hub_folder(datasets, tmp_path / "my-data", PAIRS[::-1])
    changed = open_one(tmp_path, hub="my-data")
    assert pairs_of(changed) == PAIRS[::-1]
    assert changed.fingerprint() != before


def test_a_hub_data_set_without_a_network(
    tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = message_of(open_one(tmp_path, hub="somebody/something", config="de-en"))
    assert message.startswith("somebody/something de-en train: cannot be read: ")
    assert "the network" in message
    assert capfd.readouterr() == ("", "")


def test_a_pinned_hub_data_set_is_known_without_reading_it(tmp_path: Path) -> None:
    def fingerprint(**keys: Any) -> str:
        return open_one(tmp_path, hub="somebody/something", **keys).fingerprint()

    pinned = fingerprint(revision="0" * 40)
    assert pinned == fingerprint(revision="0" * 40)
    assert pinned != fingerprint(revision="1" * 40)
    assert pinned != fingerprint(revision="0" * 40, split="train[:5]")


def test_one_that_is_not_pinned_is_known_by_its_text(
    tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fingerprint(english: list[str], german: list[str]) -> str:
        rows = table(datasets, en=english, de=german)
        monkeypatch.setattr(HubTable, "load", lambda self: rows)
        return open_one(tmp_path, hub="somebody/something", revision="main").fingerprint()

    assert fingerprint(ENGLISH, GERMAN) == fingerprint(ENGLISH, GERMAN)
    assert fingerprint(ENGLISH, GERMAN) != fingerprint(ENGLISH, GERMAN[::-1])
    assert fingerprint(["a", "b"], ["c", "d"]) != fingerprint(["a", "c"], ["b", "d"])
