"""Folders of marian-nmt that cannot be imported: one line each, and nothing written."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import yaml
from marian_files import MODEL, VOCABULARY, options, parameters, save_npz, save_yaml

from mtkit.errors import ConfigError, MtkitError, StorageError
from mtkit.interop.formats import FORMATS
from mtkit.interop.importing import ImportOptions, import_model
from mtkit.translation.translator import Translator

WORDS = ["the", "dog", "le", "chien"]
TOKENS = ["</s>", "<unk>", *WORDS]
SMALL = {"dim-emb": 8, "transformer-dim-ffn": 12, "transformer-heads": 2, "enc-depth": 1, "dec-depth": 1}


def write(folder: Path, **changes: Any) -> Path:
    """A folder with a model of words."""
    folder.mkdir()
    own = options(**(SMALL | changes))
    try:
        arrays = parameters(own, (len(TOKENS), len(TOKENS)))
    except TypeError:  # options that are of a wrong type
        arrays = parameters(options(**SMALL), (len(TOKENS), len(TOKENS)))
    save_npz(folder / MODEL, arrays, own)
    save_yaml(folder / VOCABULARY, {token: index for index, token in enumerate(TOKENS)})
    save_yaml(
        folder / "decoder.yml",
        {"models": [MODEL], "vocabs": [VOCABULARY] * 2, "beam-size": 2, "normalize": 0.6},
    )
    return folder


def refuse(folder: Path, message: str, kind: type[MtkitError] = MtkitError, **given: Any) -> None:
    """Import a folder, and check the message and that nothing is written."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(kind) as caught:
        import_model(str(folder), folder.parent / "ours", FORMATS, ImportOptions("en", "fr", **given))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, ConfigError | StorageError)
    assert sorted(folder.parent.iterdir()) == before


def test_a_complete_folder_is_imported(tmp_path: Path) -> None:
    imported = import_model(str(write(tmp_path / "en-fr")), tmp_path / "ours", FORMATS, ImportOptions())
    assert (imported.toolkit, imported.languages) == ("Marian", ("en", "fr"))
    translator = Translator.load(tmp_path / "ours", max_length_extra=3)
    assert (translator.decoding.beam_size, translator.decoding.length_penalty) == (2, 0.6)
    (translation,) = translator.translate(["the dog"])
    assert set(translation.text.split()) <= set(WORDS)


def test_the_dropout_is_in_another_file_than_the_vocabularies(tmp_path: Path) -> None:
    """Marian writes model.npz.decoder.yml for the decoder beside model.npz.yml of the training."""
    folder = write(tmp_path / "en-fr")
    (folder / "decoder.yml").rename(folder / f"{MODEL}.decoder.yml")
    save_yaml(folder / f"{MODEL}.yml", {"vocabs": [VOCABULARY] * 2, "transformer-dropout": 0.3})
    imported = import_model(str(folder), tmp_path / "ours", FORMATS, ImportOptions())
    assert (imported.model["dropout"], imported.decoding["beam_size"]) == (0.3, 2)


OPTIONS = [
    ("type", "s2s"), ("type", "amun"), ("type", "multi-transformer"), ("type", 3),
    ("transformer-decoder-autoreg", "average-attention"), ("transformer-decoder-autoreg", "rnn"),
    ("transformer-ffn-activation", "tanh"), ("transformer-ffn-depth", 3), ("transformer-decoder-ffn-depth", 1),
    ("transformer-postprocess-emb", "na"), ("transformer-postprocess-top", "an"), ("right-left", True), ("ulr", True),
    ("transformer-pool", True), ("lemma-dim-emb", -1), ("lemma-dependency", "re-embedding"),
    ("input-types", ["class", "sequence"]), ("transformer-attention-mask", "alibi"),
    ("transformer-disable-position-embeddings", True), ("transformer-tied-layers", [1, 1]),
    ("transformer-tied-layers", [0]), ("enc-depth", "many"), ("enc-depth", 2**40), ("dec-depth", 2**40),
    ("dim-emb", 16), ("transformer-dim-ffn", 2**40), ("transformer-heads", 3), ("enc-depth", 0),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), OPTIONS, ids=lambda value: str(value))
def test_options_that_mtkit_does_not_have_are_named(key: str, value: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "marian")
    arrays = parameters(options(**SMALL), (len(TOKENS), len(TOKENS)))
    save_npz(folder / MODEL, arrays, options(**(SMALL | {key: value})))
    shown = {
        ("dim-emb", 16): "Wemb has the shape [6, 8], not [6, 16]",
        ("enc-depth", 2**40): "no tensor 'encoder_l2_self_Wq'",
        ("dec-depth", 2**40): "no tensor 'decoder_l2_self_Wq'",
        ("transformer-dim-ffn", 2**40): "encoder_l1_ffn_W1 has the shape [8, 12]",
        ("transformer-heads", 3): "num_heads 3",
        ("enc-depth", 0): "no place for: encoder_l1_self_Wq",
    }
    unhashable = isinstance(value, list)
    refuse(folder, f"{key} is " if unhashable else shown.get((key, value), f"{key} is "))


@pytest.mark.parametrize(
    ("pre", "post"),
    [("", "da"), ("n", "dan"), ("", "d"), ("", "dhn"), ("r", "dan"), ("", "dna"), ("x", "a"), ("", "")],
)
def test_other_orders_of_norm_and_sum_are_refused(pre: str, post: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "marian", **{"transformer-preprocess": pre, "transformer-postprocess": post})
    refuse(folder, f"transformer-preprocess is {pre!r}, transformer-postprocess {post!r}", ConfigError)


def npy(header: str, content: bytes = b"") -> bytes:
    """A file of an array with any header."""
    text = header.encode() + b" " * 16 + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def add_member(path: Path, name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "a", compression) as archive:
        archive.writestr(name, content)


def add_objects(path: Path) -> None:
    """Add an array of objects, whose pickle would run a command."""

    class Command:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch hacked",)

    file = io.BytesIO()
    np.save(file, np.array([Command()], dtype=object), allow_pickle=True)
    add_member(path, "evil.npy", file.getvalue())


def change(path: Path, edit: Callable[[dict[str, Any]], object], text: str | None = None) -> None:
    """Change the arrays of a model, or its embedded options."""
    arrays = parameters(options(**SMALL), (len(TOKENS), len(TOKENS)))
    edit(arrays)
    save_npz(path, arrays, options(**SMALL) if text is None else text)


BOMB = "&a [x,x,x,x,x,x,x,x,x,x]"
LAUGHS = f"a: {BOMB}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(8)
)
FLOATS = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s)}"
MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "not an archive"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:3000]), "not an archive"),
    "damaged": (lambda path: path.write_bytes(path.read_bytes().replace(b"NUMPY", b"NUMPX", 3)), "not an archive"),
    "changed": (lambda path: path.write_bytes(path.read_bytes().replace(b"special", b"SPECIAL")), "not an archive"),
    "text": (lambda path: path.write_text("PK, no archive"), "not an archive"),
    "objects": (add_objects, "evil.npy holds objects"),
    "huge shape": (
        lambda path: add_member(path, "a.npy", npy(FLOATS % "1000000000000,")),
        "claims the shape [1000000000000]",
    ),
    "negative shape": (
        lambda path: add_member(path, "a.npy", npy(FLOATS % "-4, -4", bytes(64))),
        "not an archive",
    ),
    "header with code": (
        lambda path: add_member(path, "a.npy", npy("{'descr': __import__('os').getcwd()}")), "not an archive"
    ),
    "zip bomb": (
        lambda path: add_member(path, "a.npy", bytes(25_000_000), zipfile.ZIP_DEFLATED), "far more than its size"
    ),
    "missing tensor": (lambda path: change(path, lambda a: a.pop("encoder_l1_ffn_W1")), "'encoder_l1_ffn_W1'"),
    "missing embedding": (lambda path: change(path, lambda a: a.pop("Wemb")), "no tensor 'Wemb'"),
    "wrong shape": (
        lambda path: change(path, lambda a: a.update(decoder_l1_self_Wk=np.ones((8, 7), np.float32))),
        "decoder_l1_self_Wk has the shape [8, 7], not [8, 8]",
    ),
    "number instead of matrix": (
        lambda path: change(path, lambda a: a.update(Wemb=np.float32(3))), "Wemb has the shape [1], not [1, 8]"
    ),
    "left over": (lambda path: change(path, lambda a: a.update(extra=np.ones(3, np.float32))), "no place for: extra"),
    "not finite": (lambda path: change(path, lambda a: a["Wemb"].fill(np.inf)), "embedding.weight is not finite"),
    "quantized": (
        lambda path: change(path, lambda a: a.update(Wemb=np.ones((6, 8), np.int8))), "Wemb is quantized: int8"
    ),
    "other arrays": (lambda path: np.savez(path, a=np.ones(3)), "not a model of Marian"),
    "no yaml": (lambda path: change(path, len, "type: [\n"), "special:model.yml"),
    "a list": (lambda path: change(path, len, "- type\n"), "not a mapping"),
    "no options": (lambda path: change(path, len, ""), "not a mapping"),
    "a tag": (lambda path: change(path, len, "type: !!python/object/apply:os.getcwd []\n"), "tags are not supported"),
    "many aliases": (lambda path: change(path, len, LAUGHS), "aliases expand to too many values"),
    "nested": (lambda path: change(path, len, "type: " + "[" * 300), "special:model.yml"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_damaged_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "marian")
    damage, message = MODELS[name]
    damage(folder / MODEL)
    refuse(folder, message)


def vocabulary(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / VOCABULARY).write_text(text)


def decoder(**values: Any) -> Callable[[Path], object]:
    return lambda folder: save_yaml(folder / "decoder.yml", values)


GOOD = "".join(f"{token}: {index}\n" for index, token in enumerate(TOKENS))
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "vocabulary missing": (lambda folder: (folder / VOCABULARY).unlink(), "no such vocabulary"),
    "vocabulary too long": (vocabulary(GOOD + "more: 6\n"), "7 tokens, but the embedding has 6 rows"),
    "vocabulary empty": (vocabulary(""), "0 tokens, but"),
    "vocabulary of UTF-16": (lambda folder: (folder / VOCABULARY).write_bytes(b"\xff\xfea\0"), "not UTF-8 text"),
    "vocabulary without ids": (vocabulary("- the\n- dog\n"), f"{VOCABULARY}:1: expected a token and its id"),
    "vocabulary with an anchor": (vocabulary("</s>: 0\n&a the: 1\n"), f"{VOCABULARY}:2: expected a token"),
    "token twice": (vocabulary(GOOD.replace("dog", "the")), "'the' is there twice"),
    "id twice": (vocabulary(GOOD.replace("dog: 3", "dog: 2")), "id of 'dog' is there twice"),
    "escape of no character": (vocabulary('"\\U00990000": 2\n'), "not a character"),
    "half of a surrogate pair": (vocabulary('"\\uD800": 2\n'), "half of a surrogate pair"),
    "no <unk>": (vocabulary(GOOD.replace("<unk>", "what")), "no <unk> in this vocabulary"),
    "JSON without ids": (vocabulary('{"the": "dog"}'), "not a vocabulary"),
    "pieces without a model": (vocabulary(GOOD.replace("dog", "▁dog")), "no SentencePiece model (source.spm)"),
    "pieces without codes": (vocabulary(GOOD.replace("dog", "do@@")), "no BPE codes (source.bpe)"),
    "damaged SentencePiece": (lambda folder: (folder / "source.spm").write_bytes(b"\n\x07"), "source.spm: damaged"),
    "truecased": (
        lambda folder: (folder / "preprocess.sh").write_text("${RECASER}/truecase.perl -model x |\n"), "truecased"
    ),
    "no models": (decoder(vocabs=[VOCABULARY]), "models is missing"),
    "two models": (decoder(models=["a.npz", "b.npz"]), "2 models: a.npz, b.npz"),
    "binary model": (decoder(models=["model.intgemm.alphas.bin"]), "a binary model, perhaps quantized"),
    "three vocabularies": (decoder(models=[MODEL], vocabs=[VOCABULARY] * 3), "3 vocabularies"),
    "factors": (decoder(models=[MODEL], vocabs=["vocab.fsv"] * 2), "no such vocabulary"),
    "no list": (decoder(models=[MODEL], vocabs=[3]), "vocabs is not a list of files"),
    "decoder.yml no YAML": (lambda folder: (folder / "decoder.yml").write_text("models: [\n"), "decoder.yml"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_damaged_folders(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "marian")
    damage, message = FOLDERS[name]
    damage(folder)
    refuse(folder, message)


@pytest.mark.parametrize("name", ["../secret.yml", "{}/secret.yml", "sub/../../secret.yml"])
def test_files_outside_of_the_folder_are_not_read(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "marian")
    (folder / "sub").mkdir()
    (folder / VOCABULARY).rename(tmp_path / "secret.yml")
    decoder(models=[MODEL], vocabs=[name.format(tmp_path)] * 2)(folder)
    refuse(folder, "marian/secret.yml: no such vocabulary", StorageError)
    (tmp_path / "secret.yml").rename(folder / "sub" / VOCABULARY)
    decoder(models=[f"/there/{MODEL}"], vocabs=[f"sub/{VOCABULARY}"] * 2)(folder)
    import_model(str(folder), tmp_path / "ours", FORMATS, ImportOptions("en", "fr"))


def test_two_models_without_a_choice(tmp_path: Path) -> None:
    folder = write(tmp_path / "marian")
    (folder / "decoder.yml").unlink()
    (folder / "model.npz.optimizer.npz").write_bytes(b"")
    (folder / "model.iter100.npz").write_bytes((folder / MODEL).read_bytes())
    refuse(folder, "2 models: model.iter100.npz, opus", ConfigError)
    import_model(str(folder / "model.iter100.npz"), tmp_path / "ours", FORMATS, ImportOptions("en", "fr"))


def test_a_folder_of_a_student(tmp_path: Path) -> None:
    """Binary models come with a vocabulary and a shortlist, often without decoder.yml."""
    folder = tmp_path / "student"
    folder.mkdir()
    for name in ("model.ende.intgemm.alphas.bin", "vocab.ende.spm"):
        (folder / name).write_bytes(b"x")
    refuse(folder, "a binary model, perhaps quantized", ConfigError)


@pytest.mark.parametrize("name", ["shared_vocabulary.json", "source_vocabulary.txt"])
def test_a_folder_of_ctranslate2(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "ct2"
    folder.mkdir()
    for own in ("model.bin", "source.spm", name):
        (folder / own).write_bytes(b"x")
    refuse(folder, "a model of CTranslate2", ConfigError)


@pytest.mark.parametrize("option", ["src_tokenizer", "tgt_tokenizer"])
def test_a_tokenizer_for_a_vocabulary_that_splits_text_is_refused(option: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "marian")
    (folder / "vocab.spm").write_bytes(b"x")
    decoder(models=[MODEL], vocabs=["vocab.spm"] * 2)(folder)
    refuse(folder, f"`{option}` is not for a vocabulary", ConfigError, **{option: folder / "vocab.spm"})


def test_factors_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "marian")
    (folder / "vocab.fsv").write_text("_lemma\n")
    decoder(models=[MODEL], vocabs=["vocab.fsv"] * 2)(folder)
    refuse(folder, "vocab.fsv: a factored vocabulary", ConfigError)


def test_unnamed_languages_and_the_exit_code(tmp_path: Path) -> None:
    folder = write(tmp_path / "marian")
    code, _, error = tiny.mtkit("import", folder, "-o", tmp_path / "ours")
    assert code == 2 and "do not name the languages" in tiny.one_line(error)
    (folder / MODEL).write_bytes(b"PK")
    code, _, error = tiny.mtkit("import", folder, "-o", tmp_path / "ours", "--src", "en", "--tgt", "fr")
    assert code == 5 and "not an archive" in tiny.one_line(error)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    "style", ["yaml", "double quotes", "two lines", "json", "text", "Nematus", "backwards"]
)
def test_styles_of_vocabularies(style: str, tmp_path: Path) -> None:
    tokens = ["</s>", "<unk>", "'s", 'say "no"', "a\\b"]
    tokens += ["~" if style != "text" else "tilde", "true", "1.5", "ä", ": x", "- y", "#", "{", "it: 3", "»"]
    own = options(**SMALL)
    folder = write(tmp_path / "marian")
    save_npz(folder / MODEL, parameters(own, (len(tokens), len(tokens))), own)
    if style == "Nematus":
        tokens[:2] = ["eos", "UNK"]
    pairs = list({token: index for index, token in enumerate(tokens)}.items())
    if style == "backwards":
        pairs.reverse()
    if style == "two lines":
        pairs[-1] = ("\x85\u2028", pairs[-1][1])
        tokens[-1] = "\x85\u2028"
    text = {
        "double quotes": "".join(
            f"{json.dumps(token, ensure_ascii=False)}: {index}\n" for token, index in pairs
        ),
        "two lines": "---\n" + "".join(f"? {json.dumps(token)}\n: {index}\n" for token, index in pairs),
        "json": json.dumps(dict(pairs), indent=2),
        "text": "".join(f"{token}\n" for token in tokens),
    }.get(style) or yaml.safe_dump(dict(pairs), allow_unicode=True, sort_keys=False)
    name = "vocab.txt" if style == "text" else VOCABULARY
    (folder / name).write_text(text, "utf-8", newline="")
    save_yaml(folder / "decoder.yml", {"models": [MODEL], "vocabs": [name] * 2})
    imported = import_model(str(folder), tmp_path / "ours", FORMATS, ImportOptions("en", "fr"))
    vocabulary = imported.tokenizers.src.vocabulary  # type: ignore[attr-defined]
    assert vocabulary.tokens == (*tokens, "<pad>")
    assert [vocabulary.ids[token] for token in (vocabulary.eos, vocabulary.unk)] == [0, 1]


def test_rows_without_a_token(tmp_path: Path) -> None:
    """dim-vocabs may be larger than the vocabulary."""
    folder = write(tmp_path / "marian")
    (folder / VOCABULARY).write_text(GOOD.replace("chien: 5\n", ""))
    imported = import_model(str(folder), tmp_path / "ours", FORMATS, ImportOptions("en", "fr"))
    assert imported.tokenizers.src.piece(5) == "<unused 5>"
