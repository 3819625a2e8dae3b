"""Subword sampling against enumeration of all segmentations, and against SentencePiece's own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mtkit.config.sections import TokenizerConfig
from mtkit.data import subword_sampling
from mtkit.data.batching import Ids
from mtkit.data.counter_random import make_key, philox
from mtkit.data.segmentation import Characters, SentencePiece, read_pieces
from mtkit.data.sentencepiece_training import train_sentencepiece
from mtkit.data.subword_sampling import SubwordSampler
from mtkit.data.tokenizer import Tokenizer, Vocabulary, VocabularyTokenizer
from mtkit.errors import ConfigError

LINES = [
    "Der alte Mann sieht die Kinder.", "Meine Schwester hört einen Vogel, die Nachbarn hören ihn auch!",
    "The old man sees the children; my sister hears a bird.", "Neighbours' children, teachers and birds (3 of 12)",
    "我喜欢吃苹果。我的姐姐也喜欢。", "Die Lehrerin versteht die Nachbarin <x> nicht",
    "Kinderwagen, Altenheime und Vogelkinder",
]  # fmt: skip
ODD = [*LINES, "Größe ☃ und Œuvre", "<x><x> a<x>b", "   ", "", "İstanbul ﬁn"]
KEY = make_key(1, "test")
NUM_SAMPLES = 3000


def tokenizer(kind: str, **keys: Any) -> Tokenizer:
    settings = {"vocab_size": 500, "user_symbols": ("<x>",), "character_coverage": 1.0, **keys}
    config = TokenizerConfig.model_validate({"type": kind, **settings})
    return Tokenizer(train_sentencepiece(LINES * 3, config, "nmt_nfkc"))


@pytest.fixture(scope="module")
def unigram() -> Tokenizer:
    return tokenizer("unigram")


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return tokenizer("bpe")


def samples(sampler: SubwordSampler, ids: Ids, number: int = NUM_SAMPLES) -> Counter[tuple[int, ...]]:
    """Return how often each segmentation of a line occurs in as many passes."""
    rows = sampler.sample([ids] * number, np.zeros(number, np.int64), np.arange(number))
    return Counter(tuple(row.tolist()) for row in rows)


def assert_distributed(found: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> None:
    """Check frequencies by a chi-square test whose threshold is exceeded with a probability of about 1e-5."""
    number = found.total()
    assert found.keys() <= expected.keys()
    assert sum(expected.values()) == pytest.approx(1, abs=1e-6)
    common = [way for way, share in expected.items() if share * number >= 5]
    rest = 1 - sum(expected[way] for way in common)
    cells = [(found[way], expected[way] * number) for way in common]
    cells.append((number - sum(found[way] for way in common), max(rest * number, 1e-3)))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    degrees = len(cells) - 1
    assert statistic < degrees + 4.3 * math.sqrt(2 * degrees) + 12, (statistic, degrees)


def segmentations(text: str, pieces: dict[str, tuple[int, float]]) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yield all segmentations of a text and the sums of their scores."""
    if not text:
        yield (), 0.0
    for end in range(1, len(text) + 1):
        if text[:end] in pieces:
            index, score = pieces[text[:end]]
            yield from (((index, *rest), score + more) for rest, more in segmentations(text[end:], pieces))


def by_enumeration(tokenizer: Tokenizer, text: str, alpha: float) -> dict[tuple[int, ...], float]:
    """Return the probability of each segmentation (Kudo 2018, section 3.2, with all as candidates)."""
    normal = [(i, piece) for i, piece in enumerate(read_pieces(tokenizer.model)[1]) if piece.is_normal]
    scores = {piece.text: (index, piece.score) for index, piece in normal}
    weights = {way: math.exp(alpha * score) for way, score in segmentations(text, scores)}
    return {way: weight / sum(weights.values()) for way, weight in weights.items()}


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
         (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)  # fmt: skip
def test_philox_gives_the_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    """The test vectors are those of Random123, the authors' library."""
    one, two, three, four = (np.array([word], np.uint64) for word in counter)
    assert tuple(int(word[0]) for word in philox((one, two, three, four), key)) == expected


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("text", ["Kinder", "Nachbarin."])
def test_unigram_samples_have_the_probabilities_of_kudo(unigram: Tokenizer, text: str, alpha: float) -> None:
    (ids,) = unigram.encode([text])
    found = samples(SubwordSampler(unigram, "unigram", alpha, KEY), ids)
    expected = by_enumeration(unigram, "▁" + text, alpha)
    assert len(expected) > 4
    assert_distributed(found, expected)


def test_unigram_samples_are_distributed_as_those_of_sentencepiece(unigram: Tokenizer) -> None:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=unigram.model)
    text = "sees birds"
    (ids,) = unigram.encode([text])
    found = samples(SubwordSampler(unigram, "unigram", 0.3, KEY), ids)
    own = Counter(
        tuple(processor.encode(text, enable_sampling=True, alpha=0.3, nbest_size=-1)) for _ in range(4000)
    )
    for way, number in own.most_common(8):
        share = number / own.total()  # of samples without a seed
        deviation = math.sqrt(share / own.total() + share / found.total())
        assert found[way] / found.total() == pytest.approx(share, abs=5 * deviation)


def by_algorithm_1(tokenizer: Tokenizer, text: str, dropout: float) -> dict[tuple[int, ...], float]:
    """Return the probability of each result of BPE-dropout (Provilkov et al. 2020, algorithm 1), by its definition."""
    pieces = {
        piece.text: (i, piece.score)
        for i, piece in enumerate(read_pieces(tokenizer.model)[1])
        if piece.is_normal
    }
    results: Counter[tuple[int, ...]] = Counter()

    def go(split: tuple[str, ...], probability: float) -> None:
        merges = [place for place in range(len(split) - 1) if split[place] + split[place + 1] in pieces]
        merges.sort(key=lambda place: (-pieces[split[place] + split[place + 1]][1], place))
        for number, place in enumerate(merges):
            merged = (*split[:place], split[place] + split[place + 1], *split[place + 2 :])
            go(merged, probability * dropout**number * (1 - dropout))
        results[tuple(pieces[part][0] for part in split)] += probability * dropout ** len(merges)

    go(tuple(text), 1.0)
    return results


@pytest.mark.parametrize("dropout", [0.1, 0.6])
def test_bpe_dropout_follows_algorithm_1(bpe: Tokenizer, dropout: float) -> None:
    (ids,) = bpe.encode(["Kinder"])
    found = samples(SubwordSampler(bpe, "bpe", dropout, KEY), ids)
    assert_distributed(found, by_algorithm_1(bpe, "▁Kinder", dropout))


@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_every_sample_decodes_to_the_text(kind: str, fallback: bool) -> None:
    """Among the lines are bytes or unknown characters, symbols of the user, empty ones, and text without spaces."""
    model = tokenizer(kind, byte_fallback=fallback)
    rows = model.encode(ODD)
    sampler = SubwordSampler(model, "unigram" if kind == "unigram" else "bpe", 0.2, KEY)
    indices = np.arange(len(rows))
    pieces, num_changed = read_pieces(model.model)[1], 0
    for number in range(20):
        sampled = sampler.sample(rows, indices, np.full(len(rows), number))
        assert model.decode(sampled) == model.decode(rows)
        num_changed += sum(not np.array_equal(*pair) for pair in zip(rows, sampled, strict=True))
        for usual, row in zip(rows, sampled, strict=True):
            assert [i for i in row if not pieces[i].is_normal] == [
                i for i in usual if not pieces[i].is_normal
            ]
    assert num_changed > 5 * 20


@pytest.mark.parametrize(("kind", "strength"), [("unigram", 1e5), ("bpe", 1e-12)])
def test_without_randomness_the_segmentation_is_the_usual_one(kind: Any, strength: float) -> None:
    model = tokenizer(kind)
    rows = model.encode(ODD)
    sampled = SubwordSampler(model, kind, strength, KEY).sample(
        rows, np.arange(len(rows)), np.zeros(len(rows), int)
    )
    pieces = read_pieces(model.model)[1]
    for usual, row in zip(rows, sampled, strict=True):
        scores = [sum(pieces[i].score for i in each.tolist()) for each in (usual, row)]
        assert np.array_equal(usual, row) or (
            kind == "unigram" and scores[0] == pytest.approx(scores[1], abs=1e-5)
        )


@pytest.mark.parametrize(("kind", "strength"), [("unigram", 0.2), ("bpe", 0.3)])
def test_a_sample_does_not_depend_on_its_batch(
    kind: Any, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tokenizer(kind)
    rows = model.encode(ODD)
    indices, passes = np.arange(len(rows)) * 2**33, np.arange(len(rows)) % 3
    sampler = SubwordSampler(model, kind, strength, KEY)
    whole = sampler.sample(rows, indices, passes)
    other = SubwordSampler(model, kind, strength, KEY)
    monkeypatch.setattr(subword_sampling, "_MAX_SIZE", 50)  # graphs are forgotten all the time
    for i in reversed(range(len(rows))):
        (alone,) = other.sample([rows[i]], indices[i : i + 1], passes[i : i + 1])
        assert np.array_equal(alone, whole[i])
    for key, number in ((KEY, 1), (make_key(2, "test"), 0)):
        changed = SubwordSampler(model, kind, strength, key).sample(rows, indices, passes + number)
        assert not all(np.array_equal(*pair) for pair in zip(whole, changed, strict=True))
    assert sampler.sample([], np.zeros(0, np.int64), np.zeros(0, np.int64)) == []


def test_bpe_dropout_of_a_long_word_takes_little_memory(bpe: Tokenizer) -> None:
    """Uncut, it takes more than a million numbers in three passes."""
    sampler = SubwordSampler(bpe, "bpe", 0.5, KEY)
    lines, found = ["er" * 450, " ".join(["Kinderwagen"] * 20)], set()
    rows = bpe.encode(lines)
    for number in range(3):
        sampled = sampler.sample(rows, np.arange(2), np.full(2, number))
        assert bpe.decode(sampled) == lines
        found.add(tuple(sampled[0].tolist()))
    assert len(found) == 3
    assert sampler._graph.size < 100_000


def test_a_restricted_vocabulary_is_kept(unigram: Tokenizer) -> None:
    pieces = [piece.text for piece in read_pieces(unigram.model)[1] if piece.is_normal]
    kept = [text for number, text in enumerate(pieces) if len(text) == 1 or number % 2]
    vocabulary = Vocabulary(("<pad>", "<unk>", "</s>", *kept), "<pad>", "<unk>", "<pad>", "</s>")
    model = VocabularyTokenizer(SentencePiece(unigram.model, only=vocabulary.pieces), vocabulary)
    rows = model.encode(LINES[:4])
    sampled = SubwordSampler(model, "unigram", 0.2, KEY).sample(rows, np.arange(4), np.zeros(4, np.int64))
    assert model.decode(sampled) == model.decode(rows)
    assert not all(np.array_equal(*pair) for pair in zip(rows, sampled, strict=True))


def test_models_that_cannot_be_sampled_are_refused(unigram: Tokenizer, bpe: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"sampling_alpha.* needs a unigram model.*bpe_dropout"):
        SubwordSampler(bpe, "unigram", 0.2, KEY)
    with pytest.raises(ConfigError, match=r"bpe_dropout.* needs a bpe model.*sampling_alpha"):
        SubwordSampler(unigram, "bpe", 0.1, KEY)
    letters = Vocabulary(("<pad>", "<unk>", "</s>", "a"), "<pad>", "<unk>", "<pad>", "</s>")
    with pytest.raises(ConfigError, match="split by 'characters'"):
        SubwordSampler(VocabularyTokenizer(Characters(b""), letters), "unigram", 0.2, KEY)
    with pytest.raises(ConfigError, match="needs a unigram model, and this tokenizer is a char model"):
        SubwordSampler(tokenizer_of_type("char"), "unigram", 0.2, KEY)


def tokenizer_of_type(kind: str) -> Tokenizer:
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=100, hard_vocab_limit=False, model_type=kind,
        minloglevel=2,
    )  # fmt: skip
    return Tokenizer(model.getvalue())
