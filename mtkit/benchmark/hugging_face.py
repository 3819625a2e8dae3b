"""Conversion of a model to Hugging Face, to compare its `generate` with mtkit's search.

Post-norm models become Marian, pre-norm models M2M100. Nothing is written to disk.
Only this module and `reference` need the package `transformers`: `pip install transformers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtkit.config.sections import ModelConfig
from mtkit.data.tokenizer import Tokenizers
from mtkit.errors import ConfigError
from mtkit.model.positions import sinusoids
from mtkit.model.transformer import Transformer


def import_transformers() -> Any:
    """Import and return the package.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        what = "transformers is not installed"
        raise ConfigError(what, where="`against`", hint="pip install transformers") from error
    return transformers


def hugging_face_model(config: ModelConfig, model: Transformer, tokenizers: Tokenizers, longest: int) -> Any:
    """Return a `MarianMTModel` or `M2M100ForConditionalGeneration` with the weights of a model.

    Args:
        config: Config of the model.
        model: The model, on the CPU.
        tokenizers: Tokenizers of both sides.
        longest: Maximum tokens per sentence, eos included.

    Raises:
        ConfigError: If the package is not installed, or neither class supports the architecture.
    """
    transformers = import_transformers()
    check_convertible(config, model)
    tgt, post = tokenizers.tgt, config.norm_position == "post"
    kind, make = (
        (transformers.MarianConfig, transformers.MarianMTModel)
        if post
        else (transformers.M2M100Config, transformers.M2M100ForConditionalGeneration)
    )
    shape = kind(
        vocab_size=tgt.vocab_size, d_model=config.d_model,
        encoder_layers=config.encoder_layers, decoder_layers=config.decoder_layers,
        encoder_attention_heads=config.heads, decoder_attention_heads=config.heads,
        encoder_ffn_dim=config.feed_forward, decoder_ffn_dim=config.feed_forward,
        activation_function=config.activation, scale_embedding=True, max_position_embeddings=longest + 1,
        pad_token_id=tgt.pad, eos_token_id=tgt.eos, bos_token_id=tgt.bos, decoder_start_token_id=tgt.bos,
        forced_eos_token_id=None,
    )  # fmt: skip
    hf_model = make(shape).eval()
    weights = {"model.shared.weight": model.output.weight} | _layers(model)
    if post:
        weights["final_logits_bias"] = torch.zeros(1, tgt.vocab_size)
    else:
        weights |= _affine("model.encoder.layer_norm", model.encoder_norm)
        weights |= _affine("model.decoder.layer_norm", model.decoder_norm)
        for side in (hf_model.model.encoder, hf_model.model.decoder):  # M2M100 uses other frequencies
            table = side.embed_positions.weights
            table[tgt.pad + 1 :] = sinusoids(torch.arange(len(table) - tgt.pad - 1), config.d_model)
    missing, unexpected = hf_model.load_state_dict(weights, strict=False)
    tied = ("embed_tokens.weight", "embed_positions.weight", "lm_head.weight")
    assert not unexpected and all(name.endswith(tied) for name in missing), (missing, unexpected)
    hf_model.tie_weights()
    return hf_model


def check_convertible(config: ModelConfig, model: Transformer) -> None:
    """Check that Marian or M2M100 supports the architecture.

    Raises:
        ConfigError: If not, at the key that decides it.
    """
    supported = {
        "positions": config.positions == "sinusoidal",
        "norm": config.norm == "layernorm",
        "activation": not config.is_gated,
        "num_kv_heads": config.kv_heads == config.heads,
        "tie_embeddings": model.output.weight is model.src_embedding.weight,
    }
    for key, is_supported in supported.items():
        if not is_supported:
            what = "not supported by Hugging Face's Marian and M2M100"
            raise ConfigError(what, where=f"model.{key}", hint="leave transformers out of `against`")


def _layers(model: Any) -> dict[str, Tensor]:
    """Return the weights of all layers by their names in Hugging Face."""
    weights: dict[str, Tensor] = {}
    for side, stack in (("encoder", model.encoder_stack()), ("decoder", model.decoder_stack())):
        for number, layer in enumerate(stack):
            place = f"model.{side}.layers.{number}"
            weights |= _attention(f"{place}.self_attn", layer.attention.qkv, "qkv", layer.attention.out)
            weights |= _affine(f"{place}.self_attn_layer_norm", layer.attention_residual.norm)
            if side == "decoder":
                weights |= _affine(f"{place}.encoder_attn.q_proj", layer.cross.q)
                weights |= _attention(f"{place}.encoder_attn", layer.cross.kv, "kv", layer.cross.out)
                weights |= _affine(f"{place}.encoder_attn_layer_norm", layer.cross_residual.norm)
            weights |= _affine(f"{place}.fc1", layer.feed_forward.inner)
            weights |= _affine(f"{place}.fc2", layer.feed_forward.outer)
            weights |= _affine(f"{place}.final_layer_norm", layer.feed_forward_residual.norm)
    return weights


def _affine(place: str, module: Any) -> dict[str, Tensor]:
    """Return weight and bias of a module; without a bias, zeros."""
    bias = module.bias if module.bias is not None else module.weight.new_zeros(len(module.weight))
    return {f"{place}.weight": module.weight, f"{place}.bias": bias}


def _attention(place: str, fused: Any, names: str, out: Any) -> dict[str, Tensor]:
    """Return the output projection, and the projections (such as "qkv") that another one fuses."""
    both = _affine("", fused)
    chunks = zip(names, both[".weight"].chunk(len(names)), both[".bias"].chunk(len(names)), strict=True)
    return _affine(f"{place}.out_proj", out) | {
        f"{place}.{name}_proj.{kind}": tensor
        for name, *tensors in chunks
        for kind, tensor in zip(("weight", "bias"), tensors, strict=True)
    }


@torch.inference_mode()
def generate(
    hf_model: Any,
    src_BS: Tensor,
    tokenizers: Tokenizers,
    *,
    beam_size: int,
    length_penalty: float,
    max_tokens: int,
    suppressed: Sequence[int],
    early_stopping: bool | str = True,
    no_repeat_ngram: int = 0,
    min_tokens: int = 0,
) -> list[list[int]]:
    """Return the best hypothesis of each sentence by Hugging Face's `generate`, without bos.

    Args:
        hf_model: A model from `hugging_face_model`.
        src_BS: Padded sources that end with eos.
        tokenizers: Tokenizers of both sides.
        beam_size: Beam size.
        length_penalty: Exponent alpha of the simple length penalty, length ** alpha.
        max_tokens: Maximum tokens of a hypothesis, eos included; one that reaches it may lack eos.
        suppressed: Token ids that are never generated.
        early_stopping: True is mtkit's `stop: finished`, "never" its `certain`.
        no_repeat_ngram: Length of n-grams that may not repeat; 0 disables the rule.
        min_tokens: Minimum tokens of a hypothesis.
    """
    tgt = tokenizers.tgt
    found = hf_model.generate(
        input_ids=src_BS, attention_mask=(src_BS != tokenizers.src.pad).long(), num_beams=beam_size, do_sample=False,
        length_penalty=length_penalty, early_stopping=early_stopping, max_new_tokens=max_tokens,
        suppress_tokens=list(suppressed),
        no_repeat_ngram_size=no_repeat_ngram, min_new_tokens=min_tokens,
    )  # fmt: skip
    rows = (row[1:] for row in found.tolist())
    return [row[: row.index(tgt.eos) + 1] if tgt.eos in row else row for row in rows]
