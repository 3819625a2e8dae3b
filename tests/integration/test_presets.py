"""Preset auto and time limits in whole runs: what is chosen once is stored, told, and kept when a run is resumed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny

import mtkit.training.preset as choosing
from mtkit.config.loading import config_to_dict, load_config, load_stored_config, parse_config, set_keys
from mtkit.config.presets import AUTO_RANGES, PRESETS, Choice
from mtkit.data.sentencepiece_training import train_sentencepiece
from mtkit.errors import ConfigError
from mtkit.training.distributed import World
from mtkit.training.forecast import Speed
from mtkit.training.preset import choose_values
from mtkit.training.resume import keep_choices
from mtkit.training.run import train

DATA = """\
run: run
data: {src: en, tgt: fr, train: [{src: train.src, tgt: train.tgt}], valid: [{src: valid.src, tgt: valid.tgt}],
  test: [{src: test.src, tgt: test.tgt}]}
"""
SMALL = [
    "model.d_model=16", "model.num_heads=2", "model.encoder_layers=1", "model.decoder_layers=1", "model.d_ff=16",
    "tokenizer.vocab_size=96", "tokenizer.byte_fallback=false", "training.num_threads=1",
    "decoding.max_length_ratio=0", "decoding.max_length_extra=1", "validation.metrics=[]", "validation.best=loss",
]  # fmt: skip
BARE = [*SMALL[:8], "data.valid=[]", "data.test=[]", "training.report=false"]
"""Nothing is validated or scored."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.write_corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTKIT_CACHE", str(tmp_path / "cache"))
    Path("my.yaml").write_text(DATA, encoding="utf-8")
    return tmp_path


def another_choice(*_: Any) -> Choice:
    return Choice("big", 1, {"model.dropout": 0.77, "training.warmup_steps": 1}, ["big for a change"])


def test_run_and_data_alone_train_and_a_resumed_run_keeps_what_was_chosen(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ["training.max_steps=16", "training.log_every_steps=8"]
    code, out, err = tiny.mtkit("train", "my.yaml", *SMALL, *limits)
    assert (code, err) == (0, "")
    assert "choice     preset auto: tiny for 400 training pairs on 1 CPU core" in out
    assert "model.d_model 16" in out and "step 16 is the last" in out
    stored = load_stored_config(Path("run/config.yaml"))
    expected = PRESETS["tiny"].values | AUTO_RANGES[0].changes
    assert stored.preset == "tiny"
    assert (stored.training.max_steps, stored.training.warmup_steps) == (16, 2)
    assert stored.model.dropout == expected["model.dropout"]
    assert stored.training.optimizer == expected["training.optimizer"]
    choices = json.loads(Path("run/facts.json").read_bytes())["choices"]
    assert choices[0].startswith("preset auto: tiny for 400 training pairs")
    assert choices[0] in Path("run/README.md").read_text("utf-8")
    assert choices[0] in Path("run/report.html").read_text("utf-8")

    monkeypatch.setattr(choosing, "choose", another_choice)
    code, out, err = tiny.mtkit("train", "my.yaml", "training.max_steps=24", *SMALL)
    assert (code, err) == (0, "")
    assert "preset auto: the values that the run began with" in out and "step 24 is the last" in out
    after = load_stored_config(Path("run/config.yaml"))
    assert (after.preset, after.training.warmup_steps) == ("tiny", 2)
    assert after.model == stored.model
    assert json.loads(Path("run/facts.json").read_bytes())["choices"] == choices
    code, _, err = tiny.mtkit("train", "my.yaml", "model.dropout=0.5", *SMALL)
    assert code == 2
    assert "model.dropout" in tiny.one_line(err) and "has changed since the last checkpoint" in err
    Path("my.yaml").write_text(DATA + "model: {norm: rmsnorm}\n", encoding="utf-8")
    code, _, err = tiny.mtkit("train", "my.yaml", *SMALL)
    assert code == 2
    assert "the run began with preset tiny: write `preset: auto` into the config" in tiny.one_line(err)


def test_a_preset_that_another_version_changed_does_not_change_a_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("my.yaml", ["preset=tiny", "training.max_steps=1", *BARE])
    train(config)
    monkeypatch.setitem(PRESETS["tiny"].values, "model.dropout", 0.77)
    train(load_config("my.yaml", ["preset=tiny", "training.max_steps=2", *BARE]))
    assert load_stored_config(Path("run/config.yaml")).model.dropout == config.model.dropout
    with pytest.raises(ConfigError, match=r"training\.optimizer"):
        train(load_config("my.yaml", ["preset=base", "training.max_steps=2", *BARE]))


def test_with_more_epochs_a_resumed_run_has_as_many_more_updates(here: Path) -> None:
    keys = ["preset=tiny", "training.max_epochs=5"]
    began, resumed = (load_config("my.yaml", [*keys, f"training.max_epochs={number}"]) for number in (5, 10))
    began = began.model_copy(
        update={"training": began.training.model_copy(update={"max_steps": 70, "warmup_steps": 8})}
    )
    assert keep_choices(began, resumed).training.max_steps == 140
    assert keep_choices(began, began).training.max_steps == 70


@pytest.mark.parametrize("limit", ["training.max_epochs=2", "training.time_limit_minutes=9"])
def test_a_limit_that_is_left_out_ends_no_resumed_run(here: Path, limit: str) -> None:
    began, resumed = (
        load_config("my.yaml", ["preset=tiny", key]) for key in (limit, "training.max_steps=60")
    )
    began = began.model_copy(
        update={"training": began.training.model_copy(update={"max_steps": 46, "warmup_steps": 8})}
    )
    limits = keep_choices(began, resumed).training
    assert (limits.max_steps, limits.max_epochs, limits.time_limit_minutes) == (60, None, None)


def test_a_limit_stays_if_none_is_set(here: Path) -> None:
    keys = ["preset=tiny", "training.max_epochs=2", "training.time_limit_minutes=9"]
    resumed = keep_choices(load_config("my.yaml", keys), load_config("my.yaml", ["preset=tiny"]))
    assert (resumed.training.max_epochs, resumed.training.time_limit_minutes) == (2, 9)


def test_a_run_from_before_presets_keeps_the_defaults_it_began_with(here: Path) -> None:
    train(load_config("my.yaml", ["preset=null", "training.max_steps=1", *BARE]))
    train(load_config("my.yaml", ["training.max_steps=2", *BARE]))
    stored = load_stored_config(Path("run/config.yaml"))
    assert (stored.preset, stored.training.optimizer, stored.training.max_steps) == (None, "adamw", 2)


def test_only_usable_pairs_count(here: Path) -> None:
    pairs = tiny.pairs(50, 1)
    tiny.write_lines(here / "train.src", [" ", "x" * 300, *(src for src, _ in pairs)])
    tiny.write_lines(here / "train.tgt", ["x", "x", *(tgt for _, tgt in pairs)])
    config = load_config("my.yaml", ["data.max_length=2"])
    assert "for 50 training pairs" in choose_values(config)[1][0]
    config = load_config("my.yaml", ["data.drop_duplicates=true"])
    assert f"for {1 + len(set(pairs))} training pairs" in choose_values(config)[1][0]


def test_a_letterless_script_has_more_tokens(here: Path) -> None:
    lengths = []
    for text in ("abcde" * 8, "日本語文書" * 8):
        for side in ("src", "tgt"):
            tiny.write_lines(here / f"train.{side}", [text] * 3000)
        config, _ = choose_values(load_config("my.yaml"))
        assert config.training.max_steps is not None
        lengths.append(config.training.max_steps)
    assert lengths[1] > 1.8 * lengths[0]


def test_pairs_that_are_too_long_are_known_by_their_characters(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side, text in (("src", "ab " * 40), ("tgt", "日本語文書" * 60)):
        tiny.write_lines(here / f"train.{side}", [text] * 300)
    monkeypatch.setattr("mtkit.translation.options._PROGRESS_SECONDS", -1.0)
    said: list[str] = []
    size = choosing.measure_corpus(load_config("my.yaml", ["data.max_length=128"]).data, said.append)
    assert len(said) == 1 and said[0].startswith("counting training pairs: 300 lines, ")
    assert (size.lengths, size.max_length) == ({750: 300}, 128)
    code, out, _ = tiny.mtkit("init", "train.src", "train.tgt", "--src", "en", "--tgt", "ja", "-o", "x.yaml")
    assert (code, "will be left out" in out) == (0, False)
    tiny.write_lines(here / "train.src", ["ab " * 400] * 300)
    _, out, _ = tiny.mtkit("init", "train.src", "train.tgt", "--src", "en", "--tgt", "ja", "-o", "y.yaml")
    assert "about 300 pairs will be left out: longer than data.max_length 256 (raise it)" in out


def test_updates_are_estimated_with_the_vocabulary_that_is_given(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [" ".join(pair) for pair in tiny.pairs(400, 1)]
    tokenizer = load_config("my.yaml", ["tokenizer.vocab_size=48", "tokenizer.byte_fallback=false"]).tokenizer
    Path("x.model").write_bytes(train_sentencepiece(lines, tokenizer, "nmt_nfkc"))
    seen: list[object] = []
    monkeypatch.setattr(choosing, "choose", lambda *given: seen.append(given[2]) or another_choice())
    choosing.choose_for(load_config("my.yaml", ["tokenizer.model=x.model"]))
    assert seen[0]["tokenizer.vocab_size"] == 48  # type: ignore[index]


def test_the_vocabulary_is_large_enough_for_the_characters(here: Path) -> None:
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 1400)]
    lines = ["".join(characters[first::100]) for first in range(100)] * 3
    for side in ("src", "tgt"):
        tiny.write_lines(here / f"train.{side}", lines)
    config, reasons = choose_values(load_config("my.yaml"))
    assert config.tokenizer.vocab_size == 3300
    assert "a vocabulary of 3,300 for 1,400 different characters" in reasons
    train_sentencepiece(lines, config.tokenizer, "nmt_nfkc")
    with pytest.raises(ConfigError, match="too few for the characters"):
        train_sentencepiece(lines, config.tokenizer.model_copy(update={"vocab_size": 1000}), "nmt_nfkc")


def test_config_show_and_check_tell_the_choice(here: Path) -> None:
    code, out, err = tiny.mtkit("config", "show", "my.yaml", *SMALL)
    assert (code, err) == (0, "")
    first, second, *_ = out.split("\n")
    assert first.startswith("# preset auto: tiny for 400 training pairs on 1 CPU core with")
    assert second.startswith("# 1,000 updates, about")
    Path("shown.yaml").write_text(out, encoding="utf-8")
    assert load_config("shown.yaml").training.max_steps == 1000
    code, out, err = tiny.mtkit("check", "my.yaml", *SMALL)
    assert (code, err) == (0, "")
    assert f"choice     {first[2:]}" in out
    assert "1,000 updates are" in out
    assert not Path("run").exists()
    code, _, err = tiny.mtkit("config", "show", "my.yaml", "data.train.0.src=none")
    assert (code, "no such file" in tiny.one_line(err)) == (3, True)


def test_a_key_without_effect_is_no_choice_of_the_config(here: Path) -> None:
    values = {"preset": "tiny", "tokenizer": {"model": "x", "vocab_size": 8000}, "training": {"max_steps": 5}}
    config = parse_config({**config_to_dict(load_config("my.yaml")), **values})
    assert choose_values(config)[1] == ["preset tiny", "as the config says, training.max_steps 5"]


def test_other_processes_take_what_the_main_one_chose(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines may differ, so each process would choose other sizes."""
    import mtkit.training.run as run

    Path("run").mkdir()
    config = load_config("my.yaml", SMALL)
    first, reasons = run._choose(config, World(0, 2, 0), print)
    monkeypatch.setattr(choosing, "choose", another_choice)
    second, others = run._choose(config, World(1, 2, 1), print)
    assert (second, others) == (first, [])
    assert first.preset == "tiny" and reasons


# --- epochs and time limit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [[], ["data.reverse=true", "data.reverse_epochs=1"]])
def test_a_preset_ends_with_the_epochs_that_are_set(here: Path, keys: list[str]) -> None:
    epochs = ["training.max_epochs=3", "training.batch_tokens=256"]
    code, out, err = tiny.mtkit("train", "my.yaml", *BARE, *epochs, *keys)
    assert (code, err) == (0, "")
    training = load_stored_config(Path("run/config.yaml")).training
    steps = training.max_steps
    assert steps is not None and training.warmup_steps == steps // 8
    state = json.loads((tiny.checkpoint(Path("run"), steps) / "state.json").read_text())
    in_first = int(re.search(r"batches +(\d+) an epoch", out)[1])  # type: ignore[index]
    assert (state["epoch"], steps) == (2, in_first + 2 * state["batch"])
    assert f"{steps} updates for 3 epochs of the encoded pairs" in out


def test_config_show_leaves_the_number_of_updates_to_the_time_limit(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "_measure", lambda *_: (Speed(1.0, 5, 0.0), 400))
    limit = ["preset=tiny", "training.time_limit_minutes=10"]
    code, out, _ = tiny.mtkit("config", "show", "my.yaml", *limit)
    assert code == 0
    Path("shown.yaml").write_text(out, encoding="utf-8")
    for loaded in (load_config("my.yaml", limit), load_config("shown.yaml")):
        assert loaded.training.ends_with_time and loaded.training.max_steps == 9500
        found, _ = choosing.fit_into_time(loaded, None)  # type: ignore[arg-type]
        assert (found.training.max_steps, found.training.warmup_steps) == (400, 50)
        assert found.validation.every_steps == 20


@pytest.mark.parametrize("preset", ["tiny", "auto"])
def test_config_show_leaves_the_number_of_updates_to_the_epochs(here: Path, preset: str) -> None:
    code, out, _ = tiny.mtkit("config", "show", "my.yaml", f"preset={preset}", "training.max_epochs=3")
    assert code == 0
    Path("shown.yaml").write_text(out, encoding="utf-8")
    shown = set_keys(load_config("shown.yaml"))
    assert "training.max_epochs" in shown
    assert shown.keys().isdisjoint(["training.max_steps", "training.warmup_steps", "validation.every_steps"])


@pytest.mark.parametrize("updates", ["", "max_steps: null, "])
def test_a_schedule_ends_with_the_time_limit(
    here: Path, monkeypatch: pytest.MonkeyPatch, updates: str
) -> None:
    """Of 60 s, 97 % are for updates of 2 s and, every 7 updates, a validation of 1 s."""
    monkeypatch.setattr(choosing, "measure_speed", lambda trainer: Speed(2.0, 5, 1.0))
    text = tiny.CONFIG.format(run="run", root=".").replace("max_steps: 40, ", f"schedule: cosine, {updates}")
    Path("timed.yaml").write_text(text, encoding="utf-8")
    limit = ["training.time_limit_minutes=1", "validation.every_steps=7", *BARE[-3:]]
    result = train(load_config("timed.yaml", limit))
    assert result.step == int(58.2 / (2 + 1 / 7)) == 27
    assert result.reason == "step 27 is the last"
    stored = load_stored_config(Path("run/config.yaml"))
    assert (stored.training.max_steps, stored.training.warmup_steps) == (27, 10)
    lines = Path("run/metrics.jsonl").read_text("utf-8").split("\n")
    rates = [record["lr"] for record in map(json.loads, filter(None, lines)) if record["kind"] == "train"]
    assert len(rates) == 27 and rates[-1] == pytest.approx(0, abs=1e-12) and max(rates) == rates[9]
    choices = json.loads(Path("run/facts.json").read_bytes())["choices"]
    assert choices == ["in 1 minute there is time for 27 updates: 2 s each, and validations of 1 s"]

    monkeypatch.setattr(choosing, "measure_speed", lambda trainer: Speed(1.0, 5, 1.0))
    result = train(load_config("timed.yaml", limit))
    assert result.step == 27


def test_a_warm_up_that_is_not_set_becomes_shorter_and_one_that_is_set_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "measure_speed", lambda trainer: Speed(2.0, 5, 0.0))
    text = tiny.CONFIG.format(run="run", root=".").replace("max_steps: 40, ", "schedule: linear, ")
    Path("timed.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        train(
            load_config(
                "timed.yaml", ["training.time_limit_minutes=1", "training.warmup_steps=50", *BARE[-3:]]
            )
        )
    assert str(caught.value) == (
        "training.warmup_steps: 50 updates of warm-up, but in 1 minute there is time for only 29 "
        "(lower it, or raise training.time_limit_minutes)"
    )
    assert not Path("run/checkpoints").exists()
    Path("timed.yaml").write_text(text.replace("warmup_steps: 10, ", ""), encoding="utf-8")
    train(load_config("timed.yaml", ["training.time_limit_minutes=1", *BARE[-3:]]))
    training = load_stored_config(Path("run/config.yaml")).training
    assert (training.max_steps, training.warmup_steps) == (29, 3)


@pytest.mark.parametrize("keys", [[], ["data.reverse=true"], ["data.train.0.weight=1.5"]])
def test_a_time_limit_is_no_longer_than_the_epochs_that_are_set(
    here: Path, monkeypatch: pytest.MonkeyPatch, keys: list[str]
) -> None:
    monkeypatch.setattr(choosing, "measure_speed", lambda trainer: Speed(0.001, 5, 0.0))
    text = tiny.CONFIG.format(run="run", root=".").replace(
        "max_steps: 40, ", "max_epochs: 2, schedule: constant, "
    )
    Path("timed.yaml").write_text(text.replace("warmup_steps: 10, ", "warmup_steps: 1, "), encoding="utf-8")
    train(load_config("timed.yaml", [*keys, *BARE[-3:]]))
    steps = json.loads(Path("run/results.json").read_text())["step"]
    limits = ["training.time_limit_minutes=60", "training.schedule=linear", "run=limited"]
    train(load_config("timed.yaml", [*keys, *limits, *BARE[-3:]]))
    assert load_stored_config(Path("limited/config.yaml")).training.max_steps == steps


@pytest.mark.parametrize(
    ("minutes", "update", "validation", "steps", "every"),
    [
        (100, 1.0, 0.0, 1000, 50),
        (10, 1.0, 0.0, 582, 29),
        (10, 1.0, 10.0, 442, 32),
        (1, 0.125, 0.1, 449, 22),
        (10, 1.0, 200.0, 382, 382),
        (10, 1.0, 500.0, 145, 146),
    ],
)
def test_with_a_preset_the_time_limit_shortens_training(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    minutes: float,
    update: float,
    validation: float,
    steps: int,
    every: int,
) -> None:
    """The number of validations stays, unless they took more than a quarter of the time; one there always is."""
    monkeypatch.setattr(choosing, "_measure", lambda *_: (Speed(update, 5, validation), 1000))
    config, _ = choose_values(load_config("my.yaml", [f"training.time_limit_minutes={minutes}"]))
    assert (config.training.max_steps, config.validation.every_steps) == (1000, 50)
    config, [sentence] = choosing.fit_into_time(config, None)  # type: ignore[arg-type]
    assert (config.training.max_steps, config.validation.every_steps) == (steps, every)
    assert config.training.warmup_steps == min(125, steps // 8)
    assert ("more than enough" in sentence) == (steps == 1000)
    assert f"validations of {validation:g} s" in sentence or not validation


def test_with_a_preset_validations_that_are_set_take_their_time_too(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "_measure", lambda *_: (Speed(1.0, 5, 10.0), 1000))
    limited = load_config("my.yaml", ["training.time_limit_minutes=10", "validation.every_steps=5"])
    config, _ = choosing.fit_into_time(choose_values(limited)[0], None)  # type: ignore[arg-type]
    assert config.validation.every_steps == 5
    assert config.training.max_steps == int(0.97 * 600 / (1 + 10 / 5))
