"""Proofs of exports: what the tokenizer of an engine is compared in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import exported
import pytest

from mtkit.data.tokenizer import Tokenizers, VocabularyTokenizer
from mtkit.errors import ConfigError
from mtkit.interop.proof import prove_tokenizer, random_text


def test_tokens_that_no_text_becomes_are_decoded_too() -> None:
    made = exported.demo_tokenizers("vocabulary").src
    assert isinstance(made, VocabularyTokenizer)
    vocabulary = replace(made.vocabulary, tokens=(*made.vocabulary.tokens, "\u2581zebra"))
    own = VocabularyTokenizer(made.segmentation, vocabulary)
    tokenizers = Tokenizers(own, own, joint=True)

    class Engine:
        """mtkit's tokenizer, with another text for one token."""

        def __init__(self, zebra: str) -> None:
            self.zebra = zebra

        def encode(self, lines: Sequence[str]) -> list[list[int]]:
            return [[*ids.tolist(), own.eos] for ids in own.encode(lines)]

        def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
            return [text.strip().replace("zebra", self.zebra) for text in own.decode(sequences)]

    text = replace(random_text(tokenizers), srcs=["the dog"], refs=["the dog"])
    assert prove_tokenizer(tokenizers, text, Engine("zebra"), "engine") == "tokens of 200 lines: equal"
    with pytest.raises(ConfigError, match="engine has other tokens for"):
        prove_tokenizer(tokenizers, text, Engine("\u2581zebra"), "engine")
