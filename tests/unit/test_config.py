"""Loading a config: every mistake is found, located and explained; a dumped config loads as an equal one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mtkit.config.loading import (
    config_schema,
    config_to_dict,
    diff_configs,
    dump_config,
    load_config,
    load_stored_config,
    parse_config,
)
from mtkit.config.rules import EXCLUDES, NEEDS, Rule
from mtkit.config.sections import Config, Section
from mtkit.config.yaml_document import load_yaml
from mtkit.errors import ConfigError

HEAD = "run: runs/x\ndata:\n  src: en\n  tgt: de\n  train: [{demo: en-de, pairs: 3}]\n"  # Five lines.


def write(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_run_and_data_are_a_complete_config(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, HEAD), ["preset=null"])
    assert config.run == "runs/x"
    assert config.data.train[0].pairs == 3
    assert config.model.heads == 4 and config.model.feed_forward == 1024
    assert config.training.step_limit == 100_000
    assert (
        parse_config(
            {"run": "runs/x", "data": {"src": "en", "tgt": "de", "train": [{"demo": "en-de", "pairs": 3}]}}
        )
        == config
    )


def test_values_are_parsed_strictly(tmp_path: Path) -> None:
    text = (
        HEAD.replace("tgt: de", "tgt: no")
        + "training:\n  learning_rate: 1e-4\n  betas: [0, .99]\n  clip_norm: null\n"
    )
    config = load_config(
        write(tmp_path, text + "validation:  # all by default\n"), ["decoding.beam_size=4", "seed=0"]
    )
    assert config.data.tgt == "no"
    assert config.training.learning_rate == 1e-4
    assert config.training.betas == (0.0, 0.99)
    assert config.training.clip_norm is None
    assert config.validation.every_steps == 1000
    assert (config.decoding.beam_size, config.seed) == (4, 0)


@pytest.mark.parametrize(
    ("tgt", "overrides", "best"),
    [
        ("de", [], "bleu"),
        ("ja-JP", [], "bleu"),
        ("zh_Hant", [], "bleu"),
        ("th", [], "chrf"),
        ("mya_Mymr", ["validation.every_steps=5"], "chrf"),
        ("th", ["validation.best=bleu"], "bleu"),
        ("th", ["validation.bleu_tokenizer=flores200"], "bleu"),
        ("th", ["validation.metrics=[bleu]"], "bleu"),
    ],
)
def test_the_default_metric_for_the_best_depends_on_the_language(
    tmp_path: Path, tgt: str, overrides: list[str], best: str
) -> None:
    config = load_config(write(tmp_path, HEAD.replace("tgt: de", f"tgt: {tgt}")), overrides)
    assert config.validation.best == best
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_the_default_learning_rate_depends_on_the_schedule(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + "training: {schedule: noam}\n")
    assert load_config(path).training.learning_rate == 2.0
    assert "learning_rate: 2.0\n" in dump_config(load_config(path))
    assert load_config(path, ["training.learning_rate=0.001"]).training.learning_rate == 0.001
    assert load_config(path, ["training.schedule=constant"]).training.learning_rate == 0.001


@pytest.mark.parametrize(
    ("keys", "coverage"),
    [
        ("", 0.9995),
        ("byte_fallback: true", 0.9995),
        ("byte_fallback: false", 1.0),
        ("character_coverage: 1.0", 1.0),
    ],
)
def test_the_default_coverage_depends_on_byte_fallback(tmp_path: Path, keys: str, coverage: float) -> None:
    config = load_config(write(tmp_path, HEAD + f"tokenizer: {{{keys}}}\n"))
    assert config.tokenizer.character_coverage == coverage
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_a_config_cannot_be_changed(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, HEAD))
    with pytest.raises(ValidationError):
        config.training.max_steps = 3


# Text below HEAD: (line, what, hint).
BAD_KEYS: dict[str, tuple[int, str, str | None]] = {
    # Unknown keys.
    "trainnig: {}": (6, "trainnig: unknown key", "did you mean training?"),
    "Training: {}": (6, "Training: unknown key", "did you mean training?"),
    "foo: 1": (6, "foo: unknown key", "`mtkit config schema` lists all keys"),
    "max_steps: 3": (6, "max_steps: unknown key", "max_steps belongs in training"),
    "beam_size: 3": (6, "beam_size: unknown key", "beam_size belongs in validation or in decoding"),
    "max_step: 3": (6, "max_step: unknown key", "did you mean max_steps in training?"),
    "training.max_steps: 3": (
        6,
        "training.max_steps: unknown key",
        "write what follows the dot on the next line, indented",
    ),
    "training:\n  lr: 1": (7, "training.lr: unknown key", "did you mean learning_rate?"),
    "training:\n  batch_size: 1": (7, "training.batch_size: unknown key", "did you mean batch_tokens?"),
    "training:\n  epochs: 1": (7, "training.epochs: unknown key", "did you mean max_epochs?"),
    "training:\n  Max-Steps: 1": (7, "training.Max-Steps: unknown key", "did you mean max_steps?"),
    "training:\n  seed: 1": (7, "training.seed: unknown key", "seed belongs at the top level"),
    "training:\n  beam_size: 1": (
        7,
        "training.beam_size: unknown key",
        "beam_size belongs in validation or in decoding",
    ),
    "training:\n  demo: en-de": (7, "training.demo: unknown key", "demo belongs in an entry of data.train"),
    "decoding:\n  max_length: 1": (7, "decoding.max_length: unknown key", "max_length belongs in data"),
    "model:\n  hidden_size: 1": (7, "model.hidden_size: unknown key", "did you mean d_model?"),
    "model:\n  heads: 1": (7, "model.heads: unknown key", "did you mean num_heads?"),
    # Wrong types.
    "training:\n  max_steps: abc": (7, "training.max_steps: expected an integer, got 'abc'", None),
    "training:\n  max_steps: 1e5": (
        7,
        "training.max_steps: expected an integer, got 100000.0",
        "write 100000",
    ),
    "training:\n  max_steps: 1.5": (7, "training.max_steps: expected an integer, got 1.5", None),
    "training:\n  max_steps: 1_000": (
        7,
        "training.max_steps: expected an integer, got '1_000'",
        "write 1000",
    ),
    "training:\n  max_steps: '10'": (
        7,
        "training.max_steps: expected an integer, got '10'",
        "write 10",
    ),
    "training:\n  max_steps: 012": (
        7,
        "training.max_steps: expected an integer, got '012'",
        "write 12",
    ),
    "training:\n  max_steps: true": (7, "training.max_steps: expected an integer, got true", None),
    "training:\n  max_steps: [1]": (
        7,
        "training.max_steps: expected an integer, got a list of length 1",
        None,
    ),
    "training:\n  batch_tokens:": (
        7,
        "training.batch_tokens: expected a positive integer or auto, got null",
        None,
    ),
    "training:\n  learning_rate: fast": (
        7,
        "training.learning_rate: expected a number, got 'fast'",
        None,
    ),
    "training:\n  learning_rate: .nan": (
        7,
        "training.learning_rate: expected a number, got '.nan'",
        None,
    ),
    "training:\n  learning_rate: {a: 1}": (
        7,
        "training.learning_rate: expected a number, got a mapping",
        None,
    ),
    "training:\n  compile: no": (
        7,
        "training.compile: expected true or false, got 'no'",
        "write false",
    ),
    "training:\n  compile: on": (7, "training.compile: expected true or false, got 'on'", "write true"),
    "training:\n  compile: 1": (7, "training.compile: expected true or false, got 1", "write true"),
    "training:\n  compile: perhaps": (
        7,
        "training.compile: expected true or false, got 'perhaps'",
        None,
    ),
    "training:\n  device: 0": (7, "training.device: expected a string, got 0", "put it in quotes"),
    "training:\n  betas: 0.9": (7, "training.betas: expected a list, got 0.9", "write [0.9]"),
    "training:\n  betas: [0.9]": (
        7,
        "training.betas: too few entries, got 1",
        "Decay rates beta1 and beta2 of AdamW (Loshchilov and Hutter 2019)",
    ),
    "training:\n  betas: []": (
        7,
        "training.betas: too few entries, got 0",
        "Decay rates beta1 and beta2 of AdamW (Loshchilov and Hutter 2019)",
    ),
    "training:\n  betas: [.9, .9, .9]": (
        7,
        "training.betas: too many entries, got 3",
        "Decay rates beta1 and beta2 of AdamW (Loshchilov and Hutter 2019)",
    ),
    "training:\n  betas: [.9,\n    x]": (8, "training.betas.1: expected a number, got 'x'", None),
    "tokenizer:\n  user_symbols: <x>": (
        7,
        "tokenizer.user_symbols: expected a list, got '<x>'",
        "write [<x>]",
    ),
    "tokenizer:\n  user_symbols:\n    - a\n    - 1": (
        9,
        "tokenizer.user_symbols.1: expected a string, got 1",
        "put it in quotes",
    ),
    "model: 5": (6, "model: expected a mapping, got 5", None),
    "model: big": (6, "model: expected a mapping, got 'big'", "write  key: value"),
    "model: [1]": (6, "model: expected a mapping, got a list of length 1", None),
    # Ranges.
    "seed: -1": (6, "seed: must be at least 0, got -1", "the default is 1"),
    "model:\n  d_model: -256": (7, "model.d_model: must be greater than 0, got -256", "the default is 256"),
    "model:\n  dropout: 1.0": (7, "model.dropout: must be less than 1, got 1.0", "the default is 0.1"),
    "model:\n  dropout: -0.1": (7, "model.dropout: must be at least 0, got -0.1", "the default is 0.1"),
    "training:\n  max_steps: 0": (
        7,
        "training.max_steps: must be greater than 0, got 0",
        "the default is null",
    ),
    "training:\n  learning_rate: 0": (
        7,
        "training.learning_rate: must be greater than 0, got 0",
        "the default is 0.001",
    ),
    "training:\n  betas: [0.9, 1]": (7, "training.betas.1: must be less than 1, got 1", None),
    "tokenizer:\n  vocab_size: 3": (
        7,
        "tokenizer.vocab_size: must be at least 16, got 3",
        "the default is 8000",
    ),
    "tokenizer:\n  character_coverage: 2": (
        7,
        "tokenizer.character_coverage: must be at most 1, got 2",
        "the default is 0.9995",
    ),
    "decoding:\n  temperature: 1e-30": (
        7,
        "decoding.temperature: must be at least 0.01, got 1e-30",
        "the default is 1.0",
    ),
    "decoding:\n  length_penalty: -6": (
        7,
        "decoding.length_penalty: must be at least -5, got -6",
        "the default is 1.0",
    ),
    # Choices.
    "training:\n  schedule: Cosin": (
        7,
        "training.schedule: expected inverse_sqrt, noam, linear, cosine or constant, got 'Cosin'",
        "did you mean cosine?",
    ),
    "training:\n  schedule: 3": (
        7,
        "training.schedule: expected inverse_sqrt, noam, linear, cosine or constant, got 3",
        None,
    ),
    "tokenizer:\n  type: sentencepiece": (
        7,
        "tokenizer.type: expected unigram or bpe, got 'sentencepiece'",
        None,
    ),
    "validation:\n  metrics: [bleu, crhf]": (
        7,
        "validation.metrics.1: expected bleu, chrf, chrf++ or ter, got 'crhf'",
        "did you mean chrf?",
    ),
    # Conflicting keys: reported at the line of one of them.
    "decoding:\n  batch_tokens: 1\n  n_best: 9": (8, "decoding: n_best 9 is greater than beam_size 5", None),
    "model:\n  bias: true\n  d_model: 100\n  num_heads: 3": (
        8,
        "model: d_model 100 is not a multiple of num_heads 3",
        None,
    ),
    "validation:\n  metrics: []\n  best: bleu": (
        8,
        "validation: best is bleu, which is not in metrics",
        None,
    ),
    "training:\n  max_epochs: 1\n  schedule: cosine": (
        8,
        "training: schedule cosine needs max_steps, where it ends",
        None,
    ),
    "tokenizer:\n  src_model: a": (7, "tokenizer: src_model and tgt_model must be given together", None),
    "tokenizer:\n  joint: false\nmodel:\n  tie_embeddings: three-way": (
        9,
        "model.tie_embeddings three-way needs a joint tokenizer",
        None,
    ),
}


@pytest.mark.parametrize(("text", "expected"), BAD_KEYS.items(), ids=BAD_KEYS)
def test_an_error_names_its_line(tmp_path: Path, text: str, expected: tuple[int, str, str | None]) -> None:
    line, what, hint = expected
    path = write(tmp_path, HEAD + text + "\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    error = caught.value
    assert (error.where, error.what, error.hint) == (f"{path}:{line}", what, hint)
    assert "\n" not in str(error)
    assert error.exit_code == 2


# Value of data.train, which begins on line 5: (line, what, hint).
BAD_SOURCES: dict[str, tuple[int, str, str | None]] = {
    "": (5, "data.train: expected a list, got null", None),
    "[]": (5, "data.train: must not be empty", "Training corpora"),
    "x.tsv": (5, "data.train: expected a list, got 'x.tsv'", "write [{path: x.tsv}]"),
    "[x.tsv]": (5, "data.train.0: expected a mapping, got 'x.tsv'", "write {path: x.tsv}"),
    "{path: x}": (
        5,
        "data.train: expected a list, got a mapping",
        "start an entry with a dash:  - key: value",
    ),
    "[{}]": (5, "data.train.0: give exactly one of: src + tgt, path, hub, saved, demo", None),
    "[{path: a, demo: en-de}]": (
        5,
        "data.train.0: give exactly one of: src + tgt, path, hub, saved, demo",
        None,
    ),
    "\n  - {path: a}\n  - path: 3": (7, "data.train.1.path: expected a string, got 3", "put it in quotes"),
    "\n  - {path: a}\n  - src: a": (
        7,
        "data.train.1: src and tgt must be given together: they are two parallel files",
        None,
    ),
    "\n  - demo: en-de": (
        6,
        "data.train.0: demo and pairs must be given together, for example {demo: en-de, pairs: 20000}",
        None,
    ),
    "\n  - demo: en-fr\n    pairs: 3": (
        6,
        "data.train.0.demo: expected en-de or de-en, got 'en-fr'",
        "did you mean en-de?",
    ),
    "\n  - demo: en-de\n    pairs: -3": (
        7,
        "data.train.0.pairs: must be greater than 0, got -3",
        "the default is null",
    ),
    "\n  - path: a\n    colums: [x, y]": (7, "data.train.0.colums: unknown key", "did you mean columns?"),
    "\n  - path: a\n    columns: [x]": (
        7,
        "data.train.0.columns: too few entries, got 1",
        "The two columns to read, source first; by default a `translation` column or those named after the "
        "languages. In a .tmx or .xlf file, the two language tags; in a .tsv without a header, numbers, as in [2, 1]",
    ),
    "\n  - path: a\n    split: train": (
        7,
        "data.train.0: split requires hub or saved",
        None,
    ),
    "\n  - path: a\n    revision: 12345": (
        7,
        "data.train.0.revision: expected a string, got 12345",
        "put it in quotes",
    ),
}


@pytest.mark.parametrize(("value", "expected"), BAD_SOURCES.items(), ids=BAD_SOURCES)
def test_an_error_in_a_source_names_its_line(
    tmp_path: Path, value: str, expected: tuple[int, str, str | None]
) -> None:
    line, what, hint = expected
    path = write(tmp_path, f"run: x\ndata:\n  src: en\n  tgt: de\n  train: {value}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert (caught.value.where, caught.value.what, caught.value.hint) == (f"{path}:{line}", what, hint)


@pytest.mark.parametrize(
    ("override", "what", "hint"),
    [
        ("training.max_steps=abc", "training.max_steps: expected an integer, got 'abc'", None),
        (
            "training.max_steps=-3",
            "training.max_steps: must be greater than 0, got -3",
            "the default is null",
        ),
        ("trainig.max_steps=3", "trainig: unknown key", "did you mean training?"),
        ("training.max_step=3", "training.max_step: unknown key", "did you mean max_steps?"),
        ("run=", "run: expected a string, got null", None),
        ("run=1e5", "run: expected a string, got 100000.0", "write 'run=\"1e5\"'"),
        (
            "run=''",
            "run: must not be empty",
            "Run folder for everything that training writes; self-contained, so it can be moved",
        ),
        ("training=5", "training: expected a mapping, got 5", None),
        ("data.train=[]", "data.train: must not be empty", "Training corpora"),
        ("data.train.0.pairs=many", "data.train.0.pairs: expected an integer, got 'many'", None),
        ("data={src: en, tgt: de}", "data.train: missing", "Training corpora"),
        ("decoding.n_best=9", "decoding: n_best 9 is greater than beam_size 5", None),
        ("validation.best=ter", "validation: best is ter, which is not in metrics", None),
        ("model.tie_embeddings=three-way", "model.tie_embeddings three-way needs a joint tokenizer", None),
        ("run.x=3", "run is a value, not a section", "it is runs/x"),
        ("training.max_steps", "expected key=value", "for example training.max_steps=1000"),
    ],
)
def test_an_error_in_an_override_names_the_command_line(
    tmp_path: Path, override: str, what: str, hint: str | None
) -> None:
    path = write(tmp_path, HEAD + "tokenizer: {joint: false}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["seed=3", override])
    error = caught.value
    assert (error.where, error.what, error.hint) == (f"command line: {override}", what, hint)


def test_an_override_can_fix_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + "training:\n  max_steps: many\n")
    assert load_config(path, ["training.max_steps=3"]).training.max_steps == 3


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("data: {src: en, tgt: de, train: [{path: x}]}", "x.yaml", "run: missing"),
        ("run: x", "x.yaml", "data: missing"),
        ("run: x\ndata:\n  src: en\n  train: [{path: x}]", "x.yaml:2", "data.tgt: missing"),
    ],
)
def test_a_missing_key_is_reported_with_its_description(
    tmp_path: Path, text: str, where: str, what: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert (caught.value.where, caught.value.what) == (f"{tmp_path}/{where}", what)
    assert caught.value.hint


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    text = """\
data:
  src: en
  tgt: de
  train:
    - demo: en-de
    - path: 7
training:
  lr: 1
  max_steps: -1
modle: {}
decoding: {n_best: 7}
"""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["seed=x"])
    assert caught.value.where is None
    assert str(caught.value).split("\n") == [
        f"8 problems in {path}",
        f"{path}: run: missing (Run folder for everything that training writes; self-contained, so it can be moved)",
        f"{path}:5: data.train.0: demo and pairs must be given together, for example {{demo: en-de, pairs: 20000}}",
        f"{path}:6: data.train.1.path: expected a string, got 7 (put it in quotes)",
        f"{path}:8: training.lr: unknown key (did you mean learning_rate?)",
        f"{path}:9: training.max_steps: must be greater than 0, got -1 (the default is null)",
        f"{path}:10: modle: unknown key (did you mean model?)",
        f"{path}:11: decoding: n_best 7 is greater than beam_size 5",
        "command line: seed=x: seed: expected an integer, got 'x'",
    ]


def test_yaml_errors_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, HEAD + "run: y\n"))
    assert caught.value.where == f"{tmp_path}/x.yaml:6"
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "y.yaml")


DATA: dict[str, Any] = {"src": "en", "tgt": "de", "train": [{"path": "x.tsv"}]}


@pytest.mark.parametrize(
    ("config", "where", "what"),
    [
        ({"run": "x", "data": DATA, "seed": "1"}, "seed", "expected an integer, got '1'"),
        (
            {"run": "x", "data": DATA, "training": {"betas": (0.9,)}},
            "training.betas",
            "too few entries, got 1",
        ),
        (
            {"run": "x", "data": {**DATA, "cache": Path("x")}},
            "data.cache",
            "expected a string, got a PosixPath",
        ),
        ({"run": "x", "data": DATA, "training": {1: 2}}, "training.1", "keys should be strings"),
        ({"run": "x", "data": DATA, "training": {"lr": 2}}, "training.lr", "unknown key"),
        (
            {"run": "x", "data": DATA, "decoding": {"n_best": 9}},
            "decoding",
            "n_best 9 is greater than beam_size 5",
        ),
        (
            {"run": "x", "data": {**DATA, "train": ["x"]}},
            "data.train.0",
            "expected a mapping, got 'x'",
        ),
        (
            {"run": "x", "data": DATA, "training": {"learning_rate": math.nan}},
            "training.learning_rate",
            "expected a finite number, got nan",
        ),
        (
            {
                "run": "x",
                "data": DATA,
                "tokenizer": {"joint": False},
                "model": {"tie_embeddings": "three-way"},
            },
            None,
            "model.tie_embeddings three-way needs a joint tokenizer",
        ),
    ],
)
def test_an_error_in_a_dict_names_its_key(config: dict[str, object], where: str | None, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(config)
    assert (caught.value.where, caught.value.what) == (where, what)


def test_all_errors_in_a_dict_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"data": {**DATA, "train": []}, "seed": -1})
    assert str(caught.value).split("\n") == [
        "3 problems in the config",
        "run: missing (Run folder for everything that training writes; self-contained, so it can be moved)",
        "seed: must be at least 0, got -1 (the default is 1)",
        "data.train: must not be empty (Training corpora)",
    ]


RICH = """\
run: "no"
seed: 7
data:
  src: en
  tgt: "no"
  train:
    - {src: a.gz, tgt: b.gz}
    - {path: "012.tsv", columns: [x, "null"]}
    - {hub: some/name, config: de-en, split: "train[:10%]", revision: "1e5"}
  test: [{name: "2016", demo: en-de, pairs: 5}]
tokenizer: {user_symbols: ["<a>", "", "\\u2028", "😀", "yes"], character_coverage: 0.9995}
model: {d_model: 96, num_heads: 3, activation: swiglu, tie_embeddings: none}
training: {learning_rate: 1e-7, eps: 1e-12, betas: [0, 0.5], clip_norm: null,
  max_steps: 2000, schedule: cosine}
validation: {metrics: [], best: loss}
"""


@pytest.mark.parametrize("text", [HEAD + "preset: tiny\n", RICH], ids=["short", "rich"])
def test_a_dumped_config_loads_equal(tmp_path: Path, text: str) -> None:
    config = load_config(write(tmp_path, text))
    dumped = dump_config(config)
    assert load_config(write(tmp_path, dumped)) == config
    assert dump_config(load_config(tmp_path / "x.yaml")) == dumped
    assert parse_config(json.loads(json.dumps(config.model_dump()))) == config
    for name in Config.model_fields:
        assert f"\n{name}:" in f"\n{dumped}"
    section = config.training
    assert all(f"\n  {name}: " in dumped for name in type(section).model_fields)


def test_differences_name_their_keys(tmp_path: Path) -> None:
    old = load_config(write(tmp_path, HEAD + "preset: null\n"))
    assert diff_configs(old, old) == {}
    changes = [
        "training.learning_rate=2e-3",
        "data.train.0.pairs=4",
        "data.cache=c",
        "training.betas=[0.9, 0.99]",
    ]
    assert list(diff_configs(old, load_config(tmp_path / "x.yaml", changes)).values()) == [
        "data.train.0.pairs: 3 -> 4",
        "data.cache: null -> c",
        "training.learning_rate: 0.001 -> 0.002",
        "training.betas: [0.9, 0.98] -> [0.9, 0.99]",
    ]
    other = ["data.train=[{path: a}, {path: b}]", "data.valid=[{path: v}]", "run=no"]
    assert list(diff_configs(old, load_config(tmp_path / "x.yaml", other)).values()) == [
        'run: runs/x -> "no"',
        "data.train: [{demo: en-de, pairs: 3}] -> [{path: a}, {path: b}]",
        "data.valid: [] -> [{path: v}]",
    ]
    assert list(diff_configs(old, load_config(tmp_path / "x.yaml", ["data.train=[{path: a}]"])).values()) == [
        "data.train.0.demo: en-de -> null",
        "data.train.0.pairs: 3 -> null",
        "data.train.0.path: null -> a",
    ]


# --- keys without effect ------------------------------------------------------------------------------------------

ON = {
    "data.reverse": ["data.reverse=true"],
    "decoding.sample": ["decoding.sample=true"],
    "decoding.mbr": ["decoding.mbr=chrf"],
    "decoding.groups": ["decoding.groups=5"],
    "training.schedule": ["training.schedule=cosine", "training.max_steps=2000"],
    "validation.metrics": [],
    "training.simcut": ["training.simcut=3"],
    "data.valid": ["data.valid=[{path: v.tsv}]"],
    "tokenizer.model": ["tokenizer.model=x.model"],
    "tokenizer.src_model": ["tokenizer.src_model=x.model", "tokenizer.tgt_model=y.model"],
}
"""Overrides that switch on what a rule depends on; it is off by default, except `validation.metrics`."""

OTHER_VALUES = {
    "decoding.temperature": 0.5, "decoding.top_k": 5, "decoding.top_p": 0.5, "decoding.epsilon": 0.5,
    "decoding.sample_seed": 5, "decoding.mbr_candidates": 5, "decoding.diversity": 5.0, "decoding.groups": 5,
    "decoding.beam_size": 10, "decoding.stop": "certain", "decoding.coverage_penalty": 0.5,
    "decoding.avoid_loops": "false",
    "training.min_learning_rate": 1e-5, "model.max_positions": 555, "model.max_relative_distance": 5,
    "validation.beam_size": 5, "validation.max_sentences": 5, "validation.patience": 5, "tokenizer.type": "bpe",
    "tokenizer.vocab_size": 555, "tokenizer.character_coverage": 0.95, "tokenizer.byte_fallback": "false",
    "tokenizer.normalization": "nfkc", "tokenizer.user_symbols": "[x]", "tokenizer.training_lines": 5,
    "tokenizer.joint": "false", "data.reverse_epochs": 5, "training.cutoff": 0.1,
}  # fmt: skip


def rules(of: tuple[Rule, ...]) -> list[Any]:
    return [pytest.param(rule, key, id=f"{key} {rule.condition()}") for rule in of for key in rule.keys]


def switched_on(rule: Rule) -> list[str]:
    """Return overrides with which the keys of a rule take effect."""
    return [f"{rule.other}={rule.values[0]}"] if rule.other == "model.positions" else ON[rule.other]


@pytest.mark.parametrize(("rule", "key"), rules(NEEDS))
def test_a_key_without_effect_unless_another_is_on(tmp_path: Path, rule: Rule, key: str) -> None:
    path, override = write(tmp_path, HEAD + "preset: null\n"), f"{key}={OTHER_VALUES[key]}"
    off = ["validation.metrics=[]", "validation.best=loss"] if rule.other == "validation.metrics" else []
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override, *off])
    assert (
        str(caught.value)
        == f"command line: {override}: {key}: has no effect without {rule.condition()} ({rule.hint})"
    )
    load_config(path, [override, *switched_on(rule)])


@pytest.mark.parametrize(("rule", "key"), rules(EXCLUDES))
def test_a_key_without_effect_if_another_is_on(tmp_path: Path, rule: Rule, key: str) -> None:
    path, override = write(tmp_path, HEAD), f"{key}={OTHER_VALUES[key]}"
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override, *ON[rule.other]])
    assert (
        str(caught.value) == f"command line: {override}: {key}: has no effect with {rule.other} ({rule.hint})"
    )


def test_keys_without_effect_are_reported_with_their_lines_and_all_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path, HEAD + "decoding:\n  top_k: 5\n  temperature: 1.0\nmodel:\n  max_positions: 2000\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    first, *others = str(caught.value).split("\n")
    assert first == f"2 problems in {path}"
    assert [line.partition(" has")[0] for line in others] == [
        f"{path}:7: decoding.top_k:", f"{path}:10: model.max_positions:",
    ]  # fmt: skip  # a temperature of 1.0 is the default
    with pytest.raises(ConfigError, match=r"^decoding\.top_k: has no effect without decoding\.sample"):
        parse_config(load_yaml(path).data | {"model": {}})


def test_the_command_line_may_make_keys_of_the_file_ineffective(tmp_path: Path) -> None:
    """Keys of the file then have no effect, as with the options of `mtkit translate` and the model's config."""
    text = (
        "decoding: {beam_size: 3}\ntraining: {schedule: cosine, min_learning_rate: 1e-5, max_steps: 5000}\n"
    )
    path = write(tmp_path, HEAD + text)
    config = load_config(path, ["decoding.sample=true", "training.schedule=constant"])
    assert (config.decoding.sample, config.training.schedule) == (True, "constant")
    with pytest.raises(ConfigError, match=r"^command line: decoding\.beam_size=4: "):
        load_config(path, ["decoding.sample=true", "decoding.beam_size=4"])


def test_a_key_of_the_file_without_effect_because_of_an_override_is_as_if_it_were_not_there(
    tmp_path: Path,
) -> None:
    sizes, override = "tokenizer: {vocab_size: 6000, byte_fallback: false}\n", "tokenizer.model=a.model"
    config = load_config(write(tmp_path, HEAD + sizes), [override])
    assert config == load_config(write(tmp_path, HEAD + "tokenizer: {}\n"), [override])
    assert parse_config(config_to_dict(config)) == config


def test_a_stored_config_may_have_keys_without_effect(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + "training: {min_learning_rate: 1e-5}\ndecoding: {top_k: 5}\n")
    old = load_stored_config(path)
    assert (old.training.min_learning_rate, old.decoding.top_k) == (1e-5, 5)
    assert load_stored_config(write(tmp_path, dump_config(old))) == old


def test_a_resolved_config_loads(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, HEAD + "tokenizer: {byte_fallback: false}\n"))
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_the_schema_describes_every_key() -> None:
    schema: dict[str, Any] = config_schema()
    json.dumps(schema)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["required"] == ["run", "data"]
    assert schema["additionalProperties"] is False
    sections = [section for section in Section.__subclasses__() if section is not Config]
    assert {section.__name__ for section in sections} == set(schema["$defs"])
    for section in sections:
        definition = schema["$defs"][section.__name__]
        assert definition["additionalProperties"] is False
        assert definition["description"] and definition["title"]
        for name, field in section.model_fields.items():
            described = definition["properties"][name]
            assert described["description"] == field.description, name
            assert described["description"] and described["title"], name
            assert field.is_required() or "default" in described, name


def test_the_run_folder_may_start_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    data = {"src": "en", "tgt": "de", "train": [{"src": "a", "tgt": "b"}]}
    assert parse_config({"run": "~/x", "data": data}).run == "/home/somebody/x"
    assert parse_config({"run": "x/~y", "data": data}).run == "x/~y"
    with pytest.raises(ConfigError, match=r"run: no home folder for .~nobody-here.; write \./~nobody-here/x"):
        parse_config({"run": "~nobody-here/x", "data": data})


# Configs that other versions stored


STORED = """\
run: r
data: {src: en, tgt: de, train: [{src: a, tgt: b, path: c}]}
model: {d_model: 30, num_heads: 7}
training: {learning_rate: 1, min_learning_rate: 0.5, betas: [0.8, 0.9], batch_tokens: auto, new: 1}
"""


def test_later_rules_do_not_apply_to_a_stored_config(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(STORED)
    stored = load_stored_config(path, ["training"])
    assert (stored.model.d_model, stored.model.num_heads, stored.model.d_ff) == (30, 7, None)
    assert (stored.training.learning_rate, stored.training.betas) == (1.0, (0.8, 0.9))
    assert stored.data.train[0].path == "c"
    assert stored.decoding == Config.model_validate({"run": "r", "data": stored.data}).decoding
    assert dump_config(stored).startswith("run: r\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("d_model: 30", "d_model: thirty"),
        ("d_model: 30", "activation: snake"),
        ("d_model: 30", "d_modell: 30"),
        ("learning_rate: 1,", "learning_rate: .inf,"),
        ("run: r", "run: [r]"),
        ("run: r", "serving: {port: 80}"),
        ("run: r\n", ""),
        ("data: {", "data: {more: 1, "),
        ("auto", "-1"),
        ("training: {", "training: 7 #"),
    ],
)
def test_unknown_keys_and_values_of_a_stored_config_are_errors(
    tmp_path: Path, before: str, after: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(STORED.replace(before, after))
    with pytest.raises(ConfigError):
        load_stored_config(path, ["training"])


def test_a_default_that_depends_on_the_language_does_not_count_as_set() -> None:
    data = {"src": "en", "tgt": "th", "train": [{"src": "a", "tgt": "b"}]}
    config = parse_config({"run": "r", "data": data, "validation": {"num_samples": 3}})
    assert config.validation.best == "chrf"
    assert config.validation.model_fields_set == {"num_samples"}


def test_metric_names_may_be_upper_case() -> None:
    config = parse_config({
        "run": "x", "data": {**DATA}, "decoding": {"mbr": "chrF"},
        "validation": {"metrics": ["BLEU", "chrF++", "TER"], "best": "TER"},
    })  # fmt: skip
    assert config.validation.metrics == ("bleu", "chrf++", "ter")
    assert (config.validation.best, config.decoding.mbr) == ("ter", "chrf")
    with pytest.raises(ConfigError, match=r"validation.best: expected loss, .* or ter, got 'COMET'"):
        parse_config({"run": "x", "data": {**DATA}, "validation": {"best": "COMET"}})


@pytest.mark.parametrize(
    ("tgt", "metrics", "best"),
    [
        ("de", ["bleu", "chrf"], "bleu"),
        ("de", ["chrf"], "chrf"),
        ("de", ["ter"], "ter"),
        ("de", [], "loss"),
        ("th", ["bleu", "chrf"], "chrf"),
        ("th", ["chrf"], "chrf"),
        ("th", ["bleu"], "bleu"),
    ],
)
def test_the_default_of_best_is_one_of_the_metrics(
    tmp_path: Path, tgt: str, metrics: list[str], best: str
) -> None:
    loaded = load_config(write(tmp_path, HEAD), [f"data.tgt={tgt}", f"validation.metrics={metrics}"])
    assert loaded.validation.best == best
    assert "best" not in loaded.validation.model_fields_set
    again = load_config(write(tmp_path, dump_config(loaded)))
    assert again == loaded


def test_validation_truecases_as_translation_does(tmp_path: Path) -> None:
    for value in (True, False):
        loaded = load_config(write(tmp_path, HEAD), [f"decoding.truecase={value}"])
        assert loaded.validation_decoding.truecase is value


def test_an_override_of_a_section_is_not_the_fault_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + "validation:\n  patience: 3\n")
    load_config(path, ["data={src: en, tgt: de, train: [{demo: en-de, pairs: 50}], valid: []}"])


@pytest.mark.parametrize("number", [10**350, 2**63])
def test_integers_that_no_machine_can_hold(tmp_path: Path, number: int) -> None:
    for key in ("training.max_steps", "model.position_offset", "decoding.mbr_candidates"):
        with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
            load_config(write(tmp_path, "preset: tiny\n" + HEAD), [f"{key}={number}"])
