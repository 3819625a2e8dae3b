"""Folders of JoeyNMT that cannot be imported: one line each, and nothing written. Files as JoeyNMT writes them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peers
import pytest
import torch
import yaml

from mtkit.errors import ConfigError
from mtkit.interop.formats import FORMATS
from mtkit.interop.importing import ImportOptions, import_model
from mtkit.interop.initial import find_model
from mtkit.translation.translator import Translator

WORDS = ["the", "dog", "le", "chien"]
SIZE = 4 + len(WORDS)


def tensors(width: int = 8, ff: int = 12) -> dict[str, torch.Tensor]:
    """A state dict of one encoder and one decoder layer."""
    shapes: dict[str, tuple[int, ...]] = {"src_embed.lut.weight": (SIZE, width)}
    shapes |= {"trg_embed.lut.weight": (SIZE, width), "decoder.output_layer.weight": (SIZE, width)}
    attentions = {"encoder": ["src_src_att"], "decoder": ["trg_trg_att", "src_trg_att"]}
    norms = {"encoder": ["layer_norm"], "decoder": ["x_layer_norm", "dec_layer_norm"]}
    for stack, names in attentions.items():
        place = f"{stack}.layers.0"
        for name in names:
            for part in ("k_layer", "v_layer", "q_layer", "output_layer"):
                shapes[f"{place}.{name}.{part}.weight"] = (width, width)
                shapes[f"{place}.{name}.{part}.bias"] = (width,)
        for name in (*norms[stack], "feed_forward.layer_norm"):
            shapes |= {f"{place}.{name}.weight": (width,), f"{place}.{name}.bias": (width,)}
        inner, outer = f"{place}.feed_forward.pwff_layer.0", f"{place}.feed_forward.pwff_layer.3"
        shapes |= {f"{inner}.weight": (ff, width), f"{inner}.bias": (ff,)}
        shapes |= {f"{outer}.weight": (width, ff), f"{outer}.bias": (width,)}
        shapes[f"{stack}.pe.pe"] = (1, 50, width)
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def config() -> dict[str, Any]:
    stack = {
        "type": "transformer", "num_layers": 1, "num_heads": 2, "hidden_size": 8, "ff_size": 12, "layer_norm": "post",
        "embeddings": {"embedding_dim": 8, "scale": True},
    }  # fmt: skip
    return {
        "data": {side: {"lang": lang, "level": "word"} for side, lang in (("src", "en"), ("trg", "fr"))},
        "model": {"encoder": stack, "decoder": copy.deepcopy(stack)},
    }


def write(folder: Path, settings: dict[str, Any] | None = None, state: Any = None) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings or config()))
    torch.save({"model_state": tensors()} if state is None else state, folder / "120.ckpt")
    for side in ("src", "trg"):
        (folder / f"{side}_vocab.txt").write_text("\n".join(["<unk>", "<pad>", "<s>", "</s>", *WORDS]) + "\n")
    return folder


put = partial(peers.with_value, config())
"""The config with another value."""


def test_a_complete_folder_is_imported(tmp_path: Path) -> None:
    imported = import_model(str(write(tmp_path / "joey")), tmp_path / "ours", FORMATS, ImportOptions())
    assert (imported.toolkit, imported.languages) == ("JoeyNMT", ("en", "fr"))
    translator = Translator.load(tmp_path / "ours", max_length_extra=3)
    (translation,) = translator.translate(["the dog"])
    assert set(translation.text.split()) <= set(WORDS)


@pytest.mark.parametrize(
    ("version", "accepted"), [("2.0.0", False), (2.3, True), ("2.3.0", True), ("3.0", True)]
)
def test_an_encoder_without_layer_norm_depends_on_the_version(
    version: object, accepted: bool, tmp_path: Path
) -> None:
    settings = put("model.encoder.layer_norm", None) | {"joeynmt_version": version}
    folder = write(tmp_path / "joey", settings)
    if accepted:
        imported = import_model(str(folder), tmp_path / "ours", FORMATS, ImportOptions())
        assert (imported.model["norm_position"], imported.model["final_norm"]) == ("pre", False)
    else:
        peers.check_refused(folder, tmp_path / "ours", "layer_norm is missing", ImportOptions())


def test_the_search_of_testing_is_taken_over(tmp_path: Path) -> None:
    testing = {"alpha": 0.6, "beam_alpha": 1.0, "max_output_length": 30, "repetition_penalty": 1.5}
    folder = write(tmp_path / "joey", config() | {"testing": testing})
    imported = import_model(str(folder), tmp_path / "ours", FORMATS, ImportOptions())
    found = [imported.decoding[key] for key in ("length_penalty", "max_length_ratio", "max_length_extra")]
    assert found == [0.6, 0.0, 30]
    assert imported.notes == (
        "config.yaml: testing.repetition_penalty 1.5 has no counterpart and is left out",
    )


def test_a_tokenizer_for_words_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "joey")
    for options in (ImportOptions(src_tokenizer=folder), ImportOptions(tgt_tokenizer=folder)):
        peers.check_refused(folder, tmp_path / "ours", "_tokenizer` is not for data.", options)


def test_a_model_that_init_names_without_what_splits_text(tmp_path: Path) -> None:
    folder = write(tmp_path / "joey", put("data.src.level", "bpe"))
    with pytest.raises(
        ConfigError, match="import it first with `mtkit import`, `src_tokenizer` and `tgt_tokenizer`"
    ):
        find_model(str(folder))


def replace_state(change: Callable[[dict[str, torch.Tensor]], object]) -> dict[str, Any]:
    state = tensors()
    change(state)
    return {"model_state": state}


CONFIGS = [
    (put("model.encoder.type", "recurrent"), "model.encoder.type is 'recurrent'"),
    (put("model.decoder.type", "recurrent"), "model.decoder.type is 'recurrent'"),
    (put("model.encoder.activation", "tanh"), "model.encoder.activation is 'tanh'"),
    (put("model.encoder.embeddings.embedding_dim", 4), "embedding_dim is not model.encoder.hidden_size"),
    (put("model.decoder.embeddings.scale", False), "embeddings.scale is True, but"),
    (put("model.decoder.activation", "gelu"), "model.decoder.activation is 'gelu'"),
    (put("model.encoder.num_layers", "many"), "model.encoder.num_layers is 'many', not int"),
    (put("data.src.normalize", True), "data.src.normalize is True"),
    (put("data.src.level", "bpe"), "no .model or .spm in this folder"),
    (put("data.trg.level", "morphemes"), "data.trg.level is 'morphemes'"),
    (put("data.trg.lang", ""), "do not name the languages"),
    (put("data.special_symbols.sep_token", "<sep>"), "data.special_symbols.sep_token is '<sep>'"),
    (put("model.encoder.layer_norm", None), "model.encoder.layer_norm is missing"),
]


@pytest.mark.parametrize(("settings", "message"), CONFIGS, ids=[message for _, message in CONFIGS])
def test_what_cannot_be_expressed_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    peers.check_refused(write(tmp_path / "joey", settings), tmp_path / "ours", message, ImportOptions())


STATES: list[tuple[Any, str]] = [
    ({"weights": 3}, "no model_state"),
    (
        replace_state(lambda state: state.pop("decoder.output_layer.weight")),
        "no tensor 'decoder.output_layer",
    ),
    (replace_state(lambda state: state.update(extra=torch.ones(2))), "no place for: extra"),
    (replace_state(lambda state: state.update({"src_embed.lut.weight": torch.ones(3, 8)})), "has the shape"),
    (
        replace_state(lambda state: state["trg_embed.lut.weight"].fill_(float("nan"))),
        "tgt_embedding.weight is not finite",
    ),
    ({"model_state": tensors(), "run": partial(os.system, "false")}, "more than tensors"),
]


@pytest.mark.parametrize(("state", "message"), STATES, ids=[message for _, message in STATES])
def test_damaged_checkpoints(state: Any, message: str, tmp_path: Path) -> None:
    peers.check_refused(write(tmp_path / "joey", state=state), tmp_path / "ours", message, ImportOptions())


def truncate(folder: Path) -> None:
    (folder / "120.ckpt").write_bytes((folder / "120.ckpt").read_bytes()[:999])


FILES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "120.ckpt").unlink(), "no best.ckpt"),
    (truncate, "damaged, or not a PyTorch file"),
    (lambda folder: (folder / "trg_vocab.txt").unlink(), "trg_vocab.txt"),
    (lambda folder: (folder / "src_vocab.txt").write_bytes(b"\xff\xfe\n"), "not UTF-8 text"),
    (lambda folder: (folder / "src_vocab.txt").write_text("<unk>\n"), "has the shape"),
    (lambda folder: (folder / "config.yaml").write_text("model: [\n"), "config.yaml"),
    (
        lambda folder: (folder / "config.yaml").write_text("data: {src: 3}\n"),
        "model.encoder.type is 'recurrent'",
    ),
]


@pytest.mark.parametrize(("damage", "message"), FILES, ids=[message for _, message in FILES])
def test_damaged_files(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "joey")
    damage(folder)
    peers.check_refused(folder, tmp_path / "ours", message, ImportOptions())
