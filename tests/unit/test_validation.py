"""Validation: its search is its own, whatever search the finished model uses."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch

from mtkit.config.loading import parse_config
from mtkit.config.sections import Config
from mtkit.data.readers import Pair
from mtkit.data.tokenizer import Tokenizers, make_tokenizers
from mtkit.model.build import make_model
from mtkit.model.transformer import Transformer
from mtkit.training.validation import (
    EvalSet,
    SelectionScore,
    TextCorpus,
    ValidationResult,
    Validator,
    is_better,
)
from mtkit.translation.assembly import Translation
from mtkit.translation.segments import Request
from mtkit.translation.translator import Translator
from tests import tiny

PAIRS = tiny.pairs(6, seed=3)


def config_of(**sections: dict[str, Any]) -> Config:
    """Return the config of a tiny model with these sections."""
    head = {"src": "en", "tgt": "fr", "train": [{"demo": "en-de", "pairs": 3}]}
    base: dict[str, Any] = {
        "run": "runs/x",
        "data": head | sections.pop("data", {}),
        "tokenizer": {"type": "bpe", "vocab_size": 96, "byte_fallback": False},
        "model": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_heads": 2},
    }
    return parse_config(base | sections)


@cache
def tokenizers() -> Tokenizers:
    return make_tokenizers(config_of().tokenizer, map(Pair._make, tiny.pairs(100, seed=1)))


def random_model(config: Config) -> Transformer:
    """Return a random model with large output weights, so that its distributions are sharp."""
    torch.manual_seed(2)
    model = make_model(config.model, tokenizers())
    with torch.no_grad():
        model.output.weight.mul_(4)
    return model.eval()


def validator(config: Config, *sets: list[tuple[str, str]]) -> Validator:
    """Return a validator of these validation sets, called a, b ..."""
    named = [
        EvalSet(name, *map(list, zip(*pairs, strict=True)))
        for name, pairs in zip("abcdef", sets, strict=False)
    ]
    return Validator(TextCorpus.of(named, tokenizers()), tokenizers(), config)


def validate(config: Config, *sets: list[tuple[str, str]]) -> ValidationResult:
    return validator(config, *(sets or [PAIRS])).validate(random_model(config))


LIMITS = {"max_length_ratio": 0.5, "max_length_extra": 2}


@pytest.mark.parametrize(
    "decoding",
    [
        {"groups": 5},
        {"beam_size": 4, "groups": 2, "n_best": 3},
        {"sample": True},
        {"sample": True, "n_best": 9, "temperature": 3.0},
        {"mbr": "chrf"},
        {"mbr": "chrf", "mbr_candidates": 2, "sample": True, "n_best": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("beam_size", [1, 3])
def test_the_search_of_validation_is_its_own(decoding: dict[str, Any], beam_size: int) -> None:
    validation = {"beam_size": beam_size}
    plain = config_of(validation=validation, decoding=LIMITS)
    other = config_of(validation=validation, decoding=LIMITS | decoding)
    assert other.validation_decoding == plain.validation_decoding
    assert validate(other) == validate(plain)


def test_the_tag_of_a_set_goes_before_each_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def translate(self: Translator, requests: list[Request]) -> list[Translation]:
        seen.extend((request.tag, request.text) for request in requests)
        return [Translation("", 0.0) for _ in requests]

    monkeypatch.setattr(Translator, "translate", translate)
    sets = [EvalSet("a", ["<2fr> the dog"], ["le chien"], "<2fr>"), EvalSet("b", ["the cat"], ["le chat"])]
    config = config_of()
    Validator(TextCorpus.of(sets, tokenizers()), tokenizers(), config).validate(random_model(config))
    assert seen == [("<2fr>", "the dog"), ("", "the cat")]


def test_penalties_and_limits_of_the_run_hold_in_validation() -> None:
    kept = {
        "length_penalty": 0.6,
        "penalty_kind": "simple",
        "coverage_penalty": 0.2,
        "stop": "finished",
        "min_pieces": 2,
        "no_repeat_ngram": 3,
        "suppress": ["chat"],
        "batch_tokens": 512,
    }
    config = config_of(validation={"beam_size": 2}, decoding=LIMITS | kept)
    own = {"beam_size": 2, "avoid_loops": False}
    assert config.validation_decoding == config.decoding.model_copy(update=own)
    found = validate(config).hyps
    translator = Translator(
        random_model(config), tokenizers(), config.validation_decoding, config.data.max_length
    )
    assert found == [t.text for t in translator.translate([src for src, _ in PAIRS])]


def test_bleu_takes_the_tokenizer_of_the_config() -> None:
    scores = validate(config_of(validation={"bleu_tokenizer": "char"}, decoding=LIMITS)).scores
    assert "tok:char" in scores["bleu"].signature


# --- several sets -------------------------------------------------------------------------------------------------


def test_each_of_several_sets_is_measured_and_all_together() -> None:
    sets = [PAIRS[:1], PAIRS[1:4], PAIRS[4:]]
    config = config_of(decoding=LIMITS)
    together, merged = validate(config, *sets), validate(config)
    assert together.loss == pytest.approx(merged.loss, rel=1e-6)  # in other batches
    assert (together.scores, together.hyps) == (merged.scores, merged.hyps)
    assert merged.sets == {}
    for name, pairs in zip("abc", sets, strict=True):
        alone = validate(config, pairs)
        assert together.sets[name] == alone
        for key, number in alone.as_dict().items():
            assert together.as_dict()[f"{name}/{key}"] == number
    assert together.set_lines()[1] == f"    b: {together.sets['b'].line()}"
    assert together.selection_score("bleu") == (together.scores["bleu"].value, together.loss)


def test_the_first_sentences_of_each_set_are_translated() -> None:
    config = config_of(validation={"max_sentences": 2}, decoding=LIMITS)
    some = validator(config, PAIRS[:1], PAIRS[1:])
    assert some.translated_pairs == PAIRS[:3]
    result = some.validate(random_model(config))
    assert [len(own.hyps) for own in result.sets.values()] == [1, 2]
    assert result.loss == pytest.approx(validate(config).loss, rel=1e-6)


def test_a_set_of_long_pairs_alone_has_no_loss() -> None:
    long = [(" ".join([src] * 9), tgt) for src, tgt in PAIRS[:1]]
    config = config_of(data={"max_length": 60}, validation={"metrics": [], "best": "loss"})
    result = validate(config, PAIRS, long)
    assert result.loss == validate(config).loss
    assert math.isnan(result.sets["b"].loss)
    assert result.sets["b"].line() == "loss nan  perplexity inf"


# --- which is better ----------------------------------------------------------------------------------------------

NO_LOSS = SelectionScore(3.0, None)


@pytest.mark.parametrize(
    ("name", "new", "old", "better"),
    [
        ("bleu", SelectionScore(0.0, 5.0), None, True),
        ("bleu", SelectionScore(math.nan, 5.0), None, False),
        ("bleu", SelectionScore(0.001, 5.0), SelectionScore(0.004, 5.1), True),  # both are shown as 0.00
        ("bleu", SelectionScore(0.004, 5.1), SelectionScore(0.001, 5.0), False),
        (
            "bleu",
            SelectionScore(0.0, 5.00001),
            SelectionScore(0.0, 5.00002),
            False,
        ),  # and both losses as 5.0000
        ("bleu", SelectionScore(0.02, 9.0), SelectionScore(0.01, 5.0), True),
        ("ter", SelectionScore(50.0, 2.0), SelectionScore(50.0, 2.5), True),
        ("ter", SelectionScore(51.0, 2.0), SelectionScore(50.0, 2.5), False),
        ("chrf", SelectionScore(3.0, 1.0), NO_LOSS, False),  # a run of before its loss was kept
        ("chrf", SelectionScore(3.5, 1.0), NO_LOSS, True),
        ("chrf", SelectionScore(3.0, math.nan), SelectionScore(3.0, 1.0), False),
        ("chrf", SelectionScore(math.nan, 0.1), SelectionScore(3.0, 1.0), False),
        ("loss", SelectionScore(1.00001, 1.00001), SelectionScore(1.00002, 1.00002), True),
        ("perplexity", SelectionScore(2.0, 0.7), SelectionScore(2.0, 0.7), False),
    ],
)
def test_which_of_two_validations_is_better(
    name: str, new: SelectionScore, old: SelectionScore | None, better: bool
) -> None:
    assert is_better(name, new, old) is better
