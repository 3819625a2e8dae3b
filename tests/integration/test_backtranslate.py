"""`mtkit backtranslate`: pairs in the order of training, the same bytes whatever was interrupted."""

from __future__ import annotations

import gzip
import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny
import yaml

from mtkit.config.loading import load_config
from mtkit.config.sections import SourceConfig
from mtkit.pipelines import translations
from mtkit.pipelines.resumable_file import ResumableFile
from mtkit.training.signals import Interrupted


@pytest.fixture
def mono(tmp_path: Path) -> Path:
    """Text in the source language of the trained model, which is the target language of the system to be."""
    return tiny.write_lines(tmp_path / "mono.en", [src for src, _ in tiny.pairs(30, seed=9)])


def backtranslate(trained: Path, mono: Path, *options: object) -> list[list[str]]:
    output = mono.with_name("bt.tsv")
    code, out, err = tiny.mtkit("backtranslate", trained, mono, "-o", output, "--quiet", *options)
    assert (code, err) == (0, ""), err
    return [line.split("\t") for line in tiny.read_lines(output)]


def test_pairs_have_the_machine_on_the_source_side(trained: Path, mono: Path) -> None:
    pairs = backtranslate(trained, mono)
    _, out, _ = tiny.mtkit("translate", trained, mono, "-q")
    assert [src for src, _ in pairs] == out.splitlines()
    assert [tgt for _, tgt in pairs] == tiny.read_lines(mono)


def test_the_printed_line_belongs_into_a_config(trained: Path, mono: Path, tmp_path: Path) -> None:
    output = tmp_path / "bt.tsv"
    code, out, _ = tiny.mtkit(
        "backtranslate", trained, mono, "-o", output, "--tag", "<bt>", "--method", "noise", "--quiet"
    )
    assert code == 0
    summary, languages, entry, _, tokenizer = out.splitlines()
    assert summary.endswith("pairs kept") and "from fr to en" in languages
    [settings] = yaml.safe_load(entry)
    assert SourceConfig.model_validate(settings).path == str(output)
    assert (settings["tag"], settings["weight"]) == ("<bt>", 1)
    assert settings["synthetic"] == f"back-translated with beam 3 and noise by {trained}"
    assert yaml.safe_load(tokenizer) == {"tokenizer": {"user_symbols": ["<bt>", "<blank>"]}}
    config = tiny.CONFIG.format(run=tmp_path / "r", root=".").replace(
        "train: [{src: train.src, tgt: train.tgt}]", f"train: [{entry.strip().removeprefix('- ')}]"
    )
    (tmp_path / "c.yaml").write_text(config, encoding="utf-8")
    symbols = "tokenizer.user_symbols=[<bt>, <blank>]"
    assert load_config(tmp_path / "c.yaml", [symbols]).data.train[0].tag == "<bt>"


@pytest.mark.parametrize("method", ["sample", "noise"])
def test_an_interrupted_job_goes_on_to_the_same_bytes(
    trained: Path, mono: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(translations, "CHUNK_LINES", 8)
    options = ("--method", method, "--sample-seed", 3)
    whole = backtranslate(trained, mono, *options)
    assert backtranslate(trained, mono, "--method", method, "--sample-seed", 4, "--fresh") != whole
    append, stops = ResumableFile.append, [False, True, False, True, False, False, False]

    def stopped(self: ResumableFile, text: str, num_lines: int, counts: Mapping[str, int]) -> None:
        append(self, text, num_lines, counts)
        if num_lines and stops.pop(0):
            raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(ResumableFile, "append", stopped)
    output = mono.with_name("bt.tsv")
    output.unlink()
    codes = []
    for _ in range(3):
        codes.append(tiny.mtkit("backtranslate", trained, mono, "-o", output, "-q", *options)[0])
        assert output.exists() == (codes[-1] == 0)
    assert codes == [143, 143, 0]
    assert [line.split("\t") for line in tiny.read_lines(output)] == whole
    code, out, err = tiny.mtkit("backtranslate", trained, mono, "-o", output, "-q", *options)
    assert (code, err) == (0, "") and "pairs kept" in out  # nothing is done again: nothing was left to stop
    assert json.loads(output.with_name("bt.tsv.mtkit-job").read_text())["lines"] == 30


def test_columns_compression_and_lines_that_are_no_text(trained: Path, mono: Path, tmp_path: Path) -> None:
    plain = backtranslate(trained, mono)
    table = tmp_path / "table.tsv.gz"
    rows = [f"x\t{line}\n".encode() for line in tiny.read_lines(mono)]
    table.write_bytes(gzip.compress(b"".join([rows[0], b"x\t\xff\n", b"x\t\n", *rows[1:]])))
    output = tmp_path / "other.tsv"
    code, out, _ = tiny.mtkit("backtranslate", trained, table, "-o", output, "--column", 2, "-q")
    assert (code, [line.split("\t") for line in tiny.read_lines(output)]) == (0, plain)
    assert out.startswith(f"{output}: 30 of 32 pairs kept; left out: 1 not translated, 1 empty")


def test_a_folder_is_made_and_a_line_that_is_no_text_needs_no_column(trained: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "mono.tsv", tmp_path / "new" / "bt.tsv"
    source.write_bytes(b"x\tle chien voit un chat .\n\xff\n")
    code, out, err = tiny.mtkit(
        "backtranslate", trained, source, "-o", output, "--column", 2, "--max-ratio", 0
    )
    assert code == 0, err
    assert "1 not translated" in out and output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "beams"], "unknown method 'beams'"),
        (["-o", "bt.txt"], "--output: bt.txt would have tab-separated lines"),
        (["--top-k", "5"], "--top-k needs --method sample"),
        (["--sample-seed", "2"], "--sample-seed needs --method sample or noise"),
        (["--max-ratio", "0.5"], "the ratio of the larger to the smaller number is 1 or more"),
        (["--filler", "x"], "--filler needs --method noise"),
        (["--method", "noise", "--filler", "x y"], "--filler: 'x y' is blank or has a space"),
        (["--tag", "a b"], "--tag: 'a b' is blank or has a space"),
        (["--model-tag", "<2xx>"], "--model-tag: '<2xx>' is not a single token of the source vocabulary"),
        (["--column", "2"], "1 of 2 columns in line 1"),
    ],
)
def test_mistakes_are_one_line(trained: Path, mono: Path, options: list[str], message: str) -> None:
    output = mono.with_name("bt.tsv")
    code, _, err = tiny.mtkit("backtranslate", trained, mono, "-o", output, *options)
    assert code in (2, 3) and message in tiny.one_line(err)
    assert not output.exists()


def test_the_file_of_another_job_is_not_overwritten(trained: Path, mono: Path) -> None:
    backtranslate(trained, mono)
    command = ("backtranslate", trained, mono, "-o", mono.with_name("bt.tsv"))
    code, _, err = tiny.mtkit(*command, "--max-ratio", 2)
    assert code == 2 and "another job wrote this file" in err and "--fresh" in tiny.one_line(err)
    assert tiny.mtkit(*command, "--max-ratio", 2, "--fresh", "-q")[0] == 0


@pytest.mark.slow
def test_a_killed_job_goes_on_to_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    mono = tiny.write_lines(tmp_path / "mono.en", [src for src, _ in tiny.pairs(9000, seed=9)])
    whole, killed = tmp_path / "whole.tsv", tmp_path / "killed.tsv"
    options = ("--method", "sample", "-q")
    assert tiny.run_process("backtranslate", trained, mono, "-o", whole, *options).returncode == 0
    process = tiny.spawn("backtranslate", trained, mono, "-o", killed, *options)
    while not killed.with_name("killed.tsv.part").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not killed.exists()
    assert tiny.run_process("backtranslate", trained, mono, "-o", killed, *options).returncode == 0
    assert killed.read_bytes() == whole.read_bytes()
