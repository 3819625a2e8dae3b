"""Runs models that were exported to ONNX, in mtkit's own search, and writes such exports.

Shapes: B sentences, K hypotheses of each, S source length, T target length, L decoder layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtkit.config.sections import DecodingConfig
from mtkit.data.batching import Ids
from mtkit.device import limit_threads
from mtkit.interop.exporting import LoadedModel, check_sentencepiece_alone
from mtkit.interop.onnx import TYPES, import_onnx_packages, write_description, write_graphs
from mtkit.interop.proof import EngineTokenizer
from mtkit.search.shortlist import ReducedVocabulary, TokenLists
from mtkit.search.state import Stepper
from mtkit.translation.alignment import SegmentAttention
from mtkit.translation.batched_search import BatchedSearch
from mtkit.translation.engine import Engine
from mtkit.translation.ensemble import Ensemble
from mtkit.translation.options import PARALLEL, Parallelism

Array = npt.NDArray[Any]


class OnnxExporter:
    """Writes folders that `onnxruntime` runs."""

    name = "ONNX"
    types: tuple[str, ...] = TYPES

    def check(self, model: LoadedModel) -> None:
        """Check the tokenizers alone: any architecture can be traced."""
        import_onnx_packages()
        check_sentencepiece_alone(model.tokenizers, "an ONNX folder")

    def write(self, model: LoadedModel, folder: Path, type_: str) -> None:
        write_graphs(model.network, folder, type_)
        write_description(model.config, model.tokenizers, folder, type_)

    def search(self, decoding: DecodingConfig) -> DecodingConfig:
        """The search is mtkit's own."""
        return decoding

    def tokenizer(self, folder: Path) -> EngineTokenizer:
        return _Tokenizer(folder)

    def computed_in(self, type_: str) -> str:
        """On CPUs, onnxruntime computes with float16 in float32."""
        return "float32" if type_ == "float16" else type_

    def unproven(self) -> None:
        """Every export can be proven: `onnxruntime` is needed to write int8 anyway."""

    def engine(self, model: LoadedModel, folder: Path, type_: str, decoding: DecodingConfig) -> Engine:
        return _OnnxEngine(_OnnxEnsemble(Graphs(folder), model), decoding, model.config.data.tgt)


class Graphs:
    """The encoder and the decoder in an exported folder."""

    def __init__(self, folder: Path) -> None:
        *_, onnxruntime = import_onnx_packages()
        options = onnxruntime.SessionOptions()
        limit_threads()
        options.intra_op_num_threads = torch.get_num_threads()
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
            for name in ("encoder.onnx", "decoder.onnx")
        )
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self.caches = [
            (port.name, port.shape[1], port.shape[3], types[port.type])
            for port in self.decoder.get_inputs()
            if port.name.startswith("past_")
        ]
        """Name, heads, width and type of the keys and of the values of each layer."""

    def encode(self, src_BS: Tensor) -> dict[str, Array]:
        """Return what the encoder makes of sources, by name: the inputs `memory_…` of the decoder, and its states."""
        names = [port.name for port in self.encoder.get_outputs()]
        return dict(zip(names, self.encoder.run(names, {"src_ids": src_BS.numpy()}), strict=True))

    def no_past(self, num_rows: int) -> dict[str, Array]:
        """Return the keys and values before the first step."""
        return {
            name: np.zeros((num_rows, heads, 0, width), type_) for name, heads, width, type_ in self.caches
        }

    def decode(
        self, tgt_BT: Tensor, encoded: dict[str, Array], past: dict[str, Array]
    ) -> tuple[Array, Array, dict[str, Array]]:
        """Return the logits [B, T, V] of new tokens, their attention [B, L, T, S], and the keys and values so far."""
        memory = {name: value for name, value in encoded.items() if name.startswith("memory_")}
        inputs = {"tgt_ids": tgt_BT.numpy(), **memory, **past}
        logits, attention, *present = self.decoder.run(None, inputs)
        return logits, attention, dict(zip(past, present, strict=True))


class _OnnxStepper:
    """Exported graphs as a step function of the search; see `Stepper`.

    Args:
        graphs: the model.
        src_BS: sources, padded.
        vocab_size: V.
    """

    def __init__(self, graphs: Graphs, src_BS: Tensor, vocab_size: int) -> None:
        self.graphs, self.vocab_size = graphs, vocab_size
        self.encoded, self.past = graphs.encode(src_BS), graphs.no_past(len(src_BS))
        self.num_hypotheses = 1
        self.attention_BKLS = torch.empty(0)

    def step(self, tokens_BK: Tensor) -> Tensor:
        """Append the newest tokens and return the logits [B, K, V]."""
        tokens = tokens_BK.reshape(-1, 1)  # [B x K, 1]
        logits, attention, self.past = self.graphs.decode(tokens, self.encoded, self.past)
        self.attention_BKLS = torch.from_numpy(attention[:, :, 0]).unflatten(0, tokens_BK.shape)
        return torch.from_numpy(logits).view(*tokens_BK.shape, -1)

    def logits(self, hidden_BKD: Tensor, first: int = 0) -> Tensor:
        """Return the logits [B, K, V], which is what `step` has returned."""
        return hidden_BKD

    def reorder(self, parents_BK: Tensor) -> None:
        firsts_B1 = self.num_hypotheses * torch.arange(len(parents_BK))[:, None]
        self._keep((firsts_B1 + parents_BK).flatten())
        self.num_hypotheses = parents_BK.shape[1]

    def keep_rows(self, rows_B: Tensor) -> None:
        own_K = torch.arange(self.num_hypotheses)
        self._keep((self.num_hypotheses * rows_B[:, None] + own_K).flatten())

    def _keep(self, rows: Tensor) -> None:
        """Continue with these rows of the sentences' hypotheses."""
        index = rows.numpy()
        self.encoded = {name: value[index] for name, value in self.encoded.items()}
        self.past = {name: value[index] for name, value in self.past.items()}

    def attention(self) -> Tensor:
        padding_BK1S = torch.from_numpy(~self.encoded["memory_mask"])
        weights_BKS = self.attention_BKLS.mean(dim=2)
        return weights_BKS.masked_fill(padding_BK1S.view_as(weights_BKS), 1.0)


class _OnnxEnsemble(Ensemble):
    """An exported model in the place of the one that it was made of.

    Args:
        graphs: the exported model.
        model: the model itself, for tokenizers and sizes.
    """

    def __init__(self, graphs: Graphs, model: LoadedModel) -> None:
        super().__init__([model.network], model.tokenizers)
        self.graphs = graphs

    def stepper(
        self,
        src_BS: Tensor,
        num_hypotheses: int,
        keep_attention: bool = False,
        vocabulary: ReducedVocabulary | TokenLists | None = None,
    ) -> Stepper:
        """Return a stepper that always keeps attention; there are no shortlists."""
        return _OnnxStepper(self.graphs, src_BS, self.tokenizers.tgt.vocab_size)


class _OnnxEngine(BatchedSearch):
    """An exported model in mtkit's search; see `Engine`.

    Args:
        ensemble: the model.
        decoding: how to search.
        tgt: code of the target language.
    """

    def __init__(self, ensemble: _OnnxEnsemble, decoding: DecodingConfig, tgt: str | None) -> None:
        super().__init__(ensemble, decoding, tgt=tgt)
        self.graphs = ensemble.graphs

    def align(
        self, pairs: Sequence[tuple[Ids, Ids]], parallelism: Parallelism = PARALLEL
    ) -> Iterator[tuple[int, SegmentAttention]]:
        tokenizers = self.ensemble.tokenizers
        for index, (src_ids, tgt_ids) in enumerate(pairs):
            encoded = self.graphs.encode(self.ensemble.sources([src_ids]))
            targets = self.ensemble.targets_in([tgt_ids])
            _, attention, _ = self.graphs.decode(targets, encoded, self.graphs.no_past(1))
            src_pieces = tuple(map(tokenizers.src.piece, src_ids.tolist()))
            tgt_pieces = tuple(map(tokenizers.tgt.piece, tgt_ids.tolist()))
            yield index, SegmentAttention(src_pieces, tgt_pieces, attention[0])


class _Tokenizer:
    """The tokenizer in an exported folder, as the example in it uses it; see `EngineTokenizer`."""

    def __init__(self, folder: Path) -> None:
        from mtkit.interop.onnx_translate import Translator

        self.translator = Translator(folder)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        return [[*self.translator.encode(line), self.translator.config["source_eos"]] for line in lines]

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        return [self.translator.decode(ids) for ids in sequences]
