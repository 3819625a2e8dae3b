"""User mistakes and broken files: each is reported in one line that says what, where and what to do."""

import bz2
import gzip
import io
import json
import lzma
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny

import mtkit
from mtkit.checkpoint import load_tensors
from mtkit.files import sha256_file

USAGE, DATA, STORAGE, PIPE = 2, 3, 5, 141


def fails(code: int, *parts: str, arguments: list[object], stdin: str | bytes | None = None) -> str:
    """Run a command that must fail with this code and one line that contains these parts and a hint."""
    found, _, err = tiny.mtkit(*arguments, stdin=stdin)
    line = tiny.one_line(err)
    assert found == code, line
    assert [part for part in parts if part not in line] == [], line
    assert line.startswith("error: ")
    assert re.search(r" \(.+\)$", line), f"it does not say what to do: {line}"
    return line


# --- corpora ------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, corpus: Path) -> Path:
    """A copy of the corpus that a test may damage."""
    return shutil.copytree(corpus, tmp_path / "data")


@pytest.fixture
def train(tmp_path: Path, data: Path) -> list[object]:
    """Return the command that trains one step on it."""
    config = tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=data)
    return [
        "train",
        config,
        "training.max_steps=1",
        "validation.metrics=[]",
        "validation.best=loss",
        "data.test=[]",
    ]


def replace_line(path: Path, number: int, content: bytes) -> None:
    """Replace a line (from 1) with other bytes."""
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = content
    path.write_bytes(b"\n".join(lines))


def drop_last_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@dataclass(frozen=True)
class Case:
    """A way to damage the corpus, and what the user should be told."""

    name: str
    damage: Callable[[Path], object]
    code: int
    parts: tuple[str, ...]
    overrides: tuple[str, ...] = ()


def pack(name: str, compress: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Compress train.src under another name."""
    return lambda data: (data / name).write_bytes(compress((data / "train.src").read_bytes()))


def source(src: str) -> tuple[str]:
    return (f"data.train.0.src={src}",)


CORPORA = [
    Case(
        "a line is missing on one side",
        lambda data: drop_last_line(data / "train.tgt"),
        DATA,
        ("train.src: 400 lines, but 399 in ", "train.tgt", "line n"),
    ),
    Case(
        "not UTF-8",
        lambda data: replace_line(data / "train.src", 5, b"the \xff dog"),
        DATA,
        ("train.src:5: not UTF-8: 0xff, byte 5 of the line", "iconv"),
    ),
    Case(
        "Latin-1",
        lambda data: replace_line(data / "train.tgt", 400, "gar\xe7on".encode("latin-1")),
        DATA,
        ("train.tgt:400: not UTF-8: 0xe7, byte 4 of the line",),
    ),
    Case(
        "UTF-16",
        lambda data: (data / "train.src").write_bytes((data / "train.src").read_text().encode("utf-16")),
        DATA,
        ("train.src:1: UTF-16, not UTF-8", "iconv -f UTF-16"),
    ),
    Case(
        "a NUL",
        lambda data: replace_line(data / "train.tgt", 7, b"le \0 chien"),
        DATA,
        ("train.tgt:7: a NUL character, byte 4 of the line",),
    ),
    Case(
        "both sides empty",
        lambda data: [(data / f"train.{side}").write_bytes(b"") for side in ("src", "tgt")],
        DATA,
        ("no text to train the tokenizer on", "data.train"),
    ),
    Case(
        "nothing but white space",
        lambda data: [(data / f"train.{side}").write_bytes(b" \n\t\n\n") for side in ("src", "tgt")],
        DATA,
        ("no text to train the tokenizer on", "data.train"),
    ),
    Case(
        "nothing is left after filtering",
        lambda data: None,
        DATA,
        (
            "data.train: no pair is left to train on: 0 of 400 pairs kept; left out: 400 too long",
            "data.max_length",
        ),
        ("data.max_length=1",),
    ),
    Case(
        "a folder in the place of a file",
        lambda data: make_folder(data / "train.src"),
        DATA,
        ("train.src: a folder, not a file",),
    ),
    Case(
        "no such file",
        lambda data: (data / "train.src").rename(data / "train.source"),
        DATA,
        ("train.src: no such file", "did you mean", "train.source?"),
    ),
    Case(
        "no such root",
        lambda data: shutil.rmtree(data),
        DATA,
        ("data.root: no such folder: ", "check the path"),
    ),
    Case(
        "a truncated gz",
        pack("train.src.gz", lambda text: gzip.compress(text)[:-200]),
        DATA,
        ("train.src.gz: a truncated .gz file", "copy or download it again"),
        source("train.src.gz"),
    ),
    Case(
        "an empty gz",
        pack("train.src.gz", lambda text: b""),
        DATA,
        ("train.src.gz: a truncated .gz file",),
        source("train.src.gz"),
    ),
    Case(
        "text that is called gz",
        pack("train.src.gz", lambda text: text),
        DATA,
        ("train.src.gz: damaged, or not a .gz file",),
        source("train.src.gz"),
    ),
    Case(
        "a truncated xz",
        pack("train.src.xz", lambda text: lzma.compress(text)[:-200]),
        DATA,
        ("train.src.xz: a truncated .xz file",),
        source("train.src.xz"),
    ),
    Case(
        "a damaged bz2",
        pack("train.src.bz2", lambda text: bz2.compress(text)[:60] + b"damage" + bz2.compress(text)[66:]),
        DATA,
        ("train.src.bz2: damaged, or not a .bz2 file",),
        source("train.src.bz2"),
    ),
    Case(
        "validation files of unequal length",
        lambda data: drop_last_line(data / "valid.src"),
        DATA,
        ("valid.src: 23 lines, but 24 in ", "valid.tgt"),
    ),
    Case(
        "empty validation files",
        lambda data: [(data / f"valid.{side}").write_bytes(b"") for side in ("src", "tgt")],
        DATA,
        ("valid.src:1: there are no pairs",),
    ),
    Case(
        "a test set that is not there, before anything is trained",
        lambda data: None,
        DATA,
        ("nowhere.src: no such file",),
        ("data.test=[{src: nowhere.src, tgt: test.tgt}]",),
    ),
    Case(
        "TSV without a tab",
        lambda data: (data / "pairs.tsv").write_text("a dog\tun chien\na cat  un chat\n"),
        DATA,
        ("pairs.tsv:2: 1 of 2 columns",),
        ("data.train=[{path: pairs.tsv}]",),
    ),
    Case(
        "JSONL with a broken line",
        lambda data: (data / "pairs.jsonl").write_text(
            '{"en": "a dog", "fr": "un chien"}\n{"en": "a cat", "fr"}\n'
        ),
        DATA,
        ("pairs.jsonl:2: not JSON",),
        ("data.train=[{path: pairs.jsonl}]",),
    ),
    Case(
        "JSONL of other languages",
        lambda data: (data / "pairs.jsonl").write_text('{"en": "a dog", "de": "ein Hund"}\n'),
        DATA,
        ("pairs.jsonl:1: no column 'fr'; there are: 'en', 'de'",),
        ("data.train=[{path: pairs.jsonl}]",),
    ),
    Case(
        "CSV with an open quote",
        lambda data: (data / "pairs.csv").write_text('en,fr\n"a dog,un chien\n'),
        DATA,
        ("pairs.csv:2: not CSV",),
        ("data.train=[{path: pairs.csv}]",),
    ),
    Case(
        "a file of unknown kind",
        lambda data: (data / "pairs.docx").write_text(""),
        USAGE,
        ("data.train.0.path: unknown file type: 'pairs.docx'", ".tsv"),
        ("data.train=[{path: pairs.docx}]",),
    ),
    Case(
        "the demo of other languages",
        lambda data: None,
        USAGE,
        ("data.train.0.demo: the demo is en-de, but the data is en-fr",),
        ("data.train=[{demo: en-de, pairs: 10}]",),
    ),
    Case(
        "a vocabulary smaller than the alphabet",
        lambda data: None,
        USAGE,
        ("tokenizer.vocab_size: 20 is too few", "at least "),
        ("tokenizer.vocab_size=20",),
    ),
    Case(
        "a tokenizer that is none",
        lambda data: None,
        STORAGE,
        ("train.src: damaged, or not a SentencePiece model",),
        ("tokenizer.model={data}/train.src",),
    ),
    Case(
        "a tokenizer that is not there",
        lambda data: None,
        STORAGE,
        ("nowhere.model: no such file or directory",),
        ("tokenizer.model=nowhere.model",),
    ),
]


@pytest.mark.parametrize("case", CORPORA, ids=lambda case: case.name)
def test_corpora_that_cannot_be_trained_on(
    train: list[object], data: Path, tmp_path: Path, case: Case
) -> None:
    case.damage(data)
    overrides = [
        override.format(data=data) if "{data}" in override else override for override in case.overrides
    ]
    said = fails(case.code, *case.parts, arguments=["check", *train[1:], *overrides])
    assert not (tmp_path / "run").exists()
    assert fails(case.code, arguments=[*train, *overrides]) == said
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(
            lambda data: replace_line(data / "train.src", 9, b"the\rdog \rsees a cat ."),
            "400 of 400",
            id="lone CR",
        ),
        pytest.param(
            lambda data: replace_line(data / "train.src", 9, "the\u2028dog\u2029\x85\x0b\x0c.".encode()),
            "400 of 400",
            id="U+2028 and other line separators",
        ),
        pytest.param(
            lambda data: [
                (data / f"train.{side}").write_bytes(
                    (data / f"train.{side}").read_bytes().replace(b"\n", b"\r\n")
                )
                for side in ("src", "tgt")
            ],
            "400 of 400",
            id="CRLF",
        ),
        pytest.param(
            lambda data: (data / "train.src").write_bytes(
                b"\xef\xbb\xbf" + (data / "train.src").read_bytes()
            ),
            "400 of 400",
            id="a byte order mark",
        ),
        pytest.param(
            lambda data: [replace_line(data / "train.src", number, b"  ") for number in (3, 4)],
            "398 of 400 pairs kept; left out: 2 empty",
            id="empty lines",
        ),
        pytest.param(
            lambda data: replace_line(data / "train.tgt", 3, b"le chien " * 120_000),
            "399 of 400 pairs kept; left out: 1 too long",
            id="a line of a megabyte",
        ),
        pytest.param(
            lambda data: replace_line(data / "train.src", 3, b"x" * 1_100_000),
            "399 of 400 pairs kept; left out: 1 too long",
            id="a word of a megabyte",
        ),
    ],
)
def test_corpora_that_are_odd_but_sound(
    train: list[object], data: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(data)
    code, out, err = tiny.mtkit(*train)
    assert (code, err) == (0, "")
    assert said in out


def test_a_failed_start_can_be_repaired(train: list[object], data: Path) -> None:
    """Nothing the failed command left gets in the way of the next one."""
    good = (data / "train.src").read_bytes()
    replace_line(data / "train.src", 400, b"\xff")
    fails(DATA, "train.src:400", arguments=train)
    (data / "train.src").write_bytes(good)
    assert tiny.mtkit(*train)[0] == 0


# --- configs ------------------------------------------------------------------------------------------------------

BASE = "run: runs/x\ndata:\n  src: en\n  tgt: no\n  train: [{demo: en-de, pairs: 100}]\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        pytest.param(
            BASE + "modle: {d_model: 8}\n", [":6: modle: unknown key", "did you mean model?"], id="a typo"
        ),
        pytest.param(
            BASE + "model:\n  d_modle: 8\n",
            [":7: model.d_modle: unknown key", "did you mean d_model?"],
            id="typo below",
        ),
        pytest.param(
            BASE + "training: {lr: 0.1}\n",
            [":6: training.lr: unknown key", "learning_rate"],
            id="a foreign name",
        ),
        pytest.param(
            BASE + "model: {d_model: wide}\n",
            [":6: model.d_model: expected an integer, got 'wide'"],
            id="a text for a number",
        ),
        pytest.param(
            BASE + "model: {d_model: 64.0}\n", [":6: model.d_model", "write 64"], id="a float for a count"
        ),
        pytest.param(BASE + "model: {bias: yes}\n", [":6: model.bias", "write true"], id="yes for true"),
        pytest.param(
            BASE + "run: runs/y\n", [":6: duplicate key 'run', first on line 1"], id="a duplicate key"
        ),
        pytest.param(
            BASE + "model: {d_model: -64}\n",
            [":6: model.d_model: must be greater than 0, got -64"],
            id="negative",
        ),
        pytest.param(
            BASE + "training: {batch_tokens: 0}\n",
            [":6: training.batch_tokens: expected a positive integer or auto"],
            id="zero",
        ),
        pytest.param(BASE + "seed: -1\n", [":6: seed: must be at least 0, got -1"], id="a negative seed"),
        pytest.param(
            BASE + "model: {dropout: 1.0}\n", [":6: model.dropout: must be less than 1"], id="all dropped"
        ),
        pytest.param(
            BASE + "model: {d_model: 100, num_heads: 3}\n",
            [":6: model: d_model 100 is not a multiple"],
            id="heads",
        ),
        pytest.param(
            BASE + "training: {schedule: cosinus}\n",
            [":6: training.schedule", "did you mean cosine?"],
            id="a choice",
        ),
        pytest.param(
            BASE + "training: {schedule: cosine, max_epochs: 3}\n",
            [":6: training: schedule cosine needs max_steps"],
            id="a schedule without an end",
        ),
        pytest.param(
            BASE + "validation: {best: ter}\n",
            [":6: validation: best is ter, which is not in metrics"],
            id="best",
        ),
        pytest.param(
            BASE + "decoding: {n_best: 9}\n",
            [":6: decoding: n_best 9 is greater than beam_size 5"],
            id="n_best",
        ),
        pytest.param(BASE + "model: {d_model: 64\n", [":6: missing } or comma"], id="an open bracket"),
        pytest.param(BASE + "model:\n\td_model: 64\n", [":7: tab in the indentation"], id="a tab"),
        pytest.param(
            BASE + "model: 64\n", [":6: model: expected a mapping, got 64"], id="a number for a section"
        ),
        pytest.param(BASE.replace("run: runs/x\n", ""), ["run: missing"], id="no run"),
        pytest.param(BASE.replace("  src: en\n", ""), [":2: data.src: missing"], id="no language"),
        pytest.param("run: x\n", ["data: missing"], id="no data"),
        pytest.param("", ["the file is empty"], id="an empty file"),
        pytest.param("- run: x\n", [":1: expected a mapping, got a list"], id="a list"),
        pytest.param(BASE + "seed: \0\n", [":6: a NUL character"], id="a NUL"),
        pytest.param(BASE + "seed: !!python/object:os.system 1\n", [":6: tag !!python/object"], id="a tag"),
        pytest.param(
            BASE.replace("{demo: en-de, pairs: 100}", "{demo: en-de, path: x.tsv, pairs: 100}"),
            [":5: data.train.0: give exactly one of"],
            id="two sources in one",
        ),
    ],
)
def test_configs_that_are_wrong(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    code, out, err = tiny.mtkit("train", path)
    line = tiny.one_line(err)
    assert (code, out) == (USAGE, ""), line
    assert line.startswith(f"error: {path}")
    assert [part for part in parts if part not in line] == [], line


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(BASE + "model: {d_modle: 8}\ntraining:\n  max_steps: many\nsed: 3\n")
    code, _, err = tiny.mtkit("train", path, "training.warmup_steps=-1")
    assert code == USAGE
    lines = err.removesuffix("\n").split("\n")
    assert lines[0] == f"error: 4 problems in {path}"
    assert [line.partition(" ")[0] for line in lines[1:]] == [
        f"{path}:6:",
        f"{path}:8:",
        f"{path}:9:",
        "command",
    ]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.max_stepz=5", ["training.max_stepz: unknown key", "did you mean max_steps?"]),
        ("training.max_steps=five", ["training.max_steps: expected an integer"]),
        ("training.max_steps", ["expected key=value", "for example"]),
        ("=5", ["empty key"]),
        ("data.train.7.src=x", ["data.train has no entry 7"]),
        ("run.folder=x", ["run is a value, not a section"]),
        ("model={d_model: 64", ["model={d_model: 64: "]),
        ("training.clip_norm=.inf", ["training.clip_norm: expected a number"]),
    ],
)
def test_overrides_that_are_wrong(train: list[object], override: str, parts: list[str]) -> None:
    code, _, err = tiny.mtkit(*train, override)
    line = tiny.one_line(err)
    assert code == USAGE
    assert line.startswith(f"error: command line: {override}: ")
    assert [part for part in parts if part not in line] == [], line


def test_no_is_a_language_and_1e_minus_4_a_number(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(BASE + "training: {learning_rate: 1e-4}\n")
    config = mtkit.load_config(path)
    assert (config.data.tgt, config.training.learning_rate) == ("no", 0.0001)
    code, out, _ = tiny.mtkit("config", "show", path)
    assert code == 0
    assert '  tgt: "no"\n' in out
    path.write_text(out)
    assert mtkit.load_config(path) == config


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("nowhere.yaml", ["nowhere.yaml: no such file"]),
        ("{folder}", ["a folder, not a file"]),
        ("{folder}/missing/config.yaml", ["no such file", "there is no folder"]),
    ],
)
def test_configs_that_are_not_there(tmp_path: Path, argument: str, parts: list[str]) -> None:
    fails(USAGE, *parts, arguments=["train", argument.format(folder=tmp_path)])


# --- run folders, devices, options --------------------------------------------------------------------------------


def test_a_file_where_the_run_folder_should_be(train: list[object], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for run in (tmp_path / "taken", tmp_path / "taken/run"):
        for command in ("train", "check"):
            fails(STORAGE, str(tmp_path / "taken"), arguments=[command, *train[1:], f"run={run}"])
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_cache_that_cannot_be_written(train: list[object], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    fails(STORAGE, str(tmp_path / "taken"), arguments=[*train, f"data.cache={tmp_path / 'taken'}"])


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "mps", "cpu:x"])
def test_devices_that_are_not_there(train: list[object], trained: Path, device: str) -> None:
    fails(USAGE, "training.device: ", repr(device), arguments=[*train, f"training.device={device}"])
    fails(
        USAGE, "--device: ", repr(device), arguments=["translate", trained, "--device", device], stdin="a\n"
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["tranlsate", "x"], ["No such command", "mtkit --help"]),
        (["train"], ["Missing argument 'CONFIG'", "mtkit train --help"]),
        (["train", "c.yaml", "--frsh"], ["No such option", "--fresh"]),
        (["train", "c.yaml", "--training.max_steps=9"], ["No such option", "training.max_steps=VALUE"]),
        (["translate"], ["Missing argument 'MODEL'", "mtkit translate --help"]),
        (["translate", "{model}", "--beam-size", "0"], ["--beam-size", "mtkit translate --help"]),
        (["translate", "{model}", "--read-ahead", "9" * 20], ["--read-ahead"]),
        (["translate", "{model}", "--threads", "9" * 11], ["--threads"]),
        (["translate", "{model}", "--beam-size", "many"], ["--beam-size", "mtkit translate --help"]),
        (
            ["translate", "{model}", "--n-best", "3", "--beam-size", "2"],
            ["n_best 3 is greater than beam_size 2"],
        ),
        (["translate", "{model}", "--max-length-ratio", "-1"], ["--max-length-ratio"]),
        (["translate", "{model}", "--length-penalty", "nan"], ["--length-penalty"]),
        (["translate", "{model}", "--precision", "fp8"], ["--precision: unknown precision 'fp8'", "bf16"]),
        (["score", "{model}", "{data}/test.src"], ["Missing argument 'TGT'"]),
        (["config", "shw"], ["No such command", "mtkit config --help"]),
        (["evaluate"], ["nothing to score: give HYPS or --model"]),
        (["evaluate", "{data}/test.tgt"], ["no references", "--ref"]),
        (["evaluate", "{data}"], ["a folder, not a file of translations", "--model"]),
        (["evaluate", "--model", "{model}", "--ref", "{data}/test.tgt"], ["needs --src"]),
        (
            ["evaluate", "--model", "{model}", "--src", "{data}/test.src"],
            ["--src needs --ref"],
        ),
        (["evaluate", "{data}/test.tgt", "--ref", "{data}/test.tgt", "--metric", "blue"], ["blue", "bleu"]),
        (["evaluate", "{data}/test.tgt", "--ref", "{data}/test.tgt", "--tokenize", "13b"], ["13b", "13a"]),
        (["evaluate", "{data}/test.tgt", "--ref", "{data}/test.tgt", "--resamples", "1"], ["1 resample"]),
        (["evaluate", "{data}/test.tgt", "--test-set", "wmt20"], ["--test-set needs --langs", "en-de"]),
        (["evaluate", "{data}/test.tgt", "--test-set", "wmt02", "--langs", "en-de"], ["wmt02"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_command_lines_that_are_wrong(
    trained: Path, corpus: Path, arguments: list[str], parts: list[str]
) -> None:
    filled = [argument.format(model=trained, data=corpus) for argument in arguments]
    fails(USAGE, *parts, arguments=[*filled], stdin="a dog .\n")


def test_debug_adds_the_traceback() -> None:
    code, _, err = tiny.mtkit("--debug", "train", "nowhere.yaml")
    assert code == USAGE
    assert "Traceback" in err
    assert err.endswith("\n")
    assert err.removesuffix("\n").split("\n")[-1].startswith("error: nowhere.yaml: no such file")


# --- model folders ------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES = [f"best/{name}" for name in ("model.safetensors", "config.yaml", "state.json", "manifest.json")]


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run folder with one checkpoint, which a test may damage."""
    return shutil.copytree(trained, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints"))


@pytest.mark.parametrize("damage", [Path.unlink, truncate, empty, flip])
@pytest.mark.parametrize("file", [*FILES, "tokenizer.model"])
def test_model_folders_that_are_damaged(model: Path, file: str, damage: Callable[[Path], None]) -> None:
    damage(model / file)
    line = fails(STORAGE, str(model), arguments=["translate", model], stdin="a dog .\n")
    assert Path(file).name in line or damage is flip  # a flipped manifest may accuse any file
    fails(STORAGE, str(model), arguments=["evaluate", "--model", model])


def test_a_flipped_bit_is_found_in_every_place(model: Path) -> None:
    path = model / "best/model.safetensors"
    content = path.read_bytes()
    for place in (0, 8, 100, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 0x80
        path.write_bytes(changed)
        fails(STORAGE, str(path), "damaged", arguments=["translate", model], stdin="a dog .\n")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("missing", ["no such folder", "run folder"]),
        ("file", ["a file, not a model folder"]),
        ("empty", ["no checkpoint in this folder", "manifest.json"]),
    ],
)
def test_model_folders_that_are_none(tmp_path: Path, name: str, parts: list[str]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    fails(STORAGE, str(tmp_path / name), *parts, arguments=["translate", tmp_path / name], stdin="a\n")


def rewrite_manifest(folder: Path) -> None:
    """Make the manifest match the files, as someone editing a checkpoint by hand would."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("encoder_layers", 2, "the weights do not match the model: encoder.1."),
        ("d_ff", 1 << 50, "a model of the sizes in its config does not fit into memory"),
    ],
)
def test_weights_of_another_model(model: Path, key: str, value: int, what: str) -> None:
    path = model / "best/config.yaml"
    path.write_text(re.sub(f"  {key}: .*", f"  {key}: {value}", path.read_text(), count=1))
    rewrite_manifest(model / "best")
    fails(STORAGE, what, arguments=["translate", model], stdin="a\n")
    assert len(load_tensors(model / "best/model.safetensors")) > 0


def test_a_config_of_another_version(model: Path) -> None:
    path = model / "best/config.yaml"
    path.write_text(path.read_text().replace("  encoder_layers: 1\n", "  encoder_depth: 1\n"))
    rewrite_manifest(model / "best")
    fails(STORAGE, "not a config of this version", arguments=["translate", model], stdin="a\n")


def test_a_manifest_of_another_version(model: Path) -> None:
    path = model / "best/manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    fails(STORAGE, str(path), arguments=["translate", model], stdin="a\n")


def test_the_tokenizer_of_another_model(model: Path, tmp_path: Path, corpus: Path) -> None:
    config = tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "other", root=corpus)
    other = mtkit.load_config(
        config, ["data.train=[{src: train.tgt, tgt: train.tgt}]", "training.max_steps=1"]
    )
    mtkit.train(other)
    shutil.copy(tmp_path / "other/tokenizer.model", model)
    fails(STORAGE, str(model), "tokenizer", arguments=["translate", model], stdin="a\n")


# --- what is translated and scored --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"a dog .\n\xff\n", [":2: not UTF-8: 0xff"]),
        (b"a dog .\na\0b\n", [":2: a NUL character"]),
        ("a dog .\n".encode("utf-16"), [":1: UTF-16, not UTF-8"]),
    ],
)
def test_texts_that_are_none(
    trained: Path, corpus: Path, tmp_path: Path, content: bytes, parts: list[str]
) -> None:
    path = tmp_path / "input.txt"
    path.write_bytes(content)
    fails(DATA, *parts, str(path), arguments=["translate", trained, path])
    fails(DATA, *parts, "stdin", arguments=["translate", trained], stdin=content)
    fails(DATA, *parts, str(path), arguments=["evaluate", path, "--ref", corpus / "test.tgt"])
    fails(DATA, *parts, str(path), arguments=["score", trained, path, corpus / "test.tgt"])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("test.sorce", ["no such file", "did you mean"]),
        (".", ["a folder, not a file"]),
        ("cut.gz", ["a truncated .gz file"]),
    ],
)
def test_inputs_that_cannot_be_read(trained: Path, data: Path, name: str, parts: list[str]) -> None:
    (data / "cut.gz").write_bytes(gzip.compress(bytes(range(256)) * 8)[:-10])
    (data / "test.source").touch()
    output = data / "kept.txt"
    output.write_text("an earlier translation\n")
    fails(DATA, *parts, arguments=["translate", trained, data / "test.src", data / name, "-o", output])
    assert output.read_text() == "an earlier translation\n"
    fails(DATA, *parts, arguments=["evaluate", data / "test.tgt", "--ref", data / name])


def test_files_of_unequal_length(trained: Path, data: Path) -> None:
    drop_last_line(data / "test.tgt")
    counts = ("16", "15", "line n")
    fails(DATA, *counts, arguments=["score", trained, data / "test.src", data / "test.tgt"])
    fails(DATA, *counts, "test.tgt", arguments=["evaluate", data / "test.src", "--ref", data / "test.tgt"])
    model = ["evaluate", "--model", trained, "--src", data / "test.src"]
    fails(
        DATA, *counts, "test.tgt", arguments=[*model, "--ref", data / "test.src", "--ref", data / "test.tgt"]
    )


def test_nothing_to_evaluate(data: Path) -> None:
    (data / "empty.txt").touch()
    fails(DATA, "empty.txt", arguments=["evaluate", data / "empty.txt", "--ref", data / "empty.txt"])
    unset = ["evaluate", "", "--ref", data / "test.tgt"]  # as a variable of the shell that was not set
    fails(DATA, "no such file", arguments=unset, stdin=(data / "test.tgt").read_bytes())


@pytest.mark.parametrize("text", ["the dog " * 130_000, "x" * 50_000], ids=["a megabyte", "a word of 50 kB"])
def test_an_endless_line_is_translated(trained: Path, text: str) -> None:
    quick = ["--beam-size", 1, "--max-length-ratio", 0.01, "--batch-tokens", 100_000]
    code, out, err = tiny.mtkit("translate", trained, *quick, "-q", stdin=f"{text}\na dog .\n")
    assert (code, err) == (0, "")
    assert out.count("\n") == 2


# --- outputs ------------------------------------------------------------------------------------------------------


def test_a_full_disk_under_stdout(trained: Path, corpus: Path) -> None:
    with open("/dev/full", "w") as full:
        process = tiny.fork("translate", trained, corpus / "test.src", "-q", stdout=full)
        _, err = process.communicate(timeout=300)
    assert process.returncode == STORAGE
    assert tiny.one_line(err).startswith("error: stdout: no space left on device (free some space")


@pytest.mark.parametrize("stderr_is_open", [True, False])
@pytest.mark.parametrize(
    "command", ["translate MODEL SRC", "score MODEL SRC TGT", "evaluate TGT --ref TGT", "config schema"]
)
def test_a_closed_stdout(
    trained: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, command: str, stderr_is_open: bool
) -> None:
    """The shell closed it, as with `>&-` and `2>&-`."""
    from mtkit.cli import run

    places = {"MODEL": trained, "SRC": corpus / "test.src", "TGT": corpus / "test.tgt"}
    err = io.StringIO()
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", err if stderr_is_open else None)
    monkeypatch.setattr("mtkit.translation.loading.load_stored_model", None)  # it is said before
    assert run([str(places.get(word, word)) for word in command.split()]) == STORAGE
    said = "error: stdout: closed (write to a file, or to /dev/null)\n"
    assert err.getvalue() == (said if stderr_is_open else "")


def test_progress_is_never_among_the_translations(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a stderr, Python's print would write to stdout."""
    from mtkit.cli import run

    source = tmp_path / "in"
    source.write_bytes(b"a dog .\n\xff\n")
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", None)
    assert run(["translate", str(trained), str(source), "--on-error", "copy", "-o", "-"]) == 0
    assert out.buffer.getvalue().decode().split("\n")[1:] == ["\ufffd", ""]  # type: ignore[attr-defined]


def test_outputs_that_cannot_be_written(trained: Path, corpus: Path, tmp_path: Path) -> None:
    translate = ["translate", trained, corpus / "test.src", "-o"]
    fails(STORAGE, "/dev/full: no space left on device", arguments=[*translate, "/dev/full"])
    fails(STORAGE, str(tmp_path), "is a directory", arguments=[*translate, tmp_path])
    fails(STORAGE, "no such file or directory", arguments=[*translate, tmp_path / "missing/out.txt"])


def test_an_output_that_is_the_input(trained: Path, data: Path) -> None:
    before = (data / "test.src").read_bytes()
    os.link(data / "test.src", data / "link.src")
    arguments = ["translate", trained, data / "valid.src", data / "test.src", "-o", data / "link.src"]
    fails(USAGE, "--output: ", "link.src is also another file of this command", arguments=arguments)
    assert (data / "test.src").read_bytes() == before


def test_a_reader_that_goes_away(trained: Path, corpus: Path) -> None:
    """`mtkit translate … | head -1` with more output than a pipe holds."""
    wide = ["-q", "--n-best", 12, "--beam-size", 12]
    process = tiny.fork("translate", trained, corpus / "train.src", *wide)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("1 ||| ")
    process.stdout.close()
    assert process.wait(300) == PIPE
    with process.stderr:
        assert "the reader closed the pipe" in tiny.one_line(process.stderr.read())


NO_UTF8 = {"LANG": "C", "LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}


def test_training_where_nothing_is_utf8_and_the_readers_go_away(
    train: list[object], data: Path, tmp_path: Path
) -> None:
    """Samples are shown as well as the terminal can; when the reader is gone, training continues and ends normally."""
    tiny.write_lines(data / "valid.tgt", ["un Garçon 中 ."] * 24)
    options = ["training.max_steps=40", "validation.every_steps=20", "validation.metrics=[bleu]"]
    arguments = tiny.command(*train, *options)
    environment = tiny.child_environment() | NO_UTF8
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    while not (line := process.stdout.readline()).startswith(b"    reference"):
        assert process.poll() is None
    assert line == rb"    reference   un Gar\xe7on \u4e2d ." + b"\n"
    process.stdout.close()
    process.stderr.close()
    assert process.wait(300) == 0
    assert tiny.checkpoints(tmp_path / "run")[-1] == 40
    assert len(tiny.records(tmp_path / "run", "train")) == 40
    assert (tmp_path / "run/results.json").exists()


def test_a_closed_stdin(trained: Path) -> None:
    line = " ".join(tiny.command("translate", trained))
    done = subprocess.run(
        ["bash", "-c", f"{line} <&-"],
        env=tiny.child_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (DATA, "")
    assert "stdin" in tiny.one_line(done.stderr)


def test_ctrl_c_while_translating(trained: Path, tmp_path: Path) -> None:
    """The signal is sent after the first lines, while more input is awaited."""
    process = tiny.fork("translate", trained, "-q", "--beam-size", 1, stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write("a dog .\n" * 4097)
    process.stdin.flush()
    assert process.stdout.readline() != ""
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(300) == 130
    assert process.stderr.read().lstrip("\n") == "interrupted\n"  # a line end finishes the line of the ^C
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
