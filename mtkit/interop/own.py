"""Writes model folders of mtkit itself: in another type, self-contained, and without what only training needs."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import Tensor

from mtkit.checkpoint import Checkpoint, write_checkpoint
from mtkit.config.loading import dump_config
from mtkit.config.sections import DecodingConfig
from mtkit.interop.exporting import DTYPES, LoadedModel
from mtkit.model.cpu.packing import can_multiply_int8
from mtkit.model.quantized import quantize
from mtkit.model.transformer import Transformer
from mtkit.translation.engine import Engine
from mtkit.translation.shortlist import save_shortlist
from mtkit.translation.translator import Translator


class OwnExporter:
    """Writes model folders that every command of mtkit reads."""

    name = "mtkit"
    types: tuple[str, ...] = (*DTYPES, "int8")

    def check(self, model: LoadedModel) -> None:
        """Every model passes."""

    def write(self, model: LoadedModel, folder: Path, type_: str) -> None:
        training = model.config.training.model_copy(update={"lora": None})  # adapters are merged
        config = dump_config(model.config.model_copy(update={"training": training}))
        state = {
            "exported": type_,
            "tokenizers": model.tokenizers.fingerprint,
            "usual_src_tokens": model.usual_src_tokens,
        }
        weights = _weights(model.network, type_)
        checkpoint = Checkpoint(weights, config, state, int8=type_ == "int8")
        write_checkpoint(folder, checkpoint, model.tokenizers.files())
        if model.shortlist is not None:
            save_shortlist(folder, model.shortlist, model.tokenizers)

    def search(self, decoding: DecodingConfig) -> DecodingConfig:
        """Every search is the engine's own."""
        return decoding

    def tokenizer(self, folder: Path) -> None:
        """There is none to compare: the engine is mtkit."""

    def computed_in(self, type_: str) -> str:
        """Weights of 16 bits are computed with in float32 to measure what they lose."""
        return "float32" if type_ == "int8" and not can_multiply_int8() else type_

    def unproven(self) -> None:
        """Every export can be proven."""

    def engine(self, model: LoadedModel, folder: Path, type_: str, decoding: DecodingConfig) -> Engine:
        """The whole vocabulary is searched, as in the other engines."""
        decoding = decoding.model_copy(update={"shortlist": False})
        precision = "int8" if self.computed_in(type_) == "int8" else "fp32"
        return Translator.load(folder, decoding=decoding, device="cpu", precision=precision).engine


def _weights(network: Transformer, type_: str) -> dict[str, Tensor]:
    """Return the weights of a model by parameter name, matrices in a type and all others in float32."""
    if type_ == "int8":
        network = copy.deepcopy(network)
        quantize(network)
        return dict(network.named_parameters())
    return {
        name: parameter.to(DTYPES[type_]) if parameter.dim() > 1 else parameter
        for name, parameter in network.named_parameters()
    }
