"""Hypotheses equal those of Hugging Face's `generate` with the same weights, in a Marian and an M2M100."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tiny
import torch

from mtkit.config.sections import ModelConfig
from mtkit.errors import ConfigError
from mtkit.interop.hugging_face_engine import generate, hugging_face_model
from mtkit.interop.hugging_face_export import choose_class
from mtkit.model.transformer import Transformer
from mtkit.translation.loading import load_model
from mtkit.translation.translator import Translator

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("transformers")

MAX_TOKENS = 40


@pytest.fixture(scope="module", params=["post", "pre"])
def run(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model with the shape of Marian, or of M2M100 without biases."""
    folder = tmp_path_factory.mktemp("marian")
    config = tiny.write_config(folder / "config.yaml", run=folder / "run", root=corpus)
    shape = ["model.positions=sinusoidal", "model.dropout=0.0", f"model.norm_position={request.param}"]
    keys = [*shape, f"model.bias={'true' if request.param == 'post' else 'false'}"]
    assert tiny.mtkit("train", config, "training.max_steps=60", *keys)[0] == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("beam_size", "alpha", "stop", "early_stopping"),
    [
        (1, 0.0, "finished", True),
        (4, 0.0, "finished", True),
        (4, 1.0, "finished", True),
        (4, 1.0, "certain", "never"),
        (3, 0.6, "certain", "never"),
    ],
)
def test_hypotheses_are_those_of_generate(
    run: Path, corpus: Path, beam_size: int, alpha: float, stop: str, early_stopping: bool | str
) -> None:
    """Both use Hugging Face's rules: the penalty is length ** alpha, eos included, and all lines share a length limit.

    Its early_stopping=True is our `finished`, "never" our `certain`. False has no counterpart: it ends when the best
    live hypothesis, at its current length, is no better than the worst finished one. Ties, or scores that differ only
    by rounding, could change the result without a difference in the search; none occur here.
    """
    limits = {
        "max_length_ratio": 1e-6,
        "max_length_extra": MAX_TOKENS - 1,
        "stop": stop,
        "avoid_loops": False,
    }
    penalty = {"length_penalty": alpha, "penalty_kind": "simple", "beam_size": beam_size}
    plain = Translator.load(run, device="cpu", precision="fp32")
    decoding = plain.decoding.model_copy(update={**limits, **penalty})
    ours = Translator.load(run, decoding=decoding, device="cpu", precision="fp32")
    src, tgt = ours.tokenizers.src, ours.tokenizers.tgt
    lines = tiny.read_lines(corpus / "test.src") + tiny.read_lines(corpus / "valid.src")
    sentences = src.encode(lines)
    rows = [torch.tensor([*ids.tolist(), src.eos]) for ids in sentences]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=src.pad)
    config, tokenizers, model = load_model(run)
    theirs = generate(
        hugging_face_model(config.model, model, tokenizers, MAX_TOKENS), padded, tokenizers, beam_size=beam_size,
        length_penalty=alpha, max_tokens=MAX_TOKENS, suppressed=ours.search_options.suppressed,
        early_stopping=early_stopping,
    )  # fmt: skip
    complete = [
        (h[0].ids, t[:-1])
        for h, t in zip(ours.search_ids(sentences), theirs, strict=True)
        if t[-1] == tgt.eos
    ]
    assert len(complete) > len(lines) // 2  # the others reached the limit, where only mtkit says eos
    assert [a for a, b in complete if a != b] == []


@pytest.mark.parametrize(
    "key", ["positions=rotary", "norm=rmsnorm", "activation=swiglu", "tie_embeddings=none"]
)
def test_unsupported_architectures_are_errors(key: str) -> None:
    name, value = key.split("=")
    config = ModelConfig(d_model=32, encoder_layers=1, decoder_layers=1, num_heads=2, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not supported by"):
        choose_class(config, Transformer(config, 40, 40))


def test_generate_is_timed_beside_mtkit(run: Path, corpus: Path) -> None:
    """Run from the command line, with lines of several segments: the same text, in the same order."""
    arguments = [
        "--against",
        "transformers",
        "--ref",
        corpus / "test.tgt",
        "--rounds",
        1,
        "--precision",
        "fp32",
    ]
    code, out, err = tiny.mtkit("benchmark", "translate", run, corpus / "test.src", *arguments, "--json")
    assert code == 0, err
    ours, theirs = json.loads(out)["speeds"]
    assert theirs["system"] == "Hugging Face fp32"
    assert theirs["same_as_first"] > 0.8  # not all: at its limit mtkit ends with eos
    assert theirs["bleu"] > 0 and theirs["sentences_per_second"] > 0
