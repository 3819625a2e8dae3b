"""Import of JoeyNMT's models against the real library: hidden states, logits, search, tokens; and damaged folders.

Two things of JoeyNMT 2.3 stand in: `plot_heatmap` and TensorBoard's writer are not needed here, and SentencePiece's
`SetVocabulary`, which newer versions of that library lack, is written with its protocol buffers.
"""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from peers import lines_of_many_scripts, padded, randomize, translations_with

from mtkit.config.sections import TokenizerConfig
from mtkit.data.readers import Pair
from mtkit.data.tokenizer import Tokenizers, make_tokenizers
from mtkit.demo.generator import generate
from mtkit.interop.formats import FORMATS
from mtkit.interop.importing import ImportOptions, import_model
from mtkit.translation.loading import load_model
from mtkit.translation.translator import Translator

pytest.importorskip("joeynmt")
pytest.importorskip("subword_nmt")
pytest.importorskip("sacremoses")

SHORT: dict[str, Any] = {"max_length_ratio": 0.3, "max_length_extra": 4}
"""Random models seldom end a sentence."""

SHAPES: list[dict[str, Any]] = [
    {},
    {"layer_norm": "pre"},
    {"layer_norm": None},
    {"encoder": {"layer_norm": "pre"}, "decoder": {"layer_norm": "post"}},
    {"initializer": "xavier_normal"},
    {"encoder": {"alpha": 1.3}, "decoder": {"alpha": 0.7}},
    {"activation": "gelu"},
    {"activation": "swish", "layer_norm": "pre"},
    {"encoder": {"num_layers": 3}, "decoder": {"num_layers": 1}},
    {"encoder": {"num_heads": 2, "ff_size": 40}, "decoder": {"num_heads": 8, "ff_size": 72}},
    {"scale": False},
    {"tied_softmax": False},
    {"tied_embeddings": False},
    {"tied_embeddings": False, "tied_softmax": False},
    {"width": 48, "scale": False, "layer_norm": "pre"},
]


@pytest.fixture(scope="module", autouse=True)
def joeynmt() -> Iterator[None]:
    stand_ins = {"joeynmt.plotting": "plot_heatmap", "torch.utils.tensorboard": "SummaryWriter"}
    with pytest.MonkeyPatch.context() as patch:
        for name, attribute in stand_ins.items():
            patch.setitem(sys.modules, name, types.ModuleType(name))
            setattr(sys.modules[name], attribute, None)
        patch.setitem(sys.modules, "importlib_metadata", types.ModuleType("importlib_metadata"))
        yield


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    texts = lines_of_many_scripts(600, seed=9)
    pairs = [Pair(*pair) for pair in generate("en-de", 400, 1, "train")]
    pairs += [Pair(line, line) for line in texts]
    return make_tokenizers(
        TokenizerConfig(vocab_size=1300, byte_fallback=False, character_coverage=0.98), pairs
    )


@pytest.fixture(scope="module")
def codes() -> str:
    import io

    from subword_nmt.learn_bpe import learn_bpe

    out = io.StringIO()
    words = [" ".join(pair) + "\n" for pair in generate("en-de", 400, 1, "train")]
    learn_bpe(words + [line.lower() + "\n" for line in words], out, 120)
    return out.getvalue()


def make_config(shape: dict[str, Any]) -> dict[str, Any]:
    """A config as JoeyNMT's are, for a tiny Transformer."""
    shape = dict(shape)
    width, scale = shape.pop("width", 32), shape.pop("scale", True)
    stack = {
        "type": "transformer", "num_layers": 2, "num_heads": 4, "hidden_size": width, "ff_size": 64, "dropout": 0.1,
        "embeddings": {"embedding_dim": width, "scale": scale, "dropout": 0.0}, "layer_norm": "post",
    }  # fmt: skip
    for key in ("layer_norm", "activation"):
        if key in shape:
            stack[key] = shape.pop(key)
    stack = {key: value for key, value in stack.items() if value is not None}
    stacks = {name: stack | shape.pop(name, {}) for name in ("encoder", "decoder")}
    side = {
        "lowercase": False, "normalize": False, "level": "bpe", "tokenizer_type": "sentencepiece",
        "tokenizer_cfg": {"model_file": "/somewhere/else/sp.model", "pretokenizer": "none"},
    }  # fmt: skip
    return {
        "name": "tiny", "joeynmt_version": "2.3.0", "model_dir": "/nowhere", "use_cuda": False,
        "data": {"src": {"lang": "en", **side}, "trg": {"lang": "de", **side}},
        "testing": {"beam_size": 4, "beam_alpha": 1.0, "batch_size": 50},
        "training": {"batch_size": 50},
        "model": {"tied_embeddings": True, "tied_softmax": True, **stacks, **shape},
    }  # fmt: skip


def save(
    folder: Path, config: dict[str, Any], tokenizers: Tokenizers, codes: str, pieces: list[str] | None = None
) -> Any:
    """A random model, saved as JoeyNMT does. Returns it and the tokenizers of both sides."""
    from joeynmt.config import _check_special_symbols
    from joeynmt.model import build_model
    from joeynmt.tokenizers import _build_tokenizer
    from joeynmt.vocabulary import Vocabulary

    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    (folder / "sp.model").write_bytes(tokenizers.src.model)
    (folder / "bpe.codes").write_text(codes, encoding="utf-8")
    special = SimpleNamespace(**_check_special_symbols({}))
    sides = {}
    for side in ("src", "trg"):
        own = {**config["data"][side], "tokenizer_cfg": dict(config["data"][side].get("tokenizer_cfg", {}))}
        for key in ("model_file", "codes"):
            if key in own["tokenizer_cfg"]:
                own["tokenizer_cfg"][key] = str(folder / Path(own["tokenizer_cfg"][key]).name)
        sides[side] = _build_tokenizer(own)
        if pieces is None:
            src = tokenizers.src
            pieces = [src.piece(i) for i in range(4, src.num_pieces) if i % 7]
        vocabulary = Vocabulary(pieces, special)
        vocabulary.to_file(folder / f"{side}_vocab.txt")
        if hasattr(sides[side], "spm"):
            restrict(sides[side].spm, vocabulary._itos)
            super(type(sides[side]), sides[side]).set_vocab(vocabulary)
        else:
            sides[side].set_vocab(vocabulary)
    torch.manual_seed(1)
    from copy import deepcopy

    model = build_model(deepcopy(config["model"]), vocabulary, vocabulary).eval()
    randomize(model)
    model.specials, model.lang_tags = model.specials, []
    state = {"model_state": model.state_dict(), "optimizer_state": {}, "stats_state": {"steps": 7}}
    torch.save(state, folder / "7.ckpt")
    (folder / "best.ckpt").symlink_to("7.ckpt")
    return model, sides["src"], sides["trg"]


def restrict(processor: Any, vocabulary: list[str]) -> None:
    """Do what SentencePiece's `SetVocabulary` does, by its source: a character alone is always allowed."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(processor.serialized_model_proto())
    for piece in model.pieces:
        if piece.type in (piece.NORMAL, piece.UNUSED):
            allowed = piece.piece in vocabulary or len(piece.piece) == 1
            piece.type = piece.NORMAL if allowed else piece.UNUSED
    processor.load_from_serialized_proto(model.SerializeToString())


def their_ids(tokenizer: Any, line: str, model: Any) -> list[int]:
    return [model.src_vocab.lookup(token) for token in tokenizer(tokenizer.pre_process(line))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_imported_model_computes_the_same(
    shape: dict[str, Any], tmp_path: Path, tokenizers: Tokenizers, codes: str
) -> None:
    theirs, tokenizer, _ = save(tmp_path / "joey", make_config(shape), tokenizers, codes)
    import_model(str(tmp_path / "joey"), tmp_path / "ours", FORMATS, ImportOptions())
    _, own, ours = load_model(tmp_path / "ours")
    ours.eval()
    lines = lines_of_many_scripts(40)
    rows = [[*ids.tolist(), own.src.eos] for ids in own.src.encode(lines)]
    assert rows == [[*their_ids(tokenizer, line, theirs), theirs.eos_index] for line in lines]
    src = padded(rows, own.src.pad)
    torch.manual_seed(1)
    tgt = torch.randint(0, own.tgt.vocab_size, (len(lines), 9))
    tgt[:, 0] = own.tgt.bos
    mask = src != own.src.pad
    with torch.no_grad():
        memory = ours.encode(src)
        their_memory, _ = theirs.encoder(theirs.src_embed(src), mask.sum(1), mask[:, None])
        torch.testing.assert_close(memory[mask], their_memory[mask], atol=1e-4, rtol=1e-4)
        logits = ours.logits(ours.decode(tgt, memory, ours.source_mask(src)))
        torch.testing.assert_close(logits, their_logits(theirs, src, tgt), atol=1e-4, rtol=1e-4)


def their_logits(model: Any, src: torch.Tensor, tgt: torch.Tensor) -> torch.Tensor:
    mask = (src != model.pad_index)[:, None]
    length = mask.sum(2)[:, 0]
    ones = torch.ones(len(tgt), 1, tgt.shape[1], dtype=torch.bool)
    logits: torch.Tensor = model._encode_decode(src, tgt, mask, length, trg_mask=ones)[0]
    return logits


@pytest.mark.slow
def test_greedy_search_of_both_gives_the_same_text(
    tmp_path: Path, tokenizers: Tokenizers, codes: str
) -> None:
    from joeynmt.search import search

    theirs, src_tokenizer, tgt_tokenizer = save(
        tmp_path / "joey", make_config({"layer_norm": "pre"}), tokenizers, codes
    )
    import_model(str(tmp_path / "joey"), tmp_path / "ours", FORMATS, ImportOptions())
    translator = Translator.load(tmp_path / "ours", beam_size=1, precision="fp32", **SHORT)
    assert translator.search_options.min_length == 1
    lines = lines_of_many_scripts(500)
    ours = [translation.text for translation in translator.translate(lines)]
    limit = translator.decoding.max_length
    for line, own in zip(lines, ours, strict=True):
        ids = [*their_ids(src_tokenizer, line, theirs), theirs.eos_index]
        src = torch.tensor([ids])
        batch = SimpleNamespace(
            src=src, src_mask=(src != theirs.pad_index)[:, None], src_length=torch.tensor([len(ids)]),
            has_trg=False, trg_prompt_mask=None, src_prompt_mask=None,
        )  # fmt: skip
        found, _, _ = search(
            theirs, batch, limit(len(ids) - 1), 1, -1, generate_unk=False, min_output_length=1
        )
        found = found[0][:-1] if found[0][-1] == theirs.eos_index else found[0][: limit(len(ids) - 1) - 1]
        (tokens,) = theirs.trg_vocab.arrays_to_sentences([found])
        assert own.strip() == tgt_tokenizer.post_process(tokens, generate_unk=True), line


@pytest.mark.slow
@pytest.mark.parametrize("beam_size", [1, 4])
def test_beam_search_with_both_models_gives_the_same_text(
    beam_size: int, tmp_path: Path, tokenizers: Tokenizers, codes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, _, _ = save(tmp_path / "joey", make_config({}), tokenizers, codes)
    import_model(str(tmp_path / "joey"), tmp_path / "ours", FORMATS, ImportOptions())
    translator = Translator.load(tmp_path / "ours", beam_size=beam_size, precision="fp32", **SHORT)
    lines = lines_of_many_scripts(500)
    ours = [translation.text for translation in translator.translate(lines)]
    same = translations_with(
        monkeypatch, translator, lines, lambda src, tgt: their_logits(theirs, src, tgt)[:, -1]
    )
    assert ours == same


SEGMENTATIONS: dict[str, dict[str, Any]] = {
    "sentencepiece": {},
    "moses and sentencepiece": {
        "tokenizer_cfg": {"model_file": "sp.model", "pretokenizer": "moses"}, "lowercase": True
    },
    "subword-nmt": {"tokenizer_type": "subword-nmt", "tokenizer_cfg": {"codes": "/a/bpe.codes"}},
    "moses and subword-nmt": {
        "tokenizer_type": "subword-nmt", "lowercase": True,
        "tokenizer_cfg": {"codes": "bpe.codes", "pretokenizer": "moses", "separator": "//"},
    },
    "words": {"level": "word"},
    "moses words": {"level": "word", "tokenizer_cfg": {"pretokenizer": "moses"}},
    "characters": {"level": "char", "lowercase": True},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEGMENTATIONS)
def test_lines_of_many_scripts_are_split_as_joeynmt_does(
    kind: str, tmp_path: Path, tokenizers: Tokenizers, codes: str
) -> None:
    config = make_config({})
    for side in ("src", "trg"):
        config["data"][side] |= SEGMENTATIONS[kind]
    lines = lines_of_many_scripts(5000)
    _, tokenizer, _ = save(tmp_path / "first", config, tokenizers, codes)
    tokenized = [token for line in lines for token in tokenizer(tokenizer.pre_process(line))]
    pieces = [token for token in dict.fromkeys(tokenized) if random.Random(token).random() < 0.8]
    theirs, tokenizer, tgt_tokenizer = save(tmp_path / "joey", config, tokenizers, codes, pieces)
    import_model(str(tmp_path / "joey"), tmp_path / "ours", FORMATS, ImportOptions())
    _, own, _ = load_model(tmp_path / "ours")
    for line, ids in zip(lines, own.src.encode(lines), strict=True):
        assert ids.tolist() == their_ids(tokenizer, line, theirs), line
    texts = own.tgt.decode(own.src.encode(lines))
    for line, text, ids in zip(lines, texts, own.src.encode(lines), strict=True):
        tokens = [theirs.trg_vocab._itos[i] for i in ids]
        assert text.strip() == tgt_tokenizer.post_process(tokens, generate_unk=True).strip(), line
