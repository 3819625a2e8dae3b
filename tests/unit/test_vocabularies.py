"""Tokenizers with a vocabulary of their own: ids of another toolkit over SentencePiece or byte pair encoding."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtkit.config.sections import TokenizerConfig
from mtkit.data.readers import Pair
from mtkit.data.segmentation import BytePairEncoding, Characters, Preparation, SentencePiece, Words
from mtkit.data.tokenizer import (
    VOCABULARY_FILE,
    Tokenizer,
    Tokenizers,
    Vocabulary,
    VocabularyTokenizer,
    load_tokenizers,
    make_tokenizers,
)
from mtkit.errors import StorageError

LINES = [
    "The quick brown fox jumps over the lazy dog.",
    "  two  spaces and a tab\there ",
    "Ünïcödé naïve ﬁne ① ½",
    "日本語のテスト 漢字 ☃ 🎉",
    "",
    " ",
    "a@@ b @ c @@",
    'don\'t "quote" (x) & <y> [z] 3.5 %',
]


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    text = "the quick brown fox jumps over a lazy dog and two spaces here naive test don't quote"
    words = text.split()
    rng = random.Random(0)
    pairs = [Pair(" ".join(rng.choices(words, k=6)), " ".join(rng.choices(words, k=5))) for _ in range(300)]
    return make_tokenizers(TokenizerConfig(vocab_size=90, byte_fallback=False), pairs).src


@pytest.fixture(scope="module")
def shuffled(plain: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> VocabularyTokenizer:
    """The same model with other ids, special tokens at the end as in Marian, and tags."""
    path = tmp_path_factory.mktemp("spm") / "m.model"
    plain.save(path)
    tokens = [plain.piece(i) for i in range(plain.num_pieces) if plain.piece(i) not in ("<pad>", "<s>")]
    random.Random(1).shuffle(tokens)
    vocabulary = Vocabulary((*tokens, ">>fra<<", "<pad>"), "<pad>", "<unk>", "<pad>", "</s>", tags=True)
    return VocabularyTokenizer(SentencePiece(path.read_bytes()), vocabulary)


def test_other_ids_for_the_same_pieces(plain: Tokenizer, shuffled: VocabularyTokenizer) -> None:
    many = LINES * 40  # enough for threads
    for ours, theirs, line in zip(shuffled.encode(many), plain.encode(many), many, strict=True):
        assert [shuffled.piece(i) for i in ours] == [plain.piece(i) for i in theirs]
        known = [i for i in ours if i != shuffled.unk]
        same = [i for i in theirs if i != plain.unk]
        (text,) = plain.decode([same])
        assert shuffled.decode([known]) == [text.strip()] == ["".join(shuffled.token_texts(known))]
        if text == text.strip():
            assert shuffled.token_texts(known) == plain.token_texts(same)
        assert shuffled.spans(line) == plain.spans(line)
        assert shuffled.unknown_spans(line) == plain.unknown_spans(line)
        assert shuffled.pieces(line) == plain.pieces(line)
    assert shuffled.count_characters(LINES) == plain.count_characters(LINES)


def test_a_tag_at_the_start_is_one_token(shuffled: VocabularyTokenizer) -> None:
    tag = shuffled.vocabulary.ids[">>fra<<"]
    ids = shuffled.encode([">>fra<<the dog", ">>fra<< the dog", ">>xyz<< the", "the >>fra<<", ">>fra"])
    assert ids[0].tolist() == [tag, *shuffled.encode(["the dog"])[0].tolist()] == ids[1].tolist()
    assert ids[2][0] == shuffled.unk
    assert tag not in ids[3]
    assert tag not in ids[4]
    assert shuffled.is_single_piece(">>fra<<")
    assert not shuffled.is_single_piece("the dog")
    assert shuffled.spans(">>fra<<the dog")[:2] == [(0, 7), (7, 10)]
    assert len(shuffled.pieces(">>fra<<the dog")) == len(ids[0])


def test_special_tokens_have_no_text(shuffled: VocabularyTokenizer) -> None:
    ids = shuffled.encode(["the dog"])[0].tolist()
    assert shuffled.decode([[shuffled.bos, *ids, shuffled.eos, shuffled.pad]]) == ["the dog"]
    assert shuffled.token_texts([shuffled.bos, *ids, shuffled.eos]) == ["", *shuffled.token_texts(ids), ""]
    assert "".join(shuffled.token_texts(ids)) == "the dog"


def test_pieces_of_another_model_are_spelled_with_spaces(shuffled: VocabularyTokenizer) -> None:
    tokens = (*shuffled.vocabulary.tokens, "▁strange", "ness")
    vocabulary = Vocabulary(tokens, "<pad>", "<unk>", "<pad>", "</s>")
    tokenizer = VocabularyTokenizer(shuffled.segmentation, vocabulary)
    ids = [vocabulary.ids[piece] for piece in ("▁strange", "ness", "▁the")]
    assert tokenizer.decode([ids]) == ["strangeness the"]
    assert "".join(tokenizer.token_texts(ids)) == "strangeness the"


# --- byte pair encoding -------------------------------------------------------------------------------------------


CODES = "#version: 0.2\nt h\nth e</w>\nq u\nd o\ndo g</w>\no v\nov er</w>\ne r</w>\n"


@pytest.fixture(scope="module")
def bpe() -> VocabularyTokenizer:
    segmentation = BytePairEncoding(CODES.encode())
    pieces = sorted({piece for row in segmentation.split(LINES[:4]) for piece in row})
    vocabulary = Vocabulary(("<s>", "<pad>", "</s>", "<unk>", *pieces), "<pad>", "<unk>", "</s>", "</s>")
    return VocabularyTokenizer(segmentation, vocabulary)


def test_byte_pair_encoding_is_that_of_subword_nmt(bpe: VocabularyTokenizer) -> None:
    from subword_nmt.apply_bpe import BPE

    theirs = BPE(io.StringIO(CODES))
    for line in LINES[:4]:
        pieces = bpe.pieces(line)
        assert " ".join(pieces) == " ".join(theirs.process_line(" ".join(line.split())).split())
        assert [bpe.piece(i) for i in bpe.encode([line])[0]] == pieces
        joined = " ".join(line.split())
        assert bpe.decode(bpe.encode([line])) == [joined]
        assert "".join(bpe.token_texts(bpe.encode([line])[0].tolist())) == joined
        spans = bpe.spans(line)
        assert [line[start:end] for start, end in spans] == [piece.removesuffix("@@") for piece in pieces]


def test_moses_and_lowercase() -> None:
    from sacremoses import MosesDetokenizer, MosesTokenizer

    bpe = BytePairEncoding(CODES.encode(), preparation=Preparation("en", lowercase=True))
    line = "The dog (over there) doesn't bark, it's \"quiet\"."
    words = [word.lower() for word in MosesTokenizer("en").tokenize(line, escape=False)]
    (pieces,) = bpe.split([line])
    assert " ".join(pieces).replace("@@ ", "") == " ".join(words)
    text, spans = bpe.join(pieces)
    assert text == MosesDetokenizer("en").detokenize(words)
    assert "".join(text[start:end] for start, end in spans) == text
    assert [text[start:end].strip() for start, end in spans][:3] == ["the", "dog", "("]


def test_moses_may_escape() -> None:
    line = "R&D in [brackets]"
    words = Words(b"", preparation=Preparation("en", escape=True))
    (pieces,) = words.split([line])
    assert pieces == ["R", "&amp;", "D", "in", "&#91;", "brackets", "&#93;"]
    text, spans = words.join(pieces)
    assert text == "R & D in [brackets]"
    assert [text[start:end].strip() for start, end in spans] == ["R", "&", "D", "in", "[", "brackets", "]"]
    spans = words.spans(line)
    assert [line[start:end] for start, end in spans if end > start] == ["R", "D", "in", "brackets"]


def test_moses_may_split_dashes() -> None:
    words = Words(b"", preparation=Preparation("en", escape=True, split_dashes=True))
    (pieces,) = words.split(['a well-known "dog"'])
    assert pieces == ["a", "well", "@-@", "known", "&quot;", "dog", "&quot;"]
    text, spans = words.join(pieces)
    assert text == 'a well-known "dog"'
    assert [text[start:end].strip() for start, end in spans if end > start][-2:] == ["dog", '"']


def test_further_special_tokens_have_no_text(tmp_path: Path) -> None:
    vocabulary = Vocabulary(
        ("<s>", "<pad>", "</s>", "<unk>", "a", "b"), "<pad>", "<unk>", "</s>", "</s>", special=("<s>",)
    )
    words = VocabularyTokenizer(Words(b""), vocabulary)
    assert words.decode([[0, 4, 0, 5, 2]]) == ["a b"]
    assert words.token_texts([0, 4, 5]) == ["", "a ", "b"]
    assert (words.special, vocabulary.pieces) == ((1, 2, 2, 0), {"a", "b"})
    Tokenizers(words, words, joint=True).save(tmp_path)
    loaded = load_tokenizers(tmp_path)
    assert loaded.src.special == words.special and loaded.src.fingerprint == words.fingerprint
    with pytest.raises(ValueError, match="special token 'x' is not"):
        Vocabulary(("<s>", "a"), "<s>", "<s>", "<s>", "<s>", special=("x",))


def test_words_and_characters() -> None:
    (words,) = Words(b"").split(["two  words"])
    assert words == ["two", "words"]
    text, spans = Words(b"").join(words)
    assert text == "two words" and "".join(text[start:end] for start, end in spans) == text
    (characters,) = Characters(b"", preparation=Preparation(lowercase=True)).split(["Ab c"])
    assert characters == ["a", "b", "\u2581", "c"]
    assert Characters(b"").join(characters) == ("ab c", [(0, 1), (1, 2), (2, 3), (3, 4)])
    assert Characters(b"").spans("ab c") == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_pieces_restricted_to_a_vocabulary(shuffled: VocabularyTokenizer) -> None:
    bpe = BytePairEncoding(CODES.encode(), only={"th@@", "e", "d@@", "o@@", "g"})
    assert bpe.split(["the dog"]) == [["th@@", "e", "d@@", "o@@", "g"]]
    model = shuffled.segmentation.model
    (usual,) = SentencePiece(model).split(["the dog"])
    assert any(len(piece) > 2 for piece in usual)
    (restricted,) = SentencePiece(model, only=set("thedog")).split(["the dog"])
    assert all(len(piece) == 1 for piece in restricted)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (b"a b\nabc\n", "codes:2: expected two pieces separated by a space"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"#version: x\na b\n", "codes:1: unknown version"),
        (b"", "codes:1: expected two pieces"),
    ],
)
def test_malformed_codes(codes: bytes, message: str) -> None:
    with pytest.raises(StorageError) as caught:
        BytePairEncoding(codes)
    assert message in str(caught.value)


# --- on disk ------------------------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path: Path, shuffled: VocabularyTokenizer, bpe: VocabularyTokenizer) -> None:
    other = VocabularyTokenizer(
        shuffled.segmentation,
        Vocabulary((*shuffled.vocabulary.tokens, "other"), "<pad>", "<unk>", "<pad>", "</s>"),
    )
    settings = Preparation("en", escape=True, lowercase=True)
    words = VocabularyTokenizer(Words(b"", preparation=settings), bpe.vocabulary)
    only = bpe.vocabulary.pieces
    restricted = VocabularyTokenizer(
        BytePairEncoding(CODES.encode(), only=only, separator="//"), bpe.vocabulary
    )
    for number, tokenizers in enumerate(
        [
            Tokenizers(words, words, joint=True),
            Tokenizers(restricted, words, joint=True),
            Tokenizers(shuffled, shuffled, joint=True),
            Tokenizers(shuffled, other, joint=False),
            Tokenizers(bpe, bpe, joint=True),
            Tokenizers(bpe, shuffled, joint=False),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        tokenizers.save(folder)
        loaded = load_tokenizers(folder)
        assert loaded.fingerprint == tokenizers.fingerprint
        assert loaded.joint == tokenizers.joint
        assert (loaded.src is loaded.tgt) == (tokenizers.src is tokenizers.tgt)
        for side in ("src", "tgt"):
            ours, theirs = getattr(loaded, side), getattr(tokenizers, side)
            assert [row.tolist() for row in ours.encode(LINES)] == [
                row.tolist() for row in theirs.encode(LINES)
            ]
            assert (ours.pad, ours.unk, ours.bos, ours.eos) == (
                theirs.pad,
                theirs.unk,
                theirs.bos,
                theirs.eos,
            )


def test_a_plain_tokenizer_saved_over_it_leaves_nothing_behind(
    tmp_path: Path, plain: Tokenizer, shuffled: VocabularyTokenizer
) -> None:
    Tokenizers(shuffled, shuffled, joint=True).save(tmp_path)
    Tokenizers(plain, plain, joint=True).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]
    assert load_tokenizers(tmp_path).fingerprint == Tokenizers(plain, plain, joint=True).fingerprint


def changed(**keys: Any) -> Callable[[dict[str, Any]], object]:
    return lambda described: described["src"]["vocabulary"].update(keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda described: described.update(format=99), "written by a later version"),
        (lambda described: described.pop("tgt"), "'tgt'"),
        (lambda described: described["src"].update(segmentation="x"), "unknown segmentation 'x'"),
        (changed(bos="nowhere"), "bos 'nowhere' is not a token"),
        (changed(tokens=["a", "<pad>", "<unk>", "</s>", "a"]), "the token 'a' is there twice"),
        (changed(tokens=None), "not a vocabulary"),
        (changed(other=1), "not a vocabulary"),
    ],
)
def test_damaged_descriptions(
    tmp_path: Path, shuffled: VocabularyTokenizer, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    Tokenizers(shuffled, shuffled, joint=True).save(tmp_path)
    path = tmp_path / VOCABULARY_FILE
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))
    with pytest.raises(StorageError, match=message):
        load_tokenizers(tmp_path)
    path.write_text("{")
    with pytest.raises(StorageError, match="not a vocabulary of mtkit"):
        load_tokenizers(tmp_path)


def test_special_tokens_in_a_text_are_text() -> None:
    vocabulary = Vocabulary(
        ("<blank>", "<unk>", "<s>", "</s>", "a", "dog"), "<blank>", "<unk>", "<s>", "</s>"
    )
    tokenizer = VocabularyTokenizer(Words(b""), vocabulary)
    assert tokenizer.encode(["a <blank> dog </s> <s>"])[0].tolist() == [4, 1, 5, 1, 1]
    assert tokenizer.unknown_spans("a <blank> dog") == [(2, 9)]
