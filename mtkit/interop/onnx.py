"""Writes models as ONNX (https://onnx.ai): an encoder and a decoder, which onnxruntime runs.

Both are traced from the model itself. The decoder takes the keys and values of earlier steps as inputs and returns them
with those of the new tokens, so that one graph serves the first step (no earlier steps), every further one, and whole
translations at once.

Shapes: B batch, S source length, T new target tokens, P earlier ones, D model width, H query heads,
G key/value heads, E head width, V vocabulary, L decoder layers.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtkit import __version__
from mtkit.config.sections import Config
from mtkit.data.tokenizer import Tokenizers
from mtkit.files import storage_errors, write_bytes, write_text
from mtkit.model.attention import MultiHeadAttention, plain_attention
from mtkit.model.transformer import Transformer
from mtkit.packages import import_package
from mtkit.translation.batched_search import search_options

TYPES = ("float32", "float16", "int8")
"""Types of the weights."""
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_OPSET, _IR_VERSION = 18, 8
"""Versions of ONNX 1.13, so that old versions of onnxruntime load the graphs."""
_OLDEST_RUNTIME = {"float32": "1.15", "float16": "1.17", "int8": "1.15"}
"""Version of onnxruntime from which on the graphs of a type run; 1.15 is the oldest that was tried."""
LARGEST_FILE = 1_900_000_000
"""Bytes of weights that fit into an .onnx file, which is limited to 2 GB; more go to a file beside it."""


def import_onnx_packages() -> list[Any]:
    """Import and return the `_PACKAGES`.

    Raises:
        ConfigError: If one is not installed, or cannot be loaded.
    """
    return [import_package(name, "pip install 'mtkit[onnx]'") for name in _PACKAGES]


class _Encoder(nn.Module):
    """Encodes sources, and projects the memory to the keys and values of each decoder layer."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, src_BS: Tensor) -> list[Tensor]:
        """Map source ids [B, S] to the memory [B, S, D], its mask [B, S], and 2 x L tensors [B, G, S, E]."""
        memory_BSD = self.model.encode(src_BS)
        kv = [t for layer in self.model.decoder_stack() for t in layer.cross.project_memory(memory_BSD)]
        return [memory_BSD, self.model.source_mask(src_BS)[:, 0, 0], *kv]


class _Decoder(nn.Module):
    """Appends tokens to translations, by attending to the keys and values of earlier steps."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tgt_BT: Tensor, memory_mask_BS: Tensor, memory_kv: list[Tensor], past_kv: list[Tensor]
    ) -> list[Tensor]:
        """Map target ids [B, T] to logits [B, T, V], attention [B, L, T, S] and 2 x L tensors [B, G, P + T, E].

        Args:
            tgt_BT: the newest tokens.
            memory_mask_BS: True at real source tokens.
            memory_kv: keys and values of the memory: 2 x L tensors [B, G, S, E].
            past_kv: keys and values of earlier steps: 2 x L tensors [B, G, P, E].
        """
        model = self.model
        num_past = past_kv[0].shape[2]
        all_positions = torch.arange(num_past + tgt_BT.shape[1], device=tgt_BT.device)  # [P + T]
        positions_T = all_positions[num_past:]
        mask = all_positions[None, :] <= positions_T[:, None]  # [T, P + T]
        present_kv: list[Tensor] = []
        weights_BTS: list[Tensor] = []
        x_BTD = model.tgt_embedding.embed(tgt_BT, positions_T, model.residual_dtype)
        for index, layer in enumerate(model.decoder_stack()):
            places = slice(2 * index, 2 * index + 2)

            def self_attention(attention: MultiHeadAttention, x: Tensor, places: slice = places) -> Tensor:
                q, *new_kv = attention.project_qkv(x, positions_T)
                k, v = (torch.cat(both, dim=2) for both in zip(past_kv[places], new_kv, strict=True))
                present_kv.extend((k, v))
                return attention.attend(q, k, v, mask, (positions_T, all_positions))

            def cross_attention(attention: MultiHeadAttention, x: Tensor, places: slice = places) -> Tensor:
                q = attention.split_heads(attention.q(x))
                k, v = memory_kv[places]
                out, weights = plain_attention(q, k, v, memory_mask_BS[:, None, None])
                weights_BTS.append(weights.mean(dim=1))
                return attention.out(out.transpose(1, 2).flatten(2))

            x_BTD = layer(x_BTD, self_attention, cross_attention, model.compute_dtype)
        logits_BTV = model.logits(model.decoder_norm(x_BTD).to(model.compute_dtype))
        return [logits_BTV.float(), torch.stack(weights_BTS, dim=1).float(), *present_kv]


def write_graphs(model: Transformer, folder: Path, type_: str) -> None:
    """Write encoder.onnx and decoder.onnx.

    Args:
        model: the model, in float32 on the CPU.
        folder: an existing folder.
        type_: type of the weights, from `TYPES`.

    Raises:
        StorageError: If a file cannot be written.
    """
    if type_ == "float16":
        model = deepcopy(model).half()
        model.compute_dtype = torch.float16
    for name, program in (("encoder", _trace_encoder(model)), ("decoder", trace_decoder(model))):
        path = folder / f"{name}.onnx"
        with storage_errors(path):
            if type_ == "int8":
                _save_int8(program, path)
            else:
                save(program, path)


def write_description(config: Config, tokenizers: Tokenizers, folder: Path, type_: str) -> None:
    """Write what is needed to translate with the graphs: config.json, tokenizers, translate.py and README.md.

    Args:
        config: config of the model.
        tokenizers: its tokenizers.
        folder: folder with the graphs.
        type_: type of the weights.

    Raises:
        StorageError: If a file cannot be written.
    """
    src, tgt = tokenizers.src, tokenizers.tgt
    described = {
        "format": 1,
        "type": type_,
        "cache_type": _cache_type(type_),
        "source_language": config.data.src,
        "target_language": config.data.tgt,
        "source_pad": src.pad,
        "source_unk": src.unk,
        "source_eos": src.eos,
        "source_ends_with_eos": config.model.source_eos,
        "source_tags": bool(src.tags),
        "target_start": tgt.bos,
        "target_eos": tgt.eos,
        "never_generated": list(search_options(config.decoding, tgt).suppressed),
        "max_source_length": config.data.max_length,
        "max_length_ratio": config.decoding.max_length_ratio,
        "max_length_extra": config.decoding.max_length_extra,
    }
    write_text(folder / "config.json", json.dumps(described, indent=2) + "\n")
    for side, tokenizer in (("source", src), ("target", tgt)):
        write_bytes(folder / f"{side}.spm", tokenizer.model)
        pieces = [tokenizer.piece(index) for index in range(tokenizer.num_pieces)]
        write_text(folder / f"{side}_vocab.json", json.dumps(pieces, ensure_ascii=False, indent=0) + "\n")
    write_text(folder / "translate.py", _own_file("onnx_translate.py"))
    write_text(folder / "README.md", _readme(config, tokenizers, type_))


def _cache_type(type_: str) -> str:
    """Return the type of encoder states, keys and values."""
    return "float16" if type_ == "float16" else "float32"


_NOTES = {
    "float32": "",
    "float16": "On CPUs, onnxruntime computes in float32.",
    "int8": "Inputs of matrices are quantized with one scale for the whole batch, so a translation may depend on the "
    "other sentences of its batch; one sentence at a time is the most exact.",
}


def _readme(config: Config, tokenizers: Tokenizers, type_: str) -> str:
    """Return the README of a folder."""
    decoder = config.model.decoder
    return _own_file("onnx_readme.md").format(
        src=config.data.src,
        tgt=config.data.tgt,
        type=type_,
        version=__version__,
        oldest=_OLDEST_RUNTIME[type_],
        real=_cache_type(type_),
        width=decoder.d_model,
        heads=decoder.kv_heads,
        head_width=decoder.d_model // decoder.heads,
        layers=decoder.decoder_layers,
        last=decoder.decoder_layers - 1,
        vocabulary=tokenizers.tgt.vocab_size,
        note=_NOTES[type_],
    )


def _own_file(name: str) -> str:
    """Return the text of a file beside this one."""
    return Path(__file__).with_name(name).read_text("utf-8")


_KV = ("keys", "values")


def _names(kind: str, num_layers: int) -> list[str]:
    """Return the names of keys and values of all layers."""
    return [f"{kind}_{kv}_{index}" for index in range(num_layers) for kv in _KV]


def _trace_encoder(model: Transformer) -> Any:
    """Return the encoder as a program of ONNX."""
    src_BS = torch.full((2, 3), model.src_pad + 1)
    outputs = ["encoder_states", "memory_mask", *_names("memory", model.decoder_depth)]
    return _trace(_Encoder(model), (src_BS,), ({0: "batch", 1: "source"},), ["src_ids"], outputs)


def trace_decoder(model: Transformer) -> Any:
    """Return the decoder as a program of ONNX."""
    B, S, T, P = 2, 3, 4, 5  # different, and not 1, so that none is taken for another or for a constant
    attention = next(iter(model.decoder_stack())).attention
    num_layers, dtype = model.decoder_depth, model.compute_dtype

    def kv(length: int) -> list[Tensor]:
        shape = (B, attention.kv_heads, length, attention.head_width)
        return [torch.zeros(shape, dtype=dtype) for _ in range(2 * num_layers)]

    mask = torch.ones(B, S, dtype=torch.bool)
    examples = (torch.zeros(B, T, dtype=torch.long), mask, kv(S), kv(P))
    shapes = (
        {0: "batch", 1: "target"},
        {0: "batch", 1: "source"},
        [{0: "batch", 2: "source"}] * (2 * num_layers),
        [{0: "batch", 2: "past"}] * (2 * num_layers),
    )
    names = ["tgt_ids", "memory_mask", *_names("memory", num_layers), *_names("past", num_layers)]
    outputs = ["logits", "attention", *_names("present", num_layers)]
    return _trace(_Decoder(model), examples, shapes, names, outputs)


def _trace(
    module: nn.Module,
    examples: tuple[Any, ...],
    shapes: tuple[Any, ...],
    inputs: list[str],
    outputs: list[str],
) -> Any:
    """Return a module as a program of ONNX, without the paths of this machine that PyTorch notes in it."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with torch.no_grad(), _quiet_exporter():
        program: Any = torch.onnx.export(
            module.eval(),
            examples,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=inputs,
            output_names=outputs,
            opset_version=_OPSET,
            verbose=False,
        )
    ClearMetadataAndDocStringPass()(program.model)
    program.model.ir_version = _IR_VERSION
    return program


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter from printing that torchvision is missing, and that axes of one length share a name."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def save(program: Any, path: Path) -> None:
    """Write a program, its weights into a file beside it if they are large."""
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    program.save(str(path), external_data=size > LARGEST_FILE)


def _save_int8(program: Any, path: Path) -> None:
    """Write a program whose matrices are quantized to 8 bits.

    Weights are unsigned: with signed ones, x86 processors without VNNI add products in 16 bits, which overflow.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxscript.optimizer import optimize

    model = program.model
    largest = max(value.const_value.size for value in model.graph.initializers.values())
    # transposes the matrices, which are quantized only as they are multiplied
    optimize(model, input_size_limit=largest + 1, output_size_limit=largest + 1)
    model.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"  # so that it does not warn
    with tempfile.TemporaryDirectory(prefix=".mtkit", dir=path.parent) as temporary:
        whole = Path(temporary) / path.name
        save(program, whole)
        quantize_dynamic(
            str(whole),
            str(path),
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=True,
            weight_type=QuantType.QUInt8,
            use_external_data_format=whole.with_name(f"{whole.name}.data").exists(),
        )
