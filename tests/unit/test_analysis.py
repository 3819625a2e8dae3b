"""Each number of the analysis, computed by hand; properties of all on random text."""

from __future__ import annotations

import random

import pytest

from mtkit.evaluation.analysis import (
    Group,
    SentenceDifference,
    Share,
    WordGroup,
    copied_lines,
    copied_words,
    find_names,
    find_urls,
    first_references,
    group_by_label,
    group_by_length,
    has_text,
    has_word,
    largest_differences,
    length_ratio,
    lost_items,
    rank_sentences,
    repetitions,
    split_words,
    unaligned_words,
    words_by_frequency,
)
from mtkit.evaluation.overlap import Overlap, OverlapCounter
from mtkit.translation.numbers import has_number, required_numbers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ein Hund, ein Ball!", ["Ein", "Hund", ",", "ein", "Ball", "!"]),
        ("don't 3.5 e-mail", ["don", "'", "t", "3", ".", "5", "e", "-", "mail"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("cafe\u0301 नहीं।", ["cafe\u0301", "नहीं", "।"]),
        ("我有GPU卡。", ["我", "有", "GPU", "卡", "。"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("a_b \u00a0\u2028c 😀", ["a_b", "c", "😀"]),
        (" \t", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_first_references() -> None:
    assert first_references([["a", None, None], ["b", "c", None]]) == ["a", "c", ""]


# Groups


def test_groups_by_length() -> None:
    lines = ["a b", "a", "a b c d", "", "a b c"]
    assert group_by_length(lines, (2, 3, 5)) == [
        Group("0–1", (1, 3)),
        Group("2", (0,)),
        Group("3–4", (2, 4)),
    ]
    assert [group.label for group in group_by_length(["w " * 9, "w " * 10, "w " * 19, "w " * 60])] == [
        "0–9",
        "10–19",
        "60+",
    ]


def test_groups_by_label() -> None:
    assert group_by_label(["news", "chat", "news"]) == [Group("news", (0, 2)), Group("chat", (1,))]


def test_words_by_frequency() -> None:
    """Sentence 1 shares `a` once and `b` once; sentence 2 shares `x`; `y` is never in training, nor is `z`."""
    hyps, refs = ["a a b", "x z"], [["a b c", "x y y"]]
    counts = {"a": 7, "b": 2, "c": 2, "x": 1, "y": 0}
    never, once, twice, more = words_by_frequency(hyps, refs, counts, (1, 2, 3))
    assert never == WordGroup("0", num_ref=2, num_hyp=1, num_matched=0)
    assert once == WordGroup("1", 1, 1, 1)
    assert twice == WordGroup("2", 2, 1, 1)
    assert more == WordGroup("3+", 1, 2, 1)
    assert (twice.precision, twice.recall, twice.f1) == (1, 0.5, pytest.approx(2 / 3))
    assert (never.precision, never.recall, never.f1) == (0, 0, 0)
    nothing = WordGroup("9+", 0, 0, 0)
    assert (nothing.precision, nothing.recall, nothing.f1) == (None, None, None)


# Kinds of errors


def test_length_ratio() -> None:
    assert length_ratio(["a b.", "c"], [["a b c", None], [None, "d e"]]) == Share(4, 5)
    assert length_ratio(["a b.", "c"], [["a b c", None], [None, "d e"]]).value == 0.8
    assert length_ratio(["a"], [[""]]).value is None


def test_repetitions() -> None:
    """`a b` occurs three times and is twice too many; once too many if a reference has it twice."""
    hyps = ["a b a b a b", "c d e"]
    assert repetitions(hyps, [["x", "y"]]) == Share(3, 7, (0,))  # a b, a b, b a
    assert repetitions(hyps, [["x", "y"], ["a b, a b", None]]) == Share(2, 7, (0,))
    assert repetitions(hyps, [["a b a b a b", "y"]]) == Share(0, 7)
    assert repetitions(["a a a a"], [["a"]], n=1) == Share(3, 4, (0,))
    assert repetitions(["a", ""], [["a", ""]]).value is None


def test_copied_words() -> None:
    """`Hund` is copied; `Anna` is in the reference; 7 and the full stop have no letter."""
    assert copied_words(["Anna: 7 Hund."], ["Anna has 7 Hund."], [["Anna has 7 dogs."]]) == Share(1, 2, (0,))
    assert copied_words(["in in"], ["in in"], [["in"]]) == Share(1, 2, (0,))
    assert copied_words(["in in"], ["in in"], [["in"], ["in in"]]) == Share(0, 2)
    assert copied_words(["a b"], ["a"], [[None]]) == Share(1, 2, (0,))


def test_copied_lines() -> None:
    srcs = ["Guten  Tag", "Guten Tag", "OK", "1 2", "Hallo"]
    hyps = ["Guten Tag ", "Good day", "OK", "1 2", "Hallo"]
    refs = [["Good day", "Good day", "OK", "x", None], ["Hello", "Hello", "Okay", "x", "Hallo"]]
    assert copied_lines(srcs, hyps, refs) == Share(1, 4, (0,))


def test_unaligned_words() -> None:
    assert unaligned_words(["a b c", "d", ""], [[(0, 1), (2, 0), (2, 2), (9, 9)], [(0, 0)], []]) == Share(
        1, 4, (0,)
    )


def test_numbers_that_are_lost() -> None:
    """1,000 is kept as 1.000; 25 is lost; 300 is not in the reference either; 3 may be spelled out."""
    lost = lost_items(
        ["1,000 men, 25 dogs, 300 cats and 3 owls"],
        ["1.000 Männer und Hunde"],
        [["1000 Männer, 25 Hunde, Katzen und drei Eulen"]],
        required_numbers,
        has_number,
    )
    assert lost == Share(1, 2, (0,))


def test_names_that_are_lost() -> None:
    """Paris and NASA are in the reference; Munich is translated there, and `A` has one letter."""
    src = "A man from Paris met NASA in Munich. Paris!"
    assert find_names(src) == ["Paris", "NASA", "Munich", "Paris"]
    lost = lost_items([src], ["Pariser traf NASA."], [["Aus Paris, NASA, München"]], find_names, has_word)
    assert lost == Share(1, 2, (0,))


def test_web_addresses_that_are_lost() -> None:
    src = "See (https://a.org/x?y=1), www.b.de. Not c.org"
    assert find_urls(src) == ["https://a.org/x?y=1", "www.b.de"]
    assert find_urls("看https://a.org查看，https://b.org에서《www.c.org》") == [
        "https://a.org",
        "https://b.org",
        "www.c.org",
    ]
    refs = ["https://a.org/x?y=1 www.b.de"]
    assert lost_items([src], ["https://a.org/x?y=1!"], [refs], find_urls, has_text) == Share(1, 2, (0,))


# Single sentences


def test_ranking() -> None:
    assert rank_sentences([1, 3, 2, 3]) == [1, 3, 2, 0]


def test_largest_differences() -> None:
    ahead, behind = largest_differences([10, 20, 30, 40], [15, 20, 10, 60], 1)
    assert (ahead, behind) == ([SentenceDifference(3, 20)], [SentenceDifference(2, -20)])
    ahead, behind = largest_differences([10, 20, 30], [15, 20, 10], 5)
    assert (ahead, behind) == ([SentenceDifference(0, 5)], [SentenceDifference(2, -20)])


# Overlap with training


def overlap(training: list[tuple[str, str]]) -> Overlap:
    counter = OverlapCounter(
        ["ein Hund läuft", "eine Katze", "kein Fund hier"],
        [["a dog runs", "a cat", "no match here"], [None, "the cat", None]],
        [["a dog dog", "x", "y"]],
        ngram_words=2,
    )
    for pair in training:
        counter.add(*pair)
    return counter.result()


TRAINING = [
    ("ein  Hund läuft ", "a dog runs fast"),  # the source; the n-grams `a dog`, `dog runs`
    ("noch eine Katze", "the cat"),  # the second reference; the n-gram `eine Katze`
    ("eine Katze", "a cat"),  # a pair
    ("Eine Katze", "the dog"),
]


def test_overlap() -> None:
    found = overlap(TRAINING)
    assert found.num_pairs == 4
    assert found.sources == Share(2, 3, (0, 1))
    assert found.targets == Share(1, 3, (1,))
    assert found.pairs == Share(1, 3, (1,))
    assert found.source_ngrams == Share(3, 5)  # ein Hund, Hund läuft, eine Katze
    assert found.target_ngrams == Share(4, 6)  # a dog, dog runs, a cat, the cat; not: no match, match here
    words = {"a": 2, "dog": 2, "runs": 1, "cat": 2, "the": 2, "no": 0, "match": 0, "here": 0, "x": 0, "y": 0}
    assert found.counts == words
    assert overlap(TRAINING[::-1] * 2).pairs == found.pairs


def test_overlap_of_targets_alone() -> None:
    counter = OverlapCounter(None, [["a b c"]], ngram_words=2)
    counter.add("", "a b")
    counter.add("", "a b c")
    found = counter.result()
    assert (found.targets, found.target_ngrams) == (Share(1, 1, (0,)), Share(2, 2))
    assert (found.sources.value, found.pairs.value, found.source_ngrams.value) == (None, None, None)


def test_what_is_kept_of_training_does_not_grow() -> None:
    def training(size: int) -> list[tuple[str, str]]:
        return [(f"neu{number} ein Hund", f"new{number} a dog") for number in range(size)]

    small, large = overlap(training(1)), overlap(training(3000))
    assert small.counts.keys() == large.counts.keys()
    assert (small.num_pairs, large.num_pairs, large.counts["dog"]) == (1, 3000, 3000)


# Properties


def random_corpus(seed: int) -> tuple[list[str], list[str], list[list[str | None]]]:
    """Return sources, translations and two streams of references, the second with gaps."""
    generator = random.Random(seed)
    alphabet = ["Ada", "die", "42", "1,000", "www.x.org", "猫", "a", "b", "c", ",", "नहीं"]

    def line() -> str:
        return " ".join(generator.choices(alphabet, k=generator.randrange(0, 12)))

    num = generator.randrange(1, 8)
    srcs, hyps, refs = ([line() for _ in range(num)] for _ in range(3))
    return srcs, hyps, [list(refs), [generator.choice([None, line()]) for _ in range(num)]]


def shares(srcs: list[str], hyps: list[str], refs: list[list[str | None]]) -> list[Share]:
    return [
        repetitions(hyps, refs),
        copied_words(srcs, hyps, refs),
        copied_lines(srcs, hyps, refs),
        lost_items(srcs, hyps, refs, required_numbers, has_number),
        lost_items(srcs, hyps, refs, find_names, has_word),
        lost_items(srcs, hyps, refs, find_urls, has_text),
    ]


@pytest.mark.parametrize("seed", range(60))
def test_properties(seed: int) -> None:
    srcs, hyps, refs = random_corpus(seed)
    found = shares(srcs, hyps, refs)
    for share in found:
        assert 0 <= share.part <= share.whole
        assert bool(share.sentences) == bool(share.part) and len(share.sentences) <= share.part
    # A translation that is one of the references has no error.
    perfect = first_references(refs)
    assert [share.part for share in shares(srcs, perfect, refs)] == [0] * 6
    assert length_ratio(perfect, refs).part == length_ratio(perfect, refs).whole
    # The order of the sentences does not matter, and the numbers of two corpora add up.
    order = random.Random(seed).sample(range(len(hyps)), len(hyps))
    mixed = [[stream[index] for index in order] for stream in refs]
    again = shares([srcs[i] for i in order], [hyps[i] for i in order], mixed)
    assert [(s.part, s.whole) for s in again] == [(s.part, s.whole) for s in found]
    double = shares(srcs * 2, hyps * 2, [stream * 2 for stream in refs])
    assert [(s.part, s.whole) for s in double] == [(2 * s.part, 2 * s.whole) for s in found]
    # Groups divide the sentences and the words.
    assert sorted(i for group in group_by_length(perfect) for i in group.sentences) == list(range(len(hyps)))
    counts = {word: seed * len(word) % 7 for line in hyps + perfect for word in split_words(line)}
    groups = words_by_frequency(hyps, refs, counts)
    assert sum(group.num_hyp for group in groups) == length_ratio(hyps, refs).part
    assert sum(group.num_ref for group in groups) == length_ratio(hyps, refs).whole
    assert all(group.num_matched <= min(group.num_hyp, group.num_ref) for group in groups)
    assert all(group.f1 in (1, None) for group in words_by_frequency(perfect, refs, counts))


@pytest.mark.parametrize("seed", range(20))
def test_overlap_equals_plain_counting(seed: int) -> None:
    srcs, hyps, refs = random_corpus(seed)
    training = [
        (src, ref or "")
        for other in (seed, seed + 1)
        for src, ref in zip(random_corpus(other)[0], random_corpus(other)[2][1], strict=True)
    ]
    counter = OverlapCounter(srcs, refs, [hyps], ngram_words=3)
    for pair in training:
        counter.add(*pair)
    found = counter.result()
    present = [[ref for ref in of if ref is not None] for of in zip(*refs, strict=True)]
    sources, targets = ({side for pair in training for side in [pair[number]]} for number in (0, 1))
    assert found.sources.sentences == tuple(i for i, src in enumerate(srcs) if src in sources)
    assert found.targets.sentences == tuple(i for i, of in enumerate(present) if targets & set(of))
    assert found.pairs.sentences == tuple(
        i for i, of in enumerate(present) if any((srcs[i], ref) in training for ref in of)
    )

    def ngrams(lines: list[str]) -> set[tuple[str, ...]]:
        split = map(split_words, lines)
        return {tuple(words[at : at + 3]) for words in split for at in range(len(words) - 2)}

    own, theirs = ngrams([ref for of in present for ref in of]), ngrams([tgt for _, tgt in training])
    assert found.target_ngrams == Share(len(own & theirs), len(own))
    own, theirs = ngrams(srcs), ngrams([src for src, _ in training])
    assert found.source_ngrams == Share(len(own & theirs), len(own))
    everything = [word for _, tgt in training for word in split_words(tgt)]
    assert found.counts == {word: everything.count(word) for word in found.counts}
