"""`mtkit export --to huggingface`: what `transformers` loads from the folder computes and splits text the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import exported
import pytest
import tiny
import torch

from mtkit.errors import ConfigError
from mtkit.interop.exporting import LoadedModel, export_model
from mtkit.interop.formats import FORMATS
from mtkit.interop.hugging_face_engine import HuggingFaceExporter
from mtkit.interop.importing import ImportOptions, import_model
from mtkit.interop.proof import ProofText
from mtkit.translation.batched_search import search_options
from mtkit.translation.loading import load_model

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")

MBART = {"positions": "learned", "max_positions": 100, "embedding_norm": True}
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("MarianMTModel", {"norm_position": "post"}),
    ("MarianMTModel", {"norm_position": "post", "output_bias": True, "activation": "silu"}),
    ("MarianMTModel", {"norm_position": "post", "decoder_num_heads": 2, "decoder_d_ff": 80}),
    ("MarianMTModel", {"norm_position": "post", "tie_embeddings": "two-way", "bias": False}),
    ("MarianMTModel", {"norm_position": "post", "tie_embeddings": "none", "scale_embeddings": False}),
    ("MarianMTModel", {"norm_position": "post", "tokenizers": "separate"}),
    ("MarianMTModel", {"norm_position": "post", "tokenizers": "bytes"}),
    ("MarianMTModel", {"norm_position": "post", "tokenizers": "vocabulary", "output_bias": True}),
    ("MarianMTModel", {"norm_position": "post", "tokenizers": "eos"}),
    ("PegasusForConditionalGeneration", {}),
    ("PegasusForConditionalGeneration", {"output_bias": True, "activation": "gelu", "encoder_layers": 3}),
    ("PegasusForConditionalGeneration", {"unique_decoder_layers": 1, "tokenizers": "bytes"}),
    ("M2M100ForConditionalGeneration", {"sinusoids": "fairseq", "position_offset": 1}),
    ("BartForConditionalGeneration", {"norm_position": "post", **MBART}),
    ("MBartForConditionalGeneration", {**MBART, "attention_bias": False, "output_bias": True}),
]


export = partial(exported.export, HuggingFaceExporter())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights."""
    folder = tmp_path_factory.mktemp("models") / "model"
    exported.save_random_model(folder, exported.demo_tokenizers(), output_bias=True, norm_position="post")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"), SHAPES, ids=lambda value: value[:6] if isinstance(value, str) else "-".join(value)
)
def test_the_folder_computes_the_same(name: str, shape: dict[str, Any], tmp_path: Path) -> None:
    """Logits equal, tokens and greedy translations equal, and imported again the weights are the same."""
    shape = dict(shape)
    tokenizers = exported.demo_tokenizers(shape.pop("tokenizers", "joint"))
    exported.save_random_model(tmp_path / "model", tokenizers, **shape)
    said = export(tmp_path / "model", tmp_path / "out")
    same, of = (int(word) for word in said[-2].split()[2:5:2])
    assert of >= 190 and of - same <= 2 and said[-1].endswith("equal"), said
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == name
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    lines = exported.demo_lines(20)
    batch = tokenizer(lines, return_tensors="pt", padding=True)
    config, _, ours = load_model(tmp_path / "model")
    ours.eval()
    torch.manual_seed(1)
    tgt = torch.randint(4, tokenizers.tgt.num_pieces - 4, (len(lines), 9))
    with torch.no_grad():
        src = batch["input_ids"]
        logits = ours.logits(ours.decode(tgt, ours.encode(src), ours.source_mask(src)))
        torch.testing.assert_close(
            theirs(**batch, decoder_input_ids=tgt).logits, logits, atol=1e-4, rtol=1e-4
        )
    import_model(str(tmp_path / "out"), tmp_path / "again", FORMATS, ImportOptions())
    before, after = (load_model(tmp_path / folder)[2].state_dict() for folder in ("model", "again"))
    for (
        key,
        tensor,
    ) in before.items():  # there may be more of them: biases that are zero, layers that were shared
        torch.testing.assert_close(after[key], tensor, atol=0, rtol=0)


@pytest.mark.slow
def test_types_and_files(model: Path, tmp_path: Path) -> None:
    said = export(model, tmp_path / "out", type_="bfloat16")
    assert any(line.startswith("bfloat16: chrF") for line in said)
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    assert loaded.generation_config.num_beams == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "source.spm", "target.spm", "vocab.json",
        "tokenizer_config.json",
    }  # fmt: skip


def test_the_search_forbids_the_same(tmp_path: Path, tokenizers: Any) -> None:
    exported.save_random_model(tmp_path / "model", tokenizers, output_bias=True)
    loaded = load_model(tmp_path / "model")[0]
    decoding = loaded.decoding.model_copy(update={"min_pieces": 3, "suppress": ("dog",)})
    model = LoadedModel(
        loaded.model_copy(update={"decoding": decoding}), *load_model(tmp_path / "model")[1:], None
    )
    (tmp_path / "out").mkdir()
    HuggingFaceExporter().write(model, tmp_path / "out", "float32")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["min_new_tokens"] == 3
    suppressed = set(search_options(decoding, tokenizers.tgt).suppressed)
    assert set(written["suppress_tokens"]) == suppressed > {tokenizers.tgt.pad, tokenizers.tgt.unk}


def test_the_command_line(model: Path, tmp_path: Path) -> None:
    """The folder that it wrote translates with the usual lines of `transformers`."""
    code, out, err = tiny.mtkit("export", model, "--to", "huggingface", "-o", tmp_path / "out")
    assert code == 0, err
    assert "tokens of 200 lines: equal" in out
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert isinstance(theirs, transformers.MarianMTModel)
    lines = exported.demo_lines(30)
    batch = tokenizer(lines, return_tensors="pt", padding=True)
    ids = theirs.generate(**batch, num_beams=1, early_stopping=False, max_length=60)
    search = ("--beam-size", 1, "--precision", "fp32", "--max-length-ratio", 0.0001, "--no-avoid-loops")
    code, out, err = tiny.mtkit("translate", model, *search, stdin="".join(f"{line}\n" for line in lines))
    assert code == 0, err
    ours = [
        " ".join(line.split()[:4]) for line in out.removesuffix("\n").split("\n")
    ]  # its limit is 12 tokens
    found = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert [(own, their) for own, their in zip(ours, found, strict=True) if not their.startswith(own)] == []


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("positions", {"positions": "relative"}),
    ("sinusoids", {"sinusoids": "interleaved"}),
    ("sinusoids", {"sinusoids": "fairseq", "norm_position": "post"}),
    ("position_offset", {"sinusoids": "fairseq", "position_offset": 2}),
    ("norm", {"norm": "rmsnorm", "norm_epsilon": 1e-5}),
    ("norm_epsilon", {"norm_epsilon": 1e-6}),
    ("final_norm", {"final_norm": False}),
    ("final_norm", {"final_norm": True, "norm_position": "post"}),
    ("decoder_norm_position", {"decoder_norm_position": "post"}),
    ("embedding_norm", {"embedding_norm": True}),
    ("embedding_norm", {"positions": "learned", "max_positions": 100}),
    ("activation", {"activation": "swiglu"}),
    ("num_kv_heads", {"num_kv_heads": 2}),
    ("residual_scale", {"residual_scale": 2.0}),
    ("source_eos", {"source_eos": False}),
    ("tie_embeddings", {"tie_embeddings": "two-way"}),
    ("output_bias", {"sinusoids": "fairseq", "position_offset": 1, "output_bias": True}),
]


@pytest.mark.parametrize(("key", "shape"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_it_lacks_is_refused_with_the_key(
    key: str, shape: dict[str, Any], tmp_path: Path, tokenizers: Any
) -> None:
    exported.save_random_model(tmp_path / "model", tokenizers, **shape)
    with pytest.raises(ConfigError, match="not supported by Hugging Face") as error:
        export(tmp_path / "model", tmp_path / "out")
    assert error.value.where == f"model.{key}"
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def tokenizers() -> Any:
    return exported.demo_tokenizers()


def test_an_export_that_computes_otherwise_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = HuggingFaceExporter.write

    def write_damaged(self: HuggingFaceExporter, loaded: Any, folder: Path, type_: str) -> None:
        write(self, loaded, folder, type_)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"scale_embedding": False}))

    monkeypatch.setattr(HuggingFaceExporter, "write", write_damaged)
    with pytest.raises(ConfigError, match=r"translates .* otherwise than mtkit"):
        export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_without_transformers_no_loss_is_promised(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HuggingFaceExporter, "unproven", lambda self: "install it")
    text = ProofText("text", ["a dog"], ["ein Hund"])
    with pytest.raises(ConfigError, match=r"`max_loss`: the loss cannot be measured .*install it"):
        export_model(
            model,
            HuggingFaceExporter(),
            tmp_path / "out",
            lambda _: text,
            print,
            type_="float16",
            max_loss=0.3,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_without_transformers_it_is_written_and_not_proven(model: Path, tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'transformers' else find(name, *rest)\n"
        "sys.modules['transformers'] = None\n"
        "from mtkit.cli import run\n"
        "sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "export", str(model), "--to", "huggingface", "-o", str(tmp_path / "out")],
        capture_output=True, text=True, env=tiny.child_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not proven: transformers is not installed" in done.stdout
    assert (tmp_path / "out/model.safetensors").exists()


def test_bad_input(model: Path, tmp_path: Path) -> None:
    to = ("export", model, "--to", "huggingface", "-o", tmp_path / "new")
    cases: list[tuple[tuple[object, ...], int, str]] = [
        ((*to, "--type", "int8"), 2, "--type: Hugging Face has no type 'int8'"),
        ((*to, "--max-loss", 0.1), 2, "there are no references"),
        ((*to, "--src", tmp_path / "missing"), 3, "missing"),
    ]
    for arguments, code, message in cases:
        found, _, err = tiny.mtkit(*arguments)
        assert (found, message in tiny.one_line(err)) == (code, True), err
    assert list(tmp_path.iterdir()) == []
