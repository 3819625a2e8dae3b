"""Pairs that differ from pass to pass: augmentation, planned lengths, and micro-batches that stay within the budget."""

from __future__ import annotations

import random
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mtkit.config.loading import parse_config
from mtkit.config.sections import AugmentConfig, TokenizerConfig, TrainingConfig
from mtkit.data.augmentation import Augmentation, change_case, insert_words, prefix_length, tag_prefixes
from mtkit.data.batching import Ids, SpecialIds, split_evenly, split_to_fit
from mtkit.data.order import MixedOrder
from mtkit.data.readers import Pair
from mtkit.data.tokenizer import Tokenizers, make_tokenizers
from mtkit.data.variation import Variation, make_variation
from mtkit.errors import ConfigError
from mtkit.training.distributed import SINGLE_PROCESS, World
from mtkit.training.initial import take_over
from mtkit.training.memory import longest_batch
from mtkit.training.state import TrainState
from mtkit.training.updates import Update, UpdateLoader, make_order

TEXTS = [
    Pair(f"The {a} {n} sees {k} birds{end}", f"Der {a}e {n} sieht {k} Vögel{end}")
    for a in ("old", "small", "grey", "tired")
    for n in ("man", "teacher", "neighbour")
    for k in ("two", "three", "many", "all the little")
    for end in (".", "?", "")
]
SAMPLING = TokenizerConfig(sampling_alpha=0.2)
PLAIN = TokenizerConfig()
OFF = AugmentConfig()


class Corpus:
    """The part of a corpus that loading needs."""

    def __init__(self, tokenizers: Tokenizers, pairs: Sequence[Pair] = TEXTS) -> None:
        self.rows = [
            side.encode([pair[i] for pair in pairs])
            for i, side in enumerate((tokenizers.src, tokenizers.tgt))
        ]
        self.src_lengths, self.tgt_lengths = (np.array([len(row) for row in rows]) for rows in self.rows)

    def src(self, index: int) -> Ids:
        return self.rows[0][index]

    def tgt(self, index: int) -> Ids:
        return self.rows[1][index]


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    config = TokenizerConfig(vocab_size=500, user_symbols=("<legal>",), character_coverage=1.0)
    return make_tokenizers(config, TEXTS)


def variation(
    tokenizers: Tokenizers, tokenizer: TokenizerConfig, augment: AugmentConfig, **keys: Any
) -> Variation:
    values = {"max_length": 100, "tags": ("<legal>",), "seed": 1, **keys}
    found = make_variation(
        tokenizer, augment, keys.pop("corpus", Corpus(tokenizers)), tokenizers, **(values | keys)
    )
    assert found is not None
    return found


def augmented(
    tokenizers: Tokenizers, pairs: Sequence[Pair], number: int = 1, **rates: float
) -> list[tuple[str, str]]:
    """Return the text of pairs after augmentation, each in as many passes."""
    corpus = Corpus(tokenizers, pairs)
    srcs, tgts = list(corpus.rows[0] * number), list(corpus.rows[1] * number)
    indices, passes = np.tile(np.arange(len(pairs)), number), np.repeat(np.arange(number), len(pairs))
    done = Augmentation(AugmentConfig(**rates), tokenizers, ("<legal>",), 1).changes(
        srcs, tgts, indices, passes
    )
    for row, (src, tgt) in done.items():
        srcs[row], tgts[row] = src, tgt
    return list(zip(tokenizers.src.decode(srcs), tokenizers.tgt.decode(tgts), strict=True))


ONE = [Pair("The old man sees two birds.", "Der alte Mann sieht zwei Vögel.")]


def test_each_change_is_made_to_the_sides_it_should(tokenizers: Tokenizers) -> None:
    assert augmented(tokenizers, ONE, upper=1.0) == [(ONE[0].src.upper(), ONE[0].tgt.upper())]
    assert augmented(tokenizers, ONE, title=1.0)[0][1] == "Der Alte Mann Sieht Zwei Vögel."
    assert augmented(tokenizers, ONE, no_final_punctuation=1.0) == [(ONE[0].src[:-1], ONE[0].tgt[:-1])]
    ((src, tgt),) = augmented(tokenizers, ONE, typos=1.0)
    assert tgt == ONE[0].tgt
    assert src != ONE[0].src
    ((src, tgt),) = augmented(tokenizers, ONE, noise=1.0)
    assert src == tgt != ONE[0].src
    ((src, tgt),) = augmented(tokenizers, ONE, tags=1.0)
    (common,) = {src.replace(part, "") for part in ("The old man sees two birds",)} & {
        tgt.replace("Der alte Mann sieht zwei Vögel", "")
    }
    assert common.strip(" .")


def test_changes_that_do_not_suit_a_pair_are_left_out(tokenizers: Tokenizers) -> None:
    for pair, rates in (
        (Pair("one bird.", "ein Vogel"), {"no_final_punctuation": 1.0}),  # only one side has it
        (Pair("我喜欢", "Ich mag"), {"upper": 1.0}),  # the source has no case
        (Pair("<legal> the <legal> bird", "der Vogel"), {"upper": 1.0}),  # a symbol in the text
    ):
        assert augmented(tokenizers, [pair], **rates) == augmented(tokenizers, [pair])
    assert augmented(tokenizers, [Pair("<legal> a bird", "ein Vogel")], upper=1.0) == [
        ("<legal> A BIRD", "EIN VOGEL")
    ]


def test_rates_are_shares_of_the_pairs_and_independent(tokenizers: Tokenizers) -> None:
    rates = {"upper": 0.1, "title": 0.2, "no_final_punctuation": 0.3}
    texts = augmented(tokenizers, ONE, 1200, **rates)
    shares = [
        np.mean([src.isupper() for src, _ in texts]),
        np.mean([src.startswith("The Old Man") for src, _ in texts]),
        np.mean([not src.endswith(".") for src, _ in texts]),
        np.mean([src.isupper() and not src.endswith(".") for src, _ in texts]),
    ]
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.03], abs=0.04)
    assert texts == augmented(tokenizers, ONE, 1200, **rates)


def test_random_words_stand_at_the_same_place_of_both_sides() -> None:
    rng = random.Random(1)
    seen = {insert_words("a b?", "c d 。", ["x", "y"], rng) for _ in range(50)}
    assert seen == {("x y a b?", "x y c d 。"), ("a b x y?", "c d x y。")}
    assert ("a b x", "c d. x") in {insert_words("a b", "c d.", ["x"], rng) for _ in range(50)}


def test_a_tag_before_a_line_is_told_from_its_text(tokenizers: Tokenizers) -> None:
    prefixes = tag_prefixes(tokenizers.src, ["<legal>"])
    tagged, plain = tokenizers.src.encode(["<legal> the bird", "the bird"])
    assert np.array_equal(tagged[prefix_length(tagged, prefixes) :], plain)
    assert prefix_length(plain, prefixes) == 0


def test_nothing_varies_unless_asked_for(tokenizers: Tokenizers) -> None:
    corpus = Corpus(tokenizers)
    assert make_variation(PLAIN, OFF, corpus, tokenizers, max_length=9, tags=(), seed=1) is None
    only_src = variation(tokenizers, TokenizerConfig(sampling_alpha=0.2, sampling_sides="src"), OFF)
    srcs, tgts = only_src.rows(np.arange(20), np.zeros(20, np.int64))
    assert all(np.array_equal(row, corpus.tgt(i)) for i, row in enumerate(tgts))
    assert not all(np.array_equal(row, corpus.src(i)) for i, row in enumerate(srcs))
    assert only_src.growth[0] > only_src.growth[1] == 1.0


@pytest.mark.parametrize(
    ("initial", "keys", "expected"),
    [
        ({"sampling_alpha": 0.3, "sampling_sides": "src"}, {"sampling_alpha": None}, (None, "both")),
        ({"sampling_alpha": 0.3, "sampling_sides": "src"}, {"sampling_alpha": 0.2}, (0.2, "src")),
        ({"sampling_alpha": 0.3}, {"sampling_sides": "src"}, (0.3, "src")),
        ({"sampling_alpha": 0.3}, {"sampling_alpha": None, "sampling_sides": "src"}, None),
        ({}, {"sampling_sides": "src"}, None),
    ],
)
def test_fine_tuning_changes_the_sampling_of_the_initial_model(
    initial: dict[str, Any], keys: dict[str, Any], expected: tuple[float | None, str] | None
) -> None:
    head = {"run": "r", "data": {"src": "en", "tgt": "de", "train": [{"path": "x.tsv"}]}}
    other = parse_config({**head, "tokenizer": initial})
    config = parse_config({**head, "init": "other", "tokenizer": keys})
    if expected is None:
        with pytest.raises(ConfigError, match="sampling_sides src needs sampling_alpha or bpe_dropout"):
            take_over(config, other)
    else:
        found = take_over(config, other).tokenizer
        assert (found.sampling_alpha, found.sampling_sides) == expected


def test_planned_lengths_are_the_mean_of_the_samples(tokenizers: Tokenizers) -> None:
    found = variation(tokenizers, SAMPLING, OFF)
    everything = np.arange(len(TEXTS))
    sampled = [found.rows(everything, np.full_like(everything, number)) for number in range(10)]
    for side, planned in enumerate(found.planned_lengths()):
        mean = np.mean([[len(row) for row in sides[side]] for sides in sampled])
        assert planned.mean() == pytest.approx(mean, rel=0.05)
        assert found.growth[side] > 1.05
    short = variation(tokenizers, SAMPLING, OFF, max_length=int(found.corpus.src_lengths.max()))
    assert short.planned_lengths()[0].max() == found.corpus.src_lengths.max()


def test_what_is_too_long_keeps_its_usual_tokens(tokenizers: Tokenizers) -> None:
    corpus = Corpus(tokenizers)
    longest = int(max(corpus.src_lengths.max(), corpus.tgt_lengths.max()))
    found = variation(
        tokenizers, TokenizerConfig(sampling_alpha=1e-3), AugmentConfig(upper=0.5), max_length=longest
    )
    sides = found.rows(np.arange(len(TEXTS)), np.zeros(len(TEXTS), np.int64))
    assert max(len(row) for rows in sides for row in rows) <= longest
    assert sum(np.array_equal(row, corpus.src(i)) for i, row in enumerate(sides[0])) > 10


@pytest.mark.parametrize("world_size", [1, 2])
def test_micro_batches_are_split_where_they_exceed_the_budget(world_size: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        sizes = rng.integers(1, 40, 60).astype(np.int32)
        rows = [*np.split(np.arange(60), [10, 20, 45]), np.arange(0)][: 4 if world_size == 1 else 5]
        rows = rows if len(rows) % world_size == 0 else [*rows, np.arange(0)]
        budgets = rng.integers(40, 900, len(rows)).tolist()
        parts = split_to_fit(rows, sizes, budgets, world_size)
        assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(60))
        assert list(parts) == sorted(parts)
        numbers = [[number for number in parts if number % world_size == rank] for rank in range(world_size)]
        assert len({len(each) for each in numbers}) == 1
        for number, part in parts.items():
            assert set(part.tolist()) <= set(rows[number % len(rows)].tolist())
            assert len(part) <= 1 or len(part) * sizes[part].max() <= budgets[number % len(rows)]
        for number, (whole, budget) in enumerate(zip(rows, budgets, strict=True)):
            if not len(whole) or len(whole) * sizes[whole].max() <= budget:
                assert np.array_equal(parts[number], whole)


def loader(
    tokenizers: Tokenizers, found: Variation | None, world: World = SINGLE_PROCESS, **training: Any
) -> UpdateLoader:
    special = SpecialIds(0, 3, 0, 2, 3)
    config = TrainingConfig(batch_tokens=200, max_epochs=3, **training)
    corpus = Corpus(tokenizers)
    order = make_order(corpus, config, 1, (), found)  # type: ignore[arg-type]
    return UpdateLoader(corpus, order, special, config, 1, world, torch.device("cpu"), found)  # type: ignore[arg-type]


def rows_of(update: Update) -> list[tuple[list[int], list[int]]]:
    """Return the tokens of all real rows of an update's micro-batches, without padding."""
    found = []
    for batch in update.micro_batches.values():
        for src, tgt, mask in zip(batch.src_BS, batch.tgt_out_BT, batch.mask_BT, strict=True):
            if mask.any():
                found.append((src[src != 0].tolist(), tgt[mask].tolist()))
    return sorted(found)


def test_a_tokenizer_trained_on_changed_case_knows_words_in_capitals() -> None:
    config = TokenizerConfig(vocab_size=330, user_symbols=("<legal>",), character_coverage=1.0)
    tagged = [Pair(f"<legal> {src}", tgt) for src, tgt in TEXTS * 5]
    found = list(change_case(tagged, AugmentConfig(upper=0.2, title=0.1), 1, config.user_symbols))
    plain = list(change_case(TEXTS * 5, AugmentConfig(upper=0.2, title=0.1), 1, config.user_symbols))
    assert found == [Pair(f"<legal> {src}", tgt) for src, tgt in plain] != tagged
    pairs = TEXTS * 5 + [Pair("<legal> Hello.", "<legal> Hallo.")]
    changed = list(change_case(pairs, AugmentConfig(upper=0.2, title=0.1), 1, config.user_symbols))
    assert changed == list(change_case(pairs, AugmentConfig(upper=0.2, title=0.1), 1, config.user_symbols))
    assert changed[-1] == pairs[-1] and list(change_case(pairs, OFF, 1)) == pairs
    capitals = [pair for pair, old in zip(changed, pairs, strict=True) if pair == Pair(*map(str.upper, old))]
    titles = [
        pair for pair, old in zip(changed, pairs, strict=True) if pair.src == old.src.title() != old.src
    ]
    assert 0.12 < len(capitals) / len(pairs) < 0.28 and 0.04 < len(titles) / len(pairs) < 0.18
    lengths = {}
    for name, texts in (("plain", pairs), ("changed", changed)):
        tokenizer = make_tokenizers(config, texts).src
        lengths[name] = [
            sum(map(len, tokenizer.encode([change(pair.src) for pair in TEXTS])))
            for change in (str, str.upper)
        ]
    assert lengths["plain"][1] > 1.7 * lengths["plain"][0]
    assert lengths["changed"][1] < 1.2 * lengths["changed"][0]


AUGMENT = AugmentConfig(upper=0.3, typos=0.2, no_final_punctuation=0.2)


def test_updates_are_the_same_for_any_number_of_processes_and_micro_batches(
    tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtkit.training.updates._OVERSIZE", 0.9)  # so that there is something to split
    found = variation(tokenizers, SAMPLING, AUGMENT)
    single = loader(tokenizers, found, accumulate=2)
    expected = [single.fetch(update, 1) for update in single.updates(0, 0)]
    assert any(len(update.micro_batches) > len(update.batches) for update in expected)
    seen: set[tuple[int, ...]] = set()
    for update in expected:
        assert single.num_targets(update) == sum(len(tgt) for _, tgt in rows_of(update))
        for number, batch in update.micro_batches.items():
            longest = max(batch.src_BS.shape[1], batch.tgt_in_BT.shape[1])
            assert len(batch.src_BS) == 1 or len(batch.src_BS) * longest <= 180, number
        seen |= {tuple(src) for src, _ in rows_of(update)}
    assert len(seen) > 1.5 * len(TEXTS)  # other samples in each of the three epochs
    for size, slices in ((1, 3), (2, 1)):
        loaders = [loader(tokenizers, found, World(rank, size), accumulate=2) for rank in range(size)]
        for update, wanted in zip(single.updates(0, 0), expected, strict=True):
            parts = [each.fetch(update, slices) for each in loaders]
            assert sorted(row for part in parts for row in rows_of(part)) == rows_of(wanted)
            assert {part.num_targets for part in parts} == {wanted.num_targets}
            assert len({len(part.micro_batches) for part in parts}) == 1


def test_an_epoch_is_dropped_before_the_next_is_made(
    tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a corpus with weights are large."""
    made = loader(tokenizers, None)
    make_epoch, epochs = made.order.epoch, list[weakref.ref[Any]]()

    def epoch(number: int) -> Any:
        assert all(old() is None for old in epochs)
        batches = make_epoch(number)
        epochs.append(weakref.ref(batches))
        return batches

    monkeypatch.setattr(made.order, "epoch", epoch)
    assert len(list(made.updates(0, 0))) == made.num_updates(3)
    assert len(epochs) == 3


def test_a_resumed_epoch_has_the_same_rows_and_skipped_pairs_change_no_other(tokenizers: Tokenizers) -> None:
    found = variation(tokenizers, SAMPLING, AUGMENT)
    whole, other = loader(tokenizers, found), loader(tokenizers, found)
    updates = list(whole.updates(1, 0))
    resumed = list(other.updates(1, 4))
    for one, two in zip(updates[4:], resumed, strict=True):
        assert rows_of(whole.fetch(one, 1)) == rows_of(other.fetch(two, 1))
        assert one.num_epochs == two.num_epochs
    skipped = int(updates[0].batches[0][1])
    rest = updates[0].without(TrainState(skipped=[skipped]).skipped_array)
    assert [len(each) for each in rest.passes] == [len(each) for each in rest.batches]
    missing = [row for row in rows_of(whole.fetch(updates[0], 1)) if row not in rows_of(whole.fetch(rest, 1))]
    assert len(missing) == 1
    for others in ([], [-1], [10**6], [-1, 10**6]):
        assert updates[0].without(np.array(others, np.int64)) is updates[0]
    assert updates[-1].num_epochs == 3.0


def test_batches_are_formed_of_pairs_that_are_of_similar_length_in_this_pass(tokenizers: Tokenizers) -> None:
    found = variation(tokenizers, SAMPLING, AUGMENT)
    tried = loader(tokenizers, found)
    updates = [tried.fetch(update, 1) for update in tried.updates(0, 0)]
    of_epoch = [update for update in updates if update.epoch == 0]
    assert len(of_epoch) == len(tried.epoch_batches(0)) > 16
    assert sorted(index for update in of_epoch for index in update.pairs()) == list(range(len(TEXTS)))
    micro_batches = [batch for update in updates for batch in update.micro_batches.values()]
    assert len(micro_batches) < 1.1 * len(updates)
    padded = sum(batch.tgt_in_BT.numel() for batch in micro_batches)
    assert sum(tried.num_targets(update) for update in updates) > 0.8 * padded
    widths = [update.micro_batches[0].tgt_in_BT.shape[1] for update in updates]
    assert widths[:16] != sorted(widths[:16])


def test_an_order_is_split_into_as_many_batches_as_are_asked_for() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        sizes = np.sort(rng.integers(1, 60, int(rng.integers(1, 200)))).astype(np.int32)
        number = int(rng.integers(1, min(30, len(sizes)) + 1))
        batches = split_evenly(sizes, np.arange(len(sizes)), number)
        assert len(batches) == number and all(map(len, batches))
        assert np.array_equal(np.concatenate(batches), np.arange(len(sizes)))
        positions = [len(batch) * int(sizes[batch].max()) for batch in batches]
        assert max(positions) <= max(sizes.max(), 1.3 * sum(positions) / number + sizes.max())


def test_the_longest_batch_is_as_long_as_any_may_become(tokenizers: Tokenizers) -> None:
    found = variation(tokenizers, SAMPLING, AUGMENT)
    tried = loader(tokenizers, found)
    pairs = tried.epoch_batches(0).largest()
    for slices in (1, 2):
        batch = longest_batch(tried, pairs, slices)
        assert batch.src.shape == (-(-len(pairs) // slices), 220 // len(pairs))
        assert batch.src.shape == batch.tgt_in.shape
        assert batch.tgt_mask.all()
    plain = loader(tokenizers, None)
    assert longest_batch(plain, pairs, 1).src.shape[1] == Corpus(tokenizers).src_lengths[pairs].max() + 1


def test_passes_of_a_mixed_corpus_count_how_often_a_pair_was_seen() -> None:
    lengths = np.random.default_rng(1).integers(1, 9, 30)
    order = MixedOrder(lengths, lengths, 30, 1, np.repeat([0, 1], [10, 20]), [2.5, 0.25])
    seen: dict[int, int] = {}
    for epoch in range(6):
        batches = order.epoch(epoch)
        found: list[tuple[int, int]] = []
        for number in range(len(batches)):
            found += zip(batches[number].tolist(), batches.passes(number).tolist(), strict=True)
        for pair, number in sorted(found):
            assert number == seen.get(pair, 0)
            seen[pair] = number + 1
    assert max(seen.values()) == 15
    assert max(seen.get(pair, 0) for pair in range(10, 30)) == 2
