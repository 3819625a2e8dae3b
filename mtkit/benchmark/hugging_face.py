"""The same weights in a model of Hugging Face's, so that its `generate` can be run beside mtkit's search.

Marian normalizes after each sublayer, M2M100 before it. Only for measuring: nothing is written.
The package `transformers` is needed only here and in `reference`: `pip install transformers`.
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
    """The package. Raises: ConfigError: it is not installed."""
    try:
        import transformers
    except ImportError as error:
        what = "transformers is not installed"
        raise ConfigError(what, where="`against`", hint="pip install transformers") from error
    return transformers


def hugging_face_model(config: ModelConfig, model: Transformer, tokenizers: Tokenizers, longest: int) -> Any:
    """A `MarianMTModel` or `M2M100ForConditionalGeneration` with the weights of a model.

    Args:
        config: of the model.
        model: on the CPU.
        tokenizers: of both sides.
        longest: most pieces of a sentence, eos included.

    Raises:
        ConfigError: the package is not installed; an architecture that neither of them has.
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
    made = make(shape).eval()
    weights = {"model.shared.weight": model.output.weight} | layers(model)
    if post:
        weights["final_logits_bias"] = torch.zeros(1, tgt.vocab_size)
    else:
        weights |= named("model.encoder.layer_norm", model.encoder_norm)
        weights |= named("model.decoder.layer_norm", model.decoder_norm)
        for side in (made.model.encoder, made.model.decoder):  # its sinusoids have other frequencies
            table = side.embed_positions.weights
            table[tgt.pad + 1 :] = sinusoids(torch.arange(len(table) - tgt.pad - 1), config.d_model)
    missing, unexpected = made.load_state_dict(weights, strict=False)
    tied = ("embed_tokens.weight", "embed_positions.weight", "lm_head.weight")
    assert not unexpected and all(name.endswith(tied) for name in missing), (missing, unexpected)
    made.tie_weights()
    return made


def check_convertible(config: ModelConfig, model: Transformer) -> None:
    """Raise ConfigError for what Marian and M2M100 have not."""
    same_table = model.output.weight is model.src_embedding.weight
    has = {
        "positions": config.positions == "sinusoidal",
        "norm": config.norm == "layernorm",
        "activation": config.activation != "swiglu",
        "num_kv_heads": config.kv_heads == config.heads,
        "tie_embeddings": same_table,
    }
    for key, there in has.items():
        if not there:
            what = "Hugging Face's Marian and M2M100 have no such model"
            raise ConfigError(what, where=f"model.{key}", hint="leave transformers out of `against`")


def layers(model: Any) -> dict[str, Tensor]:
    """Weights of all layers by their names there."""
    weights: dict[str, Tensor] = {}
    for side, stack in (("encoder", model.encoder_stack()), ("decoder", model.decoder_stack())):
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
    return weights


def named(place: str, module: Any) -> dict[str, Tensor]:
    """Weight and bias of a module; a bias that it lacks is zero."""
    bias = module.bias if module.bias is not None else module.weight.new_zeros(len(module.weight))
    return {f"{place}.weight": module.weight, f"{place}.bias": bias}


def attention(place: str, fused: Any, parts: str, out: Any) -> dict[str, Tensor]:
    """The parts of a fused projection, and the output projection."""
    whole = named("", fused)
    chunks = zip(parts, whole[".weight"].chunk(len(parts)), whole[".bias"].chunk(len(parts)), strict=True)
    return named(f"{place}.out_proj", out) | {
        f"{place}.{part}_proj.{kind}": tensor
        for part, *tensors in chunks
        for kind, tensor in zip(("weight", "bias"), tensors, strict=True)
    }


@torch.inference_mode()
def generate(
    made: Any,
    src_BS: Tensor,
    tokenizers: Tokenizers,
    *,
    beam_size: int,
    length_penalty: float,
    most_pieces: int,
    suppressed: Sequence[int],
    early_stopping: bool | str = True,
    no_repeat_ngram: int = 0,
    min_pieces: int = 0,
) -> list[list[int]]:
    """The best hypothesis of each sentence by Hugging Face's `generate`, from behind bos up to eos.

    Args:
        made: see `hugging_face_model`.
        src_BS: padded sources that end with eos.
        length_penalty: of the simple kind, length ** alpha.
        most_pieces: of a hypothesis, eos included; it has no eos there if the limit ended it.
        early_stopping: True is mtkit's `stop: finished`, "never" its `certain`.
    """
    tgt = tokenizers.tgt
    found = made.generate(
        input_ids=src_BS, attention_mask=(src_BS != tokenizers.src.pad).long(), num_beams=beam_size, do_sample=False,
        length_penalty=length_penalty, early_stopping=early_stopping, max_new_tokens=most_pieces,
        suppress_tokens=list(suppressed),
        no_repeat_ngram_size=no_repeat_ngram, min_new_tokens=min_pieces,
    )  # fmt: skip
    rows = (row[1:] for row in found.tolist())
    return [row[: row.index(tgt.eos) + 1] if tgt.eos in row else row for row in rows]
