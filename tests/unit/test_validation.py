"""Validation: its search is its own, whatever the finished model is to be searched with."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from mtkit.config import Config
from mtkit.configfile import parse_config
from mtkit.data.pairs import Pair
from mtkit.data.tokenizer import Tokenizers, make_tokenizers
from mtkit.decoding.loading import make_model
from mtkit.decoding.translator import Translator
from mtkit.model.transformer import Transformer
from mtkit.training.validation import TextCorpus, ValidationResult, Validator
from tests import tiny

PAIRS = tiny.pairs(6, seed=3)


def config_of(**sections: dict[str, Any]) -> Config:
    """A config of a tiny model with these sections."""
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
    """With large output weights, so that it is sure of what it says."""
    torch.manual_seed(2)
    model = make_model(config.model, tokenizers())
    with torch.no_grad():
        model.output.weight.mul_(4)
    return model.eval()


def validate(config: Config) -> ValidationResult:
    srcs, tgts = map(list, zip(*PAIRS, strict=True))
    return Validator(TextCorpus.of(srcs, tgts, tokenizers()), tokenizers(), config).validate(
        random_model(config)
    )


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
    assert config.validation_decoding == config.decoding.model_copy(update={"beam_size": 2})
    found = validate(config).hyps
    translator = Translator(
        random_model(config), tokenizers(), config.validation_decoding, config.data.max_length
    )
    assert found == [t.text for t in translator.translate([src for src, _ in PAIRS])]
