"""Presets: the table is consistent, keys that are set count more, and auto scales to corpus and machine."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkit.config.loading import (
    config_to_dict,
    dump_config,
    load_config,
    parse_config,
    set_keys,
    with_values,
)
from mtkit.config.presets import (
    AUTO_RANGES,
    PRESETS,
    CorpusSize,
    Machine,
    PresetName,
    choose,
    preset_values,
    round_to_two_digits,
)
from mtkit.config.sections import Config
from mtkit.errors import ConfigError
from mtkit.model.transformer import Transformer

DATA: dict[str, Any] = {"src": "en", "tgt": "de", "train": [{"path": "x.tsv"}], "valid": [{"path": "v.tsv"}]}
HEAD = "run: r\ndata: {src: en, tgt: de, train: [{path: x.tsv}], valid: [{path: v.tsv}]}\n"
LAPTOP = Machine(cores=2, memory=8e9, gpu=None, has_bf16=False)
GPU = Machine(cores=8, memory=4e10, gpu="NVIDIA A100", has_bf16=True)
SIZES = [1, 900, 5_000, 9_999, 29_000, 163_000, 700_000, 4_000_000, 50_000_000]

each_preset = pytest.mark.parametrize("name", PRESETS)


def config(**keys: Any) -> Config:
    return parse_config({"run": "r", "data": DATA, **keys})


def corpus(pairs: int) -> CorpusSize:
    return CorpusSize(pairs, float(pairs), 60.0 * pairs)


def load(folder: Path, text: str, *overrides: str) -> Config:
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    return load_config(folder / "x.yaml", overrides)


# --- the table ----------------------------------------------------------------------------------------------------


@each_preset
def test_a_preset_has_the_values_and_the_parameters_of_its_table(tmp_path: Path, name: PresetName) -> None:
    loaded = config(preset=name)
    for key, value in PRESETS[name].values.items():
        section, _, field = key.partition(".")
        assert getattr(getattr(loaded, section), field) == value, key
    assert set_keys(loaded) == {"init": None}
    vocab_size = -(-loaded.tokenizer.vocab_size // 8) * 8
    with torch.device("meta"):
        model = Transformer(loaded.model, vocab_size, vocab_size)
    assert round(model.num_parameters() / 1e6, 1) == PRESETS[name].parameters
    assert load(tmp_path, dump_config(loaded)) == loaded


def test_every_preset_sets_what_scaling_needs_and_ranges_ascend() -> None:
    needed = {"tokenizer.vocab_size", "training.batch_tokens", "training.max_steps", "training.warmup_steps",
              "training.learning_rate", "validation.every_steps"}  # fmt: skip
    for preset in PRESETS.values():
        assert needed <= preset.values.keys()
    assert [row.max_pairs for row in AUTO_RANGES] == sorted({row.max_pairs for row in AUTO_RANGES})
    assert AUTO_RANGES[-1].max_pairs == math.inf


@pytest.mark.parametrize(
    "machine", [LAPTOP, GPU, replace(LAPTOP, memory=1e9)], ids=["laptop", "gpu", "scarce"]
)
@pytest.mark.parametrize("pairs", SIZES)
def test_auto_gives_a_valid_config_for_any_corpus(pairs: int, machine: Machine) -> None:
    choice = choose(corpus(pairs), machine, {})
    chosen = with_values(config(preset="auto"), choice.preset, choice.values)
    training = chosen.training
    assert chosen.preset == choice.preset
    assert training.max_steps is not None
    assert 1000 <= training.max_steps <= 100_000
    assert 0 < training.warmup_steps <= training.max_steps / 8
    assert 5 <= training.max_steps / chosen.validation.every_steps <= 50
    assert f"for {pairs:,} training pair" in choice.reasons[0]
    assert set_keys(chosen) == {"init": None}


# --- auto ---------------------------------------------------------------------------------------------------------


def test_auto_grows_with_the_corpus() -> None:
    choices = [choose(corpus(pairs), GPU, {}) for pairs in SIZES]
    models = [
        with_values(config(preset="auto"), choice.preset, choice.values).model.d_model for choice in choices
    ]
    assert models == sorted(models)
    assert [choice.preset for choice in choices][-4:] == ["small", "base", "base", "big"]
    vocabularies = [choice.values["tokenizer.vocab_size"] for choice in choices]
    assert vocabularies == sorted(vocabularies)  # type: ignore[type-var]


def test_without_a_gpu_auto_takes_a_model_that_a_cpu_can_train() -> None:
    few, many = (choose(corpus(50_000_000), Machine(cores, 1e12, None, True), {}) for cores in (2, 64))
    assert (few.preset, many.preset) == ("small", "base")
    assert few.reasons[1:3] == [
        "big would suit the corpus but needs a GPU",
        "base would suit the corpus but needs a GPU or 16 cores",
    ]


def test_without_a_gpu_memory_holds_the_gradients_of_all_workers() -> None:
    scarce = Machine(64, 8e9, None, True)
    choice = choose(corpus(900_000), scarce, {"training.workers": 64})
    assert choice.preset == "small"
    assert choice.reasons[1] == "base would suit the corpus but needs 17 GB of memory with 64 workers"
    [_, told, *_] = choose(corpus(900_000), replace(scarce, memory=4e9), {}).reasons
    assert told == "base would suit the corpus but needs 5 GB of memory with 16 workers"
    for machine, chosen in ((scarce, {}), (replace(scarce, memory=4e9), {"training.workers": 8})):
        assert choose(corpus(900_000), machine, chosen).preset == "base"


def test_scarce_memory_splits_batches_and_changes_nothing_else() -> None:
    usual, scarce = (choose(corpus(29_000), replace(LAPTOP, memory=memory), {}) for memory in (8e9, 1e9))
    changed = {
        "training.batch_tokens": "auto",
        "training.update_tokens": usual.values["training.batch_tokens"],
    }
    assert scarce.values == usual.values | changed


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_tokens", 2048), ("accumulate", 2), ("update_tokens", None), ("parallel", "fsdp")],
)
def test_scarce_memory_splits_no_batches_of_a_size_that_is_set(key: str, value: object) -> None:
    chosen = {f"training.{key}": value}
    usual, scarce = (choose(corpus(29_000), replace(LAPTOP, memory=memory), chosen) for memory in (8e9, 1e9))
    assert (scarce.values, scarce.reasons) == (usual.values, usual.reasons)


def test_a_script_of_many_characters_gets_a_larger_vocabulary() -> None:
    size = replace(corpus(4_000), alphabet=2_000)
    usual, choice = choose(corpus(4_000), LAPTOP, {}), choose(size, LAPTOP, {})
    assert usual.values["tokenizer.vocab_size"] == 1000
    assert choice.values["tokenizer.vocab_size"] == 4500
    assert "a vocabulary of 4,500 for 2,000 different characters" in choice.reasons
    for key, value in (("init", "x"), ("tokenizer.model", "x.model"), ("tokenizer.vocab_size", 3000)):
        assert not any(
            "different characters" in reason for reason in choose(size, LAPTOP, {key: value}).reasons
        )


@pytest.mark.parametrize(
    ("lengths", "chosen", "vocab_size", "too_long"),
    [
        ({600: 1000}, {}, 1000, 0),
        ({840: 1000}, {}, 4000, 0),
        ({950: 60, 60: 940}, {}, 8000, 0),
        ({950: 40, 60: 960}, {}, 1000, 0),
        ({1500: 1000}, {}, 1000, 1000),
        ({840: 500, 1500: 500}, {}, 4000, 500),
        ({840: 1000}, {"tokenizer.vocab_size": 1000}, None, 1000),
    ],
)
def test_pairs_are_not_too_long_because_the_vocabulary_is_small(
    lengths: dict[int, int], chosen: dict[str, object], vocab_size: int | None, too_long: int
) -> None:
    characters = float(sum(length * number for length, number in lengths.items()))
    size = CorpusSize(1000, 1000.0, characters, lengths=lengths, max_length=256)
    choice = choose(size, LAPTOP, chosen)
    assert choice.values.get("tokenizer.vocab_size") == vocab_size
    assert sum("would be too long" in reason for reason in choice.reasons) == (vocab_size in (4000, 8000))
    warning = f"about {too_long:,} pairs will be left out: longer than data.max_length 256 (raise it)"
    assert choice.warning == (warning if too_long else None)
    assert (warning in choice.reasons) == (too_long > 0)


def test_pairs_that_are_left_out_take_no_updates() -> None:
    kept = CorpusSize(20_000, 60_000.0, 60_000 * 80.0)
    lengths = {80: 20_000, 3000: 500}
    size = CorpusSize(20_500, 61_500.0, 60_000 * 80.0 + 1500 * 3000.0, lengths=lengths, max_length=256)
    assert size.num_tokens(4000) == pytest.approx(kept.num_tokens(4000))


def test_the_number_of_updates_follows_from_what_is_set() -> None:
    def steps(**chosen: object) -> Any:
        chosen = {f"training.{key}": value for key, value in chosen.items()}
        return choose(corpus(29_000), LAPTOP, chosen).values["training.max_steps"]

    usual = steps()
    assert steps(batch_tokens=2048) == pytest.approx(2 * usual, rel=0.05)
    assert steps(accumulate=2) == pytest.approx(usual / 2, rel=0.05)
    assert steps(update_tokens=8192) == pytest.approx(usual / 2, rel=0.05)
    assert steps(max_epochs=2) < usual / 10
    for machine in (GPU, replace(LAPTOP, memory=2e9)):  # presets with `update_tokens`
        for number in (2, 8):
            values: Any = choose(corpus(900_000), machine, {"training.accumulate": number}).values
            tokens = corpus(900_000).num_tokens(values["tokenizer.vocab_size"])
            assert values["training.max_steps"] == pytest.approx(30 * tokens / (number * 4096), rel=0.05)
    larger = CorpusSize(29_000, 29_000 * 3, 60.0 * 29_000 * 3)  # weights
    assert choose(larger, LAPTOP, {}).values["training.max_steps"] == pytest.approx(3 * usual, rel=0.05)


def test_epochs_with_both_directions_count_twice() -> None:
    def chosen(reversed_epochs: float, **keys: object) -> Any:
        size = replace(corpus(29_000), reversed_epochs=reversed_epochs)
        return choose(size, LAPTOP, {f"training.{key}": value for key, value in keys.items()})

    def steps(reversed_epochs: float, **keys: object) -> Any:
        return chosen(reversed_epochs, **keys).values["training.max_steps"]

    assert steps(math.inf) == pytest.approx(2 * steps(0), rel=0.05)
    assert steps(10) == pytest.approx(steps(0) * 78 / 68, rel=0.05)
    assert steps(5, max_epochs=20) == pytest.approx(steps(0, max_epochs=25), rel=0.05)
    assert steps(50, max_epochs=20) == pytest.approx(steps(0, max_epochs=40), rel=0.05)
    assert (
        chosen(10)
        .reasons[-1]
        .endswith("about 68 epochs of an estimated 120 updates, the first 10 twice as long")
    )
    assert chosen(math.inf).reasons[-1].endswith("about 68 epochs of an estimated 250 updates")


def test_the_length_of_training_is_told() -> None:
    told = choose(corpus(3), GPU, {}).reasons[-1]
    assert told == "1,000 updates, about 1,000 epochs of an estimated 1 update"
    told = choose(corpus(3), GPU, {"training.max_epochs": 20}).reasons[-1]
    assert told == "an estimated 20 updates for 20 epochs"


def test_numbers_are_rounded_to_two_digits() -> None:
    assert [round_to_two_digits(number) for number in (0.2, 7, 12.4, 99.6, 128, 38_512, 32_000)] == [
        1, 7, 12, 100, 130, 39_000, 32_000,
    ]  # fmt: skip


# --- defaults < preset < YAML < key=value -------------------------------------------------------------------------


def test_a_file_without_sizes_has_preset_auto_and_one_with_them_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, HEAD).preset == "auto"
    assert load(tmp_path, HEAD + "validation: {num_samples: 1}\ndecoding: {beam_size: 2}\n").preset == "auto"
    assert load(tmp_path, HEAD, "training.max_steps=200", "model.dropout=0.2").preset == "auto"
    assert load(tmp_path, HEAD, "preset=null") == config()
    for section in ("model: {dropout: 0.2}", "training:", "tokenizer: {}", "init: x"):
        loaded = load(tmp_path, f"{HEAD}{section}\n")
        assert (loaded.preset, loaded.model.d_model, loaded.training.optimizer) == (None, 256, "adamw")
    assert config().preset is None


def test_what_is_set_counts_more_than_the_preset(tmp_path: Path) -> None:
    text = HEAD + "preset: tiny\nmodel: {dropout: 0.15, num_heads: 2}\n"
    loaded = load(tmp_path, text, "model.num_heads=8", "decoding.beam_size=3")
    assert (loaded.model.dropout, loaded.model.num_heads, loaded.decoding.beam_size) == (0.15, 8, 3)
    assert loaded.model.d_ff == PRESETS["tiny"].values["model.d_ff"]
    expected = {"init": None, "model.dropout": 0.15, "model.num_heads": 8, "decoding.beam_size": 3}
    assert set_keys(loaded) == expected
    assert load(tmp_path, text, "preset=small").model.d_ff == PRESETS["small"].values["model.d_ff"]


def test_fewer_updates_warm_up_and_validate_accordingly(tmp_path: Path) -> None:
    values = PRESETS["tiny"].values
    loaded = load(tmp_path, HEAD + "preset: tiny\n", "training.max_steps=200")
    assert (loaded.training.max_steps, loaded.training.warmup_steps) == (200, 25)
    num_validations = values["training.max_steps"] / values["validation.every_steps"]  # type: ignore[operator]
    assert loaded.validation.every_steps == 200 / num_validations
    longer = load(tmp_path, HEAD + "preset: tiny\n", "training.max_steps=50000", "validation.every_steps=7")
    assert longer.training.warmup_steps == values["training.warmup_steps"]
    assert longer.validation.every_steps == 7


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.lora={rank: 4}", "init=x"], {"training.optimizer": "adamw"}),
        (["training.lora=null"], {"training.optimizer": PRESETS["small"].values["training.optimizer"]}),
        (["training.parallel=fsdp"], {"training.optimizer": "adamw"}),
        (["training.schedule=noam"], {"training.learning_rate": 2.0}),
        (["training.min_learning_rate=0.0015"], {"training.schedule": "cosine"}),
        (["tokenizer.model=x.model"], {"tokenizer.vocab_size": 8000}),
        (["model.d_model=150"], {"model.num_heads": None}),
        (["model.d_model=160"], {"model.num_heads": 4}),
        (["decoding.sample=true"], {"decoding.beam_size": 5}),
        (["init=x"], {"model.d_ff": None, "tokenizer.vocab_size": 8000, "training.schedule": "cosine"}),
        (["preset=base", "training.parallel=fsdp"], {"training.batch_tokens": 4096}),
        (["preset=base", "training.accumulate=2"],
         {"training.batch_tokens": 4096, "training.update_tokens": None}),
        (["preset=base", "training.update_tokens=5000"], {"training.batch_tokens": "auto"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_values_of_the_preset_make_way_for_keys_that_exclude_them(
    tmp_path: Path, overrides: list[str], expected: dict[str, object]
) -> None:
    loaded = load(tmp_path, HEAD + "preset: small\n", *overrides)
    for key, value in expected.items():
        section, _, field = key.partition(".")
        assert getattr(getattr(loaded, section), field) == value, key
    assert load(tmp_path, dump_config(loaded)) == loaded


def test_a_config_that_is_still_to_be_chosen_stays_so(tmp_path: Path) -> None:
    loaded = load(tmp_path, HEAD, "training.max_steps=200")
    again = load(tmp_path, dump_config(loaded))
    assert (again, set_keys(again)) == (loaded, {"init": None, "training.max_steps": 200})
    again = parse_config(config_to_dict(loaded))
    assert (again, set_keys(again)) == (loaded, {"init": None, "training.max_steps": 200})


def test_a_mistake_is_reported_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, HEAD + "preset: smal\n")
    assert str(caught.value).endswith(
        "x.yaml:3: preset: expected auto, tiny, small, base, big or student, got 'smal' (did you mean small?)"
    )
    for wrong in ("training.max_steps=x", "training.max_steps=true", "tokenizer.vocab_size=-1", "model=3"):
        with pytest.raises(ConfigError, match=f"command line: {wrong}"):
            load(tmp_path, HEAD + "preset: tiny\n", wrong)
    with pytest.raises(
        ConfigError,
        match=r"command line: model\.d_model=91: model: sinusoidal positions need an even d_model",
    ):
        load(tmp_path, HEAD, "model.d_model=91")


def test_the_length_of_a_cosine_is_known_from_the_time_limit(tmp_path: Path) -> None:
    limited = config(training={"schedule": "cosine", "time_limit_minutes": 3})
    assert limited.training.max_steps is None
    with pytest.raises(ConfigError, match="schedule cosine needs max_steps"):
        config(training={"schedule": "cosine", "max_epochs": 3})


def test_nothing_is_refused_that_suits_what_auto_chooses(tmp_path: Path) -> None:
    waiting = load(
        tmp_path, HEAD, "training.warmup_steps=8000", "model.alignment_layer=6", "model.num_kv_heads=8"
    )
    choice = choose(corpus(4_000_000), GPU, set_keys(waiting))
    chosen = with_values(waiting, choice.preset, choice.values)
    assert (chosen.training.warmup_steps, chosen.model.alignment_layer) == (8000, 6)
    assert (chosen.model.num_heads, chosen.model.num_kv_heads) == (8, 8)
    choice = choose(corpus(900), LAPTOP, set_keys(waiting))
    with pytest.raises(ConfigError, match="warmup_steps 8000 must be less than max_steps 1000"):
        with_values(config(preset="auto", training={"warmup_steps": 8000}), choice.preset, choice.values)


@each_preset
def test_preset_values_leave_out_what_is_set(name: PresetName) -> None:
    assert "model.dropout" not in preset_values(name, {"model.dropout": 0.5})
