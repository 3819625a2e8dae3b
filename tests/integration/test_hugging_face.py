"""The same hypotheses as Hugging Face's generate for the same weights, in a model of the shape of Marian's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from mtkit.decoding.loading import load_model
from mtkit.decoding.translator import Translator

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")

LIKE_MARIAN = [
    "model.norm_position=post",
    "model.positions=sinusoidal",
    "model.bias=true",
    "model.dropout=0.0",
]
MOST_PIECES = 40


def marian(run: Path) -> Any:
    """The run's weights in a MarianMTModel."""
    config, tokenizers, model = load_model(run)
    shape, tgt = config.model, tokenizers.tgt
    made = transformers.MarianMTModel(
        transformers.MarianConfig(
            vocab_size=tgt.vocab_size, d_model=shape.d_model,
            encoder_layers=shape.encoder_layers, decoder_layers=shape.decoder_layers,
            encoder_attention_heads=shape.heads, decoder_attention_heads=shape.heads,
            encoder_ffn_dim=shape.feed_forward, decoder_ffn_dim=shape.feed_forward,
            activation_function=shape.activation, scale_embedding=True, max_position_embeddings=256,
            pad_token_id=tgt.pad, eos_token_id=tgt.eos, bos_token_id=tgt.bos, decoder_start_token_id=tgt.bos,
            forced_eos_token_id=None,
        )
    ).eval()  # fmt: skip
    weights = {"final_logits_bias": torch.zeros(1, tgt.vocab_size)}
    for side, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        for number, layer in enumerate(stack):
            place = f"model.{side}.layers.{number}"
            weights |= attention(f"{place}.self_attn", layer.attention.qkv, "qkv", layer.attention.out)
            weights |= named(f"{place}.self_attn_layer_norm", layer.attention_residual.norm)
            if side == "decoder":
                weights |= named(f"{place}.encoder_attn.q_proj", layer.cross.q)
                weights |= attention(f"{place}.encoder_attn", layer.cross.kv, "kv", layer.cross.out)
                weights |= named(f"{place}.encoder_attn_layer_norm", layer.cross_residual.norm)
            weights |= named(f"{place}.fc1", layer.feed_forward.inner)
            weights |= named(f"{place}.fc2", layer.feed_forward.outer)
            weights |= named(f"{place}.final_layer_norm", layer.feed_forward_residual.norm)
    weights["model.shared.weight"] = model.output.weight
    missing, unexpected = made.load_state_dict(weights, strict=False)
    tied = ("embed_tokens.weight", "embed_positions.weight", "lm_head.weight")
    assert not unexpected and all(name.endswith(tied) for name in missing), (missing, unexpected)
    made.tie_weights()
    return made


def named(place: str, module: Any) -> dict[str, torch.Tensor]:
    """Weight and bias of a module."""
    return {f"{place}.weight": module.weight, f"{place}.bias": module.bias}


def attention(place: str, fused: Any, parts: str, out: Any) -> dict[str, torch.Tensor]:
    """The parts of a fused projection, and the output projection."""
    weights = zip(parts, fused.weight.chunk(len(parts)), fused.bias.chunk(len(parts)), strict=True)
    return named(f"{place}.out_proj", out) | {
        f"{place}.{part}_proj.{kind}": tensor
        for part, *tensors in weights
        for kind, tensor in zip(("weight", "bias"), tensors, strict=True)
    }


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model of Marian's shape."""
    folder = tmp_path_factory.mktemp("marian")
    config = tiny.write_config(folder / "config.yaml", run=folder / "run", root=corpus)
    assert tiny.mtkit("train", config, "training.max_steps=60", *LIKE_MARIAN)[0] == 0
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
    """With Hugging Face's own rules: the penalty is length ** alpha, eos counted, and one limit holds for all lines.

    Its early_stopping=True is our `finished`, "never" our `certain`. Its False ends where the best live hypothesis is,
    at its present length, no better than the worst of the finished ones: no rule of ours. A tie, or a difference of
    scores within rounding, would be no difference of the search; there is none here.
    """
    limits = {"max_length_ratio": 1e-6, "max_length_extra": MOST_PIECES - 1, "stop": stop}
    penalty = {"length_penalty": alpha, "penalty_kind": "simple", "beam_size": beam_size}
    plain = Translator.load(run, device="cpu", precision="fp32")
    decoding = plain.decoding.model_copy(update={**limits, **penalty})
    ours = Translator.load(run, decoding=decoding, device="cpu", precision="fp32")
    src, tgt = ours.tokenizers.src, ours.tokenizers.tgt
    lines = tiny.read_lines(corpus / "test.src") + tiny.read_lines(corpus / "valid.src")
    sentences = src.encode(lines)
    rows = [torch.tensor([*ids.tolist(), src.eos]) for ids in sentences]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=src.pad)
    found = marian(run).generate(
        input_ids=padded, attention_mask=(padded != src.pad).long(), num_beams=beam_size, do_sample=False,
        length_penalty=alpha, early_stopping=early_stopping, max_new_tokens=MOST_PIECES,
        suppress_tokens=list(ours.options.suppressed),
    )  # fmt: skip
    theirs = [
        row[1 : row.index(tgt.eos)] if tgt.eos in row else None for row in map(torch.Tensor.tolist, found)
    ]
    complete = [
        (h[0].ids, t) for h, t in zip(ours.search_ids(sentences), theirs, strict=True) if t is not None
    ]
    assert len(complete) > len(lines) // 2  # the others reached the limit, where only mtkit says eos
    assert [a for a, b in complete if a != b] == []
