"""Data diversification: the configs of its models, and the union of what they translate."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import tiny
from rich.console import Console

from mtkit.config.loading import config_to_dict, load_config, parse_config
from mtkit.data.readers import Pair
from mtkit.errors import ConfigError
from mtkit.pipelines.corpora import NewPairs, read_corpus, write_corpora
from mtkit.pipelines.diversification import DIRECTIONS, Diversification
from mtkit.pipelines.diversification_stages import copy_corpora, make_shared_tokenizers, unite_corpora
from mtkit.pipelines.stages import Context


def plan(tmp_path: Path, *overrides: str, **changes: Any) -> Diversification:
    path = tiny.write_config(tmp_path / "c.yaml", run=tmp_path / "run", root=tmp_path)
    config = load_config(path, overrides)
    return Diversification(config, config, **changes)


def test_backward_models_have_everything_exchanged(tmp_path: Path) -> None:
    made = plan(
        tmp_path, "data.train=[{src: a, tgt: b, tag: <x>, weight: 2.0}]", "tokenizer.user_symbols=[<x>]",
        "decoding.suppress=[„]", "tokenizer.joint=false", "model.tie_embeddings=two-way",
    )  # fmt: skip
    forward, backward = (made.helper_config(direction, 1, 0) for direction in DIRECTIONS)
    assert (forward.data.src, forward.data.tgt) == ("en", "fr") == (backward.data.tgt, backward.data.src)
    assert forward.run == f"{tmp_path}/run.stages/forward-2" and backward.run.endswith("backward-2")
    assert forward.seed == backward.seed == made.config.seed + 1000
    [entry], [exchanged] = forward.data.train, backward.data.train
    assert entry.src is not None and entry.src.endswith("run.stages/corpora/train-0.src")
    assert (exchanged.src, exchanged.tgt) == (entry.tgt, entry.src)
    assert (entry.tag, exchanged.tag) == ("<x>", None)
    assert entry.weight == exchanged.weight == 2.0
    assert forward.tokenizer.src_model == backward.tokenizer.tgt_model
    assert forward.tokenizer.tgt_model == backward.tokenizer.src_model
    assert backward.decoding.suppress == () and forward.decoding.suppress == ("„",)
    assert not forward.data.test and len(backward.data.valid) == 1


def test_metrics_fit_the_language_that_a_model_writes(tmp_path: Path) -> None:
    made = plan(tmp_path, "data.src=th", "validation.metrics=[bleu, chrf]", "validation.bleu_tokenizer=13a")
    backward = made.helper_config("backward", 0, 0)
    assert (made.config.validation.best, backward.validation.best) == ("bleu", "chrf")
    assert backward.validation.bleu_tokenizer is None
    chosen = plan(tmp_path, "validation.metrics=[bleu, chrf]", "validation.best=chrf")
    assert chosen.helper_config("backward", 0, 0).validation.best == "chrf"


def test_the_final_model_learns_from_the_corpora_and_their_translations(tmp_path: Path) -> None:
    made = plan(tmp_path, "data.train=[{src: a, tgt: b}, {path: c.tsv, weight: 0.5}]", num_rounds=2)
    final = made.final_config({"pairs": {"train-0": 0, "train-1": 1234}})
    assert final.run == made.config.run and final.seed == made.config.seed
    assert final.data.train[:2] == made.config.data.train
    [added] = final.data.train[2:]
    assert added.weight == 0.5 and added.src is not None and "union-2/train-1.src" in added.src
    assert added.synthetic is not None
    assert added.synthetic.startswith("1,234 pairs translated by 3 forward and 3 backward models in 2 rounds")
    assert final.data.test == made.config.data.test
    later = made.helper_config("forward", 0, 1)
    assert later.seed == made.config.seed + 3000 and len(later.data.train) == 4
    assert len(made.efforts) == 3 + 2 * (2 * 3 * 2 + 1) + 1


def test_what_has_one_direction_only_is_refused(tmp_path: Path) -> None:
    made = plan(tmp_path, "training.distillation.teacher=[runs/big]")
    with pytest.raises(ConfigError, match=r"training.distillation: cannot be used with diversification"):
        made.check()
    values = config_to_dict(plan(tmp_path).config) | {"init": "runs/other"}
    values["tokenizer"], values["model"] = {}, {}
    with pytest.raises(ConfigError, match="init: cannot be used"):
        replace(made, config=parse_config(values)).check()


@pytest.mark.parametrize(
    ("key", "final", "helpers"),
    [
        ("data.train", [], ["data.train=[{src: valid.src, tgt: valid.tgt}]"]),
        ("data.valid", ["data.valid=[]"], []),
        ("data.root", [], ["data.root=/"]),
        ("tokenizer.joint", ["tokenizer.joint=false"], []),
        ("tokenizer.vocab_size", [], ["tokenizer.vocab_size=50"]),
    ],
)
def test_what_all_models_share_is_refused_for_some(
    tmp_path: Path, key: str, final: list[str], helpers: list[str]
) -> None:
    tiny.write_corpus(tmp_path)
    made = replace(plan(tmp_path, *final), helpers=plan(tmp_path, *helpers).config)
    with pytest.raises(ConfigError, match=f"{key}: it is the same for all models"):
        made.check()


def test_helpers_may_have_no_validation_another_preset_and_other_samples_of_subwords(tmp_path: Path) -> None:
    tiny.write_corpus(tmp_path)
    text = tiny.read_lines(tiny.write_config(tmp_path / "c.yaml", run=tmp_path / "run", root=tmp_path))
    path = tiny.write_lines(tmp_path / "no.yaml", [line for line in text if not line.startswith("tokenizer")])
    final, helpers = (load_config(path, [f"preset={name}"]) for name in ("base", "tiny"))
    assert final.tokenizer.vocab_size != helpers.tokenizer.vocab_size
    Diversification(final, helpers).check()
    changes = ("data.valid=[]", "tokenizer.bpe_dropout=0.1")
    replace(plan(tmp_path), helpers=plan(tmp_path, *changes).config).check()


@pytest.mark.parametrize(("num_rounds", "times"), [(1, 2 + 5), (2, 2 + 10 + 9)])
def test_the_disk_of_encoded_pairs_is_forecast(
    tmp_path: Path, num_rounds: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTKIT_CACHE", str(tmp_path / "cache"))
    made = plan(tmp_path, num_models=2, num_rounds=num_rounds)
    speed = {"training_seconds": 1.0, "seconds_per_pair": None, "disk": 0}
    *_, line = made._forecast(speed, {"pairs": {"train-0": 9}, "bytes": 10**9})
    assert f"{times}.0 GB of encoded pairs in {tmp_path / 'cache'}" in line
    text = 1 + 2 * 4 * num_rounds
    assert line.startswith(f"at most {text + times}.0 GB of disk: ")


def test_copying_reports_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtkit.translation.options._PROGRESS_SECONDS", -1.0)
    tiny.write_corpus(tmp_path)
    told = io.StringIO()
    pairs = copy_corpora(plan(tmp_path)._copy().settings, Context(Console(file=told)))["pairs"]
    assert told.getvalue().count("copying: ") == sum(number // 100 for number in pairs.values()) > 0


def test_shared_corpora_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtkit.training import inputs, preset

    tiny.write_corpus(tmp_path)
    measure, make = Mock(side_effect=preset.measure_corpus), Mock()
    make.return_value.save = lambda folder: None
    monkeypatch.setattr(preset, "measure_corpus", measure)
    monkeypatch.setattr(inputs, "cached_tokenizers", make)
    made = plan(tmp_path, "preset=auto")
    helpers = made.helpers.model_copy(update={"data": made.helpers.data.model_copy(update={"valid": ()})})
    copy_corpora(made._copy().settings, Context(Console(quiet=True)))
    settings = replace(made, helpers=helpers)._tokenizers().settings
    found = make_shared_tokenizers(settings, Context(Console(quiet=True)))
    assert measure.call_count == 1
    assert found["choices"] and found["choices_of_helpers"]


def test_only_new_pairs_are_added_and_each_once(tmp_path: Path) -> None:
    corpora = tmp_path / "corpora"
    write_corpora(
        corpora, [("train-0", iter([Pair("a", "A"), Pair("a", "A")])), ("train-1", iter([Pair("b", "B\r")]))]
    )
    assert list(read_corpus(corpora, "train-0")) == [("a", "A"), ("a", "A")]  # its own duplicates stay
    for model, lines in (("forward", "a\tA\na\tAA\nb\tB\n"), ("backward", "aa\tA\n a\tAA \nb\tB\n")):
        (tmp_path / model).mkdir()
        (tmp_path / model / "train-0.tsv").write_text(lines, encoding="utf-8")
        (tmp_path / model / "train-1.tsv").write_text("", encoding="utf-8")
    write_corpora(
        tmp_path / "union-1", [("train-0", iter([Pair("c", "C")])), ("train-1", iter([Pair("a", "AA")]))]
    )
    settings = {
        "corpora": str(corpora), "names": ["train-0", "train-1"], "folder": str(tmp_path / "union-2"),
        "earlier": [str(tmp_path / "union-1")], "translations": [str(tmp_path / "forward"), str(tmp_path / "backward")],
    }  # fmt: skip
    found = unite_corpora(settings, Context(None))  # type: ignore[arg-type]
    assert found == {"pairs": {"train-0": 3, "train-1": 0}, "translations": {"train-0": 6}}
    assert list(read_corpus(tmp_path / "union-2", "train-0")) == [("c", "C"), ("a", "AA"), ("aa", "A")]


def test_many_pairs_are_looked_up_in_chunks() -> None:
    new = NewPairs()
    assert len(list(new.of(Pair(str(i % 15_000), "x") for i in range(40_000)))) == 15_000
    assert not list(new.of([Pair("3", "x")]))
