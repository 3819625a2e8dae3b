"""`mtkit export --to ctranslate2`: every architecture translates the same there, from the command line too."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import exported
import numpy as np
import pytest
import tiny
import torch

from mtkit.errors import ConfigError
from mtkit.interop.ctranslate2 import TYPES
from mtkit.interop.ctranslate2_engine import CTranslate2Exporter, load_line_translator
from mtkit.interop.exporting import search_of_engines
from mtkit.translation.translator import Translator

pytest.importorskip("ctranslate2")

SHAPES: list[dict[str, Any]] = [
    {},
    {"norm_position": "post", "output_bias": True},
    {"norm_position": "post", "final_norm": True},
    {"final_norm": False, "scale_embeddings": False},
    {"embedding_norm": True, "norm_epsilon": 1e-3},
    {"sinusoids": "interleaved"},
    {"sinusoids": "fairseq", "position_offset": 2},
    {"decoder_num_heads": 2, "decoder_d_ff": 80},
    {"num_kv_heads": 2, "decoder_num_heads": 8},
    {"norm": "rmsnorm", "norm_position": "post", "embedding_norm": True},
    {"activation": "swiglu"},
    {"activation": "gelu", "bias": False},
    {"activation": "silu", "tie_embeddings": "none"},
    {"activation": "geglu", "attention_bias": False, "attention_output_bias": True},
    {"norm_position": "post", "decoder_norm_position": "pre"},
    {"source_eos": False},
    {"positions": "rotary"},
    {"positions": "relative", "max_relative_distance": 3},
    {"positions": "learned", "max_positions": 100},
    {"unique_encoder_layers": 1, "encoder_layers": 3},
    {"tokenizers": "separate"},
    {"tokenizers": "bytes"},
    {"tokenizers": "vocabulary"},
    {"tokenizers": "eos"},
    {"norm": "rmsnorm", "positions": "rotary", "num_kv_heads": 1, "activation": "swiglu", "bias": False},
]

SEARCH = ("--penalty-kind", "simple", "--stop", "finished")
"""CTranslate2's."""


export = partial(exported.export, CTranslate2Exporter())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights whose sentences end."""
    folder = tmp_path_factory.mktemp("models") / "model"
    exported.save_random_model(folder, exported.demo_tokenizers(), output_bias=True)
    return folder


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of that model; read-only."""
    path = tmp_path_factory.mktemp("exports") / "ct"
    export(model, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())) or "base")
def test_every_architecture_translates_the_same(shape: dict[str, Any], tmp_path: Path) -> None:
    shape = dict(shape)
    tokenizers = exported.demo_tokenizers(shape.pop("tokenizers", "joint"))
    exported.save_random_model(tmp_path / "model", tokenizers, **shape)
    [equal] = [line for line in export(tmp_path / "model", tmp_path / "out") if line.startswith("greedy")]
    same, of = int(equal.split()[2]), int(equal.split()[4])
    assert of >= 190 and of - same <= 2  # these were explained by rounding
    assert (tmp_path / "out" / "model.bin").exists()


def test_the_head_that_learned_to_align_aligns_there_too(tmp_path: Path) -> None:
    exported.save_random_model(
        tmp_path / "model", exported.demo_tokenizers(), decoder_layers=3, alignment_layer=2
    )
    export(tmp_path / "model", tmp_path / "out")
    own = Translator.load(tmp_path / "model", precision="fp32")
    theirs = load_line_translator(tmp_path / "out", search_of_engines(own.decoding), torch.device("cpu"))
    encode = own.tokenizers.src.encode
    pairs = list(zip(encode(exported.demo_lines(5)), encode(exported.demo_lines(10)[5:]), strict=True))
    found = dict(own.engine.align(pairs))
    for index, aligned in theirs.engine.align(pairs):
        head = found[index].head
        assert head is not None
        np.testing.assert_allclose(aligned.weights[0], head[:-1, :-1], atol=1e-4)


@pytest.mark.parametrize("key", ["residual_scale", "decoder_residual_scale"])
def test_an_architecture_that_the_engine_lacks_is_refused_with_its_key(key: str, tmp_path: Path) -> None:
    exported.save_random_model(tmp_path / "model", exported.demo_tokenizers(), **{key: 1.5})
    with pytest.raises(ConfigError, match=rf"model\.{key}: CTranslate2 does not scale"):
        export(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("type_", TYPES)
def test_types(type_: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    exported.save_random_model(model, exported.demo_tokenizers(), positions="rotary")
    said = export(model, tmp_path / "out", type_=type_)
    assert any("chrF" in line for line in said) == (type_ != "float32")
    sizes = {"float32": 1.0, "int8": 0.35, "int8_float32": 0.35}
    export(model, tmp_path / "float32")
    share = (tmp_path / "out/model.bin").stat().st_size / (tmp_path / "float32/model.bin").stat().st_size
    assert share <= sizes.get(type_, 0.6)


def test_a_loss_above_the_limit_is_refused(model: Path, tmp_path: Path) -> None:
    """The references are the translations in float32, so that every difference is a loss."""
    lines = tiny.write_lines(tmp_path / "lines", exported.demo_lines(100))
    code, out, err = tiny.mtkit("translate", model, lines, "--precision", "fp32", *SEARCH)
    assert code == 0, err
    refs = tiny.write_lines(tmp_path / "refs", out.removesuffix("\n").split("\n"))
    arguments = ("export", model, "--to", "ctranslate2", "--type", "int8", "--src", lines, "--ref", refs)
    code, out, err = tiny.mtkit(*arguments, "--max-loss", 0.01, "-o", tmp_path / "out")
    assert code == 2 and "int8 loses" in tiny.one_line(err), err
    assert not (tmp_path / "out").exists()
    code, out, err = tiny.mtkit(*arguments, "--max-loss", 99, "-o", tmp_path / "out")
    assert code == 0 and (tmp_path / "out/model.bin").exists(), err


def test_an_export_that_translates_otherwise_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = CTranslate2Exporter.write

    def write_damaged(self: CTranslate2Exporter, loaded: Any, folder: Path, type_: str) -> None:
        with torch.no_grad():
            loaded.network.decoder[0].cross.out.weight[0, 0] += 2
        write(self, loaded, folder, type_)

    monkeypatch.setattr(CTranslate2Exporter, "write", write_damaged)
    with pytest.raises(ConfigError, match=r"translates .* otherwise than mtkit"):
        export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(trained: Path, corpus: Path, tmp_path: Path) -> None:
    """The model's own test set is found; the folder alone translates, with resume, links and placeholders."""
    code, out, err = tiny.mtkit("export", trained, "--to", "ctranslate2", "--type", "int8", "-o", tmp_path / "ct",
                                "--max-loss", 30)  # fmt: skip
    assert code == 0, err
    assert "greedy, float32: 200 of 200 sentences equal" in out
    assert "BLEU" in out and "95 % interval" in out
    assert "decoding.penalty_kind simple, because it lacks gnmt" in out
    manifest = json.loads((tmp_path / "ct/manifest.json").read_text())
    assert manifest["engine"] == "ctranslate2" and "model.bin" in manifest["files"]
    lines = tmp_path / "in"
    tiny.write_lines(lines, [*tiny.read_lines(corpus / "test.src"), "", "the dog sees <b>the</b> 31 cats ."])
    runs: dict[str, tuple[Any, ...]] = {
        "ours": (trained, "--precision", "fp32", *SEARCH),
        "theirs": (tmp_path / "ct", "--engine", "ctranslate2", "--precision", "fp32", "--resume"),
    }
    for name, arguments in runs.items():
        for options in ((), ("--protect",), ("--alignment", "pharaoh"), ("--n-best", 2)):
            path = tmp_path / f"{name}{'-'.join(map(str, options))}"
            code, _, err = tiny.mtkit("translate", *arguments, *options, lines, "-o", path)
            assert code == 0, err
            assert len(tiny.read_lines(path)) >= 18
    before = (tmp_path / "theirs").read_bytes()
    note = tmp_path / "theirs.mtkit-job"  # as after a crash
    job = {key: value for key, value in json.loads(note.read_text()).items() if key != "finished output"}
    note.write_text(json.dumps(job))
    (tmp_path / "theirs").write_bytes(b"".join(before.splitlines(keepends=True)[:5]))
    code, _, err = tiny.mtkit("translate", *runs["theirs"], lines, "-o", tmp_path / "theirs")
    assert (code, (tmp_path / "theirs").read_bytes()) == (0, before), err
    same = zip(tiny.read_lines(tmp_path / "ours"), tiny.read_lines(tmp_path / "theirs"), strict=True)
    assert sum(a == b for a, b in same) >= 16  # the weights are int8
    assert "<b>" in tiny.read_lines(tmp_path / "theirs--protect")[-1]


REFUSED: list[tuple[tuple[object, ...], int, str]] = [
    (("--sample",), 2, "--sample cannot be combined with --engine"),
    (("--mbr", "chrf"), 2, "--mbr cannot be combined with --engine"),
    (("--groups", 2, "--beam-size", 4), 2, "--groups cannot be combined with --engine"),
    (("--alternatives", 2), 2, "--alternatives cannot be combined with --engine"),
    (("--constraints", "{lines}"), 2, "--constraints cannot be combined with --engine"),
    (("--attention", "a.npz"), 2, "--attention cannot be combined with --engine"),
    (("--ensemble", "{model}"), 2, "--ensemble cannot be combined with --engine"),
    (("--penalty-kind", "gnmt"), 2, "--penalty-kind: CTranslate2 does not support penalty_kind gnmt"),
    (("--stop", "certain"), 2, "--stop: CTranslate2 does not support stop certain"),
    (("--precision", "fp64"), 2, "unknown precision"),
]


@pytest.mark.parametrize(("options", "code", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_options_that_the_engine_lacks(
    options: tuple[object, ...], code: int, message: str, model: Path, folder: Path, tmp_path: Path
) -> None:
    lines = tiny.write_lines(tmp_path / "lines", ["a dog"])
    given = [str(option).format(lines=lines, model=model) for option in options]
    found, out, err = tiny.mtkit("translate", "--engine", "ctranslate2", folder, lines, *given)
    assert (found, out) == (code, "")
    assert message in tiny.one_line(err)


def test_bad_input(model: Path, tmp_path: Path) -> None:
    """One line, an exit code, and nothing is written."""
    export(model, tmp_path / "ct")
    lines = tiny.write_lines(tmp_path / "lines", ["a dog", "a cat"])
    short = tiny.write_lines(tmp_path / "short", ["ein Hund"])
    empty = tiny.write_lines(tmp_path / "empty", [])
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in (tmp_path / "ct").iterdir():
        content = path.read_bytes()
        (damaged / path.name).write_bytes(content[:-1] + b"x" if path.name == "model.bin" else content)
    to, new = ("--to", "ctranslate2"), ("-o", tmp_path / "new")
    before = tiny.tree(tmp_path)
    cases: list[tuple[tuple[object, ...], int, str]] = [
        (("export", model, "--to", "tensorflow", *new), 2, "--to: unknown engine"),
        (("export", model, *to, *new, "--type", "int4"), 2, "--type: CTranslate2 has no type 'int4'"),
        (("export", model, *to, "-o", tmp_path / "ct"), 2, "it exists already"),
        (("export", model, *to, *new, "--ref", short), 2, "--ref needs --src"),
        (("export", model, *to, *new, "--src", lines, "--ref", short), 3, "short"),
        (("export", model, *to, *new, "--src", empty), 3, "it has no lines"),
        (("export", model, *to, *new, "--src", tmp_path / "missing"), 3, "missing"),
        (("export", model, *to, *new, "--max-loss", -1), 2, "--max-loss: it must not be negative"),
        (("export", model, *to, *new, "--max-loss", 1), 2, "--max-loss: there are no references"),
        (("export", tmp_path / "ct", *to, *new), 5, "a model that was exported to ctranslate2"),
        (("export", tmp_path / "missing", *to, *new), 5, "no such folder"),
        (("translate", tmp_path / "ct", lines), 5, "translate with --engine ctranslate2"),
        (("translate", "--engine", "ctranslate2", model, lines), 5, "not a model that was exported"),
        (("translate", "--engine", "ctranslate2", damaged, lines), 5, "damaged"),
        (("translate", "--engine", "marian", tmp_path / "ct", lines), 2, "--engine: unknown engine"),
    ]
    for arguments, code, message in cases:
        found, _, err = tiny.mtkit(*arguments)
        assert (found, message in tiny.one_line(err)) == (code, True), (arguments, err)
    assert tiny.tree(tmp_path) == before


def test_learned_positions_go_on_beyond_the_table(tmp_path: Path) -> None:
    """mtkit repeats the vector of the last position."""
    exported.save_random_model(
        tmp_path / "model", exported.demo_tokenizers(), positions="learned", max_positions=91
    )
    export(tmp_path / "model", tmp_path / "out")
    changes = {
        "beam_size": 1,
        "max_length_extra": 150,
        "min_pieces": 120,
        "penalty_kind": "simple",
        "stop": "finished",
        "avoid_loops": False,
    }
    own = Translator.load(tmp_path / "model", precision="fp32", **changes)
    theirs = load_line_translator(tmp_path / "out", own.decoding, torch.device("cpu"))
    line = exported.demo_lines(1)
    assert [found.text for found in theirs.translate(line)] == [found.text for found in own.translate(line)]
