"""`mtkit export --to onnx`: what onnxruntime computes with the folder is what mtkit computes, step by step."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import exported
import numpy as np
import pytest
import tiny
import torch
from pages import ROOT, blocks

from mtkit.data.segmentation import SentencePiece
from mtkit.data.tokenizer import Tokenizers, VocabularyTokenizer
from mtkit.errors import ConfigError
from mtkit.interop.exporting import LoadedModel, export_model
from mtkit.interop.proof import ProofText, random_text
from mtkit.translation.loading import load_model
from mtkit.translation.segments import Segment
from mtkit.translation.translator import Translator

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from mtkit.interop.onnx import save, trace_decoder  # noqa: E402
from mtkit.interop.onnx_engine import Graphs, OnnxExporter  # noqa: E402

SMALL = {"encoder_layers": 1, "decoder_layers": 1}
MODERN = {"norm": "rmsnorm", "positions": "rotary", "num_kv_heads": 1, "activation": "swiglu", "bias": False}
SHAPES: list[dict[str, Any]] = [
    {},
    {"norm_position": "post", "output_bias": True, "sinusoids": "fairseq", "position_offset": 2, **SMALL},
    {"norm_position": "post", "final_norm": True, "activation": "silu", "tie_embeddings": "none", **SMALL},
    {"final_norm": False, "scale_embeddings": False, "tie_embeddings": "two-way", **SMALL},
    {"embedding_norm": True, "norm_epsilon": 1e-3, "sinusoids": "interleaved", **SMALL},
    {"decoder_num_heads": 2, "decoder_d_ff": 80, "activation": "gelu", **SMALL},
    {"num_kv_heads": 2, "decoder_num_heads": 8, **SMALL},
    {"norm": "rmsnorm", "norm_position": "post", "decoder_norm_position": "pre", **SMALL},
    {"activation": "geglu", "attention_bias": False, "attention_output_bias": True, **SMALL},
    {"residual_scale": 1.5, "decoder_residual_scale": 0.7, **SMALL},
    {"positions": "relative", "max_relative_distance": 3, **SMALL},
    {"positions": "learned", "max_positions": 100, "embedding_norm": True, **SMALL},
    {"source_eos": False, **SMALL},
    {"unique_encoder_layers": 1, "encoder_layers": 3, "unique_decoder_layers": 1},
    {"tokenizers": "separate", **SMALL},
    {"tokenizers": "bytes", **MODERN},
    {"tokenizers": "vocabulary", **SMALL},
    {"tokenizers": "eos", **SMALL},
]


def export(model: Path, output: Path, **options: Any) -> list[str]:
    """Export with a proof on random text; return what is said."""
    said: list[str] = []
    export_model(model, OnnxExporter(), output, lambda m: random_text(m.tokenizers), said.append, **options)
    return said


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights."""
    folder = tmp_path_factory.mktemp("models") / "model"
    exported.save_random_model(folder, exported.demo_tokenizers(), output_bias=True, **SMALL)
    return folder


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of that model; read-only."""
    path = tmp_path_factory.mktemp("exports") / "out"
    said = export(model, path)
    assert said[1].startswith("greedy, float32: 200 of 200 sentences equal")
    assert said[2] == "tokens of 200 lines: equal"
    return path


def compare(model: Path, folder: Path) -> None:
    """Compare encoder states, logits of each step and of several at once, translations, scores and attention."""
    config, tokenizers, network = load_model(model)
    network.eval()
    translator = Translator.load(model, device="cpu", precision="fp32")
    lines = exported.demo_lines(20)
    src_BS = translator.ensemble.sources(tokenizers.src.encode(lines))
    torch.manual_seed(1)
    tgt_BT = torch.randint(4, tokenizers.tgt.num_pieces - 4, (len(lines), 7))
    with torch.no_grad():
        memory_BSD, mask = network.encode(src_BS), network.source_mask(src_BS)
        logits_BTV = network.logits(network.decode(tgt_BT, memory_BSD, mask))
    graphs = Graphs(folder)
    encoded = graphs.encode(src_BS)
    real = mask[:, 0, 0].numpy()
    assert np.array_equal(encoded["memory_mask"], real)
    np.testing.assert_allclose(encoded["encoder_states"][real], memory_BSD.numpy()[real], atol=1e-4)
    past = graphs.no_past(len(lines))
    found = []
    for steps in (slice(0, 1), slice(1, 2), slice(2, 5), slice(5, 6), slice(6, 7)):
        logits, _, past = graphs.decode(tgt_BT[:, steps], encoded, past)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, axis=1), logits_BTV.numpy(), atol=1e-4)

    beam = config.decoding.model_copy(
        update={"beam_size": 3, "n_best": 2, "coverage_penalty": 0.2, "length_penalty": 0.6}
    )
    theirs = OnnxExporter().engine(LoadedModel(config, tokenizers, network, None), folder, "float32", beam)
    ours = Translator.load(model, decoding=beam, device="cpu", precision="fp32").engine
    segments = [
        Segment(ids, beam.max_length(len(ids)), number)
        for number, ids in enumerate(tokenizers.src.encode(lines))
    ]
    before, after = (engine.search_segments(segments) for engine in (ours, theirs))
    assert [[hyp.ids for hyp in hyps] for hyps in after] == [[hyp.ids for hyp in hyps] for hyps in before]
    scores = [[hyp.score for hyps in found for hyp in hyps] for found in (before, after)]
    np.testing.assert_allclose(*scores, atol=1e-4)
    pairs = list(zip(tokenizers.src.encode(lines[:4]), tokenizers.tgt.encode(lines[:4]), strict=True))
    for index, attention in theirs.align(pairs):
        [(_, expected)] = ours.align(pairs[index : index + 1])  # alone, so that it is not padded
        assert (attention.src, attention.tgt) == (expected.src, expected.tgt)
        np.testing.assert_allclose(attention.weights, expected.weights, atol=1e-4)


def run_script(script: Path, lines: list[str]) -> list[str]:
    """Run a script in an exported folder."""
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(
        [sys.executable, str(script)],
        input=text, capture_output=True, text=True, cwd="/", timeout=300, env={"PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n").split("\n")


def greedy(model: Path, lines: list[str]) -> list[str]:
    """Return greedy translations of mtkit, without the white space at both ends that the example leaves out."""
    search = {"beam_size": 1, "length_penalty": 0.0, "avoid_loops": False}
    translator = Translator.load(model, device="cpu", precision="fp32", **search)
    return [translation.text.strip() for translation in translator.translate(lines)]


def documented_code() -> str:
    """The example in docs/translating.md."""
    [code] = [code for code in blocks(ROOT / "docs/translating.md", "python") if "import onnxruntime" in code]
    return code


def test_the_example_in_the_docs_is_the_one_in_the_folder() -> None:
    assert documented_code() == (ROOT / "mtkit/interop/onnx_translate.py").read_text("utf-8")


def test_the_decoder_computes_any_number_of_steps_at_once(model: Path, tmp_path: Path) -> None:
    """The same graph serves the first step, further ones and several at once, for one sentence or more."""
    _, _, network = load_model(model)
    save(trace_decoder(network), tmp_path / "decoder.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "decoder.onnx"))
    network.eval()
    torch.manual_seed(1)
    for num_sentences, steps in ((3, (1, 1, 4)), (1, (1, 2, 1, 1)), (2, (6,))):
        src_BS = torch.randint(4, 140, (num_sentences, 5))
        src_BS[0, 4:] = network.src_pad
        tgt_BT = torch.randint(4, 140, (num_sentences, sum(steps)))
        with torch.no_grad():
            memory_BSD, mask = network.encode(src_BS), network.source_mask(src_BS)
            expected = network.logits(network.decode(tgt_BT, memory_BSD, mask)).numpy()
            keys, values = next(iter(network.decoder_stack())).cross.project_memory(memory_BSD)
        memory = {
            "memory_mask": mask[:, 0, 0].numpy(), "memory_keys_0": keys.numpy(), "memory_values_0": values.numpy(),
        }  # fmt: skip
        past = [np.zeros((num_sentences, 4, 0, 8), np.float32)] * 2
        found = []
        for tokens in tgt_BT.split(steps, dim=1):
            inputs = memory | dict(zip(("past_keys_0", "past_values_0"), past, strict=True))
            logits, _, *past = session.run(None, inputs | {"tgt_ids": tokens.numpy()})
            found.append(logits)
        np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=1e-4)


@pytest.mark.slow
def test_states_logits_and_translations_are_equal(model: Path, folder: Path) -> None:
    compare(model, folder)


@pytest.mark.slow
def test_the_code_block_in_the_docs_translates(model: Path, folder: Path, tmp_path: Path) -> None:
    """Its translations are those of mtkit."""
    code = documented_code()
    copy = Path(shutil.copytree(folder, tmp_path / "moved"))
    (copy / "translate.py").write_text(code, "utf-8")
    lines = [*exported.demo_lines(30), "", "ein  Ärger ☃"]
    assert run_script(copy / "translate.py", lines) == greedy(model, lines)


@pytest.mark.slow
def test_graphs_and_the_readme(folder: Path) -> None:
    """Old versions of onnxruntime load the graphs; the README lists their inputs and outputs; nothing local is told."""
    rows = re.findall(
        r"^\| (\w+ \w+) \| (`.*`) \| (\w+) \| (\[.*\])", (folder / "README.md").read_text(), flags=re.M
    )
    described = {
        (port, name.replace("N", "0"), type_, shape) for port, names, type_, shape in rows
        for name in re.findall("`(.*?)`", names)
    }  # fmt: skip
    found = set()
    types = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(bool)": "bool"}
    for name in ("encoder", "decoder"):
        path = folder / f"{name}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        loaded = onnx.load(str(path))
        assert loaded.ir_version == 8
        assert [(opset.domain, opset.version) for opset in loaded.opset_import] == [("", 18)]
        assert str(ROOT).encode() not in path.read_bytes()
        session = onnxruntime.InferenceSession(str(path))
        for kind, ports in (("in", session.get_inputs()), ("out", session.get_outputs())):
            for port in ports:
                found.add((f"{name} {kind}", port.name, types[port.type], str(port.shape).replace("'", "")))
    assert described == found


@pytest.mark.slow
def test_every_file_is_described(folder: Path) -> None:
    readme = (folder / "README.md").read_text("utf-8")
    assert all(f"`{path.name}`" in readme for path in folder.iterdir() if path.name != "README.md")
    assert json.loads((folder / "config.json").read_text("utf-8"))["type"] == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())) or "base")
def test_every_architecture_computes_the_same(shape: dict[str, Any], tmp_path: Path) -> None:
    shape = dict(shape)
    tokenizers = exported.demo_tokenizers(shape.pop("tokenizers", "joint"))
    exported.save_random_model(tmp_path / "model", tokenizers, **shape)
    said = export(tmp_path / "model", tmp_path / "out")
    same, of = int(said[1].split()[2]), int(said[1].split()[4])
    assert of >= 190 and of - same <= 2  # these were explained by rounding
    assert said[2].endswith("equal")
    compare(tmp_path / "model", tmp_path / "out")
    lines = exported.demo_lines(20)
    assert run_script(tmp_path / "out/translate.py", lines) == greedy(tmp_path / "model", lines)


@pytest.mark.slow
@pytest.mark.parametrize(("type_", "most"), [("float16", 0.52), ("int8", 0.30)])
def test_types(type_: str, most: float, tmp_path: Path) -> None:
    """Also matrices that are too large to be transposed in float32 are made smaller; old versions load them too."""
    model = tmp_path / "model"
    sizes = {"d_model": 256, "d_ff": 1200, "num_heads": 4, "activation": "relu", **SMALL}
    exported.save_random_model(model, exported.demo_tokenizers("bytes"), **sizes, positions="rotary")
    said = export(model, tmp_path / "out", type_=type_)
    export(model, tmp_path / "float32")
    assert any(line.startswith(f"{type_}: chrF") for line in said)
    assert ("computed in float32" in "".join(said)) == (type_ == "float16")
    for name in ("encoder.onnx", "decoder.onnx"):
        before, after = ((tmp_path / folder / name).stat().st_size for folder in ("float32", "out"))
        assert after <= most * before
        assert {opset.domain for opset in onnx.load(str(tmp_path / "out" / name)).opset_import} <= {
            "",
            "com.microsoft",
        }
    assert len(run_script(tmp_path / "out/translate.py", exported.demo_lines(5))) == 5
    assert all(path.is_file() for path in (tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("type_", ["float32", "int8"])
def test_weights_of_large_models_lie_beside_the_graphs(
    type_: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtkit.interop.onnx.LARGEST_FILE", 1000)
    export(model, tmp_path / "out", type_=type_)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"encoder.onnx.data", "decoder.onnx.data"} <= names
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    onnx.checker.check_model(str(moved / "decoder.onnx"))
    assert len(run_script(moved / "translate.py", exported.demo_lines(3))) == 3


@pytest.mark.slow
def test_the_command_line(trained: Path, tmp_path: Path) -> None:
    """The model's own test set is found, and the loss of int8 is measured and limited."""
    to = ("export", trained, "--to", "onnx", "-o", tmp_path / "out")
    code, out, err = tiny.mtkit(*to, "--type", "int8", "--max-loss", 30)
    assert code == 0, err
    assert "greedy, float32: 200 of 200 sentences equal" in out
    assert "int8: BLEU" in out and "95 % interval" in out and "int8: chrF" in out
    assert "because it lacks" not in out  # the search is that of mtkit
    lines = tiny.write_lines(tmp_path / "lines", exported.demo_lines(100))
    code, out, err = tiny.mtkit("translate", trained, lines, "--precision", "fp32")
    assert code == 0, err
    refs = tiny.write_lines(tmp_path / "refs", out.removesuffix("\n").split("\n"))
    again = (*to[:-1], tmp_path / "again", "--type", "int8", "--src", lines, "--ref", refs, "--max-loss", 0)
    code, out, err = tiny.mtkit(*again)
    assert code == 2 and "int8 loses" in tiny.one_line(err), err
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_an_export_that_translates_otherwise_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = OnnxExporter.write

    def write_damaged(self: OnnxExporter, loaded: Any, folder: Path, type_: str) -> None:
        with torch.no_grad():
            loaded.network.decoder[0].cross.out.weight[0, 0] += 2
        write(self, loaded, folder, type_)

    monkeypatch.setattr(OnnxExporter, "write", write_damaged)
    with pytest.raises(ConfigError, match=r"translates .* otherwise than mtkit"):
        export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_sentencepiece_alone_cannot_replace_is_refused(tmp_path: Path) -> None:
    made = exported.demo_tokenizers("vocabulary").src
    assert isinstance(made, VocabularyTokenizer)
    restricted = SentencePiece(made.model, only=made.vocabulary.pieces)
    tokenizer = VocabularyTokenizer(restricted, made.vocabulary)
    exported.save_random_model(tmp_path / "model", Tokenizers(tokenizer, tokenizer, joint=True), **SMALL)
    with pytest.raises(ConfigError, match=r"^tokenizer: an ONNX folder needs SentencePiece alone"):
        export(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_input(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, an exit code, and nothing is written."""
    file = tiny.write_lines(tmp_path / "file", ["a dog"])
    folder = tmp_path / "existing"
    folder.mkdir()
    before = tiny.tree(tmp_path)
    to = ("export", model, "--to", "onnx", "-o")
    cases: list[tuple[tuple[object, ...], int, str]] = [
        ((*to, folder), 2, "it exists already"),
        ((*to, file / "below"), 5, "file: file exists"),
        ((*to, tmp_path / "new", "--type", "bfloat16"), 2, "--type: ONNX has no type 'bfloat16'"),
        ((*to, tmp_path / "new", "--max-loss", 1), 2, "--max-loss: there are no references"),
        (("export", folder, *to[2:], tmp_path / "new"), 5, "no checkpoint in this folder"),
    ]
    for arguments, code, message in cases:
        found, _, err = tiny.mtkit(*arguments)
        assert (found, message in tiny.one_line(err)) == (code, True), err
    for package in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            found, _, err = tiny.mtkit(*to, tmp_path / "new")
        assert (found, tiny.one_line(err)) == (
            2, f"error: the package {package} is not installed (pip install 'mtkit[onnx]')",
        ), err  # fmt: skip
    assert tiny.tree(tmp_path) == before


def test_language_tags_are_tokens_there_too(tmp_path: Path) -> None:
    made = exported.demo_tokenizers("vocabulary").src
    assert isinstance(made, VocabularyTokenizer)
    vocabulary = replace(made.vocabulary, tokens=(*made.vocabulary.tokens, ">>fra<<"))
    tokenizer = VocabularyTokenizer(SentencePiece(made.model), vocabulary)
    exported.save_random_model(tmp_path / "model", Tokenizers(tokenizer, tokenizer, joint=True), **SMALL)
    lines = [f">>fra<< {exported.demo_lines(1)[0]}", ">> the dog", "the dog >>fra<<"]
    said: list[str] = []
    text = ProofText("tagged", lines)
    export_model(tmp_path / "model", OnnxExporter(), tmp_path / "out", lambda _: text, said.append)
    assert said[2].endswith("equal")
    assert run_script(tmp_path / "out" / "translate.py", lines) == greedy(tmp_path / "model", lines)


def test_the_example_writes_text_as_mtkit_does(tmp_path: Path) -> None:
    """Also tokens that target.spm lacks, and bytes that are line breaks."""
    made = exported.demo_tokenizers("vocabulary").src
    assert isinstance(made, VocabularyTokenizer)
    vocabulary = replace(made.vocabulary, tokens=(*made.vocabulary.tokens, "\u2581zebra"))
    zebra = VocabularyTokenizer(SentencePiece(made.model), vocabulary)
    plain = exported.demo_tokenizers("bytes").src
    line_break = next(i for i in range(plain.num_pieces) if plain.piece(i) == "<0x0A>")
    for name, tokenizer, index, text in (
        ("zebra", zebra, zebra.num_pieces - 1, "the zebra the"), ("bytes", plain, line_break, "the  the"),
    ):  # fmt: skip
        exported.save_random_model(tmp_path / name, Tokenizers(tokenizer, tokenizer, joint=True), **SMALL)
        export(tmp_path / name, tmp_path / "out" / name)
        the = tokenizer.encode(["the"])[0].tolist()
        ids = [[*the, index, *the]]
        theirs = OnnxExporter().tokenizer(tmp_path / "out" / name)
        assert theirs.decode(ids) == tokenizer.decode(ids) == [text]
