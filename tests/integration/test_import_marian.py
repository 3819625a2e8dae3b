"""Import of Hugging Face Marian models against the real `transformers`: hidden states, logits, search, tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peers
import pytest
import tiny
import torch

from mtkit.config.sections import TokenizerConfig
from mtkit.data.readers import Pair
from mtkit.data.tokenizer import SPECIALS, make_tokenizers
from mtkit.demo.generator import generate
from mtkit.interop.exporting import LoadedModel
from mtkit.interop.formats import FORMATS
from mtkit.interop.hugging_face_engine import HuggingFaceExporter
from mtkit.interop.importing import ImportOptions, import_model
from mtkit.translation.loading import load_model
from mtkit.translation.options import TranslateOptions
from mtkit.translation.segments import Request
from mtkit.translation.translator import Translator

transformers = pytest.importorskip("transformers")

TAGS = (">>fra<<", ">>deu<<")
SHAPES: list[dict[str, Any]] = [
    {},
    {"activation_function": "relu"},
    {"activation_function": "gelu"},
    {"scale_embedding": False},
    {"encoder_layers": 3, "decoder_layers": 1},
    {"encoder_layers": 1, "decoder_layers": 3},
    {"decoder_attention_heads": 2},
    {"decoder_ffn_dim": 24},
    {"encoder_attention_heads": 1, "decoder_attention_heads": 8},
    {"d_model": 48, "encoder_ffn_dim": 200},
    {"share_encoder_decoder_embeddings": False, "separate": True},
    {"tie_word_embeddings": False},
    {"pickle": True},
]

BEGINNINGS = ["Ünïcode ☃ 漢字 ", ">>fra<< ", "  two  spaces ", "3.5 % (x) "]
"""What some of the sentences begin with."""


@pytest.fixture(scope="module")
def sentencepiece_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """source.spm and target.spm, trained on the demo's English and German."""
    folder = tmp_path_factory.mktemp("spm")
    pairs = [Pair(*pair) for pair in generate("en-de", 400, 1, "train")]
    config = TokenizerConfig(joint=False, vocab_size=150, byte_fallback=False)
    tokenizers = make_tokenizers(config, pairs)
    tokenizers.src.save(folder / "source.spm")
    tokenizers.tgt.save(folder / "target.spm")
    return folder


def special_free(path: Path) -> list[str]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    return [piece for piece in pieces if piece not in ("<pad>", "<unk>", "<s>", "</s>")]


def vocabulary(pieces: list[str]) -> dict[str, int]:
    """As the converter of Marian models writes it: </s> and <unk> first, <pad> last."""
    return {token: index for index, token in enumerate(["</s>", "<unk>", *TAGS, *pieces, "<pad>"])}


def save_marian(folder: Path, spm: Path, seed: int = 0, **shape: Any) -> Any:
    """A random model and its tokenizer, saved by `transformers`. Returns both."""
    shape = dict(shape)
    separate, pickled = shape.pop("separate", False), shape.pop("pickle", False)
    folder.mkdir(parents=True)
    pieces = [special_free(spm / name) for name in ("source.spm", "target.spm")]
    if separate:
        src, tgt = (vocabulary(side) for side in pieces)
    else:
        src = tgt = vocabulary(list(dict.fromkeys(pieces[0] + pieces[1])))
    (folder / "vocab.json").write_text(json.dumps(src))
    (folder / "target_vocab.json").write_text(json.dumps(tgt))
    for name in ("source.spm", "target.spm"):
        shutil.copy(spm / name, folder / name)
    tokenizer = transformers.MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json"),
        target_vocab_file=str(folder / "target_vocab.json") if separate else None, separate_vocabs=separate,
        source_lang="en", target_lang="de",
    )  # fmt: skip
    config = transformers.MarianConfig(
        vocab_size=len(src), decoder_vocab_size=len(tgt), max_position_embeddings=512,
        pad_token_id=src["<pad>"], eos_token_id=src["</s>"], decoder_start_token_id=tgt["<pad>"],
        forced_eos_token_id=None, bos_token_id=None,
        **({"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
            "activation_function": "swish", "scale_embedding": True} | shape),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3) if parameter.dim() > 1 else parameter.add_(
                    0.2 * torch.randn_like(parameter)
                )
        model.final_logits_bias.normal_()
        model.final_logits_bias[0, 0] += 6  # so that sentences end
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if pickled:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return model, tokenizer


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)) or "base")
def test_an_imported_model_computes_the_same(
    shape: dict[str, Any], tmp_path: Path, sentencepiece_files: Path
) -> None:
    theirs, their_tokenizer = save_marian(tmp_path / "hf", sentencepiece_files, **shape)
    import_model(str(tmp_path / "hf"), tmp_path / "ours", FORMATS, ImportOptions())
    _, tokenizers, ours = load_model(tmp_path / "ours")
    ours.eval()
    lines = peers.sentences(40, BEGINNINGS)
    own_ids = [[*ids.tolist(), tokenizers.src.eos] for ids in tokenizers.src.encode(lines)]
    assert own_ids == their_tokenizer(lines)["input_ids"]
    width = max(map(len, own_ids))
    src = torch.tensor([ids + [tokenizers.src.pad] * (width - len(ids)) for ids in own_ids])
    torch.manual_seed(1)
    tgt = torch.randint(0, tokenizers.tgt.vocab_size, (len(lines), 9))
    tgt[:, 0] = tokenizers.tgt.bos
    mask = src != tokenizers.src.pad
    with torch.no_grad():
        memory = ours.encode(src)
        their_memory = theirs.get_encoder()(input_ids=src, attention_mask=mask.long()).last_hidden_state
        torch.testing.assert_close(memory[mask], their_memory[mask], atol=1e-4, rtol=1e-4)
        logits = ours.logits(ours.decode(tgt, memory, ours.source_mask(src)))
        output = theirs(input_ids=src, attention_mask=mask.long(), decoder_input_ids=tgt)
        torch.testing.assert_close(logits, output.logits, atol=1e-4, rtol=1e-4)


OPUS = {"num_beams": 4, "max_length": 512, "renormalize_logits": True}
"""What generation_config.json of an opus-mt model says, besides the ids of its tokens."""


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model that has learned a little, so that its beams are of sentences that end, and its tokenizer.

    Its logit of `<pad>` is high: models that were converted from Marian have one too, and need `renormalize_logits`.
    Other tokens that mtkit never generates, such as `<unk>`, are improbable, as they are in those models.
    """
    folder = tmp_path_factory.mktemp("learned")
    config = tiny.write_config(
        folder / "config.yaml", run=folder / "run", root=tiny.write_corpus(folder / "data")
    )
    shape = ["model.positions=sinusoidal", "model.dropout=0.0", "model.norm_position=post"]
    assert tiny.mtkit("train", config, "training.max_steps=100", *shape)[0] == 0
    (folder / "hf").mkdir()
    HuggingFaceExporter().write(LoadedModel(*load_model(folder / "run"), None), folder / "hf", "float32")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf")
    model.final_logits_bias[0, : len(SPECIALS)] -= 30
    model.final_logits_bias[0, tokenizer.eos_token_id] += 30
    model.final_logits_bias[0, tokenizer.pad_token_id] = 8
    return model, tokenizer


def save_with_generation_config(folder: Path, learned: tuple[Any, Any], **settings: Any) -> None:
    model, tokenizer = learned
    ids = {
        f"{name}_token_id": getattr(model.config, f"{name}_token_id")
        for name in ("pad", "eos", "decoder_start")
    }
    own = {"bad_words_ids": [[tokenizer.pad_token_id]], "forced_eos_token_id": tokenizer.eos_token_id}
    values = own | OPUS | settings | ids
    model.generation_config = transformers.GenerationConfig(**values)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def generated(model: Any, tokenizer: Any, lines: list[str]) -> tuple[list[list[int]], list[float]]:
    """What `generate` returns for each line, as ids without the first and without padding, and their scores."""
    ids: list[list[int]] = []
    scores: list[float] = []
    eos = tokenizer.eos_token_id
    for start in range(0, len(lines), 50):
        batch = tokenizer(lines[start : start + 50], return_tensors="pt", padding=True)
        found = model.generate(**batch, return_dict_in_generate=True, output_scores=True)
        rows = [row[1:] for row in found.sequences.tolist()]
        ids += [row[: row.index(eos) + 1] if eos in row else row for row in rows]
        if "sequences_scores" in found:
            scores += found.sequences_scores.tolist()
    return ids, scores


GENERATION: list[dict[str, Any]] = [
    {},
    {"num_beams": 6},
    {"num_beams": 6, "length_penalty": 0.6, "early_stopping": True},
    {"length_penalty": 2.0, "early_stopping": "never", "max_length": 40},
    {"length_penalty": -0.5, "max_length": 20, "min_length": 8},
    {"length_penalty": 0.0, "no_repeat_ngram_size": 2, "max_length": 30},
    {"renormalize_logits": False, "min_new_tokens": 25},
    {"num_beams": 1, "max_length": 24},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", GENERATION, ids=lambda settings: "-".join(map(str, settings)) or "opus-mt"
)
def test_search_equals_generate_with_the_generation_config_of_the_model(
    settings: dict[str, Any], tmp_path: Path, learned: tuple[Any, Any]
) -> None:
    """Text of 500 sentences and the scores of the beam, without an option: the model says how it wants to search."""
    save_with_generation_config(tmp_path / "hf", learned, **settings)
    imported = import_model(str(tmp_path / "hf"), tmp_path / "ours", FORMATS, ImportOptions())
    assert imported.notes == ()
    translator = Translator.load(tmp_path / "ours", precision="fp32", device="cpu")
    lines = [src for src, _ in tiny.pairs(500, 9)]
    ours = [best[0] for best in translator.translate_n_best(lines)]
    ids, scores = generated(*learned, lines)
    found = learned[1].batch_decode(ids, skip_special_tokens=True)
    different = [(own, their) for own, their in zip(ours, found, strict=True) if own.text != their]
    assert not different, (len(different), different[:2])
    assert not scores or [own.score for own in ours] == pytest.approx(scores, abs=1e-4)
    assert len(set(found)) > len(lines) / 2


@pytest.mark.slow
def test_only_translations_that_reach_the_limit_differ_without_forced_eos(
    tmp_path: Path, learned: tuple[Any, Any]
) -> None:
    """There, a hypothesis that reaches `max_length` has no end; here, eos is its last token, as if it were forced.

    This may also change which hypothesis wins. Lines of which no best hypothesis reaches the limit are equal.
    """
    save_with_generation_config(tmp_path / "hf", learned, forced_eos_token_id=None, max_length=24)
    import_model(str(tmp_path / "hf"), tmp_path / "ours", FORMATS, ImportOptions())
    translator = Translator.load(tmp_path / "ours", precision="fp32", device="cpu")
    lines = [src for src, _ in tiny.pairs(300, 9)]
    ids, _ = generated(*learned, lines)
    own_ids = [
        hypotheses[0].ids for hypotheses in translator.search_ids(translator.tokenizers.src.encode(lines))
    ]
    eos, longest = translator.tokenizers.tgt.eos, 24 - 2
    different = [
        (own, their) for own, their in zip(own_ids, ids, strict=True) if own != [i for i in their if i != eos]
    ]
    assert 0 < len(different) < 60
    assert all(len(own) == longest or len(their) > longest for own, their in different)


def test_an_imported_model_translates_the_same(tmp_path: Path, sentencepiece_files: Path) -> None:
    """Greedy, up to a limit: random models seldom end a sentence."""
    theirs, their_tokenizer = save_marian(tmp_path / "hf", sentencepiece_files, seed=3)
    import_model(str(tmp_path / "hf"), tmp_path / "ours", FORMATS, ImportOptions())
    limit = {"max_length_ratio": 1e-3, "max_length_extra": 20}
    translator = Translator.load(tmp_path / "ours", beam_size=1, precision="fp32", **limit)
    tgt = translator.tokenizers.tgt
    lines = [line for line in peers.sentences(500, BEGINNINGS) if line.strip()]
    ours = [translation.text for translation in translator.translate(lines)]
    found = []
    for start in range(0, len(lines), 50):
        batch = their_tokenizer(lines[start : start + 50], return_tensors="pt", padding=True)
        ids = theirs.generate(
            **batch, num_beams=1, do_sample=False, max_length=None, max_new_tokens=20,
            suppress_tokens=[tgt.pad, tgt.unk],
        )  # fmt: skip
        found += their_tokenizer.batch_decode(ids, skip_special_tokens=True)
    different = [(own, their) for own, their in zip(ours, found, strict=True) if own != their]
    assert not different, (len(different), different[:2])


def test_a_tag_before_each_line_or_in_it(tmp_path: Path, sentencepiece_files: Path) -> None:
    """`--tag` and a tag that a line begins with give what `transformers` gives for the line with the tag."""
    theirs, their_tokenizer = save_marian(tmp_path / "hf", sentencepiece_files, seed=4)
    model = tmp_path / "ours"
    import_model(str(tmp_path / "hf"), model, FORMATS, ImportOptions())
    lines = [line for line in peers.sentences(12, BEGINNINGS) if not line.startswith(">>")]
    limit = {"max_length_ratio": 0.0, "max_length_extra": 15}
    translator = Translator.load(model, beam_size=1, precision="fp32", **limit)
    assert translator.tokenizers.src.tags == TAGS
    found = {}
    for tag in TAGS:
        tagged = [f"{tag} {line}" for line in lines]
        batch = their_tokenizer(tagged, return_tensors="pt", padding=True)
        ids = theirs.generate(
            **batch, num_beams=1, do_sample=False, max_length=None, max_new_tokens=15,
            suppress_tokens=[their_tokenizer.pad_token_id, their_tokenizer.unk_token_id],
        )  # fmt: skip
        found[tag] = their_tokenizer.batch_decode(ids, skip_special_tokens=True)
        for requests in (tagged, [Request(line, tag=tag) for line in lines]):
            assert [translation.text for translation in translator.translate(requests)] == found[tag]
    assert found[TAGS[0]] != found[TAGS[1]]
    long = " ".join(lines)
    for request in (f"{TAGS[1]} {long}", Request(long, tag=TAGS[1])):
        [line] = translator.segmenter.segment_lines(
            [Request.of(request)], 0, TranslateOptions(split_sentences=True)
        )
        assert len(line.segments) > 5
        assert {translator.tokenizers.src.piece(segment.ids[0]) for segment in line.segments} == {TAGS[1]}


def test_a_tag_that_the_model_does_not_know_is_one_line(tmp_path: Path, sentencepiece_files: Path) -> None:
    save_marian(tmp_path / "hf", sentencepiece_files)
    import_model(str(tmp_path / "hf"), tmp_path / "ours", FORMATS, ImportOptions())
    code, out, err = tiny.mtkit("translate", tmp_path / "ours", "--tag", ">>xyz<<", stdin="a dog\n")
    assert (code, out) == (2, "") and "its tags are >>fra<<, >>deu<<" in tiny.one_line(err)
    code, out, err = tiny.mtkit("translate", tmp_path / "ours", "--quiet", stdin=">>xyz<< a dog\n")
    assert (code, out) == (3, "")
    assert (
        "line 1: the model does not know the tag '>>xyz<<' (its tags are >>fra<<, >>deu<<)"
        in tiny.one_line(err)
    )
    for name, lines in {"src": [">>fra<< a dog", ">>xyz<< a dog", "a cat"], "tgt": ["x", "y", "z"]}.items():
        tiny.write_lines(tmp_path / name, lines)
    files = [tmp_path / "src", tmp_path / "tgt"]
    code, out, err = tiny.mtkit("score", tmp_path / "ours", *files)
    assert code == 3 and "line 2: the model does not know the tag '>>xyz<<'" in tiny.one_line(err)
    code, out, _ = tiny.mtkit("score", tmp_path / "ours", *files, "--minimum", "-1e9")
    assert (code, out) == (0, ">>fra<< a dog\tx\na cat\tz\n")
