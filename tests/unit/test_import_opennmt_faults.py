"""Models of OpenNMT-py that cannot be imported: one line each, and nothing written. Files as OpenNMT-py writes them."""

from __future__ import annotations

import argparse
import functools
import os
import re
from pathlib import Path
from typing import Any

import peers
import pytest
import torch

from mtkit.errors import ConfigError
from mtkit.interop.formats import FORMATS
from mtkit.interop.importing import ImportOptions, import_model
from mtkit.interop.initial import find_model
from mtkit.translation.translator import Translator

TOKENS = ["<unk>", "<blank>", "<s>", "</s>", "the", "dog", "le", "chien"]
LANGUAGES = ImportOptions("en", "fr")


def options(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(
        **{
            "encoder_type": "transformer", "decoder_type": "transformer", "enc_layers": 1, "dec_layers": 1,
            "enc_hid_size": 8, "dec_hid_size": 8, "src_word_vec_size": 8, "tgt_word_vec_size": 8, "heads": 2,
            "transformer_ff": 12, "position_encoding": True, "dropout": [0.1], "transforms": [],
        }
        | changes
    )  # fmt: skip


def tensors() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The state dicts of a model of one encoder and one decoder layer, and of its generator."""
    size, width, ff = len(TOKENS), 8, 12
    shapes: dict[str, tuple[int, ...]] = {
        f"{stack}.embeddings.make_embedding.emb_luts.0.weight": (size, width)
        for stack in ("encoder", "decoder")
    }
    encoder, decoder = "encoder.transformer.0", "decoder.transformer_layers.0"
    for attention in (f"{encoder}.self_attn", f"{decoder}.self_attn", f"{decoder}.context_attn"):
        for part in ("linear_keys", "linear_values", "linear_query", "final_linear"):
            shapes[f"{attention}.{part}.weight"] = (width, width)
    norms = ["encoder.layer_norm", "decoder.layer_norm", f"{encoder}.layer_norm"]
    for place in (encoder, decoder):
        shapes |= {f"{place}.feed_forward.w_1.weight": (ff, width), f"{place}.feed_forward.w_1.bias": (ff,)}
        shapes |= {
            f"{place}.feed_forward.w_2.weight": (width, ff),
            f"{place}.feed_forward.w_2.bias": (width,),
        }
        norms.append(f"{place}.feed_forward.layer_norm")
    for norm in (*norms, f"{decoder}.layer_norm_1", f"{decoder}.layer_norm_2"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    torch.manual_seed(0)
    return (
        {name: torch.randn(shape) for name, shape in shapes.items()},
        {"weight": torch.randn(size, width), "bias": torch.randn(size)},
    )


def checkpoint(**changes: Any) -> dict[str, Any]:
    model, generator = tensors()
    vocab = {"src": TOKENS, "tgt": TOKENS, "data_task": "seq2seq", "decoder_start_token": "<s>"}
    return {"model": model, "generator": generator, "vocab": vocab, "opt": options()} | changes


def test_a_complete_file_is_imported(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "model.pt")
    imported = import_model(str(tmp_path / "model.pt"), tmp_path / "ours", FORMATS, LANGUAGES)
    assert imported.toolkit == "OpenNMT-py" and imported.model["source_eos"] is False
    translator = Translator.load(tmp_path / "ours", max_length_extra=3)
    (translation,) = translator.translate(["the dog"])
    assert set(translation.text.split()) <= set(TOKENS)


OPTIONS: list[tuple[dict[str, object], str]] = [
    ({"encoder_type": "brnn"}, "encoder_type is 'brnn'"),
    ({"decoder_type": "cnn"}, "decoder_type is 'cnn'"),
    ({"model_task": "lm"}, "model_task is 'lm'"),
    ({"copy_attn": True}, "copy_attn is True"),
    ({"coverage_attn": True}, "coverage_attn is True"),
    ({"parallel_residual": True}, "parallel_residual is True"),
    ({"self_attn_type": "average"}, "self_attn_type is 'average'"),
    ({"max_relative_positions": -2, "position_encoding": False}, "max_relative_positions is -2"),
    ({"max_relative_positions": 8}, "position_encoding is true"),
    ({"relative_positions_buckets": 32}, "relative_positions_buckets is 32"),
    ({"num_experts": 4}, "num_experts is 4"),
    ({"generator_function": "sparsemax"}, "generator_function is 'sparsemax'"),
    ({"pos_ffn_activation_fn": "mish"}, "pos_ffn_activation_fn is 'mish'"),
    ({"tgt_word_vec_size": 4}, "tgt_word_vec_size is 4, but enc_hid_size is 8"),
    ({"enc_layers": "six"}, "enc_layers is 'six', not int"),
    ({"transformer_ff": 1 << 50}, "does not fit into memory"),
    ({"heads": 3}, "d_model 8 is not a multiple of num_heads 3"),
    ({"transforms": ["onmt_tokenize"]}, "transforms has 'onmt_tokenize'"),
    ({"transforms": ["bpe"]}, "no .codes or .bpe"),
    ({"src_subword_vocab": "vocab.en", "src_vocab_threshold": 50}, "src_subword_vocab is 'vocab.en'"),
]


@pytest.mark.parametrize(("changes", "message"), OPTIONS, ids=[message for _, message in OPTIONS])
def test_what_cannot_be_expressed_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    torch.save(checkpoint(opt=options(**changes)), tmp_path / "model.pt")
    peers.check_refused(tmp_path / "model.pt", tmp_path / "ours", message, LANGUAGES)


FILES: list[tuple[Any, str]] = [
    ({"opt": {"enc_layers": 1}}, "no 'opt'"),
    ({"vocab": None}, "no 'vocab'"),
    ({"vocab": {"src": TOKENS, "tgt": [1, 2]}}, "tgt is not a list of strings"),
    ({"vocab": {"src": TOKENS, "tgt": [*TOKENS, "the"]}}, "'the' is there twice"),
    ({"vocab": {"src": TOKENS, "tgt": TOKENS[2:]}}, "'<blank>' is not a token"),
    ({"vocab": {"src": TOKENS, "tgt": TOKENS, "src_feats": [["a"]]}}, "src_feats is"),
    ({"vocab": {"src": [*TOKENS, "more"], "tgt": TOKENS}}, "has the shape"),
    ({"model": {}}, "no tensor 'encoder.embeddings"),
    ({"generator": None}, "no 'generator'"),
    ({"generator": {"weight": torch.zeros(1, 1).expand(10**7, 10**7)}}, "[10000000, 10000000], but fewer numbers"),
    ({"optim": functools.partial(os.system, "false")}, "more than tensors"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), FILES, ids=[message for _, message in FILES])
def test_damaged_files(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    torch.save(checkpoint(**changes), tmp_path / "model.pt")
    peers.check_refused(tmp_path / "model.pt", tmp_path / "ours", message, LANGUAGES)


def test_a_truncated_file_and_a_missing_language(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "model.pt")
    peers.check_refused(
        tmp_path / "model.pt", tmp_path / "ours", "do not name the languages", ImportOptions("en")
    )
    (tmp_path / "model.pt").write_bytes((tmp_path / "model.pt").read_bytes()[:500])
    peers.check_refused(tmp_path / "model.pt", tmp_path / "ours", "damaged, or not a PyTorch file", LANGUAGES)
    (tmp_path / "model.pt").unlink()
    peers.check_refused(tmp_path / "model.pt", tmp_path / "ours", "no such file or folder", LANGUAGES)


def test_a_model_that_init_names_without_its_languages(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "step_9.pt")
    hint = "import it first with `mtkit import`, `src` and `tgt`, and name the folder that it wrote"
    with pytest.raises(ConfigError, match=re.escape(hint)):
        find_model(str(tmp_path))
