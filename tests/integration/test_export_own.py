"""`mtkit export --to mtkit`: a model folder in fewer bits is read by every command, and loses what the proof says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exported
import pytest
import safetensors.torch
import tiny
import torch

from mtkit.errors import ConfigError
from mtkit.files import sha256_file
from mtkit.interop import exporting
from mtkit.interop.exporting import LoadedModel, export_model
from mtkit.interop.own import OwnExporter
from mtkit.interop.proof import random_text
from mtkit.model.cpu import packing
from mtkit.translation.loading import load_model, load_stored_model
from mtkit.translation.translator import Translator

SHAPES: list[dict[str, Any]] = [
    {},
    {"norm_position": "post", "output_bias": True, "embedding_norm": True},
    {"tie_embeddings": "two-way", "activation": "silu"},
    {"tie_embeddings": "none", "activation": "gelu", "bias": False},
    {"activation": "swiglu", "num_kv_heads": 2, "norm": "rmsnorm"},
    {"activation": "geglu", "attention_bias": False, "attention_output_bias": True},
    {"decoder_num_heads": 2, "decoder_d_ff": 80, "residual_scale": 1.5},
    {"positions": "rotary", "num_kv_heads": 1, "source_eos": False},
    {"positions": "relative", "max_relative_distance": 3},
    {"positions": "learned", "max_positions": 100},
    {"unique_encoder_layers": 1, "encoder_layers": 3},
    {"tokenizers": "separate"},
    {"tokenizers": "vocabulary"},
]

_QUICK = ("base", "geglu-False-True", "separate")
EACH = [
    pytest.param(shape, marks=[] if name in _QUICK else [pytest.mark.slow], id=name)
    for shape in SHAPES
    for name in ["-".join(map(str, shape.values())) or "base"]
]

has_int8 = pytest.mark.skipif(not packing.can_multiply_int8(), reason="no 8-bit products on this machine")
takes_int8 = pytest.mark.skipif(not packing.takes_stored_int8(), reason="this CPU rounds them again")


def save(model: Path, **shape: Any) -> Path:
    tokenizers = exported.demo_tokenizers(shape.pop("tokenizers", "joint"))
    exported.save_random_model(model, tokenizers, **shape)
    return model


def write(model: Path, output: Path, type_: str = "int8") -> Path:
    """Write an export without its proof."""
    output.mkdir()
    OwnExporter().write(LoadedModel(*load_model(model), 40), output, type_)
    return output


def export(model: Path, output: Path, **options: Any) -> list[str]:
    """Export with a proof on random text; return what is said."""
    said: list[str] = []
    export_model(model, OwnExporter(), output, lambda m: random_text(m.tokenizers), said.append, **options)
    return said


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights; read-only."""
    return save(tmp_path_factory.mktemp("models") / "model", output_bias=True)


@pytest.fixture(scope="module")
def int8(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export in 8 bits; read-only."""
    return write(model, tmp_path_factory.mktemp("exports") / "int8")


def texts_and_scores(translator: Translator) -> list[tuple[str, float]]:
    found = translator.translate(exported.demo_lines(8))
    return [(translation.text, translation.score) for translation in found]


@pytest.mark.parametrize("shape", EACH)
def test_every_weight_is_rounded_by_half_a_step_and_no_more(shape: dict[str, Any], tmp_path: Path) -> None:
    """Written again, the folder has the same integers: what is rounded stays."""
    before = dict(load_model(save(tmp_path / "model", **shape))[2].named_parameters())
    folder = write(tmp_path / "model", tmp_path / "int8")
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    dequantized = load_model(folder)[2]
    after = dict(dequantized.named_parameters())
    assert after.keys() == before.keys()  # tied as before
    for name, weight in before.items():
        if f"{name}_scale" in stored:
            assert stored[name].dtype == torch.int8
            half = stored[f"{name}_scale"][:, None] / 2
            assert ((after[name] - weight).abs() <= half * 1.001).all()
            assert (stored[name].abs().amax(dim=1) == 127).all()
        else:
            assert torch.equal(after[name], weight)
            assert weight.dim() == 1 or "positions" in name or ".relative." in name
    again = safetensors.torch.load_file(write(folder, tmp_path / "again") / "model.safetensors")
    assert again.keys() == stored.keys()
    for name, tensor in stored.items():
        torch.testing.assert_close(again[name], tensor, atol=0, rtol=1e-6 if "scale" in name else 0)
    quantized, ids = load_stored_model(folder)[2].eval(), torch.arange(4, 24).view(2, 10)
    with torch.no_grad():
        logits = [m.logits(m(ids, ids)) for m in (quantized, dequantized.eval())]
    torch.testing.assert_close(*logits, atol=0, rtol=0)


@takes_int8
@pytest.mark.parametrize("shape", EACH)
def test_it_translates_as_the_full_model_does_in_int8(
    shape: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal texts and scores, to the last bit, once the full model embeds with the same rounded vectors."""
    monkeypatch.setattr(packing, "INT8_MIN_SIZE", 0)
    save(tmp_path / "model", **shape)
    folder = write(tmp_path / "model", tmp_path / "int8")
    config, tokenizers, model = load_stored_model(tmp_path / "model")
    rounded = load_model(folder)[2]
    for name in ("src_embedding", "tgt_embedding"):
        model.get_submodule(name).weight = rounded.get_submodule(name).weight
    full = Translator.of(config, tokenizers, model, None, torch.device("cpu"), "int8")
    smaller = Translator.load(folder, device="cpu", precision="int8")
    assert smaller.model.src_embedding.weight.dtype == torch.int8
    found = texts_and_scores(smaller)
    assert found == texts_and_scores(full)
    assert len({text for text, _ in found}) > 4


@takes_int8
def test_integers_are_packed_as_they_are(int8: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No matrix passes through float32 in int8, which is also what auto means, unless another model has none."""
    expected = texts_and_scores(Translator.load(int8, device="cpu", precision="int8"))
    both = Translator.load(int8, device="cpu", ensemble=[model])
    assert both.precision == Translator.load(model, device="cpu").precision
    monkeypatch.setattr(packing, "INT8_MIN_SIZE", 0)
    monkeypatch.setattr("mtkit.model.quantized.dequantize_matrix", None)
    monkeypatch.setattr(
        "mtkit.model.quantized.quantize_matrix", lambda weight: (weight.to(torch.int8), weight[:, 0])
    )
    found = Translator.load(int8, device="cpu")
    assert found.precision == "int8"
    assert texts_and_scores(found)
    assert len(expected) == 8


@pytest.mark.parametrize("folder", ["model", "int8"])
def test_loading_draws_no_weights_that_it_replaces(folder: str, request: pytest.FixtureRequest) -> None:
    """That would take longer than reading them."""
    path = request.getfixturevalue(folder)
    before = torch.get_rng_state()
    load_stored_model(path)
    assert torch.equal(torch.get_rng_state(), before)


@has_int8
def test_an_older_cpu_rounds_them_to_what_it_can_add(
    int8: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the full model would be, in fewer levels."""
    monkeypatch.setattr(packing, "INT8_MIN_SIZE", 0)
    monkeypatch.setattr(packing, "int8_quant_max", lambda: 64)
    config, tokenizers, network = load_model(int8)
    expected = Translator.of(config, tokenizers, network, None, torch.device("cpu"), "int8")
    found = Translator.load(int8, device="cpu")
    assert found.precision == "int8"
    assert texts_and_scores(found) == texts_and_scores(expected)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_other_precisions_take_rounded_floats(precision: str, int8: Path, tmp_path: Path) -> None:
    full = write(int8, tmp_path / "float32", "float32")
    found, expected = (Translator.load(folder, device="cpu", precision=precision) for folder in (int8, full))
    assert found.precision == precision
    assert texts_and_scores(found) == texts_and_scores(expected)


def test_sizes(tmp_path: Path) -> None:
    """Of a model whose matrices have the usual widths, bytes of all files."""
    save(tmp_path / "model", d_model=256, d_ff=1024, encoder_layers=1, decoder_layers=1)
    sizes = {}
    for type_ in OwnExporter.types:
        files = write(tmp_path / "model", tmp_path / type_, type_).iterdir()
        sizes[type_] = sum(path.stat().st_size for path in files if path.suffix == ".safetensors")
    assert sizes["int8"] < 0.26 * sizes["float32"]
    assert max(sizes["float16"], sizes["bfloat16"]) < 0.51 * sizes["float32"]


@pytest.mark.slow
@pytest.mark.parametrize("type_", ["float16", "bfloat16"])
def test_sixteen_bits(type_: str, model: Path, tmp_path: Path) -> None:
    said = export(model, tmp_path / "out", type_=type_)
    assert "greedy, float32: 200 of 200 sentences equal" in said
    assert any(line.startswith(f"{type_}: chrF") for line in said)
    before, after = (load_model(folder)[2].state_dict() for folder in (model, tmp_path / "out"))
    for name, weight in before.items():
        expected = weight.to(getattr(torch, type_)).float() if weight.dim() > 1 else weight
        assert torch.equal(after[name], expected)


def test_a_weight_beyond_float16_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every exporter: the check is not theirs."""
    config, tokenizers, network = load_model(model)
    with torch.no_grad():
        network.decoder[0].cross.out.weight[0, 0] = 1e5
    monkeypatch.setattr(exporting, "load_model", lambda path: (config, tokenizers, network))
    with pytest.raises(
        ConfigError, match=r"cross\.out\.weight .*too large for float16 .*float32 or bfloat16"
    ):
        export(model, tmp_path / "out", type_="float16")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(trained: Path, corpus: Path, tmp_path: Path) -> None:
    """Export with references and a limit; then every command that reads a model, and those that refuse this one."""
    small = tmp_path / "small"
    arguments = ("export", trained, "--to", "mtkit", "--type", "int8")
    code, out, err = tiny.mtkit(*arguments, "-o", small, "--max-loss", 30)
    assert code == 0, err
    assert "greedy, float32: 200 of 200 sentences equal" in out
    assert "int8: BLEU" in out and "95 % interval" in out and "int8: chrF" in out
    assert f"mtkit translate {small}" in out
    source, target = corpus / "test.src", corpus / "test.tgt"
    code, fp32, err = tiny.mtkit("translate", trained, source, "--precision", "fp32")
    code, hyps, err = tiny.mtkit("translate", small, source)
    assert code == 0, err
    same = sum(a == b for a, b in zip(fp32.split("\n"), hyps.split("\n"), strict=True))
    assert same >= 15  # of 17: it has learned the language
    code, out, err = tiny.mtkit("evaluate", "--model", small, "--src", source, "--ref", target)
    assert code == 0 and "BLEU" in out, err
    code, out, err = tiny.mtkit("score", small, source, target)
    assert code == 0 and len(out.split("\n")) == 17, err
    code, out, err = tiny.mtkit("translate", trained, source, "--ensemble", small)
    assert code == 0, err
    code, out, err = tiny.mtkit("export", small, "--to", "mtkit", "-o", tmp_path / "full")
    assert code == 0 and "in 8 bits" in out, err
    code, again, err = tiny.mtkit("translate", tmp_path / "full", source, "--precision", "int8")
    assert (code, again) == (0, tiny.mtkit("translate", small, source, "--precision", "int8")[1])
    pair = write(trained, tmp_path / "other")
    data = tiny.write_lines(tmp_path / "data.tsv", ["a dog\tun chien"] * 30)
    before = tiny.tree(tmp_path)
    refused: list[tuple[tuple[object, ...], int, str]] = [
        (("average", small, pair, "-o", tmp_path / "new"), 2, "weights in 8 bits, which are not averaged"),
        (
            ("finetune", small, "--data", data, "-o", tmp_path / "new"),
            2,
            "weights in 8 bits, which cannot be trained",
        ),
        (("merge", small, "-o", tmp_path / "new"), 2, "no adapters"),
        ((*arguments, "-o", small), 2, "it exists already"),
        (
            ("export", trained, "--to", "mtkit", "--type", "int16", "-o", tmp_path / "new"),
            2,
            "no type 'int16'",
        ),
        (("translate", "--engine", "ctranslate2", small, source), 5, "not a model that was exported"),
        (("translate", "--engine", "ctranslate2", trained, source), 5, "not a model that was exported"),
        (("translate", "--engine", "ctranslate2", tmp_path / "new", source), 5, "no such folder"),
        (("import", small, "-o", tmp_path / "new"), 2, "written by mtkit"),
        (("import", trained, "-o", tmp_path / "new"), 2, "written by mtkit"),
    ]
    for words, code, message in refused:
        found, _, err = tiny.mtkit(*words)
        assert (found, message in tiny.one_line(err)) == (code, True), (words, err)
    assert tiny.tree(tmp_path) == before


@pytest.mark.slow
def test_a_loss_above_the_limit_is_refused(model: Path, tmp_path: Path) -> None:
    """The references are the translations in float32, so that every difference is a loss."""
    lines = tiny.write_lines(tmp_path / "lines", exported.demo_lines(60))
    code, out, err = tiny.mtkit("translate", model, lines, "--precision", "fp32")
    assert code == 0, err
    refs = tiny.write_lines(tmp_path / "refs", out.removesuffix("\n").split("\n"))
    arguments = ("export", model, "--to", "mtkit", "--type", "int8", "--src", lines, "--ref", refs)
    code, out, err = tiny.mtkit(*arguments, "--max-loss", 0.01, "-o", tmp_path / "out")
    assert code == 2 and "int8 loses" in tiny.one_line(err), err
    assert not (tmp_path / "out").exists()


def edit(
    change: Callable[[dict[str, torch.Tensor], dict[str, str]], Any],
) -> Callable[[Path], None]:
    """Return a damage that changes tensors or metadata."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        with safetensors.safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        change(tensors, metadata)
        path.write_bytes(safetensors.torch.save(tensors, metadata))

    return damage


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


MATRIX = "decoder.0.cross.kv.weight"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "damaged, or not a safetensors file"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "damaged, or not a safetensors file"),
    "version": (edit(lambda _, m: m.update({"mtkit version": "2"})), "type 'int8', version '2'"),
    "type": (edit(lambda _, m: m.update({"mtkit type": "int4"})), "type 'int4', version '1'"),
    "no version": (edit(lambda _, m: m.pop("mtkit version")), "type 'int8', version ''"),
    "no metadata": (edit(lambda _, m: m.clear()), "the weights do not match the model"),
    "no scale": (edit(lambda t, _: t.pop(f"{MATRIX}_scale")), f"do not match the model: {MATRIX}_scale"),
    "more": (edit(lambda t, _: t.update(more=torch.zeros(2))), "do not match the model: more"),
    "shape": (edit(lambda t, _: t.update({MATRIX: t[MATRIX][1:].clone()})), f"{MATRIX} has the shape"),
    "dtype": (edit(lambda t, _: t.update({MATRIX: t[MATRIX].float()})), f"{MATRIX} is torch.float32, not torch.int8"),
    "scale": (edit(lambda t, _: t.update({f"{MATRIX}_scale": t[f"{MATRIX}_scale"].half()})), "is torch.float16"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "hidden"), [("truncated", False), *((name, True) for name in DAMAGES)])
def test_damage(name: str, hidden: bool, model: Path, tmp_path: Path) -> None:
    """The manifest notices every change; with a manifest that was made to match, the format does."""
    folder = write(model, tmp_path / "int8")
    damage, message = DAMAGES[name]
    damage(folder)
    if hidden:
        path = folder / "model.safetensors"
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    code, out, err = tiny.mtkit("translate", folder, stdin="a dog\n")
    assert (code, out) == (5, "")
    assert (message if hidden else "does not match the manifest") in tiny.one_line(err)
