"""Both directions of a corpus: which pairs there are, and in which epochs."""

from __future__ import annotations

import numpy as np
import pytest

from mtkit.config.sections import DataConfig, SourceConfig, TokenizerConfig, TrainingConfig
from mtkit.data.corpus import Corpus
from mtkit.data.directions import BothDirections
from mtkit.data.encoding import encode_corpus
from mtkit.data.order import num_batches_of, num_epochs_of
from mtkit.data.readers import Pair
from mtkit.data.sources import open_sources
from mtkit.data.tokenizer import Tokenizers, make_tokenizers
from mtkit.training.updates import make_order

LINES = [
    (f"a bird sees {n} cats", f"ein Vogel sieht {n} Katzen") for n in ("no", "two", "five", "many little")
]
NUM_PAIRS = 2 * len(LINES)
"""Pairs of both corpora, of which the second is tagged."""


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    config = TokenizerConfig(vocab_size=300, user_symbols=("<legal>",), character_coverage=1.0)
    return make_tokenizers(config, [Pair(*line) for line in LINES])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizers: Tokenizers) -> Corpus:
    folder = tmp_path_factory.mktemp("directions")
    (folder / "pairs.tsv").write_text("".join(f"{src}\t{tgt}\n" for src, tgt in LINES), encoding="utf-8")
    train = (SourceConfig(path="pairs.tsv"), SourceConfig(path="pairs.tsv", tag="<legal>"))
    data = DataConfig(root=str(folder), src="en", tgt="de", train=train, cache=str(folder / "cache"))
    return encode_corpus(open_sources(train, data, "train"), tokenizers, data)


@pytest.fixture
def both(corpus: Corpus, tokenizers: Tokenizers) -> BothDirections:
    return BothDirections(corpus, {1: len(tokenizers.src.encode(["<legal>"])[0])})


def test_each_pair_is_there_in_both_directions_and_a_tag_in_one(
    both: BothDirections, tokenizers: Tokenizers, corpus: Corpus
) -> None:
    found = [
        tuple(tokenizers.src.decode([side(index) for side in (both.src, both.tgt)]))
        for index in range(len(both))
    ]
    tagged = [(f"<legal> {src}", tgt) for src, tgt in LINES]
    assert [tuple(" ".join(text.split()) for text in pair) for pair in found] == [
        *LINES, *tagged, *([(tgt, src) for src, tgt in LINES] * 2)
    ]  # fmt: skip
    for lengths, side in ((both.src_lengths, both.src), (both.tgt_lengths, both.tgt)):
        assert lengths.tolist() == [len(side(index)) for index in range(len(both))]
    assert both.location(NUM_PAIRS + 5) == corpus.location(5)
    assert both.sources_of_pairs().tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5)])
def test_the_first_epochs_have_both_directions(both: BothDirections, weights: tuple[float, float]) -> None:
    config = TrainingConfig(batch_tokens=60)
    order = make_order(both, config, 1, weights, None, 2)
    for epoch in range(4):
        pairs = np.sort(np.concatenate(list(order.epoch(epoch))))
        assert len(pairs) == sum(weights) * len(LINES) * (2 if epoch < 2 else 1)
        assert (pairs >= NUM_PAIRS).any() == (epoch < 2)
    always = make_order(both, config, 1, weights)
    assert [batch.tolist() for batch in always.epoch(0)] == [batch.tolist() for batch in order.epoch(0)]
    assert (np.concatenate(list(always.epoch(3))) >= NUM_PAIRS).any()


def test_epochs_and_batches_are_counted_by_phase(both: BothDirections, corpus: Corpus) -> None:
    config = TrainingConfig(batch_tokens=60)
    order, one = make_order(both, config, 1, (), None, 2), make_order(corpus, config, 1)
    assert len(order) > len(one)
    assert num_batches_of(order, 3) == 2 * len(order) + len(one)
    assert num_batches_of(order, 1) == len(order)
    assert num_batches_of(one, 3) == 3 * len(one)
    for number in (1, 2, 5):
        assert num_epochs_of(order, num_batches_of(order, number)) == pytest.approx(number)
        assert num_epochs_of(one, num_batches_of(one, number)) == pytest.approx(number)
