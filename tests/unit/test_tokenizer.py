"""The tokenizer: training, round trips, special tokens, models trained elsewhere."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from mtkit.config.sections import TokenizerConfig
from mtkit.data.readers import Pair
from mtkit.data.sentencepiece_training import MAX_TRAINING_CHARS
from mtkit.data.tokenizer import (
    Tokenizer,
    Tokenizers,
    load_tokenizers,
    make_tokenizers,
)
from mtkit.errors import ConfigError, DataError, StorageError

SUBJECTS = [
    ("The old man", "Der alte Mann"),
    ("My sister", "Meine Schwester"),
    ("The teacher", "Die Lehrerin"),
]
VERBS = [("sees", "sieht"), ("hears", "hört"), ("understands", "versteht"), ("greets", "grüßt")]
OBJECTS = [("the children", "die Kinder"), ("a bird", "einen Vogel"), ("the neighbours", "die Nachbarn")]
PAIRS = [
    Pair(f"{s[0]} {v[0]} {o[0]}.", f"{s[1]} {v[1]} {o[1]}.") for s in SUBJECTS for v in VERBS for o in OBJECTS
]


def small(**keys: Any) -> TokenizerConfig:
    return TokenizerConfig(**{"vocab_size": 400, **keys})


@pytest.fixture(scope="module")
def unigram() -> Tokenizer:
    return make_tokenizers(small(), PAIRS).src


def train_elsewhere(**options: Any) -> bytes:
    """Train a model with SentencePiece itself, with its own defaults for the special pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for pair in PAIRS for text in pair]),
        model_writer=model,
        vocab_size=101,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def test_round_trip(unigram: Tokenizer) -> None:
    lines = [text for pair in PAIRS for text in pair]
    ids = unigram.encode(lines)
    assert [row.dtype for row in ids] == [np.dtype(np.int32)] * len(lines)
    assert unigram.decode(ids) == lines
    assert unigram.pieces(lines[1])[0].startswith("▁")
    assert [len(unigram.pieces(line)) for line in lines] == [len(row) for row in ids]


def test_unseen_characters_survive_as_bytes(unigram: Tokenizer) -> None:
    lines = ["Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich: 3,50 €!", "☃ 漢字 \U0001f600"]
    assert unigram.decode(unigram.encode(lines)) == lines


def test_special_ids(unigram: Tokenizer) -> None:
    assert (unigram.pad, unigram.unk, unigram.bos, unigram.eos) == (0, 1, 2, 3)
    ids = unigram.encode(["Der alte Mann"])[0].tolist()
    assert not {0, 1, 2, 3} & set(ids)
    padding_rows = range(unigram.num_pieces, unigram.vocab_size)
    assert unigram.decode([[2, *ids, 3, 0, 0, *padding_rows], [], [2, 3]]) == ["Der alte Mann", "", ""]
    assert unigram.decode([]) == []


def test_text_cannot_name_special_pieces(unigram: Tokenizer) -> None:
    ids = unigram.encode(["</s> <pad>"])[0]
    assert not {0, 1, 2, 3} & set(ids.tolist())


def test_the_vocabulary_is_a_multiple_of_8() -> None:
    for size in (301, 304):
        tokenizer = make_tokenizers(small(vocab_size=size), PAIRS).src
        assert tokenizer.num_pieces == size
        assert tokenizer.vocab_size == 304


def test_a_vocabulary_larger_than_the_corpus_allows_is_made_smaller() -> None:
    for kind in ("unigram", "bpe"):
        tokenizer = make_tokenizers(small(type=kind, vocab_size=8000), PAIRS).src
        assert 300 < tokenizer.num_pieces < 1000


def test_the_same_corpus_gives_the_same_model() -> None:
    for kind in ("unigram", "bpe"):
        first, second = (make_tokenizers(small(type=kind), iter(PAIRS)) for _ in range(2))
        assert first.fingerprint == second.fingerprint
    assert first.fingerprint != make_tokenizers(small(type="unigram"), PAIRS).fingerprint


def test_sampling_is_even_and_seeded() -> None:
    def pairs() -> Iterator[Pair]:
        rng = random.Random(7)
        for _ in range(500):
            yield rng.choice(PAIRS)
        for _ in range(500):
            yield Pair("qqq zzz", "qqq zzz")

    config = small(training_lines=100, vocab_size=330)
    first = make_tokenizers(config, pairs(), seed=1)
    assert first.fingerprint == make_tokenizers(config, pairs(), seed=1).fingerprint
    assert first.fingerprint != make_tokenizers(config, pairs(), seed=2).fingerprint
    assert len(first.src.pieces("qqq Mann")) < 8  # Of both halves, words were learned.


def test_joint_and_separate(tmp_path: Path) -> None:
    joint = make_tokenizers(small(), PAIRS)
    assert joint.joint
    assert joint.src is joint.tgt
    separate = make_tokenizers(small(joint=False), PAIRS)
    assert not separate.joint
    assert separate.src.fingerprint != separate.tgt.fingerprint
    german = PAIRS[0].tgt
    assert len(separate.tgt.pieces(german)) < len(separate.src.pieces(german))

    joint.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]
    loaded = load_tokenizers(tmp_path)
    assert loaded.joint
    assert loaded.fingerprint == joint.fingerprint
    (tmp_path / "tokenizer.model").unlink()
    separate.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.src.model", "tokenizer.tgt.model"]
    loaded = load_tokenizers(tmp_path)
    assert not loaded.joint
    assert loaded.fingerprint == separate.fingerprint


def test_user_symbols_are_one_piece() -> None:
    tokenizer = make_tokenizers(small(user_symbols=["<2de>", "x,y"]), PAIRS).src
    for symbol in ("<2de>", "x,y"):
        assert symbol in tokenizer.pieces(f"{symbol} The old man")


@pytest.mark.parametrize("symbols", [["<s>"], [" "], ["New York"], [" <x>"], ["<a>", "<a>"], ["<0x41>"]])
def test_impossible_user_symbols(symbols: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^tokenizer\.user_symbols: "):
        make_tokenizers(small(user_symbols=symbols), PAIRS)


RARE = "".join(map(chr, range(0x4E00, 0x4E00 + 40)))
TEXT = PAIRS * 100 + [Pair(character, character) for character in RARE]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({}, r"tokenizer: 40 of 71 different characters, 0\.0\d+ % of the text, are spelled as bytes"),
        ({"joint": False}, r"target tokenizer: 40 of \d\d different characters, "),
        ({"character_coverage": 0.9992, "byte_fallback": False}, "are unknown .*coverage 0.9992"),
        ({"character_coverage": 1.0}, None),
        ({"byte_fallback": False}, None),
    ],
    ids=str,
)
def test_rare_characters_take_no_pieces_and_are_counted(keys: dict[str, Any], told: str | None) -> None:
    """Without byte fallback, nothing could spell them, so each gets a piece by default."""
    said: list[str] = []
    tokenizer = make_tokenizers(small(vocab_size=400, **keys), TEXT, say=said.append).tgt
    own = {tokenizer.piece(i) for i in range(tokenizer.num_pieces)} & set(RARE)
    assert len(own) == (40 if told is None else 0)
    assert (said == []) == (told is None)
    assert told is None or re.search(told, said[-1])
    [ids] = tokenizer.encode(["Der alte 丁 Mann"])
    assert (tokenizer.unk in ids.tolist()) == ("byte_fallback" in keys and told is not None)


@pytest.mark.parametrize(
    "tgt", ["今天天气很好，我们去公园！", "ที่นี่ทำอะไร น้ำ", "من می\u200cخواهم بروم", "Xin cha\u0300o ba\u0323n"]
)
def test_targets_come_back_as_they_are_where_normalization_would_change_them(tgt: str) -> None:
    """A model could not write what its tokenizer takes away, and no translation would equal its reference."""
    pairs = [Pair(f"The ﬁrst line {number}", tgt) for number in range(50)]
    said: list[str] = []
    joint = make_tokenizers(small(character_coverage=1.0), pairs, say=said.append)
    assert re.fullmatch(
        r"text is not normalized \(.*\): nmt_nfkc would change .* % of the target's .*", said[0]
    )
    own = make_tokenizers(small(joint=False, character_coverage=1.0), pairs)
    for tokenizer in (joint.tgt, own.tgt):
        [ids] = tokenizer.encode([tgt])
        assert tokenizer.decode([ids.tolist()]) == [tgt]
    assert own.src.pieces("ﬁ") == own.src.pieces("fi") != joint.src.pieces("ﬁ")
    away = make_tokenizers(small(), [Pair(pair.tgt, pair.src) for pair in TEXT] + [Pair(tgt, "yes")])
    assert away.src.pieces("ﬁ") == away.src.pieces("fi")


def test_both_sides_are_targets_in_both_directions() -> None:
    pairs = [Pair("今天天气很好，我们去公园！", f"line {number}") for number in range(50)]
    for reverse in (False, True):
        tokenizers = make_tokenizers(small(), pairs, reverse=reverse)
        [ids] = tokenizers.src.encode(["很好！"])
        assert tokenizers.src.decode([ids.tolist()]) == ["很好！" if reverse else "很好!"]


def test_the_characters_of_symbols_are_not_counted() -> None:
    said: list[str] = []
    tagged = [Pair(f"<2de> {src}", tgt) for src, tgt in PAIRS]
    tokenizer = make_tokenizers(
        small(user_symbols=["<2de>"], character_coverage=1.0), tagged, say=said.append
    )
    assert "<2de>" in tokenizer.src.pieces(tagged[0].src) and said == []


def test_a_vocabulary_that_is_too_small() -> None:
    with pytest.raises(
        ConfigError, match=r"^tokenizer\.vocab_size: 16 is too few .*\(set it to at least (\d+)"
    ) as caught:
        make_tokenizers(small(vocab_size=16), PAIRS)
    smallest = int(str(caught.value).split("at least ")[1].split(",")[0])
    assert make_tokenizers(small(vocab_size=smallest), PAIRS).src.num_pieces == smallest


@pytest.mark.parametrize("pairs", [[], [Pair(" ", "")], [Pair("\u200b", "\u200b")], [Pair("x" * 5000, "")]])
def test_nothing_to_train_on(pairs: list[Pair], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="no text to train the tokenizer on"):
        make_tokenizers(small(normalization="nmt_nfkc"), pairs)
    assert capfd.readouterr() == ("", "")


def test_training_is_quiet_and_passes_over_very_long_lines(capfd: pytest.CaptureFixture[str]) -> None:
    longest = "ü" * MAX_TRAINING_CHARS
    kept = make_tokenizers(small(), [*PAIRS, Pair(longest, longest)])
    plain = make_tokenizers(small(), PAIRS)
    too_long = make_tokenizers(small(), [*PAIRS, Pair("y" * 1_000_000, longest + "ü")])
    assert too_long.fingerprint == plain.fingerprint
    assert kept.fingerprint != plain.fingerprint
    assert capfd.readouterr() == ("", "")


def test_errors_of_reading_pass_through() -> None:
    def broken() -> Iterator[Pair]:
        yield PAIRS[0]
        raise DataError("broken", where="a.en:2")

    with pytest.raises(DataError, match=r"^a\.en:2: broken$"):
        make_tokenizers(small(), broken())


def test_existing_models_need_no_pairs(tmp_path: Path) -> None:
    def untouched() -> Iterator[Pair]:
        raise AssertionError
        yield

    path = tmp_path / "some.model"
    path.write_bytes(train_elsewhere())
    tokenizers = make_tokenizers(TokenizerConfig(model=str(path)), untouched())
    assert tokenizers.joint
    other = tmp_path / "other.model"
    other.write_bytes(train_elsewhere(model_type="bpe"))
    config = TokenizerConfig(src_model=str(path), tgt_model=str(other))
    tokenizers = make_tokenizers(config, untouched())
    assert not tokenizers.joint
    tokenizers.save(tmp_path)
    assert load_tokenizers(tmp_path).fingerprint == tokenizers.fingerprint


def test_special_pieces_that_a_model_lacks_follow_its_last_piece() -> None:
    own = Tokenizer(train_elsewhere())
    num_pieces = sentencepiece.SentencePieceProcessor(model_proto=train_elsewhere()).get_piece_size()
    assert (own.unk, own.bos, own.eos, own.pad) == (0, 1, 2, num_pieces)
    assert own.num_pieces == num_pieces + 1
    assert own.vocab_size % 8 == 0
    assert own.vocab_size >= own.num_pieces

    bare = Tokenizer(train_elsewhere(bos_id=-1, eos_id=-1, pad_id=-1))
    size = bare.num_pieces - 3
    assert (bare.unk, bare.pad, bare.bos, bare.eos) == (0, size, size + 1, size + 2)
    ids = bare.encode([PAIRS[0].src])[0].tolist()
    assert bare.decode([[size + 1, *ids, size + 2, size, size, bare.vocab_size - 1]]) == [PAIRS[0].src]


def test_a_decoded_line_is_one_line() -> None:
    tokenizer = make_tokenizers(small(), PAIRS).src
    newline, carriage_return, nul = (
        next(i for i in range(4, 260) if tokenizer._processor.id_to_piece(i) == f"<0x{byte:02X}>")
        for byte in (10, 13, 0)
    )
    man = tokenizer.encode(["Mann"])[0].tolist()
    texts = tokenizer.decode([[*man, newline, *man, carriage_return, nul]])
    assert texts == ["Mann  Mann "]


def test_odd_text(unigram: Tokenizer) -> None:
    assert [len(row) for row in unigram.encode(["", " ", "\u2028", "\u200b"])] == [0, 0, 0, 0]
    assert unigram.decode(unigram.encode(["a\u2028b\rc"])) == ["a b c"]
    with pytest.raises(DataError, match="line 2: half of a surrogate pair"):
        unigram.encode(["a", "b\ud800"])


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_symbols_are_pieces_by_themselves(kind: str) -> None:
    own = make_tokenizers(small(type=kind, user_symbols=("<2de>",)), PAIRS).src
    assert own.is_single_piece("<2de>")
    word = next(own.piece(i) for i in range(300, own.num_pieces) if own.piece(i)[0] == "\u2581")
    for text in ("", " ", "<2fr>", "<2de><2de>", "<2de> a", word, word[1:] or "ab", "\u2581", "<unk>", "語"):
        assert not own.is_single_piece(text), text


def test_many_lines_equal_single_lines(unigram: Tokenizer) -> None:
    lines = [text for pair in PAIRS for text in pair] * 10
    together = unigram.encode(lines)
    assert [row.tolist() for row in together] == [unigram.encode([line])[0].tolist() for line in lines]


def test_missing_and_damaged_models(
    tmp_path: Path, unigram: Tokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        load_tokenizers(tmp_path / "nowhere")
    with pytest.raises(StorageError, match=r"no tokenizer\.model"):
        load_tokenizers(tmp_path)
    unigram.save(tmp_path / "tokenizer.src.model")
    with pytest.raises(StorageError, match=r"tokenizer\.tgt\.model: no such file"):
        load_tokenizers(tmp_path)
    path = tmp_path / "tokenizer.model"
    unigram.save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"garbage", whole[: len(whole) // 2], whole[:-100]):
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match=r"tokenizer\.model: .*not a SentencePiece model"):
            load_tokenizers(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_pair_of_tokenizers_is_told_from_its_reverse() -> None:
    separate = make_tokenizers(small(joint=False), PAIRS)
    reverse = Tokenizers(separate.tgt, separate.src, joint=False)
    assert reverse.fingerprint != separate.fingerprint
