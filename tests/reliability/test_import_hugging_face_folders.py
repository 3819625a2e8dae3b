"""Folders of Hugging Face models that cannot be imported: one line says what is wrong, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from mtkit.config.loading import parse_config
from mtkit.config.sections import TokenizerConfig
from mtkit.data.readers import Pair
from mtkit.data.tokenizer import make_tokenizers
from mtkit.interop.formats import FORMATS
from mtkit.interop.hugging_face_export import convert, write_folder
from mtkit.interop.importing import ImportOptions, import_model
from mtkit.model.build import make_model

USAGE, STORAGE = 2, 5


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that can be imported, as `transformers` lays it out."""
    folder = tmp_path_factory.mktemp("hf")
    pairs = [Pair(*pair) for pair in tiny.pairs(300, 1)]
    tokenizers = make_tokenizers(TokenizerConfig(vocab_size=96, byte_fallback=False), pairs)
    shape: dict[str, Any] = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_heads": 2}
    config = parse_config({
        "run": "run", "data": {"src": "en", "tgt": "fr", "train": [{"path": "none.tsv"}]},
        "model": shape | {"norm_position": "post"},
    })  # fmt: skip
    model = make_model(config.model, tokenizers)
    write_folder(convert(config.model, model, tokenizers, 64), config, tokenizers, folder, "float32")
    return folder


def put(name: str, **values: object) -> Callable[[Path], None]:
    """Change keys of a JSON file; ... deletes one."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(
            json.dumps({key: value for key, value in content.items() if value is not ...})
        )

    return change


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100]) and None


def with_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return apply


def pickled(content: Callable[[Path], object], end: int | None = None) -> Callable[[Path], None]:
    """Put a pickle in place of the safetensors."""

    def apply(folder: Path) -> None:
        path = folder / "pytorch_model.bin"
        torch.save(content(folder), path)
        path.write_bytes(path.read_bytes()[:end])
        (folder / "model.safetensors").unlink()

    return apply


def weights_of(folder: Path) -> object:
    return load_file(folder / "model.safetensors")


FC1 = "model.encoder.layers.0.fc1.weight"
FAULTS: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "config is not JSON": (write("config.json", "{"), STORAGE, "config.json"),
    "config is a list": (write("config.json", "[1]"), STORAGE, "config.json"),
    "config is not UTF-8": (write("config.json", b"\xff\xfe"), STORAGE, "config.json"),
    "no model_type": (put("config.json", model_type=...), STORAGE, "model_type is missing"),
    "another model": (put("config.json", model_type="bert"), USAGE, "a bert model, not Marian"),
    "a translator of another kind": (put("config.json", model_type="t5"), USAGE, "a t5 model, not Marian"),
    "no source.spm": (remove("source.spm"), STORAGE, "source.spm"),
    "no target.spm": (remove("target.spm"), STORAGE, "target.spm"),
    "no vocab.json": (remove("vocab.json"), STORAGE, "vocab.json"),
    "no weights": (remove("model.safetensors"), USAGE, "no model of a known format"),
    "an empty source.spm": (write("source.spm", b""), STORAGE, "source.spm: an empty file"),
    "a damaged target.spm": (write("target.spm", b"spm" * 99), STORAGE, "target.spm: damaged, or not a Sent"),
    "a vocabulary that is a list": (write("vocab.json", '["a"]'), STORAGE, "vocab.json: not a vocabulary"),
    "ids that are strings": (put("vocab.json", dog="one"), STORAGE, "vocab.json: not a vocabulary"),
    "an id twice": (put("vocab.json", other=5), STORAGE, "two tokens have the same id"),
    "an id beyond the rows": (put("vocab.json", other=500), STORAGE, "ids up to 500, but the model has 56 rows"),
    "an id below 0": (put("vocab.json", other=-1), STORAGE, "vocab.json"),
    "no <unk>": (put("vocab.json", **{"<unk>": ...}), STORAGE, "'<unk>' is not a token of the vocabulary"),
    "the decoder starts nowhere": (put("config.json", decoder_start_token_id=96), STORAGE, "token 96 is not in the v"),
    "no pad_token_id": (put("config.json", pad_token_id=...), STORAGE, "pad_token_id is missing"),
    "no width": (put("config.json", d_model=...), STORAGE, "d_model is missing"),
    "a width in words": (put("config.json", d_model="wide"), STORAGE, "d_model is 'wide', not int"),
    "a width that is true": (put("config.json", d_model=True), STORAGE, "d_model is True, not int"),
    "a width of 0": (put("config.json", d_model=0), USAGE, "model.d_model"),
    "another width": (put("config.json", d_model=32), STORAGE, "has the shape"),
    "heads that do not divide it": (put("config.json", encoder_attention_heads=3), USAGE, "multiple of num_heads"),
    "an unknown activation": (put("config.json", activation_function="tanh"), USAGE, "activation_function is 'tanh'"),
    "another layer": (put("config.json", encoder_layers=2), STORAGE, "no tensor 'model.encoder.layers.1."),
    "a layer too few": (put("config.json", decoder_layers=0), USAGE, "tensors that mtkit has no place for"),
    "cut off": (cut("model.safetensors"), STORAGE, "model.safetensors"),
    "empty weights": (write("model.safetensors", b""), STORAGE, "model.safetensors"),
    "weights that are no numbers": (with_weights(lambda w: w[FC1].fill_(torch.nan)), STORAGE, "is not finite"),
    "a tensor is missing": (with_weights(lambda w: w.pop(FC1)), STORAGE, f"no tensor '{FC1}'"),
    "no output matrix": (put("config.json", tie_word_embeddings=False), STORAGE, "no tensor 'lm_head.weight'"),
    "a tensor too many": (
        with_weights(lambda w: w.update({"model.encoder.adapter": torch.ones(2)})), USAGE,
        "tensors that mtkit has no place for: model.encoder.adapter",
    ),
    "a cut pickle": (pickled(weights_of, 900), STORAGE, "pytorch_model.bin: damaged, or not a PyTorch file"),
    "a pickle of a list": (pickled(lambda folder: [1, 2]), STORAGE, "pytorch_model.bin: not a state dict"),
    "a pickle with code": (
        pickled(lambda folder: {"x": peers.Bomb(folder.parent / "ran")}), STORAGE, "more than tensors and plain values",
    ),
    "beams in words": (put("generation_config.json", num_beams="four"), STORAGE, "num_beams is 'four', not int"),
    "no beam": (put("generation_config.json", num_beams=0), USAGE, "decoding.beam_size"),
    "a list of penalties": (put("generation_config.json", length_penalty=[1]), STORAGE, "length_penalty is [1], not"),
    "an unknown way to stop": (put("generation_config.json", early_stopping="soon"), USAGE, "early_stopping is 'soon'"),
    "stops in a list": (put("generation_config.json", early_stopping=[1]), USAGE, "early_stopping is [1]"),
    "generation is not JSON": (write("generation_config.json", "num_beams: 4"), STORAGE, "generation_config.json"),
    "no languages": (
        put("tokenizer_config.json", source_lang=..., target_lang=...), USAGE, "the files do not name the languages",
    ),
    "added tokens without ids": (write("added_tokens.json", '{"<2fr>": "x"}'), STORAGE, "added tokens are not strings"),
    "added tokens without names": (
        put("tokenizer_config.json", added_tokens_decoder={"55": {}}), STORAGE, "added tokens are not strings",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_one_line_and_nothing_written(fault: str, intact: Path, tmp_path: Path) -> None:
    damage, code, message = FAULTS[fault]
    folder = Path(shutil.copytree(intact, tmp_path / "hf"))
    damage(folder)
    found, out, err = tiny.mtkit("import", folder, "-o", tmp_path / "model")
    assert (found, out) == (code, ""), err
    assert message in tiny.one_line(err)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_settings_without_a_counterpart_are_named(intact: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(intact, tmp_path / "hf"))
    put("generation_config.json", repetition_penalty=1.2, bad_words_ids=[[7]], do_sample=False)(folder)
    code, out, err = tiny.mtkit("import", folder, "-o", tmp_path / "model")
    assert (code, err) == (0, "")
    assert "generation_config.json: repetition_penalty 1.2 has no counterpart and is left out\n" in out
    assert "bad_words_ids [[7]]" in out and "do_sample" not in out


@pytest.mark.parametrize(
    ("values", "extra"),
    [({"max_length": 60}, 58), ({"max_new_tokens": 60}, 59), ({"max_new_tokens": 60, "max_length": 9}, 59)],
)
def test_the_longest_translation(values: dict[str, int], extra: int, intact: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(intact, tmp_path / "hf"))
    put("generation_config.json", **({"max_length": ...} | values))(folder)
    imported = import_model(str(folder), tmp_path / "model", FORMATS, ImportOptions())
    assert (imported.decoding["max_length_ratio"], imported.decoding["max_length_extra"]) == (0.0, extra)


@pytest.mark.parametrize(
    ("name", "languages"),
    [
        ("opus-mt-en-fr", ("en", "fr")),
        ("opus-mt-tc-big-gmq-eng", ("gmq", "eng")),
        ("opus-mt-en-ROMANCE", ("en", "ROMANCE")),
        ("marian-model-v2", None),
        ("opus-mt-en-fr-finetuned", None),
    ],
)
def test_languages_in_the_name_of_a_folder(
    name: str, languages: tuple[str, str] | None, intact: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(intact, tmp_path / name))
    put("tokenizer_config.json", source_lang=..., target_lang=...)(folder)
    if languages is None:
        peers.check_refused(folder, tmp_path / "ours", "do not name the languages", ImportOptions())
    else:
        imported = import_model(str(folder), tmp_path / "ours", FORMATS, ImportOptions())
        assert imported.languages == languages


def test_added_tokens_have_their_rows(intact: Path, tmp_path: Path) -> None:
    """Tags are single tokens; others, which mtkit splits, are named."""
    folder = Path(shutil.copytree(intact, tmp_path / "hf"))
    ids = json.loads((folder / "vocab.json").read_text())
    unused = [index for token, index in ids.items() if token.startswith("<unused ")][:2]
    put("vocab.json", **{f"<unused {index}>": ... for index in unused})(folder)
    put("tokenizer_config.json", added_tokens_decoder={
        ids["</s>"]: {"content": "</s>", "special": True}, unused[0]: {"content": ">>fra<<", "special": True},
    })(folder)  # fmt: skip
    (folder / "added_tokens.json").write_text(json.dumps({"<2fr>": unused[1], "<beyond>": len(ids)}))
    imported = import_model(str(folder), tmp_path / "model", FORMATS, ImportOptions())
    src = imported.tokenizers.src
    assert [src.piece(index) for index in unused] == [">>fra<<", "<2fr>"]
    assert src.encode([">>fra<< the dog"])[0].tolist()[0] == unused[0]
    assert imported.notes[-1] == "1 added token that mtkit splits in text: '<2fr>'"


def test_the_output_must_not_exist(intact: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    code, _, err = tiny.mtkit("import", intact, "-o", tmp_path / "model")
    assert code == USAGE and "it exists already" in tiny.one_line(err)
    assert not list((tmp_path / "model").iterdir())


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing", "~/nothing/here", "a b/c"])
def test_a_name_that_is_neither_a_folder_nor_on_the_hub(name: str, tmp_path: Path) -> None:
    code, _, err = tiny.mtkit("import", name, "-o", tmp_path / "model")
    assert code == USAGE and name.split("@")[0] in tiny.one_line(err)
    assert not list(tmp_path.iterdir())


def test_a_special_token_may_be_described(intact: Path, tmp_path: Path) -> None:
    """As `transformers` 4 wrote it."""
    folder = Path(shutil.copytree(intact, tmp_path / "hf"))
    put("tokenizer_config.json", unk_token={"content": "<unk>", "lstrip": False})(folder)
    assert tiny.mtkit("import", folder, "-o", tmp_path / "model")[0] == 0
